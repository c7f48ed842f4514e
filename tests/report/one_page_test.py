"""The page to print: one, whole, and of text."""

import dataclasses
import io
import itertools
import re

import matplotlib
import numpy as np
import pytest
import tiny_linked
from matplotlib.backends.backend_agg import FigureCanvasAgg

from cadjax.report import diagnosis, one_page
from data_prep import scct


@pytest.fixture(scope="module")
def scan():
  return tiny_linked.linked_scan(probability=0.2)


@pytest.fixture
def crowded(scan, drawn_finding):
  """20 findings, doubts, a name that is too long, every warning."""
  names = [*scct.SEGMENTS, "pLAD", "pRCA"]
  findings = [
    drawn_finding(
      segment=name,
      stenosis=0.9 - 0.02 * k if k else None,
      stenosis_note="calcium fills the calibre and that is told at length",
      high_risk=("low attenuation", "positive remodelling", "spotty calcium"),
    )
    for k, name in enumerate(names)
  ]
  reading = scan.classified.reading
  prepared = dataclasses.replace(reading.prepared, concerns=("no heart",))
  reading = dataclasses.replace(
    reading, case="$x^{ " + 30 * "a_name_", prepared=prepared
  )
  classified = dataclasses.replace(scan.classified, reading=reading)
  result = dataclasses.replace(scan, classified=classified)
  return tiny_linked.with_findings(result, *findings, LAD=20)


def lay_out(result, paper="a4"):
  page, hidden = one_page._lay_out(result, paper, one_page._WIDE)
  if hidden:
    page, hidden = one_page._lay_out(result, paper, one_page._TIGHT)
  return page, hidden


def texts(page):
  """The lines of the page and where they are, as a PDF has them."""
  # Whole dots would widen a letter of 6 points, and so would hinting.
  page.figure.set_dpi(300)
  with matplotlib.rc_context({"text.hinting": "none"}):
    renderer = FigureCanvasAgg(page.figure).get_renderer()
    return {
      (text.get_text(), text.get_position()): text.get_window_extent(renderer)
      for text in page.ax.texts
      if text.get_text().strip()
    }


@pytest.mark.parametrize("paper", ["a4", "letter"])
def test_it_is_one_page_of_that_paper(scan, paper):
  pdf = one_page.render(scan, paper)
  assert len(re.findall(rb"/Type /Page\b", pdf)) == 1
  box = re.search(rb"/MediaBox \[ ?([\d. ]+) ?\]", pdf)[1].split()
  size_mm = np.array(box[2:], float) * 25.4 / 72
  np.testing.assert_allclose(size_mm, one_page.PAPERS[paper], atol=0.1)
  # TrueType fonts, and inside the file.
  assert b"/FontFile2" in pdf
  assert b"/Type3" not in pdf
  assert pdf == one_page.render(scan, paper)


def test_its_text_can_be_selected(crowded):
  pypdf = pytest.importorskip("pypdf")
  reader = pypdf.PdfReader(io.BytesIO(one_page.render(crowded)))
  (page,) = reader.pages
  text = page.extract_text()
  assert crowded.grade.text in text
  assert "Not a medical device" in text
  assert "coronary.safetensors, step 4200" in text
  assert "Stents, bypass grafts, the napkin-ring sign" in text
  assert "pLAD" in text
  assert "more in result.json" in text
  assert reader.metadata.title.endswith(crowded.grade.text)


@pytest.mark.parametrize("paper", ["a4", "letter"])
@pytest.mark.parametrize("which", ["scan", "crowded"])
def test_nothing_is_cut_off_or_covered(which, paper, request):
  result = request.getfixturevalue(which)
  page, hidden = lay_out(result, paper)
  boxes = texts(page)
  width, height = page.figure.bbox.size
  margin = 0.9 * one_page._MARGIN / page.width * width
  for (text, _), box in boxes.items():
    assert margin <= box.x0, text
    assert box.x1 <= width - margin, text
    assert 0.7 * margin <= box.y0, text
    assert box.y1 <= height - 0.7 * margin, text
  # Lines may touch, as those of a paragraph do, and not lie on each other.
  for (a, one), (b, other) in itertools.combinations(boxes.items(), 2):
    across = min(one.x1, other.x1) - max(one.x0, other.x0)
    down = min(one.y1, other.y1) - max(one.y0, other.y0)
    assert across <= 3 or down <= 0.45 * min(one.height, other.height), (a, b)
  planes = page.figure.axes[-3:]
  lowest = min(ax.get_position().y0 for ax in planes)
  assert lowest * height > margin
  rows = len(diagnosis.rows(result))
  numbers = {text for (text, _) in boxes if text.isdigit()}
  assert rows - hidden >= min(rows, 8)
  assert numbers >= {str(row.number) for row in diagnosis.rows(result)[:5]}
  said = [text for (text, _) in boxes if "more in result.json" in text]
  assert said == ([f"{hidden} more in result.json and report.html."]
                  if hidden else [])  # fmt: skip


def test_a_scan_that_was_skipped_is_a_page_too():
  page, hidden = lay_out(tiny_linked.linked_scan(skipped="no contrast"))
  said = " ".join(text for (text, _) in texts(page))
  assert hidden == 0
  assert "CAD-RADS N" in said
  assert "Nothing was segmented: no contrast." in said
  assert "were not looked for" in said
