"""Which scans a command line names, and where the files of each go."""

import dataclasses
import glob
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
from absl import flags
from tqdm import tqdm

from cadjax.core import files
from cadjax.data import scans
from data_prep import errors, manifests
from data_prep.errors import UserError

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Job:
  """One scan to be scored: its name, where it is, where its files go."""

  case: str
  path: pathlib.Path
  folder: pathlib.Path
  heart_mask: str | None = None


def _expand(patterns: Sequence[str]) -> list[pathlib.Path]:
  """Returns the paths that the inputs name, each once, in order."""
  paths = []
  for pattern in patterns:
    if os.path.lexists(pattern) or not glob.has_magic(pattern):
      paths.append(pattern)
      continue
    found = _once(sorted(glob.glob(pattern, recursive=True)))
    if not found:
      raise UserError(f"--input={pattern} matches no file or folder")
    images, masks = manifests.split_masks([pathlib.Path(x) for x in found])
    if masks:
      tqdm.write(
        f"--input={pattern}: left out {len(masks)} named as masks of other"
        f" files, such as {masks[0]}",
        file=sys.stderr,
      )
    paths += map(str, images)
  return [pathlib.Path(path) for path in dict.fromkeys(paths)]


def _once(paths: Sequence[str]) -> list[str]:
  """Leaves out what `**` finds again through a link to a folder above."""
  places = {}
  for path in paths:
    folder, name = os.path.split(path)
    places.setdefault((os.path.realpath(folder), name), path)
  return list(places.values())


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
    plain = pathlib.Path(name).name == name and name.isprintable()
    if not plain or name.startswith("."):
      raise UserError(f"--case={name} cannot be the name of a folder")
  names = list(cases) or [scans.case_name(path) for path in paths]
  if not cases:
    parents = [scans.folder_name(path) for path in paths]
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


def define_flags(*, required: bool = True, heart_mask: bool = True) -> None:
  """Defines the flags that name scans and where their files go.

  Args:
    required: whether --input and --out must be given.
    heart_mask: whether there is --heart_mask.
  """
  flags.DEFINE_multi_string(
    "input",
    None,
    "A scan, or a folder of DICOM slices; repeated or with wildcards: many.",
    required=required,
  )
  flags.DEFINE_string("out", None, "Folder for the results.", required=required)
  flags.DEFINE_multi_string(
    "case", [], "Name in the results; by default that of the input."
  )
  if heart_mask:
    flags.DEFINE_multi_string(
      "heart_mask",
      [],
      "Mask of the heart, one for each scan; else it is found.",
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


def announce(doing: str, jobs: Sequence[Job], notice: str) -> None:
  """Prints what a program is about to do, on what device."""
  print(
    f"{notice}\n{doing} {len(jobs)} scan{'s' if len(jobs) > 1 else ''} on"
    f" {jax.devices()[0].device_kind}; the first takes longer, while the model"
    " is compiled",
    flush=True,
  )


def run_jobs(
  jobs: Sequence[Job],
  kind: files.ResultFolder,
  do: Callable[[Job, scans.Scan], Result],
  write: Callable[..., Any],
  describe: Callable[[Job, Result], str],
  *,
  series: str | None = None,
  overwrite: bool = False,
) -> int:
  """Reads scans one after the other and writes what is made of each.

  A scan that fails does not stop those after it.

  Args:
    jobs: the scans.
    kind: of the folders that are written.
    do: (job, its scan) to a result.
    write: gets the result and its folder, and overwrite by name.
    describe: (job, result) to the text that is printed.
    series: which DICOM series, by UID or number.
    overwrite: replace results that are there.

  Returns:
    how many failed; each is reported in one line on stderr.
  """

  def one(job: Job) -> str:
    # Before the work: nothing may be written there after it either.
    kind.check_free(job.folder, overwrite=overwrite)
    scan = scans.read_scan(
      job.path, case=job.case, series=series, heart_mask=job.heart_mask
    )
    result = do(job, scan)
    write(result, job.folder, overwrite=overwrite)
    return describe(job, result)

  failed = 0
  bar = tqdm(jobs, unit="scan", disable=None if len(jobs) > 1 else True)
  for job in bar:
    bar.set_postfix_str(job.case)
    try:
      tqdm.write(one(job))
    except UserError as error:
      failed += 1
      tqdm.write(f"error: {errors.one_line(error)}", file=sys.stderr)
    except Exception as error:
      # A defect of ours; the scans that follow must not pay for it.
      if len(jobs) == 1:
        raise
      failed += 1
      tqdm.write(
        f"error: {job.path}: {type(error).__name__}:"
        f" {errors.one_line(error)}; give it alone to see where",
        file=sys.stderr,
      )
  return failed
