"""From the rows of cells to lines, differences and what they answer.

A cell gives rows of patients, of one of two kinds. Calls have label,
probability and threshold, and give the metrics of `binary.METRICS`. Values
have any measured number, and give its mean over patients.
"""

import dataclasses
import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from cadjax.core.files import Row
from cadjax.metrics import binary, intervals, recalibration

# (fold, seed) of a cell.
Key = tuple[int | None, int]
CALL = ("label", "probability", "threshold")
CALL_COLUMNS = ("label", "probability", "patient_id")
# Metrics that say nothing of who is called right.
UNCALLED = ("brier", *recalibration.PERFECT)
# Begins the names of values that small studies would have reported.
REPORTED = "reported_"
# Below this a bootstrap is too narrow to decide anything.
LEAST_PATIENTS = 20


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
  """One arm, or one of the several things that its measure reports.

  Attributes:
    rows: of each cell, by fold and seed.
    trained: patients that each cell was trained on; 0 or none if unknown.
    failed: cells whose training failed, see `trainings`, or that measure what
      such a training made.
  """

  rows: Mapping[Key, Sequence[Row]]
  trained: Mapping[Key, int] = dataclasses.field(default_factory=dict)
  failed: frozenset[Key] = frozenset()

  @functools.cached_property
  def is_call(self) -> bool:
    """Whether the rows are calls, not values."""
    some = (row for rows in self.rows.values() for row in rows)
    first = next(some, {})
    return all(key in first for key in CALL)

  def without(self, keys: Collection[Key]) -> "Line":
    """Returns the line without some of its cells."""
    rows = {key: some for key, some in self.rows.items() if key not in keys}
    return Line(rows, self.trained, self.failed.difference(keys))

  def has(self, metric: str) -> bool:
    """Tells whether the metric can be computed of the rows."""
    if self.is_call:
      return metric in binary.METRICS
    return any(metric in row for rows in self.rows.values() for row in rows)

  def patients(self, metric: str) -> int:
    """Returns the number of different patients that the metric is known of."""
    return len(
      set().union(*(_known(rows, metric) for rows in self.rows.values()))
    )


def estimate(line: Line, metric: str, *, draws: int = 2000) -> dict[str, Any]:
  """Returns the mean of a metric over the cells.

  The interval is the percentile bootstrap over patients, within folds and the
  same draw for every seed; of several seeds without folds, over the trainings,
  too, which of two or three is narrow. Of one training a fold it tells how
  much the metric would vary with other patients, not with another training.
  Calibration, whose bootstrap is too narrow, has that of `_calibration`.

  Returns:
    value, low, high, n_patients and cells, a list of fold, seed and value.
  """
  measured = {
    key: _measure(rows, metric, line.is_call, draws, key[0])
    for key, rows in line.rows.items()
  }
  values = {key: value for key, (value, _) in measured.items()}
  drawn = [drawn for _, drawn in measured.values()]
  if len(drawn) > 1 and not _has_folds(measured):
    drawn = _redrawn(drawn)
  value, (low, high) = _mean(values.values()), _percentiles(drawn)
  if line.is_call and metric in recalibration.PERFECT:
    value, low, high = _calibration(line, metric, values)
  return {
    "value": value,
    "low": low,
    "high": high,
    "n_patients": line.patients(metric),
    "cells": [
      {"fold": fold, "seed": seed, "value": value}
      for (fold, seed), value in values.items()
    ],
  } | _spread(line, metric)


def _calibration(
  line: Line, metric: str, values: Mapping[Key, float]
) -> tuple[float, float, float]:
  """Returns the mean over cells of slope or intercept, with its interval.

  Each cell has the interval of `intervals.calibration_interval`. Seeds have
  the same patients, so they are averaged; folds have other patients each, so
  they weigh as their intervals are narrow, and the distances to the bounds
  add up in squares (MOVER: Zou and Donner, Stat. Med. 27 (2008) 1693-1702).
  Equal weights would favour slopes that are too large, whose intervals are
  wide: of three folds of 63 patients their interval covers the slope in 90 %,
  this one in 95 % (simulated). Without folds the variance between trainings
  is added. Cells without an interval are left out; NaN if none has one.
  """
  folds: dict[int | None, list[tuple[float, float, float]]] = {}
  for key, value in values.items():
    rows = line.rows[key]
    labels, probs, patients = (
      np.array([row[name] for row in rows]) for name in CALL_COLUMNS
    )
    groups = patients if len(set(patients)) < len(rows) else None
    low, high = intervals.calibration_interval(metric, labels, probs, groups)
    if math.isfinite(low):
      folds.setdefault(key[0], []).append((value, value - low, high - value))
  if not folds:
    return _mean(values.values()), math.nan, math.nan
  means = np.array([np.mean(some, axis=0) for some in folds.values()])
  weights = 1 / (means[:, 1] + means[:, 2]) ** 2
  weights /= weights.sum()
  value = float(weights @ means[:, 0])
  square = weights**2 @ means[:, 1:] ** 2
  known = [one[0] for some in folds.values() for one in some]
  if not _has_folds(values) and len(known) > 1:
    z = scipy.stats.norm.ppf(0.975)
    square = square + z**2 * np.var(known, ddof=1) / len(known)
  below, above = np.sqrt(square)
  return value, value - float(below), value + float(above)


def _spread(line: Line, metric: str) -> dict[str, float | int]:
  """Where the middle 95 % of the values of rows lie; nothing of calls.

  And how many rows have a value, and how many, such as a distance from what
  was not found at all, have none and are not in the mean. Rows without the
  metric, as of cases that it was not measured on, are neither.
  """
  if line.is_call:
    return {}
  values = np.array(
    [r[metric] for rows in line.rows.values() for r in rows if metric in r],
    np.float64,
  )
  low, high = intervals.percentiles(values)
  return {
    "middle_low": low,
    "middle_high": high,
    "n_values": int(np.isfinite(values).sum()),
    "n_undefined": int((~np.isfinite(values)).sum()),
  }


def difference(
  a: Line, b: Line, metric: str, *, draws: int = 2000
) -> dict[str, Any]:
  """Returns line a less line b, on the same patients.

  With two folds or more, the interval is that of Nadeau and Bengio (Machine
  Learning 52 (2003) 239-281), a t interval over the folds whose variance is
  corrected for training sets that overlap. Seeds of a fold share its patients
  and are averaged first: taken as repetitions, they would shrink the variance
  without telling anything of other patients. The share of test patients is
  that of those that the metric is known of, to the smaller training set of
  the two lines. Of several seeds without folds, it is a t interval over the
  trainings to whose variance that of the patients is added, by the paired
  bootstrap. Of one training it is that bootstrap, and says nothing of another
  training.

  Args:
    a: the one.
    b: the other.
    metric: of both.
    draws: of the bootstrap.

  Returns:
    difference, low, high, p_value, method; bootstrap_low and bootstrap_high,
    n_patients, n_cells, n_values (folds or trainings) and for calls mcnemar,
    which is of the first seed.
  """
  keys = [key for key in a.rows if key in b.rows]
  pairs = {key: _shared(a, b, key, metric) for key in keys}
  measured = {
    key: tuple(
      _measure(rows, metric, a.is_call, draws, key[0]) for rows in both
    )
    for key, both in pairs.items()
    if both[0]
  }
  deltas = np.array([x[0] - y[0] for x, y in measured.values()])
  drawn = [x[1] - y[1] for x, y in measured.values()]
  low, high = _percentiles(drawn)
  result = {
    "metric": metric,
    "difference": _mean(deltas),
    "n_cells": len(measured),
    "n_patients": len(
      {str(row["patient_id"]) for key in measured for row in pairs[key][0]}
    ),
    "bootstrap_low": low,
    "bootstrap_high": high,
  }
  if _has_folds(measured):
    shares = [
      _share(a, b, key, {str(row["patient_id"]) for row in pairs[key][0]})
      for key in measured
    ]
    by_fold = _fold_means(list(measured), deltas)
    result |= corrected_t(by_fold, float(np.mean(shares)))
    result["difference"] = _mean(by_fold)
    result["method"] = f"Nadeau-Bengio over {len(by_fold)} folds"
    result["n_values"] = len(by_fold)
  elif len(deltas) > 1:
    mean = np.mean(drawn, axis=0)
    mean = mean[np.isfinite(mean)]
    spread = float(mean.var()) if mean.size else math.nan
    result |= over_trainings(deltas, spread)
    result["method"] = f"t over {len(deltas)} trainings and the patients"
    result["n_values"] = len(deltas)
  else:
    result |= {"low": low, "high": high, "p_value": _bootstrap_p(drawn)}
    result["n_values"] = len(deltas)
    result["method"] = "paired bootstrap over patients"
  if a.is_call and metric not in UNCALLED and _one_call_each(pairs):
    result["mcnemar"] = _mcnemar(pairs)
  return result


def corrected_t(deltas: np.ndarray, share: float) -> dict[str, float]:
  """Returns the corrected resampled t interval and test of a mean of 0.

  Args:
    deltas: [J], of the folds, one each.
    share: test patients for each training patient; NaN if unknown.

  Returns:
    low, high and p_value; NaN where the folds do not allow one.
  """
  deltas = np.asarray(deltas, np.float64)
  if deltas.size < 2:
    return _student(deltas, 0.0)
  return _student(deltas, (1 / deltas.size + share) * deltas.var(ddof=1))


def _share(a: Line, b: Line, key: Key, tested: Collection[str]) -> float:
  """Patients measured for each training patient; NaN if that is unknown."""
  trained = [line.trained.get(key, 0) for line in (a, b)]
  fewest = min(filter(None, trained), default=0)
  return len(tested) / fewest if fewest else math.nan


def _fold_means(keys: Sequence[Key], deltas: np.ndarray) -> np.ndarray:
  """Averages [cells] over the seeds of each fold, [folds]."""
  folds = np.array([fold for fold, _ in keys])
  return np.array([deltas[folds == fold].mean() for fold in np.unique(folds)])


def over_trainings(
  deltas: np.ndarray, patient_variance: float
) -> dict[str, float]:
  """Returns the t interval and test of a mean of 0 over trainings.

  All are tested on the same patients. The degrees of freedom are those of the
  trainings alone, so the test is not too bold and, where patients matter
  more than trainings, too careful.

  Args:
    deltas: [J], one of each training, two or more.
    patient_variance: of their mean, were other patients drawn.

  Returns:
    low, high and p_value; NaN where the trainings do not allow one.
  """
  deltas = np.asarray(deltas, np.float64)
  return _student(deltas, deltas.var(ddof=1) / deltas.size + patient_variance)


def _student(deltas: np.ndarray, variance: float) -> dict[str, float]:
  """Of a mean with that variance; NaN where nothing varies."""
  n = deltas.size
  if n < 2 or not np.isfinite(deltas).all() or not variance > 1e-24:
    return {"low": math.nan, "high": math.nan, "p_value": math.nan}
  mean = float(deltas.mean())
  error = math.sqrt(variance)
  half = float(scipy.stats.t.ppf(0.975, n - 1)) * error
  p_value = 2 * float(scipy.stats.t.sf(abs(mean) / error, n - 1))
  return {"low": mean - half, "high": mean + half, "p_value": p_value}


def holm(p_values: Sequence[float]) -> list[float]:
  """Returns Holm's adjusted p values; NaN stays, and counts as a test.

  Holm, Scand. J. Stat. 6 (1979) 65-70.
  """
  adjusted = [math.nan] * len(p_values)
  order = sorted(
    range(len(p_values)),
    key=lambda i: math.inf if math.isnan(p_values[i]) else p_values[i],
  )
  largest = 0.0
  for rank, i in enumerate(order):
    if math.isnan(p_values[i]):
      continue
    largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
    adjusted[i] = largest
  return adjusted


def decided(comparison: Mapping[str, Any]) -> bool:
  """Returns whether an adjusted comparison differs from no difference.

  Holm's p is below 0.05, the interval leaves out 0, and there are at least
  `LEAST_PATIENTS`.
  """
  p = comparison["p_holm"]
  low, high = comparison["low"], comparison["high"]
  if any(x is None or math.isnan(x) for x in (p, low, high)):
    return False
  enough = comparison["n_patients"] >= LEAST_PATIENTS
  return enough and p < 0.05 and (low > 0 or high < 0)


def _measure(
  rows: Sequence[Row], metric: str, is_call: bool, draws: int, fold: int | None
) -> tuple[float, np.ndarray]:
  """Returns the metric of one cell and its bootstrap [draws].

  Cells of one fold with the same patients are drawn alike, which is what
  makes differences of them paired.
  """
  rows = sorted(rows, key=lambda row: str(row["patient_id"]))
  patients = np.array([str(row["patient_id"]) for row in rows])
  seed = 0 if fold is None else fold + 1
  if is_call:
    labels = np.array([row["label"] for row in rows], int)
    probs = np.array([row["probability"] for row in rows], float)
    cut = rows[0]["threshold"]
    value = binary.binary_metrics(labels, probs, cut)[metric]
    drawn = intervals.bootstrap(
      labels,
      probs,
      cut,
      groups=patients,
      draws=draws,
      seed=seed,
      names=(metric,),
    )
    return float(value), drawn[metric]
  names, member = np.unique(patients, return_inverse=True)
  values = np.array([_number(row, metric) for row in rows])
  known = np.isfinite(values)
  counts = np.bincount(member[known], minlength=names.size)
  sums = np.bincount(member[known], values[known], names.size)
  means = sums[counts > 0] / counts[counts > 0]
  if not means.size:
    return math.nan, np.full(draws, math.nan)
  drawn = intervals.bootstrap_counts(
    np.zeros(means.size), draws=draws, seed=seed
  )
  return float(means.mean()), drawn @ means / means.size


def _number(row: Row, metric: str) -> float:
  value = row.get(metric)
  return math.nan if value is None else float(value)


def _known(rows: Sequence[Row], metric: str) -> set[str]:
  """Returns the patients with a call, or with a value of the metric."""
  return {
    str(row["patient_id"])
    for row in rows
    if all(key in row for key in CALL) or math.isfinite(_number(row, metric))
  }


def _shared(
  a: Line, b: Line, key: Key, metric: str
) -> tuple[list[Row], list[Row]]:
  """Returns the rows of the patients that both lines have in a cell."""
  both = _known(a.rows[key], metric) & _known(b.rows[key], metric)
  return tuple(
    [row for row in line.rows[key] if str(row["patient_id"]) in both]
    for line in (a, b)
  )


def _one_call_each(pairs: Mapping[Key, tuple]) -> bool:
  """Tells whether rows are patients, not slices of patients."""
  return all(
    len(rows) == len({str(row["patient_id"]) for row in rows})
    for both in pairs.values()
    for rows in both
  )


def _mcnemar(pairs: Mapping[Key, tuple]) -> dict[str, Any]:
  """McNemar's test of the calls on all folds, of one seed each."""
  right: tuple[list[bool], list[bool]] = ([], [])
  seen = set()
  for (fold, _), both in pairs.items():
    if fold in seen:
      continue
    seen.add(fold)
    calls = [
      {
        str(row["patient_id"]): (row["probability"] >= row["threshold"])
        == (row["label"] == 1)
        for row in rows
      }
      for rows in both
    ]
    for name in calls[0]:
      right[0].append(calls[0][name])
      right[1].append(calls[1][name])
  return intervals.mcnemar(np.array(right[0]), np.array(right[1]))


def _has_folds(cells: Iterable[Key]) -> bool:
  return len({fold for fold, _ in cells}) > 1


def _redrawn(drawn: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
  """Draws the cells, too, with replacement, again for every draw."""
  stacked = np.stack(drawn)
  picks = np.random.default_rng(0).integers(len(drawn), size=stacked.shape)
  return list(np.take_along_axis(stacked, picks, 0))


def _bootstrap_p(drawn: Sequence[np.ndarray]) -> float:
  """Two-sided achieved significance level of a mean difference of 0."""
  if not drawn:
    return math.nan
  mean = np.mean(drawn, axis=0)
  mean = mean[np.isfinite(mean)]
  if not mean.size or np.ptp(mean) == 0:
    return math.nan
  tail = min((mean <= 0).sum(), (mean >= 0).sum())
  return min(1.0, 2 * (float(tail) + 1) / (mean.size + 1))


def _percentiles(drawn: Sequence[np.ndarray]) -> tuple[float, float]:
  """Central interval of the mean over cells; NaN where nothing varies."""
  if not len(drawn):
    return math.nan, math.nan
  mean = np.mean(drawn, axis=0)
  low, high = intervals.percentiles(mean)
  return (math.nan, math.nan) if high - low < 1e-12 else (low, high)


def _mean(values) -> float:
  values = np.array(list(values), np.float64)
  values = values[np.isfinite(values)]
  return float(values.mean()) if values.size else math.nan
