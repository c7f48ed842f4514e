"""Every plan from end to end at its tiny size: `make experiments-smoke`."""

import pathlib

import jax
import pytest

from cadjax.experiment import page, plan
from cadjax.experiment.run import Experiment
from cadjax.experiment.store import Store

ROOT = pathlib.Path(__file__).parents[1]
PLANS = sorted(
  path
  for path in (ROOT / "configs" / "experiments").glob("*.py")
  if path.stem not in ("__init__", "common")
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  """A folder for the data and the compiled programs of all plans."""
  folder = tmp_path_factory.mktemp("plans")
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", str(folder / "jax_cache"))
  yield folder
  jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_a_plan_runs_from_end_to_end(path, shared):
  made = plan.load_plan(str(path), "tiny")
  cells = Store(shared / made.name / "cells")
  Experiment(made, cells, Store(shared / "data")).run()
  result = page.write(shared / made.name, made, cells)
  assert not result["failed"]
  assert result["cells"]["done"] == len(made.cells())
  assert result["lines"]
  assert not result["not_compared"]
  assert (shared / made.name / "index.html").stat().st_size > 10_000
