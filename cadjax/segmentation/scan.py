"""Segments a scan: masks on the scanner's grid.

In one stage or in two: a wide segmenter finds the heart in the whole chest,
and another one the coronary arteries in the box around it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cadjax.data import scans
from cadjax.segmentation import chest as chest_lib
from cadjax.segmentation import components, merge
from cadjax.segmentation.segmenter import SOFT_PLAQUE, Segmenter
from cadjax.training.reading import Reading, begin
from data_prep import geometry, plausibility
from data_prep.errors import UserError
from data_prep.volume import Grid, Volume

# Classes that only contrast shows.
LUMEN = ("coronaries", "lumen", "stable_plaque", "unstable_plaque")
# Coarser voxels mix the blood of a narrow vessel with the fat around it, to the
# attenuation of plaque without calcium.
SOFT_PLAQUE_MM = 1.0
_AS_LUMEN = ("lumen", SOFT_PLAQUE)


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
    model_labels: uint8 [D, H, W] on the segmenter's grid, in its classes.
    classes: every foreground class, in the order of the labels.
    settings: classes (the class set), window, overlap, mirror and
      min_component_mm3 and min_soft_voxels.
    chest: of the first stage, whose labels are among `labels`; None without.
    skipped: why the coronary arteries were not looked for; None if they were.
    coarse_mm: edge of the scan's voxels where those are too coarse for unstable
      plaque, which then is counted as lumen; else None.
  """

  reading: Reading
  labels: np.ndarray
  model_labels: np.ndarray
  classes: tuple[FoundClass, ...]
  settings: Mapping[str, Any]
  chest: "Chest | None" = None
  skipped: str | None = None
  coarse_mm: float | None = None

  @property
  def summary(self) -> str:
    """What was found, in words."""
    if self.skipped is None:
      return self._found
    if self.chest is None:
      return self.not_looked_for
    return f"{self._found} {self.not_looked_for}"

  @property
  def not_looked_for(self) -> str | None:
    """Says why the coronary arteries were not looked for; None if they were."""
    if self.skipped is None:
      return None
    if self.chest is None:
      return f"Nothing was segmented: {self.skipped}."
    return f"The coronary arteries were not looked for: {self.skipped}."

  @property
  def _found(self) -> str:
    looked_for = [
      x
      for x in self.classes
      if self.skipped is None or x.name in self.chest.names
    ]
    if self.coarse_mm is not None:
      looked_for = [x for x in looked_for if x.name != SOFT_PLAQUE]
    missing = [x.name for x in looked_for if not x.voxels]
    if len(missing) == len(looked_for):
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
    if self.skipped is not None:
      found.append(self.not_looked_for)
    if self.coarse_mm is not None and self.skipped is None:
      found.append(
        f"Voxels of {self.coarse_mm:.1f} mm are too coarse to tell plaque"
        " without calcium from a narrow lumen: both are counted as lumen."
      )
    if self.chest is not None:
      found += self.chest.anatomy.warnings
    if not any(x.voxels for x in self.classes):
      found.append("The segmentation is empty.")
    return found


@dataclasses.dataclass(frozen=True, eq=False)
class Chest:
  """The first of two stages.

  Attributes:
    segmented: what the wide segmenter found.
    names: of its classes, the first is the background.
    anatomy: what that says about the scan.
  """

  segmented: SegmentedScan
  names: tuple[str, ...]
  anatomy: chest_lib.Anatomy

  @property
  def stage(self) -> merge.Stage:
    """Its labels on the grid of the wide segmenter."""
    grid = self.segmented.reading.model_input.grid
    return merge.Stage(self.segmented.model_labels, self.names, grid)


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
  segmenter: Segmenter,
  scan: scans.Scan,
  *,
  wide: Segmenter | None = None,
  progress: bool = False,
) -> SegmentedScan:
  """Segments one scan, in one stage or in two.

  A segmenter of the coronary arteries that was trained on contrast alone is
  not run where there is none, or no heart.

  Args:
    segmenter: of `load_segmenter`.
    scan: of `scans.read_scan`.
    wide: of `load_wide`: finds the heart, around which `segmenter` then looks,
      and adds what it knows of the chest; None for one stage.
    progress: whether to show a bar on a terminal.

  Returns:
    `labels`: uint8 [D, H, W] on the scan's grid; `model_labels`: those of
    `segmenter` on its grid; `classes`: volume in mL and components of each
    class.

  Raises:
    UserError: the scan cannot be laid on the model's grid, memory is short,
      or the network gives NaN.
  """
  chest = None
  if wide is not None:
    chest = find_chest(wide, scan, progress=progress)
    scan = chest.anatomy.place(scan)
  return segment_placed(segmenter, scan, chest, progress=progress)


def find_chest(
  wide: Segmenter, scan: scans.Scan, *, progress: bool = False
) -> Chest:
  """Runs the first of two stages; arguments as in `segment_scan`."""
  found = segment_placed(wide, scan, progress=progress)
  anatomy = chest_lib.describe(
    found.reading.model_input, found.model_labels, wide.class_names
  )
  return Chest(found, wide.class_names, anatomy)


def place_heart(wide: Segmenter | None, scan: scans.Scan) -> scans.Scan:
  """Returns a scan with what the first stage finds; as it is without one."""
  return scan if wide is None else find_chest(wide, scan).anatomy.place(scan)


def segment_placed(
  segmenter: Segmenter,
  scan: scans.Scan,
  chest: Chest | None = None,
  *,
  progress: bool = False,
) -> SegmentedScan:
  """Runs the second of two stages, or the only one.

  Args:
    segmenter: of `load_segmenter`.
    scan: with what the first stage found, see `chest.Anatomy.place`.
    chest: of `find_chest`, whose labels are joined with these.
    progress: whether to show a bar on a terminal.
  """
  skipped = _unfit(segmenter, scan, chest)
  found = _segment(
    segmenter, scan, progress=progress, skipped=skipped, chest=chest
  )
  if chest is None:
    return found
  wide = chest.segmented
  volume = found.reading.scan
  fine = merge.Stage(
    found.model_labels, segmenter.class_names, found.reading.model_input.grid
  )
  labels, names = merge.merge_labels(
    merge.Stage(wide.labels, chest.names, volume.grid), found.labels, fine
  )
  return dataclasses.replace(
    found,
    labels=labels,
    model_labels=merge.fill_aorta(fine, chest.stage),
    classes=tuple(_measure(labels, volume, names)),
    chest=chest,
  )


def _unfit(
  segmenter: Segmenter, scan: scans.Scan, chest: Chest | None
) -> str | None:
  """Returns why coronary arteries cannot be seen in a scan; None if they can.

  Only for a segmenter that has never seen a scan without contrast.
  """
  low, _ = segmenter.reference.get("heart_hu") or (0.0, 0.0)
  if not set(LUMEN) & set(segmenter.class_names) or (
    low < plausibility.CONTRAST_HU
  ):
    return None
  features = plausibility.describe(scan.volume) | dict(scan.measured)
  if features["heart_hu"] < plausibility.CONTRAST_HU:
    return plausibility.no_contrast(features["heart_hu"])
  if chest is None or scan.heart_mask is not None:
    return None
  try:
    _, info = geometry.find_heart(scan.volume)
  except UserError:
    return "no heart was found"
  return None if info["method"] == "contrast" else "no heart was found"


def _segment(
  segmenter: Segmenter,
  scan: scans.Scan,
  *,
  progress: bool,
  skipped: str | None,
  chest: Chest | None = None,
) -> SegmentedScan:
  """Runs one segmenter on its grid; all background if it is skipped.

  What a first stage contradicts becomes background, see `merge.misplaced`.
  """
  prepared = segmenter.prepare(scan)
  volume, model_input = prepared.scan, prepared.model_input
  options = segmenter.config.segment
  coarse_mm = _too_coarse(segmenter.class_names, scan.volume)
  if skipped is not None:
    labels = np.zeros(volume.shape, np.uint8)
    model_labels = np.zeros(model_input.shape, np.uint8)
  else:
    with scans.memory_error_as_user_error("segmenting", model_input.shape):
      probabilities = segmenter.segment(
        model_input.hu,
        probabilities=True,
        progress=progress,
        keep_thin=coarse_mm is not None,  # Then it is counted as lumen.
      ).probabilities
      if chest is not None:
        most_likely = probabilities.argmax(-1).astype(np.uint8)
        fine = merge.Stage(most_likely, segmenter.class_names, model_input.grid)
        wrong = merge.misplaced(fine, chest.stage)
        probabilities[wrong] = np.eye(probabilities.shape[-1])[0]
      if coarse_mm is not None:
        lumen, soft = (segmenter.class_names.index(name) for name in _AS_LUMEN)
        probabilities[..., lumen] += probabilities[..., soft]
        probabilities[..., soft] = 0
    with scans.memory_error_as_user_error(
      "resampling the mask back to", volume.shape
    ):
      labels = labels_on_scan(probabilities, model_input.grid, volume)
      labels, model_labels = (
        segmenter.tidy(some, grid.affine)
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
      "min_soft_voxels": options.get("min_soft_voxels", 1),
    },
    skipped=skipped,
    coarse_mm=coarse_mm,
  )


def _too_coarse(names: Sequence[str], scan: Volume) -> float | None:
  """Returns the voxels' largest edge if soft plaque cannot be told by them."""
  edge = max(scan.grid.spacing)
  tells = set(_AS_LUMEN) <= set(names)
  return edge if tells and edge > SOFT_PLAQUE_MM + 1e-3 else None


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
