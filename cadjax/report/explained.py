"""An explained scan as files: JSON, a map and sheets of pictures.

explain.json, schema "cadjax.explain/1" (schemas/explain.json; null where
undefined or not known), holds the keys of `pages.envelope` and

  target          class (its number), name, origin, score and value, see
                  `explanation.scan.Target`
  region          null for a classifier; else see `explanation.scan.Region`
  prediction      null for a segmenter; else as in result.json
  maps            for each map: method, layer ("input" for methods that see
                  no layer), stride [D, H, W] (voxels of the model's grid per
                  cell), cells [D, H, W], maximum (before it was divided by
                  it), peak_mm (LPS x, y, z of the cell of the maximum; null
                  for a map of zeros), file
  grid            of the files: "scanner", "model" or "feature"
  model           which model it was, see `workdir.ModelCard`
  options         of the methods
  files           the names of the files

A map says what raised the score. It is neither a segmentation nor a finding.
On the scanner's grid it is 0 where the model's box does not reach.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cadjax.core import files
from cadjax.data.scans import Prepared
from cadjax.explanation.heat_maps import HeatMap, on_grid
from cadjax.explanation.scan import ExplainedScan
from cadjax.report import pages, planes
from data_prep import resampling
from data_prep.volume import Grid, Volume, write_nifti

SCHEMA = "cadjax.explain/1"
KIND = files.ResultFolder("explain.json", "cadjax.explain/")
# Around the model's box in the pictures, where the scan goes further.
_MARGIN_MM = 10.0


def file_names(result: ExplainedScan) -> dict[str, str]:
  """Returns the names of all the files of an explanation."""
  return {
    "result": KIND.document,
    **{f"sheet_{method}": _sheet_name(method) for method in _methods(result)},
    **{heat.name: _file_name(heat) for heat in result.maps},
  }


def to_json(result: ExplainedScan, grid: str) -> dict[str, Any]:
  """Returns the contents of explain.json: strict JSON, NaN as None."""
  model_grid = result.reading.model_input.grid
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
  target, region, prediction = (
    dataclasses.asdict(part) if part else None
    for part in (result.target, result.region, result.prediction)
  )
  return files.strict(
    pages.envelope(SCHEMA, result.reading, result.warnings)
    | {
      "target": {"class": target.pop("number")} | target,
      "region": region,
      "prediction": prediction,
      "maps": maps,
      "grid": grid,
      "model": dataclasses.asdict(result.reading.model),
      "options": result.options,
      "files": file_names(result),
    }
  )


def _methods(result: ExplainedScan) -> list[str]:
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
  result: ExplainedScan,
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
    f"{result.reading.case}  ·  {method} for {target.name!r}, {target.score}"
    f" {target.value:.3g}  ·  window {low:g} to {high:g} HU  ·  patient's"
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


def write_explained(
  result: ExplainedScan,
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
        values, like = on_grid(heat, result.reading.prepared, grid)
        write_nifti(made / _file_name(heat), values, like)
        if grid != "scanner":
          values, _ = on_grid(heat, result.reading.prepared, "scanner")
        panels[heat.layer] = cut_panels(
          heat, values, result.reading.prepared, through=through
        )
      png = render_sheet(result, method, panels)
      (made / _sheet_name(method)).write_bytes(png)
    pages.write_json(made / KIND.document, document)
  return document
