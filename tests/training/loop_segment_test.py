"""The training loop with a segmenter: validation, resume, refusals."""

import os
import shutil
import signal

import jax
import numpy as np
import pytest
from tiny_runs import assert_same, best_variables, lines, reseal

from cadjax import tasks
from cadjax.classification.classifier import load_classifier
from cadjax.core import lookup
from cadjax.data import classes, input_pipeline
from cadjax.segmentation import task
from cadjax.segmentation.segmenter import load_segmenter
from cadjax.training import steps
from data_prep import build
from data_prep.ctca.ctca_dataset_builder import CtcaConfig
from data_prep.errors import UserError
from data_prep.geometry import GridSpec


def test_a_run_logs_the_dice_of_steps_and_of_validation(tiny_segmenter):
  rows = lines(tiny_segmenter)
  assert [r["step"] for r in rows if "train/dice" in r] == list(range(1, 65))
  validation = [r for r in rows if "validation/dice" in r]
  assert [r["step"] for r in validation] == [32, 64]
  for row in validation:
    assert 0 <= row["validation/dice"] <= 1
    assert {"validation/dice_aorta", "validation/dice_coronaries"} <= row.keys()
  losses = [r["train/loss"] for r in rows if "train/loss" in r]
  assert losses[-1] < losses[0]


def test_the_best_model_repeats_its_validation_dice(tiny_segmenter):
  """Against sets of voxels, counted in Python."""
  trained = load_segmenter(tiny_segmenter)
  dataset = tasks.find(trained.config).open_dataset(trained.config)
  parts = np.zeros((2, 2))
  for row in dataset.rows["validation"]:
    record = dataset.read(row)
    found = trained.segment(record["image"]).labels
    truth = classes.map_mask(record["mask"], "aorta_coronaries")
    for k, number in enumerate((1, 2)):
      a = set(np.flatnonzero(found == number))
      b = set(np.flatnonzero(truth == number))
      parts[:, k] += 2 * len(a & b), len(a) + len(b)
  want = np.mean(parts[0] / parts[1])
  logged = {
    r["step"]: r for r in lines(tiny_segmenter) if "validation/dice" in r
  }
  assert want > 0.1
  assert logged[trained.step]["validation/dice"] == pytest.approx(
    want, abs=1e-3
  )


def test_resumed_inside_an_epoch_ends_bit_identical(
  tiny_segmenter, tiny_segment_config, tmp_path, monkeypatch
):
  """Stops at step 40 by SIGTERM, in the second epoch, and goes on."""
  calls = {"n": 0}
  original = steps.make_train_step

  def counting(*args, **kwargs):
    made = original(*args, **kwargs)

    def step(state, batch):
      jax.debug.callback(count)
      return made(state, batch)

    return step

  def count():
    calls["n"] += 1
    if calls["n"] == 40:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(steps, "make_train_step", counting)
    stopped = tasks.train_and_evaluate(tiny_segment_config, tmp_path / "run")
  assert 39 <= int(stopped.step) < 64
  resumed = tasks.train_and_evaluate(tiny_segment_config, tmp_path / "run")
  assert int(resumed.step) == 64
  assert_same(best_variables(tmp_path / "run"), best_variables(tiny_segmenter))
  assert lines(tmp_path / "run") == lines(tiny_segmenter)


def test_augmentation_deep_supervision_and_ema_train_together(
  tiny_segment_config, tmp_path
):
  config = tiny_segment_config.copy_and_resolve_references()
  config.model.features = (2, 2, 4, 4)
  config.model.deep_supervision = True
  config.ema_decay = 0.9
  config.data.patches_per_volume = 2
  config.epochs = 1
  with config.unlocked():
    config.augment.spatial = {"probability": 1.0}
    config.augment.noise = {}
  tasks.train_and_evaluate(config, tmp_path / "run")
  assert tasks.load_model(tmp_path / "run").step == 8


def test_unlabelled_cases_count_for_a_segmenter_alone(
  tiny_data, tiny_segment_config, tmp_path
):
  copy = tmp_path / "data"
  shutil.copytree(tiny_data, copy)
  table = copy / "cases.csv"
  header, *rows = table.read_text().splitlines()
  column = header.split(",").index("label")
  first = rows[0].split(",")
  first[column] = "-1"
  table.write_text("\n".join([header, ",".join(first), *rows[1:]]) + "\n")
  reseal(copy)
  config = tiny_segment_config.copy_and_resolve_references()
  config.data.path = str(copy)
  assert len(tasks.find(config).open_dataset(config).rows["train"]) == 16
  assert len(input_pipeline.open_dataset(config.data).rows["train"]) == 15


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.patch_size": (8, 15, 24)}, "config.data.patch_size .* multiples"),
    ({"data.patch_size": (8, 16)}, "config.data.patch_size .* 3 sizes"),
    ({"segment.window": (8, 16, 25)}, "config.segment.window .* multiples"),
    ({"segment.classes": "aorta"}, "aorta_coronaries"),
    ({"segment.overlap": 1.0}, "overlap"),
    ({"data.foreground_share": 1.5}, "foreground_share"),
    ({"data.patches_per_volume": 0}, "patches_per_volume"),
    ({"data.batch_size": 200}, "do not fill a batch of 200"),
    ({"monitor": "roc_auc"}, "config.monitor .* one of dice"),
    ({"task": "segmnt"}, "did you mean 'segment'"),
    ({"task": "classify"}, "takes config.model.name = 'resnet', not 'unet'"),
    ({"loss.name": "focl"}, "focal"),
  ],
)
def test_what_cannot_be_trained_is_told_before_anything_is_made(
  tiny_segment_config, tmp_path, changes, message
):
  config = tiny_segment_config.copy_and_resolve_references()
  config.update_from_flattened_dict(changes)
  with pytest.raises((UserError, lookup.ConfigError), match=message):
    tasks.train_and_evaluate(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_data_without_masks_are_refused(tiny_segment_config, tmp_path):
  grid = GridSpec(kind="heart", shape=(8, 8, 8))
  data = CtcaConfig(
    name="bare", cases=8, grid=grid, has_mask=False, workers=1,
    fractions=(0.5, 0.25, 0.25),
  )  # fmt: skip
  build.build(data, tmp_path)
  config = tiny_segment_config.copy_and_resolve_references()
  config.data.path = str(tmp_path)
  with pytest.raises(UserError, match="holds no masks"):
    tasks.train_and_evaluate(config, tmp_path / "run")


def test_volumes_of_several_shapes_train_and_validate(
  tiny_segment_config, tmp_path
):
  """A spacing grid keeps each field of view: no two shapes need be equal."""
  grid = GridSpec(kind="spacing", spacing_mm=(12.0, 10.0, 9.0))
  data = CtcaConfig(
    name="spacing", cases=8, grid=grid, workers=1,
    fractions=(0.5, 0.25, 0.25),
  )  # fmt: skip
  build.build(data, tmp_path)
  config = tiny_segment_config.copy_and_resolve_references()
  config.data.path = str(tmp_path)
  config.data.patch_size = (32, 16, 16)  # Deeper than some volumes.
  config.data.batch_size = 2
  config.data.patches_per_volume = 1
  config.optimizer.warmup_steps = 1
  config.epochs = 1
  dataset = tasks.find(config).open_dataset(config)
  rows = [row for split in input_pipeline.SPLITS for row in dataset.rows[split]]
  assert len({dataset.read(row)["image"].shape for row in rows}) > 1
  state = tasks.train_and_evaluate(config, tmp_path / "run")
  assert int(state.step) == 2


def test_a_model_of_another_task_is_told(tiny_workdir, tiny_segmenter):
  with pytest.raises(UserError, match="is a segmenter; here a classifier"):
    load_classifier(tiny_segmenter)
  with pytest.raises(UserError, match="is a classifier; here a segmenter"):
    load_segmenter(tiny_workdir)


def test_the_same_model_on_two_shapes_compiles_once(tiny_segmenter):
  trained = tasks.load_model(tiny_segmenter)
  rng = np.random.default_rng(0)
  for shape in ((16, 24, 32), (9, 30, 20), (4, 4, 4)):
    hu = rng.integers(-500, 500, shape).astype(np.int16)
    found = trained.segment(hu, probabilities=True)
    assert found.labels.shape == shape
    assert found.probabilities.shape == (*shape, 3)
    np.testing.assert_allclose(found.probabilities.sum(-1), 1, atol=2e-3)


def test_overlap_by_class_counts_voxels():
  predicted = np.array([[[0, 1, 1, 2]]])
  truth = np.array([[[1, 1, 0, 0]]])
  found = task.overlap_by_class(predicted, truth, 4)
  np.testing.assert_array_equal(found, [[2, 0, 0], [4, 1, 0]])
