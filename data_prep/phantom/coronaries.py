"""The coronary tree: two ostia, the grooves of the heart, SCCT segments."""

import dataclasses
from typing import Any

import numpy as np
from scipy import ndimage, spatial, special

from data_prep import scct
from data_prep.errors import UserError
from data_prep.phantom import heart as heart_lib
from data_prep.phantom import shapes, vessels
from data_prep.phantom.heart import Heart

# The numbering of ImageCAS-X, after the SCCT's segments: one number for all
# the small branches.
SEGMENTS = {
  "LM": 1,
  "LAD": 2,
  "LCx": 3,
  "D1": 4,
  "D2": 5,
  "OM1": 6,
  "OM2": 7,
  "IM": 8,
  "RCA": 9,
  "R-PDA": 10,
  "R-PLA": 11,
  "L-PDA": 12,
  "L-PLA": 13,
  "D3": 14,
  "OM3": 14,
  "S1": 14,
  "conus": 14,
  "RV": 14,
  "AM": 14,
  "R-PLA2": 14,
}
# The segments of the SCCT that are one of the vessels as a whole; the LAD's
# diagonals and the LCx's marginals are counted from the ostium on.
_SCCT = {
  "IM": "RI",
  "R-PDA": "R-PDA",
  "R-PLA": "R-PLB",
  "R-PLA2": "R-PLB",
  "L-PDA": "L-PDA",
  "L-PLA": "L-PLB",
}
STEP_MM = 0.5
# Lumen radius in mm at the beginning and the end: what CT shows and ImageCAS
# labels, down to 0.8 mm, with vessels widened by nitroglycerin.
_RADII = {
  "LM": (2.45, 2.3),
  "LAD": (2.05, 1.1),
  "LCx": (1.95, 1.25),
  "D1": (1.6, 1.1),
  "D2": (1.5, 1.05),
  "D3": (1.35, 1.0),
  "S1": (1.2, 0.9),
  "OM1": (1.65, 1.1),
  "OM2": (1.5, 1.05),
  "OM3": (1.35, 1.0),
  "IM": (1.6, 1.1),
  "RCA": (2.55, 1.75),
  "R-PDA": (1.6, 1.05),
  "R-PLA": (1.6, 1.05),
  "R-PLA2": (1.4, 1.0),
  "L-PDA": (1.55, 1.05),
  "L-PLA": (1.55, 1.05),
  "conus": (1.2, 0.95),
  "RV": (1.35, 1.0),
  "AM": (1.4, 1.0),
}
DOMINANCE = {"right": 0.78, "left": 0.12, "co": 0.10}
# How many patients have a branch; those with many branches have many kinds.
_BRANCHES = {
  "D1": 0.97,
  "D2": 0.55,
  "D3": 0.18,
  "S1": 0.2,
  "IM": 0.2,
  "OM1": 0.95,
  "OM2": 0.4,
  "OM3": 0.12,
  "conus": 0.2,
  "RV": 0.2,
  "AM": 0.55,
  "R-PLA2": 0.2,
}
# Origins as in Yamanaka and Hobbs, Cathet. Cardiovasc. Diagn. 21 (1990), of
# 126,595 patients; all kinds together were found in 1.3 %.
ANOMALIES = {
  "LCx from the right sinus": 0.004,
  "high origin of the RCA": 0.003,
  "RCA from the left sinus": 0.002,
}
# A vessel's way is drawn anew this often until it keeps clear of the others.
_TRIES = 6
_TREES = 6
_CLEAR_MM = 0.5
_FORK_MM = 8.0
# The outflow tract lies before the middle of the right sinus.
_RIGHT_DEG = 20.0
_LEFT_DEG = 15.0
# A turn within 1 mm that a vessel does not take.
_SHARP_DEG = 16.0
_TAIL_MM = 8.0


@dataclasses.dataclass(frozen=True, eq=False)
class Vessel:
  """One segment of the tree.

  Attributes:
    name: a key of `SEGMENTS`.
    points: [N, 3] LPS mm along the axis of the healthy vessel, from its
      origin on, every `STEP_MM`.
    radius: [N] mm, of the healthy lumen.
    normal: [N, 3] unit vectors across the vessel that turn as little as
      possible.
    parent: the segment it springs from; "" for the aorta.
  """

  name: str
  points: np.ndarray
  radius: np.ndarray
  normal: np.ndarray
  parent: str

  @property
  def tangent(self) -> np.ndarray:
    """[N, 3] unit vectors along the vessel."""
    way = np.gradient(self.points, axis=0)
    return way / np.linalg.norm(way, axis=1, keepdims=True)


def draw_variant(rng: np.random.Generator) -> dict[str, Any]:
  """Draws which coronary arteries a patient has, and how they run.

  Args:
    rng: source of randomness.

  Returns:
    "dominance"; "anomaly", a key of `ANOMALIES` or ""; "reach", how far
    branches can be followed, and "winding", both factors; whether there is
    each of the branches that not everyone has.
  """
  dominance = str(rng.choice(list(DOMINANCE), p=list(DOMINANCE.values())))
  usual = 1 - sum(ANOMALIES.values())
  anomaly = str(rng.choice(["", *ANOMALIES], p=[usual, *ANOMALIES.values()]))
  rich = rng.normal()
  has = {}
  for name, share in _BRANCHES.items():
    level = 0.5 * rich + 0.87 * rng.normal()
    has[name] = bool(special.ndtr(level) < share)
  return {
    "dominance": dominance,
    "anomaly": anomaly,
    "reach": float(np.clip(rng.normal(0.75 - 0.06 * rich, 0.1), 0.5, 1.05)),
    "winding": float(np.clip(rng.lognormal(0, 0.2), 0.65, 1.5)),
    **has,
  }


def make_tree(
  heart: Heart,
  rng: np.random.Generator,
  dominance: str | None = None,
  anomaly: str | None = None,
) -> tuple[dict[str, Vessel], dict[str, Any]]:
  """Grows a patient's coronary tree.

  Args:
    heart: the heart that it lies on.
    rng: source of randomness.
    dominance: "right", "left" or "co"; drawn as in the population if None.
    anomaly: a key of `ANOMALIES` or "" for none; drawn if None.

  Returns:
    (segments by name, what `draw_variant` drew; a branch for which there is
    no room is False).

  Raises:
    UserError: the dominance or the anomaly is unknown.
  """
  about = draw_variant(rng)
  about["dominance"] = dominance or about["dominance"]
  if anomaly is not None:
    about["anomaly"] = anomaly
  if about["dominance"] not in DOMINANCE:
    raise UserError(f"dominance {dominance!r}: must be right, left or co")
  if about["anomaly"] not in ("", *ANOMALIES):
    raise UserError(
      f"anomaly {anomaly!r}: must be one of {', '.join(ANOMALIES)}"
    )
  grown = []
  # Where vessels that every heart has touch, in one tree of twenty.
  for _ in range(_TREES):
    grow = _Grower(heart, rng, dict(about))
    _grow_left(grow, grow.about)
    _grow_right(grow, grow.about)
    grown.append(grow)
    if grow.gap_mm > 0:
      break
  best = max(grown, key=lambda grow: grow.gap_mm)
  return best.tree, best.about


def scct_segments(tree: dict[str, Vessel]) -> dict[str, np.ndarray]:
  """Names the SCCT segment of every place on a tree.

  Args:
    tree: of `make_tree`.

  Returns:
    by vessel, [N] keys of `scct.SEGMENTS` as str, "" where there is none, as
    long as its `points`.
  """
  forks: dict[str, list[tuple[int, str]]] = {"LAD": [], "LCx": []}
  for name, vessel in tree.items():
    # What springs from the LCx beyond its marginals is none of them.
    if vessel.parent in forks and name not in _SCCT:
      line = tree[vessel.parent].points
      away = np.linalg.norm(line - vessel.points[0], axis=1)
      forks[vessel.parent].append((int(away.argmin()), name))
  whole = dict(_SCCT)
  for parent, letter in (("LAD", "D"), ("LCx", "OM")):
    sides = [name for _, name in sorted(forks[parent]) if name[0] == letter[0]]
    whole |= {
      name: f"{letter}{2 if place else 1}" for place, name in enumerate(sides)
    }
  return {
    name: scct.along(
      name, vessel.points, [place for place, _ in forks.get(name, [])]
    )
    if name in scct.ARTERIES
    else np.full(len(vessel.points), whole.get(name, ""))
    for name, vessel in tree.items()
  }


class _Grower:
  """Turns guide points in the heart's frame into vessels on its surface."""

  def __init__(self, heart: Heart, rng: np.random.Generator, about: dict):
    self.heart, self.rng, self.about = heart, rng, about
    self.tree: dict[str, Vessel] = {}
    self.gap_mm = np.inf  # The least fat between two vessels.
    self.size = heart.size
    # The wall of a great vessel is no place for a coronary artery.
    tubes = [*vessels.outlines(heart), vessels.coronary_sinus(heart)]
    lines = [shapes.spline(np.column_stack(tube), 1.5) for tube in tubes]
    self._beside = np.concatenate(lines)
    self._near = spatial.cKDTree(self._beside[:, :3])

  def add(
    self, name, guides, parent="", radii=None, free_mm=0.0, inside=False
  ) -> bool:
    """Adds a vessel along `guides` [N, 3] unless it would touch another.

    Args:
      name: of the vessel.
      guides: points in the heart's frame.
      parent: the vessel it springs from.
      radii: at both ends in mm, instead of the usual ones.
      free_mm: so much of it stays where the guides are.
      inside: it runs in the muscle, not on it.

    Returns:
      Whether it was added; a branch that every heart has always is.
    """
    best = (-np.inf, None)
    for attempt in range(_TRIES):
      winding = self.about["winding"] * (1 - 0.15 * attempt)
      vessel = self._course(
        name, guides, parent, radii, free_mm, inside, winding
      )
      gap = self._gap(vessel)
      if gap > best[0]:
        best = gap, vessel
      if gap > _CLEAR_MM:
        break
    if best[0] < 0 and name in _BRANCHES:
      self.about[name] = False
      return False
    self.tree[name] = best[1]
    self.gap_mm = min(self.gap_mm, best[0])
    return True

  def _course(self, name, guides, parent, radii, free_mm, inside, winding):
    r0, r1 = radii or _RADII[name]
    r0, r1 = np.array([r0, r1]) * self.rng.lognormal(0, 0.05)
    scale = self.size["coronary_scale"] * self.heart.scale**0.5
    guides = np.array(guides, float)
    if not inside:
      # So that the curve starts the way that it will go on.
      bound = shapes.arc_length(guides) > free_mm + 3
      lift = (r0 * scale + 0.9) / self.heart.scale
      guides[bound] = _settle(guides[bound], lift, self.size)
    line = shapes.spline(guides, 1.0)
    arc = shapes.arc_length(line)
    if name not in ("LM", "LCx", "RCA"):
      reach = self.about["reach"] * np.exp(self.rng.normal(0, 0.12))
      # To the apex, or nearly.
      reach += 0.25 if name == "LAD" else 0
      line = line[: max(int(len(line) * min(reach, 1.0)), 12)]
      arc = arc[: len(line)]
    share = np.clip(arc / arc[-1], 0, 1)
    ramp = np.clip((arc - free_mm) / 10, 0, 1)[:, None]
    # A branch winds as its parent does that far from the aorta.
    begin = 0 if name in ("LM", "LAD", "LCx", "RCA") else 30
    wiggle = self._wiggle(arc + begin, (0.3 if inside else 1) * winding)
    line = line + ramp * wiggle
    # To the end of what can be followed, a vessel narrows quickly.
    tail = np.clip((arc[-1] - arc) / _TAIL_MM, 0, 1)
    tail = 1 if name in ("LM", "RCA") else 0.75 + 0.25 * tail
    radius = scale * (r0 + (r1 - r0) * share) * tail
    lift = (radius + 0.9) / self.heart.scale
    if not inside:
      for _ in range(3):
        settled = _settle(line, lift, self.size)
        settled = ndimage.gaussian_filter1d(settled, 1, axis=0, mode="nearest")
        line = line + ramp * (settled - line)
      free = np.clip((arc - min(free_mm, 2)) / 6, 0, 1)[:, None]
      for _ in range(6):
        move = self._off_vessels(line, radius)
        move = move + _out_of_blood(line + move, radius, self.size)
        # What moves one point takes its neighbours along: no kinks.
        move = ndimage.gaussian_filter1d(move, 2.5, axis=0, mode="nearest")
        line = _without_kinks(line + free * move)
    points = shapes.spline(self.heart.to_patient(line), STEP_MM)
    count = len(points)
    radius = np.interp(np.linspace(0, 1, count), share, radius)
    return Vessel(name, points, radius, _normals(points), parent)

  def _wiggle(self, arc: np.ndarray, winding: float) -> np.ndarray:
    """Returns a displacement [N, 3] in mm that grows along the way."""
    noise = self.rng.normal(0, 1, (2, len(arc), 3))
    long, short = (
      ndimage.gaussian_filter1d(part, sigma, axis=0, mode="nearest")
      for part, sigma in zip(noise, (5, 3), strict=True)
    )
    grown = np.clip(0.2 + arc / 40, 0, 1.8)[:, None]
    return winding * (4.0 * long + 2.8 * grown * short)

  def _off_vessels(self, line: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Returns what moves points [N, 3] out of the great vessels."""
    where = self.heart.to_patient(line)
    distance, nearest = self._near.query(where)
    apart = (where - self._beside[nearest, :3]) / distance[:, None]
    lacks = self._beside[nearest, 3] + radius + 1.2 - distance
    move = np.maximum(lacks, 0)[:, None] * apart @ self.heart.turn
    return move / self.heart.scale

  def _gap(self, vessel: Vessel) -> float:
    """Returns the least mm of fat to other vessels but at a common fork."""
    least = np.inf
    mine = STEP_MM * np.arange(len(vessel.points))
    for other in self.tree.values():
      fat = spatial.distance.cdist(vessel.points, other.points)
      if other.name == vessel.parent:
        fork = fat[0].argmin()
      elif vessel.parent and vessel.parent == other.parent:
        fork = 0
      else:
        fork = np.inf
      fat = fat - vessel.radius[:, None] - other.radius
      way = STEP_MM * np.abs(np.arange(len(other.points)) - fork)
      fat[(mine[:, None] <= _FORK_MM) & (way <= _FORK_MM)] = np.inf
      least = min(least, fat.min())
    return least

  def line(self, name: str) -> np.ndarray:
    """Returns the points [N, 3] of a vessel in the heart's frame."""
    points = tuple(np.float32(self.tree[name].points.T))
    return np.stack(self.heart.from_patient(points), -1)

  def on(self, name: str, share: float) -> np.ndarray:
    """Returns the point [3] of a vessel, in the heart's frame."""
    line = self.line(name)
    return line[int(round(share * (len(line) - 1)))]

  def surface(self, long_mm, angle_deg) -> np.ndarray:
    """Returns points [N, 3] just outside the left ventricle."""
    long_mm = np.asarray(long_mm, float)
    outer = heart_lib.lv_radius(self.size)[1]
    share = np.clip(1 - ((long_mm - 22) / 69) ** 2, 0.02, 1)
    return heart_lib.lv_point(long_mm, angle_deg, outer * np.sqrt(share) + 2.5)

  def middle_of_wall(self, long_mm, angle_deg) -> np.ndarray:
    """Returns points [N, 3] in the middle of the left ventricle's wall."""
    radius = np.arange(18, 45, 1.0)
    ray = heart_lib.lv_point(
      np.asarray(long_mm)[:, None], np.asarray(angle_deg)[:, None], radius
    )
    at = tuple(np.float32(ray.reshape(-1, 3).T))
    depth = heart_lib.lv_inside(at, self.size) - self.size["wall_mm"] / 2
    best = np.abs(depth).reshape(len(ray), -1).argmin(1)
    return ray[np.arange(len(ray)), best]

  def groove(self, long_mm, front: bool) -> np.ndarray:
    """Returns the angles where the right ventricle meets the left one."""
    sweep = np.arange(-20, 91, 2.0) if front else np.arange(220, 89, -2.0)
    grid = self.surface(
      np.repeat(long_mm, len(sweep)), np.tile(sweep, len(long_mm))
    )
    apart = heart_lib.rv_inside(tuple(np.float32(grid.T)), self.size) - 5.5
    return _first_touch(sweep, apart, len(sweep) // 2)

  def ring(self, angle_deg) -> np.ndarray:
    """Returns the mm from the base where atrium and ventricle meet."""
    sweep = np.arange(24, -4, -1.0)
    grid = self.surface(
      np.tile(sweep, len(angle_deg)), np.repeat(angle_deg, len(sweep))
    )
    apart = heart_lib.la_inside(tuple(np.float32(grid.T)), self.size) - 5
    return _first_touch(sweep, apart, -1)


def _first_touch(sweep, apart, otherwise: int) -> np.ndarray:
  """Returns where each sweep [N] first finds `apart` [M * N] below 0, [M]."""
  touching = apart.reshape(-1, len(sweep)) < 0
  return sweep[np.where(touching.any(1), touching.argmax(1), otherwise)]


def _settle(line: np.ndarray, lift: np.ndarray, size: dict) -> np.ndarray:
  """Moves points [N, 3] along the gradient to `lift` mm above the muscle."""
  muscle = lambda q: heart_lib.muscle(heart_lib.chambers(q, size))  # noqa: E731
  for _ in range(3):
    value, gradient = _slope(muscle, line)
    line = line - np.clip((value - lift)[:, None] * gradient, -6, 6)
  return line


def _without_kinks(line: np.ndarray) -> np.ndarray:
  """Returns a line [N, 3] smoothed where it turns sharply; its ends stay."""
  way = np.diff(line, axis=0)
  way /= np.linalg.norm(way, axis=1, keepdims=True) + 1e-9
  turn = np.zeros(len(line))
  turn[1:-1] = np.arccos(np.clip((way[1:] * way[:-1]).sum(1), -1, 1))
  sharp = ndimage.maximum_filter1d(turn > np.radians(_SHARP_DEG), 7)
  share = ndimage.gaussian_filter1d(sharp.astype(float), 2)[:, None]
  share[[0, -1]] = 0
  smooth = ndimage.gaussian_filter1d(line, 3, axis=0, mode="mirror")
  return line + share * (smooth - line)


def _out_of_blood(
  line: np.ndarray, radius: np.ndarray, size: dict
) -> np.ndarray:
  """Returns what moves points [N, 3] out of the chambers' blood."""

  def blood(q):
    parts = heart_lib.chambers(q, size)
    # Blended, so that the way out of a groove leads out of both its sides.
    right = shapes.union(parts.rv, parts.ra, 5)
    left = np.minimum(heart_lib.lv_inside(q, size), parts.la)
    return shapes.union(right, left, 2)

  value, gradient = _slope(blood, line)
  lacks = np.maximum(radius + 1.3 - value, 0)
  return np.clip(lacks[:, None] * gradient, -6, 6)


def _slope(field, line: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns a distance at points [N, 3] and its slope over its square."""
  step = 0.5
  probe = np.concatenate(
    [line, *(line + step * np.eye(3)[k] for k in range(3))]
  )
  value = field(tuple(np.float32(probe.T))).reshape(4, -1).astype(float)
  slope = ((value[1:] - value[0]) / step).T
  square = np.maximum((slope**2).sum(1), 0.25)
  return value[0], slope / square[:, None]


def _normals(points: np.ndarray) -> np.ndarray:
  """Returns rotation-minimising unit vectors [N, 3] across a line."""
  way = np.gradient(points, axis=0)
  way /= np.linalg.norm(way, axis=1, keepdims=True)
  normal = np.cross(way[0], np.eye(3)[np.abs(way[0]).argmin()])
  normals = []
  for tangent in way:
    normal = normal - tangent * (normal @ tangent)
    normal = normal / np.linalg.norm(normal)
    normals.append(normal)
  return np.stack(normals)


def _angle(points: np.ndarray) -> np.ndarray:
  """Returns the degrees [...] of points [..., 3], as `heart.lv_point` has."""
  _, septal, up = np.moveaxis(
    (points - heart_lib.MITRAL) @ heart_lib.LV_FRAME.T, -1, 0
  )
  return np.degrees(np.arctan2(septal, up))


def _ostium(
  heart: Heart, number: int, up_mm: float, aside_deg: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
  """Returns where an artery leaves an aortic sinus, and the way out.

  Args:
    heart: the heart.
    number: of the sinus.
    up_mm: above the sinus' middle.
    aside_deg: from the sinus' middle clockwise, seen from above.
  """
  centers, radius = vessels.sinuses(heart)
  center = centers[number]
  out = center - (heart_lib.AORTIC_VALVE + 10 * heart_lib.ROOT_WAY)
  out /= np.linalg.norm(out)
  side = np.cross(out, heart_lib.ROOT_WAY)
  turn = np.radians(aside_deg)
  out = np.cos(turn) * out + np.sin(turn) * side
  return center + radius * out + up_mm * heart_lib.ROOT_WAY, out


def _grow_left(grow: _Grower, has: dict) -> None:
  dominance = has["dominance"]
  ostium, _ = _ostium(grow.heart, 0, 4, _LEFT_DEG)
  fork = grow.surface([14], [3])[0] + [0, 0, 3]
  grow.add("LM", [ostium, (ostium + fork) / 2 + [0, 0, 0.5], fork], free_mm=7)
  fork = grow.on("LM", 1.0)
  long = np.array([30.0, 45, 60, 74, 86])
  angle = grow.groove(long, front=True)
  grow.add("LAD", [fork, *grow.surface(long, angle)], "LM")
  turn = np.array([-35.0, -65, -95, -120])
  # Where the right artery reaches the back, the circumflex ends early or late.
  turn = turn[: 4 if grow.rng.random() < 0.6 else 3]
  if dominance == "left":
    turn = np.array([-35.0, -65, -95, -130, -165, -185])
  elif dominance == "co":
    turn = np.array([-35.0, -65, -95, -130, -150])
  radii = (2.2, 1.5) if dominance == "left" else None
  ring = grow.surface(grow.ring(turn), turn)
  if has["anomaly"] == "LCx from the right sinus":
    _grow_behind_the_aorta(grow, ring[1:], radii)
  else:
    # A left main that ends in three vessels has the wider fork.
    along = heart_lib.LV_FRAME[0] @ (fork - heart_lib.MITRAL)
    along += 0 if has["IM"] else 2.5
    first = grow.surface([along], [-16])
    grow.add("LCx", [fork, *first, *ring], "LM", radii)
  # What every heart has comes first; other branches take the room left.
  if dominance == "left":
    long = np.array([14.0, 30, 46, 60])
    angle = grow.groove(long, front=False)
    grow.add("L-PDA", [grow.on("LCx", 1), *grow.surface(long, angle)], "LCx")
  if dominance != "right":
    start = grow.on("LCx", 0.86)
    path = grow.surface([16, 32, 46], _angle(start) - np.array([5, 10, 14]))
    grow.add("L-PLA", [start, *path], "LCx")
  share = {"left": 0.3, "co": 0.38}.get(dominance, 0.45)
  for name, at, long in (
    ("OM1", share, (30, 48, 66)),
    ("OM2", share + 0.27, (30, 48, 64)),
    ("OM3", share + 0.42, (24, 36, 48)),
  ):
    if has[name]:
      start = grow.on("LCx", at)
      path = grow.surface(long, _angle(start) - np.array([10, 18, 22]))
      grow.add(name, [start, *path], "LCx")
  for name, share, first, last, aside in (
    ("D1", 0.22, 30, 68, (18, 30, 40)),
    ("D2", 0.42, 45, 80, (15, 25, 32)),
    ("D3", 0.6, 58, 86, (12, 20, 26)),
  ):
    if has[name]:
      start = grow.on("LAD", share)
      side = grow.groove(np.array([float(first)]), front=True)[0]
      path = grow.surface(
        np.linspace(first, last, 4)[1:], side - np.array(aside)
      )
      grow.add(name, [start, *path], "LAD")
  if has["S1"]:
    start = grow.on("LAD", 0.16)
    angle = _angle(start) + np.array([16, 32, 48])
    deep = grow.middle_of_wall([27.0, 34, 42], angle)
    grow.add("S1", [start, *deep], "LAD", inside=True)
  if has["IM"]:
    path = grow.surface([31, 47, 62], [-13, -32, -46])
    grow.add("IM", [fork, *path], "LM")


def _grow_behind_the_aorta(grow: _Grower, ring: np.ndarray, radii) -> None:
  """Grows a circumflex artery from the right sinus, around the root's back."""
  start, out = _ostium(grow.heart, 1, 0, _RIGHT_DEG)
  middle = heart_lib.AORTIC_VALVE + 8 * heart_lib.ROOT_WAY
  side = np.cross(heart_lib.ROOT_WAY, out)
  wide = grow.size["aorta_radius_mm"] * 1.25 / grow.heart.scale + 3
  turn = np.radians([60.0, 100, 140, 180, 215])[:, None]
  around = middle + wide * (np.cos(turn) * out - np.sin(turn) * side)
  guides = [start, start + 2 * out - 3 * side, *around, *ring]
  grow.add("LCx", guides, "", radii, free_mm=6.5 * wide * 0.6)


def _grow_right(grow: _Grower, has: dict) -> None:
  dominance = has["dominance"]
  high = has["anomaly"] == "high origin of the RCA"
  ostium, out = _ostium(grow.heart, 1, 13 if high else 4, _RIGHT_DEG)
  last = -84.0 if dominance != "left" else grow.rng.uniform(-50, -20)
  ring = _tricuspid_ring(grow.size, np.linspace(52, last, 7))
  if dominance != "left":
    # The crux, where the grooves between all four chambers meet.
    angle = grow.groove(np.array([4.0]), front=False)
    ring = np.concatenate([ring, grow.surface([2], angle)])
  early = [ostium, ostium + 5 * out + [0, -2, -6 if high else 1]]
  free_mm = 8.0
  if has["anomaly"] == "RCA from the left sinus":
    early, free_mm = _between_the_arteries(grow, early[1])
  radii = (1.7, 1.0) if dominance == "left" else None
  grow.add("RCA", [*early, *ring], "", radii, free_mm=free_mm)
  line = grow.line("RCA")
  for name, path in (
    ("conus", [[-6.0, -44, 22], [5, -47, 25], [15, -42, 27]]),
    ("RV", [[20.0, 56, 10], [34, 50, 4], [46, 42, 0]]),
    ("AM", [[24.0, 52, -20], [42, 48, -22], [62, 36, -20]]),
  ):
    if has[name]:
      path = np.array(path)
      if name != "conus":
        path = heart_lib.MITRAL + path @ heart_lib.LV_FRAME
      away = np.linalg.norm(line - path[0], axis=1)
      away[: int((9 if name == "conus" else 25) / STEP_MM)] = np.inf
      start = line[away.argmin()]
      grow.add(name, [start, *path[0 if name == "AM" else 1 :]], "RCA")
  if dominance == "left":
    return
  crux = grow.on("RCA", 1.0)
  long = np.array([14.0, 30, 46, 62])
  angle = grow.groove(long, front=False)
  grow.add("R-PDA", [crux, *grow.surface(long, angle)], "RCA")
  if dominance == "right":
    path = grow.surface([2, 14, 28, 48], [184, 196, 202, 206])
    grow.add("R-PLA", [crux, *path], "RCA")
    if has["R-PLA2"]:
      start = grow.on("R-PLA", 0.3)
      path = grow.surface([10, 22, 38], [208, 219, 226])
      grow.add("R-PLA2", [start, *path], "R-PLA")


def _between_the_arteries(grow: _Grower, end: np.ndarray) -> tuple:
  """Returns a right artery's way from the left sinus, and its length in mm."""
  start, out = _ostium(grow.heart, 0, 6)
  middle = heart_lib.AORTIC_VALVE + 12 * heart_lib.ROOT_WAY
  side = np.cross(heart_lib.ROOT_WAY, out)
  wide = grow.size["aorta_radius_mm"] * 1.2 / grow.heart.scale + 2
  turn = np.radians([35.0, 60, 85])[:, None]
  around = middle + wide * (np.cos(turn) * out - np.sin(turn) * side)
  guides = [start, *around, end]
  return guides, 1.9 * wide


def _tricuspid_ring(size: dict, angle_deg: np.ndarray) -> np.ndarray:
  """Returns points around the tricuspid valve; 90 is up, 0 the free wall."""
  angle = np.radians(angle_deg)[:, None]
  k = size["rv_scale"]
  middle = np.array([4.0, 35.0, -3.0])
  out, up = np.array([0.49, 0.87, 0.0]), np.array([0.0, 0.0, 1.0])
  local = middle + k * (29 * np.cos(angle) * out + 36 * np.sin(angle) * up)
  return heart_lib.MITRAL + local @ heart_lib.LV_FRAME
