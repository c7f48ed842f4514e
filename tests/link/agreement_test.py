import dataclasses

import numpy as np
import pytest
import tubes

from cadjax.link import agreement, cad_rads
from cadjax.link.evidence import Share
from cadjax.vessels.find import find_vessels

AT_VESSELS = Share(0.4, 0.1, 4.0, 30.0)
ELSEWHERE = Share(0.02, 0.1, 0.2, 30.0)


@pytest.fixture(scope="module")
def tree():
  shape, affine = tubes.grid("cubic", (-6, -6, -12), (6, 6, 14))
  root = tubes.ball((0, 0, 10), 4, shape, affine)
  mask = tubes.tube([(0, 0, 6), (2, 0, -9)], 1.5, shape, affine)
  return find_vessels(mask, root, affine)


def said(tree, **changes):
  told = {"probability": 0.8, "threshold": 0.5, "near_vessels": AT_VESSELS}
  told["plaque_mm3"] = {"stable": 60.0, "unstable": 0.0}
  return agreement.disagreements(tree, **(told | changes))


def test_agreement_is_silent(tree):
  assert said(tree) == []
  assert said(tree, plaque_mm3=None, near_vessels=None) == []
  low = {"stable": 3.0, "unstable": 0.0}
  assert said(tree, probability=0.1, plaque_mm3=low) == []
  assert (
    said(tree, probability=0.1, near_vessels=ELSEWHERE, plaque_mm3=low) == []
  )


def test_evidence_away_from_the_vessels(tree):
  (line,) = said(tree, near_vessels=ELSEWHERE)
  assert "0.80" in line
  assert "0.50" in line
  assert "2.0%" in line
  assert "lift 0.20" in line
  assert line.startswith("The classifier")
  assert said(tree, near_vessels=dataclasses.replace(ELSEWHERE, lift=1.0)) == []


def test_plaque_without_a_call(tree):
  (line,) = said(tree, probability=0.49)
  assert "60 mm3 of stable plaque" in line
  assert "unstable" not in line
  assert "below its threshold" in line
  assert said(tree, probability=0.5) == []


def test_a_call_without_plaque(tree):
  (line,) = said(tree, plaque_mm3={"stable": 0.0, "unstable": 2.0})
  assert "no plaque" in line


def test_missing_structures(tree):
  (line,) = said(tree, aorta_found=False)
  assert line.startswith("No aorta")
  empty = find_vessels(np.zeros((4, 4, 4)), None, np.eye(4))
  first, *rest = said(empty, near_vessels=Share(0.0, 0.0, np.nan, 0.0))
  assert first.startswith("No coronary artery")
  assert rest == []


def test_an_empty_map(tree):
  (line,) = said(tree, near_vessels=Share(np.nan, 0.1, np.nan, 30.0))
  assert "empty" in line


def test_a_mask_in_pieces_is_no_coronary_tree():
  shape, affine = tubes.grid("cubic", (-40, -6, -40), (40, 6, 40))
  root = tubes.ball((0, 0, 36), 4, shape, affine)
  mask = tubes.tube([(0, 0, 32), (2, 0, 18)], 1.5, shape, affine)
  whole = find_vessels(mask, root, affine)
  assert agreement.unconnected(whole) is None
  for x in (-34, 34):
    mask = mask | tubes.tube([(x, 0, -36), (x, 0, -4)], 1.5, shape, affine)
  line = agreement.unconnected(find_vessels(mask, root, affine))
  assert "in 2 fragments, hangs on no ostium" in line
  assert said(find_vessels(mask, root, affine))[0] == line


def of_grade(probability, *readings, doubts=()):
  grade = cad_rads.grade(readings, doubts=doubts)
  return agreement.of_grade(grade, probability=probability, threshold=0.5)


SEVERE = cad_rads.SegmentReading("mLAD", 0.8, plaque=True)
MILD = cad_rads.SegmentReading("mLAD", 0.3, plaque=True)


def test_a_call_of_normal_with_an_obstructive_stenosis():
  (line,) = of_grade(0.2, SEVERE)
  assert line.startswith("The classifier's probability of CAD, 0.20, is below")
  assert "graded CAD-RADS 4A/P1: severe stenosis" in line
  assert "the worst in mLAD" in line
  assert "blooming" in line
  assert of_grade(0.5, SEVERE) == []
  assert of_grade(0.2, MILD) == []
  # A doubt elsewhere takes nothing from what was seen.
  assert "4A/P1/N" in of_grade(0.2, SEVERE, doubts=["No RCA."])[0]


def test_a_call_of_cad_with_grade_0():
  healthy = cad_rads.SegmentReading("mLAD")
  (line,) = of_grade(0.9, healthy)
  assert "at or above its threshold, 0.50, but" in line
  assert "graded CAD-RADS 0: no plaque and no stenosis" in line
  assert of_grade(0.2, healthy) == []
  assert of_grade(0.9, MILD) == []
  # What is not judged is no 0.
  assert of_grade(0.9, healthy, doubts=["No RCA."]) == []
