import numpy as np
import pytest
import scipy.special
import sklearn.calibration
import sklearn.metrics

from cadjax.metrics import calibration


def test_softmax_margin_is_the_logit_of_the_softmax():
  logits = np.random.default_rng(0).normal(size=(3, 5, 2))
  probs = scipy.special.softmax(logits, -1)[..., 1]
  margin = calibration.softmax_margin(logits)
  np.testing.assert_allclose(scipy.special.expit(margin), probs)
  np.testing.assert_allclose(calibration.logit(probs), margin, rtol=1e-9)


def test_temperature_recovers_a_known_factor():
  rng = np.random.default_rng(1)
  logits = rng.normal(scale=2, size=20_000)
  labels = (rng.random(20_000) < scipy.special.expit(logits)).astype(int)
  for factor in (0.5, 3.0):
    probs = scipy.special.expit(factor * logits)
    found = calibration.fit_temperature(labels, probs)
    assert found.value == pytest.approx(factor, rel=0.05)
    assert "validation" in found.origin
    assert found.fitted
    np.testing.assert_allclose(
      calibration.calibrate(probs, factor),
      scipy.special.expit(logits),
      rtol=1e-5,
    )


def test_temperature_is_a_minimum_of_the_log_loss():
  labels = np.array([0, 0, 1, 1, 0, 1])
  probs = np.array([0.1, 0.7, 0.95, 0.6, 0.2, 0.3])
  weights = np.array([1, 2, 1, 1, 0.5, 1])
  best = calibration.fit_temperature(labels, probs, weights=weights).value

  def loss(temperature):
    calibrated = calibration.calibrate(probs, temperature)
    return sklearn.metrics.log_loss(labels, calibrated, sample_weight=weights)

  assert loss(best) < min(loss(best * 1.01), loss(best / 1.01))


@pytest.mark.parametrize(
  ("labels", "probs", "reason"),
  [
    ([], [], "is empty"),
    ([1, 1], [0.2, 0.9], "one class only"),
    ([0, 1], [0.2, 0.9], "separated"),
    ([0, 1], [0.9, 0.2], "no better than chance"),
  ],
)
def test_temperature_without_an_optimum_is_one(labels, probs, reason):
  found = calibration.fit_temperature(labels, probs)
  assert found.value == 1
  assert not found.fitted
  assert reason in found.origin


def test_temperature_at_the_end_of_its_range_is_said():
  labels = [0, 1] * 50 + [0]
  probs = [0.499, 0.501] * 50 + [0.5001]
  found = calibration.fit_temperature(labels, probs)
  assert found.value == pytest.approx(calibration.TEMPERATURES[0], rel=1e-3)
  assert "end of its range" in found.origin
  assert found.fitted


def test_calibration_keeps_the_order_and_one_half():
  probs = np.array([0.0, 0.1, 0.5, 0.8, 1.0])
  for temperature in (0.3, 4.0):
    calibrated = calibration.calibrate(probs, temperature)
    assert (np.diff(calibrated) > 0).all()
    assert calibrated[2] == pytest.approx(0.5)
    assert ((calibrated >= 0) & (calibrated <= 1)).all()


LABELS = np.array([0, 0, 1, 0, 1, 1, 0, 1])
PROBS = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.75, 0.9])


def rates(threshold):
  called = threshold <= PROBS
  return called[LABELS == 1].mean(), called[LABELS == 0].mean()


def test_youden_threshold_is_the_best_operating_point_of_sklearn():
  rng = np.random.default_rng(2)
  for _ in range(20):
    labels = rng.permutation(np.arange(31) % 2)
    probs = rng.random(31).round(1)
    threshold, _ = calibration.choose_threshold(labels, probs, "youden")
    called = probs >= threshold
    ours = called[labels == 1].mean() - called[labels == 0].mean()
    fpr, tpr, _ = sklearn.metrics.roc_curve(labels, probs)
    assert ours == pytest.approx((tpr - fpr).max())


def test_f1_threshold_is_the_best_of_an_exhaustive_search():
  threshold, origin = calibration.choose_threshold(LABELS, PROBS, "f1")
  ours = sklearn.metrics.f1_score(LABELS, threshold <= PROBS)
  every = [sklearn.metrics.f1_score(LABELS, t <= PROBS) for t in PROBS]
  assert ours == pytest.approx(max(every))
  assert origin == "f1 on 8 validation patients"


@pytest.mark.parametrize(
  ("wanted", "sensitivity", "false_positive_rate"),
  [(0.75, 0.75, 0.25), (0.8, 1.0, 0.5), (1.0, 1.0, 0.5), (0.2, 0.25, 0)],
)
def test_sensitivity_threshold(wanted, sensitivity, false_positive_rate):
  threshold, _ = calibration.choose_threshold(
    LABELS, PROBS, f"sensitivity>={wanted}"
  )
  assert rates(threshold) == (sensitivity, false_positive_rate)


def test_threshold_lies_midway_between_neighbours():
  threshold, _ = calibration.choose_threshold([0, 0, 1], [0.1, 0.2, 0.6])
  assert threshold == pytest.approx(0.4)


def test_threshold_between_adjacent_floats_still_separates():
  low = 0.7
  high = np.nextafter(low, 1)
  threshold, _ = calibration.choose_threshold([0, 1], [low, high])
  assert low < threshold <= high


def test_threshold_of_degenerate_validation_is_half_and_says_why():
  assert calibration.choose_threshold([1, 1], [0.2, 0.3]) == (
    0.5,
    "fixed at 0.5: validation holds one class only",
  )
  assert calibration.choose_threshold([], [])[0] == 0.5
  assert calibration.choose_threshold([], [], "0.3") == (
    0.3,
    "fixed by the user, not chosen on data",
  )


@pytest.mark.parametrize("text", ["yuden", "1.2", "sensitivity>=2", "a>=0.5"])
def test_unknown_criterion_names_the_known_ones(text):
  with pytest.raises(ValueError, match="youden, f1, sensitivity>=0.9"):
    calibration.check_criterion(text)


def test_pooling_by_hand():
  probs = np.array([[0.1, 0.9, 0.5, 0.3], [0.2, 0.2, 0.2, 0.6]])
  pool = calibration.aggregate_slices
  np.testing.assert_allclose(pool(probs, "mean"), [0.45, 0.3])
  np.testing.assert_allclose(pool(probs, "vote"), [0.5, 0.25])
  np.testing.assert_allclose(pool(probs, "max"), [0.9, 0.6])
  np.testing.assert_allclose(pool(probs, "topk", top_k=2), [0.7, 0.4])
  np.testing.assert_allclose(pool(probs, "topk"), pool(probs, "max"))
  np.testing.assert_allclose(pool(probs, "topk", top_k=9), [0.45, 0.3])


@pytest.mark.parametrize("pooling", calibration.POOLINGS)
def test_one_slice_pools_to_itself_or_its_vote(pooling):
  expected = 1.0 if pooling == "vote" else 0.7
  assert calibration.aggregate_slices([0.7], pooling) == expected


def test_bad_pooling_is_refused():
  with pytest.raises(ValueError, match="known: mean, vote, max, topk"):
    calibration.aggregate_slices([0.5], "median")
  with pytest.raises(ValueError, match="cannot pool"):
    calibration.aggregate_slices([0.5], "topk", top_k=0)
  with pytest.raises(ValueError, match="0 slices"):
    calibration.aggregate_slices([])


def test_reliability_equals_sklearn():
  rng = np.random.default_rng(3)
  probs = rng.random(200)
  labels = (rng.random(200) < probs).astype(int)
  table = calibration.reliability(labels, probs)
  rate, mean = sklearn.calibration.calibration_curve(labels, probs, n_bins=10)
  np.testing.assert_allclose([row["rate"] for row in table], rate)
  np.testing.assert_allclose([row["mean_prob"] for row in table], mean)
  assert sum(row["n"] for row in table) == 200
  assert all(row["low"] <= row["rate"] <= row["high"] for row in table)
