"""Segments a scan: masks on the scanner's grid."""

import dataclasses
import datetime
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cadjax.data import classes, scans
from cadjax.segmentation import components
from cadjax.segmentation.segmenter import Segmenter
from cadjax.training import workdir
from data_prep import geometry
from data_prep.volume import Grid, Volume

PHANTOM_WARNING = (
  "The segmenter was trained on phantoms: its masks are not evidence about"
  " patients."
)
CONCERN_WARNING = (
  "The scan is unlike the data that the segmenter was trained on: its masks"
  " are not to be relied on."
)


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentResult:
  """What was found in one scan.

  Attributes:
    case: its name, safe to print.
    input_name: base name of the file or folder.
    prepared: the scan and what the segmenter saw of it.
    labels: uint8 [D, H, W] on the scan's grid.
    model_labels: uint8 [D, H, W] on the segmenter's grid.
    classes: see "classes" of the schema.
    segmentation: see the schema.
    segmenter: see the schema.
    software: versions of this run.
    created: UTC, ISO 8601.
  """

  case: str
  input_name: str
  prepared: scans.Prepared
  labels: np.ndarray
  model_labels: np.ndarray
  classes: tuple[dict[str, Any], ...]
  segmentation: dict[str, Any]
  segmenter: dict[str, Any]
  software: dict[str, Any]
  created: str

  @property
  def summary(self) -> str:
    """What was found, in words."""
    missing = [x["name"] for x in self.classes if not x["voxels"]]
    if len(missing) == len(self.classes):
      return f"Nothing was found: no {' and no '.join(_words(missing))}."
    found = ", ".join(
      f"{_word(x['name'])} {x['volume_ml']:.1f} mL in {x['components']}"
      f" piece{'s' if x['components'] > 1 else ''}"
      for x in self.classes
      if x["voxels"]
    )
    said = f"Found: {found}."
    if missing:
      said += f" Not found: {', '.join(_words(missing))}."
    return said

  @property
  def warnings(self) -> list[str]:
    """What must be read with the masks."""
    said = []
    if self.prepared.concerns:
      said.append(CONCERN_WARNING)
    if self.segmenter["trained_on"]["is_phantom"]:
      said.append(PHANTOM_WARNING)
    if not any(x["voxels"] for x in self.classes):
      said.append("The segmentation is empty.")
    return said


def _word(name: str) -> str:
  return name.replace("_", " ")


def _words(names: Sequence[str]) -> list[str]:
  return [_word(name) for name in names]


def labels_on_scan(
  probabilities: np.ndarray, grid: Grid, scan: Volume
) -> np.ndarray:
  """Returns the most probable class of each voxel of a scan.

  The probabilities are interpolated, not the labels: the surface then lies
  between the voxels of a coarse grid where they say so. Takes 9 bytes per
  voxel of the scan beside the result.

  Args:
    probabilities: [D, H, W, K] on `grid`.
    grid: of the model.
    scan: on its own grid.

  Returns:
    uint8 [D, H, W] on the scan's grid; 0 where `grid` does not reach.
  """
  labels = np.zeros(scan.shape, np.uint8)
  best = None
  for number in range(probabilities.shape[-1]):
    # Outside there is background for sure.
    p = geometry.back_to_source(
      probabilities[..., number].astype(np.float32),
      grid,
      scan,
      fill=float(number == 0),
    )
    if best is None:
      best = p
      continue
    better = p > best
    labels[better] = number
    np.maximum(best, p, out=best)
  return labels


def segment_scan(
  trained: Segmenter,
  path: str | pathlib.Path,
  *,
  case: str | None = None,
  series: str | None = None,
  heart_mask: str | None = None,
  progress: bool = False,
) -> SegmentResult:
  """Segments one scan.

  Args:
    trained: a segmenter, from `load_segmenter`.
    path: a file or a folder of DICOM slices.
    case: the name in the results; by default from the path's last part.
    series: which DICOM series, by UID or number.
    heart_mask: a mask file; labels above 0 are the heart.
    progress: whether to show a bar on a terminal.

  Returns:
    what `write_segments` writes.

  Raises:
    UserError: the scan or the mask cannot be used.
  """
  given = scans.read(path, case=case, series=series, heart_mask=heart_mask)
  return segment_read(trained, given, progress=progress)


def segment_read(
  trained: Segmenter, given: scans.Scan, *, progress: bool = False
) -> SegmentResult:
  """Segments a scan that is read already; see `segment_scan`."""
  prepared = scans.prepare(given, trained.grid, trained.reference)
  scan, model_input = prepared.scan, prepared.model_input
  options = trained.config.segment
  with scans.memory_told("segmenting", model_input.shape):
    probabilities = trained.segment(
      model_input.hu, probabilities=True, progress=progress
    ).probabilities
  with scans.memory_told("bringing the mask back to", scan.shape):
    labels = labels_on_scan(probabilities, model_input.grid, scan)
    labels, model_labels = (
      components.remove_small(some, spacing, options.min_component_mm3)
      for some, spacing in (
        (labels, scan.spacing),
        (probabilities.argmax(-1).astype(np.uint8), model_input.spacing),
      )
    )
  now = datetime.datetime.now(datetime.UTC)
  return SegmentResult(
    case=given.case,
    input_name=given.name,
    prepared=prepared,
    labels=labels,
    model_labels=model_labels,
    classes=tuple(_measure(labels, scan, options.classes)),
    segmentation={
      "classes": options.classes,
      "window": options.window or trained.config.data.patch_size,
      "overlap": options.overlap,
      "mirror": options.mirror,
      "min_component_mm3": options.min_component_mm3,
    },
    segmenter=workdir.describe_model(trained),
    software=workdir.versions(),
    created=now.isoformat(timespec="seconds"),
  )


def _measure(
  labels: np.ndarray, scan: Volume, class_set: str
) -> list[dict[str, Any]]:
  # Not the product of the spacings: a tilted gantry shears the grid.
  voxel_ml = abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000
  found = []
  for value, name in enumerate(classes.get_class_set(class_set).names[1:], 1):
    mask = labels == value
    voxels = int(np.count_nonzero(mask))
    found.append(
      {
        "value": value,
        "name": name,
        "voxels": voxels,
        "volume_ml": voxels * voxel_ml,
        "components": components.betti0(mask) if voxels else 0,
      }
    )
  return found
