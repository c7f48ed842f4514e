"""The coronary segmenter: lumen, both kinds of plaque and the aortic root.

Commands (data: cadjax build --source=phantom --cases=160 --grid=heart
--shape=192,192,192 --box_mm=128,128,128 --fractions=0.8,0.05,0.15, with
--seed=100 --out=weights/coronary_lumen_data for the first, and with --seed=101
--cad_fraction=0.9 --out=weights/coronary_data; `make weights` runs all):

  cadjax train --config=coronary:lumen --workdir=weights/coronary_lumen \
    --config.init_from=weights/wide_anew
  cadjax train --config=coronary:plaque --workdir=weights/coronary_plaque \
    --config.init_from=weights/coronary_lumen
  cadjax train --config=coronary --workdir=weights/coronary \
    --config.init_from=weights/coronary_plaque

Voxels of 0.67 mm in a box around the heart, which the wide segmenter finds
(configs/wide.py). The first training starts from that segmenter's second one,
which has learned what blood, muscle and bone look like, and finds the arteries.
Some of the patches are drawn anew from their labels, and many are blurred as in
scans of thick slices. The second one learns plaque, from patients who have it,
with weights so great that it marks too much; the third one, with smaller
weights and sharper patches, marks less.
"""

import ml_collections

from configs import unet3d_plaque

# What changes from one training to the next, by the argument of the config:
# weights of background, aorta, lumen, stable and unstable plaque (of the last
# there are a thousand voxels in a patient, if any); the share of patches drawn
# anew; the shares of blurred and of noisy ones, and how much at most (voxels,
# share of the window).
_TRAININGS = {
  "lumen": {
    "weights": (0.5, 1.0, 3.0, 3.0, 3.0),
    "learning_rate": 3e-3,
    "anew": 0.15,
    "blur": (0.6, 1.8),
    "noise": (0.6, 0.04),
    "epochs": 2,
  },
  "plaque": {
    "weights": (0.5, 1.0, 3.0, 6.0, 12.0),
    "learning_rate": 2e-3,
    "anew": 0.05,
    "blur": (0.4, 1.5),
    "noise": (0.6, 0.04),
    "epochs": 2,
  },
  None: {
    "weights": (1.0, 1.0, 2.0, 2.0, 4.0),
    "learning_rate": 2e-3,
    "anew": 0.0,
    "blur": (0.25, 1.2),
    "noise": (0.3, 0.03),
    "epochs": 1,
  },
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns `configs/unet3d_plaque.py` for any scanner.

  Args:
    arg: "lumen" for the first training, "plaque" for the second.
  """
  if arg not in _TRAININGS:
    raise ValueError(
      f"coronary:{arg} is unknown; use coronary, coronary:lumen or"
      " coronary:plaque"
    )
  this = _TRAININGS[arg]
  config = unet3d_plaque.get_config()
  with config.unlocked():
    config.segment.window = (96, 96, 96)
    config.segment.overlap = 0.25
    # Thinner unstable plaque is background: along the wall of the lumen, a
    # voxel of blood and fat has the attenuation of plaque.
    config.segment.min_soft_voxels = 2
    config.data.path = (
      "weights/coronary_lumen_data"
      if arg == "lumen"
      else "weights/coronary_data"
    )
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
    config.loss.weights = this["weights"]
    config.optimizer.learning_rate = this["learning_rate"]
    config.optimizer.warmup_steps = 50
    config.augment.spatial = {
      "probability": 0.7,
      "rotation_degrees": 12.0,
      "scale": 0.15,
      "translation": 0.0,
    }
    # Plaque is told by its intensity, so that few patches lose theirs.
    config.augment.tissues = {
      "probability": this["anew"],
      "shift_probability": 0.5,
      "shift": 0.06,
    }
    for name in ("blur", "noise"):
      share, most = this[name]
      config.augment[name] = {"probability": share, "sigma": most}
    config.augment.intensity = {"probability": 0.5, "shift": 0.06, "scale": 0.2}
    config.ema_decay = 0.99
    config.epochs = this["epochs"]
    config.patience = 2
  return config.lock()
