"""The calcium of a scan as files.

  lesions.nii.gz   numbers of the lesions, on contiguous 3 mm slices
  planes.png       the lesions with the highest scores, outlined
  calcium.json     schema "cadjax.calcium/1" (schemas/calcium.json; null where
                   not known)

calcium.json holds schema, notice, warnings, case, created, input and software
as in `pages.envelope`, and

  summary         what was found, in words
  category        of the score, see `calcium.score.CATEGORIES`
  total           agatston, volume_mm3, mass_mg and lesions
  regions         the same by label and name of the mask; [] without one
  lesions         see `calcium.score.Lesion`, with their place in LPS mm
  rule            threshold_hu, least_area_mm2, weights_from_hu, slice_mm,
                  connected (in a slice, in words), calibration (mg/cm3 per
                  HU)
  search          box (a grid, null with a mask), bone_ml (left out), heart_hu
  concerns        why the scan is unlike one of the heart
  files           the names of the files beside it
"""

import dataclasses
import os
from typing import Any

import numpy as np

from cadjax.calcium import score as calcium
from cadjax.calcium import stored
from cadjax.calcium.scan import CalciumScan
from cadjax.core import files
from cadjax.report import pages, planes
from data_prep.volume import write_nifti

SCHEMA = stored.SCHEMA
KIND = files.ResultFolder("calcium.json", "cadjax.calcium/")
FILES = {
  "result": "calcium.json",
  "lesions": "lesions.nii.gz",
  "planes": "planes.png",
}
_MOST_ROWS = 3
_COLOR = "#f0644b"


def to_json(result: CalciumScan) -> dict[str, Any]:
  """Returns the contents of calcium.json: strict JSON, NaN as None."""
  score, slices = result.score, result.slices
  return files.strict(
    {
      "schema": SCHEMA,
      "notice": pages.NOTICE,
      "warnings": result.warnings,
      "case": result.case,
      "created": result.created,
      "input": {
        "name": result.input_name,
        "shape": result.scan.shape,
        "spacing_mm": result.scan.spacing,
        "notes": result.notes,
      },
      "software": result.software.to_dict(),
      "summary": result.summary,
      "category": result.category,
      "total": dataclasses.asdict(score.total),
      "regions": [
        {"label": label, "name": name}
        | dataclasses.asdict(score.regions[label])
        for label, name in result.names.items()
      ],
      "lesions": [
        dataclasses.asdict(one)
        | {"center_mm": [float(x) for x in slices.grid.to_mm(one.center)]}
        for one in score.lesions
      ],
      "rule": {
        "threshold_hu": calcium.THRESHOLD_HU,
        "least_area_mm2": calcium.LEAST_AREA_MM2,
        "weights_from_hu": calcium.WEIGHTS_FROM_HU,
        "slice_mm": slices.spacing[0],
        "connected": "eight neighbours in a slice",
        "calibration": result.calibration,
      },
      "search": {
        "box": result.box.to_dict() if result.box is not None else None,
        "bone_ml": result.bone_ml,
        "heart_hu": result.heart_hu,
      },
      "concerns": result.concerns,
      "files": FILES,
    }
  )


def render_planes(result: CalciumScan) -> bytes:
  """Returns planes.png: planes through the lesions of the highest scores."""
  slices = result.slices
  places = {
    f"Lesion {one.number}, {one.agatston:.1f}": slices.grid.to_mm(one.center)
    for one in result.score.lesions[:_MOST_ROWS]
  }
  if not places:
    middle = result.box.center_mm if result.box else slices.grid.center_mm
    places = {"No calcium": middle}
  outlined = [(result.score.labels > 0, _COLOR)]
  return planes.planes_png(
    {
      heading: planes.three_planes(
        slices, center_mm, outline=result.box, masks=outlined
      )
      for heading, center_mm in places.items()
    },
    f"{result.case}  ·  {result.summary}  ·  red: what counts"
    f"{'  ·  dashed: what was searched' if result.box else ''}"
    "  ·  research only",
  )


def write_calcified(
  result: CalciumScan, folder: str | os.PathLike, *, overwrite: bool = False
) -> dict[str, Any]:
  """Writes all the files of a scan's calcium, whole or not at all.

  Args:
    result: of `score_calcium`.
    folder: is made; refused if it holds anything already.
    overwrite: replace an earlier result there.

  Returns:
    the contents of calcium.json.

  Raises:
    UserError: the folder is in the way or cannot be written.
  """
  document = to_json(result)
  labels = result.score.labels
  small = labels.astype(np.uint8 if labels.max() < 256 else np.int32)
  with KIND.writing(folder, overwrite=overwrite) as made:
    write_nifti(made / FILES["lesions"], small, result.slices)
    (made / FILES["planes"]).write_bytes(render_planes(result))
    pages.write_json(made / FILES["result"], document)
  return document
