"""Calibration slope and intercept, by simulation where truth is known."""

import numpy as np
import pytest
import scipy.special

from cadjax.metrics import binary, intervals, recalibration

FIND = {
  "calibration_slope": recalibration.slope_interval,
  "calibration_intercept": recalibration.intercept_interval,
}


def study(rng, n, spread, shift=0.0, slope=1.0):
  """Labels of probabilities with that calibration; logits vary by `spread`."""
  logits = rng.normal(0, spread, n)
  labels = rng.random(n) < scipy.special.expit(shift + slope * logits)
  return labels.astype(int), logits


def one(fit, labels, logits):
  return fit(labels, logits, np.ones((1, len(labels))))[0]


@pytest.mark.parametrize("spread", [1.0, 3.0])
@pytest.mark.parametrize(("shift", "slope"), [(0.0, 1.0), (0.5, 0.5)])
def test_the_intervals_of_63_cases_cover_the_truth(spread, shift, slope):
  rng = np.random.default_rng(0)
  truth = {"calibration_slope": slope}
  if slope == 1:  # Otherwise the intercept is another one: slope kept at 1.
    truth["calibration_intercept"] = shift
  hits = dict.fromkeys(truth, 0)
  for _ in range(600):
    labels, logits = study(rng, 63, spread, shift, slope)
    for name, value in truth.items():
      low, high = FIND[name](labels, logits)
      hits[name] += low <= value <= high
  for name, count in hits.items():
    assert 0.925 <= count / 600 <= 0.975, name


def test_slices_of_patients_are_covered_too():
  """Logits of slices share much; taken as independent, they cover 60 %."""
  rng = np.random.default_rng(1)
  hits = dict.fromkeys(FIND, 0)
  for _ in range(300):
    sick = rng.random(63) < 0.5
    # With unit variance, +-1 apart: log odds of a slice are 2 x.
    patient = np.sqrt(0.7) * rng.normal(size=(63, 1))
    x = (
      2 * sick[:, None] - 1 + patient + np.sqrt(0.3) * rng.normal(size=(63, 8))
    )
    labels, groups = (np.repeat(v, 8) for v in (sick.astype(int), range(63)))
    for name, find in FIND.items():
      low, high = find(labels, 2 * x.reshape(-1), groups)
      hits[name] += low <= recalibration.PERFECT[name] <= high
  for name, count in hits.items():
    assert 0.90 <= count / 300 <= 0.98, name


@pytest.mark.parametrize("n", [30, 63, 200])
def test_slope_and_intercept_are_not_biased_as_ece_was(n):
  """Over 400 studies, the median is that of perfect calibration."""
  rng = np.random.default_rng(2)
  studies = [study(rng, n, 2.0) for _ in range(400)]
  slopes = [one(recalibration.slopes, *s) for s in studies]
  shifts = [one(recalibration.intercepts, *s) for s in studies]
  assert np.nanmedian(slopes) == pytest.approx(1, abs=0.1)
  assert np.median(shifts) == pytest.approx(0, abs=0.1)


def test_known_miscalibration_is_found():
  rng = np.random.default_rng(3)
  labels, logits = study(rng, 20_000, 2.0)
  assert one(recalibration.slopes, labels, 2 * logits) == pytest.approx(
    0.5, abs=0.03
  )
  assert one(recalibration.intercepts, labels, logits - 1) == pytest.approx(
    1, abs=0.06
  )


def test_rows_of_weights_are_cases_counted_so_often():
  rng = np.random.default_rng(4)
  labels, logits = study(rng, 40, 2.0)
  weights = rng.integers(0, 4, (5, 40))
  for fit in (recalibration.slopes, recalibration.intercepts):
    rows = fit(labels, logits, weights)
    for row, weight in zip(rows, weights, strict=True):
      expected = one(fit, labels.repeat(weight), logits.repeat(weight))
      assert row == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
  ("labels", "logits", "slope", "intercept"),
  [
    ([], [], False, False),
    ([1, 1, 1], [0.1, 0.2, 0.3], False, False),
    ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], False, True),  # Separated,
    ([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4], False, True),  # the wrong way,
    ([0, 0, 1, 1], [0.1, 0.2, 0.2, 0.4], False, True),  # but for a tie.
    ([0, 1, 0, 1], [0.3] * 4, False, True),
    ([0, 1, 0, 1], [-27.0, -27.0, 27.0, 27.0], True, True),
  ],
)
def test_what_has_no_finite_answer_is_undefined(
  labels, logits, slope, intercept
):
  labels, logits = np.array(labels, int), np.array(logits, float)
  for name, fit, defined in (
    ("calibration_slope", recalibration.slopes, slope),
    ("calibration_intercept", recalibration.intercepts, intercept),
  ):
    value = one(fit, labels, logits)
    low, high = FIND[name](labels, logits)
    assert np.isfinite([value, low, high]).all() == defined, name
    assert not defined or low < value < high, name


def test_one_patient_has_no_interval():
  labels, logits = study(np.random.default_rng(5), 30, 2.0)
  for find in FIND.values():
    assert np.isnan(find(labels, logits, np.zeros(30))).all()


def test_extreme_logits_have_finite_fits():
  """Votes of all slices are 0 or 1, their logits far out."""
  probs = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0])
  labels = np.array([0, 0, 0, 1, 1, 1, 1, 0])
  found = intervals.with_intervals(labels, probs, draws=20)
  slope = found["calibration_slope"]
  assert -0.1 < slope.low < slope.value < slope.high < 0.2
  assert binary.binary_metrics(labels, probs)[
    "calibration_intercept"
  ] == pytest.approx(0, abs=1e-4)
