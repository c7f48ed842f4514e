"""The great vessels: aorta, pulmonary arteries and veins, venae cavae."""

from typing import Any

import numpy as np

from data_prep.phantom import shapes
from data_prep.phantom.heart import (
  AORTIC_VALVE,
  PULMONARY_VALVE,
  ROOT_WAY,
  Heart,
)
from data_prep.tissues import Tissue

# x, y, z, radius relative to the ascending aorta, share of the heart's turn.
_AORTA = np.array(
  [
    [-12.0, -1.6, 34.0, 0.97, 1.0],
    [-17.0, -2.0, 50.0, 1.02, 0.9],
    [-19.0, 4.0, 70.0, 1.0, 0.5],
    [-14.0, 18.0, 90.0, 0.95, 0.2],
    [-4.0, 38.0, 100.0, 0.88, 0.0],
    [6.0, 60.0, 94.0, 0.82, 0.0],
    [10.0, 74.0, 76.0, 0.78, 0.0],
    [10.0, 78.0, 50.0, 0.77, 0.0],
    [9.0, 77.0, 15.0, 0.75, 0.0],
    [5.0, 73.0, -20.0, 0.73, 0.0],
    [-4.0, 68.0, -60.0, 0.71, 0.0],
    [-12.0, 66.0, -110.0, 0.68, 0.0],
  ]
)
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
_VEINS = [
  [(-34, 36, 30, 8, 1), (-52, 28, 40, 6.5, 0.4), (-72, 20, 54, 4.5, 0)],
  [(-34, 46, 10, 8, 1), (-56, 54, 6, 6.5, 0.4), (-80, 64, -6, 4.5, 0)],
  [(17, 42, 30, 7.5, 1), (38, 34, 44, 6.5, 0.4), (58, 22, 60, 4.5, 0)],
  [(18, 48, 17, 7.5, 1), (42, 60, 11, 6.5, 0.4), (64, 72, -8, 4.5, 0)],
]
_SVC = [
  (-42, 1, 28, 9.5, 0.9),
  (-44, 3, 44, 9.3, 0.4),
  (-43, 4, 75, 9, 0.1),
  (-42, 0, 105, 8.5, 0),
  (-40, -4, 140, 8, 0),
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
  rows = _AORTA.copy()
  rows[:, 3] *= heart.size["aorta_radius_mm"] / heart.scale
  return _tube(heart, rows)


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
    np.minimum(distance[box], bulb, out=distance[box])
  return distance


def outlines(heart: Heart) -> list[tuple[np.ndarray, np.ndarray]]:
  """Returns all great vessels as (points, radii), for the fat around them."""
  rows = [*_PULMONARY.values(), *_VEINS, _SVC, _IVC]
  return [aorta_line(heart), *(_tube(heart, row) for row in rows)]


def coronary_sinus(heart: Heart) -> tuple[np.ndarray, np.ndarray]:
  """Returns the coronary sinus: points [N, 3] LPS mm, radii [N]."""
  return _tube(heart, _CORONARY_SINUS)


def draw_veins(
  canvas: shapes.Canvas, heart: Heart, scanner: dict[str, Any]
) -> None:
  """Paints what lies under the heart's chambers: veins and cavae."""
  contrast = scanner["contrast_hu"]
  for row in _VEINS:
    shapes.paint_tube(
      canvas, *_tube(heart, row), contrast * 1.02, Tissue.PULMONARY_VEINS
    )
  below = 60 + 0.25 * contrast * scanner["right_heart"]
  shapes.paint_tube(
    canvas, *_tube(heart, _IVC), below, Tissue.INFERIOR_VENA_CAVA
  )
  shapes.paint_tube(
    canvas,
    *_tube(heart, _CORONARY_SINUS),
    0.55 * contrast,
    Tissue.CORONARY_SINUS,
  )


def draw_arteries(
  canvas: shapes.Canvas, heart: Heart, scanner: dict[str, Any]
) -> np.ndarray:
  """Paints pulmonary arteries, superior vena cava and aorta with its wall.

  Returns:
    Signed distance in mm to the aorta's lumen, [D, H, W].
  """
  contrast = scanner["contrast_hu"]
  lungs = contrast * np.clip(scanner["right_heart"], 0.35, 1.2)
  cava = np.clip(contrast * scanner["cava"], 120, 1500)
  for row in _PULMONARY.values():
    points, radii = _tube(heart, row)
    shapes.paint_tube(canvas, points, radii + 1.0, 40.0, Tissue.SOFT_TISSUE)
  outlet = heart.to_patient(np.stack([[7.0, -25.0, 22.0], PULMONARY_VALVE]))
  wide = 11.0 * heart.scale * heart.size["rv_scale"]
  shapes.paint_tube(
    canvas, outlet, np.array([wide, wide]), lungs, Tissue.RIGHT_VENTRICLE
  )
  for row in _PULMONARY.values():
    shapes.paint_tube(
      canvas, *_tube(heart, row), lungs, Tissue.PULMONARY_ARTERY
    )
  shapes.paint_tube(
    canvas, *_tube(heart, _SVC), cava, Tissue.SUPERIOR_VENA_CAVA
  )
  margin = canvas.edge_mm + 3
  distance = aorta_distance(canvas.voxels, heart, margin)
  near = canvas.voxels.region(*_bounds(heart))
  box = near or canvas.voxels.everywhere
  shapes.paint(canvas, box, distance[box] - 1.5, 45.0, Tissue.AORTIC_WALL)
  outflow = heart.to_patient(
    np.stack([np.array([9.0, 3.0, -3.0]), AORTIC_VALVE])
  )
  inner = 0.7 * heart.size["aorta_radius_mm"]
  shapes.paint_tube(
    canvas, outflow, np.full(2, inner), contrast, Tissue.LEFT_VENTRICLE
  )
  shapes.paint(canvas, box, distance[box], contrast, Tissue.AORTA)
  return distance


def _bounds(heart: Heart) -> tuple[np.ndarray, np.ndarray]:
  points, radii = aorta_line(heart)
  reach = radii.max() + 25
  return points.min(0) - reach, points.max(0) + reach
