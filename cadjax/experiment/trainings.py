"""Which trainings failed: their networks learned nothing that validation sees.

Such a network is not slightly worse than the others: it is at chance, and one
of five shifts their mean by more than the differences that most plans look for.
So failed trainings are counted, and figures are given with and without them.
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import scipy.stats

from cadjax.core import files
from cadjax.core.files import Row

RULE = (
  "A training failed if the validation AUC of the checkpoint that it kept is"
  " one that a network without any knowledge reaches: not above the 95th"
  " percentile of the largest of as many such AUCs as there were epochs."
)


def least_auc(positives: int, negatives: int, epochs: int) -> float:
  """Returns the AUC above which a training has learned something.

  Without knowledge an AUC is the statistic of Mann and Whitney (Ann. Math.
  Stat. 18 (1947) 50-60) over the number of pairs, about normal with mean 0.5
  and variance (n1 + n0 + 1) / (12 n1 n0). As the best of the epochs is kept,
  each is tested at 5 % over their number (Bonferroni), so that of 100
  trainings that learned nothing 95 or more are told.

  Args:
    positives: validation patients with CAD.
    negatives: those without.
    epochs: that were validated.
  """
  spread = (positives + negatives + 1) / (12 * positives * negatives)
  z = scipy.stats.norm.ppf(1 - 0.05 / epochs)
  return 0.5 + float(z) * math.sqrt(spread)


def outcome(
  workdir: pathlib.Path, validation: Sequence[Row]
) -> dict[str, Any] | None:
  """Returns whether the training in a workdir failed.

  Args:
    workdir: of a finished training.
    validation: rows of its validation cases, with patient_id and label.

  Returns:
    failed; roc_auc, of the checkpoint that was kept, and least_auc. None of a
    segmenter, of a training that has not ended, and where one class is
    missing in validation.
  """
  if not (workdir / "finished.json").exists():
    return None
  kept = files.read_json(workdir / "finished.json").get("best_step")
  rows = files.read_rows(workdir / "metrics.jsonl", ("step",))
  aucs = {
    row["step"]: row["validation/roc_auc"]
    for row in rows
    if row.get("validation/roc_auc") is not None
  }
  labels = {str(row["patient_id"]): int(row["label"]) for row in validation}
  positives = sum(labels.values())
  negatives = len(labels) - positives
  if not aucs or not positives or not negatives:
    return None
  least = least_auc(positives, negatives, len(aucs))
  auc = aucs.get(kept, math.nan)
  # NaN, of an AUC that could not be computed, is not above it either.
  return {"failed": not auc > least, "roc_auc": auc, "least_auc": least}
