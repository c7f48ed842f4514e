import numpy as np
import pytest
import tubes
from scipy import ndimage

from cadjax.vessels import reformat

RADIUS, PITCH = 9.0, 5.0  # of the helix, mm and mm per radian
TURNS = np.linspace(0, 2.4 * np.pi, 400)
HELIX = np.column_stack(
  [RADIUS * np.cos(TURNS), RADIUS * np.sin(TURNS), -PITCH * TURNS]
)
LOW, HIGH = HELIX.min(0) - 6, HELIX.max(0) + 6
TUBE = 2.0


@pytest.fixture(scope="module")
def volume():
  """HU of a tube along the helix, its edge half a voxel soft."""
  shape, affine = tubes.grid("oblique", LOW, HIGH)
  mm = tubes.centres(shape, affine)
  away, _ = tubes.cKDTree(tubes.dense(HELIX)).query(
    mm, distance_upper_bound=TUBE + 1
  )
  return 400 * np.clip((TUBE - away) / 0.5 + 0.5, 0, 1), affine


def test_frames_are_orthonormal_and_even():
  frames = reformat.make_frames(HELIX)
  axes = np.stack([frames.tangent, frames.normal, frames.binormal], 1)
  gram = axes @ axes.swapaxes(1, 2)
  np.testing.assert_allclose(
    gram, np.tile(np.eye(3), (len(gram), 1, 1)), atol=1e-9
  )
  np.testing.assert_allclose(np.linalg.det(axes), 1)
  assert frames.way_mm[-1] == pytest.approx(tubes.length(HELIX), rel=1e-3)
  np.testing.assert_allclose(np.diff(frames.way_mm), 0.5, atol=0.01)


def test_frames_turn_as_little_as_may_be():
  """Against a Frenet frame they turn by minus the torsion."""
  frames = reformat.make_frames(HELIX, 0.25)
  inward = frames.points_mm * [-1, -1, 0] / RADIUS
  angle = np.unwrap(
    np.arctan2(
      (frames.normal * np.cross(frames.tangent, inward)).sum(1),
      (frames.normal * inward).sum(1),
    )
  )
  # The helix goes down while it turns left: its torsion is negative.
  torsion = -PITCH / (RADIUS**2 + PITCH**2)
  inner = slice(10, -10)
  slope = np.polyfit(frames.way_mm[inner], angle[inner], 1)[0]
  assert slope == pytest.approx(-torsion, rel=0.01)


def test_in_a_plane_the_normal_keeps_its_angle_to_it():
  arc = np.array([[np.sin(t), 0, 1 - np.cos(t)] for t in np.linspace(0, 3)])
  frames = reformat.make_frames(20 * arc, up=(0, -1, 0))
  np.testing.assert_allclose(
    frames.normal, np.tile([0, -1, 0], (len(frames.normal), 1)), atol=1e-6
  )
  # Where the line starts along `up`, another direction is taken.
  down = reformat.make_frames(np.array([[0.0, 0, 0], [0, 9, 0]]))
  assert np.abs(down.normal @ [0, 1, 0]).max() < 1e-9


@pytest.mark.parametrize("angle", [0, 35, 90])
def test_a_helix_becomes_a_straight_tube(volume, angle):
  hu, affine = volume
  frames = reformat.make_frames(HELIX)
  where = reformat.straightened(frames, angle, half_width_mm=4.0)
  image = reformat.sample(hu, affine, where)
  assert image.shape == (len(where.rows_mm), len(where.columns_mm))
  inner = (where.rows_mm > 3) & (where.rows_mm < where.rows_mm[-1] - 3)
  rows = image[inner]
  center = (rows * where.columns_mm).sum(1) / rows.sum(1)
  assert np.abs(center).max() < 0.15
  width = rows.sum(1) / 400 * (where.columns_mm[1] - where.columns_mm[0])
  np.testing.assert_allclose(width, 2 * TUBE, atol=0.25)
  assert where.rows_mm[-1] == pytest.approx(tubes.length(HELIX), rel=1e-3)


def test_a_cross_section_is_a_disc_across_the_vessel(volume):
  hu, affine = volume
  frames = reformat.make_frames(HELIX)
  where = reformat.cross_section(frames, 30.0, half_width_mm=4.0)
  k = np.abs(frames.way_mm - 30).argmin()
  flat = (where.points_mm - frames.points_mm[k]) @ frames.tangent[k]
  assert np.abs(flat).max() < 1e-9
  image = reformat.sample(hu, affine, where) / 400
  step = where.columns_mm[1] - where.columns_mm[0]
  assert image.sum() * step**2 == pytest.approx(np.pi * TUBE**2, rel=0.06)
  middle = ndimage.center_of_mass(image)
  np.testing.assert_allclose(middle, np.array(image.shape) // 2, atol=0.6)
  # Columns run along the normal.
  row = where.points_mm[0]
  np.testing.assert_allclose(
    (row[-1] - row[0]) / np.linalg.norm(row[-1] - row[0]), frames.normal[k]
  )


def test_the_stretched_view_keeps_distances_and_shows_the_vessel(volume):
  hu, affine = volume
  frames = reformat.make_frames(HELIX)
  where = reformat.stretched(frames)
  points = where.points_mm
  along = np.linalg.norm(np.diff(points, axis=1), axis=2)
  np.testing.assert_allclose(along, where.columns_mm[1] - where.columns_mm[0])
  down = np.linalg.norm(np.diff(points[:, 0], axis=0), axis=1)
  np.testing.assert_allclose(down, np.diff(where.rows_mm), rtol=0.02)
  # The vessel lies in the surface: somewhere on every row is its middle.
  away, _ = tubes.cKDTree(points.reshape(-1, 3)).query(frames.points_mm)
  assert away.max() < 0.4
  image = reformat.sample(hu, affine, where, outside=0)
  assert image.max(1).min() > 350


def test_the_axis_of_a_stretched_view_can_be_chosen():
  frames = reformat.make_frames(HELIX)
  where = reformat.stretched(frames, along=np.array([0, 0, 2.0]))
  way = where.points_mm[5, -1] - where.points_mm[5, 0]
  np.testing.assert_allclose(way / np.linalg.norm(way), [0, 0, 1], atol=1e-9)
  # Unrolled, a circle is as long as its circumference.
  assert where.rows_mm[-1] == pytest.approx(RADIUS * TURNS[-1], rel=0.01)
  straight = reformat.make_frames(np.array([[0.0, 0, 0], [0, 0, 9]]))
  lost = reformat.stretched(straight, along=np.array([0.0, 0, 1]))
  assert lost.points_mm.shape[0] >= 1


def test_sampling_is_linear_and_knows_the_outside():
  shape, affine = tubes.grid("oblique", (-8, -8, -8), (8, 8, 8))
  mm = tubes.centres(shape, affine)
  slope = np.array([3.0, -2.0, 5.0])
  frames = reformat.make_frames(np.array([[-4.0, -3, -2], [4, 3, 2]]))
  inside = reformat.straightened(frames, 20, half_width_mm=1.0)
  values = reformat.sample(mm @ slope + 7, affine, inside)
  np.testing.assert_allclose(values, inside.points_mm @ slope + 7, atol=1e-4)
  wide = reformat.straightened(frames, 20, half_width_mm=40.0)
  values = reformat.sample(mm @ slope, affine, wide, outside=-1024)
  assert values[0, 0] == -1024
  index = (wide.points_mm - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
  out = ((index < -0.5) | (index > np.array(shape) - 0.5)).any(-1)
  np.testing.assert_array_equal(values == -1024, out)
  far = reformat.make_frames(np.array([[90.0, 90, 90], [95, 95, 95]]))
  beyond = reformat.straightened(far, half_width_mm=1)
  assert np.isnan(reformat.sample(mm @ slope, affine, beyond)).all()


def test_a_line_without_length_is_refused():
  for line in ([[1, 2, 3]], [[1, 2, 3], [1, 2, 3]]):
    with pytest.raises(ValueError, match="two different points"):
      reformat.make_frames(np.array(line, float))
