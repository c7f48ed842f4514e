"""A trained model as one function of its weights and HU, and as StableHLO.

The function does all that lies between a volume on the model's grid and what is
reported of it: HU window, network, pooling of slices, temperature, maps. It
computes in float32 and takes volumes one after the other, so one program serves
any number of them in the memory of one.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import export

from cadjax.classification.classifier import Classifier
from cadjax.classification.scan import Calibration
from cadjax.core import lookup
from cadjax.explanation import cam
from cadjax.metrics import calibration
from cadjax.segmentation import sliding
from cadjax.segmentation.segmenter import Segmenter
from cadjax.training import packed, steps, task

PLATFORMS = ("cpu", "cuda", "tpu")
CAD = 1
Weights = Mapping[str, jax.Array]
Program = Callable[[Weights, jax.Array], dict[str, jax.Array]]


def classify(
  model: Classifier,
  fitted: Calibration,
  *,
  layers: Sequence[str] = (),
  method: str = "hirescam",
) -> Program:
  """Makes `program(weights, hu) -> result` of a classifier.

  Args:
    model: the classifier.
    fitted: its temperature and its pooling of slices.
    layers: whose maps are wanted, of the class CAD.
    method: of the maps, a key of `cam.METHODS`.

  Returns:
    A function of weights by their place (`packed.flatten`) and int16 HU
    [B, D, H, W] on the model's grid. Its result: "logits" float32 [B, S, 2]
    (S = 1, or the D slices of a 2D model), "probability" of CAD float32 [B],
    calibrated if `fitted` is, and for each layer "map/LAYER" float32
    [B, D, H, W] in [0, 1].

  Raises:
    lookup.ConfigError: an unknown layer or method.
  """
  network = task.make_model(model.config)
  strides = cam.volume_strides(network)
  lookup.check_known(layers, strides, "layer")
  lookup.check_known([method], cam.METHODS, "explanation method")
  explain = cam.make_explain(network, methods=(method,), layers=layers)
  score = cam.make_logits(network)

  def one(variables, hu):
    image = steps.window(hu, model.window_hu)[None, ..., None]
    maps = {method: {}}
    if layers:
      logits, maps = explain(variables, image, CAD)
    else:
      logits = score(variables, image)
    logits = logits.reshape(-1, logits.shape[-1])
    margins = logits[:, CAD] - logits[:, 0]
    log_odds = pooled_log_odds(margins, fitted.pooling)
    found = {
      f"map/{layer}": cam.to_image(cells, hu.shape, strides[layer])[0]
      for layer, cells in maps[method].items()
    }
    probability = jax.nn.sigmoid(log_odds / (fitted.temperature or 1.0))
    return {"logits": logits, "probability": probability} | found

  return _by_volume(one)


def pooled_log_odds(margins: jax.Array, pooling: str) -> jax.Array:
  """Returns the log odds of CAD of a volume, a scalar, before calibration.

  As `calibration.logit` of `calibration.aggregate_slices`, but from the share
  for and the share against: in float32 a probability near 1 is 1.

  Args:
    margins: [S], log odds of its slices; S = 1 for a 3D model.
    pooling: of their probabilities, of `calibration.POOLINGS`.
  """
  lookup.check_known([pooling], calibration.POOLINGS, "pooling")
  if pooling == "vote" and len(margins) > 1:
    against = jnp.mean(margins < 0)
    share = 1 - against
  else:
    if pooling == "max":
      margins = margins.max(keepdims=True)
    elif pooling == "topk":
      margins = jnp.sort(margins)[-calibration.top_slices(len(margins)) :]
    share = jax.nn.sigmoid(margins).mean()
    against = jax.nn.sigmoid(-margins).mean()
  limit = float(calibration.logit(1.0))
  return jnp.clip(jnp.log(share) - jnp.log(against), -limit, limit)


def segment(model: Segmenter) -> Program:
  """Makes `program(weights, hu) -> result` of a segmenter.

  Returns:
    A function of weights by their place and int16 HU [B, d, h, w], windows of
    a volume on the model's grid. Its result: "probabilities" float32
    [B, d, h, w, K] of the classes.
  """
  network = cam.in_float32(task.make_model(model.config))
  apply = steps.make_voxel_logits(
    network, ndim=model.config.model.ndim, window_hu=model.window_hu
  )
  probabilities = sliding.make_probabilities(
    apply, mirror=model.config.segment.mirror
  )

  def one(variables, hu):
    return {"probabilities": probabilities(variables, hu[None, ..., None])[0]}

  return _by_volume(one)


def _by_volume(one: Callable) -> Program:
  def program(weights, hu):
    variables = packed.unflatten(weights)
    return jax.lax.map(lambda x: one(variables, x), hu)

  return program


def to_stablehlo(
  program: Program, weights: Weights, shape: Sequence[int]
) -> export.Exported:
  """Lowers a program for all of `PLATFORMS`, for any number of volumes.

  Args:
    program: of `classify` or `segment`.
    weights: whose shapes it takes.
    shape: [D, H, W] of a volume or a window.
  """
  (count,) = export.symbolic_shape("volumes")
  like = {
    name: jax.ShapeDtypeStruct(value.shape, jnp.float32)
    for name, value in weights.items()
  }
  hu = jax.ShapeDtypeStruct((count, *shape), jnp.int16)
  # Accelerators would multiply in bfloat16 or TF32.
  with jax.default_matmul_precision("highest"):
    return export.export(jax.jit(program), platforms=PLATFORMS)(like, hu)
