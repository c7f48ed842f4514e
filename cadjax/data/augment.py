"""Augmentation of one example on the device, in 2D and 3D alike.

Every function is pure, `fn(key, image, mask, *, options) -> (image, mask)`,
and works under `jax.jit` and `jax.vmap`:

  key: a JAX random key; the same key gives the same result.
  image: float32 [*space, channels] in [0, 1], [H, W] or [D, H, W] in space.
  mask: [*space] of any integer type, or None; only `spatial` changes it. Of a
    training, its values are those of `Tissue`.
  options: where one has a value per axis, in the order of the axes; one
    number stands for all axes.

What is returned has the same shapes and types.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy import ndimage

from cadjax.core import lookup
from data_prep.tissues import HEART

# Above the values of `Tissue`, so that a new one leaves the draws as they are.
_MOST_TISSUES = 64
Example = tuple[jax.Array, jax.Array | None]
PerAxis = float | Sequence[float]


def spatial(
  key: jax.Array,
  image: jax.Array,
  mask: jax.Array | None,
  *,
  reorder: float = 0.0,
  flip: PerAxis = 0.0,
  probability: float = 0.5,
  rotation_degrees: PerAxis = 10.0,
  scale: float = 0.1,
  shear: float = 0.0,
  translation: PerAxis = 0.05,
  elastic_probability: float = 0.0,
  elastic_mm: float = 3.0,
  elastic_cells: int = 4,
  spacing_mm: PerAxis = 1.0,
  fill: float = 0.0,
) -> Example:
  """Flips, turns, scales, shears, shifts and bends in one interpolation.

  Linear for the image, nearest for the mask; what comes from outside is
  `fill`, and 0 in the mask. Ranges are symmetric around no change.

  Options:
    reorder: probability of putting the axes in an order drawn at random, for
      cubes without an orientation. Together with flip=0.5, 1 gives the 48
      symmetries of a cube: all turns by 90 degrees and their mirror images.
    flip: probability of mirroring each axis. A mirrored thorax has its heart
      on the right, so leave the left-right axis (W) and the others at 0
      unless that is wanted.
    probability: of rotation, scale, shear and translation together.
    rotation_degrees: largest angle about each of D, H and W; about D only
      in 2D (the first value).
    scale: largest relative change of size, log-uniform, >= 0.
    shear: largest shift of one axis per unit of another, for every pair.
    translation: largest shift as a fraction of each axis.
    elastic_probability: of the elastic deformation.
    elastic_mm: standard deviation of the displacement of a control point
      along each axis, in the units of `spacing_mm`; above about a tenth of
      the distance between control points the image may fold.
    elastic_cells: control points along each axis, cubically interpolated.
    spacing_mm: size of a voxel in mm along each axis, so that rotations and
      shears stay rigid on an anisotropic grid.
    fill: value outside the image.
  """
  space = image.shape[:-1]
  spacing = _per_axis(spacing_mm, len(space))
  keys = jax.random.split(key, 3)
  if reorder:
    # Not one more key of the split, which would change the others.
    key_order = jax.random.fold_in(key, len(keys))
    image, mask = _reorder(key_order, image, mask, reorder)
  image, mask = _flip(keys[0], image, mask, _per_axis(flip, len(space)))
  if not (probability or elastic_probability):
    return image, mask
  matrix, shift = _draw_affine(
    keys[1],
    len(space),
    probability,
    (rotation_degrees, scale, shear, translation),
  )
  coordinates = _affine_coordinates(space, spacing, matrix, shift)
  if elastic_probability:
    bend = _draw_elastic(
      keys[2], space, elastic_probability, elastic_mm, elastic_cells
    )
    coordinates = [
      c + b / s for c, b, s in zip(coordinates, bend, spacing, strict=True)
    ]
  channels = [
    ndimage.map_coordinates(
      image[..., c], coordinates, order=1, mode="constant", cval=fill
    )
    for c in range(image.shape[-1])
  ]
  if mask is not None:
    mask = ndimage.map_coordinates(mask, coordinates, order=0, mode="constant")
  return jnp.stack(channels, axis=-1), mask


def tissues(
  key: jax.Array,
  image: jax.Array,
  mask: jax.Array | None,
  *,
  probability: float = 0.5,
  texture: float = 0.04,
  softness: float = 1.0,
  shift_probability: float = 0.0,
  shift: float = 0.1,
  bias: float = 0.2,
) -> Example:
  """Draws the image anew from its mask, or shifts the values of each tissue.

  A network that saw a tissue in any intensity relies on shapes, and so finds it
  in scans whose contrast, energy and kernel no phantom has. Billot et al. 2023,
  SynthSeg, https://doi.org/10.1016/j.media.2023.102789, section 3: each label
  gets a mean and a standard deviation, then the whole is blurred and multiplied
  with a smooth field. Needs masks that name the tissue of every voxel.

  Options:
    probability: of drawing the image anew.
    texture: largest standard deviation within a tissue, uniform from 0; means
      are uniform in [0, 1].
    softness: largest standard deviation in voxels of the blur of what was
      drawn anew, uniform from a quarter of it: labels have no partial volume.
    shift_probability: of shifting an image that was not drawn anew.
    shift: largest shift of a tissue, uniform in [-shift, shift].
    bias: largest standard deviation of the logarithm of the smooth field,
      uniform from 0; of what was drawn anew.
  """
  if mask is None:
    raise lookup.ConfigError(
      "config.augment.tissues needs masks, which this training does not read"
    )
  space = image.shape[:-1]
  keys = jax.random.split(key, 9)
  means = jax.random.uniform(keys[0], (_MOST_TISSUES,))
  widths = texture * jax.random.uniform(keys[1], (_MOST_TISSUES,))
  white = jax.random.normal(keys[2], (math.prod(space),)).reshape(space)
  drawn = (means[mask] + widths[mask] * white)[..., None]
  width = softness * jax.random.uniform(keys[3], (), minval=0.25)
  drawn = _gaussian(drawn, width)
  cells = (min(4, n) for n in space)
  field = jax.image.resize(
    jax.random.normal(keys[4], tuple(cells)), space, "cubic"
  )
  field = bias * jax.random.uniform(keys[5], ()) * field
  drawn = jnp.clip(drawn * jnp.exp(field)[..., None], 0.0, 1.0)
  shifts = jax.random.uniform(
    keys[6], (_MOST_TISSUES,), minval=-shift, maxval=shift
  )
  shifted = jnp.clip(image + shifts[mask][..., None], 0.0, 1.0)
  anew = jax.random.bernoulli(keys[7], probability)
  moved = jax.random.bernoulli(keys[8], shift_probability)
  image = jnp.where(anew, drawn, jnp.where(moved, shifted, image))
  return image, mask


def blur(
  key: jax.Array,
  image: jax.Array,
  mask: jax.Array | None,
  *,
  probability: float = 0.2,
  sigma: float = 1.0,
) -> Example:
  """Blurs the image with a Gaussian, renormalised at the edges.

  Options:
    probability: of blurring.
    sigma: largest standard deviation in voxels, uniform from 0.
  """
  on, drawn = _draw(key, probability, 0.0, sigma)
  return _gaussian(image, jnp.where(on, drawn, 0.0)), mask


def _gaussian(image: jax.Array, width: jax.Array) -> jax.Array:
  """Blurs [*space, channels] by a standard deviation in voxels."""
  # A width of nearly 0 makes each kernel exactly [.., 0, 1, 0, ..].
  width = jnp.maximum(width, 1e-3)
  for axis, n in enumerate(image.shape[:-1]):
    # A product with a matrix, not a sum over taps: XLA on CPU would compute
    # what came before (an interpolation) again for every tap.
    offsets = jnp.arange(n)[:, None] - jnp.arange(n)[None, :]
    kernel = jnp.exp(-0.5 * (offsets / width) ** 2)
    kernel = kernel / jnp.sum(kernel, axis=1, keepdims=True)
    image = jnp.tensordot(kernel, image, (1, axis), precision="highest")
    image = jnp.moveaxis(image, 0, axis)
  return image


def noise(
  key: jax.Array,
  image: jax.Array,
  mask: jax.Array | None,
  *,
  probability: float = 0.5,
  sigma: float = 0.05,
) -> Example:
  """Adds white Gaussian noise and clips to [0, 1].

  Options:
    probability: of adding noise.
    sigma: largest standard deviation as a fraction of the HU window, uniform
      from 0: 0.05 of a window 1000 HU wide is 50 HU.
  """
  key, key_noise = jax.random.split(key)
  on, drawn = _draw(key, probability, 0.0, sigma)
  # Drawn flat, which compiles much faster and has the same values.
  white = jax.random.normal(key_noise, (image.size,)).reshape(image.shape)
  noisy = image + drawn * white
  return jnp.where(on, jnp.clip(noisy, 0.0, 1.0), image), mask


def intensity(
  key: jax.Array,
  image: jax.Array,
  mask: jax.Array | None,
  *,
  probability: float = 0.5,
  shift: float = 0.05,
  scale: float = 0.1,
) -> Example:
  """Scales and shifts the intensities (HU) and clips to [0, 1].

  Options:
    probability: of the change.
    shift: largest shift as a fraction of the HU window, uniform in
      [-shift, shift]: 0.05 of a window 1000 HU wide is 50 HU.
    scale: largest relative change of the contrast about the middle of the
      window, uniform in [-scale, scale].
  """
  key, key_scale = jax.random.split(key)
  on, offset = _draw(key, probability, -shift, shift)
  factor = 1 + jax.random.uniform(key_scale, (), minval=-scale, maxval=scale)
  changed = jnp.clip((image - 0.5) * factor + 0.5 + offset, 0.0, 1.0)
  return jnp.where(on, changed, image), mask


def gamma(
  key: jax.Array,
  image: jax.Array,
  mask: jax.Array | None,
  *,
  probability: float = 0.3,
  largest: float = 1.5,
) -> Example:
  """Raises the image to a random power.

  Options:
    probability: of the change.
    largest: the power is log-uniform in [1 / largest, largest], >= 1.
  """
  bound = math.log(largest)
  on, power = _draw(key, probability, -bound, bound)
  return jnp.where(on, jnp.clip(image, 0.0, 1.0) ** jnp.exp(power), image), mask


def cutout(
  key: jax.Array,
  image: jax.Array,
  mask: jax.Array | None,
  *,
  probability: float = 0.5,
  size: PerAxis = 0.25,
  count: int = 1,
  fill: float = 0.0,
) -> Example:
  """Sets boxes of the image to one value (DeVries & Taylor 2017).

  Options:
    probability: of each box.
    size: edge of a box as a fraction of each axis. Its centre is uniform
      over the image, so a part of it may lie outside.
    count: number of boxes.
    fill: value inside.
  """
  space = image.shape[:-1]
  sizes = _per_axis(size, len(space))
  for key_box in jax.random.split(key, count):
    key_on, key_centre = jax.random.split(key_box)
    inside = jax.random.bernoulli(key_on, probability)
    centre = jax.random.uniform(key_centre, (len(space),))
    for axis, n in enumerate(space):
      near = (
        jnp.abs(_ramp(space, axis) - centre[axis] * n) <= sizes[axis] * n / 2
      )
      inside = inside & near
    image = jnp.where(inside[..., None], fill, image)
  return image, mask


def surroundings(
  key: jax.Array,
  image: jax.Array,
  mask: jax.Array | None,
  *,
  probability: float = 0.5,
  reach: float = 4.0,
) -> Example:
  """Blanks what is not near the heart, at a random distance.

  A classifier that meets many borders and many values beyond them cannot rely
  on the lungs, the wall of the chest or where its input ends. Needs masks that
  name the tissues of the heart.

  Options:
    probability: of blanking.
    reach: largest width in voxels of the blur that moves the border, uniform
      from a quarter of it; the border is where between 0.02 and 0.5 of the
      heart is left, the value beyond it uniform in [0, 1].
  """
  if mask is None:
    raise lookup.ConfigError(
      "config.augment.surroundings needs masks; config.data.prior.use = 'heart'"
      " reads them"
    )
  keys = jax.random.split(key, 4)
  heart = jnp.isin(mask, jnp.asarray(HEART, mask.dtype))
  width = reach * jax.random.uniform(keys[0], (), minval=0.25)
  near = _gaussian(heart.astype(image.dtype)[..., None], width)
  level = jax.random.uniform(keys[1], (), minval=0.02, maxval=0.5)
  value = jax.random.uniform(keys[2], ())
  on = jax.random.bernoulli(keys[3], probability)
  return jnp.where(on & (near < level), value, image), mask


# In the order in which they act.
AUGMENTATIONS = {
  "spatial": spatial,
  "tissues": tissues,
  "blur": blur,
  "noise": noise,
  "intensity": intensity,
  "gamma": gamma,
  "cutout": cutout,
  "surroundings": surroundings,
}

# Whose key is which: a new one comes last, wherever it acts.
_STREAMS = (
  "spatial",
  "blur",
  "noise",
  "intensity",
  "gamma",
  "cutout",
  "tissues",
  "surroundings",
)


def augment(
  key: jax.Array,
  image: jax.Array,
  mask: jax.Array | None,
  *,
  options: Mapping[str, Mapping[str, Any]],
) -> Example:
  """Applies the augmentations named in `options`.

  They act in the order of `AUGMENTATIONS`, each with a key of its own: one
  more does not change what the others draw.

  Args:
    key: a JAX random key.
    image: [*space, channels] float32 in [0, 1].
    mask: [*space] integers, or None.
    options: name to options; {"noise": {}} is noise with its defaults, {}
      changes nothing.

  Returns:
    The image and the mask, of the same shapes and types.

  Raises:
    lookup.UnknownName: for an unknown augmentation or option.
  """
  _check(options)
  for name, fn in AUGMENTATIONS.items():
    if name in options:
      key_fn = jax.random.fold_in(key, _STREAMS.index(name))
      image, mask = fn(key_fn, image, mask, **options[name])
  return image, mask


def _check(options: Mapping[str, Mapping[str, Any]]) -> None:
  lookup.check_known(options, AUGMENTATIONS, "augmentation")
  for name, chosen in options.items():
    known = AUGMENTATIONS[name].__kwdefaults__
    lookup.check_known(chosen, known, f"option of the augmentation {name!r}")


def _per_axis(value: PerAxis, count: int) -> tuple[float, ...]:
  if isinstance(value, int | float):
    return (float(value),) * count
  if len(value) != count:
    raise lookup.ConfigError(
      f"{tuple(value)} has {len(value)} values; one per axis are {count}"
    )
  return tuple(float(each) for each in value)


def _ramp(space: Sequence[int], axis: int) -> jax.Array:
  """Returns the index along one axis, shaped to broadcast over space."""
  shape = [n if a == axis else 1 for a, n in enumerate(space)]
  return jnp.arange(space[axis], dtype=jnp.float32).reshape(shape)


def _draw(
  key: jax.Array, probability: float, low: float, high: float
) -> tuple[jax.Array, jax.Array]:
  """Draws whether to act, and how much."""
  key_on, key_value = jax.random.split(key)
  on = jax.random.bernoulli(key_on, probability)
  return on, jax.random.uniform(key_value, (), minval=low, maxval=high)


def _flip(
  key: jax.Array,
  image: jax.Array,
  mask: jax.Array | None,
  probabilities: Sequence[float],
) -> Example:
  for axis, probability in enumerate(probabilities):
    if not probability:
      continue
    on = jax.random.bernoulli(jax.random.fold_in(key, axis), probability)
    image = jnp.where(on, jnp.flip(image, axis), image)
    if mask is not None:
      mask = jnp.where(on, jnp.flip(mask, axis), mask)
  return image, mask


def _reorder(
  key: jax.Array,
  image: jax.Array,
  mask: jax.Array | None,
  probability: float,
) -> Example:
  space = image.shape[:-1]
  if len(set(space)) > 1:
    raise lookup.ConfigError(
      "config.augment.spatial.reorder needs axes of one length, and the"
      f" volumes have {'x'.join(map(str, space))} voxels"
    )
  key_on, key_order = jax.random.split(key)
  orders = list(itertools.permutations(range(len(space))))
  drawn = jax.random.randint(key_order, (), 0, len(orders))
  # The first order changes nothing.
  chosen = jnp.where(jax.random.bernoulli(key_on, probability), drawn, 0)
  turned, turned_mask = image, mask
  for i, order in enumerate(orders[1:], 1):
    here = chosen == i
    turned = jnp.where(here, image.transpose(*order, len(space)), turned)
    if mask is not None:
      turned_mask = jnp.where(here, mask.transpose(order), turned_mask)
  return turned, turned_mask


def _rotation(ndim: int, degrees: Sequence[jax.Array]) -> jax.Array:
  """Returns the rotation about D, then H, then W, or in the plane in 2D.

  A positive angle turns the earlier of the two other axes towards the later.
  """
  planes = [(0, 1)] if ndim == 2 else [(1, 2), (0, 2), (0, 1)]
  matrix = jnp.eye(ndim)
  for (i, j), angle in zip(planes, degrees, strict=False):
    cosine, sine = jnp.cos(jnp.deg2rad(angle)), jnp.sin(jnp.deg2rad(angle))
    turn = jnp.eye(ndim).at[i, i].set(cosine).at[j, j].set(cosine)
    turn = turn.at[j, i].set(sine).at[i, j].set(-sine)
    matrix = jnp.matmul(turn, matrix, precision="highest")
  return matrix


def _draw_affine(
  key: jax.Array,
  ndim: int,
  probability: float,
  ranges: tuple[PerAxis, float, float, PerAxis],
) -> tuple[jax.Array, jax.Array]:
  """Draws a matrix in mm and a shift in fractions, from output to input."""
  degrees, scale, shear, translation = ranges
  keys = jax.random.split(key, 5)

  def draw(i: int, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.uniform(keys[i], shape, minval=-1.0, maxval=1.0)

  on = jax.random.bernoulli(keys[0], probability)
  turn = _rotation(ndim, draw(1, (3,)) * jnp.asarray(_per_axis(degrees, 3)))
  off_diagonal = 1 - jnp.eye(ndim)
  slant = jnp.eye(ndim) + shear * off_diagonal * draw(2, (ndim, ndim))
  matrix = jnp.matmul(slant, turn.T, precision="highest")
  matrix = matrix * jnp.exp(math.log1p(scale) * draw(3, ()))
  shift = draw(4, (ndim,)) * jnp.asarray(_per_axis(translation, ndim))
  return jnp.where(on, matrix, jnp.eye(ndim)), jnp.where(on, shift, 0.0)


def _affine_coordinates(
  space: Sequence[int],
  spacing: Sequence[float],
  matrix: jax.Array,
  shift: jax.Array,
) -> list[jax.Array]:
  """Returns where in the input each output voxel comes from, by axis.

  The map is about the centre of the grid. Sums of one-axis ramps, not a
  matrix product, so that the identity is exact in any matmul precision.
  """
  coordinates = []
  for i, n in enumerate(space):
    source = jnp.full((1,) * len(space), (n - 1) / 2) - shift[i] * n
    for j, size in enumerate(space):
      ramp = _ramp(space, j) - (size - 1) / 2
      source = source + matrix[i, j] * (spacing[j] / spacing[i]) * ramp
    coordinates.append(source)
  return coordinates


def _draw_elastic(
  key: jax.Array,
  space: Sequence[int],
  probability: float,
  elastic_mm: float,
  cells: int,
) -> list[jax.Array]:
  """Draws a smooth displacement in mm, one map per axis."""
  key_on, key_grid = jax.random.split(key)
  on = jax.random.bernoulli(key_on, probability)
  shape = (len(space), *(min(cells, n) for n in space))
  normal = jax.random.normal(key_grid, (math.prod(shape),)).reshape(shape)
  grid = jnp.where(on, elastic_mm, 0.0) * normal
  return [jax.image.resize(each, space, "cubic") for each in grid]
