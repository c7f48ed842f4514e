"""Antialiased resampling between two grids in the patient."""

import contextlib
import functools
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import SimpleITK as sitk
import threadpoolctl

from data_prep import workers
from data_prep.volume import Grid

# Off-axis drift, in voxels over the whole grid, below which two grids count
# as parallel: DICOM's decimal directions are no better than this.
_PARALLEL_VOXELS = 1e-2
ORDERS = ("linear", "nearest", "majority")


def resample(
  array: np.ndarray,
  grid_in: Grid,
  grid_out: Grid,
  *,
  order: str = "linear",
  fill: float = 0,
  threads: int | None = None,
) -> np.ndarray:
  """Resamples an array from one grid to another, antialiased when shrinking.

  Linear interpolation when enlarging. When shrinking, its mean over the output
  voxel (over part of it below a factor of 2), so that nothing is missed: what
  is small keeps its mass wherever it lies, and a linear ramp stays exact.
  Where the grids are rotated against each other, a box average along the
  input's axes comes first and SimpleITK's linear interpolation second.

  Args:
    array: [D, H, W] on `grid_in`.
    grid_in: where the array lies.
    grid_out: where the result lies.
    order: "linear" for intensities; "nearest"; "majority" for labels, which
      gives each label the voxels it fills most, as many as its volume asks.
    fill: value of voxels whose centre lies outside the input's voxels.
    threads: at most so many; all cores if None.

  Returns:
    [D, H, W] on `grid_out` in the dtype of `array` (bool stays bool).

  Raises:
    ValueError: the array does not fit `grid_in`, or an unknown order.
  """
  if array.shape != grid_in.shape:
    raise ValueError(f"array {array.shape} on a grid {grid_in.shape}")
  if order not in ORDERS:
    raise ValueError(f"order {order!r}; known are {', '.join(ORDERS)}")
  if grid_in == grid_out:
    return array.copy()
  if order == "majority":
    return _majority(array, grid_in, grid_out, fill, threads)
  if order == "nearest":
    return _nearest(array, grid_in, grid_out, fill, threads)
  return _linear(array, grid_in, grid_out, fill, threads)


def index_map(grid_in: Grid, grid_out: Grid) -> tuple[np.ndarray, np.ndarray]:
  """Returns (matrix [3, 3], offset [3]) from output to input voxel index."""
  inverse = np.linalg.inv(grid_in.affine)
  both = inverse @ grid_out.affine
  return both[:3, :3], both[:3, 3]


def _is_parallel(matrix: np.ndarray, shape: tuple[int, ...]) -> bool:
  drift = np.abs(matrix - np.diag(np.diag(matrix))) * np.array(shape)
  return bool(drift.max() < _PARALLEL_VOXELS and np.diag(matrix).min() > 0)


def _inside(centers: np.ndarray, size: int) -> np.ndarray:
  return (centers > -0.5 - 1e-6) & (centers < size - 0.5 + 1e-6)


def _weights(
  size_in: int, size_out: int, scale: float, offset: float
) -> tuple[np.ndarray, slice, np.ndarray]:
  """Returns (weights [out, used], the input used, which out lie inside).

  `scale` is the output spacing in input voxels, `offset` the first centre.
  """
  centers = offset + scale * np.arange(size_out)
  inside = _inside(centers, size_in)
  if not inside.any():
    return np.zeros((size_out, 1), np.float32), slice(0, 1), inside
  # From plain interpolation at scale 1 to the whole output voxel at scale 2.
  width = float(np.clip(2 * (scale - 1), 0, scale))
  reach = width / 2 + 1
  low = int(np.floor(centers[inside][0] - reach))
  high = int(np.ceil(centers[inside][-1] + reach)) + 1
  away = centers[:, None] - np.arange(low, high)
  if width > 1e-6:
    weights = _tent_area(away + width / 2) - _tent_area(away - width / 2)
    weights /= width
  else:
    weights = np.maximum(1 - np.abs(away), 0)
  weights *= inside[:, None]
  # The edge voxels stand for all that lies beyond them.
  used = slice(max(low, 0), min(high, size_in))
  before, after = used.start - low, high - used.stop
  weights[:, before] += weights[:, :before].sum(1)
  weights[:, -1 - after] += weights[:, len(weights[0]) - after :].sum(1)
  weights = weights[:, before : len(weights[0]) - after]
  return weights.astype(np.float32), used, inside


def _tent_area(x: np.ndarray) -> np.ndarray:
  """Returns the area under the unit triangle left of x."""
  x = np.clip(x, -1, 1)
  return 0.5 + x - np.sign(x) * x**2 / 2


def _linear(array, grid_in, grid_out, fill, threads):
  matrix, offset = index_map(grid_in, grid_out)
  if _is_parallel(matrix, grid_out.shape):
    with _planes_at_once(threads) as pool:
      values, inside = _separable(
        array, grid_out.shape, np.diag(matrix), offset, pool
      )
  else:
    values, inside = _rotated(array, grid_in, grid_out, threads)
  if not all(axis.all() for axis in inside):
    values[~_outer(inside)] = fill
  return _cast(values, array.dtype)


def _outer(inside) -> np.ndarray:
  if len(inside) == 1:
    return inside[0]
  d, h, w = inside
  return d[:, None, None] & h[:, None] & w


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
  if dtype.kind == "f":
    return values.astype(dtype, copy=False)
  if dtype.kind == "b":
    return values > 0.5
  info = np.iinfo(dtype)
  np.rint(values, out=values)
  return np.clip(values, info.min, info.max, out=values).astype(dtype)


@functools.cache
def _blas() -> threadpoolctl.ThreadpoolController:
  return threadpoolctl.ThreadpoolController()


@contextlib.contextmanager
def _planes_at_once(threads: int | None) -> Iterator[Executor]:
  """Gives threads that each do a plane's matrix products alone.

  BLAS would divide every small product among its own threads, which then wait
  for one another: tens of times slower where others use the cores, too.
  """
  count = threads or workers.available_cores()
  with (
    _blas().limit(limits=1, user_api="blas"),
    ThreadPoolExecutor(count) as pool,
  ):
    yield pool


def _separable(array, shape, scale, offset, pool):
  """Resamples along the three axes in turn, as matrix products."""
  axes = [
    _weights(array.shape[axis], shape[axis], scale[axis], offset[axis])
    for axis in range(3)
  ]
  (by_d, use_d, _), (by_h, use_h, _), (by_w, use_w, _) = axes
  source = array[use_d, use_h, use_w]
  inside = [axis[2] for axis in axes]

  def in_plane(plane):
    plane = plane.astype(np.float32)
    return by_h @ plane @ by_w.T

  if by_h.size and shape[1] * shape[2] <= source.shape[1] * source.shape[2]:
    planes = np.empty((len(source), *shape[1:]), np.float32)

    def shrink(number):
      planes[number] = in_plane(source[number])

    list(pool.map(shrink, range(len(source))))
    flat = by_d @ planes.reshape(len(source), -1)
    return flat.reshape(shape), inside
  values = np.empty(shape, np.float32)
  flat = source.reshape(len(source), -1)

  def enlarge(number):
    used = np.flatnonzero(by_d[number])
    plane = by_d[number, used] @ flat[used].astype(np.float32)
    values[number] = in_plane(plane.reshape(source.shape[1:]))

  list(pool.map(enlarge, range(len(by_d))))
  return values, inside


def _rotated(array, grid_in, grid_out, threads):
  """Box-averages along the input's axes, then interpolates linearly."""
  matrix, offset = index_map(grid_in, grid_out)
  # How far one output voxel reaches along each input axis.
  reach = np.abs(matrix).max(axis=1)
  corners = np.stack(
    np.meshgrid(*[(0, n - 1) for n in grid_out.shape], indexing="ij"), -1
  ).reshape(-1, 3)
  ends = corners @ matrix.T + offset
  size = np.array(array.shape)
  low = np.clip(np.floor(ends.min(0) - reach - 1), 0, size - 1).astype(int)
  high = np.clip(np.ceil(ends.max(0) + reach + 2), low + 1, size).astype(int)
  part = array[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
  shrink = np.maximum(np.floor(reach + 1e-6), 1).astype(int)
  averaged = _box_average(part, shrink)
  # Index of an averaged voxel's centre in `array`: low + (shrink - 1) / 2 +
  # shrink * i.
  into = np.diag(1 / shrink) @ matrix
  start = (offset - low - (shrink - 1) / 2) / shrink
  values = _itk_resample(
    averaged, into, start, grid_out.shape, sitk.sitkLinear, threads
  )
  return values, [_inside_rotated(matrix, offset, array.shape, grid_out.shape)]


def _inside_rotated(matrix, offset, size, shape) -> np.ndarray:
  axes = [np.arange(n, dtype=np.float32) for n in shape]
  inside = np.ones(shape, bool)
  for axis in range(3):
    d, h, w = (matrix[axis, j] * axes[j] for j in range(3))
    center = d[:, None, None] + h[:, None] + w + offset[axis]
    inside &= _inside(center, size[axis])
  return inside


def _box_average(array: np.ndarray, shrink: np.ndarray) -> np.ndarray:
  values = array.astype(np.float32)
  for axis, factor in enumerate(shrink):
    if factor == 1:
      continue
    missing = -values.shape[axis] % factor
    pads = [(0, missing if a == axis else 0) for a in range(3)]
    values = np.pad(values, pads, mode="edge")
    shape = list(values.shape)
    shape[axis : axis + 1] = [shape[axis] // factor, factor]
    values = values.reshape(shape).mean(axis + 1)
  return values


def _itk_resample(array, matrix, offset, shape, interpolator, threads):
  """Samples `array` at `matrix @ index + offset`; beyond its edge, edge."""
  if array.dtype == bool:
    array = array.astype(np.uint8)
  # One voxel of edge around, so that ITK never meets its own outside.
  reverse = np.eye(3)[::-1]
  transform = sitk.AffineTransform(3)
  transform.SetMatrix((reverse @ matrix @ reverse).ravel().tolist())
  transform.SetTranslation(offset[::-1].tolist())
  image = sitk.GetImageFromArray(array)
  resampler = sitk.ResampleImageFilter()
  resampler.SetSize([int(n) for n in shape[::-1]])
  resampler.SetTransform(transform)
  resampler.SetInterpolator(interpolator)
  resampler.SetUseNearestNeighborExtrapolator(True)
  if threads is not None:
    resampler.SetNumberOfThreads(threads)
  return sitk.GetArrayFromImage(resampler.Execute(image))


def _nearest(array, grid_in, grid_out, fill, threads):
  matrix, offset = index_map(grid_in, grid_out)
  if not _is_parallel(matrix, grid_out.shape):
    values = _itk_resample(
      array, matrix, offset, grid_out.shape, sitk.sitkNearestNeighbor, threads
    ).astype(array.dtype)
    inside = _inside_rotated(matrix, offset, array.shape, grid_out.shape)
    values[~inside] = fill
    return values
  index, inside = [], []
  for axis in range(3):
    centers = offset[axis] + matrix[axis, axis] * np.arange(
      grid_out.shape[axis]
    )
    inside.append(_inside(centers, array.shape[axis]))
    nearest = np.rint(centers).astype(int)
    index.append(np.clip(nearest, 0, array.shape[axis] - 1))
  values = array[np.ix_(*index)]
  if not all(axis.all() for axis in inside):
    values[~_outer(inside)] = fill
  return values


def _majority(array, grid_in, grid_out, fill, threads):
  """Gives each label the voxels it fills most, as many as its volume asks.

  A plain majority loses thin vessels on a coarse grid; counting voxels keeps
  the mL of every label. Rare labels choose first.
  """
  if array.dtype.kind not in "bui":
    raise ValueError(f"labels must be integers, not {array.dtype}")
  result = np.zeros(grid_out.shape, array.dtype)
  labels, counts = np.unique(array, return_counts=True)
  taken = np.zeros(grid_out.shape, bool)
  for label in labels[np.argsort(counts, kind="stable")]:
    if label == 0:
      continue
    box_in, box_out = _boxes(array == label, grid_in, grid_out)
    if box_out is None:
      continue
    part = np.ascontiguousarray(array[box_in] == label, np.float32)
    share = _linear(
      part, crop(grid_in, box_in), crop(grid_out, box_out), 0.0, threads
    )
    count = round(float(share.sum(dtype=np.float64)))
    share[taken[box_out]] = 0
    chosen = _top(share, count)
    result[box_out][chosen] = label
    taken[box_out][chosen] = True
  if fill != 0:
    matrix, offset = index_map(grid_in, grid_out)
    inside = _inside_rotated(matrix, offset, array.shape, grid_out.shape)
    result[~inside] = fill
  return result


def _top(share: np.ndarray, count: int) -> np.ndarray:
  """Returns the mask of the `count` largest positive entries."""
  flat = share.ravel()
  candidates = np.flatnonzero(flat > 0)
  if count < len(candidates):
    order = np.argsort(-flat[candidates], kind="stable")
    candidates = candidates[order[:count]]
  chosen = np.zeros(flat.shape, bool)
  chosen[candidates] = True
  return chosen.reshape(share.shape)


def _boxes(mask, grid_in, grid_out):
  """Returns slices around the mask in both grids, None if it is outside."""
  margin = 2
  box_in = []
  for axis in range(3):
    used = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
    box_in.append(
      slice(
        max(int(used[0]) - margin, 0),
        min(int(used[-1]) + 1 + margin, mask.shape[axis]),
      )
    )
  corners = np.stack(
    np.meshgrid(*[(b.start - 1, b.stop) for b in box_in], indexing="ij"), -1
  ).reshape(-1, 3)
  ends = grid_out.to_index(grid_in.to_mm(corners))
  low = np.maximum(np.floor(ends.min(0)) - 1, 0).astype(int)
  high = np.minimum(np.ceil(ends.max(0)) + 2, grid_out.shape).astype(int)
  if (low >= high).any():
    return None, None
  box_out = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
  return tuple(box_in), box_out


def crop(grid: Grid, box: tuple[slice, slice, slice]) -> Grid:
  """Returns the part of a grid that `box` cuts out."""
  start = [part.start for part in box]
  shape = [part.stop - part.start for part in box]
  return Grid(shape, grid.spacing, grid.to_mm(start), grid.direction)
