"""Segments a scan: masks on the scanner's grid."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cadjax.data import scans
from cadjax.segmentation import components
from cadjax.segmentation.segmenter import Segmenter
from cadjax.training.reading import Reading, begin
from data_prep import geometry
from data_prep.volume import Grid, Volume


@dataclasses.dataclass(frozen=True)
class FoundClass:
  """How much of one class was found in a scan.

  Attributes:
    value: of its voxels in the labels.
    name: of the class.
    voxels: their number on the scan's grid.
    volume_ml: their volume.
    components: 26-connected ones.
  """

  value: int
  name: str
  voxels: int
  volume_ml: float
  components: int


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentedScan:
  """One scan that a segmenter segmented; `report.segmented` writes it.

  Attributes:
    reading: the scan, the model and the software.
    labels: uint8 [D, H, W] on the scan's grid.
    model_labels: uint8 [D, H, W] on the segmenter's grid.
    classes: every foreground class, in the order of the labels.
    settings: classes (the class set), window, overlap, mirror and
      min_component_mm3.
  """

  reading: Reading
  labels: np.ndarray
  model_labels: np.ndarray
  classes: tuple[FoundClass, ...]
  settings: Mapping[str, Any]

  @property
  def summary(self) -> str:
    """What was found, in words."""
    missing = [x.name for x in self.classes if not x.voxels]
    if len(missing) == len(self.classes):
      return f"Nothing was found: no {' and no '.join(_words(missing))}."
    found = ", ".join(
      f"{_word(x.name)} {x.volume_ml:.1f} mL in {x.components}"
      f" piece{'s' if x.components > 1 else ''}"
      for x in self.classes
      if x.voxels
    )
    text = f"Found: {found}."
    if missing:
      text += f" Not found: {', '.join(_words(missing))}."
    return text

  @property
  def warnings(self) -> list[str]:
    """What must be read with the masks."""
    found = self.reading.warnings("segmenter", "segmentation")
    if not any(x.voxels for x in self.classes):
      found.append("The segmentation is empty.")
    return found


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
  segmenter: Segmenter, scan: scans.Scan, *, progress: bool = False
) -> SegmentedScan:
  """Segments one scan.

  Args:
    segmenter: of `load_segmenter`.
    scan: of `scans.read_scan`.
    progress: whether to show a bar on a terminal.

  Returns:
    `labels`: uint8 [D, H, W] on the scan's grid; `model_labels`: the same on
    the model's grid; `classes`: volume in mL and components of each class.

  Raises:
    UserError: the scan cannot be laid on the model's grid, memory is short,
      or the network gives NaN.
  """
  prepared = segmenter.prepare(scan)
  volume, model_input = prepared.scan, prepared.model_input
  options = segmenter.config.segment
  with scans.memory_error_as_user_error("segmenting", model_input.shape):
    probabilities = segmenter.segment(
      model_input.hu, probabilities=True, progress=progress
    ).probabilities
  with scans.memory_error_as_user_error(
    "resampling the mask back to", volume.shape
  ):
    labels = labels_on_scan(probabilities, model_input.grid, volume)
    labels, model_labels = (
      components.remove_small(some, grid.affine, options.min_component_mm3)
      for some, grid in (
        (labels, volume.grid),
        (probabilities.argmax(-1).astype(np.uint8), model_input.grid),
      )
    )
  return SegmentedScan(
    begin(segmenter, scan, prepared),
    labels=labels,
    model_labels=model_labels,
    classes=tuple(_measure(labels, volume, segmenter.class_names)),
    settings={
      "classes": options.classes,
      "window": options.window or segmenter.config.data.patch_size,
      "overlap": options.overlap,
      "mirror": options.mirror,
      "min_component_mm3": options.min_component_mm3,
    },
  )


def _measure(
  labels: np.ndarray, scan: Volume, names: Sequence[str]
) -> list[FoundClass]:
  voxel_ml = components.voxel_mm3(scan.affine) / 1000
  found = []
  for value, name in enumerate(names[1:], 1):
    mask = labels == value
    voxels = int(np.count_nonzero(mask))
    found.append(
      FoundClass(
        value=value,
        name=name,
        voxels=voxels,
        volume_ml=voxels * voxel_ml,
        components=components.betti0(mask) if voxels else 0,
      )
    )
  return found
