"""What `--help` prints of a program: its own flags and nothing else.

absl's own `--help` lists the flags of the main module, which leaves out those
that a program shares with others; its `--helpfull` lists those of every
library. Here a program's flags are what its `define_flags` defines.
"""

import argparse
import dataclasses
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import flags

NAMES = ("-h", "--h", "-help", "--help", "-helpshort", "--helpshort")
REPEATED = ";\n    repeat this option to specify a list of values"
METAVARS = {
  "int": "N",
  "float": "X",
  "comma separated list of strings": "A,B,...",
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """A line of help.

  Attributes:
    options: ways to write it, such as ("--out",).
    metavar: stands for the value; "" for a flag without one.
    text: what it means, with its default.
    choices: all values that it takes; empty if there are more.
  """

  options: tuple[str, ...]
  metavar: str
  text: str
  choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Section:
  """Lines of help under a title, such as the fields of a config."""

  title: str
  entries: Sequence[Entry] = ()
  text: str = ""


def asked(argv: Sequence[str]) -> bool:
  """Returns whether a command line asks for help."""
  options = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
  return any(option in NAMES for option in options)


def define(define_flags: Callable[[], None]) -> list[flags.Flag]:
  """Calls `define_flags` and returns the flags that it has defined."""
  before = set(flags.FLAGS)
  define_flags()
  return [flags.FLAGS[name] for name in flags.FLAGS if name not in before]


def _choices(flag: flags.Flag) -> tuple[str, ...]:
  return tuple(getattr(flag.parser, "enum_values", ()))


def _meaning(flag: flags.Flag) -> str:
  """Returns the flag's help without what absl adds."""
  choices = _choices(flag)
  text = flag.help
  if choices:
    text = text.removeprefix(f"<{'|'.join(choices)}>: ")
  if text.endswith(REPEATED):
    text = f"{text.removesuffix(REPEATED).rstrip('.')}; may be repeated."
  return text


def _required(flag: flags.Flag) -> bool:
  # absl keeps that a flag is required as a check of its value.
  return flag.default is None and not all(
    one.checker(None) for one in flag.validators
  )


def as_json(flag: flags.Flag) -> dict[str, Any]:
  """Returns a flag as JSON.

  Returns:
    name; type ("string", "int", "float", "bool", or "config": the name of a
    config, whose fields are flags, too); list (values with commas between
    them); repeated (the flag may be); required; default; choices, none if there
    are more; help.
  """
  kind = flag.flag_type()
  types = {name: name for name in ("int", "float", "bool")}
  types["config object"] = "config"
  return {
    "name": flag.name,
    "type": types.get(kind.removeprefix("multi "), "string"),
    "list": kind.startswith("comma"),
    "repeated": kind.startswith("multi"),
    "required": _required(flag),
    "default": None if kind == "config object" else flag.default,
    "choices": list(_choices(flag)),
    "help": _meaning(flag),
  }


def entry(flag: flags.Flag) -> Entry:
  """Describes a flag."""
  text, kind = _meaning(flag), flag.flag_type()
  choices = _choices(flag)
  if _required(flag):
    text += " (required)"
  elif flag.default not in (None, "", []):
    text += f" (default: {_written(flag.default)})"
  options = (f"--{flag.name}",)
  metavar = METAVARS.get(kind.removeprefix("multi "), "TEXT")
  if flag.boolean:
    metavar = ""
    if flag.default is not False:
      options += (f"--no{flag.name}",)
  return Entry(options, metavar, text, choices)


def _written(value: object) -> str:
  """Returns a default as a command line has it."""
  if isinstance(value, list | tuple):
    return ",".join(map(str, value))
  return str(value).lower() if isinstance(value, bool) else str(value)


def fill(
  parser: argparse.ArgumentParser,
  own: Iterable[flags.Flag],
  sections: Iterable[Section] = (),
) -> argparse.ArgumentParser:
  """Adds flags and sections to a parser that prints or completes them."""
  group = parser.add_argument_group("flags")
  group.add_argument("-h", "--help", action="help", help="Show this.")
  parts = [(group, list(map(entry, own)))]
  for section in sections:
    group = parser.add_argument_group(section.title, section.text or None)
    parts.append((group, section.entries))
  for group, entries in parts:
    for one in entries:
      takes = {"metavar": one.metavar, "choices": one.choices or None}
      if one.choices:
        takes["metavar"] = "|".join(one.choices)
      group.add_argument(
        *one.options,
        help=one.text.replace("%", "%%"),
        **(takes if one.metavar else {"action": "store_true"}),
      )
  return parser


class Formatter(argparse.RawDescriptionHelpFormatter):
  """Writes flags as absl reads them, --name=VALUE."""

  def __init__(self, prog: str, **options: object):
    width = min(shutil.get_terminal_size().columns, 100)
    super().__init__(prog, max_help_position=28, width=width, **options)

  def _format_action_invocation(self, action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f"={action.metavar}"
    return ", ".join(f"{option}{value}" for option in action.option_strings)


def text(
  program: str,
  doc: str,
  own: Iterable[flags.Flag],
  sections: Iterable[Section] = (),
) -> str:
  """Returns the help of a program.

  Args:
    program: how it is called, such as "cadjax predict".
    doc: the docstring of its module.
    own: its flags, see `define`.
    sections: what there is beside the flags.
  """
  parser = argparse.ArgumentParser(
    prog=program,
    usage=f"{program} [--name=value ...]",
    description=doc.strip(),
    formatter_class=Formatter,
    add_help=False,
    allow_abbrev=False,
    epilog="--helpfull lists the flags of the libraries as well.",
  )
  return fill(parser, own, sections).format_help()
