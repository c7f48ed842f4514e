"""From findings to CAD-RADS: by hand, and of phantoms' true masks."""

import dataclasses

import numpy as np
import pytest
import tiny_tree

from cadjax.link import cad_rads, findings, grading
from cadjax.vessels import find
from cadjax.vessels.tree import VesselTree
from data_prep import phantom
from data_prep.geometry import GridSpec


def main_arteries(**lengths_mm):
  """A tree of straight arteries, 3 mm wide; 60 mm long if not given."""
  lengths = {"LM": 10, "LAD": 60, "LCx": 60, "RCA": 60} | lengths_mm
  branches = []
  for k, (name, mm) in enumerate(lengths.items()):
    if mm:
      points = np.zeros((2 * mm + 1, 3))
      points[:, 2] = -np.arange(2 * mm + 1) / 2
      points[:, 0] = 40 * k
      branches.append(tiny_tree.branch(name, points, radius_mm=1.5))
  nothing = np.zeros((0, 3), int)
  return VesselTree(
    tuple(branches), (), np.eye(4) * 0.5, (1, 1, 1), nothing, ()
  )


def test_a_healthy_tree_is_0():
  graded = grading.grade_scan(main_arteries(), [])
  assert (graded.text, graded.doubts) == ("CAD-RADS 0", ())


@pytest.mark.parametrize(
  ("lengths", "doubt"),
  [
    ({"LAD": 0}, "The LAD was not found"),
    ({"RCA": 0}, "The RCA was not found"),
    ({"LAD": 30}, "The LAD was followed for 30 mm only"),
    ({"LM": 0, "LCx": 0}, "Neither LCx nor LM was found"),
  ],
)
def test_what_was_not_seen_is_n(lengths, doubt):
  graded = grading.grade_scan(main_arteries(**lengths), [])
  assert graded.category == "N"
  assert any(doubt in one for one in graded.doubts)


def test_without_a_left_main_or_a_circumflex_it_is_graded():
  assert grading.grade_scan(main_arteries(LM=0), []).category == "0"
  assert grading.grade_scan(main_arteries(LCx=0), []).category == "0"


def test_a_scan_that_was_skipped_is_n_for_that_reason():
  graded = grading.grade_scan(main_arteries(), [], skipped="No contrast.")
  assert (graded.category, graded.doubts) == ("N", ("No contrast.",))
  nothing = dataclasses.replace(main_arteries(), branches=())
  graded = grading.grade_scan(nothing, [])
  assert graded.doubts == ("No coronary artery was found.",)


def test_a_mask_without_plaque_is_no_proof_of_health(drawn_finding):
  graded = grading.grade_scan(main_arteries(), [], plaques=False)
  assert graded.category == "N"
  assert graded.doubts == ("Plaque was not segmented apart from the lumen.",)
  narrow = drawn_finding(
    plaque="", sources=("narrowing",), stenosis=0.6, stenosis_state="merged"
  )
  graded = grading.grade_scan(main_arteries(), [narrow], plaques=False)
  assert graded.text == "CAD-RADS 3/N"


def test_the_worst_finding_of_a_segment_counts(drawn_finding):
  found = [
    drawn_finding(segment="pLAD", plaque="stable", stenosis=0.3),
    drawn_finding(segment="pLAD", plaque="unstable", stenosis=0.6),
    drawn_finding(segment="mRCA", plaque="stable", stenosis=0.1),
  ]
  graded = grading.grade_scan(main_arteries(), found)
  assert graded.text == "CAD-RADS 3/P1"
  assert (graded.segment, graded.stenosis) == ("pLAD", 0.6)


def test_peaks_of_the_map_say_nothing_of_the_lumen(drawn_finding):
  peak = drawn_finding(
    segment="pLAD", plaque="", stenosis=0.6, sources=("heat",)
  )
  assert grading.grade_scan(main_arteries(), [peak]).category == "0"
  narrowing = dataclasses.replace(peak, sources=("narrowing", "heat"))
  assert grading.grade_scan(main_arteries(), [narrowing]).category == "3"


def test_soft_plaque_that_fills_the_calibre_is_severe(drawn_finding):
  filled = {
    "segment": "pLAD", "stenosis": None, "stenosis_state": "filled",
    "stenosis_note": "plaque fills the calibre",
  }  # fmt: skip
  soft = drawn_finding(plaque="unstable", reference_mm=3.0, **filled)
  graded = grading.grade_scan(main_arteries(), [soft])
  assert graded.category == "4A"
  # Less than a voxel of half a millimetre is left of three.
  assert graded.stenosis == pytest.approx(1 - 0.5 / 3)
  calcium = drawn_finding(plaque="stable", reference_mm=3.0, **filled)
  graded = grading.grade_scan(main_arteries(), [calcium])
  assert graded.text == "CAD-RADS N/P1"
  assert graded.doubts == ("pLAD: plaque fills the calibre.",)


def test_plaque_of_a_vessel_below_1_5_mm_leaves_no_doubt(drawn_finding):
  small = drawn_finding(
    segment="D2", plaque="stable", stenosis=None, reference_mm=1.4,
    stenosis_note="the reference radius is below 1.2 voxels",
  )  # fmt: skip
  graded = grading.grade_scan(main_arteries(), [small])
  assert graded.text == "CAD-RADS 1/P1"
  unknown = dataclasses.replace(small, reference_mm=float("nan"))
  assert grading.grade_scan(main_arteries(), [unknown]).category == "N"


def test_what_a_vessel_below_1_5_mm_has_lost_is_not_graded(drawn_finding):
  lesion = drawn_finding(segment="D2", plaque="stable", stenosis=0.9)
  small = dataclasses.replace(lesion, reference_mm=1.4)
  assert grading.grade_scan(main_arteries(), [lesion]).category == "4A"
  assert grading.grade_scan(main_arteries(), [small]).text == "CAD-RADS 1/P1"
  narrowing = dataclasses.replace(small, plaque="", sources=("narrowing",))
  assert not grading.is_graded(narrowing)
  assert grading.grade_scan(main_arteries(), [narrowing]).category == "0"
  wide = dataclasses.replace(narrowing, reference_mm=1.6)
  assert grading.grade_scan(main_arteries(), [wide]).category == "4A"


@pytest.mark.parametrize("seed", [3000, 3001, 3003])
def test_true_masks_of_phantoms_get_their_category(seed):
  spec = GridSpec("heart", (192,) * 3, (128.0,) * 3)
  made = phantom.make_phantom(seed, grid=spec)
  mask = made.mask
  tree = find.find_vessels(mask >= 2, mask == 1, made.volume.affine)
  found = findings.find_abnormalities(
    tree, mask >= 2, plaques={"stable": mask == 3, "unstable": mask == 4}
  )
  truth = cad_rads.grade(
    [
      cad_rads.SegmentReading(lesion["scct"], lesion["stenosis"], plaque=True)
      for lesion in made.lesions
      if lesion["scct"]
    ]
  )
  graded = grading.grade_scan(tree, found)
  assert graded.category == truth.category
  assert graded.burden == truth.burden
