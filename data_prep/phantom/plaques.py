"""Coronary artery disease: which plaques there are, and what they do."""

import dataclasses
from typing import Any

import numpy as np
from scipy import special

from data_prep.errors import UserError
from data_prep.phantom.coronaries import STEP_MM, Vessel

SEVERITIES = ("clinical", "overt")
# What is drawn of each artery: how often there is calcium in it, the median
# mm3 and the deviation of the logarithm. The shares of patients without any,
# the medians and the totals are then those of the COCA data set (213 patients:
# any 57 %; LM 17, LAD 53, LCx 29, RCA 37 %; median Agatston scores, about as
# large as mm3, 49, 60, 29 and 41, of all 103). Mean volumes are a third to a
# half of COCA's (LM 220, LAD 272, LCx 224, RCA 630 mm3), which count what is
# blurred over 130 HU; no more has room in a wall.
_CALCIUM = {
  "LM": (0.285, 40.0, 1.8),
  "LAD": (0.885, 55.0, 1.8),
  "LCx": (0.485, 14.0, 2.1),
  "RCA": (0.62, 20.0, 2.3),
}
# The part of the spread that all arteries of a patient have in common.
_COMMON = 0.75
# Of patients with plaque; the others have none that is calcified.
_ANY_CALCIUM = 0.87
# How often plaque without calcium sits in an artery.
_SOFT = {"LM": 0.05, "LAD": 0.45, "LCx": 0.2, "RCA": 0.3}
# Segments of an artery and how often a plaque sits there.
_BRANCHES = {
  "LM": {"LM": 1.0},
  "LAD": {"LAD": 0.84, "D1": 0.12, "D2": 0.04},
  "LCx": {"LCx": 0.74, "OM1": 0.16, "OM2": 0.05, "L-PDA": 0.05},
  "RCA": {"RCA": 0.92, "R-PDA": 0.08},
}
# How often a plaque of `overt` sits in a segment.
_OVERT_SITES = {
  "LM": 0.05,
  "LAD": 0.40,
  "LCx": 0.15,
  "RCA": 0.25,
  "D1": 0.05,
  "OM1": 0.05,
  "R-PDA": 0.03,
  "L-PDA": 0.03,
}
# Where along a segment plaque sits, in shares of its length.
_ALONG = {
  "LM": (0.2, 0.8),
  "LAD": (0.07, 0.55),
  "LCx": (0.1, 0.6),
  "RCA": (0.1, 0.85),
}
_ALONG_BRANCH = (0.1, 0.5)
_CLINICAL = (0.28, 0.27, 0.21, 0.19, 0.05)
_OVERT = (0.0, 0.0, 0.3, 0.6, 0.1)
# Waves of a plaque's surface and of the calcium in it: how many times around
# the vessel, and mm along it.
_WAVES = ((1, 17.0), (2, 12.3), (0, 9.1), (3, 7.3), (1, 4.7))
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
    phase: of the irregularities, radians.
    calcium: share of its volume that is calcified.
    level: of `lumps` above which it is calcified.
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
  calcium: float = 0.0
  level: float = np.inf

  def lumps(self, way_mm: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Returns smooth noise, about -1 to 1, over a vessel's wall.

    Args:
      way_mm: along the vessel.
      turn: around it, radians.
    """
    value = 0.0
    for k, (times, length_mm) in enumerate(_WAVES):
      along = 2 * np.pi / length_mm * (way_mm - self.middle_mm)
      value = value + np.cos(times * turn + along + (2 * k + 3) * self.phase)
    return value / np.sqrt(2 * len(_WAVES))

  def outer(
    self, way_mm: np.ndarray, turn: np.ndarray, healthy: np.ndarray
  ) -> np.ndarray:
    """Returns the vessel's outer radius in mm, with the plaque in its wall.

    Args:
      way_mm: along the vessel.
      turn: around it, radians.
      healthy: radius in mm of the healthy vessel.
    """
    away = 0.5 - 0.5 * np.cos(turn - self.angle)
    bulge = 1 - self.eccentricity * away
    bulge = bulge * (1 + 0.7 * self.lumps(way_mm, turn))
    swell = (self.remodelling - 1) * self.weight(way_mm) * bulge
    return healthy * (1 + np.maximum(swell, 0))

  def calcified(self, way_mm: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Returns what is positive where the plaque is calcified."""
    thick = np.cos(turn - self.angle) - 1.5 * (1 - self.weight(way_mm))
    return self.lumps(way_mm, turn) + thick - self.level

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

  Returns:
    At least one plaque; all of them may be free of calcium.

  Raises:
    UserError: the severity is unknown.
  """
  if severity not in SEVERITIES:
    raise UserError(
      f"severity {severity!r} is unknown; known are {', '.join(SEVERITIES)}"
    )
  overt = severity == "overt"
  plans = _plan_overt(rng, tree) if overt else _plan_clinical(rng, tree)
  lesions: list[Lesion] = []
  for plan in plans:
    lesion = _place(rng, tree, lesions, plan, overt)
    if lesion is not None:
      lesions.append(lesion)
  return sorted(
    lesions, key=lambda p: (list(tree).index(p.segment), p.middle_mm)
  )


@dataclasses.dataclass
class _Plan:
  """A plaque to be: where it may sit, its kind, its calcium, its grade."""

  sites: dict[str, float]
  kind: str
  mm3: float | None
  grade: int


def _plan_overt(rng, tree) -> list[_Plan]:
  worst = 1 + int(rng.choice(5, p=_OVERT))
  plans = []
  for k in range(int(rng.integers(5, 9))):
    kind = str(
      rng.choice(["calcified", "noncalcified", "mixed"], p=(0.7, 0.1, 0.2))
    )
    grade = worst if k == 0 else min(int(rng.integers(2, worst + 1)), 4)
    plans.append(_Plan(_OVERT_SITES, kind, None, grade))
  return plans


def _plan_clinical(rng, tree) -> list[_Plan]:
  """Draws the calcium of each artery, then plaque without any, then grades."""
  burden = rng.normal()
  noise = lambda share: share * burden + np.sqrt(1 - share**2) * rng.normal()  # noqa: E731
  plans = []
  if rng.random() < _ANY_CALCIUM:
    while not plans:
      for artery, (share, median, spread) in _CALCIUM.items():
        has = special.ndtr(noise(_COMMON)) > 1 - share
        total = float(median * np.exp(spread * noise(_COMMON)))
        if has:
          plans += _split(rng, artery, total)
  soft = rng.poisson(0.4 * len(plans)) if plans else 1 + rng.poisson(0.6)
  for _ in range(soft):
    artery = str(rng.choice(list(_SOFT), p=list(_SOFT.values())))
    plans.append(_Plan(_BRANCHES[artery], "noncalcified", None, 1))
  rank = special.ndtr(noise(0.5))
  worst = 1 + int(np.searchsorted(np.cumsum(_CLINICAL)[:-1], rank))
  # The narrowest plaque is placed first, so that there is room for it.
  size = [1.0 + np.log1p(plan.mm3 or 20.0) for plan in plans]
  first = int(rng.choice(len(plans), p=np.array(size) / np.sum(size)))
  plans.insert(0, plans.pop(first))
  for k, plan in enumerate(plans):
    other = min(int(rng.integers(1, max(worst, 2) + 1)), worst, 4)
    plan.grade = worst if k == 0 else other
  return plans


def _split(rng, artery: str, mm3: float) -> list[_Plan]:
  """Shares an artery's calcium out among plaques."""
  count = 1 + sum(mm3 > limit for limit in (80, 250, 600)) + rng.poisson(0.2)
  # A short left main has room for one.
  count = 1 if artery == "LM" else count
  parts = mm3 * rng.dirichlet(np.full(count, 3.0))
  kinds = rng.choice(["calcified", "mixed"], size=count, p=(0.57, 0.43))
  return [
    _Plan(_BRANCHES[artery], str(kind), float(part), 1)
    for kind, part in zip(kinds, parts, strict=True)
  ]


def _place(rng, tree, others, plan: _Plan, overt: bool) -> Lesion | None:
  """Draws one plaque where there is room for it; else None."""
  sites = {name: odds for name, odds in plan.sites.items() if name in tree}
  odds = np.array(list(sites.values()))
  for attempt in range(60):
    name = str(rng.choice(list(sites), p=odds / odds.sum()))
    vessel = tree[name]
    whole = STEP_MM * (len(vessel.points) - 1)
    lesion = _make(rng, vessel, plan, overt)
    # Where there is little room left, a plaque is shorter.
    length = min(lesion.length_mm * 0.98**attempt, 0.6 * whole)
    ends = (1.0, 0.5) if name == "LM" else (3.0, 4.0)
    first, last = np.array(_ALONG.get(name, _ALONG_BRANCH)) * whole
    first = max(first, length / 2 + ends[0])
    last = min(last, whole - length / 2 - ends[1])
    middle = float(rng.uniform(first, max(first, last)))
    if middle + length / 2 + ends[1] > whole:
      continue
    clear = all(
      p.segment != name
      or abs(p.middle_mm - middle) > (p.length_mm + length) / 2 + 1
      for p in others
    )
    if clear:
      lesion = dataclasses.replace(lesion, middle_mm=middle, length_mm=length)
      return _calcify(lesion, vessel, plan, overt, float(rng.random()))
  return None


def _make(rng, vessel: Vessel, plan: _Plan, overt: bool) -> Lesion:
  """Draws a plaque's form; how much of it is calcified comes later."""
  soft = plan.kind == "noncalcified"
  length = rng.uniform(16, 30) if overt else rng.uniform(4, 12 + 4 * plan.grade)
  calcium = rng.uniform(650, 1100) if overt else rng.uniform(550, 1250)
  lesion = Lesion(
    segment=vessel.name,
    middle_mm=STEP_MM * (len(vessel.points) - 1) / 2,
    length_mm=float(length),
    stenosis=float(rng.uniform(*_STENOSIS[plan.grade - 1])),
    kind=plan.kind,
    angle=float(rng.uniform(0, 2 * np.pi)),
    remodelling=float(
      rng.uniform(1.6, 2.0) if overt else rng.uniform(1.1, 1.5)
    ),
    eccentricity=float(rng.uniform(0.5, 0.95)),
    hu=float(rng.uniform(40, 115) if soft else calcium),
    core_hu=float(rng.uniform(2, 28) if soft else rng.uniform(40, 110)),
    phase=float(rng.uniform(0, 2 * np.pi)),
  )
  if plan.mm3 is None:
    return lesion
  # As long, or as thin, as its calcium asks.
  share = rng.uniform(0.65, 0.9) if plan.kind == "calcified" else 0.35
  room = plan.mm3 / share / _cells(lesion, vessel)[0].sum()
  longest = 34.0 if plan.kind == "calcified" else 24.0
  length = float(np.clip(lesion.length_mm * room, 3.0, longest))
  room *= lesion.length_mm / length
  swell = (lesion.remodelling - 1) * float(np.clip(room, 0.2, 1.6))
  return dataclasses.replace(
    lesion, length_mm=length, remodelling=1 + min(swell, 0.7)
  )


def _calcify(lesion, vessel, plan: _Plan, overt: bool, draw: float) -> Lesion:
  """Says how much of a plaque is calcified, and what kind it is by that."""
  if plan.kind == "noncalcified":
    return lesion
  volume, field = _cells(lesion, vessel)
  if plan.mm3 is None:
    low, high = (0.7, 0.92) if plan.kind == "calcified" else (0.25, 0.6)
    share = low + draw * (high - low)
  else:
    share = float(np.clip(plan.mm3 / volume.sum(), 0.03, 0.95))
  # A calcified plaque may have some fibrous tissue; more of it is a mixed one.
  kind = "calcified" if share > 0.6 else "mixed"
  order = np.argsort(-field)
  passed = np.cumsum(volume[order]) / volume.sum()
  level = float(field[order][np.searchsorted(passed, share)])
  return dataclasses.replace(lesion, kind=kind, calcium=share, level=level)


def _cells(lesion: Lesion, vessel: Vessel) -> tuple[np.ndarray, np.ndarray]:
  """Returns mm3 and `calcified` of small parts of a plaque, level 0."""
  half, middle = lesion.length_mm / 2, lesion.middle_mm
  way = np.linspace(middle - half, middle + half, 41)[:, None, None]
  turn = np.linspace(0, 2 * np.pi, 32, endpoint=False)[None, :, None]
  share = (np.arange(12)[None, None] + 0.5) / 12
  rows = np.clip(way / STEP_MM, 0, len(vessel.points) - 1)
  healthy = np.interp(rows, np.arange(len(vessel.points)), vessel.radius)
  outer = lesion.outer(way, turn, healthy)
  rho = share * outer
  inner = healthy * (1 - lesion.stenosis * lesion.weight(way))
  aside = lesion.eccentricity * (healthy - inner)
  # The lumen's middle lies on the side that is away from the plaque.
  x = rho * np.cos(turn - lesion.angle) + aside
  outside = np.hypot(x, rho * np.sin(turn - lesion.angle)) > inner
  area = rho * outer / 12 * (2 * np.pi / 32)
  volume = np.where(outside, area, 0) * lesion.length_mm / 41
  field = dataclasses.replace(lesion, level=0.0).calcified(way, turn)
  keep = outside & (lesion.weight(way) > 0)
  return volume[keep], np.broadcast_to(field, volume.shape)[keep]


def diseased(
  vessel: Vessel, lesions: list[Lesion]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns what plaques make of a vessel.

  Args:
    vessel: the healthy one.
    lesions: those of this vessel.

  Returns:
    (lumen centre [N, 3] LPS mm, lumen radius [N] mm, greatest outer radius [N]
    mm).
  """
  way = STEP_MM * np.arange(len(vessel.points))
  lumen, outer = vessel.radius.copy(), vessel.radius.copy()
  center = vessel.points.copy()
  binormal = np.cross(vessel.tangent, vessel.normal)
  around = np.linspace(0, 2 * np.pi, 24)[:, None]
  for lesion in lesions:
    w = lesion.weight(way)
    narrow = vessel.radius * lesion.stenosis * w
    lumen = lumen - narrow
    outer = np.maximum(outer, lesion.outer(way, around, vessel.radius).max(0))
    side = np.cos(lesion.angle) * vessel.normal
    side = side + np.sin(lesion.angle) * binormal
    # The plaque is thick on `side`, so the lumen moves the other way.
    center = center - (lesion.eccentricity * narrow)[:, None] * side
  return center, lumen, outer


def to_row(
  lesion: Lesion, vessel: Vessel, volume_mm3: float, scct: np.ndarray
) -> dict[str, Any]:
  """Returns a JSON-able row of the lesion table.

  Args:
    lesion: the plaque.
    vessel: on which it is.
    volume_mm3: as it was drawn.
    scct: [N] SCCT segment at each of the vessel's points.
  """
  place = int(round(lesion.middle_mm / STEP_MM))
  point, healthy = vessel.points[place], float(vessel.radius[place])
  lumen = healthy * (1 - lesion.stenosis)
  return {
    "segment": lesion.segment,
    "scct": str(scct[place]),
    "position_mm": [round(float(v), 2) for v in point],
    "length_mm": round(lesion.length_mm, 2),
    "stenosis": round(lesion.stenosis, 3),
    "plaque": lesion.kind,
    "cad_rads": cad_rads(lesion.stenosis),
    "from_origin_mm": round(lesion.middle_mm, 2),
    "remodelling": round(lesion.remodelling, 3),
    "eccentricity": round(lesion.eccentricity, 3),
    "reference_mm": round(2 * healthy, 2),
    "lumen_mm2": round(float(np.pi * lumen**2), 2),
    "hu": round(lesion.hu, 1),
    "core_hu": round(lesion.core_hu, 1),
    "volume_mm3": round(float(volume_mm3), 2),
    "calcium_mm3": round(float(volume_mm3) * lesion.calcium, 2),
  }
