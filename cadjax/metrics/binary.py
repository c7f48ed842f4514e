"""Metrics of a binary classifier, also under rows of case weights.

Class 1 is CAD. Everything is float64 numpy on the host. A quantity that the
data do not define (the ROC AUC of one class, the precision of no positive
call) is NaN, never 0.
"""

import math
from collections.abc import Collection

import numpy as np

from cadjax.metrics import recalibration

METRICS = (
  "accuracy",
  "balanced_accuracy",
  "precision",
  "recall",
  "specificity",
  "f1",
  "roc_auc",
  "pr_auc",
  "mcc",
  "brier",
  *recalibration.PERFECT,
)


def binary_metrics(
  labels: np.ndarray,
  probs: np.ndarray,
  threshold: float = 0.5,
  *,
  weights: np.ndarray | None = None,
) -> dict[str, float]:
  """Returns every metric of `METRICS`; NaN where undefined.

  A case is called CAD where its probability is at or above the threshold.
  `pr_auc` is the average precision; calibration slope and intercept are those
  of `recalibration`, 1 and 0 for perfectly calibrated probabilities. With one
  class only in the labels, ranking, balanced accuracy, MCC and these two are
  NaN, and the slope is, too, where the classes are separated without error.

  Args:
    labels: [n], 0 or 1.
    probs: [n], probability of CAD, in [0, 1].
    threshold: in [0, 1].
    weights: [n], at least 0; all 1 if left out.

  Raises:
    ValueError: a label is not 0 or 1, or a probability is not in [0, 1].
  """
  labels, probs = checked(labels, probs)
  weights = np.ones_like(probs) if weights is None else np.asarray(weights)
  rows = weighted_metrics(labels, probs, threshold, weights[None])
  return {name: float(value[0]) for name, value in rows.items()}


def weighted_metrics(
  labels: np.ndarray,
  probs: np.ndarray,
  threshold: float,
  weights: np.ndarray,
  names: Collection[str] = METRICS,
) -> dict[str, np.ndarray]:
  """Returns {metric: [B]} for B rows of case weights [B, n].

  Labels and probabilities are [n], as in `binary_metrics`; `names` are the
  metrics wanted, of which calibration takes the most time.
  """
  labels, probs = checked(labels, probs)
  weights = np.asarray(weights, np.float64)
  called = probs >= threshold
  sick = labels == 1
  cells = np.stack([sick & called, ~sick & called, sick & ~called], 1)
  tp, fp, fn = (weights @ cells.astype(np.float64)).T
  tn = weights @ (~sick & ~called).astype(np.float64)
  total = weights.sum(1)
  roc_auc, pr_auc = _ranking(sick, probs, weights)
  values = count_metrics(tp, fp, fn, tn) | {
    "roc_auc": roc_auc,
    "pr_auc": pr_auc,
    "brier": _ratio(weights @ (probs - labels) ** 2, total),
  }
  logits = recalibration.logit(probs)
  for name, fit in (
    ("calibration_slope", recalibration.slopes),
    ("calibration_intercept", recalibration.intercepts),
  ):
    if name in names:
      values[name] = fit(labels, logits, weights)
  return {name: values[name] for name in METRICS if name in names}


def expected_brier(probs: np.ndarray) -> float:
  """Returns the Brier score expected of perfectly calibrated probabilities.

  It is the mean of p (1 - p) (Spiegelhalter, Stat. Med. 5 (1986) 421-433).

  Args:
    probs: [n], in [0, 1]; NaN for n = 0.
  """
  probs = np.asarray(probs, np.float64)
  return float((probs * (1 - probs)).mean()) if probs.size else math.nan


def count_metrics(
  tp: np.ndarray, fp: np.ndarray, fn: np.ndarray, tn: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns the metrics of confusion counts [B] (weights allowed).

  MCC is 0 where both classes are present but only one is called, its limit.
  """
  tp, fp, fn, tn = (np.asarray(x, np.float64) for x in (tp, fp, fn, tn))
  recall, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
  both = (tp + fn > 0) & (tn + fp > 0)
  product = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
  mcc = np.where(product > 0, _ratio(tp * tn - fp * fn, product), 0.0)
  return {
    "accuracy": _ratio(tp + tn, tp + fp + fn + tn),
    "balanced_accuracy": (recall + specificity) / 2,
    "precision": _ratio(tp, tp + fp),
    "recall": recall,
    "specificity": specificity,
    "f1": _ratio(2 * tp, 2 * tp + fp + fn),
    "mcc": np.where(both, mcc, np.nan),
  }


def confusion(
  labels: np.ndarray, probs: np.ndarray, threshold: float
) -> dict[str, int]:
  """Returns the counts tp, fp, fn and tn."""
  labels, probs = checked(labels, probs)
  called, sick = probs >= threshold, labels == 1
  return {
    "tp": int((sick & called).sum()),
    "fp": int((~sick & called).sum()),
    "fn": int((sick & ~called).sum()),
    "tn": int((~sick & ~called).sum()),
  }


def checked(
  labels: np.ndarray, probs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns labels as int64 and probabilities as float64, both [n].

  Raises:
    ValueError: sizes differ, a label is not 0 or 1, or a probability is not
      in [0, 1] (NaN included).
  """
  labels = np.asarray(labels).astype(np.int64).reshape(-1)
  probs = np.asarray(probs, np.float64).reshape(-1)
  if labels.size != probs.size:
    raise ValueError(f"{labels.size} labels for {probs.size} probabilities")
  if not np.isin(labels, (0, 1)).all():
    raise ValueError(f"labels must be 0 or 1, got {np.unique(labels)}")
  if not ((probs >= 0) & (probs <= 1)).all():
    raise ValueError("probabilities must be numbers in [0, 1]")
  return labels, probs


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
  top, bottom = np.broadcast_arrays(np.asarray(top, np.float64), bottom)
  blank = np.full(top.shape, np.nan)
  return np.divide(top, bottom, out=blank, where=bottom > 0)


def _ranking(
  sick: np.ndarray, probs: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the ROC AUC and average precision of each row of weights."""
  if not probs.size:
    return (np.full(len(weights), np.nan),) * 2
  order = np.argsort(-probs, kind="stable")
  # Ties share one operating point.
  starts = np.nonzero(np.diff(-probs[order], prepend=-np.inf))[0]
  ordered = weights[:, order]
  positive = np.add.reduceat(ordered * sick[order], starts, axis=1)
  negative = np.add.reduceat(ordered * ~sick[order], starts, axis=1)
  tp, fp = positive.cumsum(1), negative.cumsum(1)
  pairs = tp[:, -1] * fp[:, -1]
  above = (negative * (tp - positive / 2)).sum(1)
  precision = _ratio(tp, tp + fp)
  average = _ratio(np.nansum(positive * precision, 1), tp[:, -1])
  return _ratio(above, pairs), np.where(pairs > 0, average, np.nan)
