"""Tests of the page of an evaluated split."""

import json

import pytest

from cadjax.core import files
from cadjax.evaluation import segmenters
from cadjax.metrics import patient_level
from cadjax.report import cohort
from cadjax.segmentation.metrics import METRICS
from data_prep.errors import UserError

ABOUT = {
  "disclaimer": "Phantom results. Research software, not a medical device.",
  "workdir": "runs/<a>",
  "step": 12,
  "split": "test",
  "cases": "test_cases",
  "data": {"path": "data", "fingerprint": "f00d", "external": False},
  "versions": {"cadjax": "0.1.0", "jax": "0.10"},
  "notes": ["the checkpoint was chosen on validation cases: optimistic"],
}


def row(case, label, odds):
  return {
    "split": "test",
    "index": int(case[1:]),
    "case_id": case,
    "patient_id": case,
    "label": label,
    "log_odds": [odds],
  }


@pytest.fixture
def classified(tmp_path):
  """Ten patients; c3 and, more surely, c9 are called wrong."""
  odds = [-2, -1, -3, 0.5, -2, 2, 3, 1, 2, -4]
  rows = [row(f"c{i}", int(i > 4), odds[i]) for i in range(10)]
  result = files.strict(
    ABOUT
    | {"task": "classify"}
    | patient_level.evaluate_rows(
      rows, rows, ndim=3, pooling="none", criterion="0.5", draws=100
    )
  )
  result["notes"] = ABOUT["notes"]
  scored = patient_level.with_probabilities(rows, result)
  write(tmp_path, result, scored)
  (tmp_path / "roc.png").write_bytes(b"picture")
  return tmp_path


@pytest.fixture
def segmented(tmp_path):
  rows = [
    row(f"c{i}", 0, 0.0)
    | {"class": name}
    | dict.fromkeys(METRICS, 0.5)
    | {"dice": None if (i, name) == (0, "lumen") else 0.5 + i / 10}
    for i in range(2)
    for name in ("aorta", "lumen")
  ]
  defined = [r | {"dice": r["dice"] or float("nan")} for r in rows]
  result = files.strict(
    ABOUT | {"task": "segment"} | segmenters.summarise(defined, [], draws=100)
  )
  write(tmp_path, result, rows)
  (tmp_path / "worst.png").write_bytes(b"picture")
  return tmp_path


def write(folder, result, rows):
  (folder / "metrics.json").write_text(json.dumps(result))
  lines = [json.dumps(one) for one in rows]
  (folder / "test_cases.jsonl").write_text("\n".join(lines))


def test_the_page_of_a_classifier(classified):
  text = cohort.write(classified).read_text()
  assert "runs/&lt;a&gt;" in text
  assert "10 patients (5 with CAD)" in text
  assert "Phantom results." in text
  assert "The checkpoint was chosen on validation cases: optimistic." in text
  assert text.count("data:image/png;base64,") == 1  # Of what is there.
  shown = text[text.index("Failures") : text.index("All cases")]
  assert shown.index("c9") < shown.index("c3")
  assert shown.count("missed CAD") == shown.count("false alarm") == 1
  assert text.count('<tr class="wrong">') == 2
  assert "8/10" in text  # Accuracy.


def test_cases_are_linked_to_what_predict_wrote(classified, tmp_path):
  out = tmp_path / "cases"
  for case, name in (("c3", "case.html"), ("c9", "report.html")):
    (out / case).mkdir(parents=True)
    (out / case / name).write_text("page")
  text = cohort.write(classified, cases=out).read_text()
  # Among the failures and among all.
  assert text.count('<a href="cases/c9/report.html">c9</a>') == 2
  assert text.count('<a href="cases/c3/case.html">c3</a>') == 2
  assert "<a href" not in cohort.write(classified).read_text()


@pytest.mark.parametrize(("step", "shown"), [(12, True), (11, False)])
def test_explanations_are_those_of_the_same_checkpoint(classified, step, shown):
  (classified / "explain").mkdir()
  (classified / "explain" / "lift.png").write_bytes(b"picture")
  (classified / "explain" / "metrics.json").write_text(f'{{"step": {step}}}')
  text = cohort.write(classified).read_text()
  assert ("Where the explanations lie" in text) == shown


def test_a_folder_of_cases_that_is_not_there_is_one_line(classified):
  with pytest.raises(UserError, match="--cases=nowhere: there is no such"):
    cohort.write(classified, cases="nowhere")
  assert not (classified / cohort.PAGE).exists()


def test_the_page_of_a_segmenter(segmented):
  text = cohort.write(segmented).read_text()
  assert "Segmenter" in text
  assert text.count("data:image/png;base64,") == 1
  assert "<th>aorta</th><th>lumen</th>" in text
  # Beside both distances of both classes.
  assert text.count(", 0 failed") == 4
  assert "Failed: scans where" in text
  listed = text[text.index("All cases") :]
  assert "<td>0.500</td><td>undefined</td>" in listed
  assert "<td>0.600</td><td>0.600</td>" in listed


def test_rows_written_by_something_else_are_one_line(classified):
  (classified / "test_cases.jsonl").write_text('{"case_id": "c1"}')
  with pytest.raises(UserError, match="run it again"):
    cohort.write(classified)
