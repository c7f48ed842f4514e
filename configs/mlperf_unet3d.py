"""The 3D U-Net of MLPerf Training, for speed beside its published records.

Commands (data with masks, such as those of configs/unet3d.py):

  cadjax bench --config=mlperf_unet3d --what=train --shape=128,128,128 \
    --batch=2 --config.model.dtype=bfloat16
  cadjax train --config=mlperf_unet3d --workdir=runs/mlperf_unet3d

As in MLPerf's image segmentation (KiTS19): patches of 128x128x128, six levels
of 32, 64, 128, 256, 320 and 320 channels, instance norm, transposed
convolutions of size 2 (a convolution and depth to space here), three classes,
Dice and cross-entropy, SGD with Nesterov momentum, 2 patches on a device.
"""

import ml_collections

from configs import unet3d


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  config = unet3d.get_config(arg)
  with config.unlocked():
    config.data.patch_size = (128, 128, 128)
    config.data.batch_size = 2
    config.data.eval_batch_size = 2
    config.model.features = (32, 64, 128, 256, 320, 320)
    config.model.norm = "instance"
    config.model.deep_supervision = False
    config.model.upsampling = "shuffle"
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.8
    config.optimizer.schedule = "constant"
    config.optimizer.warmup_steps = 1000
    config.optimizer.momentum = 0.9  # Of sgd.
    config.optimizer.nesterov = True  # Whether sgd looks ahead.
  return config
