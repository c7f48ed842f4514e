"""A classifier's probability for one scan, as its evaluation settled it."""

import dataclasses
import datetime
import pathlib
from typing import Any

import numpy as np

from cadjax.classification.classifier import Classifier
from cadjax.core import files
from cadjax.data import scans
from cadjax.metrics import calibration
from cadjax.training import workdir
from data_prep.errors import UserError
from data_prep.volume import Volume

PHANTOM_WARNING = (
  "The classifier was trained on phantoms: its probability is not evidence"
  " about patients."
)
CONCERN_WARNING = (
  "The scan is unlike the data that the classifier was trained on: its"
  " probability is not to be relied on."
)


@dataclasses.dataclass(frozen=True, eq=False)
class CaseResult:
  """All that is known of one scored scan.

  Attributes:
    case: its name, safe to print.
    input_name: base name of the file or folder.
    scan: on the scanner's grid.
    model_input: int16 HU on the grid that the classifier saw.
    heart_mm: LPS mm (x, y, z) where the pictures' planes cross.
    heart_origin: how that point was found.
    prediction: see the schema.
    slices: see the schema; None for a 3D model.
    concerns: why the scan is unlike the training data, in sentences.
    features: the numbers behind the concerns.
    classifier: see the schema.
    software: versions of this run.
    created: UTC, ISO 8601.
  """

  case: str
  input_name: str
  scan: Volume
  model_input: Volume
  heart_mm: tuple[float, float, float]
  heart_origin: str
  prediction: dict[str, Any]
  slices: dict[str, Any] | None
  concerns: tuple[str, ...]
  features: dict[str, float]
  classifier: dict[str, Any]
  software: dict[str, Any]
  created: str

  @property
  def warnings(self) -> list[str]:
    """What must be read with the number."""
    said = []
    if self.concerns:
      said.append(CONCERN_WARNING)
    if self.classifier["trained_on"]["is_phantom"]:
      said.append(PHANTOM_WARNING)
    return said


@dataclasses.dataclass(frozen=True)
class Calibration:
  """What an evaluation on validation cases has settled.

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


def read_calibration(trained: Classifier) -> Calibration:
  """Reads what cadjax.evaluate left in the workdir, if it was run.

  Raises:
    UserError: eval/metrics.json is not what cadjax.evaluate writes.
  """
  path = trained.path / "eval" / "metrics.json"
  pooling = trained.config.eval.pooling
  missing = "cadjax.evaluate has not been run on this classifier"
  if not path.exists():
    return Calibration(None, missing, 0.5, f"the default: {missing}", pooling)
  found = files.read_json(path)
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
  with scans.memory_told("scoring", image.shape):
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
      f"the classifier {trained.path} gives NaN or infinite logits; it is no"
      " trained model"
    )
  margin = calibration.softmax_margin(logits)
  return logits, 1 / (1 + np.exp(-margin))


def describe_prediction(
  logits: np.ndarray, probs: np.ndarray, settled: Calibration
) -> dict[str, Any]:
  """Returns "prediction" of the schema in `cadjax.report.classified`."""
  pooled = float(
    probs[0]
    if len(probs) == 1
    else calibration.aggregate_slices(probs, settled.pooling)
  )
  probability = pooled
  if settled.temperature is not None:
    probability = float(calibration.calibrate(pooled, settled.temperature))
  return {
    "label": "cad" if probability >= settled.threshold else "normal",
    "probability": probability,
    "calibrated": settled.temperature is not None,
    "uncalibrated_probability": pooled,
    "temperature": settled.temperature,
    "calibration_origin": settled.origin,
    "threshold": settled.threshold,
    "threshold_origin": settled.threshold_origin,
    "logits": logits.mean(0).tolist(),
  }


def predict_scan(
  trained: Classifier,
  path: str | pathlib.Path,
  *,
  case: str | None = None,
  series: str | None = None,
  heart_mask: str | None = None,
) -> CaseResult:
  """Scores one scan.

  Args:
    trained: from `load_classifier`.
    path: a file or a folder of DICOM slices.
    case: the name in the results; by default from the path's last part.
    series: which DICOM series, by UID or number.
    heart_mask: a mask file; labels above 0 are the heart.

  Returns:
    what `classified.write_case` writes.

  Raises:
    UserError: the scan or the mask cannot be used.
  """
  scan = scans.read(path, case=case, series=series, heart_mask=heart_mask)
  return score_scan(trained, scan)


def score_scan(trained: Classifier, scan: scans.Scan) -> CaseResult:
  """Scores a scan that is read already; see `predict_scan`."""
  settled = read_calibration(trained)
  prepared = scans.prepare(scan, trained.grid, trained.reference)
  model_input = prepared.model_input
  logits, probs = score(trained, model_input.hu)
  slices = None
  if trained.config.model.ndim == 2:
    step_mm = model_input.spacing[0]
    slices = {
      "pooling": settled.pooling,
      "probability": probs.tolist(),
      "offset_mm": [i * step_mm for i in range(len(probs))],
    }
  now = datetime.datetime.now(datetime.UTC)
  return CaseResult(
    case=scan.case,
    input_name=scan.name,
    scan=prepared.scan,
    model_input=model_input,
    heart_mm=prepared.heart_mm,
    heart_origin=prepared.heart_origin,
    prediction=describe_prediction(logits, probs, settled),
    slices=slices,
    concerns=prepared.concerns,
    features=prepared.features,
    classifier=workdir.describe_model(trained),
    software=workdir.versions(),
    created=now.isoformat(timespec="seconds"),
  )
