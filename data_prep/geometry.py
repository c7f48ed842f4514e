"""Target grids, the way onto them, and the exact way back."""

import dataclasses
import math
from typing import Any

import numpy as np

from data_prep.errors import UserError
from data_prep.heart import find_heart
from data_prep.resampling import resample
from data_prep.volume import AIR_HU, Grid, Volume

__all__ = [
  "GridSpec",
  "back_to_source",
  "find_heart",
  "mask_to_grid",
  "resample",
  "target_grid",
  "to_grid",
]

KINDS = ("paper", "heart", "spacing")
# Of one volume; beyond, memory ends before the first record.
MOST_VOXELS = 2**30
FINEST_MM = 0.1


@dataclasses.dataclass(frozen=True)
class GridSpec:
  """The recipe of a target grid; kept with a data set and its models.

  Attributes:
    kind: "paper" resizes the whole field of view to `shape`; "heart" lays
      `shape` voxels over a box of `box_mm` around the heart, along the
      patient's axes; "spacing" keeps the field of view at `spacing_mm`.
    shape: voxels along D, H, W; unused by "spacing".
    box_mm: extent along D, H, W in mm; used by "heart".
    spacing_mm: mm along D, H, W; used by "spacing".
  """

  kind: str = "paper"
  shape: tuple[int, int, int] = (256, 128, 128)
  box_mm: tuple[float, float, float] = (160.0, 160.0, 160.0)
  spacing_mm: tuple[float, float, float] = (0.5, 0.5, 0.5)

  def __post_init__(self):
    if self.kind not in KINDS:
      raise UserError(
        f"grid {self.kind!r} is unknown; known are {', '.join(KINDS)}"
      )
    for name, type_ in (("shape", int), ("box_mm", float)):
      _set_triple(self, name, type_)
    _set_triple(self, "spacing_mm", float)
    if math.prod(self.shape) > MOST_VOXELS:
      raise UserError(
        f"grid shape: {self.shape} is more than {MOST_VOXELS} voxels"
      )
    if min(self.spacing_mm) < FINEST_MM:
      raise UserError(
        f"grid spacing_mm: {self.spacing_mm} is finer than {FINEST_MM} mm"
      )

  def to_dict(self) -> dict[str, Any]:
    """Returns a JSON-able description."""
    return {
      "kind": self.kind,
      "shape": list(self.shape),
      "box_mm": list(self.box_mm),
      "spacing_mm": list(self.spacing_mm),
    }

  @classmethod
  def from_dict(cls, description: dict[str, Any]) -> "GridSpec":
    """Returns the recipe that `to_dict` described."""
    return cls(**description)


def _set_triple(spec: GridSpec, name: str, type_: type) -> None:
  values = tuple(type_(value) for value in getattr(spec, name))
  if len(values) != 3 or not all(0 < value < math.inf for value in values):
    raise UserError(f"grid {name}: needs three positive numbers, not {values}")
  object.__setattr__(spec, name, values)


def target_grid(
  spec: GridSpec, volume: Volume, *, heart_mask: Volume | None = None
) -> Grid:
  """Returns the grid that a recipe asks for on one scan.

  Args:
    spec: the recipe.
    volume: the scan.
    heart_mask: labels above 0 are the heart; found from the image if None.

  Raises:
    UserError: the recipe is "heart" and there is no heart to be found.
  """
  return _target(spec, volume, heart_mask)[0]


def to_grid(
  volume: Volume,
  spec: GridSpec,
  *,
  heart_mask: Volume | None = None,
  threads: int | None = None,
) -> Volume:
  """Returns a scan on the grid of a recipe; -1024 HU outside the scan.

  Args:
    volume: the scan, int16 HU.
    spec: the recipe.
    heart_mask: see `target_grid`.
    threads: at most so many; all cores if None.
  """
  grid, notes = _target(spec, volume, heart_mask)
  hu = resample(
    volume.hu, volume.grid, grid, order="linear", fill=AIR_HU, threads=threads
  )
  return Volume(hu, grid, path=volume.path, notes=volume.notes + notes)


def mask_to_grid(
  mask: Volume,
  grid: Grid,
  order: str = "majority",
  *,
  threads: int | None = None,
) -> np.ndarray:
  """Returns labels on a grid, [D, H, W] in the mask's dtype; 0 outside."""
  return resample(
    mask.hu, mask.grid, grid, order=order, fill=0, threads=threads
  )


def back_to_source(
  array: np.ndarray,
  grid: Grid,
  volume: Volume,
  order: str = "linear",
  *,
  fill: float = 0,
  threads: int | None = None,
) -> np.ndarray:
  """Returns an array of a target grid on the scan's own voxels.

  Args:
    array: [D, H, W] on `grid`.
    grid: where the array lies.
    volume: the scan to go back to.
    order: "linear" for maps, "majority" or "nearest" for labels.
    fill: value where the target grid does not reach.
    threads: at most so many; all cores if None.

  Returns:
    [D, H, W] on `volume.grid`, in the dtype of `array`.
  """
  return resample(
    array, grid, volume.grid, order=order, fill=fill, threads=threads
  )


def _target(spec, volume, heart_mask) -> tuple[Grid, tuple[str, ...]]:
  if spec.kind == "heart":
    if heart_mask is None:
      center_mm, info = find_heart(volume)
      notes = info["notes"]
    else:
      center_mm, notes = _mask_center_mm(heart_mask), ()
    return _box_grid(spec, center_mm), notes
  extent_mm = np.array(volume.grid.extent_mm)
  if spec.kind == "paper":
    shape = spec.shape
    spacing = extent_mm / shape
  else:
    spacing = np.array(spec.spacing_mm)
    shape = np.maximum(np.rint(extent_mm / spacing), 1).astype(int)
  # Voxel edges, not centres, line up: the field of view stays the same.
  first = (shape * spacing - spacing) / 2
  origin = volume.grid.center_mm - volume.direction @ first
  return Grid(tuple(shape), spacing, origin, volume.direction), ()


def _mask_center_mm(mask: Volume) -> np.ndarray:
  """Returns the middle of the mask's bounding box."""
  index = np.argwhere(mask.hu > 0)
  if not len(index):
    raise UserError(f"{mask.path}: the heart mask is empty")
  return mask.grid.to_mm((index.min(0) + index.max(0)) / 2)


def _box_grid(spec: GridSpec, center_mm: np.ndarray) -> Grid:
  spacing = np.array(spec.box_mm) / spec.shape
  direction = np.eye(3)[:, ::-1]
  first = (np.array(spec.shape) - 1) / 2 * spacing
  origin = np.asarray(center_mm) - direction @ first
  return Grid(spec.shape, spacing, origin, direction)
