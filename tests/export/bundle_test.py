"""The folder of an export, run without cadjax."""

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny_runs

from cadjax.core import lookup
from cadjax.export import bundle
from configs import resnet3d
from data_prep.errors import UserError

# No module of ours, nor what cadjax needs, can be imported.
ALONE = """
import runpy, sys
for name in ("cadjax", "data_prep", "configs", "flax", "optax", "orbax"):
  sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, str(__import__("pathlib").Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(folder, *args):
  return subprocess.run(
    [sys.executable, "-c", ALONE, str(folder / "run.py"), *map(str, args)],
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp("export")
  workdir = tiny_runs.write_workdir(root / "classifier")
  bundle.write(workdir, root / "out", layers=("stage1", "stage4"))
  return root / "out"


def manifest_of(folder):
  return json.loads((folder / "manifest.json").read_text())


def test_a_classifier_runs_without_cadjax(folder, tmp_path):
  done = run(folder)
  assert done.returncode == 0, done.stderr
  for name in ("logits", "probability", "map/stage1", "map/stage4"):
    assert f"{name}: differs from cadjax by " in done.stdout
  with np.load(folder / "example.npz") as example:
    hu, probability = example["hu"], example["probability"]
    assert example["map/stage1"].shape == hu.shape
  assert 0 < probability < 1
  np.save(tmp_path / "scan.npy", hu)
  done = run(folder, tmp_path / "scan.npy")
  assert done.returncode == 0, done.stderr
  with np.load(tmp_path / "scan.result.npz") as result:
    np.testing.assert_allclose(result["probability"], probability, atol=1e-5)


def test_the_manifest_says_what_goes_in_and_comes_out(folder):
  manifest = manifest_of(folder)
  assert manifest["input"]["unit"] == "HU"
  assert manifest["input"]["shape"] == tiny_runs.GRID["shape"]
  assert manifest["classes"] == ["normal", "cad"]
  assert manifest["calibration"]["threshold"] == 0.5
  assert manifest["program"]["platforms"] == ["cpu", "cuda", "tpu"]
  assert "not a medical device" in manifest["notice"]
  assert manifest["model"]["trained_on"]["is_phantom"]
  assert set(manifest["files"]) == {path.name for path in folder.iterdir()}


def test_other_volumes_are_refused(folder, tmp_path):
  np.save(tmp_path / "scan.npy", np.zeros((3, 4, 5), np.int16))
  done = run(folder, tmp_path / "scan.npy")
  assert done.returncode == 2
  assert done.stderr.startswith(f"error: {tmp_path / 'scan.npy'} is no array")
  assert len(done.stderr.splitlines()) == 1
  (tmp_path / "text.npy").write_text("not an array")
  for name in ("text.npy", "nowhere.npy"):
    done = run(folder, tmp_path / name)
    assert done.returncode == 2
    assert f"{name}: cannot be read" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_was_damaged_is_refused(folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / "copy")
  content = bytearray((copy / "weights.npz").read_bytes())
  content[len(content) // 2] ^= 1
  (copy / "weights.npz").write_bytes(content)
  done = run(copy)
  assert done.returncode == 2
  assert done.stderr == (
    "error: weights.npz is damaged: its checksum differs\n"
  )


def test_a_jax_that_cannot_run_it_says_which_can(folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / "copy")
  manifest = manifest_of(copy)
  manifest["program"]["calling_convention_version"] = 99
  (copy / "manifest.json").write_text(json.dumps(manifest))
  done = run(copy)
  assert done.returncode == 2
  assert f"pip install jax=={manifest['program']['jax']}" in done.stderr


def test_a_result_out_of_tolerance_is_told(folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / "copy")
  with np.load(copy / "example.npz") as stored:
    example = dict(stored)
  example["probability"] = example["probability"] + np.float32(1e-3)
  np.savez(copy / "example.npz", **example)
  reseal(copy)
  done = run(copy)
  assert done.returncode == 1
  assert "probability: differs from cadjax by 0.001" in done.stdout


def test_nan_is_no_agreement(folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / "copy")
  with np.load(copy / "example.npz") as stored:
    example = dict(stored)
  example["probability"] = np.float32(np.nan)
  np.savez(copy / "example.npz", **example)
  reseal(copy)
  assert run(copy).returncode == 1


def reseal(copy):
  """Makes the manifest fit a changed example."""
  manifest = manifest_of(copy)
  digest = hashlib.sha256((copy / "example.npz").read_bytes()).hexdigest()
  manifest["sha256"]["example.npz"] = digest
  (copy / "manifest.json").write_text(json.dumps(manifest))


def test_a_segmenter_runs_without_cadjax(tmp_path):
  config = tiny_runs.segmenter_config()
  workdir = tiny_runs.write_workdir(tmp_path / "segmenter", config=config)
  bundle.write(workdir, tmp_path / "out")
  done = run(tmp_path / "out")
  assert done.returncode == 0, done.stderr
  assert "probabilities: differs from cadjax by " in done.stdout
  with np.load(tmp_path / "out" / "example.npz") as example:
    hu = example["hu"]
  assert any(
    n > w for n, w in zip(hu.shape, config.data.patch_size, strict=True)
  ), "the example takes one window"


def test_what_cannot_be_exported(tmp_path, folder):
  out = tmp_path / "out"
  config = tiny_runs.segmenter_config()
  segmenter = tiny_runs.write_workdir(tmp_path / "segmenter", config=config)
  with pytest.raises(UserError, match="--layers are of classifiers"):
    bundle.write(segmenter, out, layers=("level1",))
  grid = {"kind": "spacing", "spacing_mm": [8.0, 8.0, 8.0]}
  free = tiny_runs.write_workdir(tmp_path / "free", grid=grid)
  with pytest.raises(UserError, match="volumes of any size"):
    bundle.write(free, out)
  config = resnet3d.get_config().copy_and_resolve_references()
  with config.unlocked():
    config.model.update(depth=10, width=4)
    config.data.prior.use = "region"
  masks = tiny_runs.write_workdir(tmp_path / "masks", config=config)
  with pytest.raises(UserError, match="masks beside the volume"):
    bundle.write(masks, out)
  classifier = tiny_runs.write_workdir(tmp_path / "classifier")
  with pytest.raises(lookup.ConfigError, match="stage9"):
    bundle.write(classifier, out, layers=("stage9",))
  assert not out.exists()
  with pytest.raises(UserError, match="--overwrite"):
    bundle.write(classifier, folder)
