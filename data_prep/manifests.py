"""A manifest.csv for a folder of scans, found by the names in it.

Masks are distinguished from scans by their names, or by their content where
the name does not say.
"""

import collections
import csv
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from data_prep import dicom, matching, volume
from data_prep.cases import LABEL_WORDS
from data_prep.errors import UserError
from data_prep.splits import label_name

NAME = "manifest.csv"
REQUIRED = ("case_id", "patient_id", "image", "label")
OPTIONAL = ("mask", "aorta_mask", "split", "mask_classes")
# Folders with these names hold cases of one class. Numbers and yes or no are
# labels in a table, but as a folder's name they may mean anything.
_LABEL_FOLDERS = {
  word: label
  for word, label in LABEL_WORDS.items()
  if word not in ("0", "1", "no", "none", "yes", "true", "false")
}
_HIDDEN = (".", "__MACOSX")
Row = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Found:
  """What a folder holds.

  Attributes:
    rows: of the manifest, by name of the column; paths relative to the folder.
    left_out: masks that go with no scan.
  """

  rows: list[Row]
  left_out: list[pathlib.Path]


@dataclasses.dataclass(frozen=True)
class _Place:
  """A file or folder of a case: the folders above it and the case's name."""

  path: pathlib.Path
  group: tuple[str, ...]
  name: str

  @property
  def key(self) -> tuple[tuple[str, ...], str]:
    return self.group, self.name


def columns() -> str:
  """Returns the names of a manifest's columns, for messages."""
  return (
    f"{', '.join(REQUIRED)} and, if you have them, {', '.join(OPTIONAL[:-1])}"
    f" or {OPTIONAL[-1]}"
  )


def find(folder: str | os.PathLike) -> Found:
  """Finds the scans and masks below a folder.

  A scan is a file of a known format or a folder of DICOM slices. It has the
  label of the folder `normal` or `cad` (or another word for it) that it lies
  in, else none. Every scan counts as a patient of its own. Masks have a word
  such as `mask`, `seg` or `label` at the end of their name or in that of their
  folder, and the rest of their name in common with the scan.

  Args:
    folder: where to look.

  Raises:
    UserError: there is no such folder, two files have one role in one case, or
      DICOM slices lie outside of a folder of their own.
  """
  root = pathlib.Path(folder)
  if not root.is_dir():
    raise UserError(f"{root}: no such folder")
  places: dict[str, list[_Place]] = collections.defaultdict(list)
  for path in matching.files(root, matching.EXTENSIONS):
    if "__MACOSX" in path.parts:
      continue
    role = _role(path, root)
    name = matching.file_key(path, ["aorta"] if role == "aorta_mask" else ())
    places[role].append(_Place(path, _group(path, root), name))
  scans, left_out = _without_unnamed_masks(places["image"])
  for path in _dicom_folders(root):
    scans.append(_Place(path, _group(path, root), path.name))
  roles = {"image": _by_key(scans, "image")}
  for role in ("mask", "aorta_mask"):
    of_scans = [x for x in places[role] if x.key in roles["image"]]
    roles[role] = _by_key(of_scans, role)
    left_out += [x.path for x in places[role] if x not in of_scans]
  rows = []
  times = collections.Counter(scan.name for scan in scans)
  for scan in sorted(scans, key=lambda x: matching.natural(str(x.path))):
    case_id = scan.name
    if times[case_id] > 1:
      case_id = "_".join([*scan.group, case_id])
    row = {"case_id": case_id, "patient_id": case_id}
    row["label"] = _label(scan.path, root)
    for role, paths in roles.items():
      path = paths.get(scan.key)
      row[role] = path.relative_to(root).as_posix() if path else ""
    rows.append(row)
  return Found(rows, left_out)


def write(rows: Sequence[Row], table: pathlib.Path) -> None:
  """Writes a manifest, whole or not at all.

  Raises:
    UserError: the folder cannot be written to.
  """
  names = [*REQUIRED, *(n for n in OPTIONAL if any(r.get(n) for r in rows))]
  part = table.with_name(f".{table.name}.part")
  try:
    with part.open("w", newline="", encoding="utf-8") as file:
      writer = csv.DictWriter(file, names, extrasaction="ignore")
      writer.writeheader()
      writer.writerows(rows)
    part.replace(table)
  except UnicodeEncodeError as error:
    part.unlink()
    raise UserError(
      f"{table}: a name is not UTF-8: rename {error.object!r}"
    ) from error
  except OSError as error:
    raise UserError(f"{table}: cannot write there: {error}") from error


def write_new(folder: str | os.PathLike) -> list[str]:
  """Writes the manifest of a folder that has none.

  Returns:
    Lines for the user: what was written, and what is to be filled in.

  Raises:
    UserError: a manifest is there, no scan is, or see `find`.
  """
  root = pathlib.Path(folder)
  table = root / NAME
  if table.exists():
    raise UserError(
      f"{table} is there already; leave out --write_manifest, or remove the"
      " file to have it written again"
    )
  found = find(root)
  if not found.rows:
    masks = f"; {_such(found.left_out)} there" if found.left_out else ""
    raise UserError(
      f"{root}: no scan found: neither files ending in"
      f" {', '.join(matching.EXTENSIONS)} nor folders of DICOM slices{masks}"
    )
  write(found.rows, table)
  return _remarks(found, table)


def split_masks(
  paths: Sequence[pathlib.Path],
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
  """Tells masks from scans by their names.

  Args:
    paths: files and folders.

  Returns:
    The paths, in order, without those that are named as the mask of another
    one of them; and these masks.
  """
  roles = {path: _role(path, path.parent.parent) for path in paths}
  scans = {
    matching.file_key(path) for path, role in roles.items() if role == "image"
  }
  masks = [
    path
    for path, role in roles.items()
    if role != "image"
    and matching.file_key(path, ["aorta"] if role == "aorta_mask" else ())
    in scans
  ]
  return [path for path in paths if path not in masks], masks


def _remarks(found: Found, table: pathlib.Path) -> list[str]:
  rows = found.rows
  lines = [f"{table}: written, {len(rows)} scans, each as a patient of its own"]
  if found.left_out:
    lines.append(f"left out: {_such(found.left_out)} without a scan")
  if masks := sum(bool(row["mask"]) for row in rows):
    lines.append(
      f"{masks} have a mask; its labels are read as 1 aorta, 2 lumen, 3 stable"
      " plaque, 4 unstable plaque: empty the column mask where they mean"
      " something else"
    )
  if empty := sum(not row["label"] for row in rows):
    lines.append(
      f"{empty} have no label: write normal or cad into the column label"
      f" of {table}; a classifier learns from labelled scans only"
    )
  lines.append(
    f"give all scans of one patient the same patient_id in {table}, or a"
    " patient may be both trained and tested on"
  )
  return lines


def _such(masks: Sequence[pathlib.Path]) -> str:
  what = "mask" if len(masks) == 1 else "masks"
  return f"{len(masks)} {what} such as {masks[0]}"


def _role(path: pathlib.Path, root: pathlib.Path) -> str:
  """Returns the column that a file belongs to: image, mask or aorta_mask."""
  ends = matching.words(matching.stem(path))[-2:]
  rest = set(ends) - {"aorta"}
  if "aorta" in ends and (ends[-1] == "aorta" or rest <= matching.MASK_WORDS):
    return "aorta_mask"
  return matching.role(path, root)


def _group(path: pathlib.Path, root: pathlib.Path) -> tuple[str, ...]:
  """Returns the folders above a path, but for those that name a role."""
  roles = matching.IMAGE_WORDS | matching.MASK_WORDS
  parts = path.relative_to(root).parts[:-1]
  return tuple(x for x in parts if not roles.issuperset(matching.words(x)))


def _label(path: pathlib.Path, root: pathlib.Path) -> str:
  for part in reversed(path.relative_to(root).parts[:-1]):
    if part.lower() in _LABEL_FOLDERS:
      return label_name(_LABEL_FOLDERS[part.lower()])
  return ""


def _without_unnamed_masks(
  files: Sequence[_Place],
) -> tuple[list[_Place], list[pathlib.Path]]:
  """Tells scans from masks such as `7_lad.nii.gz` beside `7.nii.gz`.

  Only files whose name begins as that of another one are read: of others,
  `check` says so if they are no scans.
  """
  names = {(place.path.parent, matching.stem(place.path)) for place in files}

  def suspect(path: pathlib.Path) -> bool:
    text = matching.stem(path)
    return any(
      (path.parent, text[:i]) in names
      for i, letter in enumerate(text)
      if letter in "._- "
    )

  scans, masks = [], []
  for place in files:
    if suspect(place.path) and volume.is_mask(place.path):
      masks.append(place.path)
    else:
      scans.append(place)
  return scans, masks


def _dicom_folders(root: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields the folders that are scans.

  In a folder for a label these are all the folders in it that hold no file of
  another format; elsewhere those with slices right in them.
  """
  for folder, folders, files in matching.walk(root):
    folders[:] = sorted(f for f in folders if not f.startswith(_HIDDEN))
    of_label = folder.name.lower() in _LABEL_FOLDERS and folder != root
    loose = next(_slices(folder, files), None)
    if loose and (of_label or folder == root):
      # A slice stands for all of its folder: each would become a patient.
      raise UserError(
        f"{loose}: a DICOM file outside of a scan's folder; put the slices of"
        f" each scan in a folder of its own in {folder}"
      )
    if loose:
      yield folder
      folders.clear()
    if of_label:
      scans = [f for f in folders if _is_scan(folder / f)]
      yield from (folder / f for f in scans)
      folders[:] = [f for f in folders if f not in scans]


def _is_scan(folder: pathlib.Path) -> bool:
  return not matching.files(folder, matching.EXTENSIONS)


def _slices(
  folder: pathlib.Path, names: Iterable[str]
) -> Iterator[pathlib.Path]:
  for name in sorted(names):
    path = folder / name
    if name.startswith(_HIDDEN) or name.lower().endswith(matching.EXTENSIONS):
      continue
    # A table that indexes slices is itself DICOM.
    if name.upper() != "DICOMDIR" and (
      path.suffix.lower() == ".dcm" or dicom.is_dicom(path)
    ):
      yield path


def _by_key(
  places: Sequence[_Place], role: str
) -> dict[tuple[tuple[str, ...], str], pathlib.Path]:
  """Returns the file of each case in one role; UserError if there are two."""
  found = {}
  for place in places:
    if other := found.get(place.key):
      raise UserError(
        f"two files for the {role} of case {place.name}: {other} and"
        f" {place.path}; remove or rename one"
      )
    found[place.key] = place.path
  return found
