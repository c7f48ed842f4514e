"""Formats, orientations and the oddities of real files."""

import gzip
import itertools
import os
import pathlib
import random
import shutil
import signal

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
  CTImageStorage,
  EnhancedCTImageStorage,
  ExplicitVRBigEndian,
  ExplicitVRLittleEndian,
  ImplicitVRLittleEndian,
  JPEG2000Lossless,
  JPEGLosslessSV1,
  generate_uid,
)

from data_prep import dicom
from data_prep import volume as volume_lib
from data_prep.errors import UserError
from data_prep.volume import Grid, Volume, read_mask, read_volume, write_nifti

SHAPE = (10, 20, 30)
SPACING = (2.5, 0.7, 0.9)
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def make_hu(seed=0, shape=SHAPE):
  rng = np.random.default_rng(seed)
  return rng.integers(-1000, 1500, shape).astype(np.int16)


def straight(shape=SHAPE, spacing=SPACING, origin=(-11.0, -222.0, 33.0)):
  return Grid(shape, spacing, origin, np.eye(3)[:, ::-1])


def turned(degrees=(10, 15, 20)):
  """A rotation matrix about x, y and z, made by hand."""
  a, b, c = np.radians(degrees)
  about_x = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
  about_y = [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]]
  about_z = [[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]]
  return np.array(about_x) @ about_y @ about_z


def save_nifti(path, array, affine, codes=(1, 1)):
  image = nib.Nifti1Image(array, affine)
  image.set_qform(affine, codes[0])
  image.set_sform(affine, codes[1])
  nib.save(image, path)
  return path


def make_slice(hu, position, orientation=(1, 0, 0, 0, 1, 0), **fields):
  """One CT slice as a pydicom data set; `fields` overrides or removes."""
  meta = FileMetaDataset()
  meta.TransferSyntaxUID = ExplicitVRLittleEndian
  meta.MediaStorageSOPClassUID = CTImageStorage
  meta.MediaStorageSOPInstanceUID = generate_uid()
  data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
  data.SOPClassUID = CTImageStorage
  data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
  data.PatientName = "Secret^Patient"
  data.PatientID = "secret-id"
  data.Modality = "CT"
  data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
  data.SeriesInstanceUID = "1.2.3.4"
  data.SeriesNumber = 7
  data.PixelSpacing = [SPACING[1], SPACING[2]]
  data.ImagePositionPatient = [round(float(p), 8) for p in position]
  data.ImageOrientationPatient = [round(float(o), 8) for o in orientation]
  data.Rows, data.Columns = hu.shape[:2]
  data.SamplesPerPixel = 1
  data.PhotometricInterpretation = "MONOCHROME2"
  data.BitsAllocated = data.BitsStored = 16
  data.HighBit = 15
  data.PixelRepresentation = 0
  slope = fields.pop("slope", 1)
  intercept = fields.pop("intercept", -1024)
  data.RescaleSlope, data.RescaleIntercept = slope, intercept
  raw = np.rint((hu.astype(float) - intercept) / slope).astype(np.int64)
  data.PixelData = (raw & 0xFFFF).astype("<u2").tobytes()
  for name, value in fields.items():
    if value is None:
      delattr(data, name)
    else:
      setattr(data, name, value)
  return data


def make_series(hu, grid=None, **fields):
  grid = grid or straight(hu.shape)
  columns = grid.direction[:, [2, 1]].T.ravel()
  return [
    make_slice(plane, grid.to_mm([number, 0, 0]), columns, **dict(fields))
    for number, plane in enumerate(hu)
  ]


def save_series(folder, series, names=None):
  folder.mkdir(exist_ok=True)
  for number, data in enumerate(series):
    name = names[number] if names else f"I{number:03d}"
    data.save_as(folder / name, enforce_file_format=True)
  return folder


def assert_grid(grid, expected, atol=1e-4):
  assert grid.shape == expected.shape
  np.testing.assert_allclose(grid.affine, expected.affine, atol=atol)


# Grid and Volume.


def test_grid_maps_to_mm_and_back():
  grid = Grid(SHAPE, SPACING, (1, 2, 3), turned() @ np.eye(3)[:, ::-1])
  index = np.random.default_rng(0).uniform(0, 30, (5, 4, 3))
  np.testing.assert_allclose(grid.to_index(grid.to_mm(index)), index)
  np.testing.assert_allclose(grid.to_mm([0, 0, 0]), [1, 2, 3])
  step = grid.to_mm([0, 1, 0]) - grid.to_mm([0, 0, 0])
  assert np.linalg.norm(step) == pytest.approx(SPACING[1])
  assert Grid.from_dict(grid.to_dict()) == grid


def test_straight_grid_axes_point_up_back_and_left():
  grid = straight()
  for axis, (world, size) in enumerate(zip((2, 1, 0), SPACING, strict=True)):
    step = grid.to_mm(np.eye(3)[axis]) - grid.to_mm([0, 0, 0])
    expected = np.zeros(3)
    expected[world] = size
    np.testing.assert_allclose(step, expected)


def test_volume_refuses_an_array_of_another_shape():
  with pytest.raises(ValueError, match="on a grid"):
    Volume(np.zeros((3, 4, 5), np.int16), straight())


# Orientation.

FLIPS = list(
  itertools.product(
    itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)
  )
)


@pytest.mark.parametrize(("order", "signs"), FLIPS)
def test_every_orientation_puts_a_patient_point_in_its_place(
  tmp_path, order, signs
):
  """A bright voxel's LPS point is computed from the file's own affine."""
  sizes, spacing = (30, 20, 10), (0.9, 0.7, 2.5)  # along x, y, z
  matrix = np.zeros((3, 3))
  for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
    matrix[world, axis] = sign * spacing[world]
  affine = np.eye(4)
  affine[:3, :3] = matrix
  affine[:3, 3] = (5, -40, 77)
  array = make_hu(shape=tuple(sizes[world] for world in order))
  at = tuple(size // 3 for size in array.shape)
  array[at] = 2000
  path = save_nifti(tmp_path / "a.nii", array, affine)
  volume = read_volume(path)
  assert volume.shape == (10, 20, 30)
  np.testing.assert_allclose(volume.spacing, (2.5, 0.7, 0.9), atol=1e-5)
  np.testing.assert_allclose(volume.direction, np.eye(3)[:, ::-1], atol=1e-6)
  ras = affine @ [*at, 1]
  point = [-ras[0], -ras[1], ras[2]]
  found = np.unravel_index(volume.hu.argmax(), volume.shape)
  np.testing.assert_allclose(volume.grid.to_mm(found), point, atol=1e-4)
  # Up is later along D, the back later along H, the left later along W.
  corner = volume.grid.to_mm([0, 0, 0])
  assert (np.array(point) - corner >= -1e-4).all()
  write_nifti(tmp_path / "b.nii.gz", volume.hu, volume)
  again = nib.load(tmp_path / "b.nii.gz")
  np.testing.assert_array_equal(np.asarray(again.dataobj), array)
  np.testing.assert_array_equal(again.affine, nib.load(path).affine)


def test_oblique_scan_keeps_its_rotation_and_its_points(tmp_path):
  rotation = turned((20, -15, 30))
  affine = np.eye(4)
  affine[:3, :3] = rotation @ np.diag([-0.9, 0.7, 2.5])
  affine[:3, 3] = (5, -40, 77)
  array = make_hu(shape=(30, 20, 10))
  array[7, 3, 8] = 2000
  volume = read_volume(save_nifti(tmp_path / "a.nii", array, affine))
  found = np.unravel_index(volume.hu.argmax(), volume.shape)
  expected = (LPS_FROM_RAS @ affine @ [7, 3, 8, 1])[:3]
  np.testing.assert_allclose(volume.grid.to_mm(found), expected, atol=1e-4)
  assert (np.diag(volume.direction[:, ::-1]) > 0.5).all()
  assert not np.allclose(volume.direction, np.eye(3)[:, ::-1], atol=0.1)
  write_nifti(tmp_path / "b.nii", volume.hu, volume)
  again = nib.load(tmp_path / "b.nii")
  np.testing.assert_array_equal(np.asarray(again.dataobj), array)
  np.testing.assert_allclose(again.affine, affine, atol=1e-5)


# The same scan in every format.


@pytest.mark.parametrize("rotation", [None, (12, -8, 25)])
def test_every_format_gives_the_same_volume(tmp_path, rotation):
  hu = make_hu()
  grid = straight()
  if rotation:
    grid = Grid(SHAPE, SPACING, grid.origin, turned(rotation) @ grid.direction)
  write_nifti(tmp_path / "a.nii", hu, grid)
  write_nifti(tmp_path / "a.nii.gz", hu, grid)
  image = sitk.GetImageFromArray(hu)
  image.SetSpacing(grid.spacing[::-1])
  image.SetOrigin(grid.origin)
  image.SetDirection(grid.direction[:, ::-1].ravel())
  for name in ("a.nrrd", "a.nhdr", "a.mha", "a.mhd"):
    sitk.WriteImage(image, str(tmp_path / name))
  sitk.WriteImage(image, str(tmp_path / "zip.nrrd"), True)
  sitk.WriteImage(image, str(tmp_path / "zip.mha"), True)
  # nrrd in RAS, as other programs write it
  text = (tmp_path / "a.nhdr").read_bytes()
  assert b"left-posterior-superior" in text
  save_series(tmp_path / "series", make_series(hu, grid))
  for name in (
    "a.nii", "a.nii.gz", "a.nrrd", "a.nhdr", "a.mha", "a.mhd", "zip.nrrd",
    "zip.mha", "series", "series/I003",
  ):  # fmt: skip
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.hu, hu, err_msg=name)
    assert volume.hu.dtype == np.int16
    assert_grid(volume.grid, grid)
    assert volume.path == str(tmp_path / name)
    assert not volume.notes


def test_a_nrrd_in_ras_is_turned(tmp_path):
  array = make_hu(shape=(30, 20, 10))
  header = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: right-anterior-superior\n"
    "sizes: 30 20 10\nspace directions: (0.9,0,0) (0,-0.7,0) (0,0,2.5)\n"
    "kinds: domain domain domain\nendian: little\nencoding: raw\n"
    "space origin: (5,-40,77)\n\n"
  )
  path = tmp_path / "a.nrrd"
  path.write_bytes(header.encode() + array.tobytes(order="F"))
  volume = read_volume(path)
  assert not volume.notes
  array[3, 4, 5] = 2001
  path.write_bytes(header.encode() + array.tobytes(order="F"))
  found = np.unravel_index(read_volume(path).hu.argmax(), volume.shape)
  expected = (-(5 + 3 * 0.9), -(-40 - 4 * 0.7), 77 + 5 * 2.5)
  np.testing.assert_allclose(volume.grid.to_mm(found), expected, atol=1e-6)


def test_no_identifying_field_reaches_an_output(tmp_path):
  series = make_series(make_hu(), SeriesDescription="secret text")
  folder = save_series(tmp_path / "s", series)
  volume = read_volume(folder)
  write_nifti(tmp_path / "a.nii", volume.hu, volume)
  content = (tmp_path / "a.nii").read_bytes()
  assert b"ecret" not in content
  assert b"1.2.3.4" not in content
  assert "ecret" not in repr((volume.grid, volume.stored, volume.notes))
  header = nib.load(tmp_path / "a.nii").header
  for field in ("descrip", "aux_file", "db_name", "intent_name"):
    assert header[field].item() == b""


# DICOM as it really comes.


def test_reversed_and_shuffled_names_do_not_matter(tmp_path):
  hu = make_hu()
  names = [f"{number}" for number in (9, 3, 7, 1, 0, 8, 2, 6, 4, 5)]
  folder = save_series(tmp_path / "s", make_series(hu), names)
  np.testing.assert_array_equal(read_volume(folder).hu, hu)


def test_slices_stored_upside_down_come_out_upright(tmp_path):
  """Rows run to the front and columns to the right: a prone scanner."""
  hu = make_hu()
  grid = straight()
  flipped = hu[:, ::-1, ::-1]
  series = [
    make_slice(
      plane, grid.to_mm([number, SHAPE[1] - 1, SHAPE[2] - 1]),
      (-1, 0, 0, 0, -1, 0),
    )
    for number, plane in enumerate(flipped)
  ]  # fmt: skip
  volume = read_volume(save_series(tmp_path / "s", series))
  np.testing.assert_array_equal(volume.hu, hu)
  assert_grid(volume.grid, grid)


def test_a_tilted_gantry_keeps_its_points(tmp_path):
  """Slices step along z while their normal is tilted: the grid is sheared."""
  hu = make_hu()
  hu[6, 11, 23] = 3000
  tilt = np.radians(15)
  down = (0, np.cos(tilt), np.sin(tilt))
  series = [
    make_slice(plane, (-11, -22, 2.5 * number), (1, 0, 0, *down))
    for number, plane in enumerate(hu)
  ]
  volume = read_volume(save_series(tmp_path / "s", series))
  expected = np.array([-11, -22, 6 * 2.5]) + 23 * 0.9 * np.array([1, 0, 0])
  expected = expected + 11 * 0.7 * np.array(down)
  found = np.unravel_index(volume.hu.argmax(), volume.shape)
  np.testing.assert_allclose(volume.grid.to_mm(found), expected, atol=1e-4)
  write_nifti(tmp_path / "a.nii", volume.hu, volume)
  again = read_volume(tmp_path / "a.nii")
  assert_grid(again.grid, volume.grid)


@pytest.mark.parametrize(
  ("compressor", "syntax"),
  [("JPEG", JPEGLosslessSV1), ("JPEG2000", JPEG2000Lossless)],
)
def test_compressed_transfer_syntaxes(tmp_path, compressor, syntax):
  hu = make_hu(shape=(10, 32, 40))
  series = make_series(hu)
  for data in series:
    raw = np.frombuffer(data.PixelData, "<u2").reshape(32, 40)
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(tmp_path / "one.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(sitk.GetImageFromArray(raw))
    packed = pydicom.dcmread(tmp_path / "one.dcm")
    assert packed.file_meta.TransferSyntaxUID == syntax
    frames = list(generate_frames(packed.PixelData, number_of_frames=1))
    assert len(frames[0]) != raw.nbytes
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate(frames)
    data["PixelData"].is_undefined_length = True
  volume = read_volume(save_series(tmp_path / "s", series))
  np.testing.assert_array_equal(volume.hu, hu)


def test_the_rescale_of_each_slice_is_its_own(tmp_path):
  hu = make_hu()
  grid = straight()
  series = [
    make_slice(
      plane, grid.to_mm([number, 0, 0]), slope=1 + number / 4,
      intercept=-1024 - 8 * number,
    )
    for number, plane in enumerate(hu)
  ]  # fmt: skip
  volume = read_volume(save_series(tmp_path / "s", series))
  # The file itself rounds to its slope: at most half of 1 + 9 / 4.
  assert np.abs(volume.hu[0] - hu[0]).max() == 0
  assert np.abs(volume.hu.astype(int) - hu).max() <= 2
  assert np.abs(volume.hu.astype(int) - hu)[1:].max() > 0


@pytest.mark.parametrize("padding", [-2000, -3024, -1900])
def test_padding_becomes_air(tmp_path, padding):
  hu = make_hu()
  hu[:, :3] = padding
  series = make_series(hu, intercept=0, PixelRepresentation=1)
  volume = read_volume(save_series(tmp_path / "s", series))
  assert (volume.hu[:, :3] == -1024).all()
  np.testing.assert_array_equal(volume.hu[:, 3:], hu[:, 3:])


def test_the_padding_tag_is_obeyed_outside_tissue_only(tmp_path):
  hu = make_hu()
  hu[:, :3] = -1100
  hu[:, 3:5] = 40
  for value, expected in ((-1100, -1024), (40, -1100)):
    series = make_series(hu, intercept=0, PixelRepresentation=1)
    for data in series:
      data.add_new(0x00280120, "SS", value)
    volume = read_volume(save_series(tmp_path / f"s{value}", series))
    assert (volume.hu[:, :3] == expected).all()
    assert (volume.hu[:, 3:5] == 40).all()


def test_the_largest_series_is_taken_and_said(tmp_path):
  small, large = make_hu(1, (6, 20, 30)), make_hu(2)
  folder = save_series(
    tmp_path / "s", make_series(small, SeriesInstanceUID="1.9", SeriesNumber=2)
  )
  save_series(folder / "deep", make_series(large))
  volume = read_volume(folder)
  np.testing.assert_array_equal(volume.hu, large)
  (note,) = volume.notes
  assert "2 CT series" in note
  assert "number 7 with 10 images" in note
  assert "number 2 with 6 images" in note
  for choice in ("1.9", 2, "2"):
    chosen = read_volume(folder, series=choice)
    np.testing.assert_array_equal(chosen.hu, small)
  with pytest.raises(UserError, match="no CT series 5; there are number 7"):
    read_volume(folder, series=5)


@pytest.mark.parametrize("uid", ["", None])
def test_missing_series_uids(tmp_path, uid):
  hu = make_hu()
  series = make_series(hu, SeriesInstanceUID=uid)
  folder = save_series(tmp_path / "s", series)
  np.testing.assert_array_equal(read_volume(folder).hu, hu)
  np.testing.assert_array_equal(read_volume(folder / "I004").hu, hu)


def test_what_is_no_slice_is_left_out_and_said(tmp_path):
  hu = make_hu()
  folder = save_series(tmp_path / "s", make_series(hu))
  scout = make_slice(
    make_hu(3, (40, 50)), (0, 0, 0), (0, 1, 0, 0, 0, -1),
    ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
  )  # fmt: skip
  unmarked = make_slice(make_hu(4, (40, 50)), (0, 0, 0), (0, 1, 0, 0, 0, -1))
  colour = make_slice(
    np.zeros((20, 30)), (0, 0, 0), SamplesPerPixel=3, BitsAllocated=8,
    BitsStored=8, HighBit=7, PhotometricInterpretation="RGB",
    PlanarConfiguration=0, PixelData=bytes(20 * 30 * 3), intercept=0,
  )  # fmt: skip
  dose = make_slice(np.zeros((20, 30)), (0, 0, 0), Modality="SR", intercept=0)
  save_series(folder, [scout, unmarked, colour, dose], ["a", "b", "c", "d"])
  (folder / "readme.txt").write_text("hello")
  (folder / "DICOMDIR").write_bytes(b"\0" * 200)
  volume = read_volume(folder)
  np.testing.assert_array_equal(volume.hu, hu)
  said = "; ".join(volume.notes)
  for words in (
    "1 scout image;", "1 colour image;", "1 SR image",
    "1 image of another size or orientation",
  ):  # fmt: skip
    assert words in said


def test_one_phase_of_many_is_taken_and_said(tmp_path):
  first, second = make_hu(1), make_hu(2)
  folder = save_series(tmp_path / "s", make_series(first, AcquisitionNumber=1))
  save_series(folder / "b", make_series(second, AcquisitionNumber=2))
  volume = read_volume(folder)
  assert "2 phases" in volume.notes[0]
  assert np.array_equal(volume.hu, first) or np.array_equal(volume.hu, second)


def test_phases_may_differ_by_a_slice_at_the_ends(tmp_path):
  grid = straight((30, 20, 30))
  first, second = make_hu(1, grid.shape), make_hu(2, grid.shape)
  folder = save_series(
    tmp_path / "s", make_series(first, grid, AcquisitionNumber=1)
  )
  save_series(folder / "b", make_series(second, grid, AcquisitionNumber=2)[:-1])
  volume = read_volume(folder)
  np.testing.assert_array_equal(volume.hu, first)
  assert "2 phases" in volume.notes[0]


def test_overlapping_slabs_are_no_phases(tmp_path):
  """Step and shoot: each acquisition covers a part, and shares its border."""
  series = make_series(make_hu(shape=(21, 20, 30)), straight((21, 20, 30)))
  folder = tmp_path / "s"
  for number, slab in enumerate((series[:11], series[10:])):
    for data in slab:
      data.AcquisitionNumber = number
    folder.mkdir(exist_ok=True)
    save_series(folder / f"slab{number}", slab)
  with pytest.raises(UserError, match="same position") as error:
    read_volume(folder)
  assert "slab0" in str(error.value)


@pytest.mark.parametrize("storage", [CTImageStorage, EnhancedCTImageStorage])
@pytest.mark.parametrize("files", [1, 2])
def test_multi_frame_files_are_refused(tmp_path, storage, files):
  hu = make_hu()
  pixels = (hu.astype(int) + 1024).astype("<u2").tobytes()
  series = []
  for _ in range(files):
    data = make_slice(
      hu[0], (0, 0, 0), NumberOfFrames=len(hu), PixelData=pixels
    )
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = storage
    series.append(data)
  folder = save_series(tmp_path / "s", series)
  for path in (folder, folder / "I000"):
    with pytest.raises(UserError, match="I000: is enhanced multi-frame DICOM"):
      read_volume(path)


def test_a_jump_sideways_is_an_error_that_names_the_slice(tmp_path):
  series = make_series(make_hu())
  for data in series[6:]:
    data.ImagePositionPatient[1] += 3.0
  folder = save_series(tmp_path / "s", series)
  with pytest.raises(UserError, match="I005: lies 1.[0-9] mm beside"):
    read_volume(folder)
  # Positions are rounded, and no table is perfectly straight.
  for number, data in enumerate(series):
    data.ImagePositionPatient[1] = -222 + 0.4 * (number % 2)
  read_volume(save_series(tmp_path / "t", series))


def test_a_missing_slice_is_an_error_that_names_the_gap(tmp_path):
  folder = save_series(tmp_path / "s", make_series(make_hu()))
  (folder / "I004").unlink()
  with pytest.raises(UserError, match="gap of 5.00 mm") as error:
    read_volume(folder)
  message = str(error.value)
  for words in ("I003", "I005", "2.50 mm apart", "1 missing"):
    assert words in message
  assert "\n" not in message


def test_a_doubled_slice_is_an_error_that_names_both(tmp_path):
  folder = save_series(tmp_path / "s", make_series(make_hu()))
  shutil.copy(folder / "I004", folder / "copy")
  with pytest.raises(UserError, match="same position") as error:
    read_volume(folder)
  assert "I004" in str(error.value)
  assert "copy" in str(error.value)


def test_uneven_slices_are_an_error(tmp_path):
  series = make_series(make_hu())
  series[4].ImagePositionPatient[2] = float(straight().origin[2]) + 4.4 * 2.5
  with pytest.raises(UserError, match="unevenly"):
    read_volume(save_series(tmp_path / "s", series))


@pytest.mark.parametrize(
  ("fields", "match"),
  [
    ({"Modality": "MR"}, "no CT slices.*left out 10 MR images"),
    ({"PixelSpacing": None}, "no pixel spacing"),
    ({"ImagePositionPatient": None}, "no image position"),
    ({"ImageOrientationPatient": None}, "no image orientation"),
  ],
)
def test_series_that_cannot_be_used(tmp_path, fields, match):
  folder = save_series(tmp_path / "s", make_series(make_hu(), **fields))
  with pytest.raises(UserError, match=match):
    read_volume(folder)


def test_truncated_dicom(tmp_path):
  folder = save_series(tmp_path / "s", make_series(make_hu()))
  content = (folder / "I004").read_bytes()
  for size in (len(content) - 300, 400):
    (folder / "I004").write_bytes(content[:size])
    with pytest.raises(UserError, match="I004: damaged DICOM"):
      read_volume(folder)


@pytest.mark.parametrize("number", [0, 4, 9])
@pytest.mark.parametrize("size", [0, 1, 100, 131])
@pytest.mark.parametrize("names", ["I{:03}", "{}.dcm", "1.2.840.{}", "S 7.{}"])
def test_a_slice_that_is_cut_to_nothing(tmp_path, number, size, names):
  """At either end no gap tells of it; its name does."""
  names = [names.format(3 + 5 * i) for i in range(10)]
  folder = save_series(tmp_path / "s", make_series(make_hu()), names)
  lost = folder / names[number]
  lost.write_bytes(lost.read_bytes()[:size])
  with pytest.raises(UserError, match="series, which may have lost") as error:
    read_volume(folder)
  assert str(lost) in str(error.value)


def test_no_slice_is_lost_by_a_cut_anywhere(tmp_path):
  folder = save_series(tmp_path / "s", make_series(make_hu()))
  for name in ("I000", "I009"):
    content = (folder / name).read_bytes()
    for size in range(0, len(content), 41):
      (folder / name).write_bytes(content[:size])
      with pytest.raises(UserError, match=f"{name}: "):
        dicom.read_series_here(folder, None)
    (folder / name).write_bytes(content)


def make_unreadable(path, kind):
  if kind == "link":
    path.symlink_to("gone")
  elif kind == "loop":
    path.symlink_to(path.name)
  elif kind == "pipe":
    os.mkfifo(path)
  elif kind == "empty":
    path.touch()


@pytest.mark.parametrize("kind", ["link", "loop", "pipe", "empty"])
def test_what_cannot_be_read_is_said_or_refused(tmp_path, kind):
  hu = make_hu()
  folder = save_series(tmp_path / "s", make_series(hu))
  make_unreadable(folder / "notes.txt", kind)
  volume = read_volume(folder)
  np.testing.assert_array_equal(volume.hu, hu)
  (note,) = volume.notes
  assert "left out notes.txt: " in note
  make_unreadable(folder / "I010", kind)
  with pytest.raises(UserError, match="I010: .* may have lost"):
    read_volume(folder)


def test_files_and_folders_without_permission(tmp_path, monkeypatch):
  """Tests may run as root, whom no permission stops."""
  hu = make_hu()
  folder = save_series(tmp_path / "s", make_series(hu))
  (folder / "closed").mkdir()
  (folder / "I010").write_text("x")

  def closed(fn):
    def refuse(path, *args):
      if pathlib.Path(path).name in ("closed", "I010"):
        raise PermissionError(13, "Permission denied", str(path))
      return fn(path, *args)

    return refuse

  monkeypatch.setattr(os, "scandir", closed(os.scandir))
  monkeypatch.setattr(pathlib.Path, "open", closed(pathlib.Path.open))
  with pytest.raises(UserError, match=r"I010: cannot be read \(Permission"):
    dicom.read_series_here(folder, None)
  (folder / "I010").unlink()
  *_, (note,) = dicom.read_series_here(folder, None)
  assert "closed: is a folder that cannot be read (Permission denied)" in note
  # The slices lie in folders, and it is one of them.
  for name in ("a", "b"):
    (folder / name).mkdir()
  for number in range(10):
    name = f"I{number:03}"
    (folder / name).rename(folder / "ab"[number // 5] / name)
  with pytest.raises(UserError, match="closed: is a folder that cannot be"):
    dicom.read_series_here(folder, None)


def test_names_that_are_not_utf_8(tmp_path):
  hu = make_hu()
  folder = save_series(tmp_path / "s", make_series(hu))
  strange = os.fsdecode(b"caf\xe9")
  (folder / strange).write_text("hello")
  np.testing.assert_array_equal(read_volume(folder).hu, hu)
  (folder / strange).write_bytes((folder / "I009").read_bytes())
  with pytest.raises(UserError, match="rename this DICOM file"):
    read_volume(folder)
  (folder / strange).unlink()
  folder.rename(tmp_path / strange)
  for path in (tmp_path / strange, tmp_path / strange / "I000"):
    with pytest.raises(UserError, match="its name is not UTF-8"):
      read_volume(path)
  # The other formats are read by Python, which takes any name.
  path = tmp_path / os.fsdecode(b"caf\xe9.nii.gz")
  write_nifti(path, hu, straight())
  np.testing.assert_array_equal(read_volume(path).hu, hu)


def test_files_without_an_image_are_left_out_and_said(tmp_path):
  """Dose reports and the like, which have no pixels."""
  hu = make_hu()
  report = make_slice(hu[0], (0, 0, 0), Modality="SR")
  kind = "1.2.840.10008.5.1.4.1.1.88.67"
  report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = kind
  for name in (
    "PixelData", "Rows", "Columns", "BitsAllocated", "SamplesPerPixel",
    "PhotometricInterpretation",
  ):  # fmt: skip
    delattr(report, name)
  folder = save_series(tmp_path / "s", make_series(hu))
  save_series(folder, [report], ["I010"])
  volume = read_volume(folder)
  np.testing.assert_array_equal(volume.hu, hu)
  assert volume.notes == ("left out 1 DICOM file without an image",)


@pytest.mark.parametrize("end", [0, 9])
@pytest.mark.parametrize(
  ("fields", "match"),
  [
    ({"Modality": "CU"}, "modality"), ({"Modality": None}, "modality"),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "image type"),
    ({"PixelSpacing": [0.7, 1.9]}, "pixel spacing"),
    ({"SeriesNumber": 3}, "series number"),
    ({"SeriesInstanceUID": "1.2.3.5"}, "series UID"),
    ({"ImageOrientationPatient": [1, 0, 0, 0, 0.8, 0.6]}, "orientation"),
  ],
)  # fmt: skip
def test_a_slice_with_a_damaged_header_at_the_end(tmp_path, end, fields, match):
  series = make_series(make_hu())
  for name, value in fields.items():
    setattr(series[end], name, value)
  folder = save_series(tmp_path / "s", series)
  with pytest.raises(UserError, match=f"where the series goes on.*{match}"):
    read_volume(folder)


def test_direction_cosines_must_be_unit_vectors(tmp_path):
  for columns, fine in (
    ((1, 0, 0, 0, 1, 0), True), ((0.998, 0, 0, 0, 1, 0), True),
    ((0.9, 0, 0, 0, 1, 0), False), ((1, 0, 0, 0, 2, 0), False),
    ((1, 0, 0, 0.1, 1, 0), False), ((0, 0, 0, 0, 1, 0), False),
  ):  # fmt: skip
    series = make_series(make_hu(), ImageOrientationPatient=list(columns))
    folder = save_series(tmp_path / "s", series)
    if fine:
      np.testing.assert_allclose(read_volume(folder).spacing, SPACING)
    else:
      with pytest.raises(UserError, match="not two unit vectors"):
        read_volume(folder)


def test_another_rescale_is_said_and_a_missing_one_refused(tmp_path):
  hu = make_hu()
  series = make_series(hu)
  series[3] = make_slice(hu[3], straight().to_mm([3, 0, 0]), intercept=-1000)
  folder = save_series(tmp_path / "s", series)
  volume = read_volume(folder)
  np.testing.assert_array_equal(volume.hu, hu)
  assert "2 rescales (slope, intercept) in one series" in volume.notes[0]
  assert "I003" in volume.notes[0]
  for name, value in (
    ("RescaleIntercept", None), ("RescaleSlope", 0), ("RescaleSlope", None),
  ):  # fmt: skip
    series = make_series(hu)
    series[9][name].value = value
    save_series(tmp_path / "s", series)
    with pytest.raises(UserError, match="I009: has no usable rescale"):
      read_volume(folder)
  series = make_series(hu, RescaleSlope=None, RescaleIntercept=None)
  volume = read_volume(save_series(tmp_path / "s", series))
  assert "no rescale slope and intercept" in volume.notes[0]


def test_slices_of_several_patients_are_refused(tmp_path):
  series = make_series(make_hu())
  for data in series[5:]:
    data.PatientID = "someone else"
  folder = save_series(tmp_path / "s", series)
  with pytest.raises(UserError, match="are of 2 patients") as error:
    read_volume(folder)
  assert "someone" not in str(error.value)
  for data in series[5:]:
    data.PatientID = ""
  read_volume(save_series(tmp_path / "s", series))


def test_sizes_that_no_file_holds_take_no_memory(tmp_path):
  series = make_series(make_hu())
  for data in series:
    data.Rows, data.Columns = 60000, 65000
  folder = save_series(tmp_path / "s", series)
  with pytest.raises(UserError, match="I000: .*7800000000 bytes"):
    read_volume(folder)


@pytest.mark.parametrize("change", [-2, 2, 50])
def test_pixels_are_as_many_as_rows_and_columns_say(tmp_path, change):
  """ITK fills up what is a little short, and leaves out what is too much."""
  series = make_series(make_hu())
  pixels = series[9].PixelData
  series[9].PixelData = (
    pixels[:change] if change < 0 else bytes(change) + pixels
  )
  folder = save_series(tmp_path / "s", series)
  with pytest.raises(UserError, match="I009: damaged DICOM pixels"):
    read_volume(folder)


@pytest.mark.parametrize(
  "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_other_syntaxes_without_compression(tmp_path, syntax):
  hu = make_hu(shape=(5, 3, 7))
  folder = tmp_path / "s"
  folder.mkdir()
  for number, data in enumerate(make_series(hu)):
    if syntax == ExplicitVRBigEndian:
      data.PixelData = (
        np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
      )
    data.file_meta.TransferSyntaxUID = syntax
    plain = pydicom.Dataset(data)
    plain.file_meta = data.file_meta
    plain.save_as(
      folder / f"{number}",
      implicit_vr=syntax.is_implicit_VR,
      little_endian=syntax.is_little_endian,
      enforce_file_format=True,
    )
  np.testing.assert_array_equal(read_volume(folder).hu, hu)


def test_a_length_that_lies_is_refused(tmp_path):
  """An element behind the pixels that claims 2 GB, as after damage."""
  folder = save_series(tmp_path / "s", make_series(make_hu()))
  with (folder / "I009").open("ab") as file:
    file.write(b"\xe0\x7f\x20\x00OB\0\0" + (2**31).to_bytes(4, "little"))
  with pytest.raises(UserError, match="I009: damaged"):
    read_volume(folder)


def end_process(path, series):
  os.kill(os.getpid(), signal.SIGSEGV)


def test_a_scan_that_crashes_its_reader_is_one_line(tmp_path, monkeypatch):
  hu = make_hu()
  folder = save_series(tmp_path / "s", make_series(hu))
  with monkeypatch.context() as patch:
    patch.setattr(dicom, "read_series_here", end_process)
    with pytest.raises(UserError, match="s: the process that read it crashed"):
      read_volume(folder)
  np.testing.assert_array_equal(read_volume(folder).hu, hu)


def test_links_to_folders_are_followed_once(tmp_path):
  hu = make_hu()
  deep = save_series(tmp_path / "deep", make_series(hu))
  (tmp_path / "s").mkdir()
  (tmp_path / "s" / "link").symlink_to(deep)
  (deep / "back").symlink_to(tmp_path / "s")
  np.testing.assert_array_equal(read_volume(tmp_path / "s").hu, hu)


# NIfTI and the other files: what can be wrong with them.


def test_slope_and_intercept_are_honoured(tmp_path):
  hu = make_hu(shape=(30, 20, 10))
  for number, (slope, inter) in enumerate([(1, -1024), (0.5, 8), (2, 0)]):
    raw = np.rint((hu - inter) / slope).astype(np.int16)
    image = nib.Nifti1Image(raw, np.diag([-1, -1, 2, 1]))
    image.header.set_slope_inter(slope, inter)
    path = tmp_path / f"{number}.nii"
    nib.save(image, path)
    # nibabel rescales on save, so put the raw voxels and the header back
    content = bytearray(path.read_bytes())
    content[352:] = raw.tobytes(order="F")
    content[112:120] = np.array([slope, inter], "<f4").tobytes()
    path.write_bytes(content)
    expected = np.rint(raw * slope + inter).transpose(2, 1, 0)
    np.testing.assert_array_equal(read_volume(path).hu, expected)


def test_float_voxels_are_rounded_and_clipped(tmp_path):
  array = make_hu(shape=(30, 20, 10)).astype(np.float64)
  array[0, 0] = 1e6
  array[0, 1] = 100.6
  path = save_nifti(tmp_path / "a.nii", array, np.diag([-1, -1, 2, 1]))
  volume = read_volume(path)
  assert (volume.hu[:, 0, 0] == 32767).all()
  assert (volume.hu[:, 1, 0] == 101).all()


def test_the_sform_wins_over_the_qform_and_it_is_said(tmp_path):
  affine = np.diag([-1.0, -1, 2, 1])
  other = affine.copy()
  other[2, 3] = 50
  image = nib.Nifti1Image(make_hu(shape=(30, 20, 10)), affine)
  for codes in ((1, 1), (1, 0)):
    image.set_qform(other, codes[0])
    image.set_sform(affine, codes[1])
    nib.save(image, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    if codes[1]:
      assert volume.origin[2] == 0
      assert "differ by up to 50.0 mm; took the sform" in volume.notes[0]
    else:
      assert volume.origin[2] == 50
      assert not volume.notes


def test_a_trailing_axis_of_one_is_dropped(tmp_path):
  array = make_hu(shape=(30, 20, 10))
  path = save_nifti(tmp_path / "a.nii", array[..., None], np.eye(4))
  assert read_volume(path).shape == SHAPE


def bad_files(folder):
  """Writes every bad file; returns name -> what its message must say."""
  hu, eye = make_hu(shape=(30, 20, 10)), np.diag([-0.5, -0.5, 2, 1])
  save_nifti(folder / "good.nii", hu, eye)
  content = (folder / "good.nii").read_bytes()
  (folder / "short.nii").write_bytes(content[:-100])
  (folder / "head.nii").write_bytes(content[:100])
  (folder / "text.nii").write_text("hello")
  packed = gzip.compress(content)
  (folder / "short.nii.gz").write_bytes(packed[: len(packed) // 2])
  (folder / "plain.nii.gz").write_bytes(content)
  (folder / "void.nii").write_bytes(b"")
  (folder / "scan.jpg").write_bytes(content)
  save_nifti(folder / "frames.nii", np.stack([hu, hu], -1), eye)
  save_nifti(folder / "flat.nii", hu[..., :1], eye)
  save_nifti(folder / "flat2.nii", hu[..., 0], eye)
  floats = hu.astype(np.float32)
  save_nifti(folder / "unit.nii", (floats + 1000) / 2500, eye)
  floats[3, 4, 5] = np.nan
  save_nifti(folder / "nan.nii", floats, eye)
  save_nifti(folder / "wrapped.nii", hu.astype(np.uint16), eye)
  save_nifti(folder / "grey.nii", (hu // 16 % 256).astype(np.uint8), eye)
  save_nifti(folder / "zero.nii", np.zeros_like(hu), eye)
  colour = np.zeros(hu.shape, [(c, "u1") for c in "RGB"])
  save_nifti(folder / "colour.nii", colour, eye)
  nib.save(nib.Nifti1Image(hu, None), folder / "bare.nii")
  broken = bytearray(content)
  broken[76 + 4 : 76 + 16] = bytes(12)  # pixdim
  broken[252:256] = bytes(4)  # both codes
  (folder / "pixdim.nii").write_bytes(broken)
  broken = bytearray(content)
  broken[280:284] = np.array(np.nan, "<f4").tobytes()  # srow_x[0]
  (folder / "affine.nii").write_bytes(broken)
  image = sitk.GetImageFromArray(hu.transpose(2, 1, 0))
  sitk.WriteImage(image, str(folder / "good.nrrd"))
  sitk.WriteImage(image, str(folder / "good.mha"))
  for name in ("nrrd", "mha"):
    content = (folder / f"good.{name}").read_bytes()
    (folder / f"short.{name}").write_bytes(content[:-100])
    kept = [
      line
      for line in content.split(b"\n")
      if not line.startswith((b"space directions", b"ElementSpacing"))
    ]
    (folder / f"bare.{name}").write_bytes(b"\n".join(kept))
  (folder / "short.nhdr").write_text("NRRD0004\ntype: short\n")
  vector = sitk.GetImageFromArray(np.stack([hu, hu], -1), isVector=True)
  sitk.WriteImage(vector, str(folder / "vector.mha"))
  sitk.WriteImage(image[:, :, 0], str(folder / "flat.mha"))
  (folder / "empty").mkdir()
  (folder / "texts").mkdir()
  (folder / "texts" / "a.txt").write_text("hello")
  return {
    "none.nii": "no such file", "short.nii": "damaged",
    "head.nii": "damaged", "text.nii": "damaged", "short.nii.gz": "damaged",
    "plain.nii.gz": "damaged", "void.nii": "damaged",
    "scan.jpg": "unknown format", "frames.nii": "4D with 2 frames",
    "flat.nii": "not a 3D", "flat2.nii": "not a 3D",
    "nan.nii": "1 voxels are NaN", "unit.nii": "not HU",
    "wrapped.nii": "40% of the voxels are above 20000",
    "grey.nii": "not HU", "zero.nii": "not HU", "colour.nii": "colour",
    "bare.nii": "no usable voxel spacing",
    "pixdim.nii": "no usable voxel spacing",
    "affine.nii": "no usable voxel spacing", "short.nrrd": "damaged",
    "short.mha": "damaged", "bare.nrrd": "no usable voxel spacing",
    "bare.mha": "no usable voxel spacing", "short.nhdr": "damaged",
    "vector.mha": "vector", "flat.mha": "not a 3D", "empty": "is empty",
    "texts": "none of 1 files is a DICOM",
  }  # fmt: skip


def test_bad_files_are_refused_in_one_line(tmp_path, capfd):
  for name, words in bad_files(tmp_path).items():
    with pytest.raises(UserError, match=words) as error:
      read_volume(tmp_path / name)
    message = str(error.value)
    assert str(tmp_path / name) in message
    assert "\n" not in message
    assert len(message) < 400
  assert not capfd.readouterr().err


def test_no_changed_bit_of_a_packed_nifti_is_accepted(tmp_path):
  """The voxels end before the checksum does, which must be read, too."""
  write_nifti(
    tmp_path / "a.nii.gz", make_hu(shape=(40, 50, 60)), straight((40, 50, 60))
  )
  content = (tmp_path / "a.nii.gz").read_bytes()
  rng = random.Random(0)
  for _ in range(60):
    bad = bytearray(content)
    # Not the head, of which time and system mean nothing.
    bad[rng.randrange(10, len(bad))] ^= 1 << rng.randrange(8)
    (tmp_path / "b.nii.gz").write_bytes(bad)
    with pytest.raises(UserError, match="damaged"):
      read_volume(tmp_path / "b.nii.gz")
  for more, match in ((b"more", "other data follows"), (b"\0" * 9, None)):
    (tmp_path / "b.nii.gz").write_bytes(content + more)
    if match:
      with pytest.raises(UserError, match=match):
        read_volume(tmp_path / "b.nii.gz")
    else:
      read_volume(tmp_path / "b.nii.gz")


@pytest.mark.parametrize(
  ("place", "value", "match"),
  [
    (108, np.float32(0), "vox_offset"), (108, np.float32(348), "vox_offset"),
    (108, np.float32(352.5), "vox_offset"), (108, np.float32(-9), "vox_offset"),
    (108, np.float32(np.nan), "vox_offset"), (108, np.float32(1e9), "asks for"),
    (108, np.float32(np.inf), "vox_offset"),
    (108, np.float32(-np.inf), "vox_offset"), (344, b"ni1\0", "without voxels"),
    (42, np.int16([1400] * 3), "asks for 5488000000 bytes"),
    (42, np.int16([32767] * 3), "asks for"), (42, np.int16(-30), "not a 3D"),
    (40, np.int16([4, 30, 20, 10, 0]), "not a 3D"),
    (40, np.int16([4, 30, 20, 10, -5]), "not a 3D"),
    (40, np.int16([7, 30, 20, 10, 9999, 9999, 9999]), "4D with 999700029999"),
    (42, np.int16(29), "more"), (70, np.int16([64, 64]), "asks for"),
    (70, np.int16(7777), "damaged"), (254, np.int16(99), "sform_code is 99"),
    (252, np.int16(-1), "qform_code is -1"),
  ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_headers_that_lie(tmp_path, capfd, name, place, value, match):
  save_nifti(tmp_path / "a.nii", make_hu(shape=(30, 20, 10)), np.eye(4))
  content = bytearray((tmp_path / "a.nii").read_bytes())
  value = value if isinstance(value, bytes) else value.tobytes()
  content[place : place + len(value)] = value
  if name.endswith(".gz"):
    content = gzip.compress(content)
    match = match.replace("asks for", "asks for|hold|fewer")
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=match):
    read_volume(tmp_path / name)
  assert not capfd.readouterr().err


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
def test_both_versions_of_nifti_in_both_byte_orders(tmp_path, version, order):
  hu = make_hu(shape=(30, 20, 10))
  kind = {1: nib.Nifti1Image, 2: nib.Nifti2Image}[version]
  image = kind(hu, np.diag([-1, -1, 2, 1]))
  header = image.header.as_byteswapped(order)
  header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 999))
  image = kind(hu, np.diag([-1, -1, 2, 1]), header)
  for name in ("a.nii", "a.nii.gz"):
    nib.save(image, tmp_path / name)
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.hu, hu.transpose(2, 1, 0))
    assert volume.spacing == (2, 1, 1)
    assert not volume.notes


def test_a_qform_that_is_no_rotation(tmp_path):
  path = save_nifti(
    tmp_path / "a.nii", make_hu(shape=(30, 20, 10)), np.diag([-1, -1, 2, 1])
  )
  content = bytearray(path.read_bytes())
  content[256:268] = np.array([2, 2, 2], "<f4").tobytes()  # quatern_b to d
  path.write_bytes(content)
  assert "qform is not a rotation; took the sform" in read_volume(path).notes[0]
  content[254:256] = bytes(2)  # sform_code
  path.write_bytes(content)
  with pytest.raises(UserError, match="qform is not a rotation"):
    read_volume(path)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.nrrd", "a", "a.dcm"])
def test_what_is_no_file_is_not_opened(tmp_path, name):
  os.mkfifo(tmp_path / name)
  with pytest.raises(UserError, match="a pipe, socket or device"):
    read_volume(tmp_path / name)
  with pytest.raises(UserError, match="a pipe, socket or device"):
    read_mask(tmp_path / name)
  (tmp_path / name).unlink()
  (tmp_path / name).symlink_to(tmp_path / name)
  with pytest.raises(UserError, match="a link that leads nowhere"):
    read_volume(tmp_path / name)
  (tmp_path / name).unlink()
  (tmp_path / name).mkdir()
  with pytest.raises(UserError, match="is a folder|folder is empty"):
    read_volume(tmp_path / name)


NO_ORIENTATION = {
  "spacings.nrrd": "spacings: 0.9 0.7 2.5",
  "no space.nrrd": (
    "space dimension: 3\nspace directions: (0.9,0,0) (0,0.7,0) (0,0,2.5)"
  ),
  "spacing.mha": "ElementSpacing = 0.9 0.7 2.5",
}


@pytest.mark.parametrize("name", NO_ORIENTATION)
def test_a_missing_orientation_is_said(tmp_path, name):
  if name.endswith("nrrd"):
    header = (
      f"NRRD0004\ntype: short\ndimension: 3\n{NO_ORIENTATION[name]}\n"
      "sizes: 30 20 10\nendian: little\nencoding: raw\n\n"
    )
  else:
    header = (
      "ObjectType = Image\nNDims = 3\nDimSize = 30 20 10\n"
      f"{NO_ORIENTATION[name]}\nElementType = MET_SHORT\n"
      "ElementDataFile = LOCAL\n"
    )
  hu = make_hu()
  (tmp_path / name).write_bytes(header.encode() + hu.tobytes())
  volume = read_volume(tmp_path / name)
  assert volume.notes[0] == (
    "no orientation in the header; assumed to be stored as LPS"
  )
  np.testing.assert_array_equal(volume.hu, hu)
  assert_grid(volume.grid, straight(origin=(0, 0, 0)))


# Masks and writing.


@pytest.mark.parametrize("name", ["m.nii.gz", "m.nrrd", "m.mha"])
def test_masks_share_the_scan_s_grid(tmp_path, name):
  labels = (make_hu() > 900).astype(np.uint8)
  grid = straight()
  write_nifti(tmp_path / "a.nii", make_hu(), grid)
  if name.startswith("m.nii"):
    write_nifti(tmp_path / name, labels, grid)
  else:
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(grid.spacing[::-1])
    image.SetOrigin(grid.origin)
    sitk.WriteImage(image, str(tmp_path / name))
  mask = read_mask(tmp_path / name)
  np.testing.assert_array_equal(mask.hu, labels)
  assert mask.hu.dtype == np.uint8
  volume = read_volume(tmp_path / "a.nii")
  volume_lib.check_same_grid(volume, mask)


def test_masks_on_another_grid_are_told_with_both(tmp_path):
  write_nifti(tmp_path / "a.nii", make_hu(), straight())
  labels = np.ones(SHAPE, np.uint8)
  write_nifti(tmp_path / "m.nii", labels, straight(origin=(-11, -222, 34)))
  with pytest.raises(UserError) as error:
    volume_lib.check_same_grid(
      read_volume(tmp_path / "a.nii"), read_mask(tmp_path / "m.nii")
    )
  for words in ("a.nii", "m.nii", "10x20x30", "-11, -222, 33", "-222, 34"):
    assert words in str(error.value)


def test_mask_labels(tmp_path):
  labels = np.zeros(SHAPE, np.float32)
  labels[0] = 820
  write_nifti(tmp_path / "m.nii", labels, straight())
  mask = read_mask(tmp_path / "m.nii")
  assert mask.hu.dtype == np.uint16
  assert mask.hu.max() == 820
  for value in (0.5, -1, 70000):
    labels[0] = value
    write_nifti(tmp_path / "m.nii", labels, straight())
    with pytest.raises(UserError, match="not a mask"):
      read_mask(tmp_path / "m.nii")
  with pytest.raises(UserError, match="folder"):
    read_mask(tmp_path)


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / "deep" / "a.nii.gz"
  write_nifti(path, make_hu(), straight())
  before = path.read_bytes()
  write_nifti(path, make_hu(), straight())
  assert path.read_bytes() == before
  monkeypatch.setattr(
    volume_lib.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full"))
  )
  with pytest.raises(OSError, match="full"):
    write_nifti(path, make_hu(1), straight())
  assert path.read_bytes() == before
  assert [p.name for p in path.parent.iterdir()] == ["a.nii.gz"]
  with pytest.raises(UserError, match="must end in"):
    write_nifti(tmp_path / "a.png", make_hu(), straight())
  with pytest.raises(ValueError, match="on a grid"):
    write_nifti(tmp_path / "a.nii", make_hu()[1:], straight())


def test_written_dtypes(tmp_path):
  for given, kept in (
    (bool, "uint8"), (np.uint8, "uint8"), (np.int64, "int32"),
    (np.float64, "float32"), (np.int16, "int16"),
  ):  # fmt: skip
    write_nifti(tmp_path / "a.nii", np.ones(SHAPE, given), straight())
    image = nib.load(tmp_path / "a.nii")
    assert image.get_data_dtype() == kept
    assert image.header.get_xyzt_units()[0] == "mm"


def test_the_real_scan_reads_the_right_way_up(real_ct):
  volume = read_volume(real_ct / "ct.nii.gz")
  assert volume.shape == (164, 126, 120)
  np.testing.assert_allclose(volume.spacing, 1.5)
  mask = read_mask(real_ct / "aorta.nii.gz")
  volume_lib.check_same_grid(volume, mask)
  assert np.median(volume.hu[mask.hu > 0]) == pytest.approx(354, abs=2)
  # The descending aorta lies behind and to the left of the ascending one.
  middle = np.argwhere(mask.hu[80] > 0)
  behind = middle[middle[:, 0] > 75].mean(0)
  front = middle[middle[:, 0] <= 75].mean(0)
  assert behind[1] > front[1]


@pytest.mark.parametrize("code", ["sform", "qform", "none"])
@pytest.mark.parametrize(("unit", "mm"), [("meter", 1000.0), ("micron", 0.001)])
def test_a_nifti_in_another_unit_is_in_mm(tmp_path, unit, mm, code):
  affine = np.diag([-0.4, 0.5, 0.6, 1.0])
  affine[:3, 3] = 20, -30, 40
  stored = affine.copy()
  stored[:3] /= mm
  hu = np.linspace(-1000, 800, 120).reshape(4, 5, 6).astype(np.int16)
  image = nib.Nifti1Image(hu, stored)
  image.header.set_xyzt_units(unit)
  image.set_sform(stored, int(code == "sform"))
  image.set_qform(stored, int(code == "qform"))
  nib.save(image, tmp_path / "scan.nii.gz")
  found = read_volume(tmp_path / "scan.nii.gz")
  np.testing.assert_allclose(found.grid.spacing, (0.6, 0.5, 0.4), rtol=1e-5)
  assert any(unit in note for note in found.notes)


def test_a_nifti_of_an_unknown_unit_says_so(tmp_path):
  hu = np.linspace(-1000, 800, 120).reshape(4, 5, 6).astype(np.int16)
  image = nib.Nifti1Image(hu, np.diag([-0.4, 0.5, 0.6, 1.0]))
  image.header["xyzt_units"] = 8 + 7
  nib.save(image, tmp_path / "scan.nii")
  found = read_volume(tmp_path / "scan.nii")
  np.testing.assert_allclose(found.grid.spacing, (0.6, 0.5, 0.4), rtol=1e-5)
  assert "unknown unit of length in the header; assumed to be mm" in found.notes
