"""Detection of lesions: what counts as a hit, and FROC curves.

One rule for everything that points at lesions. A finding is a set of points:
one where it is a peak, a stretch of centreline, or the voxels of a mask. It
lies on a lesion if enough of its points are near that lesion. One finding
hits at most one lesion and one lesion is hit by at most one finding, so that
marking everything hits nothing.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.spatial
import scipy.stats

from cadjax.metrics import intervals
from cadjax.metrics.intervals import Difference, Interval

# Of a finding's points, those that must lie on a lesion.
LEAST_SHARE = 0.5
# False positives a scan at which sensitivity is reported, as in LUNA16
# (Setio et al., Med. Image Anal. 42 (2017) 1-13) but for its 1/8.
RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
HIT, DUPLICATE, FALSE = "hit", "duplicate", "false positive"


def distances(
  found: Sequence[np.ndarray],
  lesions: Sequence[np.ndarray],
  tolerance_mm: float,
  least_share: float = LEAST_SHARE,
) -> np.ndarray:
  """Returns how far every finding lies from every lesion.

  Args:
    found: [K, 3] mm each, the points of a finding.
    lesions: [L, 3] mm each, the points of a lesion.
    tolerance_mm: a point this near to a lesion is on it.
    least_share: of a finding's points, in (0, 1]; with less on a lesion the
      finding is not on it.

  Returns:
    [findings, lesions] mm: the mean distance of the points that are on the
    lesion to the nearest point of it; infinite where the finding is not on it.
  """
  apart = np.full((len(found), len(lesions)), np.inf)
  for k, lesion in enumerate(lesions):
    tree = scipy.spatial.cKDTree(np.asarray(lesion, float).reshape(-1, 3))
    for j, points in enumerate(found):
      away, _ = tree.query(np.asarray(points, float).reshape(-1, 3))
      on = away <= tolerance_mm
      if on.mean() >= least_share:
        apart[j, k] = away[on].mean()
  return apart


@dataclasses.dataclass(frozen=True)
class Matches:
  """Findings against the lesions that are there.

  Attributes:
    hits: (finding, lesion) of every lesion that was hit.
    misses: lesions that no finding hit.
    false_positives: findings on no lesion.
    duplicates: findings on a lesion that another finding hit.
  """

  hits: tuple[tuple[int, int], ...]
  misses: tuple[int, ...]
  false_positives: tuple[int, ...]
  duplicates: tuple[int, ...]


def match(apart: np.ndarray) -> Matches:
  """Matches findings with lesions, one to one.

  As many hits as possible, and of those matchings the least distance. What is
  left on a lesion that is hit already is a duplicate, not a false positive,
  as is usual in scoring detection.

  Args:
    apart: [findings, lesions] of `distances`.

  Returns:
    numbers of findings and lesions, in their order there.
  """
  near = np.isfinite(apart)
  # A hit is worth more than any distance that it may add up to.
  worth = np.where(near, 1e6 - np.where(near, apart, 0.0), 0.0)
  rows, columns = scipy.optimize.linear_sum_assignment(worth, maximize=True)
  hits = tuple(
    (int(j), int(k)) for j, k in zip(rows, columns, strict=True) if near[j, k]
  )
  used, hit = {j for j, _ in hits}, {k for _, k in hits}
  rest = [j for j in range(near.shape[0]) if j not in used]
  return Matches(
    hits=hits,
    misses=tuple(k for k in range(near.shape[1]) if k not in hit),
    false_positives=tuple(j for j in rest if not near[j].any()),
    duplicates=tuple(j for j in rest if near[j].any()),
  )


@dataclasses.dataclass(frozen=True, eq=False)
class ScanFindings:
  """What was found in one scan, for a FROC curve.

  Attributes:
    patient_id: of its patient.
    lesions: how many the scan has.
    scores: [n], comparable between scans, in descending order.
    outcomes: [n] of `HIT`, `DUPLICATE` and `FALSE`; see `outcomes`.
  """

  patient_id: str
  lesions: int
  scores: np.ndarray
  outcomes: Sequence[str]


def outcomes(on: np.ndarray) -> list[str]:
  """Returns what each finding adds to those before it.

  A threshold keeps the findings from the first to some last one, so each one
  must have one outcome whatever comes after it: it is a hit if one more
  lesion is hit with it than without it, in the largest matching.

  Args:
    on: bool [findings, lesions], whether a finding is on a lesion, in
      descending order of their scores.
  """
  found, before = [], 0
  for j, row in enumerate(on):
    part = on[: j + 1].astype(float)
    rows, columns = scipy.optimize.linear_sum_assignment(part, maximize=True)
    count = int(part[rows, columns].sum())
    found.append(HIT if count > before else DUPLICATE if row.any() else FALSE)
    before = count
  return found


@dataclasses.dataclass(frozen=True)
class Froc:
  """A free-response ROC curve.

  Attributes:
    false_positives: [m] a scan, ascending, from 0.
    sensitivity: [m] share of all lesions that are hit, in [0, 1].
    thresholds: [m] of the score; infinite for the first.
    at: sensitivity by rate of `RATES`, with intervals over patients.
    mean: of the sensitivities at these rates.
    best: the largest sensitivity that the number of findings per scan allows.
  """

  false_positives: np.ndarray
  sensitivity: np.ndarray
  thresholds: np.ndarray
  at: dict[float, Interval]
  mean: Interval
  best: float


def froc(
  scans: Sequence[ScanFindings],
  *,
  most: int | None = None,
  draws: int = 2000,
  seed: int = 0,
) -> Froc:
  """Returns sensitivity against false positives a scan, with intervals.

  The sensitivity at a rate is the largest that any threshold of the score
  reaches with at most so many false positives a scan on average: a step
  curve, not interpolated. Duplicates count as neither. The intervals are
  percentiles of a bootstrap over patients, drawn apart with and without
  lesions, each draw with its own thresholds; the percentiles are widened for
  few patients as in `expanded_tail`.

  Args:
    scans: one per patient or several.
    most: findings kept of a scan, for `best`; None for no limit.
    draws: number of resamples.
    seed: of numpy's generator.

  Raises:
    ValueError: no scan has a lesion.
  """
  curve = _Curve(scans)
  false_positives, sensitivity = curve.steps()
  drawn = curve.sensitivities(curve.weights(draws, seed))
  values = curve.sensitivities(np.ones((1, len(curve.patients))))[0]
  bounds = [
    _bounds(value, some, curve.n_sick)
    for value, some in zip(
      [*values, values.mean()],
      [*drawn.T, drawn.mean(1)],
      strict=True,
    )
  ]
  return Froc(
    false_positives,
    sensitivity,
    np.append(np.inf, curve.thresholds),
    dict(zip(RATES, bounds, strict=False)),
    bounds[-1],
    best_sensitivity([scan.lesions for scan in scans], most),
  )


def froc_difference(
  a: Sequence[ScanFindings],
  b: Sequence[ScanFindings],
  *,
  draws: int = 2000,
  seed: int = 0,
) -> Difference:
  """Returns the paired difference, a less b, of the mean FROC sensitivity.

  Args:
    a: scans.
    b: the same scans in the same order, read in another way.
    draws: number of resamples, the same patients of both.
    seed: of numpy's generator.
  """
  value, drawn, n = _paired(a, b, draws, seed)
  return _difference(value.mean(), drawn.mean(1), n)


def froc_differences(
  a: Sequence[ScanFindings],
  b: Sequence[ScanFindings],
  *,
  draws: int = 2000,
  seed: int = 0,
) -> dict[float, Difference]:
  """Returns the paired difference, a less b, of sensitivity at every rate.

  Args:
    a: scans.
    b: the same scans in the same order, read in another way.
    draws: number of resamples, the same patients of both.
    seed: of numpy's generator.

  Returns:
    by rate of `RATES`; as `froc_difference`, not adjusted for their number.
  """
  values, drawn, n = _paired(a, b, draws, seed)
  return {
    rate: _difference(value, some, n)
    for rate, value, some in zip(RATES, values, drawn.T, strict=True)
  }


def _paired(
  a: Sequence[ScanFindings], b: Sequence[ScanFindings], draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray, int]:
  """Differences at `RATES`, [rates] and [draws, rates], and sick patients."""
  one, other = _Curve(a), _Curve(b)
  weights = one.weights(draws, seed)
  whole = np.ones((1, len(one.patients)))
  value, drawn = (
    one.sensitivities(w) - other.sensitivities(w) for w in (whole, weights)
  )
  return value[0], drawn, one.n_sick


def _difference(value: float, drawn: np.ndarray, n: int) -> Difference:
  found = _bounds(float(value), drawn, n)
  return Difference(found.value, found.low, found.high)


def threshold_at(scans: Sequence[ScanFindings], rate: float) -> float:
  """Returns the lowest score with at most so many false positives a scan.

  Args:
    scans: on which it is chosen.
    rate: false positives a scan on average.

  Returns:
    a score that a finding must reach; infinite where even the highest one is
    false too often.
  """
  curve = _Curve(scans)
  false_positives, _ = curve.steps()
  last = int(np.flatnonzero(false_positives <= rate)[-1])
  thresholds = np.append(np.inf, curve.thresholds)
  return float(thresholds[last])


def best_sensitivity(lesions: Sequence[int], most: int | None) -> float:
  """Returns the sensitivity of perfect findings, at most `most` of a scan.

  Args:
    lesions: how many each scan has.
    most: None for no limit.
  """
  counts = np.asarray(lesions)
  kept = counts if most is None else np.minimum(counts, most)
  return float(kept.sum() / counts.sum())


def expanded_tail(n: int, confidence: float = 0.95) -> float:
  """Returns the tail of a percentile bootstrap that allows for few units.

  Percentiles are too near by the factor that separates the normal from
  Student's t distribution and n - 1 from n: Hesterberg, Am. Stat. 69 (2015)
  371-386, section 5.3 (the expanded percentile interval).

  Args:
    n: units that are drawn, at least 2.
    confidence: of the interval.
  """
  t = scipy.stats.t.ppf(0.5 + confidence / 2, n - 1)
  return float(scipy.stats.norm.cdf(-math.sqrt(n / (n - 1)) * t))


def _bounds(value: float, drawn: np.ndarray, n: int) -> Interval:
  low = high = math.nan
  method = "undetermined"
  if n > 1 and np.ptp(drawn) > 1e-12:
    tail = expanded_tail(n)
    low, high = (float(x) for x in np.quantile(drawn, [tail, 1 - tail]))
    method = "bootstrap over patients"
  return Interval(float(value), low, high, method, None, n)


class _Curve:
  """The findings of all scans in one descending order."""

  def __init__(self, scans: Sequence[ScanFindings]):
    names = [scan.patient_id for scan in scans]
    self.patients, self._owner = np.unique(names, return_inverse=True)
    self._lesions = np.bincount(
      self._owner, [scan.lesions for scan in scans], len(self.patients)
    )
    self._n_scans = np.bincount(self._owner, minlength=len(self.patients))
    self.n_sick = int((self._lesions > 0).sum())
    if not self.n_sick:
      raise ValueError("no scan has a lesion; a FROC curve needs some")
    count = [len(scan.outcomes) for scan in scans]
    scores = np.concatenate([np.asarray(s.scores, float) for s in scans])
    outcome = np.array([x for scan in scans for x in scan.outcomes], object)
    order = np.argsort(-scores, kind="stable")
    self._patient = np.repeat(self._owner, count)[order]
    self._hit = (outcome == HIT)[order]
    self._false = (outcome == FALSE)[order]
    scores = scores[order]
    # Equal scores are kept or dropped together.
    self._last = np.append(np.diff(scores) != 0, True)[: len(scores)]
    self.thresholds = scores[self._last]

  def weights(self, draws: int, seed: int) -> np.ndarray:
    """Returns how often each patient is drawn, [draws, patients]."""
    return intervals.bootstrap_counts(
      (self._lesions > 0).astype(int), draws=draws, seed=seed
    )

  def steps(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns the curve: false positives a scan, sensitivity, both [m]."""
    false, sensitivity = self._sums(np.ones((1, len(self.patients))))
    return false[0], sensitivity[0]

  def sensitivities(self, weights: np.ndarray) -> np.ndarray:
    """Returns the sensitivity at each of `RATES`, [draws, rates]."""
    step = max(1, intervals.CHUNK // max(1, self._hit.size))
    found = []
    for start in range(0, len(weights), step):
      false, sensitivity = self._sums(weights[start : start + step])
      # Both only grow, so the last threshold within a rate is the best one.
      found.append(
        np.stack(
          [
            np.where(false <= rate + 1e-12, sensitivity, 0).max(1)
            for rate in RATES
          ],
          1,
        )
      )
    return np.concatenate(found)

  def _sums(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    each = weights[:, self._patient]
    sums = [
      np.cumsum(each * some, 1)[:, self._last]
      for some in (self._false, self._hit)
    ]
    totals = (weights @ self._n_scans, weights @ self._lesions)
    return tuple(
      np.pad(part, ((0, 0), (1, 0))) / total[:, None]
      for part, total in zip(sums, totals, strict=True)
    )
