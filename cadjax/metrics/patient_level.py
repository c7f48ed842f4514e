"""From per-case rows to patient-level results, without model or files.

A row is one scan: case_id, patient_id, label (0 or 1) and log_odds, the log
odds of CAD of each slice of a 2D model, or the one value of a 3D model.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special

from cadjax.core.files import Row
from cadjax.metrics import binary, calibration, intervals, recalibration
from data_prep.errors import UserError

# What temperature scaling changes.
CALIBRATION = ("brier", *recalibration.PERFECT)


def scan_probs(
  rows: Sequence[Row], pooling: str = "mean", temperature: float = 1.0
) -> np.ndarray:
  """Returns the probability of CAD of each scan [n], pooled, then scaled."""
  pooled = [
    calibration.aggregate_slices(scipy.special.expit(row["log_odds"]), pooling)
    for row in rows
  ]
  probs = np.array(pooled, np.float64)
  # A vote of exactly 0 or 1 stays so where nothing is scaled.
  return (
    probs if temperature == 1 else calibration.calibrate(probs, temperature)
  )


def by_patient(
  rows: Sequence[Row], probs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Averages the scans of each patient.

  Args:
    rows: of n scans.
    probs: [n], of the scans.

  Returns:
    sorted patient ids, labels (1 if any scan is CAD) and mean probabilities,
    each [patients].
  """
  ids, member = np.unique(
    np.array([row["patient_id"] for row in rows], str), return_inverse=True
  )
  labels = np.zeros(ids.size, np.int64)
  np.maximum.at(labels, member, np.array([r["label"] for r in rows], int))
  scans = np.bincount(member, minlength=ids.size)
  return ids, labels, np.bincount(member, probs, ids.size) / scans


def defined_mean(values: Sequence[float]) -> float:
  """Returns the mean of the values that are not NaN; NaN if none is left."""
  values = np.asarray(values, np.float64)
  values = values[np.isfinite(values)]
  return float(values.mean()) if values.size else math.nan


def by_slice(
  rows: Sequence[Row],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns patient, label and uncalibrated probability of every slice."""
  counts = [len(row["log_odds"]) for row in rows]
  patients = np.repeat([str(row["patient_id"]) for row in rows], counts)
  labels = np.repeat(np.array([row["label"] for row in rows], int), counts)
  odds = np.concatenate([np.zeros(0), *(row["log_odds"] for row in rows)])
  return patients, labels, scipy.special.expit(odds)


def fit(
  rows: Sequence[Row], *, pooling: str = "mean", criterion: str = "youden"
) -> dict[str, Any]:
  """Fits temperature and threshold by patient on validation rows.

  Returns:
    temperature, temperature_origin and temperature_fitted, threshold (of the
    calibrated probability) and threshold_origin.
  """
  probs = scan_probs(rows, pooling)
  ids, member = np.unique(
    [str(row["patient_id"]) for row in rows], return_inverse=True
  )
  # Each patient weighs the same, however many scans there are.
  weights = 1 / np.bincount(member, minlength=ids.size)[member]
  labels = np.array([row["label"] for row in rows], int)
  temperature = calibration.fit_temperature(labels, probs, weights=weights)
  _, labels, probs = by_patient(
    rows, scan_probs(rows, pooling, temperature.value)
  )
  threshold, origin = calibration.choose_threshold(labels, probs, criterion)
  return _settings(temperature, threshold, origin)


def _settings(
  temperature: calibration.Temperature, threshold: float, origin: str
) -> dict[str, Any]:
  """Returns the settings as metrics.json holds them."""
  return {
    "temperature": temperature.value,
    "temperature_origin": temperature.origin,
    "temperature_fitted": temperature.fitted,
    "threshold": threshold,
    "threshold_origin": origin,
  }


def evaluate_rows(
  validation_rows: Sequence[Row],
  test_rows: Sequence[Row],
  *,
  ndim: int = 3,
  pooling: str = "mean",
  criterion: str = "youden",
  draws: int = 2000,
  seed: int = 0,
) -> dict[str, Any]:
  """Evaluates per-case rows; needs no model and no files.

  Args:
    validation_rows: give the temperature and the threshold; may be empty.
    test_rows: are scored with them.
    ndim: 2 adds metrics by slice and of every pooling.
    pooling: of the slices of a 2D model, for the headline.
    criterion: of `calibration.choose_threshold`.
    draws: of the bootstrap.
    seed: of the bootstrap.

  Returns:
    what metrics.json holds of the numbers; undefined values are NaN.
  """
  options = {"draws": draws, "seed": seed}
  headline = pooling if ndim == 2 else "mean"
  fitted = fit(validation_rows, pooling=headline, criterion=criterion)
  result = {
    "pooling": pooling if ndim == 2 else "none",
    **_patient_metrics(test_rows, fitted, headline, options),
  }
  result["bootstrap"] = options | {"confidence": 0.95}
  result["notes"] = _notes(validation_rows, test_rows)
  if ndim == 2:
    result |= _slice_metrics(validation_rows, test_rows, criterion, options)
    result["poolings"] = {
      name: _patient_metrics(
        test_rows,
        fit(validation_rows, pooling=name, criterion=criterion),
        name,
        options,
      )
      for name in calibration.POOLINGS
    }
  return result


def _patient_metrics(
  rows: Sequence[Row],
  fitted: Mapping[str, Any],
  pooling: str,
  options: Mapping[str, int],
) -> dict[str, Any]:
  scans = scan_probs(rows, pooling, fitted["temperature"])
  _, labels, probs = by_patient(rows, scans)
  _, _, raw = by_patient(rows, scan_probs(rows, pooling))
  threshold = fitted["threshold"]
  before = intervals.with_intervals(labels, raw, threshold, **options)
  return {
    "n_patients": labels.size,
    "n_cad": int(labels.sum()),
    "n_scans": len(rows),
    **fitted,
    "confusion": binary.confusion(labels, probs, threshold),
    "patient": intervals.with_intervals(labels, probs, threshold, **options),
    # What benchmarks report that know no threshold: the larger logit decides.
    "at_half": {"accuracy": _accuracy(labels, raw >= 0.5)},
    "uncalibrated": {name: before[name] for name in CALIBRATION},
    "perfectly_calibrated": {"brier": binary.expected_brier(probs)}
    | recalibration.PERFECT,
  }


def _accuracy(labels: np.ndarray, called: np.ndarray) -> intervals.Interval:
  right, count = int((called == labels).sum()), labels.size
  low, high = intervals.wilson(right, count)
  value = right / count if count else math.nan
  method = "wilson" if count else "undefined"
  return intervals.Interval(value, low, high, method, right, count)


def _slice_metrics(
  validation_rows: Sequence[Row],
  test_rows: Sequence[Row],
  criterion: str,
  options: Mapping[str, int],
) -> dict[str, Any]:
  """Metrics that count every slice as a case, with a threshold of slices."""
  _, labels, probs = by_slice(validation_rows)
  temperature = calibration.fit_temperature(labels, probs)
  threshold, origin = calibration.choose_threshold(
    labels,
    calibration.calibrate(probs, temperature.value),
    criterion,
    unit="slices",
  )
  patients, labels, probs = by_slice(test_rows)
  probs = calibration.calibrate(probs, temperature.value)
  return {
    "slice": intervals.with_intervals(
      labels, probs, threshold, groups=patients, **options
    ),
    "slice_setting": {
      "n_slices": labels.size,
      **_settings(temperature, threshold, origin),
    },
  }


def _notes(
  validation_rows: Sequence[Row], test_rows: Sequence[Row]
) -> list[str]:
  notes = []
  for name, rows in (
    ("the validation set", validation_rows),
    ("the evaluated set", test_rows),
  ):
    labels = {row["label"] for row in rows}
    if not labels:
      notes.append(f"{name} is empty")
    elif len(labels) == 1:
      kind = "CAD" if labels == {1} else "normal"
      notes.append(f"{name} holds one class only ({kind})")
  found: dict[str, set[int]] = {}
  for row in test_rows:
    found.setdefault(row["patient_id"], set()).add(row["label"])
  mixed = sorted(name for name, labels in found.items() if len(labels) > 1)
  if mixed:
    notes.append(
      "counted as CAD, because one of several scans is: " + _some(mixed)
    )
  return notes


def compare(
  rows: Sequence[Row],
  result: Mapping[str, Any],
  other_rows: Sequence[Row],
  other: Mapping[str, Any],
  *,
  names: tuple[str, str] = ("this workdir", "the other"),
) -> dict[str, Any]:
  """Compares two classifiers on the same patients, each as it was evaluated.

  Args:
    rows: of this one.
    result: of `evaluate_rows` on them (temperature, threshold, pooling).
    other_rows: of the other one, the same patients in any order.
    other: of `evaluate_rows` on those.
    names: of the two, for the message.

  Returns:
    "mcnemar" on the calls, and "difference" (this minus the other) of every
    metric by a paired bootstrap over patients.

  Raises:
    UserError: the patients or their labels differ; the message names them.
  """
  ids, labels, probs = as_evaluated(rows, result)
  other_ids, other_labels, other_probs = as_evaluated(other_rows, other)
  for name, missing in (
    (names[0], sorted(set(ids) - set(other_ids))),
    (names[1], sorted(set(other_ids) - set(ids))),
  ):
    if missing:
      raise UserError(
        f"{names[0]} and {names[1]} were not evaluated on the same patients;"
        f" only in {name}: {_some(missing)}"
      )
  differing = ids[labels != other_labels]
  if differing.size:
    raise UserError(
      f"{names[0]} and {names[1]} disagree on the labels of the patients"
      f" {_some(list(differing))}; evaluate both on the same data"
    )
  called = probs >= result["threshold"]
  other_called = other_probs >= other["threshold"]
  sick = labels == 1
  return {
    "workdir": names[1],
    "n_patients": labels.size,
    "mcnemar": intervals.mcnemar(called == sick, other_called == sick),
    "difference": intervals.paired_bootstrap(
      labels,
      probs,
      other_probs,
      threshold_a=result["threshold"],
      threshold_b=other["threshold"],
      draws=result["bootstrap"]["draws"],
      seed=result["bootstrap"]["seed"],
    ),
  }


def as_evaluated(
  rows: Sequence[Row], result: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns `by_patient` with the pooling and temperature of `result`."""
  pooling = "mean" if result["pooling"] == "none" else result["pooling"]
  return by_patient(rows, scan_probs(rows, pooling, result["temperature"]))


def with_probabilities(rows: Sequence[Row], result: Mapping[str, Any]) -> list:
  """Returns the rows with what the settings of `result` make of each scan."""
  several = result["pooling"] != "none"
  pooling = result["pooling"] if several else "mean"
  columns = {
    "uncalibrated_probability": scan_probs(rows, pooling),
    "probability": scan_probs(rows, pooling, result["temperature"]),
  }
  if several:
    for name in calibration.POOLINGS:
      columns[f"uncalibrated_{name}"] = scan_probs(rows, name)
  return [
    row
    | {name: float(values[i]) for name, values in columns.items()}
    | {"called": int(columns["probability"][i] >= result["threshold"])}
    for i, row in enumerate(rows)
  ]


def patient_rows(rows: Sequence[Row], result: Mapping[str, Any]) -> list[Row]:
  """Returns one row a patient: calibrated probability and call."""
  ids, labels, probs = as_evaluated(rows, result)
  scans = dict(
    zip(
      *np.unique([r["patient_id"] for r in rows], return_counts=True),
      strict=True,
    )
  )
  return [
    {
      "patient_id": str(name),
      "label": int(label),
      "scans": int(scans[name]),
      "probability": float(prob),
      "called": int(prob >= result["threshold"]),
    }
    for name, label, prob in zip(ids, labels, probs, strict=True)
  ]


def _some(names: Sequence[str], most: int = 5) -> str:
  text = ", ".join(str(name) for name in names[:most])
  return text + (f" and {len(names) - most} more" if names[most:] else "")
