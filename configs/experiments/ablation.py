"""What is each part of the classifier worth? Each is taken out.

Command:

  python -m cadjax.experiment --plan=configs/experiments/ablation.py \
    --workdir=experiments/ablation
"""

from typing import Any

from configs.experiments import common, external


def get_plan(scale: str) -> dict[str, Any]:
  """Returns the plan at a scale, see `common`."""

  def config(ndim: int = 3, augment: bool = True, focal: bool = True):
    made = common.classifier(scale, ndim)
    with made.unlocked():
      if augment:
        made.augment = external.AUGMENT
      if not focal:
        made.loss = {"name": "cross_entropy"}
    return made

  arms = {
    "full": {"title": "3D, augmented, focal loss", "config": config()},
    "2d": {"title": "without the third dimension", "config": config(2)},
    "no_augment": {
      "title": "without augmentation",
      "config": config(augment=False),
    },
    "no_focal": {
      "title": "cross-entropy in place of focal loss",
      "config": config(focal=False),
    },
  }
  return {
    "question": "What is each part of the classifier worth?",
    "claim": "The paper's first and third claims, part by part.",
    "data": {"phantoms": common.phantoms(scale)},
    "folds": common.FOLDS[scale],
    "arms": arms,
    "metric": "roc_auc",
    "metrics": ("balanced_accuracy", "brier"),
    "comparisons": tuple(("full", arm) for arm in arms if arm != "full"),
    "limits": (
      "The link is taken out in the plan link, the masks in the plan prior."
    ),
  }
