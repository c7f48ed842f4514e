"""Scores scans with a classifier, and with a segmenter beside it.

  cadjax predict --input=SCAN --out=DIR
  cadjax predict --classifier=WORKDIR --input=SCAN --out=DIR
  cadjax predict --classifier=W1 --segmenter=W2 --input=SCAN --out=DIR

The first takes the models that come with cadjax: "wide" finds the heart in the
whole chest, "coronary" the coronary arteries around it, "classifier" scores.
The others take workdirs, files of weights or names of shipped models; unless
one of them is shipped, the heart is found in the image and not by a first stage
(--wide=NAME gives one, --wide=none leaves it out).

--input is a NIfTI, NRRD or MetaImage file or a folder of DICOM slices; it may
be repeated and may hold wildcards. One plain --input writes its files (see
`report.classified`) into DIR; several, or a wildcard, write a folder for each
scan into DIR. A classifier and a segmenter are linked: masks, heat maps, and
abnormalities located on the vessels, graded by CAD-RADS 2.0 (see
`cadjax.report.linked`); --pdf adds one page to print, and --calcium the plaque
burden by an Agatston score of the same patient; with --decision=LINK/link.json
of `cadjax link` both give one probability together. A scan that fails is
reported in one line and the others go on; the exit code is then 2.
"""

import functools
from collections.abc import Sequence

from absl import flags

from cadjax.calcium import stored
from cadjax.classification import scan as classification_scan
from cadjax.classification.classifier import load_classifier
from cadjax.classification.scan import ClassifiedScan, classify_scan
from cadjax.core import lookup
from cadjax.data import jobs as scan_jobs
from cadjax.explanation import cam
from cadjax.link.scan import (
  LAYER,
  METHOD,
  LinkedScan,
  link_scan,
  load_pair,
)
from cadjax.report import classified, linked, one_page, pages
from cadjax.segmentation.scan import place_heart
from cadjax.segmentation.segmenter import WIDE, load_wide
from data_prep import errors
from data_prep.errors import UserError


def _describe(job: scan_jobs.Job, result: ClassifiedScan) -> str:
  """Returns what is printed of a scored scan."""
  prediction = result.prediction
  how = "calibrated" if prediction.calibrated else "uncalibrated"
  lines = [
    f"{job.case}: probability of CAD {prediction.probability:.4f} ({how}),"
    f" threshold {prediction.threshold:.4g}"
    f" ({prediction.threshold_origin}): {prediction.label}"
  ]
  if not prediction.calibrated:
    lines.append(f"  not calibrated: {prediction.calibration_origin}")
  lines += [f"  warning: {warning}" for warning in result.warnings]
  lines += [f"  - {concern}" for concern in result.reading.prepared.concerns]
  lines += [f"  note: {note}" for note in result.reading.model_input.notes]
  lines.append(f"  {job.folder / classified.FILES['page']}")
  return "\n".join(lines)


def _describe_linked(job: scan_jobs.Job, result: LinkedScan) -> str:
  """Returns what is printed of a linked scan."""
  first, *rest = _describe(job, result.classified).split("\n")
  page = job.folder / linked.FILES["page"]
  lines = linked.summary(result)[1:] + result.statements
  lines = [f"  {sentence}" for sentence in lines]
  lines += [
    f"  warning: {warning}"
    for warning in result.warnings
    if warning not in result.classified.warnings
  ]
  return "\n".join([first, *lines, *rest[:-1], f"  {page}"])


class _Paper(flags.ArgumentParser):
  """Takes --pdf alone for A4."""

  def parse(self, argument: str | None) -> str | None:
    """Returns a key of `one_page.PAPERS`; None for --nopdf."""
    if argument in (None, "false"):
      return None
    if argument == "true":
      return "a4"
    if argument.lower() not in one_page.PAPERS:
      raise ValueError(f"known papers are {', '.join(one_page.PAPERS)}")
    return argument.lower()

  def flag_type(self) -> str:
    """Returns what help calls its values."""
    return "paper"


def define_flags() -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  flags.DEFINE_string(
    "classifier", None, "Workdir or file of weights; else the shipped one."
  )
  flags.DEFINE_string(
    "segmenter",
    None,
    "Workdir or file of weights, to be linked; the shipped coronary if no"
    " --classifier is given either.",
  )
  flags.DEFINE_string("wide", None, WIDE)
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
  flags.DEFINE_flag(
    flags.Flag(
      _Paper(),
      flags.ArgumentSerializer(),
      "pdf",
      None,
      "Also write report.pdf, one page to print: --pdf for A4, or"
      " --pdf=letter.",
      boolean=True,
    )
  )
  flags.DEFINE_multi_string(
    "calcium",
    [],
    "calcium.json of `cadjax calcium` of the same patient, one for each scan:"
    " it then gives the plaque burden.",
  )
  scan_jobs.define_flags()


def _scores(
  paths: Sequence[str], jobs: Sequence[scan_jobs.Job]
) -> dict[str, stored.StoredScore]:
  """Returns the calcium score of each case."""
  if paths and len(paths) != len(jobs):
    raise UserError(
      f"{len(paths)} of --calcium for {len(jobs)} scans; give one for each, in"
      " the same order"
    )
  return {
    job.case: stored.read(path) for job, path in zip(jobs, paths, strict=False)
  }


def main(_: Sequence[str]) -> int:
  """Scores all scans; returns the exit code."""
  args = flags.FLAGS
  jobs = scan_jobs.make_jobs(
    args.input, args.out, cases=args.case, heart_masks=args.heart_mask
  )
  # A model that cannot be used fails here, before any scan is read.
  if args.segmenter is None and args.classifier is not None:
    for name in ("method", "layer", "decision", "pdf", "calcium"):
      if args[name].present:
        raise UserError(f"--{name} is of both models: give --segmenter, too")
    classifier = load_classifier(args.classifier)
    classification_scan.read_calibration(classifier)
    wide = load_wide(args.wide, [classifier])
    parts = (
      lambda job, scan: classify_scan(classifier, place_heart(wide, scan)),
      classified.write_classified,
      _describe,
    )
  else:
    scores = _scores(args.calcium, jobs)
    pair = load_pair(
      args.classifier,
      args.segmenter,
      wide=args.wide,
      method=args.method,
      layer=args.layer,
      decision_file=args.decision,
    )
    parts = (
      lambda job, scan: link_scan(pair, scan, calcium=scores.get(job.case)),
      functools.partial(linked.write_linked, pdf=args.pdf),
      _describe_linked,
    )
  scan_jobs.announce("Scoring", jobs, pages.NOTICE)
  failed = scan_jobs.run_jobs(
    jobs,
    classified.KIND,
    *parts,
    series=args.series,
    overwrite=args.overwrite,
  )
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
