"""The coronary segmenter: lumen, both kinds of plaque and the aortic root.

Command (data: cadjax build --source=phantom --cases=160 --seed=100
--grid=heart --shape=192,192,192 --box_mm=128,128,128 --fractions=0.8,0.05,0.15
--out=weights/coronary_data; `make weights` runs both):

  cadjax train --config=coronary --workdir=weights/coronary \
    --config.init_from=weights/wide

The wide segmenter has learned what blood, muscle and bone look like.

Voxels of 0.67 mm in a box around the heart, which the wide segmenter finds
(configs/wide.py). A part of the patches is drawn anew from their labels, and
many are blurred as scans of thick slices are.
"""

import ml_collections

from configs import unet3d_plaque


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns `configs/unet3d_plaque.py` for any scanner; `arg` is not used."""
  config = unet3d_plaque.get_config(arg)
  with config.unlocked():
    config.segment.window = (96, 96, 96)
    config.segment.overlap = 0.25
    config.data.path = "weights/coronary_data"
    config.data.window_hu = (-200.0, 1000.0)
    # As large as the window: statistics of the norm are those of training.
    config.data.patch_size = (96, 96, 96)
    # Validation takes as long as 300 steps: few epochs, of many patches.
    config.data.patches_per_volume = 8
    config.data.batch_size = 1
    config.data.eval_batch_size = 1
    config.model.features = (8, 16, 32, 64, 96)  # Those of `wide`.
    config.model.deep_supervision = False
    # Patches of other intensities would share the statistics of a batch.
    config.model.norm = "instance"
    config.loss.name = "skeleton_recall"
    # Lumen and both kinds of plaque are one vessel, 4 to 5 voxels wide.
    config.loss.classes = (2, 3, 4)
    config.loss.iterations = 4  # Of thinning the mask to its centreline.
    config.loss.weights = (0.5, 1.0, 3.0, 3.0, 3.0)
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 50
    config.augment.spatial = {
      "probability": 0.7,
      "rotation_degrees": 12.0,
      "scale": 0.15,
      "translation": 0.0,
    }
    # Plaque is told by its intensity, so that fewer patches lose theirs.
    config.augment.tissues = {
      "probability": 0.15,
      "shift_probability": 0.5,
      "shift": 0.06,
    }
    config.augment.blur = {"probability": 0.6, "sigma": 1.8}
    config.augment.noise = {"probability": 0.6, "sigma": 0.04}
    config.augment.intensity = {"probability": 0.5, "shift": 0.06, "scale": 0.2}
    config.ema_decay = 0.99
    config.epochs = 2
    config.patience = 2
  return config.lock()
