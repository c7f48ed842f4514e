"""Trains a model: python -m cadjax.main --config=configs/demo.py --workdir=W.

Every field of the config is a flag, for example --config.data.path=DIR or
--config.optimizer.learning_rate=1e-4. The same command resumes a run.
"""

import pathlib
from collections.abc import Sequence

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from cadjax import tasks
from cadjax.core import lookup
from data_prep import errors

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A config file, such as configs/resnet3d.py."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder for checkpoints and logs.", required=True
)
_COMPILATION_CACHE = flags.DEFINE_bool(
  "compilation_cache",
  False,
  "Keep compiled programs beside the workdir, for the next run.",
)


def _config() -> ml_collections.ConfigDict:
  config = _CONFIG.value
  if config is None:
    raise errors.UserError("--config is missing; try configs/demo.py")
  try:
    config.keys()  # A file that could not be loaded says so at first use.
  except OSError as error:
    raise errors.UserError(f"--config: {error}") from error
  return config


def main(_: Sequence[str]) -> None:
  """Parses flags and makes one call."""
  config = _config()
  if _COMPILATION_CACHE.value:
    beside = pathlib.Path(_WORKDIR.value).absolute().parent
    jax.config.update("jax_compilation_cache_dir", str(beside / "jax_cache"))
  devices = jax.devices()
  print(f"{len(devices)} device(s): {devices[0].device_kind}")
  tasks.train_and_evaluate(config, _WORKDIR.value)


if __name__ == "__main__":
  errors.run(main, expected=(lookup.ConfigError,))
