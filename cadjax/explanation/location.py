"""Where an explanation map points: measures against masks, in mm, with nulls.

A map is [D, H, W], finite and at least 0, of any scale: no measure changes if
the map is multiplied by a number above 0. A structure is given by its distance
field (`distance_mm`), 0 inside; dilated by r mm it is where the distance is at
most r. A region (a body mask, say) limits everything to its voxels. What is
undefined is NaN: a map that is zero everywhere in the region, a structure that
has no voxel there or has all of them.

Lift and pointing have two nulls. A map that is uniform over the region has
lift 1 and points by chance as often as the structure is large. Rolled masks
(toroidal shifts of the structure) keep its shape and the map's, and lose only
their alignment; they do not know that hearts lie in the middle of a scan, so
a map that merely prefers the middle can pass them. A region narrows that gap.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import scipy.ndimage
import scipy.sparse

from cadjax.metrics import intervals

RADII_MM = (0.0, 2.0, 5.0, 10.0)
PEAK_MM = 5.0
ROLLS = 99
THREADS = 4  # Each takes the memory of sorting a map.


def distance_mm(
  mask: np.ndarray,
  spacing_mm: Sequence[float],
  centers: np.ndarray | None = None,
) -> np.ndarray:
  """Returns the distance of every voxel's centre from a structure.

  Args:
    mask: [D, H, W]; its voxels have the distance 0, others the Euclidean
      distance to the nearest of its voxels' centres.
    spacing_mm: of a voxel along D, H and W, each above 0.
    centers: voxel coordinates [n, 3] of points that belong to the structure
      too, such as lesions; they may lie between voxels or outside.

  Returns:
    float32 [D, H, W] in mm, infinite for an empty structure.
  """
  mask = np.asarray(mask, bool)
  spacing = np.asarray(spacing_mm, np.float64)
  distance = np.full(mask.shape, np.inf, np.float32)
  if mask.any():
    distance = scipy.ndimage.distance_transform_edt(
      ~mask, sampling=spacing
    ).astype(np.float32)
  points = np.zeros((0, 3)) if centers is None else np.asarray(centers)
  axes = [np.arange(n, dtype=np.float64) for n in mask.shape]
  for point in points.reshape(-1, 3):
    d, h, w = (
      ((axis - at) * step) ** 2
      for axis, at, step in zip(axes, point, spacing, strict=True)
    )
    squares = d[:, None, None] + h[:, None] + w
    np.minimum(distance, np.sqrt(squares), out=distance, casting="same_kind")
  return distance


def energy_in(
  heat: np.ndarray, inside: np.ndarray, region: np.ndarray | None = None
) -> dict[str, float]:
  """Returns how much of a map lies in a mask.

  Args:
    heat: map [D, H, W].
    inside: bool [D, H, W].
    region: bool [D, H, W]; all voxels if left out.

  Returns:
    energy, the share of the map's sum over the region that lies inside, in
    [0, 1] (the energy-based pointing game, Wang et al., CVPRW 2020); share,
    the mask's share of the region's voxels; and lift = energy / share, at
    least 0, 1 for a uniform map and 1 / share for a map within the mask.
  """
  heat, inside = _in_region(_checked(heat), inside, region)
  total = heat.sum(dtype=np.float64)
  share = float(inside.mean()) if inside.size else 0.0
  if not total > 0 or not 0 < share < 1:
    return {"energy": math.nan, "share": share, "lift": math.nan}
  energy = float(heat[inside].sum(dtype=np.float64) / total)
  return {"energy": energy, "share": share, "lift": energy / share}


def pointing(
  heat: np.ndarray, near: np.ndarray, region: np.ndarray | None = None
) -> dict[str, float]:
  """Plays the pointing game: does the map's peak lie where it should?

  Zhang et al., Int. J. Comput. Vis. 126 (2018) 1084-1102.

  Args:
    heat: map [D, H, W].
    near: bool [D, H, W], where a peak counts as a hit.
    region: bool [D, H, W]; all voxels if left out.

  Returns:
    pointing: 1 or 0; where several voxels share the largest value, the share
    of them that hit, so that a flat map has no luck. chance: the same for a
    voxel drawn at random from the region.
  """
  heat, near = _in_region(_checked(heat), near, region)
  chance = float(near.mean()) if near.size else 0.0
  if not heat.sum() > 0 or not 0 < chance < 1:
    return {"pointing": math.nan, "chance": chance}
  return {"pointing": float(near[heat == heat.max()].mean()), "chance": chance}


def ascending(heat: np.ndarray, region: np.ndarray | None = None) -> np.ndarray:
  """Returns the order [n] of a map's voxels in the region, the least first."""
  return np.argsort(_inside(_checked(heat), region))


def auprc(
  heat: np.ndarray,
  inside: np.ndarray,
  region: np.ndarray | None = None,
  order: np.ndarray | None = None,
) -> dict[str, float]:
  """Returns the average precision of the map as a detector of the mask.

  Args:
    heat: map [D, H, W].
    inside: bool [D, H, W].
    region: bool [D, H, W]; all voxels if left out.
    order: of `ascending`, where several masks share a map: sorting is slow.

  Returns:
    auprc in [0, 1], the average precision over voxels as scikit-learn defines
    it (the mean over the mask's voxels of the precision at each, where voxels
    of equal heat have one precision), and chance, the mask's prevalence, which
    is what a uniform map gets.
  """
  order = ascending(heat, region) if order is None else order
  heat, inside = _in_region(_checked(heat), inside, region)
  chance = float(inside.mean()) if inside.size else 0.0
  if not heat.sum() > 0 or not 0 < chance < 1:
    return {"auprc": math.nan, "chance": chance}
  order = order[::-1]
  heat = heat[order]
  last = np.flatnonzero(np.append(heat[1:] != heat[:-1], True))  # Of a tie.
  hits = np.cumsum(inside[order])[last]
  new = np.diff(hits, prepend=0)
  value = (new * (hits / (last + 1))).sum() / hits[-1]
  return {"auprc": float(value), "chance": chance}


def gini(
  heat: np.ndarray,
  region: np.ndarray | None = None,
  order: np.ndarray | None = None,
) -> float:
  """Returns the Gini index of a map [D, H, W], its sparseness.

  0 for a uniform map, 1 - 1/n for a single voxel of n: Hurley and Rickard,
  IEEE Trans. Inf. Theory 55 (2009) 4723-4741, used for explanations by
  Chalasani et al., ICML 2020. For region and order see `auprc`.
  """
  order = ascending(heat, region) if order is None else order
  heat = _inside(_checked(heat), region)
  total, n = heat.sum(dtype=np.float64), heat.size
  if not total > 0:
    return math.nan
  weight = 2 * np.arange(1, n + 1) - n - 1
  return float(heat[order] @ weight / (n * total))


def rolled_null(
  heats: np.ndarray,
  distances: Mapping[str, np.ndarray],
  *,
  region: np.ndarray | None = None,
  radii_mm: Sequence[float] = RADII_MM,
  peak_mm: float = PEAK_MM,
  rolls: int = ROLLS,
  seed: int = 0,
) -> dict[str, dict[str, np.ndarray]]:
  """Measures maps against structures rolled away, many times.

  Each roll shifts the structures by a random number of voxels along D, H and
  W; what leaves the volume comes in at the other side. The region and the maps
  stay. Over all shifts without a region the mean lift is exactly 1.

  Args:
    heats: maps [n, D, H, W]; all meet the same rolls, so many together take
      less time than one by one.
    distances: of the structures, see `distance_mm`.
    region: bool [D, H, W]; all voxels if left out.
    radii_mm: of the dilations whose lift is measured.
    peak_mm: distance up to which the peak is a hit.
    rolls: how many.
    seed: of the shifts, see `draw_shifts`.

  Returns:
    for each structure "lift" [n, rolls, radii] and "pointing" [n, rolls], NaN
    where it is undefined, as where a roll leaves no structure in the region.
  """
  shape = heats.shape[1:]
  where = np.ones(shape, bool) if region is None else region
  # The region counts as one more map, whose sums are the structures' sizes.
  columns = np.empty((where.size, len(heats) + 1))
  columns[:, -1] = where.ravel()
  peaks = []
  for column, heat in zip(columns.T, heats, strict=False):
    heat = np.where(where, _checked(heat), 0)
    column[:] = heat.ravel()
    # Above 0, so within the region; none for a map without energy there.
    peaks.append(np.argwhere((heat == heat.max()) & (heat > 0)))
  totals = columns.sum(0)
  totals[totals == 0] = np.nan
  shifts = draw_shifts(shape, rolls, seed)
  within = np.array([*radii_mm, peak_mm])
  null = {}
  for name, distance in distances.items():
    sums = _rolled_sums(columns, distance, within, shifts)
    share = sums[..., -1:] / max(1, where.sum())
    share[(share <= 0) | (share >= 1)] = np.nan
    lift = sums[..., :-1] / totals[:-1] / share
    near = distance <= peak_mm
    hits = [_rolled_hits(some, near, shifts) for some in peaks]
    null[name] = {
      "lift": np.moveaxis(lift[:, :-1], -1, 0),
      "pointing": np.where(np.isnan(lift[:, -1].T), np.nan, hits),
    }
  return null


def draw_shifts(shape: Sequence[int], rolls: int, seed: int) -> np.ndarray:
  """Returns by how many voxels each roll shifts, int [rolls, 3].

  They are drawn as fractions of the volume: the same roll of the same seed
  shifts volumes of all shapes by the same share of their edges, so that it is
  one draw for all patients, see `summarise`.

  Args:
    shape: of the volume [D, H, W].
    rolls: how many.
    seed: of numpy's generator.
  """
  share = np.random.default_rng(seed).random((rolls, len(shape)))
  return np.floor(share * shape).astype(np.int64)


def _rolled_sums(
  columns: np.ndarray,
  distance: np.ndarray,
  within: np.ndarray,
  shifts: np.ndarray,
) -> np.ndarray:
  """Sums maps over a structure's dilations, rolled.

  Args:
    columns: maps as columns [voxels, n].
    distance: of the structure [D, H, W].
    within: distances [k] that bound the dilations, in any order.
    shifts: [rolls, 3].

  Returns:
    [rolls, k, n].
  """
  order = np.argsort(within)
  # A ring lies between one distance and the next, so that all dilations
  # together look up each voxel once.
  ring = np.searchsorted(within[order], distance)
  voxels = np.nonzero(ring < len(within))
  ring = ring[voxels]
  by_ring = np.argsort(ring, kind="stable")
  voxels = [along[by_ring] for along in voxels]
  ends = np.searchsorted(ring[by_ring], np.arange(len(within) + 1))
  ones = np.ones(ring.size)
  found = np.empty((len(shifts), len(within), columns.shape[1]))
  for sums, shift in zip(found, shifts, strict=True):
    at = np.zeros(ring.size, np.int64)
    for along, by, length in zip(voxels, shift, distance.shape, strict=True):
      at = at * length + ((np.arange(length) + by) % length)[along]
    rings = scipy.sparse.csr_array(
      (ones, at, ends), shape=(len(within), len(columns))
    )
    sums[order] = (rings @ columns).cumsum(0)
  return found


def _rolled_hits(
  peaks: np.ndarray, near: np.ndarray, shifts: np.ndarray
) -> list[float]:
  """Returns for each shift the share of the peaks [n, 3] on the rolled mask."""
  if not len(peaks):
    return [math.nan] * len(shifts)
  # To roll the peaks back is to roll the structure forth.
  return [
    near[tuple(((peaks - shift) % near.shape).T)].mean() for shift in shifts
  ]


def p_value(observed: float, null: np.ndarray) -> float:
  """Returns the one-sided p-value of an observed value under null draws [n].

  (1 + draws at or above it) / (1 + draws), in (0, 1]: Phipson and Smyth,
  Stat. Appl. Genet. Mol. Biol. 9 (2010) 39. NaN if nothing is defined.
  """
  null = null[np.isfinite(null)]
  if not null.size or math.isnan(observed):
    return math.nan
  # Sums in another order than the observed one's may differ in the last bits.
  above = null >= observed - 1e-9 * max(1.0, abs(observed))
  return float((1 + above.sum()) / (1 + null.size))


def location_metrics(
  heats: np.ndarray,
  distances: Mapping[str, np.ndarray],
  *,
  region: np.ndarray | None = None,
  radii_mm: Sequence[float] = RADII_MM,
  peak_mm: float = PEAK_MM,
  rolls: int = ROLLS,
  seed: int = 0,
) -> list[dict[str, dict[str, Any]]]:
  """Returns every measure of maps of one volume against each structure.

  Args:
    heats: maps [n, D, H, W].
    distances: of the structures, see `distance_mm`.
    region: bool [D, H, W]; all voxels if left out.
    radii_mm: of the dilations.
    peak_mm: distance up to which the peak is a hit.
    rolls: of the null, see `rolled_null`.
    seed: of the rolls.

  Returns:
    for each map, each structure, and there for each radius, as in "lift_2mm":
    energy_, share_, lift_, lift_null_ (the mean over the rolls), lift_p_ and
    lift_drawn_ (of every roll [rolls], for `summarise`); then pointing,
    pointing_chance, pointing_null, pointing_p, pointing_drawn, auprc,
    auprc_chance (of the structure itself) and gini. The p of one map is
    against the rolls of its own structure.

  Raises:
    ValueError: a map is not 3D, has a negative or infinite value or NaN, or
      differs in shape.
  """
  null = rolled_null(
    heats,
    distances,
    region=region,
    radii_mm=radii_mm,
    peak_mm=peak_mm,
    rolls=rolls,
    seed=seed,
  )

  def measure(n: int) -> dict[str, dict[str, Any]]:
    heat, rows = heats[n], {}
    order = ascending(heat, region)
    sparseness = gini(heat, region, order)
    for name, distance in distances.items():
      row: dict[str, Any] = {}
      for i, radius in enumerate(radii_mm):
        found = energy_in(heat, distance <= radius, region)
        drawn = null[name]["lift"][n, :, i]
        found |= _against(found["lift"], drawn, "lift")
        row |= {f"{key}_{radius:g}mm": x for key, x in found.items()}
      found = pointing(heat, distance <= peak_mm, region)
      row |= {"pointing": found["pointing"], "pointing_chance": found["chance"]}
      row |= _against(found["pointing"], null[name]["pointing"][n], "pointing")
      found = auprc(heat, distance <= 0, region, order)
      row |= {"auprc": found["auprc"], "auprc_chance": found["chance"]}
      rows[name] = row | {"gini": sparseness}
    return rows

  # Sorting, most of the work, leaves the other threads running.
  with futures.ThreadPoolExecutor(THREADS) as pool:
    return list(pool.map(measure, range(len(heats))))


def _against(value: float, null: np.ndarray, name: str) -> dict[str, Any]:
  """Returns the mean of the null and the p-value, NaN if undefined, and it."""
  drawn = null[np.isfinite(null)]
  known = drawn.size and not math.isnan(value)
  return {
    f"{name}_null": float(drawn.mean()) if known else math.nan,
    f"{name}_p": p_value(value, drawn),
    f"{name}_drawn": null,
  }


def numbers_of(row: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a row without what every roll gave, as files have it."""
  return {k: x for k, x in row.items() if not isinstance(x, np.ndarray)}


def summarise(
  rows: Sequence[Mapping[str, Any]],
  by: Sequence[str] = ("layer", "method", "structure"),
  **options: Any,
) -> list[dict[str, Any]]:
  """Returns the table of maps: means over patients with 95 % intervals.

  Args:
    rows: one map against one structure of one case: patient_id, the keys of
      `by`, and numbers, NaN where undefined; with a p-value, what every roll
      gave, the same rolls in all rows.
    by: the columns that identify a row of the table.
    **options: draws and seed of `intervals.mean_interval`.

  Returns:
    one row for each group, in order of appearance: for each measured number
    an interval with the number of patients that had a value. p-values are
    neither averaged nor combined, as maps of one network are not independent:
    its preference for a place is in all of them. Each roll is one draw for
    all patients, whose mean is compared with that of the maps as they are (a
    group permutation), so the p holds if the place that the network prefers
    has nothing to do with the structure.
  """
  known = {*by, "patient_id"}
  numbers = [
    name
    for name in dict.fromkeys(name for row in rows for name in row)
    if name not in known
    and all(isinstance(row.get(name, 0.0), float) for row in rows)
  ]
  tests = [name for name in numbers if "_p_" in f"{name}_"]
  table = intervals.mean_table(
    rows,
    by,
    [name for name in numbers if name not in tests],
    proportions=("pointing",),
    **options,
  )
  for group in table:
    some = [row for row in rows if all(row[k] == group[k] for k in by)]
    for name in tests:
      group[name] = _group_p(some, name)
  return table


def _group_p(rows: Sequence[Mapping[str, Any]], name: str) -> float:
  """Returns the p-value of the mean over patients, of rolls that they share.

  Args:
    rows: of the patients; those without a value or its draws are left out.
    name: of the p-value of one row, such as "lift_p_0mm".
  """
  value, drawn = (name.replace("_p", part, 1) for part in ("", "_drawn"))
  rows = [
    row for row in rows if drawn in row and math.isfinite(row.get(value, 0.0))
  ]
  by_patient: dict[str, list[np.ndarray]] = {}
  for row in rows:
    both = np.append(row[value], row[drawn])
    by_patient.setdefault(str(row["patient_id"]), []).append(both)
  if not by_patient:
    return math.nan
  # The maps as they are, then each roll; a roll may be undefined in some.
  means = _defined_mean([_defined_mean(some) for some in by_patient.values()])
  return p_value(float(means[0]), means[1:])


def _defined_mean(rows: Sequence[np.ndarray]) -> np.ndarray:
  """Returns the mean [m] of the rows [n, m] that are defined, NaN if none."""
  rows = np.asarray(rows, np.float64)
  defined = np.isfinite(rows)
  total = np.where(defined, rows, 0).sum(0)
  return total / np.where(defined.any(0), defined.sum(0), np.nan)


def _checked(heat: np.ndarray) -> np.ndarray:
  heat = np.asarray(heat)
  if heat.ndim != 3 or not (np.isfinite(heat) & (heat >= 0)).all():
    raise ValueError(
      "a map must be [D, H, W], finite and at least 0; this one is"
      f" {heat.shape} from {heat.min():g} to {heat.max():g}"
    )
  return heat


def _in_region(
  heat: np.ndarray, mask: np.ndarray, region: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
  """Returns map and mask of the region's voxels, each [n]."""
  mask = np.asarray(mask, bool)
  if mask.shape != heat.shape:
    raise ValueError(f"a map {heat.shape} and a mask {mask.shape} do not match")
  return _inside(heat, region), _inside(mask, region)


def _inside(x: np.ndarray, region: np.ndarray | None) -> np.ndarray:
  """Returns the values [n] of the region's voxels."""
  if region is None:
    return x.ravel()
  if region.shape != x.shape:
    raise ValueError(f"map {x.shape} and region {region.shape} do not match")
  return x[region]
