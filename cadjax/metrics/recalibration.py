"""Calibration slope and intercept, also under rows of case weights.

Cox's recalibration (Biometrika 45 (1958) 562-565) is a logistic regression of
the labels on the logit of the probabilities. Its slope is below 1 where the
probabilities are too extreme and above 1 where they are too moderate. The
intercept, also called calibration in the large, is fitted with the slope kept
at 1: it is above 0 where the probabilities are too low on average and below 0
where they are too high. Perfectly calibrated probabilities have 1 and 0 (Van
Calster et al., BMC Med. 17 (2019) 230), where the expected calibration error
(ECE) is above 0, the more so the fewer the cases. The median slope of 63
calibrated cases is within 0.1 of 1, though their mean is 1.1 (simulated).

Logits are float64 numpy on the host; weights count the cases.
"""

import math
from collections.abc import Callable

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats

# Keeps the logit of a vote of 0 or 1 finite, and any other as it is.
PROB_EPS = 1e-12
# What perfectly calibrated probabilities have.
PERFECT = {"calibration_slope": 1.0, "calibration_intercept": 0.0}
NEWTON_STEPS = 100
TOLERANCE = 1e-9


def logit(probs: np.ndarray) -> np.ndarray:
  """Returns log(p / (1 - p)) with p kept within `PROB_EPS` of 0 and 1."""
  probs = np.asarray(probs, np.float64)
  return scipy.special.logit(np.clip(probs, PROB_EPS, 1 - PROB_EPS))


def slopes(
  labels: np.ndarray, logits: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """Returns the calibration slope of each row of weights, [B].

  NaN where there is no finite one: one class only, equal logits, or classes
  that the logits separate without error.

  Args:
    labels: [n], 0 or 1.
    logits: [n], finite.
    weights: [B, n], at least 0.
  """
  return _lines(labels, logits, weights)[1]


def intercepts(
  labels: np.ndarray, logits: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """Returns the calibration intercept of each row of weights, [B].

  NaN where one class is absent. Arguments are those of `slopes`.
  """
  labels, logits, weights = _checked(labels, logits, weights)
  sick = weights @ labels
  found = np.full(len(weights), math.nan)
  rows = np.flatnonzero((sick > 0) & (sick < weights.sum(1)))
  moved = weights[rows]
  shift = np.zeros(rows.size)
  most = np.abs(logits).max(initial=0) + 50
  low, high = np.full(rows.size, -most), np.full(rows.size, most)
  for _ in range(NEWTON_STEPS):
    probs = scipy.special.expit(shift[:, None] + logits)
    gain = sick[rows] - (moved * probs).sum(1)
    curve = (moved * probs * (1 - probs)).sum(1)
    low = np.where(gain > 0, shift, low)
    high = np.where(gain > 0, high, shift)
    before = shift
    shift = before + gain / np.maximum(curve, 1e-300)
    # Far from its top the likelihood is straight, and Newton's step is wild.
    inside = (low < shift) & (shift < high)
    shift = np.where(inside, shift, (low + high) / 2)
    if np.abs(shift - before).max(initial=0) < TOLERANCE:
      break
  found[rows] = shift
  return found


def slope_interval(
  labels: np.ndarray,
  logits: np.ndarray,
  groups: np.ndarray | None = None,
  confidence: float = 0.95,
) -> tuple[float, float]:
  """Returns the interval of the calibration slope.

  Of independent cases it is that of the profile likelihood, with the quantile
  of F(1, n - 2) in place of chi squared's: of 20 to 63 cases it covers the
  slope in 94 to 97 % (simulated). Of groups it is a t interval with the
  variance between groups (Liang and Zeger, Biometrika 73 (1986) 13-22).

  Args:
    labels: [n], 0 or 1.
    logits: [n], finite.
    groups: [n], the patient of each case; cases are independent if left out.
    confidence: of the interval.

  Returns:
    low and high; NaN where the slope is undefined or there is one group.
  """
  labels, logits, weights = _checked(labels, logits, np.ones((1, len(labels))))
  shift, slope = (x[0] for x in _lines(labels, logits, weights))
  if math.isnan(slope):
    return math.nan, math.nan
  if groups is not None:
    design = np.stack([np.ones_like(logits), logits], 1)
    half = _half_width(labels, shift + slope * logits, design, groups)
    half *= _quantile(groups, confidence)
    return slope - half, slope + half

  def likelihood(value: float) -> float:
    best = intercepts(labels, value * logits, weights)[0]
    return _likelihood(labels, best + value * logits)

  step = _half_width(
    labels,
    shift + slope * logits,
    np.stack([np.ones_like(logits), logits], 1),
    np.arange(labels.size),
  )
  fall = scipy.stats.f.ppf(confidence, 1, labels.size - 2) / 2
  return _likely(likelihood, slope, step, fall)


def intercept_interval(
  labels: np.ndarray,
  logits: np.ndarray,
  groups: np.ndarray | None = None,
  confidence: float = 0.95,
) -> tuple[float, float]:
  """Returns the interval of the calibration intercept.

  Arguments, values and method are those of `slope_interval`, but that the
  likelihood has chi squared's quantile: 94 to 96 % (simulated).
  """
  labels, logits, weights = _checked(labels, logits, np.ones((1, len(labels))))
  shift = intercepts(labels, logits, weights)[0]
  if math.isnan(shift):
    return math.nan, math.nan
  one = np.ones((labels.size, 1))
  if groups is not None:
    half = _half_width(labels, shift + logits, one, groups)
    half *= _quantile(groups, confidence)
    return shift - half, shift + half
  step = _half_width(labels, shift + logits, one, np.arange(labels.size))
  fall = scipy.stats.chi2.ppf(confidence, 1) / 2
  return _likely(
    lambda value: _likelihood(labels, value + logits), shift, step, fall
  )


def _lines(
  labels: np.ndarray, logits: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Fits labels ~ shift + slope * logits; returns shifts and slopes [B]."""
  labels, logits, weights = _checked(labels, logits, weights)
  shifts, found = np.full((2, len(weights)), math.nan)
  rows = np.flatnonzero(_overlap(labels, logits, weights))
  if not rows.size:
    return shifts, found
  weights = weights[rows]
  # Of order 1, so that the two parameters are, too.
  scale = logits.std()
  x = logits / scale
  line = np.zeros((2, rows.size))
  rate = weights @ labels / weights.sum(1)
  line[0] = scipy.special.logit(rate)
  best = _weighted_likelihood(labels, x, weights, line)
  for _ in range(NEWTON_STEPS):
    probs = scipy.special.expit(line[0][:, None] + line[1][:, None] * x)
    error, curve = weights * (labels - probs), weights * probs * (1 - probs)
    gain = np.stack([error.sum(1), error @ x])
    a, b, c = curve.sum(1), curve @ x, curve @ (x * x)
    scaled = np.maximum(a * c - b * b, 1e-300)
    step = np.stack([c * gain[0] - b * gain[1], a * gain[1] - b * gain[0]])
    step /= scaled
    # Newton's step may overshoot: halved until the likelihood grows.
    for _ in range(30):
      reached = _weighted_likelihood(labels, x, weights, line + step)
      worse = reached < best - 1e-12 * np.abs(best)
      if not worse.any():
        break
      step[:, worse] /= 2
    line += step
    best = reached
    if np.abs(step).max() < TOLERANCE:
      break
  shifts[rows], found[rows] = line[0], line[1] / scale
  return shifts, found


def _overlap(
  labels: np.ndarray, logits: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """Whether both classes are there and overlap, so that the slope is finite.

  Albert and Anderson, Biometrika 71 (1984) 1-10.
  """
  sick = labels == 1
  ends = []
  for chosen in (sick, ~sick):
    some, x = weights[:, chosen] > 0, logits[chosen]
    ends.append(np.where(some, x, math.inf).min(1, initial=math.inf))
    ends.append(np.where(some, x, -math.inf).max(1, initial=-math.inf))
  low_sick, high_sick, low_well, high_well = ends
  return (low_sick < high_well) & (low_well < high_sick)


def _weighted_likelihood(
  labels: np.ndarray, x: np.ndarray, weights: np.ndarray, line: np.ndarray
) -> np.ndarray:
  margins = (2 * labels - 1) * (line[0][:, None] + line[1][:, None] * x)
  return -(weights * np.logaddexp(0, -margins)).sum(1)


def _likelihood(labels: np.ndarray, odds: np.ndarray) -> float:
  return float(-np.logaddexp(0, -(2 * labels - 1) * odds).sum())


def _likely(
  likelihood: Callable[[float], float],
  best: float,
  step: float,
  fall: float,
) -> tuple[float, float]:
  """Where the log likelihood is `fall` below that of the best value."""
  least = likelihood(best) - fall
  ends = []
  for sign in (-1, 1):
    far = step
    while likelihood(best + sign * far) > least:
      far *= 2
    ends.append(
      scipy.optimize.brentq(
        lambda value: likelihood(value) - least, best, best + sign * far
      )
    )
  return float(ends[0]), float(ends[1])


def _half_width(
  labels: np.ndarray, odds: np.ndarray, design: np.ndarray, groups: np.ndarray
) -> float:
  """Standard error of the last parameter by the variance between groups.

  Args:
    labels: [n], 0 or 1.
    odds: [n], the fitted log odds.
    design: [n, parameters].
    groups: [n].
  """
  probs = scipy.special.expit(odds)
  names, member = np.unique(groups, return_inverse=True)
  if names.size < 2:
    return math.nan
  scores = np.zeros((names.size, design.shape[1]))
  np.add.at(scores, member, (labels - probs)[:, None] * design)
  inverse = np.linalg.inv(design.T @ (design * (probs * (1 - probs))[:, None]))
  between = scores.T @ scores * names.size / (names.size - 1)
  return math.sqrt((inverse @ between @ inverse)[-1, -1])


def _quantile(groups: np.ndarray, confidence: float) -> float:
  freedom = np.unique(groups).size - 1
  return float(scipy.stats.t.ppf(0.5 + confidence / 2, max(freedom, 1)))


def _checked(
  labels: np.ndarray, logits: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  return (
    np.asarray(labels, np.float64),
    np.asarray(logits, np.float64),
    np.asarray(weights, np.float64),
  )
