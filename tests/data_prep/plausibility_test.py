"""What is unusual about a scan, in words."""

import math

import numpy as np
import pytest

from data_prep.plausibility import FEATURES, concerns, describe
from data_prep.volume import Grid, Volume, read_mask, read_volume

# HU -> voxels of 10000: a scan whose shares are known.
SHARES = {-1000: 1000, -850: 2000, -100: 1500, 50: 3500, 400: 1500, 900: 500}


def make_volume(hu, spacing=(2.0, 1.0, 1.5)):
  return Volume(hu, Grid(hu.shape, spacing, (0, 0, 0), np.eye(3)[:, ::-1]))


def usual():
  """Features of an unremarkable CT angiogram."""
  return dict.fromkeys(FEATURES, 0.0) | {
    "hu_min": -1010, "hu_p01": -990, "hu_p50": -50, "hu_p99": 600,
    "fraction_lung": 0.3, "heart_hu": 400, "body_length_mm": 140,
  }  # fmt: skip


def real(real_ct):
  return read_volume(real_ct / "ct.nii.gz")


def test_shares_and_percentiles_are_those_of_the_voxels():
  hu = np.repeat(list(SHARES), list(SHARES.values())).astype(np.int16)
  np.random.default_rng(0).shuffle(hu)
  hu = np.concatenate([hu, np.full(2000, -1024, np.int16)])
  features = describe(make_volume(hu.reshape(20, 20, 30)))
  assert set(features) == set(FEATURES)
  expected = {
    "air": 0.1, "lung": 0.2, "fat": 0.15, "soft": 0.35, "bright": 0.15,
    "dense": 0.05,
  }  # fmt: skip
  for name, share in expected.items():
    assert features[f"fraction_{name}"] == pytest.approx(share)
  assert features["hu_min"] == features["hu_p01"] == -1000
  assert features["hu_p50"] == 50
  assert features["hu_p99"] == 900
  assert all(type(value) is float for value in features.values())


def test_noise_and_extent_are_measured_in_hu_and_mm():
  noise = np.random.default_rng(0).normal(60, 12, (40, 50, 60))
  hu = np.full((60, 80, 90), -1000, np.int16)
  hu[5:45, 20:70, 10:70] = np.rint(noise)
  features = describe(make_volume(hu))
  assert features["noise_hu"] == pytest.approx(12, rel=0.05)
  assert features["body_length_mm"] == 40 * 2
  assert features["body_depth_mm"] == 50 * 1
  assert features["body_width_mm"] == 60 * 1.5


def test_the_heart_s_contrast_is_measured():
  z, y, x = np.indices((60, 120, 80))
  hu = np.full(z.shape, -1000, np.int16)
  far = np.sqrt(((z - 30) * 2.0) ** 2 + (y - 60) ** 2 + ((x - 40) * 1.5) ** 2)
  hu[far < 55] = 40
  hu[far < 35] = 420
  features = describe(make_volume(hu))
  assert features["heart_hu"] == pytest.approx(420)
  assert features["heart_bright"] == pytest.approx((35 / 40) ** 3, abs=0.05)


def test_a_scan_of_nothing_has_no_features_and_says_so():
  features = describe(make_volume(np.full((10, 20, 30), -1024, np.int16)))
  assert all(math.isnan(value) for value in features.values())
  assert concerns(features) == ["the scan holds nothing but -1024 HU"]
  air = np.random.default_rng(0).integers(-1010, -990, (10, 20, 30))
  assert "no body" in " ".join(
    concerns(describe(make_volume(air.astype(np.int16))))
  )


def test_large_scans_are_sampled_alike():
  rng = np.random.default_rng(0)
  hu = rng.choice([-850, 50, 400], (20, 30, 40), p=[0.5, 0.3, 0.2])
  small = make_volume(hu.astype(np.int16))
  large = np.kron(hu, np.ones((6, 6, 6))).astype(np.int16)
  large = make_volume(large, tuple(s / 6 for s in small.spacing))
  a, b = describe(small), describe(large)
  for name in a:
    if name.startswith(("hu", "fraction", "body")):
      assert b[name] == pytest.approx(a[name], abs=0.02, rel=0.02), name


@pytest.mark.parametrize(
  ("changed", "words"),
  [
    ({"hu_p01": -10, "hu_p99": 500}, "may not be HU"),
    ({"hu_p01": 20, "hu_p99": 1500}, "1024 too high"),
    ({"fraction_lung": 0.01}, "may not be the thorax"),
    ({"heart_hu": 90}, "no contrast: the lumen cannot be seen"),
    ({"heart_hu": math.nan}, "no body"),
    ({"body_length_mm": 40}, "only 40 mm"),
  ],
)
def test_each_oddity_is_said_in_words(changed, words):
  assert concerns(usual()) == []
  (said,) = concerns(usual() | changed)
  assert words in said


def test_far_outside_the_training_range_is_said_with_both_numbers():
  reference = {"heart_hu": (300.0, 500.0), "fraction_lung": (0.2, 0.4)}
  assert concerns(usual(), reference) == []
  # Slack: half the range and 50 HU.
  assert concerns(usual() | {"heart_hu": 649}, reference) == []
  (said,) = concerns(usual() | {"heart_hu": 651}, reference)
  for words in ("contrast in the heart", "651", "300 to 500"):
    assert words in said
  (said,) = concerns(usual() | {"heart_hu": math.nan}, reference)
  assert "cannot be measured" in said


def test_the_real_scan_is_usual(real_ct):
  volume = real(real_ct)
  features = describe(volume)
  assert concerns(features) == []
  heart = volume.hu[read_mask(real_ct / "heart.nii.gz").hu > 0]
  expected = np.percentile(heart, 90)
  assert features["heart_hu"] == pytest.approx(expected, abs=60)
  assert 5 < features["noise_hu"] < 40
  own = {name: (value, value) for name, value in features.items()}
  assert concerns(features, own) == []


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda hu: np.minimum(hu, 60), "no contrast"),
    (lambda hu: np.where(hu > 150, 70, hu), "no contrast"),
    (lambda hu: hu + 1100, "1024 too high"),
    (lambda hu: np.clip((hu + 200) / 4, 0, 255), "may not be HU"),
    (lambda hu: hu[:20], "only 30 mm"),
    (lambda hu: np.where(hu < -300, 30, hu), "may not be HU"),
    (lambda hu: np.where((hu < -300) & (hu > -900), 30, hu), "the thorax"),
  ],
)
def test_a_spoilt_real_scan_is_flagged(real_ct, change, words):
  volume = real(real_ct)
  hu = np.asarray(change(volume.hu)).astype(np.int16)
  features = describe(make_volume(hu, volume.spacing))
  assert words in "; ".join(concerns(features))
