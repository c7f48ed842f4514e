"""The files of an experiment: results.json, cost.json, forest.png, a page."""

import base64
import pathlib
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from cadjax.core import configs, files
from cadjax.experiment import figure, power, summary, verdicts
from cadjax.experiment.plan import CLINICAL, Plan, folder_name, load_plan
from cadjax.experiment.store import Store
from cadjax.report import curves, pages
from data_prep.errors import UserError

# Of one experiment in the README; the page has all.
MOST_ANSWERS = 3
MOST_LINES = 6
MOST_SENTENCES = 2


def command(result: Mapping[str, Any]) -> str:
  """Returns the command that gives a result."""
  return (
    "python -m cadjax.experiment"
    f" --plan=configs/experiments/{result['plan']}.py"
    f" --scale={result['scale']}"
    f" --workdir=experiments/{folder_name(result['plan'], result['scale'])}"
    + "".join(f" --override={shlex.quote(x)}" for x in result["overrides"])
  )


def write(folder: pathlib.Path, plan: Plan, cells: Store) -> dict[str, Any]:
  """Writes what is known so far; returns results.json."""
  result, cost = summary.summarise(plan, cells), summary.cost(plan, cells)
  folder.mkdir(parents=True, exist_ok=True)
  picture = figure.forest(result, plan.lines)
  curves.save(picture, folder / "forest.png")
  files.write_json(folder / "results.json", result)
  files.write_json(folder / "cost.json", cost)
  files.write_text(
    folder / "index.html",
    render(result, cost, (folder / "forest.png").read_bytes(), plan.metrics),
  )
  return result


def render(
  result: Mapping[str, Any],
  cost: Mapping[str, Any],
  picture: bytes,
  metrics: Sequence[str],
) -> str:
  """Returns the page; it needs no other file."""
  shown = list(dict.fromkeys([result["metric"], *metrics]))
  return (
    pages.templates()
    .get_template("experiment.html")
    .render(
      r=result,
      cost=cost,
      picture=base64.b64encode(picture).decode(),
      metrics=shown,
      spread=summary.is_spread(result["metric"]),
      command=command(result),
      minutes=round(cost["cell_seconds"] / 60),
      name=summary.metric_name,
      interval=summary.interval,
      p=summary.p_text,
      number=power.number,
      failures=summary.failures,
      in_words=power.in_words,
      phantoms=summary.phantoms(result),
      answers=summary.answers(result),
      outdated=lambda metric: summary.outdated(result, metric),
      old_rule=summary.OUTDATED,
    )
  )


def render_again(folder: pathlib.Path) -> None:
  """Rewrites the page from results.json, cost.json and the plan.

  For results whose cells are elsewhere: the figures stay, what they answer
  and how they are marked is that of this version. The page of a plan that
  does not come with cadjax stays as it is.

  Args:
    folder: of results.json.
  """
  result = files.read_json(folder / "results.json")
  if result["plan"] not in configs.names(configs.PLAN):
    return
  plan = load_plan(result["plan"], result["scale"])
  for one in result["comparisons"]:
    one.setdefault("can_show", power.measured(plan, one))
  result = files.strict(result | {"answers": summary.answers(result)})
  result["claim"] = plan.claim  # What the paper says is not measured here.
  with tempfile.TemporaryDirectory() as temporary:
    path = pathlib.Path(temporary) / "forest.png"
    curves.save(figure.forest(result, plan.lines), path)
    picture = path.read_bytes()
  measured = {name for row in result["lines"] for name in row["metrics"]}
  shown = [name for name in plan.metrics if name in measured]
  shown += sorted(measured - {*plan.metrics, plan.metric})
  html = render(result, files.read_json(folder / "cost.json"), picture, shown)
  files.write_json(folder / "results.json", result)
  files.write_text(folder / "index.html", html)


def text(result: Mapping[str, Any]) -> str:
  """Returns the answers and the primary metric, as a program prints them."""
  metric = result["metric"]
  rows = [row for row in result["lines"] if metric in row["metrics"]]
  width = max((len(row["title"]) for row in rows), default=0)
  lines = [result["question"], f"{'':{width}}  {summary.metric_name(metric)}"]
  for row in rows:
    entry = row["metrics"][metric]
    lines.append(f"{row['title']:{width}}  {summary.interval(entry)}")
    if row["trainings_failed"]:
      lines.append(
        f"{'':{width}}  {summary.failures(row)}; without them"
        f" {summary.interval(entry['without_failed'])}"
      )
  lines += ["", *result["answers"]]
  if result["enough"]:
    lines.append(power.in_words(result["enough"]))
  for name, why in result["failed"].items():
    lines.append(f"failed: {name}: {why}")
  return "\n".join([*lines, result["disclaimer"]])


def markdown(folder: pathlib.Path, results: Sequence[pathlib.Path]) -> str:
  """Returns a table of experiments, for a README.

  Args:
    folder: of the README, for the links.
    results: their results.json.
  """
  lines = [
    "| question | answer, with 95 % interval | phantoms | cost |",
    "| --- | --- | --- | --- |",
  ]
  for file in results:
    result = files.read_json(file)
    cost = files.read_json(file.with_name("cost.json"))
    page = file.with_name("index.html").relative_to(folder).as_posix()
    answers = _in_short(result)
    if unfinished := result["cells"]["failed"] + result["cells"]["waiting"]:
      answers.append(f"({unfinished} cells not done)")
    minutes = round(cost["cell_seconds"] / 60)
    lines.append(
      f"| [{result['question']}]({page}) (`{result['plan']}`) |"
      f" {'<br>'.join(answers)} | {summary.phantoms(result)} |"
      f" {cost['cells']} cells, {minutes} min of"
      f" {', '.join(cost['devices'])} |"
    )
  return "\n".join(lines)


def _in_short(result: Mapping[str, Any]) -> list[str]:
  """The lines, if they are few, and the first of the comparisons."""
  titles = {row["line"]: row["title"] for row in result["lines"]}
  found = result["comparisons"]
  if told := verdicts.sentences(result):
    return [*told[:MOST_SENTENCES], "more on its page"]
  if not found:
    return summary.answers(result) or ["not answered"]
  metric = result["metric"]
  lines = [row for row in result["lines"] if metric in row["metrics"]]
  short = []
  if len(lines) <= MOST_LINES:
    values = "; ".join(
      f"{row['title']} {summary.interval(row['metrics'][metric])}"
      for row in lines
    )
    old = f" ({summary.OUTDATED})" if summary.outdated(result, metric) else ""
    short.append(f"{summary.metric_name(metric)}{old}: {values}")
  short += [
    f"{titles.get(one['a'], one['a'])} less {titles.get(one['b'], one['b'])}:"
    f" {summary.metric_name(one['metric'])}"
    + (
      f" {summary.OUTDATED}"
      if summary.outdated(result, one["metric"])
      else f" {summary.interval(one, 'difference')},"
      f" {one['n_patients']} patients, {summary.p_text(one['p_holm'])}"
      f"{summary.could_show(one)}"
    )
    for one in found[:MOST_ANSWERS]
  ]
  short += [
    f"{row['title']}: {summary.failures(row)}"
    for row in result["lines"]
    if row.get("trainings_failed")
  ]
  more = len(found) - MOST_ANSWERS
  return short + ([f"{more} more on its page"] if more > 0 else [])


def asked(folder: pathlib.Path, root: pathlib.Path) -> str:
  """Returns a table of what the plans ask at the severity of a clinic.

  Args:
    folder: of the README, for the links.
    root: of the results, by `folder_name`; a plan without any was not run.
  """
  lines = [
    "| plan | trainings of each arm, tested patients | smallest difference that"
    " it shows | enough | state |",
    "| --- | --- | --- | --- | --- |",
  ]
  for name in configs.names(configs.PLAN):
    plan = load_plan(name, CLINICAL)
    rows = [
      row
      for row in power.before(plan)
      if row["metric"] == plan.metric and row["smallest"] is not None
    ]
    shown = "nothing is compared"
    if plan.pairs():
      worst = max((row["smallest"] for row in rows), default=None)
      shown = f"{summary.metric_name(plan.metric)} {power.number(worst)}"
    found = power.enough(plan)
    cost = power.training_cost(plan, plan.trainings)
    result = root / folder_name(name, CLINICAL) / "results.json"
    state = f"**not run**; {power.hours(cost['cores_hours'])} on two cores"
    if result.exists():
      link = result.with_name("index.html").relative_to(folder).as_posix()
      state = f"[run]({link})"
    tested = f", {power.most_tested(plan)}" if plan.pairs() else ""
    lines.append(
      f"| `{name}` | {plan.trainings}{tested} | {shown} |"
      f" {power.in_short(found)} | {state} |"
    )
  return "\n".join(lines)


def update_readme(readme: pathlib.Path, root: pathlib.Path) -> int:
  """Writes the table of all results under `root` into a README.

  Between the marks of "experiments"; and what the plans ask at the scale
  "clinical" between those of "plans", where there are such. The page of each
  experiment is rewritten as well. Returns how many experiments there are.

  Raises:
    UserError: of `files.replace_table`, or there are no results.
  """
  root = root.resolve()
  found = sorted(root.glob("*/results.json"))
  if not found:
    raise UserError(
      f"--workdir={root}: there is no */results.json; the README stays as it is"
    )
  for file in found:
    render_again(file.parent)
  files.replace_table(
    readme, "experiments", markdown(readme.resolve().parent, found)
  )
  if files.table_marks("plans")[0] in readme.read_text():
    files.replace_table(readme, "plans", asked(readme.resolve().parent, root))
  return len(found)
