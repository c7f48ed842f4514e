"""Where the wall time of a training goes, and how fast it is."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# COMPILATION is the first step of a process, with the pictures before it; INPUT
# is waiting for the next batch. What is in no other part is STEPS: the step on
# the devices, which the host is ahead of or waits for.
COMPILATION, INPUT = "compilation", "input"
EVALUATION, CHECKPOINTS = "evaluation", "checkpoints"
STEPS = "steps"
PARTS = (STEPS, COMPILATION, INPUT, EVALUATION, CHECKPOINTS)
# Dense bfloat16 FLOP/s of one device by a part of its name, from its maker; of
# two that match the first counts.
PEAK_FLOPS = {
  "v5 lite": 197e12,
  "v5e": 197e12,
  "v5p": 459e12,
  "v6 lite": 918e12,
  "v6e": 918e12,
  "TPU v4": 275e12,
  "H200": 989e12,
  "H100": 989e12,
  "A100": 312e12,
  "L4": 121e12,
  "T4": 65e12,  # Of float16; it has no bfloat16.
}


def peak_flops(kind: str, count: int) -> float | None:
  """Returns the peak of devices of a kind; None if it is not known.

  Args:
    kind: `jax.Device.device_kind`.
    count: how many there are.
  """
  each = (peak for name, peak in PEAK_FLOPS.items() if name in kind)
  return next((peak * count for peak in each), None)


class Clock:
  """Divides the time since it was made into `PARTS`.

  Args:
    volumes: volumes (segmenter: patches) in a step.
    flops: of a step, see `flops.step_flops`.
    peak: FLOP/s of all devices together, or None.
    now: the time in seconds.
  """

  def __init__(
    self,
    *,
    volumes: int,
    flops: float,
    peak: float | None,
    now: Callable[[], float] = time.perf_counter,
  ):
    self._volumes, self._flops, self._peak = volumes, flops, peak
    self._now = now
    self._start = now()
    self._spent = dict.fromkeys(PARTS[1:], 0.0)
    self._times = dict.fromkeys(PARTS[1:], 0)
    self._last = (0, self._working())

  @contextmanager
  def part(self, name: str) -> Iterator[None]:
    """Counts the time of a block as one of `PARTS`."""
    start = self._now()
    try:
      yield
    finally:
      self._spent[name] += self._now() - start
      self._times[name] += 1

  def waiting(self, items: Iterable[Any]) -> Iterator[Any]:
    """Yields items, and counts the time until each is there as `INPUT`."""
    iterator = iter(items)
    while True:
      with self.part(INPUT):
        try:
          item = next(iterator)
        except StopIteration:
          return
      yield item

  def shares(self) -> dict[str, float]:
    """Returns the share of the time that each part took.

    That of STEPS is the goodput.
    """
    total = max(self._now() - self._start, 1e-9)
    shares = {name: spent / total for name, spent in self._spent.items()}
    return {STEPS: 1 - sum(shares.values()), **shares}

  def ending(self) -> float:
    """Returns the seconds that a validation and two checkpoints usually take.

    0 of what has not been done yet.
    """
    usual = {k: self._spent[k] / max(1, self._times[k]) for k in self._spent}
    return usual[EVALUATION] + 2 * usual[CHECKPOINTS]

  def speed(self, step: int) -> dict[str, float]:
    """Returns the speed since the last call, at steps and their input.

    Args:
      step: how many steps this process has done.

    Returns:
      volumes_per_s; and flops_share, model FLOP/s over the devices' peak,
      where that is known. Nothing where no step was done.
    """
    before, then = self._last
    working = self._working()
    self._last = step, working
    if step <= before or working <= then:
      return {}
    rate = (step - before) / (working - then)
    found = {"volumes_per_s": rate * self._volumes}
    if self._peak is not None:
      found["flops_share"] = rate * self._flops / self._peak
    return found

  def _working(self) -> float:
    apart = (COMPILATION, EVALUATION, CHECKPOINTS)
    return self._now() - self._start - sum(self._spent[name] for name in apart)


class Limit:
  """Tells when a training has to stop to end in time.

  Args:
    minutes: from now on; None for any time.
    now: the time in seconds.
  """

  def __init__(
    self,
    minutes: float | None,
    *,
    now: Callable[[], float] = time.perf_counter,
  ):
    self._now = now
    self._end = math.inf if minutes is None else now() + 60 * minutes

  def reached(self, ending: float) -> bool:
    """Returns whether at most `ending` seconds remain."""
    return self._now() + ending >= self._end
