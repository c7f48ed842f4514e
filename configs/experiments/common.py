"""What the plans share: phantom data and the networks of each scale.

tiny      seconds a cell: shows that a plan runs, answers nothing
small     minutes a cell on 2 cores: ResNet-10 of width 16 on 64x64x64 voxels
          of 2 mm around the heart, phantoms of severity "overt"
clinical  the networks and volumes of small, phantoms of severity "clinical",
          recipe "robust"
paper     for accelerators: ResNet-50 on the paper's 256x128x128, phantoms of
          severity "clinical"

At `clinical` no folds overlap: every seed draws its training patients anew
from a pool, and all trainings are tested on the same patients, of whom
phantoms give as many as are wanted. 12 trainings tested on 600 of the 1500
phantoms show an AUC that is higher by 0.08; 12 folds of the same phantoms would
show 0.09, and train on four times as many patients (`cadjax.experiment.power`).
A plan has as many trainings as 60 minutes on two cores allow; `--dry_run` and
the README say what that can show and what its `target` would take.

Recipes of classifiers, see `RECIPES`:

plain   of configs/demo.py: 20 steps of warm-up, gradients clipped to a norm of
        1, batch norm, learning rate 2e-3, early stopping after 10 epochs
robust  warm-up over the first tenth of all steps, gradients clipped to a norm
        of 1, batch norm whose statistics are taken again for averaged weights
        (decay 0.98), learning rate 1e-3, no early stopping
group   as robust, with group norm in place of batch norm

The plan `recipe` counts how many trainings of each fail, on seeds that no other
plan has. Which of them is best was not measured when this was written.
"""

from typing import Any

import ml_collections

from configs import (
  demo,
  demo_segmenter,
  resnet3d,
  resunet3d,
  unet2d,
  unet3d,
  unet3d_plaque,
)

FOLDS = {
  "tiny": (0,),
  "small": (0, 1, 2, 3, 4),
  "clinical": (None,),
  "paper": (0, 1, 2, 3, 4),
}
# Of plans with many or slow arms: what fits into 90 minutes on 2 cores.
FEW_FOLDS = {**FOLDS, "small": (0, 1, 2)}
# At the scale "clinical": of 1500 patients 750 are the pool that trainings
# draw from, 150 validate and 600 are tested.
FRACTIONS = "--fractions=0.5,0.1,0.4"
TRAINED = 320
EPOCHS = 16
# The smallest difference of an AUC, and of a share of lesions, that plans at
# that scale want to show.
TARGET_AUC, TARGET_HIT = 0.05, 0.1
RECIPES = {
  "plain": {},
  "robust": {
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_steps": 0,
    "optimizer.warmup_fraction": 0.1,
    "optimizer.clip_norm": 1.0,
    "model.norm": "batch",
    "ema_decay": 0.98,
  },
}
RECIPES["group"] = RECIPES["robust"] | {"model.norm": "group"}


def severity(scale: str) -> str:
  """Returns the flag of the phantoms' disease at a scale."""
  clinical = scale in ("clinical", "paper")
  return f"--severity={'clinical' if clinical else 'overt'}"


def trainings(scale: str, clinical: int) -> dict[str, Any]:
  """Returns fields of a plan that has more seeds at the scale "clinical"."""
  return {"seeds": tuple(range(clinical))} if scale == "clinical" else {}


def aims(scale: str, target: float) -> dict[str, Any]:
  """Returns the field `target` of a plan, at the scale "clinical"."""
  return {"target": target} if scale == "clinical" else {}


def phantoms(
  scale: str,
  small: int = 400,
  paper: int = 704,
  *more: str,
  clinical: int = 1500,
) -> tuple[str, ...]:
  """Returns flags of `data_prep.build`.

  Args:
    scale: of the plan.
    small: cases at that scale.
    paper: cases at that scale.
    *more: further flags, which overrule those that come before.
    clinical: cases at that scale.
  """
  if scale == "paper":
    sizes = (f"--cases={paper}", severity(scale), "--grid=paper")
  else:
    counts = {"tiny": 20, "small": small, "clinical": clinical}
    edge = 24 if scale == "tiny" else 64
    sizes = (
      f"--cases={counts[scale]}",
      severity(scale),
      "--grid=heart",
      f"--shape={edge},{edge},{edge}",
      "--box_mm=128,128,128",
    )
  if scale == "clinical":
    sizes = (*sizes, FRACTIONS)
  return ("--source=phantom", *sizes, *more)


def classifier(
  scale: str,
  ndim: int = 3,
  monitor: str | None = None,
  recipe: str | None = None,
) -> ml_collections.ConfigDict:
  """Returns the 3D ResNet of a scale, or its 2D baseline.

  Args:
    scale: of the plan.
    ndim: 2 for the baseline.
    monitor: what validation keeps a network by, if not by what the scale's
      config names. By the loss of few subjects, an untrained network beats an
      overconfident one that tells them apart: "roc_auc" is fairer to those,
      and what the scale "clinical" keeps it by.
    recipe: of `RECIPES`; if left out "robust" at the scale "clinical" and else
      "plain".
  """
  config = resnet3d.get_config() if scale == "paper" else demo.get_config()
  with config.unlocked():
    config.model.ndim = ndim
    config.monitor = monitor or config.monitor
    if scale == "tiny":
      config.parallel = "mesh"
      config.mesh.data = 1
      config.data.batch_size = 4
      config.data.slices_per_volume = 4
      config.model.width = 4
      config.optimizer.warmup_steps = 1
      config.epochs = 1
    if scale == "clinical":
      config.monitor = monitor or "roc_auc"
      config.data.subset.patients = TRAINED
      config.epochs = config.patience = EPOCHS
    for field, value in RECIPES[
      recipe or ("robust" if scale == "clinical" else "plain")
    ].items():
      section, _, name = field.rpartition(".")
      (config[section] if section else config)[name] = value
  return config


def masks(scale: str) -> tuple[str, ...]:
  """Returns flags of the data of segmenters: finer, and other phantoms."""
  edge, cases, disease = {
    "tiny": (24, 20, "overt"),
    "small": (96, 80, "overt"),
    "clinical": (96, 80, "clinical"),
    "paper": (160, 176, "overt"),
  }[scale]
  return (
    "--source=phantom",
    f"--cases={cases}",
    f"--severity={disease}",
    "--grid=heart",
    f"--shape={edge},{edge},{edge}",
    "--box_mm=128,128,128",
    "--seed=7",
    "--fractions=0.7,0.1,0.2",
  )


def scans(scale: str) -> tuple[str, ...]:
  """Returns flags of `data_prep.export`: whole scans with their lesions."""
  cases, spacing, disease = {
    "tiny": (8, 2, "overt"),
    "small": (80, 1, "overt"),
    "clinical": (160, 1, "clinical"),
    "paper": (200, 0.5, "overt"),
  }[scale]
  return (
    "export",
    f"--cases={cases}",
    f"--severity={disease}",
    f"--spacing_mm={spacing}",
  )


def segmenter(
  scale: str, classes: str, ndim: int = 3, window: int = 64
) -> ml_collections.ConfigDict:
  """Returns the U-Net of a scale.

  Args:
    scale: of the plan.
    classes: "aorta_coronaries" or "four".
    ndim: 2 segments slice by slice.
    window: edge of the sliding window at the scales "small" and "clinical",
      in voxels.
  """
  if scale == "paper":
    if ndim == 2:
      return unet2d.get_config()
    full = unet3d if classes == "aorta_coronaries" else unet3d_plaque
    return full.get_config()
  config = demo_segmenter.get_config()
  with config.unlocked():
    config.segment.classes = classes
    config.segment.window = (window, window, window)
    config.model.ndim = ndim
    if ndim == 2:
      # As many voxels as a 3D patch.
      config.data.patch_size = (12, 96, 96)
      config.segment.window = (12, 96, 96)
    if classes == "aorta_coronaries":
      config.loss.weights = (0.5, 1.0, 2.0)
    if scale == "tiny":
      config.parallel = "mesh"
      config.mesh.data = 1
      config.data.patch_size = (4 if ndim == 2 else 16, 16, 16)
      config.segment.window = (4, 48, 48) if ndim == 2 else (24, 24, 24)
      config.data.patches_per_volume = 1
      config.model.features = (4, 8, 8)
      config.optimizer.warmup_steps = 1
      config.epochs = 1
  return config


def pretraining(scale: str, ndim: int = 3) -> ml_collections.ConfigDict:
  """Returns a segmenter with the encoder of `classifier`, on its volumes."""
  config = resunet3d.get_config()
  wanted = classifier(scale, ndim)
  with config.unlocked():
    for name in ("ndim", "depth", "width", "norm", "dtype"):
      config.model[name] = wanted.model[name]
    if scale == "paper":
      return config
    edge = 32 if scale == "tiny" else 64
    config.data.patch_size = (edge if ndim == 3 else 8, edge, edge)
    config.data.patches_per_volume = 1
    config.data.batch_size = 4
    config.segment.window = (edge if ndim == 3 else 8, edge, edge)
    config.loss.weights = (0.5, 1.0, 2.0)
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 1 if scale == "tiny" else 20
    config.epochs = 1 if scale == "tiny" else 6
    config.patience = 6
    if scale == "tiny":
      config.parallel = "mesh"
      config.mesh.data = 1
  return config
