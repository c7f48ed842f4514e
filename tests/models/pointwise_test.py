"""pointwise: a convolution and norm in one against the two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import enable_x64, on_two_devices

from cadjax.models import batch_norm, folded, pointwise

CHANNELS, FEATURES = 6, 10


@pytest.fixture(autouse=True)
def _no_rank_promotion():
  with jax.numpy_rank_promotion("raise"):
    yield


def plain(x, kernel, scale, bias, axis_name=None):
  y = jnp.einsum("bdhwc,cf->bdhwf", x, kernel)
  return batch_norm.batch_norm(y, scale, bias, axis_name, False, x.dtype)


def arguments(batch=2):
  rng = np.random.default_rng(0)
  return (
    rng.normal(size=(batch, 4, 6, 8, CHANNELS)) + 2,
    rng.normal(size=(CHANNELS, FEATURES)),
    rng.normal(size=FEATURES),
    rng.normal(size=FEATURES),
  )


def assert_near(got, want, tolerance):
  np.testing.assert_allclose(
    got, want, rtol=0, atol=tolerance * float(jnp.abs(want).max())
  )


@pytest.mark.parametrize("fold", [1, 2])
def test_value_and_gradients_are_those_of_the_two(fold):
  def ours(x, *params):
    x = x.reshape(*x.shape[:3], -1, fold * CHANNELS)
    y, mean, var = pointwise.conv_norm(x, *params)
    return folded.unfold(y, FEATURES), mean, var

  with enable_x64():
    args = arguments()
    (want, mean, var), pull_want = jax.vjp(plain, *args)
    (got, mean_got, var_got), pull_got = jax.vjp(ours, *args)
    assert_near(got, want, 1e-12)
    assert_near(mean_got, mean, 1e-12)
    assert_near(var_got, var, 1e-12)
    dy = np.random.default_rng(1).normal(size=want.shape)
    none = jnp.zeros_like(mean)
    for a, b in zip(
      pull_got((dy, none, none)), pull_want((dy, none, none)), strict=True
    ):
      assert_near(a, b, 1e-11)


def test_devices_share_their_moments():
  """Two devices with half of a batch each: the gradient of the whole."""
  x, *params = arguments(batch=4)
  with enable_x64():
    (y, *moments), pull = jax.vjp(plain, x, *params)
    dy = np.random.default_rng(1).normal(size=y.shape)
    none = jnp.zeros_like(moments[0])
    want = [y, *moments, *pull((dy, none, none))]
    got = on_two_devices(pointwise.conv_norm, x, params, dy)
    for a, b in zip(got, want, strict=True):
      assert_near(a, b, 1e-11)


def test_the_variance_of_a_map_far_from_zero_survives_float32():
  """A mean of 30 standard deviations: squares of 900 times the variance."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 16, 16, 16, CHANNELS)) + 30
  kernel = rng.normal(size=(CHANNELS, FEATURES))
  want = np.einsum("bdhwc,cf->bdhwf", x, kernel).var((0, 1, 2, 3))
  scale = np.ones(FEATURES)
  _, _, var = pointwise.conv_norm(
    *(jnp.asarray(a, jnp.float32) for a in (x, kernel, scale, scale))
  )
  np.testing.assert_allclose(var, want, rtol=5e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_relu_add_adds_wide_and_masks_by_its_result(dtype):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(4, 5)), dtype)
  y = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
  got, pull = jax.vjp(lambda x, y: pointwise.relu_add(x, y, dtype), x, y)
  total = x.astype(jnp.float32) + y
  np.testing.assert_array_equal(got, jax.nn.relu(total).astype(dtype))
  dz = jnp.asarray(rng.normal(size=(4, 5)), dtype)
  dx, dy = pull(dz)
  assert (dx.dtype, dy.dtype) == (dtype, jnp.float32)
  np.testing.assert_array_equal(dx, jnp.where(total > 0, dz, 0))
  np.testing.assert_array_equal(dy, dx.astype(jnp.float32))


def test_bfloat16_rounds_no_more_than_the_two_do():
  """Value, statistics and gradients beside float64 of the same input."""
  rng = np.random.default_rng(0)
  low = jnp.asarray(rng.normal(size=(2, 8, 8, 8, CHANNELS)) + 1, jnp.bfloat16)
  params = [jnp.asarray(a, jnp.float32) for a in arguments()[1:]]
  params[0] = params[0].astype(jnp.bfloat16).astype(jnp.float32)
  dy = jnp.asarray(rng.normal(size=(*low.shape[:-1], FEATURES)), jnp.bfloat16)

  def run(norm, x, dy, params):
    (y, *moments), pull = jax.vjp(norm, x, *params)
    none = jnp.zeros_like(moments[0])
    return [y, *moments, *pull((dy.astype(y.dtype), none, none))]

  def two(x, kernel, scale, bias):
    return plain(x, kernel.astype(x.dtype), scale, bias)

  with enable_x64():
    exact = run(
      plain, *jax.tree.map(lambda a: a.astype(jnp.float64), (low, dy, params))
    )
  ours = run(pointwise.conv_norm, low, dy, params)
  theirs = run(two, low, dy, params)

  def error(got, want):
    want = np.asarray(want, np.float64)
    wrong = np.asarray(got.astype(jnp.float32), np.float64) - want
    return np.sqrt((wrong**2).mean() / (want**2).mean())

  for name, a, b, want in zip(
    ("y", "mean", "var", "dx", "dk", "dscale", "dbias"),
    ours,
    theirs,
    exact,
    strict=True,
  ):
    assert error(a, want) < max(1.2 * error(b, want), 1e-6), name
