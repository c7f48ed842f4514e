import functools
import itertools
import math

import jax
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats

from cadjax import models
from cadjax.core import lookup
from cadjax.explanation import checks

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
  out = checks.blurred(point, (1.0, 2.0, 4.0), 4.0)
  assert out.dtype == np.int16
  # One sigma from the middle, whatever the axis.
  assert out[24, 20, 20] == out[20, 22, 20] == out[20, 20, 21]
  assert out[24, 20, 20] == pytest.approx(
    out[20, 20, 20] * math.exp(-0.5), abs=2
  )
  flat = np.full((9, 9, 9), -1000, np.int16)
  assert (checks.blurred(flat, (1, 1, 1)) == -1000).all()


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

  ours = checks.perturbation_auc(
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
  ours = checks.perturbation_auc(
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
    return checks.perturbation_auc(linear(weights), image, heat, **options)

  # Blocks of 2^3 voxels ranked by their whole contribution.
  best, worst = measure(part - part.min()), measure(part.max() - part)
  chance = checks.random_perturbation_auc(linear(weights), image, **options)
  for other in (chance, *(measure(smooth(seed)) for seed in range(5))):
    assert best["insertion"] > other["insertion"] > worst["insertion"]
    assert best["deletion"] < other["deletion"] < worst["deletion"]


def test_random_orders_replace_in_a_straight_line():
  image, baseline, weights = linear_case()
  top, bottom = (weights * image).sum(), (weights * baseline).sum()
  options = {"baseline": baseline, "block": 2}
  many = checks.random_perturbation_auc(
    linear(weights), image, orders=300, **options
  )
  spread = np.abs(weights * (image - baseline)).sum() / 20
  for name in ("insertion", "deletion"):
    assert many[name] == pytest.approx((top + bottom) / 2, abs=spread)
  first = checks.random_perturbation_auc(
    linear(weights), image, orders=1, seed=3, **options
  )
  # A flat map of any height has no order but chance's.
  flat = checks.perturbation_auc(
    linear(weights), image, np.full(SHAPE, 0.1), seed=3, **options
  )
  assert flat == first
  second = checks.random_perturbation_auc(
    linear(weights), image, orders=1, seed=4, **options
  )
  mean = checks.random_perturbation_auc(
    linear(weights), image, orders=2, seed=3, **options
  )
  for name, value in mean.items():
    assert value == pytest.approx((first[name] + second[name]) / 2)
  assert flat != checks.perturbation_auc(
    linear(weights), image, np.full(SHAPE, 0.1), seed=4, **options
  )


def test_the_score_gets_full_batches_of_the_images_own_type():
  image, baseline, _ = linear_case(dtype=np.int16)
  seen = []

  def score(x):
    seen.append((x.shape, x.dtype))
    return x.mean((1, 2, 3))

  checks.perturbation_auc(
    score, image, smooth(0), baseline=baseline, block=4, steps=3, batch_size=3
  )
  # 4 points, insertion and deletion: 8 images.
  assert seen == [((3, *SHAPE), np.int16)] * 3


def test_blocks_at_the_edge_are_smaller():
  blocks = checks._blocks(SHAPE, 4)
  sizes = np.bincount(blocks.ravel())
  # (4 + 2) x (4 + 4) x (4 + 4 + 2)
  expected = np.einsum("i,j,k", (4, 2), (4, 4), (4, 4, 2)).ravel()
  assert sizes.tolist() == expected.tolist()
  corner = np.argwhere(blocks == 0)
  assert corner.max(0).tolist() == [3, 3, 3]


def test_perturbation_of_a_zero_map_is_undefined_and_shapes_must_agree():
  image, baseline, _ = linear_case()
  ours = checks.perturbation_auc(
    None, image, np.zeros(SHAPE), baseline=baseline
  )
  assert all(math.isnan(value) for value in ours.values())
  with pytest.raises(ValueError, match="one shape"):
    checks.perturbation_auc(None, image, np.ones(SHAPE), baseline=baseline[1:])


@pytest.fixture(scope="module")
def resnet():
  model = models.get_model({"depth": 10, "width": 4, "ndim": 3})
  image = jax.numpy.ones((1, 16, 16, 16, 1))
  init = jax.jit(functools.partial(model.init, train=False))
  trained, fresh = (init(jax.random.key(seed), image) for seed in (0, 1))
  for made in (trained, fresh):
    made.pop("perturbations")
  apply = jax.jit(functools.partial(model.apply, train=False))
  return apply, image, trained, fresh


ORDER = ("head", "stage4", "stage3", "stage2", "stage1", "stem")


def test_randomise_takes_layers_from_the_top_and_leaves_the_lower(resnet):
  _, _, trained, fresh = resnet
  # Running statistics as if trained.
  trained = {
    **trained,
    "batch_stats": jax.tree.map(lambda x: x + 3, trained["batch_stats"]),
  }
  mixed = checks.randomise(trained, fresh, ORDER, "stage3")
  for kind in ("params", "batch_stats"):
    assert mixed[kind].keys() == trained[kind].keys()
    for name, part in mixed[kind].items():
      top = name == "head" or name.startswith(("stage4", "stage3"))
      wanted = (fresh if top else trained)[kind][name]
      assert part is wanted, name
  everything = checks.randomise(trained, fresh, ORDER, "stem")
  assert all(
    everything["params"][name] is fresh["params"][name]
    for name in trained["params"]
  )


def test_randomise_changes_the_maps_above_alone(resnet):
  apply, image, trained, fresh = resnet
  mixed = checks.randomise(trained, fresh, ORDER, "stage3")
  _, before = apply(trained, image)
  _, after = apply(mixed, image)
  for name in ("stem", "stage1", "stage2"):
    np.testing.assert_array_equal(before[name], after[name])
  for name in ("stage3", "stage4"):
    assert np.abs(before[name] - after[name]).max() > 1e-3, name


def test_randomise_knows_its_layers(resnet):
  _, _, trained, fresh = resnet
  with pytest.raises(lookup.UnknownName, match="did you mean 'stage4'"):
    checks.randomise(trained, fresh, ORDER, "stag4")
  with pytest.raises(lookup.UnknownName, match="stage9"):
    checks.randomise(trained, fresh, ("head", "stage9"), "stage9")


def test_equal_maps_are_alike_and_scale_does_not_matter():
  a = smooth(0)
  ours = checks.compare(a, 40 * a)
  assert ours["ssim"] == pytest.approx(1, abs=1e-4)
  assert ours["spearman"] == pytest.approx(1)
  assert checks.compare(a, a.max() - a)["spearman"] == pytest.approx(-1)


def test_compare_equals_brute_force():
  a, b = smooth(1, (5, 6, 7)), smooth(2, (5, 6, 7))
  ours = checks.compare(a, b)
  # Pearson's correlation of the ranks.
  ranks = [scipy.stats.rankdata(x.astype(np.float32)) for x in (a, b)]
  assert ours["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
  # SSIM over every cube of 5 voxels that fits, with sample covariances.
  a, b = a / a.max(), b / b.max()
  values = []
  for i, j, k in np.ndindex(1, 2, 3):
    x, y = (m[i : i + 5, j : j + 5, k : k + 5].ravel() for m in (a, b))
    (vx, vxy), (_, vy) = np.cov(x, y)
    top = (2 * x.mean() * y.mean() + 1e-4) * (2 * vxy + 9e-4)
    bottom = (x.mean() ** 2 + y.mean() ** 2 + 1e-4) * (vx + vy + 9e-4)
    values.append(top / bottom)
  assert ours["ssim"] == pytest.approx(np.mean(values), abs=1e-4)


def test_compare_of_flat_zero_and_tiny_maps():
  a = smooth(0)
  zero = checks.compare(a, np.zeros(SHAPE))
  assert math.isnan(zero["ssim"])
  assert math.isnan(zero["spearman"])
  flat = checks.compare(a, np.ones(SHAPE))
  assert math.isnan(flat["spearman"])
  assert -1 <= flat["ssim"] < 1
  tiny = checks.compare(a[:2], a[:2])
  assert math.isnan(tiny["ssim"])
  assert tiny["spearman"] == pytest.approx(1)
  for depth in (3, 4, 8):
    thin = np.resize(a, (depth, 9, 9))
    assert checks.compare(thin, thin)["ssim"] == pytest.approx(1, abs=1e-4)
  with pytest.raises(ValueError, match="one shape"):
    checks.compare(a, a[1:])


def test_a_map_that_became_zero_or_flat_has_changed():
  a = np.random.default_rng(0).random(SHAPE)
  for lost in (np.zeros(SHAPE), np.full(SHAPE, 0.3)):
    assert checks.changed(a, lost) == {"ssim": 0.0, "spearman": 0.0}
    # Of nothing, nothing can be lost.
    undefined = checks.changed(lost, lost)
    assert np.isnan(undefined["spearman"])
  b = a[::-1].copy()
  assert checks.changed(a, b) == checks.compare(a, b)
  thin = checks.changed(a[:2], np.zeros((2, *SHAPE[1:])))
  assert thin["spearman"] == 0
  assert np.isnan(thin["ssim"])


def test_random_pairs_is_the_mean_over_pairs():
  maps = [smooth(i) for i in range(4)]
  every = [
    checks.compare(maps[i], maps[j]) for i in range(4) for j in range(i + 1, 4)
  ]
  ours = checks.random_pairs(maps, pairs=20)
  assert ours["pairs"] == 6
  for name in ("ssim", "spearman"):
    assert ours[name] == pytest.approx(np.mean([r[name] for r in every]))
  few = checks.random_pairs(maps, pairs=2)
  assert few["pairs"] == 2
  assert few != checks.random_pairs(maps, pairs=2, seed=1)
  # A zero map has no likeness; one map has no pair.
  some = checks.random_pairs([*maps[:2], np.zeros(SHAPE)])
  assert some["spearman"] == every[0]["spearman"]
  assert math.isnan(checks.random_pairs(maps[:1])["ssim"])
