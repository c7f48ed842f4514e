"""Two stages' labels as one."""

import numpy as np
import pytest

from cadjax.segmentation import merge
from data_prep.volume import Grid

WIDE = ("background", "aorta", "left_ventricle", "bone")
FOUR = ("background", "aorta", "lumen", "stable_plaque")


def small(count):
  """A grid of one row of voxels of 1 mm."""
  return Grid((1, 1, count), (1.0,) * 3, (0, 0, 0), np.eye(3)[:, ::-1])


def merged(wide, labels, wide_names=WIDE, names=FOUR, fine=None):
  """Merges rows; the second stage has no aorta of its own if not given."""
  grid = small(len(wide))
  wide, labels = (np.array([[row]], np.uint8) for row in (wide, labels))
  if fine is None:
    fine = merge.Stage(np.zeros((1, 1, 1), np.uint8), names, small(1))
  found, names = merge.merge_labels(
    merge.Stage(wide, wide_names, grid), labels, fine
  )
  assert found.dtype == np.uint8
  return [names[k] for k in found.ravel()], names


def test_the_second_stage_lies_over_the_first():
  found, names = merged([0, 1, 2, 3, 1, 2, 0], [1, 0, 1, 0, 2, 3, 0])
  assert names == (*WIDE, "lumen", "stable_plaque")
  assert found == [
    *("aorta", "aorta", "aorta", "bone", "lumen", "stable_plaque"),
    "background",
  ]


def test_a_class_of_neither_stays_out():
  assert merged([0], [0], names=WIDE)[1] == WIDE


def test_the_wall_of_the_aorta_is_where_the_second_stage_has_it():
  # The second stage sees the first 20 mm of 30, and the aorta up to 12 mm.
  fine = np.zeros((1, 1, 20), np.uint8)
  fine[..., 8:12] = 1
  seen = merge.Stage(fine, FOUR, small(20))
  labels = [*fine[0, 0], *(10 * [0])]
  found, _ = merged(30 * [1], labels, fine=seen)
  aorta = [name == "aorta" for name in found]
  # Its own; from 4 mm away on, and outside of its field, that of the first.
  expected = [k < 4 or 8 <= k < 12 or k > 15 for k in range(30)]
  assert aorta == expected
  # At the end of its field nothing is near: there the first stage goes on.
  fine[..., 8:20] = 1
  labels = [*fine[0, 0], *(10 * [0])]
  found, _ = merged(30 * [1], labels, fine=merge.Stage(fine, FOUR, small(20)))
  assert found[8:] == 22 * ["aorta"]


FINE = Grid((40, 40, 40), (1.0,) * 3, (0.5, 0.5, 0.5), np.eye(3)[:, ::-1])
COARSE = Grid((30, 30, 30), (2.0,) * 3, (-9, -9, -9), np.eye(3)[:, ::-1])


def coarse_aorta(*boxes_mm):
  """Labels of a first stage on `COARSE`; boxes in mm of z, y, x."""
  wide = np.zeros(COARSE.shape, np.uint8)
  for box in boxes_mm:
    wide[tuple(slice((a + 10) // 2, (b + 10) // 2) for a, b in box)] = 1
  return wide


def fill(labels, wide):
  return merge.fill_aorta(
    merge.Stage(labels, FOUR, FINE), merge.Stage(wide, WIDE, COARSE)
  )


def test_an_aorta_that_the_second_stage_missed_is_filled_in():
  labels = np.zeros(FINE.shape, np.uint8)
  labels[5:10, 20:22, 5:30] = 2  # A lumen, half of it in the aorta.
  wide = coarse_aorta(((0, 20), (10, 30), (0, 16)))
  found = fill(labels, wide)
  expected = np.zeros(FINE.shape, bool)
  expected[0:20, 10:30, 0:16] = True
  # Interpolation rounds the corners of a box off.
  assert ((found == 1) != (expected & (labels == 0))).sum() <= 8
  np.testing.assert_array_equal(found == 2, labels == 2)


def test_where_both_have_the_aorta_its_wall_stays():
  labels = np.zeros(FINE.shape, np.uint8)
  labels[0:20, 10:30, 10:26] = 1
  wide = coarse_aorta(((0, 20), (8, 32), (8, 28)))
  np.testing.assert_array_equal(fill(labels, wide), labels)


def test_a_missing_part_meets_the_part_that_is_there():
  labels = np.zeros(FINE.shape, np.uint8)
  labels[0:16, 10:30, 10:26] = 1
  wide = coarse_aorta(((0, 40), (10, 30), (10, 26)))
  found = fill(labels, wide)
  expected = np.zeros(FINE.shape, bool)
  expected[:, 10:30, 10:26] = True
  assert ((found == 1) != expected).sum() <= 8
  np.testing.assert_array_equal(found[:30] == 1, expected[:30])


def test_specks_are_not_filled_in():
  labels = np.zeros(FINE.shape, np.uint8)
  wide = coarse_aorta(((0, 8), (0, 8), (0, 8)))  # 512 mm3.
  assert not fill(labels, wide).any()


def test_a_stage_without_an_aorta_is_left_alone():
  labels = np.ones(FINE.shape, np.uint8)
  names = ("background", "coronaries")
  found = merge.fill_aorta(
    merge.Stage(labels, names, FINE),
    merge.Stage(coarse_aorta(((0, 20),) * 3), WIDE, COARSE),
  )
  assert found is labels


CHEST = ("background", "aorta", "left_ventricle", "lungs")


def misplaced(labels, chest):
  return merge.misplaced(
    merge.Stage(labels, FOUR, FINE), merge.Stage(chest, CHEST, FINE)
  )


@pytest.fixture
def chest():
  """A heart on the left, a lung on the right, an aorta between them."""
  made = np.zeros(FINE.shape, np.uint8)
  made[:, :, :10] = 2
  made[:, 10:20, 15:20] = 1
  made[:, :, 25:] = 3
  return made


def test_a_vessel_of_the_lung_is_no_coronary_artery(chest):
  labels = np.zeros(FINE.shape, np.uint8)
  labels[5:30, 4, 12] = 2  # On the heart, with a plaque.
  labels[30:34, 4, 12] = 3
  labels[5:30, 30, 21] = 2  # 11 mm away from it.
  labels[5, 8, 9:20] = 2  # Away from the heart, 5 mm at the median.
  labels[20, 36, 10:36] = 2  # Farther still, half of it in the lung.
  found = misplaced(labels, chest)
  dropped = np.isin(np.arange(40), (30, 36))
  expected = (labels > 0) & dropped[:, None]
  np.testing.assert_array_equal(found, expected)


def test_a_chamber_is_no_aorta(chest):
  labels = np.zeros(FINE.shape, np.uint8)
  labels[5:15, 12:18, 15:19] = 1
  labels[5:15, 30:38, 2:9] = 1  # In the left ventricle.
  found = misplaced(labels, chest)
  expected = (labels == 1) & (np.arange(40) < 10)
  np.testing.assert_array_equal(found, expected)


def test_without_a_heart_nothing_is_misplaced(chest):
  chest[chest == 2] = 0
  labels = np.full(FINE.shape, 2, np.uint8)
  assert not misplaced(labels, chest).any()
