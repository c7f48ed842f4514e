"""DICOM series as they really come: found, checked, sorted and read."""

import collections
import contextlib
import dataclasses
import os
import pathlib

import numpy as np
import SimpleITK as sitk

from data_prep.errors import UserError

_NOT_IMAGES = ("DICOMDIR", "LOCKFILE", "VERSION")
# What distinguishes the phases of a cardiac series when one series holds many:
# temporal position, cardiac phase, trigger time, acquisition number.
_PHASE_TAGS = ("0020|0100", "0020|9241", "0018|1060", "0020|0012")
# Share of the whole range along the normal that phases have in common: they
# may differ by a few slices at the ends, where slabs share a tenth or less.
_SAME_RANGE = 0.9
# Positions are written to some 0.01 mm; a table that moved is far beyond.
_OFF_LINE_MM = 0.5


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


def is_dicom(path: pathlib.Path) -> bool:
  """Tells whether the file starts like DICOM part 10."""
  with path.open("rb") as file:
    return file.read(132)[128:] == b"DICM"


def series_of(path: pathlib.Path) -> str | None:
  """Returns the series UID of one DICOM file, None if it has none."""
  header = _read_header(path)
  if header is None:
    raise UserError(f"{path}: damaged DICOM file")
  return header.series_uid or None


def itk_reason(error: RuntimeError) -> str:
  """Returns the part of an ITK error that says what went wrong."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  reason = lines[-1] if lines else "unknown"
  return reason.split("): ")[-1][:160]


def ras_affine(image: sitk.Image) -> np.ndarray:
  """Returns [4, 4], index (i, j, k, 1) to RAS mm, of a 3D ITK image."""
  affine = np.eye(4)
  direction = np.array(image.GetDirection()).reshape(3, 3)
  affine[:3, :3] = direction * np.array(image.GetSpacing())
  affine[:3, 3] = image.GetOrigin()
  return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def read_series(
  folder: pathlib.Path, series: str | int | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """Reads one CT series of a folder and the folders below it.

  Args:
    folder: holds DICOM files under any names.
    series: series UID or number; None takes the CT series with most images.

  Returns:
    (voxels [i, j, k], affine [4, 4] from index to RAS mm, notes).

  Raises:
    UserError: no CT series, not the one asked for, a multi-frame file, or
      slices missing, doubled, damaged or not in one straight stack.
  """
  with _quiet():
    chosen, notes = _choose(_headers(folder), series, folder)
    chosen, step_mm = _sort(chosen, folder)
    voxels = _read_pixels(chosen)
  return voxels.transpose(2, 1, 0), _affine(chosen[0], step_mm), notes


@contextlib.contextmanager
def _quiet():
  """Keeps ITK's warnings about each odd file off the user's screen."""
  before = sitk.ProcessObject.GetGlobalWarningDisplay()
  sitk.ProcessObject.SetGlobalWarningDisplay(False)
  try:
    yield
  finally:
    sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _headers(folder: pathlib.Path) -> list[Slice]:
  """Reads the header of every DICOM image below `folder`."""
  paths = sorted(
    pathlib.Path(parent) / name
    for parent, _, names in os.walk(folder)
    for name in names
    if not name.startswith(".") and name.upper() not in _NOT_IMAGES
  )
  if not paths:
    raise UserError(f"{folder}: the folder is empty")
  headers, damaged = [], []
  for path in paths:
    header = _read_header(path)
    if header is not None:
      headers.append(header)
    elif is_dicom(path):
      damaged.append(path)
  if damaged:
    raise UserError(
      f"{damaged[0]}: damaged DICOM file"
      + (f", and {len(damaged) - 1} more" if len(damaged) > 1 else "")
    )
  if not headers:
    raise UserError(f"{folder}: none of {len(paths)} files is a DICOM image")
  return headers


def _read_header(path: pathlib.Path) -> Slice | None:
  reader = sitk.ImageFileReader()
  reader.SetImageIO("GDCMImageIO")
  reader.SetFileName(str(path))
  try:
    reader.ReadImageInformation()
  except RuntimeError:
    return None

  def text(tag: str) -> str:
    return reader.GetMetaData(tag).strip() if reader.HasMetaDataKey(tag) else ""

  def numbers(tag: str) -> tuple[float, ...]:
    try:
      return tuple(float(part) for part in text(tag).split("\\"))
    except ValueError:
      return ()

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
  )


def _padding_hu(padding, slope, intercept) -> float | None:
  """Returns what the pixel padding value becomes as HU, None if it is tissue.

  Some files declare a padding value in the midst of tissue; obeying it would
  punch holes into the body.
  """
  if not padding:
    return None
  raw = padding[0] - 65536 if padding[0] > 32767 else padding[0]
  hu = raw * (slope[0] if slope else 1) + (intercept[0] if intercept else 0)
  return hu if hu <= -1000 or hu >= 3000 else None


def _choose(headers, series, folder) -> tuple[list[Slice], list[str]]:
  """Returns the slices of the series asked for, and what was left out."""
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
  chosen, remarks = _same_geometry(ranked[0])
  notes += remarks
  _check_places(chosen)
  chosen, remarks = _one_phase(chosen)
  return chosen, notes + remarks


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
  rows, columns = np.array(header.orientation).reshape(2, 3)
  return np.cross(rows, columns)


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
  rows, columns = np.array(first.orientation).reshape(2, 3)
  affine = np.eye(4)
  # PixelSpacing is (between rows, between columns); the first three numbers
  # of the orientation point along a row, which is the index i.
  affine[:3, 0] = rows * first.spacing[1]
  affine[:3, 1] = columns * first.spacing[0]
  affine[:3, 2] = step_mm
  affine[:3, 3] = first.position
  return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _read_image(path: pathlib.Path) -> sitk.Image:
  try:
    return sitk.ReadImage(str(path), imageIO="GDCMImageIO")
  except RuntimeError as error:
    raise UserError(
      f"{path}: damaged DICOM pixels ({itk_reason(error)})"
    ) from error


def _read_pixels(ordered: list[Slice]) -> np.ndarray:
  """Returns int16 HU [k, j, i]; GDCM applies each slice's own rescale."""
  columns, rows = ordered[0].size[:2]
  voxels = np.empty((len(ordered), rows, columns), np.int16)
  for number, header in enumerate(ordered):
    image = _read_image(header.path)  # the view does not keep it alive
    pixels = sitk.GetArrayViewFromImage(image).reshape(rows, columns)
    if pixels.dtype.kind == "f":
      pixels = np.rint(pixels)
    if header.padding_hu is not None:
      pixels = np.where(pixels == round(header.padding_hu), -1024, pixels)
    voxels[number] = np.clip(pixels, -32768, 32767)
  return voxels
