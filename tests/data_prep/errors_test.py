"""A user's mistake is one line and exit code 2; a bug is a traceback."""

import os
import subprocess
import sys

import pytest

from data_prep import errors

PROGRAM = """
import errno, os, signal
from absl import flags
from data_prep import errors
def define_flags():
  flags.DEFINE_integer("size", 1, "A size.")
def main(_):
  size = flags.FLAGS.size
  if size == 2:
    raise errors.UserError("--size=2:\\n  choose another")
  if size == 3:
    raise KeyError("expected")
  if size == 4:
    raise RuntimeError("a bug")
  if size == 5:
    # A shell's background job ignores Ctrl-C, and so do its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGINT)
    while True: pass
  if size == 6:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/a.json")
  if size == 7:
    os.makedirs("/dev/null/sub")
  if size == 8:
    raise OSError("of a library: a bug")
  print("size", size)
errors.run("program", main, define_flags, expected=(KeyError,))
"""


def test_one_line_shows_all():
  error = errors.UserError(" two\n lines\x1b[0m, é \udce9")
  assert errors.one_line(error) == "two lines\\x1b[0m, é \\udce9"
  assert errors.one_line("a\tb") == "a b"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_what_a_terminal_cannot_show_is_printed_escaped(stream):
  print_ = f"import sys; print('\\udce9 é', file=sys.{stream})"
  program = PROGRAM.replace('print("size", size)', print_)
  done = subprocess.run(
    [sys.executable, "-c", program],
    capture_output=True,
    env={"PYTHONIOENCODING": "ascii", "PYTHONPATH": ""} | os.environ,
  )
  assert done.returncode == 0, done.stderr
  assert getattr(done, stream).startswith(b"\\udce9 ")


@pytest.mark.parametrize(
  ("argument", "code", "message"),
  [
    ("--size=1", 0, None),
    ("--size=2", 2, "error: --size=2: choose another"),
    ("--size=3", 2, "error: 'expected'"),
    ("--size=x", 2, "error: flag --size=x"),
    ("--siz=1", 2, "error: Unknown command line flag 'siz'. Did you mean"),
    ("size=1", 2, "error: unexpected argument 'size=1'"),
    ("--size=4", 1, None),
    ("--size=5", 130, "stopped"),
    ("--size=6", 2, "error: out/a.json: No space left on device; free some"),
    ("--size=7", 2, "error: /dev/null/sub: Not a directory; a file is where"),
    ("--size=8", 1, None),
  ],
)
def test_how_a_program_ends(argument, code, message):
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, argument], capture_output=True, text=True
  )
  assert done.returncode == code
  if message:
    (line,) = done.stderr.splitlines()
    assert line.startswith(message)
    assert not done.stdout
  assert ("Traceback" in done.stderr) == (code == 1)


def test_a_message_of_several_lines_becomes_one():
  assert errors.one_line(ValueError(" a\n\n  b\tc ")) == "a b c"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_what_is_printed_to_a_full_disk_is_one_line():
  with open("/dev/full", "w") as full:
    done = subprocess.run(
      [sys.executable, "-c", PROGRAM, "--size=1"],
      stdout=full,
      stderr=subprocess.PIPE,
      text=True,
    )
  assert done.returncode == 2
  assert done.stderr.startswith("error: No space left on device")
  assert done.stderr.count("\n") == 1


def test_numbers_are_those_of_plain_text():
  assert errors.to_number(" -1.5e2 ") == -150
  for text in ("1_0", "\u0663", "", "1,5", "ten"):
    assert errors.to_number(text) is None
