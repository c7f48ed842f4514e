"""The structured report of a linked scan as one page to print.

A PDF by matplotlib: text is text that can be selected and searched, in fonts
that the file holds; the diagram is drawn, and only the planes are pixels. What
does not fit is counted, and stands in result.json.
"""

import bisect
import dataclasses
import io
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from cadjax.link.scan import LinkedScan
from cadjax.report import (
  diagnosis,
  linked_pictures,
  pages,
  planes,
  segment_diagram,
)

# Name: width and height in mm.
PAPERS = {"a4": (210.0, 297.0), "letter": (215.9, 279.4)}
_INCH = 25.4
_POINT = _INCH / 72
_MARGIN = 13.0
_INK, _SOFT, _LINE, _WARN = "#1b2430", "#5a6675", "#b9c2cd", "#8a4b00"
# Of the left column; the diagram has the rest.
_COLUMN = 0.56
_FOOTER_MM = 21.0
_ROW_MM = 4.6


@dataclasses.dataclass(frozen=True)
class _Room:
  """How much of the page its parts may take.

  Attributes:
    beside_mm: how much farther down than the diagram the column beside it
      goes.
    facts: lines of each fact in that column.
    statements: lines of where classifier and segmentation disagree.
    sentences: lines of each main artery.
    planes_mm: height of the planes, at least.
  """

  beside_mm: float
  facts: int
  statements: int
  sentences: int
  planes_mm: float


_WIDE = _Room(14.0, 5, 5, 2, 44.0)
# For many findings.
_TIGHT = _Room(6.0, 2, 3, 1, 34.0)
_PLANES_MM = 60.0  # At most.
# Heading, share of the width, whether numbers stand to the right.
_LAST = "High-risk features"
_COLUMNS = {
  "No.": (0.04, False),
  "Segment": (0.1, False),
  "Plaque": (0.115, False),
  "Stenosis": (0.13, False),
  "Ref., mm": (0.09, True),
  "Length, mm": (0.115, True),
  "Ostium, mm": (0.115, True),
  "Plaque, mm³": (0.115, True),
  _LAST: (0.18, False),
}
# Where the column is too narrow for the words.
_SHORT = {
  "low attenuation": "low HU",
  "positive remodelling": "remod.",
  "spotty calcium": "spots",
}


def render(result: LinkedScan, paper: str = "a4") -> bytes:
  """Returns a PDF of one page.

  Args:
    result: of `scan.link_scan`.
    paper: a key of `PAPERS`.
  """
  page, hidden = _lay_out(result, paper, _WIDE)
  if hidden:
    page, _ = _lay_out(result, paper, _TIGHT)
  return page.pdf(f"{result.classified.reading.case}: {result.grade.text}")


def _lay_out(
  result: LinkedScan, paper: str, room: _Room
) -> tuple["_Page", int]:
  """Returns the page, and how many findings it does not show."""
  page = _Page(*PAPERS[paper])
  _name(page, result)
  bottom = _diagram(page, result, page.y)
  _category(page, result)
  _facts(page, result, bottom + room.beside_mm, room.facts)
  page.y = max(page.y, bottom) + 1
  _statements(page, result, room.statements)
  _sentences(page, result, room.sentences)
  hidden = _table(page, result, room.planes_mm)
  _planes(page, result, room.planes_mm)
  _footer(page, result)
  return page, hidden


class _Page:
  """A sheet with places in mm from its top left; `y` is where to go on."""

  def __init__(self, width: float, height: float):
    self.width, self.height = width, height
    self.left, self.right = _MARGIN, width - _MARGIN
    self.y = _MARGIN
    self.figure = Figure(figsize=(width / _INCH, height / _INCH))
    ax = self.figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(height, 0))
    ax.set_axis_off()
    self.ax = ax
    # Only measures, in tenths of a point.
    self._renderer = RendererAgg(1, 1, 720)

  def axes(self, x: float, y: float, width: float, height: float) -> Axes:
    """Returns axes with their top left at (x, y), all in mm."""
    box = (
      x / self.width,
      1 - (y + height) / self.height,
      width / self.width,
      height / self.height,
    )
    return self.figure.add_axes(box)

  def text(self, x: float, y: float, words: str, size: float, **style) -> None:
    """Writes a line whose base lies at y; `size` in points."""
    # Names of scans may hold a $, which begins a formula.
    style = {"color": _INK, "va": "baseline", "parse_math": False} | style
    self.ax.text(x, y, words, size=size, **style)

  def measure(self, words: str, size: float, weight: str = "normal") -> float:
    """Returns the width of a line in mm."""
    font = FontProperties(size=size, weight=weight)
    width, _, _ = self._renderer.get_text_width_height_descent(
      words, font, ismath=False
    )
    return width / 10 * _POINT

  def wrap(self, words: str, width: float, size: float) -> list[str]:
    """Returns the lines of a paragraph; a word too long is cut."""
    lines, line = [], ""
    for word in words.split():
      longer = f"{line} {word}" if line else word
      if self.measure(longer, size) <= width:
        line = longer
        continue
      lines += [line] if line else []
      line = self.fit(word, width, size)
    return [*lines, line] if line else lines

  def fit(
    self, words: str, width: float, size: float, weight: str = "normal"
  ) -> str:
    """Returns a line, cut with an ellipsis where it is too wide."""
    if self.measure(words, size, weight) <= width:
      return words
    count = bisect.bisect_right(
      range(1, len(words)),
      width,
      key=lambda n: self.measure(f"{words[:n]}…", size, weight),
    )
    return f"{words[:count]}…"

  def paragraph(
    self,
    words: str,
    x: float,
    width: float,
    size: float,
    most: int,
    **style,
  ) -> None:
    """Writes a paragraph below `y`, of no more lines than `most`."""
    lines = self.wrap(words, width, size)
    if len(lines) > most:
      rest = " ".join(lines[most - 1 :])
      lines = [*lines[: most - 1], self.fit(rest, width, size)] if most else []
    for line in lines:
      self.y += 1.32 * size * _POINT
      self.text(x, self.y, line, size, **style)

  def line(self, y: float, color: str = _LINE, width: float = 0.5) -> None:
    """Draws a line across the page."""
    self.ax.plot([self.left, self.right], [y, y], color=color, lw=width)

  def pdf(self, title: str) -> bytes:
    """Returns the page as a PDF; the same page gives the same bytes."""
    buffer = io.BytesIO()
    # TrueType, which keeps the characters of every glyph.
    with matplotlib.rc_context({"pdf.fonttype": 42}):
      self.figure.savefig(
        buffer,
        format="pdf",
        dpi=200,
        metadata={"Title": title, "CreationDate": None, "Creator": "cadjax",
                  "Producer": None},
      )  # fmt: skip
    return buffer.getvalue()


def _name(page: _Page, result: LinkedScan) -> None:
  reading = result.classified.reading
  width = page.right - page.left
  page.y += 3
  when = f"CT coronary angiography, read {reading.created[:10]}"
  room = width - page.measure(when, 8.5) - 4
  name = page.fit(reading.case, room, 10.5, "bold")
  page.text(page.left, page.y, name, 10.5, weight="bold")
  page.text(page.right, page.y, when, 8.5, ha="right", color=_SOFT)
  page.y += 2
  page.line(page.y, _INK, 1.2)


def _category(page: _Page, result: LinkedScan) -> None:
  grade = result.grade
  width = _COLUMN * (page.right - page.left)
  size = 24 * min(1, width / page.measure(grade.text, 24, "bold"))
  page.y += 10
  page.text(page.left, page.y, grade.text, size, weight="bold")
  words = grade.words[0].upper() + grade.words[1:]
  page.y += 1
  page.paragraph(words, page.left, width, 11, 2)
  page.y += 1.2
  # The most telling last: the others are of every scan.
  notice = " ".join(result.warnings[::-1])
  page.paragraph(notice, page.left, width, 7.2, 6, color=_WARN)
  page.y += 1


def _diagram(page: _Page, result: LinkedScan, top: float) -> float:
  """Draws the diagram; returns where it ends."""
  width = (1 - _COLUMN) * (page.right - page.left) - 4
  high = width * segment_diagram.SIZE_IN[1] / segment_diagram.SIZE_IN[0]
  ax = page.axes(page.right - width, top, width, high)
  segment_diagram.draw(ax, linked_pictures.marks(result), text_size=5.2)
  return top + high


def _facts(page: _Page, result: LinkedScan, bottom: float, most: int) -> None:
  """Writes what stands below the category, down to `bottom`."""
  width = _COLUMN * (page.right - page.left)
  facts = diagnosis.facts(result)
  facts.pop("Not looked for")  # It is in the footer.
  size, step = 7.8, 1.32 * 7.8 * _POINT
  for heading, sentences in facts.items():
    left = int((bottom - page.y - 3.8) / step)
    if left < 1:
      break
    page.y += 3.6
    color = _WARN if heading == diagnosis.WHY_N else _SOFT
    page.text(page.left, page.y, heading, 7, color=color, weight="bold")
    page.paragraph(" ".join(sentences), page.left, width, size, min(left, most))


def _statements(page: _Page, result: LinkedScan, most: int) -> None:
  if not result.statements:
    return
  width = page.right - page.left
  page.y += 2.6
  said = "Classifier and segmentation disagree"
  page.text(page.left, page.y, said, 7, color=_WARN, weight="bold")
  # The last one explains the grade against the call.
  said = " ".join(result.statements[::-1])
  page.paragraph(said, page.left, width, 7.4, most)
  page.y += 1.5


def _sentences(page: _Page, result: LinkedScan, most: int) -> None:
  told = diagnosis.sentences(result) or [result.segmented.summary]
  page.line(page.y)
  page.y += 0.6
  for sentence in told:
    artery, colon, said = sentence.partition(": ")
    known = colon and len(artery) < 4
    x = page.left + (10 if known else 0)
    first = page.y + 1.32 * 8.2 * _POINT
    if known:
      page.text(page.left, first, artery, 8.2, weight="bold")
    page.paragraph(
      said if known else sentence, x, page.right - x, 8.2, most
    )  # fmt: skip
    page.y += 0.5
  page.y += 1.6


def _table(page: _Page, result: LinkedScan, planes_mm: float) -> int:
  """Writes the table above the planes; returns how many rows are left out."""
  rows = diagnosis.rows(result)
  room = page.height - _MARGIN - _FOOTER_MM - planes_mm - 8 - page.y
  most = max(int(room / _ROW_MM) - 2, 0)
  # One line of them says how many more there are.
  shown = rows if len(rows) <= most else rows[: max(most - 1, 0)]
  width = page.right - page.left
  size = 7.4
  page.line(page.y)
  if not rows:
    page.y += _ROW_MM
    said = "No plaque and no narrowing was found."
    if result.segmented.skipped is not None:
      said = "Plaque and narrowings were not looked for."
    page.text(page.left, page.y, said, size)
    return 0
  page.y += _ROW_MM - 0.8
  _cells(page, list(_COLUMNS), width, 7, weight="bold")
  page.line(page.y + 1.3, _INK, 0.8)
  page.y += 0.6
  for row in shown:
    page.y += _ROW_MM
    features = row.high_risk
    if page.measure(features, size) > _COLUMNS[_LAST][0] * width - 2:
      for word, short in _SHORT.items():
        features = features.replace(word, short)
    grade = f" {row.grade}" if row.grade else ""
    _cells(
      page,
      [
        *(
          str(row.number),
          row.segment.split(":")[0],
          row.plaque,
          f"{row.stenosis}{grade}",
        ),
        *(row.reference, row.length, row.from_ostium, row.volume, features),
      ],
      width,
      size,
    )
  more = len(rows) - len(shown)
  if more:
    page.y += _ROW_MM
    said = f"{more} more in result.json and report.html."
    page.text(page.left, page.y, said, size, color=_SOFT)
  return more


def _cells(
  page: _Page, values: Sequence[str], width: float, size: float, **style
) -> None:
  x = page.left
  weight = style.get("weight", "normal")
  for value, (share, right) in zip(values, _COLUMNS.values(), strict=True):
    room = share * width - 2
    text = page.fit(value, room, size, weight)
    if right:
      page.text(x + room - 2, page.y, text, size, ha="right", **style)
    else:
      page.text(x, page.y, text, size, **style)
    x += share * width


def _planes(page: _Page, result: LinkedScan, least: float) -> None:
  """Draws three planes with heat map and outlines, above the footer."""
  bottom = page.height - _MARGIN - _FOOTER_MM - 4
  high, gap = min(max(bottom - page.y - 4, least), _PLANES_MM), 2.0
  width = (page.right - page.left - 2 * gap) / 3
  top = bottom - high
  panels = linked_pictures.overlay_panels(result)
  for k, panel in enumerate(panels):
    x = page.left + k * (width + gap)
    ax = page.axes(x, top, width, high)
    ax.set_facecolor("black")
    planes.draw(ax, panel, text_scale=0.55)
    ax.set_anchor("C")
    page.ax.fill(
      *([x, x + width, x + width, x], [top, top, bottom, bottom]),
      color="black",
      zorder=0,
    )
  _, crossing = linked_pictures.center(result)
  number = ", ".join(
    f"{panel.name} {panel.slice[0]} of {panel.slice[1]}" for panel in panels
  )
  page.y = bottom + 3
  said = (
    f"Through {crossing}: {number}. Colour: heat map ({result.method},"
    f" {result.linked.layer}). Outlines: segmentation."
  )
  page.text(page.left, page.y, page.fit(said, page.right - page.left, 6.6),
            6.6, color=_SOFT)  # fmt: skip


def _footer(page: _Page, result: LinkedScan) -> None:
  classifier = result.classified.reading.model
  segmenter = result.segmented.reading.model
  software = result.classified.reading.software
  models = [("Classifier", classifier), ("segmenter", segmenter)]
  if result.segmented.chest is not None:
    wide = result.segmented.chest.segmented.reading.model
    models.append(("wide segmenter", wide))
  said = "; ".join(
    f"{word} {card.workdir}, step {card.step}, trained on"
    f" {card.trained_on.source or 'unknown data'}"
    f" ({card.trained_on.fingerprint[:8]})"
    for word, card in models
  )
  page.y = page.height - _MARGIN - _FOOTER_MM + 1.5
  page.line(page.y)
  width = page.right - page.left
  page.paragraph(
    f"{said}; cadjax {software.cadjax}, commit"
    f" {(software.git or 'unknown')[:10]}.",
    *(page.left, width, 6.2, 2),
    color=_SOFT,
  )
  sources = " ".join(diagnosis.SOURCES)
  page.paragraph(
    f"{diagnosis.NOT_LOOKED_FOR} {sources}",
    *(page.left, width, 6.2, 4),
    color=_SOFT,
  )
  page.y = page.height - _MARGIN + 1
  page.text(page.left, page.y, pages.NOTICE, 7, weight="bold")
