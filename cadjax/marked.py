"""Tables that a program writes into a README, between two marks."""

import pathlib

from cadjax import case_rows
from data_prep.errors import UserError


def marks(name: str) -> tuple[str, str]:
  """Returns the marks around the table of that name."""
  return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def split(readme: pathlib.Path, name: str) -> tuple[str, str]:
  """Returns what stands before and after the table of that name.

  Raises:
    UserError: there is no such file, or the marks are missing.
  """
  begin, end = marks(name)
  try:
    content = readme.read_text()
  except OSError as error:
    raise UserError(f"--table={readme}: cannot be read ({error})") from error
  before, found, rest = content.partition(begin)
  _, closed, after = rest.partition(end)
  if not found or not closed:
    raise UserError(f"{readme}: the marks {begin} and {end} are missing")
  return before, after


def replace(readme: pathlib.Path, name: str, table: str) -> None:
  """Writes a table between its marks and leaves the rest; see `split`."""
  begin, end = marks(name)
  before, after = split(readme, name)
  case_rows.write_text(readme, f"{before}{begin}\n{table}\n{end}{after}")
