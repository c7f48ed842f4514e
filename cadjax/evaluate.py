"""Evaluates a trained classifier or segmenter by patient, with intervals.

  cadjax evaluate --workdir=W [--split=test] [--against=W2] [--explain]

Writes W/eval: the per-case rows first, then metrics.json, the figures and
index.html, a page that shows it all. The temperature and the threshold of a
classifier come from validation patients alone. What is measured of a
segmenter: see `evaluation.segmenters`. With --explain the explanation maps
are measured too, see `evaluation.explanations`; with --cases=DIR, where
cadjax.predict wrote, the page links every case to its report.
"""

from collections.abc import Sequence

from absl import flags

from cadjax.core import lookup
from cadjax.evaluation import (
  case_maps,
  classifiers,
  common,
  explanations,
  map_measures,
  segmenters,
)
from cadjax.evaluation.workdirs import evaluate_workdir
from cadjax.explanation import cad_maps, explainer
from cadjax.report import cohort, tables
from data_prep import errors


def define_flags() -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  flags.DEFINE_string(
    "workdir", None, "Of a trained classifier or segmenter.", required=True
  )
  flags.DEFINE_string("split", "test", f"One of {', '.join(common.SPLITS)}.")
  flags.DEFINE_string(
    "data",
    None,
    "Where the workdir's own data set is now, or another one (external).",
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
    "cases", None, "Where `cadjax predict` wrote; the page links its reports."
  )
  flags.DEFINE_bool("explain", False, "Measure the explanation maps too.")
  flags.DEFINE_integer("explain_cases", None, "On so many cases; all if unset.")
  flags.DEFINE_integer(
    "explain_sanity",
    4,
    "Weight randomisation, insertion and deletion on so many cases.",
    0,
  )
  flags.DEFINE_integer(
    "explain_counterfactuals",
    0,
    "Of phantoms: so many with CAD are drawn again without their lesions.",
    0,
  )
  flags.DEFINE_list(
    "explain_methods",
    [],
    f"Of {', '.join(explainer.METHODS)}; those of one gradient if unset.",
  )
  flags.DEFINE_list(
    "explain_measures",
    [],
    f"all, or of {', '.join(map_measures.NAMES)}; none if unset. Those of many"
    " passes on --explain_sanity cases.",
  )
  flags.DEFINE_enum(
    "explain_region",
    "volume",
    list(case_maps.REGIONS),
    "The volume, or the body: air and lung are left out.",
  )


def main(_: Sequence[str]) -> None:
  """Parses flags, makes one call, prints the table, writes the page."""
  args = flags.FLAGS
  # What is wrong is reported now and not after all cases are scored.
  cohort.check_cases(args.cases)
  if args.explain:
    map_measures.chosen(args.explain_measures)
    lookup.check_known(
      args.explain_methods, explainer.METHODS, "explanation method"
    )
    explanations.load_to_explain(
      args.workdir, cases=args.explain_cases, against=args.against
    )
  result = evaluate_workdir(
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
    maps = explanations.evaluate_maps(
      args.workdir,
      split=args.split,
      data=args.data,
      against=args.against,
      cases=args.explain_cases,
      settings=case_maps.Settings(
        bootstrap=args.bootstrap,
        batch_size=args.batch_size,
        sanity=args.explain_sanity,
        twins=args.explain_counterfactuals,
        region=args.explain_region,
        methods=args.explain_methods or cad_maps.METHODS,
        measures=args.explain_measures,
      ),
    )
    print(f"\nexplanations of CAD, {maps['n_patients']} patients")
    print(tables.text(maps))
  folder = common.paths_of_result(result).folder
  page = cohort.write(folder, cases=args.cases)
  print(f"{result['disclaimer']}\n{page}")


if __name__ == "__main__":
  errors.run(
    "cadjax evaluate",
    main,
    define_flags,
    expected=(lookup.ConfigError,),
  )
