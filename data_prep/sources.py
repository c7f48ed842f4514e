"""Names to sources: finds the cases of public CTCA sets and of a user's own."""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any

from data_prep import layouts, matching, medmnist
from data_prep.cases import (
  Case,
  parse_label,
  parse_split,
  problems,
)
from data_prep.errors import UserError
from data_prep.tables import by_id, read_table
from data_prep.tissues import CLASS_NAMES

__all__ = [
  "CLASS_NAMES",
  "Case",
  "SOURCES",
  "find_cases",
  "phantom",
  "problems",
]


def find_cases(
  source: str,
  folder: str | os.PathLike,
  *,
  labels: str | os.PathLike | None = None,
  aorta_masks: str | os.PathLike | None = None,
  given_splits: bool = True,
  split_column: str = "Split-1",
) -> list[Case]:
  """Finds the cases of a source; of "medmnist" alone it reads the images.

  Args:
    source: a name in `SOURCES` other than "phantom".
    folder: where the files are; for "manifest" also the csv itself, for
      "medmnist" the .npz file.
    labels: table with case_id and label, optionally patient_id and split,
      for sources that do not tell them; it wins over what they tell.
    aorta_masks: folder of aorta masks named by case id, `7.nii.gz`,
      `7_aorta.nii.gz` or `7/aorta.nii.gz`.
    given_splits: False forgets the splits that come with the source.
    split_column: of ImageCAS's split table.

  Returns:
    The cases in natural order of their ids.

  Raises:
    UserError: an unknown source, no case, a repeated id, a file that is not
      named as the source names its files, a table with a missing column, an
      unknown value or two values for an id, labels of one class only.
  """
  if source not in SOURCES or source == "phantom":
    raise UserError(
      f"unknown source {source!r}; known are {', '.join(SOURCES)}"
    )
  root = pathlib.Path(folder)
  if not root.exists():
    raise UserError(f"{root}: no such folder or manifest")
  options = {}
  if source == "imagecas" and given_splits:
    options["split_column"] = split_column
  cases = SOURCES[source](root, **options)
  if labels:
    cases = _with_table(cases, pathlib.Path(labels))
  if aorta_masks:
    cases = _with_aorta(cases, pathlib.Path(aorta_masks))
  if not given_splits:
    cases = [dataclasses.replace(case, split=None) for case in cases]
  if not cases:
    raise UserError(f"{root}: no case of {source} found; {LAYOUTS[source]}")
  _check_ids(cases)
  _check_labels(cases, root)
  return sorted(cases, key=lambda case: matching.natural(case.case_id))


def phantom(
  count: int, *, seed: int = 0, cad_fraction: float = 0.5
) -> list[Case]:
  """Returns cases to draw; the i-th has the phantom seed 1000000 seed + i.

  Args:
    count: how many.
    seed: of the set; sets of different seeds share no phantom.
    cad_fraction: share with CAD, spread evenly over the set.

  Raises:
    UserError: a count or a share that cannot be.
  """
  if not 0 < count < 1_000_000 or seed < 0 or not 0 <= cad_fraction <= 1:
    raise UserError(
      f"phantoms need 1 to 999999 cases, a seed of 0 or more and a CAD share"
      f" of 0 to 1, got {count}, {seed} and {cad_fraction:g}"
    )
  cases = []
  for i in range(count):
    number = seed * 1_000_000 + i
    name = f"phantom_{number:04d}"
    label = int((i + 1) * cad_fraction) - int(i * cad_fraction)
    cases.append(Case(name, name, None, label, extra={"seed": number}))
  return cases


SOURCES: dict[str, Callable[..., list[Case]]] = {
  "phantom": phantom,
  "imagecas": layouts.imagecas,
  "imagecas_x": layouts.imagecas_x,
  "asoca": layouts.asoca,
  "mmwhs": layouts.mmwhs,
  "cca": layouts.cca,
  "medmnist": medmnist.cases,
  "manifest": layouts.manifest,
}
# What a folder should look like, for those whose folder does not.
LAYOUTS = {
  "imagecas": "expected 1-200/N.img.nii.gz and N.label.nii.gz",
  "imagecas_x": "expected volumes/N.img.nii.gz and"
  " segmentations/N.coronary.nii.gz, in a split of filelist/ if there is one",
  "asoca": "expected Normal/CTCA/Normal_N.nrrd and Normal/Annotations/",
  "mmwhs": "expected ct_train_N_image.nii.gz and ct_train_N_label.nii.gz",
  "cca": "expected train/images/N.nii.gz and train/labels/N.nii.gz",
  "medmnist": "its arrays are empty",
  "manifest": "manifest.csv has no rows",
}


def _with_table(cases: list[Case], table: pathlib.Path) -> list[Case]:
  """Takes labels, and patient ids and splits if given, from a table."""
  rows = read_table(table, ["case_id", "label"])
  known = {case.case_id for case in cases}
  mine = [row for row in rows if row["case_id"] in known]
  if cases and not mine:
    first = rows[0]["case_id"] if rows else "none"
    raise UserError(
      f"{table}: none of its case_id is that of a case; it has {first}, the"
      f" files have {cases[0].case_id}"
    )
  fields = by_id(((row["case_id"], _fields(row, table)) for row in mine), table)
  return [
    dataclasses.replace(case, **fields.get(case.case_id, {})) for case in cases
  ]


def _fields(row: dict[str, str], table: pathlib.Path) -> dict[str, Any]:
  """Returns what a row of a label table says of a `Case`."""
  fields: dict[str, Any] = {}
  if row.get("label"):
    fields["label"] = parse_label(row["label"], table)
  if row.get("patient_id"):
    fields["patient_id"] = row["patient_id"]
  if row.get("split"):
    fields["split"] = parse_split(row["split"], table)
  return fields


def _with_aorta(cases: list[Case], folder: pathlib.Path) -> list[Case]:
  """Gives each case the aorta mask that carries its id."""
  files = matching.files(folder, matching.EXTENSIONS)
  named = [
    path for path in files if "aorta" in matching.words(matching.stem(path))
  ]
  found: dict[str, pathlib.Path] = {}
  for path in named or files:
    key = matching.file_key(path, ["aorta"])
    if key in found:
      raise UserError(f"two aorta masks for {key}: {found[key]} and {path}")
    found[key] = path
  if not any(case.case_id in found for case in cases):
    raise UserError(
      f"{folder}: no aorta mask carries the id of a case; name them"
      " CASE_ID.nii.gz, CASE_ID_aorta.nii.gz or CASE_ID/aorta.nii.gz"
    )
  return [
    dataclasses.replace(c, aorta_mask=found.get(c.case_id, c.aorta_mask))
    for c in cases
  ]


def _check_ids(cases: list[Case]) -> None:
  seen: dict[str, Case] = {}
  for case in cases:
    other = seen.setdefault(case.case_id, case)
    if other is not case:
      raise UserError(
        f"case id {case.case_id} is given twice, to {other.image} and to"
        f" {case.image}"
      )


def _check_labels(cases: list[Case], root: pathlib.Path) -> None:
  found = {case.label for case in cases} - {None}
  if len(found) == 1:
    only = "cad" if found == {1} else "normal"
    raise UserError(
      f"{root}: every label is {only}; a classifier needs both classes (leave"
      " all labels empty for segmentation alone)"
    )
