"""Measures of explanations that take many passes, for every map of a case.

  cadjax evaluate --workdir=W --explain --explain_measures=road,infidelity

What a measure says and where it is from: see `explanation.faithfulness`,
`stability`, `checks` and `overlap`. Here they meet a classifier's maps of all
layers and methods. What the maps of a case share, the score of a changed image
and all maps of it, is computed once: so many methods cost little more than one.
"""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cadjax.core import lookup
from cadjax.core.files import Row
from cadjax.explanation import checks, faithfulness, overlap, stability
from cadjax.explanation.cad_maps import CAD, CONTRIBUTIONS, CadMaps, Cells
from cadjax.metrics import intervals

Key = tuple[str, str]  # Layer and method.
# Noise of the measures of stability: each voxel by up to so many HU.
NOISE_HU = 20.0
# The error of a human reader, which CheXlocalize's human row is drawn with.
READER_MM = 2.0
# What boxes and masks are held against.
TARGET = "plaque"
COVERED = ("coronaries", TARGET)
# CheXlocalize's scores are also given for each third of the lesions by these.
APART = ("volume_mm3", "elongation", "confidence")


@dataclasses.dataclass(frozen=True)
class Effort:
  """How many passes the measures take.

  Attributes:
    road_shares: of the voxels that ROAD replaces.
    road_neighbours: that it replaces a voxel from.
    boxes: of infidelity.
    sets: of blocks at each share of sensitivity-n.
    near: images around one for max-sensitivity and input stability.
    copies: of sMPRT.
  """

  road_shares: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
  road_neighbours: int = 6
  boxes: int = 64
  sets: int = 16
  near: int = 10
  copies: int = 8


class Case:
  """One case: its maps, and a classifier that remembers what it was asked.

  Args:
    maps: of the classifier.
    image: int16 HU [D, H, W], as it sees it.
    spacing_mm: of a voxel along D, H, W.
    fresh: variables of no training, of `CadMaps.fresh`.
    effort: how many passes.
    batch_size: images at a time.
    seed: of all that is drawn.
  """

  def __init__(
    self,
    maps: CadMaps,
    image: np.ndarray,
    spacing_mm: Sequence[float],
    fresh: Mapping[str, Any],
    *,
    effort: Effort | None = None,
    batch_size: int = 4,
    seed: int = 0,
  ):
    self.maps, self.image, self.fresh = maps, image, fresh
    self.effort = effort or Effort()
    self.batch_size, self.seed = batch_size, seed
    self.block = max(1, min(image.shape) // 16)
    self.baseline = faithfulness.blurred(image, spacing_mm)
    self.own = maps.cells(image, signed=True)
    self._scores: dict[bytes, float] = {}
    self._cells: dict[tuple[bytes, int, bool], Cells] = {}

  def score(self, images: np.ndarray) -> np.ndarray:
    """Returns the log odds [n] of images [n, D, H, W]."""
    names = [_digest(one) for one in images]
    new = {
      name: one
      for name, one in zip(names, images, strict=True)
      if name not in self._scores
    }
    if new:
      found = faithfulness.score_all(
        self.maps.log_odds, iter(new.values()), self.batch_size
      )
      self._scores.update(zip(new, map(float, found), strict=True))
    return np.array([self._scores[name] for name in names])

  def cells(
    self,
    key: Key,
    images: np.ndarray,
    *,
    trained: bool = True,
    target: int = CAD,
  ) -> np.ndarray:
    """Returns a map, at least 0, of images [n, D, H, W] on its own cells."""
    layer, method = key
    found = []
    for image in images:
      name = (_digest(image), target, trained)
      if name not in self._cells:
        variables = None if trained else self.fresh
        self._cells[name] = self.maps.cells(image, variables, target=target)
      found.append(self._cells[name][method][layer])
    return np.stack(found)

  def forget(self) -> None:
    """Drops all remembered maps, which are large; scores stay."""
    self._cells.clear()

  def heat(self, key: Key) -> np.ndarray:
    """Returns the map of the image on its grid, [D, H, W], at least 0."""
    return np.maximum(self.contributions(key), 0)

  def contributions(self, key: Key) -> np.ndarray:
    """Returns the same with what speaks against CAD, where a method has it."""
    layer, method = key
    cells = self.own[method][layer]
    return self.maps.raw(cells, layer, self.image.shape, method)


def _digest(image: np.ndarray) -> bytes:
  return hashlib.blake2b(
    np.ascontiguousarray(image).tobytes(), digest_size=16
  ).digest()


# --- Measures of one map of a case ------------------------------------------
def _road(case: Case, key: Key) -> dict[str, float]:
  found = faithfulness.road(
    case.score,
    case.image,
    case.heat(key),
    shares=case.effort.road_shares,
    neighbours=case.effort.road_neighbours,
    batch_size=case.batch_size,
    seed=case.seed,
  )
  return {
    "road": found["road"],
    "road_most": found["most"],
    "road_least": found["least"],
  }


def _infidelity(case: Case, key: Key) -> dict[str, float]:
  # The same cubes for all maps of a case.
  changes = faithfulness.box_changes(
    case.image,
    case.baseline,
    box=max(1, min(case.image.shape) // 4),
    samples=case.effort.boxes,
    seed=case.seed,
  )
  found = faithfulness.infidelity(
    case.score,
    case.image,
    faithfulness.per_unit(case.contributions(key), case.image, case.baseline),
    changes=changes,
    batch_size=case.batch_size,
  )
  own = found["infidelity"] if key[1] in CONTRIBUTIONS else math.nan
  return {"infidelity": own, "infidelity_scaled": found["infidelity_scaled"]}


def _sensitivity_n(case: Case, key: Key) -> dict[str, float]:
  found = faithfulness.sensitivity_n(
    case.score,
    case.image,
    case.contributions(key),
    baseline=case.baseline,
    block=case.block,
    samples=case.effort.sets,
    batch_size=case.batch_size,
    seed=case.seed,
  )
  return {"sensitivity_n": found["sensitivity_n"]}


def _completeness(case: Case, key: Key) -> dict[str, float]:
  # Heat has no unit, so its sum is none of the score.
  if key[1] not in CONTRIBUTIONS:
    return {"completeness_error": math.nan}
  low = case.maps.trained.config.data.window_hu[0]
  blank = np.full_like(case.image, np.clip(low, -32768, 32767))
  found = faithfulness.completeness(
    case.score,
    case.image,
    case.contributions(key),
    baseline=blank,
    batch_size=case.batch_size,
  )
  return {"completeness_error": found["completeness_error"]}


def _max_sensitivity(case: Case, key: Key) -> dict[str, float]:
  return stability.max_sensitivity(
    lambda images: case.cells(key, images),
    case.image,
    radius=NOISE_HU,
    samples=case.effort.near,
    batch_size=1,
    seed=case.seed,
  )


def _relative_input_stability(case: Case, key: Key) -> dict[str, float]:
  found = stability.relative_input_stability(
    lambda images: case.cells(key, images),
    case.image,
    radius=NOISE_HU,
    score=case.score,
    origin=float(case.maps.trained.config.data.window_hu[0]),
    samples=case.effort.near,
    batch_size=1,
    seed=case.seed,
  )
  name = "relative_input_stability"
  return {name: found[name], f"{name}_kept": found["kept"]}


def _smooth_mprt(case: Case, key: Key) -> dict[str, float]:
  found = checks.smooth_mprt(
    lambda trained, images: case.cells(key, images, trained=trained),
    case.image,
    True,
    [("all", False)],
    samples=case.effort.copies,
    batch_size=1,
    seed=case.seed,
  )
  return {f"smooth_mprt_{k}": x for k, x in found["all"].items()}


def _efficient_mprt(case: Case, key: Key) -> dict[str, float]:
  (before,), (after,) = (
    case.cells(key, case.image[None], trained=trained)
    for trained in (True, False)
  )
  found = checks.efficient_mprt(before, after)
  return {"efficient_mprt": found["complexity_rise"]}


def _random_logit(case: Case, key: Key) -> dict[str, float]:
  found = checks.random_logit(
    lambda images, target: case.cells(key, images, target=target),
    case.image,
    target=CAD,
    num_classes=2,
    seed=case.seed,
  )
  return {f"random_logit_{k}": found[k] for k in ("ssim", "spearman")}


# In this order, so that those that share maps of noisy images are neighbours.
MEASURES: Mapping[str, Callable[[Case, Key], dict[str, float]]] = {
  "road": _road,
  "infidelity": _infidelity,
  "sensitivity_n": _sensitivity_n,
  "completeness": _completeness,
  "max_sensitivity": _max_sensitivity,
  "relative_input_stability": _relative_input_stability,
  "smooth_mprt": _smooth_mprt,
  "efficient_mprt": _efficient_mprt,
  "random_logit": _random_logit,
}
# Those that need masks and no pass; of all cases that are explained.
COVERING = SE3D, CHEXLOCALIZE = "se3d", "chexlocalize"
NAMES = (*MEASURES, *COVERING)
# Measures whose maps of noisy images the next one takes, too.
_SHARED = ("max_sensitivity", "smooth_mprt", "efficient_mprt")


def chosen(names: Sequence[str]) -> tuple[str, ...]:
  """Returns the measures of a flag, in the order of `NAMES`.

  Args:
    names: of `NAMES`, or "all" among them.

  Raises:
    lookup.UnknownName: one is neither.
  """
  lookup.check_known(names, (*NAMES, "all"), "measure of explanations")
  return tuple(x for x in NAMES if "all" in names or x in names)


def measure(case: Case, names: Sequence[str]) -> list[Row]:
  """Returns a row for every map of a case: layer, method and the numbers.

  Args:
    case: see there.
    names: keys of `MEASURES`; others are left out.
  """
  rows: dict[Key, Row] = {
    key: {"layer": key[0], "method": key[1]} for key in case.maps.pairs()
  }
  for name, run in MEASURES.items():
    if name not in names:
      continue
    for key, row in rows.items():
      row |= run(case, key)
    if name not in _SHARED:
      case.forget()
  case.forget()
  return list(rows.values())


# --- Cut at a threshold -----------------------------------------------------
@dataclasses.dataclass(frozen=True, eq=False)
class Covers:
  """How the maps of one case, cut at each share, cover a structure.

  Attributes:
    ids: case_id and patient_id.
    masks: (layer, method, structure) -> IoUs at `overlap.SHARES`.
    boxes: the same for boxes, of `TARGET` alone.
    tuned: (layer, method) -> IoUs at `overlap.TUNED`, of `TARGET`.
    hits: (layer, method) -> share of `overlap.TUNED` -> hit and iou.
    human: hit and iou of the readers; None without a lesion.
    about: the numbers of `APART`; None without a lesion.
  """

  ids: Mapping[str, str]
  masks: Mapping[tuple[str, str, str], np.ndarray]
  boxes: Mapping[tuple[str, str, str], np.ndarray]
  tuned: Mapping[Key, np.ndarray]
  hits: Mapping[Key, Mapping[float, Mapping[str, float]]]
  human: Mapping[str, float] | None
  about: Mapping[str, float] | None


def cover(
  maps: CadMaps,
  cells: Cells,
  record: Mapping[str, Any],
  structures: Mapping[str, np.ndarray],
  *,
  ids: Mapping[str, str],
  names: Sequence[str],
  seed: int = 0,
) -> Covers:
  """Returns how the maps of a case cover its structures.

  Args:
    maps: of the classifier.
    cells: its maps of the case.
    record: with image and spacing.
    structures: distance fields, of `case_maps.read_structures`; one that
      is absent, as the plaque of a normal patient, has nothing to cover.
    ids: case_id and patient_id.
    names: of the measures; those of `COVERING` are taken.
    seed: of the readers.
  """
  shape, spacing = record["image"].shape, record["spacing"]
  # A lesion between the voxels of the grid is the nearest of them.
  truths = {
    name: structures[name] <= _least(structures[name])
    for name in COVERED
    if name in structures and np.isfinite(structures[name]).any()
  }
  lesion = truths.get(TARGET)
  masks, boxes, tuned, hits = {}, {}, {}, {}
  for layer, method in maps.pairs():
    heat = maps.heat(cells[method][layer], layer, shape, method)
    if SE3D in names:
      for name, truth in truths.items():
        masks[layer, method, name] = overlap.mask_ious(heat, truth)
      if lesion is not None:
        boxes[layer, method, TARGET] = overlap.box_ious(heat, lesion)
    if CHEXLOCALIZE in names and lesion is not None:
      tuned[layer, method] = overlap.mask_ious(heat, lesion, overlap.TUNED)
      hits[layer, method] = {
        share: overlap.localise(heat, lesion, share) for share in overlap.TUNED
      }
  human = about = None
  if CHEXLOCALIZE in names and lesion is not None:
    human = overlap.human(lesion, spacing, error_mm=READER_MM, seed=seed)
    odds = float(maps.log_odds(record["image"][None])[0])
    about = overlap.lesion_shape(lesion, spacing) | {"confidence": odds}
  return Covers(ids, masks, boxes, tuned, hits, human, about)


def _least(distance: np.ndarray) -> float:
  return max(0.0, float(distance.min()))


def summarise_se3d(
  covers: Sequence[Covers], *, draws: int, seed: int
) -> tuple[list[Row], list[Row]]:
  """Returns SE3D's scores of each map and structure, with intervals.

  Args:
    covers: of all cases.
    draws: of the bootstrap over patients, which chooses the share again.
    seed: of it.

  Returns:
    the table, with "max_mask" and "max_box", None for a structure without
    boxes; and rows of cases, with the IoU of the mask and the share of
    `overlap.DELTAS` at which the box is found, each at the best share for all.
  """
  rows, by_case = [], []
  keys = dict.fromkeys(key for one in covers for key in one.masks)
  for key in keys:
    some = [one for one in covers if key in one.masks]
    patients = [one.ids["patient_id"] for one in some]
    options = {"patients": patients, "draws": draws, "seed": seed}
    named = dict(zip(("layer", "method", "structure"), key, strict=True))
    row: Row = dict(named)
    ious = np.nan_to_num([one.masks[key] for one in some])
    row["max_mask"] = _best_share([ious], **options)
    row["max_mask_share"] = overlap.max_mask_iou(ious)["max_mask_share"]
    boxes = [one.boxes[key] for one in some if key in one.boxes]
    row["max_box"] = None
    if boxes:
      with np.errstate(invalid="ignore"):
        found = [np.array(boxes) >= delta for delta in overlap.DELTAS]
      row["max_box"] = _best_share(found, **options)
    rows.append(row)
    at = overlap.SHARES.index(row["max_mask_share"])
    for i, one in enumerate(some):
      own = {"mask_iou": float(ious[i, at]), "box_found": math.nan}
      if boxes:
        found_at = [x[i, np.argmax(x.mean(0))] for x in found]
        own["box_found"] = float(np.mean(found_at))
      by_case.append({**one.ids, **named, **own})
  return rows, by_case


def _best_share(
  tables: Sequence[np.ndarray],
  *,
  patients: Sequence[str],
  draws: int,
  seed: int,
) -> intervals.MeanInterval:
  """Returns the mean over tables of the mean at each one's best share.

  Args:
    tables: [cases, shares] each.
    patients: of the cases.
    draws: of the bootstrap over patients.
    seed: of it.
  """
  names, member = np.unique(patients, return_inverse=True)
  counts = intervals.bootstrap_counts(
    np.zeros(names.size), draws=draws, seed=seed
  )
  weights = np.vstack([np.ones(names.size), counts])[:, member]
  weights /= weights.sum(1, keepdims=True)
  found = np.mean(
    [(weights @ np.asarray(x, float)).max(1) for x in tables], axis=0
  )
  low, high = intervals.percentiles(found[1:])
  method = "bootstrap over patients"
  if not high - low > 1e-12:
    low, high, method = math.nan, math.nan, "undetermined"
  size = names.size
  return intervals.MeanInterval(
    float(found[0]), low, high, method, None, size, size
  )


def summarise_chexlocalize(
  covers: Sequence[Covers],
  validation: Sequence[Covers],
  **options: Any,
) -> tuple[dict[str, Any], list[Row]]:
  """Returns hit rate and mIoU at the share that validation cases choose.

  Args:
    covers: of the cases that are tested.
    validation: of other cases; maps without one with a lesion are left out.
    **options: draws and seed of `intervals.mean_interval`.

  Returns:
    "error_mm" of the readers; "table", a row for each layer and method with
    "share", "hit" and "iou", the first one "human"; "apart", the same rows for
    each third of the `APART` of the lesions; and the rows of cases.
  """
  rows: list[Row] = []
  shares: dict[Key, float] = {}
  keys = dict.fromkeys(key for one in covers for key in one.tuned)
  for key in keys:
    ious = np.array([x.tuned[key] for x in validation if key in x.tuned])
    if not len(ious) or np.isnan(ious).any(1).all():
      continue
    shares[key] = overlap.tune_share(ious)
  lesions = [one for one in covers if one.human is not None]
  for one in lesions:
    about = {**one.ids, **one.about}
    rows.append(about | {"layer": "-", "method": "human"} | dict(one.human))
    rows += [
      about
      | {"layer": layer, "method": method}
      | dict(one.hits[layer, method][share])
      for (layer, method), share in shares.items()
    ]
  numbers = ("hit", "iou")
  by = ("layer", "method")
  table = intervals.mean_table(rows, by, numbers, **options)
  for row in table:
    row["share"] = shares.get((row["layer"], row["method"]))
  apart = []
  for column in APART:
    # Thirds of the cases, not of the maps, of which each case has as many.
    parted = overlap.by_third(rows, column) if rows else []
    third = f"{column}_third"
    for row in intervals.mean_table(parted, (*by, third), numbers, **options):
      row["third"] = row.pop(third)
      apart.append({"by": column} | row)
  return {"error_mm": READER_MM, "table": table, "apart": apart}, rows
