"""What training does differently for a classifier and for a segmenter.

The loop, the step, checkpoints and resuming are one for both; a `Task` holds
the rest: batches, target, loss, the score of a step and validation.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import linen as nn

from cadjax import models
from cadjax.core import lookup, parallel
from cadjax.data import augment, classes
from cadjax.data.input_pipeline import Batch, CaseRow, Dataset
from cadjax.training import steps

# config.task: the models that do it.
MODELS = {"classify": ("resnet",), "segment": ("unet", "resunet")}


@dataclasses.dataclass(frozen=True)
class Task:
  """The parts of training that depend on the task.

  Attributes:
    image_shape: of one example of the model, [(D,) H, W, 1].
    steps_per_epoch: full batches in an epoch.
    batches: (start, stop) to the batches of these steps and their rows.
    prepare: of `steps.make_prepare`.
    loss_fn: (logits, target) -> [N].
    score: of `steps.make_train_step`.
    validate: the variables of an evaluation to the metrics of validation.
  """

  image_shape: tuple[int, ...]
  steps_per_epoch: int
  batches: Callable[[int, int], Iterator[tuple[Batch, Sequence[CaseRow]]]]
  prepare: Callable
  loss_fn: Callable[[jax.Array, steps.Target], jax.Array]
  score: tuple[str, Callable]
  validate: Callable[[Any], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Kind:
  """What a classifier and a segmenter do differently, made once for each.

  Attributes:
    task: the value of `config.task`.
    monitors: what early stopping may watch on validation; all but the loss
      are better when they grow.
    score: of a step, see `steps.make_train_step`.
    make_loss: (config, pmap axis or None) -> (logits, target) -> [N].
    open_dataset: config -> the records, with what this kind needs of them.
    make_task: (config, dataset, devices) -> `Task`.
    model: what a workdir is loaded as.
  """

  task: str
  monitors: tuple[str, ...]
  score: tuple[str, Callable]
  make_loss: Callable[[ml_collections.ConfigDict, str | None], Callable]
  open_dataset: Callable[[ml_collections.ConfigDict], Dataset]
  make_task: Callable[
    [ml_collections.ConfigDict, Dataset, parallel.Parallel], Task
  ]
  model: type


def check_config(config: ml_collections.ConfigDict, kind: Kind) -> None:
  """Checks what can be known of a training before the data are opened.

  Raises:
    lookup.ConfigError: a field of the config cannot be used.
  """
  if task_of(config) != kind.task:
    raise lookup.ConfigError(
      f"config.task is {config.task!r}, but this training is to {kind.task}"
    )
  for field in ("epochs", "patience", "log_every", "checkpoint_every"):
    if config[field] < 1:
      raise lookup.ConfigError(
        f"config.{field} is {config[field]}; it must be at least 1"
      )
  if config.monitor not in kind.monitors:
    raise lookup.ConfigError(
      f"config.monitor is {config.monitor!r}; for config.task ="
      f" {kind.task!r} it is one of {', '.join(kind.monitors)}"
    )


def task_of(config: ml_collections.ConfigDict) -> str:
  """Returns "classify" or "segment".

  Raises:
    lookup.ConfigError: for another task, or a model that cannot do it.
  """
  task = config.get("task")
  wanted = lookup.look_up(MODELS, task, "config.task")
  model = config.model.get("name", "resnet")
  known = {name for some in MODELS.values() for name in some}
  if model in known and model not in wanted:
    takes = " or ".join(map(repr, wanted))
    raise lookup.ConfigError(
      f"config.task is {task!r}, which takes config.model.name = {takes}, not"
      f" {model!r}"
    )
  return task


def make_model(
  config: ml_collections.ConfigDict, axis_name: str | None = None
) -> nn.Module:
  """Makes the model of a config; a segmenter has the classes of its set."""
  options = dict(config.model)
  if task_of(config) == "segment":
    class_set = classes.get_class_set(config.segment.classes)
    options["num_classes"] = len(class_set.names)
  return models.get_model(options, axis_name=axis_name)


def make_augment(config: ml_collections.ConfigDict) -> Callable | None:
  """The augmentation with the options of `config.augment`; None if empty."""
  if not config:
    return None
  return functools.partial(augment.augment, options=config.to_dict())


def evaluate_split(
  dataset: Dataset,
  split: str,
  score: Callable[[Batch], np.ndarray],
  batch_size: int,
) -> tuple[list[CaseRow], np.ndarray]:
  """Scores every case of a split once.

  Args:
    dataset: the records.
    split: "train", "validation" or "test".
    score: a batch to logits [B, S, K].
    batch_size: of the batches; the last one is padded.

  Returns:
    the rows of the cases and their logits [N, S, K].
  """
  rows, logits = [], []
  for batch, cases in dataset.eval_batches(split, batch_size):
    logits.append(score(batch)[: len(cases)])
    rows.extend(cases)
  return rows, np.concatenate(logits)
