"""The diagram of the segments: all are there, and can be told apart."""

import itertools

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from cadjax.link.cad_rads import CATEGORIES, SegmentReading
from cadjax.report import segment_diagram
from cadjax.report.segment_diagram import Mark
from data_prep import scct


def drawn(marks):
  figure = Figure(figsize=segment_diagram.SIZE_IN)
  ax = figure.add_axes((0, 0, 1, 1))
  segment_diagram.draw(ax, marks)
  return ax


def test_colours_darken_with_the_grade_so_that_grey_will_do():
  light = []
  for color in segment_diagram.COLORS.values():
    linear = [
      x / 12.92 if x <= 0.04 else ((x + 0.055) / 1.055) ** 2.4
      for x in to_rgb(color)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    # CIE lightness, 0 to 100.
    light.append(116 * max(luminance, 1e-3) ** (1 / 3) - 16)
  steps = [a - b for a, b in itertools.pairwise(light)]
  assert min(steps) > 8
  assert set(segment_diagram.COLORS) == set(CATEGORIES) - {"4B"}


def test_all_18_are_drawn_and_named():
  ax = drawn({name: Mark("0") for name in scct.SEGMENTS})
  assert len([x for x in ax.patches if isinstance(x, Polygon)]) >= 18
  names = {text.get_text() for text in ax.texts}
  assert set(scct.SEGMENTS) <= names


@pytest.mark.parametrize(
  ("one", "mark"),
  [
    (None, None),
    *((name, Mark("2", "100 %", (20,), worst=True)) for name in scct.SEGMENTS),
    *((x, Mark(None, segment_diagram.UNJUDGED, (20,))) for x in scct.SEGMENTS),
  ],
)
def test_names_neither_cover_each_other_nor_leave_the_picture(one, mark):
  marks = {name: Mark("2", "100 %", (20,)) for name in scct.SEGMENTS}
  ax = drawn(marks | {one: mark})
  renderer = FigureCanvasAgg(ax.figure).get_renderer()
  boxes = {
    text.get_text(): text.get_window_extent(renderer)
    for text in ax.texts
    if text.get_text().partition("\n")[0] in scct.SEGMENTS
  }
  assert len(boxes) == 18
  for a, b in itertools.combinations(boxes, 2):
    assert not boxes[a].overlaps(boxes[b]), (a, b)
  for name, box in boxes.items():
    assert ax.bbox.x0 <= box.x0, name
    assert box.x1 <= ax.bbox.x1, name
    assert ax.bbox.y0 <= box.y0, name
    assert box.y1 <= ax.bbox.y1, name


def test_marks_are_of_the_readings():
  readings = [
    SegmentReading("pLAD", 0.699, plaque=True),
    SegmentReading("mLAD", None, plaque=True, doubt="calcium"),
    SegmentReading("pRCA", 0.1),
    SegmentReading("D1", 0.0, plaque=True, doubt="calcium"),
  ]
  marks = segment_diagram.marks(readings, {"pLAD": [1, 3]}, "pLAD")
  assert marks["pLAD"] == Mark("3", "69 %", (1, 3), worst=True)
  assert marks["mLAD"] == Mark(None, "not judged", doubt=True)
  assert marks["pRCA"] == Mark("0")
  assert marks["D1"] == Mark("1", "0 %", doubt=True)
  said = segment_diagram.words(marks)
  assert "pLAD: moderate, 50–69 %, the worst;" in said
  assert "mLAD: not judged" in said
  assert "OM1: not found" in said


def test_what_is_doubtful_is_hatched_and_what_is_missing_dotted():
  def styles(marks):
    ax = drawn(marks)
    shapes = [x for x in ax.patches if isinstance(x, Polygon)]
    return len(shapes), sum(bool(x.get_hatch()) for x in shapes), len(ax.lines)

  # One line of dots and one hatched box are in the legend.
  assert styles({}) == (0, 0, 19)
  assert styles({"pLAD": Mark("3")}) == (1, 0, 18)
  assert styles({"pLAD": Mark(None)}) == (1, 1, 18)
  assert styles({"pLAD": Mark("3", doubt=True)}) == (1, 1, 18)


def test_numbers_lie_on_their_segment():
  ax = drawn({"pRCA": Mark("3", "60 %", (4, 17), worst=True)})
  at = {text.get_text(): text.get_position() for text in ax.texts}
  (shape,) = [x for x in ax.patches if isinstance(x, Polygon)]
  for number in ("4", "17"):
    assert shape.get_path().contains_point(at[number])
  assert any("worst" in text for text in at)


def test_the_same_marks_are_the_same_file():
  marks = {"pLAD": Mark("3", "60 %", (1,), worst=True)}
  first = segment_diagram.svg(marks)
  assert first == segment_diagram.svg(marks)
  assert first != segment_diagram.svg({})
  assert b"<svg" in first
