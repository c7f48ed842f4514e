"""Implicit shapes and how they are painted on a lattice of voxels.

Every shape is a function of x, y, z in mm that returns the signed distance to
its surface, negative inside. The coordinates may be any arrays that broadcast
together, so that on a lattice along the patient's axes they stay
one-dimensional as long as possible.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
from scipy.interpolate import make_interp_spline

from data_prep.phantom.voxels import Box, Coordinates, Voxels
from data_prep.tissues import Tissue
from data_prep.volume import Grid


@dataclasses.dataclass(frozen=True, eq=False)
class Canvas:
  """HU and tissues on a grid, and how wide an edge is.

  Attributes:
    hu: [D, H, W] float32, changed in place by the painters.
    tissues: [D, H, W] uint8, values of `Tissue`, changed in place as well: a
      voxel is of the shape painted last in which its centre lies.
    voxels: where they lie.
    edge_mm: over which an edge goes from 0 to 1; about a voxel or the
      scanner's blur.
  """

  hu: np.ndarray
  tissues: np.ndarray
  voxels: Voxels
  edge_mm: float


def blank(grid: Grid, blur_mm: float, hu: float = -1000.0) -> Canvas:
  """Returns a canvas of one HU.

  Args:
    grid: the voxels.
    blur_mm: standard deviation of the scanner's point spread.
    hu: what to fill it with.
  """
  voxel_mm = float(np.prod(grid.spacing)) ** (1 / 3)
  # A ramp of width w blurs like a Gaussian of w / sqrt(12); so does a voxel.
  edge_mm = float(np.sqrt(voxel_mm**2 + 12 * blur_mm**2))
  return Canvas(
    np.full(grid.shape, hu, np.float32),
    np.zeros(grid.shape, np.uint8),
    Voxels(grid),
    edge_mm,
  )


def cover(distance: np.ndarray, edge_mm: float) -> np.ndarray:
  """Returns the share of a voxel inside, 0 to 1, by its signed distance."""
  share = distance * np.float32(-1 / edge_mm)
  share += np.float32(0.5)
  return np.clip(share, 0, 1, out=share)


def paint(
  canvas: Canvas,
  box: Box,
  distance: np.ndarray,
  hu: float | np.ndarray,
  tissue: Tissue | None,
  opacity: float = 1.0,
) -> None:
  """Lays a shape over the canvas, with soft edges.

  Args:
    canvas: changed in place.
    box: slices along D, H, W.
    distance: signed distance in mm, broadcastable to the box.
    hu: of the shape; a number or an array.
    tissue: what it is of; None leaves the tissues as they are.
    opacity: share of the shape's HU where it covers a voxel whole.
  """
  if tissue is not None:
    np.copyto(canvas.tissues[box], np.uint8(tissue), where=distance < 0)
  share = cover(distance, canvas.edge_mm)
  if opacity != 1:
    share *= np.float32(opacity)
  below = canvas.hu[box]
  below += share * (hu - below)


def ellipsoid(
  at: Coordinates, center: Iterable[float], radii: Iterable[float]
) -> np.ndarray:
  """Distance to an ellipsoid along the axes, by the gradient of its norm."""
  first = second = np.float32(0)
  for x, c, r in zip(at, center, radii, strict=True):
    u = (x - np.float32(c)) * np.float32(1 / r)
    first = first + u * u
    u = u * np.float32(1 / r)
    second = second + u * u
  norm = np.sqrt(first)
  return norm * (norm - 1) / np.sqrt(second + np.float32(1e-12))


def capsule(
  at: Coordinates, a: np.ndarray, b: np.ndarray, ra: float, rb: float
) -> np.ndarray:
  """Distance to a segment from `a` to `b` whose radius goes from ra to rb."""
  axis = np.asarray(b, float) - a
  length2 = max(float(axis @ axis), 1e-6)
  offset = [x - np.float32(c) for x, c in zip(at, a, strict=True)]
  t = sum(
    o * np.float32(c / length2) for o, c in zip(offset, axis, strict=True)
  )
  t = np.clip(t, 0, 1)
  square = np.float32(0)
  for o, c in zip(offset, axis, strict=True):
    d = o - t * np.float32(c)
    square = square + d * d
  return np.sqrt(square) - (np.float32(ra) + t * np.float32(rb - ra))


def union(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
  """Union of two shapes, its groove filled over `blend_mm`."""
  if blend_mm <= 0:
    return np.minimum(a, b)
  h = np.clip(0.5 + (b - a) * np.float32(0.5 / blend_mm), 0, 1)
  return b + h * (a - b) - np.float32(blend_mm) * h * (1 - h)


def meet(a: np.ndarray, b: np.ndarray, blend_mm: float = 0) -> np.ndarray:
  """Intersection of two shapes, its edge rounded over `blend_mm`."""
  return -union(-a, -b, blend_mm)


def draw(
  canvas: Canvas,
  low: np.ndarray,
  high: np.ndarray,
  shape: Callable[[Coordinates], np.ndarray],
  hu: float,
  tissue: Tissue | None,
  *,
  opacity: float = 1.0,
  step_mm: float = 3.0,
) -> None:
  """Paints a shape that lies between `low` and `high` (x, y, z in mm)."""
  margin = canvas.edge_mm
  points = canvas.voxels.lattice(
    np.asarray(low) - margin, np.asarray(high) + margin, step_mm
  )
  if points is not None:
    distance = points.to_voxels(shape(points.at))
    paint(canvas, points.box, distance, hu, tissue, opacity)


def blob(
  canvas: Canvas,
  center: np.ndarray,
  radii: np.ndarray,
  hu: float,
  tissue: Tissue | None,
) -> None:
  """Paints a small ellipsoid; its integral is right even below a voxel."""
  radii = np.broadcast_to(np.asarray(radii, float), 3)
  r, w = float(np.prod(radii)) ** (1 / 3), canvas.edge_mm
  if r < w / 2:
    opacity = 4 * r**3 * w / (r + w / 2) ** 4
  else:
    opacity = r**2 / (r**2 + w**2 / 4)
  draw(
    canvas,
    center - radii,
    center + radii,
    lambda at: ellipsoid(at, center, radii),
    hu,
    tissue,
    opacity=opacity,
    step_mm=0,
  )


def tube_distance(
  voxels: Voxels,
  tubes: Iterable[tuple[np.ndarray, np.ndarray]],
  margin_mm: float,
  out: np.ndarray | None = None,
) -> np.ndarray:
  """Distance to a set of polylines with a radius at every point.

  Args:
    voxels: where.
    tubes: (points [N, 3] in LPS mm, radii [N] in mm) of each.
    margin_mm: how far from the surfaces it is exact.
    out: an earlier result to add to.

  Returns:
    [D, H, W] float32; 1e3 where no tube is near.
  """
  if out is None:
    out = np.full(voxels.shape, 1e3, np.float32)
  for points, radii in tubes:
    for a, b, ra, rb in zip(
      points[:-1], points[1:], radii[:-1], radii[1:], strict=True
    ):
      reach = max(ra, rb) + margin_mm
      found = voxels.box(np.minimum(a, b) - reach, np.maximum(a, b) + reach)
      if found is not None:
        part = out[found[0]]
        np.minimum(part, capsule(found[1], a, b, ra, rb), out=part)
  return out


def paint_tube(
  canvas: Canvas,
  points: np.ndarray,
  radii: np.ndarray,
  hu: float,
  tissue: Tissue | None,
) -> None:
  """Paints one polyline as a tube; `radii` has one radius per point."""
  reach = float(np.max(radii)) + canvas.edge_mm
  found = canvas.voxels.box(points.min(0) - reach, points.max(0) + reach)
  if found is None:
    return
  box, _ = found
  inner = canvas.voxels.part(box)
  distance = tube_distance(inner, [(points, radii)], canvas.edge_mm)
  paint(canvas, box, distance, hu, tissue)


def thin_tubes(
  canvas: Canvas,
  ends: np.ndarray,
  radii: np.ndarray,
  hu: float,
  below: float,
  tissue: Tissue | None,
) -> None:
  """Paints straight tubes brighter than what is around them, by maximum.

  Their cross-section keeps its integral where they are thinner than a voxel.

  Args:
    canvas: changed in place.
    ends: [N, 2, 3] LPS mm.
    radii: [N, 2] mm, at both ends.
    hu: of the tubes.
    below: HU of what is around them.
    tissue: what they are of.
  """
  w = canvas.edge_mm
  r = radii.mean(1)
  small = 3 * r**2 * w / (r + w / 2) ** 3
  gain = np.where(r < w / 2, small, r**2 / (r**2 + w**2 / 12))
  reach = radii.max(1) + w / 2
  grid = canvas.voxels.grid
  index = grid.to_index(ends)
  pad = reach[:, None] / np.array(grid.spacing)
  seen = (index.max(1) + pad > 0) & (index.min(1) - pad < canvas.hu.shape)
  for k in np.flatnonzero(seen.all(1)):
    (a, b), (ra, rb) = ends[k], radii[k]
    found = canvas.voxels.box(
      np.minimum(a, b) - reach[k], np.maximum(a, b) + reach[k]
    )
    if found is not None:
      distance = capsule(found[1], a, b, ra, rb)
      if tissue is not None:
        where = canvas.tissues[found[0]]
        np.copyto(where, np.uint8(tissue), where=distance < 0)
      share = cover(distance, w)
      touched = share > 0
      share *= np.float32(gain[k] * (hu - below))
      share += np.float32(below)
      part = canvas.hu[found[0]]
      np.maximum(part, share, out=part, where=touched)


def spline(points: np.ndarray, step_mm: float) -> np.ndarray:
  """Returns points every `step_mm` along a smooth curve through `points`.

  Args:
    points: [N, K] with x, y, z first; further columns follow along.
    step_mm: spacing of the result.

  Returns:
    [M, K].
  """
  points = np.asarray(points, float)
  knots = arc_length(points)
  curve = make_interp_spline(knots, points[:, :3], k=min(3, len(points) - 1))
  dense = np.linspace(0, knots[-1], max(int(knots[-1] / 0.5), 8))
  arc = arc_length(curve(dense))
  count = max(int(round(arc[-1] / step_mm)), 1) + 1
  t = np.interp(np.linspace(0, arc[-1], count), arc, dense)
  rest = [np.interp(t, knots, column) for column in points[:, 3:].T]
  return np.column_stack([curve(t), *rest])


def arc_length(points: np.ndarray) -> np.ndarray:
  """Returns the way in mm from the first of points [N, 3+] to each."""
  steps = np.linalg.norm(np.diff(points[:, :3], axis=0), axis=1)
  return np.concatenate([[0.0], np.cumsum(steps)])
