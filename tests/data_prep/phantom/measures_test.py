"""Every measure on a case whose answer is known from how it was drawn."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.special import ndtr

from data_prep.phantom import measures
from data_prep.volume import Grid

UPRIGHT = np.eye(3)[:, ::-1]
ISO = (1.0, 1.0, 1.0)


def make_grid(shape, spacing=ISO):
  return Grid(shape, spacing, (5.0, -7.0, 11.0), UPRIGHT)


def radius_of(shape, spacing=ISO, tilt=0.0):
  """Distance in mm of every voxel from an axis that leans by `tilt`."""
  at = np.indices(shape).astype(float)
  d, h, w = (
    (x - (n - 1) / 2) * mm for x, n, mm in zip(at, shape, spacing, strict=True)
  )
  way = np.array([np.cos(tilt), np.sin(tilt), 0.0])
  along = d * way[0] + h * way[1]
  return np.sqrt(np.maximum(d**2 + h**2 + w**2 - along**2, 0))


def polyline_mask(points, radius, shape, spacing):
  """Voxels within `radius` mm of a line [N, 3] along D, H, W in mm."""
  near = np.zeros(shape, bool)
  near[tuple(np.rint(points / spacing).astype(int).T)] = True
  near = measures.grow(near, spacing, radius + max(spacing))
  index = np.argwhere(near)
  away, _ = cKDTree(points).query(index * np.array(spacing))
  near[tuple(index.T)] = away <= radius
  return near


def test_shrink_and_grow_are_in_mm():
  spacing = (2.0, 0.5, 1.0)
  mask = np.zeros((30, 80, 60), bool)
  mask[5:25, 10:70, 15:45] = True  # 40 x 30 x 30 mm.
  inner = measures.shrink(mask, spacing, 5.0)
  extent = [np.ptp(np.flatnonzero(inner.any(a))) + 1 for a in ((1, 2), (0, 2))]
  # 5 mm to either side, and half a voxel of the finest axis at most.
  assert extent[0] * 2.0 == pytest.approx(40 - 10, abs=2.0)
  assert extent[1] * 0.5 == pytest.approx(30 - 10, abs=1.0)
  outer = measures.grow(mask, spacing, 4.0)
  assert np.ptp(np.flatnonzero(outer.any((1, 2)))) + 1 == 20 + 4
  assert np.ptp(np.flatnonzero(outer.any((0, 2)))) + 1 == 60 + 16
  assert not measures.shrink(np.zeros_like(mask), spacing, 1.0).any()
  assert not measures.grow(np.zeros_like(mask), spacing, 1.0).any()


def test_shrink_takes_the_edge_of_the_scan_for_a_surface():
  inner = measures.shrink(np.ones((9, 9, 9), bool), ISO, 3.0)
  assert inner[4, 4, 4]
  assert not inner[2].any()


@pytest.mark.parametrize("thick", [4, 16])
def test_fat_share_of_a_box(thick):
  grid = make_grid((80, 40, 64), (1.0, 2.0, 1.25))
  hu = np.full(grid.shape, 50.0)
  middle = grid.center_mm
  # A slab of fat across the box, and much fat outside it.
  d = np.arange(80)
  hu[(d >= 40) & (d < 40 + thick)] = -100
  hu[:8] = hu[-8:] = -100
  hu[44, 20, 32] = -900  # Air is no fat.
  share = measures.box_share(hu, grid, middle, 64.0)
  assert share == pytest.approx(thick / 64, abs=0.002)


def test_a_box_beside_the_scan_has_no_share():
  grid = make_grid((8, 8, 8))
  far = grid.center_mm + 500
  assert np.isnan(measures.box_share(np.zeros(grid.shape), grid, far, 20.0))


def test_squares_lie_in_the_mask():
  spacing = (3.0, 0.8, 0.8)
  mask = radius_of((4, 60, 60), spacing) < 14
  mask[:, :8, :8] = True  # 6 mm: too small for a square of 12 mm.
  squares = measures.rois(mask, spacing, 12.0)
  assert [k for k, *_ in squares] == [0, 1, 2, 3]
  for k, i, j, side in squares:
    assert side == 15
    assert mask[k, i : i + side, j : j + side].all()
  assert measures.rois(mask, spacing, 40.0) == []


def aorta_with_noise(sd, grain=0.0):
  """A cylinder of 400 HU with a slow gradient in it, and noise."""
  rng = np.random.default_rng(7)
  shape = (40, 64, 64)
  noise = rng.normal(size=shape)
  if grain:
    noise = ndimage.gaussian_filter(noise, (0, grain, grain), mode="wrap")
    noise /= noise.std()
  mask = radius_of(shape) < 20
  hu = np.where(mask, 400.0, -80.0) + 3 * np.arange(64) + sd * noise
  return hu, mask


@pytest.mark.parametrize("sd", [5.0, 30.0])
def test_noise_of_a_cylinder(sd):
  hu, mask = aorta_with_noise(sd)
  squares = measures.rois(mask, ISO, 16.0)
  assert len(squares) == 40
  assert measures.noise_sd(hu, squares) == pytest.approx(sd, rel=0.04)
  # A stent in a third of the slices is not noise.
  hu[:13, 30:34, 30:34] = 3000
  assert measures.noise_sd(hu, squares) == pytest.approx(sd, rel=0.08)


def test_spectrum_of_white_noise_is_flat():
  hu, mask = aorta_with_noise(20.0)
  squares = measures.rois(mask, ISO, 24.0)
  frequency, power = measures.noise_spectrum(hu, squares, 1.0)
  assert frequency[-1] == pytest.approx(0.5)
  # Its integral over the plane of frequencies, of 1 / mm2, is the variance.
  flat = power[frequency > 0.1]
  np.testing.assert_allclose(flat, 400.0, rtol=0.15)
  _, mean = measures.spectrum_frequencies(frequency, power)
  assert mean == pytest.approx(2 / 3 * 0.5, rel=0.04)


def test_spectrum_of_a_kernel():
  grain = 0.8
  hu, mask = aorta_with_noise(20.0, grain)
  squares = measures.rois(mask, ISO, 24.0)
  frequency, power = measures.noise_spectrum(hu, squares, 1.0)
  peak, mean = measures.spectrum_frequencies(frequency, power)
  # Of exp(-(2 pi s f)^2) over the plane.
  expected = np.sqrt(np.pi) / 2 / (2 * np.pi * grain)
  assert mean == pytest.approx(expected, rel=0.15)
  assert peak < 0.2


def test_spectrum_of_a_wave_peaks_at_it():
  hu, mask = aorta_with_noise(1.0)
  hu += 50 * np.sin(2 * np.pi * 0.3 * np.arange(64))
  squares = measures.rois(mask, ISO, 24.0)
  peak, _ = measures.spectrum_frequencies(
    *measures.noise_spectrum(hu, squares, 1.0)
  )
  assert peak == pytest.approx(0.3, abs=0.02)


def test_no_square_no_noise():
  hu = np.zeros((2, 4, 4))
  assert np.isnan(measures.noise_sd(hu, []))
  spectrum = measures.noise_spectrum(hu, [], 1.0)
  assert np.isnan(measures.spectrum_frequencies(*spectrum)).all()


@pytest.mark.parametrize("sigma", [0.6, 0.9, 1.3])
@pytest.mark.parametrize("tilt", [0.0, 0.6])
def test_edge_of_a_cylinder(sigma, tilt):
  spacing = (1.5, 1.0, 1.0)
  away = radius_of((50, 70, 70), spacing, tilt)
  rng = np.random.default_rng(3)
  hu = -100 + 500 * ndtr((15 - away) / sigma) + rng.normal(0, 15, away.shape)
  width = measures.edge_width(hu, away < 15, spacing, least_hu=150)
  # Between the voxels of 1 and 1.5 mm, interpolation adds a little.
  assert width == pytest.approx(2.563 * sigma, rel=0.08)


def test_edge_counts_only_falls_that_are_high_enough_and_near():
  away = radius_of((40, 60, 60))
  hu = np.where(away < 12, 100.0, 0.0)
  hu = ndimage.gaussian_filter(hu, 1.0)
  assert np.isnan(measures.edge_width(hu, away < 12, ISO, least_hu=150))
  hu *= 5
  assert measures.edge_width(hu, away < 12, ISO, least_hu=150) > 2
  nowhere = np.zeros(hu.shape, bool)
  assert np.isnan(
    measures.edge_width(hu, away < 12, ISO, least_hu=150, near=nowhere)
  )
  assert np.isnan(measures.edge_width(hu, nowhere, ISO, least_hu=150))


@pytest.fixture(scope="module")
def thorax():
  """Two lungs with vessels in them, in a body, in air."""
  spacing = (2.0, 2.0, 2.0)
  shape = (60, 70, 90)
  hu = np.full(shape, -1000.0)
  hu[:, 4:66, 4:86] = 40
  lung = np.zeros(shape, bool)
  lung[6:54, 12:58, 10:40] = lung[6:54, 12:58, 50:80] = True
  hu[lung] = -820
  vessels = np.zeros(shape, bool)
  vessels[:, 20:54:12, 16:76:12] = True
  vessels[:, 21:54:12, 16:76:12] = True
  vessels &= lung
  hu[vessels] = 200
  rng = np.random.default_rng(2)
  return hu + rng.normal(0, 20, shape), lung, vessels, spacing


def test_lungs_hold_their_vessels(thorax):
  hu, lung, _, spacing = thorax
  found = measures.lungs(hu, spacing)
  overlap = 2 * (found & lung).sum() / (found.sum() + lung.sum())
  assert overlap > 0.97
  assert not measures.lungs(np.full((9, 9, 9), 40.0), spacing).any()


def test_share_of_vessels_in_the_lungs(thorax):
  hu, lung, vessels, spacing = thorax
  inner = measures.shrink(lung, spacing, 5.0)
  expected = vessels[inner].mean()
  found = measures.lungs(hu, spacing)
  assert 0.005 < expected < 0.05
  share = measures.vessel_share(hu, found, spacing)
  assert share == pytest.approx(expected, rel=0.1)
  nothing = np.zeros(hu.shape, bool)
  assert np.isnan(measures.vessel_share(hu, nothing, spacing))


def test_mode_is_where_most_are():
  rng = np.random.default_rng(4)
  values = np.concatenate(
    [rng.normal(110, 30, 20000), rng.normal(400, 30, 40000)]
  )
  assert measures.mode(values, 40, 180) == pytest.approx(110, abs=6)
  assert np.isnan(measures.mode(values, -500, -400))


def helix(radius=10.0, rise=6.0, turns=3):
  """A helix; its curvature is r / (r^2 + (rise / 2 pi)^2)."""
  angle = np.linspace(0, 2 * np.pi * turns, 2000)
  line = np.stack(
    [radius * np.cos(angle), radius * np.sin(angle), rise * angle / 2 / np.pi],
    -1,
  )
  return line, np.degrees(radius / (radius**2 + (rise / 2 / np.pi) ** 2))


@pytest.mark.parametrize("radius", [6.0, 10.0, 40.0])
def test_turning_of_a_helix(radius):
  line, expected = helix(radius)
  assert measures.turning(line) == pytest.approx(expected, rel=0.01)
  # However its points are spaced.
  assert measures.turning(line[::7]) == pytest.approx(expected, rel=0.03)


def test_turning_of_straight_and_short_lines():
  straight = np.linspace([0, 0, 0], [10, 20, 30], 50)
  assert measures.turning(straight) == pytest.approx(0, abs=1e-4)
  assert np.isnan(measures.turning(straight[:2]))
  line, expected = helix()
  both = measures.mean_turning([line, straight, straight[:2]])
  share = len(measures.resample(line, 1)) / (
    len(measures.resample(line, 1)) + len(measures.resample(straight, 1))
  )
  assert both == pytest.approx(expected * share, rel=0.01)


def test_resample_keeps_columns():
  line = np.array([[0, 0, 0, 2.0], [0, 0, 4, 1.0], [0, 0, 4, 1.0]])
  found = measures.resample(line, 1.0)
  np.testing.assert_allclose(found[:, 2], [0, 1, 2, 3, 4])
  np.testing.assert_allclose(found[:, 3], [2, 1.75, 1.5, 1.25, 1])


@pytest.mark.parametrize("radius", [1.0, 1.5, 2.2])
def test_tree_of_a_fork(radius):
  """A stem of 40 mm that forks into two of 30 mm, and a second stem."""
  spacing = (0.7, 0.7, 0.7)
  shape = (150, 110, 70)
  at = lambda a, b: np.linspace(a, b, 400)  # noqa: E731
  # Nothing along an axis or a diagonal: there the thinning may lose it.
  fork = np.array([50, 42, 18])
  stem = at([10, 38, 15], fork)
  left = at(fork, fork + [17, 23, 6])
  right = at(fork, fork + [24, -15, -8])
  second = at([10, 38, 40], [60, 45, 38])
  points = np.concatenate([stem, left, right, second])
  mask = polyline_mask(points, radius, shape, spacing)
  mask[2, 2, 2] = True  # A speck.
  tree = measures.measure_tree(mask, spacing)
  assert (tree.parts, tree.ends) == (2, 5)
  parts = ([40, 4, 3], [17, 23, 6], [24, -15, -8], [50, 7, -2])
  total = sum(np.linalg.norm(part) for part in parts)
  # The ends of a skeleton are drawn in, its steps from voxel to voxel are
  # longer than the line, of a thin tube most.
  assert tree.length_mm == pytest.approx(total, rel=0.13)
  assert np.median(tree.radius_mm) == pytest.approx(radius, abs=0.31)


def test_tree_of_nothing():
  tree = measures.measure_tree(np.zeros((5, 5, 5), bool), ISO)
  assert (tree.length_mm, tree.ends, tree.parts) == (0, 0, 0)
  assert not len(tree.radius_mm)


def candy_cane():
  """An aorta: 30 mm wide going up, 22 mm wide going down behind."""
  spacing = (1.5, 1.5, 1.5)
  shape = (110, 90, 50)
  up = np.linspace([30, 40, 37], [110, 40, 37], 200)
  angle = np.linspace(np.pi, 0, 200)
  arch = np.stack(
    [
      110 + 28 * np.sin(angle),
      68 + 28 * np.cos(angle),
      np.full(200, 37.0),
    ],
    -1,
  )
  down = np.linspace([110, 96, 37], [8, 96, 37], 200)
  thick = polyline_mask(np.concatenate([up, arch[:100]]), 15, shape, spacing)
  thin = polyline_mask(np.concatenate([arch[100:], down]), 11, shape, spacing)
  return thick | thin, Grid(shape, spacing, (0.0, 0.0, 0.0), UPRIGHT)


def test_calibres_of_an_aorta():
  mask, grid = candy_cane()
  cut = measures.sections(mask, grid)
  found = measures.aorta_calibres(cut)
  assert found["ascending"] == pytest.approx(30, abs=1.2)
  assert found["descending"] == pytest.approx(22, abs=1.2)
  assert 22 < found["arch"] < 31


def test_calibres_where_the_arch_is_outside():
  mask, grid = candy_cane()
  low = Grid((55, *grid.shape[1:]), grid.spacing, grid.origin, UPRIGHT)
  found = measures.aorta_calibres(measures.sections(mask[:55], low))
  assert found["ascending"] == pytest.approx(30, abs=1.5)
  assert found["descending"] == pytest.approx(22, abs=1.2)
  assert np.isnan(found["arch"])


def test_sections_are_at_right_angles():
  shape, spacing = (80, 90, 60), (1.0, 1.0, 1.0)
  mask = radius_of(shape, spacing, tilt=0.7) < 10
  cut = measures.sections(mask, make_grid(shape, spacing))
  # Slices would show ellipses that are a third larger.
  inside = cut.diameter_mm[np.isfinite(cut.diameter_mm)]
  assert len(inside) > 5
  np.testing.assert_allclose(inside, 20, atol=0.8)


def test_no_aorta_no_calibre():
  cut = measures.sections(np.zeros((9, 9, 9), bool), make_grid((9, 9, 9)))
  assert np.isnan(list(measures.aorta_calibres(cut).values())).all()
