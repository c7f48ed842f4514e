"""Scores scans with a trained classifier.

  python -m cadjax.predict --classifier=WORKDIR --input=SCAN --out=DIR

--input is a NIfTI, NRRD or MetaImage file or a folder of DICOM slices; it may
be repeated and may hold wildcards. One plain --input writes its files (see
`cadjax.report`) into DIR; several, or a wildcard, write a folder for each
scan into DIR. A scan that fails is told in one line and the others go on; the
exit code is then 2.
"""

import dataclasses
import datetime
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from cadjax import calibration, inputs, report, scans, workdir
from data_prep import errors
from data_prep.errors import UserError


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


def read_calibration(trained: workdir.Trained) -> Calibration:
  """Reads what cadjax.evaluate left in the workdir, if it was run.

  Raises:
    UserError: eval/metrics.json is not what cadjax.evaluate writes.
  """
  path = trained.path / "eval" / "metrics.json"
  pooling = trained.config.eval.pooling
  missing = "cadjax.evaluate has not been run on this classifier"
  if not path.exists():
    return Calibration(None, missing, 0.5, f"the default: {missing}", pooling)
  found = workdir.read_json(path)
  try:
    if found["step"] != trained.step:
      stale = (
        f"the evaluation there is of step {found['step']}, not of step"
        f" {trained.step} that is the classifier; run cadjax.evaluate again"
      )
      return Calibration(None, stale, 0.5, f"the default: {stale}", pooling)
    origin = str(found["temperature_origin"])
    fitted = not origin.startswith("not fitted")
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
  trained: workdir.Trained, image: np.ndarray
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
    logits = trained.logits(image[None, ..., None])[0].astype(np.float64)
  if not np.isfinite(logits).all():
    raise UserError(
      f"the classifier {trained.path} gives NaN or infinite logits; it is no"
      " trained model"
    )
  margin = calibration.softmax_margin(logits)
  return logits, 1 / (1 + np.exp(-margin))


def _prediction(
  logits: np.ndarray, probs: np.ndarray, settled: Calibration
) -> dict[str, Any]:
  """Returns "prediction" of the schema in `cadjax.report`."""
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
  trained: workdir.Trained,
  path: str | pathlib.Path,
  *,
  case: str | None = None,
  series: str | None = None,
  heart_mask: str | None = None,
) -> report.CaseResult:
  """Scores one scan.

  Args:
    trained: from `workdir.load_trained`.
    path: a file or a folder of DICOM slices.
    case: the name in the results; by default from the path's last part.
    series: which DICOM series, by UID or number.
    heart_mask: a mask file; labels above 0 are the heart.

  Returns:
    what `report.write_case` writes.

  Raises:
    UserError: the scan or the mask cannot be used.
  """
  path = pathlib.Path(path)
  settled = read_calibration(trained)
  prepared = scans.prepare(trained, path, series=series, heart_mask=heart_mask)
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
  return report.CaseResult(
    case=case or inputs.case_name(path),
    input_name=path.resolve().name,
    scan=prepared.scan,
    model_input=model_input,
    heart_mm=prepared.heart_mm,
    heart_origin=prepared.heart_origin,
    prediction=_prediction(logits, probs, settled),
    slices=slices,
    concerns=prepared.concerns,
    features=prepared.features,
    classifier=scans.describe_model(trained),
    software=workdir.versions(),
    created=now.isoformat(timespec="seconds"),
  )


def _tell(job: inputs.Job, result: report.CaseResult) -> str:
  """Returns what is printed of a scored scan."""
  prediction = result.prediction
  how = "calibrated" if prediction["calibrated"] else "uncalibrated"
  lines = [
    f"{job.case}: probability of CAD {prediction['probability']:.4f} ({how}),"
    f" threshold {prediction['threshold']:.4g}"
    f" ({prediction['threshold_origin']}): {prediction['label']}"
  ]
  if not prediction["calibrated"]:
    lines.append(f"  not calibrated: {prediction['calibration_origin']}")
  lines += [f"  warning: {said}" for said in result.warnings]
  lines += [f"  - {said}" for said in result.concerns]
  lines += [f"  note: {said}" for said in result.model_input.notes]
  lines.append(f"  {job.folder / report.FILES['page']}")
  return "\n".join(lines)


def predict_all(
  trained: workdir.Trained,
  jobs: Sequence[inputs.Job],
  *,
  series: str | None = None,
  overwrite: bool = False,
) -> int:
  """Scores scans one after the other and writes their files.

  Returns:
    how many failed; each is told in one line on stderr.
  """

  def one(job: inputs.Job) -> str:
    report.KIND.check_free(job.folder, overwrite=overwrite)
    result = predict_scan(
      trained,
      job.path,
      case=job.case,
      series=series,
      heart_mask=job.heart_mask,
    )
    report.write_case(result, job.folder, overwrite=overwrite)
    return _tell(job, result)

  return scans.for_each(jobs, one)


def define_flags() -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  flags.DEFINE_string(
    "classifier", None, "Workdir of a trained classifier.", required=True
  )
  inputs.define_flags()


def main(_: Sequence[str]) -> int:
  """Scores all scans; returns the exit code."""
  args = flags.FLAGS
  jobs = inputs.make_jobs(
    args.input, args.out, cases=args.case, heart_masks=args.heart_mask
  )
  trained = workdir.load_trained(args.classifier)
  read_calibration(trained)  # What is wrong with it is wrong for all scans.
  print(
    f"{report.NOTICE}\nScoring {len(jobs)}"
    f" scan{'s' if len(jobs) > 1 else ''} on {jax.devices()[0].device_kind};"
    " the first takes longer, while the model is compiled",
    flush=True,
  )
  failed = predict_all(
    trained, jobs, series=args.series, overwrite=args.overwrite
  )
  if len(jobs) > 1:
    print(f"{len(jobs) - failed} scored, {failed} failed")
  return 2 if failed else 0


if __name__ == "__main__":
  define_flags()
  errors.run(main)
