"""What lies under the diaphragm: liver, spleen, stomach, bowel, kidneys."""

from typing import Any

import numpy as np

from data_prep.phantom import branching, shapes, thorax
from data_prep.phantom.thorax import Thorax
from data_prep.phantom.voxels import Lattice
from data_prep.tissues import Tissue

# Where the veins of the liver come together, and the portal vein enters.
_VEINS = np.array([-34.0, 32.0, -50.0])
_PORTA = np.array([-44.0, 14.0, -108.0])


def draw_abdomen(
  canvas: shapes.Canvas,
  chest: Thorax,
  rng: np.random.Generator,
  scanner: dict[str, Any],
  texture: Any,
) -> None:
  """Paints the abdomen over the air of the lungs.

  Args:
    canvas: changed in place.
    chest: the thorax.
    rng: for the vessels of the liver and the loops of bowel.
    scanner: contrasts.
    texture: smooth noise of x, y, z in mm, about standard normal.
  """
  patient = chest.patient
  top = chest.to_patient([0.0, 0, 10 + patient["diaphragm_mm"]])
  box = canvas.voxels.region(top - [1e3, 1e3, 1e3], top + [1e3, 1e3, 0])
  ends, radii, sizes = _liver_vessels(patient, rng)
  loops = _loops(rng)
  if box is None:
    return
  points = Lattice(canvas.voxels.grid, box, 4.0)
  b = chest.from_patient(points.at)
  x, y, z = b

  def layer(distance, hu, tissue):
    voxels = points.to_voxels(distance * chest.scale)
    shapes.paint(canvas, box, voxels, hu, tissue)

  under = np.maximum(thorax.diaphragm(b, patient), thorax.cavity(b))
  wave = texture(points.at, 16.0)
  layer(under, 45.0, Tissue.MUSCLE)
  layer(under + 2, patient["fat_hu"] + 6, Tissue.FAT)
  uneven = points.to_voxels(5 * wave)
  layer(_liver(b, under), patient["liver_hu"] + uneven, Tissue.LIVER)
  size = patient["stomach_scale"]
  stomach = shapes.ellipsoid(b, (52, 20, -68), np.array([44, 56, 44]) * size)
  stomach = shapes.meet(stomach - 2.5 * wave, under + 2.5, 6)
  layer(stomach, 75.0, Tissue.STOMACH)
  food = points.to_voxels(28 + 16 * texture(points.at, 9.0))
  layer(stomach + 4, food, Tissue.STOMACH)
  level = y - np.float32(14 - 40 * size * (1 - 2 * patient["stomach_gas"]))
  layer(np.maximum(stomach + 4, level), -960.0, Tissue.GAS)
  blood = 0.12 * scanner["contrast_hu"]
  spleen = shapes.meet(
    shapes.ellipsoid(b, (88, 80, -80), (34, 50, 50)) - 2 * wave, under + 2.5, 5
  )
  streaks = points.to_voxels(14 * texture(points.at, 9.0))
  layer(spleen, 65 + blood + streaks, Tissue.SPLEEN)
  for side, high in ((-1, -150), (1, -138)):
    at = (thorax.MIDLINE + 62 * side, 98, high)
    kidney = shapes.ellipsoid(b, at, (26, 24, 46))
    layer(shapes.meet(kidney, under + 6), 60 + blood, Tissue.SOFT_TISSUE)
  for center, reach, gas in loops:
    loop = shapes.ellipsoid(b, center, reach) - wave
    loop = shapes.meet(loop, under + 4, 3)
    loop = np.maximum(loop, -stomach + 1)
    layer(loop, 55.0, Tissue.SOFT_TISSUE)
    surface = y - np.float32(center[1] + reach[1] * gas)
    layer(np.maximum(loop + 2.5, surface), -900.0, Tissue.GAS)
  layer(np.maximum(_crura(b), under), 55.0, Tissue.MUSCLE)
  for kind, hu in ((0, patient["liver_hu"] - 6 + blood), (1, 95 + blood)):
    own = sizes == kind
    shapes.thin_tubes(
      canvas,
      chest.to_patient(ends[own]),
      radii[own] * chest.scale,
      hu,
      patient["liver_hu"],
      Tissue.LIVER_VESSELS,
    )


def _liver(b: shapes.Coordinates, under: np.ndarray) -> np.ndarray:
  x, y, z = b
  # The left lobe ends as a thin edge in front of the stomach.
  edge = (x - np.float32(38) - np.float32(0.45) * (z + 45)) * np.float32(0.85)
  # Its bare back slants from the left edge to the right kidney.
  back = x * np.float32(0.8) + y * np.float32(0.55) - np.float32(4)
  return shapes.meet(shapes.meet(under + 2.5, edge, 10), back, 14)


def _liver_vessels(patient, rng) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Grows the veins (0) and the portal vein (1) of the liver."""
  spots = rng.uniform([-150, -60, -140], [40, 110, -20], (700, 3))
  at = tuple(spots.astype(np.float32).T)
  under = np.maximum(thorax.diaphragm(at, patient), thorax.cavity(at))
  spots = spots[_liver(at, under) < -6][:240]
  ends, radii, kinds = [], [], []
  for kind, root in enumerate((_VEINS, _PORTA)):
    leaves = spots[kind::2]
    tree = branching.grow(leaves, root, 5.5 - kind, rng)
    ends.append(tree.ends)
    radii.append(tree.radii)
    kinds.append(np.full(len(tree.ends), kind))
  return np.concatenate(ends), np.concatenate(radii), np.concatenate(kinds)


def _loops(rng) -> list:
  """Draws loops of colon and jejunum: center, radii, level of the gas."""
  out = []
  for k in range(5):
    center = rng.normal([38 + 14 * k, -22 + 6 * k, -118], [10, 12, 10])
    out.append((center, rng.uniform(13, 24, 3), rng.uniform(-0.9, 0.9)))
  return out


def _crura(b: shapes.Coordinates) -> np.ndarray:
  """Distance to the legs of the diaphragm beside the aorta."""
  legs = np.float32(1e3)
  for side in (-1, 1):
    rows = np.array(
      [
        [-8.0 + 14 * side, 48, -42],
        [-10 + 17 * side, 66, -75],
        [-14 + 15 * side, 80, -120],
        [-16 + 14 * side, 84, -190],
      ]
    )
    for one, other in zip(rows[:-1], rows[1:], strict=True):
      legs = np.minimum(legs, shapes.capsule(b, one, other, 5.0, 5.5))
  return legs
