"""The command `cadjax`: one program for each thing to do.

`cadjax predict ...` runs what `python -m cadjax.predict ...` runs. Only the
program that is asked for is imported.
"""

import argparse
import contextlib
import importlib
import json
import pathlib
import runpy
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

import cadjax
from cadjax.core import lookup
from data_prep import flag_help, interrupt

# Name -> the module that is run, and what it does.
PROGRAMS = {
  "check": ("data_prep.check", "report which scans are usable"),
  "build": ("data_prep.build", "build a data set from scans or phantoms"),
  "phantoms": ("data_prep.export", "write phantoms as NIfTI scans"),
  "train": ("cadjax.main", "train a classifier or a segmenter"),
  "evaluate": ("cadjax.evaluate", "measure a model on a test set"),
  "predict": ("cadjax.predict", "classify scans; with a segmenter, link both"),
  "segment": ("cadjax.segment", "segment scans"),
  "calcium": ("cadjax.calcium_score", "score calcium without contrast"),
  "explain": ("cadjax.explain", "write heat maps of where a model looked"),
  "link": ("cadjax.evaluate_link", "measure the link on known lesions"),
  "diagnosis": (
    "cadjax.evaluate_diagnosis",
    "measure CAD-RADS on known lesions",
  ),
  "weights": ("cadjax.weights", "list and verify shipped models; pack one"),
  "export": ("cadjax.export", "write a program that runs without cadjax"),
  "experiment": ("cadjax.experiment", "answer a question by experiment"),
  "bench": ("cadjax.bench", "measure speed and memory"),
}
# Name -> the schema in report/schemas/ of the JSON document that it writes.
DOCUMENTS = {
  "predict": "case",
  "segment": "segments",
  "explain": "explain",
  "calcium": "calcium",
}
EXIT_CODES = {
  "0": "done",
  "2": "input that cannot be used: a line on stderr for each; the rest is done",
  "130": "interrupted; the same command goes on where it can",
}
SHELLS = ("bash", "zsh", "tcsh")


def table() -> str:
  """Returns all programs, one in a line."""
  lines = [f"  {name:<12}{what}" for name, (_, what) in PROGRAMS.items()]
  return "\n".join(
    [
      "usage: cadjax PROGRAM [--name=value ...]",
      "",
      cadjax.__doc__.partition("\n")[0],
      "",
      *lines,
      "",
      "cadjax PROGRAM --help  shows its flags",
      "cadjax --version       shows the version",
      f"cadjax completion {'|'.join(SHELLS)}  prints a completion script",
      "cadjax describe [PROGRAM]  prints programs, flags and schemas as JSON",
    ]
  )


def completion(shells: Sequence[str]) -> str:
  """Returns a script that completes programs and flags in a shell.

  Args:
    shells: one of `SHELLS`.

  Raises:
    lookup.ConfigError: not one known shell, or shtab is not installed.
  """
  if len(shells) != 1:
    raise lookup.ConfigError(f"completion takes one of {', '.join(SHELLS)}")
  lookup.check_known(shells, SHELLS, "shell")
  try:
    import shtab
  except ImportError as error:
    raise lookup.ConfigError(
      "completion needs shtab: pip install shtab"
    ) from error
  parser = argparse.ArgumentParser("cadjax")
  parser.add_argument("--version", action="store_true", help="the version")
  programs = parser.add_subparsers()
  for name, (module, what) in PROGRAMS.items():
    one = programs.add_parser(name, help=what, description=what, add_help=False)
    with _own_flags(load(module)) as own:
      flag_help.fill(one, own)
  return shtab.complete(parser, shells[0])


def describe(names: Sequence[str] = ()) -> dict[str, Any]:
  """Returns what a program that drives this one has to know, as JSON.

  Args:
    names: of programs; all if there are none.

  Returns:
    version; exit_codes; programs: by name the module, what it does, how it is
    used, its flags (see `flag_help.as_json`) and the schema of the document
    that it writes; schemas: by name.

  Raises:
    lookup.ConfigError: an unknown program.
  """
  lookup.check_known(names, PROGRAMS, "program")
  programs = {}
  for name in names or PROGRAMS:
    module, what = PROGRAMS[name]
    loaded = load(module)
    with _own_flags(loaded) as own:
      programs[name] = {
        "module": module,
        "what": what,
        "usage": loaded.__doc__.strip(),
        "flags": [flag_help.as_json(flag) for flag in own],
        "document": DOCUMENTS.get(name),
      }
  folder = pathlib.Path(__file__).parent / "report" / "schemas"
  used = {programs[name]["document"] for name in programs} - {None}
  return {
    "version": cadjax.__version__,
    "exit_codes": EXIT_CODES,
    "programs": programs,
    "schemas": {
      path.stem: json.loads(path.read_text("utf-8"))
      for path in sorted(folder.glob("*.json"))
      if path.stem in used or (used and path.stem == "common")
    },
  }


@contextlib.contextmanager
def _own_flags(module: types.ModuleType) -> Iterator[list[flags.Flag]]:
  """Defines the flags of a program and removes them: names repeat in others."""
  own = flag_help.define(module.define_flags)
  try:
    yield own
  finally:
    for flag in own:
      delattr(flags.FLAGS, flag.name)


def load(name: str) -> types.ModuleType:
  """Imports the module that is run."""
  module = importlib.import_module(name)
  if hasattr(module, "__path__"):
    return importlib.import_module(f"{name}.__main__")
  return module


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the program that the first argument names."""
  name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
  try:
    own = name in ("completion", "describe")
    if {"-h", "--help"} & {name, *rest[:own]}:
      print(table())
    elif name == "--version":
      print(f"cadjax {cadjax.__version__}")
    elif name == "completion":
      print(completion(rest))
    elif name == "describe":
      names = [word for word in rest if word != "--json"]
      print(json.dumps(describe(names), indent=2))
    else:
      lookup.check_known([name], PROGRAMS, "program")
      sys.argv = [f"cadjax {name}", *rest]
      interrupt.guard()
      # As `python -m` does, so that both are the same in everything, in how
      # worker processes start as well.
      runpy.run_module(PROGRAMS[name][0], run_name="__main__", alter_sys=True)
  except lookup.ConfigError as error:
    sys.exit(_fail(str(error)))


def _fail(message: str) -> int:
  print(f"error: {message}", file=sys.stderr)
  return 2


if __name__ == "__main__":
  main()
