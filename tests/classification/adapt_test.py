"""Test-time normalisation against its oracle, the batch's own statistics."""

import dataclasses

import numpy as np
import pytest
from flax import traverse_util

from cadjax import tasks
from cadjax.classification import adapt
from cadjax.evaluation import common
from cadjax.training import steps, task
from data_prep.errors import UserError


@pytest.fixture(scope="module")
def trained(tiny_workdir):
  return tasks.load_model(tiny_workdir)


@pytest.fixture(scope="module")
def dataset(trained):
  return common.open_data(trained)[0]


def few(dataset, count):
  rows = {"train": dataset.rows["train"][:count], "validation": [], "test": []}
  return dataclasses.replace(dataset, rows=rows)


def test_of_one_batch_the_norms_do_as_in_training(trained, dataset):
  some = few(dataset, 4)
  adapted = adapt.adapt_norms(trained, some, 4)
  image = some.batch(some.rows["train"], 4)["image"]
  examples = steps.window(image, tuple(trained.config.data.window_hu))
  (logits, _), _ = task.make_model(trained.config).apply(
    trained.variables, examples, train=True, mutable=["batch_stats"]
  )
  np.testing.assert_allclose(
    adapted.logits(image)[:, 0], logits, rtol=1e-3, atol=5e-4
  )
  assert np.abs(adapted.logits(image) - trained.logits(image)).max() > 1e-3


def test_statistics_are_those_of_all_batches_and_weights_stay(trained, dataset):
  rows = dataset.rows["train"]
  both = adapt.adapt_norms(trained, few(dataset, 4), 2)
  first, second = (
    adapt.adapt_norms(
      trained,
      dataclasses.replace(
        dataset, rows={"train": part, "validation": [], "test": []}
      ),
      2,
    )
    for part in (rows[:2], rows[2:4])
  )
  both_flat, a, b = (
    traverse_util.flatten_dict(x.variables["batch_stats"])
    for x in (both, first, second)
  )
  for path, value in both_flat.items():
    expected = (a[path] + b[path]) / 2
    if path[-1] == "var":
      means = [x[(*path[:-1], "mean")] for x in (a, b)]
      expected = expected + np.var(means, axis=0)
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)
  assert both.variables["params"] is trained.variables["params"]


def test_the_first_norm_gets_the_variance_of_all_cases(trained, dataset):
  """Its maps do not depend on statistics: the batches' size changes nothing.

  The mean of the variances of single cases is smaller than that of all.
  """
  one, four = (adapt.adapt_norms(trained, few(dataset, 4), n) for n in (1, 4))
  found, expected = (
    x.variables["batch_stats"]["norm_stem"] for x in (one, four)
  )
  for name in ("mean", "var"):
    np.testing.assert_allclose(
      found[name], expected[name], rtol=2e-3, atol=1e-5
    )


def test_a_model_without_batch_norm_is_refused(trained, dataset):
  bare = dataclasses.replace(
    trained, variables=trained.variables | {"batch_stats": {}}
  )
  with pytest.raises(UserError, match="has no batch norm"):
    adapt.adapt_norms(bare, dataset, 2)
