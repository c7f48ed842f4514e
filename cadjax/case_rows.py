"""Rows of cases to files: on disk before anything is averaged."""

import csv
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cadjax import results


def write_rows(
  folder: pathlib.Path, name: str, rows: Sequence[Mapping[str, Any]]
) -> None:
  """Writes NAME.jsonl (all) and NAME.csv (all but the lists), each whole."""
  lines = [json.dumps(results.strict(row), allow_nan=False) for row in rows]
  write_text(folder / f"{name}.jsonl", "".join(f"{x}\n" for x in lines))
  flat = [
    {k: v for k, v in row.items() if not isinstance(v, list)} for row in rows
  ]
  text = io.StringIO()
  writer = csv.DictWriter(text, list(flat[0]) if flat else ["case_id"])
  writer.writeheader()
  writer.writerows(flat)
  write_text(folder / f"{name}.csv", text.getvalue())


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes text to a temporary name and renames it."""
  temporary = path.with_name(path.name + ".tmp")
  with temporary.open("w", newline="") as f:
    f.write(text)
  temporary.replace(path)
