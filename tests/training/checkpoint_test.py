"""State to disk and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cadjax.core import files
from cadjax.training import checkpoint
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
  with pytest.raises(UserError, match="cannot be read"):
    checkpoint.restore_best(tmp_path)


def test_json_is_written_whole(tmp_path):
  path = tmp_path / "x.json"
  files.write_json(path, {"a": [1, None]})
  assert path.read_text() == '{\n  "a": [\n    1,\n    null\n  ]\n}\n'
  assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
