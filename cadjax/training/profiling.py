"""A trace of some steps of a training."""

import pathlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from tqdm import tqdm

from data_prep.errors import UserError

FOLDER = "profile"


def parse(text: str) -> tuple[int, int]:
  """Returns START and STOP of "START:STOP".

  Raises:
    UserError: the text does not have this form.
  """
  start, colon, stop = text.partition(":")
  numbers = colon and start.isdecimal() and stop.isdecimal()
  if numbers and 1 <= int(start) < int(stop):
    return int(start), int(stop)
  raise UserError(
    f"--profile={text}: is START:STOP, steps from START to before STOP, such as"
    " 20:25; the first step is 1 and compiles"
  )


class Tracer:
  """Traces the steps from `start` to before `stop`.

  TensorBoard and Perfetto open the trace. Operations have the names of the
  network's modules, so that a stage of it can be told.

  Args:
    workdir: gets profile/, with the trace in plugins/profile/.
    steps: (start, stop), or None for no trace.
  """

  def __init__(self, workdir: pathlib.Path, steps: tuple[int, int] | None):
    self._folder = workdir / FOLDER
    self._start, self._stop = steps or (0, 0)
    self._running = False

  def check(self, first: int, last: int) -> None:
    """Raises UserError if the run has not all of the steps.

    Args:
      first: step of the run that is to come.
      last: step of the run.
    """
    if self._stop and not first <= self._start < self._stop <= last + 1:
      raise UserError(
        f"--profile={self._start}:{self._stop}: the run goes on from step"
        f" {first} to {last}"
      )

  def step(self, number: int) -> AbstractContextManager:
    """Returns what a step has to run in."""
    if number == self._start:
      jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
      self._running = True
    if not self._running:
      return nullcontext()
    return jax.profiler.StepTraceAnnotation("train", step_num=number)

  def done(self, number: int, result: Any) -> None:
    """Ends the trace after its last step.

    Args:
      number: of the step that was just dispatched.
      result: what it gives, which is waited for.
    """
    if self._running and number >= self._stop - 1:
      jax.block_until_ready(result)
      self.close()

  def close(self) -> None:
    """Ends the trace if it is running."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      tqdm.write(
        f"trace in {self._folder}: tensorboard --logdir={self._folder}, or open"
        " perfetto_trace.json.gz at ui.perfetto.dev"
      )
