"""Writes phantoms as a scanner would: `cadjax phantoms --out=DIR`.

For each phantom a NIfTI scan, its class mask and its lesions, and a
manifest.csv with which the folder is a `--source=manifest`; with --tissues also
the tissue of every voxel.
"""

import csv
import functools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import tqdm
from absl import flags

from data_prep import errors, geometry, phantom, sources, splits, workers
from data_prep.errors import UserError
from data_prep.tissues import Tissue
from data_prep.volume import write_nifti


def export_case(
  case: sources.Case,
  *,
  out: pathlib.Path,
  severity: str = "clinical",
  spacing_mm: float | None = None,
  tissues: bool = False,
) -> dict[str, str]:
  """Draws a phantom and writes its files; returns its row of the manifest.

  Args:
    case: one of `sources.phantom`.
    out: folder for NAME.nii.gz, NAME_mask.nii.gz and NAME_lesions.json.
    severity: "clinical" or "overt".
    spacing_mm: voxel size; None for the scanner's own.
    tissues: whether to write tissues/NAME.nii.gz, too.
  """
  grid = None
  if spacing_mm is not None:
    grid = geometry.GridSpec("spacing", spacing_mm=(spacing_mm,) * 3)
  drawn = phantom.make_phantom(
    case.extra["seed"], label=case.label, severity=severity, grid=grid
  )
  row = {
    "case_id": case.case_id,
    "patient_id": case.patient_id,
    "image": f"{case.case_id}.nii.gz",
    "label": splits.label_name(case.label),
    "mask": f"{case.case_id}_mask.nii.gz",
  }
  write_nifti(out / row["image"], drawn.volume.hu, drawn.volume.grid)
  write_nifti(out / row["mask"], drawn.mask, drawn.volume.grid)
  if tissues:
    path = out / "tissues" / row["image"]
    write_nifti(path, drawn.tissues, drawn.volume.grid)
  truth = {
    "label": case.label,
    "cad_rads": drawn.cad_rads,
    "lesions": [
      lesion | {"line_mm": drawn.lesion_line(lesion).round(2).tolist()}
      for lesion in drawn.lesions
    ],
  }
  lesions = out / f"{case.case_id}_lesions.json"
  lesions.write_text(json.dumps(truth, indent=2) + "\n")
  return row


def export(
  cases: Sequence[sources.Case],
  out: str | os.PathLike,
  *,
  num_workers: int = 1,
  tissues: bool = False,
  **options: Any,
) -> list[dict[str, str]]:
  """Writes phantoms and, last, their manifest.csv.

  Args:
    cases: of `sources.phantom`.
    out: folder, made as needed.
    num_workers: processes.
    tissues: whether to write the tissues, in a folder with names.json, their
      names and SNOMED CT codes.
    **options: see `export_case`.

  Returns:
    The rows of the manifest.

  Raises:
    UserError: the folder cannot be written to.
  """
  out = pathlib.Path(out)
  try:
    out.mkdir(parents=True, exist_ok=True)
    if tissues:
      _write_names(out / "tissues")
  except OSError as error:
    raise UserError(f"{out}: cannot write there: {error}") from error
  results = workers.ordered_map(
    functools.partial(export_case, out=out, tissues=tissues, **options),
    cases,
    workers=num_workers,
  )
  rows = []
  for row in tqdm.tqdm(results, total=len(cases), unit="case"):
    if isinstance(row, UserError):
      raise row
    rows.append(row)
  with open(out / "manifest.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  return rows


def _write_names(folder: pathlib.Path) -> None:
  folder.mkdir(exist_ok=True)
  names = {
    tissue.value: {"name": tissue.name.lower(), "snomed_ct": tissue.code}
    for tissue in Tissue
  }
  (folder / "names.json").write_text(json.dumps(names, indent=2) + "\n")


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  options = {"flag_values": values}
  flags.DEFINE_string("out", None, "Folder for the files; required.", **options)
  flags.DEFINE_integer(
    "cases", 2, "How many; every other with CAD.", 1, **options
  )
  flags.DEFINE_integer(
    "seed",
    1,
    "Sets of different seeds share no phantom; build takes 0.",
    0,
    **options,
  )
  flags.DEFINE_enum(
    "severity",
    "clinical",
    ["clinical", "overt"],
    "Of the disease.",
    **options,
  )
  flags.DEFINE_float(
    "spacing_mm",
    None,
    "Voxel size; the scanner's own if not given.",
    0.1,
    **options,
  )
  flags.DEFINE_bool(
    "tissues",
    False,
    "Write the tissue of every voxel into the folder tissues, too.",
    **options,
  )
  flags.DEFINE_integer("workers", 1, "Processes.", 1, **options)


def export_from_flags(args: flags.FlagValues) -> list[dict[str, str]]:
  """Writes what the flags ask for; returns the rows of the manifest.

  Raises:
    UserError: --out is missing or cannot be written to.
  """
  if args.out is None:
    raise UserError("--out is missing: the folder for the files")
  return export(
    sources.phantom(args.cases, seed=args.seed),
    args.out,
    num_workers=args.workers,
    severity=args.severity,
    spacing_mm=args.spacing_mm,
    tissues=args.tissues,
  )


def main(argv: Sequence[str]) -> None:
  """Writes what the flags ask for."""
  del argv
  for row in export_from_flags(flags.FLAGS):
    print(f"{row['label']:>6}  {pathlib.Path(flags.FLAGS.out, row['image'])}")


if __name__ == "__main__":
  errors.run(
    "cadjax phantoms",
    main,
    define_flags,
  )
