import math

import numpy as np
import pytest
import scipy.ndimage

from cadjax.explanation import location, overlap
from data_prep.errors import UserError

SHAPE = (12, 14, 16)
SPACING = (0.5, 1.0, 2.0)


def box_mask(low=(2, 3, 4), high=(6, 9, 8)):
  mask = np.zeros(SHAPE, bool)
  mask[tuple(map(slice, low, high))] = True
  return mask


def heat_of(seed, shape=SHAPE):
  return scipy.ndimage.gaussian_filter(
    np.random.default_rng(seed).gamma(0.5, size=shape), 1
  )


def test_ious_of_masks_are_those_of_each_cut():
  heat, truth = heat_of(0), box_mask()
  found = overlap.mask_ious(heat, truth)
  for share, value in zip(overlap.SHARES, found, strict=True):
    made = heat > share * heat.max()
    expected = (made & truth).sum() / (made | truth).sum()
    assert value == pytest.approx(expected), share
  # Scale does not matter.
  np.testing.assert_allclose(found, overlap.mask_ious(37 * heat, truth))


def test_a_map_equal_to_the_mask_is_perfect():
  truth = box_mask()
  heat = 3.0 * truth
  assert (overlap.mask_ious(heat, truth) == 1).all()
  assert (overlap.box_ious(heat, truth) == 1).all()
  assert overlap.localise(heat, truth, 0.5) == {"hit": 1, "iou": 1}


def test_a_constant_map_has_the_masks_share():
  truth, heat = box_mask(), np.ones(SHAPE)
  np.testing.assert_allclose(overlap.mask_ious(heat, truth), truth.mean())
  np.testing.assert_allclose(overlap.box_ious(heat, truth), truth.mean())
  found = overlap.localise(heat, truth, 0.3)
  assert found == {
    "hit": pytest.approx(truth.mean()),
    "iou": pytest.approx(truth.mean()),
  }


def test_zero_maps_and_empty_masks_are_undefined():
  nothing = np.zeros(SHAPE)
  for heat, truth in ((nothing, box_mask()), (heat_of(0), nothing)):
    for measure in (overlap.mask_ious, overlap.box_ious):
      found = measure(heat, truth)
      assert found.shape == (len(overlap.SHARES),)
      assert np.isnan(found).all()
    found = overlap.localise(heat, truth, 0.5)
    assert all(math.isnan(value) for value in found.values())
  with pytest.raises(ValueError, match="do not match"):
    overlap.mask_ious(heat_of(0), box_mask()[1:])


def test_boxes_go_around_components():
  truth = box_mask((2, 3, 4), (6, 9, 8))
  heat = np.zeros(SHAPE)
  heat[2:6, 3:9, 4:6] = 1  # Half of it.
  heat[9, 2, 2:16] = 0.8  # Long, and less.
  first, last = overlap.box_ious(heat, truth, (0.5, 0.9))
  assert (first, last) == (0.5, 0.5)
  # The smaller one is the largest component where both are above.
  heat[9:11, 2:8, 2:16] = 0.8
  both = overlap.box_ious(heat, truth, (0.5, 0.9), largest=True)
  assert both.tolist() == [0, 0.5]
  # A diagonal of voxels is one component, with one box.
  heat = np.zeros(SHAPE)
  heat[range(2, 6), range(3, 7), range(4, 8)] = 1
  (found,) = overlap.box_ious(heat, truth, (0.5,))
  assert found == pytest.approx(4 / 6)


def test_a_box_may_meet_any_of_several_lesions():
  truth = box_mask((0, 0, 0), (2, 2, 2)) | box_mask((8, 8, 8), (12, 12, 12))
  heat = np.zeros(SHAPE)
  heat[8:12, 8:12, 8:11] = 1
  assert overlap.box_ious(heat, truth, (0.5,)).tolist() == [0.75]


def test_box_accuracy_takes_one_share_for_all_cases():
  ious = [[0.2, 0.6, 0.1], [0.8, 0.4, 0.1], [0.6, 0.6, 0.1]]
  found = overlap.max_box_accuracy(ious)
  assert found == {
    "max_box_0.3": 1,
    "max_box_0.5": pytest.approx(2 / 3),
    "max_box_0.7": pytest.approx(1 / 3),
    "max_box": pytest.approx(2 / 3),
  }
  # What has no map is missed.
  more = overlap.max_box_accuracy([*ious, [math.nan] * 3])
  assert more["max_box_0.3"] == 0.75
  assert math.isnan(overlap.max_box_accuracy([])["max_box"])


def test_mask_iou_takes_one_share_for_all_cases():
  ious = [[0.1, 0.3, 0.0], [0.5, 0.4, 0.0]]
  shares = (0.1, 0.2, 0.3)
  found = overlap.max_mask_iou(ious, shares)
  assert found == {"max_mask": pytest.approx(0.35), "max_mask_share": 0.2}
  more = overlap.max_mask_iou([*ious, [math.nan] * 3], shares)
  assert more["max_mask"] == pytest.approx(0.7 / 3)
  assert math.isnan(overlap.max_mask_iou([], shares)["max_mask"])


def test_the_share_is_tuned_on_other_cases():
  shares = overlap.TUNED
  truths = [box_mask(), box_mask((1, 1, 1), (5, 6, 7))]
  # At its own boundary a blurred lesion is at about half its height.
  heats = [scipy.ndimage.gaussian_filter(1.0 * x, 1) for x in truths]
  ious = [
    overlap.mask_ious(heat, truth, shares)
    for heat, truth in zip(heats, truths, strict=True)
  ]
  share = overlap.tune_share(ious)
  means = [
    np.mean(
      [
        overlap.iou(heat > s * heat.max(), truth)
        for heat, truth in zip(heats, truths, strict=True)
      ]
    )
    for s in shares
  ]
  assert share == shares[int(np.argmax(means))]
  assert 0.2 < share < 0.7
  # One case that is very good elsewhere does not outweigh the others.
  one = [[0.0, 0.5, 0.0], [0.0, 0.5, 0.0], [0.8, 0.0, 0.0]]
  assert overlap.tune_share(one, (0.2, 0.3, 0.4)) == 0.3
  missing = np.full(len(shares), math.nan)
  assert overlap.tune_share([*ious, missing]) == share
  with pytest.raises(UserError, match="no validation case"):
    overlap.tune_share([missing])


def test_localise_has_the_hit_of_the_pointing_game():
  for seed in range(5):
    heat, truth = heat_of(seed), box_mask()
    found = overlap.localise(heat, truth, 0.4)
    assert found["hit"] == location.pointing(heat, truth)["pointing"]
    assert found["iou"] == overlap.iou(heat > 0.4 * heat.max(), truth)


def test_size_and_elongation_are_in_mm():
  # 4 x 6 x 4 voxels of 0.5 x 1 x 2 mm: 2 x 6 x 8 mm.
  found = overlap.lesion_shape(box_mask(), SPACING)
  assert found["volume_mm3"] == 96
  assert found["elongation"] == pytest.approx(4)
  one = np.zeros(SHAPE, bool)
  one[3, 4, 5] = True
  assert overlap.lesion_shape(one, (1, 1, 1)) == {
    "volume_mm3": 1,
    "elongation": pytest.approx(1),
  }
  # A rod is long along a diagonal, too.
  rod = np.zeros((20, 20, 20), bool)
  rod[range(20), range(20), range(20)] = True
  found = overlap.lesion_shape(rod, (1, 1, 1))
  assert found["elongation"] == pytest.approx(19 * 3**0.5 + 1)
  empty = overlap.lesion_shape(np.zeros(SHAPE), SPACING)
  assert empty["volume_mm3"] == 0
  assert math.isnan(empty["elongation"])


def test_rows_know_their_third():
  rows = [{"size": float(x), "iou": x / 10} for x in (5, 1, 9, 2, 8, 4)]
  rows.append({"size": math.nan, "iou": 0.0})
  found = overlap.by_third(rows, "size")
  assert [row["size_third"] for row in found] == [
    *("middle", "low", "high", "low", "high", "middle"),
    "unknown",
  ]
  assert found[0]["iou"] == 0.5
  rows = [row | {"patient_id": str(i)} for i, row in enumerate(found[:6])]
  table = location.summarise(rows, ("size_third",), draws=100)
  means = {row["size_third"]: row["iou"].value for row in table}
  assert means == {
    "low": pytest.approx(0.15),
    "middle": pytest.approx(0.45),
    "high": pytest.approx(0.85),
  }
  assert overlap.by_third([], "size") == []


def test_a_reader_without_error_draws_the_truth():
  truth = box_mask()
  mask, centre = overlap.read_again(truth, SPACING, error_mm=0)
  np.testing.assert_array_equal(mask, truth)
  assert truth[tuple(centre)]
  found = overlap.human(truth, SPACING, error_mm=0)
  assert found == {"hit": 1, "iou": 1}


def test_readers_err_as_much_as_is_stated():
  truth = np.zeros((60, 60, 60), bool)
  truth[26:34, 26:34, 26:34] = True
  spacing, centre = (0.5, 1.0, 0.8), np.array([29.5] * 3)
  drawn = [
    overlap.read_again(truth, spacing, error_mm=1.5, seed=seed)
    for seed in range(200)
  ]
  moved = np.array(
    [(np.argwhere(mask).mean(0) - centre) * spacing for mask, _ in drawn]
  )
  np.testing.assert_allclose(moved.mean(0), 0, atol=0.4)
  np.testing.assert_allclose(moved.std(0), 1.5, rtol=0.25)
  # The border goes out and in: the width along H, 8 mm, by twice the error.
  widths = [np.ptp(np.nonzero(mask)[1]) + 1 for mask, _ in drawn]
  assert np.std(widths) == pytest.approx(3, rel=0.3)
  for mask, at in drawn:
    assert mask[tuple(at)]


def test_more_error_is_less_agreement_and_small_lesions_suffer_more():
  small = box_mask((4, 4, 4), (6, 6, 6))
  large = box_mask((2, 2, 2), (10, 12, 14))
  scores = {
    (name, error): overlap.human(mask, (1, 1, 1), error_mm=error)
    for name, mask in (("small", small), ("large", large))
    for error in (0.5, 2)
  }
  for name in ("small", "large"):
    assert scores[name, 0.5]["iou"] > scores[name, 2]["iou"]
  assert scores["small", 2]["hit"] < scores["large", 2]["hit"]
  assert scores["small", 0.5]["iou"] < scores["large", 0.5]["iou"]


def test_a_reader_draws_something_even_at_the_edge():
  corner = np.zeros(SHAPE, bool)
  corner[0, 0, 0] = True
  for seed in range(30):
    mask, centre = overlap.read_again(corner, SPACING, error_mm=3, seed=seed)
    assert mask.any()
    assert mask.shape == SHAPE
    assert mask[tuple(centre)]
  with pytest.raises(UserError, match="no lesion"):
    overlap.read_again(np.zeros(SHAPE), SPACING, error_mm=1)
  none = overlap.human(np.zeros(SHAPE), SPACING, error_mm=1)
  assert math.isnan(none["hit"])
