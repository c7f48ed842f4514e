import io

import numpy as np
import pytest
from PIL import Image
from tiny_tree import LINES, ball, blobs, on, scene

from cadjax.link.findings import find_abnormalities
from cadjax.report import vessel_figure
from cadjax.report.vessel_figure import Scene
from cadjax.vessels import stenosis

PLACE = on(LINES[1], 0.5)


@pytest.fixture(scope="module")
def drawn():
  """A branch with a plaque: (tree, number, findings, scene)."""
  tree, mask = scene()
  plaque = ball(PLACE, 1.6)
  hu = np.where(plaque, 900, np.where(mask, 350, -90)).astype(np.int16)
  heat = blobs((PLACE, 1.0))
  found = find_abnormalities(
    tree, mask, heat=heat, plaques={"stable": plaque}, hu=hu
  )
  number = tree.names.index(found[0].vessel)
  return tree, number, found, Scene(hu, tree.affine, heat, tree.affine)


def text(figure):
  said = [figure.get_suptitle()]
  for ax in figure.axes:
    said += [ax.get_title(loc="left"), ax.get_title(), ax.get_ylabel()]
    said += [note.get_text() for note in ax.texts]
  return said


def test_axes_are_in_mm_and_of_one_scale(drawn):
  tree, number, found, about = drawn
  figure = vessel_figure.vessel_figure(tree, number, about, found)
  branch = tree.branches[number]
  strip = figure.axes[0]
  assert strip.get_xlim()[1] == pytest.approx(
    branch.course_distance_mm[-1], abs=0.3
  )
  assert sorted(strip.get_ylim()) == [-10, 10]
  size = figure.get_size_inches()
  scales = []
  for ax in figure.axes:
    if ax.images:
      box = ax.get_position()
      width, height = box.width * size[0], box.height * size[1]
      scales.append(width / abs(np.subtract(*ax.get_xlim())))
      # A circle stays a circle.
      assert height / abs(np.subtract(*ax.get_ylim())) == pytest.approx(
        scales[-1], rel=0.02
      )
  strips = [s for s, ax in zip(scales, figure.axes, strict=False)][:3]
  assert np.ptp(strips) < 1e-6


def test_findings_are_marked_by_rank_on_their_way(drawn):
  tree, number, found, about = drawn
  figure = vessel_figure.vessel_figure(tree, number, about, found)
  said = text(figure)
  assert branch_name(tree, number) in said[0]
  assert "1" in said
  assert f"1: {found[0].from_ostium_mm:.0f} mm" in said
  assert any("heat map" in line for line in said)
  strip = figure.axes[0]
  marks = [line.get_xdata()[0] for line in strip.lines]
  assert min(abs(m - found[0].from_ostium_mm) for m in marks) < 0.6
  other = next(
    k for k, b in enumerate(tree.branches) if b.parent < 0 or k != number
  )
  unmarked = vessel_figure.vessel_figure(tree, other, about, found)
  assert not any(line.startswith("1:") for line in text(unmarked))


def branch_name(tree, number):
  return tree.branches[number].name


def test_the_plaque_is_where_the_mark_is(drawn):
  tree, number, found, about = drawn
  figure = vessel_figure.vessel_figure(tree, number, about, found)
  pixels = figure.axes[0].images[0].get_array()
  columns = np.flatnonzero((pixels > 700).any(0))
  extent = figure.axes[0].images[0].get_extent()
  at = extent[0] + (columns + 0.5) / pixels.shape[1] * (extent[1] - extent[0])
  assert at.mean() == pytest.approx(found[0].from_ostium_mm, abs=1.0)
  middle = pixels[pixels.shape[0] // 2]
  assert (middle[4:-8] > 200).all()


def test_it_is_drawn_without_map_findings_or_with_calibres(drawn):
  tree, number, _, about = drawn
  _, mask = scene()
  plain = Scene(about.hu, about.affine)
  calibres = stenosis.calibres(tree, mask)
  figure = vessel_figure.vessel_figure(tree, number, plain, (), calibres)
  assert not any("heat map" in line for line in text(figure))
  (curves,) = [ax for ax in figure.axes if not ax.images]
  labels = [t.get_text() for t in curves.get_legend().get_texts()]
  assert labels == ["vessel", "lumen", "lumen, reference"]
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png")
  image = np.asarray(Image.open(buffer).convert("L"))
  assert image.std() > 20
