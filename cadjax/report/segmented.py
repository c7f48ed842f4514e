"""A segmented scan as files: JSON, masks, a picture."""

import json
import os
from typing import Any

from cadjax.core import files
from cadjax.report import pages, planes
from cadjax.segmentation.scan import SegmentResult, _word
from data_prep.volume import write_nifti

SCHEMA = "cadjax.segments/1"
KIND = files.ResultFolder("segments.json", "cadjax.segments/")
FILES = {
  "result": "segments.json",
  "mask": "segments.nii.gz",
  "planes": "planes.png",
}
# Class: colour of its outline, in words too.
COLORS = {
  "aorta": ("#f0644b", "red"),
  "coronaries": ("#f2c14e", "yellow"),
  "lumen": ("#f2c14e", "yellow"),
  "stable_plaque": ("#6cc5f0", "blue"),
  "unstable_plaque": ("#c58af9", "violet"),
}


def to_json(result: SegmentResult) -> dict[str, Any]:
  """Returns the contents of segments.json: strict JSON, NaN as None."""
  prepared = result.prepared
  return files.strict(
    {
      "schema": SCHEMA,
      "notice": pages.NOTICE,
      "warnings": result.warnings,
      "summary": result.summary,
      "case": result.case,
      "created": result.created,
      "input": {
        "name": result.input_name,
        "shape": prepared.scan.shape,
        "spacing_mm": prepared.scan.spacing,
        "notes": prepared.model_input.notes or prepared.scan.notes,
      },
      "classes": result.classes,
      "segmentation": result.segmentation,
      "plausibility": {
        "concerns": prepared.concerns,
        "features": prepared.features,
      },
      "segmenter": result.segmenter,
      "model_input": {"grid": prepared.model_input.grid.to_dict()},
      "software": result.software,
      "files": FILES,
    }
  )


def render_planes(result: SegmentResult) -> bytes:
  """Returns planes.png: for each class the planes with most of it."""
  scan = result.prepared.scan
  masks = {
    x["name"]: result.labels == x["value"]
    for x in result.classes
    if x["voxels"]
  }
  outlined = [(mask, COLORS[name][0]) for name, mask in masks.items()]
  centers = {
    _word(name): scan.grid.to_mm(planes.fullest(mask))
    for name, mask in masks.items()
  } or {"Scan": result.prepared.heart_mm}
  legend = ", ".join(f"{COLORS[name][1]}: {_word(name)}" for name in masks)
  return planes.planes_png(
    {
      heading: planes.three_planes(
        scan,
        center_mm,
        outline=result.prepared.model_input.grid,
        masks=outlined,
      )
      for heading, center_mm in centers.items()
    },
    f"{result.case}  ·  {legend or 'nothing was found'}  ·  dashed: what the"
    " segmenter saw  ·  research only",
  )


def write_segments(
  result: SegmentResult, folder: str | os.PathLike, *, overwrite: bool = False
) -> dict[str, Any]:
  """Writes all the files of a segmented scan, whole or not at all.

  Args:
    result: of `segment_scan`.
    folder: is made; refused if it holds anything already.
    overwrite: replace an earlier result there.

  Returns:
    the contents of segments.json.

  Raises:
    UserError: the folder is in the way or cannot be written.
  """
  document = to_json(result)
  with KIND.writing(folder, overwrite=overwrite) as made:
    write_nifti(made / FILES["mask"], result.labels, result.prepared.scan)
    (made / FILES["planes"]).write_bytes(render_planes(result))
    text = json.dumps(document, indent=2, allow_nan=False)
    (made / FILES["result"]).write_text(text + "\n", "utf-8")
  return document
