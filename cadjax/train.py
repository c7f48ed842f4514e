"""The training loop: one function, read from top to bottom."""

import functools
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from cadjax import (
  augment,
  checkpoint,
  input_pipeline,
  losses,
  metrics,
  models,
  optimizer,
  parallel,
  steps,
  workdir,
)
from cadjax.log import RunLog
from data_prep.errors import UserError

# What early stopping may watch on validation: +1 where more is better.
MONITORS = {"loss": -1, "accuracy": 1, "balanced_accuracy": 1, "roc_auc": 1}


class NonFiniteLossError(UserError):
  """The loss became NaN or infinite."""


def make_augment(config: ml_collections.ConfigDict) -> Callable | None:
  """The augmentation with the options of `config.augment`; None if empty."""
  if not config:
    return None
  return functools.partial(augment.augment, options=config.to_dict())


def evaluate_split(
  dataset: input_pipeline.Dataset,
  split: str,
  score: Callable[[dict[str, np.ndarray]], np.ndarray],
  batch_size: int,
) -> tuple[list[input_pipeline.Row], np.ndarray]:
  """Scores every case of a split once.

  Args:
    dataset: the records.
    split: "train", "validation" or "test".
    score: a batch to logits [B, S, K].
    batch_size: of the batches; the last one is padded.

  Returns:
    the rows of the cases and their logits [N, S, K].
  """
  rows, logits = [], []
  for batch, cases in dataset.eval_batches(split, batch_size):
    logits.append(score(batch)[: len(cases)])
    rows.extend(cases)
  return rows, np.concatenate(logits)


def validation_metrics(
  rows: list[input_pipeline.Row], logits: np.ndarray, loss_fn: Callable
) -> dict[str, float]:
  """Mean loss and the patient-level metrics at threshold 0.5.

  Args:
    rows: of cases.csv, N of them.
    logits: [N, S, K]; the probabilities of the S slices are averaged.
    loss_fn: per example.
  """
  labels = np.array([int(row["label"]) for row in rows])
  n, s, k = logits.shape
  loss = np.asarray(loss_fn(logits.reshape(n * s, k), np.repeat(labels, s)))
  probs = np.asarray(jax.nn.softmax(logits, axis=-1))[..., 1].mean(axis=1)
  _, first, patient = np.unique(
    [row["patient_id"] for row in rows], return_index=True, return_inverse=True
  )
  # Several scans of one patient count as one: their mean.
  probs = np.bincount(patient, probs) / np.bincount(patient)
  values = metrics.binary_metrics(labels[first], probs, 0.5)
  return {"loss": float(loss.mean())} | {
    name: float(values[name]) for name in MONITORS if name != "loss"
  }


@contextmanager
def _sigterm_as_flag() -> Iterator[threading.Event]:
  """Turns SIGTERM into a flag that the loop reads between two steps."""
  flag = threading.Event()
  before = signal.signal(signal.SIGTERM, lambda *_: flag.set())
  try:
    yield flag
  finally:
    signal.signal(signal.SIGTERM, before)


def _check_config(config, dataset: input_pipeline.Dataset) -> None:
  if config.monitor not in MONITORS:
    raise UserError(
      f"config.monitor is {config.monitor!r}; it is one of {list(MONITORS)}"
    )
  if not config.epochs > 0 or not config.patience > 0:
    raise UserError("config.epochs and config.patience must be at least 1")
  for split in ("train", "validation"):
    classes = {row["label"] for row in dataset.rows[split]}
    if len(classes) < 2:
      found = f"only the label {classes.pop()}" if classes else "no case"
      raise UserError(
        f"{dataset.path}: the {split} split has {found}; both classes are"
        " needed"
      )
  depth, slices = dataset.shape[0], config.data.slices_per_volume
  if config.model.ndim == 2 and not 1 <= slices <= depth:
    raise UserError(
      f"config.data.slices_per_volume = {slices}; a volume has {depth} slices"
    )


def train_and_evaluate(
  config: ml_collections.ConfigDict, workdir_path: str | pathlib.Path
) -> steps.TrainState:
  """Trains until early stopping or the last epoch; resumes what was begun.

  Args:
    config: see `configs/resnet3d.py` for every field.
    workdir_path: the folder for checkpoints, logs and the config.

  Returns:
    the last train state.

  Raises:
    UserError: for data or a config that cannot be used, a workdir of another
      run, or a loss that is not finite.
  """
  path = pathlib.Path(workdir_path)

  # Devices and data.
  devices = parallel.make_parallel(config.parallel, **config.mesh)
  dataset = input_pipeline.open_dataset(config.data)
  _check_config(config, dataset)
  ndim, batch_size = config.model.ndim, config.data.batch_size
  slices = config.data.slices_per_volume if ndim == 2 else None
  devices.check_batch(batch_size, slices or dataset.shape[0])
  per_epoch = dataset.steps_per_epoch(batch_size)
  total_steps = per_epoch * config.epochs

  # Model, loss and optimizer.
  model = models.get_model(config.model, axis_name=devices.axis_name)
  eval_model = models.get_model(config.model)
  tx, schedule = optimizer.get_optimizer(
    config.optimizer, total_steps=total_steps
  )
  loss_fn = losses.get_loss(config.loss)
  window_hu = tuple(config.data.window_hu)
  prepare = steps.make_prepare(
    ndim=ndim, window_hu=window_hu, augment=make_augment(config.augment)
  )

  # The steps, compiled at their first call.
  train_step = devices.train_step(
    steps.make_train_step(
      model,
      tx,
      loss_fn,
      prepare,
      seed=config.seed,
      schedule=schedule,
      ema_decay=config.ema_decay,
      axis_name=devices.axis_name,
    )
  )
  eval_step = devices.eval_step(
    steps.make_eval_step(eval_model, ndim=ndim, window_hu=window_hu)
  )

  # State: new, or where an earlier run of this workdir stopped.
  workdir.prepare(path, config, dataset)
  in_plane = dataset.shape[1:] if ndim == 2 else dataset.shape
  state = devices.put_replicated(
    steps.create_state(
      eval_model,
      tx,
      jax.random.key(config.seed),
      (*in_plane, 1),
      ema=config.ema_decay > 0,
    )
  )
  checkpoints = checkpoint.Checkpoints(path)
  meta = {"best": None, "best_step": 0, "stale_epochs": 0, "stopped": False}
  restored = checkpoints.restore(state)
  if restored is not None:
    state, meta = restored
  start = int(state.step)
  log = RunLog(path, start)
  if start:
    tqdm.write(f"resuming {path} at step {start} of {total_steps}")

  def validate(state: steps.TrainState) -> dict[str, float]:
    variables = state.eval_variables()

    def score(batch):
      return eval_step(variables, devices.put_batch(batch))

    rows, logits = evaluate_split(
      dataset, "validation", score, config.data.eval_batch_size
    )
    return validation_metrics(rows, logits, loss_fn)

  def check(step: int, values: dict[str, Any], rows) -> dict[str, float]:
    """Reads the metrics of a step from the device; stops if not finite."""
    values = {name: float(value) for name, value in values.items()}
    if not np.isfinite(values["loss"]):
      raise NonFiniteLossError(
        f"the loss is {values['loss']} at step {step}, on the cases"
        f" {', '.join(row['case_id'] for row in rows)}; try a lower"
        " config.optimizer.learning_rate, or config.optimizer.clip_norm"
      )
    if step % config.log_every == 0 or step == 1:
      log.scalars(step, "train", values)
    return values

  # The loop. Metrics are read one step late, so that the device never waits.
  batches = devices.prefetch(
    dataset.train_batches(
      batch_size,
      seed=config.seed,
      start=start,
      stop=0 if meta["stopped"] else total_steps,
      slices_per_volume=slices,
    )
  )
  progress = tqdm(
    total=total_steps, initial=start, unit="step", dynamic_ncols=True
  )
  pending = None
  interrupted = False
  with (
    closing(checkpoints),
    closing(log),
    progress,
    _sigterm_as_flag() as sigterm,
  ):
    for step, (batch, rows) in enumerate(batches, start + 1):
      if step == 1:
        log.pictures(batch, prepare, devices)
      state, values = train_step(state, batch)
      if pending is not None:
        loss = check(*pending)["loss"]
        progress.set_postfix(loss=f"{loss:.4f}", refresh=False)
      pending = (step, values, rows)
      progress.update()

      end_of_epoch = step % per_epoch == 0
      due = step % config.checkpoint_every == 0
      interrupted = sigterm.is_set()
      if not (end_of_epoch or due or interrupted):
        continue
      check(*pending)  # Nothing is saved that is not finite.
      pending = None
      if end_of_epoch:
        values = validate(state)
        log.scalars(step, "validation", values)
        _judge(meta, values[config.monitor], step, config)
        if meta["best_step"] == step:
          checkpoints.save_best(step, state.eval_variables())
        progress.write(_epoch_line(step // per_epoch, config, values, meta))
      checkpoints.save(step, state, meta)
      if meta["stopped"] or interrupted:
        break
  if interrupted:
    tqdm.write(
      f"stopped by SIGTERM at step {int(state.step)} of {total_steps}; the same"
      " command goes on from here"
    )
  else:
    value = "undefined" if meta["best"] is None else f"{meta['best']:.4f}"
    tqdm.write(
      f"done: best validation {config.monitor} {value} at step"
      f" {meta['best_step']}, in {path}"
    )
  return state


def _judge(meta: dict[str, Any], value: float, step: int, config) -> None:
  """Updates the early-stopping state by one epoch's monitored value."""
  sign = MONITORS[config.monitor]
  if np.isfinite(value) and (
    meta["best"] is None or sign * value > sign * meta["best"]
  ):
    meta |= {"best": value, "best_step": step, "stale_epochs": 0}
  else:
    meta["stale_epochs"] += 1
  meta["stopped"] = meta["stale_epochs"] >= config.patience


def _epoch_line(epoch: int, config, values: dict[str, float], meta) -> str:
  shown = " ".join(f"{name} {value:.4f}" for name, value in values.items())
  line = f"epoch {epoch}/{config.epochs}  validation: {shown}"
  if meta["stale_epochs"]:
    line += f"  ({meta['stale_epochs']} without improvement)"
  if meta["stopped"]:
    line += "  early stop"
  return line
