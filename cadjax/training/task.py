"""What training does differently for a classifier and for a segmenter.

The loop, the step, checkpoints and resuming are one for both; a `Task` holds
the rest: batches, target, loss, the score of a step and validation.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import linen as nn

from cadjax import models
from cadjax.core import configs, lookup, parallel
from cadjax.data import augment, classes
from cadjax.data.input_pipeline import Batch, CaseRow, Dataset
from cadjax.training import optimizer, steps
from data_prep import errors
from data_prep.errors import UserError

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
    check: raises `lookup.ConfigError` for fields of this kind alone.
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
  check: Callable[[ml_collections.ConfigDict], None]
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
  configs.check_finite(config)
  whole = ("epochs", "patience", "log_every", "checkpoint_every")
  for field in (*whole, "data.batch_size", "data.eval_batch_size"):
    check_number(config, field, int, low=1)
  check_number(config, "seed", int, low=0, below=2**32)
  check_number(config, "ema_decay", float, low=0, below=1)
  if config.data.get("subset"):
    check_number(config, "data.subset.seed", int, low=0)
  # Of configs that have it alone: a default would make others of all configs.
  if config.data.get("permute_labels") is not None:
    check_number(config, "data.permute_labels", int, low=0)
  check_window(config)
  make_model(config)
  # The number of steps depends on the data; one that is too small for the
  # warm-up is found when they are open.
  optimizer.get_optimizer(config.optimizer, total_steps=sys.maxsize)
  _check_augment(config)
  kind.check(config)
  if config.monitor not in kind.monitors:
    raise lookup.ConfigError(
      f"config.monitor is {config.monitor!r}; for config.task ="
      f" {kind.task!r} it is one of {', '.join(kind.monitors)}"
    )


def check_number(
  config: ml_collections.ConfigDict,
  field: str,
  kind: type,
  *,
  low: float,
  high: float = math.inf,
  below: float = math.inf,
) -> None:
  """Checks a number of a config.

  Args:
    config: has the field.
    field: dotted.
    kind: int or float, which an int is as well.
    low: the least value.
    high: the largest value.
    below: what it must be less than.

  Raises:
    lookup.ConfigError: it is no such number.
  """
  value: Any = config
  for name in field.split("."):
    value = value[name]
  kinds = (int,) if kind is int else (int, float)
  number = isinstance(value, kinds) and not isinstance(value, bool)
  if number and low <= value <= high and value < below:
    return
  limits = f"at least {low}"
  if high < math.inf:
    limits += f" and at most {high}"
  if below < math.inf:
    limits += f" and below {below}"
  noun = "a whole number" if kind is int else "a number"
  raise lookup.ConfigError(
    f"config.{field} is {value!r}; it must be {noun}, {limits}"
    if not number
    else f"config.{field} is {value}; it must be {limits}"
  )


def check_window(config: ml_collections.ConfigDict) -> None:
  """Checks `config.data.window_hu`: two numbers, the lower one first."""
  window = config.data.window_hu
  numbers = [x for x in window if isinstance(x, int | float)]
  if len(window) != 2 or len(numbers) != 2 or not window[0] < window[1]:
    raise lookup.ConfigError(
      f"config.data.window_hu is {tuple(window)}; it must be two numbers of HU,"
      " the lower one first"
    )


def check_sizes(
  name: str, sizes: Sequence[int], *, low: int, axes: int = 3
) -> None:
  """Checks whole numbers along the axes, such as a patch.

  Raises:
    lookup.ConfigError: other than `axes` whole numbers, at least `low`.
  """
  whole = [x for x in sizes if isinstance(x, int) and x >= low]
  if len(sizes) != axes or len(whole) != axes:
    raise lookup.ConfigError(
      f"{name} is {tuple(sizes)}; it must be {axes} sizes, whole numbers of at"
      f" least {low}"
    )


def check_traced(what: str, fn: Callable, *args: Any) -> None:
  """Checks the options of a function by tracing it, which computes nothing.

  Args:
    what: the fields of the config that it takes.
    fn: to be traced.
    args: of `fn`, as `jax.eval_shape` takes them.

  Raises:
    lookup.ConfigError: the function cannot take its options.
  """
  try:
    jax.eval_shape(fn, *args)
  except lookup.ConfigError:
    raise
  except (TypeError, ValueError, IndexError) as error:
    reason = errors.one_line(error)[:300]
    raise lookup.ConfigError(f"{what} cannot be used: {reason}") from error


def _check_augment(config: ml_collections.ConfigDict) -> None:
  """Checks the options of the augmentations, on an image of a few voxels."""
  for name, options in config.augment.items():
    for option, value in options.items():
      where = f"config.augment.{name}.{option}"
      numbers = value if isinstance(value, list | tuple) else [value]
      if not all(isinstance(x, int | float) for x in numbers):
        raise lookup.ConfigError(f"{where} is {value!r}; it must be a number")
      share = option.endswith("probability") or option in ("flip", "reorder")
      if share and not all(0 <= x <= 1 for x in numbers):
        raise lookup.ConfigError(f"{where} is {value}; it must be in [0, 1]")
      if option == "spacing_mm" and not all(x > 0 for x in numbers):
        raise lookup.ConfigError(f"{where} is {value}; it must be above 0")
  function = make_augment(config.augment)
  if function is not None:
    space = (8,) * config.model.ndim
    image = jax.ShapeDtypeStruct((*space, 1), np.float32)
    mask = jax.ShapeDtypeStruct(space, np.uint8)
    key = jax.eval_shape(lambda: jax.random.key(0))
    check_traced("config.augment", function, key, image, mask)


def check_tissues(config: ml_collections.ConfigDict, dataset: Dataset) -> None:
  """Checks that masks name every tissue where the augmentation draws them.

  By the first training case; else all that a mask leaves out would be drawn as
  one tissue, without a word.

  Raises:
    UserError: they do not.
  """
  if "tissues" not in config.augment or not dataset.rows["train"]:
    return
  record = dataset.read(dataset.rows["train"][0])
  if not np.asarray(record["mask_classes"]).all():
    raise UserError(
      f"{dataset.path}: its masks do not name the tissue of every voxel, which"
      " config.augment.tissues needs; turn that augmentation off, or train on"
      " phantoms of the second edition"
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
  config: ml_collections.ConfigDict,
  axis_name: str | None = None,
  platform: str | None = None,
) -> nn.Module:
  """Makes the model of a config; a segmenter has the classes of its set.

  Args:
    config: of the run.
    axis_name: the mapped axis over whose devices BatchNorm takes means.
    platform: of the devices that train it, see `models.get_model`.
  """
  options = dict(config.model)
  if task_of(config) == "segment":
    class_set = classes.get_class_set(config.segment.classes)
    options["num_classes"] = len(class_set.names)
  return models.get_model(options, axis_name=axis_name, platform=platform)


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
