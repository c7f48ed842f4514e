import importlib.util
import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import cadjax
from cadjax import __main__ as cli
from cadjax.report import calcified, classified, explained, segmented

ROOT = pathlib.Path(__file__).parents[1]


def run(*args: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", *args], cwd=ROOT, capture_output=True, text=True
  )


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_without_a_program_all_are_listed(argv, monkeypatch, capsys):
  monkeypatch.setattr(sys, "argv", ["cadjax", *argv])
  cli.main()
  said = capsys.readouterr().out
  for name, (_, what) in cli.PROGRAMS.items():
    assert re.search(rf"^  {name} +{re.escape(what)}$", said, re.MULTILINE)
  assert all(len(line) <= 80 for line in said.splitlines())


def test_version(capsys):
  cli.main(["--version"])
  assert capsys.readouterr().out == f"cadjax {cadjax.__version__}\n"


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["predit", "--help"], "unknown program 'predit'; did you mean 'predict'?"),
    (["--input=x"], "unknown program '--input=x'"),
    (["completion"], "completion takes one of bash, zsh"),
    (["completion", "bsh"], "unknown shell 'bsh'; did you mean 'bash'?"),
  ],
)
def test_a_mistake_is_one_line_and_code_2(argv, message, capsys):
  with pytest.raises(SystemExit) as raised:
    cli.main(argv)
  assert raised.value.code == 2
  said = capsys.readouterr()
  assert not said.out
  assert said.err.startswith(f"error: {message}")
  assert said.err.count("\n") == 1


def test_every_program_of_the_package_has_a_subcommand():
  files = [
    path
    for folder in (ROOT / "cadjax", ROOT / "data_prep")
    for path in folder.rglob("*.py")
    if "  errors.run(" in path.read_text()
  ]
  found = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files
  }
  # Not for all users: what fills tables of the benchmark's page, what owners of
  # a physical phantom measure, and how real the drawn ones are.
  found -= {
    "cadjax.bench.recipe",
    "cadjax.bench.tpu",
    "cadjax.calcium.qrm",
    "data_prep.errors",
    "data_prep.phantom.compare",
  }
  listed = {
    f"{module}.__main__"
    if importlib.util.find_spec(module).submodule_search_locations
    else module
    for module, _ in cli.PROGRAMS.values()
  }
  assert listed == found


def test_a_subcommand_is_its_module():
  by_name = run("cadjax", "phantoms", "--cases=many")
  by_module = run("data_prep.export", "--cases=many")
  assert by_name.returncode == by_module.returncode == 2
  assert by_name.stderr == by_module.stderr
  assert "--cases=many" in by_name.stderr
  by_name = run("cadjax", "phantoms", "--help")
  assert by_name.stdout == run("data_prep.export", "--help").stdout
  assert by_name.stdout.startswith("usage: cadjax phantoms ")


def test_a_subcommand_has_worker_processes(tmp_path):
  """They start from the main module, which a dispatcher might hide."""
  made = run(
    *("cadjax", "phantoms", f"--out={tmp_path}", "--workers=2", "--cases=2"),
    "--spacing_mm=4",
  )
  assert made.returncode == 0, made.stderr
  done = run(
    *("cadjax", "check", "--source=manifest", f"--input={tmp_path}"),
    "--workers=2",
  )
  assert "2 of 2 cases are usable" in done.stdout, done.stderr


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_programs_and_flags(tmp_path):
  pytest.importorskip("shtab")
  done = run("cadjax", "completion", "bash")
  assert done.returncode == 0, done.stderr
  script = tmp_path / "cadjax.bash"
  script.write_text(done.stdout)

  def completed(*words: str) -> list[str]:
    code = (
      f'source "{script}"; COMP_WORDS=({" ".join(words)});'
      f" COMP_CWORD={len(words) - 1}; _shtab_cadjax;"
      ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    asked = subprocess.run(
      ["bash", "-c", code], capture_output=True, text=True, check=True
    )
    return asked.stdout.split()

  assert completed("cadjax", "pre") == ["predict"]
  assert completed("cadjax", "predict", "--seg") == ["--segmenter"]
  assert completed("cadjax", "train", "--w") == ["--workdir"]
  assert completed("cadjax", "build", "--severity", "o") == ["overt"]


def test_programs_are_described_for_programs():
  done = run("cadjax", "describe", "--json")
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout)
  assert set(found["programs"]) == set(cli.PROGRAMS)
  predict = found["programs"]["predict"]
  assert "cadjax predict" in predict["usage"]
  by_name = {flag["name"]: flag for flag in predict["flags"]}
  assert by_name["out"]["required"]
  assert by_name["method"]["default"] == "hirescam"
  assert "gradcam" in by_name["method"]["choices"]
  assert by_name["input"]["repeated"]
  assert by_name["overwrite"]["type"] == "bool"
  train = found["programs"]["train"]["flags"]
  assert {"config"} == {f["name"] for f in train if f["type"] == "config"}
  named = {one["document"] for one in found["programs"].values()} - {None}
  assert {*named, "common"} == set(found["schemas"])
  # Flags of the libraries are left out.
  assert not [f for f in train if f["name"] in ("alsologtostderr", "v")]


def test_a_document_is_of_its_schema():
  kinds = {
    "predict": classified.SCHEMA,
    "segment": segmented.SCHEMA,
    "explain": explained.SCHEMA,
    "calcium": calcified.SCHEMA,
  }
  assert set(kinds) == set(cli.DOCUMENTS)
  for name, schema in kinds.items():
    assert schema.startswith(f"cadjax.{cli.DOCUMENTS[name]}/")


def test_one_program_is_described():
  done = run("cadjax", "describe", "weights")
  found = json.loads(done.stdout)
  assert list(found["programs"]) == ["weights"]
  assert found["schemas"] == {}
  wrong = run("cadjax", "describe", "diagnose")
  assert wrong.returncode == 2
  assert "diagnose" in wrong.stderr
