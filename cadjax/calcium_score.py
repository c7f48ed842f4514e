"""Scores the calcium of scans without contrast.

  cadjax calcium --input=SCAN --out=DIR [--mask=MASK]

Agatston and volume score by the published rules, and with --calibration the
mass score. --input and --out as in cadjax.predict. Only what is above 0 in
--mask counts, by label: of the heart, of vessels or of lesions. Without a mask
a box around the heart is searched, and the calcium of valves, aorta and small
pieces of bone in it counts, too. Of each scan it writes a JSON file, the mask
of the lesions and a picture; see `cadjax.report.calcified`.

The rule is for 120 kV. Scans with contrast are refused.
"""

from collections.abc import Sequence

from absl import flags

from cadjax.calcium.scan import CalciumScan, score_calcium
from cadjax.core import lookup
from cadjax.data import jobs as scan_jobs
from cadjax.data import scans
from cadjax.report import calcified, pages
from data_prep import errors, volume
from data_prep.errors import UserError


def _describe(job: scan_jobs.Job, result: CalciumScan) -> str:
  """Returns what is printed of a scan."""
  lines = [f"{job.case}: {result.summary}"]
  for label, name in result.names.items():
    one = result.score.regions[label]
    lines.append(f"  {name}: {one.agatston:.1f}, lesions: {one.lesions}")
  lines += [f"  warning: {warning}" for warning in result.warnings]
  lines += [f"  - {concern}" for concern in result.concerns]
  lines += [f"  note: {note}" for note in result.notes]
  lines.append(f"  {job.folder / calcified.FILES['result']}")
  return "\n".join(lines)


def define_flags() -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  scan_jobs.define_flags(heart_mask=False)
  flags.DEFINE_multi_string(
    "mask", [], "Where calcium counts, one for each scan; else a box."
  )
  flags.DEFINE_list("names", [], "Names of the masks' labels from 1 on.")
  flags.DEFINE_float(
    "calibration",
    None,
    "mg/cm3 of hydroxyapatite per HU, for the mass; `python -m"
    " cadjax.calcium.qrm` measures it.",
    lower_bound=0.0,
  )


def _check(args: flags.FlagValues, jobs: Sequence[scan_jobs.Job]) -> None:
  if args.mask and len(args.mask) != len(jobs):
    raise UserError(
      f"{len(args.mask)} of --mask for {len(jobs)} scans; give one for each,"
      " in the same order"
    )
  if args.names and not args.mask:
    raise UserError("--names names the labels of a mask: give --mask, too")
  if args.calibration == 0:
    raise UserError("--calibration=0: must be above 0; usual are 0.6 to 1")


def main(_: Sequence[str]) -> int:
  """Scores all scans; returns the exit code."""
  args = flags.FLAGS
  jobs = scan_jobs.make_jobs(args.input, args.out, cases=args.case)
  _check(args, jobs)
  masks = dict(zip((job.case for job in jobs), args.mask, strict=False))

  def score(job: scan_jobs.Job, scan: scans.Scan) -> CalciumScan:
    mask = masks.get(job.case)
    return score_calcium(
      scan,
      mask=volume.read_mask(mask) if mask is not None else None,
      names=args.names,
      calibration=args.calibration,
    )

  print(pages.NOTICE, flush=True)
  failed = scan_jobs.run_jobs(
    jobs,
    calcified.KIND,
    score,
    calcified.write_calcified,
    _describe,
    series=args.series,
    overwrite=args.overwrite,
  )
  if len(jobs) > 1:
    print(f"{len(jobs) - failed} scored, {failed} failed")
  return 2 if failed else 0


if __name__ == "__main__":
  errors.run(
    "cadjax calcium",
    main,
    define_flags,
    expected=(lookup.ConfigError,),
  )
