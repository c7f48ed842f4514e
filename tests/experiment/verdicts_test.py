"""What an experiment about explanations answers, in sentences."""

import pytest

from cadjax.core import lookup
from cadjax.experiment import compare, plan, summary, verdicts
from cadjax.experiment.store import Store


def entry(value, low=None, high=None):
  return {"value": value, "low": low, "high": high, "n_patients": 30}


def make_result(**changes):
  """Grad-CAM is on the coronaries at one layer, and not at another."""
  good = {
    "rank_correlation": entry(0.2, 0.1, 0.3),
    "coronaries_lift": entry(4.0, 3.0, 5.0),
    "on_used": entry(0.9, 0.8, 1.0),
    "map_elsewhere": entry(0.1, 0.0, 0.2),
    "network_elsewhere": entry(0.0),
    "on_unused": entry(0.0),
  }
  bad = {
    "rank_correlation": entry(-0.1, -0.2, 0.0),
    "coronaries_lift": entry(0.8, 0.6, 1.1),
    "on_used": entry(0.2, 0.1, 0.3),
    "map_elsewhere": entry(0.3, 0.2, 0.4),
    "network_elsewhere": entry(0.5, 0.4, 0.6),
    "on_unused": entry(0.0),
  }
  best = {
    "rank_correlation": entry(0.7, 0.6, 0.8),
    "coronaries_lift": entry(9.0, 8.0, 9.5),
  }
  return {
    "verdict": "explanations",
    "lines": [
      {"line": "map/calls", "metrics": {"roc_auc": entry(0.9)}},
      {"line": "map/stage1.gradcam", "metrics": good},
      {"line": "map/stage4.gradcam", "metrics": bad},
      {"line": "map/stem.hirescam", "metrics": best},
    ],
  } | changes


def test_maps_are_ranked_and_grad_cam_is_answered():
  ranking, localised, stage1, stage4 = verdicts.sentences(make_result())
  best, last = ranking.split(" Last: ")
  assert best.index("hirescam at stem (0.70 [0.60, 0.80])") < best.index(
    "gradcam at stage1"
  )
  assert last == "gradcam at stage4 (-0.10 [-0.20, 0.00])"
  yes, no = localised.split("; ")
  assert yes.startswith("Grad-CAM is localised to the coronaries at stage1")
  assert no.startswith("is not shown to be localised")
  assert "stage4 (lift 0.80 [0.60, 1.10])" in no
  assert "The largest lift: hirescam at stem (9.00" in no
  # When it is not, who looks elsewhere.
  assert "Grad-CAM at stage1" in stage1
  assert "the map looks elsewhere in 0.10 [0.00, 0.20]" in stage1
  assert "looks elsewhere itself, in 0.50 [0.40, 0.60]" in stage4


def test_what_is_undefined_is_not_ranked():
  lines = [
    {
      "line": "map/stem.gradcam",
      "metrics": {
        "rank_correlation": entry(None),
        "coronaries_lift": entry(None),
      },
    }
  ]
  (told,) = verdicts.sentences(make_result(lines=lines))
  assert told.startswith("No map can be ranked")


def test_other_plans_have_no_verdict():
  assert verdicts.sentences({"lines": []}) == []
  assert verdicts.sentences({"verdict": "", "lines": []}) == []


def test_a_ranked_plan_has_its_best_line_first(tmp_path):
  store = Store(tmp_path)
  fields = {
    "question": "Which map?",
    "claim": "",
    "data": {"phantoms": ("--source=phantom",)},
    "arms": {"map": {"title": "map"}},
    "metric": "rank_correlation",
    "comparisons": (),
    "verdict": "explanations",
    "seeds": (0, 1),
  }
  values = {"stem.gradcam": 0.1, "stage1.gradcam": 0.9, "effects": None}
  for cell in plan.make_plan(fields).cells():
    store.folder(cell.name).mkdir(parents=True)
    entries = {
      name: [{"patient_id": "p", "rank_correlation": value}]
      if value is not None
      else [{"patient_id": "p", "removed": 1.0}]
      for name, value in values.items()
    }
    store.finish(cell.name, {"entries": entries, "sizes": [0, 0]})

  def first(ranked):
    made = plan.make_plan(fields | {"ranked": ranked, "metrics": ("removed",)})
    result = summary.summarise(made, store)
    assert len(result["lines"]) == 3
    assert result["answers"][0].startswith("The map agrees best")
    return result["lines"][0]["line"]

  assert first(ranked=False) == "map/stem.gradcam"
  assert first(ranked=True) == "map/stage1.gradcam"
  with pytest.raises(lookup.ConfigError, match="unknown verdict"):
    plan.make_plan(fields | {"verdict": "explanation"})


def test_rows_that_were_not_measured_are_not_undefined():
  """A measure of many passes is of a few cases; the others have no column."""
  rows = [{"patient_id": str(k), "lift": 1.0 + k} for k in range(4)]
  rows[0]["road"] = 2.0
  rows[1]["road"] = None
  found = compare.estimate(compare.Line({(None, 0): rows}), "road", draws=100)
  assert found["value"] == 2
  assert (found["n_values"], found["n_undefined"]) == (1, 1)
