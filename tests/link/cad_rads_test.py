"""CAD-RADS 2.0: the published rules, one by one."""

import pytest

from cadjax.link import cad_rads
from cadjax.link.cad_rads import SegmentReading as Reading


def grade(*readings, **options):
  return cad_rads.grade(list(readings), **options)


@pytest.mark.parametrize(
  ("stenosis", "category"),
  [
    *[(0.0, "1"), (0.24, "1"), (0.25, "2"), (0.49, "2"), (0.5, "3")],
    *[(0.69, "3"), (0.7, "4A"), (0.99, "4A"), (1.0, "5")],
  ],
)
def test_the_worst_stenosis_gives_the_category(stenosis, category):
  graded = grade(
    Reading("mLAD", stenosis, plaque=True), Reading("pRCA", 0.1, plaque=True)
  )
  assert graded.category == category
  assert cad_rads.of_stenosis(stenosis) == category
  assert graded.stenosis == max(stenosis, 0.1)
  assert graded.segment == ("mLAD" if stenosis > 0.1 else "pRCA")


def test_without_plaque_and_stenosis_it_is_0():
  graded = grade(Reading("pLAD"), Reading("pRCA", 0.1))
  assert graded.text == "CAD-RADS 0"
  assert graded.words == "no plaque, no stenosis"
  assert grade().category == "0"


@pytest.mark.parametrize(
  ("stenosis", "category"), [(0.49, "2"), (0.5, "4B"), (1.0, "5")]
)
def test_half_of_the_left_main_is_4b(stenosis, category):
  graded = grade(Reading("LM", stenosis, plaque=True))
  assert graded.category == category


def test_three_severe_arteries_are_4b():
  two = [Reading("D1", 0.8, plaque=True), Reading("OM1", 0.7, plaque=True)]
  assert grade(*two).category == "4A"
  # A branch counts for its artery.
  assert grade(*two, Reading("pLAD", 0.9)).category == "4A"
  three = grade(*two, Reading("R-PDA", 0.75))
  assert three.category == "4B"
  assert three.severe == ("LAD", "LCx", "RCA")
  assert grade(*two, Reading("R-PDA", 0.69)).category == "4A"


@pytest.mark.parametrize(
  ("count", "burden"),
  [(0, ""), (1, "P1"), (2, "P1"), (3, "P2"), (4, "P2"), (5, "P3"), (8, "P4")],
)
def test_the_burden_is_of_the_segments_involved(count, burden):
  names = ["LM", "pLAD", "mLAD", "dLAD", "D1", "pCx", "OM1", "pRCA"]
  graded = grade(*(Reading(name, plaque=True) for name in names[:count]))
  assert graded.burden == burden
  assert graded.segments_involved == count
  # Two plaques of one segment are one segment.
  twice = grade(*(2 * [Reading("pLAD", plaque=True)]))
  assert twice.segments_involved == 1


@pytest.mark.parametrize(
  ("score", "burden"),
  [(1, "P1"), (100, "P1"), (101, "P2"), (301, "P3"), (1000, "P4")],
)
def test_a_calcium_score_gives_the_burden_where_there_is_one(score, burden):
  graded = grade(Reading("pLAD", plaque=True), agatston=score)
  assert graded.burden == burden
  assert graded.burden_by == f"Agatston score {score}"


def test_calcium_is_plaque_and_plaque_need_not_be_calcium():
  healthy = Reading("pLAD")
  assert grade(healthy, agatston=0).text == "CAD-RADS 0"
  assert grade(healthy, agatston=40).text == "CAD-RADS 1/P1"
  assert grade(agatston=40).text == "CAD-RADS 1/P1"
  soft = grade(Reading("pLAD", plaque=True), agatston=0)
  assert soft.text == "CAD-RADS 1/P1"
  assert soft.burden_by == "1 segment with plaque; Agatston score 0"


def test_per_cent_never_look_like_the_next_grade():
  for share in (0.245, 0.2499, 0.499, 0.699, 0.999):
    written = cad_rads.percent(share) / 100
    assert cad_rads.of_stenosis(written) == cad_rads.of_stenosis(share)
  for whole in range(101):
    assert cad_rads.percent(whole / 100) == whole


def test_what_is_obstructive():
  assert not grade(Reading("pLAD", 0.49)).is_obstructive
  assert grade(Reading("pLAD", 0.5)).is_obstructive
  assert not grade(doubts=["The LAD was not found."]).is_obstructive
  doubtful = grade(Reading("pLAD", 0.8), doubts=["The RCA was not found."])
  assert doubtful.is_obstructive


def test_a_doubt_makes_it_n_unless_something_obstructive_is_seen():
  doubt = Reading("pLAD", None, plaque=True, doubt="calcium fills the calibre")
  mild, severe = Reading("pRCA", 0.4, plaque=True), Reading("pRCA", 0.8)
  graded = grade(doubt, mild)
  assert graded.text == "CAD-RADS N/P1"
  assert graded.doubts == ("pLAD: calcium fills the calibre.",)
  assert grade(doubt, severe).text == "CAD-RADS 4A/P1/N"
  whole = grade(doubts=["The LAD was not found."])
  assert whole.text == "CAD-RADS N"
  assert "cannot be excluded" in whole.words


def test_two_features_of_one_plaque_are_high_risk():
  one = Reading("pLAD", 0.3, plaque=True, high_risk=("low attenuation",))
  other = Reading("pRCA", 0.3, plaque=True, high_risk=("spotty calcium",))
  assert grade(one, other).modifiers == ()
  both = Reading("LM", 0.1, True, high_risk=("low attenuation", "spotty"))
  assert grade(both).text == "CAD-RADS 1/P1/HRP"


def test_an_unknown_segment_is_refused():
  with pytest.raises(KeyError):
    grade(Reading("LAD", 0.8))


def test_to_dict_is_json_able():
  row = grade(Reading("pLAD", 0.75, plaque=True)).to_dict()
  assert row["text"] == "CAD-RADS 4A/P1"
  assert row["severe"] == ("LAD",)
