"""Agreement of two readings: of categories, and of measured values."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from sklearn.metrics import cohen_kappa_score

from cadjax.metrics import intervals
from cadjax.metrics.intervals import Interval, MeanInterval

# Of a normal distribution, the share of 95 % lies within so many deviations.
_WITHIN = 1.96


def weighted_kappa(
  one: Sequence[str],
  other: Sequence[str],
  categories: Sequence[str],
  *,
  draws: int = 2000,
  seed: int = 0,
) -> Interval:
  """Returns Cohen's kappa of ordered categories, with linear weights.

  Cohen, Psychol. Bull. 70 (1968) 213-220. 1 is full agreement, 0 what the
  frequencies alone give, so also a reader who always says the same; a
  disagreement counts by the number of categories between both.

  Args:
    one: category of each patient.
    other: the same patients by another reader.
    categories: all there are, from the lowest to the highest.
    draws: of the bootstrap over patients.
    seed: of numpy's generator.

  Returns:
    kappa with its percentile interval; "undefined" without patients, or where
    both readings are one and the same category throughout.
  """
  rank = {name: place for place, name in enumerate(categories)}
  pairs = np.array(
    [[rank[a], rank[b]] for a, b in zip(one, other, strict=True)]
  )
  value = _kappa(pairs, len(categories))
  if math.isnan(value):
    return Interval(value, math.nan, math.nan, "undefined", None, len(pairs))
  rng = np.random.default_rng(seed)
  drawn = np.array(
    [
      _kappa(pairs[rng.integers(len(pairs), size=len(pairs))], len(categories))
      for _ in range(draws)
    ]
  )
  low, high = intervals.percentiles(drawn)
  method = "bootstrap over patients"
  return Interval(value, low, high, method, None, len(pairs))


def _kappa(pairs: np.ndarray, count: int) -> float:
  if not len(pairs) or len(np.unique(pairs)) < 2:
    return math.nan
  return float(
    cohen_kappa_score(
      pairs[:, 0], pairs[:, 1], labels=range(count), weights="linear"
    )
  )


@dataclasses.dataclass(frozen=True)
class Limits:
  """How far a measurement is from another one of the same things.

  Attributes:
    bias: mean over patients of the mean difference of each.
    low: lower limit of agreement, the bias less 1.96 standard deviations.
    high: upper limit, likewise.
    n: measurements of both.
  """

  bias: MeanInterval
  low: float
  high: float
  n: int


def limits(
  measured: np.ndarray,
  truth: np.ndarray,
  patients: np.ndarray,
  *,
  seed: int = 0,
) -> Limits:
  """Returns bias and limits of agreement.

  Bland & Altman, Lancet 327 (1986) 307-310; the standard deviation is that of
  all differences. Values that are NaN in one of both are left out.

  Args:
    measured: [n].
    truth: [n], in the same unit.
    patients: [n], whose they are.
    seed: of the bootstrap.
  """
  difference = np.asarray(measured, float) - np.asarray(truth, float)
  known = np.isfinite(difference)
  bias = intervals.mean_interval(difference, patients=patients, seed=seed)
  if known.sum() < 2:
    return Limits(bias, math.nan, math.nan, int(known.sum()))
  mean, spread = difference[known].mean(), difference[known].std(ddof=1)
  return Limits(
    bias,
    float(mean - _WITHIN * spread),
    float(mean + _WITHIN * spread),
    int(known.sum()),
  )
