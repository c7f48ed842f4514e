"""A trained segmenter, and what can be done with it."""

import dataclasses
import functools
import pathlib

import ml_collections
import numpy as np

from cadjax.core import parallel
from cadjax.data import classes
from cadjax.segmentation import sliding
from cadjax.training import steps, workdir
from cadjax.training.task import make_model
from data_prep.errors import UserError


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
    self, hu: np.ndarray, *, probabilities: bool = False, progress: bool = False
  ) -> sliding.Segmentation:
    """Segments a volume; compiled once for all shapes.

    Args:
      hu: int16 HU [D, H, W] on the model's grid.
      probabilities: whether to keep them.
      progress: whether to show a bar on a terminal.

    Returns:
      labels in the classes of `config.segment.classes`, small components
      included, and the probabilities or None.

    Raises:
      UserError: the network gives NaN.
    """
    try:
      return self._sliding(
        self.variables, hu, probabilities=probabilities, progress=progress
      )
    except sliding.NonFiniteError as error:
      raise UserError(
        f"{self.path}: {error}; it is not a trained model"
      ) from error


def load_segmenter(path: str | pathlib.Path) -> Segmenter:
  """Loads the best checkpoint of a segmenter's workdir.

  Args:
    path: the workdir, of `cadjax train` with `config.task = "segment"`.

  Raises:
    UserError: there is no such workdir, no model in it, or it is a classifier.
  """
  return Segmenter.from_trained(workdir.load_trained(path, "segment"))


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
