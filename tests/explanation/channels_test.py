"""Score-CAM and Ablation-CAM beside loops over channels, and exact answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import linen as nn
from tiny_models import Fcn, draw_variables

from cadjax.core import lookup
from cadjax.explanation import cam, channels

SPACE = {2: (12, 8), 3: (6, 8, 10)}


class Tiny(nn.Module):
  """A classifier of two layers with strides 1 and 2, as small as can be."""

  ndim: int = 3
  dtype: type = jnp.float32

  @nn.compact
  def __call__(self, x, *, train):
    conv = functools.partial(nn.Conv, kernel_size=(3,) * self.ndim)
    maps = {}
    for name, count, strides in (("first", 5, 1), ("second", 7, 2)):
      x = nn.relu(conv(count, strides=strides, name=f"conv_{name}")(x))
      x = maps[name] = self.perturb(name, x)
    x = nn.relu(conv(4, name="conv_last")(x)).mean(tuple(range(1, x.ndim - 1)))
    return nn.Dense(2, name="head")(x), maps


def image_of(*space, seed=1):
  return jnp.asarray(
    np.random.default_rng(seed).random((*space, 1), np.float32)
  )


def by_hand(model, variables, image, method, layer, target):
  """Loops over channels."""
  apply = jax.jit(lambda given, x: model.apply(given, x[None], train=False))

  def score(x, perturbations=None):
    given = variables
    if perturbations is not None:
      given = {**variables, "perturbations": perturbations}
    logits = np.asarray(apply(given, x)[0][0], np.float64)
    others = np.delete(logits, target)
    return logits[target] - scipy.special.logsumexp(others)

  _, features = apply(variables, image)
  zeros = {name: jnp.zeros_like(x) for name, x in features.items()}
  a = np.asarray(features[layer][0])
  strides = cam.layer_strides(model)[layer]
  weights = []
  for k in range(a.shape[-1]):
    if method == "ablationcam":
      gone = zeros[layer].at[0, ..., k].set(-a[..., k])
      weights.append(score(image) - score(image, {**zeros, layer: gone}))
      continue
    mask = cam.upsample(jnp.asarray(a[None, ..., k]), image.shape[:-1], strides)
    mask = np.asarray(mask[0])
    span = np.ptp(mask)
    mask = (mask - mask.min()) / span if span > 0 else 0 * mask
    weights.append(score(image * mask[..., None]))
  if method == "scorecam":
    weights = scipy.special.softmax(weights)
  return np.maximum(a @ np.asarray(weights), 0)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("method", channels.METHODS)
def test_maps_are_those_of_a_loop_over_channels(method, ndim):
  model = Tiny(ndim=ndim)
  variables = draw_variables(model, ndim, seed=2)
  image, layers = image_of(*SPACE[ndim]), ("first", "second")
  # 5 and 7 channels: chunks of 4, the last ones filled up.
  run = jax.jit(
    channels.make_channel_maps(model, method, layers=layers, batch=4)
  )
  for target in (0, 1):
    found = run(variables, image, target)
    assert list(found) == list(layers)
    for layer in layers:
      expected = by_hand(model, variables, image, method, layer, target)
      np.testing.assert_allclose(
        found[layer], expected, rtol=2e-3, atol=1e-4 * expected.max() + 1e-7
      )
  assert run._cache_size() == 1


def test_the_number_of_channels_at_a_time_changes_nothing():
  model = Tiny(ndim=2)
  variables = draw_variables(model, 2, seed=2)
  for method in channels.METHODS:
    one, many = (
      jax.jit(
        channels.make_channel_maps(
          model, method, layers=("second",), batch=batch
        )
      )(variables, image_of(*SPACE[2]), 1)["second"]
      for batch in (1, 100)
    )
    np.testing.assert_allclose(one, many, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", channels.METHODS)
def test_no_more_than_a_batch_of_images_exists_at_a_time(method):
  """Counted in the program: the images of its largest convolution."""
  model = Tiny(ndim=2)
  variables = draw_variables(model, 2)
  sizes = {}
  for batch in (2, 7):
    run = channels.make_channel_maps(
      model, method, layers=("second",), batch=batch
    )
    traced = jax.make_jaxpr(run)(variables, image_of(*SPACE[2]), 1)
    sizes[batch] = largest_batch(traced.jaxpr)
  assert sizes == {2: 2, 7: 7}


def largest_batch(jaxpr):
  found = 1
  for step in jaxpr.eqns:
    if step.primitive.name == "conv_general_dilated":
      found = max(found, step.outvars[0].aval.shape[0])
    for value in step.params.values():
      inside = getattr(value, "jaxpr", value)
      if hasattr(inside, "eqns"):
        found = max(found, largest_batch(inside))
  return found


class Linear(nn.Module):
  """Its maps are the image and its square; the logit weighs their sums."""

  ndim: int = 3
  dtype: type = jnp.float32

  @nn.compact
  def __call__(self, x, *, train):
    x = self.perturb("map", jnp.concatenate([x, x**2], -1))
    sums = x.sum(tuple(range(1, x.ndim - 1)))
    weighed = sums @ jnp.asarray([3.0, -1.0])
    return jnp.stack([jnp.zeros_like(weighed), weighed], -1), {"map": x}


def test_ablation_of_a_linear_model_is_each_channels_part():
  image = image_of(4, 5, 6)
  run = channels.make_channel_maps(Linear(), "ablationcam", score="logit")
  found = run({}, image, 1)["map"]
  plain = np.asarray(image[..., 0])
  weights = 3 * plain.sum(), -(plain**2).sum()
  expected = np.maximum(weights[0] * plain + weights[1] * plain**2, 0)
  np.testing.assert_allclose(found, expected, rtol=1e-4)
  # Whatever the sign of the score.
  other = channels.make_channel_maps(Linear(), "ablationcam")
  assert float(Linear().apply({}, image[None], train=False)[0][0, 1]) > 0
  against = other({}, image, 0)["map"]
  np.testing.assert_allclose(
    against,
    np.maximum(-weights[0] * plain - weights[1] * plain**2, 0),
    rtol=1e-4,
    atol=1e-3,
  )


def test_slices_of_a_volume_come_one_by_one():
  model = Tiny(ndim=2)
  variables = draw_variables(model, 2, seed=2)
  volume = image_of(3, *SPACE[2])
  for method in channels.METHODS:
    run = jax.jit(
      channels.make_channel_maps(model, method, layers=("second",), batch=4)
    )
    whole = run(variables, volume, 1)["second"]
    for plane, expected in zip(whole, volume, strict=True):
      alone = run(variables, expected, 1)["second"]
      np.testing.assert_allclose(plane, alone, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", channels.METHODS)
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_segmenter_is_explained_in_its_region(method, ndim):
  model = Fcn(ndim=ndim)
  variables = draw_variables(model, ndim)
  space = (8, 10, 6)[3 - ndim :]
  image = image_of(*space)
  region = jnp.zeros(space).at[(2,) * ndim].set(1)
  run = channels.make_channel_maps(model, method, batch=3)
  found = run(variables, image, 2, region)
  assert set(found) == {"enc1", "bottleneck", "dec1"}
  assert all(np.isfinite(x).all() for x in found.values())
  if ndim == 2:
    stack = run(variables, jnp.stack([image] * 2), 2, jnp.stack([region] * 2))
    np.testing.assert_allclose(
      stack["dec1"], jnp.stack([found["dec1"]] * 2), rtol=1e-4, atol=1e-6
    )


def test_unknown_names_are_told():
  for options, message in (
    ({"method": "scorcam"}, "mean 'scorecam'"),
    ({"method": "scorecam", "layers": ("secnd",)}, "mean 'second'"),
    ({"method": "scorecam", "score": "x"}, "unknown score"),
  ):
    with pytest.raises(lookup.UnknownName, match=message):
      channels.make_channel_maps(Tiny(), **options)
