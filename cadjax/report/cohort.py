"""One page for an evaluated split: metrics, curves, failures, the cases.

`python -m cadjax.evaluate` writes it beside what it shows, as index.html.
Everything on it is read from that folder, so it shows what was written.
"""

import base64
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cadjax.core import files
from cadjax.metrics.intervals import Interval
from cadjax.report import classified, linked, pages, tables
from data_prep.errors import UserError

PAGE = "index.html"
PICTURES = {
  "roc": "ROC curve",
  "pr": "Precision and recall",
  "calibration": "Calibration",
  "confusion": "Confusion matrix",
}
WORST, LIFT = "worst.png", pathlib.Path("explain", "lift.png")
MOST_FAILURES = 20


def write(
  folder: pathlib.Path, *, cases: str | pathlib.Path | None = None
) -> pathlib.Path:
  """Writes the page of an evaluation.

  Args:
    folder: where `cadjax.evaluate` wrote metrics.json and its figures.
    cases: where `cadjax.predict` wrote a folder for each scan, under the
      case_id; those that are there are linked.

  Returns:
    the path of the page.

  Raises:
    UserError: `cases` is not a folder.
  """
  result = files.read_json(folder / "metrics.json")
  classifies = result["task"] == "classify"
  case_pages = _pages(cases, folder)
  rows = files.read_rows(
    folder / f"{result['cases']}.jsonl", ("case_id", "patient_id")
  )
  explained = _explained(folder, result)
  named = {name: folder / f"{name}.png" for name in PICTURES}
  text = (
    pages.templates()
    .get_template("cohort.html")
    .render(
      r=result,
      columns=_columns(result),
      pictures={
        PICTURES[name]: _embedded(path)
        for name, path in named.items()
        if classifies and path.exists()
      },
      worst=_embedded(folder / WORST),
      lift=_embedded(folder / LIFT) if explained else None,
      maps=tables.page_tables(explained or {}),
      failures=failures(rows, result["threshold"]) if classifies else (),
      most=MOST_FAILURES,
      rows=case_lines(rows) if classifies else segmented_lines(rows),
      pages=case_pages,
      cell=_cell,
      perfect=result.get("perfectly_calibrated", {}),
      failed={
        name.replace("_", " "): count
        for name, count in result.get("failed", {}).items()
      },
    )
  )
  files.write_text(folder / PAGE, text)
  return folder / PAGE


def check_cases(cases: str | pathlib.Path | None) -> None:
  """Raises `UserError` if `cases` is given and is not a folder."""
  if cases is not None and not pathlib.Path(cases).is_dir():
    raise UserError(
      f"--cases={cases}: there is no such folder; python -m cadjax.predict"
      " writes one"
    )


def failures(
  rows: Sequence[Mapping[str, Any]], threshold: float
) -> list[dict[str, Any]]:
  """Returns the cases that were called wrong, the surest ones first.

  Args:
    rows: of a classifier's evaluation.
    threshold: of the probability of CAD.
  """
  wrong = [
    {
      "case_id": row["case_id"],
      "kind": "missed CAD" if row["label"] else "false alarm",
      "probability": row["probability"],
    }
    for row in rows
    if row["called"] != row["label"]
  ]
  return sorted(wrong, key=lambda row: -abs(row["probability"] - threshold))


def case_lines(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
  """Returns what the page says of each case that a classifier scored."""
  words = {0: "normal", 1: "CAD"}
  return [
    {
      "case": row["case_id"],
      "is": words[row["label"]],
      "called": words[row["called"]],
      "probability": f"{row['probability']:.3f}",
    }
    for row in rows
  ]


def segmented_lines(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
  """Returns the Dice of every class of each case that was segmented."""
  lines: dict[str, dict[str, str]] = {}
  for row in rows:
    line = lines.setdefault(row["case_id"], {"case": row["case_id"]})
    dice = row["dice"]
    line[f"Dice {row['class'].replace('_', ' ')}"] = (
      "undefined" if dice is None else f"{dice:.3f}"
    )
  return list(lines.values())


def _columns(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
  """Returns the metrics by the heading of their column."""
  if result["task"] == "segment":
    return {
      name.replace("_", " "): entries
      for name, entries in result["patient"].items()
    }
  columns = {f"by patient ({result['n_patients']})": result["patient"]}
  if "slice" in result:
    columns[f"by slice ({result['slice_setting']['n_slices']})"] = result[
      "slice"
    ]
  # Of older evaluations, whose interval left out the truth.
  return {
    heading: {name: x for name, x in entries.items() if name != "ece"}
    for heading, entries in columns.items()
  }


def _cell(entry: Mapping[str, Any] | None) -> str:
  return "undefined" if entry is None else Interval.from_dict(entry).text()


def _pages(
  cases: str | pathlib.Path | None, folder: pathlib.Path
) -> dict[str, str]:
  """Returns the link to each case's page, from the folder."""
  check_cases(cases)
  found = {}
  for name in (classified.FILES["page"], linked.FILES["page"]):
    for page in pathlib.Path(cases).glob(f"*/{name}") if cases else ():
      link = os.path.relpath(page.resolve(), folder.resolve())
      found[page.parent.name] = pathlib.PurePath(link).as_posix()
  return found


def _explained(
  folder: pathlib.Path, result: Mapping[str, Any]
) -> dict[str, Any] | None:
  """Returns what was measured of the maps, if of this checkpoint."""
  path = folder / LIFT.parent / "metrics.json"
  if not path.exists():
    return None
  found = files.read_json(path)
  return found if found["step"] == result["step"] else None


def _embedded(path: pathlib.Path) -> str | None:
  """Returns a picture as base64, None where it was not written."""
  return base64.b64encode(path.read_bytes()).decode() if path.exists() else None
