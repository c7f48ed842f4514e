import numpy as np
import pytest

from cadjax.segmentation import components


def islands():
  """Components of 1, 3 and 8 voxels; the last has two classes."""
  labels = np.zeros((6, 8, 10), np.uint8)
  labels[0, 0, 0] = 1
  labels[3, 3, 3:6] = 2
  labels[4:6, 6:8, 8:10] = 1
  labels[5, 7, 9] = 4
  return labels


@pytest.mark.parametrize(
  ("min_mm3", "kept"),
  [(0, 12), (2.0, 12), (2.1, 11), (6.0, 11), (6.5, 8), (16.1, 0)],
)
def test_components_below_a_volume_go(min_mm3, kept):
  labels = islands()
  found = components.remove_small(
    labels, np.diag([2.0, 1.0, 1.0, 1.0]), min_mm3
  )
  assert found.dtype == np.uint8
  assert np.count_nonzero(found) == kept
  same = found > 0
  np.testing.assert_array_equal(found[same], labels[same])


def test_a_plaque_stays_with_its_vessel():
  found = components.remove_small(islands(), np.eye(4), 5)
  assert (found == 4).sum() == 1


def test_of_an_organ_the_largest_piece_stays_with_all_its_parts():
  labels = islands()
  labels[0, 7, 0] = 5  # No part of the organ.
  found = components.keep_organ(labels, [1, 4])
  expected = np.where(labels == 1, 0, labels)
  expected[4:6, 6:8, 8:10] = labels[4:6, 6:8, 8:10]
  np.testing.assert_array_equal(found, expected)
  assert found.dtype == np.uint8


def test_an_organ_that_was_not_found_is_no_mistake():
  labels = islands()
  np.testing.assert_array_equal(components.keep_organ(labels, [9]), labels)


def test_voxels_that_share_a_corner_belong_together():
  labels = np.zeros((4, 4, 4), np.uint8)
  labels[1, 1, 1] = labels[2, 2, 2] = 1
  assert components.remove_small(labels, np.eye(4), 2).sum() == 2


def test_an_empty_segmentation_stays_empty():
  empty = np.zeros((3, 4, 5), np.uint8)
  assert not components.remove_small(empty, np.eye(4), 5).any()


def test_a_voxel_of_a_sheared_grid_is_smaller_than_its_edges_say():
  """A gantry tilted by 30 degrees: the slices lie aslant over one another."""
  affine = np.diag([2.0, 1.0, 1.0, 1.0])
  affine[1, 0] = -2 * np.tan(np.pi / 6)
  edges = np.linalg.norm(affine[:3, :3], axis=0)
  assert components.voxel_mm3(affine) == pytest.approx(2)
  assert np.prod(edges) == pytest.approx(2 / np.cos(np.pi / 6))
  labels = np.zeros((4, 4, 4), np.uint8)
  labels[1, 1, 1:3] = 1
  # 4 mm3, where the edges say 4.6.
  assert components.remove_small(labels, affine, 4.0).any()
  assert not components.remove_small(labels, affine, 4.3).any()


def test_what_no_cube_covers_is_thin():
  mask = np.zeros((8, 9, 10), bool)
  mask[1:3, 1:3, 1:3] = True  # A cube of two voxels,
  mask[5:7, 4:8, 4:8] = True  # a plate of two,
  mask[5, 8, 4:8] = True  # an edge on it,
  mask[0, :, 9] = True  # and a line.
  shell = components.thin(mask, 2)
  assert set(map(tuple, np.argwhere(shell))) == {
    *((5, 8, k) for k in range(4, 8)),
    *((0, k, 9) for k in range(9)),
  }
  assert not components.thin(mask, 1).any()
  np.testing.assert_array_equal(components.thin(mask, 3), mask)
