"""folded: cells and W-folded convolutions against the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import enable_x64

from cadjax.models import folded, layers


@pytest.fixture(autouse=True)
def _no_rank_promotion():
  with jax.numpy_rank_promotion("raise"):
    yield


def fold_w(x, fold):
  """[B, D, H, W, C] to [B, D, H, W / fold, fold C]."""
  return x.reshape(*x.shape[:3], x.shape[3] // fold, -1)


@pytest.mark.parametrize("channels", [1, 3])
def test_cells_have_their_voxels_in_order(channels):
  shape = (2, 8, 4, 8, channels)
  image = np.arange(np.prod(shape)).reshape(shape)
  cells = folded.to_cells(image)
  assert cells.shape == (2, 2, 1, 2, 64 * channels)
  lane = ((1 * 4 + 2) * 4 + 3) * channels
  np.testing.assert_array_equal(
    cells[1, 1, 0, 1, lane : lane + channels], image[1, 5, 2, 7]
  )
  np.testing.assert_array_equal(folded.from_cells(cells), image)
  assert folded.is_cells(cells)
  assert not folded.is_cells(image)
  np.testing.assert_array_equal(folded.to_cells(jnp.asarray(image)), cells)


def test_cells_fit_whole_cells_alone():
  assert folded.fits((2, 4, 8, 16, 1))
  for shape in ((2, 6, 8, 16, 1), (2, 4, 9, 16, 1), (2, 4, 8, 12, 1)):
    assert not folded.fits(shape)


@pytest.mark.parametrize(
  ("fold", "size", "unfolds"),
  [(2, 1, True), (2, 3, False), (2, 3, True), (4, 7, False)],
)
def test_a_folded_convolution_is_the_convolution(fold, size, unfolds):
  stride = fold if unfolds else 1
  rng = np.random.default_rng(0)
  with enable_x64():
    x = rng.normal(size=(2, 4, 8, 8, 3))
    kernel = rng.normal(size=(size, size, size, 3, 5))
    want, pull_want = jax.vjp(
      lambda x, k: layers.conv(x, k, stride, mode="lax"), x, kernel
    )
    got, pull_got = jax.vjp(
      lambda x, k: folded.unfold(folded.conv(fold_w(x, fold), k, stride, 3), 5),
      x,
      kernel,
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * abs(want).max())
    dy = rng.normal(size=want.shape)
    for a, b in zip(pull_got(dy), pull_want(dy), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * abs(b).max())
