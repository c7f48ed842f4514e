"""Agreement of categories and of values, against other implementations."""

import math

import numpy as np
import pytest

from cadjax.metrics import agreement

ORDER = ("a", "b", "c", "d")


def test_kappa_is_that_of_cohen():
  # Two raters of Cohen (1968), as counts of pairs.
  counts = [[40, 5, 1, 0], [6, 30, 4, 1], [0, 8, 20, 3], [1, 0, 2, 19]]
  one, other = [], []
  for i, row in enumerate(counts):
    for j, count in enumerate(row):
      one += count * [ORDER[i]]
      other += count * [ORDER[j]]
  table = np.array(counts) / np.sum(counts)
  weight = np.abs(np.subtract.outer(range(4), range(4)))
  chance = np.outer(table.sum(1), table.sum(0))
  expected = 1 - (weight * table).sum() / (weight * chance).sum()
  found = agreement.weighted_kappa(one, other, ORDER, draws=400)
  assert found.value == pytest.approx(expected)
  assert found.low < found.value < found.high
  assert found.n == 140
  again = agreement.weighted_kappa(one, other, ORDER, draws=400)
  assert again == found


def test_far_disagreements_cost_more():
  near = agreement.weighted_kappa("aabbccdd", "abbccddd", ORDER, draws=10)
  far = agreement.weighted_kappa("aabbccdd", "adbbccda", ORDER, draws=10)
  assert near.value > far.value


@pytest.mark.parametrize("readings", ["", "a", "aaaa"])
def test_without_two_categories_there_is_no_kappa(readings):
  found = agreement.weighted_kappa(readings, readings, ORDER, draws=10)
  assert math.isnan(found.value)
  assert found.method == "undefined"


def test_limits_of_agreement():
  rng = np.random.default_rng(0)
  truth = rng.uniform(0, 100, 500)
  measured = truth + rng.normal(3, 5, 500)
  measured[:5] = np.nan
  found = agreement.limits(measured, truth, np.arange(500))
  assert found.n == 495
  assert found.bias.low < 3 < found.bias.high
  assert found.low == pytest.approx(3 - 1.96 * 5, abs=1)
  assert found.high == pytest.approx(3 + 1.96 * 5, abs=1)


def test_one_value_has_no_limits():
  found = agreement.limits(np.array([1.0]), np.array([0.0]), np.array([0]))
  assert found.bias.value == 1
  assert math.isnan(found.low)
