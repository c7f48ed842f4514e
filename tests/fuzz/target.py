"""What is fuzzed: an honest example, how it is read, how it is damaged."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from fuzz import mutations
from fuzz.mutations import Rng

NOTHING: frozenset[str] = frozenset()


class Refused(Exception):
  """A program reported a mistake: the message is what it wrote on stderr."""


@dataclasses.dataclass(frozen=True)
class Damage:
  """What was done to a copy of the example.

  Attributes:
    what: in words.
    entry: what is to be read now, relative to the folder of the case.
    guarded: the parts of the content that must not change without a word:
      those that a checksum or a length covers.
  """

  what: str
  entry: str
  guarded: frozenset[str] = NOTHING


@dataclasses.dataclass(frozen=True)
class Found:
  """What a reader found.

  Attributes:
    parts: name of a part of the content -> its digest.
    words: what the user is told.
  """

  parts: dict[str, str]
  words: tuple[str, ...] = ()


class Target:
  """One format.

  Attributes:
    name: in the table and of --format.
    weight: how many cases it gets beside the others.
    parts: the names of all parts of `Found`.
  """

  name: str
  weight: float = 1.0
  parts: tuple[str, ...] = ()

  def make(self, folder: pathlib.Path) -> str:
    """Writes the honest example; returns its entry, relative to `folder`."""
    raise NotImplementedError

  def read(self, folder: pathlib.Path, entry: str) -> Found:
    """Reads an example as the programs do.

    Raises:
      UserError: or another error that the programs report in one line.
      Refused: a program reported it already.
    """
    raise NotImplementedError

  def damage(self, rng: Rng, folder: pathlib.Path, entry: str) -> Damage:
    """Damages a copy of the honest example."""
    raise NotImplementedError

  @property
  def all(self) -> frozenset[str]:
    """Every part of the content."""
    return frozenset(self.parts)


def digest(*values: Any) -> str:
  """Returns a digest of arrays bit for bit, and of the `repr` of the rest."""
  found = hashlib.sha256()
  for value in values:
    if isinstance(value, (np.ndarray, np.generic)):
      value = np.asarray(value)
      found.update(f"{value.dtype} {value.shape}".encode())
      found.update(np.ascontiguousarray(value).tobytes())
    else:
      found.update(repr(value).encode("utf-8", "surrogateescape"))
  return found.hexdigest()[:16]


def rename(rng: Rng, folder: pathlib.Path, entry: str) -> Damage:
  """Gives the example a name that few expect; its content stays."""
  name = mutations.odd_name(rng, pathlib.Path(entry).name)
  (folder / entry).rename(folder / name)
  return Damage(f"renamed to {name!r:.80}", name)


def files_below(folder: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files below a folder, in an order that a seed can rely on.

  By folder and size before name: a checkpoint names its files at random.
  """
  found = [path for path in folder.rglob("*") if path.is_file()]
  return sorted(found, key=lambda x: (x.parent, x.stat().st_size, x.name))


def said(words: Iterable[str]) -> tuple[str, ...]:
  """Returns the words that are not empty, each once."""
  return tuple(dict.fromkeys(word for word in words if word.strip()))
