"""Balanced or unbalanced training data, and which loss copes with it?

The paper's third open question. All arms train on as many patients; one test
set is balanced, the other has the 25 % with CAD of a clinic.

Command:

  cadjax experiment --plan=balance --workdir=experiments/balance
"""

from typing import Any

from configs.experiments import common

PATIENTS = {"tiny": 8, "small": 160, "clinical": 280, "paper": 280}
SHARES = {"25": 0.25, "50": 0.5, "75": 0.75}


def get_plan(scale: str) -> dict[str, Any]:
  """Returns the plan at a scale, see `common`."""
  arms = {}
  for percent, share in SHARES.items():
    for loss, title in (
      ("focal", "focal"),
      ("weighted", "weighted cross-entropy"),
      ("ce", "cross-entropy"),
    ):
      if (loss, percent) == ("weighted", "50"):
        continue  # It is the plain one: both classes have the same weight.
      config = common.classifier(scale, monitor="roc_auc")
      config.data.subset.patients = PATIENTS[scale]
      config.data.subset.cad_fraction = share
      with config.unlocked():
        if loss != "focal":
          config.loss = {"name": "cross_entropy"}
        if loss == "weighted":
          # Each class weighs as much as the other in the training set.
          config.loss.weights = (0.5 / (1 - share), 0.5 / share)
      arms[f"{loss}_{percent}"] = {
        "title": f"{title}, {percent} % CAD",
        "config": config,
        "options": {"natural": 0.25},
      }
  return {
    "question": (
      "Balanced or unbalanced training data, and which loss copes with it?"
    ),
    "claim": (
      "Open question of arXiv 2308.00009: balanced against unbalanced training"
      " data. Its own 88 subjects were 44 and 44, with focal loss."
    ),
    "data": {"phantoms": common.phantoms(scale)},
    "folds": common.FEW_FOLDS[scale],
    **common.trainings(scale, 3),
    **common.aims(scale, common.TARGET_AUC),
    "arms": arms,
    "metric": "roc_auc",
    "metrics": (
      "balanced_accuracy",
      "recall",
      "specificity",
      "calibration_slope",
      "calibration_intercept",
      "brier",
    ),
    "lines": tuple(arms),
    "comparisons": (
      *(
        (balanced, f"{loss}_{other}")
        for loss, balanced in (
          ("focal", "focal_50"),
          ("weighted", "ce_50"),
          ("ce", "ce_50"),
        )
        for other in ("25", "75")
      ),
      *(
        (f"{loss}_{percent}", f"ce_{percent}")
        for percent in ("25", "75")
        for loss in ("focal", "weighted")
      ),
      ("focal_50/natural", "focal_25/natural", "calibration_intercept"),
      ("ce_50/natural", "ce_25/natural", "calibration_intercept"),
    ),
    "limits": (
      "Threshold and temperature come from a balanced validation fold in all"
      " arms. With 50 % CAD, weighted cross-entropy is cross-entropy."
    ),
  }
