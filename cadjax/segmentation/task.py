"""What training a segmenter needs beside the loop."""

from collections.abc import Callable

import jax
import ml_collections
import numpy as np

from cadjax.core import lookup, parallel
from cadjax.data import classes, input_pipeline
from cadjax.data.input_pipeline import Dataset
from cadjax.metrics import patient_level
from cadjax.segmentation import losses, patches
from cadjax.segmentation.segmenter import Segmenter, make_sliding, window_of
from cadjax.training import steps
from cadjax.training.task import (
  Kind,
  Task,
  check_number,
  check_sizes,
  check_tissues,
  check_traced,
  make_augment,
  make_model,
)
from data_prep.errors import UserError

# What early stopping may watch on validation.
MONITORS = ("dice",)
# The score of a step, see `steps.make_train_step`.
SCORE = ("dice", steps.overlaps)


def open_dataset(config: ml_collections.ConfigDict) -> Dataset:
  """Opens the records of a config; a segmenter needs no labels.

  Raises:
    UserError: the records cannot be used.
  """
  return input_pipeline.open_dataset(config.data, labelled=False)


def make_loss(
  config: ml_collections.ConfigDict, axis_name: str | None = None
) -> Callable[[jax.Array, steps.Target], jax.Array]:
  """Makes the loss of a config, (logits, (mask, known)) -> [N].

  Args:
    config: with the field `loss`.
    axis_name: the pmap axis that divides the batch, or None.
  """
  loss_fn = losses.deep_supervision(
    losses.get_segment_loss(config.loss, axis_name)
  )
  return lambda logits, target: loss_fn(logits, *target)


def overlap_by_class(
  predicted: np.ndarray, truth: np.ndarray, num_classes: int
) -> np.ndarray:
  """Returns the two parts of the Dice coefficient of each foreground class.

  Args:
    predicted: integers [D, H, W] in 0 ... K - 1.
    truth: the same of the mask.
    num_classes: K.

  Returns:
    float64 [2, K - 1]: twice the voxels in both, and the voxels of one plus
    those of the other.
  """
  pairs = truth.astype(np.int64).ravel() * num_classes + predicted.ravel()
  table = np.bincount(pairs, minlength=num_classes**2)
  table = table.reshape(num_classes, num_classes)
  parts = 2.0 * np.diag(table), table.sum(0) + table.sum(1)
  return np.stack(parts)[:, 1:]


def classes_of(dataset: Dataset, split: str, class_set: str) -> np.ndarray:
  """Returns which foreground classes a split's masks have, bool [K - 1].

  Args:
    dataset: records with masks.
    split: whose cases are read, once each.
    class_set: a key of `classes.CLASS_SETS`; what a case does not annotate
      does not count.
  """
  count = len(classes.get_class_set(class_set).names)
  present = np.zeros(count, bool)
  for row in dataset.rows[split]:
    record = dataset.read(row)
    truth = classes.map_mask(record["mask"], class_set)
    known = classes.map_known(record["mask_classes"], class_set) > 0
    present |= known & (np.bincount(truth.ravel(), minlength=count) > 0)
  return present[1:]


def make_task(
  config: ml_collections.ConfigDict,
  dataset: Dataset,
  devices: parallel.Parallel,
) -> Task:
  """Makes what the training of a segmenter needs beside the loop.

  Raises:
    UserError: the data cannot be used for it.
    lookup.ConfigError: a field of the config cannot be used.
  """
  _check_segment(config, dataset)
  check_tissues(config, dataset)
  class_set, ndim = config.segment.classes, config.model.ndim
  data = config.data
  patch = tuple(data.patch_size)
  devices.check_batch(data.batch_size, patch[0])
  segment = make_sliding(config, devices)
  foreground = classes.get_class_set(class_set).names[1:]
  present = classes_of(dataset, "validation", class_set)
  if not present.any():
    raise UserError(
      f"{dataset.path}: no validation case has {' or '.join(foreground)} in"
      " its mask"
    )

  def validate(variables):
    # Pooled over the cases: the mean over patients would have a 0 for every
    # speck of plaque in a patient without any, and stop before plaque is
    # learned at all.
    both, sizes = np.zeros((2, len(foreground)))
    for row in dataset.rows["validation"]:
      record = dataset.read(row)
      labels = segment(variables, record["image"]).labels
      truth = classes.map_mask(record["mask"], class_set)
      known = classes.map_known(record["mask_classes"], class_set)[1:] > 0
      parts = overlap_by_class(labels, truth, len(foreground) + 1)
      both, sizes = both + known * parts[0], sizes + known * parts[1]
    # Of the classes that validation has, whatever was predicted: another one
    # would join the mean, with a 0, at the first voxel falsely found.
    dice = np.divide(both, sizes, out=np.full_like(both, np.nan), where=present)
    return {
      "dice": patient_level.defined_mean(dice),
      **{
        f"dice_{name}": float(value)
        for name, value in zip(foreground, dice, strict=True)
      },
    }

  return Task(
    image_shape=(*(patch[1:] if ndim == 2 else patch), 1),
    steps_per_epoch=patches.steps_per_epoch(
      dataset, data.batch_size, data.patches_per_volume
    ),
    batches=lambda start, stop: patches.train_batches(
      dataset,
      class_set,
      batch_size=data.batch_size,
      patch_size=patch,
      patches_per_volume=data.patches_per_volume,
      foreground_share=data.foreground_share,
      seed=config.seed,
      start=start,
      stop=stop,
    ),
    prepare=steps.make_prepare(
      ndim=ndim,
      window_hu=tuple(data.window_hu),
      augment=make_augment(config.augment),
      class_set=class_set,
    ),
    loss_fn=make_loss(config, devices.axis_name),
    score=SCORE,
    validate=validate,
  )


def check(config: ml_collections.ConfigDict) -> None:
  """Checks the fields that segmenters alone have.

  Raises:
    lookup.ConfigError: a field cannot be used.
  """
  model = make_model(config)  # Also knows the set of classes.
  sizes = {"config.data.patch_size": config.data.patch_size}
  if config.segment.window is not None:
    sizes["config.segment.window"] = config.segment.window
  for name, size in sizes.items():
    check_sizes(name, size, low=1)
  check_number(config, "data.patches_per_volume", int, low=1)
  check_number(config, "data.foreground_share", float, low=0, high=1)
  check_number(config, "segment.overlap", float, low=0, below=1)
  check_number(config, "segment.min_component_mm3", float, low=0)
  if "min_soft_voxels" in config.segment:
    check_number(config, "segment.min_soft_voxels", int, low=1)
  space, classes_ = (8,) * config.model.ndim, model.num_classes
  logits = jax.ShapeDtypeStruct((1, *space, classes_), np.float32)
  mask = jax.ShapeDtypeStruct((1, *space), np.uint8)
  known = jax.ShapeDtypeStruct((1, classes_), np.uint8)
  check_traced("config.loss", make_loss(config), logits, (mask, known))


def _check_segment(config, dataset: Dataset) -> None:
  for split in ("train", "validation"):
    if not dataset.rows[split]:
      raise UserError(f"{dataset.path}: the {split} split has no case")
  if not dataset.has_masks:
    raise UserError(
      f"{dataset.path} holds no masks, which a segmenter learns from; build it"
      " from a source with masks, or a manifest.csv with a column mask"
    )
  stride = make_model(config).stride
  sizes = {
    "config.data.patch_size": tuple(config.data.patch_size),
    "config.segment.window": window_of(config),
  }
  for name, size in sizes.items():
    in_model = size[1:] if config.model.ndim == 2 else size
    if len(size) != 3 or size[0] < 1 or any(n % stride for n in in_model):
      axes = "H and W" if config.model.ndim == 2 else "D, H and W"
      raise lookup.ConfigError(
        f"{name} is {size}; it must be 3 sizes, and {axes} multiples of"
        f" {stride} for this model"
      )


KIND = Kind(
  task="segment",
  monitors=MONITORS,
  score=SCORE,
  make_loss=make_loss,
  open_dataset=open_dataset,
  make_task=make_task,
  check=check,
  model=Segmenter,
)
