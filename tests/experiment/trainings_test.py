"""Failed trainings are told, counted and shown."""

import json

import ml_collections
import numpy as np
import pytest

from cadjax.experiment import compare, page, plan, summary, trainings
from cadjax.experiment.store import Store


def workdir(folder, aucs, best):
  folder.mkdir()
  lines = [{"step": 1, "train/loss": 0.3}]
  lines += [
    {"step": 10 * (i + 1), "validation/roc_auc": auc}
    for i, auc in enumerate(aucs)
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "metrics.jsonl").write_text(text)
  (folder / "finished.json").write_text(json.dumps({"best_step": best}))
  return folder


def patients(count):
  return [{"patient_id": f"p{i}", "label": i % 2} for i in range(count)]


def test_the_limit_by_hand():
  """40 and 40: the variance is 81 / 19200; one of five is at 2.326."""
  found = trainings.least_auc(40, 40, 5)
  assert found == pytest.approx(0.5 + 2.3263 * 0.064952, abs=1e-4)


def test_networks_that_know_nothing_are_told():
  """Simulated: the best of ten epochs of random scores."""
  rng, labels = np.random.default_rng(0), np.arange(80) % 2
  limit = trainings.least_auc(40, 40, 10)
  ranks = rng.random((2000, 10, 80)).argsort(-1).argsort(-1) + 1
  sums = (ranks * labels).sum(-1)
  best = ((sums - 40 * 41 / 2) / 1600).max(1)
  assert 0.93 <= np.mean(best <= limit) <= 0.99


def test_a_training_is_judged_by_the_checkpoint_that_it_kept(tmp_path):
  bad = workdir(tmp_path / "bad", [0.5, 0.9, 0.55], 30)
  found = trainings.outcome(bad, patients(80))
  assert found["failed"]
  assert found["roc_auc"] == 0.55
  good = workdir(tmp_path / "good", [0.5, 0.9, 0.55], 20)
  assert not trainings.outcome(good, patients(80))["failed"]
  # The same AUC of ten patients tells nothing.
  few = workdir(tmp_path / "few", [0.7], 10)
  assert trainings.outcome(few, patients(10))["failed"]
  assert not trainings.outcome(few, patients(400))["failed"]


def test_of_a_segmenter_nothing_is_told(tmp_path):
  assert trainings.outcome(workdir(tmp_path / "a", [], 0), patients(8)) is None
  assert trainings.outcome(tmp_path, patients(8)) is None


def experiment(tmp_path, failed):
  """Two arms of five folds; the second's cells of `failed` folds failed."""
  some = ml_collections.ConfigDict({"data": {}})
  made = plan.make_plan(
    {
      "question": "Is a better than b?",
      "claim": "",
      "data": {"phantoms": ("--source=phantom", "--cases=200")},
      "arms": {
        "a": {"title": "A", "config": some},
        "b": {"title": "B", "config": some},
        "linked": {"title": "L", "needs": {"x": "b"}},
      },
      "metric": "roc_auc",
      "folds": (0, 1, 2, 3, 4),
      "comparisons": (("a", "b"), ("a", "linked")),
    }
  )
  store, rng = Store(tmp_path / "cells"), np.random.default_rng(0)
  for cell in made.cells():
    is_bad = cell.arm != "a" and cell.fold in failed
    rows = [
      {
        "patient_id": f"f{cell.fold}p{i}",
        "label": i % 2,
        "probability": float(
          np.clip(rng.normal(0.5 if is_bad else 0.4 + 0.2 * (i % 2), 0.1), 0, 1)
        ),
        "threshold": 0.5,
      }
      for i in range(40)
    ]
    outcome = {"failed": is_bad, "roc_auc": 0.5 if is_bad else 0.9}
    value = {"entries": {"": rows}, "sizes": [120, 40]}
    value["cost"] = {"seconds": 1, "peak_bytes": 1, "device": "cpu"}
    value["cost"] |= {"devices": 1, "code": None}
    if cell.arm != "linked":
      value["training"] = outcome | {"least_auc": 0.65}
    store.folder(cell.name).mkdir(parents=True)
    store.finish(cell.name, value)
  return made, store


def test_failed_trainings_are_counted_and_left_out_beside(tmp_path):
  made, store = experiment(tmp_path, failed=(1, 3))
  result = page.write(tmp_path / "out", made, store)
  lines = {row["line"]: row for row in result["lines"]}
  assert lines["a"]["trainings_failed"] == 0
  assert "without_failed" not in lines["a"]["metrics"]["roc_auc"]
  # What was measured with a failed training counts with it.
  assert lines["b"]["trainings_failed"] == 2
  assert lines["linked"]["trainings_failed"] == 2
  entry = lines["b"]["metrics"]["roc_auc"]
  values = {one["fold"]: one["value"] for one in entry["cells"]}
  assert entry["value"] == pytest.approx(np.mean(list(values.values())))
  kept = [values[fold] for fold in (0, 2, 4)]
  assert entry["without_failed"]["value"] == pytest.approx(np.mean(kept))
  assert sorted(result["trainings"]["failed"]) == [
    "b/fold1_seed0",
    "b/fold3_seed0",
  ]
  one = result["comparisons"][0]
  assert one["n_cells"] == 5
  assert one["without_failed"]["n_cells"] == 3
  assert abs(one["without_failed"]["difference"]) < one["difference"]
  assert "; without failed trainings" in result["answers"][0]
  html = (tmp_path / "out" / "index.html").read_text()
  assert "2 of 5 trainings failed" in html
  assert "b/fold1_seed0</code>: validation AUC 0.500" in html
  assert "2 of 5 trainings failed; without them" in page.text(result)
  readme = page.markdown(tmp_path, [tmp_path / "out" / "results.json"])
  assert "B: 2 of 5 trainings failed" in readme


def test_where_none_failed_nothing_is_said(tmp_path):
  made, store = experiment(tmp_path, failed=())
  result = page.write(tmp_path / "out", made, store)
  assert "failed trainings" not in "".join(result["answers"])
  html = (tmp_path / "out" / "index.html").read_text()
  assert "Failed trainings" not in html
  # What could have been shown stands beside what was found.
  one = result["comparisons"][0]
  assert one["can_show"]["smallest"] > 0
  assert f"{one['can_show']['smallest']:.3f}" in html
  assert f"planned: {one['planned']['smallest']:.3f}" in html
  assert f"could show {one['can_show']['smallest']:.3f}" in result["answers"][0]


def test_all_of_a_line_may_fail(tmp_path):
  made, store = experiment(tmp_path, failed=range(5))
  result = page.write(tmp_path / "out", made, store)
  row = next(row for row in result["lines"] if row["line"] == "b")
  assert row["trainings_failed"] == 5
  assert row["metrics"]["roc_auc"]["without_failed"]["value"] is None
  assert (
    "5 of 5 trainings failed" in (tmp_path / "out" / "index.html").read_text()
  )


def test_a_cell_of_an_older_version_counts_as_not_failed(tmp_path):
  made, store = experiment(tmp_path, failed=(1,))
  for cell in made.cells():
    value = store.read(cell.name)
    value.pop("training", None)
    store.finish(cell.name, value)
  result = summary.summarise(made, store)
  assert result["trainings"]["known"] == 0
  assert all(row["trainings_failed"] == 0 for row in result["lines"])
  assert isinstance(summary.collect(made, store)["b"], compare.Line)
