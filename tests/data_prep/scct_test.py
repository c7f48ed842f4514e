"""SCCT segments along the main arteries."""

import numpy as np
import pytest

from data_prep import scct


def line(count=100):
  return np.arange(count)[:, None] * np.array([0.0, 0.0, -0.5])


def runs(names):
  """Returns the names in their order, with how long each lasts."""
  starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
  return [(str(part[0]), len(part)) for part in np.split(names, starts[1:])]


def test_there_are_18():
  assert sorted(s.number for s in scct.SEGMENTS.values()) == [*range(1, 19)]
  assert {s.artery for s in scct.SEGMENTS.values()} == set(scct.ARTERIES)


def test_the_lad_is_cut_at_its_first_branch_and_in_half_beyond():
  found = runs(scct.along("LAD", line(), [40, 20]))
  assert found == [("pLAD", 20), ("mLAD", 40), ("dLAD", 40)]


def test_a_lad_without_branches_is_cut_in_thirds():
  found = runs(scct.along("LAD", line(90), []))
  assert found == [("pLAD", 30), ("mLAD", 30), ("dLAD", 30)]


def test_the_circumflex_is_cut_at_its_first_marginal():
  assert runs(scct.along("LCx", line(), [70, 30])) == [("pCx", 30), ("dCx", 70)]
  assert runs(scct.along("LCx", line(), [])) == [("pCx", 50), ("dCx", 50)]


def test_the_right_artery_is_cut_at_the_acute_margin():
  # Down and to the right for 60 places, then to the back.
  there = np.arange(60)[:, None] * np.array([-0.5, 0.0, -0.5])
  back = there[-1] + np.arange(1, 41)[:, None] * np.array([0.0, 0.5, 0.0])
  found = runs(scct.along("RCA", np.concatenate([there, back]), []))
  assert found == [("pRCA", 30), ("mRCA", 29), ("dRCA", 41)]


def test_the_left_main_is_one_segment():
  assert runs(scct.along("LM", line(), [])) == [("LM", 100)]


def test_other_arteries_are_refused():
  with pytest.raises(ValueError, match="OM1"):
    scct.along("OM1", line(), [])
