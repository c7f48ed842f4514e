"""The great vessels: sizes, branches, and what a diseased aorta shows."""

import numpy as np
import pytest
from scipy import ndimage

from data_prep.geometry import GridSpec
from data_prep.phantom import heart, make_phantom, vessels
from data_prep.phantom.population import draw_patient
from data_prep.tissues import Tissue
from data_prep.volume import Grid

UPRIGHT = np.eye(3)[:, ::-1]
QUIET = {"noise_hu": 1.0, "motion_mm": 0.0, "contrast_hu": 400.0}
CLEAN = {
  f"{place}_calcium_mm3": 0.0
  for place in ("aortic", "valve", "annulus", "cartilage", "node")
}
HEALTHY = {
  **draw_patient(np.random.default_rng(0))["aorta_disease"],
  "aneurysm_mm": 0.0,
  "thrombus": False,
  "dissection": False,
  "graft": False,
}
ML = 2.0**3 / 1000


def whole(seed=7, **disease):
  """The whole chest at 2 mm, with diseases of the aorta."""
  return make_phantom(
    seed,
    label=0,
    grid=GridSpec("spacing", spacing_mm=(2.0,) * 3),
    scanner={"fov_mm": 240.0, "length_mm": 300.0, **QUIET},
    population={**CLEAN, "aorta_disease": {**HEALTHY, **disease}},
  )


@pytest.fixture(scope="module")
def healthy():
  return whole()


def volume(phantom, tissue):
  return (phantom.tissues == tissue).sum() * ML


def test_sizes_of_the_aorta():
  """Ascending 26 to 40 mm, descending 18 to 40, drawn apart from it."""
  drawn = [draw_patient(np.random.default_rng(k)) for k in range(300)]
  up, down = (
    2 * np.array([d[name] for d in drawn])
    for name in ("aorta_radius_mm", "descending_radius_mm")
  )
  assert up.min() >= 26
  assert up.max() <= 40
  assert down.min() >= 18
  assert down.max() <= 40
  assert 29 < np.median(up) < 33
  assert 22 < np.median(down) < 27
  assert abs(np.corrcoef(up, down)[0, 1]) < 0.15


def test_the_line_has_the_sizes_drawn():
  for seed in range(20):
    patient = draw_patient(np.random.default_rng(seed))
    patient["aorta_disease"] = HEALTHY
    points, radii = vessels.aorta_line(heart.make_heart(patient))
    assert radii[2] == pytest.approx(patient["aorta_radius_mm"], rel=0.06)
    low = points[:, 2] < patient["heart_center_mm"][2]
    descending = radii[low & (np.arange(len(radii)) > len(radii) // 2)]
    assert descending[0] == pytest.approx(
      patient["descending_radius_mm"], rel=0.06
    )


def test_some_descending_aortas_wind():
  """Length over the straight way, from the arch to the diaphragm."""
  ratio = []
  for seed in range(60):
    patient = draw_patient(np.random.default_rng(seed))
    points, _ = vessels.aorta_line(heart.make_heart(patient))
    part = points[int(0.6 * len(points)) :]
    way = np.linalg.norm(np.diff(part, axis=0), axis=1).sum()
    ratio.append(way / np.linalg.norm(part[-1] - part[0]))
  assert min(ratio) < 1.03
  assert 1.06 < max(ratio) < 1.6


def test_rates_of_disease():
  drawn = [
    draw_patient(np.random.default_rng(k))["aorta_disease"] for k in range(1500)
  ]
  rate = lambda name: np.mean([bool(d[name]) for d in drawn])  # noqa: E731
  assert 0.04 < rate("aneurysm_mm") < 0.085
  for name in ("thrombus", "dissection", "graft"):
    assert 0.015 < rate(name) < 0.05


def test_three_branches_leave_the_arch(healthy):
  branches = healthy.tissues == Tissue.ARCH_BRANCHES
  top = np.array(healthy.params["patient"]["heart_center_mm"]) + [0, 0, 145]
  row = int(healthy.volume.grid.to_index(top)[0])
  _, count = ndimage.label(branches[row])
  assert count == 3
  grown = ndimage.binary_dilation(healthy.tissues == Tissue.AORTA)
  pieces, count = ndimage.label(branches)
  sizes = np.bincount(pieces.ravel())
  for k in np.flatnonzero(sizes[1:] > 20) + 1:
    assert (grown & (pieces == k)).any()
  assert np.median(healthy.volume.hu[ndimage.binary_erosion(branches)]) > 330


def test_veins_of_the_chest_reach_the_right_atrium(healthy):
  tissues = healthy.tissues
  cava = tissues == Tissue.SUPERIOR_VENA_CAVA
  blood = cava | (tissues == Tissue.RIGHT_ATRIUM)
  blood |= tissues == Tissue.INFERIOR_VENA_CAVA
  pieces, _ = ndimage.label(blood)
  sizes = np.bincount(pieces.ravel())
  largest = pieces == sizes[1:].argmax() + 1
  for tissue in (
    Tissue.SUPERIOR_VENA_CAVA,
    Tissue.INFERIOR_VENA_CAVA,
    Tissue.RIGHT_ATRIUM,
  ):
    assert largest[tissues == tissue].mean() > 0.95
  assert 15 < volume(healthy, Tissue.SUPERIOR_VENA_CAVA) < 80


def test_small_vessels_of_the_chest(healthy):
  """Azygos vein, internal mammary and intercostal arteries."""
  assert 3 < volume(healthy, Tissue.OTHER_VESSELS) < 30
  body = heart.make_heart(healthy.params["patient"])
  grid = healthy.volume.grid
  place = grid.to_mm(np.argwhere(healthy.tissues == Tissue.OTHER_VESSELS))
  place = (place - body.center) / body.size["body_scale"]
  front = place[place[:, 1] < -30]
  assert (front[:, 0] > -24).any()
  assert (front[:, 0] < -24).any()
  assert (place[:, 1] > 70).any()


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_dissection(healthy, share):
  """A pale false lumen counts as wall, a dense one as aorta."""
  torn = whole(dissection=True, false_lumen=share)
  tissues = torn.tissues
  changed = torn.volume.hu.astype(int) - healthy.volume.hu
  false = (changed < -60) & (healthy.tissues == Tissue.AORTA)
  assert 15 < false.sum() * ML < 120
  assert np.median(torn.volume.hu[false]) == pytest.approx(
    400 * share, abs=30 if share < 0.5 else 60
  )
  # Half of the flap, too thin for these voxels, is within the true lumen.
  is_aorta = (tissues[false] == Tissue.AORTA).mean()
  assert is_aorta < 0.25 if share < 0.5 else is_aorta > 0.9
  # The true lumen goes on: one dense aorta from the valve to the abdomen.
  dense = (tissues == Tissue.AORTA) & (torn.volume.hu > 330)
  pieces, _ = ndimage.label(dense)
  assert np.bincount(pieces.ravel())[1:].max() > 0.9 * dense.sum()


def test_thrombus_is_wall(healthy):
  sick = whole(thrombus=True)
  lost = (healthy.tissues == Tissue.AORTA) & (sick.tissues != Tissue.AORTA)
  assert 8 < lost.sum() * ML < 80
  assert (sick.tissues[lost] == Tissue.AORTIC_WALL).mean() > 0.95
  assert 20 < np.median(sick.volume.hu[ndimage.binary_erosion(lost)]) < 80


@pytest.mark.parametrize("at", [0.1, 0.65])
def test_aneurysm(healthy, at):
  sick = whole(aneurysm_mm=6.0, aneurysm_at=at)
  more = volume(sick, Tissue.AORTA) - volume(healthy, Tissue.AORTA)
  assert 15 < more < 120


def test_graft_is_metal_on_the_wall(healthy):
  sick = whole(graft=True)
  bright = sick.volume.hu - healthy.volume.hu > 150
  assert bright.sum() > 100
  distance = vessels.aorta_distance(
    _voxels(sick.volume.grid), heart.make_heart(sick.params["patient"]), 6.0
  )
  assert (np.abs(distance[bright]) < 4).mean() > 0.95


def _voxels(grid):
  from data_prep.phantom.shapes import Voxels

  return Voxels(grid)


def test_aortic_valve_has_three_leaflets():
  """Thin and of soft tissue, they meet in the middle of the root."""
  patient = {**CLEAN, "heart_center_mm": [0.0, 0, 0], "heart_scale": 1.0}
  patient["heart_turn_deg"] = [0.0, 0, 0]
  middle = heart.AORTIC_VALVE + 11.0 * heart.ROOT_WAY
  shape, step = (40, 70, 70), 0.6
  first = (np.array(shape) - 1) / 2 * step
  grid = Grid(shape, (step,) * 3, middle - UPRIGHT @ first, UPRIGHT)
  phantom = make_phantom(
    3, label=0, grid=grid, population=patient, scanner=QUIET
  )
  body = heart.make_heart(phantom.params["patient"])
  centers, radius = vessels.sinuses(body)
  center = heart.AORTIC_VALVE + 10.0 * heart.ROOT_WAY
  facing = centers - center
  facing /= np.linalg.norm(facing, axis=1, keepdims=True)
  across = np.cross(heart.ROOT_WAY, facing[0])
  across /= np.linalg.norm(across)
  turn = np.radians(np.arange(0, 360, 3.0))[:, None]
  ring = center + 0.45 * radius * (
    np.cos(turn) * facing[0] + np.sin(turn) * across
  )
  index = grid.to_index(ring).T
  hu = ndimage.map_coordinates(
    phantom.volume.hu.astype(np.float32), index, order=1
  )
  dark = hu < 340
  starts = (dark & ~np.roll(dark, 1)).sum()
  assert starts == 3
  assert 0.03 < dark.mean() < 0.6
