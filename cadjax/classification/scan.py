"""Scores a scan: the probability of CAD, calibrated."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.special

from cadjax.classification.classifier import Classifier
from cadjax.core import files
from cadjax.data import scans
from cadjax.metrics import calibration
from cadjax.training.reading import Reading, begin
from data_prep import checksums
from data_prep.errors import UserError


@dataclasses.dataclass(frozen=True)
class Prediction:
  """A classifier's answer for one scan.

  Attributes:
    label: "cad" at or above the threshold, else "normal".
    probability: of CAD, in [0, 1]; calibrated if `calibrated`.
    calibrated: whether a temperature was fitted and applied.
    uncalibrated_probability: the pooled probability before that.
    temperature: None if never fitted.
    calibration_origin: of the temperature, or why there is none.
    threshold: of the probability.
    threshold_origin: how it was chosen.
    logits: [normal, CAD], the mean over the slices of a 2D model.
  """

  label: str
  probability: float
  calibrated: bool
  uncalibrated_probability: float
  temperature: float | None
  calibration_origin: str
  threshold: float
  threshold_origin: str
  logits: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Slices:
  """The slices of a scan that a 2D model saw, inferior to superior.

  Attributes:
    pooling: how their probabilities became the scan's.
    probability: [D], uncalibrated, of CAD.
    offset_mm: [D], from the first slice.
  """

  pooling: str
  probability: tuple[float, ...]
  offset_mm: tuple[float, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class ClassifiedScan:
  """One scan that a classifier scored; `report.classified` writes it.

  Attributes:
    reading: the scan, the model and the software.
    prediction: the answer.
    slices: of a 2D model; None for a 3D one.
  """

  reading: Reading
  prediction: Prediction
  slices: Slices | None

  @property
  def warnings(self) -> list[str]:
    """What must be read with the probability, in sentences."""
    return self.reading.warnings("classifier", "probability")


@dataclasses.dataclass(frozen=True)
class Calibration:
  """What an evaluation on validation cases has fitted.

  Attributes:
    temperature: of the pooled probability; None if never fitted.
    origin: of the temperature, or why there is none.
    threshold: at or above it a scan is called CAD.
    threshold_origin: how it was chosen.
    pooling: of the slices of a 2D model.
  """

  temperature: float | None
  origin: str
  threshold: float
  threshold_origin: str
  pooling: str

  @property
  def log_odds_threshold(self) -> float:
    """The threshold as log odds before calibration."""
    odds = scipy.special.logit(self.threshold)
    return float((self.temperature or 1.0) * odds)


def read_calibration(trained: Classifier) -> Calibration:
  """Reads what cadjax.evaluate left in the workdir, if it was run.

  Of a file of weights, what was there when it was packed.

  Raises:
    UserError: eval/metrics.json is not what cadjax.evaluate writes, or has
      changed since.
  """
  path = trained.path / "eval" / "metrics.json"
  pooling = trained.config.eval.pooling
  missing = "cadjax.evaluate has not been run on this classifier"
  if trained.description is not None:
    found = trained.description["calibration"]
    if found is None:
      missing += " before it was packed"
      return Calibration(None, missing, 0.5, f"the default: {missing}", pooling)
    return _parse(trained, found, trained.path)
  if not path.exists():
    return Calibration(None, missing, 0.5, f"the default: {missing}", pooling)
  try:
    checksums.check(path.parent)
  except UserError as error:
    raise UserError(f"{error}; run cadjax.evaluate again") from error
  return _parse(trained, files.read_json(path), path)


def _parse(
  trained: Classifier, found: Mapping[str, Any], path: pathlib.Path
) -> Calibration:
  """Returns the calibration in a metrics.json; `path` is for the message."""
  pooling = trained.config.eval.pooling
  try:
    if found["step"] != trained.step:
      stale = (
        f"the evaluation there is of step {found['step']}, not of step"
        f" {trained.step} that is the classifier; run cadjax.evaluate again"
      )
      return Calibration(None, stale, 0.5, f"the default: {stale}", pooling)
    origin = str(found["temperature_origin"])
    # metrics.json of before 0.2 has no flag: there, the origin tells.
    unflagged = not origin.startswith("not fitted")
    fitted = bool(found.get("temperature_fitted", unflagged))
    return Calibration(
      float(found["temperature"]) if fitted else None,
      origin,
      float(found["threshold"]),
      str(found["threshold_origin"]),
      pooling if found["pooling"] == "none" else str(found["pooling"]),
    )
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{path} is not what cadjax.evaluate writes ({error!r}); run it again"
    ) from error


def score(
  trained: Classifier, image: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Scores one volume.

  Args:
    trained: the classifier.
    image: int16 HU [D, H, W] on its grid.

  Returns:
    (logits [S, 2], probability of CAD [S]), float64; S = 1 for a 3D model.

  Raises:
    UserError: out of memory, or logits that are not finite.
  """
  with scans.memory_error_as_user_error("scoring", image.shape):
    logits = trained.logits(image[None, ..., None])[0]
  return check_logits(trained, logits)


def check_logits(
  trained: Classifier, logits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns logits [S, 2] and the probability of CAD [S], float64.

  Raises:
    UserError: logits that are not finite.
  """
  logits = logits.astype(np.float64)
  if not np.isfinite(logits).all():
    raise UserError(
      f"the classifier {trained.path} gives NaN or infinite logits; it is not"
      " a trained model"
    )
  margin = calibration.softmax_margin(logits)
  return logits, 1 / (1 + np.exp(-margin))


def decision_log_odds(margins: np.ndarray, pooling: str) -> np.ndarray:
  """Returns the log odds of CAD by which scans are called, [...].

  Before the temperature, which moves no scan past another. Of a 2D model it
  is the log odds of the pooled probability, not the mean of the slices' log
  odds: with "max" one slice decides, whatever the others say.

  Args:
    margins: log odds of CAD [..., S]; S = 1 for a 3D model.
    pooling: of the slices, see `calibration.aggregate_slices`.
  """
  margins = np.asarray(margins, np.float64)
  if margins.shape[-1] == 1:
    return margins[..., 0]
  probs = scipy.special.expit(margins)
  return calibration.logit(calibration.aggregate_slices(probs, pooling))


def make_prediction(
  logits: np.ndarray, probs: np.ndarray, fitted: Calibration
) -> Prediction:
  """Pools the slices, calibrates and applies the threshold.

  Args:
    logits: [S, 2], of `score`.
    probs: [S], probability of CAD.
    fitted: of `read_calibration`.
  """
  pooled = float(
    probs[0]
    if len(probs) == 1
    else calibration.aggregate_slices(probs, fitted.pooling)
  )
  probability = pooled
  if fitted.temperature is not None:
    probability = float(calibration.calibrate(pooled, fitted.temperature))
  return Prediction(
    label="cad" if probability >= fitted.threshold else "normal",
    probability=probability,
    calibrated=fitted.temperature is not None,
    uncalibrated_probability=pooled,
    temperature=fitted.temperature,
    calibration_origin=fitted.origin,
    threshold=fitted.threshold,
    threshold_origin=fitted.threshold_origin,
    logits=tuple(logits.mean(0).tolist()),
  )


def classify_scan(classifier: Classifier, scan: scans.Scan) -> ClassifiedScan:
  """Scores one scan.

  Args:
    classifier: of `load_classifier`.
    scan: of `scans.read_scan`.

  Returns:
    `prediction`: the probability of CAD in [0, 1], label and threshold;
    `slices`: of a 2D model the probability [D] of every slice; `reading`: the
    scan, int16 HU [D, H, W], as it was read and as the model saw it.

  Raises:
    UserError: the scan cannot be laid on the model's grid, memory is short,
      or the logits are not finite.
  """
  fitted = read_calibration(classifier)
  prepared = classifier.prepare(scan)
  logits, probs = score(classifier, prepared.model_input.hu)
  slices = None
  if classifier.config.model.ndim == 2:
    step_mm = prepared.model_input.spacing[0]
    slices = Slices(
      pooling=fitted.pooling,
      probability=tuple(probs.tolist()),
      offset_mm=tuple(i * step_mm for i in range(len(probs))),
    )
  return ClassifiedScan(
    begin(classifier, scan, prepared),
    make_prediction(logits, probs, fitted),
    slices,
  )
