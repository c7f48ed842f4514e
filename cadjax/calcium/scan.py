"""Scores the calcium of a scan: where to look, and whether the rule applies."""

import dataclasses
import datetime
import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from cadjax.calcium import score as calcium
from cadjax.data import scans
from cadjax.training import workdir
from data_prep import geometry, plausibility, resampling, volume
from data_prep.errors import UserError
from data_prep.volume import Grid, Volume

# Edge of the box that is searched without a mask, the default of
# `geometry.GridSpec`. It is larger than a heart, since without contrast only
# the middle of the chest is found.
BOX_MM = 160.0
# Ribs, spine and sternum have more in one piece; a coronary lesion never has.
BONE_ML = 5.0
# The marrow and canal of a vertebra, in a slice.
_MARROW_MM2 = 2000.0
_HEART_MM = 40.0
# A mask of more is one of the heart, and not of vessels or lesions.
_HEART_MASK_ML = 100.0
_SMOOTH_MM = 3.0
# Beyond the 20 to 23 HU that McCollough et al. ask for: tissue of 50 HU reaches
# 130 HU at less than 3 SD.
_NOISE_HU = 30.0


@dataclasses.dataclass(frozen=True, eq=False)
class CalciumScan:
  """The calcium of one scan; `report.calcified` writes it.

  Attributes:
    case: the name of the case, safe to print.
    input_name: base name of the file or folder.
    software: versions of this run.
    created: UTC, ISO 8601.
    scan: on the scanner's grid.
    slices: int16 HU on contiguous 3 mm slices.
    score: on these.
    names: region's label -> its name; empty without a mask.
    box: the part of the slices' grid that was searched; None with a mask.
    bone_ml: volume in the box that was taken for bone and left out.
    heart_hu: 90th percentile of HU in the heart.
    calibration: mg/cm3 per HU; None if none was given.
    notes: what the reader chose, left out or assumed, in sentences.
    concerns: why the scan is unlike one of the heart, in sentences.
  """

  case: str
  input_name: str
  software: workdir.Software
  created: str
  scan: Volume
  slices: Volume
  score: calcium.Score
  names: dict[int, str]
  box: Grid | None
  bone_ml: float
  heart_hu: float
  calibration: float | None
  notes: tuple[str, ...]
  concerns: tuple[str, ...]

  @property
  def category(self) -> str:
    """The category of the Agatston score, in words."""
    return calcium.category(self.score.total.agatston)

  @property
  def summary(self) -> str:
    """What was found, in words."""
    total = self.score.total
    text = f"Agatston score {total.agatston:.1f} ({self.category})"
    if total.lesions:
      text += (
        f": {total.lesions} lesion{'s' if total.lesions > 1 else ''},"
        f" {total.volume_mm3:.0f} mm3"
      )
    if math.isfinite(total.mass_mg) and total.lesions:
      text += f", {total.mass_mg:.1f} mg"
    return text

  @property
  def warnings(self) -> list[str]:
    """What must be read with the score."""
    found = []
    if self.box is not None:
      found.append(
        "Without a mask this is not a coronary score: it includes all calcium"
        f" in a box of {BOX_MM:.0f} mm, also in the valves, the aorta, lymph"
        " nodes and small pieces of bone. Pieces"
        f" of more than {BONE_ML:g} mL ({self.bone_ml:.0f} mL in all) were left"
        " out as bone."
      )
    if self.scan.spacing[0] > self.slices.spacing[0]:
      found.append(
        f"Slices of {self.scan.spacing[0]:.3g} mm are thicker than the rule's"
        " 3 mm: small lesions are missed."
      )
    return found


def score_calcium(
  scan: scans.Scan,
  *,
  mask: Volume | None = None,
  names: Sequence[str] = (),
  calibration: float | None = None,
) -> CalciumScan:
  """Scores the calcium of a scan without contrast.

  Args:
    scan: of `scans.read_scan`, at 120 kV.
    mask: labels on the scan's grid, 0 where nothing counts: of the heart, of
      vessels or of lesions. Without one, a box around the heart is searched.
    names: of the mask's labels from 1 on; "label N" where there is none.
    calibration: mg/cm3 of hydroxyapatite per HU, for the mass.

  Returns:
    The score on contiguous 3 mm slices: `score.total`, `score.regions` by the
    mask's label and `score.lesions`.

  Raises:
    UserError: the scan has contrast or no body, or the mask is empty or not on
      the scan's grid.
  """
  given = scan.volume
  hu, slice_mm, first = calcium.to_slices(given.hu, given.spacing[0])
  grid = Grid(
    hu.shape,
    (slice_mm, *given.spacing[1:]),
    given.grid.to_mm((first, 0, 0)),
    given.direction,
  )
  regions = None
  if mask is not None:
    volume.check_same_grid(given, mask)
    if not mask.hu.any():
      raise UserError(f"{mask.path}: the mask is empty")
    regions, *_ = calcium.to_slices(mask.hu, given.spacing[0], labels=True)
  slices = Volume(np.rint(hu).astype(np.int16), grid, path=given.path)
  center_mm, info = geometry.find_heart(slices)
  center = grid.to_index(center_mm)
  heart_hu = _heart_hu(hu, grid, center, regions)
  # A tenth of a heart is never calcium, and blood has 30 to 60 HU.
  if heart_hu >= calcium.THRESHOLD_HU:
    raise UserError(
      f"{given.path}: the heart has contrast ({heart_hu:.0f} HU): calcium"
      " scores are defined without; give the scan from before the injection"
    )
  box, bone_ml = None, 0.0
  if regions is None:
    part = _box(grid, center)
    box = resampling.crop(grid, part)
    bone = _bone(hu, grid)[part]
    bone_ml = float(bone.sum() * np.prod(grid.spacing) / 1000)
    regions = np.zeros(hu.shape, np.uint8)
    regions[part] = ~bone
  score = calcium.score(hu, grid.spacing, regions, calibration=calibration)
  labels = list(score.regions) if mask is not None else []
  now = datetime.datetime.now(datetime.UTC)
  return CalciumScan(
    case=scan.case,
    input_name=scan.name,
    software=workdir.software(),
    created=now.isoformat(timespec="seconds"),
    scan=given,
    slices=slices,
    score=score,
    names={
      label: names[label - 1] if label <= len(names) else f"label {label}"
      for label in labels
    },
    box=box,
    bone_ml=bone_ml,
    heart_hu=heart_hu,
    calibration=calibration,
    notes=(*given.notes, *_slice_notes(given, hu.shape[0], slice_mm))
    + (tuple(info["notes"]) if box is not None else ()),
    concerns=tuple(_concerns(slices)),
  )


def _slice_notes(given: Volume, count: int, slice_mm: float) -> list[str]:
  if slice_mm == given.spacing[0]:
    return []
  how = "cut" if given.spacing[0] > slice_mm else "averaged"
  return [
    f"{given.shape[0]} slices of {given.spacing[0]:.3g} mm were"
    f" {how} into {count} of 3 mm"
  ]


def _concerns(slices: Volume) -> list[str]:
  # No contrast is what the rule asks for.
  features = plausibility.describe(slices) | {"heart_hu": math.inf}
  found = plausibility.concerns(features, None)
  if features["noise_hu"] > _NOISE_HU:
    found.append(
      f"noise of {features['noise_hu']:.0f} HU in slices of 3 mm, where 20 to"
      " 23 are usual: it reaches 130 HU and scores"
    )
  return found


def _heart_hu(hu, grid: Grid, center, regions) -> float:
  """Returns the 90th percentile of HU in the heart, without its noise."""
  sizes = [max(round(_SMOOTH_MM / step), 1) for step in grid.spacing[1:]]
  smooth = ndimage.uniform_filter(hu, (1, *sizes))
  if regions is not None:
    masked_ml = np.count_nonzero(regions) * np.prod(grid.spacing) / 1000
    if masked_ml > _HEART_MASK_ML:
      return float(np.percentile(smooth[regions > 0], 90))
  axes = np.ogrid[tuple(slice(0, n) for n in hu.shape)]
  away_mm2 = sum(
    ((axis - middle) * step) ** 2
    for axis, middle, step in zip(axes, center, grid.spacing, strict=True)
  )
  return float(np.percentile(smooth[away_mm2 <= _HEART_MM**2], 90))


def _box(grid: Grid, center) -> tuple[slice, slice, slice]:
  """Returns the part of a grid within half of `BOX_MM` of a place."""
  reach = BOX_MM / 2 / np.array(grid.spacing)
  low = np.clip(np.ceil(center - reach), 0, grid.shape).astype(int)
  high = np.clip(np.floor(center + reach) + 1, low, grid.shape).astype(int)
  return tuple(slice(a, b) for a, b in zip(low, high, strict=True))


def _bone(hu, grid: Grid) -> np.ndarray:
  """Returns what is too large to be a lesion, with the marrow inside it."""
  labels, count = ndimage.label(
    hu >= calcium.THRESHOLD_HU, np.ones((3, 3, 3), bool)
  )
  sizes = np.bincount(labels.ravel(), minlength=count + 1)
  sizes[0] = 0
  bone = (sizes * np.prod(grid.spacing) / 1000 > BONE_ML)[labels]
  pixel_mm2 = np.prod(grid.spacing[1:])
  for part in bone:
    # The outside is one of these holes, and larger than any marrow.
    holes, count = ndimage.label(~part)
    sizes = np.bincount(holes.ravel(), minlength=count + 1)
    part |= ((sizes * pixel_mm2 < _MARROW_MM2) & (np.arange(count + 1) > 0))[
      holes
    ]
  return bone
