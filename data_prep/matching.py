"""Matches image and mask files by folder role and by name."""

import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence

from data_prep.errors import UserError

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
_IMAGES = (
  "img imgs image images imagestr imagests ct ctca ccta volume volumes scan"
  " scans"
)
_MASKS = (
  "label labels labelstr labelsts mask masks seg segs segmentation"
  " segmentations annotation annotations coronary coronaries gt lumen"
)
IMAGE_WORDS = frozenset(_IMAGES.split())
MASK_WORDS = frozenset(_MASKS.split())
_NNUNET_FOLDERS = ("imagestr", "imagests")


def pairs(
  root: pathlib.Path, group: Callable[[pathlib.Path], str] = lambda path: ""
) -> dict[str, dict[str, pathlib.Path]]:
  """Returns key -> {"image": path, "mask": path} of all files under `root`.

  The key is what is left of the name without the words for its role (the
  folder's name if nothing is left), with `group(path)` and a slash in front if
  that is not empty.

  Raises:
    UserError: two files with one key and one role.
  """
  found: dict[str, dict[str, pathlib.Path]] = {}
  for path in files(root, EXTENSIONS):
    kind, key = role(path, root), file_key(path)
    if prefix := group(path):
      key = f"{prefix}/{key}"
    roles = found.setdefault(key, {})
    if kind in roles:
      raise UserError(
        f"two {kind} files for case {key}: {roles[kind]} and {path}; remove or"
        " rename one"
      )
    roles[kind] = path
  return found


def role(path: pathlib.Path, root: pathlib.Path) -> str:
  """Returns "image" or "mask", by the end of the name, then by the folders.

  Args:
    path: of a file.
    root: a folder above it; names from there upwards do not count.
  """
  folders = reversed(path.relative_to(root).parts[:-1])
  for candidates in (words(stem(path))[-1:], *map(words, folders)):
    if MASK_WORDS.intersection(candidates):
      return "mask"
    if IMAGE_WORDS.intersection(candidates):
      return "image"
  return "image"


def file_key(path: pathlib.Path, others: Sequence[str] = ()) -> str:
  """Returns what a file's name, or else its folder's, says of the case.

  Args:
    path: such as `7.img.nii.gz` or `7/img.nii.gz`, both of case "7".
    others: words to take off beside those for images and masks.
  """
  parent = path.parent.name
  if parent.lower() in _NNUNET_FOLDERS and role(path, path.parent) == "image":
    # nnU-Net's number of the channel.
    others = [*others, "0000"]
  return _strip(stem(path), others) or _strip(parent, others) or parent


def _strip(name: str, others: Sequence[str]) -> str:
  """Takes words for a role off the end of a name."""
  known = IMAGE_WORDS.union(MASK_WORDS, others)
  parts = re.split(r"([._-])", name)
  while parts and (parts[-1].lower() in known or parts[-1] in "._-"):
    parts.pop()
  return "".join(parts)


def words(name: str) -> list[str]:
  """Returns the parts of a name between dots, dashes, blanks, in lower case."""
  return [word for word in re.split(r"[._\s-]+", name.lower()) if word]


def stem(path: pathlib.Path) -> str:
  """Returns the name without the extension of an image, `.nii.gz` included."""
  for extension in EXTENSIONS:
    if path.name.lower().endswith(extension):
      return path.name[: -len(extension)]
  return path.name


def files(
  root: pathlib.Path, extensions: Sequence[str], containing: str = ""
) -> list[pathlib.Path]:
  """Returns the files below a folder, hidden ones left out, sorted."""
  found = []
  for folder, folders, names in walk(root):
    folders[:] = [f for f in folders if not f.startswith(".")]
    for name in names:
      low = name.lower()
      if (
        low.endswith(tuple(extensions))
        and containing in low
        and not name.startswith((".", "~"))
      ):
        found.append(pathlib.Path(folder, name))
  return sorted(found, key=lambda path: natural(str(path)))


def walk(
  root: pathlib.Path, onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[pathlib.Path, list[str], list[str]]]:
  """Yields folder, folders in it and files in it, as os.walk does.

  Links are followed, and each folder is entered once: a link may lead back to
  a folder above it.

  Args:
    root: where to begin.
    onerror: gets what keeps a folder from being read; nothing is done if None.
  """
  seen = set()
  for name, folders, names in os.walk(root, onerror=onerror, followlinks=True):
    real = os.path.realpath(name)
    if real in seen:
      folders.clear()
      continue
    seen.add(real)
    yield pathlib.Path(name), folders, names


def natural(text: str) -> list[tuple[int, int | str]]:
  """A sort key that puts 9 before 10."""
  parts = re.split(r"(\d+)", text)
  return [(0, int(p)) if p.isdecimal() else (1, p) for p in parts]
