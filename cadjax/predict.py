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
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from cadjax import calibration, inputs, report, workdir
from data_prep import errors, geometry, plausibility, volume
from data_prep.errors import UserError
from data_prep.volume import Volume

NO_HEART = "no heart was found: the middle of the scan"


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
  size = "x".join(map(str, image.shape))
  try:
    logits = trained.logits(image[None, ..., None])[0].astype(np.float64)
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
      raise UserError(
        f"out of memory while scoring {size} voxels; free some, or set"
        " JAX_PLATFORMS=cpu on a machine with more"
      ) from error
    raise
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


def find_concerns(
  scan: Volume, model_input: Volume, reference: dict[str, Any]
) -> tuple[dict[str, float], list[str]]:
  """Compares a scan with CT angiograms at large and with the training data.

  Args:
    scan: on its own grid, where all the anatomy is.
    model_input: on the classifier's grid, as the training cases were.
    reference: {feature: [low, high]} of the training cases.

  Returns:
    the features of the model's input, and sentences, none if all is usual.
  """
  features = plausibility.describe(model_input)
  said = plausibility.concerns(plausibility.describe(scan), None)
  said += plausibility.concerns(features, reference)
  return features, list(dict.fromkeys(said))


def _heart(
  scan: Volume, model_input: Volume, mask: Volume | None, kind: str
) -> tuple[np.ndarray, str]:
  """Returns LPS mm where the pictures' planes cross, and how it was found."""
  if mask is not None:
    index = np.argwhere(mask.hu > 0).mean(0)
    return mask.grid.to_mm(index), "from the heart mask"
  if kind == "heart":
    return model_input.grid.center_mm, "the middle of the classifier's box"
  try:
    center_mm, _ = geometry.find_heart(scan)
  except UserError:
    return scan.grid.center_mm, NO_HEART
  return center_mm, "found in the image"


def _read_heart_mask(path: str | None) -> Volume | None:
  if path is None:
    return None
  mask = volume.read_mask(path)
  if not (mask.hu > 0).any():
    raise UserError(f"{path}: the heart mask is empty")
  return mask


def _describe_classifier(trained: workdir.Trained) -> dict[str, Any]:
  dataset = trained.dataset
  model = trained.config.model
  source = dataset.get("source")
  return {
    "workdir": trained.path.resolve().name,
    "step": trained.step,
    "model": {name: model[name] for name in ("name", "ndim", "depth")},
    "trained_on": {
      "source": source,
      "is_phantom": source == "phantom",
      "cases": dataset.get("cases"),
      "patients": dataset.get("patients"),
      "fingerprint": dataset["fingerprint"],
    },
    "grid": dataset["grid"],
    "window_hu": list(trained.config.data.window_hu),
    "versions": workdir.read_json(trained.path / "versions.json"),
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
  spec = geometry.GridSpec.from_dict(trained.dataset["grid"])
  settled = read_calibration(trained)
  scan = volume.read_volume(path, series=series)
  mask = _read_heart_mask(heart_mask)
  model_input = geometry.to_grid(scan, spec, heart_mask=mask)
  features, concerns = find_concerns(
    scan, model_input, trained.dataset.get("reference") or {}
  )
  heart_mm, heart_origin = _heart(scan, model_input, mask, spec.kind)
  if heart_origin == NO_HEART:
    concerns.append("no heart was found in the image")
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
    scan=scan,
    model_input=model_input,
    heart_mm=tuple(float(x) for x in heart_mm),
    heart_origin=heart_origin,
    prediction=_prediction(logits, probs, settled),
    slices=slices,
    concerns=tuple(concerns),
    features=features,
    classifier=_describe_classifier(trained),
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
  failed = 0
  bar = tqdm(jobs, unit="scan", disable=None if len(jobs) > 1 else True)
  for job in bar:
    bar.set_postfix_str(job.case)
    try:
      report.check_free(job.folder, overwrite=overwrite)
      result = predict_scan(
        trained,
        job.path,
        case=job.case,
        series=series,
        heart_mask=job.heart_mask,
      )
      report.write_case(result, job.folder, overwrite=overwrite)
      tqdm.write(_tell(job, result))
    except UserError as error:
      failed += 1
      tqdm.write(f"error: {errors.one_line(error)}", file=sys.stderr)
    except Exception as error:
      # Ours to mend, but not at the price of the scans that follow.
      if len(jobs) == 1:
        raise
      failed += 1
      tqdm.write(
        f"error: {job.path}: {type(error).__name__}:"
        f" {errors.one_line(error)}; score it alone to see where",
        file=sys.stderr,
      )
  return failed


def define_flags() -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  flags.DEFINE_string(
    "classifier", None, "Workdir of a trained classifier.", required=True
  )
  flags.DEFINE_multi_string(
    "input",
    None,
    "A scan, or a folder of DICOM slices; repeated or with wildcards: many.",
    required=True,
  )
  flags.DEFINE_string("out", None, "Folder for the results.", required=True)
  flags.DEFINE_multi_string(
    "case", [], "Name in the results; by default that of the input."
  )
  flags.DEFINE_multi_string(
    "heart_mask", [], "Mask of the heart, one for each scan; else it is found."
  )
  flags.DEFINE_string(
    "series", None, "DICOM series by UID or number; else the largest."
  )
  flags.DEFINE_bool("overwrite", False, "Replace results that are there.")


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
