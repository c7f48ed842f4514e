"""Smooth lines in mm from the nodes of a skeleton."""

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from cadjax.skeleton import Skeleton


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
  graph: Skeleton, nodes: np.ndarray, mask: np.ndarray, affine: np.ndarray
) -> np.ndarray:
  """Moves nodes to the middle of the mask around them.

  A skeleton is thinned to whole voxels, so it is up to half a voxel beside
  the middle. Each node goes to the mean of the mask's voxels that are nearest
  to it, of those not much farther than the background.

  Args:
    graph: the skeleton.
    nodes: [K] those to move; voxels count for these only.
    mask: [D, H, W] bool.
    affine: [4, 4], (d, h, w, 1) to LPS mm.

  Returns:
    [N, 3] mm of all nodes; those not in `nodes` as they were.
  """
  mm = graph.mm.copy()
  voxels = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
  away, owner = cKDTree(graph.mm[nodes]).query(voxels)
  spacing = np.linalg.norm(affine[:3, :3], axis=0)
  near = away <= 1.5 * graph.inner_mm[nodes][owner] + spacing.max()
  count = np.bincount(owner[near], minlength=len(nodes))
  for axis in range(3):
    total = np.bincount(
      owner[near], weights=voxels[near, axis], minlength=len(nodes)
    )
    has = count > 0
    mm[nodes[has], axis] = total[has] / count[has]
  return mm


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
