"""Guided backpropagation beside loops by hand, and beside captum."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import Fcn, draw_variables

from cadjax import models
from cadjax.core import lookup
from cadjax.explanation import attribution, cam, guided


def two_layers(seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(7, 6)), rng.normal(size=(5, 7)), rng.normal(size=5)


def test_each_relu_lets_positive_gradients_of_positive_inputs_through():
  first, second, last = two_layers()
  x = np.random.default_rng(1).normal(size=6)

  def network(x):
    return jnp.dot(last, jax.nn.relu(second @ jax.nn.relu(first @ x)))

  found = jax.grad(guided.guided(network))(jnp.asarray(x))
  # By hand, from the logit down.
  a = first @ x
  b = second @ np.maximum(a, 0)
  back = np.where((b > 0) & (last > 0), last, 0) @ second
  back = np.where((a > 0) & (back > 0), back, 0) @ first
  np.testing.assert_allclose(found, back, rtol=1e-5)
  plain = jax.grad(network)(jnp.asarray(x))
  assert np.abs(found - plain).max() > 0.1
  # Forward it is the same function.
  np.testing.assert_allclose(
    guided.guided(network)(jnp.asarray(x)), network(x), rtol=1e-6
  )


@pytest.mark.parametrize(("ndim", "remat"), [(2, False), (3, True)])
def test_every_relu_of_a_network_is_changed(ndim, remat):
  """Beside `jax.nn.relu` replaced for as long as the network is traced."""
  model = models.get_model(
    {"depth": 10, "width": 2, "ndim": ndim, "conv": "lax", "remat": remat}
  )
  variables = draw_variables(model, ndim, seed=3)
  x = jnp.asarray(
    np.random.default_rng(0).random((1, *(16, 24, 8)[:ndim], 1), np.float32)
  )
  score = cam.make_score(model, wrap=guided.guided)
  found = jax.jit(jax.grad(lambda x: score(variables, x, 1).sum()))(x)
  plain = models.get_model(
    {"depth": 10, "width": 2, "ndim": ndim, "conv": "lax"}
  )

  def patched(x):
    return cam.make_score(plain)(variables, x, 1).sum()

  with pytest.MonkeyPatch.context() as patch:
    # Both names of it; flax has its own.
    patch.setattr(jax.nn, "relu", guided._relu)
    patch.setattr("flax.linen.relu", guided._relu)
    jax.clear_caches()
    expected = jax.grad(patched)(x)
  jax.clear_caches()
  scale = float(jnp.abs(expected).max())
  assert scale > 0
  np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * scale)
  ordinary = jax.grad(lambda x: cam.make_score(plain)(variables, x, 1).sum())(x)
  assert np.abs(found - ordinary).max() > 0.1 * scale


def test_slices_and_segmenters_are_guided_too():
  model = Fcn(ndim=2)
  variables = draw_variables(model, 2)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.random((1, 3, 8, 6, 1), np.float32))
  region = jnp.ones((1, 3, 8, 6))
  score = cam.make_score(model, wrap=guided.guided, slices=2)

  def of(x, region):
    return score(variables, x, jnp.asarray([1]), region).sum()

  found = jax.jit(jax.grad(of))(x, region)
  alone = cam.make_score(model, wrap=guided.guided)
  each = jax.grad(
    lambda x: alone(variables, x, jnp.full(3, 1), region[0]).sum() / 3
  )(x[0])
  np.testing.assert_allclose(found[0], each, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_guided_is_told():
  with pytest.raises(lookup.ConfigError, match="this one has none"):
    guided.guided(jnp.tanh)(jnp.ones(3))

  def looped(x):
    return jax.lax.fori_loop(0, 3, lambda _, y: jax.nn.relu(y) - 1, x)

  with pytest.raises(lookup.ConfigError, match="ReLUs in a loop"):
    guided.guided(looped)(jnp.ones(3))
  # A maximum with 0 that is no ReLU of jax keeps its own gradient.
  mixed = guided.guided(lambda x: jax.nn.relu(x) + jnp.maximum(-x, 0) * 2)
  slope = jax.vmap(jax.grad(mixed))(jnp.asarray([1.0, -1.0]))
  np.testing.assert_allclose(slope, [1, -2])


def test_guided_backpropagation_is_captums():
  torch = pytest.importorskip("torch")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    captum = pytest.importorskip("captum.attr")
  torch.manual_seed(0)
  net = torch.nn.Sequential(
    torch.nn.Conv2d(1, 4, 3, padding=1),
    torch.nn.ReLU(),
    torch.nn.Conv2d(4, 6, 3, padding=1),
    torch.nn.ReLU(),
    torch.nn.Flatten(),
    torch.nn.Linear(6 * 80, 3),
  ).eval()
  weights = [p.detach().numpy() for p in net.parameters()]

  def twin(x):  # [n, H, W, 1]
    x = jnp.moveaxis(x, -1, 1)
    for kernel, bias in (weights[:2], weights[2:4]):
      x = jax.lax.conv(x, kernel, (1, 1), "SAME") + bias[:, None, None]
      x = jax.nn.relu(x)
    return (x.reshape(len(x), -1) @ weights[4].T + weights[5])[:, 2]

  x = np.random.default_rng(0).normal(size=(1, 1, 8, 10)).astype(np.float32)
  image = jnp.asarray(x[0, 0, ..., None])
  given = torch.tensor(x, requires_grad=True)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Of its hooks.
    theirs = captum.GuidedBackprop(net).attribute(given, target=2)
    simple = captum.InputXGradient(net).attribute(given, target=2)
  ours = attribution.gradient(guided.guided(twin), image)
  np.testing.assert_allclose(ours, theirs[0, 0].detach(), rtol=1e-4, atol=1e-5)
  ours = attribution.gradient_x_input(twin, image)
  np.testing.assert_allclose(ours, simple[0, 0].detach(), rtol=1e-4, atol=1e-5)
