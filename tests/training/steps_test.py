"""The steps against numbers worked out by hand or by numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from cadjax.training import losses, steps


class Mean(nn.Module):
  """Logits that are a linear function of the mean intensity."""

  @nn.compact
  def __call__(self, x, train):
    del train
    mean = x.mean(axis=tuple(range(1, x.ndim)))[:, None]
    return nn.Dense(2)(mean), {}


def batch_of(image, label, valid=None):
  n = len(label)
  return {
    "image": jnp.asarray(image, jnp.int16),
    "label": jnp.asarray(label, jnp.int32),
    "valid": jnp.ones(n) if valid is None else jnp.asarray(valid, jnp.float32),
    "index": jnp.arange(n, dtype=jnp.int32),
  }


def images(n, shape=(4, 3, 5), seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(-400, 1400, (n, *shape, 1))


def make(prepare_options=None, *, tx=None, ema_decay=0.0, accumulate=1):
  options = {"ndim": 3, "window_hu": (-200.0, 1000.0), "augment": None}
  prepare = steps.make_prepare(**options | (prepare_options or {}))
  tx = tx or optax.sgd(0.1)
  model = Mean()
  state = steps.create_state(
    model, tx, jax.random.key(0), (4, 3, 5, 1), ema=ema_decay > 0
  )
  step = steps.make_train_step(
    model,
    tx,
    losses.cross_entropy,
    prepare,
    seed=0,
    schedule=optax.constant_schedule(0.1),
    ema_decay=ema_decay,
    accumulate=accumulate,
  )
  return state, jax.jit(step)


def test_window_is_linear_and_clipped():
  hu = np.array([-1024, -200, 400, 1000, 3000], np.int16)
  got = steps.window(jnp.asarray(hu), (-200.0, 1000.0))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, [0, 0, 0.5, 1, 1], atol=1e-7)


def test_train_step_is_gradient_descent_on_the_mean_loss():
  """Against softmax regression written out in numpy."""
  state, step = make()
  image, label = images(3), np.array([0, 1, 1])
  dense = jax.device_get(state.params["Dense_0"])
  x = np.clip((image + 200.0) / 1200.0, 0, 1).mean((1, 2, 3, 4))
  logits = x[:, None] * dense["kernel"] + dense["bias"]
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  loss = -np.log(p[np.arange(3), label]).mean()
  error = (p - np.eye(2)[label]) / 3
  state, values = step(state, batch_of(image, label))
  got = jax.device_get(state.params["Dense_0"])
  np.testing.assert_allclose(values["loss"], loss, rtol=1e-5)
  np.testing.assert_allclose(
    got["bias"], dense["bias"] - 0.1 * error.sum(0), rtol=1e-5
  )
  np.testing.assert_allclose(
    got["kernel"], dense["kernel"] - 0.1 * (x @ error)[None], rtol=1e-5
  )
  assert int(state.step) == 1


def test_invalid_examples_count_for_nothing():
  state, step = make()
  image, label = images(4), np.array([0, 1, 1, 0])
  padded = batch_of(image, label, valid=[1, 1, 0, 0])
  want, want_values = step(state, batch_of(image[:2], label[:2]))
  got, got_values = step(state, padded)
  for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  assert float(got_values["accuracy"]) == float(want_values["accuracy"])


def test_moving_average_follows_its_formula():
  state, step = make(ema_decay=0.9)
  average = jax.device_get(state.ema_params)
  for t in range(3):
    state, _ = step(state, batch_of(images(2, seed=t), [0, 1]))
    decay = min(0.9, (1 + t) / (10 + t))
    average = jax.tree.map(
      lambda a, p, d=decay: d * a + (1 - d) * np.asarray(p),
      average,
      state.params,
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
    average,
    state.ema_params,
  )
  assert state.eval_variables()["params"] is state.ema_params


def test_the_average_moves_once_an_update():
  """Two steps make one: the average is that of every second state."""
  tx = optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation()
  state, step = make(tx=tx, ema_decay=0.9, accumulate=2)
  average = jax.device_get(state.ema_params)
  for t in range(6):
    state, _ = step(state, batch_of(images(2, seed=t), [0, 1]))
    if t % 2 == 1:
      d = min(0.9, (1 + t // 2) / (10 + t // 2))
      average = jax.tree.map(
        lambda a, p, d=d: d * a + (1 - d) * np.asarray(p), average, state.params
      )
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
      average,
      state.ema_params,
    )


def shift(key, image, mask):
  return image + jax.random.uniform(key), mask


def test_augmentation_is_drawn_by_step_and_index():
  prepare = steps.make_prepare(ndim=3, window_hu=(0.0, 1.0), augment=shift)
  zero = batch_of(np.zeros((3, 4, 3, 5, 1)), [0, 1, 0])
  key = jax.random.key(1)
  image, _, _ = prepare(key, zero)
  assert len(np.unique(image)) == 3
  # The same example in another place of the batch gets the same draw.
  turned = {name: value[::-1] for name, value in zero.items()}
  np.testing.assert_array_equal(prepare(key, turned)[0], image[::-1])
  assert not np.allclose(prepare(jax.random.key(2), zero)[0], image)


def test_slices_of_a_2d_model_are_examples_with_draws_of_their_own():
  prepare = steps.make_prepare(ndim=2, window_hu=(0.0, 1.0), augment=shift)
  batch = batch_of(np.zeros((2, 4, 3, 5, 1)), [0, 1], valid=[1, 0])
  image, label, valid = prepare(jax.random.key(0), batch)
  assert image.shape == (8, 3, 5, 1)
  assert len(np.unique(image)) == 8
  assert label.tolist() == [0] * 4 + [1] * 4
  assert valid.tolist() == [1] * 4 + [0] * 4


@pytest.mark.parametrize(("ndim", "slices"), [(2, 4), (3, 1)])
def test_eval_step_gives_logits_by_volume_and_slice(ndim, slices):
  model = Mean()
  shape = (3, 5, 1) if ndim == 2 else (4, 3, 5, 1)
  variables = model.init(jax.random.key(0), jnp.zeros((1, *shape)), train=False)
  step = steps.make_eval_step(model, ndim=ndim, window_hu=(-200.0, 1000.0))
  image = images(2)
  logits = step(variables, {"image": jnp.asarray(image, jnp.int16)})
  assert logits.shape == (2, slices, 2)
  window = np.clip((image + 200.0) / 1200.0, 0, 1)
  mean = window.mean((2, 3, 4)) if ndim == 2 else window.mean((1, 2, 3))
  dense = variables["params"]["Dense_0"]
  want = mean.reshape(2, slices, 1) * dense["kernel"] + dense["bias"]
  np.testing.assert_allclose(logits, want, rtol=1e-5)


def masked_batch(depth=4, n=2):
  rng = np.random.default_rng(2)
  batch = batch_of(images(n, (depth, 3, 5)), [0] * n)
  del batch["label"]
  mask = rng.integers(0, 5, (n, depth, 3, 5)).astype(np.uint8)
  known = np.array([[1, 0, 1, 1, 1], [1, 1, 1, 1, 1]], np.float32)
  return batch | {"mask": jnp.asarray(mask), "known": jnp.asarray(known[:n])}


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_segmenters_target_is_its_mask_in_the_classes_of_its_task(ndim):
  prepare = steps.make_prepare(
    ndim=ndim, window_hu=(0.0, 1.0), augment=None, class_set="aorta_coronaries"
  )
  batch = masked_batch()
  image, (mask, known), valid = prepare(jax.random.key(0), batch)
  slices = 4 if ndim == 2 else 1
  space = (3, 5) if ndim == 2 else (4, 3, 5)
  assert image.shape == (2 * slices, *space, 1)
  assert valid.shape == (2 * slices,)
  # Lumen and both plaques are coronaries.
  want = np.array([0, 1, 2, 2, 2])[np.asarray(batch["mask"])]
  np.testing.assert_array_equal(mask, want.reshape(-1, *space))
  np.testing.assert_array_equal(
    known, np.repeat([[1, 0, 1], [1, 1, 1]], slices, axis=0)
  )


@pytest.mark.parametrize("ndim", [2, 3])
def test_image_and_mask_are_augmented_alike(ndim):
  """A mask that can be read off the image still can afterwards."""

  def turn(key, image, mask):
    axis = jax.random.bernoulli(key).astype(jnp.int32)
    flip = lambda x: jnp.where(axis, jnp.flip(x, 0), x)  # noqa: E731
    return flip(image), flip(mask)

  prepare = steps.make_prepare(
    ndim=ndim, window_hu=(0.0, 4.0), augment=turn, class_set="four"
  )
  batch = masked_batch(n=2)
  batch["image"] = batch["mask"][..., None].astype(jnp.int16)
  image, (mask, _), _ = prepare(jax.random.key(1), batch)
  np.testing.assert_allclose(4 * image[..., 0], mask, atol=1e-6)
  plain = np.asarray(batch["mask"]).reshape(mask.shape)
  assert not np.array_equal(mask, plain)


def test_overlaps_are_the_parts_of_dice():
  rng = np.random.default_rng(3)
  logits = rng.normal(size=(2, 4, 3, 5, 3))
  mask = rng.integers(0, 3, (2, 4, 3, 5))
  known = np.array([[1, 1, 1], [1, 0, 1]])
  called = logits.argmax(-1)
  top, bottom = steps.overlaps(
    (jnp.asarray(logits), "coarser"), (jnp.asarray(mask), jnp.asarray(known))
  )
  for i in range(2):
    for k in (1, 2):
      a, b = called[i] == k, mask[i] == k
      assert top[i, k - 1] == 2 * (a & b).sum() * known[i, k]
      assert bottom[i, k - 1] == (a.sum() + b.sum()) * known[i, k]


def test_the_dice_of_a_step_is_over_the_batch_and_the_classes_it_has():
  """Class 2 of 3 appears nowhere and does not count; nor does padding."""

  class Voxels(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      del train
      bias = self.param("bias", nn.initializers.zeros, (4,))
      return jnp.concatenate(
        [1 - 2 * x, x, 0 * x - 9, x * 0 - 9], -1
      ) + bias, {}

  model, tx = Voxels(), optax.sgd(0.0)
  state = steps.create_state(
    model, tx, jax.random.key(0), (4, 3, 5, 1), ema=False
  )
  rng = np.random.default_rng(4)
  image = rng.integers(0, 2, (3, 4, 3, 5, 1)).astype(np.float32)
  mask = rng.integers(0, 2, (3, 4, 3, 5))
  known = jnp.ones((3, 4))

  def prepare(key, batch):
    target = (jnp.asarray(mask), known)
    return jnp.asarray(image), target, jnp.array([1.0, 1.0, 0.0])

  step = steps.make_train_step(
    model,
    tx,
    lambda logits, target: logits.sum((1, 2, 3, 4)),
    prepare,
    score=("dice", steps.overlaps),
    seed=0,
    schedule=optax.constant_schedule(0.1),
  )
  _, values = jax.jit(step)(state, {})
  called = image[:2, ..., 0] > 0.5
  truth = mask[:2] == 1
  want = 2 * (called & truth).sum() / (called.sum() + truth.sum())
  assert values["dice"] == pytest.approx(want, rel=1e-6)
  assert "accuracy" not in values


@pytest.mark.parametrize("ndim", [2, 3])
def test_voxel_logits_have_the_shape_of_the_volume(ndim):
  class Voxels(nn.Module):
    @nn.compact
    def __call__(self, x, train):
      assert not train
      return jnp.concatenate([x, 1 - x], -1), {}

  apply = steps.make_voxel_logits(
    Voxels(), ndim=ndim, window_hu=(-200.0, 1000.0)
  )
  image = images(2)
  logits = apply({}, jnp.asarray(image, jnp.int16))
  window = np.clip((image[..., 0] + 200.0) / 1200.0, 0, 1)
  assert logits.shape == (2, 4, 3, 5, 2)
  np.testing.assert_allclose(logits[..., 0], window, atol=1e-6)
