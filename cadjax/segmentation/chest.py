"""What a coarse segmentation of the whole chest says about a scan.

Where the heart is, how bright its blood is, and whether heart, lungs and aorta
are in the field at all.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from cadjax.core import lookup
from cadjax.data import classes, scans
from cadjax.segmentation import components
from data_prep.volume import Volume

# Names of classes of the class set "chest".
AORTA = "aorta"
HEART = classes.HEART
LUNGS = "lungs"
# Filled with contrast in a CT angiogram; the right heart may hold saline.
BLOOD = (AORTA, "left_ventricle", "left_atrium")
# A normal heart has 500 to 800 mL with its muscle, an adult's lungs in
# inspiration 4000 to 6000 mL.
LEAST_HEART_ML, LEAST_LUNGS_ML = 100.0, 300.0
LEAST_BLOOD_ML, LEAST_AORTA_ML = 20.0, 10.0
# Above the middle, as the borders of a coarse mask are mixed with fat, and
# thrombus and flaps do not enhance.
BLOOD_PERCENTILE = 75
# A cut through the aorta; branches are smaller.
LEAST_CUT_MM2 = 100.0
ORIGIN = "from the wide segmenter's heart"
# Axis and end of a volume [D, H, W]; the aorta goes on below every chest.
_FACES = {
  "top": (0, -1),
  "front": (1, 0),
  "back": (1, -1),
  "right": (2, 0),
  "left": (2, -1),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Anatomy:
  """What was found of the chest.

  Attributes:
    heart: 1 in the largest piece of heart, uint8 on the grid of the wide
      segmenter; None where there is hardly any.
    blood_hu: of aorta and left heart; NaN where there is hardly any.
    concerns: why the scan is unlike a CT angiogram of the heart, in sentences.
    warnings: what must be read with the masks, in sentences.
  """

  heart: Volume | None
  blood_hu: float
  concerns: tuple[str, ...]
  warnings: tuple[str, ...]

  def place(self, scan: scans.Scan) -> scans.Scan:
    """Returns the scan with what was found, for the models that follow.

    A heart mask that the user gave stays.
    """
    changes = {}
    if scan.heart_mask is None and self.heart is not None:
      changes = {"heart_mask": self.heart, "heart_origin": ORIGIN}
    if not math.isnan(self.blood_hu):
      changes["measured"] = {"heart_hu": self.blood_hu}
    return dataclasses.replace(scan, concerns=self.concerns, **changes)


def check_names(names: Sequence[str], where: str) -> None:
  """Raises `lookup.ConfigError` unless classes are those of a chest.

  Args:
    names: of the classes.
    where: what the segmenter is called in the message.
  """
  if AORTA not in names or not set(HEART) & set(names):
    raise lookup.ConfigError(
      f"{where} finds {', '.join(names[1:])}; a segmenter of the chest finds"
      f" the aorta and parts of the heart, such as {HEART[0]}"
    )


def describe(seen: Volume, labels: np.ndarray, names: Sequence[str]) -> Anatomy:
  """Reads the segmentation of a chest.

  Args:
    seen: int16 HU [D, H, W], what the wide segmenter saw.
    labels: uint8 [D, H, W] on its grid.
    names: of the classes, the first is the background.
  """
  voxel_ml = components.voxel_mm3(seen.affine) / 1000

  def mask(*some: str) -> np.ndarray:
    return np.isin(labels, [k for k, name in enumerate(names) if name in some])

  heart = components.largest(mask(*HEART))
  heart_ml = float(np.count_nonzero(heart) * voxel_ml)
  found = heart_ml >= LEAST_HEART_ML
  concerns = []
  if not found:
    lungs_ml = float(np.count_nonzero(mask(LUNGS)) * voxel_ml)
    if LUNGS in names and lungs_ml < LEAST_LUNGS_ML:
      concerns.append(
        "neither heart nor lungs were found: this may be the abdomen or"
        " another part of the body"
      )
    else:
      concerns.append(f"no heart was found (only {heart_ml:.0f} mL of one)")
  aorta = mask(AORTA)
  warnings = []
  if found and np.count_nonzero(aorta) * voxel_ml < LEAST_AORTA_ML:
    concerns.append("no aorta was found: the field may be too small for it")
  elif faces := _cut_faces(aorta, seen):
    warnings.append(
      "The field is too small for the whole aorta: it is cut off at the"
      f" {' and the '.join(faces)}, and its volume is that of the part inside."
    )
  blood = mask(*BLOOD)
  blood_hu = math.nan
  if np.count_nonzero(blood) * voxel_ml >= LEAST_BLOOD_ML:
    blood_hu = float(np.percentile(seen.hu[blood], BLOOD_PERCENTILE))
  return Anatomy(
    heart=Volume(heart.astype(np.uint8), seen.grid) if found else None,
    blood_hu=blood_hu,
    concerns=tuple(concerns),
    warnings=tuple(warnings),
  )


def _cut_faces(aorta: np.ndarray, seen: Volume) -> list[str]:
  """Returns at which ends of the scan the aorta is cut off."""
  mm3 = components.voxel_mm3(seen.affine)
  cut = []
  for name, (axis, end) in _FACES.items():
    area_mm2 = mm3 / seen.spacing[axis]
    if np.count_nonzero(aorta.take(end, axis)) * area_mm2 >= LEAST_CUT_MM2:
      cut.append(name)
  return cut
