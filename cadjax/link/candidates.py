"""Places that may be abnormal: plaques, and peaks of a heat map."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy import ndimage, signal

from cadjax.vessels.tree import STEP_MM, VesselTree

# A class activation map is smooth on this scale.
_COARSE_MM = 2.0
# A plaque that reaches around a fork leaves a sliver in the other branch.
_SLIVER = 1 / 3


@dataclasses.dataclass(eq=False)
class Candidate:
  """A place that may be abnormal.

  Attributes:
    position_mm: [3] LPS.
    branch: number in the tree; -1 on no vessel.
    first: where it begins, index into the branch's `points_mm`; -1 likewise.
    last: where it ends.
    sources: what found it.
    heat: value that made it a peak, over the map's maximum; NaN if none.
    voxels: [K, 3] of its plaque; None without.
    narrowings: where the lumen is narrowest, indices likewise.
  """

  position_mm: np.ndarray
  branch: int = -1
  first: int = -1
  last: int = -1
  sources: tuple[str, ...] = ()
  heat: float = float("nan")
  voxels: np.ndarray | None = None
  narrowings: tuple[int, ...] = ()

  def line(self, tree: VesselTree) -> np.ndarray:
    """[K, 3] mm of the vessel along it, or its position alone."""
    if self.branch < 0:
      return self.position_mm[None]
    return tree.branches[self.branch].points_mm[self.first : self.last + 1]


def plaques(
  tree: VesselTree,
  masks: Mapping[str, np.ndarray],
  *,
  near_mm: float,
  gap_mm: float,
  least_mm3: float,
) -> list[Candidate]:
  """Gathers plaque voxels into plaques, vessel by vessel.

  Along each branch voxels are one plaque unless `gap_mm` or more lie between
  them, so that the spots of a mixed plaque stay together. Where a plaque
  reaches around a fork, the part in the other branch joins it if it is less
  than a third of it. Off the vessels, components are plaques.

  Args:
    tree: the vessels.
    masks: by type, [D, H, W], above 0 inside.
    near_mm: voxels within this of a centreline are on the vessel.
    gap_mm: along the centreline.
    least_mm3: smaller ones are left out.

  Returns:
    Candidates; on a vessel, at the mean place of their voxels along it.
  """
  mask = np.any([np.asarray(each) > 0 for each in masks.values()], axis=0)
  index = np.argwhere(mask)
  if not len(index):
    return []
  components = ndimage.label(mask, np.ones((3, 3, 3)))[0][tuple(index.T)]
  branch, place, away = tree.nearest(tree.to_mm(index))
  # Numbers below 0 are components off the vessels.
  group = -components
  on = away <= near_mm
  count = 0
  for number in np.unique(branch[on]):
    mine = np.flatnonzero(on & (branch == number))
    mine = mine[np.argsort(place[mine], kind="stable")]
    new = np.diff(place[mine], prepend=place[mine[0]]) * STEP_MM >= gap_mm
    group[mine] = count + np.cumsum(new)
    count = int(group[mine[-1]]) + 1
  _join_slivers(group, components)
  volume = abs(np.linalg.det(tree.affine[:3, :3]))
  found = []
  for one in np.unique(group):
    mine = np.flatnonzero(group == one)
    if len(mine) * volume >= least_mm3:
      found.append(
        _plaque(tree, index[mine], branch[mine], place[mine], one >= 0)
      )
  return found


def _join_slivers(group: np.ndarray, components: np.ndarray) -> None:
  """Joins small groups with larger ones of the same component, in place."""
  if group.max() < 0:
    return
  sizes = np.bincount(group[group >= 0])
  for one in np.argsort(sizes, kind="stable"):
    mine = group == one
    touched = np.isin(components, np.unique(components[mine]))
    others = np.unique(group[touched & ~mine & (group >= 0)])
    if len(others):
      largest = others[sizes[others].argmax()]
      if sizes[one] < _SLIVER * sizes[largest]:
        group[mine] = largest
        sizes[largest] += sizes[one]


def _plaque(tree, voxels, branch, place, on_vessel) -> Candidate:
  if not on_vessel:
    middle = tree.to_mm(voxels).mean(0)
    return Candidate(middle, sources=("plaque",), voxels=voxels)
  # Slivers beyond a fork have no place on the main branch.
  number = int(np.bincount(branch).argmax())
  place = place[branch == number]
  middle = tree.branches[number].points_mm[int(round(place.mean()))]
  return Candidate(
    position_mm=middle,
    branch=number,
    first=int(place.min()),
    last=int(place.max()),
    sources=("plaque",),
    voxels=voxels,
  )


def map_peaks(
  heat: np.ndarray, affine: np.ndarray, *, least: float, apart_mm: float
) -> list[Candidate]:
  """Finds the peaks of a heat map, anywhere.

  A peak is a voxel that no neighbour exceeds, on every k-th voxel where
  voxels are smaller than 2 mm.

  Args:
    heat: [D, H, W]; NaN where not covered.
    affine: [4, 4], (d, h, w, 1) to LPS mm.
    least: share of the maximum that a peak must reach.
    apart_mm: of two peaks nearer than this the higher stays.

  Returns:
    Candidates on no vessel, the highest first; none for a map of zeros.
  """
  spacing = np.linalg.norm(affine[:3, :3], axis=0)
  step = np.maximum(_COARSE_MM // spacing, 1).astype(int)
  coarse = np.nan_to_num(heat[tuple(slice(None, None, k) for k in step)])
  top = coarse.max(initial=0.0)
  if top <= 0:
    return []
  peaks = coarse == ndimage.maximum_filter(coarse, 3, mode="nearest")
  index = np.argwhere(peaks & (coarse >= least * top) & (coarse > 0))
  value = coarse[tuple(index.T)] / top
  mm = (index * step) @ affine[:3, :3].T + affine[:3, 3]
  return [
    Candidate(mm[k], sources=("heat",), heat=float(value[k]))
    for k in _suppress(mm, value, apart_mm)
  ]


def vessel_peaks(
  heat: np.ndarray,
  tree: VesselTree,
  *,
  near_mm: float,
  least: float,
  apart_mm: float,
) -> list[Candidate]:
  """Finds the peaks of a heat map along the centrelines.

  The map along a vessel is its mean within `near_mm`. Two peaks nearer than
  `apart_mm` in space, on whatever vessels, are one: the higher. So they are
  at least that far apart along the centreline too.

  Args:
    heat: [D, H, W] on the grid of the tree; NaN where not covered.
    tree: the vessels.
    near_mm: radius of the mean.
    least: share of the largest such mean anywhere, on vessels or not, that a
      peak must reach. Of the map's own maximum, the mean over a ball is a
      small part where the map is as fine as a plaque.
    apart_mm: see above.

  Returns:
    Candidates, the highest first.
  """
  # What is not covered holds no evidence.
  heat = np.nan_to_num(heat).astype(np.float32, copy=False)
  top = _largest_mean(heat, tree.affine, near_mm)
  if not top > 0:
    return []
  found = []
  for number, branch in enumerate(tree.branches):
    profile = _near_mean(heat, tree, branch.points_mm, near_mm) / top
    # The box is an approximation of the ball, so a ratio may exceed 1.
    profile = np.minimum(profile, 1.0)
    profile[: branch.free - branch.start] = 0
    padded = np.concatenate([[0.0], profile, [0.0]])
    peaks, _ = signal.find_peaks(padded, height=max(least, 1e-9))
    found += [(number, int(k), float(profile[k])) for k in peaks - 1]
  if not found:
    return []
  mm = np.stack([tree.branches[b].points_mm[k] for b, k, _ in found])
  value = np.array([v for _, _, v in found])
  return [
    Candidate(
      position_mm=mm[k],
      branch=found[k][0],
      first=found[k][1],
      last=found[k][1],
      sources=("heat",),
      heat=found[k][2],
    )
    for k in _suppress(mm, value, apart_mm)
  ]


def _largest_mean(heat: np.ndarray, affine, reach_mm: float) -> float:
  """Returns the map's largest mean over a box with the volume of the ball."""
  edge_mm = reach_mm * (4 * np.pi / 3) ** (1 / 3)
  spacing = np.linalg.norm(affine[:3, :3], axis=0)
  size = np.maximum(np.rint(edge_mm / spacing), 1).astype(int)
  return float(
    ndimage.uniform_filter(heat, size, mode="constant").max(initial=0.0)
  )


def _near_mean(heat, tree, points_mm, reach_mm) -> np.ndarray:
  """Returns the map's mean [N] over 33 places in a ball around each point."""
  axis = np.linspace(-1, 1, 5)
  ball = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
  ball = ball.reshape(-1, 3)
  ball = reach_mm * ball[np.linalg.norm(ball, axis=1) <= 1]
  index = tree.to_index(points_mm[:, None] + ball)
  values = ndimage.map_coordinates(
    heat, np.moveaxis(index, -1, 0), order=1, mode="nearest"
  )
  return values.mean(1)


def _suppress(mm: np.ndarray, value: np.ndarray, apart_mm: float) -> list[int]:
  """Returns which places stay, the highest first."""
  stays: list[int] = []
  for k in np.argsort(-value, kind="stable"):
    away = np.linalg.norm(mm[stays] - mm[k], axis=1)
    if not (away < apart_mm).any():
      stays.append(int(k))
  return stays
