"""Test-time normalisation: the norms' statistics of another data set.

Li et al., Pattern Recognition 80 (2018) 109-117 ("AdaBN"): weights stay as
they were trained, and no label is used.
"""

import dataclasses

import jax

from cadjax.classification import priors
from cadjax.classification.classifier import Classifier
from cadjax.data import input_pipeline
from cadjax.models import layers
from cadjax.training import steps, task
from data_prep.errors import UserError


def adapt_norms(
  trained: Classifier, dataset: input_pipeline.Dataset, batch_size: int
) -> Classifier:
  """Returns a classifier with the norms' statistics of another data set.

  Mean and variance are those of all of its batches together, see
  `layers.pool_statistics`.

  Args:
    trained: with batch norm, and no masks beside the volume.
    dataset: on the same grid; all of its splits are used.
    batch_size: volumes at a time; the last, smaller batch is left out unless
      it is the only one.

  Raises:
    UserError: the model has no batch norm, or sees masks.
  """
  if priors.used(trained.config):
    raise UserError(
      f"{trained.path} sees masks beside the volume (config.data.prior): its"
      " statistics cannot be adapted"
    )
  if not trained.variables["batch_stats"]:
    raise UserError(
      f"{trained.path} has no batch norm (config.model.norm ="
      f" {trained.config.model.norm!r}), so there are no statistics to adapt"
    )
  config = trained.config
  model = task.make_model(config)

  @jax.jit
  def statistics(variables, image):
    examples = steps.flatten_slices(
      steps.window(image, tuple(config.data.window_hu)), config.model.ndim
    )
    _, updated = model.apply(
      variables, examples, train=True, mutable=["batch_stats"]
    )
    return layers.batch_statistics(
      updated["batch_stats"], variables["batch_stats"]
    )

  rows = [row for split in input_pipeline.SPLITS for row in dataset.rows[split]]
  size = min(batch_size, len(rows))
  found = []
  for i in range(0, len(rows) - size + 1, size):
    batch = dataset.batch(rows[i : i + size], size)
    found.append(statistics(trained.variables, batch["image"]))
  pooled = layers.pool_statistics(found)
  return dataclasses.replace(
    trained, variables=trained.variables | {"batch_stats": pooled}
  )
