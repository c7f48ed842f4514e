"""Damage to bytes, text, JSON, tables and paths, all drawn from one generator.

Each function takes a `numpy.random.Generator` and what it damages, and returns
the damaged thing and a few words on what was done.
"""

import contextlib
import json
import os
import pathlib
import re
import shutil
import stat
import struct
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

Rng = np.random.Generator
T = TypeVar("T")

INTEGERS = (
  *(0, 1, 2, 3, -1, 4, 7, 8, 15, 16, 64, 100, 127, 128, 255, 256, 511),
  *(1400, 4096, 32767, -32768, 65535, 2**20, 2**31 - 1, -(2**31), 2**32 - 1),
  *(2**62, 2**63 - 1, -(2**63)),
)
FLOATS = (
  *(0.0, -0.0, 1.0, -1.0, 0.001, 0.5, 49.9, 51.0, 351.5, 352.0, 1e6, 1e10),
  *(1e-45, 1e-30, 3.4e38, 1e300, float("nan"), float("inf"), float("-inf")),
)
# What stands for a number in a text.
NUMBERS = (
  *("0", "-0", "1", "-1", "2", "3", "4", "16", "100", "1400", "65536"),
  *("2147483647", "2147483648", "-2147483648", "99999999999999999999"),
  *("1e308", "1e309", "-1e309", "1e-320", "nan", "NaN", "inf", "-Infinity"),
  *("0.5", "51", "", "abc", "0x10", "1_0", "1 2", "1,2", "1/0", "٣", "%d"),
)
# Not "/" alone: as a folder of slices it is all of this machine.
WORDS = (
  *("", " ", "abc", "true", "None", "null", "-", "--", "=", ":", ",", ";"),
  *(
    '"',
    "'",
    "\\",
    "a/b",
    ".",
    "..",
    "../..",
    "*",
    "?",
    "[",
    "]",
    "{}",
    "$HOME",
  ),
  *("%s%n%d%x", "%99999999d", "{0}", "${x}", "$(x)", "\0", "\x1b[31m", "\x7f"),
  *("\r", "\n", "\n\n", "\t", "\ufeff", "é", "漢", "\u202e", "a" * 70_000),
  *("/dev/zero", "/dev/stdin", "/etc/passwd", "a" * 300, "=1+1", "LIST"),
)
# What a file may be called; each is put before the name's own ending.
NAMES = (
  *(b"a b", b"$x", b"^", b"$_{x}^2$", b"%s%n%d", b"#", b"a?b", b"a*b", b"[ab]"),
  *(b"{a}", b"~", b"-rf", b"--help", b"a;b", b"a&b", b"a|b", b"<b>", b"a'b"),
  *(b'a"b', b"a\\b", b"a\nb", b"a\tb", b"a\rb", b"\x1b[31ma", b"\x07", b"\x7f"),
  *(b"\xff\xfe", b"a\xe9", b"\xc3\xa9", b"\xe2\x80\xae", b"\xf0\x9f\xab\x80"),
  *(b"a" * 200, b"a" * 240, b"a:b", b"a,b", b"a=b", b"a.nii", b"..a", b" "),
)
JSON_VALUES: tuple[Any, ...] = (
  *(None, True, False, 0, 1, -1, 2, 3, 7, 0.5, 1e308, float("nan"), 2**31),
  *(float("inf"), 2**63, 10**30, "", " ", "abc", "0", "nan", "a" * 300, "\0"),
  *("../..", "os.system", "fuzz.planted.Planted", [], {}, [[]], [None], [0]),
  *([1, 2, 3], [1e9] * 3, {"": None}, {"a": {"b": []}}, ["a"] * 100),
)


def pick(rng: Rng, items: Sequence[T]) -> T:
  """Draws one item, whatever its type."""
  return items[int(rng.integers(len(items)))]


def place(rng: Rng, size: int) -> int:
  """Draws a position in 0 to `size`, often near one of the ends."""
  if size < 1:
    return 0
  near = min(int(2 ** rng.uniform(0, np.log2(size + 1))) - 1, size)
  return (int(rng.integers(size + 1)), near, size - near)[rng.integers(3)]


def block(rng: Rng, size: int) -> tuple[int, int]:
  """Draws a range [start, stop) of 1 to 4096 places within `size`."""
  start = min(place(rng, size), max(size - 1, 0))
  return start, min(start + int(2 ** rng.uniform(0, 12)), size)


# Bytes.


def _flip(rng, data):
  found = bytearray(data)
  count = int(rng.integers(1, 9))
  places = [min(place(rng, len(data)), len(data) - 1) for _ in range(count)]
  for at in places:
    found[at] ^= 1 << int(rng.integers(8))
  return bytes(found), f"a bit flipped at each of {places}"


def _write(rng, data):
  found = bytearray(data)
  start, stop = block(rng, len(data))
  stop = min(stop, start + 16)
  kind = int(rng.integers(3))
  if kind < 2:
    found[start:stop] = bytes([(0, 255)[kind]]) * (stop - start)
  else:
    found[start:stop] = rng.bytes(stop - start)
  return bytes(found), f"bytes {start} to {stop} overwritten"


def _number(rng, data):
  form = str(rng.choice([*"hHiIqQfd"]))
  order = str(rng.choice([*"<>"]))
  found, value = packed(rng, order + form)
  at = place(rng, len(data)) // len(found) * len(found)
  changed = data[:at] + found + data[at + len(found) :]
  return changed[: len(data)], f"{value} as {order}{form} at {at}"


def _truncate(rng, data):
  at = min(place(rng, len(data)), max(len(data) - 1, 0))
  return data[:at], f"cut to {at} of {len(data)} bytes"


def _append(rng, data):
  count = int(2 ** rng.uniform(0, 12))
  more = (bytes(count), rng.bytes(count), data)[int(rng.integers(3))]
  return data + more, f"{len(more)} bytes appended"


def _delete(rng, data):
  start, stop = block(rng, len(data))
  return data[:start] + data[stop:], f"bytes {start} to {stop} deleted"


def _double(rng, data):
  start, stop = block(rng, len(data))
  return data[:stop] + data[start:], f"bytes {start} to {stop} doubled"


def _zero(rng, data):
  start = place(rng, len(data))
  stop = min(start + 4096 * int(rng.integers(1, 17)), len(data))
  zeros = bytes(stop - start)
  return data[:start] + zeros + data[stop:], f"{start} to {stop} became zeros"


def _swap(rng, data):
  a, b = sorted(block(rng, len(data)) for _ in range(2))
  if a[1] > b[0]:
    return _delete(rng, data)
  parts = (data[: a[0]], data[slice(*b)], data[a[1] : b[0]], data[slice(*a)])
  return b"".join(parts) + data[b[1] :], f"blocks {a} and {b} swapped"


def _other(rng, data):
  kinds = (b"", b"\n", b"\0" * 512, b"\x1f\x8b", b"{}", b"[]", b"PK\3\4")
  kinds += (b"NRRD0004\n", b"DICM", bytes(128) + b"DICM", rng.bytes(1000))
  found = pick(rng, kinds)
  return found, f"the whole replaced by {found[:16]!r}..."


TRUNCATE = _truncate
_BYTE_OPS = (
  *(_flip, _flip, _flip, _write, _number, _truncate, _truncate, _append),
  *(_delete, _double, _zero, _swap, _other),
)


def damage_bytes(rng: Rng, data: bytes) -> tuple[bytes, str]:
  """Flips, overwrites, cuts, appends, deletes, doubles, swaps or replaces."""
  operation = pick(rng, _BYTE_OPS if data else (_append, _other))
  return operation(rng, data)


def packed(rng: Rng, form: str) -> tuple[bytes, float | int]:
  """Draws an extreme value that fits a format of `struct`."""
  values = FLOATS if form[-1] in "fd" else INTEGERS
  while True:
    value = pick(rng, values)
    with contextlib.suppress(struct.error, OverflowError):
      return struct.pack(form, value), value


# Text. Bytes are read as latin-1, so that any may be there.


def _replace_number(rng, text):
  found = list(re.finditer(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", text))
  if not found:
    return _insert(rng, text)
  match, new = pick(rng, found), pick(rng, NUMBERS)
  changed = text[: match.start()] + _latin(new) + text[match.end() :]
  return changed, f"number {match[0]} became {new!r}"


def _replace_word(rng, text):
  found = list(re.finditer(r"[\w./-]+", text))
  if not found:
    return _insert(rng, text)
  match, new = pick(rng, found), pick(rng, WORDS)
  changed = text[: match.start()] + _latin(new) + text[match.end() :]
  return changed, f"{match[0]!r} became {new[:40]!r}"


def _insert(rng, text):
  at, new = place(rng, len(text)), pick(rng, WORDS)
  return text[:at] + _latin(new) + text[at:], f"{new[:40]!r} put at {at}"


def _lines(rng, text):
  lines = text.splitlines(keepends=True)
  if not lines:
    return _insert(rng, text)
  a, b = (int(x) for x in rng.integers(len(lines), size=2))
  what = int(rng.integers(4))
  if what == 0:
    del lines[a]
    return "".join(lines), f"line {a + 1} deleted"
  if what == 1:
    lines.insert(b, lines[a])
    return "".join(lines), f"line {a + 1} doubled before line {b + 1}"
  if what == 2:
    lines[a], lines[b] = lines[b], lines[a]
    return "".join(lines), f"lines {a + 1} and {b + 1} swapped"
  return "".join(lines[: a + 1]), f"ends after line {a + 1}"


def _newlines(rng, text):
  new = pick(rng, ("\r\n", "\r", "\n\n", " \n", "\0\n", ""))
  return text.replace("\n", new), f"newlines became {new!r}"


def _separators(rng, text):
  found = [i for i, letter in enumerate(text) if letter in ',;:=\t"{}[]']
  if not found:
    return _insert(rng, text)
  at, new = pick(rng, found), pick(rng, ("", ",", ";", ":", "=", '"', "\t"))
  changed = text[:at] + new + text[at + 1 :]
  return changed, f"{text[at]!r} at {at} became {new!r}"


def _latin(text: str) -> str:
  return text.encode("utf-8", "surrogateescape").decode("latin-1")


_TEXT_OPS = (
  *(_replace_number, _replace_number, _replace_word, _replace_word, _insert),
  *(_lines, _lines, _newlines, _separators),
)


def damage_text(rng: Rng, data: bytes) -> tuple[bytes, str]:
  """Replaces, inserts, deletes and moves numbers, words, lines and marks."""
  if rng.random() < 0.03:
    code = pick(rng, ("utf-16", "utf-8-sig", "utf-32"))
    return data.decode("latin-1").encode(code), f"saved as {code}"
  changed, what = pick(rng, _TEXT_OPS)(rng, data.decode("latin-1"))
  return changed.encode("latin-1"), what


def damage_json(rng: Rng, data: bytes) -> tuple[bytes, str]:
  """Replaces, deletes, renames or adds an entry; or damages the text."""
  if rng.random() < 0.3:
    return damage_text(rng, data)
  document = json.loads(data)
  places = list(_entries(document, ()))
  path = pick(rng, places) if places else ()
  if not path or rng.random() < 0.03:
    new = pick(rng, JSON_VALUES)
    return json.dumps(new).encode(), f"the document became {new!r:.60}"
  parent = document
  for key in path[:-1]:
    parent = parent[key]
  key, name = path[-1], ".".join(map(str, path))
  what = int(rng.integers(8))
  if what == 0:
    del parent[key]
    words = f"{name} deleted"
  elif what == 1 and isinstance(parent, dict):
    parent[pick(rng, ("", "abc", "__class__"))] = parent.pop(key)
    words = f"{name} renamed"
  elif what == 2:
    new = pick(rng, JSON_VALUES)
    if isinstance(parent, dict):
      parent[str(pick(rng, WORDS))[:200]] = new
    else:
      parent.append(new)
    words = f"{new!r:.60} added beside {name}"
  else:
    # Of its own type half of the time: what is of another is refused sooner.
    same = [x for x in JSON_VALUES if type(x) is type(parent[key])]
    parent[key] = pick(
      rng, same if same and rng.random() < 0.5 else JSON_VALUES
    )
    words = f"{name} became {parent[key]!r:.60}"
  return json.dumps(document, indent=2).encode(), words


def _entries(value, path):
  if path:
    yield path
  keys = (
    value.keys()
    if isinstance(value, dict)
    else range(len(value) if isinstance(value, list) else 0)
  )
  for key in keys:
    yield from _entries(value[key], (*path, key))


def damage_csv(rng: Rng, data: bytes) -> tuple[bytes, str]:
  """Replaces a cell or a column; or damages the text."""
  if rng.random() < 0.3:
    return damage_text(rng, data)
  rows = [line.split(b",") for line in data.splitlines()]
  row = int(rng.integers(len(rows)))
  column = int(rng.integers(len(rows[row])))
  if rng.random() < 0.15:
    rows = [x[:column] + x[column + 1 :] for x in rows]
    words = f"column {column + 1} deleted"
  else:
    new = str(pick(rng, (*WORDS, *NUMBERS, "a" * 140_000, '"a\nb"')))
    rows[row][column] = new.encode()
    words = f"row {row + 1}, column {column + 1} became {new[:40]!r}"
  return b"\n".join(b",".join(x) for x in rows) + b"\n", words


# Paths.


def _fifo(path):
  os.mkfifo(path)


def _socket(path):
  # Binding one takes a path of at most 107 bytes.
  os.mknod(path, stat.S_IFSOCK | 0o600)


def _full_folder(path):
  path.mkdir()
  (path / "a").write_text("a")


KINDS: dict[str, Callable[[pathlib.Path], Any]] = {
  "nothing": lambda path: None,
  "an empty file": lambda path: path.write_bytes(b""),
  "an empty folder": lambda path: path.mkdir(),
  "a folder": _full_folder,
  "a FIFO": _fifo,
  "a socket": _socket,
  "a dangling link": lambda path: path.symlink_to("nowhere"),
  "a link to itself": lambda path: path.symlink_to(path.name),
  "a link to its folder": lambda path: path.symlink_to("."),
  "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
}

# Those that nobody can tell from what was never there.
GONE = ("nothing", "an empty folder", "a folder", "a link to its folder")


def replace_path(rng: Rng, path: pathlib.Path) -> str:
  """Makes of a file or folder nothing, or something of another kind."""
  kind = str(pick(rng, list(KINDS)))
  remove(path)
  KINDS[kind](path)
  return kind


def odd_name(rng: Rng, name: str) -> str:
  """Draws a name that few expect, with the ending of `name`."""
  at = name.find(".")
  ending = name[at:] if at > 0 else ""
  # Systems take names of at most 255 bytes.
  start = bytes(pick(rng, NAMES))[: 255 - len(os.fsencode(ending))]
  return os.fsdecode(start) + ending


def remove(path: pathlib.Path) -> None:
  """Removes a file, a link or a whole folder."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path)
  else:
    path.unlink()
