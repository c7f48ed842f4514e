"""What is measured: the rows of the table, in groups that run side by side."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cadjax.core import lookup
from cadjax.data import classes
from cadjax.models import folded
from data_prep import build, phantom
from data_prep.ctca.ctca_dataset_builder import CtcaConfig, config_name
from data_prep.geometry import GridSpec
from data_prep.volume import write_nifti

FORCED_DEVICES = "--xla_force_host_platform_device_count"
# config.task: what does it, and a config of one.
EXAMPLES = {
  "classify": ("classifier", "configs/resnet3d.py"),
  "segment": ("segmenter", "configs/unet3d.py"),
}
# What `work_explanations` measures; named here, as this module imports no jax.
METHODS = (
  *("gradcam", "hirescam", "xrescam", "layercam", "gradcam++", "respondcam"),
  *("saliency_tubes", "occlusion", "integrated_gradients", "smoothgrad"),
  *("gradient_x_input", "scorecam", "ablationcam", "guided_backprop"),
  "guided_gradcam",
)
MEASURES = (
  *("insertion and deletion", "ROAD", "infidelity", "sensitivity-n"),
  *("completeness", "max-sensitivity", "relative input stability"),
  *("sMPRT, all layers", "eMPRT", "random logit"),
  *("SSIM and rank correlation of two maps", "energy, lift, pointing, AUPRC"),
  *("SE3D: boxes and masks", "CheXlocalize: 16 readers"),
)
# Of config.model, how training computes the same network (`resnet.WAYS`), one
# part after the other.
PLAIN = {"stem": "plain", "stage1": "plain", "pointwise": "plain"}
STEM = {**PLAIN, "stem": "folded"}
STAGE1 = {**STEM, "stage1": "folded"}
WAYS = {
  "plain": PLAIN,
  "folded stem": STEM,
  "and folded stage 1": STAGE1,
  "and norms from moments": {**STAGE1, "pointwise": "moments"},
}
# Those of a report.
MODELS = ("classifier", "segmenter")


@dataclasses.dataclass(frozen=True)
class Settings:
  """One point of the benchmark.

  Attributes:
    config: the config as JSON-able dicts, of a classifier or a segmenter.
    shape: voxels D, H, W of a volume, or of a segmenter's patch.
    batch: volumes, on all devices together.
    devices: how many are used.
    against: "torch", or "none".
    data: a built data set of volumes of that shape; made if None.
    scan_shape: voxels D, H, W of the scan that is preprocessed, segmented or
      reported on.
    aot: a TPU to compile the train step for, or None.
    models: workdir, or None, of each of `MODELS`.
    dump_hlo: a folder for the text of the program of `aot`, or None.
    profile: folder, start and stop of the runs of a row that are traced, see
      `training.profiling`, or None.
  """

  config: Mapping[str, Any]
  shape: tuple[int, int, int]
  batch: int
  devices: int
  against: str
  data: str | None
  scan_shape: tuple[int, int, int]
  aot: str | None = None
  models: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
  dump_hlo: str | None = None
  profile: tuple[str, int, int] | None = None


@dataclasses.dataclass(frozen=True)
class BenchRow:
  """One worker process.

  Attributes:
    group: rows of a group are measured in turns and compared.
    name: within the group.
    spec: what, framework and all that the worker needs, JSON-able.
    environment: variables that it gets.
  """

  group: str
  name: str
  spec: Mapping[str, Any]
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Inputs:
  """Files that rows read, each made when first asked for.

  Args:
    folder: where they go.
    settings: their shapes; `data` is taken where it is given.
  """

  def __init__(self, folder: pathlib.Path, settings: Settings):
    self._folder = folder
    self._settings = settings

  @functools.cached_property
  def data(self) -> str:
    """A data set of phantoms that fills at least one batch."""
    settings = self._settings
    if settings.data is not None:
      return settings.data
    grid = GridSpec("paper", shape=settings.shape)
    config = CtcaConfig(
      name=config_name("phantom", grid),
      source="phantom",
      grid=grid,
      cases=2 * max(settings.batch, 4),
      fractions=(0.5, 0.25, 0.25),
    )
    size = "x".join(map(str, settings.shape))
    out = self._folder / f"data_{size}_{settings.batch}"
    return str(build.build(config, out).data_dir)

  @functools.cached_property
  def scan(self) -> tuple[str, str]:
    """A phantom and its mask as a scanner's .nii.gz files."""
    scanner = {"shape": list(self._settings.scan_shape)}
    drawn = phantom.make_phantom(0, label=1, scanner=scanner)
    paths = [self._folder / name for name in ("scan.nii.gz", "mask.nii.gz")]
    for path, array in zip(paths, (drawn.volume.hu, drawn.mask), strict=True):
      write_nifti(path, array, drawn.volume.grid)
    return str(paths[0]), str(paths[1])


def plan(
  what: Sequence[str], settings: Settings, inputs: Inputs
) -> list[list[BenchRow]]:
  """Returns the rows to measure, one list for each group.

  Args:
    what: keys of `WHATS`.
    settings: of all rows.
    inputs: asked for those files alone that the rows read.

  Raises:
    lookup.ConfigError: for what is not in `WHATS`, or not for this config.
  """
  if settings.aot is not None:
    return [[_aot(settings)]]
  groups: list[list[BenchRow]] = []
  lookup.check_known(what, WHATS, "--what")
  for name in what:
    groups += WHATS[name](settings, inputs)
  if {"train", "infer"} & set(what):  # Of the roofline.
    groups.append(
      [_row(settings, "stages", "stages", "stages"), _ceilings(settings)]
    )
  return groups


def _train(settings: Settings, inputs: Inputs) -> list[list[BenchRow]]:
  row = functools.partial(_row, settings, "train", "train")
  rows = [
    row("cadjax, fake batch", variant="fake"),
    row("cadjax, records", variant="pipeline", data=inputs.data),
  ]
  return [[*rows, *_torch_formats(settings, row), _ceilings(settings, "train")]]


def _ways(settings: Settings, inputs: Inputs) -> list[list[BenchRow]]:
  del inputs
  _check_task(settings, "ways", "classify")
  model = settings.config["model"]
  rows = []
  for name, way in WAYS.items():
    one = dataclasses.replace(
      settings, config={**settings.config, "model": {**model, **way}}
    )
    rows.append(_row(one, "ways", "train", name, variant="fake"))
  return [[*rows, _ceilings(settings, "ways")]]


def _infer(settings: Settings, inputs: Inputs) -> list[list[BenchRow]]:
  del inputs
  row = functools.partial(_row, settings, "infer", "infer")
  rows = [row("cadjax"), *_torch_formats(settings, row)]
  return [[*rows, _ceilings(settings, "infer")]]


def _explain(settings: Settings, inputs: Inputs) -> list[list[BenchRow]]:
  del inputs
  _check_task(settings, "explain", "classify")
  row = functools.partial(_row, settings, "explain", "explain", batch=1)
  rows = [
    row("cadjax, all layers and methods", variant="maps"),
    row("cadjax, Grad-CAM of all layers", variant="gradcam"),
    row("cadjax, one pass forward and back", variant="pass"),
    *_torch_formats(settings, row, "MONAI Grad-CAM of one layer"),
  ]
  return [rows]


def _explanations(settings: Settings, inputs: Inputs) -> list[list[BenchRow]]:
  del inputs
  _check_task(settings, "explanations", "classify")
  # Each in a group of its own: together they would all hold their memory.
  return [
    [_row(settings, what, what, name, variant=name)]
    for what, names in (("method", METHODS), ("measure", MEASURES))
    for name in names
  ]


def _slide(settings: Settings, inputs: Inputs) -> list[list[BenchRow]]:
  del inputs
  _check_task(settings, "slide", "segment")
  data, segment = (settings.config[key] for key in ("data", "segment"))
  row = functools.partial(
    _row,
    settings,
    "slide",
    "slide",
    shape=segment["window"] or data["patch_size"],
    batch=data["eval_batch_size"],
    scan_shape=settings.scan_shape,
  )
  rows = [row("cadjax"), *_torch_formats(settings, row, "MONAI")]
  return [[*rows, _ceilings(settings, "slide")]]


def _report(settings: Settings, inputs: Inputs) -> list[list[BenchRow]]:
  models = {model: settings.models.get(model) for model in MODELS}
  if not all(models.values()):
    raise lookup.ConfigError(
      "--what=report takes two trained workdirs, --classifier=DIR and"
      " --segmenter=DIR; make demo trains demo/classifier and demo/segmenter"
    )
  scan, _ = inputs.scan
  return [[_row(settings, "report", "report", "cadjax", file=scan, **models)]]


def _data(settings: Settings, inputs: Inputs) -> list[list[BenchRow]]:
  _check_task(settings, "data", "classify")
  row = functools.partial(_row, settings, "data", "data", data=inputs.data)
  group = [row("cadjax", variant="rows")]
  if settings.config["model"]["ndim"] == 3 and folded.fits(
    (*settings.shape, 1)
  ):
    group.append(row("cadjax, as cells", variant="cells"))
  return [group]


def _preprocess(settings: Settings, inputs: Inputs) -> list[list[BenchRow]]:
  groups = []
  for variant, file in zip(("image", "mask"), inputs.scan, strict=True):
    row = functools.partial(
      _row,
      settings,
      f"preprocess {variant}",
      "preprocess",
      variant=variant,
      file=file,
    )
    rows = [row("cadjax")]
    if settings.against == "torch":
      rows += [
        row(f"MONAI {kind}", framework="torch", format=kind)
        for kind in ("Resize", "Spacing")
      ]
    groups.append(rows)
  return groups


def _phantom(settings: Settings, inputs: Inputs) -> list[list[BenchRow]]:
  del inputs
  threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
  row = _row(settings, "phantom", "phantom", "cadjax, one core")
  one_core = dict.fromkeys(threads, "1")
  return [[dataclasses.replace(row, environment=one_core)]]


def memory(settings: Settings) -> BenchRow:
  """Returns the row that compiles the train step to tell its memory."""
  row = _row(settings, "memory", "memory", "cadjax", aot=settings.aot)
  return row if settings.aot is None else _without_devices(row)


def _aot(settings: Settings) -> BenchRow:
  spec = {"aot": settings.aot, "dump_hlo": settings.dump_hlo}
  return _without_devices(_row(settings, "aot", "aot", settings.aot, **spec))


def _without_devices(row: BenchRow) -> BenchRow:
  # No TPU is asked for, neither by jax nor by libtpu.
  alone = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
  return dataclasses.replace(row, environment={**row.environment, **alone})


WHATS: Mapping[str, Callable[[Settings, Inputs], list[list[BenchRow]]]] = {
  "train": _train,
  "ways": _ways,
  "infer": _infer,
  "explain": _explain,
  "explanations": _explanations,
  "slide": _slide,
  "report": _report,
  "data": _data,
  "preprocess": _preprocess,
  "phantom": _phantom,
}


def patch_stride(settings: Settings) -> int | None:
  """Returns what a patch's edges are multiples of; None for volumes."""
  if _task(settings) != "segment":
    return None
  features = settings.config["model"].get("features")
  return 2 ** (len(features) - 1) if features else 32


def _task(settings: Settings) -> str:
  return settings.config.get("task", "classify")


def _check_task(settings: Settings, what: str, task: str) -> None:
  if _task(settings) != task:
    kind, example = EXAMPLES[task]
    raise lookup.ConfigError(
      f"--what={what} takes the config of a {kind}, such as {example}"
    )


def _num_classes(settings: Settings) -> int:
  config = settings.config
  if _task(settings) == "classify":
    return config["model"]["num_classes"]
  return len(classes.get_class_set(config["segment"]["classes"]).names)


def _torch_formats(
  settings: Settings, row: Callable[..., BenchRow], name: str = "PyTorch"
) -> list[BenchRow]:
  if settings.against != "torch":
    return []
  return [
    row(f"{name}, {kind}", framework="torch", format=kind)
    for kind in ("contiguous", "channels_last")
  ]


def _ceilings(settings: Settings, group: str = "stages") -> BenchRow:
  return _row(settings, group, "ceilings", "ceilings")


def _row(
  settings: Settings,
  group: str,
  what: str,
  name: str,
  *,
  framework: str = "cadjax",
  **spec: Any,
) -> BenchRow:
  common = {
    "what": what,
    "framework": framework,
    "config": settings.config,
    "num_classes": _num_classes(settings),
    "shape": settings.shape,
    "batch": settings.batch,
    "devices": settings.devices,
  }
  if settings.profile is not None:
    folder, *runs = settings.profile
    place = f"{group}_{name}".replace(" ", "_").replace(",", "")
    common["profile"] = [os.path.join(folder, place), *runs]
  # What the caller forces (a test has eight devices) must not reach the row.
  kept = [
    flag
    for flag in os.environ.get("XLA_FLAGS", "").split()
    if not flag.startswith(FORCED_DEVICES)
  ]
  forced = f"{FORCED_DEVICES}={settings.devices}"
  environment = {
    "XLA_FLAGS": " ".join([*kept, forced]),
    # Several processes share an accelerator's memory.
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    # Compile times are measured, not remembered.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
  }
  return BenchRow(group, name, common | spec, environment)
