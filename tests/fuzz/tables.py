"""Tables and the layouts of folders: manifests, labels, splits, file names."""

import io
import pathlib
import zipfile

import numpy as np

from fuzz import mutations
from fuzz.mutations import Rng, pick
from fuzz.scans import draw_hu
from fuzz.target import (
  NOTHING,
  Damage,
  Found,
  Refused,
  Target,
  digest,
  files_below,
  rename,
  said,
)

CASES = 4
SHAPE = (6, 16, 18)


def write_scans(folder: pathlib.Path, count: int) -> None:
  """Writes scans with masks, and their manifest.csv."""
  from data_prep import manifests, volume

  grid = volume.Grid(SHAPE, (2.5, 0.7, 0.9), (0, 0, 0), np.eye(3)[:, ::-1])
  rows = []
  for number in range(count):
    name = f"case{number}"
    mask = np.zeros(SHAPE, np.uint8)
    mask[1:3, 4:9, 5:11] = 1 + number % 2
    volume.write_nifti(folder / f"{name}.nii", draw_hu(SHAPE), grid)
    volume.write_nifti(folder / f"{name}_mask.nii", mask, grid)
    rows.append(
      {
        "case_id": name,
        "patient_id": f"p{number // 2}" if count > 6 else f"p{number}",
        "image": f"{name}.nii",
        "label": ("normal", "cad")[number // 2 % 2],
        "mask": f"{name}_mask.nii",
        "mask_classes": "aorta lumen",
      }
    )
  manifests.write(rows, folder / manifests.NAME)


def _cases(cases, *roots: pathlib.Path) -> Found:
  text = repr(cases)
  # The longest first: a folder may have been renamed.
  for root in roots:
    text = text.replace(str(root), "ROOT")
  return Found({"cases": digest(text)})


class Manifest(Target):
  """A manifest.csv and its scans, read as `cadjax check` reads them."""

  name = "manifest.csv"
  parts = ("cases", "reports")

  def make(self, folder: pathlib.Path) -> str:
    write_scans(folder, CASES)
    return "manifest.csv"

  def read(self, folder: pathlib.Path, entry: str) -> Found:
    from data_prep import check, sources

    cases = sources.find_cases("manifest", folder / entry)
    reports = check.check(cases, num_workers=1)
    lines = check.table(reports).splitlines()
    if problems := [line for line in lines if line.startswith("problem: ")]:
      raise Refused(f"error: {problems[0]}")
    text = repr(reports).replace(str(folder), "ROOT")
    words = [text for report in reports for text in report["notes"]]
    return Found(
      {"reports": digest(text)} | _cases(cases, folder).parts, said(words)
    )

  def damage(self, rng: Rng, folder: pathlib.Path, entry: str) -> Damage:
    path, draw = folder / entry, rng.random()
    if draw < 0.05:
      return rename(rng, folder, entry)
    if draw < 0.1:
      kind = mutations.replace_path(rng, path)
      return Damage(f"{entry} became {kind}", entry, self.all)
    if draw < 0.2:
      one = pick(rng, sorted(folder.glob("*.nii")))
      kind = mutations.replace_path(rng, one)
      return Damage(f"{one.name} became {kind}", entry, self.all)
    change = mutations.damage_csv if draw < 0.85 else mutations.damage_bytes
    changed, what = change(rng, path.read_bytes())
    path.write_bytes(changed)
    return Damage(what, entry)


class Labels(Target):
  """A table of labels beside a manifest."""

  parts = ("cases",)

  def __init__(self, ending: str):
    self.name = f"labels{ending}"

  def make(self, folder: pathlib.Path) -> str:
    rows = [["Case ID", "Label", "split", "patient_id"]]
    splits = ("train", "val", "test", "train")
    rows += [
      [f"case{i}", ("normal", "1")[i % 2], split, f"p{i}"]
      for i, split in enumerate(splits)
    ]
    lines = [",".join(row) for row in rows]
    manifest = [f"case{i},p{i},case{i}.nii," for i in range(CASES)]
    (folder / "manifest.csv").write_text(
      "\n".join(["case_id,patient_id,image,label", *manifest, ""])
    )
    if self.name.endswith(".csv"):
      (folder / self.name).write_text("\n".join([*lines, ""]))
    else:
      (folder / self.name).write_bytes(workbook(rows))
    return self.name

  def read(self, folder: pathlib.Path, entry: str) -> Found:
    from data_prep import sources

    return _cases(
      sources.find_cases("manifest", folder, labels=folder / entry), folder
    )

  def damage(self, rng: Rng, folder: pathlib.Path, entry: str) -> Damage:
    path, draw = folder / entry, rng.random()
    if draw < 0.05:
      return rename(rng, folder, entry)
    if draw < 0.1:
      kind = mutations.replace_path(rng, path)
      return Damage(f"{entry} became {kind}", entry, self.all)
    data = path.read_bytes()
    guarded = NOTHING
    if self.name.endswith(".csv"):
      change = mutations.damage_csv if draw < 0.8 else mutations.damage_bytes
      changed, what = change(rng, data)
    elif draw < 0.5:
      changed, what = _damage_workbook(rng, data)
    else:
      changed, what = mutations.damage_bytes(rng, data)
      guarded = self.all
    path.write_bytes(changed)
    return Damage(what, entry, guarded)


_SHEET = "xl/worksheets/sheet1.xml"
_STRINGS = "xl/sharedStrings.xml"


def workbook(rows) -> bytes:
  """Returns an .xlsx file: shared strings, and numbers as spreadsheets do."""
  words = sorted({cell for row in rows for cell in row if not cell.isdigit()})
  lines = []
  for number, row in enumerate(rows, start=1):
    cells = [
      f'<c r="{letter}{number}"><v>{cell}.0</v></c>'
      if cell.isdigit()
      else f'<c r="{letter}{number}" t="s"><v>{words.index(cell)}</v></c>'
      for letter, cell in zip("ABCDEFG", row, strict=False)
    ]
    lines.append(f'<row r="{number}">{"".join(cells)}</row>')
  space = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
  shared = "".join(f"<si><t>{word}</t></si>" for word in words)
  return _packed(
    {
      _STRINGS: f"<sst {space}>{shared}</sst>".encode(),
      _SHEET: (
        f"<worksheet {space}><sheetData>{''.join(lines)}</sheetData>"
        "</worksheet>"
      ).encode(),
    }
  )


def _packed(members: dict[str, bytes]) -> bytes:
  found = io.BytesIO()
  with zipfile.ZipFile(found, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, data in members.items():
      # Without the time of today: the same seed is to give the same bytes.
      archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
  return found.getvalue()


_BOMB = (
  b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
  + b"".join(
    b'<!ENTITY %c "%s">' % (98 + i, b"&%c;" % (97 + i) * 20) for i in range(8)
  )
  + b"]>"
)
_REFERENCES = ("ZZZZZZ1", "A", "", "1", "ÄÖ1", "a1", "AAAA1", "XFE1", "-1")


def _damage_workbook(rng, data) -> tuple[bytes, str]:
  """Changes the XML, and packs it again with the checksums that it needs."""
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  name = pick(rng, sorted(members))
  what = int(rng.integers(8))
  if what == 0:
    del members[name]
    return _packed(members), f"{name} left out"
  if what == 1:
    members["/etc/../" + name] = members.pop(name)
    return _packed(members), f"{name} elsewhere"
  if what == 2:
    at = members[name].index(b"<", 1)
    text = members[name][:at] + b"&i;" + members[name][at:]
    members[name] = _BOMB + text
    return _packed(members), f"{name} with entities of entities"
  if what == 3:
    members[name] = bytes(64 << 20)
    return _packed(members), f"{name} of 64 MiB of zeros"
  if what in (4, 5) and name == _SHEET:
    cells = [b'"%c%d"' % (65 + i, j + 1) for i in range(4) for j in range(5)]
    old, new = pick(rng, cells), pick(rng, _REFERENCES)
    members[name] = members[name].replace(old, f'"{new}"'.encode())
    return _packed(members), f"cell {old.decode()} became {new!r}"
  members[name], words = mutations.damage_text(rng, members[name])
  return _packed(members), f"{name}: {words}"


class Layout(Target):
  """Folders as sources publish them: names, lists and tables."""

  parts = ("cases",)
  weight = 0.5
  _NAMES = {
    "imagecas": ("1-200/{}.img.nii.gz", "1-200/{}.label.nii.gz"),
    "imagecas_x": ("volumes/{}.img.nii.gz", "segmentations/{}.coronary.nii.gz"),
    "asoca": ("Normal/CTCA/Normal_{}.nrrd", "Diseased/CTCA/Diseased_{}.nrrd"),
    "mmwhs": ("ct_train_100{}_image.nii.gz", "ct_train_100{}_label.nii.gz"),
    "cca": ("train/images/{}.nii.gz", "test/images/{}.nii.gz"),
  }

  def __init__(self, source: str):
    self.name = source

  def make(self, folder: pathlib.Path) -> str:
    for form in self._NAMES[self.name]:
      for number in range(1, 5):
        path = folder / "set" / form.format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    root = folder / "set"
    if self.name == "imagecas":
      rows = ["FileName,Split-1", "1,Training", "2,Val", "3,Testing", "4,Train"]
      (root / "imageCAS_data_split.csv").write_text("\n".join([*rows, ""]))
    if self.name == "imagecas_x":
      rows = [["Scan ID", "Disease"], *([str(i), str(i % 2)] for i in (1, 2))]
      (root / "Descriptors.xlsx").write_bytes(workbook(rows))
      (root / "filelist").mkdir()
      for name, ids in (("train", "1\n2\n"), ("val", "3\n"), ("test", "4\n")):
        (root / "filelist" / f"{name}.txt").write_text(ids)
    return "set"

  def read(self, folder: pathlib.Path, entry: str) -> Found:
    from data_prep import errors, sources

    cases = sources.find_cases(self.name, folder / entry)
    # What `build` then asks of each, and how it says so.
    missing = [line for case in cases for line in sources.problems(case)]
    if missing:
      raise errors.UserError(missing[0])
    return _cases(cases, folder / entry)

  def damage(self, rng: Rng, folder: pathlib.Path, entry: str) -> Damage:
    draw = rng.random()
    files = files_below(folder)
    tables = [x for x in files if x.suffix in (".csv", ".txt", ".xlsx")]
    path = pick(rng, tables if tables and draw < 0.5 else files)
    if draw > 0.96:
      return rename(rng, folder, entry)
    if draw > 0.7:
      if draw > 0.85:
        path = pick(rng, sorted(x for x in (folder / entry).rglob("*")))
      where = path.relative_to(folder)
      return Damage(
        f"{where} became {mutations.replace_path(rng, path)}", entry
      )
    if path not in tables:
      name = mutations.odd_name(rng, path.name)
      if draw < 0.6:
        path.rename(path.with_name(name))
        return Damage(f"{path.name} renamed to {name!r:.80}", entry)
      kind = pick(rng, list(mutations.KINDS))
      mutations.KINDS[kind](path.with_name(name))
      return Damage(f"{kind} added as {name!r:.80}", entry)
    change = mutations.damage_csv if draw < 0.35 else mutations.damage_bytes
    changed, what = change(rng, path.read_bytes())
    guarded = NOTHING
    if path.suffix == ".xlsx" and rng.random() < 0.5:
      changed, what = _damage_workbook(rng, path.read_bytes())
    elif path.suffix == ".xlsx":
      guarded = self.all
    path.write_bytes(changed)
    return Damage(f"{path.name}: {what}", entry, guarded)


class MedMnist(Target):
  """A public benchmark: arrays in an archive, each with its checksum."""

  name = "medmnist"
  weight = 0.5
  parts = ("cases",)

  def make(self, folder: pathlib.Path) -> str:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
      images = rng.integers(0, 256, (count, 4, 5, 6), np.uint8)
      arrays[f"{split}_images"] = images
      arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % 2
    (folder / "set.npz").write_bytes(
      _packed({f"{name}.npy": _npy(x) for name, x in arrays.items()})
    )
    return "set.npz"

  def read(self, folder: pathlib.Path, entry: str) -> Found:
    from data_prep import medmnist, sources

    cases = sources.find_cases("medmnist", folder / entry)
    return Found(
      {
        "cases": digest(
          *((case.case_id, case.label, case.split) for case in cases),
          *(medmnist.volume(case).hu for case in cases),
        )
      }
    )

  def damage(self, rng: Rng, folder: pathlib.Path, entry: str) -> Damage:
    path, draw = folder / entry, rng.random()
    if draw < 0.05:
      return rename(rng, folder, entry)
    if draw < 0.1:
      return Damage(mutations.replace_path(rng, path), entry)
    if draw < 0.6:
      data, what = mutations.damage_bytes(rng, path.read_bytes())
      path.write_bytes(data)
      return Damage(what, entry, self.all)
    # Whole again, with a checksum, but for one array.
    with zipfile.ZipFile(path) as archive:
      members = {name: archive.read(name) for name in archive.namelist()}
    name = pick(rng, sorted(members))
    members[name], what = mutations.damage_bytes(rng, members[name])
    path.write_bytes(_packed(members))
    return Damage(f"{name}: {what}", entry)


def _npy(array: np.ndarray) -> bytes:
  found = io.BytesIO()
  np.save(found, array)
  return found.getvalue()


class Folder(Target):
  """A folder without a table, for which `check --write_manifest` writes one."""

  name = "folder"
  weight = 0.5
  parts = ("manifest",)

  def make(self, folder: pathlib.Path) -> str:
    from fuzz import scans

    for name in ("normal", "cad"):
      (folder / "set" / name).mkdir(parents=True)
      write_scans(folder / "set" / name, 2)
      (folder / "set" / name / "manifest.csv").unlink()
    inner = folder / "set" / "cad" / "7"
    inner.mkdir()
    scans.Dicom().make(inner)
    return "set"

  def read(self, folder: pathlib.Path, entry: str) -> Found:
    from data_prep import manifests, sources

    words = manifests.write_new(folder / entry)
    content = (folder / entry / manifests.NAME).read_bytes()
    # As `check` and `build` then read it.
    cases = sources.find_cases("manifest", folder / entry)
    text = " ".join(words).replace(str(folder), "ROOT")
    return Found({"manifest": digest(content, len(cases))}, (text,))

  def damage(self, rng: Rng, folder: pathlib.Path, entry: str) -> Damage:
    draw = rng.random()
    path = pick(rng, files_below(folder))
    if draw < 0.1:
      return rename(rng, folder, entry)
    if draw < 0.35:
      name = mutations.odd_name(rng, path.name)
      path.rename(path.with_name(name))
      return Damage(f"{path.name} renamed to {name!r:.80}", entry)
    if draw < 0.6:
      name = mutations.odd_name(rng, path.name)
      kind = pick(rng, list(mutations.KINDS))
      mutations.KINDS[kind](path.with_name(name))
      return Damage(f"{kind} added as {name!r:.80}", entry)
    if draw < 0.8:
      path = pick(rng, sorted((folder / entry).rglob("*")))
      where = path.relative_to(folder)
      return Damage(
        f"{where} became {mutations.replace_path(rng, path)}", entry
      )
    changed, what = mutations.damage_bytes(rng, path.read_bytes())
    path.write_bytes(changed)
    return Damage(f"{path.name}: {what}", entry)


TARGETS: tuple[Target, ...] = (
  Manifest(),
  Labels(".csv"),
  Labels(".xlsx"),
  *map(Layout, ("imagecas", "imagecas_x", "asoca", "mmwhs", "cca")),
  MedMnist(),
  Folder(),
)
