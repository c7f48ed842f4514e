"""Statistics over cells, against formulas and simulations."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats

from cadjax.experiment import compare
from cadjax.experiment.compare import Line
from cadjax.metrics import intervals, recalibration


def calls(rng, patients, shift, noise=1.0, threshold=0.5):
  """Rows whose probability tells the label the better, the larger `shift`."""
  rows = []
  for i in range(patients):
    label = i % 2
    z = shift * (label - 0.5) + noise * rng.normal()
    rows.append(
      {
        "patient_id": f"p{i}",
        "label": label,
        "probability": float(1 / (1 + math.exp(-z))),
        "threshold": threshold,
      }
    )
  return rows


def line(make, folds=5, seeds=1, trained=60):
  keys = [(f, s) for f in range(folds) for s in range(seeds)]
  return Line({key: make(*key) for key in keys}, dict.fromkeys(keys, trained))


def test_corrected_t_is_the_formula_of_nadeau_and_bengio():
  deltas = np.array([0.1, 0.05, 0.2, 0.0, 0.12])
  found = compare.corrected_t(deltas, share=1 / 3)
  error = math.sqrt((1 / 5 + 1 / 3) * deltas.var(ddof=1))
  t = deltas.mean() / error
  assert found["p_value"] == pytest.approx(2 * scipy.stats.t.sf(t, 4))
  half = scipy.stats.t.ppf(0.975, 4) * error
  assert found["low"] == pytest.approx(deltas.mean() - half)
  assert found["high"] == pytest.approx(deltas.mean() + half)


def test_without_overlap_the_corrected_t_is_students():
  deltas = np.random.default_rng(0).normal(0.2, 1, 12)
  found = compare.corrected_t(deltas, share=0.0)
  expected = scipy.stats.ttest_1samp(deltas, 0.0)
  assert found["p_value"] == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("deltas", [[0.1], [0.2, 0.2], [0.1, math.nan]])
def test_cells_that_tell_nothing_give_no_interval(deltas):
  found = compare.corrected_t(np.array(deltas), 0.25)
  assert all(math.isnan(value) for value in found.values())


def test_holm_is_as_in_a_worked_example():
  # Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1, and never falling.
  np.testing.assert_allclose(
    compare.holm([0.03, 0.01, 0.04, 0.02]), [0.06, 0.04, 0.06, 0.06]
  )
  adjusted = compare.holm([0.01, math.nan, 0.5])
  assert adjusted[0] == pytest.approx(0.03)
  assert math.isnan(adjusted[1])
  assert compare.holm([0.9, 0.8]) == [1.0, 1.0]


def test_one_cell_is_as_the_paired_bootstrap_of_evaluate():
  rng = np.random.default_rng(1)
  rows_a, rows_b = calls(rng, 60, 3.0), calls(rng, 60, 1.0)
  a, b = (Line({(None, 0): rows}) for rows in (rows_a, rows_b))
  found = compare.difference(a, b, "roc_auc")
  order = sorted(range(60), key=lambda i: rows_a[i]["patient_id"])
  labels = np.array([rows_a[i]["label"] for i in order])
  expected = intervals.paired_bootstrap(
    labels,
    np.array([rows_a[i]["probability"] for i in order]),
    np.array([rows_b[i]["probability"] for i in order]),
  )["roc_auc"]
  for key in ("difference", "low", "high"):
    assert found[key] == pytest.approx(getattr(expected, key))
  assert found["method"] == "paired bootstrap over patients"
  assert found["n_patients"] == 60


@pytest.mark.parametrize(
  ("shifts", "decided"),
  [((3.0, 3.0, 0.0), False), ((0.0, 0.0, 0.0), True), ((0.0, 0.0), False)],
)
def test_one_failed_training_is_no_difference(shifts, decided):
  """Over patients alone it would be: the failed one lowers the mean."""
  rng = np.random.default_rng(4)
  seeds = range(len(shifts))
  good = Line({(None, s): calls(rng, 80, 3.0) for s in seeds})
  other = Line({(None, s): calls(rng, 80, shifts[s]) for s in seeds})
  found = compare.difference(good, other, "roc_auc")
  assert found["bootstrap_low"] > 0
  assert found["method"] == f"t over {len(shifts)} trainings and the patients"
  assert compare.decided(found | {"p_holm": found["p_value"]}) == decided


@pytest.mark.parametrize("trainings", [2, 3, 5])
@pytest.mark.parametrize("patients", [0.1, 1.0, 3.0])
def test_under_no_difference_few_trainings_reject_rarely(trainings, patients):
  """Whichever varies more, the trainings (by 1) or the patients."""
  rng = np.random.default_rng(8)
  p = [
    compare.over_trainings(
      rng.normal(0, 1, trainings) + rng.normal(0, patients), patients**2
    )["p_value"]
    for _ in range(1000)
  ]
  assert np.mean(np.array(p) < 0.05) < 0.07


def calibrated(rng, n, fold=0):
  probs = scipy.special.expit(rng.normal(0, 2, n))
  return [
    {
      "patient_id": f"{fold}_{i}",
      "label": int(rng.random() < p),
      "probability": float(p),
      "threshold": 0.5,
    }
    for i, p in enumerate(probs)
  ]


@pytest.mark.parametrize("folds", [1, 3])
@pytest.mark.parametrize("metric", sorted(recalibration.PERFECT))
def test_perfect_calibration_lies_in_its_interval(metric, folds):
  """150 studies of 63 patients a fold; of one or three."""
  rng = np.random.default_rng(9)
  hits = 0
  for _ in range(150):
    rows = {(f, 0): calibrated(rng, 63, f) for f in range(folds)}
    found = compare.estimate(Line(rows), metric, draws=2)
    assert found["low"] < found["value"] < found["high"]
    hits += found["low"] <= recalibration.PERFECT[metric] <= found["high"]
  assert 0.91 <= hits / 150 <= 0.985


def test_calibration_has_no_mcnemar_and_counts_that_trainings_differ():
  rng = np.random.default_rng(9)
  rows = calibrated(rng, 80)
  metric = "calibration_intercept"
  one = Line({(None, 0): rows, (None, 1): rows})
  assert "mcnemar" not in compare.difference(one, one, metric)
  bold = [row | {"probability": row["probability"] ** 4} for row in rows]
  alone, same, other = (
    compare.estimate(Line(dict(enumerate_seeds(some))), metric)
    for some in ([rows], [rows, rows], [rows, bold])
  )
  # The same training twice tells nothing new.
  for key in ("value", "low", "high"):
    assert same[key] == pytest.approx(alone[key])
  assert other["high"] - other["low"] > 1.5 * (alone["high"] - alone["low"])
  # Cells whose slope is not finite leave the mean.
  perfect = [row | {"probability": 0.1 + 0.8 * row["label"]} for row in rows]
  found = compare.estimate(
    Line(dict(enumerate_seeds([rows, perfect]))), "calibration_slope"
  )
  assert found["low"] < found["value"] < found["high"]
  assert math.isnan(found["cells"][1]["value"])


def enumerate_seeds(cells):
  return (((None, seed), rows) for seed, rows in enumerate(cells))


def test_a_line_less_itself_is_nothing():
  rng = np.random.default_rng(2)
  one = line(lambda f, s: calls(rng, 20, 1.0))
  found = compare.difference(one, one, "roc_auc")
  assert found["difference"] == 0
  assert found["mcnemar"]["p_value"] == 1
  found["p_holm"] = found["p_value"]
  assert not compare.decided(found)


def test_a_plain_difference_is_decided_and_none_is_not():
  def against(shift):
    rng = np.random.default_rng(3)
    a = line(lambda f, s: calls(rng, 80, 3.0))
    b = line(lambda f, s: calls(rng, 80, shift))
    found = compare.difference(a, b, "roc_auc")
    return found | {"p_holm": found["p_value"]}

  assert compare.decided(against(0.5))
  assert not compare.decided(against(3.0))


def test_values_are_means_over_patients_and_undefined_ones_leave_both():
  a = Line(
    {
      (None, 0): [
        {"patient_id": "p", "dice": 0.8},
        {"patient_id": "p", "dice": 0.6},
        {"patient_id": "q", "dice": 0.3},
        {"patient_id": "r", "dice": None},
      ]
    }
  )
  b = Line(
    {
      (None, 0): [
        {"patient_id": "p", "dice": 0.5},
        {"patient_id": "q", "dice": None},
        {"patient_id": "r", "dice": 0.1},
      ]
    }
  )
  assert compare.estimate(a, "dice")["value"] == pytest.approx(0.5)
  assert compare.estimate(a, "dice")["n_patients"] == 2
  assert compare.estimate(a, "dice")["n_undefined"] == 1
  found = compare.difference(a, b, "dice")
  assert found["difference"] == pytest.approx(0.2)
  assert found["n_patients"] == 1
  assert "mcnemar" not in found


def test_an_estimate_covers_and_tells_its_cells():
  rng = np.random.default_rng(4)
  one = line(lambda f, s: calls(rng, 40, 1.5), folds=3, seeds=2)
  found = compare.estimate(one, "roc_auc")
  assert found["low"] < found["value"] < found["high"]
  assert [(c["fold"], c["seed"]) for c in found["cells"]] == list(one.rows)
  mean = np.mean([c["value"] for c in found["cells"]])
  assert found["value"] == pytest.approx(mean)


def test_an_estimate_over_seeds_counts_that_trainings_differ():
  rng = np.random.default_rng(4)
  good, failed = calls(rng, 80, 5.0), calls(rng, 80, 0.0)
  cells = ((None, 0), (None, 1))
  both = compare.estimate(
    Line(dict(zip(cells, (good, failed), strict=True))), "roc_auc"
  )
  values = [cell["value"] for cell in both["cells"]]
  # Another pair of trainings may both fail, or neither.
  assert both["low"] < min(values) + 0.05
  assert both["high"] > max(values) - 0.05
  # Over folds, trainings and patients change together: no cell is redrawn.
  folds = compare.estimate(Line({(0, 0): good, (1, 0): failed}), "roc_auc")
  assert folds["low"] > both["low"] + 0.1


def test_perfect_separation_claims_no_certainty():
  rows = [
    {
      "patient_id": str(i),
      "label": i % 2,
      "probability": i % 2 * 0.8 + 0.1,
      "threshold": 0.5,
    }
    for i in range(12)
  ]
  found = compare.estimate(Line({(0, 0): rows}), "roc_auc")
  assert found["value"] == 1
  assert math.isnan(found["low"])


def test_a_line_knows_what_it_has():
  rng = np.random.default_rng(5)
  assert line(lambda f, s: calls(rng, 4, 1.0)).has("roc_auc")
  assert not line(lambda f, s: calls(rng, 4, 1.0)).has("dice")
  values = Line({(0, 0): [{"patient_id": "a", "dice": 0.1}]})
  assert values.has("dice")
  assert not values.has("roc_auc")
  assert compare.estimate(values, "dice")["middle_low"] == pytest.approx(0.1)


def test_slices_have_no_mcnemar():
  rng = np.random.default_rng(6)
  rows = calls(rng, 10, 1.0)
  several = [row | {"patient_id": f"p{i // 2}"} for i, row in enumerate(rows)]
  one = Line({(0, 0): several})
  found = compare.difference(one, one, "roc_auc")
  assert "mcnemar" not in found


def of_folds(rng, folds, seeds, patients=4):
  """Two lines without a difference in the long run.

  Theirs is of the data set (all training sets overlap), of the fold (its
  patients and training set), and of each training.
  """
  shared, of_fold = 0.5 * rng.normal(), rng.normal(size=folds)

  def make(fold, _):
    value = shared + of_fold[fold] + 0.5 * rng.normal()
    return [{"patient_id": f"{fold}_{i}", "x": value} for i in range(patients)]

  none = [
    {"patient_id": f"{f}_{i}", "x": 0.0}
    for f in range(folds)
    for i in range(patients)
  ]
  return line(make, folds, seeds, 3 * patients), line(
    lambda f, s: none, folds, seeds, 3 * patients
  )


@pytest.mark.parametrize("seeds", [1, 5])
def test_under_no_difference_seeds_of_a_fold_are_not_repetitions(seeds):
  """Taken as cells, five seeds reject in 9 % of these studies."""
  rng = np.random.default_rng(0)
  p = [
    compare.difference(*of_folds(rng, 5, seeds), "x", draws=2)["p_value"]
    for _ in range(400)
  ]
  assert np.mean(np.array(p) < 0.05) < 0.07


def test_seeds_of_a_fold_are_averaged_first():
  found = compare.difference(
    *of_folds(np.random.default_rng(1), 5, 3), "x", draws=2
  )
  a, b = of_folds(np.random.default_rng(1), 5, 3)
  deltas = np.array([rows[0]["x"] for rows in a.rows.values()])
  expected = compare.corrected_t(deltas.reshape(5, 3).mean(1), share=1 / 3)
  assert found["difference"] == pytest.approx(deltas.mean())
  assert {key: found[key] for key in expected} == pytest.approx(expected)
  assert (found["n_cells"], found["method"]) == (
    15,
    "Nadeau-Bengio over 5 folds",
  )


def test_the_share_is_of_patients_that_were_measured():
  """Half of the tested have no value; one line was trained on fewer."""
  rng = np.random.default_rng(2)

  def rows(fold, _):
    return [
      {"patient_id": f"{fold}_{i}", "x": rng.normal() if i % 2 else None}
      for i in range(20)
    ]

  a, b = line(rows, trained=60), line(rows, trained=40)
  found = compare.difference(a, b, "x")
  deltas = [
    np.mean([r["x"] for r in a.rows[key] if r["x"] is not None])
    - np.mean([r["x"] for r in b.rows[key] if r["x"] is not None])
    for key in a.rows
  ]
  expected = compare.corrected_t(np.array(deltas), share=10 / 40)
  assert found["p_value"] == pytest.approx(expected["p_value"])
  # Without any training set, there is nothing to correct by.
  found = compare.difference(Line(a.rows), Line(b.rows), "x")
  assert math.isnan(found["p_value"])


def test_under_no_difference_the_corrected_test_rejects_rarely():
  rng = np.random.default_rng(7)
  # Means of cells that share training noise, as folds do.
  p = [
    compare.corrected_t(rng.normal(0, 1, 5) + 0.5 * rng.normal(), 1 / 3)[
      "p_value"
    ]
    for _ in range(500)
  ]
  assert np.mean(np.array(p) < 0.05) < 0.07
