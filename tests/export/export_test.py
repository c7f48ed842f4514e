"""The program `cadjax export`."""

import subprocess
import sys

import tiny_runs


def run(*args):
  return subprocess.run(
    [sys.executable, "-m", "cadjax.export", *args],
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_program_writes_a_folder(tmp_path):
  workdir = tiny_runs.write_workdir(tmp_path / "run")
  out = tmp_path / "out"
  done = run(f"--workdir={workdir}", f"--out={out}", "--layers=stage2")
  assert done.returncode == 0, done.stderr
  assert "for cpu, cuda, tpu" in done.stdout
  for name in ("manifest.json", "program.jax", "run.py", "weights.npz"):
    assert f"{out / name}  " in done.stdout
    assert (out / name).exists()
  again = run(f"--workdir={workdir}", f"--out={out}")
  assert again.returncode == 2
  assert tiny_runs.messages(again) == [
    f"error: {out}: holds a result; --overwrite replaces it"
  ]
