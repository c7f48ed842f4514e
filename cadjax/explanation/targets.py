"""The region M whose logits a segmenter's explanation adds up.

All on the host, on [D, H, W]. Seg-Grad-CAM (Vinogradova et al. 2020, arXiv
2002.11434) calls M the pixels of interest.
"""

from collections.abc import Sequence

import numpy as np

from cadjax.core import lookup
from cadjax.data import classes, scans
from cadjax.explanation.explainer import Explainer
from cadjax.segmentation.components import largest
from cadjax.training import workdir
from data_prep import geometry, volume
from data_prep.errors import UserError
from data_prep.tissues import CLASS_NAMES, VESSEL_CLASSES

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
  return _not_empty(region, f"the region {kind!r} of class {number}")


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
  where = f"from {_numbers(ends[0])} to {_numbers(ends[1])} (voxels D, H, W)"
  return _not_empty(region, f"the box {where} in a volume of {tuple(shape)}")


def voxel(shape: Sequence[int], index: Sequence[float]) -> np.ndarray:
  """Selects the voxel nearest to a place.

  Raises:
    UserError: the place lies outside the volume.
  """
  nearest = np.rint(index).astype(int)
  region = np.zeros(shape, bool)
  if (nearest >= 0).all() and (nearest < shape).all():
    region[tuple(nearest)] = True
  where = f"the voxel {_numbers(index)} (D, H, W)"
  return _not_empty(region, f"{where} in a volume of {tuple(shape)}")


def _not_empty(region: np.ndarray, what: str) -> np.ndarray:
  if not region.any():
    raise UserError(f"{what} selects nothing: there is nothing to explain")
  return region


def _numbers(values: Sequence[float]) -> str:
  return ", ".join(f"{value:.4g}" for value in values)


CLASSES = ("normal", "cad")
PREDICTED = "predicted"
# A region by its place: how many numbers it takes.
PLACES = {"box": 6, "box_mm": 6, "voxel": 3, "voxel_mm": 3}


def find_target(name: str, known: Sequence[str]) -> int:
  """Returns the number of a class, given by its name or its number.

  Raises:
    lookup.UnknownName: there is no such class.
  """
  if name.isdigit() and int(name) < len(known):
    return int(name)
  lookup.check_known([name], known, "target")
  return list(known).index(name)


def parse_region(text: str) -> tuple[str, np.ndarray | None]:
  """Splits "box:1,2,3,4,5,6" into its kind and its numbers [n, 3].

  Raises:
    UserError: there is no such region, or its numbers are not that many.
  """
  kind, colon, numbers = text.partition(":")
  lookup.check_known([kind], (*OF_A_CLASS, *PLACES), "region")
  if kind not in PLACES:
    if colon:
      raise UserError(f"--region={text}: {kind!r} takes no numbers")
    return kind, None
  try:
    values = np.array([float(x) for x in numbers.split(",")])
    return kind, values.reshape(PLACES[kind] // 3, 3)
  except ValueError as error:
    raise UserError(
      f"--region={text}: {kind!r} takes {PLACES[kind]} numbers, as in"
      f" {kind}:{','.join('123456'[: PLACES[kind]])}"
    ) from error


def select_region(
  text: str,
  target: int,
  labels: np.ndarray,
  prepared: scans.Prepared,
  truth: np.ndarray | None = None,
) -> np.ndarray:
  """Selects a region on the grid of a segmenter.

  A box lies between two corners; its edges run along the segmenter's grid.

  Args:
    text: as --region has it.
    target: the class.
    labels: [D, H, W], what the segmenter says.
    prepared: the scan.
    truth: [D, H, W], true labels on the segmenter's grid.

  Returns:
    bool [D, H, W].

  Raises:
    UserError: it cannot be used or selects nothing.
  """
  kind, numbers = parse_region(text)
  if numbers is None:
    return of_class(kind, target, labels, truth)
  grid = prepared.model_input.grid
  if not kind.endswith("_mm"):
    numbers = prepared.scan.grid.to_mm(numbers)
  places = grid.to_index(numbers)
  if kind.startswith("voxel"):
    return voxel(grid.shape, places[0])
  return box(grid.shape, *places)


def read_truth(
  path: str, prepared: scans.Prepared, class_set: str | None
) -> np.ndarray:
  """Reads true labels on the grid of a scan; returns them on the model's.

  Args:
    path: a mask file.
    prepared: the scan.
    class_set: a key of `classes.CLASS_SETS`, whose classes the labels become;
      if None they stay as they are.

  Raises:
    UserError: the mask cannot be read, has another grid or other labels.
  """
  mask = volume.read_mask(path)
  volume.check_same_grid(prepared.scan, mask)
  labels = geometry.mask_to_grid(mask, prepared.model_input.grid)
  if class_set is None:
    return labels
  # Another numbering would pass for tissues, where vessels are asked for.
  parts = classes.get_class_set(class_set).parts.values()
  vessels = {part for some in parts for part in some} <= set(VESSEL_CLASSES)
  names = VESSEL_CLASSES if vessels else CLASS_NAMES
  if labels.max() >= len(names):
    known = ", ".join(f"{i} {n}" for i, n in enumerate(names))
    raise UserError(f"{path}: has the label {labels.max()}; known are {known}")
  return classes.map_mask(labels, class_set)


def class_set_of(trained: workdir.Trained) -> str | None:
  """Returns the key of `classes.CLASS_SETS` that a model was trained for."""
  return trained.config.get("segment", {}).get("classes")


def class_names(explainer: Explainer) -> list[str]:
  """Returns the names of the classes, in the order of the logits."""
  if not explainer.is_segmenter:
    return list(CLASSES)
  if class_set := class_set_of(explainer.model):
    return list(classes.get_class_set(class_set).names)
  return [str(i) for i in range(explainer.num_classes)]
