"""What a benchmark leaves: its table, bench.json and its pictures."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cadjax.bench import figures, summary
from cadjax.bench.measure import Result
from cadjax.bench.rows import Settings
from cadjax.core import files
from cadjax.report import curves
from data_prep.errors import UserError

# The groups of results by the swept value, "" without a sweep.
Runs = dict[str, list[list[Result]]]

COLUMNS = (
  ("row", "{}"),
  ("median s", "{:.4g}"),
  ("min-max s", "{}"),
  ("volumes/s", "{:.4g}"),
  ("GFLOP", "{:.4g}"),
  ("GFLOP/s", "{:.4g}"),
  ("of matmul", "{:.0%}"),
  ("peak GB", "{:.2f}"),
  ("compile s", "{:.1f}"),
  ("of one pass", "{}"),
  ("of plain", "{}"),
  ("time ratio", "{}"),
  ("memory ratio", "{:.2f}"),
)


def text(settings: Settings, groups: Sequence[Sequence[Result]]) -> str:
  """Returns what is printed of one run: a table and what belongs to it."""
  size = "x".join(map(str, settings.shape))
  table = [line for group in groups for line in summary.rows(group)]
  parts = [
    f"\n{size}, batch {settings.batch}, {settings.devices} device(s)",
    render(table),
  ]
  for group in groups:
    parts += [_failures(group), _stages(group), _extras(group)]
  return "\n".join(part for part in parts if part)


def render(table: Sequence[dict[str, Any]]) -> str:
  """Returns the table as text; columns without any value are left out."""
  if not table:
    return ""
  used = [(k, f) for k, f in COLUMNS if any(k in line for line in table)]
  cells = [[name for name, _ in used]] + [
    [form.format(line[name]) if name in line else "-" for name, form in used]
    for line in table
  ]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = []
  for line in cells:
    first, *rest = (
      cell.ljust(width) if i == 0 else cell.rjust(width)
      for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    )
    lines.append("  ".join([first, *rest]).rstrip())
  return "\n".join(lines)


def costs(groups: Sequence[Sequence[Result]]) -> str:
  """Returns what every explanation method and measure costs, in Markdown."""
  lines = [
    "| of one volume | seconds | peak GB | what |",
    "| --- | --- | --- | --- |",
  ]
  for group in groups:
    some = [one for one in group if one.row.group in ("method", "measure")]
    for line, result in zip(summary.rows(some), some, strict=True):
      numbers = [
        f"{line[name]:.3g}" if name in line else "failed"
        for name in ("median s", "peak GB")
      ]
      note = result.info.get("note", result.error or "")
      lines.append(f"| {line['row']} | {' | '.join(numbers)} | {note} |")
  return "\n".join(lines) if len(lines) > 2 else ""


def _failures(group: Sequence[Result]) -> str:
  return "\n".join(
    f"{one.row.group}: {one.row.name} failed: {one.error}"
    for one in group
    if one.error is not None
  )


def _stages(group: Sequence[Result]) -> str:
  """Returns one line for every stage, with its share of the roof."""
  found, roof = summary.stages(group), summary.ceilings(group)
  if not found:
    return ""
  lines = ["\nforward pass by stage"]
  for one in found:
    line = (
      f"{one['stage']:10s}{one['flops'] / 1e9:10.4g} GFLOP"
      f"{one['flops_per_byte']:8.1f} FLOP/byte"
    )
    if math.isnan(one["seconds"]):
      lines.append(f"{line}   lost in noise")
      continue
    line += f"{one['seconds']:10.4f} s{one['gflops']:9.1f} GFLOP/s"
    if roof is not None:
      share = one["gflops"] / summary.roof_gflops(one["flops_per_byte"], roof)
      line += f"{share:7.0%} of the roof"
    lines.append(line)
  if roof is not None:
    lines.append(f"ceilings: {figures.roof_text(roof)}")
  return "\n".join(lines)


def _extras(group: Sequence[Result]) -> str:
  """Returns what a row reported beside its times, a line for each."""
  lines = []
  for result in group:
    name = f"{result.row.group}: {result.row.name}"
    if "note" in result.info:
      lines.append(f"{name}: {result.info['note']}")
    if "breakdown" in result.info:
      parts = result.info["breakdown"].items()
      text = ", ".join(f"{part} {seconds:.3f} s" for part, seconds in parts)
      lines.append(f"{name}: {text}")
    if "aot" in result.info:
      lines.append(_aot(result))
    memory = result.info.get("rss_bytes", [])
    if memory and memory[0] is not None:
      lines.append(
        f"{name}: resident {memory[0] / 1e6:.0f} MB after the first of"
        f" {len(memory)} runs of {result.info['volumes']} volumes,"
        f" {memory[-1] / 1e6:.0f} MB after the last"
      )
  return "\n".join(lines)


def _aot(result: Result) -> str:
  found = summary.aot(result)
  stages = found["mcycles_by_stage"].items()
  links = found["collectives"].items()
  return "\n".join(
    [
      f"{result.row.name}: the compiler's estimates for one chip, nothing ran",
      f"  memory {found['memory_gb']:.1f} GB"
      f" ({found['memory_share']:.0%} of the chip),"
      f" compiled in {result.info['compile_seconds']:.0f} s",
      f"  {found['program_gflop']:.0f} GFLOP (the model's are"
      f" {found['model_gflop']:.0f}), {found['moved_gb']:.1f} GB moved",
      f"  {found['mcycles']:.1f} million cycles, {found['mcycles_bounded']:.1f}"
      " of them bounds by bytes; floors: arithmetic"
      f" {found['mcycles_arithmetic']:.0f}, bandwidth"
      f" {found['mcycles_bandwidth']:.0f}",
      "  by stage: " + ", ".join(f"{k} {v:.1f}" for k, v in stages),
      "  collectives: "
      + (
        ", ".join(
          f"{v['count']} {k} of {v['bytes'] / 1e6:.1f} MB" for k, v in links
        )
        or "none"
      ),
      operations(found),
    ]
  )


def operations(aot: Mapping[str, Any], count: int = 20) -> str:
  """Returns the costliest operations of a step of `summary.aot`, as text."""
  lines = ["  million cycles, share, stage, kind, result, from"]
  for one in aot["operations"][:count]:
    mega = one["cycles"] / 1e6
    source = "/".join(one["source"].split("/")[-3:])
    bound = "" if one["estimated"] else " (a bound by bytes)"
    lines.append(
      f"  {mega:7.2f} {mega / aot['mcycles']:6.1%}  {one['stage']:11s}"
      f" {one['kind']:18s} {one['shape']:36s} {source}{bound}"
    )
  return "\n".join(lines)


def earlier(against: str) -> list[dict[str, Any]] | None:
  """Returns the runs of the bench.json of --against, if it names one.

  Raises:
    UserError: there is none.
  """
  if against in ("none", "torch"):
    return None
  path = pathlib.Path(against)
  if not path.is_file():
    raise UserError(
      f"--against={against}: is torch, or the bench.json of another run"
    )
  found = files.read_json(path)
  try:
    difference(found["runs"], found["runs"])
  except (KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{path} is not the bench.json of a run") from error
  return found["runs"]


def difference(
  now: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]
) -> str:
  """Returns what changed since another run, row by row, as text.

  Args:
    now: of the runs in bench.json.
    before: of those of the other one.
  """
  old, lines = _figures(before), []
  for key, values in _figures(now).items():
    if key not in old:
      lines.append(f"{key}: not there before")
      continue
    changes = [
      f"{name} {old[key][name]:.4g} -> {value:.4g}"
      + (f" ({value / old[key][name]:.2f} times)" if old[key][name] else "")
      for name, value in values.items()
      if name in old[key]
    ]
    lines.append(f"{key}: {', '.join(changes)}")
  return "\n".join(lines)


def _figures(
  runs: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, float]]:
  """Returns the numbers of every row, and the cycles of every stage."""
  found: dict[str, dict[str, float]] = {}
  for run in runs:
    shape = "x".join(map(str, run["settings"]["shape"]))
    where = f"{shape}, batch {run['settings']['batch']}"
    for group in run["groups"]:
      for line in group["table"]:
        numbers = ("median s", "volumes/s", "peak GB")
        found[f"{where}, {line['row']}"] = {
          name: line[name] for name in numbers if line.get(name) is not None
        }
      for aot in group["aot"]:
        found[f"{where}, train step on a TPU"] = {
          "million cycles": aot["mcycles"],
          "GB": aot["memory_gb"],
          **aot["mcycles_by_stage"],
        }
  return {key: values for key, values in found.items() if values}


def write(
  out: pathlib.Path,
  facts: Mapping[str, Any],
  asked: Mapping[str, Settings],
  runs: Runs,
  *,
  sweep: str | None,
) -> None:
  """Writes bench.json, and the pictures that the runs have material for.

  Args:
    out: an existing folder.
    facts: of `about.about`.
    asked: the settings by the swept value.
    runs: the results, likewise.
    sweep: what was swept, or None.
  """
  content = json.dumps(
    _strict({**facts, "runs": records(asked, runs)}), indent=1
  )
  (out / "bench.json").write_text(content + "\n")
  footer = facts["footer"]
  for value, groups in runs.items():
    for group in groups:
      suffix = f"_{value}" if value else ""
      found, roof = summary.stages(group), summary.ceilings(group)
      if found and roof is not None:
        figure = figures.roofline_figure(found, roof, footer=footer)
        curves.save(figure, out / f"roofline{suffix}.png")
      if measured := summary.memory(group):
        figure = figures.memory_figure(measured, footer=footer)
        name = f"memory_{group[0].row.group}{suffix}.png"
        curves.save(figure, out / name)
  if sweep is not None:
    figure = figures.sweep_figure(
      sweep, list(runs), _costs(runs), footer=footer
    )
    curves.save(figure, out / f"sweep_{sweep}.png")


def records(asked: Mapping[str, Settings], runs: Runs) -> list[dict[str, Any]]:
  """Returns the runs as bench.json has them."""
  return [
    {
      "settings": dataclasses.asdict(settings),
      "groups": [_record(group) for group in runs[value]],
    }
    for value, settings in asked.items()
  ]


def _record(group: Sequence[Result]) -> dict[str, Any]:
  raw = ("error", "seconds", "parts", "info")
  return {
    "table": summary.rows(group),
    "ceilings": summary.ceilings(group),
    "stages": summary.stages(group),
    "rows": [
      {"group": one.row.group, "name": one.row.name}
      | {name: getattr(one, name) for name in raw}
      for one in group
    ],
    "aot": [
      summary.aot(one)
      for one in group
      if one.error is None and "aot" in one.info
    ],
  }


def _strict(value: Any) -> Any:
  """Replaces NaN, which JSON does not have, by null."""
  if isinstance(value, dict):
    return {key: _strict(each) for key, each in value.items()}
  if isinstance(value, list | tuple):
    return [_strict(each) for each in value]
  return None if isinstance(value, float) and math.isnan(value) else value


def _costs(runs: Runs) -> dict[str, list[tuple[float, float]]]:
  """Returns median seconds and peak GB of every row, by value."""
  costs: dict[str, list[tuple[float, float]]] = {}
  for groups in runs.values():
    for line in (line for group in groups for line in summary.rows(group)):
      point = tuple(line.get(k, math.nan) for k in ("median s", "peak GB"))
      costs.setdefault(line["row"], []).append(point)
  return costs
