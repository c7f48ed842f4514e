"""The rows that run on a device with JAX.

A classifier's config is measured on volumes of `--shape`, a segmenter's on
patches of that shape.
"""

import dataclasses
import math
import pathlib
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from cadjax import tasks
from cadjax.bench.work import Parts, Work, noise_hu, resident_bytes, timed
from cadjax.classification import task as classification
from cadjax.core import parallel
from cadjax.data import classes
from cadjax.explanation import cam
from cadjax.models import flops, folded
from cadjax.segmentation import sliding
from cadjax.segmentation.segmenter import make_sliding
from cadjax.training import optimizer, steps
from cadjax.training import task as training_task
from data_prep.errors import UserError

# Longer than any benchmark: the schedule needs an end, the reader too.
MANY_STEPS = 10**6
# Edge of the square matrices, and bytes of the array that is copied.
CEILINGS = {"cpu": (2048, 1 << 28), "other": (8192, 1 << 30)}


def train(spec: Mapping[str, Any]) -> Work:
  """Makes a train step: on a batch that is on the device, or on records."""
  config = ml_collections.ConfigDict(spec["config"])
  devices = here(spec, config)
  real = spec["variant"] == "pipeline"
  step, start = train_step(spec, config, devices, real=real)
  batches = _records(spec, config, devices) if real else None
  fake = None if real else devices.put_batch(fake_batch(spec, config, devices))
  state = steps.create_state(key=jax.random.key(config.seed), **start)
  state = devices.put_replicated(state)
  memory = []

  def run() -> None:
    nonlocal state
    batch = next(batches) if real else fake
    state, _ = jax.block_until_ready(step(state, batch))
    memory.append(resident_bytes())

  work = _step_work(run, spec, config, devices, train=True)
  if not real:
    return work
  return dataclasses.replace(
    work, finish=lambda: work.finish() | {"rss_bytes": memory}
  )


def train_step(
  spec: Mapping[str, Any],
  config: ml_collections.ConfigDict,
  devices: parallel.Parallel,
  *,
  real: bool,
) -> tuple[Callable, dict[str, Any]]:
  """Makes the step of `training.loop`, and the arguments of `steps.make_init`.

  Args:
    spec: of the row.
    config: of the row.
    devices: where the step runs.
    real: whether augmentation is part of it, as the config says.
  """
  model = training_task.make_model(config, devices.axis_name, devices.platform)
  kind = tasks.find(config)
  tx, schedule = optimizer.get_optimizer(
    config.optimizer, total_steps=MANY_STEPS
  )
  prepare = steps.make_prepare(
    ndim=config.model.ndim,
    window_hu=tuple(config.data.window_hu),
    augment=training_task.make_augment(config.augment) if real else None,
    class_set=config.segment.classes if kind.task == "segment" else None,
  )
  step = devices.train_step(
    steps.make_train_step(
      model,
      tx,
      kind.make_loss(config, devices.axis_name),
      prepare,
      score=kind.score,
      seed=config.seed,
      schedule=schedule,
      ema_decay=config.ema_decay,
      accumulate=config.optimizer.get("accumulate", 1),
      axis_name=devices.axis_name,
    )
  )
  return step, _start(training_task.make_model(config), tx, spec, config)


def infer(spec: Mapping[str, Any]) -> Work:
  """Makes an evaluation step on a batch that is on the device."""
  config = ml_collections.ConfigDict(spec["config"])
  devices = here(spec, config)
  model = training_task.make_model(config)
  step = devices.eval_step(
    steps.make_eval_step(
      model, ndim=config.model.ndim, window_hu=tuple(config.data.window_hu)
    )
  )
  variables = devices.put_replicated(network_variables(model, spec, config))
  batch = devices.put_batch(fake_batch(spec, config))

  def run() -> None:
    step(variables, batch)

  return _step_work(run, spec, config, devices, train=False)


def explain(spec: Mapping[str, Any]) -> Work:
  """Makes maps of all layers by all methods, by Grad-CAM, or one pass.

  The methods are those of one gradient. The one pass is forward, and back to
  the first map: the way that the gradients of all layers lie on, and no map
  made of them.
  """
  config = ml_collections.ConfigDict(spec["config"])
  device = jax.devices()[0]
  model = training_task.make_model(config)
  layers = list(cam.layer_strides(model))
  if spec["variant"] == "pass":
    explained = jax.jit(cam.make_gradients(model, layers=layers[:1]))
    info = {}
  else:
    every = tuple(cam.METHODS)
    methods = every if spec["variant"] == "maps" else (spec["variant"],)
    explained = jax.jit(cam.make_explain(model, methods=methods))
    info = {"note": f"{len(layers)} layers by {', '.join(methods)}"}
  variables = network_variables(model, spec, config)
  image = jax.random.uniform(jax.random.key(0), image_shape(spec, config))

  def run() -> None:
    jax.block_until_ready(explained(variables, image, 1))

  return _work(run, [device], volumes=spec["batch"], info=info)


def slide(spec: Mapping[str, Any]) -> Work:
  """Makes the way of a volume of HU through windows to its labels."""
  config = ml_collections.ConfigDict(spec["config"])
  devices = here(spec, config)
  segment = make_sliding(config, devices)
  variables = network_variables(training_task.make_model(config), spec, config)
  variables = devices.put_replicated(variables)
  hu = noise_hu(spec["scan_shape"])
  window, batch = spec["shape"], spec["batch"]
  windows = math.prod(
    len(sliding.window_starts(max(n, size), size, config.segment.overlap))
    for n, size in zip(hu.shape, window, strict=True)
  )

  def run() -> None:
    segment(variables, hu)

  size = "x".join(map(str, window))
  info = {
    "note": f"{windows} windows of {size}, {batch} at a time",
    "flops": _flops(spec, config, train=False) // batch * windows,
  }
  return _work(run, devices.mesh.devices.ravel(), volumes=1, info=info)


def report(spec: Mapping[str, Any]) -> Work:
  """Makes the way of a scanner's file to its linked report."""
  # Here, so that their memory is not on the other rows' account.
  from cadjax.data import scans
  from cadjax.link import scan
  from cadjax.report import linked

  models = scan.load_pair(spec["classifier"], spec["segmenter"])
  reading, writing = [], []

  def run() -> None:
    with tempfile.TemporaryDirectory() as folder:
      out = pathlib.Path(folder, "case")
      seconds, result = timed(
        lambda: scan.link_scan(models, scans.read_scan(spec["file"]))
      )
      reading.append(seconds)
      seconds, _ = timed(lambda: linked.write_linked(result, out))
      writing.append(seconds)

  def finish() -> dict[str, Any]:
    parts = {"models and link": reading, "pages and pictures": writing}
    # The first run compiled.
    return work.finish() | {
      "breakdown": {
        part: statistics.median(seconds[1:]) for part, seconds in parts.items()
      }
    }

  work = _work(run, jax.devices()[:1], volumes=1, info={})
  return dataclasses.replace(work, finish=finish)


def stages(spec: Mapping[str, Any]) -> Work:
  """Makes forward passes that end after each stage of the network."""
  config = ml_collections.ConfigDict(spec["config"])
  device = jax.devices()[0]
  model = training_task.make_model(config)
  shape = image_shape(spec, config)
  counted = flops.by_stage(flops.count(model, shape))
  variables = network_variables(model, spec, config)
  image = jax.random.uniform(jax.random.key(0), shape)

  def until(name: str) -> Callable:
    # The compiler drops all that comes after this feature map.
    def cut(variables, image):
      _, features = model.apply(variables, image, train=False)
      return features[name]

    return jax.jit(cut)

  cuts = {name: until(name) for name in counted if name != flops.HEAD}

  def seconds(cut: Callable) -> float:
    return timed(lambda: cut(variables, image).block_until_ready())[0]

  def run() -> Parts:
    return {name: seconds(cut) for name, cut in cuts.items()}

  info = {"stages": {name: counted[name] for name in cuts}}
  return Work(run, compiles=True, info=info | _about(device, 1))


def ceilings(spec: Mapping[str, Any]) -> Work:
  """Makes a square matrix product and a copy, the two sides of the roofline.

  The product has the type that the model computes in.
  """
  config = ml_collections.ConfigDict(spec["config"])
  device = jax.devices()[0]
  edge, size = CEILINGS.get(device.platform, CEILINGS["other"])
  key, dtype = jax.random.key(0), jnp.dtype(config.model.dtype)
  a = jax.random.normal(key, (edge, edge), dtype)
  x = jnp.zeros(size // 4, jnp.float32)
  product = jax.jit(jnp.matmul)
  # In place: fresh memory would measure how the system hands out pages.
  copy = jax.jit(lambda x: x + 1, donate_argnums=0)

  def run() -> Parts:
    nonlocal x
    matmul, _ = timed(lambda: product(a, a).block_until_ready())
    seconds, x = timed(lambda: copy(x).block_until_ready())
    return {"matmul": matmul, "copy": seconds}

  # A copy reads and writes.
  info = {"matmul_flops": 2 * edge**3, "copy_bytes": 2 * size}
  return Work(run, compiles=True, info=info | _about(device, 1))


MAKERS = {
  "train": train,
  "infer": infer,
  "explain": explain,
  "slide": slide,
  "report": report,
  "stages": stages,
  "ceilings": ceilings,
}


def here(
  spec: Mapping[str, Any], config: ml_collections.ConfigDict
) -> parallel.Parallel:
  """Lays out the devices of this machine that a row asks for.

  Raises:
    UserError: there are not so many.
    lookup.ConfigError: they do not divide the batch.
  """
  found, wanted = jax.devices(), spec["devices"]
  if wanted > len(found):
    raise UserError(f"--devices={wanted}: there are {len(found)}")
  devices = parallel.make_parallel(
    config.parallel, **config.mesh, devices=found[:wanted]
  )
  devices.check_batch(spec["batch"], _batch_shape(spec, config)[1])
  return devices


def _batch_shape(spec, config) -> tuple[int, ...]:
  """Returns [B, D, H, W, 1]; D is the slices drawn for a 2D classifier."""
  depth, *plane = spec["shape"]
  if config.model.ndim == 2 and training_task.task_of(config) == "classify":
    depth = config.data.slices_per_volume
  return (spec["batch"], depth, *plane, 1)


def image_shape(
  spec: Mapping[str, Any], config: ml_collections.ConfigDict
) -> tuple[int, ...]:
  """Returns the shape that the model sees, [N, (D,) H, W, 1]."""
  batch, depth, *rest = _batch_shape(spec, config)
  if config.model.ndim == 2:
    return (batch * depth, *rest)
  return (batch, depth, *rest)


def fake_batch(
  spec: Mapping[str, Any],
  config: ml_collections.ConfigDict,
  devices: parallel.Parallel | None = None,
) -> dict[str, np.ndarray]:
  """Makes a global batch of noise with the fields of training's batches.

  Args:
    spec: of the row.
    config: of the row.
    devices: that train on it, laid out as they take it; None for evaluation.
  """
  shape = _batch_shape(spec, config)
  size = shape[0]
  index = np.arange(size, dtype=np.int32)
  batch = {
    "image": noise_hu(shape),
    "valid": np.ones(size, np.float32),
    "index": index,
  }
  if training_task.task_of(config) == "classify":
    if devices and classification.takes_cells(config, devices, spec["shape"]):
      batch["image"] = folded.to_cells(batch["image"])
    return batch | {"label": index % config.model.num_classes}
  count = len(classes.CLASS_NAMES)
  rng = np.random.default_rng(1)
  return batch | {
    "mask": rng.integers(count, size=shape[:-1], dtype=np.uint8),
    "known": np.ones((size, count), np.float32),
  }


def _records(spec, config, devices) -> Iterator[dict[str, jax.Array]]:
  """Yields batches as training gets them, read and sent ahead."""
  config = config.copy_and_resolve_references()
  config.data.path = spec["data"]
  config.data.batch_size = spec["batch"]
  if training_task.task_of(config) == "segment":
    config.data.patch_size = spec["shape"]
  kind = tasks.find(config)
  task = kind.make_task(config, kind.open_dataset(config), devices)
  batches = task.batches(0, MANY_STEPS)
  return (batch for batch, _ in devices.prefetch(batches))


def _start(model, tx, spec, config) -> dict[str, Any]:
  return {
    "model": model,
    "tx": tx,
    "image_shape": image_shape(spec, config)[1:],
    "ema": config.ema_decay > 0,
  }


def network_variables(
  model: Any, spec: Mapping[str, Any], config: ml_collections.ConfigDict
) -> dict[str, Any]:
  """Returns variables of a network as before training.

  Without an optimizer's state, which would count as memory.
  """
  start = _start(model, optax.identity(), spec, config)
  key = jax.random.key(config.seed)
  return steps.create_state(key=key, **start).eval_variables()


def _about(device: jax.Device, number: int) -> dict[str, Any]:
  device_name = f"{number} x {device.device_kind}"
  return {"platform": device.platform, "device": device_name}


def _flops(spec, config, *, train: bool) -> int:
  model = training_task.make_model(config)
  counted = flops.count(model, image_shape(spec, config))
  return flops.step_flops(counted, train=train)


def _step_work(run, spec, config, devices, *, train: bool) -> Work:
  info = {"flops": _flops(spec, config, train=train)}
  used = devices.mesh.devices.ravel()
  return _work(run, used, volumes=spec["batch"], info=info)


def _work(run, used: Sequence[jax.Device], *, volumes: int, info) -> Work:
  def finish() -> dict[str, Any]:
    # A CPU keeps no such books.
    books = [device.memory_stats() or {} for device in used]
    peak = max(book.get("peak_bytes_in_use", 0) for book in books)
    return {"device_peak_bytes": peak} if peak else {}

  return Work(
    run,
    volumes=volumes,
    compiles=True,
    info=info | _about(used[0], len(used)),
    finish=finish,
  )
