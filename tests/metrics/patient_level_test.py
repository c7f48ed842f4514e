import json

import numpy as np
import pytest
import scipy.special
import sklearn.metrics

from cadjax.core import files
from cadjax.evaluation import classifiers
from cadjax.metrics import binary, calibration, intervals, patient_level
from data_prep.errors import UserError


def row(patient, label, *log_odds, case=None):
  return {
    "case_id": case or f"{patient}-scan",
    "patient_id": patient,
    "label": label,
    "log_odds": list(log_odds),
  }


def cohort(n=30, seed=0, slices=1, shift=1.5, prefix="p"):
  rng = np.random.default_rng(seed)
  return [
    row(f"{prefix}{i:02}", i % 2, *(rng.normal(size=slices) + shift * (i % 2)))
    for i in range(n)
  ]


VALIDATION, TEST = cohort(24, 1, prefix="v"), cohort(30, 2)


def evaluate(validation=VALIDATION, test=TEST, **options):
  return patient_level.evaluate_rows(validation, test, draws=100, **options)


def values(entries):
  return {name: entry.value for name, entry in entries.items()}


def test_every_metric_has_its_interval_and_count():
  result = evaluate()
  assert set(result["patient"]) == set(binary.METRICS)
  for name, entry in result["patient"].items():
    assert entry.low <= entry.high, name
    assert list(files.strict(entry)) == [
      "value",
      "low",
      "high",
      "method",
      "k",
      "n",
    ]
  assert (result["n_patients"], result["n_cad"], result["n_scans"]) == (
    30,
    15,
    30,
  )
  assert result["notes"] == []
  assert "slice" not in result
  assert "poolings" not in result
  assert sum(result["confusion"].values()) == 30


def test_numbers_equal_sklearn_on_the_calibrated_probabilities():
  result = evaluate()
  labels = [r["label"] for r in TEST]
  odds = np.array([r["log_odds"][0] for r in TEST])
  probs = scipy.special.expit(odds / result["temperature"])
  ours = values(result["patient"])
  assert ours["roc_auc"] == pytest.approx(
    sklearn.metrics.roc_auc_score(labels, probs)
  )
  assert ours["brier"] == pytest.approx(
    sklearn.metrics.brier_score_loss(labels, probs)
  )
  assert ours["mcc"] == pytest.approx(
    sklearn.metrics.matthews_corrcoef(labels, probs >= result["threshold"])
  )
  assert result["uncalibrated"]["brier"].value == pytest.approx(
    sklearn.metrics.brier_score_loss(labels, scipy.special.expit(odds))
  )


def test_accuracy_at_half_needs_no_threshold():
  rows = [row(f"p{i}", i % 2, odds) for i, odds in enumerate([-3, -1, 1, 2, 9])]
  for criterion in ("0.9", "0.1"):
    found = evaluate(rows, rows, criterion=criterion)["at_half"]["accuracy"]
    # Wrong are the second (CAD, below) and the third and fifth (normal, above).
    assert (found.k, found.n, found.value) == (2, 5, 0.4)
    assert (found.low, found.high) == intervals.wilson(2, 5)


@pytest.mark.parametrize("criterion", ["youden", "f1", "sensitivity>=0.9"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_settings_never_see_the_test_set(criterion, ndim):
  validation = cohort(24, 1, slices=5 if ndim == 2 else 1)
  test = cohort(30, 2, slices=5 if ndim == 2 else 1)
  shuffled = [r | {"label": 1 - r["label"]} for r in test]
  other_scores = [r | {"log_odds": [-x for x in r["log_odds"]]} for r in test]
  settings = []
  for rows in (test, shuffled, other_scores, test[:3]):
    result = evaluate(validation, rows, criterion=criterion, ndim=ndim)
    picked = [result, *result.get("poolings", {}).values()]
    picked += [result["slice_setting"]] if ndim == 2 else []
    names = ("threshold", "threshold_origin", "temperature")
    settings.append([[x[name] for name in names] for x in picked])
  assert all(one == settings[0] for one in settings)
  flipped = [r | {"label": 1 - r["label"]} for r in validation]
  result = evaluate(flipped, test, criterion=criterion, ndim=ndim)
  assert result["threshold"] != settings[0][0][0]


def test_scans_of_a_patient_are_averaged():
  rows = [row("b", 0, -1.0), row("a", 1, 0.0), row("a", 1, 2.0)]
  ids, labels, probs = patient_level.by_patient(
    rows, patient_level.scan_probs(rows)
  )
  assert ids.tolist() == ["a", "b"]
  assert labels.tolist() == [1, 0]
  expected = [(0.5 + scipy.special.expit(2)) / 2, scipy.special.expit(-1)]
  np.testing.assert_allclose(probs, expected)


def test_a_patient_counts_once_however_many_scans():
  copies = [r for i, r in enumerate(TEST) for _ in range(1 + i % 3)]
  many = [r for i, r in enumerate(VALIDATION) for _ in range(1 + i % 4)]
  once, repeated = evaluate(), evaluate(many, copies)
  assert repeated["n_scans"] > repeated["n_patients"] == 30
  assert repeated["temperature"] == pytest.approx(once["temperature"])
  assert repeated["threshold"] == pytest.approx(once["threshold"])
  assert values(repeated["patient"]) == pytest.approx(values(once["patient"]))


def test_a_patient_with_one_cad_scan_is_cad_and_it_is_said():
  rows = [*TEST, row("p00", 1, 3.0)]
  result = evaluate(test=rows)
  assert result["n_cad"] == 16
  assert "counted as CAD" in result["notes"][0]
  assert "p00" in result["notes"][0]


def test_slices_are_pooled_by_hand_and_reported_beside():
  odds = {"a": (3.0, -1.0, -1.0, -1.0), "b": (0.2, 0.2, 0.2, -0.1)}
  test = [row("a", 1, *odds["a"]), row("b", 0, *odds["b"])]
  # No validation: nothing is scaled, the threshold is 0.5.
  result = evaluate([], test, ndim=2, pooling="mean")
  p = {name: scipy.special.expit(np.array(x)) for name, x in odds.items()}
  pooled = {
    "mean": [p["a"].mean(), p["b"].mean()],
    "vote": [0.25, 0.75],
    "max": [p["a"][0], p["b"][0]],
    "topk": [p["a"][0], p["b"][0]],
  }
  for name, scores in pooled.items():
    brier = np.mean((np.array(scores) - [1, 0]) ** 2)
    found = result["poolings"][name]["patient"]["brier"].value
    assert found == pytest.approx(brier), name
  assert result["poolings"]["max"]["patient"]["roc_auc"].value == 1
  assert result["poolings"]["vote"]["patient"]["roc_auc"].value == 0
  # As in the file: NaN is None, which equals itself.
  mean = files.strict(result["poolings"]["mean"]["patient"])
  assert files.strict(result["patient"]) == mean
  assert result["slice_setting"]["n_slices"] == 8
  # Slices: a has 1 of 4 right, b has 1 of 4 right.
  assert result["slice"]["accuracy"].value == 0.25
  assert result["slice"]["accuracy"].k == 2


def test_headline_is_the_pooling_asked_for():
  validation, test = cohort(24, 1, slices=6), cohort(30, 2, slices=6)
  for pooling in calibration.POOLINGS:
    result = evaluate(validation, test, ndim=2, pooling=pooling)
    one = result["poolings"][pooling]
    assert result["pooling"] == pooling
    # The slices of one patient are not independent.
    assert result["slice"]["accuracy"].method == "bootstrap over patients"
    assert result["threshold"] == one["threshold"]
    assert values(result["patient"]) == pytest.approx(
      values(one["patient"]), nan_ok=True
    )


def test_one_class_in_the_test_set():
  rows = [r for r in TEST if r["label"] == 1]
  result = evaluate(test=rows)
  assert np.isnan(result["patient"]["roc_auc"].value)
  assert result["patient"]["roc_auc"].method == "undefined"
  assert np.isfinite(result["patient"]["recall"].value)
  assert result["notes"] == ["the evaluated set holds one class only (CAD)"]
  assert "undefined" in classifiers.table(files.strict(result))


@pytest.mark.parametrize(
  ("validation", "words"),
  [([], "no validation patients"), (VALIDATION[::2], "one class only")],
)
def test_validation_that_settles_nothing(validation, words):
  result = evaluate(validation)
  assert result["threshold"] == 0.5
  assert words in result["threshold_origin"]
  assert result["temperature"] == 1
  assert "not fitted" in result["temperature_origin"]
  assert result["temperature_fitted"] is False
  assert len(result["notes"]) == 1


def test_fixed_threshold_is_kept():
  result = evaluate(criterion="0.3")
  assert result["threshold"] == 0.3
  assert "fixed by the user" in result["threshold_origin"]


def test_comparison_is_paired_and_independent_of_order():
  better = evaluate()
  noisy = [
    r | {"log_odds": [x + 2 * (-1) ** i for x in r["log_odds"]]}
    for i, r in enumerate(TEST)
  ]
  worse = evaluate(test=noisy)
  found = patient_level.compare(TEST, better, noisy[::-1], worse)
  difference = found["difference"]["accuracy"].difference
  assert difference == pytest.approx(
    better["patient"]["accuracy"].value - worse["patient"]["accuracy"].value
  )
  test = found["mcnemar"]
  counts = test["only_a_correct"] - test["only_b_correct"]
  assert counts / 30 == pytest.approx(difference)
  same = patient_level.compare(TEST, better, TEST, better)
  assert same["mcnemar"]["p_value"] == 1


def test_comparison_of_other_patients_names_them():
  result = evaluate()
  with pytest.raises(UserError, match="only in W1: p28, p29"):
    patient_level.compare(TEST, result, TEST[:28], result, names=("W1", "W2"))
  with pytest.raises(UserError, match=r"only in W2: p00, .* and 23 more"):
    patient_level.compare(TEST[28:], result, TEST, result, names=("W1", "W2"))
  flipped = [TEST[0] | {"label": 1}, *TEST[1:]]
  with pytest.raises(UserError, match="labels of the patients p00"):
    patient_level.compare(TEST, result, flipped, result)


def test_rows_and_patients_show_the_calibrated_probability_and_call():
  result = evaluate(test=[*TEST, row("p00", 0, 1.0, case="second")])
  rows = [*TEST, row("p00", 0, 1.0, case="second")]
  scored = patient_level.with_probabilities(rows, result)
  odds = rows[3]["log_odds"][0]
  assert scored[3]["uncalibrated_probability"] == pytest.approx(
    scipy.special.expit(odds)
  )
  assert scored[3]["probability"] == pytest.approx(
    scipy.special.expit(odds / result["temperature"])
  )
  patients = patient_level.patient_rows(rows, result)
  assert patients[0]["scans"] == 2
  assert patients[0]["probability"] == pytest.approx(
    (scored[0]["probability"] + scored[-1]["probability"]) / 2
  )
  calls = sum(p["called"] for p in patients)
  assert calls == result["confusion"]["tp"] + result["confusion"]["fp"]


def test_strict_json_has_null_for_undefined():
  tree = {"a": np.nan, "b": [np.float32(1.5), np.inf], "c": np.int64(3)}
  assert files.strict(tree) == {"a": None, "b": [1.5, None], "c": 3}
  text = json.dumps(files.strict(evaluate(test=TEST[::2])), allow_nan=False)
  assert json.loads(text)["patient"]["roc_auc"]["value"] is None


def test_table_reads_what_was_written():
  validation, test = cohort(24, 1, slices=3), cohort(30, 2, slices=3)
  result = evaluate(validation, test, ndim=2)
  result["against"] = patient_level.compare(test, result, test, result)
  text = classifiers.table(json.loads(json.dumps(files.strict(result))))
  assert f"{result['patient']['mcc'].text()} " in text
  assert "+0.000 [no interval]" in text
  assert "by patient (30)" in text
  assert "by slice (90)" in text
  counts = result["confusion"]
  assert f"({counts['tp'] + counts['tn']}/30)" in text
  assert "p = 1" in text
