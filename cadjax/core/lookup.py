"""Names in configs to the objects they stand for, with help for typos."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
  """A config that cannot be used; its one-line message says why."""


class UnknownName(ConfigError):
  """A name that is none of those known; the message lists them."""


def look_up(table: Mapping[str, T], name: str, what: str) -> T:
  """Returns `table[name]`.

  Args:
    table: the objects by name.
    name: the name asked for.
    what: what the table holds, for the message, such as "loss".

  Returns:
    The object of that name.

  Raises:
    UnknownName: with the known names and the nearest one.
  """
  check_known([name], table, what)
  return table[name]


def check_known(names: Iterable[str], known: Iterable[str], what: str) -> None:
  """Raises `UnknownName` unless every one of `names` is in `known`."""
  known = [str(each) for each in known]
  for name in names:
    if name in known:
      continue
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UnknownName(
      f"unknown {what} {name!r}; {hint}known: {', '.join(sorted(known))}"
    )
