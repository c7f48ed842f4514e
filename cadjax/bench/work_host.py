"""The rows that need no device: records, preprocessing and phantoms."""

import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

from cadjax.bench.work import Work, median_seconds, resident_bytes
from data_prep import formats, geometry, phantom
from data_prep.volume import read_mask, read_volume

# Read in one run, so that starting the readers does not weigh.
VOLUMES_A_RUN = 64


def data(spec: Mapping[str, Any]) -> Work:
  """Makes a reader of training batches, epoch after epoch.

  The records are in the page cache after the warm-up. Every run starts its
  own readers: none finds batches that were read before it began. The variant
  "cells" lays them out as the folded stem takes them.
  """
  # Here, so that their memory is not on the other rows' account.
  import ml_collections

  from cadjax.data import input_pipeline
  from cadjax.models import folded

  config = ml_collections.ConfigDict(spec["config"])
  config.data.path = spec["data"]
  dataset = input_pipeline.open_dataset(config.data)
  size = spec["batch"]
  steps = max(VOLUMES_A_RUN // size, dataset.steps_per_epoch(size))
  starts = itertools.count(0, steps)
  slices = config.data.slices_per_volume if config.model.ndim == 2 else None
  memory = []

  def run() -> None:
    start = next(starts)
    for _ in dataset.train_batches(
      size,
      seed=config.seed,
      start=start,
      stop=start + steps,
      slices_per_volume=slices,
      layout=folded.to_cells if spec["variant"] == "cells" else None,
    ):
      pass
    memory.append(resident_bytes())

  def finish() -> dict[str, Any]:
    return {"rss_bytes": memory}

  return Work(run, volumes=steps * size, finish=finish)


def preprocess(spec: Mapping[str, Any]) -> Work:
  """Makes the way of a scan, or of its mask, from file to target grid."""
  path = spec["file"]
  grid = geometry.GridSpec("paper", shape=tuple(spec["shape"]))
  is_mask = spec["variant"] == "mask"
  read = read_mask if is_mask else read_volume

  def lay(volume):
    if is_mask:
      return geometry.mask_to_grid(volume, geometry.target_grid(grid, volume))
    return geometry.to_grid(volume, grid)

  def finish() -> dict[str, Any]:
    unpack = median_seconds(lambda: formats.read_nifti(pathlib.Path(path)))
    volume = read(path)
    whole = median_seconds(lambda: read(path))
    return {
      "breakdown": {
        "decompression": unpack,
        "orientation": max(whole - unpack, 0),
        "resampling": median_seconds(lambda: lay(volume)),
      }
    }

  def run() -> None:
    lay(read(path))

  return Work(run, volumes=1, finish=finish)


def draw(spec: Mapping[str, Any]) -> Work:
  """Makes phantoms, another one in every run."""
  import SimpleITK as sitk

  # As in a worker of data_prep.build, which has one core.
  sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
  grid = geometry.GridSpec("paper", shape=tuple(spec["shape"]))
  seeds = itertools.count()

  def run() -> None:
    seed = next(seeds)
    phantom.make_phantom(seed, label=seed % 2, grid=grid)

  return Work(run, volumes=1)


MAKERS = {"data": data, "preprocess": preprocess, "phantom": draw}
