"""The layouts of public CTCA sets, and a user's own manifest.

Files are matched by the role that their folder or the end of their name shows
and by the rest of their name, since users rearrange the published layouts.
"""

import collections
import dataclasses
import pathlib
import re
from typing import Any

from data_prep import manifests, matching, streams
from data_prep.cases import (
  AORTA,
  LUMEN,
  SPLIT_WORDS,
  Case,
  parse_label,
  parse_split,
)
from data_prep.errors import UserError
from data_prep.tables import TableError, by_id, column_name, read_table
from data_prep.tissues import CLASS_NAMES, VESSEL_CLASSES


def imagecas(root: pathlib.Path, *, split_column: str = "") -> list[Case]:
  """Finds ImageCAS: `1-200/N.img.nii.gz` and `N.label.nii.gz`.

  Args:
    root: a folder above the files.
    split_column: of a split table under `root`, if there is one; "" to leave
      the table alone.
  """
  cases = [
    _case(k, roles, {1: LUMEN}) for k, roles in matching.pairs(root).items()
  ]
  _check_numbers(cases)
  tables = matching.files(root, (".csv", ".xlsx"), "split")
  if not (tables and split_column):
    return cases
  # The csv numbers the cases as the files do, the xlsx has ids of its own.
  table = min(tables, key=lambda path: path.suffix)
  name = column_name(split_column)
  rows = read_table(table, ["filename", name])
  split_of = by_id(
    ((_key(row["filename"]), parse_split(row[name], table)) for row in rows),
    table,
  )
  return _with_splits(cases, split_of, table)


def imagecas_x(root: pathlib.Path) -> list[Case]:
  """Finds ImageCAS-X: `volumes/`, `segmentations/`, `filelist/`, Descriptors.

  Scans that no list names, or that `exclude.txt` names, are left out.
  """
  segments = dict.fromkeys(range(1, 15), LUMEN)
  cases = [
    _case(k, roles, segments) for k, roles in matching.pairs(root).items()
  ]
  for table in matching.files(root, (".csv", ".xlsx"), "descriptors")[:1]:
    rows = read_table(table, ["scan_id", "disease"])
    label_of = by_id(
      ((_key(r["scan_id"]), parse_label(r["disease"], table)) for r in rows),
      table,
    )
    cases = [
      dataclasses.replace(c, label=label_of.get(c.case_id)) for c in cases
    ]
  lists = [p for p in matching.files(root, (".txt",)) if p.stem in SPLIT_WORDS]
  if not lists:
    _check_numbers(cases)
    return cases
  split_of: dict[str, str] = {}
  for path in lists:
    split = SPLIT_WORDS[path.stem]
    for name in map(_key, _names(path)):
      if split_of.setdefault(name, split) != split:
        raise UserError(
          f"{path}: patient {name} is in two splits, {split_of[name]} and"
          f" {split}"
        )
  excluded = {
    _key(line)
    for path in matching.files(root, (".txt",), "exclude")
    for line in _names(path)
  }
  kept = [c for c in cases if c.case_id in split_of.keys() - excluded]
  return _with_splits(kept, split_of, lists[0])


def asoca(root: pathlib.Path) -> list[Case]:
  """Finds ASOCA: `{Normal,Diseased}/{CTCA,Annotations}/Normal_N.nrrd`.

  The label is that of the nearest folder or of the file's name. The challenge
  layout, `Train/N.nrrd` and `Train_Masks/N.nrrd`, has none: labels then come
  from a table.
  """

  def group(path: pathlib.Path) -> str:
    folders = path.relative_to(root).parts[:-1]
    for part in (matching.stem(path), *reversed(folders)):
      for word in matching.words(part):
        if word in ("normal", "diseased", "disease"):
          return "Normal" if word == "normal" else "Diseased"
    return ""

  cases = []
  for key, roles in matching.pairs(root, group).items():
    group_name, _, number = key.rpartition("/")
    case_id = number
    if group_name and number.isdecimal():
      case_id = f"{group_name}_{number}"
    label = {"Normal": 0, "Diseased": 1}.get(group_name)
    cases.append(_case(case_id, roles, {1: LUMEN}, label=label))
  return cases


def mmwhs(root: pathlib.Path) -> list[Case]:
  """Finds MM-WHS CT: `ct_train_1001_image.nii.gz` and `_label.nii.gz`.

  Its label 820 is the ascending aorta alone, from the valve up to the level of
  the top of the atria: arch and descending aorta count as background.
  """
  # 421 is a known slip for 420 in one of the published masks.
  others = dict.fromkeys((205, 420, 421, 500, 550, 600, 850), 0)
  note = (
    "the mask's aorta is the ascending aorta alone, up to the top of the atria"
  )
  cases = []
  for key, roles in matching.pairs(root).items():
    if not re.fullmatch(r"(ct|mr)_(train|test)_\d+", key.lower()):
      raise _misnamed(roles, key, "of the kind ct_train_1001")
    if key.lower().startswith("mr"):
      continue
    case = _case(
      key,
      roles,
      {820: AORTA} | others,
      patient_id=key.rpartition("_")[2],
    )
    if case.mask:
      case.extra["notes"] = (note,)
    cases.append(case)
  return cases


def cca(root: pathlib.Path) -> list[Case]:
  """Finds CCA: `train/images/N.nii.gz` and `train/labels/N.nii.gz`.

  With folders of more than one split, these are the splits.
  """

  def group(path: pathlib.Path) -> str:
    for part in reversed(path.relative_to(root).parts[:-1]):
      if part.lower() in SPLIT_WORDS:
        return SPLIT_WORDS[part.lower()]
    return ""

  pairs = matching.pairs(root, group)
  names = [key.rpartition("/")[2] for key in pairs]
  several = len({key.rpartition("/")[0] for key in pairs}) > 1
  cases = []
  for key, roles in pairs.items():
    split, _, name = key.rpartition("/")
    case_id = name if names.count(name) == 1 else f"{split}_{name}"
    split = split if several and split else None
    cases.append(_case(case_id, roles, {1: LUMEN}, split=split))
  return cases


def manifest(root: pathlib.Path) -> list[Case]:
  """Reads a user's `manifest.csv`.

  Columns: `manifests.REQUIRED`, optionally those of `manifests.OPTIONAL`:
  mask, aorta_mask, split and mask_classes (those of `CLASS_NAMES` that the mask
  annotates, separated by spaces; those of vessels and plaque if empty). Paths
  are relative to the csv. A mask holds indices of `CLASS_NAMES`, of vessels and
  plaque or of a class that the column names. An empty label means unknown.
  """
  table = root / manifests.NAME if root.is_dir() else root
  if table == root and root.name.lower().endswith(matching.EXTENSIONS):
    raise UserError(
      f"{root}: is a scan; --input is the folder of scans, or its manifest.csv"
    )
  try:
    rows = read_table(table, manifests.REQUIRED)
  except TableError as error:
    raise UserError(
      f"{error}; a manifest has the columns {manifests.columns()}: python -m"
      f" data_prep.check --write_manifest --input={table.parent} writes one for"
      " a folder that has none"
    ) from error
  cases = []
  for number, row in enumerate(rows, start=2):
    for name in ("case_id", "patient_id", "image"):
      if not row[name]:
        raise UserError(f"{table} row {number}: {name} is empty")
    paths = {
      name: table.parent / row[name] if row.get(name) else None
      for name in ("image", "mask", "aorta_mask")
    }
    split = row.get("split")
    known = _known(row.get("mask_classes", ""), table)
    cases.append(
      Case(
        case_id=row["case_id"],
        patient_id=row["patient_id"],
        label=parse_label(row["label"], f"{table} row {number}"),
        split=parse_split(split, f"{table} row {number}") if split else None,
        extra={
          "mask_classes": {i: i for i in {*range(len(VESSEL_CLASSES)), *known}},
          "known": known,
        },
        **paths,
      )
    )
  return cases


def _check_numbers(cases: list[Case]) -> None:
  """Refuses a file beside images and masks, such as `3.vessel.nii.gz`.

  It would pass for the image of one more case, and of one more patient. Cases
  of ImageCAS are numbers; users put the same words in front of all of them.
  """
  words = {case.case_id: case.case_id.rstrip("0123456789") for case in cases}
  numbered = [text for key, text in words.items() if text != key]
  usual = collections.Counter(numbered).most_common(1)
  for case in cases:
    text = words[case.case_id]
    if text == case.case_id or text != usual[0][0]:
      roles = {"image": case.image, "mask": case.mask}
      raise _misnamed(roles, case.case_id, "a number as that of other cases")


def _misnamed(
  roles: dict[str, pathlib.Path | None], key: str, expected: str
) -> UserError:
  path = next(path for path in roles.values() if path)
  return UserError(
    f"{path}: what its name leaves for the case, {key!r}, is not {expected};"
    " rename it, or move it elsewhere if it is neither image nor mask"
  )


def _names(path: pathlib.Path) -> list[str]:
  """Returns the words of a text file."""
  if not streams.is_file(path):
    raise UserError(f"{path}: no file that can be read")
  try:
    return path.read_text("utf-8").split()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f"{path}: cannot be read: {error}") from error


def _key(text: str) -> str:
  """Returns the case id in a line such as `volumes/7.img.nii.gz` or `7`."""
  return matching.file_key(pathlib.Path(text))


def _known(text: str, table: pathlib.Path) -> tuple[int, ...]:
  names = text.replace(",", " ").split() or VESSEL_CLASSES[1:]
  unknown = sorted(set(names) - set(CLASS_NAMES))
  if unknown:
    raise UserError(
      f"{table}: unknown mask class {unknown[0]!r}; known are"
      f" {', '.join(CLASS_NAMES)}"
    )
  return tuple(CLASS_NAMES.index(name) for name in names)


def _case(
  key: str,
  roles: dict[str, pathlib.Path],
  mask_classes: dict[int, int],
  *,
  patient_id: str | None = None,
  **fields: Any,
) -> Case:
  known = tuple(sorted(set(mask_classes.values()) - {0}))
  return Case(
    key,
    patient_id or key,
    roles.get("image"),
    mask=roles.get("mask"),
    extra={"mask_classes": mask_classes, "known": known},
    **fields,
  )


def _with_splits(
  cases: list[Case], split_of: dict[str, str], table: pathlib.Path
) -> list[Case]:
  known = [case for case in cases if case.case_id in split_of]
  if cases and len(known) < len(cases):
    lost = next(c for c in cases if c.case_id not in split_of)
    raise UserError(
      f"{table}: has no row for case {lost.case_id} (its first id is"
      f" {next(iter(split_of), 'none')}); use a table with the ids of the"
      " files, or --nogiven_splits to draw splits"
    )
  return [
    dataclasses.replace(case, split=split_of[case.case_id]) for case in known
  ]
