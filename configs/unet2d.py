"""The paper's segmenter: a 2D U-Net for the aorta and the coronary arteries.

Command:

  cadjax train --config=unet2d --workdir=runs/unet2d

Published (arXiv 2308.00009): a 2D U-Net with two classes, aorta and coronary
arteries. Not published, and so our choice: everything else. A patch is one
axial slice; volumes are segmented slice by slice.
"""

import ml_collections

from configs import unet3d


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns `configs/unet3d.py` with a 2D model; `arg` is not used."""
  config = unet3d.get_config(arg)
  config.model.ndim = 2
  config.data.patch_size = (1, 128, 128)
  config.data.patches_per_volume = 16
  config.data.batch_size = 16
  config.data.eval_batch_size = 16
  return config
