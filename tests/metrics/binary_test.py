import numpy as np
import pytest
import scipy.special
import sklearn.linear_model
import sklearn.metrics

from cadjax.metrics import binary, recalibration


def sample(n=41, seed=0, digits=None):
  rng = np.random.default_rng(seed)
  labels = rng.permutation((np.arange(n) % 3 == 0).astype(int))
  probs = 1 / (1 + np.exp(-(rng.normal(size=n) + labels - 0.5)))
  return labels, probs if digits is None else probs.round(digits)


def by_sklearn(labels, probs, threshold, weights=None):
  called = (np.asarray(probs) >= threshold).astype(int)
  sk = sklearn.metrics
  options = {"sample_weight": weights}
  counts = {"zero_division": np.nan} | options
  return {
    "accuracy": sk.accuracy_score(labels, called, **options),
    "balanced_accuracy": sk.balanced_accuracy_score(labels, called, **options),
    "precision": sk.precision_score(labels, called, **counts),
    "recall": sk.recall_score(labels, called, **counts),
    "specificity": sk.recall_score(labels, called, pos_label=0, **counts),
    "f1": sk.f1_score(labels, called, **counts),
    "roc_auc": sk.roc_auc_score(labels, probs, **options),
    "pr_auc": sk.average_precision_score(labels, probs, **options),
    "mcc": sk.matthews_corrcoef(labels, called, **options),
    "brier": sk.brier_score_loss(labels, probs, **options),
  }


@pytest.mark.parametrize("digits", [None, 1])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_binary_metrics_equal_sklearn_also_with_ties(digits, threshold):
  labels, probs = sample(digits=digits)
  ours = binary.binary_metrics(labels, probs, threshold)
  for name, value in by_sklearn(labels, probs, threshold).items():
    assert ours[name] == pytest.approx(value, abs=1e-12), name


def test_weights_equal_sklearn_and_repeated_cases():
  labels, probs = sample(digits=1)
  weights = np.random.default_rng(1).integers(0, 4, labels.size)
  ours = binary.binary_metrics(labels, probs, 0.4, weights=weights)
  repeated = binary.binary_metrics(
    labels.repeat(weights), probs.repeat(weights), 0.4
  )
  assert ours == pytest.approx(repeated)
  for name, value in by_sklearn(labels, probs, 0.4, weights).items():
    assert ours[name] == pytest.approx(value, abs=1e-12), name


def test_rows_of_weights_are_independent():
  labels, probs = sample()
  weights = np.random.default_rng(2).integers(0, 3, (7, labels.size))
  rows = binary.weighted_metrics(labels, probs, 0.5, weights)
  assert set(rows) == set(binary.METRICS)
  for i, weight in enumerate(weights):
    one = binary.binary_metrics(labels, probs, 0.5, weights=weight)
    for name in binary.METRICS:
      assert rows[name][i] == pytest.approx(one[name], nan_ok=True), name


def test_papers_confusion_table():
  # 14 patients: TP 3, FN 4, TN 7, FP 0 (accuracy 71.43 %, recall 0.43).
  labels = np.repeat([1, 0], 7)
  probs = np.array([0.9] * 3 + [0.1] * 11)
  ours = binary.binary_metrics(labels, probs)
  assert binary.confusion(labels, probs, 0.5) == {
    "tp": 3,
    "fp": 0,
    "fn": 4,
    "tn": 7,
  }
  assert ours["accuracy"] == pytest.approx(10 / 14)
  assert ours["precision"] == 1
  assert ours["recall"] == pytest.approx(3 / 7)
  assert ours["f1"] == pytest.approx(0.6)
  assert ours["mcc"] == pytest.approx(21 / np.sqrt(3 * 7 * 7 * 11))


def test_calibration_slope_equals_an_unpenalised_logistic_regression():
  rng = np.random.default_rng(3)
  logits = rng.normal(0, 2, 80)
  labels = (rng.random(80) < scipy.special.expit(0.3 + 0.6 * logits)).astype(
    int
  )
  ours = binary.binary_metrics(labels, scipy.special.expit(logits))
  model = sklearn.linear_model.LogisticRegression(C=np.inf, tol=1e-10)
  fitted = model.fit(logits[:, None], labels)
  assert ours["calibration_slope"] == pytest.approx(
    fitted.coef_[0, 0], rel=1e-4
  )
  # With the slope at 1, as many patients as expected have CAD.
  moved = scipy.special.expit(logits + ours["calibration_intercept"])
  assert moved.sum() == pytest.approx(labels.sum())


def test_the_brier_score_expected_of_calibrated_probabilities():
  probs = np.random.default_rng(4).random(40_000)
  labels = np.random.default_rng(5).random(40_000) < probs
  brier = binary.binary_metrics(labels, probs)["brier"]
  assert binary.expected_brier(probs) == pytest.approx(brier, abs=0.003)
  assert np.isnan(binary.expected_brier(np.zeros(0)))


def test_only_the_metrics_wanted_are_computed():
  rows = binary.weighted_metrics(
    [0, 1], [0.2, 0.6], 0.5, np.ones((3, 2)), {"mcc"}
  )
  assert list(rows) == ["mcc"]


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_leaves_ranking_undefined_and_the_rest_defined(label):
  ours = binary.binary_metrics([label] * 4, [0.1, 0.4, 0.6, 0.9])
  for name in ("roc_auc", "pr_auc", "mcc", "balanced_accuracy"):
    assert np.isnan(ours[name]), name
  for name in recalibration.PERFECT:
    assert np.isnan(ours[name]), name
  for name in ("accuracy", "brier"):
    assert np.isfinite(ours[name]), name
  assert np.isnan(ours["recall"]) == (label == 0)
  assert np.isnan(ours["specificity"]) == (label == 1)


def test_one_called_class():
  ours = binary.binary_metrics([0, 1, 1], [0.1, 0.2, 0.3])
  assert np.isnan(ours["precision"])
  assert ours["f1"] == 0
  assert ours["mcc"] == 0
  assert ours["balanced_accuracy"] == 0.5


def test_no_case_is_undefined_throughout():
  assert np.isnan(list(binary.binary_metrics([], []).values())).all()


@pytest.mark.parametrize(
  ("labels", "probs", "message"),
  [
    ([0, 1], [0.5], "2 labels for 1 prob"),
    ([0, 2], [0.5, 0.5], "0 or 1"),
    ([0, 1], [0.5, np.nan], "in \\[0, 1\\]"),
    ([0, 1], [0.5, 1.5], "in \\[0, 1\\]"),
  ],
)
def test_bad_input_is_refused(labels, probs, message):
  with pytest.raises(ValueError, match=message):
    binary.binary_metrics(labels, probs)
