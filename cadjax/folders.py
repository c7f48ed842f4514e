"""The folder of one result: written whole or not at all, over nobody's files.

A result is a folder with a JSON document that names its schema and, under
"files", all the files that belong to it.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator

from data_prep.errors import UserError


@dataclasses.dataclass(frozen=True)
class Kind:
  """A kind of result.

  Attributes:
    document: the name of its JSON file.
    schema: the beginning of the document's "schema".
  """

  document: str
  schema: str

  def check_free(self, folder: str | os.PathLike, *, overwrite: bool) -> None:
    """Raises `UserError` unless a result may be written to a folder.

    An earlier result of this kind is replaced only where the folder holds its
    files and nothing else: nobody's own files are ever deleted.
    """
    folder = pathlib.Path(folder)
    if not folder.exists():
      return
    if not folder.is_dir():
      raise UserError(f"{folder}: is a file; --out must be a folder")
    there = {path.name for path in folder.iterdir()}
    if not there:
      return
    own = self._files(folder)
    if not own:
      raise UserError(
        f"{folder}: is not empty and holds no result; choose another --out"
      )
    if not overwrite:
      raise UserError(f"{folder}: holds a result; --overwrite replaces it")
    if there - own:
      raise UserError(
        f"{folder}: holds {min(there - own)} beside a result; move it away or"
        " choose another --out"
      )

  @contextlib.contextmanager
  def writing(
    self, folder: str | os.PathLike, *, overwrite: bool
  ) -> Iterator[pathlib.Path]:
    """Gives a folder to write into, which becomes `folder` at the end.

    Args:
      folder: is made; refused if it holds anything already.
      overwrite: replace an earlier result there.

    Raises:
      UserError: the folder is in the way or cannot be written.
    """
    folder = pathlib.Path(os.path.abspath(folder))
    self.check_free(folder, overwrite=overwrite)
    try:
      folder.parent.mkdir(parents=True, exist_ok=True)
      with tempfile.TemporaryDirectory(
        dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"
      ) as temporary:
        made = pathlib.Path(temporary) / "case"
        made.mkdir()
        yield made
        if folder.exists():
          # Into the temporary folder, which then goes with all it holds.
          folder.rename(pathlib.Path(temporary) / "replaced")
        made.rename(folder)
    except OSError as error:
      raise UserError(f"{folder}: cannot be written ({error})") from error

  def _files(self, folder: pathlib.Path) -> set[str]:
    """Returns the names that an earlier result claims; empty without one."""
    try:
      document = json.loads((folder / self.document).read_text("utf-8"))
      if document["schema"].startswith(self.schema):
        return set(document["files"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
      return set()
    return set()
