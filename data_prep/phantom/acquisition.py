"""The scanner's part: field of view, target grids, noise and texture."""

from typing import Any

import numpy as np
from scipy import ndimage

from data_prep.geometry import GridSpec, target_grid
from data_prep.volume import Grid, Volume

_UPRIGHT = np.eye(3)[:, ::-1]


def native_grid(heart_mm: np.ndarray, scanner: dict[str, Any]) -> Grid:
  """Returns the scanner's own voxels around a heart at `heart_mm`."""
  shape = tuple(scanner["shape"])
  fov = scanner["fov_mm"]
  spacing = np.array([scanner["length_mm"], fov, fov]) / shape
  # A technician centres the field on the heart, a little high, so that the
  # aortic root and the bifurcation of the pulmonary artery are inside.
  middle = np.asarray(heart_mm) + scanner["center_offset_mm"] + [2, 4, 9]
  first = (np.array(shape) - 1) / 2 * spacing
  return Grid(shape, spacing, middle - _UPRIGHT @ first, _UPRIGHT)


def place_grid(
  grid: GridSpec | Grid | None, heart_mm: np.ndarray, scanner: dict[str, Any]
) -> Grid:
  """Returns the voxels to render.

  Args:
    grid: a recipe, voxels, or None for the scanner's own.
    heart_mm: LPS mm of the middle of the heart.
    scanner: see `population.draw_scanner`.
  """
  if isinstance(grid, Grid):
    return grid
  native = native_grid(heart_mm, scanner)
  if grid is None:
    return native
  # No memory behind these voxels: only the lattice matters here.
  field = Volume(np.broadcast_to(np.int16(0), native.shape), native)
  found = np.asarray(heart_mm) + scanner["detector_offset_mm"]
  dot = Grid((1, 1, 1), (1, 1, 1), found, _UPRIGHT)
  heart = Volume(np.ones((1, 1, 1), np.uint8), dot)
  return target_grid(grid, field, heart_mask=heart)


def noise(
  grid: Grid,
  scanner: dict[str, Any],
  rng: np.random.Generator,
  patient: dict[str, Any] | None = None,
) -> np.ndarray:
  """Returns noise in HU, correlated by the kernel, [D, H, W] float32.

  On voxels larger than the scanner's, averaging has taken its share away;
  a stout body adds to it.

  Args:
    grid: where.
    scanner: `noise_hu` is its standard deviation on the scanner's own voxels,
      `grain_mm` the standard deviation of its blur, `ramp` the share of
      coarse noise that the kernel takes away in the axial plane.
    rng: source of randomness.
    patient: who is scanned; an average adult if None.
  """
  out = rng.standard_normal(grid.shape, np.float32)
  level = scanner["noise_hu"]
  if patient is not None:
    level *= patient["body_scale"] * np.exp((patient["fat_mm"] - 20) / 90)
  for axis, spacing in enumerate(grid.spacing):
    grain = scanner["grain_mm"]
    blurred = np.sqrt(grain**2 + spacing**2 / 12)
    level *= np.sqrt(grain / blurred)
    sigma = grain / spacing
    if sigma > 0.25:
      out = ndimage.gaussian_filter1d(out, sigma, axis, truncate=3)
  # Filtered back projection suppresses what is coarser than its kernel; what
  # averages over large voxels alias fills some of it again.
  low = out
  for axis in (1, 2):
    sigma = 2.4 * scanner["grain_mm"] / grid.spacing[axis]
    if sigma > 0.25:
      low = ndimage.gaussian_filter1d(low, sigma, axis, truncate=2.5)
  if low is not out:
    low *= np.float32(-scanner["ramp"] * min(1, 0.7 / max(grid.spacing)))
    out += low
  out *= np.float32(level / out.std())
  return out


class Texture:
  """Smooth noise in space, the same on every grid."""

  def __init__(self, rng: np.random.Generator):
    cells = rng.standard_normal((32, 32, 32)).astype(np.float32)
    self._cells = ndimage.gaussian_filter(cells, 0.7, mode="wrap")
    self._cells /= self._cells.std()

  def __call__(self, at: tuple, cell_mm: float) -> np.ndarray:
    """Returns noise about standard normal, with lumps of about `cell_mm`."""
    points = np.stack(np.broadcast_arrays(*at)) / np.float32(cell_mm)
    return ndimage.map_coordinates(
      self._cells, points, order=1, mode="grid-wrap", output=np.float32
    )
