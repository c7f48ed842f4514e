"""What is measured of a trained cell: rows of patients, by entry.

A measure is `fn(trial) -> {entry: rows}`; see `compare` for the kinds of rows.
The entry "" is the arm's own line.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cadjax.classification import adapt, priors
from cadjax.classification.classifier import load_classifier
from cadjax.core import files
from cadjax.core.files import Row
from cadjax.data import input_pipeline
from cadjax.evaluation import (
  case_maps,
  classifiers,
  common,
  counterfactuals,
  explanations,
  link_rows,
  link_scores,
  links,
  map_measures,
)
from cadjax.evaluation.workdirs import evaluate_workdir
from cadjax.experiment import compare
from cadjax.explanation import cad_maps
from cadjax.link import decision
from cadjax.metrics import binary, calibration, patient_level
from cadjax.segmentation.segmenter import load_segmenter

Entries = dict[str, list[Row]]
# What is written beside the rows has few draws: intervals come of all cells.
DRAWS = 100


@dataclasses.dataclass(frozen=True)
class Trial:
  """A cell that is to be measured.

  Attributes:
    path: of its folder, a workdir if it was trained.
    data: path of each data set that its arm names.
    needs: role -> folder of the cell that plays it.
    options: of its arm.
    own: the name of the data that it was trained on.
  """

  path: pathlib.Path
  data: Mapping[str, pathlib.Path]
  needs: Mapping[str, pathlib.Path]
  options: Mapping[str, Any]
  own: str


def patients(trial: Trial) -> Entries:
  """Calls of the test patients.

  Options:
    slices: also every slice of a 2D model as a case, in the entry "slices".
    natural: share of CAD of a second test set, the entry "natural", which has
      all normal patients and as many of the others as make that share.
  """
  result = evaluate_workdir(trial.path, bootstrap=DRAWS)
  rows = _calls(result)
  entries = {"": rows}
  if trial.options.get("slices") and "slice_setting" in result:
    entries["slices"] = _slices(result)
  if share := trial.options.get("natural"):
    entries["natural"] = thinned(rows, share)
  return entries


def _calls(result: Mapping[str, Any]) -> list[Row]:
  """Returns the calls of the patients of an evaluation."""
  paths = common.paths_of_result(result)
  keys = ("patient_id", "label", "probability")
  return [
    {key: row[key] for key in keys} | {"threshold": result["threshold"]}
    for row in files.read_rows(paths.rows(paths.patients), keys)
  ]


def _slices(result: Mapping[str, Any]) -> list[Row]:
  setting, paths = result["slice_setting"], common.paths_of_result(result)
  rows = files.read_rows(paths.rows(paths.cases), classifiers.CASE_KEYS)
  ids, labels, probs = patient_level.by_slice(rows)
  probs = calibration.calibrate(probs, setting["temperature"])
  return [
    {
      "patient_id": str(name),
      "label": int(label),
      "probability": float(prob),
      "threshold": setting["threshold"],
    }
    for name, label, prob in zip(ids, labels, probs, strict=True)
  ]


def thinned(rows: Sequence[Row], share: float) -> list[Row]:
  """Leaves out patients with CAD until they are `share` of all.

  Which ones depends on their ids alone, so that all arms keep the same.
  """
  normal = [row for row in rows if row["label"] == 0]
  cad = sorted(
    (row for row in rows if row["label"] == 1), key=lambda r: r["patient_id"]
  )
  keep = round(len(normal) * share / (1 - share))
  order = np.random.default_rng(0).permutation(len(cad))[:keep]
  return normal + [cad[i] for i in sorted(order)]


def external(trial: Trial) -> Entries:
  """Calls on the own test patients ("own") and on other data sets, by name.

  Options:
    adapt: also with the norms' statistics of the other data, in the entry
      NAME.adapted.
  """
  entries = {"own": _calls(evaluate_workdir(trial.path, bootstrap=DRAWS))}
  for name, path in trial.data.items():
    if name == trial.own:
      continue
    result = evaluate_workdir(
      trial.path, split="all", data=str(path), bootstrap=DRAWS
    )
    entries[name] = _calls(result)
    if trial.options.get("adapt"):
      entries[f"{name}.adapted"] = _adapted(trial, path, result)
  return entries


def _adapted(
  trial: Trial, path: pathlib.Path, result: Mapping[str, Any]
) -> list[Row]:
  trained = load_classifier(trial.path)
  dataset, _ = common.open_data(trained, str(path))
  batch_size = trained.config.data.eval_batch_size
  adapted = adapt.adapt_norms(trained, dataset, batch_size)
  rows = classifiers.score_rows(
    dataset, input_pipeline.SPLITS, adapted.logits, batch_size
  )
  return [
    {key: row[key] for key in ("patient_id", "label", "probability")}
    | {"threshold": result["threshold"]}
    for row in patient_level.patient_rows(rows, result)
  ]


def protocol(trial: Trial) -> Entries:
  """The accuracies that small test sets would have reported.

  The test patients are divided into groups, half of each with CAD; every row
  is the report of one group.

  Options:
    tested: patients of a group.
    reports: at most so many groups.
  """
  rows = patients(trial)[""]
  rng = np.random.default_rng(0)
  half = trial.options["tested"] // 2
  groups = [
    [some[i] for i in rng.permutation(len(some))]
    for some in (
      [row for row in rows if row["label"] == label] for label in (0, 1)
    )
  ]
  count = min(trial.options["reports"], *(len(some) // half for some in groups))
  reports = []
  for i in range(count):
    tested = [r for some in groups for r in some[i * half : (i + 1) * half]]
    labels = np.array([row["label"] for row in tested])
    probs = np.array([row["probability"] for row in tested])
    found = binary.binary_metrics(labels, probs, tested[0]["threshold"])
    name = f"{trial.path.name}_report{i}"
    reports.append(
      {"patient_id": name}
      | {
        f"{compare.REPORTED}{key}": found[key]
        for key in ("accuracy", "roc_auc")
      }
    )
  return {"": reports}


def explanation(trial: Trial) -> Entries:
  """Where the maps for CAD lie, an entry for LAYER.METHOD.STRUCTURE.

  Options:
    structures: of `case_maps.STRUCTURES`; all if left out.
    cases: on so many test cases; all if left out.
    rolls: of the null.
  """
  explanations.evaluate_maps(
    trial.path,
    cases=trial.options.get("cases"),
    settings=case_maps.Settings(
      bootstrap=DRAWS, sanity=0, rolls=trial.options.get("rolls", 8)
    ),
  )
  rows = files.read_rows(
    common.paths_of(trial.path).explain / "location_cases.jsonl",
    ("patient_id", "layer", "method", "structure"),
  )
  entries: Entries = {}
  wanted = trial.options.get("structures", case_maps.STRUCTURES)
  for row in rows:
    if row["structure"] not in wanted:
      continue
    name = f"{row['layer']}.{row['method']}.{row['structure']}"
    kept = {
      key: value
      for key, value in row.items()
      if key == "patient_id" or key.startswith(("lift_", "pointing", "gini"))
    }
    entries.setdefault(name, []).append(kept)
  return entries


def explained(trial: Trial) -> Entries:
  """Every map by every measure, an entry for LAYER.METHOD.

  And what lesions do to the log odds in the entry "effects", and unless the
  arm needs another one, the calls of the test patients in "calls". Rows of
  maps have the location's numbers with the structure before them, such as
  coronaries_lift, those of `counterfactuals`, lesions averaged by patient, and
  those of `map_measures` where they were asked for.

  Options:
    network: the role of the arm whose maps are measured; its own if left out.
    methods: of `explainer.METHODS`; those of one gradient if left out.
    measures: of `map_measures.NAMES`.
    effort: fields of `map_measures.Effort`.
    cases: test cases that maps are made of; all if left out.
    sanity: of these, how many have the measures of many passes.
    twins: of those with CAD, how many are drawn without each lesion.
    rolls: of the null.
  """
  options = trial.options
  role = options.get("network")
  path = trial.needs[role] if role else trial.path
  # Its calibration has the threshold by which a scan is called CAD; a network
  # of another arm has it.
  calls = (
    {} if role else {"calls": _calls(evaluate_workdir(path, bootstrap=DRAWS))}
  )
  folder = trial.path / "maps"
  explanations.evaluate_maps(
    path,
    folder=folder,
    cases=options.get("cases"),
    settings=case_maps.Settings(
      bootstrap=DRAWS,
      methods=options.get("methods", cad_maps.METHODS),
      measures=options.get("measures", ()),
      effort=map_measures.Effort(**options.get("effort", {})),
      sanity=options.get("sanity", 0),
      twins=options.get("twins", 0),
      rolls=options.get("rolls", 1),
    ),
  )
  entries: Entries = dict(calls)
  rows = _rows_of(folder, f"counterfactual_{counterfactuals.EFFECTS}")
  entries["effects"] = _by_patient(
    rows, ("removed", "added", "used", "log_odds", "log_odds_none")
  )
  found: dict[str, dict[str, Row]] = {}

  def add(rows: Sequence[Row], prefix: str = "") -> None:
    for row in rows:
      name = f"{row['layer']}.{row['method']}"
      own = found.setdefault(name, {}).setdefault(
        row["case_id"], {"patient_id": row["patient_id"]}
      )
      own |= {
        prefix + key.removesuffix("_0mm"): value
        for key, value in row.items()
        if key not in _IDENTIFIES
      }

  for row in _rows_of(folder, "location"):
    kept = {k: row[k] for k in (*_IDS, *_LOCATES) if k in row}
    add([kept], f"{row['structure']}_")
  add(_rows_of(folder, f"counterfactual_{counterfactuals.SCANS}"))
  lesions: dict[tuple, list[Row]] = {}
  for row in _rows_of(folder, f"counterfactual_{counterfactuals.LESIONS}"):
    lesions.setdefault(tuple(row[k] for k in _IDS), []).append(row)
  for some in lesions.values():
    (mean,) = _by_patient(some, counterfactuals.LESION_NUMBERS)
    add([{k: some[0][k] for k in _IDS} | mean])
  add(_rows_of(folder, "measures"))
  for row in _rows_of(folder, map_measures.SE3D):
    kept = {k: row[k] for k in (*_IDS, "mask_iou", "box_found")}
    add([kept], f"{row['structure']}_")
  add(
    [
      {k: row[k] for k in (*_IDS, "hit", "iou")}
      for row in _rows_of(folder, map_measures.CHEXLOCALIZE)
    ]
  )
  entries |= {name: list(by_case.values()) for name, by_case in found.items()}
  return entries


# Columns that say which map of which case a row is of.
_IDS = ("case_id", "patient_id", "layer", "method")
_IDENTIFIES = (*_IDS, "label")
_LOCATES = ("lift_0mm", "pointing", "auprc", "gini")


def _rows_of(folder: pathlib.Path, name: str) -> list[Row]:
  """Returns the rows of cases in a folder; none if they were not measured."""
  file = folder / f"{name}_cases.jsonl"
  return files.read_rows(file, ("patient_id",)) if file.exists() else []


def _by_patient(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
  """Returns the mean of each patient's defined values; NaN without one."""
  patients: dict[str, list[Row]] = {}
  for row in rows:
    patients.setdefault(row["patient_id"], []).append(row)
  return [
    {"patient_id": patient}
    | {name: _defined_mean([row[name] for row in some]) for name in names}
    for patient, some in patients.items()
  ]


def _defined_mean(values: Sequence[float | None]) -> float:
  known = [value for value in values if value is not None]
  return float(np.mean(known)) if known else math.nan


def segments(trial: Trial) -> Entries:
  """Dice, HD95 and the rest of the test patients, an entry for each class."""
  paths = common.paths_of_result(evaluate_workdir(trial.path, bootstrap=DRAWS))
  rows = files.read_rows(
    paths.rows(paths.cases), ("patient_id", "class", "dice")
  )
  entries: Entries = {}
  for row in rows:
    entries.setdefault(row["class"], []).append(
      {k: v for k, v in row.items() if k not in ("class", "case_id", "split")}
    )
  return entries


def masks(trial: Trial) -> Entries:
  """Predicts masks of all cases of another data set; measures `segments`.

  They are written to masks/, for `config.data.prior.masks` of another arm.

  Options:
    predict_on: the name of that data.
  """
  trained = load_segmenter(trial.path)
  config = trained.config.copy_and_resolve_references()
  config.data.path = str(trial.data[trial.options["predict_on"]])
  config.data.fold = None
  dataset = input_pipeline.open_dataset(config.data, labelled=False)
  for split in input_pipeline.SPLITS:
    for row in dataset.rows[split]:
      found = trained.segment(dataset.read(row)["image"])
      priors.write_mask(
        trial.path / "masks",
        row["case_id"],
        priors.as_stored(found.labels, trained.config.segment.classes),
      )
  return segments(trial)


def linked(trial: Trial) -> Entries:
  """The link of a classifier and a segmenter on exported scans.

  Needs the roles classifier and segmenter; the arm's data are the scans. Of
  the half of them that `evaluate_link` tests, an entry for each of its modes
  (lesions_hit, vessels_hit: share of a patient's lesions and of the arteries
  that have some; false_positives: of a scan; all at the threshold chosen on the
  other half, and lesions_hit_at_0.5 and so on at those of the reader study),
  and the calls of each of its decisions in by_NAME.
  """
  folder = trial.path / "link"
  # A cell that was cut off is measured again as a whole, perhaps by other code.
  (folder / files.Journal.NAME).unlink(missing_ok=True)
  result = links.evaluate_link(
    str(trial.needs["classifier"]),
    str(trial.needs["segmenter"]),
    str(trial.data[trial.own]),
    str(folder),
  )
  scans = [
    row
    for row in files.read_rows_as(
      folder / f"{link_rows.SCANS}.jsonl", link_rows.ScanRow
    )
    if row.half == "test"
  ]
  found = files.read_rows_as(
    folder / f"{link_rows.FINDINGS}.jsonl", link_rows.FindingRow
  )
  arteries = link_scores.vessels_of(
    files.read_rows_as(
      folder / f"{link_rows.LESIONS}.jsonl", link_rows.LesionRow
    )
  )
  entries: Entries = {}
  for mode, one in result["localisation"].items():
    some = [
      row for row in found if (row.mode, row.layer) == (mode, one["layer"])
    ]
    entries[mode] = [{"patient_id": row.patient_id} for row in scans]
    reader = one["reader"]
    for suffix, threshold in (
      ("", one["threshold"]),
      *zip(
        (f"_at_{rate:g}" for rate in reader["rates"]),
        reader["thresholds"],
        strict=True,
      ),
    ):
      threshold = np.inf if threshold is None else threshold
      matches = link_scores.at_threshold(scans, some, threshold)
      for row, scan, match in zip(entries[mode], scans, matches, strict=True):
        of = arteries.get(scan.case_id, {})
        hit = {of[lesion] for _, lesion in match.hits}
        row[f"lesions_hit{suffix}"] = (
          len(match.hits) / scan.lesions if scan.lesions else None
        )
        row[f"vessels_hit{suffix}"] = (
          len(hit) / len(set(of.values())) if of else None
        )
        row[f"false_positives{suffix}"] = len(match.false_positives)
  for name, one in result["decision"].items():
    fitted = decision.Decision(
      **{x.name: one[x.name] for x in dataclasses.fields(decision.Decision)}
    )
    entries[f"by_{name}"] = [
      {
        "patient_id": row.patient_id,
        "label": row.label,
        "probability": fitted.probability(dataclasses.asdict(row)),
        "threshold": fitted.threshold,
      }
      for row in scans
    ]
  return entries


MEASURES: Mapping[str, Callable[[Trial], Entries]] = {
  "patients": patients,
  "external": external,
  "protocol": protocol,
  "explanation": explanation,
  "explained": explained,
  "segments": segments,
  "masks": masks,
  "linked": linked,
}
