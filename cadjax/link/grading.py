"""From the findings of a scan to its CAD-RADS category."""

from collections.abc import Sequence

import numpy as np

from cadjax.link import agreement, cad_rads
from cadjax.link.findings import Finding, lost_share
from cadjax.vessels import segments, stenosis
from cadjax.vessels.tree import STEP_MM, VesselTree, voxel_mm
from data_prep import scct

# CAD-RADS grades vessels from this diameter on.
LEAST_MM = 1.5
# A main artery that was followed for less than this was not seen.
_SEEN_MM = 40.0
_LONG = ("LAD", "RCA")


def grade_scan(
  tree: VesselTree,
  found: Sequence[Finding],
  *,
  skipped: str | None = None,
  plaques: bool = True,
  agatston: float | None = None,
) -> cad_rads.CadRads:
  """Grades a scan by what the segmentation shows of it.

  Places that only the heat map marks do not count: it knows nothing of a
  lumen. Where plaque without calcium fills the calibre, the lumen is narrower
  than a voxel and the stenosis at least severe; where calcium does, it blooms
  and nothing is known. What a vessel below 1.5 mm has lost is not graded; its
  plaque is plaque.

  Args:
    tree: the vessels.
    found: of `findings.find_abnormalities`.
    skipped: why the vessels were not looked for, in words.
    plaques: whether plaque was segmented apart from the lumen; a mask of both
      as one hides plaque, and a narrowing behind it.
    agatston: score of a scan without contrast.

  Returns:
    the category; "N" with its reasons where a stenosis may have been missed.
  """
  if skipped is not None:
    return cad_rads.grade([], doubts=[skipped], agatston=agatston)
  doubts = _doubts(tree)
  if not plaques:
    doubts.append("Plaque was not segmented apart from the lumen.")
  return cad_rads.grade(
    read_segments(tree, found), doubts=doubts, agatston=agatston
  )


def read_segments(
  tree: VesselTree, found: Sequence[Finding]
) -> list[cad_rads.SegmentReading]:
  """Returns what is known of each segment that was found.

  Args:
    tree: the vessels.
    found: of `findings.find_abnormalities`.

  Returns:
    one reading for each segment of 1.5 mm or more, and for each with plaque.
  """
  by_segment: dict[str, list[Finding]] = {
    name: [] for name in _wide_segments(tree)
  }
  for finding in found:
    if finding.segment and is_graded(finding):
      by_segment.setdefault(finding.segment, []).append(finding)
  return [
    _read(name, some, voxel_mm(tree.affine))
    for name, some in by_segment.items()
  ]


def is_graded(finding: Finding) -> bool:
  """Whether it is plaque, or a narrowing of a vessel that is graded."""
  narrowed = "narrowing" in finding.sources
  return bool(finding.plaque) or (narrowed and _is_wide(finding))


def _is_wide(finding: Finding) -> bool:
  """Whether its vessel is graded; where that is not known, it is."""
  return not finding.reference_mm < LEAST_MM


def _read(
  name: str, found: Sequence[Finding], voxel: float
) -> cad_rads.SegmentReading:
  wide = [one for one in found if _is_wide(one)]
  shares = [(one, lost_share(one, voxel)) for one in wide]
  lost = [share for _, share in shares if share is not None]
  doubts = [one.stenosis_note for one, share in shares if share is None]
  risky = max((finding.high_risk for finding in found), key=len, default=())
  return cad_rads.SegmentReading(
    segment=name,
    stenosis=max(lost) if lost else None if wide else 0.0,
    plaque=any(finding.plaque for finding in found),
    high_risk=risky,
    doubt=doubts[0] if doubts else "",
  )


def _wide_segments(tree: VesselTree) -> list[str]:
  names = segments.segments(tree)
  wide = []
  for branch, of_branch in zip(tree.branches, names, strict=True):
    reference = stenosis.reference_radius(
      STEP_MM * np.arange(len(branch.radius_mm)), branch.radius_mm
    )
    wide += list(of_branch[2 * reference >= LEAST_MM])
  return [name for name in scct.SEGMENTS if name in set(wide)]


def _doubts(tree: VesselTree) -> list[str]:
  """Says why a stenosis may have been missed, in sentences."""
  if not tree.branches:
    return ["No coronary artery was found."]
  doubts = []
  kinds = {branch.kind: branch for branch in tree.branches}
  for name in _LONG:
    if name not in kinds:
      doubts.append(f"The {name} was not found.")
    elif kinds[name].length_mm < _SEEN_MM:
      doubts.append(
        f"The {name} was followed for {kinds[name].length_mm:.0f} mm only."
      )
  if "LCx" not in kinds and "LM" not in kinds:
    doubts.append("Neither LCx nor LM was found.")
  if fragments := agreement.unconnected(tree):
    doubts.append(fragments)
  return doubts
