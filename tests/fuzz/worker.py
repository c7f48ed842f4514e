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
import sys
import traceback
import warnings
from typing import Any

from fuzz import memory
from fuzz.target import Refused


class _Words(logging.Handler):
  """Keeps the warnings that the project's own code logs for its users."""

  def __init__(self):
    super().__init__(logging.WARNING)
    self.found: list[str] = []

  def emit(self, record: logging.LogRecord) -> None:
    if pathlib.Path(record.pathname).parts[-3:-1] and any(
      part in ("cadjax", "data_prep", "fuzz")
      for part in pathlib.Path(record.pathname).parts
    ):
      self.found.append(record.getMessage())


def answer(targets: dict[str, Any], request: dict[str, str]) -> dict[str, Any]:
  """Makes or reads an example; returns what came of it as JSON."""
  target = targets[request["target"]]
  folder = pathlib.Path(request["folder"])
  if request["do"] == "make":
    return {"entry": target.make(folder)}
  words = _Words()
  logger = logging.getLogger("absl")
  for one in (logging.getLogger(), logger):
    one.addHandler(words)
  screen = io.StringIO()
  peak = memory.Peak(os.getpid())
  result: dict[str, Any]
  try:
    with (
      contextlib.redirect_stdout(screen),
      contextlib.redirect_stderr(screen),
      warnings.catch_warnings(),
    ):
      warnings.simplefilter("ignore")
      found = target.read(folder, request["entry"])
    said = [*found.words, *words.found, *screen.getvalue().splitlines()]
    said = [text.replace(str(folder), "ROOT") for text in said if text.strip()]
    result = {"outcome": "accepted", "parts": found.parts, "words": said}
  except Refused as error:
    result = {"outcome": "refused", "message": str(error)}
  except BaseException as error:
    result = _raised(error)
  for one in (logging.getLogger(), logger):
    one.removeHandler(words)
  return result | {"rise": peak.rise()}


def _raised(error: BaseException) -> dict[str, Any]:
  if isinstance(error, _reported()):
    from data_prep import errors

    return {
      "outcome": "refused",
      "message": f"error: {errors.one_line(error)}\n",
    }
  frames = traceback.extract_tb(error.__traceback__)
  own = [x for x in frames if "/cadjax/" in x.filename or "prep/" in x.filename]
  at = (own or frames)[-1]
  where = f"{pathlib.Path(at.filename).name}:{at.lineno} {at.name}"
  text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
  return {"outcome": "raised", "message": f"{text} ({where})"}


def _reported() -> tuple[type[BaseException], ...]:
  """Returns what the programs report in one line, see `errors.run`."""
  from cadjax.core import lookup
  from data_prep.errors import UserError

  return UserError, lookup.ConfigError


def main() -> None:
  """Answers until stdin ends."""
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  # Not the lines that are meant for this process.
  requests = os.fdopen(os.dup(0), "r")
  os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
  module = importlib.import_module(sys.argv[1])
  targets = {target.name: target for target in module.TARGETS}
  for line in requests:
    print(json.dumps(answer(targets, json.loads(line))), file=answers)
    answers.flush()


if __name__ == "__main__":
  main()
