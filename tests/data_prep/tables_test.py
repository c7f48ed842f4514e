"""Tables as spreadsheets write them."""

import pytest

from data_prep import tables
from data_prep.errors import UserError


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_a_table_is_read_however_it_was_saved(tmp_path, mark, encoding):
  lines = ["Scan ID,Label ", "é1, 0", "", ",,", "b"]
  path = tmp_path / "table.csv"
  text = "\r\n".join(lines).replace(",", mark)
  path.write_bytes(text.encode(encoding))
  assert tables.read_table(path, ["scan_id"]) == [
    {"scan_id": "é1", "label": "0"},
    {"scan_id": "b", "label": ""},
  ]


def test_quotes_keep_what_separates(tmp_path):
  path = tmp_path / "table.csv"
  path.write_text('id,note\na,"x, y"\n')
  assert tables.read_table(path) == [{"id": "a", "note": "x, y"}]


def test_names_of_columns_are_alike():
  for cell in ("Scan ID", " scan_id", "SCAN - id"):
    assert tables.column_name(cell) == "scan_id"


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("a.csv", "id,b\n1,2\n", r"lacks the column\(s\) label; it has id, b"),
    ("a.csv", "\n,\n", "the table is empty"),
    ("a.xlsx", "id,label\n", "unreadable; save the table as csv"),
    ("a.csv", None, "no such file"),
  ],
)
def test_what_is_no_table_is_refused(tmp_path, name, content, message):
  path = tmp_path / name
  if content is not None:
    path.write_text(content)
  with pytest.raises(UserError, match=f"{name}: {message}"):
    tables.read_table(path, ["id", "label"])


def test_one_case_has_one_value(tmp_path):
  path = tmp_path / "a.csv"
  assert tables.by_id([("a", 1), ("b", 2), ("a", 1)], path) == {"a": 1, "b": 2}
  with pytest.raises(UserError, match="case a twice, with 1 and with 2"):
    tables.by_id([("a", 1), ("a", 2)], path)
