"""Whether an explanation map stays the same for nearly the same image.

Both measures draw images around one and explain them again, a few at a time.
They say nothing of whether the map is right: one that ignores the image is
perfectly stable.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from cadjax.explanation.faithfulness import Score

# Images [n, D, H, W] to maps [n, ...]; it always gets the same n.
Explain = Callable[[np.ndarray], np.ndarray]
# What relative changes are taken of is at least this share of its maximum.
FLOOR = 0.01


def max_sensitivity(
  explain: Explain,
  image: np.ndarray,
  *,
  radius: float,
  samples: int = 10,
  batch_size: int = 4,
  seed: int = 0,
) -> dict[str, float]:
  """Returns the max-sensitivity of maps (Yeh et al. 2019, arXiv 1901.09392).

  Definition 3.1: the largest distance (L2 over voxels) of the map of an image
  near by from the map itself. As in the authors' code it is relative to the
  map's own norm, so that maps of any scale compare. The maximum is over random
  images, and so a lower bound.

  Args:
    explain: images [n, D, H, W] to maps [n, ...]; it always gets `batch_size`
      of them, so a compiled one is compiled once.
    image: [D, H, W].
    radius: of the cube around the image in which each voxel is drawn evenly,
      in the image's unit.
    samples: images drawn.
    batch_size: images at a time.
    seed: of the draws.

  Returns:
    max_sensitivity, at least 0: 0 for maps that do not change, and so for a
    constant map; about sqrt(2) for maps that have nothing in common but their
    norm. NaN where the map of the image is zero.
  """
  first, *others = _explained(explain, image, radius, samples, batch_size, seed)
  size = np.linalg.norm(first)
  if not size > 0 or not others:
    return {"max_sensitivity": math.nan}
  worst = max(np.linalg.norm(other - first) for _, other in others)
  return {"max_sensitivity": float(worst / size)}


def relative_input_stability(
  explain: Explain,
  image: np.ndarray,
  *,
  radius: float,
  score: Score | None = None,
  origin: float = 0.0,
  floor: float = FLOOR,
  samples: int = 10,
  batch_size: int = 4,
  seed: int = 0,
) -> dict[str, float]:
  """Returns the relative input stability of maps (Agarwal et al. 2022).

  arXiv 2203.06877, equation 2: the largest ratio, over images near by with the
  same decision, of the map's relative change to the image's, both voxel by
  voxel in the L2 norm. The equation divides by every voxel's value, which is
  undefined where that is 0, as in most of a map after its ReLU; here nothing
  is divided by less than a share of the largest value.

  Args:
    explain: as in `max_sensitivity`; maps on any grid.
    image: [D, H, W].
    radius: as there.
    score: images [n, D, H, W] to [n] log odds, whose sign is the decision; all
      images count if left out.
    origin: the image's value that counts as 0 in relative changes, such as the
      low end of a window in HU.
    floor: share of the largest value, of map and image; 0 is the paper's.
    samples: images drawn.
    batch_size: images at a time.
    seed: of the draws.

  Returns:
    relative_input_stability, at least 0: 0 for maps that do not change (a
    constant map, too), 1 for maps that change as much as the image does, and
    the paper compares logarithms; kept, the share of the images drawn that
    count. NaN where the map is zero or no image counts.
  """
  first, *others = _explained(
    explain, image, radius, samples, batch_size, seed, score
  )
  if not np.abs(first).max() > 0:
    return {"relative_input_stability": math.nan, "kept": math.nan}
  values = image.astype(np.float64) - origin
  size, heat = (_at_least(x, floor) for x in (values, first))
  ratios = []
  for drawn, other in others:
    change = np.linalg.norm((drawn - image.astype(np.float64)) / size)
    ratios.append(np.linalg.norm((other - first) / heat) / max(change, 1e-12))
  return {
    "relative_input_stability": float(max(ratios, default=math.nan)),
    "kept": len(ratios) / samples,
  }


def _at_least(values: np.ndarray, floor: float) -> np.ndarray:
  """Returns the magnitudes, none below a share of the largest."""
  size = np.abs(values)
  return np.maximum(size, floor * size.max())


def _explained(
  explain: Explain,
  image: np.ndarray,
  radius: float,
  samples: int,
  batch_size: int,
  seed: int,
  score: Score | None = None,
) -> Iterator:
  """Yields the map of the image, then images near by with their maps.

  Only those of the image's own decision, if a score gives it.
  """
  rng = np.random.default_rng(seed)

  def drawn() -> Iterator[np.ndarray]:
    yield image
    for _ in range(samples):
      near = image + rng.uniform(-radius, radius, image.shape)
      if np.issubdtype(image.dtype, np.integer):
        near = np.rint(near)
      yield near.astype(image.dtype)

  images, side = drawn(), None
  while chunk := list(itertools.islice(images, batch_size)):
    full = np.stack(chunk + [chunk[-1]] * (batch_size - len(chunk)))
    maps = np.asarray(explain(full), np.float64)
    sides = np.ones(batch_size, bool)
    if score is not None:
      sides = np.asarray(score(full)) > 0
    for near, heat, here in zip(chunk, maps, sides, strict=False):
      if side is None:
        side = here
        yield heat
      elif here == side:
        yield near.astype(np.float64), heat
