"""Measures speed and memory.

  cadjax bench --config=resnet3d --what=train

With a segmenter's config, such as unet3d, train and infer are those
of its U-Net on patches of --shape, and slide segments a volume of --scan_shape
in the config's own windows. explain takes a classifier's config, and so does
explanations, the cost of every explanation method and of every measure of
explanations, whose last table is for a README. ways is the train step of a
classifier computed in each way of `resnet.WAYS`, in turns. report is
the whole way of a scan of --scan_shape to its linked report, with the models of
--classifier and --segmenter.

Prints a table and writes bench.json (all seconds, versions, device, command)
and, of a network, roofline.png.
"""

import dataclasses
import importlib.util
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from absl import flags

from cadjax.bench import about, fit, report, rows
from cadjax.bench.measure import is_full, measure
from cadjax.core import configs, lookup
from cadjax.training import profiling
from data_prep import case_flags, errors
from data_prep.errors import UserError

SWEEPS = ("batch", "shape", "devices")


def define_flags() -> None:
  """Defines the flags; not at import, so that workers may import this."""
  configs.define_flag()
  flags.DEFINE_list(
    "what", ["train", "infer"], f"What to measure: {', '.join(rows.WHATS)}."
  )
  flags.DEFINE_string(
    "against",
    "none",
    "torch: measure PyTorch and MONAI at the same work, in turns, and give"
    " ratios; or the bench.json of another run, to tell what changed.",
  )
  flags.DEFINE_list(
    "shape", ["256", "128", "128"], "Voxels D,H,W of a volume or a patch."
  )
  flags.DEFINE_integer("batch", 1, "Volumes in a batch, of all devices.", 1)
  flags.DEFINE_integer("repeats", 7, "Runs of a row after its warm-up.", 1)
  flags.DEFINE_integer(
    "devices", 1, "How many to use; a CPU is divided into as many.", 1
  )
  flags.DEFINE_string("out", "bench", "Folder for bench.json and pictures.")
  flags.DEFINE_string(
    "data", None, "A built data set to read; phantoms are made if not given."
  )
  flags.DEFINE_list(
    "scan_shape",
    ["275", "512", "512"],
    "Voxels of the scan of --what=preprocess, slide and report.",
  )
  for model in rows.MODELS:
    flags.DEFINE_string(
      model, None, f"Workdir of a trained {model}, of --what=report."
    )
  flags.DEFINE_string(
    "aot",
    None,
    "Compile the train step for a TPU that is not there, tpu:v5e:2x2, in place"
    " of --what; needs the extra tpu-aot.",
  )
  flags.DEFINE_string(
    "dump_hlo", None, "Folder for the text of the program of --aot."
  )
  flags.DEFINE_string(
    "profile",
    None,
    "START:STOP, runs of each row to trace, into a folder of its own in --out;"
    " what is traced takes longer.",
  )
  flags.DEFINE_float(
    "fit",
    None,
    "Search the largest batch, and patch of a segmenter, whose train step"
    " takes so many GB of a device, by what the compiler reserves; in place of"
    " --what. With --aot of that device.",
    0,
  )
  flags.DEFINE_enum("sweep", None, SWEEPS, "Measure at several --values.")
  flags.DEFINE_list(
    "values", [], "Of the sweep: 1,2,4 or, of shapes, 64x32x32,128x64x64."
  )


def settings_from_flags(args: flags.FlagValues) -> rows.Settings:
  """Returns what the flags ask for.

  Raises:
    UserError: a flag is missing or wrong, or PyTorch is not installed.
  """
  if args.config is None:
    raise UserError("--config is missing; try --config=resnet3d")
  if args.dump_hlo and not args.aot:
    raise UserError(
      "--dump_hlo goes with --aot; of what runs here, set"
      " XLA_FLAGS=--xla_dump_to=DIR"
    )
  if args.against == "torch":
    missing = [m for m in ("torch", "monai") if not importlib.util.find_spec(m)]
    if missing:
      raise UserError(
        f"--against=torch needs {' and '.join(missing)}: pip install"
        " -e '.[bench]'"
      )
  shape, scan_shape = (
    case_flags.three(name, args[name].value, int)
    for name in ("shape", "scan_shape")
  )
  return rows.Settings(
    config=json.loads(args.config.to_json_best_effort()),
    shape=shape,
    batch=args.batch,
    devices=args.devices,
    against="torch" if args.against == "torch" else "none",
    data=args.data,
    scan_shape=scan_shape,
    aot=args.aot,
    models={model: args[model].value for model in rows.MODELS},
    dump_hlo=args.dump_hlo,
    profile=_profile(args),
  )


def _profile(args: flags.FlagValues) -> tuple[str, int, int] | None:
  if args.profile is None:
    return None
  start, stop = profiling.parse(args.profile)
  if stop > args.repeats + 1:
    raise UserError(
      f"--profile={args.profile}: a row has --repeats={args.repeats} runs"
    )
  return (args.out, start, stop)


def points(args: flags.FlagValues) -> dict[str, rows.Settings]:
  """Returns the settings by the swept value, "" without a sweep.

  Raises:
    UserError: the values do not fit the sweep.
  """
  settings = settings_from_flags(args)
  if bool(args.sweep) != bool(args.values):
    raise UserError("--sweep and --values go together")
  if not args.sweep:
    return {"": settings}
  found = {}
  for text in args.values:
    if args.sweep == "shape":
      value = case_flags.three("values", text.split("x"), int)
    elif text.isdecimal() and int(text):
      value = int(text)
    else:
      raise UserError(
        f"--values: {text!r} is not a number, as {args.sweep} takes"
      )
    found[text] = dataclasses.replace(settings, **{args.sweep: value})
  return found


def main(argv: Sequence[str]) -> None:
  """Measures what the flags ask for and writes what came out."""
  del argv
  args = flags.FLAGS
  lookup.check_known(args.what, rows.WHATS, "--what")
  asked = points(args)
  before = report.earlier(args.against)  # This run may overwrite it.
  if args.fit is not None:
    print(fitted(asked, args.fit * 1e9))
    return
  out = _folder(args.out)
  if args.dump_hlo:
    _folder(args.dump_hlo)
  runs: report.Runs = {}
  with tempfile.TemporaryDirectory() as folder:
    for value, settings in asked.items():
      inputs = rows.Inputs(pathlib.Path(folder), settings)
      runs[value] = []
      for group in rows.plan(args.what, settings, inputs):
        runs[value].append(measure(group, args.repeats, say=_say))
        # At once: a long run may not come to its end.
        print(report.text(settings, runs[value][-1:]), flush=True)
      if table := report.costs(runs[value]):
        print(f"\n{table}", flush=True)
  every = [one for run in runs.values() for group in run for one in group]
  facts = about.about(every)
  report.write(out, facts, asked, runs, sweep=args.sweep)
  if before is not None:
    found = report.difference(report.records(asked, runs), before)
    print(f"\nagainst {args.against}:\n{found}")
  print(facts["footer"])
  failed = [one for one in every if one.error is not None]
  if failed:
    raise UserError(f"{len(failed)} of {len(every)} rows failed; see above")


def fitted(asked: dict[str, rows.Settings], limit: float) -> str:
  """Searches what --fit asks for; returns what is printed of it.

  Args:
    asked: of `points`, without a sweep.
    limit: bytes on one device.

  Raises:
    UserError: there is a sweep, or the step does not compile.
  """
  if list(asked) != [""]:
    raise UserError("--fit and --sweep do not go together")
  (settings,) = asked.values()

  def compiled(size: fit.Size) -> float | None:
    one = dataclasses.replace(settings, batch=size.batch, shape=size.shape)
    (result,) = measure([rows.memory(one)], 1, say=lambda _: None)
    if is_full(result):
      return None
    if result.error is not None:
      raise UserError(result.error)
    used = result.info["memory_bytes"]
    _say(f"batch {size.batch}: {used / 1e9:.3g} GB")
    return used

  found = fit.search(
    compiled,
    limit,
    settings.shape,
    devices=settings.devices,
    stride=rows.patch_stride(settings),
  )
  return fit.text(found, limit, settings.shape)


def _folder(name: str) -> pathlib.Path:
  path = pathlib.Path(name)
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"{path}: cannot write there: {error}") from error
  return path


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
  errors.run(
    "cadjax bench",
    main,
    define_flags,
    expected=(lookup.ConfigError,),
    more_help=configs.describe,
  )
