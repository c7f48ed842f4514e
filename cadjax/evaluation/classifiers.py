"""Evaluates a trained classifier by patient, with intervals."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from cadjax.classification.classifier import Classifier
from cadjax.core import files
from cadjax.core.files import Row
from cadjax.data import input_pipeline
from cadjax.evaluation import common
from cadjax.metrics import binary, calibration, patient_level
from cadjax.metrics.intervals import Difference, Interval
from cadjax.report import curves
from data_prep import checksums
from data_prep.errors import UserError

# Of the column of metrics.
WIDTH = max(map(len, binary.METRICS)) + 2
CASE_KEYS = ("case_id", "patient_id", "label", "log_odds")


def evaluate(
  evaluation: common.Evaluation,
  *,
  against: str | None = None,
  threshold: str = "youden",
  bootstrap: int = 2000,
) -> dict[str, Any]:
  """Evaluates a classifier and writes rows, figures and metrics.json.

  Args:
    evaluation: of a classifier.
    against: another workdir, evaluated before on the same patients.
    threshold: the criterion, see `calibration.choose_threshold`.
    bootstrap: number of draws.

  Returns:
    the contents of metrics.json.

  Raises:
    UserError: for settings or data that cannot be used.
  """
  config = evaluation.model.config
  if config.eval.pooling not in calibration.POOLINGS:
    raise UserError(
      f"config.eval.pooling is {config.eval.pooling!r}; it is one of"
      f" {', '.join(calibration.POOLINGS)}"
    )
  other = evaluation.read_other(against, CASE_KEYS) if against else None
  validation, rows = _score(evaluation)
  result = evaluation.describe() | patient_level.evaluate_rows(
    validation,
    rows,
    ndim=config.model.ndim,
    pooling=config.eval.pooling,
    criterion=threshold,
    draws=bootstrap,
  )
  result["notes"] += evaluation.notes() + _setting_notes(evaluation, validation)
  if other:
    result["against"] = patient_level.compare(
      rows, result, *other, names=(str(evaluation.model.path), str(against))
    )
    result["notes"] += evaluation.build_notes(against, other[1])
  _write(evaluation.paths, validation, rows, result)
  return files.strict(result)


def _score(evaluation: common.Evaluation) -> tuple[list[Row], list[Row]]:
  """Scores validation and evaluated cases, and writes both before averages."""
  model, paths = evaluation.model, evaluation.paths
  dataset, batch_size = evaluation.dataset, model.config.data.eval_batch_size
  paths.folder.mkdir(parents=True, exist_ok=True)
  if evaluation.external:
    validation = _own_validation(model, batch_size)
  else:
    validation = score_rows(dataset, ["validation"], model.logits, batch_size)
  files.write_rows(paths.folder, paths.validation, validation)
  rows = validation
  if evaluation.external or evaluation.split != "validation":
    rows = score_rows(dataset, evaluation.splits, model.logits, batch_size)
    files.write_rows(paths.folder, paths.cases, rows)
  return validation, rows


def _write(
  paths: common.Paths,
  validation: Sequence[Row],
  rows: Sequence[Row],
  result: Mapping[str, Any],
) -> None:
  """Writes the rows with their probabilities, the figures and the numbers."""
  for name, some in {paths.validation: validation, paths.cases: rows}.items():
    scored = patient_level.with_probabilities(some, result)
    files.write_rows(paths.folder, name, scored)
  patients = patient_level.patient_rows(rows, result)
  files.write_rows(paths.folder, paths.patients, patients)
  write_figures(paths.folder, rows, result)
  # `predict` takes threshold and temperature from it. Killed in between, it
  # is one without a checksum, as older versions wrote it.
  (paths.folder / checksums.NAME).unlink(missing_ok=True)
  files.write_json(paths.metrics, files.strict(result))
  checksums.write(paths.folder, [paths.metrics.name])


def score_rows(
  dataset: input_pipeline.Dataset,
  splits: Sequence[str],
  logits: Callable[..., np.ndarray],
  batch_size: int,
) -> list[Row]:
  """Scores every case of the splits once, in their order.

  Args:
    dataset: the records.
    splits: names of splits.
    logits: of `Classifier`: int16 HU [B, D, H, W, 1], and the prior if
      the data set has one, to logits [B, S, 2].
    batch_size: of the batches; the last one is padded.

  Raises:
    UserError: the model gives a logit that is not finite.
  """
  scored = []
  for split in splits:
    count = -(-len(dataset.rows[split]) // batch_size)
    batches = dataset.eval_batches(split, batch_size)
    for batch, cases in tqdm(batches, split, count, leave=False, disable=None):
      inputs = [batch[key] for key in ("image", "prior") if key in batch]
      odds = calibration.softmax_margin(logits(*inputs)[: len(cases)])
      for case, values in zip(cases, odds, strict=True):
        if not np.isfinite(values).all():
          raise UserError(
            f"the model's logits of case {case['case_id']} ({split}) are not"
            " finite; train again, perhaps with a lower learning rate"
          )
        scored.append(
          {
            "split": split,
            "index": int(case["index"]),
            "case_id": case["case_id"],
            "patient_id": case["patient_id"],
            "label": int(case["label"]),
            "log_odds": values.tolist(),
          }
        )
  return scored


def write_figures(
  folder: pathlib.Path, rows: Sequence[Row], result: Mapping[str, Any]
) -> None:
  """Writes roc.png, pr.png, calibration.png and confusion.png."""
  _, labels, probs = patient_level.as_evaluated(rows, result)
  threshold = result["threshold"]
  patients = curves.Scores(
    "by patient", "patients", labels, probs, threshold, result["patient"]
  )
  lines = [patients]
  if "slice" in result:
    setting = result["slice_setting"]
    _, labels, probs = patient_level.by_slice(rows)
    probs = calibration.calibrate(probs, setting["temperature"])
    lines.append(
      curves.Scores(
        "by slice",
        "slices",
        labels,
        probs,
        setting["threshold"],
        result["slice"],
      )
    )
  words = {
    "title": f"{result['split']}, {result['data']['source']} data",
    "footer": result["disclaimer"],
  }
  curves.save(curves.roc_figure(lines, **words), folder / "roc.png")
  curves.save(curves.pr_figure(lines, **words), folder / "pr.png")
  for name, draw in (
    ("calibration", curves.calibration_figure),
    ("confusion", curves.confusion_figure),
  ):
    curves.save(draw(patients, **words), folder / f"{name}.png")


def _own_validation(trained: Classifier, batch_size: int) -> list[Row]:
  """Validation rows of the workdir's own data, or those stored before."""
  try:
    dataset, _ = common.open_data(trained)
  except UserError as error:
    # The evaluation of either split of the own data has left them.
    for split in ("test", "validation"):
      paths = common.paths_of(trained.path, split)
      stored = paths.rows(paths.validation)
      if stored.exists() and paths.metrics.exists():
        step = files.read_json(paths.metrics).get("step")
        if step == trained.step:
          return files.read_rows(stored, CASE_KEYS)
    raise UserError(
      "the temperature and the threshold of an external evaluation come from"
      f" the validation cases of the workdir's own data, but {error}, in an"
      " evaluation of its own before this one"
    ) from error
  return score_rows(dataset, ["validation"], trained.logits, batch_size)


def _setting_notes(
  evaluation: common.Evaluation, validation: Sequence[Row]
) -> list[str]:
  if evaluation.external:
    return ["temperature and threshold come from the workdir's own validation"]
  if evaluation.split in ("validation", "all") and validation:
    return [
      "temperature and threshold were chosen on these validation cases:"
      " optimistic"
    ]
  return []


def table(result: Mapping[str, Any]) -> str:
  """Returns the metrics as text, one a line: value [low, high] (k/n).

  Args:
    result: the contents of metrics.json.
  """
  columns = {
    f"by patient ({result['n_patients']})": _texts(Interval, result["patient"])
  }
  if "slice" in result:
    count = result["slice_setting"]["n_slices"]
    columns[f"by slice ({count})"] = _texts(Interval, result["slice"])
  if "against" in result:
    columns["difference to --against"] = _texts(
      Difference, result["against"]["difference"]
    )
  lines = ["".join([" " * WIDTH, *(f"{name:<31}" for name in columns)])]
  for name in binary.METRICS:
    cells = [f"{column[name]:<31}" for column in columns.values()]
    lines.append("".join([f"{name:<{WIDTH}}", *cells]))
  lines = [line.rstrip() for line in lines]
  draws = result["bootstrap"]["draws"]
  lines.append(
    "95 % intervals: Wilson for k/n by patient, profile likelihood for"
    " calibration, else a stratified bootstrap over patients"
    f" ({draws} draws)"
  )
  lines.append(
    "perfect calibration: slope 1, intercept 0, Brier"
    f" {result['perfectly_calibrated']['brier']:.3f}"
  )
  lines.append(
    f"threshold {result['threshold']:.4f}: {result['threshold_origin']}"
  )
  half = Interval.from_dict(result["at_half"]["accuracy"])
  lines.append(
    f"accuracy at 0.5, without that threshold (argmax): {half.text()}"
  )
  lines.append(
    f"temperature {result['temperature']:.3f}: {result['temperature_origin']}"
  )
  if "against" in result:
    test = result["against"]["mcnemar"]
    lines.append(
      f"McNemar against {result['against']['workdir']}: correct only here"
      f" {test['only_a_correct']}, only there {test['only_b_correct']},"
      f" p = {test['p_value']:.3g}"
    )
  return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def _texts(
  kind: type[Interval | Difference], entries: Mapping[str, Any]
) -> dict[str, str]:
  return {name: kind.from_dict(entry).text() for name, entry in entries.items()}
