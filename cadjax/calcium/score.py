"""Agatston, volume and mass scores of calcium, by the published rules.

The rules are for scans without contrast at 120 kV, of contiguous 3 mm slices:

  Agatston  A. S. Agatston et al., Quantification of coronary artery calcium
            using ultrafast computed tomography, J Am Coll Cardiol 1990.
            In each slice, connected pixels of at least 130 HU and at least
            1 mm2 together count area x weight; the weight is 1, 2, 3 or 4 for
            a peak from 130, 200, 300 or 400 HU on.
  volume    voxels of these, times the volume of a voxel, as T. Q. Callister et
            al., Radiology 1998, but without interpolation between slices.
  mass      calibration x mean HU x volume, as C. Hong et al., Radiology 2002,
            and C. H. McCollough et al., Radiology 2007.

What the papers leave open is settled here: 130 HU and 1 mm2 themselves count;
pixels that touch at a corner are connected (the eight-connected rule in P. M.
A. van Ooijen et al., Eur Radiol 2005, which scores 3 % more than the
four-connected one); the peak is that of the slice and not of the lesion. The
mass is of the voxels that count, so it lacks what partial volume keeps below
130 HU, and has the tissue that is in them.

Slices of another thickness become contiguous ones of 3 mm: thinner ones are
averaged, thicker ones are cut. Averaging lowers noise and peaks as a scan of
3 mm would have done; cutting leaves a thick slice's blur as it is. Slices
that overlap are averaged as if they did not.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy import ndimage

THRESHOLD_HU = 130.0
LEAST_AREA_MM2 = 1.0
SLICE_MM = 3.0
# Peak HU from which the weight is 1, 2, 3 and 4.
WEIGHTS_FROM_HU = (THRESHOLD_HU, 200.0, 300.0, 400.0)
# Highest score -> category, as J. A. Rumberger et al., Mayo Clin Proc 1999.
CATEGORIES = {
  0.0: "0: no calcium found",
  10.0: "1-10: minimal",
  100.0: "11-100: mild",
  400.0: "101-400: moderate",
  np.inf: "above 400: severe",
}
# Headers round the spacing: slices this near to 3 mm are left as they are.
_NEARLY_MM = 0.05
_AROUND = np.ones((3, 3, 3), bool)
_IN_SLICE = _AROUND & np.array([False, True, False])[:, None, None]


@dataclasses.dataclass(frozen=True)
class Amount:
  """How much calcium.

  Attributes:
    agatston: the score, 0 without calcium.
    volume_mm3: of the voxels that count.
    mass_mg: of hydroxyapatite; NaN without a calibration.
    lesions: how many.
  """

  agatston: float
  volume_mm3: float
  mass_mg: float
  lesions: int


@dataclasses.dataclass(frozen=True)
class Lesion:
  """Calcium that is connected from slice to slice.

  Attributes:
    number: from 1, by falling Agatston score; its label in `Score.labels`.
    region: the region's label that most of its voxels have; 1 without regions.
    agatston: the sum of its slices.
    volume_mm3: of the voxels that count.
    mass_mg: of hydroxyapatite; NaN without a calibration.
    peak_hu: the brightest voxel of its 3 mm slices.
    mean_hu: of the voxels that count.
    center: (d, h, w), index into the 3 mm slices.
  """

  number: int
  region: int
  agatston: float
  volume_mm3: float
  mass_mg: float
  peak_hu: float
  mean_hu: float
  center: tuple[float, float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
  """The calcium of a scan.

  Attributes:
    total: all lesions together.
    regions: region's label -> its lesions together, for every label of the
      regions; what is of several regions counts for that of most voxels.
    lesions: by falling Agatston score.
    labels: [D', H, W] int32 on the 3 mm slices, the number of the lesion.
  """

  total: Amount
  regions: Mapping[int, Amount]
  lesions: tuple[Lesion, ...]
  labels: np.ndarray


def score(
  hu: np.ndarray,
  spacing_mm: tuple[float, float, float],
  regions: np.ndarray | None = None,
  *,
  calibration: float | None = None,
) -> Score:
  """Scores the calcium of a scan without contrast.

  Args:
    hu: [D, H, W] HU, slices of 3 mm as `to_slices` makes them.
    spacing_mm: along D, H, W.
    regions: [D, H, W] integers; only what is above 0 counts, under the label
      that is there. None: everything counts, as region 1.
    calibration: mg/cm3 of hydroxyapatite per HU above water, see `calibrate`.

  Raises:
    ValueError: shapes differ, or the slices are not of 3 mm.
  """
  hu = np.asarray(hu)
  if abs(spacing_mm[0] - SLICE_MM) > _NEARLY_MM:
    raise ValueError(f"slices of {spacing_mm[0]:g} mm; to_slices makes 3 mm")
  if regions is None:
    regions = np.ones(hu.shape, np.uint8)
  if regions.shape != hu.shape:
    raise ValueError(f"HU {hu.shape}, regions {regions.shape}")
  components, scores = _components(
    np.where(regions > 0, hu, -np.inf), spacing_mm
  )
  labels, count = ndimage.label((scores > 0)[components], _AROUND)
  lesions = []
  for number, box in enumerate(ndimage.find_objects(labels, count), 1):
    here = labels[box] == number
    lesions.append(
      _lesion(
        hu[box][here].astype(np.float64),
        float(np.prod(spacing_mm)),
        calibration,
        number=number,
        region=int(np.bincount(regions[box][here]).argmax()),
        agatston=float(scores[np.unique(components[box][here])].sum()),
        center=np.argwhere(here).mean(0) + [part.start for part in box],
      )
    )
  lesions.sort(key=lambda one: -one.agatston)
  # From the number that `label` gave to the rank.
  ranks = np.zeros(count + 1, np.int32)
  ranks[[one.number for one in lesions]] = np.arange(1, count + 1)
  lesions = tuple(
    dataclasses.replace(one, number=rank) for rank, one in enumerate(lesions, 1)
  )
  known = [int(label) for label in np.unique(regions) if label > 0]
  return Score(
    total=_sum(lesions, calibration),
    regions={
      label: _sum([x for x in lesions if x.region == label], calibration)
      for label in known
    },
    lesions=lesions,
    labels=ranks[labels],
  )


def _components(hu, spacing_mm) -> tuple[np.ndarray, np.ndarray]:
  """Returns what is connected in a slice, numbered, and the score of each.

  The first score, of the background, is 0, as are those of the too small.
  """
  labels, count = ndimage.label(hu >= THRESHOLD_HU, _IN_SLICE)
  pixel_mm2 = spacing_mm[1] * spacing_mm[2]
  area_mm2 = np.bincount(labels.ravel(), minlength=count + 1) * pixel_mm2
  peak_hu = ndimage.maximum(hu, labels, np.arange(1, count + 1))
  weight = np.searchsorted(WEIGHTS_FROM_HU, peak_hu, side="right")
  # Products of decimal spacings fall short of 1 mm2 in the last digit.
  enough = area_mm2[1:] >= LEAST_AREA_MM2 * (1 - 1e-6)
  scores = area_mm2[1:] * weight * enough * spacing_mm[0] / SLICE_MM
  return labels, np.concatenate([[0.0], scores])


def _lesion(values, voxel_mm3, calibration, *, center, **known) -> Lesion:
  volume_mm3, mean_hu = values.size * voxel_mm3, float(values.mean())
  return Lesion(
    volume_mm3=volume_mm3,
    mass_mg=_mass_mg(mean_hu, volume_mm3, calibration),
    peak_hu=float(values.max()),
    mean_hu=mean_hu,
    center=tuple(float(x) for x in center),
    **known,
  )


def _mass_mg(mean_hu, volume_mm3, calibration) -> float:
  if calibration is None:
    return float("nan")
  return float(calibration * mean_hu * volume_mm3 / 1000)


def _sum(lesions, calibration) -> Amount:
  mass_mg = sum((one.mass_mg for one in lesions), 0.0)
  return Amount(
    agatston=sum((one.agatston for one in lesions), 0.0),
    volume_mm3=sum((one.volume_mm3 for one in lesions), 0.0),
    mass_mg=float("nan") if calibration is None else mass_mg,
    lesions=len(lesions),
  )


def category(agatston: float) -> str:
  """Returns the category of a score, rounded to a whole number, in words."""
  rounded = round(agatston)
  # What is found is not nothing, however small its pixels.
  if agatston > 0:
    rounded = max(rounded, 1)
  return next(name for high, name in CATEGORIES.items() if rounded <= high)


def calibrate(insert_mg_cm3: float, insert_hu: float, water_hu: float) -> float:
  """Returns the calibration factor, in mg/cm3 of hydroxyapatite per HU.

  Args:
    insert_mg_cm3: density of a calibration insert.
    insert_hu: its mean HU.
    water_hu: mean HU of water.

  Raises:
    ValueError: the insert is not brighter than water.
  """
  if not insert_hu > water_hu:
    raise ValueError(f"insert of {insert_hu:g} HU, water of {water_hu:g} HU")
  return insert_mg_cm3 / (insert_hu - water_hu)


def to_slices(
  array: np.ndarray, thickness_mm: float, *, labels: bool = False
) -> tuple[np.ndarray, float, float]:
  """Makes contiguous 3 mm slices of slices of another thickness.

  They have the middle of the scan in common, so that turning a scan upside
  down turns its slices. If the length of the scan is not a multiple of 3 mm,
  up to 1.5 mm at each end are left out or only half covered.

  Args:
    array: [D, H, W] HU, or integer labels.
    thickness_mm: distance from slice to slice.
    labels: whether the voxels are labels, not HU. Each voxel of a 3 mm slice
      then gets its most frequent label, and background only if it has none, so
      that a mask that follows a lesion closely still covers it.

  Returns:
    (slices, spacing_mm, first): [D', H, W] float32 to three decimals, or
    labels; their distance, 3 mm or what is within 0.05 mm of it; the first
    one's middle, as an index into the slices of `array`.
  """
  if abs(thickness_mm - SLICE_MM) <= _NEARLY_MM:
    kind = array.dtype if labels else np.float32
    return np.asarray(array, kind), thickness_mm, 0.0
  weights, first = _weights(len(array), thickness_mm)
  if not labels:
    flat = weights @ np.asarray(array, np.float32).reshape(len(array), -1)
    # Whole numbers of HU stay such: 130 must not become 129.99999.
    slices = flat.round(3).reshape(-1, *array.shape[1:])
    return slices, SLICE_MM, first
  best = np.zeros((len(weights), *array.shape[1:]), np.float32)
  result = np.zeros(best.shape, array.dtype)
  for label in np.unique(array[array > 0]):
    here = (array == label).astype(np.float32).reshape(len(array), -1)
    share = (weights @ here).reshape(best.shape)
    more = share > best + 1e-6
    result[more], best[more] = label, share[more]
  return result, SLICE_MM, first


def _weights(depth: int, thickness_mm: float) -> tuple[np.ndarray, float]:
  """Returns the share [D', D] of each slice in each 3 mm slice."""
  extent_mm = depth * thickness_mm
  count = max(round(extent_mm / SLICE_MM), 1)
  low_mm = (extent_mm - count * SLICE_MM) / 2 + SLICE_MM * np.arange(count)
  edges_mm = thickness_mm * np.arange(depth + 1)
  reach_mm = np.clip(edges_mm, low_mm[:, None], low_mm[:, None] + SLICE_MM)
  overlap_mm = np.diff(reach_mm, axis=1)
  weights = overlap_mm / overlap_mm.sum(1, keepdims=True)
  first = (low_mm[0] + SLICE_MM / 2) / thickness_mm - 0.5
  return weights.astype(np.float32), float(first)
