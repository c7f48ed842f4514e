import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from cadjax.core import files
from cadjax.metrics import binary, intervals, recalibration


def binormal(rng, n, shift=1.0):
  labels = np.repeat([0, 1], n)
  scores = rng.normal(size=2 * n) + shift * labels
  return labels, scipy.stats.norm.cdf(scores)


@pytest.mark.parametrize(
  ("k", "n"), [(0, 7), (3, 7), (7, 7), (10, 14), (1, 1), (250, 1000)]
)
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_equals_scipy(k, n, confidence):
  expected = scipy.stats.binomtest(k, n).proportion_ci(
    confidence, method="wilson"
  )
  assert intervals.wilson(k, n, confidence) == pytest.approx(
    tuple(expected), abs=1e-9
  )


def test_wilson_of_the_paper():
  assert np.round(intervals.wilson(10, 14), 2).tolist() == [0.45, 0.88]
  assert np.round(intervals.wilson(3, 7), 2).tolist() == [0.16, 0.75]
  assert np.isnan(intervals.wilson(0, 0)).all()


@pytest.mark.parametrize(
  ("only_a", "only_b"), [(0, 0), (3, 9), (9, 3), (5, 5), (0, 6)]
)
def test_mcnemar_equals_scipy_binomial_test(only_a, only_b):
  a = np.array([1] * only_a + [0] * only_b + [1, 1, 0], bool)
  b = np.array([0] * only_a + [1] * only_b + [1, 1, 0], bool)
  ours = intervals.mcnemar(a, b)
  n = only_a + only_b
  expected = scipy.stats.binomtest(only_a, n, 0.5).pvalue if n else 1
  assert ours["p_value"] == pytest.approx(expected)
  assert (ours["only_a_correct"], ours["only_b_correct"]) == (only_a, only_b)


def test_bootstrap_is_stratified_and_seeded():
  labels = np.array([0] * 5 + [1] * 3)
  counts = intervals.bootstrap_counts(labels, draws=50, seed=3)
  assert (counts[:, :5].sum(1) == 5).all()
  assert (counts[:, 5:].sum(1) == 3).all()
  again = intervals.bootstrap_counts(labels, draws=50, seed=3)
  other = intervals.bootstrap_counts(labels, draws=50, seed=4)
  assert (counts == again).all()
  assert (counts != other).any()


def test_bootstrap_draw_equals_metrics_of_the_drawn_cases(monkeypatch):
  labels, probs = binormal(np.random.default_rng(0), 9)
  whole = intervals.bootstrap(labels, probs, 0.5, draws=23, seed=5)
  counts = intervals.bootstrap_counts(labels, draws=23, seed=5)
  # Of calibration the share of CAD varies from draw to draw.
  free = intervals.bootstrap_counts(np.zeros_like(labels), draws=23, seed=5)
  assert np.ptp(free @ labels) > 0
  for i in (0, 22):
    for taken, names in (
      (counts, set(binary.METRICS) - set(recalibration.PERFECT)),
      (free, recalibration.PERFECT),
    ):
      drawn = labels.repeat(taken[i]), probs.repeat(taken[i])
      expected = binary.binary_metrics(*drawn, 0.5)
      for name in names:
        assert whole[name][i] == pytest.approx(expected[name], nan_ok=True)
  only = intervals.bootstrap(labels, probs, draws=23, seed=5, names=("brier",))
  assert list(only) == ["brier"]
  np.testing.assert_array_equal(only["brier"], whole["brier"])
  monkeypatch.setattr(intervals, "CHUNK", 40)
  chunked = intervals.bootstrap(labels, probs, 0.5, draws=23, seed=5)
  for name in binary.METRICS:
    np.testing.assert_allclose(chunked[name], whole[name], rtol=1e-7, atol=1e-9)


def test_bootstrap_draws_whole_patients():
  # Three slices of each patient, copies of one another: the draws are those
  # of the patients, not those of three times as many cases.
  labels, probs = binormal(np.random.default_rng(1), 8)
  patients = np.array([f"p{i:02}" for i in range(16)])
  alone = intervals.bootstrap(labels, probs, draws=40)
  slices = intervals.bootstrap(
    labels.repeat(3), probs.repeat(3), groups=patients.repeat(3), draws=40
  )
  for name in binary.METRICS:
    np.testing.assert_allclose(slices[name], alone[name], atol=1e-7)


def test_slices_get_wider_intervals_than_if_they_were_independent():
  rng = np.random.default_rng(2)
  labels, probs = binormal(rng, 10)
  labels, probs, patient = (
    x.repeat(20) for x in (labels, probs, np.arange(20))
  )
  by_patient = intervals.with_intervals(labels, probs, groups=patient)
  naive = intervals.with_intervals(labels, probs)
  for name in ("accuracy", "roc_auc", *recalibration.PERFECT):
    width = [x[name].high - x[name].low for x in (by_patient, naive)]
    assert width[0] > 2 * width[1], name
  assert by_patient["accuracy"].method == "bootstrap over patients"


def test_bootstrap_interval_of_auc_covers_the_truth():
  rng = np.random.default_rng(4)
  truth = scipy.stats.norm.cdf(1 / np.sqrt(2))
  hits = 0
  for i in range(150):
    labels, probs = binormal(rng, 40)
    auc = intervals.bootstrap(labels, probs, draws=300, seed=i)["roc_auc"]
    low, high = intervals.percentiles(auc)
    hits += low <= truth <= high
  # Binomial spread of 150 trials around 0.95, with a little under-coverage.
  assert 0.89 <= hits / 150 <= 0.99


def test_newcombe_interval_covers_small_samples():
  rng = np.random.default_rng(5)
  truth = scipy.stats.norm.cdf(1.5 / np.sqrt(2))
  hits = 0
  for _ in range(300):
    labels, probs = binormal(rng, 7, 1.5)
    auc = binary.binary_metrics(labels, probs)["roc_auc"]
    low, high = intervals.auc_interval(auc, 7, 7)
    assert low <= auc <= high
    hits += low <= truth <= high
  assert 0.91 <= hits / 300 <= 0.995


def test_newcombe_interval_mirrors_and_shrinks():
  low, high = intervals.auc_interval(0.8, 9, 5)
  mirror = intervals.auc_interval(0.2, 9, 5)
  assert (low, high) == pytest.approx((1 - mirror[1], 1 - mirror[0]))
  assert intervals.auc_interval(1.0, 7, 7)[1] == 1
  assert 0.6 < intervals.auc_interval(1.0, 7, 7)[0] < 0.8
  assert intervals.auc_interval(1.0, 300, 300)[0] > 0.98


def test_perfect_separation_is_not_reported_as_certain():
  labels = np.repeat([0, 1], 7)
  probs = np.linspace(0.1, 0.9, 14)
  result = intervals.with_intervals(labels, probs)
  for name in set(binary.METRICS) - {"brier", *recalibration.PERFECT}:
    assert result[name].value == 1, name
    assert 0.4 < result[name].low < 0.9, name
    assert result[name].high == 1, name
  assert result["accuracy"].method == "wilson"
  assert (result["recall"].k, result["recall"].n) == (7, 7)
  assert result["roc_auc"].method == "newcombe"
  # The slope would be infinite.
  assert result["calibration_slope"].method == "undefined"
  assert result["calibration_intercept"].method == "profile likelihood"


def test_undefined_metrics_have_undefined_intervals():
  result = intervals.with_intervals([1, 1, 1], [0.2, 0.6, 0.9])
  for name in ("roc_auc", "specificity", "mcc"):
    one = result[name]
    assert np.isnan([one.value, one.low, one.high]).all()
    assert result[name].method == "undefined"
  assert result["recall"].low < 2 / 3 < result["recall"].high


def test_equal_probabilities_have_no_bootstrap_interval():
  result = intervals.with_intervals([0, 1, 0, 1], [0.3] * 4)
  assert result["brier"].method == "undetermined"
  assert np.isnan(result["brier"].low)
  assert result["calibration_slope"].method == "undefined"


def test_one_perfect_rate_leaves_no_false_certainty():
  """The bootstrap of 5 of 5 never varies; Wilson's interval begins at 0.57."""
  labels = [1] * 5 + [0] * 20
  probs = [0.9] * 5 + [0.8] * 10 + [0.1] * 10
  result = intervals.with_intervals(labels, probs)
  one = result["balanced_accuracy"]
  assert one.method == "jeffreys"
  assert one.low < 0.6 < one.value < one.high
  result = intervals.with_intervals(labels, [0.2, *probs[1:]])
  assert result["balanced_accuracy"].method == "bootstrap"


def test_paired_bootstrap_cancels_what_two_models_share():
  labels, probs = binormal(np.random.default_rng(6), 30)
  same = intervals.paired_bootstrap(labels, probs, probs, draws=200)
  for name in binary.METRICS:
    assert same[name].difference == 0, name
    assert np.isnan([same[name].low, same[name].high]).all(), name
  worse = 1 - probs
  result = intervals.paired_bootstrap(labels, probs, worse, draws=200)
  auc = binary.binary_metrics(labels, probs)["roc_auc"]
  assert result["roc_auc"].difference == pytest.approx(2 * auc - 1)
  assert result["roc_auc"].low > 0
  mirrored = intervals.paired_bootstrap(labels, worse, probs, draws=200)
  assert mirrored["roc_auc"].high == pytest.approx(-result["roc_auc"].low)


def test_an_interval_as_text():
  one = intervals.Interval(0.857, 0.6, 0.96, "wilson", 12, 14)
  assert one.text() == "0.857 [0.600, 0.960] (12/14)"
  plain = dataclasses.replace(one, k=None)
  assert plain.text(2) == "0.86 [0.60, 0.96]"
  assert plain.text(2, sign=True, count=True) == "+0.86 [+0.60, +0.96] (14)"
  bare = dataclasses.replace(plain, low=np.nan, high=np.nan)
  assert bare.text(1) == "0.9 [no interval]"
  nothing = dataclasses.replace(one, value=np.nan, low=np.nan, high=np.nan)
  assert nothing.text(count=True) == "undefined"
  difference = intervals.Difference(-0.1, -0.25, 0.05)
  assert difference.text(2) == "-0.10 [-0.25, +0.05]"
  assert intervals.interval_text(None, None, None) == "undefined"
  assert intervals.interval_text(12.34, None, None, digits=1).startswith("12.3")


@pytest.mark.parametrize(
  ("one", "written"),
  [
    (
      intervals.Interval(np.nan, np.nan, np.nan, "undefined", 0, 0),
      '{"value": null, "low": null, "high": null, "method": "undefined",'
      ' "k": 0, "n": 0}',
    ),
    (
      intervals.MeanInterval(0.5, np.nan, np.nan, "undetermined", None, 1, 3),
      '{"value": 0.5, "low": null, "high": null, "method": "undetermined",'
      ' "k": null, "n": 1, "n_patients": 3}',
    ),
    (
      intervals.Difference(0.0, np.nan, np.nan),
      '{"difference": 0.0, "low": null, "high": null}',
    ),
  ],
)
def test_an_interval_goes_to_json_and_back(one, written):
  text = json.dumps(files.strict({"x": [one]})["x"][0], allow_nan=False)
  assert text == written
  again = type(one).from_dict(json.loads(text))
  np.testing.assert_equal(vars(again), vars(one))
  assert type(again) is type(one)


def test_further_keys_of_a_file_are_ignored():
  mean = intervals.MeanInterval(0.5, 0.4, 0.6, "student", None, 4, 5)
  found = intervals.Interval.from_dict(files.strict(mean))
  assert found == intervals.Interval(0.5, 0.4, 0.6, "student", None, 4)


def test_mean_interval_covers_the_mean_and_is_scipys_percentile_bootstrap():
  rng = np.random.default_rng(6)
  values = rng.gamma(2.0, size=35)
  ours = intervals.mean_interval(values, draws=20_000)
  theirs = scipy.stats.bootstrap(
    (values,), np.mean, n_resamples=20_000, method="percentile", rng=0
  ).confidence_interval
  assert ours.value == pytest.approx(values.mean())
  assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=0.02)
  hits = 0
  for i in range(200):
    drawn = intervals.mean_interval(rng.gamma(2.0, size=40), draws=300, seed=i)
    hits += drawn.low <= 2 <= drawn.high
  assert 0.88 <= hits / 200 <= 0.99


def test_mean_interval_weighs_patients_and_leaves_out_the_undefined():
  values = np.array([1.0, 3.0, np.nan, 8.0, np.nan])
  patients = np.array(["a", "a", "a", "b", "c"])
  ours = intervals.mean_interval(values, patients=patients)
  assert ours.value == pytest.approx((2 + 8) / 2)
  assert (ours.n, ours.n_patients) == (2, 3)
  # Copies of a patient's value change nothing.
  again = intervals.mean_interval(values.repeat(4), patients=patients.repeat(4))
  assert again == ours


def test_mean_interval_of_few_patients_is_students():
  values = np.array([0.3, 0.9, 0.5])
  ours = intervals.mean_interval(values, confidence=0.9)
  expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
  assert (ours.low, ours.high) == pytest.approx(tuple(expected))
  assert ours.method == "student"
  most = intervals.mean_interval(np.linspace(0, 1, intervals.FEW_PATIENTS - 1))
  assert most.method == "student"
  many = intervals.mean_interval(np.linspace(0, 1, intervals.FEW_PATIENTS))
  assert many.method == "bootstrap over patients"
  assert 0 <= many.low < many.high <= 1


@pytest.mark.parametrize("n", [6, 10, 20])
@pytest.mark.parametrize(
  ("population", "mean", "least"),
  [("normal", 0.0, 0.93), ("gamma", 2.0, 0.90)],
)
def test_mean_interval_of_few_patients_covers_the_mean(
  n, population, mean, least
):
  """2,000 studies; the percentile bootstrap covers 83 to 92 % of them."""
  rng = np.random.default_rng(n)
  draw = {
    "normal": rng.standard_normal,
    "gamma": lambda s: rng.gamma(2.0, 1, s),
  }
  hits = 0
  for values in draw[population]((2000, n)):
    found = intervals.mean_interval(values, draws=100)
    hits += found.low <= mean <= found.high
  # From 10 patients on, the skewed population is covered nearly as well.
  least = max(least, 0.92) if n >= 10 else least
  assert least <= hits / 2000 <= 0.965


def test_mean_interval_without_spread_claims_nothing():
  for values in ([0.7], [0.7, 0.7, np.nan]):
    ours = intervals.mean_interval(np.array(values))
    assert ours.value == pytest.approx(0.7)
    assert np.isnan([ours.low, ours.high]).all()
    assert ours.method == "undetermined"
  for values in ([], [np.nan, np.nan]):
    ours = intervals.mean_interval(np.array(values))
    assert np.isnan(ours.value)
    assert (ours.n, ours.method) == (0, "undefined")


def test_mean_interval_of_a_proportion_is_wilsons():
  ours = intervals.mean_interval(np.array([1, 1, np.nan, 1]), proportion=True)
  assert (ours.low, ours.high) == intervals.wilson(3, 3)
  assert (ours.k, ours.n, ours.method) == (3, 3, "wilson")
  patients = np.array([0, 0, 1, 2])
  mixed = intervals.mean_interval(
    np.array([1, 0, 1, 1]), patients=patients, proportion=True
  )
  assert mixed.method == "student"
