"""The TFDS builder: what goes in comes out, as TFDS users expect."""

import csv
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import tensorflow_datasets as tfds

from data_prep import check, geometry, phantom, plausibility, sources
from data_prep.ctca import records
from data_prep.ctca.ctca_dataset_builder import Ctca, CtcaConfig, config_name
from data_prep.errors import UserError
from data_prep.geometry import GridSpec
from data_prep.volume import Grid, read_volume, write_nifti

SHAPE = (10, 20, 30)
# Rotated about z by 10 degrees, so that no affine is diagonal.
COS, SIN = np.cos(np.pi / 18), np.sin(np.pi / 18)
GRID = Grid(
  SHAPE,
  (1.5, 1.0, 0.5),
  (3.0, -7.0, 11.0),
  np.array([[0, -SIN, COS], [0, COS, SIN], [1, 0, 0]]),
)
PAPER = GridSpec("paper", shape=(5, 7, 6))


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
  """Twelve scans of nine patients, six with masks."""
  folder = tmp_path_factory.mktemp("scans")
  rows = ["case_id,patient_id,image,label,mask"]
  for i in range(12):
    rng = np.random.default_rng(i)
    hu = rng.integers(-900, 900, SHAPE, np.int16)
    write_nifti(folder / f"{i}.nii.gz", hu, GRID)
    if i % 2:
      labels = np.zeros(SHAPE, np.uint8)
      labels[2:8, 4:15, 5:25] = 1 + i % 4
      write_nifti(folder / f"{i}_m.nii.gz", labels, GRID)
    mask = f"{i}_m.nii.gz" if i % 2 else ""
    patient = i % 9
    rows.append(f"c{i},p{patient},{i}.nii.gz,{patient % 2},{mask}")
  (folder / "manifest.csv").write_text("\n".join(rows))
  return folder


def config(scans, grid=PAPER, **options):
  return CtcaConfig(
    name=config_name("manifest", grid),
    source="manifest",
    grid=grid,
    input=str(scans),
    workers=1,
    **options,
  )


def prepare(config, folder):
  builder = Ctca(config=config, data_dir=folder)
  builder.download_and_prepare(
    file_format="array_record", download_dir=folder / "downloads"
  )
  return pathlib.Path(builder.data_dir)


@pytest.fixture(scope="module")
def built(scans, tmp_path_factory):
  return prepare(config(scans), tmp_path_factory.mktemp("built"))


def rows_of(path):
  with open(path / "cases.csv", newline="") as file:
    return list(csv.DictReader(file))


def test_folder_is_named_as_tfds_names_it(built):
  assert built.parts[-3:] == ("ctca", "manifest_paper_5x7x6", "1.0.0")


def test_records_are_the_cases_on_the_grid(built, scans):
  """Each record equals the scan, resampled without the builder."""
  cases = {c.case_id: c for c in sources.find_cases("manifest", scans)}
  builder = tfds.builder_from_directory(built)
  rows = rows_of(built)
  assert {row["case_id"] for row in rows} == set(cases)
  seen = 0
  for split in ("train", "validation", "test"):
    records_ = builder.as_data_source(split)
    mine = [row for row in rows if row["split"] == split]
    assert len(records_) == len(mine) > 0
    for i, (row, record) in enumerate(zip(mine, records_, strict=True)):
      case = cases[row["case_id"]]
      scan = read_volume(case.image)
      expected = geometry.to_grid(scan, PAPER)
      assert int(row["index"]) == i
      assert record["case_id"].decode() == case.case_id
      assert (
        record["patient_id"].decode() == case.patient_id == row["patient_id"]
      )
      assert record["label"] == case.label == int(row["label"])
      assert record["fold"] == int(row["fold"])
      assert record["image"].dtype == np.int16
      np.testing.assert_array_equal(record["image"], expected.hu)
      np.testing.assert_allclose(record["grid_affine"], expected.affine)
      np.testing.assert_allclose(record["source_affine"], scan.affine)
      assert tuple(record["source_shape"]) == SHAPE
      np.testing.assert_allclose(record["spacing"], expected.spacing, rtol=1e-6)
      assert json.loads(record["lesions"]) == []
      for name, value in plausibility.describe(expected).items():
        assert float(row[name]) == pytest.approx(value)
      if case.mask is None:
        assert not record["mask"].any()
        assert not record["mask_classes"].any()
      else:
        value = 1 + int(case.case_id[1:]) % 4
        assert set(np.unique(record["mask"])) == {0, value}
        assert record["mask_classes"][:5].all()
        assert not record["mask_classes"][5:].any()
      seen += 1
  assert seen == 12


def test_a_voxel_of_the_record_lies_where_it_did_in_the_scan(built):
  record = tfds.builder_from_directory(built).as_data_source("train")[0]
  # The corners of both grids' outer voxel edges are the same points.
  shape = np.array(record["image"].shape)
  for corner in np.ndindex(2, 2, 2):
    points = []
    for affine, n in (
      (record["grid_affine"], shape),
      (record["source_affine"], record["source_shape"]),
    ):
      index = np.array(corner) * n - 0.5
      points.append(affine @ [*index, 1])
    np.testing.assert_allclose(points[0], points[1], atol=1e-9)


def test_patients_stay_whole(built):
  per_patient = {}
  for row in rows_of(built):
    place = (row["split"], row["fold"])
    assert per_patient.setdefault(row["patient_id"], place) == place
  assert len(per_patient) == 9


def test_metadata_tells_the_recipe(built):
  info = tfds.builder_from_directory(built).info
  assert GridSpec.from_dict(info.metadata["grid"]) == PAPER
  assert info.metadata["source"] == "manifest"
  assert info.metadata["format"] == 2
  assert info.metadata["mask_names"] == list(sources.CLASS_NAMES)
  assert info.features["label"].names == ["normal", "cad"]
  assert "CTCA" in info.description
  assert "2308.00009" in info.citation


def test_the_mask_need_not_be_decoded(built):
  builder = tfds.builder_from_directory(built)
  source = builder.as_data_source(
    "test", decoders={"mask": tfds.decode.SkipDecoding()}
  )
  assert isinstance(source[0]["mask"], bytes)
  assert source[0]["image"].shape == PAPER.shape


def test_a_set_without_masks_has_no_mask_feature(scans, tmp_path):
  path = prepare(config(scans, has_mask=False), tmp_path)
  record = tfds.builder_from_directory(path).as_data_source("test")[0]
  assert "mask" not in record


def test_spacing_grid_keeps_each_scan_its_own_shape(scans, tmp_path):
  grid = GridSpec("spacing", spacing_mm=(3, 2, 2.5))
  path = prepare(config(scans, grid), tmp_path)
  assert path.parts[-2] == "manifest_spacing_3x2x2.5mm"
  record = tfds.builder_from_directory(path).as_data_source("test")[0]
  # 15 x 20 x 15 mm of field of view.
  assert record["image"].shape == record["mask"].shape == (5, 10, 6)
  assert record["image"].std() > 0


def test_many_shards_keep_the_order(scans, tmp_path, monkeypatch):
  monkeypatch.setattr("data_prep.ctca.ctca_dataset_builder.SHARD_BYTES", 1300)
  path = prepare(config(scans, seed=3), tmp_path)
  assert len(list(path.glob("*train.array_record*"))) > 2
  builder = tfds.builder_from_directory(path)
  for split in builder.info.splits:
    names = [r["case_id"].decode() for r in builder.as_data_source(split)]
    assert names == [
      row["case_id"] for row in rows_of(path) if row["split"] == split
    ]


def test_same_seed_same_records(scans, built, tmp_path):
  again = prepare(config(scans), tmp_path)
  assert (again / "cases.csv").read_bytes() == (
    built / "cases.csv"
  ).read_bytes()
  first, second = map(tfds.builder_from_directory, (built, again))
  for split in first.info.splits:
    for a, b in zip(
      first.as_data_source(split), second.as_data_source(split), strict=True
    ):
      np.testing.assert_equal(a, b)


def test_notes_are_those_of_the_reader_the_scan_and_the_source(tmp_path):
  path = tmp_path / "a.mha"
  hu = np.random.default_rng(0).integers(-900, 900, SHAPE, np.int16)
  sitk.WriteImage(sitk.GetImageFromArray(hu), str(path))
  lines = path.read_bytes().split(b"\n")
  kept = [line for line in lines if not line.startswith(b"TransformMatrix")]
  path.write_bytes(b"\n".join(kept))
  one = sources.Case("c", "p", path, extra={"notes": ("of the source",)})
  recipe = records.Recipe(PAPER, "clinical", has_mask=False)
  *_, notes = records.make_record(records.Job(one, "train", 0), recipe)
  said = "; ".join(notes)
  assert "no orientation in the header" in said
  assert "covers only 10 mm" in said
  assert notes[-1] == "of the source"
  assert set(notes) <= set(check.check_case(one)["notes"])
  drawn = records.Job(sources.phantom(2)[0], "train", 0)
  assert records.make_record(drawn, recipe)[2] == []


def test_phantom_records_carry_the_truth(tmp_path):
  grid = GridSpec("heart", shape=(12, 10, 8))
  chosen = CtcaConfig(
    name=config_name("phantom", grid),
    grid=grid,
    cases=6,
    severity="overt",
    seed=4,
    workers=1,
  )
  path = prepare(chosen, tmp_path)
  rows = rows_of(path)
  record = tfds.builder_from_directory(path).as_data_source("train")[1]
  row = [r for r in rows if r["split"] == "train"][1]
  drawn = phantom.make_phantom(
    int(row["case_id"].removeprefix("phantom_")),
    label=int(row["label"]),
    severity="overt",
    grid=grid,
  )
  np.testing.assert_array_equal(record["image"], drawn.volume.hu)
  np.testing.assert_array_equal(record["mask"], drawn.tissues)
  np.testing.assert_allclose(record["grid_affine"], drawn.volume.affine)
  assert json.loads(record["lesions"]) == json.loads(json.dumps(drawn.lesions))
  assert int(row["cad_rads"]) == drawn.cad_rads
  assert {int(r["cad_rads"]) > 0 for r in rows if r["label"] == "1"} == {True}


def test_one_source_of_every_name_has_a_config():
  names = {c.name for c in Ctca.BUILDER_CONFIGS}
  assert "phantom_heart_64x64x64" in names
  for source in sources.SOURCES:
    assert f"{source}_heart_256x128x128" in names
    assert f"{source}_paper_256x128x128" in names
  assert Ctca.name == "ctca"


def test_tfds_finds_the_builder_by_name(scans, tmp_path):
  builder = tfds.builder(
    "ctca/manifest_paper_256x128x128",
    data_dir=tmp_path,
    file_format="array_record",
  )
  manual = tfds.download.DownloadConfig(manual_dir=scans)
  builder.download_and_prepare(
    download_config=manual, download_dir=tmp_path / "downloads"
  )
  assert sum(s.num_examples for s in builder.info.splits.values()) == 12
  image = builder.as_data_source("test")[0]["image"]
  assert image.shape == (256, 128, 128)


def test_a_missing_file_stops_before_any_work(scans, tmp_path):
  table = (scans / "manifest.csv").read_text()
  broken = scans / "broken.csv"
  broken.write_text(table.replace(",3.nii.gz", ",x.nii"))
  bad = config(broken)
  with pytest.raises(UserError, match="x.nii: no such file"):
    prepare(bad, tmp_path / "out")
  assert not list((tmp_path / "out").rglob("dataset_info.json"))


def case(tmp_path, labels, mapping, known=(2,), aorta=None, image_grid=GRID):
  hu = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) - 1000
  write_nifti(tmp_path / "i.nii", hu, image_grid)
  paths = {"mask": None, "aorta_mask": None}
  for name, array in (("mask", labels), ("aorta_mask", aorta)):
    if array is not None:
      paths[name] = tmp_path / f"{name}.nii"
      write_nifti(paths[name], array, GRID)
  extra = {"mask_classes": mapping, "known": known}
  return sources.Case("c", "p", tmp_path / "i.nii", extra=extra, **paths)


def read(case):
  return records.read_classes(case, read_volume(case.image))


def blocks(*values):
  array = np.zeros(SHAPE, np.uint16)
  for i, value in enumerate(values):
    array[i] = value
  return array


def test_mmwhs_values_become_the_aorta(tmp_path):
  mapping = {820: 1, 500: 0, 205: 0}
  mask, known = read(case(tmp_path, blocks(820, 500, 205), mapping, (1,)))
  np.testing.assert_array_equal(mask.hu, blocks(1))
  assert np.flatnonzero(known).tolist() == [0, 1]


def test_second_mask_adds_the_aorta_where_nothing_else_is(tmp_path):
  chosen = case(tmp_path, blocks(1), {1: 2}, aorta=blocks(7, 7))
  mask, known = read(chosen)
  np.testing.assert_array_equal(mask.hu, blocks(2, 1))
  assert np.flatnonzero(known).tolist() == [0, 1, 2]
  mask, known = read(case(tmp_path, None, {}, aorta=blocks(0, 7)))
  np.testing.assert_array_equal(mask.hu, blocks(0, 1))
  assert np.flatnonzero(known).tolist() == [0, 1]


def test_bad_masks_are_one_message(tmp_path):
  with pytest.raises(UserError, match=r"mask.nii: unknown mask label.*\[3\]"):
    read(case(tmp_path, blocks(1, 3), {1: 2}))
  with pytest.raises(UserError, match="aorta_mask.nii: has 2 labels"):
    read(case(tmp_path, None, {}, aorta=blocks(1, 2)))
  moved = Grid(SHAPE, GRID.spacing, (0, 0, 0), GRID.direction)
  with pytest.raises(UserError, match="mask.nii: not on the grid of .*i.nii"):
    read(case(tmp_path, blocks(1), {1: 2}, image_grid=moved))


def test_half_given_splits_are_refused():
  cases = [
    sources.Case(str(i), str(i), None, i % 2, split=s)
    for i, s in enumerate(["train", None, "test"])
  ]
  with pytest.raises(UserError, match="case 1 has no split"):
    records.plan(cases)
  with pytest.raises(UserError, match="no case"):
    records.plan([])


def test_tensorflow_stays_out(built):
  code = (
    "import sys, tensorflow_datasets as tfds;"
    "import data_prep.build;"
    f"b = tfds.builder_from_directory({str(built)!r});"
    "b.as_data_source('train')[0];"
    "print('tensorflow' in sys.modules, 'jax' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout == "False False\n"
