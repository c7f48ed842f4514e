"""Measured seconds to medians, rates, shares and ratios."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from cadjax.bench.measure import Result


def ceilings(results: Sequence[Result]) -> dict[str, float] | None:
  """Returns the best rates of the group's ceilings, or None.

  Returns:
    matmul in GFLOP/s and copy in GB/s.
  """
  for result in results:
    if result.row.spec["what"] == "ceilings" and result.error is None:
      best = {
        name: min(part[name] for part in result.parts)
        for name in ("matmul", "copy")
      }
      return {
        "matmul_gflops": result.info["matmul_flops"] / best["matmul"] / 1e9,
        "copy_gbs": result.info["copy_bytes"] / best["copy"] / 1e9,
      }
  return None


def rival(results: Sequence[Result]) -> Result | None:
  """Returns the group's fastest row that is not ours, or None."""
  others = [
    result
    for result in results
    if result.row.spec["framework"] == "torch" and result.error is None
  ]
  return min(
    others, key=lambda one: statistics.median(one.seconds), default=None
  )


def one_pass(results: Sequence[Result]) -> Result | None:
  """Returns the group's pass that explanations are compared with, or None."""
  return next(
    (
      result
      for result in results
      if result.row.spec.get("variant") == "pass" and result.error is None
    ),
    None,
  )


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
  """Returns a dict for every row of one group, keyed by `report.COLUMNS`.

  The time ratio is the median, with the range, of the ratios of the runs that
  stood next to each other, over the fastest row of the other framework;
  "of one pass" likewise, over one pass of the network forward and back, and
  "of plain" over the plain way to compute the step.
  """
  roof, other, passed = ceilings(results), rival(results), one_pass(results)
  plain = next(
    (r for r in results if r.row.group == "ways" and r.row.name == "plain"),
    None,
  )
  # The step is the same work in both frameworks.
  work = next((r.info["flops"] for r in results if "flops" in r.info), None)
  table = []
  for result in results:
    if result.row.spec["what"] in ("ceilings", "stages", "aot"):
      continue
    line = {"row": f"{result.row.group}: {result.row.name}"}
    if result.error is None:
      line |= _numbers(result, work, roof)
      if other is not None and result.row.spec["framework"] != "torch":
        line |= _ratios(result, other)
      if passed not in (None, result) and "variant" in result.row.spec:
        line["of one pass"] = _time_ratio(result, passed)
      if plain not in (None, result) and plain.error is None:
        line["of plain"] = _time_ratio(result, plain)
    table.append(line)
  return table


def _numbers(result: Result, flops: int | None, roof) -> dict[str, Any]:
  median = statistics.median(result.seconds)
  low, high = min(result.seconds), max(result.seconds)
  line = {
    "median s": median,
    "min-max s": f"{low:.4g}-{high:.4g}",
    "volumes/s": result.info["volumes"] / median,
    "peak GB": peak_bytes(result) / 1e9,
  }
  if "compile_seconds" in result.info:
    line["compile s"] = result.info["compile_seconds"]
  if flops is not None:
    line |= {"GFLOP": flops / 1e9, "GFLOP/s": flops / 1e9 / median}
    if roof is not None:
      # The ceilings are those of one device.
      devices = result.row.spec["devices"]
      is_cpu = result.info.get("platform") == "cpu"  # One, divided.
      peak = roof["matmul_gflops"] * (1 if is_cpu else devices)
      line["of matmul"] = line["GFLOP/s"] / peak
  return line


def peak_bytes(result: Result) -> int:
  """Returns the peak memory: the device's where it has its own."""
  return result.info.get("device_peak_bytes", result.info["peak_bytes"])


def _ratios(result: Result, other: Result) -> dict[str, Any]:
  return {
    "time ratio": _time_ratio(result, other),
    "memory ratio": peak_bytes(result) / peak_bytes(other),
  }


def _time_ratio(result: Result, other: Result) -> str:
  pairs = [
    ours / theirs
    for ours, theirs in zip(result.seconds, other.seconds, strict=True)
  ]
  middle = statistics.median(pairs)
  return f"{middle:.2f} ({min(pairs):.2f}-{max(pairs):.2f})"


def stages(results: Sequence[Result]) -> list[dict[str, Any]]:
  """Returns name, flops, bytes, seconds and rates of each stage.

  The seconds of a stage are those of the network cut after it less those of
  the network cut before it; NaN where noise makes that negative.
  """
  found = []
  for result in results:
    if result.row.spec["what"] != "stages" or result.error is not None:
      continue
    before = 0.0
    for name, work in result.info["stages"].items():
      until = statistics.median(part[name] for part in result.parts)
      seconds = until - before if until > before else math.nan
      before = max(until, before)
      found.append(
        {"stage": name, **work, "seconds": seconds}
        | {
          "flops_per_byte": work["flops"] / work["bytes"],
          "gflops": work["flops"] / seconds / 1e9,
        }
      )
  return found


def memory(results: Sequence[Result]) -> dict[str, list[tuple[int, int]]]:
  """Returns (volumes read so far, resident bytes then) of each row.

  Rows that did not record it, or could not, are left out.
  """
  curves = {}
  for result in results:
    reported = result.info.get("rss_bytes", [])
    if len(reported) > 1 and None not in reported:
      volumes = result.info["volumes"]
      name = f"{result.row.group}: {result.row.name}"
      curves[name] = [(i * volumes, size) for i, size in enumerate(reported, 1)]
  return curves


def aot(result: Result) -> dict[str, Any]:
  """Returns what the compiler says of a train step on one chip of a TPU.

  Returns:
    memory_gb and its share of the chip; model and program GFLOP, GB moved;
    millions of cycles: of all operations, those of them that are bounds by
    bytes, by stage, and of the two floors; and the costliest operations, see
    `hlo.Operation`.
  """
  reported, chip = result.info["aot"], result.info["aot"]["chip"]
  flops = result.info["flops"] / result.row.spec["devices"]
  mega = chip["clock"] / 1e6
  return {
    "memory_gb": reported["memory_bytes"] / 1e9,
    "memory_share": reported["memory_bytes"] / chip["memory"],
    "model_gflop": flops / 1e9,
    "program_gflop": reported["hlo_flops"] / 1e9,
    "moved_gb": reported["bytes_accessed"] / 1e9,
    "mcycles": sum(reported["cycles"].values()) / 1e6,
    "mcycles_bounded": reported["bounded_cycles"] / 1e6,
    "operations": reported["operations"],
    "mcycles_by_stage": {k: v / 1e6 for k, v in reported["cycles"].items()},
    "mcycles_arithmetic": flops / chip["flops"] * mega,
    "mcycles_bandwidth": reported["bytes_accessed"] / chip["bandwidth"] * mega,
    "collectives": reported["collectives"],
  }


def roof_gflops(intensity: float, roof: dict[str, float]) -> float:
  """Returns the GFLOP/s that the ceilings allow at FLOP per byte."""
  return min(roof["matmul_gflops"], intensity * roof["copy_gbs"])
