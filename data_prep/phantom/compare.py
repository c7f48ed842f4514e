"""Phantoms beside a real scan, in figures and in pictures.

`python -m data_prep.phantom.compare --scan=SCAN --aorta=MASK --heart=MASK`
draws phantoms on the scan's voxels, their hearts where the scan has its own,
and measures both alike (`measures`). The table has, for every figure, the
scan, the median and range of the phantoms, and the range of real patients; a
figure is inside if the phantoms' median lies in that range, to which the scan
itself belongs.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from absl import flags
from scipy import ndimage

from data_prep import errors, workers
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
_NAN = float("nan")
# Of ImageCAS at half resolution, where the published figures of trees were
# measured: its voxels are 0.29 to 0.43 mm (Zeng et al., 2023).
TREE_MM = 0.72
BOX_MM = 128.0
_SQUARE_MM = 12.0
# A scan no coarser than this is compared with figures of native voxels.
_NATIVE_MM = 0.7
HEART = (
  Tissue.LEFT_VENTRICLE,
  Tissue.RIGHT_VENTRICLE,
  Tissue.LEFT_ATRIUM,
  Tissue.RIGHT_ATRIUM,
  Tissue.MYOCARDIUM,
)
_VESSEL = (Tissue.LUMEN, Tissue.STABLE_PLAQUE, Tissue.UNSTABLE_PLAQUE)


@dataclasses.dataclass(frozen=True)
class Figure:
  """A line of the table.

  Attributes:
    name: what is measured, with its unit.
    low: of real patients; NaN if only the scan is known.
    high: likewise.
    source: where the range is from.
    tolerance: how far from the scan's own value still counts as alike; of the
      scan's value if `relative`.
    digits: behind the point.
    relative: see `tolerance`.
  """

  name: str
  low: float
  high: float
  source: str
  tolerance: float = 0.1
  digits: int = 0
  relative: bool = True


_SHARED = "the scan of ../shared"
_COCA = "six gated scans of COCA"
_ONE = "one coronary CTA (goudurix)"
_TREES = "19 trees of ImageCAS at 0.72 mm"
_LINE = "one expert centreline"
# Ranges of real patients. Of "10-90 %" ranges, the published quantiles.
FIGURES = (
  Figure("aorta, HU", 250, 600, "SCCT 2016: above 250; " + _ONE + " 311"),
  Figure("heart blood, HU", 200, 600, "SCCT 2016", 0.15),
  Figure("right ventricle, HU", 80, 700, "from flushed to streaming"),
  Figure("myocardium, HU", 80, 140, _SHARED + " 126"),
  Figure("lung, HU", -900, -760, _SHARED + " -803", 0.03),
  Figure("fat, HU", -115, -85, _SHARED + " -101"),
  Figure("liver, HU", 50, 120, _SHARED + " 78", 0.2),
  Figure("bone above 150 HU, 10 %", 150, 180, _SHARED + " 158"),
  Figure("bone above 150 HU, median", 210, 330, _SHARED + " 264", 0.2),
  Figure("bone above 150 HU, 90 %", 450, 900, _SHARED + " 753", 0.2),
  Figure("noise SD in the aorta, HU", 15, 40, "by dose and body", 0.25),
  Figure(
    "noise spectrum, peak, 1/mm", _NAN, _NAN, _SHARED, 0.06, 2, relative=False
  ),
  Figure(
    "noise spectrum, mean, 1/mm", _NAN, _NAN, _SHARED, 0.04, 2, relative=False
  ),
  Figure("edge 10-90 %, aorta, mm", _NAN, _NAN, _SHARED, 0.25, 2),
  Figure("edge 10-90 %, heart to lung, mm", _NAN, _NAN, _SHARED, 0.25, 2),
  Figure("native: noise SD, HU", 15, 40, _ONE + " 19; by dose"),
  Figure("native: noise spectrum, peak, 1/mm", 0.13, 0.28, _COCA, 0, 2),
  Figure("native: noise spectrum, mean, 1/mm", 0.29, 0.42, _COCA, 0, 2),
  Figure("native: edge 10-90 %, aorta, mm", 2.0, 3.0, _ONE + " 2.5", 0.2, 2),
  Figure("fat share of 128 mm", 0.05, 0.17, "eight scans", 0.2, 3),
  Figure("lung share above -400 HU", 0.03, 0.06, _SHARED + " 0.044", 0.2, 3),
  Figure("heart, mL", 450, 900, _SHARED + " 669", 0.1),
  Figure("aorta ascending, mm", 26, 40, "issue; Wolak 2008", 0.05, 1),
  Figure("aorta descending, mm", 18, 40, "issue; Wolak 2008", 0.05, 1),
  Figure("coronary volume, mL", 4.3, 7.7, _TREES, 0.1, 1),
  Figure("coronary skeleton, mm", 486, 753, _TREES),
  Figure("coronary radius, 10 %, mm", 0.95, 1.2, _TREES + " 1.1", 0.1, 2),
  Figure("coronary radius, median, mm", 1.35, 1.6, _TREES + " 1.5", 0.1, 2),
  Figure("coronary radius, 90 %, mm", 1.8, 2.3, _TREES + " 2.0", 0.1, 2),
  Figure("coronary end points", 7, 18, _TREES),
  Figure("coronary parts", 2, 3, _TREES + ": 2 in 18"),
  Figure("coronary turning, degrees/mm", 4, 7, _LINE + " 5.5", 0.2, 1),
  Figure("RCA radius at 0 mm", 1.6, 3.0, _LINE + " 2.96; Dodge 1992", 0.1, 2),
  Figure("RCA radius at 40 mm", 1.5, 3.0, _LINE + " 2.92", 0.1, 2),
  Figure("RCA radius at 80 mm", 1.3, 2.3, _LINE + " 2.11", 0.1, 2),
  Figure("RCA radius at 120 mm", 1.0, 2.3, _LINE + " 2.26", 0.1, 2),
)
_BY_NAME = {figure.name: figure for figure in FIGURES}


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
    "noise SD in the aorta, HU": measures.noise_sd(hu, squares),
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
  names = ("10 %", "median", "90 %")
  if not len(values):
    return {}
  found = np.percentile(values, (10, 50, 90))
  return {
    f"bone above 150 HU, {name}": float(value)
    for name, value in zip(names, found, strict=True)
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
  # A first look, coarse and wide, to learn where this patient's heart is.
  look = _box(np.zeros(3), (500.0, 300.0, 300.0), (100.0,) * 3)
  drawn = make_phantom(seed, grid=look, **options)
  near = np.array(drawn.params["patient"]["heart_center_mm"])
  look = _box(near, (160.0,) * 3, (4.0,) * 3)
  drawn = make_phantom(seed, grid=look, **options)
  middle = of_phantom(drawn).center_mm
  grid = chest.volume.grid
  index = grid.to_index(chest.center_mm)
  origin = middle - _UPRIGHT @ (index * grid.spacing)
  like = Grid(grid.shape, grid.spacing, origin, _UPRIGHT)
  return make_phantom(seed, grid=like, **options)


def _box(center, extent_mm, spacing) -> Grid:
  """Returns upright voxels over a box; all given along D, H, W."""
  spacing = np.array(spacing, float)
  shape = np.maximum(np.rint(np.array(extent_mm) / spacing), 1).astype(int)
  first = (shape - 1) / 2 * spacing
  return Grid(shape, spacing, np.asarray(center) - _UPRIGHT @ first, _UPRIGHT)


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
  grid = _box(points[len(points) // 2], (36.0, 70.0, 70.0), spacing)
  near = of_phantom(make_phantom(seed, grid=grid, **options))
  hu = near.volume.hu.astype(np.float32)
  found = _noise(hu, near.aorta, near.volume.spacing)
  found["edge 10-90 %, aorta, mm"] = measures.edge_width(
    hu, near.aorta, near.volume.spacing, least_hu=150
  )
  names = {"noise SD in the aorta, HU": "native: noise SD, HU"}
  return {names.get(k, f"native: {k}"): v for k, v in found.items()}


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
  grid = _box((low + high) / 2, extent, (TREE_MM,) * 3)
  tissues = make_phantom(seed, grid=grid, **options).tissues
  mask = np.isin(tissues, _VESSEL)
  tree = measures.measure_tree(mask, grid.spacing)
  out = {
    "coronary volume, mL": float(mask.sum() * TREE_MM**3 / 1e3),
    "coronary skeleton, mm": tree.length_mm,
    "coronary end points": float(tree.ends),
    "coronary parts": float(tree.parts),
    "coronary turning, degrees/mm": measures.mean_turning(lines.values()),
  }
  if len(tree.radius_mm):
    names = ("10 %", "median", "90 %")
    found = np.percentile(tree.radius_mm, (10, 50, 90))
    for name, value in zip(names, found, strict=True):
      out[f"coronary radius, {name}, mm"] = float(value)
  if "RCA" in lines:
    parts = [lines[name] for name in ("RCA", "R-PDA") if name in lines]
    line = measures.resample(np.concatenate(parts), 1.0)
    for at in (0, 40, 80, 120):
      if at < len(line):
        out[f"RCA radius at {at} mm"] = float(line[at, 3])
  return out


def measure_phantom(
  seed: int, chest: Chest, **options: Any
) -> tuple[dict[str, float], Phantom]:
  """Returns all figures of a phantom drawn like a scan, and the phantom."""
  like = make_like(seed, chest, **options)
  found = measure_chest(of_phantom(like))
  found |= measure_native(seed, like, **options)
  found |= measure_coronaries(seed, like, **options)
  return found, like


def _figures(seed, chest, options) -> dict[str, float]:
  return measure_phantom(seed, chest, **options)[0]


# The table.


def judge(
  figure: Figure, real: float, phantoms: Sequence[float]
) -> tuple[tuple[float, float], str]:
  """Returns the range of a figure and where the phantoms' median lies in it.

  Args:
    figure: the figure with its published range.
    real: the scan's value, which widens the range by itself and the figure's
      tolerance; NaN if it has none.
    phantoms: their values.

  Returns:
    ((low, high), "inside", "below", "above", or "" where there is nothing to
    compare).
  """
  low, high = figure.low, figure.high
  if np.isfinite(real):
    reach = figure.tolerance * (abs(real) if figure.relative else 1)
    low, high = np.nanmin([low, real - reach]), np.nanmax([high, real + reach])
  values = [value for value in phantoms if np.isfinite(value)]
  if not values or not np.isfinite(low):
    return (float(low), float(high)), ""
  middle = np.median(values)
  word = "below" if middle < low else "above" if middle > high else "inside"
  return (float(low), float(high)), word


def to_rows(real: dict, phantoms: Sequence[dict]) -> list[dict[str, Any]]:
  """Returns one JSON-able dict per figure; None stands for no value."""
  rows = []
  for figure in FIGURES:
    own = real.get(figure.name, _NAN)
    values = [found.get(figure.name, _NAN) for found in phantoms]
    known = [value for value in values if np.isfinite(value)]
    bounds, word = judge(figure, own, values)
    rows.append(
      {
        "figure": figure.name,
        "scan": _number(own),
        "phantoms": [_number(value) for value in values],
        "median": _number(np.median(known) if known else _NAN),
        "lowest": _number(min(known, default=_NAN)),
        "highest": _number(max(known, default=_NAN)),
        "real_low": _number(bounds[0]),
        "real_high": _number(bounds[1]),
        "source": figure.source,
        "verdict": word,
        "inside": sum(bounds[0] <= value <= bounds[1] for value in known),
      }
    )
  return rows


def _number(value) -> float | None:
  return float(value) if np.isfinite(value) else None


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
  """Returns the table in Markdown, aligned so that it reads as text, too."""
  head = ["figure", "scan", "phantoms", "real range", "source", "median is"]
  lines = [head]
  for row in rows:
    digits = _BY_NAME[row["figure"]].digits
    show = functools.partial(_show, digits=digits)
    phantoms = show(row["median"])
    if len(row["phantoms"]) > 1 and row["median"] is not None:
      phantoms += f" ({show(row['lowest'])} to {show(row['highest'])})"
    bounds = "-"
    if row["real_low"] is not None:
      bounds = f"{show(row['real_low'])} to {show(row['real_high'])}"
    word = row["verdict"] or "-"
    if row["verdict"]:
      known = sum(value is not None for value in row["phantoms"])
      word += f" ({row['inside']} of {known} in)"
    lines.append(
      [row["figure"], show(row["scan"]), phantoms, bounds, row["source"], word]
    )
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  lines.insert(1, ["-" * width for width in widths])
  return "\n".join(
    "| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines
  )


def _show(value: float | None, digits: int) -> str:
  return "-" if value is None else f"{value:.{digits}f}"


# The pictures.

_WINDOWS = {"soft tissue": (-300, 600), "lung": (-1350, 150)}


def draw(chests: dict[str, Chest], slab: float) -> matplotlib.figure.Figure:
  """Draws scans side by side, in two windows, at the same levels of the heart.

  Rows: axial at 80, 50 and 20 % of the heart's height, coronal and sagittal
  through its middle, and a maximum of 20 mm of axial slices.

  Args:
    chests: title -> scan.
    slab: middle of the slab, in the heart's height from below, 0 to 1.
  """
  views = ("80 %", "50 %", "20 %", "coronal", "sagittal", "maximum of 20 mm")
  columns = [(w, title) for w in _WINDOWS for title in chests]
  figure = matplotlib.figure.Figure(
    (3.4 * len(columns), 3.3 * len(views)), layout="constrained"
  )
  axes = figure.subplots(len(views), len(columns), squeeze=False)
  for column, (window, title) in enumerate(columns):
    low, high = _WINDOWS[window]
    for row, view in enumerate(views):
      pixels, aspect = _view(chests[title], view, slab)
      ax = axes[row][column]
      ax.imshow(
        pixels, "gray", vmin=low, vmax=high, aspect=aspect, interpolation="none"
      )
      ax.set(xticks=[], yticks=[])
      if row == 0:
        ax.set_title(f"{title}, {window}")
      if column == 0:
        ax.set_ylabel(view)
  return figure


def _view(chest, view, slab) -> tuple[np.ndarray, float]:
  """Returns (pixels, height of a pixel by its width)."""
  hu, spacing = chest.volume.hu, chest.volume.spacing
  low, high = chest.span
  middle = chest.volume.grid.to_index(chest.center_mm)
  at = np.clip(np.rint(middle), 0, np.array(hu.shape) - 1).astype(int)
  if view == "coronal":
    return hu[::-1, at[1]], spacing[0] / spacing[2]
  if view == "sagittal":
    return hu[::-1, :, at[2]], spacing[0] / spacing[1]
  if view.startswith("maximum"):
    level = low + slab * (high - low)
    half = 10 / spacing[0]
    first = int(np.clip(np.rint(level - half), 0, len(hu) - 1))
    last = max(int(np.rint(level + half)), first + 1)
    return hu[first:last].max(0), spacing[1] / spacing[2]
  level = low + float(view.split()[0]) / 100 * (high - low)
  level = int(np.clip(np.rint(level), 0, len(hu) - 1))
  return hu[level], spacing[1] / spacing[2]


def coronary_level(chest: Chest) -> float:
  """Returns where 20 mm of axial slices hold most of a phantom's lumen.

  Above the heart's middle, where the first parts of the arteries run level;
  in the heart's height from below, 0 to 1.
  """
  count = (chest.tissues == Tissue.LUMEN).sum((1, 2)).astype(float)
  low, high = chest.span
  inside = ndimage.uniform_filter1d(
    count, max(int(20 / chest.volume.spacing[0]), 1), mode="constant"
  )
  inside[: int((low + high) / 2)] = 0
  if not inside.any():
    return 0.75
  return float((inside.argmax() - low) / (high - low))


# The program.


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines the flags."""
  options = {"flag_values": values}
  text = flags.DEFINE_string
  text("scan", None, "A real scan of the chest; required.", **options)
  text("aorta", None, "Mask of its aorta, on its voxels.", **options)
  text("heart", None, "Mask of its heart, on its voxels.", **options)
  text("out", None, "Folder for table and pictures.", **options)
  integer = flags.DEFINE_integer
  integer("phantoms", 6, "How many.", 1, **options)
  integer("seed", 0, "Of the first phantom.", 0, **options)
  integer("workers", 1, "Processes.", 1, **options)
  flags.DEFINE_enum(
    "severity", "clinical", ["clinical", "overt"], "Of disease.", **options
  )


def compare(
  chest: Chest, seeds: Sequence[int], *, num_workers: int = 1, **options: Any
) -> tuple[list[dict[str, Any]], matplotlib.figure.Figure]:
  """Compares phantoms with a scan; returns (rows of the table, pictures).

  Args:
    chest: the scan.
    seeds: of the phantoms; the first is drawn.
    num_workers: processes.
    **options: of `make_phantom`.
  """
  work = functools.partial(_figures, chest=chest, options=options)
  phantoms = []
  for found in workers.ordered_map(work, list(seeds), workers=num_workers):
    if isinstance(found, UserError):
      raise found
    phantoms.append(found)
  rows = to_rows(measure_chest(chest), phantoms)
  first = of_phantom(make_like(seeds[0], chest, **options))
  shown = {"scan": chest, f"phantom {seeds[0]}": first}
  return rows, draw(shown, coronary_level(first))


def main(argv: Sequence[str]) -> None:
  """Compares what the flags name."""
  del argv
  args = flags.FLAGS
  if args.scan is None:
    raise UserError("--scan is missing: a real scan of the chest")
  chest = read_chest(args.scan, args.aorta, args.heart)
  rows, figure = compare(
    chest,
    range(args.seed, args.seed + args.phantoms),
    num_workers=args.workers,
    severity=args.severity,
  )
  table = to_markdown(rows)
  print(table)
  if args.out is not None:
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.md").write_text(table + "\n")
    (out / "compare.json").write_text(json.dumps(rows, indent=2) + "\n")
    figure.savefig(out / "compare.png", dpi=100)


if __name__ == "__main__":
  errors.run("python -m data_prep.phantom.compare", main, define_flags)
