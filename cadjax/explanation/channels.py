"""Class activation maps whose weights come from a pass for every channel.

  map = ReLU( sum_k w_k A_k )

as in `cam`, but w_k is what the score does with channel k alone, or without
it: no gradient, and as many forward passes as the layer has channels, a
bounded number of them at a time. A ResNet-50 has 3,904 channels in its five
maps.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cadjax.core import lookup
from cadjax.explanation import cam

METHODS = ("scorecam", "ablationcam")


def make_channel_maps(
  model: nn.Module,
  method: str,
  *,
  layers: Sequence[str] | None = None,
  score: str = cam.SCORE,
  batch: int = 1,
) -> Callable[..., dict[str, jax.Array]]:
  """Makes a function that explains layers by a method of `METHODS`.

  scorecam: Score-CAM (Wang et al. 2020, arXiv 1910.01279). Each channel is
  upsampled to the image, scaled to [0, 1] and multiplied with the image; w is
  the softmax over channels of the scores. The score of a blank image, which
  the paper subtracts first, is a constant that the softmax undoes.

  ablationcam: Ablation-CAM (Ramaswamy and Desai, WACV 2020, pages 983-991).
  w_k is how much the score falls when channel k is set to zero. The paper
  divides by the score itself, one number for all channels, which the
  normalising of maps undoes where it is positive; a score below 0 (log odds
  are, for a normal patient) would turn every sign, so it is left out.

  Args:
    model: with the contract of `cadjax.models`; explained in float32.
    method: of `METHODS`.
    layers: names of its maps; all if None.
    score: a key of `cam.SCORES`.
    batch: images at a time; so many channels, or for the volume of a 2D model,
      whose slices come one by one, so many channels of a slice.

  Returns:
    `fn(variables, image, target, region=None) -> {layer: [*cells]}`, to be
    jitted: of one image [*space, 1] in [0, 1], or of a 2D model a volume
    [D, H, W, 1] with maps [D, *cells]; region is of a segmenter, [*space].

  Raises:
    lookup.UnknownName: an unknown method, score or layer.
  """
  lookup.check_known([method], METHODS, "explanation method")
  lookup.check_known([score], cam.SCORES, "score")
  strides = cam.layer_strides(model)
  chosen = tuple(strides) if layers is None else tuple(layers)
  lookup.check_known(chosen, strides, "layer")
  model = cam.in_float32(model)

  def one(variables, image, target, region):
    variables = {k: v for k, v in variables.items() if k != "perturbations"}
    (_, features), zeros = _features(model, variables, image[None])

    def score_of(images, perturbations=None):
      given = variables
      if perturbations is not None:
        given = {**variables, "perturbations": {**zeros, **perturbations}}
      logits, _ = model.apply(given, images, train=False)
      if region is None:
        regions = None
      else:
        regions = jnp.broadcast_to(region, (len(images), *region.shape))
      return cam.scores(score, logits, target, regions)

    maps = {}
    for layer in chosen:
      a = features[layer]
      if method == "scorecam":
        weights = _score_weights(score_of, image, a, strides[layer], batch)
      else:
        weights = _ablation_weights(score_of, image, a, layer, batch)
      total = cam.weigh(weights.reshape(*(1,) * (a.ndim - 1), -1), a)
      maps[layer] = jax.nn.relu(total)[0]
    return maps

  def run(variables, image, target, region=None):
    if image.ndim == model.ndim + 1:
      return one(variables, image, target, region)
    if region is None:
      return jax.lax.map(lambda x: one(variables, x, target, None), image)
    return jax.lax.map(
      lambda x: one(variables, x[0], target, x[1]), (image, region)
    )

  return run


def _features(
  model: nn.Module, variables: Mapping[str, Any], images: jax.Array
) -> tuple[Any, dict[str, jax.Array]]:
  """Returns logits and maps, and zeros for every perturbation."""
  found = model.apply(variables, images, train=False)
  return found, jax.tree.map(jnp.zeros_like, found[1])


def _score_weights(score_of, image, a, strides, batch) -> jax.Array:
  """Returns the weights [C] of Score-CAM for a map [1, *cells, C]."""

  def scores(channels):
    masks = cam.upsample(channels, image.shape[:-1], strides)
    axes = tuple(range(1, masks.ndim))
    low = masks.min(axes, keepdims=True)
    high = masks.max(axes, keepdims=True)
    # A flat channel, such as a dead one, masks everything.
    masks = (masks - low) / jnp.where(high > low, high - low, 1)
    return score_of(image * masks[..., None])

  found = cam.in_chunks(scores, batch, jnp.moveaxis(a[0], -1, 0))
  return jax.nn.softmax(found)


def _ablation_weights(score_of, image, a, layer, batch) -> jax.Array:
  """Returns the weights [C] of Ablation-CAM for a map [1, *cells, C]."""
  count = a.shape[-1]

  def score_without(channel):
    gone = jnp.where(jnp.arange(count) == channel, -a, 0)
    return score_of(image[None], {layer: gone})[0]

  # Mapped over the perturbation alone: layers below are computed once.
  found = cam.in_chunks(jax.vmap(score_without), batch, jnp.arange(count))
  return score_of(image[None])[0] - found
