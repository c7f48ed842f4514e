"""Figures of results: ROC, PR, calibration, confusion and FROC.

Each function returns a matplotlib Figure, made without pyplot so that nothing
global is touched; `save` writes it as a whole or not at all.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import sklearn.metrics
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cadjax.metrics import binary, calibration, detection, intervals

# Okabe and Ito's colours, distinguishable by colour-blind readers, too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
GREY = "#6b6b6b"


@dataclasses.dataclass(frozen=True)
class Scores:
  """What one line of a figure shows.

  Attributes:
    name: for the legend, such as "by patient".
    unit: what is counted, such as "patients".
    labels: [n], 0 or 1.
    probs: [n], calibrated probability of CAD.
    threshold: at or above it a case is called CAD.
    metrics: of `intervals.with_intervals`.
  """

  name: str
  unit: str
  labels: np.ndarray
  probs: np.ndarray
  threshold: float
  metrics: Mapping[str, intervals.Interval]

  @property
  def has_both_classes(self) -> bool:
    """Whether curves are defined."""
    return np.unique(self.labels).size == 2


def roc_figure(
  scores: Sequence[Scores], *, title: str = "", footer: str = ""
) -> Figure:
  """Draws ROC curves with their operating points.

  Args:
    scores: one line each; the first gets a 95 % band from 500 bootstrap draws
      of its cases.
    title: of the axes.
    footer: small print.
  """
  figure, axes = _square(title, footer)
  axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":")
  for i, one in enumerate(scores):
    label = f"{_counted(one)}\nAUC {one.metrics['roc_auc'].text(2)}"
    if not one.has_both_classes:
      axes.plot([], [], color=COLORS[i], label=f"{label} (one class only)")
      continue
    if i == 0:
      grid = np.linspace(0, 1, 101)
      low, high = _roc_band(one, grid)
      axes.fill_between(grid, low, high, color=COLORS[0], alpha=0.15, lw=0)
    fpr, tpr, _ = sklearn.metrics.roc_curve(
      one.labels, one.probs, drop_intermediate=False
    )
    axes.plot(fpr, tpr, color=COLORS[i], lw=2, label=label, clip_on=False)
    at = binary.binary_metrics(one.labels, one.probs, one.threshold)
    _mark(axes, 1 - at["specificity"], at["recall"], i, one.threshold)
  axes.set_xlabel("1 - specificity")
  axes.set_ylabel("Sensitivity (recall)")
  axes.legend(loc="lower right", fontsize=8, framealpha=0.95)
  return figure


def pr_figure(
  scores: Sequence[Scores], *, title: str = "", footer: str = ""
) -> Figure:
  """Draws precision-recall curves; dotted is the share of CAD."""
  figure, axes = _square(title, footer)
  for i, one in enumerate(scores):
    label = f"{_counted(one)}\nPR AUC {one.metrics['pr_auc'].text(2)}"
    if not one.has_both_classes:
      axes.plot([], [], color=COLORS[i], label=f"{label} (one class only)")
      continue
    precision, recall, _ = sklearn.metrics.precision_recall_curve(
      one.labels, one.probs
    )
    # Below the threshold that finds all, recall stays and precision falls.
    first = np.flatnonzero(recall == 1)[-1]
    axes.step(
      recall[first:],
      precision[first:],
      where="post",
      color=COLORS[i],
      lw=2,
      label=label,
      clip_on=False,
    )
    axes.axhline(np.mean(one.labels), color=COLORS[i], lw=1, ls=":")
    at = binary.binary_metrics(one.labels, one.probs, one.threshold)
    if not math.isnan(at["precision"]):
      _mark(axes, at["recall"], at["precision"], i, one.threshold)
  axes.set_xlabel("Recall (sensitivity)")
  axes.set_ylabel("Precision")
  axes.legend(loc="lower left", fontsize=8, framealpha=0.95)
  return figure


def calibration_figure(
  one: Scores, *, title: str = "", footer: str = ""
) -> Figure:
  """Draws a reliability diagram over the histogram of the probabilities."""
  figure = Figure(figsize=(5, 6), dpi=150, layout="constrained")
  top, bottom = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
  figure.suptitle(title, fontsize=10)
  top.plot([0, 1], [0, 1], color=GREY, lw=1, ls=":", label="perfect")
  table = calibration.reliability(one.labels, one.probs)
  mean, rate, low, high = (
    np.array([row[name] for row in table])
    for name in ("mean_prob", "rate", "low", "high")
  )
  label = "\n".join(
    [
      _counted(one),
      f"slope {one.metrics['calibration_slope'].text(2)} (perfect: 1)",
      f"intercept {one.metrics['calibration_intercept'].text(2)} (perfect: 0)",
      f"Brier {one.metrics['brier'].text(2)}"
      f" (perfect: {binary.expected_brier(one.probs):.2f})",
    ]
  )
  top.errorbar(
    mean,
    rate,
    yerr=np.maximum([rate - low, high - rate], 0),
    fmt="o",
    color=COLORS[0],
    ms=5,
    lw=1.2,
    capsize=2,
    label=label,
    clip_on=False,
  )
  for row in table:
    top.annotate(
      f"{row['k']}/{row['n']}",
      (row["mean_prob"], row["rate"]),
      xytext=(5, 4 if row["rate"] < 0.9 else -10),
      textcoords="offset points",
      fontsize=7,
      color=GREY,
    )
  top.set_ylabel("Observed share of CAD (Wilson 95 %)")
  top.set_ylim(-0.02, 1.02)
  # Outside: with few patients the intervals fill the axes.
  top.legend(loc="lower left", bbox_to_anchor=(0, 1), fontsize=8, frameon=False)
  bottom.hist(
    [one.probs[one.labels == 0], one.probs[one.labels == 1]],
    bins=np.linspace(0, 1, calibration.RELIABILITY_BINS + 1),
    stacked=True,
    color=COLORS[:2],
    label=["normal", "CAD"],
  )
  bottom.axvline(one.threshold, ymax=1 / 1.4, color="black", lw=1, ls="--")
  bottom.set_xlim(0, 1)
  bottom.set_xlabel("Calibrated probability of CAD (dashed: threshold)")
  bottom.set_ylabel(one.unit.capitalize())
  bottom.set_ylim(0, bottom.get_ylim()[1] * 1.4)
  bottom.yaxis.set_major_locator(MaxNLocator(4, integer=True))
  bottom.legend(fontsize=7, frameon=False, loc="upper center", ncols=2)
  _plain(top, bottom)
  _small_print(figure, footer)
  return figure


def confusion_figure(
  one: Scores, *, title: str = "", footer: str = ""
) -> Figure:
  """Draws the confusion table with row shares and their intervals."""
  counts = binary.confusion(one.labels, one.probs, one.threshold)
  table = np.array([[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]])
  totals = table.sum(1, keepdims=True)
  shares = table / np.maximum(totals, 1)
  figure = Figure(figsize=(5, 4.6), dpi=150, layout="constrained")
  axes = figure.subplots()
  axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.3)
  for row, column in np.ndindex(2, 2):
    dark = shares[row, column] > 0.7
    share = f"{shares[row, column]:.0%}" if totals[row, 0] else "no case"
    axes.text(
      column,
      row,
      f"{table[row, column]}\n{share}",
      ha="center",
      va="center",
      fontsize=14,
      color="white" if dark else "black",
    )
  rates = [one.metrics["specificity"], one.metrics["recall"]]
  names = ("Specificity", "Sensitivity")
  axes.set_yticks(
    [0, 1],
    [
      f"{truth}\n{name}\n{rate.text(2)}"
      for truth, name, rate in zip(("Normal", "CAD"), names, rates, strict=True)
    ],
    fontsize=8,
  )
  axes.set_xticks([0, 1], ["called normal", "called CAD"], fontsize=9)
  axes.set_ylabel("Truth")
  accuracy = one.metrics["accuracy"].text(2)
  axes.set_xlabel(
    f"{_counted(one)}; threshold {one.threshold:.3f}\naccuracy {accuracy}",
    fontsize=9,
  )
  axes.set_title(title, fontsize=10)
  axes.tick_params(length=0)
  axes.spines[:].set_visible(False)
  _small_print(figure, footer)
  return figure


def froc_figure(
  lines: Mapping[str, detection.Froc], *, title: str = "", footer: str = ""
) -> Figure:
  """Draws FROC curves, false positives a scan on a logarithmic axis.

  Args:
    lines: by name; the last one gets the 95 % intervals over patients.
    title: of the axes.
    footer: small print.
  """
  figure = Figure(figsize=(6.4, 5.2), dpi=150, layout="constrained")
  axes = figure.subplots()
  lowest, highest = detection.RATES[0] / 2, 2 * detection.RATES[-1]
  styles = [("--", GREY), *(("-", color) for color in reversed(COLORS))]
  for i, (name, one) in enumerate(lines.items()):
    style, color = styles[i % len(styles)]
    axes.step(
      np.append(np.clip(one.false_positives, lowest, None), highest),
      np.append(one.sensitivity, one.sensitivity[-1]),
      where="post",
      color=color,
      ls=style,
      lw=1.8,
      label=f"{name}\nmean {one.mean.text(2)}",
    )
  last = next(reversed(lines.values()))
  at = np.array([[x.value, x.low, x.high] for x in last.at.values()])
  known = np.isfinite(at).all(1)
  value, low, high = at[known].T
  axes.errorbar(
    np.array(detection.RATES)[known],
    value,
    yerr=np.maximum([value - low, high - value], 0),
    fmt="o",
    ms=4,
    capsize=3,
    lw=1.2,
    color=color,
  )
  if last.best < 1:
    axes.axhline(last.best, color=GREY, lw=1, ls=":")
    axes.annotate(
      f"best possible with this many findings, {last.best:.2f}",
      (lowest, last.best),
      xytext=(4, 3),
      textcoords="offset points",
      fontsize=7,
      color=GREY,
    )
  axes.set_xscale("log", base=2)
  axes.set_xticks(detection.RATES, [f"{x:g}" for x in detection.RATES])
  axes.minorticks_off()
  axes.set(xlim=(lowest, highest), ylim=(-0.01, 1.01))
  axes.set_xlabel("False positives a scan, on average")
  axes.set_ylabel("Sensitivity: share of the lesions hit")
  axes.set_title(title, fontsize=10)
  axes.grid(color="#e5e5e5", lw=0.6)
  # Outside, where it hides no curve.
  figure.legend(loc="outside upper center", fontsize=7, ncols=2, frameon=False)
  _plain(axes)
  _small_print(figure, footer)
  return figure


def agreement_figure(
  measured: np.ndarray,
  truth: np.ndarray,
  *,
  unit: str,
  title: str = "",
  footer: str = "",
) -> Figure:
  """Draws differences against means, after Bland and Altman.

  Args:
    measured: [n].
    truth: [n], in the same unit.
    unit: what is measured and in what, for the axes.
    title: of the axes.
    footer: small print.
  """
  figure = Figure(figsize=(6.4, 4.6), dpi=150, layout="constrained")
  axes = figure.subplots()
  difference = measured - truth
  axes.plot(
    (measured + truth) / 2, difference, "o", ms=4, mfc="none", color=COLORS[0]
  )
  axes.axhline(0, color=GREY, lw=0.8)
  if len(difference) > 1:
    bias, spread = difference.mean(), 1.96 * difference.std(ddof=1)
    for value, style, text in (
      (bias, "-", f"bias {bias:+.1f}"),
      (bias + spread, "--", f"{bias + spread:+.1f}"),
      (bias - spread, "--", f"{bias - spread:+.1f}"),
    ):
      axes.axhline(value, color=COLORS[1], ls=style, lw=1.4)
      axes.annotate(
        text,
        (1, value),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=COLORS[1],
      )
  axes.set_xlabel(f"Mean of measured and true {unit}")
  axes.set_ylabel("Measured less true")
  axes.set_title(title, fontsize=10)
  axes.grid(color="#e5e5e5", lw=0.6)
  _plain(axes)
  _small_print(figure, footer)
  return figure


def save(figure: Figure, path: pathlib.Path) -> None:
  """Writes a PNG to a temporary name and renames it."""
  temporary = path.with_name(path.name + ".tmp")
  figure.savefig(temporary, format="png")
  temporary.replace(path)


def _counted(one: Scores) -> str:
  sick, total = int(np.sum(one.labels)), len(one.labels)
  return f"{one.name}: {total} {one.unit}, {sick} with CAD"


def _square(title: str, footer: str) -> tuple[Figure, Axes]:
  figure = Figure(figsize=(5, 5.2), dpi=150, layout="constrained")
  axes = figure.subplots()
  axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
  axes.set_title(title, fontsize=10)
  axes.grid(color="#e5e5e5", lw=0.6)
  _plain(axes)
  _small_print(figure, footer)
  return figure, axes


def _plain(*axes: Axes) -> None:
  for one in axes:
    one.spines[["top", "right"]].set_visible(False)
    one.set_axisbelow(True)


def _small_print(figure: Figure, text: str) -> None:
  if text:
    figure.supxlabel(text, fontsize=7, color=GREY)


def _mark(axes: Axes, x: float, y: float, i: int, threshold: float) -> None:
  axes.plot(
    [x],
    [y],
    "o",
    ms=7,
    mfc="white",
    mec=COLORS[i],
    mew=2,
    zorder=5,
    clip_on=False,
    label=f"threshold {threshold:.3f}",
  )


def _roc_band(one: Scores, grid: np.ndarray) -> np.ndarray:
  """Returns the pointwise [2, len(grid)] band of sensitivity."""
  counts = intervals.bootstrap_counts(one.labels, draws=500)
  order = np.argsort(-one.probs, kind="stable")
  last = np.append(np.diff(one.probs[order]) != 0, True)
  sick = np.asarray(one.labels)[order] == 1
  counts = counts[:, order]
  tp = (counts * sick).cumsum(1)[:, last] / sick.sum()
  fp = (counts * ~sick).cumsum(1)[:, last] / (~sick).sum()
  curves = [
    np.interp(grid, np.append(0, f), np.append(0, t))
    for f, t in zip(fp, tp, strict=True)
  ]
  return np.quantile(curves, [0.025, 0.975], axis=0)
