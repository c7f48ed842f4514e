"""What the shipped models find in a real CT angiogram, by the program.

One patient, whose scan was looked at while the models were made: this shows
that what is learned from phantoms carries over, and measures no accuracy. The
masks beside the scan are another program's. The aorta is dissected, with
thrombus and a stent graft: a mask of its opacified blood without an error
would have a Dice of 0.83. The mask of the heart holds the pulmonary arteries,
which are great vessels here: `heart` leaves out what was called that,
`heart_and_lung_arteries` does not. `pytest -s -m slow` on this file prints the
figures.
"""

import json
import pathlib
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from cadjax.segmentation import chest
from data_prep import volume

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
OPACIFIED_HU = 250.0
NEAR_MM = 5.0
TREE = ("lumen", "stable_plaque", "unstable_plaque")


@pytest.fixture(scope="module")
def figures(real_ct, shipped_models, tmp_path_factory):
  """Runs the program with nothing but a scan; returns what it reaches."""
  out = tmp_path_factory.mktemp("real") / "out"
  command = [sys.executable, "-m", "cadjax.predict"]
  done = subprocess.run(
    [*command, f"--input={real_ct / 'ct.nii.gz'}", f"--out={out}"],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  found = measure(real_ct, out)
  print("\nshipped models on one real scan, seen during development:")
  for name, value in found.items():
    print(f"  {name:<26}{value:.3f}")
  return found


def measure(real_ct, out) -> dict[str, float]:
  """Compares a written report with the masks beside the scan."""
  assert (out / "report.html").stat().st_size > 100_000
  result = json.loads((out / "result.json").read_text())
  image = nib.load(out / "segments.nii.gz")
  scan = volume.read_volume(real_ct / "ct.nii.gz")
  labels = volume.read_mask(out / "segments.nii.gz").hu
  assert np.allclose(image.affine, nib.load(real_ct / "ct.nii.gz").affine)
  values = {x["name"]: x["value"] for x in result["segmentation"]["classes"]}
  aorta, heart = (
    volume.read_mask(real_ct / f"{name}.nii.gz").hu > 0
    for name in ("aorta", "heart")
  )
  found = labels == values["aorta"]
  chambers = np.isin(labels, [values[name] for name in chest.HEART])
  vessels = labels == values["great_vessels"]
  tree = np.isin(labels, [values[name] for name in TREE])
  bright = scan.hu > OPACIFIED_HU
  front = ascending(aorta)
  spacing = scan.grid.spacing
  beside = ndimage.distance_transform_edt(~heart, sampling=spacing)
  ml = float(np.prod(spacing)) / 1000
  return {
    "aorta": dice(found, aorta),
    "aorta_opacified": dice(found & bright, aorta & bright),
    "ascending": dice(found & front, aorta & front),
    "heart": dice(chambers, heart & ~vessels),
    "heart_and_lung_arteries": dice(chambers, heart),
    "middle_mm": away_mm(chambers, heart, spacing, np.mean),
    "box_middle_mm": away_mm(chambers, heart, spacing, middle_of_box),
    "tree_ml": float(tree.sum()) * ml,
    "tree_near_heart": float((beside[tree] <= NEAR_MM).mean()),
  }


def dice(one: np.ndarray, other: np.ndarray) -> float:
  return 2 * float((one & other).sum()) / float(one.sum() + other.sum())


def away_mm(one, other, spacing, middle) -> float:
  """Distance of the middles of two masks, of all their voxels or the box."""
  places = [middle(np.argwhere(x), axis=0) for x in (one, other)]
  return float(np.linalg.norm((places[0] - places[1]) * spacing))


def middle_of_box(places, axis) -> np.ndarray:
  return (places.min(axis) + places.max(axis)) / 2


def ascending(aorta: np.ndarray) -> np.ndarray:
  """Returns where ascending aorta and root are: in front, below the arch.

  Slices in which the mask is in two large pieces, and in them all that is in
  front of the middle between both.
  """
  region = np.zeros_like(aorta)
  for height, cut in enumerate(aorta):
    pieces, count = ndimage.label(cut)
    sizes = np.bincount(pieces.ravel())[1:]
    large = [k + 1 for k in range(count) if sizes[k] >= 50]
    if len(large) < 2:
      continue
    rows = sorted(np.argwhere(pieces == k)[:, 0].mean() for k in large)
    region[height, : round((rows[0] + rows[-1]) / 2)] = True
  return region


@pytest.mark.parametrize(
  ("name", "least"),
  [
    ("aorta", 0.80),
    ("aorta_opacified", 0.90),
    ("ascending", 0.90),
    # The goal. What it falls to is watched by the line above.
    pytest.param(
      *("ascending", 0.92),
      marks=pytest.mark.xfail(
        reason="0.915: above the box the wide aorta is a voxel too thick",
        strict=True,
      ),
    ),
    ("heart", 0.90),
    ("tree_ml", 3.0),
    ("tree_near_heart", 0.85),
  ],
)
def test_what_was_found(figures, name, least):
  assert figures[name] >= least


def test_the_heart_is_where_it_is(figures):
  assert figures["middle_mm"] <= 5.0
  assert figures["box_middle_mm"] <= 17.0


@pytest.mark.xfail(
  reason="15.7: the mask beside the scan reaches 28 mm higher, to the top of"
  " the pulmonary arteries",
  strict=True,
)
def test_the_box_is_where_the_heart_is(figures):
  assert figures["box_middle_mm"] <= 15.0
