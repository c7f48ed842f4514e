"""Resident memory of a process and of those it started, from /proc."""

import contextlib
import pathlib

PROC = pathlib.Path("/proc")
# What a process takes before it reads anything: Python, numpy, SimpleITK.
STARTED_BYTES = 192 << 20


def tree(pid: int) -> list[int]:
  """Returns a process and all those below it; none once it has ended."""
  found = [pid]
  for one in found:
    # They may end at any moment.
    with contextlib.suppress(OSError):
      for task in (PROC / str(one) / "task").iterdir():
        found += map(int, (task / "children").read_text().split())
  return found


def resident(pid: int) -> int:
  """Returns the bytes that a process and all those below it hold now."""
  return sum(_status(one, "VmRSS") for one in tree(pid))


class Peak:
  """How far the memory of a process, and those below it, rises from now on."""

  def __init__(self, pid: int):
    self._pid = pid
    self._before = {}
    for one in tree(pid):
      # 5 sets VmHWM, the highest VmRSS so far, to the VmRSS of now.
      with contextlib.suppress(OSError):
        (PROC / str(one) / "clear_refs").write_text("5")
      self._before[one] = _status(one, "VmRSS")

  def rise(self) -> int:
    """Returns bytes; a process that has ended meanwhile counts for none.

    One that was started meanwhile counts from `STARTED_BYTES`.
    """
    return sum(
      max(_status(one, "VmHWM") - self._before.get(one, STARTED_BYTES), 0)
      for one in tree(self._pid)
    )


def _status(pid: int, field: str) -> int:
  with contextlib.suppress(OSError):
    for line in (PROC / str(pid) / "status").read_text().splitlines():
      if line.startswith(f"{field}:"):
        return int(line.split()[1]) * 1024
  return 0
