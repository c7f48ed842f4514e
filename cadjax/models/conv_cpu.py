"""3D convolution from parts that XLA does well on a CPU.

XLA's CPU backend has a fast path for 2D convolutions and matrix products and
a slow one for 3D convolutions, above all for their gradients. Everything here
is built of slices, 2D convolutions and products, so autodiff is too. The
result is that of `lax.conv_general_dilated` up to rounding.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

# Below this many output voxels a product over all taps beats 2D convolutions.
SMALL_MAP = 512


def conv3d(
  x: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int],
  dilation: Sequence[int],
  padding: Sequence[tuple[int, int]],
) -> jax.Array:
  """Convolves [B, D, H, W, C] with [d, h, w, C, F] to [B, D', H', W', F].

  Args:
    x: the map.
    kernel: of the type of `x`.
    strides: of the three axes.
    dilation: distance between taps, of the three axes.
    padding: (before, after) of the three axes.
  """
  reach = [d * (k - 1) for d, k in zip(dilation, kernel.shape[:3], strict=True)]
  out = [
    (n + before + after - r - 1) // s + 1
    for n, (before, after), r, s in zip(
      x.shape[1:4], padding, reach, strides, strict=True
    )
  ]

  def taps(x: jax.Array, axis: int) -> list[jax.Array]:
    """The strided views of `x` that the taps along one axis see."""
    stop = (out[axis] - 1) * strides[axis] + 1
    return [
      lax.slice_in_dim(x, start, start + stop, strides[axis], axis + 1)
      for start in range(0, reach[axis] + 1, dilation[axis])
    ]

  small = out[0] * out[1] * out[2] < SMALL_MAP
  strided = max(strides) > 1
  if x.shape[-1] == 1 or not (small or strided):
    return _by_planes(x, kernel, strides, dilation, padding, taps)
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  columns = [z for a in taps(x, 0) for b in taps(a, 1) for z in taps(b, 2)]
  return _product(jnp.concatenate(columns, -1), kernel)


def _by_planes(x, kernel, strides, dilation, padding, taps) -> jax.Array:
  """One 2D convolution whose channels are those of all depth taps.

  The stem takes this path with its strides: its input needs no gradient, the
  one thing that is slow in a strided 2D convolution.
  """
  depth, *plane, channels, features = kernel.shape
  x = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0), (0, 0)))
  planes = jnp.concatenate(taps(x, 0), -1)
  y = lax.conv_general_dilated(
    planes.reshape(-1, *planes.shape[2:]),
    jnp.moveaxis(kernel, 0, 2).reshape(*plane, depth * channels, features),
    strides[1:],
    padding[1:],
    rhs_dilation=dilation[1:],
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return y.reshape(*planes.shape[:2], *y.shape[1:])


def _product(columns: jax.Array, kernel: jax.Array) -> jax.Array:
  flat = kernel.reshape(-1, kernel.shape[-1])
  return lax.dot_general(columns, flat, (((4,), (0,)), ((), ())))
