"""The largest batch, and patch of a segmenter, whose train step fits.

By what the compiler reserves for the compiled step, parameters and optimizer
included; nothing runs.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

# Compiled for one size; None where the compiler says that it does not fit.
Bytes = Callable[["Size"], float | None]
SMALLEST_PATCH = 32  # Voxels along an edge.


@dataclasses.dataclass(frozen=True)
class Size:
  """What a step takes.

  Attributes:
    batch: volumes or patches, on all devices together.
    shape: voxels D, H, W of each.
  """

  batch: int
  shape: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Found:
  """What came of a search.

  Attributes:
    tried: bytes on one device by size, in the order of the search; None where
      the compiler gave up.
    best: the largest that fits, or None.
  """

  tried: dict[Size, float | None]
  best: Size | None


def search(
  compiled: Bytes,
  limit: float,
  shape: Sequence[int],
  *,
  devices: int = 1,
  stride: int | None = None,
  most: int = 1024,
) -> Found:
  """Searches the largest batch that fits, and if none does the largest patch.

  Batches are multiples of `devices`. They are doubled until one does not fit;
  then the middle between the two is tried, and so on.

  Args:
    compiled: bytes on one device of a size.
    limit: bytes on one device.
    shape: voxels D, H, W.
    devices: that share a batch.
    stride: of the voxels of a patch that may be made smaller, edge by edge
      alike; None for volumes, which may not.
    most: the largest batch on a device that is tried.
  """
  tried: dict[Size, float | None] = {}

  def fits(count: int, shape: tuple[int, ...]) -> bool:
    size = Size(count * devices, tuple(shape))
    if size not in tried:
      tried[size] = compiled(size)
    return tried[size] is not None and tried[size] <= limit

  shape = tuple(shape)
  while not fits(1, shape):
    shape = _smaller(shape, stride)
    if shape is None:
      return Found(tried, None)
  fit, above = 1, None
  while above is None and fit < most:
    if fits(2 * fit, shape):
      fit *= 2
    else:
      above = 2 * fit
  # To an eighth: a compilation takes minutes.
  while above is not None and above - fit > max(1, fit // 8):
    middle = (fit + above) // 2
    fit, above = (middle, above) if fits(middle, shape) else (fit, middle)
  return Found(tried, Size(fit * devices, shape))


def _smaller(
  shape: tuple[int, ...], stride: int | None
) -> tuple[int, ...] | None:
  """The next smaller patch, the longest edges first; None at the smallest."""
  if stride is None:
    return None
  step = math.lcm(stride, 16)
  longest = max(shape)
  least = max(SMALLEST_PATCH, stride)
  smaller = tuple(max(least, n - step) if n == longest else n for n in shape)
  return smaller if smaller != shape else None


def text(found: Found, limit: float, asked: Sequence[int]) -> str:
  """Returns what was tried, and the flags of a training of the best.

  Args:
    found: of `search`.
    limit: bytes on one device.
    asked: voxels D, H, W that were asked for; others are a smaller patch.
  """
  lines = []
  for size, used in found.tried.items():
    edges = "x".join(map(str, size.shape))
    memory = "too large" if used is None else f"{used / 1e9:.3g} GB"
    lines.append(f"batch {size.batch} of {edges}: {memory}")
  room = f"{limit / 1e9:g} GB"
  if found.best is None:
    lines.append(
      f"nothing fits into {room}; try --config.model.remat=True, or on an"
      " accelerator --config.model.dtype=bfloat16"
    )
    return "\n".join(lines)
  given = f"--config.data.batch_size={found.best.batch}"
  if found.best.shape != tuple(asked):
    edges = ",".join(map(str, found.best.shape))
    given += f" --config.data.patch_size='({edges})'"
  return "\n".join([*lines, f"the most that fits into {room}: {given}"])
