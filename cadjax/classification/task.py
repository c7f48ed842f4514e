"""What training a classifier needs beside the loop."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import ml_collections
import numpy as np

from cadjax.classification import priors
from cadjax.classification.classifier import Classifier
from cadjax.core import lookup, parallel
from cadjax.data import input_pipeline
from cadjax.data.input_pipeline import CaseRow, Dataset
from cadjax.metrics import binary, calibration, patient_level
from cadjax.models import folded
from cadjax.training import losses, steps
from cadjax.training.task import (
  Kind,
  Task,
  check_sizes,
  check_tissues,
  check_traced,
  evaluate_split,
  make_augment,
  make_model,
)
from data_prep.errors import UserError

# What early stopping may watch on validation; all but the loss grow.
MONITORS = ("loss", "accuracy", "balanced_accuracy", "roc_auc")
# The score of a step, see `steps.make_train_step`.
SCORE = ("accuracy", steps.hits)


def open_dataset(config: ml_collections.ConfigDict) -> Dataset:
  """Opens the labelled records of a config, with the masks that it uses.

  Raises:
    UserError: the records cannot be used, or have no masks where the config
      wants some.
  """
  dataset = input_pipeline.open_dataset(config.data, labelled=True)
  if not priors.used(config):
    return dataset
  if not config.data.prior.masks and not dataset.has_masks:
    raise UserError(
      f"{dataset.path} holds no masks; config.data.prior.use ="
      f" {config.data.prior.use!r} needs some, or a folder of predicted ones in"
      " config.data.prior.masks"
    )
  folder = config.data.prior.masks
  return dataclasses.replace(
    dataset,
    prior=priors.make_reader(folder, config.data.prior.use),
    prior_masks=priors.fingerprints(folder, dataset.rows) if folder else {},
  )


def takes_cells(
  config: ml_collections.ConfigDict,
  devices: parallel.Parallel,
  shape: Sequence[int],
) -> bool:
  """Whether training gets its volumes as `folded.to_cells`, from the host.

  Where its stem is folded and nothing before it needs to see voxels in their
  rows: neither augmentation nor a prior. Else the step folds them itself.

  Args:
    config: of the training.
    devices: that train.
    shape: of a volume, [D, H, W].
  """
  if config.model.ndim == 2 or config.augment or priors.used(config):
    return False
  planes, left = divmod(shape[0], folded.CELL)
  divides = not left and planes % devices.space_size == 0
  model = make_model(config, platform=devices.platform)
  return divides and model.takes_cells((1, *shape, 1))


def make_loss(
  config: ml_collections.ConfigDict, axis_name: str | None = None
) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Makes the loss of a config, (logits [N, K], labels [N]) -> [N].

  It is of each example alone, so that `axis_name`, of the devices that divide
  the batch, changes nothing.
  """
  del axis_name
  return losses.get_loss(config.loss)


def validation_metrics(
  rows: list[CaseRow], logits: np.ndarray, loss_fn: Callable
) -> dict[str, float]:
  """Mean loss and the patient-level metrics at threshold 0.5.

  Args:
    rows: of cases.csv, N of them.
    logits: [N, S, K]; the probabilities of the S slices are averaged.
    loss_fn: per example.
  """
  labels = np.array([int(row["label"]) for row in rows])
  n, s, k = logits.shape
  loss = np.asarray(loss_fn(logits.reshape(n * s, k), np.repeat(labels, s)))
  probs = np.asarray(jax.nn.softmax(logits, axis=-1))[..., 1].mean(axis=1)
  _, sick, probs = patient_level.by_patient(rows, probs)
  values = binary.binary_metrics(sick, probs, 0.5)
  return {"loss": float(loss.mean())} | {
    name: float(values[name]) for name in MONITORS if name != "loss"
  }


def make_task(
  config: ml_collections.ConfigDict,
  dataset: Dataset,
  devices: parallel.Parallel,
) -> Task:
  """Makes what the training of a classifier needs beside the loop.

  Raises:
    UserError: the data cannot be used for it.
    lookup.ConfigError: a field of the config cannot be used.
  """
  for split in ("train", "validation"):
    labels = {row["label"] for row in dataset.rows[split]}
    if len(labels) < 2:
      found = f"only the label {labels.pop()}" if labels else "no label"
      raise UserError(
        f"{dataset.path}: the {split} split has {found}; a classifier needs"
        " cases of both classes: give the scans their labels and build the data"
        " set again"
      )
  check_tissues(config, dataset)
  ndim, batch_size = config.model.ndim, config.data.batch_size
  shape, slices = dataset.shape, config.data.slices_per_volume
  if ndim == 2 and not 1 <= slices <= shape[0]:
    raise UserError(
      f"config.data.slices_per_volume = {slices}; a volume has {shape[0]}"
      " slices"
    )
  slices = slices if ndim == 2 else None
  cells = takes_cells(config, devices, shape)
  layout = folded.to_cells if cells else None
  devices.check_batch(batch_size, slices or shape[0])
  devices.check_batch(config.data.eval_batch_size, shape[0])
  window_hu = tuple(config.data.window_hu)
  loss_fn = make_loss(config)
  prior = priors.make_prior(config)
  eval_step = devices.eval_step(
    steps.make_eval_step(
      make_model(config), ndim=ndim, window_hu=window_hu, prior=prior
    )
  )

  def validate(variables):
    rows, logits = evaluate_split(
      dataset,
      "validation",
      lambda batch: eval_step(variables, devices.put_batch(batch)),
      config.data.eval_batch_size,
    )
    return validation_metrics(rows, logits, loss_fn)

  return Task(
    image_shape=(
      *(shape[1:] if ndim == 2 else shape),
      priors.channels(config),
    ),
    steps_per_epoch=dataset.steps_per_epoch(batch_size),
    batches=lambda start, stop: dataset.train_batches(
      batch_size,
      seed=config.seed,
      start=start,
      stop=stop,
      slices_per_volume=slices,
      layout=layout,
    ),
    prepare=steps.make_prepare(
      ndim=ndim,
      window_hu=window_hu,
      augment=make_augment(config.augment),
      prior=prior,
    ),
    loss_fn=loss_fn,
    score=SCORE,
    validate=validate,
  )


def check(config: ml_collections.ConfigDict) -> None:
  """Checks the fields that classifiers alone have.

  Raises:
    lookup.ConfigError: a field cannot be used.
  """
  classes = config.model.get("num_classes", 2)
  if classes != 2:
    raise lookup.ConfigError(
      f"config.model.num_classes is {classes}; a classifier has 2, normal and"
      " CAD"
    )
  pooling = config.get("eval", {}).get("pooling", "mean")
  lookup.check_known([pooling], calibration.POOLINGS, "config.eval.pooling")
  reads = {"tissues", "surroundings"} & set(config.augment)
  if reads and not priors.used(config):
    raise lookup.ConfigError(
      f"config.augment.{min(reads)} reads masks, which a classifier has with"
      " config.data.prior.use alone"
    )
  if priors.used(config):
    margin = config.data.prior.margin_voxels
    check_sizes("config.data.prior.margin_voxels", margin, low=0)
    if "tissues" in reads and config.data.prior.masks:
      raise lookup.ConfigError(
        "config.augment.tissues needs masks of every tissue; those of"
        " config.data.prior.masks are of a segmenter's classes"
      )
  logits = jax.ShapeDtypeStruct((1, classes), np.float32)
  labels = jax.ShapeDtypeStruct((1,), np.int32)
  check_traced("config.loss", make_loss(config), logits, labels)


KIND = Kind(
  task="classify",
  monitors=MONITORS,
  score=SCORE,
  make_loss=make_loss,
  open_dataset=open_dataset,
  make_task=make_task,
  check=check,
  model=Classifier,
)
