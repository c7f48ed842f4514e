"""A small 3D U-Net on overt phantoms: minutes on 2 cores, for `make demo`.

Command (`make demo` runs it with its data):

  cadjax build --source=phantom --severity=overt --cases=80 \
    --grid=heart --shape=96,96,96 --box_mm=128,128,128 --out=demo/masks
  cadjax train --config=demo_segmenter --workdir=demo/segmenter

Four classes, so that the linked report can tell the kinds of plaque.
"""

import ml_collections

from configs import unet3d_plaque


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns `configs/unet3d_plaque.py`, made small; `arg` is not used."""
  config = unet3d_plaque.get_config(arg)
  with config.unlocked():
    config.data.path = "demo/masks"
    config.data.patch_size = (48, 48, 48)
    config.data.batch_size = 2  # Steps count for more than patches.
    config.segment.window = (96, 96, 96)
    config.data.eval_batch_size = 1
    config.model.features = (8, 16, 32, 64)
    config.model.deep_supervision = False
    # Plaque is rare even around the vessels: with lower weights it is left out
    # in so few steps. Background, aorta, lumen, stable and unstable plaque.
    config.loss.weights = (0.5, 1.0, 3.0, 8.0, 8.0)
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 20
    config.epochs = 6
    config.patience = 6
  return config
