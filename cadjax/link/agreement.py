"""Whether classifier and segmentation agree, in sentences."""

from collections.abc import Mapping

import numpy as np

from cadjax.link import cad_rads
from cadjax.link.evidence import Share
from cadjax.vessels.tree import VesselTree

# A few voxels of plaque are within a segmenter's error.
LEAST_PLAQUE_MM3 = 10.0
# Of the centrelines' length, below which the mask is not a coronary tree.
LEAST_CONNECTED = 0.5


def disagreements(
  tree: VesselTree,
  *,
  probability: float,
  threshold: float,
  near_vessels: Share | None = None,
  plaque_mm3: Mapping[str, float] | None = None,
  aorta_found: bool = True,
) -> list[str]:
  """Says where the classifier and the segmentation disagree.

  Args:
    tree: the vessels that were found.
    probability: of CAD, 0 to 1.
    threshold: at or above it the classifier calls CAD.
    near_vessels: the heat map's share in the coronary mask grown by some mm;
      None without a map.
    plaque_mm3: volume by type; None where plaque is not segmented.
    aorta_found: whether the mask has an aorta.

  Returns:
    One sentence each, those that void the others first; [] if all agrees.
  """
  sentences = []
  called = probability >= threshold
  call = _call(probability, threshold)
  if not tree.branches:
    sentences.append(
      "No coronary artery was found by the segmentation: nothing of the"
      " classifier's evidence can be placed on a vessel."
    )
  if fragments := unconnected(tree):
    sentences.append(fragments)
  if not aorta_found:
    sentences.append(
      "No aorta was found by the segmentation: the ostia, and so the"
      " distances and the vessels' names, are less sure."
    )
  if near_vessels is not None:
    sentences += _of_evidence(tree, call, called, near_vessels)
  if plaque_mm3 is not None:
    sentences += _of_plaque(call, called, plaque_mm3)
  return sentences


def of_grade(
  grade: cad_rads.CadRads, *, probability: float, threshold: float
) -> list[str]:
  """Says where the classifier's call and the scan's grade disagree, and why.

  A call of normal disagrees with an obstructive stenosis, 3 and above; a call
  of CAD with 0. A scan that is N has no grade to disagree with.

  Args:
    grade: of `grading.grade_scan`.
    probability: of CAD, 0 to 1.
    threshold: at or above it the classifier calls CAD.

  Returns:
    one sentence and what may explain it, or [].
  """
  called = probability >= threshold
  call = _call(probability, threshold)
  if not called and grade.is_obstructive:
    return [
      f"{_capital(call)}, but the segmentation is graded {grade.text}:"
      f" {grade.words}, the worst in {grade.segment}. Either the"
      " classifier, which sees the whole heart in coarser voxels and was"
      " trained to tell patients apart and not vessels, missed it; or the mask"
      " is too thin there, as it is by motion, noise, a stent or blooming"
      " calcium. Look at that place in the scan first."
    ]
  if called and grade.category == "0":
    return [
      f"{_capital(call)}, but the segmentation is graded {grade.text}: no"
      " plaque and no stenosis. Either the segmentation missed plaque, as it"
      " does most where it is small or soft; or the classifier's evidence is"
      " not in the coronary arteries. The table of the evidence by structure"
      " says where it lies."
    ]
  return []


def unconnected(tree: VesselTree) -> str | None:
  """Says that most of a tree hangs on no ostium; None if it does not.

  A segmenter on a scan unlike its training data marks bone and veins here and
  there. Gaps in a real tree leave fragments, but not most of its length.
  """
  hangs = [bool(np.isnan(b.course_distance_mm[-1])) for b in tree.branches]
  lengths = np.array([len(b.points_mm) for b in tree.branches])
  if not lengths.sum() or not any(hangs):
    return None
  share = float(lengths[hangs].sum() / lengths.sum())
  if 1 - share >= LEAST_CONNECTED:
    return None
  return (
    f"{share:.0%} of the length of the segmented coronary arteries, in"
    f" {sum(hangs)} fragments, hangs on no ostium: the segmentation does not"
    " fit this scan, and neither vessels' names nor located abnormalities are"
    " to be relied on."
  )


def _call(probability: float, threshold: float) -> str:
  called = probability >= threshold
  return (
    f"the classifier's probability of CAD, {probability:.2f}, is"
    f" {'at or above' if called else 'below'} its threshold, {threshold:.2f}"
  )


def _of_evidence(tree, call, called, near: Share) -> list[str]:
  if np.isnan(near.energy):
    return ["The heat map is empty: the classifier's call has no place."]
  if not called or not tree.branches or not near.lift < 1:
    return []
  return [
    f"{_capital(call)}, but its evidence is not at the coronary arteries:"
    f" {near.energy:.1%} of the heat map lies near a vessel, where chance"
    f" would put {near.volume:.1%} (lift {near.lift:.2f})."
  ]


def _of_plaque(call, called, plaque_mm3) -> list[str]:
  total = float(sum(plaque_mm3.values()))
  if not called and total >= LEAST_PLAQUE_MM3:
    kinds = " and ".join(
      f"{volume:.0f} mm3 of {kind} plaque"
      for kind, volume in plaque_mm3.items()
      if volume > 0
    )
    return [f"The segmentation shows {kinds}, but {call}."]
  if called and total < LEAST_PLAQUE_MM3:
    return [
      f"{_capital(call)}, but the segmentation shows no plaque to speak of"
      f" ({total:.0f} mm3)."
    ]
  return []


def _capital(sentence: str) -> str:
  return sentence[0].upper() + sentence[1:]
