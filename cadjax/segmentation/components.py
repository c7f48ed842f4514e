"""Connected components of a segmentation."""

from collections.abc import Sequence

import numpy as np
import scipy.ndimage
import scipy.spatial

# Voxels that share a face, an edge or a corner belong together.
CONNECTED_26 = np.ones((3, 3, 3), bool)


def voxel_mm3(affine: np.ndarray) -> float:
  """Returns the volume of a voxel in mm3.

  It is not the product of the spacings: a tilted gantry shears the grid.

  Args:
    affine: [4, 4], voxel indices to mm.
  """
  return float(abs(np.linalg.det(np.asarray(affine, np.float64)[:3, :3])))


def remove_small(
  labels: np.ndarray, affine: np.ndarray, min_mm3: float
) -> np.ndarray:
  """Sets components below a volume to background.

  A component is 26-connected foreground of any class: a plaque in its vessel
  is not removed, however small.

  Args:
    labels: uint8 [D, H, W], 0 is background.
    affine: [4, 4], voxel indices to mm.
    min_mm3: the least volume that stays; 0 keeps all.

  Returns:
    uint8 [D, H, W].
  """
  smallest = min_mm3 / voxel_mm3(affine)
  if smallest <= 1:
    return labels
  kept = np.zeros_like(labels)
  # Components take 4 bytes a voxel, so only where there is foreground.
  for box in scipy.ndimage.find_objects((labels > 0).view(np.uint8)):
    parts, _ = scipy.ndimage.label(labels[box] > 0, CONNECTED_26)
    keep = np.bincount(parts.ravel()) >= smallest
    kept[box] = np.where(keep[parts], labels[box], 0)
  return kept


def thin(mask: np.ndarray, voxels: int) -> np.ndarray:
  """Returns where a mask is thinner than so many voxels along some axis.

  Args:
    mask: bool [D, H, W].
    voxels: edge of the cube that the rest is made of; 1 keeps all.

  Returns:
    bool [D, H, W], the part of `mask` that no such cube inside it covers.
  """
  return mask & ~scipy.ndimage.binary_opening(mask, np.ones((voxels,) * 3))


def keep_organ(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
  """Sets all but the largest piece of an organ to background.

  Args:
    labels: integers [D, H, W], 0 is background.
    values: of the organ's parts, which together are one piece.

  Returns:
    [D, H, W], of the type of `labels`.
  """
  organ = np.isin(labels, values)
  return np.where(organ & ~largest(organ), labels.dtype.type(0), labels)


def largest(mask: np.ndarray) -> np.ndarray:
  """Returns the largest 26-connected component of a mask [D, H, W]."""
  parts, count = scipy.ndimage.label(mask, CONNECTED_26)
  if not count:
    return mask
  sizes = np.bincount(parts.ravel())
  sizes[0] = 0
  return parts == sizes.argmax()


def betti0(mask: np.ndarray) -> int:
  """Returns the number of 26-connected components of a mask [D, H, W]."""
  return int(scipy.ndimage.label(np.asarray(mask, bool), CONNECTED_26)[1])
