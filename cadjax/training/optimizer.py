"""Optimisers and learning-rate schedules by name."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from cadjax.core import lookup

Schedule = Callable[[Any], Any]
DEFAULTS = {
  "name": "adam",
  "learning_rate": 1e-3,
  "schedule": "cosine",
  "warmup_steps": 0,
  "warmup_fraction": 0.0,  # of all steps, in place of warmup_steps
  "end_factor": 0.0,  # last rate over the peak (cosine and poly)
  "power": 0.9,  # of the schedule poly
  "clip_norm": 0.0,  # largest global norm of the gradients; 0 is off
  "weight_decay": 0.0,
  "accumulate": 1,  # steps whose mean gradient makes one update
  "b1": 0.9,
  "b2": 0.999,
  "eps": 1e-8,
  "momentum": 0.9,
  "nesterov": False,
}


def get_optimizer(
  config: Mapping[str, Any], *, total_steps: int
) -> tuple[optax.GradientTransformation, Schedule]:
  """Makes the optimiser and the schedule that `config` describes.

  The order is: mean over `accumulate` steps, clip to `clip_norm`, weight
  decay, optimiser, learning rate. The decay is decoupled (Loshchilov & Hutter
  2019) for "adamw" and an L2 penalty for "adam" and "sgd"; it acts on kernels
  only, not on biases or on the scales of norms.

  Args:
    config: some of the fields of `DEFAULTS`.
    total_steps: length of the training in train steps, `accumulate` of which
      make one update.

  Returns:
    The transformation, and the learning rate by train step (for logs).

  Raises:
    lookup.ConfigError: for an unknown name or field or an impossible value.
  """
  lookup.check_known(config, DEFAULTS, "field of config.optimizer")
  options = DEFAULTS | dict(config)
  _check(options, total_steps)
  schedule = get_schedule(options, total_steps=total_steps)
  make = lookup.look_up(OPTIMIZERS, options["name"], "optimizer")
  every = options["accumulate"]
  parts = []
  if options["clip_norm"]:
    parts.append(optax.clip_by_global_norm(options["clip_norm"]))
  parts += make(options)
  # The optimiser counts updates, the schedule train steps.
  rate = schedule if every == 1 else lambda count: schedule(count * every)
  parts.append(optax.scale_by_learning_rate(rate))
  tx = optax.chain(*parts)
  if every > 1:
    tx = optax.MultiSteps(tx, every).gradient_transformation()
  return tx, schedule


def get_schedule(options: Mapping[str, Any], *, total_steps: int) -> Schedule:
  """Returns the learning rate as a function of the train step.

  It rises linearly from 0 to `learning_rate` over `warmup_steps` (or
  `warmup_fraction` of `total_steps`, to the nearest step), then stays
  ("constant"), falls as half a cosine ("cosine") or as
  `(1 - progress) ** power` ("poly") to `end_factor * learning_rate` at
  `total_steps`.

  Args:
    options: `DEFAULTS` with the config's fields in place.
    total_steps: the step at which the schedule ends.

  Returns:
    `fn(step) -> learning rate`.

  Raises:
    lookup.UnknownName: for an unknown schedule.
  """
  make = lookup.look_up(SCHEDULES, options["schedule"], "schedule")
  warmup = options["warmup_steps"]
  if options["warmup_fraction"]:
    warmup = round(options["warmup_fraction"] * total_steps)
    # However few steps there are, one has the full rate.
    warmup = min(warmup, total_steps - 1)
  schedule = make(options, max(total_steps - warmup, 1))
  if not warmup:
    return schedule
  rise = optax.linear_schedule(0.0, options["learning_rate"], warmup)
  return optax.join_schedules([rise, schedule], [warmup])


def decay_mask(params: Any) -> Any:
  """Returns a tree like `params`: True at kernels, False at all else."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: getattr(path[-1], "key", None) == "kernel", params
  )


def _constant(options: Mapping[str, Any], steps: int) -> Schedule:
  del steps
  return optax.constant_schedule(options["learning_rate"])


def _cosine(options: Mapping[str, Any], steps: int) -> Schedule:
  return optax.cosine_decay_schedule(
    options["learning_rate"], steps, alpha=options["end_factor"]
  )


def _poly(options: Mapping[str, Any], steps: int) -> Schedule:
  rate = options["learning_rate"]
  return optax.polynomial_schedule(
    rate, rate * options["end_factor"], options["power"], steps
  )


def _decay(options: Mapping[str, Any]) -> list[optax.GradientTransformation]:
  if not options["weight_decay"]:
    return []
  return [optax.add_decayed_weights(options["weight_decay"], decay_mask)]


def _adam(options: Mapping[str, Any]) -> list[optax.GradientTransformation]:
  return [*_decay(options), _scale_by_adam(options)]


def _adamw(options: Mapping[str, Any]) -> list[optax.GradientTransformation]:
  return [_scale_by_adam(options), *_decay(options)]


def _sgd(options: Mapping[str, Any]) -> list[optax.GradientTransformation]:
  parts = _decay(options)
  if options["momentum"]:
    parts.append(optax.trace(options["momentum"], options["nesterov"]))
  return parts


def _scale_by_adam(options: Mapping[str, Any]) -> optax.GradientTransformation:
  return optax.scale_by_adam(options["b1"], options["b2"], options["eps"])


def _check(options: Mapping[str, Any], total_steps: int) -> None:
  for field, low in (
    *(("warmup_steps", 0), ("accumulate", 1), ("clip_norm", 0)),
    *(("weight_decay", 0), ("end_factor", 0), ("power", 0)),
  ):
    if not options[field] >= low:
      raise lookup.ConfigError(
        f"config.optimizer.{field} is {options[field]}; it must be >= {low}"
      )
  for field in ("learning_rate", "eps"):
    if not 0 <= options[field] < math.inf:
      raise lookup.ConfigError(
        f"config.optimizer.{field} is {options[field]}; it must be at least 0"
        " and finite"
      )
  for field in ("b1", "b2", "momentum"):
    if not 0 <= options[field] < 1:
      raise lookup.ConfigError(
        f"config.optimizer.{field} is {options[field]}; it must be at least 0"
        " and below 1"
      )
  fraction = options["warmup_fraction"]
  if not 0 <= fraction < 1:
    raise lookup.ConfigError(
      f"config.optimizer.warmup_fraction is {fraction}; it must be at least 0"
      " and below 1"
    )
  if fraction and options["warmup_steps"]:
    raise lookup.ConfigError(
      f"config.optimizer.warmup_steps is {options['warmup_steps']} and"
      f" warmup_fraction {fraction}; set one of them to 0"
    )
  if options["schedule"] != "constant" and (
    options["warmup_steps"] >= total_steps
  ):
    raise lookup.ConfigError(
      f"config.optimizer.warmup_steps is {options['warmup_steps']}; it must be"
      f" below the {total_steps} steps of the training"
    )


OPTIMIZERS = {"adam": _adam, "adamw": _adamw, "sgd": _sgd}
SCHEDULES = {"constant": _constant, "cosine": _cosine, "poly": _poly}
