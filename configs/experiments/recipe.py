"""Which recipe trains without failures?

Twenty trainings of each recipe of `common`, on seeds that no other plan has,
alone and in four ensembles of five.

Command (about an hour of two cores for each arm):

  cadjax experiment --plan=recipe --scale=clinical
    --workdir=experiments/clinical_recipe --data=experiments/data
"""

from typing import Any

from configs.experiments import common

# Not 0 to 19, which the other plans use.
SEEDS = tuple(range(100, 120))


def get_plan(scale: str) -> dict[str, Any]:
  """Returns the plan at a scale, see `common`."""
  titles = {
    "plain": "as configs/demo.py",
    "robust": "long warm-up, lower rate, averaged weights",
    "group": "the same with group norm",
  }
  return {
    "question": "How many of twenty trainings fail, by recipe?",
    "claim": "arXiv 2308.00009 does not say how often it trained.",
    "data": {"phantoms": common.phantoms(scale)},
    "seeds": SEEDS[:1] if scale == "tiny" else SEEDS,
    "arms": {
      name: {
        "title": title,
        "config": common.classifier(scale, monitor="roc_auc", recipe=name),
      }
      for name, title in titles.items()
    },
    "metric": "roc_auc",
    "metrics": ("balanced_accuracy", "brier"),
    "comparisons": (("robust", "plain"), ("group", "robust")),
    "ensembles": {} if scale == "tiny" else dict.fromkeys(titles, 5),
    "limits": "At the scale small all seeds train on the same subjects; at the"
    " scale clinical the members of an ensemble do not, so that it has seen"
    " more subjects than a training alone.",
  }
