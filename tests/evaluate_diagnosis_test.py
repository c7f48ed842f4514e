"""CAD-RADS of scans with known lesions, by the program and by hand."""

import dataclasses
import json
import math

import numpy as np
import pytest

from cadjax.core import files
from cadjax.evaluation import diagnoses, lesions
from cadjax.evaluation.diagnoses import LesionRow, ScanRow
from cadjax.evaluation.lesions import read_scans
from cadjax.link import cad_rads
from data_prep import export, sources
from data_prep.errors import UserError


def scan(number, truth, found):
  return ScanRow(
    case_id=f"scan {number}",
    patient_id=f"patient {number}",
    truth=truth,
    found=found,
    truth_burden="",
    found_burden="",
    truth_stenosis=0.0,
    found_stenosis=0.0,
    text="",
    doubts=["The LAD was not found."] if found == "N" else [],
  )


def lesion(number, *, hit=True, **found):
  row = LesionRow(
    case_id=f"scan {number}",
    patient_id=f"patient {number}",
    lesion=0,
    plaque="mixed",
    segment="pLAD",
    stenosis=0.4,
    volume_mm3=50.0,
    lumen_mm2=5.0,
    hit=hit,
  )
  return dataclasses.replace(row, **found)


TRUTH = 12 * list(cad_rads.CATEGORIES)


def summarise(found, rows=()):
  scans = [
    scan(number, truth, one)
    for number, (truth, one) in enumerate(zip(TRUTH, found, strict=True))
  ]
  return diagnoses.summarise(scans, rows or [lesion(0)])


def test_a_perfect_reader():
  result = summarise(TRUTH)
  assert result["kappa"].value == 1
  assert result["same_category"].value == 1
  assert result["sensitivity"].value == result["specificity"].value == 1
  assert result["not_diagnostic"] == 0


@pytest.mark.parametrize("always", ["0", "3", "5"])
def test_a_reader_who_always_says_the_same(always):
  result = summarise([always] * len(TRUTH))
  assert result["kappa"].value == pytest.approx(0)
  called = float(always != "0")
  assert result["sensitivity"].value == called
  assert result["specificity"].value == 1 - called


def test_a_reader_who_guesses():
  guesses = list(np.random.default_rng(0).permutation(TRUTH))
  result = summarise(guesses)
  kappa = result["kappa"]
  assert kappa.low < 0 < kappa.high
  assert -0.3 < kappa.low < kappa.high < 0.3


def test_not_diagnostic_is_no_category_and_no_excuse():
  found = ["N" if k % 2 else truth for k, truth in enumerate(TRUTH)]
  result = summarise(found)
  assert result["kappa"].value == 1
  assert result["kappa"].n == len(TRUTH) - result["not_diagnostic"]
  # As it is neither called obstructive nor called free of it.
  assert result["sensitivity"].value == pytest.approx(0.5, abs=0.05)
  assert result["specificity"].value == pytest.approx(0.5, abs=0.05)
  assert result["reasons"] == {"The LAD was not found.": 42}
  nothing = summarise(["N"] * len(TRUTH))
  assert math.isnan(nothing["kappa"].value)


def test_lesions_are_compared_in_points_and_by_patient():
  rows = [
    lesion(
      k,
      found_segment="pLAD" if k % 4 else "mLAD",
      found_stenosis=0.4 + offset,
      found_state="measured",
      found_volume_mm3=60.0,
      found_lumen_mm2=4.0,
    )
    for k, offset in enumerate([0.1, -0.1] * 20)
  ]
  result = summarise(TRUTH, [*rows, lesion(50, hit=False)])
  stenosis = result["stenosis_points"]
  assert stenosis.bias.value == pytest.approx(0)
  assert stenosis.high == pytest.approx(1.96 * 10.127, abs=0.01)
  assert stenosis.low == pytest.approx(-stenosis.high)
  assert stenosis.n == 40
  assert result["volume_mm3"].bias.value == pytest.approx(10)
  assert result["lumen_mm2"].bias.value == pytest.approx(-1)
  assert result["segment_right"].value == pytest.approx(0.75)
  assert result["lesions_hit"].value == pytest.approx(40 / 41)


def test_a_bias_of_the_left_main_is_shown_beside_the_others():
  rows = [
    lesion(k, segment=name, volume_mm3=size, found_stenosis=0.4 + offset)
    for k, (name, size, offset) in enumerate(
      5 * [("LM", 90.0, -0.2), ("mRCA", 90.0, 0.0), ("mRCA", 30.0, -0.1)]
    )
  ]
  by = summarise(TRUTH, rows)["stenosis_points_by"]
  assert by.pop("proximal LAD").n == 0
  assert {name: (one.n, round(one.bias.value)) for name, one in by.items()} == {
    "left main": (5, -20),
    "plaque below 60 mm3": (5, -10),
    "all others": (5, 0),
  }


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
  """Scans of 1.2 mm with true masks and lesions."""
  folder = tmp_path_factory.mktemp("diagnosis") / "scans"
  cases = sources.phantom(8, seed=4)
  export.export(cases, folder, spacing_mm=1.2)
  return folder


def test_true_masks_are_graded(scans, tmp_path):
  out = tmp_path / "out"
  result = diagnoses.evaluate_diagnoses(str(scans), str(out), true_masks=True)
  assert json.loads((out / "diagnosis.json").read_text()) == result
  assert (out / "stenosis.png").stat().st_size > 10_000
  rows = files.read_rows_as(out / "scans.jsonl", ScanRow)
  assert [row.case_id for row in rows] == [
    case.case_id for case in read_scans(str(scans))
  ]
  # Four of eight are normal, and none of them has any plaque.
  normal = [row for row in rows if row.truth == "0"]
  assert len(normal) == 4
  assert {row.found for row in normal} <= {"0", "N"}
  assert {row.found_burden for row in normal} == {""}
  rows = files.read_rows_as(out / "lesions.jsonl", LesionRow)
  assert np.mean([row.hit for row in rows]) > 0.7
  assert abs(result["stenosis_points"]["bias"]["value"]) < 15
  text = diagnoses.table(result)
  assert "8 scans, masks: the true ones" in text
  assert "weighted kappa (linear), without N" in text


def test_an_interrupted_run_goes_on(scans, tmp_path, monkeypatch):
  out = tmp_path / "out"
  whole = diagnoses.evaluate_diagnoses(
    str(scans), str(tmp_path / "whole"), true_masks=True
  )
  grade = diagnoses.grade_case
  graded = []

  def interrupted(case, models):
    if len(graded) == 5:
      raise KeyboardInterrupt
    graded.append(case.case_id)
    return grade(case, models)

  monkeypatch.setattr(diagnoses, "grade_case", interrupted)
  with pytest.raises(KeyboardInterrupt):
    diagnoses.evaluate_diagnoses(str(scans), str(out), true_masks=True)
  assert {path.name for path in out.iterdir()} == {"unfinished.jsonl"}
  done = list(graded)
  graded.clear()
  manifest = scans / "manifest.csv"
  table = manifest.read_text()
  manifest.write_text(table.replace("normal", "cad", 1))
  with pytest.raises(UserError, match="with other scans "):
    diagnoses.evaluate_diagnoses(str(scans), str(out), true_masks=True)
  manifest.write_text(table)
  again = diagnoses.evaluate_diagnoses(str(scans), str(out), true_masks=True)
  assert again == whole
  assert len(done) == 5
  assert len(graded) == 3
  assert not set(done) & set(graded)
  assert not (out / "unfinished.jsonl").exists()
  for name in ("scans.jsonl", "lesions.jsonl"):
    text = (tmp_path / "whole" / name).read_text()
    assert (out / name).read_text() == text


def test_what_is_missing_is_said(scans, tmp_path):
  manifest = scans / "manifest.csv"
  table = manifest.read_text()
  names = table.splitlines()[0].split(",")
  at = names.index("mask")
  rows = [line.split(",") for line in table.splitlines()]
  manifest.write_text(
    "\n".join(",".join(row[:at] + row[at + 1 :]) for row in rows) + "\n"
  )
  with pytest.raises(UserError, match="names no mask"):
    diagnoses.evaluate_diagnoses(str(scans), str(tmp_path), true_masks=True)
  manifest.write_text(table)


def test_the_truth_of_a_vessel_below_1_5_mm_is_not_graded(scans, monkeypatch):
  case = next(case for case in read_scans(str(scans)) if case.label)
  (known, *_) = lesions.read_lesions(case)

  def graded(reference_mm):
    one = known | {
      "scct": "mLAD", "stenosis": 0.9, "reference_mm": reference_mm
    }  # fmt: skip
    monkeypatch.setattr(lesions, "read_lesions", lambda case: [one])
    return diagnoses.grade_case(case, None)[0].truth

  assert (graded(1.6), graded(1.4)) == ("4A", "1")


@pytest.mark.parametrize("column", ["scct", "reference_mm"])
def test_lesions_of_an_older_version_are_refused(scans, column):
  case = next(case for case in read_scans(str(scans)) if case.label)
  file = lesions.lesion_file(case)
  text = file.read_text()
  document = json.loads(text)
  del document["lesions"][0][column]
  file.write_text(json.dumps(document))
  with pytest.raises(UserError, match=f"without all of .*{column}"):
    read_scans(str(scans))
  file.write_text(text)
