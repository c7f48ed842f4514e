"""Lists and verifies the models that come with cadjax, and packs others.

  cadjax weights                                        list and verify
  cadjax weights --pack=WORKDIR --name=NAME --out=DIR   pack a workdir

Packing writes NAME.safetensors, the best checkpoint in half precision with
everything that reading a scan with it needs, and NAME.md, its model card. Such
a file, or the name of one that comes with cadjax, is taken wherever a program
takes a workdir to read scans with: --classifier, --segmenter and --wide of
`cadjax predict` and `cadjax segment`, --workdir of `cadjax explain`. The format
is described in `cadjax.training.packed`.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from cadjax.core import lookup
from cadjax.training import packed
from cadjax.weights import card, pack
from data_prep import errors
from data_prep.errors import UserError


def define_flags() -> None:
  """Defines the flags; not at import, as in every program."""
  flags.DEFINE_string("pack", None, "Workdir of a trained model to be packed.")
  flags.DEFINE_string("name", None, "Of the model and its files; with --pack.")
  flags.DEFINE_string(
    "out", None, "Folder for the files; by default with those of cadjax."
  )
  flags.DEFINE_multi_string(
    "command", [], "Made the model, for its card; repeated in order."
  )
  flags.DEFINE_string("about", None, "Markdown file that its card includes.")
  flags.DEFINE_bool("overwrite", False, "Replace files that are there.")


def table(models: dict[str, packed.Packed]) -> str:
  """Returns the models as text, one in a line: name, size and what it is."""
  head = ("name", "MB", "input", "trained on", "finds")
  rows = [head]
  for name, model in models.items():
    about = model.description
    rows.append(
      (
        name,
        f"{model.path.stat().st_size / 1e6:.1f}",
        about["dataset"]["grid"]["kind"],
        card.data_words(about),
        card.task_words(about),
      )
    )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = (
    "  ".join(f"{x:<{w}}" for x, w in zip(row, widths, strict=True)).rstrip()
    for row in rows
  )
  return "\n".join(lines)


def show() -> int:
  """Prints the shipped models; returns 2 if one is damaged, else 0."""
  found = packed.shipped()
  if not found:
    print("no weights are shipped in this version")
    return 0
  whole, damaged = {}, []
  for name, path in found.items():
    try:
      whole[name] = packed.read(path)
    except UserError as error:
      damaged.append(errors.one_line(error))
  if whole:
    print(table(whole))
    print("checksums: as they were written")
  for line in damaged:
    print(f"error: {line}", file=sys.stderr)
  return 2 if damaged else 0


def main(_: Sequence[str]) -> int:
  """Lists, or packs what the flags ask for; returns the exit code."""
  args = flags.FLAGS
  if args.pack is None:
    for name in ("name", "out", "command", "about", "overwrite"):
      if args[name].present:
        raise UserError(f"--{name} goes with --pack=WORKDIR")
    return show()
  if args.name is None:
    raise UserError("--name is missing: the name of the model")
  written = pack.pack(
    args.pack,
    args.name,
    args.out,
    commands=args.command,
    about=_read_about(args.about),
    overwrite=args.overwrite,
  )
  print(f"{written.weights}  {written.size / 1e6:.2f} MB")
  half = written.description["half"]
  for name in ("log_odds", "probability", "labels"):
    if name in half:
      print(f"half precision changes {name} by {half[name]:.2g} at most")
  print(written.card)
  return 0


def _read_about(path: str | None) -> str:
  if path is None:
    return ""
  try:
    return pathlib.Path(path).read_text("utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"--about={path}: cannot be read ({error})") from error


if __name__ == "__main__":
  errors.run(
    "cadjax weights",
    main,
    define_flags,
    expected=(lookup.ConfigError,),
  )
