"""Trains a classifier or a segmenter.

  cadjax train --config=demo --workdir=WORKDIR

Every field of the config is a flag, for example --config.data.path=DIR or
--config.optimizer.learning_rate=1e-4; `cadjax train --config=demo --help` lists
them. The same command resumes a run. With --minutes=N it stops in time, as a
session of Colab does; the learning rate falls by the config's epochs all the
same.
"""

import os
import pathlib
from collections.abc import Sequence

import jax
from absl import flags

from cadjax import tasks
from cadjax.core import configs, lookup
from cadjax.training import profiling
from data_prep import errors
from data_prep.errors import UserError


def define_flags() -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  configs.define_flag()
  flags.DEFINE_string(
    "workdir", None, "Folder for checkpoints and logs.", required=True
  )
  flags.DEFINE_bool(
    "compilation_cache",
    False,
    "Keep compiled programs beside the workdir, for the next run.",
  )
  flags.DEFINE_string(
    "profile", None, "START:STOP, steps to trace, into profile/ in the workdir."
  )
  flags.DEFINE_float(
    "minutes",
    None,
    "Stop in time to end within so many minutes, with the best model kept; the"
    " same command goes on.",
    lower_bound=0.0,
  )
  flags.DEFINE_string(
    "dump_hlo", None, "Folder for the text of every program that is compiled."
  )


def main(_: Sequence[str]) -> None:
  """Parses flags and makes one call."""
  args = flags.FLAGS
  if args.config is None:
    raise UserError("--config is missing; try --config=demo")
  if args.compilation_cache:
    beside = pathlib.Path(args.workdir).absolute().parent
    jax.config.update("jax_compilation_cache_dir", str(beside / "jax_cache"))
  if args.dump_hlo:  # Read when the first device is asked for.
    if len(args.dump_hlo.split()) != 1:
      raise UserError(
        f"--dump_hlo={args.dump_hlo}: XLA takes no folder with spaces"
      )
    flag = f"--xla_dump_to={args.dump_hlo} --xla_dump_hlo_as_text"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
  profile = profiling.parse(args.profile) if args.profile else None
  devices = jax.devices()
  print(f"{len(devices)} device(s): {devices[0].device_kind}")
  tasks.train_and_evaluate(
    args.config, args.workdir, profile=profile, minutes=args.minutes
  )


if __name__ == "__main__":
  errors.run(
    "cadjax train",
    main,
    define_flags,
    expected=(lookup.ConfigError,),
    more_help=configs.describe,
  )
