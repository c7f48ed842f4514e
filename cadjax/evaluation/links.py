"""Measures the link on scans whose lesions are known.

`link_rows` defines the rows of a scan, and `link_scores` evaluates them. A
lesion is its centreline.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from cadjax.classification.scan import read_calibration
from cadjax.core import files
from cadjax.data import scans as scans_lib
from cadjax.evaluation import lesions as lesions_lib
from cadjax.evaluation.link_rows import (
  FINDINGS,
  HALVES,
  LESIONS,
  MODES,
  MOST,
  SCANS,
  FindingRow,
  Found,
  LesionRow,
  ScanRow,
)
from cadjax.evaluation.link_scores import TOLERANCE_MM, summarise
from cadjax.evaluation.link_table import froc_figure
from cadjax.link import decision, findings, join
from cadjax.link.scan import Pair, link_scan, load_pair
from cadjax.metrics import detection
from cadjax.report import curves, pages
from cadjax.training import workdir
from cadjax.vessels.tree import VesselTree
from data_prep import sources
from data_prep.errors import UserError

# These use no map, so there is no layer to choose.
_WITHOUT_MAP = ("chance", "plaque")
# Their scores are relative to the maximum of the scan's own map.
_BY_MAP = ("map", "vessel_map")
# Of a lesion, what goes into its row.
LESION_COLUMNS = ("segment", "stenosis", "plaque", "volume_mm3")


def evaluate_link(
  classifier: str,
  segmenter: str,
  scans: str,
  out: str,
  *,
  wide: str | None = None,
  most: int = MOST,
  seed: int = 0,
) -> dict[str, Any]:
  """Evaluates a pair of models; returns what link.json holds.

  Args:
    classifier: workdir or file of weights.
    segmenter: the same of a segmenter; without plaque among its classes the
      mode "plaque" is left out.
    wide: see `load_pair`.
    scans: folder of `data_prep.export`: manifest.csv, scans and lesions.
    out: gets scans.jsonl, findings.jsonl, lesions.jsonl, froc.png and
      link.json; until these are complete unfinished.jsonl, with which the same
      call goes on.
    most: findings of a scan, the first ones of each mode; what it costs is
      reported as the best sensitivity that it allows.
    seed: of the split in halves, of the places drawn at random and of the
      bootstrap.

  Raises:
    UserError: workdirs or scans that cannot be used.
  """
  if most < 1:
    raise UserError(f"--most={most} must be at least 1")
  folder = pathlib.Path(out)
  pair = load_pair(classifier, segmenter, wide=wide)
  cases = lesions_lib.read_scans(scans)
  halves = split(cases, seed)
  for half in HALVES:
    some = [case for case in cases if halves[case.case_id] == half]
    if not any(lesions_lib.read_lesions(case) for case in some):
      raise UserError(
        f"{scans}: no scan of the half {half!r} has a lesion; more scans with"
        " CAD, or another --seed, are needed"
      )
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"--out={out}: cannot be made ({error})") from error
  models = {
    "classifier": decision.identify(pair.classifier),
    "segmenter": decision.identify(pair.segmenter),
  }
  about = {
    "scans": lesions_lib.identify(cases),
    "models": models | {"wide": pair.wide and decision.identify(pair.wide)},
    "calibration": read_calibration(pair.classifier),
    "most": most,
    "seed": seed,
    "versions": workdir.software(),
    "code": workdir.code_digest(),
  }
  with files.Journal(folder, about) as journal:
    rows, found, lesions = _score_cases(
      pair, cases, halves, journal, most=most, seed=seed
    )
    # What was computed is on disk before anything is averaged.
    files.write_rows(folder, SCANS, rows)
    files.write_rows(
      folder, FINDINGS, [x for some in found.values() for x in some]
    )
    files.write_rows(folder, LESIONS, lesions)
    result = summarise(rows, found, lesions, most=most, seed=seed) | {
      "disclaimer": pages.DISCLAIMER,
      "classifier": str(classifier),
      "segmenter": str(segmenter),
      "models": models,
      "scans": str(scans),
      "versions": workdir.software().to_dict(),
    }
    curves.save(froc_figure(rows, found, result), folder / "froc.png")
    result = files.strict(result)
    files.write_json(folder / "link.json", result)
    journal.remove()
  return result


def _score_cases(
  pair: Pair,
  cases: Sequence[sources.Case],
  halves: Mapping[str, str],
  journal: files.Journal,
  *,
  most: int,
  seed: int,
) -> tuple[list[ScanRow], Found, list[LesionRow]]:
  """Scores the scans that are not in the journal; returns the rows of all."""
  rows, lesions = [], []
  found: dict[tuple[str, str | None], list[FindingRow]] = {}
  for number, case in enumerate(tqdm(cases, unit="scan", disable=None)):
    if case.case_id not in journal.done:
      row, some, there = score_case(
        pair,
        case,
        half=halves[case.case_id],
        most=most,
        rng=np.random.default_rng((seed, number)),
      )
      # JSON has no keys of two parts.
      journal.add(case.case_id, [row, [*some.items()], there])
    row, some, there = journal.done[case.case_id]
    rows.append(ScanRow(**row))
    for (mode, layer), each in some:
      here = found.setdefault((mode, layer), [])
      here.extend(FindingRow(**one) for one in each)
    lesions += [LesionRow(**one) for one in there]
  return rows, found, lesions


def split(cases: Sequence[sources.Case], seed: int) -> dict[str, str]:
  """Assigns every case to "fit" or "test", half of each class to each."""
  rng = np.random.default_rng(seed)
  halves = {}
  for label in (0, 1):
    ids = [case.case_id for case in cases if case.label == label]
    for i, name in enumerate(rng.permutation(ids)):
      halves[str(name)] = "fit" if i < len(ids) // 2 else "test"
  return halves


def score_case(
  pair: Pair,
  case: sources.Case,
  *,
  half: str,
  rng: np.random.Generator,
  most: int = MOST,
) -> tuple[ScanRow, Found, list[LesionRow]]:
  """Scores one scan.

  Args:
    pair: the models.
    case: of `lesions.read_scans`.
    half: "fit" or "test".
    rng: of the places drawn at random.
    most: findings of each mode.

  Returns:
    its row; its findings; one row for each lesion.
  """
  truth = lesions_lib.read_lesions(case)
  lines = [np.array(lesion["line_mm"], float) for lesion in truth]
  result = link_scan(pair, scans_lib.read_scan(case.image))
  linked, prediction = result.linked, result.classified.prediction
  structures = linked.structures
  ids = {"case_id": case.case_id, "patient_id": case.patient_id, "half": half}
  row = ScanRow(
    **ids,
    label=int(case.label),
    lesions=len(truth),
    probability=prediction.probability,
    **decision.features(structures, prediction.uncalibrated_probability),
  )
  by_mode: dict[tuple[str, str | None], list[FindingRow]] = {}
  for mode, layer in _modes_and_layers(linked):
    if mode == "chance":
      points, scores = _places_at_random(structures.tree, rng, most)
    else:
      found = findings.find_abnormalities(
        structures.tree,
        structures.mask(*join.CORONARIES),
        heat=linked.heats[layer] if layer else None,
        plaques=structures.plaques,
        mode=mode,
        options=findings.FindingOptions(most=most),
      )
      points = [finding.line_mm for finding in found]
      weight = prediction.probability if mode in _BY_MAP else 1.0
      scores = [weight * finding.score for finding in found]
    apart = detection.distances(points, lines, TOLERANCE_MM)
    near = np.isfinite(apart)
    by_mode[mode, layer] = [
      FindingRow(
        **ids,
        mode=mode,
        layer=layer,
        position_mm=[float(x) for x in some[len(some) // 2]],
        score=float(value),
        outcome=outcome,
        lesions=np.flatnonzero(on).tolist(),
        mm=away[on].tolist(),
      )
      for some, value, outcome, on, away in zip(
        points, scores, detection.outcomes(near), near, apart, strict=True
      )
    ]
  lesions = [
    LesionRow(
      **ids,
      **{name: lesion[name] for name in LESION_COLUMNS},
      lesion=number,
    )
    for number, lesion in enumerate(truth)
  ]
  return row, by_mode, lesions


def _modes_and_layers(linked: join.Linked) -> list[tuple[str, str | None]]:
  """Returns the modes and layers to score."""
  pairs: list[tuple[str, str | None]] = [("chance", None)]
  pairs += [
    (mode, layer)
    for layer in linked.heats
    for mode in MODES
    if mode not in _WITHOUT_MAP
  ]
  if linked.structures.plaques is not None:
    pairs.append(("plaque", None))
  return pairs


def _places_at_random(
  tree: VesselTree, rng: np.random.Generator, most: int
) -> tuple[list[np.ndarray], list[float]]:
  """Draws places on the centrelines with random scores, as any mode's apart.

  What a system that knows the vessels and nothing else would score.
  """
  lines = [
    branch.points_mm[branch.free - branch.start :] for branch in tree.branches
  ]
  if not lines:
    return [], []
  points = rng.permutation(np.concatenate(lines))
  apart = findings.FindingOptions.apart_mm
  kept: list[np.ndarray] = []
  for point in points:
    if len(kept) == most:
      break
    if all(np.linalg.norm(point - other) >= apart for other in kept):
      kept.append(point)
  scores = np.sort(rng.random(len(kept)))[::-1]
  return [point[None] for point in kept], scores.tolist()
