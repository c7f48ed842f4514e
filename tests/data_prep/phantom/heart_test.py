"""The heart: blood that is one pool, fat in the grooves, what is uneven."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from data_prep.geometry import GridSpec
from data_prep.phantom import heart, make_phantom
from data_prep.phantom.acquisition import Texture
from data_prep.phantom.population import draw_patient, draw_scanner
from data_prep.tissues import Tissue
from data_prep.volume import Grid

UPRIGHT = np.eye(3)[:, ::-1]
CHAMBERS = (
  Tissue.LEFT_VENTRICLE,
  Tissue.RIGHT_VENTRICLE,
  Tissue.LEFT_ATRIUM,
  Tissue.RIGHT_ATRIUM,
)
QUIET = {
  "noise_hu": 1.0,
  "motion_mm": 0.0,
  "contrast_hu": 400.0,
  "right_heart": 0.8,
  "mixing": 0.1,
}
CLEAN = {
  f"{place}_calcium_mm3": 0.0
  for place in ("aortic", "valve", "annulus", "cartilage", "node")
}


def box(center, extent_mm, spacing_mm):
  """A grid of that extent (x, y, z) in mm around a point in LPS mm."""
  shape = tuple(int(e / spacing_mm) for e in extent_mm[::-1])
  first = (np.array(shape) - 1) / 2 * spacing_mm
  return Grid(
    shape, (spacing_mm,) * 3, np.array(center) - UPRIGHT @ first, UPRIGHT
  )


def wide(seed, spacing_mm=3.0, **kwargs):
  """A phantom on all of a wide field, at a coarse spacing."""
  spec = GridSpec("spacing", spacing_mm=(spacing_mm,) * 3)
  scanner = {"fov_mm": 200.0, "length_mm": 170.0, **kwargs.pop("scanner", {})}
  return make_phantom(seed, label=0, grid=spec, scanner=scanner, **kwargs)


@pytest.fixture(scope="module")
def crowd():
  return [wide(seed) for seed in range(20)]


@pytest.fixture(scope="module", params=[0, 1, 2])
def quiet(request):
  """A heart without noise, calcium and streaming, at 1.5 mm."""
  return wide(request.param, 1.5, scanner=QUIET, population=CLEAN)


def body_of(phantom):
  return heart.make_heart(phantom.params["patient"])


def hu_along(phantom, points):
  """HU [N] at points [N, 3] of the heart's frame."""
  place = body_of(phantom).to_patient(np.asarray(points, float))
  index = phantom.volume.grid.to_index(place).T
  hu = phantom.volume.hu.astype(np.float32)
  return ndimage.map_coordinates(hu, index, order=1)


def near_heart(phantom, half_mm=64.0):
  """Slices of a box around the heart."""
  grid = phantom.volume.grid
  middle = np.array(phantom.params["patient"]["heart_center_mm"]) + [0, 4, 3]
  index, step = grid.to_index(middle), np.array(grid.spacing)
  low = np.maximum(np.rint(index - half_mm / step), 0).astype(int)
  high = np.rint(index + half_mm / step).astype(int)
  return tuple(slice(a, b) for a, b in zip(low, high, strict=True))


def test_share_of_fat(crowd):
  """Of a box of 128 mm, -190 to -30 HU: eight real scans had 0.05 to 0.17."""
  shares = []
  for phantom in crowd:
    hu = phantom.volume.hu[near_heart(phantom)]
    shares.append(((hu >= -190) & (hu <= -30)).mean())
  assert 0.05 < np.median(shares) < 0.17
  assert min(shares) > 0.04
  assert max(shares) < 0.19


def test_volume_of_epicardial_fat(crowd):
  """Measured on CT in many cohorts: medians of 80 to 130 mL, 30 to 250."""
  ml = [(p.tissues == Tissue.EPICARDIAL_FAT).sum() * 27 / 1000 for p in crowd]
  assert 70 < np.median(ml) < 140
  assert min(ml) > 30
  assert max(ml) < 250


def test_heart_touches_lung(crowd):
  """No moat: lung within 3 mm of the wall; at 0.145 of the shared scan's."""
  for phantom in crowd:
    body = np.isin(phantom.tissues, (*CHAMBERS, Tissue.MYOCARDIUM))
    skin = ndimage.binary_dilation(body) & ~body
    assert 0.05 < (phantom.volume.hu[skin] < -400).mean() < 0.35


def test_stems_of_the_coronaries_lie_in_fat(quiet):
  lines = quiet.centerlines
  grid = quiet.volume.grid
  far = ndimage.distance_transform_edt(quiet.tissues != Tissue.LUNG) * 1.5
  for name in ("LM", "LAD", "RCA"):
    index = grid.to_index(lines[name][8:120, :3])
    index = index[((index > 1) & (index < np.array(grid.shape) - 2)).all(1)]
    to_lung = ndimage.map_coordinates(far, index.T, order=1)
    fat = to_lung - lines[name][8:120, 3][: len(to_lung)]
    assert np.percentile(fat, 10) > 1.0, name


def test_vessels_on_the_heart_keep_off_blood_and_lung(quiet):
  """1.6 mm outside of the lumen there is fat, muscle or pericardium."""
  wrong = (*CHAMBERS, Tissue.LUNG, Tissue.PULMONARY_ARTERY)
  grid, shares = quiet.volume.grid, {}
  for name, line in quiet.centerlines.items():
    points, radius = line[16:, :3], line[16:, 3:]
    if len(points) < 8:
      continue  # A left main of a few mm.
    way = np.gradient(points, axis=0)
    way /= np.linalg.norm(way, axis=1, keepdims=True)
    side = np.cross(way, [0.3, 0.5, 0.8])
    side /= np.linalg.norm(side, axis=1, keepdims=True)
    turn = np.radians(np.arange(0, 360, 45.0))[:, None, None]
    ring = np.cos(turn) * side + np.sin(turn) * np.cross(way, side)
    index = grid.to_index((points + (radius + 1.6) * ring).reshape(-1, 3))
    index = np.rint(index).astype(int)
    index = index[((index >= 0) & (index < np.array(grid.shape))).all(1)]
    shares[name] = np.isin(quiet.tissues[tuple(index.T)], wrong).mean()
  assert max(shares.values()) < 0.12, shares


def test_pulmonary_veins_open_into_the_left_atrium(quiet):
  """From the middle of the atrium out through all four mouths: blood."""
  scale = quiet.params["patient"]["la_scale"]
  middle = np.array([-8.0, 36, 13])
  for mouth in ((-36, 33, 30), (-36, 46, 9), (19, 41, 31), (20, 49, 16)):
    way = (np.array(mouth, float) - middle) * scale
    line = middle + np.linspace(0, 1.1, 40)[:, None] * way
    assert hu_along(quiet, line).min() > 0.8 * 400


def test_outflow_tract_has_no_rings(quiet):
  """From its axis outward there is blood, then wall, and no blood again."""
  start, end = np.array([3.0, -33, 8]), heart.PULMONARY_VALVE
  axis = (end - start) / np.linalg.norm(end - start)
  side = np.cross(axis, [1.0, 0, 0])
  side /= np.linalg.norm(side)
  turn = np.radians(np.arange(0, 360, 10.0))[:, None, None]
  way = np.cos(turn) * side + np.sin(turn) * np.cross(axis, side)
  middle = start + np.linspace(0.4, 1, 13)[:, None] * (end - start)
  radius = np.arange(0, 14, 0.5)[:, None]
  rays = middle[:, None, None] + (radius * way)[None]
  hu = hu_along(quiet, rays.reshape(-1, 3)).reshape(-1, len(radius))
  inner = np.maximum.accumulate(hu, 1)
  outer = np.maximum.accumulate(hu[:, ::-1], 1)[:, ::-1]
  dip = (np.minimum(inner, outer) - hu).max(1)
  # The left ventricle's blood is behind some of the septum.
  assert (dip > 25).mean() < 0.12


def test_outflow_tract_and_pulmonary_trunk_are_one_pool(quiet):
  line = np.array([[4.0, -31, 12], heart.PULMONARY_VALVE, [10.5, -12, 44.5]])
  line = np.concatenate(
    [np.linspace(a, b, 20) for a, b in itertools.pairwise(line)]
  )
  assert hu_along(quiet, line).min() > 0.85 * 320


def test_tricuspid_valve_is_open(quiet):
  """Faces of voxels between the right chambers: the valve has about 10 cm2.

  A staircase of voxels has half as much again.
  """
  tissues, faces = quiet.tissues, 0
  for axis in range(3):
    one, other = (np.delete(tissues, k, axis).astype(int) for k in (-1, 0))
    pair = {Tissue.RIGHT_ATRIUM, Tissue.RIGHT_VENTRICLE}
    both = np.isin(one, list(pair)) & np.isin(other, list(pair))
    faces += (both & (one != other)).sum()
  assert 13.8 < faces * 1.5**2 / 100 < 22


def test_volume_of_the_heart(crowd):
  """Chambers and muscle: 669 mL in the shared scan."""
  ml = [
    np.isin(p.tissues, (*CHAMBERS, Tissue.MYOCARDIUM)).sum() * 27 / 1000
    for p in crowd
  ]
  assert 550 < np.median(ml) < 780
  assert min(ml) > 380
  assert max(ml) < 1100


def test_left_ventricle_has_trabeculae_and_papillary_muscles():
  patient = draw_patient(np.random.default_rng(1))
  texture = Texture(np.random.default_rng(2))
  axis = np.arange(-80, 81, 1.0, dtype=np.float32) + np.float32(0.5)
  q = (axis[None, None], axis[None, :, None], axis[:, None, None])
  smooth = heart.lv_inside(q, patient) < 0
  rough = heart.lv_inside(q, patient, texture) < 0
  assert not (rough & ~smooth).any()
  # In diastole the trabeculated layer is a tenth to a third of the cavity.
  assert 0.05 < 1 - rough.sum() / smooth.sum() < 0.3
  edge = lambda m: (ndimage.binary_dilation(m) & ~m).sum()  # noqa: E731
  assert edge(rough) > 1.1 * edge(smooth)
  muscles, count = ndimage.label(heart.papillary(q, patient) < 0)
  assert count == 2
  assert np.bincount(muscles.ravel())[1:].min() > 1000


def test_right_heart_streams():
  """Beside the left atrium, where blood is mixed."""
  sd = {}
  for mixing in (0.05, 0.4):
    phantom = wide(
      1,
      population=CLEAN,
      scanner={**QUIET, "mixing": mixing, "right_heart": 1.2},
    )
    inner = lambda t, p=phantom: p.volume.hu[  # noqa: E731
      ndimage.binary_erosion(p.tissues == t, iterations=2)
    ]
    right, left = inner(Tissue.RIGHT_ATRIUM), inner(Tissue.LEFT_ATRIUM)
    assert left.std() < 10
    sd[mixing] = right.std()
    assert np.median(right) > np.median(left)
  assert sd[0.4] > 80
  assert sd[0.4] > 1.2 * sd[0.05]


def test_contrast_of_the_right_heart():
  """Up to 700 HU, and the brighter side in some patients."""
  drawn = [draw_scanner(np.random.default_rng(k)) for k in range(400)]
  right = np.array([d["contrast_hu"] * d["right_heart"] for d in drawn])
  assert 600 < np.percentile(right, 99) < 900
  assert 0.1 < np.mean([d["right_heart"] > 1 for d in drawn]) < 0.45


def test_anatomy_is_the_same_on_both_grids():
  """The chambers have the same volume on fine and coarse voxels."""
  ml = {}
  for spacing in (1.5, 3.0):
    tissues = wide(4, spacing).tissues
    ml[spacing] = np.array(
      [(tissues == t).sum() * spacing**3 / 1000 for t in CHAMBERS]
    )
  np.testing.assert_allclose(ml[1.5], ml[3.0], rtol=0.08)
