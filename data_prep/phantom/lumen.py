"""Coronaries and plaques onto voxels, by sub-voxel samples near the tree.

A vessel of 2 mm on voxels of 2 mm keeps its contrast integral and its volume:
each voxel near the tree is split into samples, and every sample is classified
by its place in the frame of the nearest point of the vessel.
"""

import dataclasses

import numpy as np
from scipy.spatial import cKDTree

from data_prep.phantom import shapes
from data_prep.phantom.coronaries import SEGMENTS, STEP_MM, Vessel
from data_prep.phantom.plaques import Lesion, diseased
from data_prep.volume import Grid

AORTA, LUMEN, STABLE, UNSTABLE = 1, 2, 3, 4
_STRETCH_MM = 10.0


@dataclasses.dataclass(frozen=True, eq=False)
class Shares:
  """How much of which voxels one vessel fills, by component.

  Attributes:
    voxel: [N] flat indices into the grid.
    way_mm: [N] how far along the vessel.
    lumen: [N] 0 to 1.
    stable: lesion number -> [N] share of calcified plaque, the fibrous tissue
      in it included.
    unstable: lesion number -> [N] share of non-calcified plaque.
  """

  voxel: np.ndarray
  way_mm: np.ndarray
  lumen: np.ndarray
  stable: dict[int, np.ndarray]
  unstable: dict[int, np.ndarray]


def draw_coronaries(
  canvas: shapes.Canvas,
  tree: dict[str, Vessel],
  lesions: list[Lesion],
  contrast_hu: float,
  motion: np.ndarray,
  blur_mm: float,
) -> tuple[np.ndarray, np.ndarray, list[float]]:
  """Paints the tree with its plaques and labels the voxels.

  Args:
    canvas: changed in place.
    tree: segments by name.
    lesions: all plaques.
    contrast_hu: of the aorta.
    motion: [3] mm by which the tree moves during the scan.
    blur_mm: standard deviation of the scanner's point spread.

  Returns:
    (class mask without aorta, segment mask, both uint8 [D, H, W]; volume of
    each lesion in mm3). A structure gets as many voxels as its volume is
    worth, the fullest ones first, and a plaque at least one.
  """
  offsets = _samples(canvas.voxels.grid)
  mask = np.zeros(canvas.voxels.grid.shape, np.uint8)
  segments = np.zeros(canvas.voxels.grid.shape, np.uint8)
  volumes = [0.0] * len(lesions)
  filled = []
  # Parents last, so that a plaque at a fork is not drawn over.
  for name in reversed(list(tree)):
    own = {k: p for k, p in enumerate(lesions) if p.segment == name}
    shares = _draw_vessel(
      canvas, tree[name], own, contrast_hu, motion, blur_mm, offsets
    )
    if shares is not None:
      filled.append((name, shares))
  for name, shares in filled:
    _label(mask, segments, shares, SEGMENTS[name])
  for name, shares in filled:
    _label_plaques(mask, segments, shares, SEGMENTS[name])
    for parts in (shares.stable, shares.unstable):
      for k, share in parts.items():
        volumes[k] += float(share.sum() * np.prod(canvas.voxels.grid.spacing))
  return mask, segments, volumes


def _samples(grid: Grid) -> np.ndarray:
  """Returns sample offsets [K, 3] in LPS mm around a voxel's centre."""
  count = [int(np.clip(np.ceil(s / 0.65), 1, 4)) for s in grid.spacing]
  axes = [
    ((np.arange(n) + 0.5) / n - 0.5) * s
    for n, s in zip(count, grid.spacing, strict=True)
  ]
  index = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
  return index @ grid.direction.T


def _near(
  voxels: shapes.Voxels, vessel: Vessel, margin_mm: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns flat indices [N] and LPS mm [N, 3] of voxels near a vessel."""
  grid = voxels.grid
  coarse = np.unique(np.r_[0 : len(vessel.points) : 8, len(vessel.points) - 1])
  found = []
  for a, b in zip(coarse[:-1], coarse[1:], strict=True):
    part = vessel.points[a : b + 1]
    box = voxels.region(part.min(0) - margin_mm, part.max(0) + margin_mm)
    if box is not None:
      d, h, w = (np.arange(s.start, s.stop) for s in box)
      flat = (d[:, None, None] * grid.shape[1] + h[:, None]) * grid.shape[2] + w
      found.append(flat.ravel())
  if not found:
    return np.zeros(0, int), np.zeros((0, 3))
  voxel = np.unique(np.concatenate(found))
  return voxel, grid.to_mm(np.stack(np.unravel_index(voxel, grid.shape), -1))


def _draw_vessel(
  canvas, vessel, lesions, contrast_hu, motion, blur_mm, offsets
):
  """Paints one vessel; returns its `Shares`, None where it misses the grid."""
  grid = canvas.voxels.grid
  center, lumen_r, outer_r = diseased(vessel, list(lesions.values()))
  sub_mm = float(np.prod(grid.spacing) / len(offsets)) ** (1 / 3)
  edge = float(np.sqrt(sub_mm**2 + 12 * blur_mm**2))
  half = np.linalg.norm(np.array(grid.spacing)) / 2
  margin = float(outer_r.max() + edge / 2 + np.linalg.norm(motion) / 2)
  voxel, middle = _near(canvas.voxels, vessel, margin)
  distance, nearest = cKDTree(vessel.points).query(
    middle, distance_upper_bound=margin + half + 1.0
  )
  keep = np.isfinite(distance)
  voxel, middle, nearest = voxel[keep], middle[keep], nearest[keep]
  if not len(voxel):
    return None
  phase = (np.arange(len(offsets)) * 0.618) % 1 - 0.5
  moved = offsets + phase[:, None] * motion
  point = (middle[:, None] + moved - vessel.points[nearest][:, None]).astype(
    np.float32
  )
  tangent = vessel.tangent[nearest].astype(np.float32)
  along = np.einsum("nkc,nc->nk", point, tangent)
  way = STEP_MM * nearest[:, None].astype(np.float32) + along
  last = STEP_MM * (len(vessel.points) - 1)
  # A round cap at both ends, as a capsule has.
  beyond = np.maximum(-way, 0) + np.maximum(way - last, 0)
  across = point - along[..., None] * tangent[:, None]
  rows = np.clip(way / STEP_MM, 0, len(vessel.points) - 1)
  low = np.minimum(rows.astype(int), len(vessel.points) - 2)
  part = (rows - low).astype(np.float32)
  look = lambda table: table[low] * (1 - part) + table[low + 1] * part  # noqa: E731
  shift = (center - vessel.points).astype(np.float32)
  rho_outer = np.hypot(np.linalg.norm(across, axis=-1), beyond)
  r_lumen = look(lumen_r.astype(np.float32))
  r_healthy = look(vessel.radius.astype(np.float32))
  r_outer = r_healthy
  if lesions:
    moved_axis = (
      shift[low] * (1 - part[..., None]) + shift[low + 1] * (part[..., None])
    )
    rho = np.hypot(np.linalg.norm(across - moved_axis, axis=-1), beyond)
  else:
    rho = rho_outer
  hu_lumen = np.float32(contrast_hu) * (
    np.float32(0.97) - np.float32(0.0008) * way
  )
  turn = _turn(across, vessel, nearest) if lesions else None
  for lesion in lesions.values():
    swollen = lesion.outer(way, turn, r_healthy).astype(np.float32)
    r_outer = np.maximum(r_outer, swollen)
  in_lumen = _soft(rho, r_lumen, edge)
  in_vessel = np.maximum(_soft(rho_outer, r_outer, edge), in_lumen)
  inside = _soft(rho, r_lumen, sub_mm)
  whole = np.maximum(_soft(rho_outer, r_outer, sub_mm), inside)
  hu_wall = hu_lumen
  stable, unstable = {}, {}
  for k, lesion in lesions.items():
    here = lesion.weight(way) > 0
    hu, is_stable = _plaque_hu(lesion, way, turn, rho, r_lumen, r_outer)
    hu_wall = np.where(here, hu, hu_wall)
    rest = np.where(here, whole - inside, 0)
    stable[k] = (rest * is_stable).mean(1)
    unstable[k] = (rest * ~is_stable).mean(1)
  share = in_vessel.mean(1)
  added = (in_lumen * hu_lumen + (in_vessel - in_lumen) * hu_wall).mean(1)
  flat = canvas.hu.reshape(-1)
  flat[voxel] = flat[voxel] * (1 - share) + added
  return Shares(voxel, STEP_MM * nearest, inside.mean(1), stable, unstable)


def _soft(rho, radius, edge):
  """Returns the share inside a tube, its cross-section's integral kept."""
  small = 3 * radius**2 * edge / (radius + edge / 2) ** 3
  large = radius**2 / (radius**2 + edge**2 / 12 + 1e-9)
  gain = np.where(radius < edge / 2, small, large)
  return gain * np.clip(0.5 - (rho - radius) / edge, 0, 1)


def _turn(across, vessel, nearest):
  """Returns the radians around the vessel of offsets [N, K, 3] across it."""
  normal = vessel.normal[nearest]
  binormal = np.cross(vessel.tangent[nearest], normal)
  return np.arctan2(
    np.einsum("nkc,nc->nk", across, binormal.astype(np.float32)),
    np.einsum("nkc,nc->nk", across, normal.astype(np.float32)),
  )


def _plaque_hu(lesion, way, turn, rho, r_lumen, r_outer):
  """Returns HU inside a plaque and whether it is stable there."""
  if lesion.kind == "noncalcified":
    depth = (rho - r_lumen) / np.maximum(r_outer - r_lumen, 0.2)
    along = np.abs(way - lesion.middle_mm) / (lesion.length_mm / 2)
    core = (along < 0.55) & (depth > 0.3) & (depth < 1.1)
    hu = np.where(core, lesion.core_hu, lesion.hu)
    return hu.astype(np.float32), np.zeros(way.shape, bool)
  chalk = lesion.calcified(way, turn)
  soft = np.clip(0.5 + 2.5 * chalk, 0, 1).astype(np.float32)
  grain = 1 + 0.15 * lesion.lumps(1.7 * way, 2 * turn).astype(np.float32)
  hu = lesion.core_hu + soft * (lesion.hu * grain - lesion.core_hu)
  # The little fibrous tissue of a calcified plaque makes it no less stable.
  return hu, (chalk > 0) | (lesion.kind == "calcified")


def _fullest(share: np.ndarray, free: np.ndarray, count: int) -> np.ndarray:
  """Returns the `count` free voxels with the greatest share, if above 0."""
  order = np.argsort(-np.where(free, share, -1), kind="stable")[:count]
  return order[(share[order] > 0) & free[order]]


def _label(mask, segments, shares: Shares, number: int) -> None:
  """Labels a vessel; every stretch of it keeps its own volume."""
  mask, segments = mask.reshape(-1), segments.reshape(-1)
  plaque = sum((*shares.stable.values(), *shares.unstable.values()))
  whole = shares.lumen + plaque
  stretch = (shares.way_mm / _STRETCH_MM).astype(int)
  due = 0.0
  for k in range(stretch.max() + 1):
    here = np.flatnonzero(stretch == k)
    free = mask[shares.voxel[here]] == 0
    due += float(whole[here].sum())
    count = max(int(round(due)), 0)
    due -= count
    chosen = shares.voxel[here][_fullest(whole[here], free, count)]
    mask[chosen], segments[chosen] = LUMEN, number


def _label_plaques(mask, segments, shares: Shares, number: int) -> None:
  mask, segments = mask.reshape(-1), segments.reshape(-1)
  for label, parts in ((STABLE, shares.stable), (UNSTABLE, shares.unstable)):
    for share in parts.values():
      other = np.isin(mask[shares.voxel], (STABLE, UNSTABLE))
      count = max(int(round(float(share.sum()))), 1)
      chosen = shares.voxel[_fullest(share, ~other, count)]
      mask[chosen], segments[chosen] = label, number
