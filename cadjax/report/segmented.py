"""A segmented scan as files.

  segments.nii.gz   uint8 classes, with exactly the scan's shape and affine
  segments.ctbl     their names and colours, for 3D Slicer
  segments.seg.nrrd the same classes with names, colours and codes, for 3D
                    Slicer; not of a scan with a tilted gantry
  planes.png        where most of each class lies, outlined
  segments.json     schema "cadjax.segments/1" (schemas/segments.json; null
                    where not known)

segments.json holds the keys of `pages.envelope` and

  summary         what was found, in words
  classes         see `segmentation.scan.FoundClass`
  segmentation    classes (the class set), window, overlap, mirror,
                  min_component_mm3, min_soft_voxels
  skipped         why the coronary arteries were not looked for, or null
  segmenter       which model it was, see `workdir.ModelCard`
  wide            which model found the chest in a first stage, or null
  files           the names of the files beside it
"""

import dataclasses
import os
import pathlib
import textwrap
from typing import Any

from cadjax.core import files
from cadjax.report import pages, planes, slicer
from cadjax.segmentation.chest import AORTA
from cadjax.segmentation.scan import SegmentedScan, _word
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
  "left_ventricle": ("#ff8fd0", "pink"),
  "right_ventricle": ("#7f9cf5", "periwinkle"),
  "left_atrium": ("#f5a97f", "apricot"),
  "right_atrium": ("#5eead4", "turquoise"),
  "myocardium": ("#b08968", "brown"),
  "great_vessels": ("#84cc16", "green"),
  "lungs": ("#94a3b8", "grey"),
  "bone": ("#e5e7eb", "white"),
}


def to_json(result: SegmentedScan) -> dict[str, Any]:
  """Returns the contents of segments.json: strict JSON, NaN as None."""
  return files.strict(
    pages.envelope(SCHEMA, result.reading, result.warnings)
    | {
      "summary": result.summary,
      "classes": [dataclasses.asdict(one) for one in result.classes],
      "segmentation": result.settings,
      "skipped": result.skipped,
      "segmenter": dataclasses.asdict(result.reading.model),
      "wide": _wide_card(result),
      "files": FILES | slicer_files(result),
    }
  )


def slicer_files(result: SegmentedScan) -> dict[str, str]:
  """Returns the names of the files for 3D Slicer."""
  holds = slicer.holds(result.reading.scan.grid)
  return {"colors": "segments.ctbl"} | (
    {"slicer": "segments.seg.nrrd"} if holds else {}
  )


def write_masks(folder: pathlib.Path, mask: str, result: SegmentedScan) -> None:
  """Writes the labels as NIfTI, and those of `slicer_files`."""
  scan, names = result.reading.scan, slicer_files(result)
  write_nifti(folder / mask, result.labels, scan)
  classes = {one.name: one.value for one in result.classes}
  colors = {name: COLORS[name][0] for name in classes}
  files.write_text(
    folder / names["colors"], slicer.color_table(classes, colors)
  )
  if "slicer" in names:
    slicer.write_segmentation(
      folder / names["slicer"], result.labels, scan.grid, classes, colors
    )


def _wide_card(result: SegmentedScan) -> dict[str, Any] | None:
  if result.chest is None:
    return None
  return dataclasses.asdict(result.chest.segmented.reading.model)


def render_planes(result: SegmentedScan) -> bytes:
  """Returns planes.png: for each class the planes with most of it.

  All of the chest that a first stage found shares one row, through the heart.
  """
  scan = result.reading.prepared.scan
  masks = {x.name: result.labels == x.value for x in result.classes if x.voxels}
  outlined = [(mask, COLORS[name][0]) for name, mask in masks.items()]
  chest = result.chest.names if result.chest is not None else ()
  centers = {
    _word(name): scan.grid.to_mm(planes.fullest(mask))
    for name, mask in masks.items()
    if name not in chest or name == AORTA
  }
  if not centers or len(centers) < len(masks):
    heading = "Chest" if result.chest is not None else "Scan"
    centers = {heading: result.reading.prepared.heart_mm} | centers
  legend = ", ".join(f"{COLORS[name][1]}: {_word(name)}" for name in masks)
  return planes.planes_png(
    {
      heading: planes.three_planes(
        scan,
        center_mm,
        outline=result.reading.prepared.model_input.grid,
        masks=outlined,
      )
      for heading, center_mm in centers.items()
    },
    f"{result.reading.case}  ·"
    f"  {_broken(legend) or 'nothing was found'}  ·  dashed: what the"
    " segmenter saw  ·  research only",
  )


def _broken(legend: str) -> str:
  """Returns the legend in lines that the picture's width holds."""
  return textwrap.fill(legend, 100)


def write_segmented(
  result: SegmentedScan, folder: str | os.PathLike, *, overwrite: bool = False
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
    write_masks(made, FILES["mask"], result)
    (made / FILES["planes"]).write_bytes(render_planes(result))
    pages.write_json(made / FILES["result"], document)
  return document
