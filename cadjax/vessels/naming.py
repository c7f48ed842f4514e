"""Names for the branches of a coronary tree, from their position alone.

The rules, in LPS mm, where "towards the apex" is the mean direction of the
left ventricle's long axis in adults:

- Each tree votes for its side twice: by where its first 35 mm lead, left or
  right, and by its ostium's place on the aorta, left-posterior or
  right-anterior of the middle. Of two trees on one side the doubtful one, if
  there is one, is the other.
- Left tree: left main up to the first fork with 20 mm or more on two sides.
  The child that leads most to the front is the LAD, the one most to the back
  the LCx; one between them is the intermediate branch. Where two vessels
  leave the aorta there is no left main.
- The LAD goes on with the child that leads on to the front and down, and is
  long; others are "diagonal or septal of LAD".
- LCx and RCA keep to the groove between atria and ventricles: they go on
  with the child that leads least to the apex. The RCA ends at the first fork
  20 mm or more behind its most anterior point with a child that leads to the
  apex; without one it ends, as the LCx, where the rest of the way turns to
  the apex for good. Others are "marginal of LCx" and "branch of RCA".

They hold for a heart in its usual place: not for situs inversus, anomalous
origins, bypass grafts or a heart turned by more than some 30 degrees.
"""

import dataclasses

import numpy as np

from cadjax.vessels.skeleton import Segment

SURENESS = ("none", "low", "moderate", "high")
MAIN = ("RCA", "LM", "LAD", "LCx")
UNNAMED = "coronary branch"
_SIDE_BRANCH = {
  "LAD": "diagonal or septal of LAD",
  "LCx": "marginal of LCx",
  "RCA": "branch of RCA",
}
# Beyond the place where LCx or RCA turn to the apex.
_BEYOND = {"LCx": "branch of LCx", "RCA": "branch of RCA"}


def _unit(vector) -> np.ndarray:
  vector = np.asarray(vector, float)
  length = np.linalg.norm(vector)
  return vector / length if length else vector


# Left, front, down: the long axis of an adult's left ventricle in CT.
_APEX = _unit([0.70, -0.55, -0.45])
_FRONT_DOWN = _unit([0.0, -1.0, -1.0])
_BACK = np.array([0.0, 1.0, 0.0])
# A side of a fork that counts: septals and the conus branch do not.
_MAJOR_MM = 20.0
# What forks later is a vessel whose other half is missing from the mask.
_LONGEST_LM_MM = 40.0
# Forks as near as this are one.
_TRIFURCATION_MM = 5.0
# How far a vessel is looked at: at a fork, at an ostium, and without a fork.
_AHEAD_MM, _TREE_AHEAD_MM, _LONE_AHEAD_MM = 25.0, 35.0, 60.0
# Votes that add up to less than this leave the side open.
_SIDE_MM = 5.0


# Share of the way that must lead to the apex for a vessel to have turned, and
# by how much that must be more than before; the end is moved to a fork within
# some mm, and not cut off if it is shorter than this.
_TURNED, _TURNS_BY = 0.5, 0.3
_SNAP_MM, _SHORTEST_END_MM = 5.0, 12.0


# The posterior descending artery: share of its way that leads to the apex,
# and how far its take-off lies behind the acute margin.
_TO_APEX, _PAST_MARGIN_MM = 0.3, 20.0
_GONE = -2


@dataclasses.dataclass(frozen=True, eq=False)
class NamedPath:
  """A run of segments under one name.

  Attributes:
    kind: without a number.
    sureness: one of `SURENESS`.
    parent: number of the path before it; -1 at a root.
    segments: numbers, one after the other.
  """

  kind: str
  sureness: str
  parent: int
  segments: list[int]


class _Forest:
  """The segments with what the rules ask of them."""

  def __init__(self, segments: list[Segment], mm: np.ndarray):
    self.segments, self.mm = segments, mm
    self.paths: list[NamedPath] = []
    self.measure()

  def measure(self) -> None:
    """Works out lengths; again after a split."""
    self.length = [
      float(np.linalg.norm(np.diff(self.mm[s.nodes], axis=0), axis=1).sum())
      for s in self.segments
    ]
    self.deep = list(self.length)
    for number in self._leaves_first():
      self.deep[number] = self.length[number] + max(
        (self.deep[c] for c in self.segments[number].children), default=0.0
      )

  def _leaves_first(self) -> list[int]:
    roots = [k for k, s in enumerate(self.segments) if s.parent == -1]
    return self.after(*roots)[::-1]

  def after(self, *numbers: int) -> list[int]:
    """Segments and all that come after them, each after its parent."""
    order = list(numbers)
    for number in order:
      order += self.segments[number].children
    return order

  def total(self, *numbers: int) -> float:
    """Length of segments and of all that comes after them."""
    return sum(self.length[k] for k in self.after(*numbers))

  def longest(self, number: int) -> list[int]:
    """The run of segments from `number` to its farthest end."""
    run = [number]
    while children := self.segments[run[-1]].children:
      run.append(max(children, key=lambda c: self.deep[c]))
    return run

  def line(self, run: list[int]) -> np.ndarray:
    """[K, 3] mm along a run."""
    nodes = [self.segments[run[0]].nodes]
    nodes += [self.segments[k].nodes[1:] for k in run[1:]]
    return self.mm[np.concatenate(nodes)]

  def ahead(self, number: int, mm: float = _AHEAD_MM) -> np.ndarray:
    """[3] way over the first `mm` of the run, over its length there."""
    line = self.line(self.longest(number))
    arc = _arc(line)
    stop = int(np.searchsorted(arc, mm, side="right")) - 1
    return (line[stop] - line[0]) / max(arc[stop], 1e-6)

  def follow(self, number: int, score) -> list[int]:
    """The run of the children with the greatest score."""
    run = [number]
    while children := self.segments[run[-1]].children:
      run.append(max(children, key=score))
    return run

  def share(self, number: int) -> float:
    """Its depth over the greatest among it and its siblings."""
    siblings = self.segments[self.segments[number].parent].children
    return self.deep[number] / max(self.deep[k] for k in siblings)

  def split(self, number: int, place: int) -> int:
    """Cuts a segment at node `place`; returns the number of the second."""
    first = self.segments[number]
    second = Segment(first.nodes[place:], number, first.children)
    new = len(self.segments)
    for child in second.children:
      self.segments[child].parent = new
    self.segments.append(second)
    first.nodes, first.children = first.nodes[: place + 1], [new]
    self.measure()
    return new

  def dissolve(self, number: int) -> None:
    """Lets the children of a segment begin where it begins."""
    gone = self.segments[number]
    siblings = self.segments[gone.parent].children
    siblings.remove(number)
    for child in gone.children:
      segment = self.segments[child]
      segment.nodes = np.concatenate([gone.nodes, segment.nodes[1:]])
      segment.parent = gone.parent
      siblings.append(child)
    gone.children, gone.parent = [], _GONE
    self.measure()

  def add(self, kind, sureness, parent, run) -> int:
    """Adds a path; returns its number."""
    self.paths.append(NamedPath(kind, sureness, parent, run))
    return len(self.paths) - 1

  def add_sides(self, number: int, kind: str) -> None:
    """Names all that springs from path `number` and has no name yet."""
    named = {k for path in self.paths for k in path.segments}
    path = self.paths[number]
    sureness = SURENESS[min(SURENESS.index(path.sureness), 2)]
    for k in path.segments:
      for child in self.segments[k].children:
        if child not in named:
          added = self.add(kind, sureness, number, self.longest(child))
          self.add_sides(added, kind)


def name_segments(
  segments: list[Segment],
  mm: np.ndarray,
  ostia: list[int],
  middle_mm: np.ndarray | None,
) -> tuple[list[NamedPath], dict[int, tuple[str, str]]]:
  """Names the segments of all trees.

  Args:
    segments: of `skeleton.grow`; split in place where a vessel ends without
      a fork.
    mm: [N, 3] LPS mm of the nodes.
    ostia: nodes that are ostia; other roots begin fragments without a name.
    middle_mm: [3] middle of the aortic root; None if unknown.

  Returns:
    (paths, each after its parent; ostium's node -> (side, sureness)).
  """
  forest = _Forest(segments, mm)
  roots = [k for k, s in enumerate(segments) if s.parent < 0]
  trees = {}
  for root in roots:
    trees.setdefault(int(segments[root].nodes[0]), []).append(root)
  sides = _sides(forest, {o: trees[o] for o in ostia if o in trees}, middle_mm)
  # Longest first: of two trees on one side it has the first choice of names.
  order = sorted(trees, key=lambda o: -forest.total(*trees[o]))
  left, sureness = [], "none"
  for ostium in order:
    side, sure = sides.get(ostium, ("", "none"))
    if side == "left":
      left += trees[ostium]
      sureness = sure if sureness == "none" else sureness
    elif side == "right" and not _taken(forest, "RCA"):
      first = max(trees[ostium], key=forest.total)
      _name_groove(forest, first, "RCA", sure, -1)
  if left:
    _name_left(forest, left, sureness)
  named = {k for path in forest.paths for k in path.segments}
  for root in roots:
    if root not in named:
      number = forest.add(UNNAMED, "none", -1, forest.longest(root))
      forest.add_sides(number, UNNAMED)
  return forest.paths, sides


def _taken(forest: _Forest, kind: str) -> bool:
  return any(path.kind == kind for path in forest.paths)


def _sides(forest, trees, middle_mm) -> dict[int, tuple[str, str]]:
  """Returns ostium -> (side, sureness)."""
  votes = {}
  for ostium, roots in trees.items():
    nodes = [forest.segments[k].nodes for k in forest.after(*roots)]
    away = forest.mm[np.concatenate(nodes)] - forest.mm[ostium]
    near = np.linalg.norm(away, axis=1) <= _TREE_AHEAD_MM
    # Where it leads, in mm to the left, and where it springs from.
    votes[ostium] = [float(away[near, 0].mean())]
    if middle_mm is not None:
      out = forest.mm[ostium] - middle_mm
      votes[ostium].append(float(out[0] + out[1]))
  total = {ostium: sum(vote) for ostium, vote in votes.items()}
  sides = {}
  for ostium, vote in votes.items():
    side = "left" if total[ostium] > 0 else "right"
    agree = len({one > 0 for one in vote}) == 1
    sure = len(vote) if agree else 0
    # Of two trees that lead to one side, a doubtful one is the other.
    rival = [value for o, value in total.items() if o != ostium]
    if len(rival) == 1 and (rival[0] > 0) == (total[ostium] > 0):
      doubtful = min(abs(total[ostium]), abs(rival[0])) < _SIDE_MM
      sure = 0 if doubtful else min(sure, 1)
      if doubtful:
        side = "left" if total[ostium] > rival[0] else "right"
    sides[ostium] = (side, SURENESS[1 + sure])
  return sides


def _name_left(forest: _Forest, roots: list[int], sureness: str) -> None:
  """Names the left tree, or the left trees where there is no left main."""
  left_main = -1
  major = _major(forest, roots)
  if len(major) == 1:
    run = major
    while len(major := _major(forest, forest.segments[run[-1]].children)) == 1:
      run = run + major
    walked = sum(forest.length[k] for k in run)
    if len(major) < 2 or walked > _LONGEST_LM_MM:
      _name_without_lm(forest, run[0])
      return
    left_main = forest.add("LM", sureness, -1, run)
    for child in major:
      short = forest.length[child] <= _TRIFURCATION_MM
      if short and _major(forest, forest.segments[child].children):
        forest.dissolve(child)
    major = _major(forest, forest.segments[run[-1]].children)
  if not major:
    return
  front = {c: -float(forest.ahead(c, 40.0) @ _BACK) for c in major}
  lad, lcx = max(major, key=front.get), min(major, key=front.get)
  margin = front[lad] - front[lcx]
  sure = 3 if margin > 0.6 else 2 if margin > 0.3 else 1
  sure = SURENESS[min(sure, SURENESS.index(sureness))]
  _name_lad(forest, lad, sure, left_main)
  _name_groove(forest, lcx, "LCx", sure, left_main)
  for child in major:
    if child not in (lad, lcx) and left_main >= 0:
      kind = "intermediate of LM"
      number = forest.add(kind, "moderate", left_main, forest.longest(child))
      forest.add_sides(number, kind)
  if left_main >= 0:
    forest.add_sides(left_main, UNNAMED)


def _major(forest: _Forest, numbers: list[int]) -> list[int]:
  return [k for k in numbers if forest.deep[k] >= _MAJOR_MM]


def _name_without_lm(forest: _Forest, root: int) -> None:
  """Names a left tree whose left main or one of its children is missing."""
  if forest.ahead(root, _LONE_AHEAD_MM) @ _BACK < 0:
    _name_lad(forest, root, "low", -1)
  else:
    _name_groove(forest, root, "LCx", "low", -1)


def _name_lad(forest: _Forest, first: int, sureness: str, parent: int) -> None:
  def score(child: int) -> float:
    return float(forest.ahead(child) @ _FRONT_DOWN) + forest.share(child)

  number = forest.add("LAD", sureness, parent, forest.follow(first, score))
  forest.add_sides(number, _SIDE_BRANCH["LAD"])


def _name_groove(
  forest: _Forest, first: int, kind: str, sureness: str, parent: int
) -> None:
  """Names LCx or RCA from segment `first` on, and its branches."""

  def score(child: int) -> float:
    return -float(forest.ahead(child) @ _APEX) + forest.share(child) / 2

  run = forest.follow(first, score)
  crux = _crux(forest, run) if kind == "RCA" else None
  if crux is None:
    keep, beyond = _turn(forest, run)
  else:
    keep, beyond = run[: crux + 1], run[crux + 1 :]
  number = forest.add(kind, sureness, parent, keep)
  if beyond:
    added = forest.add(_BEYOND[kind], "moderate", number, beyond)
    forest.add_sides(added, _BEYOND[kind])
  forest.add_sides(number, _SIDE_BRANCH[kind])


def _crux(forest: _Forest, run: list[int]) -> int | None:
  """Returns where in a run the posterior descending artery springs off.

  That is the first fork well behind the acute margin, the most anterior part
  of the way, with a child that leads to the apex.
  """
  most_front = np.inf
  for k, number in enumerate(run[:-1]):
    line = forest.line([number])
    most_front = min(most_front, float((line @ _BACK).min()))
    children = _major(forest, forest.segments[number].children)
    leads = any(forest.ahead(c, np.inf) @ _APEX > _TO_APEX for c in children)
    if leads and line[-1] @ _BACK - most_front >= _PAST_MARGIN_MM:
      return k
  return None


def _turn(forest: _Forest, run: list[int]) -> tuple[list[int], list[int]]:
  """Cuts a run where the rest of its way turns to the apex.

  After that place every stretch from it on leads to the apex by more than
  half of its length, and before it none up to it does: the place where the
  way to the apex less half of the way walked is least. It is a turn only if
  the way after it leads there by 0.3 of its length more than the way before.
  """
  line = forest.line(run)
  arc = _arc(line)
  led = line @ _APEX
  place = int(np.argmin(led - _TURNED * arc))
  forks = np.cumsum([len(forest.segments[k].nodes) - 1 for k in run])
  nearest = int(np.abs(arc[forks] - arc[place]).argmin())
  if abs(arc[forks[nearest]] - arc[place]) <= _SNAP_MM:
    place = int(forks[nearest])
  if arc[-1] - arc[place] < _SHORTEST_END_MM or arc[place] < _MAJOR_MM:
    return run, []
  before = (led[place] - led[0]) / arc[place]
  after = (led[-1] - led[place]) / (arc[-1] - arc[place])
  if after - before < _TURNS_BY:
    return run, []
  holder = int(np.searchsorted(forks, place))
  if forks[holder] == place:
    return run[: holder + 1], run[holder + 1 :]
  start = forks[holder - 1] if holder else 0
  second = forest.split(run[holder], place - int(start))
  return run[: holder + 1], [second, *run[holder + 1 :]]


def _arc(line: np.ndarray) -> np.ndarray:
  steps = np.linalg.norm(np.diff(line, axis=0), axis=1)
  return np.concatenate([[0.0], np.cumsum(steps)])
