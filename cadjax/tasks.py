"""What training does differently for a classifier and for a segmenter.

The loop, the step, checkpoints and resuming are one for both; a `Task` holds
the rest: batches, target, loss, the score of a step and validation.
"""

import dataclasses

import ml_collections

from cadjax.classification import priors
from cadjax.classification.task import MONITORS, _classification
from cadjax.core import lookup, parallel
from cadjax.data import input_pipeline
from cadjax.data.input_pipeline import Dataset
from cadjax.segmentation.task import _segmentation
from cadjax.training.task import Task, task_of
from data_prep.errors import UserError


def check_config(config: ml_collections.ConfigDict) -> None:
  """Checks what can be known of a training before there are data.

  Raises:
    lookup.ConfigError: a field of the config cannot be used.
  """
  task = task_of(config)
  for field in ("epochs", "patience", "log_every", "checkpoint_every"):
    if config[field] < 1:
      raise lookup.ConfigError(
        f"config.{field} is {config[field]}; it must be at least 1"
      )
  if config.monitor not in MONITORS[task]:
    raise lookup.ConfigError(
      f"config.monitor is {config.monitor!r}; for config.task = {task!r} it is"
      f" one of {', '.join(MONITORS[task])}"
    )


def open_dataset(config: ml_collections.ConfigDict) -> Dataset:
  """Opens the data of a config; only a classifier needs labels."""
  labelled = task_of(config) == "classify"
  dataset = input_pipeline.open_dataset(config.data, labelled=labelled)
  if not priors.used(config):
    return dataset
  if not config.data.prior.masks and not dataset.has_masks:
    raise UserError(
      f"{dataset.path} holds no masks; config.data.prior.use ="
      f" {config.data.prior.use!r} needs some, or a folder of predicted ones in"
      " config.data.prior.masks"
    )
  reader = priors.make_reader(config.data.prior.masks, config.data.prior.use)
  return dataclasses.replace(dataset, prior=reader)


def make_task(
  config: ml_collections.ConfigDict,
  dataset: Dataset,
  devices: parallel.Parallel,
) -> Task:
  """Makes the task of a config.

  Raises:
    UserError: the data cannot be used for it.
    lookup.ConfigError: a field of the config cannot be used.
  """
  make = {"classify": _classification, "segment": _segmentation}
  return make[task_of(config)](config, dataset, devices)
