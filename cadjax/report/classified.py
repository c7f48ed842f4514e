"""A scored scan as files: JSON, NIfTI, a picture and a page.

result.json, schema "cadjax.case/2" (schemas/case.json; null where undefined or
not known), holds the keys of `pages.envelope` and

  prediction      see `classification.scan.Prediction`
  slices          null for a 3D model; else see `classification.scan.Slices`
  classifier      which model it was, see `workdir.ModelCard`
  diagnosis       null without a segmenter; else see `report.diagnosis`
  files           the names of the files beside it
"""

import dataclasses
import os
from typing import Any

import matplotlib.figure

from cadjax.classification.scan import ClassifiedScan
from cadjax.core import files
from cadjax.report import pages, planes
from cadjax.report.pages import UNDEFINED, data_url, picture, templates
from data_prep.volume import write_nifti

SCHEMA = "cadjax.case/2"
KIND = files.ResultFolder("result.json", "cadjax.case/")
FILES = {
  "result": "result.json",
  "page": "case.html",
  "planes": "planes.png",
  "preprocessed": "preprocessed.nii.gz",
}


def to_json(result: ClassifiedScan) -> dict[str, Any]:
  """Returns the contents of result.json: strict JSON, NaN as None."""
  return files.strict(
    pages.envelope(SCHEMA, result.reading, result.warnings)
    | {
      "prediction": dataclasses.asdict(result.prediction),
      "slices": dataclasses.asdict(result.slices) if result.slices else None,
      "classifier": dataclasses.asdict(result.reading.model),
      "diagnosis": None,
      "files": FILES,
    }
  )


def render_planes(result: ClassifiedScan) -> bytes:
  """Returns planes.png: the scan above, what the classifier saw below."""
  scan, seen = _panels(result)
  low, high = planes.CTCA_WINDOW_HU
  return planes.planes_png(
    {"Scan": scan, "Classifier input": seen},
    f"{result.reading.case}  ·"
    f"  window {low:g} to {high:g} HU  ·  patient's right on"
    " the left  ·  dashed: classifier input  ·  research only",
  )


def _panels(result: ClassifiedScan) -> tuple[list, list]:
  prepared = result.reading.prepared
  scan = planes.three_planes(
    prepared.scan, prepared.heart_mm, outline=prepared.model_input.grid
  )
  return scan, planes.three_planes(prepared.model_input, prepared.heart_mm)


def render_page(
  result: ClassifiedScan,
  template: str = "case.html",
  document: dict[str, Any] | None = None,
  **more: Any,
) -> str:
  """Returns the page: one file, its pictures inside, no network.

  Args:
    result: the scored scan.
    template: its name in templates/.
    document: of `to_json` if None.
    **more: what the template needs beside it.
  """
  environment = templates()
  environment.filters["percent"] = lambda p: (
    f"{100 * p:.1f} %" if p == p else UNDEFINED
  )
  environment.filters["fixed"] = lambda x: f"{x:.2f}" if x == x else UNDEFINED
  # A number stays with its unit.
  environment.filters["unbroken"] = lambda text: text.replace(" %", "\xa0%")
  environment.filters["sizes"] = lambda values, form="%g": " × ".join(
    form % value for value in values
  )
  pictures = [
    (heading, [picture(panel) for panel in panels])
    for heading, panels in zip(
      ("The scan", "What the classifier saw"), _panels(result), strict=True
    )
  ]
  return environment.get_template(template).render(
    **(document or to_json(result)),
    **more,
    pictures=pictures,
    window_hu=planes.CTCA_WINDOW_HU,
    slice_curve=data_url(_slice_curve(result)) if result.slices else None,
  )


def _slice_curve(result: ClassifiedScan) -> bytes:
  """Returns the picture of the probability along the slices."""
  figure = matplotlib.figure.Figure(
    figsize=(7, 2.6), dpi=140, layout="constrained"
  )
  ax = figure.subplots()
  ax.plot(result.slices.offset_mm, result.slices.probability, color="#1f5f8b")
  ax.set(
    xlabel="mm above the lowest slice",
    ylabel="probability of CAD,\nuncalibrated",
    ylim=(-0.02, 1.02),
  )
  ax.spines[["top", "right"]].set_visible(False)
  return planes.to_png(figure)


def write_classified(
  result: ClassifiedScan,
  folder: str | os.PathLike,
  *,
  overwrite: bool = False,
) -> dict[str, Any]:
  """Writes all the files of a case, whole or not at all.

  Args:
    result: the scored scan.
    folder: is made; refused if it holds anything already.
    overwrite: replace an earlier result there.

  Returns:
    the contents of result.json.

  Raises:
    UserError: the folder is in the way or cannot be written.
  """
  document = to_json(result)
  with KIND.writing(folder, overwrite=overwrite) as made:
    (made / FILES["planes"]).write_bytes(render_planes(result))
    (made / FILES["page"]).write_text(render_page(result), "utf-8")
    write_nifti(
      made / FILES["preprocessed"],
      result.reading.model_input.hu,
      result.reading.model_input.grid,
    )
    pages.write_json(made / FILES["result"], document)
  return document
