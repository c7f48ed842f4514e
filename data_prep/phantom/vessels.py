"""The great vessels: aorta, pulmonary arteries and veins, venae cavae."""

import dataclasses
import itertools
from typing import Any

import numpy as np

from data_prep.phantom import shapes
from data_prep.phantom.heart import (
  AORTIC_VALVE,
  ROOT_WAY,
  Heart,
  cava_hu,
  paint_sheet,
)
from data_prep.tissues import Tissue

# x, y, z, radius relative to the ascending aorta and to the descending one,
# of which the latter has the share in the sixth column, share of the heart's
# turn.
_AORTA = np.array(
  [
    [-12.0, -1.6, 34.0, 0.97, 0.0, 0.0, 1.0],
    [-17.0, -2.0, 50.0, 1.02, 0.0, 0.0, 0.9],
    [-19.0, 4.0, 70.0, 1.0, 0.0, 0.0, 0.5],
    [-14.0, 18.0, 90.0, 0.95, 0.0, 0.0, 0.2],
    [-4.0, 38.0, 100.0, 0.88, 1.2, 0.35, 0.0],
    [6.0, 60.0, 94.0, 0.82, 1.12, 0.75, 0.0],
    [10.0, 74.0, 76.0, 0.0, 1.06, 1.0, 0.0],
    [10.0, 78.0, 50.0, 0.0, 1.03, 1.0, 0.0],
    [9.0, 77.0, 15.0, 0.0, 1.0, 1.0, 0.0],
    [5.0, 73.0, -20.0, 0.0, 0.98, 1.0, 0.0],
    [-4.0, 68.0, -60.0, 0.0, 0.95, 1.0, 0.0],
    [-12.0, 66.0, -110.0, 0.0, 0.9, 1.0, 0.0],
  ]
)
# Rows of _AORTA that a tortuous aorta bends, and how far, in mm, to the left
# and to the back.
_BENDS = np.zeros((len(_AORTA), 2))
_BENDS[7:11] = [[3.0, 1.0], [5.0, 1.5], [6.0, 2.0], [6.0, 2.0]]
# x, y, z, radius in mm, share of the heart's turn.
_PULMONARY = {
  "trunk": [
    (10, -19, 33, 12.8, 1),
    (10.5, -12, 44.5, 12.8, 0.9),
    (8, 0, 56, 12.2, 0.6),
    (4, 13, 62, 12, 0.3),
  ],
  "right": [
    (4, 13, 62, 11, 0.3),
    (-10, 24, 62, 10.5, 0),
    (-34, 28, 60, 10, 0),
    (-56, 32, 52, 7.5, 0),
    (-66, 38, 34, 6, 0),
  ],
  "left": [
    (4, 13, 62, 11, 0.3),
    (14, 28, 67, 11, 0),
    (24, 46, 66, 10, 0),
    (36, 58, 54, 7.5, 0),
    (42, 64, 34, 6, 0),
  ],
}
# The first two rows move with the wall of the left atrium: the mouths, wide.
_VEINS = [
  [
    (-22, 35, 24, 10, 1),
    (-36, 33, 30, 8.6, 1),
    (-52, 22, 39, 6.4, 0.4),
    (-64, 18, 47, 5.2, 0),
    (-72, 20, 54, 4.4, 0),
  ],
  [
    (-22, 42, 11, 10, 1),
    (-36, 46, 9, 8.2, 1),
    (-56, 54, 6, 6.2, 0.4),
    (-80, 64, -6, 4.4, 0),
  ],
  [
    (7, 41, 23, 9.5, 1),
    (19, 41, 31, 8, 1),
    (38, 34, 44, 6.2, 0.4),
    (58, 22, 60, 4.4, 0),
  ],
  [
    (7, 43, 15, 9, 1),
    (20, 49, 16, 7.8, 1),
    (42, 60, 11, 6, 0.4),
    (64, 72, -8, 4.4, 0),
  ],
]
_SVC = [
  (-42, 0, 24, 9.3, 1),
  (-44, 3, 44, 9.3, 0.4),
  (-43, 4, 75, 9, 0.1),
  (-42, 0, 105, 8.5, 0),
  (-41, -3, 116, 8.2, 0),
]
_BRACHIOCEPHALIC_VEINS = [
  [(-41, -3, 116, 7.5, 0), (-46, -4, 140, 7, 0), (-58, 2, 165, 6.5, 0)],
  [
    (-41, -3, 114, 7.5, 0),
    (-22, -15, 123, 7, 0),
    (6, -16, 136, 6.8, 0),
    (36, -4, 156, 6.5, 0),
  ],
]
# Brachiocephalic, left carotid and left subclavian artery: x, y, z, radius,
# share of the heart's turn; the first point lies inside the arch.
_ARCH_BRANCHES = [
  [(-14, 16, 88, 7, 0.2), (-19, 11, 108, 6.3, 0), (-34, 4, 138, 6, 0)],
  [(-34, 4, 138, 4.6, 0), (-42, 4, 150, 4.2, 0), (-64, 8, 166, 4.2, 0)],
  [(-34, 4, 138, 3.8, 0), (-36, 2, 156, 3.4, 0), (-36, 4, 190, 3.2, 0)],
  [
    (-6, 30, 96, 4.2, 0),
    (-7, 23, 116, 3.6, 0),
    (-4, 14, 150, 3.4, 0),
    (-2, 10, 190, 3.2, 0),
  ],
  [
    (2, 48, 96, 5.4, 0),
    (5, 42, 116, 4.8, 0),
    (10, 32, 148, 4.5, 0),
    (28, 22, 168, 4.2, 0),
  ],
]
_AZYGOS = [
  (-42, 8, 74, 4.2, 0),
  (-41, 26, 80, 4, 0),
  (-37, 52, 79, 3.8, 0),
  (-27, 72, 68, 3.6, 0),
  (-19, 82, 50, 3.4, 0),
  (-18, 83, 0, 3.1, 0),
  (-18, 81, -60, 2.8, 0),
  (-20, 80, -110, 2.6, 0),
]
_IVC = [
  (-38, 4, -20, 12, 1),
  (-38, 12, -38, 12.5, 0.6),
  (-38, 18, -70, 12, 0),
  (-36, 26, -120, 11.5, 0),
]
_CORONARY_SINUS = [
  (24, 34, -4, 3.0, 1),
  (10, 36, -17, 4.0, 1),
  (-8, 28, -24, 4.6, 1),
  (-24, 12, -22, 5.2, 1),
]


def _tube(heart: Heart, rows: Any) -> tuple[np.ndarray, np.ndarray]:
  rows = np.asarray(rows, float)
  points = heart.to_patient(rows[:, :3], rows[:, 4])
  line = shapes.spline(np.column_stack([points, rows[:, 3]]), 5.0)
  return line[:, :3], line[:, 3] * heart.scale


def sinuses(heart: Heart) -> tuple[np.ndarray, np.ndarray]:
  """Returns the three aortic sinuses: left, right, non-coronary.

  Returns:
    (centers [3, 3] in the heart's frame, radius in mm of that frame).
  """
  radius = heart.size["aorta_radius_mm"] * 0.66
  # Where each sinus faces, across the root's axis.
  facing = np.array([[0.92, 0.34, 0.2], [-0.2, -0.97, 0.1], [-0.66, 0.72, 0]])
  facing -= np.outer(facing @ ROOT_WAY, ROOT_WAY)
  facing /= np.linalg.norm(facing, axis=1, keepdims=True)
  middle = AORTIC_VALVE + 10.0 * ROOT_WAY
  return middle + facing * radius * 0.72, radius


def aorta_line(heart: Heart) -> tuple[np.ndarray, np.ndarray]:
  """Returns the aorta above the sinuses: points [N, 3] LPS mm, radii [N]."""
  size, rows = heart.size, _AORTA.copy()
  ascending, descending = (
    size[name] / heart.scale
    for name in ("aorta_radius_mm", "descending_radius_mm")
  )
  share = rows[:, 5]
  radius = (1 - share) * rows[:, 3] * ascending
  radius += share * rows[:, 4] * descending
  rows[:, :2] += _BENDS * np.array(size["aorta_bends"])[:, None]
  # A wide one lies farther to the left of the spine.
  rows[:, 0] += 0.8 * share * (descending - 11.5)
  disease = size["aorta_disease"]
  way = shapes.arc_length(rows)
  way /= way[-1]
  bump = np.exp(
    -(((way - disease["aneurysm_at"]) / disease["aneurysm_length"]) ** 2)
  )
  bump *= disease["aneurysm_mm"] / heart.scale
  # It grows toward the lung: the ascending one right, the descending one left.
  rows[:, 0] += np.where(share > 0.5, 0.8, -0.5) * bump
  return _tube(heart, np.column_stack([rows[:, :3], radius + bump, rows[:, 6]]))


def aorta_distance(
  voxels: shapes.Voxels, heart: Heart, margin_mm: float
) -> np.ndarray:
  """Distance to the aorta's lumen from the valve on, [D, H, W]."""
  points, radii = aorta_line(heart)
  distance = shapes.tube_distance(voxels, [(points, radii)], margin_mm)
  centers, radius = sinuses(heart)
  centers = heart.to_patient(centers)
  root = heart.to_patient(
    np.stack([AORTIC_VALVE + t * ROOT_WAY for t in (0.0, 12.0, 27.0)])
  )
  wide = heart.size["aorta_radius_mm"]
  reach = radius * heart.scale + margin_mm + 14
  found = voxels.box(centers.min(0) - reach, centers.max(0) + reach)
  if found is not None:
    box, at = found
    bulb = shapes.capsule(at, root[0], root[1], 0.72 * wide, 0.84 * wide)
    neck = shapes.capsule(at, root[1], root[2], 0.84 * wide, 0.93 * wide)
    bulb = np.minimum(bulb, neck)
    for center in centers:
      pouch = shapes.ellipsoid(
        at, center, np.array([1, 1, 1.1]) * radius * heart.scale
      )
      bulb = shapes.union(bulb, pouch, 2)
    # It ends flat, at the valve: below it is the outflow tract.
    way = root[1] - root[0]
    way /= np.linalg.norm(way)
    below = sum(
      np.float32(w) * (np.float32(c) - x)
      for w, c, x in zip(way, root[0], at, strict=True)
    )
    bulb = np.maximum(bulb, below)
    np.minimum(distance[box], bulb, out=distance[box])
  return distance


def coronary_sinus(heart: Heart) -> tuple[np.ndarray, np.ndarray]:
  """Returns the coronary sinus: points [N, 3] LPS mm, radii [N]."""
  return _tube(heart, _CORONARY_SINUS)


def outlines(heart: Heart) -> list[tuple[np.ndarray, np.ndarray]]:
  """Returns all great vessels as (points, radii), for the fat around them."""
  rows = [*_PULMONARY.values(), *_VEINS, _SVC, _IVC, _AZYGOS]
  rows += [*_BRACHIOCEPHALIC_VEINS, *_ARCH_BRANCHES]
  return [aorta_line(heart), *(_tube(heart, row) for row in rows)]


def draw_beneath(
  canvas: shapes.Canvas, heart: Heart, scanner: dict[str, Any]
) -> None:
  """Paints what lies under the heart's muscle and blood.

  The wall of the pulmonary trunk, so that the outflow tract opens into it,
  the inferior vena cava and the coronary sinus.
  """
  points, radii = _tube(heart, _PULMONARY["trunk"])
  shapes.paint_tube(canvas, points, radii + 1.0, 40.0, Tissue.SOFT_TISSUE)
  shapes.paint_tube(
    canvas,
    *_tube(heart, _IVC),
    cava_hu(scanner, lower=True),
    Tissue.INFERIOR_VENA_CAVA,
  )
  shapes.paint_tube(
    canvas,
    *coronary_sinus(heart),
    0.55 * scanner["contrast_hu"],
    Tissue.CORONARY_SINUS,
  )


def draw_vessels(
  canvas: shapes.Canvas, heart: Heart, scanner: dict[str, Any]
) -> np.ndarray:
  """Paints the great vessels: veins, pulmonary arteries, aorta with its wall.

  Returns:
    Signed distance in mm to the aorta's blood, [D, H, W]; thrombus and a false
    lumen of less than 200 HU left out.
  """
  contrast = scanner["contrast_hu"]
  right = contrast * np.clip(scanner["right_heart"], 0.3, 1.8)
  cava = cava_hu(scanner)
  for row in _VEINS:
    points, radii = _tube(heart, _from_atrium(row, heart.size))
    _draw_vein(canvas, points, radii, contrast * 1.02)
  for row in _PULMONARY.values():
    shapes.paint_tube(
      canvas, *_tube(heart, row), right, Tissue.PULMONARY_ARTERY
    )
  # The vein of the arm that was injected is dense, the other one pale.
  pale = 0.15 * contrast + 40
  arms = (pale, cava) if scanner["left_arm"] else (cava, pale)
  for row, hu in zip(_BRACHIOCEPHALIC_VEINS, arms, strict=True):
    shapes.paint_tube(canvas, *_tube(heart, row), hu, Tissue.SUPERIOR_VENA_CAVA)
  shapes.paint_tube(
    canvas, *_tube(heart, _SVC), cava, Tissue.SUPERIOR_VENA_CAVA
  )
  shapes.paint_tube(
    canvas, *_tube(heart, _AZYGOS), 70.0 + 0.1 * contrast, Tissue.OTHER_VESSELS
  )
  return _draw_aorta(canvas, heart, contrast)


def _draw_vein(canvas, points, radii, hu) -> None:
  """Paints a vein through the wall of the left atrium, whose label stays."""
  reach = float(radii.max()) + canvas.edge_mm
  box = canvas.voxels.region(points.min(0) - reach, points.max(0) + reach)
  if box is None:
    return
  distance = shapes.tube_distance(
    canvas.voxels.part(box), [(points, radii)], canvas.edge_mm
  )
  shapes.paint(canvas, box, distance, hu, None)
  tissues = canvas.tissues[box]
  outside = (distance < 0) & (tissues != Tissue.LEFT_ATRIUM)
  tissues[outside] = Tissue.PULMONARY_VEINS


def _from_atrium(row: list, size: dict[str, Any]) -> np.ndarray:
  """Moves a vein's mouth with the wall of a larger or smaller atrium."""
  row, middle = np.array(row, float), np.array([-8.0, 36, 13])
  row[:2, :3] = middle + (row[:2, :3] - middle) * size["la_scale"]
  return row


def _draw_aorta(canvas, heart, contrast) -> np.ndarray:
  margin = canvas.edge_mm + 3
  distance = aorta_distance(canvas.voxels, heart, margin)
  box = canvas.voxels.region(*_bounds(heart)) or canvas.voxels.everywhere
  shapes.paint(canvas, box, distance[box] - 1.5, 45.0, Tissue.AORTIC_WALL)
  for row in _ARCH_BRANCHES:
    points, radii = _tube(heart, row)
    shapes.paint_tube(canvas, points, radii, contrast, Tissue.ARCH_BRANCHES)
  outflow = heart.to_patient(
    np.stack([np.array([9.0, 3.0, -3.0]), AORTIC_VALVE])
  )
  # As wide as the root with its wall, of which no ring stays in the way.
  inner = 0.72 * heart.size["aorta_radius_mm"] + 1.8
  shapes.paint_tube(
    canvas,
    outflow,
    np.array([inner - 2, inner]),
    contrast,
    Tissue.LEFT_VENTRICLE,
  )
  shapes.paint(canvas, box, distance[box], contrast, Tissue.AORTA)
  _draw_leaflets(canvas, heart, distance)
  return _draw_disease(canvas, heart, distance, box, contrast)


def _draw_leaflets(canvas, heart, aorta) -> None:
  """Paints the closed aortic valve: three thin cusps that meet in a Y.

  Args:
    canvas: changed in place.
    heart: the heart.
    aorta: [D, H, W] distance to the lumen, outside which there are none.
  """
  centers, radius = sinuses(heart)
  middle = AORTIC_VALVE + 10.0 * ROOT_WAY
  reach = (radius + 12) * heart.scale
  center = heart.to_patient(middle[None])[0]
  found = canvas.voxels.lattice(center - reach, center + reach, 1.0)
  if found is None:
    return
  q = heart.from_patient(found.at)
  offset = [c - np.float32(m) for c, m in zip(q, middle, strict=True)]
  axis = ROOT_WAY / np.linalg.norm(ROOT_WAY)
  dot = lambda way: sum(  # noqa: E731
    np.float32(w) * o for w, o in zip(way, offset, strict=True)
  )
  up = dot(axis)
  facing = centers - middle
  facing /= np.linalg.norm(facing, axis=1, keepdims=True)
  out = np.stack([dot(way) + 0 * up for way in facing])
  # How far from the planes between a cusp and its neighbours.
  first, second, _ = np.sort(out, 0)[::-1]
  inward = (first - second) * np.float32(1 / 1.73)
  wide = np.float32(0.5 * heart.size["aorta_radius_mm"] / heart.scale)
  share = np.clip(inward / wide, 0.01, 1)
  # A quarter of an ellipse: upright where cusps meet, level in their middle.
  fall = np.sqrt(1 - (1 - share) ** 2)
  height = 2.5 - 9 * fall
  slope = 9 * (1 - share) / (fall * wide)
  half = 0.45
  sheet = np.abs(up - height) / np.sqrt(1 + slope**2) - half
  voxels = found.to_voxels(np.maximum(sheet, np.abs(up) - 12)) * heart.scale
  voxels = np.maximum(voxels, aorta[found.box])
  paint_sheet(canvas, found.box, voxels, half, 90.0, None)


def _draw_disease(canvas, heart, distance, box, contrast) -> np.ndarray:
  """Paints thrombus, flap, false lumen and stent graft, where there are any.

  Returns:
    The distance to what counts as the aorta's lumen.
  """
  disease = heart.size["aorta_disease"]
  points, radii = aorta_line(heart)
  share = np.linspace(0, 1, len(points))
  here = np.clip((share - disease["from"]) / 0.06, 0, 1)
  angle = disease["angle"] + 2.0 * share
  if disease["dissection"]:
    inner = _Inner(here, angle, width=0.8, aside=0.55)
  else:
    here = here * np.clip((disease["from"] + 0.45 - share) / 0.06, 0, 1)
    inner = _Inner(here, angle, width=0.66, aside=0.34)
  if disease["dissection"] or disease["thrombus"]:
    outer, true = _two_lumens(canvas, points, radii, inner)
    other = np.maximum(np.maximum(distance, outer), -true)
    hu = disease["false_lumen"] * contrast if disease["dissection"] else 40.0
    open_too = hu >= 200
    tissue = Tissue.AORTA if open_too else Tissue.AORTIC_WALL
    shapes.paint(canvas, box, other[box], hu, tissue)
    if disease["dissection"]:
      half = 0.7
      flap = np.maximum(np.abs(true) - half, np.maximum(distance, outer))
      paint_sheet(canvas, box, flap[box], half, 60.0, None)
    if not open_too:
      distance = np.maximum(distance, -np.maximum(outer, -true))
  if disease["graft"]:
    _draw_graft(canvas, points, radii, disease)
  return distance


@dataclasses.dataclass(frozen=True, eq=False)
class _Inner:
  """A lumen in the aorta that is not all of it.

  Attributes:
    here: [N] 1 where there is such a lumen, 0 where the aorta is one.
    angle: [N] around the axis, in radians.
    width: its radius relative to the aorta's.
    aside: how far off the axis it lies, relative to the aorta's radius.
  """

  here: np.ndarray
  angle: np.ndarray
  width: float
  aside: float


def _two_lumens(
  canvas, points, radii, inner: _Inner
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the distances to the aorta along `inner`, and to `inner`."""
  way = np.gradient(points, axis=0)
  way /= np.linalg.norm(way, axis=1, keepdims=True)
  # Across the arch's plane, which no part of the aorta leaves by much.
  side = np.cross(way, [0.8, -0.6, 0.0])
  side /= np.linalg.norm(side, axis=1, keepdims=True)
  across = np.cross(way, side)
  angle = inner.angle[:, None]
  to = np.cos(angle) * side + np.sin(angle) * across
  middle = points + (inner.here * inner.aside * radii)[:, None] * to
  # Wider than the aorta where it is the only one: its ends leave no seam.
  radius = radii * (1.3 + inner.here * (inner.width - 1.3))
  part = np.flatnonzero(inner.here > 0)
  part = slice(max(part[0] - 1, 0), part[-1] + 2)
  margin = canvas.edge_mm + 3
  return tuple(
    shapes.tube_distance(canvas.voxels, [tube], margin)
    for tube in (
      (points[part], radii[part] + 1.0),
      (middle[part], radius[part]),
    )
  )


def _draw_graft(canvas, points, radii, disease) -> None:
  """Paints the zigzag wires of a stent graft."""
  first = int(0.4 * len(points))
  last = min(first + 22, len(points) - 2)
  dense = shapes.spline(np.column_stack([points, radii])[first:last], 2.0)
  way = np.gradient(dense[:, :3], axis=0)
  way /= np.linalg.norm(way, axis=1, keepdims=True)
  side = np.cross(way, [0.3, 1.0, 0.2])
  side /= np.linalg.norm(side, axis=1, keepdims=True)
  other = np.cross(way, side)
  ends = []
  for ring in range(0, len(dense) - 6, 8):
    turn = np.arange(17) * (2 * np.pi / 16) + disease["angle"]
    row = ring + np.where(np.arange(17) % 2, 5, 0)
    line = dense[row, :3] + (dense[row, 3:] - 0.6) * (
      np.cos(turn)[:, None] * side[row] + np.sin(turn)[:, None] * other[row]
    )
    ends.append(np.stack([line[:-1], line[1:]], 1))
  for a, b in np.concatenate(ends):
    _draw_wire(canvas, a, b, 0.3, 6000.0, Tissue.METAL)


def _draw_wire(canvas, a, b, radius, hu, tissue) -> None:
  """Paints a straight piece thinner than a voxel, its integral kept."""
  w = canvas.edge_mm
  found = canvas.voxels.box(
    np.minimum(a, b) - radius - w / 2, np.maximum(a, b) + radius + w / 2
  )
  if found is not None:
    # As in `shapes.thin_tubes`, over whatever is below.
    gain = min(3 * radius**2 * w / (radius + w / 2) ** 3, 1.0)
    distance = shapes.capsule(found[1], a, b, radius, radius)
    shapes.paint(canvas, found[0], distance, hu, tissue, gain)


def draw_wall_vessels(
  canvas: shapes.Canvas,
  heart: Heart,
  scanner: dict[str, Any],
  ribs: list[tuple[np.ndarray, np.ndarray]],
) -> None:
  """Paints internal mammary and intercostal arteries.

  Args:
    canvas: changed in place.
    heart: around whose middle the chest lies.
    scanner: contrasts.
    ribs: (points [N, 3] LPS mm, radii [N]) from the spine on; the arteries
      run along their lower edge.
  """
  hu, scale = 0.8 * scanner["contrast_hu"], heart.size["body_scale"]
  z = np.arange(-40.0, 141.0, 12)
  for side in (-1, 1):
    x = -24 + side * (24 + 3 * np.sin(z / 23))
    line = np.stack([x, -60.5 + 0.14 * z, z], 1) * scale + heart.center
    for a, b in itertools.pairwise(line):
      _draw_wire(canvas, a, b, 1.2 * scale, hu, Tissue.OTHER_VESSELS)
  for points, radii in ribs:
    line = points - [0, 0, 1] * (radii[:, None] + 2.0 * scale)
    for a, b in itertools.pairwise(line[:10]):
      _draw_wire(canvas, a, b, 0.8 * scale, hu, Tissue.OTHER_VESSELS)


def _bounds(heart: Heart) -> tuple[np.ndarray, np.ndarray]:
  points, radii = aorta_line(heart)
  reach = radii.max() + 25
  return points.min(0) - reach, points.max(0) + reach


def hila(heart: Heart) -> dict[str, list[tuple[np.ndarray, float]]]:
  """Returns where the vessels of the lungs begin.

  Returns:
    "right artery", "left artery", "right veins", "left veins" -> (LPS mm [3],
    radius in mm) of the upper root and the lower one. Every root lies in a
    vessel that is drawn, so that what grows from it connects.
  """
  roots = {}
  for side in ("right", "left"):
    points, radii = _tube(heart, _PULMONARY[side])
    upper = int(0.62 * (len(points) - 1))
    roots[f"{side} artery"] = [
      (points[k], float(radii[k])) for k in (upper, -1)
    ]
  ends = [tuple(v[-1] for v in _tube(heart, row)) for row in _VEINS]
  for side, sign in (("right", -1), ("left", 1)):
    own = [e for e in ends if sign * (e[0][0] - heart.center[0]) > 0]
    own.sort(key=lambda e: -e[0][2])
    roots[f"{side} veins"] = [(p, float(r)) for p, r in (own[0], own[-1])]
  return roots


def cava_line(heart: Heart) -> np.ndarray:
  """Returns the middle of the superior vena cava, [N, 3] LPS mm, upward."""
  return _tube(heart, _SVC)[0]
