"""Volumes of any size through a segmenter's window, in numpy alone.

Goes beside `run.py` with an exported segmenter and does what
`cadjax.segmentation.sliding` does.
"""

import itertools
import math

import numpy as np


def slide(run, hu, window, overlap, sigma, outside_hu):
  """Averages the probabilities of overlapping windows.

  Args:
    run: `fn(hu int16 [*window]) -> {"probabilities": [*window, K]}`.
    hu: int16 [D, H, W].
    window: voxels along D, H and W.
    overlap: the least share of a window's edge that the next one covers.
    sigma: standard deviation of a window's weights, as a share of its edge.
    outside_hu: fills up a volume that is smaller than the window.

  Returns:
    {"probabilities": float32 [D, H, W, K], "labels": uint8 [D, H, W]}.
  """
  missing = [max(0, w - n) for w, n in zip(window, hu.shape, strict=True)]
  sides = [(m // 2, m - m // 2) for m in missing]
  padded = np.pad(hu, sides, constant_values=outside_hu)
  weights = np.ones(())
  for size in window:
    offset = np.arange(size) - (size - 1) / 2
    line = np.exp(-0.5 * (offset / (sigma * size)) ** 2)
    weights = weights[..., None] * line
  weights = weights[..., None].astype(np.float32)
  total = held = 0
  for corner in itertools.product(
    *map(_starts, padded.shape, window, [overlap] * 3)
  ):
    box = tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))
    found = run(padded[box])["probabilities"] * weights
    if not np.ndim(held):
      total = np.zeros((*padded.shape, found.shape[-1]), np.float32)
      held = np.zeros((*padded.shape, 1), np.float32)
    total[box] += found
    held[box] += weights
  inside = tuple(
    slice(a, a + n) for (a, _), n in zip(sides, hu.shape, strict=True)
  )
  mean = (total / held)[inside]
  return {"probabilities": mean, "labels": mean.argmax(-1).astype(np.uint8)}


def _starts(n, size, overlap):
  """Returns where the fewest windows begin that cover n voxels, evenly."""
  last = max(n - size, 0)
  hop = max(1, math.floor(size * (1 - overlap)))
  return [round(x) for x in np.linspace(0, last, math.ceil(last / hop) + 1)]
