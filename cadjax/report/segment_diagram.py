"""A diagram of the coronary tree by its 18 SCCT segments.

A schematic of fixed places, the same for every patient: the patient's right
artery on the left of the page, both trees laid open. It shows grades, and no
patient's anatomy.
"""

import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon, Rectangle
from scipy.interpolate import CubicSpline

from cadjax.link import cad_rads
from cadjax.link.cad_rads import SegmentReading
from cadjax.report.diagnosis import of
from data_prep import scct

# From light to dark, so that grades keep their order in grey and for readers
# who do not tell red from green.
COLORS = {
  "0": "#ffffff",
  "1": "#fde0ae",
  "2": "#fbb061",
  "3": "#e5682e",
  "4A": "#a81612",
  "5": "#2c0306",
}
_LEGEND = {
  "0": "no stenosis",
  "1": "minimal, < 25 %",
  "2": "mild, 25–49 %",
  "3": "moderate, 50–69 %",
  "4A": "severe, 70–99 %",
  "5": "occluded",
}
UNJUDGED, MISSING = "not judged", "not found, or < 1.5 mm"
INK, SOFT = "#1b2430", "#5a6675"
SIZE_IN = (5.6, 5.47)
# The page of the diagram: width, height and the room below for the legend.
_WIDE, _HIGH, _BELOW = 126.0, 104.0, 19.0


@dataclasses.dataclass(frozen=True, eq=False)
class _Vessel:
  """A line on the page and the segments along it.

  Attributes:
    points: (x, y) that a curve goes through.
    segments: name to its last point, in their order.
    width: of the line.
  """

  points: tuple[tuple[float, float], ...]
  segments: Mapping[str, int]
  width: float = 2.6


# Side branches first: main arteries are drawn over where these spring off.
_VESSELS = (
  _Vessel(((65.5, 63), (71, 57), (75, 50), (77, 44)), {"D1": 3}),
  _Vessel(((64, 51), (67, 44), (69, 37), (70, 30)), {"D2": 3}),
  _Vessel(((69, 85), (76, 79), (81, 71), (83, 60)), {"RI": 3}),
  _Vessel(((101, 82), (99, 75), (97, 67), (95, 60)), {"OM1": 3}),
  _Vessel(((109.8, 62), (105, 56), (101, 48), (98, 39)), {"OM2": 3}),
  _Vessel(((106, 42), (101, 34), (96, 28), (90, 24)), {"L-PLB": 3}),
  _Vessel(((106, 42), (108, 32), (104, 21), (95, 13), (86, 10)), {"L-PDA": 4}),
  _Vessel(((46, 23), (52, 16), (60, 9), (70, 4)), {"R-PDA": 3}),
  _Vessel(((46, 23), (55, 23.5), (64, 21), (71, 16)), {"R-PLB": 3}),
  _Vessel(
    ((57, 84), (69, 85), (67.5, 75), (65.5, 63), (64, 51), (62, 40), (59, 30)),
    {"LM": 1, "pLAD": 3, "mLAD": 5, "dLAD": 6},
    3.6,
  ),
  _Vessel(
    ((69, 85), (79, 90), (91, 89), (101, 82), (108, 72), (110, 61), (108, 50),
     (106, 42)),
    {"pCx": 3, "dCx": 7},
    3.6,
  ),
  _Vessel(
    ((47, 84), (38, 87), (28, 83), (21, 73), (17, 61), (18, 48), (24, 36),
     (34, 27), (46, 23)),
    {"pRCA": 3, "mRCA": 6, "dRCA": 8},
    3.6,
  ),
)  # fmt: skip
# Where the names stand: x, y, and which side of the text is there.
_LABELS = {
  "pRCA": (20, 82, "right", "center"),
  "mRCA": (13, 57, "right", "center"),
  "dRCA": (29, 24, "right", "center"),
  "R-PDA": (73, 3, "left", "center"),
  "R-PLB": (74, 14, "left", "center"),
  "LM": (61, 90, "center", "bottom"),
  "pLAD": (62, 74, "right", "center"),
  "mLAD": (59.5, 50, "right", "center"),
  "dLAD": (57, 35, "right", "center"),
  "D1": (78, 42, "center", "top"),
  "D2": (70.5, 28, "center", "top"),
  "RI": (82, 58, "center", "top"),
  "pCx": (86, 93.5, "center", "bottom"),
  "OM1": (93.5, 58, "center", "top"),
  "dCx": (114, 67, "left", "center"),
  "OM2": (96, 39, "right", "center"),
  "L-PLB": (88, 25, "right", "center"),
  "L-PDA": (107, 15, "left", "center"),
}


@dataclasses.dataclass(frozen=True)
class Mark:
  """What the diagram says of one segment.

  Attributes:
    category: of `cad_rads.CATEGORIES`; None where not judged.
    text: below its name, such as "38 %".
    numbers: of the findings on it.
    worst: whether it is the patient's worst.
    doubt: whether a stenosis may be missed there.
  """

  category: str | None
  text: str = ""
  numbers: tuple[int, ...] = ()
  worst: bool = False
  doubt: bool = False


def marks(
  readings: Sequence[SegmentReading],
  numbers: Mapping[str, Sequence[int]],
  worst: str,
) -> dict[str, Mark]:
  """Returns what is marked, by segment; the others were not found.

  Args:
    readings: of `grading.read_segments`.
    numbers: of the findings by segment.
    worst: the segment of the worst stenosis; "" for none.
  """
  made = {}
  for one in readings:
    text = UNJUDGED if one.stenosis is None else ""
    if one.stenosis is not None and (one.plaque or of(one) != "0"):
      text = f"{cad_rads.percent(one.stenosis)} %"
    made[one.segment] = Mark(
      category=of(one),
      text=text,
      numbers=tuple(numbers.get(one.segment, ())),
      worst=one.segment == worst,
      doubt=bool(one.doubt),
    )
  return made


def svg(segments: Mapping[str, Mark]) -> bytes:
  """Returns the diagram as an SVG; the same marks give the same bytes."""
  figure = Figure(figsize=SIZE_IN)
  draw(figure.add_axes((0, 0, 1, 1)), segments)
  buffer = io.BytesIO()
  with matplotlib.rc_context({"svg.hashsalt": "cadjax"}):
    figure.savefig(buffer, format="svg", metadata={"Date": None})
  return buffer.getvalue()


def words(segments: Mapping[str, Mark]) -> str:
  """Returns the diagram in words, for who cannot see it."""
  said = []
  for name in scct.SEGMENTS:
    if name in segments:
      mark = segments[name]
      grade = _LEGEND[mark.category] if mark.category else UNJUDGED
      said.append(f"{name}: {grade}{', the worst' if mark.worst else ''}")
    else:
      said.append(f"{name}: not found")
  return "; ".join(said)


def draw(
  ax: Axes, segments: Mapping[str, Mark], *, text_size: float = 8.5
) -> None:
  """Draws the diagram.

  Args:
    ax: is filled; as wide to high as `SIZE_IN`.
    segments: of `marks`.
    text_size: in points.
  """
  ax.set(xlim=(0, _WIDE), ylim=(-_BELOW, _HIGH))
  ax.set_aspect("equal")
  ax.set_axis_off()
  ax.add_patch(Circle((52, 86), 6.5, fc="#eef1f5", ec=SOFT, lw=0.8))
  ax.text(52, 86, "aorta", ha="center", va="center", size=0.75 * text_size,
          color=SOFT)  # fmt: skip
  for x, side in ((0.5, "R"), (_WIDE - 0.5, "L")):
    ax.text(x, _HIGH - 1, side, ha="left" if side == "R" else "right",
            va="top", size=text_size, color=SOFT, weight="bold")  # fmt: skip
  for vessel in _VESSELS:
    for name in vessel.segments:
      _draw_segment(ax, vessel, name, segments.get(name))
  for vessel in _VESSELS:
    for name in vessel.segments:
      _draw_numbers(ax, vessel, name, segments.get(name), text_size)
  for name in _LABELS:
    _label(ax, name, segments.get(name), text_size)
  _legend(ax, text_size)


@functools.cache
def _curve(vessel: _Vessel) -> tuple[np.ndarray, np.ndarray]:
  """Returns a vessel's curve [n, 2], and for each place the control point."""
  points = np.array(vessel.points)
  way = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
  places = np.linspace(0, way[-1], 200)
  number = np.interp(places, way, np.arange(len(points)))
  return CubicSpline(way, points)(places), number


def _line(vessel: _Vessel, name: str) -> np.ndarray:
  """Returns the curve of a segment, [n, 2]."""
  ends = list(vessel.segments.values())
  k = list(vessel.segments).index(name)
  first = ends[k - 1] if k else 0
  curve, number = _curve(vessel)
  return curve[(number >= first) & (number <= ends[k])]


def _draw_segment(ax, vessel: _Vessel, name: str, mark: Mark | None) -> None:
  line = _line(vessel, name)
  if mark is None:
    ax.plot(*line.T, color=SOFT, lw=1.1, ls=(0, (1, 1.6)))
    return
  along = np.gradient(line, axis=0)
  along /= np.linalg.norm(along, axis=1, keepdims=True)
  aside = along[:, ::-1] * (-1, 1) * vessel.width / 2
  hatched = mark.category is None
  ax.add_patch(
    Polygon(
      np.concatenate([line + aside, (line - aside)[::-1]]),
      fc=COLORS["0" if hatched else mark.category],
      ec=INK,
      lw=1.8 if mark.worst else 0.9,
      hatch="//////" if hatched or mark.doubt else None,
      joinstyle="round",
    )
  )


def _draw_numbers(ax, vessel, name, mark: Mark | None, text_size) -> None:
  if mark is None or not mark.numbers:
    return
  line = _line(vessel, name)
  count = len(mark.numbers)
  for k, number in enumerate(mark.numbers):
    x, y = line[int((k + 0.5) / count * (len(line) - 1))]
    dark = mark.worst
    ax.add_patch(
      Circle((x, y), 2.9, fc=INK if dark else "white", ec=INK, lw=1.2, zorder=4)
    )
    ax.text(
      *(x, y, str(number)),
      ha="center",
      va="center_baseline",
      size=0.82 * text_size,
      weight="bold",
      color="white" if dark else INK,
      zorder=5,
    )


def _label(ax, name, mark: Mark | None, text_size) -> None:
  x, y, side, level = _LABELS[name]
  text = name
  if mark is not None and mark.text:
    # A word a line: "not judged" is too wide for some places.
    words = mark.text if mark.category else mark.text.replace(" ", "\n")
    text += f"\n{words}"
  if mark is not None and mark.worst:
    text += "\nworst"
  strong = mark is not None and mark.category not in (None, "0", "1")
  ax.text(
    *(x, y, text),
    ha=side,
    va=level,
    size=text_size,
    color=SOFT if mark is None else INK,
    weight="bold" if strong else "normal",
    linespacing=1.15,
    zorder=6,
  )


def _legend(ax, text_size) -> None:
  entries = [(COLORS[key], None, word) for key, word in _LEGEND.items()]
  entries += [("#ffffff", "//////", "not or not fully judged")]
  columns = 3
  for k, (color, hatch, word) in enumerate(entries):
    x = 2 + k % columns * _WIDE / columns
    y = -6.5 - k // columns * 5
    ax.add_patch(
      Rectangle((x, y - 1.4), 5, 2.8, fc=color, ec=INK, lw=0.7, hatch=hatch)
    )
    ax.text(x + 6.5, y, word, va="center", size=0.85 * text_size, color=INK)
  k = len(entries)
  x, y = 2 + k % columns * _WIDE / columns, -6.5 - k // columns * 5
  ax.plot([x, x + 5], [y, y], color=SOFT, lw=1.1, ls=(0, (1, 1.6)))
  ax.text(x + 6.5, y, MISSING, va="center", size=0.85 * text_size, color=INK)
