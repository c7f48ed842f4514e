"""Synthetic CT coronary angiograms with their ground truth."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from data_prep.errors import UserError
from data_prep.geometry import GridSpec
from data_prep.phantom import (
  abdomen,
  acquisition,
  artifacts,
  bones,
  calcium,
  coronaries,
  heart,
  lumen,
  lungs,
  metal,
  plaques,
  shapes,
  thorax,
  vessels,
)
from data_prep.phantom.coronaries import SEGMENTS
from data_prep.phantom.population import (
  DOMINANCES,
  LIMITS,
  draw_patient,
  draw_scanner,
)
from data_prep.volume import Grid, Volume

__all__ = ["CLASSES", "EDITION", "SEGMENTS", "Phantom", "make_phantom"]

# Of the phantoms' anatomy and scanner: the same seed is another patient in
# another edition. 1 was that of cadjax 0.1 and 0.2.
EDITION = 2

CLASSES = {
  "background": 0,
  "aorta": lumen.AORTA,
  "coronary lumen": lumen.LUMEN,
  "stable plaque": lumen.STABLE,
  "unstable plaque": lumen.UNSTABLE,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Phantom:
  """A synthetic scan and what is true of it.

  Attributes:
    volume: int16 HU.
    tissues: uint8 [D, H, W], the values of `Tissue`, of which the first five
      are `CLASSES`.
    segments: uint8 [D, H, W], the numbers of `SEGMENTS`, 0 elsewhere; a
      plaque belongs to its segment.
    centerlines: segment name -> [N, 4], LPS mm (x, y, z) along the lumen's
      middle from the origin on, and the lumen's radius in mm.
    scct: segment name -> [N] SCCT segment at each place of its centreline, a
      key of `scct.SEGMENTS`, or "".
    lesions: one JSON-able dict per plaque: segment, scct, position_mm,
      length_mm, stenosis (0 to 1), plaque ("calcified", "noncalcified",
      "mixed"), cad_rads, and how it was made.
    label: 0 normal, 1 coronary artery disease.
    cad_rads: 0 to 5, of the worst stenosis.
    params: all that was drawn: "patient", "scanner", "coronaries", "seed",
      "severity", "edition".
  """

  volume: Volume
  tissues: np.ndarray
  segments: np.ndarray
  centerlines: dict[str, np.ndarray]
  scct: dict[str, np.ndarray]
  lesions: list[dict[str, Any]]
  label: int
  cad_rads: int
  params: dict[str, Any]

  @property
  def mask(self) -> np.ndarray:
    """uint8 [D, H, W], the numbers of `CLASSES`; 0 in other tissues."""
    return np.where(self.tissues < len(CLASSES), self.tissues, np.uint8(0))

  def lesion_line(self, lesion: Mapping[str, Any]) -> np.ndarray:
    """Returns the centreline along a lesion, [K, 3] LPS mm.

    Args:
      lesion: a row of `lesions`.
    """
    line = self.centerlines[lesion["segment"]][:, :3]
    way = coronaries.STEP_MM * np.arange(len(line))
    away = np.abs(way - lesion["from_origin_mm"])
    return line[away <= lesion["length_mm"] / 2]


def make_phantom(
  seed: int,
  *,
  label: int | None = None,
  severity: str = "clinical",
  grid: GridSpec | Grid | None = None,
  scanner: dict[str, Any] | None = None,
  population: dict[str, Any] | None = None,
  keep: Collection[int] | None = None,
) -> Phantom:
  """Makes one synthetic CT coronary angiogram.

  The same seed is the same patient on every grid, and, but for the plaques,
  with either label. With `keep` it is the same patient with some of the
  plaques alone, and everything else the same, down to the noise in each voxel:
  what a lesion changes is the difference of two of them.

  Args:
    seed: 0 or more.
    label: 0 normal, 1 coronary artery disease; drawn evenly if None.
    severity: "clinical" or "overt"; see `plaques.draw_lesions`.
    grid: a recipe or voxels to render on; the scanner's own if None.
    scanner: replaces values of `population.draw_scanner`.
    population: replaces values of `population.draw_patient`; "dominance"
      ("right", "left", "co") may be among them.
    keep: which of the lesions are there, numbers in the table of the patient
      with all of them; all if None.

  Returns:
    The scan with its masks, centrelines and lesions.

  Raises:
    UserError: an unknown label, severity or parameter.
  """
  if label not in (None, 0, 1):
    raise UserError(f"label {label!r}: must be 0 (normal) or 1 (CAD)")
  if severity not in plaques.SEVERITIES:
    raise UserError(
      f"severity {severity!r} is unknown; known are"
      f" {', '.join(plaques.SEVERITIES)}"
    )
  streams = _streams(seed)
  overrides = dict(population or {})
  dominance = overrides.pop("dominance", None)
  patient = draw_patient(streams["patient"], overrides, severity)
  scan = draw_scanner(streams["scanner"], scanner)
  drawn = int(streams["label"].random() < 0.5)
  label = drawn if label is None else int(label)
  body = heart.make_heart(patient)
  tree, about_tree = coronaries.make_tree(body, streams["tree"], dominance)
  found = []
  if label:
    found = plaques.draw_lesions(streams["lesions"], tree, severity)
  if keep is not None:
    if unknown := sorted(set(keep) - set(range(len(found)))):
      raise UserError(
        f"keep: phantom {seed} has {len(found)} lesions, and no number"
        f" {', '.join(map(str, unknown))}"
      )
    found = [lesion for k, lesion in enumerate(found) if k in keep]
    label = int(bool(found))
  voxels = acquisition.place_grid(grid, body.center, scan)
  steps = artifacts.draw_steps(body.center, scan, streams["steps"])
  volume, tissues, segments, sizes = _render(
    voxels, body, patient, scan, tree, found, steps, streams
  )
  scct = coronaries.scct_segments(tree)
  lesions = [
    plaques.to_row(lesion, tree[lesion.segment], size, scct[lesion.segment])
    for lesion, size in zip(found, sizes, strict=True)
  ]
  for row in lesions:
    seen = steps.move(np.array(row["position_mm"]))
    row["position_mm"] = [round(float(v), 2) for v in seen]
  return Phantom(
    volume=volume,
    tissues=tissues,
    segments=segments,
    centerlines=_centerlines(tree, found, steps),
    scct=scct,
    lesions=lesions,
    label=label,
    cad_rads=max((row["cad_rads"] for row in lesions), default=0),
    params={
      "seed": int(seed),
      "edition": EDITION,
      "severity": severity,
      "patient": patient,
      "scanner": scan,
      "coronaries": about_tree,
    },
  )


def check_fixed(what: str, fixed: dict[str, Any]) -> None:
  """Checks values to be fixed for all phantoms of a data set.

  Args:
    what: "scanner" or "population".
    fixed: of `make_phantom`; one value each, a number or, of dominance, a
      word.

  Raises:
    UserError: an unknown name, or a value that cannot be one or is outside
      `population.LIMITS`.
  """
  rng = np.random.default_rng(0)
  values = dict(fixed)
  dominance = values.pop("dominance", None) if what == "population" else None
  if dominance not in (None, *DOMINANCES):
    raise UserError(
      f"--population: dominance={dominance} is none of {', '.join(DOMINANCES)}"
    )
  drawn = {"scanner": draw_scanner, "population": draw_patient}[what](rng)
  unknown = sorted(set(values) - set(drawn))
  if unknown:
    known = [name for name, value in drawn.items() if np.isscalar(value)]
    raise UserError(
      f"--{what}: phantoms have no {', '.join(unknown)}; known are"
      f" {', '.join(known)}"
    )
  for name, value in values.items():
    if not (np.isscalar(drawn[name]) and isinstance(value, float | int)):
      raise UserError(f"--{what}: {name}={value} cannot be; give a number")
    low, high = LIMITS[what][name]
    if not low <= value <= high:
      raise UserError(
        f"--{what}: {name}={value:g} is out of range; it is {low:g} to {high:g}"
      )


def _streams(seed: int) -> dict[str, np.random.Generator]:
  """Returns one generator per purpose, so that none disturbs another."""
  names = (
    "patient",
    "scanner",
    "label",
    "tree",
    "lesions",
    "lungs",
    "calcium",
    "texture",
    "noise",
    "motion",
    "abdomen",
    "artifacts",
    "metal",
    "steps",
  )
  children = np.random.SeedSequence(seed).spawn(len(names))
  return dict(zip(names, map(np.random.default_rng, children), strict=True))


def _render(voxels, body, patient, scan, tree, found, steps, streams):
  """Returns (volume, tissues, segments, mm3 of each plaque)."""
  canvas = shapes.blank(voxels, scan["blur_mm"])
  texture = acquisition.Texture(streams["texture"])
  chest = thorax.Thorax(body.center, patient["body_scale"], patient)
  thorax.draw_wall(canvas, chest, texture)
  abdomen.draw_abdomen(canvas, chest, streams["abdomen"], scan, texture)
  thorax.draw_mediastinum(canvas, chest, body, texture)
  bones.draw_bones(canvas, chest, texture)
  lungs.draw_lungs(canvas, chest, body, streams["lungs"], scan)
  beat = heart.scene(canvas, body)
  if beat is not None:
    stems = [(vessel.points, vessel.radius) for vessel in tree.values()]
    stems.append(vessels.coronary_sinus(body))
    heart.draw_fat(canvas, body, beat, stems, texture)
    vessels.draw_beneath(canvas, body, scan)
    heart.draw_heart(canvas, body, beat, scan, texture)
  aorta = vessels.draw_vessels(canvas, body, scan)
  vessels.draw_wall_vessels(canvas, body, scan, bones.rib_tubes(chest)[0])
  way = streams["motion"].normal(size=3)
  motion = scan["motion_mm"] * way / np.linalg.norm(way)
  mask, segments, sizes = lumen.draw_coronaries(
    canvas, tree, found, scan["contrast_hu"], motion, scan["blur_mm"]
  )
  calcium.draw_calcium(canvas, body, chest, streams["calcium"])
  metal.draw_table(canvas, chest, scan["table_mm"])
  # Calcium on a wall hides no vessel from the masks.
  tissues = canvas.tissues
  tissues[aorta <= 0] = lumen.AORTA
  spots = metal.draw_metal(canvas, body, chest, streams["metal"])
  np.copyto(tissues, mask, where=mask > 0)
  steps.apply(canvas, [segments])
  artifacts.draw_artifacts(
    canvas, body, chest, spots, scan, streams["artifacts"], texture
  )
  hu = canvas.hu
  if scan["hidden_mm"]:
    hidden = [
      (
        steps.move(vessel.points),
        np.full(len(vessel.points), scan["hidden_mm"]),
      )
      for vessel in tree.values()
    ]
    distance = shapes.tube_distance(canvas.voxels, hidden, 0)
    hu[distance <= 0] = patient["fat_hu"]
  hu += acquisition.noise(voxels, scan, streams["noise"], patient)
  np.clip(np.rint(hu, out=hu), -1024, 3071, out=hu)
  return Volume(hu.astype(np.int16), voxels), tissues, segments, sizes


def _centerlines(tree, found, steps) -> dict[str, np.ndarray]:
  lines = {}
  for name, vessel in tree.items():
    own = [lesion for lesion in found if lesion.segment == name]
    center, radius, _ = plaques.diseased(vessel, own)
    lines[name] = np.column_stack([steps.move(center), radius])
  return lines
