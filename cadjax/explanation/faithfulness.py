"""Whether a model's score follows what an explanation map says of the voxels.

Ranks: `perturbation_auc` and `road` replace the voxels that the map ranks
first (or last) and watch the score. Amounts: `infidelity`, `sensitivity_n` and
`completeness` compare the score's change with the map's own sums, so they take
signed maps too. A map is read there as contributions: what each voxel adds to
the score over a baseline, as gradient x input and integrated gradients have
it. Heat of class activation maps has no unit, and what depends on its unit is
reported with the best scale as well.

Maps are [D, H, W] and finite. A slice is a volume of depth 1.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import scipy.integrate
import scipy.ndimage

from cadjax.explanation import imputation
from data_prep.errors import UserError

Score = Callable[[np.ndarray], np.ndarray]
# Shares of the voxels that `road` replaces.
ROAD_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def blurred(
  image: np.ndarray, spacing_mm: Sequence[float], sigma_mm: float = 10.0
) -> np.ndarray:
  """Returns an image [D, H, W] without its detail, in its own dtype.

  The usual baseline of `perturbation_auc`: unlike a constant it keeps the
  body's outline, so that a replaced block is not itself a finding.

  Args:
    image: [D, H, W].
    spacing_mm: of a voxel along D, H and W.
    sigma_mm: of the Gaussian.
  """
  sigma = sigma_mm / np.asarray(spacing_mm, np.float64)
  smooth = scipy.ndimage.gaussian_filter(image.astype(np.float32), sigma)
  return imputation.like(image, smooth)


def perturbation_auc(
  score: Score,
  image: np.ndarray,
  heat: np.ndarray,
  *,
  baseline: np.ndarray,
  block: int = 8,
  steps: int = 16,
  batch_size: int = 4,
  seed: int = 0,
) -> dict[str, float]:
  """Returns the insertion and deletion AUC of a map (Petsiuk, BMVC 2018).

  The image is cut into blocks, ranked by the map's mean over each. Deletion
  replaces the first blocks of the image by the baseline, insertion puts them
  into the baseline. The AUC is the area under the score against the share of
  voxels replaced (trapezoids), so it is in the score's unit: a low deletion
  and a high insertion AUC speak for the map. Blocks of equal heat come in
  random order.

  Args:
    score: images [n, D, H, W] to [n] numbers; it always gets `batch_size` of
      them, so a compiled one is compiled once.
    image: [D, H, W].
    heat: map [D, H, W].
    baseline: [D, H, W], what replaces; see `blurred`.
    block: edge of a block in voxels; those at the far edges may be smaller.
    steps: parts in which the blocks are replaced.
    batch_size: images at a time.
    seed: of the order of equal blocks.

  Returns:
    insertion and deletion; NaN for a zero map.

  Raises:
    ValueError: shapes differ.
  """
  if not image.shape == heat.shape == baseline.shape:
    raise ValueError(
      f"image {image.shape}, map {heat.shape} and baseline {baseline.shape}"
      " must have one shape"
    )
  if not np.any(heat > 0):
    return {"insertion": math.nan, "deletion": math.nan}
  blocks = _blocks(image.shape, block)
  sizes = np.bincount(blocks.ravel())
  # Rounded, so that the order of equal blocks is not that of rounding errors.
  means = np.bincount(blocks.ravel(), heat.ravel()) / sizes / heat.max()
  chance = np.random.default_rng(seed).random(sizes.size)
  order = np.lexsort((chance, -means.round(12)))
  rank = np.argsort(order)[blocks]
  counts = np.unique(np.linspace(0, sizes.size, steps + 1).round().astype(int))
  replaced = np.concatenate([[0], sizes[order].cumsum()])[counts] / image.size
  pairs = ((baseline, image), (image, baseline))
  images = (
    np.where(rank < count, new, old) for new, old in pairs for count in counts
  )
  curves = score_all(score, images, batch_size).reshape(2, counts.size)
  deletion, insertion = scipy.integrate.trapezoid(curves, replaced)
  return {"insertion": float(insertion), "deletion": float(deletion)}


def random_perturbation_auc(
  score: Score,
  image: np.ndarray,
  *,
  orders: int = 4,
  seed: int = 0,
  **options: Any,
) -> dict[str, float]:
  """Returns the mean `perturbation_auc` of random orders of the blocks.

  The null of every map of this image: a map is faithful where its insertion
  is above and its deletion below.

  Args:
    score: as there.
    image: [D, H, W].
    orders: how many.
    seed: of the first one.
    **options: as there.
  """
  flat = np.ones(image.shape)
  found = [
    perturbation_auc(score, image, flat, seed=seed + i, **options)
    for i in range(orders)
  ]
  return {
    name: float(np.mean([each[name] for each in found])) for name in found[0]
  }


def road(
  score: Score,
  image: np.ndarray,
  heat: np.ndarray,
  *,
  shares: Sequence[float] = ROAD_SHARES,
  neighbours: int = 26,
  noise: float = imputation.NOISE,
  batch_size: int = 4,
  seed: int = 0,
) -> dict[str, Any]:
  """Returns ROAD, removal with imputation (Rong et al., arXiv 2202.00449).

  The voxels that the map ranks first, or last, are filled in by
  `imputation.impute`, and the score is taken. The paper's figure is the
  accuracy over a data set at each share; of one image it is the score, whose
  sign is the decision where it is log odds, so the accuracy is the mean of
  `curve_most > 0` over cases.

  Args:
    score: images [n, D, H, W] to [n] numbers; it always gets `batch_size` of
      them.
    image: [D, H, W].
    heat: map [D, H, W]; voxels of equal heat come in random order.
    shares: of the voxels, each in (0, 1).
    neighbours: see `imputation.impute`.
    noise: see `imputation.impute`.
    batch_size: images at a time.
    seed: of the order of equal voxels and of the noise.

  Returns:
    curve_most and curve_least [len(shares)], the scores with the voxels of
    most and least heat filled in; most and least, their means, in the score's
    unit; and road = (least - most) / 2, the combination of both orders that
    pytorch-grad-cam has. The larger the better: up to half of what the score
    can fall if the map ranks perfectly, 0 on average for a constant or random
    map, below 0 for one that ranks backwards. NaN for a zero map.

  Raises:
    UserError: a share is not in (0, 1).
    ValueError: shapes differ.
  """
  if image.shape != heat.shape:
    raise ValueError(f"image {image.shape} and map {heat.shape} differ")
  if not all(0 < share < 1 for share in shares):
    raise UserError(f"the shares of ROAD {tuple(shares)} must be in (0, 1)")
  if not np.any(heat > 0):
    curve = np.full(len(shares), math.nan)
    undefined = dict.fromkeys(("most", "least", "road"), math.nan)
    return undefined | {"curve_most": curve, "curve_least": curve}
  rank = _ranks(heat.ravel(), seed).reshape(heat.shape)
  counts = [round(share * heat.size) for share in shares]
  missing = itertools.chain(
    (rank < count for count in counts),
    (rank >= heat.size - count for count in counts),
  )
  images = (
    imputation.impute(
      image, some, neighbours=neighbours, noise=noise, seed=seed + i
    )
    for i, some in enumerate(missing)
  )
  most, least = score_all(score, images, batch_size).reshape(2, len(shares))
  found = {"most": float(most.mean()), "least": float(least.mean())}
  found["road"] = (found["least"] - found["most"]) / 2
  return found | {"curve_most": most, "curve_least": least}


def box_changes(
  image: np.ndarray,
  baseline: np.ndarray,
  *,
  box: int = 16,
  samples: int = 64,
  seed: int = 0,
) -> Iterator[np.ndarray]:
  """Yields what removing a random cube changes, for `infidelity`.

  "Square removal" of Yeh et al. 2019 (arXiv 1901.09392) in 3D:
  image - baseline in the cube, 0 elsewhere.

  Args:
    image: [D, H, W].
    baseline: [D, H, W], what replaces.
    box: edge in voxels, cut to the image's.
    samples: how many.
    seed: of the corners.
  """
  rng = np.random.default_rng(seed)
  gap = image.astype(np.float64) - baseline
  for _ in range(samples):
    low = [int(rng.integers(max(1, n - box + 1))) for n in image.shape]
    inside = tuple(slice(a, a + box) for a in low)
    change = np.zeros(image.shape)
    change[inside] = gap[inside]
    yield change


def noise_changes(
  image: np.ndarray,
  baseline: np.ndarray,
  *,
  sigma: float,
  samples: int = 64,
  seed: int = 0,
) -> Iterator[np.ndarray]:
  """Yields image - (baseline + noise), for `infidelity`.

  The "noisy baseline" of Yeh et al. 2019 (arXiv 1901.09392).

  Args:
    image: [D, H, W].
    baseline: [D, H, W].
    sigma: standard deviation of the noise, in the image's unit.
    samples: how many.
    seed: of the noise.
  """
  rng = np.random.default_rng(seed)
  gap = image.astype(np.float64) - baseline
  for _ in range(samples):
    yield gap - sigma * rng.standard_normal(image.shape)


def per_unit(
  heat: np.ndarray, image: np.ndarray, baseline: np.ndarray
) -> np.ndarray:
  """Returns contributions per unit of the image, [D, H, W].

  They are heat / (image - baseline), the sensitivity that `infidelity` takes,
  and 0 where the image is the baseline and no change can contribute.
  """
  gap = image.astype(np.float64) - baseline
  safe = np.where(gap == 0, 1, gap)
  return np.where(gap == 0, 0, heat / safe)


def infidelity(
  score: Score,
  image: np.ndarray,
  heat: np.ndarray,
  *,
  changes: Iterable[np.ndarray],
  batch_size: int = 4,
) -> dict[str, float]:
  """Returns the infidelity of a map (Yeh et al. 2019, arXiv 1901.09392).

  Definition 2.1: the mean over changes I of
  (sum(I * heat) - (score(image) - score(image - I)))^2.

  Args:
    score: as in `road`.
    image: [D, H, W].
    heat: signed map [D, H, W] in the score's unit per unit of the image, as a
      gradient; see `per_unit` for contributions and heat.
    changes: [D, H, W] each, such as `box_changes`; taken one at a time.
    batch_size: images at a time.

  Returns:
    infidelity, at least 0 in squared units of the score, 0 for a map that
    predicts every change, as the weights of a linear model do;
    infidelity_null, that of a map of zeros, which is the mean squared change;
    infidelity_scaled, that of the map times its best scale, the share of the
    null in [0, 1]: 0 for a perfect map of any scale, 1 for one that says
    nothing of the changes. A constant map gets what the size of the changes
    explains. NaN without changes; infidelity_scaled is NaN for a zero map or
    where the score never changes.

  Raises:
    ValueError: shapes differ.
  """
  if image.shape != heat.shape:
    raise ValueError(f"image {image.shape} and map {heat.shape} differ")
  said: list[float] = []

  def images() -> Iterator[np.ndarray]:
    yield image
    for change in changes:
      said.append(float(np.vdot(change, heat)))
      yield imputation.like(image, image - change)

  first, *others = score_all(score, images(), batch_size)
  if not others:
    names = ("infidelity", "infidelity_null", "infidelity_scaled")
    return dict.fromkeys(names, math.nan)
  sums, falls = np.array(said), first - np.array(others)
  null, size = np.mean(falls**2), np.mean(sums**2)
  scaled = math.nan
  if null > 0 and size > 0:
    explained = np.mean(sums * falls) ** 2 / size
    scaled = float(np.clip(1 - explained / null, 0, 1))
  return {
    "infidelity": float(np.mean((sums - falls) ** 2)),
    "infidelity_null": float(null),
    "infidelity_scaled": scaled,
  }


def removals(
  score: Score,
  image: np.ndarray,
  heat: np.ndarray,
  *,
  baseline: np.ndarray,
  removed: Iterable[np.ndarray],
  batch_size: int = 4,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns what removing sets of voxels takes from the score and the map.

  Args:
    score: as in `road`.
    image: [D, H, W].
    heat: contributions [D, H, W].
    baseline: [D, H, W], what replaces.
    removed: bool [D, H, W] each, taken one at a time.
    batch_size: images at a time.

  Returns:
    score(image) - score(image with the set replaced) [n], and the map's sums
    over the sets [n].
  """
  if not image.shape == heat.shape == baseline.shape:
    raise ValueError(
      f"image {image.shape}, map {heat.shape} and baseline {baseline.shape}"
      " must have one shape"
    )
  sums: list[float] = []

  def images() -> Iterator[np.ndarray]:
    yield image
    for some in removed:
      sums.append(float(heat[some].sum(dtype=np.float64)))
      yield np.where(some, baseline, image)

  first, *others = score_all(score, images(), batch_size)
  return first - np.array(others, np.float64), np.array(sums)


def sensitivity_n(
  score: Score,
  image: np.ndarray,
  heat: np.ndarray,
  *,
  baseline: np.ndarray,
  shares: Sequence[float] = (0.01, 0.1, 0.25, 0.5, 0.75),
  block: int = 8,
  samples: int = 32,
  batch_size: int = 4,
  seed: int = 0,
) -> dict[str, float]:
  """Returns sensitivity-n (Ancona et al. 2018, arXiv 1711.06104).

  For each n: over random sets of n features, the correlation (Pearson) of the
  map's sum over the set with the fall of the score when the set is replaced by
  the baseline. The features here are blocks of voxels, since a set of single
  voxels of a volume is noise of high frequency.

  Args:
    score: as in `road`.
    image: [D, H, W].
    heat: contributions [D, H, W], signed or not, of any scale.
    baseline: [D, H, W], what replaces; see `blurred`.
    shares: n as shares of the blocks, at least one block and not all.
    block: edge of a block in voxels.
    samples: sets for each n; the paper takes 100.
    batch_size: images at a time.
    seed: of the sets.

  Returns:
    sensitivity_SHARE for each n, in [-1, 1]: 1 for contributions that add up,
    as the weights times the input of a linear model; about 0 for a random map;
    NaN for a constant map with equal blocks, and where the score does not
    change. And sensitivity_n, the mean of those defined.

  Raises:
    ValueError: shapes differ.
  """
  blocks = _blocks(image.shape, block)
  count = int(blocks.max()) + 1
  rng = np.random.default_rng(seed)
  sizes = [min(max(1, round(s * count)), max(1, count - 1)) for s in shares]

  def removed() -> Iterator[np.ndarray]:
    for size in sizes:
      for _ in range(samples):
        chosen = np.zeros(count, bool)
        chosen[rng.permutation(count)[:size]] = True
        yield chosen[blocks]

  falls, sums = removals(
    score,
    image,
    heat,
    baseline=baseline,
    removed=removed(),
    batch_size=batch_size,
  )
  found = {
    f"sensitivity_{share:g}": _correlation(a, b)
    for share, a, b in zip(
      shares,
      falls.reshape(len(sizes), samples),
      sums.reshape(len(sizes), samples),
      strict=True,
    )
  }
  known = [value for value in found.values() if not math.isnan(value)]
  mean = float(np.mean(known)) if known else math.nan
  return found | {"sensitivity_n": mean}


def completeness(
  score: Score,
  image: np.ndarray,
  heat: np.ndarray,
  *,
  baseline: np.ndarray,
  batch_size: int = 4,
) -> dict[str, float]:
  """Returns how far a map's sum is from what it should explain.

  Completeness (Sundararajan et al. 2017, arXiv 1703.01365, proposition 1): the
  contributions add up to score(image) - score(baseline).

  Args:
    score: as in `road`.
    image: [D, H, W].
    heat: signed contributions [D, H, W].
    baseline: [D, H, W].
    batch_size: images at a time.

  Returns:
    completeness_sum, the map's; completeness_change, the score's; and
    completeness_error = |sum - change| / |change|, at least 0: 0 for a map
    that is complete, 1 for a map of zeros; a constant or random map has any
    value, and so has heat without a unit. NaN where the score is the same.
  """
  everything = np.ones(image.shape, bool)
  (change,), (total,) = removals(
    score,
    image,
    heat,
    baseline=baseline,
    removed=[everything],
    batch_size=batch_size,
  )
  error = abs(total - change) / abs(change) if change else math.nan
  return {
    "completeness_sum": float(total),
    "completeness_change": float(change),
    "completeness_error": float(error),
  }


def score_all(
  score: Score, images: Iterator[np.ndarray], batch_size: int
) -> np.ndarray:
  """Returns the score of every image [n], `batch_size` images at a time.

  The last batch is filled up, so that a compiled score is compiled once; no
  more than one batch of images exists at a time.
  """
  scores = []
  while chunk := list(itertools.islice(images, batch_size)):
    full = chunk + [chunk[-1]] * (batch_size - len(chunk))
    scores.append(np.asarray(score(np.stack(full)))[: len(chunk)])
  return np.concatenate(scores).astype(np.float64)


def _ranks(values: np.ndarray, seed: int) -> np.ndarray:
  """Returns the place [n] of each value, 0 for the largest; ties at random."""
  chance = np.random.default_rng(seed).random(values.size)
  order = np.lexsort((chance, -values))
  rank = np.empty(values.size, np.int64)
  rank[order] = np.arange(values.size)
  return rank


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
  """Returns Pearson's correlation, NaN where one of the two is constant."""
  # Sums in another order may differ in the last bits and be no difference.
  flat = [np.ptp(x) <= 1e-12 * np.abs(x).max(initial=1e-300) for x in (a, b)]
  if a.size < 2 or any(flat):
    return math.nan
  return float(np.corrcoef(a, b)[0, 1])


def _blocks(shape: tuple[int, ...], block: int) -> np.ndarray:
  """Returns the number of its block for every voxel, int [D, H, W]."""
  index = np.zeros(shape, np.int64)
  for axis, size in enumerate(shape):
    along = np.arange(size) // block
    index *= along[-1] + 1
    index += along.reshape([-1 if k == axis else 1 for k in range(len(shape))])
  return index
