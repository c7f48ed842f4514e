"""models: shapes, counts and equalities that a ResNet must have."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from tiny_models import enable_x64

from cadjax import models
from cadjax.core import lookup
from cadjax.models import folded, resnet

KEY = jax.random.key(0)
MAPS = ["stem", "stage1", "stage2", "stage3", "stage4"]
SPACE = {2: (32, 24), 3: (32, 16, 24)}


@pytest.fixture(autouse=True)
def _no_rank_promotion():
  with jax.numpy_rank_promotion("raise"):
    yield


def small(**config):
  return models.get_model({"depth": 10, "width": 8} | config)


def image(ndim=3, batch=2, space=None, seed=1):
  shape = (batch, *(space or SPACE[ndim]), 1)
  return jax.random.uniform(jax.random.key(seed), shape)


def init(model, x, seed=0):
  """Variables drawn by numpy, norms and running statistics included.

  Nothing sits at 0 or 1, where a swap would not show; nothing is compiled.
  """
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    name, normal = path[-1].key, rng.standard_normal(leaf.shape)
    fan_in = max(leaf.size // leaf.shape[-1], 1)
    drawn = {
      "kernel": normal * (2 / fan_in) ** 0.5,
      "scale": 0.7 + 0.2 * normal,
      "bias": 0.3 * normal,
      "mean": 0.3 * normal,
      "var": np.exp(0.3 * normal),
    }
    return drawn.get(name, np.zeros(leaf.shape)).astype(np.float32)

  return dict(jax.tree_util.tree_map_with_path(draw, abstract(model, x)))


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def apply(model, variables, x, *, train=False):
  return model.apply(variables, x, train=train, mutable=["batch_stats"])


def assert_near(a, b, tolerance, name=""):
  """Within `tolerance` of the largest value."""
  scale = float(jnp.abs(b).max())
  assert scale > 0, name
  np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=name)


def without(variables, name="perturbations"):
  return {key: value for key, value in variables.items() if key != name}


def abstract(model, x):
  return jax.eval_shape(lambda: model.init(KEY, x, train=False))


def num_params(model, x):
  return sum(p.size for p in jax.tree.leaves(abstract(model, x)["params"]))


# torchvision 2D, after its counts for 3 channels and 1000 classes (18:
# 11,689,512; 34: 21,797,672; 50: 25,557,032): minus 64 * 49 * 2 in the stem
# and minus 998 * 513 (or 998 * 2049) in the head. MONAI 3D: counted in
# MONAI 1.6.1 with n_input_channels=1, num_classes=2, bias_downsample=False
# (parity_test counts again where MONAI is installed).
@pytest.mark.parametrize(
  ("ndim", "depth", "count"),
  [
    (2, 18, 11_689_512 - 6_272 - 998 * 513),
    (2, 34, 21_797_672 - 6_272 - 998 * 513),
    (2, 50, 25_557_032 - 6_272 - 998 * 2_049),
    (3, 10, 14_356_546),
    (3, 18, 33_161_026),
    (3, 34, 63_470_658),
    (3, 50, 46_159_170),
  ],
)
def test_parameter_counts_are_pinned(ndim, depth, count):
  model = models.get_model({"ndim": ndim, "depth": depth})
  assert num_params(model, image(ndim)) == count


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_maps_have_their_strides(ndim, norm, output_stride):
  model = small(ndim=ndim, norm=norm, output_stride=output_stride)
  x = image(ndim, space=SPACE[ndim])
  logits, features = jax.eval_shape(
    lambda: model.init_with_output(KEY, x, train=False)[0]
  )
  assert logits.shape == (2, 2)
  assert sorted(features) == sorted(MAPS)
  strides = [min(stride, output_stride) for stride in (2, 4, 8, 16, 32)]
  for name, stride, channels in zip(
    MAPS, strides, (8, 8, 16, 32, 64), strict=True
  ):
    space = tuple(-(-n // stride) for n in SPACE[ndim])
    assert features[name].shape == (2, *space, channels)


def test_bottlenecks_give_four_times_the_channels():
  model = small(depth=50)
  _, features = jax.eval_shape(
    lambda: model.init_with_output(KEY, image(), train=False)[0]
  )
  channels = [features[name].shape[-1] for name in MAPS]
  assert channels == [8, 32, 64, 128, 256]


def test_options_do_not_change_the_parameter_tree():
  x = image()
  plain = abstract(small(), x)["params"]
  changes = [
    ("remat", True),
    ("output_stride", 8),
    ("dtype", "bfloat16"),
    ("conv", "exact"),
    ("conv", "lax"),
  ]
  for field, value in changes:
    changed = abstract(small(**{field: value}), x)["params"]
    assert changed == plain, field


@pytest.mark.parametrize(
  "gradients", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_three_kinds_of_convolution_agree(gradients):
  """In float64, on maps large enough for Winograd."""
  results = {}
  with enable_x64():
    x = jnp.asarray(image(batch=1, space=(64, 64, 64)), jnp.float64)
    variables = without(init(small(), x))
    for conv in ("auto", "exact", "lax"):
      model = small(conv=conv).clone(dtype=jnp.float64)

      def logit(params, model=model):
        given = {**variables, "params": params}
        (logits, _), _ = model.apply(
          given, x, train=True, mutable=["batch_stats"]
        )
        return logits[0, 1]

      run = jax.jit(jax.value_and_grad(logit) if gradients else logit)
      results[conv] = jax.device_get(jax.tree.leaves(run(variables["params"])))
  for conv in ("auto", "exact"):
    for a, b in zip(results[conv], results["lax"], strict=True):
      # Parameters are float32, and so are their gradients.
      assert np.linalg.norm(a - b) < (1e-5 if gradients else 1e-12)
  assert results["auto"][0] != results["exact"][0]  # Winograd was there.


@pytest.mark.parametrize(
  ("depth", "output_stride"), [(10, 8), (50, 8), (10, 16)]
)
def test_a_smaller_output_stride_holds_the_same_map_more_densely(
  depth, output_stride
):
  x = image(2, space=(70, 57))
  coarse, dense = (
    small(ndim=2, depth=depth, output_stride=stride)
    for stride in (32, output_stride)
  )
  variables = without(init(coarse, x))
  (_, few), _ = apply(coarse, variables, x)
  (_, many), _ = apply(dense, variables, x)
  step = 32 // output_stride
  assert_near(many["stage4"][:, ::step, ::step], few["stage4"], 1e-5)


@pytest.mark.parametrize(
  "depth", [10, pytest.param(50, marks=pytest.mark.slow)]
)
def test_one_slice_in_3d_equals_2d_with_the_centre_of_its_kernels(depth):
  # Large enough that no statistic is over a handful of numbers.
  flat = image(2, batch=3, space=(64, 48))
  x = flat[:, None]  # [B, D=1, H, W, 1]
  model3d, model2d = small(depth=depth), small(depth=depth, ndim=2)
  variables = without(init(model3d, x))

  def centre(leaf):
    return leaf[leaf.shape[0] // 2] if leaf.ndim == 5 else leaf

  sliced = jax.tree.map(centre, variables)
  for train in (False, True):
    (in3d, maps3d), _ = apply(model3d, variables, x, train=train)
    (in2d, maps2d), _ = apply(model2d, sliced, flat, train=train)
    assert_near(in3d, in2d, 1e-3)
    for name in MAPS:
      assert_near(maps3d[name][:, 0], maps2d[name], 1e-3, name)


def test_remat_changes_the_graph_but_no_number():
  x = image(2)
  plain, remat = small(ndim=2), small(ndim=2, remat=True)
  variables = without(init(plain, x))

  def loss(params, model):
    (logits, _), _ = model.apply(
      {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
    )
    return jnp.sum(logits**2)

  a, b = (
    jax.jit(jax.grad(loss), static_argnums=1)(variables["params"], model)
    for model in (plain, remat)
  )
  largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(a))
  jax.tree.map(
    lambda p, q: np.testing.assert_allclose(p, q, atol=1e-4 * largest), a, b
  )
  graphs = [
    str(
      jax.make_jaxpr(jax.grad(loss), static_argnums=1)(variables["params"], m)
    )
    for m in (plain, remat)
  ]
  assert [("checkpoint" in g or "remat" in g) for g in graphs] == [False, True]


def test_bfloat16_computes_in_it_and_keeps_the_rest_in_float32():
  x = image(2)
  exact, rough = small(ndim=2), small(ndim=2, dtype="bfloat16")
  variables = without(init(exact, x))
  (logits, maps), changed = apply(rough, variables, x, train=True)
  assert logits.dtype == jnp.float32
  assert {m.dtype for m in maps.values()} == {jnp.dtype("bfloat16")}
  floats = jax.tree.leaves((changed, abstract(rough, x)["params"]))
  assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
  (a, _), _ = apply(rough, variables, x)
  (b, _), _ = apply(exact, variables, x)
  assert not np.array_equal(a, b)
  assert_near(a, b, 0.05)


@pytest.mark.parametrize(("ndim", "remat"), [(3, False), (2, True)])
def test_the_gradient_at_every_map_equals_finite_differences(ndim, remat):
  x = image(ndim, batch=1)
  model = small(ndim=ndim, remat=remat)
  variables = init(model, x)
  fixed, zeros = without(variables), variables["perturbations"]
  assert sorted(zeros) == sorted(MAPS)

  @jax.jit
  def score(perturbations):
    logits, _ = model.apply(
      {**fixed, "perturbations": perturbations}, x, train=False
    )
    return logits[0, 1]

  gradients = jax.jit(jax.grad(score))(zeros)
  for i, name in enumerate(MAPS):
    # Along the gradient, so that the difference stands above float32 noise.
    gradient = gradients[name]
    norm = float(jnp.linalg.norm(gradient.ravel()))
    assert norm > 0, name
    # Small enough that few ReLUs and maxima change sides.
    step = (1e-2 if i else 1e-3) / norm
    ends = [
      float(score({**zeros, name: sign * step * gradient}))
      for sign in (1.0, -1.0)
    ]
    difference = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(difference, norm**2, rtol=0.05, err_msg=name)


def test_apply_without_perturbations_gives_the_same():
  x = image(2)
  model = small(ndim=2)
  variables = init(model, x)
  (with_zeros, _), _ = apply(model, variables, x)
  (bare, _), _ = apply(model, without(variables), x)
  np.testing.assert_array_equal(with_zeros, bare)


def test_evaluation_does_not_mix_examples():
  x = image(2, batch=3)
  model = small(ndim=2)
  variables = without(init(model, x))
  (together, _), _ = apply(model, variables, x)
  (alone, _), _ = apply(model, variables, x[1:2])
  np.testing.assert_allclose(together[1:2], alone, rtol=1e-4, atol=1e-5)
  one = jax.jit(jax.grad(lambda x: apply(model, variables, x)[0][0][1].sum()))
  leak = jnp.abs(one(x)).sum(axis=(1, 2, 3))
  assert leak[1] > 0
  np.testing.assert_array_equal(leak[jnp.array([0, 2])], 0.0)


@pytest.mark.parametrize(
  "depth", [10, pytest.param(50, marks=pytest.mark.slow)]
)
def test_zero_init_starts_each_block_as_its_shortcut(depth):
  model = small(ndim=2, depth=depth, zero_init=True)
  x = image(2)
  params = jax.jit(lambda key: model.init(key, x, train=False)["params"])(KEY)
  zeros = {
    (block, layer)
    for block, tree in params.items()
    for layer, leaves in tree.items()
    if isinstance(leaves, dict) and not np.any(leaves.get("scale", 1))
  }
  last = "norm3" if depth == 50 else "norm2"
  assert zeros == {(b, last) for b in params if b.startswith("stage")}


def test_initial_logits_of_the_default_vary_with_the_image():
  x = image(2, batch=3, space=(64, 64))
  model = small(ndim=2)
  variables = jax.jit(lambda key: without(model.init(key, x, train=False)))(KEY)
  (logits, _), _ = apply(model, variables, x)
  assert np.all(np.isfinite(logits))
  assert float(jnp.std(logits, axis=0).min()) > 0


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"name": "resnt"}, "unknown model 'resnt'; did you mean 'resnet'"),
    ({"dpeth": 50}, "unknown field of config.model 'dpeth'.*mean 'depth'"),
    ({"depth": 51}, "config.model.depth is 51; .* 10, 18, 34, 50"),
    ({"ndim": 4}, "config.model.ndim is 4; .* 2, 3"),
    ({"output_stride": 4}, "config.model.output_stride is 4"),
    ({"width": 0}, "config.model.width is 0"),
    ({"norm": "layer"}, "unknown norm 'layer'.*batch, group, instance"),
    ({"dtype": "float16"}, "unknown dtype 'float16'"),
    ({"conv": "laxx"}, "unknown config.model.conv 'laxx'"),
    ({"axis_name": "device"}, "unknown field of config.model 'axis_name'"),
  ],
)
def test_bad_configs_say_what_is_known(config, message):
  with pytest.raises(lookup.ConfigError, match=message):
    models.get_model(config)


@pytest.mark.parametrize(
  ("name", "changes"),
  [
    ("resnet", {"num_classes": 2, "depth": 50, "width": 64}),
    ("unet", {"num_classes": 3, "features": (32, 64, 128, 256)}),
    ("resunet", {"num_classes": 3, "depth": 50, "width": 64}),
  ],
)
def test_the_defaults_are_the_fields_own(name, changes):
  made = models.get_model({"name": name})
  assert made == models.MODELS[name]()
  assert made == models.get_model({"name": name, "ndim": 3, "norm": "batch"})
  assert made == models.get_model({"name": name} | changes)


def test_a_list_of_config_json_makes_the_same_model():
  made = models.get_model({"name": "unet", "features": [8, 16]})
  assert made == models.get_model({"name": "unet", "features": (8, 16)})
  hash(made)  # Compiled functions are kept by model.


def test_an_image_of_the_wrong_rank_is_refused():
  with pytest.raises(ValueError, match="3D model takes 5 axes.*24, 1"):
    small().init(KEY, image(2), train=False)


def test_a_config_dict_works_and_sets_every_default():
  config = ml_collections.ConfigDict({"name": "resnet", "depth": 18})
  model = models.get_model(config.lock(), axis_name="device")
  assert isinstance(model, resnet.ResNet)
  assert (model.ndim, model.depth, model.axis_name) == (3, 18, "device")


WAYS = {
  "stem": {"stem": "folded"},
  "all": {"stem": "folded", "stage1": "folded", "pointwise": "moments"},
}


@pytest.mark.parametrize(("way", "depth"), [("stem", 10), ("all", 50)])
def test_every_way_to_train_gives_the_same(way, depth):
  """Logits, statistics and all gradients in float64, of one set of parameters.

  A ResNet of 10 layers has no bottlenecks, and so no moments.
  """
  with enable_x64():
    options = {"depth": depth, "width": 4}
    plain = small(**options, conv="lax", dtype="float32")
    x = np.random.default_rng(1).uniform(size=(2, 16, 16, 16, 1))
    variables = without(init(plain, x))
    variables["params"]["norm_stem"]["scale"][:2] *= -1
    label = np.array([0, 1])

    def run(model, x):
      model = model.clone(dtype=jnp.float64)

      @jax.jit
      def step(params):
        def loss(params):
          (logits, _), changed = model.apply(
            variables | {"params": params}, x, train=True, mutable=True
          )
          return jnp.sum(jnp.sin(logits + label[:, None])), (logits, changed)

        grads, (logits, changed) = jax.grad(loss, has_aux=True)(params)
        return logits, changed["batch_stats"], grads

      params = jax.tree.map(lambda p: p.astype(np.float64), variables["params"])
      return step(params)

    want = run(plain, x)
    other = plain.clone(**WAYS[way])
    for image in (x, folded.to_cells(x))[way == "all" :]:
      got = run(other, image)
      for (path, a), (_, b) in zip(
        jax.tree.leaves_with_path(got),
        jax.tree.leaves_with_path(want),
        strict=True,
      ):
        # The gradient of a bias before another norm is 0 but for rounding.
        tolerance = 1e-8 * float(jnp.abs(b).max()) + 1e-10
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=path)
