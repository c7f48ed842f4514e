"""SCCT segments of found trees: by hand, and of phantoms' true masks."""

import numpy as np
import pytest
from tiny_tree import branch

from cadjax.vessels import find, segments
from cadjax.vessels.tree import STEP_MM, VesselTree
from data_prep import phantom
from data_prep.geometry import GridSpec

LEFT, BACK, UP = np.eye(3)


def line(start, *ways):
  """Points every `STEP_MM` from `start` along ways of (unit vector, mm)."""
  points = [np.asarray(start, float)]
  for way, mm in ways:
    unit = np.asarray(way, float) / np.linalg.norm(way)
    steps = np.arange(1, round(mm / STEP_MM) + 1)[:, None] * STEP_MM
    points += list(points[-1] + steps * unit)
  return np.array(points)


def tree(*branches):
  nothing = np.zeros((0, 3), int)
  return VesselTree(branches, (), np.eye(4), (1, 1, 1), nothing, ())


def names(found):
  return [sorted(set(map(str, one))) for one in found]


def lad_tree():
  """A LAD down the front with a septal at 10, diagonals at 20 and 40 mm."""
  lad = line((0, 0, 0), (-UP, 80))
  return tree(
    branch("LAD", lad),
    branch("septal", line(lad[20], (-LEFT - UP, 15)), 0),
    branch("late diagonal", line(lad[80], (LEFT - UP, 20)), 0),
    branch("diagonal", line(lad[40], (LEFT - UP, 30)), 0),
    branch("of the diagonal", line(lad[40] + 10 * LEFT, (LEFT, 9)), 3),
  )


def test_diagonals_are_numbered_from_the_ostium_and_septals_are_none():
  found = names(segments.segments(lad_tree()))
  assert found[1:] == [[""], ["D2"], ["D1"], ["D1"]]
  assert found[0] == ["dLAD", "mLAD", "pLAD"]


def test_the_lad_is_cut_at_its_first_branch():
  lad = segments.segments(lad_tree())[0]
  assert list(lad[[19, 20, 89, 90]]) == ["pLAD", "mLAD", "mLAD", "dLAD"]


def test_what_springs_off_a_trifurcation_is_the_ramus():
  lcx = line((0, 0, 0), (LEFT + BACK, 70))
  found = segments.segments(
    tree(
      branch("LCx", lcx),
      branch("ramus", line(lcx[8], (LEFT - UP, 30)), 0),
      branch("marginal", line(lcx[60], (LEFT - UP, 30)), 0),
      branch("second", line(lcx[100], (LEFT - UP, 20)), 0),
    )
  )
  assert names(found)[1:] == [["RI"], ["OM1"], ["OM2"]]
  assert list(found[0]) == ["pCx"] * 60 + ["dCx"] * 81


def right_artery(beyond_mm):
  """Down to the acute margin, then to the back."""
  return line((0, 0, 0), (-LEFT - UP, 60), (BACK, beyond_mm))


def test_the_branches_at_the_crux_of_a_right_artery():
  rca = right_artery(60)
  end = rca[-1]
  found = names(
    segments.segments(
      tree(
        branch("RCA", rca),
        branch("acute marginal", line(rca[100], (LEFT - UP, 30)), 0),
        branch("to the left", line(end, (LEFT + BACK, 30)), 0),
        branch("to the apex", line(end, (LEFT - BACK - UP, 30)), 0),
      )
    )
  )
  assert found == [["dRCA", "mRCA", "pRCA"], [""], ["R-PLB"], ["R-PDA"]]


@pytest.mark.parametrize(
  ("beyond_mm", "last", "turned"),
  [(60, "OM2", "OM2"), (10, "L-PLB", "L-PDA")],
)
def test_a_short_right_artery_leaves_the_back_to_the_circumflex(
  beyond_mm, last, turned
):
  rca, lcx = right_artery(beyond_mm), line((0, 0, 0), (LEFT + BACK, 90))
  ways = (LEFT - BACK - UP, LEFT + BACK) if beyond_mm > 30 else ()
  at_crux = [branch("crux", line(rca[-1], (way, 30)), 0) for way in ways]
  number = 1 + len(at_crux)
  whole = tree(
    branch("RCA", rca),
    *at_crux,
    branch("LCx", lcx),
    branch("marginal", line(lcx[60], (LEFT - UP, 30)), number),
    branch("late", line(lcx[170], (LEFT - UP, 20)), number),
    branch("branch of LCx", line(lcx[-1], (-UP, 30)), number),
  )
  assert names(segments.segments(whole))[-3:] == [["OM1"], [last], [turned]]


def test_an_empty_tree_has_none():
  assert segments.segments(tree()) == []


@pytest.mark.parametrize("seed", [3003, 3010])
def test_of_phantoms(seed):
  spec = GridSpec("heart", (192,) * 3, (128.0,) * 3)
  made = phantom.make_phantom(seed, label=0, grid=spec)
  mask = made.mask
  found = find.find_vessels(mask >= 2, mask == 1, made.volume.affine)
  of_found = segments.segments(found)
  right = []
  for name, line_mm in made.centerlines.items():
    number, place, away = found.nearest(line_mm[::4, :3])
    for k in np.flatnonzero(away < 3):
      truth = made.scct[name][4 * k]
      if truth:
        right.append(of_found[number[k]][place[k]] == truth)
  assert np.mean(right) > 0.9
