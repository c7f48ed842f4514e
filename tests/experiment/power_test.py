"""The smallest difference that a plan can show."""

import json
import math
import pathlib

import ml_collections
import numpy as np
import pytest
import scipy.stats

from cadjax.experiment import compare, plan, power

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "configs" / "experiments" / "results"
DESIGNS = {
  # A paired t test, of folds that overlap, of trainings on few patients, of
  # patients alone.
  "pairs": power.Design(10, variance=1.0),
  "folds": power.Design(5, variance=0.01, share=1 / 3),
  "trainings": power.Design(4, variance=0.0032, fixed=0.0006),
  "patients": power.Design(1, fixed=0.0025),
}


def test_the_power_of_a_paired_t_test_is_that_of_the_noncentral_t():
  """Cohen's tables: 34 pairs show half a standard deviation with 0.81."""
  design = power.Design(34, variance=1.0)
  assert power.power(design, 0.5) == pytest.approx(0.8077, abs=1e-3)
  for j, share in ((5, 1 / 3), (3, 0.0), (12, 0.5)):
    design = power.Design(j, 0.04, share)
    error = math.sqrt((1 / j + share) * 0.04)
    bound = scipy.stats.t.ppf(0.975, j - 1)
    nct = scipy.stats.nct(j - 1, 0.2 / error)
    exact = nct.sf(bound) + nct.cdf(-bound)
    assert power.power(design, 0.2) == pytest.approx(exact, abs=2e-3)


def test_of_patients_alone_it_is_that_of_a_normal_variable():
  """1.960 and 0.842 standard errors."""
  design = power.Design(1, fixed=0.05**2)
  assert power.smallest(design) == pytest.approx(2.8016 * 0.05, abs=1e-4)
  # Of the first of five by Holm: 2.576 in place of 1.960.
  assert power.smallest(design, 0.01) == pytest.approx(3.4174 * 0.05, abs=1e-4)


@pytest.mark.parametrize("name", DESIGNS)
def test_without_a_difference_it_is_shown_as_often_as_it_may_be(name):
  limit = 0.05 + 1e-3
  assert power.power(DESIGNS[name], 0.0) <= limit


def test_intervals_of_compare_leave_out_0_in_80_of_100_runs():
  """Simulated with the intervals themselves, not with their formula."""
  rng, runs = np.random.default_rng(0), 4000

  def shown(found):
    return float(np.mean([one["low"] > 0 for one in found]))

  design = DESIGNS["folds"]
  delta = power.smallest(design)
  # Folds whose training sets overlap are alike: Nadeau and Bengio's variance
  # is right where their correlation is share / (1 + share).
  alike = design.share / (1 + design.share)
  total = design.variance / (1 - alike)
  common = rng.normal(0, math.sqrt(alike * total), (runs, 1))
  own = rng.normal(0, math.sqrt((1 - alike) * total), (runs, design.values))
  found = [
    compare.corrected_t(row, design.share) for row in delta + common + own
  ]
  assert shown(found) == pytest.approx(0.8, abs=0.025)

  design = DESIGNS["trainings"]
  delta = power.smallest(design)
  patients = rng.normal(0, math.sqrt(design.fixed), (runs, 1))
  own = rng.normal(0, math.sqrt(design.variance), (runs, design.values))
  found = [
    compare.over_trainings(row, design.fixed) for row in delta + patients + own
  ]
  assert shown(found) == pytest.approx(0.8, abs=0.025)


def test_the_variance_of_an_auc_is_that_of_hanley_and_mcneil():
  """By hand: Q1 = 2/3, Q2 = 0.71111, (0.16 + 1.04 + 2.77333) / 1600."""
  assert power.auc_variance(0.8, 40, 40) == pytest.approx(0.00248333, abs=1e-7)
  # Without any skill, nearly that of Mann and Whitney.
  null = 81 / (12 * 1600)
  assert power.auc_variance(0.5, 40, 40) == pytest.approx(null, rel=0.02)
  assert power.paired_variance(0.04, 0.04, 0.5) == pytest.approx(0.04)
  assert power.paired_variance(0.04, 0.01, 1.0) == pytest.approx(0.01)


def fields(**changes):
  config = ml_collections.ConfigDict({"data": {}})
  arm = {"config": config}
  return {
    "question": "Is a better than b?",
    "claim": "Nobody knows.",
    "data": {
      "phantoms": ("--source=phantom", "--cases=400", "--fractions=.5,.1,.4"),
      "scans": ("export", "--cases=80"),
    },
    "arms": {
      "a": {"title": "A", **arm},
      "b": {"title": "B", **arm},
      "link": {
        "title": "L",
        "data": "scans",
        "needs": {"classifier": "a", "segmenter": "b"},
        "measure": "linked",
      },
    },
    "metric": "roc_auc",
    "comparisons": (("a", "b"),),
  } | changes


def test_a_plan_over_seeds_by_hand():
  """160 tested, 80 with CAD; trainings 2 x 0.04^2, patients by Hanley."""
  made = plan.make_plan(fields(seeds=(0, 1, 2, 3)))
  assert power.tested(made, "a", "roc_auc") == (80, 80)
  found = power.design(made, "a", "b", "roc_auc")
  one = power.auc_variance(0.75, 80, 80)
  assert found == power.Design(4, pytest.approx(0.0032), 0.0, one)
  error = math.sqrt(0.0032 / 4 + one)
  assert found.error == pytest.approx(error)
  entry = power.expected(made, "a", "b", "roc_auc")
  assert entry["smallest"] == entry["smallest_holm"] == power.smallest(found)
  assert "4 seeds and 160 patients" in entry["source"]
  assert "sd trainings 0.04" in entry["source"]


def test_a_plan_over_folds_by_hand():
  """80 tested of 400 and 240 trained, two seeds of each fold averaged."""
  made = plan.make_plan(fields(folds=(0, 1, 2, 3, 4), seeds=(0, 1)))
  found = power.design(made, "a", "b", "roc_auc")
  variance = power.auc_variance(0.75, 40, 40) + 0.0032 / 2
  assert found == power.Design(5, pytest.approx(variance), pytest.approx(1 / 3))


def test_what_a_plan_assumes_replaces_the_defaults():
  made = plan.make_plan(
    fields(assumed={"roc_auc": {"level": 0.9, "sd_trainings": 0.0}})
  )
  found = power.design(made, "a", "b", "roc_auc")
  assert found.fixed == pytest.approx(power.auc_variance(0.9, 80, 80))
  unknown = fields(comparisons=(("a", "b", "brier"),))
  assert power.before(plan.make_plan(unknown))[0]["smallest"] is None


def test_lesions_are_of_patients_with_cad_on_the_tested_half():
  made = plan.make_plan(
    fields(comparisons=(("link/combined", "link/map", "lesions_hit"),))
  )
  assert power.tested(made, "link/map", "lesions_hit") == (20, 0)
  assert power.tested(made, "link/by_both", "roc_auc") == (20, 20)
  (found,) = power.before(made)
  assert found["smallest"] == pytest.approx(2.8016 * 0.3 / math.sqrt(20), 1e-4)
  # Nothing varies between trainings, as both lines are of the same ones.
  assert "both of the same trainings" in found["source"]
  assert "sd trainings" not in found["source"]


def test_more_trainings_than_a_plan_has_are_counted_and_cost_more():
  made = plan.load_plan("dimension", "small")
  asked = plan.dataclasses.replace(made, target=0.2, folds=(None,), seeds=(0,))
  found = power.enough(asked)
  assert not found["reached"]
  assert found["trainings"] > 1
  smaller = power.enough(plan.dataclasses.replace(asked, target=0.1))
  assert smaller["trainings"] * smaller["patients"] > (
    found["trainings"] * found["patients"]
  )
  each = power.training_cost(asked, 1)["h200_hours"]
  assert found["cost"]["h200_hours"] == pytest.approx(found["trainings"] * each)
  assert "an estimate, not run" in power.in_words(found)
  seeds = tuple(range(found["trainings"]))
  both = plan.dataclasses.replace(asked, seeds=seeds)
  assert power.enough(both)["reached"] == (
    found["patients"] == power.enough(both)["planned"]["patients"]
  )


def comparison(deltas, share):
  found = compare.corrected_t(np.array(deltas), share)
  return found | {
    "method": f"Nadeau-Bengio over {len(deltas)} folds",
    "n_values": len(deltas),
    "bootstrap_low": 0.0,
    "bootstrap_high": 0.1,
  }


def test_the_measured_one_depends_on_the_spread_alone():
  made = plan.make_plan(fields())
  found = power.measured(made, comparison([0.1, 0.2, 0.3], 0.5))
  moved = power.measured(made, comparison([0.5, 0.6, 0.7], 0.5))
  assert found["smallest"] == pytest.approx(moved["smallest"])
  by_hand = power.smallest(power.Design(3, 0.01, 0.5))
  assert found["smallest"] == pytest.approx(by_hand, rel=1e-5)
  nothing = comparison([0.1, 0.1, 0.1], 0.5)
  assert power.measured(made, nothing) is None


def test_trainings_and_patients_are_taken_apart_again():
  made = plan.make_plan(fields())
  deltas, z = np.array([0.1, 0.2, 0.15, 0.05]), 1.959964
  fixed = 0.03**2
  found = compare.over_trainings(deltas, fixed) | {
    "method": "t over 4 trainings and the patients",
    "n_values": 4,
    "bootstrap_low": -0.03 * z,
    "bootstrap_high": 0.03 * z,
  }
  by_hand = power.smallest(
    power.Design(4, float(deltas.var(ddof=1)), 0.0, fixed)
  )
  assert power.measured(made, found)["smallest"] == pytest.approx(
    by_hand, rel=1e-4
  )


def test_the_spread_between_trainings_is_that_of_the_committed_results():
  """Beyond what Hanley and McNeil's variance explains."""
  beyond = []
  for name, count in (
    *(("ablation", 40), ("balance", 40), ("dimension", 40)),
    ("sample_size", 116),
  ):
    result = json.loads((RESULTS / name / "results.json").read_text())
    for row in result["lines"]:
      entry = row["metrics"].get("roc_auc")
      if entry is None or "/" in row["line"] or row["line"] == "ce_75":
        continue  # One of the trainings of ce_75 failed.
      if 0.7 < entry["value"] < 0.95:
        values = [one["value"] for one in entry["cells"]]
        by_patients = power.auc_variance(entry["value"], count, count)
        beyond.append(np.var(values, ddof=1) - by_patients)
  assert len(beyond) >= 6
  found = math.sqrt(np.mean(beyond))
  assumed = power.ASSUMED["roc_auc"]["sd_trainings"]
  assert found == pytest.approx(assumed, abs=0.005)


def test_the_table_of_a_committed_plan_names_its_source():
  text = power.table(plan.load_plan("dimension", "small"))
  assert "3d less 2d, roc_auc: 0.150" in text
  assert "committed results, phantoms of edition 1" in text
  assert "nothing is compared" in power.table(
    plan.load_plan("protocol", "small")
  )
