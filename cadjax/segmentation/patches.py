"""Patches of volumes and their masks, for training a segmenter.

Which patches a step gets is a function of (seed, step) alone, as the order of
whole volumes is in `input_pipeline`. Memory holds the records of the batches
that are read ahead and no others, whatever the size of the data set.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from cadjax.data import classes, input_pipeline
from cadjax.data.input_pipeline import Batch, CaseRow, Dataset
from cadjax.segmentation import sliding
from data_prep.errors import UserError


def steps_per_epoch(
  dataset: Dataset, batch_size: int, patches_per_volume: int
) -> int:
  """Full batches in an epoch; UserError if there is none."""
  volumes = len(dataset.rows["train"])
  if volumes * patches_per_volume < batch_size:
    raise UserError(
      f"{dataset.path}: {volumes} training cases with {patches_per_volume}"
      f" patches each do not fill a batch of {batch_size}; lower"
      " config.data.batch_size or raise config.data.patches_per_volume"
    )
  return volumes * patches_per_volume // batch_size


def train_batches(
  dataset: Dataset,
  class_set: str,
  *,
  batch_size: int,
  patch_size: Sequence[int],
  patches_per_volume: int,
  foreground_share: float,
  seed: int,
  start: int,
  stop: int,
) -> Iterator[tuple[Batch, Sequence[CaseRow]]]:
  """Yields the batches of steps `start` to `stop`.

  In an epoch every training volume gives `patches_per_volume` patches, in
  shuffled order, but for the remainder that does not fill a batch.

  Args:
    dataset: with masks; volumes may differ in shape.
    class_set: a key of `classes.CLASS_SETS`, whose foreground counts.
    batch_size: patches, all devices together.
    patch_size: voxels along D, H and W; smaller volumes are padded with air.
    patches_per_volume: in an epoch.
    foreground_share: probability in [0, 1] of a patch around a foreground
      voxel, see `draw_corner`.
    seed: of order and places.
    start: the first step.
    stop: one past the last step.

  Yields:
    a batch of image int16 HU [B, D, H, W, 1], mask uint8 [B, D, H, W] (stored
    classes), known float32 [B, 5], valid float32 [B] and index int32 [B]; and
    the row of each patch's volume.
  """
  rows = dataset.rows["train"]
  per_epoch = steps_per_epoch(dataset, batch_size, patches_per_volume)
  size = tuple(patch_size)

  def load(i: int) -> tuple[Batch, Sequence[CaseRow]]:
    epoch, position = divmod(start + i, per_epoch)
    order = np.random.default_rng((seed, epoch)).permutation(
      len(rows) * patches_per_volume
    )
    picked = order[position * batch_size : (position + 1) * batch_size]
    batch = {
      "image": np.empty((batch_size, *size, 1), np.int16),
      "mask": np.empty((batch_size, *size), np.uint8),
      "known": np.empty((batch_size, len(classes.CLASS_NAMES)), np.float32),
      "valid": np.ones(batch_size, np.float32),
      "index": np.arange(batch_size, dtype=np.int32),
    }
    chosen = [rows[k // patches_per_volume] for k in picked]
    for j, (k, row) in enumerate(zip(picked, chosen, strict=True)):
      record = dataset.read(row)
      image = sliding.pad(record["image"], size, sliding.AIR_HU)
      mask = sliding.pad(record["mask"], size, 0)
      corner = draw_corner(
        np.random.default_rng((seed, epoch, k)),
        classes.map_mask(mask, class_set),
        size,
        foreground_share=foreground_share,
      )
      box = sliding.box(corner, size)
      batch["image"][j, ..., 0] = image[box]
      batch["mask"][j] = mask[box]
      batch["known"][j] = record["mask_classes"]
    return batch, chosen

  yield from input_pipeline.read_ahead(stop - start, load)


def draw_corner(
  rng: np.random.Generator,
  labels: np.ndarray,
  size: Sequence[int],
  *,
  foreground_share: float,
) -> tuple[int, ...]:
  """Draws where a patch begins.

  With probability `foreground_share` its middle is a foreground voxel, as far
  as the volume's edges allow: first a class is drawn from those present, each
  as likely as the others, then one of its voxels, so that a plaque of ten
  voxels is met as often as the aorta. Else the place is uniform.

  Args:
    rng: the source of randomness.
    labels: uint8 [D, H, W], 0 is background.
    size: of the patch, at most that of the labels.
    foreground_share: in [0, 1].

  Returns:
    the first voxel along D, H and W.
  """
  free = [n - s for n, s in zip(labels.shape, size, strict=True)]
  if rng.random() < foreground_share:
    counts = np.bincount(labels.ravel())
    present = np.flatnonzero(counts[1:]) + 1
    if present.size:
      drawn = rng.choice(present)
      voxels = np.flatnonzero(labels == drawn)
      middle = np.unravel_index(rng.choice(voxels), labels.shape)
      return tuple(
        int(np.clip(m - s // 2, 0, f))
        for m, s, f in zip(middle, size, free, strict=True)
      )
  return tuple(int(rng.integers(f + 1)) for f in free)
