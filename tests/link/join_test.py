"""Evidence and segmentation joined, on phantoms whose truth is known."""

import numpy as np
import pytest

from cadjax.data import classes
from cadjax.link import evidence
from cadjax.link import join as link_join
from data_prep import geometry, phantom
from data_prep.volume import Grid, Volume

NAMES = classes.get_class_set("four").names


@pytest.fixture(scope="module")
def drawn():
  grid = geometry.GridSpec("heart", shape=(96,) * 3, box_mm=(128.0,) * 3)
  return phantom.make_phantom(5, label=1, severity="overt", grid=grid)


@pytest.fixture(scope="module")
def structures(drawn):
  return link_join.find_structures(drawn.volume, drawn.mask, NAMES)


def ball(grid: Grid, center_mm, radius_mm: float) -> np.ndarray:
  index = np.moveaxis(np.indices(grid.shape), 0, -1)
  away = np.linalg.norm(grid.to_mm(index) - center_mm, axis=-1)
  return np.clip(1 - away / radius_mm, 0, 1).astype(np.float32)


def join(structures, heat, grid, **options):
  given = {"layer": "a", "probability": 0.9, "threshold": 0.5} | options
  return link_join.join(structures, {"a": heat}, grid, **given)


def test_structures_are_those_of_the_mask(drawn, structures):
  np.testing.assert_array_equal(
    structures.mask(*link_join.CORONARIES), drawn.mask >= 2
  )
  np.testing.assert_array_equal(
    structures.mask(link_join.AORTA), drawn.mask == 1
  )
  np.testing.assert_array_equal(structures.plaques["unstable"], drawn.mask == 4)
  voxel_ml = np.prod(drawn.volume.spacing) / 1000
  for number, name in enumerate(NAMES[1:], 1):
    expected = (drawn.mask == number).sum() * voxel_ml
    assert structures.volumes_ml[name] == pytest.approx(expected)
  assert sum(structures.plaque_mm3.values()) == pytest.approx(
    1000 * (drawn.mask >= 3).sum() * voxel_ml
  )
  assert {"LAD", "LCx", "RCA"} <= set(structures.tree.names)


def test_a_task_without_plaque_has_none(drawn):
  task = classes.get_class_set("aorta_coronaries")
  found = link_join.find_structures(
    drawn.volume, task.table[drawn.mask], task.names
  )
  assert found.plaques is None
  assert found.plaque_mm3 is None
  linked = join(found, ball(drawn.volume.grid, (0, 0, 0), 1), found.volume.grid)
  assert all(finding.plaque == "" for finding in linked.findings)


def test_a_map_keeps_its_place_on_another_grid(drawn):
  fine = drawn.volume.grid
  center = fine.center_mm + [7.0, -9.0, 5.0]
  # Coarser, and smaller than the target on all sides.
  direction = np.eye(3)[:, ::-1]
  shape, spacing = (32, 34, 36), (2.5, 2.4, 2.3)
  first = (np.array(shape) - 1) / 2 * spacing
  coarse = Grid(shape, spacing, fine.center_mm - direction @ first, direction)
  there = link_join.lay_on(ball(coarse, center, 20.0), coarse, fine)
  np.testing.assert_allclose(
    np.nan_to_num(there), ball(fine, center, 20.0), atol=0.08
  )
  index = np.moveaxis(np.indices(fine.shape), 0, -1)
  outside = coarse.to_index(fine.to_mm(index))
  far = (outside < -0.6) | (outside > np.array(shape) - 0.4)
  assert np.isnan(there[far.any(-1)]).all()
  assert np.isfinite(there[~far.any(-1) & ((outside > 0).all(-1))]).mean() > 0.9


def test_evidence_on_a_lesion_is_told_to_its_vessel(drawn, structures):
  lesion = next(x for x in drawn.lesions if x["segment"] in ("LAD", "RCA"))
  grid = drawn.volume.grid
  heat = ball(grid, np.array(lesion["position_mm"]), 8.0)
  linked = join(structures, heat, grid)
  shares = linked.shares["a"]
  assert sum(share.energy for share in shares.values()) == pytest.approx(1)
  near = {k: v for k, v in linked.near["a"].items() if k != evidence.ELSEWHERE}
  best = max(near, key=lambda name: near[name].energy)
  assert lesion["segment"] in best
  assert near[best].lift > 20
  heats = [f for f in linked.findings if "heat" in f.sources]
  away = np.linalg.norm(np.array(heats[0].position_mm) - lesion["position_mm"])
  assert away < 5
  assert linked.statements == []


def test_all_lesions_are_located_from_the_true_mask(drawn, structures):
  flat = np.ones(drawn.volume.shape, np.float32)
  linked = join(structures, flat, drawn.volume.grid)
  places = np.array([f.position_mm for f in linked.findings])
  for lesion in drawn.lesions:
    away = np.linalg.norm(places - lesion["position_mm"], axis=1)
    assert away.min() < 5, lesion["segment"]


def test_a_map_beyond_the_segmentation_is_counted_apart(drawn, structures):
  inner = drawn.volume.grid
  # As fine and as wide in two directions, twice as high in the third.
  shape = (inner.shape[0] * 2, *inner.shape[1:])
  outer = Grid(shape, inner.spacing, inner.origin, inner.direction)
  heat = np.zeros(shape, np.float32)
  heat[10, 50, 50], heat[150, 50, 50] = 0.25, 0.75
  assert join(structures, heat, outer).outside == pytest.approx(0.75)
  heat[150:] = 0
  assert join(structures, heat, outer).outside == 0
  assert np.isnan(join(structures, 0 * heat, outer).outside)


def test_evidence_off_the_vessels_is_said(drawn, structures):
  grid = drawn.volume.grid
  coronary = structures.mask(*link_join.CORONARIES)
  reach = evidence.dilate(coronary.astype(np.uint8), grid.spacing, 12.0)
  free = np.argwhere(reach == 0)
  heat = ball(grid, grid.to_mm(free[len(free) // 2]), 4.0)
  said = join(structures, heat, grid).statements
  assert any("not at the coronary arteries" in sentence for sentence in said)


def test_an_empty_segmentation_is_said(drawn):
  labels = np.zeros_like(drawn.mask)
  found = link_join.find_structures(drawn.volume, labels, NAMES)
  heat = ball(drawn.volume.grid, drawn.volume.grid.center_mm, 9.0)
  linked = join(found, heat, drawn.volume.grid)
  assert linked.findings == []
  assert any("No coronary artery" in sentence for sentence in linked.statements)
  assert any("No aorta" in sentence for sentence in linked.statements)
  assert linked.shares["a"][evidence.ELSEWHERE].energy == pytest.approx(1)


def test_an_empty_map_is_said(drawn, structures):
  heat = np.zeros(drawn.volume.shape, np.float32)
  linked = join(structures, heat, drawn.volume.grid)
  assert any("heat map is empty" in sentence for sentence in linked.statements)
  assert np.isnan(linked.shares["a"]["aorta"].energy)
  assert isinstance(structures.volume, Volume)


def test_volumes_of_a_sheared_grid_are_those_of_its_determinant():
  """A gantry tilted by 20 degrees: the product of spacings is 6 % too much."""
  shape = (20, 16, 16)
  tilt = np.radians(20)
  affine = np.array(
    [
      [0, 0, 1.0, 0],
      [np.sin(tilt), 1.0, 0, 0],
      [np.cos(tilt), 0, 0, 0],
      [0, 0, 0, 1.0],
    ]
  )
  labels = np.zeros(shape, np.uint8)
  labels[4:16, 4:8, 4:8] = 1
  hu = np.zeros(shape, np.int16)
  found = link_join.find_structures(
    Volume(hu, Grid.from_affine(shape, affine)),
    labels,
    ("background", "coronaries"),
  )
  linked = join(found, np.ones(shape, np.float32), found.volume.grid)
  total = sum(one.volume_ml for one in linked.shares["a"].values())
  expected = np.prod(shape) * np.cos(tilt) / 1000
  assert total == pytest.approx(expected, rel=1e-6)
  assert found.volumes_ml["coronaries"] == pytest.approx(
    12 * 4 * 4 * np.cos(tilt) / 1000
  )
