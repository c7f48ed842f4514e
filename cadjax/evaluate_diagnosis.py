"""Scores CAD-RADS, segments and stenoses on scans whose lesions are known.

  cadjax phantoms --cases=100 --seed=7 --spacing_mm=0.6 --out=scans
  cadjax diagnosis --scans=scans --out=diagnosis --true_masks
  cadjax diagnosis --scans=scans --out=diagnosis_segmenter

diagnosis.json has the table of categories, the weighted kappa, sensitivity and
specificity for CAD-RADS 3 or more, the share of lesions that were found and
that were given the right segment, and of stenosis, plaque volume and least
lumen area the bias with its limits of agreement; stenosis.png shows those of
the stenosis. After an interruption the same command goes on, by
unfinished.jsonl in --out.
"""

from collections.abc import Sequence

from absl import flags

from cadjax.core import lookup
from cadjax.evaluation.diagnoses import evaluate_diagnoses, table
from cadjax.segmentation.segmenter import WIDE
from data_prep import errors


def define_flags() -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  for name, text in (
    ("scans", "Folder of `cadjax phantoms`."),
    ("out", "Folder for the results."),
  ):
    flags.DEFINE_string(name, None, text, required=True)
  flags.DEFINE_string(
    "segmenter",
    None,
    "Workdir or file of weights; the one in the box if unset.",
  )
  flags.DEFINE_string("wide", None, WIDE)
  flags.DEFINE_bool(
    "true_masks", False, "Grade the masks beside the scans, without a model."
  )
  flags.DEFINE_integer("seed", 0, "Of the bootstrap.")


def main(_: Sequence[str]) -> None:
  """Parses flags, makes one call, prints the table."""
  args = flags.FLAGS
  result = evaluate_diagnoses(
    args.scans,
    args.out,
    segmenter=args.segmenter,
    wide=args.wide,
    true_masks=args.true_masks,
    seed=args.seed,
  )
  print(table(result))


if __name__ == "__main__":
  errors.run(
    "cadjax diagnosis",
    main,
    define_flags,
    expected=(lookup.ConfigError,),
  )
