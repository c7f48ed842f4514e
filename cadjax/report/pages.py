"""What all pages share: the notice, templates, pictures inside a page."""

import base64
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from cadjax.report import planes
from cadjax.training.reading import Reading

# The short form, in the files and tables of evaluations and experiments.
DISCLAIMER = "Research software, not a medical device."
NOTICE = (
  "Research software. Not a medical device: not for diagnosis, triage or any"
  " decision about a patient."
)
UNDEFINED = "–"


def envelope(
  schema: str, reading: Reading, warnings: Sequence[str]
) -> dict[str, Any]:
  """Returns what the JSON of every result of a scan begins with.

  Its keys, the same in result.json, segments.json and explain.json:

    schema          name and version
    notice          what this software is not
    warnings        sentences that must be read with the result; [] if none
    case            the name of the case, from the caller or the input's name
    created         UTC, ISO 8601
    input           name (of the file or folder, without its path), shape
                    [D, H, W], spacing_mm [D, H, W], notes (what the reader
                    chose, left out or assumed)
    plausibility    concerns (why the scan is unlike the training data),
                    features (of the model's input)
    model_input     grid (shape, spacing, origin, direction: LPS mm), heart_mm
                    (LPS, where the planes cross), heart_origin
    software        versions of this run

  No header field of the scan is copied but for its lattice.
  """
  prepared = reading.prepared
  return {
    "schema": schema,
    "notice": NOTICE,
    "warnings": list(warnings),
    "case": reading.case,
    "created": reading.created,
    "input": {
      "name": reading.input_name,
      "shape": prepared.scan.shape,
      "spacing_mm": prepared.scan.spacing,
      "notes": reading.notes,
    },
    "plausibility": {
      "concerns": prepared.concerns,
      "features": prepared.features,
    },
    "model_input": {
      "grid": prepared.model_input.grid.to_dict(),
      "heart_mm": prepared.heart_mm,
      "heart_origin": prepared.heart_origin,
    },
    "software": reading.software.to_dict(),
  }


def write_json(path: pathlib.Path, document: Mapping[str, Any]) -> None:
  """Writes the JSON of a result; its values must be strict JSON."""
  text = json.dumps(document, indent=2, allow_nan=False)
  path.write_text(text + "\n", "utf-8")


def disclaimer(*, phantom: bool) -> str:
  """Returns the disclaimer of a result, which names phantoms where it has any.

  Args:
    phantom: whether the result is of phantoms.
  """
  return ("Phantom results. " if phantom else "") + DISCLAIMER


def templates() -> jinja2.Environment:
  """Returns the templates of all pages; what they are given is escaped."""
  return jinja2.Environment(
    loader=jinja2.PackageLoader("cadjax.report"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )


def picture(panel: planes.Panel) -> dict[str, str]:
  """Returns "src" and "caption" of a panel for a template."""
  number, count = panel.slice
  return {
    "src": data_url(planes.panel_png(panel)),
    "caption": f"{panel.name.capitalize()}, slice {number} of {count}",
  }


def data_url(picture: bytes, kind: str = "png") -> str:
  """Returns a picture, a PNG or an "svg+xml", as an address that holds it."""
  return f"data:image/{kind};base64," + base64.b64encode(picture).decode()
