import json

import pytest

from cadjax.calcium import stored
from data_prep.errors import UserError

DOCUMENT = {
  "schema": "cadjax.calcium/1",
  "case": "native",
  "created": "2026-03-04T05:06:07+00:00",
  "total": {"agatston": 137.4, "lesions": 3},
  "search": {"box": None},
}


def test_a_score_is_read(tmp_path):
  path = tmp_path / "calcium.json"
  path.write_text(json.dumps(DOCUMENT))
  score = stored.read(path)
  assert (score.agatston, score.case, score.masked) == (137.4, "native", True)
  assert score.words == (
    "Agatston score 137 of native, 2026-03-04, counted inside a mask."
  )
  path.write_text(json.dumps(DOCUMENT | {"search": {"box": {"shape": [1]}}}))
  score = stored.read(path)
  assert not score.masked
  assert "calcium of valves" in score.words


@pytest.mark.parametrize(
  "change",
  [
    {"schema": "cadjax.case/1"},
    {"schema": 3},
    {"total": {"agatston": None}},
    {"total": {"agatston": True}},
    {"total": {"agatston": "12"}},
    {"total": {"agatston": -1.0}},
    {"total": {}},
    {"search": None},
  ],
)
def test_what_is_no_score_is_refused(tmp_path, change):
  path = tmp_path / "calcium.json"
  path.write_text(json.dumps(DOCUMENT | change))
  with pytest.raises(UserError, match=r"calcium\.json: is not a calcium"):
    stored.read(path)


def test_what_cannot_be_read_is_told(tmp_path):
  with pytest.raises(UserError, match="No such file"):
    stored.read(tmp_path / "none.json")
  (tmp_path / "bad.json").write_text("{")
  with pytest.raises(UserError, match="not valid JSON"):
    stored.read(tmp_path / "bad.json")
  (tmp_path / "list.json").write_text("[]")
  with pytest.raises(UserError, match="is not a calcium"):
    stored.read(tmp_path / "list.json")
