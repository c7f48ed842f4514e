"""CAD-RADS 2.0 of a scan: category, plaque burden, modifiers.

The rules of Cury et al., J. Cardiovasc. Comput. Tomogr. 16 (2022) 536-557,
tables 1 to 3, for stable chest pain. They take what is known of each segment
and know nothing of images, so that they grade a phantom's truth as they grade
what was found.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from data_prep import scct

# From the mildest to the worst.
CATEGORIES = ("0", "1", "2", "3", "4A", "4B", "5")
NONDIAGNOSTIC = "N"
# Shares of the diameter at which categories 2, 3, 4 and 5 begin.
GRADES = (0.25, 0.5, 0.7, 1.0)
_MILD, _MODERATE, SEVERE, _OCCLUDED = GRADES
# A left main that has lost half of its diameter is 4B.
_LEFT_MAIN = 0.5
# From here on the rest need not be diagnostic: "3/N", and not "N".
_OBSTRUCTIVE = CATEGORIES.index("3")
_ARTERIES = ("LAD", "LCx", "RCA")
# Least segment involvement score, and least Agatston score, of P1 to P4.
_BY_SEGMENTS = (1, 3, 5, 8)
_BY_CALCIUM = (1, 101, 301, 1000)
# Of the features of high risk, so many make a plaque vulnerable.
HIGH_RISK_FEATURES = 2
WORDS = {
  "0": "no plaque, no stenosis",
  "1": "minimal stenosis, below 25 %, or plaque without stenosis",
  "2": "mild stenosis, 25 to 49 %",
  "3": "moderate stenosis, 50 to 69 %",
  "4A": "severe stenosis, 70 to 99 %, of one or two arteries",
  "4B": "left main of 50 % or more, or severe stenosis of three arteries",
  "5": "total occlusion",
  "N": "not diagnostic: an obstructive stenosis cannot be excluded",
}
BURDEN_WORDS = {
  "": "no plaque",
  "P1": "mild amount of plaque",
  "P2": "moderate amount of plaque",
  "P3": "severe amount of plaque",
  "P4": "extensive amount of plaque",
}


@dataclasses.dataclass(frozen=True)
class SegmentReading:
  """What is known of one coronary segment.

  Attributes:
    segment: a key of `scct.SEGMENTS`.
    stenosis: largest share of the diameter lost, 0 to 1; None where it cannot
      be measured.
    plaque: whether there is any.
    high_risk: features of high risk of its worst plaque, such as "positive
      remodelling".
    doubt: why a stenosis may be missed there; "" where it is judged.
  """

  segment: str
  stenosis: float | None = 0.0
  plaque: bool = False
  high_risk: tuple[str, ...] = ()
  doubt: str = ""


@dataclasses.dataclass(frozen=True)
class CadRads:
  """The category of a scan, and what it rests on.

  Attributes:
    category: of `CATEGORIES`, or "N".
    burden: "P1" to "P4", "" without plaque.
    burden_by: what the burden rests on, in words.
    modifiers: of "N" and "HRP", in this order.
    stenosis: the worst share of the diameter that was measured, 0 to 1.
    segment: where that is; "" where nothing is narrowed.
    severe: the arteries (LM, LAD, LCx, RCA) with 70 % or more.
    segments_involved: number of segments with plaque, the segment involvement
      score.
    doubts: why a stenosis may be missed, in sentences; each makes the scan N
      or adds N.
  """

  category: str
  burden: str
  burden_by: str
  modifiers: tuple[str, ...]
  stenosis: float
  segment: str
  severe: tuple[str, ...]
  segments_involved: int
  doubts: tuple[str, ...]

  @property
  def text(self) -> str:
    """The way that it is written, such as "CAD-RADS 4A/P2/HRP"."""
    parts = [self.category, self.burden, *self.modifiers]
    return "CAD-RADS " + "/".join(part for part in parts if part)

  @property
  def words(self) -> str:
    """What the category says, in words."""
    return WORDS[self.category]

  @property
  def is_obstructive(self) -> bool:
    """Whether it is 3 or above."""
    known = self.category != NONDIAGNOSTIC
    return known and CATEGORIES.index(self.category) >= _OBSTRUCTIVE

  def to_dict(self) -> dict[str, Any]:
    """Returns one flat JSON object."""
    row = dataclasses.asdict(self)
    return {"text": self.text, "words": self.words, **row}


def grade(
  readings: Sequence[SegmentReading],
  *,
  doubts: Sequence[str] = (),
  agatston: float | None = None,
) -> CadRads:
  """Grades a scan.

  Args:
    readings: of the segments that there are; those that a patient does not
      have, and those below 1.5 mm, are left out.
    doubts: why a stenosis may be missed in the scan as a whole.
    agatston: score of a scan without contrast, which then says the burden.

  Returns:
    The worst segment's category. A doubt makes it "N" where nothing
    obstructive (50 % or more) was seen, and else adds the modifier N. Calcium
    is plaque, also where no segment shows any.
  """
  worst = max(readings, key=lambda one: one.stenosis or 0.0, default=None)
  stenosis = (worst.stenosis or 0.0) if worst else 0.0
  involved = len({one.segment for one in readings if one.plaque})
  category = _category(readings, involved > 0 or bool(agatston))
  doubts = (
    *doubts,
    *(f"{one.segment}: {one.doubt}." for one in readings if one.doubt),
  )
  modifiers = []
  if doubts and CATEGORIES.index(category) < _OBSTRUCTIVE:
    category = NONDIAGNOSTIC
  elif doubts:
    modifiers.append("N")
  if any(len(one.high_risk) >= HIGH_RISK_FEATURES for one in readings):
    modifiers.append("HRP")
  if agatston is None or (agatston < 1 and involved):
    burden = _burden(involved, _BY_SEGMENTS)
    by = f"{involved} segment{'' if involved == 1 else 's'} with plaque"
    # Plaque without calcium is plaque, too.
    by += "" if agatston is None else "; Agatston score 0"
  else:
    burden = _burden(agatston, _BY_CALCIUM)
    by = f"Agatston score {agatston:.0f}"
  return CadRads(
    category=category,
    burden=burden,
    burden_by=by,
    modifiers=tuple(modifiers),
    stenosis=stenosis,
    segment=worst.segment if worst and stenosis > 0 else "",
    severe=_arteries(readings, SEVERE),
    segments_involved=involved,
    doubts=doubts,
  )


def of_stenosis(stenosis: float, *, plaque: bool = True) -> str:
  """Returns the category of one narrowing that is alone in its patient."""
  if stenosis >= _OCCLUDED:
    return "5"
  if stenosis >= SEVERE:
    return "4A"
  if stenosis >= _MODERATE:
    return "3"
  if stenosis >= _MILD:
    return "2"
  return "1" if plaque else "0"


def percent(stenosis: float) -> int:
  """Returns a share of the diameter in whole per cent, rounded down.

  A stenosis is then never written as one of the next grade: 0.699 is moderate,
  and 69 %.
  """
  return int(100 * stenosis + 1e-6)


def _category(readings: Sequence[SegmentReading], plaque: bool) -> str:
  of_each = [
    of_stenosis(one.stenosis or 0.0, plaque=plaque) for one in readings
  ]
  if _arteries(readings, _LEFT_MAIN)[:1] == ("LM",):
    of_each.append("4B")
  if set(_ARTERIES) <= set(_arteries(readings, SEVERE)):
    of_each.append("4B")
  return max(of_each, key=CATEGORIES.index, default="1" if plaque else "0")


def _arteries(
  readings: Sequence[SegmentReading], least: float
) -> tuple[str, ...]:
  """Returns the arteries with a stenosis of `least` or more."""
  found = {
    scct.SEGMENTS[one.segment].artery
    for one in readings
    if (one.stenosis or 0.0) >= least
  }
  return tuple(name for name in ("LM", *_ARTERIES) if name in found)


def _burden(value: float, limits: Sequence[float]) -> str:
  reached = sum(value >= limit for limit in limits)
  return f"P{reached}" if reached else ""
