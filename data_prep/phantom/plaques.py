"""Coronary artery disease: which plaques there are, and what they do."""

import dataclasses
from typing import Any

import numpy as np

from data_prep.errors import UserError
from data_prep.phantom.coronaries import STEP_MM, Vessel

SEVERITIES = ("clinical", "overt")
# How often a plaque sits in a segment, and where along it (shares of length).
_SITES = {
  "LM": (0.05, 0.35, 0.85),
  "LAD": (0.40, 0.07, 0.55),
  "LCx": (0.15, 0.1, 0.6),
  "RCA": (0.25, 0.1, 0.85),
  "D1": (0.05, 0.15, 0.5),
  "OM1": (0.05, 0.15, 0.5),
  "R-PDA": (0.03, 0.2, 0.5),
  "L-PDA": (0.03, 0.2, 0.5),
}
_CLINICAL = (0.28, 0.27, 0.21, 0.19, 0.05)
_OVERT = (0.0, 0.0, 0.3, 0.6, 0.1)
# The stenosis that each CAD-RADS category from 1 to 5 stands for.
_STENOSIS = ((0.08, 0.24), (0.25, 0.49), (0.5, 0.69), (0.7, 0.95), (1.0, 1.0))


@dataclasses.dataclass(frozen=True)
class Lesion:
  """One plaque.

  Attributes:
    segment: the vessel's name.
    middle_mm: way from the vessel's origin.
    length_mm: along the vessel.
    stenosis: share of the diameter lost, 0 to 1.
    kind: "calcified", "noncalcified" or "mixed".
    angle: of its thick side around the vessel, radians.
    remodelling: outer radius over the healthy one.
    eccentricity: 0 around the lumen, 1 all on one side.
    hu: of its main component.
    core_hu: of the low-attenuation core, or of the fibrous part.
    phase: of the calcium along the vessel.
  """

  segment: str
  middle_mm: float
  length_mm: float
  stenosis: float
  kind: str
  angle: float
  remodelling: float
  eccentricity: float
  hu: float
  core_hu: float
  phase: float

  def weight(self, way_mm: np.ndarray) -> np.ndarray:
    """Returns its shape along the vessel: 1 inside, 0 outside, smooth."""
    u = np.abs(np.asarray(way_mm) - self.middle_mm) / (self.length_mm / 2)
    return np.where(u < 1, np.cos(np.pi / 2 * np.clip(u, 0, 1) ** 2) ** 2, 0.0)


def cad_rads(stenosis: float) -> int:
  """Returns the CAD-RADS category, 1 to 5, of a plaque's stenosis, 0 to 1."""
  if stenosis >= 1:
    return 5
  return 1 + int(np.searchsorted([0.25, 0.5, 0.7], stenosis, side="right"))


def draw_lesions(
  rng: np.random.Generator, tree: dict[str, Vessel], severity: str
) -> list[Lesion]:
  """Draws the plaques of one patient.

  Args:
    rng: source of randomness.
    tree: the coronary tree.
    severity: "clinical", the mix of a clinic, or "overt", several long, dense
      and severe plaques.

  Raises:
    UserError: the severity is unknown.
  """
  if severity not in SEVERITIES:
    raise UserError(
      f"severity {severity!r} is unknown; known are {', '.join(SEVERITIES)}"
    )
  overt = severity == "overt"
  worst = 1 + int(rng.choice(5, p=_OVERT if overt else _CLINICAL))
  count = int(rng.integers(5, 9)) if overt else 1 + rng.poisson(0.6 * worst)
  lesions: list[Lesion] = []
  for k in range(count):
    lowest = 2 if overt else 1
    grade = worst if k == 0 else int(rng.integers(lowest, max(worst, 2) + 1))
    grade = min(grade, worst) if k == 0 or grade < 5 else 4
    lesion = _place(rng, tree, lesions, grade, overt)
    if lesion is not None:
      lesions.append(lesion)
  return sorted(
    lesions, key=lambda p: (list(tree).index(p.segment), p.middle_mm)
  )


def _place(rng, tree, others, grade: int, overt: bool) -> Lesion | None:
  """Draws one plaque of a CAD-RADS grade where there is room; else None."""
  names = [name for name in _SITES if name in tree]
  odds = np.array([_SITES[name][0] for name in names])
  for _ in range(60):
    name = str(rng.choice(names, p=odds / odds.sum()))
    _, first, last = _SITES[name]
    whole = STEP_MM * (len(tree[name].points) - 1)
    length = rng.uniform(16, 30) if overt else rng.uniform(4, 12 + 4 * grade)
    length = min(length, 0.6 * whole)
    middle = whole * rng.uniform(first, last)
    middle = float(np.clip(middle, length / 2 + 3, whole - length / 2 - 4))
    if middle < length / 2 + 1:
      continue
    clear = all(
      p.segment != name
      or abs(p.middle_mm - middle) > (p.length_mm + length) / 2 + 3
      for p in others
    )
    if clear:
      return _make(rng, name, middle, float(length), grade, overt)
  return None


def _make(rng, name, middle, length, grade, overt) -> Lesion:
  odds = (0.7, 0.1, 0.2) if overt else (0.4, 0.3, 0.3)
  kind = str(rng.choice(["calcified", "noncalcified", "mixed"], p=odds))
  calcium = rng.uniform(650, 1100) if overt else rng.uniform(550, 1250)
  return Lesion(
    segment=name,
    middle_mm=middle,
    length_mm=length,
    stenosis=float(rng.uniform(*_STENOSIS[grade - 1])),
    kind=kind,
    angle=float(rng.uniform(0, 2 * np.pi)),
    remodelling=float(
      rng.uniform(1.5, 1.9) if overt else rng.uniform(1.1, 1.5)
    ),
    eccentricity=float(rng.uniform(0.3, 0.95)),
    hu=float(rng.uniform(40, 115) if kind == "noncalcified" else calcium),
    core_hu=float(
      rng.uniform(2, 28) if kind == "noncalcified" else rng.uniform(40, 110)
    ),
    phase=float(rng.uniform(0, 2 * np.pi)),
  )


def diseased(
  vessel: Vessel, lesions: list[Lesion]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns what plaques make of a vessel.

  Args:
    vessel: the healthy one.
    lesions: those of this vessel.

  Returns:
    (lumen centre [N, 3] LPS mm, lumen radius [N] mm, outer radius [N] mm).
  """
  way = STEP_MM * np.arange(len(vessel.points))
  lumen, outer = vessel.radius.copy(), vessel.radius.copy()
  center = vessel.points.copy()
  binormal = np.cross(vessel.tangent, vessel.normal)
  for lesion in lesions:
    w = lesion.weight(way)
    lumen = lumen * (1 - lesion.stenosis * w)
    outer = outer * (1 + (lesion.remodelling - 1) * w)
    side = np.cos(lesion.angle) * vessel.normal
    side = side + np.sin(lesion.angle) * binormal
    # The plaque is thick on `side`, so the lumen moves the other way.
    room = 0.9 * lesion.eccentricity * (outer - lumen) * (w > 0)
    center = center - room[:, None] * side
  return center, lumen, outer


def to_row(lesion: Lesion, vessel: Vessel, volume_mm3: float) -> dict[str, Any]:
  """Returns a JSON-able row of the lesion table."""
  point = vessel.points[int(round(lesion.middle_mm / STEP_MM))]
  return {
    "segment": lesion.segment,
    "position_mm": [round(float(v), 2) for v in point],
    "length_mm": round(lesion.length_mm, 2),
    "stenosis": round(lesion.stenosis, 3),
    "plaque": lesion.kind,
    "cad_rads": cad_rads(lesion.stenosis),
    "from_origin_mm": round(lesion.middle_mm, 2),
    "remodelling": round(lesion.remodelling, 3),
    "eccentricity": round(lesion.eccentricity, 3),
    "hu": round(lesion.hu, 1),
    "core_hu": round(lesion.core_hu, 1),
    "volume_mm3": round(float(volume_mm3), 2),
  }
