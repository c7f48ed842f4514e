"""Convolution, pooling and normalisation in 2D and 3D, channels last.

Every convolution of every model goes through `conv`, so what is inside it can
be replaced without touching a model, a parameter or a checkpoint.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from cadjax import names
from cadjax.models import conv_cpu

NORM_EPSILON = 1e-5
BATCH_NORM_MOMENTUM = 0.9
NUM_GROUPS = 32
LAYOUTS = {2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


def conv(
  x: jax.Array,
  kernel: jax.Array,
  strides: int | Sequence[int] = 1,
  *,
  dilation: int | Sequence[int] = 1,
) -> jax.Array:
  """Convolves `x` with `kernel`, zero-padded alike on both sides.

  The padding is `dilation * (size - 1) // 2` on each side, which is
  PyTorch's usual choice; XLA's "SAME" would pad a strided convolution of an
  even size only at the end and so shift every map by half a stride.

  Args:
    x: [B, *space, C] with 2 or 3 spatial axes.
    kernel: [*size, C, features], of odd sizes and of the type of `x`.
    strides: steps in voxels, one for all axes or one per axis.
    dilation: distance between the taps of the kernel, likewise.

  Returns:
    [B, *ceil(space / strides), features], of the type of `x`.
  """
  ndim = x.ndim - 2
  strides, dilation = _per_axis(strides, ndim), _per_axis(dilation, ndim)
  padding = [
    (d * (size - 1) // 2,) * 2
    for d, size in zip(dilation, kernel.shape[:ndim], strict=True)
  ]

  def native(x, kernel):
    return lax.conv_general_dilated(
      x,
      kernel,
      strides,
      padding,
      rhs_dilation=dilation,
      dimension_numbers=LAYOUTS[ndim],
    )

  if ndim == 2:
    return native(x, kernel)

  def on_cpu(x, kernel):
    return conv_cpu.conv3d(x, kernel, strides, dilation, padding)

  # The choice is made where the program is compiled, for each platform.
  return lax.platform_dependent(x, kernel, cpu=on_cpu, default=native)


def max_pool(x: jax.Array, size: int = 3, strides: int = 2) -> jax.Array:
  """Takes the maximum over windows, padded by `(size - 1) // 2` on each side.

  Args:
    x: [B, *space, C].
    size: edge of the window in voxels, odd.
    strides: step in voxels.

  Returns:
    [B, *ceil(space / strides), C].
  """
  ndim = x.ndim - 2
  padding = ((size - 1) // 2,) * 2
  return nn.max_pool(
    x, (size,) * ndim, strides=(strides,) * ndim, padding=(padding,) * ndim
  )


def global_mean(x: jax.Array) -> jax.Array:
  """Averages [B, *space, C] over space, in float32 or better, to [B, C]."""
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  return jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), dtype=dtype)


def kaiming_normal(
  key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32
) -> jax.Array:
  """Draws a kernel for a layer that a ReLU follows (He et al. 2015).

  Args:
    key: a JAX random key.
    shape: [*size, C, features].
    dtype: type of the kernel.

  Returns:
    Normal numbers of variance 2 / fan-out.
  """
  fan_out = math.prod(shape[:-2]) * shape[-1]
  # Drawn flat: XLA takes 1.6 s to compile a five-axis draw, 0.3 s for this
  # one, which has the same values; a network has dozens of kernels.
  flat = jax.random.normal(key, (math.prod(shape),), dtype)
  return math.sqrt(2 / fan_out) * flat.reshape(shape)


class Conv(nn.Module):
  """The parameters of one `conv`: `kernel` [*size, C, features], float32.

  Attributes:
    features: channels out.
    size: edge of the kernel in voxels, odd.
    strides: step in voxels.
    dilation: distance between the taps of the kernel.
    dtype: type to compute in and to return.
  """

  features: int
  size: int = 3
  strides: int = 1
  dilation: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, *space, C] to [B, *ceil(space / strides), features]."""
    shape = (self.size,) * (x.ndim - 2) + (x.shape[-1], self.features)
    kernel = self.param("kernel", kaiming_normal, shape, jnp.float32)
    return conv(
      x.astype(self.dtype),
      kernel.astype(self.dtype),
      self.strides,
      dilation=self.dilation,
    )


def norm(
  kind: str,
  channels: int,
  *,
  train: bool,
  axis_name: str | None = None,
  dtype: Any = jnp.float32,
  scale_init: Callable[..., jax.Array] = nn.initializers.ones,
  name: str | None = None,
) -> nn.Module:
  """Makes a normalisation layer with a scale and a bias per channel.

  Statistics and parameters are float32 whatever `dtype` is.

  Args:
    kind: a key of `NORMS`: "batch", "group" (32 groups, or the largest
      common divisor of 32 and `channels`) or "instance".
    channels: channels of the input.
    train: whether BatchNorm takes the batch's statistics (and updates the
      running ones, in the collection "batch_stats"); the others ignore it.
    axis_name: the mapped axis over whose devices BatchNorm takes means.
    dtype: type to return.
    scale_init: initialiser of the scale.
    name: the layer's name in the parameter tree.

  Returns:
    A module that maps [B, *space, C] to the same shape.
  """
  common = {
    "epsilon": NORM_EPSILON,
    "dtype": dtype,
    "scale_init": scale_init,
    "name": name,
  }
  make = names.look_up(NORMS, kind, "norm")
  return make(channels, train, axis_name, common)


def _batch_norm(
  channels: int, train: bool, axis_name: str | None, common: dict[str, Any]
) -> nn.Module:
  del channels
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=BATCH_NORM_MOMENTUM,
    axis_name=axis_name,
    **common,
  )


def _group_norm(
  channels: int, train: bool, axis_name: str | None, common: dict[str, Any]
) -> nn.Module:
  del train, axis_name
  return nn.GroupNorm(num_groups=math.gcd(NUM_GROUPS, channels), **common)


def _instance_norm(
  channels: int, train: bool, axis_name: str | None, common: dict[str, Any]
) -> nn.Module:
  del channels, train, axis_name
  return nn.InstanceNorm(**common)


NORMS = {
  "batch": _batch_norm,
  "group": _group_norm,
  "instance": _instance_norm,
}


def _per_axis(value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
  return (value,) * ndim if isinstance(value, int) else tuple(value)
