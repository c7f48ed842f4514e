import numpy as np
import pytest
import tubes
from scipy import ndimage
from tiny_tree import FORK, LEFT, LINES, VOXEL, ball, blobs, on, scene

from cadjax.link import candidates

PLAQUE = {"near_mm": 6.0, "gap_mm": 3.0, "least_mm3": 1.0}


def plaques(options=PLAQUE, **masks):
  return candidates.plaques(scene()[0], masks, **options)


def test_plaques_are_gathered_along_the_vessel():
  tree, _ = scene()
  place = on(LINES[1], 0.6)
  way = (LEFT - FORK) / np.linalg.norm(LEFT - FORK)
  # Three spots, 2.5 mm from edge to edge, of two types: one plaque.
  stable = ball(place, 1.2) | ball(place + 4.6 * way, 1.2)
  unstable = ball(place - 4.6 * way, 1.2)
  (one,) = plaques(stable=stable, unstable=unstable)
  assert len(one.voxels) == (stable | unstable).sum()
  assert np.linalg.norm(one.position_mm - place) < 1.5
  owner, _, _ = tree.nearest(place[None])
  assert one.branch == owner[0]
  assert one.sources == ("plaque",)
  ends = one.line(tree)[[0, -1]]
  expected = np.array([place - 5.5 * way, place + 5.5 * way])
  assert np.linalg.norm(ends - expected, axis=1).max() < 1.5
  assert len(plaques(PLAQUE | {"gap_mm": 1.5}, stable=stable | unstable)) == 3


def test_plaques_of_two_vessels_are_two():
  both = ball(on(LINES[1], 0.7), 1.5) | ball(on(LINES[2], 0.7), 1.5)
  assert len(plaques(stable=both)) == 2


def test_a_sliver_beyond_a_fork_joins_its_plaque():
  tree, _ = scene()
  across = ball(on(LINES[1], 0.12), 2.6)
  found = plaques(stable=across)
  assert len(found) == 1
  assert len(found[0].voxels) == across.sum()


def test_small_plaques_are_left_out():
  speck = ball(on(LINES[1], 0.6), 0.7)
  volume = speck.sum() * VOXEL
  assert len(plaques(PLAQUE | {"least_mm3": volume - 0.01}, stable=speck)) == 1
  assert plaques(PLAQUE | {"least_mm3": volume + 0.01}, stable=speck) == []
  assert plaques(stable=np.zeros_like(speck)) == []


def test_plaque_off_the_vessels_is_its_own_component():
  tree, mask = scene()
  off = tubes.ball((12, -4, 4), 1.5, mask.shape, tree.affine)
  away = tubes.ball((-16, -4, 4), 1.0, mask.shape, tree.affine)
  found = plaques(stable=off | away)
  assert [one.branch for one in found] == [-1, -1]
  sizes = sorted(len(one.voxels) for one in found)
  assert sizes == sorted([off.sum(), away.sum()])
  mixed = plaques(stable=off | ball(on(LINES[1], 0.6), 1.5))
  assert sorted(one.branch >= 0 for one in mixed) == [False, True]


def test_peaks_of_a_map_are_its_maxima():
  tree, _ = scene()
  places = [((12, 0, 5), 1.0), ((-12, 2, 2), 0.7), ((4, 0, -20), 0.5)]
  heat = blobs(*places)
  found = candidates.map_peaks(heat, tree.affine, least=0.3, apart_mm=6.0)
  assert len(found) == 3
  for one, (at, height) in zip(found, places, strict=True):
    assert np.linalg.norm(one.position_mm - at) < 2.0
    assert one.heat == pytest.approx(height, abs=0.05)
    assert one.branch == -1
  few = candidates.map_peaks(heat, tree.affine, least=0.6, apart_mm=6.0)
  assert len(few) == 2
  far = candidates.map_peaks(heat, tree.affine, least=0.3, apart_mm=30.0)
  assert len(far) == 1


def test_peaks_of_noise_are_the_maxima_that_no_higher_one_suppresses():
  shape, affine = (14, 12, 16), np.diag([2.0, 2.5, 3.0, 1.0])
  heat = np.random.default_rng(0).random(shape)
  found = candidates.map_peaks(heat, affine, least=0.0, apart_mm=9.0)
  top = np.argwhere(heat == ndimage.maximum_filter(heat, 3, mode="nearest"))
  top = sorted(top.tolist(), key=lambda k: -heat[tuple(k)])
  stays = []
  for index in top:
    mm = np.array(index) * [2, 2.5, 3]
    if all(np.linalg.norm(mm - other) >= 9 for other in stays):
      stays.append(mm)
  np.testing.assert_allclose([one.position_mm for one in found], stays)


def test_maps_of_nothing_have_no_peaks():
  tree, mask = scene()
  empty = np.zeros(mask.shape)
  assert candidates.map_peaks(empty, tree.affine, least=0, apart_mm=5) == []
  options = {"near_mm": 4.0, "least": 0.1, "apart_mm": 5.0}
  assert candidates.vessel_peaks(empty, tree, **options) == []


def test_peaks_along_vessels_are_on_them_and_apart():
  tree, _ = scene()
  first, second = on(LINES[1], 0.7), on(LINES[2], 0.6)
  heat = blobs((first + [0, 2, 0], 1.0), (second, 0.8), ((14, 0, 8), 1.5))
  options = {"near_mm": 3.0, "least": 0.2, "apart_mm": 8.0}
  found = candidates.vessel_peaks(heat, tree, **options)
  assert len(found) == 2
  for one in found:
    line = tree.branches[one.branch].points_mm
    np.testing.assert_array_equal(one.position_mm, line[one.first])
    assert one.first == one.last
  assert np.linalg.norm(found[0].position_mm - first) < 2.5
  assert np.linalg.norm(found[1].position_mm - second) < 2.5
  assert found[0].heat > found[1].heat
  apart = np.linalg.norm(found[0].position_mm - found[1].position_mm)
  options["apart_mm"] = apart + 1
  assert len(candidates.vessel_peaks(heat, tree, **options)) == 1


def test_what_is_not_covered_is_no_evidence():
  tree, _ = scene()
  heat = blobs((on(LINES[1], 0.7), 1.0), (on(LINES[2], 0.6), 0.8))
  mm = tubes.centres(heat.shape, tree.affine)
  heat[mm[..., 0] > 2] = np.nan
  options = {"near_mm": 3.0, "least": 0.3, "apart_mm": 8.0}
  (one,) = candidates.vessel_peaks(heat, tree, **options)
  assert one.position_mm[0] < 0
  (other,) = candidates.map_peaks(heat, tree.affine, least=0.5, apart_mm=8)
  assert other.position_mm[0] < 0


def test_a_map_as_fine_as_a_plaque_has_peaks_on_vessels():
  tree, _ = scene()
  first = on(LINES[1], 0.7)
  index = tuple(np.rint(tree.to_index(first)).astype(int))
  heat = np.zeros(tree.shape, np.float32)
  heat[index] = 1.0
  options = {"near_mm": 3.0, "least": 0.3, "apart_mm": 8.0}
  (one,) = candidates.vessel_peaks(heat, tree, **options)
  assert np.linalg.norm(one.position_mm - first) < 3
  assert one.heat <= 1
  # Beside much more heat off the vessels it is nothing.
  far = np.array(tree.shape) - 1 - np.array(index)
  heat[tuple(slice(max(k - 4, 0), k + 5) for k in far)] += 1.0
  assert candidates.vessel_peaks(heat, tree, **options) == []
