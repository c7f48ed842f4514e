"""batch_norm: against Flax's, and of folded maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from tiny_models import enable_x64

from cadjax.models import batch_norm, folded, layers


@pytest.fixture(autouse=True)
def _no_rank_promotion():
  with jax.numpy_rank_promotion("raise"):
    yield


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("devices", [None, 2])
def test_batch_norm_and_its_gradient_are_flaxs(train, devices):
  """Value, statistics and all gradients, also with means across devices."""
  axis = {"axis_name": "device"} if devices else {}
  ours = layers.BatchNorm(3, train, relu=True, dtype=jnp.float64, **axis)
  flax = nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-5,
    dtype=jnp.float64,
    **axis,
  )
  with enable_x64():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 4, 6, 5, 3)) * 3 + 1
    params = {"scale": rng.normal(size=3), "bias": rng.normal(size=3)}
    stats = {"mean": rng.normal(size=3), "var": rng.uniform(1, 2, size=3)}

    def of(module, after):
      def loss(params, x, dy):
        y, changed = module.apply(
          {"params": params, "batch_stats": stats}, x, mutable=["batch_stats"]
        )
        return jnp.sum(after(y) * dy), (y, changed)

      run = jax.grad(loss, (0, 1), has_aux=True)
      if not devices:
        return run(params, x, dy)
      parts = (a.reshape(devices, -1, *a.shape[1:]) for a in (x, dy))
      mapped = jax.vmap(run, in_axes=(None, 0, 0), axis_name="device")
      return mapped(params, *parts)

    got, want = of(ours, lambda y: y), of(flax, nn.relu)
    want = (want[0], (nn.relu(want[1][0]), want[1][1]))
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
      got,
      want,
    )


def test_a_folded_map_has_the_statistics_and_gradients_of_the_plain_one():
  with enable_x64():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 2, 4, 3, 8, 5)) + 1
    scale, bias = rng.normal(size=(2, 5))

    def run(fold):
      def norm(x, scale, bias):
        y, *moments = batch_norm.batch_norm(
          x.reshape(2, 4, 3, 8 // fold, -1), scale, bias, None, True, x.dtype
        )
        return folded.unfold(y, 5), moments

      y, pull, moments = jax.vjp(norm, x, scale, bias, has_aux=True)
      return y, moments, pull(dy)

    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12),
      run(2),
      run(1),
    )


def test_what_multiplies_a_channel_is_at_each_of_its_lanes():
  per_channel = jnp.arange(3.0)
  lanes = batch_norm.spread(per_channel, jnp.zeros((1, 2, 6)))
  np.testing.assert_array_equal(lanes, [[[0, 1, 2, 0, 1, 2]]])
