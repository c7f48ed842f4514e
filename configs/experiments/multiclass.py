"""2D with two classes or 3D with four: which locates and classifies better?

The paper's second open question. Both segmenters join the same classifier.

Command:

  cadjax experiment --plan=multiclass --workdir=experiments/multiclass
"""

from typing import Any

from configs.experiments import common


def get_plan(scale: str) -> dict[str, Any]:
  """Returns the plan at a scale, see `common`."""
  arms = {
    "classifier": {
      "title": "the classifier on its own data",
      "config": common.classifier(scale),
    },
  }
  for name, title, classes, ndim in (
    ("two_2d", "2D, aorta and coronaries", "aorta_coronaries", 2),
    ("two_3d", "3D, aorta and coronaries", "aorta_coronaries", 3),
    ("four_3d", "3D, four classes", "four", 3),
  ):
    arms[name] = {
      "title": title,
      "config": common.segmenter(scale, classes, ndim, window=96),
      "data": "masks",
      "measure": "segments",
    }
    arms[f"link_{name}"] = {
      "title": f"linked to {title}",
      "data": "scans",
      "needs": {"classifier": "classifier", "segmenter": name},
      "measure": "linked",
    }
  return {
    "question": (
      "Do four classes in 3D locate and classify better than two in 2D?"
    ),
    "claim": (
      "Open question of arXiv 2308.00009: 3D segmentation of aorta, coronaries,"
      " stable and unstable plaque, for exact localisation."
    ),
    "data": {
      "phantoms": common.phantoms(scale),
      "masks": common.masks(scale),
      "scans": common.scans(scale),
    },
    **common.aims(scale, common.TARGET_HIT),
    "arms": arms,
    "metric": "lesions_hit",
    "metrics": ("false_positives", "roc_auc", "accuracy", "dice"),
    "comparisons": (
      ("link_four_3d/combined", "link_two_2d/combined"),
      ("link_four_3d/combined", "link_two_3d/combined"),
      ("link_four_3d/by_both", "link_two_2d/by_both", "roc_auc"),
      (
        "link_four_3d/by_segmentation",
        "link_two_2d/by_segmentation",
        "roc_auc",
      ),
      ("two_3d/coronaries", "two_2d/coronaries", "dice"),
      ("two_3d/aorta", "two_2d/aorta", "dice"),
    ),
    "limits": (
      "One training each: the intervals are over patients. In two classes no"
      " plaque is segmented, so only calibre tells of disease. Where the"
      " classifier alone makes no error, no link can decide better."
    ),
  }
