"""Files that a run writes and reads: JSON, rows, tables, result folders.

`Journal` keeps what a long run has done, so that the same command goes on.
"""

import contextlib
import csv
import dataclasses
import fcntl
import io
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from data_prep import streams
from data_prep.errors import UserError

# One line of a table: column to value.
Row = dict[str, Any]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class ResultFolder:
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


def write_rows(folder: pathlib.Path, name: str, rows: Sequence[Any]) -> None:
  """Writes NAME.jsonl (all) and NAME.csv (all but the lists), each whole.

  Args:
    folder: where to write.
    name: of the files, without suffix.
    rows: mappings or dataclasses, all with the same columns.
  """
  rows = [_mapping(row) for row in rows]
  lines = [json.dumps(strict(row), allow_nan=False) for row in rows]
  write_text(folder / f"{name}.jsonl", "".join(f"{x}\n" for x in lines))
  flat = [
    {k: v for k, v in row.items() if not isinstance(v, list)} for row in rows
  ]
  text = io.StringIO()
  writer = csv.DictWriter(text, list(flat[0]) if flat else ["case_id"])
  writer.writeheader()
  writer.writerows(flat)
  write_text(folder / f"{name}.csv", text.getvalue())


class Journal:
  """What a long run has done so far, in a file that grows line by line.

  The first line says what is computed; a run that computes something else is
  refused, since its rows would be mixed with those that are there. A line that
  was cut off, as by a power failure, counts as not done. The file is locked:
  one process writes it.

  Attributes:
    done: key -> what was added under it, as it is read from JSON.
  """

  NAME = "unfinished.jsonl"

  def __init__(self, folder: pathlib.Path, about: Mapping[str, Any]):
    """Opens a journal or begins one.

    Args:
      folder: of the results; it exists.
      about: whatever decides the results, as JSON: inputs, models, versions.

    Raises:
      UserError: the file cannot be read, is of another run, or another process
        writes it.
    """
    self._path = path = folder / self.NAME
    self.done: dict[str, Any] = {}
    about = strict(about)
    try:
      self._file = path.open("a+", newline="")
    except OSError as error:
      raise UserError(f"{path}: cannot be written ({error})") from error
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      self.close()
      raise UserError(f"{path}: another process writes it") from error
    except OSError as error:
      self.close()
      raise UserError(f"{path}: cannot be locked ({error})") from error
    try:
      self._file.seek(0)
      # What follows the last line feed is a line that was cut off.
      *lines, rest = self._file.read().split("\n")
      known = [json.loads(line) for line in lines]
      if not known and rest[:1] not in ("", "{"):
        raise ValueError("it is not a journal")
      if known:
        self._check(known[0], about)
      self.done = {one["key"]: one["value"] for one in known[1:]}
    except (ValueError, KeyError, TypeError) as error:
      self.close()
      raise UserError(f"{path}: cannot be read ({error}); delete it") from error
    except UserError:
      self.close()
      raise
    if rest:
      self._file.truncate(sum(len(f"{line}\n".encode()) for line in lines))
    if not known:
      self._write(about)

  def add(self, key: str, value: Any) -> None:
    """Adds what was done: anything of numbers, texts, lists and dataclasses."""
    line = self._write({"key": key, "value": value})
    self.done[key] = json.loads(line)["value"]

  def __enter__(self) -> "Journal":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    """Lets other processes have the file."""
    self._file.close()

  def remove(self) -> None:
    """Deletes the file: the run is complete."""
    self._path.unlink(missing_ok=True)
    self.close()

  def _write(self, value: Any) -> str:
    # NaN stays what it is, so that a run that goes on sees what it had.
    line = json.dumps(value, default=_plain)
    self._file.write(f"{line}\n")
    self._file.flush()
    return line

  def _check(self, there: Any, about: Mapping[str, Any]) -> None:
    """Raises `UserError` unless the file is of the same run."""
    if not isinstance(there, dict):
      raise TypeError("it is not a journal")
    changed = [
      f"{name} (then {_short(there.get(name))}, now {_short(about.get(name))})"
      for name in sorted({*there, *about})
      if there.get(name) != about.get(name)
    ]
    if changed:
      raise UserError(
        f"{self._path}: is of an unfinished run with other"
        f" {', '.join(changed)}; repeat that command, choose another --out, or"
        " delete the file"
      )


def _plain(value: Any) -> Any:
  """Returns a dataclass or a number of NumPy as `json` knows them."""
  if isinstance(value, np.generic):
    return value.item()
  found = _mapping(value)
  if found is value:
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
  return found


def _short(value: Any) -> str:
  """Returns a value as text of a readable length."""
  text = json.dumps(value, sort_keys=True)
  return text if len(text) <= 60 else f"{text[:57]}..."


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes text to a temporary name and renames it."""
  temporary = path.with_name(path.name + ".tmp")
  with temporary.open("w", newline="") as f:
    f.write(text)
  temporary.replace(path)


def table_marks(name: str) -> tuple[str, str]:
  """Returns the marks around the table of that name."""
  return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def split_at_table(readme: pathlib.Path, name: str) -> tuple[str, str]:
  """Returns the text before and after the table of that name.

  Raises:
    UserError: there is no such file, or the marks are missing.
  """
  begin, end = table_marks(name)
  try:
    content = readme.read_text()
  except OSError as error:
    raise UserError(f"--table={readme}: cannot be read ({error})") from error
  before, found, rest = content.partition(begin)
  _, closed, after = rest.partition(end)
  if not found or not closed:
    raise UserError(f"{readme}: the marks {begin} and {end} are missing")
  return before, after


def replace_table(readme: pathlib.Path, name: str, table: str) -> None:
  """Writes a table between its marks and leaves the rest; see `split`."""
  begin, end = table_marks(name)
  before, after = split_at_table(readme, name)
  write_text(readme, f"{before}{begin}\n{table}\n{end}{after}")


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON to a temporary name and renames it."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(json.dumps(value, indent=2) + "\n")
  temporary.replace(path)


def read_rows(path: pathlib.Path, keys: Sequence[str]) -> list[Row]:
  """Reads a .jsonl of rows; UserError if it cannot be or lacks a key."""
  try:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
  except (OSError, json.JSONDecodeError) as error:
    raise UserError(f"{path} cannot be read: {error}") from error
  if not all(set(keys) <= row.keys() for row in rows):
    raise UserError(f"{path} is not what cadjax.evaluate writes; run it again")
  return rows


def read_rows_as(path: pathlib.Path, kind: type[T]) -> list[T]:
  """Reads the rows of a dataclass that `write_rows` wrote; see `read_rows`."""
  names = [field.name for field in dataclasses.fields(kind)]
  return [
    kind(**{name: row[name] for name in names})
    for row in read_rows(path, names)
  ]


def strict(value: Any) -> Any:
  """Returns `value` as strict JSON.

  Dataclasses become mappings of their fields, at every depth; NaN and
  infinity become None.
  """
  value = _mapping(value)
  if isinstance(value, Mapping):
    return {str(key): strict(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [strict(item) for item in value]
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def _mapping(value: Any) -> Any:
  """Returns {field: value} of a dataclass, and anything else as it is."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return {x.name: getattr(value, x.name) for x in dataclasses.fields(value)}
  return value


def read_json(path: pathlib.Path) -> Any:
  """Reads a JSON file; UserError if it is not one."""
  if path.exists() and not streams.is_file(path):
    raise UserError(f"{path} is not a regular file")
  try:
    return json.loads(path.read_text())
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise UserError(f"{path} is not valid JSON: {error}") from error
