"""Guided backpropagation: a backward pass through changed ReLUs.

It fails the sanity check of Adebayo et al. 2018 (arXiv 1810.03292): with the
network's weights re-initialised its maps stay nearly the same, since they
recover the image's edges and not what the network has learned. It is here to
be compared with, and `WARNING` goes with every map.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cadjax.core import lookup

METHODS = ("guided_backprop", "guided_gradcam")
WARNING = (
  "guided_backprop and guided_gradcam fail the sanity check of Adebayo et al."
  " 2018: their maps hardly change when the network's weights are drawn anew."
  " They show edges of the image; do not read them as what the network uses."
)


@jax.custom_vjp
def _relu(x: jax.Array) -> jax.Array:
  """ReLU that passes positive gradients of positive inputs back, no others."""
  return jnp.maximum(x, 0)


def _forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  return jnp.maximum(x, 0), x > 0


def _back(active: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
  return (jnp.where(active & (gradient > 0), gradient, 0),)


_relu.defvjp(_forward, _back)


def guided(fn: Callable[..., Any]) -> Callable[..., Any]:
  """Returns the same function, whose gradient is guided backpropagation's.

  Springenberg et al. 2015, arXiv 1412.6806: each ReLU passes a gradient back
  only where both its input and the gradient are positive. The ReLUs are found
  in the traced program, so no model needs to know of it.

  Args:
    fn: of arrays (or trees of them), with `jax.nn.relu` inside, not in a loop.

  Raises:
    lookup.ConfigError: when called, if there is no ReLU, or one in a loop.
  """

  def run(*args):
    traced, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
    if not _has_relu(traced.jaxpr):
      raise lookup.ConfigError(
        "guided backpropagation takes a network of ReLUs; this one has none"
      )
    found = _evaluate(traced.jaxpr, traced.consts, jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shapes), found)

  return run


def _evaluate(jaxpr: Any, consts: Sequence, args: Sequence) -> list:
  """Computes a traced program with other ReLUs."""
  values = dict(zip(jaxpr.constvars, consts, strict=True))
  values.update(zip(jaxpr.invars, args, strict=True))

  def read(x: Any) -> Any:
    return x.val if hasattr(x, "val") else values[x]

  for step in jaxpr.eqns:
    given = [read(x) for x in step.invars]
    inside = _inside(step)
    if _is_relu(step):
      found = [_relu(*given)]
    elif any(_has_relu(each) for each, _ in inside):
      if len(inside) > 1 or step.primitive.name in ("scan", "while", "cond"):
        raise lookup.ConfigError(
          "guided backpropagation takes no network with ReLUs in a loop"
        )
      found = _evaluate(*inside[0], given)
    else:
      made = step.primitive.get_bind_params(step.params)
      # Until jax 0.9 functions came apart from the options.
      functions, options = made if isinstance(made, tuple) else ((), made)
      found = step.primitive.bind(*functions, *given, **options)
      if not step.primitive.multiple_results:
        found = [found]
    values.update(zip(step.outvars, found, strict=True))
  return [read(x) for x in jaxpr.outvars]


def _inside(step: Any) -> list[tuple[Any, Sequence]]:
  """Returns the programs inside a step, each with its constants."""
  found = []
  for value in step.params.values():
    for each in value if isinstance(value, tuple | list) else [value]:
      if hasattr(each, "jaxpr") and hasattr(each, "consts"):
        found.append((each.jaxpr, each.consts))
      elif hasattr(each, "eqns"):
        found.append((each, ()))
  return found


def _is_relu(step: Any) -> bool:
  """Whether a step is `jax.nn.relu`: it has its own rule and is max(x, 0)."""
  if step.primitive.name != "custom_jvp_call":
    return False
  ((jaxpr, _),) = _inside(step)
  while len(jaxpr.eqns) == 1:
    (only,) = jaxpr.eqns
    if only.primitive.name == "max":
      zeros = [x.val for x in only.invars if hasattr(x, "val")]
      return len(zeros) == 1 and zeros[0] == 0
    inside = _inside(only)
    if not inside:
      return False
    jaxpr = inside[0][0]
  return False


def _has_relu(jaxpr: Any) -> bool:
  return any(
    _is_relu(step) or any(_has_relu(each) for each, _ in _inside(step))
    for step in jaxpr.eqns
  )
