"""Runs the rows of a group in turns, each in a process of its own.

Turns (A B A B ...) make the ratio of two rows hold on a machine whose speed
changes, and processes keep thread pools and memory of frameworks apart.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from cadjax.bench.rows import BenchRow

MESSAGE_LENGTH = 300
# Words of a compiler or allocator whose device has not enough memory.
FULL = ("RESOURCE_EXHAUSTED", "out of memory", "exceeded hbm")


class WorkerError(Exception):
  """A worker ended before its time; the message says why, in one line."""


@dataclasses.dataclass
class Result:
  """What came of a row.

  Attributes:
    row: the row.
    info: what the worker reported when it was ready and at its end: volumes,
      platform, flops, compile_seconds, peak_bytes, ...
    seconds: of every run.
    parts: seconds of the parts of every run, by name.
    error: why there is no result, in one line, or None.
  """

  row: BenchRow
  info: dict[str, Any] = dataclasses.field(default_factory=dict)
  seconds: list[float] = dataclasses.field(default_factory=list)
  parts: list[dict[str, float]] = dataclasses.field(default_factory=list)
  error: str | None = None


def is_full(result: Result) -> bool:
  """Whether a row failed because its device has not enough memory."""
  said = (result.error or "").lower()
  return any(word.lower() in said for word in FULL)


class Worker:
  """A process that repeats the work of one row on request."""

  def __init__(self, row: BenchRow):
    # A file, as a pipe that nobody reads would fill up and block.
    self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
    self._process = subprocess.Popen(
      [sys.executable, "-m", "cadjax.bench.worker", json.dumps(row.spec)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
      env=os.environ | dict(row.environment),
    )

  def __enter__(self) -> "Worker":
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()

  def answer(self) -> dict[str, Any]:
    """Waits for the next answer.

    Raises:
      WorkerError: the process has ended instead.
    """
    line = self._process.stdout.readline()
    if not line:
      raise WorkerError(self._why())
    return json.loads(line)

  def go(self) -> dict[str, Any]:
    """Has the work done once; see `answer`."""
    # A process that is gone has no answer either, and that says why.
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write("go\n")
      self._process.stdin.flush()
    return self.answer()

  def finish(self) -> dict[str, Any]:
    """Ends the work; returns the last answer."""
    self._process.stdin.close()
    return self.answer()

  def close(self) -> None:
    """Ends the process, whatever it does."""
    self._process.kill()
    self._process.wait()
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.stdout.close()
    self._errors.close()

  def _why(self) -> str:
    code = self._process.wait()
    if code < 0:
      hint = " (out of memory?)" if code == -9 else ""
      return f"killed by signal {-code}{hint}"
    self._errors.seek(0)
    lines = [line.strip() for line in self._errors if line.strip()]
    last = lines[-1] if lines else "no message"
    return f"exit code {code}: {last[:MESSAGE_LENGTH]}"


def measure(
  rows: Sequence[BenchRow], repeats: int, *, say: Callable[[str], None]
) -> list[Result]:
  """Measures rows in turns.

  Args:
    rows: of one group.
    repeats: runs of each row, after its warm-up.
    say: gets a line for every row that starts and for every one that fails.

  Returns:
    a result for every row, in order; that of a failed row has an error.
  """
  results = [Result(row) for row in rows]
  waiting: list[tuple[Result, Worker]] = []
  with contextlib.ExitStack() as stack:
    # One after the other: compilers would disturb each other's times.
    for result in results:
      say(f"{result.row.group}: {result.row.name}")
      worker = stack.enter_context(Worker(result.row))
      _attempt(_ready, result, worker, say)
      # One process holds a TPU, so the next one cannot wait beside it.
      if result.info.get("platform") == "tpu":
        _take_turns([(result, worker)], repeats, say)
        worker.close()
      else:
        waiting.append((result, worker))
    _take_turns(waiting, repeats, say)
  return results


def _take_turns(
  pairs: Sequence[tuple[Result, Worker]],
  repeats: int,
  say: Callable[[str], None],
) -> None:
  for step in [_once] * repeats + [_last]:
    for result, worker in pairs:
      if result.error is None:
        _attempt(step, result, worker, say)


def _ready(result: Result, worker: Worker) -> None:
  result.info.update(worker.answer())


def _once(result: Result, worker: Worker) -> None:
  answer = worker.go()
  result.seconds.append(answer["seconds"])
  result.parts.append(answer["parts"])


def _last(result: Result, worker: Worker) -> None:
  result.info.update(worker.finish())


def _attempt(step, result: Result, worker: Worker, say) -> None:
  """Takes a step; a dead worker becomes the result's error."""
  try:
    step(result, worker)
  except WorkerError as error:
    result.error = str(error)
    say(f"{result.row.group}: {result.row.name} failed: {error}")
