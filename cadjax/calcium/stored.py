"""The score in a calcium.json, for what reads it beside another scan."""

import dataclasses
import math
import pathlib
from typing import Any

from cadjax.core import files
from data_prep.errors import UserError

SCHEMA = "cadjax.calcium/1"
_KIND = "cadjax.calcium/"


@dataclasses.dataclass(frozen=True)
class StoredScore:
  """The Agatston score of another scan of the same patient.

  Attributes:
    agatston: the score of all that counted.
    case: the name of that scan.
    created: when it was scored, UTC, ISO 8601.
    masked: whether a mask said where calcium counts; without one, that of
      valves and of the aorta may be in it.
  """

  agatston: float
  case: str
  created: str
  masked: bool

  @property
  def words(self) -> str:
    """Where the score comes from, in a sentence."""
    sentence = (
      f"Agatston score {self.agatston:.0f} of {self.case}, {self.created[:10]}"
    )
    if self.masked:
      return f"{sentence}, counted inside a mask."
    return (
      f"{sentence}, counted in a box around the heart: calcium of valves and"
      " of the aorta may be in it."
    )


def read(path: str | pathlib.Path) -> StoredScore:
  """Reads a calcium.json of `cadjax calcium`.

  Raises:
    UserError: there is no such file, or it is something else.
  """
  path = pathlib.Path(path)
  try:
    document = files.read_json(path)
  except OSError as error:
    raise UserError(
      f"{path}: cannot be read ({error.strerror or error})"
    ) from error
  try:
    if not document["schema"].startswith(_KIND):
      raise ValueError
    return StoredScore(
      agatston=_score(document["total"]["agatston"]),
      case=str(document["case"]),
      created=str(document["created"]),
      masked=document["search"]["box"] is None,
    )
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{path}: is not a calcium.json of `cadjax calcium`"
    ) from error


def _score(value: Any) -> float:
  # A bool is an int, and no score.
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    raise TypeError(value)
  if not (math.isfinite(value) and value >= 0):
    raise ValueError(value)
  return float(value)
