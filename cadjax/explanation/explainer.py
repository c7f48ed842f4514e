"""From a trained model and a volume on its grid to maps of all layers."""

import copy
import dataclasses
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cadjax.core import lookup
from cadjax.explanation import attribution, cam, channels, guided
from cadjax.explanation import windows as cam_windows
from cadjax.explanation.heat_maps import HeatMap, on_model_grid
from cadjax.training import steps, task, workdir
from data_prep.errors import UserError

REFERENCES = (
  "occlusion",
  "integrated_gradients",
  "smoothgrad",
  "gradient_x_input",
)
METHODS = (*cam.METHODS, *REFERENCES, *channels.METHODS, *guided.METHODS)
# All that are worth their time: none of a pass for every channel, and none
# that fails its sanity check.
USUAL = (*cam.METHODS, *REFERENCES)
# What agrees best with the effect of lesions in one pass, by the experiment
# `explanations` and on the classifier in the box, and what the paper has.
DEFAULT = ("hirescam", "gradcam")
INPUT = "input"  # The "layer" of the references.
# A segmenter takes larger volumes window by window.
WHOLE_VOXELS = 128**3
OCCLUDED = 8  # Boxes along each axis, unless the step is given.


@dataclasses.dataclass(frozen=True)
class ExplainOptions:
  """What is to be explained, and how.

  Attributes:
    methods: of `METHODS`.
    layers: names of the model's maps; all if None.
    score: a key of `cam.SCORES`.
    xres_window: cells along an edge of XRes-CAM's blocks.
    patch: window of a segmenter in voxels along D, H, W; if None, volumes of
      up to `WHOLE_VOXELS` are taken whole and others in the config's windows.
    occlusion_step: voxels from box to box along D, H, W; an eighth of the
      volume if None.
    occlusion_box: voxels of the box; one more than twice the step if None.
    ig_steps: of integrated gradients.
    smoothgrad_copies: of SmoothGrad.
    smoothgrad_sigma: of its noise, as a share of the HU window.
    seed: of its noise.
    batch: images at a time in the references, and channels at a time in
      Score-CAM and Ablation-CAM.
    signed: keep what speaks against the score in the maps of methods that see
      the model from outside, which are then no longer at least 0.
  """

  methods: tuple[str, ...] = DEFAULT
  layers: tuple[str, ...] | None = None
  score: str = cam.SCORE
  xres_window: int = cam.XRES_WINDOW
  patch: tuple[int, int, int] | None = None
  occlusion_step: tuple[int, int, int] | None = None
  occlusion_box: tuple[int, int, int] | None = None
  ig_steps: int = 32
  smoothgrad_copies: int = 16
  smoothgrad_sigma: float = 0.1
  seed: int = 0
  batch: int = 1
  signed: bool = False


class Explainer:
  """Explains volumes with one model.

  All methods that need one gradient take one pass for all layers; each
  function is compiled once for each shape of volume, and window by window
  once for all.

  Args:
    trained: a `Classifier` or a `Segmenter`.
    options: Grad-CAM of all layers if left out.

  Raises:
    lookup.ConfigError: an unknown name, or options that do not fit.
  """

  def __init__(
    self, trained: workdir.Trained, options: ExplainOptions | None = None
  ):
    options = options or ExplainOptions()
    self.model, self.options = trained, options
    self._network = task.make_model(trained.config)
    self._ndim = self._network.ndim
    self._window_hu = tuple(trained.config.data.window_hu)
    self.is_segmenter = cam.is_segmenter(self._network)
    self.num_classes = cam.num_classes(self._network)
    strides = cam.volume_strides(self._network)
    lookup.check_known(options.methods, METHODS, "explanation method")
    lookup.check_known(options.layers or (), strides, "layer")
    lookup.check_known([options.score], cam.SCORES, "score")
    self.strides = {name: strides[name] for name in options.layers or strides}
    self._whole = cam.whole_cells(strides)
    self._cams = [m for m in options.methods if m in cam.METHODS]
    self._compiled: dict[str, Any] = {}
    if options.patch is not None:
      if not self.is_segmenter or self._ndim == 2:
        raise UserError("windows are for 3D segmenters; leave --patch out")
      self._make_windows(options.patch)

  def of(self, variables: Mapping[str, Any]) -> "Explainer":
    """Returns one of the same network with other variables; nothing compiles.

    Args:
      variables: of the model, such as those of `checks.randomise`.
    """
    other = copy.copy(self)
    other.model = types.SimpleNamespace(
      config=self.model.config, variables=variables
    )
    return other

  def cells(self, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Returns the cells of every map of a volume [D, H, W]."""
    return {
      layer: cam.cells(shape, strides)
      for layer, strides in self.strides.items()
    }

  def logits(self, hu: np.ndarray) -> np.ndarray:
    """Returns what a segmenter says of a volume, float32 [D, H, W, K].

    Args:
      hu: int16 HU [D, H, W] on the model's grid.
    """
    image = self._windowed(hu)
    if windows := self._windows(hu.shape):
      return windows.logits(self.model.variables, image)
    run = self._jit("logits", lambda: cam.make_logits(self._network))
    found = run(self.model.variables, self._padded(image)[None, ..., None])
    return np.asarray(found[0])[tuple(slice(n) for n in hu.shape)]

  def explain(
    self, hu: np.ndarray, target: int, region: np.ndarray | None = None
  ) -> tuple[np.ndarray | None, list[HeatMap]]:
    """Explains one volume.

    Args:
      hu: int16 HU [D, H, W] on the model's grid.
      target: the class.
      region: of a segmenter, [D, H, W].

    Returns:
      logits [S, K] of a classifier (S = 1, or D slices of a 2D model) or None
      for a segmenter or without any map of a layer; and the maps, method by
      method.
    """
    image = self._windowed(hu)
    windows = self._windows(hu.shape)
    logits, maps = None, []
    if self._cams:
      logits, found = self._explain_layers(windows, image, target, region)
      cells = self.cells(hu.shape)
      maps += [
        HeatMap(
          method,
          layer,
          np.asarray(found[method][layer])[tuple(map(slice, cells[layer]))],
          self.strides[layer],
        )
        for method in self._cams
        for layer in self.strides
      ]
    for method in self.options.methods:
      if method in channels.METHODS:
        maps += self._by_channels(method, image, target, region)
      elif method == "guided_gradcam":
        maps += self._guided_gradcam(image, target, region)
      elif method not in cam.METHODS:
        maps.append(self._refer(method, image, target, region))
    return logits, maps

  def score(self, logits: np.ndarray, target: int, region=None) -> float:
    """Returns the value of the score.

    Args:
      logits: [S, K] of a classifier, or [D, H, W, K] with a region.
      target: the class.
      region: [D, H, W], or None.
    """
    if region is None:
      values = cam.scores(self.options.score, jnp.asarray(logits), target)
      return float(values.mean())
    values = cam.scores(
      self.options.score,
      jnp.asarray(logits)[None],
      target,
      jnp.asarray(region, jnp.float32)[None],
    )
    return float(values[0])

  # --- Inside ---------------------------------------------------------------

  def _windowed(self, hu: np.ndarray) -> np.ndarray:
    return np.asarray(steps.window(jnp.asarray(hu), self._window_hu))

  def _padded(self, array: np.ndarray) -> np.ndarray:
    """Fills up the last cells of a segmenter's maps; voxel 0 stays voxel 0."""
    if not self.is_segmenter:
      return array
    sides = [(0, -n % s) for n, s in zip(array.shape, self._whole, strict=True)]
    return np.pad(array, sides)

  def _jit(self, name: str, make: Callable[[], Callable]) -> Callable:
    """Compiles a function when it is first wanted."""
    if name not in self._compiled:
      self._compiled[name] = jax.jit(make())
    return self._compiled[name]

  def _windows(self, shape) -> cam_windows.WindowExplainer | None:
    """Returns what explains window by window, if this is to be done so."""
    if not self.is_segmenter or self._ndim == 2:
      return None
    size = self.options.patch
    if size is None:
      if math.prod(shape) <= WHOLE_VOXELS:
        return None
      size = self._configured_window()
    return self._make_windows(size)

  def _make_windows(self, size) -> cam_windows.WindowExplainer:
    if others := [m for m in self.options.methods if m not in cam.METHODS]:
      raise UserError(
        f"{', '.join(others)}: takes whole volumes, and this segmenter"
        " takes windows; leave it out of --method"
      )
    if "windows" not in self._compiled:
      self._compiled["windows"] = cam_windows.WindowExplainer(
        self._network,
        size,
        overlap=self.model.config.get("segment", {}).get("overlap", 0.5),
        methods=self._cams,
        layers=tuple(self.strides),
        score=self.options.score,
        window=self.options.xres_window,
      )
    return self._compiled["windows"]

  def _configured_window(self) -> tuple[int, int, int]:
    config = self.model.config
    size = config.get("segment", {}).get("window") or config.data.get(
      "patch_size"
    )
    if size is None:
      raise UserError("the volume is too large for one pass; give --patch")
    return tuple(size)

  def _explain_layers(self, windows, image, target, region):
    variables = self.model.variables
    if windows is not None:
      return None, windows(variables, image, target, region)
    run = self._jit(
      "layers",
      lambda: cam.make_explain(
        self._network,
        methods=self._cams,
        layers=tuple(self.strides),
        score=self.options.score,
        window=self.options.xres_window,
      ),
    )
    if region is not None:
      region = self._padded(region.astype(np.float32))[None]
    logits, maps = run(
      variables, self._padded(image)[None, ..., None], target, region
    )
    maps = jax.tree.map(lambda x: x[0], maps)
    if self.is_segmenter:
      return None, maps
    logits = np.asarray(logits)
    return logits.reshape(-1, logits.shape[-1]), maps

  def _refer(self, method, image, target, region) -> HeatMap:
    """Explains by a method that sees the model from outside."""
    options, shape = self.options, image.shape
    strides = (1, 1, 1)
    if method == "occlusion":
      strides = self.occlusion_step(shape)
      box = self.occlusion_box(shape)
    wrap = {"wrap": guided.guided} if method in guided.METHODS else {}
    score = cam.make_score(self._network, score=options.score, **wrap)

    def make():
      def run(variables, x, target, region):
        def score_fn(images):
          count = images.shape[0]
          regions = None
          if region is not None:
            regions = jnp.broadcast_to(region, (count, *region.shape))
          return score(variables, images, target, regions)

        if method == "occlusion":
          return attribution.occlusion(
            score_fn, x, step=strides, box=box, batch=options.batch
          )
        if method == "gradient_x_input":
          return attribution.gradient_x_input(score_fn, x)
        if method == "guided_backprop":
          return attribution.gradient(score_fn, x)
        if method == "integrated_gradients":
          return attribution.integrated_gradients(
            score_fn, x, steps=options.ig_steps, batch=options.batch
          )
        return attribution.smoothgrad(
          score_fn,
          x,
          jax.random.key(options.seed),
          n=options.smoothgrad_copies,
          sigma=options.smoothgrad_sigma,
          batch=options.batch,
        )

      return run

    # The step of occlusion is a constant of the compiled function.
    run = self._jit(f"{method} {strides}", make)
    if region is not None:
      region = jnp.asarray(self._padded(region.astype(np.float32)))
    found = run(
      self.model.variables,
      jnp.asarray(self._padded(image))[..., None],
      target,
      region,
    )
    inside = tuple(map(slice, cam.cells(shape, strides)))
    found = np.asarray(found)[inside]
    if not options.signed:
      found = np.maximum(found, 0)
    return HeatMap(method, INPUT, found, strides)

  def _by_channels(self, method, image, target, region) -> list[HeatMap]:
    """Explains by a method that passes forward for every channel."""
    run = self._jit(
      method,
      lambda: channels.make_channel_maps(
        self._network,
        method,
        layers=tuple(self.strides),
        score=self.options.score,
        batch=self.options.batch,
      ),
    )
    if region is not None:
      region = jnp.asarray(self._padded(region.astype(np.float32)))
    padded = jnp.asarray(self._padded(image))[..., None]
    found = run(self.model.variables, padded, target, region)
    cells = self.cells(image.shape)
    return [
      HeatMap(
        method,
        layer,
        np.asarray(found[layer])[tuple(map(slice, cells[layer]))],
        self.strides[layer],
      )
      for layer in self.strides
    ]

  def _guided_gradcam(self, image, target, region) -> list[HeatMap]:
    """Multiplies guided backpropagation with the Grad-CAM of each layer.

    Selvaraju et al. 2017, arXiv 1610.02391, section 3.2. It fails the sanity
    check as guided backpropagation does, see `guided`.
    """
    fine = self._refer("guided_backprop", image, target, region).cells
    fine = np.maximum(fine, 0)
    run = self._jit(
      "gradcam of guided_gradcam",
      lambda: cam.make_explain(
        self._network, layers=tuple(self.strides), score=self.options.score
      ),
    )
    if region is not None:
      region = self._padded(region.astype(np.float32))[None]
    _, maps = run(
      self.model.variables, self._padded(image)[None, ..., None], target, region
    )
    found = []
    for layer, cells in self.cells(image.shape).items():
      coarse = np.asarray(maps["gradcam"][layer])[0][tuple(map(slice, cells))]
      heat = HeatMap("gradcam", layer, coarse, self.strides[layer])
      product = fine * on_model_grid(heat, image.shape)
      found.append(HeatMap("guided_gradcam", layer, product, (1, 1, 1)))
    return found

  def occlusion_step(self, shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns the voxels from box to box in a volume of this shape."""
    return self.options.occlusion_step or tuple(
      -(-n // OCCLUDED) for n in shape
    )

  def occlusion_box(self, shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns the voxels of the box in a volume of this shape."""
    return self.options.occlusion_box or tuple(
      2 * step + 1 for step in self.occlusion_step(shape)
    )

  def described(self, shape: Sequence[int]) -> dict[str, Any]:
    """Returns the options that the methods asked for have."""
    options = self.options
    about = {
      "xrescam": {"window": options.xres_window},
      "occlusion": {
        "step": self.occlusion_step(shape),
        "box": self.occlusion_box(shape),
      },
      "integrated_gradients": {"steps": options.ig_steps, "baseline": 0.0},
      **{name: {"batch": options.batch} for name in channels.METHODS},
      "smoothgrad": {
        "copies": options.smoothgrad_copies,
        "sigma": options.smoothgrad_sigma,
        "seed": options.seed,
      },
    }
    return {m: about[m] for m in options.methods if m in about}
