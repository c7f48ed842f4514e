"""The few things that a notebook needs beside the programs.

Only notebooks import this: it needs IPython, which they bring.
"""

import csv
import html
import os
import pathlib
import shutil
import subprocess
import sys

import IPython
from IPython.display import HTML, Image, display

from cadjax import inputs
from data_prep import splits
from data_prep.errors import UserError

DRIVE = pathlib.Path("/content/drive")
LABELS = tuple(splits.label_name(label) for label in (0, 1))


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
    name: below your Drive, or below the current folder outside of Colab.
    drive: mount Drive in Colab; asks for permission the first time.

  Returns:
    Its absolute path.
  """
  path = pathlib.Path(name)
  if drive and "google.colab" in sys.modules:
    from google.colab import drive as google_drive

    google_drive.mount(str(DRIVE))
    path = DRIVE / "MyDrive" / name
  path.mkdir(parents=True, exist_ok=True)
  return path.absolute()


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
    path: the folder that gets them.

  Returns:
    the folder, or the only one in it if all came in one.

  Raises:
    UserError: this is not Colab.
  """
  if "google.colab" not in sys.modules:
    raise UserError("files are uploaded in Colab only; here, name their folder")
  from google.colab import files

  path = pathlib.Path(path)
  files.upload(os.fspath(path))
  for archive in path.glob("*.zip"):
    shutil.unpack_archive(archive, path)
    archive.unlink()
  found = _visible(path)
  alone = len(found) == 1 and found[0].is_dir() and found[0].name not in LABELS
  return found[0] if alone else path


def write_manifest(path: str | os.PathLike) -> None:
  """Writes the manifest.csv of a folder where it has none.

  For scans sorted into the folders `normal` and `cad`, each a file or a folder
  of DICOM slices. Every scan counts as a patient of its own.

  Args:
    path: the folder.

  Raises:
    UserError: there is no such scan.
  """
  path = pathlib.Path(path)
  table = path / "manifest.csv"
  if table.exists():
    return
  rows = [("case_id", "patient_id", "image", "label")]
  for label in LABELS:
    for scan in _visible(path / label):
      case = inputs.case_name(scan)
      rows.append((case, case, f"{label}/{scan.name}", label))
  if len(rows) == 1:
    raise UserError(
      f"{path}: has neither manifest.csv nor scans in the folders"
      f" {' and '.join(LABELS)}"
    )
  with table.open("w", newline="") as file:
    csv.writer(file).writerows(rows)


def _visible(path: pathlib.Path) -> list[pathlib.Path]:
  """Returns what is in a folder, without what macOS hides there."""
  if not path.is_dir():
    return []
  hidden = (".", "__MACOSX")
  return sorted(p for p in path.iterdir() if not p.name.startswith(hidden))
