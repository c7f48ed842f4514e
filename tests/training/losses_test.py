"""losses: against scikit-learn, optax and numbers worked out by hand."""

import inspect
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from sklearn import metrics

from cadjax.core import lookup
from cadjax.training import losses

LN2 = math.log(2)


@pytest.fixture(autouse=True)
def _no_rank_promotion():
  with jax.numpy_rank_promotion("raise"):
    yield


def draw(count=40, classes=3, seed=0):
  rng = np.random.default_rng(seed)
  logits = 3 * rng.standard_normal((count, classes)).astype(np.float32)
  return logits, rng.integers(0, classes, count)


def softmax(logits):
  powers = np.exp(logits.astype(np.float64))
  return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_cross_entropy_is_scikit_learns(classes):
  logits, target = draw(classes=classes)
  expected = metrics.log_loss(target, softmax(logits), labels=range(classes))
  ours = losses.cross_entropy(logits, target)
  assert ours.shape == (40,)
  np.testing.assert_allclose(ours.mean(), expected, rtol=1e-5)


def test_weighted_cross_entropy_is_scikit_learns_with_sample_weights():
  logits, target = draw()
  weights = np.array([0.2, 1.0, 3.0])
  expected = metrics.log_loss(
    target, softmax(logits), labels=range(3), sample_weight=weights[target]
  )
  ours = losses.cross_entropy(logits, target, weights=tuple(weights))
  np.testing.assert_allclose(
    ours.sum() / weights[target].sum(), expected, rtol=1e-5
  )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [2, 4])
def test_focal_with_gamma_zero_is_cross_entropy(classes, smoothing):
  logits, target = draw(classes=classes)
  labels = optax.smooth_labels(jax.nn.one_hot(target, classes), smoothing)
  expected = optax.softmax_cross_entropy(logits, labels)
  for ours in (
    losses.focal(logits, target, gamma=0.0, label_smoothing=smoothing),
    losses.cross_entropy(logits, target, label_smoothing=smoothing),
  ):
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, 0.25, 0.9])
def test_two_classes_give_optax_sigmoid_focal_loss(gamma, alpha):
  logits, target = draw(classes=2)
  expected = optax.sigmoid_focal_loss(
    logits[:, 1] - logits[:, 0],
    target.astype(np.float32),
    alpha=alpha,
    gamma=gamma,
  )
  ours = losses.focal(logits, target, gamma=gamma, alpha=alpha)
  np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


# (1 - p)^gamma * -ln p, worked out by hand.
@pytest.mark.parametrize(
  ("p", "gamma", "alpha", "expected"),
  [
    (0.5, 2.0, None, 0.25 * LN2),
    (0.5, 0.0, None, LN2),
    (0.25, 1.0, None, 0.75 * 2 * LN2),
    (0.25, 2.0, 0.8, 0.8 * 0.5625 * 2 * LN2),
    (0.9, 2.0, (0.3, 0.6), 0.6 * 0.01 * 0.1053605157),
  ],
)
def test_focal_by_hand(p, gamma, alpha, expected):
  logits = np.log([[1 - p, p]]).astype(np.float32)
  ours = losses.focal(logits, np.array([1]), gamma=gamma, alpha=alpha)
  np.testing.assert_allclose(ours, [expected], rtol=1e-4)


def test_focal_of_three_classes_by_its_formula():
  logits, target = draw()
  p = softmax(logits)
  q = 0.8 * np.eye(3)[target] + 0.2 / 3
  alpha = np.array([0.5, 1.0, 2.0])
  expected = (q * alpha * (1 - p) ** 1.5 * -np.log(p)).sum(-1)
  ours = losses.focal(
    logits, target, gamma=1.5, alpha=tuple(alpha), label_smoothing=0.2
  )
  np.testing.assert_allclose(ours, expected, rtol=1e-4)


def test_one_alpha_weighs_class_one_and_its_complement_class_zero():
  logits, target = np.zeros((2, 2), np.float32), np.array([0, 1])
  ours = losses.focal(logits, target, gamma=0.0, alpha=0.25)
  np.testing.assert_allclose(ours, [0.75 * LN2, 0.25 * LN2], rtol=1e-6)


def test_focal_leaves_the_hard_examples_their_share():
  # gamma 2: an example at p = 0.9 weighs 100 times less than in CE.
  logits = np.log([[0.1, 0.9], [0.9, 0.1]]).astype(np.float32)
  target = np.array([1, 1])
  ratio = losses.focal(logits, target) / losses.cross_entropy(logits, target)
  np.testing.assert_allclose(ratio, [0.01, 0.81], rtol=1e-4)


@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("classes", [2, 3])
def test_huge_logits_give_finite_losses_and_gradients(
  size, gamma, smoothing, classes
):
  logits = np.zeros((4, classes), np.float32)
  logits[:2, 0], logits[:2, 1] = size, -size
  logits[2:, 0], logits[2:, 1] = -size, size
  target = np.array([0, 1, 0, 1])

  def loss(logits):
    return losses.focal(logits, target, gamma=gamma, label_smoothing=smoothing)

  values = loss(logits)
  gradient = jax.grad(lambda x: loss(x).sum())(logits)
  assert np.all(np.isfinite(values))
  assert np.all(np.isfinite(gradient))
  if not smoothing:
    np.testing.assert_allclose(values, [0, 2 * size, 2 * size, 0], atol=1e-6)
    # Wrong and certain: the loss is linear, its slope 1.
    np.testing.assert_allclose(gradient[1, :2], [1, -1], atol=1e-5)
    np.testing.assert_allclose(gradient[0], 0.0, atol=1e-6)


def test_focal_gradient_equals_finite_differences():
  logits, target = draw(count=6)

  def loss(logits):
    return losses.focal(logits, target, gamma=1.7, label_smoothing=0.1).sum()

  gradient = jax.grad(loss)(logits)
  for index in np.ndindex(logits.shape):
    step = np.zeros_like(logits)
    step[index] = 1e-2
    difference = (loss(logits + step) - loss(logits - step)) / 2e-2
    np.testing.assert_allclose(gradient[index], difference, atol=2e-3)


def test_bfloat16_logits_are_computed_in_float32():
  logits, target = draw()
  rough = jnp.asarray(logits, jnp.bfloat16)
  ours = losses.focal(rough, target)
  assert ours.dtype == jnp.float32
  np.testing.assert_array_equal(
    ours, losses.focal(rough.astype(jnp.float32), target)
  )


def test_more_axes_are_more_examples():
  logits, target = draw(count=24)
  flat = losses.focal(logits, target, alpha=(0.2, 0.3, 0.5))
  many = losses.focal(
    logits.reshape(2, 3, 4, 3), target.reshape(2, 3, 4), alpha=(0.2, 0.3, 0.5)
  )
  np.testing.assert_allclose(many.ravel(), flat, rtol=1e-6)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_an_unknown_target_gives_zero(name):
  logits, _ = draw(count=2)
  loss = losses.LOSSES[name](logits, np.array([-1, 3]), label_smoothing=0.1)
  np.testing.assert_array_equal(loss, 0.0)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_losses_take_keyword_options_and_are_jitted(name):
  loss = losses.LOSSES[name]
  kinds = [p.kind for p in inspect.signature(loss).parameters.values()]
  assert kinds[:2] == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 2
  assert set(kinds[2:]) == {inspect.Parameter.KEYWORD_ONLY}
  logits, target = draw(classes=2)
  np.testing.assert_allclose(
    jax.jit(loss)(logits, target), loss(logits, target), rtol=1e-5, atol=1e-7
  )


def test_get_loss_reads_a_config():
  config = ml_collections.ConfigDict(
    {"name": "focal", "gamma": 3.0, "alpha": (0.25, 0.75)}
  )
  logits, target = draw(classes=2)
  np.testing.assert_array_equal(
    losses.get_loss(config)(logits, target),
    losses.focal(logits, target, gamma=3.0, alpha=(0.25, 0.75)),
  )


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"name": "focl"}, "unknown loss 'focl'; did you mean 'focal'"),
    ({"name": "focal", "gama": 1}, "'gama'; did you mean 'gamma'"),
    ({"name": "cross_entropy", "alpha": 1}, "'alpha'.*known: label_smooth"),
  ],
)
def test_unknown_names_are_told(config, message):
  with pytest.raises(lookup.UnknownName, match=message):
    losses.get_loss(config)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"gamma": -1.0}, "gamma is -1.0"),
    ({"alpha": 0.5}, "give 3, one per class"),
    ({"alpha": (1.0, 2.0)}, "2 class weights for 3 classes"),
    ({"label_smoothing": 1.0}, r"must be in \[0, 1\)"),
  ],
)
def test_impossible_options_are_told(options, message):
  with pytest.raises(lookup.ConfigError, match=message):
    losses.focal(*draw(), **options)


def test_shapes_that_do_not_fit_are_told():
  logits, target = draw()
  with pytest.raises(ValueError, match=r"\(40, 3\) and target \(39,\)"):
    losses.focal(logits, target[:-1])
  with pytest.raises(ValueError, match="two logits"):
    losses.focal(logits[:, :1], target)
  with pytest.raises(lookup.ConfigError, match=r"alpha is 1.5"):
    losses.focal(logits[:, :2], target, alpha=1.5)
