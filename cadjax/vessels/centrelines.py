"""Smooth lines in mm from the nodes of a skeleton."""

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree


def arc_length(line: np.ndarray) -> np.ndarray:
  """Returns the way walked [N] along points [N, 3]."""
  steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
  return np.concatenate([[0.0], np.cumsum(steps)])


def resample(line: np.ndarray, step_mm: float) -> np.ndarray:
  """Returns points about every `step_mm` along a line; its ends stay."""
  arc = arc_length(line)
  count = max(int(round(arc[-1] / step_mm)), 1) + 1
  at = np.linspace(0, arc[-1], count)
  return np.column_stack([np.interp(at, arc, axis) for axis in line.T])


def smooth(line: np.ndarray, sigma_mm: float, step_mm: float) -> np.ndarray:
  """Smooths points [N, 3] by a Gaussian along the line; its ends stay."""
  even = resample(line, step_mm / 2)
  sigma = sigma_mm / (arc_length(even)[-1] / max(len(even) - 1, 1) or 1)
  reach = min(int(4 * sigma) + 1, len(even) - 1)
  # Reflected through its ends, so that they are not drawn inwards.
  head = 2 * even[0] - even[reach:0:-1]
  tail = 2 * even[-1] - even[-2 : -reach - 2 : -1]
  padded = np.concatenate([head, even, tail])
  padded = ndimage.gaussian_filter1d(padded, sigma, axis=0, mode="nearest")
  return resample(padded[reach : reach + len(even)], step_mm)


def centred(
  lines: list[np.ndarray],
  own: list[tuple[int, int]],
  parents: list[int],
  mask: np.ndarray,
  affine: np.ndarray,
  sigma_mm: float,
  step_mm: float,
) -> list[np.ndarray]:
  """Moves lines to the middle of the mask around them.

  A skeleton is thinned to whole voxels and leans to one side of a vessel, and
  smoothing cuts its curves. Each voxel of the mask is assigned to the nearest
  point of the nearest line; a point moves by the mean of its voxels' offsets
  across the line, averaged along it.

  Args:
    lines: courses [M, 3] in mm from the root on, each after its parent's.
    own: which voxels count for a line: those nearest to its points from the
      first index on; the second is where it leaves its parent.
    parents: number of the parent's line; -1 for none.
    mask: [D, H, W] bool.
    affine: [4, 4], (d, h, w, 1) to LPS mm.
    sigma_mm: of the Gaussian that averages along a line.
    step_mm: between points.

  Returns:
    The moved lines; up to where it leaves its parent, a line moves as the
    parent does.
  """
  voxels = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
  counts = [len(line) for line in lines]
  firsts = np.concatenate([[0], np.cumsum(counts)])
  points, mine = np.concatenate(lines), np.zeros(firsts[-1], bool)
  for k, (_, free) in enumerate(own):
    mine[firsts[k] + free : firsts[k + 1]] = True
  place = np.flatnonzero(mine)
  _, found = cKDTree(points[place]).query(voxels)
  found = place[found]
  way = np.concatenate([np.gradient(line, axis=0) for line in lines])
  way /= np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-9)
  offset = voxels - points[found]
  offset -= (offset * way[found]).sum(1, keepdims=True) * way[found]
  count = np.bincount(found, minlength=len(points)).astype(float)
  total = np.stack(
    [np.bincount(found, offset[:, k], len(points)) for k in range(3)], 1
  )
  moves: list[np.ndarray] = []
  for k, line in enumerate(lines):
    part = slice(firsts[k], firsts[k + 1])
    blur = lambda x: ndimage.gaussian_filter1d(  # noqa: E731
      x, sigma_mm / step_mm, axis=0, mode="nearest"
    )
    weight = blur(count[part])[:, None]
    move = blur(total[part]) / np.maximum(weight, 1e-6)
    start, free = own[k]
    if parents[k] >= 0:
      parent = parents[k]
      _, same = cKDTree(lines[parent]).query(line[:free])
      move[:free] = moves[parent][same]
    moves.append(move)
  return [line + move for line, move in zip(lines, moves, strict=True)]


def extend(
  line: np.ndarray, mask: np.ndarray, affine: np.ndarray, limit_mm: float
) -> np.ndarray:
  """Prolongs a line straight on to where it leaves the mask.

  Thinning takes up to the radius from an end.

  Args:
    line: [N, 3] mm, evenly spaced; its last point is prolonged.
    mask: [D, H, W] bool.
    affine: [4, 4], (d, h, w, 1) to LPS mm.
    limit_mm: it goes no farther than this.
  """
  back = min(len(line) - 1, 8)
  way = line[-1] - line[-1 - back]
  length = np.linalg.norm(way)
  if not length:
    return line
  steps = np.arange(0.1, limit_mm, 0.1)
  points = line[-1] + steps[:, None] * way / length
  index = (points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
  index = np.rint(index).astype(int)
  inside = ((index >= 0) & (index < mask.shape)).all(1)
  inside[inside] = mask[tuple(index[inside].T)]
  stop = len(steps) if inside.all() else int(inside.argmin())
  return line if stop == 0 else np.vstack([line, points[stop - 1]])
