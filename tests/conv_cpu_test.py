"""The CPU convolution against XLA's own, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cadjax.models import conv_cpu, layers

# kernel, stride, dilation, channels, features, shape: every branch.
CASES = {
  "stem": (7, 2, 1, 1, 4, (12, 10, 14)),
  "stem_odd": (7, 2, 1, 1, 4, (11, 9, 13)),
  "planes": (3, 1, 1, 3, 4, (8, 9, 10)),
  "planes_dilated": (3, 1, 2, 3, 4, (8, 9, 10)),
  "small": (3, 1, 1, 3, 4, (2, 3, 5)),
  "small_dilated": (3, 1, 4, 3, 4, (2, 3, 5)),
  "one_plane": (3, 1, 1, 3, 4, (1, 4, 6)),
  "strided": (3, 2, 1, 3, 4, (10, 9, 12)),
  "strided_one_plane": (3, 2, 1, 3, 4, (1, 9, 12)),
  "pointwise": (1, 1, 1, 3, 4, (9, 8, 10)),
  "pointwise_strided": (1, 2, 1, 3, 4, (9, 8, 11)),
}


def native(x, kernel, strides, dilation, padding):
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    rhs_dilation=dilation,
    dimension_numbers=layers.LAYOUTS[3],
  )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("batch", [1, 3])
def test_value_and_both_gradients(case, batch):
  size, stride, dilation, channels, features, shape = CASES[case]
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    x = jnp.asarray(rng.normal(size=(batch, *shape, channels)))
    kernel = jnp.asarray(rng.normal(size=(size,) * 3 + (channels, features)))
    assert x.dtype == jnp.float64
    pad = dilation * (size - 1) // 2
    options = ((stride,) * 3, (dilation,) * 3, ((pad, pad),) * 3)
    want, pull_want = jax.vjp(lambda *a: native(*a, *options), x, kernel)
    got, pull_got = jax.vjp(lambda *a: conv_cpu.conv3d(*a, *options), x, kernel)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)
    dy = jnp.asarray(rng.normal(size=want.shape))
    for a, b in zip(pull_got(dy), pull_want(dy), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-10)


def test_layers_conv_takes_this_path_on_a_cpu():
  x, kernel = jnp.ones((1, 8, 9, 10, 3)), jnp.ones((3, 3, 3, 3, 4))
  hlo = jax.jit(layers.conv).lower(x, kernel).as_text()
  assert "x10x3xf32>, tensor<3x3x3x3x4" not in hlo  # No 3D convolution.


def test_other_platforms_keep_the_native_convolution():
  x, kernel = jnp.ones((1, 8, 9, 10, 3)), jnp.ones((3, 3, 3, 3, 4))
  lowered = (
    jax.jit(layers.conv).trace(x, kernel).lower(lowering_platforms=("tpu",))
  )
  assert lowered.as_text().count("stablehlo.convolution") == 1
  assert "tensor<3x3x3x3x4xf32>" in lowered.as_text()
