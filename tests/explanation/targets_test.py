"""What is to be explained, as a user names it."""

import numpy as np
import pytest

from cadjax.core import lookup
from cadjax.data import scans
from cadjax.explanation import targets
from data_prep.errors import UserError
from data_prep.volume import Grid, Volume

# Columns: the LPS direction of D, H and W.
LPS = np.eye(3)[:, ::-1]


def test_a_wrong_target_is_told():
  assert targets.find_target("cad", targets.CLASSES) == 1
  assert targets.find_target("0", targets.CLASSES) == 0
  with pytest.raises(lookup.UnknownName, match="target 'cat'.*mean 'cad'"):
    targets.find_target("cat", targets.CLASSES)
  with pytest.raises(lookup.UnknownName, match="target '2'"):
    targets.find_target("2", targets.CLASSES)


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("predictd", "unknown region 'predictd'; did you mean 'predicted'"),
    ("box:1,2,3", "'box' takes 6 numbers, as in box:1,2,3,4,5,6"),
    ("voxel:1,2,x", "'voxel' takes 3 numbers"),
    ("largest:3", "'largest' takes no numbers"),
  ],
)
def test_a_region_that_cannot_be_read_is_told(text, message):
  with pytest.raises((UserError, lookup.UnknownName), match=message):
    targets.parse_region(text)


def place(grid, index) -> str:
  return ",".join(f"{x:.4f}" for x in grid.to_mm(index))


def test_a_region_by_its_place_is_on_the_grid_of_the_model():
  """The scan is twice as coarse, shifted, and runs the other way along W."""
  model = Grid((10, 20, 30), (1.0, 1.0, 1.0), np.zeros(3), LPS)
  scan = Grid(
    (5, 10, 15), (2.0, 2.0, 2.0), model.to_mm((1, 2, 27)), LPS * [1, 1, -1]
  )
  prepared = scans.Prepared(
    Volume(np.zeros(scan.shape, np.int16), scan),
    Volume(np.zeros(model.shape, np.int16), model),
    (0.0, 0.0, 0.0),
    "",
    {},
    (),
  )
  labels = np.zeros(model.shape, np.uint8)
  labels[4:6, 5, 6] = 1

  def select(text, truth=None):
    return targets.select_region(text, 1, labels, prepared, truth)

  np.testing.assert_array_equal(select("predicted"), labels == 1)
  expected = np.zeros(model.shape, bool)
  expected[5, 8, 21] = True
  np.testing.assert_array_equal(select("voxel:2,3,3"), expected)
  text = f"voxel_mm:{place(scan, (2, 3, 3))}"
  np.testing.assert_array_equal(select(text), expected)
  expected[3:6, 4:9, 21:26] = True
  np.testing.assert_array_equal(select("box:1,1,1,2,3,3"), expected)
  text = f"box_mm:{place(scan, (2, 3, 1))},{place(scan, (1, 1, 3))}"
  np.testing.assert_array_equal(select(text), expected)
  with pytest.raises(UserError, match="selects nothing"):
    select("voxel:90,0,0")


# --- Regions of voxels ------------------------------------------------------
SHAPE = (4, 5, 6)


def pair():
  """Labels and truth that differ in all ways."""
  labels, truth = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
  labels[0, 0, :3] = 2
  labels[2:4, 2:4, 4] = 2
  labels[1, 4, 0] = 1
  truth[0, 0, 1:5] = 2
  truth[1, 4, 0] = 2
  return labels, truth


def where(region):
  assert region.dtype == bool
  assert region.shape == SHAPE
  return {tuple(map(int, index)) for index in np.argwhere(region)}


def test_regions_of_a_class():
  labels, truth = pair()
  found = {
    kind: where(targets.of_class(kind, 2, labels, truth))
    for kind in targets.OF_A_CLASS
  }
  line = {(0, 0, w) for w in range(3)}
  part = {(d, h, 4) for d in (2, 3) for h in (2, 3)}
  true = {(0, 0, w) for w in range(1, 5)} | {(1, 4, 0)}
  assert found == {
    "predicted": line | part,
    "largest": part,
    "truth": true,
    "false_positive": {(0, 0, 0)} | part,
    "false_negative": {(0, 0, 3), (0, 0, 4), (1, 4, 0)},
  }


def test_corners_connect():
  labels = np.zeros(SHAPE, np.uint8)
  labels[0, 0, 0] = labels[1, 1, 1] = labels[2, 2, 2] = 1
  labels[0, 4, 4:] = 1
  assert len(where(targets.of_class("largest", 1, labels))) == 3


@pytest.mark.parametrize(
  ("low", "high", "expected"),
  [
    ((1, 2, 3), (2, 2, 4), {(1, 2, 3), (2, 2, 3), (1, 2, 4), (2, 2, 4)}),
    ((0.6, 1.9, 3.2), (1.4, 2.1, 2.9), {(1, 2, 3)}),
    ((-9, 4, 5), (0.00001, 9, 9), {(0, 4, 5)}),
  ],
)
def test_a_box_holds_the_voxels_whose_centres_it_holds(low, high, expected):
  assert where(targets.box(SHAPE, low, high)) == expected


def test_one_voxel():
  assert where(targets.voxel(SHAPE, (1.4, 2.6, 0))) == {(1, 3, 0)}


def test_what_selects_nothing_is_told():
  labels, truth = pair()
  for kind in targets.OF_A_CLASS:
    with pytest.raises(UserError, match=f"{kind}.*class 3 selects nothing"):
      targets.of_class(kind, 3, labels, truth)
  with pytest.raises(UserError, match="box from 1.2, .* selects nothing"):
    targets.box(SHAPE, (1.2, 0, 0), (1.8, 4, 5))
  for outside in ((4, 0, 0), (0, -1, 0)):
    with pytest.raises(UserError, match="voxel .* selects nothing"):
      targets.voxel(SHAPE, outside)


def test_the_wrong_question_is_told():
  labels, truth = pair()
  with pytest.raises(UserError, match="'truth' needs true labels"):
    targets.of_class("truth", 2, labels)
  with pytest.raises(UserError, match=r"shape \(3, 5, 6\)"):
    targets.of_class("truth", 2, labels, truth[:3])
  with pytest.raises(lookup.UnknownName, match="mean 'predicted'"):
    targets.of_class("predictd", 2, labels)
