"""Evaluates a trained classifier or segmenter by patient, with intervals.

  python -m cadjax.evaluate --workdir=W [--split=test] [--against=W2]
    [--explain]

Writes W/eval: the per-case rows first, then metrics.json, the figures and
index.html, a page that shows it all. The temperature and the threshold of a
classifier come from validation patients alone. What is measured of a
segmenter: see `evaluate_segments`. With --explain the explanation maps are
measured too, see `evaluate_explain`; with --cases=DIR, where cadjax.predict
wrote, the page links every case to its report.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from cadjax.evaluation import classifiers, common, explanations, segmenters
from cadjax.evaluation.classifiers import (
  evaluate,
  evaluate_maps,
  load_to_explain,
)
from cadjax.report import cohort, tables
from data_prep import errors


def define_flags() -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  flags.DEFINE_string("workdir", None, "Of cadjax.main.", required=True)
  flags.DEFINE_string("split", "test", f"One of {', '.join(common.SPLITS)}.")
  flags.DEFINE_string(
    "data", None, "A data set in place of the workdir's own (external)."
  )
  flags.DEFINE_string(
    "against", None, "Another evaluated workdir, to compare with."
  )
  flags.DEFINE_string(
    "threshold",
    "youden",
    "youden, f1, sensitivity>=0.9 or a number; of a classifier.",
  )
  flags.DEFINE_integer("bootstrap", 2000, "Draws of the bootstrap.")
  flags.DEFINE_integer(
    "batch_size", None, "Volumes, or a segmenter's windows, at a time."
  )
  flags.DEFINE_string(
    "cases", None, "Where cadjax.predict wrote; the page links its reports."
  )
  flags.DEFINE_bool("explain", False, "Measure the explanation maps too.")
  flags.DEFINE_integer("explain_cases", None, "On so many cases; all if unset.")
  flags.DEFINE_integer(
    "explain_sanity",
    4,
    "Weight randomisation, insertion and deletion on so many cases.",
  )
  flags.DEFINE_enum(
    "explain_region",
    "volume",
    list(explanations.REGIONS),
    "The volume, or the body: air and lung are left out.",
  )


def main(_: Sequence[str]) -> None:
  """Parses flags, makes one call, prints the table, writes the page."""
  args = flags.FLAGS
  # What is wrong is told now and not after all cases are scored.
  cohort.check_cases(args.cases)
  if args.explain:
    load_to_explain(
      args.workdir, cases=args.explain_cases, against=args.against
    )
  result = evaluate(
    args.workdir,
    split=args.split,
    data=args.data,
    against=args.against,
    threshold=args.threshold,
    bootstrap=args.bootstrap,
    batch_size=args.batch_size,
  )
  cad = f" ({result['n_cad']} with CAD)" if "n_cad" in result else ""
  print(
    f"{result['split']} of {result['data']['path']}: {result['n_patients']}"
    f" patients{cad}, {result['n_scans']} scans; step {result['step']}"
  )
  segmenter = result["task"] == "segment"
  print((segmenters if segmenter else classifiers).table(result))
  if args.explain:
    maps = evaluate_maps(
      args.workdir,
      split=args.split,
      data=args.data,
      against=args.against,
      cases=args.explain_cases,
      bootstrap=args.bootstrap,
      batch_size=args.batch_size,
      sanity=args.explain_sanity,
      region=args.explain_region,
    )
    print(f"\nexplanations of CAD, {maps['n_patients']} patients")
    print(tables.text(maps))
  dataset = result["data"]
  page = cohort.write(
    common.folder_of(
      pathlib.Path(args.workdir),
      result["split"],
      dataset["fingerprint"],
      dataset["external"],
    ),
    cases=args.cases,
  )
  print(f"{result['disclaimer']}\n{page}")


if __name__ == "__main__":
  define_flags()
  errors.run(main)
