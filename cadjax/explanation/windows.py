"""Explanations of a segmenter on volumes that do not fit one pass.

Windows overlap, and each is explained alone: its score is the part of
sum_M logit_c that lies in it. Its maps are blended with those of the others
by Gaussian weights that add up to 1 at every voxel, so that no window's edge
shows. Where the receptive field does not reach a window's border, the maps
and gradients in it are those of the whole volume, and so is the result of
methods that look at one cell or block at a time. Grad-CAM's weights are means
over the volume: it adds up the gradients of all windows first and takes a
second pass for its maps.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from cadjax.core import lookup
from cadjax.explanation import cam
from cadjax.segmentation import sliding

METHODS = ("gradcam", "hirescam", "xrescam", "layercam")
Corner = tuple[int, int, int]


class WindowExplainer:
  """Explains volumes of any size through one window, compiled once.

  Args:
    model: a 3D segmenter with the contract of `cadjax.models`.
    size: of the window in voxels along D, H, W.
    overlap: the least share of its edge that the next window covers.
    methods: of `METHODS`. Grad-CAM++ is none of them: its weights need sums
      over the whole volume before their own.
    layers: names of its maps; all if None.
    score: a key of `cam.SCORES`.
    window: see `cam.combine`.

  Raises:
    lookup.ConfigError: an unknown name, or a window too small for the strides
      of its layers.
  """

  def __init__(
    self,
    model: nn.Module,
    size: Sequence[int],
    *,
    overlap: float = 0.5,
    methods: Sequence[str] = ("gradcam",),
    layers: Sequence[str] | None = None,
    score: str = cam.SCORE,
    window: int = cam.XRES_WINDOW,
  ):
    lookup.check_known(methods, METHODS, "patch-wise explanation method")
    strides = cam.volume_strides(model)
    lookup.check_known(layers or (), strides, "layer")
    self.strides = {name: strides[name] for name in layers or strides}
    self._methods, self._size = tuple(methods), tuple(size)
    # Windows begin on cells of every map, and on the blocks of XRes-CAM.
    block = window if "xrescam" in methods else 1
    # All maps', chosen or not: a network wants whole cells everywhere.
    self._step = tuple(n * block for n in cam.whole_cells(strides))
    if any(n % s for n, s in zip(self._size, self._step, strict=True)):
      raise lookup.ConfigError(
        f"the window {self._size} must be multiples of {self._step}"
      )
    self._overlap = overlap
    self._local = jax.jit(self._make_local(model, score, window))
    self._weighted = jax.jit(self._make_weighted(model))
    self._apply = jax.jit(
      functools.partial(cam.in_float32(model).apply, train=False)
    )

  def _make_local(self, model, score, window) -> Callable:
    """Makes the pass that gives signed maps and weighted sums of gradients."""
    run = cam.make_gradients(model, layers=tuple(self.strides), score=score)
    local = [method for method in self._methods if method != "gradcam"]

    def step(variables, image, target, region, share):
      _, features, gradients = run(variables, image, target, region)
      maps = {
        method: {
          layer: cam.combine(
            method, features[layer], gradients[layer], window=window, relu=False
          )[0]
          for layer in features
        }
        for method in local
      }
      sums = {
        layer: (g[0] * share[self._at_cells(layer)][..., None]).sum((0, 1, 2))
        for layer, g in gradients.items()
      }
      return maps, sums

    return step

  def _make_weighted(self, model) -> Callable:
    """Makes the pass that weighs the channels of every map."""
    model = cam.in_float32(model)

    def step(variables, image, weights):
      _, features = model.apply(variables, image, train=False)
      return {
        layer: (features[layer] * w).sum(-1)[0] for layer, w in weights.items()
      }

    return step

  def __call__(
    self,
    variables: Mapping[str, Any],
    image: np.ndarray,
    target: int,
    region: np.ndarray,
  ) -> dict[str, dict[str, np.ndarray]]:
    """Explains one volume.

    Args:
      variables: of the model.
      image: [D, H, W] in [0, 1].
      target: the class.
      region: [D, H, W], the weights of the voxels in the score.

    Returns:
      float32 {method: {layer: map [*ceil(space / stride)]}}, as
      `cam.make_explain` gives for one example.
    """
    shape = image.shape
    starts, shares, sides = self._lay(shape)
    image = np.pad(image.astype(np.float32), sides)
    region = np.pad(region.astype(np.float32), sides)
    cells = {
      layer: cam.cells(image.shape, strides)
      for layer, strides in self.strides.items()
    }
    maps = {
      method: {k: np.zeros(n, np.float32) for k, n in cells.items()}
      for method in self._methods
    }
    sums: dict[str, Any] = {}
    for corner, share in _windows(starts, shares):
      box = sliding.box(corner, self._size)
      if not region[box].any():
        continue  # Its score is zero, whatever it sees.
      found, gradients = self._local(
        variables, image[box][None, ..., None], target, region[box][None], share
      )
      for method, by_layer in found.items():
        for layer, values in by_layer.items():
          blended = np.asarray(values) * share[self._at_cells(layer)]
          maps[method][layer][self._cells(layer, corner)] += blended
      sums = jax.tree.map(np.add, sums, gradients) if sums else gradients
    if "gradcam" in self._methods and sums:
      self._add_gradcam(variables, image, sums, starts, shares, maps["gradcam"])
    inside = {
      layer: tuple(map(slice, cam.cells(shape, strides)))
      for layer, strides in self.strides.items()
    }
    return {
      method: {k: np.maximum(v[inside[k]], 0) for k, v in by_layer.items()}
      for method, by_layer in maps.items()
    }

  def logits(
    self, variables: Mapping[str, Any], image: np.ndarray
  ) -> np.ndarray:
    """Returns the logits of a volume, blended, float32 [D, H, W, K]."""
    starts, shares, sides = self._lay(image.shape)
    padded = np.pad(image.astype(np.float32), sides)
    total = 0.0
    for corner, share in _windows(starts, shares):
      box = sliding.box(corner, self._size)
      found, _ = self._apply(variables, padded[box][None, ..., None])
      if np.ndim(total) == 0:
        total = np.zeros((*padded.shape, found.shape[-1]), np.float32)
      total[box] += np.asarray(found[0]) * share[..., None]
    return total[tuple(slice(n) for n in image.shape)]

  def _lay(self, shape: Sequence[int]):
    """Returns where windows begin, their weights, and what is to be padded."""
    starts = [
      sliding.window_starts(n, size, self._overlap, step)
      for n, size, step in zip(shape, self._size, self._step, strict=True)
    ]
    shares = [
      _shares(n, begin, size)
      for n, begin, size in zip(shape, starts, self._size, strict=True)
    ]
    # At the far side alone: voxel 0 stays voxel 0.
    sides = [
      (0, begin[-1] + size - n)
      for n, begin, size in zip(shape, starts, self._size, strict=True)
    ]
    return starts, shares, sides

  def _add_gradcam(self, variables, image, sums, starts, shares, maps) -> None:
    """Adds the maps of the second pass."""
    weights = {layer: total / maps[layer].size for layer, total in sums.items()}
    for corner, share in _windows(starts, shares):
      box = sliding.box(corner, self._size)
      found = self._weighted(variables, image[box][None, ..., None], weights)
      for layer, values in found.items():
        blended = np.asarray(values) * share[self._at_cells(layer)]
        maps[layer][self._cells(layer, corner)] += blended

  def _at_cells(self, layer: str) -> tuple[slice, ...]:
    """Where the cells of a map are among the voxels of a window."""
    return tuple(slice(None, None, s) for s in self.strides[layer])

  def _cells(self, layer: str, corner: Corner) -> tuple[slice, ...]:
    return tuple(
      slice(c // s, (c + n) // s)
      for c, n, s in zip(corner, self._size, self.strides[layer], strict=True)
    )


def _shares(n: int, starts: Sequence[int], size: int) -> list[np.ndarray]:
  """The weights of each window along an axis of n voxels.

  They add up to 1, and are 0 where a window reaches beyond the end.
  """
  profile = sliding.profile(size)
  total = sliding.total_weight(starts[-1] + size, starts, profile)
  return [
    np.where(
      np.arange(start, start + size) < n,
      profile / total[start : start + size],
      0,
    ).astype(np.float32)
    for start in starts
  ]


def _windows(starts, shares) -> Iterator[tuple[Corner, np.ndarray]]:
  """Yields the corner of each window and its weights [*size]."""
  axes = [zip(s, w, strict=True) for s, w in zip(starts, shares, strict=True)]
  for (d, a), (h, b), (w, c) in itertools.product(*axes):
    yield (d, h, w), a[:, None, None] * b[:, None] * c
