import itertools
import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from cadjax.explanation import location

SPACING = (0.5, 1.25, 0.8)
SHAPE = (8, 10, 12)


def mask_of(seed, share=0.05, shape=SHAPE):
  return np.random.default_rng(seed).random(shape) < share


def heat_of(seed, shape=SHAPE):
  return np.random.default_rng(seed).gamma(0.5, size=shape)


@pytest.mark.parametrize("seed", range(3))
def test_distance_equals_brute_force(seed):
  mask = mask_of(seed, 0.01)
  centers = np.array([[2.25, 3.5, 4.75], [-1, 5, 20.0]])
  points = np.concatenate([np.argwhere(mask), centers]) * SPACING
  grid = np.argwhere(np.ones(SHAPE)) * SPACING
  expected = np.linalg.norm(grid[:, None] - points, axis=-1).min(1)
  ours = location.distance_mm(mask, SPACING, centers)
  np.testing.assert_allclose(ours.ravel(), expected, rtol=1e-6)
  empty = np.zeros(SHAPE, bool)
  assert np.isinf(location.distance_mm(empty, SPACING)).all()
  alone = location.distance_mm(empty, SPACING, centers)
  near = np.linalg.norm(grid[:, None] - centers * SPACING, axis=-1).min(1)
  np.testing.assert_allclose(alone.ravel(), near, rtol=1e-6)


def test_dilation_is_in_mm_along_each_axis():
  mask = np.zeros((41, 31, 35), bool)
  mask[20, 15, 17] = True
  distance = location.distance_mm(mask, SPACING)
  inside = distance <= 5
  # 5 mm are 10, 4 and 6.25 voxels.
  assert [np.ptp(np.nonzero(inside)[k]) for k in range(3)] == [20, 8, 12]


def test_a_map_equal_to_the_mask_has_the_largest_lift():
  mask = mask_of(0)
  ours = location.energy_in(7.0 * mask, mask)
  assert ours["energy"] == pytest.approx(1)
  assert ours["lift"] == pytest.approx(mask.size / mask.sum())


def test_a_uniform_map_has_no_skill():
  mask, heat = mask_of(0), np.full(SHAPE, 0.3)
  ours = location.energy_in(heat, mask)
  assert ours["lift"] == pytest.approx(1)
  assert location.auprc(heat, mask)["auprc"] == pytest.approx(mask.mean())
  found = location.pointing(heat, mask)
  assert found["pointing"] == pytest.approx(found["chance"])
  assert location.gini(heat) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("with_region", [False, True])
def test_location_equals_loops(with_region):
  heat, mask = heat_of(1), mask_of(2, 0.1)
  region = mask_of(3, 0.6) if with_region else None
  kept = np.ones(SHAPE, bool) if region is None else region
  voxels = [tuple(v) for v in np.argwhere(kept)]
  energy = sum(heat[v] for v in voxels if mask[v])
  energy /= sum(heat[v] for v in voxels)
  share = sum(mask[v] for v in voxels) / len(voxels)
  ours = location.energy_in(heat, mask, region)
  assert ours["energy"] == pytest.approx(energy)
  assert ours["share"] == pytest.approx(share)
  assert ours["lift"] == pytest.approx(energy / share)
  peak = max(voxels, key=lambda v: heat[v])
  for near in (mask, ~mask):
    assert location.pointing(heat, near, region)["pointing"] == near[peak]
  # Average precision: the mean over the mask's voxels of the precision at
  # each (no ties here).
  ranked = sorted(voxels, key=lambda v: -heat[v])
  hits, precisions = 0, []
  for rank, v in enumerate(ranked, 1):
    if mask[v]:
      hits += 1
      precisions.append(hits / rank)
  found = location.auprc(heat, mask, region)
  assert found["auprc"] == pytest.approx(np.mean(precisions))
  assert found["chance"] == pytest.approx(share)
  # Gini: half the mean absolute difference over the mean.
  values = np.array([heat[v] for v in voxels])
  difference = np.abs(values[:, None] - values).mean()
  assert location.gini(heat, region) == pytest.approx(
    difference / (2 * values.mean())
  )


@pytest.mark.parametrize("levels", [2, 7, 1000])
def test_average_precision_of_ties_is_scikit_learns(levels):
  heat, mask = np.floor(levels * heat_of(1)), mask_of(2, 0.1)
  expected = sklearn.metrics.average_precision_score(mask.ravel(), heat.ravel())
  ours = location.auprc(heat, mask)["auprc"]
  assert ours == pytest.approx(expected, rel=1e-12)


def test_gini_of_one_voxel():
  heat = np.zeros(SHAPE)
  heat[1, 2, 3] = 5
  assert location.gini(heat) == pytest.approx(1 - 1 / heat.size)


def test_tied_peaks_count_by_their_share():
  heat, near = np.zeros(SHAPE), np.zeros(SHAPE, bool)
  heat[0, 0, :4] = 1
  near[0, 0, 3:7] = True
  assert location.pointing(heat, near)["pointing"] == 0.25
  heat[0, 0, 3] = 1.001
  assert location.pointing(heat, near)["pointing"] == 1


def test_no_measure_depends_on_the_scale_of_the_map():
  heat = heat_of(1)
  distance = location.distance_mm(mask_of(2, 0.01), SPACING)
  a, b, other = (
    row["a"]
    for row in location.location_metrics(
      np.stack([heat, 1000 * heat, heat**2]), {"a": distance}, rolls=9
    )
  )
  np.testing.assert_allclose(a["lift_drawn_0mm"], b["lift_drawn_0mm"])
  a, b, other = (location.numbers_of(row) for row in (a, b, other))
  assert a == pytest.approx(b, nan_ok=True)
  assert a != pytest.approx(other, nan_ok=True)


def test_a_row_holds_every_measure_at_its_distance():
  heat, mask = heat_of(1), mask_of(2, 0.01)
  distance = location.distance_mm(mask, SPACING)
  region = mask_of(3, 0.6)
  row = location.location_metrics(
    heat[None],
    {"a": distance},
    region=region,
    radii_mm=(0, 1.5),
    peak_mm=2,
    rolls=3,
  )[0]["a"]
  for name, radius in (("0mm", 0), ("1.5mm", 1.5)):
    found = location.energy_in(heat, distance <= radius, region)
    for key, value in found.items():
      assert row[f"{key}_{name}"] == value
  found = location.pointing(heat, distance <= 2, region)
  assert row["pointing"] == found["pointing"]
  assert row["pointing_chance"] == found["chance"]
  found = location.auprc(heat, mask, region)
  assert (row["auprc"], row["auprc_chance"]) == tuple(found.values())
  assert row["gini"] == location.gini(heat, region)


@pytest.mark.parametrize("with_region", [False, True])
def test_rolls_equal_measures_of_the_rolled_structure(with_region):
  heat = heat_of(1)
  heat[heat < np.quantile(heat, 0.99)] = 0
  heat[heat > 0] = heat.max()  # Peaks that tie.
  heat += 0.01 * heat_of(4) * (heat == 0)
  region = mask_of(3, 0.6) if with_region else None
  distance = location.distance_mm(mask_of(2, 0.004), SPACING)
  radii = (2.0, 0.0, 1.0)  # In any order.
  both = location.rolled_null(
    np.stack([heat_of(5), heat]),
    {"one": distance, "other": distance.max() - distance},
    region=region,
    radii_mm=radii,
    peak_mm=1.5,
    rolls=6,
    seed=8,
  )
  ours = {key: values[1] for key, values in both["one"].items()}
  shifts = location.draw_shifts(SHAPE, 6, 8)
  for i, shift in enumerate(shifts):
    rolled = np.roll(distance, shift, (0, 1, 2))
    for k, radius in enumerate(radii):
      expected = location.energy_in(heat, rolled <= radius, region)
      assert ours["lift"][i, k] == pytest.approx(expected["lift"], nan_ok=True)
    expected = location.pointing(heat, rolled <= 1.5, region)
    assert ours["pointing"][i] == pytest.approx(expected["pointing"])
  assert np.nanstd(ours["lift"][:, 0]) > 0
  assert np.std(ours["pointing"]) > 0
  assert (both["other"]["lift"][1] != ours["lift"]).any()
  assert (both["one"]["lift"][0] != ours["lift"]).any()


def test_over_all_shifts_the_mean_lift_is_1_and_pointing_is_chance():
  shape = (3, 4, 5)
  heat, mask = heat_of(0, shape), mask_of(1, 0.2, shape)
  lifts, hits = [], []
  for shift in itertools.product(*map(range, shape)):
    rolled = np.roll(mask, shift, (0, 1, 2))
    lifts.append(location.energy_in(heat, rolled)["lift"])
    hits.append(location.pointing(heat, rolled)["pointing"])
  assert np.mean(lifts) == pytest.approx(1)
  assert np.mean(hits) == pytest.approx(mask.mean())


def test_the_null_of_an_unrelated_map_and_of_a_right_one():
  distance = location.distance_mm(mask_of(2, 0.004), SPACING)
  (unrelated,) = location.location_metrics(
    heat_of(7)[None], {"a": distance}, rolls=400
  )
  ours = unrelated["a"]
  for radius in ("0mm", "2mm"):
    assert ours[f"lift_null_{radius}"] == pytest.approx(1, abs=0.2)
  assert ours["pointing_null"] == pytest.approx(
    ours["pointing_chance"], abs=0.08
  )
  right = np.exp(-distance)
  (ours,) = location.location_metrics(right[None], {"a": distance}, rolls=199)
  ours = ours["a"]
  assert ours["lift_p_0mm"] == 1 / 200
  assert ours["lift_0mm"] > 3 * ours["lift_null_0mm"]
  assert ours["pointing"] == 1


def test_p_values_of_unrelated_maps_are_uniform():
  distance = location.distance_mm(mask_of(2, 0.02), SPACING)
  p = []
  for i in range(200):
    heat = heat_of(100 + i)
    null = location.rolled_null(
      heat[None], {"a": distance}, radii_mm=(0.0,), rolls=19, seed=i
    )["a"]
    lift = location.energy_in(heat, distance <= 0)["lift"]
    p.append(location.p_value(lift, null["lift"][0, :, 0]))
  counts = np.bincount(np.rint(np.array(p) * 20).astype(int), minlength=21)
  assert counts[0] == 0
  assert scipy.stats.chisquare(counts[1:]).pvalue > 0.001


def test_p_value_of_ties_and_of_nothing():
  null = np.array([1.0, 2.0, 3.0, np.nan])
  assert location.p_value(2.0, null) == 3 / 4
  assert location.p_value(9.0, null) == 1 / 4
  assert math.isnan(location.p_value(math.nan, null))
  assert math.isnan(location.p_value(1.0, null[3:]))


def test_what_is_undefined_is_nan():
  heat, some = heat_of(0), mask_of(1)
  zero, none, full = np.zeros(SHAPE), ~some & some, some | ~some
  region = mask_of(2, 0.5)
  cases = [(zero, some, None), (heat, none, None), (heat, full, None)]
  cases += [(heat, ~region, region), (heat, region, region)]
  cases += [(heat * ~region, some, region), (heat, some, none)]
  for a, mask, where in cases:
    where = full if where is None else where
    distance = location.distance_mm(mask, SPACING)
    (ours,) = location.location_metrics(
      a[None],
      {"x": distance},
      region=where,
      radii_mm=(0.0,),
      peak_mm=0.0,
      rolls=3,
    )
    ours = ours["x"]
    for name in ("energy_0mm", "lift_0mm", "lift_null_0mm", "lift_p_0mm"):
      assert math.isnan(ours[name]), name
    for name in ("pointing", "pointing_null", "pointing_p", "auprc"):
      assert math.isnan(ours[name]), name
    # The map's sparseness is its own, whatever the structure.
    assert math.isnan(ours["gini"]) == (not np.sum(a, where=where) > 0)


def test_a_map_that_is_none_is_refused():
  distance = location.distance_mm(mask_of(1), SPACING)
  for bad in (-1.0, np.nan, np.inf):
    heat = heat_of(0)
    heat[0, 0, 0] = bad
    with pytest.raises(ValueError, match="finite and at least 0"):
      location.location_metrics(heat[None], {"a": distance})
  with pytest.raises(ValueError, match="do not match"):
    location.energy_in(heat_of(0), mask_of(1)[1:])
  with pytest.raises(ValueError, match="do not match"):
    location.auprc(heat_of(0), mask_of(1), mask_of(2)[1:])


def test_a_roll_is_one_draw_for_volumes_of_all_shapes():
  shifts = location.draw_shifts((40, 60, 80), 500, 3)
  half = location.draw_shifts((20, 30, 40), 500, 3)
  np.testing.assert_array_equal(half, shifts // 2)
  assert (shifts.min(0) == 0).all()
  assert (shifts.max(0) == [39, 59, 79]).all()


def table_rows():
  return [
    {"patient_id": f"p{i}", "layer": layer, "method": "gradcam"}
    | {"structure": "plaque", "case_id": f"c{i}", "label": 1}
    | {"lift_0mm": lift, "lift_p_0mm": 0.5, "pointing": hit}
    | {"lift_drawn_0mm": np.array(drawn, float)}
    for layer, values in {
      "stage4": [
        (1.0, [0.9, 2.0, 0.0], 1.0),
        (2.0, [1.0, 2.0, 3.1], 1.0),
        (math.nan, [9.0, 9.0, 9.0], 0.0),
      ],
      "stage1": [
        (5.0, [1.0, 9.0, 2.0], 1.0),
        (3.0, [2.0, 3.0, np.nan], 0.0),
        (4.0, [3.0, 0.5, 9.9], 0.25),
      ],
    }.items()
    for i, (lift, drawn, hit) in enumerate(values)
  ]


def test_the_table_averages_over_patients():
  last, first = location.summarise(table_rows(), draws=200)
  assert (last["layer"], first["layer"]) == ("stage4", "stage1")
  assert set(last) == {
    "layer",
    "method",
    "structure",
    "lift_0mm",
    "lift_p_0mm",
    "pointing",
  }
  assert last["lift_0mm"].value == 1.5
  assert (last["lift_0mm"].n, last["lift_0mm"].n_patients) == (2, 3)
  assert last["pointing"].method == "wilson"
  assert first["pointing"].method == "student"


def test_a_roll_is_one_draw_of_the_mean_over_patients():
  rows = table_rows()
  last, first = location.summarise(rows, draws=200)
  # Means of the rolls: 0.95, 2 and 1.55, of the two with a value; 1.5 or more
  # in two of three.
  assert last["lift_p_0mm"] == 3 / 4
  # 2, 4.17 and, of the two that have it, 5.95; 4 or more in two of three.
  assert first["lift_p_0mm"] == 3 / 4
  # A second scan of one patient: its mean counts, in every draw.
  again = {**rows[3], "lift_0mm": 7.0, "lift_drawn_0mm": np.zeros(3)}
  first = location.summarise([*rows, again], draws=200)[1]
  # 4.33 against 1.83, 2.67 and 5.45.
  assert first["lift_p_0mm"] == 2 / 4
  bare = [location.numbers_of(row) for row in rows]
  assert math.isnan(location.summarise(bare, draws=200)[0]["lift_p_0mm"])


def test_patients_of_one_network_are_not_taken_as_independent():
  """Its maps prefer one place, which has nothing to do with the structure.

  Fisher's combination of the patients' p-values takes them as independent
  and finds p < 0.05 in far more than one study of twenty.
  """
  shape, p, fisher = (6, 8, 10), [], []
  axes = np.meshgrid(*map(np.arange, shape), indexing="ij")
  for study in range(200):
    rng = np.random.default_rng(study)
    preferred = rng.integers(shape)
    gap = [
      np.minimum((a - c) % n, (c - a) % n)
      for a, c, n in zip(axes, preferred, shape, strict=True)
    ]
    place = np.exp(-sum(g**2 for g in gap) / 8.0)
    rows = []
    for i in range(8):
      # Hearts lie alike in all patients.
      mask = np.zeros(shape, bool)
      d, h, w = rng.integers((1, 2, 3), (3, 4, 5))
      mask[d : d + 2, h : h + 3, w : w + 3] = True
      heat = place * rng.gamma(2.0, size=shape)
      (found,) = location.location_metrics(
        heat[None],
        {"plaque": location.distance_mm(mask, SPACING)},
        radii_mm=(0.0,),
        rolls=39,
        seed=study,
      )
      rows.append({"patient_id": f"p{i}"} | found["plaque"])
    (row,) = location.summarise(rows, (), draws=2)
    p.append(row["lift_p_0mm"])
    each = [row["lift_p_0mm"] for row in rows]
    fisher.append(scipy.stats.combine_pvalues(each).pvalue)
  assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.08
  assert np.mean(np.array(fisher) <= 0.05) > 0.15


def test_a_network_that_finds_the_structure_has_a_small_p():
  rows = []
  for i in range(6):
    distance = location.distance_mm(mask_of(i, 0.02), SPACING)
    heat = np.exp(-distance / 3) + 0.3 * heat_of(i)
    (found,) = location.location_metrics(
      heat[None], {"plaque": distance}, radii_mm=(0.0,), rolls=99
    )
    rows.append({"patient_id": f"p{i}"} | found["plaque"])
  (row,) = location.summarise(rows, (), draws=2)
  assert row["lift_p_0mm"] == 1 / 100
