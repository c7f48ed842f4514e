"""The labels of the chest and of the coronary arteries as one."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from cadjax.data import classes
from cadjax.segmentation import components
from data_prep.resampling import resample
from data_prep.volume import Grid

AORTA, LUNGS = "aorta", "lungs"
# Coronary arteries lie in the fat on the heart. The limit is for the median
# over a piece, so that a thick groove costs no vessel.
HEART_MM = 6.0
# The chest's aorta is coarse: so near to the other one it is the same wall.
NEAR_MM = 4.0
_LEAST_MM3 = 1000.0


@dataclasses.dataclass(frozen=True)
class Stage:
  """What one stage has found.

  Attributes:
    labels: uint8 [D, H, W].
    names: of the classes, the first is the background.
    grid: where the labels lie.
  """

  labels: np.ndarray
  names: Sequence[str]
  grid: Grid

  def mask(self, names: Sequence[str]) -> np.ndarray:
    """Returns where any of the classes `names` is, bool [D, H, W]."""
    values = [k for k, name in enumerate(self.names) if name in names]
    return np.isin(self.labels, values)


def merge_labels(
  wide: Stage, labels: np.ndarray, fine: Stage
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Lays the labels of the second stage over those of the first.

  Where both have a class of one name, such as the aorta, it is their union;
  but within `NEAR_MM` of the aorta of the second stage, the wall is where that
  stage has it, and what the first one has beyond is background.

  Args:
    wide: the chest, on the scan's grid.
    labels: uint8 [D, H, W] of the second stage on the same grid.
    fine: the second stage on its own grid.

  Returns:
    uint8 [D, H, W] and its names: those of the chest, then the others.
  """
  names = fine.names
  merged = (*wide.names, *(name for name in names if name not in wide.names))
  table = np.array([merged.index(name) for name in names], np.uint8)
  below = wide.labels
  if AORTA in wide.names and AORTA in names:
    below = below.copy()
    beyond = np.argwhere(wide.mask([AORTA]) & (labels == 0))
    doubled = beyond[_on_wall(wide.grid.to_mm(beyond), fine)]
    below[tuple(doubled.T)] = 0
  return np.where(labels > 0, table[labels], below), merged


def _on_wall(points_mm: np.ndarray, fine: Stage) -> np.ndarray:
  """Returns which points [K, 3] are near the aorta of a stage, in its field."""
  aorta = fine.mask([AORTA])
  if not aorta.any() or not len(points_mm):
    return np.zeros(len(points_mm), bool)
  index = np.rint(fine.grid.to_index(points_mm)).astype(int)
  inside = ((index >= 0) & (index < fine.grid.shape)).all(1)
  on = np.zeros(len(points_mm), bool)
  on[inside] = _near(aorta, fine.grid)[tuple(index[inside].T)]
  return on


def misplaced(fine: Stage, wide: Stage) -> np.ndarray:
  """Finds vessels of the second stage that the first stage contradicts.

  In a box around the heart, vessels of the lungs look like coronary arteries,
  and chambers like the aorta. 26-connected pieces of aorta are misplaced if
  the first stage has none within `NEAR_MM`; pieces of the other classes, all
  together, if at least half of a piece is in the lungs or its median distance
  from the heart is above `HEART_MM`.

  Args:
    fine: the second stage.
    wide: the first stage, on any grid.

  Returns:
    bool [D, H, W] on the second stage's grid; nothing where the first stage
    has no heart.
  """
  grid = fine.grid
  chest = Stage(
    resample(wide.labels, wide.grid, grid, order="nearest", fill=0),
    wide.names,
    grid,
  )
  heart, aorta = chest.mask(classes.HEART), fine.mask([AORTA])
  wrong = np.zeros(grid.shape, bool)
  if not heart.any():
    return wrong
  if AORTA in chest.names:
    near = _near(chest.mask([AORTA]), grid)
    wrong |= _pieces(aorta, lambda where: not near[where].any())
  away_mm = ndimage.distance_transform_edt(~heart, sampling=grid.spacing)
  lungs = chest.mask([LUNGS])
  vessels = (fine.labels > 0) & ~aorta
  return wrong | _pieces(
    vessels,
    lambda where: (
      lungs[where].mean() >= 0.5 or np.median(away_mm[where]) > HEART_MM
    ),
  )


def _pieces(
  mask: np.ndarray, drop: Callable[[tuple[np.ndarray, ...]], bool]
) -> np.ndarray:
  """Returns the 26-connected pieces of a mask for which `drop` is true."""
  parts, count = ndimage.label(mask, components.CONNECTED_26)
  dropped = np.zeros(count + 1, bool)
  for number, box in enumerate(ndimage.find_objects(parts), 1):
    where = np.nonzero(parts[box] == number)
    where = tuple(
      axis + along.start for axis, along in zip(where, box, strict=True)
    )
    dropped[number] = drop(where)
  return dropped[parts]


def fill_aorta(fine: Stage, wide: Stage) -> np.ndarray:
  """Adds those parts of the aorta that only the first stage has found.

  A part is added where it is farther than `NEAR_MM` from the aorta of the
  second stage and not a speck, so that the wall, and with it the ostia, stay
  where the finer segmentation has them. Nothing but background changes.

  Args:
    fine: the second stage.
    wide: the first stage, on any grid.

  Returns:
    uint8 [D, H, W] on the second stage's grid.
  """
  labels, grid = fine.labels, fine.grid
  if AORTA not in fine.names or AORTA not in wide.names:
    return labels
  there = wide.mask([AORTA]).astype(np.float32)
  other = resample(there, wide.grid, grid, order="linear", fill=0) > 0.5
  added = other & ~_near(fine.mask([AORTA]), grid)
  added = components.remove_small(
    added.astype(np.uint8), grid.affine, _LEAST_MM3
  )
  if not added.any():
    return labels
  # Up to the aorta that is there, too: no gap may stay between them.
  added = other & _near(added > 0, grid, 2 * NEAR_MM)
  number = np.uint8(fine.names.index(AORTA))
  return np.where(added & (labels == 0), number, labels)


def _near(mask: np.ndarray, grid: Grid, mm: float = NEAR_MM) -> np.ndarray:
  if not mask.any():
    return mask
  return ndimage.distance_transform_edt(~mask, sampling=grid.spacing) <= mm
