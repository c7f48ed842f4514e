"""What a worker process repeats; without any framework."""

import dataclasses
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Parts = dict[str, float]


def nothing() -> dict[str, Any]:
  """Has nothing to add."""
  return {}


@dataclasses.dataclass(frozen=True)
class Work:
  """One row's work, ready to be repeated.

  Attributes:
    run: does it once and returns when it is done; may return the seconds of
      its parts.
    volumes: that one run gets through; 0 where that means nothing.
    compiles: whether the first run builds what later ones use.
    scale: what the seconds of a run are multiplied by, where it does only a
      part of the work; `info` says which part.
    info: JSON-able facts for the report.
    finish: called once after the last run; more facts.
  """

  run: Callable[[], Parts | None]
  volumes: int = 0
  compiles: bool = False
  scale: float = 1
  info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  finish: Callable[[], dict[str, Any]] = nothing


def timed(fn: Callable[[], Any]) -> tuple[float, Any]:
  """Returns the seconds that `fn()` took, and its result."""
  start = time.perf_counter()
  result = fn()
  return time.perf_counter() - start, result


def median_seconds(fn: Callable[[], Any], repeats: int = 3) -> float:
  """Returns the median time of `fn()` in seconds."""
  return statistics.median(timed(fn)[0] for _ in range(repeats))


def noise_hu(shape: Sequence[int]) -> np.ndarray:
  """Makes an image of noise, int16 HU."""
  return np.random.default_rng(0).integers(-1024, 1500, shape, np.int16)


def resident_bytes() -> int | None:
  """Returns the resident memory in bytes where the system tells it."""
  statm = pathlib.Path("/proc/self/statm")
  if not statm.exists():
    return None
  return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
