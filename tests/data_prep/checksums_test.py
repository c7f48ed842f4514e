"""A file that has changed is named; a file beside the others is not."""

import json
import random

import pytest

from data_prep import checksums
from data_prep.errors import UserError


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "deep").mkdir()
  (tmp_path / "deep" / "a.bin").write_bytes(bytes(range(200)))
  (tmp_path / "b.json").write_text('{"b": 1}')
  checksums.write(tmp_path, records=[1, "two"])
  return tmp_path


def test_whole_files_give_what_was_written(folder):
  found = checksums.check(folder)
  assert set(found["files"]) == {"deep/a.bin", "b.json"}
  assert found["records"] == [1, "two"]
  (folder / "other").write_text("may come")
  assert checksums.check(folder) == found


def test_without_checksums_nothing_is_known(tmp_path):
  assert checksums.check(tmp_path) is None


@pytest.mark.parametrize("name", ["deep/a.bin", "b.json"])
def test_a_changed_or_missing_file_is_named(folder, name):
  content = (folder / name).read_bytes()
  (folder / name).write_bytes(content[:-1])
  with pytest.raises(UserError, match=f"{name} is damaged"):
    checksums.check(folder)
  (folder / name).unlink()
  with pytest.raises(UserError, match=f"{name} is missing"):
    checksums.check(folder)


def test_every_flipped_bit_of_the_list_itself_is_seen(folder):
  """Or changes nothing but its layout."""
  path, rng = folder / checksums.NAME, random.Random(0)
  content, value = path.read_bytes(), json.loads(path.read_text())
  for _ in range(200):
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)
    try:
      checksums.check(folder)
    except UserError:
      continue
    assert json.loads(path.read_text("utf-8")) == value


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"sha256": 3}'])
def test_what_is_no_list_of_checksums(tmp_path, text):
  (tmp_path / checksums.NAME).write_text(text)
  with pytest.raises(UserError, match="is damaged"):
    checksums.check(tmp_path)
