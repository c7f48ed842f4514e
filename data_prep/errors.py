"""Mistakes that a user can mend, told in one line."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging


class UserError(ValueError):
  """Bad input: the message says what, which file and what to do."""


def one_line(error: BaseException) -> str:
  """Returns the message of `error` on a single line."""
  return " ".join(str(error).split())


def run(
  main: Callable[[Sequence[str]], Any],
  expected: tuple[type[Exception], ...] = (),
) -> None:
  """Runs an absl program; a user's mistake ends in one line and exit code 2.

  Args:
    main: gets the arguments that are left after the flags.
    expected: exceptions that tell a user's mistake, beside `UserError`.
  """

  def parse(argv: Sequence[str]) -> list[str]:
    # config_flags raises KeyError, AttributeError, ... for what is not in the
    # config, absl flags.Error: to a user both are a flag that is wrong.
    try:
      return flags.FLAGS(argv)
    except Exception as error:
      print(f"error: {one_line(error)}", file=sys.stderr)
      sys.exit(2)

  def guarded(argv: Sequence[str]) -> Any:
    # Orbax and TFDS tell of every file that they open.
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
