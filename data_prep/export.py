"""Writes phantoms as a scanner would: `python -m data_prep.export --out=DIR`.

For each phantom a NIfTI scan, its class mask and its lesions, and a
manifest.csv with which the folder is a `--source=manifest`.
"""

import csv
import functools
import json
import pathlib
from collections.abc import Sequence

import tqdm
from absl import flags

from data_prep import errors, geometry, phantom, sources, splits, workers
from data_prep.errors import UserError
from data_prep.volume import write_nifti

OUT = flags.DEFINE_string("out", None, "Folder for the files.")
CASES = flags.DEFINE_integer("cases", 2, "How many; half of them with CAD.", 1)
SEED = flags.DEFINE_integer(
  "seed", 1, "Sets of different seeds share no phantom; build takes 0.", 0
)
SEVERITY = flags.DEFINE_enum(
  "severity", "clinical", ["clinical", "overt"], "Of the disease."
)
SPACING_MM = flags.DEFINE_float(
  "spacing_mm", None, "Voxel size; the scanner's own 512x512 if not given.", 0.1
)
WORKERS = flags.DEFINE_integer("workers", 1, "Processes.", 1)


def export_case(
  case: sources.Case,
  *,
  out: pathlib.Path,
  severity: str = "clinical",
  spacing_mm: float | None = None,
) -> dict[str, str]:
  """Draws a phantom and writes its files; returns its row of the manifest.

  Args:
    case: one of `sources.phantom`.
    out: folder for NAME.nii.gz, NAME_mask.nii.gz and NAME_lesions.json.
    severity: "clinical" or "overt".
    spacing_mm: voxel size; None for the scanner's own.
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
  truth = {
    "label": case.label,
    "cad_rads": drawn.cad_rads,
    "lesions": drawn.lesions,
  }
  lesions = out / f"{case.case_id}_lesions.json"
  lesions.write_text(json.dumps(truth, indent=2) + "\n")
  return row


def main(argv: Sequence[str]) -> None:
  """Writes what the flags ask for."""
  del argv
  if OUT.value is None:
    raise UserError("--out is missing: the folder for the files")
  out = pathlib.Path(OUT.value)
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"{out}: cannot write there: {error}") from error
  cases = sources.phantom(CASES.value, seed=SEED.value)
  export = functools.partial(
    export_case, out=out, severity=SEVERITY.value, spacing_mm=SPACING_MM.value
  )
  rows = []
  results = workers.ordered_map(export, cases, workers=WORKERS.value)
  for row in tqdm.tqdm(results, total=len(cases), unit="case"):
    if isinstance(row, UserError):
      raise row
    rows.append(row)
  with open(out / "manifest.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  for row in rows:
    print(f"{row['label']:>6}  {out / row['image']}")


if __name__ == "__main__":
  errors.run(main)
