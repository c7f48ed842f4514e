"""A 1x1x1 convolution and its batch norm in one, without the map between.

Mean and variance of y = x K follow from the first two moments of x, whose
channels are a quarter of those of y at the end of a bottleneck: mean(y) =
mean(x) K, and the variance of channel f is K_f' cov(x) K_f. So y is computed
and normalised in one pass, and the gradient needs x and the gradient of the
result alone. What comes out is that of convolution and norm,
tests/models/pointwise_test.py.

The sums of squares are of products of K with a covariance: take the difference
of the moments of x first, and rounding is relative to its variance.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cadjax.models import batch_norm, folded

# Small products of parameters, which bfloat16 passes of a TPU would spoil.
_product = functools.partial(jnp.matmul, precision="highest")


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def conv_norm(
  x: jax.Array,
  kernel: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Convolves and normalises.

  Args:
    x: [B, D, H, W, C], or W-folded [B, D, H, W / f, f C].
    kernel: [C, F], float32.
    scale: of the norm, [F].
    bias: of the norm, [F].
    axis_name: the mapped axis over whose devices means are taken.

  Returns:
    the normalised map in float32 or better, folded as x, to be rounded after
    what is added to it; and mean and variance [F] of x K, through which no
    gradient passes.
  """
  return _save(x, kernel, scale, bias, axis_name)[0]


def _save(x, kernel, scale, bias, axis_name):
  channels = kernel.shape[0]
  mean_x, cross = batch_norm.over_devices(
    (_mean(x, channels), _mean_product(x, x, channels, channels)), axis_name
  )
  k = _rounded(kernel, x)
  covariance = cross - mean_x[:, None] * mean_x[None]
  mean = _product(mean_x, k)
  var = jnp.maximum((k * _product(covariance, k)).sum(0), 0)
  rate = lax.rsqrt(var + batch_norm.EPSILON)
  a = scale * rate
  y = batch_norm.affine(_apply(x, k), a, bias - mean * a)
  return (y, mean, var), (x, kernel, scale, mean, rate, mean_x, cross)


def _pull(axis_name, saved, cotangents):
  x, kernel, scale, mean, rate, mean_x, cross = saved
  channels, features = kernel.shape
  k = _rounded(kernel, x)
  dz = cotangents[0].astype(x.dtype)
  a = scale * rate
  count = x.size // channels
  mean_dz = _mean(dz, features)
  mean_xdz = _mean_product(x, dz, channels, features)
  mean_dzy = (mean_xdz * k).sum(0)
  slope, offset = batch_norm.input_gradient(
    mean_dz, mean_dzy, mean, rate, axis_name
  )
  # The gradient of y is a (dz - slope y + offset), never stored. The moments of
  # x are those of all devices: the sum of all gradients is the same.
  dk = mean_xdz - _product(cross, k) * slope[None]
  dk = count * a[None] * (dk + mean_x[:, None] * offset[None])
  dx = _apply(dz, (k * a[None]).T)
  dx = dx - _apply(x, _product(k * (a * slope)[None], k.T))
  dx = dx + batch_norm.spread(_product(k, a * offset), dx)
  return (
    dx.astype(x.dtype),
    dk.astype(kernel.dtype),
    count * rate * (mean_dzy - mean * mean_dz),
    count * mean_dz,
  )


conv_norm.defvjp(_save, _pull)


def _rounded(kernel: jax.Array, x: jax.Array) -> jax.Array:
  """What the convolution takes for the kernel, in float32 or better."""
  wide = jnp.promote_types(x.dtype, jnp.float32)
  return kernel.astype(x.dtype).astype(wide)


def _mean(x: jax.Array, channels: int) -> jax.Array:
  wide = jnp.promote_types(x.dtype, jnp.float32)
  return batch_norm.channel_mean(x.astype(wide), channels)


def _mean_product(
  x: jax.Array, y: jax.Array, channels: int, features: int
) -> jax.Array:
  """Returns the mean over voxels of x_c y_f, [C, F], of maps folded alike."""
  axes = tuple(range(x.ndim - 1))
  found = lax.dot_general(
    x,
    y,
    ((axes, axes), ((), ())),
    preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
  )
  fold = x.shape[-1] // channels
  blocks = found.reshape(fold, channels, fold, features)
  # Products of neighbours are of no use.
  return jnp.einsum("icif->cf", blocks) * (channels / x.size)


def _apply(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns x K in float32 or better, of a map that may be W-folded."""
  fold = x.shape[-1] // kernel.shape[0]
  k = jnp.kron(jnp.eye(fold, dtype=x.dtype), kernel.astype(x.dtype))
  return lax.conv_general_dilated(
    x,
    k[None, None, None],
    (1, 1, 1),
    "VALID",
    dimension_numbers=folded.LAYOUT,
    preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def relu_add(x: jax.Array, y: jax.Array, dtype: Any) -> jax.Array:
  """Returns ReLU(x + y) in `dtype`, added in float32 or better.

  Its gradient is masked by its own result, which the next layer keeps anyway;
  that of ReLU would keep the sum, in float32.
  """
  wide = jnp.promote_types(dtype, jnp.float32)
  return jax.nn.relu(x.astype(wide) + y.astype(wide)).astype(dtype)


def _relu_add_save(x, y, dtype):
  total = relu_add(x, y, dtype)
  # Arrays without elements tell the types of x and y.
  return total, (total, jnp.zeros(0, x.dtype), jnp.zeros(0, y.dtype))


def _relu_add_pull(dtype, saved, dz):
  del dtype
  total, of_x, of_y = saved
  dz = jnp.where(total > 0, dz, 0)
  return dz.astype(of_x.dtype), dz.astype(of_y.dtype)


relu_add.defvjp(_relu_add_save, _relu_add_pull)
