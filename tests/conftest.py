"""Shared fixtures. Eight CPU devices are forced before jax starts."""

import os
import pathlib

import pytest

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

REAL_CT = pathlib.Path(__file__).parents[2] / "shared" / "data" / "real_cta"


@pytest.fixture(scope="session")
def real_ct() -> pathlib.Path:
  """The folder of one real CT angiogram, kept beside the checkout."""
  if not (REAL_CT / "ct.nii.gz").exists():
    pytest.skip("no real CT angiogram beside the checkout")
  return REAL_CT
