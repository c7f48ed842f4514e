"""A 3D U-Net for the aorta and the coronary arteries, on patches.

Command (data: python -m data_prep.build --source=phantom --cases=88
--grid=heart --shape=128,128,128 --box_mm=128,128,128 --out=data):

  python -m cadjax.main --config=configs/unet3d.py --workdir=runs/unet3d

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
    # Or coronaries, or four: see configs/unet3d_plaque.py.
    config.segment.classes = "aorta_coronaries"
    # Of inference, D, H, W; None takes the patches' size.
    config.segment.window = config_dict.placeholder(tuple)
    config.segment.overlap = 0.5  # The least share of a window's edge.
    config.segment.mirror = False  # Whether to average over mirror images.
    # Smaller islands are left out, not in validation while training.
    config.segment.min_component_mm3 = 20.0

    config.data.patch_size = (96, 96, 96)  # D, H, W.
    config.data.patches_per_volume = 4  # In an epoch.
    # Of the patches, around a voxel of a foreground class drawn at random.
    config.data.foreground_share = 0.67
    config.data.batch_size = 4  # Patches.
    config.data.eval_batch_size = 4  # Windows at a time.
    del config.data.slices_per_volume
    del config.data.prior

    config.model = ml_collections.ConfigDict()
    config.model.name = "unet"
    config.model.ndim = 3
    config.model.features = (32, 64, 128, 256)
    config.model.norm = "batch"
    config.model.residual = False
    config.model.attention = False
    config.model.deep_supervision = True
    config.model.upsampling = "linear"  # Or shuffle: depth to space.
    config.model.remat = False
    config.model.dtype = "float32"  # Of the computation; bfloat16 on TPU.
    config.model.conv = "auto"  # On a CPU: auto, exact (no Winograd) or lax.

    config.loss = ml_collections.ConfigDict()
    config.loss.name = "dice_ce"  # Or dice, focal, tversky, cldice.
    # One for each class, background first; None weighs all alike.
    config.loss.weights = config_dict.placeholder(tuple)

    config.optimizer.learning_rate = 1e-3

    config.monitor = "dice"  # Mean over classes, pooled over cases.
    config.patience = 20
    del config.eval
  return config
