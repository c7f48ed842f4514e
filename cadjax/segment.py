"""Segments scans, with the models that come with cadjax or with others.

  cadjax segment --input=SCAN --out=DIR
  cadjax segment --segmenter=WORKDIR --input=SCAN --out=DIR

The first finds the heart in the whole chest with the shipped segmenter "wide",
and then the coronary arteries in the box around it with "coronary"; the mask
has the classes of both. The second runs one segmenter, around the heart that is
found in the image; --wide=NAME puts a first stage before it.

--input and --out as in cadjax.predict. Of each scan it writes the mask on the
scan's own grid, a picture and a JSON file, which names the classes; see
`cadjax.report.segmented`.
"""

from collections.abc import Sequence

from absl import flags

from cadjax.core import lookup
from cadjax.data import jobs as scan_jobs
from cadjax.report import pages, segmented
from cadjax.segmentation.scan import SegmentedScan, segment_scan
from cadjax.segmentation.segmenter import WIDE, load_segmenter, load_wide
from data_prep import errors


def _describe(job: scan_jobs.Job, result: SegmentedScan) -> str:
  """Returns what is printed of a segmented scan."""
  lines = [f"{job.case}: {result.summary}"]
  lines += [f"  warning: {warning}" for warning in result.warnings]
  lines += [f"  - {concern}" for concern in result.reading.prepared.concerns]
  lines += [f"  note: {note}" for note in result.reading.model_input.notes]
  lines.append(f"  {job.folder / segmented.FILES['mask']}")
  return "\n".join(lines)


def define_flags() -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  flags.DEFINE_string(
    "segmenter", None, "Workdir or file of weights; else the shipped coronary."
  )
  flags.DEFINE_string("wide", None, WIDE)
  scan_jobs.define_flags()
  flags.DEFINE_bool(
    "mirror", None, "Average over mirror images; by default as configured."
  )
  flags.DEFINE_integer(
    "batch_size", None, "Windows at a time; by default as configured."
  )


def main(_: Sequence[str]) -> int:
  """Segments all scans; returns the exit code."""
  args = flags.FLAGS
  jobs = scan_jobs.make_jobs(
    args.input, args.out, cases=args.case, heart_masks=args.heart_mask
  )
  segmenter = load_segmenter(args.segmenter)
  wide = load_wide(args.wide, [segmenter])
  if args.mirror is not None:
    segmenter.config.segment.mirror = args.mirror
  if args.batch_size is not None:
    segmenter.config.data.eval_batch_size = args.batch_size
  scan_jobs.announce("Segmenting", jobs, pages.NOTICE)
  failed = scan_jobs.run_jobs(
    jobs,
    segmented.KIND,
    lambda job, scan: segment_scan(segmenter, scan, wide=wide, progress=True),
    segmented.write_segmented,
    _describe,
    series=args.series,
    overwrite=args.overwrite,
  )
  if len(jobs) > 1:
    print(f"{len(jobs) - failed} segmented, {failed} failed")
  return 2 if failed else 0


if __name__ == "__main__":
  errors.run(
    "cadjax segment",
    main,
    define_flags,
    expected=(lookup.ConfigError,),
  )
