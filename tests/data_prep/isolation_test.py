"""Calls in a process of their own: results, errors, crashes."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from data_prep import isolation
from data_prep.errors import UserError


def call(fn, *args):
  return isolation.call(fn, *args, path="some/scan")


def who():
  return os.getpid()


def arrays(seed):
  rng = np.random.default_rng(seed)
  c_order = rng.integers(0, 99, (70, 50, 300), np.int16)  # 2 MB
  return {"c": c_order, "f": c_order.T, "empty": np.zeros((0, 3)), "n": seed}


def die(number):
  os.kill(os.getpid(), number)


def leave(code):
  os._exit(code)


def complain():
  raise UserError("what the file has")


def fail():
  return 1 / 0


def print_much():
  os.write(1, b"out")
  os.write(2, b"err")


def test_it_is_another_process_which_is_kept():
  isolation.stop()
  pid = isolation.call(os.getpid, path="x")
  modules = isolation.call(eval, "[*__import__('sys').modules]", path="x")
  assert "data_prep.isolation" in modules
  assert not {"jax", "cadjax", "pytest", "matplotlib"}.intersection(modules)
  assert pid != os.getpid()
  assert call(who) == pid


def test_arrays_come_back_as_they_were_and_are_our_own():
  for seed in range(3):
    found, expected = call(arrays, seed), arrays(seed)
    for name, array in expected.items():
      np.testing.assert_array_equal(found[name], array)
    assert found["c"].flags.c_contiguous
    assert found["f"].flags.f_contiguous
    found["c"][:] = 1  # Writable, and no other result is changed by it.
    np.testing.assert_array_equal(call(arrays, seed)["c"], expected["c"])


def test_errors_come_back_and_the_process_stays():
  pid = call(who)
  with pytest.raises(UserError, match="^what the file has$"):
    call(complain)
  with pytest.raises(ZeroDivisionError) as error:
    call(fail)
  assert "return 1 / 0" in error.value.__notes__[0]
  assert call(who) == pid


@pytest.mark.parametrize(
  ("fn", "value", "match"),
  [
    (die, signal.SIGSEGV, r"crashed \(Segmentation fault\); the file is dam"),
    (die, signal.SIGABRT, r"crashed \(Aborted\)"),
    (die, signal.SIGKILL, "was killed, most likely for want of memory"),
    (leave, 3, r"crashed \(exit code 3\)"),
  ],
)
def test_a_crash_is_one_line_and_the_next_call_goes_on(fn, value, match):
  pid = call(who)
  with pytest.raises(UserError, match=match) as error:
    call(fn, value)
  assert str(error.value).startswith("some/scan: ")
  assert call(who) != pid


def test_a_call_that_takes_too_long_is_given_up(monkeypatch):
  call(who)
  monkeypatch.setattr(isolation, "TIMEOUT_S", 0.1)
  with pytest.raises(UserError, match="took longer than"):
    call(time.sleep, 60)
  monkeypatch.undo()
  assert call(who)


def test_what_it_prints_is_not_shown(capfd):
  call(print_much)
  assert capfd.readouterr() == ("", "")


def test_threads_take_turns():
  found = {}

  def one(seed):
    found[seed] = call(arrays, seed)

  threads = [threading.Thread(target=one, args=[seed]) for seed in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert [found[seed]["n"] for seed in range(8)] == list(range(8))


def test_interrupting_a_call_leaves_no_answer_for_the_next():
  pid = call(who)
  # A shell that runs the tests in the background has them ignore it.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  main = threading.main_thread().ident
  threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT)).start()
  try:
    with pytest.raises(KeyboardInterrupt):
      call(time.sleep, 60)
  finally:
    signal.signal(signal.SIGINT, before)
  assert call(who) != pid


def test_it_ends_with_its_caller():
  """Even if that one is killed, and has no time to say so."""
  program = (
    "import os, signal; from data_prep import isolation;"
    "print(isolation.call(os.getpid, path='x'), flush=True);"
    "os.kill(os.getpid(), signal.SIGKILL)"
  )
  done = subprocess.run(
    [sys.executable, "-c", program], capture_output=True, text=True, check=False
  )
  pid = int(done.stdout)
  for _ in range(100):
    if not _is_running(pid):
      return
    time.sleep(0.1)
  pytest.fail(f"process {pid} is still there")


def _is_running(pid):
  try:
    with open(f"/proc/{pid}/stat") as file:
      return file.read().rsplit(")")[-1].split()[0] != "Z"
  except FileNotFoundError:
    return False


def allocate(count, limit):
  with isolation.at_most(limit):
    return len(bytearray(count))


def test_memory_beyond_the_limit_is_refused_and_the_limit_ends():
  if not os.path.exists("/proc/self/statm"):
    pytest.skip("this system has no such limit")
  assert isolation.call(allocate, 10**6, 10**8, path="x") == 10**6
  with pytest.raises(MemoryError):
    isolation.call(allocate, 10**9, 10**8, path="x")
  assert isolation.call(allocate, 3 * 10**8, 10**9, path="x") == 3 * 10**8
