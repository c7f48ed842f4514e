"""An ordered map over worker processes, in constant memory."""

import collections
import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import SimpleITK as sitk

from data_prep.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

_THREAD_VARIABLES = (
  "OMP_NUM_THREADS",
  "OPENBLAS_NUM_THREADS",
  "MKL_NUM_THREADS",
)


def available_cores() -> int:
  """Returns how many cores this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def ordered_map(
  fn: Callable[[T], R], items: Sequence[T], *, workers: int
) -> Generator[R | UserError]:
  """Yields `fn(item)` for every item, in order.

  At most two results a worker are under way or waiting, so memory does not
  grow with the number of items. Every worker runs on one thread and ends when
  this process ends, however it ends.

  Args:
    fn: a picklable function.
    items: its picklable arguments.
    workers: processes; 1 computes in this process.

  Yields:
    The result, or the `UserError` that was raised for the item.

  Raises:
    UserError: a worker was killed, most often for want of memory.
  """
  attempt = functools.partial(_attempt, fn)
  if workers <= 1 or len(items) <= 1:
    yield from map(attempt, items)
    return
  with _one_thread_each():
    pool = concurrent.futures.ProcessPoolExecutor(
      min(workers, len(items)),
      # Not fork: the parent may hold threads and locks of jax, absl or ITK.
      mp_context=multiprocessing.get_context("spawn"),
      initializer=_start_worker,
    )
    waiting: collections.deque = collections.deque()
    try:
      for item in items:
        with _deaf_to_interrupts():
          waiting.append(pool.submit(attempt, item))
        if len(waiting) >= 2 * workers:
          yield waiting.popleft().result()
      while waiting:
        yield waiting.popleft().result()
    except BrokenProcessPool as error:
      raise UserError(
        "a worker process was killed, most likely for want of memory; try"
        f" again with fewer than --workers={workers}"
      ) from error
    finally:
      pool.shutdown(wait=True, cancel_futures=True)


def _attempt(fn: Callable[[T], Any], item: T) -> Any:
  try:
    return fn(item)
  except UserError as error:
    return error


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
  """Keeps numerical libraries of processes started inside to one thread."""
  before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
  os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
  try:
    yield
  finally:
    for name, value in before.items():
      if value is None:
        del os.environ[name]
      else:
        os.environ[name] = value


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
  """Starts processes that Ctrl-C does not reach; the parent gets it late.

  Ctrl-C goes to the whole group, and only the parent is to act on it. Workers
  inherit the mask, and so are deaf from their first moment. The mask alone
  does not keep the parent from being interrupted half way through a start:
  another of its threads can take the signal, and Python then raises here.
  """
  late: list[int] = []
  handlers = {}
  if threading.current_thread() is threading.main_thread():
    for number in (signal.SIGINT, signal.SIGTERM):
      handlers[number] = signal.getsignal(number)
      signal.signal(number, lambda number, _: late.append(number))
  mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number, handler in handlers.items():
      signal.signal(number, handler)
    if late:
      signal.raise_signal(late[0])


def _start_worker() -> None:
  sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  # A parent that was killed closes no queue that its workers hold open too.
  multiprocessing.parent_process().join()
  os._exit(1)
