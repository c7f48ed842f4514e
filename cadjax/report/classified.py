"""One scored scan as files: JSON, NIfTI, a picture and a page.

result.json, schema "cadjax.case/1" (null where undefined or not known):

  schema          "cadjax.case/1"
  notice          what this software is not
  warnings        sentences that must be read with the number; [] if none
  case            the name of the case, from the caller or the input's name
  created         UTC, ISO 8601
  input           name (of the file or folder, without its path), shape
                  [D, H, W], spacing_mm [D, H, W], notes (what the reader
                  chose, left out or assumed)
  prediction      label ("cad" at or above the threshold, else "normal"),
                  probability (of CAD; calibrated if `calibrated`),
                  calibrated, uncalibrated_probability, temperature,
                  calibration_origin, threshold, threshold_origin,
                  logits [normal, CAD] (mean over the slices of a 2D model)
  slices          null for a 3D model; else pooling and, inferior to
                  superior, probability [D] and offset_mm [D] from the first
  plausibility    concerns (why the scan is unlike the training data),
                  features (of the model's input)
  classifier      workdir (its name), step, model, trained_on (source,
                  is_phantom, cases, patients, fingerprint), grid (recipe),
                  window_hu, calibrated_by, versions (of the training run)
  model_input     grid (shape, spacing, origin, direction: LPS mm), heart_mm
                  (LPS, where the planes cross), heart_origin
  software        versions of this run
  files           the names of the files beside it

No header field of the scan is copied but for its lattice.
"""

import json
import os
from typing import Any

import matplotlib.figure

from cadjax.classification.scan import CaseResult
from cadjax.core import files
from cadjax.report import planes
from cadjax.report.pages import NOTICE, UNDEFINED, data_url, picture, templates
from data_prep.volume import write_nifti

SCHEMA = "cadjax.case/1"
KIND = files.ResultFolder("result.json", "cadjax.case/")
FILES = {
  "result": "result.json",
  "page": "case.html",
  "planes": "planes.png",
  "preprocessed": "preprocessed.nii.gz",
}


def to_json(result: CaseResult) -> dict[str, Any]:
  """Returns the contents of result.json: strict JSON, NaN as None."""
  # The grid's own notes follow those of the reader.
  notes = result.model_input.notes or result.scan.notes
  return files.strict(
    {
      "schema": SCHEMA,
      "notice": NOTICE,
      "warnings": result.warnings,
      "case": result.case,
      "created": result.created,
      "input": {
        "name": result.input_name,
        "shape": result.scan.shape,
        "spacing_mm": result.scan.spacing,
        "notes": notes,
      },
      "prediction": result.prediction,
      "slices": result.slices,
      "plausibility": {
        "concerns": result.concerns,
        "features": result.features,
      },
      "classifier": result.classifier,
      "model_input": {
        "grid": result.model_input.grid.to_dict(),
        "heart_mm": result.heart_mm,
        "heart_origin": result.heart_origin,
      },
      "software": result.software,
      "files": FILES,
    }
  )


def render_planes(result: CaseResult) -> bytes:
  """Returns planes.png: the scan above, what the classifier saw below."""
  scan, seen = _panels(result)
  low, high = planes.CTCA_WINDOW_HU
  return planes.planes_png(
    {"Scan": scan, "Classifier input": seen},
    f"{result.case}  ·  window {low:g} to {high:g} HU  ·  patient's right on"
    " the left  ·  dashed: classifier input  ·  research only",
  )


def _panels(result: CaseResult) -> tuple[list, list]:
  scan = planes.three_planes(
    result.scan, result.heart_mm, outline=result.model_input.grid
  )
  return scan, planes.three_planes(result.model_input, result.heart_mm)


def render_page(
  result: CaseResult,
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


def _slice_curve(result: CaseResult) -> bytes:
  """Returns the picture of the probability along the slices."""
  figure = matplotlib.figure.Figure(
    figsize=(7, 2.6), dpi=140, layout="constrained"
  )
  ax = figure.subplots()
  ax.plot(
    result.slices["offset_mm"], result.slices["probability"], color="#1f5f8b"
  )
  ax.set(
    xlabel="mm above the lowest slice",
    ylabel="probability of CAD,\nuncalibrated",
    ylim=(-0.02, 1.02),
  )
  ax.spines[["top", "right"]].set_visible(False)
  return planes.to_png(figure)


def write_case(
  result: CaseResult,
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
      result.model_input.hu,
      result.model_input.grid,
    )
    text = json.dumps(document, indent=2, allow_nan=False)
    (made / FILES["result"]).write_text(text + "\n", "utf-8")
  return document
