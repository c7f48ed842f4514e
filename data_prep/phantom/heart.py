"""The heart: four chambers, their walls, valves and the fat around them.

All landmarks are in the frame of an average heart, in mm: the origin in its
middle, x to the patient's left, y to the back, z up, read off CT angiograms.
A patient's heart is that one, scaled, turned and moved.
"""

import dataclasses
import itertools
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from data_prep.phantom import shapes
from data_prep.phantom.voxels import Lattice
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


def lv_inside(
  q: shapes.Coordinates, size: dict[str, Any], texture: Any = None
) -> np.ndarray:
  """Distance to the blood of the left ventricle, papillary muscles left out.

  Args:
    q: points of the heart's frame.
    size: of the chambers.
    texture: smooth noise that makes trabeculae; a smooth wall without it.
  """
  lv = lv_coordinates(q)
  long, s, u = lv
  inner = lv_radius(size)[0]
  body = shapes.meet(_bullet(lv, 21, 31, 61, inner), -4 - long, 2)
  if texture is None:
    return body
  out = np.hypot(s, u) + np.float32(0.5)
  # Noise by direction, not by place: the teeth of a comb, some mm wide, that
  # run along the wall from base to apex.
  across = np.float32(inner) / out
  at = (s * across, u * across, np.float32(0.3) * long)
  tooth = np.clip(0.1 + 0.9 * texture(at, 2.7), 0, 1)
  # The septum is smooth near the base; the apex is a sponge.
  smooth = np.clip(s / out, 0, 1) * np.clip((44 - long) / 20, 0, 1)
  depth = 6.5 * np.clip((long - 6) / 30, 0, 1) * (1 - 0.85 * smooth)
  return body + depth * tooth * np.clip((body + 11) / 4, 0, 1)


def papillary(
  q: shapes.Coordinates, size: dict[str, Any], texture: Any = None
) -> np.ndarray:
  """Distance to the two papillary muscles, each with two heads.

  Args:
    q: points of the heart's frame.
    size: of the chambers.
    texture: smooth noise that makes them uneven.
  """
  long, s, u = lv = lv_coordinates(q)
  r = lv_radius(size)[0]
  muscles = np.float32(1e3)
  for side, up in ((-0.52, 0.48), (-0.05, -0.72)):
    root = np.array([52.0, side * r * 1.05, up * r * 1.05])
    for lean, tip in ((0.16, 24.0), (-0.13, 28.0)):
      head = np.array([tip, (side - lean * up) * r, (up + lean * side) * r])
      head[1:] *= 0.78
      muscles = np.minimum(muscles, shapes.capsule(lv, head, root, 2.6, 4.4))
  if texture is not None:
    muscles = muscles + 0.9 * texture((s, u, 0.4 * long), 4.0)
  return muscles


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
  body = shapes.ellipsoid(q, (-36, -11, -3), (25 * k, 25 * k, 32 * k))
  # Behind, where the venae cavae enter, it lies against the left atrium.
  back = shapes.capsule(
    q, np.array([-41.0, 0, 18]), np.array([-38.0, 3, -20]), 15 * k, 16 * k
  )
  body = shapes.union(body, back, 12)
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
  """Distance to the pericardium: all chambers and the fat in their grooves.

  Fat fills the grooves between the chambers and around the roots of the great
  vessels and lies on the front of the right ventricle; elsewhere the
  pericardium touches the muscle.
  """
  fat = size["epicardial_fat_mm"]
  groove = 7.0 + 1.4 * fat
  wall = shapes.union(parts.lv_outside, parts.rv - 3.2, groove)
  atria = shapes.union(parts.ra, parts.la, 8) - 2.0
  whole = shapes.union(wall, atria, groove)
  vessels = shapes.capsule(
    q, AORTIC_VALVE, AORTIC_VALVE + 46 * ROOT_WAY, 14, 14
  )
  trunk = shapes.capsule(
    q, PULMONARY_VALVE, np.array([8.0, -3.0, 52.0]), 12, 12
  )
  whole = shapes.union(whole, shapes.union(vessels, trunk, 8), groove)
  x, y, z = q
  # Fat on the right ventricle lies in front and toward its lower edge.
  front = np.clip((-y - 8) / 25, 0, 1) * np.clip((x + 40) / 25, 0, 1)
  front = front * np.clip((38 - z) / 20, 0, 1)
  return whole - fat * (0.03 + 0.4 * front)


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
  """The heart's chambers on a lattice of the canvas.

  Attributes:
    points: the lattice.
    q: its points in the heart's frame.
    parts: distances to the chambers, in mm of the heart's frame.
  """

  points: Lattice
  q: shapes.Coordinates
  parts: Chambers


def scene(canvas: shapes.Canvas, heart: Heart) -> Scene | None:
  """Returns the chambers where they meet the canvas, None elsewhere."""
  reach = 112 * heart.scale * np.array([1, 0.85, 0.95])
  points = canvas.voxels.lattice(heart.center - reach, heart.center + reach)
  if points is None:
    return None
  q = heart.from_patient(points.at)
  return Scene(points, q, chambers(q, heart.size))


def paint_sheet(
  canvas: shapes.Canvas,
  box: Any,
  distance: np.ndarray,
  half_mm: float,
  hu: float,
  tissue: Tissue | None,
) -> None:
  """Paints a sheet thinner than a voxel; its integral across is right.

  Args:
    canvas: changed in place.
    box: slices along D, H, W.
    distance: signed distance in mm to the sheet's edge, negative inside.
    half_mm: half of the sheet's thickness.
    hu: of the sheet.
    tissue: what it is of.
  """
  w = canvas.edge_mm
  # A ramp of width w over a slab of 2 * half has this integral.
  thin = 8 * half_mm * w / (w + 2 * half_mm) ** 2 if half_mm < w / 2 else 1.0
  shapes.paint(canvas, box, distance, hu, tissue, thin)


def draw_fat(
  canvas: shapes.Canvas,
  heart: Heart,
  where: Scene,
  coronaries: list[tuple[np.ndarray, np.ndarray]],
  texture: Any,
) -> None:
  """Paints the fat under the pericardium, and what CT shows of the latter.

  Args:
    canvas: changed in place.
    heart: the heart.
    where: its chambers.
    coronaries: (points [N, 3] LPS mm, radii [N]) of vessels to embed.
    texture: smooth noise of x, y, z in mm, about standard normal.
  """
  size, points = heart.size, where.points
  around = sac(where.q, where.parts, size)
  around = around * np.float32(heart.scale)
  around = _embed(around, points.at, coronaries, size)
  around = _taut(around, points.at, 8.0 + 1.2 * size["epicardial_fat_mm"])
  lumps = texture(points.at, 11.0)
  around = points.to_voxels(around)
  # Seen between fat and fat, or not at all: a line of varying strength.
  line = np.abs(around + 0.4) + np.maximum(points.to_voxels(lumps), -0.3)
  shapes.paint(
    canvas, points.box, around, size["fat_hu"], Tissue.EPICARDIAL_FAT
  )
  half = 0.45
  paint_sheet(canvas, points.box, line - half, half, 0.0, Tissue.PERICARDIUM)


def _taut(around, at, ball_mm: float) -> np.ndarray:
  """Fills what a ball cannot reach from outside, as a taut bag would.

  Args:
    around: distance in mm to what is in the bag.
    at: x, y, z in mm of a lattice.
    ball_mm: radius of the ball.
  """
  corner = np.stack([c[:2, :2, :2] for c in np.broadcast_arrays(*at)], -1)
  if min(corner.shape[:3]) < 2:
    return around  # A slice or a voxel tells nothing of a ball.
  steps = [
    float(np.linalg.norm(corner[i] - corner[0, 0, 0]))
    for i in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
  ]
  depth = ndimage.distance_transform_edt(around < ball_mm, sampling=steps)
  depth = ndimage.gaussian_filter(depth.astype(np.float32), 0.7)
  # The transform sees the last point inside, half a step too deep, and is
  # rough by as much: a film of fat is not filled.
  return np.minimum(around, ball_mm - depth + 0.5 * max(steps) + 0.4)


def _embed(around, at, coronaries, size) -> np.ndarray:
  """Adds fat around the coronary arteries to the distance to the sac."""
  if not coronaries:
    return around
  line = np.concatenate([points[::6] for points, _ in coronaries])
  radius = np.concatenate([radii[::6] for _, radii in coronaries])
  # The main stems lie deep in fat, the ends of the branches just under it.
  stem = np.clip((radius - 0.7) / 1.0, 0, 1)
  wide = radius + 2.5 + stem * 0.55 * size["epicardial_fat_mm"]
  reach = float(wide.max()) + 6
  near = (around > -6) & (around < reach)
  place = np.stack([c[near] for c in np.broadcast_arrays(*at)], -1)
  away, which = cKDTree(line).query(place, distance_upper_bound=reach)
  found = np.isfinite(away)
  tube = np.full(len(place), 1e3, np.float32)
  tube[found] = away[found] - wide[which[found]]
  around = around.copy()
  around[near] = shapes.union(around[near], tube, 5)
  return around


def draw_heart(
  canvas: shapes.Canvas,
  heart: Heart,
  where: Scene,
  scanner: dict[str, Any],
  texture: Any,
) -> None:
  """Paints muscle and blood of the heart.

  Args:
    canvas: changed in place.
    heart: the heart.
    where: its chambers.
    scanner: contrasts; see `population.draw_scanner`.
    texture: smooth noise of x, y, z in mm, about standard normal.
  """
  size, contrast = heart.size, scanner["contrast_hu"]
  points, parts = where.points, where.parts

  def layer(distance, hu, tissue, lattice=points):
    distance = lattice.to_voxels(distance) * heart.scale
    shapes.paint(canvas, lattice.box, distance, hu, tissue)

  wall_hu = size["myocardium_hu"] - 15
  atria = np.minimum(parts.ra, parts.la) - 1.2
  walls = shapes.union(atria, parts.rv - 2.8, 2)
  layer(walls, wall_hu, Tissue.MYOCARDIUM)
  _draw_right(canvas, heart, scanner, texture)
  # The septum between the atria; the rest of this wall is there.
  layer(parts.la - 1.2, wall_hu, Tissue.MYOCARDIUM)
  layer(parts.lv_outside, size["myocardium_hu"], Tissue.MYOCARDIUM)
  layer(parts.la, contrast * 1.02, Tissue.LEFT_ATRIUM)
  corners = np.array(
    [[a, b, c] for a in (-8, 70) for b in (-1, 1) for c in (-1, 1)], float
  )
  corners[:, 1:] *= lv_radius(size)[0] + 3
  fine = _lattice(canvas, heart, MITRAL + corners @ LV_FRAME, 1.5)
  if fine is not None:
    q = heart.from_patient(fine.at)
    blood = lv_inside(q, size, texture)
    blood = shapes.meet(blood, -papillary(q, size, texture), 1)
    layer(blood, contrast, Tissue.LEFT_VENTRICLE, fine)
  _draw_mitral(canvas, heart)


def _lattice(canvas, heart, corners, step_mm) -> Lattice | None:
  """Returns a lattice over points [N, 3] of the heart's frame."""
  corners = heart.to_patient(np.asarray(corners, float))
  margin = canvas.edge_mm
  return canvas.voxels.lattice(
    corners.min(0) - margin, corners.max(0) + margin, step_mm
  )


def _draw_right(canvas, heart, scanner, texture) -> None:
  """Paints the blood of the right heart, where dense and thin blood mix."""
  size = heart.size
  low, high = np.array([-75.0, -62, -52]), np.array([60.0, 30, 48])
  corners = [
    [a, b, c] for a, b, c in itertools.product(*zip(low, high, strict=True))
  ]
  fine = _lattice(canvas, heart, corners, 2.5)
  if fine is None:
    return
  q = heart.from_patient(fine.at)
  x, y, z = q
  long, s, u = lv_coordinates(q)
  mean = scanner["contrast_hu"] * scanner["right_heart"]
  # Noise bent by noise: eddies instead of clouds.
  bend = 7 * texture(q, 13.0)
  bent = (x + bend, y - bend, z + 0.6 * bend)
  eddy = np.tanh(1.6 * texture(bent, 5.0))
  streams = min(0.1 + 2.4 * scanner["mixing"], 1.0)
  from_below = _jet(q, (-38, 4, -30), (-38, 0, -12), 15)
  from_above = _jet(q, (-42, 1, 30), (-39, -7, 2), 9)
  atrium = mean * (1.05 + streams * 0.42 * eddy)
  share = np.clip(from_below * (0.6 + 0.6 * eddy) * streams, 0, 1)
  atrium += share * (cava_hu(scanner, lower=True) - atrium)
  share = np.clip(from_above * (0.9 + 0.7 * eddy), 0, 1)
  atrium += share * (cava_hu(scanner) - atrium)
  # Past the tricuspid valve the streams mix.
  behind = np.clip((26 - long) / 34, 0, 1)
  ventricle = mean * (1 + streams * (0.08 + 0.3 * behind) * eddy)
  rv, ra = rv_inside(q, size), ra_inside(q, size)
  # Not behind the mitral valve, between the left heart and the right atrium.
  rv = shapes.meet(rv, -3 - long, 4)
  # The open tricuspid valve, across the plane between the two.
  side = (long - 4) * np.float32(0.87) - (s - 35) * np.float32(0.49)
  hole = 14.5 * size["rv_scale"]
  middle = np.array([6.5, 40, -3])
  way = np.array([0.87, -0.49, 0.0])
  passage = shapes.capsule(
    (long, s, u), middle - 9 * way, middle + 9 * way, hole, hole
  )
  # Trabeculae toward the apex, pectinate muscles in the appendage.
  rough = np.clip(1.3 * texture((0.5 * long, s, u), 3.6) - 0.25, 0, 1)
  rough = rough * np.clip((long + 4) / 22, 0, 1) * np.clip((rv + 11) / 4, 0, 1)
  rough = rough * (1 - np.clip((z - 12) / 12, 0, 1))
  comb = np.clip(0.2 + 0.8 * texture(q, 3.4), 0, 1)
  comb = comb * np.clip((z - 8) / 10, 0, 1) * np.clip((ra + 8) / 4, 0, 1)
  rv = shapes.union(rv + 4.5 * rough, np.maximum(passage, -side), 3)
  ra = shapes.union(ra + 3.0 * comb, np.maximum(passage, side), 3)
  for distance, hu, tissue in (
    (rv, ventricle, Tissue.RIGHT_VENTRICLE),
    (ra, atrium, Tissue.RIGHT_ATRIUM),
  ):
    distance = fine.to_voxels(distance) * heart.scale
    hu = np.clip(fine.to_voxels(hu), 40, 1500)
    shapes.paint(canvas, fine.box, distance, hu, tissue)


def _jet(q, a, b, wide_mm: float) -> np.ndarray:
  """Returns 1 on the line from a to b, 0 far from it, fading toward b."""
  a, b = np.array(a, float), np.array(b, float)
  away = np.maximum(shapes.capsule(q, a, b, 0, 0), 0)
  way = (b - a) / np.linalg.norm(b - a)
  along = sum(
    (x - np.float32(c)) * np.float32(w)
    for x, c, w in zip(q, a, way, strict=True)
  )
  fade = np.clip(1.3 - along / np.linalg.norm(b - a), 0, 1)
  return np.exp(-0.5 * (away / np.float32(wide_mm)) ** 2) * fade


def cava_hu(scanner: dict[str, Any], lower: bool = False) -> float:
  """Returns the HU of the superior or of the inferior vena cava.

  The upper one brings the injected contrast, the lower one little so early.
  """
  if lower:
    return 60 + 0.15 * scanner["contrast_hu"] * scanner["right_heart"]
  return float(np.clip(scanner["contrast_hu"] * scanner["cava"], 120, 1500))


def _draw_mitral(canvas: shapes.Canvas, heart: Heart) -> None:
  """Paints the mitral valve, half open: a funnel of two thin leaflets."""
  corners = [[a, b, c] for a in (-5, 24) for b in (-19, 19) for c in (-19, 19)]
  found = _lattice(canvas, heart, MITRAL + np.array(corners) @ LV_FRAME, 1.0)
  if found is None:
    return
  long, s, u = lv_coordinates(heart.from_patient(found.at))
  rho = np.hypot(s, u)
  # The anterior leaflet, toward the aorta (up and to the septum), is longer.
  toward = (0.64 * s + 0.77 * u) / (rho + 1)
  length = 13.0 + 7.0 * toward - 5.0 * np.abs(0.77 * s - 0.64 * u) / (rho + 1)
  half = 0.5
  cone = np.abs(rho - (16.5 - 0.5 * long)) * np.float32(0.89) - half
  sheet = shapes.meet(cone, np.maximum(long - length, -2 - long), 0)
  distance = found.to_voxels(sheet) * heart.scale
  paint_sheet(canvas, found.box, distance, half, 110.0, Tissue.MYOCARDIUM)
