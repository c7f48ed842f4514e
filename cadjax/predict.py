"""Scores scans with a trained classifier, and a segmenter beside it.

  cadjax predict --classifier=WORKDIR --input=SCAN --out=DIR
  cadjax predict --classifier=W1 --segmenter=W2 --input=SCAN --out=DIR

--input is a NIfTI, NRRD or MetaImage file or a folder of DICOM slices; it may
be repeated and may hold wildcards. One plain --input writes its files (see
`report.classified`) into DIR; several, or a wildcard, write a folder for each
scan into DIR. With --segmenter the two are linked: masks, heat maps, and
abnormalities located on the vessels (see `cadjax.report.linked`); with
--decision=LINK/link.json of `cadjax link` both give one probability
together. A scan that fails is told in one line and the others go on; the exit
code is then 2.
"""

import functools
from collections.abc import Sequence

import jax
from absl import flags

from cadjax.classification import scan
from cadjax.core import lookup
from cadjax.data import jobs as scan_jobs
from cadjax.explanation import cam
from cadjax.link.scan import (
  LAYER,
  METHOD,
  Pair,
  PairResult,
  load_pair,
  predict_pair,
)
from cadjax.report import classified, linked, pages
from cadjax.training import workdir
from data_prep import errors
from data_prep.errors import UserError


def _tell(job: scan_jobs.Job, result: scan.CaseResult) -> str:
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
  lines.append(f"  {job.folder / classified.FILES['page']}")
  return "\n".join(lines)


def predict_all(
  trained: workdir.Trained,
  jobs: Sequence[scan_jobs.Job],
  *,
  series: str | None = None,
  overwrite: bool = False,
) -> int:
  """Scores scans and writes their files; see `jobs.handle_all`."""
  return scan_jobs.handle_all(
    jobs,
    classified.KIND,
    functools.partial(scan.predict_scan, trained),
    classified.write_case,
    _tell,
    series=series,
    overwrite=overwrite,
  )


def _tell_linked(job: scan_jobs.Job, result: PairResult) -> str:
  """Returns what is printed of a linked scan."""
  first, *rest = _tell(job, result.case).split("\n")
  page = job.folder / linked.FILES["page"]
  said = linked.summary(result)[1:] + result.linked.statements
  said = [f"  {sentence}" for sentence in said]
  said += [
    f"  warning: {sentence}"
    for sentence in result.warnings
    if sentence not in result.case.warnings
  ]
  return "\n".join([first, *said, *rest[:-1], f"  {page}"])


def predict_linked(
  pair: Pair,
  jobs: Sequence[scan_jobs.Job],
  *,
  series: str | None = None,
  overwrite: bool = False,
) -> int:
  """Reads scans with both models; see `jobs.handle_all`."""
  return scan_jobs.handle_all(
    jobs,
    classified.KIND,
    functools.partial(predict_pair, pair),
    linked.write_linked,
    _tell_linked,
    series=series,
    overwrite=overwrite,
  )


def define_flags() -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  flags.DEFINE_string(
    "classifier", None, "Workdir of a trained classifier.", required=True
  )
  flags.DEFINE_string(
    "segmenter", None, "Workdir of a trained segmenter, to be linked."
  )
  flags.DEFINE_enum(
    "method", METHOD, list(cam.METHODS), "Of the heat maps, with --segmenter."
  )
  flags.DEFINE_string(
    "layer",
    None,
    f"Whose heat map findings rest on, {LAYER} if unset; --list_layers of"
    " explain.",
  )
  flags.DEFINE_string(
    "decision",
    None,
    "link.json of `cadjax link` on these two models: what both say together.",
  )
  scan_jobs.define_flags()


def main(_: Sequence[str]) -> int:
  """Scores all scans; returns the exit code."""
  args = flags.FLAGS
  jobs = scan_jobs.make_jobs(
    args.input, args.out, cases=args.case, heart_masks=args.heart_mask
  )
  # What is wrong with a model is wrong for all scans.
  if args.segmenter is None:
    for name in ("method", "layer", "decision"):
      if args[name].present:
        raise UserError(f"--{name} is of both models: give --segmenter, too")
    trained = workdir.load_trained(args.classifier, "classify")
    scan.read_calibration(trained)
    predict, models = predict_all, trained
  else:
    predict, models = (
      predict_linked,
      load_pair(
        args.classifier,
        args.segmenter,
        method=args.method,
        layer=args.layer,
        decision_file=args.decision,
      ),
    )
  print(
    f"{pages.NOTICE}\nScoring {len(jobs)}"
    f" scan{'s' if len(jobs) > 1 else ''} on {jax.devices()[0].device_kind};"
    " the first takes longer, while the models are compiled",
    flush=True,
  )
  failed = predict(models, jobs, series=args.series, overwrite=args.overwrite)
  if len(jobs) > 1:
    print(f"{len(jobs) - failed} scored, {failed} failed")
  return 2 if failed else 0


if __name__ == "__main__":
  errors.run(
    "cadjax predict",
    main,
    define_flags,
    expected=(lookup.ConfigError,),
  )
