"""Evaluates a trained classifier by patient, with intervals."""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from cadjax.core import files
from cadjax.core.files import Row
from cadjax.data import input_pipeline
from cadjax.evaluation import common, explanations, segmenters
from cadjax.metrics import binary, calibration, patient_level
from cadjax.report import curves
from cadjax.training import workdir
from data_prep.errors import UserError

CASE_KEYS = ("case_id", "patient_id", "label", "log_odds")


def evaluate(
  path: str | pathlib.Path,
  *,
  split: str = "test",
  data: str | None = None,
  against: str | None = None,
  threshold: str = "youden",
  bootstrap: int = 2000,
  batch_size: int | None = None,
) -> dict[str, Any]:
  """Evaluates the best checkpoint of a workdir and writes WORKDIR/eval.

  The test split goes to eval/, another one to eval/SPLIT/, other data than
  the workdir's own (`data`) to eval/external_FINGERPRINT/.

  Args:
    path: the workdir.
    split: "test", "validation", "train" or "all".
    data: a data set to use in place of the one that the workdir names.
    against: another workdir, evaluated before on the same patients.
    threshold: the criterion, see `calibration.choose_threshold`; of a
      classifier.
    bootstrap: number of draws, at least 100.
    batch_size: volumes, or windows of a segmenter, at a time;
      `config.data.eval_batch_size` if left out.

  Returns:
    the contents of metrics.json.

  Raises:
    UserError: for settings, a workdir or data that cannot be used.
  """
  common.check_settings(split, bootstrap, batch_size)
  try:
    calibration.check_criterion(threshold)
  except ValueError as error:
    raise UserError(f"--threshold: {error}") from error
  trained = workdir.load_trained(path, prior=True)
  config = trained.config
  if trained.task == "segment":
    if batch_size:
      config.data.eval_batch_size = batch_size
    return segmenters.evaluate(
      trained, split=split, data=data, against=against, bootstrap=bootstrap
    )
  if config.eval.pooling not in calibration.POOLINGS:
    raise UserError(
      f"config.eval.pooling is {config.eval.pooling!r}; it is one of"
      f" {', '.join(calibration.POOLINGS)}"
    )
  batch_size = batch_size or config.data.get(
    "eval_batch_size", config.data.batch_size
  )
  dataset, external = common.open_data(trained, data)
  names = common.splits_of(split, dataset)
  folder = common.folder_of(trained.path, split, dataset.fingerprint, external)
  other = None
  if against:
    other = common.read_other(trained, against, folder, CASE_KEYS)

  # What was computed is on disk before anything is averaged.
  folder.mkdir(parents=True, exist_ok=True)
  if external:
    validation = _own_validation(trained, batch_size)
  else:
    validation = score_rows(dataset, ["validation"], trained.logits, batch_size)
  files.write_rows(folder, "validation_cases", validation)
  rows = validation
  if external or split != "validation":
    rows = score_rows(dataset, names, trained.logits, batch_size)
    # For external data, "validation" may name both of two sets.
    files.write_rows(folder, common.cases_name(split, external), rows)

  result = common.describe(
    trained, dataset, split, external
  ) | patient_level.evaluate_rows(
    validation,
    rows,
    ndim=config.model.ndim,
    pooling=config.eval.pooling,
    criterion=threshold,
    draws=bootstrap,
  )
  result["notes"] += common.split_notes(trained, dataset, split, external)
  result["notes"] += _setting_notes(split, external, validation)
  if other:
    other_rows, other_result = other
    result["against"] = patient_level.compare(
      rows,
      result,
      other_rows,
      other_result,
      names=(str(trained.path), str(against)),
    )
    result["notes"] += common.build_notes(against, other_result, dataset)
  cases = {"validation_cases": validation, result["cases"]: rows}
  for name, some in cases.items():
    files.write_rows(
      folder, name, patient_level.with_probabilities(some, result)
    )
  patients = result["cases"].replace("cases", "patients")
  files.write_rows(folder, patients, patient_level.patient_rows(rows, result))
  write_figures(folder, rows, result)
  result = files.strict(result)
  files.write_json(folder / "metrics.json", result)
  return result


def evaluate_maps(
  path: str | pathlib.Path,
  *,
  split: str = "test",
  data: str | None = None,
  against: str | None = None,
  cases: int | None = None,
  bootstrap: int = 2000,
  batch_size: int | None = None,
  **options: Any,
) -> dict[str, Any]:
  """Measures the explanation maps of a workdir's best checkpoint.

  Written to explain/ in the folder where `evaluate` writes.

  Args:
    path: the workdir of a classifier.
    split: as in `evaluate`.
    data: as in `evaluate`.
    against: another workdir of the same data, whose maps are compared.
    cases: measure this many, evenly spread over the split; all if left out.
    bootstrap: number of draws, at least 100.
    batch_size: `config.data.eval_batch_size` if left out.
    **options: sanity, region, rolls and seed of `explanations.measure`.

  Returns:
    the contents of metrics.json, but with NaN where undefined.

  Raises:
    UserError: for settings, a workdir or data that cannot be used.
  """
  common.check_settings(split, bootstrap, batch_size)
  trained, other = load_to_explain(path, cases=cases, against=against)
  dataset, external = common.open_data(trained, data)
  names = common.splits_of(split, dataset)
  rows = [row for name in names for row in dataset.rows[name]]
  about = common.describe(trained, dataset, split, external)
  del about["cases"]
  return explanations.measure(
    trained,
    dataset,
    explanations.spread(rows, cases),
    common.folder_of(trained.path, split, dataset.fingerprint, external)
    / "explain",
    about=about,
    other=other,
    bootstrap=bootstrap,
    batch_size=batch_size
    or trained.config.data.get(
      "eval_batch_size", trained.config.data.batch_size
    ),
    **options,
  )


def load_to_explain(
  path: str | pathlib.Path,
  *,
  cases: int | None = None,
  against: str | None = None,
) -> tuple[workdir.Trained, workdir.Trained | None]:
  """Loads what `evaluate_maps` measures; arguments as there.

  Returns:
    the classifier of the workdir, and the one of `against`.

  Raises:
    UserError: one is a segmenter, their grids differ, or `cases` is below 1.
  """
  if cases is not None and cases < 1:
    raise UserError(f"--explain_cases={cases} must be at least 1")
  trained = workdir.load_trained(path, "classify")
  other = workdir.load_trained(against, "classify") if against else None
  if other and other.dataset["grid"] != trained.dataset["grid"]:
    raise UserError(
      f"{against} has another grid than {path}: their maps cannot be compared"
    )
  return trained, other


def score_rows(
  dataset: input_pipeline.Dataset,
  splits: Sequence[str],
  logits: Callable[..., np.ndarray],
  batch_size: int,
) -> list[Row]:
  """Scores every case of the splits once, in their order.

  Args:
    dataset: the records.
    splits: names of splits.
    logits: of `workdir.Trained`: int16 HU [B, D, H, W, 1], and the prior if
      the data set has one, to logits [B, S, 2].
    batch_size: of the batches; the last one is padded.

  Raises:
    UserError: the model gives a logit that is not finite.
  """
  scored = []
  for split in splits:
    count = -(-len(dataset.rows[split]) // batch_size)
    batches = dataset.eval_batches(split, batch_size)
    for batch, cases in tqdm(batches, split, count, leave=False, disable=None):
      inputs = [batch[key] for key in ("image", "prior") if key in batch]
      odds = calibration.softmax_margin(logits(*inputs)[: len(cases)])
      for case, values in zip(cases, odds, strict=True):
        if not np.isfinite(values).all():
          raise UserError(
            f"the model's logits of case {case['case_id']} ({split}) are not"
            " finite; train again, perhaps with a lower learning rate"
          )
        scored.append(
          {
            "split": split,
            "index": int(case["index"]),
            "case_id": case["case_id"],
            "patient_id": case["patient_id"],
            "label": int(case["label"]),
            "log_odds": values.tolist(),
          }
        )
  return scored


def write_figures(
  folder: pathlib.Path, rows: Sequence[Row], result: Mapping[str, Any]
) -> None:
  """Writes roc.png, pr.png, calibration.png and confusion.png."""
  _, labels, probs = patient_level.as_evaluated(rows, result)
  threshold = result["threshold"]
  patients = curves.Scores(
    "by patient", "patients", labels, probs, threshold, result["patient"]
  )
  lines = [patients]
  if "slice" in result:
    setting = result["slice_setting"]
    _, labels, probs = patient_level.by_slice(rows)
    probs = calibration.calibrate(probs, setting["temperature"])
    lines.append(
      curves.Scores(
        "by slice",
        "slices",
        labels,
        probs,
        setting["threshold"],
        result["slice"],
      )
    )
  words = {
    "title": f"{result['split']}, {result['data']['source']} data",
    "footer": result["disclaimer"],
  }
  curves.save(curves.roc_figure(lines, **words), folder / "roc.png")
  curves.save(curves.pr_figure(lines, **words), folder / "pr.png")
  for name, draw in (
    ("calibration", curves.calibration_figure),
    ("confusion", curves.confusion_figure),
  ):
    curves.save(draw(patients, **words), folder / f"{name}.png")


def _own_validation(trained: workdir.Trained, batch_size: int) -> list[Row]:
  """Validation rows of the workdir's own data, or those stored before."""
  try:
    dataset, _ = common.open_data(trained)
  except UserError as error:
    stored = trained.path / "eval" / "validation_cases.jsonl"
    report = trained.path / "eval" / "metrics.json"
    if stored.exists() and report.exists():
      step = files.read_json(report).get("step")
      if step == trained.step:
        return files.read_rows(stored, CASE_KEYS)
    raise UserError(
      "the temperature and the threshold of an external evaluation come from"
      f" the validation cases of the workdir's own data, but {error}, in an"
      " evaluation of its own before this one"
    ) from error
  return score_rows(dataset, ["validation"], trained.logits, batch_size)


def _setting_notes(
  split: str, external: bool, validation: Sequence[Row]
) -> list[str]:
  if external:
    return ["temperature and threshold come from the workdir's own validation"]
  if split in ("validation", "all") and validation:
    return [
      "temperature and threshold were chosen on these validation cases:"
      " optimistic"
    ]
  return []


def table(result: Mapping[str, Any]) -> str:
  """Returns the metrics as text, one a line: value [low, high] (k/n)."""
  columns = {f"by patient ({result['n_patients']})": result["patient"]}
  if "slice" in result:
    count = result["slice_setting"]["n_slices"]
    columns[f"by slice ({count})"] = result["slice"]
  if "against" in result:
    columns["difference to --against"] = result["against"]["difference"]
  lines = ["".join([" " * 19, *(f"{name:<31}" for name in columns)])]
  for name in binary.METRICS:
    cells = [f"{_cell(column[name]):<31}" for column in columns.values()]
    lines.append("".join([f"{name:<19}", *cells]))
  lines = [line.rstrip() for line in lines]
  draws = result["bootstrap"]["draws"]
  lines.append(
    "95 % intervals: Wilson for k/n by patient, else a stratified bootstrap"
    f" over patients ({draws} draws)"
  )
  lines.append(
    f"threshold {result['threshold']:.4f}: {result['threshold_origin']}"
  )
  lines.append(
    f"temperature {result['temperature']:.3f}: {result['temperature_origin']}"
  )
  if "against" in result:
    test = result["against"]["mcnemar"]
    lines.append(
      f"McNemar against {result['against']['workdir']}: correct only here"
      f" {test['only_a_correct']}, only there {test['only_b_correct']},"
      f" p = {test['p_value']:.3g}"
    )
  return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def _cell(entry: Mapping[str, Any]) -> str:
  value = entry.get("value", entry.get("difference"))
  if value is None or math.isnan(value):
    return "undefined"
  text = f"{value:+.3f}" if "difference" in entry else f"{value:.3f}"
  if entry["low"] is not None and not math.isnan(entry["low"]):
    text += f" [{entry['low']:.3f}, {entry['high']:.3f}]"
  if entry.get("k") is not None:
    text += f" ({entry['k']}/{entry['n']})"
  return text
