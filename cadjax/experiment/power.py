"""The smallest difference that a plan can show, before it runs and after.

Smallest means: the interval of `compare.difference` leaves out 0 in 80 of 100
repetitions of the whole experiment, with other trainings and other patients
(two-sided 5 %, power 0.8). A plan that finds less may well have missed it.

The difference d of J values (folds, or trainings without folds) is tested by

  t = mean / sqrt((1/J + share) S^2 + fixed), J - 1 degrees of freedom,

where S^2 is their variance; over folds `share` is that of the test patients to
the training patients and `fixed` 0 (Nadeau and Bengio, Machine Learning 52
(2003) 239-281); over trainings that are tested on the same patients `share` is
0 and `fixed` the variance that comes of these patients. With one training it
is a bootstrap over patients: a normal variable with variance `fixed`, which
says nothing of another training.

What S^2 and `fixed` will be is measured where the plan was run (`measured`),
else expected (`expected`) from numbers in `ASSUMED`, which a plan may replace:

- patients: the variance of an AUC by Hanley and McNeil (Radiology 143 (1982)
  29-36), of a share by p (1 - p) / n, of a mean by SD^2 / n; that of the
  difference of two lines on the same patients by v_a + v_b - 2 r sqrt(v_a v_b)
  (Hanley and McNeil, Radiology 148 (1983) 839-843), with their correlation r;
- trainings: twice the variance of one line between trainings, as two trainings
  of two lines are independent.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.optimize
import scipy.stats

from cadjax.core import configs, files
from cadjax.experiment import estimate
from cadjax.experiment.plan import Plan, folder_name

ALPHA, POWER = 0.05, 0.8
# Points of the distribution of S^2: enough for four digits of the power.
_POINTS = 2000
# Where the search for enough trainings and patients ends.
MOST_TRAININGS, MOST_PATIENTS = 100, 20_000

# Expected of a metric where nothing was measured.
# `level` of both lines. `sd_trainings`: of one line between trainings, beyond
# what the patients explain; of the AUC the root mean square over the lines of
# the committed results (first edition, overt, scale small) with an AUC of 0.7
# to 0.95 and without a failed training, tests/experiment/power_test.py. Those
# of the other metrics are guesses of the same size. `sd_patients`: of the
# paired difference of one patient; of lesions_hit 0.19 in the committed `link`,
# 20 patients.
ASSUMED: Mapping[str, Mapping[str, float]] = {
  "roc_auc": {"level": 0.75, "correlation": 0.5, "sd_trainings": 0.04},
  "accuracy": {"level": 0.7, "correlation": 0.5, "sd_trainings": 0.04},
  "balanced_accuracy": {"level": 0.7, "correlation": 0.5, "sd_trainings": 0.04},
  "dice": {"sd_patients": 0.1, "sd_trainings": 0.02},
  "lesions_hit": {"sd_patients": 0.3, "sd_trainings": 0.05},
  "vessels_hit": {"sd_patients": 0.3, "sd_trainings": 0.05},
}

# What an estimate of the cost of more trainings rests on. The work of a train
# step is counted (`models.flops`); of the H200 the rate is that of the train
# step of cadjax/bench/README.md, 131 volumes a second of 256x128x128, of
# 4.3e11 operations each, and no step is taken to be faster than the host can
# start one. Of two CPU cores it is that of `make demo`'s train step there,
# 9.7e9 operations in 0.26 s, which validation and tests are within, as two
# processes of one core each do 1.46 times the work of one.
H200_FLOPS = 131 * 4.3e11
H200_LEAST_S = 0.01
CORES_FLOPS = 9.7e9 / 0.26


@dataclasses.dataclass(frozen=True)
class Design:
  """What the interval of a difference is made of.

  Attributes:
    values: J, folds or trainings; 1 for the bootstrap over patients.
    variance: that S^2 estimates; not used if J is 1.
    share: test patients for each training patient, over folds.
    fixed: variance that is added to that of the mean.
  """

  values: int
  variance: float = 0.0
  share: float = 0.0
  fixed: float = 0.0

  @property
  def error(self) -> float:
    """The standard error of the mean difference."""
    if self.values == 1:
      return math.sqrt(self.fixed)
    return math.sqrt(
      (1 / self.values + self.share) * self.variance + self.fixed
    )


def power(design: Design, difference: float, alpha: float = ALPHA) -> float:
  """Returns how often the interval leaves out 0.

  Without `fixed` this is the power of the noncentral t distribution; with it
  the mean over the distribution of S^2, at `_POINTS` quantiles of equal
  weight.

  Args:
    design: of the comparison.
    difference: the true one.
    alpha: of the two-sided test.
  """
  error, j = design.error, design.values
  if not error > 0:
    return 1.0 if difference else 0.0
  if j == 1:
    bounds = np.array([scipy.stats.norm.ppf(1 - alpha / 2) * error])
  else:
    quantiles = (np.arange(_POINTS) + 0.5) / _POINTS
    found = design.variance * _chi2(j - 1, quantiles.size) / (j - 1)
    scale = np.sqrt((1 / j + design.share) * found + design.fixed)
    bounds = scipy.stats.t.ppf(1 - alpha / 2, j - 1) * scale
  above = scipy.stats.norm.sf(bounds, difference, error)
  below = scipy.stats.norm.cdf(-bounds, difference, error)
  return float((above + below).mean())


@functools.cache
def _chi2(degrees: int, points: int) -> np.ndarray:
  return scipy.stats.chi2.ppf((np.arange(points) + 0.5) / points, degrees)


def smallest(
  design: Design, alpha: float = ALPHA, wanted: float = POWER
) -> float:
  """Returns the true difference that is shown with probability `wanted`."""
  error = design.error
  if not math.isfinite(error):
    return math.nan
  if error == 0:
    return 0.0
  high = error
  while power(design, high, alpha) < wanted:
    high *= 2
  found = scipy.optimize.brentq(
    lambda x: power(design, x, alpha) - wanted, 0, high, xtol=error * 1e-6
  )
  return float(found)


def auc_variance(auc: float, positives: int, negatives: int) -> float:
  """Returns the variance of a ROC AUC of independent patients.

  Hanley and McNeil, Radiology 143 (1982) 29-36, with their Q1 and Q2.
  """
  q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
  spread = auc * (1 - auc)
  spread += (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)
  return spread / (positives * negatives)


def paired_variance(a: float, b: float, correlation: float) -> float:
  """Returns the variance of a difference on the same patients."""
  return a + b - 2 * correlation * math.sqrt(a * b)


def assumed(plan: Plan, metric: str) -> Mapping[str, float] | None:
  """Returns what is expected of a metric; None if nothing is."""
  # Of "lesions_hit_at_2" what is expected of "lesions_hit".
  known = [name for name in ASSUMED if metric.startswith(name)]
  base = ASSUMED[max(known, key=len)] if known else {}
  return {**base, **plan.assumed.get(metric, {})} or None


def tested(plan: Plan, line: str, metric: str) -> tuple[float, float]:
  """Returns the patients with and without CAD that one cell is tested on.

  Half of a built or exported data set has CAD unless its flags say otherwise.
  Where lesions are found, only patients with CAD have some.
  """
  arm_name, _, entry = line.partition("/")
  arm = plan.arms[arm_name]
  name, split = arm.data, "test"
  other = entry.removesuffix(".adapted")
  if arm.measure == "external" and other in plan.data:
    name, split = other, "cases"
  sizes = estimate.data_sizes(plan, name, folds=not arm.shared)
  count = sizes[split]
  if arm.measure == "explanation" and arm.options.get("cases"):
    count = min(count, arm.options["cases"])
  sick = count * sizes["cad_fraction"]
  healthy = count - sick
  if entry == "natural":
    share = arm.options["natural"]
    sick = healthy * share / (1 - share)
  if arm.measure == "linked" and metric.startswith(("lesions", "vessels")):
    healthy = 0.0
  return sick, healthy


def design(
  plan: Plan,
  a: str,
  b: str,
  metric: str,
  *,
  values: int | None = None,
  more_patients: float = 1.0,
) -> Design | None:
  """Returns what is expected of a comparison; None if nothing is.

  Args:
    plan: whose comparison it is.
    a: a line of it.
    b: the other line.
    metric: that is compared.
    values: trainings, in place of those of the plan.
    more_patients: tested patients for each one of the plan.
  """
  known = assumed(plan, metric)
  if known is None:
    return None
  sick, healthy = (
    min(pair) * more_patients
    for pair in zip(*(tested(plan, x, metric) for x in (a, b)), strict=True)
  )
  if "sd_patients" in known:
    patients = known["sd_patients"] ** 2 / (sick + healthy)
  elif "level" in known:
    level = known["level"]
    if metric == "roc_auc":
      one = auc_variance(level, sick, healthy)
    elif metric == "accuracy":
      one = level * (1 - level) / (sick + healthy)
    else:  # The mean of two shares.
      one = level * (1 - level) * (1 / sick + 1 / healthy) / 4
    patients = paired_variance(one, one, known["correlation"])
  else:
    return None
  alike = plan.arms[a.partition("/")[0]] is plan.arms[b.partition("/")[0]]
  # Two lines of one arm are of the same trainings.
  trainings = 0.0 if alike else 2 * known["sd_trainings"] ** 2
  folds = len(plan.folds)
  if folds > 1:
    shares = (_share(plan, x.partition("/")[0]) for x in (a, b))
    each = (values or folds * len(plan.seeds)) / folds
    return Design(folds, patients + trainings / each, max(shares))
  return Design(values or len(plan.seeds), trainings, 0.0, patients)


def _share(plan: Plan, name: str) -> float:
  """Test patients for each training patient of an arm."""
  arm = plan.arms[name]
  sizes = estimate.data_sizes(plan, arm.data, folds=True)
  subset = arm.config.data.get("subset") if arm.config is not None else None
  return sizes["test"] / ((subset and subset.patients) or sizes["train"])


def _entry(plan: Plan, made: Design, source: str) -> dict[str, Any]:
  count = max(1, len(plan.pairs()))
  return {
    "smallest": smallest(made),
    # Of the comparison with the least p value, by Holm.
    "smallest_holm": smallest(made, ALPHA / count),
    "source": source,
  }


def expected(plan: Plan, a: str, b: str, metric: str) -> dict[str, Any] | None:
  """Returns the smallest difference by what the plan assumes.

  Returns:
    smallest; smallest_holm, at 5 % over the number of comparisons, which the
    least of their p values must reach; source, in words. None where nothing
    is assumed of the metric.
  """
  made = design(plan, a, b, metric)
  if made is None:
    return None
  known = assumed(plan, metric)
  same = not made.variance
  words = ", ".join(
    [
      f"{key.replace('_', ' ')} {value:g}"
      for key, value in known.items()
      if not (same and key == "sd_trainings")
    ]
    + ["both of the same trainings"] * same
  )
  sick, healthy = tested(plan, a, metric)
  return _entry(
    plan,
    made,
    f"expected of {made.values} {'folds' if len(plan.folds) > 1 else 'seeds'}"
    f" and {sick + healthy:.0f} patients: {words}",
  )


def measured(
  plan: Plan, comparison: Mapping[str, Any], where: str = "measured here"
) -> dict[str, Any] | None:
  """Returns the smallest difference by the spread that was found.

  It does not depend on the difference that was found, only on the width of
  its interval; but a spread of few values is itself uncertain: of five folds
  it is off by a factor of 0.6 to 2.9 (95 % interval of a standard deviation).

  Args:
    plan: of the comparison.
    comparison: of `compare.difference`, also of an older results.json, whose
      folds had one cell each.
    where: for the source.

  Returns:
    as `expected`; None where there was no interval.
  """
  low, high = comparison["low"], comparison["high"]
  if low is None or high is None or math.isnan(low) or math.isnan(high):
    return None
  bounds = [comparison.get(f"bootstrap_{end}") for end in ("low", "high")]
  z = scipy.stats.norm.ppf(0.975)
  j = comparison.get("n_values") or comparison["n_cells"]
  source = f"{where}: {comparison['method']}"
  if "bootstrap" in comparison["method"] or j < 2:
    made = Design(1, fixed=((high - low) / 2 / z) ** 2)
    return _entry(plan, made, source)
  square = ((high - low) / 2 / scipy.stats.t.ppf(0.975, j - 1)) ** 2
  fixed = 0.0
  if "trainings" in comparison["method"] and None not in bounds:
    fixed = ((bounds[1] - bounds[0]) / 2 / z) ** 2
    fixed = min(0.0 if math.isnan(fixed) else fixed, square)
  # By J times what is left; share is in it already.
  return _entry(plan, Design(j, (square - fixed) * j, 0.0, fixed), source)


def committed(plan: Plan) -> dict[str, Any] | None:
  """Returns the results that come with cadjax of a plan at its scale."""
  if plan.name not in configs.names(configs.PLAN) or plan.overrides:
    return None
  root = configs.PLAN.folder / "results"
  file = root / folder_name(plan.name, plan.scale) / "results.json"
  return files.read_json(file) if file.exists() else None


def before(plan: Plan) -> list[dict[str, Any]]:
  """Returns what each comparison can show, as far as that is known now.

  By the spread in the results that come with cadjax, of the same plan at the
  same scale, else by what the plan assumes.

  Returns:
    of each of `plan.pairs()`: a, b, metric and what `expected` returns, of
    which smallest is None where nothing is known.
  """
  result = committed(plan) or {"comparisons": []}
  edition = result.get("edition", 1)
  known = {
    (one["a"], one["b"], one["metric"]): one for one in result["comparisons"]
  }
  rows = []
  for a, b, metric in plan.pairs():
    found = None
    if one := known.get((a, b, metric)):
      where = f"committed results, phantoms of edition {edition}"
      found = measured(plan, one, where)
    found = found or expected(plan, a, b, metric)
    found = found or {
      "smallest": None,
      "smallest_holm": None,
      "source": f"nothing was measured or is assumed of {metric}",
    }
    rows.append({"a": a, "b": b, "metric": metric} | found)
  return rows


def enough(plan: Plan) -> dict[str, Any] | None:
  """Returns what it takes to show the difference that the plan asks for.

  Of the comparisons of the primary metric, that which needs most. Trainings
  are added first; where even `MOST_TRAININGS` would not do, the patients that
  are tested are doubled.

  Returns:
    target; trainings (of each arm) and patients (tested, times those of the
    plan); reached, whether the plan has as many; cost of these by
    `training_cost`; and what the plan itself costs ("planned"). None where the
    plan asks for no difference or nothing is assumed.
  """
  if plan.target is None:
    return None
  pairs = [one for one in plan.pairs() if one[2] == plan.metric]
  if not pairs or design(plan, *pairs[0]) is None:
    return None
  planned = plan.trainings

  def reaches(values: int, more: float) -> bool:
    return all(
      power(design(plan, *one, values=values, more_patients=more), plan.target)
      >= POWER
      for one in pairs
    )

  more = 1.0
  while not reaches(MOST_TRAININGS, more):
    more *= 2
    if more > MOST_PATIENTS:
      return None
  # At least as many as there are, and two, or nothing tells trainings apart.
  # Each fold as often. Two at least, or nothing tells trainings apart.
  step = len(plan.folds)
  low, high = max(planned, 2) // step, max(MOST_TRAININGS, planned) // step
  while low < high:
    middle = (low + high) // 2
    if reaches(middle * step, more):
      high = middle
    else:
      low = middle + 1
  low *= step
  patients = max(sum(tested(plan, x, plan.metric)) for x in pairs[0][:2])
  return {
    "target": plan.target,
    "trainings": low,
    "patients": round(patients * more),
    "reached": low <= planned and more == 1.0,
    "cost": training_cost(plan, low),
    "planned": {"trainings": planned, "patients": round(patients)}
    | training_cost(plan, planned),
  }


def training_cost(plan: Plan, trainings: int) -> dict[str, float]:
  """Returns the hours that so many trainings of each arm take, estimated.

  The steps of each arm, times the seconds of one: its operations over
  `CORES_FLOPS` or `H200_FLOPS`, and at least `H200_LEAST_S` there. Building
  data, compiling, measuring and segmenting scans are left out.

  Returns:
    cores_hours on two CPU cores, h200_hours on one H200.
  """
  cores = h200 = 0.0
  for arm in plan.arms.values():
    if arm.config is None:
      continue
    sizes = estimate.data_sizes(plan, arm.data, folds=not arm.shared)
    cost = estimate.training_cost(arm, sizes)
    count = 1 if arm.shared else trainings
    each = cost["flops"] / cost["steps"]
    cores += count * cost["flops"] / CORES_FLOPS
    h200 += count * cost["steps"] * max(each / H200_FLOPS, H200_LEAST_S)
  return {"cores_hours": cores / 3600, "h200_hours": h200 / 3600}


def table(plan: Plan) -> str:
  """Returns what each comparison can show, as text; for --dry_run."""
  if not plan.pairs():
    return "nothing is compared"
  lines = [
    f"smallest difference that can be shown (two-sided {ALPHA:.0%}, power"
    f" {POWER:g}; in brackets for the first of {len(plan.pairs())} by Holm):"
  ]
  for one in before(plan):
    value = number(one["smallest"])
    if one["smallest"] is not None:
      value = f"{number(one['smallest'])} ({number(one['smallest_holm'])})"
    lines.append(
      f"  {one['a']} less {one['b']}, {one['metric']}: {value}; {one['source']}"
    )
  found = enough(plan)
  return "\n".join([*lines, *([in_words(found)] if found else [])])


def number(value: float | None) -> str:
  """Returns a smallest difference as text.

  Those of shares and AUCs above 1 do not exist; other metrics may have them.
  """
  if value is None:
    return "unknown"
  return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def in_words(found: Mapping[str, Any]) -> str:
  """Returns what `enough` found, as a sentence."""
  planned = found["planned"]
  have = (
    f"{planned['trainings']} trainings of each arm and {planned['patients']}"
    " tested patients"
  )
  if found["reached"]:
    return (
      f"{have} are enough to show {found['target']:g};"
      f" about {hours(planned['cores_hours'])} of training on two cores"
    )
  cost = found["cost"]
  return (
    f"{have} are not enough to show {found['target']:g}; {found['trainings']}"
    f" and {found['patients']} would be: about {hours(cost['h200_hours'])} of"
    f" training on one H200 or {hours(cost['cores_hours'])} on two cores (an"
    " estimate, not run)"
  )


def in_short(found: Mapping[str, Any] | None) -> str:
  """Returns what `enough` found, for a table."""
  if found is None:
    return ""
  if found["reached"]:
    return f"for {found['target']:g}: it is"
  return (
    f"for {found['target']:g}: {found['trainings']}, {found['patients']};"
    f" {hours(found['cost']['h200_hours'])} on one H200 (estimated)"
  )


def most_tested(plan: Plan) -> int:
  """Returns the patients that comparisons of its primary metric are of."""
  return round(
    max(
      min(sum(tested(plan, x, metric)) for x in pair)
      for *pair, metric in plan.pairs()
      if metric == plan.metric
    )
  )


def hours(value: float) -> str:
  """Returns hours as text, in minutes if they are few."""
  return f"{value * 60:.0f} min" if value < 2 else f"{value:.0f} h"
