"""A small 3D ResNet for a dozen to a few dozen scans of your own.

Five commands, from a folder of scans, sorted into normal/ and cad/ or labelled
in the manifest.csv that the first one writes, to the page of one of them:

  cadjax check --write_manifest --input=scans
  cadjax build --source=manifest --input=scans --grid=heart \
    --shape=64,64,64 --box_mm=128,128,128 --out=own/data
  cadjax train --config=own --workdir=own/classifier
  cadjax evaluate --workdir=own/classifier
  cadjax predict --classifier=own/classifier --input=SCAN --out=own/case

Runtime, with 12 phantoms at 1 mm (data_prep.export) on two cores that many
other programs shared: 27 s, 32 s, 3 minutes (35 s of processor time), 91 s and
20 s.

Expected: every scan goes through, and nothing can be concluded from the
figures. A dozen scans leave 8 to train on, 2 to choose by and 2 to test on; on
60 other phantoms the networks trained on 12, 24 and 40 overt phantoms had a
ROC AUC of 0.54 [0.40, 0.68], 0.64 [0.49, 0.76] and 0.55 [0.40, 0.66]. Start
from a network that has seen more, --config.init_from=classifier, which comes
with cadjax and has seen phantoms, or one with the same config.model; or bring
more scans.
"""

import ml_collections

from configs import resnet3d


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns `configs/resnet3d.py`, made for few cases; `arg` is not used."""
  config = resnet3d.get_config(arg)
  with config.unlocked():
    config.data.path = "own/data"
    config.data.batch_size = 4  # A dozen scans leave 8 to train on.
    config.data.eval_batch_size = 4
    config.model.depth = 10
    config.model.width = 16
    config.model.output_stride = 16  # Lesions are a few voxels long.
    config.optimizer.learning_rate = 1e-3
    # An epoch has as few as two steps, so count in shares of the training.
    config.optimizer.warmup_steps = 0
    # Share of all steps, in place of warmup_steps.
    config.optimizer.warmup_fraction = 0.1
    config.parallel = "mesh"
    config.mesh.data = 1  # A batch of 4 does not divide by eight devices.
    config.epochs = 40
    config.patience = 20  # Epochs of few steps.
    # The loss of few cases prefers a network that answers one half to all of
    # them. Equal AUCs, which few patients give often, are decided by the loss.
    config.monitor = "roc_auc"
    config.checkpoint_every = 50
  return config
