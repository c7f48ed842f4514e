"""Evaluates a trained segmenter by patient and class, with intervals.

`python -m cadjax.evaluate --workdir=W` comes here for a segmenter. Writes
into W/eval: one row per case and class first, then metrics.json and
worst.png, the worst cases with what is true and what was found. All is
measured on the grid of the records, which is the model's.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from cadjax.core import files
from cadjax.core.files import Row
from cadjax.data import classes, input_pipeline
from cadjax.evaluation import common
from cadjax.metrics import intervals, patient_level
from cadjax.metrics.intervals import MeanInterval
from cadjax.report import pages, planes
from cadjax.segmentation import components, metrics
from cadjax.segmentation.metrics import METRICS
from cadjax.segmentation.segmenter import Segmenter
from data_prep.errors import UserError
from data_prep.volume import Grid, Volume

# Lesion-wise detection asks where plaque is, not of which kind.
PLAQUES = ("stable_plaque", "unstable_plaque")
LESIONS = ("lesions", "detected", "recall", "recall_best", "false_positives")
# Undefined where exactly one of two masks is empty, however wrong that is.
DISTANCES = ("hd95_mm", "assd_mm")
WORST = 4
TRUE_COLOR, FOUND_COLOR = "#5fd35f", "#ff5da2"


def evaluate(
  evaluation: common.Evaluation,
  *,
  against: str | None = None,
  bootstrap: int = 2000,
) -> dict[str, Any]:
  """Evaluates a segmenter and writes rows, worst.png and metrics.json.

  Args:
    evaluation: of a segmenter.
    against: another workdir, evaluated before on the same patients.
    bootstrap: number of draws.

  Returns:
    the contents of metrics.json.

  Raises:
    UserError: for settings or data that cannot be used.
  """
  trained, dataset = evaluation.model, evaluation.dataset
  paths = evaluation.paths
  if not dataset.has_masks:
    raise UserError(f"{dataset.path} holds no masks to compare with")
  keys = ("patient_id", "class", *METRICS)
  other = evaluation.read_other(against, keys) if against else None
  rows, lesions = score_cases(trained, dataset, evaluation.splits)
  if not rows:
    raise UserError(
      f"{dataset.path}: no case of the {evaluation.split} split has"
      f" {' or '.join(_foreground(trained))} in its mask"
    )
  paths.folder.mkdir(parents=True, exist_ok=True)
  files.write_rows(paths.folder, paths.cases, rows)
  if lesions:
    files.write_rows(paths.folder, paths.lesions, lesions)

  result = evaluation.describe()
  result |= summarise(rows, lesions, draws=bootstrap)
  result |= {
    "segmentation": {
      "window": trained.config.segment.window or trained.config.data.patch_size,
      **{
        key: trained.config.segment[key]
        for key in ("overlap", "mirror", "min_component_mm3")
      },
      "min_soft_voxels": trained.config.segment.get("min_soft_voxels", 1),
    },
    "notes": evaluation.notes(),
  }
  if other:
    result["against"] = {
      "workdir": str(against),
      "difference": compare(rows, other[0], draws=bootstrap),
    }
    result["notes"] += evaluation.build_notes(against, other[1])
  result = files.strict(result)
  write_worst(paths.worst, trained, dataset, rows)
  files.write_json(paths.metrics, result)
  return result


def score_cases(
  trained: Segmenter,
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
    `METRICS`; and a row with `LESIONS` for each case that
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
    voxel_mm3 = components.voxel_mm3(record["grid_affine"])
    for number, name in enumerate(_foreground(trained), 1):
      if known[number]:
        values = metrics.case_metrics(
          found == number, truth == number, spacing, voxel_mm3=voxel_mm3
        )
        rows.append(who | {"class": name} | values)
    plaques = [
      number
      for number, name in enumerate(_foreground(trained), 1)
      if name in PLAQUES and known[number]
    ]
    if len(plaques) == len(PLAQUES):
      lesions.append(
        who | _detect(np.isin(found, plaques), np.isin(truth, plaques), record)
      )
  return rows, lesions


def _segment(trained, dataset, case) -> tuple[np.ndarray, np.ndarray, Any, Any]:
  """Returns labels, true labels, known [K] and the record of a case."""
  record = dataset.read(case)
  class_set = trained.config.segment.classes
  labels = trained.segment(record["image"]).labels
  labels = trained.tidy(labels, record["grid_affine"])
  known = classes.map_known(record["mask_classes"], class_set)
  return labels, classes.map_mask(record["mask"], class_set), known, record


def _detect(found, truth, record) -> dict[str, float]:
  affine, centers, lengths = record["grid_affine"], None, None
  listed = json.loads(record["lesions"])
  if listed:
    centers, lengths = metrics.lesion_centers(listed, affine)
    # The grid may be a box that leaves some out.
    inside = (centers > -0.5) & (centers < np.array(truth.shape) - 0.5)
    inside = inside.all(1)
    centers, lengths = centers[inside], lengths[inside]
  return metrics.lesion_detection(
    found, truth, record["spacing"], centers=centers, lengths_mm=lengths
  )


def _foreground(trained: Segmenter) -> tuple[str, ...]:
  return trained.class_names[1:]


def summarise(
  rows: Sequence[Row], lesions: Sequence[Row], *, draws: int = 2000
) -> dict[str, Any]:
  """Averages over patients; needs no model and no files.

  Args:
    rows: of `score_cases`.
    lesions: of `score_cases`.
    draws: of the bootstrap over patients.

  Returns:
    "n_patients", "n_scans", "patient" {class: {metric: interval}}, "failed"
    {class: scans without a distance, see `failed`}, "mean_dice" (over the
    classes of each scan) and, if there are such rows, "lesions" {metric:
    interval}; intervals are those of `intervals.mean_interval`.
  """
  scans = by_scan(rows)
  result = {
    "n_patients": len({row["patient_id"] for row in rows}),
    "n_scans": len(scans),
    "patient": {
      row.pop("class"): row
      for row in intervals.mean_table(rows, ["class"], METRICS, draws=draws)
    },
    "failed": failed(rows),
    "mean_dice": intervals.mean_interval(
      np.array([mean_dice(some) for some in scans.values()]),
      patients=np.array([some[0]["patient_id"] for some in scans.values()]),
      draws=draws,
    ),
    "bootstrap": {"draws": draws, "seed": 0, "confidence": 0.95},
  }
  if lesions:
    (result["lesions"],) = intervals.mean_table(
      lesions, [], LESIONS, draws=draws
    )
  return result


def failed(rows: Sequence[Row]) -> dict[str, int]:
  """Returns by class how many scans have no surface distance, but a Dice of 0.

  Either all of the class was missed or it was found where there is none. Such
  a scan leaves the mean of the distances, which is then of the better ones.

  Args:
    rows: of `score_cases`; None and NaN are undefined.
  """
  count = dict.fromkeys((row["class"] for row in rows), 0)
  for row in rows:
    dice, distance = (
      math.nan if row[name] is None else row[name]
      for name in ("dice", DISTANCES[0])
    )
    count[row["class"]] += math.isfinite(dice) and math.isnan(distance)
  return count


def by_scan(rows: Sequence[Row]) -> dict[str, list[Row]]:
  """Returns the rows of each scan, one a class, by case id."""
  scans: dict[str, list[Row]] = {}
  for row in rows:
    scans.setdefault(row["case_id"], []).append(row)
  return scans


def mean_dice(rows: Sequence[Row]) -> float:
  """Returns the mean Dice over the classes of a scan that define it."""
  return patient_level.defined_mean([row["dice"] for row in rows])


def compare(
  rows: Sequence[Row], other: Sequence[Row], *, draws: int = 2000
) -> dict[str, dict[str, MeanInterval]]:
  """Compares two segmenters on the same scans and their common classes.

  Args:
    rows: of this one.
    other: of the other one, as they were written.
    draws: of the bootstrap over patients.

  Returns:
    {class: {metric: interval}} of this minus the other, where both are
    defined.

  Raises:
    UserError: the scans differ, or no class is common.
  """
  shared = {row["class"] for row in rows} & {row["class"] for row in other}
  if not shared:
    raise UserError("the two segmenters have no class in common")
  ours, theirs = (
    {
      (row["case_id"], row["class"]): row
      for row in some
      if row["class"] in shared
    }
    for some in (rows, other)
  )
  if ours.keys() != theirs.keys():
    raise UserError(
      "the two segmenters were not evaluated on the same scans; evaluate both"
      " on the same data"
    )
  # None stands for NaN in a file.
  number = lambda x: math.nan if x is None else x  # noqa: E731
  differences = [
    row
    | {name: number(row[name]) - number(theirs[key][name]) for name in METRICS}
    for key, row in ours.items()
  ]
  table = intervals.mean_table(differences, ["class"], METRICS, draws=draws)
  return {row.pop("class"): row for row in table}


def write_worst(
  path: pathlib.Path,
  trained: Segmenter,
  dataset: input_pipeline.Dataset,
  rows: Sequence[Row],
) -> None:
  """Writes a picture of the cases of the least mean Dice, in three planes.

  Each plane is the slice with the most wrong voxels.
  """
  dice = {key: mean_dice(some) for key, some in by_scan(rows).items()}
  judged = [key for key in dice if np.isfinite(dice[key])]
  cases = {
    row["case_id"]: row for some in dataset.rows.values() for row in some
  }
  headings = {
    f"{name}, Dice {dice[name]:.2f}": _panels(trained, dataset, cases[name])
    for name in sorted(judged, key=dice.get)[:WORST]
  }
  if headings:
    png = planes.planes_png(
      headings,
      "Worst cases by mean Dice  ·  green: true  ·  pink: found  ·  "
      + pages.DISCLAIMER,
    )
    path.write_bytes(png)


def _panels(trained, dataset, case) -> list[planes.Panel]:
  found, truth, known, record = _segment(trained, dataset, case)
  grid = Grid.from_affine(found.shape, record["grid_affine"])
  numbers = [k for k in range(1, len(known)) if known[k]]
  wrong = np.zeros(found.shape, bool)
  masks = []
  for k in numbers:
    wrong |= (found == k) != (truth == k)
    masks += [(truth == k, TRUE_COLOR), (found == k, FOUND_COLOR)]
  return planes.three_planes(
    Volume(record["image"], grid),
    grid.to_mm(planes.fullest(wrong if wrong.any() else truth > 0)),
    masks=masks,
  )


def table(result: Mapping[str, Any]) -> str:
  """Returns the metrics as text: a line a metric, a column a class.

  Args:
    result: the contents of metrics.json.
  """
  columns = result["patient"]
  wide = 40  # Of a mean with its interval and the number of failed scans.
  lines = ["".join([" " * 19, *(f"{name:<{wide}}" for name in columns)])]
  for metric in METRICS:
    cells = [_cell(column[metric]) for column in columns.values()]
    if metric in DISTANCES:
      cells = [
        f"{cell} {result['failed'][name]} failed"
        for name, cell in zip(columns, cells, strict=True)
      ]
    lines.append("".join([f"{metric:<19}", *(f"{x:<{wide}}" for x in cells)]))
  lines = [line.rstrip() for line in lines]
  lines.append(f"{'mean dice':<19}{_cell(result['mean_dice'])}")
  for metric, entry in result.get("lesions", {}).items():
    lines.append(f"{'lesions: ' + metric:<27}{_cell(entry)}")
  if "against" in result:
    lines.append(f"difference to {result['against']['workdir']}:")
    for name, entries in result["against"]["difference"].items():
      lines.append(f"  {name}: dice {_cell(entries['dice'], sign=True)}")
  draws = result["bootstrap"]["draws"]
  lines.append(
    "means over patients (n), 95 % intervals by a bootstrap over patients"
    f" ({draws} draws), Student's t below {intervals.FEW_PATIENTS} of them"
  )
  lines.append(
    "failed: scans where a class was missed altogether or found where there is"
    " none; they have a Dice of 0 and no distance, and are not in its mean"
  )
  return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def _cell(entry: Mapping[str, Any], *, sign: bool = False) -> str:
  return MeanInterval.from_dict(entry).text(sign=sign, count=True)
