"""What a built data set must be before a program reads it.

TFDS imports the class that features.json names for each feature, so a folder
from somebody else could run code: only the features that the builder writes
pass. The records have checksums, which also make the identity of a data set:
it is that of its contents, masks included, however they were compressed.
"""

import hashlib
import json
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_prep import checksums
from data_prep.errors import UserError

# metadata.json of data sets with checksums; format 1 has none.
FORMAT = 2
# Name: the kind, and of tensors their type and encoding.
_FEATURES = {
  "image": ("Tensor", "int16", "bytes"),
  "mask": ("Tensor", "uint8", "bytes"),
  "label": ("ClassLabel",),
  "case_id": ("Text",),
  "patient_id": ("Text",),
  "fold": ("Tensor", "int64", "none"),
  "spacing": ("Tensor", "float32", "none"),
  "grid_affine": ("Tensor", "float64", "bytes"),
  "source_shape": ("Tensor", "int64", "none"),
  "source_affine": ("Tensor", "float64", "bytes"),
  "mask_classes": ("Tensor", "uint8", "none"),
  "lesions": ("Text",),
}
_MODULES = "tensorflow_datasets.core.features"
_CLASSES = {
  "Tensor": f"{_MODULES}.tensor_feature.Tensor",
  "ClassLabel": f"{_MODULES}.class_label_feature.ClassLabel",
  "Text": f"{_MODULES}.text_feature.Text",
}
_DICT = f"{_MODULES}.features_dict.FeaturesDict"
_CONTENT = {"Tensor": "tensor", "ClassLabel": "classLabel", "Text": "text"}
_INTEGERS = ("label", "fold")


def check_features(folder: pathlib.Path) -> None:
  """Checks what TFDS would import, before it does.

  Raises:
    UserError: features.json names anything but the features that the builder
      writes, or dataset_info.json names features, which it can as well.
  """
  path = folder / "dataset_info.json"
  try:
    if "features" in json.loads(path.read_text("utf-8")):
      raise UserError(
        f"{path} is not what data_prep.build writes ('features'), and was not"
        " opened, as it can make other programs run; build the data set again"
      )
  except (OSError, ValueError, TypeError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(
      f"{path} cannot be read; build the data set again"
    ) from error
  path = folder / "features.json"
  try:
    value = json.loads(path.read_text("utf-8"))
    features = value["featuresDict"]["features"]
    named = set(value) == {"featuresDict", "pythonClassName"}
    named &= value["pythonClassName"] == _DICT
    named &= set(value["featuresDict"]) == {"features"}
    unknown = [name for name in features if not _is_known(name, features[name])]
    missing = sorted(set(_FEATURES) - set(features) - {"mask"})
  except FileNotFoundError as error:
    raise UserError(f"{path} is missing; build the data set again") from error
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f"{path} cannot be read; build the data set again"
    ) from error
  if not named or unknown or missing:
    what = ", ".join(map(repr, [*unknown, *missing])) or "the whole"
    raise UserError(
      f"{path} is not what data_prep.build writes ({what}), and was not opened,"
      " as it can make other programs run; build the data set again"
    )


def _is_known(name: str, entry: Mapping[str, Any]) -> bool:
  """Returns whether a feature is what the builder makes of that name."""
  if name not in _FEATURES:
    return False
  kind, *details = _FEATURES[name]
  content = entry.get(_CONTENT[kind])
  if (
    set(entry) != {"pythonClassName", _CONTENT[kind]}
    or entry["pythonClassName"] != _CLASSES[kind]
  ):
    return False
  if kind == "Text":
    return content == {}
  if kind == "ClassLabel":
    return content == {"numClasses": "2"}
  sizes = content["shape"].get("dimensions", [])
  return (
    set(content) == {"dtype", "encoding", "shape"}
    and [content["dtype"], content["encoding"]] == details
    and set(content["shape"]) <= {"dimensions"}
    and all(re.fullmatch(r"-1|[0-9]{1,9}", size) for size in sizes)
  )


def _parts(record: Mapping[str, Any]) -> Iterator[bytes | np.ndarray]:
  """Yields the contents of a record, the same before and after TFDS."""
  for name in sorted(record):
    value = record[name]
    if isinstance(value, str):
      value = value.encode()
    if not isinstance(value, bytes):
      kind = np.int64 if name in _INTEGERS else None
      value = np.ascontiguousarray(value, kind)
      yield f"{name} {value.dtype} {value.shape}".encode()
    else:
      yield f"{name} {len(value)}".encode()
    yield value


def crc32(record: Mapping[str, Any]) -> int:
  """Returns the CRC-32 of a record, as the builder makes or TFDS reads it."""
  value = 0
  for part in _parts(record):
    value = zlib.crc32(part, value)
  return value


def entry(record: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what `write` keeps of a record.

  The CRC-32 is for every reading, as it costs little; the SHA-256 for the
  identity of the data set.

  Args:
    record: as `records.make_record` makes it.
  """
  digest = hashlib.sha256()
  for part in _parts(record):
    digest.update(part)
  return {
    "case_id": record["case_id"],
    "sha256": digest.hexdigest(),
    "crc32": crc32(record),
  }


def write(
  folder: pathlib.Path,
  records: Mapping[str, Sequence[Mapping[str, Any]]],
  metadata: Mapping[str, Any],
) -> None:
  """Writes the checksums of a data set.

  Args:
    folder: with cases.csv.
    records: of each split, `entry` of its records in order.
    metadata: what metadata.json holds or will hold.
  """
  checksums.write(
    folder, ["cases.csv"], records=dict(records), metadata=dict(metadata)
  )


def check(folder: pathlib.Path) -> dict[str, Any] | None:
  """Checks the small files of a data set, and lists its records.

  Returns:
    `records` and `metadata` as `write` got them; None for a data set of an
    older version, which has no checksums.

  Raises:
    UserError: a file has changed since it was built, or is missing.
  """
  again = "build the data set again, or restore the file from a copy"
  try:
    found = checksums.check(folder)
    metadata = json.loads((folder / "metadata.json").read_text("utf-8"))
    made = metadata["format"]
  except UserError as error:
    raise UserError(f"{error}; {again}") from error
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{folder / 'metadata.json'} cannot be read; {again}"
    ) from error
  if found is None:
    if made == 1:
      return None
    raise UserError(f"{folder / checksums.NAME} is missing; {again}")
  if found["metadata"] != metadata:
    raise UserError(
      f"{folder / 'metadata.json'} is damaged: it has changed since it was"
      f" written; {again}"
    )
  return found


def fingerprint(found: Mapping[str, Any]) -> str:
  """Returns the identity of a data set: of its grid, classes and records.

  It does not depend on how the records are compressed or described, so that
  the same build of the same scans is the same data.

  Args:
    found: of `check`.

  Returns:
    16 hexadecimal digits.
  """
  metadata = found["metadata"]
  records = {
    split: [one["sha256"] for one in listed]
    for split, listed in found["records"].items()
  }
  value = {key: metadata[key] for key in ("grid", "mask_names")}
  return checksums.of_json(value | {"records": records})[:16]
