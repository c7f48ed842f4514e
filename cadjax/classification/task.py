"""What training a classifier needs beside the loop."""

from collections.abc import Callable

import jax
import ml_collections
import numpy as np

from cadjax.classification import priors
from cadjax.data.input_pipeline import Row
from cadjax.metrics import binary
from cadjax.segmentation import losses as segmentation_losses
from cadjax.training import losses, steps
from cadjax.training.task import (
  Task,
  evaluate_split,
  make_augment,
  make_model,
  task_of,
)
from data_prep.errors import UserError

# What early stopping may watch on validation; all but the loss grow.
MONITORS = {
  "classify": ("loss", "accuracy", "balanced_accuracy", "roc_auc"),
  "segment": ("dice",),
}
# config.task: the score of a step, see `steps.make_train_step`.
SCORES = {
  "classify": ("accuracy", steps.hits),
  "segment": ("dice", steps.overlaps),
}


def make_loss(
  config: ml_collections.ConfigDict,
) -> Callable[[jax.Array, steps.Target], jax.Array]:
  """Makes the loss of a config, (logits, target) -> [N]."""
  if task_of(config) == "classify":
    return losses.get_loss(config.loss)
  loss_fn = segmentation_losses.deep_supervision(
    segmentation_losses.get_segment_loss(config.loss)
  )
  return lambda logits, target: loss_fn(logits, *target)


def validation_metrics(
  rows: list[Row], logits: np.ndarray, loss_fn: Callable
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
  ids, patient = np.unique(
    [row["patient_id"] for row in rows], return_inverse=True
  )
  # Several scans of one patient count as one: their mean, and CAD if any is.
  probs = np.bincount(patient, probs) / np.bincount(patient)
  sick = np.zeros(ids.size, labels.dtype)
  np.maximum.at(sick, patient, labels)
  values = binary.binary_metrics(sick, probs, 0.5)
  return {"loss": float(loss.mean())} | {
    name: float(values[name]) for name in MONITORS["classify"] if name != "loss"
  }


def _classification(config, dataset, devices) -> Task:
  for split in ("train", "validation"):
    labels = {row["label"] for row in dataset.rows[split]}
    if len(labels) < 2:
      found = f"only the label {labels.pop()}" if labels else "no label"
      raise UserError(
        f"{dataset.path}: the {split} split has {found}; a classifier needs"
        " cases of both classes: give the scans their labels and build the data"
        " set again"
      )
  ndim, batch_size = config.model.ndim, config.data.batch_size
  shape, slices = dataset.shape, config.data.slices_per_volume
  if ndim == 2 and not 1 <= slices <= shape[0]:
    raise UserError(
      f"config.data.slices_per_volume = {slices}; a volume has {shape[0]}"
      " slices"
    )
  slices = slices if ndim == 2 else None
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
    ),
    prepare=steps.make_prepare(
      ndim=ndim,
      window_hu=window_hu,
      augment=make_augment(config.augment),
      prior=prior,
    ),
    loss_fn=loss_fn,
    score=SCORES["classify"],
    validate=validate,
  )
