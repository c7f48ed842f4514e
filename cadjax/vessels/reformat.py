"""Curved planar reformations: a winding vessel as a flat picture.

Lengths are true: rows of a straightened view are mm along the centreline,
columns mm across it. Kanitsar et al. 2002 ("CPR: curved planar reformation")
name the views. Volumes are [D, H, W] with an affine (d, h, w, 1) to LPS mm;
the image in HU and a heat map on another grid are sampled at the same places.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from cadjax.vessels import centrelines


@dataclasses.dataclass(frozen=True, eq=False)
class Frames:
  """A centreline with directions across it.

  Attributes:
    points_mm: [N, 3] LPS, evenly spaced.
    way_mm: [N] along it from its first point.
    tangent: [N, 3] unit vectors along it.
    normal: [N, 3] unit vectors across it, with the least turn from point to
      point; at the first point as near to `up` as may be.
    binormal: [N, 3] tangent x normal.
  """

  points_mm: np.ndarray
  way_mm: np.ndarray
  tangent: np.ndarray
  normal: np.ndarray
  binormal: np.ndarray

  def across(self, angle_deg: float) -> np.ndarray:
    """Returns [N, 3] unit vectors across, turned from the normal."""
    angle = np.radians(angle_deg)
    return np.cos(angle) * self.normal + np.sin(angle) * self.binormal


@dataclasses.dataclass(frozen=True, eq=False)
class Reformation:
  """A flat picture of places in the patient.

  Attributes:
    points_mm: [rows, columns, 3] LPS, where each pixel was sampled.
    rows_mm: [rows]; their meaning is documented by the function that made it.
    columns_mm: [columns].
  """

  points_mm: np.ndarray
  rows_mm: np.ndarray
  columns_mm: np.ndarray


def make_frames(
  line_mm: np.ndarray,
  step_mm: float = 0.5,
  up: tuple[float, float, float] = (0.0, -1.0, 0.0),
) -> Frames:
  """Returns rotation-minimising frames along a line.

  Args:
    line_mm: [M, 3] LPS, M at least 2, such as a branch's `course_mm`.
    step_mm: between the points of the result.
    up: where the first normal should point; to the front by default.

  Raises:
    ValueError: the line has no length.
  """
  if len(line_mm) < 2 or not centrelines.arc_length(line_mm)[-1]:
    raise ValueError("a centreline needs two different points")
  points = centrelines.resample(np.asarray(line_mm, float), step_mm)
  tangent = _unit(np.gradient(points, axis=0))
  first = np.asarray(up, float)
  first = first - (first @ tangent[0]) * tangent[0]
  if np.linalg.norm(first) < 1e-3:
    first = np.eye(3)[np.abs(tangent[0]).argmin()]
    first = first - (first @ tangent[0]) * tangent[0]
  normals = [first]
  for way in tangent:
    # What of the last normal is along the vessel here is all that goes.
    normals.append(_unit(normals[-1] - (normals[-1] @ way) * way))
  normal = np.stack(normals[1:])
  return Frames(
    points_mm=points,
    way_mm=centrelines.arc_length(points),
    tangent=tangent,
    normal=normal,
    binormal=np.cross(tangent, normal),
  )


def straightened(
  frames: Frames,
  angle_deg: float = 0.0,
  half_width_mm: float = 10.0,
  step_mm: float = 0.25,
) -> Reformation:
  """Lays out the straightened view: the vessel as a straight tube.

  Rows are mm along the centreline, columns mm across it in the direction
  `frames.across(angle_deg)`, 0 on the centreline.
  """
  columns = _centred(half_width_mm, step_mm)
  across = frames.across(angle_deg)
  points = frames.points_mm[:, None] + columns[:, None] * across[:, None]
  return Reformation(points, frames.way_mm, columns)


def cross_section(
  frames: Frames,
  at_mm: float,
  half_width_mm: float = 8.0,
  step_mm: float = 0.25,
) -> Reformation:
  """Lays out the plane across the vessel, `at_mm` along the centreline.

  Rows are mm along the binormal, columns mm along the normal, both 0 on the
  centreline. Beyond the ends the plane is that of the nearest end.
  """
  k = int(np.abs(frames.way_mm - at_mm).argmin())
  axis = _centred(half_width_mm, step_mm)
  points = (
    frames.points_mm[k]
    + axis[:, None, None] * frames.binormal[k]
    + axis[:, None] * frames.normal[k]
  )
  return Reformation(points, axis, axis)


def stretched(
  frames: Frames,
  margin_mm: float = 10.0,
  step_mm: float = 0.25,
  along: np.ndarray | None = None,
) -> Reformation:
  """Lays out the stretched view: the vessel keeps its bends in one direction.

  The surface that lines parallel to `along` draw through the centreline,
  unrolled: rows are mm along the unrolled surface, columns mm along `along`
  from the middle of the vessel's extent. Distances within the surface are
  true.

  Args:
    frames: the centreline.
    margin_mm: shown beyond the vessel on both sides.
    step_mm: between columns, and about between rows.
    along: [3]; by default the direction in which the vessel extends least,
      so that it is seen in its full length.
  """
  points = frames.points_mm
  if along is None:
    _, _, axes = np.linalg.svd(points - points.mean(0), full_matrices=False)
    along = axes[-1]
  along = _unit(np.asarray(along, float))
  height = points @ along
  foot = points - height[:, None] * along
  unrolled = centrelines.arc_length(foot)
  # Where the vessel runs along the lines, rows would lie on one another.
  keep = np.concatenate([[True], np.diff(unrolled) > 1e-6])
  count = max(int(round(unrolled[-1] / step_mm)), 1) + 1
  rows = np.linspace(0, unrolled[-1], count)
  foot = np.column_stack(
    [np.interp(rows, unrolled[keep], axis) for axis in foot[keep].T]
  )
  middle = (height.min() + height.max()) / 2
  half = (height.max() - height.min()) / 2 + margin_mm
  columns = _centred(half, step_mm)
  at = foot[:, None] + (middle + columns)[:, None] * along
  return Reformation(at, rows, columns)


def sample(
  array: np.ndarray,
  affine: np.ndarray,
  where: Reformation,
  outside: float = np.nan,
) -> np.ndarray:
  """Samples a volume on a reformation, linearly.

  Args:
    array: [D, H, W], HU or a heat map.
    affine: [4, 4], (d, h, w, 1) to LPS mm.
    where: the places.
    outside: value beyond the volume.

  Returns:
    [rows, columns] float32.
  """
  inverse = np.linalg.inv(affine[:3, :3])
  index = (where.points_mm - affine[:3, 3]) @ inverse.T
  # Cut out what is needed: the spline code copies its input.
  low = np.floor(index.reshape(-1, 3).min(0)).astype(int)
  high = np.ceil(index.reshape(-1, 3).max(0)).astype(int) + 1
  low = np.clip(low, 0, np.array(array.shape) - 1)
  high = np.clip(high, low + 1, array.shape)
  part = array[tuple(map(slice, low, high))]
  values = ndimage.map_coordinates(
    part.astype(np.float32),
    np.moveaxis(index - low, -1, 0),
    order=1,
    mode="nearest",
  )
  last = np.array(array.shape) - 1
  beyond = ((index < -0.5) | (index > last + 0.5)).any(-1)
  return np.where(beyond, np.float32(outside), values)


def _unit(vectors: np.ndarray) -> np.ndarray:
  length = np.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors / np.maximum(length, 1e-12)


def _centred(half_mm: float, step_mm: float) -> np.ndarray:
  count = int(np.ceil(half_mm / step_mm - 1e-9))
  return np.arange(-count, count + 1) * step_mm
