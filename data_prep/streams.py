"""The bytes of a file's voxels, bounded by its header and checked to the end.

A compressed stream is read to its end, where gzip has a CRC-32 and the length,
zlib an Adler-32 and bzip2 a CRC-32 of each block and of the whole. No memory is
taken for more than the file can hold or its header asks for.
"""

import bz2
import math
import os
import pathlib
import stat
import zlib
from typing import BinaryIO, Protocol

import numpy as np

from data_prep.errors import UserError

# Deflate gives at most 1032 bytes for one (zlib.net/zlib_tech.html). 45 bytes
# of bzip2 hold a block of 46 MB of one value, if its runs are packed twice.
_MOST_FROM_ONE = {"gzip": 1032, "zlib": 1032, "bzip2": 1_500_000}
_INPUT, _OUTPUT = 1 << 17, 1 << 20


class DamagedError(ValueError):
  """The content of a file is not what it should be; says why."""


class Source(Protocol):
  """Bytes that are read front to back."""

  def check_claim(self, count: int) -> None:
    """Raises `DamagedError` if so many bytes cannot be left."""

  def readinto(self, out: memoryview) -> None:
    """Fills `out`; raises `DamagedError` if fewer bytes are left."""

  def finish(self, most: int) -> int:
    """Reads to the end, where compressed bytes are checked.

    Args:
      most: raises `DamagedError` as soon as more bytes than that are left.

    Returns:
      How many bytes were left.
    """


def check_kind(path: pathlib.Path) -> os.stat_result:
  """Refuses what is neither a file nor a folder, before it is opened.

  Opening a named pipe waits for ever, and reading a device may never end.

  Args:
    path: of an input.

  Returns:
    What the system says of the file or folder.

  Raises:
    UserError: nothing is there, or a link to nowhere, a pipe, a socket or a
      device.
  """
  try:
    status = path.stat()
  except (OSError, ValueError) as error:
    if os.path.islink(path):
      raise UserError(f"{path}: a link that leads nowhere") from error
    if isinstance(error, FileNotFoundError | NotADirectoryError):
      raise UserError(f"{path}: no such file or folder") from error
    reason = getattr(error, "strerror", None) or error
    raise UserError(f"{path}: cannot be read ({reason})") from error
  if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
    raise UserError(
      f"{path}: neither a file nor a folder, but a pipe, socket or device"
    )
  return status


def check_kinds(*paths: pathlib.Path) -> None:
  """Does `check_kind` for what is there, folders with all that they hold.

  Raises:
    UserError: of the first that is neither a file nor a folder.
  """
  for path in paths:
    if not os.path.lexists(path):
      continue
    check_kind(path)
    for folder, _, names in os.walk(path):
      for name in names:
        check_kind(pathlib.Path(folder, name))


def is_file(path: pathlib.Path) -> bool:
  """Tells whether a path leads to a regular file."""
  try:
    return stat.S_ISREG(path.stat().st_mode)
  except (OSError, ValueError):
    return False


def source(file: BinaryIO, kind: str) -> Source:
  """Returns the bytes of a file from where it is now.

  Args:
    file: open for reading.
    kind: "raw", "gzip", "zlib" or "bzip2"; gzip and bzip2 may be several
      streams one after the other, and zeros may follow.
  """
  return _Raw(file) if kind == "raw" else _Packed(file, kind)


def read_array(
  data: Source, shape: tuple[int, ...], dtype: np.dtype
) -> tuple[np.ndarray, list[str]]:
  """Reads all that is left as an array.

  Args:
    data: at the first voxel.
    shape: of the array; its first axis varies fastest.
    dtype: of the voxels in the file, with its byte order.

  Returns:
    (array of that shape, notes).

  Raises:
    DamagedError: there are too few bytes or too many, or they are not what was
      compressed.
  """
  count = size_of(shape, dtype)
  data.check_claim(count)
  array = np.empty(shape, dtype, order="F")
  data.readinto(memoryview(array.reshape(-1, order="F").view(np.uint8)))
  # Padding may follow, but not a slice: that is left over where the header
  # gives an axis too few voxels.
  left = data.finish(count // max(shape) - 1)
  notes = [f"left out {left} bytes after the voxels"] if left else []
  return array, notes


def size_of(shape: tuple[int, ...], dtype: np.dtype) -> int:
  """Returns the bytes of an array, however large: np.prod overflows."""
  return math.prod(map(int, shape)) * dtype.itemsize


class _Raw:
  def __init__(self, file: BinaryIO):
    self._file = file

  def check_claim(self, count: int) -> None:
    left = self._left()
    if count > left:
      raise DamagedError(
        f"its header asks for {count} bytes of voxels, the file has {left}"
      )

  def readinto(self, out: memoryview) -> None:
    if self._file.readinto(out) != len(out):
      raise DamagedError("the file breaks off before its end")

  def finish(self, most: int) -> int:
    left = self._left()
    if left > most:
      raise DamagedError(
        f"the file has {left} bytes more than its header asks for"
      )
    return left

  def _left(self) -> int:
    return os.fstat(self._file.fileno()).st_size - self._file.tell()


class _Packed:
  def __init__(self, file: BinaryIO, kind: str):
    self._file = file
    self._kind = kind
    self._stream = self._start()
    self._input = b""
    self._ended = False
    size = os.fstat(file.fileno()).st_size - file.tell()
    self._most = size * _MOST_FROM_ONE[kind]

  def check_claim(self, count: int) -> None:
    if count > self._most:
      raise DamagedError(
        f"its header asks for {count} bytes of voxels, more than the file can"
        " hold"
      )

  def readinto(self, out: memoryview) -> None:
    at = 0
    while at < len(out):
      piece = self._next(min(_OUTPUT, len(out) - at))
      if not piece:
        raise DamagedError("the file has fewer bytes than its header asks for")
      out[at : at + len(piece)] = piece
      at += len(piece)

  def finish(self, most: int) -> int:
    left = 0
    while piece := self._next(_OUTPUT):
      left += len(piece)
      if left > most:
        raise DamagedError("the file has more bytes than its header asks for")
    return left

  def _start(self):
    if self._kind == "bzip2":
      return bz2.BZ2Decompressor()
    return zlib.decompressobj(31 if self._kind == "gzip" else 15)

  def _next(self, most: int) -> bytes:
    """Returns up to `most` bytes; none at the end of the last stream."""
    while not self._ended:
      hungry = self._kind != "bzip2" or self._stream.needs_input
      data = self._input
      if hungry and not data:
        data = self._file.read(_INPUT)
      try:
        piece = self._stream.decompress(data, most)
      except (zlib.error, OSError, ValueError) as error:
        raise DamagedError(f"damaged {self._kind} stream: {error}") from error
      self._input = getattr(self._stream, "unconsumed_tail", b"")
      if self._stream.eof:
        self._next_stream()
      elif hungry and not data and not piece:
        raise DamagedError(f"the {self._kind} stream breaks off before its end")
      if piece:
        return piece
    return b""

  def _next_stream(self) -> None:
    """Goes on with the next stream of the file, if there is one."""
    rest = self._stream.unused_data.lstrip(b"\0")
    while not rest:
      rest = self._file.read(_INPUT)
      if not rest:
        self._ended = True
        return
      rest = rest.lstrip(b"\0")
    magic = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "zlib": None}[self._kind]
    if len(rest) < 3:
      rest += self._file.read(3 - len(rest))
    if magic is None or not rest.startswith(magic):
      raise DamagedError(f"other data follows the {self._kind} stream")
    self._stream = self._start()
    self._input = rest
