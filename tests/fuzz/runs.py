"""Data sets, and what a training leaves: workdirs and checkpoints."""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from fuzz import mutations, tables
from fuzz.mutations import Rng, pick
from fuzz.target import (
  NOTHING,
  Damage,
  Found,
  Target,
  digest,
  files_below,
  rename,
)


def _draw_file(rng: Rng, files: Sequence[pathlib.Path]) -> pathlib.Path:
  """Draws a file: half of the time the larger, the likelier."""
  if rng.random() < 0.5:
    return pick(rng, files)
  sizes = np.array([path.stat().st_size for path in files], np.float64)
  return files[int(rng.choice(len(files), p=sizes / sizes.sum()))]


def _damage_file(rng, path, kinds=0.12) -> str:
  """Damages one file according to its kind."""
  if rng.random() < kinds:
    return f"became {mutations.replace_path(rng, path)}"
  data = path.read_bytes()
  change = mutations.damage_bytes
  if rng.random() < 0.6:
    change = {
      ".json": mutations.damage_json,
      ".csv": mutations.damage_csv,
    }.get(path.suffix, change)
    if data.lstrip()[:1] == b"{" and change is mutations.damage_bytes:
      change = mutations.damage_json
  try:
    changed, what = change(rng, data)
  except ValueError:  # Not JSON after all.
    changed, what = mutations.damage_bytes(rng, data)
  path.write_bytes(changed)
  return what


class Records(Target):
  """A built data set, read as a training reads it."""

  name = "dataset"
  parts = ("records", "rows", "metadata")

  def make(self, folder: pathlib.Path) -> str:
    from data_prep import build
    from data_prep.ctca.ctca_dataset_builder import CtcaConfig, config_name
    from data_prep.geometry import GridSpec

    scans = folder / "scans"
    scans.mkdir()
    tables.write_scans(scans, 12)
    grid = GridSpec(kind="paper", shape=(4, 8, 8))
    config = CtcaConfig(
      name=config_name("manifest", grid),
      source="manifest",
      input=str(scans),
      grid=grid,
      fractions=(0.34, 0.33, 0.33),
      num_folds=3,
      workers=1,
    )
    built = pathlib.Path(build.build(config, folder / "built").data_dir)
    built.rename(folder / "set")
    mutations.remove(scans)
    mutations.remove(folder / "built")
    return "set"

  def read(self, folder: pathlib.Path, entry: str) -> Found:
    from cadjax.data import input_pipeline
    from configs import resnet3d

    sys.modules.pop("fuzz.planted", None)
    config = resnet3d.get_config().data
    config.path = str(folder / entry)
    dataset = input_pipeline.open_dataset(config)
    records, rows = [], []
    for split in input_pipeline.SPLITS:
      rows.append(dataset.rows[split])
      for row in dataset.rows[split]:
        record = dataset.read(row)
        records += [(key, digest(record[key])) for key in sorted(record)]
      for batch, _ in dataset.eval_batches(split, 2):
        records.append(digest(*(batch[key] for key in sorted(batch))))
    if "fuzz.planted" in sys.modules:
      raise AssertionError("code that the data set names was run")
    grid, shape = dict(dataset.grid), dataset.shape
    return Found(
      {
        "records": digest(records),
        "rows": digest(rows),
        "metadata": digest(grid, shape, dict(dataset.metadata)),
      }
    )

  def damage(self, rng: Rng, folder: pathlib.Path, entry: str) -> Damage:
    files = files_below(folder)
    text = [x for x in files if x.suffix in (".json", ".csv")]
    path = _draw_file(rng, files) if rng.random() < 0.5 else pick(rng, text)
    what = _damage_file(rng, path)
    guarded = frozenset({"records"})
    if ".array_record" in path.name:
      guarded = self.all
    if path.name == "cases.csv":  # It says which records there are.
      guarded = NOTHING
    return Damage(f"{path.name}: {what}", entry, guarded)


def _tiny_config():
  from configs import resnet3d

  config = resnet3d.get_config().copy_and_resolve_references()
  with config.unlocked():
    config.model.update(ndim=3, depth=10, width=1)
  return config


class Workdir(Target):
  """The workdir of a classifier, loaded as every program loads it."""

  name = "best"
  parts = ("weights", "config")
  weight = 0.7

  def make(self, folder: pathlib.Path) -> str:
    import tiny_runs

    tiny_runs.write_workdir(folder / "run", config=_tiny_config())
    return "run"

  def read(self, folder: pathlib.Path, entry: str) -> Found:
    import jax

    from cadjax import tasks
    from cadjax.training import workdir

    model = tasks.load_model(folder / entry)
    leaves, tree = jax.tree.flatten(jax.device_get(model.variables))
    card = workdir.describe_model(model)
    config = (model.config.to_json(sort_keys=True), model.dataset)
    # What a scan would be laid on and compared with, and whether the network
    # of the config takes these weights: shapes alone, nothing is computed.
    grid = model.grid
    bounds = [(float(a), float(b)) for a, b in model.reference.values()]
    image = jax.ShapeDtypeStruct((1, *grid.shape, 1), np.int16)
    if _honest(model.config) is False or grid.shape != (24, 16, 20):
      jax.eval_shape(model._eval_step, model.variables, {"image": image})
    return Found(
      {
        "weights": digest(str(tree), *leaves),
        "config": digest(config, card.step, card.versions, bounds),
      }
    )

  def damage(self, rng: Rng, folder: pathlib.Path, entry: str) -> Damage:
    files = files_below(folder)
    best = [path for path in files if "best" in path.parts]
    path = _draw_file(rng, best) if rng.random() < 0.7 else pick(rng, files)
    name = path.relative_to(folder / entry)
    # What older versions wrote has no checksums of the files beside best/.
    sealed = (folder / entry / "checksums.json").exists()
    guarded = frozenset({"weights"})
    if sealed or path in best:
      guarded = self.all
    if rng.random() < 0.05:
      path = pick(
        rng,
        [x for x in path.parents if (folder / entry) in x.parents] or [path],
      )
      name = path.relative_to(folder / entry)
      kind = mutations.replace_path(rng, path)
      return Damage(f"{name} became {kind}", entry, guarded)
    return Damage(f"{name}: {_damage_file(rng, path)}", entry, guarded)


def _honest(config) -> bool:
  expected = _tiny_config()
  expected.model.dtype = config.model.get("dtype")
  return config.to_json(sort_keys=True) == expected.to_json(sort_keys=True)


class Packed(Target):
  """A model in one file, whose checksum is of all that is in it."""

  name = "safetensors"
  parts = ("weights", "description")
  weight = 0.5

  def make(self, folder: pathlib.Path) -> str:
    from cadjax.training import packed

    stored = packed.halve(_state(1)["params"])
    config = {"model": {"name": "resnet", "depth": 10}}
    about = dict.fromkeys(("name", "versions", "calibration"), "a")
    about |= {"step": 1, "config": config, "dataset": {"grid": "heart"}}
    (folder / "a.safetensors").write_bytes(packed.to_bytes(about, stored))
    return "a.safetensors"

  def read(self, folder: pathlib.Path, entry: str) -> Found:
    from cadjax.training import packed

    found = packed.read(folder / entry)
    leaves = packed.flatten(found.variables)
    return Found(
      {
        "weights": digest(*leaves, *leaves.values()),
        "description": digest(json.dumps(found.description, sort_keys=True)),
      }
    )

  def damage(self, rng: Rng, folder: pathlib.Path, entry: str) -> Damage:
    if rng.random() < 0.05:
      return rename(rng, folder, entry)
    return Damage(_damage_file(rng, folder / entry), entry, self.all)


class Checkpoints(Target):
  """The workdir of a training that stopped, as the same command resumes it."""

  name = "checkpoints"
  parts = ("state", "meta")
  weight = 0.7
  # The folders in it that are damaged.
  _places = ("checkpoints", "best")

  def make(self, folder: pathlib.Path) -> str:
    from cadjax.training import checkpoint, loop, workdir

    workdir.prepare(folder / "run", _tiny_config(), _dataset())
    saved = checkpoint.Checkpoints(folder / "run")
    for step in (10, 20):
      saved.save_best(step, _state(step)["params"])
      progress = loop.Progress(best=0.5 + step, best_step=step)
      saved.save(step, _state(step), dataclasses.asdict(progress))
    saved.close()
    return "run"

  def read(self, folder: pathlib.Path, entry: str) -> Found:
    import jax

    from cadjax.training import checkpoint, workdir

    workdir.prepare(folder / entry, _tiny_config(), _dataset())
    saved = checkpoint.Checkpoints(folder / entry)
    try:
      found = saved.restore(_state(0))
    finally:
      saved.close()
    if found is None:
      return Found({"state": "none", "meta": "none"})
    state, meta = found
    leaves, tree = jax.tree.flatten(jax.device_get(state))
    return Found(
      {
        "state": digest(str(tree), *leaves),
        "meta": digest(json.dumps(meta, sort_keys=True)),
      }
    )

  def damage(self, rng: Rng, folder: pathlib.Path, entry: str) -> Damage:
    root = folder / entry
    files = [x for name in self._places for x in files_below(root / name)]
    path = _draw_file(rng, files)
    if rng.random() < 0.08:
      path = pick(rng, [x for x in path.parents if root in x.parents])
      kind = mutations.replace_path(rng, path)
      # Without the folder of a step nothing tells that it was there.
      guarded = NOTHING if kind in mutations.GONE else self.all
      return Damage(f"{path.relative_to(root)} became {kind}", entry, guarded)
    what = _damage_file(rng, path)
    return Damage(f"{path.relative_to(root)}: {what}", entry, self.all)


class Resume(Checkpoints):
  """The same, with damage to the JSON by which it knows its workdir again."""

  name = "workdir-json"
  weight = 0.5

  def damage(self, rng: Rng, folder: pathlib.Path, entry: str) -> Damage:
    path = pick(rng, sorted((folder / entry).glob("*.json")))
    return Damage(f"{path.name}: {_damage_file(rng, path)}", entry, self.all)


def _state(value: int):
  """Returns a state like a training's: arrays of some shapes on a device."""
  import jax

  rng = np.random.default_rng(value)
  return jax.device_put(
    {
      "step": np.int32(value),
      "params": {
        "a": rng.normal(size=(3, 3, 8)).astype(np.float32),
        "b": rng.normal(size=16).astype(np.float32),
      },
      "opt_state": {"m": rng.normal(size=(3, 3, 8)).astype(np.float32)},
    },
    jax.sharding.SingleDeviceSharding(jax.devices()[0]),
  )


def _dataset():
  from cadjax.data import input_pipeline

  row = {"split": "train", "stored": "train", "index": "0", "case_id": "a"}
  row |= {"patient_id": "a", "label": "1", "fold": "0", "mean": "3.5"}
  rows = {split: [row] for split in input_pipeline.SPLITS}
  grid = {"kind": "paper", "shape": [4, 8, 8]}
  metadata = {"source": "manifest", "grid": grid}
  return input_pipeline.Dataset(
    pathlib.Path("/data"), rows, metadata, {}, "0123456789abcdef"
  )


TARGETS: tuple[Target, ...] = (
  Records(),
  Workdir(),
  Packed(),
  Checkpoints(),
  Resume(),
)
