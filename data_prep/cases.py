"""One scan of one patient, before anything is read."""

import dataclasses
import os
import pathlib
from typing import Any

from data_prep.errors import UserError, one_line
from data_prep.splits import SPLITS
from data_prep.tissues import Tissue

AORTA, LUMEN = Tissue.AORTA, Tissue.LUMEN

SPLIT_WORDS = {
  "train": "train",
  "training": "train",
  "val": "validation",
  "valid": "validation",
  "validation": "validation",
  "dev": "validation",
  "test": "test",
  "testing": "test",
}
_NORMAL = "0 normal healthy no none false non-diseased"
_CAD = "1 cad diseased disease abnormal yes true pathological"
LABEL_WORDS = {
  **dict.fromkeys(_NORMAL.split(), 0),
  **dict.fromkeys(_CAD.split(), 1),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """One scan of one patient, not yet read.

  Attributes:
    case_id: unique in the data set.
    patient_id: shared by all scans of a patient.
    image: file, or folder of DICOM slices; None for a phantom, and for a mask
      that has lost its image.
    label: 0 normal, 1 CAD, None unknown.
    mask: file of class labels, or None.
    aorta_mask: second file, which brings the aorta, or None.
    split: "train", "validation", "test" where the source says, or None.
    extra: "mask_classes", mask label -> index in `CLASS_NAMES`; "known",
      indices that the source annotates; "notes", what the user has to know of
      the source, if anything; "seed" of a phantom; "voxels", uint8 [D, H, W],
      of a source that keeps many volumes in one file.
  """

  case_id: str
  patient_id: str
  image: pathlib.Path | None
  label: int | None = None
  mask: pathlib.Path | None = None
  aorta_mask: pathlib.Path | None = None
  split: str | None = None
  extra: dict[str, Any] = dataclasses.field(default_factory=dict)


def problems(case: Case) -> list[str]:
  """Returns what is missing of a case's files, one sentence each."""
  found = []
  if case.image is None and "seed" not in case.extra:
    found.append(f"{case.mask}: no image goes with this mask")
  for path in (case.image, case.mask, case.aorta_mask):
    # Not by pathlib, which raises for some names.
    if path is not None and not os.path.exists(path):
      found.append(f"{path}: no such file")
  for name in (case.case_id, case.patient_id):
    if not name.isprintable():
      found.append(
        f"{case.image or case.mask}: {name!r} holds characters that cannot be"
        " shown; rename the case"
      )
  return list(dict.fromkeys(map(one_line, found)))


def parse_label(text: str, where: object) -> int | None:
  """Returns 0 (normal), 1 (CAD) or None (empty) for a label in words.

  Args:
    text: "0", "normal", "CAD", "Diseased", ...
    where: file and row, for the message.

  Raises:
    UserError: another word.
  """
  word = text.strip().lower()
  if not word:
    return None
  if word not in LABEL_WORDS:
    raise UserError(
      f"{where}: unknown label {text!r}; write 0 or normal, 1 or cad, or leave"
      " it empty"
    )
  return LABEL_WORDS[word]


def parse_split(text: str, where: object) -> str:
  """Returns "train", "validation" or "test" for a word such as "Val".

  Args:
    text: the word.
    where: file and row, for the message.

  Raises:
    UserError: another word.
  """
  if text.lower() not in SPLIT_WORDS:
    raise UserError(
      f"{where}: unknown split {text!r}; write {', '.join(SPLITS)}"
    )
  return SPLIT_WORDS[text.lower()]
