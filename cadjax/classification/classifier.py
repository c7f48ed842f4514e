"""A trained classifier, and what can be done with it."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np

from cadjax.classification import priors
from cadjax.training import packed, steps, workdir
from cadjax.training.task import make_model
from data_prep.errors import UserError


@dataclasses.dataclass(frozen=True)
class Classifier(workdir.Trained):
  """A trained classifier; see `workdir.Trained` for its data."""

  @classmethod
  def from_trained(
    cls, trained: workdir.Trained, *, prior: bool = False
  ) -> "Classifier":
    """Returns a workdir's contents as a classifier.

    Raises:
      UserError: it sees masks beside the volume and `prior` is False.
    """
    if priors.used(trained.config) and not prior:
      raise UserError(
        f"{trained.path} was trained with masks beside the volume"
        f" (config.data.prior.use = {trained.config.data.prior.use!r}); only"
        " cadjax.evaluate can give it these"
      )
    return cls(**vars(trained))

  @functools.cached_property
  def _eval_step(self):
    return jax.jit(
      steps.make_eval_step(
        make_model(self.config),
        ndim=self.config.model.ndim,
        window_hu=self.window_hu,
        prior=priors.make_prior(self.config),
      )
    )

  def logits(
    self, image: np.ndarray, prior: np.ndarray | None = None
  ) -> np.ndarray:
    """Scores volumes; compiled once for each shape.

    Args:
      image: int16 HU [B, D, H, W, 1] on the model's grid.
      prior: uint8 [B, D, H, W], the masks that it sees, if it sees any.

    Returns:
      float32 [B, S, K]: S = 1 for a 3D model and S = D slices for a 2D one,
      K classes.
    """
    batch = {"image": image} | ({} if prior is None else {"prior": prior})
    return np.asarray(self._eval_step(self.variables, batch))


def load_classifier(
  path: str | pathlib.Path | None = None, *, prior: bool = False
) -> Classifier:
  """Loads a classifier.

  Args:
    path: the workdir, of `cadjax train` with `config.task = "classify"`, a
      file of weights, or the name of a model that comes with cadjax; by
      default the one named classifier.
    prior: whether a classifier that sees masks beside the volume is accepted.

  Raises:
    UserError: there is no such model, or it is a segmenter.
  """
  path = packed.default("classifier") if path is None else path
  trained = workdir.load_trained(path, "classify")
  return Classifier.from_trained(trained, prior=prior)
