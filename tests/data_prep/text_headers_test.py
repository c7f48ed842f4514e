"""NRRD and MetaImage: as ITK writes and reads them, and what is refused."""

import bz2
import gzip
import random
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from data_prep import text_headers
from data_prep.errors import UserError
from data_prep.volume import read_volume

SIZE = (30, 20, 10)
NRRD = {
  "type": "short",
  "dimension": "3",
  "space": "left-posterior-superior",
  "sizes": "30 20 10",
  "space directions": "(0.9,0,0) (0,0.7,0) (0,0,2.5)",
  "kinds": "domain domain domain",
  "endian": "little",
  "encoding": "raw",
  "space origin": "(5,-40,77)",
}
META = {
  "ObjectType": "Image",
  "NDims": "3",
  "BinaryData": "True",
  "BinaryDataByteOrderMSB": "False",
  "CompressedData": "False",
  "TransformMatrix": "1 0 0 0 1 0 0 0 1",
  "Offset": "5 -40 77",
  "ElementSpacing": "0.9 0.7 2.5",
  "DimSize": "30 20 10",
  "ElementType": "MET_SHORT",
  "ElementDataFile": "LOCAL",
}
AFFINE = np.diag([-0.9, -0.7, 2.5, 1])
AFFINE[:3, 3] = (-5, 40, 77)


def voxels(seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(-1000, 1500, SIZE).astype("<i2")


def raw(array):
  return array.tobytes(order="F")


def nrrd_header(**changes):
  """Fields replaced, or removed by None; "_" in a name is a blank."""
  fields = NRRD | {name.replace("_", " "): v for name, v in changes.items()}
  lines = [f"{k}: {v}" for k, v in fields.items() if v is not None]
  return "\n".join(["NRRD0004", "# a comment", "own:=key", *lines, "", ""])


def meta_header(**changes):
  fields = {k: v for k, v in META.items() if k != "ElementDataFile"} | changes
  fields.setdefault("ElementDataFile", META["ElementDataFile"])
  fields["ElementDataFile"] = fields.pop("ElementDataFile")
  return "".join(f"{k} = {v}\n" for k, v in fields.items() if v is not None)


def read(path, header, data=None):
  data = raw(voxels()) if data is None else data
  path.write_bytes(header.encode() + data)
  if path.suffix in (".nrrd", ".nhdr"):
    return text_headers.read_nrrd(path)
  return text_headers.read_meta(path)


@pytest.fixture
def nrrd(tmp_path):
  return tmp_path / "a.nrrd"


@pytest.fixture
def mha(tmp_path):
  return tmp_path / "a.mha"


TYPES = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8")


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("packed", [False, True])
def test_all_that_itk_writes_is_read_as_itk_reads_it(tmp_path, suffix, packed):
  rng = np.random.default_rng(0)
  for number, code in enumerate(TYPES):
    image = sitk.GetImageFromArray(rng.integers(0, 99, SIZE[::-1]).astype(code))
    image.SetSpacing((0.9, 0.7, 2.5))
    image.SetOrigin((5, -40, 77.25))
    # Any rotation: the R of a QR decomposition is left out.
    image.SetDirection(np.linalg.qr(rng.normal(size=(3, 3)))[0].ravel())
    path = tmp_path / f"{number}{suffix}"
    sitk.WriteImage(image, str(path), packed)
    itk = sitk.ReadImage(str(path))
    reader = (
      text_headers.read_nrrd if suffix[1] == "n" else text_headers.read_meta
    )
    array, affine, notes = reader(path)
    assert array.dtype == np.dtype(code)
    assert notes == []
    np.testing.assert_array_equal(
      array, sitk.GetArrayFromImage(itk).transpose(2, 1, 0)
    )
    for index in ((0, 0, 0), (29, 3, 7)):
      place = affine @ [*index, 1] * [-1, -1, 1, 1]
      expected = itk.TransformIndexToPhysicalPoint(index)
      np.testing.assert_allclose(place[:3], expected, atol=1e-5)


@pytest.mark.parametrize(
  ("space", "signs"),
  [
    ("right-anterior-superior", (1, 1, 1)), ("RAS", (1, 1, 1)),
    ("left-anterior-superior", (-1, 1, 1)), ("LAS", (-1, 1, 1)),
    ("left-posterior-superior", (-1, -1, 1)), ("LPS", (-1, -1, 1)),
  ],
)  # fmt: skip
def test_the_space_of_a_nrrd_is_honoured(nrrd, space, signs):
  _, affine, notes = read(nrrd, nrrd_header(space=space))
  expected = np.diag([*signs, 1]) @ np.diag([0.9, 0.7, 2.5, 1])
  expected[:3, 3] = np.multiply(signs, (5, -40, 77))
  np.testing.assert_allclose(affine, expected)
  assert notes == []


@pytest.mark.parametrize(
  ("unit", "factor"), [("mm", 1), ("cm", 10), ("m", 1000), ("um", 0.001)]
)
def test_units_are_honoured(nrrd, mha, unit, factor):
  units = " ".join([f'"{unit}"'] * 3)
  _, affine, _ = read(nrrd, nrrd_header(space_units=units))
  expected = np.diag([factor] * 3 + [1]) @ AFFINE
  np.testing.assert_allclose(affine, expected)
  spaced = {"space directions": None, "space": None, "space origin": None}
  spaced |= {"spacings": "0.9 0.7 2.5", "units": units}
  _, affine, _ = read(nrrd, nrrd_header(**spaced))
  np.testing.assert_allclose(affine[:3, :3], expected[:3, :3])
  if unit != "m":
    _, affine, _ = read(mha, meta_header(DistanceUnits=unit))
    np.testing.assert_allclose(affine, expected)


@pytest.mark.parametrize(
  ("encoding", "pack"), [("gz", gzip.compress), ("bzip2", bz2.compress)]
)
def test_packed_nrrd(nrrd, encoding, pack):
  array, *_ = read(nrrd, nrrd_header(encoding=encoding), pack(raw(voxels())))
  np.testing.assert_array_equal(array, voxels())


def test_big_endian(nrrd, mha):
  data = raw(voxels().astype(">i2"))
  for found in (
    read(nrrd, nrrd_header(endian="big"), data),
    read(mha, meta_header(BinaryDataByteOrderMSB="True"), data),
  ):
    np.testing.assert_array_equal(found[0], voxels())
    np.testing.assert_allclose(found[1], AFFINE)


def test_voxels_in_a_file_of_their_own(tmp_path):
  data = raw(voxels())
  (tmp_path / "a b.raw").write_bytes(b"12345" + data)
  nhdr, mhd = tmp_path / "a.nhdr", tmp_path / "a.mhd"
  for skip in ("5", "-1"):
    for path, header in (
      (nhdr, nrrd_header(data_file="a b.raw", byte_skip=skip)),
      (mhd, meta_header(ElementDataFile="a b.raw", HeaderSize=skip)),
    ):
      array, affine, _ = read(path, header, b"")
      np.testing.assert_array_equal(array, voxels())
      np.testing.assert_allclose(affine, AFFINE)


def test_a_trailing_axis_of_one_is_dropped(nrrd, mha):
  header = nrrd_header(
    dimension=4,
    sizes="30 20 10 1",
    kinds="domain domain domain list",
    space_directions=NRRD["space directions"] + " none",
  )
  assert read(nrrd, header)[0].shape == SIZE
  header = meta_header(
    NDims=4,
    DimSize="30 20 10 1",
    ElementSpacing="0.9 0.7 2.5 1",
    Offset="5 -40 77 0",
    TransformMatrix=" ".join(f"{x:g}" for x in np.eye(4).ravel()),
  )
  array, affine, _ = read(mha, header)
  assert array.shape == SIZE
  np.testing.assert_allclose(affine, AFFINE)


SPACINGS = {"space_directions": None, "space": None, "space_origin": None}
BAD_NRRD = [
  ({"space_directions": "(nan,0,0) (0,0.7,0) (0,0,2.5)"}, "no usable voxel"),
  ({"space_directions": "none (0,0.7,0) (0,0,2.5)"}, "no usable voxel spac"),
  ({"space_directions": "(0,0,0) (0,0.7,0) (0,0,2.5)"}, "no usable voxel"),
  ({"space_directions": "(0.9,0) (0,0.7) (0,0)"}, "three numbers"),
  ({"space_directions": "(0.9,0,0) (0,0.7,0)"}, "each axis"),
  (SPACINGS, "no usable voxel spacing"),
  (SPACINGS | {"spacings": "NaN NaN NaN"}, "no usable voxel spacing"),
  (SPACINGS | {"spacings": "0.9 NaN 2.5"}, "no usable voxel spacing"),
  (SPACINGS | {"spacings": "0.9 -0.7 2.5"}, "no usable voxel spacing"),
  (SPACINGS | {"spacings": "0.9 0.7"}, "2 numbers, not 3"),
  ({"spacings": "1 1 1"}, "both spacings and"),
  ({"space_units": '"mm" "cm" "mm"'}, "units of length"),
  ({"space_units": '"inch" "inch" "inch"'}, "units of length"),
  ({"space_origin": "(x,0,0)"}, "not a number"),
  ({"dimension": "-1"}, "dimension is -1"),
  ({"dimension": "100"}, "dimension is 100"),
  ({"sizes": "30 20"}, "2 numbers"),
  ({"sizes": "30 20 -10"}, "not sizes"),
  ({"sizes": "1400 1400 1400"}, "asks for 5488000000 bytes"),
  ({"sizes": f"{2**33} {2**33} 10"}, "asks for"),
  ({"type": "block"}, "type 'block'"),
  ({"endian": None}, "neither little nor big"),
  ({"encoding": "ascii"}, "encoding 'ascii' is not read"),
  ({"encoding": "gzip"}, "damaged"),
  ({"spadings": "1 1 1"}, "unknown or repeated"),
  ({"line_skip": "2"}, "skipped lines"),
  ({"data_file": "LIST"}, "in many files"),
  ({"data_file": "a%03d.raw 1 10 1"}, "in many files"),
  ({"data_file": "%s%s%n"}, "no such file"),
  ({"data_file": "."}, "no such file"),
]
BAD_META = [
  ({"NDims": "-1"}, "ndims is -1"),
  ({"NDims": "100"}, "ndims is 100"),
  ({"NDims": "x"}, "ndims is x"),
  ({"NDims": None}, "ndims is None"),
  ({"DimSize": "30 20"}, "2 numbers, not 3"),
  ({"DimSize": "30 20 0"}, "not sizes"),
  ({"DimSize": "1400 1400 1400"}, "asks for 5488000000 bytes"),
  ({"ElementSpacing": None}, "no usable voxel spacing"),
  ({"ElementSpacing": "nan 1 1"}, "no usable voxel spacing"),
  ({"ElementSpacing": "-1 1 1"}, "no usable voxel spacing"),
  ({"ElementSpacing": "1 1"}, "2 numbers"),
  ({"TransformMatrix": "1 0 0 0 1 0"}, "6 numbers, not 9"),
  ({"TransformMatrix": "2 0 0 0 1 0 0 0 1"}, "unit vectors"),
  ({"TransformMatrix": "nan 0 0 0 1 0 0 0 1"}, "unit vectors"),
  ({"Offset": "1 2"}, "2 numbers"),
  ({"ElementType": "MET_STRING"}, "ElementType"),
  ({"ElementNumberOfChannels": "3"}, "colour or vector"),
  ({"BinaryData": "False"}, "stored as text"),
  ({"CompressedData": "True"}, "damaged"),
  ({"CompressedData": "Frue"}, "neither True nor False"),
  ({"CompressedDataSize": "900"}, "not compressed"),
  ({"HeaderSize": "20"}, "HeaderSize"),
  ({"ElementDataFile": "LIST"}, "in many files"),
  ({"ElementDataFile": "a%03d.raw 1 10 1"}, "in many files"),
  ({"ElementDataFile": "%n%n%s%s"}, "no such file"),
  ({"ElementDataFile": "/dev/zero"}, "no such file"),
  ({"dimsize": "30 20 10"}, "repeated"),
  ({"ObjectType": "Tube"}, "ObjectType"),
  ({"DistanceUnits": "inch"}, "units of length"),
]


@pytest.mark.parametrize(("changes", "match"), BAD_NRRD)
def test_bad_nrrd(nrrd, changes, match):
  with pytest.raises(UserError, match=match) as error:
    read(nrrd, nrrd_header(**changes))
  assert str(nrrd) in str(error.value)


@pytest.mark.parametrize(("changes", "match"), BAD_META)
def test_bad_meta_image(mha, changes, match):
  with pytest.raises(UserError, match=match) as error:
    read(mha, meta_header(**changes))
  assert str(mha) in str(error.value)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_headers_without_an_end(tmp_path, suffix):
  path = tmp_path / f"a{suffix}"
  header = {".nrrd": nrrd_header(), ".mha": meta_header()}[suffix]
  for content in ("", "NRRD0004\n", header[:60], header[:60] + "\n\n"):
    with pytest.raises(UserError, match="damaged or not a"):
      read(path, content, b"")
  for more in (b"a" * 3_000_000, b"#a\n" * 1_000_000, b"\n" * 3_000_000):
    with pytest.raises(UserError, match="damaged or not a"):
      read(path, header[:11], more)


@pytest.mark.parametrize("name", ["a.nrrd", "b.nrrd", "a.mha"])
def test_no_changed_bit_of_compressed_voxels_is_accepted(tmp_path, name):
  header, pack = {
    "a.nrrd": (nrrd_header(encoding="gzip"), gzip.compress),
    "b.nrrd": (nrrd_header(encoding="bzip2"), bz2.compress),
    "a.mha": (meta_header(CompressedData="True"), zlib.compress),
  }[name]
  data = pack(raw(voxels()))
  rng = random.Random(0)
  for _ in range(60):
    bad = bytearray(data)
    # Not the head of gzip, of which time and system mean nothing.
    bad[rng.randrange(10, len(bad))] ^= 1 << rng.randrange(8)
    with pytest.raises(UserError, match="damaged"):
      read(tmp_path / name, header, bytes(bad))
  # Through the front door, too.
  (tmp_path / name).write_bytes(header.encode() + data[:-1])
  with pytest.raises(UserError, match="breaks off before its end"):
    read_volume(tmp_path / name)


@pytest.mark.parametrize("text", ["1_0 0.7 2.5", "\u0663 0.7 2.5", "1,0 1 1"])
def test_what_python_alone_takes_for_a_number_is_refused(mha, nrrd, text):
  with pytest.raises(UserError, match="is not a number"):
    read(mha, meta_header(ElementSpacing=text))
  header = nrrd_header(space_directions=None, space=None, space_origin=None)
  header = header.replace("kinds", f"spacings: {text}\nkinds")
  with pytest.raises(UserError, match="is not a number"):
    read(nrrd, header)


def test_a_scan_without_an_origin_says_so(mha, nrrd):
  for path, header in (
    (mha, meta_header(Offset=None)),
    (nrrd, nrrd_header(space_origin=None)),
  ):
    _, affine, notes = read(path, header)
    np.testing.assert_array_equal(affine[:3, 3], 0)
    assert notes == ["no origin in the header; assumed to be 0, 0, 0"]
