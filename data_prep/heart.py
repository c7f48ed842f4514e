"""Where the heart is, from the image alone."""

import weakref
from typing import Any

import numpy as np
from scipy import ndimage

from data_prep.errors import UserError
from data_prep.resampling import resample
from data_prep.volume import AIR_HU, Grid, Volume

_WORK_MM = 3.0  # averages noise away; chambers are ten voxels wide
_LUNG_HU = (-960, -450)
_LUNG_ML = 100
_BLOOD_HU = (180, 1200)  # above lies metal
_CORE_MM = 9.0  # half the width under which blood is vessel, rib or stent
_CHAMBERS_ML = 40
_HEART_RADIUS_MM = 65.0

# Grid, features and picture of a scan each ask where its heart is.
_found: weakref.WeakKeyDictionary[Volume, Any] = weakref.WeakKeyDictionary()


def find_heart(volume: Volume) -> tuple[np.ndarray, dict[str, Any]]:
  """Finds the middle of the heart; remembered as long as the volume lives.

  On a 3 mm average of the scan: the lungs give the thorax; within it, the
  contrast-filled voxels that survive an erosion of 9 mm are chambers and
  aorta, while ribs, stents and small vessels are gone. The densest place of
  these is the heart, since its chambers are larger together than any vessel,
  and the mean within 65 mm of it, moved until it rests, is the middle.
  Without contrast the soft tissue between the lungs stands in, and without
  lungs the whole body, each with a note. Since a right heart flushed with
  saline is not bright, the solid tissue between the lungs at the heart's level
  then sets the position from right to left and from front to back.

  Args:
    volume: int16 HU, a chest or only a heart, in any spacing.

  Returns:
    (center_mm, info): center_mm [3] is LPS mm (x, y, z); info holds "method"
    ("contrast", "between the lungs" or "body"), "blood_hu" (median of the
    chambers and aorta; NaN without contrast), "extent_mm" (D, H, W of what
    was found) and "notes" for the user.

  Raises:
    UserError: there is no body in the scan.
  """
  if volume not in _found:
    _found[volume] = _find(volume)
  return _found[volume]


def _find(volume: Volume) -> tuple[np.ndarray, dict[str, Any]]:
  hu, grid = _shrink(volume)
  body = hu > -300
  if not body.any():
    raise UserError(f"{volume.path}: there is no body in the scan, only air")
  lungs = _lungs(hu, grid)
  thorax = _hull(lungs) if lungs.any() else np.ones(hu.shape, bool)
  found, blood_hu = _chambers(hu, thorax, grid)
  if found.any():
    method, notes = "contrast", ()
  else:
    found = _between(lungs) & body
    method = "between the lungs"
    notes = ("no contrast-filled heart found; took the middle of the chest",)
    if not found.any():
      found, method = body, "body"
      notes = ("neither heart nor lungs found; took the middle of the body",)
  center = _rest(found, grid)
  if method == "contrast":
    center = _with_muscle(center, (hu > 0) & _between(lungs), grid)
  extent_mm = [
    float(np.ptp(axis) + 1) * step
    for axis, step in zip(np.nonzero(found), grid.spacing, strict=True)
  ]
  return grid.to_mm(center), {
    "method": method,
    "blood_hu": blood_hu,
    "extent_mm": tuple(extent_mm),
    "notes": notes,
  }


def _shrink(volume: Volume) -> tuple[np.ndarray, Grid]:
  extent = np.array(volume.grid.extent_mm)
  shape = np.maximum(np.rint(extent / _WORK_MM), 1).astype(int)
  spacing = extent / shape
  first = (shape - 1) / 2 * spacing
  origin = volume.grid.center_mm - volume.direction @ first
  grid = Grid(tuple(shape), spacing, origin, volume.direction)
  return resample(volume.hu, volume.grid, grid, fill=AIR_HU), grid


def _lungs(hu: np.ndarray, grid: Grid) -> np.ndarray:
  """Returns the large regions of lung; air outside the body is darker."""
  lung = (hu > _LUNG_HU[0]) & (hu < _LUNG_HU[1])
  lung = ndimage.binary_opening(lung)
  labels, count = ndimage.label(lung)
  sizes = np.bincount(labels.ravel(), minlength=count + 1)
  sizes[0] = 0
  return (sizes * np.prod(grid.spacing) / 1000 > _LUNG_ML)[labels]


def _hull(lungs: np.ndarray) -> np.ndarray:
  """Returns, slice by slice, the rectangle that the lungs span."""
  rows = _span(lungs.any(2))
  columns = _span(lungs.any(1))
  return rows[:, :, None] & columns[:, None, :]


def _span(flags: np.ndarray) -> np.ndarray:
  """Fills along the last axis from the first True to the last."""
  after = np.maximum.accumulate(flags, -1)
  before = np.maximum.accumulate(flags[..., ::-1], -1)[..., ::-1]
  return after & before


def _between(lungs: np.ndarray) -> np.ndarray:
  """Returns what has lung to its right and to its left, lung excluded."""
  return _span(lungs) & ~lungs


def _chambers(hu, thorax, grid) -> tuple[np.ndarray, float]:
  """Returns the contrast-filled chambers and aorta, and their median HU."""
  blood = (hu > _BLOOD_HU[0]) & (hu < _BLOOD_HU[1]) & thorax
  nothing = np.zeros(hu.shape, bool), float("nan")
  core = _open(blood, grid)
  if not core.any():
    return nothing
  # Spongy bone and liver reach 180 HU, but not half-way to the blood.
  level = np.percentile(hu[core], 75)
  blood &= hu > max(_BLOOD_HU[0], 0.6 * level)
  core = _open(blood, grid)
  if core.sum() * np.prod(grid.spacing) / 1000 < _CHAMBERS_ML:
    return nothing
  return core, float(np.median(hu[core]))


def _open(mask: np.ndarray, grid: Grid) -> np.ndarray:
  """Opens with a ball; what the scan's edge cuts counts as going on."""
  core = np.zeros(mask.shape, bool)
  # Distances are slow: keep to the box of what is at all thick.
  thick = ndimage.binary_erosion(mask, iterations=2, border_value=1)
  if not thick.any():
    return core
  box = tuple(
    slice(max(part.start - 4, 0), part.stop + 4)
    for part in ndimage.find_objects(thick.astype(np.uint8))[0]
  )
  part = mask[box]
  inner = _distance_mm(part, grid) > _CORE_MM
  if inner.any():
    core[box] = (_distance_mm(~inner, grid) <= _CORE_MM) & part
  return core


def _distance_mm(mask: np.ndarray, grid: Grid) -> np.ndarray:
  """Returns the distance to the nearest voxel outside the mask."""
  if mask.all():
    return np.full(mask.shape, np.inf, np.float32)
  return ndimage.distance_transform_edt(mask, sampling=grid.spacing)


def _rest(found: np.ndarray, grid: Grid) -> np.ndarray:
  """Returns the voxel index where the mean shift over `found` rests."""
  spacing = np.array(grid.spacing)
  # A wide blur counts mass nearby; beyond the scan there is none.
  mass = ndimage.gaussian_filter(
    found.astype(np.float32), 25 / spacing, mode="constant"
  )
  points_mm = np.argwhere(found) * spacing
  center_mm = np.array(np.unravel_index(mass.argmax(), mass.shape)) * spacing
  for _ in range(30):
    near = ((points_mm - center_mm) ** 2).sum(1) <= _HEART_RADIUS_MM**2
    moved_mm = points_mm[near].mean(0) if near.any() else points_mm.mean(0)
    if np.abs(moved_mm - center_mm).max() < 0.1:
      break
    center_mm = moved_mm
  return center_mm / spacing


def _with_muscle(
  center: np.ndarray, tissue: np.ndarray, grid: Grid
) -> np.ndarray:
  """Moves the index of the blood's middle to that of the whole heart's.

  Looks 30 mm up and down, and no more than 45 mm back, where the spine is.
  """
  index = np.argwhere(tissue)
  away_mm = (index - center) * grid.spacing
  near = (np.abs(away_mm[:, 0]) <= 30) & (away_mm[:, 1] <= 45)
  near &= (away_mm**2).sum(1) <= _HEART_RADIUS_MM**2
  if near.sum() * np.prod(grid.spacing) / 1000 < _CHAMBERS_ML:
    return center
  return np.array([center[0], *index[near].mean(0)[1:]])
