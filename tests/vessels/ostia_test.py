import numpy as np
import pytest
import tubes

from cadjax.vessels import ostia
from cadjax.vessels.skeleton import make_skeleton

SHAPE = (60, 90, 60)
AFFINE = np.eye(4)
AFFINE[:3, :3] = tubes.UPRIGHT  # mm (x, y, z) of index (z, y, x).


def graph_of(*lines):
  """Returns the skeleton of lines one voxel thick, in index = mm."""
  mask = np.zeros(SHAPE, bool)
  for line in lines:
    index = np.rint(tubes.dense(line, 0.5)).astype(int)
    mask[tuple(index.T)] = True
  return make_skeleton(mask, AFFINE)


def found(graph, aorta):
  surface = ostia.root_surface(aorta, AFFINE)
  _, meets, notes = ostia.find_ostia(graph, surface, 5.0)
  return {tuple(graph.index[k].tolist()): v for k, v in meets.items()}, notes


def block(*corners):
  mask = np.zeros(SHAPE, bool)
  mask[tuple(map(slice, *corners))] = True
  return mask


ROOT = ((40, 5, 20), (55, 20, 35))
LINE = [(38, 12, 28), (20, 12, 28), (5, 12, 10)]


def test_the_surface_is_that_of_the_ascending_aorta():
  ascending, descending = block(*ROOT), block((5, 75, 20), (55, 88, 35))
  island = block((2, 2, 2), (5, 5, 5))
  surface = ostia.root_surface(ascending | descending | island, AFFINE)
  index = np.rint(surface[:, ::-1]).astype(int)
  at = np.zeros(SHAPE, bool)
  at[tuple(index.T)] = True
  inner = block((41, 6, 21), (54, 19, 34))
  np.testing.assert_array_equal(at, ascending & ~inner)
  for nothing in (None, np.zeros(SHAPE, bool)):
    assert ostia.root_surface(nothing, AFFINE) is None


def test_the_middle_of_the_root_lies_between_its_ostia():
  tall = block((5, 5, 20), (58, 20, 35))
  surface = ostia.root_surface(tall, AFFINE)
  near = [np.array([19.0, 12, 15]), np.array([36.0, 12, 15])]
  middle = ostia.root_middle(surface, near)
  np.testing.assert_allclose(middle[:2], [27, 12], atol=0.6)
  assert 12 < middle[2] < 30
  assert ostia.root_middle(surface, []) is None
  assert ostia.root_middle(None, near) is None


def test_the_ostium_is_the_nearest_end_and_meets_the_aorta():
  # Its other end comes back to the aorta, less near.
  hook = [(38, 12, 28), (25, 12, 28), (25, 12, 45), (44, 12, 39)]
  meets, notes = found(graph_of(hook), block(*ROOT))
  assert list(meets) == [(38, 12, 28)]
  np.testing.assert_array_equal(meets[38, 12, 28], [28, 12, 40])
  assert notes == []


def test_a_distal_end_at_the_descending_aorta_is_no_ostium():
  far = [(30, 12, 28), (20, 40, 28), (20, 72, 28)]
  both = block(*ROOT) | block((5, 75, 20), (55, 88, 35))
  meets, notes = found(graph_of(far), both)
  # Thinning may shorten an end by a voxel.
  (end,) = meets
  assert np.linalg.norm(np.subtract(end, far[0])) <= 1
  assert len(notes) == 1


def test_two_trees_grown_together_have_two_ostia():
  loop = [(38, 12, 24), (5, 12, 24), (5, 60, 24), (5, 60, 50), (20, 12, 50)]
  loop += [(38, 12, 34)]
  meets, _ = found(graph_of(loop), block(*ROOT))
  assert set(meets) == {(38, 12, 24), (38, 12, 34)}


def test_a_vessel_that_touches_with_its_middle_has_its_ostium_there():
  across = [(20, 12, 2), (38, 12, 28), (20, 12, 55)]
  meets, _ = found(graph_of(across), block(*ROOT))
  (index,) = meets
  assert np.abs(np.subtract(index, (38, 12, 28))).max() <= 1


@pytest.mark.parametrize("gap", [8, 15])
def test_a_long_tree_with_its_beginning_missing(gap):
  line = [(40 - gap, 12, 28), (5, 12, 28), (5, 60, 28)]
  meets, notes = found(graph_of(line), block(*ROOT))
  assert list(meets) == [(40 - gap, 12, 28)]
  assert notes == [
    f"The first {gap} mm of a coronary tree are missing from the mask; a"
    " straight line to the aorta stands in for them."
  ]
  short = [(40 - gap, 12, 28), (12, 12, 28)]
  meets, notes = found(graph_of(short), block(*ROOT))
  assert meets == {}
  assert "No vessel comes near" in notes[0]


def test_without_an_aorta_the_two_largest_parts_have_one_each():
  other = [(38, 40, 28), (20, 40, 28), (5, 70, 40)]
  meets, _ = found(graph_of(LINE, other, [(50, 80, 2), (50, 80, 22)]), None)
  assert len(meets) == 1 + 1
  for index in meets:
    assert index in {LINE[0], LINE[-1], other[0], other[-1]}
  assert set(meets.values()) == {None}
