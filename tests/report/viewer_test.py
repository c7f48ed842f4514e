"""The offline viewer."""

import warnings

import numpy as np
import pytest

from cadjax.report import viewer
from data_prep import geometry
from data_prep.volume import Grid, Volume

GRID = Grid((10, 20, 30), (3.0, 2.0, 1.0), np.zeros(3), np.eye(3)[:, ::-1])


@pytest.fixture
def volume():
  hu = np.random.default_rng(0).integers(-200, 900, GRID.shape)
  return Volume(hu.astype(np.int16), GRID)


def test_the_pages_hold_their_data_and_ask_for_nothing(volume):
  heat = np.zeros(GRID.shape)
  heat[5, 10, 15] = 1
  mask = np.zeros(GRID.shape, np.uint8)
  mask[2:8, 5:15, 10:20] = 2
  window = {"window_hu": (-100.0, 700.0)}
  place = GRID.to_mm((5, 10, 15))
  for page in (
    viewer.heat_viewer(volume, heat, place, **window),
    viewer.mask_viewer(volume, mask, ["#ff0000", "#00ff00"], place, **window),
  ):
    assert "brainsprite" in page
    assert "base64" in page
    for address in ('src="http', 'href="http', "@import"):
      assert address not in page


def test_only_nilearns_warnings_are_left_out(volume, monkeypatch):
  resample = geometry.resample

  def warning(*args, **options):
    warnings.warn("ours", RuntimeWarning, stacklevel=1)
    return resample(*args, **options)

  monkeypatch.setattr(geometry, "resample", warning)
  with pytest.warns(RuntimeWarning, match="ours"):
    viewer.heat_viewer(
      volume, np.ones(GRID.shape), (0, 0, 0), window_hu=(-100.0, 700.0)
    )
