"""What notebooks need beside the programs."""

import os
import shutil
import subprocess
import sys
import types

import IPython
import pytest
import traitlets.config
from IPython.core.interactiveshell import InteractiveShell

from cadjax import notebook
from data_prep import sources
from data_prep.errors import UserError


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
  notebook.setup()
  notebook.setup()
  with pytest.raises(subprocess.CalledProcessError) as raised:
    shell.system("exit 3")
  assert raised.value.returncode == 3
  assert shell.system("true") is None


def test_python_is_that_of_the_notebook(shell, tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "prefix", str(tmp_path))
  notebook.setup()
  notebook.setup()
  places = os.environ["PATH"].split(os.pathsep)
  assert places[0] == str(tmp_path / "bin")
  assert places.count(places[0]) == 1


def test_folder_is_local_outside_of_colab(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert notebook.folder("a/b", drive=True) == tmp_path / "a" / "b"
  assert (tmp_path / "a" / "b").is_dir()


def test_folder_is_on_drive_in_colab(tmp_path, monkeypatch, colab):
  monkeypatch.setattr(notebook, "DRIVE", tmp_path / "drive")
  monkeypatch.chdir(tmp_path)
  wanted = tmp_path / "drive" / "MyDrive" / "runs"
  assert notebook.folder("runs", drive=True) == wanted
  assert wanted.is_dir()
  assert colab.mounted == [str(tmp_path / "drive")]
  assert notebook.folder("runs", drive=False) == tmp_path / "runs"
  assert len(colab.mounted) == 1


def test_show_page_keeps_the_page_whole(tmp_path, monkeypatch):
  shown = []
  monkeypatch.setattr(notebook, "display", shown.append)
  (tmp_path / "a.html").write_text('<p title="x">µ & more</p>', "utf-8")
  notebook.show_page(tmp_path / "a.html", height=10)
  assert (
    'srcdoc="&lt;p title=&quot;x&quot;&gt;µ &amp; more&lt;/p&gt;"'
    in shown[0].data
  )


def test_upload_is_for_colab(tmp_path):
  with pytest.raises(UserError, match="Colab only"):
    notebook.upload(tmp_path)


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
  folder = notebook.upload(tmp_path / "own")
  assert folder == tmp_path / "own" / inside
  assert (folder / "cad" / "a.nii.gz").read_bytes() == b"scan"
  assert not list(folder.glob("*.zip"))


def test_manifest_of_two_folders(tmp_path):
  for name in ("normal/n.nii.gz", "cad/b.nrrd", "cad/.DS_Store"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  (tmp_path / "cad" / "a").mkdir()  # Of DICOM slices.
  notebook.write_manifest(tmp_path)
  cases = sources.find_cases("manifest", tmp_path)
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
  notebook.write_manifest(tmp_path)
  assert (tmp_path / "manifest.csv").read_text() == "mine"


def test_a_folder_without_scans_is_told(tmp_path):
  with pytest.raises(UserError, match="neither manifest.csv nor scans"):
    notebook.write_manifest(tmp_path)
