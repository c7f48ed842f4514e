"""Ctrl-C is one line, before the program has begun as well."""

import subprocess
import sys

import pytest

PROBE = """
import {package}
import os, signal
# A shell's background job ignores Ctrl-C, and so do its children.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.kill(os.getpid(), signal.SIGINT)
while True: pass
"""


@pytest.mark.parametrize("package", ["cadjax", "data_prep"])
def test_while_a_program_is_imported(package, tmp_path):
  (tmp_path / "probe").mkdir()
  (tmp_path / "probe" / "__init__.py").write_text(f"import {package}")
  (tmp_path / "probe" / "run.py").write_text(PROBE.format(package=package))
  done = subprocess.run(
    [sys.executable, "-m", "probe.run"],
    cwd=tmp_path,
    env={"PYTHONPATH": ":".join([str(tmp_path), *sys.path])},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 130
  assert done.stderr == "stopped\n"


def test_a_bug_while_imported_is_a_traceback(tmp_path):
  (tmp_path / "probe").mkdir()
  (tmp_path / "probe" / "__init__.py").write_text("import cadjax")
  (tmp_path / "probe" / "run.py").write_text("raise RuntimeError('a bug')")
  done = subprocess.run(
    [sys.executable, "-m", "probe.run"],
    cwd=tmp_path,
    env={"PYTHONPATH": ":".join([str(tmp_path), *sys.path])},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1
  assert "RuntimeError: a bug" in done.stderr


def test_as_a_library_it_changes_nothing():
  code = "import sys, cadjax; print(sys.excepthook is sys.__excepthook__)"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )
  assert done.stdout == "True\n"


def test_a_second_one_while_it_closes_ends_at_once():
  code = """
import atexit, os, signal
from data_prep import interrupt
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
interrupt.stop("stopped here")
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )
  assert done.returncode == 130
  assert done.stderr == "stopped here\n"
