import numpy as np
import pytest
import tubes

from cadjax.vessels import stenosis
from cadjax.vessels.find import find_vessels
from cadjax.vessels.tree import STEP_MM
from data_prep.geometry import GridSpec
from data_prep.phantom import make_phantom

WAY = np.arange(0, 60, STEP_MM)
TAPER = 2.0 - 0.012 * WAY


def narrowed(radius, middle, length, lost):
  away = np.abs(WAY - middle) / (length / 2)
  return radius * (1 - lost * np.where(away < 1, np.cos(away * np.pi / 2), 0))


def test_the_reference_is_the_taper_whatever_is_narrowed():
  rng = np.random.default_rng(0)
  radius = TAPER + rng.normal(0, 0.03, len(WAY))
  radius = narrowed(narrowed(radius, 20, 14, 0.7), 45, 8, 0.4)
  radius[:6] += 1.5  # The bulge of a fork.
  reference = stenosis.reference_radius(WAY, radius)
  np.testing.assert_allclose(reference, TAPER, rtol=0.05)


def test_the_reference_never_widens_and_ignores_the_unknown():
  wider = 1 + 0.02 * WAY
  flat = stenosis.reference_radius(WAY, wider)
  assert np.ptp(flat) == 0
  assert flat[0] == pytest.approx(np.quantile(wider, 0.6))
  gap = TAPER.copy()
  gap[30:50] = np.nan
  np.testing.assert_allclose(
    stenosis.reference_radius(WAY, gap), TAPER, rtol=1e-3
  )


def test_short_vessels_have_a_constant_or_no_reference():
  short = stenosis.reference_radius(WAY[:20], TAPER[:20])
  assert np.ptp(short) == 0
  tiny = stenosis.reference_radius(WAY[:8], TAPER[:8])
  assert np.isnan(tiny).all()


def profile(radius, resolved=True):
  reference = stenosis.reference_radius(WAY, radius)
  nowhere = np.zeros(len(WAY), bool)
  return stenosis.Calibre(
    radius, reference, nowhere | resolved, nowhere, radius
  )


def test_narrowings_are_found_where_they_are():
  radius = narrowed(narrowed(TAPER, 20, 12, 0.6), 44, 8, 0.4)
  one, two = stenosis.find_narrowings([profile(radius)], 0.3, 10.0)
  assert (one.branch, two.branch) == (0, 0)
  assert one.place * STEP_MM == pytest.approx(20, abs=1)
  assert two.place * STEP_MM == pytest.approx(44, abs=1)
  assert one.stenosis == pytest.approx(0.6, abs=0.05)
  assert two.stenosis == pytest.approx(0.4, abs=0.05)
  # At half the depth a cosine is two thirds as long.
  assert (one.last - one.first) * STEP_MM == pytest.approx(8, abs=1.5)


def test_what_is_no_narrowing():
  find = lambda one, apart=10.0: stenosis.find_narrowings([one], 0.3, apart)  # noqa: E731
  assert find(profile(narrowed(TAPER, 30, 10, 0.2))) == []
  assert find(profile(narrowed(TAPER, 30, 10, 0.6), resolved=False)) == []
  assert find(profile(narrowed(TAPER, 58, 8, 0.6))) == []
  assert find(profile(narrowed(TAPER, 1, 8, 0.6))) == []
  close = profile(narrowed(narrowed(TAPER, 27, 5, 0.6), 33, 5, 0.5))
  assert len(find(close)) == 1
  assert len(find(close, apart=4.0)) == 2


def test_what_cannot_be_measured_hides_no_narrowing():
  """At 30 mm 60 % are lost, and 6 mm further calcium fills the lumen."""
  radius = narrowed(TAPER, 30, 8, 0.6)
  filled = np.abs(WAY - 36) < 1.5
  radius = np.where(filled, 0.0, radius)
  reference = stenosis.reference_radius(WAY, radius)
  everywhere = np.ones(len(WAY), bool)
  one = stenosis.Calibre(radius, reference, everywhere, filled, radius)
  (found,) = stenosis.find_narrowings([one], 0.3, 10.0)
  assert found.place * STEP_MM == pytest.approx(30, abs=1)
  assert found.stenosis == pytest.approx(0.6, abs=0.05)
  # Its extent ends where the lumen is unknown.
  assert not filled[found.first : found.last + 1].any()
  # The same where the grid is too coarse for the deeper neighbour, and where
  # that one is too near to the end of the vessel.
  deep = narrowed(narrowed(TAPER, 30, 6, 0.5), 37, 6, 0.8)
  coarse = np.abs(WAY - 37) > 3.5
  one = stenosis.Calibre(
    deep, stenosis.reference_radius(WAY, deep), coarse, ~everywhere, deep
  )
  (found,) = stenosis.find_narrowings([one], 0.3, 10.0)
  assert found.place * STEP_MM == pytest.approx(30, abs=1)
  ends = narrowed(narrowed(TAPER, 10, 6, 0.5), 3, 6, 0.8)
  (found,) = stenosis.find_narrowings([profile(ends)], 0.3, 10.0)
  assert found.place * STEP_MM == pytest.approx(10, abs=1)


def test_the_flank_of_calcium_is_no_narrowing():
  radius = narrowed(TAPER, 30, 14, 1.0)
  filled = radius < 0.4
  one = stenosis.Calibre(
    radius,
    stenosis.reference_radius(WAY, radius),
    np.ones(len(WAY), bool),
    filled,
    radius,
  )
  assert one.stenosis[~filled].max() > 0.6
  assert stenosis.find_narrowings([one], 0.3, 10.0) == []


@pytest.mark.parametrize("lost", [0.0, 0.3, 0.5, 0.7])
def test_the_stenosis_of_a_tube(lost):
  """A lumen that narrows inside a vessel that does not."""
  shape, affine = tubes.grid("anisotropic", (-6, -6, -34), (8, 6, 14))
  line = [(0, 0, 9), (4, 0, -32)]
  root = tubes.ball((0, 0, 12), 3, shape, affine)
  vessel = tubes.tube(line, 2.2, shape, affine) & ~root
  width = lambda t: 2.2 * (1 - lost * np.exp(-(((t - 0.5) / 0.12) ** 2)))  # noqa: E731
  lumen = tubes.tube(line, width, shape, affine) & ~root
  tree = find_vessels(vessel, root, affine)
  (one,) = stenosis.calibres(tree, lumen, vessel)
  assert one.resolved.all()
  inner = slice(20, -20)
  assert np.nanmax(one.stenosis[inner]) == pytest.approx(lost, abs=0.08)
  found = stenosis.find_narrowings([one], 0.2, 10.0)
  assert len(found) == (lost > 0.2)
  for narrowing in found:
    place = tree.branches[0].points_mm[narrowing.place]
    np.testing.assert_allclose(place, np.mean(line, 0), atol=1.5)
  (coarse,) = stenosis.calibres(tree, lumen, vessel, least_voxels=4.5)
  assert not coarse.resolved.any()


def test_plaque_that_fills_the_calibre_is_no_narrowing():
  shape, affine = tubes.grid("anisotropic", (-6, -6, -34), (8, 6, 14))
  line = np.array([(0, 0, 9), (4, 0, -32)], float)
  root = tubes.ball((0, 0, 12), 3, shape, affine)
  vessel = tubes.tube(line, 2.2, shape, affine) & ~root
  plaque = tubes.ball(line.mean(0), 5, shape, affine) & vessel
  tree = find_vessels(vessel, root, affine)
  (one,) = stenosis.calibres(tree, vessel & ~plaque, vessel)
  away = np.linalg.norm(tree.branches[0].points_mm - line.mean(0), axis=1)
  assert one.filled[away < 2].all()
  assert not one.filled[away > 6].any()
  assert stenosis.find_narrowings([one], 0.3, 10.0) == []
  # Where the mask itself is empty there is a gap, and no plaque in it.
  (gap,) = stenosis.calibres(tree, vessel & ~plaque, None)
  assert not gap.filled.any()


@pytest.mark.slow
def test_the_stenoses_of_phantoms():
  """Of true masks on 0.6 mm voxels: mean error 0.06 of the diameter."""
  grid = GridSpec("heart", (240, 240, 240), (144.0, 144.0, 144.0))
  errors = []
  for seed in (3, 7, 11, 15):
    phantom = make_phantom(seed, label=1, severity="overt", grid=grid)
    mask = phantom.mask
    tree = find_vessels(mask > 1, mask == 1, phantom.volume.affine)
    calibres = stenosis.calibres(tree, mask == 2, mask > 1)
    for lesion in phantom.lesions:
      owner, place, _ = tree.nearest(np.array([lesion["position_mm"]]))
      one = calibres[owner[0]]
      reach = int(lesion["length_mm"] / 4 / STEP_MM)
      lost = one.stenosis[max(place[0] - reach, 0) : place[0] + reach + 1]
      if one.resolved[place[0]] and np.isfinite(lost).any():
        errors.append(abs(np.nanmax(lost) - lesion["stenosis"]))
  assert len(errors) >= 10
  assert np.mean(errors) < 0.1, errors


def test_plaque_along_most_of_a_vessel_does_not_lower_its_reference():
  """Where it leaves 60 % of the diameter, 40 % are lost."""
  shape, affine = tubes.grid("anisotropic", (-6, -6, -34), (8, 6, 14))
  line = [(0, 0, 9), (4, 0, -32)]
  root = tubes.ball((0, 0, 12), 3, shape, affine)
  vessel = tubes.tube(line, 2.2, shape, affine) & ~root
  width = lambda t: np.where((t > 0.15) & (t < 0.75), 1.32, 2.2)  # noqa: E731
  lumen = tubes.tube(line, width, shape, affine) & ~root
  tree = find_vessels(vessel, root, affine)
  (one,) = stenosis.calibres(tree, lumen, vessel)
  np.testing.assert_allclose(one.reference_mm[20:-20], 2.2, rtol=0.08)
  middle = len(one.stenosis) // 2
  assert one.stenosis[middle] == pytest.approx(0.4, abs=0.06)
  # A mask of both as one has no plaque that could be left out.
  (merged,) = stenosis.calibres(tree, lumen)
  assert merged.reference_mm[middle] < 2.0
