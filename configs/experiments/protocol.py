"""What accuracies does the paper's protocol report by chance?

The paper had 88 subjects, 14 of them (by its rates) in the test set. Here the
design is repeated 200 times: 20 trainings on 60 subjects each, every one
tested on the same 10 separate groups of 14.

Command:

  cadjax experiment --plan=protocol --workdir=experiments/protocol
"""

from typing import Any

from configs.experiments import common, sample_size


def get_plan(scale: str) -> dict[str, Any]:
  """Returns the plan at a scale, see `common`."""
  tiny = scale == "tiny"
  config = common.classifier(scale, monitor="roc_auc")
  config.data.subset.patients = 8 if tiny else 60
  if not tiny:
    config.epochs = config.patience = 40
  options = {"tested": 4 if tiny else 14, "reports": 1 if tiny else 10}
  return {
    "question": (
      "How far do the accuracies spread that 14 tested subjects report?"
    ),
    "claim": (
      "arXiv 2308.00009 reports a test accuracy of 71.43 % in 3D; its rates"
      " imply 14 tested subjects of 88."
    ),
    "data": {
      "phantoms": common.phantoms(scale, 1000, 1000, sample_size.FRACTIONS),
    },
    "seeds": tuple(range(2 if tiny else 20)),
    "arms": {
      "3d": {
        "title": "3D, 60 training subjects, 14 tested",
        "config": config,
        "measure": "protocol",
        "options": options,
      },
    },
    "metric": "reported_accuracy",
    "metrics": ("reported_roc_auc",),
    "comparisons": (),
    "limits": (
      "The interval is of the mean; the middle 95 % is what one study might"
      " report. All trainings are tested on the same 10 groups and validated on"
      " the same 64 subjects, where one study would have 14."
    ),
  }
