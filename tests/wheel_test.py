"""A wheel, installed elsewhere, runs from any folder."""

import os
import pathlib
import shutil
import subprocess
import sys
import venv

import numpy as np
import pytest
from tiny_runs import write_workdir

import cadjax
from cadjax.core import configs
from cadjax.report import classified
from data_prep import volume

ROOT = pathlib.Path(__file__).parents[1]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
PACKAGES = ("cadjax", "configs", "data_prep")
# One process that has imported what all need, and a child for each program.
EVERY_HELP = """
import os, sys
from cadjax.__main__ import PROGRAMS, load, main
for module, _ in PROGRAMS.values():
  load(module)
for name in PROGRAMS:
  child = os.fork()
  if not child:
    try:
      main([name, "--help"])
    except SystemExit as end:
      sys.stdout.flush()
      os._exit(end.code)  # At once: to clean up takes seconds.
    os._exit(1)
  if os.waitpid(child, 0)[1]:
    sys.exit(f"{name} --help failed")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> pathlib.Path:
  """The folder of the programs of an environment with the wheel in it."""
  folder = tmp_path_factory.mktemp("wheel")
  source = folder / "source"
  for name in PACKAGES:
    shutil.copytree(
      ROOT / name,
      source / name,
      ignore=shutil.ignore_patterns("__pycache__", "results"),
    )
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
  offline = ["--quiet", "--no-deps", "--no-index"]
  wheels = folder / "wheels"
  subprocess.run(
    [
      *(*pip, "wheel", *offline, "--no-build-isolation"),
      *("--wheel-dir", wheels, source),
    ],
    env=ENVIRONMENT,
    check=True,
  )
  (wheel,) = wheels.iterdir()
  assert wheel.name.startswith(f"cadjax-{cadjax.__version__}-")
  place = folder / "environment"
  venv.create(place, symlinks=True)
  programs = place / "bin"
  subprocess.run(
    [*pip, "--python", programs / "python", "install", *offline, wheel],
    env=ENVIRONMENT,
    check=True,
  )
  # What cadjax needs is not installed again; now that pip is done, which would
  # take a cadjax that is installed there for an old one.
  (site,) = place.glob("lib/python*/site-packages")
  others = [path for path in sys.path if path.endswith("-packages")]
  (site / "others.pth").write_text("\n".join(others) + "\n")
  return programs


@pytest.fixture
def run(installed, tmp_path):
  def run(program: str, *args: str) -> str:
    done = subprocess.run(
      [installed / program, *args],
      cwd=tmp_path,
      env=ENVIRONMENT,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  return run


def test_the_wheel_has_every_file_of_the_packages(run, installed):
  code = "import cadjax; print(cadjax.__file__)"
  site = pathlib.Path(run("python", "-c", code).strip()).parents[1]
  assert site.is_relative_to(installed.parent)
  for name in PACKAGES:
    for path in (ROOT / name).rglob("*"):
      relative = path.relative_to(ROOT)
      if path.is_file() and not {"__pycache__", "results"} & set(
        relative.parts
      ):
        there = (site / relative).is_file()
        # Pages about the source, and their picture, are read there.
        pages = ("README.md", "example.jpg")
        assert there or relative.name in pages, relative


def test_version_and_list(run):
  assert run("cadjax", "--version") == f"cadjax {cadjax.__version__}\n"
  assert run("cadjax") == run("python", "-m", "cadjax")


def test_every_program_shows_its_help(run):
  said = run("python", "-W", "ignore", "-c", EVERY_HELP)
  programs = run(
    "python", "-c", "from cadjax.__main__ import *; print(*PROGRAMS)"
  )
  for name in programs.split():
    assert f"usage: cadjax {name} [--name=value ...]" in said
  assert said.count("\nflags:\n") == len(programs.split())


def test_a_config_is_found_by_name(run):
  said = run("cadjax", "train", "--config=demo", "--help")
  assert "--config.optimizer.learning_rate=X" in said
  assert "(default: 0.002)" in said


def test_a_plan_is_found_by_name(run):
  said = run(
    *("cadjax", "experiment", "--plan=dimension", "--scale=tiny"),
    *("--workdir=w", "--dry_run"),
  )
  assert "3d" in said


def test_it_predicts(run, tmp_path):
  write_workdir(tmp_path / "classifier")
  rng = np.random.default_rng(5)
  hu = rng.normal(-100, 60, (12, 20, 30))
  hu[4:9, 6:14, 12:22] = 350
  lattice = volume.Grid(
    hu.shape, (9.0, 8.0, 7.0), (-100.0, -80.0, 10.0), np.eye(3)[:, ::-1]
  )
  volume.write_nifti(tmp_path / "scan.nii.gz", hu.astype(np.int16), lattice)
  said = run(
    *("cadjax", "predict", "--classifier=classifier"),
    *("--input=scan.nii.gz", "--out=out"),
  )
  assert "scan: probability of CAD" in said
  page = (tmp_path / "out" / classified.FILES["page"]).read_text()
  assert "<html" in page


def test_configs_beside_the_package_are_the_packaged_ones(run, installed):
  code = "from cadjax.core import configs; print(configs.FOLDER)"
  folder = pathlib.Path(run("python", "-c", code).strip())
  assert folder.is_relative_to(installed.parent)
  assert folder != configs.FOLDER
