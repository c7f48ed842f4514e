"""The wide segmenter: a 3D U-Net for the whole chest at 2 mm, on phantoms.

Command (data: cadjax build --source=phantom --cases=240 --seed=100
--grid=spacing --spacing_mm=2 --scanner=fov_mm=360,length_mm=290
--fractions=0.9,0.05,0.05 --out=weights/wide_data; `make weights` runs both):

  cadjax train --config=wide:plain --workdir=weights/wide_plain
  cadjax train --config=wide:anew --workdir=weights/wide_anew \
    --config.init_from=weights/wide_plain
  cadjax train --config=wide --workdir=weights/wide \
    --config.init_from=weights/wide_anew

It finds the aorta, the chambers of the heart, the great vessels, the lungs and
the bones, and so the box in which the coronary arteries are read. The first
training sees phantoms as they are. In the second one, four in ten patches are
drawn anew from their labels, in any intensity: see `tissues` in
cadjax/data/augment.py; from such patches alone, little is learned in the first
hours. The third one weighs all classes alike: the weights of the others find
small structures and make them too large.
"""

import ml_collections

from configs import unet3d

# What changes from one training to the next, by the argument of the config:
# weights of background, aorta, four chambers, muscle, great vessels, lungs,
# bone; patches of a volume in an epoch; the share of them drawn anew.
_TRAININGS = {
  "plain": {
    "weights": (0.3, 3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 3.0, 0.5, 2.0),
    "learning_rate": 3e-3,
    "patches": 2,
    "anew": 0.0,
    "ema_decay": 0.0,
    "epochs": 2,
  },
  "anew": {
    "weights": (0.7, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 0.5, 1.0),
    "learning_rate": 3e-3,
    "patches": 4,
    "anew": 0.4,
    "ema_decay": 0.99,
    "epochs": 2,
  },
  None: {
    "weights": None,
    "learning_rate": 1.5e-3,
    "patches": 4,
    "anew": 0.3,
    "ema_decay": 0.99,
    "epochs": 1,
  },
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns `configs/unet3d.py` for the whole chest.

  Args:
    arg: "plain" for the first training, "anew" for the second.
  """
  if arg not in _TRAININGS:
    raise ValueError(
      f"wide:{arg} is unknown; use wide, wide:plain or wide:anew"
    )
  this = _TRAININGS[arg]
  config = unet3d.get_config()
  with config.unlocked():
    config.segment.classes = "chest"
    config.segment.window = (96, 96, 96)
    config.segment.overlap = 0.25
    config.segment.min_component_mm3 = 500.0
    config.data.path = "weights/wide_data"
    config.data.window_hu = (-1000.0, 1000.0)
    # Large enough to see most of the classes at once.
    config.data.patch_size = (96, 96, 96)
    config.data.patches_per_volume = this["patches"]
    config.data.foreground_share = 0.5
    config.data.batch_size = 1
    config.data.eval_batch_size = 1
    config.model.features = (8, 16, 32, 64, 96)
    # Patches of other intensities would share the statistics of a batch.
    config.model.norm = "instance"
    config.model.deep_supervision = False
    config.loss.weights = this["weights"]
    config.optimizer.learning_rate = this["learning_rate"]
    config.optimizer.warmup_steps = 50
    config.augment.spatial = {
      "probability": 0.8,
      "rotation_degrees": 12.0,
      "scale": 0.2,
      "translation": 0.0,
      "elastic_probability": 0.3,
      "elastic_mm": 4.0,
      "spacing_mm": 2.0,
    }
    config.augment.tissues = {
      "probability": this["anew"],
      "shift_probability": 0.7,
      "shift": 0.1,
    }
    config.augment.blur = {"probability": 0.4, "sigma": 1.2}
    config.augment.noise = {"probability": 0.6, "sigma": 0.04}
    config.augment.gamma = {"probability": 0.3, "largest": 1.4}
    config.ema_decay = this["ema_decay"]
    config.epochs = this["epochs"]
    config.patience = 2
  return config.lock()
