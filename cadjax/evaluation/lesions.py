"""Scans whose lesions are known, as `data_prep.export` writes them."""

import collections
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cadjax.core import files
from data_prep import checksums, scct, sources
from data_prep.errors import UserError

COLUMNS = (
  *("position_mm", "line_mm", "segment", "stenosis", "plaque", "volume_mm3"),
  *("scct", "lumen_mm2", "reference_mm"),
)
LEAST_SCANS = 8


def read_scans(folder: str) -> list[sources.Case]:
  """Returns the cases of a folder of exported phantoms.

  Raises:
    UserError: too few, or lesions that are missing or malformed.
  """
  cases = sources.find_cases("manifest", folder)
  if len(cases) < LEAST_SCANS:
    raise UserError(f"{folder}: {len(cases)} scans; {LEAST_SCANS} are needed")
  for case in cases:
    read_lesions(case)
  scans = collections.Counter(case.patient_id for case in cases)
  name, most = scans.most_common(1)[0]
  if most > 1:
    raise UserError(
      f"{folder}: the patient {name} has {most} scans; they are measured by"
      " patient, so keep one of each in manifest.csv"
    )
  labels = [case.label for case in cases]
  if min(labels.count(0), labels.count(1)) < 2:
    raise UserError(
      f"{folder}: at least two normal and two CAD scans are needed, one of"
      " each for the fit and for the test"
    )
  return cases


def read_lesions(case: sources.Case) -> list[dict[str, Any]]:
  """Returns the lesions of a scan, as `data_prep.export` writes them.

  Raises:
    UserError: they are missing or malformed.
  """
  path = lesion_file(case)
  if not path.exists():
    raise UserError(
      f"{path}: no such file; the lesions of every scan must be known, as"
      " data_prep.export writes them"
    )
  document = files.read_json(path)
  try:
    lesions = document["lesions"]
    for lesion in lesions:
      if not all(name in lesion for name in COLUMNS):
        raise ValueError("a lesion without all of " + ", ".join(COLUMNS))
      line = np.array(lesion["line_mm"], float)
      if line.ndim != 2 or line.shape[1] != 3 or not np.isfinite(line).all():
        raise ValueError("line_mm is not a list of three finite numbers each")
      if not len(line):
        raise ValueError("line_mm is empty")
      if lesion["scct"] not in ("", *scct.SEGMENTS):
        raise ValueError(f"scct {lesion['scct']!r} is no segment")
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{path} is not what data_prep.export writes ({error}); run it again"
      " if the file is of an older cadjax, which wrote no line_mm or no scct"
    ) from error
  return lesions


def identify(cases: Sequence[sources.Case]) -> str:
  """Returns a SHA-256 of scans and their labels; other scans have another.

  Of what the manifest and the files of lesions say, and of the size and the
  time of each image and mask, which are too large to be read for this.
  """

  def about(path: pathlib.Path | None) -> list[Any] | None:
    found = path and path.stat()
    return found and [str(path), found.st_size, found.st_mtime_ns]

  return checksums.of_json(
    [
      [
        *(case.case_id, case.patient_id, case.label),
        *(about(case.image), about(case.mask)),
        checksums.of_file(lesion_file(case)),
      ]
      for case in cases
    ]
  )


def lesion_file(case: sources.Case) -> pathlib.Path:
  """Returns where the lesions of a scan are."""
  return case.image.with_name(f"{case.case_id}_lesions.json")
