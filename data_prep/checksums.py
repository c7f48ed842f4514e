"""Checksums of the files of a folder, kept in it as checksums.json.

A flipped bit in weights or in a config is another model, and nothing else in
the file would say so. The file lists the SHA-256 of every file it covers and
ends with its own; other files of the folder may come and go.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from data_prep.errors import UserError

NAME = "checksums.json"
_OWN = "sha256"  # Of the rest of the file, as canonical JSON.


def of_file(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a file, in hexadecimal."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def of_json(value: Any) -> str:
  """Returns the SHA-256 of a JSON value, in whatever layout it is stored."""
  text = json.dumps(value, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(text.encode()).hexdigest()


def write(
  folder: pathlib.Path, names: Iterable[str] | None = None, **more: Any
) -> None:
  """Writes checksums.json, whole or not at all.

  Args:
    folder: with files that are complete.
    names: of the files, relative to the folder; None for all at any depth.
    more: what else the file is to hold; JSON values.
  """
  if names is None:
    names = [
      path.relative_to(folder).as_posix()
      for path in folder.rglob("*")
      if path.is_file() and path.name != NAME
    ]
  listed = {name: of_file(folder / name) for name in sorted(names)}
  value = {"files": listed, **more}
  value[_OWN] = of_json(value)
  temporary = folder / f"{NAME}.tmp"
  temporary.write_text(json.dumps(value, indent=1) + "\n")
  os.replace(temporary, folder / NAME)


def check(folder: pathlib.Path) -> dict[str, Any] | None:
  """Compares the files of a folder with its checksums.json.

  Returns:
    what `write` wrote; None where the folder has no checksums.json.

  Raises:
    UserError: a file has changed, is missing or cannot be read; the message
      names it.
  """
  path = folder / NAME
  if not path.exists():
    return None
  try:
    value = json.loads(path.read_text("utf-8"))
    own = value.pop(_OWN)
    whole = own == of_json(value) and isinstance(value["files"], dict)
  except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
    raise UserError(f"{path} is damaged: it cannot be read") from error
  if not whole:
    raise UserError(f"{path} is damaged: it has changed since it was written")
  for name, expected in value["files"].items():
    try:
      found = of_file(folder / name)
    except FileNotFoundError as error:
      raise UserError(f"{folder / name} is missing") from error
    except OSError as error:
      reason = error.strerror or error
      raise UserError(f"{folder / name} cannot be read: {reason}") from error
    if found != expected:
      raise UserError(
        f"{folder / name} is damaged: it has changed since it was written"
      )
  return value
