"""Does a scan look like what a model was trained on? In plain words."""

import math

import numpy as np

from data_prep.errors import UserError
from data_prep.heart import find_heart
from data_prep.volume import AIR_HU, Volume

_SAMPLES = 2_000_000
_HEART_MM = 40.0
# The blood of a scan without contrast has 30 to 60 HU, late phases up to this.
CONTRAST_HU = 180.0
# HU from, HU below, of the parts that make up a scan.
_PARTS = {
  "fraction_air": (-math.inf, -960),
  "fraction_lung": (-960, -450),
  "fraction_fat": (-200, -30),
  "fraction_soft": (-30, 180),
  "fraction_bright": (180, 700),
  "fraction_dense": (700, math.inf),
}
# Feature -> (words for it, slack beyond the training range).
FEATURES = {
  "hu_min": ("lowest HU", 100.0),
  "hu_p01": ("HU of the darkest percent", 100.0),
  "hu_p50": ("median HU", 100.0),
  "hu_p99": ("HU of the brightest percent", 100.0),
  "fraction_air": ("share of air", 0.05),
  "fraction_lung": ("share of lung", 0.05),
  "fraction_fat": ("share of fat", 0.05),
  "fraction_soft": ("share of soft tissue", 0.05),
  "fraction_bright": ("share of contrast and spongy bone", 0.03),
  "fraction_dense": ("share of dense bone and calcium", 0.02),
  "heart_hu": ("HU of the contrast in the heart", 50.0),
  "heart_bright": ("share of contrast in the heart", 0.1),
  "noise_hu": ("noise in HU", 5.0),
  "body_width_mm": ("width of the body in mm", 20.0),
  "body_depth_mm": ("depth of the body in mm", 20.0),
  "body_length_mm": ("length of the body in mm", 20.0),
}


def describe(volume: Volume) -> dict[str, float]:
  """Returns intensity and anatomy features of a scan.

  Compare features of one kind of grid only: those of a heart box are unlike
  those of the whole chest. Voxels of exactly -1024 HU count as outside the
  scan.

  Args:
    volume: int16 HU, on the scanner's or on a target grid.

  Returns:
    The features of `FEATURES`: HU percentiles, shares (0 to 1) of the scanned
    voxels, the 90th percentile of HU within 40 mm of the heart's middle,
    noise, and the extent of the body in mm; NaN where there is nothing to
    measure.
  """
  step = max(1, math.ceil((volume.hu.size / _SAMPLES) ** (1 / 3)))
  thin = volume.hu[::step, ::step, ::step]
  scanned = thin[thin != AIR_HU]
  if not scanned.size:
    return dict.fromkeys(FEATURES, math.nan)
  low, p01, p50, p99 = np.percentile(scanned, [0, 1, 50, 99])
  features = {"hu_min": low, "hu_p01": p01, "hu_p50": p50, "hu_p99": p99}
  for name, (start, stop) in _PARTS.items():
    features[name] = ((scanned >= start) & (scanned < stop)).mean()
  features |= _describe_heart(volume)
  features["noise_hu"] = _noise_hu(volume.hu[:: step**2])
  features |= _describe_body(thin, step, volume)
  return {name: float(features[name]) for name in FEATURES}


def _describe_heart(volume: Volume) -> dict[str, float]:
  try:
    center_mm, _ = find_heart(volume)
  except UserError:
    return {"heart_hu": math.nan, "heart_bright": math.nan}
  grid = volume.grid
  center = grid.to_index(center_mm)
  # Along each axis at most 20 samples: noise averages out all the same.
  reach = _HEART_MM / np.array(grid.spacing)
  axes = [
    np.arange(max(0, c - r), min(n - 1, c + r) + 1, max(1, r // 10)).astype(int)
    for c, r, n in zip(center, reach, grid.shape, strict=True)
  ]
  if not all(len(axis) for axis in axes):
    return {"heart_hu": math.nan, "heart_bright": math.nan}
  away = np.stack(np.meshgrid(*axes, indexing="ij"), -1) - center
  ball = ((away * grid.spacing) ** 2).sum(-1) <= _HEART_MM**2
  values = volume.hu[np.ix_(*axes)][ball]
  values = values[values != AIR_HU]
  if not values.size:
    return {"heart_hu": math.nan, "heart_bright": math.nan}
  bright = (values >= 180).mean()
  return {"heart_hu": np.percentile(values, 90), "heart_bright": bright}


def _noise_hu(hu: np.ndarray) -> float:
  """Returns the noise, robustly, where three neighbours are soft tissue."""
  soft = (hu > -30) & (hu < 180)
  inner = soft[..., 1:-1] & soft[..., :-2] & soft[..., 2:]
  if not inner.any():
    return math.nan
  hu = hu.astype(np.float32)
  bend = (hu[..., :-2] + hu[..., 2:] - 2 * hu[..., 1:-1])[inner]
  # 1.4826 MAD is the deviation of a normal variable; the bend's is sqrt(6).
  return 1.4826 * np.median(np.abs(bend)) / math.sqrt(6)


def _describe_body(thin, step: int, volume: Volume) -> dict[str, float]:
  body = thin > -300
  extents = {}
  for axis, name in enumerate(("length", "depth", "width")):
    others = tuple(other for other in range(3) if other != axis)
    # A voxel or two of noise or table does not make a slice of body.
    used = np.flatnonzero(body.mean(others) > 0.02)
    count = used[-1] - used[0] + 1 if used.size else 0
    size = min(count * step, volume.shape[axis])
    extents[f"body_{name}_mm"] = size * volume.spacing[axis]
  return extents


def concerns(
  features: dict[str, float],
  reference: dict[str, tuple[float, float]] | None = None,
) -> list[str]:
  """Returns why a scan is unlike a CT angiogram or the training data.

  Args:
    features: what `describe` returned.
    reference: per feature (low, high) of the training set; None asks only
      what holds for every CT angiogram of the heart.

  Returns:
    Sentences for the user; none if nothing is unusual. They warn; they do not
    forbid.
  """
  if math.isnan(features.get("hu_p50", 0.0)):
    return ["the scan holds nothing but -1024 HU"]
  sentences = _general(features) if reference is None else []
  for name, (low, high) in (reference or {}).items():
    value = features.get(name, math.nan)
    words, slack = FEATURES.get(name, (name, 0.0))
    slack += (high - low) / 2
    if math.isnan(value) and not math.isnan(low):
      sentences.append(f"the {words} cannot be measured")
    elif value < low - slack or value > high + slack:
      sentences.append(
        f"the {words} is {value:.3g}, far outside the training data's"
        f" {low:.3g} to {high:.3g}"
      )
  return sentences


def no_contrast(heart_hu: float) -> str:
  """Returns the sentence about a scan without contrast.

  Args:
    heart_hu: of the blood in the heart, below `CONTRAST_HU`.
  """
  return (
    f"no contrast: the lumen cannot be seen ({heart_hu:.0f} HU in the heart; a"
    " CT angiogram has 250 to 600)"
  )


def remarks(volume: Volume) -> list[str]:
  """Returns what to report about a scan, on the scanner's own grid.

  Args:
    volume: int16 HU, as read.

  Returns:
    The notes of the reader, and why it is unlike a CT angiogram.
  """
  return [*volume.notes, *concerns(describe(volume))]


def _general(features: dict[str, float]) -> list[str]:
  sentences = []
  if features["hu_p01"] > -300:
    sentences.append(
      "nothing is as dark as lung or air: the values may not be HU"
      + (" (1024 too high?)" if features["hu_p99"] > 1000 else "")
    )
  elif features["fraction_lung"] < 0.03:
    sentences.append("there is hardly any lung: this may not be the thorax")
  if math.isnan(features["heart_hu"]):
    sentences.append("there is no body in the scan")
  elif features["heart_hu"] < CONTRAST_HU:
    sentences.append(no_contrast(features["heart_hu"]))
  if features["body_length_mm"] < 80:
    sentences.append(
      f"the scan covers only {features['body_length_mm']:.0f} mm from top to"
      " bottom: part of the heart may be missing"
    )
  return sentences
