"""Where the coronary arteries leave the aorta."""

import numpy as np
from scipy import ndimage
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from cadjax.vessels.skeleton import Skeleton, bridge, part_lengths

# Between the lumina of aorta and coronary lies the wall of the aorta.
_TOUCHES_MM = 5.0
# A tree this long whose beginning is missing still has an ostium this near.
_LONG_MM = 40.0
_NEAR_MM = 20.0
# Two ostia in one part are of two trees only this far apart along it.
_APART_MM = 80.0
_WIDTH_MM = 10.0
# The descending aorta lies farther back than this from the front of the root.
_ROOT_DEPTH_MM = 50.0
_LEAST_PART = 0.1


def root_surface(
  mask_aorta: np.ndarray | None, affine: np.ndarray
) -> np.ndarray | None:
  """Returns the surface of the ascending aorta.

  Islands below a tenth of the largest component are left out, and what lies
  50 mm behind the front of the aorta: arch and descending aorta, which pass
  no ostium but may pass a distal branch.

  Args:
    mask_aorta: [D, H, W], above 0 inside; None if there is none.
    affine: [4, 4], (d, h, w, 1) to LPS mm.

  Returns:
    [K, 3] LPS mm of the outermost voxels; None without an aorta.
  """
  if mask_aorta is None or not np.any(mask_aorta):
    return None
  labels, count = ndimage.label(np.asarray(mask_aorta) > 0)
  sizes = np.bincount(labels.ravel(), minlength=count + 1)
  sizes[0] = 0
  aorta = (sizes >= _LEAST_PART * sizes.max())[labels]
  index = np.argwhere(aorta & ~ndimage.binary_erosion(aorta))
  mm = index @ affine[:3, :3].T + affine[:3, 3]
  front = np.percentile(mm[:, 1], 1)
  return mm[mm[:, 1] <= front + _ROOT_DEPTH_MM]


def root_middle(
  surface: np.ndarray | None, ostia_mm: list[np.ndarray]
) -> np.ndarray | None:
  """Returns [3] mm, the middle of the aorta at its ostia; None if unknown."""
  if surface is None or not ostia_mm:
    return None
  away, _ = cKDTree(np.stack(ostia_mm)).query(surface)
  return surface[away <= 30.0].mean(0) if (away <= 30.0).any() else None


def find_ostia(
  graph: Skeleton, surface: np.ndarray | None, gap_mm: float
) -> tuple[Skeleton, dict[int, np.ndarray | None], list[str]]:
  """Finds the trees' first nodes and bridges broken vessels on the way.

  With an aorta: the end of each part nearest to it, if it touches; after the
  bridging also that of a part of 40 mm or more within 20 mm of it, whose
  first stretch is missing. Parts with two ends that touch, 80 mm or more
  apart along the vessels, are two trees grown together.

  Without an aorta, or where none comes near it: the wider end of each of the
  two largest parts.

  Args:
    graph: the skeleton.
    surface: of `root_surface`.
    gap_mm: the widest gap to bridge.

  Returns:
    (bridged skeleton; node -> [3] mm where it meets the aorta, None without
    an aorta; notes).
  """
  notes = []
  if surface is None:
    graph, gaps = bridge(graph, gap_mm, np.zeros(0, int))
    found = _two_largest(graph)
  else:
    away, nearest = cKDTree(surface).query(graph.mm)
    found = _touching(graph, away)
    graph, gaps = bridge(graph, gap_mm, np.array(sorted(found), int))
    late = _late(graph, away, found)
    for node in late:
      notes.append(
        f"The first {away[node]:.0f} mm of a coronary tree are missing from"
        " the mask; a straight line to the aorta stands in for them."
      )
    found = {node: surface[nearest[node]] for node in [*found, *late]}
    if not found:
      notes.append(
        "No vessel comes near the ascending aorta of the mask: the wider end"
        " of each tree is taken for its ostium."
      )
      found = _two_largest(graph)
  if gaps:
    notes.append(
      f"{len(gaps)} gap{'s' * (len(gaps) > 1)} of up to {max(gaps):.1f} mm in"
      " the coronary mask bridged along a straight line."
    )
  return graph, found, notes


def _touching(graph: Skeleton, away: np.ndarray) -> list[int]:
  found = []
  touches = away - graph.inner_mm <= _TOUCHES_MM
  parts, ends = graph.parts, graph.ends
  for part in np.unique(parts[touches]):
    here = np.flatnonzero((parts == part) & touches)
    at_ends = here[ends[here]]
    candidates = at_ends if len(at_ends) else here
    candidates = candidates[np.argsort(away[candidates])]
    first = int(candidates[0])
    found.append(first)
    along = csgraph.dijkstra(graph.edges, indices=first)
    found += [int(k) for k in candidates[1:] if along[k] >= _APART_MM][:1]
  return found


def _late(graph: Skeleton, away: np.ndarray, found: list[int]) -> list[int]:
  parts, ends = graph.parts, graph.ends
  late, lengths = [], part_lengths(graph)
  for part in np.setdiff1d(np.unique(parts), parts[found]):
    here = np.flatnonzero(parts == part)
    nearest = away[here].min()
    if lengths[part] >= _LONG_MM and nearest <= _NEAR_MM:
      # An end, unless the whole left main is missing up to its fork.
      near_end = here[ends[here] & (away[here] <= nearest + _TOUCHES_MM)]
      here = near_end if len(near_end) else here
      late.append(int(here[away[here].argmin()]))
  return late


def _two_largest(graph: Skeleton) -> dict[int, None]:
  parts, lengths = graph.parts, part_lengths(graph)
  largest = np.argsort(-lengths, kind="stable")[:2]
  return {
    widest_end(graph, parts == part): None
    for part in largest
    if lengths[part] >= _LONG_MM
  }


def widest_end(graph: Skeleton, of: np.ndarray) -> int:
  """Returns the end whose first 10 mm are widest, of the nodes `of` [N]."""
  ends = np.flatnonzero(of & graph.ends)
  if not len(ends):
    return int(np.flatnonzero(of)[0])
  along = csgraph.dijkstra(graph.edges, indices=ends, limit=_WIDTH_MM)
  widths = [graph.inner_mm[np.isfinite(row)].mean() for row in along]
  return int(ends[np.argmax(widths)])
