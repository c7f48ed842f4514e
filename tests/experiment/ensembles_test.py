"""Ensembles of trainings, by hand and against what their members can do."""

import numpy as np
import pytest
import scipy.special

from cadjax.core import lookup
from cadjax.experiment import compare, page, plan, summary
from cadjax.experiment.compare import Line
from cadjax.experiment.ensembles import ensemble
from cadjax.experiment.store import Store
from data_prep.errors import UserError


def fields(**changes):
  return {
    "question": "Do ensembles help?",
    "claim": "Nobody knows.",
    "data": {"phantoms": ("--source=phantom", "--cases=30")},
    "arms": {"a": {"title": "A"}},
    "metric": "roc_auc",
    "seeds": (0, 1, 2, 3),
    "comparisons": (),
  } | changes


def row(name, label, probability, threshold=0.5):
  return {
    "patient_id": name,
    "label": label,
    "probability": probability,
    "threshold": threshold,
  }


def test_log_odds_are_averaged_whatever_the_order_of_the_patients():
  one = [row("a", 0, 0.2, 0.5), row("b", 1, 0.9, 0.5)]
  other = [row("b", 1, 0.5, 0.8), row("a", 0, 0.2, 0.8)]
  made = ensemble(Line({(None, 3): one, (None, 1): other}), 2)
  (rows,) = made.rows.values()
  assert list(made.rows) == [(None, 1)]
  assert [(r["patient_id"], r["label"]) for r in rows] == [("a", 0), ("b", 1)]
  # Odds of 9 and 1 have a geometric mean of 3; so have 1 and 4 one of 2.
  assert [r["probability"] for r in rows] == pytest.approx([0.2, 0.75])
  assert [r["threshold"] for r in rows] == pytest.approx([2 / 3] * 2)


def test_seeds_of_a_fold_are_grouped_and_the_rest_is_left_out():
  rows = [row("a", 0, 0.5), row("b", 1, 0.5)]
  keys = [(fold, seed) for fold in (0, 1) for seed in range(5)]
  line = Line(
    dict.fromkeys(keys, rows),
    {key: 10 * key[0] + key[1] for key in keys},
    frozenset({(0, 0), (0, 1), (0, 2), (1, 3)}),
  )
  made = ensemble(line, 2)
  assert list(made.rows) == [(0, 0), (0, 2), (1, 0), (1, 2)]
  assert made.trained == {(0, 0): 0, (0, 2): 2, (1, 0): 10, (1, 2): 12}
  # One good member is enough to have learned something.
  assert made.failed == {(0, 0)}
  assert not ensemble(line, 6).rows


def test_one_failed_member_of_five_hardly_matters():
  rng = np.random.default_rng(0)
  labels = np.arange(400) % 2

  def cell(signal):
    odds = signal * (labels - 0.5) + rng.normal(size=400)
    probs = scipy.special.expit(odds)
    names = [f"p{k}" for k in range(400)]
    return [row(*one) for one in zip(names, labels, probs, strict=True)]

  members = {(None, k): cell(0.0 if k == 2 else 1.5) for k in range(5)}
  line = Line(members)
  alone = compare.estimate(line, "roc_auc", draws=50)
  aucs = [one["value"] for one in alone["cells"]]
  together = compare.estimate(ensemble(line, 5), "roc_auc", draws=50)["value"]
  assert aucs[2] < 0.6
  assert together > max(aucs)
  # Members without knowledge make none together.
  chance = Line({(None, k): cell(0.0) for k in range(5)})
  found = compare.estimate(ensemble(chance, 5), "roc_auc", draws=50)["value"]
  assert found == pytest.approx(0.5, abs=0.08)


def test_what_makes_no_ensemble_is_refused():
  values = Line({(None, k): [{"patient_id": "a", "dice": 1}] for k in (0, 1)})
  with pytest.raises(UserError, match="only calls"):
    ensemble(values, 2)
  one, other = [row("a", 0, 0.5)], [row("b", 0, 0.5)]
  with pytest.raises(UserError, match="other patients"):
    ensemble(Line({(None, 0): one, (None, 1): other}), 2)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"ensembles": {"none": 2}}, "arm in an ensemble"),
    ({"ensembles": {"a": 1}}, "ensembles of 1 of the arm 'a'"),
    ({"ensembles": {"a": 5}}, "'a', which has 4 seeds"),
    ({"ensembles": {"shared": 2}}, "'shared': its cells must have"),
    ({"ensembles": {"maps": 2}}, "'maps': its cells must have"),
    (
      {"ensembles": {"a": 2}, "comparisons": (("a/ensembles of 2", "a"),)},
      "cannot be compared",
    ),
  ],
)
def test_ensembles_that_cannot_be_are_refused(changes, message):
  arms = {
    "a": {"title": "A"},
    "shared": {"title": "S", "shared": True},
    "maps": {"title": "M", "measure": "masks"},
  }
  with pytest.raises(lookup.ConfigError, match=message):
    plan.make_plan(fields(arms=arms, **changes))


def test_a_plan_shows_its_ensembles(tmp_path):
  made = plan.make_plan(fields(ensembles={"a": 2}))
  store = Store(tmp_path)
  for cell in made.cells():
    seed = cell.seed
    rows = [row(f"p{k}", k % 2, 0.3 + 0.4 * ((k + seed) % 2)) for k in range(8)]
    store.folder(cell.name).mkdir(parents=True)
    failed = {"failed": seed < 3, "roc_auc": 0.5, "least_auc": 0.6}
    store.finish(
      cell.name,
      {"entries": {"": rows}, "sizes": [9, 1, 1], "training": failed},
    )
  lines = summary.collect(made, store)
  assert list(lines["a/ensembles of 2"].rows) == [(None, 0), (None, 2)]
  # Seeds 0 and 2 are right about everybody, 1 and 3 about nobody.
  probs = [r["probability"] for r in lines["a/ensembles of 2"].rows[None, 0]]
  assert probs == pytest.approx([0.5] * 8)

  result = summary.summarise(made, store)
  alone, together = result["lines"]
  assert (alone["title"], together["title"]) == ("A", "A, ensembles of 2")
  assert summary.failures(alone) == "3 of 4 trainings failed"
  said = "in 1 of 2 ensembles all trainings failed"
  assert summary.failures(together) == said
  assert together["metrics"]["roc_auc"]["value"] == pytest.approx(0.5)
  assert said in page.text(result)
