"""One device and eight must take the same steps."""

import functools

import jax
import numpy as np
import optax
import pytest

from cadjax import models
from cadjax.core import lookup, parallel
from cadjax.models import layers
from cadjax.segmentation import losses as segmentation_losses
from cadjax.training import losses, steps

SHAPE = (16, 24, 32)
BATCH = 8


def jitter(key, image, mask):
  """A stand-in whose draw shows up in every voxel."""
  return image + 0.1 * jax.random.normal(key, image.shape[:-1])[..., None], mask


def make_batch(rng, ndim):
  depth = 8 if ndim == 2 else SHAPE[0]
  image = rng.integers(-300, 1200, (BATCH, depth, *SHAPE[1:], 1))
  return {
    "image": image.astype(np.int16),
    "label": rng.integers(0, 2, BATCH).astype(np.int32),
    "valid": np.ones(BATCH, np.float32),
    "index": np.arange(BATCH, dtype=np.int32),
  }


@functools.cache
def compile_times():
  """The list that grows by one time with each program that XLA compiles.

  Its listener stays: jax before 0.8.1 has no public way to remove one.
  """
  times = []

  def listen(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":
      times.append(duration)

  jax.monitoring.register_event_duration_secs_listener(listen)
  return times


def three_steps(devices, *, ndim, batches=None, augment=jitter, **ways):
  batches = batches or [
    make_batch(np.random.default_rng(i), ndim) for i in range(3)
  ]
  config = {"ndim": ndim, "depth": 10, "width": 4, "norm": "batch"}
  model = models.get_model(config | ways, axis_name=devices.axis_name)
  tx = optax.sgd(1e-2)
  prepare = steps.make_prepare(
    ndim=ndim, window_hu=(-200.0, 1000.0), augment=augment
  )
  step = devices.train_step(
    steps.make_train_step(
      model,
      tx,
      functools.partial(losses.focal, gamma=2.0),
      prepare,
      seed=3,
      schedule=optax.constant_schedule(1e-2),
      ema_decay=0.9,
      axis_name=devices.axis_name,
    )
  )
  shape = (*(SHAPE[1:] if ndim == 2 else SHAPE), 1)
  init_model = models.get_model(config)
  state = steps.create_state(init_model, tx, jax.random.key(0), shape, ema=True)
  state = devices.put_replicated(state)
  history, compiled = [], []
  for batch in batches:
    before = len(compile_times())
    state, values = step(state, devices.put_batch(batch))
    history.append({k: float(v) for k, v in values.items()})
    compiled.append(len(compile_times()) - before)
  # The first may compile more than the step: pmap of jax 0.7 slices a batch.
  assert compiled[0] >= 1
  assert not any(compiled[1:])
  eval_step = devices.eval_step(
    steps.make_eval_step(init_model, ndim=ndim, window_hu=(-200.0, 1000.0))
  )
  logits = eval_step(state.eval_variables(), devices.put_batch(batches[0]))
  return jax.device_get(state), history, logits


@functools.cache
def on_one_device(ndim):
  one = parallel.make_parallel("pmap", devices=jax.devices()[:1])
  return three_steps(one, ndim=ndim)


MODES = {
  "pmap": {"mode": "pmap"},
  "mesh": {"mode": "mesh"},
  "mesh_space": {"mode": "mesh", "data": 2, "space": 4},
}


@pytest.mark.parametrize("ndim", [pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("mode", MODES)
def test_eight_devices_equal_one(mode, ndim):
  assert len(jax.devices()) == 8
  many = parallel.make_parallel(**MODES[mode])
  assert many.data_size * many.space_size == 8
  want, want_history, want_logits = on_one_device(ndim)
  got, got_history, got_logits = three_steps(many, ndim=ndim)
  for a, b in zip(want_history, got_history, strict=True):
    assert a == pytest.approx(b, rel=1e-5, abs=1e-5)
  assert want_logits.shape == (BATCH, 8 if ndim == 2 else 1, 2)
  np.testing.assert_allclose(got_logits, want_logits, rtol=1e-5, atol=1e-5)
  flat_want, tree_want = jax.tree.flatten(want)
  flat_got, tree_got = jax.tree.flatten(got)
  assert tree_want == tree_got
  for a, b in zip(flat_want, flat_got, strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["pmap", "mesh_space"])
def test_a_folded_stem_takes_the_same_steps_on_eight_devices(mode):
  """As the plain one on one device; the depth of its cells is divided, too."""
  eight = parallel.make_parallel(**MODES[mode])
  folded = {"stem": "folded", "stage1": "folded"}
  state, history, logits = three_steps(eight, ndim=3, **folded)
  expected, expected_history, expected_logits = on_one_device(3)
  for a, b in zip(history, expected_history, strict=True):
    assert a == pytest.approx(b, rel=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5),
    (state, logits),
    (expected, expected_logits),
  )


def test_augmentation_does_not_depend_on_the_device():
  """Without it the histories differ, so the test above covers it."""
  batches = [make_batch(np.random.default_rng(0), 3)]
  one = parallel.make_parallel("pmap", devices=jax.devices()[:1])
  _, with_noise, _ = three_steps(one, ndim=3, batches=batches)
  _, without, _ = three_steps(one, ndim=3, batches=batches, augment=None)
  assert abs(with_noise[0]["loss"] - without[0]["loss"]) > 1e-4


def test_batch_that_does_not_divide_names_sizes_that_do():
  devices = parallel.make_parallel("pmap")
  with pytest.raises(lookup.ConfigError, match="use 8 or 16"):
    devices.check_batch(12)
  with pytest.raises(lookup.ConfigError, match="use 8"):
    devices.check_batch(4)
  devices.check_batch(16)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"mode": "pmpa"}, "pmpa"),
    ({"mode": "pmap", "space": 2}, "parallel=mesh"),
    ({"mode": "mesh", "space": 3}, "does not divide"),
    ({"mode": "mesh", "data": 16}, "there are 8"),
  ],
)
def test_layouts_that_do_not_exist(options, message):
  with pytest.raises(lookup.ConfigError, match=message):
    parallel.make_parallel(**options)


def test_depth_must_divide_by_space():
  devices = parallel.make_parallel("mesh", data=2, space=4)
  with pytest.raises(lookup.ConfigError, match="depth of 10"):
    devices.check_batch(2, 10)


def test_prefetch_keeps_order_and_stays_ahead():
  devices = parallel.make_parallel("pmap", devices=jax.devices()[:1])
  drawn = []

  def source():
    for i in range(5):
      drawn.append(i)
      yield {"x": np.full((1, 2), i)}, f"row {i}"

  ahead = devices.prefetch(source(), size=2)
  first, extra = next(ahead)
  assert int(first["x"].ravel()[0]) == 0
  assert extra == "row 0"
  assert drawn == [0, 1, 2]
  assert [extra for _, extra in ahead] == [f"row {i}" for i in range(1, 5)]


def segmenter_steps(devices):
  """Three steps of a small U-Net and the logits of whole windows."""
  config = {"name": "unet", "ndim": 3, "features": (4, 8, 8)}
  model = models.get_model(config, axis_name=devices.axis_name)
  tx = optax.sgd(1e-2)
  window_hu = (-200.0, 1000.0)
  prepare = steps.make_prepare(
    ndim=3, window_hu=window_hu, augment=jitter, class_set="aorta_coronaries"
  )
  # Over the batch: of all devices together.
  loss_fn = segmentation_losses.get_segment_loss(
    {"name": "dice_ce", "batch": True}, devices.axis_name
  )
  step = devices.train_step(
    steps.make_train_step(
      model,
      tx,
      lambda logits, target: loss_fn(logits, *target),
      prepare,
      score=("dice", steps.overlaps),
      seed=3,
      schedule=optax.constant_schedule(1e-2),
      axis_name=devices.axis_name,
    )
  )
  shape = (16, 8, 12)
  plain = models.get_model(config)
  state = devices.put_replicated(
    steps.create_state(plain, tx, jax.random.key(0), (*shape, 1), ema=False)
  )
  rng = np.random.default_rng(0)
  history = []
  for _ in range(3):
    image = rng.integers(-300, 1200, (BATCH, *shape, 1)).astype(np.int16)
    batch = {
      "image": image,
      "mask": (image[..., 0] > 900).astype(np.uint8),
      "known": np.tile(np.float32([1, 1, 1, 0, 0]), (BATCH, 1)),
      "valid": np.ones(BATCH, np.float32),
      "index": np.arange(BATCH, dtype=np.int32),
    }
    state, values = step(state, devices.put_batch(batch))
    history.append({k: float(v) for k, v in values.items()})
  return jax.device_get(state), history


@functools.cache
def segmenter_on_one_device():
  one = parallel.make_parallel("pmap", devices=jax.devices()[:1])
  return segmenter_steps(one)


@pytest.mark.parametrize(
  "mode", ["pmap", pytest.param("mesh_space", marks=pytest.mark.slow)]
)
def test_a_segmenter_on_eight_devices_equals_one(mode):
  want, want_history = segmenter_on_one_device()
  many = parallel.make_parallel(**MODES[mode])
  got, got_history = segmenter_steps(many)
  for a, b in zip(want_history, got_history, strict=True):
    assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
  flat_want, flat_got = jax.tree.leaves(want), jax.tree.leaves(got)
  for a, b in zip(flat_want, flat_got, strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def statistics(devices):
  """Those of two batches, for weights that a training gives."""
  config = {"name": "unet", "ndim": 2, "features": (2, 4), "norm": "batch"}
  plain = models.get_model(config)
  prepare = steps.make_prepare(
    ndim=2, window_hu=(-200.0, 1000.0), augment=jitter
  )
  model = models.get_model(config, axis_name=devices.axis_name)
  step = devices.train_step(steps.make_statistics_step(model, prepare, seed=3))
  variables = plain.init(
    jax.random.key(0), np.zeros((1, *SHAPE[1:], 1)), train=False
  )
  state = devices.put_replicated(variables | {"step": np.int32(5)})
  found = []
  for i in range(2):
    batch = make_batch(np.random.default_rng(i), 2)
    state, one = step(state, devices.put_batch(batch))
    found.append(one)
  assert int(state["step"]) == 7
  return layers.pool_statistics(found)


@pytest.mark.parametrize("mode", ["pmap", "mesh"])
def test_statistics_of_eight_devices_are_those_of_one(mode):
  one = parallel.make_parallel("pmap", devices=jax.devices()[:1])
  want = jax.tree.leaves(statistics(one))
  got = jax.tree.leaves(statistics(parallel.make_parallel(**MODES[mode])))
  assert len(want) == len(got) > 2
  for a, b in zip(want, got, strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)
