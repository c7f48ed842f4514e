"""MONAI's network by a cadjax recipe: the same arithmetic, and the program."""

import functools
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai")

from monai_nets import shake_norms, to_flax  # noqa: E402
from tiny_runs import random_variables  # noqa: E402

from cadjax import tasks  # noqa: E402
from cadjax.bench import recipe, recipe_torch  # noqa: E402
from cadjax.core import lookup, parallel  # noqa: E402
from cadjax.training import checkpoint, optimizer, steps, workdir  # noqa: E402
from cadjax.training.task import make_model  # noqa: E402
from configs import vesselmnist3d  # noqa: E402
from data_prep import build  # noqa: E402
from data_prep.ctca.ctca_dataset_builder import CtcaConfig  # noqa: E402
from data_prep.errors import UserError  # noqa: E402
from data_prep.geometry import GridSpec  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
SHAPE = (16, 16, 16)


def write_set(path, *splits):
  """A set whose label 1 is a ball in a corner; the others are noise alone."""
  rng = np.random.default_rng(0)
  found = {}
  for split in splits:
    labels = np.arange(12)[:, None] % 2
    images = rng.integers(0, 60, (12, *SHAPE))
    images[labels.ravel() == 1, 2:9, 2:9, 2:9] += 150
    found[f"{split}_images"] = images.astype(np.uint8)
    found[f"{split}_labels"] = labels.astype(np.uint8)
  np.savez_compressed(path, **found)
  return path


def build_set(root, name, *splits):
  path = write_set(root / f"{name}.npz", *splits)
  config = CtcaConfig(
    name="tiny",
    source="medmnist",
    grid=GridSpec(kind="paper", shape=SHAPE),
    input=str(path),
    has_mask=False,
    workers=1,
  )
  build.build(config, root / name)
  return root / name


def make_config(data):
  config = vesselmnist3d.get_config()
  config.data.path = str(data)
  config.data.batch_size = 4
  config.model.conv = "lax"  # Which compiles fastest.
  config.data.eval_batch_size = 4
  config.model.depth = 10
  config.model.width = 4
  config.optimizer.warmup_steps = 1
  config.epochs = 2
  return config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return tmp_path_factory.mktemp("recipe")


@pytest.fixture(scope="module")
def data(root):
  return build_set(root, "data", "train", "val")


@pytest.fixture(scope="module")
def trained(root, data):
  """A workdir with random weights: what is compared here is MONAI's side."""
  config = make_config(data)
  path = root / "cadjax"
  workdir.prepare(path, config, tasks.find(config).open_dataset(config))
  saved = checkpoint.Checkpoints(path)
  saved.save_best(7, random_variables(make_model(config), SHAPE))
  saved.close()
  return path


@pytest.fixture(scope="module")
def result(root, trained):
  return recipe.compare(
    str(trained),
    root / "monai",
    split="validation",
    data=None,
    pairs=3,
    bootstrap=100,
  )


def variables_of(net, model):
  init = functools.partial(model.init, train=False)
  like = jax.eval_shape(init, jax.random.key(0), np.zeros((1, *SHAPE, 1)))
  tensors = dict(net.state_dict())
  return {k: to_flax(tensors, like[k]) for k in ("params", "batch_stats")}


@pytest.mark.parametrize(("depth", "stride"), [(10, 16), (18, 32), (50, 16)])
def test_both_networks_are_the_same_function(depth, stride):
  config = make_config("none")
  config.model.depth = depth
  config.model.output_stride = stride
  net = recipe_torch.make_net(config)
  shake_norms(net)
  model = make_model(config)
  hu = np.random.default_rng(0).integers(-99, 400, (2, *SHAPE, 1), np.int16)
  window = tuple(config.data.window_hu)
  theirs = recipe_torch.Scorer(net.eval(), window).logits(hu)
  step = steps.make_eval_step(model, ndim=3, window_hu=window)
  ours = jax.jit(step)(variables_of(net, model), {"image": hu})
  np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
  "layout", [torch.contiguous_format, torch.channels_last_3d]
)
def test_both_take_the_same_steps(data, layout):
  config = make_config(data)
  config.optimizer.learning_rate = 1e-2
  kind = tasks.find(config)
  devices = parallel.make_parallel("mesh", data=1)
  task = kind.make_task(config, kind.open_dataset(config), devices)
  run = recipe_torch._Run(config, layout)
  model = make_model(config)
  tx, schedule = optimizer.get_optimizer(config.optimizer, total_steps=6)
  start = variables_of(run.net, model)
  state = steps.TrainState(
    step=np.zeros((), np.int32),
    **start,
    opt_state=tx.init(start["params"]),
    ema_params=start["params"],
  )
  train_step = jax.jit(
    steps.make_train_step(
      model,
      tx,
      task.loss_fn,
      task.prepare,
      seed=config.seed,
      schedule=schedule,
      ema_decay=config.ema_decay,
    )
  )
  prepared = recipe_torch._preparation(task, config.seed)
  images = []
  for step, (batch, _) in enumerate(task.batches(0, 3)):
    state, _ = train_step(state, batch)
    image, label = prepared(step, batch)
    assert 0 <= image.min() < image.max() <= 1
    run.step(image, label, float(schedule(step)), step)
    images.append(image)
  after = variables_of(run.net, model)
  moved = difference(start["params"], state.params)
  assert difference(after["params"], state.params) < 0.02 * moved
  average = run.averaged(iter(images))
  averaged = variables_of(average, model)
  assert difference(averaged["params"], state.ema_params) < 0.02 * moved
  # The average is a network of its own, and has statistics of its own.
  with torch.no_grad():
    stem = average.conv1(torch.cat(images))
  torch.testing.assert_close(average.bn1.running_mean, stem.mean((0, 2, 3, 4)))
  assert not torch.allclose(run.net.bn1.running_mean, average.bn1.running_mean)


def difference(a, b):
  """The largest difference of any two leaves, in root mean square."""
  return max(
    np.sqrt(np.mean((np.asarray(x) - np.asarray(y)) ** 2))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


def test_both_are_evaluated_and_timed(root, result):
  assert json.loads((root / "monai" / "recipe.json").read_text()) == result
  for side in ("cadjax", "monai"):
    assert 0 <= result[side]["ROC AUC"]["value"] <= 1
    assert result[side]["accuracy at 0.5 (argmax)"]["n"] == 12
    assert result["step_seconds"][side] > 0
  assert result["time_ratio"]["pairs"] == 3
  text = recipe.table(result)
  assert "12 patients (6 with label 1)" in text
  assert "(3 pairs)" not in text
  assert "3 pairs" in text
  assert "chosen on validation cases: optimistic" in text


def test_a_finished_training_is_only_evaluated_on_other_data(root, result):
  del result
  before = (root / "monai" / "last.pt").stat().st_mtime_ns
  test = build_set(root, "test", "test")
  flags = [
    *(f"--workdir={root / 'cadjax'}", f"--out={root / 'monai'}"),
    *(f"--data={test}", "--split=test", "--bootstrap=100"),
  ]
  done = subprocess.run(
    [sys.executable, "-m", "cadjax.bench.recipe", *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith(f"test of {test}")
  assert "optimistic" not in done.stdout
  assert (root / "monai" / "last.pt").stat().st_mtime_ns == before


def test_a_stopped_training_goes_on_where_it_was(root, data, monkeypatch):
  config = make_config(data)
  lines = []

  def stop(line):
    lines.append(line)
    if "epoch 1/2" in line:
      raise KeyboardInterrupt

  out = root / "stopped"
  with pytest.raises(KeyboardInterrupt):
    recipe_torch.train(config, out, pairs=0, say=stop)
  recipe_torch.train(config, out, pairs=0, say=stop)
  epochs = [line.split(":")[0] for line in lines if "epoch" in line]
  assert epochs == [
    "MONAI, epoch 1/2",
    "MONAI, epoch 2/2",
  ]
  whole = root / "whole"
  recipe_torch.train(config, whole, pairs=0, say=lambda _: None)
  a, b = (
    torch.load(path / "last.pt", weights_only=True)["average"]
    for path in (out, whole)
  )
  for name, value in a.items():
    torch.testing.assert_close(value, b[name], rtol=1e-4, atol=1e-5)
  config.optimizer.learning_rate = 1.0
  with pytest.raises(UserError, match=r"last.pt: is of another config"):
    recipe_torch.train(config, out, pairs=0, say=stop)


def test_a_damaged_state_is_one_line(root, result, data):
  del result
  folder = root / "damaged"
  folder.mkdir()
  whole = (root / "monai" / "best.pt").read_bytes()
  (folder / "best.pt").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match=r"best.pt: cannot be read"):
    recipe_torch.load(make_config(data), folder)


@pytest.mark.parametrize(
  ("field", "value"), [("norm", "group"), ("output_stride", 8)]
)
def test_another_recipe_is_refused(field, value):
  config = make_config("none")
  config.model[field] = value
  with pytest.raises(lookup.ConfigError, match=f"config.model.{field} is"):
    recipe_torch.check(config)
