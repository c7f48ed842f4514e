"""An explained scan as files: JSON, maps, sheets of pictures."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cadjax.core import files
from cadjax.data.scans import Prepared
from cadjax.explanation.heat_maps import HeatMap, on_grid
from cadjax.explanation.scan import Explanation
from cadjax.report import pages, planes
from data_prep import resampling
from data_prep.volume import Grid, Volume, write_nifti

SCHEMA = "cadjax.explain/1"
KIND = files.ResultFolder("explain.json", "cadjax.explain/")
# Around the model's box in the pictures, where the scan goes further.
_MARGIN_MM = 10.0


def to_json(result: Explanation, grid: str) -> dict[str, Any]:
  """Returns the contents of explain.json: strict JSON, NaN as None."""
  prepared = result.prepared
  model_grid = prepared.model_input.grid
  maps = [
    {
      "method": heat.method,
      "layer": heat.layer,
      "stride": heat.strides,
      "cells": heat.cells.shape,
      "maximum": float(heat.cells.max()),
      "peak_mm": heat.peak_mm(model_grid),
      "file": _file_name(heat),
    }
    for heat in result.maps
  ]
  return files.strict(
    {
      "schema": SCHEMA,
      "notice": pages.NOTICE,
      "warnings": result.warnings,
      "case": result.case,
      "created": result.created,
      "input": {
        "name": result.input_name,
        "shape": prepared.scan.shape,
        "spacing_mm": prepared.scan.spacing,
        "notes": prepared.model_input.notes or prepared.scan.notes,
      },
      "target": result.target,
      "region": result.region,
      "prediction": result.prediction,
      "maps": maps,
      "grid": grid,
      "model": result.model,
      "model_input": {
        "grid": model_grid.to_dict(),
        "heart_mm": prepared.heart_mm,
        "heart_origin": prepared.heart_origin,
      },
      "plausibility": {"concerns": prepared.concerns},
      "options": result.options,
      "software": result.software,
      "files": {
        "result": KIND.document,
        **{
          f"sheet_{method}": _sheet_name(method) for method in _methods(result)
        },
        **{heat.name: _file_name(heat) for heat in result.maps},
      },
    }
  )


def _methods(result: Explanation) -> list[str]:
  return list(dict.fromkeys(heat.method for heat in result.maps))


def _file_name(heat: HeatMap) -> str:
  return f"{heat.name}.nii.gz"


def _sheet_name(method: str) -> str:
  return f"sheet_{method.replace('+', 'p')}.png"


def cut_panels(
  heat: HeatMap,
  on_scanner: np.ndarray,
  prepared: Prepared,
  *,
  through: str = "peak",
) -> list[planes.Panel]:
  """Cuts three planes of the scan with a map over it.

  Args:
    heat: the map.
    on_scanner: [D, H, W], the map on the scanner's grid.
    prepared: the scan it is of.
    through: "peak", where the map is highest, or "heart".
  """
  box = _view(prepared.scan.grid, prepared.model_input.grid)
  scan = Volume(prepared.scan.hu[box], resampling.crop(prepared.scan.grid, box))
  peak = heat.peak_mm(prepared.model_input.grid)
  return planes.three_planes(
    scan,
    prepared.heart_mm if through == "heart" or peak is None else peak,
    outline=prepared.model_input.grid,
    heat=on_scanner[box],
  )


def render_sheet(
  result: Explanation,
  method: str,
  panels: Mapping[str, Sequence[planes.Panel]],
) -> bytes:
  """Returns a PNG with a row of three planes for each layer of a method.

  Args:
    result: the explained scan.
    method: whose maps.
    panels: layer -> from `cut_panels`.
  """
  low, high = planes.CTCA_WINDOW_HU
  target = result.target
  title = (
    f"{result.case}  ·  {method} for {target['name']!r}, {target['score']}"
    f" {target['value']:.3g}  ·  window {low:g} to {high:g} HU  ·  patient's"
    " right on the left  ·  research only"
  )
  rows = {}
  for heat in (each for each in result.maps if each.method == method):
    cells = "×".join(map(str, heat.cells.shape))
    zero = "" if heat.cells.max() > 0 else ", zero"
    rows[f"{heat.layer}, {cells} cells{zero}"] = panels[heat.layer]
  return planes.planes_png(
    rows, title, heat_label="evidence, share of each map's maximum"
  )


def _view(scan: Grid, model: Grid) -> tuple[slice, slice, slice]:
  """Returns the part of the scan around the model's box."""
  corners = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1]), -1).reshape(-1, 3)
  ends = scan.to_index(model.to_mm(corners * np.array(model.shape) - 0.5))
  margin = _MARGIN_MM / np.array(scan.spacing)
  low = np.clip(np.floor(ends.min(0) - margin), 0, np.array(scan.shape) - 1)
  high = np.clip(np.ceil(ends.max(0) + margin) + 1, low + 1, scan.shape)
  return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def write_explanation(
  result: Explanation,
  folder: str | os.PathLike,
  *,
  grid: str = "scanner",
  through: str = "peak",
  overwrite: bool = False,
) -> dict[str, Any]:
  """Writes all the files of an explanation, whole or not at all.

  Args:
    result: the explained scan.
    folder: is made; refused if it holds anything already.
    grid: of the NIfTI files, one of `GRIDS`.
    through: see `cut_panels`.
    overwrite: replace an earlier explanation there.

  Returns:
    the contents of explain.json.

  Raises:
    UserError: the folder is in the way or cannot be written.
  """
  document = to_json(result, grid)
  with KIND.writing(folder, overwrite=overwrite) as made:
    for method in _methods(result):
      panels = {}
      for heat in (each for each in result.maps if each.method == method):
        values, like = on_grid(heat, result.prepared, grid)
        write_nifti(made / _file_name(heat), values, like)
        if grid != "scanner":
          values, _ = on_grid(heat, result.prepared, "scanner")
        panels[heat.layer] = cut_panels(
          heat, values, result.prepared, through=through
        )
      png = render_sheet(result, method, panels)
      (made / _sheet_name(method)).write_bytes(png)
    text = json.dumps(document, indent=2, allow_nan=False)
    (made / KIND.document).write_text(text + "\n", "utf-8")
  return document
