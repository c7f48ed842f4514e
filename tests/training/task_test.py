"""What the two kinds of training are told apart by."""

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
  ],
)
def test_a_training_that_cannot_be_is_refused(changes, message):
  config = resnet3d.get_config()
  kind = tasks.find(config)
  task.check_config(config, kind)
  config.update(changes)
  with pytest.raises(lookup.ConfigError, match=message):
    task.check_config(config, kind)


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
