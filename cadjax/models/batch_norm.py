"""Batch normalisation as functions: moments, map and gradient.

Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167, section 3. Maps are
[B, *space, C], or W-folded [B, D, H, W / f, f C], see `folded`: then lane
w C + c belongs to channel c, and statistics are per channel.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

EPSILON = 1e-5


def spread(per_channel: jax.Array, x: jax.Array) -> jax.Array:
  """Returns what multiplies every channel of a map, [1, ..., 1, lanes]."""
  fold = x.shape[-1] // per_channel.shape[0]
  per_lane = jnp.tile(per_channel, fold) if fold > 1 else per_channel
  return per_lane.reshape((1,) * (x.ndim - 1) + (-1,))


def channel_mean(x: jax.Array, channels: int) -> jax.Array:
  """Returns the mean of every channel of a map, [C]."""
  mean = jnp.mean(x, axis=tuple(range(x.ndim - 1)))
  return mean.reshape(-1, channels).mean(0)


def moments(x: jax.Array, channels: int) -> tuple[jax.Array, jax.Array]:
  """Returns the means of a map and of its square, [C] in float32 or better."""
  wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
  return channel_mean(wide, channels), channel_mean(wide * wide, channels)


def mean_and_variance(
  mean: jax.Array, square: jax.Array, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
  """Returns mean and variance over all devices from `moments` of each."""
  mean, square = over_devices((mean, square), axis_name)
  return mean, jnp.maximum(square - mean * mean, 0)


def over_devices(tree: Any, axis_name: str | None) -> Any:
  """Returns the mean over the devices of a mapped axis, if there is one."""
  return tree if axis_name is None else lax.pmean(tree, axis_name)


def affine(
  x: jax.Array, a: jax.Array, b: jax.Array, *, relu: bool = False
) -> jax.Array:
  """Returns a x + b by channel, in the wider type; then ReLU, if wanted."""
  y = x.astype(jnp.promote_types(x.dtype, a.dtype))
  y = y * spread(a, x) + spread(b, x)
  return jax.nn.relu(y) if relu else y


def input_gradient(
  mean_dy: jax.Array,
  mean_dyx: jax.Array,
  mean: jax.Array,
  rate: jax.Array,
  axis_name: str | None,
) -> tuple[jax.Array, jax.Array]:
  """Returns what makes the gradient of the map before the norm.

  It is dx = a (dy - mean(dy) - z mean(dy z)), with z = (x - mean) rate and
  a = scale rate; as a function of dy and x that is a (dy - slope x + offset).

  Args:
    mean_dy: mean of the gradient of the normalised map, of this device, [C].
    mean_dyx: mean of its product with the map before the norm.
    mean: of that map.
    rate: 1 / sqrt(variance + EPSILON).
    axis_name: the mapped axis over whose devices means are taken.

  Returns:
    slope and offset, [C].
  """
  mean_dy, mean_dyx = over_devices((mean_dy, mean_dyx), axis_name)
  slope = rate * rate * (mean_dyx - mean * mean_dy)
  return slope, slope * mean - mean_dy


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm(
  x: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  axis_name: str | None,
  relu: bool,
  dtype: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Normalises a map, with one gradient for the norm and the ReLU after it.

  Autodiff would keep and read several maps more.

  Args:
    x: the map.
    scale: [C].
    bias: [C].
    axis_name: the mapped axis over whose devices means are taken.
    relu: whether a ReLU follows.
    dtype: type to return.

  Returns:
    the map, and the mean and variance of its channels before, through which
    no gradient passes.
  """
  return _save(x, scale, bias, axis_name, relu, dtype)[0]


def _save(x, scale, bias, axis_name, relu, dtype):
  mean, var = mean_and_variance(*moments(x, scale.shape[0]), axis_name)
  rate = lax.rsqrt(var + EPSILON)
  a = scale * rate
  y = affine(x, a, bias - mean * a, relu=relu).astype(dtype)
  return (y, mean, var), (x, scale, bias, mean, rate)


def _pull(axis_name, relu, dtype, saved, cotangents):
  del dtype
  x, scale, bias, mean, rate = saved
  dy = cotangents[0].astype(mean.dtype)
  wide = x.astype(mean.dtype)
  a = scale * rate
  if relu:
    dy = jnp.where(affine(x, a, bias - mean * a) > 0, dy, 0)
  channels = scale.shape[0]
  count = math.prod(x.shape) // channels
  # What goes to scale and bias is this device's part.
  mean_dy, mean_dyx = (channel_mean(g, channels) for g in (dy, dy * wide))
  dscale = count * rate * (mean_dyx - mean * mean_dy)
  slope, offset = input_gradient(mean_dy, mean_dyx, mean, rate, axis_name)
  dx = spread(a, x) * (dy - wide * spread(slope, x) + spread(offset, x))
  return (
    dx.astype(x.dtype),
    dscale.astype(scale.dtype),
    (count * mean_dy).astype(bias.dtype),
  )


batch_norm.defvjp(_save, _pull)
