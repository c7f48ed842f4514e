"""State to disk and back."""

import os
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tiny_runs import assert_same, write_workdir

from cadjax.core import files
from cadjax.training import checkpoint, warm_start, workdir
from data_prep import checksums
from data_prep.errors import UserError


def state_of(value):
  sharding = NamedSharding(Mesh(jax.devices()[:1], ("data",)), P())
  return jax.device_put(
    {"a": jnp.full((2, 3), value), "b": {"c": jnp.int32(value)}}, sharding
  )


def saved(path, values):
  checkpoints = checkpoint.Checkpoints(path)
  for step in values:
    checkpoints.save(step, state_of(float(step)), {"best": None, "n": step})
  checkpoints.close()


def test_the_newest_comes_back(tmp_path):
  saved(tmp_path, [1, 2, 3])
  checkpoints = checkpoint.Checkpoints(tmp_path)
  state, meta = checkpoints.restore(state_of(0.0))
  assert meta == {"best": None, "n": 3}
  np.testing.assert_array_equal(state["a"], np.full((2, 3), 3.0))
  assert int(state["b"]["c"]) == 3
  kept = {p.name for p in (tmp_path / "checkpoints").iterdir()}
  assert kept == {"2", "3"}
  checkpoints.close()


def test_nothing_saved_yet(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path)
  assert checkpoints.restore(state_of(0.0)) is None
  checkpoints.close()
  with pytest.raises(UserError, match="no trained model"):
    checkpoint.restore_best(tmp_path)


def test_none_that_can_be_read(tmp_path):
  saved(tmp_path, [1, 2])
  for path in (tmp_path / "checkpoints").rglob("*"):
    if path.is_file():
      path.write_bytes(b"")
  checkpoints = checkpoint.Checkpoints(tmp_path)
  with pytest.raises(UserError, match="none of the checkpoints"):
    checkpoints.restore(state_of(0.0))
  checkpoints.close()


def test_the_best_is_one_and_may_be_saved_again(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path)
  for step in (1, 4, 4):
    checkpoints.save_best(step, state_of(float(step)))
  checkpoints.close()
  step, variables = checkpoint.restore_best(tmp_path)
  assert step == 4
  np.testing.assert_array_equal(variables["a"], np.full((2, 3), 4.0))
  for path in (tmp_path / "best").rglob("*"):
    if path.is_file():
      path.write_bytes(b"")
  with pytest.raises(UserError, match="is damaged"):
    checkpoint.restore_best(tmp_path)


def test_json_is_written_whole(tmp_path):
  path = tmp_path / "x.json"
  files.write_json(path, {"a": [1, None]})
  assert path.read_text() == '{\n  "a": [\n    1,\n    null\n  ]\n}\n'
  assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def flip(path, rng):
  content = bytearray(path.read_bytes())
  content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  path.write_bytes(content)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A workdir with a best model and its variables."""
  path = write_workdir(tmp_path_factory.mktemp("whole") / "run")
  return path, checkpoint.restore_best(path)[1]


@pytest.mark.parametrize("folder", ["best", "."])
def test_a_flipped_bit_is_refused_or_changes_nothing(whole, tmp_path, folder):
  """Orbax alone loads other weights, or the config makes another model."""
  path, variables = whole
  rng, refused = random.Random(folder), 0
  names = [
    p.relative_to(path)
    for p in sorted((path / folder).rglob("*"))
    if p.is_file() and p.stat().st_size
  ]
  copy = tmp_path / "run"
  for _ in range(25):
    shutil.copytree(path, copy)
    flip(copy / rng.choice(names), rng)
    try:
      trained = workdir.load_trained(copy)
    except UserError:
      refused += 1
    else:
      assert_same(trained.variables, variables)
      for name in workdir.DESCRIPTION:
        assert (copy / name).read_bytes() == (path / name).read_bytes()
    shutil.rmtree(copy)
  assert refused > 12


@pytest.mark.parametrize("name", workdir.DESCRIPTION)
def test_a_changed_description_is_refused_by_every_reader(
  whole, tmp_path, name
):
  copy = tmp_path / "run"
  shutil.copytree(whole[0], copy)
  text = (copy / name).read_text()
  (copy / name).write_text(text.replace("2", "3", 1))
  for read in (
    workdir.load_trained,
    checkpoint.restore_best,
    lambda path: warm_start.read(path, None, ()),
  ):
    with pytest.raises(UserError, match=f"{name} is damaged"):
      read(copy)


def test_missing_checksums_are_those_of_an_older_version(
  whole, tmp_path, caplog
):
  path, variables = whole
  copy = tmp_path / "run"
  shutil.copytree(path, copy)
  (of_weights,) = (copy / "best").rglob(checksums.NAME)
  of_weights.unlink()
  with pytest.raises(UserError, match=f"{checksums.NAME} is missing"):
    workdir.load_trained(copy)
  (copy / checksums.NAME).unlink()
  with caplog.at_level("WARNING", logger="absl"):
    assert_same(workdir.load_trained(copy).variables, variables)
  (line,) = caplog.messages
  assert "is of an older version, without checksums" in line


def test_a_run_whose_best_model_is_damaged_does_not_go_on(tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save_best(3, state_of(3.0))
  checkpoints.save(4, state_of(4.0), {"best_step": 3})
  checkpoints.close()
  best = tmp_path / "best" / "3" / "default"
  largest = max(best.rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
  flip(largest, random.Random(0))
  checkpoints = checkpoint.Checkpoints(tmp_path)
  with pytest.raises(UserError, match="is damaged.*, the best model so far"):
    checkpoints.restore(state_of(0.0))
  # Written again where training reaches that step once more.
  checkpoints.save_best(3, state_of(3.0))
  checkpoints.close()
  assert checkpoint.restore_best(tmp_path)[0] == 3


@pytest.mark.parametrize("save", ["save", "save_best"])
def test_a_full_disk_is_one_line_before_anything_is_written(
  tmp_path, monkeypatch, save
):
  checkpoints = checkpoint.Checkpoints(tmp_path)
  usage = shutil.disk_usage(tmp_path)._replace(free=1000)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  more = ({"best_step": 0},) if save == "save" else ()
  with pytest.raises(UserError, match="the disk has 0 MB left; free some"):
    getattr(checkpoints, save)(1, state_of(1.0), *more)
  monkeypatch.undo()
  checkpoints.close()
  assert checkpoint.is_empty(tmp_path)


def test_what_cannot_be_written_is_one_line(tmp_path, monkeypatch):
  checkpoints = checkpoint.Checkpoints(tmp_path)

  def refuse(*args, **kwargs):
    raise OSError(30, "Read-only file system")

  monkeypatch.setattr(checkpoints._latest, "save", refuse)
  with pytest.raises(UserError, match="cannot be written .*Read-only"):
    checkpoints.save(1, state_of(1.0), {})
  monkeypatch.undo()
  checkpoints.close()


@pytest.mark.parametrize("name", ["best", "checkpoints", "config.json"])
def test_pipes_and_devices_are_refused_before_they_are_opened(
  whole, tmp_path, name
):
  """Opening a pipe waits for ever, and a device never ends."""
  run = tmp_path / "run"
  shutil.copytree(whole[0], run)
  place = run / name
  if name == "checkpoints":
    place = place / "3" / "state"
    place.parent.mkdir(parents=True)
  else:
    if place.is_dir():
      place = next(path for path in place.rglob("*") if path.is_file())
    place.unlink()
  os.mkfifo(place)
  with pytest.raises(UserError, match="a pipe, socket or device"):
    checkpoint.check_workdir(run)
  with pytest.raises(UserError, match="a pipe, socket or device"):
    workdir.load_trained(run)


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/20", "best/7"])
def test_a_file_where_checkpoints_should_be_is_no_empty_workdir(tmp_path, name):
  """Or, of the newest checkpoint, the one before would be taken unsaid."""
  (tmp_path / name).parent.mkdir(exist_ok=True)
  (tmp_path / name).write_text("")
  with pytest.raises(UserError, match="a file, where a folder should be"):
    checkpoint.check_kinds(tmp_path)


def test_damaged_notes_of_orbax_are_one_line(tmp_path):
  kept = checkpoint.Checkpoints(tmp_path)
  kept.save(3, {"x": jnp.ones(2)}, {"epoch": 1})
  kept.close()
  (path,) = tmp_path.rglob("checkpoints/3/_CHECKPOINT_METADATA")
  path.write_text("[]")
  with pytest.raises(UserError, match="start again in an empty workdir"):
    checkpoint.Checkpoints(tmp_path)
