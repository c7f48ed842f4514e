"""Patient-level stratified splits and cross-validation folds."""

import collections
import math
from collections.abc import Sequence

import numpy as np

from data_prep.errors import UserError

SPLITS = ("train", "validation", "test")
# The published study had 88 subjects and, by its rates, 14 in the test set.
PAPER_FRACTIONS = (60 / 88, 14 / 88, 14 / 88)
LABEL_NAMES = ("normal", "cad")


def label_name(label: int) -> str:
  """Returns the word for a label; anything but 0 and 1 is "unlabelled"."""
  return LABEL_NAMES[label] if label in (0, 1) else "unlabelled"


def patient_labels(
  patients: Sequence[str], labels: Sequence[int]
) -> dict[str, int]:
  """Returns one label per patient: the largest of its scans'.

  Args:
    patients: patient id of each scan.
    labels: label of each scan; 0 normal, 1 CAD, -1 unknown.

  Returns:
    A dict in sorted order of patient id. One diseased scan makes a patient
    diseased, and one labelled scan makes it labelled.
  """
  worst: dict[str, int] = {}
  for patient, label in zip(patients, labels, strict=True):
    worst[patient] = max(label, worst.get(patient, -1))
  return dict(sorted(worst.items()))


def assign_splits(
  patients: Sequence[str],
  labels: Sequence[int],
  *,
  fractions: Sequence[float] = PAPER_FRACTIONS,
  seed: int = 0,
) -> list[str]:
  """Draws train, validation and test by patient, stratified by label.

  Args:
    patients: patient id of each scan.
    labels: label of each scan; 0 normal, 1 CAD, -1 unknown.
    fractions: shares of the patients for the three splits; a share of 0
      leaves that split empty.
    seed: of the draw; the order of the scans does not matter.

  Returns:
    The split of each scan: "train", "validation" or "test".

  Raises:
    UserError: shares that do not add up to 1, or a class with fewer patients
      than there are splits to fill.
  """
  if len(fractions) != 3 or min(fractions) < 0 or fractions[0] == 0:
    raise UserError(f"splits need three shares, got {list(fractions)}")
  if not math.isclose(sum(fractions), 1, abs_tol=1e-3):
    raise UserError(
      f"the shares of the splits add up to {sum(fractions):.4g}, not to 1"
    )
  chosen: dict[str, str] = {}
  owed = np.zeros(len(SPLITS))
  for label, members in _shuffled_strata(patients, labels, seed).items():
    counts = _apportion(len(members), fractions, label_name(label), owed)
    owed += np.array(fractions) * len(members) - counts
    names = [n for n, c in zip(SPLITS, counts, strict=True) for _ in range(c)]
    chosen.update(zip(members, names, strict=True))
  return [chosen[patient] for patient in patients]


def assign_folds(
  patients: Sequence[str],
  labels: Sequence[int],
  splits: Sequence[str],
  *,
  num_folds: int = 5,
  seed: int = 0,
) -> list[int]:
  """Draws a fold for every patient, stratified by label and by split.

  Patients of one label are dealt like cards, split after split, so that any
  two folds differ by at most one patient in each label, and by at most one in
  each label of each split: folds of all cases and folds within the training
  split are both stratified.

  Args:
    patients: patient id of each scan.
    labels: label of each scan; 0 normal, 1 CAD, -1 unknown.
    splits: split of each scan.
    num_folds: at least 2.
    seed: of the draw.

  Returns:
    The fold of each scan, 0 to `num_folds` - 1.

  Raises:
    UserError: fewer than 2 folds.
  """
  if num_folds < 2:
    raise UserError(f"cross-validation needs 2 folds or more, got {num_folds}")
  split_of = dict(zip(patients, splits, strict=True))
  chosen: dict[str, int] = {}
  # Where one label's deal ends the next one's starts: total sizes stay even.
  start = 0
  for members in _shuffled_strata(patients, labels, seed + 1).values():
    members = sorted(members, key=lambda p: SPLITS.index(split_of[p]))
    for i, patient in enumerate(members):
      chosen[patient] = (start + i) % num_folds
    start += len(members)
  return [chosen[patient] for patient in patients]


def check_splits(
  patients: Sequence[str],
  labels: Sequence[int],
  splits: Sequence[str],
  *,
  whole: bool = True,
) -> None:
  """Checks splits that came with the data.

  Args:
    patients: patient id of each scan.
    labels: label of each scan; 0 normal, 1 CAD, -1 unknown.
    splits: split of each scan.
    whole: whether every split has to be there.

  Raises:
    UserError: a patient in two splits, an empty split, or a class that a
      split lacks.
  """
  seen: dict[str, str] = {}
  for patient, split in zip(patients, splits, strict=True):
    if split not in SPLITS:
      raise UserError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if seen.setdefault(patient, split) != split:
      raise UserError(
        f"patient {patient} is in two splits, {seen[patient]} and {split};"
        " all scans of a patient belong to one"
      )
  found = collections.Counter(zip(splits, labels, strict=True))
  for split in SPLITS:
    if split not in splits:
      if not whole:
        continue
      raise UserError(f"the given splits leave {split} empty")
    for label in sorted(set(labels)):
      if not found[split, label]:
        raise UserError(
          f"the given splits leave {split} without a case of class"
          f" {label_name(label)}"
        )


def _shuffled_strata(
  patients: Sequence[str], labels: Sequence[int], seed: int
) -> dict[int, list[str]]:
  """Returns the patients of each label in a drawn order."""
  strata: dict[int, list[str]] = collections.defaultdict(list)
  for patient, label in patient_labels(patients, labels).items():
    strata[label].append(patient)
  rng = np.random.default_rng(seed)
  return {
    label: [strata[label][i] for i in rng.permutation(len(strata[label]))]
    for label in sorted(strata)
  }


def _apportion(
  count: int, fractions: Sequence[float], name: str, owed: np.ndarray
) -> np.ndarray:
  """Shares out `count` by largest remainder, at least 1 where asked for.

  `owed` [3] is what earlier classes left each split short of; it breaks ties,
  so that the totals come out right as well.
  """
  wanted = np.array(fractions) > 0
  if count < wanted.sum():
    raise UserError(
      f"class {name} has {count} patient(s), too few to fill {wanted.sum()}"
      " splits; add cases, or set the share of a split to 0 with --fractions"
    )
  exact = np.array(fractions) * count
  # 44 * (14 / 88) must be 7, not 6.999.
  shares = np.maximum(np.floor(exact + 1e-9), wanted).astype(int)
  lacks = np.where(wanted, exact - shares + owed, -np.inf)
  left = max(count - shares.sum(), 0)
  shares[np.argsort(-lacks, kind="stable")[:left]] += 1
  while shares.sum() > count:
    shares[np.argmax(np.where(shares > 1, shares - exact, -np.inf))] -= 1
  return shares
