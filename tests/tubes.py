"""Tubes of known geometry on voxels, for the tests of vessels."""

import numpy as np
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

# Array axes D, H, W run to S, P, L.
UPRIGHT = np.eye(3)[:, ::-1]
GRIDS = {
  "cubic": ((0.6, 0.6, 0.6), (0, 0, 0)),
  "anisotropic": ((0.8, 0.5, 0.6), (0, 0, 0)),
  "oblique": ((0.5, 0.6, 0.7), (12, -20, 15)),
}


def grid(kind, low, high):
  """Returns (shape, affine) of a lattice that covers a box of LPS mm."""
  spacing, turn = GRIDS[kind]
  turned = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
  matrix = turned @ UPRIGHT * np.array(spacing)
  middle = (np.asarray(low, float) + high) / 2
  corners = np.stack(
    np.meshgrid(*zip(low, high, strict=True), indexing="ij"), -1
  )
  index = (corners.reshape(-1, 3) - middle) @ np.linalg.inv(matrix).T
  shape = np.ceil(np.ptp(index, axis=0)).astype(int) + 1
  affine = np.eye(4)
  affine[:3, :3] = matrix
  affine[:3, 3] = middle - matrix @ ((shape - 1) / 2)
  return tuple(shape), affine


def dense(line, step=0.05):
  """Returns points [N, 3] every `step` mm of a polyline."""
  line = np.asarray(line, float)
  arc = length(line, cumulative=True)
  at = np.linspace(0, arc[-1], max(int(arc[-1] / step), 1) + 1)
  return np.column_stack([np.interp(at, arc, axis) for axis in line.T])


def length(line, cumulative=False):
  steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
  return np.concatenate([[0], np.cumsum(steps)]) if cumulative else steps.sum()


def centres(shape, affine):
  """Returns LPS mm [D, H, W, 3] of the voxels."""
  index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
  return index @ affine[:3, :3].T + affine[:3, 3]


def tube(line, radius, shape, affine, widest=3.0):
  """Returns the voxels [D, H, W] within `radius` of a polyline.

  `radius` is a number or a function of the share of the way, 0 to 1; at most
  `widest`.
  """
  points = dense(line)
  away, nearest = cKDTree(points).query(
    centres(shape, affine), distance_upper_bound=widest
  )
  if callable(radius):
    radius = radius(np.minimum(nearest / (len(points) - 1), 1))
  return away <= radius


def ball(center, radius, shape, affine):
  away = np.linalg.norm(centres(shape, affine) - np.asarray(center), axis=-1)
  return away <= radius
