"""Noisy linear imputation: fills removed voxels in from their surroundings.

One linear system for all voxels, solved on the device by conjugate gradients
that never hold its matrix: a product with it is a few sums of shifted volumes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from data_prep.errors import UserError

# A hundredth of a window of 1000 HU; the authors add 0.01 to images in [0, 1].
NOISE = 10.0
NEIGHBOURS = (6, 18, 26)
# Of the residual, relative to the right side. Float32 reaches it.
_TOLERANCE = 1e-6
# True residual above which the solver has failed: rounding alone leaves less.
_FAILED = 1e-3


def impute(
  image: np.ndarray,
  missing: np.ndarray,
  *,
  neighbours: int = 26,
  noise: float = NOISE,
  seed: int = 0,
) -> np.ndarray:
  """Fills voxels in from their surroundings, by noisy linear imputation.

  Every missing voxel becomes the weighted mean of its neighbours, missing ones
  included: one sparse linear system for all (Rong et al., ICML 2022, arXiv
  2202.00449). What is filled in tells little of where it was missing, which a
  constant would tell a network. The paper's weights in 2D are 1/6 for direct
  and 1/12 for diagonal neighbours, that is, inverse to the squared distance and
  of sum 1. The same in 3D: 3/44 for the six faces, 3/88 for the twelve edges
  and 1/44 for the eight corners. Neighbours outside the volume are left out and
  the others weigh more, so a volume of depth 1 gets the paper's weights
  exactly. Distances are in voxels, as in the paper.

  Args:
    image: [D, H, W].
    missing: bool [D, H, W], not of all voxels.
    neighbours: 6, 18 or 26 per voxel; fewer take less time.
    noise: standard deviation of what is added to the voxels filled in, in the
      image's unit.
    seed: of the noise.

  Returns:
    [D, H, W] in the image's dtype, computed in float32.

  Raises:
    UserError: no such neighbourhood, or nothing is left to fill in from.
    ValueError: shapes differ, or the solver does not converge.
  """
  if neighbours not in NEIGHBOURS:
    raise UserError(
      f"a voxel has {', '.join(map(str, NEIGHBOURS))} neighbours, not"
      f" {neighbours}"
    )
  missing = np.asarray(missing, bool)
  if missing.shape != image.shape:
    raise ValueError(f"image {image.shape} and missing {missing.shape} differ")
  if missing.all():
    raise UserError("all voxels are missing: there is nothing to fill in from")
  if not missing.any():
    return image.copy()
  filled = image.astype(np.float64)
  # Around the mean, which any constant solves, so that the residual of the
  # solver is relative to the image's contrast and not to the air's -1000 HU.
  middle = filled[~missing].mean()
  known = np.where(missing, 0, filled - middle).astype(np.float32)
  found, residual = _solve(known, missing, neighbours)
  if not residual < _FAILED:
    raise ValueError("the voxels to fill in were not found: no convergence")
  found = np.asarray(found, np.float64)[missing]
  drawn = np.random.default_rng(seed).standard_normal(found.size)
  filled[missing] = middle + found + noise * drawn
  return like(image, filled)


def like(image: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Returns values in the dtype of an image, rounded to whole HU."""
  if np.issubdtype(image.dtype, np.integer):
    values = np.rint(values)
  return values.astype(image.dtype)


@functools.partial(jax.jit, static_argnames="neighbours")
def _solve(
  known: jax.Array, missing: jax.Array, neighbours: int
) -> tuple[jax.Array, jax.Array]:
  """Solves the symmetric positive definite system of `impute`.

  Args:
    known: float32 [D, H, W], 0 where missing.
    missing: bool [D, H, W].
    neighbours: of `NEIGHBOURS`.

  Returns:
    the values [D, H, W], 0 where known; and the residual, relative to the
    right side.
  """
  around = functools.partial(_weighted_sum, neighbours=neighbours)
  total = around(jnp.ones_like(known))

  def product(x):
    # Rows of known voxels are those of the identity, of which x has none.
    return jnp.where(missing, total * x - around(x), x)

  right = jnp.where(missing, around(known), 0)
  found, _ = jax.scipy.sparse.linalg.cg(
    product,
    right,
    tol=_TOLERANCE,
    maxiter=10 * sum(known.shape),
    M=lambda x: x / total,
  )
  size = jnp.linalg.norm(right)
  residual = jnp.linalg.norm(right - product(found))
  # Nothing but 0 around what is missing: 0 solves it.
  return found, jnp.where(size > 0, residual / size, 0.0)


def _weighted_sum(x: jax.Array, neighbours: int) -> jax.Array:
  """Sums each voxel's neighbours, weighted by 1 / squared distance."""
  along_w = _pair(x, 2)
  along_h = _pair(x, 1)
  found = along_w + along_h + _pair(x, 0)
  if neighbours >= 18:
    corner = _pair(along_w, 1)  # In a slice.
    found += (corner + _pair(along_w, 0) + _pair(along_h, 0)) / 2
    if neighbours == 26:
      found += _pair(corner, 0) / 3
  return found


def _pair(x: jax.Array, axis: int) -> jax.Array:
  """Sums the two neighbours along an axis; 0 beyond the volume."""
  size = x.shape[axis]
  padded = jnp.pad(x, [(int(k == axis),) * 2 for k in range(x.ndim)])
  before = jax.lax.slice_in_dim(padded, 0, size, axis=axis)
  return before + jax.lax.slice_in_dim(padded, 2, size + 2, axis=axis)
