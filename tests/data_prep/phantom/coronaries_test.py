"""Calibre, length and course of the coronary tree beside real trees.

Real figures: 19 trees of ImageCAS at half resolution, 10 % to 90 %, and the
centrelines of one patient; see `data_prep/README.md`.
"""

import collections

import numpy as np
import pytest
from scipy import ndimage, sparse, spatial
from skimage.morphology import skeletonize

from data_prep import phantom
from data_prep.errors import UserError
from data_prep.phantom import coronaries, heart, lumen, shapes, vessels
from data_prep.phantom.population import draw_patient
from data_prep.volume import Grid

# ImageCAS has 0.29 to 0.43 mm in plane; this is its half resolution.
VOXEL_MM = 0.75
PATIENTS = 20


def grow(seed, **options):
  """The heart of `make_phantom(seed)`, its tree, and what was drawn."""
  streams = phantom._streams(seed)
  body = heart.make_heart(draw_patient(streams["patient"]))
  tree, about = coronaries.make_tree(body, streams["tree"], **options)
  return body, tree, about


def mask_of(tree):
  """The tree's mask as ImageCAS would have it, without plaque."""
  points = np.concatenate([vessel.points for vessel in tree.values()])
  low, high = points.min(0) - 6, points.max(0) + 6
  shape = tuple(int(n) for n in np.ceil((high - low) / VOXEL_MM)[::-1])
  grid = Grid(shape, (VOXEL_MM,) * 3, tuple(low), np.eye(3)[:, ::-1])
  canvas = shapes.blank(grid, 0.35)
  mask, *_ = lumen.draw_coronaries(canvas, tree, [], 400.0, np.zeros(3), 0.35)
  return mask >= 2


def measure(mask):
  """Radii along the skeleton, its length in mm, and how many ends it has."""
  skeleton = skeletonize(mask)
  radii = ndimage.distance_transform_edt(mask, sampling=VOXEL_MM)[skeleton]
  index = np.argwhere(skeleton)
  first, last = spatial.cKDTree(index).query_pairs(1.8, output_type="ndarray").T
  length = np.linalg.norm(index[first] - index[last], axis=1) * VOXEL_MM
  graph = sparse.coo_matrix((length, (first, last)), shape=(len(index),) * 2)
  tree = sparse.csgraph.minimum_spanning_tree(graph)
  neighbours = np.bincount(np.concatenate(tree.nonzero()))
  return radii, tree.sum(), int((neighbours == 1).sum())


def turning(points, step=2):
  """Degrees a mm, at steps of 1 mm."""
  way = np.diff(points[::step], axis=0)
  way /= np.linalg.norm(way, axis=1, keepdims=True)
  cosine = np.clip((way[1:] * way[:-1]).sum(1), -1, 1)
  return np.degrees(np.arccos(cosine)) / (step * coronaries.STEP_MM)


@pytest.fixture(scope="module")
def trees():
  return [grow(seed) for seed in range(PATIENTS)]


@pytest.fixture(scope="module")
def measured(trees):
  rows = collections.defaultdict(list)
  for _, tree, _ in trees:
    mask = mask_of(tree)
    radii, length, ends = measure(mask)
    rows["ml"].append(mask.sum() * VOXEL_MM**3 / 1000)
    rows["radii"].append(np.percentile(radii, [10, 50, 90]))
    rows["widest"].append(radii.max())
    rows["length"].append(length)
    rows["ends"].append(ends)
  return {name: np.array(values) for name, values in rows.items()}


def test_volume_is_that_of_real_trees(measured):
  """Real: median 6.4 mL, 10 % to 90 % 4.3 to 7.7."""
  low, middle, high = np.percentile(measured["ml"], [10, 50, 90])
  assert 5.3 < middle < 7.0
  assert 3.8 < low < 5.3
  assert 6.7 < high < 9.0


def test_calibre_is_that_of_real_trees(measured):
  """Real: 1.1, 1.5 and 2.0 mm; at most 2.6 with a deviation of 0.3."""
  low, middle, high = np.median(measured["radii"], axis=0)
  assert low == pytest.approx(1.1, abs=0.2)
  assert middle == pytest.approx(1.5, abs=0.2)
  assert high == pytest.approx(2.0, abs=0.3)
  assert 2.3 < np.median(measured["widest"]) < 3.0


def test_length_is_that_of_real_trees(measured):
  """Real: mean 655 mm, deviation 121; 10 % to 90 % 486 to 753."""
  assert 600 < measured["length"].mean() < 720
  assert 80 < measured["length"].std() < 150
  low, high = np.percentile(measured["length"], [10, 90])
  assert 450 < low < 580
  assert 700 < high < 880


def test_number_of_ends_is_that_of_real_trees(measured):
  """Real: 7 to 18."""
  assert measured["ends"].min() <= 9
  assert measured["ends"].max() >= 14
  assert ((measured["ends"] >= 7) & (measured["ends"] <= 19)).all()


def test_a_right_coronary_artery_tapers(trees):
  """One real one: 2.96 mm at its beginning, 2.11 at 80 mm."""
  rows = [
    (tree["RCA"].radius[0], tree["RCA"].radius[160])
    for _, tree, about in trees
    if about["dominance"] == "right"
  ]
  first, later = np.median(rows, axis=0)
  assert 2.3 < first < 3.0
  assert 1.8 < later < 2.3


def test_vessels_wind_as_real_ones(trees):
  """Real, mean: 3.5 and 5.5 degrees a mm in two patients; more distally."""
  mean = [
    np.concatenate([turning(vessel.points) for vessel in tree.values()]).mean()
    for _, tree, _ in trees
  ]
  assert 3.5 < np.median(mean) < 5.5
  first, last = [], []
  for _, tree, _ in trees:
    turns = turning(tree["LAD"].points)
    first.append(turns[: len(turns) // 2].mean())
    last.append(turns[len(turns) // 2 :].mean())
  assert np.mean(last) > 1.05 * np.mean(first)


def test_main_vessels_take_the_natural_way(trees):
  """The circumflex does not double back; nothing crosses a chamber's blood."""
  for body, tree, about in trees:
    main, branch = tree["LM"].points, tree["LCx"].points
    if not about["anomaly"]:
      assert (main[-1] - main[-13]) @ (branch[16] - branch[0]) > -20
      away = spatial.cKDTree(main[: -min(16, len(main) - 1)]).query(branch[20:])
      assert away[0].min() > 5
    outlines = vessels.outlines(body)
    cava = shapes.spline(np.column_stack(outlines[-1]), 1.0)
    away, nearest = spatial.cKDTree(cava[:, :3]).query(tree["RCA"].points)
    assert (away - cava[nearest, 3] - tree["RCA"].radius).min() > 0
    for name, vessel in tree.items():
      skip = 0 if vessel.parent else min(16, len(vessel.points) - 4)
      points = body.from_patient(tuple(np.float32(vessel.points[skip:].T)))
      parts = heart.chambers(points, body.size)
      inside = heart.lv_inside(points, body.size)
      right = np.maximum(parts.rv, -parts.lv_outside)
      for blood in (inside, right, parts.ra, parts.la):
        assert (blood * body.scale - vessel.radius[skip:]).min() > -1, name


@pytest.mark.parametrize("anomaly", list(coronaries.ANOMALIES))
@pytest.mark.parametrize("seed", range(2))
def test_anomalous_origins(seed, anomaly):
  body, tree, about = grow(seed, anomaly=anomaly)
  _, usual, _ = grow(seed, anomaly="")
  assert about["anomaly"] == anomaly
  name = "LCx" if anomaly.startswith("LCx") else "RCA"
  vessel = tree[name]
  assert vessel.parent == ""
  moved = np.linalg.norm(vessel.points[0] - usual[name].points[0])
  assert moved > 6
  # The rest of it lies where it always does.
  away = spatial.cKDTree(usual[name].points).query(vessel.points[-60:])[0]
  assert np.median(away) < 8
  line, radii = vessels.aorta_line(body)
  away = spatial.cKDTree(line).query(vessel.points[20:])[0]
  assert away.min() > radii[0] * 0.6


def test_rates_of_dominance_branches_and_anomalies():
  """Of 4,000 draws without growing; right 70 to 80 %, ramus about 20 %."""
  drawn = [
    coronaries.draw_variant(np.random.default_rng(k)) for k in range(4000)
  ]
  share = lambda name, value: np.mean([d[name] == value for d in drawn])  # noqa: E731
  assert 0.70 < share("dominance", "right") < 0.80
  assert 0.08 < share("dominance", "left") < 0.16
  assert 0.06 < share("dominance", "co") < 0.14
  assert 0.17 < share("IM", True) < 0.23
  assert 0.004 < 1 - share("anomaly", "") < 0.018


def test_unknown_variants_are_refused():
  with pytest.raises(UserError, match="dominance 'up'"):
    grow(0, dominance="up")
  with pytest.raises(UserError, match="anomaly 'none'"):
    grow(0, anomaly="none")
