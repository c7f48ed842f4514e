import dataclasses
import json

import numpy as np
import pytest
from tiny_tree import FORK, LINES, VOXEL, ball, blobs, on, scene

from cadjax.core import files, lookup
from cadjax.link import cad_rads, findings
from cadjax.link.findings import FindingOptions, find_abnormalities
from cadjax.metrics import detection
from cadjax.vessels.find import find_vessels
from data_prep.geometry import GridSpec
from data_prep.phantom import make_phantom

PLACE, OTHER = on(LINES[1], 0.5), on(LINES[2], 0.6)
OFF = np.array([15.0, -4, 8])

EDGE = VOXEL ** (1 / 3)


def stable():
  return ball(PLACE, 1.6)


def find(mode="combined", options=None, **given):
  tree, mask = scene()
  return find_abnormalities(tree, mask, mode=mode, options=options, **given)


def test_a_finding_says_where_what_and_how_much():
  tree, mask = scene()
  heat = blobs((PLACE, 1.0), (OFF, 0.6))
  hu = np.where(stable(), 700, 350).astype(np.int16)
  (one, *_) = find(
    heat=heat, plaques={"stable": stable(), "unstable": stable() & False}, hu=hu
  )
  assert np.linalg.norm(np.array(one.position_mm) - PLACE) < 1.0
  assert np.abs(tree.to_index(PLACE) - one.index).max() < 2
  owner, place, _ = tree.nearest(PLACE[None])
  branch = tree.branches[owner[0]]
  assert one.vessel == branch.name
  assert one.sureness == branch.sureness
  assert one.from_ostium_mm == pytest.approx(
    branch.distance_mm[place[0]], abs=1.0
  )
  # From the top of the trunk, down and out to the plaque.
  way = np.linalg.norm(LINES[0][0] - FORK) + np.linalg.norm(PLACE - FORK)
  assert one.from_ostium_mm == pytest.approx(way, abs=1.5)
  low, high = one.extent_mm
  assert low < one.from_ostium_mm < high
  assert high - low == pytest.approx(3.2, abs=1.2)
  assert one.sources[0] == "plaque"
  assert "heat" in one.sources
  assert one.plaque == "stable"
  assert one.plaque_mm3 == pytest.approx(stable().sum() * VOXEL)
  assert one.plaque_hu == 700
  assert one.calibre_mm == pytest.approx(3.4, abs=0.4)
  at = tree.to_mm(np.argwhere(np.ones(mask.shape)))
  near = np.linalg.norm(at - one.position_mm, axis=1) <= 5.0
  assert one.evidence == pytest.approx(heat.ravel()[near].sum() / heat.sum())
  assert one.lift == pytest.approx(heat.ravel()[near].mean() / heat.mean())
  # A ball of radius 1.6 in a tube of 1.7, under a Gaussian as long as it.
  assert 0.3 < one.stenosis < 0.9
  json.dumps(one.to_dict())


def test_types_of_plaque():
  half = ball(PLACE + [1.5, 0, 0], 1.5)
  rest = stable() & ~half
  mixed = find("plaque", plaques={"stable": half, "unstable": rest})
  assert [one.plaque for one in mixed] == ["mixed"]
  soft = find("plaque", plaques={"unstable": stable()})
  assert [one.plaque for one in soft] == ["unstable"]
  assert np.isnan(soft[0].plaque_hu)
  assert np.isnan(soft[0].evidence)


def test_each_mode_has_its_sources_and_its_ranking():
  heat = blobs((OTHER, 1.0), (OFF, 0.9), (PLACE, 0.2))
  small = ball(on(LINES[2], 0.9), 1.1)
  given = {"heat": heat, "plaques": {"stable": stable() | small}}
  options = FindingOptions(least_heat=0.3, near_mm=3.0)
  by_map = find("map", options, **given)
  assert [one.sources for one in by_map] == [("heat",)] * 2
  assert by_map[0].vessel
  assert by_map[1].vessel == ""
  assert by_map[1].stenosis_note == "not on a vessel"
  assert np.isnan(by_map[1].from_ostium_mm)
  on_vessels = find("vessel_map", options, **given)
  assert [one.sources for one in on_vessels] == [("heat",)]
  assert np.linalg.norm(np.array(on_vessels[0].position_mm) - OTHER) < 2
  by_plaque = find("plaque", options, **given)
  assert [one.sources for one in by_plaque] == [("plaque",)] * 2
  assert [one.score for one in by_plaque] == pytest.approx(
    [stable().sum() * VOXEL, small.sum() * VOXEL]
  )
  both = find("combined", options, **given)
  assert len(both) == 3
  for mode, found in (
    ("map", by_map), ("vessel_map", on_vessels), ("plaque", by_plaque),
    ("combined", both),
  ):  # fmt: skip
    assert {one.ranked_by for one in found} == {findings.RANKED_BY[mode]}
    scores = [one.score for one in found]
    assert scores == sorted(scores, reverse=True)
    assert scores == [findings.score(one, mode, EDGE) for one in found]
  first = FindingOptions(near_mm=3.0, most=1)
  (only,) = find("combined", first, **given)
  assert files.strict(only.to_dict()) == files.strict(both[0].to_dict())


def test_one_place_is_one_finding():
  heat = blobs((PLACE + [1.0, 0, 1], 1.0))
  found = find(heat=heat, plaques={"stable": stable()})
  assert len(found) == 1
  assert found[0].sources == ("plaque", "narrowing", "heat")
  assert found[0].heat > 0.3
  far = find(heat=blobs((OTHER, 1.0)), plaques={"stable": stable()})
  assert {one.sources for one in far} == {("plaque", "narrowing"), ("heat",)}


def test_the_stenosis_is_none_with_its_reason_where_it_cannot_be_told():
  given = {"plaques": {"stable": stable()}}
  (coarse,) = find(options=FindingOptions(least_voxels=4.0), **given)
  assert coarse.stenosis is None
  assert "4 voxels" in coarse.stenosis_note
  assert coarse.sources == ("plaque",)
  (fine,) = find(**given)
  assert fine.stenosis is not None
  assert fine.score > coarse.score


@pytest.mark.parametrize(
  ("kind", "said"),
  [
    ("stable", "calcium fills the calibre"),
    ("unstable", "plaque fills the calibre"),
  ],
)
def test_what_plaque_fills_is_not_measured(kind, said):
  (one,) = find(plaques={kind: ball(PLACE, 5.0)})
  assert one.stenosis is None
  assert one.stenosis_note == said
  assert one.sources == ("plaque",)
  # Soft plaque leaves less than a voxel, which is severe; calcium blooms.
  assert (one.score >= 4) == (kind == "unstable")
  lost = findings.lost_share(one, EDGE)
  assert lost is None if kind == "stable" else lost >= cad_rads.SEVERE


def test_findings_are_ranked_as_a_reader_grades():
  (one, *_) = find(plaques={"stable": stable()})

  def ranked(stenosis=None, mm3=0.0, lift=np.nan):
    finding = dataclasses.replace(
      one, stenosis=stenosis, plaque_mm3=mm3, lift=lift
    )
    return findings.score(finding, "combined", EDGE)

  order = [
    ranked(1.0),
    ranked(0.75, 300.0),
    ranked(0.95),  # Without plaque, above the largest with less narrowing.
    ranked(0.69, 3.0),
    ranked(0.5, 0.0, 40.0),
    ranked(0.49, 500.0),
    ranked(0.25, 2.0),
    ranked(0.24, 20.0, 1.0),
    ranked(None, 10.0, 90.0),
    ranked(0.1, 2.0),
    ranked(0.2, 0.0, 50.0),
    ranked(None, 0.0, 30.0),
    ranked(),
  ]
  assert order == sorted(order, reverse=True)
  assert len(set(order)) == len(order)
  assert [int(score) for score in order] == [
    5,
    4,
    4,
    3,
    3,
    2,
    2,
    1,
    1,
    1,
    0,
    0,
    0,
  ]


def test_nothing_in_nothing_out():
  tree, mask = scene()
  nothing = np.zeros_like(mask)
  empty = {"heat": nothing.astype(float), "plaques": {"stable": nothing}}
  for mode in findings.MODES:
    assert find(mode, **empty) == []
  none = dataclasses.replace(tree, branches=(), voxels=np.zeros((0, 3), int))
  given = {"heat": blobs((PLACE, 1.0)), "plaques": {"stable": stable()}}
  for mode, count in (("map", 1), ("vessel_map", 0), ("plaque", 1)):
    found = find_abnormalities(none, mask, mode=mode, **given)
    assert [one.vessel for one in found] == [""] * count


def test_bad_calls_are_refused():
  with pytest.raises(lookup.UnknownName, match="combined"):
    find("combine")
  with pytest.raises(lookup.UnknownName, match="unstable"):
    find(plaques={"soft": stable()})
  for mode in ("map", "vessel_map"):
    with pytest.raises(ValueError, match="heat map"):
      find(mode)
  with pytest.raises(ValueError, match="plaque"):
    find("plaque")


def lumen_of(tree, mask, lost, center_mm, reach_mm):
  """Narrows one line's lumen by a share of the diameter, within a reach."""
  at = tree.to_mm(np.argwhere(mask))
  axis = LINES[1][1] - LINES[1][0]
  axis = axis / np.linalg.norm(axis)
  along = (at - center_mm) @ axis
  off = np.linalg.norm(at - center_mm - along[:, None] * axis, axis=1)
  cut = (np.abs(along) < reach_mm) & (off > 1.7 * (1 - lost)) & (off < 3)
  plaque = np.zeros_like(mask)
  plaque[tuple(np.argwhere(mask)[cut].T)] = True
  return plaque


def test_a_narrowing_beside_calcium_is_found_and_measured():
  """What fills the calibre hides none of its neighbours."""
  tree, mask = scene()
  place, beside = on(LINES[1], 0.3), on(LINES[1], 0.65)
  assert np.linalg.norm(place - beside) < FindingOptions().apart_mm
  narrow = lumen_of(tree, mask, 0.7, place, 1.5)
  found = find(plaques={"stable": ball(beside, 4.0), "unstable": narrow})
  (one,) = [f for f in found if "narrowing" in f.sources]
  assert np.linalg.norm(np.array(one.position_mm) - place) < 2
  assert one.stenosis == pytest.approx(0.6, abs=0.15)
  assert one.stenosis_state == "measured"
  assert found[0] is one
  (filled,) = [f for f in found if f.plaque == "stable"]
  assert filled.stenosis_state == "filled"
  assert filled.plaque_mm3 > one.plaque_mm3


def test_a_stenosis_is_measured_within_the_extent_of_its_finding():
  """A narrowing beyond a plaque's end is not the plaque's."""
  tree, mask = scene()
  narrow = lumen_of(tree, mask, 0.6, on(LINES[1], 0.3), 1.5)
  speck = ball(on(LINES[1], 0.62), 1.2) & ~ball(on(LINES[1], 0.62), 0.5)
  found = find(
    "plaque",
    options=FindingOptions(least_plaque_mm3=0.1),
    plaques={"stable": speck, "unstable": narrow},
  )
  by_kind = {one.plaque: one for one in found}
  assert by_kind["unstable"].stenosis > 0.45
  assert by_kind["stable"].stenosis < 0.35


def test_the_line_of_a_finding_is_its_extent():
  tree, _ = scene()
  heat = blobs((PLACE, 1.0), (OTHER, 0.8))
  found = find(heat=heat, plaques={"stable": stable()})
  lines = {one.sources: one.line_mm for one in found}
  (peak,) = [one for one in found if one.sources == ("heat",)]
  np.testing.assert_allclose(peak.line_mm, [peak.position_mm])
  (plaque,) = [one for one in found if "plaque" in one.sources]
  low, high = plaque.extent_mm
  assert len(plaque.line_mm) == round((high - low) / 0.5) + 1
  assert np.linalg.norm(plaque.line_mm - PLACE, axis=1).min() < 1
  assert len(lines) == 2
  # A peak near a vessel is judged where it is, not where the vessel is.
  (beside, *_) = find("map", heat=blobs((PLACE + [0, 4.0, 0], 1.0)))
  np.testing.assert_allclose(beside.line_mm, [beside.position_mm])


def test_the_plaques_of_phantoms_are_found_where_they_are():
  grid = GridSpec("heart", (120, 120, 120), (150.0, 150.0, 150.0))
  hits = misses = false_positives = 0
  for seed in (3, 7, 9):
    phantom = make_phantom(seed, label=1, severity="overt", grid=grid)
    mask = phantom.mask
    tree = find_vessels(mask > 1, mask == 1, phantom.volume.affine)
    found = find_abnormalities(
      tree,
      mask > 1,
      plaques={"stable": mask == 3, "unstable": mask == 4},
      hu=phantom.volume.hu,
      mode="plaque",
    )
    lesions = [phantom.lesion_line(row) for row in phantom.lesions]
    matches = detection.match(
      detection.distances([one.line_mm for one in found], lesions, 5.0)
    )
    hits += len(matches.hits)
    misses += len(matches.misses)
    false_positives += len(matches.false_positives)
    for j, k in matches.hits:
      volume = phantom.lesions[k]["volume_mm3"]
      assert found[j].plaque_mm3 == pytest.approx(volume, rel=0.5, abs=10)
  assert hits >= 15
  assert misses <= 1
  assert false_positives <= 1
