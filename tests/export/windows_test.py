"""Sliding windows in numpy beside `cadjax.segmentation.sliding`."""

import jax.numpy as jnp
import numpy as np
import pytest

from cadjax.export import windows
from cadjax.segmentation import sliding

WINDOW, CLASSES = (6, 8, 10), 3


def apply(variables, image):
  """Logits that depend on the voxel and on its place in the window."""
  del variables
  x = image.astype(jnp.float32) / 500
  place = jnp.arange(image.shape[2], dtype=jnp.float32)[:, None, None] / 8
  return jnp.concatenate([x, -x, place + 0 * x], -1)


def run(hu):
  logits = np.asarray(apply(None, jnp.asarray(hu)[None, ..., None]))[0]
  exp = np.exp(logits)
  return {"probabilities": exp / exp.sum(-1, keepdims=True)}


@pytest.mark.parametrize("shape", [WINDOW, (7, 19, 23), (3, 8, 31)])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_windows_are_averaged_as_in_cadjax(shape, overlap):
  hu = np.random.default_rng(0).normal(0, 400, shape).astype(np.int16)
  expected = sliding.SlidingWindow(apply, WINDOW, overlap, 2, CLASSES)(
    None, hu, probabilities=True
  )
  found = windows.slide(run, hu, WINDOW, overlap, sliding.SIGMA, sliding.AIR_HU)
  assert found["probabilities"].shape == (*shape, CLASSES)
  np.testing.assert_allclose(
    found["probabilities"], expected.probabilities, atol=5e-4
  )
  assert (found["labels"] == expected.labels).mean() > 0.999
