"""How many subjects does it take?

Command:

  cadjax experiment --plan=sample_size --workdir=experiments/sample_size
"""

from typing import Any

from configs.experiments import common

SIZES = (22, 44, 88, 176, 352, 704)
# Fewer patients are seen more often, as far as validation's cost allows.
EPOCHS = {22: 60, 44: 60, 88: 40, 176: 20, 352: 14, 704: 10}
# Shared with protocol.py.
FRACTIONS = "--fractions=0.704,0.064,0.232"


def get_plan(scale: str) -> dict[str, Any]:
  """Returns the plan at a scale, see `common`."""
  clinical = scale == "clinical"
  sizes = (6, 12) if scale == "tiny" else SIZES
  arms = {}
  for size in sizes:
    config = common.classifier(scale, monitor="roc_auc")
    config.data.subset.patients = size
    if scale == "tiny":
      config.data.batch_size = 2
    else:
      config.epochs = config.patience = EPOCHS[size]
    arms[f"n{size}"] = {"title": f"{size} subjects", "config": config}
  return {
    "question": "How many training subjects does the classifier need?",
    "claim": "arXiv 2308.00009 had 88 subjects in all.",
    "data": {
      "phantoms": common.phantoms(scale, 1000, 1000, FRACTIONS),
    },
    "seeds": (0, 1) if scale == "tiny" else (0, 1, 2),
    **common.trainings(scale, 4),
    **common.aims(scale, common.TARGET_AUC),
    "arms": arms,
    "metric": "roc_auc",
    "metrics": ("balanced_accuracy", "brier"),
    "comparisons": tuple(
      (f"n{more}", f"n{fewer}")
      for fewer, more in zip(sizes, sizes[1:], strict=False)
    ),
    "limits": (
      "Validation and test sets are the same for all sizes, and larger than a"
      " study of 22 subjects would have. Seeds draw the subjects again"
      + ("" if clinical else ", except the 704, which are all there are")
      + ". A few trainings of a size show only large steps from one size to"
      " the next."
    ),
  }
