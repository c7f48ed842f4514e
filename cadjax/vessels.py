"""From masks of the coronaries and the aorta to vessels in mm.

The mask's skeleton becomes a tree that is rooted where it meets the aorta;
`vessel_names` tells the main vessels by their position. All mm are LPS
(x to the left, y to the back, z up), and all arrays numpy on the host.
"""

import collections
import dataclasses
import functools

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from cadjax import centrelines, vessel_names
from cadjax import ostia as ostia_lib
from cadjax import skeleton as skeleton_lib

STEP_MM = 0.5
# A fragment of a distal vessel, one voxel wide, is more than a speck.
_LEAST_MM3 = 3.0
_LEAST_FRAGMENT_MM = 10.0
# The steps of a skeleton on voxels are about two of them long.
_SMOOTH_VOXELS = 1.5


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


def find_vessels(
  mask_coronary: np.ndarray,
  mask_aorta: np.ndarray | None,
  affine: np.ndarray,
  *,
  gap_mm: float = 10.0,
  spur_mm: float = 3.0,
) -> VesselTree:
  """Finds centrelines, ostia, branches and their names.

  Steps: cavities filled and specks dropped; 3D skeleton; the ostium of each
  tree, its end nearest to the ascending aorta; broken vessels bridged; the
  tree of shortest paths from the ostia; spurs pruned; centrelines centred in
  the mask, smoothed and resampled; names from position.

  An ostium is where the centreline meets the aorta's mask, so distances
  include the wall in between. Where the aorta is missing, the wider end of a
  tree is its ostium, with a note. Fragments that hang on no ostium are kept
  from 10 mm on; their distances are NaN and they have no vessel's name.

  Limits: a gap is bridged along a straight line to whatever vessel is
  nearest, see `skeleton.bridge`; masks of touching vessels are told apart
  only by the shortest path.

  Args:
    mask_coronary: [D, H, W], above 0 where lumen or plaque is.
    mask_aorta: [D, H, W], above 0 inside; None if there is none.
    affine: [4, 4], (d, h, w, 1) to LPS mm.
    gap_mm: the widest gap that is bridged.
    spur_mm: side branches that leave their parent's surface by less go.

  Returns:
    The tree; without branches if the mask is empty.

  Raises:
    ValueError: the masks' shapes differ.
  """
  mask = np.asarray(mask_coronary) > 0
  affine = np.asarray(affine, np.float64)
  if mask_aorta is not None and np.shape(mask_aorta) != mask.shape:
    raise ValueError(f"aorta {np.shape(mask_aorta)}, coronaries {mask.shape}")
  notes: list[str] = []
  box = _box(mask)
  if box is not None:
    mask = mask[box]
    corner = affine.copy()
    corner[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    volume = abs(np.linalg.det(affine[:3, :3]))
    mask = skeleton_lib.clean(mask, volume, _LEAST_MM3)
  shape = np.shape(mask_coronary)
  if box is None or not mask.any():
    notes.append("No coronary artery was found: the mask is empty.")
    return _no_vessels(affine, shape, notes)
  graph = skeleton_lib.make_skeleton(mask, corner)
  surface = ostia_lib.root_surface(mask_aorta, affine)
  if surface is None:
    notes.append(
      "There is no aorta in the mask: the wider end of each tree is taken for"
      " its ostium, and distances start there."
    )
  graph, meets, said = ostia_lib.find_ostia(graph, surface, gap_mm)
  notes += said
  segments = _grow(graph, meets, spur_mm)
  if not segments:
    notes.append("No coronary artery was found: the mask holds only specks.")
    return _no_vessels(affine, shape, notes)
  mask = _of_tree(mask, graph, segments)
  voxels = np.argwhere(mask) + [part.start for part in box]
  middle = ostia_lib.root_middle(surface, [graph.mm[k] for k in meets])
  paths, sides = vessel_names.name_segments(
    segments, graph.mm, list(meets), middle
  )
  branches = _branches(paths, segments, graph, meets, mask, corner)
  ostia = tuple(
    Ostium(graph.mm[k] if meets[k] is None else meets[k], *sides[k])
    for k in meets
    if k in sides
  )
  notes += _missing(paths)
  tree = VesselTree(branches, ostia, affine, shape, voxels, tuple(notes))
  everywhere = np.ones(len(voxels), bool)
  radii = _radii(tree, everywhere, everywhere)
  branches = tuple(
    dataclasses.replace(branch, radius_mm=radius)
    for branch, radius in zip(branches, radii, strict=True)
  )
  return dataclasses.replace(tree, branches=branches)


def _no_vessels(affine, shape, notes) -> VesselTree:
  return VesselTree((), (), affine, shape, np.zeros((0, 3), int), tuple(notes))


def _of_tree(mask, graph, segments) -> np.ndarray:
  """Returns the components of a mask that a tree runs through."""
  labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
  keep = np.zeros(count + 1, bool)
  for segment in segments:
    keep[labels[tuple(graph.index[segment.nodes].T)]] = True
  keep[0] = False
  return keep[labels]


def _box(mask: np.ndarray) -> tuple[slice, ...] | None:
  """Returns the slices around what is True, with a voxel to spare."""
  found = ndimage.find_objects(mask.astype(np.uint8))
  if not found:
    return None
  return tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in found[0])


def _grow(graph, meets, spur_mm) -> list[skeleton_lib.Segment]:
  """Returns the segments of the trees and of fragments of 10 mm or more."""
  parts = graph.parts
  fragments = [
    ostia_lib.widest_end(graph, parts == part)
    for part in np.setdiff1d(np.unique(parts), parts[list(meets)])
  ]
  roots = np.array([*meets, *fragments], int)
  _, reached = skeleton_lib.grow(graph, roots, spur_mm)
  far = np.where(np.isfinite(reached), reached, 0)
  long = [
    k for k in fragments if far[parts == parts[k]].max() >= _LEAST_FRAGMENT_MM
  ]
  return skeleton_lib.grow(graph, np.array([*meets, *long], int), spur_mm)[0]


def _missing(paths) -> list[str]:
  """Returns a sentence if a main vessel has not been found."""
  kinds = {path.kind for path in paths}
  lacking = [name for name in vessel_names.MAIN if name not in kinds]
  if not lacking:
    return []
  return [f"Not found among the vessels: {', '.join(lacking)}."]


def _branches(paths, segments, graph, meets, mask, affine):
  """Returns the branches, without their radii."""
  chains = _chains(paths, segments)
  lines, own = [], []
  for path, (chain, fork) in zip(paths, chains, strict=True):
    line = graph.mm[chain]
    root = int(chain[0])
    if meets.get(root) is not None:
      line = np.vstack([meets[root], line])
    line = centrelines.smooth(line, max(2.0, 1.5 * _voxel_mm(affine)), STEP_MM)
    lines.append(line)
    own.append(_own(line, graph, chain[fork], path.parent, lines))
  parents = [path.parent for path in paths]
  lines = centrelines.centred(lines, own, parents, mask, affine, 1.5, STEP_MM)
  totals = collections.Counter(path.kind for path in paths)
  seen = collections.Counter()
  branches, ready = [], []
  for path, (chain, fork), line in zip(paths, chains, lines, strict=True):
    root, last = int(chain[0]), int(chain[-1])
    line = centrelines.smooth(line, 1.0, STEP_MM)
    reach = 2 * graph.inner_mm
    if graph.ends[last]:
      line = centrelines.extend(line, mask, affine, reach[last])
    if meets.get(root) is None:
      line = centrelines.extend(line[::-1], mask, affine, reach[root])[::-1]
    line = centrelines.resample(line, STEP_MM)
    ready.append(line)
    start, free = _own(line, graph, chain[fork], path.parent, ready)
    distance = centrelines.arc_length(line)
    seen[path.kind] += 1
    name = path.kind
    if totals[path.kind] > 1:
      name += f" {seen[path.kind]}"
    branches.append(
      Branch(
        name=name,
        kind=path.kind,
        sureness=path.sureness,
        parent=path.parent,
        course_mm=line,
        course_distance_mm=distance if root in meets else distance * np.nan,
        start=start,
        free=free,
        radius_mm=np.zeros(0),
      )
    )
  return tuple(branches)


def _chains(paths, segments) -> list[tuple[np.ndarray, int]]:
  """Returns each path's nodes from its root on, and where its own begin."""
  chains: list[tuple[np.ndarray, int]] = []
  for path in paths:
    own = [segments[path.segments[0]].nodes]
    own += [segments[k].nodes[1:] for k in path.segments[1:]]
    own = np.concatenate(own)
    before = own[:0]
    if path.parent >= 0:
      chain, _ = chains[path.parent]
      before = chain[: int(np.flatnonzero(chain == own[0])[0])]
    chains.append((np.concatenate([before, own]), len(before)))
  return chains


def _own(line, graph, fork, parent, lines) -> tuple[int, int]:
  """Returns where a line takes off and where it has left its parent."""
  if parent < 0:
    return 0, 0
  start = int(((line - graph.mm[fork]) ** 2).sum(1).argmin())
  away, _ = cKDTree(lines[parent]).query(line[start:])
  outside = away > graph.inner_mm[fork]
  leaves = int(outside.argmax()) if outside.any() else len(line) - 1 - start
  return start, start + leaves


def _voxel_mm(affine: np.ndarray) -> float:
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
  return _radii(tree, inside, covered)


def _radii(
  tree: VesselTree, inside: np.ndarray, covered: np.ndarray
) -> list[np.ndarray]:
  """Does the work of `calibre`, given which voxels of the tree count [K]."""
  voxel_mm = _voxel_mm(tree.affine)
  sigma = max(voxel_mm, 1.0) / STEP_MM
  reach = int(np.ceil(voxel_mm / STEP_MM))
  points = tree.to_mm(tree.voxels)
  owner, place, _ = tree.nearest(points)
  radii = []
  for number, branch in enumerate(tree.branches):
    line = branch.points_mm
    mine = owner == number
    # What lies beyond the ends is no cross-section of theirs.
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
    volume = count * voxel_mm**3 / STEP_MM
    area = ndimage.gaussian_filter1d(volume, sigma)
    radius = np.sqrt(area / np.maximum(share, 1e-6) / np.pi)
    radii.append(np.where(there, radius, np.nan))
  return radii
