"""What an experiment is: a question, its arms, and what is compared.

A plan is a file with `get_plan(scale)` that returns plain data, a dict with
the fields of `Plan`; its arms are dicts with the fields of `Arm`.
"""

import ast
import dataclasses
import graphlib
import importlib.util
import itertools
import pathlib
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from cadjax.core import configs, lookup
from cadjax.experiment import verdicts
from cadjax.experiment.measures import MEASURES
from data_prep.errors import UserError

# At the severity of a clinic, with the networks of "small".
CLINICAL = "clinical"
SCALES = ("tiny", "small", CLINICAL, "paper")
# What an arm that trains may need of another one, see `run.cell_config`.
ROLES = ("masks", "init_from")


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way of doing it.

  Attributes:
    title: for tables and figures.
    config: of `training.loop`; None for an arm that only measures what its
      needs have trained.
    data: the key in `Plan.data` that it is trained on or measured with.
    needs: role -> the arm that plays it, at the same fold and seed; roles are
      those of `ROLES` or, without a config, of the measure.
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
    target: the smallest difference of `metric` that would matter; see `power`.
    assumed: metric -> numbers in place of those in `power.ASSUMED`.
    verdict: a key of `verdicts.VERDICTS`, whose sentences come first in the
      answer.
    ranked: whether the lines are ordered by the primary metric, largest first.
    ensembles: arm with the measure "patients" -> how many of its seeds answer
      together, in a further line that is shown and not compared, see
      `ensembles`.
    name: of the file.
    scale: one of `SCALES`.
    overrides: FIELD=VALUE, what `override` changed.
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
  target: float | None = None
  assumed: Mapping[str, Mapping[str, float]] = dataclasses.field(
    default_factory=dict
  )
  verdict: str = ""
  ranked: bool = False
  ensembles: Mapping[str, int] = dataclasses.field(default_factory=dict)
  name: str = ""
  scale: str = "small"
  overrides: Sequence[str] = ()

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

  @property
  def trainings(self) -> int:
    """How many trainings each arm has that is not shared."""
    return len(self.folds) * len(self.seeds)

  def cell(self, arm: str, fold: int | None, seed: int) -> "Cell":
    """Returns the cell of an arm that serves a fold and a seed."""
    if self.arms[arm].shared:
      return Cell(arm, None, self.seeds[0])
    return Cell(arm, fold, seed)

  def needed(self, cell: "Cell", arm: str) -> "Cell":
    """Returns the cell of another arm that a cell needs."""
    return self.cell(arm, cell.fold, cell.seed)

  def expected(self, arm: str) -> list[tuple[str, str]]:
    """Returns the (line, metric) of an arm that are compared."""
    found = [(line, metric) for *pair, metric in self.pairs() for line in pair]
    return [
      (line, metric) for line, metric in found if line.split("/")[0] == arm
    ]

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


def ensemble_name(arm: str, size: int) -> str:
  """Returns the name of the line of ensembles of an arm."""
  return f"{arm}/ensembles of {size}"


def folder_name(name: str, scale: str) -> str:
  """Returns the folder of a plan's results, which differs between scales."""
  return name if scale == "small" else f"{scale}_{name}"


def load_plan(path: str, scale: str) -> Plan:
  """Loads a plan from its file.

  Args:
    path: of the file, or the name of a plan that comes with cadjax.
    scale: one of `SCALES`.

  Raises:
    UserError: there is no such plan, or it contradicts itself.
  """
  try:
    file = configs.find(configs.PLAN, path)
  except lookup.ConfigError as error:
    raise UserError(f"--plan: {error}") from error
  spec = importlib.util.spec_from_file_location(file.stem, file)
  if spec is None:
    raise UserError(f"--plan={path}: a plan is a Python file")
  if scale not in SCALES:
    raise UserError(f"--scale={scale} is none of {', '.join(SCALES)}")
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    fields = module.get_plan(scale) if hasattr(module, "get_plan") else None
  except Exception as error:  # Whatever the user's own code raises.
    raise UserError(f"--plan={path}{_where(error, file)}") from error
  if fields is None:
    raise UserError(f"--plan={path}: it has no get_plan(scale)")
  try:
    return make_plan(fields, file.stem, scale)
  except lookup.ConfigError as error:
    raise UserError(f"--plan={path}: {error}") from error


def _where(error: Exception, file: pathlib.Path) -> str:
  """Returns the line of a file that raised, the kind of error and its words."""
  if isinstance(error, SyntaxError) and error.filename == str(file):
    lines = [error.lineno]
  else:
    frames = traceback.extract_tb(error.__traceback__)
    lines = [one.lineno for one in frames if one.filename == str(file)]
  line = f", line {lines[-1]}" if lines else ""
  reason = error.msg if isinstance(error, SyntaxError) else error
  return f"{line}: {type(error).__name__}: {reason}"


def override(plan: Plan, settings: Sequence[str]) -> Plan:
  """Returns a plan with fields of all of its configs changed.

  Args:
    plan: whose arms are changed; an arm without such a field stays.
    settings: FIELD=VALUE, such as "data.batch_size=2".

  Raises:
    lookup.ConfigError: a field that no arm has, or a value of another type.
  """
  arms = dict(plan.arms)
  for setting in settings:
    field, equals, text = setting.partition("=")
    if not equals:
      raise lookup.ConfigError(f"--override={setting}: expected FIELD=VALUE")
    try:
      value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
      value = text
    changed = {
      name: _changed(arm, field, value)
      for name, arm in arms.items()
      if arm.config is not None and _has(arm.config, field)
    }
    if not changed:
      raise lookup.ConfigError(f"--override={setting}: no arm has that field")
    arms |= changed
  overrides = (*plan.overrides, *settings)
  return dataclasses.replace(plan, arms=arms, overrides=overrides)


def _has(config: ml_collections.ConfigDict, field: str) -> bool:
  for part in field.split("."):
    if not isinstance(config, ml_collections.ConfigDict) or part not in config:
      return False
    config = config[part]
  return True


def _changed(arm: Arm, field: str, value: Any) -> Arm:
  config = arm.config.copy_and_resolve_references()
  try:
    config.update_from_flattened_dict({field: value})
  except (KeyError, TypeError) as error:
    raise lookup.ConfigError(f"--override={field}={value}: {error}") from error
  return dataclasses.replace(arm, config=config)


def make_plan(
  fields: Mapping[str, Any], name: str = "", scale: str = "small"
) -> Plan:
  """Makes a plan of plain data and checks it.

  Raises:
    lookup.ConfigError: an unknown name, or arms that need one another.
  """
  _check_fields(fields, Plan, "field of a plan")
  arms = {}
  for key, values in fields["arms"].items():
    _check_fields(values, Arm, f"field of the arm {key!r}")
    arms[key] = Arm(**values)
  plan = Plan(**{**fields, "arms": arms, "name": name, "scale": scale})
  for key, arm in plan.arms.items():
    lookup.check_known([arm.measure], MEASURES, f"measure of the arm {key!r}")
    data = [arm.data, *arm.measured_on]
    lookup.check_known(data, plan.data, f"data of the arm {key!r}")
    lookup.check_known(
      arm.needs.values(), plan.arms, f"need of the arm {key!r}"
    )
    if arm.config is not None:
      lookup.check_known(arm.needs, ROLES, f"role in the arm {key!r}")
  if plan.verdict:
    lookup.check_known([plan.verdict], verdicts.VERDICTS, "verdict")
  for a, b, _ in plan.pairs():
    lines = [line.partition("/")[0] for line in (a, b)]
    lookup.check_known(lines, plan.arms, "arm in a comparison")
  lookup.check_known(plan.ensembles, plan.arms, "arm in an ensemble")
  for name, size in plan.ensembles.items():
    arm, seeds = plan.arms[name], len(plan.seeds)
    if arm.measure != "patients" or arm.shared:
      raise lookup.ConfigError(
        f"ensembles of the arm {name!r}: its cells must have the measure"
        " 'patients' and a seed each"
      )
    if not 2 <= size <= seeds:
      raise lookup.ConfigError(
        f"ensembles of {size} of the arm {name!r}, which has {seeds} seeds"
      )
    if any(ensemble_name(name, size) in pair for pair in plan.pairs()):
      raise lookup.ConfigError("ensembles are shown and cannot be compared")
  try:
    plan.cells()
  except graphlib.CycleError as error:
    raise lookup.ConfigError(
      f"the arms {', '.join(sorted(set(error.args[1])))} need one another"
    ) from error
  return plan


def _check_fields(values: Mapping[str, Any], kind: type, what: str) -> None:
  fields = dataclasses.fields(kind)
  lookup.check_known(values, [field.name for field in fields], what)
  for field in fields:
    optional = (field.default, field.default_factory) != (
      dataclasses.MISSING,
      dataclasses.MISSING,
    )
    if not optional and field.name not in values:
      raise lookup.ConfigError(
        f"the {what.partition(' of ')[2]} lacks {field.name!r}"
      )
