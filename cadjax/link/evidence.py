"""How much of a heat map lies in which structure.

A heat map is never negative and on the grid of the regions; NaN marks voxels
that it does not cover (outside the classifier's grid, say), which count
neither as energy nor as volume.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage
from skimage.segmentation import expand_labels

from cadjax.vessels.tree import VesselTree

ELSEWHERE = "elsewhere"
OFF_VESSEL = "coronary mask off any vessel"
AORTA = "aorta"


@dataclasses.dataclass(frozen=True)
class Share:
  """What one region holds of a heat map.

  Attributes:
    energy: share of the map's sum, 0 to 1; NaN for a map without energy.
    volume: share of the covered volume, 0 to 1.
    lift: energy over volume; 1 is what chance gives; NaN where undefined.
    volume_ml: of the region, where the map covers it.
  """

  energy: float
  volume: float
  lift: float
  volume_ml: float


def share_of_evidence(
  heat: np.ndarray,
  regions: Mapping[str, np.ndarray] | np.ndarray,
  voxel_mm3: float,
  names: Mapping[int, str] | None = None,
) -> dict[str, Share]:
  """Measures the share of a heat map in each region and elsewhere.

  The shares of a label map, and of masks that do not overlap, sum to 1 with
  that of `ELSEWHERE`, which is what no region holds.

  Args:
    heat: [D, H, W], at least 0; NaN where not covered.
    regions: name -> mask [D, H, W], above 0 inside; or a label map [D, H, W]
      of whole numbers.
    voxel_mm3: volume of a voxel; see `components.voxel_mm3`.
    names: label -> name, for a label map; other labels are elsewhere, and
      labels of one name are one region.

  Returns:
    Shares by name, in the order given, `ELSEWHERE` last.

  Raises:
    ValueError: shapes differ, the map is negative, or a label map has no
      names.
  """
  heat = np.asarray(heat)
  covered = ~np.isnan(heat)
  if (heat < 0).any():
    raise ValueError("a heat map must not be negative")
  if isinstance(regions, Mapping):
    sums = _of_masks(heat, covered, regions)
  else:
    if names is None:
      raise ValueError("a label map needs names")
    sums = _of_labels(heat, covered, np.asarray(regions), names)
  total = float(heat.sum(where=covered, dtype=np.float64))
  count = int(covered.sum())
  voxel_ml = voxel_mm3 / 1000
  return {
    name: _share(energy, voxels, total, count, voxel_ml)
    for name, (energy, voxels) in sums.items()
  }


def _share(energy, voxels, total, count, voxel_ml) -> Share:
  part = energy / total if total > 0 else np.nan
  volume = voxels / count if count else np.nan
  lift = part / volume if volume > 0 else np.nan
  return Share(float(part), float(volume), float(lift), voxels * voxel_ml)


def _of_masks(heat, covered, masks) -> dict[str, tuple[float, int]]:
  sums, taken = {}, np.zeros(heat.shape, bool)
  for name, mask in masks.items():
    _check_shape(heat, mask, name)
    inside = (np.asarray(mask) > 0) & covered
    taken |= inside
    sums[name] = _sum(heat, inside)
  sums[ELSEWHERE] = _sum(heat, covered & ~taken)
  return sums


def _of_labels(heat, covered, labels, names) -> dict[str, tuple[float, int]]:
  _check_shape(heat, labels, "label map")
  flat = labels[covered]
  size = max([int(flat.max(initial=0)), *names]) + 1
  energy = np.bincount(flat, weights=heat[covered], minlength=size)
  voxels = np.bincount(flat, minlength=size)
  sums = {name: (0.0, 0) for name in [*names.values(), ELSEWHERE]}
  for label in range(size):
    name = names.get(label, ELSEWHERE)
    before = sums[name]
    sums[name] = (before[0] + energy[label], before[1] + int(voxels[label]))
  return sums


def _sum(heat, inside) -> tuple[float, int]:
  energy = heat.sum(where=inside, dtype=np.float64)
  return float(energy), int(inside.sum())


def _check_shape(heat, region, name) -> None:
  if np.shape(region) != heat.shape:
    raise ValueError(f"{name} {np.shape(region)}, heat map {heat.shape}")


def vessel_regions(
  tree: VesselTree,
  mask_coronary: np.ndarray,
  mask_aorta: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[int, str]]:
  """Tells every voxel of aorta and coronaries to one vessel.

  A voxel of a vessel belongs to the branch with the nearest centreline; what
  the coronary mask holds beside the tree is `OFF_VESSEL`. Where both masks
  claim a voxel it is coronary.

  Args:
    tree: of `find_vessels`, on the grid of the masks.
    mask_coronary: [D, H, W], above 0 inside.
    mask_aorta: [D, H, W], above 0 inside; None if there is none.

  Returns:
    (uint16 label map [D, H, W], label -> name), for `share_of_evidence`.
  """
  labels = np.zeros(np.shape(mask_coronary), np.uint16)
  names = {1: AORTA, 2: OFF_VESSEL}
  names |= {k + 3: name for k, name in enumerate(tree.names)}
  if mask_aorta is not None:
    labels[np.asarray(mask_aorta) > 0] = 1
  coronary = np.asarray(mask_coronary) > 0
  labels[coronary] = 2
  at = tuple(tree.voxels.T)
  owner, _, _ = tree.nearest(tree.to_mm(tree.voxels))
  labels[at] = np.where(coronary[at], owner + 3, labels[at])
  return labels, names


def dilate(
  labels: np.ndarray, spacing: Sequence[float], reach_mm: float
) -> np.ndarray:
  """Grows every region of a label map by up to `reach_mm`, none into another.

  Args:
    labels: [D, H, W] whole numbers, 0 outside.
    spacing: mm along D, H, W.
    reach_mm: at least 0.

  Returns:
    [D, H, W] in the same dtype; a voxel outside takes the nearest label.
  """
  found = ndimage.find_objects((labels > 0).astype(np.uint8))
  if not found or reach_mm <= 0:
    return labels.copy()
  margin = np.ceil(reach_mm / np.asarray(spacing)).astype(int)
  box = tuple(
    slice(max(part.start - more, 0), part.stop + more)
    for part, more in zip(found[0], margin, strict=True)
  )
  grown = np.zeros_like(labels)
  grown[box] = expand_labels(labels[box], reach_mm, spacing=tuple(spacing))
  return grown
