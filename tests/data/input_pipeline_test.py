"""Records to batches: every case once, the same order again, honest splits."""

import csv
import json
import os
import shutil

import numpy as np
import pytest
from tiny_runs import reseal

from cadjax.data import input_pipeline
from configs import resnet3d
from data_prep import checksums
from data_prep.ctca import stored
from data_prep.errors import UserError


def config_of(path, **fields):
  config = resnet3d.get_config().data
  config.path = str(path)
  for name, value in fields.items():
    config[name] = value
  return config


@pytest.fixture(scope="module")
def dataset(tiny_data):
  return input_pipeline.open_dataset(config_of(tiny_data))


def ids(rows):
  return [row["case_id"] for row in rows]


def epoch(dataset, start, stop, **options):
  options = {"batch_size": 4, "seed": 5} | options
  return list(dataset.train_batches(start=start, stop=stop, **options))


def test_a_row_of_cases_csv_is_the_record_it_names(dataset):
  for split in input_pipeline.SPLITS:
    for row in dataset.rows[split]:
      record = dataset.read(row)
      assert record["case_id"].decode() == row["case_id"]
      assert str(record["label"]) == row["label"]


def test_eval_batches_give_every_case_once_and_pad(dataset):
  seen, sizes = [], []
  for batch, rows in dataset.eval_batches("validation", 3):
    assert batch["image"].shape == (3, 16, 24, 32, 1)
    assert batch["image"].dtype == np.int16
    assert batch["valid"].tolist() == [1.0] * len(rows) + [0.0] * (
      3 - len(rows)
    )
    for i, row in enumerate(rows):
      np.testing.assert_array_equal(
        batch["image"][i, ..., 0], dataset.read(row)["image"]
      )
      assert batch["label"][i] == int(row["label"])
    seen += ids(rows)
    sizes.append(len(rows))
  assert seen == ids(dataset.rows["validation"])
  assert sizes == [3, 3, 2]


def test_an_epoch_is_a_permutation_and_the_next_another(dataset):
  batches = epoch(dataset, 0, 8)
  first = sum((ids(rows) for _, rows in batches[:4]), [])
  second = sum((ids(rows) for _, rows in batches[4:]), [])
  assert sorted(first) == sorted(second) == sorted(ids(dataset.rows["train"]))
  assert first != second
  other = sum((ids(r) for _, r in epoch(dataset, 0, 4, seed=6)), [])
  assert other != first


def test_to_resume_is_to_skip(dataset):
  whole, rest = epoch(dataset, 0, 8), epoch(dataset, 3, 8)
  assert len(rest) == 5
  for (want, want_rows), (got, got_rows) in zip(whole[3:], rest, strict=True):
    assert ids(want_rows) == ids(got_rows)
    for name in want:
      np.testing.assert_array_equal(got[name], want[name])


def test_slices_are_drawn_from_their_volume_without_repeats(dataset):
  for batch, rows in epoch(dataset, 0, 2, slices_per_volume=5):
    assert batch["image"].shape == (4, 5, 24, 32, 1)
    for i, row in enumerate(rows):
      volume = dataset.read(row)["image"]
      found = [
        [d for d in range(16) if np.array_equal(volume[d], plane)]
        for plane in batch["image"][i, ..., 0]
      ]
      assert all(found)
      picked = [d[0] for d in found]
      assert picked == sorted(picked)
      assert len(set(picked)) == 5


def test_folds_test_every_case_once(tiny_data):
  tested, folds = [], range(5)
  for fold in folds:
    data = input_pipeline.open_dataset(config_of(tiny_data, fold=fold))
    parts = [set(ids(data.rows[s])) for s in input_pipeline.SPLITS]
    assert len(set.union(*parts)) == 32 == sum(map(len, parts))
    row = data.rows["test"][0]
    assert data.read(row)["case_id"].decode() == row["case_id"]
    tested += ids(data.rows["test"])
  assert len(tested) == len(set(tested)) == 32
  with pytest.raises(UserError, match="config.data.fold = 9"):
    input_pipeline.open_dataset(config_of(tiny_data, fold=9))


def test_a_batch_larger_than_the_split(dataset):
  with pytest.raises(UserError, match="lower config.data.batch_size"):
    dataset.steps_per_epoch(17)


def test_no_data_set(tmp_path):
  with pytest.raises(UserError, match="data_prep.build"):
    input_pipeline.open_dataset(config_of(tmp_path / "nowhere"))


def test_two_data_sets_to_choose_from(tiny_data, tmp_path):
  for name in "ab":
    shutil.copytree(tiny_data, tmp_path / name)
  with pytest.raises(UserError, match="several data sets"):
    input_pipeline.open_dataset(config_of(tmp_path))
  assert input_pipeline.find_dataset(tmp_path / "a") == tmp_path / "a"


def test_a_patient_in_two_splits_is_refused(tiny_data, tmp_path):
  copy = tmp_path / "data"
  shutil.copytree(tiny_data, copy)
  with (copy / "cases.csv").open(newline="") as f:
    rows = list(csv.DictReader(f))
  in_test = next(row for row in rows if row["split"] == "test")
  rows[0]["patient_id"] = in_test["patient_id"]
  with (copy / "cases.csv").open("w", newline="") as f:
    writer = csv.DictWriter(f, rows[0])
    writer.writeheader()
    writer.writerows(rows)
  reseal(copy)
  with pytest.raises(UserError, match=in_test["patient_id"]):
    input_pipeline.open_dataset(config_of(copy))


def test_the_fingerprint_is_of_the_contents(tiny_data, tmp_path, dataset):
  copy = tmp_path / "data"
  shutil.copytree(tiny_data, copy)
  again = input_pipeline.open_dataset(config_of(copy))
  assert again.fingerprint == dataset.fingerprint
  found = json.loads((copy / checksums.NAME).read_text())
  found["records"]["test"][0]["sha256"] = "0" * 64
  stored.write(copy, found["records"], found["metadata"])
  changed = input_pipeline.open_dataset(config_of(copy))
  assert changed.fingerprint != dataset.fingerprint


@pytest.mark.parametrize(
  "text", ["", "split\ntrain\n", "\udcff", "split,index,case_id\na,b,c\n"]
)
def test_a_table_of_cases_that_is_none(tiny_data, tmp_path, text):
  copy = tmp_path / "data"
  shutil.copytree(tiny_data, copy)
  (copy / "cases.csv").write_bytes(text.encode(errors="surrogateescape"))
  reseal(copy)
  with pytest.raises(UserError, match=r"cases\.csv is not what"):
    input_pipeline.open_dataset(config_of(copy))


def drawn(labels, patients=None, cad_fraction=None, seed=0):
  rows = [
    {"patient_id": f"p{i // 2}", "label": str(label)}
    for i, label in enumerate(labels)
  ]
  kept = input_pipeline.draw_patients(rows, patients, cad_fraction, seed)
  return [row["patient_id"] for row in kept]


def test_a_subset_draws_whole_patients_of_both_classes():
  labels = [0, 0] * 10 + [0, 1] * 10  # One scan of two makes a patient CAD.
  some = drawn(labels, 8, 0.25)
  assert len(some) == 16
  assert len(set(some)) == 8
  assert sum(int(name[1:]) >= 10 for name in set(some)) == 2
  assert some == drawn(labels, 8, 0.25)
  assert some != drawn(labels, 8, 0.25, seed=1)
  # The share of the rows where none is asked for.
  assert len(set(drawn(labels, 6))) == 6
  # As many as there can be at that share.
  assert len(set(drawn(labels, None, 0.25))) == 13
  assert set(drawn(labels, 4)) < set(drawn(labels, 8))


def test_a_subset_that_cannot_be_says_what_there_is():
  with pytest.raises(UserError, match="15 training patients with CAD and 1 "):
    drawn([0, 0] * 10 + [1, 1] * 10, 16, 0.95)
  with pytest.raises(UserError, match="must be in"):
    drawn([0, 0, 1, 1], 1, 1.5)


def test_a_subset_leaves_validation_and_test_alone(tiny_config):
  data = tiny_config.data.copy_and_resolve_references()
  whole = input_pipeline.open_dataset(data)
  data.subset.patients = 6
  part = input_pipeline.open_dataset(data)
  assert len(part.rows["train"]) == 6
  for split in ("validation", "test"):
    assert part.rows[split] == whole.rows[split]


def test_permuted_labels_are_of_patients_and_as_many_as_before():
  rows = [
    {"case_id": f"{k}{scan}", "patient_id": str(k), "label": str(label)}
    for k, label in enumerate([0] * 12 + [1] * 8)
    for scan in "ab"
  ]
  some = input_pipeline.permute_labels(rows, 3)
  assert ids(some) == ids(rows)
  labels = [int(row["label"]) for row in some]
  assert labels[::2] == labels[1::2]
  assert sum(labels) == 16
  # As chance has it, 8 * 8 / 20 of the 8 are of the patients they were of.
  assert sum(labels[24:]) < 12
  assert some == input_pipeline.permute_labels(rows, 3)
  assert some != input_pipeline.permute_labels(rows, 4)


@pytest.mark.parametrize("fold", [None, 2])
def test_a_config_with_permuted_labels_learns_them_by_heart(tiny_config, fold):
  data = tiny_config.data.copy_and_resolve_references()
  data.fold = fold
  whole = input_pipeline.open_dataset(data)
  with data.unlocked():
    data.permute_labels = 1
  permuted = input_pipeline.open_dataset(data)
  train = permuted.rows["train"]
  assert ids(train) == ids(whole.rows["train"])
  assert train != whole.rows["train"]
  assert permuted.rows["validation"] == train
  assert permuted.rows["test"] == whole.rows["test"]
  (batch, rows), *_ = epoch(permuted, 0, 1)
  assert batch["label"].tolist() == [int(row["label"]) for row in rows]
  with pytest.raises(UserError, match="of a classifier's labels"):
    input_pipeline.open_dataset(data, labelled=False)
  # Without the field, nothing has changed.
  with data.unlocked():
    data.permute_labels = None
  assert input_pipeline.open_dataset(data).rows == whole.rows


def test_a_pipe_in_a_data_set_is_refused_before_it_is_opened(
  tiny_data, tmp_path
):
  copy = tmp_path / "data"
  shutil.copytree(input_pipeline.find_dataset(tiny_data), copy)
  for name in ("features.json", "cases.csv"):
    (copy / name).rename(copy / "kept")
    os.mkfifo(copy / name)
    with pytest.raises(UserError, match="a pipe, socket or device"):
      input_pipeline.open_dataset(config_of(copy))
    (copy / "kept").replace(copy / name)
