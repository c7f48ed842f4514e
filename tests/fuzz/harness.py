"""Runs cases in processes that may crash, and judges what came of each."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fuzz import memory
from fuzz.target import Damage, Target

ROOT = pathlib.Path(__file__).parents[2]
OUTCOMES = (
  *("equal", "warned", "rejected", "changed", "silent", "traceback"),
  *("crash", "hang", "memory"),
)
FAILURES = OUTCOMES[4:]
# What a reader may take beside twice the honest file's: arrays that are freed
# late, threads that start, pages of a library that is used for the first time.
ALLOWANCE_BYTES = 64 << 20
# Above its limit a process gets no further than this.
KILLED_ABOVE = 512 << 20
_POLL_S = 0.05
_CHUNK = 50


@dataclasses.dataclass(frozen=True)
class Limits:
  """When a case is a hang or takes too much memory.

  Attributes:
    deadline_s: for one case.
    allowance_bytes: beside twice what the honest example takes.
  """

  deadline_s: float = 30.0
  allowance_bytes: int = ALLOWANCE_BYTES


@dataclasses.dataclass(frozen=True)
class Result:
  """One case.

  Attributes:
    format: the name of the target.
    seed: what drew its damage.
    damage: in words.
    outcome: one of `OUTCOMES`.
    detail: what the reader said, or how it failed.
  """

  format: str
  seed: int
  damage: str
  outcome: str
  detail: str


class Died(Exception):
  """The worker ended, or was ended: `outcome` says why, the message how."""

  def __init__(self, outcome: str, detail: str):
    super().__init__(detail)
    self.outcome = outcome


class Worker:
  """A process that reads what it is told, one example at a time."""

  def __init__(self, module: str, log: pathlib.Path):
    paths = [str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
      "PYTHONPATH": os.pathsep.join(filter(None, paths)),
      "JAX_PLATFORMS": "cpu",
      "PYTHONFAULTHANDLER": "1",
    }
    # A test's eight devices would only cost time.
    environment.pop("XLA_FLAGS", None)
    self._log = log
    with log.open("wb") as errors:
      self._process = subprocess.Popen(
        [sys.executable, "-m", "fuzz.worker", module],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        # Ctrl-C is for this process, which then ends that one.
        start_new_session=True,
      )

  def ask(
    self, request: Mapping[str, str], deadline_s: float, most: int | None
  ) -> dict[str, Any]:
    """Returns the answer.

    Args:
      request: see `worker.answer`.
      deadline_s: for the answer.
      most: bytes that may be taken; None for any number.

    Raises:
      Died: the process crashed, or was ended for time or memory.
    """
    process = self._process
    before = memory.resident(process.pid)
    with contextlib.suppress(BrokenPipeError):
      process.stdin.write(json.dumps(request).encode() + b"\n")
      process.stdin.flush()
    end = time.monotonic() + deadline_s
    while not select.select([process.stdout], [], [], _POLL_S)[0]:
      taken = memory.resident(process.pid) - before
      if most is not None and taken > most + KILLED_ABOVE:
        self.close()
        raise Died("memory", f"{taken >> 20} MiB and rising")
      if time.monotonic() > end:
        self.close()
        raise Died("hang", f"no answer after {deadline_s:g} s")
    line = process.stdout.readline()
    if line:
      return json.loads(line)
    code = process.wait()
    self.close()
    raise Died("crash", f"{_ending(code)}: {self._last_words()}")

  def close(self) -> None:
    """Ends the process and all those below it, of whatever group."""
    for one in memory.tree(self._process.pid):
      with contextlib.suppress(ProcessLookupError):
        os.kill(one, signal.SIGKILL)
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()

  def _last_words(self) -> str:
    text = self._log.read_bytes()[-4000:].decode(errors="replace")
    lines = [line for line in text.splitlines() if line.strip()]
    own = [x for x in lines if "cadjax/" in x or "data_prep/" in x]
    return " | ".join([*lines[:1], *own[:1], *lines[-1:]])[:300]


def _ending(code: int) -> str:
  if code < 0:
    return signal.Signals(-code).name
  return f"exit code {code}"


@dataclasses.dataclass(frozen=True)
class _Honest:
  """What a worker finds in the example as it was written."""

  parts: dict[str, str]
  words: tuple[str, ...]
  rise: int


class _Bench:
  """A worker, and what it needs to run cases one after the other."""

  def __init__(self, module: str, folder: pathlib.Path, limits: Limits):
    self._module, self._folder, self._limits = module, folder, limits
    self._worker: Worker | None = None
    self._honest: dict[str, _Honest] = {}

  def close(self) -> None:
    if self._worker is not None:
      self._worker.close()
      self._worker = None

  def make(self, target: Target, folder: pathlib.Path) -> str:
    """Writes the honest example; returns its entry."""
    request = {"do": "make", "target": target.name, "folder": str(folder)}
    return self._ask(request, 300, None)["entry"]

  def run(
    self,
    target: Target,
    seed: int,
    example: tuple[pathlib.Path, str],
    keep: pathlib.Path | None,
  ) -> Result:
    """Damages a copy of the example, has it read and judges."""
    honest = self._read_honest(target, *example)
    case = self._folder / "case"
    damage = damaged(target, seed, example, case)
    most = 2 * honest.rise + self._limits.allowance_bytes
    try:
      request = _read(target, case, damage.entry)
      answer = self._ask(request, self._limits.deadline_s, most)
      outcome, detail = judge(honest.parts, honest.words, damage, answer)
      if answer["rise"] > most and outcome not in FAILURES:
        outcome = "memory"
        detail = (
          f"{answer['rise'] >> 20} MiB, where the honest example takes"
          f" {honest.rise >> 20}; {detail}"
        )
    except Died as error:
      outcome, detail = error.outcome, str(error)
    if keep is not None and outcome in FAILURES:
      kept = keep / f"{target.name.replace('/', '')}-{seed}"
      shutil.rmtree(kept, ignore_errors=True)
      kept.parent.mkdir(parents=True, exist_ok=True)
      shutil.move(case, kept)
    else:
      shutil.rmtree(case)
    return Result(target.name, seed, damage.what, outcome, detail)

  def _read_honest(self, target, folder, entry) -> _Honest:
    if target.name not in self._honest:
      # The first reading loads libraries; the second is like those to come.
      # Of a copy, as a reader may write: a manifest, or what it tidies up.
      for _ in range(2):
        case = self._folder / "case"
        shutil.copytree(folder, case, symlinks=True)
        answer = self._ask(_read(target, case, entry), 300, None)
        shutil.rmtree(case)
        if answer["outcome"] != "accepted":
          raise RuntimeError(f"{target.name}: the honest example: {answer}")
      self._honest[target.name] = _Honest(
        answer["parts"], tuple(answer["words"]), answer["rise"]
      )
    return self._honest[target.name]

  def _ask(self, request, deadline_s, most):
    if self._worker is None:
      self._worker = Worker(self._module, self._folder / "stderr.txt")
    try:
      return self._worker.ask(request, deadline_s, most)
    except Died:
      # The next one has to load its libraries first, by an honest example.
      self._worker = None
      self._honest.clear()
      raise


def _read(target, folder, entry) -> dict[str, str]:
  name, place = target.name, str(folder)
  return {"do": "read", "target": name, "folder": place, "entry": entry}


def damaged(
  target: Target,
  seed: int,
  example: tuple[pathlib.Path, str],
  case: pathlib.Path,
) -> Damage:
  """Copies an example to the folder `case` and damages the copy."""
  folder, entry = example
  shutil.copytree(folder, case, symlinks=True)
  rng = np.random.default_rng([zlib.crc32(target.name.encode()), seed])
  return target.damage(rng, case, entry)


def judge(
  parts: Mapping[str, str],
  words: Iterable[str],
  damage: Damage,
  answer: Mapping[str, Any],
) -> tuple[str, str]:
  """Returns the outcome of a case that was answered, and what was said.

  Args:
    parts: of the honest example.
    words: which the user is told of the honest example too.
    damage: what was done.
    answer: of the worker.
  """
  if answer["outcome"] == "raised":
    return "traceback", answer["message"]
  if answer["outcome"] == "refused":
    message = answer["message"]
    if fault := _not_one_line(message):
      return "traceback", f"{fault}: {message!r:.300}"
    return "rejected", message.strip()
  new = [word for word in answer["words"] if word not in set(words)]
  if new:
    return "warned", " | ".join(new)
  found = answer["parts"]
  changed = {name for name, value in parts.items() if found.get(name) != value}
  if not changed:
    return "equal", ""
  if changed & damage.guarded:
    return "silent", f"changed: {', '.join(sorted(changed & damage.guarded))}"
  return "changed", ", ".join(sorted(changed))


def _not_one_line(message: str) -> str:
  """Says what keeps a message from being one clear line; "" if nothing."""
  lines = message.rstrip("\n").split("\n")
  if len(lines) > 1 or "\r" in message:
    return f"{len(lines)} lines"
  if not lines[0].startswith("error: ") or not lines[0][7:].strip():
    return "no message"
  # What is not UTF-8 in a name is written to stderr as an escape.
  text = lines[0].encode("utf-8", "backslashreplace").decode()
  if any(unicodedata.category(letter) == "Cc" for letter in text):
    return "control characters"
  return ""


def allot(targets: Sequence[Target], cases: int) -> dict[str, int]:
  """Shares out cases by weight; every format gets at least one."""
  total = sum(target.weight for target in targets)
  counts, given, due = {}, 0, 0.0
  for target in targets:
    due += cases * target.weight / total
    counts[target.name] = max(round(due) - given, 1)
    given += counts[target.name]
  return counts


def run(
  module: str,
  targets: Sequence[Target],
  counts: Mapping[str, int],
  *,
  first_seed: int = 0,
  workers: int = 1,
  limits: Limits | None = None,
  keep: pathlib.Path | None = None,
  report: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
  """Runs cases in worker processes.

  Args:
    module: whose TARGETS the workers read.
    targets: of that module.
    counts: cases of each, by name.
    first_seed: of each; the others follow.
    workers: processes.
    limits: when a case is a hang, or takes too much memory.
    keep: where the files of cases that fail are left.
    report: gets each result as it comes.

  Returns:
    the results, by format and seed.
  """
  limits = limits or Limits()
  results: list[Result] = []
  lock = threading.Lock()
  with tempfile.TemporaryDirectory(prefix="fuzz") as temporary:
    root = pathlib.Path(temporary)
    examples = _make_all(module, targets, root, limits)
    todo: queue.SimpleQueue = queue.SimpleQueue()
    for target in targets:
      seeds = range(first_seed, first_seed + counts[target.name])
      for start in range(0, len(seeds), _CHUNK):
        todo.put((target, seeds[start : start + _CHUNK]))
    stop = threading.Event()

    def work(number: int) -> None:
      folder = root / f"worker{number}"
      folder.mkdir()
      with contextlib.closing(_Bench(module, folder, limits)) as bench:
        for target, seeds in _taken(todo):
          for seed in seeds:
            if stop.is_set():
              return
            result = bench.run(target, seed, examples[target.name], keep)
            with lock:
              results.append(result)
              report(result)

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      try:
        for done in [pool.submit(work, i) for i in range(workers)]:
          done.result()
      finally:
        stop.set()
  order = [target.name for target in targets]
  return sorted(results, key=lambda x: (order.index(x.format), x.seed))


def _taken(todo: queue.SimpleQueue) -> Iterator[tuple[Target, range]]:
  with contextlib.suppress(queue.Empty):
    while True:
      yield todo.get_nowait()


def _make_all(module, targets, root, limits):
  examples = {}
  with contextlib.closing(_Bench(module, root, limits)) as bench:
    for number, target in enumerate(targets):
      folder = root / f"example{number}"
      folder.mkdir()
      examples[target.name] = (folder, bench.make(target, folder))
  return examples


def count(results: Iterable[Result]) -> dict[str, collections.Counter]:
  """Returns the outcomes of each format, in the order of the results."""
  counts: dict[str, collections.Counter] = {}
  for result in results:
    counts.setdefault(result.format, collections.Counter())[result.outcome] += 1
  return counts


_TITLES = {
  "changed": "changed, unprotected",
  "silent": "silently changed",
}


def table(results: Sequence[Result]) -> str:
  """Returns the outcomes as a Markdown table, with a row for all formats."""
  titles = [_TITLES.get(outcome, outcome) for outcome in OUTCOMES]
  lines = [
    f"| format | cases | {' | '.join(titles)} |",
    f"| --- |{' ---: |' * (len(OUTCOMES) + 1)}",
  ]
  counts = count(results)
  whole: collections.Counter = sum(counts.values(), collections.Counter())
  for name, found in [*counts.items(), ("all", whole)]:
    cells = " | ".join(str(found[outcome]) for outcome in OUTCOMES)
    lines.append(f"| {name} | {found.total()} | {cells} |")
  return "\n".join(lines)
