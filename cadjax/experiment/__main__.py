"""Answers a question by experiment.

  cadjax experiment --plan=dimension --workdir=experiments/dimension

Trains and measures every cell (arm x fold x seed) once, then compares. The
same command resumes; several of them, on one machine or on many that share
the folder, divide the work. Writes results.json, cost.json, forest.png and
index.html to the workdir.
"""

import pathlib
from collections.abc import Sequence

import jax
from absl import flags

from cadjax import tasks
from cadjax.core import configs, lookup
from cadjax.experiment import estimate, page, plan, power
from cadjax.experiment.run import Experiment, Stopped
from cadjax.experiment.store import Store
from cadjax.training.task import check_config
from data_prep import errors
from data_prep.errors import UserError


def define_flags() -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  flags.DEFINE_string(
    "plan",
    None,
    f"A plan by name, {', '.join(configs.names(configs.PLAN))}, or a file of"
    " your own; required but for --table.",
  )
  flags.DEFINE_string(
    "workdir", None, "Folder for the cells and the results; required."
  )
  flags.DEFINE_string("scale", "small", f"One of {', '.join(plan.SCALES)}.")
  flags.DEFINE_string(
    "data",
    None,
    "Folder of the data sets, which plans may share; WORKDIR/data if unset.",
  )
  flags.DEFINE_multi_string(
    "override",
    [],
    "FIELD=VALUE of the config of every arm, such as epochs=3; many times.",
  )
  flags.DEFINE_bool(
    "dry_run",
    False,
    "Only list the cells, their cost and the smallest"
    " differences that can be shown.",
  )
  flags.DEFINE_bool("retry", False, "Try failed cells again.")
  flags.DEFINE_string(
    "table",
    None,
    "Write the results of all experiments under --workdir as a table into this"
    " README, between its marks, rewrite their pages, and do nothing else.",
  )


def main(_: Sequence[str]) -> None:
  """Runs what the flags ask for."""
  args = flags.FLAGS
  if args.workdir is None:
    raise UserError("--workdir is missing: the folder for the results")
  folder = pathlib.Path(args.workdir)
  if args.table:
    count = page.update_readme(pathlib.Path(args.table), folder)
    print(f"{count} experiments in {args.table}")
    return
  if args.plan is None:
    raise UserError("--plan is missing; try --plan=dimension")
  asked = plan.load_plan(args.plan, args.scale)
  asked = plan.override(asked, args.override)
  for arm in asked.arms.values():
    if arm.config is not None:
      check_config(arm.config, tasks.find(arm.config))
  data = Store(pathlib.Path(args.data) if args.data else folder / "data")
  cells = Store(folder / "cells")
  if args.dry_run:
    print(estimate.table(asked, cells))
    print(power.table(asked))
    return
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"--workdir={folder}: cannot be made ({error})") from error
  if args.retry:
    for cell in asked.cells():
      cells.forget_failure(cell.name)
  # Cells compile the same programs, those of other plans too.
  cache = folder.absolute().parent / "jax_cache"
  jax.config.update("jax_compilation_cache_dir", str(cache))
  try:
    Experiment(asked, cells, data).run()
  except Stopped:
    print("stopped; the same command goes on from here")
    return
  result = page.write(folder, asked, cells)
  print(page.text(result))
  print(f"open {folder / 'index.html'}")
  if result["failed"]:
    raise UserError(
      f"{len(result['failed'])} cells failed, see failed.txt in their folders;"
      " --retry tries them again"
    )


if __name__ == "__main__":
  errors.run(
    "cadjax experiment",
    main,
    define_flags,
    expected=(lookup.ConfigError,),
  )
