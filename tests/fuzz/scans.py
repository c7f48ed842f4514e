"""Scans: NIfTI, MetaImage and NRRD files, and folders of DICOM slices."""

import contextlib
import gzip
import io
import pathlib
import re
import struct

import numpy as np

from fuzz import mutations
from fuzz.mutations import Rng, pick
from fuzz.target import (
  NOTHING,
  Damage,
  Found,
  Refused,
  Target,
  digest,
  rename,
)

# D, H, W. More bytes than a reader holds at a time: where it stops short of the
# end of a stream, and of the checksum there, it does so here too.
SHAPE = (24, 64, 96)
SLICES = (7, 24, 32)
SPACING = (2.5, 0.7, 0.9)


def draw_hu(shape: tuple[int, int, int]) -> np.ndarray:
  """Returns int16 HU [D, H, W]: noise, as real scans hardly compress."""
  rng = np.random.default_rng(0)
  return rng.integers(-1000, 1500, shape).astype(np.int16)


class Scan(Target):
  """A scan, read as `cadjax predict` reads its input."""

  parts = ("shape", "voxels", "grid")
  weight = 2.0

  def read(self, folder: pathlib.Path, entry: str) -> Found:
    from cadjax.core import files
    from cadjax.data import jobs

    found = []
    todo = jobs.make_jobs([str(folder / entry)], folder / "out")
    screen = io.StringIO()
    with contextlib.redirect_stderr(screen):
      failed = jobs.run_jobs(
        todo,
        files.ResultFolder("result.json", "fuzz"),
        lambda job, scan: found.append(scan.volume),
        lambda result, folder, overwrite: None,
        lambda job, result: "",
      )
    if failed:
      raise Refused(screen.getvalue())
    volume = found[0]
    return Found(
      {
        "shape": digest(volume.hu.shape),
        "voxels": digest(volume.hu),
        "grid": digest(volume.affine, volume.stored.affine),
      },
      (*volume.notes, screen.getvalue()),
    )


class ScanFile(Scan):
  """A scan in one or two files."""

  def __init__(self, name: str, ending: str, *, packed: bool):
    self.name = name
    self._ending = ending
    self._packed = packed

  def make(self, folder: pathlib.Path) -> str:
    from data_prep import volume

    hu, entry = draw_hu(SHAPE), f"scan{self._ending}"
    if self._ending.startswith(".nii"):
      grid = volume.Grid(SHAPE, SPACING, (-11, -222, 33), np.eye(3)[:, ::-1])
      volume.write_nifti(folder / entry, hu, grid)
      return entry
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(hu)
    image.SetSpacing(SPACING[::-1])
    image.SetOrigin((-11, -222, 33))
    sitk.WriteImage(image, str(folder / entry), self._packed)
    return entry

  def damage(self, rng: Rng, folder: pathlib.Path, entry: str) -> Damage:
    draw = rng.random()
    if draw < 0.06:
      return rename(rng, folder, entry)
    files = [folder / entry]
    files += sorted(path for path in folder.iterdir() if path not in files)
    path = pick(rng, files)
    if draw < 0.12:
      kind = mutations.replace_path(rng, path)
      return Damage(f"{path.name} became {kind}", entry, self.all)
    data = path.read_bytes()
    if draw < 0.6:
      return self._damaged(rng, path, data, entry)
    if self._ending.startswith(".nii"):
      changed, what = _header_field(rng, data, packed=self._packed)
    elif path.name != entry:
      return self._damaged(rng, path, data, entry)
    else:
      head = _text_header(data)
      changed, what = _header_line(rng, head)
      changed += data[len(head) :]
    path.write_bytes(changed)
    return Damage(f"{path.name}: {what}", entry)

  def _damaged(self, rng, path, data, entry) -> Damage:
    changed, what = mutations.damage_bytes(rng, data)
    path.write_bytes(changed)
    text = 0
    if path.name == entry and not self._ending.startswith(".nii"):
      text = len(_text_header(data))
    # The header, if it is text, has no checksum; nothing has if it is raw, but
    # for the length. Of two files, the data of neither says where it belongs.
    intact = changed[:text] == data[:text]
    short = len(changed) < len(data) and changed == data[: len(changed)]
    guarded = intact and (self._packed or (short and text < len(data)))
    return Damage(
      f"{path.name}: {what}", entry, self.all if guarded else NOTHING
    )


_NIFTI_FIELDS = (
  *(("sizeof_hdr", 0, "i"), ("datatype", 70, "h"), ("bitpix", 72, "h")),
  *((f"dim[{i}]", 40 + 2 * i, "h") for i in range(8)),
  *((f"pixdim[{i}]", 76 + 4 * i, "f") for i in range(8)),
  *(("vox_offset", 108, "f"), ("vox_offset", 108, "f")),
  *(("scl_slope", 112, "f"), ("scl_inter", 116, "f")),
  *(("slice_end", 120, "h"), ("xyzt_units", 123, "B"), ("cal_max", 124, "f")),
  *(("qform_code", 252, "h"), ("sform_code", 254, "h")),
  *((f"quatern[{i}]", 256 + 4 * i, "f") for i in range(6)),
  *((f"srow[{i}]", 280 + 4 * i, "f") for i in range(12)),
  *(("magic", 344, "I"), ("extension", 348, "I")),
)
_DATATYPES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2304)


def _header_field(rng, data, *, packed) -> tuple[bytes, str]:
  """Sets 1 to 3 fields of a NIfTI header; packs again, with a right CRC."""
  found = bytearray(gzip.decompress(data) if packed else data)
  words = []
  for _ in range(int(rng.integers(1, 4))):
    name, at, form = pick(rng, _NIFTI_FIELDS)
    value, number = mutations.packed(rng, "<" + form)
    if name == "datatype" and rng.random() < 0.7:
      number = pick(rng, _DATATYPES)
      value = struct.pack("<h", number)
    if rng.random() < 0.1:
      value = value[::-1]
    found[at : at + len(value)] = value
    words.append(f"{name} = {number}")
  changed = bytes(found)
  if packed:
    changed = gzip.compress(changed, compresslevel=1, mtime=0)
  return changed, ", ".join(words)


def _text_header(data: bytes) -> bytes:
  """Returns the header of a MetaImage or NRRD file, with its last newline."""
  pattern = rb"\n\n" if data.startswith(b"NRRD") else rb"ElementDataFile.*\n"
  end = re.search(pattern, data)
  return data[: end.end()] if end else data


_LINES = {
  b"NRRD": (
    *("encoding: raw", "encoding: gzip", "encoding: bzip2", "encoding: hex"),
    *("encoding: ascii", "type: double", "type: block", "type: uchar"),
    *("dimension: 17", "dimension: 2", "dimension: -1", "endian: big"),
    *("sizes: 1400 1400 1400", "sizes: 24 64 96", "sizes: 0 0 0"),
    *("space: scanner-xyz", "space: 3D-right-handed", "space dimension: 9"),
    *("space directions: none none none", "spacings: 1 1 nan"),
    *("space directions: (nan,0,0) (0,1,0) (0,0,1)", "thicknesses: nan 1 1"),
    *('space units: "m" "m" "m"', 'space units: "um" "um" "um"'),
    *("data file: /dev/zero", "data file: LIST", "byte skip: -1"),
    *("data file: %03d.raw 1 9 1", "line skip: 99999", "byte skip: 1000000"),
    *("kinds: domain domain vector", "block size: 99999", "content: %s%n"),
    *("space origin: (nan,inf,1e308)", "space origin: (0,0)", "a:=b\0c"),
  ),
  b"Meta": (
    *("NDims = -1", "NDims = 100", "NDims = 4", "NDims = 1", "NDims = 2"),
    *("DimSize = 1400 1400 1400", "DimSize = 0 0 0", "DimSize = 4 4"),
    *("DimSize = -1 -1 -1", "DimSize = 65536 65536 65536", "HeaderSize = -1"),
    *("ElementType = MET_DOUBLE", "ElementType = MET_OTHER", "HeaderSize = 9"),
    *("ElementType = MET_CHAR_ARRAY", "ElementNumberOfChannels = 3"),
    *("ElementNumberOfChannels = -1", "ElementNumberOfChannels = 999999999"),
    *("CompressedData = True", "CompressedData = False", "BinaryData = False"),
    *("CompressedDataSize = 1", "CompressedDataSize = -1", "Offset = nan 1 1"),
    *("CompressedDataSize = 99999999999", "BinaryDataByteOrderMSB = True"),
    *("ElementSpacing = nan nan nan", "ElementSpacing = 0 0 0", "Comment = %n"),
    *("ElementSize = -1 -1 -1", "TransformMatrix = 0 0 0 0 0 0 0 0 0"),
    *("TransformMatrix = nan 0 0 0 1 0 0 0 1", "ObjectType = Tube"),
    *("ElementDataFile = LIST", "ElementDataFile = %s%s%n", "ObjectType = "),
    *("ElementDataFile = LIST 2", "ElementDataFile = slice%03d.raw 1 99 1"),
    *("ElementDataFile = /dev/zero", "ElementDataFile = .", "ID = 1e99"),
    *("ElementDataFile = ../../../etc/passwd", "ElementDataFile = scan.mhd"),
    *("ElementDataFile = LOCAL", "ElementDataFile = " + "a" * 5000),
    *("Comment = " + "a" * 70_000, "ElementMin = nan", "CenterOfRotation = x"),
  ),
}


def _header_line(rng, head: bytes) -> tuple[bytes, str]:
  """Sets, or adds, a line of a text header; or damages the text."""
  if rng.random() < 0.5:
    return mutations.damage_text(rng, head)
  kind = b"NRRD" if head.startswith(b"NRRD") else b"Meta"
  line = pick(rng, _LINES[kind]).encode()
  key = re.match(rb"[\w ]+", line)[0].strip()
  lines = head.splitlines(keepends=True)
  at = [i for i, one in enumerate(lines) if one.startswith(key)]
  if at and rng.random() < 0.8:
    lines[at[0]] = line + b"\n"
  else:
    lines.insert(int(rng.integers(1, len(lines))), line + b"\n")
  return b"".join(lines), f"the line {line[:80]!r}"


class Dicom(Scan):
  """A folder of slices of one series."""

  name = "dicom"

  def make(self, folder: pathlib.Path) -> str:
    (folder / "series").mkdir()
    for number, plane in enumerate(draw_hu(SLICES)):
      slice_ = _make_slice(plane, number)
      path = folder / "series" / f"I{number:03d}.dcm"
      slice_.save_as(path, enforce_file_format=True)
    return "series"

  def damage(self, rng: Rng, folder: pathlib.Path, entry: str) -> Damage:
    slices = sorted((folder / entry).iterdir())
    # The ends, where a slice that is lost leaves no gap, more often.
    path = pick(rng, (*slices, slices[0], slices[-1]))
    draw = rng.random()
    if draw < 0.04:
      return rename(rng, folder, entry)
    if draw < 0.06:
      kind = mutations.replace_path(rng, folder / entry)
      return Damage(f"the folder became {kind}", entry, self.all)
    if draw < 0.16:
      kind = mutations.replace_path(rng, path)
      # What is not there cannot be missed at an end; what is, can be told.
      gone = kind in mutations.GONE
      guarded = NOTHING if gone else frozenset({"shape"})
      return Damage(f"{path.name} became {kind}", entry, guarded)
    if draw < 0.26:
      return self._stranger(rng, path, entry)
    if draw < 0.6:
      data = path.read_bytes()
      changed, what = mutations.damage_bytes(rng, data)
      path.write_bytes(changed)
      short = len(changed) < len(data) and changed == data[: len(changed)]
      guarded = self.all if short else frozenset({"shape"})
      return Damage(f"{path.name}: {what}", entry, guarded)
    chosen, guarded = [path], frozenset({"shape"})
    if rng.random() < 0.4:
      chosen, guarded = slices, NOTHING
    what, short = _set_tag(rng, chosen)
    if short:
      guarded = self.all
    where = path.name if len(chosen) == 1 else "every slice"
    return Damage(f"{where}: {what}", entry, guarded)

  def _stranger(self, rng, path, entry) -> Damage:
    """Adds something to the folder, under an odd name."""
    name = mutations.odd_name(rng, pick(rng, ("a", "a.dcm", "a.txt", "a.nii")))
    stranger, data = path.parent / name, path.read_bytes()
    kind = str(pick(rng, [*mutations.KINDS, "bytes", "a slice", "half"]))
    if kind in mutations.KINDS:
      mutations.KINDS[kind](stranger)
    else:
      content = {"bytes": rng.bytes(500), "a slice": data, "half": data[:700]}
      stranger.write_bytes(content[kind])
    # Half a slice of none: it may be one that is lost, and is to be told.
    return Damage(f"{kind} added as {name!r:.80}", entry, self.all)


def _make_slice(plane: np.ndarray, number: int):
  from pydicom.dataset import FileDataset, FileMetaDataset
  from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

  meta = FileMetaDataset()
  meta.TransferSyntaxUID = ExplicitVRLittleEndian
  meta.MediaStorageSOPClassUID = CTImageStorage
  meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{number + 1}"
  data = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
  data.SOPClassUID = CTImageStorage
  data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
  data.PatientName, data.PatientID = "A^B", "1"
  data.Modality = "CT"
  data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
  data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", "1.2.3.4"
  data.SeriesNumber, data.InstanceNumber = 7, number + 1
  data.PixelSpacing = [SPACING[1], SPACING[2]]
  data.SliceThickness = SPACING[0]
  data.ImagePositionPatient = [-11, -222, 33 + SPACING[0] * number]
  data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
  data.Rows, data.Columns = plane.shape
  data.SamplesPerPixel = 1
  data.PhotometricInterpretation = "MONOCHROME2"
  data.BitsAllocated = data.BitsStored = 16
  data.HighBit, data.PixelRepresentation = 15, 0
  data.RescaleSlope, data.RescaleIntercept = 1, -1024
  data.PixelData = (plane.astype(np.int32) + 1024).astype("<u2").tobytes()
  return data


# Group and element, kind of value, and what it is.
_TAGS = (
  *((0x0002, 0x0010, "UI", "transfer syntax"), (0x0008, 0x0008, "CS", "type")),
  *((0x0008, 0x0016, "UI", "class"), (0x0008, 0x0018, "UI", "instance")),
  *((0x0008, 0x0060, "CS", "modality"), (0x0008, 0x0005, "CS", "characters")),
  *((0x0010, 0x0010, "PN", "name"), (0x0010, 0x0020, "LO", "patient")),
  *((0x0018, 0x0050, "DS", "thickness"), (0x0018, 0x1060, "DS", "trigger")),
  *((0x0020, 0x000E, "UI", "series"), (0x0020, 0x0011, "IS", "series number")),
  *((0x0020, 0x0012, "IS", "acquisition"), (0x0020, 0x0013, "IS", "number")),
  *((0x0020, 0x0032, "DS", "position"), (0x0020, 0x0037, "DS", "orientation")),
  *((0x0020, 0x0032, "DS", "position"), (0x0020, 0x0037, "DS", "orientation")),
  *((0x0028, 0x0030, "DS", "spacing"), (0x0020, 0x0100, "IS", "time")),
  *((0x0028, 0x0002, "US", "samples"), (0x0028, 0x0004, "CS", "colours")),
  *((0x0028, 0x0008, "IS", "frames"), (0x0028, 0x0010, "US", "rows")),
  *((0x0028, 0x0011, "US", "columns"), (0x0028, 0x0100, "US", "allocated")),
  *((0x0028, 0x0101, "US", "stored"), (0x0028, 0x0102, "US", "high bit")),
  *((0x0028, 0x0103, "US", "signed"), (0x0028, 0x0120, "US", "padding")),
  *((0x0028, 0x1052, "DS", "intercept"), (0x0028, 0x1053, "DS", "slope")),
  *((0x7FE0, 0x0010, "OW", "pixels"), (0x7FE0, 0x0010, "OW", "pixels")),
)
_SYNTAXES = (
  *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"),
  *("1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.50", "1.2.3", ""),
  *("1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5"),
)
_LONG = (b"OB", b"OW", b"UN", b"UT", b"SQ")


def _set_tag(rng, paths) -> tuple[str, bool]:
  """Deletes a tag, or gives it an extreme value, in some slices alike.

  Returns:
    what was done, and whether pixels are lost by it.
  """
  *tag, kind, name = pick(rng, _TAGS)
  change = None if rng.random() < 0.2 else _tag_change(rng, kind, name)
  short = False
  for path in paths:
    data = path.read_bytes()
    elements = _elements(data)
    old = elements.get(tuple(tag), (b"", b""))[1]
    elements.pop(tuple(tag), None)
    new = b"" if change is None else change(old)
    if change is not None:
      elements[tuple(tag)] = (kind.encode(), new)
    short |= kind == "OW" and len(new) < len(old)
    path.write_bytes(data[:132] + _joined(elements))
  words = "deleted" if change is None else f"= {new[:60]!r}"
  return f"the {name} {words}", short


def _tag_change(rng, kind, name):
  """Returns what makes a new value, as bytes, of the old one."""
  if kind == "OW":
    share = pick(rng, (0, 0.01, 0.5, 0.999, 1.001, 2))
    return lambda old: (old * 2)[: 2 * int(len(old) * share / 2)]
  if kind == "US":
    value = mutations.packed(rng, "<H")[0]
    return lambda old: value
  if kind in ("DS", "IS"):
    number, place = pick(rng, mutations.NUMBERS), float(rng.random())
    times = int(pick(rng, (0, 1, 1, 1, 1, 1, 1, 1, 1, 2)))

    def replaced(old: bytes) -> bytes:
      numbers = old.split(b"\\")
      numbers[int(place * len(numbers))] = number.encode()
      return _even(b"\\".join(numbers * times))

    return replaced
  words = (*mutations.WORDS, "CT", "MR", "LOCALIZER", "RGB", "1.2.3.5")
  text = pick(rng, _SYNTAXES if name == "transfer syntax" else words)
  return lambda old: _even(text.encode("utf-8", "surrogateescape")[:60_000])


def _even(value: bytes) -> bytes:
  return value + b" " * (len(value) % 2)


def _elements(data: bytes) -> dict[tuple[int, int], tuple[bytes, bytes]]:
  """Returns tag -> (kind, value) of a slice of `_make_slice`."""
  found, at = {}, 132
  while at < len(data):
    group, element, kind = struct.unpack_from("<HH2s", data, at)
    form, header = ("<I", 12) if kind in _LONG else ("<H", 8)
    (size,) = struct.unpack_from(form, data, at + (8 if header == 12 else 6))
    start = at + header
    found[group, element] = (kind, data[start : start + size])
    at = start + size
  return found


def _joined(elements: dict[tuple[int, int], tuple[bytes, bytes]]) -> bytes:
  """Returns the file's bytes after "DICM", with the length of its first group.

  The standard has tags in rising order.
  """
  parts = {}
  for (group, element), (kind, value) in sorted(elements.items()):
    form = "<HH2s2xI" if kind in _LONG else "<HH2sH"
    header = struct.pack(form, group, element, kind, len(value))
    parts[group, element] = header + value
  meta = sum(len(x) for tag, x in parts.items() if tag[0] == 2)
  meta -= len(parts[2, 0])
  parts[2, 0] = parts[2, 0][:8] + struct.pack("<I", meta)
  return b"".join(parts.values())


TARGETS: tuple[Target, ...] = (
  ScanFile("nii", ".nii", packed=False),
  ScanFile("nii.gz", ".nii.gz", packed=True),
  ScanFile("mha", ".mha", packed=False),
  ScanFile("mha-zlib", ".mha", packed=True),
  ScanFile("mhd-raw", ".mhd", packed=False),
  ScanFile("mhd-zraw", ".mhd", packed=True),
  ScanFile("nrrd", ".nrrd", packed=False),
  ScanFile("nrrd-gzip", ".nrrd", packed=True),
  ScanFile("nhdr-gzip", ".nhdr", packed=True),
  Dicom(),
)
