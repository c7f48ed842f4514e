"""augment: exact identities, alignment, directions, and its interface."""

import functools
import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from cadjax.core import lookup
from cadjax.data import augment
from data_prep.tissues import Tissue

KEY = jax.random.key(3)
SHAPES = [(20, 30), (10, 20, 30)]
ALWAYS = {
  "spatial": {
    "probability": 1.0,
    "rotation_degrees": 30.0,
    "shear": 0.1,
    "elastic_probability": 1.0,
    "elastic_mm": 2.0,
  },
  **{
    name: {"probability": 1.0}
    for name in (
      *("tissues", "blur", "noise", "intensity", "gamma", "cutout"),
      "surroundings",
    )
  },
}
# Drawn, but with a range that leaves nothing to change.
NEUTRAL = {
  "spatial": {
    "probability": 1.0,
    "rotation_degrees": 0.0,
    "scale": 0.0,
    "translation": 0.0,
    "elastic_probability": 1.0,
    "elastic_mm": 0.0,
  },
  "blur": {"probability": 1.0, "sigma": 0.0},
  "noise": {"probability": 1.0, "sigma": 0.0},
  "cutout": {"probability": 1.0, "size": 0.0},
}
NEVER = {name: {"probability": 0.0} for name in augment.AUGMENTATIONS}
NEVER["spatial"] |= {"elastic_probability": 1e-9}


@pytest.fixture(autouse=True)
def _no_rank_promotion():
  with jax.numpy_rank_promotion("raise"):
    yield


def example(shape, seed=0):
  """A smooth image in [0, 1] and the mask of its bright half."""
  rng = np.random.default_rng(seed)
  image = ndimage.gaussian_filter(rng.standard_normal(shape), 2)
  image = (image - image.min()) / np.ptp(image)
  mask = (image > 0.5).astype(np.uint8)
  return jnp.asarray(image[..., None], jnp.float32), jnp.asarray(mask)


def blob(shape, at):
  image = np.zeros(shape, np.float32)
  image[at] = 1
  return jnp.asarray(ndimage.gaussian_filter(image, 1.0)[..., None])


def centre_of(image):
  return np.array(ndimage.center_of_mass(np.asarray(image)[..., 0]))


def turned(image, degrees, spacing):
  """The image turned by known angles, through the module's own resample."""
  space = image.shape[:-1]
  matrix = augment._rotation(len(space), jnp.asarray(degrees, jnp.float32)).T
  coordinates = augment._affine_coordinates(
    space, spacing, matrix, jnp.zeros(len(space))
  )
  moved = jax.scipy.ndimage.map_coordinates(image[..., 0], coordinates, order=1)
  return moved[..., None]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("options", [{}, NEVER, NEUTRAL])
def test_nothing_to_do_changes_nothing(shape, options):
  image, mask = example(shape)
  run = jax.jit(lambda k: augment.augment(k, image, mask, options=options))
  for seed in range(3):
    new_image, new_mask = run(jax.random.key(seed))
    np.testing.assert_array_equal(new_image, image)
    np.testing.assert_array_equal(new_mask, mask)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ALWAYS)
def test_each_one_changes_the_image_and_keeps_its_kind(shape, name):
  image, mask = example(shape)
  new_image, new_mask = augment.augment(
    KEY, image, mask, options={name: ALWAYS[name]}
  )
  assert (new_image.shape, new_image.dtype) == (image.shape, image.dtype)
  assert (new_mask.shape, new_mask.dtype) == (mask.shape, mask.dtype)
  assert float(jnp.abs(new_image - image).max()) > 1e-4
  assert new_image.min() >= 0
  assert new_image.max() <= 1
  assert set(np.unique(new_mask)) <= {0, 1}
  if name != "spatial":
    np.testing.assert_array_equal(new_mask, mask)


def test_keys_decide():
  image, mask = example(SHAPES[1])
  run = jax.jit(lambda key: augment.augment(key, image, mask, options=ALWAYS))
  a, b, c = run(KEY), run(KEY), run(jax.random.key(4))
  np.testing.assert_array_equal(a[0], b[0])
  np.testing.assert_array_equal(a[1], b[1])
  assert float(jnp.abs(a[0] - c[0]).max()) > 0.05


def test_tissues_are_drawn_anew_flat_and_each_on_its_own():
  mask = jnp.asarray(
    np.repeat(np.arange(4), 8)[:, None, None] * np.ones((32, 16, 16)), jnp.uint8
  )
  image = jnp.zeros((*mask.shape, 1))
  options = {"probability": 1.0, "texture": 0.0, "softness": 0.0, "bias": 0.0}
  fn = jax.jit(lambda key: augment.tissues(key, image, mask, **options)[0])
  means = []
  for seed in range(40):
    drawn = np.asarray(fn(jax.random.key(seed)))[..., 0]
    each = [drawn[np.asarray(mask) == number] for number in range(4)]
    assert max(np.ptp(values) for values in each) < 1e-5
    means.append([values.mean() for values in each])
  means = np.array(means)
  # Uniform in [0, 1], and no tissue tells the value of another.
  assert 0.2 < means.std(0).min() < means.std(0).max() < 0.4
  correlation = np.corrcoef(means.T)[np.triu_indices(4, 1)]
  assert np.abs(correlation).max() < 0.5


def test_tissues_are_shifted_where_they_are_not_drawn_anew():
  image, mask = example(SHAPES[1])
  image = 0.4 + 0.2 * image
  options = {"probability": 0.0, "shift_probability": 1.0, "shift": 0.1}
  moved, same = augment.tissues(KEY, image, mask, **options)
  np.testing.assert_array_equal(same, mask)
  change = np.asarray(moved - image)[..., 0]
  for number in (0, 1):
    values = change[np.asarray(mask) == number]
    assert np.ptp(values) < 1e-6
    assert 0 < abs(values[0]) <= 0.1
  with pytest.raises(lookup.ConfigError, match="needs masks"):
    augment.tissues(KEY, image, None)


def test_surroundings_go_and_the_heart_stays():
  mask = np.zeros((20, 30, 40), np.uint8)
  mask[7:13, 10:20, 12:28] = Tissue.LEFT_VENTRICLE
  image = jnp.full((*mask.shape, 1), 0.3)
  run = jax.jit(
    lambda key: augment.surroundings(
      key, image, jnp.asarray(mask), probability=1.0, reach=2.0
    )[0]
  )
  sizes = set()
  for seed in range(5):
    seen = np.asarray(run(jax.random.key(seed)))[..., 0]
    kept = seen == np.float32(0.3)
    assert kept[8:12, 11:19, 13:27].all()
    assert not kept[0].any()
    assert np.ptp(seen[~kept]) == 0
    sizes.add(int(kept.sum()))
  assert len(sizes) == 5
  with pytest.raises(lookup.ConfigError, match="needs masks"):
    augment.surroundings(KEY, image, None)


def test_one_more_does_not_change_what_the_others_draw():
  image, _ = example(SHAPES[0])
  options = {"spatial": ALWAYS["spatial"], "cutout": ALWAYS["cutout"]}
  alone, _ = augment.augment(KEY, image, None, options=options)
  more, _ = augment.augment(
    KEY, image, None, options={"noise": {"sigma": 0.0}} | options
  )
  np.testing.assert_array_equal(alone, more)


def test_a_vmapped_example_equals_it_alone():
  images = jnp.stack([example(SHAPES[0], seed)[0] for seed in range(3)])
  masks = jnp.stack([example(SHAPES[0], seed)[1] for seed in range(3)])
  keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(3))

  def run(key, image, mask):
    return augment.augment(key, image, mask, options=ALWAYS)

  together = jax.jit(jax.vmap(run))(keys, images, masks)
  alone = jax.jit(run)(keys[1], images[1], masks[1])
  np.testing.assert_allclose(together[0][1], alone[0], atol=1e-5)
  assert np.mean(together[1][1] != alone[1]) < 1e-3


@pytest.mark.parametrize("shape", [(40, 60), (24, 40, 60)])
def test_image_and_mask_stay_aligned(shape):
  _, mask = example(shape)
  image = mask[..., None].astype(jnp.float32)
  options = {"spatial": ALWAYS["spatial"] | {"flip": 0.5, "scale": 0.3}}
  run = jax.jit(lambda key: augment.augment(key, image, mask, options=options))
  for seed in range(4):
    new_image, new_mask = run(jax.random.key(seed))
    assert 0.05 < new_mask.mean() < 0.95
    sure = jnp.abs(new_image[..., 0] - 0.5) > 0.45  # away from the borders
    assert sure.mean() > 0.3
    wrong = ((new_image[..., 0] > 0.5) != new_mask)[sure]
    assert wrong.mean() < 1e-3


def test_labels_are_never_blended():
  _, mask = example(SHAPES[1])
  labels = (4 * mask).astype(jnp.int32)
  image = mask[..., None].astype(jnp.float32)
  _, moved = augment.augment(KEY, image, labels, options=ALWAYS)
  assert set(np.unique(moved)) == {0, 4}


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_certain_flip_mirrors_one_axis_of_both(axis):
  image, mask = example(SHAPES[1])
  flip = [0.0, 0.0, 0.0]
  flip[axis] = 1.0
  moved = augment.spatial(KEY, image, mask, flip=flip, probability=0.0)
  np.testing.assert_array_equal(moved[0], jnp.flip(image, axis))
  np.testing.assert_array_equal(moved[1], jnp.flip(mask, axis))


def test_reordered_axes_and_flips_are_the_symmetries_of_a_cube():
  image = jnp.arange(8.0).reshape(2, 2, 2, 1) / 8
  mask = (8 * image[..., 0]).astype(jnp.uint8)

  @jax.jit
  @jax.vmap
  def turn(key):
    options = {"reorder": 1.0, "flip": 0.5, "probability": 0.0}
    return augment.spatial(key, image, mask, **options)

  images, masks = turn(jax.random.split(KEY, 2000))
  np.testing.assert_array_equal(8 * images[..., 0], masks)
  found, counts = np.unique(masks.reshape(2000, 8), axis=0, return_counts=True)
  assert len(found) == 48
  assert counts.min() > 15  # Of 42 expected.
  # Neighbours stay neighbours: no corner moves away from another one.
  corners = np.array(list(np.ndindex(2, 2, 2)))
  apart = np.abs(corners[:, None] - corners).sum(-1)
  for order in found:
    place = corners[np.argsort(order)]
    np.testing.assert_array_equal(np.abs(place[:, None] - place).sum(-1), apart)


def test_reorder_takes_its_probability():
  image, _ = example((6, 6))

  @jax.jit
  @jax.vmap
  def same(key):
    moved, _ = augment.spatial(key, image, None, reorder=0.4, probability=0.0)
    return jnp.array_equal(moved, image)

  # One of the two orders of two axes changes nothing.
  share = np.mean(same(jax.random.split(KEY, 1000)))
  assert share == pytest.approx(1 - 0.4 / 2, abs=0.04)


def test_only_cubes_are_reordered():
  image, _ = example(SHAPES[1])
  with pytest.raises(lookup.ConfigError, match="have 10x20x30 voxels"):
    augment.spatial(KEY, image, None, reorder=1.0)


def test_no_default_flips():
  # A mirrored thorax is another anatomy.
  image, _ = example(SHAPES[1])
  for seed in range(8):
    moved, _ = augment.spatial(
      jax.random.key(seed), image, None, probability=0.0
    )
    np.testing.assert_array_equal(moved, image)


def test_a_quarter_turn_about_each_axis_turns_the_right_way():
  shape, spacing = (21, 21, 21), (1.0, 1.0, 1.0)
  # About D the blob at +H goes to +W; about H, +D to +W; about W, +D to +H.
  for degrees, start, end in [
    ((90, 0, 0), (10, 16, 10), (10, 10, 16)),
    ((0, 90, 0), (16, 10, 10), (10, 10, 16)),
    ((0, 0, 90), (16, 10, 10), (10, 16, 10)),
  ]:
    moved = turned(blob(shape, start), degrees, spacing)
    np.testing.assert_allclose(centre_of(moved), end, atol=0.02)
  moved = turned(blob((21, 21), (16, 10)), (90, 0, 0), (1.0, 1.0))
  np.testing.assert_allclose(centre_of(moved), (10, 16), atol=0.02)


def test_rotations_are_rigid_in_mm_on_an_anisotropic_grid():
  # 6 mm along H are 3 voxels; after a quarter turn about D, 6 along W.
  spacing = (1.0, 2.0, 1.0)
  moved = turned(blob((9, 21, 31), (4, 13, 15)), (90, 0, 0), spacing)
  np.testing.assert_allclose(centre_of(moved), (4, 10, 21), atol=0.05)


def test_rotation_agrees_with_scipy():
  image, _ = example((31, 41))
  ours = turned(image, (25.0, 0, 0), (1.0, 1.0))
  theirs = ndimage.rotate(
    np.asarray(image)[..., 0], 25.0, axes=(0, 1), reshape=False, order=1
  )
  inner = (slice(8, -8), slice(8, -8))
  np.testing.assert_allclose(ours[..., 0][inner], theirs[inner], atol=1e-4)


def test_spacing_changes_what_a_drawn_rotation_does():
  image, _ = example(SHAPES[1])
  runs = [
    augment.spatial(
      KEY, image, None, probability=1.0, spacing_mm=spacing, scale=0.0
    )[0]
    for spacing in [1.0, (2.0, 2.0, 2.0), (0.5, 1.0, 1.0)]
  ]
  np.testing.assert_allclose(runs[0], runs[1], atol=1e-5)
  assert float(jnp.abs(runs[0] - runs[2]).max()) > 0.01


def test_translation_is_bounded_by_its_fraction_of_each_axis():
  start = (10, 20, 30)
  image = blob((21, 41, 61), start)

  def move(key):
    return augment.spatial(
      key,
      image,
      None,
      probability=1.0,
      rotation_degrees=0.0,
      scale=0.0,
      translation=(0.0, 0.1, 0.2),
    )[0]

  moved = jax.vmap(move)(jax.random.split(KEY, 12))
  shifts = np.array([centre_of(each) - start for each in moved])
  largest = np.abs(shifts).max(0)
  assert largest[0] < 1e-3
  assert 2 < largest[1] <= 4.1 + 1e-2
  assert 6 < largest[2] <= 12.2 + 1e-2


def test_what_comes_from_outside_is_fill():
  image, mask = jnp.full((10, 20, 30, 1), 0.5), jnp.ones((10, 20, 30), int)
  moved, moved_mask = augment.spatial(
    KEY, image, mask, probability=1.0, translation=0.3, fill=0.25
  )
  assert {0.25, 0.5} <= set(np.unique(np.asarray(moved).round(5)))
  outside = jnp.abs(moved[..., 0] - 0.25) < 1e-5
  assert outside.any()
  np.testing.assert_array_equal(moved_mask[outside], 0)


def test_elastic_moves_by_about_its_size():
  space = (48, 64, 80)
  bend = np.array(augment._draw_elastic(KEY, space, 1.0, 1.5, 4))
  assert bend.shape == (3, *space)
  assert 0.5 < bend.std() < 2.5
  # Smooth: neighbours move together, so that nothing is torn or folded.
  for axis in (1, 2, 3):
    assert np.abs(np.diff(bend, axis=axis)).max() < 1.0


def test_blur_is_scipys_gaussian_away_from_the_edges():
  image, _ = example((24, 40))
  sharp = np.random.default_rng(0).random((24, 40)).astype(np.float32)
  _, drawn = augment._draw(KEY, 1.0, 0.0, 1.5)
  ours, _ = augment.blur(
    KEY, jnp.asarray(sharp[..., None]), None, probability=1.0, sigma=1.5
  )
  theirs = ndimage.gaussian_filter(sharp, float(drawn), truncate=8.0)
  inner = (slice(8, -8), slice(8, -8))
  np.testing.assert_allclose(ours[..., 0][inner], theirs[inner], atol=1e-4)
  flat, _ = augment.blur(KEY, jnp.full_like(image, 0.7), None, probability=1.0)
  np.testing.assert_allclose(flat, 0.7, atol=1e-5)


def test_noise_has_at_most_its_sigma_and_no_bias():
  image = jnp.full((10, 20, 30, 1), 0.5)
  keys = jax.random.split(KEY, 40)
  run = jax.vmap(
    lambda key: augment.noise(key, image, None, probability=1.0, sigma=0.05)[0]
  )
  differences = np.asarray(run(keys) - image[None])
  sigmas = differences.std(axis=(1, 2, 3, 4))
  assert 0.04 < sigmas.max() < 0.0515
  assert sigmas.min() < 0.01
  assert abs(differences.mean()) < 1e-3


def test_intensity_and_gamma_keep_the_order_of_tissues():
  ramp = jnp.linspace(0.0, 1.0, 101).reshape(1, 101, 1)
  keys = jax.random.split(KEY, 20)
  for fn in (augment.intensity, augment.gamma):
    changed = jax.vmap(
      lambda key, fn=fn: fn(key, ramp, None, probability=1.0)[0]
    )(keys)
    assert np.all(np.diff(changed, axis=2) >= 0)
    assert float(jnp.std(changed[:, 0, 50, 0])) > 0.01
  ends = changed[:, 0, jnp.array([0, -1]), 0]
  np.testing.assert_allclose(ends, [[0.0, 1.0]] * 20, atol=1e-6)


def test_intensity_shifts_by_at_most_its_fraction_of_the_window():
  image = jnp.full((4, 5, 1), 0.5)
  run = jax.vmap(
    lambda key: augment.intensity(
      key, image, None, probability=1.0, shift=0.1, scale=0.3
    )[0]
  )
  middle = run(jax.random.split(KEY, 60))[:, 0, 0, 0]
  assert 0.4 <= middle.min() < 0.42
  assert 0.58 < middle.max() <= 0.6


def test_probabilities_are_frequencies():
  image, _ = example((6, 7, 8))
  keys = jax.random.split(KEY, 400)
  for name in ("spatial", "noise", "gamma"):
    fn = functools.partial(augment.AUGMENTATIONS[name], probability=0.3)
    moved = jax.jit(jax.vmap(lambda key, fn=fn: fn(key, image, None)[0]))(keys)
    changed = jnp.any(moved != image[None], axis=(1, 2, 3, 4))
    assert 0.22 < changed.mean() < 0.38, name


def test_cutout_removes_boxes_of_its_size():
  image = jnp.full((40, 60, 80, 1), 0.5)
  cut, _ = augment.cutout(
    KEY, image, None, probability=1.0, size=0.25, fill=1.0
  )
  gone = np.asarray(cut[..., 0] == 1.0)
  extent = [np.ptp(np.nonzero(gone)[axis]) + 1 for axis in range(3)]
  assert np.prod(extent) == gone.sum()  # one solid box
  assert all(e <= n * 0.25 + 1 for e, n in zip(extent, gone.shape, strict=True))
  np.testing.assert_array_equal(cut[..., 0][~gone], 0.5)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"nois": {}}, "unknown augmentation 'nois'; did you mean 'noise'"),
    ({"noise": {"sigm": 1}}, "'sigm'; did you mean 'sigma'"),
    ({"spatial": {"flip": (0.5,)}}, "has 1 values; one per axis are 3"),
  ],
)
def test_unknown_options_are_told(options, message):
  image, mask = example(SHAPES[1])
  with pytest.raises(lookup.ConfigError, match=message):
    augment.augment(KEY, image, mask, options=options)


def test_every_public_function_has_the_interface():
  public = {
    name: fn
    for name, fn in inspect.getmembers(augment, inspect.isfunction)
    if fn.__module__ == augment.__name__ and not name.startswith("_")
  }
  assert set(public) == {*augment.AUGMENTATIONS, "augment"}
  for name, fn in public.items():
    parameters = inspect.signature(fn).parameters
    assert list(parameters)[:3] == ["key", "image", "mask"], name
    for parameter in list(parameters.values())[3:]:
      assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, name
      assert f"{parameter.name}:" in fn.__doc__, (name, parameter.name)
    hints = typing.get_type_hints(fn)
    assert set(hints) == {*parameters, "return"}, name
