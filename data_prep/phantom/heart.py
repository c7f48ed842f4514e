"""The heart: four chambers, their walls, valves and the fat around them.

All landmarks are in the frame of an average heart, in mm: the origin in its
middle, x to the patient's left, y to the back, z up, read off CT angiograms.
A patient's heart is that one, scaled, turned and moved.
"""

import dataclasses
from typing import Any

import numpy as np

from data_prep.phantom import shapes
from data_prep.tissues import Tissue

MITRAL = np.array([0.0, 17.0, 2.0])
_APEX_WAY = np.array([0.80, -0.52, -0.28])
_SEPTUM_WAY = np.array([-0.565, -0.82, -0.07])
AORTIC_VALVE = np.array([-3.0, 1.0, 10.0])
ROOT_WAY = np.array([-0.34, -0.10, 0.935])
PULMONARY_VALVE = np.array([10.0, -19.0, 33.0])

# Orthonormal frame of the left ventricle: rows are the ways from the mitral
# valve to the apex, to the septum, and up to the anterior wall.
_LONG = _APEX_WAY / np.linalg.norm(_APEX_WAY)
_SEPTAL = _SEPTUM_WAY - _LONG * (_SEPTUM_WAY @ _LONG)
_SEPTAL /= np.linalg.norm(_SEPTAL)
LV_FRAME = np.stack([_LONG, _SEPTAL, np.cross(_SEPTAL, _LONG)])


@dataclasses.dataclass(frozen=True, eq=False)
class Heart:
  """A patient's heart.

  Attributes:
    center: LPS mm of the origin of the heart's frame.
    scale: relative to the average heart.
    turn: [3, 3] rotation from the heart's frame to the patient's.
    size: chamber sizes; see `population.draw_patient`.
  """

  center: np.ndarray
  scale: float
  turn: np.ndarray
  size: dict[str, Any]

  def to_patient(self, points: np.ndarray, turned: Any = 1.0) -> np.ndarray:
    """Maps points [N, 3] of the heart's frame to LPS mm.

    Args:
      points: [N, 3].
      turned: 1 moves with the heart, 0 stays upright with the spine; a number
        or [N].
    """
    points = np.asarray(points, float)
    turned = np.broadcast_to(turned, points.shape[:-1])[..., None]
    return self.center + self.scale * (
      turned * (points @ self.turn.T) + (1 - turned) * points
    )

  def from_patient(self, at: shapes.Coordinates) -> shapes.Coordinates:
    """Maps LPS mm to the heart's frame."""
    offset = [x - np.float32(c) for x, c in zip(at, self.center, strict=True)]
    inverse = (self.turn.T / self.scale).astype(np.float32)
    return tuple(
      sum(inverse[k, j] * offset[j] for j in range(3)) for k in range(3)
    )


def make_heart(patient: dict[str, Any]) -> Heart:
  """Returns the heart that the parameters of `draw_patient` describe."""
  x, y, z = np.radians(patient["heart_turn_deg"])
  about_z = np.array(
    [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
  )
  about_y = np.array(
    [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
  )
  about_x = np.array(
    [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
  )
  return Heart(
    np.array(patient["heart_center_mm"]),
    patient["heart_scale"],
    about_z @ about_y @ about_x,
    patient,
  )


def lv_coordinates(q: shapes.Coordinates) -> shapes.Coordinates:
  """Returns mm toward apex, septum and anterior wall from the mitral valve."""
  offset = [x - np.float32(c) for x, c in zip(q, MITRAL, strict=True)]
  return tuple(
    sum(np.float32(row[j]) * offset[j] for j in range(3)) for row in LV_FRAME
  )


def lv_point(long_mm: Any, angle_deg: Any, radius_mm: Any) -> np.ndarray:
  """Returns points [..., 3] in the heart's frame around the LV's long axis.

  Args:
    long_mm: way from the mitral valve toward the apex.
    angle_deg: 0 anterior, 90 septal, 180 inferior, -90 lateral.
    radius_mm: distance from the axis.
  """
  angle = np.radians(np.asarray(angle_deg, float))
  local = np.stack(
    np.broadcast_arrays(
      np.asarray(long_mm, float),
      radius_mm * np.sin(angle),
      radius_mm * np.cos(angle),
    ),
    -1,
  )
  return MITRAL + local @ LV_FRAME


def lv_radius(size: dict[str, Any]) -> tuple[float, float]:
  """Returns the greatest inner and outer radius of the left ventricle, mm."""
  inner = 23.5 * size["lv_scale"]
  return inner, inner + size["wall_mm"]


def _bullet(lv: shapes.Coordinates, middle, base, tip, radius) -> np.ndarray:
  """Distance to two half ellipsoids that meet at `middle` on the long axis."""
  long = lv[0] - np.float32(middle)
  # Stretching the base's half keeps one ellipsoid's formula for both.
  long = np.where(long < 0, long * np.float32(tip / base), long)
  return shapes.ellipsoid((long, *lv[1:]), (0, 0, 0), (tip, radius, radius))


def lv_outside(q: shapes.Coordinates, size: dict[str, Any]) -> np.ndarray:
  """Distance to the epicardial surface of the left ventricle."""
  lv = lv_coordinates(q)
  body = _bullet(lv, 22, 46, 69, lv_radius(size)[1])
  return shapes.meet(body, -4 - lv[0], 6)


def lv_inside(q: shapes.Coordinates, size: dict[str, Any]) -> np.ndarray:
  """Distance to the blood of the left ventricle, papillary muscles left out."""
  lv = lv_coordinates(q)
  long, s, u = lv
  inner = lv_radius(size)[0]
  angle = np.arctan2(s, u)
  # Trabeculae: ridges along the wall, deeper toward the apex.
  ridge = np.sin(9 * angle + 0.12 * long) + np.sin(5 * angle - 0.2 * long)
  depth = np.clip(long / 50, 0, 1.4) * np.clip(np.hypot(s, u) / inner, 0, 1)
  body = _bullet(lv, 21, 31, 61, inner)
  return shapes.meet(body + depth * ridge, -4 - long, 2)


def papillary(q: shapes.Coordinates, size: dict[str, Any]) -> np.ndarray:
  """Distance to the two papillary muscles."""
  long, s, u = lv_coordinates(q)
  r = lv_radius(size)[0]
  muscles = []
  for side, up in ((-0.52, 0.48), (-0.05, -0.72)):
    muscles.append(
      shapes.capsule(
        (long, s, u),
        np.array([26.0, side * r * 0.8, up * r * 0.8]),
        np.array([54.0, side * r * 1.05, up * r * 1.05]),
        3.2,
        4.6,
      )
    )
  return np.minimum(*muscles)


def rv_inside(q: shapes.Coordinates, size: dict[str, Any]) -> np.ndarray:
  """Distance to the blood of the right ventricle and its outflow tract.

  The left ventricle, drawn over it, cuts the crescent out.
  """
  long, s, u = lv_coordinates(q)
  k = size["rv_scale"]
  body = shapes.ellipsoid((long, s, u), (27, 27, -3), (54 * k, 25 * k, 38 * k))
  inlet = (long - np.float32(5)) * np.float32(0.87) - (s - np.float32(37)) * (
    np.float32(0.49)
  )
  body = shapes.meet(body, -inlet, 8)
  outflow = shapes.capsule(
    q, np.array([3.0, -33.0, 8.0]), PULMONARY_VALVE, 15.5 * k, 12.5
  )
  return shapes.union(body, outflow, 9)


def ra_inside(q: shapes.Coordinates, size: dict[str, Any]) -> np.ndarray:
  """Distance to the blood of the right atrium and its appendage."""
  k = size["ra_scale"]
  body = shapes.ellipsoid(q, (-38, -9, -3), (25 * k, 27 * k, 32 * k))
  ear = shapes.capsule(
    q, np.array([-38.0, -14, 20]), np.array([-26.0, -30, 31]), 13 * k, 7
  )
  return shapes.union(body, ear, 9)


def la_inside(q: shapes.Coordinates, size: dict[str, Any]) -> np.ndarray:
  """Distance to the blood of the left atrium and its appendage."""
  k = size["la_scale"]
  body = shapes.ellipsoid(q, (-8, 36, 13), (33 * k, 20.5 * k, 25 * k))
  # The appendage rides on the left ventricle, and the circumflex artery runs
  # between them.
  up = np.array([0.0, 0.0, lv_radius(size)[1] - 33.0])
  bend = np.array([30.0, 10, 42]) + up
  ear = shapes.capsule(q, np.array([15.0, 30, 26]) + up / 2, bend, 9 * k, 6.5)
  tip = shapes.capsule(q, bend, np.array([29.0, -2, 42]) + up, 6, 4)
  return shapes.union(shapes.union(body, ear, 6), tip, 3)


@dataclasses.dataclass(frozen=True, eq=False)
class Chambers:
  """Distances, in mm of the heart's frame, to the blood of the chambers.

  Attributes:
    lv_outside: the left ventricle's epicardial surface.
    rv: right ventricle.
    ra: right atrium.
    la: left atrium.
  """

  lv_outside: np.ndarray
  rv: np.ndarray
  ra: np.ndarray
  la: np.ndarray


def chambers(q: shapes.Coordinates, size: dict[str, Any]) -> Chambers:
  """Returns the distances to all chambers at points of the heart's frame."""
  return Chambers(
    lv_outside(q, size),
    rv_inside(q, size),
    ra_inside(q, size),
    la_inside(q, size),
  )


def muscle(parts: Chambers) -> np.ndarray:
  """Distance to the outside of all chambers' walls; what coronaries lie on."""
  wall = shapes.union(parts.lv_outside, parts.rv - 3.2, 2)
  return shapes.union(wall, np.minimum(parts.ra, parts.la) - 2.0, 2)


def sac(
  q: shapes.Coordinates, parts: Chambers, size: dict[str, Any]
) -> np.ndarray:
  """Distance to the pericardium: all chambers and the fat in their grooves."""
  wall = shapes.union(parts.lv_outside, parts.rv - 3.2, 16)
  atria = shapes.union(parts.ra, parts.la, 10)
  whole = shapes.union(wall, atria - 2.0, 18)
  vessels = shapes.capsule(
    q, AORTIC_VALVE, AORTIC_VALVE + 52 * ROOT_WAY, 15, 15
  )
  trunk = shapes.capsule(
    q, PULMONARY_VALVE, np.array([8.0, -3.0, 52.0]), 13, 13
  )
  whole = shapes.union(whole, shapes.union(vessels, trunk, 10), 18)
  return whole - size["epicardial_fat_mm"]


def draw_heart(
  canvas: shapes.Canvas, heart: Heart, scanner: dict[str, Any], texture: Any
) -> None:
  """Paints fat, muscle and blood of the heart.

  Args:
    canvas: changed in place.
    heart: the heart.
    scanner: contrasts; see `population.draw_scanner`.
    texture: smooth noise of x, y, z in mm, about standard normal.
  """
  size, contrast = heart.size, scanner["contrast_hu"]
  reach = 112 * heart.scale * np.array([1, 0.85, 0.95])
  low, high = heart.center - reach, heart.center + reach
  points = canvas.voxels.lattice(low, high)
  if points is None:
    return
  q = heart.from_patient(points.at)
  right = contrast * scanner["right_heart"]
  mixing = points.to_voxels(texture(points.at, 9.0)) * scanner["mixing"]

  def layer(distance, hu, tissue, lattice=points):
    distance = lattice.to_voxels(distance) * heart.scale
    shapes.paint(canvas, points.box, distance, hu, tissue)

  parts = chambers(q, size)
  ra, la, rv = parts.ra, parts.la, parts.rv
  around = sac(q, parts, size)
  layer(around - 1.0, 20.0, Tissue.PERICARDIUM)
  layer(around, size["fat_hu"], Tissue.EPICARDIAL_FAT)
  walls = shapes.union(shapes.union(ra, la, 2) - 2.0, rv - 3.2, 2)
  layer(walls, size["myocardium_hu"] - 15, Tissue.MYOCARDIUM)
  in_ra = np.clip(right * (1.15 + 1.3 * mixing), 40, 1500)
  in_rv = np.clip(right * (1.0 + 0.7 * mixing), 40, 1200)
  layer(ra, in_ra, Tissue.RIGHT_ATRIUM)
  layer(shapes.meet(rv, ra * -1 - 1.2), in_rv, Tissue.RIGHT_VENTRICLE)
  layer(parts.lv_outside, size["myocardium_hu"], Tissue.MYOCARDIUM)
  layer(la, contrast * 1.02, Tissue.LEFT_ATRIUM)
  fine = canvas.voxels.lattice(low, high, 1.5)
  fine_q = heart.from_patient(fine.at)
  blood = shapes.meet(lv_inside(fine_q, size), -papillary(fine_q, size), 1)
  layer(blood, contrast, Tissue.LEFT_VENTRICLE, fine)
  _draw_valves(canvas, heart)


def _draw_valves(canvas: shapes.Canvas, heart: Heart) -> None:
  """Paints the outflow tract's blood-free leaflets of the mitral valve."""
  ring = lv_point(-2.0, np.array([50.0, 230.0]), 15.0)
  edge = lv_point(14.0, np.array([50.0, 230.0]), 6.0)
  for a, b in zip(ring, edge, strict=True):
    ends = heart.to_patient(np.stack([a, b]))
    shapes.paint_tube(
      canvas, ends, np.array([1.4, 1.0]), 120.0, Tissue.MYOCARDIUM
    )
