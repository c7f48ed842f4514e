"""Who may import whom, read from the syntax trees.

The picture: data_prep knows nothing of cadjax; inside cadjax a module imports
from its own or a lower layer, without cycles; raw scans enter and results
leave at the programs alone.
"""

import ast
import graphlib
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# A new file in cadjax must be placed here, on purpose.
LAYERS = {
  1: (
    "agreement attribution augment calibration cam cam_windows candidates"
    " centrelines classes components evidence explain_checks explain_metrics"
    " findings flops intervals losses metrics models models.conv_cpu"
    " models.layers models.resnet models.resunet models.unet models.winograd"
    " names optimizer ostia parallel reformat segment_losses segment_metrics"
    " skeleton sliding stenosis vessel_names vessel_tree vessels"
  ),
  2: (
    "case_rows checkpoint evaluation folders input_pipeline inputs log"
    " marked patches priors regions results steps tasks workdir"
  ),
  3: (
    "adapt bench bench.__main__ bench.about bench.figures bench.measure"
    " bench.report bench.rows bench.summary bench.tpu bench.unet_torch"
    " bench.work bench.work_aot bench.work_host bench.work_jax bench.work_torch"
    " bench.worker cad_maps cohort decision devices evaluate evaluate_explain"
    " evaluate_link evaluate_segments explain explain_maps explain_table"
    " explain_target explainer link linked_report notebook pair planes plots"
    " predict report scans scoring segment train tree_plot vessel_figure"
    " viewer warm_start"
  ),
  4: (
    "experiment experiment.__main__ experiment.compare experiment.estimate"
    " experiment.figure experiment.measures experiment.page experiment.plan"
    " experiment.run experiment.store experiment.summary main"
  ),
}
LAYER = {
  f"cadjax.{name}": layer
  for layer, names in LAYERS.items()
  for name in names.split()
}
# The package itself holds a version number and nothing else.
LAYER["cadjax"] = 0

DEVICE_PACKAGES = {"cadjax", "flax", "jax", "jaxlib", "optax", "orbax"}
NOWHERE = {"tensorflow", "tf_keras", "keras"}
HOST_ONLY_FORBIDS = DEVICE_PACKAGES | {"torch", "configs", "tests"}


def sources(root: pathlib.Path, package: str) -> dict[str, pathlib.Path]:
  """Returns dotted module name -> file of every module under `package`."""
  found = {}
  for path in sorted((root / package).rglob("*.py")):
    parts = path.relative_to(root).with_suffix("").parts
    if parts[-1] == "__init__":
      parts = parts[:-1]
    found[".".join(parts)] = path
  return found


def imports(path: pathlib.Path, name: str, modules: set[str]) -> set[str]:
  """Returns the modules that `path` imports, at any depth of its code.

  `from package import thing` counts as `package.thing` where that is a module
  of ours, else as `package`; relative imports are made absolute.
  """
  package = name if path.name == "__init__.py" else name.rpartition(".")[0]
  found = set()
  for node in ast.walk(ast.parse(path.read_text(), str(path))):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        above = package.split(".")
        above = above[: len(above) - node.level + 1]
        base = ".".join([*above, base] if base else above)
      for alias in node.names:
        full = f"{base}.{alias.name}"
        found.add(full if full in modules else base)
  return found - {name}


def graph(root: pathlib.Path) -> dict[str, set[str]]:
  """Returns module -> imported modules for cadjax, configs and data_prep."""
  modules = {}
  for package in ("cadjax", "configs", "data_prep"):
    modules |= sources(root, package)
  return {
    name: imports(path, name, set(modules)) for name, path in modules.items()
  }


def top(name: str) -> str:
  return name.partition(".")[0]


def breaches(importing: dict[str, set[str]]) -> list[str]:
  """Returns one line for every import that the picture does not have."""
  found = []
  for name, targets in importing.items():
    for target in sorted(targets):
      if why := _breach(name, target):
        found.append(f"{name} imports {target}: {why}")
  return found


def _breach(name: str, target: str) -> str | None:
  if top(target) in NOWHERE:
    return "no file imports TensorFlow or Keras"
  if top(target) == "tests":
    return "tests are imported by nobody"
  if top(name) == "data_prep" and top(target) in HOST_ONLY_FORBIDS:
    return "data_prep runs on the host, without devices"
  if top(name) == "cadjax":
    if top(target) == "configs":
      return "a config is data, given by a flag"
    if top(target) == "cadjax":
      # Anything that is no module of ours fails as unplaced, elsewhere.
      if LAYER.get(target, 0) > LAYER.get(name, 9):
        return f"layer {LAYER[name]} imports layer {LAYER[target]}"
      return None
    layer = LAYER.get(name, 9)
    if top(target) == "data_prep":
      if layer == 1:
        return "layer 1 is pure: it knows nothing of data_prep"
      if layer == 2 and target != "data_prep.errors":
        return "layer 2 may use data_prep.errors and nothing else of it"
  if top(name) == "configs" and top(target) in DEVICE_PACKAGES | {"data_prep"}:
    return "a config is plain data"
  return None


def cycle(importing: dict[str, set[str]]) -> list[str]:
  """Returns the modules of one import cycle, or nothing."""
  ours = {
    name: {target for target in targets if target in importing}
    for name, targets in importing.items()
  }
  try:
    graphlib.TopologicalSorter(ours).prepare()
  except graphlib.CycleError as error:
    return error.args[1]
  return []


def test_imports_keep_to_the_layers():
  assert not breaches(graph(ROOT))


def test_imports_have_no_cycles():
  assert not cycle(graph(ROOT))


def test_every_cadjax_module_is_placed_in_a_layer():
  unplaced = set(sources(ROOT, "cadjax")) - set(LAYER)
  assert not unplaced, f"place {sorted(unplaced)} in LAYERS above"


def tree(root: pathlib.Path, **files: str) -> dict[str, set[str]]:
  for name, text in files.items():
    path = root / (name.replace("__", "/") + ".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  return graph(root)


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("data_prep__volume", "def f():\n  import jax.numpy as jnp\n"),
    ("data_prep__volume", "from cadjax import metrics\n"),
    ("data_prep__volume", "import torch\n"),
    ("data_prep__ctca__builder", "import tensorflow as tf\n"),
    ("cadjax__bench", "from tensorflow import io\n"),
    ("cadjax__losses", "from cadjax import workdir\n"),
    ("cadjax__losses", "from . import workdir\n"),
    ("cadjax__models__resnet", "from ..workdir import load\n"),
    ("cadjax__losses", "from data_prep.errors import UserError\n"),
    ("cadjax__workdir", "from data_prep import volume\n"),
    ("cadjax__train", "from cadjax.main import main\n"),
    ("cadjax__train", "from configs import demo\n"),
    ("configs__demo", "import jax\n"),
  ],
)
def test_a_forbidden_import_is_seen(tmp_path, name, text):
  importing = tree(
    tmp_path,
    **{"cadjax__workdir": "", "data_prep__volume": "", name: text},
  )
  assert len(breaches(importing)) == 1


def test_what_the_picture_has_is_allowed(tmp_path):
  importing = tree(
    tmp_path,
    data_prep__errors="",
    data_prep__volume="import tensorflow_datasets as tfds",
    data_prep__build="from data_prep import errors",
    cadjax__models__layers="import jax",
    cadjax__models__resnet="from cadjax.models import layers",
    cadjax__workdir="from data_prep import errors\nfrom . import models",
    cadjax__report="from data_prep import volume",
    cadjax__predict="from cadjax import report, workdir",
  )
  assert not breaches(importing)
  assert not cycle(importing)
  assert importing["cadjax.predict"] == {
    "cadjax.report.classified",
    "cadjax.training.workdir",
  }


def test_a_cycle_is_seen(tmp_path):
  importing = tree(
    tmp_path,
    cadjax__losses="from cadjax import metrics",
    cadjax__metrics="def f():\n  from . import losses",
  )
  assert {"cadjax.training.losses", "cadjax.metrics.binary"} <= set(
    cycle(importing)
  )


def tracked() -> list[pathlib.Path]:
  listing = subprocess.run(
    ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True
  )
  if listing.returncode:
    pytest.skip("not a git checkout")
  return [ROOT / name for name in listing.stdout.split("\0") if name]


def test_no_tracked_file_names_a_place_on_one_machine():
  # Written in two parts, so that this file does not find itself.
  places = ("/wor" + "k/", "shar" + "ed/")
  found = []
  for path in tracked():
    if path == ROOT / "tests" / "conftest.py" or not path.is_file():
      continue
    text = path.read_bytes().decode("utf-8", errors="ignore")
    found += [f"{path.name}: {place}" for place in places if place in text]
  assert not found
