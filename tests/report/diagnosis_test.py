"""The words of the diagnosis, of findings that are made by hand."""

import dataclasses

import pytest
import schema_check
import tiny_linked

from cadjax.calcium.stored import StoredScore
from cadjax.report import diagnosis, linked

FILLED = {
  "stenosis": None,
  "stenosis_state": "filled",
  "stenosis_note": "calcium fills the calibre",
}


@pytest.fixture(scope="module")
def scan():
  return tiny_linked.linked_scan()


@pytest.fixture
def report(scan, drawn_finding):
  def make(*findings, probability=0.9, **lengths):
    prediction = dataclasses.replace(
      scan.classified.prediction,
      probability=probability,
      label="cad" if probability >= 0.5 else "normal",
    )
    classified = dataclasses.replace(scan.classified, prediction=prediction)
    result = dataclasses.replace(scan, classified=classified)
    return tiny_linked.with_findings(
      result, *(drawn_finding(**one) for one in findings), **lengths
    )

  return make


def test_a_sentence_for_each_main_artery(report):
  result = report(
    {"segment": "pLAD", "plaque": "mixed", "stenosis": 0.389},
    {"segment": "OM1", "plaque": "unstable", "stenosis": 0.0},
    {"segment": "mLAD", "plaque": "stable", "stenosis": 0.75},
  )
  assert diagnosis.sentences(result) == [
    "LM: no plaque, no stenosis.",
    "LAD: calcified plaque of the mid segment with severe stenosis (75 %);"
    " mixed plaque of the proximal segment with mild stenosis (38 %).",
    "LCx: non-calcified plaque of the first obtuse marginal branch without"
    " stenosis.",
    "RCA: no plaque, no stenosis.",
  ]


def test_what_was_not_found_is_not_healthy(report):
  said = diagnosis.sentences(report(LM=0, LAD=30))
  assert said[0] == "LM: not found by the segmentation."
  assert said[1] == (
    "LAD: no plaque and no stenosis in what was found of it; its end is not"
    " seen."
  )


def test_a_narrowing_without_plaque_and_an_occlusion(report):
  bare = {"plaque": "", "sources": ("narrowing",), "plaque_mm3": 0.0}
  result = report(
    {"segment": "dRCA", "stenosis": 0.6, **bare},
    {"segment": "LM", "stenosis": 1.0},
  )
  said = diagnosis.sentences(result)
  assert said[0] == "LM: calcified plaque with total occlusion."
  assert said[3] == (
    "RCA: moderate stenosis (60 %) of the distal segment without plaque in the"
    " mask."
  )


def test_a_lumen_below_a_voxel_is_bounded_and_not_measured(report):
  soft = {"segment": "pCx", "plaque": "unstable", "reference_mm": 3.0}
  result = report(
    {"segment": "pLAD", "stenosis": 0.4}, {**soft, **FILLED}, probability=0.1
  )
  assert result.grade.category == "4A"
  first, second = diagnosis.rows(result)
  assert (first.number, first.stenosis, first.grade) == (2, "≥ 70 %", "severe")
  assert second.number == 1
  assert "no lumen wider than a voxel" in first.note
  document = diagnosis.to_json(result)
  assert document["bounded"] is True
  (worst,) = diagnosis.facts(result)["Worst stenosis"]
  assert worst.startswith("At least severe, proximal LCx (pCx, segment 11)")
  said = diagnosis.sentences(result)[2]
  assert "with at least severe stenosis (no lumen" in said
  measured = report({"segment": "pLAD", "stenosis": 0.4})
  assert diagnosis.to_json(measured)["bounded"] is False
  assert diagnosis.facts(measured)["Worst stenosis"] == [
    "40 % of the diameter, proximal LAD (pLAD, segment 6)."
  ]


def test_calcium_that_fills_the_calibre_makes_it_n_in_words(report):
  result = report({"segment": "pLAD", "plaque": "stable", **FILLED})
  facts = diagnosis.facts(result)
  assert facts["Why N"] == ["pLAD: calcium fills the calibre."]
  (row,) = diagnosis.rows(result)
  assert (row.stenosis, row.grade, row.category) == ("not measured", "", None)
  assert diagnosis.sentences(result)[1] == (
    "LAD: calcified plaque of the proximal segment, stenosis not measured"
    " (calcium fills the calibre)."
  )
  assert "Why N" not in diagnosis.facts(report())


def test_the_table_has_the_worst_first_and_no_mere_peaks(report):
  result = report(
    {"segment": "pLAD", "stenosis": 0.3, "reference_mm": 1.0},
    {"segment": "pRCA", "plaque": "", "sources": ("heat",)},
    {"segment": "mRCA", "stenosis": 0.699, "vessel": "RCA"},
    {"segment": "", "vessel": "", "stenosis": None, "from_ostium_mm": float(
      "nan"), "stenosis_note": "not on a vessel"},
  )  # fmt: skip
  rows = diagnosis.rows(result)
  assert [row.number for row in rows] == [3, 1, 4]
  worst, small, off = rows
  assert (worst.segment, worst.stenosis) == ("mRCA (2)", "69 %")
  assert (worst.grade, worst.plaque) == ("moderate", "calcified")
  assert (worst.length, worst.from_ostium, worst.volume) == ("6", "31", "12")
  assert worst.resolved
  # 1 mm is 2 voxels of half a millimetre.
  assert (small.voxels, small.resolved) == ("2.0", False)
  assert (off.segment, off.from_ostium) == ("none: off the vessels", "–")
  said = " ".join(diagnosis.facts(result)["Segmentation"])
  assert "enough to measure a stenosis, at 2 of 3 findings" in said


def test_high_risk_plaque_is_named(report):
  both = ("low attenuation", "positive remodelling")
  result = report({"segment": "pLAD", "high_risk": both, "stenosis": 0.3})
  assert result.grade.text.endswith("HRP")
  assert diagnosis.facts(result)["High-risk plaque"] == [
    "HRP: finding 1, pLAD (low attenuation, positive remodelling)."
  ]
  one = report({"segment": "pLAD", "high_risk": both[:1], "stenosis": 0.3})
  assert diagnosis.facts(one)["High-risk plaque"][0].startswith("No plaque")


def test_the_burden_says_what_it_rests_on(report):
  plaque = {"segment": "pLAD", "stenosis": 0.1}
  assert diagnosis.facts(report(plaque))["Plaque burden"] == [
    "P1, mild amount of plaque: 1 segment with plaque."
  ]
  score = StoredScore(350.0, "native", "2026-03-04T00:00:00", masked=False)
  scored = dataclasses.replace(report(plaque), calcium=score)
  first, second = diagnosis.facts(scored)["Plaque burden"]
  assert first == "P3, severe amount of plaque."
  assert "350 of native, 2026-03-04" in second
  assert "valves" in second
  assert diagnosis.to_json(scored)["calcium"]["agatston"] == 350.0


def test_a_scan_that_was_skipped_is_not_judged(scan):
  segmented = dataclasses.replace(scan.segmented, skipped="no contrast")
  result = dataclasses.replace(scan, segmented=segmented)
  facts = diagnosis.facts(result)
  for heading in ("Worst stenosis", "Plaque burden", "High-risk plaque"):
    assert facts[heading] == ["Not judged."]
  assert facts["Why N"] == ["Nothing was segmented: no contrast."]
  assert diagnosis.sentences(result) == []
  document = linked.to_json(result)
  assert document["diagnosis"]["segments"] == []
  schema_check.validate(document)


def test_stents_grafts_and_napkin_rings_are_said_not_to_be_looked_for(report):
  (said,) = diagnosis.facts(report())["Not looked for"]
  for word in ("Stents", "bypass grafts", "napkin-ring"):
    assert word in said
  assert diagnosis.to_json(report())["not_looked_for"] == said


def test_segments_name_their_findings(report):
  result = report(
    {"segment": "pLAD", "stenosis": 0.3},
    {"segment": "pRCA", "stenosis": 0.2},
    {"segment": "pLAD", "stenosis": 0.1},
  )
  rows = {x["segment"]: x for x in diagnosis.to_json(result)["segments"]}
  assert rows["pLAD"]["findings"] == [1, 3]
  assert rows["pLAD"]["number"] == 6
  assert rows["pLAD"]["grade"] == "mild"
  assert rows["pRCA"]["findings"] == [2]
  assert rows["mRCA"]["findings"] == []
  assert rows["mRCA"]["grade"] == "none"
  assert diagnosis.numbers_by_segment(result) == {"pLAD": [1, 3], "pRCA": [2]}
