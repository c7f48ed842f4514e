"""Whether an explanation map depends on the model, and can be repeated.

Sanity and repeatability compare maps with maps (`compare`): of a model with
layers re-initialised (`randomise`), of another seed or of another
architecture. Two maps of unrelated patients are alike too, since every heart
lies in the middle; `random_pairs` says how much.

Maps are [D, H, W], finite and at least 0, of any scale.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
import skimage.metrics

from cadjax.core import lookup


def layer_modules(tree: Mapping[str, Any], layer: str) -> list[str]:
  """Returns the top-level modules of a parameter tree that make a layer.

  They are those that have the layer's name as one of the words of theirs:
  "stage4" has stage4_block1 and stage4_block2, "stem" conv_stem and norm_stem.
  """
  return [name for name in tree if layer in (name, *name.split("_"))]


def randomise(
  variables: Mapping[str, Any],
  fresh: Mapping[str, Any],
  layer_order: Sequence[str],
  upto: str,
) -> dict[str, Any]:
  """Re-initialises a model from the top down (Adebayo, NeurIPS 2018).

  Cascading weight randomisation: a map that does not change with it does not
  depend on what the model has learned.

  Args:
    variables: of the trained model: {"params": ..., "batch_stats": ...}.
    fresh: of `model.init` with another key, the same tree.
    layer_order: layers from the head down to the input, see `layer_modules`.
    upto: the last layer re-initialised; all before it in the order are too.

  Returns:
    new variables: parameters and running statistics of those layers are the
    fresh ones, all others the trained ones. Nothing is copied or changed.

  Raises:
    lookup.UnknownName: `upto` is not in the order, or a layer has no module.
  """
  lookup.check_known([upto], layer_order, "layer")
  chosen: set[str] = set()
  for layer in layer_order[: list(layer_order).index(upto) + 1]:
    modules = layer_modules(variables["params"], layer)
    if not modules:
      lookup.check_known([layer], variables["params"], "layer")
    chosen.update(modules)
  return {
    kind: {
      name: fresh[kind][name] if name in chosen else part
      for name, part in tree.items()
    }
    for kind, tree in variables.items()
  }


def compare(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
  """Returns how alike two maps [D, H, W] of one grid are.

  Returns:
    ssim: the mean structural similarity (Wang et al. 2004) in 3D, in [-1, 1],
    of the maps divided by their maxima, in a cube of 7 voxels or the largest
    odd number that fits; NaN below 3 voxels. spearman: the rank correlation
    over voxels, in [-1, 1]; NaN where a map is flat. Both NaN where a map is
    zero; see `changed` for a map that became so.

  Raises:
    ValueError: shapes differ.
  """
  a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
  if a.shape != b.shape or a.ndim != 3:
    raise ValueError(f"maps must be 3D and of one shape: {a.shape}, {b.shape}")
  result = {"ssim": math.nan, "spearman": math.nan}
  if not (a.max() > 0 and b.max() > 0):
    return result
  size = min(7, min(a.shape) - (min(a.shape) + 1) % 2)
  if size >= 3:
    result["ssim"] = float(
      skimage.metrics.structural_similarity(
        a / a.max(), b / b.max(), win_size=size, data_range=1.0
      )
    )
  if np.ptp(a) > 0 and np.ptp(b) > 0:
    result["spearman"] = float(
      scipy.stats.spearmanr(a.ravel(), b.ravel()).statistic
    )
  return result


def changed(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
  """Returns `compare` of a map with what became of it.

  A map that became zero or flat has changed as much as one can: it has
  nothing in common with the one before, 0 of both measures. Left undefined it
  would leave the mean, which would then be of the maps that changed least.

  Args:
    before: map [D, H, W]; where it is zero or flat itself, undefined stays.
    after: the same map of a changed model.
  """
  found = compare(before, after)
  if np.ptp(before) > 0 and not np.ptp(after) > 0:
    lost = {name: 0.0 for name in found}
    return lost if min(before.shape) >= 3 else lost | {"ssim": math.nan}
  return found


def random_pairs(
  maps: Sequence[np.ndarray], *, pairs: int = 20, seed: int = 0
) -> dict[str, float]:
  """Returns the mean of `compare` over pairs of unrelated maps.

  The baseline of every comparison: what two maps of different patients have
  in common.

  Args:
    maps: [D, H, W] each, one a patient.
    pairs: at most this many, drawn without replacement.
    seed: of the draw.

  Returns:
    ssim and spearman, means over the pairs where they are defined, and pairs,
    the number compared.
  """
  every = list(itertools.combinations(range(len(maps)), 2))
  rng = np.random.default_rng(seed)
  drawn = rng.permutation(len(every))[:pairs]
  results = [compare(maps[every[k][0]], maps[every[k][1]]) for k in drawn]
  means = {}
  for name in ("ssim", "spearman"):
    values = [r[name] for r in results if not math.isnan(r[name])]
    means[name] = float(np.mean(values)) if values else math.nan
  return means | {"pairs": float(len(results))}
