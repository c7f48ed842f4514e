"""Which layer and method locate best, and does focal loss focus?

The paper's second claim, as numbers: where Grad-CAM looks at every stage, and
whether focal loss gives "a more focused heat map" than cross-entropy.

Command:

  cadjax experiment --plan=layers --workdir=experiments/layers
"""

from typing import Any

from configs.experiments import common

LAYERS = ("stem", "stage1", "stage2", "stage3", "stage4")


def get_plan(scale: str) -> dict[str, Any]:
  """Returns the plan at a scale, see `common`."""
  plain = common.classifier(scale)
  with plain.unlocked():
    plain.loss = {"name": "cross_entropy"}
  options = {
    "cases": {"tiny": 4, "small": 40, "clinical": 60, "paper": None}[scale],
    "rolls": 4,
    "structures": ("coronaries", "plaque"),
  }
  return {
    "question": (
      "Which layer and method locate the disease, and does focal loss focus the"
      " heat map?"
    ),
    "claim": (
      "arXiv 2308.00009: Grad-CAM at several layers, not always on the"
      " coronaries; focal loss gives a more focused heat map. No measurement"
      " of either was found in it."
    ),
    "data": {"phantoms": common.phantoms(scale)},
    # Few, for measuring takes longer than training.
    "folds": common.FEW_FOLDS[scale],
    **common.trainings(scale, 8),
    # As much as chance. The spreads are about those of Grad-CAM on the
    # coronaries in the committed results; on plaque, at the stem, they are ten
    # times as large, and so are the differences.
    **common.aims(scale, 1.0),
    "assumed": {"lift_0mm": {"sd_patients": 1.0, "sd_trainings": 0.4}},
    "arms": {
      "focal": {
        "title": "focal",
        "config": common.classifier(scale),
        "measure": "explanation",
        "options": options,
      },
      "ce": {
        "title": "cross-entropy",
        "config": plain,
        "measure": "explanation",
        "options": options,
      },
    },
    "metric": "lift_0mm",
    "metrics": ("pointing", "gini"),
    "comparisons": (
      ("focal/stem.hirescam.plaque", "focal/stage4.gradcam.plaque"),
      ("focal/stage1.hirescam.plaque", "focal/stage4.gradcam.plaque"),
      *(
        (f"focal/{layer}.gradcam.coronaries", f"ce/{layer}.gradcam.coronaries")
        for layer in LAYERS
      ),
      (
        "focal/stage4.gradcam.coronaries",
        "ce/stage4.gradcam.coronaries",
        "gini",
      ),
    ),
    "limits": (
      "Lift is the map's energy in the structure over the structure's share of"
      " the volume: 1 is chance. A map without any energy has no lift, and"
      " its patient leaves the line and the comparisons."
    ),
  }
