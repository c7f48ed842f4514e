"""The U-Net: shapes, counts, options, and maps that stay in their place."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cadjax import models
from cadjax.core import lookup
from cadjax.models import unet

KEY = jax.random.key(0)
SPACE = {2: (24, 16), 3: (8, 16, 24)}
MAPS = ["enc1", "enc2", "enc3", "bottleneck", "dec3", "dec2", "dec1"]
STRIDES = [1, 2, 4, 8, 4, 2, 1]


@pytest.fixture(autouse=True)
def _no_rank_promotion():
  with jax.numpy_rank_promotion("raise"):
    yield


# Tiny maps: compiling takes all the time.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def small(ndim=3, **config):
  # XLA's own convolution compiles faster; layers_test has the others.
  config = {"conv": "auto" if ndim == 3 else "lax"} | config
  config = {"name": "unet", "features": (4, 6, 8, 10)} | config
  return models.get_model({"ndim": ndim} | config)


def image(ndim=3, batch=2, space=None, seed=1):
  shape = (batch, *(space or SPACE[ndim]), 1)
  return jax.random.uniform(jax.random.key(seed), shape)


def abstract(model, x):
  return jax.eval_shape(lambda: model.init(KEY, x, train=False))


def init(model, x, seed=0):
  """Variables whose norms and statistics are not at 0 or 1."""
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    normal = rng.standard_normal(leaf.shape)
    if path[-1].key == "kernel":
      normal *= (2 * leaf.shape[-1] / leaf.size) ** 0.5
    elif path[-1].key == "var":
      normal = np.exp(0.3 * normal)
    elif path[0].key != "perturbations":
      normal = 0.3 * normal + (path[-1].key == "scale")
    else:
      normal *= 0
    return normal.astype(np.float32)

  return dict(jax.tree_util.tree_map_with_path(draw, abstract(model, x)))


def without(variables, name="perturbations"):
  return {key: value for key, value in variables.items() if key != name}


@functools.partial(jit, static_argnums=0, static_argnames="train")
def apply(model, variables, x, *, train=False):
  return model.apply(variables, x, train=train, mutable=["batch_stats"])


@functools.partial(jit, static_argnums=0)
def train_step(model, variables, x):
  """The gradient of a number that every logit enters, and the statistics."""

  def loss(params):
    (logits, _), changed = model.apply(
      {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
    )
    each = [jnp.mean(jnp.sin(one)) for one in jax.tree.leaves(logits)]
    return sum(each), changed.get("batch_stats", {})

  return jax.grad(loss, has_aux=True)(variables["params"])


def num_params(model, x):
  return sum(p.size for p in jax.tree.leaves(abstract(model, x)["params"]))


def count_by_hand(taps, width, *, residual=False, attention=False, places=1):
  """Kernels, norms and head of a U-Net, level by level."""
  norm = sum(2 * 2 * c for c in (*width, *width[:-1]))
  kernels, into = 0, 1
  for c in width:
    kernels += taps * (into * c + c * c) + residual * (into * c + 2 * c)
    into = c
  for c, below in zip(width, width[1:], strict=False):
    kernels += below * c * places + taps * (2 * c * c + c * c)
    kernels += residual * (2 * c * c + 2 * c)
    inside = c // 2
    gate = (c + below) * inside + 2 * inside + inside + 1
    kernels += attention * gate
  return kernels + norm + (width[0] + 1) * 3


@pytest.mark.parametrize(
  ("config", "count"),
  [
    ({"ndim": 2}, 1_797_251),
    ({"ndim": 3}, 5_299_907),
    ({"ndim": 3, "residual": True, "attention": True}, 5_419_958),
    ({"ndim": 3, "upsampling": "shuffle"}, 5_600_963),
    ({"ndim": 3, "deep_supervision": True}, 5_299_907 + 65 * 3),
    ({"ndim": 2, "features": (16, 32)}, None),
  ],
)
def test_parameter_counts_are_pinned(config, count):
  model = models.get_model({"name": "unet"} | config)
  ndim = config["ndim"]
  by_hand = count_by_hand(
    3**ndim,
    config.get("features", (32, 64, 128, 256)),
    residual=config.get("residual", False),
    attention=config.get("attention", False),
    places=2**ndim if "upsampling" in config else 1,
  )
  found = num_params(model, image(ndim))
  assert found == (count or by_hand)
  assert found == by_hand + 65 * 3 * config.get("deep_supervision", False)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("norm", ["batch", "group", "instance"])
def test_maps_have_their_strides(ndim, norm):
  model = small(ndim=ndim, norm=norm, num_classes=5)
  x = image(ndim)
  logits, maps = jax.eval_shape(
    lambda: model.init_with_output(KEY, x, train=False)[0]
  )
  assert (logits.shape, logits.dtype) == ((2, *SPACE[ndim], 5), jnp.float32)
  assert set(maps) == set(MAPS)
  for name, stride, channels in zip(
    MAPS, STRIDES, (4, 6, 8, 10, 8, 6, 4), strict=True
  ):
    space = tuple(n // stride for n in SPACE[ndim])
    assert maps[name].shape == (2, *space, channels)


@pytest.mark.parametrize(
  ("levels", "strides"), [(4, (1, 2)), (5, (1, 2, 4)), (6, (1, 2, 4))]
)
def test_deep_supervision_gives_logits_of_finer_levels(levels, strides):
  model = small(ndim=2, features=(4,) * levels, deep_supervision=True)
  x = image(2, space=(64, 32))
  variables = abstract(model, x)

  def run(train):
    def forward(variables):
      return model.apply(variables, x, train=train, mutable=["batch_stats"])

    return jax.eval_shape(forward, variables)[0][0]

  assert run(train=False).shape == (2, 64, 32, 3)
  assert isinstance(run(train=True), tuple)
  assert [each.shape for each in run(train=True)] == [
    (2, 64 // s, 32 // s, 3) for s in strides
  ]


ALL = {
  "residual": True,
  "attention": True,
  "deep_supervision": True,
  "upsampling": "shuffle",
}


@pytest.mark.parametrize(
  ("ndim", "options"),
  [
    (3, {}),
    (
      3,
      ALL | {"norm": "instance", "features": (4, 6), "deep_supervision": False},
    ),
    (2, {"residual": True}),
    (2, {"attention": True}),
    (2, {"upsampling": "shuffle", "norm": "group"}),
    (2, {"deep_supervision": True}),
    (2, ALL),
  ],
)
def test_every_option_trains(ndim, options):
  model = small(ndim=ndim, **options)
  x = image(ndim)
  variables = without(init(model, x))
  gradients, changed = train_step(model, variables, x)
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    where = jax.tree_util.keystr(path)
    assert np.all(np.isfinite(leaf)), where
    assert np.any(leaf), where
  before = jax.tree.leaves(variables.get("batch_stats", {}))
  after = jax.tree.leaves(changed)
  assert bool(before) == (options.get("norm", "batch") == "batch")
  for a, b in zip(before, after, strict=True):
    assert np.all(a != b)


def test_evaluation_leaves_the_statistics():
  model, x = small(ndim=2), image(2)
  variables = without(init(model, x))
  _, changed = apply(model, variables, x)
  jax.tree.map(
    np.testing.assert_array_equal,
    changed["batch_stats"],
    variables["batch_stats"],
  )


def test_remat_changes_the_graph_but_no_number():
  x = image(2)
  plain, remat = small(ndim=2, **ALL), small(ndim=2, remat=True, **ALL)
  assert abstract(plain, x)["params"] == abstract(remat, x)["params"]
  variables = without(init(plain, x))
  a, b = (train_step(model, variables, x)[0] for model in (plain, remat))
  largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(a))
  jax.tree.map(
    lambda p, q: np.testing.assert_allclose(p, q, atol=1e-4 * largest), a, b
  )
  graphs = [
    str(
      jax.make_jaxpr(lambda v, m=m: train_step.__wrapped__(m, v, x))(variables)
    )
    for m in (plain, remat)
  ]
  assert ["remat" in g or "checkpoint" in g for g in graphs] == [False, True]


def test_bfloat16_computes_in_it_and_keeps_the_rest_in_float32():
  x = image(2)
  exact = small(ndim=2, attention=True)
  rough = small(ndim=2, attention=True, dtype="bfloat16")
  variables = without(init(exact, x))
  (logits, maps), changed = apply(rough, variables, x, train=True)
  assert logits.dtype == jnp.float32
  assert {m.dtype for m in maps.values()} == {jnp.dtype("bfloat16")}
  floats = jax.tree.leaves((changed, abstract(rough, x)["params"]))
  assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
  (a, _), _ = apply(rough, variables, x)
  (b, _), _ = apply(exact, variables, x)
  assert not np.array_equal(a, b)
  np.testing.assert_allclose(a, b, rtol=0, atol=0.05 * float(jnp.abs(b).max()))


@pytest.mark.parametrize(
  "config",
  [
    {"ndim": 3, "conv": "lax"},
    {"ndim": 2, "remat": True, "residual": True, "attention": True},
  ],
)
def test_the_gradient_at_every_map_equals_finite_differences(config):
  model = small(**config)
  x = image(config["ndim"], batch=1)
  variables = init(model, x)
  fixed, zeros = without(variables), variables["perturbations"]
  assert set(zeros) == set(MAPS)

  def score(perturbations):
    logits, _ = model.apply(
      {**fixed, "perturbations": perturbations}, x, train=False
    )
    return jnp.mean(logits[..., 1])

  gradients, score = jit(jax.grad(score))(zeros), jit(score)
  for name in MAPS:
    norm = float(jnp.linalg.norm(gradients[name].ravel()))
    assert norm > 0, name
    step = 1e-2 * gradients[name] / norm
    ends = [float(score({**zeros, name: s * step})) for s in (1.0, -1.0)]
    difference = (ends[0] - ends[1]) / 2e-2
    np.testing.assert_allclose(difference, norm, rtol=0.05, err_msg=name)


def symmetric(variables, ndim):
  """Kernels that equal their mirror images along every axis."""

  def mirror(path, leaf):
    if path[-1].key != "kernel" or leaf.ndim != ndim + 2:
      return leaf
    for axis in range(ndim):
      leaf = (leaf + np.flip(leaf, axis)) / 2
    return leaf

  return jax.tree_util.tree_map_with_path(mirror, variables)


@pytest.mark.parametrize(
  ("ndim", "features", "size", "reach", "options"),
  [
    (2, (4, 6, 8), 96, 20, {}),
    (3, (2, 4), 32, 7, {"residual": True, "attention": True}),
  ],
)
def test_a_planted_voxel_stays_in_its_place(
  ndim, features, size, reach, options
):
  """What it changes is symmetric about it where the kernels are.

  The voxel lies on a cell of every map; the reach is less than what the ends
  of the image disturb.
  """
  model = small(ndim=ndim, features=features, **options)
  plain = np.zeros((1, *(size,) * ndim, 1), np.float32)
  planted = plain.copy()
  centre = size // 2
  planted[(0, *(centre,) * ndim, 0)] = 1.0
  # Other seeds have layers whose ReLUs are all shut.
  variables = symmetric(without(init(model, plain, seed=3)), ndim)
  (with_it, _), _ = apply(model, variables, planted)
  (bare, _), _ = apply(model, variables, plain)
  change = np.asarray(with_it - bare)[0]
  seen = change[(slice(centre - reach, centre + reach + 1),) * ndim]
  largest = np.abs(seen).max()
  assert largest > 1e-3
  for axis in range(ndim):
    np.testing.assert_allclose(
      seen, np.flip(seen, axis), rtol=0, atol=1e-5 * largest
    )
  # What is compared is not the near field of the skipped maps alone.
  rim = seen[reach + (10 if ndim == 2 else 5)]
  assert np.abs(rim).max() > 1e-4 * largest


def test_two_levels_are_a_unet():
  model = small(ndim=2, features=(4, 8))
  x = image(2, space=(6, 10))
  (logits, maps), _ = apply(model, without(init(model, x)), x)
  assert logits.shape == (2, 6, 10, 3)
  assert set(maps) == {"enc1", "bottleneck", "dec1"}


def test_the_attention_gate_weighs_between_nothing_and_all():
  x = image(2)
  gated, plain = small(ndim=2, attention=True), small(ndim=2)
  variables = without(init(gated, x))

  def change(tree, where, value):
    """Sets the leaves on whose path `where` is to `value(leaf)`."""
    return jax.tree_util.tree_map_with_path(
      lambda path, leaf: (
        value(leaf) if where in jax.tree_util.keystr(path) else leaf
      ),
      tree,
    )

  def logits(model, variables):
    return apply(model, variables, x)[0][0]

  ungated = {
    kind: {
      block: {key: leaf for key, leaf in leaves.items() if key != "gate"}
      for block, leaves in tree.items()
    }
    for kind, tree in variables.items()
  }
  # sigmoid(100) is 1 and sigmoid(-200) is 0 to float32.
  flat = change(variables, "['weight']", lambda leaf: 0 * leaf)
  through = change(flat, "['weight']['bias']", lambda leaf: leaf + 100)
  np.testing.assert_allclose(
    logits(gated, through), logits(plain, ungated), atol=1e-5
  )
  shut = change(flat, "['weight']['bias']", lambda leaf: leaf - 200)

  def without_skip(kernel):  # Half of its channels are of the skipped map.
    kernel = kernel.copy()
    kernel[..., : kernel.shape[-1], :] = 0
    return kernel

  for level in (1, 2, 3):
    where = f"['dec{level}_block']['conv1']"
    ungated = change(ungated, where, without_skip)
  np.testing.assert_allclose(
    logits(gated, shut), logits(plain, ungated), atol=1e-5
  )


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"name": "unett"}, "unknown model 'unett'; did you mean 'unet'"),
    ({"depth": 50}, "unknown field of config.model 'depth'"),
    ({"ndim": 4}, "config.model.ndim is 4; it must be one of 2, 3"),
    ({"features": (8,)}, r"features is \(8,\); it must be 2 to 9 numbers"),
    ({"features": (8, 0)}, r"features is \(8, 0\)"),
    ({"features": 32}, "features is 32; .* one for each level"),
    ({"num_classes": 1}, "num_classes is 1; it must be >= 2"),
    ({"norm": "layer"}, "unknown norm 'layer'.*batch, group, instance"),
    ({"dtype": "float16"}, "unknown dtype 'float16'"),
    ({"conv": "laxx"}, "unknown config.model.conv 'laxx'"),
    ({"upsampling": "transposed"}, "upsampling 'transposed'.*linear, shuffle"),
    (
      {"features": (8, 8, 8), "deep_supervision": True},
      r"takes 4 levels or more; \(8, 8, 8\) has 3",
    ),
  ],
)
def test_bad_configs_say_what_is_known(config, message):
  with pytest.raises(lookup.ConfigError, match=message):
    models.get_model({"name": "unet"} | config)


def test_an_image_that_does_not_fit_is_refused():
  with pytest.raises(ValueError, match="3D model takes 5 axes.*16, 1"):
    small().init(KEY, image(2), train=False)
  with pytest.raises(ValueError, match=r"4 levels .* of 8; .*\(2, 8, 20, 8"):
    small().init(KEY, image(3, space=(8, 20, 8)), train=False)


def test_a_config_dict_works_and_sets_every_default():
  config = ml_collections.ConfigDict({"name": "unet", "features": [4, 8]})
  model = models.get_model(config.lock(), axis_name="device")
  assert isinstance(model, unet.UNet)
  assert (model.ndim, model.features, model.axis_name) == (3, (4, 8), "device")
  hash(model)
