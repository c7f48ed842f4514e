"""What each explanation method costs, and each measure of explanations.

On one volume of `--shape`, with the weights of no training, which costs the
same. A measure is of one map, the Grad-CAM of the last layer, with the default
number of passes, which its note tells. Of what takes more than `PASSES` passes
only a part is done, and its time multiplied: that of the whole would be hours
on a CPU.
"""

import contextlib
import copy
import functools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from cadjax.bench.work import Work, noise_hu
from cadjax.bench.work_jax import network_variables
from cadjax.explanation import (
  cam,
  channels,
  checks,
  faithfulness,
  location,
  overlap,
  stability,
)
from cadjax.explanation.explainer import OCCLUDED, Explainer, ExplainOptions
from cadjax.training import steps
from cadjax.training import task as training_task

CAD = 1
HU = 20.0  # Noise of the measures of stability.
READER_MM = 2.0
PASSES = 16  # That are timed of a measure.
# Boxes along each axis that are timed of occlusion.
BOXES = 2
# Images that are timed of the methods that average over images.
IMAGES = 4


class Enough(Exception):
  """A measure has had all the passes that are timed."""


class Case:
  """A volume, a network, its score and its map, compiled once for a batch.

  Attributes:
    hu: int16 [D, H, W].
    heat: Grad-CAM of the last layer on the volume's grid, float32 [D, H, W].
    truth: bool [D, H, W], a lesion of a hundredth of the volume's edges.
    passes: forward passes so far, and passes forward and back.
  """

  def __init__(self, spec: Mapping[str, Any]):
    self.config = ml_collections.ConfigDict(spec["config"])
    self.network = training_task.make_model(self.config)
    self.variables = network_variables(self.network, spec, self.config)
    self.hu = noise_hu(spec["shape"])
    self.baseline = faithfulness.blurred(self.hu, (1, 1, 1))
    self.batch = max(1, spec["batch"])
    window = tuple(self.config.data.window_hu)
    self.layer, strides = list(cam.volume_strides(self.network).items())[-1]
    score = cam.make_score(self.network)
    explain = cam.make_explain(self.network, layers=(self.layer,))

    @jax.jit
    def scored(variables, images):
      return score(variables, steps.window(images[..., None], window), CAD)

    @functools.partial(jax.jit, static_argnums=2)
    def explained(variables, images, target):
      seen = steps.window(images[..., None], window)
      maps = explain(variables, seen, target)[1]["gradcam"][self.layer]
      return cam.to_image(maps, images.shape[1:], strides)

    self.passes = [0, 0]
    self.limit = math.inf
    self._scored, self._explained = scored, explained
    self.heat = self.explain(self.hu[None])[0]
    self.truth = np.zeros(self.hu.shape, bool)
    middle = (slice(n // 2, n // 2 + max(1, n // 10)) for n in self.hu.shape)
    self.truth[tuple(middle)] = True

  def score(self, images: np.ndarray) -> np.ndarray:
    """Returns the log odds [n] of volumes [n, D, H, W]."""
    self._count(0, len(images))
    return np.asarray(self._scored(self.variables, images))

  def explain(
    self, images: np.ndarray, target: int = CAD, variables: Any = None
  ) -> np.ndarray:
    """Returns the maps [n, D, H, W] of volumes [n, D, H, W]."""
    self._count(1, len(images))
    variables = self.variables if variables is None else variables
    return np.asarray(self._explained(variables, images, target))

  def counted(self, run: Callable[["Case"], None]) -> tuple[int, int]:
    """Returns the passes that `run` takes, forward and back, without them."""
    dry = copy.copy(self)
    dry.passes = [0, 0]
    rng = np.random.default_rng(0)
    dry._scored = lambda _, images: rng.normal(size=len(images))
    dry._explained = lambda _, images, target: rng.random(
      images.shape, np.float32
    )
    run(dry)
    return tuple(dry.passes)

  def part(self, run: Callable[["Case"], None], limit: float) -> None:
    """Does `run` until it has had `limit` passes and asks for more."""
    self.passes, self.limit = [0, 0], limit
    with contextlib.suppress(Enough):
      run(self)

  def _count(self, kind: int, images: int) -> None:
    if sum(self.passes) >= self.limit:
      raise Enough
    self.passes[kind] += images


def _perturbation(case: Case) -> None:
  faithfulness.perturbation_auc(
    case.score,
    case.hu,
    case.heat,
    baseline=case.baseline,
    batch_size=case.batch,
  )


def _road(case: Case) -> None:
  faithfulness.road(case.score, case.hu, case.heat, batch_size=case.batch)


def _infidelity(case: Case) -> None:
  faithfulness.infidelity(
    case.score,
    case.hu,
    faithfulness.per_unit(case.heat, case.hu, case.baseline),
    changes=faithfulness.box_changes(case.hu, case.baseline),
    batch_size=case.batch,
  )


def _sensitivity_n(case: Case) -> None:
  faithfulness.sensitivity_n(
    case.score,
    case.hu,
    case.heat,
    baseline=case.baseline,
    batch_size=case.batch,
  )


def _completeness(case: Case) -> None:
  faithfulness.completeness(
    case.score,
    case.hu,
    case.heat,
    baseline=case.baseline,
    batch_size=case.batch,
  )


def _max_sensitivity(case: Case) -> None:
  stability.max_sensitivity(
    case.explain, case.hu, radius=HU, batch_size=case.batch
  )


def _relative_input_stability(case: Case) -> None:
  stability.relative_input_stability(
    case.explain,
    case.hu,
    radius=HU,
    score=case.score,
    origin=-1024,
    batch_size=case.batch,
  )


def _smooth_mprt(case: Case) -> None:
  checks.smooth_mprt(
    lambda variables, x: case.explain(x, CAD, variables),
    case.hu,
    case.variables,
    [("all layers", case.variables)],
    batch_size=case.batch,
  )


def _efficient_mprt(case: Case) -> None:
  checks.efficient_mprt(case.heat, case.explain(case.hu[None])[0])


def _random_logit(case: Case) -> None:
  checks.random_logit(
    lambda x, target: case.explain(x, target),
    case.hu,
    target=CAD,
    num_classes=2,
  )


def _compare(case: Case) -> None:
  checks.compare(case.heat, case.heat[::-1])


def _location(case: Case) -> None:
  distance = location.distance_mm(case.truth, (1, 1, 1))
  location.location_metrics(case.heat[None], {"lesion": distance})


def _boxes_and_masks(case: Case) -> None:
  overlap.mask_ious(case.heat, case.truth)
  overlap.box_ious(case.heat, case.truth)


def _human(case: Case) -> None:
  overlap.human(case.truth, (1, 1, 1), error_mm=READER_MM)


MEASURES: Mapping[str, Callable[[Case], None]] = {
  "insertion and deletion": _perturbation,
  "ROAD": _road,
  "infidelity": _infidelity,
  "sensitivity-n": _sensitivity_n,
  "completeness": _completeness,
  "max-sensitivity": _max_sensitivity,
  "relative input stability": _relative_input_stability,
  "sMPRT, all layers": _smooth_mprt,
  "eMPRT": _efficient_mprt,
  "random logit": _random_logit,
  "SSIM and rank correlation of two maps": _compare,
  "energy, lift, pointing, AUPRC": _location,
  "SE3D: boxes and masks": _boxes_and_masks,
  "CheXlocalize: 16 readers": _human,
}


def measure(spec: Mapping[str, Any]) -> Work:
  """Makes one of `MEASURES`, on a map that is there."""
  case = Case(spec)
  run = MEASURES[spec["variant"]]
  forward, back = case.counted(run)
  note = f"{forward} passes forward, {back} forward and back"
  case.part(run, PASSES)  # Compiles, and counts what is timed.
  taken = sum(case.passes)
  scale = (forward + back) / taken if taken else 1
  if scale > 1:
    note += f"; from {taken} of them"
  return Work(
    lambda: case.part(run, PASSES),
    volumes=1,
    scale=scale,
    info=_about() | {"note": note},
  )


def method(spec: Mapping[str, Any]) -> Work:
  """Makes the maps of all layers by one method of `explainer.METHODS`.

  Of Score-CAM and Ablation-CAM those of the first layer alone, for the time of
  a channel; the note tells how many channels all layers have.
  """
  config = ml_collections.ConfigDict(spec["config"])
  network = training_task.make_model(config)
  name = spec["variant"]
  counted = channel_counts(network)
  layers = None
  note = f"{len(counted)} layers"
  if name in channels.METHODS:
    first = next(iter(counted))
    layers = (first,)
    note = (
      f"{first}: {counted[first]} channels, {max(1, spec['batch'])} at a time;"
      f" all layers have {sum(counted.values())}"
    )
  elif name not in cam.METHODS and name != "guided_gradcam":
    note = "at the input"
  options, scale = _part(name, spec["shape"])
  if scale > 1:
    note += f"; from one in {scale:g} of its passes"
  trained = types.SimpleNamespace(
    config=config, variables=network_variables(network, spec, config)
  )
  explainer = Explainer(
    trained,
    ExplainOptions(
      methods=(name,), layers=layers, batch=max(1, spec["batch"]), **options
    ),
  )
  hu = noise_hu(spec["shape"])

  def run() -> None:
    explainer.explain(hu, CAD)

  info = _about() | {"note": note}
  return Work(run, volumes=1, compiles=True, scale=scale, info=info)


def _part(name: str, shape: Sequence[int]) -> tuple[dict[str, Any], float]:
  """Returns options under which a method does a part, and whole over part."""
  if name == "occlusion":
    step = tuple(-(-n // BOXES) for n in shape)
    return {"occlusion_step": step}, (OCCLUDED / BOXES) ** 3
  if name == "integrated_gradients":
    return {"ig_steps": IMAGES}, ExplainOptions.ig_steps / IMAGES
  if name == "smoothgrad":
    return {"smoothgrad_copies": IMAGES}, (
      ExplainOptions.smoothgrad_copies / IMAGES
    )
  return {}, 1.0


def channel_counts(network: Any) -> dict[str, int]:
  """Returns how many channels each map of a network has, by layer."""
  strides = cam.layer_strides(network)
  space = (64,) * network.ndim
  image = jax.ShapeDtypeStruct((1, *space, 1), np.float32)
  _, maps = jax.eval_shape(
    lambda key, x: network.init_with_output(key, x, train=False)[0],
    jax.random.key(0),
    image,
  )
  return {layer: maps[layer].shape[-1] for layer in strides}


def _about() -> dict[str, Any]:
  device = jax.devices()[0]
  return {"platform": device.platform, "device": f"1 x {device.device_kind}"}


MAKERS = {"method": method, "measure": measure}
