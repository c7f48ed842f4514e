"""Narrowings of the lumen against a robust taper of each branch."""

import dataclasses

import numpy as np
from scipy import ndimage, signal
from sklearn.linear_model import QuantileRegressor

from cadjax.vessels.tree import STEP_MM, VesselTree, calibre

# Less than this says nothing about taper, or about a calibre at all.
_TAPER_MM = 15.0
_SHORTEST_MM = 5.0


# Robust to narrowings over less than 60 % of a vessel and to bulges, as at
# forks, over less than 40 %.
_QUANTILE = 0.6
# What is narrow for longer than this is the taper's misfit or a small vessel.
_LONGEST_MM = 30.0
# With less of the reference diameter than this there is no lumen at all.
_NONE_LEFT = 0.05
# Where plaque takes more than this share of the radius, the lumen says nothing
# about the healthy vessel.
_PLAQUE = 0.1


# At a vessel's ends and beside gaps the mask thins out, or another branch
# takes its share of the voxels.
_END_MM = 5.0


@dataclasses.dataclass(frozen=True, eq=False)
class Calibre:
  """The lumen of one branch.

  Attributes:
    radius_mm: [N] as `tree.calibre`.
    reference_mm: [N] what it would be without narrowings; NaN for a branch
      too short to judge.
    resolved: [N] bool, where the reference is at least `least_voxels`.
    filled: [N] bool, where plaque takes the place of all the lumen. Calcium
      blooms, so what is open there is unknown.
    outer_mm: [N] radius of lumen and plaque together.
  """

  radius_mm: np.ndarray
  reference_mm: np.ndarray
  resolved: np.ndarray
  filled: np.ndarray
  outer_mm: np.ndarray

  @property
  def stenosis(self) -> np.ndarray:
    """[N] share of the diameter lost, below 0 where it is wider.

    Not finite where there is no reference.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
      return 1 - self.radius_mm / self.reference_mm

  def inner(self, margin_mm: float) -> np.ndarray:
    """[N] bool, where the radius is known for `margin_mm` on both sides."""
    known = np.pad(np.isfinite(self.stenosis), 1)
    steps = max(int(margin_mm / STEP_MM), 1)
    return ndimage.binary_erosion(known, iterations=steps)[1:-1]


@dataclasses.dataclass(frozen=True)
class Narrowing:
  """One narrowing; indices into the branch's `points_mm`.

  Attributes:
    branch: number in the tree.
    place: where it is narrowest.
    first: where it begins, at half its depth.
    last: where it ends, likewise.
    stenosis: share of the diameter lost at `place`, 0 to 1.
  """

  branch: int
  place: int
  first: int
  last: int
  stenosis: float


def reference_radius(way_mm: np.ndarray, radius_mm: np.ndarray) -> np.ndarray:
  """Fits the taper of a healthy vessel to a radius with narrowings in it.

  The line of quantile regression at 0.6, if it does not widen; else, and for
  a vessel below 15 mm, such as most left mains, the quantile itself.

  Args:
    way_mm: [N] along the vessel.
    radius_mm: [N]; NaN where not known.

  Returns:
    [N] mm; NaN if less than 5 mm are known.
  """
  known = np.isfinite(radius_mm)
  if known.sum() * STEP_MM < _SHORTEST_MM:
    return np.full(len(radius_mm), np.nan)
  x, y = way_mm[known, None], radius_mm[known]
  if known.sum() * STEP_MM >= _TAPER_MM:
    line = QuantileRegressor(quantile=_QUANTILE, alpha=0).fit(x, y)
    if line.coef_[0] <= 0:
      return np.maximum(line.predict(way_mm[:, None]), 1e-3)
  return np.full(len(radius_mm), np.quantile(y, _QUANTILE))


def calibres(
  tree: VesselTree,
  lumen: np.ndarray,
  vessel: np.ndarray | None = None,
  least_voxels: float = 2.0,
) -> list[Calibre]:
  """Measures every branch of a tree; arguments as `tree.calibre`.

  The reference diameter is fitted to the parts of a branch without plaque, if
  these are more than 5 mm long in total.

  Args:
    tree: the vessels.
    lumen: [D, H, W], above 0 inside.
    vessel: lumen and plaque; `lumen` if None.
    least_voxels: radius in voxels (edges of a cube of their volume) from
      which on a narrowing can be distinguished from the grid.
  """
  voxel_mm = abs(np.linalg.det(tree.affine[:3, :3])) ** (1 / 3)
  lumens = calibre(tree, lumen, vessel)
  outer = lumens if vessel is None else calibre(tree, vessel)
  found = []
  for radius, outside in zip(lumens, outer, strict=True):
    reference = reference_radius(
      STEP_MM * np.arange(len(radius)), _healthy(radius, outside)
    )
    resolved = reference >= least_voxels * voxel_mm
    filled = (radius < _NONE_LEFT * reference) & (outside > reference / 2)
    found.append(Calibre(radius, reference, resolved, filled, outside))
  return found


def _healthy(radius_mm: np.ndarray, outer_mm: np.ndarray) -> np.ndarray:
  """Returns the lumen's radius, NaN where there is plaque around it.

  All of it where no more than 5 mm are free of plaque.
  """
  plaque = outer_mm - radius_mm > _PLAQUE * outer_mm
  free = np.where(plaque, np.nan, radius_mm)
  enough = np.isfinite(free).sum() * STEP_MM >= _SHORTEST_MM
  return free if enough else radius_mm


def find_narrowings(
  measured: list[Calibre], least: float, apart_mm: float
) -> list[Narrowing]:
  """Finds the places where resolved vessels are narrowest.

  Not within 5 mm of where the radius begins or ends, so a narrowing of an
  ostium is not among them, none longer than 30 mm at half its depth, and
  none that plaque fills. What is not among them hides none of its neighbours.

  Args:
    measured: of `calibres`.
    least: share of the diameter that must be lost.
    apart_mm: of two nearer ones the deeper stays.
  """
  return [
    narrowing
    for number, one in enumerate(measured)
    for narrowing in _of_branch(number, one, least, apart_mm)
  ]


def _of_branch(
  number: int, one: Calibre, least: float, apart_mm: float
) -> list[Narrowing]:
  depth = np.nan_to_num(one.stenosis, nan=0.0)
  known = one.resolved & ~one.filled
  usable = known & one.inner(_END_MM)
  # Maxima of the lumen as it is: beside calcium the lumen narrows towards
  # what cannot be measured, and the last place before it is no narrowing.
  peaks, _ = signal.find_peaks(np.pad(depth, 1), height=least)
  found = {}
  for peak in peaks - 1:
    if not usable[peak]:
      continue
    edge = np.flatnonzero((depth < depth[peak] / 2) | ~known)
    first = int(edge[edge < peak].max(initial=-1)) + 1
    last = int(edge[edge > peak].min(initial=len(depth))) - 1
    if (last - first) * STEP_MM <= _LONGEST_MM:
      found[int(peak)] = Narrowing(
        number, int(peak), first, last, float(depth[peak])
      )
  alone = np.zeros(len(depth) + 2)
  for peak, narrowing in found.items():
    alone[peak + 1] = narrowing.stenosis
  stays, _ = signal.find_peaks(
    alone, height=least, distance=max(int(apart_mm / STEP_MM), 1)
  )
  return [found[int(peak)] for peak in stays - 1]
