"""All maps of a classifier for the class CAD, to be measured.

`explanation.explainer` explains one scan for a user; here every layer and
method is made on its own cells, also with other variables in the place of the
trained ones, and compiled once for all seeds of an architecture.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from cadjax import models
from cadjax.classification import scan
from cadjax.classification.classifier import Classifier
from cadjax.core import lookup
from cadjax.explanation import cam, channels, explainer
from cadjax.metrics import calibration
from cadjax.training import steps

CAD = 1
# Those that one pass gives, and the default.
METHODS = tuple(cam.METHODS)
# What they say of a voxel is its share of the score over that of a blank one.
CONTRIBUTIONS = ("integrated_gradients", "gradient_x_input")
# Images at a time of methods that take many passes.
_BATCH = 4
# method -> layer -> map on its own cells [D, H, W].
Cells = dict[str, dict[str, np.ndarray]]


@functools.lru_cache(maxsize=4)
def _compiled(
  model: nn.Module, window_hu: tuple[float, float], methods: tuple[str, ...]
) -> Any:
  """Shared by all seeds of one architecture."""
  explain = cam.make_explain(model, methods=methods)

  def run(variables, image, target):
    return explain(variables, steps.window(image, window_hu), target)[1]

  return jax.jit(run)


_to_image = jax.jit(cam.to_image, static_argnums=(1, 2))
_upsample = jax.jit(cam.upsample, static_argnums=(1, 2))


class CadMaps:
  """Makes them with a trained classifier, compiled once for each shape.

  Args:
    trained: the classifier.
    methods: of `explainer.METHODS`. Those that see the model from outside, or
      pass once for every channel, take many passes a map.

  Raises:
    lookup.UnknownName: there is no such method.
  """

  def __init__(self, trained: Classifier, methods: Sequence[str] = METHODS):
    lookup.check_known(methods, explainer.METHODS, "explanation method")
    self.trained = trained
    self.methods = tuple(methods)
    self.pooling = scan.read_calibration(trained).pooling
    self.model = models.get_model(trained.config.model)
    self.strides = cam.volume_strides(self.model)
    self.variables = _on_device(trained.variables)
    window = tuple(trained.config.data.window_hu)
    quick = tuple(name for name in methods if name in cam.METHODS)
    self._run = _compiled(self.model, window, quick) if quick else None
    self._explainer = None
    if slow := tuple(name for name in methods if name not in cam.METHODS):
      options = explainer.ExplainOptions(slow, signed=True, batch=_BATCH)
      self._explainer = explainer.Explainer(trained, options)

  def pairs(self) -> list[tuple[str, str]]:
    """Returns (layer, method) of every map; layers from the input up."""
    layered = [name for name in self.methods if has_layers(name)]
    return [
      *((layer, name) for layer in self.strides for name in layered),
      *(
        (explainer.INPUT, name) for name in self.methods if name not in layered
      ),
    ]

  def cells(
    self,
    image: np.ndarray,
    variables: Mapping[str, Any] | None = None,
    *,
    target: int = CAD,
    signed: bool = False,
  ) -> Cells:
    """Returns the maps of int16 HU [D, H, W], each on its layer's cells.

    Args:
      image: the volume.
      variables: in place of the trained ones.
      target: the class that is explained.
      signed: keep what speaks against the class, in methods that have it.
    """
    variables = self.variables if variables is None else variables
    found: Cells = {}
    if self._run is not None:
      maps = self._run(variables, image[None, ..., None], target)
      found = {
        method: {layer: np.asarray(x)[0] for layer, x in by_layer.items()}
        for method, by_layer in maps.items()
      }
    if self._explainer is not None:
      for heat in self._explainer.of(variables).explain(image, target)[1]:
        values = heat.cells if signed else np.maximum(heat.cells, 0)
        found.setdefault(heat.method, {})[heat.layer] = values
    return found

  def heat(
    self,
    cells: np.ndarray,
    layer: str,
    shape: tuple[int, ...],
    method: str = METHODS[0],
  ) -> np.ndarray:
    """Returns one map on the image's grid [D, H, W], its largest value 1."""
    strides = self._strides(layer, method, shape)
    return np.asarray(_to_image(jnp.asarray(cells)[None], shape, strides))[0]

  def raw(
    self,
    cells: np.ndarray,
    layer: str,
    shape: tuple[int, ...],
    method: str = METHODS[0],
  ) -> np.ndarray:
    """Returns one map on the image's grid [D, H, W] with its own scale."""
    strides = self._strides(layer, method, shape)
    return np.asarray(_upsample(jnp.asarray(cells)[None], shape, strides))[0]

  def _strides(
    self, layer: str, method: str, shape: tuple[int, ...]
  ) -> tuple[int, ...]:
    """Returns the voxels of a cell of a map along each axis."""
    if method == "occlusion":
      return self._explainer.occlusion_step(shape)
    if method in (*cam.METHODS, *channels.METHODS):
      return self.strides[layer]
    return (1, 1, 1)

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


def has_layers(method: str) -> bool:
  """Whether a method gives a map for every layer, not one at the input."""
  return method == "guided_gradcam" or method in (
    *cam.METHODS,
    *channels.METHODS,
  )


def _on_device(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Copies trained and fresh variables alike: mixed, they compile once.

  What a checkpoint gives is bound to a device and what a model makes is not,
  and each mixture of the two would be compiled again.
  """
  return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), dict(variables))
