"""What is to be explained: a class, and of a segmenter a region of the scan.

How a user names them is told in `cadjax.explain`.
"""

from collections.abc import Sequence

import numpy as np

from cadjax import regions
from cadjax.core import lookup
from cadjax.data import classes, scans
from cadjax.explainer import Explainer
from cadjax.training import workdir
from data_prep import geometry, volume
from data_prep.errors import UserError

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
  lookup.check_known([kind], (*regions.OF_A_CLASS, *PLACES), "region")
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
    return regions.of_class(kind, target, labels, truth)
  grid = prepared.model_input.grid
  if not kind.endswith("_mm"):
    numbers = prepared.scan.grid.to_mm(numbers)
  places = grid.to_index(numbers)
  if kind.startswith("voxel"):
    return regions.voxel(grid.shape, places[0])
  return regions.box(grid.shape, *places)


def read_truth(
  path: str, prepared: scans.Prepared, task: str | None
) -> np.ndarray:
  """Reads true labels on the grid of a scan; returns them on the model's.

  Args:
    path: a mask file.
    prepared: the scan.
    task: a key of `classes.TASKS`, of which the labels become classes; if
      None they stay as they are.

  Raises:
    UserError: the mask cannot be read, has another grid or other labels.
  """
  mask = volume.read_mask(path)
  volume.check_same_grid(prepared.scan, mask)
  labels = geometry.mask_to_grid(mask, prepared.model_input.grid)
  if task is None:
    return labels
  if labels.max() >= len(classes.CLASS_NAMES):
    known = ", ".join(f"{i} {n}" for i, n in enumerate(classes.CLASS_NAMES))
    raise UserError(f"{path}: has the label {labels.max()}; known are {known}")
  return classes.map_mask(labels, task)


def segment_task(trained: workdir.Trained) -> str | None:
  """Returns the key of `classes.TASKS` that a model was trained for."""
  return trained.config.get("segment", {}).get("classes")


def class_names(trained: workdir.Trained, explain: Explainer) -> list[str]:
  """Returns the names of the classes, in the order of the logits."""
  if not explain.is_segmenter:
    return list(CLASSES)
  if task := segment_task(trained):
    return list(classes.get_task(task).names)
  return [str(i) for i in range(explain.num_classes)]
