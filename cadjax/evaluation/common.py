"""What evaluations of classifiers and of segmenters share: data and files."""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from cadjax import tasks
from cadjax.classification import priors
from cadjax.core import files
from cadjax.core.files import Row, read_rows
from cadjax.data import input_pipeline
from cadjax.training import checkpoint, workdir
from data_prep.errors import UserError

DISCLAIMER = "Research software, not a medical device."
SPLITS = ("test", "validation", "train", "all")
LEAST_DRAWS = 100


def check_settings(split: str, bootstrap: int, batch_size: int | None) -> None:
  """Raises `UserError` for a setting that no evaluation can use."""
  if split not in SPLITS:
    raise UserError(f"--split={split} is none of {', '.join(SPLITS)}")
  if bootstrap < LEAST_DRAWS:
    raise UserError(
      f"--bootstrap={bootstrap} is too few for an interval; use at least"
      f" {LEAST_DRAWS}"
    )
  if batch_size is not None and batch_size < 1:
    raise UserError(f"--batch_size={batch_size} must be at least 1")


def splits_of(split: str, dataset: input_pipeline.Dataset) -> Sequence[str]:
  """Returns the splits that `split` names; UserError if all are empty."""
  named = input_pipeline.SPLITS if split == "all" else (split,)
  if not any(dataset.rows[name] for name in named):
    raise UserError(f"{dataset.path}: the {split} split holds no case")
  return named


def find_own_data(trained: workdir.Trained) -> pathlib.Path:
  """Returns the folder of the data set that a workdir was trained on.

  It is looked for where it was at the training, then where the config says,
  which may be a path relative to the current folder. Workdirs of versions
  before 0.2 remember a relative path: it counts from the current folder and
  from each folder above the workdir, as runs and data mostly lie in one
  project. The fingerprint decides whether it is the same data set.

  Raises:
    UserError: no data set is there, or only another one.
  """
  own = trained.dataset["fingerprint"]
  remembered = trained.dataset["path"]
  others = []
  for found in _places(trained, remembered):
    if (fingerprint := input_pipeline.fingerprint_of(found)) == own:
      return found
    others.append((found, fingerprint))
  if others:
    found, fingerprint = others[0]
    raise UserError(
      f"{found} is not the data that {trained.path} was trained on"
      f" (fingerprint {fingerprint}, not {own}); name the folder where they are"
      " now with --data=DIR, or, if no patient is in both, evaluate on it as"
      f" external data with --data={found}"
    )
  raise UserError(
    f"{trained.path} was trained on the data set {remembered} (fingerprint"
    f" {own}), which is not there; name the folder where it is now with"
    " --data=DIR"
  )


def _places(
  trained: workdir.Trained, remembered: str
) -> Iterator[pathlib.Path]:
  """Yields the data sets that may be the workdir's own, the likeliest first."""
  # Joined to a folder, an absolute path stays as it is.
  folders = (pathlib.Path(), *trained.path.absolute().parents)
  paths = [folder / remembered for folder in folders]
  with contextlib.suppress(UserError):  # None, or several to choose from.
    paths.insert(1, input_pipeline.find_dataset(trained.config.data.path))
  for path in dict.fromkeys(paths):
    if all((path / name).exists() for name in input_pipeline.IDENTITY):
      yield path


def open_data(
  trained: workdir.Trained, data: str | None = None
) -> tuple[input_pipeline.Dataset, bool]:
  """Opens the workdir's own data, or other data on the same grid.

  Returns:
    the data set, and whether it is another one than the workdir's own.

  Raises:
    UserError: the own data has changed or is gone, the other grid differs, or
      the model sees predicted masks, which are of the own data.
  """
  config = ml_collections.ConfigDict(trained.config.to_dict())
  own = trained.dataset["fingerprint"]
  if data is None:
    config.data.path = str(find_own_data(trained))
    return tasks.open_dataset(config), False
  config.data.path = data
  # Fold and subset tell the own patients apart; of the others all are taken.
  whole = config.to_dict()
  whole["data"]["fold"] = None
  whole["data"].pop("subset", None)
  dataset = tasks.open_dataset(ml_collections.ConfigDict(whole))
  if dataset.fingerprint == own:
    return tasks.open_dataset(config), False
  if files.strict(dataset.grid) != trained.dataset["grid"]:
    raise UserError(
      f"{dataset.path} has the grid {files.strict(dataset.grid)}, but"
      f" {trained.path} was trained on {trained.dataset['grid']}; build the"
      " data on that grid"
    )
  if priors.used(config) and config.data.prior.masks:
    raise UserError(
      f"{trained.path} sees the masks in {config.data.prior.masks}, which were"
      f" predicted on its own data; there are none of {dataset.path}"
    )
  return dataset, True


def folder_of(
  path: pathlib.Path, split: str, fingerprint: str, external: bool
) -> pathlib.Path:
  """Returns where the files of an evaluation go."""
  folder = path / "eval"
  if external:
    folder /= f"external_{fingerprint[:8]}"
  return folder if split == "test" else folder / split


def cases_name(split: str, external: bool) -> str:
  """Returns the name of the per-case rows."""
  return f"{'external_' if external else ''}{split}_cases"


def describe(
  trained: workdir.Trained,
  dataset: input_pipeline.Dataset,
  split: str,
  external: bool,
) -> dict[str, Any]:
  """Returns the part of metrics.json that says what was evaluated."""
  source = dataset.metadata.get("source")
  phantom = "Phantom results. " if source == "phantom" else ""
  return {
    "disclaimer": phantom + DISCLAIMER,
    "task": trained.task,
    "workdir": str(trained.path),
    "step": trained.step,
    "split": split,
    "cases": cases_name(split, external),
    "data": {
      "path": str(dataset.path),
      "fingerprint": dataset.fingerprint,
      "source": source,
      "external": external,
    },
    "phantom": source == "phantom",
    "versions": workdir.versions(),
  }


def split_notes(
  trained: workdir.Trained,
  dataset: input_pipeline.Dataset,
  split: str,
  external: bool,
) -> list[str]:
  """Returns what must be said of evaluating on a split."""
  notes = []
  if external:
    notes.append(
      "external validation: other data than the workdir was trained on"
    )
    # Workdirs of older versions do not know their patients.
    seen = set().union(*trained.dataset.get("patient_ids", {}).values())
    here = {
      row["patient_id"]
      for name in splits_of(split, dataset)
      for row in dataset.rows[name]
    }
    if both := sorted(here & seen):
      notes.append(
        f"{len(both)} of {len(here)} patients have the id of one that the model"
        f" was trained or chosen on, such as {both[0]}: if they are the same,"
        " this is no external validation"
      )
    return notes
  if split in ("train", "all"):
    notes.append("these cases include those that the model was trained on")
  if split in ("validation", "all"):
    notes.append("the checkpoint was chosen on validation cases: optimistic")
  return notes


def build_notes(
  against: str, other: Mapping[str, Any], dataset: input_pipeline.Dataset
) -> list[str]:
  """Returns what must be said of a comparison with the result `other`."""
  if other["data"]["fingerprint"] == dataset.fingerprint:
    return []
  return [f"{against} was evaluated on another build of the same patients"]


def read_other(
  trained: workdir.Trained,
  against: str,
  folder: pathlib.Path,
  keys: Sequence[str],
) -> tuple[list[Row], dict[str, Any]]:
  """Reads the evaluation of another workdir on the same split.

  Args:
    trained: the model of this evaluation.
    against: the other workdir.
    folder: where this evaluation goes.
    keys: that every row must have.

  Returns:
    the rows and metrics.json.

  Raises:
    UserError: there is none, or it is of a model of another task or of an
      older step.
  """
  there = pathlib.Path(against) / folder.relative_to(trained.path)
  if not (there / "metrics.json").exists():
    raise UserError(
      f"{there} holds no evaluation; run python -m cadjax.evaluate"
      f" --workdir={against} on the same split and data first"
    )
  result = files.read_json(there / "metrics.json")
  if result.get("task", "classify") != trained.task:
    raise UserError(
      f"{trained.path} and {against} do not do the same: a classifier and a"
      " segmenter cannot be compared"
    )
  if result["step"] != checkpoint.best_step(pathlib.Path(against)):
    raise UserError(
      f"{there} is an evaluation of step {result['step']}, which is no longer"
      f" the model of {against}; run python -m cadjax.evaluate"
      f" --workdir={against} again"
    )
  return read_rows(there / f"{result['cases']}.jsonl", keys), result
