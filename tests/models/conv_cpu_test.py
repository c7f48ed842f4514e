"""The CPU lowerings against XLA's own convolution and pooling."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from tiny_models import enable_x64

from cadjax.models import conv_cpu, layers, winograd


def window(size, stride=1, dilation=1):
  """The window of `layers.conv` for a kernel of `size` (d, h, w)."""
  padding = tuple(dilation * (k - 1) // 2 for k in size)
  strides = stride if isinstance(stride, tuple) else (stride,) * 3
  return conv_cpu.Window(size, strides, (dilation,) * 3, padding)


CUBE, PLANE, SEVEN, ONE = (3, 3, 3), (1, 3, 3), (7, 7, 7), (1, 1, 1)
# lowering, window, channels, shape: odd sizes, one plane, every branch.
CASES = {
  "pointwise": ("columns", window(ONE), 3, (9, 8, 10)),
  "pointwise_narrowing": ("columns", window(ONE), 7, (9, 8, 10)),
  "pointwise_strided": ("columns", window(ONE, 2), 3, (9, 8, 11)),
  "columns": ("columns", window(CUBE), 3, (2, 3, 5)),
  "columns_dilated": ("columns", window(CUBE, 1, 4), 3, (2, 3, 5)),
  "columns_strided": ("columns", window(CUBE, 2), 3, (10, 9, 12)),
  "columns_strided_dilated": ("columns", window(CUBE, 2, 2), 3, (7, 9, 8)),
  "columns_uneven_strides": ("columns", window(CUBE, (2, 1, 3)), 3, (7, 9, 8)),
  "planes": ("planes", window(CUBE), 3, (8, 9, 10)),
  "planes_dilated": ("planes", window(CUBE, 1, 2), 3, (8, 9, 10)),
  "planes_beyond": ("planes", window(CUBE, 1, 4), 3, (3, 9, 10)),
  "planes_strided": ("planes", window(CUBE, 2), 3, (10, 9, 12)),
  "one_plane": ("planes", window(CUBE), 3, (1, 4, 6)),
  "one_plane_strided": ("planes", window(CUBE, 2), 3, (1, 9, 12)),
  "flat": ("planes", window(PLANE), 3, (1, 9, 10)),
  "stem": ("stem", window(SEVEN, 2), 1, (12, 10, 14)),
  "stem_odd": ("stem", window(SEVEN, 2), 1, (11, 9, 13)),
  "stem_flat": ("stem", window((1, 7, 7), (1, 2, 2)), 1, (1, 9, 13)),
  "winograd": ("winograd", window(CUBE), 3, (3, 8, 12)),
  "native": ("native", window(CUBE, 2), 3, (5, 9, 8)),
  "native_flat": ("native", window(PLANE, (1, 2, 2)), 3, (2, 9, 8)),
}


def native(x, kernel, window):
  return lax.conv_general_dilated(
    x,
    kernel,
    window.strides,
    [(p, p) for p in window.padding],
    rhs_dilation=window.dilation,
    dimension_numbers=conv_cpu.LAYOUTS[3],
  )


def draw(case, batch=2, dtype=np.float64):
  """(conv, window, x, kernel, dy) of a case."""
  name, win, channels, shape = CASES[case]
  rng = np.random.default_rng(0)
  x = rng.normal(size=(batch, *shape, channels))
  kernel = rng.normal(size=(*win.size, channels, 4))
  dy = rng.normal(size=(batch, *win.out(shape), 4))
  lowering = conv_cpu.LOWERINGS[name]
  return lowering, win, *(jnp.asarray(a, dtype) for a in (x, kernel, dy))


def value_and_gradients(conv, win, x, kernel, dy):
  @jax.jit
  def both(x, kernel, dy):
    y, pull = jax.vjp(lambda *a: conv(*a, win), x, kernel)
    return y, *pull(dy)

  return both(x, kernel, dy)


@pytest.fixture
def x64():
  with enable_x64():
    yield


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [1, 3])
def test_value_and_both_gradients(case, batch):
  lowering, *rest = draw(case, batch)
  got = value_and_gradients(lowering, *rest)
  want = value_and_gradients(native, *rest)
  for a, b in zip(got, want, strict=True):
    assert a.dtype == b.dtype == jnp.float64
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  "case", ["pointwise", "columns_strided", "planes", "stem", "winograd"]
)
def test_second_derivatives(case):
  lowering, win, x, kernel, dy = draw(case, 1)

  def of(conv):
    def norm_of_gradient(x, kernel):
      loss = lambda x: jnp.sum(jnp.sin(conv(x, kernel, win)) * dy)  # noqa: E731
      return jnp.sum(jax.grad(loss)(x) ** 2)

    return jax.jit(jax.grad(norm_of_gradient, (0, 1)))(x, kernel)

  for a, b in zip(of(lowering), of(native), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  "case", ["pointwise", "columns", "planes", "stem", "winograd"]
)
@pytest.mark.parametrize("wrap", ["vmap", "remat", "shard_map"])
def test_under_transformations(case, wrap):
  lowering, win, x, kernel, dy = draw(case, 2)
  want = value_and_gradients(native, win, x, kernel, dy)[1]

  def dx(x, dy):
    run = jax.checkpoint(lambda x: lowering(x, kernel, win))
    run = run if wrap == "remat" else lambda x: lowering(x, kernel, win)
    return jax.vjp(run, x)[1](dy)[0]

  if wrap == "vmap":
    got = jax.vmap(dx)(x[:, None], dy[:, None])[:, 0]
  elif wrap == "shard_map":
    assert len(jax.devices()) == 8
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    mapped = jax.shard_map(
      dx,
      mesh=mesh,
      in_specs=(P("data"), P("data")),
      out_specs=P("data"),
      check_vma=False,
    )
    got = jax.jit(mapped)(x, dy)
  else:
    got = jax.jit(dx)(x, dy)
  np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize(
  ("case", "rule"),
  list(
    zip(
      [
        "pointwise",
        "native",
        "native_flat",
        "stem",
        "winograd",
        "planes",
        "columns",
      ],
      conv_cpu.RULES,
      strict=True,
    )
  ),
)
def test_rounding_in_float32(case, rule):
  """The errors of the table; 32 channels, so that sums are long."""
  lowering, win, x, kernel, dy = draw(case, dtype=np.float32)
  if rule.lowering != "stem":
    rng = np.random.default_rng(1)
    x = rng.normal(size=(*x.shape[:4], 32)).astype(np.float32)
    kernel = rng.normal(size=(*win.size, 32, 4)).astype(np.float32)
  with enable_x64():
    exact = (jnp.asarray(a, jnp.float64) for a in (x, kernel, dy))
    want = [np.asarray(a) for a in value_and_gradients(native, win, *exact)]
  got = value_and_gradients(lowering, win, x, kernel, dy)
  errors = [
    np.linalg.norm(a - b) / np.linalg.norm(b)
    for a, b in zip(got, want, strict=True)
  ]
  print(f"{rule.lowering}: {[f'{e:.1e}' for e in errors]}")
  assert 0 < max(errors) < rule.error


@pytest.mark.parametrize(
  "case", ["native", "native_flat", "columns", "planes", "stem", "winograd"]
)
def test_bfloat16_rounds_once(case):
  """As close to the exact result as bfloat16's 8 bits let it be."""
  lowering, *half = draw(case, dtype=jnp.bfloat16)
  with enable_x64():
    wide = [half[0], *(jnp.asarray(a, jnp.float64) for a in half[1:])]
    want = [np.asarray(a) for a in value_and_gradients(native, *wide)]
  for a, b in zip(value_and_gradients(lowering, *half), want, strict=True):
    assert a.dtype == jnp.bfloat16
    error = np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
    assert error < 6e-3


@pytest.mark.parametrize(
  ("shape", "features", "win", "exact", "expected"),
  [
    ((2, 32, 16, 16, 256), 64, window(ONE), False, "columns"),
    ((1, 128, 64, 64, 1), 64, window(SEVEN, 2), False, "stem"),
    ((1, 64, 32, 32, 64), 64, window(CUBE), False, "winograd"),
    ((1, 64, 32, 32, 64), 64, window(CUBE), True, "planes"),
    ((1, 64, 32, 30, 64), 64, window(CUBE), False, "planes"),  # Not tiles.
    ((1, 64, 32, 32, 64), 64, window(CUBE, 1, 2), False, "planes"),
    ((1, 8, 4, 4, 512), 512, window(CUBE), False, "columns"),
    ((8, 16, 16, 16, 1), 4, window(SEVEN, 2), False, "native"),
    ((8, 8, 8, 8, 4), 8, window(CUBE), False, "native"),
    ((8, 8, 8, 8, 4), 8, window(ONE), False, "columns"),
    ((8, 1, 32, 32, 64), 64, window(PLANE), False, "native"),
    ((8, 1, 64, 64, 64), 64, window(PLANE), False, "planes"),
  ],
)
def test_choice_by_shape(shape, features, win, exact, expected):
  kernel = (*win.size, shape[-1], features)
  assert conv_cpu.choose(shape, kernel, win, exact) == expected


def test_winograd_refuses_what_it_cannot_do():
  shape = (1, 3, 8, 12, 3)
  assert winograd.fits(shape, window(CUBE))
  for win in (window(CUBE, 2), window(CUBE, 1, 2), window(PLANE)):
    assert not winograd.fits(shape, win)
  for bad in ((1, 3, 7, 12, 3), (1, 3, 8, 10, 3)):
    assert not winograd.fits(bad, window(CUBE))


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("most", [1, 4, 100])
def test_winograd_by_plane_keeps_volumes_apart(depth, most, monkeypatch):
  """Whatever goes together: one volume at a time, two, or all of them."""
  monkeypatch.setattr(winograd, "MOST_TILES", most)
  monkeypatch.setattr(winograd, "LARGE_PLANE", 1)
  x = jax.random.normal(jax.random.key(0), (4, depth, 8, 4, 3))
  kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 3, 5))
  dy = jax.random.normal(jax.random.key(2), (4, depth, 8, 4, 5))
  want, pull = jax.vjp(lambda k: native(x, k, window(CUBE)), kernel)
  # New functions, so that nothing compiled before is taken.
  got = jax.jit(lambda *a: winograd.forward(*a))(x, kernel)
  np.testing.assert_allclose(got, want, atol=1e-3)
  got = jax.jit(lambda *a: winograd.kernel_gradient(*a))(x, dy)
  np.testing.assert_allclose(got, pull(dy)[0], atol=1e-3)


def test_layers_conv_takes_this_path_on_a_cpu():
  x, kernel = jnp.ones((1, 16, 16, 18, 3)), jnp.ones((3, 3, 3, 3, 4))
  own = "tensor<3x3x3x3x4xf32>) -> tensor<1x16x16x18x4xf32>"
  assert own not in jax.jit(layers.conv).lower(x, kernel).as_text()
  lax_conv = jax.jit(partial(layers.conv, mode="lax"))
  assert own in lax_conv.lower(x, kernel).as_text()


def test_other_platforms_keep_the_native_convolution():
  x, kernel = jnp.ones((1, 16, 16, 18, 3)), jnp.ones((3, 3, 3, 3, 4))
  lowered = (
    jax.jit(layers.conv).trace(x, kernel).lower(lowering_platforms=("tpu",))
  )
  assert lowered.as_text().count("stablehlo.convolution") == 1
  assert "tensor<3x3x3x3x4xf32>" in lowered.as_text()


@pytest.mark.parametrize("space", [(8, 6, 10), (7, 9, 5), (1, 4, 6), (9, 14)])
@pytest.mark.parametrize("ties", [False, True])
def test_max_pool_and_its_gradient(space, ties):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, *space, 3)).astype(np.float32)
  x = jnp.asarray(np.round(x) if ties else x)

  def own(x):
    return nn.max_pool(
      x, (3,) * len(space), (2,) * len(space), ((1, 1),) * len(space)
    )

  want, pull_want = jax.vjp(own, x)
  got, pull_got = jax.vjp(layers.max_pool, x)
  np.testing.assert_array_equal(got, want)
  dy = rng.normal(size=want.shape).astype(np.float32)
  a, b = pull_got(dy)[0], pull_want(dy)[0]
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
