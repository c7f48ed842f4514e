"""The U-Net on a ResNet: shapes, strides, shared names, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadjax import models
from cadjax.core import lookup
from cadjax.explanation import cam

KEY = jax.random.key(0)


def make(name="resunet", ndim=2, **options):
  base = {"name": name, "ndim": ndim, "depth": 10, "width": 4}
  return models.get_model(base | {"conv": "lax"} | options)


def variables_of(model, x):
  return jax.eval_shape(lambda: model.init(KEY, x, train=False))


@pytest.mark.parametrize("ndim", [2, 3])
def test_shapes_and_strides(ndim):
  model = make(ndim=ndim, num_classes=5)
  space = (32, 64, 32)[-ndim:]
  x = jnp.zeros((2, *space, 1))
  given = variables_of(model, x)
  logits, maps = jax.eval_shape(
    lambda given: model.apply(given, x, train=False), given
  )
  assert logits.shape == (2, *space, 5)
  assert logits.dtype == jnp.float32
  strides = {name: each[0] for name, each in cam.layer_strides(model).items()}
  assert strides == {
    **{"stem": 2, "stage1": 4, "stage2": 8, "stage3": 16, "stage4": 32},
    **{"dec5": 16, "dec4": 8, "dec3": 4, "dec2": 2, "dec1": 1},
  }
  for name, stride in strides.items():
    assert maps[name].shape[1:-1] == tuple(n // stride for n in space)
  assert cam.is_segmenter(model)
  assert model.stride == 32


@pytest.mark.parametrize("depth", [10, 50])
def test_the_encoder_is_the_classifiers(depth):
  """Every parameter of the ResNet but its head, in name and in shape."""
  x = jnp.zeros((1, 32, 32, 1))
  shapes = [
    {
      jax.tree_util.keystr(path): leaf.shape
      for path, leaf in jax.tree_util.tree_leaves_with_path(
        variables_of(make(name, depth=depth), x)["params"]
      )
    }
    for name in ("resnet", "resunet")
  ]
  classifier, segmenter = shapes
  encoder = {k: v for k, v in classifier.items() if "head" not in k}
  assert encoder.items() <= segmenter.items()
  assert len(encoder) > 20


def test_the_image_reaches_the_logits_at_its_own_place():
  """A bright voxel changes the logits there most of all."""
  model = make()
  x = jnp.zeros((1, 64, 64, 1))
  given = model.init(KEY, x, train=False)
  apply = jax.jit(lambda x: model.apply(given, x, train=False)[0])
  change = jnp.abs(apply(x.at[0, 40, 24, 0].set(5.0)) - apply(x)).sum(-1)[0]
  assert np.unravel_index(change.argmax(), change.shape) == pytest.approx(
    (40, 24), abs=1
  )


def test_remat_changes_no_gradient():
  x = jax.random.uniform(KEY, (1, 32, 32, 1))
  given = make().init(KEY, x, train=False)
  kept = {k: v for k, v in given.items() if k != "perturbations"}

  def gradient(remat):
    model = make(remat=remat)

    def loss(params):
      (logits, _), _ = model.apply(
        {**kept, "params": params}, x, train=True, mutable=["batch_stats"]
      )
      return (logits**2).mean()

    return jax.jit(jax.grad(loss))(kept["params"])

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    gradient(True),
    gradient(False),
  )


def test_bad_options_and_sizes_are_told():
  with pytest.raises(ValueError, match="multiples of 32"):
    variables_of(make(), jnp.zeros((1, 32, 48, 1)))
  with pytest.raises(lookup.UnknownName, match="'features'"):
    make(features=(4, 8))
  with pytest.raises(lookup.ConfigError, match="depth is 12"):
    make(depth=12)
  with pytest.raises(lookup.ConfigError, match="output_stride is 16; .* 32"):
    make(output_stride=16)
  with pytest.raises(lookup.UnknownName, match="upsampling"):
    make(upsampling="nearest")
