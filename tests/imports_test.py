"""Who may import whom, read from the syntax trees.

The picture in cadjax/README.md: a folder of cadjax imports from the folders
below it and from no other; data_prep lies beside them and knows nothing of
cadjax; nobody imports a program.
"""

import ast
import graphlib
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# The rooms of cadjax from bottom to top, those of one floor together. A room
# imports from the floors below it, and not from another one of its own floor.
FLOORS = (
  ("core",),
  ("models", "data", "metrics", "vessels"),
  ("training",),
  ("classification", "segmentation", "calcium"),
  ("tasks",),
  ("explanation",),
  ("link",),
  ("report",),
  ("evaluation",),
  ("notebook", "bench", "weights", "export"),
  ("experiment",),
)
# What a person starts, and nothing else imports.
PROGRAMS = (
  "main",
  "predict",
  "segment",
  "calcium_score",
  "explain",
  "evaluate",
  "evaluate_diagnosis",
  "evaluate_link",
  "__main__",
)
FLOOR = {room: floor for floor, some in enumerate(FLOORS) for room in some}

DEVICE_PACKAGES = {"cadjax", "flax", "jax", "jaxlib", "optax", "orbax"}
NOWHERE = {"tensorflow", "tf_keras", "keras"}
HOST_ONLY_FORBIDS = DEVICE_PACKAGES | {"torch", "configs", "tests"}
# These are pure: arrays and configs, neither files nor scans.
PURE = {"models", "metrics", "vessels"}
# Of data_prep they know errors, and the names of what is in a heart.
PURE_KNOWS = {"data_prep.errors", "data_prep.scct"}


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


def room(name: str) -> str:
  """Returns the room of a module of cadjax; "" for the package itself."""
  return (name.split(".") + [""])[1]


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
    return "nobody imports tests"
  if top(name) == "data_prep" and top(target) in HOST_ONLY_FORBIDS:
    return "data_prep runs on the host, without devices"
  if top(name) == "cadjax":
    if top(target) == "configs":
      return "a config is data, given by a flag"
    if top(target) == "cadjax":
      return _breach_inside(name, target)
    pure = room(name) in PURE and target not in PURE_KNOWS
    if pure and top(target) == "data_prep":
      return (
        f"{room(name)} is pure: of data_prep it knows errors and names alone"
      )
  if top(name) == "configs" and top(target) in DEVICE_PACKAGES | {"data_prep"}:
    return "a config is plain data"
  return None


def _breach_inside(name: str, target: str) -> str | None:
  here, there = room(name), room(target)
  if not there:  # The package: its version, and names that load lazily.
    return None
  if there in PROGRAMS:
    return "nobody imports a program"
  # A room that is not in the picture fails elsewhere, as unplaced.
  if here == there or here in PROGRAMS or here not in FLOOR:
    return None
  if not here:
    return None
  if FLOOR.get(there, 99) >= FLOOR[here]:
    return f"{here} lies on floor {FLOOR[here]}, {there} on {FLOOR.get(there)}"
  return None


def unplaced(importing: dict[str, set[str]]) -> set[str]:
  """Returns the rooms of cadjax that are not in the picture."""
  rooms = {room(name) for name in importing if top(name) == "cadjax"}
  return rooms - {"", *PROGRAMS, *FLOOR}


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


def test_imports_point_down():
  assert not breaches(graph(ROOT))


def test_imports_have_no_cycles():
  assert not cycle(graph(ROOT))


def test_every_room_is_in_the_picture():
  assert not unplaced(graph(ROOT))
  rooms = {room(name) for name in sources(ROOT, "cadjax")}
  assert set(FLOOR) <= rooms, "the picture has a room that is gone"


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
    ("data_prep__volume", "from cadjax.metrics import binary\n"),
    ("data_prep__volume", "import torch\n"),
    ("data_prep__ctca__builder", "import tensorflow as tf\n"),
    ("cadjax__bench__rows", "from tensorflow import io\n"),
    ("cadjax__models__layers", "from cadjax.training import workdir\n"),
    ("cadjax__models__layers", "from ..training.workdir import load\n"),
    ("cadjax__models__layers", "def f():\n  from ..training import workdir\n"),
    ("cadjax__metrics__binary", "from data_prep.volume import Volume\n"),
    ("cadjax__metrics__binary", "from cadjax.vessels import tree\n"),
    ("cadjax__segmentation__task", "import cadjax.classification.task\n"),
    ("cadjax__training__loop", "from cadjax.main import main\n"),
    ("cadjax__training__loop", "from configs import demo\n"),
    ("cadjax__predict", "from cadjax import explain\n"),
    ("configs__demo", "import jax\n"),
  ],
)
def test_a_forbidden_import_is_seen(tmp_path, name, text):
  importing = tree(
    tmp_path,
    **{
      "cadjax__training__workdir": "",
      "cadjax__classification__task": "",
      "cadjax__vessels__tree": "",
      "cadjax__main": "",
      "cadjax__explain": "",
      "data_prep__volume": "",
      name: text,
    },
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
    cadjax__training__workdir="from data_prep import errors\n"
    "from ..models import layers",
    cadjax__report__pages="from data_prep import volume",
    cadjax__predict="from cadjax.report import pages\n"
    "from cadjax.training import workdir",
  )
  assert not breaches(importing)
  assert not cycle(importing)
  assert importing["cadjax.predict"] == {
    "cadjax.report.pages",
    "cadjax.training.workdir",
  }


def test_a_cycle_is_seen(tmp_path):
  importing = tree(
    tmp_path,
    cadjax__metrics__binary="from cadjax.metrics import intervals",
    cadjax__metrics__intervals="def f():\n  from . import binary",
  )
  assert {"cadjax.metrics.binary", "cadjax.metrics.intervals"} <= set(
    cycle(importing)
  )


def test_a_new_room_is_seen(tmp_path):
  assert unplaced(tree(tmp_path, cadjax__attic__trunk="")) == {"attic"}


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
