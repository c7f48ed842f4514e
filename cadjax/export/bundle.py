"""Writes a trained model as a folder that runs without cadjax.

manifest.json   what goes in and comes out, the model's card, checksums
program.jax     the program, as `jax.export` serialises it (StableHLO)
weights.npz     float32, by their place in the model
example.npz     a phantom on the model's grid, and what cadjax says of it
run.py          runs it; with windows.py for a segmenter
"""

import dataclasses
import datetime
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cadjax import tasks
from cadjax.classification import priors
from cadjax.classification.classifier import Classifier
from cadjax.classification.scan import (
  make_prediction,
  read_calibration,
  score,
)
from cadjax.core import files
from cadjax.explanation import explainer, heat_maps
from cadjax.export import program
from cadjax.segmentation import segmenter, sliding
from cadjax.segmentation.segmenter import Segmenter
from cadjax.training import packed, workdir
from data_prep import checksums, phantom
from data_prep.errors import UserError

RESULT = files.ResultFolder("manifest.json", "cadjax.export/")
SCHEMA = "cadjax.export/1"
# Largest difference on another machine: absolute, relative for values above 1.
TOLERANCE = 1e-5
SEED, SEVERITY = 0, "overt"
# https://docs.jax.dev/en/latest/export/export.html#compatibility-guarantees
_GUARANTEE = (
  "Runs with the version of jax that made it, with those released in the 6"
  " months after it, and with those of the 3 weeks before it; with others where"
  " they support its calling convention, which run.py checks."
)
_AXES = (
  "D from inferior to superior, H from anterior to posterior, W from right to"
  " left"
)


@dataclasses.dataclass(frozen=True)
class Exported:
  """What `write` wrote.

  Attributes:
    folder: the folder.
    sizes: bytes of each file, by name.
    platforms: that the program runs on.
  """

  folder: pathlib.Path
  sizes: dict[str, int]
  platforms: tuple[str, ...]


def write(
  path: str | pathlib.Path,
  out: str | pathlib.Path,
  *,
  layers: Sequence[str] = (),
  method: str = "hirescam",
  overwrite: bool = False,
) -> Exported:
  """Exports a classifier or a segmenter.

  Args:
    path: a workdir, a file of weights or the name of a shipped model.
    out: the folder.
    layers: of a classifier, whose maps the program gives.
    method: of these maps.
    overwrite: replace an earlier export there.

  Raises:
    UserError: there is no such model, it needs masks beside the volume, it is
      a segmenter and layers are given, or the folder is in the way.
    lookup.ConfigError: an unknown layer or method.
  """
  RESULT.check_free(out, overwrite=overwrite)
  model = tasks.load_model(path)
  if isinstance(model, Classifier):
    made = _classifier(model, layers, method)
  elif layers:
    raise UserError(f"{path} is a segmenter; --layers are of classifiers")
  else:
    made = _segmenter(model)
  weights = {
    name: np.asarray(value, np.float32)
    for name, value in packed.flatten(model.variables).items()
  }
  exported = program.to_stablehlo(made.program, weights, made.shape)
  with RESULT.writing(out, overwrite=overwrite) as folder:
    (folder / "program.jax").write_bytes(exported.serialize())
    np.savez(folder / "weights.npz", **weights)
    np.savez_compressed(folder / "example.npz", **made.example)
    for name in made.scripts:
      shutil.copyfile(pathlib.Path(__file__).parent / name, folder / name)
    names = ["program.jax", "weights.npz", "example.npz", *made.scripts]
    manifest = {
      "schema": SCHEMA,
      "name": model.name,
      "notice": "Research software, not a medical device.",
      "input": _input(model, made.shape),
      **made.about,
      "model": dataclasses.asdict(workdir.describe_model(model)),
      "program": {
        "jax": jax.__version__,
        "made": datetime.date.today().isoformat(),
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "compatibility": _GUARANTEE,
      },
      "files": {name: name for name in ["manifest.json", *names]},
      "sha256": {name: checksums.of_file(folder / name) for name in names},
    }
    files.write_json(folder / "manifest.json", manifest)
    sizes = {each.name: each.stat().st_size for each in folder.iterdir()}
  return Exported(pathlib.Path(out), sizes, exported.platforms)


@dataclasses.dataclass(frozen=True, eq=False)
class _Made:
  """What is exported of a model.

  Attributes:
    program: of `program`.
    shape: [D, H, W] that it takes.
    about: entries of the manifest.
    example: "hu" of a phantom, and what cadjax says of it.
    scripts: files of this folder that run it.
  """

  program: program.Program
  shape: tuple[int, ...]
  about: dict[str, Any]
  example: dict[str, np.ndarray]
  scripts: tuple[str, ...]


def _input(
  model: Classifier | Segmenter, shape: Sequence[int]
) -> dict[str, Any]:
  """Returns what the manifest says of the input."""
  seen = ""
  if isinstance(model, Classifier) and priors.used(model.config):
    seen = (
      f"Farther than {tuple(model.config.data.prior.margin_voxels)} voxels"
      f" along D, H and W from the heart, set to {model.window_hu[0]:g} HU."
    )
  return {
    "type": "int16",
    "unit": "HU",
    "axes": f"[volumes, D, H, W]: {_AXES}",
    "shape": list(shape),
    "grid": model.grid.to_dict(),
    "window_hu": list(model.window_hu),
    "blank": seen,
  }


def _classifier(model: Classifier, layers: Sequence[str], method: str) -> _Made:
  """Makes the program of a classifier, and an example of its answers."""
  if model.grid.kind == "spacing":
    raise UserError(
      f"{model.path} was trained on volumes of any size; a program needs one"
    )
  fitted = read_calibration(model)
  made = program.classify(model, fitted, layers=layers, method=method)
  drawn = phantom.make_phantom(SEED, severity=SEVERITY, grid=model.grid)
  hu = model.seen({"image": drawn.volume.hu, "mask": drawn.tissues})
  logits, probs = score(model, hu)
  example = {
    "hu": hu,
    "logits": logits.astype(np.float32),
    "probability": np.float32(
      make_prediction(logits, probs, fitted).probability
    ),
  }
  if layers:
    options = explainer.ExplainOptions(methods=(method,), layers=tuple(layers))
    _, maps = explainer.Explainer(model, options).explain(hu, program.CAD)
    for heat in maps:
      found = heat_maps.on_model_grid(heat, hu.shape)
      example[f"map/{heat.layer}"] = found
  outputs = {
    "logits": "float32 [volumes, S, 2], normal and CAD; S = 1 for a 3D model,"
    " D slices for a 2D one",
    "probability": "float32 [volumes], of CAD",
  } | {
    f"map/{layer}": f"float32 [volumes, D, H, W] in [0, 1], {method} of CAD"
    for layer in layers
  }
  about = {
    "task": "classify",
    "outputs": outputs,
    "classes": ["normal", "cad"],
    "calibration": dataclasses.asdict(fitted),
    "tolerance": dict.fromkeys(outputs, TOLERANCE),
  }
  return _Made(made, hu.shape, about, example, ("run.py",))


def _segmenter(model: Segmenter) -> _Made:
  """Makes the program of a segmenter's window, and an example."""
  drawn = phantom.make_phantom(SEED, severity=SEVERITY, grid=model.grid)
  window = segmenter.window_of(model.config)
  hu = _middle(drawn.volume.hu, [size * 3 // 2 for size in window])
  found = model.segment(hu, probabilities=True, keep_thin=True)
  outputs = {
    "probabilities": "float32 [windows, d, h, w, K] of the classes; run.py"
    " gives [D, H, W, K], the mean over overlapping windows, and labels, the"
    " most probable class",
  }
  about = {
    "task": "segment",
    "outputs": outputs,
    "classes": list(model.class_names),
    "sliding": {
      "window": list(window),
      "overlap": model.config.segment.overlap,
      "sigma": sliding.SIGMA,
      "outside_hu": sliding.AIR_HU,
    },
    "left_out": "What cadjax does after the network: small components and"
    " plaque thinner than the config allows are not removed.",
    # The example is stored in half precision.
    "tolerance": {"probabilities": 1e-3},
  }
  example = {"hu": hu, "probabilities": found.probabilities}
  return _Made(
    program.segment(model), window, about, example, ("run.py", "windows.py")
  )


def _middle(hu: np.ndarray, most: Sequence[int]) -> np.ndarray:
  """Returns the middle of a volume, at most so many voxels along each axis."""
  first = [max(0, n - m) // 2 for n, m in zip(hu.shape, most, strict=True)]
  return hu[sliding.box(first, most)]
