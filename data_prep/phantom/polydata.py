"""Centrelines of real vessels, from VTK's PolyData as SimVascular writes it."""

import base64
import binascii
import os
import pathlib
import struct
import xml.etree.ElementTree as ElementTree
import zlib

import numpy as np

from data_prep.errors import UserError

_TYPES = {"Int32": "<i4", "Int64": "<i8", "Float32": "<f4", "Float64": "<f8"}
_MM = 10.0  # SimVascular's lengths are in cm.
_AORTA_MM = 7.0  # No coronary artery has such a radius.
_BROKEN = (
  *(KeyError, ValueError, struct.error, zlib.error, binascii.Error),
  ElementTree.ParseError,
)


def read_lines(path: str | os.PathLike) -> list[np.ndarray]:
  """Reads the branches of a coronary tree.

  Args:
    path: a .vtp file, compressed and base64, little endian, with the point
      arrays BranchId, Path and CenterlineSectionArea, in cm.

  Returns:
    [N, 4] of every branch: x, y, z and the radius of the circle of the
    section's area, in mm. The aorta is left out, and so are the points at
    forks, which belong to no branch.

  Raises:
    UserError: it is no such file.
  """
  content = pathlib.Path(path).read_bytes()
  try:
    arrays = _arrays(content)
    points = arrays["Points"].reshape(-1, 3) * _MM
    branch, way = arrays["BranchId"], arrays["Path"]
    radius = np.sqrt(arrays["CenterlineSectionArea"] / np.pi) * _MM
    lines = np.column_stack([points, radius])
  except _BROKEN as error:
    raise UserError(
      f"{path}: is no VTK PolyData of centrelines as SimVascular writes it"
      f" ({type(error).__name__}: {error})"
    ) from error
  found = []
  for number in np.unique(branch[branch >= 0]):
    line = lines[branch == number]
    line = line[np.argsort(way[branch == number])]
    if len(line) > 2 and np.median(line[:, 3]) < _AORTA_MM:
      found.append(line)
  return found


def _arrays(content: bytes) -> dict[str, np.ndarray]:
  """Returns name -> values of the first array of each name."""
  head, mark, body = content.partition(b"<AppendedData")
  if not mark:
    raise ValueError("it has no appended data")
  root = ElementTree.fromstring(head + b"</VTKFile>")
  if root.get("compressor") != "vtkZLibDataCompressor":
    raise ValueError("it is not compressed by zlib")
  body = body.partition(b"_")[2]
  found = {}
  for element in root.iter("DataArray"):
    name = element.get("Name")
    if name not in found and element.get("type") in _TYPES:
      raw = _blocks(body, int(element.get("offset")))
      found[name] = np.frombuffer(raw, _TYPES[element.get("type")])
  return found


def _blocks(body: bytes, start: int) -> bytes:
  """Returns the bytes of an array: a header of sizes, then zlib's blocks."""
  (count,) = struct.unpack_from("<I", _decode(body, start, 4))
  size = 4 * (3 + count)
  header = struct.unpack_from(f"<{3 + count}I", _decode(body, start, size))
  start += _length(size)
  data = _decode(body, start, sum(header[3:]))
  out, at = [], 0
  for size in header[3:]:
    out.append(zlib.decompress(data[at : at + size]))
    at += size
  return b"".join(out)


def _length(size: int) -> int:
  """Returns how many characters base64 takes for so many bytes."""
  return 4 * -(-size // 3)


def _decode(body: bytes, start: int, size: int) -> bytes:
  return base64.b64decode(body[start : start + _length(size)])[:size]
