"""The flags that say which cases, shared by build and check."""

from absl import flags

from data_prep import sources, splits
from data_prep.errors import UserError


def define(values: flags.FlagValues) -> None:
  """Defines the flags that `find` and `fractions` read."""

  def string(name: str, default: str | None, text: str) -> None:
    flags.DEFINE_string(name, default, text, flag_values=values)

  def integer(name: str, default: int | None, text: str, low: int) -> None:
    flags.DEFINE_integer(name, default, text, low, flag_values=values)

  flags.DEFINE_enum(
    "source",
    None,
    list(sources.SOURCES),
    "Where the cases come from; required.",
    flag_values=values,
  )
  string("input", None, "Folder of scans, manifest.csv, or .npz of medmnist.")
  integer("cases", 88, "How many phantoms to draw.", 1)
  flags.DEFINE_float(
    "cad_fraction",
    0.5,
    "Share of the phantoms with CAD.",
    0,
    1,
    flag_values=values,
  )
  integer("seed", 0, "Of phantoms, splits and folds.", 0)
  string("labels", None, "Table of case_id, label [, patient_id] [, split].")
  string("aorta_masks", None, "Folder of aorta masks named by case id.")
  flags.DEFINE_bool(
    "given_splits",
    True,
    "Keep the splits that come with the source.",
    flag_values=values,
  )
  string("split_column", "Split-1", "Of ImageCAS's split table.")
  flags.DEFINE_list(
    "fractions",
    None,
    "Shares of train,validation,test where the source gives no splits; the"
    " default is the paper's 60,14,14 of 88.",
    flag_values=values,
  )
  integer("folds", 5, "Cross-validation folds.", 2)
  integer("workers", None, "Processes; all cores if not given.", 1)


def find(args: flags.FlagValues) -> tuple[list[sources.Case], dict]:
  """Returns the cases that the flags ask for and the finder's options.

  Raises:
    UserError: --source or --input is missing, or no cases can be found.
  """
  if args.source is None:
    raise UserError(
      f"--source is missing: {', '.join(sources.SOURCES)}; manifest is for"
      " scans of your own"
    )
  if args.source == "phantom":
    options = {"cad_fraction": args.cad_fraction}
    return sources.phantom(args.cases, seed=args.seed, **options), options
  if args.input is None:
    raise UserError(f"--input is missing: the folder of {args.source}")
  options = {
    "labels": args.labels,
    "aorta_masks": args.aorta_masks,
    "given_splits": args.given_splits,
    "split_column": args.split_column,
  }
  return sources.find_cases(args.source, args.input, **options), options


def fractions(args: flags.FlagValues) -> tuple[float, ...]:
  """Returns the shares of the splits that the flags ask for.

  Raises:
    UserError: other than three numbers, or nothing to share.
  """
  if not args.fractions:
    return splits.PAPER_FRACTIONS
  shares = three("fractions", args.fractions, float)
  if sum(shares) <= 0:
    raise UserError("--fractions: the shares add up to nothing")
  return tuple(share / sum(shares) for share in shares)


def three(name: str, texts: list[str], kind: type) -> tuple:
  """Returns the three numbers of a flag; one stands for all three.

  Raises:
    UserError: other than one or three numbers.
  """
  try:
    numbers = tuple(kind(text) for text in texts)
  except ValueError as error:
    raise UserError(f"--{name}={','.join(texts)}: not numbers") from error
  if len(numbers) == 1:
    numbers *= 3
  if len(numbers) != 3:
    raise UserError(f"--{name}={','.join(texts)}: needs three numbers")
  return numbers
