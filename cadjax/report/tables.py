"""The tables of `evaluation.explanations` as text and as one picture."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cadjax.metrics.intervals import Interval
from cadjax.report import curves

Table = Sequence[Mapping[str, Any]]
# Columns of `evaluation.map_measures`, and what is better.
MEASURES = {
  "road": "ROAD (high)",
  "infidelity_scaled": "infidelity (0)",
  "sensitivity_n": "sensitivity-n (1)",
  "completeness_error": "completeness error (0)",
  "max_sensitivity": "max-sensitivity (0)",
  "relative_input_stability": "input stability (0)",
  "smooth_mprt_spearman": "sMPRT (0)",
  "efficient_mprt": "eMPRT (high)",
  "random_logit_spearman": "random logit (low)",
}
# What a page shows of the counterfactuals, and of masks and boxes.
COUNTERFACTUAL = {
  "rank_correlation": "rank correlation with the effects",
  "hit_used": "hit, used",
  "hit_unused": "hit, unused",
  "gone_used": "gone with a used one",
  "gone_near": "of that at the lesion",
  "on_used": "on a used one",
  "map_elsewhere": "map elsewhere",
  "network_elsewhere": "network elsewhere",
  "shown_gain": "worth of what is shown",
}
SE3D = {"max_mask": "best mask IoU", "max_box": "best box accuracy"}
CHEXLOCALIZE = {"hit": "hit rate", "iou": "mIoU"}


def text(result: Mapping[str, Any]) -> str:
  """Returns all tables as text, of what `explanations.measure` returns."""
  parts = [_location(result["location"]), _best(result["best"])]
  if result["faithfulness"]:
    parts.append(_faithfulness(result["faithfulness"]))
  if result["randomisation"]:
    parts.append(_randomisation(result["randomisation"], result["unrelated"]))
  if result["agreement"]:
    parts.append(_agreement(result["agreement"], result["other"]))
  if result.get("counterfactual"):
    parts.append(_counterfactual(result["counterfactual"]))
  if result.get("measures"):
    parts.append(_wide(result["measures"], MEASURES))
  if result.get("se3d"):
    parts.append(_se3d(result["se3d"]))
  if result.get("chexlocalize"):
    parts.append(_chexlocalize(result["chexlocalize"]))
  parts.append("\n".join(f"note: {note}" for note in result["notes"]))
  return "\n\n".join(part for part in parts if part)


def heat_table(
  location: Table,
  *,
  value: str = "lift_0mm",
  title: str = "",
  footer: str = "",
) -> Figure:
  """Draws mean lifts: layers down, methods across, one panel a structure.

  Args:
    location: of `location.summarise`.
    value: a lift; 1 is white, red is above and blue below.
    title: of the figure.
    footer: small print.
  """
  layers = list(dict.fromkeys(row["layer"] for row in location))
  methods = list(dict.fromkeys(row["method"] for row in location))
  structures = list(dict.fromkeys(row["structure"] for row in location))
  found = {
    (row["structure"], row["layer"], row["method"]): row[value]
    for row in location
  }
  values = [x.value for x in found.values() if x.value > 0]
  # The same step for twice as much and for half as much.
  largest = max([1.0, *np.abs(np.log2(values))]) if values else 1.0
  figure = Figure(
    figsize=(
      1.2 + 1.25 * len(methods) * len(structures),
      1.6 + 0.62 * len(layers),
    ),
    dpi=150,
    layout="constrained",
  )
  panels = figure.subplots(1, len(structures), squeeze=False)[0]
  for axes, structure in zip(panels, structures, strict=True):
    cells = [
      [found.get((structure, layer, method)) for method in methods]
      for layer in layers
    ]
    image = _panel(axes, cells, largest)
    axes.set_xticks(range(len(methods)), methods, fontsize=7, rotation=20)
    axes.set_yticks(range(len(layers)), layers, fontsize=8)
    axes.set_title(structure, fontsize=10)
  bar = figure.colorbar(image, ax=list(panels), shrink=0.8, pad=0.01)
  ends = np.arange(-math.floor(largest), math.floor(largest) + 1)
  bar.set_ticks(ends, labels=[f"{2.0**k:g}" for k in ends], fontsize=7)
  bar.set_label("lift", fontsize=8)
  figure.suptitle(title, fontsize=10)
  figure.supxlabel(footer, fontsize=7, color=curves.GREY)
  return figure


def _panel(
  axes: Axes, cells: Sequence[Sequence[Interval | None]], largest: float
) -> Any:
  means = np.array(
    [[math.nan if x is None else x.value for x in row] for row in cells]
  )
  with np.errstate(divide="ignore"):
    shown = np.log2(means).clip(-largest, largest)
  image = axes.imshow(
    shown, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto"
  )
  for (i, j), mean in np.ndenumerate(means):
    if math.isnan(mean):
      label, color = "undefined", curves.GREY
    else:
      label = cells[i][j].text(2).replace(" [", "\n[")
      color = "white" if abs(shown[i, j]) > 0.6 * largest else "black"
    axes.text(j, i, label, ha="center", va="center", fontsize=7, color=color)
  axes.tick_params(length=0)
  axes.spines[:].set_visible(False)
  return image


def _location(table: Table) -> str:
  lines = [
    f"{'structure':<12}{'layer':<14}{'method':<12}{'lift 0 mm':<22}"
    f"{'null':<7}{'p':<9}{'lift 5 mm':<22}{'pointing':<26}{'chance':<8}"
    f"{'AUPRC':<22}{'chance':<9}{'sparse':<7}{'patients'}"
  ]
  # By structure, otherwise as they came.
  structures = list(dict.fromkeys(row["structure"] for row in table))
  for row in sorted(table, key=lambda row: structures.index(row["structure"])):
    lift, pointing = row["lift_0mm"], row["pointing"]
    lines.append(
      f"{row['structure']:<12}{row['layer']:<14}{row['method']:<12}"
      f"{lift.text(2):<22}{_number(row['lift_null_0mm'].value):<7}"
      f"{_p(row['lift_p_0mm']):<9}{row['lift_5mm'].text(2):<22}"
      f"{pointing.text(2):<26}{_number(row['pointing_chance'].value, 3):<8}"
      f"{row['auprc'].text(3):<22}{_number(row['auprc_chance'].value, 4):<9}"
      f"{_number(row['gini'].value):<7}{lift.n}/{lift.n_patients}"
    )
  return "\n".join(lines)


def _best(best: Mapping[str, Mapping[str, Any]]) -> str:
  return "\n".join(
    f"largest mean lift on {structure}: {row['layer']}, {row['method']}"
    f" ({row['lift_0mm'].text(2)})"
    for structure, row in best.items()
  )


def _faithfulness(table: Table) -> str:
  lines = [
    f"{'layer':<14}{'method':<12}{'insertion - random':<26}"
    f"{'random - deletion':<26}patients"
  ]
  lines += [
    f"{row['layer']:<14}{row['method']:<12}"
    f"{row['insertion_gain'].text(3):<26}"
    f"{row['deletion_gain'].text(3):<26}{row['deletion_gain'].n}"
    for row in table
  ]
  return "\n".join([*lines, "areas of the log odds of CAD, above 0 is better"])


def _randomisation(table: Table, unrelated: Table) -> str:
  """Spearman with the trained map, by last layer re-initialised."""
  steps = list(dict.fromkeys(row["upto"] for row in table))
  found = {
    (row["layer"], row["method"], row["upto"]): row["spearman"] for row in table
  }
  lines = [
    f"{'layer':<14}{'method':<12}"
    + "".join(f"{step:<12}" for step in steps)
    + "other patients"
  ]
  for row in unrelated:
    name = row["layer"], row["method"]
    cells = [f"{_number(found[*name, step].value):<12}" for step in steps]
    lines.append(
      f"{name[0]:<14}{name[1]:<12}{''.join(cells)}{_number(row['spearman'])}"
    )
  lines.append(
    "Spearman with the trained map, after re-initialising from the head down"
    " to a layer; a map that stays above the last column does not depend on"
    " what was learned there"
  )
  return "\n".join(lines)


def _agreement(table: Table, other: Mapping[str, str]) -> str:
  lines = [
    f"{other['kind']}: the maps of {other['workdir']} on the same cases",
    f"{'layer':<14}{'method':<12}{'Spearman':<24}{'other patient':<24}"
    f"{'SSIM':<24}other patient",
  ]
  lines += [
    f"{row['layer']:<14}{row['method']:<12}"
    f"{row['spearman'].text(2):<24}{row['spearman_unrelated'].text(2):<24}"
    f"{row['ssim'].text(2):<24}{row['ssim_unrelated'].text(2)}"
    for row in table
  ]
  return "\n".join(lines)


def _counterfactual(found: Mapping[str, Any]) -> str:
  effects, explained = found["effects"], found["explained"]
  lines = [
    "the same phantoms without a lesion: log odds of CAD fall by"
    f" {effects['removed'].text(2)} a lesion; used (by"
    f" {found['used_from']:g} or more): {effects['used'].text(2)}",
    "scans called CAD that are not without one of their lesions:"
    f" {explained['one'].text(2)}, without all: {explained['all'].text(2)}",
    *found["answers"],
    f"{'layer':<14}{'method':<18}{'rank correlation':<24}"
    f"{'hit, used':<24}{'hit, unused':<24}{'gone with a used one':<24}"
    f"{'of that at the lesion':<24}{'on a used one':<24}"
    f"{'map elsewhere':<24}{'network elsewhere':<24}"
    "worth of what is shown",
  ]
  lines += [
    f"{row['layer']:<14}{row['method']:<18}"
    f"{row['rank_correlation'].text(2):<24}{row['hit_used'].text(2):<24}"
    f"{row['hit_unused'].text(2):<24}{row['gone_used'].text(2):<24}"
    f"{row['gone_near'].text(2):<24}{row['on_used'].text(2):<24}"
    f"{row['map_elsewhere'].text(2):<24}"
    f"{row['network_elsewhere'].text(2):<24}{row['shown_gain'].text(2)}"
    for row in found["agreement"]
  ]
  return "\n".join(lines)


def _wide(table: Table, columns: Mapping[str, str]) -> str:
  """Returns the columns that a table has, as text with intervals."""
  known = {k: title for k, title in columns.items() if k in table[0]}
  lines = [
    f"{'layer':<14}{'method':<22}"
    + "".join(f"{title:<26}" for title in known.values())
  ]
  lines += [
    f"{row['layer']:<14}{row['method']:<22}"
    + "".join(f"{row[name].text(3):<26}" for name in known)
    for row in table
  ]
  return "\n".join(line.rstrip() for line in lines)


def _se3d(table: Table) -> str:
  lines = [
    "SE3D: masks and boxes at the share of the maximum that is best for all",
    f"{'structure':<12}{'layer':<14}{'method':<22}{'best mask IoU':<26}"
    f"{'at':<6}best box accuracy",
  ]
  lines += [
    f"{row['structure']:<12}{row['layer']:<14}{row['method']:<22}"
    f"{row['max_mask'].text(3):<26}{row['max_mask_share']:<6g}"
    + (row["max_box"].text(3) if row["max_box"] else "-")
    for row in table
  ]
  return "\n".join(lines)


def _chexlocalize(found: Mapping[str, Any]) -> str:
  lines = [
    "CheXlocalize: the plaque of patients with CAD, at the share of the maximum"
    " that is best on validation cases; human: readers with an error of"
    f" {found['error_mm']:g} mm",
    f"{'layer':<14}{'method':<22}{'share':<7}{'hit rate':<26}mIoU",
  ]
  lines += [
    f"{row['layer']:<14}{row['method']:<22}"
    f"{'-' if row['share'] is None else format(row['share'], 'g'):<7}"
    f"{row['hit'].text(3):<26}{row['iou'].text(3)}"
    for row in found["table"]
  ]
  return "\n".join(lines)


def page_tables(result: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns the tables that the page of an evaluation has of its maps.

  Args:
    result: metrics.json of the maps.

  Returns:
    of each "title", "notes" in sentences, "head" and "rows", as text; none of
    what was not measured or by an older version.
  """
  found = []
  twins = result.get("counterfactual")
  if twins and "answers" in twins:
    title = "The same phantoms without a lesion"
    made = _page_table(title, twins["agreement"], COUNTERFACTUAL)
    found.append(made | {"notes": twins["answers"]})
  if result.get("measures"):
    title = "Measures, and what a good map has"
    found.append(_page_table(title, result["measures"], MEASURES))
  if result.get("se3d"):
    title = "Masks and boxes (SE3D)"
    found.append(_page_table(title, result["se3d"], SE3D))
  if one := result.get("chexlocalize"):
    made = _page_table("CheXlocalize", one["table"], CHEXLOCALIZE)
    note = f"Human: readers with an error of {one['error_mm']:g} mm."
    found.append(made | {"notes": [note]})
  return found


def _page_table(
  title: str, table: Table, columns: Mapping[str, str]
) -> dict[str, Any]:
  names = [x for x in ("structure", "layer", "method") if x in table[0]]
  known = {k: heading for k, heading in columns.items() if k in table[0]}
  rows = [
    [row[name] for name in names]
    + [
      "" if row[k] is None else Interval.from_dict(row[k]).text(2)
      for k in known
    ]
    for row in table
  ]
  return {
    "title": title,
    "notes": [],
    "head": [*names, *known.values()],
    "rows": rows,
  }


def _number(value: float, digits: int = 2) -> str:
  return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _p(value: float) -> str:
  return "-" if math.isnan(value) else f"{value:.2g}"
