"""The READMEs: their commands, paths and links; and what make runs."""

import contextlib
import copy
import importlib
import itertools
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from absl import flags

from cadjax.evaluation import lesions
from data_prep import errors

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
  path.relative_to(ROOT).as_posix()
  for path in (
    *ROOT.glob("*.md"),
    *(
      page
      for folder in ("cadjax", "colab", "configs", "data_prep")
      for page in (ROOT / folder).rglob("README.md")
    ),
  )
)
# Those with commands that should run today.
CURRENT = [page for page in PAGES if page != "CHANGELOG.md"]
# What the subcommands of `cadjax` run.
PROGRAMS = {
  "check": "data_prep.check",
  "build": "data_prep.build",
  "phantoms": "data_prep.export",
  "export": "cadjax.export",
  "train": "cadjax.main",
  "evaluate": "cadjax.evaluate",
  "predict": "cadjax.predict",
  "segment": "cadjax.segment",
  "calcium": "cadjax.calcium_score",
  "explain": "cadjax.explain",
  "diagnosis": "cadjax.evaluate_diagnosis",
  "link": "cadjax.evaluate_link",
  "weights": "cadjax.weights",
  "experiment": "cadjax.experiment",
  "bench": "cadjax.bench",
}
# ml_collections loads a config in a way that Python will drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")
STARTS = ("cadjax ", "python -m ", "make ", "pytest ", "jupyter execute ")
FOLDERS = ("cadjax", "colab", "configs", "data_prep", "tests", ".ci")
# Where a page shows the form of a command: cadjax NAME --help.
FORM = re.compile(r"(cadjax|python -m) [A-Z]+\b")


def code(text: str) -> tuple[list[str], list[str]]:
  """Returns the lines of a page's blocks, and what else is in backticks."""
  block = re.compile(r"^```\n(.*?)^```$", re.DOTALL | re.MULTILINE)
  joined = "".join(block.findall(text)).replace("\\\n", " ")
  return joined.splitlines(), re.findall(r"`([^`]+)`", block.sub("", text))


def commands(text: str) -> list[str]:
  """Returns the commands of a page: in blocks, tables and running text."""
  lines, spans = code(text)
  found = [re.split(r"(?:^|\s)#", line)[0] for line in lines] + spans
  found = [" ".join(one.split()) for one in found]
  return [
    one for one in found if one.startswith(STARTS) and not FORM.match(one)
  ]


def paths(text: str) -> set[str]:
  """Returns the files of this repository that a page names as code."""
  words = itertools.chain(*(one.split() for one in sum(code(text), [])))
  words = (re.sub(r"^--\w+=", "", word) for word in words)
  start = "|".join(map(re.escape, FOLDERS))
  return {word for word in words if re.fullmatch(rf"({start})/[\w/.]+", word)}


def all_commands() -> Iterator[tuple[str, str]]:
  """Yields every command once, with a page that has it."""
  seen = set()
  for page in CURRENT:
    for command in commands((ROOT / page).read_text()):
      if command not in seen:
        yield page, command
      seen.add(command)


COMMANDS = list(all_commands())


@contextlib.contextmanager
def flags_of(module: str, monkeypatch: pytest.MonkeyPatch):
  """Gives the flags of one program, and those there were before back."""
  state = vars(flags.FLAGS)
  before = {key: copy.copy(value) for key, value in state.items()}
  try:
    for name in list(flags.FLAGS):
      delattr(flags.FLAGS, name)
    loaded = importlib.import_module(module)
    if hasattr(loaded, "__path__"):
      loaded = importlib.import_module(f"{module}.__main__")
    for name in list(flags.FLAGS):  # Of a module that was first imported here.
      delattr(flags.FLAGS, name)
    if hasattr(loaded, "define_flags"):
      loaded.define_flags()
    else:  # The program, up to where it would run.
      monkeypatch.setattr(errors, "run", lambda *args, **options: None)
      runpy.run_path(loaded.__file__, run_name="__main__")
    yield flags.FLAGS
  finally:
    state.clear()
    state.update(before)


def parse(module: str, words: list[str], monkeypatch) -> list[str]:
  """Parses a program's arguments; returns what is no flag."""
  argv = [module]
  for word in words:
    name = word.removeprefix("--config=")
    if name != word and not name.endswith(".py"):
      word = f"--config={ROOT / 'configs' / name}.py"
    argv.append(word)
  # Where config_flags looks for the fields of a config.
  monkeypatch.setattr("sys.argv", argv)
  with flags_of(module, monkeypatch) as known:
    left = known(argv)[1:]
    if "config" in known and known.config is not None:
      known.config.keys()  # A file that cannot be loaded says so here.
    return left


def check_python(words: list[str], monkeypatch) -> None:
  """Checks `python -m MODULE ...` or, by its module, `cadjax NAME ...`."""
  module, *rest = words
  if module == "pip" or module == "pytest":
    return
  spec = importlib.util.find_spec(module)
  assert spec is not None, f"no module {module}"
  if rest and not {"-h", "--help"} & set(rest):
    assert parse(module, rest, monkeypatch) == []


def check_make(words: list[str]) -> None:
  """Checks that make knows the targets, without running their recipes."""
  if not shutil.which("make"):
    pytest.skip("needs make")
  done = subprocess.run(
    ["make", "-n", *words], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


def check_pytest(words: list[str]) -> None:
  """Checks that the files are there and one of them has the word of -k."""
  rest = list(words)
  word = ""
  if "-k" in rest:
    place = rest.index("-k")
    word = rest[place + 1]
    del rest[place : place + 2]
  named = [ROOT / one for one in rest if not one.startswith("-")]
  assert named
  assert all(path.exists() for path in named)
  assert any(word in path.read_text() for path in named)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_is_one_that_its_program_takes(
  page, command, monkeypatch
):
  words = shlex.split(command)
  if words[:2] == ["cadjax", "describe"]:
    assert set(words[2:]) <= set(PROGRAMS)
  elif words[0] == "cadjax":
    assert words[1] in PROGRAMS, f"{page}: cadjax has no {words[1]}"
    check_python([PROGRAMS[words[1]], *words[2:]], monkeypatch)
    if plan := re.search(r"--plan=(\w+)(?:\s|$)", command):
      assert (ROOT / "configs/experiments" / f"{plan[1]}.py").exists()
  elif words[0] == "python":
    check_python(words[2:], monkeypatch)
  elif words[0] == "make":
    check_make(words[1:])
  elif words[0] == "pytest":
    check_pytest(words[1:])
  else:
    assert all((ROOT / word).exists() for word in words[2:])


@pytest.mark.parametrize(
  ("command", "reason"),
  [
    ("cadjax evaluate --workdir=W --agianst=V", "agianst"),
    ("cadjax evaluate --against=V", "workdir"),
    (
      "cadjax train --config=resnet3d --workdir=W --config.modle.depth=9",
      "modle",
    ),
    ("cadjax train --config=resnet9d --workdir=W", "resnet9d"),
    ("cadjax check --source=mine --input=DIR", "mine"),
    ("cadjax build --source=phantom --cases=few --out=DIR", "few"),
    ("python -m cadjax.bench.tpus --config=resnet3d", "tpus"),
  ],
)
def test_a_wrong_command_is_noticed(command, reason, monkeypatch):
  test = test_every_command_is_one_that_its_program_takes
  expected = (AssertionError, flags.Error, AttributeError, KeyError, OSError)
  with pytest.raises(expected, match=reason):
    test("README.md", command, monkeypatch)


def test_no_program_lacks_a_command():
  found = {
    command.split()[1] for _, command in COMMANDS if "cadjax " in command
  }
  assert set(PROGRAMS) <= found
  table = (ROOT / "README.md").read_text().partition("## Programs")[2]
  table = table.partition("\n## ")[0]
  for name, module in PROGRAMS.items():
    assert re.search(rf"`cadjax {name} [^`]*` \| `{module}` \|", table)


def test_flags_of_a_program_stay_its_own(monkeypatch):
  before = set(flags.FLAGS)
  with flags_of("cadjax.segment", monkeypatch) as known:
    assert "segmenter" in known
    assert "classifier" not in known
  assert set(flags.FLAGS) == before


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_path_of_a_page_is_there(page):
  text = (ROOT / page).read_text()
  for link in re.findall(r"\]\(([^)\s]+)\)", text):
    if re.match(r"[a-z]+:", link):
      continue
    name, _, anchor = link.partition("#")
    target = (ROOT / page).parent / name if name else ROOT / page
    assert target.exists(), f"{page}: {link}"
    if anchor:
      assert anchor in anchors(target.read_text()), f"{page}: {link}"
  missing = [path for path in paths(text) if not (ROOT / path).exists()]
  assert not missing, f"{page}: {missing}"


def anchors(text: str) -> set[str]:
  """Returns what a heading can be linked by."""
  headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
  plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
  return {heading.replace(" ", "-") for heading in plain}


def test_the_recipes_name_what_the_files_have():
  text = (ROOT / "cadjax" / "README.md").read_text()
  named = re.findall(r"`([A-Z]\w+)`[^`\]]*?\[[^\]]+\]\(([^)]+)\)", text)
  named += re.findall(
    r"`([A-Z]\w+)` and one of `\w+`[^\]]*?\[[^\]]+\]\(([^)]+)\)", text
  )
  assert len(named) > 6
  for name, path in named:
    source = (ROOT / "cadjax" / path).read_text()
    assert re.search(rf"^(class )?{name}\b", source, re.MULTILINE), (name, path)


def test_the_picture_has_every_room():
  picture = (ROOT / "cadjax" / "README.md").read_text().split("```")[1]
  rooms = {path.parent.name for path in (ROOT / "cadjax").glob("*/*.py")}
  drawn = set(re.findall(r"(\w+)/", picture)) - {"data_prep"}
  assert drawn == rooms


def test_the_front_page_is_short():
  assert len((ROOT / "README.md").read_text().splitlines()) < 150


def test_the_tables_of_programs_have_a_place():
  makefile = (ROOT / "Makefile").read_text()
  # That of the experiments is written at each of their scales.
  tables = set(re.findall(r"--table=(\S+)", makefile))
  assert len(tables) == 2
  for table, name in zip(sorted(tables), ("tpu", "experiments"), strict=True):
    text = (ROOT / table).read_text()
    assert text.count(f"<!-- {name}: begin -->") == 1
    assert text.count(f"<!-- {name}: end -->") == 1


def listed() -> list[str]:
  """Returns the commands of README's table of programs, in order."""
  readme = (ROOT / "README.md").read_text()
  return commands(readme.partition("## Programs")[2].partition("\n## ")[0])


def test_no_two_commands_write_into_one_folder():
  found = re.findall(r" --out=(\S+)", " ".join(listed()))
  assert len(found) > 8
  assert sorted(set(found)) == sorted(found)


def test_enough_phantoms_are_written_to_measure_the_link():
  (export,) = [one for one in listed() if one.startswith("cadjax phantoms")]
  (measure,) = [one for one in listed() if one.startswith("cadjax link")]
  cases = int(re.search(r"--cases=(\d+)", export).group(1))
  folder = re.search(r"--out=(\S+)", export).group(1)
  assert cases >= lesions.LEAST_SCANS
  assert f"--scans={folder} " in measure


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_demo_goes_on_where_it_was_interrupted(tmp_path):
  parts = ("scans", "case", "data", "masks")
  for part in parts:
    (tmp_path / part).mkdir()

  def makes() -> list[str]:
    done = subprocess.run(
      ["make", "-n", "demo", f"DEMO={tmp_path}"],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
    )
    return [part for part in parts if f"--out={tmp_path}/{part}" in done.stdout]

  assert makes() == list(parts)
  (tmp_path / "masks" / ".ready").touch()
  assert makes() == ["scans", "case", "data"]
