"""Measures the nine inserts of a QRM cardiac calcification phantom.

  python -m cadjax.calcium.qrm --input=SCAN [--out=FILE.json]

For those who have scanned this phantom (the cardiac calcification insert in
QRM's thorax phantom): prints volume, mass and Agatston score of every insert
beside the truth, to judge a scanner and its protocol, or the scores.

Only the phantom's geometry is given: three arms of 800, 400 and 200 mg/cm3 of
hydroxyapatite, each with cylinders of 5, 3 and 1 mm diameter and length, evenly
spaced on a line towards the axis; on the axis, in other slices, a rod of 200
mg/cm3 and 20 mm, with a rod of water beside it. What is measured:

  calibration  200 mg/cm3 over the rod's HU above those of water
  130 HU       the Agatston, volume and mass scores of the insert's region
  integrated   mass: calibration times the sum of HU above the background, in
               a cylinder that is 2 mm wider than the insert on all sides and
               a slice longer at both ends. It has what partial volume spreads
               below 130 HU, and lacks the tissue that the insert displaces:
               calibration x (background - water) x volume. Volume: the same sum
               over the contrast of the arm's 5 mm insert.
  SD           of the integrated mass at up to 40 places without an insert
  contrast     of the insert's middle slice, in SD of that of these places;
               below 5, an insert cannot be seen reliably (the criterion of
               A. Rose)
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from scipy import ndimage

from cadjax.calcium import score as calcium
from cadjax.core import files
from data_prep import errors
from data_prep.errors import UserError
from data_prep.volume import Volume, read_volume

DENSITIES_MG_CM3 = (800.0, 400.0, 200.0)
SIZES_MM = (5.0, 3.0, 1.0)
ROD_MG_CM3 = 200.0
ROD_MM = 20.0
# Of the cylinder that holds all inserts; its edge is left out.
_INSIDE_MM = 46.0
# Blur reaches as far; the background ring is behind it.
_REACH_MM = 2.0
_RING_MM = (1.0, 4.0)
_ROD_CORE_MM, _WATER_CORE_MM = 7.0, 6.0
_PLATEAU_MM = 1.2
_LEAST_DISC_MM = 1.0  # blur makes nothing narrower
_LEAST_INSERT_MM3 = 10.0
_SAME_ARM_DEGREES = 12.0
_EMPTY_PLACES = 40
_VISIBLE_SD = 5.0


@dataclasses.dataclass(frozen=True)
class Insert:
  """One insert: the truth and what was measured.

  Attributes:
    density_mg_cm3: true density of hydroxyapatite.
    size_mm: true diameter and length.
    volume_mm3: true volume.
    mass_mg: true mass.
    agatston: measured score.
    threshold_mm3: measured volume from 130 HU on.
    threshold_mg: measured mass of that.
    integrated_mm3: measured volume, all of the insert's HU.
    integrated_mg: measured mass of that.
    sd_mg: standard deviation of the integrated mass at places without an
      insert: what noise alone gives.
    contrast_sd: HU of its middle slice above the background, divided by the
      standard deviation of such differences at places without an insert.
    center: (d, h, w), index into the 3 mm slices, to a fraction of a voxel.
  """

  density_mg_cm3: float
  size_mm: float
  volume_mm3: float
  mass_mg: float
  agatston: float
  threshold_mm3: float
  threshold_mg: float
  integrated_mm3: float
  integrated_mg: float
  sd_mg: float
  contrast_sd: float
  center: tuple[float, float, float]

  @property
  def visible(self) -> bool:
    """Whether it stands out of the noise by 5 SD, as A. Rose asks."""
    return self.contrast_sd >= _VISIBLE_SD


@dataclasses.dataclass(frozen=True)
class Measured:
  """The phantom.

  Attributes:
    calibration: mg/cm3 per HU above water.
    rod_hu: mean of the rod of 200 mg/cm3.
    water_hu: mean of the water rod.
    background_hu: mean of the inserts' surroundings.
    noise_hu: SD of a voxel there.
    inserts: from dense to light, large before small.
  """

  calibration: float
  rod_hu: float
  water_hu: float
  background_hu: float
  noise_hu: float
  inserts: tuple[Insert, ...]


def measure(scan: Volume) -> Measured:
  """Finds the rods and the nine inserts and measures them.

  Args:
    scan: without contrast, the phantom's axis across the slices; slices of
      another thickness are made 3 mm by `score.to_slices`.

  Raises:
    UserError: this phantom, or a part of it, was not found.
  """
  hu, slice_mm, _ = calcium.to_slices(scan.hu, scan.spacing[0])
  spacing_mm = np.array([slice_mm, *scan.spacing[1:]])
  phantom = _Phantom(hu.astype(np.float64), spacing_mm, scan.path)
  rod_slices, axis = _find_rod(phantom)
  rod_hu, water_hu = _read_rods(phantom, rod_slices, axis)
  calibration = calcium.calibrate(ROD_MG_CM3, rod_hu, water_hu)
  arms = _find_arms(phantom, rod_slices, axis)
  taken = [center for arm in arms for center in arm]
  middle = np.mean([center[0] for center in taken])
  empty = _empty_places(phantom, axis, middle, taken)
  ring = [phantom.ring(arm[0], SIZES_MM[0]) for arm in arms]
  inserts = []
  for density, arm in zip(DENSITIES_MG_CM3, arms, strict=True):
    large = phantom.ring(arm[0], SIZES_MM[0])
    plateau_hu = phantom.disc(arm[0], _PLATEAU_MM) - large.mean()
    for size_mm, center in zip(SIZES_MM, arm, strict=True):
      inserts.append(
        _measure_insert(
          phantom,
          center,
          density,
          size_mm,
          calibration=calibration,
          plateau_hu=plateau_hu,
          empty=empty,
        )
      )
  return Measured(
    calibration=calibration,
    rod_hu=rod_hu,
    water_hu=water_hu,
    background_hu=float(np.mean([one.mean() for one in ring])),
    noise_hu=float(np.mean([one.std() for one in ring])),
    inserts=tuple(inserts),
  )


class _Phantom:
  """HU [D, H, W] and cylinders in it; centres are indices, sizes mm."""

  def __init__(self, hu: np.ndarray, spacing_mm: np.ndarray, path: str):
    self.hu, self.spacing_mm, self.path = hu, spacing_mm, path
    self.voxel_mm3 = float(np.prod(spacing_mm))

  def away_mm(self, center: Sequence[float]) -> np.ndarray:
    """Returns [H, W], how far each pixel is from a centre (h, w)."""
    return self._away_mm(center, (0, 0), self.hu.shape[1:])

  def _away_mm(self, center, start, stop) -> np.ndarray:
    rows, columns = np.ogrid[start[0] : stop[0], start[1] : stop[1]]
    _, row_mm, column_mm = self.spacing_mm
    return np.hypot(
      (rows - center[0]) * row_mm, (columns - center[1]) * column_mm
    )

  def near(
    self, center: Sequence[float], radius_mm: float, half_mm: float
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the HU [d, h, w] around a centre and [h, w], how far away."""
    center, shape = np.array(center), np.array(self.hu.shape)
    reach = np.array([half_mm, radius_mm, radius_mm]) / self.spacing_mm
    start = np.clip(np.ceil(center - reach - 1e-9), 0, shape).astype(int)
    stop = np.clip(np.floor(center + reach + 1e-9) + 1, start, shape)
    stop = stop.astype(int)
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    return self.hu[box], self._away_mm(center[1:], start[1:], stop[1:])

  def disc(self, center: Sequence[float], radius_mm: float) -> float:
    """Returns the mean HU of a disc in the slice nearest to a centre."""
    hu, away_mm = self.near(
      (round(center[0]), *center[1:]), radius_mm, self.spacing_mm[0] / 2
    )
    return float(hu[:, away_mm <= radius_mm].mean())

  def ring(self, center: Sequence[float], size_mm: float) -> np.ndarray:
    """Returns the HU of an insert's background."""
    low_mm, high_mm = (size_mm / 2 + _REACH_MM + x for x in _RING_MM)
    hu, away_mm = self.near(center, high_mm, self.half_mm(size_mm))
    return hu[:, (away_mm > low_mm) & (away_mm <= high_mm)]

  def half_mm(self, size_mm: float) -> float:
    """Returns how far to integrate along the axis: a slice beyond the end."""
    return size_mm / 2 + self.spacing_mm[0]

  def insert(
    self, center: Sequence[float], size_mm: float
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the HU around an insert and where [d, h, w] it may reach."""
    radius_mm = size_mm / 2 + _REACH_MM
    hu, away_mm = self.near(center, radius_mm, self.half_mm(size_mm))
    return hu, np.broadcast_to(away_mm <= radius_mm, hu.shape)

  def integrate(self, center: Sequence[float], size_mm: float) -> float:
    """Returns the sum of HU above the background, times mm3."""
    hu, inside = self.insert(center, size_mm)
    above_hu = hu[inside] - self.ring(center, size_mm).mean()
    return float(above_hu.sum()) * self.voxel_mm3

  def contrast(self, center: Sequence[float], size_mm: float) -> float:
    """Returns the HU of an insert's middle slice above the background."""
    radius_mm = max(size_mm / 2, _LEAST_DISC_MM)
    return self.disc(center, radius_mm) - self.ring(center, size_mm).mean()


def _missing(phantom: _Phantom, what: str) -> UserError:
  return UserError(
    f"{phantom.path}: {what}; give a scan of the QRM cardiac calcification"
    " phantom without contrast, its axis across the slices"
  )


def _find_rod(phantom: _Phantom) -> tuple[slice, np.ndarray]:
  """Returns the slices of the rod on the axis, and where (h, w) it is."""
  _, row_mm, column_mm = phantom.spacing_mm
  smooth = ndimage.gaussian_filter(
    phantom.hu, (0, 1 / row_mm, 1 / column_mm), output=np.float32
  )
  # Half-way between the phantom's tissue and the rod.
  labels, _ = ndimage.label(smooth > 180)
  found = []
  for number, box in enumerate(ndimage.find_objects(labels), 1):
    size_mm = [
      (part.stop - part.start) * step
      for part, step in zip(box, phantom.spacing_mm, strict=True)
    ]
    if size_mm[0] < 10 or not all(
      0.8 * ROD_MM <= size <= 1.2 * ROD_MM for size in size_mm[1:]
    ):
      continue
    here = labels[box] == number
    filled = here.any(0).sum() * row_mm * column_mm
    if 0.85 < filled / (math.pi / 4 * size_mm[1] * size_mm[2]) < 1.15:
      center = np.argwhere(here).mean(0) + [part.start for part in box]
      found.append((here.sum(), box[0], center[1:]))
  if not found:
    raise _missing(phantom, "no calibration rod of 20 mm was found")
  _, slices, axis = max(found, key=lambda one: one[0])
  return slices, axis


def _read_rods(
  phantom: _Phantom, slices: slice, axis: np.ndarray
) -> tuple[float, float]:
  """Returns the mean HU of the rod and of water.

  Of the rod's slices those count that the rod fills, and where the tissue
  around is as bright as anywhere: at the end of a wide cone it is not.
  """
  away_mm = phantom.away_mm(axis)
  core = away_mm <= _ROD_CORE_MM
  around = (away_mm > ROD_MM / 2 + 4) & (away_mm <= _INSIDE_MM)
  inner = phantom.hu[slices]
  rods = inner[:, core].mean(1)
  tissue = np.median(inner[:, around], axis=1)
  good = (rods > 0.95 * rods.max()) & (np.abs(tissue - tissue.max()) < 10)
  mean = inner[good].mean(0)
  _, row_mm, column_mm = phantom.spacing_mm
  reach = np.ceil(_WATER_CORE_MM / np.array([row_mm, column_mm])).astype(int)
  rows, columns = np.ogrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
  disc = np.hypot(rows * row_mm, columns * column_mm) <= _WATER_CORE_MM
  # A rod of water is the darkest disc between the axis and the edge.
  local = ndimage.convolve(mean, disc / disc.sum(), mode="nearest")
  possible = (away_mm > ROD_MM / 2 + 8) & (away_mm < _INSIDE_MM - 8)
  water_hu = float(local[possible].min())
  if float(np.median(tissue[good])) - water_hu < 15:
    raise _missing(phantom, "no calibration rod of water was found")
  return float(rods[good].mean()), water_hu


def _find_arms(
  phantom: _Phantom, rod_slices: slice, axis: np.ndarray
) -> list[list[np.ndarray]]:
  """Returns the inserts' centres (d, h, w), by falling density and size.

  The large and the middle one of each arm are found; the small one, which may
  be invisible, is as far from the middle one as that is from the large one.
  """
  inside = np.broadcast_to(
    phantom.away_mm(axis) <= _INSIDE_MM, phantom.hu.shape
  ).copy()
  margin = math.ceil(10 / phantom.spacing_mm[0])
  inside[max(rod_slices.start - margin, 0) : rod_slices.stop + margin] = False
  bright = np.where(inside, phantom.hu, -np.inf) >= calcium.THRESHOLD_HU
  labels, count = ndimage.label(bright, np.ones((3, 3, 3)))
  sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
  numbers = 1 + np.flatnonzero(sizes * phantom.voxel_mm3 > _LEAST_INSERT_MM3)
  centers = ndimage.center_of_mass(
    np.maximum(phantom.hu, 0), labels, list(numbers)
  )
  weights = ndimage.sum(phantom.hu, labels, list(numbers))
  order = np.argsort(weights)[::-1][:6]
  found = [(float(weights[i]), np.array(centers[i])) for i in order]
  arms = []
  while found:
    weight, large = found.pop(0)
    near = [
      place
      for place, (_, other) in enumerate(found)
      if _degrees(other, large, axis, phantom) < _SAME_ARM_DEGREES
    ]
    if len(near) != 1:
      break
    _, middle = found.pop(near[0])
    # All lie in one plane; across it, an error would double.
    small = 2 * middle - large
    small[0] = (large[0] + middle[0]) / 2
    arms.append((weight, [large, middle, small]))
  if len(arms) != len(DENSITIES_MG_CM3):
    raise _missing(phantom, "no three arms with two bright inserts each")
  # Of one size, the denser has more HU.
  return [arm for _, arm in sorted(arms, key=lambda one: -one[0])]


def _degrees(one, other, axis, phantom) -> float:
  """Returns the angle between two inserts, seen from the axis."""
  step = phantom.spacing_mm[1:]
  a, b = ((point[1:] - axis) * step for point in (one, other))
  cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
  return math.degrees(math.acos(np.clip(cosine, -1, 1)))


def _empty_places(phantom, axis, middle, taken) -> list[np.ndarray]:
  """Returns centres in the inserts' slices that are far from all inserts."""
  step = phantom.spacing_mm[1:]
  places = []
  # Along a spiral, so that they are spread evenly.
  for turn in np.arange(400) * math.radians(137.5):
    radius_mm = (_INSIDE_MM - 12) * math.sqrt(turn / math.radians(137.5) / 400)
    away_mm = radius_mm * np.array([math.sin(turn), math.cos(turn)])
    place = np.array([middle, *(axis + away_mm / step)])
    far = [
      np.linalg.norm((place[1:] - other[1:]) * step) > 10
      for other in [*taken, *places]
    ]
    if all(far[: len(taken)]) and all(
      np.linalg.norm((place[1:] - other[1:]) * step) > 4 for other in places
    ):
      places.append(place)
  return places[:_EMPTY_PLACES]


def _measure_insert(
  phantom: _Phantom, center, density, size_mm, *, calibration, plateau_hu, empty
) -> Insert:
  volume_mm3 = math.pi / 4 * size_mm**3
  hu, inside = phantom.insert(center, size_mm)
  scored = calcium.score(
    hu, tuple(phantom.spacing_mm), inside.astype(int), calibration=calibration
  ).total
  above = phantom.integrate(center, size_mm)
  nothing = [phantom.integrate(place, size_mm) for place in empty]
  contrast_hu = phantom.contrast(center, size_mm)
  noise_hu = np.std([phantom.contrast(x, size_mm) for x in empty], ddof=1)
  per_mm3 = calibration / 1000
  return Insert(
    density_mg_cm3=density,
    size_mm=size_mm,
    volume_mm3=volume_mm3,
    mass_mg=density * volume_mm3 / 1000,
    agatston=scored.agatston,
    threshold_mm3=scored.volume_mm3,
    threshold_mg=scored.mass_mg,
    integrated_mm3=float(above / plateau_hu),
    integrated_mg=per_mm3 * above,
    sd_mg=per_mm3 * float(np.std(nothing, ddof=1)),
    contrast_sd=float(contrast_hu / noise_hu) if noise_hu > 0 else math.inf,
    center=tuple(float(x) for x in center),
  )


def table(found: Measured) -> str:
  """Returns what was measured beside the truth, with relative errors."""
  lines = [
    f"rod {found.rod_hu:.0f} HU, water {found.water_hu:.0f} HU: calibration"
    f" {found.calibration:.3f} mg/cm3 per HU",
    f"background {found.background_hu:.0f} HU, SD of its voxels"
    f" {found.noise_hu:.0f} HU",
    "",
    "insert        volume, mm3",
    "mg/cm3  mm     true           130 HU       integrated  Agatston",
  ]
  for one in found.inserts:
    lines.append(
      f"{_name(one)} {one.volume_mm3:8.1f}"
      f" {_beside(one.threshold_mm3, one.volume_mm3, 1)}"
      f" {_beside(one.integrated_mm3, one.volume_mm3, 1)}"
      f" {one.agatston:9.1f}"
    )
  lines += [
    "",
    "insert        mass, mg",
    "mg/cm3  mm     true           130 HU       integrated    SD  contrast, SD",
  ]
  for one in found.inserts:
    seen = "" if one.visible else "  invisible"
    lines.append(
      f"{_name(one)} {one.mass_mg:8.2f}"
      f" {_beside(one.threshold_mg, one.mass_mg, 2)}"
      f" {_beside(one.integrated_mg, one.mass_mg, 2)}"
      f" {one.sd_mg:5.2f} {one.contrast_sd:7.1f}{seen}"
    )
  return "\n".join(lines)


def _name(one: Insert) -> str:
  return f"{one.density_mg_cm3:<7.0f} {one.size_mm:2.0f}"


def _beside(measured: float, true: float, digits: int) -> str:
  return f"{measured:8.{digits}f} {100 * (measured / true - 1):+5.0f} %"


def to_json(found: Measured, name: str) -> dict[str, Any]:
  """Returns what was measured as strict JSON, with the scan's name."""
  inserts = [
    dataclasses.asdict(one) | {"visible": one.visible} for one in found.inserts
  ]
  return files.strict(
    {"schema": "cadjax.qrm/1", "input": name}
    | dataclasses.asdict(found)
    | {"inserts": inserts}
  )


def define_flags() -> None:
  """Defines the flags; not at import, so that others may import this."""
  flags.DEFINE_string("input", None, "A scan of the phantom.", required=True)
  flags.DEFINE_string("series", None, "DICOM series by UID or number.")
  flags.DEFINE_string("out", None, "A JSON file for all figures.")


def main(_: Sequence[str]) -> None:
  """Measures a scan of the phantom and prints the table."""
  args = flags.FLAGS
  scan = read_volume(args.input, series=args.series)
  found = measure(scan)
  print(table(found))
  if args.out is not None:
    path = pathlib.Path(args.out)
    name = pathlib.Path(args.input).name
    text = json.dumps(to_json(found, name), indent=2, allow_nan=False)
    files.write_text(path, text + "\n")


if __name__ == "__main__":
  errors.run("python -m cadjax.calcium.qrm", main, define_flags)
