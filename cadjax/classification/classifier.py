"""A trained classifier, and what can be done with it."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cadjax.classification import priors
from cadjax.data import scans
from cadjax.training import packed, steps, workdir
from cadjax.training.task import make_model
from data_prep import geometry
from data_prep.errors import UserError
from data_prep.tissues import HEART
from data_prep.volume import Volume


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
    use = priors.use_of(trained.config)
    # Where the heart is can be told of any scan, see `prepare`.
    if use not in ("none", "heart") and not prior:
      raise UserError(
        f"{trained.path} was trained with masks beside the volume"
        f" (config.data.prior.use = {trained.config.data.prior.use!r}); only"
        " cadjax.evaluate can give it these"
      )
    return cls(**vars(trained))

  def prepare(self, scan: scans.Scan) -> scans.Prepared:
    """Lays a scan on the model's grid, blank where the model sees nothing.

    Args:
      scan: of `scans.read_scan`; a classifier that sees the heart alone needs
        its heart mask.

    Raises:
      UserError: the scan cannot be laid on the grid, or has no heart mask where
        one is needed.
    """
    prepared = super().prepare(scan)
    if priors.use_of(self.config) != "heart":
      return prepared
    if scan.heart_mask is None:
      if scan.concerns:  # A first stage has looked for it.
        raise UserError(
          f"{scan.name}: {'; '.join(scan.concerns)}; the classifier"
          f" {self.path} sees the heart alone"
        )
      raise UserError(
        f"{scan.name}: the classifier {self.path} sees the heart alone, and"
        " where it is was not given; give a segmenter that finds it (--wide) or"
        " its mask (--heart_mask)"
      )
    model_input = prepared.model_input
    heart = Volume(
      (scan.heart_mask.hu > 0).view(np.uint8), scan.heart_mask.grid
    )
    on_grid = geometry.mask_to_grid(heart, model_input.grid) > 0
    if not on_grid.any():
      raise UserError(
        f"{scan.name}: the heart mask lies outside of what the classifier"
        f" {self.path} sees"
      )
    hu = priors.keep_heart(model_input.hu, on_grid, self.config)
    return dataclasses.replace(
      prepared, model_input=dataclasses.replace(model_input, hu=hu)
    )

  def seen(self, record: Mapping[str, Any]) -> np.ndarray:
    """Returns what the model sees of a record, int16 HU [D, H, W].

    Args:
      record: of a data set, with its mask.
    """
    if not priors.used(self.config):
      return record["image"]
    heart = np.isin(record["mask"], HEART)
    return priors.keep_heart(record["image"], heart, self.config)

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
    use = priors.use_of(self.config)
    if prior is None and use not in ("none", "heart"):
      raise ValueError(f"a classifier with the prior {use!r} needs its masks")
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
