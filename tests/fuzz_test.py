"""Damaged files are read, refused or told; and the harness that counts it."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from fuzz import formats, harness, memory, toys
from fuzz.target import Damage

ROOT = pathlib.Path(__file__).parents[1]
# The machine of a test may be slow, or busy with others.
LIMITS = harness.Limits(deadline_s=60)


def counts_of(names, cases=12, **limits):
  """Runs toys; returns the outcomes of each."""
  targets = [target for target in toys.TARGETS if target.name in names]
  assert len(targets) == len(names)
  results = harness.run(
    "fuzz.toys",
    targets,
    dict.fromkeys(names, cases),
    limits=harness.Limits(**({"deadline_s": 120} | limits)),
  )
  found = harness.count(results)
  assert all(found[name].total() == cases for name in names)
  # What was not damaged, or not in its content, is equal to all of them.
  return {name: set(found[name]) - {"equal"} for name in names}


def test_outcomes_of_readers_of_known_faults():
  expected = {
    "perfect": {"rejected"},
    "careless": {"silent"},
    "unguarded": {"changed"},
    "warns": {"warned"},
    "raises": {"traceback"},
    "rings": {"traceback"},
    "says nothing": {"traceback"},
    "allocates": {"memory"},
  }
  assert counts_of(expected, allowance_bytes=32 << 20) == expected


def test_a_reader_that_ends_is_a_crash_and_the_next_case_is_read():
  found = counts_of(["aborts", "exits"], 5)
  assert found == dict.fromkeys(["aborts", "exits"], {"crash"})


def test_a_reader_that_never_ends_is_a_hang():
  assert counts_of(["sleeps"], 3, deadline_s=1) == {"sleeps": {"hang"}}


def test_a_reader_that_takes_too_much_is_stopped(monkeypatch):
  monkeypatch.setattr(harness, "KILLED_ABOVE", 0)
  found = counts_of(["hoards"], 3, allowance_bytes=32 << 20)
  assert found == {"hoards": {"memory"}}


def test_a_peak_is_that_of_one_case_alone():
  size = 128 << 20
  first = memory.Peak(os.getpid())
  taken = np.ones(size, np.uint8)
  assert first.rise() >= size
  del taken
  second = memory.Peak(os.getpid())
  assert second.rise() < size // 2


@pytest.mark.parametrize(
  ("answer", "outcome"),
  [
    ({"outcome": "raised", "message": "KeyError"}, "traceback"),
    ({"outcome": "refused", "message": "error: a: is damaged\n"}, "rejected"),
    ({"outcome": "refused", "message": "error: a\nerror: b\n"}, "traceback"),
    ({"outcome": "refused", "message": "error: a\rb\n"}, "traceback"),
    ({"outcome": "refused", "message": "error: \x1b[31m\n"}, "traceback"),
    ({"outcome": "refused", "message": "error: \n"}, "traceback"),
    ({"outcome": "refused", "message": "error: \udcff.nii\n"}, "rejected"),
    ({"parts": {"a": "1", "b": "2"}, "words": ["old"]}, "equal"),
    ({"parts": {"a": "1", "b": "2"}, "words": ["new"]}, "warned"),
    ({"parts": {"a": "9", "b": "2"}, "words": ["old", "new"]}, "warned"),
    ({"parts": {"a": "9", "b": "2"}, "words": ["old"]}, "silent"),
    ({"parts": {"a": "1", "b": "9"}, "words": []}, "changed"),
    ({"parts": {"b": "2"}, "words": []}, "silent"),
  ],
)
def test_an_answer_is_judged(answer, outcome):
  answer = {"outcome": "accepted"} | answer
  damage = Damage("damaged", "a", frozenset({"a"}))
  assert harness.judge({"a": "1", "b": "2"}, ["old"], damage, answer)[0] == (
    outcome
  )


def test_cases_are_shared_out_by_weight():
  counts = harness.allot(formats.TARGETS, 10_000)
  assert sum(counts.values()) == 10_000
  assert counts["nii.gz"] > counts["manifest.csv"] > counts["imagecas"] > 0
  assert set(harness.allot(formats.TARGETS, 1).values()) == {1}


def contents(folder):
  """What lies below a folder: kinds, links and bytes."""
  return {
    os.fsencode(path.relative_to(folder)): (
      path.lstat().st_mode,
      path.is_symlink() and os.readlink(path),
      path.is_file() and not path.is_symlink() and path.read_bytes(),
    )
    for path in folder.rglob("*")
  }


@pytest.mark.parametrize(
  "name", ["nii.gz", "nhdr-gzip", "dicom", "labels.xlsx"]
)
def test_a_seed_repeats_its_damage(name, tmp_path):
  (target,) = (one for one in formats.TARGETS if one.name == name)
  folder = tmp_path / "example"
  folder.mkdir()
  example = folder, target.make(folder)
  whats = set()
  for seed in range(25):
    damages = [
      harness.damaged(target, seed, example, tmp_path / f"{seed}{copy}")
      for copy in "ab"
    ]
    assert damages[0] == damages[1]
    assert contents(tmp_path / f"{seed}a") == contents(tmp_path / f"{seed}b")
    whats.add(damages[0].what)
  assert len(whats) > 20


def run_fuzz(*flags):
  return subprocess.run(
    [sys.executable, "-m", "fuzz", *flags],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": "tests"},
    capture_output=True,
    text=True,
  )


def test_the_command_repeats_one_case_and_writes_what_it_counted(tmp_path):
  done = run_fuzz("--format=labels.csv", "--seed=4", f"--out={tmp_path / 'a'}")
  assert done.returncode == 0, done.stderr
  assert "changed: --format=labels.csv --seed=4: " in done.stdout
  assert "| labels.csv | 1 |" in done.stdout
  written = json.loads((tmp_path / "a").read_text())
  assert written["cases"] == 1
  assert written["counts"] == {"labels.csv": {"changed": 1}}
  assert written["failures"] == []


def test_an_unknown_format_is_told():
  done = run_fuzz("--format=doc")
  assert done.returncode == 2
  assert done.stderr.startswith("error: --format=doc is unknown; known are nii")


def check_formats(cases, workers):
  """Fuzzes every format; fails with the command that repeats each failure."""
  results = harness.run(
    "fuzz.formats",
    formats.TARGETS,
    harness.allot(formats.TARGETS, cases),
    limits=LIMITS,
    workers=workers,
  )
  failed = [result for result in results if result.outcome in harness.FAILURES]
  assert not failed, "\n".join(
    [
      harness.table(results),
      "PYTHONPATH=tests python -m fuzz --format=FORMAT --seed=SEED",
      *map(str, failed),
    ]
  )


def test_no_reader_fails_or_is_silent_on_500_damaged_files():
  check_formats(500, workers=1)


@pytest.mark.slow
def test_no_reader_fails_or_is_silent_on_10000_damaged_files():
  check_formats(10_000, workers=2)
