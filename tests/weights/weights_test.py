"""The program `cadjax weights`, and the files that are shipped."""

import pathlib
import subprocess
import sys

import pytest
from absl import flags
from tiny_runs import segmenter_config, write_workdir

from cadjax.training import packed
from cadjax.weights import __main__ as program
from cadjax.weights import pack
from data_prep import flag_help
from data_prep.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
MOST_BYTES = 25_000_000


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """A folder with a wide and a coronary segmenter."""
  folder = tmp_path_factory.mktemp("weights")
  workdir = write_workdir(folder / "run", config=segmenter_config())
  for name in ("wide", "coronary"):
    pack.pack(workdir, name, folder)
  return folder


def test_all_shipped_files_together_are_small():
  sizes = [path.stat().st_size for path in packed.shipped().values()]
  assert sum(sizes) <= MOST_BYTES


def test_shipped_files_are_whole_and_have_a_card():
  for name, path in packed.shipped().items():
    assert packed.read(path).description["name"] == name
    card = path.with_suffix(".md").read_text()
    assert card.startswith(f"# {name}: ")
    assert "Not a medical device" in card


def test_without_files_it_says_so(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(packed, "FOLDER", tmp_path)
  assert program.show() == 0
  assert capsys.readouterr().out == "no weights are shipped in this version\n"


def test_shipped_models_are_listed_and_verified(models, monkeypatch, capsys):
  monkeypatch.setattr(packed, "FOLDER", models)
  assert program.show() == 0
  told = capsys.readouterr()
  head, *rows, last = told.out.splitlines()
  assert head.split() == ["name", "MB", "input", "trained", "on", "finds"]
  assert [row.split()[0] for row in rows] == ["coronary", "wide"]
  assert all("60 phantoms" in row for row in rows)
  assert all(row.endswith("aorta, coronaries") for row in rows)
  assert last == "checksums: as they were written"
  assert not told.err


def test_a_damaged_file_is_one_line_and_code_2(
  models, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(packed, "FOLDER", tmp_path)
  content = bytearray((models / "wide.safetensors").read_bytes())
  (tmp_path / "wide.safetensors").write_bytes(content)
  content[-3] ^= 4
  path = tmp_path / "coronary.safetensors"
  path.write_bytes(content)
  assert program.show() == 2
  told = capsys.readouterr()
  assert told.err == (
    f"error: {path} is damaged: it has changed since it was written\n"
  )
  assert "wide" in told.out


def run(*args: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "cadjax", "weights", *args],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def test_the_program_packs(tmp_path):
  workdir = write_workdir(tmp_path / "run", config=segmenter_config())
  about = tmp_path / "about.md"
  about.write_text("Found by hand.")
  done = run(
    f"--pack={workdir}",
    "--name=small",
    f"--out={tmp_path / 'out'}",
    f"--about={about}",
    "--command=cadjax build",
    "--command=cadjax train",
  )
  assert done.returncode == 0, done.stderr
  path = tmp_path / "out" / "small.safetensors"
  first, *changes, last = done.stdout.splitlines()
  assert first.startswith(f"{path}  ")
  assert "half precision changes probability by" in changes[0]
  assert last == str(path.with_suffix(".md"))
  text = pathlib.Path(last).read_text()
  assert "Found by hand." in text
  assert "cadjax build\ncadjax train" in text


@pytest.mark.parametrize(
  ("args", "words"),
  [
    (["--pack=none"], "--name is missing"),
    (["--name=x"], "--name goes with --pack"),
    (["--pack=none", "--name=x"], "none is not a workdir"),
    (["--pack=none", "--name=x", "--about=gone.md"], "--about=gone.md"),
  ],
)
def test_a_mistake_is_one_line(args, words):
  before = set(flags.FLAGS)
  own = flag_help.define(program.define_flags)
  try:
    flags.FLAGS(["cadjax weights", *args])
    with pytest.raises(UserError, match=words) as told:
      program.main([])
    assert "\n" not in str(told.value)
  finally:
    for flag in own:
      delattr(flags.FLAGS, flag.name)
  assert set(flags.FLAGS) == before
