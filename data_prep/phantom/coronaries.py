"""The coronary tree: two ostia, the grooves of the heart, SCCT segments."""

import dataclasses
from typing import Any

import numpy as np
from scipy import ndimage

from data_prep.errors import UserError
from data_prep.phantom import heart as heart_lib
from data_prep.phantom import shapes, vessels
from data_prep.phantom.heart import Heart

# The numbering of ImageCAS-X, after the SCCT's segments.
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
  "other": 14,
}
STEP_MM = 0.5
# Lumen radius in mm at the beginning and the end.
_RADII = {
  "LM": (2.25, 2.1),
  "LAD": (1.85, 0.75),
  "LCx": (1.7, 0.85),
  "D1": (1.15, 0.6),
  "D2": (1.0, 0.55),
  "OM1": (1.25, 0.6),
  "OM2": (1.1, 0.55),
  "IM": (1.2, 0.6),
  "RCA": (1.95, 1.35),
  "R-PDA": (1.15, 0.6),
  "R-PLA": (1.2, 0.6),
  "L-PDA": (1.1, 0.6),
  "L-PLA": (1.1, 0.6),
  "other": (0.95, 0.5),
}


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


def make_tree(
  heart: Heart, rng: np.random.Generator, dominance: str | None = None
) -> tuple[dict[str, Vessel], dict[str, Any]]:
  """Grows a patient's coronary tree.

  Args:
    heart: the heart that it lies on.
    rng: source of randomness.
    dominance: "right", "left" or "co"; drawn as in the population if None.

  Returns:
    (segments by name, what was drawn).

  Raises:
    UserError: the dominance is unknown.
  """
  drawn = str(rng.choice(["right", "left", "co"], p=[0.83, 0.1, 0.07]))
  has = {
    "D2": bool(rng.random() < 0.75),
    "OM2": bool(rng.random() < 0.65),
    "IM": bool(rng.random() < 0.22),
    "other": bool(rng.random() < 0.8),
  }
  dominance = dominance or drawn
  if dominance not in ("right", "left", "co"):
    raise UserError(f"dominance {dominance!r}: must be right, left or co")
  grow = _Grower(heart, rng)
  _grow_left(grow, has, dominance)
  _grow_right(grow, has, dominance)
  return grow.tree, {"dominance": dominance, **has}


class _Grower:
  """Turns guide points in the heart's frame into vessels on its surface."""

  def __init__(self, heart: Heart, rng: np.random.Generator):
    self.heart, self.rng = heart, rng
    self.tree: dict[str, Vessel] = {}
    self.size = heart.size

  def add(self, name, guides, parent="", radii=None, free_mm=0.0):
    """Adds a vessel along `guides` [N, 3]; its first `free_mm` stay put."""
    r0, r1 = radii or _RADII[name]
    scale = self.size["coronary_scale"] * self.heart.scale**0.5
    line = shapes.spline(np.asarray(guides, float), 1.0)
    arc = shapes.arc_length(line)
    wiggle = ndimage.gaussian_filter1d(
      self.rng.normal(0, 1, line.shape), 5, axis=0, mode="nearest"
    )
    ramp = np.clip((arc - free_mm) / 10, 0, 1)[:, None]
    line = line + ramp * wiggle * 6.0
    share = np.clip(arc / arc[-1], 0, 1)
    radius = scale * (r0 + (r1 - r0) * share)
    lift = (radius + 0.9) / self.heart.scale
    for _ in range(3):
      settled = _settle(line, lift, self.size)
      settled = ndimage.gaussian_filter1d(settled, 2, axis=0, mode="nearest")
      line = line + ramp * (settled - line)
    points = shapes.spline(self.heart.to_patient(line), STEP_MM)
    count = len(points)
    radius = np.interp(np.linspace(0, 1, count), share, radius)
    self.tree[name] = Vessel(name, points, radius, _normals(points), parent)

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
  for _ in range(3):
    step = 0.5
    probe = np.concatenate(
      [line, *(line + step * np.eye(3)[k] for k in range(3))]
    )
    parts = heart_lib.chambers(tuple(np.float32(probe.T)), size)
    value = heart_lib.muscle(parts)
    value = value.reshape(4, -1).astype(float)
    gradient = ((value[1:] - value[0]) / step).T
    square = np.maximum((gradient**2).sum(1), 0.25)
    move = ((value[0] - lift) / square)[:, None] * gradient
    line = line - np.clip(move, -6, 6)
  return line


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


def _grow_left(grow: _Grower, has: dict, dominance: str) -> None:
  centers, radius = vessels.sinuses(grow.heart)
  out = centers[0] - (heart_lib.AORTIC_VALVE + 10 * heart_lib.ROOT_WAY)
  out /= np.linalg.norm(out)
  ostium = centers[0] + radius * out + 3 * heart_lib.ROOT_WAY
  fork = grow.surface([17], [2])[0]
  grow.add("LM", [ostium, (ostium + fork) / 2 + [0, 0, 1], fork], free_mm=7)
  fork = grow.on("LM", 1.0)
  long = np.array([30.0, 45, 60, 74, 86])
  angle = grow.groove(long, front=True)
  grow.add("LAD", [fork, *grow.surface(long, angle)], "LM")
  turn = np.array([-35.0, -65, -95, -120])
  if dominance == "left":
    turn = np.array([-35.0, -65, -95, -130, -165, -185])
  elif dominance == "co":
    turn = np.array([-35.0, -65, -95, -130, -150])
  radii = (1.85, 1.25) if dominance == "left" else None
  # A left main that ends in three vessels has the wider fork.
  along = heart_lib.LV_FRAME[0] @ (fork - heart_lib.MITRAL)
  along += 0 if has["IM"] else 3.5
  ring = grow.surface([along, *grow.ring(turn)], [-17, *turn])
  grow.add("LCx", [fork, *ring], "LM", radii)
  for name, share, first, last, aside in (
    ("D1", 0.22, 30, 60, (18, 28, 36)),
    ("D2", 0.42, 45, 76, (15, 25, 31)),
  ):
    if has.get(name, True):
      start = grow.on("LAD", share)
      side = grow.groove(np.array([float(first)]), front=True)[0]
      path = grow.surface(
        np.linspace(first, last, 4)[1:], side - np.array(aside)
      )
      grow.add(name, [start, *path], "LAD")
  if has["IM"]:
    path = grow.surface([31, 47, 62], [-13, -32, -46])
    grow.add("IM", [fork, *path], "LM")
  share = {"left": 0.3, "co": 0.38}.get(dominance, 0.45)
  for name, at in (("OM1", share), ("OM2", share + 0.27)):
    if has.get(name, True):
      start = grow.on("LCx", at)
      path = grow.surface([30, 48, 64], _angle(start) - np.array([10, 18, 22]))
      grow.add(name, [start, *path], "LCx")
  if dominance == "left":
    long = np.array([14.0, 30, 46, 60])
    angle = grow.groove(long, front=False)
    grow.add("L-PDA", [grow.on("LCx", 1), *grow.surface(long, angle)], "LCx")
  if dominance != "right":
    start = grow.on("LCx", 0.86)
    path = grow.surface([16, 32, 46], _angle(start) - np.array([5, 10, 14]))
    grow.add("L-PLA", [start, *path], "LCx")


def _grow_right(grow: _Grower, has: dict, dominance: str) -> None:
  centers, radius = vessels.sinuses(grow.heart)
  out = centers[1] - (heart_lib.AORTIC_VALVE + 10 * heart_lib.ROOT_WAY)
  out /= np.linalg.norm(out)
  ostium = centers[1] + radius * out + 2 * heart_lib.ROOT_WAY
  last = -84.0 if dominance != "left" else -45.0
  ring = _tricuspid_ring(grow.size, np.linspace(52, last, 9))
  if dominance != "left":
    # The crux, where the grooves between all four chambers meet.
    angle = grow.groove(np.array([4.0]), front=False)
    ring = np.concatenate([ring, grow.surface([2], angle)])
  early = ostium + 6 * out + [-3, 0, 1]
  radii = (1.5, 0.8) if dominance == "left" else None
  grow.add("RCA", [ostium, early, *ring], "", radii, free_mm=8)
  if has["other"]:
    line = grow.line("RCA")
    start = line[np.abs(_angle(line) - 106).argmin()]
    path = (
      heart_lib.MITRAL
      + np.array([[24.0, 52, -20], [42, 48, -22], [58, 38, -20]])
      @ heart_lib.LV_FRAME
    )
    grow.add("other", [start, *path], "RCA")
  if dominance == "left":
    return
  crux = grow.on("RCA", 1.0)
  long = np.array([14.0, 30, 46, 62])
  angle = grow.groove(long, front=False)
  grow.add("R-PDA", [crux, *grow.surface(long, angle)], "RCA")
  if dominance == "right":
    path = grow.surface([2, 14, 28, 44], [184, 196, 202, 206])
    grow.add("R-PLA", [crux, *path], "RCA")


def _tricuspid_ring(size: dict, angle_deg: np.ndarray) -> np.ndarray:
  """Returns points around the tricuspid valve; 90 is up, 0 the free wall."""
  angle = np.radians(angle_deg)[:, None]
  k = size["rv_scale"]
  middle = np.array([4.0, 35.0, -3.0])
  out, up = np.array([0.49, 0.87, 0.0]), np.array([0.0, 0.0, 1.0])
  local = middle + k * (29 * np.cos(angle) * out + 36 * np.sin(angle) * up)
  return heart_lib.MITRAL + local @ heart_lib.LV_FRAME
