"""Tests of tables that a program writes into a README."""

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
