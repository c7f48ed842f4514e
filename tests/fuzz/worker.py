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
from collections.abc import Iterator
from typing import Any

from fuzz import memory
from fuzz.target import Refused

# A line that tqdm draws.
_BAR = re.compile(r"\d+%\|.*\|")


class _Words(logging.Handler):
  """Keeps the warnings that the project's own code logs for its users."""

  def __init__(self):
    super().__init__(logging.WARNING)
    self.found: list[str] = []

  def emit(self, record: logging.LogRecord) -> None:
    own = {"cadjax", "data_prep", "fuzz"}
    if own.intersection(pathlib.Path(record.pathname).parts):
      self.found.append(record.getMessage())


@contextlib.contextmanager
def _own_warnings() -> Iterator[list[str]]:
  """Gives the list of what is logged; keeps all logs off the screen.

  What libraries log is for their developers and no word to the user.
  """
  words = _Words()
  loggers = (logging.getLogger(), logging.getLogger("absl"))
  before = [one.handlers for one in loggers]
  loggers[0].handlers, loggers[1].handlers = [words], []
  try:
    yield words.found
  finally:
    for one, handlers in zip(loggers, before, strict=True):
      one.handlers = handlers


def answer(targets: dict[str, Any], request: dict[str, str]) -> dict[str, Any]:
  """Makes or reads an example; returns what came of it as JSON."""
  target = targets[request["target"]]
  folder = pathlib.Path(request["folder"])
  if request["do"] == "make":
    return {"entry": target.make(folder)}
  screen = io.StringIO()
  peak = memory.Peak(os.getpid())
  result: dict[str, Any]
  try:
    with (
      _own_warnings() as words,
      contextlib.redirect_stdout(screen),
      contextlib.redirect_stderr(screen),
      warnings.catch_warnings(),
    ):
      warnings.simplefilter("ignore")
      found = target.read(folder, request["entry"])
    said = [*found.words, *words, *screen.getvalue().splitlines()]
    said = [text.replace(str(folder), "ROOT") for text in said]
    said = [text for text in said if text.strip() and not _BAR.search(text)]
    result = {"outcome": "accepted", "parts": found.parts, "words": said}
  except Refused as error:
    result = {"outcome": "refused", "message": str(error)}
  except BaseException as error:
    result = _raised(error)
  return result | {"rise": peak.rise()}


# What the programs report in one line, see `errors.run`: module and class.
_REPORTED = (
  ("data_prep.errors", "UserError"),
  ("cadjax.core.lookup", "ConfigError"),
)


def _raised(error: BaseException) -> dict[str, Any]:
  # A module that nobody has imported has raised nothing.
  reported = tuple(
    getattr(sys.modules[module], name)
    for module, name in _REPORTED
    if module in sys.modules
  )
  if isinstance(error, reported):
    # As `errors.one_line` does.
    text = " ".join(str(error).split())
    return {"outcome": "refused", "message": f"error: {text}\n"}
  frames = traceback.extract_tb(error.__traceback__)
  own = [x for x in frames if "/cadjax/" in x.filename or "prep/" in x.filename]
  at = (own or frames)[-1]
  where = f"{pathlib.Path(at.filename).name}:{at.lineno} {at.name}"
  text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
  return {"outcome": "raised", "message": f"{text} ({where})"}


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
