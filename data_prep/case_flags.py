"""The flags that say which cases, shared by build and check."""

from absl import flags

from data_prep import sources
from data_prep.errors import UserError

SOURCE = flags.DEFINE_enum(
  "source", None, list(sources.SOURCES), "Where the cases come from."
)
INPUT = flags.DEFINE_string(
  "input", None, "Folder of the scans, or a manifest.csv; not for phantom."
)
CASES = flags.DEFINE_integer("cases", 88, "How many phantoms to draw.")
CAD_FRACTION = flags.DEFINE_float(
  "cad_fraction", 0.5, "Share of the phantoms with CAD.", 0, 1
)
SEED = flags.DEFINE_integer("seed", 0, "Of phantoms, splits and folds.", 0)
LABELS = flags.DEFINE_string(
  "labels", None, "Table with case_id, label [, patient_id] [, split]."
)
AORTA_MASKS = flags.DEFINE_string(
  "aorta_masks", None, "Folder of aorta masks named by case id."
)
GIVEN_SPLITS = flags.DEFINE_bool(
  "given_splits", True, "Keep the splits that come with the source."
)
SPLIT_COLUMN = flags.DEFINE_string(
  "split_column", "Split-1", "Of ImageCAS's split table."
)
FRACTIONS = flags.DEFINE_list(
  "fractions",
  None,
  "Shares of train,validation,test where the source gives no splits; the"
  " default is the paper's 60,14,14 of 88.",
)
FOLDS = flags.DEFINE_integer("folds", 5, "Cross-validation folds.")
WORKERS = flags.DEFINE_integer(
  "workers", None, "Processes; all cores if not given.", 1
)


def find() -> tuple[list[sources.Case], dict]:
  """Returns the cases that the flags ask for and the finder's options.

  Raises:
    UserError: --source or --input is missing, or no cases can be found.
  """
  if SOURCE.value is None:
    raise UserError(f"--source is missing: {', '.join(sources.SOURCES)}")
  if SOURCE.value == "phantom":
    options = {"cad_fraction": CAD_FRACTION.value}
    return sources.phantom(CASES.value, seed=SEED.value, **options), options
  if INPUT.value is None:
    raise UserError(f"--input is missing: the folder of {SOURCE.value}")
  options = {
    "labels": LABELS.value,
    "aorta_masks": AORTA_MASKS.value,
    "given_splits": GIVEN_SPLITS.value,
    "split_column": SPLIT_COLUMN.value,
  }
  return sources.find_cases(SOURCE.value, INPUT.value, **options), options
