"""The command `cadjax`: one program for each thing to do.

`cadjax predict ...` runs what `python -m cadjax.predict ...` runs. Only the
program that is asked for is imported.
"""

import argparse
import importlib
import runpy
import sys
import types
from collections.abc import Sequence

import cadjax
from cadjax.core import lookup
from data_prep import interrupt

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
  from absl import flags

  from data_prep import flag_help

  parser = argparse.ArgumentParser("cadjax")
  parser.add_argument("--version", action="store_true", help="the version")
  programs = parser.add_subparsers()
  for name, (module, what) in PROGRAMS.items():
    one = programs.add_parser(name, help=what, description=what, add_help=False)
    own = flag_help.define(load(module).define_flags)
    flag_help.fill(one, own)
    # Programs have flags of the same names.
    for flag in own:
      delattr(flags.FLAGS, flag.name)
  return shtab.complete(parser, shells[0])


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
    if {"-h", "--help"} & {name, *rest[: name == "completion"]}:
      print(table())
    elif name == "--version":
      print(f"cadjax {cadjax.__version__}")
    elif name == "completion":
      print(completion(rest))
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
