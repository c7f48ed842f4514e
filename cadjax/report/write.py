"""Writes any result of a scan."""

import os
from typing import Any

from cadjax.calcium.scan import CalciumScan
from cadjax.classification.scan import ClassifiedScan
from cadjax.explanation.scan import ExplainedScan
from cadjax.link.scan import LinkedScan
from cadjax.report.calcified import write_calcified
from cadjax.report.classified import write_classified
from cadjax.report.explained import write_explained
from cadjax.report.linked import write_linked
from cadjax.report.segmented import write_segmented
from cadjax.segmentation.scan import SegmentedScan

WRITERS = {
  ClassifiedScan: write_classified,
  SegmentedScan: write_segmented,
  ExplainedScan: write_explained,
  LinkedScan: write_linked,
  CalciumScan: write_calcified,
}


def write(
  result: ClassifiedScan
  | SegmentedScan
  | ExplainedScan
  | LinkedScan
  | CalciumScan,
  folder: str | os.PathLike,
  *,
  overwrite: bool = False,
) -> dict[str, Any]:
  """Writes all the files of a result, whole or not at all.

  A classified scan becomes result.json, case.html, a picture and the model's
  input; a segmented one segments.nii.gz on the scanner's grid, a picture and
  segments.json; an explained one a NIfTI map on the scanner's grid for each
  layer, a sheet of pictures and explain.json; a linked one report.html with
  masks and maps; the calcium of a scan calcium.json, the lesions' mask and a
  picture.

  Args:
    result: of `classify_scan`, `segment_scan`, `explain_scan`, `link_scan` or
      `score_calcium`.
    folder: is made; refused if it holds anything already.
    overwrite: replace an earlier result there.

  Returns:
    the contents of the JSON file; "files" names all files.

  Raises:
    UserError: the folder is in the way or cannot be written.
    TypeError: `result` is something else.
  """
  if type(result) not in WRITERS:
    raise TypeError(f"not a result of a scan: {type(result).__name__}")
  return WRITERS[type(result)](result, folder, overwrite=overwrite)
