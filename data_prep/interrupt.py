"""Ctrl-C ends a program in one line, at whatever moment it comes."""

import contextlib
import os
import signal
import sys
import types
from typing import NoReturn

CODE = 130  # As shells have it: 128 and the number of SIGINT.


def stop(message: str = "stopped") -> NoReturn:
  """Prints one line and exits with code 130; a second Ctrl-C does so at once.

  Raises:
    SystemExit: so that files are closed and temporary folders removed.
  """
  # What ends in the background, such as a checkpoint, must not be a traceback.
  with contextlib.suppress(ValueError):  # In another thread than the main one.
    signal.signal(signal.SIGINT, lambda *_: os._exit(CODE))
  print(message, file=sys.stderr)
  sys.exit(CODE)


def guard_imports() -> None:
  """Makes Ctrl-C one line while `python -m` still imports the program.

  Packages call it as they are imported; as libraries they change nothing.
  """
  if sys.argv[:1] == ["-m"]:
    sys.excepthook = _report


def _report(
  kind: type[BaseException],
  error: BaseException,
  trace: types.TracebackType | None,
) -> None:
  if not issubclass(kind, KeyboardInterrupt):
    sys.__excepthook__(kind, error, trace)
    return
  print("stopped", file=sys.stderr)
  os._exit(CODE)
