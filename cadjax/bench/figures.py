"""Pictures of a benchmark: the roofline, and cost against a swept value."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cadjax.bench.summary import roof_gflops
from cadjax.report.curves import COLORS, GREY


def roofline_figure(
  stages: Sequence[Mapping[str, Any]],
  roof: Mapping[str, float],
  *,
  footer: str = "",
) -> Figure:
  """Draws every stage of the network under the measured ceilings.

  Args:
    stages: of `summary.stages`.
    roof: of `summary.ceilings`.
    footer: small print.
  """
  figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
  axes = figure.subplots()
  axes.set_title("Forward pass by stage", fontsize=10)
  ridge = roof["matmul_gflops"] / roof["copy_gbs"]
  intensities = [one["flops_per_byte"] for one in stages]
  x = [min(ridge, *intensities) / 4, ridge, max(ridge, *intensities) * 4]
  y = [roof_gflops(value, roof) for value in x]
  axes.plot(x, y, color=GREY, lw=2, label=roof_text(roof))
  for i, one in enumerate(stages):
    if not np.isfinite(one["gflops"]):
      continue
    at = one["flops_per_byte"], one["gflops"]
    # Stages of like intensity lie above each other: a legend, no labels.
    label = f"{one['stage']}, {one['seconds']:.3g} s"
    axes.plot(
      *at, "os^Dv"[i % 5], color=COLORS[i % len(COLORS)], ms=8, label=label
    )
  axes.set(
    xscale="log",
    yscale="log",
    xlabel="FLOP per byte (each layer's arrays moved once)",
    ylabel="GFLOP/s",
  )
  # Beside the axes, where no stage can be.
  figure.legend(fontsize=8, loc="outside right upper")
  _plain(axes)
  figure.supxlabel(footer, fontsize=7, color=GREY)
  return figure


def sweep_figure(
  name: str,
  values: Sequence[str],
  lines: Mapping[str, Sequence[tuple[float, float]]],
  *,
  footer: str = "",
) -> Figure:
  """Draws time and memory of every row against a swept value.

  Args:
    name: what is swept.
    values: of it, in order.
    lines: for every row the median seconds and peak GB at each value, NaN
      where it failed.
    footer: small print.
  """
  figure = Figure(figsize=(8, 4), dpi=150, layout="constrained")
  panels = figure.subplots(1, 2)
  for axes, label, column in zip(
    panels, ("Median seconds", "Peak memory, GB"), (0, 1), strict=True
  ):
    for i, (row, points) in enumerate(lines.items()):
      y = [point[column] for point in points]
      style = "-" if i < len(COLORS) else "--"
      axes.plot(
        values, y, "o" + style, color=COLORS[i % len(COLORS)], label=row
      )
    axes.set(xlabel=name, ylabel=label)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    _plain(axes)
  panels[0].legend(fontsize=7)
  figure.supxlabel(footer, fontsize=7, color=GREY)
  return figure


def memory_figure(
  curves: Mapping[str, Sequence[tuple[int, int]]], *, footer: str = ""
) -> Figure:
  """Draws the resident memory of the process against the volumes it has read.

  Args:
    curves: of `summary.memory`.
    footer: small print.
  """
  figure = Figure(figsize=(8, 3.5), dpi=150, layout="constrained")
  axes = figure.subplots()
  for i, (row, points) in enumerate(curves.items()):
    x, y = np.array(points, float).T
    axes.plot(x, y / 1e9, color=COLORS[i % len(COLORS)], label=row)
  axes.set(xlabel="volumes read", ylabel="resident memory, GB")
  axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
  axes.legend(fontsize=8)
  _plain(axes)
  figure.supxlabel(footer, fontsize=7, color=GREY)
  return figure


def roof_text(roof: Mapping[str, float]) -> str:
  """Returns the ceilings in words."""
  return (
    f"matmul {roof['matmul_gflops']:.4g} GFLOP/s, copy"
    f" {roof['copy_gbs']:.4g} GB/s"
  )


def _plain(axes) -> None:
  axes.grid(color="#e5e5e5", lw=0.6)
  axes.spines[["top", "right"]].set_visible(False)
  axes.set_axisbelow(True)
