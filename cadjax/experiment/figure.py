"""The forest plot of an experiment: every line, and every difference."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cadjax.experiment import summary
from cadjax.report.curves import COLORS, GREY

MOST_LINES = 24


def forest(
  result: Mapping[str, Any], shown: Sequence[str] | None = None
) -> Figure:
  """Draws the primary metric of the lines, and beside it the differences.

  Args:
    result: of `summary.summarise`.
    shown: names of the lines to draw; those in comparisons if there are too
      many and none are named.
  """
  metric = result["metric"]
  lines = [row for row in result["lines"] if metric in row["metrics"]]
  compared = {one[k] for one in result["comparisons"] for k in ("a", "b")}
  if shown is None and len(lines) > MOST_LINES:
    shown = [row["line"] for row in lines if row["line"] in compared]
  if shown is not None:
    lines = [row for row in lines if row["line"] in shown]
  differences = [o for o in result["comparisons"] if o["metric"] == metric]
  titles = {row["line"]: row["title"] for row in result["lines"]}
  tall = max(len(lines), len(differences), 1)
  figure = Figure(
    figsize=(9, 1.5 + 0.38 * tall * (2 if differences else 1)),
    layout="constrained",
  )
  axes = figure.subplots(2 if differences else 1, 1, squeeze=False)[:, 0]
  name = summary.metric_name(metric)
  if summary.outdated(result, metric):
    name += f" ({summary.OUTDATED})"
  _rows(
    axes[0],
    [row["title"] for row in lines],
    [row["metrics"][metric] for row in lines],
    "value",
    spread=summary.is_spread(metric),
  )
  means = "; thin: middle 95 %" if summary.is_spread(metric) else ""
  axes[0].set_xlabel(f"{name}, 95 % interval; dots: cells{means}")
  if ratio := metric.startswith("lift"):
    # From 1, which is chance, to a hundred.
    axes[0].set_xscale("log")
    axes[0].xaxis.set_major_formatter("{x:g}")
    axes[0].xaxis.set_minor_formatter("")
    axes[0].axvline(1, color=GREY, lw=1, ls=":")
  if differences:
    _rows(
      axes[1],
      [
        f"{titles.get(o['a'], o['a'])}\nless {titles.get(o['b'], o['b'])}"
        for o in differences
      ],
      differences,
      "difference",
    )
    axes[1].axvline(0, color=GREY, lw=1, ls=":")
    if ratio:
      axes[1].set_xscale("symlog", linthresh=1)
      axes[1].xaxis.set_major_formatter("{x:g}")
    axes[1].set_xlabel(f"difference in {name}, 95 % interval")
  figure.supxlabel(result["disclaimer"], fontsize=7, color=GREY)
  return figure


def _rows(
  axes: Axes,
  titles: Sequence[str],
  entries: Sequence[Mapping[str, Any]],
  key: str,
  spread: bool = False,
) -> None:
  for i, entry in enumerate(entries):
    value, low, high = entry[key], entry["low"], entry["high"]
    color = COLORS[0]
    if entry.get("decided") is False:
      color = GREY
    for cell in entry.get("cells", ()):
      if cell["value"] is not None:
        # Beside the line, which would hide them.
        axes.plot(cell["value"], i + 0.22, ".", color=GREY, alpha=0.6, ms=5)
    if value is None:
      continue
    if spread:
      middle = [entry["middle_low"], entry["middle_high"]]
      axes.plot(middle, [i, i], color=color, lw=0.8)
    if low is not None:
      axes.plot([low, high], [i, i], color=color, lw=2)
    axes.plot(value, i, "s", color=color, ms=6)
  axes.set_yticks(range(len(titles)), titles, fontsize=8)
  axes.set_ylim(max(len(titles), 1) - 0.5, -0.5)
  axes.grid(axis="x", color="#e4e4e4", lw=0.8)
  axes.spines[["top", "right", "left"]].set_visible(False)
  axes.tick_params(axis="y", length=0)
