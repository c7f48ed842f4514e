"""DICOM series as they really come: found, checked, sorted and read."""

import collections
import contextlib
import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
import SimpleITK as sitk

from data_prep import isolation, matching, streams
from data_prep.errors import UserError, to_number

_NOT_IMAGES = ("DICOMDIR", "LOCKFILE", "VERSION")
# What distinguishes the phases of a cardiac series when one series holds many:
# temporal position, cardiac phase, trigger time, acquisition number.
_PHASE_TAGS = ("0020|0100", "0020|9241", "0018|1060", "0020|0012")
# Share of the whole range along the normal that phases have in common: they
# may differ by a few slices at the ends, where slabs share a tenth or less.
_SAME_RANGE = 0.9
# Positions are written to some 0.01 mm; a table that moved is far beyond.
_OFF_LINE_MM = 0.5
# Some write direction cosines to two decimals.
_OFF_UNIT = 0.01
# Of a slice's place, in steps between slices: at the end of a stack it is
# where the next slice would be.
_NEXT = 0.25
# Classes of DICOM files that hold no image, such as reports, presentation
# states, waveforms, radiotherapy plans and documents.
_NO_IMAGE = re.compile(
  rb"1\.2\.840\.10008\.(1\.3\.10$|5\.1\.4\.1\.1\.(9|11|66|88|104|481)(\.|$))"
)
_UNCOMPRESSED = (
  b"1.2.840.10008.1.2",
  b"1.2.840.10008.1.2.1",
  b"1.2.840.10008.1.2.2",
)
# Bytes that ITK may take beyond what a file and its pixels need.
_SPARE = 64 << 20
# The element (7FE0,0010) with its length: little endian with a VR and without,
# and big endian. Icons hold another one, of another length.
_PIXEL_DATA = re.compile(
  rb"(?:\xe0\x7f\x10\0(?:O[BW]\0\0)?|(?P<big>\x7f\xe0\0\x10O[BW]\0\0))"
  rb"(?=(?P<length>.{4}))",
  re.DOTALL,
)
# Lossless JPEG 2000 of a slice of air is some hundred times smaller.
_MOST_FROM_ONE = 4096


@dataclasses.dataclass(frozen=True)
class Slice:
  """The header fields of one DICOM file that place its pixels."""

  path: pathlib.Path
  modality: str
  series_uid: str
  series_number: str
  image_type: str
  gray: bool
  size: tuple[int, ...]
  spacing: tuple[float, ...]
  position: tuple[float, ...]
  orientation: tuple[float, ...]
  padding_hu: float | None
  phase: tuple[str, ...]
  rescale: tuple[str, str]
  patient_id: str
  bits: int


@dataclasses.dataclass(frozen=True)
class _Other:
  """A file of a series' folder that is no slice, and why.

  Attributes:
    path: the file.
    reason: what follows its name in a message.
    told: whether it is worth a note though it is not named like a slice.
    is_folder: whether it is a folder that may hold slices.
  """

  path: pathlib.Path
  reason: str
  told: bool = True
  is_folder: bool = False


def is_dicom(path: pathlib.Path) -> bool:
  """Tells whether a path leads to a file that starts like DICOM part 10."""
  return streams.is_file(path) and _begin(path)[128:132] == b"DICM"


def _begin(path: pathlib.Path) -> bytes:
  """Returns the first bytes of a file, none if it cannot be read."""
  try:
    with path.open("rb") as file:
      return file.read(1024)
  except OSError:
    return b""


def _meta_uid(path: pathlib.Path, element: bytes) -> bytes:
  """Returns a UID of the file's meta group (0002), which is in plain bytes."""
  tag = b"\x02\x00" + element + b"\x00UI"
  _, found, rest = _begin(path).partition(tag)
  if not found:
    return b""
  length = int.from_bytes(rest[:2], "little")
  return rest[2 : 2 + length].rstrip(b"\0 ")


def _reason(error: Exception) -> str:
  """Returns the part of an ITK error that says what went wrong."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  reason = lines[-1] if lines else "unknown"
  return reason.split("): ")[-1][:160]


def read_series(
  path: pathlib.Path, series: str | int | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """Reads one CT series of a folder and the folders below it.

  ITK reads it in a process of its own; see `isolation`.

  Args:
    path: a folder that holds DICOM files under any names, or one such file,
      for its folder and its series.
    series: series UID or number; None takes the CT series with most images,
      or that of the file.

  Returns:
    (voxels [i, j, k], affine [4, 4] from index to RAS mm, notes).

  Raises:
    UserError: no CT series, not the one asked for, a multi-frame file, slices
      missing, doubled, damaged, of several patients or not in one straight
      stack, a file that the series may have lost, or a crash of ITK.
  """
  if not _is_text(path):
    raise UserError(f"{path}: rename it: its name is not UTF-8")
  return isolation.call(read_series_here, path, series, path=path)


def read_series_here(
  path: pathlib.Path, series: str | int | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """Does what `read_series` does in this process."""
  with _quiet():
    folder = path
    if not path.is_dir():
      folder = path.parent
      header = _read_header(path)
      if header is None:
        raise UserError(f"{path}: damaged DICOM file")
      if series is None:
        series = header.series_uid or None
    headers, others, notes = _headers(folder)
    chosen, rest, remarks = _choose(headers, series, folder)
    # Before the gap is found that such a file leaves inside the stack.
    notes += remarks + _check_others(chosen, others)
    chosen, step_mm = _sort(chosen, folder)
    _check_rest(chosen, rest, step_mm)
    notes += _check_alike(chosen, folder)
    voxels = _read_pixels(chosen)
  return voxels.transpose(2, 1, 0), _affine(chosen[0], step_mm), notes


def _is_text(path: pathlib.Path) -> bool:
  """Tells whether a path is UTF-8, without which ITK does not take it."""
  try:
    str(path).encode()
  except UnicodeEncodeError:
    return False
  return True


@contextlib.contextmanager
def _quiet():
  """Keeps ITK's warnings about each odd file off the user's screen."""
  before = sitk.ProcessObject.GetGlobalWarningDisplay()
  sitk.ProcessObject.SetGlobalWarningDisplay(False)
  try:
    yield
  finally:
    sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _headers(
  folder: pathlib.Path,
) -> tuple[list[Slice], list[_Other], list[str]]:
  """Reads the header of every DICOM image below `folder`.

  Returns:
    The headers, the files that are no images, and notes.
  """
  closed: list[OSError] = []
  paths = sorted(
    parent / name
    for parent, _, names in matching.walk(folder, closed.append)
    for name in names
    if not name.startswith(".") and name.upper() not in _NOT_IMAGES
  )
  if not paths:
    if closed:
      raise UserError(f"{folder}: cannot be read ({closed[0].strerror})")
    raise UserError(f"{folder}: the folder is empty")
  headers, without_image = [], 0
  others = [
    _Other(
      pathlib.Path(error.filename),
      f"is a folder that cannot be read ({error.strerror})",
      is_folder=True,
    )
    for error in closed
  ]
  for path in paths:
    found = _look(path)
    if isinstance(found, Slice):
      headers.append(found)
    elif found is None:
      without_image += 1
    else:
      others.append(found)
  if not headers:
    raise UserError(f"{folder}: none of {len(paths)} files is a DICOM image")
  notes = []
  if without_image:
    files = f"{without_image} DICOM file{'s' if without_image > 1 else ''}"
    notes.append(f"left out {files} without an image")
  return headers, others, notes


def _look(path: pathlib.Path) -> Slice | _Other | None:
  """Returns what a file is; None for DICOM that holds no image."""
  try:
    size = streams.check_kind(path).st_size
    path.open("rb").close()
  except UserError as error:
    return _Other(path, str(error).removeprefix(f"{path}: "))
  except OSError as error:
    return _Other(path, f"cannot be read ({error.strerror})")
  if not size:
    return _Other(path, "is empty")
  header = _read_header(path) if _is_text(path) else None
  if header is not None:
    return header
  if not is_dicom(path):
    return _Other(path, "is no DICOM file", told=False)
  if not _is_text(path):
    raise UserError(f"{path}: rename this DICOM file: its name is not UTF-8")
  if _NO_IMAGE.match(_meta_uid(path, b"\x02")):
    return None
  raise UserError(f"{path}: damaged DICOM file")


def _check_others(
  chosen: Sequence[Slice], others: Iterable[_Other]
) -> list[str]:
  """Refuses files that were slices by their names; returns notes of others."""
  folders = {header.path.parent for header in chosen}
  named = {_pattern(header.path) for header in chosen}
  above = {folder.parent for folder in folders} if len(folders) > 1 else set()
  notes = []
  for other in others:
    beside = above if other.is_folder else folders
    like = other.is_folder or _pattern(other.path) in named
    if other.path.parent in beside and like:
      raise UserError(
        f"{other.path}: {other.reason}; it lies and is named like the slices of"
        " the series, which may have lost some: replace it, or move it"
        " elsewhere"
      )
    if other.told:
      notes.append(f"left out {other.path.name}: {other.reason}")
  if len(notes) > 3:
    return [*notes[:2], f"left out {len(notes) - 2} more files like these"]
  return notes


def _pattern(path: pathlib.Path) -> str:
  """Returns what names of slices share: the suffix, or else all but numbers.

  Numbers with dots, as in UIDs, are no suffix.
  """
  if re.fullmatch(r"\.[A-Za-z]+", path.suffix):
    return path.suffix.lower()
  return re.sub(r"[\d.]+", "0", path.name)


def _check_rest(
  chosen: Sequence[Slice], rest: Iterable[Slice], step_mm: np.ndarray
) -> None:
  """Refuses images that were left out though they continue the stack.

  Inside the stack they leave a gap, which `_check_gaps` finds.
  """
  ends = np.array([chosen[0].position, chosen[-1].position])
  places = ends + np.outer([-1, 1], step_mm)
  near_mm = _NEXT * np.linalg.norm(step_mm)
  for header in rest:
    if len(header.position) != 3:
      continue
    away_mm = np.linalg.norm(places - header.position, axis=1)
    if away_mm.min() < near_mm:
      raise UserError(
        f"{header.path}: lies where the series goes on, but is not like its"
        f" slices in {_difference(header, chosen[0])}; replace it, or move it"
        " elsewhere"
      )


def _difference(header: Slice, usual: Slice) -> str:
  names = {
    "modality": "modality",
    "gray": "colour",
    "image_type": "image type",
    "size": "size",
    "spacing": "pixel spacing",
    "orientation": "orientation",
    "series_number": "series number",
  }
  other = [
    words
    for name, words in names.items()
    if getattr(header, name) != getattr(usual, name)
  ]
  return " and ".join(other) or "its series UID"


def _check_alike(chosen: Sequence[Slice], folder: pathlib.Path) -> list[str]:
  """Refuses a series of several patients; returns what else differs."""
  patients = {header.patient_id for header in chosen} - {""}
  if len(patients) > 1:
    raise UserError(
      f"{folder}: the slices of the series are of {len(patients)} patients, by"
      " their patient IDs; put those of each into a folder of its own"
    )
  rescales = collections.Counter(header.rescale for header in chosen)
  for header in chosen:
    if not _is_rescale(header.rescale) and (
      any(header.rescale) or len(rescales) > 1
    ):
      raise UserError(
        f"{header.path}: has no usable rescale slope and intercept"
      )
  if len(rescales) > 1:
    rare = next(
      h for h in chosen if h.rescale == min(rescales, key=rescales.get)
    )
    return [
      f"{len(rescales)} rescales (slope, intercept) in one series, such as that"
      f" of {rare.path.name}; each slice was read with its own"
    ]
  if not any(chosen[0].rescale):
    return ["no rescale slope and intercept; the voxels were taken as HU"]
  return []


def _is_rescale(texts: tuple[str, str]) -> bool:
  try:
    slope, intercept = map(float, texts)
  except ValueError:
    return False
  return bool(np.isfinite([slope, intercept]).all() and slope)


def _read_header(path: pathlib.Path) -> Slice | None:
  reader = sitk.ImageFileReader()
  reader.SetImageIO("GDCMImageIO")
  reader.SetFileName(str(path))
  try:
    with isolation.at_most(_SPARE + 4 * path.stat().st_size):
      reader.ReadImageInformation()
  except (RuntimeError, MemoryError):
    return None

  def text(tag: str) -> str:
    return reader.GetMetaData(tag).strip() if reader.HasMetaDataKey(tag) else ""

  def numbers(tag: str) -> tuple[float, ...]:
    found = [to_number(part) for part in text(tag).split("\\")]
    return () if None in found else tuple(found)

  return Slice(
    path=path,
    modality=text("0008|0060"),
    series_uid=text("0020|000e").strip("\0"),
    series_number=text("0020|0011"),
    image_type=text("0008|0008").upper(),
    gray=reader.GetNumberOfComponents() == 1
    and text("0028|0004").startswith("MONOCHROME"),
    size=tuple(reader.GetSize()),
    spacing=numbers("0028|0030"),
    position=numbers("0020|0032"),
    orientation=numbers("0020|0037"),
    padding_hu=_padding_hu(
      numbers("0028|0120"), numbers("0028|1053"), numbers("0028|1052")
    ),
    phase=tuple(text(tag) for tag in _PHASE_TAGS),
    rescale=(text("0028|1053"), text("0028|1052")),
    patient_id=text("0010|0020"),
    bits=_bits(text("0028|0100")),
  )


def _bits(text: str) -> int:
  """Returns the bits of a voxel in the file."""
  return int(text) if text.isascii() and text.isdigit() else 16


def _padding_hu(padding, slope, intercept) -> float | None:
  """Returns what the pixel padding value becomes as HU, None if it is tissue.

  Some files declare a padding value in the midst of tissue; obeying it would
  punch holes into the body.
  """
  if not padding:
    return None
  raw = padding[0] - 65536 if padding[0] > 32767 else padding[0]
  hu = raw * (slope[0] if slope else 1) + (intercept[0] if intercept else 0)
  return hu if abs(hu) < math.inf and (hu <= -1000 or hu >= 3000) else None


def _choose(
  headers, series, folder
) -> tuple[list[Slice], list[Slice], list[str]]:
  """Picks the slices of the series asked for.

  Returns:
    The slices, images that were left out though they may belong to them, and
    notes.
  """
  notes = []
  images = []
  left_out = collections.Counter()
  for header in headers:
    if not header.gray:
      left_out["colour"] += 1
    elif header.modality != "CT":
      left_out[header.modality or "modality-less"] += 1
    elif "LOCALIZER" in header.image_type:
      left_out["scout"] += 1
    else:
      images.append(header)
  for what, count in sorted(left_out.items()):
    notes.append(f"left out {count} {what} image{'s' if count > 1 else ''}")
  if not images:
    raise UserError(
      f"{folder}: holds no CT slices ({'; '.join(notes) or 'no images'})"
    )
  groups = collections.defaultdict(list)
  for header in images:
    groups[header.series_uid, header.series_number].append(header)
  ranked = sorted(groups.values(), key=lambda g: (-_images(g), g[0].path))
  names = ", ".join(
    f"number {g[0].series_number or '(none)'} with {_images(g)} images"
    for g in ranked
  )
  if series is not None:
    wanted = str(series)
    ranked = [
      g for g in ranked if wanted in (g[0].series_uid, g[0].series_number)
    ]
    if not ranked:
      raise UserError(f"{folder}: no CT series {wanted}; there are {names}")
  elif len(ranked) > 1:
    notes.append(
      f"{len(ranked)} CT series: took the largest, number"
      f" {ranked[0][0].series_number or '(none)'} with {_images(ranked[0])}"
      f" images; there are {names}"
    )
  alike, remarks = _same_geometry(ranked[0])
  notes += remarks
  _check_places(alike)
  # Phases are left out on purpose, and so are other series; but a series of
  # one image may be a slice with a damaged header.
  uid = alike[0].series_uid
  sizes = collections.Counter((h.series_uid, h.series_number) for h in images)
  kept = {h.path for h in alike}
  rest = [
    h
    for h in headers
    if h.path not in kept
    and (h.series_uid == uid or sizes[h.series_uid, h.series_number] == 1)
  ]
  chosen, remarks = _one_phase(alike)
  return chosen, rest, notes + remarks


def _images(group: list[Slice]) -> int:
  return sum(h.size[2] if len(h.size) > 2 else 1 for h in group)


def _same_geometry(group: list[Slice]) -> tuple[list[Slice], list[str]]:
  """Keeps the largest set of slices of one size and orientation."""
  kinds = collections.defaultdict(list)
  for header in group:
    key = (
      header.size,
      tuple(round(v, 3) + 0.0 for v in header.spacing),
      tuple(round(v, 2) + 0.0 for v in header.orientation),
    )
    kinds[key].append(header)
  kept = max(kinds.values(), key=_images)
  others = len(group) - len(kept)
  if not others:
    return kept, []
  return kept, [
    f"left out {others} image{'s' if others > 1 else ''} of another size or"
    " orientation in the same series"
  ]


def _check_places(group: list[Slice]) -> None:
  """Refuses files that do not hold one plane whose place is known."""
  for header in group:
    # Their frames may be phases, unsorted, or of rescales of their own.
    if _images([header]) > 1:
      raise UserError(
        f"{header.path}: is enhanced multi-frame DICOM, whose frames cadjax"
        " does not sort; export it as single-frame slices or as NIfTI"
      )
    for what, values, count in (
      ("pixel spacing", header.spacing, 2),
      ("image position", header.position, 3),
      ("image orientation", header.orientation, 6),
    ):
      if len(values) != count or not np.isfinite(values).all():
        raise UserError(f"{header.path}: has no {what}")
    if min(header.spacing) <= 0:
      raise UserError(f"{header.path}: has no pixel spacing")
    cosines = np.array(header.orientation).reshape(2, 3)
    if not np.allclose(cosines @ cosines.T, np.eye(2), rtol=0, atol=_OFF_UNIT):
      raise UserError(
        f"{header.path}: its image orientation is not two unit vectors at right"
        " angles"
      )


def _one_phase(group: list[Slice]) -> tuple[list[Slice], list[str]]:
  """Where positions repeat because a series holds phases, keeps one.

  Slabs of a step-and-shoot scan repeat positions, too, where they overlap, and
  differ in the same tags; but each covers a range of its own.
  """
  if len({h.position for h in group}) == len(group):
    return group, []
  for number in range(len(_PHASE_TAGS)):
    phases = collections.defaultdict(list)
    for header in group:
      phases[header.phase[number]].append(header)
    if (
      len(phases) > 1
      and min(map(len, phases.values())) > 1
      and all(
        len({h.position for h in phase}) == len(phase)
        for phase in phases.values()
      )
      and _same_range(list(phases.values()))
    ):
      kept = max(phases.values(), key=len)
      return kept, [
        f"{len(phases)} phases in one series: took the one at"
        f" {kept[0].phase[number] or '(unnamed)'}, {len(kept)} images"
      ]
  return group, []


def _same_range(groups: list[list[Slice]]) -> bool:
  """Tells whether all groups cover about the same range along the normal."""
  normal = _normal(groups[0][0])
  along_mm = [np.array([h.position for h in g]) @ normal for g in groups]
  starts, stops = ([f(mm) for mm in along_mm] for f in (np.min, np.max))
  shared_mm = min(stops) - max(starts)
  return shared_mm >= _SAME_RANGE * (max(stops) - min(starts))


def _normal(header: Slice) -> np.ndarray:
  """Returns the unit vector [3] in LPS at right angles to a slice."""
  normal = np.cross(*_cosines(header))
  return normal / np.linalg.norm(normal)


def _cosines(header: Slice) -> np.ndarray:
  """Returns the unit vectors [2, 3] in LPS along a row and along a column."""
  cosines = np.array(header.orientation).reshape(2, 3)
  return cosines / np.linalg.norm(cosines, axis=1, keepdims=True)


def _sort(group, folder) -> tuple[list[Slice], np.ndarray]:
  """Sorts by position along the normal; returns also the step in LPS mm."""
  if len(group) < 2:
    raise UserError(
      f"{group[0].path}: the only CT slice in {folder}: not a 3D scan"
    )
  normal = _normal(group[0])
  ordered = sorted(group, key=lambda h: float(np.dot(h.position, normal)))
  positions = np.array([header.position for header in ordered])
  _check_gaps(ordered, positions @ normal)
  _check_straight(ordered, positions)
  step_mm = (positions[-1] - positions[0]) / (len(ordered) - 1)
  return ordered, step_mm


def _check_gaps(ordered: list[Slice], along_mm: np.ndarray) -> None:
  gaps = np.diff(along_mm)
  usual = np.median(gaps[gaps > 1e-3]) if (gaps > 1e-3).any() else 0.0
  for gap, before, after in zip(gaps, ordered, ordered[1:], strict=False):
    files = f"{before.path} and {after.path.name}"
    if gap < 0.1 * usual or gap <= 1e-3:
      raise UserError(
        f"{files}: two slices at the same position ({gap:.2f} mm apart);"
        " remove one, or choose a series"
      )
    if abs(gap - usual) > max(0.1 * usual, 0.02):
      raise UserError(
        f"{files}: a gap of {gap:.2f} mm where slices are {usual:.2f} mm apart"
        + (
          f"; {round(gap / usual) - 1} missing between them"
          if gap > 1.5 * usual
          else "; the slices are unevenly spaced"
        )
      )


def _check_straight(ordered: list[Slice], positions: np.ndarray) -> None:
  """Refuses stacks that jump sideways; a steady slope is a tilted gantry."""
  away_mm = positions - positions[0]
  line = away_mm[-1] / np.linalg.norm(away_mm[-1])
  off_mm = np.linalg.norm(away_mm - np.outer(away_mm @ line, line), axis=1)
  worst = int(off_mm.argmax())
  if off_mm[worst] > _OFF_LINE_MM:
    raise UserError(
      f"{ordered[worst].path}: lies {off_mm[worst]:.1f} mm beside the straight"
      " line from the first slice to the last; the slices are not of one scan,"
      " so remove those of the other, or choose a series"
    )


def _affine(first: Slice, step_mm: np.ndarray) -> np.ndarray:
  rows, columns = _cosines(first)
  affine = np.eye(4)
  # PixelSpacing is (between rows, between columns); the first three numbers
  # of the orientation point along a row, which is the index i.
  affine[:3, 0] = rows * first.spacing[1]
  affine[:3, 1] = columns * first.spacing[0]
  affine[:3, 2] = step_mm
  affine[:3, 3] = first.position
  return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _check_claim(header: Slice) -> None:
  """Refuses pixels that are not as many as the header says.

  ITK takes the memory first, and fills up what is a few bytes short.
  """
  path, count = header.path, header.size[0] * header.size[1] * header.bits // 8
  size = path.stat().st_size
  raw = _meta_uid(path, b"\x10") in _UNCOMPRESSED
  if count > (size if raw else size * _MOST_FROM_ONE):
    raise UserError(
      f"{path}: damaged DICOM pixels: {count} bytes by the header, more than"
      " the file can hold"
    )
  if not raw or header.bits % 8:
    return
  with path.open("rb") as file:
    head = file.read(size - count)
  for found in _PIXEL_DATA.finditer(head):
    big, length = found["big"], found["length"]
    length = int.from_bytes(length, "big" if big else "little")
    if length == count + count % 2:
      return
  raise UserError(
    f"{path}: damaged DICOM pixels: they are not {count} bytes, as rows and"
    " columns say"
  )


def _read_image(header: Slice) -> sitk.Image:
  path = header.path
  # The file, its pixels, and both again as they are converted.
  spare = _SPARE + 4 * path.stat().st_size
  spare += 32 * header.size[0] * header.size[1]
  try:
    with isolation.at_most(spare):
      return sitk.ReadImage(str(path), imageIO="GDCMImageIO")
  except (RuntimeError, MemoryError) as error:
    raise UserError(
      f"{path}: damaged DICOM pixels ({_reason(error)})"
    ) from error


def _read_pixels(ordered: list[Slice]) -> np.ndarray:
  """Returns int16 HU [k, j, i]; GDCM applies each slice's own rescale."""
  columns, rows = ordered[0].size[:2]
  for header in ordered:
    _check_claim(header)
  voxels = np.empty((len(ordered), rows, columns), np.int16)
  for number, header in enumerate(ordered):
    image = _read_image(header)  # the view does not keep it alive
    pixels = sitk.GetArrayViewFromImage(image).reshape(rows, columns)
    if pixels.dtype.kind == "f":
      pixels = np.rint(pixels)
    if header.padding_hu is not None:
      pixels = np.where(pixels == round(header.padding_hu), -1024, pixels)
    voxels[number] = np.clip(pixels, -32768, 32767)
  return voxels
