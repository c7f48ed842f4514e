"""check: every case is read, every problem is told with its file."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from data_prep import check, sources
from data_prep.volume import Grid, write_nifti

SHAPE = (10, 20, 30)
GRID = Grid(SHAPE, (1.5, 1.0, 0.5), (3.0, -7.0, 11.0), np.eye(3)[:, ::-1])


def scan(seed=0):
  return np.random.default_rng(seed).integers(-900, 900, SHAPE, np.int16)


def mask(*labels):
  array = np.zeros(SHAPE, np.uint16)
  for i, label in enumerate(labels):
    array[i + 1, 2:9] = label
  return array


@pytest.fixture
def folder(tmp_path):
  """One good case and one case for each thing that can be wrong."""
  rows = ["case_id,patient_id,image,label,mask,aorta_mask"]

  def add(name, label=0, has_mask=False, aorta=""):
    masks = f"{name}_m.nii" if has_mask else ""
    rows.append(f"{name},p{name},{name}.nii.gz,{label},{masks},{aorta}")

  for name in ("good", "good2", "good3", "moved", "strange", "broken"):
    write_nifti(tmp_path / f"{name}.nii.gz", scan(), GRID)
  write_nifti(tmp_path / "good_m.nii", mask(2, 4), GRID)
  write_nifti(tmp_path / "aorta.nii", mask(0, 0, 9), GRID)
  add("good", 1, True, "aorta.nii")
  add("good2", 1)
  add("good3", 1)
  shifted = Grid(SHAPE, GRID.spacing, (0, 0, 0), GRID.direction)
  write_nifti(tmp_path / "moved_m.nii", mask(1), shifted)
  add("moved", 0, True)
  write_nifti(tmp_path / "strange_m.nii", mask(1, 7), GRID)
  add("strange", 0, True)
  content = (tmp_path / "broken.nii.gz").read_bytes()
  (tmp_path / "broken.nii.gz").write_bytes(content[: len(content) // 2])
  add("broken")
  add("absent")
  write_nifti(tmp_path / "many.nii", mask(1, 2), GRID)
  write_nifti(tmp_path / "manyaortas.nii.gz", scan(), GRID)
  add("manyaortas", 0, False, "many.nii")
  (tmp_path / "manifest.csv").write_text("\n".join(rows))
  return tmp_path


def test_each_case_is_reported(folder):
  cases = sources.find_cases("manifest", folder)
  reports = {r["case_id"]: r for r in check.check(cases, num_workers=1)}
  good = reports["good"]
  assert good["usable"]
  assert good["shape"] == list(SHAPE)
  assert good["spacing_mm"] == [1.5, 1.0, 0.5]
  assert good["hu"] == [scan().min(), scan().max()]
  assert good["mask"] == ["aorta", "lumen", "unstable_plaque"]
  wrong = {
    "moved": ("moved_m.nii", "moved.nii.gz", "not on the grid"),
    "strange": ("strange_m.nii", "unknown mask label(s) [7]"),
    "broken": ("broken.nii.gz",),
    "absent": ("absent.nii.gz: no such file",),
    "manyaortas": ("many.nii", "2 labels"),
  }
  assert {k for k, r in reports.items() if not r["usable"]} == set(wrong)
  for name, parts in wrong.items():
    (problem,) = reports[name]["problems"]
    assert "\n" not in problem
    for part in parts:
      assert part in problem


def run(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "data_prep.check", *arguments],
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_program_prints_a_table_and_exits_2(folder):
  out = folder / "report.json"
  done = run("--source=manifest", f"--input={folder}", f"--json={out}")
  assert done.returncode == 2
  lines = done.stdout.splitlines()
  assert lines[0].split()[:3] == ["case", "usable", "label"]
  row = next(line for line in lines if line.startswith("good "))
  assert row.split()[1:5] == ["yes", "cad", "10x20x30", "1.5x1x0.5"]
  assert any(line.startswith("problem: moved: ") for line in lines)
  assert lines[-1] == "3 of 8 cases are usable"
  assert [r["usable"] for r in json.loads(out.read_text())].count(True) == 3
  assert "Traceback" not in done.stderr


def test_program_exits_0_when_a_build_would_go_through(tmp_path):
  rows = ["case_id,patient_id,image,label"]
  for i in range(6):
    write_nifti(tmp_path / f"{i}.nii.gz", scan(i), GRID)
    rows.append(f"{i},{i},{i}.nii.gz,{i % 2}")
  (tmp_path / "manifest.csv").write_text("\n".join(rows))
  done = run("--source=manifest", f"--input={tmp_path}", "--workers=1")
  assert done.returncode == 0, done.stderr
  (tmp_path / "manifest.csv").write_text("\n".join(rows[:-1]))
  done = run("--source=manifest", f"--input={tmp_path}", "--workers=1")
  assert done.returncode == 2
  assert "error: class cad has 2 patient" in done.stderr


def test_strange_names_are_a_problem_of_their_case(tmp_path):
  """And not of the others; all that is printed can be shown."""
  names = ["a$b^c", "b\x1b[31m", os.fsdecode(b"caf\xe9"), "d"]
  for name in names:
    write_nifti(tmp_path / f"{name}.nii.gz", scan(), GRID)
  write_nifti(tmp_path / "e.nii.gz", scan(), GRID)
  (tmp_path / "e.nii.gz").unlink()
  os.mkfifo(tmp_path / "e.nii.gz")
  (tmp_path / "f.nii.gz").symlink_to("f.nii.gz")
  cases = sources.find_cases("cca", tmp_path)
  reports = check.check(cases, num_workers=1)
  found = {r["case_id"]: "; ".join(r["problems"]) for r in reports}
  assert found.pop("a$b^c") == found.pop("d") == ""
  assert "a pipe, socket or device" in found.pop("e")
  assert "no such file" in found.pop("f")
  assert set(found) == set(names[1:3])
  for problem in found.values():
    assert "cannot be shown; rename" in problem
    assert problem.isprintable()
  text = check.table(reports)
  assert text.replace("\n", "").isprintable()
  assert text.count("\nproblem: ") == 4


def test_program_without_input_is_one_line():
  done = run("--source=asoca")
  assert done.returncode == 2
  assert done.stderr == "error: --input is missing: the folder of asoca\n"
