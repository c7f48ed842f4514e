"""From masks of the coronaries and the aorta to vessels in mm.

The mask's skeleton becomes a tree that is rooted where it meets the aorta;
`naming` names the main vessels by their position.
"""

import dataclasses

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from cadjax.vessels import centrelines, naming, skeleton
from cadjax.vessels import ostia as ostia_lib
from cadjax.vessels.tree import (
  STEP_MM,
  Branch,
  Ostium,
  VesselTree,
  radii,
  voxel_mm,
)

# A fragment of a distal vessel, one voxel wide, is more than a speck.
_LEAST_MM3 = 3.0
_LEAST_TREE_MM, _LEAST_FRAGMENT_MM = 5.0, 10.0
# No coronary artery is as wide, aneurysms apart; so much of a mask that is
# farther than that from every centreline is told of.
_FAR_MM, _LEAST_FAR_MM3 = 6.0, 50.0


# Gaussians along a centreline: before it is centred, wide enough for the
# wanderings of a skeleton in a thick vessel; of the centring; after it.
_ROUGH_MM, _ROUGH_VOXELS = 2.0, 1.5
_CENTRE_MM = 1.5
_FINE_MM = 1.0


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
  from 10 mm on; they have NaN for distances and no vessel's name.

  Limits: a gap is bridged along a straight line to whatever vessel is
  nearest, see `skeleton.bridge`; masks of touching vessels are separated
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
  shape, affine = mask.shape, np.asarray(affine, np.float64)
  if mask_aorta is not None and np.shape(mask_aorta) != shape:
    raise ValueError(f"aorta {np.shape(mask_aorta)}, coronaries {shape}")
  mask, first = _crop(mask)
  given = np.argwhere(mask) + first
  corner = affine.copy()
  corner[:3, 3] += affine[:3, :3] @ first
  mask = skeleton.clean(mask, voxel_mm(affine) ** 3, _LEAST_MM3)
  surface = ostia_lib.root_surface(mask_aorta, affine)
  notes: list[str] = []
  if surface is None:
    notes.append(
      "There is no aorta in the mask: the wider end of each tree is taken for"
      " its ostium, and distances start there."
    )
  segments = []
  if mask.any():
    graph = skeleton.make_skeleton(mask, corner)
    graph, meets, remarks = ostia_lib.find_ostia(graph, surface, gap_mm)
    segments = _grow(graph, meets, spur_mm)
    notes += remarks
  if not segments:
    notes.append("No coronary artery was found in the mask.")
    nothing = np.zeros((0, 3), int)
    return VesselTree((), (), affine, shape, nothing, tuple(notes))
  mask = _of_tree(mask, graph, segments)
  middle = ostia_lib.root_middle(surface, [graph.mm[k] for k in meets])
  paths, sides = naming.name_segments(segments, graph.mm, list(meets), middle)
  ostia = tuple(
    Ostium(graph.mm[k] if meets[k] is None else meets[k], *sides[k])
    for k in meets
    if k in sides
  )
  tree = VesselTree(
    branches=_branches(paths, segments, graph, meets, mask, corner),
    ostia=ostia,
    affine=affine,
    shape=shape,
    voxels=np.argwhere(mask) + first,
    notes=(*notes, *_missing(paths)),
  )
  everywhere = np.ones(len(tree.voxels), bool)
  measured = radii(tree, everywhere, everywhere)
  branches = tuple(
    dataclasses.replace(branch, radius_mm=radius)
    for branch, radius in zip(tree.branches, measured, strict=True)
  )
  notes = (*tree.notes, *_far(tree, given))
  return dataclasses.replace(tree, branches=branches, notes=notes)


def _far(tree: VesselTree, voxels: np.ndarray) -> list[str]:
  """Returns a sentence if much of a mask is far from every centreline.

  Args:
    tree: the vessels.
    voxels: [K, 3] (d, h, w), all of the mask that was given.
  """
  _, _, away = tree.nearest(tree.to_mm(voxels))
  far = away > _FAR_MM + voxel_mm(tree.affine)
  volume = far.sum() * voxel_mm(tree.affine) ** 3
  if volume < _LEAST_FAR_MM3:
    return []
  return [
    f"{volume:.0f} mm3 ({far.mean():.0%}) of the coronaries' mask lie more than"
    f" {_FAR_MM:g} mm from every centreline, so they count for no vessel: look"
    " whether the mask holds something else than coronary arteries."
  ]


def _crop(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the box of what is True with a rim of False, and its corner."""
  found = ndimage.find_objects(mask.astype(np.uint8))
  box = found[0] if found else (slice(0, 0),) * 3
  return np.pad(mask[box], 1), np.array([part.start - 1 for part in box])


def _of_tree(mask, graph, segments) -> np.ndarray:
  """Returns the components of a mask that a tree runs through."""
  labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
  keep = np.zeros(count + 1, bool)
  for segment in segments:
    keep[labels[tuple(graph.index[segment.nodes].T)]] = True
  keep[0] = False
  return keep[labels]


def _grow(graph, meets, spur_mm) -> list[skeleton.Segment]:
  """Returns the segments of trees and fragments that are not too short."""
  parts = graph.parts
  fragments = [
    ostia_lib.widest_end(graph, parts == part)
    for part in np.setdiff1d(np.unique(parts), parts[list(meets)])
  ]
  roots = np.array([*meets, *fragments], int)
  _, reached = skeleton.grow(graph, roots, spur_mm)
  # Two roots of one part are of two trees grown together.
  long = [
    root
    for root in roots
    if reached[parts == parts[root]].max()
    >= (_LEAST_TREE_MM if root in meets else _LEAST_FRAGMENT_MM)
  ]
  return skeleton.grow(graph, np.array(long, int), spur_mm)[0]


def _missing(paths) -> list[str]:
  """Returns a sentence if a main vessel has not been found."""
  kinds = {path.kind for path in paths}
  lacking = [name for name in naming.MAIN if name not in kinds]
  if not lacking:
    return []
  return [f"Not found among the vessels: {', '.join(lacking)}."]


def _branches(paths, segments, graph, meets, mask, affine):
  """Returns the branches, without their radii."""
  chains = _chains(paths, segments)
  rough = max(_ROUGH_MM, _ROUGH_VOXELS * voxel_mm(affine))
  lines, own = [], []
  for path, (chain, fork) in zip(paths, chains, strict=True):
    line = graph.mm[chain]
    root = int(chain[0])
    if meets.get(root) is not None:
      line = np.vstack([meets[root], line])
    line = centrelines.smooth(line, rough, STEP_MM)
    lines.append(line)
    own.append(_own(line, graph, chain[fork], path.parent, lines))
  parents = [path.parent for path in paths]
  lines = centrelines.centred(
    lines, own, parents, mask, affine, _CENTRE_MM, STEP_MM
  )
  done: list[Branch] = []
  ready: list[np.ndarray] = []
  for path, name, (chain, fork), line in zip(
    paths, _unique([path.kind for path in paths]), chains, lines, strict=True
  ):
    root, last = int(chain[0]), int(chain[-1])
    line = centrelines.smooth(line, _FINE_MM, STEP_MM)
    reach = 2 * graph.inner_mm
    if graph.ends[last]:
      line = centrelines.extend(line, mask, affine, reach[last])
    if meets.get(root) is None:
      line = centrelines.extend(line[::-1], mask, affine, reach[root])[::-1]
    line = centrelines.resample(line, STEP_MM)
    ready.append(line)
    start, free = _own(line, graph, chain[fork], path.parent, ready)
    distance = centrelines.arc_length(line)
    done.append(
      Branch(
        name=name,
        kind=path.kind,
        sureness=path.sureness,
        parent=path.parent,
        course_mm=line,
        course_distance_mm=distance if root in meets else distance * np.nan,
        start=start,
        free=free,
        radius_mm=np.full(len(line) - start, np.nan),
      )
    )
  return tuple(done)


def _unique(kinds: list[str]) -> list[str]:
  """Numbers the names that occur more than once."""
  return [
    kind if kinds.count(kind) == 1 else f"{kind} {kinds[: k + 1].count(kind)}"
    for k, kind in enumerate(kinds)
  ]


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
