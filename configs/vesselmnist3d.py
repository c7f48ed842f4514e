"""A public benchmark, VesselMNIST3D: does a vessel of the brain bulge?"""

import ml_collections

from configs import resnet3d


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns `configs/resnet3d.py` for small binary volumes; `arg` is unused."""
  config = resnet3d.get_config(arg)
  with config.unlocked():
    config.data.path = "vesselmnist3d/data"
    config.data.window_hu = (0.0, 255.0)  # The volumes' own values.
    config.data.batch_size = 16
    config.data.eval_batch_size = 16
    config.model.depth = 18  # 50 for a ResNet-50.
    config.model.width = 16
    config.model.output_stride = 16  # 4 cells along each axis, and not 2.
    # One volume in nine has an aneurysm. The loss is not weighted by class, so
    # that an output of 0.5 means even odds.
    config.loss = {"name": "cross_entropy", "label_smoothing": 0.05}
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.warmup_steps = 100
    # The 48 symmetries of a cube. The shapes have no orientation.
    config.augment.spatial = {"reorder": 1.0, "flip": 0.5, "probability": 0.0}
    config.ema_decay = 0.99
    config.parallel = "mesh"
    config.mesh.data = 1
    config.epochs = 20
    config.patience = 20
    config.checkpoint_every = 50
  return config
