"""Does the link of classification and segmentation locate and decide better?

The paper's third claim: the two together locate the abnormality.

Command:

  cadjax experiment --plan=link --workdir=experiments/link
"""

from typing import Any

from configs.experiments import common


def get_plan(scale: str) -> dict[str, Any]:
  """Returns the plan at a scale, see `common`."""
  reader = ()
  if scale == "clinical":
    # The reader study: the list of findings against the classifier alone, at
    # so many false positives a scan; at 1 it is lesions_hit.
    reader = tuple(
      ("link/combined", "link/map", metric)
      for metric in (
        *("lesions_hit_at_0.5", "lesions_hit_at_2"),
        *("vessels_hit_at_0.5", "vessels_hit_at_1", "vessels_hit_at_2"),
      )
    )
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
    "metrics": (
      *("false_positives", "roc_auc", "accuracy", "dice"),
      *(metric for *_, metric in reader),
    ),
    **common.trainings(scale, 4),
    **common.aims(scale, common.TARGET_HIT),
    "comparisons": (
      ("link/combined", "link/map"),
      ("link/combined", "link/vessel_map"),
      ("link/combined", "link/plaque"),
      ("link/combined", "link/chance"),
      ("link/by_both", "link/by_classifier", "roc_auc"),
      ("link/by_both", "link/by_segmentation", "roc_auc"),
      *reader,
    ),
    "limits": (
      "A lesion is hit by a finding of which half lies within 5 mm of its"
      " centreline, one to one, at the threshold that has one false positive a"
      " scan on other scans"
      + (
        ", or the number that its name says."
        if reader
        else ". One training each: the intervals are over patients."
      )
      + " Where the classifier alone makes no error, no link can decide"
      " better."
    ),
  }
