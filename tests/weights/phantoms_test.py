"""Where the shipped wide segmenter puts the heart's box in new phantoms."""

import numpy as np
import pytest

from cadjax.data import classes, scans
from cadjax.segmentation import chest
from cadjax.segmentation import scan as segmentation_scan
from cadjax.segmentation.segmenter import load_segmenter
from data_prep import geometry, phantom

pytestmark = pytest.mark.slow

CASES = 100
FIRST_SEED = 7_000_000  # Its training data begin at 100000000.
CHEST = classes.get_class_set("chest").names
FIELDS = ({"fov_mm": 200.0}, {"fov_mm": 360.0, "length_mm": 250.0}, {})


def middle_mm(mask: np.ndarray, grid) -> np.ndarray:
  """The middle of the box of a mask."""
  places = np.argwhere(mask)
  return grid.to_mm((places.min(0) + places.max(0)) / 2)


@pytest.fixture(scope="module")
def distances_mm():
  """From the box that the wide segmenter places to the true middle."""
  wide = load_segmenter("wide")
  spec = geometry.GridSpec("spacing", spacing_mm=(2.0, 2.0, 2.0))
  found = []
  for case in range(CASES):
    drawn = phantom.make_phantom(
      FIRST_SEED + case,
      label=case % 2,
      grid=spec,
      scanner=FIELDS[case % len(FIELDS)],
    )
    scan = scans.Scan(str(case), f"{case}.nii.gz", drawn.volume)
    heart = segmentation_scan.find_chest(wide, scan).anatomy.heart
    truth = np.isin(
      classes.map_mask(drawn.tissues, "chest"),
      [CHEST.index(name) for name in chest.HEART],
    )
    if heart is None:
      found.append(np.inf)
      continue
    middle = middle_mm(truth, drawn.volume.grid)
    away = middle_mm(heart.hu > 0, heart.grid) - middle
    found.append(float(np.linalg.norm(away)))
  print(
    f"\nmiddle of the heart's box, {CASES} phantoms: median"
    f" {np.median(found):.1f} mm, largest {max(found):.1f} mm"
  )
  return found


def test_the_box_is_around_the_heart(distances_mm):
  assert max(distances_mm) <= 10.0
