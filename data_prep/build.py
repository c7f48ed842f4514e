"""Builds a data set: `cadjax build --source=phantom --out=DIR`."""

import collections
import contextlib
import fcntl
import io
import os
import pathlib
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds
from absl import flags, logging

from data_prep import case_flags, errors, interrupt, phantom, splits
from data_prep.cases import Case
from data_prep.ctca.ctca_dataset_builder import (
  NOTES,
  Ctca,
  CtcaConfig,
  config_name,
)
from data_prep.errors import UserError
from data_prep.geometry import GridSpec

_NOTES_SHOWN = 10


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  case_flags.define(values)
  options = {"flag_values": values}
  flags.DEFINE_string(
    "out", None, "Folder that gets ctca/NAME/1.0.0; required.", **options
  )
  flags.DEFINE_enum(
    "severity",
    "clinical",
    ["clinical", "overt"],
    "Of the phantoms' disease.",
    **options,
  )
  for name, text in (
    ("scanner", "the scanner, such as noise_hu=60,blur_mm=0.6"),
    ("population", "the patients, such as body_scale=1.1,dominance=left"),
  ):
    flags.DEFINE_list(
      name, [], f"Of the phantoms, what to fix of {text}.", **options
    )
  flags.DEFINE_enum(
    "grid",
    "heart",
    ["paper", "heart", "spacing"],
    "Target grid: the whole field of view resized; a box around the heart; or"
    " the field of view at a fixed spacing.",
    **options,
  )
  for name, default, text in (
    ("shape", ["256", "128", "128"], "Voxels D,H,W; not for spacing."),
    ("box_mm", None, "Box D,H,W of --grid=heart; one number for a cube."),
    ("spacing_mm", None, "D,H,W of --grid=spacing; one number for a cube."),
  ):
    flags.DEFINE_list(name, default, text, **options)
  flags.DEFINE_bool("overwrite", False, "Replace a data set.", **options)
  flags.DEFINE_bool(
    "skip_bad",
    False,
    "Leave out unusable cases instead of stopping.",
    **options,
  )


def build(
  config: CtcaConfig, out: str | os.PathLike, *, overwrite: bool = False
) -> Ctca:
  """Builds a data set; what does not finish leaves nothing that looks so.

  Args:
    config: what to build.
    out: the data set lands in `out/ctca/NAME/1.0.0`.
    overwrite: replaces a finished data set of that name, once the new one is
      whole.

  Returns:
    The builder, ready to read; `skipped` tells what was left out, `notes`
    what there is to say of the rest.

  Raises:
    UserError: the data set exists, another build is at it, or a case is bad.
  """
  tfds.disable_progress_bar()
  # TFDS reports its steps, and every config that it has no name for.
  logging.set_verbosity(logging.ERROR)
  builder = Ctca(config=config, data_dir=os.fspath(out))
  final = pathlib.Path(builder.data_dir)
  with (
    _only_build(final.parent),
    _old_aside(final, overwrite),
    # TFDS tells of downloads that do not take place.
    contextlib.redirect_stdout(io.StringIO()),
    tempfile.TemporaryDirectory() as downloads,
  ):
    # Made again, as the first may have read the data set to be replaced.
    builder = Ctca(config=config, data_dir=os.fspath(out))
    builder.download_and_prepare(
      file_format="array_record", download_dir=downloads
    )
  return builder


@contextlib.contextmanager
def _only_build(folder: pathlib.Path) -> Iterator[None]:
  """Holds the folder for one build, and clears what killed ones left."""
  with contextlib.ExitStack() as stack:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      lock = stack.enter_context((folder / ".lock").open("w"))
      # Freed by the system, however the process ends.
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise UserError(f"{folder}: another build is writing here") from error
    except OSError as error:
      raise UserError(f"{folder}: cannot write there: {error}") from error
    for stale in folder.glob("incomplete.*_*"):
      if not stale.name.startswith("incomplete.old_"):
        shutil.rmtree(stale)
    yield


@contextlib.contextmanager
def _old_aside(final: pathlib.Path, overwrite: bool) -> Iterator[None]:
  """Keeps the data set to be replaced until the new one is whole."""
  old = final.with_name(f"incomplete.old_{final.name}")
  if old.exists() and final.exists():
    shutil.rmtree(old)
  elif old.exists():
    old.rename(final)
  if final.exists():
    if not overwrite:
      raise UserError(
        f"{final} exists already; give --overwrite to replace it, or another"
        " --out"
      )
    final.rename(old)
  try:
    yield
  finally:
    if not final.exists() and old.exists():
      old.rename(final)
  shutil.rmtree(old, ignore_errors=True)


def config_from_flags(args: flags.FlagValues) -> CtcaConfig:
  """Returns what the flags ask to build.

  Raises:
    UserError: a flag is missing or wrong, or no cases can be found.
  """
  if args.out is None:
    raise UserError("--out is missing: the folder to build in")
  cases, options = case_flags.find(args)
  grid = _grid(args, cases)
  return CtcaConfig(
    name=config_name(args.source, grid),
    source=args.source,
    grid=grid,
    input=args.input,
    options=options,
    cases=args.cases,
    severity=args.severity,
    scanner=_fixed(args, "scanner"),
    population=_fixed(args, "population"),
    seed=args.seed,
    fractions=case_flags.fractions(args),
    num_folds=args.folds,
    has_mask=any(
      "seed" in case.extra or case.mask or case.aorta_mask for case in cases
    ),
    workers=args.workers,
    skip_bad=args.skip_bad,
  )


def _grid(args: flags.FlagValues, cases: Sequence[Case]) -> GridSpec:
  """Returns the grid of the flags, or that of small volumes as they are."""
  if "voxels" in cases[0].extra:
    for name in ("grid", "shape", "box_mm", "spacing_mm"):
      if args[name].present:
        raise UserError(
          f"--{name} is not for --source={args.source}, whose volumes keep"
          " their voxels"
        )
    return GridSpec(kind="paper", shape=cases[0].extra["voxels"].shape)
  fields = {
    name: case_flags.three(name, args[name].value, kind)
    for name, kind in (("shape", int), ("box_mm", float), ("spacing_mm", float))
    if args[name].value
  }
  return GridSpec(kind=args.grid, **fields)


def _fixed(args: flags.FlagValues, name: str) -> dict[str, float | str]:
  """Reads name=value pairs; UserError for what no phantom has."""
  pairs = [text.partition("=") for text in args[name].value]
  if pairs and args.source != "phantom":
    raise UserError(f"--{name} is for --source=phantom alone")
  fixed: dict[str, float | str] = {}
  for key, _, value in pairs:
    try:
      fixed[key] = float(value)
    except ValueError:
      fixed[key] = value
  phantom.check_fixed(name, fixed)
  return fixed


def summary(builder: Ctca) -> str:
  """Returns what was built, in a few lines."""
  lines = []
  counts = collections.Counter(
    (row["split"], row["label"]) for row in builder.rows
  )
  for split in builder.info.splits:
    parts = [
      f"{counts[split, label]} {splits.label_name(label)}"
      for label in (0, 1, -1)
      if counts[split, label]
    ]
    lines.append(f"{split}: {', '.join(parts)}")
  lines += [f"left out {line}" for line in builder.skipped]
  lines += _notes(builder)
  return "\n".join([*lines, str(builder.data_dir)])


def _notes(builder: Ctca) -> list[str]:
  """Returns a line for each of the commonest notes."""
  cases_of = collections.defaultdict(list)
  for case_id, note in builder.notes:
    cases_of[note].append(case_id)
  ranked = sorted(cases_of.items(), key=lambda item: -len(item[1]))
  lines = []
  for note, ids in ranked[:_NOTES_SHOWN]:
    more = f" and {len(ids) - 1} more" if ids[1:] else ""
    lines.append(f"note: {ids[0]}{more}: {note}")
  if ranked[_NOTES_SHOWN:]:
    lines.append(
      f"{len(ranked) - _NOTES_SHOWN} more notes in"
      f" {pathlib.Path(builder.data_dir) / NOTES}"
    )
  return lines


def main(argv: Sequence[str]) -> None:
  """Builds what the flags ask for."""
  del argv
  args = flags.FLAGS
  config = config_from_flags(args)
  # So that a polite kill cleans up as Ctrl-C does.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    builder = build(config, args.out, overwrite=args.overwrite)
  except KeyboardInterrupt:
    interrupt.stop("stopped; nothing was built")
  print(summary(builder))


if __name__ == "__main__":
  errors.run(
    "cadjax build",
    main,
    define_flags,
  )
