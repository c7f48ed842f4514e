"""tissues: one list, whose first five are the classes of vessels."""

import numpy as np
import pytest

from data_prep import geometry, phantom
from data_prep.tissues import CLASS_NAMES, VESSEL_CLASSES, Tissue


def test_values_are_the_indices_of_the_names():
  assert [CLASS_NAMES[tissue] for tissue in Tissue] == list(CLASS_NAMES)
  assert tuple(phantom.CLASSES.values()) == (0, 1, 2, 3, 4)
  assert VESSEL_CLASSES == (
    "background",
    "aorta",
    "lumen",
    "stable_plaque",
    "unstable_plaque",
  )


def test_codes_are_numbers_and_no_two_tissues_share_one():
  codes = [tissue.code for tissue in Tissue if tissue.code]
  assert all(code.isdigit() for code in codes)
  assert len(set(codes)) == len(codes) > 20


@pytest.fixture(scope="module")
def drawn():
  grid = geometry.GridSpec("spacing", spacing_mm=(3, 3, 3))
  wide = {"fov_mm": 340, "length_mm": 260, "noise_hu": 1.0}
  return phantom.make_phantom(4, label=1, grid=grid, scanner=wide)


def test_every_voxel_of_the_body_has_a_tissue(drawn):
  # Voxels cut in half by the skin aside.
  assert not (drawn.volume.hu[drawn.tissues == 0] > -400).any()
  np.testing.assert_array_equal(
    drawn.mask, np.where(drawn.tissues <= 4, drawn.tissues, 0)
  )


@pytest.mark.parametrize(
  ("tissue", "low", "high"),
  [
    (Tissue.LUNG, -950, -700),
    (Tissue.FAT, -130, -60),
    (Tissue.MUSCLE, 20, 80),
    (Tissue.LIVER, 40, 130),
    (Tissue.LEFT_VENTRICLE, 250, 600),
    (Tissue.AORTA, 250, 600),
    (Tissue.MYOCARDIUM, 60, 180),
    (Tissue.AIRWAYS, -1024, -800),
  ],
)
def test_tissues_lie_where_their_hu_is(drawn, tissue, low, high):
  assert low < np.median(drawn.volume.hu[drawn.tissues == tissue]) < high
