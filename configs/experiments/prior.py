"""Do masks of the vessels, as prior knowledge, help the classifier?

The paper's first open question. The predicted masks come from a U-Net that
was trained on other phantoms.

Command:

  cadjax experiment --plan=prior --workdir=experiments/prior
"""

from typing import Any

from configs.experiments import common


def get_plan(scale: str) -> dict[str, Any]:
  """Returns the plan at a scale, see `common`."""
  arms = {
    "segmenter": {
      "title": "the U-Net of the predicted masks",
      "config": common.segmenter(scale, "aorta_coronaries"),
      "data": "others",
      "measure": "masks",
      "measured_on": ("phantoms",),
      "options": {"predict_on": "phantoms"},
      "shared": True,
    },
    "none": {
      "title": "volume alone",
      "config": common.classifier(scale, monitor="roc_auc"),
    },
  }
  for use, what in (
    ("channels", "masks as channels"),
    ("region", "region around the coronaries"),
  ):
    for masks in ("true", "predicted"):
      config = common.classifier(scale, monitor="roc_auc")
      config.data.prior.use = use
      arms[f"{use}_{masks}"] = {
        "title": f"{what}, {masks}",
        "config": config,
        "needs": {"masks": "segmenter"} if masks == "predicted" else {},
      }
  return {
    "question": "Do vessel masks as prior knowledge help the classifier?",
    "claim": (
      "Open question of arXiv 2308.00009: aorta and coronary masks as an input"
      " of the classifier."
    ),
    "data": {
      "phantoms": common.phantoms(scale),
      "others": common.phantoms(
        scale, 80, 176, "--seed=7", "--fractions=0.7,0.1,0.2", clinical=80
      ),
    },
    "folds": common.FEW_FOLDS[scale],
    **common.trainings(scale, 3),
    **common.aims(scale, common.TARGET_AUC),
    "arms": arms,
    "metric": "roc_auc",
    "metrics": ("balanced_accuracy", "brier", "dice"),
    "comparisons": tuple(
      (arm, "none") for arm in arms if arm not in ("none", "segmenter")
    ),
    "limits": (
      "True masks include the plaque, merged with the lumen: a widened vessel"
      " may give disease away, so they are an upper bound."
    ),
  }
