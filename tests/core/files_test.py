"""Files are whole or not there, and nobody's own files are touched."""

import csv
import dataclasses
import json
import math
import os

import numpy as np
import pytest

from cadjax.core import files
from data_prep.errors import UserError


def test_what_lies_between_the_marks_is_replaced(tmp_path):
  readme = tmp_path / "README.md"
  begin, end = files.table_marks("tpu")
  readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
  files.replace_table(readme, "tpu", "new")
  assert readme.read_text() == f"before\n{begin}\nnew\n{end}\nafter\n"


@pytest.mark.parametrize("kept", [(), (0,), (1,)])
def test_without_both_marks_the_file_stays(tmp_path, kept):
  readme = tmp_path / "README.md"
  text = "\n".join(files.table_marks("tpu")[index] for index in kept)
  readme.write_text(text)
  with pytest.raises(UserError, match=r"the marks .* are missing"):
    files.replace_table(readme, "tpu", "new")
  assert readme.read_text() == text


def test_a_missing_file_is_one_line(tmp_path):
  with pytest.raises(UserError, match="cannot be read"):
    files.replace_table(tmp_path / "none.md", "tpu", "new")


def test_strict_json_has_neither_nan_nor_types_of_numpy():
  value = {
    "nan": math.nan,
    "list": (np.float32(0.5), np.inf, [np.int64(3), None]),
    "deep": {1: {"flag": np.bool_(True), "text": "nan"}},
  }
  found = files.strict(value)
  assert found == {
    "nan": None,
    "list": [0.5, None, [3, None]],
    "deep": {"1": {"flag": True, "text": "nan"}},
  }
  assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_rows_come_back_as_they_were(tmp_path):
  rows = [
    {"case_id": "a", "probability": 0.25, "logits": [[1.0, 2.0]]},
    {"case_id": "b,c", "probability": math.nan, "logits": []},
  ]
  files.write_rows(tmp_path, "cases", rows)
  found = files.read_rows(tmp_path / "cases.jsonl", ["case_id", "logits"])
  assert found == [rows[0], rows[1] | {"probability": None}]
  with (tmp_path / "cases.csv").open() as f:
    table = list(csv.DictReader(f))
  assert [row["case_id"] for row in table] == ["a", "b,c"]
  assert set(table[0]) == {"case_id", "probability"}  # Lists have no column.


def test_rows_of_something_else_are_refused(tmp_path):
  files.write_rows(tmp_path, "cases", [{"case_id": "a"}])
  with pytest.raises(UserError, match="run it again"):
    files.read_rows(tmp_path / "cases.jsonl", ["case_id", "label"])
  (tmp_path / "cases.jsonl").write_text("{")
  with pytest.raises(UserError, match="cannot be read"):
    files.read_rows(tmp_path / "cases.jsonl", [])


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path):
  path = tmp_path / "a.json"
  files.write_json(path, {"a": [1, None]})
  with pytest.raises(TypeError):
    files.write_json(path, {"a": object()})
  assert files.read_json(path) == {"a": [1, None]}
  path.write_bytes(b"\xff{")
  with pytest.raises(UserError, match="a.json is not valid JSON"):
    files.read_json(path)


KIND = files.ResultFolder("result.json", "kind/")


def write_result(folder, *, overwrite=False, extra="picture.png"):
  with KIND.writing(folder, overwrite=overwrite) as made:
    (made / extra).write_text("")
    names = {"result": "result.json", "extra": extra}
    document = {"schema": "kind/1", "files": names}
    (made / "result.json").write_text(json.dumps(document))


def content(folder):
  return {path.name for path in folder.iterdir()}


def test_a_result_is_whole_or_not_there(tmp_path):
  def fail():
    with KIND.writing(tmp_path / "out", overwrite=False) as made:
      (made / "picture.png").write_text("")
      raise KeyError("in the middle")

  with pytest.raises(KeyError):
    fail()
  assert content(tmp_path) == set()
  write_result(tmp_path / "out")
  assert content(tmp_path) == {"out"}
  assert content(tmp_path / "out") == {"result.json", "picture.png"}


def test_only_a_result_of_the_same_kind_is_replaced(tmp_path):
  out = tmp_path / "out"
  write_result(out)
  with pytest.raises(UserError, match="--overwrite replaces it"):
    write_result(out)
  write_result(out, overwrite=True, extra="other.png")
  assert content(out) == {"result.json", "other.png"}
  (out / "notes.txt").write_text("mine")
  with pytest.raises(UserError, match="holds notes.txt beside a result"):
    write_result(out, overwrite=True)
  assert (out / "notes.txt").read_text() == "mine"
  (out / "result.json").write_text('{"schema": "else/1", "files": {}}')
  with pytest.raises(UserError, match="holds no result"):
    write_result(out, overwrite=True)
  with pytest.raises(UserError, match="is a file"):
    write_result(out / "notes.txt", overwrite=True)


@dataclasses.dataclass
class Found:
  value: float
  rows: list


def test_a_journal_goes_on_after_the_last_whole_line(tmp_path):
  path = tmp_path / files.Journal.NAME
  about = {"scans": "here", "model": "a"}
  journal = files.Journal(tmp_path, about)
  journal.add("first", [Found(np.float32(0.5), [math.nan, "\u00e4"]), None])
  journal.add("second", {"of": np.int64(2)})
  journal.close()
  with path.open("a") as f:
    f.write('{"key": "third", "val')
  again = files.Journal(tmp_path, about)
  (value, nothing), second = again.done.values()
  assert value["value"] == 0.5
  # NaN stays NaN, whether or not the run was interrupted.
  assert math.isnan(value["rows"][0])
  assert value["rows"][1] == "\u00e4"
  assert (nothing, second) == (None, {"of": 2})
  assert repr(journal.done) == repr(again.done)
  again.add("third", 3)
  again.close()
  last = files.Journal(tmp_path, about)
  assert list(last.done) == ["first", "second", "third"]
  with pytest.raises(UserError, match="another process writes it"):
    files.Journal(tmp_path, about)
  last.remove()
  with files.Journal(tmp_path, about | {"model": "b"}) as journal:
    assert journal.done == {}


def test_a_journal_of_another_run_is_refused_and_says_what_differs(tmp_path):
  journal = files.Journal(tmp_path, {"model": "a", "seed": 0})
  journal.add("first", 1)
  journal.close()
  text = (tmp_path / files.Journal.NAME).read_text()
  with pytest.raises(UserError) as caught:
    files.Journal(tmp_path, {"model": "a", "seed": 1})
  assert "with other seed (then 0, now 1); repeat" in str(caught.value)
  assert "model" not in str(caught.value)
  assert (tmp_path / files.Journal.NAME).read_text() == text
  # It is not locked by who was refused.
  files.Journal(tmp_path, {"model": "a", "seed": 0}).close()


@pytest.mark.parametrize(
  "text", ["mine", "mine\nand mine\n", "[1]\n", "{}\n3\n", "\xff\n"]
)
def test_a_file_that_is_no_journal_is_refused(tmp_path, text):
  path = tmp_path / files.Journal.NAME
  path.write_text(text, "latin-1")
  with pytest.raises(UserError, match="cannot be read"):
    files.Journal(tmp_path, {})
  assert path.read_text("latin-1") == text


def test_a_journal_whose_first_line_was_cut_off_begins_anew(tmp_path):
  path = tmp_path / files.Journal.NAME
  path.write_text('{"model": "a", "se')
  files.Journal(tmp_path, {"model": "b"}).close()
  assert path.read_text() == '{"model": "b"}\n'


def test_a_pipe_is_no_json(tmp_path):
  os.mkfifo(tmp_path / "a.json")
  with pytest.raises(UserError, match="is not a regular file"):
    files.read_json(tmp_path / "a.json")
