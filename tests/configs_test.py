"""Every shipped config trains, made small in size and in nothing else."""

import importlib
import pathlib

import pytest

from cadjax import tasks

CONFIGS = sorted(
  path.stem
  for path in (pathlib.Path(__file__).parents[1] / "configs").glob("*.py")
  if path.stem != "__init__"
)


# The others differ from these in sizes; each takes 20 s to compile.
QUICK = ("demo", "demo_segmenter", "own", "unet2d")


@pytest.mark.parametrize(
  "name",
  [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
    for name in CONFIGS
  ],
)
def test_config_trains(name, tiny_data, tmp_path):
  module = importlib.import_module(f"configs.{name}")
  assert f"--config={name} --workdir=" in module.__doc__
  config = module.get_config()
  assert config.is_locked
  config.data.path = str(tiny_data)
  config.data.batch_size = 8
  if config.task == "classify":
    config.data.slices_per_volume = 4
    config.model.width = 4
  else:
    config.data.patch_size = (1 if config.model.ndim == 2 else 8, 16, 24)
    config.data.patches_per_volume = 1
    if config.model.name == "unet":
      config.model.features = (2, 2, 4, 4)
    else:
      config.data.patch_size = (32, 32, 32)
      config.model.width = 4
  if not config.optimizer.get("warmup_fraction"):
    config.optimizer.warmup_steps = 1
  if "reorder" in config.augment.get("spatial", {}):
    config.augment.spatial.reorder = 0.0  # These phantoms are no cubes.
  config.epochs = 1
  config.mesh.data = 1
  config.parallel = "mesh"
  state = tasks.train_and_evaluate(config, tmp_path / "run")
  assert int(state.step) == 2
  trained = tasks.load_model(tmp_path / "run")
  assert trained.config.model.name == config.model.name


@pytest.mark.parametrize(
  ("name", "arg"),
  [
    *[("wide", "plain"), ("wide", "anew"), ("heart_classifier", "plain")],
    *[("coronary", "lumen"), ("coronary", "plaque")],
  ],
)
def test_earlier_trainings_hand_their_weights_to_the_last(name, arg):
  config = importlib.import_module(f"configs.{name}")
  first, then = config.get_config(arg), config.get_config()
  assert first.model == then.model
  assert first.get("segment") == then.get("segment")
  assert first.data.get("prior") == then.data.get("prior")
  assert first.augment != then.augment
  with pytest.raises(ValueError, match=f"{name}:x is unknown"):
    config.get_config("x")


def test_the_wide_segmenter_first_sees_phantoms_as_they_are():
  wide = importlib.import_module("configs.wide")
  first, then = wide.get_config("plain"), wide.get_config()
  assert first.augment.tissues.probability == 0
  assert then.augment.tissues.probability > 0
  assert first.segment.classes == "chest"
