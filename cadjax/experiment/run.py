"""Runs the cells of a plan, alone or beside other processes."""

import dataclasses
import hashlib
import json
import pathlib
import resource
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from absl import flags
from tqdm import tqdm

from cadjax import tasks
from cadjax.core import lookup
from cadjax.experiment import summary, trainings
from cadjax.experiment.compare import Line
from cadjax.experiment.measures import MEASURES, Trial
from cadjax.experiment.plan import Arm, Cell, Plan
from cadjax.experiment.store import Store
from cadjax.models import resnet
from cadjax.training import workdir
from data_prep import build, errors, export, phantom, workers
from data_prep.errors import UserError

POLL_S = 2.0


class Stopped(Exception):
  """The run was asked to stop; the same command goes on."""


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A plan and the folders that it works in.

  Attributes:
    plan: what to do.
    cells: claims and results of the cells.
    data: claims of the data sets, which plans may share.
  """

  plan: Plan
  cells: Store
  data: Store

  def run(self) -> None:
    """Runs the cells that nobody else runs, until all are done or failed.

    Raises:
      Stopped: the process was asked to end.
      UserError: a cell was done by another version of the plan.
    """
    cells = self.plan.cells()
    self.check(cells)
    bar = tqdm(total=len(cells), unit="cell", dynamic_ncols=True)
    with bar:
      while True:
        states = {cell: self.cells.state(cell.name) for cell in cells}
        over = sum(state in ("done", "failed") for state in states.values())
        bar.update(over - bar.n)
        if over == len(cells):
          self.check(cells)  # Others may have worked beside this process.
          return
        if not self._run_one(states, bar):
          time.sleep(POLL_S)

  def check(self, cells: Sequence[Cell]) -> None:
    """Raises `UserError` if a cell was done by another version of the plan."""
    for cell in cells:
      if self.cells.state(cell.name) != "done":
        continue
      if self.cells.read(cell.name)["digest"] != digest(self.plan, cell):
        raise UserError(
          f"{self.cells.folder(cell.name)} was done by another version of the"
          " plan, at another scale or on phantoms of another edition; use"
          " another --workdir"
        )

  def _run_one(self, states: Mapping[Cell, str], bar: tqdm) -> bool:
    """Runs the first cell that can be; False if none can."""
    for cell, state in states.items():
      if state != "waiting":
        continue
      needed = {
        role: self.plan.needed(cell, arm)
        for role, arm in self.plan.arms[cell.arm].needs.items()
      }
      failed = [c for c in needed.values() if states[c] == "failed"]
      if failed:
        self.cells.fail(cell.name, f"it needs {failed[0].name}, which failed\n")
        return True
      if any(states[c] != "done" for c in needed.values()):
        continue
      self.check(list(needed.values()))
      with self.cells.claim(cell.name) as mine:
        # Another process may have done it since the states were read.
        if mine and self.cells.state(cell.name) == "running":
          bar.write(f"{cell.name}: {self.plan.arms[cell.arm].title}")
          self._work(cell, needed, bar)
          return True
    return False

  def _work(self, cell: Cell, needed: Mapping[str, Cell], bar: tqdm) -> None:
    arm = self.plan.arms[cell.arm]
    try:
      data = {
        name: self._dataset(name) for name in (arm.data, *arm.measured_on)
      }
      start = time.monotonic()
      entries, about = self._trained_and_measured(cell, needed, data)
      self._check_entries(cell.arm, entries)
    except Stopped:
      raise
    except Exception as error:
      # One bad cell is reported and does not stop the others.
      self.cells.fail(cell.name, traceback.format_exc())
      bar.write(f"{cell.name} failed: {errors.one_line(error)}")
      return
    self.cells.finish(
      cell.name,
      {
        "digest": digest(self.plan, cell),
        "rules": summary.RULES_VERSION,
        "edition": phantom.EDITION,
        "entries": entries,
        **about,
        "cost": {
          "seconds": round(time.monotonic() - start, 1),
          "peak_bytes": _peak_bytes(),
          "device": _device(),
          "devices": jax.device_count(),
          "code": workdir.software().to_dict()["git"],
        },
      },
    )

  def _check_entries(self, arm: str, entries: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if what the plan compares was not measured."""
    for name, metric in self.plan.expected(arm):
      entry = name.partition("/")[2]
      given = sorted(filter(None, entries))
      if entry not in entries:
        raise lookup.ConfigError(
          f"the plan compares {name!r}, but of the arm {arm!r} there is only"
          f" {', '.join(given) or 'its own line'}"
        )
      if not Line({(None, 0): entries[entry]}).has(metric):
        raise lookup.ConfigError(
          f"{name!r}, which is compared, has no {metric}"
        )

  def _trained_and_measured(
    self,
    cell: Cell,
    needed: Mapping[str, Cell],
    data: Mapping[str, pathlib.Path],
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    arm = self.plan.arms[cell.arm]
    folder = self.cells.folder(cell.name)
    needs = {role: self.cells.folder(c.name) for role, c in needed.items()}
    about: dict[str, Any] = {"sizes": (0, 0)}
    if arm.config is not None:
      config = cell_config(arm, cell, data[arm.data], needs)
      tasks.train_and_evaluate(config, folder)
      if not workdir.is_finished(folder):
        raise Stopped
      # As the training opened it: a classifier leaves out unlabelled cases.
      opened = tasks.find(config).open_dataset(config)
      about["sizes"] = tuple(
        len({row["patient_id"] for row in opened.rows[split]})
        for split in ("train", "test")
      )
      if outcome := trainings.outcome(folder, opened.rows["validation"]):
        about["training"] = outcome
    trial = Trial(folder, data, needs, arm.options, arm.data)
    return MEASURES[arm.measure](trial), about

  def _dataset(self, name: str) -> pathlib.Path:
    """Returns where a data set is, built by this process or another one."""
    given = list(self.plan.data[name])
    folder = f"{name}_{_hash(_given(self.plan, name))}"
    while self.data.state(folder) != "done":
      with self.data.claim(folder) as mine:
        if mine and self.data.state(folder) == "running":
          make_data(given, self.data.folder(folder))
          self.data.finish(folder, {"flags": given})
          break
      time.sleep(POLL_S)
    return self.data.folder(folder)


def cell_config(
  arm: Arm,
  cell: Cell,
  data: pathlib.Path,
  needs: Mapping[str, pathlib.Path],
) -> ml_collections.ConfigDict:
  """Returns the config of a cell: that of its arm on its fold, seed and data.

  An arm with config.data.prior that needs "masks" sees those of that cell;
  one that needs "init_from" starts from what that cell has learned.
  """
  config = arm.config.copy_and_resolve_references()
  with config.unlocked():
    config.seed = cell.seed
    config.data.path = str(data)
    config.data.fold = cell.fold
    if "subset" in config.data:
      config.data.subset.seed = cell.seed
    if "masks" in needs:
      config.data.prior.masks = str(needs["masks"] / "masks")
    if "init_from" in needs:
      config.init_from = str(needs["init_from"])
  return config


def make_data(given: Sequence[str], out: pathlib.Path) -> None:
  """Builds a data set, or exports scans where the first flag is "export"."""
  values = flags.FlagValues()
  if given[0] == "export":
    export.define_flags(values)
    cores = workers.available_cores()
    values(["export", f"--workers={cores}", *given[1:], f"--out={out}"])
    export.export_from_flags(values)
    return
  build.define_flags(values)
  values(["build", *given, f"--out={out}"])
  # What is there is whole, but nobody lived to say so.
  build.build(build.config_from_flags(values), out, overwrite=True)


def digest(plan: Plan, cell: Cell) -> str:
  """Returns a digest that shows whether a cell's result is of this plan.

  It is of all that the result depends on: config, data, measure, fold, seed,
  and the cells that this one needs. The ways in which a model can be computed
  are left out: results of before they could be chosen stay.
  """
  arm = plan.arms[cell.arm]
  used = (arm.data, *arm.measured_on)
  needs = {
    role: digest(plan, plan.needed(cell, other))
    for role, other in arm.needs.items()
  }
  return _hash(
    {
      "config": arm.config and _config_text(arm.config),
      "data": {name: _given(plan, name) for name in used},
      "measure": [arm.measure, dict(arm.options)],
      "cell": [cell.fold, cell.seed],
      "needs": needs,
    }
  )


def _config_text(config: ml_collections.ConfigDict) -> str:
  """Returns a config as JSON, without what changes no more than rounding."""
  kept = config.copy_and_resolve_references()
  with kept.unlocked():
    for name in kept.model.keys() & resnet.WAYS.keys():
      del kept.model[name]
  return kept.to_json_best_effort(sort_keys=True)


def _given(plan: Plan, name: str) -> list[str]:
  """Returns what a data set is made of; phantoms differ between editions."""
  given = list(plan.data[name])
  if "--source=phantom" in given or given[0] == "export":
    # The first edition had no number.
    given += [f"edition {phantom.EDITION}"] if phantom.EDITION > 1 else []
  return given


def _hash(value: Any) -> str:
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def _device() -> str:
  """Names the kind of device; of a CPU its cores, too, which set rounding."""
  kind = jax.devices()[0].device_kind
  if jax.default_backend() != "cpu":
    return kind
  return f"{kind} ({workers.available_cores()}-core)"


def _peak_bytes() -> int:
  """Most memory of the first device so far, or of the process on a CPU."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if "peak_bytes_in_use" in stats:
    return stats["peak_bytes_in_use"]
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
