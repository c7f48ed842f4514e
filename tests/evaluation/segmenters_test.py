"""Evaluation of a segmenter: rows, intervals, pictures, refusals."""

import csv
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cadjax import tasks
from cadjax.core import files
from cadjax.data import classes
from cadjax.evaluation import segmenters
from cadjax.evaluation.workdirs import evaluate_workdir
from cadjax.segmentation import components, metrics, segmenter, sliding
from data_prep.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def result(tiny_segmenter):
  return evaluate_workdir(tiny_segmenter, bootstrap=100, batch_size=4)


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_evaluation_leaves_rows_a_picture_and_strict_json(
  tiny_segmenter, result
):
  folder = tiny_segmenter / "eval"
  assert {p.name for p in folder.iterdir()} == {
    "metrics.json", "test_cases.jsonl", "test_cases.csv", "worst.png",
  }  # fmt: skip
  text = (folder / "metrics.json").read_text()
  assert json.loads(text, parse_constant=pytest.fail) == result
  assert result["task"] == "segment"
  assert "not a medical device" in result["disclaimer"]
  with Image.open(folder / "worst.png") as image:
    # Four cases in three planes each.
    assert image.size[1] > 1.2 * image.size[0]


def test_rows_are_those_of_every_case_and_class(tiny_segmenter, result):
  trained = tasks.load_model(tiny_segmenter)
  dataset = tasks.find(trained.config).open_dataset(trained.config)
  rows = read(tiny_segmenter / "eval" / "test_cases.jsonl")
  want = [
    (row["case_id"], name)
    for row in dataset.rows["test"]
    for name in ("aorta", "coronaries")
  ]
  assert [(row["case_id"], row["class"]) for row in rows] == want
  record = dataset.read(dataset.rows["test"][1])
  found = trained.segment(record["image"]).labels
  truth = classes.map_mask(record["mask"], "aorta_coronaries")
  direct = metrics.case_metrics(
    found == 1,
    truth == 1,
    record["spacing"],
    voxel_mm3=components.voxel_mm3(record["grid_affine"]),
  )
  for name, value in direct.items():
    assert rows[2][name] == (None if np.isnan(value) else value), name
  with (tiny_segmenter / "eval" / "test_cases.csv").open(newline="") as f:
    assert len(list(csv.DictReader(f))) == len(rows) == 2 * result["n_scans"]


def measured(case, name, dice, distance):
  values = dict.fromkeys(metrics.METRICS, 0.5)
  values |= {"dice": dice, "hd95_mm": distance, "assd_mm": distance}
  return {"case_id": case, "patient_id": case, "class": name} | values


def test_scans_without_a_distance_are_counted_beside_its_mean():
  nan = np.nan
  rows = [
    measured("a", "aorta", 0.9, 2.0),
    measured("b", "aorta", 0.0, nan),  # Missed altogether.
    measured("c", "aorta", nan, nan),  # There was none, and none was found.
    measured("d", "aorta", 0.0, 40.0),  # Elsewhere: as wrong, but measured.
    measured("a", "coronaries", 0.8, 1.0),
    measured("b", "coronaries", 0.7, 3.0),
  ]
  result = segmenters.summarise(rows, [], draws=100)
  assert result["failed"] == {"aorta": 1, "coronaries": 0}
  assert segmenters.failed(files.strict(rows)) == result["failed"]
  text = segmenters.table(files.strict(result) | {"notes": []})
  for name in ("hd95_mm", "assd_mm"):
    (line,) = (x for x in text.splitlines() if x.startswith(name))
    assert line.index(" 1 failed") < line.index(" 0 failed")
  assert text.count(" failed") == 4
  assert "failed: scans where" in text


def test_numbers_follow_from_the_rows(tiny_segmenter, result):
  rows = read(tiny_segmenter / "eval" / "test_cases.jsonl")
  for name in ("aorta", "coronaries"):
    for metric in metrics.METRICS:
      values = [row[metric] for row in rows if row["class"] == name]
      values = [v for v in values if v is not None]
      entry = result["patient"][name][metric]
      assert entry["n"] == len(values)
      if values:
        assert entry["value"] == pytest.approx(np.mean(values))
  entry = result["mean_dice"]
  assert entry["low"] <= entry["value"] <= entry["high"]


def say(labels_of):
  """A `Trained.segment` that answers with what `labels_of` makes of HU."""

  def segment(self, hu, **_):
    return sliding.Segmentation(labels_of(hu))

  return segment


def truths(trained, split="test"):
  """The stored mask of each case, found again by its image."""
  dataset = tasks.find(trained.config).open_dataset(trained.config)
  records = [dataset.read(row) for row in dataset.rows[split]]
  return {record["image"].tobytes(): record["mask"] for record in records}


def test_the_truth_itself_is_perfect(tiny_segmenter, monkeypatch):
  trained = tasks.load_model(tiny_segmenter)
  masks = truths(trained)
  monkeypatch.setattr(
    segmenter.Segmenter,
    "segment",
    say(lambda hu: classes.map_mask(masks[hu.tobytes()], "aorta_coronaries")),
  )
  dataset = tasks.find(trained.config).open_dataset(trained.config)
  rows, lesions = segmenters.score_cases(trained, dataset, ["test"])
  assert not lesions
  summary = segmenters.summarise(rows, lesions, draws=100)
  aorta = summary["patient"]["aorta"]
  assert aorta["dice"].value == aorta["cldice"].value == 1
  assert aorta["hd95_mm"].value == aorta["volume_bias_ml"].value == 0
  # All are equal: a width of 0 would claim certainty.
  assert np.isnan(aorta["dice"].low)


def test_unknown_classes_have_no_rows(tiny_segmenter, monkeypatch):
  trained = tasks.load_model(tiny_segmenter)
  dataset = tasks.find(trained.config).open_dataset(trained.config)
  case = dataset.rows["test"][0]
  record = dict(dataset.read(case))
  record["mask_classes"] = np.array([1, 0, 1, 0, 0], np.uint8)
  monkeypatch.setattr(type(dataset), "read", lambda *_: record)
  rows, _ = segmenters.score_cases(trained, dataset, ["test"])
  assert {row["class"] for row in rows} == {"coronaries"}


def test_plaque_is_scored_by_lesion(tiny_segmenter, monkeypatch):
  trained = tasks.load_model(tiny_segmenter)
  trained.config.segment.classes = "four"
  masks = truths(trained)
  monkeypatch.setattr(
    segmenter.Segmenter, "segment", say(lambda hu: masks[hu.tobytes()])
  )
  dataset = tasks.find(trained.config).open_dataset(trained.config)
  _, lesions = segmenters.score_cases(trained, dataset, ["test"])
  assert [row["case_id"] for row in lesions] == [
    row["case_id"] for row in dataset.rows["test"]
  ]
  counts = {
    row["case_id"]: len(json.loads(dataset.read(row)["lesions"]))
    for row in dataset.rows["test"]
  }
  for row in lesions:
    assert row["lesions"] <= counts[row["case_id"]]
    assert row["false_positives"] == 0
  assert sum(row["lesions"] for row in lesions) > 0
  summary = segmenters.summarise([], lesions, draws=100)
  normal = sum(not row["lesions"] for row in lesions)
  assert summary["lesions"]["recall"].n == len(lesions) - normal


def row_of(case, patient, name, **values):
  blank = dict.fromkeys(metrics.METRICS)
  who = {"split": "test", "index": case, "case_id": f"c{case}"}
  return who | {"patient_id": patient, "class": name} | blank | values


def test_patients_count_alike_however_many_scans():
  rows = [
    row_of(0, "a", "aorta", dice=0.2),
    row_of(1, "a", "aorta", dice=0.4),
    row_of(2, "b", "aorta", dice=0.9),
    row_of(0, "a", "coronaries", dice=0.6),
    row_of(1, "a", "coronaries", dice=None),
    row_of(2, "b", "coronaries", dice=0.1),
  ]
  summary = segmenters.summarise(rows, [], draws=100)
  assert (summary["n_patients"], summary["n_scans"]) == (2, 3)
  assert summary["patient"]["aorta"]["dice"].value == pytest.approx(0.6)
  coronaries = summary["patient"]["coronaries"]["dice"]
  assert coronaries.value == pytest.approx(0.35)
  # Scan 0: 0.4, scan 1: 0.4, scan 2: 0.5.
  assert summary["mean_dice"].value == pytest.approx(0.45)
  assert summary["patient"]["aorta"]["iou"].method == "undefined"


def test_scans_of_a_fold_are_told_apart_by_their_ids():
  """A fold gathers cases of several stored splits, whose indices collide."""
  rows = [
    row_of(0, "a", "aorta", dice=1.0),
    row_of(0, "b", "aorta", dice=0.0) | {"case_id": "other"},
    row_of(1, "c", "aorta", dice=0.9),
  ]
  summary = segmenters.summarise(rows, [], draws=100)
  assert summary["n_scans"] == summary["mean_dice"].n == 3
  assert summary["mean_dice"].value == pytest.approx(1.9 / 3)


def test_two_segmenters_are_compared_scan_by_scan():
  rng = np.random.default_rng(0)
  theirs = rng.uniform(0.3, 0.9, 20)
  ours = theirs + 0.05 + rng.normal(0, 0.01, 20)
  rows, other = (
    [row_of(i, f"p{i}", "aorta", dice=v) for i, v in enumerate(values)]
    for values in (ours, theirs)
  )
  extra = [row_of(0, "p0", "lumen", dice=0.1)]
  found = segmenters.compare(rows, other + extra, draws=200)
  entry = found["aorta"]["dice"]
  assert set(found) == {"aorta"}
  assert entry.value == pytest.approx(np.mean(ours - theirs))
  # What the scans share cancels: the interval is far narrower than either's.
  assert 0.04 < entry.low < entry.high < 0.06
  with pytest.raises(UserError, match="same scans"):
    segmenters.compare(rows, other[1:])
  with pytest.raises(UserError, match="no class in common"):
    segmenters.compare(rows, extra)


def test_against_another_segmenter_and_not_a_classifier(
  tiny_segmenter, tiny_workdir, result, tmp_path
):
  copy = tmp_path / "again"
  shutil.copytree(tiny_segmenter, copy)
  found = evaluate_workdir(
    copy, against=str(tiny_segmenter), bootstrap=100, batch_size=4
  )
  assert found["against"]["difference"]["aorta"]["dice"]["value"] == 0
  evaluate_workdir(tiny_workdir, bootstrap=100)
  with pytest.raises(UserError, match="cannot be compared"):
    evaluate_workdir(tiny_segmenter, against=str(tiny_workdir), bootstrap=100)
  with pytest.raises(UserError, match="cannot be compared"):
    evaluate_workdir(tiny_workdir, against=str(copy), bootstrap=100)


def test_validation_is_called_optimistic(tiny_segmenter):
  found = evaluate_workdir(tiny_segmenter, split="validation", bootstrap=100)
  assert any("optimistic" in note for note in found["notes"])
  assert (tiny_segmenter / "eval" / "validation" / "worst.png").exists()


def test_program_prints_the_table(tiny_segmenter, result):
  done = subprocess.run(
    [
      sys.executable, "-m", "cadjax.evaluate",
      f"--workdir={tiny_segmenter}", "--bootstrap=100",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert segmenters.table(result) in done.stdout
  assert "coronaries" in done.stdout
