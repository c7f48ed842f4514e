"""From logits to a calibrated probability and a threshold.

All that is fitted here is fitted on the validation set. Each choice comes
with its origin in words, which the reports repeat.
"""

import dataclasses
import math

import numpy as np
import scipy.optimize
import scipy.special

from cadjax.metrics import binary, intervals
from cadjax.metrics.recalibration import logit

POOLINGS = ("mean", "vote", "max", "topk")
TEMPERATURES = (0.05, 20.0)
RELIABILITY_BINS = 10


@dataclasses.dataclass(frozen=True)
class Temperature:
  """The temperature of a calibration.

  Attributes:
    value: above 0; 1 leaves probabilities as they are.
    origin: how it was fitted, or why it was not.
    fitted: whether it was; if not, the value is 1.
  """

  value: float
  origin: str
  fitted: bool


def softmax_margin(logits: np.ndarray) -> np.ndarray:
  """Returns logit of the probability of CAD, [...], of logits [..., 2]."""
  logits = np.asarray(logits, np.float64)
  return logits[..., 1] - logits[..., 0]


def calibrate(probs: np.ndarray, temperature: float) -> np.ndarray:
  """Returns sigmoid(logit(probs) / temperature), same shape, in [0, 1]."""
  return scipy.special.expit(logit(probs) / temperature)


def fit_temperature(
  labels: np.ndarray,
  probs: np.ndarray,
  *,
  weights: np.ndarray | None = None,
) -> Temperature:
  """Returns the temperature with the least negative log likelihood.

  Guo et al., ICML 2017. It is not fitted where no finite optimum exists:
  without both classes, after perfect separation at 0.5 (the optimum is 0) and
  for a ranking no better than chance (the optimum is infinite).

  Args:
    labels: [n], 0 or 1, of the validation set.
    probs: [n], uncalibrated probability of CAD.
    weights: [n], at least 0; all 1 if left out.
  """
  labels, probs = binary.checked(labels, probs)
  weights = np.ones_like(probs) if weights is None else np.asarray(weights)
  if not labels.size:
    return _not_fitted("validation is empty")
  if np.unique(labels).size < 2:
    return _not_fitted("validation holds one class only")
  margins = (2 * labels - 1) * logit(probs)
  # The loss is convex in 1/T; its slope at 0 and at infinity shows whether
  # the optimum lies between.
  if (margins >= 0).all():
    return _not_fitted("validation is separated without error")
  if (weights * margins).sum() <= 0:
    return _not_fitted("validation is ranked no better than chance")

  def loss(log_temperature: float) -> float:
    scaled = margins / math.exp(log_temperature)
    return float((weights * np.logaddexp(0, -scaled)).sum())

  found = scipy.optimize.minimize_scalar(
    loss,
    bounds=np.log(TEMPERATURES),
    method="bounded",
    options={"xatol": 1e-6},
  )
  origin = "least negative log likelihood on validation"
  if np.abs(found.x - np.log(TEMPERATURES)).min() < 1e-3:
    origin += ", at the end of its range"
  return Temperature(math.exp(found.x), origin, fitted=True)


def _not_fitted(why: str) -> Temperature:
  return Temperature(1.0, f"not fitted: {why}", fitted=False)


def check_criterion(criterion: str) -> tuple[str, float]:
  """Returns (name, value) of "youden", "f1", "sensitivity>=x" or a number.

  Raises:
    ValueError: anything else, or a value outside [0, 1].
  """
  text = str(criterion).replace(" ", "").lower()
  if text in ("youden", "f1"):
    return text, math.nan
  name, sign, number = text.rpartition(">=")
  try:
    value = float(number)
  except ValueError:
    value = math.nan
  if not 0 <= value <= 1 or (sign and name not in ("sensitivity", "recall")):
    raise ValueError(
      f"threshold criterion {criterion!r} is unknown; use youden, f1,"
      " sensitivity>=0.9 or a number from 0 to 1"
    )
  return ("sensitivity", value) if sign else ("fixed", value)


def choose_threshold(
  labels: np.ndarray,
  probs: np.ndarray,
  criterion: str = "youden",
  *,
  unit: str = "patients",
) -> tuple[float, str]:
  """Returns (threshold, origin) chosen on the validation patients given.

  Candidates lie midway between neighbouring probabilities; of equally good
  ones the nearest to 0.5 wins.

  Args:
    labels: [n], 0 or 1, of the validation set, never of the test set.
    probs: [n], calibrated probability of CAD.
    criterion: "youden" (largest sensitivity + specificity), "f1" (largest
      F1), "sensitivity>=x" (most specific that is sensitive enough), or a
      number, which is taken as it is.
    unit: what is counted, for the words of the origin.
  """
  name, wanted = check_criterion(criterion)
  if name == "fixed":
    return wanted, "fixed by the user, not chosen on data"
  labels, probs = binary.checked(labels, probs)
  if not labels.size:
    return 0.5, f"fixed at 0.5: no validation {unit}"
  if np.unique(labels).size < 2:
    return 0.5, "fixed at 0.5: validation holds one class only"
  values = np.unique(probs)
  middle = (values[:-1] + values[1:]) / 2
  # Between adjacent floats the mean may round down onto the lower one.
  middle = np.where(middle > values[:-1], middle, values[1:])
  candidates = np.concatenate([[values[0] / 2], middle])
  sick, well = np.sort(probs[labels == 1]), np.sort(probs[labels == 0])
  fn, tn = np.searchsorted(sick, candidates), np.searchsorted(well, candidates)
  rates = binary.count_metrics(sick.size - fn, well.size - tn, fn, tn)
  score = {
    "youden": rates["recall"] + rates["specificity"],
    "f1": rates["f1"],
    "sensitivity": np.where(
      rates["recall"] >= wanted, rates["specificity"], -1.0
    ),
  }[name]
  best = score >= score.max() - 1e-12
  distance = np.where(best, np.abs(candidates - 0.5), np.inf)
  return float(candidates[distance.argmin()]), (
    f"{criterion} on {labels.size} validation {unit}"
  )


def aggregate_slices(
  probs: np.ndarray, pooling: str = "mean", *, top_k: int | None = None
) -> np.ndarray:
  """Returns one score in [0, 1] per volume, [...], of slices [..., S].

  Args:
    probs: probability of CAD of each slice.
    pooling: "mean"; "vote", the share of slices at or above 0.5; "max"; or
      "topk", the mean of the `top_k` largest.
    top_k: at least 1; a tenth of the slices, rounded up, if left out.

  Raises:
    ValueError: an unknown pooling, no slice, or top_k below 1.
  """
  probs = np.asarray(probs, np.float64)
  slices = probs.shape[-1]
  top_k = top_slices(slices) if top_k is None else top_k
  if not slices or top_k < 1:
    raise ValueError(f"cannot pool {slices} slices with top_k {top_k}")
  if pooling == "mean":
    return probs.mean(-1)
  if pooling == "vote":
    return (probs >= 0.5).mean(-1)
  if pooling == "max":
    return probs.max(-1)
  if pooling == "topk":
    return np.sort(probs, -1)[..., -min(top_k, slices) :].mean(-1)
  raise ValueError(f"unknown pooling {pooling!r}; known: {', '.join(POOLINGS)}")


def top_slices(slices: int) -> int:
  """Returns how many slices "topk" takes: a tenth, rounded up."""
  return math.ceil(slices / 10)


def reliability(
  labels: np.ndarray, probs: np.ndarray, *, bins: int = RELIABILITY_BINS
) -> list[dict[str, float | int]]:
  """Returns the filled bins of a reliability diagram, in ascending order.

  Each has "n", "k" (CAD in it), "mean_prob", "rate" = k / n and the Wilson
  interval "low", "high" of the rate. Bins are [i, i + 1) / bins, the last
  one closed.
  """
  labels, probs = binary.checked(labels, probs)
  index = np.minimum((probs * bins).astype(int), bins - 1)
  table = []
  for i in np.unique(index):
    inside = index == i
    k, n = int(labels[inside].sum()), int(inside.sum())
    low, high = intervals.wilson(k, n)
    table.append(
      {
        "n": n,
        "k": k,
        "mean_prob": float(probs[inside].mean()),
        "rate": k / n,
        "low": low,
        "high": high,
      }
    )
  return table
