"""Tables as spreadsheets write them."""

import os
import random
import zipfile

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


NS = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


@pytest.mark.parametrize(
  "change",
  [
    {"xl/sharedStrings.xml": f"<sst {NS}></sst>"},
    {"xl/sharedStrings.xml": "<sst"},
    {"xl/worksheets/sheet1.xml": " " * (64 << 20)},
    {"cell": '<c r="ZZZZZZ1"><v>1</v></c>'},
    {"cell": '<c r="A1" t="s"><v>-1</v></c>'},
    {"cell": '<c r="A1" t="s"><v>x</v></c>'},
  ],
)
def test_damaged_workbooks_are_one_message(tmp_path, change):
  path = tmp_path / "a.xlsx"
  cell = change.pop("cell", '<c r="A1" t="s"><v>0</v></c>')
  row = f'<sheetData><row r="1">{cell}</row></sheetData>'
  parts = {
    "xl/sharedStrings.xml": f"<sst {NS}><si><t>id</t></si></sst>",
    "xl/worksheets/sheet1.xml": f"<worksheet {NS}>{row}</worksheet>",
  }
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in (parts | change).items():
      archive.writestr(name, content)
  with pytest.raises(UserError, match="unreadable; save the table as csv"):
    tables.read_table(path)


def test_no_changed_bit_of_a_workbook_is_a_traceback(tmp_path):
  path = tmp_path / "a.xlsx"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("xl/worksheets/sheet1.xml", f"<worksheet {NS}/>" * 9)
  content = path.read_bytes()
  rng = random.Random(0)
  for _ in range(300):
    bad = bytearray(content)
    del bad[: rng.choice((0, 0, 1, 68))]
    bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
    path.write_bytes(bad)
    with pytest.raises(UserError, match="unreadable"):
      tables.read_table(path)


def test_a_pipe_is_no_table(tmp_path):
  os.mkfifo(tmp_path / "a.csv")
  with pytest.raises(UserError, match="no such file"):
    tables.read_table(tmp_path / "a.csv")


def test_one_case_has_one_value(tmp_path):
  path = tmp_path / "a.csv"
  assert tables.by_id([("a", 1), ("b", 2), ("a", 1)], path) == {"a": 1, "b": 2}
  with pytest.raises(UserError, match="case a twice, with 1 and with 2"):
    tables.by_id([("a", 1), ("a", 2)], path)
