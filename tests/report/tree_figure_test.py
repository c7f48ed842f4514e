"""The picture of the tree: all that is numbered can be seen."""

import numpy as np
import pytest

from cadjax.report import tree_figure
from cadjax.vessels.find import find_vessels


@pytest.fixture(scope="module")
def tree():
  mask = np.zeros((40, 20, 20), bool)
  mask[4:36, 9:12, 9:12] = True
  aorta = np.zeros_like(mask)
  aorta[0:5, 5:16, 5:16] = True
  affine = np.eye(4)[[2, 1, 0, 3]]
  return find_vessels(mask, aorta, affine), aorta


def test_branches_and_findings_lie_inside(tree, drawn_finding):
  vessels, aorta = tree
  findings = [
    drawn_finding(position_mm=(10.0, 10.0, 20.0)),
    drawn_finding(position_mm=(60.0, -40.0, -30.0)),
  ]
  heat = np.full(vessels.shape, 0.2, np.float32)
  figure = tree_figure.tree_figure(vessels, heat, findings, aorta=aorta)
  panels = figure.axes[:2]
  for ax, (axis, _, _) in zip(panels, tree_figure.VIEWS.values(), strict=True):
    texts = [text.get_text() for text in ax.texts]
    assert {"1", "2", *vessels.names} <= set(texts)
    for finding in findings:
      x, y = finding.position_mm[axis], finding.position_mm[2]
      assert ax.get_xlim()[0] < x < ax.get_xlim()[1]
      assert ax.get_ylim()[0] < y < ax.get_ylim()[1]
      for text in ax.texts:
        if text.get_text() in vessels.names:
          assert np.hypot(*(text.xy - np.array([x, y]))) >= 8
    (line,) = ax.collections[-1:]
    np.testing.assert_allclose(line.get_array(), 0.2)


def test_nothing_found_is_drawn_too():
  empty = np.zeros((8, 8, 8), bool)
  vessels = find_vessels(empty, None, np.eye(4))
  figure = tree_figure.tree_figure(vessels, np.zeros((8, 8, 8)), [])
  assert len(figure.axes) == 3
  for axes in figure.axes[:2]:
    assert [text.get_text() for text in axes.texts] == ["no vessel was found"]
