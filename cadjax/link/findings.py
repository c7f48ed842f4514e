"""Located abnormalities: where, on which vessel, and on what grounds.

Candidates come from three sources: plaque components, peaks of the heat map
near a vessel, and narrowings of the lumen along a centreline. `MODES` says
which of them count, so that what each is worth can be compared:

- "map": the peaks of the heat map anywhere, the classifier alone;
- "vessel_map": its peaks along the centrelines, so restricted to vessels;
- "plaque": the plaque segmentation alone;
- "combined": all sources, those of one place joined into one finding.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from cadjax.core import lookup
from cadjax.link import cad_rads, candidates, high_risk
from cadjax.link.candidates import Candidate
from cadjax.vessels import segments, stenosis
from cadjax.vessels.tree import STEP_MM, VesselTree, voxel_mm

MODES = ("map", "vessel_map", "plaque", "combined")
SOURCES = ("plaque", "narrowing", "heat")
RANKED_BY = {
  "map": "heat, relative to the map's maximum",
  "vessel_map": "mean heat within reach, relative to the largest anywhere",
  "plaque": "plaque volume in mm3",
  "combined": "grade of the stenosis, then plaque volume, then heat's lift",
}
# Plaque that leaves no lumen in a mask leaves less than this share of it.
_FILLED = 0.99
# Plaque in mm3, and a lift, that take half of the room within a grade.
_HALF_MM3 = 100.0
_HALF_LIFT = 10.0
# Whether the loss of diameter of a finding was measured, and why not:
# against the lumen; against a mask that merges plaque and lumen, so that a
# widened vessel may hide it; plaque fills the whole calibre; nothing to
# measure it against.
STENOSIS_STATES = ("measured", "merged", "filled", "unmeasured")
# What a stenosis rests on that was measured.
MEASURED = "from the mask's lumen against a taper fitted to the branch"
# The radius is not to be trusted nearer to where it begins or ends.
_EDGE_MM = 2.5
# Of a plaque's voxels; what is less does not make it mixed.
_LEAST_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class FindingOptions:
  """What counts as a finding.

  Attributes:
    near_mm: a place of the map this near to a centreline is on the vessel;
      plaque farther than this from any centreline is on none.
    around_mm: radius of the ball in which evidence is summed.
    apart_mm: of two peaks nearer than this the higher stays.
    least_heat: share of the map's maximum that a peak must reach.
    least_plaque_mm3: smaller plaques are left out.
    plaque_gap_mm: plaque goes on across a gap this long along the vessel.
    least_stenosis: a narrowing must lose this share of the diameter.
    least_voxels: reference radius, in voxels, from which on the loss of
      diameter is measured.
    most: no more findings than this.
  """

  near_mm: float = 6.0
  around_mm: float = 5.0
  apart_mm: float = 10.0
  least_heat: float = 0.3
  least_plaque_mm3: float = 2.0
  plaque_gap_mm: float = 3.0
  least_stenosis: float = 0.3
  least_voxels: float = 1.2
  most: int = 20


@dataclasses.dataclass(frozen=True)
class Finding:
  """One located abnormality.

  Attributes:
    position_mm: LPS (x, y, z); on the centreline where it is on a vessel.
    index: the nearest voxel (d, h, w).
    vessel: name of the branch; "" on none.
    segment: of the SCCT, see `segments.segments`; "" for none.
    sureness: of that name.
    from_ostium_mm: along the centreline; NaN where not known.
    extent_mm: way from the ostium at its two ends, NaN likewise; equal for a
      peak of the map.
    sources: of "plaque", "narrowing", "heat", in this order.
    evidence: share of the map's energy within `around_mm`; NaN without a map.
    lift: that share over the ball's share of the covered volume.
    heat: what made it a peak, over the largest of its kind anywhere; NaN if
      it is none.
    plaque: "stable", "unstable", "mixed", or "" for none.
    plaque_mm3: its volume.
    plaque_hu: its mean; NaN without plaque or image.
    calibre_mm: mean diameter of the vessel over the extent; NaN off vessels.
    reference_mm: diameter that the vessel would have at its narrowest place;
      NaN where not known.
    lumen_mm2: least area of the lumen; NaN where not measured.
    remodelling: largest diameter of vessel and plaque over the reference; NaN
      where not measured.
    high_risk: features of a plaque of high risk, of `high_risk.FEATURES`.
    stenosis: share of the diameter lost, 0 to 1; None where not measured.
    stenosis_state: one of `STENOSIS_STATES`.
    stenosis_note: why not, or on what it rests, in words.
    score: the rank; higher is more abnormal. See `score`.
    ranked_by: what the score is.
    line_mm: [K, 3] LPS, the centreline over the extent; the position alone of
      a peak of the map and off the vessels. Not in `to_dict`.
  """

  position_mm: tuple[float, float, float]
  index: tuple[int, int, int]
  vessel: str
  segment: str
  sureness: str
  from_ostium_mm: float
  extent_mm: tuple[float, float]
  sources: tuple[str, ...]
  evidence: float
  lift: float
  heat: float
  plaque: str
  plaque_mm3: float
  plaque_hu: float
  calibre_mm: float
  reference_mm: float
  lumen_mm2: float
  remodelling: float
  high_risk: tuple[str, ...]
  stenosis: float | None
  stenosis_state: str
  stenosis_note: str
  score: float
  ranked_by: str
  line_mm: np.ndarray = dataclasses.field(repr=False, compare=False)

  def to_dict(self) -> dict[str, Any]:
    """Returns a JSON-able row, but for NaN."""
    row = dataclasses.asdict(self)
    del row["line_mm"]
    return row


def find_abnormalities(
  tree: VesselTree,
  mask_coronary: np.ndarray,
  *,
  heat: np.ndarray | None = None,
  plaques: Mapping[str, np.ndarray] | None = None,
  hu: np.ndarray | None = None,
  mode: str = "combined",
  options: FindingOptions | None = None,
) -> list[Finding]:
  """Finds and ranks the abnormalities of one scan.

  Every array is [D, H, W] on the grid of the tree. What a mode does not rank
  by is measured all the same where it is given.

  Args:
    tree: the vessels.
    mask_coronary: above 0 in lumen and plaque.
    heat: the classifier's map, at least 0; NaN where not covered.
    plaques: "stable" and "unstable", or one of them: above 0 inside. Without
      them the lumen is the whole mask.
    hu: the image.
    mode: one of `MODES`.
    options: the defaults if None.

  Returns:
    Findings, the highest score first.

  Raises:
    lookup.UnknownName: there is no such mode or type of plaque.
    ValueError: the mode needs a map or plaques and there are none.
  """
  lookup.check_known([mode], MODES, "mode")
  lookup.check_known(plaques or (), ("stable", "unstable"), "type of plaque")
  if mode in ("map", "vessel_map") and heat is None:
    raise ValueError(f"mode {mode!r} needs a heat map")
  if mode == "plaque" and plaques is None:
    raise ValueError("mode 'plaque' needs plaque masks")
  options = options or FindingOptions()
  vessel = np.asarray(mask_coronary) > 0
  lumen = vessel
  for mask in (plaques or {}).values():
    lumen = lumen & ~(np.asarray(mask) > 0)
  calibres = stenosis.calibres(
    tree, lumen, vessel if plaques else None, options.least_voxels
  )
  places = _places(tree, calibres, heat, plaques, mode, options)
  measure = _Measure(tree, calibres, heat, plaques or {}, hu, mode, options)
  found = [measure(place) for place in places]
  found.sort(key=lambda finding: -finding.score)
  return found[: options.most]


def _places(tree, calibres, heat, plaques, mode, options) -> list[Candidate]:
  if mode == "map":
    return candidates.map_peaks(
      heat, tree.affine, least=options.least_heat, apart_mm=options.apart_mm
    )
  places: list[Candidate] = []
  if mode in ("plaque", "combined") and plaques:
    places = candidates.plaques(
      tree,
      plaques,
      near_mm=options.near_mm,
      gap_mm=options.plaque_gap_mm,
      least_mm3=options.least_plaque_mm3,
    )
  if mode == "combined":
    for one in stenosis.find_narrowings(
      calibres, options.least_stenosis, options.apart_mm
    ):
      line = tree.branches[one.branch].points_mm
      narrowing = Candidate(
        line[one.place],
        one.branch,
        one.first,
        one.last,
        ("narrowing",),
        narrowings=(one.place,),
      )
      _join(tree, places, options, narrowing)
  if mode in ("vessel_map", "combined") and heat is not None:
    for peak in candidates.vessel_peaks(
      heat,
      tree,
      near_mm=options.near_mm,
      least=options.least_heat,
      apart_mm=options.apart_mm,
    ):
      _join(tree, places, options, peak)
  return places


def _join(tree, places, options, new: Candidate) -> None:
  """Adds a candidate to the nearest within reach, or as one of its own.

  A narrowing joins what lies on its own vessel alone, and widens its extent:
  beyond a fork its stenosis would be measured on the wrong one.
  """
  near = [
    place
    for place in places
    if not new.narrowings or place.branch == new.branch
  ]
  away = [
    np.linalg.norm(place.line(tree) - new.position_mm, axis=1).min()
    for place in near
  ]
  if not near or min(away) > options.around_mm:
    places.append(new)
    return
  place = near[int(np.argmin(away))]
  place.sources = (*place.sources, *new.sources)
  if np.isfinite(new.heat):
    place.heat = float(np.nanmax([place.heat, new.heat]))
  if new.narrowings:
    place.first = min(place.first, new.first)
    place.last = max(place.last, new.last)
    place.narrowings = (*place.narrowings, *new.narrowings)


class _Measure:
  """Turns candidates of one scan into findings."""

  def __init__(self, tree, calibres, heat, plaques, hu, mode, options):
    self.tree, self.calibres, self.hu = tree, calibres, hu
    self.heat, self.mode, self.options = heat, mode, options
    self.plaques = {k: np.asarray(v) > 0 for k, v in plaques.items()}
    self.segments = segments.segments(tree)
    if heat is not None:
      self.total = float(np.nansum(heat, dtype=np.float64))
      self.covered = int(np.isfinite(heat).sum())

  def __call__(self, place: Candidate) -> Finding:
    tree = self.tree
    if place.branch < 0 and place.voxels is None:
      place = self._on_vessel(place)
    index = np.rint(tree.to_index(place.position_mm)).astype(int)
    index = np.clip(index, 0, np.array(tree.shape) - 1)
    evidence, lift = self._evidence(place.position_mm)
    kind, volume, plaque_hu = self._plaque(place.voxels)
    narrowest = self._narrowest(place, kind)
    branch = tree.branches[place.branch] if place.branch >= 0 else None
    span = slice(place.first, place.last + 1)
    at = np.nan
    if branch is not None:
      nearest = np.linalg.norm(branch.points_mm - place.position_mm, axis=1)
      at = float(branch.distance_mm[nearest.argmin()])
    unique = [s for s in SOURCES if s in place.sources]
    remodelling = self._remodelling(place)
    finding = Finding(
      position_mm=tuple(float(v) for v in place.position_mm),
      index=tuple(int(v) for v in index),
      vessel=branch.name if branch else "",
      segment=self._segment(place, narrowest.place),
      sureness=branch.sureness if branch else "none",
      from_ostium_mm=at,
      extent_mm=(
        float(branch.distance_mm[place.first]) if branch else np.nan,
        float(branch.distance_mm[place.last]) if branch else np.nan,
      ),
      sources=tuple(unique),
      evidence=evidence,
      lift=lift,
      heat=place.heat,
      plaque=kind,
      plaque_mm3=volume,
      plaque_hu=plaque_hu,
      calibre_mm=2 * _mean(branch.radius_mm[span]) if branch else np.nan,
      reference_mm=narrowest.reference_mm,
      lumen_mm2=narrowest.lumen_mm2,
      remodelling=remodelling,
      high_risk=self._high_risk(place.voxels, remodelling),
      stenosis=narrowest.lost,
      stenosis_state=narrowest.state,
      stenosis_note=narrowest.note,
      score=np.nan,
      ranked_by=RANKED_BY[self.mode],
      # A peak near a vessel stays where it is.
      line_mm=(
        place.line(tree)
        if place.last > place.first
        else np.asarray(place.position_mm, float)[None]
      ),
    )
    rank = score(finding, self.mode, voxel_mm(tree.affine))
    return dataclasses.replace(finding, score=rank)

  def _on_vessel(self, place: Candidate) -> Candidate:
    """Tells on which vessel a peak of the map lies, if on any."""
    branch, k, away = self.tree.nearest(place.position_mm[None])
    if away[0] > self.options.near_mm:
      return place
    return dataclasses.replace(
      place, branch=int(branch[0]), first=int(k[0]), last=int(k[0])
    )

  def _evidence(self, position_mm) -> tuple[float, float]:
    if self.heat is None or not self.total > 0:
      return np.nan, np.nan
    tree, reach = self.tree, self.options.around_mm
    spacing = np.linalg.norm(tree.affine[:3, :3], axis=0)
    index, margin = tree.to_index(position_mm), np.ceil(reach / spacing) + 1
    low = np.maximum(np.floor(index - margin), 0).astype(int)
    high = np.maximum(np.ceil(index + margin) + 1, low).astype(int)
    part = self.heat[tuple(map(slice, low, high))]
    at = tree.to_mm(np.argwhere(np.isfinite(part)) + low)
    inside = np.linalg.norm(at - position_mm, axis=1) <= reach
    values = part[np.isfinite(part)][inside]
    if not len(values):
      return 0.0, np.nan
    share = float(values.sum(dtype=np.float64)) / self.total
    return share, share / (len(values) / self.covered)

  def _plaque(self, voxels) -> tuple[str, float, float]:
    if voxels is None:
      return "", 0.0, np.nan
    at = tuple(voxels.T)
    kinds = [
      kind
      for kind, mask in self.plaques.items()
      if mask[at].mean() >= _LEAST_SHARE
    ]
    volume = len(voxels) * abs(np.linalg.det(self.tree.affine[:3, :3]))
    hu = np.nan if self.hu is None else float(self.hu[at].mean())
    kind = kinds[0] if len(kinds) == 1 else "mixed"
    return kind, float(volume), hu

  def _segment(self, place: Candidate, narrowest: int) -> str:
    """Returns the SCCT segment at the narrowest place, or in the middle."""
    if place.branch < 0:
      return ""
    if narrowest < 0:
      narrowest = (place.first + place.last) // 2
    return str(self.segments[place.branch][narrowest])

  def _remodelling(self, place: Candidate) -> float:
    """Returns the largest diameter with plaque over the reference."""
    if place.branch < 0 or place.voxels is None:
      return np.nan
    one = self.calibres[place.branch]
    extent = np.arange(place.first, place.last + 1)
    # A reference of 0 is of a vessel as thin as the voxels, and not resolved.
    extent = extent[one.resolved[extent]]
    share = one.outer_mm[extent] / one.reference_mm[extent]
    share = share[np.isfinite(share)]
    return float(share.max()) if len(share) else np.nan

  def _high_risk(self, voxels, remodelling: float) -> tuple[str, ...]:
    if voxels is None or not self.plaques:
      return ()
    low, high = voxels.min(0), voxels.max(0) + 1
    mine = np.zeros(high - low, bool)
    mine[tuple((voxels - low).T)] = True
    box = tuple(map(slice, low, high))
    parts = {kind: mine & mask[box] for kind, mask in self.plaques.items()}
    nothing = np.zeros_like(mine)
    return high_risk.features(
      parts.get("unstable", nothing),
      parts.get("stable", nothing),
      None if self.hu is None else self.hu[box],
      tuple(np.linalg.norm(self.tree.affine[:3, :3], axis=0)),
      remodelling,
    )

  def _narrowest(self, place: Candidate, kind: str) -> "_Narrowest":
    """Measures the lumen where it is narrowest, or says why not."""
    if place.branch < 0:
      return _Narrowest("unmeasured", "not on a vessel")
    one = self.calibres[place.branch]
    if not np.isfinite(one.reference_mm).any():
      note = "the vessel is too short for a reference calibre"
      return _Narrowest("unmeasured", note)
    # A peak of the map has no extent: what it rests on may lie around it.
    peak = place.first == place.last
    reach = int(round(self.options.around_mm / STEP_MM)) if peak else 0
    low = max(place.first - reach, 0)
    extent = slice(low, place.last + reach + 1)
    filler = "plaque" if kind == "unstable" else "calcium"
    if place.narrowings:
      worst = max(place.narrowings, key=lambda k: one.stenosis[k])
    else:
      at = low + np.flatnonzero(one.inner(_EDGE_MM)[extent])
      if not len(at):
        note = "too near to an end of the vessel or to a gap in the mask"
        return _Narrowest("unmeasured", note)
      worst = at[one.stenosis[at].argmax()]
    known = {
      "place": int(worst), "reference_mm": 2 * float(one.reference_mm[worst])
    }  # fmt: skip
    if not place.narrowings:
      if not one.resolved[worst]:
        least = self.options.least_voxels
        note = f"the reference radius is below {least:g} voxels"
        return _Narrowest("unmeasured", note, **known)
      if one.filled[worst]:
        return _Narrowest("filled", f"{filler} fills the calibre", **known)
    known["lost"] = float(np.clip(one.stenosis[worst], 0, 1))
    known["lumen_mm2"] = float(np.pi * one.radius_mm[worst] ** 2)
    if not self.plaques:
      note = (
        "a taper fitted to the branch and a mask of plaque and lumen as one"
      )
      return _Narrowest("merged", f"from {note}", **known)
    note = MEASURED
    if one.filled[extent].any():
      note += f"; {filler} fills the calibre beside it, where more may be lost"
    return _Narrowest("measured", note, **known)


@dataclasses.dataclass(frozen=True)
class _Narrowest:
  """Where the lumen of a finding is narrowest; see `Finding`."""

  state: str
  note: str
  place: int = -1
  lost: float | None = None
  reference_mm: float = float("nan")
  lumen_mm2: float = float("nan")


def score(finding: Finding, mode: str, voxel: float) -> float:
  """Returns what a mode ranks a finding by; see `RANKED_BY`.

  "combined" ranks as a reader grades a patient, by the worst narrowing: the
  grade of the stenosis first, 2 to 5 from `cad_rads.GRADES` on; 1 for plaque
  with less, or where the loss is not measurable; 0 for neither.
  Within a grade, findings with plaque come first, the largest volume before
  the others; then those without, by the lift of the heat map. The score is
  the grade plus a share below 1 for the order within it.

  Args:
    finding: its stenosis, plaque_mm3, lift and heat are used.
    mode: one of `MODES`.
    voxel: see `lost_share`, whose share is graded.
  """
  if mode in ("map", "vessel_map"):
    return finding.heat
  if mode == "plaque":
    return finding.plaque_mm3
  lost = lost_share(finding, voxel) or 0.0
  grade = int(np.searchsorted(cad_rads.GRADES, lost, side="right"))
  volume = finding.plaque_mm3
  if grade:
    grade += 1
  elif volume:
    grade = 1
  if volume:
    return grade + 0.5 + 0.5 * volume / (volume + _HALF_MM3)
  lift = 0.0 if np.isnan(finding.lift) else finding.lift
  return grade + 0.5 * lift / (lift + _HALF_LIFT)


def lost_share(finding: Finding, voxel: float) -> float | None:
  """Returns the share of the diameter lost that a finding is graded by.

  Where plaque without calcium fills the calibre, the lumen is narrower than a
  voxel and the stenosis at least severe; where calcium does, it blooms and
  nothing is known.

  Args:
    finding: of `find_abnormalities`.
    voxel: edge of the voxels in mm, which is the most that is left of a lumen
      that soft plaque fills.

  Returns:
    0 to 1; None where not known.
  """
  if finding.stenosis_state == "filled" and finding.plaque == "unstable":
    left = voxel / finding.reference_mm
    return float(np.clip(1 - left, cad_rads.SEVERE, _FILLED))
  return finding.stenosis


def _mean(values: np.ndarray) -> float:
  known = values[np.isfinite(values)]
  return float(known.mean()) if len(known) else float("nan")
