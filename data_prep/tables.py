"""Small tables as users keep them: csv, tsv and xlsx."""

import csv
import io
import pathlib
import re
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from data_prep import streams
from data_prep.errors import UserError

T = TypeVar("T")

# Some hundred thousand rows, and the columns of a sheet.
_LARGEST_XML = 32 << 20
_MOST_COLUMNS = 16384
_CELL = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


class TableError(UserError):
  """A table is not there, is empty or lacks a column."""


def read_table(
  path: pathlib.Path, required: Sequence[str] = ()
) -> list[dict[str, str]]:
  """Reads a table whose first row names the columns.

  Args:
    path: .xlsx (its first sheet) or text with commas, semicolons or tabs.
    required: columns that must be there, as `column_name` writes them.

  Returns:
    One dict per row that is not empty; names by `column_name`, values
    stripped, "" where a cell is empty.

  Raises:
    TableError: the file is missing, empty or lacks a column.
    UserError: it is unreadable.
  """
  if not streams.is_file(path):
    raise TableError(f"{path}: no such file")
  rows = _read_xlsx(path) if path.suffix.lower() == ".xlsx" else _read_csv(path)
  rows = [[cell.strip() for cell in row] for row in rows if any(row)]
  if not rows:
    raise TableError(f"{path}: the table is empty")
  names = [column_name(cell) for cell in rows[0]]
  missing = [name for name in required if name not in names]
  if missing:
    # What is no table at all may have names of any length.
    shown = ", ".join(names)
    shown = shown if len(shown) <= 300 else f"{shown[:300]} ..."
    raise TableError(
      f"{path}: lacks the column(s) {', '.join(missing)}; it has {shown}"
    )
  return [
    dict(zip(names, row + [""] * (len(names) - len(row)), strict=False))
    for row in rows[1:]
    if any(row)
  ]


def by_id(pairs: Iterable[tuple[str, T]], table: pathlib.Path) -> dict[str, T]:
  """Returns id -> value of (id, value) pairs; equal pairs may repeat.

  Args:
    pairs: of the rows of a table.
    table: for the message.

  Raises:
    UserError: one id with two values.
  """
  found: dict[str, T] = {}
  for name, value in pairs:
    if found.setdefault(name, value) != value:
      raise UserError(
        f"{table}: gives case {name} twice, with {found[name]} and with"
        f" {value}; remove the wrong row"
      )
  return found


def column_name(cell: str) -> str:
  """Returns a header in lower case with single underscores: "Scan ID"."""
  return re.sub(r"[\s_-]+", "_", cell.strip().lower())


def _read_csv(path: pathlib.Path) -> list[list[str]]:
  try:
    # utf-8-sig: spreadsheets put a byte order mark in front.
    text = path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError:
    text = path.read_text(encoding="latin-1")
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from error
  header = text.partition("\n")[0]
  delimiter = max(",;\t", key=header.count)
  try:
    return list(csv.reader(io.StringIO(text), delimiter=delimiter))
  except csv.Error as error:
    raise UserError(f"{path}: not a table: {error}") from error


def _read_xlsx(path: pathlib.Path) -> list[list[str]]:
  try:
    with zipfile.ZipFile(path) as archive:
      shared = []
      if "xl/sharedStrings.xml" in archive.namelist():
        root = _xml(archive, "xl/sharedStrings.xml")
        shared = [_text(item) for item in root.iter(f"{_CELL}si")]
      sheet = _xml(archive, "xl/worksheets/sheet1.xml")
    return [_xlsx_row(row, shared) for row in sheet.iter(f"{_CELL}row")]
  except (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    LookupError,
    ValueError,
    # Also NotImplementedError, of ways to compress, and of encryption.
    RuntimeError,
    ElementTree.ParseError,
  ) as error:
    raise UserError(f"{path}: unreadable; save the table as csv") from error


def _xml(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
  """Reads a part of a workbook; ValueError if it claims to be huge."""
  size = archive.getinfo(name).file_size
  if size > _LARGEST_XML:
    raise ValueError(f"{name}: {size} bytes")
  return ElementTree.fromstring(archive.read(name))


def _xlsx_row(row: ElementTree.Element, shared: list[str]) -> list[str]:
  cells: list[str] = []
  for cell in row.iter(f"{_CELL}c"):
    # Empty cells are not stored: the reference ("C7") says which column.
    letters = re.match("[A-Z]*", cell.get("r", "")).group()
    column = 0
    for letter in letters:
      column = column * 26 + ord(letter) - 64
    if column > _MOST_COLUMNS:
      raise ValueError(f"column {letters}")
    cells += [""] * (column - 1 - len(cells))
    if cell.get("t") == "inlineStr":
      cells.append(_text(cell))
      continue
    value = cell.findtext(f"{_CELL}v") or ""
    if cell.get("t") == "s":
      if int(value) < 0:
        raise ValueError(f"string {value}")
      value = shared[int(value)]
    elif re.fullmatch(r"\d+\.0+", value):
      value = value.partition(".")[0]
    cells.append(value)
  return cells


def _text(element: ElementTree.Element) -> str:
  return "".join(part.text or "" for part in element.iter(f"{_CELL}t"))
