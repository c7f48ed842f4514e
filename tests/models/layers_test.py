"""layers: against scipy, and padding that keeps maps centred."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import ndimage, signal
from tiny_models import enable_x64

from cadjax.core import lookup
from cadjax.models import layers

KEY = jax.random.key(0)


@pytest.fixture(autouse=True)
def _no_rank_promotion():
  with jax.numpy_rank_promotion("raise"):
    yield


def random(*shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("space", [(9, 14), (7, 8, 11)])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize(("size", "dilation"), [(1, 1), (3, 1), (7, 1), (3, 2)])
def test_conv_is_scipys_correlation(space, strides, size, dilation):
  x = random(2, *space, 3)
  kernel = random(*(size,) * len(space), 3, 4, seed=1)
  ours = layers.conv(x, kernel, strides, dilation=dilation)
  spread = np.zeros(((size - 1) * dilation + 1,) * len(space) + (3, 4))
  spread[(slice(None, None, dilation),) * len(space)] = kernel
  steps = (slice(None, None, strides),) * len(space)
  for b in range(2):
    for f in range(4):
      expected = sum(
        ndimage.correlate(
          x[b, ..., c].astype(np.float64), spread[..., c, f], mode="constant"
        )
        for c in range(3)
      )
      np.testing.assert_allclose(ours[b, ..., f], expected[steps], atol=2e-4)


def test_folded_stem_is_the_stem():
  with enable_x64():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 10, 12, 1))
    kernel = rng.normal(size=(7, 7, 7, 1, 3))
    want, pull_want = jax.vjp(
      lambda *a: layers.conv(*a, 2, mode="lax"), x, kernel
    )
    got, pull_got = jax.vjp(layers.folded_stem, x, kernel)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-11)
    dy = rng.normal(size=want.shape)
    for a, b in zip(pull_got(dy), pull_want(dy), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(
  ("platform", "space", "folded"),
  [("tpu", (8, 10, 12), True), ("tpu", (8, 9, 12), False)]
  + [("cuda", (8, 10, 12), False)],
)
def test_the_stem_is_folded_on_a_tpu(platform, space, folded):
  x, kernel = jnp.ones((1, *space, 1)), jnp.ones((7, 7, 7, 1, 4))
  stem = jax.jit(lambda x, kernel: layers.conv(x, kernel, 2))
  lowered = stem.trace(x, kernel).lower(lowering_platforms=(platform,))
  assert ("tensor<4x4x4x8x4xf32>" in lowered.as_text()) == folded


def test_conv_takes_one_stride_and_dilation_per_axis():
  x, kernel = random(1, 7, 8, 11, 2), random(3, 1, 5, 2, 3, seed=1)
  ours = layers.conv(x, kernel, (2, 1, 3), dilation=(1, 1, 2))
  every = layers.conv(x, kernel, 1, dilation=(1, 1, 2))
  assert ours.shape == (1, 4, 8, 4, 3)
  np.testing.assert_allclose(ours, every[:, ::2, :, ::3], atol=1e-5)


def test_strided_conv_mirrors_with_its_input():
  # True of symmetric padding on odd sizes, false of XLA's on even strides.
  x, kernel = random(1, 9, 13, 1), random(7, 7, 1, 2, seed=1)
  mirrored = layers.conv(x[:, ::-1], kernel[::-1], 2)
  np.testing.assert_allclose(
    mirrored[:, ::-1], layers.conv(x, kernel, 2), atol=1e-5
  )


def test_conv_gradient_is_the_full_correlation():
  x, kernel = random(1, 6, 9, 1), random(3, 3, 1, 1, seed=1)
  given = random(1, 6, 9, 1, seed=2)
  _, pull = jax.vjp(layers.conv, x, kernel)
  dx, dkernel = pull(jnp.asarray(given))
  expected = signal.convolve2d(given[0, ..., 0], kernel[..., 0, 0], "same")
  np.testing.assert_allclose(dx[0, ..., 0], expected, atol=1e-5)
  padded = np.pad(x[0, ..., 0], 1)
  expected = signal.correlate2d(padded, given[0, ..., 0], "valid")
  np.testing.assert_allclose(dkernel[..., 0, 0], expected, atol=1e-4)


@pytest.mark.parametrize("space", [(9, 14), (7, 8, 11)])
def test_max_pool_is_scipys_maximum_filter(space):
  # All below zero, so that padding with zeros would show.
  x = random(2, *space, 3) - 10
  steps = (slice(None), *(slice(None, None, 2),) * len(space))
  expected = ndimage.maximum_filter(
    x, (1, *(3,) * len(space), 1), mode="constant", cval=-np.inf
  )
  np.testing.assert_array_equal(layers.max_pool(x), expected[steps])


@pytest.mark.parametrize("space", [(9, 1), (3, 4, 5)])
def test_upsample2_is_scipys_linear_interpolation(space):
  x = random(2, *space, 3)
  grid = np.meshgrid(*(np.arange(2 * n) / 2 for n in space), indexing="ij")
  ours = layers.upsample2(jnp.asarray(x))
  for b in range(2):
    for c in range(3):
      expected = ndimage.map_coordinates(
        x[b, ..., c].astype(np.float64), grid, order=1, mode="nearest"
      )
      np.testing.assert_allclose(ours[b, ..., c], expected, atol=1e-6)
  assert layers.upsample2(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_voxel_stays_where_it_is_after_down_and_up(ndim):
  """Three strides of 2 and back: a tent on the voxel, 8 voxels to each side."""
  at = (8, 16, 24)[:ndim]
  x = np.zeros((1, *(24, 32, 40)[:ndim], 1), np.float32)
  x[(0, *at, 0)] = 1.0
  centre = np.zeros((3,) * ndim + (1, 1), np.float32)
  centre[(1,) * ndim] = 1.0
  y = jnp.asarray(x)
  for _ in range(3):
    y = layers.conv(y, jnp.asarray(centre), 2)
  for _ in range(3):
    y = layers.upsample2(y)
  expected = np.ones(())
  for voxel, size in zip(at, x.shape[1:-1], strict=True):
    distance = abs(np.arange(size) - voxel)
    expected = np.multiply.outer(expected, np.maximum(1 - distance / 8, 0))
  np.testing.assert_allclose(y[0, ..., 0], expected, atol=1e-6)


@pytest.mark.parametrize("space", [(3, 4), (2, 3, 4)])
def test_depth_to_space_gives_each_cell_its_block(space):
  ndim = len(space)
  x = random(2, *space, 2**ndim * 3)
  ours = layers.depth_to_space(jnp.asarray(x))
  assert ours.shape == (2, *(2 * n for n in space), 3)
  for cell in np.ndindex(*space):
    for block, step in enumerate(np.ndindex(*(2,) * ndim)):
      voxel = tuple(2 * o + r for o, r in zip(cell, step, strict=True))
      np.testing.assert_array_equal(
        ours[(slice(None), *voxel)],
        x[(slice(None), *cell, slice(3 * block, 3 * block + 3))],
      )


@pytest.mark.parametrize("strides", [1, 2])
def test_conv_of_two_maps_is_that_of_their_channels(strides):
  a, b = random(2, 6, 8, 3), random(2, 6, 8, 5, seed=1)
  together = jnp.concatenate([a, b], -1)
  layer = layers.Conv(4, 3, strides)
  variables = layer.init(KEY, together)
  assert jax.tree.all(
    jax.tree.map(jnp.array_equal, variables, layer.init(KEY, a, b))
  )

  @jax.jit
  def pull(*maps):
    y, pull = jax.vjp(layer.apply, variables, *maps)
    return y, *pull(jnp.sin(y))

  y, dkernel, da, db = pull(a, b)
  expected, expected_dkernel, expected_dx = pull(together)
  np.testing.assert_allclose(y, expected, atol=1e-5)
  np.testing.assert_allclose(
    jnp.concatenate([da, db], -1), expected_dx, atol=1e-5
  )
  np.testing.assert_allclose(
    dkernel["params"]["kernel"],
    expected_dkernel["params"]["kernel"],
    atol=1e-4,
  )


def test_global_mean_is_float32():
  x = jnp.full((1, 40, 50, 60, 1), 1.0, jnp.bfloat16) + jnp.bfloat16(0.0078125)
  mean = layers.global_mean(x)
  assert mean.dtype == jnp.float32
  np.testing.assert_allclose(mean, [[1.0078125]], rtol=1e-6)


def test_conv_module_keeps_float32_parameters():
  module = layers.Conv(5, 3, 2, dtype=jnp.bfloat16)
  y, variables = module.init_with_output(KEY, random(1, 8, 6, 4, 2))
  assert y.shape == (1, 4, 3, 2, 5)
  assert y.dtype == jnp.bfloat16
  kernel = variables["params"]["kernel"]
  assert kernel.shape == (3, 3, 3, 2, 5)
  assert kernel.dtype == jnp.float32


def test_initial_kernels_have_kaimings_variance():
  kernel = layers.kaiming_normal(KEY, (3, 3, 3, 40, 60))
  np.testing.assert_allclose(jnp.std(kernel), (2 / (27 * 60)) ** 0.5, rtol=0.02)


def apply_norm(kind, x, train=True, **options):
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      layer = layers.norm(kind, x.shape[-1], train=train, name="n", **options)
      return layer(x)

  variables = Net().init(KEY, x)
  y, changed = Net().apply(variables, x, mutable=["batch_stats"])
  return y, variables, changed


@pytest.mark.parametrize(
  ("kind", "axes"), [("batch", (0, 1, 2)), ("instance", (1, 2))]
)
def test_norm_standardises(kind, axes):
  x = random(3, 9, 14, 4) * 3 + 5
  y, variables, _ = apply_norm(kind, x)
  expected = x - x.mean(axes, keepdims=True, dtype=np.float64)
  expected /= np.sqrt(x.var(axes, keepdims=True, dtype=np.float64) + 1e-5)
  np.testing.assert_allclose(y, expected, atol=1e-4)
  shapes = jax.tree.map(jnp.shape, variables["params"]["n"])
  assert shapes == {"scale": (4,), "bias": (4,)}


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (24, 8), (5, 1)])
def test_group_norm_standardises_groups(channels, groups):
  x = random(2, 5, 6, 7, channels) * 3 + 5
  y, _, _ = apply_norm("group", x)
  split = x.reshape(2, 5, 6, 7, groups, -1).astype(np.float64)
  axes = (1, 2, 3, 5)
  expected = split - split.mean(axes, keepdims=True)
  expected /= np.sqrt(split.var(axes, keepdims=True) + 1e-5)
  np.testing.assert_allclose(y, expected.reshape(x.shape), atol=1e-4)


def test_batch_norm_runs_its_statistics_and_uses_them_in_evaluation():
  x = random(3, 9, 14, 2) * 3 + 5
  _, _, changed = apply_norm("batch", x)
  stats = changed["batch_stats"]["n"]
  mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
  np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-4)
  np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var, rtol=1e-4)
  y, _, _ = apply_norm("batch", x, train=False)  # mean 0, variance 1
  np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-5)


def test_batch_norm_in_bfloat16_has_float32_statistics():
  # 300 + small steps: a bfloat16 sum of 2000 such values would be lost.
  x = jnp.asarray(300 + 8 * random(2, 20, 50, 1), jnp.bfloat16)
  y, _, changed = apply_norm("batch", x, dtype=jnp.bfloat16)
  assert y.dtype == jnp.bfloat16
  stats = changed["batch_stats"]["n"]
  assert stats["mean"].dtype == stats["var"].dtype == jnp.float32
  exact = np.asarray(x, np.float64).mean()
  np.testing.assert_allclose(stats["mean"], 0.1 * exact, rtol=1e-5)


def test_batch_norm_takes_means_across_devices():
  x = random(4, 6, 5, 2)

  class Net(nn.Module):
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x):
      layer = layers.norm("batch", 2, train=True, axis_name=self.axis_name)
      return layer(x)

  variables = Net("device").init(KEY, x)
  whole, _ = Net().apply(variables, x, mutable=["batch_stats"])
  apart, _ = jax.vmap(
    lambda part: Net("device").apply(variables, part, mutable=["batch_stats"]),
    axis_name="device",
  )(x.reshape(2, 2, 6, 5, 2))
  np.testing.assert_allclose(apart.reshape(x.shape), whole, atol=1e-5)


def test_unknown_norm_names_the_nearest():
  with pytest.raises(lookup.UnknownName, match="mean 'batch'.*group, instance"):
    layers.norm("bacth", 8, train=True)
