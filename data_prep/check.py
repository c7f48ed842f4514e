"""Tells which cases are usable: `cadjax check --source=...`.

Reads every case and builds nothing. With --write_manifest it first writes the
manifest.csv of a folder of your own scans, which need no --source. The exit
code is 0 if a build would go
through, and 2 if a case or the whole set stands in its way.
"""

import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm
from absl import flags

from data_prep import (
  case_flags,
  errors,
  geometry,
  manifests,
  sources,
  splits,
  workers,
)
from data_prep.ctca import records
from data_prep.errors import UserError
from data_prep.volume import Volume

COLUMNS = ("case", "usable", "label", "shape", "spacing mm", "HU", "mask")


def check_case(case: sources.Case) -> dict[str, Any]:
  """Reads a case and reports on it.

  Returns:
    A JSON-able dict: case_id, patient_id, label, split, image, usable,
    problems (each makes the case unusable), notes (do not); where the scan
    could be read shape, spacing_mm and hu (lowest and highest), and where a
    mask could, mask (names of the classes in it).
  """
  report: dict[str, Any] = {
    "case_id": case.case_id,
    "patient_id": case.patient_id,
    "label": case.label,
    "split": case.split,
    "image": str(case.image),
    "problems": sources.problems(case),
    "notes": [],
  }
  if case.image is not None and os.path.exists(case.image):
    try:
      volume = records.read_scan(case)
      report |= _describe(case, volume)
      report |= _describe_mask(case, volume)
    except UserError as error:
      # A missing mask is reported once, by `sources.problems`.
      if not report["problems"]:
        report["problems"].append(errors.one_line(error))
  report["usable"] = not report["problems"]
  return report


def _describe(case: sources.Case, volume: Volume) -> dict[str, Any]:
  notes = records.remarks(case, volume)
  if "voxels" not in case.extra:
    try:
      geometry.find_heart(volume)
    except UserError as error:
      notes.append(f"not for --grid=heart: {errors.one_line(error)}")
  return {
    "shape": list(volume.shape),
    "spacing_mm": [round(s, 4) for s in volume.spacing],
    "hu": [int(volume.hu.min()), int(volume.hu.max())],
    "notes": notes,
  }


def _describe_mask(case: sources.Case, volume: Volume) -> dict[str, Any]:
  mask, _ = records.read_classes(case, volume)
  if mask is None:
    return {}
  present = np.flatnonzero(np.bincount(mask.hu.ravel()))
  return {"mask": [sources.CLASS_NAMES[i] for i in present if i]}


def check(
  cases: Sequence[sources.Case], *, num_workers: int
) -> list[dict[str, Any]]:
  """Reports on every case, in order; see `check_case`."""
  results = workers.ordered_map(check_case, cases, workers=num_workers)
  return list(tqdm.tqdm(results, total=len(cases), unit="case"))


def table(reports: Sequence[dict[str, Any]]) -> str:
  """Returns the reports as aligned columns, then what there is to say."""
  rows = [COLUMNS, *map(_row, reports)]
  rows = [tuple(map(errors.one_line, row)) for row in rows]
  widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
  lines = [
    "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    for row in rows
  ]
  for kind in ("notes", "problems"):
    for report in reports:
      for text in report[kind]:
        line = f"{kind[:-1]}: {report['case_id']}: {text}"
        lines.append(errors.one_line(line))
  usable = sum(report["usable"] for report in reports)
  lines.append(f"{usable} of {len(reports)} cases are usable")
  return "\n".join(line.rstrip() for line in lines)


def _row(report: dict[str, Any]) -> tuple[str, ...]:
  label = report["label"]
  return (
    report["case_id"],
    "yes" if report["usable"] else "NO",
    splits.label_name(-1 if label is None else label),
    "x".join(map(str, report.get("shape", "-"))),
    "x".join(f"{s:.3g}" for s in report.get("spacing_mm", [])) or "-",
    " to ".join(map(str, report.get("hu", "-"))),
    ", ".join(report.get("mask", [])) or "-",
  )


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  case_flags.define(values)
  flags.DEFINE_bool(
    "write_manifest",
    False,
    "First write manifest.csv for the scans in --input, which has none.",
    flag_values=values,
  )
  flags.DEFINE_string(
    "json", None, "File for the same as JSON.", flag_values=values
  )


def _write_manifest(args: flags.FlagValues) -> None:
  if args.source not in (None, "manifest"):
    raise UserError("--write_manifest is for --source=manifest alone")
  if args.input is None:
    raise UserError("--input is missing: the folder of scans")
  args.source = "manifest"
  print("\n".join(manifests.write_new(args.input)), flush=True)


def main(argv: Sequence[str]) -> None:
  """Checks what the flags ask for."""
  del argv
  args = flags.FLAGS
  if args.source == "phantom":
    raise UserError("phantoms are drawn, there is nothing to check")
  if args.write_manifest:
    _write_manifest(args)
  cases, _ = case_flags.find(args)
  reports = check(cases, num_workers=args.workers or workers.available_cores())
  print(table(reports))
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(reports, indent=2) + "\n")
  records.plan(
    cases, fractions=case_flags.fractions(args), num_folds=args.folds
  )
  if not all(report["usable"] for report in reports):
    sys.exit(2)


if __name__ == "__main__":
  errors.run(
    "cadjax check",
    main,
    define_flags,
  )
