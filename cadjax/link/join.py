"""The link: a classifier's evidence laid over a segmenter's vessels.

Grad-CAM says where the classifier looked, the segmentation what lies there;
together they name the vessel, the place along it and the plaque. Everything
meets on the segmenter's grid.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from cadjax.link import agreement, evidence, findings
from cadjax.link.evidence import Share
from cadjax.link.findings import Finding
from cadjax.segmentation import components
from cadjax.vessels import find
from cadjax.vessels.tree import VesselTree
from data_prep import geometry
from data_prep.volume import Grid, Volume

# Classes of the segmenter's tasks, by what they mean here.
AORTA = "aorta"
CORONARIES = ("coronaries", "lumen", "stable_plaque", "unstable_plaque")
PLAQUES = {"stable": "stable_plaque", "unstable": "unstable_plaque"}


# Evidence this near to a vessel is counted as the vessel's in a second
# column: a cell of the deeper maps is larger than a coronary artery.
NEAR_MM = 5.0


@dataclasses.dataclass(frozen=True, eq=False)
class Structures:
  """What a segmentation holds, on its grid.

  Attributes:
    volume: [D, H, W] HU.
    labels: uint8 [D, H, W], numbers in `names`.
    names: of the classes, the first is the background.
    tree: the coronary vessels.
    regions: uint16 [D, H, W] and its names, see `evidence.vessel_regions`.
  """

  volume: Volume
  labels: np.ndarray
  names: tuple[str, ...]
  tree: VesselTree
  regions: tuple[np.ndarray, dict[int, str]]

  def mask(self, *classes: str) -> np.ndarray | None:
    """Returns where any of the classes is; None if the task has none."""
    return _mask(self.labels, self.names, classes)

  @property
  def plaques(self) -> dict[str, np.ndarray] | None:
    """Returns "stable" and "unstable" masks; None if the task has none."""
    masks = {kind: self.mask(name) for kind, name in PLAQUES.items()}
    found = {kind: mask for kind, mask in masks.items() if mask is not None}
    return found or None

  @property
  def plaque_mm3(self) -> dict[str, float] | None:
    """Returns the volume of each kind of plaque; None if it is not a class."""
    if self.plaques is None:
      return None
    return {
      kind: 1000 * self.volumes_ml[PLAQUES[kind]] for kind in self.plaques
    }

  @property
  def volumes_ml(self) -> dict[str, float]:
    """Returns the volume of every class but the background."""
    counts = np.bincount(self.labels.ravel(), minlength=len(self.names))
    voxel_ml = components.voxel_mm3(self.volume.affine) / 1000
    return {
      name: float(count * voxel_ml)
      for name, count in zip(self.names[1:], counts[1:], strict=True)
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Linked:
  """Evidence and segmentation of one scan, joined.

  Attributes:
    structures: the segmentation.
    heats: by layer, float32 [D, H, W] in [0, 1] on the segmenter's grid; NaN
      where the classifier's grid does not reach.
    layer: the layer that the findings rest on.
    shares: by layer, the share of the evidence in every structure.
    near: the same, with every structure grown by `NEAR_MM`.
    outside: share of the layer's map that lies outside of what the segmenter
      saw, which no share counts; NaN for an empty map.
    findings: located abnormalities, the most abnormal first.
    statements: what the two agree and disagree on, in sentences.
  """

  structures: Structures
  heats: dict[str, np.ndarray]
  layer: str
  shares: dict[str, dict[str, Share]]
  near: dict[str, dict[str, Share]]
  outside: float
  findings: list[Finding]
  statements: list[str]


def find_structures(
  volume: Volume, labels: np.ndarray, names: Sequence[str]
) -> Structures:
  """Finds the vessels of a segmentation.

  Args:
    volume: what the segmenter saw.
    labels: uint8 [D, H, W] on its grid.
    names: of the classes, the first is the background.
  """
  coronary = _mask(labels, names, CORONARIES)
  aorta = _mask(labels, names, (AORTA,))
  tree = find.find_vessels(coronary, aorta, volume.affine)
  regions = evidence.vessel_regions(tree, coronary, aorta)
  return Structures(volume, labels, tuple(names), tree, regions)


def _mask(labels, names, classes) -> np.ndarray | None:
  numbers = [i for i, name in enumerate(names) if name in classes]
  return np.isin(labels, numbers) if numbers else None


def lay_on(heat: np.ndarray, grid: Grid, target: Grid) -> np.ndarray:
  """Lays a heat map on another grid.

  Args:
    heat: [D, H, W], at least 0.
    grid: where it lies.
    target: where it goes.

  Returns:
    float32 on the target; NaN where the map does not reach.
  """
  there = geometry.resample(
    heat.astype(np.float32), grid, target, order="linear", fill=0
  )
  covered = geometry.resample(
    np.ones(grid.shape, np.float32), grid, target, order="linear", fill=0
  )
  # At the border a voxel is averaged with what lies outside.
  return np.where(covered > 0.5, there / np.maximum(covered, 0.5), np.nan)


def join(
  structures: Structures,
  maps: Mapping[str, np.ndarray],
  grid: Grid,
  *,
  layer: str,
  probability: float,
  threshold: float,
  options: findings.FindingOptions | None = None,
) -> Linked:
  """Joins heat maps with a segmentation.

  Args:
    structures: of `find_structures`.
    maps: by layer, [D, H, W] in [0, 1] on the classifier's grid.
    grid: of the classifier's input.
    layer: the layer that the findings rest on.
    probability: of CAD, from the classifier.
    threshold: from which on it is called CAD.
    options: of `findings.find_abnormalities`.
  """
  target = structures.volume.grid
  heats = {name: lay_on(heat, grid, target) for name, heat in maps.items()}
  labels, names = structures.regions
  spacing = structures.volume.spacing
  voxel_mm3 = components.voxel_mm3(structures.volume.affine)
  grown = evidence.dilate(labels, spacing, NEAR_MM)

  def shares_in(regions):
    return {
      name: evidence.share_of_evidence(heat, regions, voxel_mm3, names)
      for name, heat in heats.items()
    }

  shares, near = shares_in(labels), shares_in(grown)
  found = findings.find_abnormalities(
    structures.tree,
    structures.mask(*CORONARIES),
    heat=heats[layer],
    plaques=structures.plaques,
    hu=structures.volume.hu,
    options=options,
  )
  coronary = structures.mask(*CORONARIES)
  reach = evidence.dilate(coronary.astype(np.uint8), spacing, NEAR_MM) > 0
  statements = agreement.disagreements(
    structures.tree,
    probability=probability,
    threshold=threshold,
    near_vessels=evidence.share_of_evidence(
      heats[layer], {"near": reach}, voxel_mm3
    )["near"],
    plaque_mm3=structures.plaque_mm3,
    aorta_found=bool(structures.volumes_ml.get(AORTA, 1.0)),
  )
  return Linked(
    structures,
    heats,
    layer,
    shares,
    near,
    _share_outside(maps[layer], grid, target),
    found,
    statements,
  )


def _share_outside(heat: np.ndarray, grid: Grid, target: Grid) -> float:
  inside = lay_on(np.ones(target.shape, np.float32), target, grid)
  total = heat.sum(dtype=np.float64)
  if not total > 0:
    return float("nan")
  return float(heat.sum(where=np.isnan(inside), dtype=np.float64) / total)
