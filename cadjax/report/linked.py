"""The report of a linked case: result.json, masks, maps and report.html.

result.json is that of `cadjax.report.classified` with the object "diagnosis" of
`cadjax.report.diagnosis`, and three objects more:

  segmentation    summary, classes, skipped, segmenter, wide and settings, as
                  in segments.json of `cadjax.segment`
  link            method, layer; outside (share of the layer's heat map that
                  the segmenter did not see); statements (where the two
                  disagree, in sentences); volumes_ml by class; vessels (name,
                  sureness, length_mm, notes); shares and near (by layer and
                  structure:
                  energy, volume, lift, volume_ml; `near` with every structure
                  grown by near_mm); findings, the most abnormal first:
                  scan_index (d, h, w of the scanner's grid) and the fields of
                  `link.findings.Finding`, of which index is of the segmenter's
                  grid
  combined        null without --decision; else of `link.decision`: label,
                  probability, features, coefficients (per unit of each
                  feature), intercept (log odds), threshold,
                  threshold_origin, n_patients (it was fitted on)

Masks and maps are NIfTI files on exactly the scanner's grid and affine; masks
are there for 3D Slicer, too (`report.segmented`).
"""

import dataclasses
import html
import os
from typing import Any

import numpy as np

from cadjax.core import files
from cadjax.explanation import heat_maps
from cadjax.link import cad_rads, decision, evidence, findings, join
from cadjax.link.findings import Finding
from cadjax.link.scan import LinkedScan
from cadjax.report import (
  classified,
  diagnosis,
  linked_pictures,
  one_page,
  pages,
  planes,
  segment_diagram,
  segmented,
  viewer,
)
from cadjax.report.linked_pictures import MOST_SHOWN
from data_prep.volume import write_nifti

# From here on a number would claim more than the mask can support.
NO_LUMEN = 0.95
# A smaller share of the heat map is lost to the borders of voxels.
LEAST_OUTSIDE = 0.02
_OF_SEGMENTS = ("summary", "classes", "skipped", "segmenter", "wide")
FILES = classified.FILES | {
  "page": "report.html",
  "segments": "segments.nii.gz",
  "tree": "tree.png",
  "layers": "layers.png",
}
PDF = "report.pdf"


def file_names(result: LinkedScan, *, pdf: bool = False) -> dict[str, str]:
  """Returns the names of all the files of a linked case."""
  page = {"pdf": PDF} if pdf else {}
  heats = {f"heat_{name}": f"heat_{name}.nii.gz" for name in result.maps}
  return FILES | page | heats | segmented.slicer_files(result.segmented)


def to_json(result: LinkedScan, *, pdf: bool = False) -> dict[str, Any]:
  """Returns the contents of result.json: strict JSON, NaN as None.

  Args:
    result: of `scan.link_scan`.
    pdf: whether the page to print is among the files.
  """
  linked, tree = result.linked, result.linked.structures.tree
  segments = segmented.to_json(result.segmented)
  document = classified.to_json(result.classified) | {
    "segmentation": {
      "settings": segments["segmentation"],
      **{name: segments[name] for name in _OF_SEGMENTS},
    },
    "link": {
      "method": result.method,
      "layer": linked.layer,
      "near_mm": join.NEAR_MM,
      "outside": linked.outside,
      "statements": result.statements,
      "volumes_ml": linked.structures.volumes_ml,
      "vessels": {
        "branches": [
          {
            "name": branch.name,
            "sureness": branch.sureness,
            "length_mm": branch.length_mm,
          }
          for branch in tree.branches
        ],
        "notes": tree.notes,
      },
      "shares": _shares(linked.shares),
      "near": _shares(linked.near),
      "findings": [
        finding.to_dict() | {"scan_index": _scan_index(result, finding)}
        for finding in linked.findings
      ],
    },
    "combined": result.combined.to_dict() if result.combined else None,
    "diagnosis": diagnosis.to_json(result),
    "files": file_names(result, pdf=pdf),
  }
  document["warnings"] = result.warnings
  return files.strict(document)


def _shares(by_layer) -> dict[str, dict[str, dict[str, float]]]:
  return {
    layer: {name: dataclasses.asdict(share) for name, share in found.items()}
    for layer, found in by_layer.items()
  }


def _scan_index(result: LinkedScan, finding: Finding) -> list[int]:
  index = result.classified.reading.scan.grid.to_index(finding.position_mm)
  return np.rint(index).astype(int).tolist()


def summary(result: LinkedScan) -> list[str]:
  """Returns what was found, in sentences."""
  p, linked = result.classified.prediction, result.linked
  sentences = [
    f"The classifier calls this scan"
    f" {'CAD' if p.label == 'cad' else 'normal'}: probability"
    f" {p.probability:.2f}, threshold {p.threshold:.2f}.",
    result.segmented.summary,
    f"The segmentation is graded {result.grade.text}: {result.grade.words}.",
    *(f"Why N: {doubt}" for doubt in result.grade.doubts),
  ]
  if both := result.combined:
    sentences.append(
      f"Both together: {'CAD' if both.label == 'cad' else 'normal'},"
      f" probability {both.probability:.2f}, threshold"
      f" {both.decision.threshold:.2f}."
    )
  if not linked.findings:
    return [*sentences, "No located abnormality was found."]
  first = linked.findings[0]
  count = len(linked.findings)
  sentences.append(
    f"{count} located abnormalit{'ies' if count > 1 else 'y'}; the first:"
    f" {describe(first)}."
  )
  bare = sum(not finding.plaque for finding in linked.findings)
  if bare and p.label != "cad":
    sentences.append(
      f"{bare} of them without plaque: every heat map is relative to its own"
      " maximum, so that it marks places in a normal scan, too."
    )
  return sentences


def describe(finding: Finding) -> str:
  """Returns a finding in words."""
  what = f"{finding.plaque} plaque" if finding.plaque else "a place of interest"
  where = f"on the {finding.vessel}" if finding.vessel else "on no vessel"
  text = f"{what} {where}"
  if np.isfinite(finding.from_ostium_mm):
    text += f", {finding.from_ostium_mm:.0f} mm from the ostium"
  if finding.plaque_mm3 > 0:
    text += f", {finding.plaque_mm3:.0f} mm³"
  if finding.stenosis is not None and finding.stenosis > NO_LUMEN:
    text += ", no lumen seen"
  elif finding.stenosis_state == "merged":
    text += ", stenosis not measurable by a mask of plaque and lumen as one"
  elif finding.stenosis is not None:
    text += (
      f", estimated {cad_rads.percent(finding.stenosis)} % of the diameter lost"
    )
  elif finding.stenosis_state == "filled":
    text += f", stenosis not measurable: {finding.stenosis_note}"
  return text


# --- The page and the files -------------------------------------------------
def evidence_table(result: LinkedScan) -> list[dict[str, Any]]:
  """Returns a row for each structure that has a volume, most lift first."""
  linked = result.linked
  shares, near = linked.shares[linked.layer], linked.near[linked.layer]
  rows = [
    {"name": name, "share": share, "near": near[name]}
    for name, share in shares.items()
    if share.volume_ml > 0
  ]
  # Without any evidence every lift is NaN.
  return sorted(rows, key=lambda row: -np.nan_to_num(row["share"].lift))


def evidence_notes(result: LinkedScan) -> list[str]:
  """Returns what the table of the evidence leaves out, in sentences."""
  linked = result.linked
  shares = linked.shares[linked.layer]
  sentences = []
  empty = [
    name
    for name, share in shares.items()
    if not share.volume_ml > 0 and name != evidence.OFF_VESSEL
  ]
  if empty:
    sentences.append(
      "Not in the table, because no voxel that the heat map covers is"
      f" segmented as such: {', '.join(empty)}."
    )
  if np.isnan(shares[evidence.ELSEWHERE].energy):
    sentences.append("The heat map is zero there: no share of it is defined.")
  if linked.outside > LEAST_OUTSIDE:
    sentences.append(
      f"{linked.outside:.0%} of the heat map lies outside of what the segmenter"
      " saw; the shares are of the rest."
    )
  return sentences


def render_page(
  result: LinkedScan, document: dict[str, Any], *, tree: bytes, layers: bytes
) -> str:
  """Returns report.html: one file that opens offline.

  Args:
    result: of `scan.link_scan`.
    document: of `to_json`.
    tree: of `linked_pictures.tree_png`.
    layers: of `linked_pictures.layers_png`.
  """
  linked = result.linked
  volume = linked.structures.volume
  options = {"window_hu": planes.CTCA_WINDOW_HU}
  colors = [segmented.COLORS[name][0] for name in linked.structures.names[1:]]
  center, crossing = linked_pictures.center(result)
  views = {
    "Heat map": viewer.heat_viewer(
      volume, linked_pictures.heat(result), center, **options
    ),
    "Segmentation": viewer.mask_viewer(
      volume, linked.structures.labels, colors, center, **options
    ),
  }
  marks = linked_pictures.marks(result)
  return classified.render_page(
    result.classified,
    "linked.html",
    document,
    summary=summary(result),
    facts=diagnosis.facts(result),
    rows=diagnosis.rows(result),
    usual_note=findings.MEASURED,
    diagram=pages.data_url(segment_diagram.svg(marks), "svg+xml"),
    diagram_words=segment_diagram.words(marks),
    crossing=crossing,
    feature_words=decision.FEATURES,
    overlay=[
      pages.picture(panel) for panel in linked_pictures.overlay_panels(result)
    ],
    legend=[
      (name.replace("_", " "), segmented.COLORS[name][0])
      for name in linked.structures.names[1:]
    ],
    tree=pages.data_url(tree),
    evidence=evidence_table(result),
    evidence_notes=evidence_notes(result),
    findings=[
      {
        "text": describe(finding),
        "src": pages.data_url(linked_pictures.thumbnail(result, finding)),
        **finding.to_dict(),
      }
      for finding in linked.findings[:MOST_SHOWN]
    ],
    vessels={
      name: pages.data_url(png)
      for name, png in linked_pictures.vessel_pngs(result).items()
    },
    layers=pages.data_url(layers),
    # As the text of an attribute.
    views={name: html.escape(page) for name, page in views.items()},
  )


def write_linked(
  result: LinkedScan,
  folder: str | os.PathLike,
  *,
  overwrite: bool = False,
  pdf: str | None = None,
) -> dict[str, Any]:
  """Writes all the files of a linked case, whole or not at all.

  Args:
    result: of `scan.link_scan`.
    folder: is made; refused if it holds anything already.
    overwrite: replace an earlier result there.
    pdf: paper of a page to print, of `one_page.PAPERS`; None for no such page.

  Returns:
    the contents of result.json.

  Raises:
    UserError: the folder is in the way or cannot be written.
  """
  document = to_json(result, pdf=pdf is not None)
  names, reading = document["files"], result.classified.reading
  # They are files of their own and on the page.
  tree = linked_pictures.tree_png(result)
  layers = linked_pictures.layers_png(result)
  page = render_page(result, document, tree=tree, layers=layers)
  with classified.KIND.writing(folder, overwrite=overwrite) as made:
    for key, content in (
      ("planes", classified.render_planes(result.classified)),
      ("tree", tree),
      ("layers", layers),
      ("page", page.encode()),
    ):
      (made / names[key]).write_bytes(content)
    if pdf is not None:
      (made / names["pdf"]).write_bytes(one_page.render(result, pdf))
    seen = reading.model_input
    write_nifti(made / names["preprocessed"], seen.hu, seen.grid)
    segmented.write_masks(made, names["segments"], result.segmented)
    for layer, heat in result.maps.items():
      on_scan = heat_maps.on_scanner_grid(heat, seen.grid, reading.scan)
      write_nifti(made / names[f"heat_{layer}"], on_scan, reading.scan)
    pages.write_json(made / names["result"], document)
  return document
