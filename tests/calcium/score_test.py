"""Scores of drawn calcium, by hand."""

import dataclasses
import math

import numpy as np
import pytest

from cadjax.calcium import score as calcium

SPACING = (3.0, 0.5, 0.5)
EMPTY = (5, 20, 30)


def drawn(*boxes, shape=EMPTY, background=40):
  """Returns HU with boxes ((slices, rows, columns), HU) in them."""
  hu = np.full(shape, background, np.int16)
  for box, value in boxes:
    hu[box] = value
  return hu


def square(value, *, first=2, count=1, size=4, row=5, column=5):
  """A square of `size` pixels in `count` slices."""
  return (
    slice(first, first + count),
    slice(row, row + size),
    slice(column, column + size),
  ), value


def total(hu, spacing_mm=SPACING, regions=None, **options):
  return calcium.score(hu, spacing_mm, regions, **options).total


def test_nothing_scores_nothing():
  found = calcium.score(drawn(), SPACING, calibration=0.8)
  assert found.total == calcium.Amount(0.0, 0.0, 0.0, 0)
  assert found.lesions == ()
  assert not found.labels.any()
  assert calcium.category(found.total.agatston) == "0: no calcium found"


def test_a_cuboid_by_hand():
  # 16 pixels of 0.25 mm2 are 4 mm2; weight 3; three slices.
  found = calcium.score(
    drawn(square(350, first=1, count=3)), SPACING, calibration=0.8
  )
  assert found.total.agatston == pytest.approx(4 * 3 * 3)
  assert found.total.volume_mm3 == pytest.approx(4 * 9)
  assert found.total.mass_mg == pytest.approx(0.8 * 350 * 36 / 1000)
  (lesion,) = found.lesions
  assert lesion.center == (2.0, 6.5, 6.5)
  assert (lesion.peak_hu, lesion.mean_hu) == (350, 350)
  assert (found.labels == 1).sum() == 48


@pytest.mark.parametrize(
  ("peak", "weight"),
  [
    (129, 0),
    (130, 1),
    (199, 1),
    (199.9, 1),
    (200, 2),
    (299, 2),
    (300, 3),
    (399, 3),
    (400, 4),
    (3000, 4),
  ],
)
def test_the_weight_of_a_peak(peak, weight):
  hu = drawn(square(130 if weight else 40)).astype(np.float32)
  hu[2, 6, 6] = peak
  assert total(hu).agatston == pytest.approx(4 * weight)


def test_the_weight_is_of_the_slice_and_not_of_the_lesion():
  hu = drawn(square(450, first=1), square(150, first=2))
  found = calcium.score(hu, SPACING)
  assert found.total.agatston == pytest.approx(4 * 4 + 4 * 1)
  assert found.total.lesions == 1


@pytest.mark.parametrize(
  ("pixels", "spacing_mm", "counts"),
  [
    (3, SPACING, False),
    (4, SPACING, True),  # 1 mm2 exactly.
    (1, (3.0, 1.0, 1.0), True),
    (1, (3.0, 0.99, 1.0), False),
    (10, (3.0, 0.1, 1.0), True),  # 10 x 0.1 is not 1 in binary.
    (2, (3.0, 0.4, 1.3), True),  # Anisotropic: 1.04 mm2.
    (2, (3.0, 0.4, 1.2), False),
  ],
)
def test_the_least_area(pixels, spacing_mm, counts):
  hu = drawn(((2, 5, slice(5, 5 + pixels)), 500))
  found = total(hu, spacing_mm)
  area_mm2 = pixels * spacing_mm[1] * spacing_mm[2]
  assert found.agatston == pytest.approx(4 * area_mm2 * counts)
  assert found.volume_mm3 == pytest.approx(3 * area_mm2 * counts)


def test_the_area_is_of_a_component_and_not_of_the_slice():
  specks = [((2, row, slice(5, 8)), 500) for row in (3, 6, 9)]
  assert total(drawn(*specks)).agatston == 0


def test_the_area_is_of_the_slice_and_not_of_the_lesion():
  # Three pixels in each of three slices: 2.25 mm2 together.
  assert total(drawn(((slice(1, 4), 5, slice(5, 8)), 500))).agatston == 0


def test_corners_connect():
  first, second = ((2, 5, slice(5, 7)), 150), ((2, 6, slice(7, 9)), 350)
  # Each has 0.5 mm2; together 1 mm2 with one peak.
  assert total(drawn(first)).agatston == 0
  assert total(drawn(first, second)).agatston == pytest.approx(3)
  apart = ((2, 6, slice(8, 10)), 350)
  assert total(drawn(first, apart)).agatston == 0


def test_lesions_connect_from_slice_to_slice_by_corners():
  hu = drawn(square(250), square(150, first=3, row=9, column=9))
  assert total(hu).lesions == 1
  hu = drawn(square(250), square(150, first=3, row=10, column=9))
  found = calcium.score(hu, SPACING)
  assert [x.number for x in found.lesions] == [1, 2]
  assert [x.agatston for x in found.lesions] == pytest.approx([8, 4])
  assert found.labels[2, 5, 5] == 1
  assert found.labels[3, 10, 9] == 2


def test_regions_share_the_total():
  hu = drawn(square(250), square(450, row=12, column=12))
  regions = np.zeros(EMPTY, np.uint8)
  regions[:, :10], regions[:, 10:] = 4, 7
  regions[0] = 9
  found = calcium.score(hu, SPACING, regions, calibration=1.0)
  assert {k: v.agatston for k, v in found.regions.items()} == pytest.approx(
    {4: 8.0, 7: 16.0, 9: 0.0}
  )
  assert [x.region for x in found.lesions] == [7, 4]
  assert found.total.mass_mg == pytest.approx(
    found.regions[4].mass_mg + found.regions[7].mass_mg
  )


def test_a_lesion_in_two_regions_is_of_that_with_more_of_it():
  hu = drawn(square(250, size=5))
  regions = np.ones(EMPTY, np.uint8)
  regions[..., 7:] = 2  # Three columns of five.
  found = calcium.score(hu, SPACING, regions)
  assert found.total.agatston == total(hu).agatston
  assert found.regions[2].agatston == found.total.agatston
  assert found.regions[1].lesions == 0


def test_outside_the_regions_nothing_counts():
  regions = np.zeros(EMPTY, np.uint8)
  assert total(drawn(square(450)), regions=regions).agatston == 0
  regions[2, 5:7, 5:9] = 1  # Half of the square.
  assert total(drawn(square(450)), regions=regions).agatston == (
    pytest.approx(2 * 4)
  )


def test_without_a_calibration_there_is_no_mass():
  found = calcium.score(drawn(square(450)), SPACING)
  assert math.isnan(found.total.mass_mg)
  assert math.isnan(found.lesions[0].mass_mg)


@pytest.fixture(scope="module")
def scattered():
  rng = np.random.default_rng(3)
  hu = rng.normal(40, 15, (8, 40, 50))
  for _ in range(12):
    d, h, w = rng.integers(0, (6, 34, 44))
    hu[d : d + 2, h : h + 5, w : w + 4] += rng.uniform(60, 600)
  return hu.astype(np.int16)


@pytest.mark.parametrize("change", ["flip", "turn", "swap", "move", "pad"])
def test_the_score_does_not_depend_on_where_it_lies(scattered, change):
  moved = {
    "flip": lambda x: x[::-1, ::-1, ::-1],
    "turn": lambda x: np.rot90(x, axes=(1, 2)),
    "swap": lambda x: x.transpose(0, 2, 1),
    "move": lambda x: np.roll(np.pad(x, 9, constant_values=40), 4, (0, 1, 2)),
    "pad": lambda x: np.pad(x, 3, constant_values=-1024),
  }[change](scattered)
  before = calcium.score(scattered, SPACING, calibration=0.8)
  after = calcium.score(moved, SPACING, calibration=0.8)
  assert before.total.agatston > 50
  assert dataclasses.astuple(after.total) == pytest.approx(
    dataclasses.astuple(before.total)
  )


def test_more_calcium_never_scores_less(scattered):
  scores = [total(scattered + more).agatston for more in range(0, 60, 10)]
  assert scores == sorted(scores)
  assert scores[0] < scores[-1]


def test_a_ball_and_its_volume():
  # 6 mm wide, of 500 HU among 0, on fine pixels.
  spacing = (3.0, 0.2, 0.2)
  fine = np.indices((30, 60, 60)).transpose(1, 2, 3, 0) - [14.5, 29.5, 29.5]
  ball = np.linalg.norm(fine * [0.3, 0.2, 0.2], axis=-1) <= 3
  hu = np.where(ball, 500.0, 0.0)
  slices, thickness, _ = calcium.to_slices(hu, 0.3)
  assert thickness == 3.0
  assert len(slices) == 3
  # A voxel counts where 26 % of its 3 mm is ball: up to a radius of 2.97 mm in
  # the middle slice, of 1.95 mm in the two others. The rest of those two, 3.86
  # mm3 each, is lost to the mass.
  found = calcium.score(slices, spacing, calibration=1000 / 500).total
  volume_mm3 = 3 * math.pi * (2.974**2 + 2 * 1.950**2)
  assert found.volume_mm3 == pytest.approx(volume_mm3, rel=0.01)
  # The peak is 500 HU in the middle slice and 250 in the others.
  agatston = math.pi * (4 * 2.974**2 + 2 * 2 * 1.950**2)
  assert found.agatston == pytest.approx(agatston, rel=0.01)
  ball_mm3 = math.pi / 6 * 6**3
  assert found.mass_mg == pytest.approx(ball_mm3 - 2 * 3.86, rel=0.01)


@pytest.mark.parametrize("thickness_mm", [0.5, 1.0, 1.5, 3.0, 5.0, 6.0])
def test_a_cylinder_scores_the_same_in_slices_of_any_thickness(thickness_mm):
  # 30 mm long, in the middle of 90 mm: multiples of every thickness.
  middle_mm = np.arange(0, 90, thickness_mm) + thickness_mm / 2
  hu = drawn(shape=(len(middle_mm), 20, 30))
  hu[(middle_mm > 30) & (middle_mm < 60), 5:9, 5:9] = 350
  slices, thickness, first = calcium.to_slices(hu, thickness_mm)
  assert thickness == 3.0
  assert first == pytest.approx(1.5 / thickness_mm - 0.5)
  assert len(slices) == 30
  assert total(slices).agatston == pytest.approx(10 * 4 * 3)


def test_thin_slices_are_averaged():
  hu = drawn(shape=(6, 20, 30), background=0)
  hu[1, 5:9, 5:9] = 390  # A third of the first 3 mm: 130 HU.
  hu[4, 5:9, 5:9] = 387  # And less than that.
  slices, _, _ = calcium.to_slices(hu, 1.0)
  assert slices[0, 5, 5] == pytest.approx(130, abs=1e-3)
  assert total(slices).agatston == pytest.approx(4)


@pytest.mark.parametrize("thickness_mm", np.arange(0.3, 2.9, 0.1))
def test_averaging_keeps_130_hu(thickness_mm):
  hu = np.full((40, 2, 2), 130, np.int16)
  slices, _, _ = calcium.to_slices(hu, thickness_mm)
  assert (slices == 130).all()


@pytest.mark.parametrize(
  ("depth", "thickness_mm"), [(1, 0.5), (7, 0.625), (40, 2.5), (9, 4.9)]
)
def test_slices_keep_what_is_constant_and_turn_with_the_scan(
  depth, thickness_mm
):
  rng = np.random.default_rng(depth)
  hu = rng.normal(size=(depth, 4, 5)) + 100
  slices, _, first = calcium.to_slices(hu, thickness_mm)
  turned, _, other = calcium.to_slices(hu[::-1], thickness_mm)
  np.testing.assert_allclose(turned, slices[::-1], rtol=1e-5)
  assert first == pytest.approx(other)
  # The slices have their middle in the scan's.
  last = first + (len(slices) - 1) * 3 / thickness_mm
  assert first + last == pytest.approx(depth - 1)
  constant, _, _ = calcium.to_slices(np.full_like(hu, 77), thickness_mm)
  np.testing.assert_allclose(constant, 77, rtol=1e-6)


def test_slices_of_nearly_3_mm_stay_as_they_are(scattered):
  slices, thickness, first = calcium.to_slices(scattered, 2.97)
  np.testing.assert_array_equal(slices, scattered)
  assert (thickness, first) == (2.97, 0.0)
  found = total(slices, (thickness, 0.5, 0.5)).agatston
  assert found == pytest.approx(0.99 * total(scattered).agatston)


def test_labels_of_thin_slices():
  labels = np.zeros((6, 1, 4), np.uint16)
  labels[:3, 0, 0] = 5, 5, 9
  labels[:3, 0, 1] = 0, 0, 300  # A third is enough against background.
  labels[3:, 0, 2] = 9, 5, 9
  slices, _, _ = calcium.to_slices(labels, 1.0, labels=True)
  assert slices.dtype == np.uint16
  assert slices[:, 0].tolist() == [[5, 300, 0, 0], [0, 0, 9, 0]]


def test_a_mask_of_the_lesion_loses_nothing():
  hu = drawn(shape=(12, 20, 30))
  hu[3:8, 5:9, 5:9] = 600
  slices, _, _ = calcium.to_slices(hu, 1.0)
  mask, _, _ = calcium.to_slices((hu > 130).astype(np.uint8), 1.0, labels=True)
  assert total(slices, regions=mask).agatston == total(slices).agatston > 0


@pytest.mark.parametrize(
  ("agatston", "name"),
  [
    (0, "0: no"),
    (0.3, "1-10"),
    (1, "1-10"),
    (10.4, "1-10"),
    (10.6, "11-100"),
    (100, "11-100"),
    (101, "101-400"),
    (400, "101-400"),
    (400.6, "above 400"),
    (1e5, "above 400"),
  ],
)
def test_the_category_of_a_score(agatston, name):
  assert calcium.category(agatston).startswith(name)


def test_calibration_by_hand():
  # 200 mg/cm3 at 282 HU, water at 2 HU.
  assert calcium.calibrate(200, 282, 2) == pytest.approx(200 / 280)
  with pytest.raises(ValueError, match="water of 30 HU"):
    calcium.calibrate(200, 30, 30)


def test_what_does_not_fit_is_refused():
  with pytest.raises(ValueError, match=r"slices of 1\.5 mm"):
    calcium.score(drawn(), (1.5, 0.5, 0.5))
  with pytest.raises(ValueError, match="regions"):
    calcium.score(drawn(), SPACING, np.ones((5, 20, 31), np.uint8))
