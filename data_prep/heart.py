"""Where the heart is, from the image alone."""

from typing import Any

import numpy as np
from scipy import ndimage

from data_prep.errors import UserError
from data_prep.resampling import resample
from data_prep.volume import AIR_HU, Grid, Volume

_WORK_MM = 3.0


def find_heart(volume: Volume) -> tuple[np.ndarray, dict[str, Any]]:
  """Finds the middle of the heart.

  Returns:
    (center_mm [3] LPS (x, y, z), info), where info holds "method" and
    "notes".

  Raises:
    UserError: there is no body in the scan.
  """
  small, grid = _shrink(volume)
  blood = (small > 200) & (small < 650)
  weight = ndimage.gaussian_filter(blood.astype(np.float32), 8)
  index = np.unravel_index(weight.argmax(), weight.shape)
  if not (small > -300).any():
    raise UserError(f"{volume.path}: there is no body in the scan")
  return grid.to_mm(index), {"method": "contrast", "notes": ()}


def _shrink(volume: Volume) -> tuple[np.ndarray, Grid]:
  extent = np.array(volume.grid.extent_mm)
  shape = np.maximum(np.rint(extent / _WORK_MM), 1).astype(int)
  spacing = extent / shape
  origin = volume.grid.center_mm - volume.direction @ (
    (shape - 1) / 2 * spacing
  )
  grid = Grid(tuple(shape), spacing, origin, volume.direction)
  return resample(volume.hu, volume.grid, grid, fill=AIR_HU), grid
