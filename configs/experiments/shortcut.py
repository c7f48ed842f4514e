"""Does anything but the coronary arteries give the label away?

Phantoms with a tube of fat of 7 mm radius painted along every coronary artery
have no visible disease. A classifier must not beat chance on them, whether it
was trained on such phantoms or on whole ones: an AUC whose interval contains
0.5.

Command:

  cadjax experiment --plan=shortcut --workdir=experiments/shortcut
"""

from typing import Any

from configs.experiments import common

_HIDDEN = "--scanner=hidden_mm=7"


def get_plan(scale: str) -> dict[str, Any]:
  """Returns the plan at a scale, see `common`."""
  return {
    "question": "Does anything but the coronary arteries give the label away?",
    "claim": (
      "arXiv 2308.00009 does not say what else differs between its normal and"
      " its diseased scans."
    ),
    "data": {
      "phantoms": common.phantoms(scale),
      "hidden": common.phantoms(
        scale,
        600,
        800,
        *(_HIDDEN, "--seed=12", "--fractions=0.5,0.16,0.34"),
        clinical=1200,
      ),
      # All of them are tested.
      "hidden_test": common.phantoms(
        scale, 200, 200, _HIDDEN, "--seed=13", clinical=400
      ),
    },
    "seeds": (0,),
    "arms": {
      "hidden": {
        "title": "trained and tested with hidden arteries",
        "config": common.classifier(scale),
        "data": "hidden",
      },
      "whole": {
        "title": "trained on whole phantoms",
        "config": common.classifier(scale),
        "measure": "external",
        "measured_on": ("hidden_test",),
      },
    },
    "metric": "roc_auc",
    "metrics": ("balanced_accuracy",),
    "lines": ("hidden", "whole/own", "whole/hidden_test"),
    "comparisons": (),
    "limits": "0.5 is chance; 200 or more phantoms are tested in each line.",
  }
