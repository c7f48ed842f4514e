"""Nobody's code runs, and every change of a built data set is seen."""

import json
import random
import shutil
import sys

import numpy as np
import pytest

from cadjax.data import input_pipeline
from configs import resnet3d
from data_prep import build, checksums
from data_prep.ctca import stored
from data_prep.ctca.ctca_dataset_builder import Ctca, CtcaConfig, config_name
from data_prep.errors import UserError
from data_prep.geometry import GridSpec
from data_prep.volume import Grid, write_nifti

SHAPE = (6, 8, 10)
GRID = Grid(SHAPE, (1.5, 1.0, 0.5), (3.0, -7.0, 11.0), np.eye(3)[:, ::-1])
PAPER = GridSpec("paper", shape=(5, 7, 6))
COUNT = 12


def make(folder, mask_of=lambda i: 0):
  """Builds 12 scans of one content, whose masks alone may differ."""
  scans = folder / "scans"
  scans.mkdir(parents=True)
  rows = ["case_id,patient_id,image,label,mask"]
  for i in range(COUNT):
    hu = np.random.default_rng(i).integers(-900, 900, SHAPE, np.int16)
    write_nifti(scans / f"{i}.nii", hu, GRID)
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:4, 2:6, 3:8] = 1 + i % 4
    labels[0, 0, : mask_of(i)] = 1
    write_nifti(scans / f"{i}_m.nii", labels, GRID)
    rows.append(f"c{i},p{i},{i}.nii,{i % 2},{i}_m.nii")
  (scans / "manifest.csv").write_text("\n".join(rows))
  config = CtcaConfig(
    name=config_name("manifest", PAPER),
    source="manifest",
    grid=PAPER,
    input=str(scans),
    workers=1,
  )
  builder = build.build(config, folder / "data")
  return input_pipeline.find_dataset(builder.data_dir)


def opened(path):
  config = resnet3d.get_config().data
  config.path = str(path)
  return input_pipeline.open_dataset(config)


def contents(dataset):
  rows = [row for split in input_pipeline.SPLITS for row in dataset.rows[split]]
  return [
    {name: np.asarray(value).tobytes() for name, value in record.items()}
    for record in map(dataset.read, rows)
  ], rows


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  return make(tmp_path_factory.mktemp("built"))


@pytest.fixture
def copy(built, tmp_path):
  return shutil.copytree(built, tmp_path / "copy")


@pytest.mark.parametrize("place", ["features.json", "dataset_info.json"])
def test_code_of_a_data_set_does_not_run(copy, tmp_path, monkeypatch, place):
  """A module beside the data that would make a file when imported."""
  trace = tmp_path / "ran"
  (copy / "planted.py").write_text(f"open({str(trace)!r}, 'w')")
  monkeypatch.syspath_prepend(str(copy))
  features = json.loads((copy / "features.json").read_text())
  entry = features["featuresDict"]["features"]["label"]
  entry["pythonClassName"] = "planted.ClassLabel"
  if place == "features.json":
    changed = features
  else:
    changed = json.loads((copy / place).read_text()) | {"features": features}
  (copy / place).write_text(json.dumps(changed))
  with pytest.raises(UserError, match=f"{place} is not what .* writes"):
    opened(copy)
  assert not trace.exists()
  assert "planted" not in sys.modules


@pytest.mark.parametrize(
  "change",
  [
    lambda value: value.update(type="planted.Dict", content={}),
    lambda value: value.update(pythonClassName="planted.Dict"),
    lambda value: value["featuresDict"].update(python_class_name="planted.A"),
    lambda value: value["featuresDict"]["features"].update(
      more=value["featuresDict"]["features"]["label"]
    ),
    lambda value: value["featuresDict"]["features"].pop("image"),
    lambda value: value["featuresDict"]["features"]["image"].update(
      python_class_name="planted.A"
    ),
    lambda value: value["featuresDict"]["features"]["image"]["tensor"].update(
      dtype="int8"
    ),
    lambda value: value["featuresDict"]["features"].update(label=3),
    lambda value: value.clear(),
  ],
)
def test_other_features_are_refused(copy, change):
  path = copy / "features.json"
  value = json.loads(path.read_text())
  change(value)
  path.write_text(json.dumps(value))
  with pytest.raises(UserError, match=r"features\.json"):
    opened(copy)


@pytest.mark.parametrize("grid", [PAPER, GridSpec("spacing")])
def test_what_the_builder_writes_passes(grid, tmp_path):
  for has_mask in (False, True):
    name = config_name("manifest", grid)
    config = CtcaConfig(name=name, grid=grid, has_mask=has_mask)
    folder = tmp_path / f"{has_mask}"
    folder.mkdir()
    Ctca(config=config, data_dir=tmp_path / "no").info.write_to_directory(
      folder
    )
    stored.check_features(folder)


def test_every_flipped_bit_of_a_data_set_is_refused_or_changes_nothing(
  built, tmp_path
):
  whole = opened(built)
  wanted, _ = contents(whole)
  rng, outcomes = random.Random(0), []
  names = [p.name for p in sorted(built.iterdir()) if p.stat().st_size]
  copy = tmp_path / "copy"
  for number in range(150):
    shutil.copytree(built, copy)
    path = copy / names[number % len(names)]
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    try:
      dataset = opened(copy)
      found, rows = contents(dataset)
    except UserError:
      outcomes.append("refused")
    else:
      assert found == wanted, path
      assert rows == sum((whole.rows[s] for s in input_pipeline.SPLITS), [])
      assert dataset.fingerprint == whole.fingerprint
      assert dataset.metadata == whole.metadata
      outcomes.append("equal")
    shutil.rmtree(copy)
  assert outcomes.count("refused") > 50
  assert outcomes.count("equal") > 5


def test_the_identity_is_that_of_images_and_masks(built, tmp_path):
  again = make(tmp_path / "again")
  assert opened(again).fingerprint == opened(built).fingerprint
  # As TFDS of another version would describe it.
  path = again / "dataset_info.json"
  info = json.loads(path.read_text())
  info |= {"citation": "another", "description": "another"}
  path.write_text(json.dumps(info))
  assert opened(again).fingerprint == opened(built).fingerprint
  other = make(tmp_path / "other", mask_of=lambda i: 10 * (i == 3))
  assert opened(other).fingerprint != opened(built).fingerprint
  # Nor can the records of one stand for those of the other.
  for file in other.glob("*array_record*"):
    shutil.copy(file, again / file.name)
  with pytest.raises(UserError, match="c3 is damaged .*not the record"):
    contents(opened(again))


def test_checksums_must_be_there_but_of_an_older_version(copy):
  (copy / checksums.NAME).unlink()
  with pytest.raises(UserError, match=f"{checksums.NAME} is missing"):
    opened(copy)
  metadata = json.loads((copy / "metadata.json").read_text())
  (copy / "metadata.json").write_text(json.dumps(metadata | {"format": 1}))
  assert opened(copy).records is None
