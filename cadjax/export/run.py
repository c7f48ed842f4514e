"""Runs this model without cadjax: jax, flatbuffers and numpy are enough.

  python run.py               compares the included phantom with cadjax's answer
  python run.py VOLUME.npy    writes VOLUME.result.npz beside it

VOLUME.npy holds int16 HU [D, H, W] on the model's grid, see manifest.json. Not
a medical device.
"""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np
from jax import export

HERE = pathlib.Path(__file__).parent
MANIFEST = json.loads((HERE / "manifest.json").read_text("utf-8"))


def fail(message):
  """Ends with one line and exit code 2."""
  print(f"error: {message}", file=sys.stderr)
  sys.exit(2)


def load():
  """Returns `fn(hu int16 [D, H, W]) -> {name: array}`, compiled once."""
  for name, digest in MANIFEST["sha256"].items():
    if hashlib.sha256((HERE / name).read_bytes()).hexdigest() != digest:
      fail(f"{name} is damaged: its checksum differs")
  made = MANIFEST["program"]
  low = export.minimum_supported_calling_convention_version
  high = export.maximum_supported_calling_convention_version
  try:
    if not low <= made["calling_convention_version"] <= high:
      raise ValueError("its calling convention is not supported")
    content = bytearray((HERE / "program.jax").read_bytes())
    program = export.deserialize(content)
  except ValueError as error:  # Newer ones refuse what is too old for them.
    fail(
      f"jax {jax.__version__} cannot run this program of {made['made']}"
      f" ({error}); pip install jax=={made['jax']}"
    )
  with np.load(HERE / "weights.npz") as stored:
    weights = jax.device_put(dict(stored))
  run = jax.jit(program.call)

  def one(hu):
    result = run(weights, hu[None])
    return {name: np.asarray(value[0]) for name, value in result.items()}

  if "sliding" not in MANIFEST:
    return one
  import windows  # Beside this file.

  return lambda hu: windows.slide(one, hu, **MANIFEST["sliding"])


def read(path):
  """Returns int16 HU [D, H, W] of a file, or ends with one line."""
  try:
    hu = np.load(path)
  except (OSError, ValueError, EOFError) as error:
    fail(f"{path}: cannot be read ({error})")
  shape = tuple(MANIFEST["input"]["shape"])
  found = (getattr(hu, "dtype", None), getattr(hu, "shape", ()))
  # A segmenter takes volumes of any size.
  fits = len(found[1]) == 3 if "sliding" in MANIFEST else found[1] == shape
  if found[0] != np.int16 or not fits:
    fail(f"{path} is no array of int16 HU {shape}; see manifest.json")
  return hu


def main(paths):
  """Runs the volumes; returns the exit code."""
  volumes = {path: read(path) for path in map(pathlib.Path, paths)}
  run = load()
  if not paths:
    return compare(run)
  for path, hu in volumes.items():
    result, out = run(hu), path.with_suffix(".result.npz")
    part = out.with_suffix(".part.npz")
    np.savez_compressed(part, **result)
    part.replace(out)
    print(out, result.get("probability", ""))
  return 0


def compare(run):
  """Compares the example's results with cadjax's; returns the exit code."""
  good = True
  with np.load(HERE / "example.npz") as example:
    result = run(example["hu"])
    for name, most in MANIFEST["tolerance"].items():
      known = example[name].astype(np.float32)
      error = np.abs(result[name] - known) / np.maximum(1, np.abs(known))
      print(
        f"{name}: differs from cadjax by {error.max():.2g}, allowed {most:g}"
      )
      good &= bool(error.max() <= most)  # NaN is not.
  return 0 if good else 1


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
