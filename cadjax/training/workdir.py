"""What a training run leaves behind, and how the other programs read it."""

import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

import cadjax
import data_prep
from cadjax import __version__
from cadjax.core import files
from cadjax.core.files import read_json
from cadjax.data import scans
from cadjax.data.input_pipeline import Dataset
from cadjax.models import resnet
from cadjax.training import checkpoint, packed
from cadjax.training.task import task_of
from data_prep import checksums, geometry
from data_prep.errors import UserError

# Where a run may differ from the one it resumes; those of the model compute
# the same network in other ways.
FREE_KEYS = (
  *("data.path", "log_every", "checkpoint_every"),
  *(f"model.{name}" for name in resnet.WAYS),
)
# What tells which model the weights are of.
DESCRIPTION = ("config.json", "dataset.json", "versions.json")


@dataclasses.dataclass(frozen=True)
class Trained:
  """A trained classifier or segmenter.

  Attributes:
    path: the workdir, or the file of weights.
    config: the config that it was trained with; on a CPU it computes in
      float32 whatever it was trained in.
    dataset: dataset.json: grid recipe, training ranges, fingerprint, counts.
    step: the step of the best checkpoint.
    variables: {"params", "batch_stats"} of that checkpoint.
    description: of a file of weights, see `packed`; None for a workdir.
  """

  path: pathlib.Path
  config: ml_collections.ConfigDict
  dataset: dict[str, Any]
  step: int
  variables: dict[str, Any]
  description: dict[str, Any] | None = None

  @property
  def task(self) -> str:
    """What it was trained for: "classify" or "segment"."""
    return task_of(self.config)

  @property
  def window_hu(self) -> tuple[float, float]:
    """The HU that become 0 and 1 in the model's input."""
    return tuple(self.config.data.window_hu)

  @property
  def grid(self) -> geometry.GridSpec:
    """The recipe of the grid that it was trained on."""
    return geometry.GridSpec.from_dict(self.dataset["grid"])

  def prepare(self, scan: scans.Scan) -> scans.Prepared:
    """Lays a scan on the model's grid.

    Args:
      scan: of `scans.read_scan`.

    Raises:
      UserError: the scan cannot be laid on the grid.
    """
    return scans.prepare_scan(scan, self.grid, self.reference)

  @property
  def reference(self) -> dict[str, list[float]]:
    """{feature: [low, high]} of the training cases, see `feature_ranges`."""
    return self.dataset.get("reference") or {}

  @property
  def name(self) -> str:
    """The base name of the workdir, or of the file without its suffix."""
    name = self.path.resolve().name
    return name if self.description is None else pathlib.Path(name).stem

  @property
  def versions(self) -> dict[str, Any]:
    """The versions of the training run, as `Software.to_dict`."""
    if self.description is not None:
      return self.description["versions"]
    return files.read_json(self.path / "versions.json")


def load_trained(path: str | pathlib.Path, task: str | None = None) -> Trained:
  """Loads the best checkpoint of a workdir, or a file of weights.

  Args:
    path: the workdir, a file that `cadjax weights` wrote, or the name of a
      model that comes with cadjax.
    task: "classify" or "segment" where only such a model will do.

  Raises:
    UserError: if there is no such workdir or file, no model in it or one of
      another task.
  """
  place = packed.locate(path)
  if packed.is_packed(place):
    found = packed.read(place)
    about = found.description
    config = _read_config(place, about["config"], task)
    return Trained(
      path=place,
      config=config,
      dataset=about["dataset"],
      step=about["step"],
      variables=found.variables,
      description=about,
    )
  for name in ("config.json", "dataset.json"):
    if not (place / name).exists():
      raise UserError(
        f"{place} is not a workdir of cadjax.main: {name} is missing"
      )
  checkpoint.check_workdir(place)
  config = _read_config(place, read_json(place / "config.json"), task)
  dataset = read_json(place / "dataset.json")
  step, variables = checkpoint.restore_best(place)
  return Trained(place, config, dataset, step, variables)


def _read_config(
  place: pathlib.Path, values: dict[str, Any], task: str | None
) -> ml_collections.ConfigDict:
  """Returns the config of a trained model; UserError if of another task."""
  config = ml_collections.ConfigDict(values)
  found = task_of(config)
  if task not in (None, found):
    kinds = {"classify": "classifier", "segment": "segmenter"}
    raise UserError(
      f"{place} is a {kinds[found]}; here a {kinds[task]} is needed"
    )
  if jax.default_backend() == "cpu":
    # What an accelerator trained in bfloat16 is slow and coarse here.
    config.model.dtype = "float32"
  return config


def feature_ranges(dataset: Dataset) -> dict[str, list[float]]:
  """The range of each intensity feature over the training cases.

  Returns:
    {feature: [lowest, highest]} for the columns that
    `data_prep.plausibility.describe` gave the builder.
  """
  known = {"split", "stored", "index", "case_id", "patient_id", "label"}
  known |= {"fold", "cad_rads"}
  rows = dataset.rows["train"]
  ranges = {}
  for name in (k for k in rows[0] if k not in known):
    try:
      values = np.array([float(row[name]) for row in rows])
    except ValueError:
      continue
    if np.isfinite(values).any():
      ranges[name] = [float(np.nanmin(values)), float(np.nanmax(values))]
  return ranges


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
  """The contents of dataset.json."""
  patients = {
    split: sorted({row["patient_id"] for row in rows})
    for split, rows in dataset.rows.items()
  }
  return {
    # Absolute: the workdir may be read from another folder.
    "path": str(dataset.path.absolute()),
    "fingerprint": dataset.fingerprint,
    "source": dataset.metadata.get("source"),
    "metadata": dict(dataset.metadata),
    "grid": dataset.grid,
    "cases": {split: len(rows) for split, rows in dataset.rows.items()},
    "patients": {split: len(ids) for split, ids in patients.items()},
    # Whom an external validation must not know.
    "patient_ids": {
      split: patients[split] for split in ("train", "validation")
    },
    "reference": feature_ranges(dataset),
    "prior_masks": dict(dataset.prior_masks),
  }


def other_masks(
  there: dict[str, Any], masks: Mapping[str, str | None]
) -> list[str]:
  """Returns the splits whose predicted masks are others than at the training.

  Args:
    there: dataset.json; that of an older version does not say.
    masks: `Dataset.prior_masks`; None where they are not there.
  """
  known = there.get("prior_masks") or {}
  return [
    split
    for split, found in masks.items()
    if found and known.get(split) and found != known[split]
  ]


def _git_hash() -> str | None:
  """The commit of this checkout; None for an installed wheel."""
  here = pathlib.Path(__file__).parent
  command = ["git", "-C", str(here), "describe", "--always", "--dirty"]
  try:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()


@dataclasses.dataclass(frozen=True)
class Software:
  """What computed a result.

  Attributes:
    cadjax: the version.
    git: the commit of the checkout; None for an installed wheel.
    python: the version.
    packages: versions of the packages that compute, by name.
    devices: the kinds of the devices, one for each.
  """

  cadjax: str
  git: str | None
  python: str
  packages: dict[str, str]
  devices: tuple[str, ...]

  def to_dict(self) -> dict[str, Any]:
    """Returns one flat JSON object, the packages by their names."""
    return {
      "cadjax": self.cadjax,
      "git": self.git,
      "python": self.python,
      **self.packages,
      "devices": list(self.devices),
    }


def software() -> Software:
  """Returns the versions of what computes here, the commit and the devices."""
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
  return Software(
    cadjax=__version__,
    git=_git_hash(),
    python=platform.python_version(),
    packages={name: importlib.metadata.version(name) for name in packages},
    devices=tuple(str(d.device_kind) for d in jax.devices()),
  )


def code_digest() -> str:
  """Returns a SHA-256 of the Python files of cadjax and data_prep.

  Tells changes apart that `software` cannot: of a checkout with changes, and
  of an installation that was edited.
  """
  roots = [pathlib.Path(p.__file__).parent for p in (cadjax, data_prep)]
  return checksums.of_json(
    {
      f"{root.name}/{path.relative_to(root)}": checksums.of_file(path)
      for root in roots
      for path in sorted(root.rglob("*.py"))
    }
  )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
  # An augmentation with nothing but its defaults is an empty field of a field.
  if not isinstance(tree, dict) or (not tree and "." in prefix):
    return {prefix: tree}
  flat = {}
  for key, value in tree.items():
    flat |= _flat(value, f"{prefix}.{key}" if prefix else key)
  return flat


def prepare(
  workdir: pathlib.Path, config: ml_collections.ConfigDict, dataset: Dataset
) -> None:
  """Writes what identifies a run, or checks it against what is there.

  A workdir without a checkpoint is one of a run that failed at its start; it
  is written anew, so that the corrected command needs no other one.

  Raises:
    UserError: if the workdir was made with another config or other data; the
      message shows the difference.
  """
  wanted = json.loads(json.dumps(config.to_dict()))
  data = json.loads(json.dumps(describe_dataset(dataset)))
  checkpoint.check_kinds(workdir)
  if (workdir / "config.json").exists() and not checkpoint.is_empty(workdir):
    checkpoint.check_workdir(workdir)
    # Runs from before there were segmenters do not say their task.
    old = {"task": "classify"} | _flat(read_json(workdir / "config.json"))
    new = {"task": "classify"} | _flat(wanted)
    changes = [
      f"config.{key}: {old.get(key)!r} there, {new.get(key)!r} now"
      for key in sorted(old.keys() | new.keys())
      if old.get(key) != new.get(key) and key not in FREE_KEYS
    ]
    there = read_json(workdir / "dataset.json")
    if there["fingerprint"] != data["fingerprint"]:
      changes.append(
        f"data: {there['path']} ({there['fingerprint']}) there,"
        f" {data['path']} ({data['fingerprint']}) now"
      )
    changes += [
      f"data.prior.masks: the predicted masks of the split {split} are others"
      for split in other_masks(there, dataset.prior_masks)
    ]
    if changes:
      raise UserError(
        f"{workdir} was made with another config or other data:"
        f" {'; '.join(changes)}. Use another --workdir"
      )
    return
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f"--workdir={workdir} is a file")
  workdir.mkdir(parents=True, exist_ok=True)
  for name, value in zip(
    DESCRIPTION, (wanted, data, software().to_dict()), strict=True
  ):
    files.write_json(workdir / name, value)
  seal(workdir)


def seal(workdir: pathlib.Path) -> None:
  """Writes the checksums of the files that describe a workdir."""
  checksums.write(workdir, DESCRIPTION)


def finish(workdir: pathlib.Path, step: int, meta: dict[str, Any]) -> None:
  """Writes that training came to its end, and how."""
  files.write_json(workdir / "finished.json", {"step": step} | meta)


def is_finished(workdir: pathlib.Path) -> bool:
  """Tells whether training came to its end, and was not interrupted."""
  return (workdir / "finished.json").exists()


@dataclasses.dataclass(frozen=True)
class TrainingData:
  """The data that a model was trained on.

  Attributes:
    source: of `data_prep.sources`; None where not known.
    is_phantom: whether they are phantoms.
    cases: by split; None where not known.
    patients: by split; None where not known.
    fingerprint: of the records.
  """

  source: str | None
  is_phantom: bool
  cases: dict[str, int] | None
  patients: dict[str, int] | None
  fingerprint: str


@dataclasses.dataclass(frozen=True)
class ModelCard:
  """What a result says about the model that made it.

  Attributes:
    workdir: the base name of the workdir or the file of weights.
    step: of the best checkpoint.
    model: name, ndim, and depth or features.
    trained_on: the training data.
    grid: the recipe of its grid, see `geometry.GridSpec`.
    window_hu: the HU that become 0 and 1 in its input.
    versions: of the training run, as `Software.to_dict`.
  """

  workdir: str
  step: int
  model: dict[str, Any]
  trained_on: TrainingData
  grid: dict[str, Any]
  window_hu: tuple[float, float]
  versions: dict[str, Any]


def describe_model(trained: Trained) -> ModelCard:
  """Returns the card of a trained model."""
  dataset = trained.dataset
  model = trained.config.model
  source = dataset.get("source")
  fields = ("name", "ndim", "depth", "features")
  return ModelCard(
    workdir=trained.name,
    step=trained.step,
    model={name: model[name] for name in fields if name in model},
    trained_on=TrainingData(
      source=source,
      is_phantom=source == "phantom",
      cases=dataset.get("cases"),
      patients=dataset.get("patients"),
      fingerprint=dataset["fingerprint"],
    ),
    grid=dataset["grid"],
    window_hu=trained.window_hu,
    versions=trained.versions,
  )
