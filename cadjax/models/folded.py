"""Images and maps whose neighbouring voxels are channels of one cell.

A TPU multiplies 128 lanes at once, and the lanes are the channels: of one image
channel 127 stand idle, of 64 channels a half. Folded, they have work to do,
with the same parameters and, but for rounding, the same results.

A map that is W-folded by f is [B, D, H, W / f, f C]: lane w C + c of a cell is
channel c of its voxel w.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cadjax.models import conv_cpu

CELL = 4  # Voxels along each edge of a cell of the image.
VOXELS = CELL**3
LAYOUT = conv_cpu.LAYOUTS[3]


def fits(shape: Sequence[int]) -> bool:
  """Whether images [B, D, H, W, C] have whole cells, W an even number."""
  depth, height, width = shape[-4:-1]
  return not (depth % CELL or height % CELL or width % (2 * CELL))


def to_cells(image: Any) -> Any:
  """Makes 4x4x4 neighbours the channels of one cell.

  Args:
    image: [B, D, H, W, C], of numpy or jax.

  Returns:
    [B, D / 4, H / 4, W / 4, 64 C], in the order (d, h, w, channel).
  """
  b, d, h, w, c = image.shape
  x = image.reshape(b, d // CELL, CELL, h // CELL, CELL, w // CELL, CELL, c)
  x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
  return x.reshape(b, d // CELL, h // CELL, w // CELL, VOXELS * c)


def from_cells(cells: Any) -> Any:
  """Undoes `to_cells`."""
  b, d, h, w, lanes = cells.shape
  x = cells.reshape(b, d, h, w, CELL, CELL, CELL, lanes // VOXELS)
  x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
  return x.reshape(b, d * CELL, h * CELL, w * CELL, lanes // VOXELS)


def is_cells(image: Any) -> bool:
  """Whether an image is one of `to_cells`; no other has so many channels."""
  return image.ndim == 5 and image.shape[-1] % VOXELS == 0


def unfold(x: jax.Array, channels: int) -> jax.Array:
  """[B, D, H, W / f, f C] to [B, D, H, W, C], with C = `channels`."""
  return x.reshape(*x.shape[:3], -1, channels)


def conv(
  x: jax.Array, kernel: jax.Array, stride: int, channels: int
) -> jax.Array:
  """Convolves a W-folded map, as `layers.conv` does the plain one.

  Args:
    x: [B, D, H, W / f, f C].
    kernel: [n, n, n, C, F], n odd.
    stride: 1, or f, which unfolds the map.
    channels: C.

  Returns:
    W-folded by f / stride: [B, D, H, W / f, f F] / stride along D, H, W.
  """
  fold = x.shape[-1] // channels
  pad = (kernel.shape[0] - 1) // 2
  k, sides = spread(kernel, 2, stride, pad, fold)
  d, h, w, c, f, out = k.shape
  k = k.reshape(d, h, w // fold, fold, c, f, out)
  k = k.transpose(0, 1, 2, 3, 4, 6, 5)
  return lax.conv_general_dilated(
    x,
    k.reshape(d, h, w // fold, fold * c, out * f),
    (stride, stride, 1),
    ((pad, pad), (pad, pad), sides),
    dimension_numbers=LAYOUT,
  )


def spread(
  kernel: jax.Array, axis: int, stride: int, pad: int, fold: int
) -> tuple[jax.Array, tuple[int, int]]:
  """Lays the taps of one axis over cells of `fold` voxels.

  Args:
    kernel: with any axes.
    axis: the one.
    stride: in voxels; a divisor of `fold`.
    pad: voxels before the first one.
    fold: voxels in a cell.

  Returns:
    the kernel with as many taps along that axis as the cells that one cell
    sees have voxels, for each of the fold / stride voxels that a cell has in
    the result, as the last axis; and the cells that it sees before and after.
  """
  taps, outs = kernel.shape[axis], fold // stride
  before = -(-pad // fold)
  after = ((outs - 1) * stride + taps - 1 - pad) // fold
  voxels = fold * (before + 1 + after)
  each = []
  for out in range(outs):
    front = out * stride - pad + fold * before
    sides = [(0, 0)] * kernel.ndim
    sides[axis] = (front, voxels - taps - front)
    each.append(jnp.pad(kernel, sides))
  return jnp.stack(each, -1), (before, after)
