"""The paper's classifier: a 3D ResNet-50 on 256x128x128, focal loss, Adam.

Command (data: cadjax build --source=phantom --grid=paper
--cases=88 --out=data):

  cadjax train --config=resnet3d --workdir=runs/resnet3d

Published (arXiv 2308.00009): the input of 128x128 with 256 slices, 3D
ResNet-50, focal loss, Adam, early stopping after 10 epochs without
improvement. Not published, and so our choice: everything else in this file.
"""

import ml_collections


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config; `arg` is not used."""
  del arg
  config = ml_collections.ConfigDict()
  config.task = "classify"  # classify, or segment as in unet3d.py.
  # Of initialisation, data order, augmentation and sampled patches.
  config.seed = 0

  config.data = ml_collections.ConfigDict()
  config.data.path = "data"  # A built data set, or a folder above one.
  # Cross-validation fold to test on; the next one validates. Unset: the splits
  # stored in the data set.
  config.data.fold = ml_collections.config_dict.placeholder(int)
  config.data.window_hu = (-200.0, 1000.0)  # HU range mapped to [0, 1].
  # Volumes (segmenter: patches) in a step, over all devices.
  config.data.batch_size = 8
  # Volumes (segmenter: windows) at a time in validation and test.
  config.data.eval_batch_size = 8
  config.data.slices_per_volume = 16  # Slices drawn to train a 2D model.
  config.data.subset = ml_collections.ConfigDict()
  # How many patients to train on; unset: all of them.
  config.data.subset.patients = ml_collections.config_dict.placeholder(int)
  # Share of the training patients with CAD; unset: as in the data set.
  config.data.subset.cad_fraction = ml_collections.config_dict.placeholder(
    float
  )
  config.data.subset.seed = 0  # Seed that draws the training patients.
  config.data.prior = ml_collections.ConfigDict()
  # How vessel masks enter a classifier: none; channels, aorta and coronary
  # arteries as two more input channels; region, the volume is blanked away
  # from the coronary arteries.
  config.data.prior.use = "none"
  # Folder of predicted masks; empty: those of the data set.
  config.data.prior.masks = ""
  # Margin of the region around the arteries, voxels D, H, W.
  config.data.prior.margin_voxels = (2, 2, 2)

  config.model = ml_collections.ConfigDict()
  config.model.name = "resnet"  # resnet (classifier), unet or resunet.
  config.model.ndim = 3  # 3: volumes; 2: slices.
  config.model.depth = 50  # 10, 18, 34 or 50 layers.
  config.model.width = 64  # Channels of the stem.
  config.model.num_classes = 2  # Output classes: normal and CAD.
  config.model.norm = "batch"  # Normalisation: batch, group or instance.
  # Stride of the last feature map: 32, 16 or 8.
  config.model.output_stride = 32
  # Recompute activations in the backward pass: less memory, more time.
  config.model.remat = False
  config.model.dtype = "float32"  # Of computations: float32 or bfloat16.
  config.model.conv = "auto"  # On CPUs: auto, exact (no Winograd) or lax.
  # How training computes the same network, by platform if "auto"; see WAYS in
  # cadjax/models/resnet.py.
  config.model.stem = "auto"  # auto, folded or plain.
  config.model.stage1 = "auto"  # auto, folded or plain.
  config.model.pointwise = "auto"  # auto, moments or plain.

  config.loss = ml_collections.ConfigDict()
  # Classifier: focal or cross_entropy. Segmenter: dice, dice_ce, focal,
  # tversky, cldice or skeleton_recall.
  config.loss.name = "focal"
  # Focusing parameter of the focal loss; 0 is cross-entropy.
  config.loss.gamma = 2.0

  config.optimizer = ml_collections.ConfigDict()
  config.optimizer.name = "adam"  # adam, adamw or sgd.
  config.optimizer.learning_rate = 1e-4  # Peak, after the warm-up.
  config.optimizer.schedule = "cosine"  # cosine, poly or constant.
  config.optimizer.warmup_steps = 50  # Linear rise from 0.
  # Largest global norm of the gradients; 0: no clipping.
  config.optimizer.clip_norm = 1.0
  config.optimizer.weight_decay = 0.0  # Of kernels only.
  # Gradient accumulation: steps per update.
  config.optimizer.accumulate = 1

  # Augmentations by name, with their options; see cadjax/data/augment.py.
  config.augment = ml_collections.ConfigDict()

  # pmap: data parallel; mesh: data and spatial parallel.
  config.parallel = "pmap"
  config.mesh = ml_collections.ConfigDict()
  config.mesh.data = -1  # Devices along the batch; -1: all others.
  config.mesh.space = 1  # Devices along the depth of a volume.

  # Workdir, file of weights or shipped model whose weights initialise the
  # model; unset: random weights.
  config.init_from = ml_collections.config_dict.placeholder(str)
  config.epochs = 100  # Largest number of epochs.
  config.patience = 10  # Early stopping: epochs without improvement.
  # Validation metric that selects the best checkpoint. Classifier: roc_auc,
  # loss, accuracy or balanced_accuracy. Segmenter: dice, the mean over classes,
  # pooled over cases.
  config.monitor = "roc_auc"
  # Decay of the averaged weights that are evaluated; 0: no averaging.
  config.ema_decay = 0.0
  config.log_every = 10  # Steps between log entries.
  config.checkpoint_every = 100  # Steps; also after each epoch.

  config.eval = ml_collections.ConfigDict()
  # How a 2D model pools the scores of slices: mean, vote, max or topk.
  config.eval.pooling = "mean"
  return config.lock()
