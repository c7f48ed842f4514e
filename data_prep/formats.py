"""NIfTI, NRRD and MetaImage files as arrays with a RAS affine."""

import pathlib
import re
import zlib

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.spatialimages import HeaderDataError

from data_prep import dicom
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


def _check_shape(shape, path) -> None:
  """Refuses pictures and series; trailing axes of one are fine."""
  if len(shape) > 3 and max(shape[3:]) > 1:
    raise UserError(
      f"{path}: is 4D with {int(np.prod(shape[3:]))} frames; extract the one"
      " wanted into a 3D file"
    )
  if len(shape) < 3 or min(shape[:3]) < 2:
    raise UserError(
      f"{path}: shape {'x'.join(map(str, shape))} is not a 3D scan"
    )


def read_nifti(
  path: pathlib.Path,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """Reads a .nii or .nii.gz file.

  The affine is the sform where its code is above 0, else the qform where its
  code is, else pixdim alone, as in nibabel; a conflict is noted.

  Returns:
    (voxels [i, j, k] with slope and intercept applied, affine [4, 4] from
    index to RAS mm, notes).

  Raises:
    UserError: damaged, colour, not 3D, or without spacing.
  """
  try:
    # Not mapped: a file that is replaced must not change the voxels.
    with LoggingOutputSuppressor():
      image = nib.load(path, mmap=False)
    if image.get_data_dtype().kind not in "iufb":
      raise UserError(f"{path}: colour or complex voxels; a CT scan is grey")
    _check_shape(image.shape, path)
    proxy = image.dataobj
    array = proxy.get_unscaled()
    if (proxy.slope, proxy.inter) != (1, 0):
      # float32 holds every HU exactly and takes half of nibabel's float64.
      array = array.astype(np.float32)
      array = array * np.float32(proxy.slope) + np.float32(proxy.inter)
  except (
    ImageFileError,
    HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    zlib.error,
  ) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"{path}: damaged or not a NIfTI file ({one_line(error)})"
    ) from error
  affine, notes = _nifti_affine(image, path)
  return np.asarray(array).reshape(array.shape[:3]), affine, notes


def _nifti_affine(image, path) -> tuple[np.ndarray, list[str]]:
  """Returns the RAS affine: sform if coded, else qform, else pixdim."""
  header = image.header
  has_sform = int(header["sform_code"]) > 0
  has_qform = int(header["qform_code"]) > 0
  if not has_sform:
    zooms = _stored_pixdim(path, header)
    uncoded = not has_qform and np.array_equal(zooms, [1, 1, 1])
    if uncoded or not (np.isfinite(zooms).all() and (zooms > 0).all()):
      raise UserError(f"{path}: has no usable voxel spacing in its header")
    if has_qform:
      return header.get_qform(), []
    said = "no orientation in the header; assumed to be stored as LAS"
    return header.get_base_affine(), [said]
  sform = header.get_sform()
  if has_qform:
    corners = np.array([[0, 0, 0, 1], [*image.shape[:3], 1]]).T
    apart = np.abs((sform - header.get_qform()) @ corners).max()
    if apart > 0.1:
      said = f"sform and qform differ by up to {apart:.1f} mm; took the sform"
      return sform, [said]
  return sform, []


def _stored_pixdim(path, header) -> np.ndarray:
  """Returns pixdim as the file has it; nibabel turns zeros into ones."""
  with nib.openers.ImageOpener(path) as file:
    if int(header["sizeof_hdr"]) == 348:
      header = type(header).from_fileobj(file, check=False)
  return np.array(header["pixdim"][1:4], np.float64)


# Header lines without which ITK silently assumes a spacing of 1 mm.
_SPACING_LINE = {
  ".nrrd": rb"(?im)^(space directions|spacings)\s*:(?!=)",
  ".nhdr": rb"(?im)^(space directions|spacings)\s*:(?!=)",
  ".mha": rb"(?im)^Element(Spacing|Size)\s*=",
  ".mhd": rb"(?im)^Element(Spacing|Size)\s*=",
}


# Header lines without which ITK silently assumes the axes of LPS. It knows
# three spaces of NRRD: RAS, LAS and LPS, also in full words.
_NRRD_ORIENTATION = (
  rb"(?im)^space\s*:\s*(RAS|LAS|LPS|(left|right)-)",
  rb"(?im)^space directions\s*:(?!=)",
)
_META_ORIENTATION = (rb"(?im)^(TransformMatrix|Rotation|Orientation)\s*=",)
_ORIENTATION_LINES = {
  ".nrrd": _NRRD_ORIENTATION,
  ".nhdr": _NRRD_ORIENTATION,
  ".mha": _META_ORIENTATION,
  ".mhd": _META_ORIENTATION,
}


def read_itk(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """Reads a .nrrd, .nhdr, .mha or .mhd file.

  Returns:
    (voxels [i, j, k], affine [4, 4] from index to RAS mm, notes).

  Raises:
    UserError: damaged, colour, not 3D, or without spacing.
  """
  with path.open("rb") as file:
    head = file.read(65536)
  header = re.split(rb"\r?\n\r?\n|(?im:^ElementDataFile.*$)", head, maxsplit=1)[
    0
  ]
  reader = sitk.ImageFileReader()
  reader.SetFileName(str(path))
  try:
    reader.ReadImageInformation()
    _check_length(reader, path, head)
    image = reader.Execute()
  except RuntimeError as error:
    raise UserError(
      f"{path}: damaged or not a {path.suffix} file ({dicom.itk_reason(error)})"
    ) from error
  if not re.search(_SPACING_LINE[path.suffix.lower()], header):
    raise UserError(f"{path}: has no usable voxel spacing in its header")
  if image.GetNumberOfComponentsPerPixel() > 1:
    raise UserError(f"{path}: colour or vector voxels; a CT scan is grey")
  _check_shape(image.GetSize(), path)
  while image.GetDimension() > 3:
    image = image[..., 0]
  array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
  lines = _ORIENTATION_LINES[path.suffix.lower()]
  notes = []
  if not all(re.search(line, header) for line in lines):
    notes.append("no orientation in the header; assumed to be stored as LPS")
  return array, dicom.ras_affine(image), notes


def _check_length(reader, path, head: bytes) -> None:
  """Refuses short raw .mha files before ITK complains on the screen."""
  local = re.search(rb"(?im)^ElementDataFile *= *LOCAL *\r?\n", head)
  if not local or re.search(rb"(?im)^CompressedData *= *True", head):
    return
  voxel = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID())
  size = voxel.GetSizeOfPixelComponent() * reader.GetNumberOfComponents()
  data_bytes = path.stat().st_size - local.end()
  if data_bytes < size * np.prod(reader.GetSize()):
    raise UserError(f"{path}: damaged: the file is shorter than its header")
