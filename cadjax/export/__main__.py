"""Exports a model as one program that runs without cadjax.

  cadjax export --workdir=WORKDIR --out=DIR [--layers=stage1]

--workdir is the workdir of a classifier or a segmenter, a file of weights or
the name of a model that comes with cadjax. DIR gets the program, from HU on the
model's grid to the calibrated probability (of a segmenter to the probabilities
of the classes), its weights, a manifest and run.py, which needs jax, numpy and
flatbuffers alone: see `cadjax.export.bundle`. The program is StableHLO for CPU,
CUDA and TPU and takes any number of volumes.

  python DIR/run.py             compares a phantom with cadjax's answer
  python DIR/run.py VOLUME.npy  writes VOLUME.result.npz
"""

from collections.abc import Sequence

from absl import flags

from cadjax.core import lookup
from cadjax.explanation import cam
from cadjax.export import bundle
from data_prep import errors


def define_flags() -> None:
  """Defines the flags; not at import, as in every program."""
  flags.DEFINE_string(
    "workdir",
    None,
    "Workdir of a trained classifier or segmenter, a file of weights or the"
    " name of a shipped model.",
    required=True,
  )
  flags.DEFINE_string("out", None, "Folder that is made.", required=True)
  flags.DEFINE_list(
    "layers", [], "Of a classifier: layers whose heat maps the program gives."
  )
  flags.DEFINE_enum(
    "method", "hirescam", sorted(cam.METHODS), "Of the heat maps."
  )
  flags.DEFINE_bool("overwrite", False, "Replace an earlier export.")


def main(_: Sequence[str]) -> int:
  """Exports what the flags ask for; returns the exit code."""
  args = flags.FLAGS
  made = bundle.write(
    args.workdir,
    args.out,
    layers=args.layers,
    method=args.method,
    overwrite=args.overwrite,
  )
  for name, size in sorted(made.sizes.items()):
    print(f"{made.folder / name}  {size / 1e6:.2f} MB")
  print(f"for {', '.join(made.platforms)}; try it: python {made.folder}/run.py")
  return 0


if __name__ == "__main__":
  errors.run(
    "cadjax export",
    main,
    define_flags,
    expected=(lookup.ConfigError,),
  )
