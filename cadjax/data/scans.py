"""From a user's scan to the input of a model, and many scans in turn."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from data_prep import geometry, plausibility, volume
from data_prep.errors import UserError
from data_prep.volume import Volume


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
  """A scan as it was read, for any number of models.

  Attributes:
    case: its name in the results.
    name: base name of the file or folder.
    volume: on the scanner's grid.
    heart_mask: above 0 in the heart; None if none was given.
    heart_origin: where the mask is from, in words.
    measured: features of the scan that an earlier model measured better than
      `plausibility.describe` can.
    concerns: why that model found the scan unusual, in sentences.
  """

  case: str
  name: str
  volume: Volume
  heart_mask: Volume | None = None
  heart_origin: str = "from the heart mask"
  measured: Mapping[str, float] = dataclasses.field(default_factory=dict)
  concerns: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """A scan and what a model sees of it.

  Attributes:
    scan: on the scanner's grid.
    model_input: int16 HU on the model's grid.
    heart_mm: LPS mm (x, y, z) where the pictures' planes cross.
    heart_origin: how that point was found, in words.
    features: of the model's input, the numbers behind the concerns.
    concerns: why the scan is unlike the training data, in sentences.
  """

  scan: Volume
  model_input: Volume
  heart_mm: tuple[float, float, float]
  heart_origin: str
  features: dict[str, float]
  concerns: tuple[str, ...]


def read_scan(
  path: str | pathlib.Path,
  *,
  case: str | None = None,
  series: str | None = None,
  heart_mask: str | None = None,
) -> Scan:
  """Reads a scan and the mask of its heart.

  Args:
    path: a NIfTI, NRRD or MetaImage file, or a folder of DICOM slices.
    case: the name in the results; by default from the path's last part.
    series: which DICOM series, by UID or number.
    heart_mask: a mask file; labels above 0 are the heart. Without one the
      heart is found in the image.

  Returns:
    `volume`: int16 HU [D, H, W] on the scanner's grid, with spacing in mm.

  Raises:
    UserError: the scan or the mask cannot be used.
  """
  path = pathlib.Path(path)
  return Scan(
    case or case_name(path),
    _shown(_real(path).name),
    volume.read_volume(path, series=series),
    _read_heart_mask(heart_mask),
  )


def prepare_scan(
  given: Scan,
  grid: geometry.GridSpec,
  reference: Mapping[str, Sequence[float]],
) -> Prepared:
  """Lays a scan on the grid of a model.

  Args:
    given: the scan.
    grid: the recipe of the model's grid.
    reference: {feature: [low, high]} of the training cases.

  Raises:
    UserError: the scan cannot be laid on the grid.
  """
  scan, mask = given.volume, given.heart_mask
  model_input = geometry.to_grid(scan, grid, heart_mask=mask)
  features, concerns = find_concerns(
    scan, model_input, reference, given.measured
  )
  concerns = [*given.concerns, *concerns]
  place = _heart(given, model_input, grid.kind)
  if not place.found:
    concerns.append("no heart was found in the image")
  return Prepared(
    scan=scan,
    model_input=model_input,
    heart_mm=tuple(float(x) for x in place.mm),
    heart_origin=place.origin,
    features=features,
    concerns=tuple(concerns),
  )


def find_concerns(
  scan: Volume,
  model_input: Volume,
  reference: Mapping[str, Sequence[float]],
  measured: Mapping[str, float] | None = None,
) -> tuple[dict[str, float], list[str]]:
  """Compares a scan with CT angiograms at large and with the training data.

  Args:
    scan: on its own grid, where all the anatomy is.
    model_input: on the model's grid, as the training cases were.
    reference: {feature: [low, high]} of the training cases.
    measured: features of the scan that replace those described here.

  Returns:
    the features of the model's input, and sentences, none if all is usual.
  """
  features = plausibility.describe(model_input)
  of_scan = plausibility.describe(scan) | dict(measured or {})
  found = plausibility.concerns(of_scan, None)
  found += plausibility.concerns(features, reference)
  return features, list(dict.fromkeys(found))


class _Place(NamedTuple):
  """LPS mm where the pictures' planes cross, and how that was found."""

  mm: np.ndarray
  origin: str
  found: bool = True


def _heart(given: Scan, model_input: Volume, kind: str) -> _Place:
  scan, mask = given.volume, given.heart_mask
  if mask is not None:
    index = np.argwhere(mask.hu > 0).mean(0)
    return _Place(mask.grid.to_mm(index), given.heart_origin)
  if kind == "heart":
    return _Place(model_input.grid.center_mm, "the middle of the model's box")
  try:
    center_mm, _ = geometry.find_heart(scan)
  except UserError:
    origin = "no heart was found: the middle of the scan"
    return _Place(scan.grid.center_mm, origin, found=False)
  return _Place(center_mm, "found in the image")


def _read_heart_mask(path: str | None) -> Volume | None:
  if path is None:
    return None
  mask = volume.read_mask(path)
  if not (mask.hu > 0).any():
    raise UserError(f"{path}: the heart mask is empty")
  return mask


@contextlib.contextmanager
def memory_error_as_user_error(
  doing: str, shape: Sequence[int]
) -> Iterator[None]:
  """Makes a `UserError` of running out of memory on a volume [D, H, W]."""
  try:
    yield
  except (MemoryError, jax.errors.JaxRuntimeError) as error:
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
      raise UserError(
        f"out of memory while {doing} {'x'.join(map(str, shape))} voxels; free"
        " some, or set JAX_PLATFORMS=cpu on a machine with more"
      ) from error
    raise


_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")


def case_name(path: pathlib.Path) -> str:
  """Returns the last part of a path without the suffix of a scan's format."""
  name = _shown(_real(path).name)
  for suffix in _SUFFIXES:
    if name.lower().endswith(suffix):
      return name[: -len(suffix)] or name
  return name


def folder_name(path: pathlib.Path) -> str:
  """Returns the name of the folder that a scan lies in."""
  return _shown(_real(path).parent.name)


def _real(path: pathlib.Path) -> pathlib.Path:
  # Unlike pathlib's, it takes links that lead to themselves.
  return pathlib.Path(os.path.realpath(path))


def _shown(name: str) -> str:
  """Returns a name that can be shown, written and be a folder's.

  Control characters and undecodable bytes become underscores.
  """
  return "".join(x if x.isprintable() else "_" for x in name)
