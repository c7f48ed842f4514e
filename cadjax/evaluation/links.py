"""Measures the link on scans whose lesions are known.

The layer of the heat map and the combined decision are chosen on one half of
the scans. The other half is evaluated.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from tqdm import tqdm

from cadjax.core import files
from cadjax.data import scans as scans_lib
from cadjax.link import decision, findings, join
from cadjax.link.findings import Finding
from cadjax.link.scan import Pair, link_scan, load_pair
from cadjax.metrics import intervals
from cadjax.metrics.intervals import Interval, MeanInterval
from cadjax.report import pages
from cadjax.training import workdir
from data_prep import sources
from data_prep.errors import UserError


@dataclasses.dataclass(frozen=True)
class Matches:
  """Findings against the lesions that are there.

  Attributes:
    hits: (finding, lesion, mm apart) of every lesion that was hit.
    misses: lesions that no finding hit.
    false_positives: findings with no lesion within the tolerance.
    duplicates: findings near a lesion that another finding hit.
  """

  hits: tuple[tuple[int, int, float], ...]
  misses: tuple[int, ...]
  false_positives: tuple[int, ...]
  duplicates: tuple[int, ...]


def match_lesions(
  findings: Sequence[Finding],
  lesions_mm: Sequence[np.ndarray],
  tolerance_mm: float = 5.0,
) -> Matches:
  """Matches findings with lesions.

  A finding is its position, one point: an extent would let a finding as long
  as a vessel hit all of its lesions. A lesion is one point, its centre, or
  points along it; a finding hits it within the tolerance of the nearest. One
  finding hits at most one lesion and one lesion is hit by at most one
  finding, chosen for as many hits as possible and then for the least
  distance. What is left near a lesion that is hit already is a duplicate, not
  a false positive, as is usual in scoring detection.

  Args:
    findings: of one scan.
    lesions_mm: [3] or [K, 3] LPS mm each.
    tolerance_mm: 5 by default.

  Returns:
    Numbers of findings and lesions, in their order here.
  """
  apart = np.full((len(findings), len(lesions_mm)), np.inf)
  for k, lesion in enumerate(lesions_mm):
    points = cKDTree(np.asarray(lesion, float).reshape(-1, 3))
    for j, finding in enumerate(findings):
      apart[j, k] = points.query(finding.position_mm)[0]
  near = apart <= tolerance_mm
  # A hit is worth more than any distance that it may add up to.
  worth = np.where(near, 1e6 - apart, 0.0)
  rows, columns = linear_sum_assignment(worth, maximize=True)
  hits = tuple(
    (int(j), int(k), float(apart[j, k]))
    for j, k in zip(rows, columns, strict=True)
    if near[j, k]
  )
  used, hit = {j for j, _, _ in hits}, {k for _, k, _ in hits}
  rest = [j for j in range(len(findings)) if j not in used]
  return Matches(
    hits=hits,
    misses=tuple(k for k in range(len(lesions_mm)) if k not in hit),
    false_positives=tuple(j for j in rest if not near[j].any()),
    duplicates=tuple(j for j in rest if near[j].any()),
  )


# In the order of the table.
MODES = {
  "map": "(a) the classifier's map alone",
  "vessel_map": "(b) the map on the segmented vessels",
  "plaque": "(c) the plaque segmentation",
  "combined": "(d) all together",
}
TOLERANCE_MM = 5.0
# As many findings of each mode, so that none wins by their number.
MOST = 5
LEAST_SCANS = 8
LESION_COLUMNS = ("position_mm", "segment", "stenosis", "plaque", "volume_mm3")
# Names of the rows that are written.
SCANS, LOCALISATION, LESIONS = "scans", "localisation", "lesions"


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
class LocalisationRow:
  """The findings in one scan by one mode, on the map of one layer.

  Attributes:
    case_id: of the scan.
    patient_id: of its patient.
    label: 1 for CAD, else 0.
    half: "fit" or "test".
    mode: of `MODES`.
    layer: of the heat map; None for "plaque", which uses no map.
    lesions: how many the scan has.
    hits: lesions that a finding hit.
    false_positives: findings with no lesion near.
  """

  case_id: str
  patient_id: str
  label: int
  half: str
  mode: str
  layer: str | None
  lesions: int
  hits: int
  false_positives: int


@dataclasses.dataclass(frozen=True)
class LesionRow:
  """Whether one mode, on the map of one layer, hit one lesion.

  Attributes:
    case_id: of the scan.
    patient_id: of its patient.
    lesion: its number in the scan, from 0.
    segment: of the coronary tree, as data_prep.export names it.
    stenosis: share of the diameter that it takes.
    plaque: its kind.
    volume_mm3: of the plaque.
    half: "fit" or "test".
    mode: of `MODES`.
    layer: of the heat map; None for "plaque", which uses no map.
    hit: 1 or 0.
  """

  case_id: str
  patient_id: str
  lesion: int
  segment: str
  stenosis: float
  plaque: str
  volume_mm3: float
  half: str
  mode: str
  layer: str | None
  hit: int


def evaluate_link(
  classifier: str,
  segmenter: str,
  scans: str,
  out: str,
  *,
  most: int = MOST,
  seed: int = 0,
) -> dict[str, Any]:
  """Evaluates a pair of workdirs; returns what link.json holds.

  Args:
    classifier: workdir.
    segmenter: workdir of a segmenter; without plaque among its classes the
      mode "plaque" is left out.
    scans: folder of `data_prep.export`: manifest.csv, scans and lesions.
    out: gets scans.jsonl, localisation.jsonl, lesions.jsonl and link.json.
    most: findings of a scan, the first ones of each mode.
    seed: of the split in halves and of the bootstrap.

  Raises:
    UserError: workdirs or scans that cannot be used.
  """
  if most < 1:
    raise UserError(f"--most={most} must be at least 1")
  folder = pathlib.Path(out)
  pair = load_pair(classifier, segmenter)
  cases = read_scans(scans)
  halves = split(cases, seed)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"--out={out}: cannot be made ({error})") from error
  rows, localisation, lesions = [], [], []
  for case in tqdm(cases, unit="scan", disable=None):
    row, some, hits = score_case(
      pair, case, half=halves[case.case_id], most=most
    )
    rows.append(row)
    localisation += some
    lesions += hits
  # What was computed is on disk before anything is averaged.
  files.write_rows(folder, SCANS, rows)
  files.write_rows(folder, LOCALISATION, localisation)
  files.write_rows(folder, LESIONS, lesions)
  result = summarise(rows, localisation, lesions, seed=seed) | {
    "disclaimer": pages.DISCLAIMER,
    "classifier": str(classifier),
    "segmenter": str(segmenter),
    "models": {
      "classifier": decision.identify(pair.classifier),
      "segmenter": decision.identify(pair.segmenter),
    },
    "scans": str(scans),
    "tolerance_mm": TOLERANCE_MM,
    "findings_per_scan": most,
    "versions": workdir.software().to_dict(),
  }
  result = files.strict(result)
  files.write_json(folder / "link.json", result)
  return result


def read_scans(folder: str) -> list[sources.Case]:
  """Returns the cases of a folder of exported phantoms.

  Raises:
    UserError: too few, or lesions that are missing or malformed.
  """
  cases = sources.find_cases("manifest", folder)
  if len(cases) < LEAST_SCANS:
    raise UserError(f"{folder}: {len(cases)} scans; {LEAST_SCANS} are needed")
  for case in cases:
    read_lesions(case)
  scans = collections.Counter(case.patient_id for case in cases)
  name, most = scans.most_common(1)[0]
  if most > 1:
    raise UserError(
      f"{folder}: the patient {name} has {most} scans; the link is measured by"
      " patient, so keep one of each in manifest.csv"
    )
  labels = [case.label for case in cases]
  if min(labels.count(0), labels.count(1)) < 2:
    raise UserError(
      f"{folder}: at least two normal and two CAD scans are needed, one of"
      " each for the fit and for the test"
    )
  return cases


def read_lesions(case: sources.Case) -> list[dict[str, Any]]:
  """Returns the lesions of a scan, as `data_prep.export` writes them.

  Raises:
    UserError: they are missing or malformed.
  """
  path = lesion_file(case)
  if not path.exists():
    raise UserError(
      f"{path}: no such file; the lesions of every scan must be known, as"
      " data_prep.export writes them"
    )
  document = files.read_json(path)
  try:
    lesions = document["lesions"]
    for lesion in lesions:
      if not all(name in lesion for name in LESION_COLUMNS):
        raise ValueError("a lesion without all of " + ", ".join(LESION_COLUMNS))
      if np.array(lesion["position_mm"], float).shape != (3,):
        raise ValueError("position_mm is not three numbers")
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{path} is not what data_prep.export writes ({error!r})"
    ) from error
  return lesions


def lesion_file(case: sources.Case) -> pathlib.Path:
  """Returns where the lesions of a scan are."""
  return case.image.with_name(f"{case.case_id}_lesions.json")


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
  pair: Pair, case: sources.Case, *, half: str, most: int = MOST
) -> tuple[ScanRow, list[LocalisationRow], list[LesionRow]]:
  """Scores one scan.

  Args:
    pair: the models.
    case: of `read_scans`.
    half: "fit" or "test".
    most: findings of each mode.

  Returns:
    its row; one row for each mode and layer; one row for each lesion, mode
    and layer.
  """
  truth = read_lesions(case)
  places = [lesion["position_mm"] for lesion in truth]
  result = link_scan(pair, scans_lib.read_scan(case.image))
  linked, prediction = result.linked, result.classified.prediction
  structures = linked.structures
  ids = {"case_id": case.case_id, "patient_id": case.patient_id, "half": half}
  known = {"label": int(case.label), "lesions": len(places)}
  row = ScanRow(
    **ids,
    **known,
    probability=prediction.probability,
    **decision.features(structures, prediction.uncalibrated_probability),
  )
  localisation, lesions = [], []
  for mode, layer in _modes_and_layers(linked):
    found = findings.find_abnormalities(
      structures.tree,
      structures.mask(*join.CORONARIES),
      heat=linked.heats[layer] if layer else None,
      plaques=structures.plaques,
      mode=mode,
      options=findings.FindingOptions(most=most),
    )
    matches = match_lesions(found, places, TOLERANCE_MM)
    localisation.append(
      LocalisationRow(
        **ids,
        **known,
        mode=mode,
        layer=layer,
        hits=len(matches.hits),
        false_positives=len(matches.false_positives),
      )
    )
    hit = {lesion for _, lesion, _ in matches.hits}
    lesions += [
      LesionRow(
        **ids,
        **{name: lesion[name] for name in LESION_COLUMNS[1:]},
        lesion=number,
        mode=mode,
        layer=layer,
        hit=int(number in hit),
      )
      for number, lesion in enumerate(truth)
    ]
  return row, localisation, lesions


def _modes_and_layers(linked: join.Linked) -> list[tuple[str, str | None]]:
  """Returns the modes and layers to score; "plaque" uses no layer."""
  pairs = [
    (mode, layer)
    for layer in linked.heats
    for mode in MODES
    if mode != "plaque"
  ]
  if linked.structures.plaques is not None:
    pairs.append(("plaque", None))
  return pairs


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
  localisation: Sequence[LocalisationRow],
  lesions: Sequence[LesionRow],
  *,
  seed: int = 0,
) -> dict[str, Any]:
  """Chooses the layer on one half and measures everything on the other.

  Args:
    scans: of both halves, as `score_case` gives them.
    localisation: likewise.
    lesions: likewise.
    seed: of the bootstrap.

  Returns:
    what link.json holds of the numbers.
  """
  test = [row for row in scans if row.half == "test"]
  best = best_layers([row for row in localisation if row.half == "fit"])
  chosen = {mode: _hits(lesions, mode, layer) for mode, layer in best.items()}
  table = {}
  for mode, layer in best.items():
    table[mode] = (
      {"layer": layer}
      | _lesions_hit(chosen[mode], seed)
      | _false_positives(
        [row for row in localisation if _is_test(row, mode, layer)], seed
      )
    )
    more = zip(chosen["combined"], chosen[mode], strict=True)
    table[mode]["combined_minus_this"] = _mean(
      chosen[mode], [one.hit - other.hit for one, other in more], seed
    )
  return {
    "n_scans": {"fit": len(scans) - len(test), "test": len(test)},
    "n_lesions": len(chosen["combined"]),
    "n_cad": sum(row.label for row in test),
    "localisation": table,
    "decision": decide(scans, seed=seed),
    "notes": [
      f"{title} is left out: the segmenter has no such class"
      for mode, title in MODES.items()
      if mode not in best
    ],
  }


def best_layers(rows: Sequence[LocalisationRow]) -> dict[str, str | None]:
  """Returns the layer of the most hits less false positives, by mode.

  Args:
    rows: of the scans that the choice is made on; of equally good layers,
      the first one wins.
  """
  worth: dict[str, dict[str | None, int]] = {}
  for row in rows:
    layers = worth.setdefault(row.mode, {})
    gain = row.hits - row.false_positives
    layers[row.layer] = layers.get(row.layer, 0) + gain
  return {
    mode: max(worth[mode], key=worth[mode].get)
    for mode in MODES
    if mode in worth
  }


def _is_test(
  row: LocalisationRow | LesionRow, mode: str, layer: str | None
) -> bool:
  return (row.half, row.mode, row.layer) == ("test", mode, layer)


def _hits(
  lesions: Sequence[LesionRow], mode: str, layer: str | None
) -> list[LesionRow]:
  """Returns the rows of the test half's lesions, always in the same order."""
  return [row for row in lesions if _is_test(row, mode, layer)]


def _mean(
  rows: Sequence[LocalisationRow | LesionRow],
  values: Sequence[float],
  seed: int,
) -> MeanInterval:
  return intervals.mean_interval(
    np.array(values, float),
    patients=np.array([row.patient_id for row in rows]),
    seed=seed,
  )


def _lesions_hit(lesions: Sequence[LesionRow], seed: int) -> dict[str, Any]:
  hits = [row.hit for row in lesions]
  return {"hit": _mean(lesions, hits, seed), "hits": sum(hits)}


def _false_positives(
  rows: Sequence[LocalisationRow], seed: int
) -> dict[str, MeanInterval]:
  """Returns those of all scans and those of normal ones."""
  groups = {
    "false_positives": rows,
    "false_positives_normal": [row for row in rows if row.label == 0],
  }
  return {
    name: _mean(some, [row.false_positives for row in some], seed)
    for name, some in groups.items()
  }


def table(result: Mapping[str, Any]) -> str:
  """Returns the result as text.

  Args:
    result: the contents of link.json.
  """
  lines = [
    f"{result['n_lesions']} lesions of {result['n_cad']} patients,"
    f" {result['n_scans']['test']} scans; at most"
    f" {result['findings_per_scan']} findings a scan, a hit within"
    f" {TOLERANCE_MM:g} mm",
    f"{'':46s}{'lesions hit, by patient':30s}{'false positives a scan':28s}",
  ]
  for mode, one in result["localisation"].items():
    title = MODES[mode]
    layer = f", {one['layer']}" if one["layer"] else ""
    lines.append(
      f"{title + layer:46s}{_cell(one['hit']):30s}"
      f"{_cell(one['false_positives']):28s}"
    )
  more = result["localisation"]["map"]["combined_minus_this"]
  lines.append(f"(d) less (a): {_cell(more, sign=True)}")
  lines.append("")
  for name, one in result["decision"].items():
    lines.append(
      f"decision by {name:13s} AUC {_cell(one['roc_auc'])}, accuracy"
      f" {_cell(one['accuracy'])}"
    )
  notes = [f"note: {note}" for note in result["notes"]]
  return "\n".join([*lines, *notes, result["disclaimer"]])


def _cell(entry: Mapping[str, Any], *, sign: bool = False) -> str:
  return Interval.from_dict(entry).text(2, sign=sign)
