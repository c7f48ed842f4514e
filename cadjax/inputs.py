"""Which scans a command line names, and where the files of each go."""

import dataclasses
import glob
import pathlib
from collections.abc import Iterable, Sequence

from absl import flags

from data_prep.errors import UserError

_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")


@dataclasses.dataclass(frozen=True)
class Job:
  """One scan to be scored: its name, where it is, where its files go."""

  case: str
  path: pathlib.Path
  folder: pathlib.Path
  heart_mask: str | None = None


def case_name(path: pathlib.Path) -> str:
  """Returns the last part of a path without the suffix of a scan's format."""
  name = path.resolve().name
  for suffix in _SUFFIXES:
    if name.lower().endswith(suffix):
      return name[: -len(suffix)] or name
  return name


def _expand(patterns: Sequence[str]) -> list[pathlib.Path]:
  """Returns the paths that the inputs name, each once, in order."""
  paths = []
  for pattern in patterns:
    if pathlib.Path(pattern).exists() or not glob.has_magic(pattern):
      paths.append(pattern)
      continue
    found = sorted(glob.glob(pattern, recursive=True))
    if not found:
      raise UserError(f"--input={pattern} matches no file or folder")
    paths += found
  return [pathlib.Path(path) for path in dict.fromkeys(paths)]


def make_jobs(
  inputs: Sequence[str],
  out: str | pathlib.Path,
  *,
  cases: Sequence[str] = (),
  heart_masks: Sequence[str] = (),
) -> list[Job]:
  """Names every scan and says where its files go.

  Scans of the same name get the name of their folder before it; what is
  still the same is numbered.

  Raises:
    UserError: wildcards that match nothing, or `cases` or `heart_masks` that
      are not as many as the scans.
  """
  paths = _expand(inputs)
  for flag, given in (("case", cases), ("heart_mask", heart_masks)):
    if given and len(given) != len(paths):
      raise UserError(
        f"{len(given)} of --{flag} for {len(paths)} scans; give one for each,"
        " in the same order"
      )
  for name in cases:
    if pathlib.Path(name).name != name or name.startswith("."):
      raise UserError(f"--case={name} cannot be the name of a folder")
  names = list(cases) or [case_name(path) for path in paths]
  if not cases:
    parents = [path.resolve().parent.name for path in paths]
    names = _unique(
      f"{parent}_{name}" if names.count(name) > 1 else name
      for name, parent in zip(names, parents, strict=True)
    )
  elif len(set(names)) < len(names):
    raise UserError("two of --case are the same")
  # Not by the number of scans found: scripts can rely on where files are.
  alone = len(inputs) == 1 and paths == [pathlib.Path(inputs[0])]
  out = pathlib.Path(out)
  return [
    Job(name, path, out if alone else out / name, mask)
    for name, path, mask in zip(
      names, paths, list(heart_masks) or [None] * len(paths), strict=True
    )
  ]


def define_flags() -> None:
  """Defines the flags that name scans and where their files go."""
  flags.DEFINE_multi_string(
    "input",
    None,
    "A scan, or a folder of DICOM slices; repeated or with wildcards: many.",
    required=True,
  )
  flags.DEFINE_string("out", None, "Folder for the results.", required=True)
  flags.DEFINE_multi_string(
    "case", [], "Name in the results; by default that of the input."
  )
  flags.DEFINE_multi_string(
    "heart_mask", [], "Mask of the heart, one for each scan; else it is found."
  )
  flags.DEFINE_string(
    "series", None, "DICOM series by UID or number; else the largest."
  )
  flags.DEFINE_bool("overwrite", False, "Replace results that are there.")


def _unique(names: Iterable[str]) -> list[str]:
  names = list(names)
  result: list[str] = []
  for name in names:
    number, unique = 1, name
    while unique in result or (number > 1 and unique in names):
      number += 1
      unique = f"{name}-{number}"
    result.append(unique)
  return result
