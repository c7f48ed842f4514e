"""Mistakes that a user can correct, reported in one line."""

import errno
import io
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from data_prep import flag_help, interrupt

_ADVICE = {
  errno.ENOSPC: "free some space, or write to another disk",
  errno.EDQUOT: "free some space, or write to another disk",
  errno.EFBIG: "the limit on the size of a file is reached; write to another"
  " disk",
  errno.EROFS: "choose a place that can be written to",
  errno.EACCES: "choose a place that you may use, or ask for access",
  errno.EPERM: "choose a place that you may use, or ask for access",
  errno.ENOTDIR: "a file is where a folder should be; choose another place",
  errno.EEXIST: "a file is where a folder should be; choose another place",
  errno.EISDIR: "a folder is where a file should be; choose another place",
}


class UserError(ValueError):
  """Bad input: the message says what, which file and what to do."""


def one_line(text: BaseException | str) -> str:
  """Returns a text, or an error's message, on a single line that shows all.

  Names of files may hold control characters, or undecodable bytes; both
  are written as escapes.
  """
  return "".join(
    x if x.isprintable() else x.encode("unicode_escape").decode()
    for x in " ".join(str(text).split())
  )


def to_number(text: str) -> float | None:
  """Returns the number that a header's text is; None if it is none.

  Python's own reads "1_0" as 10, and digits of other scripts.
  """
  text = text.strip()
  if not text.isascii() or "_" in text:
    return None
  try:
    return float(text)
  except ValueError:
    return None


def of_system(error: OSError) -> str:
  """Returns what the system refused, of which file, and what to do."""
  where = f"{error.filename}: " if error.filename is not None else ""
  advice = _ADVICE.get(error.errno)
  text = one_line(f"{where}{error.strerror}")
  return f"{text}; {advice}" if advice else text


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

  So does what the system refuses, such as a write to a full disk; Ctrl-C ends
  in one line and exit code 130.

  Args:
    program: how it is called, for --help, such as "cadjax predict".
    main: gets the arguments that are left after the flags.
    define_flags: defines the program's flags, which --help lists.
    expected: exceptions that report a user's mistake, beside `UserError`.
    more_help: gets the command line of a call for help; returns what is shown
      beside the flags.
  """
  interrupt.unguard()
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
      _fail(one_line(error))

  def guarded(argv: Sequence[str]) -> Any:
    # Orbax and TFDS log every file that they open.
    logging.set_verbosity(logging.WARNING)
    if len(argv) > 1:
      _fail(
        f"unexpected argument {argv[1]!r}; options look like --name=value, and"
        " --help lists them"
      )
    try:
      code = main(argv)
      sys.stdout.flush()
    except (UserError, *expected) as error:
      _fail(one_line(error))
    except OSError as error:
      if error.errno is None:  # Of a library, and not of the system.
        raise
      _fail(of_system(error))
    return code

  try:
    app.run(guarded, flags_parser=parse)
  except KeyboardInterrupt:
    interrupt.stop()


def _fail(message: str) -> NoReturn:
  """Prints one line and exits with code 2."""
  print(f"error: {message}", file=sys.stderr)
  # What is left in it cannot be written, and Python would try again.
  try:
    sys.stdout.flush()
  except OSError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  sys.exit(2)
