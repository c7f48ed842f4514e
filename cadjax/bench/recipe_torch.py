"""MONAI's 3D ResNet trained by the recipe of a cadjax config; needs torch.

What is not the network is cadjax's own or the same arithmetic in PyTorch: the
batches in their order, the augmentation with the same random numbers, the
loss, AdamW, the learning rate, clipping, the averaged weights with the
statistics of their own, and the choice of the epoch. Each network starts as
its own library initialises it.
"""

import copy
import dataclasses
import os
import pathlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import torch

from cadjax import tasks
from cadjax.classification.task import validation_metrics
from cadjax.core import lookup, parallel
from cadjax.training import loop, optimizer, steps
from cadjax.training.task import Task, evaluate_split, make_model
from data_prep.errors import UserError, one_line
from data_prep.workers import available_cores

with warnings.catch_warnings():
  # MONAI's imports warn of deprecated names in other packages.
  warnings.simplefilter("ignore")
  from monai.networks import nets

LAST, BEST = "last.pt", "best.pt"
# What is done here, by field of the config.
SAME = {
  "task": ("classify",),
  "model.name": ("resnet",),
  "model.ndim": (3,),
  "model.norm": ("batch",),
  "model.dtype": ("float32",),
  "model.output_stride": (16, 32),
  "loss.name": ("cross_entropy",),
  "optimizer.name": ("adamw",),
  "optimizer.accumulate": (1,),
  "data.prior.use": ("none",),
}
LOSS_OPTIONS = {"name", "label_smoothing"}
# Runs of both before their times count: compiling, and first touch of memory.
WARM_UP = 2


def check(config: ml_collections.ConfigDict) -> None:
  """Raises `lookup.ConfigError` for a recipe that is not done here."""
  for path, known in SAME.items():
    value: Any = config
    for key in path.split("."):
      value = value[key]
    if value not in known:
      raise lookup.ConfigError(
        f"config.{path} is {value!r}; beside MONAI it must be"
        f" {' or '.join(map(repr, known))}"
      )
  if more := sorted(set(config.loss) - LOSS_OPTIONS):
    raise lookup.ConfigError(
      f"config.loss.{more[0]} is not done beside MONAI; leave it out"
    )


def make_net(config: ml_collections.ConfigDict) -> torch.nn.Module:
  """Makes MONAI's ResNet of a config's depth, width and output stride."""
  options = config.model
  torch.manual_seed(config.seed)
  net = getattr(nets, f"resnet{options.depth}")(
    spatial_dims=3,
    n_input_channels=1,
    num_classes=options.num_classes,
    conv1_t_stride=2,
    bias_downsample=False,
    widen_factor=options.width / 64,
  )
  if options.output_stride == 16:
    _dilate(net.layer4)
  return net


def _dilate(layer: torch.nn.Module) -> None:
  """Trades the stride of a stage for a dilation, as cadjax's ResNet has it.

  The convolution that had the stride keeps its taps; later ones space them.
  """
  for module in layer.modules():
    if not isinstance(module, torch.nn.Conv3d):
      continue
    if module.stride == (2, 2, 2):
      module.stride = (1, 1, 1)
    elif module.kernel_size == (3, 3, 3):
      module.dilation = module.padding = (2, 2, 2)


@dataclasses.dataclass(frozen=True, eq=False)
class Scorer:
  """A network with its own way of scoring volumes.

  Attributes:
    net: in evaluation mode.
    window_hu: the HU that become 0 and 1.
  """

  net: torch.nn.Module
  window_hu: tuple[float, float]

  @torch.inference_mode()
  def logits(self, image: np.ndarray) -> np.ndarray:
    """Scores int16 HU [B, D, H, W, 1]; float32 [B, 1, K]."""
    low, high = self.window_hu
    x = (torch.from_numpy(image).float() - low) / (high - low)
    x = x.clamp_(0, 1).movedim(-1, 1).contiguous()
    return self.net(x).numpy()[:, None]


def load(config: ml_collections.ConfigDict, folder: pathlib.Path) -> Scorer:
  """Loads the network that `train` chose.

  Raises:
    UserError: there is none, or it cannot be read.
  """
  net = make_net(config)
  state = _read(folder / BEST)
  try:
    net.load_state_dict(state["net"])
  except (RuntimeError, KeyError) as error:
    raise UserError(
      f"{folder / BEST}: is not of this config ({one_line(error)[:200]}); give"
      " another --out"
    ) from error
  return Scorer(net.eval(), tuple(config.data.window_hu))


def train(
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
  *,
  pairs: int,
  say: Callable[[str], None],
) -> list[tuple[float, float]]:
  """Trains MONAI's network, or goes on where a run of before stopped.

  Args:
    config: of a classifier, see `check`.
    folder: gets the last and the best state.
    pairs: how many steps, spread over the training, are also taken by a
      cadjax network on the same batch, for the times of both; 0 for none.
    say: gets a line for every epoch.

  Returns:
    Seconds (cadjax, MONAI) of each pair; both times hold augmentation and
    step, and neither reading.

  Raises:
    UserError: the data cannot be used, or the folder is of another run.
    lookup.ConfigError: the config cannot be used.
  """
  check(config)
  torch.set_num_threads(available_cores())
  kind = tasks.find(config)
  dataset = kind.open_dataset(config)
  devices = parallel.make_parallel("mesh", data=1)
  task = kind.make_task(config, dataset, devices)
  per_epoch = task.steps_per_epoch
  total = per_epoch * config.epochs
  if total <= WARM_UP:
    raise UserError(f"{total} steps are too few to measure their time")
  _, schedule = optimizer.get_optimizer(config.optimizer, total_steps=total)
  prepared = _preparation(task, config.seed)
  run = _Run(config, _faster_layout(config, task, prepared, say))
  seconds: list[tuple[float, float]] = []
  progress = loop.Progress()
  first = 0
  folder.mkdir(parents=True, exist_ok=True)
  if (folder / LAST).exists():
    first, progress, seconds = run.restore(folder / LAST, dataset.fingerprint)
  if progress.stopped or first >= total:
    return seconds
  clock = _Clock(config, task, devices, total) if pairs else None
  timed = {int(i) for i in np.linspace(WARM_UP, total - 1, pairs)}
  # Of a resumed run, the first steps compile again.
  warm = {first + i for i in range(WARM_UP)}
  for step, (batch, _) in enumerate(task.batches(first, total), first):
    begin = time.perf_counter()
    image, label = prepared(step, batch)
    run.step(image, label, float(schedule(step)), step)
    spent = time.perf_counter() - begin
    if clock is not None and step in timed | warm:
      ours = clock.seconds(batch)
      if step not in warm:
        seconds.append((ours, spent))
    if (step + 1) % per_epoch:
      continue
    start = step + 1 - min(per_epoch, loop.STATISTICS_BATCHES)
    last = enumerate(task.batches(start, step + 1), start)
    net = run.averaged(prepared(i, batch)[0] for i, (batch, _) in last)
    values = _validate(
      Scorer(net, tuple(config.data.window_hu)), dataset, task, config
    )
    progress = loop.judge(progress, values, step + 1, config)
    if progress.best_step == step + 1:
      _write(folder / BEST, {"net": net.state_dict(), "step": step + 1})
    run.save(folder / LAST, dataset.fingerprint, step + 1, progress, seconds)
    text = " ".join(f"{name} {value:.4f}" for name, value in values.items())
    say(f"MONAI, epoch {(step + 1) // per_epoch}/{config.epochs}: {text}")
    if progress.stopped:
      break
  return seconds


def _preparation(task: Task, seed: int) -> Callable:
  """Makes `prepared(step, batch)`: image [B, 1, D, H, W] and label [B]."""

  @jax.jit
  def prepare(step, batch):
    # The key of `steps.make_train_step`.
    key = jax.random.fold_in(jax.random.key(seed), step)
    image, label, _ = task.prepare(key, batch)
    return image, label

  def prepared(step: int, batch) -> tuple[torch.Tensor, torch.Tensor]:
    image, label = prepare(step, batch)
    # Copies: torch wants arrays that it may write to.
    image = torch.from_numpy(np.array(image)).movedim(-1, 1).contiguous()
    return image, torch.from_numpy(np.array(label)).long()

  return prepared


def _faster_layout(
  config: ml_collections.ConfigDict,
  task: Task,
  prepared: Callable,
  say: Callable[[str], None],
) -> torch.memory_format:
  """Returns in which of its memory formats PyTorch takes steps faster."""
  batch, _ = next(iter(task.batches(0, 1)))
  image, label = prepared(0, batch)
  seconds = {}
  for layout in (torch.contiguous_format, torch.channels_last_3d):
    run = _Run(config, layout)
    for step in range(WARM_UP + 1):
      begin = time.perf_counter()
      run.step(image, label, 0.0, step)
      seconds[layout] = time.perf_counter() - begin  # Of the last one.
  faster = min(seconds, key=seconds.get)
  say(f"MONAI: {faster} is the faster memory format")
  return faster


def _validate(scorer: Scorer, dataset, task: Task, config) -> dict[str, float]:
  rows, logits = evaluate_split(
    dataset,
    "validation",
    lambda batch: scorer.logits(batch["image"]),
    config.data.eval_batch_size,
  )
  return validation_metrics(rows, logits, task.loss_fn)


class _Run:
  """All that a step changes."""

  def __init__(
    self, config: ml_collections.ConfigDict, layout: torch.memory_format
  ):
    self._config = config
    self._layout = layout
    self.net = make_net(config).to(memory_format=layout)
    self._average = copy.deepcopy(self.net) if config.ema_decay else None
    options = optimizer.DEFAULTS | dict(config.optimizer)
    self._clip = options["clip_norm"]
    # Decay of kernels alone: vectors are biases and scales.
    kernels = [p for p in self.net.parameters() if p.ndim > 1]
    others = [p for p in self.net.parameters() if p.ndim <= 1]
    self._optimizer = torch.optim.AdamW(
      [
        {"params": kernels, "weight_decay": options["weight_decay"]},
        {"params": others, "weight_decay": 0.0},
      ],
      betas=(options["b1"], options["b2"]),
      eps=options["eps"],
    )

  def step(
    self, image: torch.Tensor, label: torch.Tensor, rate: float, step: int
  ) -> None:
    self.net.train()
    for group in self._optimizer.param_groups:
      group["lr"] = rate
    self._optimizer.zero_grad(set_to_none=True)
    loss = torch.nn.functional.cross_entropy(
      self.net(image.contiguous(memory_format=self._layout)),
      label,
      label_smoothing=self._config.loss.get("label_smoothing", 0.0),
    )
    if not torch.isfinite(loss):
      raise UserError(
        f"MONAI's loss is {float(loss)} at step {step}; try a lower"
        " config.optimizer.learning_rate"
      )
    loss.backward()
    if self._clip:
      torch.nn.utils.clip_grad_norm_(self.net.parameters(), self._clip)
    self._optimizer.step()
    if self._average is not None:
      # As in `steps.make_train_step`.
      decay = min(self._config.ema_decay, (1.0 + step) / (10.0 + step))
      with torch.no_grad():
        for kept, new in zip(
          self._average.parameters(), self.net.parameters(), strict=True
        ):
          kept.lerp_(new, 1.0 - decay)

  @torch.no_grad()
  def averaged(self, images: Iterator[torch.Tensor]) -> torch.nn.Module:
    """Returns the network to evaluate; an average gets its own statistics."""
    net = copy.deepcopy(self._average or self.net)
    if self._average is not None:
      for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
          module.reset_running_stats()
          module.momentum = None  # The mean over all batches that follow.
      net.train()
      for image in images:
        net(image)
    return net.eval()

  def save(
    self,
    path: pathlib.Path,
    fingerprint: str,
    step: int,
    progress: loop.Progress,
    seconds: Sequence[tuple[float, float]],
  ) -> None:
    average = self._average
    _write(
      path,
      {
        "identity": self._identity(fingerprint),
        "net": self.net.state_dict(),
        "average": None if average is None else average.state_dict(),
        "optimizer": self._optimizer.state_dict(),
        "step": step,
        "progress": dataclasses.asdict(progress),
        "seconds": list(seconds),
      },
    )

  def restore(
    self, path: pathlib.Path, fingerprint: str
  ) -> tuple[int, loop.Progress, list[tuple[float, float]]]:
    state = _read(path)
    if state.get("identity") != self._identity(fingerprint):
      raise UserError(
        f"{path}: is of another config or data set; give another --out"
      )
    self.net.load_state_dict(state["net"])
    if self._average is not None:
      self._average.load_state_dict(state["average"])
    self._optimizer.load_state_dict(state["optimizer"])
    progress = loop.Progress(**state["progress"])
    return state["step"], progress, [tuple(x) for x in state["seconds"]]

  def _identity(self, fingerprint: str) -> str:
    config = self._config.to_dict()
    config["data"] = {**config["data"], "path": None}
    return f"{fingerprint} {config}"


class _Clock:
  """A cadjax network that takes the same steps, for their times alone."""

  def __init__(self, config, task: Task, devices, total: int):
    model = make_model(config)
    tx, schedule = optimizer.get_optimizer(config.optimizer, total_steps=total)
    self._devices = devices
    self._step = devices.train_step(
      steps.make_train_step(
        model,
        tx,
        task.loss_fn,
        task.prepare,
        score=task.score,
        seed=config.seed,
        schedule=schedule,
        ema_decay=config.ema_decay,
      )
    )
    state = steps.create_state(
      model,
      tx,
      jax.random.key(config.seed),
      task.image_shape,
      ema=config.ema_decay > 0,
    )
    self._state = devices.put_replicated(state)

  def seconds(self, batch: dict[str, np.ndarray]) -> float:
    begin = time.perf_counter()
    put = self._devices.put_batch(batch)
    self._state, values = self._step(self._state, put)
    jax.block_until_ready((self._state, values))
    return time.perf_counter() - begin


def _write(path: pathlib.Path, state: dict[str, Any]) -> None:
  """Writes to a temporary name and renames it."""
  temporary = path.with_name(path.name + ".tmp")
  torch.save(state, temporary)
  os.replace(temporary, path)


def _read(path: pathlib.Path) -> dict[str, Any]:
  """Reads tensors and plain values; no code in the file is run."""
  try:
    return torch.load(path, weights_only=True)
  except Exception as error:  # Whatever the bytes make of the reader.
    raise UserError(
      f"{path}: cannot be read ({one_line(error)[:200]}); remove it to train"
      " again"
    ) from error
