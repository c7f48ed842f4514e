"""Vessels and airways of the lungs, from the hila to near the pleura."""

from typing import Any

import numpy as np

from data_prep.phantom import branching, shapes, thorax, vessels
from data_prep.phantom.heart import Heart
from data_prep.phantom.thorax import Thorax
from data_prep.tissues import Tissue

# Trachea and main bronchi: x, y, z, radius.
_AIRWAYS = [
  [(-29, 20, 170, 8.5), (-29, 34, 100, 8.5), (-25, 45, 74, 8.5)],
  [(-25, 45, 74, 7), (-44, 44, 60, 6.2), (-64, 46, 48, 4.5)],
  [(-25, 45, 74, 6.5), (-6, 49, 60, 5.8), (22, 57, 47, 4.5)],
]
# How far a bronchus lies beside its artery, by the number of forks behind it.
_BESIDE_MM = np.array([0.0, 7.0, 5.6, 4.6, 3.9, 3.3, 2.8, 2.5, 2.2])
_LEAVES = 1050  # Of each tree in one lung.


def draw_lungs(
  canvas: shapes.Canvas,
  chest: Thorax,
  heart: Heart,
  rng: np.random.Generator,
  scanner: dict[str, Any],
) -> None:
  """Paints arteries, veins and airways over air and mediastinum.

  Args:
    canvas: changed in place.
    chest: the thorax.
    heart: whose vessels the trees begin in.
    rng: for the trees.
    scanner: contrasts.
  """
  roots = vessels.hila(heart)
  contrast = scanner["contrast_hu"]
  below = chest.patient["lung_hu"]
  right = float(np.clip(scanner["right_heart"], 0.35, 1.2))
  for side, sign, bronchus in (("right", -1, 1), ("left", 1, 2)):
    spots = _spots(chest, heart, sign, rng)
    arteries = _pair(spots[::2], roots[f"{side} artery"], 0.0, rng)
    veins = _pair(spots[1::2], roots[f"{side} veins"], 0.5, rng)
    for trees, hu in ((arteries, contrast * right), (veins, 1.02 * contrast)):
      for tree in trees:
        shapes.thin_tubes(
          canvas, tree.ends, tree.radii, hu, below, Tissue.LUNG_VESSELS
        )
    end = chest.to_patient(_AIRWAYS[bronchus][-1][:3])
    width = _AIRWAYS[bronchus][-1][3] * chest.scale
    for tree in arteries:
      _draw_bronchi(canvas, tree, end, width, sign, below)
  _draw_trachea(canvas, chest)


def _spots(chest: Thorax, heart: Heart, sign: int, rng) -> np.ndarray:
  """Draws points in one lung, [N, 3] LPS mm, evenly."""
  low = np.array([4.0 if sign > 0 else -142.0, -75, -110])
  high = np.array([142.0 if sign > 0 else -4.0, 135, 172])
  spots = rng.uniform(low, high, (6000, 3)) + [thorax.MIDLINE, 0, 0]
  at = tuple(chest.to_patient(spots).astype(np.float32).T)
  b = tuple(spots.astype(np.float32).T)
  free = thorax.cavity(b) < -3
  free &= thorax.diaphragm(b, chest.patient) > 3
  at, b = (tuple(x[free] for x in part) for part in (at, b))
  lung = thorax.mediastinum(at, b, heart) > 3
  return chest.to_patient(spots[free][lung])[: 2 * _LEAVES]


def _pair(spots, roots, tilt, rng) -> list[branching.Branches]:
  """Grows the trees of a lung's upper and lower part."""
  (up, up_radius), (low, low_radius) = roots
  middle = (up + low) / 2
  high = (spots - middle) @ [0, -tilt, 1.0] > 8
  return [
    branching.grow(spots[high], up, min(up_radius, 6.0), rng),
    branching.grow(spots[~high], low, min(low_radius, 7.0), rng),
  ]


def _draw_bronchi(canvas, tree, start, width, sign, below) -> None:
  """Paints airways beside the thick arteries of a tree."""
  beside = np.array([-0.55 * sign, -0.7, 0.45])
  away = _BESIDE_MM[np.minimum(tree.level, 7)]
  next_away = _BESIDE_MM[np.minimum(tree.level + 1, 8)]
  ends = tree.ends + np.stack([away, next_away], 1)[..., None] * beside
  ends[tree.level == 0, 0] = start
  radii = np.minimum(0.47 * tree.radii, width)
  seen = (radii[:, 1] > 0.9) & (tree.level < 8)
  ends, radii = ends[seen], radii[seen]
  shapes.thin_tubes(
    canvas, ends, 1.15 * radii + 0.55, -40.0, below, Tissue.SOFT_TISSUE
  )
  for line, wide in zip(ends, radii, strict=True):
    shapes.paint_tube(canvas, line, wide, -985.0, Tissue.AIRWAYS)


def _draw_trachea(canvas, chest) -> None:
  layers = ((1.4, 30.0, Tissue.SOFT_TISSUE), (0.0, -990.0, Tissue.AIRWAYS))
  for wall, hu, tissue in layers:
    for row in _AIRWAYS:
      line = shapes.spline(np.array(row, float), 8.0)
      points = chest.to_patient(line[:, :3])
      radii = (line[:, 3] + wall) * chest.scale
      shapes.paint_tube(canvas, points, radii, hu, tissue)
