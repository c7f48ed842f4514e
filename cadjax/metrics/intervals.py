"""Intervals and paired tests for few patients.

A bootstrap draw is a row of weights, and every metric takes weights, so that
thousands of draws are a few matrix products.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Self

import numpy as np
import scipy.optimize
import scipy.stats

from cadjax.metrics import binary, recalibration

PROPORTIONS = ("accuracy", "precision", "recall", "specificity")
# Metrics of both recall and specificity.
TWO_RATES = ("balanced_accuracy", "f1", "mcc")
# Elements of the largest temporary array of one bootstrap chunk (32 MB).
CHUNK = 4_000_000
# Below it the interval of a mean is Student's t, not the bootstrap's.
FEW_PATIENTS = 30


def interval_text(
  value: float | None,
  low: float | None,
  high: float | None,
  *,
  digits: int = 3,
  sign: bool = False,
) -> str:
  """Returns "0.857 [0.601, 0.960]", the text of an interval everywhere.

  Args:
    value: None and NaN are "undefined".
    low: lower bound; None and NaN are "[no interval]".
    high: upper bound.
    digits: after the point.
    sign: whether positive numbers get a plus, as differences do.
  """
  if value is None or math.isnan(value):
    return "undefined"
  form = f"{'+' if sign else ''}.{digits}f"
  if low is None or math.isnan(low):
    return f"{value:{form}} [no interval]"
  return f"{value:{form}} [{low:{form}}, {high:{form}}]"


@dataclasses.dataclass(frozen=True)
class Interval:
  """A measured value with its confidence interval.

  Attributes:
    value: NaN where undefined.
    low: lower bound, NaN where there is none.
    high: upper bound, NaN where there is none.
    method: how the bounds were computed; "undetermined" where nothing varies,
      "undefined" where there is no value.
    k: successes of a proportion, None for every other value.
    n: the cases, or the patients with a value.
  """

  value: float
  low: float
  high: float
  method: str
  k: int | None
  n: int

  @classmethod
  def from_dict(cls, entry: Mapping[str, Any]) -> Self:
    """Returns the interval that `files.strict` wrote as this mapping.

    Args:
      entry: of a JSON file, with None for NaN; further keys are ignored.
    """
    return cls(**_fields(cls, entry))

  def text(
    self, digits: int = 3, *, sign: bool = False, count: bool = False
  ) -> str:
    """Returns "0.857 [0.601, 0.960] (12/14)"; see `interval_text`.

    Args:
      digits: after the point.
      sign: whether positive numbers get a plus.
      count: whether n follows, too, where the value is not a proportion.
    """
    text = interval_text(
      self.value, self.low, self.high, digits=digits, sign=sign
    )
    if math.isnan(self.value):
      return text
    if self.k is not None:
      return f"{text} ({self.k}/{self.n})"
    return f"{text} ({self.n})" if count else text


@dataclasses.dataclass(frozen=True)
class MeanInterval(Interval):
  """The mean over patients of a measured value, with its interval.

  Attributes:
    n_patients: all patients, those without a value included.
  """

  n_patients: int


@dataclasses.dataclass(frozen=True)
class Difference:
  """A paired difference with its confidence interval.

  Attributes:
    difference: NaN where undefined.
    low: lower bound, NaN where there is none.
    high: upper bound, NaN where there is none.
  """

  difference: float
  low: float
  high: float

  @classmethod
  def from_dict(cls, entry: Mapping[str, Any]) -> Self:
    """Returns the difference of a JSON file; see `Interval.from_dict`."""
    return cls(**_fields(cls, entry))

  def text(self, digits: int = 3) -> str:
    """Returns "+0.120 [-0.010, +0.250]"; see `interval_text`."""
    return interval_text(
      self.difference, self.low, self.high, digits=digits, sign=True
    )


def _fields(cls: type, entry: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the arguments of a dataclass, with NaN for the undefined floats."""
  return {
    field.name: (
      math.nan
      if field.type is float and entry[field.name] is None
      else entry[field.name]
    )
    for field in dataclasses.fields(cls)
  }


def with_intervals(
  labels: np.ndarray,
  probs: np.ndarray,
  threshold: float = 0.5,
  *,
  groups: np.ndarray | None = None,
  draws: int = 2000,
  seed: int = 0,
  confidence: float = 0.95,
) -> dict[str, Interval]:
  """Returns the interval of every metric of `binary.METRICS`.

  Without `groups`, cases are independent patients: proportions have Wilson's
  interval, calibration slope and intercept that of their profile likelihood,
  the rest a stratified bootstrap's percentiles. With `groups` (slices of
  patients), since slices of one patient are not independent, calibration has
  the interval of the variance between patients and all others that of the
  bootstrap over groups. Where all draws agree, as after perfect
  separation, a bootstrap interval of width 0 would claim certainty: a score
  or posterior interval takes its place, and `method` says which. So it does
  for metrics of recall and specificity where one of them is 0 or 1.
  """
  labels, probs = binary.checked(labels, probs)
  values = binary.binary_metrics(labels, probs, threshold)
  draws_of = bootstrap(
    labels,
    probs,
    threshold,
    groups=groups,
    draws=draws,
    seed=seed,
    names=set(binary.METRICS) - set(recalibration.PERFECT),
  )
  counts = binary.confusion(labels, probs, threshold)
  # Where one class is called without error, its rate never varies in a draw.
  both = 0 < labels.sum() < labels.size
  certain = both and groups is None and 0 in counts.values()
  result = {}
  for name, value in values.items():
    k, n = _proportion(name, counts)
    if groups is None and name in PROPORTIONS:
      (low, high), method = wilson(k, n, confidence), "wilson"
    elif name in recalibration.PERFECT:
      low, high = calibration_interval(name, labels, probs, groups, confidence)
      method = "profile likelihood" if groups is None else "between patients"
      method = "undetermined" if math.isnan(low) else method
    else:
      low, high = percentiles(draws_of[name], confidence)
      method = "bootstrap" if groups is None else "bootstrap over patients"
      if high - low < 1e-12 or (certain and name in TWO_RATES):
        low, high, method = _without_spread(
          name, value, counts, confidence, independent=groups is None
        )
    if math.isnan(value):
      low, high, method = math.nan, math.nan, "undefined"
    result[name] = Interval(value, low, high, method, k, n)
  return result


def wilson(k: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
  """Returns Wilson's score interval of k successes in n; NaN for n = 0.

  Wilson, J. Am. Stat. Assoc. 22 (1927) 209-212.
  """
  if n <= 0:
    return math.nan, math.nan
  z = scipy.stats.norm.ppf(0.5 + confidence / 2)
  rate, scale = k / n, 1 + z * z / n
  center = (rate + z * z / (2 * n)) / scale
  half = z * math.sqrt(rate * (1 - rate) / n + (z / (2 * n)) ** 2) / scale
  low = 0.0 if k == 0 else max(0.0, center - half)
  high = 1.0 if k == n else min(1.0, center + half)
  return float(low), float(high)


def calibration_interval(
  name: str,
  labels: np.ndarray,
  probs: np.ndarray,
  groups: np.ndarray | None = None,
  confidence: float = 0.95,
) -> tuple[float, float]:
  """Returns the interval of the calibration slope or intercept.

  Percentiles of the bootstrap would not do: of 63 cases they cover the slope
  in 82 to 93 % (simulated), and stratified ones, whose share of CAD is always
  the same, the intercept in 61 to 83 %.

  Args:
    name: a key of `recalibration.PERFECT`.
    labels: [n], 0 or 1.
    probs: [n], probability of CAD.
    groups: [n], the patient of each case; each its own if left out.
    confidence: of the interval.
  """
  find = {
    "calibration_slope": recalibration.slope_interval,
    "calibration_intercept": recalibration.intercept_interval,
  }[name]
  return find(labels, recalibration.logit(probs), groups, confidence)


def auc_interval(
  auc: float, positives: int, negatives: int, confidence: float = 0.95
) -> tuple[float, float]:
  """Returns Newcombe's score interval of a ROC AUC, also at AUC 0 or 1.

  Newcombe, Stat. Med. 25 (2006) 559-573, method 5. Used where the bootstrap
  has nothing to resample, because the classes are separated without error.
  """
  z = scipy.stats.norm.ppf(0.5 + confidence / 2)
  n = (positives + negatives) / 2 - 1

  def excess(x: float) -> float:
    spread = 1 + n * (1 - x) / (2 - x) + n * x / (1 + x)
    variance = x * (1 - x) * spread / (positives * negatives)
    return (auc - x) ** 2 - z * z * variance

  eps = 1e-12
  low, high = 0.0, 1.0
  if auc > 0:
    low = scipy.optimize.brentq(excess, eps, auc - eps)
  if auc < 1:
    high = scipy.optimize.brentq(excess, auc + eps, 1 - eps)
  return float(low), float(high)


def bootstrap_counts(
  labels: np.ndarray, *, draws: int = 2000, seed: int = 0
) -> np.ndarray:
  """Returns how often each unit is drawn, int [draws, n].

  Units are drawn with replacement within each class (stratified), so every
  draw keeps both classes at their sizes.
  """
  labels = np.asarray(labels)
  rng = np.random.default_rng(seed)
  counts = np.zeros((draws, labels.size), np.int64)
  for label in np.unique(labels):
    (units,) = np.nonzero(labels == label)
    share = np.full(units.size, 1 / units.size)
    counts[:, units] = rng.multinomial(units.size, share, size=draws)
  return counts


def bootstrap(
  labels: np.ndarray,
  probs: np.ndarray,
  threshold: float = 0.5,
  *,
  groups: np.ndarray | None = None,
  draws: int = 2000,
  seed: int = 0,
  names: Collection[str] = binary.METRICS,
) -> dict[str, np.ndarray]:
  """Returns {metric: [draws]} of a stratified bootstrap over groups.

  For calibration it is not stratified: the share of CAD must vary, as it does
  between samples.

  Args:
    labels: [n], 0 or 1.
    probs: [n], probability of CAD.
    threshold: at or above it a case is called CAD.
    groups: [n], the patient of each case; whole patients are drawn, in the
      stratum of their largest label. Each case is its own group if left out.
    draws: number of resamples.
    seed: of numpy's generator; equal seeds give equal draws.
    names: the metrics wanted.
  """
  labels, probs = binary.checked(labels, probs)
  groups = np.arange(labels.size) if groups is None else np.asarray(groups)
  _, member = np.unique(groups, return_inverse=True)
  strata = np.zeros(member.max(initial=-1) + 1, np.int64)
  np.maximum.at(strata, member, labels)
  step = max(1, CHUNK // max(1, labels.size))
  drawn = {}
  for wanted, of in (
    (set(names) - set(recalibration.PERFECT), strata),
    (set(names) & set(recalibration.PERFECT), np.zeros_like(strata)),
  ):
    if not wanted:
      continue
    counts = bootstrap_counts(of, draws=draws, seed=seed)
    parts = [
      binary.weighted_metrics(
        labels, probs, threshold, counts[i : i + step][:, member], wanted
      )
      for i in range(0, draws, step)
    ]
    drawn |= {
      name: np.concatenate([p[name] for p in parts]) for name in parts[0]
    }
  return {name: drawn[name] for name in binary.METRICS if name in drawn}


def percentiles(
  draws: np.ndarray, confidence: float = 0.95
) -> tuple[float, float]:
  """Returns the central interval of the defined draws; NaN if none is."""
  draws = np.asarray(draws)[np.isfinite(draws)]
  if not draws.size:
    return math.nan, math.nan
  tail = (1 - confidence) / 2
  low, high = np.quantile(draws, [tail, 1 - tail])
  return float(low), float(high)


def mean_interval(
  values: np.ndarray,
  *,
  patients: np.ndarray | None = None,
  proportion: bool = False,
  draws: int = 2000,
  seed: int = 0,
  confidence: float = 0.95,
) -> MeanInterval:
  """Returns the mean over patients of a measured value, with its interval.

  Each patient has the mean of its defined values; patients without one are
  left out and counted. The interval is Student's t below `FEW_PATIENTS`, and
  the percentile bootstrap over patients from there on. The bootstrap is too
  narrow for few patients: of 6, 10 and 20 from a normal population its 95 %
  interval covers the mean in 85, 90 and 92 %, Student's in 95 %. Of a
  gamma(2) population, which is skewed, it is 83, 89 and 92 %, Student's 91,
  93 and 94 % (tests/metrics/intervals_test.py). Student's bounds may lie
  outside the range of the values. The mean difference of paired values has
  the interval of `mean_interval(a - b)`.

  Args:
    values: [n], NaN where undefined.
    patients: [n], the patient of each value; each its own if left out.
    proportion: each patient has 0 or 1; then the interval is Wilson's. With
      a patient in between (of several values) it is as for other values.
    draws: number of resamples.
    seed: of numpy's generator.
    confidence: of the interval.

  Returns:
    the mean, where k is the number of patients with 1 for Wilson's interval,
    else None. The bounds are NaN ("undetermined") where all draws agree or
    there is one patient; the value, too ("undefined"), where there is none.
  """
  values = np.asarray(values, np.float64)
  ids = np.arange(values.size) if patients is None else np.asarray(patients)
  names, member = np.unique(ids, return_inverse=True)
  defined = np.isfinite(values)
  counts = np.bincount(member[defined], minlength=names.size)
  sums = np.bincount(member[defined], values[defined], names.size)
  means = sums[counts > 0] / counts[counts > 0]
  n, k = means.size, None
  value = float(means.mean()) if n else math.nan
  low, high, method = math.nan, math.nan, "undetermined" if n else "undefined"
  if n and proportion and np.isin(means, (0, 1)).all():
    k = int(means.sum())
    (low, high), method = wilson(k, n, confidence), "wilson"
  elif n and np.ptp(means) > 0 and n < FEW_PATIENTS:
    half = scipy.stats.t.ppf(0.5 + confidence / 2, n - 1)
    half *= means.std(ddof=1) / math.sqrt(n)
    low, high, method = float(value - half), float(value + half), "student"
  elif n and np.ptp(means) > 0:
    drawn = bootstrap_counts(np.zeros(n), draws=draws, seed=seed)
    low, high = percentiles(drawn @ means / n, confidence)
    method = "bootstrap over patients"
  return MeanInterval(value, low, high, method, k, n, names.size)


def mean_table(
  rows: Sequence[Mapping[str, Any]],
  by: Sequence[str],
  names: Sequence[str],
  *,
  proportions: Sequence[str] = (),
  draws: int = 2000,
  seed: int = 0,
  confidence: float = 0.95,
) -> list[dict[str, Any]]:
  """Returns one row for each group of rows: `mean_interval` of each value.

  Args:
    rows: of cases, with patient_id, the keys of `by` and measured values; a
      row without a value counts as undefined (a class not annotated, say).
    by: the columns that identify a row of the table, such as class or layer.
    names: the measured values.
    proportions: those of them that are 0 or 1 by case.
    draws: number of resamples.
    seed: of numpy's generator.
    confidence: of the interval.

  Returns:
    in the order of their first appearance, {key: group, ..., value: interval}.
  """
  groups: dict[tuple, list[Mapping[str, Any]]] = {}
  for row in rows:
    groups.setdefault(tuple(row[key] for key in by), []).append(row)
  options = {"draws": draws, "seed": seed, "confidence": confidence}
  return [
    dict(zip(by, group, strict=True))
    | {
      name: mean_interval(
        np.array([row.get(name, math.nan) for row in some], np.float64),
        patients=np.array([str(row["patient_id"]) for row in some]),
        proportion=name in proportions,
        **options,
      )
      for name in names
    }
    for group, some in groups.items()
  ]


def mcnemar(
  correct_a: np.ndarray, correct_b: np.ndarray
) -> dict[str, int | float]:
  """Returns the exact two-sided McNemar test of two sets of calls.

  Args:
    correct_a: bool [n], whether A called each patient correctly.
    correct_b: bool [n], the same patients for B.

  Returns:
    {"only_a_correct", "only_b_correct", "p_value"}; p is 1 where they never
    differ.
  """
  a, b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
  only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
  tail = scipy.stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
  return {
    "only_a_correct": only_a,
    "only_b_correct": only_b,
    "p_value": min(1.0, 2 * float(tail)),
  }


def paired_bootstrap(
  labels: np.ndarray,
  probs_a: np.ndarray,
  probs_b: np.ndarray,
  *,
  threshold_a: float = 0.5,
  threshold_b: float = 0.5,
  draws: int = 2000,
  seed: int = 0,
  confidence: float = 0.95,
) -> dict[str, Difference]:
  """Returns A minus B for every metric of `binary.METRICS`.

  The bounds are NaN where the difference is undefined or no draw differs.
  Both are evaluated on the same resampled patients, so what they share
  cancels. Labels and probabilities are [n], one patient each, same order.
  """
  point_a = binary.binary_metrics(labels, probs_a, threshold_a)
  point_b = binary.binary_metrics(labels, probs_b, threshold_b)
  a = bootstrap(labels, probs_a, threshold_a, draws=draws, seed=seed)
  b = bootstrap(labels, probs_b, threshold_b, draws=draws, seed=seed)
  result = {}
  for name in binary.METRICS:
    difference = point_a[name] - point_b[name]
    low, high = percentiles(a[name] - b[name], confidence)
    # Where no draw differs, nothing is known, as in `with_intervals`.
    if math.isnan(difference) or high - low < 1e-12:
      low, high = math.nan, math.nan
    result[name] = Difference(difference, low, high)
  return result


def _proportion(name: str, counts: Mapping[str, int]) -> tuple[int | None, int]:
  tp, fp, fn, tn = (counts[key] for key in ("tp", "fp", "fn", "tn"))
  return {
    "accuracy": (tp + tn, tp + fp + fn + tn),
    "precision": (tp, tp + fp),
    "recall": (tp, tp + fn),
    "specificity": (tn, tn + fp),
  }.get(name, (None, tp + fp + fn + tn))


def _without_spread(
  name: str,
  value: float,
  counts: Mapping[str, int],
  confidence: float,
  *,
  independent: bool,
) -> tuple[float, float, str]:
  """Returns (low, high, method) where bootstrap draws do not vary enough."""
  positives = counts["tp"] + counts["fn"]
  negatives = counts["tn"] + counts["fp"]
  if not independent or not positives or not negatives:
    return math.nan, math.nan, "undetermined"
  if name == "roc_auc":
    return *auc_interval(value, positives, negatives, confidence), "newcombe"
  if name == "pr_auc":
    # Boyd, Eng and Page, ECML PKDD 2013: binomial in the positives.
    low, high = wilson(value * positives, positives, confidence)
    return low, high, "wilson over the positives"
  if name not in TWO_RATES:
    return math.nan, math.nan, "undetermined"
  rng = np.random.default_rng(0)
  recall = rng.beta(counts["tp"] + 0.5, counts["fn"] + 0.5, 20_000)
  specificity = rng.beta(counts["tn"] + 0.5, counts["fp"] + 0.5, 20_000)
  draws = binary.count_metrics(
    recall * positives,
    (1 - specificity) * negatives,
    (1 - recall) * positives,
    specificity * negatives,
  )[name]
  low, high = percentiles(draws, confidence)
  return min(low, value), max(high, value), "jeffreys"
