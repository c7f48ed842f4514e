"""optimizer: schedules at their corners, and updates worked out by hand."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from cadjax.core import lookup
from cadjax.training import optimizer

PARAMS = {
  "conv_stem": {"kernel": jnp.full((3, 1, 2), 2.0)},
  "norm_stem": {"scale": jnp.ones(2), "bias": jnp.full(2, 0.5)},
  "head": {"kernel": jnp.full((2, 2), -1.0), "bias": jnp.zeros(2)},
}
GRADS = jax.tree.map(lambda p: jnp.full(p.shape, 0.3), PARAMS)
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def make(total_steps=100, **config):
  return optimizer.get_optimizer(
    {"schedule": "constant", "learning_rate": 0.1} | config,
    total_steps=total_steps,
  )


def steps(tx, *gradients, params=PARAMS):
  """Applies the gradients one after the other."""
  state = tx.init(params)
  for gradient in gradients:
    updates, state = tx.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  return params


def assert_trees_close(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize(
  ("name", "middle", "end"),
  [
    ("constant", 0.5, 0.5),
    ("cosine", (0.5 + 0.05) / 2, 0.05),
    ("poly", 0.05 + 0.45 * 0.5**0.9, 0.05),
  ],
)
def test_schedules_at_their_corners(name, middle, end):
  _, schedule = make(
    110, schedule=name, learning_rate=0.5, warmup_steps=10, end_factor=0.1
  )
  for step, expected in [
    (0, 0.0),
    (5, 0.25),
    (10, 0.5),
    (60, middle),
    (110, end),
    (500, end),
  ]:
    np.testing.assert_allclose(schedule(step), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", optimizer.SCHEDULES)
def test_without_warmup_the_first_step_has_the_full_rate(name):
  _, schedule = make(20, schedule=name)
  np.testing.assert_allclose(schedule(0), 0.1, rtol=1e-6)


@pytest.mark.parametrize("name", optimizer.SCHEDULES)
@pytest.mark.parametrize(("total", "warmup"), [(100, 10), (34, 3), (2, 0)])
def test_a_fraction_of_the_steps_is_so_many_steps(name, total, warmup):
  _, by_fraction = make(total, schedule=name, warmup_fraction=0.1)
  _, by_steps = make(total, schedule=name, warmup_steps=warmup)
  for step in range(total + 1):
    assert by_fraction(step) == by_steps(step)


@pytest.mark.parametrize("total", range(1, 8))
def test_a_fraction_fits_trainings_of_any_length(total):
  for fraction in (0.1, 0.5, 0.9):
    _, schedule = make(total, schedule="cosine", warmup_fraction=fraction)
    rates = [float(schedule(step)) for step in range(total)]
    assert max(rates) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["cosine", "poly"])
def test_schedules_never_rise_after_warmup(name):
  _, schedule = make(57, schedule=name, warmup_steps=7)
  rates = np.array([schedule(step) for step in range(60)])
  assert np.all(np.diff(rates[:8]) > 0)
  assert np.all(np.diff(rates[7:]) <= 0)
  assert rates[-1] == 0


def test_sgd_by_hand():
  tx, _ = make(name="sgd", momentum=0.9)
  # The velocity is g, then 0.9 g + g.
  expected = jax.tree.map(lambda p: p - 0.1 * (0.3 + 1.9 * 0.3), PARAMS)
  assert_trees_close(steps(tx, GRADS, GRADS), expected, rtol=1e-5)
  tx, _ = make(name="sgd", momentum=0.9, nesterov=True)
  expected = jax.tree.map(lambda p: p - 0.1 * 1.9 * 0.3, PARAMS)
  assert_trees_close(steps(tx, GRADS), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_first_step_of_adam_is_the_learning_rate(name):
  tx, _ = make(name=name)
  expected = jax.tree.map(lambda p: p - 0.1, PARAMS)
  assert_trees_close(steps(tx, GRADS), expected, rtol=1e-5)


def test_adam_is_optax_adam():
  tx, _ = make(name="adam", b1=0.8, b2=0.95, eps=1e-3)
  other = jax.tree.map(lambda g: -2 * g, GRADS)
  expected = steps(optax.adam(0.1, 0.8, 0.95, 1e-3), GRADS, other)
  assert_trees_close(steps(tx, GRADS, other), expected, rtol=1e-6)


def test_the_decay_of_adamw_leaves_norms_and_biases():
  tx, _ = make(name="adamw", weight_decay=0.2)
  after = steps(tx, ZEROS)
  for layer, leaves in PARAMS.items():
    for name, before in leaves.items():
      factor = 1 - 0.1 * 0.2 if name == "kernel" else 1.0
      np.testing.assert_allclose(after[layer][name], factor * before, rtol=1e-6)


def test_the_decay_of_sgd_is_added_to_the_gradient():
  tx, _ = make(name="sgd", weight_decay=0.2)
  after = steps(tx, GRADS)
  kernel = PARAMS["conv_stem"]["kernel"]
  np.testing.assert_allclose(
    after["conv_stem"]["kernel"], kernel - 0.1 * (0.3 + 0.2 * kernel), rtol=1e-6
  )
  np.testing.assert_allclose(after["norm_stem"]["scale"], 1 - 0.1 * 0.3)


def test_the_decay_of_adam_passes_through_its_moments():
  # A pure penalty moves kernels by the full rate, whatever its size.
  tx, _ = make(name="adam", weight_decay=1e-2)
  after = steps(tx, ZEROS)
  np.testing.assert_allclose(after["conv_stem"]["kernel"], 2 - 0.1, rtol=1e-4)
  np.testing.assert_array_equal(after["norm_stem"]["bias"], 0.5)


def test_the_mask_is_true_at_kernels_only():
  mask = optimizer.decay_mask(PARAMS)
  assert mask == {
    "conv_stem": {"kernel": True},
    "norm_stem": {"scale": False, "bias": False},
    "head": {"kernel": True, "bias": False},
  }


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_clipping_bounds_the_norm_and_keeps_the_direction(size):
  tx, _ = make(name="sgd", momentum=0.0, learning_rate=1.0, clip_norm=0.5)
  gradient = jax.tree.map(lambda g: g * size, GRADS)
  moved = jax.tree.map(lambda a, b: a - b, PARAMS, steps(tx, gradient))
  norm = float(optax.tree.norm(gradient))
  factor = min(1.0, 0.5 / norm)
  expected = jax.tree.map(lambda g: factor * g, gradient)
  assert_trees_close(moved, expected, rtol=1e-3, atol=1e-6)


def test_two_accumulated_halves_equal_one_whole():
  def loss(params, x, y):
    return jnp.mean((x @ params["head"]["kernel"] - y) ** 2)

  rng = np.random.default_rng(0)
  params = {"head": {"kernel": rng.standard_normal((3, 2))}}
  x, y = rng.standard_normal((8, 3)), rng.standard_normal((8, 2))
  whole = jax.grad(loss)(params, x, y)
  halves = [
    jax.grad(loss)(params, x[half], y[half])
    for half in (slice(4), slice(4, None))
  ]
  options = {"name": "sgd", "clip_norm": 0.7, "weight_decay": 0.1}
  once, _ = make(**options)
  twice, _ = make(**options, accumulate=2)
  expected = steps(once, whole, params=params)
  assert_trees_close(steps(twice, *halves, params=params), expected, rtol=1e-5)
  unmoved = steps(twice, halves[0], params=params)
  assert_trees_close(unmoved, params, rtol=1e-7)


def test_the_schedule_of_accumulated_updates_runs_in_train_steps():
  options = {"name": "sgd", "momentum": 0.0, "schedule": "poly", "power": 1.0}
  tx, schedule = make(8, **options, accumulate=2)
  state, params, moves = tx.init(PARAMS), PARAMS, []
  for _ in range(8):
    updates, state = tx.update(GRADS, state, params)
    moves.append(float(updates["head"]["bias"][0]) / -0.3)
  expected = [0, schedule(0), 0, schedule(2), 0, schedule(4), 0, schedule(6)]
  np.testing.assert_allclose(moves, expected, rtol=1e-5, atol=1e-9)
  np.testing.assert_allclose(schedule(4), 0.05, rtol=1e-6)


def test_the_update_is_jitted():
  tx, _ = make(name="adamw", weight_decay=0.1, clip_norm=1.0, accumulate=2)
  state = tx.init(PARAMS)
  updates, _ = jax.jit(tx.update)(GRADS, state, PARAMS)
  assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, PARAMS)


def test_a_config_dict_works():
  config = ml_collections.ConfigDict(
    {"name": "adam", "learning_rate": 1e-2, "eps": 1e-7}
  )
  _, schedule = optimizer.get_optimizer(config.lock(), total_steps=10)
  np.testing.assert_allclose(schedule(0), 1e-2, rtol=1e-6)


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"name": "adm"}, "unknown optimizer 'adm'; did you mean 'adam"),
    ({"schedule": "cosin"}, "unknown schedule 'cosin'.*'cosine'"),
    ({"learning_rat": 1}, "'learning_rat'; did you mean 'learning_rate'"),
    ({"accumulate": 0}, "accumulate is 0; it must be >= 1"),
    ({"clip_norm": -1.0}, "clip_norm is -1.0"),
    (
      {"warmup_fraction": 1.0},
      "warmup_fraction is 1.0; it must be at least 0 and below 1",
    ),
    (
      {"warmup_fraction": 0.1, "warmup_steps": 2},
      "warmup_steps is 2 and warmup_fraction 0.1; set one of them to 0",
    ),
    (
      {"schedule": "cosine", "warmup_steps": 10},
      "warmup_steps is 10; it must be below the 10 steps",
    ),
  ],
)
def test_bad_configs_are_told(config, message):
  with pytest.raises(lookup.ConfigError, match=message):
    make(10, **config)
