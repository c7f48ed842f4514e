"""The two kinds of training, by the value of `config.task`."""

import pathlib

import ml_collections

from cadjax.classification import task as classification_task
from cadjax.classification.classifier import Classifier
from cadjax.segmentation import task as segmentation_task
from cadjax.segmentation.segmenter import Segmenter
from cadjax.training import loop, workdir
from cadjax.training.steps import TrainState
from cadjax.training.task import Kind, task_of

KINDS = {
  kind.task: kind for kind in (classification_task.KIND, segmentation_task.KIND)
}


def find(config: ml_collections.ConfigDict) -> Kind:
  """Returns the kind of a config.

  Raises:
    lookup.ConfigError: `config.task` or `config.model.name` cannot be used.
  """
  return KINDS[task_of(config)]


def load_model(
  path: str | pathlib.Path, *, prior: bool = False
) -> Classifier | Segmenter:
  """Loads a model of either kind.

  Args:
    path: a workdir, a file of weights, or the name of a model that comes with
      cadjax.
    prior: whether a classifier that sees masks beside the volume is accepted.

  Raises:
    UserError: there is no such model.
  """
  trained = workdir.load_trained(path)
  return find(trained.config).model.from_trained(trained, prior=prior)


def train_and_evaluate(
  config: ml_collections.ConfigDict,
  workdir_path: str | pathlib.Path,
  *,
  profile: tuple[int, int] | None = None,
  minutes: float | None = None,
) -> TrainState:
  """Trains until early stopping or the last epoch; resumes what was begun.

  Args:
    config: of a file of configs/, which explain every field.
    workdir_path: the folder for checkpoints, logs and the config.
    profile: (start, stop), steps to trace; see `training.profiling`.
    minutes: stop in time to end within so many; see `training.loop`.

  Returns:
    the last train state.

  Raises:
    UserError: for data that cannot be used, a workdir of another run, or a
      loss that is not finite.
    lookup.ConfigError: for a config that cannot be used.
  """
  return loop.train_and_evaluate(
    config, workdir_path, find(config), profile=profile, minutes=minutes
  )
