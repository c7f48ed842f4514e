import functools
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


def test_the_cascade_goes_the_way_that_it_is_told(resnet):
  _, _, trained, fresh = resnet
  upwards = ORDER[::-1]
  states = dict(checks.cascade(trained, fresh, upwards))
  assert tuple(states) == upwards
  assert states["stem"]["params"]["head"] is trained["params"]["head"]
  assert all(
    part is fresh["params"][name]
    for name, part in states["head"]["params"].items()
  )


def test_smooth_maps_are_the_mean_over_noisy_copies():
  image = 50 * smooth(0)
  seen = []

  def explain(x):
    seen.append(x)
    return x**2

  ours = checks.smooth_maps(
    explain, image, samples=6, noise=0.2, batch_size=4, seed=3
  )
  assert [len(x) for x in seen] == [4, 4]
  rng = np.random.default_rng(3)
  sigma = 0.2 * np.ptp(image)
  copies = [image + sigma * rng.standard_normal(SHAPE) for _ in range(5)]
  expected = np.mean([x**2 for x in [*copies, image]], 0)
  np.testing.assert_allclose(ours, expected)
  alone = checks.smooth_maps(explain, image, samples=1)
  np.testing.assert_allclose(alone, image**2)
  whole = image.astype(np.int16)
  checks.smooth_maps(explain, whole, samples=2)
  assert seen[-1].dtype == np.int16


def test_smooth_mprt_tells_maps_that_follow_the_model():
  image = 100 * smooth(0)
  weights = {seed: smooth(seed + 10) for seed in range(3)}
  states = [("one", weights[1]), ("both", weights[2])]
  options = {"samples": 4, "noise": 0.05}

  def follows(variables, x):
    return x * variables

  found = checks.smooth_mprt(follows, image, weights[0], states, **options)
  assert list(found) == ["one", "both"]
  before, after = (
    checks.smooth_maps(functools.partial(follows, variables), image, **options)
    for variables in (weights[0], weights[2])
  )
  assert found["both"] == checks.changed(before, after)
  ignores = checks.smooth_mprt(
    lambda _, x: np.abs(x), image, weights[0], states, **options
  )
  for name in found:
    assert ignores[name]["spearman"] == pytest.approx(1)
    assert found[name]["spearman"] < 0.95


def test_complexity_is_the_entropy_of_the_histogram():
  # 4 and 4 and 8 of 16 voxels in three of the bins.
  heat = np.repeat([0.0, 1.0, 2.0, 2.0], 4).reshape(4, 2, 2)
  expected = -(2 * 0.25 * math.log(0.25) + 0.5 * math.log(0.5))
  assert checks.complexity(heat) == pytest.approx(expected)
  assert checks.complexity(30 * heat) == pytest.approx(expected)
  assert checks.complexity(np.ones(SHAPE)) == 0
  even = np.arange(100.0).reshape(4, 5, 5)
  assert checks.complexity(even) == pytest.approx(math.log(100))


def test_efficient_mprt_is_the_rise_of_complexity():
  sparse, full = np.zeros(SHAPE), np.random.default_rng(0).random(SHAPE)
  sparse[2, 3, 4:6] = 1, 2
  found = checks.efficient_mprt(sparse, full)
  a, b = checks.complexity(sparse), checks.complexity(full)
  assert found["complexity_rise"] == pytest.approx((b - a) / a)
  assert found["complexity_rise"] > 5
  assert checks.efficient_mprt(full, 3 * full)["complexity_rise"] == 0
  assert -1 <= checks.efficient_mprt(full, sparse)["complexity_rise"] < 0
  flat = checks.efficient_mprt(np.ones(SHAPE), full)
  assert math.isnan(flat["complexity_rise"])


def test_random_logit_tells_maps_that_follow_the_class():
  image = smooth(0)
  parts = [smooth(seed) for seed in range(5)]

  def follows(x, k):
    return x * parts[k]

  found = checks.random_logit(follows, image, target=2, num_classes=5, seed=1)
  other = int(found.pop("other"))
  assert other != 2
  assert found == checks.changed(image * parts[2], image * parts[other])
  drawn = {
    checks.random_logit(follows, image, target=2, num_classes=5, seed=seed)[
      "other"
    ]
    for seed in range(30)
  }
  assert drawn == {0, 1, 3, 4}
  same = checks.random_logit(lambda x, _: x, image, target=1, num_classes=2)
  assert same["other"] == 0
  assert same["spearman"] == pytest.approx(1)
  with pytest.raises(ValueError, match="no other class"):
    checks.random_logit(follows, image, target=0, num_classes=1)


def test_label_randomisation_needs_a_model_that_fits():
  a, b = smooth(0), smooth(1)
  found = checks.label_randomisation(a, b, fit=1.0)
  assert found == checks.changed(a, b) | {"fit": 1.0}
  same = checks.label_randomisation(a, a, fit=0.97)
  assert same["spearman"] == pytest.approx(1)
  failed = checks.label_randomisation(a, b, fit=0.6)
  assert math.isnan(failed["spearman"])
  assert math.isnan(failed["ssim"])
  assert failed["fit"] == 0.6
