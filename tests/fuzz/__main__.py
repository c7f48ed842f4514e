"""Damages files at random and counts what the readers do: `make fuzz`.

    make fuzz CASES=10000
    PYTHONPATH=tests python -m fuzz --cases=500 --format=nii.gz,dicom
    PYTHONPATH=tests python -m fuzz --format=dicom --seed=17 --keep=DIR

The last one repeats one case. Of each outcome the table tells how often it
came: the content is equal; accepted with a warning; rejected in one line;
changed where nothing in the format could tell; changed silently, though a
checksum or a length could have told; a traceback; a crash; a hang; more memory
than twice what the honest file takes and 64 MiB. The exit code is 1 if there
was any of the last five.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import tqdm
from absl import app, flags

from fuzz import formats, harness

CASES = flags.DEFINE_integer(
  "cases", None, "Of all formats together; 500, or 1 with --seed.", 1
)
FORMAT = flags.DEFINE_list("format", [], "Only these; else all.")
SEED = flags.DEFINE_integer("seed", None, "Of the first case of each.", 0)
WORKERS = flags.DEFINE_integer("workers", 1, "Processes.", 1)
DEADLINE = flags.DEFINE_float("deadline_s", 30.0, "When a case hangs.", 0.1)
OUT = flags.DEFINE_string("out", None, "File for every failure, as JSON.")
KEEP = flags.DEFINE_string("keep", None, "Folder for the files that failed.")


def main(argv: Sequence[str]) -> None:
  """Runs the cases that the flags ask for."""
  if argv[1:]:
    raise app.UsageError(f"unexpected argument {argv[1]}")
  known = {target.name: target for target in formats.TARGETS}
  if unknown := sorted(set(FORMAT.value) - known.keys()):
    raise app.UsageError(
      f"--format={unknown[0]} is unknown; known are {', '.join(known)}"
    )
  targets = [known[name] for name in FORMAT.value or known]
  cases = CASES.value or (500 if SEED.value is None else len(targets))
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
    first_seed=SEED.value or 0,
    workers=WORKERS.value,
    limits=harness.Limits(deadline_s=DEADLINE.value),
    keep=pathlib.Path(KEEP.value) if KEEP.value else None,
    report=report,
  )
  bar.close()
  print(harness.table(results))
  if len(results) == 1:
    print(_line(results[0]))
  failed = [x for x in results if x.outcome in harness.FAILURES]
  if OUT.value:
    document = {
      "cases": len(results),
      "counts": harness.count(results),
      "failures": [dataclasses.asdict(result) for result in failed],
    }
    pathlib.Path(OUT.value).write_text(json.dumps(document, indent=2) + "\n")
  sys.exit(bool(failed))


def _line(result: harness.Result) -> str:
  """Returns a result as one printable line."""
  text = f"{result.damage} -> {result.detail}"
  text = "".join(x if x.isprintable() else repr(x)[1:-1] for x in text)
  return (
    f"{result.outcome}: --format={result.format!r} --seed={result.seed}: {text}"
  )


if __name__ == "__main__":
  app.run(main)
