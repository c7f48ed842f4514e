"""Every device gets a precision that it has and a batch that fits."""

import json
import subprocess
import sys

import jax
import pytest

from cadjax.notebook import devices
from cadjax.notebook.devices import PAPER_SHAPE, ROWS, UNKNOWN, suggest
from configs import demo, resnet3d


@pytest.mark.parametrize(
  ("kind", "dtype", "batch"),
  [
    ("Tesla T4", "float32", 4),
    ("NVIDIA L4", "bfloat16", 8),
    ("NVIDIA A100-SXM4-40GB", "bfloat16", 8),
    ("NVIDIA H200", "bfloat16", 8),
    ("TPU v5 lite", "bfloat16", 8),
    ("cpu", "float32", 2),
  ],
)
def test_what_colab_has(kind, dtype, batch):
  device = suggest(kind)
  assert device.row.dtype == dtype
  assert device.batch_size(PAPER_SHAPE) == batch
  assert device.is_cpu == (kind == "cpu")


def test_a_like_name_is_another_device():
  # As an L4 and an L40S, whose memory nobody has looked at.
  assert suggest("NVIDIA L40S").row is UNKNOWN


def test_rows_are_found_by_their_own_name_and_have_a_reason():
  for row in ROWS:
    assert suggest(row.kind).row is row
    assert row.reason


def test_smaller_volumes_fill_a_batch_of_a_small_device():
  assert suggest("Tesla T4").batch_size((128, 128, 128)) == 8
  assert suggest("cpu").batch_size((64, 64, 64)) == 8
  assert suggest("cpu").batch_size((512, 512, 512)) == 1


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 16])
def test_devices_share_a_batch_evenly(count):
  for row in ROWS:
    batch = suggest(row.kind, count).batch_size(PAPER_SHAPE)
    assert batch % count == 0
    assert batch <= max(count, devices.BATCH_SIZE)
  assert suggest("TPU v2", 8).batch_size(PAPER_SHAPE) == 8


@pytest.mark.parametrize("kind", [row.kind for row in ROWS])
def test_flags_keep_the_batch_of_the_config(kind):
  config = resnet3d.get_config()
  for flag in suggest(kind).flags(PAPER_SHAPE).split():
    name, _, value = flag.removeprefix("--config.").partition("=")
    config.update_from_flattened_dict({name: type(config[name])(value)})
  total = config.data.batch_size * config.optimizer.accumulate
  for shipped in (resnet3d.get_config(), demo.get_config()):
    assert total == shipped.data.batch_size == devices.BATCH_SIZE


def test_flags_without_a_shape_leave_the_batch():
  assert "batch" not in suggest("cpu").flags()


def test_find_asks_another_process(monkeypatch):
  asked = []
  run = subprocess.run

  def spy(command, **options):
    asked.append(command)
    return run(command, **options)

  monkeypatch.setattr(subprocess, "run", spy)
  device = devices.find()
  assert asked == [[sys.executable, "-m", "cadjax.notebook.devices"]]
  assert (device.kind, device.count) == ("cpu", jax.device_count())
  assert "float32" in str(device)


def test_find_says_why_it_failed(monkeypatch):
  monkeypatch.setenv("JAX_PLATFORMS", "no_such_platform")
  with pytest.raises(RuntimeError, match="no_such_platform"):
    devices.find()


def test_main_prints_json(capsys):
  devices.main()
  found = json.loads(capsys.readouterr().out)
  assert found == {"kind": "cpu", "count": jax.device_count()}
