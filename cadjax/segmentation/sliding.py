"""Sliding-window inference: volumes of any size through one fixed window."""

import concurrent.futures
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from cadjax.core import lookup, parallel

PyTree = Any
AIR_HU = -1024
# Standard deviation of a window's weights, as a share of its edge.
SIGMA = 1 / 8


class NonFiniteError(ValueError):
  """The network gave a probability that is NaN."""


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
  """What a segmenter says of one volume.

  Attributes:
    labels: uint8 [D, H, W], the most probable class of each voxel.
    probabilities: float16 [D, H, W, K], or None if not asked for.
  """

  labels: np.ndarray
  probabilities: np.ndarray | None = None


class SlidingWindow:
  """Segments volumes window by window and averages where windows overlap.

  A voxel's probabilities are the mean over the windows that hold it, weighted
  by a Gaussian around each window's middle, as the edge of a window is where
  a network knows least (Isensee et al. 2021,
  https://doi.org/10.1038/s41592-020-01008-z). Windows lie evenly spread; a
  volume smaller than the window is padded with air on both sides.

  The network, softmax, mirroring and weighting are one compiled function on
  [batch, *window, 1]: no volume compiles it again. The host adds up in
  float32, in a slab as deep as one window: planes that no later window
  touches are divided by their weights and freed. A volume [D, H, W] with K
  classes, windows [d, h, w] and batches of B takes, beside itself, about

    4 K d H W + D H W + 2 B (4 K + 2) d h w  bytes,

  and 2 K D H W more for probabilities.

  Args:
    apply: `fn(variables, image) -> logits`, int16 HU [B, *window, 1] to
      float32 [B, *window, K], such as `steps.make_voxel_logits` makes.
    window: voxels along D, H and W; (1, H, W) for a 2D network.
    overlap: the least share of a window's edge that the next one covers.
    batch: windows at a time, on all devices together.
    num_classes: K.
    mirror: whether to average over all mirror images of each window.
    devices: where it runs; the first device if left out.

  Raises:
    lookup.ConfigError: a size, the overlap or the batch is out of range.
  """

  def __init__(
    self,
    apply: Callable[[PyTree, jax.Array], jax.Array],
    window: Sequence[int],
    overlap: float,
    batch: int,
    num_classes: int,
    *,
    mirror: bool = False,
    devices: parallel.Parallel | None = None,
  ):
    self._window = tuple(int(n) for n in window)
    if len(self._window) != 3 or min(self._window) < 1:
      raise lookup.ConfigError(
        f"a window has 3 sizes of at least 1, not {tuple(window)}"
      )
    if not 0 <= overlap < 1:
      raise lookup.ConfigError(
        f"the overlap of windows is {overlap}; it must be in [0, 1)"
      )
    self._devices = devices or parallel.make_parallel("mesh", data=1)
    self._devices.check_batch(batch, self._window[0])
    self._overlap, self._batch = overlap, batch
    self._num_classes = num_classes
    self._profiles = [profile(n) for n in self._window]
    step = _make_forward(apply, self._profiles, mirror=mirror)
    self._forward = self._devices.eval_step(step)

  def __call__(
    self,
    variables: PyTree,
    hu: np.ndarray,
    *,
    probabilities: bool = False,
    progress: bool = False,
  ) -> Segmentation:
    """Segments one volume.

    Args:
      variables: of the network.
      hu: int16 [D, H, W].
      probabilities: whether to keep them.
      progress: whether to show a bar on a terminal.

    Raises:
      NonFiniteError: the network gives NaN.
    """
    padded = pad(hu, self._window, AIR_HU)
    starts = [
      window_starts(n, size, self._overlap)
      for n, size in zip(padded.shape, self._window, strict=True)
    ]
    slab = _Slab(
      padded.shape,
      self._num_classes,
      starts,
      self._profiles,
      keep_probabilities=probabilities,
    )
    # Depth is slowest, so that planes are done one after the other.
    corners = list(itertools.product(*starts))
    chunks = list(_chunks(corners, self._batch))
    bar = tqdm(
      self._run(variables, padded, chunks),
      "windows",
      len(chunks),
      leave=False,
      disable=None if progress else True,
    )
    for chunk, weighted in zip(chunks, bar, strict=True):
      for corner, values in zip(chunk, weighted, strict=False):
        slab.add(corner, values)
    slab.finish(padded.shape[0])
    inside = _inside(hu.shape, padded.shape)
    kept = slab.probabilities
    return Segmentation(
      slab.labels[inside], None if kept is None else kept[inside]
    )

  def _run(self, variables, hu, chunks) -> Iterator[np.ndarray]:
    """Yields each batch's result while the next one is computed."""

    def run(chunk):
      image = np.full((self._batch, *self._window, 1), AIR_HU, np.int16)
      for i, corner in enumerate(chunk):
        image[i, ..., 0] = hu[box(corner, self._window)]
      batch = self._devices.put_batch({"image": image})
      result = self._forward(variables, batch)
      if not np.isfinite(result.sum()):
        raise NonFiniteError("the probabilities of the network are NaN")
      return result

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
      ahead = None
      for chunk in chunks:
        following = pool.submit(run, chunk)
        if ahead is not None:
          yield ahead.result()
        ahead = following
      yield ahead.result()


def _make_forward(apply, profiles, *, mirror):
  """Makes `step(variables, batch) -> [B, *window, K]`, weighted."""
  d, h, w = (p.astype(np.float32) for p in profiles)
  weights = (d[:, None, None] * h[:, None] * w)[None, ..., None]
  probabilities = make_probabilities(apply, mirror=mirror)

  def step(variables, batch):
    return probabilities(variables, batch["image"]) * weights

  return step


def make_probabilities(
  apply: Callable[[PyTree, jax.Array], jax.Array], *, mirror: bool
) -> Callable[[PyTree, jax.Array], jax.Array]:
  """Makes `fn(variables, image) -> float32 [B, *window, K]` in [0, 1].

  Args:
    apply: as of `SlidingWindow`.
    mirror: whether to average over all mirror images of the window.
  """

  def turned(x, flags):
    for axis in range(3):
      x = jnp.where(flags[axis], jnp.flip(x, 1 + axis), x)
    return x

  def probabilities(variables, image):
    if not mirror:
      return jax.nn.softmax(apply(variables, image), axis=-1)
    turns = [(False, True) if n > 1 else (False,) for n in image.shape[1:4]]
    flips = list(itertools.product(*turns))

    # A loop of the device, so that the network is compiled once.
    def one(flags):
      logits = apply(variables, turned(image, flags))
      return turned(jax.nn.softmax(logits, axis=-1), flags)

    flags = jnp.asarray(flips)
    like = jax.eval_shape(one, flags[0])
    total = jax.lax.fori_loop(
      0,
      len(flips),
      lambda i, sum_: sum_ + one(flags[i]),
      jnp.zeros(like.shape, like.dtype),
    )
    return total / len(flips)

  return probabilities


class _Slab:
  """Weighted probabilities of the planes that windows still touch."""

  def __init__(self, shape, num_classes, starts, profiles, keep_probabilities):
    self.labels = np.zeros(shape, np.uint8)
    self.probabilities = None
    if keep_probabilities:
      self.probabilities = np.zeros((*shape, num_classes), np.float16)
    self._size = tuple(len(p) for p in profiles)
    self._sums = np.zeros((self._size[0], *shape[1:], num_classes), np.float32)
    self._first = 0  # The plane of the volume that the slab begins with.
    # Weights are products of one per axis and windows lie on a lattice: so
    # are their sums.
    self._by_d, by_h, by_w = (
      total_weight(n, s, p)
      for n, s, p in zip(shape, starts, profiles, strict=True)
    )
    self._in_plane = (by_h[:, None] * by_w)[..., None].astype(np.float32)

  def add(self, corner: tuple[int, int, int], values: np.ndarray) -> None:
    """Adds one window; those before it began no deeper."""
    self.finish(corner[0])
    self._sums[box((0, *corner[1:]), self._size)] += values

  def finish(self, until: int) -> None:
    """Settles the planes before `until` and makes room for as many."""
    done = until - self._first
    if not done:
      return
    for i in range(done):
      plane = self._first + i
      mean = self._sums[i] / self._in_plane
      self.labels[plane] = mean.argmax(-1)
      if self.probabilities is not None:
        self.probabilities[plane] = mean / np.float32(self._by_d[plane])
    # Plane by plane: a move within one array would first copy all of it.
    left = len(self._sums) - done
    for i in range(left):
      self._sums[i] = self._sums[i + done]
    self._sums[left:] = 0
    self._first = until


# --- Windows along one axis, also of `cadjax.explanation.windows` -----------
def window_starts(
  n: int, size: int, overlap: float, step: int = 1
) -> list[int]:
  """Returns where windows begin along an axis, multiples of `step`.

  They are the fewest, evenly spread, that cover n voxels and overlap by at
  least this share of their size, or by less where a single `step` does. The
  last one may reach beyond the end, by less than `step` unless n < size.
  """
  last = math.ceil(max(n - size, 0) / step)
  hop = max(1, math.floor(size * (1 - overlap) / step))
  count = math.ceil(last / hop) + 1
  return [round(x) * step for x in np.linspace(0, last, count)]


def profile(size: int) -> np.ndarray:
  """Returns the weights of a window along one axis, Gaussian, at most 1."""
  offset = np.arange(size) - (size - 1) / 2
  return np.exp(-0.5 * (offset / (SIGMA * size)) ** 2)


def total_weight(
  n: int, starts: Sequence[int], weights: np.ndarray
) -> np.ndarray:
  """Returns the sum [n] of all windows' weights along one axis."""
  total = np.zeros(n)
  for start in starts:
    total[start : start + len(weights)] += weights
  return total


def box(corner: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
  """Returns the part of an array that begins at `corner` and has this size."""
  return tuple(slice(c, c + n) for c, n in zip(corner, size, strict=True))


def pad(array: np.ndarray, size: Sequence[int], fill: int) -> np.ndarray:
  """Pads [D, H, W] on both sides to at least `size`; it may be returned as is.

  Of an odd number of missing voxels the smaller half comes first.
  """
  missing = [max(0, s - n) for n, s in zip(array.shape, size, strict=True)]
  if not any(missing):
    return array
  sides = [(m // 2, m - m // 2) for m in missing]
  return np.pad(array, sides, constant_values=fill)


def _inside(shape, padded) -> tuple[slice, ...]:
  """Returns where `pad` has put an array of this shape."""
  before = [(p - n) // 2 for n, p in zip(shape, padded, strict=True)]
  return box(before, shape)


def _chunks(items: list, size: int) -> Iterator[list]:
  for i in range(0, len(items), size):
    yield items[i : i + size]
