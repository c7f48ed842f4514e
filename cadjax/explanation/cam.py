"""Explanations by class activation maps, in 2D and 3D.

With the C feature maps A_k of a layer and g_k = dS/dA_k, where S is a scalar
score of logits, every method here is

  map = ReLU( sum_k W_k A_k )

and differs in its weights W alone (but see `SHIFTED`). `Module.perturb` gives g
at every named layer in one backward pass, so that all layers and all methods
cost one pass forward and one back.

From map to picture the order is fixed: combine, ReLU, `upsample`,
`normalise`. A map of stride s has its cell o on voxel s o of the image.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cadjax.core import lookup

Variables = Mapping[str, Any]
Maps = dict[str, dict[str, jax.Array]]  # method -> layer -> map.
XRES_WINDOW = 4


# Pixels that a 2D model takes at a time, 32 slices of 128x128: all slices of a
# volume at once would keep several GB of activations for the backward pass.
SLICE_PIXELS = 32 * 128 * 128
# All strides divide it, and no network is too deep for an image of this size.
_REFERENCE = 256


# --- The methods: weights [B, *space, C], or with 1 for space ---------------
def gradcam(a: jax.Array, g: jax.Array, window: int) -> jax.Array:
  """The mean of the gradient (Selvaraju et al. 2017, arXiv 1610.02391)."""
  del a, window
  return g.mean(_space(g), keepdims=True)


def hirescam(a: jax.Array, g: jax.Array, window: int) -> jax.Array:
  """The gradient of each cell (Draelos & Carin 2020, arXiv 2011.08891)."""
  del a, window
  return g


def xrescam(a: jax.Array, g: jax.Array, window: int) -> jax.Array:
  """The mean of the gradient over blocks of `window` cells along each axis.

  Seg-XRes-CAM, Hasany et al. 2023 (CVPR workshops, pages 3733-3738), with
  the mean for pooling: so a window of 1 is HiResCAM and one that holds the
  whole map is Grad-CAM. A block at the far border averages the cells it has.
  """
  del a
  cells = g.shape[1:-1]
  sizes = [min(window, n) for n in cells]
  blocks = [-(-n // size) for n, size in zip(cells, sizes, strict=True)]
  ends = [
    size * count - n
    for n, size, count in zip(cells, sizes, blocks, strict=True)
  ]
  padded = jnp.pad(g, ((0, 0), *((0, n) for n in ends), (0, 0)))
  pairs = [n for pair in zip(blocks, sizes, strict=True) for n in pair]
  split = padded.reshape(g.shape[0], *pairs, g.shape[-1])
  within = tuple(range(2, split.ndim - 1, 2))
  held = [
    np.minimum(size, n - size * np.arange(count))
    for n, size, count in zip(cells, sizes, blocks, strict=True)
  ]
  counts = functools.reduce(np.multiply.outer, held)
  counts = np.expand_dims(counts, (0, *within, -1)).astype(g.dtype)
  means = split.sum(within, keepdims=True) / counts
  means = jnp.broadcast_to(means, split.shape).reshape(padded.shape)
  return means[:, *(slice(n) for n in cells), :]


def layercam(a: jax.Array, g: jax.Array, window: int) -> jax.Array:
  """ReLU of the gradient (Jiang et al. 2021, doi 10.1109/TIP.2021.3089943).

  Good at shallow layers of high resolution.
  """
  del a, window
  return jax.nn.relu(g)


def gradcam_plusplus(a: jax.Array, g: jax.Array, window: int) -> jax.Array:
  """Grad-CAM++ (Chattopadhay et al. 2018, arXiv 1710.11063).

  The sum over cells of alpha ReLU(g), by equation 19 of the paper with
  alpha = g^2 / (2 g^2 + g^3 sum(A)). Divided by g^2 that is
  1 / (2 + g sum(A)), where no power of a small gradient underflows. The
  paper's exp(S) is a common factor of all weights, which normalising undoes.
  """
  del window
  below = 2 + g * a.sum(_space(a), keepdims=True)
  alpha = jnp.where(below == 0, 0, 1 / jnp.where(below == 0, 1, below))
  return (alpha * jax.nn.relu(g)).sum(_space(g), keepdims=True)


def respondcam(a: jax.Array, g: jax.Array, window: int) -> jax.Array:
  """Respond-CAM (Zhao et al. 2018, arXiv 1806.00102), made for 3D images.

  The mean of the gradient, weighted by the activations: the map's sum is that
  of gradient times activation, and so the score where that adds up to it. A
  channel of zeros has no weight.
  """
  del window
  total = a.sum(_space(a), keepdims=True)
  weighted = (a * g).sum(_space(a), keepdims=True)
  return jnp.where(total == 0, 0, weighted / jnp.where(total == 0, 1, total))


def saliency_tubes(a: jax.Array, g: jax.Array, window: int) -> jax.Array:
  """Saliency Tubes (Stergiou et al. 2019, arXiv 1902.01078).

  The weights of the class in the dense layer behind global pooling, which are
  the sums of the gradient over cells; so the sums are the weights at every
  other layer, too. Unlike a CAM, the map keeps what speaks against the class:
  its least value becomes 0 (`SHIFTED`), as the authors normalise.
  """
  del a, window
  return g.sum(_space(g), keepdims=True)


def _space(x: jax.Array) -> tuple[int, ...]:
  return tuple(range(1, x.ndim - 1))


METHODS = {
  "gradcam": gradcam,
  "hirescam": hirescam,
  "xrescam": xrescam,
  "layercam": layercam,
  "gradcam++": gradcam_plusplus,
  "respondcam": respondcam,
  "saliency_tubes": saliency_tubes,
}
# Methods whose maps are shifted to a least value of 0 in place of a ReLU.
SHIFTED = ("saliency_tubes",)


def combine(
  method: str,
  activations: jax.Array,
  gradients: jax.Array,
  *,
  window: int = XRES_WINDOW,
  relu: bool = True,
) -> jax.Array:
  """Combines feature maps and their gradients to one map.

  Args:
    method: a key of `METHODS`.
    activations: [B, *space, C].
    gradients: of the score of each example, the same shape.
    window: cells along an edge of XRes-CAM's blocks, at least 1.
    relu: whether what speaks against the score is cut off, or the map shifted
      for a method of `SHIFTED`, as it should be in all that is shown.

  Returns:
    [B, *space], float32 or better, not normalised.

  Raises:
    lookup.UnknownName: there is no such method.
    lookup.ConfigError: a window below 1.
  """
  weights_of = lookup.look_up(METHODS, method, "explanation method")
  if window < 1:
    raise lookup.ConfigError(f"the window of xrescam is {window}; it is >= 1")
  wide = jnp.promote_types(activations.dtype, jnp.float32)
  a, g = activations.astype(wide), gradients.astype(wide)
  total = weigh(weights_of(a, g, window), a)
  if not relu:
    return total
  if method in SHIFTED:
    return total - total.min(tuple(range(1, total.ndim)), keepdims=True)
  return jax.nn.relu(total)


def weigh(weights: jax.Array, a: jax.Array) -> jax.Array:
  """Sums `weights * a` over channels, weights [B, *space or 1, C].

  By a matrix product: on a CPU, XLA's own sum over the last axis takes ten
  times as long.
  """
  highest = jax.lax.Precision.HIGHEST  # Or TPUs round to bfloat16.
  if math.prod(weights.shape[1:-1]) == 1:
    cells = a.reshape(a.shape[0], -1, a.shape[-1])
    one = weights.reshape(a.shape[0], -1)
    total = jnp.einsum("bnc,bc->bn", cells, one, precision=highest)
    return total.reshape(a.shape[:-1])
  ones = jnp.ones(a.shape[-1], a.dtype)
  return jnp.einsum("...c,c->...", weights * a, ones, precision=highest)


# --- The scores: [B, (*space,) K] and class [B] to [B, (*space)] ------------
def _logit(logits: jax.Array, target: jax.Array) -> jax.Array:
  index = target.reshape(-1, *(1,) * (logits.ndim - 1))
  return jnp.take_along_axis(logits, index, -1)[..., 0]


def _margin(logits: jax.Array, target: jax.Array) -> jax.Array:
  index = target.reshape(-1, *(1,) * (logits.ndim - 1))
  chosen = jnp.arange(logits.shape[-1]) == index
  others = jnp.where(chosen, -jnp.inf, logits)
  return _logit(logits, target) - jax.nn.logsumexp(others, -1)


SCORES = {"margin": _margin, "logit": _logit}
# What a softmax adds to all logits alike changes no probability, so training
# never shapes it: it stays as it was initialised, and the maps of one logit
# contain it.
SCORE = "margin"


def scores(
  name: str,
  logits: jax.Array,
  target: jax.Array | int,
  region: jax.Array | None = None,
) -> jax.Array:
  """Returns the score [B] that is explained.

  Never of a softmax: its gradient vanishes where the model is sure.

  Args:
    name: "margin", the log odds of the class: its logit less the log-sum-exp
      of the others, so log p / (1 - p) of the softmax; or "logit", that of
      the class alone.
    logits: [B, K] of a classifier or [B, *space, K] of a segmenter.
    target: the class, one for all or [B].
    region: of a segmenter, [B, *space]: the score is the sum over voxels,
      weighted by it (Seg-Grad-CAM, Vinogradova et al. 2020, arXiv
      2002.11434).

  Raises:
    lookup.UnknownName: there is no such score.
    ValueError: a segmenter without a region, or a classifier with one.
  """
  score_of = lookup.look_up(SCORES, name, "score")
  target = jnp.broadcast_to(jnp.asarray(target), logits.shape[:1])
  values = score_of(logits, target)
  if (region is None) != (values.ndim == 1):
    raise ValueError(
      f"logits {logits.shape}: a region is for segmenters, which need one"
    )
  if region is None:
    return values
  return (values * region.astype(values.dtype)).sum(
    tuple(range(1, values.ndim))
  )


# --- One pass forward, one back ---------------------------------------------
def in_float32(model: nn.Module) -> nn.Module:
  """The same model, computing in float32 or better; all else is kept."""
  return model.clone(dtype=jnp.promote_types(model.dtype, jnp.float32))


def make_gradients(
  model: nn.Module, *, layers: Sequence[str] | None = None, score: str = SCORE
) -> Callable[..., tuple[jax.Array, dict, dict]]:
  """Makes a function that gives feature maps and the gradients at them.

  Args:
    model: with the contract of `cadjax.models`; explained in float32.
    layers: names of its maps; all if None.
    score: a key of `SCORES`.

  Returns:
    `fn(variables, image, target, region=None) -> (logits, features,
    gradients)`, the last two by layer, [B, *space, C]; arguments as in
    `make_explain`, but the image has the model's own number of axes.
  """
  model = in_float32(model)

  def run(variables, image, target, region=None):
    variables = {k: v for k, v in variables.items() if k != "perturbations"}

    def apply(perturbations):
      given = variables
      if perturbations:
        given = {**variables, "perturbations": perturbations}
      return model.apply(given, image, train=False)

    # `perturb` wants zeros for every map, whether its gradient is asked for
    # or not; only their shapes are known before the pass.
    _, like = jax.eval_shape(lambda: apply(None))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    chosen = tuple(zeros) if layers is None else tuple(layers)
    lookup.check_known(chosen, zeros, "layer")

    def value(perturbations):
      logits, features = apply({**zeros, **perturbations})
      # Of the sum, as examples do not mix in evaluation.
      total = scores(score, logits, target, region).sum()
      return total, (logits, {name: features[name] for name in chosen})

    gradients, (logits, features) = jax.grad(value, has_aux=True)(
      {name: zeros[name] for name in chosen}
    )
    return logits, features, gradients

  return run


def make_explain(
  model: nn.Module,
  *,
  methods: Sequence[str] = ("gradcam",),
  layers: Sequence[str] | None = None,
  score: str = SCORE,
  window: int = XRES_WINDOW,
  slices: int | None = None,
) -> Callable[..., tuple[jax.Array, Maps]]:
  """Makes a function that explains every layer by every method at once.

  Args:
    model: with the contract of `cadjax.models`. It is explained in float32
      with the statistics of training; its mode of convolution and `remat`
      are kept: with it the backward pass takes less memory and more time.
    methods: keys of `METHODS`.
    layers: names of its maps; all if None.
    score: a key of `SCORES`.
    window: see `combine`.
    slices: slices of a volume that a 2D model takes at a time; as many as
      have `SLICE_PIXELS` if None.

  Returns:
    `explain(variables, image, target, region=None) -> (logits, maps)`, to be
    jitted. image is [B, *space, 1] in [0, 1]; a 2D model also takes volumes
    [B, D, H, W, 1], whose slices are its batch. target is a class, one for
    all or [B]; region is None for a classifier and [B, *space] for a
    segmenter. logits are [B, K] or [B, *space, K], with D behind B where
    slices were the batch; maps[method][layer] is [B, *cells] (or
    [B, D, *cells]) from `combine`.

  Raises:
    lookup.UnknownName: an unknown method, score or layer.
  """
  lookup.check_known(methods, METHODS, "explanation method")
  lookup.check_known([score], SCORES, "score")
  run = make_gradients(model, layers=layers, score=score)

  def one_pass(variables, image, target, region):
    logits, features, gradients = run(variables, image, target, region)
    maps = {
      method: {
        layer: combine(method, features[layer], gradients[layer], window=window)
        for layer in features
      }
      for method in methods
    }
    return logits, maps

  def explain(variables, image, target, region=None):
    target = jnp.broadcast_to(jnp.asarray(target), image.shape[:1])
    if image.ndim != model.ndim + 3:
      return one_pass(variables, image, target, region)
    return _by_slices(
      functools.partial(one_pass, variables), image, target, region, slices
    )

  return explain


def make_logits(
  model: nn.Module, *, slices: int | None = None
) -> Callable[[Variables, jax.Array], jax.Array]:
  """Makes `fn(variables, image) -> logits`; all as in `make_explain`."""
  model = in_float32(model)

  def one(variables, image, *_):
    return model.apply(variables, image, train=False)[0]

  def run(variables, image):
    if image.ndim != model.ndim + 3:
      return one(variables, image)
    target = jnp.zeros(image.shape[:1], jnp.int32)  # Not looked at.
    return _by_slices(
      functools.partial(one, variables), image, target, None, slices
    )

  return run


def make_score(
  model: nn.Module,
  *,
  score: str = SCORE,
  slices: int | None = None,
  wrap: Callable[[Callable], Callable] = lambda one_pass: one_pass,
) -> Callable[..., jax.Array]:
  """Makes `fn(variables, image, target, region=None) -> [B]`, the score alone.

  Arguments as in `make_explain`; of a 2D model's volume it is the mean over
  slices. `wrap` may change the function of one pass, as `guided.guided` does.
  """
  lookup.check_known([score], SCORES, "score")
  model = in_float32(model)

  def plain(variables, image, target, region):
    logits, _ = model.apply(variables, image, train=False)
    return scores(score, logits, target, region)

  one = wrap(plain)

  def run(variables, image, target, region=None):
    target = jnp.broadcast_to(jnp.asarray(target), image.shape[:1])
    if image.ndim != model.ndim + 3:
      return one(variables, image, target, region)
    # Only one chunk's activations are kept for the gradient.
    by_chunk = functools.partial(jax.checkpoint(one), variables)
    return _by_slices(by_chunk, image, target, region, slices).mean(1)

  return run


def _by_slices(
  fn: Callable,
  image: jax.Array,
  target: jax.Array,
  region: jax.Array | None,
  slices: int | None,
) -> Any:
  """`fn(image, target, region)` with the slices of volumes as its batch.

  Args:
    fn: of [N, H, W, 1], [N] and [N, H, W] or None to a tree of [N, ...].
    image: [B, D, H, W, 1].
    target: [B].
    region: [B, D, H, W] or None.
    slices: how many at a time, see `make_explain`.

  Returns:
    the tree, of [B, D, ...].
  """
  batch, depth, height, width = image.shape[:4]
  parts = (
    image.reshape(-1, *image.shape[2:]),
    jnp.repeat(target, depth),
    None if region is None else region.reshape(-1, *region.shape[2:]),
  )
  slices = slices or max(1, SLICE_PIXELS // (height * width))
  result = in_chunks(lambda parts: fn(*parts), slices, parts)
  return jax.tree.map(lambda x: x.reshape(batch, depth, *x.shape[1:]), result)


def in_chunks(fn: Callable, size: int, tree: Any) -> Any:
  """`fn(tree)` of arrays [N, ...], `size` rows at a time."""
  count = jax.tree.leaves(tree)[0].shape[0]
  if count <= size:
    return fn(tree)
  chunks = -(-count // size)

  def split(x):
    sides = [(0, chunks * size - count)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x, sides).reshape(chunks, size, *x.shape[1:])

  result = jax.lax.map(fn, jax.tree.map(split, tree))
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], result)


# --- Where the cells are ----------------------------------------------------
def layer_strides(model: nn.Module) -> dict[str, tuple[int, ...]]:
  """Voxels of the image per cell along each axis of every map, by name."""
  _, maps = _abstract(model)
  return {
    name: tuple(_REFERENCE // cells for cells in each.shape[1:-1])
    for name, each in maps.items()
  }


def volume_strides(model: nn.Module) -> dict[str, tuple[int, ...]]:
  """Voxels of a volume per cell along D, H and W of every map, by name.

  The slices of a 2D model are planes of the volume.
  """
  flat = (1,) * (3 - model.ndim)
  return {k: (*flat, *each) for k, each in layer_strides(model).items()}


def cells(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
  """Cells along each axis of the map of an image; the last may be cut off."""
  return tuple(-(-n // s) for n, s in zip(shape, strides, strict=True))


def whole_cells(strides: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
  """The least number of voxels along each axis that is whole cells of all."""
  return tuple(math.lcm(*axis) for axis in zip(*strides.values(), strict=True))


def is_segmenter(model: nn.Module) -> bool:
  """Whether a model gives logits for every voxel."""
  return len(_abstract(model)[0].shape) > 2


def num_classes(model: nn.Module) -> int:
  """How many logits a model gives, of an image or of each voxel."""
  return _abstract(model)[0].shape[-1]


@functools.lru_cache(8)
def _abstract(model: nn.Module) -> tuple[Any, dict[str, Any]]:
  """Shapes of logits and maps (in their order) of a `_REFERENCE` image."""
  image = jax.ShapeDtypeStruct((1, *(_REFERENCE,) * model.ndim, 1), jnp.float32)
  order: list[str] = []

  def run(key, x):
    (logits, maps), _ = model.init_with_output(key, x, train=False)
    order.extend(maps)  # Trees of jax come back sorted by name.
    return logits, maps

  logits, maps = jax.eval_shape(run, jax.random.key(0), image)
  return logits, {name: maps[name] for name in order}


def upsample(
  maps: jax.Array, shape: Sequence[int], strides: Sequence[int]
) -> jax.Array:
  """Interpolates maps linearly to the voxels of the image.

  Voxel v lies at cell v / s; beyond the last cell its value goes on. The
  half-pixel centres of `jax.image.resize` would move a map of stride 32 by
  15.5 voxels.

  Args:
    maps: [B, *cells].
    shape: of the image in voxels.
    strides: voxels per cell, one for each axis.

  Returns:
    [B, *shape]; voxel s o has the value of cell o.
  """
  for axis, (size, stride) in enumerate(zip(shape, strides, strict=True), 1):
    last = maps.shape[axis] - 1
    place = np.minimum(np.arange(size) / stride, last)
    low = np.floor(place).astype(np.int32)
    share = (place - low).reshape(-1, *(1,) * (maps.ndim - axis - 1))
    a = jnp.take(maps, low, axis)
    b = jnp.take(maps, np.minimum(low + 1, last), axis)
    maps = a + (b - a) * share.astype(maps.dtype)
  return maps


def normalise(maps: jax.Array) -> jax.Array:
  """Divides each map [B, ...], at least 0, by its maximum, to [0, 1].

  A map of zeros stays zero.
  """
  top = maps.max(tuple(range(1, maps.ndim)), keepdims=True)
  # XLA may multiply by the reciprocal, which can round beyond 1.
  return jnp.minimum(maps / jnp.where(top > 0, top, 1), 1)


def to_image(
  maps: jax.Array, shape: Sequence[int], strides: Sequence[int]
) -> jax.Array:
  """Maps of `combine` as they are shown: `upsample`, then `normalise`."""
  return normalise(upsample(maps, shape, strides))
