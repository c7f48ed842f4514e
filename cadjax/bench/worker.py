"""One row in a process: python -m cadjax.bench.worker SPEC, SPEC being JSON.

It builds and warms up, says so in a line of JSON, and then does its work once
for every line on stdin, answering with the seconds. At the end of stdin it
tells its peak memory and ends.
"""

import contextlib
import json
import os
import pathlib
import resource
import sys
import traceback
from collections.abc import Mapping
from typing import Any, TextIO

from cadjax.bench.work import Work, timed
from cadjax.core.lookup import ConfigError
from data_prep.errors import UserError, one_line

HOST = ("data", "preprocess", "phantom")
EXPLANATIONS = ("method", "measure")


def make(spec: Mapping[str, Any]) -> Work:
  """Makes the work of a row; see `rows.BenchRow.spec`."""
  # Imported here, so that a process holds the frameworks of its row and none
  # else: its peak memory is part of the result.
  if spec["framework"] == "torch":
    from cadjax.bench import work_torch as module
  elif spec["what"] in ("aot", "memory"):
    from cadjax.bench import work_aot as module
  elif spec["what"] in EXPLANATIONS:
    from cadjax.bench import work_explanations as module
  elif spec["what"] in HOST:
    from cadjax.bench import work_host as module
  else:
    from cadjax.bench import work_jax as module
  return module.MAKERS[spec["what"]](spec)


def peak_rss() -> int:
  """Returns the largest resident memory of this process so far, in bytes."""
  status = pathlib.Path("/proc/self/status")
  if status.exists():
    # Linux hands ru_maxrss down from the process that started this one.
    for line in status.read_text().splitlines():
      if line.startswith("VmHWM:"):
        return int(line.split()[1]) * 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024


def make_tracer(spec: Mapping[str, Any]) -> Any:
  """Makes what traces the runs of a row that --profile asks for, or None."""
  if spec["framework"] != "cadjax" or not spec.get("profile"):
    return None
  from cadjax.training.profiling import Tracer

  folder, start, stop = spec["profile"]
  return Tracer(pathlib.Path(folder), (start, stop))


def serve(work: Work, lines: TextIO, out: TextIO, tracer: Any = None) -> None:
  """Warms up and answers every line; see the top of this file."""

  def answer(**values):
    print(json.dumps(values), file=out, flush=True)

  build = {}
  if work.compiles:
    first, second = (timed(work.run)[0] for _ in range(2))
    build = {"compile_seconds": max(first - second, 0)}
  else:
    work.run()
  answer(volumes=work.volumes, **build, **work.info)
  for number, _ in enumerate(lines, 1):
    with tracer.step(number) if tracer else contextlib.nullcontext():
      seconds, parts = timed(work.run)
    if tracer:
      tracer.done(number, ())
    answer(seconds=work.scale * seconds, parts=parts or {})
  # Before `finish`, whose extra work is not the row's.
  peak = peak_rss()
  answer(peak_bytes=peak, **work.finish())


def _private_stdout() -> TextIO:
  """Keeps stdout for answers; what libraries print goes to stderr."""
  out = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  return out


def main() -> None:
  """Serves the row that the command line describes."""
  out = _private_stdout()
  try:
    spec = json.loads(sys.argv[1])
    serve(make(spec), sys.stdin, out, make_tracer(spec))
  except Exception as error:
    # The last line is the one that the table shows.
    message = one_line(error)
    if not isinstance(error, UserError | ConfigError):
      traceback.print_exc()
      message = f"{type(error).__name__}: {message}"
    print(message, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main()
