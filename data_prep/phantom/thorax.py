"""Everything around the heart: chest wall, bones, lungs, mediastinum, liver.

Landmarks are in mm around the middle of the heart of an average adult, x to
the left, y to the back, z up, as in heart.py, but upright with the spine.
"""

import dataclasses
from typing import Any

import numpy as np

from data_prep.phantom import shapes, vessels
from data_prep.phantom.heart import Heart
from data_prep.phantom.voxels import Lattice
from data_prep.tissues import Tissue

_MIDLINE = -24.0
_SPINE_Y = 103.0
_VERTEBRA_MM = 25.0
_AIRWAYS = [
  [(-29, 20, 150, 8.5), (-29, 34, 100, 8.5), (-25, 45, 74, 8.5)],
  [(-25, 45, 74, 7), (-44, 44, 60, 6.2), (-64, 46, 48, 4.5)],
  [(-25, 45, 74, 6.5), (-6, 49, 60, 5.8), (22, 57, 47, 4.5)],
]
_ESOPHAGUS = [
  (-24, 58, 130, 7),
  (-18, 62, 80, 7),
  (-14, 66, 20, 7),
  (-6, 62, -30, 7.5),
  (8, 52, -70, 8),
]
# Where vessels enter the lungs, and the way they go.
_HILA = [
  ((-62, 34, 42), (-0.8, -0.5, 0.5)),
  ((-66, 38, 34), (-0.7, 0.6, -0.5)),
  ((-72, 20, 54), (-0.6, -0.4, 0.7)),
  ((-80, 64, -6), (-0.5, 0.6, -0.6)),
  ((36, 58, 54), (0.7, 0.3, 0.6)),
  ((42, 64, 34), (0.6, 0.5, -0.6)),
  ((58, 22, 60), (0.6, -0.6, 0.5)),
  ((64, 72, -8), (0.5, 0.5, -0.7)),
  ((-60, 30, 20), (-0.6, -0.7, -0.4)),
  ((48, 50, 20), (0.8, 0.1, -0.3)),
  ((-66, 44, 24), (-0.6, 0.2, -0.8)),
  ((46, 66, 20), (0.4, 0.3, -0.9)),
  ((-60, 36, 48), (-0.5, 0.5, 0.8)),
  ((40, 50, 56), (0.4, -0.2, 0.9)),
  ((50, 30, 50), (0.6, -0.8, 0.0)),
  ((-68, 26, 40), (-0.7, -0.6, -0.1)),
]


@dataclasses.dataclass(frozen=True, eq=False)
class Thorax:
  """A patient's chest.

  Attributes:
    center: LPS mm of the middle of the heart.
    scale: relative to an average adult.
    patient: see `population.draw_patient`.
  """

  center: np.ndarray
  scale: float
  patient: dict[str, Any]

  def to_patient(self, points: Any) -> np.ndarray:
    """Maps average-adult mm [..., 3] to LPS mm."""
    return self.center + self.scale * np.asarray(points, float)

  def from_patient(self, at: shapes.Coordinates) -> shapes.Coordinates:
    """Maps LPS mm to average-adult mm."""
    return tuple(
      (x - np.float32(c)) * np.float32(1 / self.scale)
      for x, c in zip(at, self.center, strict=True)
    )


def _oval(b: shapes.Coordinates, half_width, front, back, power=2.5):
  """Distance to an upright tube; front and back may depend on z."""
  x, y, z = b
  middle, half = (front + back) / 2, (back - front) / 2
  u = np.abs((x - np.float32(_MIDLINE)) / half_width)
  v = np.abs((y - middle) / half)
  norm = (u**power + v**power) ** (1 / power) + np.float32(1e-6)
  radius = np.hypot(x - np.float32(_MIDLINE), y - middle)
  return radius * (1 - 1 / norm)


def _front(z):
  """Returns y of the inside of the sternum, which leans back upward."""
  return -60.0 + 0.14 * z


def cavity(b: shapes.Coordinates) -> np.ndarray:
  """Distance to the inside of the rib cage."""
  x, y, z = b
  taper = np.sqrt(1 - np.clip((z - 10) / 175, 0, 0.995) ** 2)
  inside = _oval(b, 138 * taper + 1, _front(z), 103 + 30 * taper, 2.35)
  # The spine and the muscle beside it push in from behind.
  spine = shapes.capsule(
    (x, y, 0 * z),
    np.array([_MIDLINE, _SPINE_Y + 2, 0]),
    np.array([_MIDLINE, _SPINE_Y + 60, 0]),
    20,
    34,
  )
  return shapes.meet(inside, -spine, 14)


def skin(b: shapes.Coordinates, patient: dict[str, Any]) -> np.ndarray:
  """Distance to the skin."""
  x, y, z = b
  fat = patient["fat_mm"] / patient["body_scale"]
  body = _oval(
    b, 160 + fat, _front(z) - 22 - 0.6 * fat, 165 + 0.6 * fat + 0 * z, 2.5
  )
  breast = patient["breast_mm"] / patient["body_scale"]
  if breast > 0:
    for side in (-1, 1):
      mound = shapes.ellipsoid(
        b,
        (_MIDLINE + 82 * side, _front(0) - 16 - 0.6 * fat, 5),
        (62, breast + 8, 62),
      )
      body = shapes.union(body, mound, 14)
  return body


def chest_muscle(b: shapes.Coordinates) -> np.ndarray:
  """Distance to the outside of the muscles of the chest wall."""
  z = b[2]
  return _oval(b, 154, _front(z) - 19, 160 + 0 * z, 2.5)


def diaphragm(b: shapes.Coordinates, patient: dict[str, Any]) -> np.ndarray:
  """Height above the diaphragm in mm."""
  x, y, z = b
  lift = patient["diaphragm_mm"]

  def dome(cx, cy, top, rx, ry):
    u = ((x - np.float32(cx)) / rx) ** 2 + ((y - np.float32(cy)) / ry) ** 2
    return top + lift - 30 * u**1.3

  right = dome(-92, 24, -24, 66, 82)
  left = dome(58, 30, -33, 68, 84)
  middle = dome(-6, -4, -41, 72, 76)
  height = -shapes.union(-right, shapes.union(-left, -middle, 8), 8)
  return (z - height) * np.float32(0.8)


def mediastinum(
  at: shapes.Coordinates, b: shapes.Coordinates, outline: list
) -> np.ndarray:
  """Distance to the soft tissue between the lungs, the heart aside.

  Args:
    at: LPS mm.
    b: the same in average-adult mm.
    outline: great vessels as (points, radii) in LPS mm.
  """
  whole = shapes.capsule(
    b, np.array([-15.0, 62, -130]), np.array([-16.0, 64, 130]), 20, 22
  )
  upper = shapes.capsule(
    b, np.array([-24.0, 20, 70]), np.array([-26.0, 20, 170]), 24, 32
  )
  front = shapes.meet(
    shapes.capsule(
      b, np.array([-22.0, -38, 10]), np.array([-25.0, -20, 150]), 13, 26
    ),
    b[1] - np.float32(40),
  )
  spine = shapes.capsule(
    b,
    np.array([_MIDLINE, _SPINE_Y, -200]),
    np.array([_MIDLINE, _SPINE_Y, 200]),
    21,
    21,
  )
  whole = shapes.union(shapes.union(whole, spine, 14), upper, 20)
  whole = shapes.union(whole, front, 16)
  for points, radii in outline:
    for k in range(0, len(points) - 1, 3):
      m = min(k + 3, len(points) - 1)
      ra, rb = (1.45 * radii[i] - 2.5 for i in (k, m))
      part = shapes.capsule(at, points[k], points[m], ra, rb)
      whole = shapes.union(whole, part, 8)
  return whole


def draw_thorax(
  canvas: shapes.Canvas,
  thorax: Thorax,
  heart: Heart,
  rng: np.random.Generator,
  scanner: dict[str, Any],
  texture: Any,
) -> None:
  """Paints the chest without heart and great vessels.

  Args:
    canvas: changed in place.
    thorax: the chest.
    heart: where the mediastinum runs.
    rng: for the vessels of the lungs.
    scanner: contrasts.
    texture: smooth noise of x, y, z in mm, about standard normal.
  """
  patient = thorax.patient
  everything = canvas.voxels.everywhere
  points = Lattice(canvas.voxels.grid, everything, 4.0)
  b = thorax.from_patient(points.at)

  def layer(distance, hu, tissue, opacity=1.0):
    voxels = points.to_voxels(distance * thorax.scale)
    shapes.paint(canvas, everything, voxels, hu, tissue, opacity)

  inside = cavity(b)
  outside = skin(b, patient)
  layer(outside, 10.0, Tissue.SKIN)
  layer(outside + 2.0, patient["fat_hu"], Tissue.FAT)
  strands = texture(points.at, 13.0)
  layer(chest_muscle(b), 50.0, Tissue.MUSCLE)
  flesh = np.maximum(chest_muscle(b) + 3, -(inside - 5))
  layer(
    np.maximum(flesh, 9 * (1.15 - strands)), patient["fat_hu"], Tissue.FAT, 0.9
  )
  gravity = np.float32(0.35) * (b[1] - 35) + 15 * texture(points.at, 25.0)
  layer(
    inside,
    patient["lung_hu"] + points.to_voxels(gravity + 0 * inside),
    Tissue.LUNG,
  )
  _draw_lungs(canvas, thorax, rng, scanner)
  above = diaphragm(b, patient)
  _draw_abdomen(layer, b, above, inside, patient)
  outline = vessels.outlines(heart)
  soft = mediastinum(points.at, b, outline)
  soft = shapes.meet(soft, inside - 1.5)
  layer(soft - 0.8, 0.0, Tissue.SOFT_TISSUE)
  layer(soft, patient["fat_hu"] + 12, Tissue.FAT)
  _draw_bones(canvas, thorax)
  _draw_tubes(canvas, thorax)


def _draw_abdomen(layer, b, above, inside, patient) -> None:
  x, y, z = b
  under = np.maximum(above, inside)
  layer(under, 45.0, Tissue.MUSCLE)
  layer(under + 3, patient["fat_hu"], Tissue.FAT)
  edge = (x - np.float32(22) - np.float32(0.7) * (z + 45)) * np.float32(0.8)
  layer(shapes.meet(under + 3.5, edge, 10), patient["liver_hu"], Tissue.LIVER)
  stomach = shapes.meet(
    shapes.ellipsoid(b, (56, 8, -82), (36, 48, 38)), under + 6, 5
  )
  layer(stomach, 55.0, Tissue.STOMACH)
  layer(stomach + 4, 25.0, Tissue.STOMACH)
  layer(shapes.meet(stomach + 4, y + np.float32(4)), -960.0, Tissue.GAS)
  spleen = shapes.ellipsoid(b, (92, 82, -88), (26, 44, 40))
  layer(
    shapes.meet(spleen, under + 5, 5), patient["liver_hu"] + 45, Tissue.SPLEEN
  )


def _draw_lungs(canvas, thorax, rng, scanner) -> None:
  """Paints trees of vessels from the hila to near the pleura."""
  ends, radii = _trees(rng)
  shapes.thin_tubes(
    canvas,
    thorax.to_patient(ends),
    radii * thorax.scale,
    0.75 * scanner["contrast_hu"],
    thorax.patient["lung_hu"],
    Tissue.LUNG_VESSELS,
  )


def _trees(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """Grows branches that fork until they are thin or reach the pleura.

  Returns:
    (ends [N, 2, 3], radii [N, 2]) of straight pieces, in average-adult mm.
  """
  point, way = (np.array(column, float) for column in zip(*_HILA, strict=True))
  radius = np.full(len(point), 3.0)
  ends, radii = [], []
  while len(point):
    point, way, radius = (np.repeat(a, 2, 0) for a in (point, way, radius))
    turn = way / np.linalg.norm(way, axis=1, keepdims=True)
    turn = turn + rng.normal(0, 0.42, way.shape)
    turn /= np.linalg.norm(turn, axis=1, keepdims=True)
    length = rng.uniform(9, 16, len(way)) * radius**0.45
    end = point + turn * length[:, None]
    thin = radius * rng.uniform(0.7, 0.89, len(way))
    inside = cavity(tuple(end.astype(np.float32).T)) < -3
    ends.append(np.stack([point, end], 1)[inside])
    radii.append(np.stack([radius, thin], 1)[inside])
    grow = inside & (thin > 0.5)
    point, way, radius = end[grow], turn[grow], thin[grow]
  return np.concatenate(ends), np.concatenate(radii)


def _draw_bones(canvas: shapes.Canvas, thorax: Thorax) -> None:
  bone, marrow = thorax.patient["bone_hu"], 0.2 * thorax.patient["bone_hu"] + 50
  everything = canvas.voxels.everywhere
  margin = canvas.edge_mm + 1
  ribs, cartilage = rib_tubes(thorax)
  spurs = _processes(thorax)
  soft = shapes.tube_distance(canvas.voxels, cartilage, margin)
  shapes.paint(canvas, everything, soft, 110.0, Tissue.CARTILAGE)
  hard = shapes.tube_distance(canvas.voxels, ribs + spurs, margin)
  shapes.paint(canvas, everything, hard, bone, Tissue.BONE)
  shapes.paint(canvas, everything, hard + 1.6, marrow, Tissue.MARROW)
  _draw_spine(canvas, thorax, bone, marrow)
  _draw_sternum(canvas, thorax, bone, marrow)


def rib_tubes(thorax: Thorax) -> tuple[list, list]:
  """Returns ribs and costal cartilages as tubes in LPS mm."""
  ribs, cartilages = [], []
  for number in range(11):
    back = 150 - _VERTEBRA_MM * number
    for side in (-1, 1):
      angle = np.radians(np.linspace(12, 140, 15))
      fall = 62 * np.sin(np.clip(angle - 0.1, 0, np.pi / 2 + 0.75) / 1.5) ** 1.4
      z = back - fall
      taper = np.sqrt(1 - np.clip((z - 10) / 175, 0, 0.97) ** 2)
      front, rear = _front(z), 103 + 30 * taper
      c, s = np.cos(angle), np.sin(angle)
      power = 2 / 2.35
      x = (138 * taper + 5.5) * np.abs(s) ** power * side + _MIDLINE
      y = (front + rear) / 2 + (rear - front + 11) / 2 * np.sign(c) * (
        np.abs(c) ** power
      )
      line = np.stack([x, y, z], 1)
      ribs.append((thorax.to_patient(line), np.full(15, 5.2 * thorax.scale)))
      end = line[-1]
      top = min(max(end[2] + 2 + 5.5 * number, -35), 90)
      sternum = np.array([_MIDLINE + 17 * side, _front(top) - 6, top])
      middle = (end + sternum) / 2 + np.array([0, -5, -4.0])
      bend = shapes.spline(np.stack([end, middle, sternum]), 12.0)
      if number < 8:
        cartilages.append(
          (thorax.to_patient(bend), np.full(len(bend), 5.6 * thorax.scale))
        )
  return ribs, cartilages


def _processes(thorax: Thorax) -> list:
  """Returns transverse and spinous processes and laminae as tubes."""
  tubes = []
  for number in range(14):
    z = 162 - _VERTEBRA_MM * number
    parts = [([0, 30, 0], [0, 50, -16], 4.2, 3.4)]
    for side in (-1, 1):
      parts += [
        ([9.5 * side, 8, 3], [11.5 * side, 20, 3], 4.4, 4.4),
        ([11.5 * side, 20, 2], [0, 31, -1], 4.0, 4.0),
        ([11.5 * side, 19, 3], [30 * side, 29, 6], 5.0, 4.4),
      ]
    for a, c, ra, rb in parts:
      base = np.array([_MIDLINE, _SPINE_Y, z])
      line = thorax.to_patient(np.stack([base + a, base + c]))
      tubes.append((line, np.array([ra, rb]) * thorax.scale))
  return tubes


def _draw_spine(canvas, thorax, bone, marrow) -> None:
  low = thorax.to_patient([_MIDLINE - 24, _SPINE_Y - 24, -500])
  high = thorax.to_patient([_MIDLINE + 24, _SPINE_Y + 32, 500])
  points = canvas.voxels.lattice(low, high, 2.0)
  if points is None:
    return
  x, y, z = thorax.from_patient(points.at)
  phase = (z - np.float32(162)) / np.float32(_VERTEBRA_MM)
  phase = np.abs(phase - np.round(phase)) * np.float32(_VERTEBRA_MM)
  waist = 2.0 * np.cos(phase * np.float32(np.pi / 10.5)) * (phase < 10.5)
  around = shapes.ellipsoid(
    (x, y, 0 * z), (_MIDLINE, _SPINE_Y, 0), (17.5, 14.5, 1e3)
  )
  body = shapes.meet(around + waist, phase - np.float32(10.3), 2)

  def layer(distance, hu, tissue):
    voxels = points.to_voxels(distance * thorax.scale)
    shapes.paint(canvas, points.box, voxels, hu, tissue)

  canal = shapes.ellipsoid(
    (x, y, 0 * z), (_MIDLINE, _SPINE_Y + 20.5, 0), (9, 7.5, 1e3)
  )
  layer(canal, 25.0, Tissue.SPINAL_CANAL)
  layer(np.maximum(around, phase - 12.6) + 1, 85.0, Tissue.CARTILAGE)
  layer(body, 0.75 * bone, Tissue.BONE)
  layer(body + 1.3, marrow, Tissue.MARROW)


def _draw_sternum(canvas, thorax, bone, marrow) -> None:
  low = thorax.to_patient([_MIDLINE - 40, -100, -60])
  high = thorax.to_patient([_MIDLINE + 40, -20, 160])
  points = canvas.voxels.lattice(low, high, 2.0)
  if points is None:
    return
  x, y, z = thorax.from_patient(points.at)
  wide = (
    15 + 4 * np.cos((z - 10) / 12) * 0.4 + 11 * np.clip((z - 78) / 15, 0, 1)
  )
  across = np.abs(x - np.float32(_MIDLINE)) - wide
  deep = np.abs(y - (_front(z) - 7)) - np.float32(5.5)
  along = np.maximum(z - np.float32(120), np.float32(-38) - z)
  plate = shapes.meet(shapes.meet(across, deep, 5), along, 4)
  joint = np.abs(z - np.float32(82)) - np.float32(1.5)
  for distance, hu, tissue in (
    (plate, 0.7 * bone, Tissue.BONE),
    (plate + 1.3, 0.8 * marrow, Tissue.MARROW),
    (np.maximum(plate, joint), 90.0, Tissue.CARTILAGE),
  ):
    voxels = points.to_voxels(distance * thorax.scale)
    shapes.paint(canvas, points.box, voxels, hu, tissue)


def _draw_tubes(canvas, thorax) -> None:
  """Paints oesophagus, trachea and main bronchi."""
  rows = np.array(_ESOPHAGUS, float)
  line = shapes.spline(rows, 8.0)
  points = thorax.to_patient(line[:, :3])
  shapes.paint_tube(
    canvas, points, line[:, 3] * thorax.scale, 45.0, Tissue.ESOPHAGUS
  )
  layers = ((1.4, 30.0, Tissue.SOFT_TISSUE), (0.0, -990.0, Tissue.AIRWAYS))
  for wall, hu, tissue in layers:
    for row in _AIRWAYS:
      line = shapes.spline(np.array(row, float), 8.0)
      points = thorax.to_patient(line[:, :3])
      radii = (line[:, 3] + wall) * thorax.scale
      shapes.paint_tube(canvas, points, radii, hu, tissue)
