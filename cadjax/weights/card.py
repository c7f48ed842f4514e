"""The model card of a file of weights, in Markdown."""

import textwrap
from collections.abc import Mapping
from typing import Any

from cadjax.data import classes
from cadjax.metrics.intervals import Interval
from cadjax.report import pages
from cadjax.training import packed

# Of metrics.json, in the order of the card: name there -> words.
CLASSIFIER = {
  "roc_auc": "ROC AUC",
  "accuracy": "accuracy",
  "recall": "sensitivity",
  "specificity": "specificity",
  "brier": "Brier score",
}
SEGMENTER = {
  "dice": "Dice",
  "recall": "recall",
  "precision": "precision",
  "hd95_mm": "HD95, mm",
}
LESIONS = {
  "recall": "lesion recall",
  "false_positives": "false positives a scan",
}
_WIDTH = 80


def render(
  description: Mapping[str, Any],
  evaluation: Mapping[str, Any] | None,
  about: str = "",
  *,
  size: int,
) -> str:
  """Returns the model card.

  Args:
    description: of `pack.describe`, with "half".
    evaluation: metrics.json of the workdir, of the same step; None without.
    about: Markdown that follows the first lines.
    size: of the file of weights, in bytes.
  """
  name, classify = description["name"], _is_classifier(description)
  kind = "classifier" if classify else "segmenter"
  parts = [
    f"# {name}: a {kind} of cadjax",
    _wrap(f"{pages.NOTICE} {_trained_on_words(description)}"),
  ]
  if about.strip():
    parts.append(about.strip())
  parts += [
    f"## The model\n\n{_rows(_model_rows(description, size))}",
    f"## What it was trained on\n\n{_rows(_data_rows(description))}",
  ]
  if commands := description.get("commands"):
    lines = "\n".join(commands)
    parts.append(f"## How it was made\n\n```\n{lines}\n```")
  parts += [
    f"## Figures\n\n{_figures(description, evaluation)}",
    f"## Half precision\n\n{_wrap(_half(description))}",
    f"## What it must not be used for\n\n{_wrap(_not_for(description))}",
  ]
  return "\n\n".join(parts) + "\n"


def task_words(description: Mapping[str, Any]) -> str:
  """Returns what a model finds, such as "normal, CAD", for tables."""
  if _is_classifier(description):
    return "normal or CAD"
  names = classes.get_class_set(description["config"]["segment"]["classes"])
  return ", ".join(x.replace("_", " ") for x in names.names[1:])


def data_words(description: Mapping[str, Any]) -> str:
  """Returns what a model was trained on, such as "800 phantoms"."""
  dataset = description["dataset"]
  cases = (dataset.get("cases") or {}).get("train")
  kind = "phantoms" if _phantom(description) else f"of {dataset.get('source')}"
  return f"{'?' if cases is None else cases} {kind}"


def _is_classifier(description) -> bool:
  # Configs from before there were segmenters do not say their task.
  return description["config"].get("task", "classify") == "classify"


def _phantom(description) -> bool:
  return description["dataset"].get("source") == "phantom"


def _trained_on_words(description) -> str:
  if not _phantom(description):
    return ""
  return (
    "Trained on phantoms (synthetic scans) only: its output for a patient's"
    " scan is no evidence about that patient."
  )


def _model_rows(description, size) -> dict[str, Any]:
  config = description["config"]
  model = config["model"]
  grid = description["dataset"]["grid"]
  shape = " x ".join(map(str, grid["shape"]))
  box = " x ".join(f"{x:g}" for x in grid["box_mm"])
  spacing = " x ".join(f"{x:g}" for x in grid["spacing_mm"])
  grids = {
    "paper": f"the whole field of view at {shape} voxels",
    "heart": f"{shape} voxels over {box} mm around the heart",
    "spacing": f"the whole field of view at {spacing} mm",
  }
  fields = ("name", "ndim", "depth", "width", "features")
  low, high = config["data"]["window_hu"]
  return {
    "finds": task_words(description),
    "network": ", ".join(f"{k} {model[k]}" for k in fields if k in model),
    "input": grids[grid["kind"]],
    "window": f"{low:g} to {high:g} HU",
    "file": f"{size / 1e6:.1f} MB, format {packed.FORMAT}",
    "step": description["step"],
  }


def _data_rows(description) -> dict[str, Any]:
  dataset = description["dataset"]
  known = {
    name: value
    for name, value in (dataset.get("metadata") or {}).items()
    if name not in ("grid", "mask_names", "format", "source")
    and value not in (None, {}, [])
  }
  cases = dataset.get("cases") or {}
  versions = description["versions"]
  return {
    "source": dataset.get("source"),
    "cases": ", ".join(f"{n} {split}" for split, n in cases.items()),
    **known,
    "seed of the training": description["config"].get("seed"),
    "fingerprint": f"`{dataset['fingerprint']}`",
    "versions": ", ".join(
      f"{name} {value}"
      for name, value in versions.items()
      if isinstance(value, str)
    ),
    "devices": ", ".join(sorted(set(versions.get("devices") or ()))),
  }


def _figures(description, evaluation) -> str:
  if evaluation is None:
    return _wrap("The model had not been evaluated when it was packed.")
  classify = _is_classifier(description)
  head = (
    f"On the {evaluation['split']} split of its data:"
    f" {evaluation['n_patients']} patients"
    f"{' (phantoms)' if _phantom(description) else ''}, with 95 % intervals."
  )
  patient = evaluation["patient"]
  if classify:
    rows = _entries(patient, CLASSIFIER)
    rows["threshold"] = (
      f"{evaluation['threshold']:.4g} ({evaluation['threshold_origin']})"
    )
    rows["temperature"] = (
      f"{evaluation['temperature']:.3g} ({evaluation['temperature_origin']})"
    )
    return f"{_wrap(head)}\n\n{_rows(rows)}"
  table = [
    f"| class | {' | '.join(SEGMENTER.values())} |",
    f"| --- | {' | '.join('---' for _ in SEGMENTER)} |",
  ]
  for name, found in patient.items():
    cells = " | ".join(_entries(found, SEGMENTER).values())
    table.append(f"| {name.replace('_', ' ')} | {cells} |")
  text = f"{_wrap(head)}\n\n" + "\n".join(table)
  if lesions := evaluation.get("lesions"):
    text += f"\n\nLesions:\n\n{_rows(_entries(lesions, LESIONS))}"
  return text


def _entries(found, words) -> dict[str, str]:
  """Returns words -> value with its interval, of what there is."""
  return {
    text: Interval.from_dict(found[name]).text()
    for name, text in words.items()
    if name in found
  }


def _half(description) -> str:
  start = (
    "Kernels are stored as float16 and computed with as float32. The largest"
    " difference to the model before that"
  )
  half = description.get("half")
  if half is None:
    return f"{start} was not measured."
  where = f"{start}, on one volume ({half['volume']}):"
  if "log_odds" in half:
    return (
      f"{where} {half['log_odds']:.2g} of the log odds of CAD,"
      f" {half['probability']:.2g} of its probability."
    )
  return (
    f"{where} {half['probability']:.2g} of a probability;"
    f" {100 * half['labels']:.2g} % of the voxels change their class."
  )


def _not_for(description) -> str:
  text = (
    "Not a medical device: not for diagnosis, triage or any decision about a"
    " patient, nor to stand in for a reader. Not for scans without contrast,"
    " of another region than the heart, or of another kind than CT."
  )
  if _phantom(description):
    text += (
      " It has seen no patient: neither its figures nor its thresholds hold"
      " for patients."
    )
  return text


def _rows(values: Mapping[str, Any]) -> str:
  lines = [
    f"| {name.replace('_', ' ')} | {_cell(x)} |" for name, x in values.items()
  ]
  return "\n".join(["| | |", "| --- | --- |", *lines])


def _cell(value: Any) -> str:
  if isinstance(value, Mapping):
    value = ", ".join(f"{name} {x}" for name, x in value.items())
  elif isinstance(value, list | tuple):
    value = ", ".join(map(str, value))
  return str(value).replace("|", "\\|").replace("\n", " ")


def _wrap(text: str) -> str:
  return textwrap.fill(text.strip(), _WIDTH)
