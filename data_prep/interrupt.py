"""Ctrl-C ends a program in one line, at whatever moment it comes."""

import _thread
import os
import signal
import sys
import threading
from typing import Any, NoReturn

CODE = 130  # As shells have it: 128 and the number of SIGINT.
_AGAIN_S = 0.05


def stop(message: str = "stopped") -> NoReturn:
  """Prints one line and ends the process with code 130.

  For the end of a program, where all that was open is closed again: what
  libraries do as Python ends waits for threads, or fails in them.
  """
  print(message, file=sys.stderr)
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except (OSError, ValueError):
      continue  # To a closed pipe; there is nobody to tell.
  os._exit(CODE)


def guard_imports() -> None:
  """Lets Ctrl-C end the process at once, while a program is imported.

  Nothing is open then, and an exception in the middle of an extension module
  may end in a crash. Packages call it as they are imported by `python -m`; as
  libraries they change nothing.
  """
  if sys.argv[:1] == ["-m"]:
    guard()


def guard() -> None:
  """Lets Ctrl-C end the process at once, until `unguard`."""
  # A shell's background job ignores Ctrl-C, and is to do so further on.
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)


def unguard() -> None:
  """Lets Ctrl-C raise KeyboardInterrupt, where nothing can swallow it.

  Python ignores what a callback of the garbage collector raises, such as
  that of jax: the interrupt is sent once more.
  """
  if signal.getsignal(signal.SIGINT) is _stop:
    signal.signal(signal.SIGINT, signal.default_int_handler)
  sys.unraisablehook = _unraisable


def _stop(number: int, frame: Any) -> NoReturn:
  del number, frame
  stop()


def _unraisable(ignored: Any) -> None:
  if not issubclass(ignored.exc_type, KeyboardInterrupt):
    sys.__unraisablehook__(ignored)
    return
  timer = threading.Timer(_AGAIN_S, _thread.interrupt_main)
  timer.daemon = True
  timer.start()
