"""Winograd's minimal filtering in the plane, F(4x4, 3x3).

Lavin & Gray 2016, https://arxiv.org/abs/1509.09308: a 3x3 convolution of a
tile of 4x4 outputs takes 36 products instead of 144. Taps in depth are added
after the product.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TILE = 4
POINTS = TILE + 2  # Products per tile and axis.
# Rows give what each product sees of a tile's six inputs ...
INPUT = np.array(
  [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
  ]
)
# ... of the three taps ...
KERNEL = np.array(
  [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
  ]
)
# ... and what each of the four outputs takes of the products.
OUTPUT = np.array(
  [
    [1, 1, 1, 1, 1, 0],
    [0, 1, -1, 2, -2, 0],
    [0, 1, 1, 4, 4, 0],
    [0, 1, -1, 8, -8, 1],
  ]
)


def fits(shape: Sequence[int], window) -> bool:
  """Whether a map [B, D, H, W, C] and a `conv_cpu.Window` can be done so."""
  return (
    window.size == (3, 3, 3)
    and set(window.strides) == {1}
    and set(window.dilation) == {1}
    and window.padding == (1, 1, 1)
    and shape[2] % TILE == 0
    and shape[3] % TILE == 0
  )


def _combine(row: np.ndarray, values: Sequence[jax.Array]) -> jax.Array:
  """The sum of `values` weighted by `row`, without its zeros."""
  total = None
  for weight, value in zip(row, values, strict=True):
    if weight:
      term = value if weight == 1 else float(weight) * value
      total = term if total is None else total + term
  return total


def _apply(matrix: np.ndarray, x: jax.Array, axis: int, to: int) -> jax.Array:
  """Multiplies `matrix` with `axis` of `x`, whose new place is `to`."""
  values = [lax.index_in_dim(x, k, axis, False) for k in range(x.shape[axis])]
  # The barrier keeps XLA from computing this again for every use.
  return lax.optimization_barrier(
    jnp.stack([_combine(row, values) for row in matrix], to)
  )


def _tiles(x: jax.Array, axis: int) -> list[jax.Array]:
  """The six inputs of every tile along `axis`, which now counts tiles."""
  n = x.shape[axis] // TILE
  padded = lax.pad(
    x,
    jnp.zeros((), x.dtype),
    [(1, TILE - 1, 0) if a == axis else (0, 0, 0) for a in range(x.ndim)],
  )
  split = padded.reshape(*x.shape[:axis], n + 1, TILE, *x.shape[axis + 1 :])
  first = lax.slice_in_dim(split, 0, n, axis=axis)
  following = lax.slice_in_dim(split, 1, n + 1, axis=axis)
  return [lax.index_in_dim(first, k, axis + 1, False) for k in range(TILE)] + [
    lax.index_in_dim(following, k, axis + 1, False) for k in range(2)
  ]


def _transform_input(x: jax.Array) -> jax.Array:
  """[B, D, H, W, C] -> [6 (W), 6 (H), B, D, H / 4, W / 4, C]."""
  for axis in (2, 4):  # H, and W behind the points of H.
    tiles = _tiles(x, axis)
    x = lax.optimization_barrier(
      jnp.stack([_combine(row, tiles) for row in INPUT])
    )
  return x


def _transform_kernel(kernel: jax.Array) -> jax.Array:
  """[3, 3, 3, C, F] -> [36, C, 3 * F]."""
  u = jnp.einsum(
    "ph,qw,dhwcf->qpcdf", KERNEL, KERNEL, kernel, precision="highest"
  )
  return u.reshape(POINTS**2, kernel.shape[3], -1)


def _shift(x: jax.Array, planes: int, axis: int) -> jax.Array:
  """Moves `x` up by `planes` along `axis`; zeros come in."""
  config = [(0, 0, 0)] * x.ndim
  config[axis] = (planes, -planes, 0)
  return lax.pad(x, jnp.zeros((), x.dtype), config)


def _batched(a: jax.Array, b: jax.Array, contract: tuple[int, int]):
  dims = (((contract[0],), (contract[1],)), ((0,), (0,)))
  return lax.dot_general(a, b, dims)


def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves [B, D, H, W, C] with [3, 3, 3, C, F] at stride 1.

  Args:
    x: H and W are multiples of 4.
    kernel: padded by half its size.

  Returns:
    [B, D, H, W, F], computed in float32 or better.
  """
  wide = jnp.promote_types(x.dtype, jnp.float32)
  v = _transform_input(x.astype(wide))
  products = _batched(
    v.reshape(POINTS**2, -1, x.shape[-1]),
    _transform_kernel(kernel.astype(wide)),
    (2, 1),
  ).reshape(*v.shape[:-1], 3, kernel.shape[-1])
  total = sum(_shift(products[..., tap, :], 1 - tap, 3) for tap in range(3))
  # [6, 6, B, D, h, w, F] -> [6, B, D, h, w, 4, F] -> [B, D, h, 4, w, 4, F]
  rows = _apply(OUTPUT, total, 0, 5)
  return _apply(OUTPUT, rows, 0, 3).reshape(*x.shape[:4], -1).astype(x.dtype)
