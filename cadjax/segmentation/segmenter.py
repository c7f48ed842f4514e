"""A trained segmenter, and what can be done with it."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import ml_collections
import numpy as np

from cadjax.core import parallel
from cadjax.data import classes
from cadjax.segmentation import chest, components, sliding
from cadjax.training import packed, steps, workdir
from cadjax.training.task import make_model
from data_prep.errors import UserError

# What the flag --wide of every program says.
WIDE = (
  "Segmenter of the chest that finds the heart first, or none; by default the"
  " shipped wide, if another shipped model is used."
)

SOFT_PLAQUE = "unstable_plaque"


@dataclasses.dataclass(frozen=True)
class Segmenter(workdir.Trained):
  """A trained segmenter; see `workdir.Trained` for its data."""

  @classmethod
  def from_trained(
    cls, trained: workdir.Trained, *, prior: bool = False
  ) -> "Segmenter":
    """Returns a workdir's contents as a segmenter; `prior` changes nothing."""
    del prior
    return cls(**vars(trained))

  @property
  def class_names(self) -> tuple[str, ...]:
    """The K classes in the order of the logits; the first is background."""
    return classes.get_class_set(self.config.segment.classes).names

  @functools.cached_property
  def _sliding(self) -> sliding.SlidingWindow:
    return make_sliding(self.config)

  def segment(
    self,
    hu: np.ndarray,
    *,
    probabilities: bool = False,
    progress: bool = False,
    keep_thin: bool = False,
  ) -> sliding.Segmentation:
    """Segments a volume; compiled once for all shapes.

    Args:
      hu: int16 HU [D, H, W] on the model's grid.
      probabilities: whether to keep them.
      progress: whether to show a bar on a terminal.
      keep_thin: whether to keep unstable plaque that is thinner than
        `config.segment.min_soft_voxels`, where the config has it. Else it is
        background: at the wall of the lumen a voxel of blood and fat has the
        attenuation of plaque.

    Returns:
      labels in the classes of `config.segment.classes`, before `tidy`, and
      the probabilities or None.

    Raises:
      UserError: the network gives NaN.
    """
    try:
      found = self._sliding(
        self.variables, hu, probabilities=probabilities, progress=progress
      )
    except sliding.NonFiniteError as error:
      raise UserError(
        f"{self.path}: {error}; it is not a trained model"
      ) from error
    voxels = self.config.segment.get("min_soft_voxels", 1)
    if voxels > 1 and not keep_thin and SOFT_PLAQUE in self.class_names:
      soft = found.labels == self.class_names.index(SOFT_PLAQUE)
      shell = components.thin(soft, voxels)
      found.labels[shell] = 0
      if found.probabilities is not None:
        found.probabilities[shell] = np.eye(found.probabilities.shape[-1])[0]
    return found

  def tidy(self, labels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Removes components that are too small, and pieces beside the heart.

    Args:
      labels: uint8 [D, H, W], of `segment`, on any grid.
      affine: [4, 4], of that grid: voxel indices to mm.

    Returns:
      uint8 [D, H, W]: without components below
      `config.segment.min_component_mm3` and, in a class set with an organ of
      one piece (`classes.ClassSet.organ`), without its other pieces.
    """
    labels = components.remove_small(
      labels, affine, self.config.segment.min_component_mm3
    )
    organ = classes.get_class_set(self.config.segment.classes).organ
    if not organ:
      return labels
    values = [self.class_names.index(name) for name in organ]
    return components.keep_organ(labels, values)


def load_segmenter(path: str | pathlib.Path | None = None) -> Segmenter:
  """Loads a segmenter.

  Args:
    path: the workdir, of `cadjax train` with `config.task = "segment"`, a
      file of weights, or the name of a model that comes with cadjax; by
      default the one named coronary.

  Raises:
    UserError: there is no such model, or it is a classifier.
  """
  path = packed.default("coronary") if path is None else path
  return Segmenter.from_trained(workdir.load_trained(path, "segment"))


def load_wide(
  path: str | pathlib.Path | None = None,
  beside: Sequence[workdir.Trained] | None = None,
) -> Segmenter | None:
  """Loads the segmenter of the chest, the first of two stages.

  Args:
    path: as of `load_segmenter`, or "none"; by default the one named wide that
      comes with cadjax.
    beside: the models that follow it: the default is then taken only if there
      is one, one of these comes with cadjax, too, and none of them is it.

  Returns:
    the segmenter; None for one stage.

  Raises:
    UserError: there is no such model, or it looks at a part of the chest only.
    lookup.ConfigError: it does not find heart and aorta.
  """
  if path == "none":
    return None
  if path is None and beside is None:
    path = packed.default("wide")
  elif path is None:
    path = packed.shipped().get("wide")
    paths = [model.path for model in beside]
    if path is None or path in paths or not any(map(packed.is_shipped, paths)):
      return None
  wide = load_segmenter(path)
  chest.check_names(wide.class_names, f"--wide={path}")
  if wide.grid.kind == "heart":
    raise UserError(
      f"--wide={path} looks at a box around the heart, which it is to find; a"
      " segmenter of the whole field of view is needed"
    )
  return wide


def make_sliding(
  config: ml_collections.ConfigDict,
  devices: parallel.Parallel | None = None,
) -> sliding.SlidingWindow:
  """Makes the sliding window of a segmenter's config.

  Args:
    config: of a segmenter; `config.segment` has window (None: the patch of
      training), overlap and mirror, `config.data.eval_batch_size` is how many
      windows run at a time.
    devices: where it runs; the first device if left out.
  """
  model = make_model(config)
  apply = steps.make_voxel_logits(
    model, ndim=config.model.ndim, window_hu=tuple(config.data.window_hu)
  )
  return sliding.SlidingWindow(
    apply,
    window_of(config),
    config.segment.overlap,
    config.data.eval_batch_size,
    model.num_classes,
    mirror=config.segment.mirror,
    devices=devices,
  )


def window_of(config: ml_collections.ConfigDict) -> tuple[int, ...]:
  """Returns the voxels [D, H, W] of a segmenter's sliding window."""
  return tuple(config.segment.window or config.data.patch_size)
