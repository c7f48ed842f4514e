"""Shared fixtures. Eight CPU devices are forced before jax starts.

Programs are compiled without LLVM's expensive passes: most tests compile more
than they compute, and take two thirds of the time that way.
"""

import fcntl
import os
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import pytest

os.environ["XLA_FLAGS"] = " ".join(
  [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
  ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

REAL_CT = pathlib.Path(__file__).parents[2] / "shared" / "data" / "real_cta"


@pytest.fixture(scope="session")
def real_ct() -> pathlib.Path:
  """The folder of one real CT angiogram, kept beside the checkout."""
  if not (REAL_CT / "ct.nii.gz").exists():
    pytest.skip("no real CT angiogram beside the checkout")
  return REAL_CT


@pytest.fixture(scope="session")
def qrm_phantom() -> pathlib.Path:
  """A real scan of a physical calcium phantom, kept beside the checkout."""
  path = REAL_CT.parent / "qrm_phantom" / "qrm_large_rep1.nii.gz"
  if not path.exists():
    pytest.skip("no scan of a QRM phantom beside the checkout")
  return path


@pytest.fixture(scope="session")
def shipped_models() -> frozenset[str]:
  """The names of the models that come with cadjax, if all are there."""
  from cadjax.training import packed

  found = frozenset(packed.shipped())
  if {"wide", "coronary", "classifier"} - found:
    pytest.skip("not all models are shipped in this version")
  return found


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable:
  """Makes a folder in the first process of the tests that asks for it.

  The function takes the folder's name and what fills it; it returns the folder
  that all processes share, which is not to be written to.
  """
  root = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    root = root.parent  # The base of all workers of this run.

  def make(name: str, fill: Callable[[pathlib.Path], object]) -> pathlib.Path:
    folder, done = root / name, root / f"{name}.done"
    with open(root / f"{name}.lock", "w") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      if not done.exists():
        # What a process left that was killed, or raised, is not whole.
        shutil.rmtree(folder, ignore_errors=True)
        fill(folder)
        done.touch()
    return folder

  return make


@pytest.fixture(scope="session")
def tiny_data(made_once) -> pathlib.Path:
  """A built data set of 32 overt phantoms on a small non-cubic grid."""
  from data_prep import build
  from data_prep.ctca.ctca_dataset_builder import Ctca, CtcaConfig, config_name
  from data_prep.geometry import GridSpec

  grid = GridSpec(kind="heart", shape=(16, 24, 32))
  config = CtcaConfig(
    name=config_name("phantom", grid),
    source="phantom",
    cases=32,
    severity="overt",
    grid=grid,
    fractions=(0.5, 0.25, 0.25),
    workers=1,
  )
  folder = made_once("tiny_data", lambda out: build.build(config, out))
  return pathlib.Path(Ctca(config=config, data_dir=str(folder)).data_dir)


@pytest.fixture(scope="session")
def tiny_config(tiny_data):
  """The config of a model small enough for a test."""
  from configs import resnet3d

  config = resnet3d.get_config()
  config.data.path = str(tiny_data)
  config.data.batch_size = 4
  config.data.eval_batch_size = 3  # Leaves a remainder.
  config.model.depth = 10
  config.model.width = 4
  config.optimizer.warmup_steps = 2
  config.epochs = 2
  config.checkpoint_every = 3  # Inside an epoch of 4 steps.
  config.log_every = 1
  # One device: what eight do is the business of parallel_test.
  config.parallel = "mesh"
  config.mesh.data = 1
  return config


@pytest.fixture(scope="session")
def tiny_workdir(tiny_config, made_once, tmp_path_factory) -> pathlib.Path:
  """The workdir of a finished training on `tiny_data`."""
  from cadjax import tasks

  trained = made_once(
    "tiny_classifier",
    lambda workdir: tasks.train_and_evaluate(tiny_config, workdir),
  )
  # A copy: evaluations are written into a workdir.
  return shutil.copytree(trained, tmp_path_factory.mktemp("run") / "classifier")


@pytest.fixture(scope="session")
def tiny_segment_config(tiny_config):
  """The config of a segmenter small enough for a test, on `tiny_data`."""
  from configs import unet3d

  config = unet3d.get_config()
  config.data.path = tiny_config.data.path
  config.data.patch_size = (8, 16, 24)
  config.data.patches_per_volume = 8
  config.data.batch_size = 4
  config.data.eval_batch_size = 3  # Leaves a remainder.
  config.segment.min_component_mm3 = 0.0  # A voxel has 300 mm3.
  config.model.features = (8, 16)
  config.model.deep_supervision = False
  config.optimizer.learning_rate = 1e-2
  config.optimizer.warmup_steps = 2
  config.epochs = 2
  config.checkpoint_every = 3  # Inside an epoch of 32 steps.
  config.log_every = 1
  config.parallel = "mesh"
  config.mesh.data = 1
  return config


@pytest.fixture(scope="session")
def tiny_segmenter(
  tiny_segment_config, made_once, tmp_path_factory
) -> pathlib.Path:
  """The workdir of a segmenter trained on `tiny_data`."""
  from cadjax import tasks

  trained = made_once(
    "tiny_segmenter",
    lambda workdir: tasks.train_and_evaluate(tiny_segment_config, workdir),
  )
  return shutil.copytree(trained, tmp_path_factory.mktemp("run") / "segmenter")


@pytest.fixture
def drawn_finding():
  """Makes a finding on the LAD, with the changes given."""
  from cadjax.link.findings import Finding

  def make(**changes):
    values = {
      "position_mm": (1.0, 2.0, 3.0),
      "index": (1, 2, 3),
      "vessel": "LAD",
      "segment": "pLAD",
      "sureness": "high",
      "from_ostium_mm": 31.2,
      "extent_mm": (28.0, 34.0),
      "sources": ("plaque",),
      "evidence": 0.1,
      "lift": 3.0,
      "heat": float("nan"),
      "plaque": "stable",
      "plaque_mm3": 12.3,
      "plaque_hu": 700.0,
      "calibre_mm": 3.1,
      "reference_mm": 3.2,
      "lumen_mm2": float("nan"),
      "remodelling": float("nan"),
      "high_risk": (),
      "stenosis": None,
      "stenosis_state": "unmeasured",
      "stenosis_note": "",
      "score": 1.0,
      "ranked_by": "",
    }
    values |= changes
    line = np.array([values["position_mm"]], float)
    return Finding(**({"line_mm": line} | values))

  return make
