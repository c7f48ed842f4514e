"""Does a 3D ResNet beat a 2D one? The paper's first claim.

Command:

  cadjax experiment --plan=dimension --workdir=experiments/dimension
"""

from typing import Any

from configs.experiments import common


def get_plan(scale: str) -> dict[str, Any]:
  """Returns the plan at a scale, see `common`."""
  return {
    "question": "Does a 3D ResNet classify better than a 2D one?",
    "claim": (
      "arXiv 2308.00009 reports a test accuracy of 71.43 % in 3D, 23.65 points"
      " over 2D; its rates imply 14 tested subjects, and 2D counted on slices."
      " The abstract of its version 2 claims 21.43 points, which are 3 of 14"
      " subjects."
    ),
    "data": {"phantoms": common.phantoms(scale)},
    "folds": (0, 1) if scale == "tiny" else common.FOLDS[scale],
    **common.trainings(scale, 12),
    **common.aims(scale, common.TARGET_AUC),
    "arms": {
      "3d": {
        "title": "3D, whole volume",
        "config": common.classifier(scale, monitor="roc_auc"),
      },
      "2d": {
        "title": "2D, mean of the slices",
        "config": common.classifier(scale, ndim=2, monitor="roc_auc"),
        "options": {"slices": True},
      },
    },
    "metric": "roc_auc",
    "metrics": ("balanced_accuracy", "recall", "specificity", "brier"),
    "comparisons": (
      ("3d", "2d"),
      ("3d", "2d", "balanced_accuracy"),
    ),
    "limits": {
      "small": (
        "At this scale a shallow network sees 2 mm voxels and dense plaques;"
        " how much 3D gains on patients it cannot tell."
      ),
      "clinical": (
        "At this scale a shallow network sees 2 mm voxels, which hide most of"
        " what a narrowing is; how much 3D gains on patients it cannot tell."
      ),
    }.get(scale, ""),
  }
