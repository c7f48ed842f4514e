"""Calls in a process of their own, whose crash is one line for one scan.

ITK reads DICOM in C++, where a hostile or damaged file can end the process.
The process for such calls is started at the first of them and kept; after a
crash the next call starts another. It imports what the called function needs,
neither jax nor the program that calls.
"""

import atexit
import contextlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any, NamedTuple, TypeVar

import numpy as np

from data_prep.errors import UserError

R = TypeVar("R")

# Far above what a scan takes, also from a slow network drive.
TIMEOUT_S = 1800
_PROGRAM = (
  "import sys; sys.path[:] = {path!r};"
  " from data_prep import isolation; isolation.serve({descriptor})"
)


class _Helper(NamedTuple):
  """The process, and our end of the line to it."""

  process: subprocess.Popen
  line: connection.Connection
  owner: int


_helper: _Helper | None = None
_lock = threading.Lock()
_serves = False


def call(fn: Callable[..., R], *args: Any, path: str | os.PathLike) -> R:
  """Returns `fn(*args)`, computed in another process.

  Calls of several threads take turns.

  Args:
    fn: a function of a module, which the other process can import.
    args: picklable.
    path: what is read, for the message.

  Raises:
    UserError: the process crashed, was killed, or took longer than
      `TIMEOUT_S`.
    Exception: what `fn` raised, with a note of where.
  """
  with _lock:
    try:
      helper = _running()
      try:
        helper.line.send((fn, args))
        if not helper.line.poll(TIMEOUT_S):
          raise UserError(
            f"{path}: reading it took longer than {TIMEOUT_S // 60} minutes"
          )
        result = _receive(helper.line)
      except (EOFError, ConnectionError) as error:
        raise UserError(f"{path}: {_how_it_ended(helper.process)}") from error
    except BaseException:
      # Also after Ctrl-C: the answer to this call must not be the next one's.
      stop()
      raise
  if isinstance(result, Exception):
    raise result
  return result


def stop() -> None:
  """Ends the process, if there is one."""
  global _helper
  helper, _helper = _helper, None
  if helper is None or helper.owner != os.getpid():
    return
  helper.line.close()
  helper.process.kill()
  helper.process.wait()


@contextlib.contextmanager
def at_most(count: int) -> Iterator[None]:
  """Refuses memory beyond `count` bytes more than now, in `serve`'s process.

  A library that takes the word of a damaged header then fails, instead of
  filling the memory. Nothing is done where the system has no such limit.

  Args:
    count: bytes that an honest file cannot need.
  """
  if not _serves or not os.path.exists("/proc/self/statm"):
    yield
    return
  with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
  before = resource.getrlimit(resource.RLIMIT_AS)
  limits = [now + count, *(x for x in before if x != resource.RLIM_INFINITY)]
  resource.setrlimit(resource.RLIMIT_AS, (min(limits), before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, before)


def serve(descriptor: int) -> None:
  """Answers calls until the other end of the line is closed.

  Args:
    descriptor: of our end.
  """
  global _serves
  _serves = True
  line = connection.Connection(descriptor)
  while True:
    try:
      fn, args = line.recv()
    except (EOFError, ConnectionError):
      return
    try:
      result = fn(*args)
    except UserError as error:
      result = error
    except Exception as error:
      error.add_note(f"In the process that reads:\n{traceback.format_exc()}")
      result = error
    try:
      _send(line, result)
    except (BrokenPipeError, ConnectionError):
      return
    del result


def _running() -> _Helper:
  global _helper
  # A fork shares its parent's line, which serves one of them.
  if _helper is not None and _helper.owner != os.getpid():
    _helper = None
  if _helper is None:
    ours, theirs = connection.Pipe()
    search = [os.path.abspath(entry) for entry in sys.path]
    program = _PROGRAM.format(path=search, descriptor=theirs.fileno())
    process = subprocess.Popen(
      [sys.executable, "-c", program],
      pass_fds=[theirs.fileno()],
      stdin=subprocess.DEVNULL,
      # What C++ prints as it crashes; the user gets one line from us.
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      # Ctrl-C is for the caller, at whose end the line is closed.
      start_new_session=True,
    )
    theirs.close()
    _helper = _Helper(process, ours, os.getpid())
  return _helper


def _how_it_ended(process: subprocess.Popen) -> str:
  code = process.wait()
  if code == -signal.SIGKILL:
    return "the process that read it was killed, most likely for want of memory"
  how = f"exit code {code}"
  if code < 0:
    how = signal.strsignal(-code) or f"signal {-code}"
  return (
    f"the process that read it crashed ({how}); the file is damaged, or of a"
    " kind that cannot be read"
  )


def _send(line: connection.Connection, result: Any) -> None:
  """Sends an object, and its arrays after it, piece by piece.

  The other end copies them into its own memory as they come, which takes a
  third of the time of a file in shared memory.
  """
  buffers: list[pickle.PickleBuffer] = []
  content = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
  parts = [buffer.raw() for buffer in buffers]
  line.send((content, [part.nbytes for part in parts]))
  for part in parts:
    while part.nbytes:
      part = part[os.write(line.fileno(), part) :]


def _receive(line: connection.Connection) -> Any:
  content, sizes = line.recv()
  buffers = [np.empty(size, np.uint8) for size in sizes]
  for buffer in buffers:
    rest = memoryview(buffer)
    while rest.nbytes:
      count = os.readv(line.fileno(), [rest])
      if not count:
        raise EOFError
      rest = rest[count:]
  return pickle.loads(content, buffers=buffers)


atexit.register(stop)
