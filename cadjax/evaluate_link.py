"""Scores the link on scans whose lesions are known.

  cadjax phantoms --cases=80 --severity=overt --spacing_mm=1 --out=scans
  cadjax link --classifier=W1 --segmenter=W2 --scans=scans --out=link

The layer of the heat map, the threshold of the findings and the combined
decision are chosen on one half of the scans. The other half is evaluated: FROC
curves (sensitivity to lesions at 1/4 to 8 false positives a scan) of the
classifier's map alone, its map on the segmented vessels, the plaque
segmentation, and all together, beside places drawn at random on the vessels;
and the decision of each beside that of both. froc.png shows the curves;
link.json, which is written to --out, goes into `cadjax predict --decision`.
After an interruption the same command goes on, by unfinished.jsonl in --out.
"""

from collections.abc import Sequence

from absl import flags

from cadjax.core import lookup
from cadjax.evaluation.link_rows import MOST
from cadjax.evaluation.link_table import table
from cadjax.evaluation.links import evaluate_link
from cadjax.segmentation.segmenter import WIDE
from data_prep import errors


def define_flags() -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  for name, text in (
    ("classifier", "Workdir or file of weights of a classifier."),
    ("segmenter", "Workdir or file of weights of a segmenter."),
    ("scans", "Folder of `cadjax phantoms`."),
    ("out", "Folder for the results."),
  ):
    flags.DEFINE_string(name, None, text, required=True)
  flags.DEFINE_string("wide", None, WIDE)
  flags.DEFINE_integer("most", MOST, "Findings kept of a scan, of each mode.")
  flags.DEFINE_integer("seed", 0, "Of the halves and of the bootstrap.")


def main(_: Sequence[str]) -> None:
  """Parses flags, makes one call, prints the table."""
  args = flags.FLAGS
  result = evaluate_link(
    args.classifier,
    args.segmenter,
    args.scans,
    args.out,
    wide=args.wide,
    most=args.most,
    seed=args.seed,
  )
  print(table(result))


if __name__ == "__main__":
  errors.run(
    "cadjax link",
    main,
    define_flags,
    expected=(lookup.ConfigError,),
  )
