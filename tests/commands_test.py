"""The commands that the README lists and that make runs."""

import pathlib
import re
import shutil
import subprocess

import pytest

from cadjax.evaluation import links

ROOT = pathlib.Path(__file__).parents[1]


def listed() -> list[str]:
  """Returns the README's "One command per program", in order."""
  readme = (ROOT / "README.md").read_text()
  section = readme.partition("## One command per program")[2]
  return re.findall(r"`(python -m [^`]+)`", section.partition("\n## ")[0])


def test_no_two_commands_write_into_one_folder():
  commands = listed()
  assert len(commands) > 10
  found = re.findall(r" --out=(\S+)", " ".join(commands))
  assert sorted(set(found)) == sorted(found)


def test_enough_phantoms_are_written_to_measure_the_link():
  (export,) = [one for one in listed() if "data_prep.export" in one]
  (measure,) = [one for one in listed() if "cadjax.evaluate_link" in one]
  cases = int(re.search(r"--cases=(\d+)", export).group(1))
  folder = re.search(r"--out=(\S+)", export).group(1)
  assert cases >= links.LEAST_SCANS
  assert f"--scans={folder} " in measure


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_demo_goes_on_where_it_was_interrupted(tmp_path):
  parts = ("data", "masks", "scans")
  for part in parts:
    (tmp_path / part).mkdir()

  def makes() -> list[str]:
    done = subprocess.run(
      ["make", "-n", "demo", f"DEMO={tmp_path}"],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
    )
    return [part for part in parts if f"--out={tmp_path}/{part}" in done.stdout]

  assert makes() == list(parts)
  (tmp_path / "masks" / ".ready").touch()
  assert makes() == ["data", "scans"]
