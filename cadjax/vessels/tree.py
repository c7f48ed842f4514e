"""The vessels of one mask: centrelines in mm, and what is measured along them.

All mm are LPS (x to the left, y to the back, z up), and all arrays numpy on
the host.
"""

import dataclasses
import functools

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

STEP_MM = 0.5
# Of the Gaussian along a centreline under which an area is measured.
_SIGMA_MM = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Branch:
  """One vessel, from its take-off to its end.

  Attributes:
    name: unique in the tree, such as "LAD" or "marginal of LCx 2".
    kind: the name without its number.
    sureness: of the name: "high", "moderate", "low" or "none".
    parent: number of the branch that it springs from; -1 for none.
    course_mm: [M, 3] the centreline from the ostium through its parents to
      its end, a point every `STEP_MM`.
    course_distance_mm: [M] way along it from the ostium; NaN where the branch
      hangs on no ostium.
    start: index into the course of its own first point, the take-off.
    free: index of the first point outside its parent's lumen.
    radius_mm: [M - start] of a circle with the area of the mask's
      cross-section; NaN inside a bridged gap.
  """

  name: str
  kind: str
  sureness: str
  parent: int
  course_mm: np.ndarray
  course_distance_mm: np.ndarray
  start: int
  free: int
  radius_mm: np.ndarray

  @property
  def points_mm(self) -> np.ndarray:
    """[N, 3] its own centreline."""
    return self.course_mm[self.start :]

  @property
  def distance_mm(self) -> np.ndarray:
    """[N] from the ostium along the centreline."""
    return self.course_distance_mm[self.start :]

  @property
  def length_mm(self) -> float:
    """From its take-off to its end."""
    steps = np.diff(self.points_mm, axis=0)
    return float(np.linalg.norm(steps, axis=1).sum())


@dataclasses.dataclass(frozen=True, eq=False)
class Ostium:
  """Where a tree begins.

  Attributes:
    position_mm: [3], on the aorta where there is one.
    side: "left", "right" or "" if unknown.
    sureness: of the side, as in `Branch`.
  """

  position_mm: np.ndarray
  side: str
  sureness: str


@dataclasses.dataclass(frozen=True, eq=False)
class VesselTree:
  """The vessels of one mask.

  Attributes:
    branches: each after its parent.
    ostia: one per tree that has one.
    affine: [4, 4], (d, h, w, 1) to LPS mm, of the mask.
    shape: of the mask.
    voxels: [K, 3] (d, h, w) of the mask that are part of these vessels;
      cavities in them are, islands beside them are not.
    notes: what a reader has to know, in sentences.
  """

  branches: tuple[Branch, ...]
  ostia: tuple[Ostium, ...]
  affine: np.ndarray
  shape: tuple[int, int, int]
  voxels: np.ndarray
  notes: tuple[str, ...]

  @property
  def names(self) -> tuple[str, ...]:
    """The branches' names, in their order."""
    return tuple(branch.name for branch in self.branches)

  def branch(self, name: str) -> Branch | None:
    """Returns the branch of this name, None if there is none."""
    return next((b for b in self.branches if b.name == name), None)

  @functools.cached_property
  def _points(self) -> tuple[cKDTree, np.ndarray, np.ndarray]:
    owner, place, points = [], [], []
    for number, branch in enumerate(self.branches):
      own = np.arange(branch.free, len(branch.course_mm))
      owner.append(np.full(len(own), number))
      place.append(own - branch.start)
      points.append(branch.course_mm[own])
    return (
      cKDTree(np.concatenate(points)),
      np.concatenate(owner),
      np.concatenate(place),
    )

  def nearest(
    self, points_mm: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the nearest place on a centreline.

    The first stretch of a branch, which lies in its parent's lumen, counts
    for the parent.

    Args:
      points_mm: [K, 3].

    Returns:
      (branch number [K], index into its `points_mm` [K], mm away [K]); -1, -1
      and infinity where the tree is empty.
    """
    count = len(points_mm)
    if not self.branches or not count:
      nowhere = np.full(count, -1)
      return nowhere, nowhere, np.full(count, np.inf)
    tree, owner, place = self._points
    away, found = tree.query(points_mm)
    return owner[found], place[found], away

  def to_mm(self, index: np.ndarray) -> np.ndarray:
    """Maps voxels [..., 3] to LPS mm [..., 3]."""
    return np.asarray(index) @ self.affine[:3, :3].T + self.affine[:3, 3]

  def to_index(self, mm: np.ndarray) -> np.ndarray:
    """Maps LPS mm [..., 3] to voxel indices [..., 3], with fractions."""
    inverse = np.linalg.inv(self.affine[:3, :3])
    return (np.asarray(mm) - self.affine[:3, 3]) @ inverse.T


def voxel_mm(affine: np.ndarray) -> float:
  """Returns the edge of a cube of a voxel's volume."""
  return float(abs(np.linalg.det(affine[:3, :3])) ** (1 / 3))


def calibre(
  tree: VesselTree, mask: np.ndarray, support: np.ndarray | None = None
) -> list[np.ndarray]:
  """Measures the radius along every branch from a mask.

  Each voxel counts for the nearest place on a centreline; the volume per mm
  of way, under a Gaussian of 1 mm or a voxel if that is more, is the area of
  the cross-section, and the radius that of a circle with this area. Unlike
  the distance to the background, which is a multiple of half a voxel and
  sees the narrowest direction only, this keeps the mask's volume.

  Bias: a fork's bulge counts for the nearest branch; a stretch shorter than
  the Gaussian is smeared; a mask that is too fat by half a voxel gives a
  radius that is too great by half a voxel.

  Args:
    tree: the vessels; only its `voxels` count.
    mask: [D, H, W], above 0 inside; of the lumen, say.
    support: where there is a vessel at all; `mask` if None. Where it is empty
      the radius is NaN; where it is not and `mask` is, the radius is 0.

  Returns:
    One [N] per branch in mm, as long as its `points_mm`; NaN inside bridged
    gaps, in the wall of the aorta and inside the parent.
  """
  at = tuple(tree.voxels.T)
  inside = np.asarray(mask)[at] > 0
  covered = inside if support is None else np.asarray(support)[at] > 0
  return radii(tree, inside, covered)


def radii(
  tree: VesselTree, inside: np.ndarray, covered: np.ndarray
) -> list[np.ndarray]:
  """Does the work of `calibre`, given which voxels of the tree count [K]."""
  edge = voxel_mm(tree.affine)
  sigma = max(edge, _SIGMA_MM) / STEP_MM
  reach = int(np.ceil(edge / STEP_MM))
  points = tree.to_mm(tree.voxels)
  owner, place, _ = tree.nearest(points)
  found = []
  for number, branch in enumerate(tree.branches):
    line = branch.points_mm
    mine = owner == number
    # What lies beyond the ends is not a cross-section of theirs.
    first, last = branch.free - branch.start, len(line) - 1
    for end, before in ((last, last - 1), (first, min(first + 1, last))):
      way = line[end] - line[before]
      beyond = (points - line[end]) @ way > STEP_MM / 2 * np.linalg.norm(way)
      mine &= ~(beyond & (place == end))
    count = np.bincount(place[mine & inside], minlength=len(line))
    cover = np.bincount(place[mine & covered], minlength=len(line))
    there = ndimage.maximum_filter1d(cover, 2 * reach + 1) > 0
    there[:first] = False
    share = ndimage.gaussian_filter1d(there.astype(float), sigma)
    volume = count * edge**3 / STEP_MM
    area = ndimage.gaussian_filter1d(volume, sigma)
    radius = np.sqrt(area / np.maximum(share, 1e-6) / np.pi)
    found.append(np.where(there, radius, np.nan))
  return found
