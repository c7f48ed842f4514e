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
from cadjax.explanation import faithfulness
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
# Places elsewhere that what a map shows is compared with.
_ELSEWHERE = 2
# Where a map and the network look, of a scan with lesions; one is 1.
VERDICTS = ("on_used", "map_elsewhere", "network_elsewhere", "on_unused")
# Of a map of a scan, and of a map at a lesion.
SCAN_NUMBERS = (
  "rank_correlation",
  *VERDICTS,
  "shown",
  "shown_elsewhere",
  "shown_gain",
)
LESION_NUMBERS = (
  *("at", "hit_used", "hit_unused"),
  *("gone_used", "gone_unused", "gone_near"),
)


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
    spacing_mm: of a voxel along D, H, W.
  """

  lesions: Sequence[Mapping[str, Any]]
  whole: np.ndarray
  none: np.ndarray
  without: Sequence[np.ndarray]
  alone: Sequence[np.ndarray]
  near: Sequence[np.ndarray]
  spacing_mm: tuple[float, ...]


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
    spacing_mm=grid.spacing,
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
    with its effect; NaN below three lesions, where none is used by itself, or
    without any spread); and for
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
  # The order of effects that are none says nothing of the map.
  used = len(removed) and np.max(removed) >= USED
  rank = _spearman(np.array(means), removed) if used else math.nan
  return {"rank_correlation": rank}, rows


def verdict(
  removed: np.ndarray, together: float, hits: Sequence[float]
) -> dict[str, float]:
  """Tells apart whether the network looks elsewhere or the map does.

  A lesion is used if the log odds fall by `USED` without it. Where none is
  used on its own, but all are together, as where one is enough for the
  network, each counts as used.

  Args:
    removed: [lesions], of `effects`.
    together: how far the log odds fall without all of them.
    hits: [lesions], 1 where the map hits the lesion; NaN, of a map of zeros,
      counts as 0.

  Returns:
    1 for one of `VERDICTS` and 0 for the others: "on_used", the map hits a
    lesion that is used; "map_elsewhere", lesions are used and the map hits
    none of these; "network_elsewhere", none is used and the map hits none, so
    it is not to blame; "on_unused", none is used and the map hits one.
  """
  used = np.asarray(removed) >= USED
  if not used.any() and together >= USED:
    used[:] = True
  hit = np.asarray(hits, float) == 1
  if used.any():
    found = "on_used" if (hit & used).any() else "map_elsewhere"
  else:
    found = "on_unused" if hit.any() else "network_elsewhere"
  return {name: float(name == found) for name in VERDICTS}


def shown(
  score: faithfulness.Score,
  image: np.ndarray,
  heat: np.ndarray,
  baseline: np.ndarray,
  *,
  batch_size: int = 4,
  seed: int = 0,
) -> dict[str, float]:
  """Returns what the place that a map shows is worth to the network.

  It asks whether the map shows what the network uses, whatever that is, where
  the lesions cannot tell. The voxels from `HIT` of the map's maximum on are
  replaced, and as many of the same form elsewhere (toroidal shifts).

  Args:
    score: images [n, D, H, W] to [n] log odds; it gets `batch_size` of them.
    image: [D, H, W].
    heat: map [D, H, W], at least 0.
    baseline: [D, H, W], what replaces; see `faithfulness.blurred`.
    batch_size: images at a time.
    seed: of the shifts.

  Returns:
    how far the log odds fall: "shown", without what the map shows;
    "shown_elsewhere", the mean of the other places; "shown_gain", the first
    less the second: above 0 where the map shows what is used, about 0 for a
    random map, 0 for a constant one. NaN of a map of zeros.
  """
  if not heat.max(initial=0) > 0:
    return dict.fromkeys(("shown", "shown_elsewhere", "shown_gain"), math.nan)
  place = heat >= HIT * heat.max()
  rng = np.random.default_rng(seed)
  places = [place]
  for _ in range(_ELSEWHERE):
    steps = [int(rng.integers(n // 4, n - n // 4 + 1)) for n in place.shape]
    places.append(np.roll(place, steps, (0, 1, 2)))
  falls, _ = faithfulness.removals(
    score,
    image,
    heat,
    baseline=baseline,
    removed=places,
    batch_size=batch_size,
  )
  here, elsewhere = float(falls[0]), float(falls[1:].mean())
  return {
    "shown": here,
    "shown_elsewhere": elsewhere,
    "shown_gain": here - elsewhere,
  }


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
  baseline = faithfulness.blurred(twins.whole, twins.spacing_mm)
  for layer, method in maps.pairs():
    key = {"layer": layer, "method": method}
    heat = maps.raw(whole[method][layer], layer, shape, method)
    scan, lesions = agreement(
      heat,
      [maps.raw(one[method][layer], layer, shape, method) for one in others],
      twins.near,
      found["removed"],
    )
    rows[SCANS].append(
      ids
      | key
      | scan
      | verdict(
        found["removed"],
        found["whole"] - found["none"],
        [lesion["hit"] for lesion in lesions],
      )
      | shown(maps.log_odds, twins.whole, heat, baseline)
    )
    for effect, lesion in zip(rows[EFFECTS], lesions, strict=True):
      # All rows have all columns, as the table in a file needs.
      split = dict.fromkeys(
        ("hit_used", "hit_unused", "gone_used", "gone_unused"), math.nan
      )
      used = "used" if effect["used"] else "unused"
      split[f"hit_{used}"] = lesion["hit"]
      split[f"gone_{used}"] = lesion["gone"]
      rows[LESIONS].append(
        ids | key | {"lesion": effect["lesion"], **lesion} | split
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
    method, with `SCAN_NUMBERS` and `LESION_NUMBERS`; "n_lesions"; and
    "answers", of `answers`.
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
    rows[SCANS], by, SCAN_NUMBERS, proportions=VERDICTS, **options
  )
  local = intervals.mean_table(rows[LESIONS], by, LESION_NUMBERS, **options)
  result = {
    "used_from": USED,
    "near_mm": NEAR_MM,
    "hit_from": HIT,
    "n_lesions": len(rows[EFFECTS]),
    "effects": {k: v for k, v in table.items() if k != "all"},
    "explained": {
      "one": intervals.mean_interval(np.array(one), proportion=True),
      "all": intervals.mean_interval(np.array(every), proportion=True),
    },
    "agreement": [a | b for a, b in zip(ranked, local, strict=True)],
  }
  return result | {"answers": answers(result)}


def best_map(agreement: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
  """Returns the row of the map that agrees best with the effects.

  By the mean rank correlation; where no map has one, by what the place that
  the map shows is worth.
  """
  for name in ("rank_correlation", "shown_gain"):
    known = [x for x in agreement if math.isfinite(x[name].value)]
    if known:
      return max(known, key=lambda row: row[name].value)
  return agreement[0]


def answers(result: Mapping[str, Any]) -> list[str]:
  """Returns a sentence for each of the two questions.

  Args:
    result: of `summarise`, without its answers.
  """
  effects, lost = result["effects"], result["explained"]["all"]
  used = effects["used"]
  count = f"{result['n_lesions']} lesions of {used.n} patients"
  calls = (
    "; it calls none of them CAD"
    if not lost.n
    else f"; of its CAD calls {lost.text(2)} are lost without all lesions"
  )
  if not used.value and not lost.value > 0:
    first = f"no, none of {count}{calls}"
  else:
    first = f"{used.text(2)} of {count}{calls}"
  best = best_map(result["agreement"])
  name = f"{best['method']} at {best['layer']}"
  place = (
    f"the log odds fall by {best['shown'].text(2)} where it points, by"
    f" {best['shown_elsewhere'].text(2)} elsewhere"
  )
  if not used.value:
    second = f"no lesion alone is used to hold maps against; {name}: {place}"
  else:
    second = (
      f"best {name}: rank correlation with the effects"
      f" {best['rank_correlation'].text(2)}; it hits"
      f" {best['hit_used'].text(2)} of the lesions used and"
      f" {best['hit_unused'].text(2)} of the others; {place}"
    )
  return [
    f"does the network use the lesions? {first}",
    f"does the map point to what the network uses? {second}",
  ]
