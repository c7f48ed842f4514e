"""What evaluations of classifiers and of segmenters share: data and files."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from cadjax import tasks
from cadjax.classification import priors
from cadjax.core import files
from cadjax.core.files import Row
from cadjax.data import input_pipeline
from cadjax.report import pages
from cadjax.training import checkpoint, workdir
from data_prep.errors import UserError

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


@dataclasses.dataclass(frozen=True)
class Paths:
  """The folder of an evaluation and the names of its files.

  Rows are NAME.jsonl and NAME.csv in the folder.

  Attributes:
    folder: WORKDIR/eval, or a folder in it; see `paths_of`.
    cases: name of the rows of cases (of a segmenter: of case and class).
    patients: name of a classifier's rows of patients.
    lesions: name of a segmenter's rows of plaque detection.
    validation: name of the rows that temperature and threshold come from.
  """

  folder: pathlib.Path
  cases: str
  patients: str
  lesions: str
  validation: str = "validation_cases"

  @property
  def metrics(self) -> pathlib.Path:
    """The file of all numbers."""
    return self.folder / "metrics.json"

  @property
  def worst(self) -> pathlib.Path:
    """The picture of a segmenter's worst cases."""
    return self.folder / "worst.png"

  @property
  def explain(self) -> pathlib.Path:
    """The folder of the measured explanation maps."""
    return self.folder / "explain"

  def rows(self, name: str) -> pathlib.Path:
    """Returns the file of the rows of that name."""
    return self.folder / f"{name}.jsonl"


def paths_of(
  path: str | pathlib.Path, split: str = "test", external: str | None = None
) -> Paths:
  """Returns where the evaluation of a workdir is written.

  The test split goes to PATH/eval, another one to PATH/eval/SPLIT, and
  external data to PATH/eval/external_FINGERPRINT, likewise by split.

  Args:
    path: the workdir.
    split: of `SPLITS`.
    external: fingerprint of the data, if they are not the workdir's own.
  """
  folder = pathlib.Path(path) / "eval"
  # For external data, "validation" may name both of two sets.
  name = split
  if external:
    folder /= f"external_{external[:8]}"
    name = f"external_{split}"
  return Paths(
    folder=folder if split == "test" else folder / split,
    cases=f"{name}_cases",
    patients=f"{name}_patients",
    lesions=f"{name}_lesions",
  )


def paths_of_result(result: Mapping[str, Any]) -> Paths:
  """Returns where a result was written, which is a metrics.json."""
  data = result["data"]
  return paths_of(
    result["workdir"],
    result["split"],
    data["fingerprint"] if data["external"] else None,
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
  """What is evaluated: a model on a split of a data set.

  Attributes:
    model: the classifier or segmenter.
    dataset: the records.
    split: of `SPLITS`.
    external: whether the data are not the workdir's own.
  """

  model: workdir.Trained
  dataset: input_pipeline.Dataset
  split: str
  external: bool

  @property
  def splits(self) -> Sequence[str]:
    """The splits of the data set that `split` names."""
    return input_pipeline.SPLITS if self.split == "all" else (self.split,)

  @property
  def cases(self) -> list[input_pipeline.CaseRow]:
    """The cases of these splits."""
    return [row for name in self.splits for row in self.dataset.rows[name]]

  @functools.cached_property
  def paths(self) -> Paths:
    """Where the results are written."""
    external = self.dataset.fingerprint if self.external else None
    return paths_of(self.model.path, self.split, external)

  def describe(self) -> dict[str, Any]:
    """Returns the part of metrics.json that says what was evaluated."""
    source = self.dataset.metadata.get("source")
    return {
      "disclaimer": pages.disclaimer(phantom=source == "phantom"),
      "task": self.model.task,
      "workdir": str(self.model.path),
      "step": self.model.step,
      "split": self.split,
      "cases": self.paths.cases,
      "data": {
        "path": str(self.dataset.path),
        "fingerprint": self.dataset.fingerprint,
        "source": source,
        "external": self.external,
      },
      "phantom": source == "phantom",
      "versions": workdir.software().to_dict(),
    }

  def notes(self) -> list[str]:
    """Returns the warnings that belong to results on this split."""
    if self.external:
      return self._external_notes()
    notes = []
    if self.split in ("train", "all"):
      notes.append("these cases include those that the model was trained on")
    if self.split in ("validation", "all"):
      notes.append("the checkpoint was chosen on validation cases: optimistic")
    return notes

  def _external_notes(self) -> list[str]:
    notes = ["external validation: other data than the workdir was trained on"]
    seen = set().union(*self.model.dataset["patient_ids"].values())
    here = {row["patient_id"] for row in self.cases}
    if both := sorted(here & seen):
      notes.append(
        f"{len(both)} of {len(here)} patients have the id of one that the model"
        f" was trained or chosen on, such as {both[0]}: if they are the same,"
        " this is not an external validation"
      )
    return notes

  def read_other(
    self, against: str, keys: Sequence[str]
  ) -> tuple[list[Row], dict[str, Any]]:
    """Reads the evaluation of another workdir on the same split.

    Args:
      against: the other workdir.
      keys: that every row must have.

    Returns:
      the rows and metrics.json.

    Raises:
      UserError: there is none, or it is of a model of another task or of an
        older step.
    """
    external = self.dataset.fingerprint if self.external else None
    there = paths_of(against, self.split, external)
    if not there.metrics.exists():
      raise UserError(
        f"{there.folder} holds no evaluation; run python -m cadjax.evaluate"
        f" --workdir={against} on the same split and data first"
      )
    result = files.read_json(there.metrics)
    if result["task"] != self.model.task:
      raise UserError(
        f"{self.model.path} and {against} do not do the same: a classifier and"
        " a segmenter cannot be compared"
      )
    if result["step"] != checkpoint.best_step(pathlib.Path(against)):
      raise UserError(
        f"{there.folder} is an evaluation of step {result['step']}, which is no"
        f" longer the model of {against}; run python -m cadjax.evaluate"
        f" --workdir={against} again"
      )
    return files.read_rows(there.rows(result["cases"]), keys), result

  def build_notes(self, against: str, other: Mapping[str, Any]) -> list[str]:
    """Returns the warnings of a comparison with the result `other`."""
    if other["data"]["fingerprint"] == self.dataset.fingerprint:
      return []
    return [f"{against} was evaluated on another build of the same patients"]


def open_evaluation(
  model: workdir.Trained, split: str = "test", data: str | None = None
) -> Evaluation:
  """Opens the data that a model is to be evaluated on.

  Args:
    model: the classifier or segmenter.
    split: of `SPLITS`.
    data: a data set to use in place of the one that the workdir names.

  Raises:
    UserError: the data cannot be used, see `open_data`, the split is empty,
      or the model is a file of weights.
  """
  if model.description is not None:
    raise UserError(
      f"{model.path} is a file of weights, and an evaluation is written into"
      " its workdir: evaluate the workdir that it was packed from"
    )
  dataset, external = open_data(model, data)
  found = Evaluation(model, dataset, split, external)
  if not found.cases:
    raise UserError(f"{dataset.path}: the {split} split holds no case")
  return found


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
    return _same_masks(trained, tasks.find(config).open_dataset(config)), False
  config.data.path = data
  # Fold and subset tell the own patients apart; of the others all are taken.
  whole = config.to_dict()
  whole["data"]["fold"] = None
  whole["data"]["subset"] |= {"patients": None, "cad_fraction": None}
  dataset = tasks.find(config).open_dataset(ml_collections.ConfigDict(whole))
  if dataset.fingerprint == own:
    return _same_masks(trained, tasks.find(config).open_dataset(config)), False
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


def _same_masks(
  trained: workdir.Trained, dataset: input_pipeline.Dataset
) -> input_pipeline.Dataset:
  """Returns the data set; UserError if its predicted masks have changed."""
  changed = workdir.other_masks(trained.dataset, dataset.prior_masks)
  if changed:
    raise UserError(
      f"{trained.config.data.prior.masks}: the masks of the split"
      f" {changed[0]} are not those that {trained.path} was trained with"
    )
  return dataset
