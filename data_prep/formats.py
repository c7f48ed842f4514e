"""NIfTI files as arrays with a RAS affine, and what all formats must meet."""

import contextlib
import logging
import math
import pathlib
from collections.abc import Iterator

import nibabel as nib
import numpy as np
from nibabel import imageglobals
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from data_prep import streams
from data_prep.errors import UserError, one_line


def check_spacing(affine: np.ndarray, path: pathlib.Path) -> None:
  """Raises `UserError` unless the affine could be that of a CT scan."""
  matrix = affine[:3, :3]
  spacing = np.linalg.norm(matrix, axis=0)
  if not np.isfinite(affine).all() or (spacing <= 0).any():
    raise UserError(f"{path}: has no usable voxel spacing in its header")
  if (spacing < 0.01).any() or (spacing > 50).any():
    numbers = " x ".join(f"{s:.4g}" for s in spacing)
    raise UserError(
      f"{path}: a voxel spacing of {numbers} mm is not that of a CT scan"
    )
  if abs(np.linalg.det(matrix / spacing)) < 0.1:
    raise UserError(f"{path}: the header's axes do not span space")


def check_shape(shape, path) -> None:
  """Refuses pictures and series; trailing axes of one are fine."""
  if len(shape) > 3 and max(shape[3:]) > 1:
    raise UserError(
      f"{path}: is 4D with {math.prod(map(int, shape[3:]))} frames; extract the"
      " one wanted into a 3D file"
    )
  if len(shape) < 3 or min(shape[:3]) < 2 or min(shape) < 1:
    raise UserError(
      f"{path}: shape {'x'.join(map(str, shape))} is not a 3D scan"
    )


def read_nifti(
  path: pathlib.Path,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """Reads a .nii or .nii.gz file, of either version of NIfTI.

  The affine is the sform where its code is above 0, else the qform where its
  code is, else pixdim alone, as in nibabel; a conflict is noted.

  Returns:
    (voxels [i, j, k] with slope and intercept applied, affine [4, 4] from
    index to RAS mm, notes).

  Raises:
    UserError: damaged, colour, not 3D, or without spacing.
  """
  kind = "gzip" if path.name.lower().endswith(".gz") else "raw"
  try:
    with path.open("rb") as file:
      data = streams.source(file, kind)
      header, pixdim = _nifti_header(data)
      shape, dtype = header.get_data_shape(), header.get_data_dtype()
      if dtype.kind not in "iufb":
        raise UserError(f"{path}: colour or complex voxels; a CT scan is grey")
      check_shape(shape, path)
      slope, inter = header.get_slope_inter()
      array, notes = streams.read_array(data, shape, dtype)
  except (
    streams.DamagedError,
    HeaderDataError,
    WrapStructError,
  ) as error:
    raise UserError(
      f"{path}: damaged or not a NIfTI file ({one_line(error)})"
    ) from error
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from error
  array = array.reshape(shape[:3], order="F")
  if slope is not None and (slope, inter) != (1, 0):
    # float32 holds every HU exactly and takes half of nibabel's float64.
    array = array.astype(np.float32)
    # What overflows is infinite, and refused as such.
    with np.errstate(all="ignore"):
      array = array * np.float32(slope) + np.float32(inter)
  affine, remarks = _nifti_affine(header, pixdim, path)
  # The lower three bits; the others are of time.
  code = int(header["xyzt_units"]) & 7
  if code in _LENGTHS:
    unit, scale = _LENGTHS[code]
    affine[:3] *= scale
    remarks.append(f"the header's lengths are in {unit}s; converted to mm")
  elif code not in (_UNSAID, _MM):
    remarks.append("unknown unit of length in the header; assumed to be mm")
  return array, affine, remarks + notes


# Units of length as NIfTI numbers them.
_UNSAID, _MM = 0, 2
_LENGTHS = {1: ("meter", 1000.0), 3: ("micron", 0.001)}


def _nifti_header(
  data: streams.Source,
) -> tuple[nib.Nifti1Header, np.ndarray]:
  """Reads up to the voxels.

  Returns:
    The header, and pixdim 1 to 3 as the file has it: nibabel turns zeros into
    ones.
  """
  block = _take(data, nib.Nifti1Header.sizeof_hdr)
  kind = nib.Nifti1Header
  if not kind.may_contain_header(block):
    kind = nib.Nifti2Header
    block += _take(data, kind.sizeof_hdr - len(block))
    if not kind.may_contain_header(block):
      raise streams.DamagedError("it has no NIfTI header")
  stored = kind(block, check=False)
  # Of a pair, header and voxels are two files, .hdr and .img.
  if stored["magic"].item() != kind.single_magic:
    raise streams.DamagedError("a header without voxels")
  # A float in NIfTI-1.
  offset = stored["vox_offset"].item()
  if not kind.single_vox_offset <= offset < math.inf or offset % 1:
    raise streams.DamagedError(
      f"vox_offset, where the voxels start, is {offset:g}: no byte after the"
      " header"
    )
  with _no_log():
    header = kind(block)
  for name in ("sform_code", "qform_code"):
    # An unknown code becomes 0: the affine would be another one.
    if stored[name] != header[name]:
      raise streams.DamagedError(f"{name} is {stored[name]}")
  # Extensions, which say nothing of the voxels.
  left = int(offset) - len(block)
  data.check_claim(left)
  while left:
    left -= len(_take(data, min(left, 1 << 20)))
  return header, np.array(stored["pixdim"][1:4], np.float64)


@contextlib.contextmanager
def _no_log() -> Iterator[None]:
  """Keeps what nibabel says of each odd header off the user's screen."""
  before = imageglobals.logger.level
  imageglobals.logger.setLevel(logging.CRITICAL + 1)
  try:
    yield
  finally:
    imageglobals.logger.setLevel(before)


def _take(data: streams.Source, count: int) -> bytes:
  block = bytearray(count)
  data.readinto(memoryview(block))
  return bytes(block)


def _nifti_affine(
  header: nib.Nifti1Header, pixdim: np.ndarray, path: pathlib.Path
) -> tuple[np.ndarray, list[str]]:
  """Returns the RAS affine: sform if coded, else qform, else pixdim."""
  has_sform = int(header["sform_code"]) > 0
  has_qform = int(header["qform_code"]) > 0
  if not has_sform:
    uncoded = not has_qform and np.array_equal(pixdim, [1, 1, 1])
    if uncoded or not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
      raise UserError(f"{path}: has no usable voxel spacing in its header")
    if has_qform:
      return _qform(header, path), []
    said = "no orientation in the header; assumed to be stored as LAS"
    return header.get_base_affine(), [said]
  sform = header.get_sform()
  if not has_qform:
    return sform, []
  try:
    qform = _qform(header, path)
  except UserError:
    return sform, ["the qform is not a rotation; took the sform"]
  corners = np.array([[0, 0, 0, 1], [*header.get_data_shape()[:3], 1]]).T
  apart = np.abs((sform - qform) @ corners).max()
  if not apart <= 0.1:
    by = f" by up to {apart:.1f} mm" if np.isfinite(apart) else ""
    said = f"sform and qform differ{by}; took the sform"
    return sform, [said]
  return sform, []


def _qform(header: nib.Nifti1Header, path: pathlib.Path) -> np.ndarray:
  try:
    return header.get_qform()
  except (HeaderDataError, ValueError) as error:
    raise UserError(
      f"{path}: its qform is not a rotation ({one_line(error)})"
    ) from error
