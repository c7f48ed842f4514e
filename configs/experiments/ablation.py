"""What is each part of the classifier worth? Each is taken out.

Command:

  cadjax experiment --plan=ablation --workdir=experiments/ablation
"""

from typing import Any

from configs.experiments import common, external

POOL = {"clinical": ("--cases=1100", "--fractions=0.3,0.1,0.6")}


def get_plan(scale: str) -> dict[str, Any]:
  """Returns the plan at a scale, see `common`."""

  def config(ndim: int = 3, augment: bool = True, focal: bool = True):
    made = common.classifier(scale, ndim, monitor="roc_auc")
    with made.unlocked():
      if augment:
        made.augment = external.augment(scale, ndim)
      if not focal:
        made.loss = {"name": "cross_entropy"}
    return made

  started = {"needs": {"init_from": "masks_3d"}}
  arms = {
    f"masks_{ndim}d": {
      "title": f"pretraining on masks, {ndim}D",
      "config": common.pretraining(scale, ndim),
      "measure": "segments",
    }
    for ndim in (3, 2)
  }
  arms |= {
    "full": {
      "title": "3D, pretrained, augmented, focal loss",
      "config": config(),
      **started,
    },
    "2d": {
      "title": "without the third dimension",
      "config": config(2),
      "needs": {"init_from": "masks_2d"},
    },
    "no_pretraining": {
      "title": "without pretraining on masks",
      "config": config(),
    },
    "no_augment": {
      "title": "without augmentation",
      "config": config(augment=False),
      **started,
    },
    "no_focal": {
      "title": "cross-entropy in place of focal loss",
      "config": config(focal=False),
      **started,
    },
  }
  without = ["no_pretraining", "2d", "no_augment", "no_focal"]
  if scale == "tiny":
    without = without[:1]
    arms = {name: arms[name] for name in ("masks_3d", "full", *without)}
  return {
    "question": "What is each part of the classifier worth?",
    "claim": "The paper's first and third claims, part by part.",
    "data": {
      # At "clinical" the pool is what is trained on: pretraining sees it all.
      "phantoms": common.phantoms(scale, 400, 704, *POOL.get(scale, ())),
    },
    "folds": common.FEW_FOLDS[scale],
    **common.trainings(scale, 2),
    **common.aims(scale, common.TARGET_AUC),
    "arms": arms,
    "metric": "roc_auc",
    "metrics": ("balanced_accuracy", "brier"),
    "lines": ("full", *without),
    "comparisons": tuple(("full", arm) for arm in without),
    "limits": (
      "The link is taken out in the plan link, the masks in the plan prior."
    ),
  }
