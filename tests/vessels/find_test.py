import functools

import numpy as np
import pytest
import tubes

from cadjax.vessels.find import find_vessels
from cadjax.vessels.tree import STEP_MM, calibre

LOW, HIGH = (-14, -12, -30), (26, 26, 32)
OSTIUM = np.array([0.0, 0.0, 20.0])
# From the ostium down and to the left; beside it a block of aorta.
STRAIGHT = np.array([OSTIUM, OSTIUM + [10, 4, -40]])
ARC = OSTIUM + [
  [18 * np.sin(t), 6 * (1 - np.cos(t)), -24 * t] for t in np.linspace(0, 1.4)
]


def aorta(shape, affine):
  """A ball whose surface is at the ostium."""
  return tubes.ball(OSTIUM + [-8, 0, 4], np.hypot(8, 4), shape, affine)


@functools.cache
def scene(kind, line="straight", radius=2.0):
  shape, affine = tubes.grid(kind, LOW, HIGH)
  line = {"straight": STRAIGHT, "arc": ARC}[line]
  root = aorta(shape, affine)
  mask = tubes.tube(line, radius, shape, affine) & ~root
  return mask, root, affine


@pytest.mark.parametrize("line", ["straight", "arc"])
@pytest.mark.parametrize("kind", tubes.GRIDS)
def test_a_tube_keeps_its_length_radius_and_place(kind, line):
  mask, root, affine = scene(kind, line)
  tree = find_vessels(mask, root, affine)
  points = {"straight": STRAIGHT, "arc": ARC}[line]
  voxel = max(tubes.GRIDS[kind][0])
  (branch,) = tree.branches
  # The tube ends in a half ball.
  whole = tubes.length(points) + 2.0
  assert branch.length_mm == pytest.approx(whole, abs=voxel + 0.3)
  assert branch.distance_mm[0] == 0
  np.testing.assert_allclose(branch.points_mm[0], OSTIUM, atol=2 * voxel)
  middle = slice(int(6 / STEP_MM), -int(6 / STEP_MM))
  away, _ = tubes.cKDTree(tubes.dense(points)).query(branch.points_mm[middle])
  assert away.max() < voxel / 2
  np.testing.assert_allclose(branch.radius_mm[middle], 2.0, atol=voxel / 2)
  # Distances are those along the tube, from the ostium on.
  way = tubes.length(tubes.dense(points), cumulative=True)
  _, place, _ = tree.nearest(tubes.dense(points)[::40])
  inside = (way[::40] > 4) & (way[::40] < way[-1] - 4)
  error = branch.distance_mm[place] - way[::40]
  assert np.abs(error[inside]).max() < voxel + 0.3


@pytest.mark.parametrize("kind", ["cubic", "oblique"])
def test_a_mask_far_from_every_centreline_is_told_of(kind):
  mask, root, affine = scene(kind)
  assert not any(
    "centreline" in x for x in find_vessels(mask, root, affine).notes
  )
  # A blob beside the vessel, as of a vein or the myocardium.
  blob = tubes.ball((16, 16, -20), 4.0, mask.shape, affine)
  tree = find_vessels(mask | blob, root, affine)
  (note,) = (x for x in tree.notes if "centreline" in x)
  volume = blob.sum() * abs(np.linalg.det(affine[:3, :3]))
  assert note.startswith(f"{volume:.0f} mm3 (")
  # A speck of it is noise.
  speck = tubes.ball((16, 16, -20), 1.5, mask.shape, affine)
  few = find_vessels(mask | speck, root, affine).notes
  assert not any("centreline" in x for x in few)


def test_a_vessel_that_turns_back_keeps_its_radius_to_its_ends():
  turn = np.linspace(0, 1.5 * np.pi, 80)
  hook = np.column_stack([14 - 14 * np.cos(turn), 0 * turn, -14 * np.sin(turn)])
  shape, affine = tubes.grid("cubic", (-7, -5, -18), (32, 5, 18))
  mask = tubes.tube(hook, 2.0, shape, affine)
  root = tubes.ball((-2, 0, 5), 4.5, shape, affine)
  (branch,) = find_vessels(mask & ~root, root, affine).branches
  known = np.isfinite(branch.radius_mm)
  assert known[8:].all()
  np.testing.assert_allclose(branch.radius_mm[12:-8], 2.0, atol=0.15)
  # The round cap at the end is narrower, and never wider.
  assert branch.radius_mm[-8:].max() < 2.1


def test_steps_are_even():
  mask, root, affine = scene("oblique", "arc")
  (branch,) = find_vessels(mask, root, affine).branches
  steps = np.linalg.norm(np.diff(branch.course_mm, axis=0), axis=1)
  np.testing.assert_allclose(steps, STEP_MM, atol=0.05)
  np.testing.assert_allclose(branch.course_distance_mm[1:], np.cumsum(steps))


FORK = OSTIUM + [2.0, 4.0, -16]
LEFT = [FORK, FORK + [14, 2, -14]]
RIGHT = [FORK, FORK + [-9, 6, -20]]


@functools.cache
def bifurcation(kind):
  shape, affine = tubes.grid(kind, LOW, HIGH)
  root = aorta(shape, affine)
  mask = tubes.tube([OSTIUM, FORK], 2.2, shape, affine)
  mask |= tubes.tube(LEFT, 1.6, shape, affine)
  mask |= tubes.tube(RIGHT, 1.4, shape, affine)
  return mask & ~root, root, affine


@pytest.mark.parametrize("kind", tubes.GRIDS)
def test_a_fork_gives_two_branches_and_true_distances(kind):
  mask, root, affine = bifurcation(kind)
  tree = find_vessels(mask, root, affine)
  voxel = max(tubes.GRIDS[kind][0])
  trunk = tubes.length([OSTIUM, FORK])
  for line, radius in ((LEFT, 1.6), (RIGHT, 1.4)):
    owner, place, away = tree.nearest(np.array([line[1]]))
    branch = tree.branches[owner[0]]
    way = trunk + tubes.length(line)
    assert away[0] < voxel
    assert branch.distance_mm[place[0]] == pytest.approx(way, abs=2 * voxel)
    outer = branch.radius_mm[-int(12 / STEP_MM) : -int(4 / STEP_MM)]
    np.testing.assert_allclose(outer, radius, atol=voxel / 2)
  children = [b for b in tree.branches if b.parent >= 0]
  assert children
  for child in children:
    parent = tree.branches[child.parent]
    # It shares the way to its parent and begins there; smoothing rounds the
    # corner off.
    shared = child.course_mm[: child.start + 1]
    away, _ = tubes.cKDTree(parent.course_mm).query(shared)
    assert away.max() < 1.6
    assert np.median(away) < 0.3
    assert child.start <= child.free < len(child.course_mm)
    assert np.isnan(child.radius_mm[: child.free - child.start]).all()


def test_nearest_is_that_of_all_points():
  tree = find_vessels(*bifurcation("cubic"))
  rng = np.random.default_rng(0)
  points = rng.uniform(LOW, HIGH, (50, 3))
  owner, place, away = tree.nearest(points)
  every = [
    (np.linalg.norm(b.course_mm[k] - points, axis=1), n, k - b.start)
    for n, b in enumerate(tree.branches)
    for k in range(b.free, len(b.course_mm))
  ]
  for j in range(len(points)):
    best = min(every, key=lambda one: one[0][j])
    assert away[j] == pytest.approx(best[0][j])
    assert (owner[j], place[j]) == best[1:]


def test_a_broken_vessel_keeps_its_distances():
  mask, root, affine = scene("anisotropic")
  whole = find_vessels(mask, root, affine).branches[0]
  gap = tubes.ball(STRAIGHT.mean(0), 3.5, mask.shape, affine)
  tree = find_vessels(mask & ~gap, root, affine)
  (branch,) = tree.branches
  assert branch.length_mm == pytest.approx(whole.length_mm, abs=0.5)
  assert any("bridged" in note for note in tree.notes)
  place = tree.nearest(STRAIGHT.mean(0)[None])[1][0]
  assert np.isnan(branch.radius_mm[place])
  assert np.isfinite(branch.radius_mm[[place - 14, place + 14]]).all()


def test_a_gap_too_wide_leaves_a_fragment_without_a_distance():
  mask, root, affine = scene("anisotropic")
  gap = tubes.ball(STRAIGHT.mean(0), 6.5, mask.shape, affine)
  tree = find_vessels(mask & ~gap, root, affine, gap_mm=5.0)
  first, fragment = tree.branches
  assert np.isfinite(first.distance_mm).all()
  assert np.isnan(fragment.distance_mm).all()
  assert fragment.kind == "coronary branch"
  assert fragment.sureness == "none"
  assert len(tree.ostia) == 1


def test_without_an_aorta_the_wider_end_is_the_ostium():
  shape, affine = tubes.grid("cubic", LOW, HIGH)
  mask = tubes.tube(ARC, lambda t: 2.3 - 1.2 * t, shape, affine)
  for missing in (None, np.zeros(shape, bool)):
    tree = find_vessels(mask, missing, affine)
    assert any("no aorta" in note for note in tree.notes)
    (ostium,) = tree.ostia
    assert np.linalg.norm(ostium.position_mm - ARC[0]) < 3
    (branch,) = tree.branches
    assert np.linalg.norm(branch.points_mm[0] - ARC[0]) < 3
    assert branch.distance_mm[0] == 0


def test_an_aorta_far_away_is_no_aorta():
  shape, affine = tubes.grid("cubic", LOW, HIGH)
  mask = tubes.tube(ARC, lambda t: 2.3 - 1.2 * t, shape, affine)
  far = tubes.ball((-6, 20, -24), 5, shape, affine)
  tree = find_vessels(mask, far, affine)
  assert any("No vessel comes near" in note for note in tree.notes)
  (ostium,) = tree.ostia
  assert np.linalg.norm(ostium.position_mm - ARC[0]) < 3


@pytest.mark.parametrize("missing_mm", [8.0, 13.0])
def test_a_tree_whose_first_stretch_is_missing_still_has_its_ostium(missing_mm):
  shape, affine = tubes.grid("cubic", (-14, -12, -60), HIGH)
  root = aorta(shape, affine)
  line = [OSTIUM, OSTIUM + [10, 4, -78]]
  whole = tubes.tube(line, 2.0, shape, affine) & ~root
  mask = whole & ~tubes.ball(OSTIUM, missing_mm, shape, affine)
  one, other = (find_vessels(m, root, affine) for m in (whole, mask))
  assert any("missing" in note for note in other.notes)
  # The straight line to the nearest aorta is a short cut.
  lost = one.branches[0].distance_mm[-1] - other.branches[0].distance_mm[-1]
  assert 0 <= lost < 3
  np.testing.assert_allclose(
    other.ostia[0].position_mm, one.ostia[0].position_mm, atol=3
  )


@pytest.mark.parametrize("what", ["nothing", "specks"])
def test_without_coronaries_there_is_a_note(what):
  mask, root, affine = scene("cubic")
  empty = np.zeros_like(mask)
  if what == "specks":
    empty[5, 5, 5] = empty[20, 9, 9:11] = True
  tree = find_vessels(empty, root, affine)
  assert not tree.branches
  assert not tree.ostia
  assert tree.voxels.shape == (0, 3)
  assert any("No coronary artery" in note for note in tree.notes)
  owner, place, away = tree.nearest(np.zeros((2, 3)))
  assert (owner == -1).all()
  assert (place == -1).all()
  assert np.isinf(away).all()


def test_islands_and_cavities_change_nothing():
  mask, root, affine = scene("cubic", "arc")
  clean = find_vessels(mask, root, affine).branches[0]
  rng = np.random.default_rng(3)
  dirty = mask.copy()
  for center in rng.uniform(LOW, HIGH, (12, 3)):
    away, _ = tubes.cKDTree(tubes.dense(ARC)).query(center)
    if away > 6:
      dirty |= tubes.ball(center, rng.uniform(0.7, 1.6), mask.shape, affine)
  dirty &= ~tubes.ball(ARC[25], 0.7, mask.shape, affine)
  tree = find_vessels(dirty & ~root, root, affine)
  (branch,) = tree.branches
  np.testing.assert_allclose(
    branch.distance_mm[-1], clean.distance_mm[-1], atol=0.3
  )
  away, _ = tubes.cKDTree(clean.points_mm).query(branch.points_mm)
  assert away.max() < 0.3
  inside = dirty[tuple(tree.voxels.T)]
  assert inside.mean() > 0.99
  assert len(tree.voxels) == mask.sum()


def test_a_rough_surface_grows_no_branches():
  mask, root, affine = scene("cubic", "arc")
  rng = np.random.default_rng(5)
  edge = mask ^ tubes.tube(ARC, 1.5, mask.shape, affine)
  rough = mask & ~(edge & (rng.random(mask.shape) < 0.15))
  tree = find_vessels(rough & ~root, root, affine)
  assert len(tree.branches) == 1


def test_calibre_of_a_lumen_is_that_of_a_circle_of_its_area():
  mask, root, affine = scene("cubic")
  tree = find_vessels(mask, root, affine)
  # Half of every cross-section, and none at all in the middle.
  across = np.cross(STRAIGHT[1] - STRAIGHT[0], [0, 1, 0])
  mm = tubes.centres(mask.shape, affine)
  lumen = mask & ((mm - OSTIUM) @ across > 0)
  lumen &= ~tubes.ball(STRAIGHT.mean(0), 5, mask.shape, affine)
  (radius,) = calibre(tree, lumen, mask)
  line = tree.branches[0].points_mm
  at = np.abs(
    (line - STRAIGHT.mean(0)) @ (STRAIGHT[1] - STRAIGHT[0])
  ) / tubes.length(STRAIGHT)
  assert (radius[at < 1] < 0.1).all()
  aside = (at > 8) & (at < 14)
  np.testing.assert_allclose(radius[aside], 2 / np.sqrt(2), atol=0.15)
  # Without support, an empty stretch is unknown.
  (alone,) = calibre(tree, lumen)
  assert np.isnan(alone[at < 1]).all()


def test_masks_of_two_shapes_are_refused():
  mask, root, affine = scene("cubic")
  with pytest.raises(ValueError, match="aorta"):
    find_vessels(mask, root[1:], affine)
