"""A trained model in one file: NAME.safetensors, without pickle.

The file is of the format safetensors: the length of a header, the header as
JSON, and the tensors, little-endian, one after the other. A tensor is named by
its place in the variables, such as params/stem/conv/kernel. Kernels are
float16; vectors, which are few and include variances beyond its range, and
kernels that it cannot hold are float32. All are float32 when loaded.

The header's metadata have one entry, "cadjax", a JSON object as text:

  format       "cadjax.weights/1"
  sha256       of the description and all tensors, see `digest`
  description  name, step, config (config.json of the workdir), dataset
               (dataset.json: grid recipe, reference ranges, counts,
               fingerprint, metadata of the records), versions (versions.json),
               calibration (what `cadjax evaluate` fitted for a classifier;
               null without one), commands (that made the model), half (what
               half precision changes; null where not measured)

The models that come with cadjax are such files in its folder weights/.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from data_prep import streams
from data_prep.errors import UserError, one_line

FORMAT = "cadjax.weights/1"
SUFFIX = ".safetensors"
FOLDER = pathlib.Path(__file__).parents[1] / "weights"
# Shipped models by what they are for: the file's name and the flag that names
# another model in its place.
ROLES = {
  "wide": "--wide",
  "coronary": "--segmenter",
  "classifier": "--classifier",
}
_KEY = "cadjax"
_NEEDED = ("name", "step", "config", "dataset", "versions", "calibration")
# A larger file is none of ours; its header would be read whole.
_MOST_BYTES = 1 << 32


@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
  """The contents of a file of weights.

  Attributes:
    path: the file.
    description: see above.
    variables: {"params", "batch_stats"}, nested; float32 on the host.
    sha256: of the description and the tensors as they are stored.
  """

  path: pathlib.Path
  description: dict[str, Any]
  variables: dict[str, Any]
  sha256: str


def is_packed(path: str | pathlib.Path) -> bool:
  """Whether a path is of a file of weights, by its suffix."""
  return pathlib.Path(path).suffix == SUFFIX


def shipped() -> dict[str, pathlib.Path]:
  """Returns the models that come with this version: name -> file."""
  return {path.stem: path for path in sorted(FOLDER.glob(f"*{SUFFIX}"))}


def is_shipped(path: pathlib.Path) -> bool:
  """Whether a model's path is of one that comes with this version."""
  return is_packed(path) and path.parent == FOLDER


def default(role: str) -> pathlib.Path:
  """Returns the file of the shipped model of a role.

  Args:
    role: a key of `ROLES`.

  Raises:
    UserError: no such weights are shipped; the message says which flag names
      another model.
  """
  found = shipped()
  if role not in found:
    what = f"{role} weights are" if found else "weights are"
    raise UserError(
      f"no {what} shipped in this version; give {ROLES[role]}=WORKDIR"
    )
  return found[role]


def locate(path: str | pathlib.Path) -> pathlib.Path:
  """Returns the workdir or the file of weights that a user means.

  Args:
    path: of a workdir or a file of weights, or the name of a shipped model;
      what is there under that path comes first.
  """
  place = pathlib.Path(path)
  if not place.exists() and place.name == str(path):
    return shipped().get(str(path), place)
  return place


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns the leaves of nested mappings by their place, such as "a/b"."""
  flat = {}
  for name, value in tree.items():
    place = f"{prefix}{name}"
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{place}/")
    else:
      flat[place] = value
  return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what `flatten` flattened."""
  tree: dict[str, Any] = {}
  for place, value in flat.items():
    *folders, name = place.split("/")
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[name] = value
  return tree


def halve(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns the tensors as they are stored, by their place."""
  stored = {}
  for place, value in flatten(variables).items():
    value = np.ascontiguousarray(value, np.float32)
    if value.ndim > 1:
      with np.errstate(over="ignore"):
        half = value.astype(np.float16)
      value = half if np.isfinite(half).all() else value
    stored[place] = value
  return stored


def unhalve(stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns the variables of stored tensors, in float32."""
  tensors = {place: x.astype(np.float32) for place, x in stored.items()}
  return {"params": {}, "batch_stats": {}} | unflatten(tensors)


def digest(
  description: Mapping[str, Any], stored: Mapping[str, np.ndarray]
) -> str:
  """Returns the SHA-256 of a description and tensors, in hexadecimal.

  Of the description as JSON with sorted keys and without spaces, and then,
  in the order of their names, of each tensor's name, type and shape and its
  bytes, little-endian; a line feed ends each text.
  """
  found = hashlib.sha256()
  text = json.dumps(description, sort_keys=True, separators=(",", ":"))
  found.update(f"{text}\n".encode())
  for place in sorted(stored):
    tensor = stored[place]
    found.update(f"{place} {tensor.dtype.name} {tensor.shape}\n".encode())
    little = tensor.dtype.newbyteorder("<")
    found.update(np.ascontiguousarray(tensor, little).tobytes())
  return found.hexdigest()


def to_bytes(
  description: Mapping[str, Any], stored: Mapping[str, np.ndarray]
) -> bytes:
  """Returns a file of weights; the same model gives the same bytes.

  Args:
    description: JSON values; see above.
    stored: of `halve`.
  """
  # As it will be read: tuples are lists there.
  description = json.loads(json.dumps(description, allow_nan=False))
  entry = {
    "format": FORMAT,
    "sha256": digest(description, stored),
    "description": description,
  }
  # One entry: the format does not keep the order of several.
  metadata = {_KEY: json.dumps(entry, sort_keys=True)}
  return safetensors_numpy.save(dict(stored), metadata)


def read(path: str | pathlib.Path) -> Packed:
  """Reads a file of weights and compares it with its checksum.

  Raises:
    UserError: there is no such file, `cadjax weights` did not write it, or it
      has changed since.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise UserError(f"{path}: no such file of weights")
  streams.check_kinds(path)
  if not streams.is_file(path):
    raise UserError(f"{path} is a folder; a file of weights is needed")
  if path.stat().st_size > _MOST_BYTES:
    raise UserError(f"{path} is too large for a file of weights")
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      metadata = file.metadata() or {}
      stored = {place: file.get_tensor(place) for place in file.keys()}  # noqa: SIM118
  except OSError:
    raise
  except Exception as error:  # safetensors raises its own, and of dtypes.
    raise UserError(
      f"{path} is damaged, or no file of weights ({one_line(error)[:120]})"
    ) from error
  try:
    entry = json.loads(metadata[_KEY])
    made, expected = entry["format"], entry["sha256"]
    description = entry["description"]
    if made != FORMAT:
      raise UserError(
        f"{path} has the format {made!r}, and this version reads {FORMAT!r};"
        " update cadjax"
      )
    whole = digest(description, stored) == expected
    missing = [name for name in _NEEDED if name not in description]
  except (KeyError, TypeError, ValueError, RecursionError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"{path} was not written by cadjax weights: it has no description"
    ) from error
  if not whole or missing:
    raise UserError(f"{path} is damaged: it has changed since it was written")
  return Packed(path, description, unhalve(stored), expected)
