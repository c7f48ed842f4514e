"""How much is lost on another scanner and population, and what wins it back?

Command:

  cadjax experiment --plan=external --workdir=experiments/external
"""

from typing import Any

from configs.experiments import common

# What is other there, each beyond or at the end of what training has seen.
OTHERS = {
  "kernel": ("--scanner=blur_mm=0.9",),
  "noise": ("--scanner=noise_hu=70,grain_mm=0.9",),
  "contrast": ("--scanner=contrast_hu=230,right_heart=1.3",),
  "body": ("--population=body_scale=1.2,fat_mm=50",),
  "dominance": ("--population=dominance=left",),
  "arrhythmia": ("--scanner=motion_mm=3",),
}


def augment(scale: str, ndim: int = 3) -> dict[str, dict[str, Any]]:
  """Returns `config.augment` at a scale, of volumes or of slices."""
  spatial = {"rotation_degrees": 8.0, "scale": 0.1, "translation": 0.05}
  if scale == "paper":
    # About, as its grid takes in the whole field of view; elsewhere voxels are
    # as long as they are wide.
    spatial["spacing_mm"] = (0.55, 1.5, 1.5)[-ndim:]
  return {
    "spatial": spatial,
    "blur": {"sigma": 0.8},
    "noise": {"sigma": 0.05},
    "intensity": {"shift": 0.1, "scale": 0.2},
  }


def get_plan(scale: str) -> dict[str, Any]:
  """Returns the plan at a scale, see `common`."""
  others = {"tiny": ("noise",)}.get(scale, tuple(OTHERS))
  augmented = common.classifier(scale)
  with augmented.unlocked():
    augmented.augment = augment(scale)
  shared = {
    "measure": "external",
    "measured_on": others,
    "options": {"adapt": True},
  }
  entries = [f"{name}{how}" for name in others for how in ("", ".adapted")]
  return {
    "question": (
      "How much is lost on other scanners and patients, and what wins it back?"
    ),
    "claim": ("arXiv 2308.00009 has no external validation."),
    "data": {"phantoms": common.phantoms(scale)}
    | {
      name: common.phantoms(
        scale, 100, 200, "--seed=11", *OTHERS[name], clinical=300
      )
      for name in others
    },
    "seeds": (0, 1),
    **common.trainings(scale, 5),
    **common.aims(scale, common.TARGET_AUC),
    "arms": {
      "plain": {
        "title": "plain",
        "config": common.classifier(scale),
        **shared,
      },
      "augmented": {
        "title": "augmented",
        "config": augmented,
        **shared,
      },
    },
    "metric": "roc_auc",
    "metrics": (
      "balanced_accuracy",
      "calibration_slope",
      "calibration_intercept",
    ),
    "lines": tuple(
      f"{arm}/{entry}"
      for arm in ("plain", "augmented")
      for entry in ("own", *entries)
    ),
    "comparisons": tuple(
      pair
      for name in others
      for pair in (
        (f"augmented/{name}", f"plain/{name}"),
        (f"plain/{name}.adapted", f"plain/{name}"),
      )
    ),
    "limits": (
      "Adapted: the norms' statistics are those of the other data, whose labels"
      " are not used. Spacing is no arm: phantoms are drawn on the target grid."
    ),
  }
