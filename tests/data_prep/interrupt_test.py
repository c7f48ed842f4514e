"""Ctrl-C is one line, before the program has begun as well."""

import subprocess
import sys

import pytest

# A shell's background job ignores Ctrl-C, and so do its children.
HEED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
# As a nested import of jax may do, or an extension module.
SWALLOW = """
import {package}
try:
  signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
  raise SystemError("in an extension module")
"""


def run(folder, code, *, package="cadjax"):
  (folder / "probe").mkdir()
  (folder / "probe" / "__init__.py").write_text(f"{HEED}import {package}")
  (folder / "probe" / "run.py").write_text(code)
  return subprocess.run(
    [sys.executable, "-m", "probe.run"],
    cwd=folder,
    env={"PYTHONPATH": ":".join([str(folder), *sys.path])},
    capture_output=True,
    text=True,
    timeout=60,
  )


@pytest.mark.parametrize("package", ["cadjax", "data_prep"])
def test_while_a_program_is_imported(package, tmp_path):
  code = "import signal\n" + SWALLOW.format(package=package)
  done = run(tmp_path, code, package=package)
  assert done.returncode == 130
  assert done.stderr == "stopped\n"


def test_a_bug_while_imported_is_a_traceback(tmp_path):
  done = run(tmp_path, "raise RuntimeError('a bug')")
  assert done.returncode == 1
  assert "RuntimeError: a bug" in done.stderr


def test_a_background_job_goes_on(tmp_path):
  code = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from data_prep import interrupt
interrupt.guard()
interrupt.unguard()
signal.raise_signal(signal.SIGINT)
print("went on")
"""
  done = run(tmp_path, code)
  assert done.returncode == 0
  assert done.stdout == "went on\n"


def test_as_a_library_it_changes_nothing():
  code = f"""{HEED}
import cadjax
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )
  assert done.stdout == "True\n"


def test_one_that_python_ignores_is_sent_again():
  """As when it comes within a callback of the garbage collector."""
  code = f"""{HEED}
import time
from data_prep import interrupt
interrupt.unguard()
class Swallows:
  def __del__(self):
    signal.raise_signal(signal.SIGINT)
    time.sleep(0)
try:
  one = Swallows()
  del one
  time.sleep(30)
except KeyboardInterrupt:
  interrupt.stop("stopped here")
"""
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )
  assert done.returncode == 130
  assert done.stderr == "stopped here\n"
