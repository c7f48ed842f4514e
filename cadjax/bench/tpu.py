"""The train step on TPUs that are not there, case by case.

  python -m cadjax.bench.tpu --config=resnet3d --table=cadjax/bench/README.md

Compiles a config's step at 256x128x128 in bfloat16 ahead of time for one
v5e chip, by batch, with and without remat, and for eight of them, and writes
the tables. A case takes 2 to 5 minutes and is kept in --out, so that a stopped
run goes on; what it has not come to is "?". Nothing runs: all numbers are the
compiler's estimates.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from cadjax.bench import about, rows, summary
from cadjax.bench.measure import is_full, measure
from cadjax.core import configs, files, lookup
from data_prep import errors
from data_prep.errors import UserError

SHAPE = (256, 128, 128)
ONE, EIGHT = "tpu:v5e:2x2", "tpu:v5e:2x4"
STAGES = ("stem", "stage1", "stage2", "stage3", "stage4", "other")


@dataclasses.dataclass(frozen=True)
class Case:
  """One compilation.

  Attributes:
    batch: volumes on all chips together.
    remat: whether blocks are computed again in the backward pass.
    chips: how many.
    parallel: config.parallel.
    space: over how many chips the depth of a volume is divided.
    conv: config.model.conv; "lax" is the step before it was tuned.
    dtype: config.model.dtype.
    ways: a key of `rows.WAYS`; None for what the config says.
  """

  batch: int
  remat: bool = False
  chips: int = 1
  parallel: str = "pmap"
  space: int = 1
  conv: str = "auto"
  dtype: str = "bfloat16"
  ways: str | None = None

  @property
  def name(self) -> str:
    """Of its file."""
    remat = "_remat" if self.remat else ""
    if self.ways is not None:
      remat += "_" + self.ways.replace(" ", "_")
    return (
      f"{self.chips}_{self.parallel}_{self.space}_{self.conv}_{self.dtype}"
      f"_batch{self.batch}{remat}"
    )

  def settings(self, config: Mapping[str, Any]) -> rows.Settings:
    """Returns what the benchmark is asked for, with this case's `config`."""
    fields = ("dtype", "remat", "conv")
    changes = {name: getattr(self, name) for name in fields}
    if self.ways is not None:
      changes |= rows.WAYS[self.ways]
    config = {
      **config,
      "model": {**config["model"], **changes},
      "parallel": self.parallel,
      "mesh": {"data": self.chips // self.space, "space": self.space},
    }
    return rows.Settings(
      config=config,
      shape=SHAPE,
      batch=self.batch,
      devices=self.chips,
      against="none",
      data=None,
      scan_shape=SHAPE,
      aot=ONE if self.chips == 1 else EIGHT,
    )


# Float32 tells what a T4 holds, which has 16 GB, too, and no bfloat16.
BATCHES = {"bfloat16": (4, 8, 16, 32, 64), "float32": (4, 8)}
TUNING = {
  "XLA's own stem": Case(8, conv="lax", ways="plain"),
  **{name: Case(8, ways=name) for name in rows.WAYS},
  "what `auto` is": Case(8),
}
EIGHT_CHIPS = [
  Case(64, chips=8),
  Case(64, chips=8, parallel="mesh"),
  Case(32, chips=8, parallel="mesh", space=2),
]


def cases() -> list[Case]:
  """Returns all of the tables, the most telling ones first."""
  by_batch = [
    Case(batch, remat, dtype=dtype)
    for dtype, batches in BATCHES.items()
    for remat in (False, True)
    for batch in batches
  ]
  return list(dict.fromkeys([*TUNING.values(), *by_batch, *EIGHT_CHIPS]))


def run(
  case: Case, config: Mapping[str, Any], folder: pathlib.Path
) -> dict[str, Any]:
  """Compiles a case, or reads what came of it before.

  Args:
    case: the case.
    config: of a 3D classifier, JSON-able.
    folder: where it is kept.

  Returns:
    "footer", and "aot" (`summary.aot`) or, of a program that is too large
    for the chip, "full": the compiler's words.

  Raises:
    UserError: it failed for any other reason.
  """
  path = folder / f"{case.name}.json"
  if path.exists():
    return files.read_json(path)
  (group,) = rows.plan((), case.settings(config), None)
  (result,) = measure(group, 1, say=lambda _: None)
  found: dict[str, Any] = {"footer": about.about([result])["footer"]}
  if result.error is None:
    found["aot"] = summary.aot(result)
    found["compile_seconds"] = result.info["compile_seconds"]
  elif is_full(result):
    found["full"] = result.error
  else:
    raise UserError(f"{case.name}: {result.error}")
  files.write_json(path, found)
  return found


def tables(found: Mapping[Case, Mapping[str, Any]]) -> str:
  """Returns the tables as Markdown; cases that are not there are "?"."""
  lines = [
    "| batch, one chip | memory | with remat | cycles | with remat | a volume |"
  ]
  lines += ["| --- | --- | --- | --- | --- | --- |"]
  for dtype, batches in BATCHES.items():
    for batch in batches:
      pair = [
        found.get(Case(batch, remat, dtype=dtype)) for remat in (False, True)
      ]
      cells = [_memory(one) for one in pair] + [_cycles(one) for one in pair]
      cells.append(_least(pair, batch))
      lines.append(f"| {batch}, {dtype} | {' | '.join(cells)} |")
  lines += ["", f"| cycles at batch 8 | all | {' | '.join(STAGES)} | floors |"]
  lines += ["| --- " * (len(STAGES) + 3) + "|"]
  for name, case in TUNING.items():
    stages, floors = ["?"] * len(STAGES), "?"
    if aot := found.get(case, {}).get("aot"):
      cycles = aot["mcycles_by_stage"]
      stages = [f"{cycles.get(stage, 0):.0f}" for stage in STAGES]
      floors = (
        f"arithmetic {aot['mcycles_arithmetic']:.0f}, bandwidth"
        f" {aot['mcycles_bandwidth']:.0f}"
      )
    cells = [name, _cycles(found.get(case)), *stages, floors]
    lines.append(f"| {' | '.join(cells)} |")
  lines += ["", "| eight chips | memory | cycles | collectives in a step |"]
  lines += ["| --- | --- | --- | --- |"]
  for case in EIGHT_CHIPS:
    split = f", depth over {case.space}" if case.space > 1 else ""
    one = found.get(case)
    cells = [_memory(one), _cycles(one), _collectives(one)]
    lines.append(
      f"| {case.parallel}{split}, batch {case.batch} | {' | '.join(cells)} |"
    )
  footers = sorted({one["footer"] for one in found.values()})
  return "\n".join([*lines, "", "; ".join(footers)])


def _memory(one: Mapping[str, Any] | None) -> str:
  if one is None:
    return "?"
  return f"{one['aot']['memory_gb']:.1f} GB" if "aot" in one else "too large"


def _cycles(one: Mapping[str, Any] | None) -> str:
  if one is None:
    return "?"
  return f"{one['aot']['mcycles']:.0f} M" if "aot" in one else "-"


def _least(pair: Sequence[Mapping[str, Any] | None], batch: int) -> str:
  """The cycles of a volume, of the cheaper of two that fit."""
  cycles = [one["aot"]["mcycles"] for one in pair if one and "aot" in one]
  if cycles:
    return f"{min(cycles) / batch:.1f} M"
  return "-" if all(pair) else "?"


def _collectives(one: Mapping[str, Any] | None) -> str:
  if one is None:
    return "?"
  links = one["aot"]["collectives"].items() if "aot" in one else ()
  return ", ".join(
    f"{v['count']} {k} of {v['bytes'] / 1e6:.0f} MB" for k, v in links
  )


def define_flags() -> None:
  """Defines the flags; not at import, so that tests may import this."""
  configs.define_flag()
  flags.DEFINE_string("out", "bench/tpu", "Folder of the compiled cases.")
  flags.DEFINE_string("table", None, "A README that gets the tables.")


def main(argv: Sequence[str]) -> None:
  """Compiles all cases and writes their tables."""
  del argv
  args = flags.FLAGS
  if args.config is None:
    raise UserError("--config is missing; try --config=resnet3d")
  config = json.loads(args.config.to_json_best_effort())
  if args.table:  # Told now and not in an hour.
    files.split_at_table(pathlib.Path(args.table), "tpu")
  folder = pathlib.Path(args.out)
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"{folder}: cannot write there: {error}") from error
  found: dict[Case, Mapping[str, Any]] = {}
  every = cases()
  for number, case in enumerate(every, 1):
    print(f"{number}/{len(every)}: {case.name}", file=sys.stderr, flush=True)
    found[case] = run(case, config, folder)
    if args.table:  # After each: an hour may not come to its end.
      files.replace_table(pathlib.Path(args.table), "tpu", tables(found))
  print(tables(found))


if __name__ == "__main__":
  errors.run(
    "python -m cadjax.bench.tpu",
    main,
    define_flags,
    expected=(lookup.ConfigError,),
    more_help=configs.describe,
  )
