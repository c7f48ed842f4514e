"""attribution: closed forms, completeness, brute force."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadjax.explanation import attribution

SPACE = (9, 7, 11)


def image(seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.random((*SPACE, 1), np.float32))


def linear(weights):
  return lambda images: (images[..., 0] * weights).sum((1, 2, 3))


def curved(images):
  """A score with interactions between voxels, as a network has."""
  x = images[..., 0]
  mixed = jnp.tanh(x[:, 1:] * 2 - x[:, :-1]) * x[:, :-1] ** 2
  return mixed.sum((1, 2, 3)) + jnp.exp(x.mean((1, 2, 3)))


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
  ("step", "box"), [((3, 2, 4), (3, 3, 5)), ((4, 4, 4), (8, 1, 4))]
)
def test_occlusion_is_what_blanking_each_box_takes(step, box, batch):
  x = image()
  run = jax.jit(
    lambda x: attribution.occlusion(
      curved, x, step=step, box=box, value=0.25, batch=batch
    )
  )
  found = run(x)
  cells = tuple(-(-n // s) for n, s in zip(SPACE, step, strict=True))
  assert found.shape == cells
  whole = curved(x[None])[0]
  for cell in np.ndindex(cells):
    blank = np.array(x)
    low = [c * s - b // 2 for c, s, b in zip(cell, step, box, strict=True)]
    inside = tuple(
      slice(max(a, 0), max(a + b, 0)) for a, b in zip(low, box, strict=True)
    )
    blank[inside] = 0.25
    drop = whole - curved(jnp.asarray(blank)[None])[0]
    np.testing.assert_allclose(found[cell], drop, atol=1e-4)


def test_an_odd_box_is_centred_on_its_voxel():
  weights = jnp.zeros(SPACE).at[4, 2, 8].set(1.0)
  drop = attribution.occlusion(
    linear(weights), jnp.ones((*SPACE, 1)), step=(4, 2, 4), box=(1, 1, 1)
  )
  assert np.argwhere(drop > 0).tolist() == [[1, 1, 2]]


def test_the_sum_of_integrated_gradients_is_the_difference_of_scores():
  x = image()
  for baseline in (0.0, 0.3):
    found = jax.jit(
      lambda x, b=baseline: attribution.integrated_gradients(
        curved, x, steps=64, baseline=b, batch=5
      )
    )(x)
    start = jnp.full_like(x, baseline)
    difference = curved(x[None])[0] - curved(start[None])[0]
    np.testing.assert_allclose(found.sum(), difference, rtol=2e-4)
    # Not so with one point on the way.
    rough = attribution.integrated_gradients(
      curved, x, steps=1, baseline=baseline
    )
    assert abs(rough.sum() - difference) > 10 * abs(found.sum() - difference)


def test_integrated_gradients_of_a_linear_score_are_its_terms():
  weights = np.random.default_rng(1).standard_normal(SPACE).astype(np.float32)
  x = image()
  found = attribution.integrated_gradients(linear(weights), x, steps=3)
  np.testing.assert_allclose(found, weights * x[..., 0], rtol=1e-5, atol=1e-6)


def test_smoothgrad_is_the_mean_over_the_copies_of_its_key():
  x, key = image(), jax.random.key(3)
  gradient = jax.jit(jax.grad(lambda x: curved(x[None])[0]))
  copies = [
    gradient(x + 0.2 * jax.random.normal(jax.random.fold_in(key, i), x.shape))
    for i in range(3)
  ]
  expected = np.abs(np.mean(copies, 0))[..., 0]
  for batch in (1, 2):
    run = jax.jit(
      functools.partial(
        attribution.smoothgrad, curved, n=3, sigma=0.2, batch=batch
      )
    )
    found = run(x, key)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
  other = run(x, jax.random.key(4))
  assert np.abs(other - expected).max() > 1e-2


def test_without_noise_smoothgrad_is_the_gradient():
  weights = np.random.default_rng(1).standard_normal(SPACE).astype(np.float32)
  found = attribution.smoothgrad(
    linear(weights), image(), jax.random.key(0), n=3, sigma=0.0
  )
  np.testing.assert_allclose(found, np.abs(weights), rtol=1e-6)


def test_gradient_x_input_of_a_linear_score_adds_up():
  rng = np.random.default_rng(0)
  weights = jnp.asarray(rng.normal(size=(4, 5, 6, 1)))
  image = jnp.asarray(rng.random((4, 5, 6, 1)))

  def score(images):
    return (images * weights).sum((1, 2, 3, 4)) + 2

  found = attribution.gradient_x_input(score, image)
  np.testing.assert_allclose(found, (weights * image)[..., 0], rtol=1e-5)
  gain = score(image[None]) - score(0 * image[None])
  np.testing.assert_allclose(found.sum(), gain[0], rtol=1e-4)
  np.testing.assert_allclose(
    attribution.gradient(score, image), weights[..., 0], rtol=1e-5
  )
