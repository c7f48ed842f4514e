"""Does the link of classification and segmentation locate and decide better?

The paper's third claim: the two together locate the abnormality.

Command:

  cadjax experiment --plan=link --workdir=experiments/link
"""

from typing import Any

from configs.experiments import common


def get_plan(scale: str) -> dict[str, Any]:
  """Returns the plan at a scale, see `common`."""
  return {
    "question": (
      "Does the link of classifier and segmentation locate and decide better"
      " than each alone?"
    ),
    "claim": (
      "arXiv 2308.00009: Grad-CAM is not always on the coronary arteries;"
      " with Seg-Grad-CAM the two locate abnormalities. No localisation figure"
      " was found in it."
    ),
    "data": {
      "phantoms": common.phantoms(scale),
      "masks": common.masks(scale),
      "scans": common.scans(scale),
    },
    "arms": {
      "classifier": {
        "title": "the classifier on its own data",
        "config": common.classifier(scale),
      },
      "segmenter": {
        "title": "the segmenter on its own data",
        "config": common.segmenter(scale, "four", window=96),
        "data": "masks",
        "measure": "segments",
      },
      "link": {
        "title": "link",
        "data": "scans",
        "needs": {"classifier": "classifier", "segmenter": "segmenter"},
        "measure": "linked",
      },
    },
    "metric": "lesions_hit",
    "metrics": ("false_positives", "roc_auc", "accuracy", "dice"),
    "comparisons": (
      ("link/combined", "link/map"),
      ("link/combined", "link/vessel_map"),
      ("link/combined", "link/plaque"),
      ("link/combined", "link/chance"),
      ("link/by_both", "link/by_classifier", "roc_auc"),
      ("link/by_both", "link/by_segmentation", "roc_auc"),
    ),
    "limits": (
      "A lesion is hit by a finding of which half lies within 5 mm of its"
      " centreline, one to one, at the threshold that has one false positive a"
      " scan on other scans. One training each: the intervals are over"
      " patients. Where the classifier alone makes no error, no link can decide"
      " better."
    ),
  }
