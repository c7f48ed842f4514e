"""Damages files at random and counts what the readers do: `make fuzz`.

  make fuzz CASES=10000
  PYTHONPATH=tests python -m fuzz --cases=500 --format=nii.gz,dicom
  PYTHONPATH=tests python -m fuzz --format=dicom --seed=17 --keep=DIR

The last one repeats one case. Each case damages a copy of a small example,
which is then read as the programs read it, in a process that may crash. The
table counts the outcomes:

  equal: the same content, bit for bit.
  warned: accepted, and the user is told something.
  rejected: one line that can be printed says why.
  changed, unprotected: other content, where nothing in the format could tell:
    a voxel without a checksum, a header or a table with another valid value.
  silently changed: other content without a word, where a checksum, a length or
    a slice that is there but cannot be read could have told.
  traceback: an exception, or a message that is not one printable line.
  crash, hang (--deadline_s).
  memory: more than twice what the honest example takes and 64 MiB; 192 MiB for
    a process that the reader starts.

The exit code is 1 if there was any of the last five. Cases are shared out by
weights: a scan's format gets 2, a folder's layout and what an orbax restore
takes 50 ms for 0.5 to 0.7, all else 1.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import tqdm
from absl import flags

from data_prep import errors, workers
from data_prep.errors import UserError
from fuzz import formats, harness


def define_flags() -> None:
  """Defines the flags."""
  flags.DEFINE_integer(
    "cases", None, "Of all formats together; 500, or 1 each with --seed.", 1
  )
  flags.DEFINE_list("format", [], "Only these; else all.")
  flags.DEFINE_integer("seed", None, "Of the first case of each format.", 0)
  flags.DEFINE_integer("workers", None, "Processes; one a core.", 1)
  flags.DEFINE_float("deadline_s", 30.0, "When a case hangs.", 0.1)
  flags.DEFINE_string("out", None, "File for counts and failures, as JSON.")
  flags.DEFINE_string("keep", None, "Folder for the files that failed.")


def main(argv: Sequence[str]) -> None:
  """Runs the cases that the flags ask for."""
  del argv
  args = flags.FLAGS
  known = {target.name: target for target in formats.TARGETS}
  if unknown := sorted(set(args.format) - known.keys()):
    raise UserError(
      f"--format={unknown[0]} is unknown; known are {', '.join(known)}"
    )
  targets = [known[name] for name in args.format or known]
  cases = args.cases or (500 if args.seed is None else len(targets))
  counts = harness.allot(targets, cases)
  bar = tqdm.tqdm(total=sum(counts.values()), unit="case", smoothing=0)

  def report(result: harness.Result) -> None:
    bar.update()
    if result.outcome in harness.FAILURES:
      tqdm.tqdm.write(_line(result), file=sys.stderr)

  results = harness.run(
    "fuzz.formats",
    targets,
    counts,
    first_seed=args.seed or 0,
    workers=args.workers or workers.available_cores(),
    limits=harness.Limits(deadline_s=args.deadline_s),
    keep=pathlib.Path(args.keep) if args.keep else None,
    report=report,
  )
  bar.close()
  print(harness.table(results))
  if len(results) == 1:
    print(_line(results[0]))
  failed = [x for x in results if x.outcome in harness.FAILURES]
  if args.out:
    document = {
      "cases": len(results),
      "counts": harness.count(results),
      "failures": [dataclasses.asdict(result) for result in failed],
    }
    pathlib.Path(args.out).write_text(json.dumps(document, indent=2) + "\n")
  sys.exit(bool(failed))


def _line(result: harness.Result) -> str:
  """Returns a result, and the flags that repeat it, as one printable line."""
  text = f"{result.damage} -> {result.detail}"
  text = "".join(x if x.isprintable() else repr(x)[1:-1] for x in text)
  return (
    f"{result.outcome}: --format={result.format} --seed={result.seed}: {text}"
  )


if __name__ == "__main__":
  errors.run("python -m fuzz", main, define_flags)
