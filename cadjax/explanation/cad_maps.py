"""All maps of a classifier for the class CAD, to be measured.

`explanation.explainer` explains one scan for a user; here every layer and
method is made on its own cells, also with other variables in the place of the
trained ones, and compiled once for all seeds of an architecture.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cadjax import models
from cadjax.classification import scan
from cadjax.classification.classifier import Classifier
from cadjax.explanation import cam
from cadjax.metrics import calibration
from cadjax.training import steps

CAD = 1
# method -> layer -> map on its own cells [D, H, W].
Cells = dict[str, dict[str, np.ndarray]]


@functools.lru_cache(maxsize=4)
def _compiled(model: nn.Module, window_hu: tuple[float, float]) -> Any:
  """Shared by all seeds of one architecture."""
  explain = cam.make_explain(model, methods=tuple(cam.METHODS))

  def run(variables, image):
    return explain(variables, steps.window(image, window_hu), CAD)[1]

  return jax.jit(run)


_to_image = jax.jit(cam.to_image, static_argnums=(1, 2))
_upsample = jax.jit(cam.upsample, static_argnums=(1, 2))


class CadMaps:
  """Makes them with a trained classifier, compiled once for each shape."""

  def __init__(self, trained: Classifier):
    self.trained = trained
    self.pooling = scan.read_calibration(trained).pooling
    self.model = models.get_model(trained.config.model)
    self.strides = cam.volume_strides(self.model)
    self.variables = _on_device(trained.variables)
    self._run = _compiled(self.model, tuple(trained.config.data.window_hu))

  def keys(self) -> list[tuple[str, str]]:
    """Returns (layer, method) of every map."""
    return [(layer, name) for layer in self.strides for name in cam.METHODS]

  def cells(
    self, image: np.ndarray, variables: Mapping[str, Any] | None = None
  ) -> Cells:
    """Returns the maps of int16 HU [D, H, W], each on its layer's cells.

    Args:
      image: the volume.
      variables: in place of the trained ones.
    """
    variables = self.variables if variables is None else variables
    maps = self._run(variables, image[None, ..., None])
    return {
      method: {layer: np.asarray(x)[0] for layer, x in by_layer.items()}
      for method, by_layer in maps.items()
    }

  def heat(
    self, cells: np.ndarray, layer: str, shape: tuple[int, ...]
  ) -> np.ndarray:
    """Returns one map on the image's grid [D, H, W], its largest value 1."""
    maps = _to_image(jnp.asarray(cells)[None], shape, self.strides[layer])
    return np.asarray(maps)[0]

  def raw(
    self, cells: np.ndarray, layer: str, shape: tuple[int, ...]
  ) -> np.ndarray:
    """Returns one map on the image's grid [D, H, W] with its own scale."""
    maps = _upsample(jnp.asarray(cells)[None], shape, self.strides[layer])
    return np.asarray(maps)[0]

  def log_odds(self, images: np.ndarray) -> np.ndarray:
    """Returns the log odds of CAD [n] of int16 HU [n, D, H, W].

    They are those of the decision, which pools the slices of a 2D model.
    """
    margins = calibration.softmax_margin(self.trained.logits(images[..., None]))
    return scan.decision_log_odds(margins, self.pooling)

  def fresh(self, seed: int) -> dict[str, Any]:
    """Returns variables as before training, drawn with another key."""
    image = jnp.zeros((1, *(32,) * self.model.ndim, 1))
    init = jax.jit(functools.partial(self.model.init, train=False))
    made = init(jax.random.key(seed), image)
    return _on_device({name: made[name] for name in self.variables})


def _on_device(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Copies trained and fresh variables alike: mixed, they compile once.

  What a checkpoint gives is bound to a device and what a model makes is not,
  and each mixture of the two would be compiled again.
  """
  return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), dict(variables))
