"""The coronary segments of the SCCT: names, territories, borders.

Leipsic et al., J. Cardiovasc. Comput. Tomogr. 8 (2014) 342-358, figure 1: 18
segments. L-PDA and L-PLB are those of a left-dominant heart, R-PDA and R-PLB
those of a right-dominant one. Septals, the conus, right ventricular and acute
marginal branches are none of them.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Segment:
  """One of the 18.

  Attributes:
    number: of the SCCT.
    words: its name.
    artery: LM, LAD, LCx or RCA, for whose territory a stenosis counts.
  """

  number: int
  words: str
  artery: str


SEGMENTS = {
  "pRCA": Segment(1, "proximal right coronary artery", "RCA"),
  "mRCA": Segment(2, "mid right coronary artery", "RCA"),
  "dRCA": Segment(3, "distal right coronary artery", "RCA"),
  "R-PDA": Segment(4, "right posterior descending artery", "RCA"),
  "LM": Segment(5, "left main artery", "LM"),
  "pLAD": Segment(6, "proximal left anterior descending artery", "LAD"),
  "mLAD": Segment(7, "mid left anterior descending artery", "LAD"),
  "dLAD": Segment(8, "distal left anterior descending artery", "LAD"),
  "D1": Segment(9, "first diagonal branch", "LAD"),
  "D2": Segment(10, "second diagonal branch", "LAD"),
  "pCx": Segment(11, "proximal left circumflex artery", "LCx"),
  "OM1": Segment(12, "first obtuse marginal branch", "LCx"),
  "dCx": Segment(13, "distal left circumflex artery", "LCx"),
  "OM2": Segment(14, "second obtuse marginal branch", "LCx"),
  "L-PDA": Segment(15, "left posterior descending artery", "LCx"),
  "R-PLB": Segment(16, "right posterolateral branch", "RCA"),
  "RI": Segment(17, "ramus intermedius", "LCx"),
  "L-PLB": Segment(18, "left posterolateral branch", "LCx"),
}
ARTERIES = ("LM", "LAD", "LCx", "RCA")
# To the right, the front and below, LPS: there the right artery turns from the
# front of the heart to its diaphragmatic side.
_ACUTE_MARGIN = np.array([-1.0, -1.0, -1.0])


def acute_margin(line_mm: np.ndarray) -> int:
  """Returns where a right artery, [N, 3] LPS mm, passes the acute margin.

  The place that lies farthest to the right, front and below.
  """
  return int((line_mm @ _ACUTE_MARGIN).argmax())


def along(
  artery: str, line_mm: np.ndarray, takeoffs: Sequence[int]
) -> np.ndarray:
  """Names the stretches of a main artery.

  LAD: proximal to the first branch, mid for half of the rest; without a
  branch, thirds. LCx: proximal to the first marginal; without one, half. RCA:
  proximal for half of the way to the acute margin, mid to there, distal to the
  posterior descending artery, where the line is taken to end.

  Args:
    artery: LM, LAD, LCx or RCA.
    line_mm: [N, 3] LPS, its centreline in equal steps from its origin to its
      end.
    takeoffs: indices into the line where its branches spring off: the LAD's
      diagonals and septals, the LCx's marginals.

  Returns:
    [N] keys of `SEGMENTS`, as str.
  """
  count = len(line_mm)
  place = np.arange(count)
  if artery == "LM":
    return np.full(count, "LM")
  if artery == "LAD":
    first = min(takeoffs, default=count // 3)
    middle = first + (count - first) // 2
    return np.where(
      place < first, "pLAD", np.where(place < middle, "mLAD", "dLAD")
    )
  if artery == "LCx":
    return np.where(place < min(takeoffs, default=count // 2), "pCx", "dCx")
  if artery == "RCA":
    margin = acute_margin(line_mm) if count else 0
    return np.where(
      place < margin / 2, "pRCA", np.where(place < margin, "mRCA", "dRCA")
    )
  raise ValueError(f"{artery!r} is none of {', '.join(ARTERIES)}")
