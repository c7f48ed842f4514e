"""Explanations that see the model from outside: references for `cam`.

Each takes `score_fn(images [n, *space, 1]) -> [n]` (see `cam.make_score`) and
one image, calls it with a few images at a time, and is to be jitted.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

ScoreFn = Callable[[jax.Array], jax.Array]


def occlusion(
  score_fn: ScoreFn,
  image: jax.Array,
  *,
  step: Sequence[int],
  box: Sequence[int],
  value: float = 0.0,
  batch: int = 1,
) -> jax.Array:
  """How much the score falls when a box of the image is blanked.

  Zeiler & Fergus 2014, arXiv 1311.2901, section 4.2.

  Args:
    score_fn: see above.
    image: [*space, 1] in [0, 1].
    step: voxels from box to box along each axis. As in a feature map of that
      stride, the box of cell o is centred on voxel step o.
    box: its voxels along each axis; an even box lies half a voxel low.
    value: of the voxels in the box; 0 is the low end of the HU window.
    batch: images at a time.

  Returns:
    [*ceil(space / step)]: score(image) - score(image without the box). What
    is positive speaks for the score.
  """
  space = image.shape[:-1]
  cells = [-(-n // s) for n, s in zip(space, step, strict=True)]
  centres = np.stack(np.unravel_index(np.arange(math.prod(cells)), cells), -1)
  low = centres * np.array(step) - np.array(box) // 2

  def blank(start):
    inside = jnp.array(True)
    for axis, (n, size) in enumerate(zip(space, box, strict=True)):
      at = jnp.arange(n).reshape(-1, *(1,) * (len(space) - axis - 1))
      inside = inside & (at >= start[axis]) & (at < start[axis] + size)
    return jnp.where(inside[..., None], jnp.asarray(value, image.dtype), image)

  chunks = -(-len(low) // batch)
  # The last chunk is filled up with boxes that were there.
  low = np.resize(low, (chunks, batch, len(space)))
  occluded = jax.lax.map(
    lambda starts: score_fn(jax.vmap(blank)(starts)), jnp.asarray(low)
  )
  drop = score_fn(image[None])[0] - occluded.ravel()[: math.prod(cells)]
  return drop.reshape(cells)


def gradient_x_input(score_fn: ScoreFn, image: jax.Array) -> jax.Array:
  """The gradient times the image (Shrikumar et al. 2016, arXiv 1605.01713).

  What layer-wise relevance propagation (LRP) comes down to in a network of
  ReLUs without biases, and the first term of integrated gradients.

  Args:
    score_fn: see above.
    image: [*space, 1] in [0, 1]; 0 is the low end of the HU window.

  Returns:
    [*space], signed; of a linear score its sum is score(image) - score(0).
  """
  slope = jax.grad(lambda x: score_fn(x[None]).sum())(image)
  return (image * slope).sum(-1)


def gradient(score_fn: ScoreFn, image: jax.Array) -> jax.Array:
  """The gradient, signed, [*space]; arguments as in `gradient_x_input`.

  Of a score with `guided.guided` ReLUs it is guided backpropagation.
  """
  return jax.grad(lambda x: score_fn(x[None]).sum())(image).sum(-1)


def integrated_gradients(
  score_fn: ScoreFn,
  image: jax.Array,
  *,
  steps: int = 32,
  baseline: float = 0.0,
  batch: int = 1,
) -> jax.Array:
  """(x - x0) times the mean gradient on the way from a baseline x0 to x.

  Sundararajan et al. 2017, arXiv 1703.01365, by the midpoint rule.

  Args:
    score_fn: see above.
    image: [*space, 1] in [0, 1].
    steps: points on the way.
    baseline: the value of x0; 0 is the low end of the HU window.
    batch: images at a time.

  Returns:
    [*space], signed; its sum approaches score(image) - score(baseline).
  """

  def on_the_way(index):
    share = (index + 0.5) / steps
    return baseline + share.astype(image.dtype) * (image - baseline)

  mean = _mean_gradient(score_fn, on_the_way, image, steps, batch)
  return ((image - baseline) * mean).sum(-1)


def smoothgrad(
  score_fn: ScoreFn,
  image: jax.Array,
  key: jax.Array,
  *,
  n: int = 16,
  sigma: float = 0.1,
  batch: int = 1,
) -> jax.Array:
  """The mean gradient at noisy copies (Smilkov et al. 2017, arXiv 1706.03825).

  Args:
    score_fn: see above.
    image: [*space, 1] in [0, 1].
    key: a JAX random key; copy i has `fold_in(key, i)`, whatever the batch.
    n: copies.
    sigma: standard deviation of the noise, as a share of the HU window.
    batch: images at a time.

  Returns:
    [*space], the magnitude, as the paper's pictures have it.
  """

  def noisy(index):
    drawn = jax.random.normal(
      jax.random.fold_in(key, index), image.shape, image.dtype
    )
    return image + sigma * drawn

  return jnp.abs(_mean_gradient(score_fn, noisy, image, n, batch)).sum(-1)


def _mean_gradient(
  score_fn: ScoreFn,
  make_image: Callable[[jax.Array], jax.Array],
  like: jax.Array,
  count: int,
  batch: int,
) -> jax.Array:
  """The mean over i of the gradient of the score at `make_image(i)`."""
  gradient = jax.grad(lambda images: score_fn(images).sum())
  chunks = -(-count // batch)
  index = jnp.arange(chunks * batch).reshape(chunks, batch)

  def add(total, chunk):
    each = gradient(jax.vmap(make_image)(chunk))
    counts = (chunk < count).reshape(-1, *(1,) * like.ndim)
    return total + jnp.where(counts, each, 0).sum(0), None

  total, _ = jax.lax.scan(add, jnp.zeros_like(like), index)
  return total / count
