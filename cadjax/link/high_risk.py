"""Features of plaques that rupture more often than others.

Those of CAD-RADS 2.0 (Cury et al. 2022, table 3) that voxels of half a
millimetre or more can show. The napkin-ring sign, a ring of a few tenths of a
millimetre around a core, is not among them.
"""

import numpy as np
from scipy import ndimage

LOW_ATTENUATION = "low attenuation"
REMODELLING = "positive remodelling"
SPOTTY = "spotty calcium"
FEATURES = (LOW_ATTENUATION, REMODELLING, SPOTTY)

LOW_HU = 30.0
# Largest diameter over that of the healthy vessel.
REMODELLED = 1.1
# A spot of calcium is shorter than this along every axis.
SPOT_MM = 3.0
# Of soft plaque's voxels, that are of low attenuation: a single one is noise.
_LEAST_SHARE = 0.1


def features(
  soft: np.ndarray,
  calcified: np.ndarray,
  hu: np.ndarray | None,
  spacing_mm: tuple[float, float, float],
  remodelling: float,
) -> tuple[str, ...]:
  """Returns the features that one plaque has.

  Args:
    soft: bool [D, H, W], its part without calcium.
    calcified: bool [D, H, W], its calcified part.
    hu: [D, H, W]; None where there is no image.
    spacing_mm: of the voxels.
    remodelling: largest diameter of the vessel at the plaque over that of the
      healthy one; NaN where not measured.

  Returns:
    of `FEATURES`, in that order.
  """
  found = []
  if hu is not None and soft.any():
    low = _smooth(hu, soft)[soft] < LOW_HU
    found += [LOW_ATTENUATION] if low.mean() >= _LEAST_SHARE else []
  if remodelling >= REMODELLED:
    found.append(REMODELLING)
  if soft.any() and _all_spots(calcified, spacing_mm):
    found.append(SPOTTY)
  return tuple(found)


def _smooth(hu: np.ndarray, inside: np.ndarray) -> np.ndarray:
  """Returns the mean over each voxel's neighbours that are inside."""
  total = ndimage.uniform_filter(np.where(inside, hu, 0.0), 3)
  count = ndimage.uniform_filter(inside.astype(float), 3)
  return total / np.maximum(count, 1e-6)


def _all_spots(calcified: np.ndarray, spacing_mm) -> bool:
  parts, count = ndimage.label(calcified, np.ones((3, 3, 3)))
  boxes = ndimage.find_objects(parts)
  sizes = [
    max((b.stop - b.start) * mm for b, mm in zip(box, spacing_mm, strict=True))
    for box in boxes
  ]
  return count > 0 and max(sizes) < SPOT_MM
