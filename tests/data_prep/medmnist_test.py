"""MedMNIST3D files: read without pickle, kept voxel by voxel, or refused."""

import csv
import io
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_prep import medmnist, sources
from data_prep.errors import UserError

SIZE = (6, 7, 8)
REAL = pathlib.Path(__file__).parents[3] / "shared" / "data" / "vesselmnist3d"


def arrays(*splits, count=10, size=SIZE):
  """The arrays of a set: noise, and every third volume with label 1."""
  rng = np.random.default_rng(0)
  found = {}
  for split in splits:
    images = rng.integers(0, 256, (count, *size), np.uint8)
    found[f"{split}_images"] = images
    found[f"{split}_labels"] = (np.arange(count) % 3 == 0).astype(np.uint8)[
      :, None
    ]
  return found


def write(path, found, **options):
  save = options.pop("save", np.savez_compressed)
  save(path, **found, **options)
  return path


def program(module, path, *flags):
  return subprocess.run(
    [
      *(sys.executable, "-m", f"data_prep.{module}", "--source=medmnist"),
      *(f"--input={path}", "--workers=1", *flags),
    ],
    capture_output=True,
    text=True,
    timeout=120,
  )


def last_line(done):
  lines = [line for line in done.stderr.splitlines() if line.startswith("err")]
  assert len(lines) == 1
  return lines[0]


@pytest.mark.parametrize(
  "splits", [("train", "val", "test"), ("train", "val"), ("test",)]
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_volume_is_a_case_with_its_official_split(tmp_path, splits, save):
  found = arrays(*splits)
  cases = sources.find_cases(
    "medmnist", write(tmp_path / "a.npz", found, save=save)
  )
  assert len(cases) == 10 * len(splits)
  assert len({case.case_id for case in cases}) == len(cases)
  names = {"train": "train", "val": "validation", "test": "test"}
  for case in cases:
    split, _, index = case.case_id.rpartition("_")
    assert case.split == names[split]
    assert case.patient_id == case.case_id
    assert case.label == found[f"{split}_labels"][int(index), 0]
    voxels = found[f"{split}_images"][int(index)]
    volume = medmnist.volume(case)
    np.testing.assert_array_equal(volume.hu, voxels)
    assert volume.hu.dtype == np.int16
    assert volume.spacing == (1, 1, 1)


def test_fortran_order_and_flat_labels_are_read(tmp_path):
  found = arrays("train", "val")
  found["train_images"] = np.asfortranarray(found["train_images"])
  found["val_labels"] = found["val_labels"].ravel().astype(np.int64)
  cases = medmnist.cases(write(tmp_path / "a.npz", found))
  np.testing.assert_array_equal(
    cases[3].extra["voxels"], found["train_images"][3]
  )
  assert [c.label for c in cases[10:13]] == [1, 0, 0]


def test_a_build_needs_no_more_than_source_input_and_out(tmp_path):
  found = arrays("train", "val")
  path = write(tmp_path / "a.npz", found)
  done = program("build", path, f"--out={tmp_path / 'out'}")
  assert done.returncode == 0, done.stderr
  assert "note" not in done.stdout  # These values are no HU.
  assert "train: 6 normal, 4 cad" in done.stdout
  folder = tmp_path / "out" / "ctca" / "medmnist_paper_6x7x8" / "1.0.0"
  assert done.stdout.splitlines()[-1] == str(folder)
  builder = tfds.builder_from_directory(folder)
  assert set(builder.info.splits) == {"train", "validation"}
  for split, name in (("train", "train"), ("validation", "val")):
    for i, record in enumerate(builder.as_data_source(split)):
      assert record["case_id"].decode() == f"{name}_{i:04d}"
      np.testing.assert_array_equal(record["image"], found[f"{name}_images"][i])
      assert record["label"] == found[f"{name}_labels"][i, 0]
      np.testing.assert_array_equal(record["spacing"], 1)
  with (folder / "cases.csv").open(newline="") as file:
    assert len(list(csv.DictReader(file))) == 20


def test_a_damaged_header_is_one_line(tmp_path):
  """numpy parses headers as Python, which fails in ways of its own."""
  path = write(tmp_path / "a.npz", arrays("train", "val"))
  with zipfile.ZipFile(path) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  header = members["val_labels.npy"]
  members["val_labels.npy"] = header.replace(b"}", b" ", 1)
  with zipfile.ZipFile(path, "w") as archive:
    for name, data in members.items():
      archive.writestr(name, data)
  with pytest.raises(UserError, match="cannot be read as .npz"):
    medmnist.cases(path)


def test_check_reports_no_implausible_hu(tmp_path):
  done = program("check", write(tmp_path / "a.npz", arrays("train", "val")))
  assert done.returncode == 0, done.stderr
  assert "20 of 20 cases are usable" in done.stdout
  assert "note" not in done.stdout


def test_a_grid_is_refused(tmp_path):
  path = write(tmp_path / "a.npz", arrays("train", "val"))
  done = program("build", path, f"--out={tmp_path / 'out'}", "--shape=4,4,4")
  assert done.returncode == 2
  assert "--shape is not for --source=medmnist" in last_line(done)
  assert not (tmp_path / "out").exists()


def without(name):
  return {k: v for k, v in arrays("train", "val").items() if k != name}


def changed(**fields):
  return arrays("train", "val") | fields


@pytest.mark.parametrize(
  ("found", "message"),
  [
    ({}, "empty archive"),
    (changed(x=np.zeros(3)), r"holds 'x.npy'; a MedMNIST file has"),
    (without("val_labels"), "has no array val_labels"),
    (arrays("train", size=(28, 28)), r"uint8 \[10, 28, 28\]; the volumes"),
    (arrays("train", size=(0, 3, 3)), "train_images is"),
    (
      changed(val_images=np.zeros((10, *SIZE), np.int32)),
      "val_images is int32",
    ),
    (
      changed(val_images=np.zeros((10, 3, 3, 3), np.uint8)),
      "differ in shape",
    ),
    (changed(val_labels=np.zeros((9, 1), np.uint8)), r"is \[9, 1\], not one"),
    (changed(val_labels=np.zeros((), np.uint8)), r"val_labels is \[\]"),
    (changed(val_labels=np.full((10, 1), 2)), "values 2 to 2.*two classes"),
    (changed(val_labels=np.full(10, 0.5)), "val_labels holds float64"),
    (changed(val_labels=np.array([{}] * 10)), "val_labels holds object"),
  ],
)
def test_a_foreign_file_is_refused_in_one_line(tmp_path, found, message):
  path = write(tmp_path / "a.npz", found)
  with pytest.raises(UserError, match=message) as raised:
    medmnist.cases(path)
  assert str(path) in str(raised.value)


def test_no_pickle_is_loaded(tmp_path):
  class Bomb:
    def __reduce__(self):
      return (tmp_path.joinpath("exploded").touch, ())

  found = changed(val_images=np.array([Bomb()] * 10))
  path = write(tmp_path / "a.npz", found)
  with pytest.raises(UserError, match="holds object"):
    medmnist.cases(path)
  assert not (tmp_path / "exploded").exists()


def npy(shape, data=b""):
  """An array file whose header asks for more than follows."""
  file = io.BytesIO()
  header = {"descr": "|u1", "fortran_order": False, "shape": shape}
  np.lib.format.write_array_header_1_0(file, header)
  return file.getvalue() + data


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (npy((10**9, *SIZE)), "more bytes than the file can hold"),
    (npy((3, *SIZE), b"0" * 99), "breaks off"),
    (npy((1, 2, 2, 2), b"0" * 99), "more bytes than its header"),
    (b"\x93NUMPY\x09\x00" + b"0" * 99, "unknown version"),
    (b"nothing", "magic string"),
  ],
)
def test_a_wrong_header_is_one_line(tmp_path, content, message):
  path = tmp_path / "a.npz"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("train_images.npy", content)
    archive.writestr("train_labels.npy", npy((3, 1), b"\0\1\0"))
  with pytest.raises(UserError, match=message):
    medmnist.cases(path)


def test_damaged_bytes_are_refused_or_change_nothing(tmp_path):
  found = arrays("train", "val", count=4)
  good = write(tmp_path / "good.npz", found).read_bytes()
  expected = medmnist.cases(tmp_path / "good.npz")
  path = tmp_path / "bad.npz"
  rng = np.random.default_rng(0)
  refused = 0
  for _ in range(150):
    bad = bytearray(good)
    kind = rng.integers(3)
    place = int(rng.integers(len(bad)))
    if kind == 0:
      bad[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
      del bad[place:]
    else:
      bad[place : place + 40] = rng.bytes(40)
    path.write_bytes(bad)
    try:
      cases = medmnist.cases(path)
    except UserError as error:
      refused += "\n" not in str(error)
      continue
    for case, same in zip(cases, expected, strict=True):
      assert (case.case_id, case.label) == (same.case_id, same.label)
      np.testing.assert_array_equal(case.extra["voxels"], same.extra["voxels"])
  assert refused > 100


@pytest.mark.parametrize("name", ["absent.npz", "a.nii", "folder"])
def test_another_input_is_refused(tmp_path, name):
  (tmp_path / "folder").mkdir()
  (tmp_path / "a.nii").write_bytes(b"0" * 99)
  with pytest.raises(UserError, match=r"no such|\.npz"):
    sources.find_cases("medmnist", tmp_path / name)


def test_one_label_only_is_refused(tmp_path):
  found = arrays("train", "val")
  for split in ("train", "val"):
    found[f"{split}_labels"][:] = 0
  with pytest.raises(UserError, match="every label is normal"):
    sources.find_cases("medmnist", write(tmp_path / "a.npz", found))


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared")
def test_the_public_file_has_its_published_counts():
  cases = sources.find_cases("medmnist", REAL / "vesselmnist3d_train_val.npz")
  counts = {
    split: [
      sum(c.label == x for c in cases if c.split == split) for x in (0, 1)
    ]
    for split in ("train", "validation")
  }
  assert counts == {"train": [1185, 150], "validation": [169, 22]}
