"""Whether an explanation map depends on the model, and can be repeated.

Sanity and repeatability compare maps with maps (`compare`): of a model with
layers re-initialised (`randomise`, `smooth_mprt`, `efficient_mprt`), of one
trained on permuted labels (`label_randomisation`), of another class
(`random_logit`), of another seed or of another architecture. Two maps of
unrelated patients are alike too, since every heart lies in the middle;
`random_pairs` says how much.

Maps are [D, H, W], finite and at least 0, of any scale.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
import skimage.metrics

from cadjax.core import lookup

# Bins of the histogram in `complexity`.
BINS = 100
# Accuracy on permuted training labels from which they count as learned.
FITTED = 0.95


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


def cascade(
  variables: Mapping[str, Any],
  fresh: Mapping[str, Any],
  layer_order: Sequence[str],
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields each layer with the variables re-initialised up to it.

  Args:
    variables: of the trained model, see `randomise`.
    fresh: see there.
    layer_order: from the head down, as Adebayo et al. have it, or from the
      input up, as Hedstrom et al. 2024 (arXiv 2401.06465) ask for:
      from the head down, lower layers keep what they have learned and most of
      the map with it.
  """
  for layer in layer_order:
    yield layer, randomise(variables, fresh, layer_order, layer)


def smooth_maps(
  explain: Callable[[np.ndarray], np.ndarray],
  image: np.ndarray,
  *,
  samples: int = 16,
  noise: float = 0.1,
  batch_size: int = 4,
  seed: int = 0,
) -> np.ndarray:
  """Returns the mean map over noisy copies of an image, the image among them.

  Args:
    explain: images [n, D, H, W] to maps [n, ...]; it always gets `batch_size`
      of them.
    image: [D, H, W].
    samples: copies; the last one is the image itself.
    noise: standard deviation of the noise, as a share of the image's range.
    batch_size: images at a time.
    seed: of the noise, which is the same for every model.
  """
  rng = np.random.default_rng(seed)
  sigma = noise * float(np.ptp(image.astype(np.float64)))

  def copies() -> Iterator[np.ndarray]:
    for _ in range(samples - 1):
      near = image + sigma * rng.standard_normal(image.shape)
      if np.issubdtype(image.dtype, np.integer):
        near = np.rint(near)
      yield near.astype(image.dtype)
    yield image

  images, total = copies(), 0.0
  while chunk := list(itertools.islice(images, batch_size)):
    full = np.stack(chunk + [chunk[-1]] * (batch_size - len(chunk)))
    maps = np.asarray(explain(full), np.float64)[: len(chunk)]
    total = total + maps.sum(0)
  return total / samples


def smooth_mprt(
  explain: Callable[[Any, np.ndarray], np.ndarray],
  image: np.ndarray,
  trained: Any,
  randomised: Iterable[tuple[str, Any]],
  **options: Any,
) -> dict[str, dict[str, float]]:
  """Returns the smooth model parameter randomisation test (sMPRT).

  Hedstrom et al. 2024, arXiv 2401.06465: the similarity of the
  map before and after layers are re-initialised, both averaged over noisy
  copies of the image, since the noise of gradients ("shattered") lowers the
  similarity of methods that are noisy and favours them in the plain test.

  Args:
    explain: variables and images [n, D, H, W] to maps [n, D, H, W], signed or
      not; magnitudes are compared, after the mean.
    image: [D, H, W].
    trained: variables of the trained model.
    randomised: name and variables of each state of the model, as from
      `cascade` from the input up.
    **options: of `smooth_maps`.

  Returns:
    for each state `changed` of the two maps: 1 for a map that does not depend
    on the model, such as a constant or an edge detector, near 0 for one that
    does; the last state, all layers re-initialised, is the paper's figure.
  """

  def smoothed(variables: Any) -> np.ndarray:
    found = smooth_maps(lambda x: explain(variables, x), image, **options)
    return np.abs(found)

  before = smoothed(trained)
  return {
    name: changed(before, smoothed(variables)) for name, variables in randomised
  }


def complexity(heat: np.ndarray, *, bins: int = BINS) -> float:
  """Returns the entropy of a map's histogram in nats, in [0, log(bins)].

  Of the magnitudes, in bins of equal width from the least to the largest; 0
  for a constant map. It does not depend on the map's scale.
  """
  counts, _ = np.histogram(np.abs(heat), bins)
  return float(scipy.stats.entropy(counts))


def efficient_mprt(
  before: np.ndarray, after: np.ndarray, *, bins: int = BINS
) -> dict[str, float]:
  """Returns the efficient model parameter randomisation test (eMPRT).

  Hedstrom et al. 2024, arXiv 2401.06465: how much more complex
  the map is of the fully re-initialised model, with no comparison of voxels,
  whose choice decides the plain test, and with two maps in place of one for
  each layer.

  Args:
    before: map [D, H, W] of the trained model.
    after: map of the model with all layers re-initialised.
    bins: see `complexity`.

  Returns:
    complexity_before, complexity_after, and complexity_rise = (after - before)
    / before, at least -1: above 0 for a map that loses its structure with the
    model, 0 for one that does not depend on the model. NaN for a flat map.
  """
  a, b = complexity(before, bins=bins), complexity(after, bins=bins)
  return {
    "complexity_before": a,
    "complexity_after": b,
    "complexity_rise": (b - a) / a if a > 0 else math.nan,
  }


def random_logit(
  explain: Callable[[np.ndarray, int], np.ndarray],
  image: np.ndarray,
  *,
  target: int,
  num_classes: int,
  seed: int = 0,
) -> dict[str, float]:
  """Compares the map of a class with that of another one, drawn at random.

  Sixt et al. 2020, arXiv 1912.09818, the random logit test: a
  method whose map is the same whatever logit it explains does not explain it.
  With two classes there is one other. Where the log odds are explained, theirs
  are the negative of each other, and so are maps before their ReLU.

  Args:
    explain: images [1, D, H, W] and a class to maps [1, D, H, W].
    image: [D, H, W].
    target: the class explained.
    num_classes: of the model, at least 2.
    seed: of the draw.

  Returns:
    `changed` of both maps and other, the class drawn: ssim and spearman are 1
    for a map that ignores the class, such as a constant, and near 0 or below
    for one that follows it.

  Raises:
    ValueError: there is no other class.
  """
  if not 0 <= target < num_classes or num_classes < 2:
    raise ValueError(f"class {target} of {num_classes} has no other class")
  others = [k for k in range(num_classes) if k != target]
  other = others[int(np.random.default_rng(seed).integers(len(others)))]
  before, after = (
    np.asarray(explain(image[None], k))[0] for k in (target, other)
  )
  return changed(before, after) | {"other": float(other)}


def label_randomisation(
  before: np.ndarray, after: np.ndarray, *, fit: float
) -> dict[str, float]:
  """Compares a map with that of a model trained on permuted labels.

  The data randomisation test of Adebayo et al. 2018 (arXiv 1810.03292): labels
  that have nothing to do with the images can only be learned by heart, and a
  map that looks the same of a model that did explains the images and not what
  was learned of them. The other model must be of the same architecture and
  recipe, trained until it fits its permuted training labels (the paper: above
  95 %); where it does not, the test has not been made and is undefined.

  Args:
    before: map [D, H, W] of the model trained on the true labels.
    after: map of the same image and class by the other model.
    fit: accuracy of the other model on its permuted training labels, in
      [0, 1].

  Returns:
    `changed` of the maps, and fit: ssim and spearman are 1 for a map that does
    not depend on what was learned, such as a constant, and as for unrelated
    pairs (`random_pairs`) for one that does. NaN below a fit of 0.95.
  """
  found = changed(before, after)
  if fit < FITTED:
    found = dict.fromkeys(found, math.nan)
  return found | {"fit": float(fit)}
