"""The process that reads: `python -m fuzz.worker MODULE`.

It gets a case a line on stdin, as JSON, and answers with a line on what was
stdout when it began; whatever its libraries print goes to stderr.
"""

import contextlib
import importlib
import io
import json
import logging
import os
import pathlib
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from data_prep import errors
from fuzz import memory
from fuzz.target import Found, Refused

_ROOT = pathlib.Path(__file__).parents[2]
_OWN = tuple(f"{_ROOT}/{x}/" for x in ("cadjax", "data_prep", "tests"))
# A line that tqdm draws.
_BAR = re.compile(r"\d+%\|.*\|")


class _Words(logging.Handler):
  """Keeps the warnings that the project's own code logs for its users."""

  def __init__(self, found: list[str]):
    super().__init__(logging.WARNING)
    self.found = found

  def emit(self, record: logging.LogRecord) -> None:
    if record.pathname.startswith(_OWN):
      self.found.append(record.getMessage())


@contextlib.contextmanager
def _own_warnings(found: list[str]) -> Iterator[None]:
  """Adds what is logged to a list; keeps all logs off the screen.

  What libraries log is for their developers and no word to the user.
  """
  words = _Words(found)
  loggers = (logging.getLogger(), logging.getLogger("absl"))
  before = [one.handlers for one in loggers]
  loggers[0].handlers, loggers[1].handlers = [words], []
  try:
    yield
  finally:
    for one, handlers in zip(loggers, before, strict=True):
      one.handlers = handlers


def answer(targets: dict[str, Any], request: dict[str, str]) -> dict[str, Any]:
  """Makes or reads an example; returns what came of it as JSON."""
  target = targets[request["target"]]
  folder = pathlib.Path(request["folder"])
  if request["do"] == "make":
    return {"entry": target.make(folder)}
  found: list[Found] = []
  screen = io.StringIO()
  peak = memory.Peak(os.getpid())
  result: dict[str, Any]
  words: list[str] = []

  def read() -> None:
    with _own_warnings(words):
      found.append(target.read(folder, request["entry"]))

  with (
    contextlib.redirect_stdout(screen),
    contextlib.redirect_stderr(screen),
    warnings.catch_warnings(),
  ):
    warnings.simplefilter("ignore")
    try:
      _as_a_program(read)
      shown = [*found[0].words, *words, *screen.getvalue().splitlines()]
      shown = [text.replace(str(folder), "ROOT") for text in shown]
      shown = [x for x in shown if x.strip() and not _BAR.search(x)]
      result = {"outcome": "accepted", "parts": found[0].parts, "words": shown}
    except Refused as error:
      result = {"outcome": "refused", "message": str(error)}
    except _Exit:
      result = {"outcome": "refused", "message": screen.getvalue()}
    except BaseException as error:
      result = {"outcome": "raised", "message": _where(error)}
  return result | {"rise": peak.rise()}


class _Exit(Exception):
  """A program came to its end with the exit code of a user's mistake."""


def _as_a_program(do: Callable[[], None]) -> None:
  """Calls a function as the programs' main is called, by `errors.run`."""
  # What nobody has imported has raised nothing.
  lookup = sys.modules.get("cadjax.core.lookup")
  expected = (lookup.ConfigError,) if lookup else ()
  before, sys.argv = sys.argv, ["fuzz"]
  try:
    errors.run(
      "fuzz", lambda _: do(), lambda *args, **values: None, expected=expected
    )
  except SystemExit as end:
    if end.code == 2:
      raise _Exit from end
    if end.code:
      raise
  finally:
    sys.argv = before


def _where(error: BaseException) -> str:
  """Returns an exception and the last of the project's lines that it passed."""
  frames = traceback.extract_tb(error.__traceback__)
  # Where nothing of the project's was passed, the last of all.
  own = [x for x in frames if x.filename.startswith(_OWN[:2])]
  at = ([x for x in own if x.name != "guarded"] or frames)[-1]
  where = f"{pathlib.Path(at.filename).name}:{at.lineno} {at.name}"
  text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
  return f"{text} ({where})"


def main() -> None:
  """Answers until stdin ends."""
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  # Not the lines that are meant for this process.
  requests = os.fdopen(os.dup(0), "r")
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  # What Python says of a coroutine that was never awaited is none either.
  sys.unraisablehook = lambda _: None
  module = importlib.import_module(sys.argv[1])
  targets = {target.name: target for target in module.TARGETS}
  for line in requests:
    print(json.dumps(answer(targets, json.loads(line))), file=answers)
    answers.flush()


if __name__ == "__main__":
  main()
