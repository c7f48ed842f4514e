"""Measures CAD-RADS, segments and stenoses on scans whose lesions are known.

Either of a segmenter's masks, or of the true ones beside the scans: the second
shows what the rules make of perfect masks, and so how much of an error is the
segmenter's.
"""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from cadjax.core import files
from cadjax.data import scans as scans_lib
from cadjax.evaluation import lesions as lesions_lib
from cadjax.link import cad_rads, decision, findings, grading, join
from cadjax.metrics import agreement, detection, intervals
from cadjax.report import curves, pages
from cadjax.segmentation.scan import segment_scan
from cadjax.segmentation.segmenter import load_segmenter, load_wide
from cadjax.training import workdir
from data_prep import sources
from data_prep.errors import UserError
from data_prep.tissues import CLASS_NAMES
from data_prep.volume import read_mask

TOLERANCE_MM = 3.0
# From here on a patient is called one with obstructive disease.
OBSTRUCTIVE = "3"
# Groups of lesions whose stenosis is hard to measure, because no healthy part
# of the vessel is nearby, a fork is near, or the plaque is hardly longer than
# the length over which the lumen is smoothed.
HARDER = {
  "left main": lambda row: row.segment == "LM",
  "proximal LAD": lambda row: row.segment == "pLAD",
  "plaque below 60 mm3": lambda row: row.volume_mm3 < 60,
}
# Findings of a scan, of which none is left out.
_MOST = 1000


@dataclasses.dataclass(frozen=True)
class ScanRow:
  """The category of one scan.

  Attributes:
    case_id: of the scan.
    patient_id: of its patient.
    truth: of `cad_rads.CATEGORIES`, by the lesions that are there.
    found: the same by the masks, or "N".
    truth_burden: "" or P1 to P4.
    found_burden: the same by the masks.
    truth_stenosis: the worst, a share of the diameter.
    found_stenosis: the same by the masks.
    text: the category as it is written.
    doubts: why a stenosis may be missed.
  """

  case_id: str
  patient_id: str
  truth: str
  found: str
  truth_burden: str
  found_burden: str
  truth_stenosis: float
  found_stenosis: float
  text: str
  doubts: list[str]


@dataclasses.dataclass(frozen=True)
class LesionRow:
  """One lesion, and the finding that was matched with it, if there is one.

  Attributes:
    case_id: of the scan.
    patient_id: of its patient.
    lesion: its number in the scan, from 0.
    plaque: its kind.
    segment: of the SCCT; "" where it has no such name.
    stenosis: share of the diameter lost.
    volume_mm3: of the plaque.
    lumen_mm2: least area of the lumen.
    hit: whether a finding lies on it.
    found_segment: of the finding; None without one, as is the rest.
    found_stenosis: None also where not measured.
    found_state: see `findings.STENOSIS_STATES`.
    found_volume_mm3: of the finding's plaque.
    found_lumen_mm2: of the finding; None also where not measured.
  """

  case_id: str
  patient_id: str
  lesion: int
  plaque: str
  segment: str
  stenosis: float
  volume_mm3: float
  lumen_mm2: float
  hit: bool
  found_segment: str | None = None
  found_stenosis: float | None = None
  found_state: str | None = None
  found_volume_mm3: float | None = None
  found_lumen_mm2: float | None = None


def evaluate_diagnoses(
  scans: str,
  out: str,
  *,
  segmenter: str | None = None,
  wide: str | None = None,
  true_masks: bool = False,
  seed: int = 0,
) -> dict[str, Any]:
  """Grades scans by their masks and by their lesions; returns both beside.

  Args:
    scans: folder of `data_prep.export`: manifest.csv, scans, masks, lesions.
    out: gets scans.jsonl, lesions.jsonl, diagnosis.json and stenosis.png; until
      these are complete unfinished.jsonl, with which the same call goes on.
    segmenter: see `load_segmenter`.
    wide: see `load_wide`.
    true_masks: whether to read the masks of the scans and no model.
    seed: of the bootstrap.

  Raises:
    UserError: models or scans that cannot be used.
  """
  folder = pathlib.Path(out)
  cases = lesions_lib.read_scans(scans)
  models = None
  if not true_masks:
    model = load_segmenter(segmenter)
    models = model, load_wide(wide, (model,))
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"--out={out}: cannot be made ({error})") from error
  about = {
    "scans": lesions_lib.identify(cases),
    "models": [one and decision.identify(one) for one in models or ()],
    "versions": workdir.software(),
    "code": workdir.code_digest(),
  }
  with files.Journal(folder, about) as journal:
    rows, lesions = _grade_cases(cases, models, journal)
    files.write_rows(folder, "scans", rows)
    files.write_rows(folder, "lesions", lesions)
    result = summarise(rows, lesions, seed=seed) | {
      "disclaimer": pages.DISCLAIMER,
      "masks": "the true ones" if true_masks else models[0].name,
      "scans": str(scans),
      "versions": workdir.software().to_dict(),
    }
    figure = curves.agreement_figure(
      *_pairs(lesions, "found_stenosis", "stenosis", scale=100)[:2],
      unit="stenosis, % of the diameter",
      title=f"{len(lesions)} lesions, masks: {result['masks']}",
      footer=pages.DISCLAIMER,
    )
    curves.save(figure, folder / "stenosis.png")
    result = files.strict(result)
    files.write_json(folder / "diagnosis.json", result)
    journal.remove()
  return result


def _grade_cases(
  cases: Sequence[sources.Case],
  models: tuple[Any, Any] | None,
  journal: files.Journal,
) -> tuple[list[ScanRow], list[LesionRow]]:
  """Grades the scans that are not in the journal; returns the rows of all."""
  rows, lesions = [], []
  for case in tqdm(cases, unit="scan", disable=None):
    if case.case_id not in journal.done:
      journal.add(case.case_id, grade_case(case, models))
    row, some = journal.done[case.case_id]
    rows.append(ScanRow(**row))
    lesions += [LesionRow(**one) for one in some]
  return rows, lesions


def grade_case(
  case: sources.Case, models: tuple[Any, Any] | None
) -> tuple[ScanRow, list[LesionRow]]:
  """Grades one scan.

  Args:
    case: of `lesions.read_scans`.
    models: segmenter and wide segmenter; None for the scan's own masks.
  """
  truth = lesions_lib.read_lesions(case)
  structures, skipped = _structures(case, models)
  found = findings.find_abnormalities(
    structures.tree,
    structures.mask(*join.CORONARIES),
    plaques=structures.plaques,
    hu=structures.volume.hu,
    options=findings.FindingOptions(most=_MOST),
  )
  graded = grading.grade_scan(
    structures.tree,
    found,
    skipped=skipped,
    plaques=structures.plaques is not None,
  )
  expected = cad_rads.grade(
    [
      cad_rads.SegmentReading(one["scct"], _graded(one), plaque=True)
      for one in truth
      if one["scct"]
    ]
  )
  ids = {"case_id": case.case_id, "patient_id": case.patient_id}
  row = ScanRow(
    **ids,
    truth=expected.category,
    found=graded.category,
    truth_burden=expected.burden,
    found_burden=graded.burden,
    truth_stenosis=expected.stenosis,
    found_stenosis=graded.stenosis,
    text=graded.text,
    doubts=list(graded.doubts),
  )
  return row, _lesion_rows(ids, truth, found)


def _graded(lesion) -> float:
  """Returns the stenosis by which a lesion of the truth is graded."""
  wide = lesion["reference_mm"] >= grading.LEAST_MM
  return lesion["stenosis"] if wide else 0.0


def _structures(case, models) -> tuple[join.Structures, str | None]:
  scan = scans_lib.read_scan(case.image)
  if models is None:
    if case.mask is None:
      raise UserError(f"{case.image}: the manifest names no mask of this scan")
    mask = read_mask(case.mask).hu.astype(np.uint8)
    return join.find_structures(scan.volume, mask, CLASS_NAMES[:5]), None
  segmenter, wide = models
  found = segment_scan(segmenter, scan, wide=wide, progress=False)
  structures = join.find_structures(
    found.reading.model_input, found.model_labels, segmenter.class_names
  )
  return structures, found.skipped


def _lesion_rows(ids, truth, found) -> list[LesionRow]:
  # What the heat map or a narrowing alone points at has no plaque to measure.
  found = [one for one in found if one.plaque]
  apart = detection.distances(
    [one.line_mm for one in found],
    [np.array(lesion["line_mm"], float) for lesion in truth],
    TOLERANCE_MM,
  )
  hits = {lesion: finding for finding, lesion in detection.match(apart).hits}
  rows = []
  for number, lesion in enumerate(truth):
    measured: dict[str, Any] = {}
    if number in hits:
      one = found[hits[number]]
      measured = {
        "found_segment": one.segment,
        "found_stenosis": one.stenosis,
        "found_state": one.stenosis_state,
        "found_volume_mm3": one.plaque_mm3,
        "found_lumen_mm2": one.lumen_mm2 if one.lumen_mm2 >= 0 else None,
      }
    rows.append(
      LesionRow(
        **ids,
        lesion=number,
        plaque=lesion["plaque"],
        segment=lesion["scct"],
        stenosis=lesion["stenosis"],
        volume_mm3=lesion["volume_mm3"],
        lumen_mm2=lesion["lumen_mm2"],
        hit=number in hits,
        **measured,
      )
    )
  return rows


def summarise(
  scans: Sequence[ScanRow], lesions: Sequence[LesionRow], *, seed: int = 0
) -> dict[str, Any]:
  """Returns what diagnosis.json holds of the numbers.

  A scan that is called N has no category: it is left out of kappa and of the
  table's shares, and counts as an error of sensitivity and of specificity.

  Args:
    scans: all of them.
    lesions: all of theirs.
    seed: of the bootstrap.
  """
  order = cad_rads.CATEGORIES
  graded = [row for row in scans if row.found in order]
  table = {
    truth: dict(
      collections.Counter(row.found for row in scans if row.truth == truth)
    )
    for truth in order
  }
  obstructive = [
    order.index(row.truth) >= order.index(OBSTRUCTIVE) for row in scans
  ]
  called = [
    row.found in order and order.index(row.found) >= order.index(OBSTRUCTIVE)
    for row in scans
  ]
  judged = [row.found in order for row in scans]
  hit = [row for row in lesions if row.hit]
  return {
    "n_scans": len(scans),
    "n_lesions": len(lesions),
    "not_diagnostic": len(scans) - len(graded),
    "reasons": dict(
      collections.Counter(
        row.doubts[0] for row in scans if row.found not in order
      ).most_common(8)
    ),
    "categories": table,
    "kappa": agreement.weighted_kappa(
      [row.truth for row in graded],
      [row.found for row in graded],
      order,
      seed=seed,
    ),
    "same_category": _share([row.truth == row.found for row in scans]),
    "same_burden": _share([x.truth_burden == x.found_burden for x in scans]),
    "sensitivity": _share(
      [c for c, o in zip(called, obstructive, strict=True) if o]
    ),
    "specificity": _share(
      [
        not c and j
        for c, o, j in zip(called, obstructive, judged, strict=True)
        if not o
      ]
    ),
    "lesions_hit": _by_patient(lesions, [row.hit for row in lesions], seed),
    "segment_right": _by_patient(
      [row for row in hit if row.segment],
      [row.segment == row.found_segment for row in hit if row.segment],
      seed,
    ),
    "stenosis_states": dict(
      collections.Counter(row.found_state for row in hit).most_common()
    ),
    "stenosis_points": _limits(
      lesions, "found_stenosis", "stenosis", seed, scale=100
    ),
    "stenosis_points_by": _stenosis_by(lesions, seed),
    "volume_mm3": _limits(lesions, "found_volume_mm3", "volume_mm3", seed),
    "lumen_mm2": _limits(lesions, "found_lumen_mm2", "lumen_mm2", seed),
  }


def _share(right: Sequence[bool]) -> intervals.MeanInterval:
  return intervals.mean_interval(np.array(right, float), proportion=True)


def _by_patient(rows, values, seed) -> intervals.MeanInterval:
  return intervals.mean_interval(
    np.array(values, float),
    patients=np.array([row.patient_id for row in rows]),
    seed=seed,
  )


def _pairs(
  lesions: Sequence[LesionRow], found: str, truth: str, scale: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns what was measured, what is true, and whose it is."""
  rows = [row for row in lesions if getattr(row, found) is not None]
  return (
    scale * np.array([getattr(row, found) for row in rows], float),
    scale * np.array([getattr(row, truth) for row in rows], float),
    np.array([row.patient_id for row in rows]),
  )


def _limits(lesions, found, truth, seed, scale=1.0) -> agreement.Limits:
  return agreement.limits(*_pairs(lesions, found, truth, scale), seed=seed)


def _stenosis_by(
  lesions: Sequence[LesionRow], seed: int
) -> dict[str, agreement.Limits]:
  """Returns the stenosis error of each group of `HARDER` and of all others.

  A lesion may belong to several of the groups.
  """
  groups = {
    name: [row for row in lesions if belongs(row)]
    for name, belongs in HARDER.items()
  }
  groups["all others"] = [
    row
    for row in lesions
    if not any(belongs(row) for belongs in HARDER.values())
  ]
  return {
    name: _limits(rows, "found_stenosis", "stenosis", seed, scale=100)
    for name, rows in groups.items()
  }


def table(result: Mapping[str, Any]) -> str:
  """Returns the result as text.

  Args:
    result: the contents of diagnosis.json.
  """
  order = (*cad_rads.CATEGORIES, cad_rads.NONDIAGNOSTIC)
  lines = [
    f"{result['n_scans']} scans, masks: {result['masks']}",
    "",
    "true category, and what it was called",
    "      " + "".join(f"{name:>5}" for name in order),
  ]
  lines += [
    f"{truth:>5} " + "".join(f"{found.get(name, 0):>5}" for name in order)
    for truth, found in result["categories"].items()
    if found
  ]
  lines.append("")
  for name, text in (
    ("kappa", "weighted kappa (linear), without N"),
    ("same_category", "same category"),
    ("same_burden", "same plaque burden"),
    ("sensitivity", "sensitivity to CAD-RADS 3 or more"),
    ("specificity", "specificity"),
    ("lesions_hit", "lesions found, by patient"),
    ("segment_right", "segment named right, of those"),
  ):
    cell = intervals.Interval.from_dict(result[name]).text(2)
    lines.append(f"{text:<38}{cell}")
  measured = {"stenosis, points of per cent": result["stenosis_points"]}
  measured |= {f"  {k}": v for k, v in result["stenosis_points_by"].items()}
  measured["plaque volume, mm3"] = result["volume_mm3"]
  measured["least area of the lumen, mm2"] = result["lumen_mm2"]
  lines += [f"{text:<38}{_cell(one)}" for text, one in measured.items()]
  if result["reasons"]:
    lines += ["", "not diagnostic:"]
    lines += [f"  {count}: {why}" for why, count in result["reasons"].items()]
  return "\n".join([*lines, result["disclaimer"]])


def _cell(limits: Mapping[str, Any]) -> str:
  bias = intervals.Interval.from_dict(limits["bias"]).text(1)
  low, high = (
    math.nan if limits[k] is None else limits[k] for k in ("low", "high")
  )
  return (
    f"bias {bias}, limits of agreement {low:.1f} to {high:.1f}"
    f" (n = {limits['n']})"
  )
