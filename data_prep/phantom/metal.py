"""Metal of earlier treatment, in a few patients, and the table they lie on."""

import numpy as np

from data_prep.phantom import heart as heart_lib
from data_prep.phantom import shapes, vessels
from data_prep.phantom.heart import Heart
from data_prep.phantom.thorax import MIDLINE, Thorax, front
from data_prep.tissues import Tissue

_STEEL = 9000.0  # HU; what is above the scanner's range is cut off at the end.


def draw_metal(
  canvas: shapes.Canvas,
  heart: Heart,
  chest: Thorax,
  rng: np.random.Generator,
) -> np.ndarray:
  """Paints wires of the sternum, clips, leads of a pacemaker, a valve.

  Args:
    canvas: changed in place.
    heart: the heart; its `size` says what the patient has.
    chest: the thorax.
    rng: source of randomness.

  Returns:
    [N, 4], LPS mm and mass relative to a wire of steel, of spots that streak.
  """
  size = heart.size
  lines = [
    *_wires(chest, int(size["wires"]), rng),
    *_clips(chest, int(size["clips"]), rng),
    *_leads(heart, int(size["leads"])),
    *_valve(heart, int(size["valve_ring"])),
  ]
  spots = [np.zeros((0, 4))]
  for points, radius, hu, mass in lines:
    ends = np.stack([points[:-1], points[1:]], 1)
    radii = np.full((len(ends), 2), radius)
    shapes.thin_tubes(canvas, ends, radii, hu, 0.0, Tissue.METAL)
    few = points[:: max(len(points) // 12, 1)]
    spots.append(np.column_stack([few, np.full(len(few), mass)]))
  return np.concatenate(spots)


def _wires(chest, count, rng) -> list:
  """Loops around the sternum, each with its knot in front."""
  lines = []
  for k in range(count):
    z = 112 - 135 * (k + 0.5) / max(count, 1) + rng.normal(0, 3)
    angle = np.radians(np.linspace(0, 360, 25)) + rng.uniform(0, 6)
    wide = 15 + 10 * np.clip((z - 76) / 22, 0, 1) + rng.normal(0, 1.5)
    loop = np.stack(
      [
        MIDLINE + wide * np.cos(angle),
        front(z) - 8 + 8 * np.sin(angle),
        z + rng.normal(0, 2) * np.cos(angle),
      ],
      1,
    )
    knot = np.array([MIDLINE, front(z) - 16, z])
    knot = knot + np.array([[-2, 0, -2], [1.5, -2.0, 2], [3, -1, 5]])
    lines.append((chest.to_patient(loop), 0.45, _STEEL, 0.35))
    lines.append((chest.to_patient(knot), 0.6, _STEEL, 1.0))
  return lines


def _clips(chest, count, rng) -> list:
  """Clips of a graft that runs from behind the sternum to the heart."""
  lines = []
  for _ in range(count):
    t = rng.random()
    point = np.array([-8 + 22 * t, -50 + 8 * t, 85 - 100 * t])
    way = rng.normal(size=3)
    way *= 2.2 / np.linalg.norm(way)
    ends = chest.to_patient(point + np.stack([-way, way]) + rng.normal(0, 3, 3))
    lines.append((ends, 0.6, _STEEL, 0.6))
  return lines


def _leads(heart, count) -> list:
  """Leads through the superior vena cava, into ventricle and atrium."""
  cava = vessels.cava_line(heart)[::-1]
  apex = heart_lib.lv_point(58.0, 95.0, 36.0)
  ways = [
    [(-40, -2, 12), (-24, -14, -14), apex],
    [(-42, -8, 8), (-38, -16, 12), (-31, -24, 25)],
  ]
  lines = []
  for rows in ways[:count]:
    rest = heart.to_patient(np.array([np.asarray(r, float) for r in rows]))
    line = shapes.spline(np.concatenate([cava, rest]), 3.0)
    lines.append((line, 0.9, 2600.0, 0.25))
    lines.append((line[-4:], 1.5, _STEEL, 1.0))
  return lines


def _valve(heart, kind) -> list:
  """The ring of a prosthesis: 1 aortic, 2 mitral."""
  if not kind:
    return []
  angle = np.radians(np.linspace(0, 360, 25))
  if kind == 1:
    axis = heart_lib.ROOT_WAY / np.linalg.norm(heart_lib.ROOT_WAY)
    middle = heart_lib.AORTIC_VALVE + 3 * axis
    radius = 0.7 * heart.size["aorta_radius_mm"] / heart.scale
    one = np.cross(axis, [1.0, 0, 0])
    one /= np.linalg.norm(one)
    ring = middle + radius * (
      np.outer(np.cos(angle), one)
      + np.outer(np.sin(angle), np.cross(axis, one))
    )
  else:
    ring = heart_lib.lv_point(0.0, np.degrees(angle), 14.0)
  return [(heart.to_patient(ring), 0.9, 4500.0, 0.6)]


def draw_table(canvas: shapes.Canvas, chest: Thorax, gap_mm: float) -> None:
  """Paints the table's two shells below the back.

  Args:
    canvas: changed in place.
    chest: the thorax.
    gap_mm: from the back to the table: a mattress.
  """
  back = 165 + 0.6 * chest.patient["fat_mm"] + gap_mm
  low = chest.to_patient([MIDLINE - 240, back - 75, -500])
  high = chest.to_patient([MIDLINE + 240, back + 55, 500])
  points = canvas.voxels.lattice(low, high, 4.0)
  if points is None:
    return
  x, y, _ = chest.from_patient(points.at)
  across = np.minimum(np.abs(x - np.float32(MIDLINE)) / 230, 1.2)
  # The upper shell is a trough, the lower one its keel.
  for deep, thick in ((60 * (1 - across**2) - 60, 1.0), (10 + 0 * across, 1.2)):
    keel = deep + np.float32(30) * (1 - across**4) * (thick > 1.1)
    height = points.to_voxels(y - np.float32(back) - keel)
    shell = np.abs(height) - np.float32(thick)
    shell = np.maximum(shell, points.to_voxels((across - 1) * 40 + 0 * y))
    shapes.paint(canvas, points.box, shell, 60.0, None, 0.9)
