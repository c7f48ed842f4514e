"""What a run leaves behind."""

import json
import shutil

import numpy as np
import pytest

from cadjax import tasks
from cadjax.data import input_pipeline
from cadjax.training import workdir
from data_prep.errors import UserError


def test_ranges_are_those_of_the_training_cases(tiny_config):
  dataset = input_pipeline.open_dataset(tiny_config.data)
  ranges = workdir.feature_ranges(dataset)
  assert "hu_p50" in ranges
  assert not {"label", "fold", "index", "case_id", "cad_rads"} & set(ranges)
  values = [float(row["hu_p50"]) for row in dataset.rows["train"]]
  assert ranges["hu_p50"] == [min(values), max(values)]
  others = [
    float(row["hu_p50"])
    for split in ("validation", "test")
    for row in dataset.rows[split]
  ]
  assert min(others + values) <= ranges["hu_p50"][0]


def test_one_compilation_serves_all_batches_of_a_shape(tiny_workdir):
  trained = tasks.load_model(tiny_workdir)
  zero = np.zeros((2, 16, 24, 32, 1), np.int16)
  np.testing.assert_array_equal(trained.logits(zero), trained.logits(zero))
  assert trained._eval_step._cache_size() == 1


def test_what_is_not_a_workdir(tmp_path, tiny_workdir):
  with pytest.raises(UserError, match="config.json is missing"):
    tasks.load_model(tmp_path)
  copy = tmp_path / "copy"
  shutil.copytree(tiny_workdir, copy)
  (copy / "config.json").write_text("{")
  workdir.seal(copy)
  with pytest.raises(UserError, match="not valid JSON"):
    tasks.load_model(copy)


def test_other_data_are_refused(tiny_config, tiny_workdir, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(tiny_workdir, copy)
  there = json.loads((copy / "dataset.json").read_text())
  there["fingerprint"] = "0" * 16
  (copy / "dataset.json").write_text(json.dumps(there))
  workdir.seal(copy)
  dataset = input_pipeline.open_dataset(tiny_config.data)
  with pytest.raises(UserError, match="other data"):
    workdir.prepare(copy, tiny_config, dataset)
  workdir.prepare(tiny_workdir, tiny_config, dataset)


def test_only_free_fields_may_change(tiny_config, tiny_workdir):
  dataset = input_pipeline.open_dataset(tiny_config.data)
  config = tiny_config.copy_and_resolve_references()
  config.checkpoint_every = 77
  workdir.prepare(tiny_workdir, config, dataset)
  config.seed = 1
  with pytest.raises(UserError, match=r"config.seed: 0 there, 1 now"):
    workdir.prepare(tiny_workdir, config, dataset)


def test_a_file_is_no_workdir(tiny_config, tmp_path):
  path = tmp_path / "file"
  path.write_text("")
  dataset = input_pipeline.open_dataset(tiny_config.data)
  with pytest.raises(UserError, match="is a file"):
    workdir.prepare(path, tiny_config, dataset)


def test_a_run_that_failed_at_its_start_does_not_refuse_the_corrected_one(
  tiny_config, tmp_path
):
  dataset = input_pipeline.open_dataset(tiny_config.data)
  config = tiny_config.copy_and_resolve_references()
  config.optimizer.learning_rate = 1e6
  workdir.prepare(tmp_path, config, dataset)
  workdir.prepare(tmp_path, tiny_config, dataset)
  there = json.loads((tmp_path / "config.json").read_text())
  assert there["optimizer"]["learning_rate"] == 1e-4


def test_a_damaged_description_is_not_resumed(
  tiny_config, tiny_workdir, tmp_path
):
  copy = tmp_path / "copy"
  shutil.copytree(tiny_workdir, copy)
  with (copy / "versions.json").open("a") as file:
    file.write(" ")
  dataset = input_pipeline.open_dataset(tiny_config.data)
  with pytest.raises(UserError, match="versions.json is damaged"):
    workdir.prepare(copy, tiny_config, dataset)
