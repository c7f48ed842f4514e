"""The folder of an experiment, shared by all processes that work on it.

A cell is a folder: an ordinary workdir of `training.loop`, with cell.json when
it is done, failed.txt when it failed, and claim.json while someone is at it.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from cadjax.core import files

# A claim is renewed this often, and given up after so long without it; of a
# process on this machine it is known at once.
HEARTBEAT_S = 20.0
STALE_S = 300.0


@dataclasses.dataclass(frozen=True)
class Store:
  """Claims and results of named pieces of work, each in a folder of its own.

  Attributes:
    root: of the folders.
  """

  root: pathlib.Path

  def folder(self, name: str) -> pathlib.Path:
    """Returns the folder of a piece of work."""
    return self.root / name

  def state(self, name: str) -> str:
    """Returns "done", "failed", "running" or "waiting"."""
    folder = self.folder(name)
    if (folder / "cell.json").exists():
      return "done"
    if (folder / "failed.txt").exists():
      return "failed"
    claim = folder / "claim.json"
    return "running" if claim.exists() and not _stale(claim) else "waiting"

  def read(self, name: str) -> dict[str, Any]:
    """Returns what `finish` wrote."""
    return files.read_json(self.folder(name) / "cell.json")

  def finish(self, name: str, value: dict[str, Any]) -> None:
    """Writes the result of a piece of work: from now on it is done."""
    folder = self.folder(name)
    files.write_json(folder / "cell.json", files.strict(value))
    (folder / "failed.txt").unlink(missing_ok=True)

  def fail(self, name: str, text: str) -> None:
    """Writes why a piece of work failed."""
    folder = self.folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "failed.txt").write_text(text)

  def why(self, name: str) -> str:
    """Returns the last line of why it failed."""
    text = (self.folder(name) / "failed.txt").read_text().strip()
    return text.splitlines()[-1] if text else "unknown"

  def forget_failure(self, name: str) -> None:
    """Lets a failed piece of work be tried again."""
    (self.folder(name) / "failed.txt").unlink(missing_ok=True)

  @contextlib.contextmanager
  def claim(self, name: str) -> Iterator[bool]:
    """Claims a piece of work; gives False if another process has it.

    The claim is a file that one process alone can create. It is renewed in a
    thread, so that others, on any machine that shares the folder, can tell
    one that was left behind.
    """
    folder = self.folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "claim.json"
    if path.exists() and _stale(path):
      _remove_stale(path)
    me = {"host": machine(), "pid": os.getpid(), "time": time.time()}
    try:
      with path.open("x") as file:
        json.dump(me, file)
    except FileExistsError:
      yield False
      return
    done = threading.Event()
    beat = threading.Thread(target=_renew, args=(path, me, done), daemon=True)
    beat.start()
    try:
      yield True
    finally:
      done.set()
      beat.join()
      if _is_mine(path, me):
        path.unlink(missing_ok=True)


def _renew(
  path: pathlib.Path, me: Mapping[str, Any], done: threading.Event
) -> None:
  while not done.wait(HEARTBEAT_S):
    # A shared folder may be out of reach for a while.
    with contextlib.suppress(OSError):
      if _is_mine(path, me):
        os.utime(path)


def _is_mine(path: pathlib.Path, me: Mapping[str, Any]) -> bool:
  """False if this process was taken for dead, after a long sleep."""
  try:
    return json.loads(path.read_text()) == me
  except (OSError, json.JSONDecodeError):
    return False


def machine() -> str:
  """Names where a process number means something: containers may share names.

  On Linux the namespace of process numbers is added.
  """
  try:
    return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return socket.gethostname()


def _stale(path: pathlib.Path) -> bool:
  """Tells whether the process that made a claim is gone."""
  try:
    age = time.time() - path.stat().st_mtime
    owner = json.loads(path.read_text())
  except FileNotFoundError:
    return False
  except json.JSONDecodeError:
    # It is being written, or its writer was killed in the act.
    return age > HEARTBEAT_S
  if owner["host"] == machine() and not _alive(owner["pid"]):
    return True
  return age > STALE_S


def _alive(pid: int) -> bool:
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True


def _remove_stale(path: pathlib.Path) -> None:
  """Removes a stale claim, once, though several processes may see it.

  Only one can rename it; if a fresh claim was renamed, as another process was
  faster, it goes back.
  """
  aside = path.with_name(f"claim.{socket.gethostname()}.{os.getpid()}")
  try:
    path.rename(aside)
  except FileNotFoundError:
    return
  if not _stale(aside):
    # Unless a third process was faster still, or the disk knows no links: the
    # owner of the claim then works without one.
    with contextlib.suppress(OSError):
      os.link(aside, path)
  aside.unlink()
