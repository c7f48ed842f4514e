"""The SCCT segments of a found tree, by the names of its branches and forks."""

import numpy as np

from cadjax.vessels.tree import STEP_MM, Branch, VesselTree
from data_prep import scct

_LEFT = np.array([1.0, 0.0, 0.0])
# Left, front, down: where a posterior descending artery leads.
_APEX = np.array([0.70, -0.55, -0.45])
# How far a branch is looked at.
_AHEAD_MM = 25.0
# What springs off so near to the end of the right artery springs off the crux.
_CRUX_MM = 8.0
# What springs off the circumflex so early is an intermediate branch, of a left
# main that ends in three vessels.
_THREE_MM = 8.0
# The right artery reaches the back of the heart, and so has its crux there, if
# it goes on for so long beyond the acute margin.
_BEYOND_MM = 25.0
# Share of the way along the circumflex from which on its branches are
# posterolateral, where the right artery has no such branch.
_BEHIND = 0.8


def segments(tree: VesselTree) -> list[np.ndarray]:
  """Names the segment of every place on a tree.

  The names of the branches are those of `naming`, with its sureness. A branch
  of the LAD that leads to its left is a diagonal, one to its right a septal.
  The heart is left-dominant if the right artery that was found does not reach
  the back, or has no branch there. Further diagonals and marginals are D2 and
  OM2, since the SCCT has no other number for them; branches of a branch are
  part of its segment.

  Args:
    tree: of `find.find_vessels`.

  Returns:
    for each branch, [N] keys of `scct.SEGMENTS` as str, "" where there is no
    such segment, as long as its `points_mm`.
  """
  names = _names(tree)
  found = []
  for number, branch in enumerate(tree.branches):
    if branch.kind in scct.ARTERIES:
      takeoffs = [
        _takeoff(branch, tree.branches[k])
        for k in _children(tree, number)
        if names.get(k) != "RI"
      ]
      found.append(scct.along(branch.kind, branch.points_mm, takeoffs))
    else:
      found.append(np.full(len(branch.points_mm), names.get(number, "")))
  return found


def _names(tree: VesselTree) -> dict[int, str]:
  """Returns the segments of those branches that are one as a whole."""
  names: dict[int, str] = {}
  arteries = {
    branch.kind: number
    for number, branch in enumerate(tree.branches)
    if branch.kind in scct.ARTERIES
  }
  crux = _at_crux(tree, arteries["RCA"]) if "RCA" in arteries else []
  to_apex = sorted(crux, key=lambda k: -float(_ahead(tree.branches[k]) @ _APEX))
  names |= {k: "R-PLB" if place else "R-PDA" for place, k in enumerate(to_apex)}
  if "LCx" in arteries:
    # Without a right artery nothing is known of its branches.
    right = list(names.values()) if "RCA" in arteries else None
    names |= _of_circumflex(tree, arteries["LCx"], right)
  if "LAD" in arteries:
    lad = tree.branches[arteries["LAD"]]
    diagonals = [
      k
      for k in _children(tree, arteries["LAD"])
      if _aside(lad, tree.branches[k]) @ _LEFT > 0
    ]
    names |= {k: "D2" if place else "D1" for place, k in enumerate(diagonals)}
  for number, branch in enumerate(tree.branches):
    if branch.kind == "intermediate of LM":
      names.setdefault(number, "RI")
    # Each comes after its parent.
    if number not in names and branch.parent in names:
      names[number] = names[branch.parent]
  return names


def _of_circumflex(
  tree: VesselTree, number: int, right: list[str] | None
) -> dict[int, str]:
  """Names the branches of the circumflex, given those at the crux."""
  line = tree.branches[number]
  has_pda = right is None or "R-PDA" in right
  has_plb = right is None or "R-PLB" in right
  names, marginals = {}, 0
  for k in _children(tree, number):
    branch = tree.branches[k]
    beyond = branch.kind == "branch of LCx"
    takeoff = _takeoff(line, branch)
    share = takeoff / max(len(line.points_mm) - 1, 1)
    if beyond and not has_pda:
      names[k] = "L-PDA"
    elif share > _BEHIND and not has_plb:
      names[k] = "L-PLB"
    elif takeoff * STEP_MM < _THREE_MM:
      names[k] = "RI"
    else:
      names[k] = "OM2" if marginals else "OM1"
      marginals += 1
  return names


def _children(tree: VesselTree, number: int) -> list[int]:
  """Returns the branches of a branch, the first to spring off first."""
  parent = tree.branches[number]
  found = [k for k, one in enumerate(tree.branches) if one.parent == number]
  return sorted(found, key=lambda k: _takeoff(parent, tree.branches[k]))


def _takeoff(parent: Branch, child: Branch) -> int:
  """Returns where a branch springs off, an index into its parent's points."""
  away = np.linalg.norm(parent.points_mm - child.points_mm[0], axis=1)
  return int(away.argmin())


def _at_crux(tree: VesselTree, number: int) -> list[int]:
  parent = tree.branches[number]
  last = len(parent.points_mm) - 1
  if (last - scct.acute_margin(parent.points_mm)) * STEP_MM < _BEYOND_MM:
    return []
  return [
    k
    for k in _children(tree, number)
    if (last - _takeoff(parent, tree.branches[k])) * STEP_MM <= _CRUX_MM
  ]


def _ahead(branch: Branch) -> np.ndarray:
  """Returns the unit vector [3] of a branch's way over its first mm."""
  line = branch.points_mm
  way = line[min(int(_AHEAD_MM / STEP_MM), len(line) - 1)] - line[0]
  return way / max(float(np.linalg.norm(way)), 1e-6)


def _aside(parent: Branch, child: Branch) -> np.ndarray:
  """Returns the part of a branch's way [3] that its parent does not go."""
  line = parent.points_mm[_takeoff(parent, child) :]
  reach = min(int(_AHEAD_MM / STEP_MM), len(line) - 1)
  way = line[reach] - line[0]
  on = way / max(float(np.linalg.norm(way)), 1e-6)
  ahead = _ahead(child)
  return ahead - (ahead @ on) * on
