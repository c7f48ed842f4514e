"""A workdir to NAME.safetensors and its model card NAME.md."""

import copy
import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.special

from cadjax import tasks
from cadjax.classification.classifier import Classifier
from cadjax.core import files
from cadjax.metrics import calibration as calibration_lib
from cadjax.segmentation.segmenter import Segmenter
from cadjax.training import packed
from cadjax.weights import card
from data_prep import checksums, phantom
from data_prep.errors import UserError

# What `classification.scan.read_calibration` reads of metrics.json.
_CALIBRATION = (
  *("step", "temperature", "temperature_origin", "temperature_fitted"),
  *("threshold", "threshold_origin", "pooling"),
)
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
# The phantom on which the loss by half precision is measured.
SEED, SEVERITY = 0, "overt"


@dataclasses.dataclass(frozen=True)
class Written:
  """What `pack` wrote.

  Attributes:
    weights: the file of weights.
    card: the model card beside it.
    size: of the weights, in bytes.
    description: in the header of the weights.
  """

  weights: pathlib.Path
  card: pathlib.Path
  size: int
  description: dict[str, Any]


def pack(
  workdir: str | pathlib.Path,
  name: str,
  out: str | pathlib.Path | None = None,
  *,
  commands: Sequence[str] = (),
  about: str = "",
  overwrite: bool = False,
) -> Written:
  """Writes the best checkpoint of a workdir as one file, with a card.

  Args:
    workdir: of a trained classifier or segmenter.
    name: of the model, and of the files.
    out: folder for them, made as needed; by default that of the models that
      come with cadjax.
    commands: that made the model, for the card.
    about: Markdown for the card: what the model is for, and figures that no
      evaluation of the workdir has.
    overwrite: replace an earlier file.

  Raises:
    UserError: no model can be loaded from the workdir, the name cannot be
      one, or the files are there or cannot be written.
  """
  if not _NAME.fullmatch(name):
    raise UserError(
      f"--name={name}: takes small letters, digits, - and _, such as coronary"
    )
  out = packed.FOLDER if out is None else pathlib.Path(out)
  weights, page = out / f"{name}{packed.SUFFIX}", out / f"{name}.md"
  for path in (weights, page):
    if path.exists() and not overwrite:
      raise UserError(f"{path} is there; --overwrite replaces it")
  model = tasks.load_model(workdir, prior=True)
  if model.description is not None:
    raise UserError(f"--pack={workdir} is packed; a workdir is needed")
  evaluation = _read_evaluation(model)
  stored = packed.halve(model.variables)
  description = describe(model, name, evaluation, commands)
  description["half"] = measure_half(model, stored)
  content = packed.to_bytes(description, stored)
  text = card.render(description, evaluation, about, size=len(content))
  try:
    out.mkdir(parents=True, exist_ok=True)
    temporary = weights.with_name(f".{weights.name}.part")
    temporary.write_bytes(content)
    files.write_text(page, text)
    temporary.replace(weights)
  except OSError as error:
    raise UserError(f"{out}: cannot be written ({error})") from error
  return Written(weights, page, len(content), description)


def describe(
  model: Classifier | Segmenter,
  name: str,
  evaluation: dict[str, Any] | None,
  commands: Sequence[str] = (),
) -> dict[str, Any]:
  """Returns the description of `packed`, all but what half precision changes.

  Folders are left with their last part alone, and patients are named only
  where they are phantoms.

  Args:
    model: of a workdir.
    name: of the model.
    evaluation: metrics.json of the workdir; None without one.
    commands: that made the model.
  """
  config = files.read_json(model.path / "config.json")
  config["data"]["path"] = _last(config["data"]["path"])
  config["init_from"] = _last(config.get("init_from"))
  if masks := config["data"].get("prior", {}).get("masks"):
    config["data"]["prior"]["masks"] = _last(masks)
  dataset = model.dataset | {"path": _last(model.dataset["path"])}
  if dataset.get("source") != "phantom":
    dataset.pop("patient_ids", None)
  calibration = None
  if model.task == "classify" and evaluation is not None:
    calibration = {k: evaluation[k] for k in _CALIBRATION if k in evaluation}
  return {
    "name": name,
    "step": model.step,
    "config": config,
    "dataset": dataset,
    "versions": model.versions,
    "calibration": calibration,
    "commands": list(commands),
  }


def _last(path: str | None) -> str | None:
  return path and pathlib.PurePath(path).name


def _read_evaluation(model: Classifier | Segmenter) -> dict[str, Any] | None:
  """Returns metrics.json of the best checkpoint; None without one."""
  path = model.path / "eval" / "metrics.json"
  if not path.exists():
    return None
  checksums.check(path.parent)
  found = files.read_json(path)
  if found.get("step") != model.step:
    raise UserError(
      f"{path} is an evaluation of step {found.get('step')}, not of step"
      f" {model.step} that is the model; run cadjax.evaluate again"
    )
  return found


def measure_half(
  model: Classifier | Segmenter, stored: dict[str, np.ndarray]
) -> dict[str, Any]:
  """Compares a model with itself as it is stored, on one phantom.

  Args:
    model: in float32.
    stored: of `packed.halve`.

  Returns:
    "volume" (in words); of a classifier "log_odds" and "probability" (of CAD;
    the largest differences, over the slices of a 2D model); of a segmenter
    "probability" (over voxels and classes) and "labels" (the share of voxels
    whose class changes).
  """
  drawn = phantom.make_phantom(
    SEED, label=1, severity=SEVERITY, grid=model.grid
  )
  twin = _with_variables(model, packed.unhalve(stored))
  found = {"volume": f"phantom {SEED}, {SEVERITY}, with CAD"}
  if isinstance(model, Segmenter):
    one, other = (
      # What the network says, before any rule of its config.
      each.segment(drawn.volume.hu, probabilities=True, keep_thin=True)
      for each in (model, twin)
    )
    difference = np.abs(
      one.probabilities.astype(np.float32)
      - other.probabilities.astype(np.float32)
    )
    return found | {
      "probability": float(difference.max()),
      "labels": float((one.labels != other.labels).mean()),
    }
  seen = [drawn.volume.hu[None, ..., None], drawn.tissues[None]]
  one, other = (
    calibration_lib.softmax_margin(each.logits(*seen).astype(np.float64))
    for each in (model, twin)
  )
  probability = scipy.special.expit(one) - scipy.special.expit(other)
  return found | {
    "log_odds": float(np.abs(one - other).max()),
    "probability": float(np.abs(probability).max()),
  }


def _with_variables(
  model: Classifier | Segmenter, variables: dict[str, Any]
) -> Classifier | Segmenter:
  """Returns the same model with other weights and, once made, its program."""
  if isinstance(model, Segmenter):
    model._sliding  # noqa: B018
  else:
    model._eval_step  # noqa: B018
  twin = copy.copy(model)
  vars(twin)["variables"] = variables
  return twin
