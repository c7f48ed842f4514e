import numpy as np
import pytest
from scipy.sparse import csgraph

from cadjax.vessels import skeleton

SPACING = np.array([0.5, 0.7, 1.1])
AFFINE = np.diag([*SPACING, 1.0])


def graph_of(*lines, shape=(24, 28, 32)):
  """Returns the skeleton of voxels along straight index lines."""
  mask = np.zeros(shape, bool)
  for first, last in lines:
    count = int(np.abs(np.subtract(last, first)).max()) + 1
    index = np.rint(np.linspace(first, last, count)).astype(int)
    mask[tuple(index.T)] = True
  return skeleton.make_skeleton(mask, AFFINE)


@pytest.mark.parametrize("step", [(1, 0, 0), (0, 1, 1), (1, 1, 1), (1, -1, 0)])
def test_edges_are_as_long_as_the_way_between_voxels(step):
  first = np.array([5, 15, 5])
  graph = graph_of((first, first + 8 * np.array(step)))
  lengths = csgraph.dijkstra(graph.edges, indices=np.flatnonzero(graph.ends))
  assert graph.ends.sum() == 2
  assert lengths.max() == pytest.approx(8 * np.linalg.norm(step * SPACING))


def test_edges_join_all_neighbours_and_no_others():
  rng = np.random.default_rng(0)
  graph = skeleton.make_skeleton(rng.random((9, 9, 9)) < 0.06, AFFINE)
  apart = np.abs(graph.index[:, None] - graph.index).max(2)
  mm = np.linalg.norm(graph.mm[:, None] - graph.mm, axis=2)
  expected = np.where(apart == 1, mm, 0)
  np.testing.assert_allclose(graph.edges.toarray(), expected)


def test_clean_fills_cavities_and_drops_specks():
  mask = np.zeros((12, 12, 12), bool)
  mask[2:7, 2:7, 2:7] = True
  mask[4, 4, 4] = False
  mask[10, 10, 9:11] = True
  out = skeleton.clean(mask, 0.5, 2.0)
  assert out[4, 4, 4]
  assert out.sum() == 125
  assert skeleton.clean(mask, 1.0, 2.0).sum() == 127


ROW = ((4, 10, 3), (4, 10, 12))
AHEAD = ((4, 10, 16), (4, 10, 26))


def test_a_gap_ahead_is_bridged():
  graph, gaps = skeleton.bridge(graph_of(ROW, AHEAD), 6.0, np.zeros(0, int))
  assert graph.parts.max() == 0
  # Four steps of 1.1 mm, less the half voxels on both sides.
  assert gaps == [pytest.approx(4 * 1.1 - 2 * 0.5, abs=0.01)]
  assert graph.bridged.sum() == 2
  assert graph.edges.max() == pytest.approx(4 * 1.1)


def test_a_gap_is_not_bridged_to_the_side_too_far_or_between_two_trees():
  none = np.zeros(0, int)
  beside = graph_of(ROW, ((4, 18, 3), (4, 18, 12)))
  assert skeleton.bridge(beside, 6.0, none)[1] == []
  assert skeleton.bridge(graph_of(ROW, AHEAD), 3.0, none)[1] == []
  two = graph_of(ROW, AHEAD)
  ostia = np.array([0, len(two.mm) - 1])
  assert two.parts[ostia[0]] != two.parts[ostia[1]]
  assert skeleton.bridge(two, 6.0, ostia)[1] == []
  assert len(skeleton.bridge(two, 6.0, ostia[:1])[1]) == 1


def test_a_side_branch_is_bridged_to_its_parent():
  side = graph_of(((12, 4, 16), (12, 22, 16)), ((12, 13, 20), (12, 13, 28)))
  graph, gaps = skeleton.bridge(side, 6.0, np.zeros(0, int))
  assert graph.parts.max() == 0
  assert len(gaps) == 1


def test_a_speck_is_no_stepping_stone():
  speck = ((4, 10, 17), (4, 10, 18))
  far = ((4, 10, 23), (4, 10, 31))
  graph, _ = skeleton.bridge(graph_of(ROW, speck, far), 5.0, np.zeros(0, int))
  assert graph.parts.max() == 2


def test_the_better_aimed_of_two_gaps_is_bridged():
  aside = ((4, 14, 15), (4, 24, 15))
  ahead = ((4, 10, 17), (4, 10, 27))
  parts = graph_of(ROW, ahead, aside)
  graph, gaps = skeleton.bridge(parts, 6.0, np.zeros(0, int))
  end = np.flatnonzero((graph.index == ROW[1]).all(1))[0]
  joined = graph.edges[end].indices[graph.edges[end].data > 2]
  assert [tuple(graph.index[k]) for k in joined] == [ahead[0]]


def test_spurs_go_and_branches_stay():
  trunk = ((4, 14, 2), (4, 14, 28))
  spur, branch = ((4, 14, 12), (4, 17, 12)), ((4, 14, 20), (4, 26, 20))
  graph = graph_of(trunk, spur, branch)
  root = np.flatnonzero((graph.index == trunk[0]).all(1))
  segments, reached = skeleton.grow(graph, root, spur_mm=3.0)
  ends = {tuple(graph.index[s.nodes[-1]]) for s in segments if not s.children}
  assert ends == {trunk[1], branch[1]}
  assert len(segments) == 3
  first, *rest = segments
  assert first.parent == -1
  assert sorted(first.children) == [1, 2]
  for segment in rest:
    assert segment.parent == 0
    assert segment.nodes[0] == first.nodes[-1]
  tip = np.flatnonzero((graph.index == branch[1]).all(1))[0]
  assert reached[tip] == pytest.approx(18 * 1.1 + 12 * 0.7, abs=1.2)


def test_a_loop_is_cut_and_everything_is_reached_once():
  ring = [
    ((4, 8, 8), (4, 8, 20)),
    ((4, 20, 8), (4, 20, 20)),
    ((4, 8, 8), (4, 20, 8)),
    ((4, 8, 20), (4, 20, 20)),
    ((4, 8, 2), (4, 8, 8)),
  ]
  graph = graph_of(*ring)
  root = np.flatnonzero((graph.index == (4, 8, 2)).all(1))
  segments, _ = skeleton.grow(graph, root, spur_mm=1.0)
  nodes = np.concatenate([s.nodes[1:] for s in segments])
  assert len(nodes) == len(set(nodes.tolist()))
  assert len(nodes) > 0.9 * len(graph.mm)
  for number, segment in enumerate(segments):
    assert segment.parent < number


def test_lengths_of_parts():
  graph = graph_of(ROW, AHEAD)
  lengths = skeleton.part_lengths(graph)
  np.testing.assert_allclose(sorted(lengths), [9 * 1.1, 10 * 1.1])
