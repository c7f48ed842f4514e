"""Heat maps, and the grids that they are laid on."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from cadjax.data.scans import Prepared
from cadjax.explanation import cam
from data_prep import geometry
from data_prep.volume import Grid, Volume

GRIDS = ("scanner", "model", "feature")


@dataclasses.dataclass(frozen=True, eq=False)
class HeatMap:
  """What one method says of one layer.

  Attributes:
    method: its name.
    layer: the layer's name; "input" for methods that see none.
    cells: float32 [*cells], at least 0, neither upsampled nor normalised.
    strides: voxels of the model's grid per cell along D, H, W; cell o lies
      on voxel stride * o.
  """

  method: str
  layer: str
  cells: np.ndarray
  strides: tuple[int, int, int]

  @property
  def name(self) -> str:
    """Method and layer, fit for a file's name."""
    return f"{self.method.replace('+', 'p')}_{self.layer}"

  def grid(self, model_grid: Grid) -> Grid:
    """Returns the grid of the cells: the same origin, larger steps."""
    spacing = np.array(model_grid.spacing) * self.strides
    return Grid(
      self.cells.shape, spacing, model_grid.origin, model_grid.direction
    )

  def peak_mm(self, model_grid: Grid) -> tuple[float, float, float] | None:
    """Returns LPS mm of the highest cell (the first of equals), or None."""
    if not self.cells.max() > 0:
      return None
    index = np.unravel_index(np.argmax(self.cells), self.cells.shape)
    return tuple(float(x) for x in self.grid(model_grid).to_mm(index))


def on_model_grid(heat: HeatMap, shape: Sequence[int]) -> np.ndarray:
  """Returns a map on the model's voxels, float32 [D, H, W] in [0, 1]."""
  maps = jnp.asarray(heat.cells)[None]
  return np.asarray(cam.to_image(maps, shape, heat.strides)[0])


def on_scanner_grid(
  model_map: np.ndarray, model_grid: Grid, scan: Volume
) -> np.ndarray:
  """Returns a map on the scan's voxels, float32 [D, H, W] in [0, 1].

  It is 0 where the model's grid does not reach. Between the model's voxels it
  may nowhere reach its maximum of 1.
  """
  values = geometry.back_to_source(model_map, model_grid, scan, "linear")
  return np.clip(values, 0, 1)  # Rounding.


def on_grid(
  heat: HeatMap, prepared: Prepared, grid: str
) -> tuple[np.ndarray, Grid | Volume]:
  """Returns a map, normalised, and what `write_nifti` wants of its place.

  Args:
    heat: the map.
    prepared: the scan it is of.
    grid: one of `GRIDS`.
  """
  model_grid = prepared.model_input.grid
  if grid == "feature":
    return _normalised(heat.cells), heat.grid(model_grid)
  values = on_model_grid(heat, model_grid.shape)
  if grid == "model":
    return values, model_grid
  return on_scanner_grid(values, model_grid, prepared.scan), prepared.scan


def _normalised(cells: np.ndarray) -> np.ndarray:
  return np.asarray(cam.normalise(jnp.asarray(cells)[None])[0])
