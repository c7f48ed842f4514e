"""Narrowings of the lumen against a robust taper of each branch."""

import dataclasses

import numpy as np
from scipy import signal

from cadjax.vessels import STEP_MM, VesselTree, calibre

# A line through less than this says nothing about taper.
_SHORTEST_MM = 15.0
# Points below the line by more than this share are narrowings, not vessel.
_NARROWED = 0.1
_NARROWED_WEIGHT = 0.02
_ROUNDS = 20
# The radius falls off where the mask thins out at a vessel's end.
_END_MM = 5.0


@dataclasses.dataclass(frozen=True, eq=False)
class Calibre:
  """The lumen of one branch.

  Attributes:
    radius_mm: [N] as `vessels.calibre`.
    reference_mm: [N] what it would be without narrowings; NaN for a branch
      too short to tell.
    resolved: [N] bool, where the reference is at least `least_voxels`.
  """

  radius_mm: np.ndarray
  reference_mm: np.ndarray
  resolved: np.ndarray

  @property
  def stenosis(self) -> np.ndarray:
    """[N] share of the diameter lost, below 0 where it is wider."""
    return 1 - self.radius_mm / self.reference_mm


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

  A straight line by asymmetric least squares, points more than 10 % below it
  counting a fiftieth, that never widens.

  Args:
    way_mm: [N] along the vessel.
    radius_mm: [N]; NaN where not known.

  Returns:
    [N] mm; NaN if less than 15 mm are known.
  """
  known = np.isfinite(radius_mm)
  if known.sum() * STEP_MM < _SHORTEST_MM:
    return np.full(len(radius_mm), np.nan)
  x, y = way_mm[known], radius_mm[known]
  line = np.full(len(y), np.percentile(y, 70))
  for _ in range(_ROUNDS):
    weight = np.where(y < (1 - _NARROWED) * line, _NARROWED_WEIGHT, 1.0)
    middle = np.average(x, weights=weight)
    level = np.average(y, weights=weight)
    spread = np.average((x - middle) ** 2, weights=weight)
    slope = np.average((x - middle) * (y - level), weights=weight) / spread
    slope = min(float(slope), 0.0)
    line = level + slope * (x - middle)
  return np.maximum(level + slope * (way_mm - middle), 1e-3)


def calibres(
  tree: VesselTree,
  lumen: np.ndarray,
  vessel: np.ndarray | None = None,
  least_voxels: float = 2.0,
) -> list[Calibre]:
  """Measures every branch of a tree; arguments as `vessels.calibre`.

  Args:
    tree: the vessels.
    lumen: [D, H, W], above 0 inside.
    vessel: lumen and plaque; `lumen` if None.
    least_voxels: radius in voxels (edges of a cube of their volume) from
      which on a narrowing can be told from the grid.
  """
  voxel_mm = abs(np.linalg.det(tree.affine[:3, :3])) ** (1 / 3)
  found = []
  for radius in calibre(tree, lumen, vessel):
    reference = reference_radius(STEP_MM * np.arange(len(radius)), radius)
    resolved = reference >= least_voxels * voxel_mm
    found.append(Calibre(radius, reference, resolved))
  return found


def find_narrowings(
  measured: list[Calibre], least: float, apart_mm: float
) -> list[Narrowing]:
  """Finds the places where resolved vessels are narrowest.

  Args:
    measured: of `calibres`.
    least: share of the diameter that must be lost.
    apart_mm: of two nearer ones the deeper stays.
  """
  found = []
  for number, one in enumerate(measured):
    depth = np.where(one.resolved, one.stenosis, np.nan)
    depth = np.nan_to_num(depth, nan=0.0)
    depth[len(depth) - int(_END_MM / STEP_MM) :] = 0
    padded = np.concatenate([[0.0], depth, [0.0]])
    peaks, _ = signal.find_peaks(
      padded,
      height=least,
      distance=max(int(apart_mm / STEP_MM), 1),
      plateau_size=1,
    )
    for peak in peaks - 1:
      half = np.flatnonzero(depth < depth[peak] / 2)
      first = half[half < peak].max(initial=-1) + 1
      last = half[half > peak].min(initial=len(depth)) - 1
      found.append(
        Narrowing(number, int(peak), int(first), int(last), float(depth[peak]))
      )
  return found
