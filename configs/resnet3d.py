"""The paper's classifier: a 3D ResNet-50 on 256x128x128, focal loss, Adam.

Command (data: python -m data_prep.build --source=phantom --grid=paper
--cases=88 --out=data):

  python -m cadjax.main --config=configs/resnet3d.py --workdir=runs/resnet3d

Published (arXiv 2308.00009): the input of 128x128 with 256 slices, 3D
ResNet-50, focal loss, Adam, early stopping after 10 epochs without
improvement. Not published, and so our choice: everything else in this file.
"""

import ml_collections


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  del arg
  config = ml_collections.ConfigDict()
  config.task = "classify"  # Or segment: see configs/unet3d.py.
  config.seed = 0

  config.data = ml_collections.ConfigDict()
  config.data.path = "data"  # A built data set, or a folder above one.
  # None: the stored splits. k: test on fold k, validate on the next one.
  config.data.fold = ml_collections.config_dict.placeholder(int)
  config.data.window_hu = (-200.0, 1000.0)  # Mapped to [0, 1].
  config.data.batch_size = 8  # Global: all devices together.
  config.data.eval_batch_size = 8
  config.data.slices_per_volume = 16  # Of a 2D model, in training.
  config.data.subset = ml_collections.ConfigDict()  # Of the training patients.
  # None: all of them; and as many with CAD as there are.
  config.data.subset.patients = ml_collections.config_dict.placeholder(int)
  config.data.subset.cad_fraction = ml_collections.config_dict.placeholder(
    float
  )
  config.data.subset.seed = 0
  # What a classifier sees beside the volume: none; channels, the aorta and
  # the coronary arteries as two more; region, nothing but the neighbourhood
  # of the coronary arteries.
  config.data.prior = ml_collections.ConfigDict()
  config.data.prior.use = "none"
  config.data.prior.masks = ""  # A folder of predicted ones; else the records'.
  config.data.prior.margin_voxels = (2, 2, 2)  # Of the region, D, H, W.

  config.model = ml_collections.ConfigDict()
  config.model.name = "resnet"
  config.model.ndim = 3
  config.model.depth = 50
  config.model.width = 64
  config.model.num_classes = 2
  config.model.norm = "batch"
  config.model.output_stride = 32
  config.model.remat = False
  config.model.dtype = "float32"  # Of the computation; bfloat16 on TPU.
  config.model.conv = "auto"  # On a CPU: auto, exact (no Winograd) or lax.

  config.loss = ml_collections.ConfigDict()
  config.loss.name = "focal"
  config.loss.gamma = 2.0

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = "adam"
  config.optimizer.learning_rate = 1e-4
  config.optimizer.schedule = "cosine"
  config.optimizer.warmup_steps = 50
  config.optimizer.clip_norm = 1.0
  config.optimizer.weight_decay = 0.0
  config.optimizer.accumulate = 1

  config.augment = ml_collections.ConfigDict()

  config.parallel = "pmap"
  config.mesh = ml_collections.ConfigDict({"data": -1, "space": 1})

  # A workdir to start from, see cadjax.training.warm_start; None starts anew.
  config.init_from = ml_collections.config_dict.placeholder(str)
  config.epochs = 100
  config.patience = 10  # Epochs without improvement of the monitor.
  config.monitor = "roc_auc"  # Or loss, accuracy, balanced_accuracy.
  config.ema_decay = 0.0
  config.log_every = 10  # Steps.
  config.checkpoint_every = 100  # Steps; and after every epoch.

  config.eval = ml_collections.ConfigDict()
  config.eval.pooling = "mean"  # Of the slices of a 2D model.
  return config.lock()
