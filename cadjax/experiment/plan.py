"""What an experiment is: a question, its arms, and what is compared.

A plan is a file with `get_plan(scale)` that returns plain data, a dict with
the fields of `Plan`; its arms are dicts with the fields of `Arm`.
"""

import dataclasses
import graphlib
import importlib.util
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from cadjax import names
from cadjax.experiment.measures import MEASURES
from data_prep.errors import UserError

SCALES = ("tiny", "small", "paper")


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way of doing it.

  Attributes:
    title: for tables and figures.
    config: of `cadjax.train`; None for an arm that only measures what its
      needs have trained.
    data: the key in `Plan.data` that it is trained on or measured with.
    needs: role -> the arm that plays it, at the same fold and seed.
    measure: a key of `MEASURES`.
    options: of the measure.
    measured_on: further keys in `Plan.data` that the measure reads.
    shared: whether one cell, on the stored splits, serves all folds and seeds.
  """

  title: str
  config: ml_collections.ConfigDict | None = None
  data: str = "phantoms"
  needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
  measure: str = "patients"
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  measured_on: Sequence[str] = ()
  shared: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
  """A question and how it is answered.

  Attributes:
    question: in one sentence.
    claim: what the paper says of it, and where it stands.
    data: name -> flags of `data_prep.build`, or of `data_prep.export` where
      the first is "export"; without --out.
    arms: name -> arm.
    metric: the primary one; what a comparison is about.
    comparisons: pairs of lines, the first less the second, or triples with
      another metric than the primary one. A line is the name of an arm, or
      ARM/ENTRY where its measure gives several.
    folds: each a test fold, None for the stored splits.
    seeds: of initialisation, order, augmentation and drawn subsets.
    metrics: that the table shows beside the primary one.
    lines: of the figure; None for all.
    limits: what this scale cannot answer.
    name: of the file.
    scale: one of `SCALES`.
  """

  question: str
  claim: str
  data: Mapping[str, Sequence[str]]
  arms: Mapping[str, Arm]
  metric: str
  comparisons: Sequence[Sequence[str]]
  folds: Sequence[int | None] = (None,)
  seeds: Sequence[int] = (0,)
  metrics: Sequence[str] = ()
  lines: Sequence[str] | None = None
  limits: str = ""
  name: str = ""
  scale: str = "small"

  def cells(self) -> list["Cell"]:
    """Returns all cells; what is needed comes before what needs it."""
    needs = {name: set(arm.needs.values()) for name, arm in self.arms.items()}
    order = tuple(graphlib.TopologicalSorter(needs).static_order())
    position = {name: i for i, name in enumerate(order)}
    arms = sorted(self.arms, key=position.get)
    cells = [
      self.cell(arm, fold, seed)
      for seed, fold, arm in itertools.product(self.seeds, self.folds, arms)
    ]
    return list(dict.fromkeys(cells))

  def cell(self, arm: str, fold: int | None, seed: int) -> "Cell":
    """Returns the cell of an arm that serves a fold and a seed."""
    if self.arms[arm].shared:
      return Cell(arm, None, self.seeds[0])
    return Cell(arm, fold, seed)

  def needed(self, cell: "Cell", arm: str) -> "Cell":
    """Returns the cell of another arm that a cell needs."""
    return self.cell(arm, cell.fold, cell.seed)

  def pairs(self) -> list[tuple[str, str, str]]:
    """Returns (line, line, metric) of every comparison."""
    return [
      (pair[0], pair[1], pair[2] if len(pair) > 2 else self.metric)
      for pair in self.comparisons
    ]


@dataclasses.dataclass(frozen=True)
class Cell:
  """One arm at one fold and seed."""

  arm: str
  fold: int | None
  seed: int

  @property
  def name(self) -> str:
    """Its folder: ARM/fold0_seed0."""
    fold = "" if self.fold is None else f"fold{self.fold}_"
    return f"{self.arm}/{fold}seed{self.seed}"


def load_plan(path: str, scale: str) -> Plan:
  """Loads a plan from its file.

  Args:
    path: of the file.
    scale: one of `SCALES`.

  Raises:
    UserError: there is no such plan, or it contradicts itself.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise UserError(f"--plan={path}: no such file; see configs/experiments")
  spec = importlib.util.spec_from_file_location(file.stem, file)
  if spec is None:
    raise UserError(f"--plan={path}: a plan is a Python file")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_plan"):
    raise UserError(f"--plan={path}: it has no get_plan(scale)")
  if scale not in SCALES:
    raise UserError(f"--scale={scale} is none of {', '.join(SCALES)}")
  try:
    return make_plan(module.get_plan(scale), file.stem, scale)
  except names.ConfigError as error:
    raise UserError(f"--plan={path}: {error}") from error


def make_plan(
  fields: Mapping[str, Any], name: str = "", scale: str = "small"
) -> Plan:
  """Makes a plan of plain data and checks it.

  Raises:
    names.ConfigError: an unknown name, or arms that need one another.
  """
  _check_fields(fields, Plan, "field of a plan")
  arms = {}
  for key, values in fields["arms"].items():
    _check_fields(values, Arm, f"field of the arm {key!r}")
    arms[key] = Arm(**values)
  plan = Plan(**{**fields, "arms": arms, "name": name, "scale": scale})
  for key, arm in plan.arms.items():
    names.check_known([arm.measure], MEASURES, f"measure of the arm {key!r}")
    data = [arm.data, *arm.measured_on]
    names.check_known(data, plan.data, f"data of the arm {key!r}")
    names.check_known(arm.needs.values(), plan.arms, f"need of the arm {key!r}")
  for a, b, _ in plan.pairs():
    lines = [line.partition("/")[0] for line in (a, b)]
    names.check_known(lines, plan.arms, "arm in a comparison")
  try:
    plan.cells()
  except graphlib.CycleError as error:
    raise names.ConfigError(
      f"the arms {', '.join(sorted(set(error.args[1])))} need one another"
    ) from error
  return plan


def _check_fields(values: Mapping[str, Any], kind: type, what: str) -> None:
  fields = dataclasses.fields(kind)
  names.check_known(values, [field.name for field in fields], what)
  for field in fields:
    optional = (field.default, field.default_factory) != (
      dataclasses.MISSING,
      dataclasses.MISSING,
    )
    if not optional and field.name not in values:
      raise names.ConfigError(
        f"the {what.partition(' of ')[2]} lacks {field.name!r}"
      )
