"""Trains MONAI's 3D ResNet by the recipe of a trained workdir, and compares.

  python -m cadjax.bench.recipe --workdir=W --out=W_monai [--split=test]

MONAI's network sees the same batches with the same augmentation, and its epoch
is chosen likewise on validation. Both are then evaluated on the split, by
patient with intervals; the time ratio is that of train steps that both took in
turns on the same batch. A stopped training goes on where it was, and a finished
one is only evaluated, so that --data and --split can be others later.
"""

import importlib.util
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from tqdm import tqdm

from cadjax.classification.classifier import Classifier, load_classifier
from cadjax.core import files, lookup
from cadjax.evaluation import classifiers, common, workdirs
from cadjax.metrics import patient_level
from cadjax.metrics.intervals import Difference, Interval
from data_prep import errors
from data_prep.errors import UserError

# In --out: the rows of MONAI's network, and what says that it is trained.
VALIDATION, TRAINED = "validation_cases", "trained.json"
METRICS = {
  "ROC AUC": ("patient", "roc_auc"),
  "accuracy at 0.5 (argmax)": ("at_half", "accuracy"),
  "accuracy at the threshold of validation": ("patient", "accuracy"),
}


WIDTH = max(map(len, METRICS)) + 2


def define_flags() -> None:
  """Defines the flags of the program."""
  flags.DEFINE_string("workdir", None, "Of a trained classifier.")
  flags.DEFINE_string("out", None, "Folder of MONAI's network and the results.")
  flags.DEFINE_string("split", "validation", "What both are evaluated on.")
  flags.DEFINE_string(
    "data", None, "Where the workdir's data are now, or another set to test on."
  )
  flags.DEFINE_integer(
    "pairs", 30, "Train steps that cadjax takes too, for the times.", 1
  )
  flags.DEFINE_integer("bootstrap", 2000, "Draws of the bootstrap.")


def compare(
  workdir: str,
  out: pathlib.Path,
  *,
  split: str,
  data: str | None,
  pairs: int,
  bootstrap: int,
) -> dict[str, Any]:
  """Trains MONAI's network where that is not done, and evaluates both.

  Args:
    workdir: of a trained classifier.
    out: gets MONAI's network, its rows and recipe.json.
    split: "validation", "test", "train" or "all".
    data: see `common.open_data`.
    pairs: see `recipe_torch.train`.
    bootstrap: number of draws.

  Returns:
    the contents of recipe.json.

  Raises:
    UserError: the workdir or the data cannot be used.
    lookup.ConfigError: its recipe is none that is done with MONAI.
  """
  # Not above: torch is an extra.
  from cadjax.bench import recipe_torch

  common.check_settings(split, bootstrap, None)
  model = load_classifier(workdir)
  recipe_torch.check(model.config)
  evaluation = common.open_evaluation(model, split, data)
  trained = _train(model, evaluation, out, pairs)
  ours = workdirs.evaluate_workdir(
    workdir, split=split, data=data, bootstrap=bootstrap
  )
  our_rows = files.read_rows(
    common.paths_of_result(ours).rows(ours["cases"]), classifiers.CASE_KEYS
  )
  their_rows = classifiers.score_rows(
    evaluation.dataset,
    evaluation.splits,
    recipe_torch.load(model.config, out).logits,
    model.config.data.eval_batch_size,
  )
  files.write_rows(out, ours["cases"], their_rows)
  theirs = patient_level.evaluate_rows(
    files.read_rows(out / f"{VALIDATION}.jsonl", classifiers.CASE_KEYS),
    their_rows,
    draws=bootstrap,
  )
  difference = patient_level.compare(
    our_rows, ours, their_rows, theirs, names=("cadjax", "MONAI")
  )
  result = files.strict(
    {
      "workdir": str(workdir),
      "split": split,
      "data": ours["data"],
      "n_patients": ours["n_patients"],
      "n_cad": ours["n_cad"],
      "cadjax": _metrics(ours),
      "monai": _metrics(theirs),
      "roc_auc_difference": difference["difference"]["roc_auc"],
      "mcnemar": difference["mcnemar"],
      **_times(trained["seconds"]),
      "notes": ours["notes"],
    }
  )
  files.write_json(out / "recipe.json", result)
  return result


def _train(
  model: Classifier,
  evaluation: common.Evaluation,
  out: pathlib.Path,
  pairs: int,
) -> dict[str, Any]:
  """Trains MONAI's network where that is not done; returns TRAINED's contents.

  Raises:
    UserError: the network in `out` was trained on other data.
  """
  from cadjax.bench import recipe_torch

  if not (out / TRAINED).exists():
    config = model.config.copy_and_resolve_references()
    own = evaluation.dataset.path
    if evaluation.external:
      own = common.find_own_data(model)
    config.data.path = str(own)
    seconds = recipe_torch.train(config, out, pairs=pairs, say=tqdm.write)
    dataset, _ = common.open_data(model, str(own))
    rows = classifiers.score_rows(
      dataset,
      ["validation"],
      recipe_torch.load(config, out).logits,
      config.data.eval_batch_size,
    )
    files.write_rows(out, VALIDATION, rows)
    files.write_json(
      out / TRAINED, {"fingerprint": dataset.fingerprint, "seconds": seconds}
    )
  trained = files.read_json(out / TRAINED)
  if trained["fingerprint"] != model.dataset["fingerprint"]:
    raise UserError(
      f"{out} holds a network trained on other data than {model.path}; give"
      " another --out"
    )
  return trained


def _metrics(result: Mapping[str, Any]) -> dict[str, Any]:
  return {name: result[part][key] for name, (part, key) in METRICS.items()}


def _times(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
  """Returns the median seconds of a step, and the ratio of neighbours."""
  ours, theirs = map(statistics.median, zip(*pairs, strict=True))
  ratios = [a / b for a, b in pairs]
  return {
    "step_seconds": {"cadjax": ours, "monai": theirs},
    "time_ratio": {
      "median": statistics.median(ratios),
      "low": min(ratios),
      "high": max(ratios),
      "pairs": len(ratios),
    },
  }


def table(result: Mapping[str, Any]) -> str:
  """Returns what `compare` found as text."""
  lines = [
    f"{result['split']} of {result['data']['path']}: {result['n_patients']}"
    f" patients ({result['n_cad']} with label 1)",
    f"{'':<{WIDTH}}{'cadjax':<32}MONAI",
  ]
  for name in METRICS:
    cells = [
      Interval.from_dict(result[side][name]).text()
      for side in ("cadjax", "monai")
    ]
    lines.append(f"{name:<{WIDTH}}{cells[0]:<32}{cells[1]}")
  difference = Difference.from_dict(result["roc_auc_difference"])
  test, ratio = result["mcnemar"], result["time_ratio"]
  ours, theirs = result["step_seconds"].values()
  lines += [
    f"ROC AUC of cadjax minus MONAI's: {difference.text()}",
    f"correct at the thresholds only here {test['only_a_correct']}, only there"
    f" {test['only_b_correct']}, McNemar p = {test['p_value']:.3g}",
    f"seconds of a train step with augmentation: cadjax {ours:.3g}, MONAI"
    f" {theirs:.3g}; time ratio {ratio['median']:.2f} ({ratio['low']:.2f} to"
    f" {ratio['high']:.2f}, {ratio['pairs']} pairs)",
  ]
  return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def main(argv: Sequence[str]) -> None:
  """Compares what the flags ask for and prints it."""
  del argv
  args = flags.FLAGS
  for name in ("workdir", "out"):
    if args[name].value is None:
      raise UserError(f"--{name} is missing: {args[name].help}")
  missing = [m for m in ("torch", "monai") if not importlib.util.find_spec(m)]
  if missing:
    raise UserError(f"needs {' and '.join(missing)}: pip install -e '.[bench]'")
  result = compare(
    args.workdir,
    pathlib.Path(args.out),
    split=args.split,
    data=args.data,
    pairs=args.pairs,
    bootstrap=args.bootstrap,
  )
  print(table(result))


if __name__ == "__main__":
  errors.run(
    "python -m cadjax.bench.recipe",
    main,
    define_flags,
    expected=(lookup.ConfigError,),
  )
