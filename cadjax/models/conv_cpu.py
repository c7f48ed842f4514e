"""3D convolution and pooling from parts that XLA does well on a CPU.

XLA's CPU backend is fast at 2D convolutions and matrix products. It is slow
at 3D convolutions and very slow at the gradients of strided ones and of
pooling. Everything here but `native` is made of slices, 2D convolutions and
products, with gradients of its own where autodiff would leave that ground. A
2D map is a volume of one plane.

`RULES` is the table of choices: the first row that fits a shape is taken.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from cadjax.models import winograd

Tap = tuple[int, int, int]
# Below this many output voxels one product over all taps beats 2D
# convolutions, which waste most of their tiles on small planes.
SMALL_MAP = 512
# From this many voxels on, what Winograd saves outweighs its transforms.
LARGE_MAP = 4096
# Below this many products a volume, compiling takes longer than computing.
FEW_PRODUCTS = 1_000_000
LAYOUTS = {2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


@dataclasses.dataclass(frozen=True)
class Window:
  """How a kernel steps over a volume; one value per axis.

  Attributes:
    size: taps of the kernel.
    strides: voxels between outputs.
    dilation: voxels between taps.
    padding: zeros on both sides.
  """

  size: Tap
  strides: Tap
  dilation: Tap
  padding: Tap

  def offset(self, axis: int, tap: int) -> int:
    """Output o sees voxel `o * stride + offset` through this tap."""
    return tap * self.dilation[axis] - self.padding[axis]

  def out(self, space: Sequence[int]) -> Tap:
    """Voxels of the output of a volume of `space` voxels."""
    reach = [d * (k - 1) for d, k in zip(self.dilation, self.size, strict=True)]
    return tuple(
      (n + 2 * p - r - 1) // s + 1
      for n, p, r, s in zip(
        space, self.padding, reach, self.strides, strict=True
      )
    )

  def taps(self) -> list[Tap]:
    """All taps, in the order of the kernel's memory."""
    return list(itertools.product(*map(range, self.size)))


def conv3d(
  x: jax.Array, kernel: jax.Array, window: Window, *, exact: bool = False
) -> jax.Array:
  """Convolves [B, D, H, W, C] with [d, h, w, C, F] to [B, D', H', W', F].

  Args:
    x: the map.
    kernel: of the type of `x`.
    window: of the kernel's size.
    exact: leaves Winograd out, whose rounding errors are larger (`RULES`).
  """
  return LOWERINGS[choose(x.shape, kernel.shape, window, exact)](
    x, kernel, window
  )


def native(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
  """XLA's own convolution; of 2D maps with the last two axes of `window`."""
  ndim = x.ndim - 2
  return lax.conv_general_dilated(
    x,
    kernel,
    window.strides[-ndim:],
    [(p, p) for p in window.padding[-ndim:]],
    rhs_dilation=window.dilation[-ndim:],
    dimension_numbers=LAYOUTS[ndim],
  )


# --- Taps: a strided view for each, and the way back -----------------------


def _view(x: jax.Array, window: Window, tap: Tap, out: Tap) -> jax.Array:
  """The voxels of the padded map `x` that `tap` sees: [B, *out, C]."""
  start = [t * d for t, d in zip(tap, window.dilation, strict=True)]
  stop = [
    a + (n - 1) * s + 1
    for a, n, s in zip(start, out, window.strides, strict=True)
  ]
  return lax.slice(
    x,
    (0, *start, 0),
    (x.shape[0], *stop, x.shape[-1]),
    (1, *window.strides, 1),
  )


def _padded(x: jax.Array, window: Window, value: float = 0.0) -> jax.Array:
  sides = [(p, p) for p in window.padding]
  return jnp.pad(x, ((0, 0), *sides, (0, 0)), constant_values=value)


def scatter_taps(
  parts: Mapping[Tap, jax.Array], space: Sequence[int], window: Window
) -> jax.Array:
  """Adds, for every tap, its part to the voxels that the tap sees.

  The voxels that share their place modulo the stride are one phase. Each is
  a sum of shifted parts, and the phases interleave: a transposed convolution
  without zeros between its inputs.

  Args:
    parts: tap -> [B, *out, C].
    space: voxels of the result.
    window: of the taps.

  Returns:
    [B, *space, C].
  """
  first = next(iter(parts.values()))
  cells = [-(-n // s) for n, s in zip(space, window.strides, strict=True)]
  phases = {}
  for tap, part in parts.items():
    steps = [
      divmod(window.offset(axis, t), window.strides[axis])
      for axis, t in enumerate(tap)
    ]
    # Negative padding cuts what falls outside.
    config = [
      (shift, n - shift - m, 0)
      for (shift, _), n, m in zip(steps, cells, part.shape[1:4], strict=True)
    ]
    none = (0, 0, 0)
    moved = lax.pad(part, jnp.zeros((), part.dtype), [none, *config, none])
    phase = tuple(rest for _, rest in steps)
    phases[phase] = phases[phase] + moved if phase in phases else moved
  zero = jnp.zeros((first.shape[0], *cells, first.shape[-1]), first.dtype)
  every = [
    phases.get(phase, zero)
    for phase in itertools.product(*map(range, window.strides))
  ]
  if len(every) == 1:
    return every[0]
  whole = jnp.stack(every).reshape(*window.strides, *zero.shape)
  whole = whole.transpose(3, 4, 0, 5, 1, 6, 2, 7).reshape(
    zero.shape[0],
    *(n * s for n, s in zip(cells, window.strides, strict=True)),
    zero.shape[-1],
  )
  return whole[:, : space[0], : space[1], : space[2]]


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
  """A product whose sums are float32 or better."""
  dims = (((contract[0],), (contract[1],)), ((), ()))
  wide = jnp.promote_types(a.dtype, jnp.float32)
  return lax.dot_general(a, b, dims, preferred_element_type=wide)


def _rows(x: jax.Array) -> jax.Array:
  return x.reshape(-1, x.shape[-1])


# --- One product: pointwise kernels, and columns of all taps ---------------


def _columns(x: jax.Array, window: Window) -> jax.Array:
  """[B, *space, C] -> [B, *out, taps * C]."""
  out, x = window.out(x.shape[1:4]), _padded(x, window)
  views = [_view(x, window, tap, out) for tap in window.taps()]
  return views[0] if len(views) == 1 else jnp.concatenate(views, -1)


def _columns_forward(x, kernel, window):
  return _dot(_columns(x, window), _rows(kernel), (4, 0)).astype(x.dtype)


def _columns_dx(dy, kernel, space, window):
  parts = _dot(dy, _rows(kernel), (4, 1))
  parts = parts.reshape(*dy.shape[:4], -1, kernel.shape[3])
  by_tap = {tap: parts[..., i, :] for i, tap in enumerate(window.taps())}
  return scatter_taps(by_tap, space, window).astype(dy.dtype)


def _columns_dkernel(x, dy, window):
  a, b = _rows(_columns(x, window)), _rows(dy)
  if a.shape[1] > b.shape[1] and len(window.taps()) == 1:
    # The product runs faster with the narrow side first. The barrier keeps
    # XLA from folding the transpose back in.
    flat = lax.optimization_barrier(_dot(b, a, (0, 0))).T
  else:
    flat = _dot(a, b, (0, 0))
  return flat.reshape(*window.size, x.shape[-1], dy.shape[-1])


# --- Planes: one 2D convolution for each tap in depth ----------------------


def _conv2d(x: jax.Array, kernel: jax.Array, window: Window) -> jax.Array:
  """Convolves every plane of [B, D, H, W, C] with [h, w, C, F]."""
  y = native(x.reshape(-1, *x.shape[2:]), kernel, window)
  return y.reshape(*x.shape[:2], *y.shape[1:])


def _depth_range(window: Window, tap: int, planes: int, out: int) -> Tap:
  """(first, past the last) output plane that sees a plane; its first plane."""
  stride, offset = window.strides[0], window.offset(0, tap)
  low = max(0, -(offset // stride))
  high = min(out, (planes - 1 - offset) // stride + 1)
  return low, max(low, high), low * stride + offset


def _planes_forward(x, kernel, window):
  depth = x.shape[1]
  out = window.out(x.shape[1:4])[0]
  stride, total = window.strides[0], None
  for tap in range(window.size[0]):
    low, high, start = _depth_range(window, tap, depth, out)
    if low == high:
      continue
    if stride == 1:
      # All planes, cut afterwards: the cut costs nothing there, fused into
      # the sum, while a cut input is a copy.
      y = _conv2d(x, kernel[tap], window)[:, start : start + high - low]
    else:
      stop = start + (high - low - 1) * stride + 1
      y = _conv2d(x[:, start:stop:stride], kernel[tap], window)
    sides = ((0, 0), (low, out - high), (0, 0), (0, 0), (0, 0))
    y = jnp.pad(y.astype(jnp.promote_types(x.dtype, jnp.float32)), sides)
    total = y if total is None else total + y
  return total.astype(x.dtype)


def _mirrored(kernel: jax.Array, window: Window) -> tuple[jax.Array, Window]:
  """The kernel and window of the input gradient, where strides are 1."""
  padding = tuple(
    d * (k - 1) - p
    for d, k, p in zip(
      window.dilation, window.size, window.padding, strict=True
    )
  )
  flipped = jnp.flip(kernel, (0, 1, 2)).swapaxes(3, 4)
  return flipped, dataclasses.replace(window, padding=padding)


def _planes_dx(dy, kernel, space, window):
  if max(window.strides) > 1:
    return _columns_dx(dy, kernel, space, window)
  return _planes_forward(dy, *_mirrored(kernel, window))


def _planes_dkernel(x, dy, window):
  if max(window.strides) > 1:
    return _planes_dkernel_strided(x, dy, window)
  return _planes_dkernel_scan(x, dy, window)


def _planes_dkernel_strided(x, dy, window):
  """One 2D kernel gradient for each tap in depth."""
  stride, taps = window.strides[0], []
  for tap in range(window.size[0]):
    low, high, start = _depth_range(window, tap, x.shape[1], dy.shape[1])
    if low == high:
      taps.append(jnp.zeros((*window.size[1:], x.shape[-1], dy.shape[-1])))
      continue
    stop = start + (high - low - 1) * stride + 1
    seen = x[:, start:stop:stride]
    like = jax.ShapeDtypeStruct(
      (*window.size[1:], x.shape[-1], dy.shape[-1]), x.dtype
    )
    pull = jax.linear_transpose(
      lambda kernel, seen=seen: _conv2d(seen, kernel, window), like
    )
    taps.append(pull(dy[:, low:high])[0])
  return jnp.stack(taps)


def _planes_dkernel_scan(x, dy, window):
  """Plane by plane: the columns of one plane times the planes that saw it.

  The columns of one plane stay in the cache; those of a whole large map
  would be 27 times its size.
  """
  depth, (_, height, width) = x.shape[1], dy.shape[1:4]
  flat = dataclasses.replace(
    window,
    size=(1, *window.size[1:]),
    dilation=(1, *window.dilation[1:]),
    padding=(0, *window.padding[1:]),
  )
  x = _padded(x, flat)
  offsets = [window.offset(0, tap) for tap in range(window.size[0])]
  # Plane z is seen by output z - offset; `margin` keeps that index positive.
  margin = max(*map(abs, offsets), depth - dy.shape[1])
  dy = jnp.pad(dy, ((0, 0), (margin, margin), (0, 0), (0, 0), (0, 0)))

  def add(total, index):
    b, z = index // depth, index % depth
    plane = lax.dynamic_slice(x, (b, z, 0, 0, 0), (1, 1, *x.shape[2:]))
    views = [_view(plane, flat, tap, (1, height, width)) for tap in flat.taps()]
    columns = _rows(jnp.concatenate(views, -1))
    seeing = [
      lax.dynamic_slice(
        dy, (b, z - offset + margin, 0, 0, 0), (1, 1, *dy.shape[2:])
      )
      for offset in offsets
    ]
    return total + _dot(
      _rows(jnp.concatenate(seeing, -1)), columns, (0, 0)
    ), None

  features, channels = dy.shape[-1], x.shape[-1]
  shape = (len(offsets) * features, math.prod(flat.size) * channels)
  zero = jnp.zeros(shape, jnp.promote_types(x.dtype, jnp.float32))
  total, _ = lax.scan(add, zero, jnp.arange(x.shape[0] * depth))
  total = total.reshape(len(offsets), features, *flat.size[1:], channels)
  return total.transpose(0, 2, 3, 4, 1)


# --- The stem: few channels, so the taps in depth become channels ----------


def _depth_as_channels(x: jax.Array, window: Window) -> jax.Array:
  """[B, D, H, W, C] -> [B, D', H, W, d * C]."""
  deep = dataclasses.replace(
    window,
    size=(window.size[0], 1, 1),
    strides=(window.strides[0], 1, 1),
    padding=(window.padding[0], 0, 0),
  )
  return _columns(x, deep)


def _stem_forward(x, kernel, window):
  planes = _depth_as_channels(x, window)
  flat = jnp.moveaxis(kernel, 0, 2).reshape(
    *kernel.shape[1:3], -1, kernel.shape[-1]
  )
  return _conv2d(planes, flat, window)


def _stem_dx(dy, kernel, space, window):
  like = jax.ShapeDtypeStruct((dy.shape[0], *space, kernel.shape[3]), dy.dtype)
  pull = jax.linear_transpose(lambda x: _stem_forward(x, kernel, window), like)
  return pull(dy)[0]


def _stem_dkernel(x, dy, window):
  """A scan over the output planes, each with the columns of its taps."""
  planes = _depth_as_channels(x, window)
  flat = dataclasses.replace(
    window,
    size=(1, *window.size[1:]),
    strides=(1, *window.strides[1:]),
    padding=(0, *window.padding[1:]),
  )
  planes = _padded(planes, flat)
  out = (1, *dy.shape[2:4])

  def add(total, pair):
    plane, seen_by = pair
    plane = plane[None, None]
    views = [_view(plane, flat, tap, out) for tap in flat.taps()]
    columns = _rows(jnp.concatenate(views, -1))
    return total + _dot(_rows(seen_by), columns, (0, 0)), None

  features, channels = dy.shape[-1], planes.shape[-1]
  shape = (features, math.prod(flat.size) * channels)
  zero = jnp.zeros(shape, jnp.promote_types(x.dtype, jnp.float32))
  total, _ = lax.scan(
    add,
    zero,
    (
      planes.reshape(-1, *planes.shape[2:]),
      dy.reshape(-1, *dy.shape[2:]),
    ),
  )
  total = total.reshape(features, *window.size[1:], window.size[0], -1)
  return total.transpose(3, 1, 2, 4, 0)


# --- Winograd ---------------------------------------------------------------


def _winograd_forward(x, kernel, window):
  del window
  return winograd.forward(x, kernel)


def _winograd_dx(dy, kernel, space, window):
  del space
  # By the lowering, so that second derivatives are convolutions, too.
  return LOWERINGS["winograd"](dy, _mirrored(kernel, window)[0], window)


def _winograd_dkernel(x, dy, window):
  del window
  return winograd.kernel_gradient(x, dy)


# --- The table --------------------------------------------------------------


def _flat(window: Window) -> bool:
  return window.size[0] == window.strides[0] == 1


def _native(x, kernel, window):
  if _flat(window):
    return _conv2d(x, kernel[0], window)
  return native(x, kernel, window)


def _with_gradients(
  forward: Callable, input_gradient: Callable, kernel_gradient: Callable
) -> Callable:
  """Makes `conv(x, kernel, window)` from its value and its two gradients.

  The gradients are themselves made of differentiable parts, so second
  derivatives in reverse mode exist.
  """

  @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
  def conv(x, kernel, window):
    return forward(x, kernel, window)

  def save(x, kernel, window):
    return forward(x, kernel, window), (x, kernel)

  def pull(window, saved, dy):
    x, kernel = saved
    dx = input_gradient(dy, kernel, x.shape[1:4], window)
    dkernel = kernel_gradient(x, dy, window)
    return dx, dkernel.astype(kernel.dtype)

  conv.defvjp(save, pull)
  return conv


LOWERINGS = {
  "native": _native,
  "columns": _with_gradients(_columns_forward, _columns_dx, _columns_dkernel),
  "planes": _with_gradients(_planes_forward, _planes_dx, _planes_dkernel),
  "stem": _with_gradients(_stem_forward, _stem_dx, _stem_dkernel),
  "winograd": _with_gradients(
    _winograd_forward, _winograd_dx, _winograd_dkernel
  ),
}


@dataclasses.dataclass(frozen=True)
class Shape:
  """What a choice depends on.

  Attributes:
    channels: of the input.
    voxels: of one output.
    taps: of the kernel.
    flat: whether the kernel is of one plane and goes to every plane.
    products: of one volume.
    tiles: whether Winograd can do it.
  """

  channels: int
  voxels: int
  taps: int
  flat: bool
  products: int
  tiles: bool


@dataclasses.dataclass(frozen=True)
class Rule:
  """One row of the table.

  Attributes:
    lowering: key of `LOWERINGS`.
    applies: to a `Shape`.
    reason: why the lowering is taken there.
    error: the largest relative rounding error in float32 that the tests
      allow, of the value and both gradients, against float64.
  """

  lowering: str
  applies: Callable[[Shape], bool]
  reason: str
  error: float = 1e-6


RULES = (
  Rule("columns", lambda s: s.taps == 1, "a pointwise kernel is one product"),
  Rule(
    "native",
    lambda s: s.products < FEW_PRODUCTS,
    "where little is computed, what compiles fastest is fastest",
  ),
  Rule(
    "native",
    lambda s: s.flat and s.voxels < LARGE_MAP,
    "XLA is fast at 2D convolutions, less so at their kernel gradients",
  ),
  Rule(
    "stem",
    lambda s: s.channels == 1,
    "one channel leaves a product empty; with the depth taps as channels one"
    " 2D convolution does it all",
  ),
  Rule(
    "winograd",
    lambda s: s.tiles and s.voxels >= LARGE_MAP,
    "on a large map the saved products outweigh the transforms",
    error=5e-6,
  ),
  Rule(
    "planes",
    lambda s: s.voxels >= SMALL_MAP,
    "2D convolutions need no copy of all taps",
  ),
  Rule(
    "columns",
    lambda s: True,
    "2D convolutions are slow on planes of a few voxels",
  ),
)


def choose(
  shape: Sequence[int],
  kernel_shape: Sequence[int],
  window: Window,
  exact: bool = False,
) -> str:
  """Returns the lowering of the first rule that applies.

  Args:
    shape: of the map, [B, D, H, W, C].
    kernel_shape: [d, h, w, C, F].
    window: of the kernel.
    exact: whether Winograd is left out.
  """
  voxels = math.prod(window.out(shape[1:4]))
  asked = Shape(
    channels=kernel_shape[3],
    voxels=voxels,
    taps=math.prod(window.size),
    flat=_flat(window),
    products=voxels * math.prod(kernel_shape),
    tiles=not exact and winograd.fits(shape, window),
  )
  return next(rule.lowering for rule in RULES if rule.applies(asked))


# --- Max-pooling ------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: jax.Array, window: Window) -> jax.Array:
  """Takes maxima of [B, D, H, W, C] over a window, one axis after the other.

  Of equal voxels the first one gets the gradient, as XLA has it.
  """
  return _pool_stages(x, window)[-1]


def _along(window: Window, axis: int) -> Window:
  """The part of `window` along one axis."""

  def only(values, other):
    return tuple(v if a == axis else other for a, v in enumerate(values))

  return Window(
    only(window.size, 1),
    only(window.strides, 1),
    only(window.dilation, 1),
    only(window.padding, 0),
  )


def _pool_views(x: jax.Array, window: Window) -> dict[Tap, jax.Array]:
  out, x = window.out(x.shape[1:4]), _padded(x, window, -jnp.inf)
  return {tap: _view(x, window, tap, out) for tap in window.taps()}


def _pool_stages(x: jax.Array, window: Window) -> list[jax.Array]:
  """The map, and what is left of it after W, H and D."""
  stages = [x]
  for axis in (2, 1, 0):
    views = _pool_views(stages[-1], _along(window, axis))
    stages.append(functools.reduce(jnp.maximum, views.values()))
  return stages


def _pool_save(x, window):
  stages = _pool_stages(x, window)
  return stages[-1], stages


def _pool_pull(window, stages, dy):
  for axis, x, y in zip((0, 1, 2), stages[-2::-1], stages[:0:-1], strict=True):
    part = _along(window, axis)
    taken, parts = jnp.zeros(y.shape, bool), {}
    for tap, view in _pool_views(x, part).items():
      first = (view == y) & ~taken
      parts[tap] = jnp.where(first, dy, 0)
      taken |= first
    dy = scatter_taps(parts, x.shape[1:4], part)
  return (dy,)


max_pool.defvjp(_pool_save, _pool_pull)
