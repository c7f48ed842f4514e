"""The pictures of a linked scan: planes, layers, the tree, its vessels."""

import dataclasses

import numpy as np

from cadjax.link import join
from cadjax.link.findings import Finding
from cadjax.link.scan import LinkedScan
from cadjax.report import (
  diagnosis,
  planes,
  segment_diagram,
  segmented,
  tree_figure,
  vessel_figure,
)
from data_prep.volume import Volume

MOST_SHOWN = 8
MAIN_VESSELS = ("LM", "LAD", "LCx", "RCA")
THUMBNAIL_MM = 24.0


def outlines(result: LinkedScan) -> list[tuple[np.ndarray, str]]:
  """Returns every class as a mask [D, H, W] with the colour of its outline."""
  structures = result.linked.structures
  return [
    (structures.labels == number, segmented.COLORS[name][0])
    for number, name in enumerate(structures.names)
    if number
  ]


def heat(result: LinkedScan, layer: str | None = None) -> np.ndarray:
  """Returns a layer's map [D, H, W] in [0, 1], 0 where it does not reach."""
  return np.nan_to_num(result.linked.heats[layer or result.linked.layer])


def center(result: LinkedScan) -> tuple[tuple[float, float, float], str]:
  """Returns where the pictures' planes cross, LPS mm, and what is there."""
  if graded := diagnosis.rows(result):
    number = graded[0].number
  else:
    number = 1
  findings = result.linked.findings
  if not findings:
    return result.classified.reading.prepared.heart_mm, "the heart"
  return findings[number - 1].position_mm, f"finding {number}"


def overlay_panels(result: LinkedScan) -> list[planes.Panel]:
  """Returns three planes with the heat map and the outlined masks."""
  return planes.three_planes(
    result.linked.structures.volume,
    center(result)[0],
    masks=outlines(result),
    heat=heat(result),
  )


def layers_png(result: LinkedScan) -> bytes:
  """Returns a sheet with a row of three planes for each layer."""
  rows = {
    layer: planes.three_planes(
      result.linked.structures.volume,
      center(result)[0],
      heat=heat(result, layer),
    )
    for layer in result.maps
  }
  return planes.planes_png(
    rows,
    f"{result.classified.reading.case}  ·"
    f"  {result.method}, all layers  ·  patient's right on"
    " the left  ·  research only",
    heat_label="evidence, share of each map's maximum",
  )


def thumbnail(result: LinkedScan, finding: Finding) -> bytes:
  """Returns the axial plane around a finding, with heat and outlines."""
  volume = result.linked.structures.volume
  middle = np.array(finding.index)
  half = np.ceil(THUMBNAIL_MM / np.array(volume.spacing)).astype(int)
  low = np.maximum(middle - half, 0)
  high = np.minimum(middle + half + 1, volume.shape)
  box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
  grid = dataclasses.replace(
    volume.grid, shape=tuple(high - low), origin=volume.grid.to_mm(low)
  )
  panel = planes.cut(
    Volume(np.ascontiguousarray(volume.hu[box]), grid),
    "axial",
    finding.position_mm,
    masks=[(mask[box], color) for mask, color in outlines(result)],
    heat=heat(result)[box],
  )
  return planes.panel_png(panel, longest_px=300)


def tree_png(result: LinkedScan) -> bytes:
  """Returns the coronary tree with the evidence along it."""
  structures = result.linked.structures
  return planes.to_png(
    tree_figure.tree_figure(
      structures.tree,
      result.linked.heats[result.linked.layer],
      result.linked.findings[:MOST_SHOWN],
      aorta=structures.mask(join.AORTA),
    )
  )


def vessel_pngs(result: LinkedScan) -> dict[str, bytes]:
  """Returns the reformations of the main vessels by name."""
  structures = result.linked.structures
  scene = vessel_figure.Scene(
    structures.volume.hu,
    structures.volume.affine,
    heat(result),
    structures.volume.affine,
  )
  pictures = {}
  for number, branch in enumerate(structures.tree.branches):
    # The left main is on the way of its daughters.
    if branch.kind in MAIN_VESSELS and branch.kind != "LM":
      pictures[branch.name] = planes.to_png(
        vessel_figure.vessel_figure(
          structures.tree, number, scene, result.linked.findings[:MOST_SHOWN]
        )
      )
  return pictures


def marks(result: LinkedScan) -> dict[str, segment_diagram.Mark]:
  """Returns what the diagram of the segments shows."""
  return segment_diagram.marks(
    result.segments,
    diagnosis.numbers_by_segment(result),
    result.grade.segment,
  )
