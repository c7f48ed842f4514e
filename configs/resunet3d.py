"""A segmenter whose encoder is the classifier's ResNet, to start it from.

Commands (data with masks, such as those of configs/unet3d.py):

  cadjax train --config=resunet3d --workdir=runs/resunet3d
  cadjax train --config=resnet3d --workdir=runs/pretrained \
    --config.init_from=runs/resunet3d

The classifier then begins with an encoder that has found aorta and coronary
arteries. For segmentation alone `configs/unet3d.py` is the better one: its
finest maps have the resolution of the image.
"""

import ml_collections

from configs import unet3d


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns `configs/unet3d.py` with another model; `arg` is not used."""
  config = unet3d.get_config(arg)
  with config.unlocked():
    config.data.patch_size = (128, 128, 128)
    config.data.batch_size = 2
    config.data.eval_batch_size = 1
    config.model = ml_collections.ConfigDict()
    config.model.name = "resunet"
    config.model.ndim = 3
    config.model.depth = 50
    config.model.width = 64
    config.model.norm = "batch"
    config.model.upsampling = "linear"
    config.model.remat = False
    config.model.dtype = "float32"
    config.model.conv = "auto"
  return config
