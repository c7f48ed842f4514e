"""The only file that knows devices: one step function, under pmap or a mesh.

In both modes the state is one replicated pytree without a device axis, so
checkpoints and evaluation do not depend on how training was spread. A batch
stays global: it is divided here, over its examples (`data`) and, under a
mesh, over the depth of every volume (`space`).
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cadjax.core import lookup

PyTree = Any
MODES = ("pmap", "mesh")


@dataclasses.dataclass(frozen=True)
class Parallel:
  """Where a step runs.

  Attributes:
    mode: "pmap" or "mesh".
    mesh: all devices, with axes ("data", "space"), or as pmap has them,
      ("data",): with another mesh, what the first step returns would differ
      in its sharding from what it got, and the second one compile again.
    axis_name: the name for cross-device means inside a step; None under a
      mesh, where the compiler sees the global batch.
  """

  mode: str
  mesh: Mesh

  @property
  def axis_name(self) -> str | None:
    """The axis for `pmean` inside the step, if the mode needs one."""
    return "data" if self.mode == "pmap" else None

  @property
  def platform(self) -> str:
    """What the devices are: "cpu", "gpu" or "tpu"."""
    return self.mesh.devices.flat[0].platform

  @property
  def kind(self) -> str:
    """The devices' `device_kind`, such as "NVIDIA H200"."""
    return self.mesh.devices.flat[0].device_kind

  @property
  def count(self) -> int:
    """How many devices there are."""
    return self.mesh.size

  @property
  def data_size(self) -> int:
    """Over how many shards a batch's examples are divided."""
    return self.mesh.shape["data"]

  @property
  def space_size(self) -> int:
    """Over how many shards the depth of one volume is divided."""
    return self.mesh.shape.get("space", 1)

  def check_batch(self, batch_size: int, depth: int | None = None) -> None:
    """Raises ConfigError, naming sizes that would do, for a bad division."""
    n = self.data_size
    if batch_size < 1 or batch_size % n:
      below, above = batch_size // n * n, (batch_size // n + 1) * n
      fits = f"{below} or {above}" if below else f"{above}"
      raise lookup.ConfigError(
        f"the global batch size {batch_size} does not divide by the {n}"
        f" devices of the data axis; use {fits}"
      )
    if depth is not None and depth % self.space_size:
      raise lookup.ConfigError(
        f"a depth of {depth} does not divide by config.mesh.space ="
        f" {self.space_size}"
      )

  def put_replicated(self, tree: PyTree) -> PyTree:
    """Puts a copy of every leaf on each device."""
    return jax.device_put(tree, NamedSharding(self.mesh, P()))

  def put_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Divides a global batch of arrays [B, ...] over the devices."""
    if self.mode == "pmap":
      n = self.data_size
      batch = {
        k: v.reshape(n, v.shape[0] // n, *v.shape[1:]) for k, v in batch.items()
      }
    return {
      k: jax.device_put(v, NamedSharding(self.mesh, self._spec(v)))
      for k, v in batch.items()
    }

  def first_examples(
    self, batch: dict[str, jax.Array], count: int
  ) -> dict[str, np.ndarray]:
    """Returns the first examples of a batch of `put_batch`, on the host.

    Args:
      batch: on the devices.
      count: at most as many; fewer where a device holds fewer.
    """

    def first(x: jax.Array) -> np.ndarray:
      x = np.asarray(x)
      return (x[0] if self.mode == "pmap" else x)[:count]

    return jax.tree.map(first, batch)

  def abstract_replicated(self, tree: PyTree) -> PyTree:
    """What `put_replicated` would make of a tree of these shapes."""
    sharding = NamedSharding(self.mesh, P())
    return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )

  def abstract_batch(
    self, batch: dict[str, jax.ShapeDtypeStruct]
  ) -> dict[str, jax.ShapeDtypeStruct]:
    """What `put_batch` would make of a batch of these shapes."""

    def divided(x):
      shape = x.shape
      if self.mode == "pmap":
        n = self.data_size
        shape = (n, shape[0] // n, *shape[1:])
      whole = jax.ShapeDtypeStruct(shape, x.dtype)
      sharding = NamedSharding(self.mesh, self._spec(whole))
      return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)

    return {k: divided(v) for k, v in batch.items()}

  def _spec(self, value: np.ndarray | jax.ShapeDtypeStruct) -> P:
    is_volume = self.mode == "mesh" and value.ndim >= 4
    return P("data", "space") if is_volume else P("data")

  def _pinned(self, step: Callable) -> Callable:
    """Fixes how the maps of a network [B, D, H, W, C] lie on the mesh.

    Left to itself the compiler shards maps of one plane per device in ways
    whose gradients come out multiplied by the data axis (jax 0.10.2, seen on
    8 CPU devices); such small maps are kept whole here.
    """
    if self.space_size == 1:
      return step

    def pin(next_fn, args, kwargs, context):
      del context
      y = next_fn(*args, **kwargs)
      # A kernel of five axes comes in a tuple.
      if not (isinstance(y, jax.Array) and y.ndim == 5):
        return y
      planes, left = divmod(y.shape[1], self.space_size)
      spec = P("data", "space") if planes > 1 and not left else P("data")
      return jax.lax.with_sharding_constraint(y, NamedSharding(self.mesh, spec))

    def pinned(*args):
      with nn.intercept_methods(pin):
        return step(*args)

    return pinned

  def train_step(self, step: Callable) -> Callable:
    """Compiles `step(state, batch) -> (state, metrics)`; donates the state."""
    if self.mode == "pmap":
      return jax.pmap(
        step,
        axis_name=self.axis_name,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=(0,),
        devices=self.mesh.devices.ravel().tolist(),
      )
    replicated = NamedSharding(self.mesh, P())
    return jax.jit(
      self._pinned(step), donate_argnums=(0,), out_shardings=replicated
    )

  def eval_step(self, step: Callable) -> Callable:
    """Compiles `step(variables, batch) -> array [B, ...]`, back on the host."""
    if self.mode == "pmap":
      mapped = jax.pmap(
        step,
        axis_name=self.axis_name,
        in_axes=(None, 0),
        devices=self.mesh.devices.ravel().tolist(),
      )
      return lambda variables, batch: np.concatenate(
        list(np.asarray(mapped(variables, batch)))
      )
    jitted = jax.jit(self._pinned(step))
    return lambda variables, batch: np.asarray(jitted(variables, batch))

  def prefetch(
    self, batches: Iterable[tuple[dict[str, np.ndarray], Any]], size: int = 2
  ) -> Iterator[tuple[dict[str, jax.Array], Any]]:
    """Keeps `size` batches on their way to the devices, ahead of the step."""
    queue: collections.deque = collections.deque()
    for batch, extra in batches:
      queue.append((self.put_batch(batch), extra))
      if len(queue) > size:
        yield queue.popleft()
    yield from queue


def make_parallel(
  mode: str = "pmap",
  *,
  data: int = -1,
  space: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Parallel:
  """Lays the devices out.

  Args:
    mode: "pmap" (the default of the configs) or "mesh".
    data: how many shards divide the batch; -1 takes all that `space` leaves.
    space: how many shards divide the depth of each volume; 1 under pmap.
    devices: the devices to use, all of this process by default.

  Raises:
    ConfigError: for an unknown mode or sizes that do not fit the devices.
  """
  devices = list(devices or jax.devices())
  if mode not in MODES:
    raise lookup.ConfigError(
      f"config.parallel is {mode!r}; it is one of {MODES}"
    )
  if jax.process_count() > 1:
    raise lookup.ConfigError(
      "cadjax runs on the devices of one process, so far"
    )
  if mode == "pmap" and space != 1:
    raise lookup.ConfigError(
      "pmap divides the batch only; for config.mesh.space > 1 use"
      " --config.parallel=mesh"
    )
  if space < 1 or len(devices) % space:
    raise lookup.ConfigError(
      f"config.mesh.space = {space} does not divide the {len(devices)} devices"
    )
  data = len(devices) // space if data == -1 else data
  if data < 1 or data * space > len(devices):
    raise lookup.ConfigError(
      f"config.mesh asks for data {data} x space {space} devices; there are"
      f" {len(devices)}"
    )
  grid = np.asarray(devices[: data * space]).reshape(data, space)
  if mode == "pmap":
    return Parallel(mode, Mesh(grid[:, 0], ("data",)))
  return Parallel(mode, Mesh(grid, ("data", "space")))
