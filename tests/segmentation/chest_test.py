"""What a segmented chest says, on boxes whose millilitres are known."""

import math

import numpy as np
import pytest

from cadjax.core import lookup
from cadjax.data import scans
from cadjax.segmentation import chest
from data_prep.volume import Grid, Volume

NAMES = (
  *("background", "aorta", "left_ventricle", "right_ventricle"),
  *("left_atrium", "right_atrium", "myocardium", "great_vessels", "lungs"),
  "bone",
)
SHAPE, SPACING = (40, 50, 60), (4.0, 5.0, 2.5)  # 0.05 mL each.


def labels_of(*boxes):
  """Labels of (name, slices) in turn; the rest is background."""
  labels = np.zeros(SHAPE, np.uint8)
  for name, box in boxes:
    labels[box] = NAMES.index(name)
  return labels


def seen(labels, hu_of=None):
  """A volume with a HU for each class, 40 elsewhere."""
  hu = np.full(SHAPE, 40, np.int16)
  for name, value in (hu_of or {}).items():
    hu[labels == NAMES.index(name)] = value
  return Volume(hu, Grid(SHAPE, SPACING, (5.0, -3.0, 70.0), np.eye(3)[:, ::-1]))


HEART = ("left_ventricle", np.s_[10:26, 15:30, 20:36])  # 192 mL.
MUSCLE = ("myocardium", np.s_[10:26, 15:30, 36:40])
AORTA = ("aorta", np.s_[0:36, 35:41, 30:40])
LUNGS = ("lungs", np.s_[5:35, 10:40, 1:14])


def test_the_heart_is_its_chambers_and_muscle():
  labels = labels_of(HEART, MUSCLE, AORTA, LUNGS)
  found = chest.describe(seen(labels), labels, NAMES)
  there = np.argwhere(found.heart.hu)
  np.testing.assert_array_equal(there.min(0), (10, 15, 20))
  np.testing.assert_array_equal(there.max(0), (25, 29, 39))
  assert found.concerns == ()
  assert found.warnings == ()


def test_a_stray_piece_of_heart_does_not_move_the_box():
  labels = labels_of(HEART, AORTA, ("right_atrium", np.s_[0:3, 0:3, 0:3]))
  found = chest.describe(seen(labels), labels, NAMES)
  np.testing.assert_array_equal(np.argwhere(found.heart.hu).min(0), HEART_LOW)


HEART_LOW = (10, 15, 20)


def test_the_scan_gets_heart_and_blood():
  labels = labels_of(HEART, AORTA, LUNGS)
  volume = seen(labels, {"aorta": 400, "left_ventricle": 300})
  found = chest.describe(volume, labels, NAMES)
  scan = found.place(scans.Scan("case", "case.nii", volume))
  assert scan.heart_mask is found.heart
  assert scan.heart_origin == "from the wide segmenter's heart"
  # 75 % of the blood is below; the aorta has 36 x 6 x 10 of 6000 voxels.
  assert scan.measured == {"heart_hu": 400.0}
  own = Volume(np.ones(SHAPE, np.uint8), volume.grid)
  given = scans.Scan("case", "case.nii", volume, own)
  assert found.place(given).heart_mask is own
  assert found.place(given).heart_origin == "from the heart mask"


def test_blood_is_not_measured_in_specks():
  labels = labels_of(("aorta", np.s_[0:2, 0:2, 0:2]))
  found = chest.describe(seen(labels), labels, NAMES)
  assert math.isnan(found.blood_hu)
  scan = scans.Scan("case", "case.nii", seen(labels))
  assert found.place(scan).measured == {}


@pytest.mark.parametrize(
  ("boxes", "words"),
  [
    ((LUNGS, AORTA), "no heart was found (only 0 mL of one)"),
    ((LUNGS, ("left_ventricle", np.s_[0:10, 0:10, 0:10])), "only 50 mL"),
    ((AORTA,), "neither heart nor lungs were found: this may be the abdomen"),
    ((), "neither heart nor lungs"),
    ((HEART, LUNGS), "no aorta was found: the field may be too small for it"),
  ],
)
def test_what_is_missing_is_said(boxes, words):
  labels = labels_of(*boxes)
  found = chest.describe(seen(labels), labels, NAMES)
  (said,) = found.concerns
  assert words in said
  assert (found.heart is None) == (HEART not in boxes)


@pytest.mark.parametrize(
  ("aorta", "ends"),
  [
    (np.s_[0:40, 35:41, 30:40], "cut off at the top,"),
    (np.s_[5:40, 35:50, 30:40], "cut off at the top and the back,"),
    (np.s_[5:30, 0:9, 0:9], "cut off at the front and the right,"),
    (np.s_[5:30, 35:41, 50:60], "cut off at the left,"),
  ],
)
def test_a_field_too_small_for_the_aorta_is_said(aorta, ends):
  labels = labels_of(HEART, LUNGS, ("aorta", aorta))
  found = chest.describe(seen(labels), labels, NAMES)
  (said,) = found.warnings
  assert said.startswith("The field is too small for the whole aorta")
  assert ends in said
  assert found.concerns == ()


def test_below_every_chest_the_aorta_goes_on():
  labels = labels_of(HEART, LUNGS, AORTA)
  assert (labels[0] == 1).any()
  assert chest.describe(seen(labels), labels, NAMES).warnings == ()


def test_a_segmenter_without_a_heart_is_none_of_the_chest():
  chest.check_names(NAMES, "--wide=w")
  with pytest.raises(lookup.ConfigError, match="--wide=w finds aorta, lumen;"):
    chest.check_names(("background", "aorta", "lumen"), "--wide=w")
