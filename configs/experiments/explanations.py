"""Which explanation shows what the network uses, and does it look elsewhere?

The paper's second claim, answered with what no data set of patients has: the
same phantom without a lesion. Every method at every layer, by every measure,
ranked by how well the map agrees with what each lesion does to the log odds;
over patients and five trainings.

Command:

  cadjax experiment --plan=explanations --workdir=experiments/explanations
"""

from typing import Any

from configs.experiments import common

# One gradient gives all maps of the first; the others take many passes a map,
# up to 4 s of one core at 64x64x64.
QUICK = (
  *("gradcam", "hirescam", "xrescam", "layercam", "gradcam++"),
  *("respondcam", "saliency_tubes", "gradient_x_input", "guided_gradcam"),
)
SLOW = (
  *("integrated_gradients", "smoothgrad", "occlusion"),
  *("scorecam", "ablationcam"),
)


def get_plan(scale: str) -> dict[str, Any]:
  """Returns the plan at a scale, see `common`."""
  tiny = scale == "tiny"
  options = {
    "methods": ("gradcam", "hirescam", "gradient_x_input") if tiny else QUICK,
    "measures": ("all",),
    "cases": 2 if tiny else 40,
    "sanity": 1 if tiny else 4,
    "twins": 1 if tiny else 20,
    "rolls": 1,
    "effort": {"near": 4, "copies": 4, "sets": 8, "boxes": 32},
  }
  if tiny:
    options["effort"] = {
      **{"road_shares": (0.5,), "near": 1, "copies": 2},
      **{"sets": 2, "boxes": 2},
    }
  slow = options | {
    "network": "network",
    "methods": ("scorecam",) if tiny else SLOW,
    "measures": (
      *("road", "infidelity", "sensitivity_n", "completeness"),
      *("efficient_mprt", "random_logit"),
    ),
    "cases": 2 if tiny else 6,
    "sanity": 0 if tiny else 2,
    "twins": 0 if tiny else 3,
  }
  return {
    "question": (
      "Which explanation shows what the network uses, and when Grad-CAM is not"
      " on the coronaries, does the network look elsewhere or does the map?"
    ),
    "claim": (
      "arXiv 2308.00009: Grad-CAM is not always localised to the coronary"
      " arteries. When, at which layer, and whether the network or the map is"
      " to blame was not measured."
    ),
    "data": {"phantoms": common.phantoms(scale)},
    "seeds": (0,) if tiny else (0, 1, 2, 3, 4),
    "arms": {
      "map": {
        "title": "map",
        "config": common.classifier(scale),
        "measure": "explained",
        "options": options,
      },
      "slow": {
        "title": "slow map",
        "needs": {"network": "map"},
        "measure": "explained",
        "options": slow,
      },
    },
    "metric": "rank_correlation",
    "metrics": (
      *("hit_used", "hit_unused", "gone_used", "gone_unused", "gone_near"),
      *("on_used", "map_elsewhere", "network_elsewhere", "on_unused"),
      *("shown_gain", "coronaries_lift", "coronaries_pointing"),
      *("plaque_lift", "plaque_pointing"),
      *("road", "infidelity_scaled", "sensitivity_n", "completeness_error"),
      *("max_sensitivity", "relative_input_stability"),
      *("smooth_mprt_spearman", "efficient_mprt", "random_logit_spearman"),
      *("plaque_mask_iou", "plaque_box_found", "hit", "iou"),
      *("removed", "added", "used", "roc_auc"),
    ),
    "comparisons": (
      ("map/stage4.hirescam", "map/stage4.gradcam"),
      ("map/stage1.hirescam", "map/stage4.gradcam"),
      ("map/stage1.gradcam", "map/stage4.gradcam"),
      ("map/input.gradient_x_input", "map/stage4.gradcam"),
    ),
    "verdict": "explanations",
    "ranked": True,
    "limits": (
      "Effects are of phantoms drawn again without a lesion. Slow maps are of"
      " few scans. A lesion is used where the log odds fall by 0.5 without it;"
      " a map hits it where it reaches half of its maximum within 5 mm. Guided"
      " Grad-CAM fails the sanity check by its nature and is shown to be"
      " compared with."
    ),
  }
