"""Trainings that answer together: the mean of their log odds.

One training of several may fail, and it takes a mean over trainings down with
it. An ensemble of them hardly notices, at the cost of training and running all
of its members (Lakshminarayanan et al., NeurIPS 2017, arXiv 1612.01474, who
average probabilities; of log odds, an extreme member counts for more).
"""

from collections.abc import Sequence

import numpy as np
import scipy.special

from cadjax.core.files import Row
from cadjax.experiment.compare import CALL, Key, Line
from cadjax.metrics import recalibration
from data_prep.errors import UserError


def ensemble(line: Line, size: int) -> Line:
  """Returns the line of ensembles of `size` seeds of a fold each.

  Seeds of a fold are taken in their order; those left over, fewer than `size`,
  are left out. An ensemble has the key of its first member and the training
  patients of that one, which are those of all where seeds share a fold. It
  counts as failed if all of its members did: only then nothing was learned.

  Args:
    line: of calls.
    size: members of an ensemble, 2 or more.

  Raises:
    UserError: the rows are not calls, or members were tested on different
      patients.
  """
  if not line.is_call:
    raise UserError("only calls, with a probability each, make an ensemble")
  by_fold: dict[int | None, list[Key]] = {}
  for fold, seed in line.rows:
    by_fold.setdefault(fold, []).append((fold, seed))
  groups = [
    keys[start : start + size]
    for keys in (sorted(some, key=lambda k: k[1]) for some in by_fold.values())
    for start in range(0, len(keys) - size + 1, size)
  ]
  return Line(
    rows={keys[0]: _together([line.rows[k] for k in keys]) for keys in groups},
    trained={keys[0]: line.trained.get(keys[0], 0) for keys in groups},
    failed=frozenset(
      keys[0] for keys in groups if line.failed.issuperset(keys)
    ),
  )


def _together(members: Sequence[Sequence[Row]]) -> list[Row]:
  """Returns the calls of one ensemble.

  Its threshold is the mean of its members' thresholds, on the scale of the log
  odds, as its probabilities are the mean of theirs.
  """
  first, *others = (
    sorted(rows, key=lambda row: str(row["patient_id"])) for rows in members
  )
  same = ("patient_id", "label")
  for rows in others:
    if [[row[k] for k in same] for row in rows] != [
      [row[k] for k in same] for row in first
    ]:
      raise UserError("members of an ensemble were tested on other patients")
  mean = {
    name: scipy.special.expit(
      np.mean(
        [
          recalibration.logit(np.array([row[name] for row in rows]))
          for rows in (first, *others)
        ],
        axis=0,
      )
    )
    for name in CALL
    if name != "label"
  }
  return [
    {
      "patient_id": row["patient_id"],
      "label": row["label"],
      **{name: float(values[k]) for name, values in mean.items()},
    }
    for k, row in enumerate(first)
  ]
