"""Evaluates the model of a workdir, whichever kind it is."""

import dataclasses
import pathlib
from typing import Any

from cadjax import tasks
from cadjax.evaluation import classifiers, common, segmenters
from cadjax.metrics import calibration
from cadjax.training import workdir
from data_prep.errors import UserError


def evaluate_workdir(
  path: str | pathlib.Path,
  *,
  split: str = "test",
  data: str | None = None,
  against: str | None = None,
  threshold: str = "youden",
  bootstrap: int = 2000,
  batch_size: int | None = None,
) -> dict[str, Any]:
  """Evaluates the best checkpoint of a workdir and writes WORKDIR/eval.

  The test split goes to eval/, another one to eval/SPLIT/, other data than
  the workdir's own (`data`) to eval/external_FINGERPRINT/; see
  `common.paths_of_result`.

  Args:
    path: the workdir.
    split: "test", "validation", "train" or "all".
    data: a data set to use in place of the one that the workdir names.
    against: another workdir, evaluated before on the same patients.
    threshold: the criterion, see `calibration.choose_threshold`; of a
      classifier.
    bootstrap: number of draws, at least 100.
    batch_size: volumes, or windows of a segmenter, at a time;
      `config.data.eval_batch_size` if left out.

  Returns:
    the contents of metrics.json.

  Raises:
    UserError: for settings, a workdir or data that cannot be used.
  """
  common.check_settings(split, bootstrap, batch_size)
  try:
    calibration.check_criterion(threshold)
  except ValueError as error:
    raise UserError(f"--threshold: {error}") from error
  model = tasks.load_model(path, prior=True)
  if batch_size:
    model = _with_batch_size(model, batch_size)
  evaluation = common.open_evaluation(model, split, data)
  if model.task == "segment":
    return segmenters.evaluate(evaluation, against=against, bootstrap=bootstrap)
  return classifiers.evaluate(
    evaluation, against=against, threshold=threshold, bootstrap=bootstrap
  )


def _with_batch_size(
  model: workdir.Trained, batch_size: int
) -> workdir.Trained:
  """Returns the model with a config of its own that has this batch size."""
  config = model.config.copy_and_resolve_references()
  config.data.eval_batch_size = batch_size
  return dataclasses.replace(model, config=config)
