import itertools
import math

import numpy as np
import pytest
import scipy.ndimage
import scipy.sparse.linalg

from cadjax.explanation import faithfulness, imputation
from data_prep.errors import UserError

SHAPE = (6, 8, 10)


def smooth(seed, shape=SHAPE):
  field = np.random.default_rng(seed).random(shape)
  return scipy.ndimage.gaussian_filter(field, 1.0)


def linear_case(seed=0, dtype=np.float64):
  rng = np.random.default_rng(seed)
  image = (100 * rng.normal(size=SHAPE)).astype(dtype)
  baseline = (100 * rng.normal(size=SHAPE)).astype(dtype)
  weights = rng.normal(size=SHAPE)
  return image, baseline, weights


def test_blurring_is_in_mm_and_keeps_the_type():
  point = np.zeros((41, 41, 41), np.int16)
  point[20, 20, 20] = 20_000
  out = faithfulness.blurred(point, (1.0, 2.0, 4.0), 4.0)
  assert out.dtype == np.int16
  # One sigma from the middle, whatever the axis.
  assert out[24, 20, 20] == out[20, 22, 20] == out[20, 20, 21]
  assert out[24, 20, 20] == pytest.approx(
    out[20, 20, 20] * math.exp(-0.5), abs=2
  )
  flat = np.full((9, 9, 9), -1000, np.int16)
  assert (faithfulness.blurred(flat, (1, 1, 1)) == -1000).all()


def linear(weights):
  return lambda x: (x * weights).sum((1, 2, 3))


def test_perturbation_of_a_linear_score_is_a_closed_form():
  # One voxel a block, all replaced one by one: the k-th drop in the score is
  # the contribution of the k-th voxel.
  image, baseline, weights = linear_case()
  part = (weights * (image - baseline)).ravel()
  heat = np.abs(linear_case(3)[2])
  order = np.argsort(-heat.ravel())
  removed = np.concatenate([[0], part[order].cumsum()])
  top, bottom = (weights * image).sum(), (weights * baseline).sum()
  n = image.size

  def area(curve):
    return (curve[:-1] + curve[1:]).sum() / 2 / n

  ours = faithfulness.perturbation_auc(
    linear(weights),
    image,
    heat,
    baseline=baseline,
    block=1,
    steps=n,
    batch_size=7,
  )
  assert ours["deletion"] == pytest.approx(area(top - removed))
  assert ours["insertion"] == pytest.approx(area(bottom + removed))


def test_unequal_blocks_count_by_their_voxels():
  # Blocks of 4, of which those at the edges are smaller; 5 steps. By hand.
  image, baseline, weights = linear_case(1)
  heat = smooth(1)
  cut = [range(0, n, 4) for n in SHAPE]
  parts = [
    tuple(slice(i, i + 4) for i in corner) for corner in itertools.product(*cut)
  ]
  parts.sort(key=lambda part: -heat[part].mean())
  changed, voxels, points = image.copy(), 0, []
  for k in range(len(parts) + 1):
    if k in np.linspace(0, len(parts), 6).round():
      points.append((voxels / image.size, (weights * changed).sum()))
    if k < len(parts):
      changed[parts[k]] = baseline[parts[k]]
      voxels += changed[parts[k]].size
  x, y = np.array(points).T
  ours = faithfulness.perturbation_auc(
    linear(weights), image, heat, baseline=baseline, block=4, steps=5
  )
  assert ours["deletion"] == pytest.approx(
    ((y[1:] + y[:-1]) / 2 * np.diff(x)).sum()
  )


def test_the_true_contributions_beat_every_other_map():
  image, baseline, weights = linear_case()
  part = weights * (image - baseline)
  options = {"baseline": baseline, "block": 2, "steps": 5}

  def measure(heat):
    return faithfulness.perturbation_auc(
      linear(weights), image, heat, **options
    )

  # Blocks of 2^3 voxels ranked by their whole contribution.
  best, worst = measure(part - part.min()), measure(part.max() - part)
  chance = faithfulness.random_perturbation_auc(
    linear(weights), image, **options
  )
  for other in (chance, *(measure(smooth(seed)) for seed in range(5))):
    assert best["insertion"] > other["insertion"] > worst["insertion"]
    assert best["deletion"] < other["deletion"] < worst["deletion"]


def test_random_orders_replace_in_a_straight_line():
  image, baseline, weights = linear_case()
  top, bottom = (weights * image).sum(), (weights * baseline).sum()
  options = {"baseline": baseline, "block": 2}
  many = faithfulness.random_perturbation_auc(
    linear(weights), image, orders=300, **options
  )
  spread = np.abs(weights * (image - baseline)).sum() / 20
  for name in ("insertion", "deletion"):
    assert many[name] == pytest.approx((top + bottom) / 2, abs=spread)
  first = faithfulness.random_perturbation_auc(
    linear(weights), image, orders=1, seed=3, **options
  )
  # A flat map of any height has no order but chance's.
  flat = faithfulness.perturbation_auc(
    linear(weights), image, np.full(SHAPE, 0.1), seed=3, **options
  )
  assert flat == first
  second = faithfulness.random_perturbation_auc(
    linear(weights), image, orders=1, seed=4, **options
  )
  mean = faithfulness.random_perturbation_auc(
    linear(weights), image, orders=2, seed=3, **options
  )
  for name, value in mean.items():
    assert value == pytest.approx((first[name] + second[name]) / 2)
  assert flat != faithfulness.perturbation_auc(
    linear(weights), image, np.full(SHAPE, 0.1), seed=4, **options
  )


def test_the_score_gets_full_batches_of_the_images_own_type():
  image, baseline, _ = linear_case(dtype=np.int16)
  seen = []

  def score(x):
    seen.append((x.shape, x.dtype))
    return x.mean((1, 2, 3))

  faithfulness.perturbation_auc(
    score, image, smooth(0), baseline=baseline, block=4, steps=3, batch_size=3
  )
  # 4 points, insertion and deletion: 8 images.
  assert seen == [((3, *SHAPE), np.int16)] * 3


def test_blocks_at_the_edge_are_smaller():
  blocks = faithfulness._blocks(SHAPE, 4)
  sizes = np.bincount(blocks.ravel())
  # (4 + 2) x (4 + 4) x (4 + 4 + 2)
  expected = np.einsum("i,j,k", (4, 2), (4, 4), (4, 4, 2)).ravel()
  assert sizes.tolist() == expected.tolist()
  corner = np.argwhere(blocks == 0)
  assert corner.max(0).tolist() == [3, 3, 3]


def test_perturbation_of_a_zero_map_is_undefined_and_shapes_must_agree():
  image, baseline, _ = linear_case()
  ours = faithfulness.perturbation_auc(
    None, image, np.zeros(SHAPE), baseline=baseline
  )
  assert all(math.isnan(value) for value in ours.values())
  with pytest.raises(ValueError, match="one shape"):
    faithfulness.perturbation_auc(
      None, image, np.ones(SHAPE), baseline=baseline[1:]
    )


# --- ROAD -------------------------------------------------------------------


def spots(seed=0):
  """An image of a few bright voxels, and a score that is their sum."""
  rng = np.random.default_rng(seed)
  here = np.zeros((8, 10, 12))
  places = rng.permutation(here.size)[:20]
  here.ravel()[places] = 1
  return 100 * here, lambda x: (x * here).sum((1, 2, 3)), here


def test_road_of_a_perfect_a_backward_a_constant_and_a_random_map():
  image, score, here = spots()
  measured = {
    name: faithfulness.road(score, image, heat, noise=0)
    for name, heat in {
      "perfect": here + 0.01,
      "backward": 1.01 - here,
      "constant": np.ones(image.shape),
      "random": np.random.default_rng(3).random(image.shape),
    }.items()
  }
  full = 100 * here.sum()
  perfect = measured["perfect"]
  # All spots are gone at the first step, whichever order is taken next.
  assert perfect["most"] < 0.05 * full
  # All others are filled in from the spots; a tenth is left at the end.
  assert perfect["curve_least"][0] == pytest.approx(full)
  np.testing.assert_allclose(perfect["curve_least"], full)
  assert perfect["road"] > 0.47 * full
  assert measured["backward"]["road"] == pytest.approx(-perfect["road"])
  for name in ("constant", "random"):
    assert abs(measured[name]["road"]) < 0.15 * full, name


def test_the_curves_of_road_are_of_the_ranked_voxels():
  image, score, _ = spots(1)
  heat = np.random.default_rng(4).random(image.shape)
  found = faithfulness.road(score, image, heat, shares=(0.25,), seed=7)
  n = image.size // 4
  ranked = np.argsort(-heat.ravel())
  for k, (name, some) in enumerate(
    {"curve_most": ranked[:n], "curve_least": ranked[-n:]}.items()
  ):
    missing = np.zeros(image.size, bool)
    missing[some] = True
    filled = imputation.impute(image, missing.reshape(image.shape), seed=7 + k)
    assert found[name] == pytest.approx(score(filled[None])[0])
  assert found["road"] == pytest.approx((found["least"] - found["most"]) / 2)


def test_shares_of_road_are_checked():
  image = np.zeros(SHAPE)
  with pytest.raises(UserError, match=r"\(0.5, 1\) must be in \(0, 1\)"):
    faithfulness.road(None, image, smooth(0), shares=(0.5, 1))


def test_road_of_a_zero_map_is_undefined():
  found = faithfulness.road(None, np.ones(SHAPE), np.zeros(SHAPE))
  assert np.isnan(found["road"])
  assert np.isnan(found["curve_most"]).all()
  with pytest.raises(ValueError, match="differ"):
    faithfulness.road(None, np.ones(SHAPE), np.ones((1, 2, 3)))


# --- Infidelity, sensitivity-n, completeness --------------------------------


def both_kinds_of_change(image, baseline):
  yield from faithfulness.box_changes(image, baseline, box=3, samples=5)
  yield from faithfulness.noise_changes(image, baseline, sigma=20, samples=5)


def test_the_weights_of_a_linear_model_have_no_infidelity():
  image, baseline, weights = linear_case()
  ours = faithfulness.infidelity(
    linear(weights),
    image,
    weights,
    changes=both_kinds_of_change(image, baseline),
  )
  assert ours["infidelity"] == pytest.approx(0, abs=1e-12)
  assert ours["infidelity_scaled"] == pytest.approx(0, abs=1e-12)
  assert ours["infidelity_null"] > 1
  # So have the contributions, weights times what is removed.
  part = faithfulness.per_unit(weights * (image - baseline), image, baseline)
  np.testing.assert_allclose(part, weights)
  # Of another scale the map is as good, once it is scaled.
  scaled = faithfulness.infidelity(
    linear(weights),
    image,
    0.01 * weights,
    changes=both_kinds_of_change(image, baseline),
  )
  assert scaled["infidelity_scaled"] == pytest.approx(0, abs=1e-12)
  assert scaled["infidelity"] == pytest.approx(
    0.99**2 * ours["infidelity_null"]
  )


def test_infidelity_is_its_definition():
  image, baseline, weights = linear_case(2)
  heat = linear_case(5)[2]

  def score(x):
    return np.tanh((x * weights).sum((1, 2, 3)) / 500)

  changes = list(both_kinds_of_change(image, baseline))
  ours = faithfulness.infidelity(score, image, heat, changes=changes)
  falls = [score(image[None])[0] - score((image - i)[None])[0] for i in changes]
  sums = [(i * heat).sum() for i in changes]
  expected = np.mean((np.array(sums) - falls) ** 2)
  assert ours["infidelity"] == pytest.approx(expected)
  best = np.polyfit(sums, falls, 1)
  assert len(best) == 2
  scale = np.dot(sums, falls) / np.dot(sums, sums)
  left = np.mean((scale * np.array(sums) - falls) ** 2) / np.mean(
    np.square(falls)
  )
  assert ours["infidelity_scaled"] == pytest.approx(left)


def test_a_random_map_is_unfaithful_and_a_zero_map_undefined():
  image, baseline, weights = linear_case()
  options = {"box": 3, "samples": 200}

  def measured(heat):
    changes = faithfulness.box_changes(image, baseline, **options)
    return faithfulness.infidelity(
      linear(weights), image, heat, changes=changes, batch_size=32
    )

  chance = measured(np.random.default_rng(9).normal(size=SHAPE))
  assert chance["infidelity_scaled"] > 0.8
  nothing = measured(np.zeros(SHAPE))
  assert nothing["infidelity"] == pytest.approx(nothing["infidelity_null"])
  assert math.isnan(nothing["infidelity_scaled"])
  empty = faithfulness.infidelity(linear(weights), image, weights, changes=[])
  assert all(math.isnan(value) for value in empty.values())


def test_a_change_of_a_cube_is_of_that_cube():
  image, baseline, _ = linear_case()
  sizes = set()
  for change in faithfulness.box_changes(image, baseline, box=4, samples=30):
    inside = np.argwhere(change != 0)
    low, high = inside.min(0), inside.max(0) + 1
    assert (high - low == 4).all()
    sizes.add(tuple(low))
    cut = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    np.testing.assert_allclose(change[cut], (image - baseline)[cut])
  assert len(sizes) > 10
  whole = next(faithfulness.box_changes(image, baseline, box=99))
  np.testing.assert_allclose(whole, image - baseline)


def test_an_integer_image_is_changed_in_whole_hu():
  image, baseline, _ = linear_case(dtype=np.int16)
  seen = []

  def score(x):
    seen.append((x.dtype, x.shape[0]))
    return x.mean((1, 2, 3))

  faithfulness.infidelity(
    score,
    image,
    np.ones(SHAPE),
    changes=faithfulness.noise_changes(image, baseline, sigma=3.0, samples=5),
    batch_size=4,
  )
  assert seen == [(np.int16, 4)] * 2


def test_contributions_of_a_linear_model_correlate_at_every_n():
  image, baseline, weights = linear_case()
  part = weights * (image - baseline)
  options = {"baseline": baseline, "block": 2, "samples": 20}
  score = linear(weights)
  perfect = faithfulness.sensitivity_n(score, image, part, **options)
  assert set(perfect) == {
    *(f"sensitivity_{s:g}" for s in (0.01, 0.1, 0.25, 0.5, 0.75)),
    "sensitivity_n",
  }
  for value in perfect.values():
    assert value == pytest.approx(1)
  against = faithfulness.sensitivity_n(score, image, -3 * part, **options)
  assert against["sensitivity_n"] == pytest.approx(-1)
  # Equal blocks of a constant map say nothing.
  flat = faithfulness.sensitivity_n(score, image, np.ones(SHAPE), **options)
  assert math.isnan(flat["sensitivity_n"])
  chance = faithfulness.sensitivity_n(
    score,
    image,
    np.random.default_rng(1).normal(size=SHAPE),
    baseline=baseline,
    block=2,
    samples=400,
    batch_size=64,
  )
  assert abs(chance["sensitivity_n"]) < 0.4


def test_removals_are_those_of_the_sets():
  image, baseline, weights = linear_case(4)
  heat = linear_case(6)[2]
  rng = np.random.default_rng(0)
  sets = [rng.random(SHAPE) < share for share in (0.1, 0.5, 0.9)]
  falls, sums = faithfulness.removals(
    linear(weights), image, heat, baseline=baseline, removed=sets, batch_size=2
  )
  for some, fall, total in zip(sets, falls, sums, strict=True):
    assert fall == pytest.approx((weights * (image - baseline))[some].sum())
    assert total == pytest.approx(heat[some].sum())


def test_completeness_of_a_linear_model():
  image, baseline, weights = linear_case()
  part = weights * (image - baseline)
  score = linear(weights)

  def error(heat):
    found = faithfulness.completeness(score, image, heat, baseline=baseline)
    assert found["completeness_change"] == pytest.approx(part.sum())
    assert found["completeness_sum"] == pytest.approx(heat.sum())
    return found["completeness_error"]

  assert error(part) == pytest.approx(0, abs=1e-12)
  assert error(1.5 * part) == pytest.approx(0.5)
  assert error(np.zeros(SHAPE)) == pytest.approx(1)
  same = faithfulness.completeness(score, image, part, baseline=image)
  assert math.isnan(same["completeness_error"])
