"""MedMNIST's 3D sets: many small labelled volumes in one .npz file.

Yang et al. 2023, MedMNIST v2, https://doi.org/10.1038/s41597-022-01721-8. A
file holds `train_images` uint8 [N, D, H, W], `train_labels` [N, 1], and the
same of val and test. The arrays are read without pickle, each to the checksum
at its end.
"""

import math
import pathlib
import tokenize
import zipfile
import zlib
from typing import BinaryIO

import numpy as np

from data_prep import streams
from data_prep.cases import SPLIT_WORDS, Case
from data_prep.errors import UserError, one_line
from data_prep.volume import Grid, Volume

SPLITS = ("train", "val", "test")
_ARRAYS = ("images", "labels")
# Deflate gives at most 1032 bytes for one; other methods are not read.
_MOST_FROM_ONE = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
_HEADERS = {
  (1, 0): np.lib.format.read_array_header_1_0,
  (2, 0): np.lib.format.read_array_header_2_0,
}
# What zipfile, zlib and numpy's header parser raise for damaged bytes.
_DAMAGE = (
  zipfile.BadZipFile,
  zlib.error,
  EOFError,
  RuntimeError,  # Encrypted, or NotImplementedError: an unknown method.
  ValueError,
  tokenize.TokenError,  # Of numpy, which parses a header as Python.
  OSError,
)


def cases(path: pathlib.Path) -> list[Case]:
  """Reads the volumes of a MedMNIST3D file, each as a case of its own.

  A file may lack some of the splits, as one without the test volumes does.

  Args:
    path: the .npz file.

  Returns:
    The cases, named by split and index (`train_0007`). `extra["voxels"]` is
    the volume, uint8 [D, H, W].

  Raises:
    UserError: the file is damaged, or not a 3D set with two classes.
  """
  if not streams.is_file(path) or path.suffix.lower() != ".npz":
    raise UserError(
      f"{path}: is no .npz file; --input is the file of a MedMNIST3D set, such"
      " as vesselmnist3d_64.npz"
    )
  try:
    arrays = _read(path)
  except UserError:
    raise
  except _DAMAGE as error:
    raise UserError(
      f"{path}: cannot be read as .npz ({one_line(error)}); get the file again"
    ) from error
  found = []
  for split in SPLITS:
    if split not in arrays:
      continue
    images, labels = arrays[split]
    for i, (voxels, label) in enumerate(zip(images, labels, strict=True)):
      name = f"{split}_{i:04d}"
      found.append(
        Case(
          name,
          name,
          path,
          int(label),
          split=SPLIT_WORDS[split],
          extra={"voxels": voxels},
        )
      )
  return found


def volume(case: Case) -> Volume:
  """Returns the volume of a case of `cases`.

  Returns:
    int16 [D, H, W], 0 to 255, which are no HU; 1 mm a voxel and the axes in
    the order of the file, since it tells neither size nor orientation.
  """
  voxels = case.extra["voxels"]
  grid = Grid(voxels.shape, (1, 1, 1), (0, 0, 0), np.eye(3)[:, ::-1])
  return Volume(voxels.astype(np.int16), grid, path=str(case.image))


def _read(path: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns the images [N, D, H, W] and labels [N] of each split."""
  arrays = {}
  with zipfile.ZipFile(path) as archive:
    members = {info.filename: info for info in archive.infolist()}
    # A damaged name, if anything, would hide its split.
    known = {f"{s}_{what}.npy" for s in SPLITS for what in _ARRAYS}
    if others := sorted(members.keys() - known):
      raise UserError(
        f"{path}: holds {others[0]!r}; a MedMNIST file has the arrays"
        " train_images, train_labels and those of val and test, and no others"
      )
    for split in SPLITS:
      names = [f"{split}_{what}" for what in _ARRAYS]
      there = [f"{name}.npy" in members for name in names]
      if not any(there):
        continue
      if not all(there):
        raise UserError(f"{path}: has no array {names[there.index(False)]}")
      images, labels = (
        _read_array(archive, members[f"{name}.npy"]) for name in names
      )
      _check(path, split, images, labels)
      arrays[split] = images, labels.ravel()
  if not arrays:
    raise UserError(f"{path}: is an empty archive")
  shapes = {images.shape[1:] for images, _ in arrays.values()}
  if len(shapes) > 1:
    raise UserError(
      f"{path}: the volumes of its splits differ in shape, {sorted(shapes)}"
    )
  return arrays


def _read_array(
  archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> np.ndarray:
  """Reads an array of numbers, never more than the file can hold."""
  name = member.filename.removesuffix(".npy")
  with archive.open(member) as file:
    shape, fortran, dtype = _header(file)
    if dtype.kind not in "iu":
      raise ValueError(f"{name} holds {dtype} and not integers")
    count = streams.size_of(shape, dtype)
    most = member.compress_size * _MOST_FROM_ONE.get(member.compress_type, 0)
    if count > most:
      raise ValueError(f"{name} asks for more bytes than the file can hold")
    flat = np.empty(count, np.uint8)
    view = memoryview(flat)
    while len(view):
      read = file.readinto(view)
      if not read:
        raise ValueError(f"{name} breaks off before its end")
      view = view[read:]
    if file.read(1):  # Which also compares the checksum.
      raise ValueError(f"{name} has more bytes than its header asks for")
  array = flat.view(dtype)
  return array.reshape(shape, order="F" if fortran else "C")


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
  version = np.lib.format.read_magic(file)
  if version not in _HEADERS:
    raise ValueError(f"an array has the unknown version {version}")
  return _HEADERS[version](file)


def _check(
  path: pathlib.Path, split: str, images: np.ndarray, labels: np.ndarray
) -> None:
  """Refuses what is not a 3D set with two classes."""
  if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
    raise UserError(
      f"{path}: {split}_images is {images.dtype} {list(images.shape)}; the"
      " volumes of a MedMNIST3D set are uint8 [N, D, H, W]"
    )
  if math.prod(labels.shape) != len(images) or labels.shape[0] != len(images):
    raise UserError(
      f"{path}: {split}_labels is {list(labels.shape)}, not one label for each"
      f" of {len(images)} volumes"
    )
  if not np.isin(labels, (0, 1)).all():
    raise UserError(
      f"{path}: {split}_labels has the values {labels.min()} to"
      f" {labels.max()}; a classifier needs a set with two classes, 0 and 1"
    )
