"""A tree of two branches, made by hand."""

import numpy as np
import pytest

from cadjax.vessels import tree
from cadjax.vessels.tree import STEP_MM

AFFINE = np.array(
  [[0, 0, 0.5, -10], [0, 0.5, 0, -10], [0.5, 0, 0, -10], [0, 0, 0, 1.0]]
)


def branch(name, parent, course, start, free):
  distance = np.arange(len(course)) * STEP_MM
  radius = np.ones(len(course) - start)
  return tree.Branch(
    name, name, "high", parent, course, distance, start, free, radius
  )


def make(voxels=(), count=2):
  """The LAD along z for 8 mm; at 4 mm a diagonal leaves it along x."""
  up = np.arange(17)[:, None] * [0, 0, STEP_MM]
  across = [0, 0, 4.0] + np.arange(1, 13)[:, None] * [STEP_MM, 0, 0]
  branches = (
    branch("LAD", -1, up, 0, 0),
    branch("D1", 0, np.concatenate([up[:9], across]), 8, 11),
  )
  voxels = np.asarray(voxels).reshape(-1, 3)
  return tree.VesselTree(branches[:count], (), AFFINE, (40, 40, 40), voxels, ())


def test_a_branch_begins_at_its_take_off():
  diagonal = make().branch("D1")
  np.testing.assert_allclose(diagonal.points_mm[0], [0, 0, 4])
  assert diagonal.distance_mm[0] == 4.0
  assert diagonal.length_mm == pytest.approx(6.0)
  assert make().names == ("LAD", "D1")
  assert make().branch("RCA") is None


def test_the_stretch_in_the_parents_lumen_counts_for_the_parent():
  points = [[1.0, 0, 4], [1.5, 0, 4], [3.1, 0.2, 4], [0, 0.3, 7.6]]
  owner, place, away = make().nearest(np.array(points))
  # 1.0 mm along the diagonal is inside the LAD: the free part begins at 1.5.
  assert owner.tolist() == [1, 1, 1, 0]
  assert place.tolist() == [3, 3, 6, 15]
  np.testing.assert_allclose(
    away, [0.5, 0, np.hypot(0.1, 0.2), np.hypot(0.3, 0.1)]
  )
  owner, place, _ = make().nearest(np.array([[0.6, 0, 4]]))
  assert (owner[0], place[0]) == (0, 8)


def test_an_empty_tree_is_near_to_nothing():
  empty = tree.VesselTree((), (), AFFINE, (4, 4, 4), np.zeros((0, 3), int), ())
  owner, place, away = empty.nearest(np.zeros((2, 3)))
  assert (owner == -1).all()
  assert (place == -1).all()
  assert np.isinf(away).all()


def test_voxels_and_mm_are_two_names_of_one_place():
  rng = np.random.default_rng(0)
  index = rng.uniform(0, 40, (3, 5, 3))
  found = make().to_index(make().to_mm(index))
  np.testing.assert_allclose(found, index)
  np.testing.assert_allclose(make().to_mm([2, 0, 6]), [-7, -10, -9])
  assert tree.voxel_mm(AFFINE) == pytest.approx(0.5)
  assert tree.voxel_mm(np.diag([1, 2, -4, 1.0])) == pytest.approx(2)


def test_the_calibre_is_that_of_a_circle_of_the_same_area():
  at = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), -1)
  x, y, z = np.moveaxis(make().to_mm(at), -1, 0)
  tube = (np.hypot(x, y) < 1.5) & (z >= 0) & (z <= 8)
  full = make(np.argwhere(tube), count=1)
  radius = tree.calibre(full, tube)[0]
  middle = slice(4, -4)
  np.testing.assert_allclose(radius[middle], 1.5, atol=0.15)
  # Where nothing is left the radius is 0; where nothing was, it is NaN.
  cut = tube & (z < 4)
  assert (tree.calibre(full, cut, tube)[0][-3:] < 0.05).all()
  assert np.isnan(tree.calibre(full, cut)[0][-3:]).all()
