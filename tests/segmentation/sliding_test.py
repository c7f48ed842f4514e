"""Sliding windows against numpy written out in full, and their memory."""

import itertools
import math
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cadjax.core import lookup, parallel
from cadjax.segmentation import sliding

WINDOW = (4, 6, 8)
SCALE = {"a": jnp.float32(0.3)}


def position_aware(variables, image):
  """Logits of 3 classes that depend on the voxel and on its place."""
  x = image[..., 0].astype(jnp.float32) / 500
  d = jnp.arange(image.shape[1])[:, None, None]
  w = jnp.arange(image.shape[3])
  return jnp.stack([x, variables["a"] * d - x, 0.1 * w * x], axis=-1)


def reference(hu, overlap, *, flips=((),)):
  """The same in numpy, with sums over the whole volume."""
  missing = [max(0, s - n) for n, s in zip(hu.shape, WINDOW, strict=True)]
  sides = [(m // 2, m - m // 2) for m in missing]
  x = np.pad(hu, sides, constant_values=-1024).astype(np.float64)
  offsets = [np.arange(n) - (n - 1) / 2 for n in WINDOW]
  one = [
    np.exp(-0.5 * (o / (n / 8)) ** 2)
    for o, n in zip(offsets, WINDOW, strict=True)
  ]
  weight = np.einsum("i,j,k->ijk", *one)
  top, bottom = np.zeros((*x.shape, 3)), np.zeros(x.shape)
  starts = [
    sliding.window_starts(n, s, overlap)
    for n, s in zip(x.shape, WINDOW, strict=True)
  ]
  for corner in itertools.product(*starts):
    box = tuple(slice(c, c + n) for c, n in zip(corner, WINDOW, strict=True))
    mean = 0
    for axes in flips:
      v = np.flip(x[box], axes) / 500
      d, w = np.arange(WINDOW[0])[:, None, None], np.arange(WINDOW[2])
      logits = np.stack([v, 0.3 * d - v, 0.1 * w * v], -1)
      p = np.exp(logits - logits.max(-1, keepdims=True))
      mean = mean + np.flip(p / p.sum(-1, keepdims=True), axes)
    top[box] += weight[..., None] * mean / len(flips)
    bottom[box] += weight
  crop = tuple(
    slice(a, a + n) for (a, _), n in zip(sides, hu.shape, strict=True)
  )
  return (top / bottom[..., None])[crop]


def noise(shape, seed=0):
  return np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
@pytest.mark.parametrize("shape", [(11, 13, 17), (4, 6, 8), (3, 13, 5)])
def test_equals_the_plain_average_over_windows(shape, overlap):
  hu = noise(shape)
  window = sliding.SlidingWindow(position_aware, WINDOW, overlap, 3, 3)
  found = window(SCALE, hu, probabilities=True)
  want = reference(hu, overlap)
  assert found.labels.dtype == np.uint8
  assert found.probabilities.dtype == np.float16
  np.testing.assert_allclose(found.probabilities, want, atol=1e-3)
  # Where two classes tie to within rounding, either is right.
  best = np.sort(want, -1)
  clear = best[..., -1] - best[..., -2] > 1e-4
  assert clear.mean() > 0.99
  np.testing.assert_array_equal(found.labels[clear], want.argmax(-1)[clear])
  assert window(SCALE, hu).probabilities is None


def test_mirroring_averages_over_all_flips():
  hu = noise((5, 9, 8))
  flips = [
    axes for n in range(4) for axes in itertools.combinations(range(3), n)
  ]
  window = sliding.SlidingWindow(position_aware, WINDOW, 0.5, 2, 3, mirror=True)
  found = window(SCALE, hu, probabilities=True).probabilities
  want = reference(hu, 0.5, flips=flips)
  np.testing.assert_allclose(found, want, atol=1e-3)
  assert np.abs(want - reference(hu, 0.5)).max() > 0.01


def test_a_model_of_constants_gives_constants():
  logits = jnp.log(jnp.array([0.2, 0.5, 0.3]))

  def constant(_, image):
    return jnp.broadcast_to(logits, (*image.shape[:-1], 3))

  window = sliding.SlidingWindow(constant, WINDOW, 0.5, 4, 3)
  found = window({}, noise((9, 20, 11)), probabilities=True)
  assert (found.labels == 1).all()
  want = np.broadcast_to([0.2, 0.5, 0.3], (9, 20, 11, 3))
  np.testing.assert_allclose(found.probabilities, want, atol=5e-4)


def test_volumes_of_two_shapes_compile_once():
  traces = []

  def counting(variables, image):
    traces.append(image.shape)
    return position_aware(variables, image)

  window = sliding.SlidingWindow(counting, WINDOW, 0.5, 3, 3)
  for shape in ((11, 13, 17), (4, 7, 30), (2, 3, 4)):
    # Other variables of the same shapes do not compile again either.
    window({"a": jnp.float32(len(traces))}, noise(shape))
  assert traces == [(3, *WINDOW, 1)]


def test_a_flat_window_takes_slices_one_by_one():
  def apply(variables, image):
    assert image.shape == (5, 1, 6, 8, 1)
    return position_aware(variables, image)

  hu = noise((7, 6, 8))
  window = sliding.SlidingWindow(apply, (1, 6, 8), 0.5, 5, 3, mirror=True)
  found = window(SCALE, hu, probabilities=True).probabilities
  alone = [window(SCALE, x[None], probabilities=True) for x in hu]
  np.testing.assert_array_equal(
    found, np.concatenate([x.probabilities for x in alone])
  )


def test_memory_does_not_grow_with_depth_but_for_the_labels():
  """The docstring's formula bounds the peak, on a deep volume."""
  size, hu = (8, 16, 16), noise((400, 48, 48))
  window = sliding.SlidingWindow(position_aware, size, 0.5, 4, 3)
  window(SCALE, hu[:8])
  tracemalloc.start()
  window(SCALE, hu)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  k, plane = 3, 48 * 48
  slab, labels = 4 * k * size[0] * plane, hu.size
  batches = 2 * 4 * (4 * k + 2) * math.prod(size)
  # All sums at once would take 4 k hu.size; a tenth is for what is small.
  assert labels < peak < slab + labels + batches + 0.1 * 4 * k * hu.size


@pytest.mark.parametrize(
  ("n", "size", "overlap", "want"),
  [
    (8, 8, 0.5, [0]),
    (9, 8, 0.5, [0, 1]),
    (16, 8, 0.5, [0, 4, 8]),
    (17, 8, 0.5, [0, 3, 6, 9]),
    (16, 8, 0.0, [0, 8]),
    (3, 1, 0.5, [0, 1, 2]),
  ],
)
def test_windows_reach_both_ends_evenly(n, size, overlap, want):
  assert sliding.window_starts(n, size, overlap) == want


def test_eight_devices_equal_one():
  assert len(jax.devices()) == 8
  hu = noise((11, 13, 17))
  one = sliding.SlidingWindow(position_aware, WINDOW, 0.5, 8, 3)
  want = one(SCALE, hu, probabilities=True)
  for mode, space in (("pmap", 1), ("mesh", 2)):
    devices = parallel.make_parallel(mode, space=space)
    many = sliding.SlidingWindow(
      position_aware, WINDOW, 0.5, 8, 3, devices=devices
    )
    found = many(SCALE, hu, probabilities=True)
    np.testing.assert_allclose(
      found.probabilities, want.probabilities, atol=1e-3
    )


def test_nan_is_no_segmentation():
  window = sliding.SlidingWindow(position_aware, WINDOW, 0.5, 2, 3)
  with pytest.raises(sliding.NonFiniteError, match="NaN"):
    window({"a": jnp.float32(np.nan)}, noise((4, 6, 8)))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"window": (4, 6)}, "3 sizes"),
    ({"window": (0, 6, 8)}, "3 sizes"),
    ({"overlap": 1.0}, "overlap"),
    ({"batch": 0}, "batch size 0"),
  ],
)
def test_what_cannot_slide_is_told(options, message):
  options = {"window": WINDOW, "overlap": 0.5, "batch": 2} | options
  with pytest.raises(lookup.ConfigError, match=message):
    sliding.SlidingWindow(position_aware, num_classes=3, **options)
