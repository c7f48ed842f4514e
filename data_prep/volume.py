"""Scans as `[D, H, W]` arrays of HU in the patient's LPS space."""

import dataclasses
import gzip
import os
import pathlib
import stat
import tempfile
from typing import Any

import nibabel as nib
import numpy as np

from data_prep import dicom, formats, matching, streams, text_headers
from data_prep.errors import UserError, one_line

AIR_HU = -1024
# Scanners pad outside the reconstructed circle with -2000, -3024 and the
# like; no tissue and no noise reaches this low.
PADDING_BELOW_HU = -1500
# Of a mask, background included; TotalSegmentator's has 118.
_MOST_LABELS = 128
# Metal reaches it in a few voxels; -1000 HU read as uint16 is 64536.
_WRAPPED_ABOVE_HU = 20000
_WRAPPED_SHARE = 0.01
FORMATS = ".nii .nii.gz .nrrd .nhdr .mha .mhd, or a folder of DICOM slices"
_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
  """A lattice of voxels in the patient, without data.

  Attributes:
    shape: voxels along D, H, W (inferior to superior, anterior to posterior,
      patient right to left, or as close as the scan's rotation allows).
    spacing: mm between voxel centres along D, H, W.
    origin: LPS mm (x, y, z) of the centre of voxel `[0, 0, 0]`.
    direction: [3, 3]; column j is the LPS unit vector of array axis j. The
      columns are orthogonal but for a scan with a tilted gantry.
  """

  shape: tuple[int, int, int]
  spacing: tuple[float, float, float]
  origin: tuple[float, float, float]
  direction: np.ndarray

  def __post_init__(self):
    set_ = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
    set_("shape", tuple(int(n) for n in self.shape))
    set_("spacing", tuple(float(s) for s in self.spacing))
    set_("origin", tuple(float(p) for p in self.origin))
    direction = np.array(self.direction, np.float64).reshape(3, 3)
    direction.flags.writeable = False
    set_("direction", direction)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Grid) and self.to_dict() == other.to_dict()

  __hash__ = None

  @property
  def affine(self) -> np.ndarray:
    """[4, 4] float64 that takes (d, h, w, 1) to LPS mm (x, y, z, 1)."""
    affine = np.eye(4)
    affine[:3, :3] = self.direction * np.array(self.spacing)
    affine[:3, 3] = self.origin
    return affine

  @classmethod
  def from_affine(cls, shape: tuple[int, int, int], affine: np.ndarray):
    """Returns the grid with this shape whose `affine` is `affine`."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return cls(shape, spacing, affine[:3, 3], affine[:3, :3] / spacing)

  @property
  def extent_mm(self) -> tuple[float, float, float]:
    """Size along D, H, W in mm, voxel edge to voxel edge."""
    return tuple(n * s for n, s in zip(self.shape, self.spacing, strict=True))

  @property
  def center_mm(self) -> np.ndarray:
    """LPS mm (x, y, z) of the middle of the lattice."""
    return self.to_mm((np.array(self.shape) - 1) / 2)

  def to_mm(self, index: Any) -> np.ndarray:
    """Maps voxel indices [..., 3] (d, h, w) to LPS mm [..., 3] (x, y, z)."""
    affine = self.affine
    return np.asarray(index, np.float64) @ affine[:3, :3].T + affine[:3, 3]

  def to_index(self, point_mm: Any) -> np.ndarray:
    """Maps LPS mm [..., 3] (x, y, z) to voxel indices [..., 3] (d, h, w)."""
    inverse = np.linalg.inv(self.affine[:3, :3])
    return (np.asarray(point_mm, np.float64) - self.origin) @ inverse.T

  def to_dict(self) -> dict[str, list]:
    """Returns a JSON-able description."""
    return {
      "shape": list(self.shape),
      "spacing": list(self.spacing),
      "origin": list(self.origin),
      "direction": self.direction.tolist(),
    }

  @classmethod
  def from_dict(cls, description: dict[str, list]) -> "Grid":
    """Returns the grid that `to_dict` described."""
    return cls(**description)


@dataclasses.dataclass(frozen=True)
class Stored:
  """How a file lays a volume out.

  Attributes:
    axes: for canonical D, H, W, the axis of the file's array.
    flips: for canonical D, H, W, whether the file's axis runs the other way.
    affine: [4, 4] float64, file index (i, j, k, 1) to RAS mm, as in NIfTI.
  """

  axes: tuple[int, int, int]
  flips: tuple[bool, bool, bool]
  affine: np.ndarray

  def to_canonical(self, stored: np.ndarray) -> np.ndarray:
    """Returns a [D, H, W] view of an array in the file's order."""
    return stored.transpose(self.axes)[self._steps()]

  def to_stored(self, array: np.ndarray) -> np.ndarray:
    """Returns a view in the file's order of a [D, H, W] array."""
    return array[self._steps()].transpose(np.argsort(self.axes))

  def _steps(self) -> tuple[slice, ...]:
    return tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
  """A scan or a mask in canonical order, with its place in the patient.

  Attributes:
    hu: [D, H, W]; int16 HU for a scan, unsigned labels for a mask.
    grid: where the voxels lie.
    stored: how the file holds it; left out, W, H, D order without flips.
    path: the file or folder it came from; "" if from none.
    notes: what the reader reports to the user, one sentence each.
  """

  hu: np.ndarray
  grid: Grid
  stored: Stored | None = None
  path: str = ""
  notes: tuple[str, ...] = ()

  def __post_init__(self):
    if self.hu.shape != self.grid.shape:
      raise ValueError(f"array {self.hu.shape} on a grid {self.grid.shape}")
    if self.stored is None:
      object.__setattr__(self, "stored", _own_layout(self.grid))

  @property
  def shape(self) -> tuple[int, int, int]:
    """Voxels along D, H, W."""
    return self.grid.shape

  @property
  def spacing(self) -> tuple[float, float, float]:
    """Mm along D, H, W."""
    return self.grid.spacing

  @property
  def origin(self) -> tuple[float, float, float]:
    """LPS mm (x, y, z) of voxel `[0, 0, 0]`."""
    return self.grid.origin

  @property
  def direction(self) -> np.ndarray:
    """[3, 3] LPS unit vectors of the array axes, in columns."""
    return self.grid.direction

  @property
  def affine(self) -> np.ndarray:
    """[4, 4], (d, h, w, 1) to LPS mm (x, y, z, 1)."""
    return self.grid.affine


def read_volume(
  path: str | os.PathLike, *, series: str | int | None = None
) -> Volume:
  """Reads a CT scan as int16 HU in canonical order.

  The voxels are never resampled: axes are permuted and flipped to the nearest
  of D, H, W, and `grid.direction` keeps what rotation is left. Padding and
  other values below -1500 HU become -1024.

  Args:
    path: a .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd file, a folder of DICOM
      slices, or one DICOM file of such a folder.
    series: which DICOM series, by UID or series number; the largest if None.

  Returns:
    The volume; `notes` says what was chosen, assumed or left out.

  Raises:
    UserError: the path holds no readable, single, three-dimensional CT scan
      with known spacing.
  """
  stored, affine, notes = _read_any(path, series)
  hu = _to_hu(stored, path)
  return _canonical(hu, affine, path, notes)


def read_mask(path: str | os.PathLike) -> Volume:
  """Reads a mask of integer labels in canonical order.

  Args:
    path: a .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd file.

  Returns:
    A volume whose `hu` is uint8, or uint16 where a label exceeds 255.

  Raises:
    UserError: the file is unreadable or holds other than labels 0 to 65535.
  """
  if os.path.isdir(path):
    raise UserError(f"{path}: is a folder; a mask must be one file: {FORMATS}")
  stored, affine, notes = _read_any(path, None)
  low, high = stored.min(), stored.max()
  whole = stored.dtype.kind in "iub" or np.array_equal(stored, stored.round())
  if not (whole and low >= 0 and high <= 65535):
    raise UserError(
      f"{path}: is not a mask: values run from {low:g} to {high:g}; labels"
      " must be whole numbers from 0 to 65535"
    )
  labels = stored.astype(np.uint8 if high <= 255 else np.uint16)
  return _canonical(labels, affine, path, notes)


def is_mask(path: str | os.PathLike) -> bool:
  """Tells whether a file holds labels, as a mask does and no scan.

  Args:
    path: a file that `read_volume` or `read_mask` would read; False for one
      that cannot be read.
  """
  try:
    stored, *_ = _read_any(path, None)
  except UserError:
    return False
  return _count_labels(stored) is not None


def write_nifti(
  path: str | os.PathLike, array: np.ndarray, grid_or_like: Grid | Volume
) -> None:
  """Writes a [D, H, W] array as NIfTI, whole or not at all.

  Args:
    path: ends in .nii or .nii.gz; folders are made as needed.
    array: on the grid given; bool is stored as uint8, float64 as float32.
    grid_or_like: a `Grid`, written with W, H, D as the file's i, j, k; or a
      `Volume`, whose file's axis order and affine are reproduced.

  Raises:
    UserError: the name does not end in .nii or .nii.gz.
    ValueError: the array does not fit the grid.
  """
  path = pathlib.Path(path)
  if not path.name.endswith((".nii", ".nii.gz")):
    raise UserError(f"{path}: the name must end in .nii or .nii.gz")
  content = to_nifti(array, grid_or_like).to_bytes()
  if path.suffix == ".gz":
    # No file name and no time: the same array gives the same bytes.
    content = gzip.compress(content, compresslevel=1, mtime=0)
  path.parent.mkdir(parents=True, exist_ok=True)
  descriptor, temporary = tempfile.mkstemp(
    dir=path.parent, prefix=".", suffix=".part"
  )
  try:
    with os.fdopen(descriptor, "wb") as file:
      file.write(content)
    os.chmod(temporary, 0o666 & ~_umask())
    os.replace(temporary, path)
  except BaseException:
    pathlib.Path(temporary).unlink(missing_ok=True)
    raise


def to_nifti(array: np.ndarray, grid_or_like: Grid | Volume) -> nib.Nifti1Image:
  """Returns what `write_nifti` writes, with the same arguments and errors."""
  grid = getattr(grid_or_like, "grid", grid_or_like)
  stored = getattr(grid_or_like, "stored", None) or _own_layout(grid)
  if array.shape != grid.shape:
    raise ValueError(f"array {array.shape} on a grid {grid.shape}")
  data = stored.to_stored(array.astype(_nifti_dtype(array), copy=False))
  image = nib.Nifti1Image(data, stored.affine)
  image.set_sform(stored.affine, code=1)
  image.set_qform(stored.affine, code=1 if _is_orthogonal(grid) else 0)
  image.header.set_xyzt_units("mm")
  return image


def check_same_grid(volume: Volume, mask: Volume) -> None:
  """Raises `UserError` unless both lie on one grid (0.01 mm, 0.001)."""
  a, b = volume.grid, mask.grid
  same = (
    a.shape == b.shape
    and np.allclose(a.spacing, b.spacing, rtol=0, atol=1e-2)
    and np.allclose(a.origin, b.origin, rtol=0, atol=1e-2)
    and np.allclose(a.direction, b.direction, rtol=0, atol=1e-3)
  )
  if not same:
    raise UserError(
      f"{mask.path}: not on the grid of {volume.path}: {_describe(b)} against"
      f" {_describe(a)}; resample the mask to the scan"
    )


def _describe(grid: Grid) -> str:
  numbers = lambda values: ", ".join(f"{v:.4g}" for v in values)  # noqa: E731
  return (
    f"shape {'x'.join(map(str, grid.shape))}, spacing {numbers(grid.spacing)}"
    f" mm, origin {numbers(grid.origin)} mm, direction"
    f" {numbers(grid.direction.ravel())}"
  )


def _own_layout(grid: Grid) -> Stored:
  affine = _LPS_FROM_RAS @ grid.affine[:, [2, 1, 0, 3]]
  return Stored((2, 1, 0), (False,) * 3, affine)


def _is_orthogonal(grid: Grid) -> bool:
  gram = grid.direction.T @ grid.direction
  return np.allclose(gram, np.eye(3), atol=1e-4)


def _nifti_dtype(array: np.ndarray) -> np.dtype:
  same = ("uint8", "int16", "uint16", "int32", "float32")
  if array.dtype.name in same:
    return array.dtype
  if array.dtype.kind == "b":
    return np.dtype(np.uint8)
  return np.dtype(np.float32 if array.dtype.kind == "f" else np.int32)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask


def _canonical(stored, affine, path, notes) -> Volume:
  """Permutes and flips an array [i, j, k] with a RAS affine to [D, H, W]."""
  # io_orientation gives, per file axis, the nearest of R, A, S and the sign.
  orientation = nib.io_orientation(affine)
  axes, flips = [0, 0, 0], [False] * 3
  for axis, (world, sign) in enumerate(orientation):
    canonical = 2 - int(world)
    axes[canonical] = axis
    # L and P run against R and A; S runs with S.
    flips[canonical] = bool((sign > 0) != (canonical == 0))
  layout = Stored(tuple(axes), tuple(flips), affine)
  array = np.ascontiguousarray(layout.to_canonical(stored))
  lps = _LPS_FROM_RAS @ affine
  to_file = np.zeros((4, 4))
  to_file[3, 3] = 1
  for canonical, (axis, flip) in enumerate(zip(axes, flips, strict=True)):
    to_file[axis, canonical] = -1 if flip else 1
    to_file[axis, 3] = stored.shape[axis] - 1 if flip else 0
  grid = Grid.from_affine(array.shape, lps @ to_file)
  return Volume(array, grid, layout, str(path), tuple(map(one_line, notes)))


def _read_any(path, series) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """Returns (array [i, j, k], RAS affine, notes) of a file or folder."""
  try:
    # Of numbers that overflow, the error is raised where they are checked.
    with np.errstate(all="ignore"):
      return _read_format(pathlib.Path(path), series)
  except MemoryError as error:
    raise UserError(f"{path}: there is not enough memory to read it") from error


def _read_format(path: pathlib.Path, series):
  name = path.name.lower()
  if stat.S_ISDIR(streams.check_kind(path).st_mode):
    if name.endswith(matching.EXTENSIONS):
      raise UserError(f"{path}: is a folder, though named like a file")
    array, affine, notes = dicom.read_series(path, series)
  elif name.endswith((".nii", ".nii.gz")):
    array, affine, notes = formats.read_nifti(path)
  elif name.endswith((".nrrd", ".nhdr")):
    array, affine, notes = text_headers.read_nrrd(path)
  elif name.endswith((".mha", ".mhd")):
    array, affine, notes = text_headers.read_meta(path)
  elif dicom.is_dicom(path):
    array, affine, notes = dicom.read_series(path, series)
  else:
    raise UserError(f"{path}: unknown format; known are {FORMATS}")
  formats.check_spacing(affine, path)
  return array, affine, notes


def _to_hu(stored: np.ndarray, path) -> np.ndarray:
  """Rounds to int16 HU, replaces padding, refuses what cannot be HU."""
  if stored.dtype.kind == "f":
    bad = stored.size - int(np.isfinite(stored).sum())
    if bad:
      raise UserError(f"{path}: {bad} voxels are NaN or infinite")
    low, high = float(stored.min()), float(stored.max())
    hu = np.clip(np.rint(stored), -32768, 32767).astype(np.int16)
  else:
    low, high = int(stored.min()), int(stored.max())
    if stored.dtype == np.int16:
      hu = stored
    else:
      hu = np.clip(stored, -32768, 32767).astype(np.int16)
  if labels := _count_labels(stored):
    raise UserError(
      f"{path}: holds {labels} whole numbers from {low:g} to {high:g}: a mask,"
      " not HU of a CT scan; give the scan that it belongs to"
    )
  if low == high or (low >= -1 and high <= 255):
    raise UserError(
      f"{path}: values run from {low:g} to {high:g}: not HU of a CT scan"
      " (windowed, normalised or a mask?)"
    )
  if high > _WRAPPED_ABOVE_HU:
    share = np.count_nonzero(hu > _WRAPPED_ABOVE_HU) / hu.size
    if share > _WRAPPED_SHARE:
      raise UserError(
        f"{path}: {share:.0%} of the voxels are above {_WRAPPED_ABOVE_HU}: not"
        " HU (negative values saved as unsigned?); export the scan as int16"
      )
  if low < PADDING_BELOW_HU:
    hu = np.where(hu < PADDING_BELOW_HU, np.int16(AIR_HU), hu)
  return hu


def _count_labels(stored: np.ndarray) -> int | None:
  """Returns how many labels a mask has; None for what is no mask.

  A mask holds whole numbers from 0 to 65535, and few different ones; a scan
  of one value alone is no mask either.
  """
  low, high = stored.min(), stored.max()
  if not (np.isfinite([low, high]).all() and 0 <= low < high <= 65535):
    return None
  if stored.dtype.kind == "f" and not np.array_equal(stored, stored.round()):
    return None
  counts = np.bincount(stored.ravel().astype(np.uint16))
  labels = np.count_nonzero(counts)
  return labels if labels <= _MOST_LABELS else None
