"""Starts a training from what another one has learned.

`--config.init_from=MODEL` takes the best parameters and norm statistics of a
workdir, a file of weights or a model that comes with cadjax, wherever the new
model has a module of the same name and shapes: all of them for fine-tuning on
other data, the encoder's where a classifier starts from a segmenter that was
trained on masks (`configs/resunet3d.py`).
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from cadjax.training import steps, workdir
from data_prep.errors import UserError

# ("params" or "batch_stats", names of modules ..., name) to an array.
Found = dict[tuple[str, ...], np.ndarray]
COLLECTIONS = ("params", "batch_stats")


def read(
  path: str | pathlib.Path, model: nn.Module, image_shape: tuple[int, ...]
) -> tuple[Found, list[str]]:
  """Reads what a model can take from a workdir.

  Args:
    path: as of `workdir.load_trained`.
    model: that is to be trained.
    image_shape: of one example, [(D,) H, W, C].

  Returns:
    the arrays that both have, and the modules that start from new weights.

  Raises:
    UserError: there is no such model, or none of its convolutions
      fits.
  """
  try:
    source = workdir.load_trained(path)
  except UserError as error:
    raise UserError(f"config.init_from = {str(path)!r}: {error}") from error
  given = _flat(source.variables)
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  wanted = _flat(
    jax.eval_shape(
      lambda x: model.init(jax.random.key(0), x, train=False), image
    )
  )
  # By module, all or nothing: a bias of one head does not fit another's kernel.
  new = {
    key[1]
    for key, like in wanted.items()
    if key not in given or given[key].shape != like.shape
  }
  found = {key: given[key] for key in wanted if key[1] not in new}
  # Norms alone, as a 2D network shares with a 3D one, are nothing learned.
  if not any(value.ndim > 3 for value in found.values()):
    have = source.config.model.to_dict()
    raise UserError(
      f"config.init_from = {str(path)!r}: none of its convolutions"
      f" (config.model = {have}) has the name and shape of one of the model"
      " that is to be trained"
    )
  return found, sorted(new)


def begin(state: steps.TrainState, found: Found) -> steps.TrainState:
  """Returns a new train state with the arrays that were found in place."""
  parts = {name: getattr(state, name) for name in COLLECTIONS}
  flat = traverse_util.flatten_dict(parts)
  taken = {key: jnp.asarray(value) for key, value in found.items()}
  merged = traverse_util.unflatten_dict(flat | taken)
  params = merged["params"]
  return state.replace(
    params=params,
    batch_stats=merged.get("batch_stats", {}),
    # A copy: the step donates the state, and a buffer is donated once.
    ema_params=state.ema_params and jax.tree.map(jnp.copy, params),
  )


def _flat(variables: Any) -> dict[tuple[str, ...], Any]:
  parts = {name: variables[name] for name in COLLECTIONS if name in variables}
  return traverse_util.flatten_dict(parts)
