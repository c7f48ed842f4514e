"""How well a map, cut at a threshold, covers a structure.

`location` needs no threshold; here the map becomes a mask: the voxels above a
share of its maximum. Two protocols choose the share:

- SE3D (Wisniewski et al. 2024, arXiv 2405.14584), which carries the scores of
  weakly supervised localisation (Choe et al. 2020, arXiv 2001.07437) to 3D:
  the best share for all cases together, for boxes and for masks.
- CheXlocalize (Saporta et al., Nat. Mach. Intell. 4 (2022) 867-878): the share
  with the largest mean IoU on validation cases, measured on test cases, beside
  the hit rate, which needs none, and a human reader.

Maps are [D, H, W], finite and at least 0, of any scale. What is undefined is
NaN: a map of zeros, a structure without a voxel.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.ndimage

from cadjax.explanation import location
from data_prep.errors import UserError

# Shares of a map's maximum.
SHARES = tuple(float(x) for x in np.linspace(0, 0.95, 20).round(2))
# Those among which Saporta et al. choose.
TUNED = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
# IoUs of boxes from which a structure counts as found (Choe et al.).
DELTAS = (0.3, 0.5, 0.7)
THIRDS = ("low", "middle", "high")


def iou(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the intersection over union of masks, NaN if one is empty."""
  a, b = np.asarray(a, bool), np.asarray(b, bool)
  if a.shape != b.shape:
    raise ValueError(f"masks {a.shape} and {b.shape} do not match")
  if not a.any() or not b.any():
    return math.nan
  return float((a & b).sum() / (a | b).sum())


def cut(heat: np.ndarray, share: float) -> np.ndarray:
  """Returns the voxels of a map above a share of its maximum, bool [D, H, W].

  None of a map of zeros.
  """
  return heat > share * heat.max()


def mask_ious(
  heat: np.ndarray, truth: np.ndarray, shares: Sequence[float] = SHARES
) -> np.ndarray:
  """Returns the IoU of a map, cut at each share, with a mask.

  Args:
    heat: map [D, H, W].
    truth: bool [D, H, W].
    shares: in ascending order, each in [0, 1).

  Returns:
    [len(shares)] in [0, 1]: 1 where the cut map is the mask; a constant map
    has the mask's share of the volume everywhere. NaN for a zero map or an
    empty mask.
  """
  heat, truth = _checked(heat, truth)
  if not heat.max() > 0 or not truth.any():
    return np.full(len(shares), math.nan)
  # How many shares each voxel is above; one histogram has all cuts.
  above = np.searchsorted(np.multiply(shares, heat.max()), heat, side="left")
  counts, hits = (
    np.bincount(some, minlength=len(shares) + 1)[::-1].cumsum()[::-1][1:]
    for some in (above.ravel(), above[truth])
  )
  return hits / (counts + truth.sum() - hits)


def box_ious(
  heat: np.ndarray,
  truth: np.ndarray,
  shares: Sequence[float] = SHARES,
  *,
  largest: bool = False,
) -> np.ndarray:
  """Returns the IoU of boxes around a map, cut at each share, with true boxes.

  Boxes go around connected components (26 neighbours), along the axes.

  Args:
    heat: map [D, H, W].
    truth: bool [D, H, W]; a box for each of its components.
    shares: of the map's maximum.
    largest: only the box of the cut map's largest component, as in MaxBoxAcc;
      else the best of all, as in MaxBoxAccV2 (Choe et al. 2020).

  Returns:
    [len(shares)] in [0, 1], the best pair of a box of the map with a true one;
    NaN for a zero map or an empty mask.
  """
  heat, truth = _checked(heat, truth)
  if not heat.max() > 0 or not truth.any():
    return np.full(len(shares), math.nan)
  wanted = _boxes(truth)
  found = []
  for share in shares:
    boxes = _boxes(cut(heat, share), largest=largest)
    low = np.maximum(boxes[:, None, 0], wanted[None, :, 0])
    high = np.minimum(boxes[:, None, 1], wanted[None, :, 1])
    common = np.maximum(high - low, 0).prod(-1)
    sizes = [(x[:, 1] - x[:, 0]).prod(-1) for x in (boxes, wanted)]
    union = sizes[0][:, None] + sizes[1] - common
    found.append(float((common / union).max()))
  return np.array(found)


def _boxes(mask: np.ndarray, *, largest: bool = False) -> np.ndarray:
  """Returns the corners of the components' boxes, int [n, (low, high), 3]."""
  labels, _ = scipy.ndimage.label(mask, np.ones((3, 3, 3)))
  found = scipy.ndimage.find_objects(labels)
  if largest:
    sizes = np.bincount(labels.ravel())[1:]
    found = [found[int(np.argmax(sizes))]]
  return np.array(
    [[[s.start for s in box], [s.stop for s in box]] for box in found]
  )


def max_box_accuracy(
  ious: np.ndarray, deltas: Sequence[float] = DELTAS
) -> dict[str, float]:
  """Returns SE3D's box accuracy of a method over cases.

  Args:
    ious: of `box_ious` [cases, shares]; rows of NaN count as missed, as a map
      of zeros finds nothing.
    deltas: IoUs from which a box counts as found.

  Returns:
    max_box_DELTA for each: the share of cases found at the share that is best
    for all of them; and max_box, the mean, in [0, 1]. NaN without cases.
  """
  ious = np.asarray(ious, np.float64)
  if not ious.size:
    names = (*(f"max_box_{delta:g}" for delta in deltas), "max_box")
    return dict.fromkeys(names, math.nan)
  found = {  # NaN is not above anything.
    f"max_box_{delta:g}": float((ious >= delta).mean(0).max())
    for delta in deltas
  }
  return found | {"max_box": float(np.mean(list(found.values())))}


def max_mask_iou(
  ious: np.ndarray, shares: Sequence[float] = SHARES
) -> dict[str, float]:
  """Returns the mean IoU of masks at the share that is best for all cases.

  Args:
    ious: of `mask_ious` [cases, shares]; rows of NaN count as 0.
    shares: of the columns.

  Returns:
    max_mask in [0, 1] and max_mask_share, the share. NaN without cases.
  """
  ious = np.asarray(ious, np.float64)
  if not ious.size:
    return {"max_mask": math.nan, "max_mask_share": math.nan}
  means = np.nan_to_num(ious).mean(0)
  best = int(np.argmax(means))
  return {"max_mask": float(means[best]), "max_mask_share": shares[best]}


# --- CheXlocalize -----------------------------------------------------------


def tune_share(ious: np.ndarray, shares: Sequence[float] = TUNED) -> float:
  """Returns the share with the largest mean IoU over validation cases.

  The first of equals, as in the authors' code.

  Args:
    ious: of `mask_ious` [cases, shares], of one method and layer, never of the
      cases that are tested; rows of NaN are left out.
    shares: of the columns.

  Raises:
    UserError: no case has a map and a mask.
  """
  ious = np.asarray(ious, np.float64).reshape(-1, len(shares))
  known = ious[~np.isnan(ious).any(1)]
  if not len(known):
    raise UserError(
      "no validation case has both a map and a mask to tune a threshold on"
    )
  return shares[int(np.argmax(known.mean(0)))]


def localise(
  heat: np.ndarray, truth: np.ndarray, share: float
) -> dict[str, float]:
  """Returns CheXlocalize's two scores of a map.

  Args:
    heat: map [D, H, W].
    truth: bool [D, H, W].
    share: of `tune_share`.

  Returns:
    hit: 1 if the map's peak lies in the mask, else 0, and a share where
    several voxels share the peak; iou of the cut map with the mask, in [0, 1].
    A map equal to the mask has 1 and 1, a constant one the mask's share of the
    volume in both. NaN for a zero map or an empty mask; the authors measure
    cases with both alone.
  """
  heat, truth = _checked(heat, truth)
  hit = location.pointing(heat, truth)["pointing"]
  return {"hit": hit, "iou": iou(cut(heat, share), truth)}


def lesion_shape(
  mask: np.ndarray, spacing_mm: Sequence[float]
) -> dict[str, float]:
  """Returns the size and elongation of a lesion, against which to hold scores.

  Saporta et al. take the area and the sides of the smallest rectangle around
  it; here it is the volume, and the sides of the box along the principal axes.

  Args:
    mask: bool [D, H, W] of one lesion.
    spacing_mm: of a voxel along D, H, W.

  Returns:
    volume_mm3; elongation, the longest side over the shortest, at least 1. A
    voxel counts with its size, so that one voxel is about as long as wide. NaN
    of an empty mask.
  """
  spacing = np.asarray(spacing_mm, np.float64)
  at = np.argwhere(mask) * spacing
  volume = float(len(at) * spacing.prod())
  if not len(at):
    return {"volume_mm3": volume, "elongation": math.nan}
  around = at - at.mean(0)
  _, axes = np.linalg.eigh(around.T @ around)
  # The width of a voxel along each axis.
  width = np.sqrt(((axes * spacing[:, None]) ** 2).sum(0))
  sides = np.ptp(around @ axes, axis=0) + width
  return {
    "volume_mm3": volume,
    "elongation": float(sides.max() / sides.min()),
  }


def by_third(
  rows: Sequence[Mapping[str, Any]], column: str
) -> list[dict[str, Any]]:
  """Returns rows with the third of a column that each lies in.

  For tables by lesion size, elongation or the model's confidence, such as
  `location.summarise(by_third(rows, "volume_mm3"), ("method",
  "volume_mm3_third"))`.

  Args:
    rows: with numbers in the column; thirds are of the distinct rows given.
    column: its name.

  Returns:
    the rows with COLUMN_third: "low", "middle" or "high", or "unknown" where
    the column is NaN.
  """
  values = np.array([row[column] for row in rows], np.float64)
  known = values[~np.isnan(values)]
  ends = np.quantile(known, (1 / 3, 2 / 3)) if known.size else (0, 0)
  thirds = [
    "unknown"
    if math.isnan(value)
    else THIRDS[int(np.searchsorted(ends, value))]
    for value in values
  ]
  return [
    {**row, f"{column}_third": third}
    for row, third in zip(rows, thirds, strict=True)
  ]


def read_again(
  truth: np.ndarray,
  spacing_mm: Sequence[float],
  *,
  error_mm: float,
  seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns a lesion as another reader would draw it, with a stated error.

  The lesion is displaced by a normal error along each axis, and its border is
  drawn out or in by another one, all of standard deviation `error_mm`.

  Args:
    truth: bool [D, H, W], not empty.
    spacing_mm: of a voxel along D, H, W.
    error_mm: of the readers; 0 gives the truth itself.
    seed: of the errors.

  Returns:
    the mask, bool [D, H, W], of at least one voxel, and the voxel [3] that the
    reader points at, the deepest in it. It may lie at the volume's edge.

  Raises:
    UserError: the truth is empty.
  """
  truth = np.asarray(truth, bool)
  if not truth.any():
    raise UserError("there is no lesion for a reader to draw")
  spacing = np.asarray(spacing_mm, np.float64)
  rng = np.random.default_rng(seed)
  moved, border = np.split(error_mm * rng.standard_normal(4), [3])
  # Around the lesion, as far as the errors go.
  reach = np.ceil((np.abs(moved) + abs(border[0])) / spacing).astype(int) + 2
  (box,) = scipy.ndimage.find_objects(truth.astype(np.int8))
  low = np.array([s.start for s in box]) - reach
  high = np.array([s.stop for s in box]) + reach
  low, high = np.maximum(low, 0), np.minimum(high, truth.shape)
  part = tuple(map(slice, low, high))
  near = np.pad(truth[part], 1)  # So that there is an outside.
  depth = scipy.ndimage.distance_transform_edt(near, sampling=spacing)
  depth -= scipy.ndimage.distance_transform_edt(~near, sampling=spacing)
  depth = scipy.ndimage.shift(depth, moved / spacing, order=1, mode="nearest")
  depth = depth[1:-1, 1:-1, 1:-1]
  centre = np.unravel_index(np.argmax(depth), depth.shape)
  found = np.zeros(truth.shape, bool)
  found[part] = depth > -border[0]
  found[part][centre] = True
  return found, np.array(centre) + low


def human(
  truth: np.ndarray,
  spacing_mm: Sequence[float],
  *,
  error_mm: float,
  readers: int = 16,
  seed: int = 0,
) -> dict[str, float]:
  """Returns `localise` of human readers, the row beside those of the methods.

  CheXlocalize compares with a second group of radiologists; here they are
  `read_again`, with an error that must be stated beside the row.

  Args:
    truth: bool [D, H, W].
    spacing_mm: of a voxel along D, H, W.
    error_mm: see `read_again`.
    readers: how many are drawn.
    seed: of the first one.

  Returns:
    hit and iou, means over the readers; 1 and 1 for an error of 0; NaN of an
    empty mask.
  """
  truth = np.asarray(truth, bool)
  if not truth.any():
    return {"hit": math.nan, "iou": math.nan}
  drawn = [
    read_again(truth, spacing_mm, error_mm=error_mm, seed=seed + i)
    for i in range(readers)
  ]
  return {
    "hit": float(np.mean([truth[tuple(centre)] for _, centre in drawn])),
    "iou": float(np.mean([iou(mask, truth) for mask, _ in drawn])),
  }


def _checked(
  heat: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  heat, truth = np.asarray(heat), np.asarray(truth, bool)
  if heat.shape != truth.shape or heat.ndim != 3:
    raise ValueError(f"map {heat.shape} and mask {truth.shape} do not match")
  return heat, truth
