"""Features of plaques of high risk, of volumes whose answer is known."""

import numpy as np
import pytest

from cadjax.link import high_risk

MM = (0.5, 0.5, 0.5)
NAN = float("nan")


def box(*edges):
  """True from edges[0] to edges[1] - 1 along every axis of 24 voxels."""
  mask = np.zeros((24,) * 3, bool)
  mask[tuple(slice(*edges) for _ in range(3))] = True
  return mask


NOTHING = box(0, 0)
SOFT = box(4, 14)
FATTY = np.full((24,) * 3, 20.0)


def test_soft_plaque_of_low_attenuation():
  def found(hu):
    return high_risk.features(SOFT, NOTHING, hu, MM, NAN)

  assert found(FATTY) == (high_risk.LOW_ATTENUATION,)
  assert found(np.full((24,) * 3, 60.0)) == ()
  # What lies around it is not averaged in, nor does it count.
  assert found(np.where(SOFT, 20.0, 800.0)) == (high_risk.LOW_ATTENUATION,)
  assert found(np.where(SOFT, 60.0, -900.0)) == ()
  assert found(None) == ()


def test_noise_in_single_voxels_is_no_low_attenuation():
  hu = np.full((24,) * 3, 60.0)
  # An eighth of the voxels, no two of them neighbours.
  hu[4:14:2, 4:14:2, 4:14:2] = 0.0
  assert (hu[SOFT] < high_risk.LOW_HU).mean() > 0.1
  assert high_risk.features(SOFT, NOTHING, hu, MM, NAN) == ()
  # A core of 6 x 6 x 6 of 1000 voxels: a fifth.
  core = np.where(box(6, 12), 0.0, 60.0)
  found = high_risk.features(SOFT, NOTHING, core, MM, NAN)
  assert found == (high_risk.LOW_ATTENUATION,)
  # One of 3 x 3 x 3 is a few per cent.
  core = np.where(box(6, 9), 0.0, 60.0)
  assert high_risk.features(SOFT, NOTHING, core, MM, NAN) == ()


@pytest.mark.parametrize(
  ("index", "expected"),
  [(1.09, ()), (1.1, (high_risk.REMODELLING,)), (NAN, ())],
)
def test_remodelling_begins_at_a_tenth_more(index, expected):
  assert high_risk.features(SOFT, NOTHING, None, MM, index) == expected


@pytest.mark.parametrize(
  ("calcified", "spotty"),
  [
    (box(14, 19), True),  # 2.5 mm.
    (box(14, 20), False),  # 3.0 mm, along every axis.
    (box(14, 16) | box(18, 20), True),  # Two of 1 mm, apart from each other.
    (box(14, 16) | box(16, 20), False),  # They touch at a corner: one of 3 mm.
    (NOTHING, False),
  ],
)
def test_spots_are_shorter_than_3_mm(calcified, spotty):
  found = high_risk.features(SOFT, calcified, None, MM, NAN)
  assert found == ((high_risk.SPOTTY,) if spotty else ())


def test_a_spot_is_long_along_one_axis_of_a_coarse_grid():
  rod = NOTHING.copy()
  rod[15:17, 15, 15] = True
  found = high_risk.features(SOFT, rod, None, (1.0, 0.5, 0.5), NAN)
  assert found == (high_risk.SPOTTY,)
  assert high_risk.features(SOFT, rod, None, (1.5, 0.5, 0.5), NAN) == ()


def test_calcium_alone_is_not_spotty():
  assert high_risk.features(NOTHING, box(14, 16), None, MM, NAN) == ()


def test_all_features_in_their_order():
  found = high_risk.features(SOFT, box(14, 16), FATTY, MM, 1.3)
  assert found == high_risk.FEATURES
