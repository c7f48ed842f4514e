"""Builds a data set: `python -m data_prep.build --source=phantom --out=DIR`."""

import collections
import contextlib
import fcntl
import io
import os
import pathlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence

import tensorflow_datasets as tfds
from absl import flags, logging

from data_prep import case_flags, errors, splits
from data_prep.ctca.ctca_dataset_builder import Ctca, CtcaConfig, config_name
from data_prep.errors import UserError
from data_prep.geometry import GridSpec

OUT = flags.DEFINE_string("out", None, "Folder that gets ctca/NAME/1.0.0.")
SEVERITY = flags.DEFINE_enum(
  "severity", "clinical", ["clinical", "overt"], "Of the phantoms' disease."
)
GRID = flags.DEFINE_enum(
  "grid",
  "heart",
  ["paper", "heart", "spacing"],
  "Target grid: the whole field of view resized; a box around the heart; or"
  " the field of view at a fixed spacing.",
)
SHAPE = flags.DEFINE_list(
  "shape", ["256", "128", "128"], "Voxels D,H,W; not for --grid=spacing."
)
BOX_MM = flags.DEFINE_list(
  "box_mm", None, "Box D,H,W in mm of --grid=heart; one number for a cube."
)
SPACING_MM = flags.DEFINE_list(
  "spacing_mm", None, "D,H,W in mm of --grid=spacing; one number for a cube."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a data set.")
SKIP_BAD = flags.DEFINE_bool(
  "skip_bad", False, "Leave out unusable cases instead of stopping."
)
flags.adopt_module_key_flags(case_flags)


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
    The builder, ready to read; `skipped` tells what was left out.

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


def _numbers(name: str, texts: Sequence[str], kind: type) -> tuple:
  """Returns three numbers; one stands for all three."""
  try:
    values = tuple(kind(text) for text in texts)
  except ValueError as error:
    raise UserError(f"--{name}={','.join(texts)}: not numbers") from error
  if len(values) == 1:
    values *= 3
  if len(values) != 3:
    raise UserError(f"--{name}={','.join(texts)}: needs three numbers")
  return values


def grid_from_flags() -> GridSpec:
  """Returns the target grid that the flags ask for."""
  fields = {"shape": _numbers("shape", SHAPE.value, int)}
  for flag in (BOX_MM, SPACING_MM):
    if flag.value:
      fields[flag.name] = _numbers(flag.name, flag.value, float)
  return GridSpec(kind=GRID.value, **fields)


def fractions_from_flags() -> tuple[float, ...]:
  """Returns the shares of the splits that the flags ask for."""
  texts = case_flags.FRACTIONS.value
  if not texts:
    return splits.PAPER_FRACTIONS
  shares = _numbers("fractions", texts, float)
  if sum(shares) <= 0:
    raise UserError("--fractions: the shares add up to nothing")
  return tuple(share / sum(shares) for share in shares)


def config_from_flags() -> CtcaConfig:
  """Returns what the flags ask to build."""
  cases, options = case_flags.find()
  source, grid = case_flags.SOURCE.value, grid_from_flags()
  return CtcaConfig(
    name=config_name(source, grid),
    source=source,
    grid=grid,
    input=case_flags.INPUT.value,
    options=options,
    cases=case_flags.CASES.value,
    severity=SEVERITY.value,
    seed=case_flags.SEED.value,
    fractions=fractions_from_flags(),
    num_folds=case_flags.FOLDS.value,
    has_mask=any(
      "seed" in case.extra or case.mask or case.aorta_mask for case in cases
    ),
    workers=case_flags.WORKERS.value,
    skip_bad=SKIP_BAD.value,
  )


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
  return "\n".join([*lines, str(builder.data_dir)])


def main(argv: Sequence[str]) -> None:
  """Builds what the flags ask for."""
  del argv
  if OUT.value is None:
    raise UserError("--out is missing: the folder to build in")
  config = config_from_flags()
  # So that a polite kill cleans up as Ctrl-C does.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    builder = build(config, OUT.value, overwrite=OVERWRITE.value)
  except KeyboardInterrupt:
    print("stopped; nothing was built", file=sys.stderr)
    sys.exit(130)
  print(summary(builder))


if __name__ == "__main__":
  errors.run(main)
