"""build: parallel, all or nothing, one line for each mistake."""

import csv
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import flags

from data_prep import build
from data_prep.errors import UserError
from data_prep.volume import Grid, write_nifti

SHAPE = (10, 20, 30)
GRID = Grid(SHAPE, (1.5, 1.0, 0.5), (3.0, -7.0, 11.0), np.eye(3)[:, ::-1])
COUNT = 12
NAME = "manifest_paper_5x7x6"


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
  folder = tmp_path_factory.mktemp("scans")
  rows = ["case_id,patient_id,image,label,mask"]
  for i in range(COUNT):
    rng = np.random.default_rng(i)
    hu = rng.integers(-900, 900, SHAPE, np.int16)
    write_nifti(folder / f"{i}.nii.gz", hu, GRID)
    write_nifti(folder / f"{i}_m.nii", (hu > 700).astype(np.uint8), GRID)
    rows.append(f"c{i},p{i},{i}.nii.gz,{i % 2},{i}_m.nii")
  (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
  return folder


def command(table, out, *flags):
  return [
    *(sys.executable, "-m", "data_prep.build", "--source=manifest"),
    *(f"--input={table}", f"--out={out}", "--grid=paper", "--shape=5,7,6"),
    *flags,
  ]


def run(table, out, *flags):
  return subprocess.run(
    command(table, out, *flags), capture_output=True, text=True, timeout=120
  )


def make(table, out, *given):
  """Builds in this process, which is faster than starting the program."""
  values = flags.FlagValues()
  build.define_flags(values)
  values(command(table, out, "--workers=1", *given)[2:])
  config = build.config_from_flags(values)
  return build.build(config, out, overwrite=values.overwrite)


def final(out):
  return pathlib.Path(out) / "ctca" / NAME / "1.0.0"


def records(path):
  builder = tfds.builder_from_directory(path)
  return {s: list(builder.as_data_source(s)) for s in builder.info.splits}


def rows_of(path):
  with open(path / "cases.csv", newline="") as file:
    return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def built(scans, tmp_path_factory):
  out = tmp_path_factory.mktemp("built")
  done = run(scans, out, "--workers=2")
  assert done.returncode == 0, done.stderr
  return out, done


def test_summary_and_folder(built):
  out, done = built
  lines = done.stdout.splitlines()
  assert [line for line in lines if not line.startswith("note: ")] == [
    "train: 4 normal, 4 cad",
    "validation: 1 normal, 1 cad",
    "test: 1 normal, 1 cad",
    str(final(out)),
  ]
  assert "100%" in done.stderr
  found = {p.name for p in out.iterdir()}
  assert found == {"ctca"}
  assert {p.name for p in final(out).parent.iterdir()} == {"1.0.0", ".lock"}


def test_what_is_odd_about_the_scans_is_said(built):
  out, done = built
  odd = "the scan covers only 15 mm from top to bottom"
  (said,) = [line for line in done.stdout.splitlines() if odd in line]
  assert f" and {COUNT - 1} more: {odd}" in said
  told = (final(out) / "notes.txt").read_text().splitlines()
  names = {line.partition(": ")[0] for line in told if odd in line}
  assert names == {f"c{i}" for i in range(COUNT)}


def test_only_the_commonest_notes_are_listed(scans, tmp_path):
  builder = make(scans, tmp_path)
  builder.notes = [(f"c{i}", f"number {i}") for i in range(12)]
  builder.notes.append(("c12", "number 11"))
  lines = build.summary(builder).splitlines()
  assert lines[3] == "note: c11 and 1 more: number 11"
  assert lines[4:-2] == [f"note: c{i}: number {i}" for i in range(9)]
  assert lines[-2] == f"2 more notes in {final(tmp_path)}/notes.txt"


def test_workers_do_not_change_the_records(built, scans, tmp_path):
  out, _ = built
  make(scans, tmp_path)
  np.testing.assert_equal(records(final(out)), records(final(tmp_path)))
  assert rows_of(final(out)) == rows_of(final(tmp_path))


def test_a_finished_set_is_kept_unless_overwritten(scans, tmp_path):
  make(scans, tmp_path)
  first = rows_of(final(tmp_path))
  with pytest.raises(UserError, match="exists already; give --overwrite"):
    make(scans, tmp_path, "--seed=1")
  assert rows_of(final(tmp_path)) == first
  # A build that fails leaves the old set where it was.
  table = scans / "broken.csv"
  lines = (scans / "manifest.csv").read_text().splitlines()
  lines[3] = lines[3].replace("2_m.nii", "manifest.csv")
  table.write_text("\n".join(lines))
  with pytest.raises(UserError, match=r"manifest.csv: unknown format"):
    make(table, tmp_path, "--overwrite")
  assert rows_of(final(tmp_path)) == first
  assert len(records(final(tmp_path))["train"]) == 8
  make(scans, tmp_path, "--seed=1", "--overwrite")
  assert rows_of(final(tmp_path)) != first
  left = {p.name for p in final(tmp_path).parent.iterdir()}
  assert left == {"1.0.0", ".lock"}


def test_bad_cases_stop_the_build_or_are_left_out(scans, tmp_path):
  lines = (scans / "manifest.csv").read_text().splitlines()
  moved = Grid(SHAPE, GRID.spacing, (0, 0, 0), GRID.direction)
  write_nifti(scans / "moved_m.nii", np.ones(SHAPE, np.uint8), moved)
  lines[2] = lines[2].replace("1_m.nii", "moved_m.nii")
  table = scans / "moved.csv"
  table.write_text("\n".join(lines))
  stopped = run(table, tmp_path, "--workers=2")
  assert stopped.returncode == 2
  error = stopped.stderr.splitlines()[-1]
  assert error.startswith("error: ")
  assert "moved_m.nii: not on the grid of" in error
  assert "Traceback" not in stopped.stderr
  assert not list(tmp_path.rglob("dataset_info.json"))
  builder = make(table, tmp_path, "--skip_bad")
  (line,) = builder.skipped
  assert line.startswith("c1: ")
  assert f"left out {line}" in build.summary(builder)
  names = {row["case_id"] for row in rows_of(final(tmp_path))}
  assert names == {f"c{i}" for i in range(COUNT)} - {"c1"}
  for split, found in records(final(tmp_path)).items():
    rows = [r for r in rows_of(final(tmp_path)) if r["split"] == split]
    ids = [r["case_id"].decode() for r in found]
    assert ids == [r["case_id"] for r in rows]
    assert [int(r["index"]) for r in rows] == list(range(len(rows)))


def test_a_split_that_loses_all_its_cases_is_told(scans, tmp_path):
  lines = (scans / "manifest.csv").read_text().splitlines()
  places = [*["train"] * 8, *["validation"] * 2, *["test"] * 2]
  lines = [f"{lines[0]},split"] + [
    f"{line},{place}" for line, place in zip(lines[1:], places, strict=True)
  ]
  lines[-1] = lines[-1].replace("11.nii.gz", "manifest.csv")
  lines[-2] = lines[-2].replace("10.nii.gz", "gone.nii.gz")
  table = scans / "split.csv"
  table.write_text("\n".join(lines))
  with pytest.raises(UserError, match="no usable case is left .* test"):
    make(table, tmp_path, "--skip_bad")
  assert not final(tmp_path).exists()


def slow_table(scans):
  """The same scans many times over: long enough to be stopped half-way."""
  lines = ["case_id,patient_id,image,label,mask"]
  lines += [
    f"c{i},p{i},{i % COUNT}.nii.gz,{i % 2},{i % COUNT}_m.nii"
    for i in range(4000)
  ]
  table = scans / "slow.csv"
  table.write_text("\n".join(lines))
  return table


def start(table, out, *flags):
  """Starts a build and waits until records are being written."""
  # A shell's background job ignores Ctrl-C, and so would its children.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  process = subprocess.Popen(
    command(table, out, *flags),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    start_new_session=True,
  )
  limit = time.monotonic() + 100
  while not list(pathlib.Path(out).rglob("*.array_record*")):
    assert process.poll() is None, process.stderr.read().decode()
    assert time.monotonic() < limit
    time.sleep(0.05)
  return process


def group_is_gone(process):
  """Waits for the workers, which share the session of their parent."""
  for _ in range(200):
    try:
      os.killpg(process.pid, 0)
    except ProcessLookupError:
      return True
    time.sleep(0.1)
  return False


def test_killed_build_leaves_nothing_finished_and_can_be_repeated(
  scans, tmp_path
):
  with start(slow_table(scans), tmp_path, "--workers=2") as process:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert group_is_gone(process)
  assert not final(tmp_path).exists()
  assert not list(tmp_path.rglob("cases.csv"))
  assert not list(tmp_path.rglob("dataset_info.json"))
  assert list(final(tmp_path).parent.glob("incomplete.*_1.0.0"))
  make(scans, tmp_path)
  assert sum(map(len, records(final(tmp_path)).values())) == COUNT
  assert not list(final(tmp_path).parent.glob("incomplete.*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_build_leaves_nothing(scans, tmp_path, number):
  with start(slow_table(scans), tmp_path, "--workers=2") as process:
    if number == signal.SIGINT:
      # As Ctrl-C does: to the workers as well.
      os.killpg(process.pid, number)
    else:
      process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    # A worker that is stopped while it starts leaves a semaphore, and Python's
    # own tracker of these tells so before it removes it.
    lines = [
      x for x in errors.decode().splitlines() if "resource_track" not in x
    ]
    assert lines[-1] == "stopped; nothing was built"
    assert "Traceback" not in errors.decode()
    assert group_is_gone(process)
  assert {p.name for p in final(tmp_path).parent.iterdir()} == {".lock"}


def test_a_full_disk_is_one_line_and_leaves_nothing(scans, tmp_path):
  """A limit on the size of files fails the writer as a full disk does."""
  code = (
    "import resource, runpy, signal, sys;"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
    "runpy.run_module('data_prep.build', run_name='__main__')"
  )
  given = command(scans, tmp_path, "--workers=1")[3:]
  done = subprocess.run(
    [sys.executable, "-c", code, *given], capture_output=True, text=True
  )
  assert done.returncode == 2
  assert "Traceback" not in done.stderr
  line = done.stderr.splitlines()[-1]
  assert line.startswith("error: ")
  assert "array_record-00000-of-00001: the records cannot be written" in line
  assert {p.name for p in final(tmp_path).parent.iterdir()} == {".lock"}


def test_killed_overwrite_gives_the_old_set_back(scans, tmp_path):
  make(scans, tmp_path)
  first = rows_of(final(tmp_path))
  aside = final(tmp_path).with_name("incomplete.old_1.0.0")
  final(tmp_path).rename(aside)  # What a kill during --overwrite leaves.
  with pytest.raises(UserError, match="exists already"):
    make(scans, tmp_path)
  assert rows_of(final(tmp_path)) == first
  assert not aside.exists()


def test_two_builds_in_one_folder_do_not_mix(scans, tmp_path):
  with start(slow_table(scans), tmp_path, "--workers=1") as process:
    with pytest.raises(UserError, match="another build is writing here"):
      make(scans, tmp_path)
    process.terminate()
    process.communicate(timeout=60)


MISTAKES = {
  "--source=asoca": "--input is missing",
  "--source=asoca --input=nowhere": "nowhere: no such folder",
  "--source=phantom --cases=4": r"class normal has 2 patient\(s\), too few",
  "--source=phantom --shape=1,2": "--shape=1,2: needs three numbers",
  "--source=phantom --shape=a": "--shape=a: not numbers",
  "--source=phantom --shape=0": "grid shape: needs three positive numbers",
  "--source=phantom --fractions=0,0,0": "shares add up to nothing",
  "--cases=3": "--source is missing",
}


@pytest.mark.parametrize("given", MISTAKES)
def test_mistakes_are_one_message(given, tmp_path):
  values = flags.FlagValues()
  build.define_flags(values)
  values(["build", f"--out={tmp_path}", *given.split()])
  with pytest.raises(UserError, match=MISTAKES[given]):
    build.build(build.config_from_flags(values), tmp_path)


def test_a_wrong_flag_is_one_line(tmp_path):
  done = run("x", tmp_path, "--grid=hart")
  assert done.returncode == 2
  assert done.stderr.startswith("error: ")
  assert done.stderr.count("\n") == 1


def fixed(*given):
  values = flags.FlagValues()
  build.define_flags(values)
  values(["build", "--source=phantom", "--cases=6", "--out=x", *given])
  return build.config_from_flags(values)


def test_values_of_scanner_and_population_can_be_fixed():
  config = fixed(
    "--scanner=noise_hu=60,blur_mm=0.6", "--population=dominance=left"
  )
  assert config.scanner == {"noise_hu": 60.0, "blur_mm": 0.6}
  assert config.population == {"dominance": "left"}


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--scanner=noise=60", "phantoms have no noise; known are contrast_hu"),
    ("--scanner=noise_hu=much", "noise_hu=much cannot be; give a number"),
    ("--scanner=shape=3", "shape=3.0 cannot be"),
    ("--scanner=noise_hu=nan", "noise_hu=nan is out of range; it is 0 to 500"),
    ("--scanner=blur_mm=-1", "blur_mm=-1 is out of range; it is 0.05 to 5"),
    ("--scanner=fov_mm=inf", "fov_mm=inf is out of range; it is 80 to 500"),
    ("--population=body_scale=9", "body_scale=9 is out of range; it is 0.7 to"),
    ("--population=dominance=both", "none of right, left, co"),
  ],
)
def test_values_that_no_phantom_has_are_refused(flag, message):
  with pytest.raises(UserError, match=message):
    fixed(flag)


def test_scans_have_the_scanner_that_they_have(scans, tmp_path):
  with pytest.raises(UserError, match="--source=phantom alone"):
    make(scans, tmp_path, "--scanner=noise_hu=60")
