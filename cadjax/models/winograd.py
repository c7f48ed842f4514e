"""Winograd's minimal filtering in the plane, F(4x4, 3x3).

Lavin & Gray 2016, https://arxiv.org/abs/1509.09308: a 3x3 convolution of a
tile of 4x4 outputs takes 36 products instead of 144. Taps in depth are added
after the product.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TILE = 4
POINTS = TILE + 2  # Products per tile and axis.
# Maps with so many tiles a plane go plane by plane: what the transforms make of
# a plane stays in the cache, while that of a volume is nine times its size.
# Smaller planes leave cores without work.
LARGE_PLANE = 128
# Planes of several volumes go together up to so many tiles.
MOST_TILES = 256
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


def _apply(
  matrix: np.ndarray, values: Sequence[jax.Array], to: int
) -> jax.Array:
  """Multiplies `matrix` with `values`; the new axis is `to`."""
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


def _transform_input(planes: jax.Array) -> jax.Array:
  """[N, H, W, C] -> [36, tiles, C]; of the 36, those of H vary fastest."""
  x = _apply(INPUT, _tiles(planes, 1), 0)
  # W is behind the points of H.
  x = _apply(INPUT, _tiles(x, 3), 0)
  return x.reshape(POINTS**2, -1, x.shape[-1])


def _transform_kernel(kernel: jax.Array) -> jax.Array:
  """[3, 3, 3, C, F] -> [3, 36, C, F]."""
  u = jnp.einsum(
    "ph,qw,dhwcf->dqpcf", KERNEL, KERNEL, kernel, precision="highest"
  )
  return u.reshape(kernel.shape[0], POINTS**2, *kernel.shape[3:])


def _transform_output(products: jax.Array, shape: Sequence[int]) -> jax.Array:
  """[36, tiles, F] -> [N, H, W, F] with `shape` = (N, H, W)."""
  n, height, width = shape
  x = products.reshape(POINTS, POINTS, n, height // TILE, width // TILE, -1)
  x = _apply(OUTPUT, list(x), 4)  # [6, N, h, w, 4, F]
  return _apply(OUTPUT, list(x), 2).reshape(*shape, -1)


def _transform_gradient(planes: jax.Array) -> jax.Array:
  """[N, H, W, F] -> [36, tiles, F]: `_transform_output` transposed."""
  n, height, width, features = planes.shape
  x = planes.reshape(n, height // TILE, TILE, width // TILE, TILE, features)
  x = _apply(OUTPUT.T, [x[:, :, k] for k in range(TILE)], 0)
  x = _apply(OUTPUT.T, [x[:, :, :, :, k] for k in range(TILE)], 0)
  return x.reshape(POINTS**2, -1, features)


def _product(a: jax.Array, b: jax.Array, contract: tuple[int, int]):
  """36 products of matrices."""
  dims = (((contract[0],), (contract[1],)), ((0,), (0,)))
  return lax.dot_general(a, b, dims)


def _plane(x: jax.Array, first: jax.Array, z: jax.Array, n: int) -> jax.Array:
  """Plane z of `n` volumes, [n, H, W, C]; zeros above and below them."""
  depth = x.shape[1]
  start = (first, jnp.clip(z, 0, depth - 1), 0, 0, 0)
  plane = lax.dynamic_slice(x, start, (n, 1, *x.shape[2:]))[:, 0]
  plane = jnp.where((z >= 0) & (z < depth), plane, 0)
  return plane.astype(jnp.promote_types(x.dtype, jnp.float32))


def _walk(x: jax.Array, visit: Callable, state: Any) -> Any:
  """Visits the planes of all volumes in order, with those that a tap sees.

  Args:
    x: [B, D, H, W, C].
    visit: `state = visit(state, seen, first, z, n)`, where `seen` are the
      transformed planes z - 1, z, z + 1 of the `n` volumes from `first` on.
      Before z = 0 it is called with planes that there are not.
    state: at first.

  Returns:
    The last state.
  """
  batch, depth, height, width, channels = x.shape
  size = height * width // TILE**2
  n = max(1, min(batch, MOST_TILES // size))
  while batch % n:
    n -= 1
  # Three planes a turn: each takes the place of the oldest, and none is moved.
  # Of the planes that fill the turns, the spare ones come first, at least one:
  # with the one behind the last, two planes of zeros lie between volumes.
  turns = -(-(depth + 2) // 3)
  start = depth + 1 - 3 * turns

  def turn(index, carried):
    state, *ring = carried
    first = index // turns * n
    for place in range(3):
      z = index % turns * 3 + place + start
      ring[place] = _transform_input(_plane(x, first, z, n))
      seen = [ring[(place + 1 + tap) % 3] for tap in range(3)]
      state = visit(state, seen, first, z - 1, n)
    return state, *ring

  none = jnp.zeros(
    (POINTS**2, n * size, channels), jnp.promote_types(x.dtype, jnp.float32)
  )
  carried = (state, none, none, none)
  return lax.fori_loop(0, batch // n * turns, turn, carried)[0]


def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves [B, D, H, W, C] with [3, 3, 3, C, F] at stride 1.

  Args:
    x: H and W are multiples of 4.
    kernel: padded by half its size.

  Returns:
    [B, D, H, W, F], computed in float32 or better.
  """
  taps = _transform_kernel(
    kernel.astype(jnp.promote_types(x.dtype, jnp.float32))
  )
  large = math.prod(x.shape[2:4]) >= LARGE_PLANE * TILE**2
  return (_by_plane if large else _at_once)(x, taps)


def _by_plane(x: jax.Array, taps: jax.Array) -> jax.Array:
  """Convolves with a transformed kernel [3, 36, C, F]."""

  def visit(y, seen, first, z, n):
    products = sum(
      _product(plane, tap, (2, 1))
      for plane, tap in zip(seen, taps, strict=True)
    )
    planes = _transform_output(products, (n, *x.shape[2:4]))
    # What comes before plane 0 is written over by it.
    start = (first, jnp.maximum(z, 0), 0, 0, 0)
    return lax.dynamic_update_slice(y, planes[:, None].astype(x.dtype), start)

  # Every value is written over. Zeros would be one map for all convolutions of
  # a network, which is kept, and copied for each of them.
  any_value = (x[0, 0, 0, 0, 0] + taps[0, 0, 0, 0]).astype(x.dtype)
  y = jnp.broadcast_to(any_value, (*x.shape[:-1], taps.shape[-1]))
  return _walk(x, visit, y)


def _at_once(x: jax.Array, taps: jax.Array) -> jax.Array:
  """As `_by_plane`."""
  planes = x.reshape(-1, *x.shape[2:]).astype(taps.dtype)
  # One product with the three taps as columns.
  products = _product(
    _transform_input(planes), jnp.concatenate(list(taps), -1), (2, 1)
  )
  products = products.reshape(
    len(products), *x.shape[:2], -1, 3, taps.shape[-1]
  )
  total = sum(_shift(products[..., tap, :], 1 - tap, 2) for tap in range(3))
  y = _transform_output(total, planes.shape[:-1])
  return y.reshape(*x.shape[:-1], -1).astype(x.dtype)


def _shift(x: jax.Array, planes: int, axis: int) -> jax.Array:
  """Moves `x` up by `planes` along `axis`; zeros come in."""
  config = [(0, 0, 0)] * x.ndim
  config[axis] = (planes, -planes, 0)
  return lax.pad(x, jnp.zeros((), x.dtype), config)


def kernel_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
  """The gradient of the kernel [3, 3, 3, C, F] of `forward`.

  Args:
    x: [B, D, H, W, C].
    dy: the gradient of the output, [B, D, H, W, F].

  Returns:
    [3, 3, 3, C, F] in float32 or wider.
  """

  def visit(total, seen, first, z, n):
    # Above and below the volume it is zero.
    gradient = _transform_gradient(_plane(dy, first, z, n))
    return [
      sum_ + _product(plane, gradient, (1, 1))
      for sum_, plane in zip(total, seen, strict=True)
    ]

  shape = (POINTS**2, x.shape[-1], dy.shape[-1])
  zero = jnp.zeros(shape, jnp.promote_types(x.dtype, jnp.float32))
  u = jnp.stack(_walk(x, visit, [zero] * 3))
  u = u.reshape(3, POINTS, POINTS, *shape[1:])
  return jnp.einsum(
    "ph,qw,dqpcf->dhwcf", KERNEL, KERNEL, u, precision="highest"
  )
