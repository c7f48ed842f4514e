"""Metrics of a segmentation: one case, one class, two masks, in mm and mL.

Everything is float64 on the host. What the masks do not define is NaN, never
0: with both masks empty nothing was right or wrong, and an empty mask has no
surface. A class that a case does not annotate is left out by the caller: its
truth is unknown, not empty.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.ndimage
import scipy.sparse.csgraph
import scipy.spatial
import skimage.morphology

from cadjax.metrics import detection
from cadjax.segmentation.components import CONNECTED_26, betti0

METRICS = (
  "dice",
  "iou",
  "precision",
  "recall",
  "hd95_mm",
  "assd_mm",
  "cldice",
  "volume_ml",
  "truth_volume_ml",
  "volume_bias_ml",
  "betti0_error",
)


def case_metrics(
  predicted: np.ndarray,
  truth: np.ndarray,
  spacing_mm: Sequence[float],
  *,
  voxel_mm3: float | None = None,
) -> dict[str, float]:
  """Returns every metric of `METRICS` for one case and one class.

  With tp, fp and fn counted in voxels:

  - dice = 2 tp / (2 tp + fp + fn) and iou = tp / (tp + fp + fn), in [0, 1];
    NaN if both masks are empty, 0 if one is.
  - precision = tp / (tp + fp), NaN for an empty prediction;
    recall = tp / (tp + fn), NaN for an empty truth.
  - hd95_mm: the larger of the two directed 95th percentiles of
    `surface_distances`; assd_mm: the mean of all of them together. NaN unless
    both masks have a surface.
  - cldice: see `cldice`.
  - volume_ml of the prediction, truth_volume_ml, and volume_bias_ml, the
    first minus the second, in mL.
  - betti0_error: absolute difference of the numbers of 26-connected
    components.

  Definitions and pitfalls: Maier-Hein et al., Nat. Methods 21 (2024) 195-212
  (Metrics Reloaded).

  Args:
    predicted: mask [D, H, W]; what is not 0 is inside.
    truth: mask [D, H, W].
    spacing_mm: of a voxel along D, H and W, each above 0.
    voxel_mm3: the volume of a voxel, of `components.voxel_mm3`; the product of
      the spacings if left out, which is too much for a sheared grid.

  Raises:
    ValueError: the masks are not 3D or differ in shape, or a spacing is not
      above 0.
  """
  predicted, truth, spacing = _checked(predicted, truth, spacing_mm)
  box = _bounding_box(predicted | truth)
  predicted, truth = predicted[box], truth[box]
  tp = float((predicted & truth).sum())
  p, t = float(predicted.sum()), float(truth.sum())
  there, back = surface_distances(predicted, truth, spacing)
  defined = there.size > 0 and back.size > 0
  both = np.concatenate([there, back])
  to_ml = (voxel_mm3 or float(np.prod(spacing))) / 1000
  return {
    "dice": _ratio(2 * tp, p + t),
    "iou": _ratio(tp, p + t - tp),
    "precision": _ratio(tp, p),
    "recall": _ratio(tp, t),
    "hd95_mm": (
      float(max(np.percentile(there, 95), np.percentile(back, 95)))
      if defined
      else math.nan
    ),
    "assd_mm": float(both.mean()) if defined else math.nan,
    "cldice": cldice(predicted, truth),
    "volume_ml": p * to_ml,
    "truth_volume_ml": t * to_ml,
    "volume_bias_ml": (p - t) * to_ml,
    "betti0_error": float(abs(betti0(predicted) - betti0(truth))),
  }


def surface(mask: np.ndarray) -> np.ndarray:
  """Returns the surface voxels of a mask, bool [D, H, W].

  They are the voxels of the mask with at least one of their 6 face
  neighbours outside of it; beyond the edge of the volume is outside. Each
  counts once, whatever area of the surface it stands for.
  """
  mask = np.asarray(mask, bool)
  return mask & ~scipy.ndimage.binary_erosion(mask)


def surface_distances(
  predicted: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns distances in mm between the surfaces of two masks.

  Args:
    predicted: mask [D, H, W].
    truth: mask [D, H, W].
    spacing_mm: of a voxel along D, H and W.

  Returns:
    from each surface voxel of the prediction to the nearest one of the truth
    (centre to centre), and the other way round; both have no element if a
    mask is empty.

  Raises:
    ValueError: as `case_metrics`.
  """
  predicted, truth, spacing = _checked(predicted, truth, spacing_mm)
  if not predicted.any() or not truth.any():
    return np.zeros(0), np.zeros(0)
  # Nearest neighbours lie in the box of both masks, so the rest may go.
  box = _bounding_box(predicted | truth)
  ours, theirs = surface(predicted[box]), surface(truth[box])
  distance = scipy.ndimage.distance_transform_edt
  return (
    distance(~theirs, sampling=spacing)[ours],
    distance(~ours, sampling=spacing)[theirs],
  )


def cldice(predicted: np.ndarray, truth: np.ndarray) -> float:
  """Returns the centreline Dice of two masks [D, H, W], in [0, 1].

  The harmonic mean of topology precision (share of the prediction's skeleton
  inside the truth) and topology sensitivity (share of the truth's skeleton
  inside the prediction): Shit et al., CVPR 2021. Skeletons by the thinning of
  Lee et al. 1994 in scikit-image. NaN if both masks are empty, 0 if one is.
  """
  predicted, truth = np.asarray(predicted, bool), np.asarray(truth, bool)
  if not predicted.any() or not truth.any():
    return 0.0 if predicted.any() or truth.any() else math.nan
  ours, theirs = _skeleton(predicted), _skeleton(truth)
  precision = _ratio(float((ours & truth).sum()), float(ours.sum()))
  sensitivity = _ratio(float((theirs & predicted).sum()), float(theirs.sum()))
  if precision + sensitivity == 0:
    return 0.0
  return 2 * precision * sensitivity / (precision + sensitivity)


def lesion_centers(
  lesions: Sequence[Mapping[str, Any]], affine: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Reads the lesion table of a record.

  Args:
    lesions: rows with `position_mm` (x, y, z in the frame of the affine) and
      `length_mm`, as the phantom writes them.
    affine: [4, 4], voxel indices (d, h, w) to mm.

  Returns:
    voxel coordinates [n, 3] in the order D, H, W, not rounded, and lengths in
    mm [n].
  """
  positions = np.array([x["position_mm"] for x in lesions]).reshape(-1, 3)
  homogeneous = np.concatenate([positions, np.ones((len(lesions), 1))], 1)
  voxels = homogeneous @ np.linalg.inv(np.asarray(affine, np.float64)).T
  lengths = np.array([float(x["length_mm"]) for x in lesions])
  return voxels[:, :3], lengths


def lesion_detection(
  predicted: np.ndarray,
  truth: np.ndarray,
  spacing_mm: Sequence[float],
  *,
  centers: np.ndarray | None = None,
  lengths_mm: np.ndarray | None = None,
  tolerance_mm: float = 2.0,
) -> dict[str, float]:
  """Counts the lesions that a predicted mask finds and its false positives.

  By the rule of `detection`: a finding is a 26-connected component of the
  predicted mask, and at least half of its voxels must lie within
  `tolerance_mm` of a lesion's, from voxel centre to voxel centre (an overlap
  is a distance of 0). One component detects at most one lesion, so that
  labelling everything detects nothing, and of several components on one
  lesion none is false.

  Args:
    predicted: mask [D, H, W].
    truth: mask [D, H, W] of all lesions.
    spacing_mm: of a voxel along D, H and W.
    centers: voxel coordinates [n, 3] of n lesions, of `lesion_centers`. They
      split the truth into n lesions: each voxel belongs to the centre whose
      distance minus half its length is least. Lesions that touch are then one
      again, which no mask can tell apart. A lesion too small to have a voxel
      is the point at its centre. Without centers each 26-connected component
      of the truth is one lesion.
    lengths_mm: [n], 0 if left out.
    tolerance_mm: at least 0.

  Returns:
    lesions (their number), detected, recall = detected / lesions (NaN if there
    is none), recall_best, which the true mask itself reaches on this grid,
    and false_positives of this scan.

  Raises:
    ValueError: as `case_metrics`.
  """
  predicted, truth, spacing = _checked(predicted, truth, spacing_mm)
  points, lesion_of, count = _lesion_points(truth, spacing, centers, lengths_mm)
  lesions = _groups(points, lesion_of, count)
  sizes = np.bincount(lesion_of[: int(truth.sum())], minlength=count)

  parts, number = scipy.ndimage.label(predicted, CONNECTED_26)
  where = np.argwhere(parts)
  found = _groups(where * spacing, parts[parts > 0] - 1, number)
  matches = detection.match(detection.distances(found, lesions, tolerance_mm))
  detected = float(len(matches.hits))
  return {
    "lesions": float(count),
    "detected": detected,
    "recall": _ratio(detected, float(count)),
    "recall_best": _ratio(float((sizes > 0).sum()), float(count)),
    "false_positives": float(len(matches.false_positives)),
  }


def _groups(
  points: np.ndarray, group: np.ndarray, count: int
) -> list[np.ndarray]:
  """Returns the points of each of `count` groups."""
  order = np.argsort(group, kind="stable")
  ends = np.cumsum(np.bincount(group, minlength=count))
  return np.split(points[order], ends[:-1]) if count else []


def _lesion_points(
  truth: np.ndarray,
  spacing: np.ndarray,
  centers: np.ndarray | None,
  lengths_mm: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, int]:
  """Returns points in mm [m, 3], the lesion of each [m], lesions' number.

  The points of voxels come first, in the order of the mask.
  """
  index = np.argwhere(truth)
  points = index * spacing
  parts, number = scipy.ndimage.label(truth, CONNECTED_26)
  part_of = parts[truth] - 1
  if centers is None:
    return points, part_of, number
  centers = np.asarray(centers, np.float64).reshape(-1, 3) * spacing
  if not len(centers):
    return np.zeros((0, 3)), np.zeros(0, int), 0
  half = np.zeros(len(centers)) if lengths_mm is None else lengths_mm / 2
  away = scipy.spatial.distance.cdist(points, centers) - half
  lesion_of = away.argmin(1) if len(points) else np.zeros(0, int)
  missing = np.setdiff1d(np.arange(len(centers)), lesion_of)
  # Lesions with voxels of one component are one; a lesion of several spots
  # joins theirs.
  graph = scipy.sparse.coo_array(
    (np.ones(len(points)), (lesion_of, len(centers) + part_of)),
    shape=(len(centers) + number,) * 2,
  )
  _, joined = scipy.sparse.csgraph.connected_components(graph, directed=False)
  names, joined = np.unique(joined[: len(centers)], return_inverse=True)
  return (
    np.concatenate([points, centers[missing]]),
    joined[np.concatenate([lesion_of, missing])],
    len(names),
  )


def _checked(
  predicted: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  predicted, truth = np.asarray(predicted) != 0, np.asarray(truth) != 0
  if predicted.shape != truth.shape or predicted.ndim != 3:
    raise ValueError(
      "the masks must be 3D and of one shape, got"
      f" {predicted.shape} and {truth.shape}"
    )
  spacing = np.asarray(spacing_mm, np.float64)
  if spacing.shape != (3,) or not (spacing > 0).all():
    raise ValueError(f"spacing_mm must be three numbers above 0: {spacing_mm}")
  return predicted, truth, spacing


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
  """Returns the smallest box around a mask; an empty one for no voxel."""
  boxes = scipy.ndimage.find_objects(mask.astype(np.uint8))
  return boxes[0] if boxes else (slice(0, 0),) * mask.ndim


def _skeleton(mask: np.ndarray) -> np.ndarray:
  """Returns the skeleton of a mask, bool [D, H, W].

  The thinning deletes some components of even width altogether (scikit-image
  issue 3757); such a component keeps its voxels farthest from its outside.
  """
  box = _bounding_box(mask)
  inside = mask[box]
  skeleton = skimage.morphology.skeletonize(inside, method="lee")
  labels, count = scipy.ndimage.label(inside, CONNECTED_26)
  for lost in np.setdiff1d(np.arange(1, count + 1), labels[skeleton]):
    part = np.pad(labels == lost, 1)
    depth = scipy.ndimage.distance_transform_edt(part)[1:-1, 1:-1, 1:-1]
    skeleton |= depth == depth.max()
  result = np.zeros(mask.shape, bool)
  result[box] = skeleton
  return result


def _ratio(top: float, bottom: float) -> float:
  return top / bottom if bottom else math.nan
