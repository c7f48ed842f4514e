"""What the cells of a plan will cost, before they run."""

import functools
import math
import statistics
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import linen as nn

from cadjax.bench.work import median_seconds
from cadjax.classification import priors
from cadjax.experiment.plan import Arm, Plan
from cadjax.experiment.store import Store
from cadjax.models import flops
from cadjax.training import task
from data_prep import build, export

# Of the matmul rate of a CPU, in a train step of the scale "small": 0.21 by
# `python -m cadjax.bench --config=configs/demo.py --what=train
# --shape=64,64,64 --batch=8`.
SHARE_OF_MATMUL = 0.2
EDGE = 1024
# Parameters, gradients and Adam's two moments.
COPIES = 4


def table(plan: Plan, cells: Store) -> str:
  """Returns the cells with their state, time and memory, as text.

  Measured on cells that are done; for the others estimated from the work of
  the network and the rate of a matrix product on this machine, a few times
  too low or too high.
  """
  rate = _matmul_flops()
  seconds, peak = {}, {}
  for name, arm in plan.arms.items():
    done = [
      cells.read(cell.name)["cost"]
      for cell in plan.cells()
      if cell.arm == name and cells.state(cell.name) == "done"
    ]
    if done:
      seconds[name] = statistics.median(one["seconds"] for one in done)
      peak[name] = max(one["peak_bytes"] for one in done)
    elif arm.config is not None:
      sizes = data_sizes(plan, arm.data, folds=not arm.shared)
      cost = training_cost(arm, sizes)
      seconds[name] = cost["flops"] / (SHARE_OF_MATMUL * rate)
      peak[name] = cost["bytes"]
  lines = [f"{'cell':32}{'state':10}{'time':>10}{'memory':>12}"]
  left = 0.0
  for cell in plan.cells():
    state, cost = cells.state(cell.name), seconds.get(cell.arm)
    time = "unknown" if cost is None else f"{cost / 60:.1f} min"
    memory = peak.get(cell.arm)
    size = "unknown" if memory is None else f"{memory / 1e9:.1f} GB"
    lines.append(f"{cell.name:32}{state:10}{time:>10}{size:>12}")
    if state not in ("done", "failed"):
      left += cost or 0
  return "\n".join(
    [
      *lines,
      f"about {left / 60:.0f} min to train on this machine, without building"
      " data, compiling and measuring",
    ]
  )


def training_cost(arm: Arm, data: Mapping[str, Any]) -> dict[str, float]:
  """Returns floating-point operations, bytes and steps of one training.

  Args:
    arm: with a config.
    data: shape [D, H, W] and training cases of its data set.
  """
  config = arm.config
  batch = config.data.batch_size
  if task.task_of(config) == "segment":
    depth, *plane = config.data.patch_size
    examples = config.data.patches_per_volume
  else:
    depth, *plane = data["shape"]
    depth = config.data.slices_per_volume if config.model.ndim == 2 else depth
    examples = 1
  channels = priors.channels(config)
  if config.model.ndim == 2:
    shape = (batch * depth, *plane, channels)
  else:
    shape = (batch, depth, *plane, channels)
  step, kept, params = _work(task.make_model(config), shape)
  cases = config.data.get("subset") and config.data.subset.patients
  cases = cases or data["train"]
  steps = max(1, cases * examples // batch) * config.epochs
  return {
    "flops": float(steps * step),
    "steps": steps,
    "bytes": float(4 * COPIES * params + kept),
  }


@functools.cache
def _work(model: nn.Module, shape: tuple[int, ...]) -> tuple[int, int, int]:
  """Operations of a train step, bytes that it keeps, and parameters."""
  counted = flops.count(model, shape)
  variables = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), jnp.zeros((1, *shape[1:])), train=False
    )
  )
  params = sum(math.prod(x.shape) for x in jax.tree.leaves(variables["params"]))
  # What the backward pass keeps: the inputs of all layers, and as much again
  # of norms and activations.
  kept = sum(layer.bytes for layer in counted)
  return flops.step_flops(counted, train=True), kept, params


def data_sizes(plan: Plan, name: str, *, folds: bool = True) -> dict[str, Any]:
  """Returns how large a data set of a plan will be, from its flags.

  Args:
    plan: whose data it is.
    name: in `Plan.data`.
    folds: whether the plan's folds divide it, not its stored splits.

  Returns:
    shape [D, H, W], None of exported scans; cases, and of them train,
    validation and test, in one fold if there are some; cad_fraction. Exported
    scans train nothing, and half of them are tested (`evaluate_link`).
  """
  divided = folds and plan.folds != (None,)
  return dict(_sizes(tuple(plan.data[name]), divided))


@functools.cache
def _sizes(given: tuple[str, ...], divided: bool) -> Mapping[str, Any]:
  values = flags.FlagValues()
  if given[0] == "export":
    export.define_flags(values)
    values(["export", *given[1:], "--out=none"])
    sizes = {"cases": values.cases, "train": 0, "validation": 0}
    sizes |= {"test": values.cases / 2, "shape": None}
    return sizes | {"cad_fraction": 0.5}
  build.define_flags(values)
  values(["build", *given, "--out=none"])
  config = build.config_from_flags(values)
  shares = config.fractions
  if divided:
    part = 1 / config.num_folds
    shares = (1 - 2 * part, part, part)
  parts = ("train", "validation", "test")
  sizes = {
    part: round(config.cases * share)
    for part, share in zip(parts, shares, strict=True)
  }
  sizes |= {"cases": config.cases, "shape": config.grid.shape}
  return sizes | {"cad_fraction": values.cad_fraction}


def _matmul_flops() -> float:
  """Returns floating-point operations a second of a matrix product."""
  x = jnp.ones((EDGE, EDGE))
  product = jax.jit(lambda x: x @ x)
  product(x).block_until_ready()
  seconds = median_seconds(lambda: product(x).block_until_ready(), 5)
  return 2 * EDGE**3 / seconds
