"""folded_stem: the stem and its pooling against the plain path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import enable_x64, on_two_devices

from cadjax.models import batch_norm, folded, folded_stem, layers

FEATURES = 5


@pytest.fixture(autouse=True)
def _no_rank_promotion():
  with jax.numpy_rank_promotion("raise"):
    yield


def plain(x, kernel, scale, bias, axis_name=None):
  y = layers.conv(x, kernel, 2, mode="lax")
  y, mean, var = batch_norm.batch_norm(y, scale, bias, axis_name, True, x.dtype)
  return layers.max_pool(y, mode="lax"), mean, var


def ours(x, kernel, scale, bias, axis_name=None):
  y, mean, var = folded_stem.stem(
    folded.to_cells(x), kernel, scale, bias, axis_name
  )
  return folded.unfold(y, FEATURES), mean, var


def arguments(channels=1, batch=2, seed=0):
  rng = np.random.default_rng(seed)
  return (
    rng.normal(size=(batch, 12, 8, 16, channels)),
    rng.normal(size=(7, 7, 7, channels, FEATURES)),
    # Negative scales turn minima into maxima; so does none of 0.
    np.array([1.3, -0.7, 0.4, -1.1, 0.9]),
    rng.normal(size=FEATURES),
  )


def assert_near(got, want, tolerance):
  scale = float(jnp.abs(want).max())
  assert scale > 0
  np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("channels", [1, 2])
def test_value_and_gradients_are_those_of_the_plain_path(channels):
  with enable_x64():
    args = arguments(channels)
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
    got = on_two_devices(ours, x, params, dy)
    for a, b in zip(got, want, strict=True):
      assert_near(a, b, 1e-11)


def test_equal_maxima_pass_their_gradient_once():
  """Of a flat map every window has equal values; one gets it all."""
  with enable_x64():
    y = {
      parity: jnp.ones((1, 3, 2, 4, 2 * FEATURES))
      for parity in folded_stem.PARITIES
    }
    scale = jnp.ones(FEATURES)
    out, pull = jax.vjp(
      lambda y: folded_stem._norm_pool(y, scale, scale, None)[0], y
    )
    (dy,) = pull(jnp.ones_like(out))
    # The norm of a flat map has no gradient beside that of its own mean.
    rate = batch_norm.EPSILON**-0.5
    total = sum(x.sum() for x in dy.values())
    np.testing.assert_allclose(total / rate, 0, atol=1e-9)
    top, first = folded_stem._pool_dh(y, 0)
    g = jnp.ones_like(top)
    parities = [(d, h) for d in (0, 1) for h in (0, 1)]
    sent = sum(folded_stem._unpool_dh(g, first, *dh).sum() for dh in parities)
    assert sent == g.size


def test_bfloat16_rounds_as_the_plain_path_does():
  args = [jnp.asarray(a, jnp.float32) for a in arguments()]
  exact, mean, var = plain(*args)
  low = args[0].astype(jnp.bfloat16)
  theirs, *_ = plain(low, args[1].astype(jnp.bfloat16), *args[2:])
  got, mean_got, var_got = ours(low, *args[1:])
  error = [
    float(jnp.sqrt(jnp.mean((a.astype(jnp.float32) - exact) ** 2)))
    for a in (got, theirs)
  ]
  assert error[0] < 1.2 * error[1]
  assert got.dtype == jnp.bfloat16
  assert var_got.dtype == jnp.float32
  np.testing.assert_allclose(var_got, var, rtol=0.02)
  np.testing.assert_allclose(
    mean_got, mean, atol=0.02 * float(var.max()) ** 0.5
  )
