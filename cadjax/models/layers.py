"""Convolution, pooling and normalisation in 2D and 3D, channels last.

Every convolution of every model goes through `conv`, so what is inside it can
be replaced without touching a model, a parameter or a checkpoint.
"""

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax import lax

from cadjax.core import lookup
from cadjax.models import batch_norm, conv_cpu

BATCH_NORM_MOMENTUM = 0.9
NUM_GROUPS = 32
MODES = ("auto", "exact", "lax")  # Of `conv`; config.model.conv.
# PyTorch's default for linear layers: uniform within 1 / sqrt(fan in).
HEAD_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def conv(
  x: jax.Array,
  kernel: jax.Array,
  strides: int | Sequence[int] = 1,
  *,
  dilation: int | Sequence[int] = 1,
  mode: str = "auto",
) -> jax.Array:
  """Convolves `x` with `kernel`, zero-padded alike on both sides.

  On TPU and GPU this is XLA's own convolution; on a CPU it is the lowering
  that `conv_cpu.choose` takes for its shape.

  The padding is `dilation * (size - 1) // 2` on each side, which is
  PyTorch's usual choice; XLA's "SAME" would pad a strided convolution of an
  even size only at the end and so shift every map by half a stride.

  Args:
    x: [B, *space, C] with 2 or 3 spatial axes.
    kernel: [*size, C, features], of odd sizes and of the type of `x`.
    strides: steps in voxels, one for all axes or one per axis.
    dilation: distance between the taps of the kernel, likewise.
    mode: one of `MODES`. "exact" leaves out Winograd, which rounds more
      coarsely; "lax" is XLA's own convolution on a CPU, too.

  Returns:
    [B, *ceil(space / strides), features], of the type of `x`.
  """
  ndim = x.ndim - 2
  strides, dilation = _per_axis(strides, ndim), _per_axis(dilation, ndim)
  window = _window(ndim, kernel.shape[:ndim], strides, dilation)
  native = partial(conv_cpu.native, window=window)
  if mode == "lax":
    return native(x, kernel)

  def on_cpu(x, kernel):
    if ndim == 3:
      return conv_cpu.conv3d(x, kernel, window, exact=mode == "exact")
    y = conv_cpu.conv3d(x[:, None], kernel[None], window, exact=mode == "exact")
    return y[:, 0]

  # The choice is made where the program is compiled, for each platform.
  special = {}
  if ndim == 3 and _folds(x.shape, kernel.shape, window):
    special["tpu"] = folded_stem
  return lax.platform_dependent(
    x, kernel, cpu=on_cpu, **special, default=native
  )


def _folds(
  shape: Sequence[int], kernel_shape: Sequence[int], window: conv_cpu.Window
) -> bool:
  """Whether `folded_stem` can do it."""
  return (
    tuple(kernel_shape[:4]) == (7, 7, 7, 1)
    and window.strides == (2, 2, 2)
    and window.dilation == (1, 1, 1)
    and all(n % 2 == 0 for n in shape[1:4])
  )


def folded_stem(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The stem with its 2x2x2 neighbours as channels (space to depth).

  A TPU multiplies channels: with one of them 127 of its 128 rows are idle. The
  compiler estimates 232 instead of 276 million cycles for a train step
  (`python -m cadjax.bench --aot=tpu:v5e:2x2 --batch=8
  --config.model.dtype=bfloat16`).

  Args:
    x: [B, D, H, W, 1], of even sizes.
    kernel: [7, 7, 7, 1, F], applied at stride 2 with a padding of 3.

  Returns:
    [B, D / 2, H / 2, W / 2, F].
  """
  # Output o sees voxels 2 o - 3 to 2 o + 3; with an empty tap in front these
  # are the four pairs from o - 2 to o + 1.
  kernel = jnp.pad(kernel[..., 0, :], ((1, 0),) * 3 + ((0, 0),))
  return lax.conv_general_dilated(
    _fold(x[..., 0], 1),
    _fold(kernel, 0),
    (1, 1, 1),
    ((2, 1),) * 3,
    dimension_numbers=conv_cpu.LAYOUTS[3],
  )


def _fold(x: jax.Array, axis: int) -> jax.Array:
  """Moves the 2x2x2 neighbours of three axes to one axis behind them."""
  before, after = x.shape[:axis], x.shape[axis + 3 :]
  pairs = [n for size in x.shape[axis : axis + 3] for n in (size // 2, 2)]
  x = x.reshape(*before, *pairs, *after)
  places = [axis, axis + 2, axis + 4, axis + 1, axis + 3, axis + 5]
  rest = range(axis + 6, x.ndim)
  x = x.transpose(*range(axis), *places, *rest)
  return x.reshape(*before, *pairs[::2], 8, *after)


def _window(
  ndim: int,
  size: Sequence[int],
  strides: Sequence[int],
  dilation: Sequence[int],
) -> conv_cpu.Window:
  """The window of a kernel padded by half its reach; 2D is one plane."""
  padding = [d * (k - 1) // 2 for d, k in zip(dilation, size, strict=True)]
  flat = 3 - ndim
  return conv_cpu.Window(
    (1,) * flat + tuple(size),
    (1,) * flat + tuple(strides),
    (1,) * flat + tuple(dilation),
    (0,) * flat + tuple(padding),
  )


def max_pool(
  x: jax.Array, size: int = 3, strides: int = 2, *, mode: str = "auto"
) -> jax.Array:
  """Takes the maximum over windows, padded by `(size - 1) // 2` on each side.

  Args:
    x: [B, *space, C].
    size: edge of the window in voxels, odd.
    strides: step in voxels.
    mode: "lax" is XLA's own pooling on a CPU, too; see `conv`.

  Returns:
    [B, *ceil(space / strides), C].
  """
  ndim = x.ndim - 2

  def native(x):
    padding = ((size - 1) // 2,) * 2
    return nn.max_pool(
      x, (size,) * ndim, strides=(strides,) * ndim, padding=(padding,) * ndim
    )

  if mode == "lax":
    return native(x)
  window = _window(ndim, (size,) * ndim, (strides,) * ndim, (1,) * ndim)

  def on_cpu(x):
    if ndim == 3:
      return conv_cpu.max_pool(x, window)
    return conv_cpu.max_pool(x[:, None], window)[:, 0]

  return lax.platform_dependent(x, cpu=on_cpu, default=native)


def upsample2(x: jax.Array) -> jax.Array:
  """Doubles every spatial axis linearly, in the place of a stride of 2.

  Cell o of a map of stride 2 lies on cell 2 o of the finer map (see `conv`):
  that one gets its value and the next one the mean with cell o + 1. The cell
  after the last gets the value of the last.

  Args:
    x: [B, *space, C].

  Returns:
    [B, *(2 * space), C], of the type of `x`.
  """
  # Width first, depth last: the largest step then moves whole planes.
  for axis in range(x.ndim - 2, 0, -1):
    rest = lax.slice_in_dim(x, 1, None, axis=axis)
    last = lax.slice_in_dim(x, x.shape[axis] - 1, None, axis=axis)
    between = (x + jnp.concatenate([rest, last], axis)) / 2
    x = _interleave(jnp.stack([x, between], axis + 1), axis)
  return x


def _interleave(pairs: jax.Array, axis: int) -> jax.Array:
  """Joins an axis and the one after it."""
  before, after = pairs.shape[:axis], pairs.shape[axis + 2 :]
  return pairs.reshape(*before, -1, *after)


def depth_to_space(x: jax.Array) -> jax.Array:
  """Spreads channels over the cells of a map of twice the resolution.

  Shi et al. 2016, https://arxiv.org/abs/1609.05158, section 3.2.

  Args:
    x: [B, *space, 2^n * C] with n spatial axes; cell 2 o + r of the result
      is block r of the channels of cell o, the last axis changing fastest.

  Returns:
    [B, *(2 * space), C].
  """
  ndim = x.ndim - 2
  x = x.reshape(*x.shape[:-1], *(2,) * ndim, -1)
  places = [p for axis in range(ndim) for p in (1 + axis, 1 + ndim + axis)]
  x = x.transpose(0, *places, 1 + 2 * ndim)
  for axis in range(1, 1 + ndim):
    x = _interleave(x, axis)
  return x


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

  Several maps count as one that has the channels of all of them, in their
  order. They are convolved one by one, each with its share of the kernel, and
  added up: side by side they would be copied.

  Attributes:
    features: channels out.
    size: edge of the kernel in voxels, odd.
    strides: step in voxels.
    dilation: distance between the taps of the kernel.
    dtype: type to compute in and to return.
    mode: see `conv`.
  """

  features: int
  size: int = 3
  strides: int = 1
  dilation: int = 1
  dtype: Any = jnp.float32
  mode: str = "auto"

  @nn.compact
  def __call__(self, *maps: jax.Array) -> jax.Array:
    """Maps [B, *space, C], ... to [B, *ceil(space / strides), features]."""
    ends = list(itertools.accumulate(x.shape[-1] for x in maps))
    shape = (self.size,) * (maps[0].ndim - 2) + (ends[-1], self.features)
    kernel = self.param("kernel", kaiming_normal, shape, jnp.float32)
    parts = jnp.split(kernel.astype(self.dtype), ends[:-1], axis=-2)
    one_by_one = (
      conv(
        x.astype(self.dtype),
        part,
        self.strides,
        dilation=self.dilation,
        mode=self.mode,
      )
      for x, part in zip(maps, parts, strict=True)
    )
    return reduce(operator.add, one_by_one)


class Kernel(nn.Module):
  """The kernel of a `Conv` of the same name, for what replaces that.

  Attributes:
    shape: [*size, C, features].
  """

  shape: tuple[int, ...]

  @nn.compact
  def __call__(self) -> tuple[jax.Array]:
    """Returns the kernel as a tuple of one.

    `core.parallel` pins how arrays of five axes that modules return lie on the
    devices, which is for feature maps.
    """
    return (self.param("kernel", kaiming_normal, self.shape, jnp.float32),)


def norm(
  kind: str,
  channels: int,
  *,
  train: bool,
  relu: bool = False,
  axis_name: str | None = None,
  dtype: Any = jnp.float32,
  scale_init: Callable[..., jax.Array] = nn.initializers.ones,
  name: str | None = None,
) -> Callable[[jax.Array], jax.Array]:
  """Makes a normalisation layer with a scale and a bias per channel.

  Statistics and parameters are float32 whatever `dtype` is.

  Args:
    kind: a key of `NORMS`: "batch", "group" (32 groups, or the largest
      common divisor of 32 and `channels`) or "instance".
    channels: channels of the input.
    train: whether BatchNorm takes the batch's statistics (and updates the
      running ones, in the collection "batch_stats"); the others ignore it.
    relu: whether a ReLU follows.
    axis_name: the mapped axis over whose devices BatchNorm takes means.
    dtype: type to return.
    scale_init: initialiser of the scale.
    name: the layer's name in the parameter tree.

  Returns:
    A function that maps [B, *space, C] to the same shape.
  """
  common = {"dtype": dtype, "scale_init": scale_init, "name": name}
  make = lookup.look_up(NORMS, kind, "norm")
  return make(channels, train, relu, axis_name, common)


class BatchNorm(nn.Module):
  """Batch normalisation, and the ReLU after it, see `batch_norm`.

  Parameters and "batch_stats" are those of `flax.linen.BatchNorm`.

  Attributes:
    channels: of the map; one that is W-folded has several lanes for each.
    train: whether to take the statistics of the batch and update the running
      ones; else the running ones are used.
    relu: whether a ReLU follows.
    axis_name: the mapped axis over whose devices means are taken.
    dtype: type to return; all else is float32 or better.
    scale_init: initialiser of the scale.
  """

  channels: int
  train: bool
  relu: bool = False
  axis_name: str | None = None
  dtype: Any = jnp.float32
  scale_init: Callable[..., jax.Array] = nn.initializers.ones

  @nn.compact
  def __call__(
    self, x: jax.Array, fused: Callable[..., Any] | None = None
  ) -> jax.Array:
    """Maps [B, *space, C] to the same shape.

    Args:
      x: the map, or with `fused` what that takes.
      fused: what does the work of this norm together with its neighbours, in
        training alone: (x, scale, bias, axis_name) -> (y, mean, variance).
    """
    shape = (self.channels,)
    kind = jnp.float32
    mean = self.variable("batch_stats", "mean", jnp.zeros, shape, kind)
    var = self.variable("batch_stats", "var", jnp.ones, shape, kind)
    scale = self.param("scale", self.scale_init, shape, kind)
    bias = self.param("bias", nn.initializers.zeros, shape, kind)
    if not self.train:
      a = scale * lax.rsqrt(var.value + batch_norm.EPSILON)
      b = bias - mean.value * a
      return batch_norm.affine(x, a, b, relu=self.relu).astype(self.dtype)
    # Devices have no name while parameters are made.
    axis_name = None if self.is_initializing() else self.axis_name
    if fused is None:
      y, batch_mean, batch_var = batch_norm.batch_norm(
        x, scale, bias, axis_name, self.relu, self.dtype
      )
    else:
      y, batch_mean, batch_var = fused(x, scale, bias, axis_name)
    if not self.is_initializing():
      for old, new in ((mean, batch_mean), (var, batch_var)):
        old.value = BATCH_NORM_MOMENTUM * old.value + (
          1 - BATCH_NORM_MOMENTUM
        ) * lax.stop_gradient(new)
    return y


def batch_statistics(updated: Any, running: Any) -> Any:
  """Returns the mean and variance of one batch of all batch norms.

  Args:
    updated: "batch_stats" after a pass with `train=True`.
    running: the same before it.
  """
  # updated = momentum * running + (1 - momentum) * batch, solved for the batch.
  kept = BATCH_NORM_MOMENTUM
  return jax.tree.map(
    lambda new, old: (new - kept * old) / (1 - kept), updated, running
  )


def pool_statistics(batches: Sequence[Any]) -> Any:
  """Returns the mean and variance of all batches together, as numpy.

  By the law of total variance: the mean of the batches' variances and the
  variance between their means. The former alone is too small, the more so the
  smaller the batches.

  Args:
    batches: of `batch_statistics`, of batches of one size.
  """
  # Every batch norm has a leaf "mean" and a leaf "var".
  flat = [traverse_util.flatten_dict(jax.device_get(b)) for b in batches]
  pooled = {}
  for path in flat[0]:
    each = np.stack([batch[path] for batch in flat]).astype(np.float64)
    value = each.mean(0)
    if path[-1] == "var":
      means = [batch[(*path[:-1], "mean")] for batch in flat]
      value = np.maximum(value, 0) + np.var(means, axis=0, dtype=np.float64)
    pooled[path] = value.astype(flat[0][path].dtype)
  return traverse_util.unflatten_dict(pooled)


def _make_batch_norm(channels, train, relu, axis_name, common):
  return BatchNorm(channels, train, relu, axis_name, **common)


def _make_group_norm(channels, train, relu, axis_name, common):
  del train, axis_name
  groups = math.gcd(NUM_GROUPS, channels)
  layer = nn.GroupNorm(num_groups=groups, epsilon=batch_norm.EPSILON, **common)
  return _then_relu(layer) if relu else layer


def _make_instance_norm(channels, train, relu, axis_name, common):
  del channels, train, axis_name
  layer = nn.InstanceNorm(epsilon=batch_norm.EPSILON, **common)
  return _then_relu(layer) if relu else layer


def _then_relu(layer: nn.Module) -> Callable[[jax.Array], jax.Array]:
  return lambda x: nn.relu(layer(x))


NORMS = {
  "batch": _make_batch_norm,
  "group": _make_group_norm,
  "instance": _make_instance_norm,
}


def _per_axis(value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
  return (value,) * ndim if isinstance(value, int) else tuple(value)
