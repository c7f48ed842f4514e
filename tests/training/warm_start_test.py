"""Training that starts from another one: what is taken, and from where."""

import shutil

import jax
import numpy as np
import pytest

from cadjax import tasks
from cadjax.training import checkpoint, loop, steps, task, warm_start
from configs import demo, own, resunet3d
from data_prep.errors import UserError


def donor_of(path):
  return checkpoint.restore_best(path)[1]


def test_a_classifier_begins_with_all_of_another(tiny_config, tiny_workdir):
  shape = (16, 24, 32, 1)
  model = task.make_model(tiny_config)
  found, new = warm_start.read(tiny_workdir, model, shape)
  assert new == []
  tx = loop.optimizer.get_optimizer({}, total_steps=1)[0]
  state = steps.create_state(model, tx, jax.random.key(5), shape, ema=True)
  begun = warm_start.begin(state, found)
  given = donor_of(tiny_workdir)
  for tree, wanted in (
    (begun.params, given["params"]),
    (begun.ema_params, given["params"]),
    (begun.batch_stats, given["batch_stats"]),
  ):
    jax.tree.map(np.testing.assert_array_equal, tree, wanted)
  assert int(begun.step) == 0


@pytest.mark.parametrize("config", [demo, own])
def test_a_classifier_begins_with_one_that_comes_with_cadjax(
  shipped_models, config
):
  config = config.get_config()
  found, new = warm_start.read(
    "classifier", task.make_model(config), (64, 64, 64, 1)
  )
  assert new == []
  assert found["params", "head", "kernel"].dtype == np.float32


def test_what_does_not_fit_begins_anew(tiny_config, tiny_workdir):
  config = tiny_config.copy_and_resolve_references()
  config.model.num_classes = 3
  model = task.make_model(config)
  found, new = warm_start.read(tiny_workdir, model, (16, 24, 32, 1))
  assert new == ["head"]
  assert ("params", "conv_stem", "kernel") in found
  # A head's bias of the same size does not come without its kernel.
  config.model.num_classes, config.model.width = 2, 8
  with pytest.raises(UserError, match="none of its convolutions"):
    warm_start.read(tiny_workdir, task.make_model(config), (16, 24, 32, 1))


def test_a_classifier_begins_with_a_segmenters_encoder(
  tiny_config, tmp_path, capsys
):
  config = resunet3d.get_config()
  config.data.path = tiny_config.data.path
  config.data.patch_size = (32, 32, 32)
  config.data.patches_per_volume = 1
  config.model.depth, config.model.width = 10, 4
  config.optimizer.warmup_steps = 1
  config.epochs = 1
  config.parallel, config.mesh.data = "mesh", 1
  tasks.train_and_evaluate(config, tmp_path / "masks")

  config = tiny_config.copy_and_resolve_references()
  config.init_from = str(tmp_path / "masks")
  config.optimizer.learning_rate = 0.0
  config.epochs = 1
  state = tasks.train_and_evaluate(config, tmp_path / "run")
  said = capsys.readouterr()
  assert "new: head" in said.out + said.err
  given = donor_of(tmp_path / "masks")["params"]
  # With a rate of 0 nothing is learned: it is still what was taken.
  np.testing.assert_array_equal(
    state.params["stage3_block1"]["conv1"]["kernel"],
    given["stage3_block1"]["conv1"]["kernel"],
  )

  # A run that has begun goes on without what it started from.
  shutil.rmtree(tmp_path / "masks")
  again = tasks.train_and_evaluate(config, tmp_path / "run")
  assert int(again.step) == int(state.step)
  assert tasks.load_model(tmp_path / "run").config.init_from


@pytest.mark.parametrize("kind", ["missing", "other", "2d"])
def test_nothing_to_take_is_one_line_and_leaves_nothing(
  kind, tiny_config, tiny_segmenter, tiny_workdir, tmp_path
):
  config = tiny_config.copy_and_resolve_references()
  config.init_from = {
    "missing": str(tmp_path / "nowhere"),
    "other": str(tiny_segmenter),
    "2d": str(tiny_workdir),
  }[kind]
  if kind == "2d":
    config.model.ndim, config.data.slices_per_volume = 2, 2
  message = {
    "missing": "is not a workdir of cadjax.main",
    "other": "none of its convolutions",
    "2d": "none of its convolutions",
  }[kind]
  with pytest.raises(UserError, match=message):
    tasks.train_and_evaluate(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
