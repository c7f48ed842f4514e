"""The ResNet's stem and its pooling on cells of the image, for training.

Convolution, batch norm, ReLU and max pooling with a gradient for all of them,
which stores neither an index of four bytes nor a normalised map, and has no
select-and-scatter. What comes out is that of the plain path,
tests/models/folded_stem_test.py.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from cadjax.models import batch_norm, folded

Maps = dict[tuple[int, int], jax.Array]  # By the parity of D and H.
# Along an axis, window i of the pooling has the voxels 2 i - 1, 2 i, 2 i + 1:
# (their parity, how many cells before that of the window).
TAPS = ((1, 1), (0, 0), (1, 0))
# Which windows have a voxel of that parity: (how many cells after, as which
# tap).
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


def _shift(x: jax.Array, axis: int, by: int, fill: float = 0) -> jax.Array:
  """Moves a map by cells along an axis; lax.pad is fused, concatenate not."""
  sides = [(0, 0, 0)] * x.ndim
  sides[axis] = (by, -by, 0)
  return lax.pad(x, jnp.array(fill, x.dtype), sides)


def _join(*maps: jax.Array) -> jax.Array:
  return jnp.concatenate(maps, -1)


def _stem_convs(cells: jax.Array, kernel: jax.Array) -> Maps:
  """Convolves the image; four maps, by the parity of D and H.

  A voxel of the result sees 7 planes of the image; 8, an idle one in front,
  are half of two cells or the whole of them, with 16 voxels each: 128 lanes
  in. F channels at both parities of W are 128 lanes out.

  Returns:
    {(d, h): [B, D / 4, H / 4, W / 4, 2 F]}: lane w F + f is channel f of the
    voxel (2 i + d, 2 j + h, 2 k + w).
  """
  half = cells.shape[-1] // 2
  before, after = _shift(cells, 1, 1), _shift(cells, 1, -1)
  columns = (
    _join(before, cells),
    _join(before[..., half:], cells, after[..., :half]),
  )
  edge = folded.CELL
  k = jnp.pad(kernel, ((1, 0), *[(0, 0)] * 4))
  k, _ = folded.spread(k, 1, 2, 3, edge)
  k, _ = folded.spread(k, 2, 2, 3, edge)
  # [8, 12, 12, C, F, parity of H, parity of W], the 12 of three cells.
  c, f = k.shape[3:5]
  k = k.reshape(8, 3, edge, 3, edge, c, f, 2, 2)
  k = k.transpose(7, 1, 3, 0, 2, 4, 5, 8, 6)
  k = k.reshape(2, 1, 3, 3, 8 * edge * edge * c, 2 * f)
  # The even rows of the result see nothing of the cell after theirs.
  kernels = (k[0, :, :2], (1, 0)), (k[1], (1, 1))
  return {
    (d, h): lax.conv_general_dilated(
      columns[d],
      kernels[h][0],
      (1, 1, 1),
      ((0, 0), kernels[h][1], (1, 1)),
      dimension_numbers=folded.LAYOUT,
    )
    for d in (0, 1)
    for h in (0, 1)
  }


def _pool_dh(y: Maps) -> tuple[jax.Array, jax.Array]:
  """Returns the maxima over 3x3 in D and H, and the first tap that has each."""
  taps = []
  for d, cells_d in TAPS:
    for h, cells_h in TAPS:
      x = y[d, h]
      x = _shift(x, 1, cells_d, -jnp.inf) if cells_d else x
      taps.append(_shift(x, 2, cells_h, -jnp.inf) if cells_h else x)
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
        x, tap = _shift(x, 1, -1), _shift(tap, 1, -1, -1)
      if cells_h:
        x, tap = _shift(x, 2, -1), _shift(tap, 2, -1, -1)
      total = total + jnp.where(tap == 3 * tap_d + tap_h, x, 0)
  return total


def _pool_w(top: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
  """Returns the three taps along W, W-folded by 2, and their maxima."""
  f = top.shape[-1] // 2  # Lanes: (parity of W, F).
  pairs = top.reshape(*top.shape[:3], -1, 2, 2 * f)
  left, right = pairs[..., 0, :], pairs[..., 1, :]
  taps = (
    _join(_shift(right[..., f:], 3, 1, -jnp.inf), left[..., f:]),
    _join(left[..., :f], right[..., :f]),
    _join(left[..., f:], right[..., f:]),
  )
  return taps, functools.reduce(jnp.maximum, taps)


def _unpool_w(
  g: jax.Array, at_before: jax.Array, at_middle: jax.Array
) -> jax.Array:
  """Sends the gradient along W to the first tap that has the maximum."""
  f = g.shape[-1] // 2
  at_middle = at_middle & ~at_before
  before, middle, after = (
    jnp.where(at, g, 0)
    for at in (at_before, at_middle, ~(at_before | at_middle))
  )
  left = _join(middle[..., :f], after[..., :f] + before[..., f:])
  # The tap before the window's cell lies in the pair of windows before.
  right = _join(
    middle[..., f:], after[..., f:] + _shift(before[..., :f], 3, -1)
  )
  pairs = jnp.stack([left, right], 4)
  return pairs.reshape(*g.shape[:3], -1, g.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _norm_pool(y, scale, bias, axis_name):
  """Batch norm with a scale >= 0, ReLU and max pooling of `_stem_convs`."""
  return _norm_pool_save(y, scale, bias, axis_name)[0]


def _norm_pool_save(y, scale, bias, axis_name):
  # The four maps are of one size.
  each = [batch_norm.moments(x, scale.shape[0]) for x in y.values()]
  mean, square = (sum(parts) / len(y) for parts in zip(*each, strict=True))
  mean, var = batch_norm.mean_and_variance(mean, square, axis_name)
  rate = lax.rsqrt(var + batch_norm.EPSILON)
  top, first = _pool_dh(y)
  a = scale * rate
  out = batch_norm.affine(_pool_w(top)[1], a, bias - mean * a, relu=True)
  saved = y, top, first, scale, bias, mean, rate
  return (out.astype(top.dtype), mean, var), saved


def _norm_pool_pull(axis_name, saved, cotangents):
  y, top, first, scale, bias, mean, rate = saved
  channels = scale.shape[0]
  a = scale * rate
  (before, middle, _), highest = _pool_w(top)
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
  g = _unpool_w(dz.astype(top.dtype), before == highest, middle == highest)

  def pull(x, dz):
    spread = functools.partial(batch_norm.spread, x=x)
    dx = spread(a) * (dz - x * spread(slope) + spread(offset))
    return dx.astype(x.dtype)

  dy = {dh: pull(x, _unpool_dh(g, first, *dh)) for dh, x in y.items()}
  dscale = count * rate * (mean_dyx - mean * mean_dy)
  return dy, dscale, count * mean_dy


_norm_pool.defvjp(_norm_pool_save, _norm_pool_pull)
