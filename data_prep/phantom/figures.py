"""The figures of a scan, and of phantoms drawn as the scan was taken."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from data_prep import workers
from data_prep.errors import UserError
from data_prep.heart import find_heart
from data_prep.phantom import Phantom, make_phantom, measures
from data_prep.tissues import Tissue
from data_prep.volume import (
  Grid,
  Volume,
  check_same_grid,
  read_mask,
  read_volume,
)

_UPRIGHT = np.eye(3)[:, ::-1]
# Of ImageCAS at half resolution, where the published figures of trees were
# measured: its voxels are 0.29 to 0.43 mm (Zeng et al., 2023).
TREE_MM = 0.72
BOX_MM = 128.0
_SQUARE_MM = 12.0
# Of which calcium counts for which artery, as scores are reported.
_ARTERIES = {
  "LM": ("LM",),
  "LAD": ("LAD", "D1", "D2", "IM"),
  "LCx": ("LCx", "OM1", "OM2", "L-PDA", "L-PLA"),
  "RCA": ("RCA", "R-PDA", "R-PLA", "other"),
}
HEART = (
  Tissue.LEFT_VENTRICLE,
  Tissue.RIGHT_VENTRICLE,
  Tissue.LEFT_ATRIUM,
  Tissue.RIGHT_ATRIUM,
  Tissue.MYOCARDIUM,
)
_VESSEL = (Tissue.LUMEN, Tissue.STABLE_PLAQUE, Tissue.UNSTABLE_PLAQUE)


@dataclasses.dataclass(frozen=True, eq=False)
class Chest:
  """A scan and what is known of its anatomy.

  Attributes:
    volume: the scan.
    aorta: bool [D, H, W], or None.
    heart: bool [D, H, W], or None.
    tissues: uint8 [D, H, W] of a phantom, or None.
  """

  volume: Volume
  aorta: np.ndarray | None = None
  heart: np.ndarray | None = None
  tissues: np.ndarray | None = None

  @functools.cached_property
  def center_mm(self) -> np.ndarray:
    """LPS mm of the middle of the heart."""
    if self.heart is None:
      return find_heart(self.volume)[0]
    return self.volume.grid.to_mm(np.argwhere(self.heart).mean(0))

  @functools.cached_property
  def span(self) -> tuple[float, float]:
    """The lowest and the highest slice of the heart."""
    if self.heart is None:
      middle = self.volume.grid.to_index(self.center_mm)[0]
      half = 55 / self.volume.spacing[0]
      return middle - half, middle + half
    rows = np.flatnonzero(self.heart.any((1, 2)))
    return float(rows[0]), float(rows[-1])


def of_phantom(phantom: Phantom) -> Chest:
  """Returns a phantom with the masks that its tissues are."""
  return Chest(
    phantom.volume,
    phantom.tissues == Tissue.AORTA,
    np.isin(phantom.tissues, HEART),
    phantom.tissues,
  )


def read_chest(
  scan: str | os.PathLike,
  aorta: str | os.PathLike | None = None,
  heart: str | os.PathLike | None = None,
) -> Chest:
  """Reads a scan and its masks.

  Raises:
    UserError: a file that cannot be read, a mask of another grid, or an empty
      one.
  """
  volume = read_volume(scan)
  masks = []
  for path in (aorta, heart):
    if path is None:
      masks.append(None)
      continue
    mask = read_mask(path)
    check_same_grid(volume, mask)
    if not mask.hu.any():
      raise UserError(f"{path}: the mask is empty")
    masks.append(mask.hu > 0)
  return Chest(volume, *masks)


def measure_chest(chest: Chest) -> dict[str, float]:
  """Measures all that needs no coronary arteries; NaN where masks are missing.

  HU of tissues are medians inside the labels of a phantom, and by
  `tissue_hu` where there are none.
  """
  hu = chest.volume.hu.astype(np.float32)
  grid, spacing = chest.volume.grid, chest.volume.spacing
  lung = measures.lungs(hu, spacing)
  if chest.tissues is None:
    out = tissue_hu(chest, lung)
  else:
    out = _label_hu(chest)
  out |= _noise(hu, chest.aorta, spacing)
  if chest.aorta is not None:
    out["edge 10-90 %, aorta, mm"] = measures.edge_width(
      hu, chest.aorta, spacing, least_hu=150
    )
    calibres = measures.aorta_calibres(measures.sections(chest.aorta, grid))
    out["aorta ascending, mm"] = calibres["ascending"]
    out["aorta descending, mm"] = calibres["descending"]
  if chest.heart is not None:
    near = measures.grow(chest.heart, spacing, 8.0)
    out["edge 10-90 %, heart to lung, mm"] = measures.edge_width(
      -hu, lung, spacing, least_hu=500, near=near
    )
    out["heart, mL"] = float(chest.heart.sum() * np.prod(spacing) / 1e3)
  out["fat share of 128 mm"] = measures.box_share(
    hu, grid, chest.center_mm, BOX_MM
  )
  out["lung share above -400 HU"] = measures.vessel_share(hu, lung, spacing)
  return out


def _noise(hu, aorta, spacing) -> dict[str, float]:
  if aorta is None:
    return {}
  core = measures.shrink(aorta, spacing, 2.5)
  squares = measures.rois(core, spacing, _SQUARE_MM)
  spectrum = measures.noise_spectrum(hu, squares, spacing[1])
  peak, mean = measures.spectrum_frequencies(*spectrum)
  return {
    "noise SD, HU": measures.noise_sd(hu, squares),
    "noise spectrum, peak, 1/mm": peak,
    "noise spectrum, mean, 1/mm": mean,
  }


def tissue_hu(chest: Chest, lung: np.ndarray) -> dict[str, float]:
  """Returns HU of tissues by masks and, where there are none, by rules.

  Myocardium is the peak of the heart's histogram between 40 and 180 HU; heart
  blood the median above 180. Fat is what stays in its range after a blur, a
  voxel from its surface; liver the largest even region of soft tissue on the
  right below the heart; bone what is above 150 HU, far from heart and aorta,
  outside the lungs, in pieces of 2 mL or more.

  Args:
    chest: a scan; its phantom's tissues are not looked at.
    lung: see `measures.lungs`.
  """
  hu = chest.volume.hu.astype(np.float32)
  spacing = chest.volume.spacing
  out = {}
  contrast = np.zeros(hu.shape, bool)
  if chest.aorta is not None:
    contrast |= chest.aorta
    core = measures.shrink(chest.aorta, spacing, 2.5)
    out["aorta, HU"] = measures.median(hu[core])
  if chest.heart is not None:
    contrast |= chest.heart
    core = measures.shrink(chest.heart, spacing, 1.5)
    out["myocardium, HU"] = measures.mode(hu[core], 40, 180)
    blood = hu[core]
    out["heart blood, HU"] = measures.median(blood[blood > 180])
  core = measures.shrink(lung, spacing, 5.0)
  out["lung, HU"] = measures.median(hu[core])
  soft = ndimage.gaussian_filter(hu, 1.5 / np.array(spacing))
  low, high = measures.FAT_HU
  fat = measures.shrink((soft > low) & (soft < high), spacing, 1.5)
  out["fat, HU"] = measures.mode(hu[fat], low, high)
  liver = _liver(hu, chest, contrast | lung)
  out["liver, HU"] = measures.median(hu[liver])
  if chest.aorta is None or chest.heart is None:
    return out  # Contrast and bone look alike.
  bone = (hu > 150) & ~lung
  bone &= ~measures.grow(contrast, spacing, 20.0)
  labels, count = ndimage.label(bone)
  sizes = np.bincount(labels.ravel(), minlength=count + 1) * np.prod(spacing)
  sizes[0] = 0
  return out | _bone(hu[(sizes > 2e3)[labels]])


def _liver(hu, chest, not_liver) -> np.ndarray:
  """Returns the largest even region of soft tissue, right and below."""
  spacing = chest.volume.spacing
  even = ndimage.gaussian_filter(hu, 3.0 / np.array(spacing))
  liver = (even > 30) & (even < 200) & ~not_liver
  center = chest.volume.grid.to_index(chest.center_mm)
  liver[int(center[0]) :] = False
  liver[:, :, int(center[2]) :] = False
  liver = measures.shrink(liver, spacing, 9.0)
  labels, count = ndimage.label(liver)
  if not count:
    return liver
  return labels == np.bincount(labels.ravel())[1:].argmax() + 1


def _bone(values) -> dict[str, float]:
  return _quantiles("bone above 150 HU, {}", values) if len(values) else {}


def _quantiles(name: str, values: np.ndarray) -> dict[str, float]:
  """Returns 10 %, median and 90 % under the names that these fill in."""
  words = ("10 %", "median", "90 %")
  found = np.percentile(values, (10, 50, 90))
  return {
    name.format(word): float(value)
    for word, value in zip(words, found, strict=True)
  }


def _label_hu(chest: Chest) -> dict[str, float]:
  """Returns medians inside a phantom's labels, 1.5 mm from their surface."""
  hu, spacing = chest.volume.hu, chest.volume.spacing
  tissues = chest.tissues

  def inside(*names: Tissue, by_mm: float = 1.5) -> np.ndarray:
    mask = np.isin(tissues, names)
    core = measures.shrink(mask, spacing, by_mm)
    return hu[core] if core.any() else hu[mask]

  chambers = hu[measures.shrink(chest.heart, spacing, 1.5)]
  bone = hu[np.isin(tissues, (Tissue.BONE, Tissue.MARROW))]
  middle = {
    "aorta, HU": inside(Tissue.AORTA, by_mm=2.5),
    "heart blood, HU": chambers[chambers > 180],
    "right ventricle, HU": inside(Tissue.RIGHT_VENTRICLE),
    "myocardium, HU": inside(Tissue.MYOCARDIUM),
    "lung, HU": inside(Tissue.LUNG),
    "fat, HU": inside(Tissue.FAT, Tissue.EPICARDIAL_FAT),
    "liver, HU": inside(Tissue.LIVER),
  }
  out = {name: measures.median(values) for name, values in middle.items()}
  return out | _bone(bone[bone > 150])


# Phantoms.


def make_like(seed: int, chest: Chest, **options: Any) -> Phantom:
  """Makes a phantom on a scan's voxels, its heart where the scan's is.

  Args:
    seed: of `make_phantom`.
    chest: the scan.
    **options: of `make_phantom`, but for the grid.
  """
  # A first look learns where about this patient's heart is, a second one,
  # coarse, where its middle.
  drawn = make_phantom(seed, grid=_NOWHERE, **options)
  near = np.array(drawn.params["patient"]["heart_center_mm"])
  look = upright_box(near, (160.0,) * 3, (4.0,) * 3)
  drawn = make_phantom(seed, grid=look, **options)
  middle = of_phantom(drawn).center_mm
  grid = chest.volume.grid
  index = grid.to_index(chest.center_mm)
  origin = middle - _UPRIGHT @ (index * grid.spacing)
  like = Grid(grid.shape, grid.spacing, origin, _UPRIGHT)
  return make_phantom(seed, grid=like, **options)


def upright_box(
  center_mm: Sequence[float],
  extent_mm: Sequence[float],
  spacing: Sequence[float],
) -> Grid:
  """Returns voxels along the patient's axes around a place.

  Args:
    center_mm: LPS mm (x, y, z) of their middle.
    extent_mm: along D, H, W.
    spacing: mm along D, H, W.
  """
  spacing = np.array(spacing, float)
  shape = np.maximum(np.rint(np.array(extent_mm) / spacing), 1).astype(int)
  first = (shape - 1) / 2 * spacing
  return Grid(
    shape, spacing, np.asarray(center_mm) - _UPRIGHT @ first, _UPRIGHT
  )


# Far from any body: a phantom on it is drawn in a moment.
_NOWHERE = upright_box(np.full(3, 1e4), (2.0,) * 3, (1.0,) * 3)


def measure_native(seed: int, like: Phantom, **options: Any) -> dict:
  """Measures noise and edge on the scanner's own voxels.

  Args:
    seed: of `make_phantom`.
    like: the same phantom, with its aorta in the field.
    **options: of `make_phantom`.
  """
  chest = of_phantom(like)
  cut = measures.sections(chest.aorta, like.volume.grid)
  points = cut.points[measures.aorta_parts(cut)["ascending"]]
  if not len(points):
    return {}
  scan = like.params["scanner"]
  spacing = np.array([scan["length_mm"], scan["fov_mm"], scan["fov_mm"]])
  spacing = spacing / scan["shape"]
  grid = upright_box(points[len(points) // 2], (36.0, 70.0, 70.0), spacing)
  near = of_phantom(make_phantom(seed, grid=grid, **options))
  hu = near.volume.hu.astype(np.float32)
  found = _noise(hu, near.aorta, near.volume.spacing)
  found["edge 10-90 %, aorta, mm"] = measures.edge_width(
    hu, near.aorta, near.volume.spacing, least_hu=150
  )
  return {f"native: {name}": value for name, value in found.items()}


def measure_coronaries(seed: int, like: Phantom, **options: Any) -> dict:
  """Measures the coronary tree on voxels as those of the published trees.

  Args:
    seed: of `make_phantom`.
    like: the same phantom, on any grid.
    **options: of `make_phantom`.
  """
  lines = like.centerlines
  every = np.concatenate(list(lines.values()))[:, :3]
  low, high = every.min(0) - 5, every.max(0) + 5
  extent = (high - low)[::-1]
  grid = upright_box((low + high) / 2, extent, (TREE_MM,) * 3)
  tissues = make_phantom(seed, grid=grid, **options).tissues
  mask = np.isin(tissues, _VESSEL)
  tree = measures.measure_tree(mask, grid.spacing)
  out = {
    "coronary volume, mL": float(mask.sum() * TREE_MM**3 / 1e3),
    "coronary skeleton, mm": tree.length_mm,
    "coronary end points": float(tree.ends),
    "coronary parts": float(tree.parts),
  }
  out |= measure_lines(list(lines.values()))
  if len(tree.radius_mm):
    out |= _quantiles("coronary radius, {}, mm", tree.radius_mm)
  if "RCA" in lines:
    parts = [lines[name] for name in ("RCA", "R-PDA") if name in lines]
    line = measures.resample(np.concatenate(parts), 1.0)
    for at in (0, 40, 80, 120):
      if at < len(line):
        out[f"RCA radius at {at} mm"] = float(line[at, 3])
  return out


def measure_lines(lines: Sequence[np.ndarray]) -> dict[str, float]:
  """Measures what a coronary tree's centrelines tell on their own.

  Args:
    lines: [N, 4] of every branch: x, y, z and radius in mm.
  """
  every = np.concatenate([measures.resample(line, 0.5) for line in lines])
  out = _quantiles("line radius, {}, mm", every[:, 3])
  return out | {"turning, degrees/mm": measures.mean_turning(lines)}


# Which shares are reported for which group of patients.
_TRAITS = {
  "patients": ("right dominance", "ramus"),
  "with CAD": ("calcium",),
  "with calcium": tuple(_ARTERIES),
}


def measure_patients(
  seeds: Sequence[int], num_workers: int = 1, **options: Any
) -> dict[str, float]:
  """Returns how many patients of 100 have what only many can show.

  Dominance and ramus are of all patients, calcium in any artery of those with
  CAD, and calcium in one artery of those with calcium. A data set has as many
  normal phantoms as diseased ones, by design, so what is true of all of them
  together would say nothing about how disease is drawn.

  Args:
    seeds: of the phantoms.
    num_workers: processes.
    **options: of `make_phantom`. The label is ignored: every patient has CAD,
      which anatomy does not depend on.

  Returns:
    Percent by the figure's name; without those of an artery if no patient has
    calcium.
  """
  options = {**options, "label": 1}
  work = functools.partial(_traits, options=options)
  found = list(workers.ordered_map(work, list(seeds), workers=num_workers))
  if not found:
    return {}
  calcified = [row for row in found if row["calcium"]]
  groups = {"patients": found, "with CAD": found}
  if calcified:
    groups["with calcium"] = calcified
  return {
    f"{group}: {name}, %": 100 * float(np.mean([row[name] for row in rows]))
    for group, rows in groups.items()
    for name in _TRAITS[group]
  }


def _traits(seed, options) -> dict[str, bool]:
  """Returns which traits a phantom has; none of its voxels are drawn."""
  drawn = make_phantom(seed, grid=_NOWHERE, **options)
  calcified = {
    row["segment"] for row in drawn.lesions if row["plaque"] != "noncalcified"
  }
  about = drawn.params["coronaries"]
  traits = {
    "right dominance": about["dominance"] == "right",
    "ramus": "IM" in drawn.centerlines,
    "calcium": bool(calcified),
  }
  for name, segments in _ARTERIES.items():
    traits[name] = bool(calcified.intersection(segments))
  return traits


def measure_phantom(
  seed: int, chest: Chest, **options: Any
) -> tuple[dict[str, float], Phantom]:
  """Returns all figures of a phantom drawn like a scan, and the phantom."""
  like = make_like(seed, chest, **options)
  found = measure_chest(of_phantom(like))
  found |= measure_native(seed, like, **options)
  found |= measure_coronaries(seed, like, **options)
  return found, like
