"""Mistakes that a user can correct, reported in one line."""

import io
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import app, flags, logging

from data_prep import flag_help


class UserError(ValueError):
  """Bad input: the message says what, which file and what to do."""


def one_line(text: BaseException | str) -> str:
  """Returns a text, or an error's message, on a single line that shows all.

  Names of files may hold control characters, or bytes that are no text; both
  are written as escapes.
  """
  return "".join(
    x if x.isprintable() else x.encode("unicode_escape").decode()
    for x in " ".join(str(text).split())
  )


def run(
  program: str,
  main: Callable[[Sequence[str]], Any],
  define_flags: Callable[[], None],
  *,
  expected: tuple[type[Exception], ...] = (),
  more_help: Callable[
    [Sequence[str]], Iterable[flag_help.Section]
  ] = lambda argv: (),
) -> None:
  """Runs an absl program; a user's mistake ends in one line and exit code 2.

  Args:
    program: how it is called, for --help, such as "cadjax predict".
    main: gets the arguments that are left after the flags.
    define_flags: defines the program's flags, which --help lists.
    expected: exceptions that report a user's mistake, beside `UserError`.
    more_help: gets the command line of a call for help; returns what is shown
      beside the flags.
  """
  for stream in (sys.stdout, sys.stderr):
    # Names of files may be what the terminal cannot show.
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")
  own = flag_help.define(define_flags)

  def parse(argv: Sequence[str]) -> list[str]:
    # config_flags raises KeyError, AttributeError, ... for what is not in the
    # config, absl flags.Error: to a user both are a flag that is wrong.
    try:
      if flag_help.asked(argv):
        doc = sys.modules["__main__"].__doc__ or ""
        print(flag_help.text(program, doc, own, more_help(argv)), end="")
        sys.exit(0)
      return flags.FLAGS(argv)
    except Exception as error:
      print(f"error: {one_line(error)}", file=sys.stderr)
      sys.exit(2)

  def guarded(argv: Sequence[str]) -> Any:
    # Orbax and TFDS log every file that they open.
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
      print(
        f"error: unexpected argument {argv[1]!r}; options look like"
        " --name=value, and --help lists them",
        file=sys.stderr,
      )
      sys.exit(2)
    try:
      return main(argv)
    except (UserError, *expected) as error:
      print(f"error: {one_line(error)}", file=sys.stderr)
      sys.exit(2)

  app.run(guarded, flags_parser=parse)
