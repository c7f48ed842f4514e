"""The structured diagnosis of a linked scan: its words, rows and JSON.

The object "diagnosis" of result.json:

  text, words     "CAD-RADS 4A/P2/HRP", and what that category means
  category, burden, burden_by, modifiers, stenosis, segment, severe,
  segments_involved, doubts
                  see `link.cad_rads.CadRads`
  bounded         true where the worst stenosis is not measured but at least
                  that of a lumen of one voxel
  sentences       of the structured report, one for each main artery
  segments        for each coronary segment that was read: segment, number (of
                  the SCCT), words, artery, stenosis (0 to 1, or null), grade
                  (in words, or null), plaque, high_risk, doubt, findings
                  (numbers in link.findings, from 1)
  calcium         null, or the Agatston score that gives the burden: agatston,
                  case, created, masked
  not_looked_for  what a reader has to look for, in a sentence
  sources         where the numbers come from, in sentences
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from cadjax.link import cad_rads, findings, grading
from cadjax.link.cad_rads import SegmentReading
from cadjax.link.findings import Finding
from cadjax.link.scan import LinkedScan
from cadjax.report.pages import UNDEFINED
from cadjax.vessels.tree import voxel_mm
from data_prep import scct

NOT_LOOKED_FOR = (
  "Stents, bypass grafts, the napkin-ring sign, ischaemia and anomalies of the"
  " coronary arteries are not looked for, so the modifiers S, G, I and E are"
  " never given; a stent may be segmented as calcified plaque."
)
SOURCES = (
  "Stenosis: share of the diameter lost, of a circle of the area of the"
  " segmented lumen, against a taper fitted to the branch; in whole per cent,"
  " rounded down.",
  "Length and distance from the ostium: along the centreline of the mask.",
  "Plaque volume: voxels of the masks of stable (calcified) and unstable"
  " (non-calcified) plaque.",
)
GRADE_WORDS = {
  "0": "none",
  "1": "minimal",
  "2": "mild",
  "3": "moderate",
  "4A": "severe",
  "5": "occluded",
}
PLAQUE_WORDS = {
  "stable": "calcified",
  "unstable": "non-calcified",
  "mixed": "mixed",
}
WHY_N = "Why N"
_PARTS = {
  "p": "proximal segment",
  "m": "mid segment",
  "d": "distal segment",
}
_VESSELS = {"RCA": "RCA", "LAD": "LAD", "Cx": "LCx"}
_DOMINANCE = {"R-PDA": "right-dominant", "L-PDA": "left-dominant"}
_MOST_TOLD = 3
_NO_LUMEN = "no lumen wider than a voxel"


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the table of findings.

  Attributes:
    number: of the finding in result.json, on maps and pictures, from 1.
    segment: of the SCCT with its number, such as "pLAD (6)".
    plaque: its type, or "none".
    stenosis: in per cent, or why not.
    grade: in words; "" where not known.
    category: CAD-RADS of it alone; None where not known.
    reference: the healthy diameter, in mm.
    voxels: how many voxels that is.
    resolved: whether these are enough for a stenosis to be measured.
    length: in mm.
    from_ostium: in mm.
    volume: of the plaque, in mm³.
    high_risk: its features, in words.
    sureness: of the vessel's name.
    note: what the stenosis rests on, or why there is none.
  """

  number: int
  segment: str
  plaque: str
  stenosis: str
  grade: str
  category: str | None
  reference: str
  voxels: str
  resolved: bool
  length: str
  from_ostium: str
  volume: str
  high_risk: str
  sureness: str
  note: str


def to_json(result: LinkedScan) -> dict[str, Any]:
  """Returns the object "diagnosis" of result.json, but for NaN."""
  numbers = _numbers(result)
  return result.grade.to_dict() | {
    "bounded": is_bounded(result),
    "sentences": sentences(result),
    "segments": [
      {
        "segment": one.segment,
        "number": scct.SEGMENTS[one.segment].number,
        "words": scct.SEGMENTS[one.segment].words,
        "artery": scct.SEGMENTS[one.segment].artery,
        "stenosis": one.stenosis,
        "grade": GRADE_WORDS[category] if (category := of(one)) else None,
        "plaque": one.plaque,
        "high_risk": one.high_risk,
        "doubt": one.doubt,
        "findings": numbers[one.segment],
      }
      for one in result.segments
    ],
    "calcium": dataclasses.asdict(result.calcium) if result.calcium else None,
    "not_looked_for": NOT_LOOKED_FOR,
    "sources": list(SOURCES),
  }


def of(reading: SegmentReading) -> str | None:
  """Returns the category of one segment alone; None where not judged."""
  if reading.stenosis is None:
    return None
  return cad_rads.of_stenosis(reading.stenosis, plaque=reading.plaque)


def short(segment: str) -> str:
  """Returns a segment in words, such as "proximal LAD" or "second diagonal"."""
  vessel = _VESSELS.get(segment[1:])
  if vessel and segment[0] in _PARTS:
    return f"{_PARTS[segment[0]].partition(' ')[0]} {vessel}"
  return scct.SEGMENTS[segment].words


def is_bounded(result: LinkedScan) -> bool:
  """Whether the worst stenosis is bounded by a voxel, and not measured."""
  grade = result.grade
  return grade.stenosis > 0 and any(
    _is_bounded(finding, _share(result, finding))
    and _share(result, finding) == grade.stenosis
    for finding in result.linked.findings
    if finding.segment == grade.segment
  )


# --- The head of the report -------------------------------------------------
def facts(result: LinkedScan) -> dict[str, list[str]]:
  """Returns what stands beside the category: heading to sentences."""
  grade = result.grade
  return {
    **({WHY_N: list(grade.doubts)} if grade.doubts else {}),
    "Worst stenosis": [_worst(result)],
    "Classifier": [_classifier(result)],
    "Plaque burden": _burden(result),
    "High-risk plaque": [_high_risk(result)],
    "Segmentation": sureness(result),
    "Not looked for": [NOT_LOOKED_FOR],
  }


def _worst(result: LinkedScan) -> str:
  grade = result.grade
  if not result.segments:
    return "Not judged."
  if not grade.segment:
    return "No narrowing of a segment was measured."
  number = scct.SEGMENTS[grade.segment].number
  where = f"{short(grade.segment)} ({grade.segment}, segment {number})"
  if is_bounded(result):
    return f"At least severe, {where}: {_NO_LUMEN} is seen beside soft plaque."
  percent = cad_rads.percent(grade.stenosis)
  return f"{percent} % of the diameter, {where}."


def _burden(result: LinkedScan) -> list[str]:
  grade = result.grade
  words = cad_rads.BURDEN_WORDS[grade.burden]
  if not result.segments and result.calcium is None:
    return ["Not judged."]
  if not grade.burden:
    # Without a letter nothing of the category says what it rests on.
    sentences = [f"No plaque ({grade.burden_by})."]
  elif result.calcium and grade.burden_by.startswith("Agatston"):
    sentences = [f"{grade.burden}, {words}."]
  else:
    sentences = [f"{grade.burden}, {words}: {grade.burden_by}."]
  return sentences + ([result.calcium.words] if result.calcium else [])


def _high_risk(result: LinkedScan) -> str:
  if not result.segments:
    return "Not judged."
  risky = [
    (number, finding)
    for number, finding in _graded(result)
    if len(finding.high_risk) >= cad_rads.HIGH_RISK_FEATURES
  ]
  if not risky:
    return (
      f"No plaque with {cad_rads.HIGH_RISK_FEATURES} or more of low"
      " attenuation, positive remodelling and spotty calcium."
    )
  said = "; ".join(
    f"finding {number}, {finding.segment or 'no segment'}"
    f" ({', '.join(finding.high_risk)})"
    for number, finding in risky[:_MOST_TOLD]
  )
  more = len(risky) - _MOST_TOLD
  return f"HRP: {said}{f'; and {more} more' if more > 0 else ''}."


def _classifier(result: LinkedScan) -> str:
  p = result.classified.prediction
  return (
    f"{'CAD' if p.label == 'cad' else 'Normal'}: probability of CAD"
    f" {p.probability:.2f}{'' if p.calibrated else ', not calibrated'},"
    f" threshold {p.threshold:.2f}."
  )


def sureness(result: LinkedScan) -> list[str]:
  """Says how far the segmentation supports the grade, in sentences."""
  if not result.segments:
    return ["No coronary segment was read."]
  tree = result.linked.structures.tree
  by_sureness = collections.defaultdict(list)
  for branch in tree.branches:
    if branch.kind in scct.ARTERIES:
      by_sureness[branch.sureness].append(branch.kind)
  sentences = []
  if by_sureness:
    said = "; ".join(
      f"{word} for {', '.join(names)}" for word, names in by_sureness.items()
    )
    sentences.append(f"Sureness of the vessels' names: {said}.")
  if dominance := [
    word
    for segment, word in _DOMINANCE.items()
    if any(one.segment == segment for one in result.segments)
  ]:
    sentences.append(f"By the branches found, {' and '.join(dominance)}.")
  edge = voxel_mm(tree.affine)
  rows_ = rows(result)
  if rows_:
    enough = sum(row.resolved for row in rows_)
    sentences.append(
      f"Voxels of {edge:.2g} mm: the reference diameter has"
      f" {_least_voxels():g} of them or more, enough to measure a stenosis, at"
      f" {enough} of {len(rows_)} findings."
    )
  return sentences


def _least_voxels() -> float:
  return 2 * findings.FindingOptions().least_voxels


# --- The findings -----------------------------------------------------------
def rows(result: LinkedScan) -> list[Row]:
  """Returns the table of the findings that are graded, the most severe first.

  Places that only the heat map marks are not among them.
  """
  shares = {
    number: _share(result, finding) for number, finding in _graded(result)
  }
  return [
    _row(result, number, finding)
    for number, finding in sorted(
      _graded(result),
      key=lambda one: -1 if shares[one[0]] is None else shares[one[0]],
      reverse=True,
    )
  ]


def _graded(result: LinkedScan) -> list[tuple[int, Finding]]:
  return [
    (number, finding)
    for number, finding in enumerate(result.linked.findings, 1)
    if grading.is_graded(finding)
  ]


def _row(result: LinkedScan, number: int, finding: Finding) -> Row:
  share = _share(result, finding)
  plaque = bool(finding.plaque)
  category = cad_rads.of_stenosis(share, plaque=plaque) if share is not None \
    else None  # fmt: skip
  edge = voxel_mm(result.linked.structures.tree.affine)
  known = finding.segment in scct.SEGMENTS
  vessel = finding.vessel or "off the vessels"
  across = finding.reference_mm / edge
  if _is_bounded(finding, share):
    stenosis, note = "≥ 70 %", f"{finding.stenosis_note}: {_NO_LUMEN}"
  elif share is None:
    stenosis, note = "not measured", finding.stenosis_note
  else:
    stenosis, note = f"{cad_rads.percent(share)} %", finding.stenosis_note
  return Row(
    number=number,
    segment=f"{finding.segment} ({scct.SEGMENTS[finding.segment].number})"
    if known
    else f"none: {vessel}",
    plaque=PLAQUE_WORDS.get(finding.plaque, "none"),
    stenosis=stenosis,
    grade=GRADE_WORDS[category] if category else "",
    category=category,
    reference=_number(finding.reference_mm, ".1f"),
    voxels=_number(across, ".1f"),
    resolved=bool(across >= _least_voxels()),
    length=_number(finding.extent_mm[1] - finding.extent_mm[0], ".0f"),
    from_ostium=_number(finding.from_ostium_mm, ".0f"),
    volume=_number(finding.plaque_mm3, ".0f") if plaque else UNDEFINED,
    high_risk=", ".join(finding.high_risk) or UNDEFINED,
    sureness=finding.sureness,
    note=note,
  )


def _number(value: float, form: str) -> str:
  return format(value, form) if np.isfinite(value) else UNDEFINED


def _share(result: LinkedScan, finding: Finding) -> float | None:
  edge = voxel_mm(result.linked.structures.tree.affine)
  return findings.lost_share(finding, edge)


def _is_bounded(finding: Finding, share: float | None) -> bool:
  return share is not None and finding.stenosis is None


def _numbers(result: LinkedScan) -> dict[str, list[int]]:
  """Returns the numbers of the graded findings of every segment."""
  found = collections.defaultdict(list)
  for number, finding in _graded(result):
    found[finding.segment].append(number)
  return found


# --- The sentences of the report --------------------------------------------
def sentences(result: LinkedScan) -> list[str]:
  """Returns a sentence for each main artery, as a structured report has it."""
  if result.segmented.skipped is not None:
    return []
  return [_of_artery(result, artery) for artery in scct.ARTERIES]


def _of_artery(result: LinkedScan, artery: str) -> str:
  of_artery = [
    one
    for one in result.segments
    if scct.SEGMENTS[one.segment].artery == artery
  ]
  if not of_artery:
    return f"{artery}: not found by the segmentation."
  told = [
    one
    for one in of_artery
    if one.plaque or one.doubt or of(one) not in ("0", None)
  ]
  if told:
    told.sort(key=lambda one: -(one.stenosis or 0.0))
    said = "; ".join(_of_segment(result, one) for one in told)
    return f"{artery}: {said}."
  if any(f"The {artery} " in doubt for doubt in result.grade.doubts):
    return (
      f"{artery}: no plaque and no stenosis in what was found of it; its end is"
      " not seen."
    )
  return f"{artery}: no plaque, no stenosis."


def _of_segment(result: LinkedScan, one: SegmentReading) -> str:
  of_it = [
    finding for _, finding in _graded(result) if finding.segment == one.segment
  ]
  kinds = {finding.plaque for finding in of_it if finding.plaque}
  kind = PLAQUE_WORDS[kinds.pop() if len(kinds) == 1 else "mixed"]
  part = "" if one.segment == "LM" else f" of the {_part(one.segment)}"
  if one.stenosis is None:
    what = f"{kind} plaque{part}" if one.plaque else f"narrowing{part}"
    return f"{what}, stenosis not measured ({one.doubt or 'vessel too small'})"
  category = of(one)
  word = GRADE_WORDS[category]
  bounded = any(
    _is_bounded(finding, share) and share == one.stenosis
    for finding in of_it
    if (share := _share(result, finding)) is not None
  )
  if category == "5":
    how = "total occlusion"
  elif bounded:
    how = f"at least severe stenosis ({_NO_LUMEN})"
  else:
    how = f"{word} stenosis ({cad_rads.percent(one.stenosis)} %)"
  if not one.plaque:
    return f"{how}{part} without plaque in the mask"
  if not cad_rads.percent(one.stenosis):
    return f"{kind} plaque{part} without stenosis"
  doubt = f", and more may be hidden ({one.doubt})" if one.doubt else ""
  return f"{kind} plaque{part} with {how}{doubt}"


def _part(segment: str) -> str:
  if _VESSELS.get(segment[1:]) and segment[0] in _PARTS:
    return _PARTS[segment[0]]
  return scct.SEGMENTS[segment].words


def numbers_by_segment(result: LinkedScan) -> dict[str, Sequence[int]]:
  """Returns the numbers of the graded findings on each segment."""
  return {name: some for name, some in _numbers(result).items() if name}
