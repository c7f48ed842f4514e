"""What the scanner and earlier treatment add to a phantom."""

import numpy as np
import pytest
from scipy import ndimage

from data_prep.geometry import GridSpec
from data_prep.phantom import acquisition, artifacts, make_phantom, shapes
from data_prep.phantom.population import draw_patient, draw_scanner
from data_prep.tissues import Tissue
from data_prep.volume import Grid

UPRIGHT = np.eye(3)[:, ::-1]
GRID = GridSpec("heart", (75, 75, 75), (150.0, 150.0, 150.0))
CLEAN = {
  "noise_hu": 1e-3,
  "streaks": 0.0,
  "hardening": 0.0,
  "shading_hu": 0.0,
  "step_mm": 0.0,
  "cava": 3.0,
  "contrast_hu": 420.0,
}
NO_METAL = {"wires": 0, "clips": 0, "leads": 0, "valve_ring": 0}


def phantom(seed=3, population=None, grid=GRID, **scanner):
  return make_phantom(
    seed,
    label=0,
    grid=grid,
    scanner=CLEAN | scanner,
    population=NO_METAL | (population or {}),
  )


def apart(one, other):
  return one.volume.hu.astype(float) - other.volume.hu


@pytest.fixture(scope="module")
def clean():
  return phantom()


def test_streaks_come_from_the_vena_cava_and_fade(clean):
  change = np.abs(apart(phantom(streaks=1.0), clean))
  cava = np.argwhere(clean.tissues == Tissue.SUPERIOR_VENA_CAVA)
  middle = cava[:, 1:].mean(0)
  rows = np.unique(cava[:, 0])
  _, y, x = np.indices(change.shape)
  away = np.hypot(y - middle[0], x - middle[1]) * 2.0
  seen = np.isin(np.arange(len(change)), rows)[:, None, None]
  near = change[seen & (away > 12) & (away < 30)]
  assert 10 < np.percentile(near, 90) < 150
  assert near.mean() > 4 * change[seen & (away > 50)].mean()
  # Without dense contrast in it there are none.
  thin = {"cava": 0.6}
  change = apart(phantom(streaks=1.0, **thin), phantom(**thin))
  assert np.abs(change).max() < 1


def test_hardening_darkens_between_dense_objects(clean):
  change = apart(phantom(hardening=1.0), clean)
  assert -60 < change.min() < -8
  assert change.max() < 2


def test_shading_is_smooth_and_small(clean):
  change = apart(phantom(shading_hu=5.0), clean)
  assert 1 < change.std() < 12
  steps = np.abs(np.diff(change, axis=2))
  assert np.percentile(steps, 99) < 3


@pytest.mark.parametrize(
  "has", [{"wires": 6}, {"clips": 6}, {"leads": 2}, {"valve_ring": 1}]
)
def test_metal_is_dense_labelled_and_streaks(clean, has):
  grid = clean.volume.grid
  treated = phantom(population=has, grid=grid, streaks=1.0, cava=0.6)
  base = phantom(grid=grid, cava=0.6)
  metal = treated.tissues == Tissue.METAL
  assert metal.sum() > 3
  assert treated.volume.hu[ndimage.binary_dilation(metal)].max() > 900
  change = np.abs(apart(treated, base))
  near = ndimage.distance_transform_edt(~metal) * 2.0
  assert change[(near > 6) & (near < 16)].max() > 15
  assert change[near > 60].max() < 2
  # Vessels that it lies on keep their labels.
  coronary = (base.mask > 1) & (base.mask != treated.mask)
  assert not coronary.any()


def test_rates_of_metal():
  """A few patients, whatever their coronaries."""
  drawn = [draw_patient(np.random.default_rng(k)) for k in range(600)]
  for name, low, high in (
    ("wires", 0.04, 0.13),
    ("clips", 0.02, 0.09),
    ("leads", 0.02, 0.09),
    ("valve_ring", 0.015, 0.08),
  ):
    assert low < np.mean([p[name] > 0 for p in drawn]) < high, name


def test_steps_move_labels_and_centerlines_with_the_image():
  still = phantom(7, grid=GridSpec("heart", (110,) * 3, (130.0,) * 3))
  grid = still.volume.grid
  moved = phantom(7, grid=grid, step_mm=2.0, slab_mm=20.0)
  lines = still.centerlines
  off = np.concatenate(
    [moved.centerlines[n][:, :3] - lines[n][:, :3] for n in lines]
  )
  assert np.abs(off[:, 2]).max() == 0
  assert 1 < np.abs(off[:, :2]).max() < 12
  for one in (still, moved):
    hits = []
    for line in one.centerlines.values():
      index = np.rint(grid.to_index(line[:, :3])).astype(int)
      index = index[((index >= 0) & (index < grid.shape)).all(1)]
      hits.append(one.segments[tuple(index.T)] > 0)
    assert np.concatenate(hits).mean() > 0.8
  assert ((moved.segments > 0) == (moved.mask >= 2)).all()
  # The chest around the heart stands still.
  far = np.argwhere(still.tissues == Tissue.BONE)
  center = grid.to_index(still.params["patient"]["heart_center_mm"])
  far = far[np.linalg.norm(far - center, axis=1) * 130 / 110 > 95]
  place = tuple(far.T)
  assert (moved.tissues[place] == still.tissues[place]).all()


def test_steps_are_the_same_on_every_grid():
  turn = np.radians(25)
  c, s = np.cos(turn), np.sin(turn)
  about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
  steps = artifacts.Steps(
    np.zeros(3), np.array([0.0]), np.array([[4.0, -3.0], [-2.0, 4.0]])
  )
  ball = np.array([10.0, 5.0, 20.0])
  seen = []
  for direction in (UPRIGHT, about_x @ UPRIGHT):
    shape = (60, 60, 60)
    first = direction @ ((np.array(shape) - 1) / 2 * 2.0)
    grid = Grid(shape, (2.0,) * 3, -first, direction)
    canvas = shapes.blank(grid, 0.4, 0.0)
    shapes.blob(canvas, ball, np.array([8.0, 8, 8]), 1000.0, Tissue.LIVER)
    steps.apply(canvas, [])
    index = np.argwhere(canvas.tissues == Tissue.LIVER)
    seen.append(grid.to_mm(index).mean(0))
  expected = steps.move(ball)
  np.testing.assert_allclose(expected, ball + [-2, 4, 0], atol=1e-6)
  for middle in seen:
    np.testing.assert_allclose(middle, expected, atol=0.6)


def spectrum(noise, spacing_mm):
  """Peak and mean frequency over the plane, 1/mm."""
  power = np.abs(np.fft.fft2(noise)) ** 2
  axis = np.fft.fftfreq(noise.shape[-1], spacing_mm)
  f = np.hypot(*np.meshgrid(axis, axis))
  edges = np.arange(0, 1.0, 0.04)
  bins = np.digitize(f, edges)
  mean = power.mean(0)
  radial = [mean[bins == k].mean() for k in range(1, len(edges))]
  return edges[np.argmax(radial)] + 0.02, (f * mean).sum() / mean.sum()


def test_noise_is_that_of_kernels_and_doses():
  """Real: peak 0.13 to 0.28 and mean 0.29 to 0.42 per mm, SD 15 to 40 HU.

  Seven scans on their own voxels for the spectrum; the standard deviation is
  of blood at 1.5 mm, on which one real angiogram has 32 to 36 HU.
  """
  native = Grid((4, 96, 96), (0.5, 0.4, 0.4), np.zeros(3), UPRIGHT)
  coarse = Grid((20, 20, 20), (1.5, 1.5, 1.5), np.zeros(3), UPRIGHT)
  peaks, means, levels = [], [], []
  for seed in range(40):
    rng = np.random.default_rng(seed)
    patient, scanner = draw_patient(rng), draw_scanner(rng)
    fine = acquisition.noise(native, scanner, rng, patient)
    peak, mean = spectrum(fine, 0.4)
    peaks.append(peak)
    means.append(mean)
    levels.append(acquisition.noise(coarse, scanner, rng, patient).std())
  assert 0.1 < np.median(peaks) < 0.28
  assert 0.25 < np.median(means) < 0.42
  assert 15 < np.median(levels) < 40
  assert np.percentile(levels, 90) > 1.6 * np.percentile(levels, 10)
