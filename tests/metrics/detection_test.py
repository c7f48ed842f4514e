import itertools

import numpy as np
import pytest

from cadjax.metrics import detection
from cadjax.metrics.detection import DUPLICATE, FALSE, HIT, ScanFindings

LINE = np.array([[x, 0.0, 0.0] for x in range(-10, 11)])


def at(*places):
  """Returns findings of one point each."""
  return [np.asarray(place, float)[None] for place in places]


def test_matching_is_the_best_of_all_assignments():
  rng = np.random.default_rng(0)
  for _ in range(30):
    here = rng.uniform(0, 12, (rng.integers(0, 5), 3))
    there = rng.uniform(0, 12, (rng.integers(0, 5), 3))
    near = detection.distances(at(*here), at(*there), 5.0)
    matches = detection.match(near)
    apart = np.linalg.norm(here[:, None] - there[None], axis=2)
    best = (0, 0.0)
    size = min(len(here), len(there))
    for rows in itertools.permutations(range(len(here)), size):
      for columns in itertools.combinations(range(len(there)), size):
        some = [d for d in apart[list(rows), list(columns)] if d <= 5]
        best = max(best, (len(some), -sum(some)))
    assert len(matches.hits) == best[0]
    assert sum(near[j, k] for j, k in matches.hits) == pytest.approx(-best[1])
    hit = {k for _, k in matches.hits}
    assert hit | set(matches.misses) == set(range(len(there)))
    assert len(hit) == len(matches.hits)
    groups = [j for j, _ in matches.hits]
    groups += [*matches.false_positives, *matches.duplicates]
    assert sorted(groups) == list(range(len(here)))
    for j in matches.false_positives:
      assert len(there) == 0 or apart[j].min() > 5
    for j in matches.duplicates:
      assert apart[j].min() <= 5


def test_a_point_anywhere_along_a_lesion_is_on_it():
  found = at((12, 3, 0), (-9, 0, 1), (0, 9, 0))
  whole = detection.match(detection.distances(found, [LINE], 5.0))
  assert whole.hits == ((1, 0),)
  assert whole.duplicates == (0,)
  assert whole.false_positives == (2,)
  center = detection.match(detection.distances(found, at((0, 0, 0)), 5.0))
  assert center.hits == ()
  assert center.misses == (0,)
  assert center.false_positives == (0, 1, 2)


def test_marking_a_whole_vessel_hits_nothing():
  """The trivial system that one point per finding would reward."""
  vessel = np.array([[x, 0.0, 0.0] for x in range(-60, 61)])
  matches = detection.match(detection.distances([vessel], [LINE], 5.0))
  assert matches.hits == ()
  assert matches.false_positives == (0,)
  # Half of a finding may lie beside it.
  longer = vessel[45:85]
  assert detection.match(detection.distances([longer], [LINE], 5.0)).hits == (
    (0, 0),
  )
  assert np.isinf(detection.distances([longer], [LINE], 5.0, 0.9)).all()


def test_each_finding_has_one_outcome_at_every_threshold():
  on = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], bool)
  assert detection.outcomes(on) == [HIT, HIT, DUPLICATE, FALSE]
  assert detection.outcomes(on[[3, 2, 1, 0]]) == [FALSE, HIT, HIT, DUPLICATE]
  rng = np.random.default_rng(1)
  for _ in range(50):
    on = rng.random((rng.integers(0, 7), rng.integers(0, 4))) < 0.4
    found = detection.outcomes(on)
    for kept in range(len(on) + 1):
      matches = detection.match(np.where(on[:kept], 1.0, np.inf))
      assert found[:kept].count(HIT) == len(matches.hits)
      assert found[:kept].count(FALSE) == len(matches.false_positives)


def scan(name, lesions, *found):
  """Returns a scan; `found` are (score, outcome), the best first."""
  return ScanFindings(
    name, lesions, np.array([s for s, _ in found]), [o for _, o in found]
  )


def test_the_curve_counts_what_each_threshold_keeps():
  scans = [
    scan("a", 2, (0.9, HIT), (0.8, FALSE), (0.5, HIT), (0.5, FALSE)),
    scan("b", 0, (0.7, FALSE)),
  ]
  curve = detection.froc(scans, draws=100)
  np.testing.assert_allclose(curve.thresholds, [np.inf, 0.9, 0.8, 0.7, 0.5])
  np.testing.assert_allclose(curve.false_positives, [0, 0, 0.5, 1, 1.5])
  np.testing.assert_allclose(curve.sensitivity, [0, 0.5, 0.5, 0.5, 1])
  at_rate = {rate: one.value for rate, one in curve.at.items()}
  assert at_rate == {0.25: 0.5, 0.5: 0.5, 1: 0.5, 2: 1, 4: 1, 8: 1}
  assert curve.mean.value == pytest.approx(0.75)
  assert detection.threshold_at(scans, 1.0) == 0.7
  assert detection.threshold_at(scans, 0.1) == 0.9
  assert detection.threshold_at([scan("c", 1, (3.0, FALSE))], 0.5) == np.inf


def test_what_perfect_and_trivial_systems_score():
  rng = np.random.default_rng(0)
  counts = [int(n) for n in rng.integers(1, 7, 20)] + [0] * 20
  names = [f"p{i}" for i in range(40)]
  perfect = [
    scan(name, n, *[(1.0, HIT)] * n)
    for name, n in zip(names, counts, strict=True)
  ]
  curve = detection.froc(perfect)
  assert all(one.value == 1 for one in curve.at.values())
  assert curve.best == 1
  silent = [scan(name, n) for name, n in zip(names, counts, strict=True)]
  nothing = detection.froc(silent)
  assert all(one.value == 0 for one in nothing.at.values())
  assert nothing.mean.method == "undetermined"
  # Findings everywhere find everything, at false positives without end.
  everywhere = [
    scan(name, n, *[(1.0, HIT)] * n, *[(1.0, FALSE)] * 20)
    for name, n in zip(names, counts, strict=True)
  ]
  assert detection.froc(everywhere).at[8.0].value == 0
  assert detection.froc_difference(perfect, silent).difference == 1


def test_the_cap_has_its_best_score():
  counts = [5, 8, 6, 0]
  assert detection.best_sensitivity(counts, 5) == pytest.approx(15 / 19)
  assert detection.best_sensitivity(counts, None) == 1
  scans = [
    scan(f"p{i}", n, *[(1.0, HIT)] * min(n, 5)) for i, n in enumerate(counts)
  ]
  curve = detection.froc(scans, most=5, draws=100)
  assert curve.mean.value == pytest.approx(curve.best) == pytest.approx(15 / 19)


def drawn(rng, sick, normal):
  """Patients who differ: each has a chance of its own to be found."""
  scans = []
  for i in range(sick + normal):
    lesions = int(rng.integers(1, 6)) if i < sick else 0
    skill = rng.beta(3, 2)
    found = [
      (rng.normal(1), HIT) for _ in range(lesions) if rng.random() < skill
    ]
    found += [(rng.normal(), FALSE) for _ in range(rng.poisson(1.5))]
    scans.append(scan(f"p{i}", lesions, *sorted(found, reverse=True)))
  return scans


def test_the_intervals_cover_the_truth():
  """95 % of them should; 500 simulated studies of 20 patients with CAD."""
  rng = np.random.default_rng(5)
  truth = detection.froc(drawn(rng, 20_000, 20_000), draws=2)
  inside = np.zeros(2)
  studies = 500
  for k in range(studies):
    curve = detection.froc(drawn(rng, 20, 20), draws=300, seed=k)
    for i, (one, true) in enumerate(
      ((curve.mean, truth.mean), (curve.at[1.0], truth.at[1.0]))
    ):
      inside[i] += one.low <= true.value <= one.high
  assert (inside / studies > 0.92).all(), inside / studies


def test_a_difference_is_paired():
  rng = np.random.default_rng(2)
  scans = drawn(rng, 15, 15)
  fewer = [
    ScanFindings(s.patient_id, s.lesions, s.scores[:1], s.outcomes[:1])
    for s in scans
  ]
  found = detection.froc_difference(scans, fewer)
  a, b = (detection.froc(x).mean.value for x in (scans, fewer))
  assert found.difference == pytest.approx(a - b)
  assert found.low < found.difference < found.high
  same = detection.froc_difference(scans, scans)
  assert same.difference == 0
  assert np.isnan(same.low)


def test_the_differences_at_every_rate_are_those_of_the_curves():
  rng = np.random.default_rng(3)
  scans = drawn(rng, 15, 15)
  fewer = [
    ScanFindings(s.patient_id, s.lesions, s.scores[:1], s.outcomes[:1])
    for s in scans
  ]
  found = detection.froc_differences(scans, fewer, draws=300)
  a, b = (detection.froc(x).at for x in (scans, fewer))
  assert list(found) == list(detection.RATES)
  for rate, one in found.items():
    assert one.difference == pytest.approx(a[rate].value - b[rate].value)
  whole = detection.froc_difference(scans, fewer, draws=300)
  mean = np.mean([one.difference for one in found.values()])
  assert whole.difference == pytest.approx(mean)


def test_without_a_lesion_there_is_no_curve():
  with pytest.raises(ValueError, match="no scan has a lesion"):
    detection.froc([scan("a", 0, (1.0, FALSE))])
