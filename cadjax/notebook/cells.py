"""The few things that a notebook needs beside the programs.

Only notebooks import this: it needs IPython, which they bring.
"""

import html
import os
import pathlib
import shutil
import subprocess
import sys

import IPython
from IPython.display import HTML, Image, display

from cadjax.training import workdir
from data_prep import manifests, splits
from data_prep.errors import UserError

DRIVE = pathlib.Path("/content/drive")
LABELS = tuple(splits.label_name(label) for label in (0, 1))
# Not manifest.csv, which is the user's: this one is written again each time.
OWN_MANIFEST = "manifest_of_folders.csv"


def setup() -> None:
  """Makes `!command` fail loudly in this notebook, and `!python` its own.

  IPython goes on after a `!command` that failed; from here on it raises
  `subprocess.CalledProcessError`.
  """
  shell = IPython.get_ipython()

  def system(command: str) -> None:
    # Of the class, not of `shell`: a cell that is run again adds no layer.
    type(shell).system(shell, command)
    if code := shell.user_ns["_exit_code"]:
      raise subprocess.CalledProcessError(code, command)

  shell.system = system
  if sys.prefix != sys.base_prefix:
    # A virtual environment that nobody may have activated.
    own = str(pathlib.Path(sys.prefix, "bin"))
    if own not in os.environ["PATH"].split(os.pathsep):
      os.environ["PATH"] = own + os.pathsep + os.environ["PATH"]


def folder(name: str, *, drive: bool) -> pathlib.Path:
  """Makes a folder that outlives the runtime where it can.

  Args:
    name: below your Drive, or below the current folder outside of Colab; a path
      below /content/drive is on Drive in any case.
    drive: keep it on Drive in Colab; asks for permission the first time.

  Returns:
    Its absolute path.
  """
  path = pathlib.Path(name)
  if drive and "google.colab" in sys.modules:
    path = DRIVE / "MyDrive" / name
  _mount(path)
  path.mkdir(parents=True, exist_ok=True)
  return path.absolute()


def given(path: str) -> pathlib.Path | None:
  """Returns the file or folder that a parameter names, None for "".

  Mounts Drive for a path that lies there.

  Raises:
    UserError: it is not there.
  """
  if not path:
    return None
  found = pathlib.Path(path)
  _mount(found)
  if not found.exists():
    raise UserError(
      f"{path}: no such file or folder; in Colab, paths on Drive begin with"
      f" {DRIVE / 'MyDrive'}"
    )
  return found


def _mount(path: pathlib.Path) -> None:
  """Mounts Drive in Colab if the path lies there."""
  if "google.colab" in sys.modules and path.is_relative_to(DRIVE):
    from google.colab import drive

    drive.mount(str(DRIVE))


def is_trained(path: str | os.PathLike) -> bool:
  """Tells whether a workdir was trained to its end, and says so if it was.

  Another device asks for other flags, which cadjax.main refuses of a workdir
  that was begun: what is finished need not meet them.
  """
  trained = workdir.is_finished(pathlib.Path(path))
  if trained:
    print(
      f"{path}: trained already, with the parameters of that time; give another"
      " FOLDER to train again"
    )
  return trained


def show(*paths: str | os.PathLike, width: int | None = None) -> None:
  """Shows pictures below the cell.

  Args:
    *paths: PNG files.
    width: in pixels; their own if left out.
  """
  display(*(Image(filename=os.fspath(path), width=width) for path in paths))


def show_page(path: str | os.PathLike, *, height: int = 900) -> None:
  """Shows an HTML file below the cell, in a frame of its own.

  Args:
    path: a page that needs no other file, such as report.html.
    height: of the frame in pixels.
  """
  page = html.escape(pathlib.Path(path).read_text("utf-8"))
  frame = f'<iframe srcdoc="{page}" width="100%" height="{height}"></iframe>'
  # In a div: of a bare frame IPython warns, and its own takes no page.
  display(HTML(f"<div>{frame}</div>"))


def upload(path: str | os.PathLike) -> pathlib.Path:
  """Asks for files, in Colab, and unpacks those that are .zip.

  Args:
    path: the folder that gets them; what was in it before goes.

  Returns:
    the folder, or the only one in it if all came in one.

  Raises:
    UserError: this is not Colab.
  """
  if "google.colab" not in sys.modules:
    raise UserError("files are uploaded in Colab only; here, name their folder")
  from google.colab import files

  path = pathlib.Path(path)
  if path.exists():
    shutil.rmtree(path)
  files.upload(os.fspath(path))
  for archive in path.glob("*.zip"):
    shutil.unpack_archive(archive, path)
    archive.unlink()
  found = _visible(path)
  alone = len(found) == 1 and found[0].is_dir() and found[0].name not in LABELS
  return found[0] if alone else path


def manifest(path: str | os.PathLike) -> pathlib.Path:
  """Returns the manifest of a folder of scans; writes it where it has none.

  For scans sorted into the folders `normal` and `cad`, each a file or a folder
  of DICOM slices. Every scan counts as a patient of its own; see
  `data_prep.manifests.find`.

  Args:
    path: the folder.

  Raises:
    UserError: there is no such folder, no scan with a label, or DICOM slices
      without a folder of their own.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    raise UserError(f"{path}: no such folder")
  if (path / manifests.NAME).exists():
    return path / manifests.NAME
  rows = [row for row in manifests.find(path).rows if row["label"]]
  if not rows:
    raise UserError(
      f"{path}: has neither {manifests.NAME} nor scans in the folders"
      f" {' and '.join(LABELS)}"
    )
  table = path / OWN_MANIFEST
  manifests.write(rows, table)
  return table


def _visible(path: pathlib.Path) -> list[pathlib.Path]:
  """Returns what is in a folder, without what macOS hides there."""
  if not path.is_dir():
    return []
  hidden = (".", "__MACOSX")
  return sorted(p for p in path.iterdir() if not p.name.startswith(hidden))
