"""The classifier that comes with cadjax: a small 3D ResNet that sees the heart.

Commands (data: cadjax build --source=phantom --severity=overt --cases=800
--seed=100 --grid=heart --shape=64,64,64 --box_mm=128,128,128
--fractions=0.8,0.1,0.1 --out=weights/classifier_data; `make weights` runs all):

  cadjax train --config=heart_classifier:plain \
    --workdir=weights/classifier_plain
  cadjax train --config=heart_classifier --workdir=weights/classifier \
    --config.init_from=weights/classifier_plain

All that is farther than 8 mm from the heart's blood and muscle is blank, in a
scan where the wide segmenter (configs/wide.py) finds them. The first training
sees phantoms as they are. In the second one the border and what lies beyond it
vary, and so do the position of the box, the tissues' intensities, noise and
sharpness: from a random start it learned nothing in 400 steps.
"""

import ml_collections

from configs import demo


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns `configs/demo.py` for the heart alone.

  Args:
    arg: "plain" for the first training.
  """
  if arg not in (None, "plain"):
    raise ValueError(
      f"heart_classifier:{arg} is unknown; use heart_classifier or"
      " heart_classifier:plain"
    )
  config = demo.get_config()
  with config.unlocked():
    config.data.path = "weights/classifier_data"
    config.data.prior.use = "heart"
    config.data.prior.margin_voxels = (4, 4, 4)
    if arg == "plain":
      config.epochs = 7
      return config.lock()
    config.optimizer.learning_rate = 1e-3
    config.augment.spatial = {
      "probability": 0.8,
      "rotation_degrees": 8.0,
      "scale": 0.1,
      "translation": 0.08,
    }
    config.augment.tissues = {
      "probability": 0.0,
      "shift_probability": 0.5,
      "shift": 0.05,
    }
    config.augment.surroundings = {"probability": 0.5}
    config.augment.blur = {"probability": 0.4, "sigma": 0.7}
    config.augment.noise = {"probability": 0.5, "sigma": 0.03}
    config.augment.intensity = {"probability": 0.5, "shift": 0.05, "scale": 0.1}
    config.ema_decay = 0.99
    config.epochs = 15
    config.patience = 15
  return config
