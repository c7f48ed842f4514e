"""The ordered map: order, bound, errors, and workers that die."""

import functools
import os
import signal

import pytest
import SimpleITK as sitk

from data_prep import workers
from data_prep.errors import UserError


def square(x):
  if x == 5:
    raise UserError("five is bad")
  return x * x


def threads_and_pid(_):
  return (
    os.environ["OMP_NUM_THREADS"],
    sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(),
    os.getpid(),
  )


def hears_interrupts(_):
  return signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def die(x):
  if x == 3:
    os.kill(os.getpid(), signal.SIGKILL)
  return x


def fail(x):
  raise ZeroDivisionError(x)


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_order_with_errors_in_their_place(count):
  found = list(workers.ordered_map(square, range(9), workers=count))
  assert isinstance(found[5], UserError)
  assert str(found.pop(5)) == "five is bad"
  assert found == [x * x for x in range(9) if x != 5]


def test_no_more_is_under_way_than_promised(tmp_path):
  mark = functools.partial(touch, tmp_path)
  results = workers.ordered_map(mark, range(40), workers=2)
  next(results)
  results.close()  # Lets what is under way end, and starts nothing else.
  assert 1 <= len(list(tmp_path.iterdir())) <= 5


def touch(folder, x):
  (folder / str(x)).touch()
  return x


def test_workers_run_on_one_thread_each():
  before = dict(os.environ)
  found = list(workers.ordered_map(threads_and_pid, range(6), workers=2))
  assert {(omp, itk) for omp, itk, _ in found} == {("1", 1)}
  assert os.getpid() not in {pid for *_, pid in found}
  assert dict(os.environ) == before


def test_interrupts_reach_the_parent_alone():
  assert not any(workers.ordered_map(hears_interrupts, range(4), workers=2))
  assert hears_interrupts(0)


def test_a_killed_worker_is_one_message():
  with pytest.raises(UserError, match="was killed, .* memory.*--workers=2"):
    list(workers.ordered_map(die, range(9), workers=2))


@pytest.mark.parametrize("count", [1, 2])
def test_other_errors_are_not_hidden(count):
  with pytest.raises(ZeroDivisionError):
    list(workers.ordered_map(fail, range(3), workers=count))
