"""Configs and plans by name, as flags, and what the fields of a config mean.

Those that come with cadjax are found by name from any folder: `demo` is
configs/demo.py. Anything else is the path of a Python file. The meaning of a
field is the comment beside its first assignment or above it; a config that
builds on another one does not repeat it.
"""

import ast
import dataclasses
import difflib
import io
import math
import pathlib
import re
import shlex
import sys
import tokenize
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from cadjax.core import lookup
from data_prep import flag_help

FOLDER = pathlib.Path(__file__).parents[2] / "configs"


@dataclasses.dataclass(frozen=True)
class Packaged:
  """What is found by name.

  Attributes:
    what: for messages.
    folder: of those that come with cadjax.
    function: that each file of them defines.
  """

  what: str
  folder: pathlib.Path
  function: str


CONFIG = Packaged("config", FOLDER, "get_config")
PLAN = Packaged("plan", FOLDER / "experiments", "get_plan")


def names(kind: Packaged) -> list[str]:
  """Returns the names of those that come with cadjax."""
  start = f"def {kind.function}("
  return sorted(
    path.stem for path in kind.folder.glob("*.py") if start in path.read_text()
  )


def find(kind: Packaged, name: str) -> pathlib.Path:
  """Returns the file of a config or a plan.

  Args:
    kind: `CONFIG` or `PLAN`.
    name: of one that comes with cadjax, or the path of a file, which wins.

  Raises:
    lookup.ConfigError: neither is there; the message lists the names.
  """
  path = pathlib.Path(name)
  if path.is_file():
    return path
  known = names(kind)
  if path.name != name or path.suffix:
    raise lookup.ConfigError(
      f"{name}: no such file; by name there are {', '.join(known)}"
    )
  lookup.check_known([name], known, kind.what)
  return kind.folder / f"{name}.py"


class _Parser(flags.ArgumentParser):
  """Takes names, and says at once what is wrong with a file."""

  def __init__(self, files: flags.ArgumentParser):
    self._files = files

  def flag_type(self) -> str:
    return self._files.flag_type()

  def parse(self, path: str) -> ml_collections.ConfigDict:
    # What follows a colon is handed to get_config.
    name, colon, argument = path.partition(":")
    file = find(CONFIG, name)
    try:
      config = self._files.parse(f"{file}{colon}{argument}")
      # A file that could not be loaded raises at first use.
      config.keys()
    except SyntaxError as error:
      raise lookup.ConfigError(
        f"is not a Python file ({error}); try --config=demo"
      ) from error
    except OSError as error:
      raise lookup.ConfigError(str(error)) from error
    except AttributeError as error:
      raise lookup.ConfigError(
        f"{name}: get_config() returns a {type(config).__name__} and no"
        " ConfigDict"
      ) from error
    except ValueError as error:
      # The parser puts a whole traceback into its own message.
      cause = error.__context__
      if cause is None:
        raise
      line = traceback.extract_tb(cause.__traceback__)[-1].lineno
      raise lookup.ConfigError(f"{file}, line {line}: {cause}") from error
    # Those that config_flags sets once this returns, and says less about.
    check_fields(config, sys.argv)
    return config


def check_fields(
  config: ml_collections.ConfigDict, argv: Sequence[str]
) -> None:
  """Checks that a config has the fields that a command line sets.

  Args:
    config: what get_config returned.
    argv: a command line, maybe with --config.FIELD=VALUE.

  Raises:
    lookup.ConfigError: it has no such field; the message names the nearest.
  """
  known = list(_fields(config))
  groups = {
    field.rsplit(".", depth)[0]
    for field in known
    for depth in range(1, field.count(".") + 1)
  }
  options = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
  for option in options:
    given = re.match(r"--?(?:no)?config\.([^=\[]+)", option)
    if given is None or given[1] in {*known, *groups}:
      continue
    field = given[1]
    near = difflib.get_close_matches(field, known, n=1, cutoff=0.6)
    if not near:
      # As people think of a field: by its own name, wherever it is.
      last = {name.rpartition(".")[2]: name for name in reversed(known)}
      own = field.rpartition(".")[2]
      near = [last[name] for name in difflib.get_close_matches(own, last, 1, 0)]
    raise lookup.ConfigError(
      f"has no field {field!r}; the nearest is --config.{near[0]}, and"
      " --config=NAME --help lists all"
    )


def check_finite(config: ml_collections.ConfigDict) -> None:
  """Checks that every number of a config is one.

  Raises:
    lookup.ConfigError: a field is NaN or infinite, or holds such a number.
  """
  for field in _fields(config):
    value = config
    for name in field.split("."):
      value = value[name]
    numbers = value if isinstance(value, list | tuple) else [value]
    for number in numbers:
      if isinstance(number, float) and not math.isfinite(number):
        raise lookup.ConfigError(
          f"config.{field} is {value}; it must be finite"
        )


def define_flag() -> None:
  """Defines --config, and --config.FIELD for each field of the config."""
  config_flags.DEFINE_config_file(
    "config",
    None,
    f"A config by name, {', '.join(names(CONFIG))}, or a file of your own;"
    " required.",
  )
  flag = flags.FLAGS["config"]
  flag.parser = _Parser(flag.parser)


def describe(argv: Sequence[str]) -> Iterator[flag_help.Section]:
  """Describes the fields of the config on a command line, for --help.

  Args:
    argv: a command line, maybe with --config=NAME, after `define_flag`.

  Yields:
    one section, with the fields of that config or how to ask for them.

  Raises:
    lookup.ConfigError: there is no such config.
  """
  given = None
  for option, value in zip(argv, [*argv[1:], ""], strict=True):
    name, equals, written = option.partition("=")
    if name in ("-config", "--config"):
      given = written if equals else value
  if given is None:
    text = "--config=NAME --help lists the fields of a config, each a flag."
    yield flag_help.Section("fields of the config", text=text)
    return
  config = flags.FLAGS["config"].parser.parse(given)
  entries = [
    _entry(config, field, meaning)
    for field, meaning in meanings(config, find(CONFIG, given.split(":")[0]))
  ]
  yield flag_help.Section(f"fields of the config {given}", entries)


def _entry(
  config: ml_collections.ConfigDict, field: str, meaning: str
) -> flag_help.Entry:
  kind, value = _type_and_value(config, field)
  metavar = {"int": "N", "float": "X", "bool": "true|false"}.get(kind, "TEXT")
  if kind == "tuple":
    metavar = "'(A, B, ...)'"
  if isinstance(value, ml_collections.ConfigDict):
    metavar, value = "'{...}'", value.to_dict()
  default = "unset" if value is None else shlex.quote(str(value))
  default = default.lower() if kind == "bool" else default
  text = f"{meaning} (default: {default})"
  return flag_help.Entry((f"--config.{field}",), metavar, text.strip())


def _type_and_value(
  config: ml_collections.ConfigDict, field: str
) -> tuple[str, Any]:
  *parents, name = field.split(".")
  for parent in parents:
    config = config[parent]
  return config.get_type(name).__name__, config[name]


def meanings(
  config: ml_collections.ConfigDict, path: pathlib.Path
) -> list[tuple[str, str]]:
  """Returns each field of a config, dotted, and what it means.

  Args:
    config: what the file returns.
    path: of the file.

  Returns:
    (field, meaning) in the order of the config; "" where no comment says. A
    field without one has that of what it is an option of: those of
    augmentations are told where these are.
  """
  comments = _comments(path)

  def meaning(field: str) -> str:
    while field not in comments and "." in field:
      field = field.rpartition(".")[0]
    return comments.get(field, "")

  return [(field, meaning(field)) for field in _fields(config)]


def _fields(config: ml_collections.ConfigDict) -> Iterator[str]:
  for name, value in config.items():
    if isinstance(value, ml_collections.ConfigDict) and value:
      yield from (f"{name}.{field}" for field in _fields(value))
    else:
      yield name


def _comments(path: pathlib.Path) -> dict[str, str]:
  """Returns the comments of a config's fields, those of its base first."""
  source = path.read_text()
  lines = source.splitlines()
  comment_at = {
    token.start: token.string.lstrip("# ")
    for token in tokenize.generate_tokens(io.StringIO(source).readline)
    if token.type == tokenize.COMMENT
  }
  # By line: comments beside code, and comments on lines of their own.
  beside, alone = {}, {}
  for (row, column), text in comment_at.items():
    own_line = not lines[row - 1][:column].strip()
    (alone if own_line else beside)[row] = text
  found: dict[str, str] = {}
  tree = ast.parse(source)
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module == "configs":
      for alias in node.names:
        found = _comments(FOLDER / f"{alias.name}.py") | found
  for node in ast.walk(tree):
    if not isinstance(node, ast.Assign):
      continue
    text = beside.get(node.end_lineno, "")
    row = node.lineno - 1
    while not beside.get(node.end_lineno) and row in alone:
      text = f"{alone[row]} {text}".strip()
      row -= 1
    for target in node.targets:
      _, dot, field = ast.unparse(target).partition(".")
      if dot and text:
        found.setdefault(field, text)
  return found
