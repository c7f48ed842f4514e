"""A manifest for a folder of scans; masks are not mistaken for scans."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from data_prep import manifests, sources, tables, volume
from data_prep.errors import UserError

SHAPE = (10, 20, 30)
GRID = volume.Grid(SHAPE, (1.5, 1.0, 0.5), (3.0, -7.0, 11.0), np.eye(3))


def put(folder, *names, content=b""):
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def put_slices(folder, *names):
  put(folder, *names, content=b"\0" * 128 + b"DICM")


def scan(path, seed=0):
  hu = np.random.default_rng(seed).integers(-900, 900, SHAPE, np.int16)
  volume.write_nifti(path, hu, GRID)


def mask(path, dtype=np.uint8):
  array = np.zeros(SHAPE, dtype)
  array[2:5, 3:9, 4:20] = 1
  array[5:7, 3:9, 4:20] = 2
  volume.write_nifti(path, array, GRID)


def listed(folder, *names):
  rows = manifests.find(folder).rows
  return [tuple(row[name] for name in names) for row in rows]


@pytest.mark.parametrize(
  ("image", "of_it"),
  [
    ("7.nii.gz", "7_mask.nii.gz"),
    ("7.nii.gz", "7-seg.nrrd"),
    ("7.img.nii.gz", "7.label.nii.gz"),
    ("images/7.mha", "labels/7.mha"),
    ("imagesTr/7_0000.nii.gz", "labelsTr/7.nii.gz"),
    ("7/ct.nii", "7/segmentation.nii"),
  ],
)
def test_a_mask_goes_with_its_scan(tmp_path, image, of_it):
  put(tmp_path, image, of_it)
  found = manifests.find(tmp_path)
  assert found.rows == [
    {
      "case_id": "7",
      "patient_id": "7",
      "image": image,
      "label": "",
      "mask": of_it,
      "aorta_mask": "",
    }
  ]
  assert not found.left_out


@pytest.mark.parametrize("name", ["7_aorta.nii", "7_aorta_mask.nii"])
def test_an_aorta_has_a_column_of_its_own(tmp_path, name):
  put(tmp_path, "7.nii", "7_mask.nii", name)
  columns = ("image", "mask", "aorta_mask")
  assert listed(tmp_path, *columns) == [("7.nii", "7_mask.nii", name)]


def test_a_mask_without_a_scan_is_left_out(tmp_path):
  put(tmp_path, "7.nii", "8_mask.nii", "7_heart_mask.nii")
  found = manifests.find(tmp_path)
  assert [row["case_id"] for row in found.rows] == ["7"]
  assert [path.name for path in found.left_out] == [
    "7_heart_mask.nii",
    "8_mask.nii",
  ]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_a_mask_without_a_word_for_it_is_known_by_its_content(tmp_path, dtype):
  scan(tmp_path / "7.nii.gz")
  scan(tmp_path / "7_2.nii.gz", seed=1)
  mask(tmp_path / "7_lad.nii.gz", dtype)
  found = manifests.find(tmp_path)
  assert [row["case_id"] for row in found.rows] == ["7", "7_2"]
  assert found.left_out == [tmp_path / "7_lad.nii.gz"]


def test_labels_are_those_of_the_folders(tmp_path):
  put(tmp_path, "Normal/b.nii", "train/CAD/c.nii", "Diseased/d.nii", "a.nii")
  put(tmp_path, "0/e.nii", "yes/f.nii")
  assert sorted(listed(tmp_path, "case_id", "label")) == [
    ("a", ""),
    ("b", "normal"),
    ("c", "cad"),
    ("d", "cad"),
    ("e", ""),
    ("f", ""),
  ]


def test_equal_names_get_those_of_their_folders(tmp_path):
  put(tmp_path, "cad/1.nii", "normal/1.nii", "normal/1_mask.nii", "cad/2.nii")
  assert listed(tmp_path, "case_id", "mask") == [
    ("cad_1", ""),
    ("2", ""),
    ("normal_1", "normal/1_mask.nii"),
  ]


def test_two_files_of_one_role_are_one_message(tmp_path):
  put(tmp_path, "7.nii", "7_mask.nii", "7_seg.nii")
  with pytest.raises(UserError, match="mask of case 7: .*7_mask.*7_seg"):
    manifests.find(tmp_path)
  (tmp_path / "7_seg.nii").rename(tmp_path / "7.nrrd")
  with pytest.raises(UserError, match="image of case 7: .*nii.*nrrd"):
    manifests.find(tmp_path)


def test_folders_of_slices_are_scans(tmp_path):
  put_slices(tmp_path, "p1/IM1", "p1/IM2", "p2/S1/a.dcm", "p2/S2/a.dcm")
  put(tmp_path, "notes/a.txt", "p1/notes.txt")
  put_slices(tmp_path, "cad/p3/S1/a.dcm", "cad/p3/S2/a.dcm", "DICOMDIR")
  assert listed(tmp_path, "case_id", "image", "label") == [
    ("p3", "cad/p3", "cad"),
    ("p1", "p1", ""),
    ("S1", "p2/S1", ""),
    ("S2", "p2/S2", ""),
  ]


@pytest.mark.parametrize("name", ["IM1", "cad/IM1"])
def test_loose_slices_are_one_message(tmp_path, name):
  put(tmp_path, "a.nii")
  put_slices(tmp_path, name)
  with pytest.raises(UserError, match=f"{name}: .*a folder of its own"):
    manifests.find(tmp_path)


def test_what_is_written_is_what_the_source_reads(tmp_path):
  put(tmp_path, "normal/a, b.nii", "cad/7.nii", "cad/7_mask.nii")
  lines = manifests.write_new(tmp_path)
  a, b = sources.find_cases("manifest", tmp_path)
  assert (a.case_id, a.label, a.mask) == ("7", 1, tmp_path / "cad/7_mask.nii")
  assert b.image == tmp_path / "normal/a, b.nii"
  text = (tmp_path / "manifest.csv").read_text()
  assert text.startswith("case_id,patient_id,image,label,mask\n")
  assert not any("no label" in line for line in lines)
  assert any("1 aorta, 2 lumen" in line for line in lines)
  with pytest.raises(UserError, match="is there already"):
    manifests.write_new(tmp_path)
  assert (tmp_path / "manifest.csv").read_text() == text


def test_a_folder_without_scans_gets_no_manifest(tmp_path):
  put(tmp_path, "7_mask.nii")
  with pytest.raises(UserError, match="no scan found: .* 1 mask such as .*7_m"):
    manifests.write_new(tmp_path)
  assert not (tmp_path / "manifest.csv").exists()


def test_masks_named_after_scans_are_split_off():
  paths = [
    pathlib.Path("scans", name)
    for name in ("1.nii", "1_mask.nii", "2_mask.nii", "1_aorta.nii", "3.mha")
  ]
  scans, masks = manifests.split_masks(paths)
  assert [path.name for path in scans] == ["1.nii", "2_mask.nii", "3.mha"]
  assert [path.name for path in masks] == ["1_mask.nii", "1_aorta.nii"]
  # Without scans among them nobody can tell whose they are.
  assert manifests.split_masks(masks) == (masks, [])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_mask_is_no_scan(tmp_path, dtype):
  mask(tmp_path / "a.nii", dtype)
  scan(tmp_path / "b.nii")
  with pytest.raises(UserError, match="3 whole numbers from 0 to 2: a mask"):
    volume.read_volume(tmp_path / "a.nii")
  assert volume.is_mask(tmp_path / "a.nii")
  assert not volume.is_mask(tmp_path / "b.nii")
  assert not volume.is_mask(tmp_path / "gone.nii")


def test_large_labels_are_no_hu(tmp_path):
  array = np.zeros(SHAPE, np.uint16)
  array[1:4], array[5] = 820, 500
  volume.write_nifti(tmp_path / "a.nii", array, GRID)
  with pytest.raises(UserError, match="from 0 to 820: a mask"):
    volume.read_volume(tmp_path / "a.nii")


def check(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "data_prep.check", "--workers=1", *arguments],
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_check_offers_writes_and_uses_a_manifest(tmp_path):
  for i in range(6):
    scan(tmp_path / f"{i}.nii.gz", seed=i)
    mask(tmp_path / f"{i}_mask.nii.gz")
  done = check("--source=manifest", f"--input={tmp_path}")
  assert done.returncode == 2
  for part in (*manifests.REQUIRED, *manifests.OPTIONAL, "--write_manifest"):
    assert part in done.stderr
  assert done.stderr.count("\n") == 1
  done = check("--write_manifest", f"--input={tmp_path}")
  assert done.returncode == 0, done.stderr
  assert "6 have no label: write normal or cad" in done.stdout
  assert done.stdout.splitlines()[-1] == "6 of 6 cases are usable"
  rows = tables.read_table(tmp_path / "manifest.csv")
  assert [row["mask"] for row in rows] == [f"{i}_mask.nii.gz" for i in range(6)]
  assert {row["label"] for row in rows} == {""}


def test_check_says_that_neither_labels_nor_masks_teach_nothing(tmp_path):
  scan(tmp_path / "a.nii.gz")
  done = check("--write_manifest", f"--input={tmp_path}")
  assert done.returncode == 2
  error = done.stderr.splitlines()[-1]
  assert error.startswith("error: none of 1 cases has a label or a mask")


def test_a_manifest_is_written_for_own_scans_only(tmp_path):
  done = check("--write_manifest", "--source=asoca", f"--input={tmp_path}")
  assert done.returncode == 2
  assert done.stderr.startswith("error: --write_manifest is for")


def test_a_column_that_lacks_is_named_with_all_the_others(tmp_path):
  (tmp_path / "manifest.csv").write_text("case_id,image\n1,a.nii\n")
  with pytest.raises(UserError) as error:
    sources.find_cases("manifest", tmp_path)
  for part in ("patient_id, label", "mask_classes", "--write_manifest"):
    assert part in str(error.value)
