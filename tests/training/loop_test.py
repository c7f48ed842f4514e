"""The training loop on tiny phantoms: resume, refusal, early stopping."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
from tiny_runs import assert_same, best_variables, lines

from cadjax import tasks
from cadjax.data import input_pipeline
from cadjax.models import flops, layers, resnet
from cadjax.training import loop, steps, task, workdir
from configs import resnet2d, resnet3d, unet2d
from data_prep.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


def test_a_run_leaves_what_the_other_programs_read(tiny_workdir):
  for name in ("config.json", "dataset.json", "versions.json"):
    assert json.loads((tiny_workdir / name).read_text())
  assert list((tiny_workdir / "tensorboard").iterdir())
  rows = lines(tiny_workdir)
  assert [r["step"] for r in rows if "train/loss" in r] == list(range(1, 9))
  assert [r["step"] for r in rows if "validation/loss" in r] == [4, 8]
  times = lines(tiny_workdir, times=True)
  speeds = [r["speed/volumes_per_s"] for r in times if "time/steps" not in r]
  assert len(speeds) == 8
  assert min(speeds) > 0
  shares = [r for r in times if "time/steps" in r]
  assert [r.pop("step") for r in shares] == [4, 8]
  for row in shares:
    assert sum(row.values()) == pytest.approx(1)
    assert min(row.values()) >= 0
  trained = tasks.load_model(tiny_workdir)
  assert trained.step in (4, 8)
  reference = trained.dataset["reference"]
  assert all(low <= high for low, high in reference.values())


def test_loaded_model_repeats_the_validation_loss(tiny_workdir, tiny_config):
  """Batches of 3 with a padded remainder give the logged mean over cases."""
  trained = tasks.load_model(tiny_workdir)
  dataset = input_pipeline.open_dataset(tiny_config.data)
  rows, logits = task.evaluate_split(
    dataset, "validation", lambda b: trained.logits(b["image"]), 3
  )
  assert len({row["case_id"] for row in rows}) == len(rows) == 8
  assert logits.shape == (8, 1, 2)
  labels = np.array([int(row["label"]) for row in rows])
  p = np.exp(logits[:, 0] - logits[:, 0].max(-1, keepdims=True))
  p = (p / p.sum(-1, keepdims=True))[np.arange(8), labels]
  focal = -((1 - p) ** 2) * np.log(p)
  logged = {r["step"]: r for r in lines(tiny_workdir) if "validation/loss" in r}
  assert logged[trained.step]["validation/loss"] == pytest.approx(
    focal.mean(), rel=1e-4
  )


def test_averaged_weights_get_the_statistics_of_their_own_maps(
  tiny_config, tmp_path
):
  config = tiny_config.copy_and_resolve_references()
  config.ema_decay = 0.9
  config.epochs = 1
  state = tasks.train_and_evaluate(config, tmp_path / "run")
  kept = best_variables(tmp_path / "run")
  dataset = input_pipeline.open_dataset(config.data)
  model = task.make_model(config)
  found = []
  batches = dataset.train_batches(4, seed=config.seed, start=0, stop=4)
  for batch, _ in batches:
    image = steps.window(batch["image"], tuple(config.data.window_hu))
    _, updates = model.apply(
      {"params": state.ema_params, "batch_stats": state.batch_stats},
      image,
      train=True,
      mutable=["batch_stats"],
    )
    found.append(
      layers.batch_statistics(updates["batch_stats"], state.batch_stats)
    )
  expected = layers.pool_statistics(found)
  for a, b in zip(
    jax.tree.leaves(kept["batch_stats"]), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
  # Those of the training are of other weights.
  trained = jax.tree.leaves(jax.device_get(state.batch_stats))
  assert any(
    not np.allclose(a, b, rtol=0.05, atol=1e-3)
    for a, b in zip(trained, jax.tree.leaves(expected), strict=True)
  )


def test_resumed_inside_an_epoch_ends_bit_identical(
  tiny_workdir, tiny_config, tmp_path, monkeypatch
):
  """Stops at step 6 by SIGTERM, in the second epoch, and goes on."""
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
    if calls["n"] == 6:
      os.kill(os.getpid(), signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(steps, "make_train_step", counting)
    stopped = tasks.train_and_evaluate(tiny_config, tmp_path / "run")
  assert 5 <= int(stopped.step) < 8
  resumed = tasks.train_and_evaluate(tiny_config, tmp_path / "run")
  assert int(resumed.step) == 8
  assert_same(best_variables(tmp_path / "run"), best_variables(tiny_workdir))
  assert lines(tmp_path / "run") == lines(tiny_workdir)
  again = tasks.train_and_evaluate(tiny_config, tmp_path / "run")
  assert_same(again, resumed)


def test_a_training_that_is_short_of_time_keeps_a_model(
  tiny_workdir, tiny_config, tmp_path, capsys
):
  """After one step there is a model; the same command ends like any other."""
  path = tmp_path / "run"
  stopped = tasks.train_and_evaluate(tiny_config, path, minutes=0)
  assert int(stopped.step) == 1
  assert "stopped after --minutes=0 at step 1 of 8" in capsys.readouterr().out
  assert not workdir.is_finished(path)
  assert tasks.load_model(path).step == 1
  resumed = tasks.train_and_evaluate(tiny_config, path, minutes=60)
  assert int(resumed.step) == 8
  assert workdir.is_finished(path)
  # Of a finished run, the last state is read.
  whole = shutil.copytree(tiny_workdir, tmp_path / "whole")
  assert_same(resumed, tasks.train_and_evaluate(tiny_config, whole))


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_newest_checkpoint_falls_back(
  damage, tiny_workdir, tiny_config, tmp_path, caplog
):
  copy = tmp_path / "run"
  shutil.copytree(tiny_workdir, copy)
  newest = max((copy / "checkpoints").iterdir(), key=lambda p: int(p.name))
  # Half as long, and with a single bit that orbax itself reads as a weight.
  largest = max(
    (p for p in (newest / "state").rglob("*") if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  content = bytearray(largest.read_bytes())
  if damage == "truncated":
    del content[len(content) // 2 :]
  else:
    content[len(content) // 2] ^= 1
  largest.write_bytes(content)
  with caplog.at_level("WARNING", logger="absl"):
    tasks.train_and_evaluate(tiny_config, copy)
  (line,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
  assert f"checkpoint {newest.name} of" in line
  assert f"{largest} is damaged" in line
  assert "trying the one before" in line
  assert_same(best_variables(copy), best_variables(tiny_workdir))
  assert lines(copy) == lines(tiny_workdir)


def test_a_run_goes_on_in_another_way_to_compute(
  tiny_workdir, tiny_config, tmp_path
):
  """One from before there were ways; folded batches come from the host."""
  copy = tmp_path / "run"
  shutil.copytree(tiny_workdir, copy)
  old = json.loads((copy / "config.json").read_text())
  for name in resnet.WAYS:
    del old["model"][name]
  (copy / "config.json").write_text(json.dumps(old))
  (copy / "checksums.json").unlink()
  shutil.rmtree(copy / "checkpoints" / "8")
  config = tiny_config.copy_and_resolve_references()
  config.model.stem = config.model.stage1 = "folded"
  state = tasks.train_and_evaluate(config, copy)
  assert int(state.step) == 8
  losses = [r["train/loss"] for r in lines(copy) if "train/loss" in r]
  plain = [r["train/loss"] for r in lines(tiny_workdir) if "train/loss" in r]
  assert losses == pytest.approx(plain, rel=1e-4)
  assert losses != plain


def test_a_step_is_traced_and_its_program_written(tiny_data, tmp_path):
  done = run_main(
    f"--workdir={tmp_path / 'run'}",
    "--config=configs/resnet3d.py",
    f"--config.data.path={tiny_data}",
    "--config.data.batch_size=4",
    "--config.model.depth=10",
    "--config.model.width=4",
    "--config.epochs=1",
    "--config.optimizer.warmup_steps=1",
    "--config.parallel=mesh",
    "--config.mesh.data=1",
    "--profile=3:4",
    f"--dump_hlo={tmp_path / 'hlo'}",
  )
  assert done.returncode == 0, done.stderr
  assert "trace in" in done.stdout + done.stderr
  assert any((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
  assert any("train_step" in path.name for path in (tmp_path / "hlo").iterdir())


@pytest.mark.parametrize(
  ("config", "ndim", "examples"),
  [(resnet3d, 3, 8), (resnet2d, 2, 8 * 16), (unet2d, 2, 16)],
)
def test_the_work_of_a_step_is_that_of_its_examples(config, ndim, examples):
  config = config.get_config()
  model = task.make_model(config)
  shape = (32,) * ndim
  image = types.SimpleNamespace(image_shape=(*shape, 1))
  one = flops.step_flops(flops.count(model, (1, *shape, 1)), train=True)
  assert loop._step_flops(model, config, image) == examples * one


def test_another_config_is_refused_with_the_difference(
  tiny_workdir, tiny_config
):
  config = tiny_config.copy_and_resolve_references()
  config.optimizer.learning_rate = 0.5
  with pytest.raises(UserError, match="learning_rate: 0.0001 there, 0.5 now"):
    tasks.train_and_evaluate(config, tiny_workdir)
  config = tiny_config.copy_and_resolve_references()
  with config.unlocked():
    config.augment = {"noise": {}}
  with pytest.raises(UserError, match="augment.noise"):
    tasks.train_and_evaluate(config, tiny_workdir)


def test_non_finite_loss_names_step_and_cases(tiny_config, tmp_path):
  config = tiny_config.copy_and_resolve_references()
  config.optimizer.name = "sgd"
  config.optimizer.clip_norm = 0.0
  config.optimizer.warmup_steps = 0
  config.optimizer.learning_rate = 1e38
  with pytest.raises(loop.NonFiniteLossError, match=r"step \d.*phantom_00"):
    tasks.train_and_evaluate(config, tmp_path / "run")
  with pytest.raises(UserError, match="no trained model"):
    tasks.load_model(tmp_path / "run")


def test_gradients_that_are_not_finite_are_not_saved(
  tiny_config, tmp_path, monkeypatch
):
  """The loss was finite, but what the step made of the parameters is not."""
  original = steps.make_train_step

  def spoiling(*args, **kwargs):
    made = original(*args, **kwargs)

    def step(state, batch):
      state, values = made(state, batch)
      return state, values | {"grad_norm": values["grad_norm"] * np.inf}

    return step

  monkeypatch.setattr(steps, "make_train_step", spoiling)
  with pytest.raises(loop.NonFiniteLossError, match="gradients' norm is inf"):
    tasks.train_and_evaluate(tiny_config, tmp_path / "run")
  assert not any((tmp_path / "run" / "checkpoints").iterdir())


def test_early_stopping_counts_epochs_without_improvement():
  class Config:
    monitor, patience = "loss", 2

  progress = loop.Progress()
  values = [3.0, 2.0, 2.5, 1.0, float("nan"), 1.0]
  seen = []
  for step, value in enumerate(values, 1):
    progress = loop.judge(progress, {"loss": value}, step, Config)
    seen.append((progress.best_step, progress.stopped))
  assert seen == [
    (1, False), (2, False), (2, False), (4, False), (4, False), (4, True),
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("epochs", "best_steps"),
  [
    # The loss decides between equal AUCs, and never against a better one.
    ([(0.9, 3.0), (1.0, 9.0), (1.0, 2.0), (1.0, 4.0)], [1, 2, 3, 3]),
    ([(0.9, 0.1), (0.8, 0.0), (float("nan"), 0.0)], [1, 1, 1]),
    ([(0.5, None), (0.6, None), (0.6, None)], [1, 2, 2]),
  ],
)
def test_equal_monitors_are_told_apart_by_the_loss(epochs, best_steps):
  class Config:
    monitor, patience = "roc_auc", 10

  progress = loop.Progress()
  for step, ((value, loss), best) in enumerate(
    zip(epochs, best_steps, strict=True), 1
  ):
    values = {"roc_auc": value} | ({} if loss is None else {"loss": loss})
    progress = loop.judge(progress, values, step, Config)
    assert progress.best_step == best


def test_two_dimensional_baseline_trains(tiny_config, tmp_path):
  config = tiny_config.copy_and_resolve_references()
  config.model.ndim = 2
  config.data.slices_per_volume = 3
  config.epochs = 1
  tasks.train_and_evaluate(config, tmp_path / "run")
  trained = tasks.load_model(tmp_path / "run")
  logits = trained.logits(np.zeros((2, 16, 24, 32, 1), np.int16))
  assert logits.shape == (2, 16, 2)


def run_main(*args, **kwargs):
  command = [sys.executable, "-m", "cadjax.main", *args]
  return subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, **kwargs
  )


@pytest.mark.parametrize(
  ("args", "message"),
  [
    (["--config.model.dpth=3"], "the nearest is --config.model.depth"),
    (["--config.foo=1"], "has no field 'foo'; the nearest is --config."),
    (["--config.seed=-1"], "config.seed is -1; it must be at least 0"),
    (["--config.epochs=many"], "many"),
    (["--config.data.path=nowhere"], "data_prep.build"),
    (["--config.optimizer.name=adma"], "adam"),
    (["--config.monitor=aux"], "roc_auc"),
    (["--config.log_every=0"], "config.log_every is 0; it must be at least 1"),
    (["--config=configs/nope.py"], "configs/nope.py"),
    (["--profile=5:3"], "--profile=5:3: is START:STOP"),
    (["--profile=5:9999"], "the run goes on from step 1 to"),
    (["--dump_hlo=a b"], "XLA takes no folder with spaces"),
  ],
)
def test_bad_flags_end_in_one_line(args, message, tiny_data, tmp_path):
  done = run_main(
    "--config=configs/resnet3d.py",
    f"--workdir={tmp_path / 'run'}",
    f"--config.data.path={tiny_data}",
    *args,
  )
  assert done.returncode == 2
  errors = [x for x in done.stderr.splitlines() if x.startswith("error:")]
  assert len(errors) == 1
  assert message in errors[0]
  assert "Traceback" not in done.stderr
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_twenty_kills_end_bit_identical(tiny_data, tmp_path):
  """kill -9 at random moments, from the start of Python to the last save."""

  def command(path):
    return [
      sys.executable, "-m", "cadjax.main", "--config=configs/resnet3d.py",
      f"--workdir={path}", f"--config.data.path={tiny_data}",
      "--config.data.batch_size=4", "--config.model.depth=10",
      "--config.model.width=4", "--config.epochs=120", "--config.patience=120",
      "--config.checkpoint_every=3", "--config.optimizer.warmup_steps=2",
      "--compilation_cache",
    ]  # fmt: skip

  environment = os.environ | {"XLA_FLAGS": ""}
  quiet = {"cwd": ROOT, "env": environment, "stderr": subprocess.DEVNULL}
  subprocess.run(command(tmp_path / "whole"), check=True, **quiet)
  rng, kills = random.Random(0), 0
  while kills < 20:
    process = subprocess.Popen(command(tmp_path / "killed"), **quiet)
    time.sleep(rng.uniform(6, 16))
    if process.poll() is not None:
      break
    process.kill()
    process.wait()
    kills += 1
  subprocess.run(command(tmp_path / "killed"), check=True, **quiet)
  assert kills >= 5
  assert list((tmp_path / "jax_cache").iterdir())
  print(f"{kills} kills")
  assert_same(
    best_variables(tmp_path / "killed"), best_variables(tmp_path / "whole")
  )
  assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
