import itertools

import numpy as np
import pytest
import scipy.ndimage
import scipy.sparse
import scipy.sparse.linalg

from cadjax.explanation import imputation
from data_prep.errors import UserError

SHAPE = (6, 8, 10)


def smooth(seed, shape=SHAPE):
  field = np.random.default_rng(seed).random(shape)
  return scipy.ndimage.gaussian_filter(field, 1.0)


def weights_by_hand(neighbours):
  near = {
    offset: 1 / np.dot(offset, offset)
    for offset in itertools.product((-1, 0, 1), repeat=3)
    if 0 < np.dot(offset, offset) <= {6: 1, 18: 2, 26: 3}[neighbours]
  }
  total = sum(near.values())
  return {offset: weight / total for offset, weight in near.items()}


@pytest.mark.parametrize("neighbours", [6, 18, 26])
def test_each_voxel_filled_in_is_the_weighted_mean_around_it(neighbours):
  image = 100 * smooth(0)
  missing = np.random.default_rng(1).random(SHAPE) < 0.6
  missing[:2, :3, :3] = True  # A corner, where neighbours are outside.
  filled = imputation.impute(image, missing, neighbours=neighbours, noise=0)
  np.testing.assert_array_equal(filled[~missing], image[~missing])
  for voxel in np.argwhere(missing):
    total = weight_sum = 0.0
    for offset, weight in weights_by_hand(neighbours).items():
      there = voxel + offset
      if (there >= 0).all() and (there < SHAPE).all():
        total += weight * filled[tuple(there)]
        weight_sum += weight
    expected = total / weight_sum
    assert filled[tuple(voxel)] == pytest.approx(expected, abs=1e-3), voxel


def test_a_linear_ramp_is_filled_in_as_it_was_in_the_middle():
  d, h, w = np.meshgrid(*map(np.arange, (9, 9, 9)), indexing="ij")
  ramp = 30.0 * d - 20 * h + 7 * w - 900
  missing = np.zeros(ramp.shape, bool)
  missing[3:6, 2:7, 3:7] = True
  filled = imputation.impute(ramp, missing, noise=0)
  np.testing.assert_allclose(filled, ramp, atol=1e-3)


def test_what_is_filled_in_has_noise_and_the_images_own_type():
  image = np.full((12, 12, 12), -700, np.int16)
  missing = np.zeros(image.shape, bool)
  missing[1:11, 1:11, 1:11] = True
  filled = imputation.impute(image, missing, noise=10.0)
  assert filled.dtype == np.int16
  assert (filled[~missing] == -700).all()
  # The mean and the spread of 1000 voxels.
  assert filled[missing].mean() == pytest.approx(-700, abs=1.5)
  assert filled[missing].std() == pytest.approx(10, rel=0.1)
  again = imputation.impute(image, missing, noise=10.0)
  np.testing.assert_array_equal(filled, again)
  other = imputation.impute(image, missing, noise=10.0, seed=1)
  assert (filled != other).any()
  np.testing.assert_array_equal(
    imputation.impute(image, np.zeros_like(missing)), image
  )


def test_nothing_can_be_filled_in_from_nothing():
  image = np.zeros(SHAPE)
  with pytest.raises(UserError, match="nothing to fill in from"):
    imputation.impute(image, np.ones(SHAPE, bool))
  with pytest.raises(UserError, match="6, 18, 26 neighbours, not 8"):
    imputation.impute(image, np.ones(SHAPE, bool), neighbours=8)


def test_a_large_hole_is_filled_in_as_a_direct_solver_does():
  """Of several thousand voxels, most of them far from any that is known."""
  shape = (24, 28, 32)
  image = 100 * smooth(2, shape) - 900
  missing = np.zeros(shape, bool)
  missing[1:, 2:26, 2:] = True  # Up to two faces of the volume.
  number = np.full(shape, -1)
  number[missing] = np.arange(missing.sum())
  rows, columns, right = [], [], np.zeros(missing.sum())
  count = np.zeros(missing.sum())
  for axis, step in itertools.product(range(3), (-1, 1)):
    there = np.roll(number, -step, axis)
    value = np.roll(image, -step, axis)
    inside = np.ones(shape, bool)
    edge = [slice(None)] * 3
    edge[axis] = -1 if step == 1 else 0
    inside[tuple(edge)] = False
    inside, there, value = inside[missing], there[missing], value[missing]
    count += inside
    unknown = inside & (there >= 0)
    rows.append(np.flatnonzero(unknown))
    columns.append(there[unknown])
    known = inside & (there < 0)
    right[known] += value[known]
  rows, columns = np.concatenate(rows), np.concatenate(columns)
  off = scipy.sparse.coo_array(
    (np.ones(rows.size), (rows, columns)), shape=(count.size, count.size)
  )
  expected = scipy.sparse.linalg.spsolve(
    (scipy.sparse.diags_array(count) - off).tocsc(), right
  )
  filled = imputation.impute(image, missing, neighbours=6, noise=0)
  np.testing.assert_allclose(filled[missing], expected, atol=0.01)


def test_a_solver_that_does_not_converge_says_so(monkeypatch):
  monkeypatch.setattr(
    imputation, "_solve", lambda known, missing, neighbours: (known, np.nan)
  )
  missing = np.zeros(SHAPE, bool)
  missing[2:4] = True
  with pytest.raises(ValueError, match="no convergence"):
    imputation.impute(smooth(0), missing)
