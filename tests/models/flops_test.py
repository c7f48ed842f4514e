"""The work of a model, beside XLA's own count and by hand."""

import jax
import jax.numpy as jnp
import pytest

from cadjax import models
from cadjax.models import flops

SHAPE = (16, 24, 32)


def xla_flops(fn, *args):
  """XLA's count for a platform whose convolutions stay convolutions."""
  lowered = jax.jit(fn).trace(*args).lower(lowering_platforms=("tpu",))
  return lowered.cost_analysis()["flops"]


@pytest.mark.parametrize(
  ("config", "shape"),
  [
    ({"ndim": 3, "depth": 10, "width": 4}, (2, *SHAPE, 1)),
    ({"ndim": 3, "depth": 50, "width": 4}, (1, *SHAPE, 1)),
    ({"ndim": 2, "depth": 18, "width": 8, "output_stride": 8}, (2, 35, 48, 1)),
    ({"name": "unet", "features": (8, 16, 24)}, (2, *SHAPE, 1)),
    (
      {
        **{"name": "unet", "ndim": 2, "features": (16, 24, 32, 32)},
        **{"residual": True, "attention": True, "upsampling": "shuffle"},
      },
      (2, 40, 48, 1),
    ),
  ],
)
def test_flops_are_xlas(config, shape):
  # The work that the network asks for, not what a platform makes of its stem.
  model = models.get_model(config | {"conv": "lax"})
  image = jnp.zeros(shape)
  made = jax.eval_shape(
    lambda: model.init(jax.random.key(0), image, train=False)
  )
  stats = jax.tree.map(lambda s: jnp.ones(s.shape), made["batch_stats"])
  params = jax.tree.map(lambda s: jnp.ones(s.shape), made["params"])

  def forward(params, image):
    variables = {"params": params, "batch_stats": stats}
    return model.apply(variables, image, train=False)[0].sum()

  counted = flops.count(model, shape)
  # XLA also counts norms and additions: a few percent, and never less.
  ratio = xla_flops(forward, params, image) / flops.step_flops(
    counted, train=False
  )
  assert 1.0 < ratio < 1.06
  ratio = xla_flops(jax.grad(forward), params, image) / flops.step_flops(
    counted, train=True
  )
  assert 1.0 < ratio < 1.10
  sees_image = [layer.name for layer in counted if layer.sees_image]
  unet = ["enc1_block/conv1"] + ["enc1_block/conv_skip"] * (
    "residual" in config
  )
  assert sees_image == (unet if "name" in config else ["conv_stem"])
  remat = models.get_model(config | {"conv": "lax", "remat": True})
  assert flops.count(remat, shape) == counted


def test_flops_of_one_layer_by_hand():
  model = models.get_model({"depth": 10, "width": 4})
  stem = flops.count(model, (1, 16, 16, 16, 1))[0]
  # Along one axis eight windows of seven start at -3, -1, ..., 11 and reach
  # over the ends by 3, 1 and by 0, 2.
  taps = sum(0 <= 2 * i + k - 3 < 16 for i in range(8) for k in range(7))
  assert taps == 56 - 3 - 1 - 2
  assert stem.flops == 2 * taps**3 * 4
  assert stem.bytes == 4 * (16**3 + 8**3 * 4 + 7**3 * 4)
