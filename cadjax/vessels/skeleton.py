"""The skeleton of a vessel mask as a graph, and the graph as a tree.

Voxels of the skeleton are nodes; neighbours, diagonal ones too, are joined by
edges as long as their distance in mm. Everything is numpy on the host.
"""

import dataclasses

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree
from skimage.morphology import skeletonize

_NEIGHBOURS = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1)
# Half of the 26: an edge is found once.
_NEIGHBOURS = _NEIGHBOURS.reshape(-1, 3)[14:]


# Across a longer gap the broken end has to point at what it is joined with,
# within 45 degrees.
_BLIND_GAP_MM = 2.0
_POINTS_AT = 0.7
_TANGENT_MM = 8.0
_SPECK_MM = 5.0


@dataclasses.dataclass(frozen=True, eq=False)
class Skeleton:
  """A graph of skeleton voxels.

  Attributes:
    index: [N, 3] voxel (d, h, w).
    mm: [N, 3] LPS mm.
    inner_mm: [N] distance from the voxel's centre to the nearest voxel
      outside the mask, an estimate of the radius that is up to a voxel off.
    edges: [N, N] symmetric sparse matrix of lengths in mm.
    bridged: [N, N] sparse, True where an edge closes a gap of the mask.
  """

  index: np.ndarray
  mm: np.ndarray
  inner_mm: np.ndarray
  edges: sparse.csr_matrix
  bridged: sparse.csr_matrix

  @property
  def parts(self) -> np.ndarray:
    """[N] number of the connected part that each node belongs to."""
    return csgraph.connected_components(self.edges, directed=False)[1]

  @property
  def ends(self) -> np.ndarray:
    """[N] bool, True where a node has one neighbour or none."""
    return np.diff(self.edges.indptr) <= 1


def clean(mask: np.ndarray, voxel_mm3: float, least_mm3: float) -> np.ndarray:
  """Fills cavities and drops small components.

  A cavity would turn the skeleton, which keeps the topology, into a shell.

  Args:
    mask: [D, H, W] bool.
    voxel_mm3: volume of a voxel.
    least_mm3: smaller components go; corners connect.
  """
  filled = ndimage.binary_fill_holes(mask)
  labels, count = ndimage.label(filled, np.ones((3, 3, 3)))
  sizes = np.bincount(labels.ravel(), minlength=count + 1) * voxel_mm3
  keep = sizes >= least_mm3
  keep[0] = False
  return keep[labels]


def make_skeleton(mask: np.ndarray, affine: np.ndarray) -> Skeleton:
  """Returns the skeleton (Lee 1994) of a mask as a graph.

  Args:
    mask: [D, H, W] bool.
    affine: [4, 4], (d, h, w, 1) to LPS mm.
  """
  thin = skeletonize(mask)
  index = np.argwhere(thin)
  number = np.full(thin.shape, -1, np.int32)
  number[thin] = np.arange(len(index))
  spacing = np.linalg.norm(affine[:3, :3], axis=0)
  inner = ndimage.distance_transform_edt(mask, sampling=spacing)[thin]
  mm = index @ affine[:3, :3].T + affine[:3, 3]
  pairs = []
  for step in _NEIGHBOURS:
    other = index + step
    inside = ((other >= 0) & (other < thin.shape)).all(1)
    found = np.full(len(index), -1)
    found[inside] = number[tuple(other[inside].T)]
    first = np.flatnonzero(found >= 0)
    pairs.append(np.column_stack([first, found[first]]))
  pairs = np.concatenate(pairs) if pairs else np.zeros((0, 2), int)
  empty = sparse.csr_matrix((len(index),) * 2, dtype=bool)
  return Skeleton(index, mm, inner, _symmetric(pairs, mm), empty)


def _symmetric(pairs: np.ndarray, mm: np.ndarray) -> sparse.csr_matrix:
  length = np.linalg.norm(mm[pairs[:, 0]] - mm[pairs[:, 1]], axis=1)
  half = sparse.coo_matrix((length, pairs.T), shape=(len(mm),) * 2)
  return (half + half.T).tocsr()


def bridge(
  skeleton: Skeleton, gap_mm: float, anchored: np.ndarray
) -> tuple[Skeleton, list[float]]:
  """Joins the parts of a broken vessel along the nearest ends.

  An end is joined with an end of another part or, so that a side branch
  finds its parent, with any of its nodes. The cheapest joint comes first: the
  cost is the length, up to three times as much where the ends do not point
  at each other. A gap, between the surfaces, of up to 2 mm is closed in any
  direction; a longer one only where the end points at the other within 45
  degrees, and not for a part shorter than 5 mm, which is a speck more often
  than a vessel. Two parts that both have an ostium are never joined.

  Limit: the rule knows no anatomy, so a fragment may be joined to a vessel
  that happens to lie ahead of it within `gap_mm`.

  Args:
    skeleton: the graph.
    gap_mm: no wider gap is closed.
    anchored: [R] the nodes that are ostia.

  Returns:
    (the graph with the new edges, the gaps that were closed in mm).
  """
  parts = skeleton.parts
  ends = np.flatnonzero(skeleton.ends)
  if parts.max(initial=0) == 0 or not len(ends):
    return skeleton, []
  short = part_lengths(skeleton) < _SPECK_MM
  outward = np.zeros_like(skeleton.mm)
  outward[ends] = _outward(skeleton, ends)
  tree = cKDTree(skeleton.mm)
  reach = gap_mm + 2 * skeleton.inner_mm.max()
  found = []
  for end, near in zip(
    ends, tree.query_ball_point(skeleton.mm[ends], reach), strict=True
  ):
    near = np.array([k for k in near if parts[k] != parts[end]], int)
    if not len(near):
      continue
    away = skeleton.mm[near] - skeleton.mm[end]
    length = np.linalg.norm(away, axis=1)
    gap = length - skeleton.inner_mm[near] - skeleton.inner_mm[end]
    gap = np.maximum(gap, 0)
    aim = away @ outward[end] / length
    met = -(away * outward[near]).sum(1) / length
    speck = short[parts[end]] | short[parts[near]]
    allowed = (gap <= _BLIND_GAP_MM) | (
      (gap <= gap_mm) & (aim >= _POINTS_AT) & ~speck
    )
    cost = length * (3 - aim - np.maximum(met, 0))
    for k in np.flatnonzero(allowed):
      found.append((cost[k], gap[k], end, near[k]))
  # Each part is its own group at first; `holds` says which have an ostium.
  group = np.arange(parts.max() + 1)
  holds = np.zeros(len(group), bool)
  holds[parts[anchored]] = True
  pairs, gaps = [], []
  for _, gap, a, b in sorted(found):
    one, two = group[parts[a]], group[parts[b]]
    if one == two or (holds[one] and holds[two]):
      continue
    holds[one] = holds[one] or holds[two]
    group[group == two] = one
    pairs.append((a, b))
    gaps.append(float(gap))
  if not pairs:
    return skeleton, []
  added = _symmetric(np.array(pairs), skeleton.mm)
  return (
    dataclasses.replace(
      skeleton,
      edges=(skeleton.edges + added).tocsr(),
      bridged=(skeleton.bridged + (added > 0)).tocsr(),
    ),
    gaps,
  )


def part_lengths(skeleton: Skeleton) -> np.ndarray:
  """Returns the mm of all edges of each part."""
  each = np.asarray(skeleton.edges.sum(1)).ravel() / 2
  return np.bincount(skeleton.parts, weights=each)


def _outward(skeleton: Skeleton, ends: np.ndarray) -> np.ndarray:
  """Returns unit vectors [E, 3] in which a skeleton points at its ends.

  From the middle of the nodes within 8 mm; zero for a part of one node.
  """
  near = csgraph.dijkstra(skeleton.edges, indices=ends, limit=_TANGENT_MM)
  near = np.isfinite(near).astype(float)
  middle = near @ skeleton.mm / near.sum(1, keepdims=True)
  way = skeleton.mm[ends] - middle
  return way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-9)


@dataclasses.dataclass(eq=False)
class Segment:
  """A stretch between two forks, or between a fork and an end.

  Attributes:
    nodes: of the skeleton, from the fork (that the parent ends with) on.
    parent: number of the segment before; -1 at a root.
    children: numbers of the segments after.
  """

  nodes: np.ndarray
  parent: int
  children: list[int]


def grow(
  skeleton: Skeleton, roots: np.ndarray, spur_mm: float
) -> tuple[list[Segment], np.ndarray]:
  """Returns the shortest-path tree from the roots, without spurs.

  The longest path from a root is kept first; then, longest first, every path
  that leaves what is kept by more than the radius there plus `spur_mm`. A
  loop is cut where its two ways are equally long. With several roots in one
  part, each node belongs to the nearest.

  Args:
    skeleton: the graph.
    roots: [R] nodes.
    spur_mm: shorter side branches go.

  Returns:
    (segments, each after its parent; [N] mm from the root along the graph,
    infinite where none is reached).
  """
  reached, before, _ = csgraph.dijkstra(
    skeleton.edges, indices=roots, min_only=True, return_predecessors=True
  )
  kept = np.zeros(len(reached), bool)
  kept[roots] = True
  # The first path of a root has nothing to be a spur of.
  bare = set(map(int, roots))
  order = np.argsort(-np.where(np.isfinite(reached), reached, -1))
  for leaf in order:
    if kept[leaf] or not np.isfinite(reached[leaf]):
      continue
    path = [leaf]
    while not kept[before[path[-1]]]:
      path.append(before[path[-1]])
    fork = before[path[-1]]
    length = reached[leaf] - reached[fork]
    if int(fork) in bare or length > skeleton.inner_mm[fork] + spur_mm:
      bare.discard(int(fork))
      kept[path] = True
  return _segments(np.flatnonzero(kept), before, roots), reached


def _segments(kept, before, roots) -> list[Segment]:
  children: dict[int, list[int]] = {int(node): [] for node in kept}
  for node in kept:
    if before[node] >= 0:
      children[int(before[node])].append(int(node))
  segments: list[Segment] = []
  todo = [
    ([int(root), child], -1) for root in roots for child in children[int(root)]
  ]
  while todo:
    nodes, parent = todo.pop(0)
    while len(children[nodes[-1]]) == 1:
      nodes.append(children[nodes[-1]][0])
    number = len(segments)
    segments.append(Segment(np.array(nodes), parent, []))
    if parent >= 0:
      segments[parent].children.append(number)
    todo += [([nodes[-1], child], number) for child in children[nodes[-1]]]
  return segments
