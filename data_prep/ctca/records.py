"""One case to one record of the data set."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_prep import geometry, medmnist, phantom, plausibility, splits
from data_prep.cases import AORTA, Case, problems
from data_prep.errors import UserError
from data_prep.geometry import GridSpec
from data_prep.tissues import CLASS_NAMES
from data_prep.volume import (
  Grid,
  Volume,
  check_same_grid,
  read_mask,
  read_volume,
)


@dataclasses.dataclass(frozen=True)
class Job:
  """A case with its place in the data set.

  Attributes:
    case: what to read or to draw.
    split: "train", "validation" or "test".
    fold: cross-validation fold of the patient.
  """

  case: Case
  split: str
  fold: int


@dataclasses.dataclass(frozen=True)
class Recipe:
  """What all records of a data set share.

  Attributes:
    grid: the target grid.
    severity: of the phantom, "clinical" or "overt".
    has_mask: whether records hold a mask.
    scanner: replaces values of `phantom.population.draw_scanner`.
    population: replaces values of `phantom.population.draw_patient`.
  """

  grid: GridSpec
  severity: str
  has_mask: bool
  scanner: dict[str, Any] = dataclasses.field(default_factory=dict)
  population: dict[str, Any] = dataclasses.field(default_factory=dict)


def plan(
  cases: Sequence[Case],
  *,
  fractions: Sequence[float] = splits.PAPER_FRACTIONS,
  num_folds: int = 5,
  seed: int = 0,
) -> list[Job]:
  """Gives every case its split and fold, in order of split.

  Splits that came with the data are kept, others are drawn.

  Args:
    cases: with all splits given, or none.
    fractions: see `splits.assign_splits`.
    num_folds: see `splits.assign_folds`.
    seed: of the draws.

  Raises:
    UserError: no case, none with a label or a mask, splits given for some only,
      or splits that cannot be.
  """
  if not cases:
    raise UserError("there is no case to build from")
  if not any(map(_can_teach, cases)):
    raise UserError(
      f"none of {len(cases)} cases has a label or a mask: there is nothing to"
      " train on; write normal or cad into the column label of the"
      " manifest, or give --labels=TABLE (columns case_id, label)"
    )
  patients = [case.patient_id for case in cases]
  labels = [-1 if case.label is None else case.label for case in cases]
  given = [case.split for case in cases]
  if not any(given):
    given = splits.assign_splits(
      patients, labels, fractions=fractions, seed=seed
    )
  elif not all(given):
    raise UserError(
      f"case {cases[given.index(None)].case_id} has no split while others"
      " have; give one to all cases or to none"
    )
  else:
    # The test volumes of a public benchmark may be kept elsewhere.
    whole = not any("voxels" in case.extra for case in cases)
    splits.check_splits(patients, labels, given, whole=whole)
  folds = splits.assign_folds(
    patients, labels, given, num_folds=num_folds, seed=seed
  )
  jobs = [Job(c, s, f) for c, s, f in zip(cases, given, folds, strict=True)]
  return sorted(jobs, key=lambda job: splits.SPLITS.index(job.split))


def _can_teach(case: Case) -> bool:
  masks = case.mask or case.aorta_mask
  return case.label is not None or masks is not None or "seed" in case.extra


def read_scan(case: Case) -> Volume:
  """Reads the image of a case.

  Raises:
    UserError: it cannot be read.
  """
  if "voxels" in case.extra:
    return medmnist.volume(case)
  return read_volume(case.image)


def remarks(case: Case, scan: Volume) -> list[str]:
  """Returns what to report about the scan of a case."""
  # Voxels that come with the case are no HU: nothing is implausible there.
  found = scan.notes if "voxels" in case.extra else plausibility.remarks(scan)
  return [*found, *case.extra.get("notes", ())]


def read_classes(
  case: Case, volume: Volume
) -> tuple[Volume | None, np.ndarray]:
  """Reads the masks of a case as classes of `CLASS_NAMES`.

  Args:
    case: with neither, one or both of mask and aorta mask.
    volume: the scan, on whose grid the masks must lie.

  Returns:
    uint8 classes, None without a mask; and uint8 [classes], 1 for each class
    that the masks annotate.

  Raises:
    UserError: a mask is unreadable, lies on another grid or has a label that
      the source does not define.
  """
  known = np.zeros(len(CLASS_NAMES), np.uint8)
  classes = None
  if case.mask is not None:
    mask = read_mask(case.mask)
    check_same_grid(volume, mask)
    classes = _to_classes(mask, case.extra["mask_classes"])
    known[[0, *case.extra["known"]]] = 1
  if case.aorta_mask is not None:
    aorta = read_mask(case.aorta_mask)
    check_same_grid(volume, aorta)
    classes = _add_aorta(classes, aorta)
    known[[0, AORTA]] = 1
  if classes is None:
    return None, known
  path = str(case.mask or case.aorta_mask)
  return Volume(classes, volume.grid, volume.stored, path), known


def _to_classes(mask: Volume, mapping: dict[int, int]) -> np.ndarray:
  """Translates a source's label values to class numbers."""
  present = np.flatnonzero(np.bincount(mask.hu.ravel()))
  unknown = [int(v) for v in present if v and v not in mapping]
  if unknown:
    raise UserError(
      f"{mask.path}: unknown mask label(s) {unknown[:5]}; this source defines"
      f" {sorted(mapping)}"
    )
  table = np.zeros(max(int(mask.hu.max()), *mapping) + 1, np.uint8)
  table[list(mapping)] = list(mapping.values())
  return table[mask.hu]


def _add_aorta(classes: np.ndarray | None, aorta: Volume) -> np.ndarray:
  """Adds the aorta where no other class is."""
  values = np.flatnonzero(np.bincount(aorta.hu.ravel()))
  values = values[values > 0]
  if len(values) > 1:
    raise UserError(
      f"{aorta.path}: has {len(values)} labels; an aorta mask has one, so"
      " extract the aorta into a file of its own"
    )
  if classes is None:
    classes = np.zeros(aorta.shape, np.uint8)
  return np.where((classes == 0) & (aorta.hu > 0), np.uint8(AORTA), classes)


def make_record(
  job: Job, recipe: Recipe
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
  """Reads or draws one case and lays it on the target grid.

  Args:
    job: the case, its split and fold.
    recipe: of the data set.

  Returns:
    The example as the TFDS features want it, its row of cases.csv but for
    split and index, and what to report about the scan.

  Raises:
    UserError: the case is unusable.
  """
  case = job.case
  if "seed" in case.extra:
    drawn = phantom.make_phantom(
      case.extra["seed"],
      label=case.label,
      severity=recipe.severity,
      grid=recipe.grid,
      scanner=recipe.scanner,
      population=recipe.population,
    )
    volume, mask, source = drawn.volume, drawn.tissues, drawn.volume.grid
    known = np.ones(len(CLASS_NAMES), np.uint8)
    lesions, cad_rads, notes = drawn.lesions, drawn.cad_rads, []
  else:
    if missing := problems(case):
      raise UserError(missing[0])
    scan = read_scan(case)
    classes, known = read_classes(case, scan)
    volume = geometry.to_grid(scan, recipe.grid, threads=1)
    mask, source = None, scan.grid
    if classes is not None:
      mask = geometry.mask_to_grid(classes, volume.grid, threads=1)
    lesions, cad_rads = [], ""
    notes = remarks(case, scan)
  label = -1 if case.label is None else case.label
  example = _example(volume, mask, source, recipe.has_mask) | {
    "label": label,
    "case_id": case.case_id,
    "patient_id": case.patient_id,
    "fold": job.fold,
    "mask_classes": known,
    "lesions": json.dumps(lesions, default=_plain),
  }
  row = {
    "case_id": case.case_id,
    "patient_id": case.patient_id,
    "label": label,
    "fold": job.fold,
    "cad_rads": cad_rads,
  }
  # Described on the target grid: there alone do phantoms and scans compare.
  return example, row | plausibility.describe(volume), notes


def _example(
  volume: Volume, mask: np.ndarray | None, source: Grid, has_mask: bool
) -> dict[str, Any]:
  example = {
    "image": np.ascontiguousarray(volume.hu, np.int16),
    "spacing": np.array(volume.spacing, np.float32),
    "grid_affine": volume.affine,
    "source_shape": np.array(source.shape, np.int64),
    "source_affine": source.affine,
  }
  if has_mask:
    if mask is None:
      mask = np.zeros(volume.shape, np.uint8)
    example["mask"] = np.ascontiguousarray(mask, np.uint8)
  return example


def _plain(value: Any) -> Any:
  """Makes numpy scalars and arrays JSON-able."""
  return np.asarray(value).tolist()
