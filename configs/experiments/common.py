"""What the plans share: phantom data and the networks of each scale.

tiny   seconds a cell: shows that a plan runs, answers nothing
small  minutes a cell on 2 cores: ResNet-10 of width 16 on 64x64x64 voxels
       of 2 mm around the heart, phantoms of severity "overt"
paper  for accelerators: ResNet-50 on the paper's 256x128x128, phantoms of
       severity "clinical"
"""

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

FOLDS = {"tiny": (0,), "small": (0, 1, 2, 3, 4), "paper": (0, 1, 2, 3, 4)}
# Of plans with many or slow arms: what fits into 90 minutes on 2 cores.
FEW_FOLDS = {**FOLDS, "small": (0, 1, 2)}


def phantoms(
  scale: str, small: int = 400, paper: int = 704, *more: str
) -> tuple[str, ...]:
  """Returns flags of `data_prep.build`.

  Args:
    scale: of the plan.
    small: cases at that scale.
    paper: cases at that scale.
    *more: further flags.
  """
  if scale == "paper":
    sizes = (f"--cases={paper}", "--severity=clinical", "--grid=paper")
  else:
    cases, edge = (20, 24) if scale == "tiny" else (small, 64)
    sizes = (
      f"--cases={cases}",
      "--severity=overt",
      "--grid=heart",
      f"--shape={edge},{edge},{edge}",
      "--box_mm=128,128,128",
    )
  return ("--source=phantom", *sizes, *more)


def classifier(
  scale: str, ndim: int = 3, monitor: str | None = None
) -> ml_collections.ConfigDict:
  """Returns the 3D ResNet of a scale, or its 2D baseline.

  Args:
    scale: of the plan.
    ndim: 2 for the baseline.
    monitor: what validation keeps a network by, if not by what the scale's
      config names. By the loss of few subjects, an untrained network beats an
      overconfident one that tells them apart: "roc_auc" is fairer to those.
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
  return config


def masks(scale: str) -> tuple[str, ...]:
  """Returns flags of the data of segmenters: finer, and other phantoms."""
  edge, cases = {"tiny": (24, 20), "small": (96, 80), "paper": (160, 176)}[
    scale
  ]
  return (
    "--source=phantom",
    f"--cases={cases}",
    "--severity=overt",
    "--grid=heart",
    f"--shape={edge},{edge},{edge}",
    "--box_mm=128,128,128",
    "--seed=7",
    "--fractions=0.7,0.1,0.2",
  )


def scans(scale: str) -> tuple[str, ...]:
  """Returns flags of `data_prep.export`: whole scans with their lesions."""
  cases, spacing = {"tiny": (8, 2), "small": (80, 1), "paper": (200, 0.5)}[
    scale
  ]
  return (
    "export",
    f"--cases={cases}",
    "--severity=overt",
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
    window: edge of the sliding window at the scale "small", in voxels.
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
      config.segment.window = (4 if ndim == 2 else 24, 24, 24)
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
    edge = 64 if scale == "small" else 32
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
