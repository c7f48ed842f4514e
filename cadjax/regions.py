"""The region M whose logits a segmenter's explanation adds up.

All on the host, on [D, H, W]. Seg-Grad-CAM (Vinogradova et al. 2020, arXiv
2002.11434) calls M the pixels of interest.
"""

from collections.abc import Sequence

import numpy as np

from cadjax.core import lookup
from cadjax.segmentation.components import largest
from data_prep.errors import UserError

# Of a class, from its labels; the last three want the true ones, too.
OF_A_CLASS = ("predicted", "largest", "truth", "false_positive",
              "false_negative")  # fmt: skip
_TRUTH = OF_A_CLASS[2:]


def of_class(
  kind: str,
  number: int,
  labels: np.ndarray,
  truth: np.ndarray | None = None,
) -> np.ndarray:
  """Selects the region of a class.

  Args:
    kind: one of `OF_A_CLASS`: where the class is predicted; the largest
      26-connected component of that; where it truly is; where it is predicted
      and is not; where it is and is not predicted.
    number: the class.
    labels: [D, H, W], what the segmenter says.
    truth: [D, H, W], the true labels, or None.

  Returns:
    bool [D, H, W].

  Raises:
    lookup.UnknownName: there is no such kind.
    UserError: the region needs true labels and there are none, they have
      another shape, or the region selects nothing.
  """
  lookup.check_known([kind], OF_A_CLASS, "region")
  if kind in _TRUTH:
    if truth is None:
      raise UserError(f"the region {kind!r} needs true labels; give a mask")
    if truth.shape != labels.shape:
      raise UserError(
        f"the true labels have shape {truth.shape}, those of the segmenter"
        f" {labels.shape}"
      )
  if kind == "predicted":
    region = labels == number
  elif kind == "largest":
    region = largest(labels == number)
  elif kind == "truth":
    region = truth == number
  elif kind == "false_positive":
    region = (labels == number) & (truth != number)
  else:
    region = (labels != number) & (truth == number)
  return _checked(region, f"the region {kind!r} of class {number}")


def box(
  shape: Sequence[int], low: Sequence[float], high: Sequence[float]
) -> np.ndarray:
  """Selects the voxels whose centres lie in a box, its faces included.

  Args:
    shape: voxels along D, H, W.
    low: a corner in voxels, which need not be whole.
    high: the opposite corner; the two may be swapped along any axis.

  Raises:
    UserError: no voxel lies in it.
  """
  ends = np.sort(np.stack([low, high]), 0)
  region = np.ones(shape, bool)
  for axis, n in enumerate(shape):
    at = np.arange(n).reshape(-1, *(1,) * (len(shape) - axis - 1))
    # A corner that was mm before is as exact as a float is.
    inside = (at >= ends[0, axis] - 1e-4) & (at <= ends[1, axis] + 1e-4)
    region &= inside
  said = f"from {_numbers(ends[0])} to {_numbers(ends[1])} (voxels D, H, W)"
  return _checked(region, f"the box {said} in a volume of {tuple(shape)}")


def voxel(shape: Sequence[int], index: Sequence[float]) -> np.ndarray:
  """Selects the voxel nearest to a place.

  Raises:
    UserError: the place lies outside the volume.
  """
  nearest = np.rint(index).astype(int)
  region = np.zeros(shape, bool)
  if (nearest >= 0).all() and (nearest < shape).all():
    region[tuple(nearest)] = True
  said = f"the voxel {_numbers(index)} (D, H, W)"
  return _checked(region, f"{said} in a volume of {tuple(shape)}")


def _checked(region: np.ndarray, what: str) -> np.ndarray:
  if not region.any():
    raise UserError(f"{what} selects nothing: there is nothing to explain")
  return region


def _numbers(values: Sequence[float]) -> str:
  return ", ".join(f"{value:.4g}" for value in values)
