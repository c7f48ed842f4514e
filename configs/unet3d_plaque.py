"""A 3D U-Net for aorta, coronary lumen, stable and unstable plaque.

Command:

  cadjax train --config=unet3d_plaque --workdir=runs/unet3d_plaque

Plaques are small: every class is met equally often in the patches around the
foreground, and more patches are drawn there than in `configs/unet3d.py`.
"""

import ml_collections

from configs import unet3d


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns `configs/unet3d.py` with four classes; `arg` is not used."""
  config = unet3d.get_config(arg)
  config.segment.classes = "four"
  config.data.foreground_share = 0.8
  return config
