"""NRRD and MetaImage: files whose header is text, as arrays with a RAS affine.

They are read here and not by ITK, which takes what a header lacks to be 1 mm,
ends the process over some headers and never checks a compressed stream.

The formats: teem.sourceforge.net/nrrd/format.html and
itk.org/Wiki/ITK/MetaIO/Documentation.
"""

import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from data_prep import streams
from data_prep.errors import UserError, one_line, to_number
from data_prep.formats import check_shape
from data_prep.streams import DamagedError

_LONGEST_HEADER = 1 << 20
_LONGEST_LINE = 1 << 18
_RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MM = {
  **dict.fromkeys(("", "mm", "millimeter", "millimeters", "millimetre"), 1.0),
  **dict.fromkeys(("um", "µm", "micron", "microns", "micrometer"), 1e-3),
  **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre"), 10.0),
  **dict.fromkeys(("m", "meter", "meters", "metre"), 1000.0),
}
_NO_SPACING = "has no usable voxel spacing in its header"
_NO_ORIENTATION = "no orientation in the header; assumed to be stored as LPS"
_NO_ORIGIN = "no origin in the header; assumed to be 0, 0, 0"


@dataclasses.dataclass(frozen=True)
class _Header:
  """What a header says.

  Attributes:
    shape: voxels along the axes, the fastest first.
    dtype: of the voxels in the file.
    kind: of the bytes, see `streams.source`.
    data_file: as named in the header; None if the voxels follow it.
    skip: bytes to leave out before the voxels; -1 for all but the last ones.
    affine: [4, 4] from the first three indices to LPS mm.
    notes: for the user.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  kind: str
  data_file: str | None
  skip: int
  affine: np.ndarray
  notes: tuple[str, ...]


def read_nrrd(
  path: pathlib.Path,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """Reads a .nrrd or .nhdr file: raw, gzip or bzip2.

  Returns:
    (voxels [i, j, k], affine [4, 4] from index to RAS mm, notes).

  Raises:
    UserError: damaged, colour, not 3D, without spacing, stored as text or in
      many files.
  """
  return _read(path, _nrrd_header)


def read_meta(
  path: pathlib.Path,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """Reads a .mha or .mhd file: raw or compressed.

  Returns:
    (voxels [i, j, k], affine [4, 4] from index to RAS mm, notes).

  Raises:
    UserError: as `read_nrrd`.
  """
  return _read(path, _meta_header)


def _read(path, parse) -> tuple[np.ndarray, np.ndarray, list[str]]:
  try:
    with path.open("rb") as file:
      header = parse(file, path)
      if header.data_file is None:
        array, notes = _voxels(file, header)
      else:
        other = path.parent / header.data_file
        if not streams.is_file(other):
          raise UserError(f"{path}: its voxels are in {other}: no such file")
        with other.open("rb") as data:
          array, notes = _voxels(data, header)
  except DamagedError as error:
    raise UserError(
      f"{path}: damaged or not a {path.suffix} file ({one_line(error)})"
    ) from error
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from error
  array = array.reshape(array.shape[:3], order="F")
  return array, _RAS_FROM_LPS @ header.affine, [*header.notes, *notes]


def _voxels(file: BinaryIO, header: _Header) -> tuple[np.ndarray, list[str]]:
  skip = header.skip
  if skip < 0:
    size = os.fstat(file.fileno()).st_size
    skip = size - file.tell() - streams.size_of(header.shape, header.dtype)
    if skip < 0:
      raise DamagedError(f"the file is {-skip} bytes shorter than its header")
  file.seek(skip, os.SEEK_CUR)
  data = streams.source(file, header.kind)
  return streams.read_array(data, header.shape, header.dtype)


def _lines(file: BinaryIO) -> Iterator[str]:
  """Yields the lines of a header, without their ends, "" at the file's end."""
  while file.tell() < _LONGEST_HEADER:
    line = file.readline(_LONGEST_LINE)
    if line and not line.endswith(b"\n") and len(line) == _LONGEST_LINE:
      break
    # Names of files may be in any encoding.
    yield os.fsdecode(line).rstrip("\r\n")
  raise DamagedError("its header does not end")


# --- NRRD ---

_FIELDS = (
  "content number type blocksize dimension space spacedimension sizes spacings"
  " thicknesses axismins axismaxs centers centerings labels units kinds min max"
  " oldmin oldmax endian encoding lineskip byteskip sampleunits datafile"
  " spaceunits spaceorigin spacedirections measurementframe"
)
_NRRD_FIELDS = frozenset(_FIELDS.split())
_NRRD_TYPES = {
  "i1": ("signed char", "int8", "int8_t"),
  "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
  "i2": ("short", "short int", "signed short", "signed short int", "int16")
  + ("int16_t",),
  "u2": ("ushort", "unsigned short", "unsigned short int", "uint16")
  + ("uint16_t",),
  "i4": ("int", "signed int", "int32", "int32_t"),
  "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
  "i8": ("longlong", "long long", "long long int", "signed long long")
  + ("signed long long int", "int64", "int64_t"),
  "u8": ("ulonglong", "unsigned long long", "unsigned long long int")
  + ("uint64", "uint64_t"),
  "f4": ("float",),
  "f8": ("double",),
}
_NRRD_DTYPES = {name: k for k, names in _NRRD_TYPES.items() for name in names}
_NRRD_KINDS = {
  "raw": "raw",
  **dict.fromkeys(("gz", "gzip"), "gzip"),
  **dict.fromkeys(("bz2", "bzip2"), "bzip2"),
}
# To LPS from the spaces that say where the patient lies.
_NRRD_SPACES = {
  **dict.fromkeys(("ras", "right-anterior-superior"), (-1.0, -1.0, 1.0)),
  **dict.fromkeys(("las", "left-anterior-superior"), (1.0, -1.0, 1.0)),
  **dict.fromkeys(("lps", "left-posterior-superior"), (1.0, 1.0, 1.0)),
}


def _nrrd_header(file: BinaryIO, path: pathlib.Path) -> _Header:
  fields, attached = _nrrd_fields(file)
  dimension = _whole(fields, "dimension", 1, 16)
  sizes = _numbers(fields, "sizes", dimension, int)
  kind = _NRRD_KINDS.get(fields.get("encoding", "").lower())
  if kind is None:
    raise UserError(
      f"{path}: encoding {fields.get('encoding')!r} is not read; save it as"
      f" raw, gzip or bzip2"
    )
  dtype = np.dtype(
    _NRRD_DTYPES.get(" ".join(fields.get("type", "").lower().split()), "V")
  )
  if dtype.kind == "V":
    raise DamagedError(f"type {fields.get('type')!r} of the voxels")
  if dtype.itemsize > 1:
    dtype = dtype.newbyteorder(_byte_order(fields.get("endian", "").lower()))
  columns, origin, notes = _nrrd_axes(fields, sizes, path)
  axes = [i for i, n in enumerate(sizes) if n != 1 or columns[i] is not None]
  shape = [sizes[i] for i in axes]
  if len(axes) > 3 and columns[axes[0]] is None:
    raise UserError(f"{path}: colour or vector voxels; a CT scan is grey")
  check_shape(shape, path)
  affine = np.eye(4)
  affine[:3, 3] = origin
  for column, axis in enumerate(axes[:3]):
    if columns[axis] is None:
      raise UserError(f"{path}: {_NO_SPACING}")
    affine[:3, column] = columns[axis]
  skip = _whole(fields, "byteskip", -1, None, 0)
  if _whole(fields, "lineskip", 0, None, 0) or (skip and kind != "raw"):
    raise UserError(f"{path}: voxels after skipped lines or bytes are not read")
  name = fields.get("datafile")
  if name is None and not attached:
    raise DamagedError("no voxels follow the header")
  return _Header(
    tuple(shape), dtype, kind, _one_file(name, path), skip, affine, notes
  )


def _nrrd_fields(file: BinaryIO) -> tuple[dict[str, str], bool]:
  """Returns field -> value, and whether voxels follow in the same file."""
  lines = _lines(file)
  if not re.fullmatch(r"NRRD000[1-5]", next(lines)):
    raise DamagedError("it does not begin as NRRD")
  fields: dict[str, str] = {}
  size = os.fstat(file.fileno()).st_size
  for line in lines:
    if not line:
      # A blank line ends the header; at the end of the file there is none.
      return fields, file.tell() < size
    if line.startswith("#"):
      continue
    parts = re.fullmatch(r"([^:]+):(=?)\s*(.*?)\s*", line)
    if parts is None:
      raise DamagedError(f"header line {line[:40]!r}")
    name, is_own, value = parts.groups()
    if is_own:
      continue
    name = name.lower().replace(" ", "")
    if name not in _NRRD_FIELDS or name in fields:
      raise DamagedError(f"header line {line[:40]!r}, unknown or repeated")
    fields[name] = value
  raise AssertionError("`_lines` has no end")


def _nrrd_axes(
  fields: dict[str, str], sizes: Sequence[int], path: pathlib.Path
) -> tuple[list[np.ndarray | None], np.ndarray, tuple[str, ...]]:
  """Returns for each axis its step in LPS mm, the origin and notes.

  An axis without a usable step, such as that of colours, has None.
  """
  space = fields.get("space", "").lower()
  to_lps = np.array(_NRRD_SPACES.get(space, (1.0, 1.0, 1.0)))
  if "spacedirections" in fields and "spacings" in fields:
    raise DamagedError("it has both spacings and space directions")
  if "spacedirections" in fields:
    texts = re.findall(r"none|\([^()]*\)", fields["spacedirections"])
    if len(texts) != len(sizes):
      raise DamagedError("not one space direction for each axis")
    scale = _mm(fields.get("spaceunits"), path)
    steps = [None if text == "none" else _vector(text) for text in texts]
    origin = _vector(fields.get("spaceorigin", "(0,0,0)"))
    notes = () if space in _NRRD_SPACES else (_NO_ORIENTATION,)
    notes += () if "spaceorigin" in fields else (_NO_ORIGIN,)
  else:
    spacings = [math.nan] * len(sizes)
    if "spacings" in fields:
      spacings = _numbers(fields, "spacings", len(sizes), float)
    scale = _mm(fields.get("units"), path)
    unit = iter(np.eye(3))
    steps = [
      next(unit, np.zeros(3)) * s if math.isfinite(s) and s > 0 else None
      for s in spacings
    ]
    origin = np.zeros(3)
    notes = (_NO_ORIENTATION,)
  columns = [
    None
    if step is None or not np.isfinite(step).all() or not step.any()
    else step * to_lps * scale
    for step in steps
  ]
  return columns, origin * to_lps * scale, notes


def _vector(text: str) -> np.ndarray:
  """Returns the three numbers of a vector such as "(0.5,0,0)"."""
  numbers = [_number(part) for part in text.strip(" ()").split(",")]
  if len(numbers) != 3:
    raise DamagedError(f"{text[:40]!r} is no vector of three numbers")
  return np.array(numbers)


# --- MetaImage ---

_META_DTYPES = {
  "met_char": "i1",
  "met_uchar": "u1",
  "met_short": "i2",
  "met_ushort": "u2",
  "met_int": "i4",
  "met_uint": "u4",
  # Four bytes in a file, whatever they are in C.
  "met_long": "i4",
  "met_ulong": "u4",
  "met_long_long": "i8",
  "met_ulong_long": "u8",
  "met_float": "f4",
  "met_double": "f8",
}
# One thing under several names; the first counts.
_META_SPACING = ("elementspacing", "elementsize")
_META_ORIGIN = ("offset", "position", "origin")
_META_MATRIX = ("transformmatrix", "rotation", "orientation")
_META_ORDER = ("binarydatabyteordermsb", "elementbyteordermsb")


def _meta_header(file: BinaryIO, path: pathlib.Path) -> _Header:
  fields = _meta_fields(file)
  if fields.get("objecttype", "Image").lower() != "image":
    raise DamagedError(f"ObjectType {fields['objecttype']!r}")
  dimension = _whole(fields, "ndims", 1, 10)
  shape = _numbers(fields, "dimsize", dimension, int)
  if _whole(fields, "elementnumberofchannels", 1, None, 1) > 1:
    raise UserError(f"{path}: colour or vector voxels; a CT scan is grey")
  check_shape(shape, path)
  if not _flag(fields, "binarydata", True):
    raise UserError(f"{path}: voxels stored as text are not read; save it anew")
  code = _META_DTYPES.get(fields.get("elementtype", "").lower())
  if code is None:
    raise DamagedError(f"ElementType {fields.get('elementtype')!r}")
  big = _flag(fields, _first(fields, _META_ORDER), False)
  dtype = np.dtype((">" if big else "<") + code)
  packed = _flag(fields, "compresseddata", False)
  if not packed and "compresseddatasize" in fields:
    raise DamagedError("CompressedDataSize of voxels that are not compressed")
  skip = _whole(fields, "headersize", -1, None, 0)
  name = fields["elementdatafile"]
  local = name.lower() == "local"
  if skip and (packed or local):
    raise UserError(f"{path}: HeaderSize goes with a raw file of its own")
  affine, notes = _meta_affine(fields, dimension, path)
  return _Header(
    tuple(shape),
    dtype,
    "zlib" if packed else "raw",
    None if local else _one_file(name, path),
    skip,
    affine,
    notes,
  )


def _meta_fields(file: BinaryIO) -> dict[str, str]:
  fields: dict[str, str] = {}
  size = os.fstat(file.fileno()).st_size
  for line in _lines(file):
    parts = re.fullmatch(r"\s*([^=:]+?)\s*[=:]\s*(.*?)\s*", line)
    if parts:
      name, value = parts.groups()
      name = name.lower()
      if name in fields:
        raise DamagedError(f"header line {line[:40]!r}, repeated")
      fields[name] = value
      if name == "elementdatafile":
        return fields
    elif line.strip():
      raise DamagedError(f"header line {line[:40]!r}")
    elif file.tell() >= size:
      raise DamagedError("its header has no ElementDataFile")
  raise AssertionError("`_lines` has no end")


def _meta_affine(
  fields: dict[str, str], dimension: int, path: pathlib.Path
) -> tuple[np.ndarray, tuple[str, ...]]:
  key = _first(fields, _META_SPACING)
  if key not in fields:
    raise UserError(f"{path}: {_NO_SPACING}")
  spacing = np.array(_numbers(fields, key, dimension, float)[:3])
  if not (np.isfinite(spacing).all() and (spacing > 0).all()):
    raise UserError(f"{path}: {_NO_SPACING}")
  origin, matrix = np.zeros(3), np.eye(3)
  if (key := _first(fields, _META_ORIGIN)) in fields:
    origin = np.array(_numbers(fields, key, dimension, float)[:3])
    notes = ()
  else:
    notes = (_NO_ORIGIN,)
  if (key := _first(fields, _META_MATRIX)) in fields:
    numbers = _numbers(fields, key, dimension**2, float)
    # One row of the text for each axis of the array.
    matrix = np.array(numbers).reshape(dimension, dimension)[:3, :3].T
  else:
    notes = (_NO_ORIENTATION, *notes)
  if not np.allclose(np.linalg.norm(matrix, axis=0), 1, rtol=0, atol=0.01):
    raise DamagedError("its axes are not unit vectors")
  scale = _mm(fields.get("distanceunits", "").replace("?", ""), path)
  affine = np.eye(4)
  affine[:3, :3] = matrix * spacing * scale
  affine[:3, 3] = origin * scale
  return affine, notes


# --- Values of both ---


def _first(fields: dict[str, str], names: Sequence[str]) -> str:
  """Returns the first of several names that is there, or the first of all."""
  return next((name for name in names if name in fields), names[0])


def _number(text: str) -> float:
  number = to_number(text)
  if number is None:
    raise DamagedError(f"{text[:40]!r} is not a number")
  return number


def _numbers(fields: dict[str, str], name: str, count: int, kind: type) -> list:
  """Returns as many numbers as a field must have; whole ones are above 0."""
  numbers = [_number(part) for part in fields.get(name, "").split()]
  if len(numbers) != count:
    raise DamagedError(f"{name}: {len(numbers)} numbers, not {count}")
  if kind is float:
    return numbers
  if not all(0 < n < 2**40 and n == int(n) for n in numbers):
    raise DamagedError(f"{name}: {fields[name][:40]!r} are not sizes")
  return [int(n) for n in numbers]


def _whole(
  fields: dict[str, str],
  name: str,
  low: int,
  high: int | None,
  default: int | None = None,
) -> int:
  text = fields.get(name, default)
  if not re.fullmatch(r"[+-]?\d{1,15}", str(text)) or not (
    low <= int(text) <= (2**50 if high is None else high)
  ):
    raise DamagedError(f"{name} is {str(text)[:40]}")
  return int(text)


def _flag(fields: dict[str, str], name: str, default: bool) -> bool:
  values = {"true": True, "t": True, "1": True}
  values |= {"false": False, "f": False, "0": False}
  text = fields.get(name, str(default)).lower()
  if text not in values:
    raise DamagedError(f"{name} is {text[:40]!r}, neither True nor False")
  return values[text]


def _byte_order(endian: str) -> str:
  if endian not in ("little", "big"):
    raise DamagedError(f"endian is {endian[:40]!r}, neither little nor big")
  return "<" if endian == "little" else ">"


def _mm(units: str | None, path: pathlib.Path) -> float:
  """Returns how many mm the unit of a header is; mm if it names none."""
  names = re.findall(r'"([^"]*)"', units or "") or [units or ""]
  factors = {_MM.get(name.strip().lower()) for name in names}
  if len(factors) > 1 or None in factors:
    raise UserError(f"{path}: unknown or different units of length: {units}")
  return factors.pop()


def _one_file(name: str | None, path: pathlib.Path) -> str | None:
  """Refuses lists and patterns such as `slice%03d.raw 1 20 1`."""
  if name is not None and (
    name.split()[:1] == ["LIST"] or re.search(r"%.*\s-?\d+\s", name + " ")
  ):
    raise UserError(
      f"{path}: voxels in many files are not read; save the scan as one file"
    )
  return name
