"""Tests of the tables of a train step on TPUs that are not there."""

import json

import pytest

from cadjax.bench import measure, tpu
from cadjax.models import resnet
from configs import resnet3d
from data_prep.errors import UserError

CONFIG = json.loads(resnet3d.get_config().to_json_best_effort())


def compiled(row, memory_bytes):
  """What a worker tells of a compiled step."""
  aot = {
    "memory_bytes": memory_bytes,
    "hlo_flops": 3e12,
    "bytes_accessed": 819e9,
    "cycles": {"stem": 90_000_000, "other": 10_000_000},
    "bounded_cycles": 5_000_000,
    "operations": [],
    "collectives": {"all-reduce": {"count": 2, "bytes": 46_000_000}},
    "chip": {"flops": 1e12, "bandwidth": 819e9, "memory": 16e9, "clock": 1e9},
  }
  info = {"compile_seconds": 100.0, "flops": 2e12, "aot": aot}
  return measure.Result(row, info=info, seconds=[1e-6])


@pytest.fixture
def compiler(monkeypatch):
  """Takes 1 GB for a volume on a chip, with remat half, and holds 16 GB."""
  asked = []

  def fake(group, repeats, *, say):
    (row,) = group
    asked.append(row.spec)
    each = row.spec["batch"] / row.spec["devices"]
    need = each * 1e9 / (1 + row.spec["config"]["model"]["remat"])
    if need > 16e9:
      return [measure.Result(row, error="XlaRuntimeError: RESOURCE_EXHAUSTED")]
    return [compiled(row, need)]

  monkeypatch.setattr(tpu, "measure", fake)
  return asked


def test_tables_tell_every_case(compiler, tmp_path):
  found = {case: tpu.run(case, CONFIG, tmp_path) for case in tpu.cases()}
  lines = tpu.tables(found).splitlines()
  assert "| 16, bfloat16 | 16.0 GB | 8.0 GB | 100 M | 100 M | 6.2 M |" in lines
  assert ("| 32, bfloat16 | too large | 16.0 GB | - | 100 M | 3.1 M |") in lines
  assert "| 64, bfloat16 | too large | too large | - | - | - |" in lines
  assert "| folded stem | 100 M | 90 | 0 | 0 | 0 | 0 | 10 |" in " ".join(lines)
  assert "arithmetic 2000, bandwidth 1000" in " ".join(lines)
  assert (
    "| mesh, depth over 2, batch 32 | 4.0 GB | 100 M | 2 all-reduce of 46 MB |"
  ) in lines


def test_what_is_not_compiled_yet_is_told(compiler, tmp_path):
  cases = tpu.TUNING.values()
  found = {case: tpu.run(case, CONFIG, tmp_path) for case in cases}
  lines = tpu.tables(found).splitlines()
  assert "| 8, bfloat16 | 8.0 GB | ? | 100 M | ? | 12.5 M |" in lines
  assert "| pmap, batch 64 | ? | ? | ? |" in lines
  del found[tpu.TUNING["XLA's own stem"]]
  assert f"| XLA's own stem {'| ? ' * 8}|" in tpu.tables(found).splitlines()


def test_a_case_asks_for_its_devices_and_config(compiler, tmp_path):
  tpu.run(tpu.EIGHT_CHIPS[-1], CONFIG, tmp_path)
  (spec,) = compiler
  assert spec["aot"] == tpu.EIGHT
  assert (spec["devices"], spec["batch"]) == (8, 32)
  assert spec["config"]["parallel"] == "mesh"
  assert spec["config"]["mesh"] == {"data": 4, "space": 2}
  assert spec["config"]["model"]["dtype"] == "bfloat16"
  assert CONFIG["model"]["dtype"] == "float32"


def test_each_part_is_compiled_alone_and_with_those_before(compiler, tmp_path):
  for case in tpu.TUNING.values():
    tpu.run(case, CONFIG, tmp_path)
  ways = [
    tuple(spec["config"]["model"][name] for name in resnet.WAYS)
    for spec in compiler
  ]
  plain = ("plain",) * 3
  assert ways == [
    plain,
    plain,
    ("folded", *plain[1:]),
    ("folded", "folded", "plain"),
    ("folded", "folded", "moments"),
    ("auto",) * 3,
  ]
  assert len(list(tmp_path.iterdir())) == len(ways)


def test_what_was_compiled_is_not_compiled_again(compiler, tmp_path):
  first = tpu.run(tpu.TUNING["plain"], CONFIG, tmp_path)
  assert tpu.run(tpu.TUNING["plain"], CONFIG, tmp_path) == first
  assert len(compiler) == 1


def test_another_failure_is_told_and_not_kept(monkeypatch, tmp_path):
  def fails(group, repeats, *, say):
    return [measure.Result(group[0], error="libtpu is missing")]

  monkeypatch.setattr(tpu, "measure", fails)
  with pytest.raises(UserError, match="libtpu is missing"):
    tpu.run(tpu.TUNING["plain"], CONFIG, tmp_path)
  assert not list(tmp_path.iterdir())
