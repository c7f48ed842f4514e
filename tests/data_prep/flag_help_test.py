import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from data_prep import flag_help

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = '''
"""Counts sheep.

  sheep --name=DOLLY
"""
import sys
from absl import flags
from data_prep import errors

def define_flags():
  flags.DEFINE_string("name", None, "Of the 1st sheep, 100 % wool.",
                      required=True)
  flags.DEFINE_enum("sort", "ewe", ["ewe", "ram"], "Of sheep.")
  flags.DEFINE_multi_string("field", [], "Where they graze.")
  flags.DEFINE_list("size", ["3", "4"], "Of a field.")
  flags.DEFINE_integer("sheep", 7, "How many.")
  flags.DEFINE_bool("asleep", False, "Whether they are.")
  flags.DEFINE_bool("gate", True, "Whether it is shut.")

def main(argv):
  print(flags.FLAGS.name, argv[1:])

errors.run("count sheep", main, define_flags)
'''
LINES = [
  "usage: count sheep [--name=value ...]",
  "Counts sheep.",
  "  sheep --name=DOLLY",
  "--name=TEXT Of the 1st sheep, 100 % wool. (required)",
  "--sort=ewe|ram Of sheep. (default: ewe)",
  "--field=TEXT Where they graze; may be repeated.",
  "--size=A,B,... Of a field. (default: 3,4)",
  "--sheep=N How many. (default: 7)",
  "--asleep Whether they are. (default: false)",
  "--gate, --nogate Whether it is shut. (default: true)",
]


@pytest.fixture
def program(tmp_path):
  path = tmp_path / "sheep.py"
  path.write_text(PROGRAM.lstrip())

  def run(*args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
      [sys.executable, str(path), *args],
      env=os.environ | {"PYTHONPATH": str(ROOT)},
      capture_output=True,
      text=True,
    )

  return run


@pytest.mark.parametrize("option", ["-h", "--help", "--helpshort"])
def test_help_has_the_programs_own_flags_and_no_others(program, option):
  done = program("--sort=ram", option)
  assert done.returncode == 0, done.stderr
  assert not done.stderr
  # A long entry is broken into lines.
  said = " ".join(done.stdout.split())
  for line in LINES:
    assert " ".join(line.split()) in said
  own = [line for line in done.stdout.splitlines() if line.startswith("  --")]
  assert len(own) == 7
  assert "--verbosity" not in done.stdout


def test_helpfull_has_the_flags_of_the_libraries(program):
  done = program("--helpfull")
  assert "--verbosity" in done.stdout
  assert "--[no]gate" in done.stdout


def test_what_follows_two_dashes_asks_for_no_help(program):
  done = program("--name=dolly", "--", "--help")
  assert done.returncode == 2
  assert "unexpected argument '--help'" in done.stderr


def test_define_returns_new_flags_in_their_order():
  def define_flags():
    flags.DEFINE_string("zebra_of_this_test", None, "")
    flags.DEFINE_string("ant_of_this_test", None, "")

  own = flag_help.define(define_flags)
  for flag in own:
    delattr(flags.FLAGS, flag.name)
  assert [flag.name for flag in own] == [
    "zebra_of_this_test",
    "ant_of_this_test",
  ]
