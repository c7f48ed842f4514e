"""Losses per example: `fn(logits [..., K], target [...]) -> [...]`, float32.

Nothing is averaged here; the step applies `valid` once. A target outside
0 ... K - 1 gives 0.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cadjax.core import lookup


def focal(
  logits: jax.Array,
  target: jax.Array,
  *,
  gamma: float = 2.0,
  alpha: float | Sequence[float] | None = None,
  label_smoothing: float = 0.0,
) -> jax.Array:
  """Returns the focal loss, `-sum_k q_k alpha_k (1 - p_k)^gamma log p_k`.

  p is the softmax of the logits and q the (smoothed) one-hot target. Two
  logits give the sigmoid form of the paper with their difference as its
  logit. Lin et al. 2017, https://arxiv.org/abs/1708.02002.

  Args:
    logits: [..., K], K >= 2.
    target: [...], class numbers.
    gamma: how much the loss of well-classified examples is reduced, >= 0;
      0 is cross-entropy.
    alpha: weight per class, or one number in [0, 1] for class 1 of two, with
      1 - alpha for class 0. None weighs all by 1.
    label_smoothing: share in [0, 1) of the target spread evenly over the K
      classes.

  Returns:
    [...], float32, >= 0.

  Raises:
    ValueError: if the shapes or an option are out of range.
  """
  _check(logits, target, gamma, label_smoothing)
  num_classes = logits.shape[-1]
  logits = logits.astype(jnp.float32)
  log_p = jax.nn.log_softmax(logits)
  q = jax.nn.one_hot(target, num_classes, dtype=jnp.float32)
  if label_smoothing:
    known = jnp.sum(q, axis=-1, keepdims=True)
    q = (1 - label_smoothing) * q + label_smoothing / num_classes * known
  loss = -q * log_p
  if gamma:
    # As an exponential the power has a finite gradient at p = 1, where
    # (1 - p)^gamma with gamma < 1 has none.
    loss = loss * jnp.exp(gamma * _log_one_minus_softmax(logits))
  if alpha is not None:
    weights = jnp.asarray(class_weights(alpha, num_classes), jnp.float32)
    loss = loss * weights.reshape((1,) * target.ndim + (num_classes,))
  return jnp.sum(loss, axis=-1)


def cross_entropy(
  logits: jax.Array,
  target: jax.Array,
  *,
  weights: Sequence[float] | None = None,
  label_smoothing: float = 0.0,
) -> jax.Array:
  """Returns the cross-entropy, `-sum_k q_k weights_k log p_k`.

  Args:
    logits: [..., K], K >= 2.
    target: [...], class numbers.
    weights: K class weights; None weighs all by 1. The mean over a batch is
      not divided by the sum of its weights.
    label_smoothing: share in [0, 1) of the target spread evenly over the K
      classes.

  Returns:
    [...], float32, >= 0.

  Raises:
    ValueError: if the shapes or an option are out of range.
  """
  alpha = None if weights is None else tuple(weights)
  return focal(
    logits, target, gamma=0.0, alpha=alpha, label_smoothing=label_smoothing
  )


LOSSES = {"focal": focal, "cross_entropy": cross_entropy}


def get_loss(
  config: Mapping[str, Any],
  table: Mapping[str, Callable[..., jax.Array]] = LOSSES,
) -> Callable[..., jax.Array]:
  """Makes the loss that `config` describes.

  Args:
    config: `name`, a key of `table`, and the options of that loss; one that
      is None keeps the loss's own default.
    table: losses by name, whose options are keyword-only.

  Returns:
    The loss with its options: `fn(logits [..., K], target [...]) -> [...]`.

  Raises:
    lookup.UnknownName: for an unknown name or option.
  """
  options = {key: value for key, value in config.items() if value is not None}
  name = options.pop("name")
  loss = lookup.look_up(table, name, "loss")
  known = loss.__kwdefaults__
  lookup.check_known(options, known, f"option of the loss {name!r}")
  return functools.partial(loss, **options)


def class_weights(
  alpha: float | Sequence[float], num_classes: int
) -> tuple[float, ...]:
  """Returns one weight per class.

  Args:
    alpha: one weight per class, or one number in [0, 1] for class 1 of two,
      with 1 - alpha for class 0.
    num_classes: K.

  Raises:
    lookup.ConfigError: for other numbers.
  """
  if isinstance(alpha, int | float):
    if num_classes != 2:
      raise lookup.ConfigError(
        f"one alpha is for two classes; give {num_classes}, one per class"
      )
    if not 0 <= alpha <= 1:
      raise lookup.ConfigError(f"alpha is {alpha}; it must be in [0, 1]")
    return (1 - alpha, alpha)
  if len(alpha) != num_classes:
    raise lookup.ConfigError(
      f"{len(alpha)} class weights for {num_classes} classes"
    )
  return tuple(alpha)


def _log_one_minus_softmax(logits: jax.Array) -> jax.Array:
  """Returns log(1 - softmax(logits)), exact where the softmax is near 1."""
  others = [
    jax.nn.logsumexp(jnp.delete(logits, k, axis=-1), axis=-1)
    for k in range(logits.shape[-1])
  ]
  total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
  return jnp.stack(others, axis=-1) - total


def _check(
  logits: jax.Array, target: jax.Array, gamma: float, label_smoothing: float
) -> None:
  if logits.ndim != target.ndim + 1 or logits.shape[:-1] != target.shape:
    raise ValueError(
      f"logits {logits.shape} and target {target.shape} do not fit: logits"
      " have one axis more, the classes"
    )
  if logits.shape[-1] < 2:
    raise ValueError("two classes take two logits, not one")
  if gamma < 0:
    raise lookup.ConfigError(f"gamma is {gamma}; it must be >= 0")
  if not 0 <= label_smoothing < 1:
    raise lookup.ConfigError(
      f"label_smoothing is {label_smoothing}; it must be in [0, 1)"
    )
