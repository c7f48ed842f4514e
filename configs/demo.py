"""A small 3D ResNet on overt phantoms: minutes on 2 cores, for `make demo`.

Command (`make demo` runs it with its data):

  cadjax build --source=phantom --severity=overt --cases=400 \
    --grid=heart --shape=64,64,64 --box_mm=128,128,128 --out=demo/data
  cadjax train --config=demo --workdir=demo/classifier

The phantoms of severity `overt` carry more and denser plaque than patients
do: this shows that the chain works and is not evidence about patients.
"""

import ml_collections

from configs import resnet3d


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns `configs/resnet3d.py`, made small; `arg` is not used."""
  config = resnet3d.get_config(arg)
  with config.unlocked():
    config.data.path = "demo/data"
    config.data.batch_size = 8
    config.model.depth = 10
    config.model.width = 16
    config.model.output_stride = 16  # Lesions are a few voxels long.
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 20
    config.epochs = 14
    config.patience = 10
    config.monitor = "loss"  # With fewer cases "roc_auc" is fairer.
  return config
