"""The chest around the heart: its wall, the lungs' air, the mediastinum.

Landmarks are in mm around the middle of the heart of an average adult, x to
the left, y to the back, z up, as in heart.py, but upright with the spine.
"""

import dataclasses
from typing import Any

import numpy as np

from data_prep.phantom import heart as heart_lib
from data_prep.phantom import shapes, vessels
from data_prep.phantom.heart import Heart
from data_prep.phantom.voxels import Lattice
from data_prep.tissues import Tissue

MIDLINE = -24.0
SPINE_Y = 103.0
ESOPHAGUS = np.array(
  [
    [-24.0, 58, 130, 7],
    [-18, 62, 80, 7],
    [-14, 66, 20, 7],
    [-6, 62, -30, 7.5],
    [8, 52, -70, 8],
  ]
)


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
  u = np.abs((x - np.float32(MIDLINE)) / half_width)
  v = np.abs((y - middle) / half)
  norm = (u**power + v**power) ** (1 / power) + np.float32(1e-6)
  radius = np.hypot(x - np.float32(MIDLINE), y - middle)
  return radius * (1 - 1 / norm)


def front(z):
  """Returns y of the inside of the sternum, which leans back upward."""
  return -60.0 + 0.14 * z


def spine_line(z: Any, patient: dict[str, Any]) -> tuple[Any, Any]:
  """Returns x and y of the middle of the vertebral bodies at a height."""
  bend = ((z - 5) / 115) ** 2
  return (
    MIDLINE + patient["scoliosis_mm"] * np.sin(z / 60),
    SPINE_Y - patient["kyphosis_mm"] * np.minimum(bend, 2.0),
  )


def cavity(b: shapes.Coordinates) -> np.ndarray:
  """Distance to the inside of the rib cage."""
  x, y, z = b
  taper = np.sqrt(1 - np.clip((z - 10) / 175, 0, 0.995) ** 2)
  inside = _oval(b, 138 * taper + 1, front(z), 103 + 30 * taper, 2.35)
  # The spine and the muscle beside it push in from behind.
  spine = shapes.capsule(
    (x, y, 0 * z),
    np.array([MIDLINE, SPINE_Y + 2, 0]),
    np.array([MIDLINE, SPINE_Y + 60, 0]),
    20,
    34,
  )
  return shapes.meet(inside, -spine, 14)


def skin(b: shapes.Coordinates, patient: dict[str, Any]) -> np.ndarray:
  """Distance to the skin."""
  x, y, z = b
  fat = patient["fat_mm"] / patient["body_scale"]
  body = _oval(
    b, 160 + fat, front(z) - 22 - 0.6 * fat, 165 + 0.6 * fat + 0 * z, 2.5
  )
  body = shapes.union(body, chest_muscle(b) - 0.5 * fat, 20)
  breast = patient["breast_mm"] / patient["body_scale"]
  if breast > 0:
    for side in (-1, 1):
      mound = shapes.ellipsoid(
        b,
        (MIDLINE + 82 * side, front(0) - 16 - 0.6 * fat, 5),
        (62, breast + 8, 62),
      )
      body = shapes.union(body, mound, 14)
  return body


def chest_muscle(b: shapes.Coordinates) -> np.ndarray:
  """Distance to the outside of the muscles of the chest wall."""
  z = b[2]
  wall = _oval(b, 154, front(z) - 19, 160 + 0 * z, 2.5)
  for side in (-1, 1):  # With the arms up, what moves the shoulder bulges.
    bulge = shapes.ellipsoid(b, (MIDLINE + 116 * side, 92, 105), (44, 56, 92))
    wall = shapes.union(wall, bulge, 16)
  return wall


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
  at: shapes.Coordinates, b: shapes.Coordinates, heart: Heart
) -> np.ndarray:
  """Distance to what lies between the lungs, heart and vessels included.

  Its outline is the lungs' own: it fills the corners between the heart, the
  vessels, the sternum and the diaphragm.

  Args:
    at: LPS mm.
    b: the same in average-adult mm.
    heart: where the mediastinum runs.
  """
  patient = heart.size
  x, y, z = b
  middle, behind = spine_line(z, patient)
  across = np.hypot(x - middle.astype(np.float32), y - behind)
  whole = across - np.float32(22)
  for points in (ESOPHAGUS, _TRACHEA, _NODES, _UPPER, *_HILA):
    for one, other in zip(points[:-1], points[1:], strict=True):
      ends = one[3] + 2, other[3] + 2
      tube = shapes.capsule(b, one[:3], other[:3], *ends)
      whole = shapes.union(whole, tube, 12)
  for points, radii in vessels.outlines(heart):
    tube = _coarse_tube(at, points, radii + 0.5) / patient["body_scale"]
    whole = shapes.union(whole, tube, 13)
  # The descending aorta lies on the spine, with fat between.
  points, radii = vessels.aorta_line(heart)
  behind = points[:, 1] > heart.center[1] + 50 * patient["body_scale"]
  if behind.sum() > 1:
    tube = _coarse_tube(at, points[behind], radii[behind] + 0.5)
    tube = shapes.union(across - 22, tube / patient["body_scale"], 18)
    whole = np.minimum(whole, tube)
  q = heart.from_patient(at)
  body = heart_lib.muscle(heart_lib.chambers(q, patient))
  body = body * np.float32(heart.scale / patient["body_scale"]) + 1.5
  whole = shapes.union(whole, body, 6)
  # Both lungs meet behind the sternum, in front of the great vessels.
  deep = y - front(z)
  slope = 0.3 + 0.015 * patient["fat_pad_mm"]
  wedge = np.abs(x - np.float32(MIDLINE + 3)) - 3 - np.float32(slope) * deep
  wedge = shapes.meet(wedge * np.float32(0.85), y - np.float32(4), 8)
  whole = shapes.union(whole, shapes.meet(wedge, 15 - z, 12), 10)
  # Pads of fat in the corners with the diaphragm and the wall in front.
  pad = patient["fat_pad_mm"] * np.clip((30 - y) / 60, 0.15, 1.0)
  ahead = pad * np.clip((0 - y) / 30, 0.02, 1.0) * 0.6
  below = _fillet(whole, diaphragm(b, patient), pad.astype(np.float32))
  before = _fillet(whole, -cavity(b), ahead.astype(np.float32))
  return np.minimum(whole, np.minimum(below, before))


_TRACHEA = np.array(
  [[-29.0, 20, 170, 10], [-29, 34, 100, 10], [-25, 45, 74, 9]]
)


# Below the fork of the trachea, and what surrounds it above.
_NODES = np.array([[-25.0, 32, 84, 15], [-22, 44, 48, 13], [-16, 54, 18, 9]])
_HILA = np.array(
  [
    [[-25.0, 45, 74, 9], [-44, 44, 60, 9], [-62, 46, 49, 7]],
    [[-25.0, 45, 74, 9], [-6, 49, 60, 9], [24, 57, 49, 8]],
  ]
)
_UPPER = np.array([[-24.0, 14, 78, 17], [-26, 20, 170, 26]])


def _coarse_tube(at, points, radii) -> np.ndarray:
  """Distance to a tube, every third of its points."""
  tube = np.float32(1e3)
  for k in range(0, len(points) - 1, 3):
    m = min(k + 3, len(points) - 1)
    piece = shapes.capsule(at, points[k], points[m], radii[k], radii[m])
    tube = np.minimum(tube, piece)
  return tube


def _fillet(a, b, size_mm):
  """The corner between two shapes, filled, and of `b` what is near `a`."""
  h = np.clip(0.5 + (b - a) / (2 * size_mm), 0, 1)
  return np.maximum(b + h * (a - b) - size_mm * h * (1 - h), a - size_mm)


def draw_wall(canvas: shapes.Canvas, thorax: Thorax, texture: Any) -> None:
  """Paints skin, fat and muscle, and the lungs as air.

  Args:
    canvas: changed in place.
    thorax: the chest.
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
  muscle = chest_muscle(b)
  layer(muscle, 52.0, Tissue.MUSCLE)
  # Planes of fat between the muscles, and patches over the ribs.
  strands = texture(points.at, 13.0)
  planes = np.abs(inside - 10) - np.float32(2.6) * strands - np.float32(0.8)
  planes = np.maximum(planes, -(inside - 5))
  flesh = np.maximum(muscle + 3, 9 * (1.25 - strands))
  flesh = np.maximum(np.minimum(flesh, planes), -(inside - 5))
  layer(np.maximum(flesh, muscle + 1), patient["fat_hu"] + 6, Tissue.FAT, 0.9)
  air = np.float32(0.35) * (b[1] - 35) + 13 * texture(points.at, 25.0)
  air = air + 15 * texture(points.at, 9.0)
  layer(
    inside,
    patient["lung_hu"] + points.to_voxels(air + 0 * inside),
    Tissue.LUNG,
  )


def draw_mediastinum(
  canvas: shapes.Canvas, thorax: Thorax, heart: Heart, texture: Any
) -> None:
  """Paints fat and soft strands between the lungs, and the oesophagus.

  Args:
    canvas: changed in place.
    thorax: the chest.
    heart: where the mediastinum runs.
    texture: smooth noise of x, y, z in mm, about standard normal.
  """
  patient = thorax.patient
  low = thorax.to_patient([-110.0, -90, -130])
  high = thorax.to_patient([95.0, 130, 400])
  points = canvas.voxels.lattice(low, high, 4.0)
  if points is None:
    return
  b = thorax.from_patient(points.at)
  soft = mediastinum(points.at, b, heart)
  soft = np.maximum(soft, cavity(b) - 1.5)
  soft = np.maximum(soft, -diaphragm(b, patient))
  voxels = points.to_voxels(soft * thorax.scale)
  shapes.paint(canvas, points.box, voxels, patient["fat_hu"] + 8, Tissue.FAT)
  # Thymus remnant, nodes and strands: dense in slim patients.
  strands = texture(points.at, 9.0) + 0.8 * texture(points.at, 22.0)
  level = 2.2 - 3.6 * patient["mediastinal_soft"]
  thymus = shapes.ellipsoid(b, (MIDLINE + 2, -34, 62), (24, 17, 40))
  level = level - 0.9 * (thymus < 0)
  mixed = np.clip((strands - level) * 0.6 + 0.5, 0, 1)
  hu = points.to_voxels(mixed * (24 - patient["fat_hu"]) + patient["fat_hu"])
  shapes.paint(canvas, points.box, voxels, hu, None)
  label = canvas.tissues[points.box]
  np.copyto(
    label, np.uint8(Tissue.SOFT_TISSUE), where=(voxels < 0) & (hu > -40)
  )
  line = shapes.spline(ESOPHAGUS, 8.0)
  tube = thorax.to_patient(line[:, :3])
  radii = line[:, 3] * thorax.scale
  shapes.paint_tube(canvas, tube, radii, 48.0, Tissue.ESOPHAGUS)
  # A bubble of air in places.
  air = np.clip(1.6 * texture(tuple(tube.T), 20.0) - 1.6, -3, 2.5)
  shapes.paint_tube(canvas, tube, air, -400.0, None)
