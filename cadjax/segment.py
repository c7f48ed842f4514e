"""Segments scans with a trained segmenter.

  cadjax segment --segmenter=WORKDIR --input=SCAN --out=DIR

--input and --out as in `cadjax predict`. Of each scan it writes

  segments.nii.gz   uint8 classes, with exactly the scan's shape and affine
  planes.png        where most of each class lies, outlined
  segments.json     schema "cadjax.segments/1" (null where not known):

  schema          "cadjax.segments/1"
  notice          what this software is not
  warnings        sentences that must be read with the masks; [] if none
  summary         what was found, in words
  case            the name of the case, from the caller or the input's name
  created         UTC, ISO 8601
  input           name (of the file or folder, without its path), shape
                  [D, H, W], spacing_mm [D, H, W], notes (what the reader
                  chose, left out or assumed)
  classes         for each: value (in the NIfTI file), name, voxels,
                  volume_ml, components (26-connected)
  segmentation    classes (the task), window, overlap, mirror,
                  min_component_mm3
  plausibility    concerns (why the scan is unlike the training data),
                  features (of the model's input)
  segmenter       workdir (its name), step, model, trained_on, grid (recipe),
                  window_hu, versions (of the training run)
  model_input     grid (shape, spacing, origin, direction: LPS mm)
  software        versions of this run
  files           the names of the files beside it

No header field of the scan is copied but for its lattice.
"""

import functools
from collections.abc import Sequence

import jax
from absl import flags

from cadjax.core import lookup
from cadjax.data import jobs as scan_jobs
from cadjax.report import pages
from cadjax.report.segmented import FILES, KIND, write_segments
from cadjax.segmentation.scan import SegmentResult, segment_scan
from cadjax.training import workdir
from data_prep import errors


def _tell(job: scan_jobs.Job, result: SegmentResult) -> str:
  """Returns what is printed of a segmented scan."""
  lines = [f"{job.case}: {result.summary}"]
  lines += [f"  warning: {said}" for said in result.warnings]
  lines += [f"  - {said}" for said in result.prepared.concerns]
  lines += [f"  note: {said}" for said in result.prepared.model_input.notes]
  lines.append(f"  {job.folder / FILES['mask']}")
  return "\n".join(lines)


def segment_all(
  trained: workdir.Trained,
  jobs: Sequence[scan_jobs.Job],
  *,
  series: str | None = None,
  overwrite: bool = False,
) -> int:
  """Segments scans and writes their files; see `jobs.handle_all`."""
  return scan_jobs.handle_all(
    jobs,
    KIND,
    functools.partial(segment_scan, trained, progress=True),
    write_segments,
    _tell,
    series=series,
    overwrite=overwrite,
  )


def define_flags() -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  flags.DEFINE_string(
    "segmenter", None, "Workdir of a trained segmenter.", required=True
  )
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
  trained = workdir.load_trained(args.segmenter, "segment")
  if args.mirror is not None:
    trained.config.segment.mirror = args.mirror
  if args.batch_size is not None:
    trained.config.data.eval_batch_size = args.batch_size
  print(
    f"{pages.NOTICE}\nSegmenting {len(jobs)}"
    f" scan{'s' if len(jobs) > 1 else ''} on {jax.devices()[0].device_kind}",
    flush=True,
  )
  failed = segment_all(
    trained, jobs, series=args.series, overwrite=args.overwrite
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
