"""Measures the link on scans whose lesions are known.

The layer of the heat map, the threshold of the findings and the combined
decision are chosen on one half of the scans. The other half is evaluated. What
counts as a hit says `metrics.detection`; a lesion is its centreline.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm

from cadjax.core import files
from cadjax.data import scans as scans_lib
from cadjax.evaluation import lesions as lesions_lib
from cadjax.link import decision, findings, join
from cadjax.link.scan import Pair, link_scan, load_pair
from cadjax.metrics import detection, intervals
from cadjax.metrics.detection import Froc, ScanFindings
from cadjax.metrics.intervals import Difference, Interval, MeanInterval
from cadjax.report import curves, pages
from cadjax.training import workdir
from cadjax.vessels.tree import VesselTree
from data_prep import scct, sources
from data_prep.errors import UserError

# In the order of the table.
MODES = {
  "chance": "(0) places on the segmented vessels, drawn at random",
  "map": "(a) the classifier's map alone",
  "vessel_map": "(b) the map on the segmented vessels",
  "plaque": "(c) the plaque segmentation",
  "combined": "(d) all together",
}
# These use no map, so there is no layer to choose.
_WITHOUT_MAP = ("chance", "plaque")
# Their scores are relative to the maximum of the scan's own map.
_BY_MAP = ("map", "vessel_map")
TOLERANCE_MM = 5.0
MOST = findings.FindingOptions.most
# False positives a scan, on the half that chooses, at the threshold of the
# findings that are counted one by one.
OPERATING_RATE = 1.0
# False positives a scan of the reader study: the list of findings against the
# classifier alone. They are among `detection.RATES`.
READER_RATES = (0.5, 1.0, 2.0)
# What a finding may be on: a lesion, or an artery of a scan that has lesions.
UNITS = ("lesions", "vessels")
HALVES = ("fit", "test")
# Of a lesion, what goes into its row.
LESION_COLUMNS = ("segment", "stenosis", "plaque", "volume_mm3")
# Names of the rows that are written.
SCANS, FINDINGS, LESIONS = "scans", "findings", "lesions"


@dataclasses.dataclass(frozen=True)
class ScanRow:
  """One scan.

  Attributes:
    case_id: of the scan.
    patient_id: of its patient.
    label: 1 for CAD, else 0.
    half: "fit" or "test".
    lesions: how many it has.
    probability: of CAD, by the classifier.
    log_odds: see `decision.FEATURES`, as are the next two.
    stenosis: share of a diameter.
    log_plaque: None if the segmenter has no class for plaque.
  """

  case_id: str
  patient_id: str
  label: int
  half: str
  lesions: int
  probability: float
  log_odds: float
  stenosis: float
  log_plaque: float | None = None


@dataclasses.dataclass(frozen=True)
class FindingRow:
  """One finding of one mode, on the map of one layer.

  Attributes:
    case_id: of the scan.
    patient_id: of its patient.
    half: "fit" or "test".
    mode: of `MODES`.
    layer: of the heat map; None for modes that use no map.
    position_mm: LPS (x, y, z).
    score: comparable between scans; higher is more abnormal. What the mode
      ranks by, times the classifier's probability where that is a heat map,
      which is scaled to its own maximum.
    outcome: of `detection.outcomes`.
    lesions: numbers of the scan's lesions that it is on.
    mm: from each of them.
  """

  case_id: str
  patient_id: str
  half: str
  mode: str
  layer: str | None
  position_mm: list[float]
  score: float
  outcome: str
  lesions: list[int]
  mm: list[float]


# The findings of all scans by mode and layer; also where there is none.
Found = Mapping[tuple[str, str | None], Sequence[FindingRow]]


@dataclasses.dataclass(frozen=True)
class LesionRow:
  """One lesion.

  Attributes:
    case_id: of the scan.
    patient_id: of its patient.
    half: "fit" or "test".
    lesion: its number in the scan, from 0.
    segment: of the coronary tree, as data_prep.export names it.
    stenosis: share of the diameter that it takes.
    plaque: its kind.
    volume_mm3: of the plaque.
  """

  case_id: str
  patient_id: str
  half: str
  lesion: int
  segment: str
  stenosis: float
  plaque: str
  volume_mm3: float


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
      link.json.
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
  rows, lesions = [], []
  found: dict[tuple[str, str | None], list[FindingRow]] = {}
  for number, case in enumerate(tqdm(cases, unit="scan", disable=None)):
    row, some, there = score_case(
      pair,
      case,
      half=halves[case.case_id],
      most=most,
      rng=np.random.default_rng((seed, number)),
    )
    rows.append(row)
    for key, each in some.items():
      found.setdefault(key, []).extend(each)
    lesions += there
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
    "models": {
      "classifier": decision.identify(pair.classifier),
      "segmenter": decision.identify(pair.segmenter),
    },
    "scans": str(scans),
    "versions": workdir.software().to_dict(),
  }
  curves.save(froc_figure(rows, found, result), folder / "froc.png")
  result = files.strict(result)
  files.write_json(folder / "link.json", result)
  return result


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


DECISIONS = {
  "classifier": ("log_odds",),
  "segmentation": ("log_plaque", "stenosis"),
  "both": tuple(decision.FEATURES),
}


def decide(scans: Sequence[ScanRow], *, seed: int = 0) -> dict[str, Any]:
  """Fits a logistic decision on one half, compares them on the other.

  Args:
    scans: of both halves.
    seed: of the bootstrap.

  Returns:
    for each of `DECISIONS` what was fitted, and at its threshold AUC,
    accuracy and Brier score with intervals; the paired difference of "both"
    to each other one.
  """
  fit = [dataclasses.asdict(row) for row in scans if row.half == "fit"]
  test = [dataclasses.asdict(row) for row in scans if row.half == "test"]
  labels = np.array([row["label"] for row in test])
  threshold, probs, result = {}, {}, {}
  for name, columns in DECISIONS.items():
    known = [column for column in columns if fit[0][column] is not None]
    one = decision.fit(fit, known)
    threshold[name] = one.threshold
    probs[name] = np.array([one.probability(row) for row in test])
    measured = intervals.with_intervals(
      labels, probs[name], one.threshold, seed=seed
    )
    result[name] = dataclasses.asdict(one) | {
      k: measured[k] for k in ("roc_auc", "accuracy", "brier")
    }
  for name in ("classifier", "segmentation"):
    difference = intervals.paired_bootstrap(
      labels,
      probs["both"],
      probs[name],
      threshold_a=threshold["both"],
      threshold_b=threshold[name],
      seed=seed,
    )
    calls = [
      (probs[k] >= threshold[k]) == (labels == 1) for k in ("both", name)
    ]
    result["both"][f"over_{name}"] = {
      **{k: difference[k] for k in ("roc_auc", "accuracy", "brier")},
      "mcnemar": intervals.mcnemar(*calls),
    }
  return result


def summarise(
  scans: Sequence[ScanRow],
  found: Found,
  lesions: Sequence[LesionRow],
  *,
  most: int = MOST,
  seed: int = 0,
) -> dict[str, Any]:
  """Chooses on one half and measures everything on the other.

  Args:
    scans: of both halves, as `score_case` gives them.
    found: likewise.
    lesions: likewise.
    most: findings kept of a scan.
    seed: of the bootstrap.

  Returns:
    what link.json holds of the numbers. By mode, "localisation" has the layer;
    its FROC curve ("froc"); and at the `threshold` that has `OPERATING_RATE`
    false positives a scan on the fit half, `hit` (share of lesions),
    `false_positives` and `false_positives_normal` (a scan) of the test half.
    `combined_minus_this` is the paired difference of the mean sensitivity of
    the FROC curve. "reader" has, of each of `UNITS`, the sensitivity at
    `READER_RATES` and its paired difference to that of "combined"; and the
    thresholds that have these rates on the fit half.
  """
  fit, test = ([row for row in scans if row.half == h] for h in HALVES)
  best = best_layers(scans, found)
  chosen = {
    mode: by_scan(test, found[mode, layer]) for mode, layer in best.items()
  }
  vessels = {
    mode: by_vessel(test, found[mode, layer], lesions)
    for mode, layer in best.items()
  }
  table = {}
  for mode, layer in best.items():
    rows = found[mode, layer]
    threshold = detection.threshold_at(by_scan(fit, rows), OPERATING_RATE)
    curve = detection.froc(chosen[mode], most=most, seed=seed)
    table[mode] = {
      "layer": layer,
      "froc": _froc_entry(curve),
      "threshold": threshold,
      **_at_threshold(test, rows, lesions, threshold, seed),
      "combined_minus_this": detection.froc_difference(
        chosen["combined"], chosen[mode], seed=seed
      ),
      "reader": {
        "rates": list(READER_RATES),
        # A finding that is on no lesion is on no artery with lesions, so that
        # both have the same false positives and thresholds.
        "thresholds": [
          detection.threshold_at(by_scan(fit, rows), rate)
          for rate in READER_RATES
        ],
      }
      | {
        unit: _read(some["combined"], some[mode], seed)
        for unit, some in zip(UNITS, (chosen, vessels), strict=True)
      },
    }
  return {
    "n_scans": {"fit": len(fit), "test": len(test)},
    "n_lesions": sum(row.lesions for row in test),
    "n_vessels": sum(scan.lesions for scan in vessels["combined"]),
    "n_cad": sum(row.label for row in test),
    "tolerance_mm": TOLERANCE_MM,
    "least_share": detection.LEAST_SHARE,
    "findings_per_scan": most,
    "best_sensitivity": detection.best_sensitivity(
      [row.lesions for row in test], most
    ),
    "operating_rate": OPERATING_RATE,
    "localisation": table,
    "decision": decide(scans, seed=seed),
    "notes": [
      f"{title} is left out: the segmenter has no such class"
      for mode, title in MODES.items()
      if mode not in best
    ],
  }


def by_scan(
  scans: Sequence[ScanRow], found: Sequence[FindingRow]
) -> list[ScanFindings]:
  """Returns what was found in each scan, also where that is nothing.

  Args:
    scans: whose findings are wanted.
    found: of one mode and layer; those of other scans are left out.
  """
  rows: dict[str, list[FindingRow]] = {scan.case_id: [] for scan in scans}
  for row in found:
    if row.case_id in rows:
      rows[row.case_id].append(row)
  return [
    ScanFindings(
      patient_id=scan.patient_id,
      lesions=scan.lesions,
      scores=np.array([row.score for row in rows[scan.case_id]]),
      outcomes=[row.outcome for row in rows[scan.case_id]],
    )
    for scan in scans
  ]


def by_vessel(
  scans: Sequence[ScanRow],
  found: Sequence[FindingRow],
  lesions: Sequence[LesionRow],
) -> list[ScanFindings]:
  """Returns what was found in each scan where arteries are to be found.

  An artery with lesions counts once, and is hit by a finding on any of them.

  Args:
    scans: whose findings are wanted.
    found: of one mode and layer, of each scan in descending order of score.
    lesions: of these scans and perhaps others.
  """
  arteries = vessels_of(lesions)
  per_scan = []
  for scan in scans:
    of = arteries.get(scan.case_id, {})
    names = sorted(set(of.values()))
    rows = [row for row in found if row.case_id == scan.case_id]
    on = np.zeros((len(rows), len(names)), bool)
    for j, row in enumerate(rows):
      on[j, [names.index(of[lesion]) for lesion in row.lesions]] = True
    per_scan.append(
      ScanFindings(
        patient_id=scan.patient_id,
        lesions=len(names),
        scores=np.array([row.score for row in rows]),
        outcomes=detection.outcomes(on),
      )
    )
  return per_scan


def vessels_of(lesions: Sequence[LesionRow]) -> dict[str, dict[int, str]]:
  """Returns the artery, of `scct.ARTERIES`, of every lesion of every scan."""
  arteries: dict[str, dict[int, str]] = {}
  for row in lesions:
    segment = scct.SEGMENTS.get(row.segment)
    artery = segment.artery if segment else row.segment
    arteries.setdefault(row.case_id, {})[row.lesion] = artery
  return arteries


def _read(
  combined: Sequence[ScanFindings], this: Sequence[ScanFindings], seed: int
) -> dict[str, Any]:
  """Sensitivity at `READER_RATES`, and that of "combined" less it."""
  curve = detection.froc(this, seed=seed)
  more = detection.froc_differences(combined, this, seed=seed)
  return {
    "sensitivity": [curve.at[rate] for rate in READER_RATES],
    "combined_minus_this": [more[rate] for rate in READER_RATES],
  }


def best_layers(
  scans: Sequence[ScanRow], found: Found
) -> dict[str, str | None]:
  """Returns the layer of the largest mean FROC sensitivity, by mode.

  Args:
    scans: of both halves; the choice is made on "fit".
    found: likewise. Of equally good layers, the first one wins.
  """
  fit = [row for row in scans if row.half == "fit"]
  best: dict[str, tuple[float, str | None]] = {}
  for (mode, layer), rows in found.items():
    worth = detection.froc(by_scan(fit, rows), draws=2).mean.value
    if mode not in best or worth > best[mode][0]:
      best[mode] = worth, layer
  return {mode: best[mode][1] for mode in MODES if mode in best}


def at_threshold(
  scans: Sequence[ScanRow], found: Sequence[FindingRow], threshold: float
) -> list[detection.Matches]:
  """Matches the findings that reach a threshold, scan by scan.

  Args:
    scans: in whose order the matches are.
    found: of one mode and layer.
    threshold: of the score.
  """
  matches = []
  for scan in scans:
    rows = [
      row
      for row in found
      if row.case_id == scan.case_id and row.score >= threshold
    ]
    apart = np.full((len(rows), scan.lesions), np.inf)
    for j, row in enumerate(rows):
      apart[j, list(row.lesions)] = row.mm
    matches.append(detection.match(apart))
  return matches


def _at_threshold(
  scans: Sequence[ScanRow],
  found: Sequence[FindingRow],
  lesions: Sequence[LesionRow],
  threshold: float,
  seed: int,
) -> dict[str, Any]:
  matches = at_threshold(scans, found, threshold)
  hit = {
    (scan.case_id, lesion)
    for scan, one in zip(scans, matches, strict=True)
    for _, lesion in one.hits
  }
  there = [row for row in lesions if row.half == "test"]
  hits = [float((row.case_id, row.lesion) in hit) for row in there]
  false = [len(one.false_positives) for one in matches]
  normal = [k for k, scan in enumerate(scans) if scan.label == 0]
  return {
    "hit": _mean(there, hits, seed),
    "hits": int(sum(hits)),
    "false_positives": _mean(scans, false, seed),
    "false_positives_normal": _mean(
      [scans[k] for k in normal], [false[k] for k in normal], seed
    ),
  }


def _mean(
  rows: Sequence[ScanRow | LesionRow], values: Sequence[float], seed: int
) -> MeanInterval:
  return intervals.mean_interval(
    np.array(values, float),
    patients=np.array([row.patient_id for row in rows]),
    seed=seed,
  )


def _froc_entry(curve: Froc) -> dict[str, Any]:
  return {
    "rates": list(curve.at),
    "sensitivity": list(curve.at.values()),
    "mean": curve.mean,
  }


def froc_figure(
  scans: Sequence[ScanRow],
  found: Found,
  result: Mapping[str, Any],
) -> Figure:
  """Draws the FROC curves of the test half.

  Args:
    scans: of both halves.
    found: likewise.
    result: of `summarise` and the disclaimer.
  """
  test = [row for row in scans if row.half == "test"]
  lines = {}
  for mode, one in result["localisation"].items():
    rows = by_scan(test, found[mode, one["layer"]])
    lines[_title(mode, one)] = detection.froc(
      rows, most=result["findings_per_scan"]
    )
  return curves.froc_figure(
    lines,
    title=f"{result['n_lesions']} lesions of {result['n_cad']} patients,"
    f" {len(test)} scans",
    footer=result["disclaimer"],
  )


def table(result: Mapping[str, Any]) -> str:
  """Returns the result as text.

  Args:
    result: the contents of link.json.
  """
  rates = result["localisation"]["combined"]["froc"]["rates"]
  lines = [
    f"{result['n_lesions']} lesions of {result['n_cad']} patients,"
    f" {result['n_scans']['test']} scans. A hit: half of a finding within"
    f" {result['tolerance_mm']:g} mm of the lesion's centreline, one to one.",
    f"At most {result['findings_per_scan']} findings a scan, which allow a"
    f" sensitivity of {result['best_sensitivity']:.3f} at best.",
    "",
    f"{'sensitivity at false positives a scan':54s}"
    + "".join(f"{rate:>7g}" for rate in rates)
    + "   mean, 95 % interval",
  ]
  for mode, one in result["localisation"].items():
    found = one["froc"]
    lines.append(
      f"{_title(mode, one):54s}"
      + "".join(f"{each['value']:7.2f}" for each in found["sensitivity"])
      + f"   {_cell(found['mean'])}"
    )
  more = result["localisation"]["map"]["combined_minus_this"]
  text = Difference.from_dict(more).text(2)
  lines += [
    f"mean sensitivity, (d) less (a): {text}",
    "",
    f"{'at the threshold for ' + format(result['operating_rate'], 'g'):54s}"
    f"{'lesions hit, by patient':30s}false positives a scan",
  ]
  lines += [
    f"{_title(mode, one):54s}{_cell(one['hit']):30s}"
    f"{_cell(one['false_positives'])}"
    for mode, one in result["localisation"].items()
  ]
  lines += ["", *_reader_lines(result), ""]
  for name, one in result["decision"].items():
    lines.append(
      f"decision by {name:13s} AUC {_cell(one['roc_auc'])}, accuracy"
      f" {_cell(one['accuracy'])}"
    )
  notes = [f"note: {note}" for note in result["notes"]]
  return "\n".join([*lines, *notes, result["disclaimer"]])


def _reader_lines(result: Mapping[str, Any]) -> list[str]:
  """The reader study as text: the list of findings and the map alone."""
  lines = []
  for unit in UNITS:
    lines.append(
      f"{'the findings against the classifier alone, ' + unit:54s}"
      + "".join(f"{f'at {rate:g}':22s}" for rate in READER_RATES).rstrip()
    )
    for mode in ("combined", "map"):
      one = result["localisation"][mode]
      cells = [_cell(each) for each in one["reader"][unit]["sensitivity"]]
      lines.append(
        f"{_title(mode, one):54s}"
        + "".join(f"{cell:22s}" for cell in cells).rstrip()
      )
    differences = [
      Difference.from_dict(each).text(2)
      for each in result["localisation"]["map"]["reader"][unit][
        "combined_minus_this"
      ]
    ]
    lines.append(
      f"{'  (d) less (a)':54s}"
      + "".join(f"{cell:22s}" for cell in differences).rstrip()
    )
  return lines


def _title(mode: str, one: Mapping[str, Any]) -> str:
  return MODES[mode] + (f", {one['layer']}" if one["layer"] else "")


def _cell(entry: Mapping[str, Any]) -> str:
  return Interval.from_dict(entry).text(2)
