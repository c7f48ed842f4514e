"""Workdirs with random weights, and how to compare two runs."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from cadjax.classification.scan import classify_scan
from cadjax.core import files
from cadjax.data import jobs as scan_jobs
from cadjax.data import scans
from cadjax.link.scan import link_scan
from cadjax.report import classified
from cadjax.segmentation.scan import segment_scan
from cadjax.training import checkpoint, reading, task, workdir
from configs import resnet3d
from data_prep import checksums, geometry
from data_prep.ctca import stored

GRID = {"kind": "paper", "shape": [24, 16, 20]}
STEP = 7


def random_variables(model, image_shape: tuple[int, ...]) -> dict:
  """Draws variables without compiling the model's own initialisation."""
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False),
    jax.random.key(0),
    jnp.zeros((1, *image_shape, 1)),
  )
  rng = np.random.default_rng(3)

  def draw(path, leaf):
    if path[-1].key != "kernel":
      return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)
    fan_in = np.prod(leaf.shape[:-1])
    # An untrained head answers 0.5 to everything; this one has opinions.
    gain = 5.0 if path[-2].key == "head" else 1.4
    values = rng.normal(0, gain / fan_in**0.5, leaf.shape)
    return values.astype(np.float32)

  variables = {k: shapes[k] for k in ("params", "batch_stats")}
  return jax.tree.map_with_path(draw, variables)


def write_workdir(
  path: pathlib.Path,
  *,
  ndim: int = 3,
  source: str = "phantom",
  config=None,
  grid=GRID,
  reference=None,
) -> pathlib.Path:
  """Writes a workdir as cadjax.main leaves it, with random weights.

  A config takes the place of a small ResNet's; `ndim` is then its own. Grid
  and reference are those of dataset.json.
  """
  if config is None:
    config = resnet3d.get_config().copy_and_resolve_references()
    with config.unlocked():
      config.model.update(ndim=ndim, depth=10, width=4)
  ndim = config.model.ndim
  model = task.make_model(config)
  shape = GRID["shape"] if ndim == 3 else GRID["shape"][1:]
  variables = random_variables(model, shape)
  path.mkdir(parents=True)
  saved = checkpoint.Checkpoints(path)
  saved.save_best(STEP, variables)
  saved.close()
  counts = {"train": 60, "validation": 14, "test": 14}
  dataset = {
    "path": "data/ctca",
    "fingerprint": "0123456789abcdef",
    "source": source,
    "grid": geometry.GridSpec.from_dict(grid).to_dict(),
    "cases": counts,
    "patients": counts,
    "reference": reference or {},
  }
  files.write_json(path / "config.json", config.to_dict())
  files.write_json(path / "dataset.json", dataset)
  files.write_json(path / "versions.json", workdir.software().to_dict())
  workdir.seal(path)
  return path


def reseal(data: pathlib.Path) -> None:
  """Writes the checksums of a changed data set, as if it were built so."""
  found = json.loads((data / checksums.NAME).read_text())
  stored.write(data, found["records"], found["metadata"])


def messages(done):
  """The lines that a program wrote to stderr; not what libraries log.

  With Colab's jaxlib, Grain warns at its import that it is old.
  """
  lines = done.stderr.splitlines()
  return [line for line in lines if not line.startswith("WARNING:absl:Grain")]


def warning(cause, model="classifier", output="probability"):
  """Returns a warning of `reading.WARNINGS`."""
  return reading.WARNINGS[cause].format(model=model, output=output)


def classify_file(classifier, path, **options):
  """Scores a file; options as of `scans.read_scan`."""
  return classify_scan(classifier, scans.read_scan(path, **options))


def predict_all(classifier, jobs):
  """Scores and writes scans as `cadjax.predict` does; returns the failures."""
  return scan_jobs.run_jobs(
    jobs,
    classified.KIND,
    lambda _, scan: classify_scan(classifier, scan),
    classified.write_classified,
    lambda job, _: f"{job.case}: probability of CAD",
  )


def segment_file(segmenter, path, **options):
  """Segments a file; options as of `scans.read_scan`."""
  return segment_scan(segmenter, scans.read_scan(path, **options))


def link_file(pair, path, *, options=None, **given):
  """Reads a file with both models; `given` as of `scans.read_scan`."""
  return link_scan(pair, scans.read_scan(path, **given), options=options)


def best_variables(path):
  return checkpoint.restore_best(path)[1]


def assert_same(a, b):
  flat_a, tree_a = jax.tree.flatten(jax.device_get(a))
  flat_b, tree_b = jax.tree.flatten(jax.device_get(b))
  assert tree_a == tree_b
  for x, y in zip(flat_a, flat_b, strict=True):
    np.testing.assert_array_equal(x, y)


def lines(path, *, times=False):
  """The log of a run; what tells times, no two runs have alike."""
  text = (path / "metrics.jsonl").read_text()
  found = [json.loads(line) for line in text.splitlines()]
  return [row for row in found if times == _tells_times(row)]


def _tells_times(row):
  return any(name.startswith(("speed/", "time/")) for name in row)


def segmenter_config(**model):
  """The config of a U-Net small enough for a test, with random weights."""
  from configs import unet3d

  config = unet3d.get_config()
  config.model.features = (4, 8)
  config.model.deep_supervision = False  # Takes four levels.
  config.model.update(model)
  config.data.patch_size = (8, 16, 16)
  config.data.eval_batch_size = 2
  return config
