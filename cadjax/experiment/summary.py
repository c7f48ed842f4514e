"""From the cells of an experiment to results.json and cost.json."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cadjax.core import files
from cadjax.experiment import compare, power, trainings, verdicts
from cadjax.experiment.compare import Key, Line
from cadjax.experiment.ensembles import ensemble
from cadjax.experiment.plan import Cell, Plan, ensemble_name
from cadjax.experiment.store import Store
from cadjax.metrics import intervals
from cadjax.report import pages
from data_prep import phantom

# The version of the rules that figures are scored by: results.json has it as
# "rules", and 1 where it has none. For metrics whose names begin so, the first
# version that scores them as now; figures of earlier ones lead to no answer.
# 2: the calibration error, which was above 0 for calibrated probabilities and
# whose interval left out the truth, gave way to calibration slope and
# intercept. Findings of the link are held against the lesions' centrelines and
# counted at a threshold, where at most five of a scan were held against the
# lesions' centres. Maps are of the log odds, where they were of the logit,
# with what all logits share.
RULES_VERSION = 2
RULES = {
  "ece": 2,
  "lesions_hit": 2,
  "false_positives": 2,
  "lift": 2,
  "pointing": 2,
  "gini": 2,
}
OUTDATED = "scored by the old rule"


def collect(plan: Plan, cells: Store) -> dict[str, Line]:
  """Reads the cells that are done; returns the lines by name.

  Those of `Plan.ensembles` come last, and only where there are seeds enough.
  """
  rows: dict[str, dict[Key, list]] = {}
  trained: dict[str, dict[Key, int]] = {}
  failed: dict[str, set[Key]] = {}
  for cell in plan.cells():
    if cells.state(cell.name) != "done":
      continue
    key = (cell.fold, cell.seed)
    for entry, some in cells.read(cell.name)["entries"].items():
      name = f"{cell.arm}/{entry}" if entry else cell.arm
      rows.setdefault(name, {})[key] = some
      trained.setdefault(name, {})[key] = _trained_on(plan, cells, cell)
      failed.setdefault(name, set())
      if failed_trainings(plan, cells, cell):
        failed[name].add(key)
  lines = {
    name: Line(some, trained[name], frozenset(failed[name]))
    for name, some in rows.items()
  }
  for name, size in plan.ensembles.items():
    if name in lines and (made := ensemble(lines[name], size)).rows:
      lines[ensemble_name(name, size)] = made
  return lines


def failed_trainings(
  plan: Plan, cells: Store, cell: Cell
) -> dict[str, dict[str, Any]]:
  """Returns the failed trainings that a cell rests on: its own and its needs'.

  Cells of older versions, which do not tell, count as not failed.
  """
  found = {}
  if cells.state(cell.name) == "done":
    outcome = cells.read(cell.name).get("training")
    if outcome and outcome["failed"]:
      found[cell.name] = outcome
  for arm in plan.arms[cell.arm].needs.values():
    found |= failed_trainings(plan, cells, plan.needed(cell, arm))
  return found


def _trained_on(plan: Plan, cells: Store, cell: Cell) -> int:
  """Returns the training patients of a cell; 0 where nothing was trained.

  A cell that only measures has the fewest of those that it needs.
  """
  if plan.arms[cell.arm].config is not None:
    return cells.read(cell.name)["sizes"][0]
  needed = (
    plan.needed(cell, arm) for arm in plan.arms[cell.arm].needs.values()
  )
  known = [_trained_on(plan, cells, one) for one in needed]
  return min(filter(None, known), default=0)


def summarise(plan: Plan, cells: Store) -> dict[str, Any]:
  """Returns what results.json holds; no times, so that runs agree."""
  lines = collect(plan, cells)
  shown = list(dict.fromkeys([plan.metric, *plan.metrics]))
  table = []
  for name, line in lines.items():
    arm, _, entry = name.partition("/")
    size = plan.ensembles.get(arm, 0)
    measured = {
      metric: _with_and_without(
        line.failed,
        lambda keys, line=line, metric=metric: compare.estimate(
          line.without(keys), metric
        ),
      )
      for metric in shown
      if line.has(metric)
    }
    if measured:
      title = plan.arms[arm].title + (f", {entry}" if entry else "")
      table.append(
        {
          "line": name,
          "title": title,
          "metrics": measured,
          "trainings_failed": len(line.failed),
          "members": size if name == ensemble_name(arm, size) else 1,
        }
      )
  if plan.ranked:
    best = best_first(table, plan.metric)
    table = best + [row for row in table if row not in best]
  comparisons = []
  for a, b, metric in plan.pairs():
    if not all(x in lines and lines[x].has(metric) for x in (a, b)):
      continue
    found = _with_and_without(
      lines[a].failed | lines[b].failed,
      lambda keys, a=a, b=b, metric=metric: compare.difference(
        lines[a].without(keys), lines[b].without(keys), metric
      ),
    )
    comparisons.append(
      {"a": a, "b": b}
      | found
      | {
        "can_show": power.measured(plan, found),
        "planned": power.expected(plan, a, b, metric),
      }
    )
  # What could not be compared stays one of the tests.
  missing = len(plan.pairs()) - len(comparisons)
  adjusted = compare.holm(
    [one["p_value"] for one in comparisons] + [math.nan] * missing
  )
  for one, p in zip(comparisons, adjusted, strict=False):
    one["p_holm"] = p
    one["decided"] = compare.decided(one)
  states = {cell.name: cells.state(cell.name) for cell in plan.cells()}
  done = [name for name, state in states.items() if state == "done"]
  result = {
    "rules": min(
      (cells.read(name).get("rules", 1) for name in done),
      default=RULES_VERSION,
    ),
    "edition": min(
      (cells.read(name).get("edition", 1) for name in done),
      default=phantom.EDITION,
    ),
    "plan": plan.name,
    "scale": plan.scale,
    "question": plan.question,
    "claim": plan.claim,
    "limits": plan.limits,
    "metric": plan.metric,
    "data": {name: " ".join(given) for name, given in plan.data.items()},
    "overrides": list(plan.overrides),
    "disclaimer": pages.disclaimer(
      phantom=any("--source=phantom" in given for given in plan.data.values())
    ),
    "verdict": plan.verdict,
    "lines": table,
    "comparisons": comparisons,
    "not_compared": [
      f"{a} with {b} ({metric})"
      for a, b, metric in plan.pairs()
      if (a, b, metric)
      not in {(c["a"], c["b"], c["metric"]) for c in comparisons}
    ],
    "trainings": {
      "rule": trainings.RULE,
      "known": sum("training" in cells.read(name) for name in done),
      "failed": {
        name: outcome
        for cell in plan.cells()
        for name, outcome in failed_trainings(plan, cells, cell).items()
      },
    },
    "enough": power.enough(plan),
    "failed": {
      name: cells.why(name)
      for name, state in states.items()
      if state == "failed"
    },
    "cells": {
      state: sum(each == state for each in states.values())
      for state in ("done", "failed", "running", "waiting")
    },
  }
  result = files.strict(result)
  return result | {"answers": answers(result)}


def phantoms(result: Mapping[str, Any]) -> str:
  """Returns which phantoms a result is of: "edition 2, clinical".

  Args:
    result: results.json, also of an older version.
  """
  found = {
    flag.removeprefix("--severity=")
    for given in result["data"].values()
    for flag in given.split()
    if flag.startswith("--severity=")
  }
  edition = f"edition {result.get('edition', 1)}"
  return ", ".join([edition, *sorted(found)])


def _with_and_without(
  failed: frozenset[Key], measure: Callable[[frozenset[Key]], dict[str, Any]]
) -> dict[str, Any]:
  """Returns what is measured of all cells, and again without failed ones.

  Those that failed are part of what a recipe does, so they stay in; but one of
  them moves a mean of a few more than what is asked about.
  """
  found = measure(frozenset())
  if not failed:
    return found
  return found | {"without_failed": measure(failed)}


def answers(result: Mapping[str, Any]) -> list[str]:
  """Returns the verdict, then the comparisons in words, or the lines.

  Args:
    result: results.json; what an old rule scored gives no answer.
  """
  return verdicts.sentences(result) + _compared(result)


def _compared(result: Mapping[str, Any]) -> list[str]:
  """Returns the comparisons in words, or the lines if nothing is compared."""
  titles = {row["line"]: row["title"] for row in result["lines"]}
  comparisons, metric = result["comparisons"], result["metric"]
  if comparisons:
    return [
      _unanswered(one, titles)
      if outdated(result, one["metric"])
      else _answer(one, titles)
      for one in comparisons
    ]
  if outdated(result, metric):
    return [f"{metric_name(metric)}: {OUTDATED}"]
  return [_spread(row, metric) for row in best_first(result["lines"], metric)]


def cost(plan: Plan, cells: Store) -> dict[str, Any]:
  """Returns what the done cells cost, by arm and in all."""
  found: dict[str, list[Mapping[str, Any]]] = {}
  for cell in plan.cells():
    if cells.state(cell.name) == "done":
      found.setdefault(cell.arm, []).append(cells.read(cell.name)["cost"])
  every = [one for some in found.values() for one in some]
  return {
    "cells": len(every),
    "cell_seconds": round(sum(one["seconds"] for one in every), 1),
    "peak_bytes": max((one["peak_bytes"] for one in every), default=0),
    "code": sorted({one["code"] for one in every if one.get("code")}),
    "devices": sorted({f"{o['devices']} x {o['device']}" for o in every}),
    "arms": {
      arm: {
        "cells": len(some),
        "median_seconds": statistics.median(one["seconds"] for one in some),
      }
      for arm, some in found.items()
    },
  }


def outdated(result: Mapping[str, Any], metric: str) -> bool:
  """Tells whether results.json has a metric as it is not measured any more.

  Args:
    result: of `summarise`, perhaps of an older version.
    metric: of a line or a comparison.
  """
  since = next((n for name, n in RULES.items() if metric.startswith(name)), 1)
  return result.get("rules", 1) < since


def is_spread(metric: str) -> bool:
  """Tells whether the answer is how far the values of a metric spread."""
  return metric.startswith(compare.REPORTED)


def metric_name(metric: str) -> str:
  """Returns a metric as text: "roc_auc" is "ROC AUC"."""
  if is_spread(metric):
    return f"reported {metric_name(metric.removeprefix(compare.REPORTED))}"
  known = {
    "roc_auc": "ROC AUC",
    "pr_auc": "PR AUC",
    "ece": "calibration error (ECE)",
    "calibration_slope": "calibration slope (1 is perfect)",
    "calibration_intercept": "calibration intercept (0 is perfect)",
    "brier": "Brier score",
    "f1": "F1",
    "mcc": "MCC",
    "gini": "sparseness (Gini)",
    "hd95_mm": "HD95 (mm)",
  }
  return known.get(metric, metric.replace("_", " ").replace("0mm", "").strip())


def interval(entry: Mapping[str, Any], key: str = "value") -> str:
  """Returns an entry of results.json as text; see `intervals.interval_text`.

  Args:
    entry: an estimate, or a comparison.
    key: of its value; "difference" of a comparison, which gets a sign.
  """
  value = entry[key]
  return intervals.interval_text(
    value,
    entry["low"],
    entry["high"],
    digits=3 if value is None or abs(value) < 10 else 1,
    sign=key == "difference",
  )


def p_text(p: float | None) -> str:
  """Returns "p = 0.012" or "p < 0.001"."""
  if p is None or math.isnan(p):
    return "p undefined"
  return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _answer(one: Mapping[str, Any], titles: Mapping[str, str]) -> str:
  """One comparison in words."""
  a, b = titles.get(one["a"], one["a"]), titles.get(one["b"], one["b"])
  name = metric_name(one["metric"])
  number = interval(one, "difference")
  about = (
    f"{number}, {one['n_patients']} patients, {p_text(one['p_holm'])} (Holm)"
    f"{could_show(one)}"
  )
  if rest := one.get("without_failed"):
    about += f"; without failed trainings {interval(rest, 'difference')}"
  calls = one.get("mcnemar")
  if calls:
    about += (
      f"; called right{_of_first(one)} by the first alone"
      f" {calls['only_a_correct']}, by the second alone"
      f" {calls['only_b_correct']}, McNemar {p_text(calls['p_value'])}"
      " (not adjusted)"
    )
  if one["decided"]:
    word = "higher" if one["difference"] > 0 else "lower"
    return f"{a}: {word} {name} than {b} ({about})"
  verdict = f"no difference in {name} is shown"
  if one["n_patients"] < compare.LEAST_PATIENTS:
    verdict = f"too few patients to show a difference in {name}"
  return f"{a} against {b}: {verdict} ({about})"


def failures(row: Mapping[str, Any]) -> str:
  """Returns how many trainings of a line failed, in words."""
  cells = max(len(one["cells"]) for one in row["metrics"].values())
  if row.get("members", 1) > 1:
    return (
      f"in {row['trainings_failed']} of {cells} ensembles all trainings failed"
    )
  return f"{row['trainings_failed']} of {cells} trainings failed"


def could_show(one: Mapping[str, Any]) -> str:
  """Returns what a comparison could have shown, where that is known."""
  found = one.get("can_show")
  if not found:
    return ""
  return f", smallest it could show {power.number(found['smallest'])}"


def _unanswered(one: Mapping[str, Any], titles: Mapping[str, str]) -> str:
  """A comparison that an old rule scored; its figures decide nothing."""
  a, b = titles.get(one["a"], one["a"]), titles.get(one["b"], one["b"])
  return f"{a} against {b}: {metric_name(one['metric'])} {OUTDATED}, no answer"


def _of_first(one: Mapping[str, Any]) -> str:
  """Which trainings McNemar's test is of, where there are several."""
  return "" if "trainings" not in one["method"] else ", first training of each,"


def _spread(row: Mapping[str, Any], metric: str) -> str:
  """A line in words, where nothing is compared."""
  entry = row["metrics"][metric]
  text = f"{row['title']}: {metric_name(metric)} {interval(entry)} on average"
  if "n_values" not in entry:
    return f"{text}, {entry['n_patients']} patients"
  return (
    f"{text}; the middle 95 % of {entry['n_values']} lie from"
    f" {entry['middle_low']:.2f} to {entry['middle_high']:.2f}"
  )


def best_first(table: Sequence[Mapping[str, Any]], metric: str) -> list[Any]:
  """Returns the lines that have the metric, largest first."""
  have = [row for row in table if metric in row["metrics"]]
  values = [row["metrics"][metric]["value"] for row in have]
  known = [-math.inf if math.isnan(value) else value for value in values]
  order = sorted(range(len(have)), key=lambda i: -known[i])
  return [have[i] for i in order]
