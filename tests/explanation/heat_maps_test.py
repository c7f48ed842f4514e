"""A map lies on the same mm on all of its grids."""

import types

import numpy as np
import pytest

from cadjax.explanation import heat_maps
from data_prep.volume import Grid, Volume

SHAPE = (8, 12, 12)
STRIDES = (2, 4, 3)
# Columns: the LPS direction of D, H and W.
LPS = np.eye(3)[:, ::-1]
MODEL = Grid(SHAPE, (2.0, 1.0, 1.0), np.array([5.0, -7.0, 20.0]), LPS)


def heat_of(cells, method="gradcam++"):
  return heat_maps.HeatMap(method, "stage1", cells, STRIDES)


@pytest.fixture
def heat():
  cells = np.zeros((4, 3, 4), np.float32)
  cells[2, 1, 2] = 5.0
  cells[0, 0, 0] = 1.0
  return heat_of(cells)


def test_a_cell_lies_on_its_voxel(heat):
  voxel = (4, 4, 6)
  np.testing.assert_allclose(heat.peak_mm(MODEL), MODEL.to_mm(voxel))
  values = heat_maps.on_model_grid(heat, SHAPE)
  assert values.shape == SHAPE
  assert np.unravel_index(values.argmax(), SHAPE) == voxel
  assert values[voxel] == 1
  assert values[0, 0, 0] == pytest.approx(1 / 5)
  steps = np.array(MODEL.spacing) * STRIDES
  np.testing.assert_allclose(heat.grid(MODEL).spacing, steps)


def test_a_map_of_zeros_has_no_peak_and_stays_zero():
  heat = heat_of(np.zeros((4, 3, 4), np.float32))
  assert heat.peak_mm(MODEL) is None
  assert not heat_maps.on_model_grid(heat, SHAPE).any()


def test_names_are_fit_for_files(heat):
  assert heat.name == "gradcampp_stage1"


def test_every_grid_has_the_peak_in_one_place(heat):
  """The scan runs the other way along W and reaches beyond the model's box."""
  scan = Grid(
    (12, 12, 20), (2.0, 1.0, 1.0), MODEL.to_mm((-2, 0, 15)), LPS * [1, 1, -1]
  )
  prepared = types.SimpleNamespace(
    model_input=Volume(np.zeros(SHAPE, np.int16), MODEL),
    scan=Volume(np.zeros(scan.shape, np.int16), scan),
  )
  for name in heat_maps.GRIDS:
    values, place = heat_maps.on_grid(heat, prepared, name)
    grid = place.grid if isinstance(place, Volume) else place
    assert values.shape == tuple(grid.shape)
    assert values.max() == pytest.approx(1, abs=1e-5)
    index = np.unravel_index(values.argmax(), values.shape)
    np.testing.assert_allclose(grid.to_mm(index), heat.peak_mm(MODEL))
  values, _ = heat_maps.on_grid(heat, prepared, "scanner")
  assert not values[:2].any()
  assert values[2:].any()
