"""The training loop: one function, read from top to bottom."""

import dataclasses
import pathlib
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from tqdm import tqdm

from cadjax.core import parallel
from cadjax.models import flops, layers
from cadjax.training import (
  checkpoint,
  optimizer,
  profiling,
  steps,
  timing,
  warm_start,
  workdir,
)
from cadjax.training.log import RunLog
from cadjax.training.task import Kind, Task, check_config, make_model
from data_prep.errors import UserError

# Enough for the norms of averaged weights, see `steps.make_statistics_step`.
STATISTICS_BATCHES = 20


@dataclasses.dataclass(frozen=True)
class Progress:
  """What early stopping knows; a checkpoint carries it as JSON.

  Attributes:
    best: the best monitored value so far; None before the first.
    best_loss: the validation loss at that step.
    best_step: the step of that validation.
    stale_epochs: epochs since without an improvement.
    stopped: whether training is over by `config.patience`.
  """

  best: float | None = None
  best_loss: float = 0.0
  best_step: int = 0
  stale_epochs: int = 0
  stopped: bool = False


class NonFiniteLossError(UserError):
  """The loss or its gradients became NaN or infinite."""


@contextmanager
def _sigterm_as_flag() -> Iterator[threading.Event]:
  """Turns SIGTERM into a flag that the loop reads between two steps."""
  flag = threading.Event()
  before = signal.signal(signal.SIGTERM, lambda *_: flag.set())
  try:
    yield flag
  finally:
    signal.signal(signal.SIGTERM, before)


def train_and_evaluate(
  config: ml_collections.ConfigDict,
  workdir_path: str | pathlib.Path,
  kind: Kind,
  *,
  profile: tuple[int, int] | None = None,
  minutes: float | None = None,
) -> steps.TrainState:
  """Trains until early stopping or the last epoch; resumes what was begun.

  Args:
    config: see `configs/resnet3d.py` and `configs/unet3d.py` for every field.
    workdir_path: the folder for checkpoints, logs and the config.
    kind: what is trained, of `tasks.find(config)`.
    profile: steps to trace, see `profiling.Tracer`.
    minutes: stop in time to end within so many, after one more validation, so
      that there is a best model; all of it if None.

  Returns:
    the last train state.

  Raises:
    UserError: for data that cannot be used, a workdir of another run, or a
      loss that is not finite.
    lookup.ConfigError: for a config that cannot be used.
  """
  limit = timing.Limit(minutes)
  path = pathlib.Path(workdir_path)
  check_config(config, kind)

  # Devices, data and what the task does with them.
  devices = parallel.make_parallel(config.parallel, **config.mesh)
  dataset = kind.open_dataset(config)
  task = kind.make_task(config, dataset, devices)
  per_epoch = task.steps_per_epoch
  total_steps = per_epoch * config.epochs
  tracer = profiling.Tracer(path, profile)
  tracer.check(1, total_steps)  # Before anything is written.

  # Model and optimizer; the step is compiled at its first call.
  model = make_model(config, devices.axis_name, devices.platform)
  tx, schedule = optimizer.get_optimizer(
    config.optimizer, total_steps=total_steps
  )
  train_step = devices.train_step(
    steps.make_train_step(
      model,
      tx,
      task.loss_fn,
      task.prepare,
      score=task.score,
      seed=config.seed,
      schedule=schedule,
      ema_decay=config.ema_decay,
      accumulate=config.optimizer.get("accumulate", 1),
      axis_name=devices.axis_name,
    )
  )
  statistics_step = devices.train_step(
    steps.make_statistics_step(model, task.prepare, seed=config.seed)
  )

  # State: new, taken from another run, or where this workdir stopped.
  plain = make_model(config)
  taken = None
  if config.get("init_from") and not checkpoint.begun(path):
    taken = warm_start.read(config.init_from, plain, task.image_shape)
  workdir.prepare(path, config, dataset)
  state = steps.create_state(
    plain,
    tx,
    jax.random.key(config.seed),
    task.image_shape,
    ema=config.ema_decay > 0,
  )
  if taken is not None:
    found, new = taken
    state = warm_start.begin(state, found)
    tqdm.write(
      f"{len(found)} arrays from {config.init_from};"
      f" new: {', '.join(new) or 'none'}"
    )
  state = devices.put_replicated(state)
  checkpoints = checkpoint.Checkpoints(path)
  progress = Progress()
  restored = checkpoints.restore(state)
  if restored is not None:
    state, saved = restored
    progress = Progress(**saved)
  start = int(state.step)
  if start < total_steps and not progress.stopped:
    checkpoints.check_space(state)
  tracer.check(start + 1, total_steps)
  log = RunLog(path, start)
  if start:
    tqdm.write(f"resuming {path} at step {start} of {total_steps}")

  def check(step: int, values: dict[str, Any], rows) -> dict[str, float]:
    """Reads the metrics of a step from the device; stops if not finite."""
    values = {name: float(value) for name, value in values.items()}
    # The loss is of the parameters before the step, which gradients spoil.
    for name, what in (("loss", "loss"), ("grad_norm", "gradients' norm")):
      if not np.isfinite(values[name]):
        raise NonFiniteLossError(
          f"the {what} is {values[name]} at step {step}, on the cases"
          f" {', '.join(row['case_id'] for row in rows)}; try a lower"
          " config.optimizer.learning_rate, or config.optimizer.clip_norm"
        )
    if step % config.log_every == 0 or step == 1:
      log.scalars(step, "train", values)
    return values

  def evaluated(step: int) -> dict[str, Any]:
    """The variables of an evaluation; of averaged weights, their statistics."""
    variables = state.eval_variables()
    if state.ema_params is None or not state.batch_stats:
      return variables
    # Of the last batches of the epoch, so that a resumed run has the same.
    first = max(0, step - min(per_epoch, STATISTICS_BATCHES))
    given = jax.tree.map(jnp.copy, variables)  # The step takes them over.
    given["step"] = devices.put_replicated(jnp.asarray(first, jnp.int32))
    found = []
    for batch, _ in devices.prefetch(task.batches(first, step)):
      given, one = statistics_step(given, batch)
      found.append(one)
    pooled = devices.put_replicated(layers.pool_statistics(found))
    return variables | {"batch_stats": pooled}

  # The loop. Metrics are read one step late, so that the device never waits.
  batches = devices.prefetch(
    task.batches(start, start if progress.stopped else total_steps)
  )
  peak = timing.peak_flops(devices.kind, devices.count)
  clock = timing.Clock(
    volumes=config.data.batch_size,
    flops=_step_flops(plain, config, task) if peak else 0,
    peak=peak,
  )
  bar = tqdm(total=total_steps, initial=start, unit="step", dynamic_ncols=True)
  pending = None
  interrupted = late = False
  with (
    _sigterm_as_flag() as sigterm,  # Until the last checkpoint is written.
    closing(checkpoints),
    closing(log),
    closing(tracer),
    bar,
  ):
    for step, (batch, rows) in enumerate(clock.waiting(batches), start + 1):
      first = step == start + 1  # Of this process, which compiles.
      with clock.part(timing.COMPILATION) if first else nullcontext():
        if step == 1:
          log.pictures(batch, task.prepare, devices)
        with tracer.step(step):
          state, values = train_step(state, batch)
      tracer.done(step, state)
      if pending is not None:
        loss = check(*pending)["loss"]
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
      pending = (step, values, rows)
      bar.update()
      if step % config.log_every == 0 and (speed := clock.speed(step - start)):
        log.scalars(step, "speed", speed)

      end_of_epoch = step % per_epoch == 0
      due = step % config.checkpoint_every == 0
      interrupted = sigterm.is_set()
      late = step < total_steps and limit.reached(clock.ending())
      if not (end_of_epoch or due or interrupted or late):
        continue
      check(*pending)  # Nothing is saved that is not finite.
      pending = None
      if end_of_epoch or (late and not interrupted):
        with clock.part(timing.EVALUATION):
          variables = evaluated(step)
          values = task.validate(variables)
        log.scalars(step, "validation", values)
        judged = judge(progress, values, step, config)
        # Within an epoch no improvement does not count.
        if end_of_epoch or judged.best_step == step:
          progress = judged
        if progress.best_step == step:
          with clock.part(timing.CHECKPOINTS):
            checkpoints.save_best(step, variables)
        log.scalars(step, "time", clock.shares())
        bar.write(_epoch_line(step / per_epoch, config, values, progress))
      with clock.part(timing.CHECKPOINTS):
        checkpoints.save(step, state, dataclasses.asdict(progress))
      if progress.stopped or interrupted or late:
        break
  value = "undefined" if progress.best is None else f"{progress.best:.4f}"
  best = (
    f"best validation {config.monitor} {value} at step {progress.best_step}"
  )
  if interrupted:
    tqdm.write(
      f"stopped by SIGTERM at step {int(state.step)} of {total_steps}; the same"
      " command goes on from here"
    )
  elif late and not progress.stopped:
    tqdm.write(
      f"stopped after --minutes={minutes:g} at step {int(state.step)} of"
      f" {total_steps}: {best}, in {path}; the same command goes on from here"
    )
  else:
    workdir.finish(path, int(state.step), dataclasses.asdict(progress))
    tqdm.write(f"done: {best}, in {path}")
  return state


def _step_flops(model, config, task: Task) -> int:
  """Returns the operations of a step on all devices, see `flops`."""
  examples = config.data.batch_size
  if config.model.ndim == 2:  # Of volumes, or of patches.
    data = config.data
    examples *= data.get("slices_per_volume") or data.patch_size[0]
  counted = flops.count(model, (1, *task.image_shape))
  return examples * flops.step_flops(counted, train=True)


def judge(
  progress: Progress, values: Mapping[str, float], step: int, config
) -> Progress:
  """Returns the early-stopping state after one more validation.

  Better is a better monitored value, or an equal one at a lower loss: the AUC
  of a small validation set is soon 1, while the loss still tells epochs apart.

  Args:
    progress: before it.
    values: the metrics of the validation.
    step: of the validation.
    config: `monitor` and `patience`.
  """
  value = values[config.monitor]
  loss = values.get("loss", 0.0)  # No validation of a segmenter has it.
  sign = -1 if config.monitor == "loss" else 1
  if np.isfinite(value) and (
    progress.best is None
    or (sign * value, -loss) > (sign * progress.best, -progress.best_loss)
  ):
    progress = Progress(best=value, best_loss=loss, best_step=step)
  else:
    stale = progress.stale_epochs + 1
    progress = dataclasses.replace(progress, stale_epochs=stale)
  stopped = progress.stale_epochs >= config.patience
  return dataclasses.replace(progress, stopped=stopped)


def _epoch_line(
  epoch: float, config, values: dict[str, float], progress
) -> str:
  shown = " ".join(f"{name} {value:.4f}" for name, value in values.items())
  line = f"epoch {epoch:.4g}/{config.epochs}  validation: {shown}"
  if progress.stale_epochs:
    line += f"  ({progress.stale_epochs} without improvement)"
  if progress.stopped:
    line += "  early stop"
  return line
