import math

import numpy as np
import pytest

from cadjax.explanation import stability

SHAPE = (4, 6, 5)


def image_of(seed=0, dtype=np.float64):
  return (100 * np.random.default_rng(seed).normal(size=SHAPE)).astype(dtype)


def draws(image, radius, samples, seed=0):
  rng = np.random.default_rng(seed)
  return [image + rng.uniform(-radius, radius, SHAPE) for _ in range(samples)]


def test_max_sensitivity_is_its_definition():
  image = image_of()

  def explain(x):
    return np.abs(x) ** 1.5

  for samples, batch_size in ((1, 1), (6, 4), (7, 8)):
    ours = stability.max_sensitivity(
      explain, image, radius=30, samples=samples, batch_size=batch_size
    )
    first = explain(image)
    worst = max(
      np.linalg.norm(explain(near) - first)
      for near in draws(image, 30, samples)
    )
    assert ours["max_sensitivity"] == pytest.approx(
      worst / np.linalg.norm(first)
    )


def constant(x):
  return np.ones_like(x)


def test_maps_that_do_not_change_are_perfectly_stable():
  image = image_of()
  assert stability.max_sensitivity(constant, image, radius=9) == {
    "max_sensitivity": 0
  }
  found = stability.relative_input_stability(constant, image, radius=9)
  assert found == {"relative_input_stability": 0, "kept": 1}
  # Neither does the scale of a map matter.
  one, other = (
    stability.max_sensitivity(lambda x, k=k: k * x**2, image, radius=9)
    for k in (1, 1000)
  )
  assert one["max_sensitivity"] == pytest.approx(other["max_sensitivity"])


def test_unrelated_maps_are_a_square_root_of_two_apart():
  rng = np.random.default_rng(0)

  def noise(x):
    return rng.normal(size=(len(x), 3000))

  ours = stability.max_sensitivity(noise, image_of(), radius=1)
  assert ours["max_sensitivity"] == pytest.approx(math.sqrt(2), abs=0.1)


def test_the_image_as_its_map_changes_as_much_as_itself():
  image = image_of()
  found = stability.relative_input_stability(lambda x: x, image, radius=9)
  assert found["relative_input_stability"] == pytest.approx(1)
  # The square changes twice as much, as long as the change is small.
  small = stability.relative_input_stability(
    lambda x: x**2, image, radius=1e-4, floor=0
  )
  assert small["relative_input_stability"] == pytest.approx(2, abs=0.01)


def test_relative_input_stability_is_equation_2_without_a_floor():
  image = image_of() + 700

  def explain(x):
    return np.exp(x / 500) + 1

  ours = stability.relative_input_stability(
    explain, image, radius=50, floor=0, origin=-200, samples=5, batch_size=2
  )
  first = explain(image)
  ratios = [
    np.linalg.norm((first - explain(near)) / first)
    / np.linalg.norm((image - near) / (image + 200))
    for near in draws(image, 50, 5)
  ]
  assert ours["relative_input_stability"] == pytest.approx(max(ratios))


def test_zeros_of_a_map_do_not_make_it_infinitely_unstable():
  image = np.abs(image_of())

  def explain(x):
    heat = np.zeros_like(x)
    heat[:, 0] = 1
    heat[:, 1] = 1e-3 * x[:, 1] / 100  # Where the map of the image is small.
    return heat

  floored = stability.relative_input_stability(explain, image, radius=5)
  assert floored["relative_input_stability"] < 0.1


def test_images_of_another_decision_do_not_count():
  image = np.full(SHAPE, 1.0)

  def score(x):  # Decides by one voxel, which is positive as often as not.
    return x[:, 0, 0, 0] - 1 + 1e-9

  found = stability.relative_input_stability(
    lambda x: x, image, radius=0.5, score=score, samples=60
  )
  near = draws(image, 0.5, 60)
  kept = np.mean([x[0, 0, 0] > 1 for x in near])
  assert 0.3 < kept < 0.7
  assert found["kept"] == pytest.approx(kept)
  none = stability.relative_input_stability(
    lambda x: x, image, radius=0.5, score=lambda x: x[:, 0, 0, 0] == 1
  )
  assert math.isnan(none["relative_input_stability"])
  assert none["kept"] == 0


def test_zero_maps_are_undefined_and_batches_are_full():
  seen = []

  def zero(x):
    seen.append((x.shape[0], x.dtype))
    return np.zeros_like(x)

  image = image_of(dtype=np.int16)
  found = stability.max_sensitivity(
    zero, image, radius=5, samples=6, batch_size=4
  )
  assert math.isnan(found["max_sensitivity"])
  assert seen == [(4, np.int16)] * 2
  found = stability.relative_input_stability(zero, image, radius=5)
  assert all(math.isnan(value) for value in found.values())
