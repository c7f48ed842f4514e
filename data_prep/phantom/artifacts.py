"""What a scanner adds: streaks, dark bands, shading, steps between beats.

None of it simulates the projections; each is the pattern that is seen, drawn
around the objects that cause it.
"""

import dataclasses
from typing import Any

import numpy as np
from scipy import ndimage

from data_prep.phantom import shapes, vessels
from data_prep.phantom.heart import MITRAL, Heart
from data_prep.phantom.thorax import Thorax, spine_line


def draw_artifacts(
  canvas: shapes.Canvas,
  heart: Heart,
  chest: Thorax,
  metal: np.ndarray,
  scanner: dict[str, Any],
  rng: np.random.Generator,
  texture: Any,
) -> None:
  """Adds streaks of contrast and metal, beam hardening and shading to the HU.

  Args:
    canvas: changed in place.
    heart: where dense blood is.
    chest: where the spine is.
    metal: spots that streak; see `metal.draw_metal`.
    scanner: `streaks`, `hardening` and `shading_hu` say how much.
    rng: source of randomness.
    texture: smooth noise of x, y, z in mm, about standard normal.
  """
  cava = vessels.cava_line(heart)
  hu = np.clip(scanner["contrast_hu"] * scanner["cava"], 120, 1500)
  dense = max(hu - 350, 0) / 1000
  spokes = _spokes(rng)
  amount = 260 * scanner["streaks"] * dense
  if amount > 2:
    _cava_streaks(canvas, cava, amount, spokes)
  if scanner["hardening"] > 0:
    _bands(canvas, heart, chest, cava, scanner["hardening"], dense)
  for x, y, z, mass in metal:
    amount = 260 * mass * (0.35 + scanner["streaks"])
    _metal_streaks(canvas, np.array([x, y, z]), amount, _spokes(rng, 10))
  if scanner["shading_hu"] > 0:
    points = canvas.voxels.lattice(heart.center - 400, heart.center + 400, 12.0)
    if points is not None:
      x, y, z = (
        c - np.float32(m) for c, m in zip(points.at, heart.center, strict=True)
      )
      far = np.hypot(x, y) / np.float32(110)
      wave = np.sin(z * np.float32(2 * np.pi / scanner["slab_mm"]) + far)
      field = wave * np.clip(far, 0, 1.2) + 0.7 * texture(points.at, 75.0)
      part = canvas.hu[points.box]
      part += points.to_voxels(field * np.float32(scanner["shading_hu"]))


def _spokes(rng, highest: int = 7) -> np.ndarray:
  """Draws streaks: rows of (n, phase, 1/mm along z, phase, amplitude)."""
  n = np.arange(2, 2 * highest + 2, 2) + rng.integers(0, 2, highest)
  phase, along = rng.uniform(0, 2 * np.pi, (2, highest))
  often = rng.uniform(0.1, 0.7, highest)
  return np.stack([n, phase, often, along, rng.normal(0, 1, highest)], 1)


def _star(angle, z, spokes) -> np.ndarray:
  """Streaks by angle, about -1 to 1, other ones every few mm of z."""
  total = np.float32(0)
  for n, phase, often, along, a in spokes.astype(np.float32):
    wave = np.cos(z * often + along) * a
    total = total + wave * np.cos(angle * n + phase)
  size = np.sqrt((spokes[:, 4] ** 2).sum() / 2 + 1e-6)
  total = total * np.float32(1 / size)
  return total * np.abs(total)


def _cava_streaks(canvas, cava, amount, spokes) -> None:
  low, high = cava.min(0) - [58, 58, 4], cava.max(0) + [58, 58, 4]
  points = canvas.voxels.lattice(low, high, 2.5)
  if points is None:
    return
  x, y, z = points.at
  order = np.argsort(cava[:, 2])
  cx, cy = (
    np.interp(z, cava[order, 2], cava[order, k]).astype(np.float32)
    for k in (0, 1)
  )
  dx, dy = x - cx, y - cy
  r = np.hypot(dx, dy) + np.float32(1e-3)
  fall = np.exp(-r / np.float32(26)) * np.clip((r - 5) / 6, 0, 1)
  fall = fall * np.clip((58 - r) / 15, 0, 1)
  star = _star(np.arctan2(dy, dx), z, spokes)
  part = canvas.hu[points.box]
  part += points.to_voxels(star * fall * np.float32(amount))


def _bands(canvas, heart, chest, cava, strength, dense) -> None:
  """Darkens what lies between dense objects at the same height."""
  reach = 100 * heart.scale
  low, high = heart.center - reach, heart.center + [reach, reach, 110]
  points = canvas.voxels.lattice(low, high, 4.0)
  if points is None:
    return
  x, y, z = points.at
  sx, sy = spine_line((z - chest.center[2]) / chest.scale, chest.patient)
  spine = np.stack(
    np.broadcast_arrays(
      chest.center[0] + chest.scale * sx, chest.center[1] + chest.scale * sy
    )
  )
  aorta, _ = vessels.aorta_line(heart)
  down = aorta[aorta[:, 1] > heart.center[1] + 50]
  left = heart.to_patient((MITRAL + [20.0, -10, -8])[None])[0]
  pairs = [
    (_at_height(cava, z), spine, 38 * dense, 7.0),
    (_at_height(down, z), np.array([left[0], left[1]]), 14.0, 9.0),
  ]
  top = np.clip((heart.center[2] + 25 - z) / 25, 0, 1)
  field = np.float32(0)
  for k, (one, other, depth, width) in enumerate(pairs):
    a, b = (tuple(np.float32(c) for c in p) for p in (one, other))
    ax, ay = b[0] - a[0], b[1] - a[1]
    length2 = ax**2 + ay**2 + np.float32(1e-3)
    t = ((x - a[0]) * ax + (y - a[1]) * ay) / length2
    away = ((x - a[0]) * ay - (y - a[1]) * ax) ** 2 / length2
    between = np.clip(6 * t, 0, 1) * np.clip(6 * (1 - t), 0, 1)
    band = between * np.exp(-away / np.float32(2 * width**2))
    field = field - depth * band * (top if k else 1.0)
  part = canvas.hu[points.box]
  part += points.to_voxels(np.float32(strength) * (field + 0 * x + 0 * z))


def _at_height(line, z) -> tuple[np.ndarray, np.ndarray]:
  """Returns x and y of a line at every height."""
  order = np.argsort(line[:, 2])
  return tuple(np.interp(z, line[order, 2], line[order, k]) for k in (0, 1))


def _metal_streaks(canvas, spot, amount, spokes) -> None:
  reach = np.array([45.0, 45.0, 1.6 + canvas.edge_mm])
  points = canvas.voxels.lattice(spot - reach, spot + reach, 1.5)
  if points is None:
    return
  x, y, z = (c - np.float32(m) for c, m in zip(points.at, spot, strict=True))
  r = np.hypot(x, y) + np.float32(0.5)
  fall = np.exp(-r / np.float32(13)) * np.clip((45 - r) / 15, 0, 1)
  fall = fall * np.exp(-((z / reach[2] * 2) ** 2))
  star = _star(np.arctan2(y, x), z, spokes)
  part = canvas.hu[points.box]
  part += points.to_voxels(star * fall * np.float32(amount))


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
  """How far the heart lies off in each slab of a scan of several beats.

  Attributes:
    center: LPS mm of the middle of the heart.
    edges: [N] mm, heights between slabs.
    shifts: [N + 1, 2] mm toward left and back, of the slabs.
  """

  center: np.ndarray
  edges: np.ndarray
  shifts: np.ndarray

  def at(self, x: Any, y: Any, z: Any) -> tuple[Any, Any]:
    """Returns how far what lies at x, y, z is off, in mm, in x and y."""
    offset = [c - m for c, m in zip((x, y, z), self.center, strict=True)]
    away = np.sqrt(sum(c * c for c in offset))
    # The chest around the heart stands still.
    weight = np.clip((92 - away) / 22, 0, 1)
    # Two slabs blend over a few mm, as their cones overlap.
    knots = (self.edges[:, None] + [-1.5, 1.5]).ravel()
    return tuple(
      weight * np.interp(z, knots, np.repeat(s, 2)[1:-1]) for s in self.shifts.T
    )

  def move(self, points: np.ndarray) -> np.ndarray:
    """Returns where points [N, 3+] in LPS mm are seen."""
    out = np.array(points, float)
    if self.shifts.any():
      for _ in range(3):
        shift = self.at(*out[..., :3].T)
        out[..., :2] = points[..., :2] + np.stack(shift, -1)
    return out

  def apply(self, canvas: shapes.Canvas, labels: list[np.ndarray]) -> None:
    """Moves HU and labels of the canvas.

    Args:
      canvas: its `hu` and `tissues` are changed in place.
      labels: [D, H, W] each, changed in place, too.
    """
    box = canvas.voxels.region(self.center - 93, self.center + 93)
    if box is None or not self.shifts.any():
      return
    grid = canvas.voxels.grid
    to_index = grid.direction.T / np.array(grid.spacing)[:, None]
    arrays = [(canvas.hu, 1), (canvas.tissues, 0), *((a, 0) for a in labels)]
    before = [array[box].copy() for array, _ in arrays]
    rows = np.indices([s.stop - s.start for s in box[1:]], np.float32)
    for k in range(box[0].stop - box[0].start):
      cut = (slice(box[0].start + k, box[0].start + k + 1), *box[1:])
      shift = self.at(*canvas.voxels.coordinates(cut))
      if max(np.abs(s).max() for s in shift) < 0.02:
        continue
      place = [
        -(to_index[a, 0] * shift[0] + to_index[a, 1] * shift[1])[0] + base
        for a, base in enumerate((float(k), *rows))
      ]
      place = np.stack(np.broadcast_arrays(*place))
      for (array, order), old in zip(arrays, before, strict=True):
        array[cut] = ndimage.map_coordinates(
          old, place, order=order, mode="nearest", prefilter=False
        )


def draw_steps(
  center: np.ndarray, scanner: dict[str, Any], rng: np.random.Generator
) -> Steps:
  """Draws the steps of a scan.

  Args:
    center: LPS mm of the middle of the heart.
    scanner: `step_mm`, 0 for a scan of one beat, and `slab_mm`.
    rng: source of randomness.
  """
  slab = scanner["slab_mm"]
  first = center[2] - 120 + rng.uniform(0, slab)
  edges = np.arange(first, center[2] + 120, slab)
  shifts = rng.normal(0, scanner["step_mm"], (len(edges) + 1, 2))
  return Steps(np.asarray(center, float), edges, shifts)
