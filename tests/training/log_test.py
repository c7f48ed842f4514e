"""The run's log tells one story, however often the run was killed."""

import json

from cadjax.training.log import RunLog


def steps_in(path):
  lines = (path / "metrics.jsonl").read_text().splitlines()
  return [json.loads(line)["step"] for line in lines]


def test_resuming_drops_what_came_after(tmp_path):
  log = RunLog(tmp_path, 0)
  for step in (1, 2, 3):
    log.scalars(step, "train", {"loss": 0.5})
  log.close()
  with (tmp_path / "metrics.jsonl").open("a") as f:
    f.write('{"step": 4, "train/lo')  # A killed run ends in half a line.
  log = RunLog(tmp_path, 2)
  log.scalars(3, "train", {"loss": 0.25})
  log.close()
  assert steps_in(tmp_path) == [1, 2, 3]
  last = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
  assert json.loads(last) == {"step": 3, "train/loss": 0.25}


def test_undefined_is_null(tmp_path):
  log = RunLog(tmp_path, 0)
  log.scalars(1, "validation", {"roc_auc": float("nan")})
  log.close()
  text = (tmp_path / "metrics.jsonl").read_text()
  assert json.loads(text)["validation/roc_auc"] is None
  assert "NaN" not in text
