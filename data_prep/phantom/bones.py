"""Ribs, spine, sternum, shoulder: marrow inside a thin cortex."""

from typing import Any

import numpy as np

from data_prep.phantom import shapes
from data_prep.phantom.thorax import (
  MIDLINE,
  SPINE_Y,
  Thorax,
  cavity,
  front,
  spine_line,
)
from data_prep.tissues import Tissue

_VERTEBRA_MM = 25.0
_TOP = 162.0  # Height of the middle of the first vertebra drawn.
_FLAT = 0.6  # A rib is that much thinner than high.


def draw_bones(canvas: shapes.Canvas, chest: Thorax, texture: Any) -> None:
  """Paints the skeleton of the chest.

  Args:
    canvas: changed in place.
    chest: the thorax.
    texture: smooth noise of x, y, z in mm, about standard normal.
  """
  bone = chest.patient["bone_hu"]
  marrow = 0.11 * bone + 75
  _draw_ribs(canvas, chest, bone, marrow)
  _draw_shoulder(canvas, chest, bone, marrow)
  _draw_spine(canvas, chest, bone, marrow, texture)
  _draw_sternum(canvas, chest, bone, marrow, texture)


def rib_tubes(chest: Thorax) -> tuple[list, list]:
  """Returns ribs and costal cartilages as tubes in LPS mm."""
  ribs, cartilages = [], []
  for number in range(11):
    back = 150 - _VERTEBRA_MM * number
    for side in (-1, 1):
      angle = np.radians(np.linspace(12, 140, 15))
      fall = 62 * np.sin(np.clip(angle - 0.1, 0, np.pi / 2 + 0.75) / 1.5) ** 1.4
      z = back - fall
      taper = np.sqrt(1 - np.clip((z - 10) / 175, 0, 0.97) ** 2)
      ahead, rear = front(z), 103 + 30 * taper
      c, s = np.cos(angle), np.sin(angle)
      power = 2 / 2.35
      x = (138 * taper + 5.0) * np.abs(s) ** power * side + MIDLINE
      y = (ahead + rear) / 2 + (rear - ahead + 10) / 2 * np.sign(c) * (
        np.abs(c) ** power
      )
      line = np.stack([x, y, z], 1)
      ribs.append((chest.to_patient(line), np.full(15, 3.9 * chest.scale)))
      end = line[-1]
      top = min(max(end[2] + 2 + 5.5 * number, -35), 90)
      sternum = np.array([MIDLINE + 17 * side, front(top) - 6, top])
      middle = (end + sternum) / 2 + np.array([0, -5, -4.0])
      bend = shapes.spline(np.stack([end, middle, sternum]), 12.0)
      if number < 8:
        cartilages.append(
          (chest.to_patient(bend), np.full(len(bend), 4.8 * chest.scale))
        )
  return ribs, cartilages


def _draw_ribs(canvas, chest, bone, marrow) -> None:
  everything = canvas.voxels.everywhere
  margin = canvas.edge_mm + 1
  ribs, cartilages = rib_tubes(chest)
  soft = shapes.tube_distance(canvas.voxels, cartilages, margin)
  shapes.paint(canvas, everything, soft, 110.0, Tissue.CARTILAGE)
  hard = _flat_tubes(canvas.voxels, ribs, margin)
  shapes.paint(canvas, everything, hard, 0.95 * bone, Tissue.BONE)
  shapes.paint(canvas, everything, hard + 1.0, 0.9 * marrow, Tissue.MARROW)
  spurs = shapes.tube_distance(canvas.voxels, _processes(chest), margin)
  shapes.paint(canvas, everything, spurs, bone, Tissue.BONE)
  shapes.paint(canvas, everything, spurs + 1.3, 1.1 * marrow, Tissue.MARROW)


def _flat_tubes(voxels, tubes, margin) -> np.ndarray:
  """Distance to tubes that are higher than thick, right across them."""
  out = np.full(voxels.shape, 1e3, np.float32)
  high = np.array([1, 1, _FLAT])
  for points, radii in tubes:
    for a, b, ra, rb in zip(
      points[:-1], points[1:], radii[:-1], radii[1:], strict=True
    ):
      reach = (max(ra, rb) + margin) / high
      found = voxels.box(np.minimum(a, b) - reach, np.maximum(a, b) + reach)
      if found is not None:
        x, y, z = found[1]
        at = x, y, z * np.float32(_FLAT)
        part = out[found[0]]
        capsule = shapes.capsule(at, a * high, b * high, ra, rb)
        np.minimum(part, capsule, out=part)
  return out


def _processes(chest: Thorax) -> list:
  """Returns the vertebral arches and their processes as tubes."""
  tubes = []
  for number in range(14):
    z = _TOP - _VERTEBRA_MM * number
    parts = [([0, 30, 0], [0, 50, -18], 3.6, 3.2)]
    for side in (-1, 1):
      parts += [
        ([10.5 * side, 8, 4], [12.0 * side, 20, 3], 4.0, 4.2),
        ([12.0 * side, 20, 2], [0, 31, -2], 3.4, 3.6),
        ([12.0 * side, 19, 3], [30 * side, 28, 7], 4.6, 4.2),
        ([13.0 * side, 20.5, -10], [13.0 * side, 20, 11], 3.8, 3.4),
      ]
    x, y = spine_line(z, chest.patient)
    base = np.array([x, y, z])
    for a, c, ra, rb in parts:
      line = chest.to_patient(np.stack([base + a, base + c]))
      tubes.append((line, np.array([ra, rb]) * chest.scale))
  return tubes


def _draw_spine(canvas, chest, bone, marrow, texture) -> None:
  low = chest.to_patient([MIDLINE - 30, SPINE_Y - 42, -500])
  high = chest.to_patient([MIDLINE + 30, SPINE_Y + 30, 500])
  points = canvas.voxels.lattice(low, high, 1.6)
  if points is None:
    return
  x, y, z = chest.from_patient(points.at)
  middle, depth = spine_line(z, chest.patient)
  x, y = x - middle.astype(np.float32), y - depth.astype(np.float32)
  level = (z - np.float32(_TOP)) / np.float32(_VERTEBRA_MM)
  away = np.abs(level - np.round(level)) * np.float32(_VERTEBRA_MM)
  waist = 2.2 * np.cos(away * np.float32(np.pi / 21)) ** 2
  round_ = np.sqrt(
    (x / np.float32(17.5)) ** 2
    + (np.where(y > 0, y / np.float32(13.2), y / np.float32(15.5))) ** 2
  )
  around = (round_ - 1) * np.float32(15.0)
  # The back of a vertebra is flat, toward the canal.
  around = shapes.meet(around, y - np.float32(12.0), 4)
  plate = np.float32(10.6) - np.float32(0.9) * np.clip(1 - round_, 0, 1)
  body = shapes.meet(around + waist, away - plate, 1.5)

  def layer(distance, hu, tissue):
    voxels = points.to_voxels(distance * chest.scale)
    shapes.paint(canvas, points.box, voxels, hu, tissue)

  canal = (
    np.sqrt((x / 10) ** 2 + ((y - np.float32(20.5)) / 8.0) ** 2) - 1
  ) * np.float32(8.5)
  layer(canal + 0 * z, -20.0, Tissue.SPINAL_CANAL)
  layer(canal + 1.5 + 0 * z, 15.0, Tissue.SPINAL_CANAL)
  layer(canal + 4.2 + 0 * z, 42.0, Tissue.SPINAL_CANAL)
  disc = np.maximum(around + 0.6, away - np.float32(12.6))
  nucleus = np.clip(1 - 1.4 * round_, 0, 1)
  layer(disc, points.to_voxels(95 - 30 * nucleus + 0 * z), Tissue.CARTILAGE)
  layer(body, 0.72 * bone, Tissue.BONE)
  inner = np.maximum(around + waist + 0.8, away - plate + np.float32(1.1))
  # Trabeculae, denser toward the end plates; a vein in the middle.
  coarse, fine = (texture(points.at, mm) for mm in (5.0, 2.4))
  dense = np.clip((away - 4) / 7, 0, 1)
  vein = np.exp(-((away / 2.0) ** 2) - ((y - 8) / 7) ** 2)
  spongy = marrow * (
    0.9 + 0.16 * coarse + 0.26 * fine + 0.35 * dense - 0.45 * vein
  )
  layer(inner, points.to_voxels(spongy), Tissue.MARROW)


def _draw_sternum(canvas, chest, bone, marrow, texture) -> None:
  low = chest.to_patient([MIDLINE - 40, -100, -75])
  high = chest.to_patient([MIDLINE + 40, -20, 160])
  points = canvas.voxels.lattice(low, high, 1.6)
  if points is None:
    return
  x, y, z = chest.from_patient(points.at)
  # Wide at the notches of the ribs, a broad manubrium, a thin xiphoid.
  wide = 14.5 + 2.2 * np.cos(z / 3.6) + 13 * np.clip((z - 76) / 22, 0, 1)
  wide = wide - 9 * np.clip((-26 - z) / 16, 0, 1)
  thick = 5.2 + 1.2 * np.clip((z - 76) / 22, 0, 1)
  thick = thick - 1.5 * np.clip((-26 - z) / 16, 0, 1)
  across = np.abs(x - np.float32(MIDLINE)) / wide
  # Slightly hollow in front.
  bent = 2.0 * across**2
  deep = np.abs(y - (front(z) - 7.5) - bent * 0.8) / thick
  norm = (across**3.2 + deep**2.4) ** (1 / 2.8)
  plate = (norm - 1) * thick
  coarse, fine = (texture(points.at, mm) for mm in (7.0, 2.6))
  plate = plate + np.float32(0.35) * coarse
  along = np.maximum(z - np.float32(122), np.float32(-62) - z)
  plate = shapes.meet(plate, along, 4)
  joint = np.abs(z - np.float32(80)) - np.float32(1.4)
  xiphoid = np.abs(z + np.float32(30)) - np.float32(1.2)
  shell = 0.75 + 0.3 * fine
  spongy = marrow * (0.75 + 0.25 * coarse + 0.3 * fine)
  for distance, hu, tissue in (
    (plate, 0.7 * bone, Tissue.BONE),
    (plate + shell, points.to_voxels(spongy), Tissue.MARROW),
    (np.maximum(plate, np.minimum(joint, xiphoid)), 95.0, Tissue.CARTILAGE),
  ):
    voxels = points.to_voxels(distance * chest.scale)
    shapes.paint(canvas, points.box, voxels, hu, tissue)


def _draw_shoulder(canvas, chest, bone, marrow) -> None:
  """Paints scapulae and clavicles, which wide fields show."""
  for side in (-1, 1):
    middle = MIDLINE + 108 * side
    low = chest.to_patient([middle - 60, 55, 15])
    high = chest.to_patient([middle + 60, 190, 175])
    points = canvas.voxels.lattice(low, high, 3.0)
    if points is not None:
      b = chest.from_patient(points.at)
      x, y, z = b
      out = (x - np.float32(MIDLINE)) * side
      # A triangle, its tip down, on the ribs; thicker at its outer edge.
      blade = np.maximum(
        np.abs(out - 88 - 0.12 * (z - 100)) - 0.3 * (z - 20) + 6, z - 160
      )
      blade = np.maximum(blade, 60 - y)
      half = 1.5 + 3.0 * np.clip((out - 100) / 25, 0, 1)
      plate = shapes.meet(np.abs(cavity(b) - 15.5) - half, blade * 0.8, 2)
      for distance, hu, tissue in (
        (plate, 0.85 * bone, Tissue.BONE),
        (plate + 1.2, 1.2 * marrow, Tissue.MARROW),
      ):
        voxels = points.to_voxels(distance * chest.scale)
        shapes.paint(canvas, points.box, voxels, hu, tissue)
    rows = np.array(
      [
        [MIDLINE + 17 * side, front(128.0) - 8, 128],
        [MIDLINE + 60 * side, front(150.0) - 2, 152],
        [MIDLINE + 105 * side, 10, 168],
        [MIDLINE + 140 * side, 34, 184],
      ]
    )
    line = chest.to_patient(shapes.spline(rows, 10.0))
    radii = np.full(len(line), 5.6 * chest.scale)
    shapes.paint_tube(canvas, line, radii, bone, Tissue.BONE)
    shapes.paint_tube(canvas, line, radii - 1.6, marrow, Tissue.MARROW)
