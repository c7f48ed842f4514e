"""A 3D U-Net for the aorta and the coronary arteries, on patches.

Command (data: cadjax build --source=phantom --cases=88
--grid=heart --shape=128,128,128 --box_mm=128,128,128 --out=data):

  cadjax train --config=unet3d --workdir=runs/unet3d

Trained on patches drawn around the foreground, validated and used on whole
volumes by a sliding window. `--config.segment.classes=coronaries` learns the
coronary arteries alone.
"""

import ml_collections
from ml_collections import config_dict

from configs import resnet3d


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns `configs/resnet3d.py` as a segmenter; `arg` is not used."""
  config = resnet3d.get_config(arg)
  with config.unlocked():
    config.task = "segment"

    config.segment = ml_collections.ConfigDict()
    # aorta_coronaries, coronaries, or four: aorta, lumen, stable plaque and
    # unstable plaque.
    config.segment.classes = "aorta_coronaries"
    # Voxels D, H, W of the sliding window; unset: the size of the patches.
    config.segment.window = config_dict.placeholder(tuple)
    config.segment.overlap = 0.5  # Of neighbouring windows, as a share.
    config.segment.mirror = False  # Whether to average over mirror images.
    # Smaller components are removed, except in validation during training.
    config.segment.min_component_mm3 = 20.0

    # Of training patches, voxels D, H, W.
    config.data.patch_size = (96, 96, 96)
    config.data.patches_per_volume = 4  # Patches drawn in an epoch.
    # Share of patches centred on a voxel of a random foreground class.
    config.data.foreground_share = 0.67
    config.data.batch_size = 4
    config.data.eval_batch_size = 4
    del config.data.slices_per_volume
    del config.data.prior

    config.model = ml_collections.ConfigDict()
    config.model.name = "unet"
    config.model.ndim = 3
    # Channels of each level, the finest first.
    config.model.features = (32, 64, 128, 256)
    config.model.norm = "batch"
    config.model.residual = False  # Whether blocks are residual.
    config.model.attention = False  # Attention gates on the skips.
    # Whether coarser decoder levels contribute to the loss.
    config.model.deep_supervision = True
    config.model.upsampling = "linear"  # linear, or shuffle (depth to space).
    config.model.remat = False
    config.model.dtype = "float32"
    config.model.conv = "auto"

    config.loss = ml_collections.ConfigDict()
    config.loss.name = "dice_ce"
    # Weight of each class, background first; unset: equal weights.
    config.loss.weights = config_dict.placeholder(tuple)

    config.optimizer.learning_rate = 1e-3

    config.monitor = "dice"
    config.patience = 20
    del config.eval
  return config
