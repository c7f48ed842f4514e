"""The QRM phantom: drawn, and one real scan where it is at hand."""

import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from cadjax.calcium import qrm
from data_prep.errors import UserError
from data_prep.volume import Grid, Volume, read_volume, write_nifti

ROOT = pathlib.Path(__file__).parents[2]
SHAPE, SPACING = (26, 190, 200), np.array([3.0, 0.6, 0.6])
CALIBRATION, TISSUE_HU, WATER_HU = 0.75, 40.0, 5.0
AXIS = np.array([94.3, 101.6])
MIDDLE = 8.2  # The inserts' slice.


def drawn(
  *, angles=(180, 300, 65), noise_hu=0.0, rod=(15, 22), without=(), seed=0
) -> Volume:
  """Draws the phantom: arms of falling density at these angles, degrees.

  `without` names parts that are left out: "rod", "water", or an arm's density.
  """
  hu = np.full(SHAPE, TISSUE_HU)
  cylinders = []
  for angle, density in zip(angles, qrm.DENSITIES_MG_CM3, strict=True):
    turn = math.radians(angle)
    for away_mm, size_mm in zip((37.5, 25.0, 12.5), qrm.SIZES_MM, strict=True):
      across = away_mm * np.array([math.sin(turn), math.cos(turn)])
      center = np.array([MIDDLE, *(AXIS + across / SPACING[1:])])
      if density not in without:
        cylinders.append((center, size_mm, size_mm, density))
  rod_center = np.array([(rod[0] + rod[1] - 1) / 2, *AXIS])
  length_mm = (rod[1] - rod[0]) * 3
  beside = rod_center + [0, -30, -12]
  if "rod" not in without:
    cylinders.append((rod_center, 20, length_mm, 200))
  if "water" not in without:
    cylinders.append((beside, 20, length_mm, 0))
  for center, width_mm, length_mm, density in cylinders:
    box, share = covered(center, width_mm, length_mm)
    hu[box] += share * (WATER_HU + density / CALIBRATION - TISSUE_HU)
  hu = ndimage.gaussian_filter(hu, np.array([0.8, 0.8, 0.8]) / SPACING)
  noise = np.random.default_rng(seed).normal(size=SHAPE)
  noise = ndimage.gaussian_filter(noise, (0, 1, 1))
  hu += noise_hu * noise / noise.std()
  grid = Grid(SHAPE, SPACING, (0.0, 0.0, 0.0), np.eye(3)[:, ::-1])
  return Volume(np.rint(hu).astype(np.int16), grid, path="phantom.nii.gz")


def covered(center, width_mm, length_mm):
  """Returns the box of a cylinder and the share of each voxel in it."""
  reach = np.array([length_mm, width_mm, width_mm]) / 2 / SPACING
  low = np.floor(center - reach).astype(int)
  high = np.ceil(center + reach).astype(int) + 1
  parts = 6
  d, h, w = (
    ((np.arange((b - a) * parts) + 0.5) / parts - 0.5 + a - middle) * step
    for a, b, middle, step in zip(low, high, center, SPACING, strict=True)
  )
  along = np.abs(d) <= length_mm / 2
  across = np.hypot(h[:, None], w) <= width_mm / 2
  along = along.reshape(-1, parts).mean(1)
  shape = (high[1] - low[1], parts, high[2] - low[2], parts)
  across = across.reshape(shape).mean((1, 3))
  box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
  return box, along[:, None, None] * across


def integrated_mg(insert: qrm.Insert) -> float:
  """Returns the mass without that of the tissue that the insert displaces."""
  displaced = CALIBRATION * (TISSUE_HU - WATER_HU) / 1000
  return insert.mass_mg - displaced * insert.volume_mm3


def check(found: qrm.Measured, rel: float) -> None:
  assert found.calibration == pytest.approx(CALIBRATION, rel=0.01)
  assert found.water_hu == pytest.approx(WATER_HU, abs=2)
  assert found.background_hu == pytest.approx(TISSUE_HU, abs=2)
  truth = [(a, b) for a in qrm.DENSITIES_MG_CM3 for b in qrm.SIZES_MM]
  assert [(x.density_mg_cm3, x.size_mm) for x in found.inserts] == truth
  for one in found.inserts:
    # Of the small ones noise is most.
    near = pytest.approx(integrated_mg(one), rel=rel, abs=3 * one.sd_mg)
    assert one.integrated_mg == near, one


def test_without_noise_the_masses_are_exact():
  found = qrm.measure(drawn())
  check(found, rel=0.03)
  for one in found.inserts:
    # Blur along the axis lowers the middle slice of 5 mm a little.
    assert one.integrated_mm3 == pytest.approx(one.volume_mm3, rel=0.07)
    assert one.center[0] == pytest.approx(MIDDLE, abs=0.25)
  assert found.inserts[0].mass_mg == pytest.approx(78.5, abs=0.05)
  # Partial volume: 130 HU takes too much of what is bright and large, and
  # nothing of what is small and dim.
  assert found.inserts[0].threshold_mm3 > 1.3 * found.inserts[0].volume_mm3
  assert found.inserts[-1].threshold_mg == found.inserts[-1].agatston == 0


@pytest.mark.parametrize(
  "options",
  [{"angles": (10, 250, 130)}, {"angles": (100, 20, 200), "rod": (14.4, 23.6)}],
)
def test_the_arms_are_found_at_any_angle(options):
  check(qrm.measure(drawn(noise_hu=12, **options)), rel=0.08)


def test_the_rod_may_be_below_the_inserts():
  turned = drawn(noise_hu=12)
  below = Volume(turned.hu[::-1].copy(), turned.grid, path="phantom.nii.gz")
  check(qrm.measure(below), rel=0.08)


def test_small_inserts_vanish_in_noise():
  quiet = qrm.measure(drawn(noise_hu=3))
  loud = qrm.measure(drawn(noise_hu=30, seed=4))
  assert loud.noise_hu == pytest.approx(30, rel=0.15)
  small = [[x for x in one.inserts if x.size_mm == 1] for one in (quiet, loud)]
  assert [x.visible for x in small[0]] == [True, True, True]
  assert [x.visible for x in small[1]] == [False, False, False]
  assert all(x.visible for x in loud.inserts if x.size_mm == 5)
  for a, b in zip(quiet.inserts, loud.inserts, strict=True):
    assert b.sd_mg > 5 * a.sd_mg
  assert qrm.table(quiet).count("invisible") == 0
  assert qrm.table(loud).count("invisible") >= 3


def test_thin_slices_are_averaged():
  thick = drawn()
  grid = Grid(
    (SHAPE[0] * 3, *SHAPE[1:]), SPACING / [3, 1, 1], (0, 0, 0), np.eye(3)
  )
  thin = Volume(np.repeat(thick.hu, 3, axis=0), grid, path="phantom.nii.gz")
  for one, other in zip(
    qrm.measure(thin).inserts, qrm.measure(thick).inserts, strict=True
  ):
    assert one.agatston == pytest.approx(other.agatston)
    assert one.integrated_mg == pytest.approx(other.integrated_mg, rel=1e-4)


@pytest.mark.parametrize(
  ("without", "message"),
  [
    (("rod",), "no calibration rod of 20 mm"),
    (("water",), "no calibration rod of water"),
    ((400.0,), "three arms"),
    (qrm.DENSITIES_MG_CM3, "three arms"),
  ],
)
def test_what_is_no_such_phantom_is_refused(without, message):
  with pytest.raises(UserError, match=message) as raised:
    qrm.measure(drawn(without=without))
  assert str(raised.value).startswith("phantom.nii.gz: ")


def test_noise_alone_is_refused():
  rng = np.random.default_rng(1)
  grid = Grid(SHAPE, SPACING, (0, 0, 0), np.eye(3))
  noise = Volume(rng.normal(0, 100, SHAPE).astype(np.int16), grid, path="n")
  with pytest.raises(UserError, match="no calibration rod"):
    qrm.measure(noise)


def run(*args: str, cwd) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "cadjax.calcium.qrm", *args],
    cwd=cwd,
    env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )


def test_the_program_prints_a_table(tmp_path):
  scan = drawn(noise_hu=8)
  write_nifti(tmp_path / "phantom.nii.gz", scan.hu, scan)
  done = run("--input=phantom.nii.gz", "--out=q.json", cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert done.stdout.rstrip("\n") == qrm.table(
    qrm.measure(read_volume(tmp_path / "phantom.nii.gz"))
  )
  assert all(len(line) <= 80 for line in done.stdout.splitlines())
  written = json.loads((tmp_path / "q.json").read_text())
  assert written["input"] == "phantom.nii.gz"
  assert len(written["inserts"]) == 9
  assert written["inserts"][0]["mass_mg"] == pytest.approx(78.54, abs=0.01)


# Agatston score and mass from 130 HU on of the same scan by another program,
# CalciumScoring.jl: data/output/agatston.csv of MolloiLab/CAC-stanford-data at
# 0321508b, MIT; its calibration is 0.7223 mg/cm3 per HU. By density: large,
# middle and small insert.
PUBLISHED = (
  ((396.27, 94.33), (89.30, 21.40), (6.19, 1.14)),
  ((236.72, 49.43), (69.54, 10.96), (0.0, 0.0)),
  ((137.41, 25.18), (22.39, 4.69), (0.0, 0.0)),
)


def test_the_real_phantom(qrm_phantom):
  found = qrm.measure(read_volume(qrm_phantom))
  assert found.calibration == pytest.approx(0.7223, rel=0.01)
  published = [one for arm in PUBLISHED for one in arm]
  for one, (agatston, mass_mg) in zip(found.inserts, published, strict=True):
    assert one.agatston == pytest.approx(agatston, rel=0.04), one
    assert one.threshold_mg == pytest.approx(mass_mg, rel=0.04), one
  large, middle, small = ([*found.inserts[k::3]] for k in range(3))
  for one in large:
    assert one.integrated_mg == pytest.approx(one.mass_mg, rel=0.03)
    assert one.integrated_mm3 == pytest.approx(one.volume_mm3, rel=0.06)
  for one in middle:
    assert one.integrated_mg == pytest.approx(one.mass_mg, rel=0.10)
    assert one.integrated_mm3 == pytest.approx(one.volume_mm3, rel=0.15)
  for one in small:
    assert one.integrated_mg == pytest.approx(one.mass_mg, abs=2 * one.sd_mg)
  assert [x.visible for x in small] == [True, False, False]
  # The plain threshold is far worse.
  for one in (*large, *middle):
    assert one.threshold_mg > 1.1 * one.mass_mg
    assert one.threshold_mm3 > 1.5 * one.volume_mm3
