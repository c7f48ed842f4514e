"""What notebooks need beside the programs."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import types

import IPython
import nbformat
import pytest
import traitlets.config
from IPython.core.interactiveshell import InteractiveShell

from cadjax.notebook import cells
from cadjax.training import workdir
from data_prep import sources
from data_prep.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def shell(monkeypatch, tmp_path):
  monkeypatch.setenv("PATH", os.environ["PATH"])
  monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
  # Its history is a database, which nobody would close.
  made = InteractiveShell(
    config=traitlets.config.Config({"HistoryManager": {"enabled": False}})
  )
  monkeypatch.setattr(IPython, "get_ipython", lambda: made)
  return made


@pytest.fixture
def colab(monkeypatch):
  """A stand-in for Colab's own package; says where Drive was mounted."""
  mounted = []
  package = types.ModuleType("google.colab")
  package.drive = types.SimpleNamespace(mount=mounted.append)
  package.files = types.SimpleNamespace()
  package.mounted = mounted
  monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
  monkeypatch.setitem(sys.modules, "google.colab", package)
  return package


# IPython forks for a command, and jax warns of that in a busy process.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_a_command_that_fails_raises(shell):
  shell.system("exit 3")  # What IPython does by itself.
  cells.setup()
  cells.setup()
  with pytest.raises(subprocess.CalledProcessError) as raised:
    shell.system("exit 3")
  assert raised.value.returncode == 3
  assert shell.system("true") is None


def test_python_is_that_of_the_notebook(shell, tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "prefix", str(tmp_path))
  cells.setup()
  cells.setup()
  places = os.environ["PATH"].split(os.pathsep)
  assert places[0] == str(tmp_path / "bin")
  assert places.count(places[0]) == 1


def test_folder_is_local_outside_of_colab(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert cells.folder("a/b", drive=True) == tmp_path / "a" / "b"
  assert (tmp_path / "a" / "b").is_dir()


def test_folder_is_on_drive_in_colab(tmp_path, monkeypatch, colab):
  monkeypatch.setattr(cells, "DRIVE", tmp_path / "drive")
  monkeypatch.chdir(tmp_path)
  wanted = tmp_path / "drive" / "MyDrive" / "runs"
  assert cells.folder("runs", drive=True) == wanted
  assert wanted.is_dir()
  assert colab.mounted == [str(tmp_path / "drive")]
  assert cells.folder("runs", drive=False) == tmp_path / "runs"
  assert len(colab.mounted) == 1
  # A folder made there before would be in the way of Drive.
  assert cells.folder(str(wanted), drive=False) == wanted
  assert len(colab.mounted) == 2


def test_what_is_given_on_drive_is_mounted(tmp_path, monkeypatch, colab):
  monkeypatch.setattr(cells, "DRIVE", tmp_path / "drive")
  scans = tmp_path / "drive" / "MyDrive" / "scans"
  (tmp_path / "here").mkdir()
  colab.drive.mount = lambda place: scans.mkdir(parents=True)
  assert cells.given("") is None
  assert cells.given(str(tmp_path / "here")) == tmp_path / "here"
  assert not scans.exists()
  assert cells.given(str(scans)) == scans


def test_what_is_given_must_be_there(tmp_path):
  with pytest.raises(UserError, match="scans: no such file or folder; .*MyDri"):
    cells.given(str(tmp_path / "scans"))


def test_a_finished_workdir_is_trained(tmp_path, capsys):
  assert not cells.is_trained(tmp_path)
  assert not capsys.readouterr().out
  workdir.finish(tmp_path, 3, {})
  assert cells.is_trained(tmp_path)
  assert "another FOLDER" in capsys.readouterr().out


# As for another command that fails.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_pip_that_fails_stops_the_notebook(shell, tmp_path, monkeypatch):
  pip = tmp_path / "bin" / "pip"
  pip.parent.mkdir()
  pip.write_text("#!/bin/sh\nexit 1\n")
  pip.chmod(0o755)
  monkeypatch.setenv("PATH", f"{pip.parent}{os.pathsep}{os.environ['PATH']}")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  book = nbformat.read(ROOT / "colab" / "benchmark.ipynb", as_version=4)
  source = next(cell.source for cell in book.cells if cell.id == "install")
  with pytest.raises(RuntimeError, match="cadjax is not installed"):
    shell.run_cell(source).raise_error()


def test_show_page_keeps_the_page_whole(tmp_path, monkeypatch):
  shown = []
  monkeypatch.setattr(cells, "display", shown.append)
  (tmp_path / "a.html").write_text('<p title="x">µ & more</p>', "utf-8")
  cells.show_page(tmp_path / "a.html", height=10)
  assert (
    'srcdoc="&lt;p title=&quot;x&quot;&gt;µ &amp; more&lt;/p&gt;"'
    in shown[0].data
  )


def test_upload_is_for_colab(tmp_path):
  with pytest.raises(UserError, match="Colab only"):
    cells.upload(tmp_path)


@pytest.mark.parametrize("inside", ["", "hospital"])
def test_upload_unpacks_zips(tmp_path, colab, inside):
  made = tmp_path / "made" / inside / "cad"
  made.mkdir(parents=True)
  (made / "a.nii.gz").write_bytes(b"scan")
  (tmp_path / "made" / "__MACOSX").mkdir()

  def choose(target):
    os.makedirs(target)
    shutil.make_archive(f"{target}/scans", "zip", tmp_path / "made")

  colab.files.upload = choose
  folder = cells.upload(tmp_path / "own")
  assert folder == tmp_path / "own" / inside
  assert (folder / "cad" / "a.nii.gz").read_bytes() == b"scan"
  assert not list(folder.glob("*.zip"))


def test_an_upload_takes_the_place_of_the_last(tmp_path, colab):
  def choose(target):
    os.makedirs(target)
    (tmp_path / "own" / "new.nii.gz").touch()

  colab.files.upload = choose
  (tmp_path / "own" / "hospital").mkdir(parents=True)
  folder = cells.upload(tmp_path / "own")
  assert [path.name for path in folder.iterdir()] == ["new.nii.gz"]


def put(folder, *names):
  """Makes empty files, and empty folders where a name ends in a slash."""
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if name.endswith("/") else path.touch()


def listed(table):
  """Returns the ids of the cases of a manifest, in order."""
  return [case.case_id for case in sources.find_cases("manifest", table)]


def test_manifest_of_two_folders(tmp_path):
  put(tmp_path, "normal/n.nii.gz", "cad/a/", "cad/b.nrrd", "cad/.DS_Store")
  cases = sources.find_cases("manifest", cells.manifest(tmp_path))
  found = [
    (case.case_id, case.patient_id, case.image, case.label) for case in cases
  ]
  assert found == [
    ("a", "a", tmp_path / "cad" / "a", 1),
    ("b", "b", tmp_path / "cad" / "b.nrrd", 1),
    ("n", "n", tmp_path / "normal" / "n.nii.gz", 0),
  ]


def test_a_manifest_that_is_there_stays(tmp_path):
  (tmp_path / "manifest.csv").write_text("mine")
  assert cells.manifest(tmp_path) == tmp_path / "manifest.csv"
  assert (tmp_path / "manifest.csv").read_text() == "mine"


def test_what_is_no_scan_is_no_patient(tmp_path):
  put(tmp_path, "normal/n.nii", "cad/b.mhd", "cad/b.raw", "cad/notes.txt")
  assert listed(cells.manifest(tmp_path)) == ["b", "n"]


@pytest.mark.parametrize(
  ("name", "content"),
  [("IM1.dcm", b""), ("IM1", b"\0" * 128 + b"DICM")],
)
def test_loose_slices_are_told(tmp_path, name, content):
  put(tmp_path, "normal/n.nii")
  (tmp_path / "cad").mkdir()
  (tmp_path / "cad" / name).write_bytes(content)
  with pytest.raises(UserError, match=f"cad/{name}: .*a folder of its own"):
    cells.manifest(tmp_path)


def test_the_manifest_goes_with_the_folders(tmp_path):
  put(tmp_path, "normal/001/", "cad/001/")
  assert listed(cells.manifest(tmp_path)) == ["cad_001", "normal_001"]
  put(tmp_path, "cad/002.nii.gz")
  (tmp_path / "cad" / "001").rename(tmp_path / "cad" / "003")
  assert listed(cells.manifest(tmp_path)) == ["001", "002", "003"]


def test_a_folder_without_scans_is_told(tmp_path):
  with pytest.raises(UserError, match="neither manifest.csv nor scans"):
    cells.manifest(tmp_path)
  with pytest.raises(UserError, match="gone: no such folder"):
    cells.manifest(tmp_path / "gone")
