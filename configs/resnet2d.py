"""The paper's baseline: a 2D ResNet-50 on the slices of each volume.

Command:

  cadjax train --config=resnet2d --workdir=runs/resnet2d

In training a volume gives `config.data.slices_per_volume` random slices with
its label; in evaluation all of its slices vote, by `config.eval.pooling`.
"""

import ml_collections

from configs import resnet3d


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns `configs/resnet3d.py` with a 2D model; `arg` is not used."""
  config = resnet3d.get_config(arg)
  config.model.ndim = 2
  return config
