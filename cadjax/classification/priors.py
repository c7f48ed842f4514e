"""What a classifier may see beside the volume: where the vessels are.

The paper's first open question: do masks of the aorta and of the coronary
arteries, as prior knowledge, help the classifier? `config.data.prior` says
how it sees them, and whether they are those of the records or predicted.
"""

import pathlib
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn
from scipy import ndimage

from cadjax.core import lookup
from cadjax.data import classes
from data_prep import checksums
from data_prep.errors import UserError
from data_prep.tissues import CLASS_NAMES, HEART, Tissue

USES = ("none", "channels", "region", "heart")
# Plaque counts as coronary artery: as a class of its own it would give the
# label away.
CLASS_SET = "aorta_coronaries"
AORTA, CORONARIES = 1, 2


def use_of(config: ml_collections.ConfigDict) -> str:
  """Returns which masks the model of a config sees, of `USES`.

  Raises:
    lookup.ConfigError: `config.data.prior.use` is unknown.
  """
  # Segmenters, and classifiers from before there were priors, have no field.
  prior = config.data.get("prior")
  if not prior:
    return "none"
  lookup.check_known([prior.use], USES, "config.data.prior.use")
  return prior.use


def used(config: ml_collections.ConfigDict) -> bool:
  """Returns whether the model of a config sees masks; see `use_of`."""
  return use_of(config) != "none"


def channels(config: ml_collections.ConfigDict) -> int:
  """Returns the channels of the model's input: 1, or 3 with masks."""
  return 3 if use_of(config) == "channels" else 1


def make_prior(
  config: ml_collections.ConfigDict,
) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
  """Makes `prior(image, mask) -> image`; None where the model sees no mask.

  From a windowed image [N, (D,) H, W, 1] and stored classes [N, (D,) H, W] to
  the model's input: with two more channels, aorta and coronary arteries (0 or
  1), or the image with all 0 but the coronary arteries, or the heart, and a
  margin around them.
  """
  if not used(config):
    return None
  use, ndim = config.data.prior.use, config.model.ndim
  margin = tuple(config.data.prior.margin_voxels)[-ndim:]

  def prior(image, mask):
    if use == "heart":
      return _keep(image, jnp.isin(mask, jnp.asarray(HEART)), margin)
    mask = classes.map_mask(mask, CLASS_SET)
    if use == "channels":
      seen = [(mask == number)[..., None] for number in (AORTA, CORONARIES)]
      return jnp.concatenate([image, *seen], axis=-1, dtype=image.dtype)
    return _keep(image, mask == CORONARIES, margin)

  return prior


def _keep(
  image: jax.Array, inside: jax.Array, margin: tuple[int, ...]
) -> jax.Array:
  """Sets all to 0 but what is inside and a margin around it."""
  near = inside.astype(image.dtype)[..., None]
  for axis, m in enumerate(margin):  # Far cheaper than all axes at once.
    window = [1] * len(margin)
    window[axis] = 2 * m + 1
    near = nn.max_pool(near, tuple(window), padding="SAME")
  return image * near


def keep_heart(
  hu: np.ndarray, heart: np.ndarray, config: ml_collections.ConfigDict
) -> np.ndarray:
  """Blanks a volume away from its heart on the host, as `make_prior` does.

  Args:
    hu: int16 [D, H, W] on the model's grid.
    heart: bool [D, H, W], where the heart is.
    config: of a classifier whose `data.prior.use` is "heart".

  Returns:
    int16 [D, H, W], the lowest HU of the model's window outside.
  """
  margin = list(config.data.prior.margin_voxels)
  if config.model.ndim == 2:
    margin[0] = 0  # A slice knows of no other.
  size = [2 * m + 1 for m in margin]
  near = ndimage.maximum_filter(heart, size, mode="constant")
  low = np.int16(config.data.window_hu[0])
  return np.where(near, hu, low)


def make_reader(
  folder: str, use: str
) -> Callable[[Mapping[str, str], Mapping[str, Any]], np.ndarray]:
  """Makes `read(row, record) -> mask`, the stored classes uint8 [D, H, W].

  Args:
    folder: of `write_mask`; "" for the masks of the records.
    use: of `USES`, which says what those masks must contain.
  """
  needed = {
    "region": [Tissue.LUMEN],
    "heart": list(HEART),
  }.get(use, [Tissue.AORTA, Tissue.LUMEN])

  def read(row, record):
    if not folder:
      known = np.asarray(record["mask_classes"])
      if not known[needed].all():
        raise UserError(
          f"the mask of the case {row['case_id']} does not annotate all that"
          f" config.data.prior.use = {use!r} needs, which may give the label"
          " away; leave such cases out, or predict the masks of all into"
          " config.data.prior.masks"
        )
      return record["mask"]
    path = pathlib.Path(folder) / f"{row['case_id']}.npz"
    try:
      # Of what is damaged, np.load leaves a file open that it opened itself.
      with path.open("rb") as file, np.load(file) as stored:
        mask = stored["mask"]
    except (
      *(OSError, KeyError, ValueError, EOFError),
      *(zipfile.BadZipFile, zlib.error, NotImplementedError),
    ) as error:
      raise UserError(
        f"{path}: no predicted mask can be read there ({error});"
        " config.data.prior.masks must be a folder with one for every case"
      ) from error
    if mask.shape != record["image"].shape:
      raise UserError(
        f"{path}: the mask is {mask.shape}, the volume"
        f" {record['image'].shape}; predict the masks on this data set"
      )
    most = len(CLASS_NAMES) - 1
    if mask.dtype != np.uint8 or mask.max(initial=0) > most:
      raise UserError(
        f"{path}: the mask is of {mask.dtype} up to {mask.max()}; it must hold"
        f" the classes 0 to {most} as uint8"
      )
    return mask

  return read


def fingerprints(
  folder: str, rows: Mapping[str, Sequence[Mapping[str, str]]]
) -> dict[str, str | None]:
  """Returns the identity of the predicted masks of each split.

  It is of the CRC-32 of the voxels that each file notes, and that each reading
  checks, so that no mask needs to be unpacked.

  Args:
    folder: of `write_mask`.
    rows: of cases.csv, by split.

  Returns:
    16 hexadecimal digits by split; None where a mask is missing or damaged,
    which is an error once it is read.
  """
  found: dict[str, str | None] = {}
  for split, cases in rows.items():
    noted = {}
    for row in cases:
      path = pathlib.Path(folder) / f"{row['case_id']}.npz"
      try:
        with zipfile.ZipFile(path) as stored:
          one = stored.getinfo("mask.npy")
      except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        noted = None
        break
      noted[row["case_id"]] = [one.CRC, one.file_size]
    found[split] = None if noted is None else checksums.of_json(noted)[:16]
  return found


def write_mask(folder: pathlib.Path, case_id: str, mask: np.ndarray) -> None:
  """Writes a predicted mask, stored classes uint8 [D, H, W], for `make_reader`.

  Whole or not at all.
  """
  folder.mkdir(parents=True, exist_ok=True)
  temporary = folder / f".{case_id}.tmp.npz"
  np.savez_compressed(temporary, mask=mask.astype(np.uint8))
  temporary.replace(folder / f"{case_id}.npz")


def as_stored(labels: np.ndarray, class_set: str) -> np.ndarray:
  """Returns a segmenter's classes as stored ones; merged parts are the first.

  Args:
    labels: [...], numbers in the names of the class set.
    class_set: a key of `classes.CLASS_SETS`.
  """
  first = [
    parts[0] for parts in classes.get_class_set(class_set).parts.values()
  ]
  table = [0, *(classes.CLASS_NAMES.index(name) for name in first)]
  return np.array(table, np.uint8)[labels]
