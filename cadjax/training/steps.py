"""The training and evaluation steps: pure functions, made from their parts.

A 2D model sees the slices of a volume as separate examples with the volume's
label: its batch is [B, S, H, W, 1] and flattened here, its logits come back
as [B, S, K]. A 3D model has S = 1. A 2D segmenter sees the slices of a patch
likewise, each with its slice of the mask.
"""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from cadjax.data import classes
from cadjax.models import layers

PyTree = Any
Batch = dict[str, jax.Array]


# What a batch has to become: the label [N], or mask [N, *space] and known
# [N, K] of a segmenter.
Target = jax.Array | tuple[jax.Array, jax.Array]


class TrainState(flax.struct.PyTreeNode):
  """All that a step changes.

  Attributes:
    step: int32 scalar, the number of updates done.
    params: float32 parameters.
    batch_stats: running statistics of the norms ({} where there are none).
    opt_state: the optimizer's state.
    ema_params: exponential moving average of params, or None.
  """

  step: jax.Array
  params: PyTree
  batch_stats: PyTree
  opt_state: PyTree
  ema_params: PyTree | None

  def eval_variables(self) -> dict[str, PyTree]:
    """The variables that evaluation and checkpoints of the best use.

    The statistics of averaged parameters are not these, but those of
    `make_statistics_step`.
    """
    params = self.params if self.ema_params is None else self.ema_params
    return {"params": params, "batch_stats": self.batch_stats}


def make_init(
  model: nn.Module,
  tx: optax.GradientTransformation,
  image_shape: tuple[int, ...],
  *,
  ema: bool,
) -> Callable[[jax.Array], TrainState]:
  """Makes `init(key) -> state` for images [1, (D,) H, W, 1]."""

  def init(key: jax.Array) -> TrainState:
    variables = model.init(
      {"params": key}, jnp.zeros((1, *image_shape)), train=False
    )
    params = variables["params"]
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=variables.get("batch_stats", {}),
      opt_state=tx.init(params),
      # A copy: the step donates the state, and a buffer is donated once.
      ema_params=jax.tree.map(jnp.copy, params) if ema else None,
    )

  return init


def create_state(
  model: nn.Module,
  tx: optax.GradientTransformation,
  key: jax.Array,
  image_shape: tuple[int, ...],
  *,
  ema: bool,
) -> TrainState:
  """Initialises parameters and optimizer; see `make_init`."""
  # Random numbers for every kernel take LLVM 11 s to optimise and no time to
  # draw (ResNet-10, 2 cores); unoptimised it compiles in 1 s.
  cpu = jax.default_backend() == "cpu"
  options = {"xla_backend_optimization_level": 0} if cpu else None
  init = make_init(model, tx, image_shape, ema=ema)
  return jax.jit(init, compiler_options=options)(key)


def window(image: jax.Array, window_hu: tuple[float, float]) -> jax.Array:
  """Maps HU (any integer type) in `window_hu` linearly to float32 [0, 1]."""
  low, high = window_hu
  return jnp.clip((image.astype(jnp.float32) - low) / (high - low), 0.0, 1.0)


def flatten_slices(x: jax.Array, ndim: int) -> jax.Array:
  """[B, S, H, W, 1] -> [B * S, H, W, 1] for a 2D model; else unchanged."""
  return x.reshape(-1, *x.shape[2:]) if ndim == 2 else x


def make_prepare(
  *,
  ndim: int,
  window_hu: tuple[float, float],
  augment: Callable | None,
  class_set: str | None = None,
  prior: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Callable[[jax.Array, Batch], tuple[jax.Array, Target, jax.Array]]:
  """Makes `prepare(key, batch) -> (image, target, valid)`, on the device.

  Args:
    ndim: 2 flattens the slices of each volume into the batch.
    window_hu: the HU that become 0 and 1.
    augment: `fn(key, image, mask) -> (image, mask)` for one example, or None.
    class_set: of a segmenter, a key of `classes.CLASS_SETS`; None for a
      classifier.
    prior: of `priors.make_prior`, for a classifier; the batch has then prior
      [B, D, H, W], which is turned and bent with the image.

  Returns:
    A function of a key and a batch with image [B, D, H, W, 1] (int16 HU),
    valid [B] and index [B], the example's place in the global batch: its
    randomness depends on that alone, not on the device it is on. For a
    classifier the batch has label [B], which is the target; for a segmenter
    mask [B, D, H, W] and known [B, 5] of the stored classes, and the target
    is (mask, known [N, K]) in the classes of the set.
  """

  def prepare(key, batch):
    image = window(batch["image"], window_hu)
    slices = image.shape[1] if ndim == 2 else 1
    image = flatten_slices(image, ndim)
    valid = jnp.repeat(batch["valid"], slices)
    mask = None
    if class_set is not None or prior is not None:
      name = "mask" if prior is None else "prior"
      mask = flatten_slices(batch[name], ndim)
    if augment is not None:
      index = batch["index"][:, None] * slices + jnp.arange(slices)[None]
      keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index.ravel())
      image, mask = jax.vmap(augment)(keys, image, mask)
    if prior is not None:
      image = prior(image, mask)
    if class_set is None:
      return image, jnp.repeat(batch["label"], slices), valid
    known = classes.map_known(batch["known"], class_set)
    known = jnp.repeat(known, slices, axis=0)
    return image, (classes.map_mask(mask, class_set), known), valid

  return prepare


def hits(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns right calls [N] and all calls [N]; their ratio is the accuracy."""
  right = logits.argmax(-1) == label
  return right, jnp.ones_like(right, jnp.float32)


def overlaps(
  logits: jax.Array | tuple[jax.Array, ...],
  target: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
  """Returns the two parts of the Dice coefficient of each foreground class.

  Args:
    logits: [N, *space, K], or a tuple of them, finest first.
    target: mask [N, *space] and known [N, K].

  Returns:
    twice the voxels in mask and prediction [N, K - 1], and the voxels of the
    mask plus those of the prediction [N, K - 1]; 0 where a class is unknown.
  """
  mask, known = target
  finest = logits[0] if isinstance(logits, tuple) else logits
  called = finest.argmax(-1)
  foreground = jnp.arange(1, finest.shape[-1])
  ours = called[..., None] == foreground
  theirs = mask[..., None] == foreground
  space = tuple(range(1, mask.ndim))
  both = jnp.sum(ours & theirs, axis=space)
  either = jnp.sum(ours, axis=space) + jnp.sum(theirs, axis=space)
  known = known[:, 1:].astype(jnp.float32)
  return 2 * both * known, either * known


def make_train_step(
  model: nn.Module,
  tx: optax.GradientTransformation,
  loss_fn: Callable[[jax.Array, Target], jax.Array],
  prepare: Callable,
  *,
  score: tuple[str, Callable] = ("accuracy", hits),
  seed: int,
  schedule: Callable[[jax.Array], jax.Array],
  ema_decay: float = 0.0,
  accumulate: int = 1,
  axis_name: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """Makes `train_step(state, batch) -> (state, metrics)`.

  Args:
    model: gives (logits, features) and changes "batch_stats".
    tx: the optimizer.
    loss_fn: per example, (logits, target) -> [N].
    prepare: from `make_prepare`.
    score: the name of a metric and its parts, (logits, target) -> (top,
      bottom), [N] or [N, C]: the ratio of their sums over the batch, as a
      mean over the C whose bottom is above 0.
    seed: of augmentation; the key of a step is `fold_in(seed, step)`.
    schedule: the learning rate by step, for the log.
    ema_decay: of the moving average of the parameters; 0 keeps none.
    accumulate: steps whose mean gradient makes one update of the parameters;
      their average moves as often.
    axis_name: the pmap axis over which losses and gradients are summed.
  """

  def psum(tree):
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)

  def train_step(state, batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    image, target, valid = prepare(key, batch)
    count = psum(valid.sum())

    def loss_of(params):
      variables = {"params": params, "batch_stats": state.batch_stats}
      (logits, _), updates = model.apply(
        variables, image, train=True, mutable=["batch_stats"]
      )
      # A sum over this device's share of the global mean, so that the
      # gradients of all devices add up to the gradient of that mean.
      loss = jnp.sum(loss_fn(logits, target) * valid) / count
      return loss, (logits, updates.get("batch_stats", {}))

    grad_fn = jax.value_and_grad(loss_of, has_aux=True)
    (loss, (logits, batch_stats)), grads = grad_fn(state.params)
    loss, grads = psum((loss, grads))
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = state.ema_params
    if ema_params is not None:
      # The early average follows quickly: decay (1 + t) / (10 + t) at first,
      # after t updates.
      done = state.step // accumulate
      decay = jnp.minimum(ema_decay, (1.0 + done) / (10.0 + done))
      updated = (state.step + 1) % accumulate == 0
      decay = jnp.where(updated, decay, 1.0)
      ema_params = optax.incremental_update(params, ema_params, 1.0 - decay)
    name, parts = score
    top, bottom = (
      psum(jnp.sum(part.T * valid, axis=-1)) for part in parts(logits, target)
    )
    metrics = {
      "loss": loss,
      name: jnp.nanmean(top / bottom),
      "grad_norm": optax.tree.norm(grads),
      "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
    }
    state = TrainState(
      state.step + 1, params, batch_stats, opt_state, ema_params
    )
    return state, metrics

  return train_step


def make_statistics_step(
  model: nn.Module, prepare: Callable, *, seed: int
) -> Callable[[dict[str, PyTree], Batch], tuple[dict[str, PyTree], PyTree]]:
  """Makes `step(state, batch) -> (state, statistics)`, for averaged weights.

  The running statistics of a training are of the weights that it went
  through. Their average is another network, whose batch norms need the
  statistics of its own maps: they are measured anew over some batches
  (Izmailov et al., UAI 2018, section 3.2), see `layers.pool_statistics`.

  Args:
    model: as in `make_train_step`, with its axis name.
    prepare: from `make_prepare`, that of the training.
    seed: of augmentation; the key of a step is `fold_in(seed, step)`.

  Returns:
    A function of params, batch_stats and step, which it returns with the next
    step, and a batch; the statistics are those of the batch.
  """

  def step(state, batch):
    key = jax.random.fold_in(jax.random.key(seed), state["step"])
    image, _, _ = prepare(key, batch)
    variables = {name: state[name] for name in ("params", "batch_stats")}
    _, updates = model.apply(
      variables, image, train=True, mutable=["batch_stats"]
    )
    found = layers.batch_statistics(
      updates["batch_stats"], state["batch_stats"]
    )
    return state | {"step": state["step"] + 1}, found

  return step


def make_voxel_logits(
  model: nn.Module, *, ndim: int, window_hu: tuple[float, float]
) -> Callable[[dict[str, PyTree], jax.Array], jax.Array]:
  """Makes `apply(variables, image) -> logits` of a segmenter.

  From int16 HU [B, D, H, W, 1] to float32 [B, D, H, W, K], with the running
  statistics; the slices of a 2D model are segmented one by one.
  """

  def apply(variables, image):
    examples = flatten_slices(window(image, window_hu), ndim)
    logits, _ = model.apply(variables, examples, train=False)
    return logits.reshape(*image.shape[:-1], logits.shape[-1])

  return apply


def make_eval_step(
  model: nn.Module,
  *,
  ndim: int,
  window_hu: tuple[float, float],
  prior: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Callable[[dict[str, PyTree], Batch], jax.Array]:
  """Makes `eval_step(variables, batch) -> logits [B, S, K]`, float32.

  The model must be made with `axis_name=None`: evaluation uses the running
  statistics. `prior` is as in `make_prepare`.
  """

  def eval_step(variables, batch):
    image = batch["image"]
    examples = flatten_slices(window(image, window_hu), ndim)
    # A scan's volume has met its prior before, see `Classifier.prepare`.
    if prior is not None and "prior" in batch:
      examples = prior(examples, flatten_slices(batch["prior"], ndim))
    logits, _ = model.apply(variables, examples, train=False)
    return logits.reshape(image.shape[0], -1, logits.shape[-1])

  return eval_step
