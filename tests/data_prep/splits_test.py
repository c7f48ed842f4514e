"""Splits and folds: patients stay whole, classes stay balanced."""

import collections

import numpy as np
import pytest

from data_prep import splits
from data_prep.errors import UserError


def _cohort(num_patients, seed, max_scans=3):
  """Patients with 1 to `max_scans` scans and an uneven class balance."""
  rng = np.random.default_rng(seed)
  patients, labels = [], []
  for i in range(num_patients):
    scans = int(rng.integers(1, max_scans + 1))
    patients += [f"p{i:03d}"] * scans
    labels += [int(rng.random() < 0.3)] * scans
  return patients, labels


def test_paper_proportions_are_exact():
  patients = [f"p{i}" for i in range(88)]
  labels = [i % 2 for i in range(88)]
  drawn = splits.assign_splits(patients, labels, seed=3)
  counts = collections.Counter(zip(drawn, labels, strict=True))
  assert counts == {
    ("train", 0): 30,
    ("train", 1): 30,
    ("validation", 0): 7,
    ("validation", 1): 7,
    ("test", 0): 7,
    ("test", 1): 7,
  }


@pytest.mark.parametrize("seed", range(5))
def test_scans_of_a_patient_never_straddle(seed):
  patients, labels = _cohort(40, seed)
  drawn = splits.assign_splits(patients, labels, seed=seed)
  folds = splits.assign_folds(patients, labels, drawn, seed=seed)
  for values in (drawn, folds):
    per_patient = collections.defaultdict(set)
    for patient, value in zip(patients, values, strict=True):
      per_patient[patient].add(value)
    assert all(len(v) == 1 for v in per_patient.values())


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_within_one_patient_of_exact(seed):
  patients, labels = _cohort(61, seed, max_scans=1)
  fractions = (0.7, 0.1, 0.2)
  drawn = splits.assign_splits(patients, labels, fractions=fractions, seed=seed)
  for label in (0, 1):
    total = labels.count(label)
    for split, fraction in zip(splits.SPLITS, fractions, strict=True):
      count = sum(
        s == split and k == label for s, k in zip(drawn, labels, strict=True)
      )
      assert abs(count - fraction * total) < 1.0 or count == 1


def test_classes_make_up_for_each_other():
  patients = [f"p{i}" for i in range(20)]
  drawn = splits.assign_splits(patients, [0, 1] * 10)
  # 3.18 each: rounding every class alike would give 4 and 2.
  assert collections.Counter(drawn) == {"train": 14, "validation": 3, "test": 3}


@pytest.mark.parametrize("num_folds", [2, 5, 7])
def test_folds_cover_and_are_stratified(num_folds):
  patients, labels = _cohort(53, 1, max_scans=1)
  drawn = splits.assign_splits(patients, labels)
  folds = splits.assign_folds(patients, labels, drawn, num_folds=num_folds)
  assert set(folds) == set(range(num_folds))

  def spread(keep):
    sizes = [
      sum(f == fold for f, k in zip(folds, keep, strict=True) if k)
      for fold in range(num_folds)
    ]
    return max(sizes) - min(sizes)

  assert spread([True] * len(labels)) <= 1
  for label in (0, 1):
    assert spread([k == label for k in labels]) <= 1
    for split in splits.SPLITS:
      assert (
        spread(
          [
            k == label and s == split
            for k, s in zip(labels, drawn, strict=True)
          ]
        )
        <= 1
      )


def test_draw_depends_on_seed_not_on_order():
  patients, labels = _cohort(40, 0)
  once = splits.assign_splits(patients, labels, seed=1)
  order = np.random.default_rng(0).permutation(len(patients))
  again = splits.assign_splits(
    [patients[i] for i in order], [labels[i] for i in order], seed=1
  )
  assert again == [once[i] for i in order]
  assert once != splits.assign_splits(patients, labels, seed=2)


def test_every_split_gets_every_class_even_of_few_patients():
  patients = [f"p{i}" for i in range(10)]
  labels = [0] * 7 + [1] * 3
  drawn = splits.assign_splits(patients, labels)
  assert set(zip(drawn, labels, strict=True)) == {
    (s, k) for s in splits.SPLITS for k in (0, 1)
  }


def test_a_share_of_zero_leaves_a_split_empty():
  patients = [f"p{i}" for i in range(10)]
  drawn = splits.assign_splits(patients, [0, 1] * 5, fractions=(0.8, 0, 0.2))
  assert collections.Counter(drawn) == {"train": 8, "test": 2}


def test_diseased_in_one_scan_is_a_diseased_patient():
  assert splits.patient_labels(["b", "a", "b"], [1, -1, 0]) == {
    "a": -1,
    "b": 1,
  }


@pytest.mark.parametrize(
  ("labels", "options", "message"),
  [
    ([0, 0, 0, 1, 1], {}, "class cad has 2 patient"),
    ([0, 1] * 4, {"fractions": (0.5, 0.2, 0.2)}, "add up to 0.9"),
    ([0, 1] * 4, {"fractions": (0.5, 0.5)}, "three shares"),
    ([0, 1] * 4, {"fractions": (0.0, 0.5, 0.5)}, "three shares"),
  ],
)
def test_impossible_splits_are_one_message(labels, options, message):
  patients = [f"p{i}" for i in range(len(labels))]
  with pytest.raises(UserError, match=message):
    splits.assign_splits(patients, labels, **options)


def test_one_fold_is_refused():
  with pytest.raises(UserError, match="2 folds"):
    splits.assign_folds(["a"], [0], ["train"], num_folds=1)


CODES = {"t": "train", "v": "validation", "e": "test", "d": "dev"}


@pytest.mark.parametrize(
  ("patients", "given", "message"),
  [
    ("aabcdef", "tettvve", "patient a is in two splits, train and test"),
    ("abcdefg", "tttttee", "leave validation empty"),
    ("abcdefg", "ttvvete", "leave test without a case of class cad"),
    ("abcdefg", "dtvvtee", "unknown split 'dev'"),
  ],
)
def test_given_splits_are_checked(patients, given, message):
  labels = [0, 1, 0, 1, 0, 1, 0]
  with pytest.raises(UserError, match=message):
    splits.check_splits(list(patients), labels, [CODES[c] for c in given])


def test_a_benchmark_may_come_without_a_split():
  options = {"whole": False}
  splits.check_splits(list("ab"), [0, 1], ["test", "test"], **options)
  given = ["train", "train", "test"]
  with pytest.raises(UserError, match="leave test without a case of class cad"):
    splits.check_splits(list("abc"), [0, 1, 0], given, **options)


def test_good_given_splits_pass():
  given = [CODES[c] for c in "ttvvee"]
  splits.check_splits(list("abcdef"), [0, 1] * 3, given)
