"""Lines in mm: their length, their ends, and the middle of a tube."""

import numpy as np
import pytest
import tubes

from cadjax.vessels import centrelines


def test_arc_length_is_the_way_along_the_points():
  line = np.array([[0, 0, 0], [3, 4, 0], [3, 4, 0], [3, 4, 2]], float)
  np.testing.assert_allclose(centrelines.arc_length(line), [0, 5, 5, 7])
  np.testing.assert_array_equal(centrelines.arc_length(line[:1]), [0])


def test_resampling_keeps_the_ends_and_spaces_evenly():
  line = np.array([[0, 0, 0], [1, 0, 0], [10, 0, 0], [10, 7.3, 0]], float)
  even = centrelines.resample(line, 0.5)
  np.testing.assert_allclose(even[[0, -1]], line[[0, -1]])
  arc = centrelines.arc_length(even)
  # The corner is cut by less than a step.
  assert arc[-1] == pytest.approx(17.3, abs=0.5)
  assert len(even) == round(17.3 / 0.5) + 1
  point = centrelines.resample(np.array([[1.0, 2, 3], [1, 2, 3.1]]), 0.5)
  assert len(point) == 2


def test_smoothing_leaves_a_straight_line_and_the_ends_of_any():
  straight = np.linspace([0, 0, 0], [10, 5, -20], 30)
  smooth = centrelines.smooth(straight, 2.0, 0.5)
  way = (straight[-1] - straight[0]) / np.linalg.norm(straight[-1])
  np.testing.assert_allclose(np.cross(smooth, way), 0, atol=1e-6)
  zigzag = straight + np.tile([[0.4, 0, 0], [-0.4, 0, 0]], (15, 1))
  smooth = centrelines.smooth(zigzag, 2.0, 0.5)
  np.testing.assert_allclose(smooth[[0, -1]], zigzag[[0, -1]], atol=1e-6)
  lengths = [centrelines.arc_length(x)[-1] for x in (zigzag, smooth, straight)]
  assert lengths[1] < lengths[0]
  assert lengths[1] == pytest.approx(lengths[2], rel=0.02)


def test_a_line_moves_to_the_middle_of_its_tube():
  shape, affine = tubes.grid("cubic", (-6, -6, -12), (6, 6, 12))
  axis = np.array([[0.0, 0, -10], [0, 0, 10]])
  mask = tubes.tube(axis, 2.0, shape, affine)
  line = centrelines.resample(axis + [0.8, -0.6, 0], 0.5)
  (moved,) = centrelines.centred(
    [line], [(0, 0)], [-1], mask, affine, sigma_mm=1.0, step_mm=0.5
  )
  assert np.linalg.norm(line[:, :2], axis=1).min() > 0.9
  assert np.linalg.norm(moved[4:-4, :2], axis=1).max() < 0.15


def test_a_line_is_prolonged_to_the_end_of_its_mask():
  shape, affine = tubes.grid("cubic", (-6, -6, -12), (6, 6, 12))
  mask = tubes.tube(np.array([[0.0, 0, -10], [0, 0, 6]]), 2.0, shape, affine)
  voxels = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
  line = np.linspace([0, 0, -8.0], [0, 0, 3.0], 23)
  longer = centrelines.extend(line, mask, affine, 20.0)
  np.testing.assert_array_equal(longer[:-1], line)
  edge = np.linalg.norm(affine[:3, :3], axis=0).max()
  end = voxels[np.linalg.norm(voxels[:, :2], axis=1) < edge, 2].max()
  assert longer[-1, 2] == pytest.approx(end, abs=edge)
  np.testing.assert_allclose(longer[-1, :2], 0, atol=1e-9)
  short = centrelines.extend(line, mask, affine, 1.0)
  assert 0.8 < short[-1, 2] - line[-1, 2] <= 1.0
  nowhere = centrelines.extend(line, np.zeros_like(mask), affine, 20.0)
  np.testing.assert_array_equal(nowhere, line)
