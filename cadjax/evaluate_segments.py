"""Evaluates a trained segmenter by patient and class, with intervals.

`python -m cadjax.evaluate --workdir=W` comes here for a segmenter. Writes
into W/eval: one row per case and class first, then metrics.json and
worst.png, the worst cases with what is true and what was found. All is
measured on the grid of the records, which is the model's.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from cadjax import (
  case_rows,
  checkpoint,
  classes,
  components,
  evaluation,
  input_pipeline,
  intervals,
  planes,
  results,
  segment_metrics,
  workdir,
)
from cadjax.results import Row
from data_prep.errors import UserError
from data_prep.volume import Grid, Volume

# Lesion-wise detection asks where plaque is, not of which kind.
PLAQUES = ("stable_plaque", "unstable_plaque")
LESIONS = ("lesions", "detected", "recall", "false_positives")
WORST = 4
TRUE_COLOR, FOUND_COLOR = "#5fd35f", "#ff5da2"


def evaluate(
  trained: workdir.Trained,
  *,
  split: str = "test",
  data: str | None = None,
  against: str | None = None,
  bootstrap: int = 2000,
) -> dict[str, Any]:
  """Evaluates a segmenter; arguments and folders as `evaluate.evaluate`.

  Returns:
    the contents of metrics.json.

  Raises:
    UserError: for settings or data that cannot be used.
  """
  dataset, external = evaluation.open_data(trained, data)
  if not dataset.has_masks:
    raise UserError(f"{dataset.path} holds no masks to compare with")
  splits = evaluation.splits_of(split, dataset)
  folder = evaluation.folder_of(
    trained.path, split, dataset.fingerprint, external
  )
  other = None
  if against:
    other = evaluation.read_other(
      trained, against, folder, ("patient_id", "class", *METRICS)
    )

  rows, lesions = score_cases(trained, dataset, splits)
  if not rows:
    raise UserError(
      f"{dataset.path}: no case of the {split} split has"
      f" {' or '.join(_foreground(trained))} in its mask"
    )
  folder.mkdir(parents=True, exist_ok=True)
  name = evaluation.cases_name(split, external)
  case_rows.write_rows(folder, name, rows)
  if lesions:
    case_rows.write_rows(folder, name.replace("cases", "lesions"), lesions)

  options = {"draws": bootstrap, "seed": 0}
  result = evaluation.describe(trained, dataset, split, external)
  result |= summarise(rows, lesions, **options)
  result |= {
    "segmentation": {
      "window": trained.config.segment.window or trained.config.data.patch_size,
      **{
        key: trained.config.segment[key]
        for key in ("overlap", "mirror", "min_component_mm3")
      },
    },
    "notes": evaluation.split_notes(split, external),
  }
  if other:
    result["against"] = {
      "workdir": str(against),
      "difference": compare(rows, other[0], **options),
    }
  result = results.strict(result)
  write_worst(folder, trained, dataset, rows)
  checkpoint.write_json(folder / "metrics.json", result)
  return result


def score_cases(
  trained: workdir.Trained,
  dataset: input_pipeline.Dataset,
  splits: Sequence[str],
) -> tuple[list[Row], list[Row]]:
  """Segments every case of the splits once and compares it with its mask.

  Args:
    trained: the segmenter.
    dataset: records with masks.
    splits: names of splits.

  Returns:
    a row for each case and foreground class that the case annotates, with
    `segment_metrics.METRICS`; and a row with `LESIONS` for each case that
    annotates both kinds of plaque, if the segmenter tells them apart.
  """
  rows, lesions = [], []
  cases = [(split, row) for split in splits for row in dataset.rows[split]]
  for split, case in tqdm(cases, "cases", leave=False, disable=None):
    found, truth, known, record = _segment(trained, dataset, case)
    who = {
      "split": split,
      "index": int(case["index"]),
      "case_id": case["case_id"],
      "patient_id": case["patient_id"],
    }
    spacing = record["spacing"]
    for number, name in enumerate(_foreground(trained), 1):
      if known[number]:
        values = segment_metrics.case_metrics(
          found == number, truth == number, spacing
        )
        rows.append(who | {"class": name} | values)
    plaques = [
      number
      for number, name in enumerate(_foreground(trained), 1)
      if name in PLAQUES and known[number]
    ]
    if len(plaques) == len(PLAQUES):
      lesions.append(
        who
        | _detect(np.isin(found, plaques), np.isin(truth, plaques), record)
      )
  return rows, lesions


def _segment(trained, dataset, case) -> tuple[np.ndarray, np.ndarray, Any, Any]:
  """Returns labels, true labels, known [K] and the record of a case."""
  record = dataset.read(case)
  task = trained.config.segment.classes
  labels = components.remove_small(
    trained.segment(record["image"]).labels,
    record["spacing"],
    trained.config.segment.min_component_mm3,
  )
  known = classes.map_known(record["mask_classes"], task)
  return labels, classes.map_mask(record["mask"], task), known, record


def _detect(found, truth, record) -> dict[str, float]:
  affine, centers, lengths = record["grid_affine"], None, None
  listed = json.loads(record["lesions"])
  if listed:
    centers, lengths = segment_metrics.lesion_centers(listed, affine)
    # The grid may be a box that leaves some out.
    inside = (centers > -0.5).all(1) & (centers < np.array(truth.shape) - 0.5)
    inside = inside.all(1) if inside.ndim > 1 else inside
    centers, lengths = centers[inside], lengths[inside]
  return segment_metrics.lesion_detection(
    found, truth, record["spacing"], centers=centers, lengths_mm=lengths
  )


def _foreground(trained: workdir.Trained) -> tuple[str, ...]:
  return classes.get_task(trained.config.segment.classes).names[1:]


def summarise(
  rows: Sequence[Row], lesions: Sequence[Row], *, draws: int, seed: int
) -> dict[str, Any]:
  """Averages over patients; needs no model and no files.

  Args:
    rows: of `score_cases`.
    lesions: of `score_cases`.
    draws: of the bootstrap over patients.
    seed: of the bootstrap.

  Returns:
    "n_patients", "n_scans", "mean_dice" (over a patient's classes, then over
    patients), "patient" {class: {metric: interval}} and "lesions" {metric:
    interval}, with intervals as `intervals.mean_interval` gives them.
  """
  options = {"draws": draws, "seed": seed}
  by_class = {
    name: {
      metric: intervals.mean_interval(values, **options)
      for metric, values in by_patient(
        [row for row in rows if row["class"] == name], segment_metrics.METRICS
      ).items()
    }
    for name in dict.fromkeys(row["class"] for row in rows)
  }
  result = {
    "n_patients": len({row["patient_id"] for row in rows}),
    "n_scans": len({(row["split"], row["index"]) for row in rows}),
    "mean_dice": intervals.mean_interval(_mean_dice(rows), **options),
    "patient": by_class,
  }
  if lesions:
    result["lesions"] = {
      metric: intervals.mean_interval(values, **options)
      for metric, values in by_patient(lesions, LESIONS).items()
    }
  return result | {"bootstrap": options | {"confidence": 0.95}}


def by_patient(
  rows: Sequence[Row], metrics: Sequence[str]
) -> dict[str, np.ndarray]:
  """Returns {metric: [patients]}, means over scans, patients by sorted id."""
  values = np.array(
    [[_number(row[metric]) for metric in metrics] for row in rows]
  )
  means = results.patient_means([row["patient_id"] for row in rows], values)
  return dict(zip(metrics, means.T, strict=True))


def _number(value: float | None) -> float:
  """Undefined is null in a file."""
  return float("nan") if value is None else float(value)


def _mean_dice(rows: Sequence[Row]) -> np.ndarray:
  """The mean over the classes of each patient, by sorted id."""
  names = list(dict.fromkeys(row["class"] for row in rows))
  table = np.full((len(rows), len(names)), np.nan)
  for i, row in enumerate(rows):
    table[i, names.index(row["class"])] = _number(row["dice"])
  means = results.patient_means([row["patient_id"] for row in rows], table)
  return np.array([results.defined_mean(each) for each in means])


def compare(
  rows: Sequence[Row], other: Sequence[Row], *, draws: int, seed: int
) -> dict[str, dict[str, Any]]:
  """Compares two segmenters on the same patients and their common classes.

  Args:
    rows: of this one.
    other: of the other one.
    draws: of the bootstrap over patients.
    seed: of the bootstrap.

  Returns:
    {class: {metric: interval}} of this minus the other, as means over the
    patients where both are defined.

  Raises:
    UserError: the patients differ, or no class is common.
  """
  names = [
    name
    for name in dict.fromkeys(row["class"] for row in rows)
    if any(row["class"] == name for row in other)
  ]
  if not names:
    raise UserError("the two segmenters have no class in common")
  result = {}
  for name in names:
    ours = [row for row in rows if row["class"] == name]
    theirs = [row for row in other if row["class"] == name]
    patients = {row["patient_id"] for row in ours}
    if patients != {row["patient_id"] for row in theirs}:
      raise UserError(
        "the two segmenters were not evaluated on the same patients; evaluate"
        " both on the same data"
      )
    a = by_patient(ours, segment_metrics.METRICS)
    b = by_patient(theirs, segment_metrics.METRICS)
    result[name] = {
      metric: intervals.mean_interval(a[metric] - b[metric], draws=draws, seed=seed)
      for metric in segment_metrics.METRICS
    }
  return result


def write_worst(
  folder: pathlib.Path,
  trained: workdir.Trained,
  dataset: input_pipeline.Dataset,
  rows: Sequence[Row],
) -> None:
  """Writes worst.png: the cases of the least mean Dice, each in three planes.

  Each plane is the slice with the most wrong voxels.
  """
  scans: dict[tuple[str, int], list[Row]] = {}
  for row in rows:
    scans.setdefault((row["split"], row["index"]), []).append(row)
  dice = {
    key: results.defined_mean([row["dice"] for row in some])
    for key, some in scans.items()
  }
  judged = [key for key in scans if np.isfinite(dice[key])]
  headings = {}
  for split, index in sorted(judged, key=dice.get)[:WORST]:
    case = next(
      row for row in dataset.rows[split] if int(row["index"]) == index
    )
    heading = f"{case['case_id']}, Dice {dice[split, index]:.2f}"
    headings[heading] = _panels(trained, dataset, case)
  if headings:
    png = planes.planes_png(
      headings,
      "Worst cases by mean Dice  ·  green: true  ·  pink: found  ·  "
      + evaluation.DISCLAIMER,
    )
    evaluation.write_bytes(folder / "worst.png", png)


def _panels(trained, dataset, case) -> list[planes.Panel]:
  found, truth, known, record = _segment(trained, dataset, case)
  grid = Grid.from_affine(found.shape, record["grid_affine"])
  numbers = [k for k in range(1, len(known)) if known[k]]
  wrong = np.zeros(found.shape, bool)
  masks = []
  for k in numbers:
    wrong |= (found == k) != (truth == k)
    masks += [(truth == k, TRUE_COLOR), (found == k, FOUND_COLOR)]
  center = [
    int(wrong.sum(tuple(a for a in range(3) if a != axis)).argmax())
    for axis in range(3)
  ]
  return planes.three_planes(
    Volume(record["image"], grid), grid.to_mm(center), masks=masks
  )


def table(result: Mapping[str, Any]) -> str:
  """Returns the metrics as text: a line a metric, a column a class."""
  columns = dict(result["patient"])
  lines = []
  width = 31
  header = "".join(f"{name:<{width}}" for name in columns)
  lines.append(f"{'':<19}{header}".rstrip())
  for metric in segment_metrics.METRICS:
    cells = "".join(
      f"{_cell(column[metric]):<{width}}" for column in columns.values()
    )
    lines.append(f"{metric:<19}{cells}".rstrip())
  lines.append(f"{'mean dice':<19}{_cell(result['mean_dice'])}")
  for metric, entry in result.get("lesions", {}).items():
    lines.append(f"{'lesions: ' + metric:<27}{_cell(entry)}")
  if "against" in result:
    lines.append(f"difference to {result['against']['workdir']}:")
    for name, metrics in result["against"]["difference"].items():
      lines.append(f"  {name}: dice {_cell(metrics['dice'], sign='+')}")
  draws = result["bootstrap"]["draws"]
  lines.append(
    "means over patients (n), 95 % intervals by a bootstrap over patients"
    f" ({draws} draws)"
  )
  return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def _cell(entry: Mapping[str, Any], sign: str = "") -> str:
  if entry["value"] is None:
    return "undefined"
  text = f"{entry['value']:{sign}.3f}"
  if entry["low"] is not None:
    text += f" [{entry['low']:{sign}.3f}, {entry['high']:{sign}.3f}]"
  return f"{text} ({entry['n']})"
