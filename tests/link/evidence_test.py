import dataclasses

import numpy as np
import pytest
import tubes
from scipy import ndimage

from cadjax.link import evidence
from cadjax.vessels.find import find_vessels

SHAPE, SPACING = (10, 14, 18), (0.5, 1.0, 2.0)
VOXEL_MM3 = 1.0  # The product, as these axes are at right angles.


@pytest.fixture
def heat():
  return np.random.default_rng(0).random(SHAPE)


@pytest.fixture
def labels():
  return np.random.default_rng(1).integers(0, 5, SHAPE)


NAMES = {1: "aorta", 2: "LAD", 3: "RCA"}


def test_shares_of_a_label_map_sum_to_one_and_are_right(heat, labels):
  shares = evidence.share_of_evidence(heat, labels, VOXEL_MM3, NAMES)
  assert list(shares) == ["aorta", "LAD", "RCA", "elsewhere"]
  assert sum(s.energy for s in shares.values()) == pytest.approx(1)
  assert sum(s.volume for s in shares.values()) == pytest.approx(1)
  lad = shares["LAD"]
  inside = labels == 2
  assert lad.energy == pytest.approx(heat[inside].sum() / heat.sum())
  assert lad.volume == pytest.approx(inside.mean())
  assert lad.lift == pytest.approx(heat[inside].mean() / heat.mean())
  assert lad.volume_ml == pytest.approx(inside.sum() * 1.0 / 1000)
  rest = ~np.isin(labels, (1, 2, 3))
  assert shares["elsewhere"].energy == pytest.approx(
    heat[rest].sum() / heat.sum()
  )


def test_masks_give_what_labels_give(heat, labels):
  masks = {name: labels == number for number, name in NAMES.items()}
  one = evidence.share_of_evidence(heat, masks, VOXEL_MM3)
  other = evidence.share_of_evidence(heat, labels, VOXEL_MM3, NAMES)
  assert list(one) == list(other)
  for name in one:
    np.testing.assert_allclose(
      dataclasses.astuple(one[name]), dataclasses.astuple(other[name])
    )


def test_labels_of_one_name_are_one_region(heat, labels):
  merged = evidence.share_of_evidence(
    heat, labels, VOXEL_MM3, {2: "coronary", 3: "coronary"}
  )
  assert list(merged) == ["coronary", "elsewhere"]
  inside = (labels == 2) | (labels == 3)
  assert merged["coronary"].energy == pytest.approx(
    heat[inside].sum() / heat.sum()
  )


def test_elsewhere_is_what_no_overlapping_mask_holds(heat, labels):
  masks = {"a": labels < 2, "b": labels < 3}
  shares = evidence.share_of_evidence(heat, masks, VOXEL_MM3)
  assert shares["elsewhere"].energy == pytest.approx(
    heat[labels >= 3].sum() / heat.sum()
  )
  assert sum(s.energy for s in shares.values()) > 1.1


def test_a_flat_map_has_lift_one(labels):
  shares = evidence.share_of_evidence(np.ones(SHAPE), labels, VOXEL_MM3, NAMES)
  for share in shares.values():
    assert share.lift == pytest.approx(1)


def test_an_empty_map_is_nan_and_so_is_the_lift_of_nothing(heat, labels):
  shares = evidence.share_of_evidence(np.zeros(SHAPE), labels, VOXEL_MM3, NAMES)
  for share in shares.values():
    assert np.isnan(share.energy)
    assert np.isnan(share.lift)
    assert share.volume > 0
  none = evidence.share_of_evidence(heat, labels, VOXEL_MM3, {7: "none"})[
    "none"
  ]
  assert none.energy == 0
  assert np.isnan(none.lift)


def test_voxels_that_are_not_covered_do_not_count(heat, labels):
  half = heat.copy()
  half[:, :, 9:] = np.nan
  one = evidence.share_of_evidence(half, labels, VOXEL_MM3, NAMES)
  other = evidence.share_of_evidence(
    heat[..., :9], labels[..., :9], VOXEL_MM3, NAMES
  )
  for name in one:
    np.testing.assert_allclose(
      dataclasses.astuple(one[name]), dataclasses.astuple(other[name])
    )


def test_bad_input_is_refused(heat, labels):
  with pytest.raises(ValueError, match="negative"):
    evidence.share_of_evidence(-heat, labels, VOXEL_MM3, NAMES)
  with pytest.raises(ValueError, match="names"):
    evidence.share_of_evidence(heat, labels, VOXEL_MM3)
  with pytest.raises(ValueError, match="label map"):
    evidence.share_of_evidence(heat, labels[1:], VOXEL_MM3, NAMES)
  with pytest.raises(ValueError, match="LAD"):
    evidence.share_of_evidence(heat, {"LAD": labels[1:]}, VOXEL_MM3)


def test_dilate_takes_the_nearest_label_within_reach():
  labels = np.zeros(SHAPE, np.uint16)
  labels[4, 5, 6] = 1
  labels[5, 9, 8] = 2
  grown = evidence.dilate(labels, SPACING, 2.1)
  away = [
    ndimage.distance_transform_edt(labels != k, sampling=SPACING)
    for k in (1, 2)
  ]
  near = np.minimum(*away) <= 2.1
  np.testing.assert_array_equal(grown > 0, near)
  sure = near & (np.abs(away[0] - away[1]) > 1e-6)
  np.testing.assert_array_equal(
    grown[sure], np.where(away[0] < away[1], 1, 2)[sure]
  )
  np.testing.assert_array_equal(evidence.dilate(labels, SPACING, 0), labels)
  assert not evidence.dilate(np.zeros_like(labels), SPACING, 5).any()


def test_every_voxel_of_a_vessel_belongs_to_its_nearest_branch():
  shape, affine = tubes.grid("cubic", (-14, -10, -20), (14, 10, 14))
  root = tubes.ball((0, 0, 12), 5, shape, affine)
  mask = tubes.tube([(0, 0, 8), (0, 0, -4)], 1.8, shape, affine)
  mask |= tubes.tube([(0, 0, -4), (9, 2, -16)], 1.4, shape, affine)
  mask |= tubes.tube([(0, 0, -4), (-9, 2, -16)], 1.4, shape, affine)
  island = tubes.ball((-10, -6, 10), 1, shape, affine)
  tree = find_vessels(mask | island, root, affine)
  labels, names = evidence.vessel_regions(tree, mask | island, root)
  np.testing.assert_array_equal(labels > 0, mask | island | root)
  number = {name: k for k, name in names.items()}
  assert (labels[root & ~mask] == number["aorta"]).all()
  assert (labels[island] == number[evidence.OFF_VESSEL]).all()
  points = [b.course_mm[b.free :] for b in tree.branches]
  mm = tubes.centres(shape, affine)[mask]
  away = np.stack([tubes.cKDTree(p).query(mm)[0] for p in points])
  expected = np.array([number[n] for n in tree.names])[away.argmin(0)]
  np.testing.assert_array_equal(labels[mask], expected)
  heat = np.random.default_rng(0).random(shape)
  shares = evidence.share_of_evidence(heat, labels, 0.6**3, names)
  assert sum(s.energy for s in shares.values()) == pytest.approx(1)
  assert shares["elsewhere"].volume == pytest.approx((labels == 0).mean())
