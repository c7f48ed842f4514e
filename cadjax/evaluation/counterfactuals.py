"""What a lesion changes: the same phantom with it and without it.

  python -m cadjax.evaluate --workdir=W --explain --explain_counterfactuals=20

A phantom is drawn again with some of its lesions alone and everything else the
same, down to the noise in each voxel. The difference of the log odds of CAD is
the causal effect of a lesion, without the artefacts of blurring or filling in.
Two questions are kept apart: does the network use a lesion (its effect), and
does a map show what the network uses (the map's agreement with the effects)?
A map must not be blamed for pointing away from a lesion that is not used.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from scipy.spatial import cKDTree

from cadjax.classification.classifier import Classifier
from cadjax.data import input_pipeline
from cadjax.explanation import cam
from cadjax.explanation.cad_maps import CadMaps
from cadjax.metrics import intervals
from data_prep import phantom
from data_prep.errors import UserError
from data_prep.volume import Grid

# A lesion counts as used if the log odds fall by as much without it: odds that
# are 1.6 times as high with it.
USED = 0.5
# A voxel as near to a lesion's centreline is at the lesion.
NEAR_MM = 5.0
# A lesion is hit where the map reaches this share of its maximum.
HIT = 0.5
# Names of the rows: of lesions, of maps of a scan, of maps at lesions.
EFFECTS, SCANS, LESIONS = "effects", "scans", "lesions"
# Fewer lesions have no order.
_LEAST_RANKED = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Twins:
  """One patient, with and without lesions, as a classifier sees them.

  Attributes:
    lesions: rows of the table of `phantom.Phantom`.
    whole: int16 HU [D, H, W], with all of them.
    none: without any.
    without: for each lesion, without that one.
    alone: for each lesion, with that one alone.
    near: for each lesion, bool [D, H, W] within `NEAR_MM` of its centreline.
  """

  lesions: Sequence[Mapping[str, Any]]
  whole: np.ndarray
  none: np.ndarray
  without: Sequence[np.ndarray]
  alone: Sequence[np.ndarray]
  near: Sequence[np.ndarray]


def can_be_drawn(dataset: input_pipeline.Dataset) -> bool:
  """Returns whether the cases of a data set are phantoms of this edition."""
  about = dataset.metadata
  return (
    about.get("source") == "phantom"
    and about.get("edition", 1) == phantom.EDITION
  )


def draw_twins(
  trained: Classifier,
  dataset: input_pipeline.Dataset,
  case: input_pipeline.CaseRow,
) -> Twins:
  """Draws the phantom of a record again, with and without its lesions.

  Args:
    trained: the classifier, whose prior is applied.
    dataset: of phantoms, see `can_be_drawn`.
    case: of the data set, with CAD.

  Raises:
    UserError: what is drawn is not the record.
  """
  record = dataset.read(case)
  affine = np.asarray(record["grid_affine"], float)
  spacing = np.linalg.norm(affine[:3, :3], axis=0)
  grid = Grid(
    record["image"].shape,
    tuple(spacing),
    tuple(affine[:3, 3]),
    affine[:3, :3] / spacing,
  )
  about = dataset.metadata

  def draw(keep: Sequence[int] | None) -> phantom.Phantom:
    return phantom.make_phantom(
      int(case["case_id"].rpartition("_")[2]),
      label=1,
      severity=about["severity"],
      grid=grid,
      scanner=about.get("scanner"),
      population=about.get("population"),
      keep=keep,
    )

  def seen(drawn: phantom.Phantom) -> np.ndarray:
    image = {"image": drawn.volume.hu, "mask": drawn.tissues}
    return trained.seen(record | image)

  whole = draw(None)
  if not np.array_equal(whole.volume.hu, record["image"]):
    raise UserError(
      f"{dataset.path}: the phantom {case['case_id']}, drawn again, is not the"
      " record; build the data set again with this version of cadjax"
    )
  numbers = range(len(whole.lesions))
  points = whole.volume.grid.to_mm(np.indices(grid.shape).reshape(3, -1).T)
  near = []
  for lesion in whole.lesions:
    away, _ = cKDTree(whole.lesion_line(lesion)).query(
      points, distance_upper_bound=NEAR_MM
    )
    near.append(np.isfinite(away).reshape(grid.shape))
  return Twins(
    lesions=whole.lesions,
    whole=seen(whole),
    none=seen(draw([])),
    without=[seen(draw([k for k in numbers if k != one])) for one in numbers],
    alone=[seen(draw([one])) for one in numbers],
    near=near,
  )


def effects(maps: CadMaps, twins: Twins) -> dict[str, Any]:
  """Returns what lesions change of the log odds of CAD.

  Args:
    maps: of the classifier.
    twins: of `draw_twins`.

  Returns:
    "whole" and "none", the log odds with all and without any; "removed" and
    "added", [lesions]: how far the log odds fall without one, and how far they
    rise from none by one alone.
  """

  def log_odds(image: np.ndarray) -> float:
    return float(maps.log_odds(image[None])[0])

  whole, none = log_odds(twins.whole), log_odds(twins.none)
  return {
    "whole": whole,
    "none": none,
    "removed": np.array([whole - log_odds(one) for one in twins.without]),
    "added": np.array([log_odds(one) - none for one in twins.alone]),
  }


def agreement(
  heat: np.ndarray,
  without: Sequence[np.ndarray],
  near: Sequence[np.ndarray],
  removed: np.ndarray,
) -> tuple[dict[str, float], list[dict[str, float]]]:
  """Compares one map with the effects of the lesions.

  A map that shows what the network uses has a rank correlation near 1, hits
  the lesions with an effect and not those without, and loses mass with a used
  lesion, there. One that lies elsewhere has a rank correlation around 0 and
  loses nothing near the lesion.

  Args:
    heat: raw map [D, H, W] of the whole patient, at least 0.
    without: the same without each lesion, of the same scale.
    near: bool [D, H, W] for each lesion.
    removed: [lesions], of `effects`.

  Returns:
    of the scan "rank_correlation" (Spearman, of the map's mean at a lesion
    with its effect; NaN below three lesions or without any spread); and for
    each lesion "at", the map's largest value there over its maximum; "hit";
    "gone", the share of the map's mass that vanishes without the lesion; and
    "gone_near", the share of what vanishes that lies there. NaN where the map
    is zero, or nothing vanishes.
  """
  top, total = float(heat.max(initial=0.0)), float(heat.sum(dtype=np.float64))
  rows, means = [], []
  for other, region in zip(without, near, strict=True):
    lost = np.maximum(heat - other, 0.0)
    sum_lost = float(lost.sum(dtype=np.float64))
    at = float(heat[region].max(initial=0.0)) / top if top else math.nan
    means.append(float(heat[region].mean()) if region.any() else math.nan)
    rows.append(
      {
        "at": at,
        "hit": float(at >= HIT) if top else math.nan,
        "gone": sum_lost / total if total else math.nan,
        "gone_near": (
          float(lost[region].sum(dtype=np.float64)) / sum_lost
          if sum_lost
          else math.nan
        ),
      }
    )
  return {"rank_correlation": _spearman(np.array(means), removed)}, rows


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
  known = np.isfinite(one) & np.isfinite(other)
  one, other = one[known], other[known]
  if len(one) < _LEAST_RANKED or not np.ptp(one) or not np.ptp(other):
    return math.nan
  return float(scipy.stats.spearmanr(one, other).statistic)


def measure_case(
  maps: CadMaps,
  dataset: input_pipeline.Dataset,
  case: input_pipeline.CaseRow,
) -> dict[str, list[dict[str, Any]]]:
  """Returns the rows of one case with CAD: "effects", "scans" and "lesions".

  Args:
    maps: of the classifier.
    dataset: of phantoms.
    case: of the data set.
  """
  twins = draw_twins(maps.trained, dataset, case)
  found = effects(maps, twins)
  ids = {"case_id": case["case_id"], "patient_id": case["patient_id"]}
  rows: dict[str, list[dict[str, Any]]] = {
    EFFECTS: [
      ids
      | {
        "lesion": number,
        **{k: lesion[k] for k in ("scct", "stenosis", "plaque", "volume_mm3")},
        "log_odds": found["whole"],
        "log_odds_none": found["none"],
        "removed": float(found["removed"][number]),
        "added": float(found["added"][number]),
        "used": float(found["removed"][number] >= USED),
      }
      for number, lesion in enumerate(twins.lesions)
    ],
    SCANS: [],
    LESIONS: [],
  }
  shape = twins.whole.shape
  whole = maps.cells(twins.whole)
  others = [maps.cells(one) for one in twins.without]
  for layer in maps.strides:
    for method in cam.METHODS:
      key = {"layer": layer, "method": method}
      scan, lesions = agreement(
        maps.raw(whole[method][layer], layer, shape),
        [maps.raw(one[method][layer], layer, shape) for one in others],
        twins.near,
        found["removed"],
      )
      rows[SCANS].append(ids | key | scan)
      for effect, lesion in zip(rows[EFFECTS], lesions, strict=True):
        used = "used" if effect["used"] else "unused"
        rows[LESIONS].append(
          ids
          | key
          | {"lesion": effect["lesion"], **lesion}
          | {f"hit_{used}": lesion["hit"], f"gone_{used}": lesion["gone"]}
        )
  return rows


def summarise(
  rows: Mapping[str, Sequence[Mapping[str, Any]]],
  threshold: float,
  **options: Any,
) -> dict[str, Any]:
  """Returns the tables of effects and of agreement, by patient.

  Args:
    rows: of `measure_case`, of all cases, by `EFFECTS`, `SCANS`, `LESIONS`.
    threshold: log odds at or above which a scan is called CAD.
    **options: draws and seed of `intervals.mean_interval`.

  Returns:
    "effects": intervals of `removed`, `added` and `used`, and "explained": of
    the scans called CAD, the share that is not without one of its lesions
    ("one") and without all ("all"); "agreement": a row for each layer and
    method.
  """
  scans: dict[str, list[Mapping[str, Any]]] = {}
  for row in rows[EFFECTS]:
    scans.setdefault(row["case_id"], []).append(row)
  called = [some for some in scans.values() if some[0]["log_odds"] >= threshold]
  one = [
    float(any(row["log_odds"] - row["removed"] < threshold for row in some))
    for some in called
  ]
  every = [float(some[0]["log_odds_none"] < threshold) for some in called]
  (table,) = intervals.mean_table(
    [{"all": "all", **row} for row in rows[EFFECTS]],
    ("all",),
    ("removed", "added", "used"),
    **options,
  ) or [{}]
  by = ("layer", "method")
  ranked = intervals.mean_table(
    rows[SCANS], by, ("rank_correlation",), **options
  )
  local = intervals.mean_table(
    rows[LESIONS],
    by,
    ("at", "hit_used", "hit_unused", "gone_used", "gone_unused", "gone_near"),
    **options,
  )
  return {
    "used_from": USED,
    "near_mm": NEAR_MM,
    "hit_from": HIT,
    "effects": {k: v for k, v in table.items() if k != "all"},
    "explained": {
      "one": intervals.mean_interval(np.array(one), proportion=True),
      "all": intervals.mean_interval(np.array(every), proportion=True),
    },
    "agreement": [a | b for a, b in zip(ranked, local, strict=True)],
  }
