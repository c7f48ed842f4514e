"""The ResNet's stem and its pooling on cells of the image, for training.

Convolution, batch norm, ReLU and max pooling with a gradient for all of them,
which stores neither an index of four bytes nor a normalised map, and has no
select-and-scatter. What comes out is that of the plain path,
tests/models/folded_stem_test.py.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax

from cadjax.models import batch_norm, folded

# By the parity of D, H and W. Map (d, h, w) is [B, D / 4, H / 4, W / 8, 2 F],
# folded as the pooled map is: lane p F + f is channel f of the voxel
# (2 i + d, 2 j + h, 2 (2 k + p) + w).
Maps = dict[tuple[int, int, int], jax.Array]
PARITIES = tuple(itertools.product((0, 1), repeat=3))
# Along an axis, window i of the pooling has the voxels 2 i - 1, 2 i, 2 i + 1:
# (their parity, how many windows before).
TAPS = ((1, 1), (0, 0), (1, 0))
# Which windows have a voxel of that parity: (how many after, as which tap).
WINDOWS = (((0, 1),), ((0, 2), (1, 0)))


def stem(
  cells: jax.Array,
  kernel: jax.Array,
  scale: jax.Array,
  bias: jax.Array,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Convolution 7 of stride 2, batch norm, ReLU, max pooling 3 of stride 2.

  Args:
    cells: of `to_cells`, in the type to compute in.
    kernel: [7, 7, 7, C, F].
    scale: of the norm, [F].
    bias: of the norm, [F].
    axis_name: the mapped axis over whose devices means are taken.

  Returns:
    the pooled map W-folded by 2, [B, D / 4, H / 4, W / 8, 2 F], and mean and
    variance [F] of what the convolution gives, through which no gradient
    passes.
  """
  # With a scale of at least 0, norm and ReLU grow with their input: then they
  # need to see the maxima alone, an eighth of the voxels.
  sign = jnp.where(scale < 0, -1, 1).astype(scale.dtype)
  kernel = kernel * batch_norm.spread(sign, kernel)
  y = _stem_convs(cells, kernel.astype(cells.dtype))
  out, mean, var = _norm_pool(y, scale * sign, bias, axis_name)
  return out, mean * sign, var


def _move(
  x: jax.Array,
  axis: int | None = None,
  by: int = 0,
  lanes: int = 0,
  *,
  out: int | None = None,
  fill: float = 0,
) -> jax.Array:
  """Moves a map by cells along an axis, and by lanes.

  All in one lax.pad, which is fused where slices and concatenate are not.

  Args:
    x: the map.
    axis: of the cells.
    by: cells, to higher ones.
    lanes: to higher ones.
    out: lanes of the result; those of `x` if None.
    fill: what comes from outside.
  """
  sides = [(0, 0, 0)] * x.ndim
  if axis is not None:
    sides[axis] = (by, -by, 0)
  out = x.shape[-1] if out is None else out
  sides[-1] = (lanes, out - lanes - x.shape[-1], 0)
  return lax.pad(x, jnp.array(fill, x.dtype), sides)


def _columns(cells: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns what the even and the odd planes of the result see.

  These are 7 planes of the image; 8, an idle one in front, are half of two
  cells or half, whole and half of three, with 16 voxels each: 128 lanes.
  """
  lanes = cells.shape[-1]
  half, out = lanes // 2, 2 * lanes
  return (
    _move(cells, 1, 1, out=out) + _move(cells, lanes=lanes, out=out),
    _move(cells, 1, 1, -half, out=out)
    + _move(cells, lanes=half, out=out)
    + _move(cells, 1, -1, lanes + half, out=out),
  )


def _stem_convs(cells: jax.Array, kernel: jax.Array) -> Maps:
  """Convolves the image with a stride of 2; a map for each of `PARITIES`.

  Two voxels along W with F channels are 128 lanes out.
  """
  edge = folded.CELL
  columns = _columns(cells)
  k = jnp.pad(kernel, ((1, 0), *[(0, 0)] * 4))
  k, _ = folded.spread(k, 1, 2, 3, edge)
  maps = {}
  for w in (0, 1):
    # The voxels 8 k + 2 w and 8 k + 4 + 2 w, from the cell before on.
    seen = (11 + 2 * w) // edge + 1
    fronts = [edge + 2 * w + 4 * p - 3 for p in (0, 1)]
    each = [
      jnp.pad(k, [*[(0, 0)] * 2, (n, seen * edge - n - 7), *[(0, 0)] * 3])
      for n in fronts
    ]
    # [8, 12, 4 seen, C, F, parity of H, 2 voxels along W], the 12 of 3 cells.
    ours = jnp.stack(each, -1)
    c, f = ours.shape[3:5]
    ours = ours.reshape(8, 3, edge, seen, edge, c, f, 2, 2)
    ours = ours.transpose(7, 1, 3, 0, 2, 4, 5, 8, 6)
    ours = ours.reshape(2, 1, 3, seen, 8 * edge * edge * c, 2 * f)
    # The even rows of the result see nothing of the cell after theirs.
    kernels = (ours[0, :, :2], (1, 0)), (ours[1], (1, 1))
    for d, h in itertools.product((0, 1), repeat=2):
      maps[d, h, w] = lax.conv_general_dilated(
        columns[d],
        kernels[h][0],
        (1, 1, 2),
        ((0, 0), kernels[h][1], (1, seen - 2)),
        dimension_numbers=folded.LAYOUT,
      )
  return {parity: maps[parity] for parity in PARITIES}


def _pool_dh(y: Maps, w: int) -> tuple[jax.Array, jax.Array]:
  """Returns the maxima over 3x3 in D and H, and the first tap that has each."""
  taps = []
  for d, cells_d in TAPS:
    for h, cells_h in TAPS:
      x = y[d, h, w]
      x = _move(x, 1, cells_d, fill=-jnp.inf) if cells_d else x
      taps.append(_move(x, 2, cells_h, fill=-jnp.inf) if cells_h else x)
  top = functools.reduce(jnp.maximum, taps)
  first = jnp.full(top.shape, len(taps) - 1, jnp.int32)
  for tap in reversed(range(len(taps) - 1)):
    first = jnp.where(taps[tap] == top, tap, first)
  return top, first.astype(jnp.int8)  # Kept for the gradient: a byte each.


def _unpool_dh(g: jax.Array, first: jax.Array, d: int, h: int) -> jax.Array:
  """Sends the gradient of the maxima to the voxels of a parity; float32."""
  total = jnp.zeros((), jnp.promote_types(g.dtype, jnp.float32))
  for cells_d, tap_d in WINDOWS[d]:
    for cells_h, tap_h in WINDOWS[h]:
      x, tap = g, first
      if cells_d:
        x, tap = _move(x, 1, -1), _move(tap, 1, -1, fill=-1)
      if cells_h:
        x, tap = _move(x, 2, -1), _move(tap, 2, -1, fill=-1)
      total = total + jnp.where(tap == 3 * tap_d + tap_h, x, 0)
  return total


def _before(odd: jax.Array) -> jax.Array:
  """Returns the odd voxel along W that is the first of each window."""
  f = odd.shape[-1] // 2
  return jnp.maximum(
    _move(odd, 3, 1, -f, fill=-jnp.inf), _move(odd, lanes=f, fill=-jnp.inf)
  )


def _pull_before(g: jax.Array) -> jax.Array:
  """The gradient of `_before`."""
  f = g.shape[-1] // 2
  return _move(g, lanes=-f) + _move(g, 3, -1, f)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _norm_pool(y, scale, bias, axis_name):
  """Batch norm with a scale >= 0, ReLU and max pooling of `_stem_convs`."""
  return _norm_pool_save(y, scale, bias, axis_name)[0]


def _norm_pool_save(y, scale, bias, axis_name):
  # The maps are of one size.
  each = [batch_norm.moments(x, scale.shape[0]) for x in y.values()]
  mean, square = (sum(parts) / len(y) for parts in zip(*each, strict=True))
  mean, var = batch_norm.mean_and_variance(mean, square, axis_name)
  rate = lax.rsqrt(var + batch_norm.EPSILON)
  tops, firsts = zip(*(_pool_dh(y, w) for w in (0, 1)), strict=True)
  a = scale * rate
  out = batch_norm.affine(_highest(*tops), a, bias - mean * a, relu=True)
  saved = y, tops, firsts, scale, bias, mean, rate
  return (out.astype(tops[0].dtype), mean, var), saved


def _highest(even, odd):
  return functools.reduce(jnp.maximum, (_before(odd), even, odd))


def _norm_pool_pull(axis_name, saved, cotangents):
  y, (even, odd), firsts, scale, bias, mean, rate = saved
  channels = scale.shape[0]
  a = scale * rate
  before, highest = _before(odd), _highest(even, odd)
  seen = batch_norm.affine(highest, a, bias - mean * a) > 0
  dz = jnp.where(seen, cotangents[0], 0).astype(mean.dtype)
  # Elsewhere the gradient of the whole map is 0, so that its sums are those of
  # the pooled one; means are over the whole.
  count = sum(x.size for x in y.values()) // channels
  share = dz.size / channels / count
  mean_dy = share * batch_norm.channel_mean(dz, channels)
  mean_dyx = share * batch_norm.channel_mean(dz * highest, channels)
  slope, offset = batch_norm.input_gradient(
    mean_dy, mean_dyx, mean, rate, axis_name
  )
  # Along W, too, the first tap that has the maximum gets all.
  g = dz.astype(even.dtype)
  at_before = before == highest
  at_even = (even == highest) & ~at_before
  to_odd = jnp.where(at_before | at_even, 0, g)
  to_odd = to_odd + _pull_before(jnp.where(at_before, g, 0))
  given = jnp.where(at_even, g, 0), to_odd

  def pull(x, dz):
    spread = functools.partial(batch_norm.spread, x=x)
    dx = spread(a) * (dz - x * spread(slope) + spread(offset))
    return dx.astype(x.dtype)

  dy = {
    (d, h, w): pull(x, _unpool_dh(given[w], firsts[w], d, h))
    for (d, h, w), x in y.items()
  }
  dscale = count * rate * (mean_dyx - mean * mean_dy)
  return dy, dscale, count * mean_dy


_norm_pool.defvjp(_norm_pool_save, _norm_pool_pull)
