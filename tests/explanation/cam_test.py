"""cam: exact oracles, planted models, finite differences, places of cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.special
from flax import linen as nn
from tiny_models import Fcn, draw_variables, enable_x64

from cadjax import models
from cadjax.core import lookup
from cadjax.explanation import cam

METHODS = list(cam.METHODS)
SPACE = {2: (40, 24), 3: (32, 16, 24)}


def resnet(**config):
  """Small, and with the convolutions that compile fastest."""
  return models.get_model({"depth": 10, "width": 4, "conv": "lax"} | config)


def image(ndim=3, batch=2, space=None, seed=1):
  rng = np.random.default_rng(seed)
  shape = (batch, *(space or SPACE[ndim]), 1)
  return jnp.asarray(rng.random(shape, np.float32))


# --- combine ------------------------------------------------------------


def random_pair(space=(5, 6, 7), channels=4, batch=2, seed=0):
  rng = np.random.default_rng(seed)
  shape = (batch, *space, channels)
  return rng.standard_normal(shape), rng.standard_normal(shape)


def by_hand(method, a, g, window=3):
  """Loops over cells and channels, in float64."""
  space = a.shape[:-1]
  total = np.zeros(space)
  for k in range(a.shape[-1]):
    for cell in np.ndindex(space):
      if method == "gradcam":
        weight = g[..., k].mean()
      elif method == "hirescam":
        weight = g[(*cell, k)]
      elif method == "layercam":
        weight = max(g[(*cell, k)], 0)
      elif method == "xrescam":
        block = tuple(
          slice(c // window * window, c // window * window + window)
          for c in cell
        )
        weight = g[..., k][block].mean()
      elif method == "respondcam":
        weight = (a[..., k] * g[..., k]).sum() / a[..., k].sum()
      elif method == "saliency_tubes":
        weight = g[..., k].sum()
      else:
        square, cube = g[..., k] ** 2, g[..., k] ** 3
        alpha = square / (2 * square + a[..., k].sum() * cube)
        weight = (alpha * np.maximum(g[..., k], 0)).sum()
      total[cell] += weight * a[(*cell, k)]
  if method == "saliency_tubes":
    return total - total.min()
  return np.maximum(total, 0)


@pytest.mark.parametrize("space", [(5, 6), (4, 3, 5)])
@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_its_formula(method, space):
  a, g = random_pair(space)
  a, g = np.abs(a), g + 0.3  # As behind a ReLU; something speaks for it.
  ours = cam.combine(method, jnp.asarray(a), jnp.asarray(g), window=3)
  assert ours.dtype == jnp.float32
  assert ours.shape == (2, *space)
  for i in range(2):
    expected = by_hand(method, a[i], g[i])
    assert expected.max() > 0
    np.testing.assert_allclose(ours[i], expected, rtol=1e-4, atol=1e-4)


def test_a_respondcam_sums_to_gradient_times_activation():
  """The authors' sum-to-score property, of what they have no ReLU for."""
  a, g = random_pair((5, 6, 7), channels=3)
  a = np.abs(a)
  a[..., 1] = 0  # A dead channel has no weight, and no division by 0.
  whole = cam.combine("respondcam", jnp.asarray(a), jnp.asarray(g), relu=False)
  np.testing.assert_allclose(
    whole.sum((1, 2, 3)), (a * g).sum((1, 2, 3, 4)), rtol=1e-4
  )


def test_saliency_tubes_keep_what_speaks_against():
  a = jnp.asarray([[[1.0], [2.0], [4.0]]])[None]
  g = -jnp.ones_like(a)
  np.testing.assert_allclose(
    cam.combine("saliency_tubes", a, g)[0, 0], [9.0, 6.0, 0.0]
  )
  np.testing.assert_array_equal(cam.combine("gradcam", a, g), 0)


def test_the_two_ends_of_xrescam():
  a, g = random_pair((7, 6, 5))
  ends = {1: "hirescam", 7: "gradcam", 100: "gradcam"}
  for window, same in ends.items():
    np.testing.assert_allclose(
      cam.combine("xrescam", jnp.asarray(a), jnp.asarray(g), window=window),
      cam.combine(same, jnp.asarray(a), jnp.asarray(g)),
      rtol=1e-4,
      atol=1e-5,
    )
  between = cam.combine("xrescam", jnp.asarray(a), jnp.asarray(g), window=2)
  for same in ends.values():
    other = cam.combine(same, jnp.asarray(a), jnp.asarray(g))
    assert np.abs(between - other).max() > 0.1


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_small_and_large_gradients_neither_vanish_nor_overflow(scale):
  a, g = random_pair(seed=1)
  a = jnp.abs(a)
  for method in METHODS:
    plain = cam.normalise(cam.combine(method, a, jnp.asarray(g)))
    scaled = cam.normalise(cam.combine(method, a, jnp.asarray(g * scale)))
    assert np.isfinite(scaled).all(), method
    assert scaled.max() == pytest.approx(1), method
    if method != "gradcam++":  # Whose alpha is no constant of the scale.
      np.testing.assert_allclose(scaled, plain, rtol=1e-4, atol=1e-5)


def test_unknown_names_are_told_with_the_nearest():
  a = jnp.ones((1, 2, 2, 1))
  with pytest.raises(lookup.UnknownName, match="mean 'gradcam'"):
    cam.combine("grad-cam", a, a)
  with pytest.raises(lookup.ConfigError, match="window of xrescam is 0"):
    cam.combine("xrescam", a, a, window=0)
  with pytest.raises(lookup.UnknownName, match="unknown score 'logits'"):
    cam.make_explain(resnet(), score="logits")
  with pytest.raises(lookup.UnknownName, match="unknown explanation method"):
    cam.make_explain(resnet(), methods=("x",))
  explain = cam.make_explain(resnet(ndim=2), layers=("stag4",))
  variables = draw_variables(resnet(ndim=2), 2)
  with pytest.raises(lookup.UnknownName, match="layer 'stag4'.*'stage4'"):
    explain(variables, image(2), 1)


def test_zero_maps_stay_zero():
  zero = jnp.zeros((2, 3, 4, 5, 6))
  for method in METHODS:
    maps = cam.combine(method, zero, zero)
    shown = cam.to_image(maps, (6, 8, 10), (2, 2, 2))
    np.testing.assert_array_equal(shown, 0)
  # Against the score everywhere: ReLU leaves nothing.
  negative = cam.combine("hirescam", zero + 1, zero - 1)
  np.testing.assert_array_equal(cam.normalise(negative), 0)


def test_normalising_is_by_example():
  maps = jnp.asarray([[[1.0, 4.0]], [[0.0, 0.0]], [[0.5, 0.25]]])
  np.testing.assert_allclose(
    cam.normalise(maps), [[[0.25, 1]], [[0, 0]], [[1, 0.5]]]
  )


# --- upsample -------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32])
def test_a_planted_cell_comes_back_at_its_voxel(stride):
  shape = (70, 33, 64)
  cells = [-(-n // stride) for n in shape]
  rng = np.random.default_rng(stride)
  for _ in range(3):
    cell = tuple(int(rng.integers(n)) for n in cells)
    maps = np.zeros((1, *cells), np.float32)
    maps[(0, *cell)] = 1
    up = cam.upsample(jnp.asarray(maps), shape, (stride,) * 3)[0]
    peak = np.unravel_index(np.argmax(up), shape)
    assert peak == tuple(c * stride for c in cell)
    assert up[peak] == 1


@pytest.mark.parametrize(
  ("shape", "strides"), [((17, 23), (4, 8)), ((9, 16, 21), (1, 2, 4))]
)
def test_upsampling_is_scipys_at_aligned_places(shape, strides):
  rng = np.random.default_rng(0)
  cells = [-(-n // s) for n, s in zip(shape, strides, strict=True)]
  maps = rng.random((2, *cells), np.float32)
  ours = cam.upsample(jnp.asarray(maps), shape, strides)
  places = np.meshgrid(
    *[np.arange(n) / s for n, s in zip(shape, strides, strict=True)],
    indexing="ij",
  )
  for i in range(2):
    expected = scipy.ndimage.map_coordinates(
      maps[i], places, order=1, mode="nearest"
    )
    np.testing.assert_allclose(ours[i], expected, atol=1e-6)


def test_strides_of_the_layers():
  strides = cam.layer_strides(resnet(output_stride=16))
  expected = {"stem": 2, "stage1": 4, "stage2": 8, "stage3": 16, "stage4": 16}
  assert strides == {name: (s,) * 3 for name, s in expected.items()}
  assert list(strides) == list(expected)  # From the image to the logits.
  assert cam.layer_strides(resnet(ndim=2))["stage4"] == (32, 32)
  assert cam.layer_strides(Fcn())["bottleneck"] == (2, 2, 2)


def test_the_slices_of_a_2d_model_are_planes_of_the_volume():
  flat, deep = (cam.volume_strides(resnet(ndim=ndim)) for ndim in (2, 3))
  assert flat["stage2"] == (1, 8, 8)
  assert deep["stage2"] == (8, 8, 8)
  assert list(flat) == list(deep)


def test_cells_cover_the_image_and_whole_cells_fit_every_map():
  strides = {"a": (2, 4, 1), "b": (6, 4, 3)}
  assert cam.cells((13, 16, 9), strides["b"]) == (3, 4, 3)
  whole = cam.whole_cells(strides)
  assert whole == (6, 4, 3)
  for each in strides.values():
    assert cam.cells(whole, each) == tuple(np.array(whole) // each)


def test_a_segmenter_is_known_by_its_logits():
  assert [cam.is_segmenter(model) for model in (Fcn(), resnet())] == [
    True,
    False,
  ]
  assert [cam.num_classes(model) for model in (Fcn(), resnet())] == [3, 2]


# --- explain --------------------------------------------------------------


def compiled(model, **options):
  return jax.jit(cam.make_explain(model, **options))


@pytest.mark.parametrize("ndim", [2, 3])
def test_at_the_last_stage_gradcam_is_hirescam_is_cam(ndim):
  """Zhou et al. 2016: the weights of the Dense layer, behind global pooling."""
  model = resnet(ndim=ndim)
  variables = draw_variables(model, ndim, seed=1)
  x = image(ndim, space=(64, 48, 40)[:ndim])
  explain = compiled(model, methods=("gradcam", "hirescam"), score="logit")
  own, features = model.apply(variables, x, train=False)
  last = features["stage4"]
  assert min(last.shape[1:-1]) > 1
  every = jnp.maximum(last @ variables["params"]["head"]["kernel"], 0)
  target = int(every.max(tuple(range(ndim + 1))).argmax())
  oracle = every[..., target]
  assert oracle.max() > 0
  logits, maps = explain(variables, x, target)
  np.testing.assert_allclose(logits, own, rtol=1e-4, atol=1e-5)
  for method in maps:
    np.testing.assert_allclose(
      cam.normalise(maps[method]["stage4"]),
      cam.normalise(oracle),
      atol=1e-5,
      err_msg=method,
    )
  # Elsewhere they differ.
  differ = cam.normalise(maps["gradcam"]["stage2"]) - cam.normalise(
    maps["hirescam"]["stage2"]
  )
  assert jnp.abs(differ).max() > 0.05


def test_maps_of_all_layers_cost_one_pass():
  """Counted in the program: convolutions of one forward and backward pass."""
  model = resnet(ndim=2)
  variables = draw_variables(model, 2)

  def convolutions(**options):
    explain = cam.make_explain(model, **options)
    jaxpr = jax.make_jaxpr(explain)(variables, image(2), 1)
    return str(jaxpr).count("conv_general_dilated[")

  every = convolutions(methods=METHODS)
  forward = str(
    jax.make_jaxpr(lambda x: model.apply(variables, x, train=False))(image(2))
  ).count("conv_general_dilated[")
  # Back to the stem's map: all but the stem's own.
  assert every == 2 * forward - 1
  assert convolutions(methods=METHODS, layers=("stage4",)) == forward


def test_nothing_is_compiled_twice_for_one_shape():
  model = resnet(ndim=2)
  variables = draw_variables(model, 2)
  explain = compiled(model)
  for target in (0, 1):
    explain(variables, image(2, seed=target), jnp.asarray([target, 1]))
  assert explain._cache_size() == 1


def test_examples_do_not_mix_and_have_their_own_targets():
  model = resnet(ndim=2)
  variables = draw_variables(model, 2)
  x = image(2, batch=2, space=(64, 48))
  explain = compiled(model, methods=METHODS)
  _, both = explain(variables, x, jnp.asarray([0, 1]))
  for i in range(2):
    _, alone = explain(variables, x[i : i + 1], i)
    for method in METHODS:
      for layer, value in alone[method].items():
        np.testing.assert_allclose(
          both[method][layer][i],
          value[0],
          rtol=1e-3,
          atol=1e-4 * float(value.max()) + 1e-9,
          err_msg=f"{method} {layer}",
        )


def test_a_model_in_bfloat16_is_explained_in_float32():
  rough, exact = resnet(ndim=2, dtype="bfloat16"), resnet(ndim=2)
  variables = draw_variables(exact, 2)
  (_, a), (_, b) = (
    compiled(model, methods=("hirescam",))(variables, image(2), 1)
    for model in (rough, exact)
  )
  for layer in b["hirescam"]:
    assert a["hirescam"][layer].dtype == jnp.float32
    np.testing.assert_array_equal(a["hirescam"][layer], b["hirescam"][layer])


def test_remat_and_the_mode_of_convolution_are_kept():
  model = resnet(ndim=2, remat=True, conv="exact")
  kept = cam.in_float32(model.clone(dtype=jnp.bfloat16))
  assert (kept.remat, kept.conv, kept.dtype) == (True, "exact", jnp.float32)


def test_the_margin_is_the_log_odds_of_the_softmax():
  logits = jnp.asarray([[1.0, 4.0], [2.0, -1.0]])
  np.testing.assert_allclose(cam.scores("margin", logits, 1), [3, -3])
  three = jnp.asarray([[1.0, 2.0, 6.0]])
  for number, p in enumerate(scipy.special.softmax(three[0])):
    np.testing.assert_allclose(
      cam.scores("margin", three, number)[0], np.log(p / (1 - p)), rtol=1e-5
    )
  # Also where the softmax itself would be 0 or 1.
  sure = jnp.asarray([[-500.0, 0.0, 500.0]])
  np.testing.assert_allclose(cam.scores("margin", sure, 2), [500.0])
  np.testing.assert_allclose(cam.scores("margin", sure, 0), [-1000.0])
  np.testing.assert_allclose(cam.scores("logit", three, jnp.asarray([1])), [2])


def test_a_region_belongs_to_a_segmenter():
  region = jnp.ones((1, 2, 2))
  with pytest.raises(ValueError, match="region"):
    cam.scores("logit", jnp.ones((1, 2)), 0, region)
  with pytest.raises(ValueError, match="region"):
    cam.scores("logit", jnp.ones((1, 2, 2, 3)), 0)


def test_slices_of_a_volume_are_the_batch_of_a_2d_model():
  model = resnet(ndim=2)
  variables = draw_variables(model, 2)
  volume = image(3, batch=2, space=(5, 64, 48))
  target = jnp.asarray([0, 1])
  # 10 slices in chunks of 4, the last one with two.
  logits, maps = compiled(model, methods=METHODS, slices=4)(
    variables, volume, target
  )
  assert logits.shape == (2, 5, 2)
  explain = compiled(model, methods=METHODS)
  for i in range(2):
    alone, expected = explain(variables, volume[i], target[i])
    np.testing.assert_allclose(logits[i], alone, rtol=1e-4, atol=1e-5)
    for method in METHODS:
      for layer, value in expected[method].items():
        np.testing.assert_allclose(
          maps[method][layer][i],
          value,
          rtol=1e-3,
          atol=1e-4 * float(value.max()) + 1e-9,
        )
  assert maps["gradcam"]["stage1"].shape == (2, 5, 16, 12)


def test_logits_and_score_of_a_2d_model_take_slices_in_turn():
  model = Fcn(ndim=2)
  variables = draw_variables(model, 2)
  volume = image(3, batch=2, space=(5, 8, 6))
  rng = np.random.default_rng(0)
  region = jnp.asarray(rng.random((2, 5, 8, 6), np.float32))
  logits = jnp.stack(
    [model.apply(variables, each, train=False)[0] for each in volume]
  )
  target = jnp.asarray([2, 1])

  def by_hand(x):
    found = [model.apply(variables, each, train=False)[0] for each in x]
    chosen = jnp.stack([each[..., t] for each, t in zip(found, (2, 1))])  # noqa: B905
    return (chosen * region).sum((2, 3)).mean(1)

  for slices in (None, 3):
    found = jax.jit(cam.make_logits(model, slices=slices))(variables, volume)
    np.testing.assert_allclose(found, logits, rtol=1e-5, atol=1e-6)
    score = jax.jit(cam.make_score(model, score="logit", slices=slices))
    np.testing.assert_allclose(
      score(variables, volume, target, region), by_hand(volume), rtol=1e-5
    )
    np.testing.assert_allclose(
      jax.grad(lambda x, f=score: f(variables, x, target, region).sum())(
        volume
      ),
      jax.grad(lambda x: by_hand(x).sum())(volume),
      rtol=1e-4,
      atol=1e-6,
    )


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_gradients_equal_finite_differences(kind):
  """In float64, of smooth scores, with a random direction at each map."""
  with enable_x64():
    rng = np.random.default_rng(2)
    if kind == "classifier":
      model = resnet().clone(dtype=jnp.float64)
      space, region = (16, 16, 24), None
    else:
      model = Fcn(dtype=jnp.float64, smooth=True)
      space = (6, 8, 10)
      region = jnp.asarray(rng.random((1, *space)) < 0.3, jnp.float64)
    variables = draw_variables(model, 3)
    x = jnp.asarray(rng.random((1, *space, 1)))
    run = jax.jit(cam.make_gradients(model))
    _, features, gradients = run(variables, x, 1, region)

    @jax.jit
    def score(perturbations):
      given = {**variables, "perturbations": perturbations}
      logits, _ = model.apply(given, x, train=False)
      return cam.scores("margin", logits, 1, region)[0]

    zeros = jax.tree.map(jnp.zeros_like, features)
    for layer, gradient in gradients.items():
      assert gradient.dtype == jnp.float64
      # Where ReLU gave zeros, a max-pool has ties and no derivative.
      way = rng.standard_normal(gradient.shape) * (features[layer] > 0)
      step = 1e-7
      ends = [
        score({**zeros, layer: sign * step * way}) for sign in (1.0, -1.0)
      ]
      difference = (ends[0] - ends[1]) / (2 * step)
      expected = jnp.vdot(way, gradient)
      np.testing.assert_allclose(difference, expected, rtol=1e-4, err_msg=layer)


def test_what_a_segmenter_says_of_a_voxel_comes_from_around_it():
  """The map of one voxel's logit lies in its receptive field, at it."""
  model = Fcn()
  variables = draw_variables(model, 3, seed=4)
  x = image(3, batch=1, space=(20, 24, 28))
  at = (9, 14, 11)
  region = jnp.zeros((1, 20, 24, 28)).at[(0, *at)].set(1)
  _, maps = compiled(model, methods=("hirescam", "layercam"))(
    variables, x, 2, region
  )
  # Reach of each map's cells into one logit, in voxels.
  for layer, reach, stride in (
    ("dec1", 0, 1),
    ("bottleneck", 3, 2),
    ("enc1", 5, 1),
  ):
    value = np.asarray(maps["layercam"][layer][0])
    cells = np.argwhere(value > 0) * stride
    assert len(cells), layer
    assert np.abs(cells - at).max() <= reach, layer


def planted(box):
  """A 3D classifier whose CAD logit is the sum of a channel over a box."""

  class Planted(nn.Module):
    ndim: int = 3
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, *, train):
      # Both channels see the whole image, at a stride of 4.
      kernel = jnp.zeros((5, 5, 5, 1, 2)).at[2, 2, 2, 0].set(1.0)
      x = jax.lax.conv_general_dilated(
        x, kernel, (4, 4, 4), [(2, 2)] * 3,
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
      )  # fmt: skip
      x = self.perturb("conv", nn.relu(x))
      looked_at = jnp.zeros(x.shape[1:4]).at[box].set(1.0)
      cad = (x[..., 1] * looked_at).sum((1, 2, 3))
      return jnp.stack([x[..., 0].sum((1, 2, 3)), cad], -1), {"conv": x}

  return Planted()


def test_a_planted_model_lights_up_its_box():
  box = (slice(2, 4), slice(5, 7), slice(1, 3))
  model = planted(box)
  x = jnp.ones((1, 24, 32, 28, 1))
  methods = ("hirescam", "layercam", "xrescam")
  options = {"methods": methods, "score": "logit"}
  _, maps = compiled(model, window=1, **options)({}, x, 1)
  expected = np.zeros((6, 8, 7))
  expected[box] = 1
  for method in methods:
    np.testing.assert_allclose(maps[method]["conv"][0], expected)
  # On the image: cells 2, 3 of stride 4 are voxels 8 to 12, and so on.
  shown = cam.to_image(maps["hirescam"]["conv"], (24, 32, 28), (4, 4, 4))[0]
  at_one = np.argwhere(shown == 1)
  np.testing.assert_array_equal(at_one.min(0), (8, 20, 4))
  np.testing.assert_array_equal(at_one.max(0), (12, 24, 8))
  # Normal looks everywhere.
  _, normal = compiled(model, **options)({}, x, 0)
  np.testing.assert_allclose(normal["hirescam"]["conv"], 1)


@pytest.mark.slow
def test_a_paper_scale_volume_takes_less_than_12_gb():
  model = models.get_model({})
  like = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), jnp.zeros((1, 64, 64, 64, 1)), train=False
    )
  )
  like = {k: like[k] for k in ("params", "batch_stats")}
  x = jax.ShapeDtypeStruct((1, 256, 128, 128, 1), jnp.float32)
  done = compiled(model, methods=METHODS).lower(like, x, 1).compile()
  memory = done.memory_analysis()
  total = (
    memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    + memory.argument_size_in_bytes
  )
  print(f"\n{total / 2**30:.1f} GB")
  assert 1e8 < total < 12e9
