"""What the two kinds of training are told apart by."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import segmenter_config

from cadjax import tasks
from cadjax.core import lookup
from cadjax.data import augment, classes
from cadjax.training import task
from configs import resnet3d
from data_prep.errors import UserError

NAN = float("nan")


def change(config, changes):
  """Sets dotted fields."""
  for field, value in changes.items():
    *groups, name = field.split(".")
    group = config
    for one in groups:
      group = group[one]
    with group.unlocked(), group.ignore_type():
      group[name] = value


@pytest.mark.parametrize(
  ("kind", "model", "message"),
  [
    ("segmnt", "unet", "unknown config.task 'segmnt'; did you mean 'segment'"),
    (None, "unet", "unknown config.task None"),
    ("segment", "resnet", "takes config.model.name = 'unet' or 'resunet'"),
    (
      "classify",
      "resunet",
      "takes config.model.name = 'resnet', not 'resunet'",
    ),
  ],
)
def test_a_task_takes_the_models_that_do_it(kind, model, message):
  config = resnet3d.get_config().copy_and_resolve_references()
  with config.unlocked():
    config.task, config.model.name = kind, model
  with pytest.raises(lookup.ConfigError, match=message):
    task.task_of(config)


def test_tissues_are_drawn_from_masks_that_name_them_all():
  """Else what a mask leaves out would be one tissue, silently."""
  known = np.ones(len(classes.CLASS_NAMES), np.uint8)
  data = types.SimpleNamespace(
    path="d", rows={"train": [0]}, read=lambda _: {"mask_classes": known}
  )
  config = segmenter_config()
  with config.unlocked():
    config.augment = {"tissues": {}}
  task.check_tissues(config, data)
  known[-1] = 0
  with pytest.raises(UserError, match="d: its masks do not name the tissue"):
    task.check_tissues(config, data)
  config.augment = {"noise": {}}
  task.check_tissues(config, data)


@pytest.mark.parametrize("name", classes.CLASS_SETS)
def test_a_segmenter_has_the_classes_of_its_set(name):
  config = segmenter_config()
  config.segment.classes = name
  model = task.make_model(config, axis_name="device")
  assert model.num_classes == len(classes.get_class_set(name).names)
  assert model.axis_name == "device"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"epochs": 0}, "config.epochs is 0; it must be at least 1"),
    ({"log_every": -1}, "config.log_every is -1"),
    ({"monitor": "dice"}, "config.monitor is 'dice'; .* roc_auc"),
    ({"seed": -1}, "config.seed is -1; it must be at least 0"),
    ({"seed": 2**32}, "config.seed is 4294967296; .* below 4294967296"),
    ({"ema_decay": 1.0}, "config.ema_decay is 1.0; .* below 1"),
    ({"data.batch_size": 0}, "config.data.batch_size is 0"),
    ({"data.eval_batch_size": 0}, "config.data.eval_batch_size is 0"),
    ({"data.window_hu": (1.0,)}, "window_hu is .* two numbers of HU"),
    ({"data.window_hu": (1.0, 2.0, 3.0)}, "window_hu is .* two numbers of HU"),
    ({"data.window_hu": (5.0, 5.0)}, "window_hu is .* the lower one first"),
    ({"data.window_hu": (NAN, 5.0)}, "window_hu is .* must be finite"),
    ({"data.window_hu": ("a", "b")}, "window_hu is .* two numbers of HU"),
    (
      {"data.prior.use": "region", "data.prior.margin_voxels": (1, -1, 1)},
      "margin_voxels is .* 3 sizes, whole numbers of at least 0",
    ),
    ({"data.subset.seed": -1}, "config.data.subset.seed is -1"),
    ({"model.num_classes": 3}, "num_classes is 3; a classifier has 2"),
    ({"model.depth": 11}, "config.model.depth is 11"),
    ({"loss.gamma": -1.0}, "gamma is -1.0; it must be >= 0"),
    ({"loss.gamma": NAN}, "config.loss.gamma is nan; it must be finite"),
    ({"optimizer.learning_rate": -1.0}, "learning_rate is -1.0; .* at least 0"),
    ({"optimizer.learning_rate": math.inf}, "learning_rate is inf; .* finite"),
    ({"optimizer.weight_decay": -0.1}, "weight_decay is -0.1; .* >= 0"),
    ({"optimizer.schedule": "cosin"}, "did you mean 'cosine'"),
    ({"eval.pooling": "men"}, "did you mean 'mean'"),
  ],
)
def test_a_training_that_cannot_be_is_refused(changes, message):
  config = resnet3d.get_config()
  kind = tasks.find(config)
  task.check_config(config, kind)
  change(config, changes)
  with pytest.raises(lookup.ConfigError, match=message):
    task.check_config(config, kind)


@pytest.mark.parametrize("value", [-1, "a", 0.5])
def test_a_seed_of_permuted_labels_is_checked_where_a_config_has_one(value):
  config = resnet3d.get_config()
  assert "permute_labels" not in config.data
  with config.unlocked():
    config.data.permute_labels = 3
  task.check_config(config, tasks.find(config))
  with config.unlocked():
    del config.data.permute_labels
    config.data.permute_labels = value
  with pytest.raises(lookup.ConfigError, match="config.data.permute_labels"):
    task.check_config(config, tasks.find(config))


def test_a_config_of_the_other_kind_is_refused():
  kind = tasks.find(resnet3d.get_config())
  with pytest.raises(lookup.ConfigError, match="this training is to classify"):
    task.check_config(segmenter_config(), kind)


def test_augmentation_has_the_options_of_the_config():
  config = resnet3d.get_config().copy_and_resolve_references()
  assert task.make_augment(config.augment) is None
  options = {"noise": {"probability": 1.0, "sigma": 0.2}}
  with config.unlocked():
    config.augment = options
  key, image = jax.random.key(0), jnp.full((4, 5, 6, 1), 0.5)
  found, _ = task.make_augment(config.augment)(key, image, None)
  want, _ = augment.augment(key, image, None, options=options)
  np.testing.assert_array_equal(found, want)
  assert not np.array_equal(found, image)


def test_every_case_is_scored_once_without_what_fills_the_last_batch():
  cases = [{"case_id": str(i)} for i in range(5)]

  def batches(split, batch_size):
    assert (split, batch_size) == ("validation", 2)
    for start in (0, 2, 4):
      image = np.zeros((2, 1, 1, 1, 1), np.int16)
      some = cases[start : start + 2]
      image[: len(some), 0, 0, 0, 0] = np.arange(start, start + len(some))
      yield {"image": image}, some

  rows, logits = task.evaluate_split(
    types.SimpleNamespace(eval_batches=batches),
    "validation",
    lambda batch: batch["image"][:, 0, 0] * [1, -1],
    2,
  )
  assert rows == cases
  np.testing.assert_array_equal(logits[:, 0], np.arange(5)[:, None] * [1, -1])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.patch_size": (8, 16)}, "patch_size is .* 3 sizes"),
    ({"data.patch_size": (8, 0, 16)}, "patch_size is .* at least 1"),
    ({"data.patch_size": (8, 16.5, 16)}, "patch_size is .* whole numbers"),
    ({"segment.window": (8, 16)}, "segment.window is .* 3 sizes"),
    ({"segment.overlap": 1.0}, "segment.overlap is 1.0; .* below 1"),
    ({"segment.min_component_mm3": -1.0}, "min_component_mm3 is -1.0"),
    ({"segment.min_soft_voxels": 0}, "min_soft_voxels is 0"),
    ({"segment.classes": "aorta"}, "aorta_coronaries"),
    ({"data.foreground_share": 1.5}, "foreground_share is 1.5; .* at most 1"),
    ({"data.patches_per_volume": 0}, "patches_per_volume is 0"),
    ({"loss.weights": (1.0, 2.0)}, "2 class weights for 3 classes"),
    ({"loss.name": "dise"}, "did you mean 'dice'"),
    ({"model.features": (0, 8)}, "model.features is"),
  ],
)
def test_a_segmenter_that_cannot_be_is_refused(changes, message):
  config = segmenter_config()
  kind = tasks.find(config)
  task.check_config(config, kind)
  change(config, changes)
  with pytest.raises(lookup.ConfigError, match=message):
    task.check_config(config, kind)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"spatal": {}}, "did you mean 'spatial'"),
    ({"spatial": {"flp": 1}}, "did you mean 'flip'"),
    ({"spatial": {"flip": 1.5}}, "spatial.flip is 1.5; it must be in"),
    ({"spatial": {"reorder": -1}}, "spatial.reorder is -1; it must be in"),
    ({"blur": {"probability": -1.0}}, "blur.probability is -1.0"),
    ({"spatial": {"spacing_mm": 0.0}}, "spacing_mm is 0.0; .* above 0"),
    ({"spatial": {"rotation_degrees": (1.0, 2.0)}}, "one per axis are 3"),
    ({"spatial": {"scale": "much"}}, "scale is 'much'; .* a number"),
    ({"spatial": {"shear": NAN}}, "spatial.shear is nan; it must be finite"),
  ],
)
def test_augmentations_that_cannot_be_are_refused(options, message):
  config = resnet3d.get_config().copy_and_resolve_references()
  with config.unlocked():
    config.augment = options
  with pytest.raises(lookup.ConfigError, match=message):
    task.check_config(config, tasks.find(config))
