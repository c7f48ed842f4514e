"""Tables as spreadsheets write them."""

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


def test_one_case_has_one_value(tmp_path):
  path = tmp_path / "a.csv"
  assert tables.by_id([("a", 1), ("b", 2), ("a", 1)], path) == {"a": 1, "b": 2}
  with pytest.raises(UserError, match="case a twice, with 1 and with 2"):
    tables.by_id([("a", 1), ("a", 2)], path)


def workbook(path, sheet, strings="<si><t>id</t></si>"):
  name = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr(
      "xl/sharedStrings.xml", f'<sst xmlns="{name}">{strings}</sst>'
    )
    archive.writestr(
      "xl/worksheets/sheet1.xml",
      f'<worksheet xmlns="{name}"><sheetData>{sheet}</sheetData></worksheet>',
    )


ROWS = (
  '<row><c r="A1" t="s"><v>0</v></c><c r="B1" t="inlineStr"><is><t>label</t>'
  "</is></c></row>"
  + "".join(f'<row><c r="A{i}"><v>{i}</v></c></row>' for i in range(2, 30))
)


@pytest.mark.parametrize(
  "sheet",
  [
    '<row><c r="A1" t="s"><v>7</v></c></row>',
    '<row><c r="A1" t="s"><v>many</v></c></row>',
    '<row><c r="ZZZZZZ1"><v>7</v></c></row>',
  ],
)
def test_a_sheet_that_refers_to_nothing_is_refused(tmp_path, sheet):
  workbook(tmp_path / "a.xlsx", sheet)
  with pytest.raises(UserError, match="save the table as csv"):
    tables.read_table(tmp_path / "a.xlsx")


def test_a_part_that_would_fill_memory_is_refused(tmp_path, monkeypatch):
  workbook(tmp_path / "a.xlsx", ROWS)
  assert len(tables.read_table(tmp_path / "a.xlsx", ["id"])) == 28
  monkeypatch.setattr(tables, "_MOST_BYTES", 100)
  with pytest.raises(UserError, match="save the table as csv"):
    tables.read_table(tmp_path / "a.xlsx")


def test_every_flipped_bit_of_a_workbook_is_refused_or_changes_nothing(
  tmp_path,
):
  path, rng = tmp_path / "a.xlsx", random.Random(0)
  workbook(path, ROWS)
  content, expected = path.read_bytes(), tables.read_table(path)
  refused = 0
  for _ in range(300):
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)
    try:
      found = tables.read_table(path)
    except UserError:
      refused += 1
    else:
      assert found == expected
  assert refused > 100
