"""Plans, claims of cells, and a whole tiny experiment."""

import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import ml_collections
import pytest
from tiny_runs import reseal

from cadjax.core import files, lookup
from cadjax.evaluation import link_rows
from cadjax.experiment import estimate, measures, page, plan, summary
from cadjax.experiment import run as runner
from cadjax.experiment.store import Store, machine
from data_prep import phantom
from data_prep.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
PLANS = sorted(
  path
  for path in (ROOT / "configs" / "experiments").glob("*.py")
  if path.stem not in ("__init__", "common")
)
DIMENSION = ROOT / "configs" / "experiments" / "dimension.py"
# What runs in them runs in others, too: in `link`, `sample_size`, `external`.
ALIKE = ("multiclass", "balance", "shortcut", "recipe")


def fields(**changes):
  return {
    "question": "Is a better than b?",
    "claim": "Nobody knows.",
    "data": {"phantoms": ("--source=phantom", "--cases=30")},
    "arms": {"a": {"title": "A"}, "b": {"title": "B", "needs": {"x": "a"}}},
    "metric": "roc_auc",
    "comparisons": (("a", "b"),),
  } | changes


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
@pytest.mark.parametrize("scale", plan.SCALES)
def test_every_plan_loads_at_every_scale(path, scale):
  made = plan.load_plan(str(path), scale)
  assert made.question.endswith("?")
  assert made.cells()
  for arm in made.arms.values():
    if arm.config is not None:
      assert (
        estimate.training_cost(arm, {"shape": (32, 32, 32), "train": 10})[
          "flops"
        ]
        > 0
      )
      break


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"questoin": "?"}, "did you mean 'question'"),
    ({"arms": {"a": {"titel": "A"}}}, "did you mean 'title'"),
    ({"arms": {"a": {}}}, "the arm 'a' lacks 'title'"),
    (
      {"arms": {"a": {"title": "A", "measure": "patient"}}},
      "did you mean 'patients'",
    ),
    ({"arms": {"a": {"title": "A", "data": "scans"}}}, "unknown data"),
    ({"comparisons": (("a", "c"),)}, "unknown arm in a comparison 'c'"),
    (
      {
        "arms": {
          "a": {"title": "A"},
          "b": {
            "title": "B",
            "config": ml_collections.ConfigDict(),
            "needs": {"init_form": "a"},
          },
        }
      },
      "did you mean 'init_from'",
    ),
    (
      {
        "arms": {
          "a": {"title": "A", "needs": {"x": "b"}},
          "b": {"title": "B", "needs": {"x": "a"}},
        }
      },
      "a, b need one another",
    ),
  ],
)
def test_a_plan_that_cannot_be_is_refused(changes, message):
  with pytest.raises(lookup.ConfigError, match=message):
    plan.make_plan(fields(**changes))


@pytest.mark.parametrize(
  ("code", "message"),
  [
    ("x = 1", "it has no get_plan"),
    ("import os\n\nx = 1 +", "line 3: SyntaxError: invalid syntax"),
    ("x = 1\ny = z", "line 2: NameError: name 'z' is not defined"),
    ("def get_plan(scale):\n  return {}[scale]", "line 2: KeyError: 'tiny'"),
    ("import nowhere", "line 1: ModuleNotFoundError: No module named"),
  ],
)
def test_a_mistake_in_a_plan_file_is_one_line(tmp_path, code, message):
  path = tmp_path / "mine.py"
  path.write_text(code)
  with pytest.raises(UserError, match=f"mine.py.*{message}"):
    plan.load_plan(str(path), "tiny")


def test_fields_of_all_arms_can_be_overridden():
  made = plan.load_plan(str(DIMENSION), "tiny")
  changed = plan.override(
    made, ["epochs=7", "data.batch_size=2", "loss.name=cross_entropy"]
  )
  for arm in changed.arms.values():
    assert arm.config.epochs == 7
    assert arm.config.data.batch_size == 2
    assert arm.config.loss.name == "cross_entropy"
  assert made.arms["3d"].config.epochs == 1
  for setting, message in (
    ("epoch=7", "no arm has that field"),
    ("epochs.more=7", "no arm has that field"),
    ("epochs=many", "epochs"),
    ("epochs", "expected FIELD=VALUE"),
  ):
    with pytest.raises(lookup.ConfigError, match=message):
      plan.override(made, [setting])


def test_cells_come_after_what_they_need_and_shared_ones_once():
  arms = {
    "late": {"title": "L", "needs": {"x": "early"}},
    "early": {"title": "E", "shared": True},
  }
  made = plan.make_plan(
    fields(arms=arms, folds=(0, 1), seeds=(3, 4), comparisons=())
  )
  found = [cell.name for cell in made.cells()]
  assert found == [
    "early/seed3",
    "late/fold0_seed3",
    "late/fold1_seed3",
    "late/fold0_seed4",
    "late/fold1_seed4",
  ]
  late = made.cells()[-1]
  assert made.needed(late, "early").name == "early/seed3"


def test_a_claim_is_for_one(tmp_path):
  store = Store(tmp_path)
  with store.claim("a/b") as mine:
    assert mine
    assert store.state("a/b") == "running"
    with store.claim("a/b") as second:
      assert not second
    assert store.state("a/b") == "running"
  assert store.state("a/b") == "waiting"
  store.finish("a/b", {"value": 1})
  assert store.state("a/b") == "done"
  assert store.read("a/b") == {"value": 1}


def test_a_failure_is_kept_until_it_is_forgotten(tmp_path):
  store = Store(tmp_path)
  store.fail("a", "Traceback\nValueError: too bad\n")
  assert store.state("a") == "failed"
  assert store.why("a") == "ValueError: too bad"
  store.forget_failure("a")
  assert store.state("a") == "waiting"


def left_behind(path, **owner):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(owner))


def test_a_claim_of_a_dead_process_is_taken_over(tmp_path):
  store = Store(tmp_path)
  dead = multiprocessing.get_context("spawn").Process(target=print)
  dead.start()
  dead.join()
  path = tmp_path / "a" / "claim.json"
  left_behind(path, host=machine(), pid=dead.pid)
  assert store.state("a") == "waiting"
  with store.claim("a") as mine:
    assert mine
    assert json.loads(path.read_text())["pid"] == os.getpid()


def test_a_claim_of_another_machine_stands_while_it_is_renewed(tmp_path):
  store = Store(tmp_path)
  path = tmp_path / "a" / "claim.json"
  left_behind(path, host="elsewhere", pid=1)
  assert store.state("a") == "running"
  with store.claim("a") as mine:
    assert not mine
  old = time.time() - 3600
  os.utime(path, (old, old))
  assert store.state("a") == "waiting"
  with store.claim("a") as mine:
    assert mine


def _count(root, out):
  store = Store(pathlib.Path(root))
  done = 0
  for i in range(40):
    name = f"cell{i}"
    with store.claim(name) as mine:
      if mine and store.state(name) == "running":
        done += 1
        store.finish(name, {"pid": os.getpid()})
  out.put(done)


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_processes_divide_the_cells(tmp_path):
  context = multiprocessing.get_context("fork")
  out = context.Queue()
  workers = [
    context.Process(target=_count, args=(str(tmp_path), out)) for _ in range(4)
  ]
  for worker in workers:
    worker.start()
  counts = [out.get(timeout=60) for _ in workers]
  for worker in workers:
    worker.join()
  assert sum(counts) == 40


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
  """A folder for the data and the compiled programs of all plans."""
  folder = tmp_path_factory.mktemp("plans")
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", str(folder / "jax_cache"))
  least = jax.config.jax_persistent_cache_min_compile_time_secs
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  yield folder
  jax.config.update("jax_persistent_cache_min_compile_time_secs", least)
  jax.config.update("jax_compilation_cache_dir", before)


def run_tiny(path, shared):
  made = plan.load_plan(str(path), "tiny")
  cells = Store(shared / made.name / "cells")
  runner.Experiment(made, cells, Store(shared / "data")).run()
  return page.write(shared / made.name, made, cells)


@pytest.fixture(scope="module")
def whole(shared):
  """The folder of a finished tiny experiment."""
  run_tiny(DIMENSION, shared)
  return shared / "dimension"


@pytest.mark.parametrize(
  "path",
  [
    pytest.param(path, marks=[pytest.mark.slow] * (path.stem in ALIKE))
    for path in PLANS
  ],
  ids=lambda path: path.stem,
)
def test_a_plan_runs_from_end_to_end(path, shared):
  result = run_tiny(path, shared)
  assert not result["failed"]
  assert result["cells"]["done"] == len(
    plan.load_plan(str(path), "tiny").cells()
  )
  assert result["lines"]
  assert not result["not_compared"]
  html = (shared / result["plan"] / "index.html").read_text()
  assert len(html) > 10_000
  assert ("<h2>Comparisons" in html) == bool(result["comparisons"])
  # What small studies would have reported spreads; other figures do not.
  assert ("middle 95 %" in html) == (path.stem == "protocol")
  assert ("reported ROC AUC" in html) == (path.stem == "protocol")


def test_an_experiment_ends_in_answers(whole):
  result = json.loads((whole / "results.json").read_text())
  assert result["cells"] == {"done": 4, "failed": 0, "running": 0, "waiting": 0}
  assert len(result["answers"]) == 2
  assert result["disclaimer"].startswith("Phantom results.")
  lines = {row["line"] for row in result["lines"]}
  assert lines == {"3d", "2d", "2d/slices"}
  comparison = result["comparisons"][0]
  assert comparison["n_patients"] == 8
  # One epoch on a few volumes teaches nothing, and is told to have.
  assert result["trainings"]["known"] == 4
  assert result["trainings"]["failed"]
  assert comparison["planned"]["smallest"] > 0
  html = (whole / "index.html").read_text()
  for text in ("Phantom results", "too few patients", "--plan=configs/"):
    assert text in html
  assert "http" not in html.replace("http-equiv", "")
  assert (whole / "forest.png").read_bytes().startswith(b"\x89PNG")


def test_a_cell_of_an_older_version_keeps_the_rules_of_its_figures(
  whole, tmp_path
):
  """One of them is enough: its figures are among those that are compared."""
  made = plan.load_plan(str(DIMENSION), "tiny")
  shutil.copytree(whole / "cells", tmp_path / "cells")
  store = Store(tmp_path / "cells")
  now = summary.summarise(made, store)
  assert now["rules"] == summary.RULES_VERSION
  assert now["edition"] == phantom.EDITION
  name = made.cells()[0].name
  cell = store.read(name)
  del cell["rules"], cell["edition"]
  store.finish(name, cell)
  result = summary.summarise(made, store)
  assert result["rules"] == result["edition"] == 1
  assert summary.outdated(result, "ece")


def command(folder):
  return [
    *(sys.executable, "-m", "cadjax.experiment", f"--plan={DIMENSION}"),
    *("--scale=tiny", f"--workdir={folder}"),
    f"--data={folder.parent / 'data'}",
  ]


@pytest.mark.slow
def test_a_killed_and_resumed_run_ends_in_the_same_results(tmp_path):
  def finish(folder):
    done = subprocess.run(
      command(folder), capture_output=True, text=True, timeout=900, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return (folder / "results.json").read_text()

  once = finish(tmp_path / "once")
  killed = tmp_path / "killed"
  # In the first cell's training, and in the second's.
  for kind, begun in ((signal.SIGKILL, 1), (signal.SIGTERM, 2)):
    process = subprocess.Popen(
      command(killed),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      cwd=ROOT,
    )
    while len(list(killed.rglob("cells/*/*/config.json"))) < begun:
      assert process.poll() is None, "it was done before it could be killed"
      time.sleep(0.1)
    process.send_signal(kind)
    process.wait(timeout=100)
    cells = killed.rglob("cells/*/*/cell.json")
    assert len(list(cells)) == begun - 1
  assert finish(killed) == once


def test_nothing_is_done_twice(whole):
  cells = list((whole / "cells").rglob("cell.json"))
  before = {path: path.stat().st_mtime_ns for path in cells}
  made = plan.load_plan(str(DIMENSION), "tiny")
  store = Store(whole / "cells")
  runner.Experiment(made, store, Store(whole.parent / "data")).run()
  assert {path: path.stat().st_mtime_ns for path in cells} == before


def test_cells_of_another_version_of_the_plan_are_refused(whole):
  made = plan.load_plan(str(DIMENSION), "small")
  store = Store(whole / "cells")
  with pytest.raises(UserError, match="another version of the plan"):
    runner.Experiment(made, store, Store(whole.parent / "data")).run()


def test_a_bad_cell_is_told_of_and_the_others_go_on(tmp_path, monkeypatch):
  arms = {
    "good": {"title": "G"},
    "bad": {"title": "B", "options": {"bad": True}},
    "late": {"title": "L", "needs": {"x": "bad"}},
  }
  made = plan.make_plan(
    fields(arms=arms, comparisons=(("good", "bad"),), metric="dice")
  )

  def measure(trial):
    if trial.options.get("bad"):
      raise ValueError("no luck")
    return {"": [{"patient_id": "p", "dice": 0.5}]}

  monkeypatch.setattr(
    runner, "MEASURES", measures.MEASURES | {"patients": measure}
  )
  monkeypatch.setattr(runner.Experiment, "_dataset", lambda *_: tmp_path)
  store = Store(tmp_path / "cells")
  runner.Experiment(made, store, Store(tmp_path / "data")).run()
  result = summary.summarise(made, store)
  assert result["failed"] == {
    "bad/seed0": "ValueError: no luck",
    "late/seed0": "it needs bad/seed0, which failed",
  }
  assert result["not_compared"] == ["good with bad (dice)"]
  assert result["lines"][0]["metrics"]["dice"]["value"] == 0.5
  written = page.write(tmp_path / "out", made, store)
  assert written["cells"]["failed"] == 2
  assert "no luck" in (tmp_path / "out" / "index.html").read_text()


def test_lines_know_the_patients_that_their_cells_were_trained_on(tmp_path):
  """One that only measures has those of what it needs."""
  some = ml_collections.ConfigDict()
  arms = {
    "a": {"title": "A", "config": some},
    "b": {"title": "B", "config": some},
    "both": {"title": "C", "needs": {"x": "a", "y": "b"}},
    "none": {"title": "D"},
  }
  made = plan.make_plan(fields(arms=arms, folds=(0, 1), comparisons=()))
  store = Store(tmp_path)
  trained = {"a": 60, "b": 40, "both": 0, "none": 0}
  for cell in made.cells():
    rows = [{"patient_id": "p", "dice": 0.5}]
    store.folder(cell.name).mkdir(parents=True)
    store.finish(
      cell.name, {"entries": {"": rows}, "sizes": [trained[cell.arm], 20]}
    )
  found = summary.collect(made, store)
  for arm, count in (trained | {"both": 40}).items():
    assert found[arm].trained == {(0, 0): count, (1, 0): count}, arm


def test_cases_without_a_label_train_no_classifier(
  tiny_config, tiny_data, tmp_path, monkeypatch
):
  copy = tmp_path / "data"
  shutil.copytree(tiny_data, copy)
  header, *rows = (copy / "cases.csv").read_text().splitlines()
  at = header.split(",").index("label")
  rows = [row.split(",") for row in rows]
  first = next(row for row in rows if "train" in row)
  first[at] = ""
  lines = [header, *map(",".join, rows)]
  (copy / "cases.csv").write_text("\n".join(lines) + "\n")
  reseal(copy)
  arms = {"a": {"title": "A", "config": tiny_config}}
  made = plan.make_plan(fields(arms=arms, comparisons=(), metric="dice"))
  given = {"": [{"patient_id": "p", "dice": 0.5}]}
  monkeypatch.setattr(
    runner, "MEASURES", measures.MEASURES | {"patients": lambda _: given}
  )
  monkeypatch.setattr(runner.Experiment, "_dataset", lambda *_: copy)
  monkeypatch.setattr(runner.tasks, "train_and_evaluate", lambda *_: None)
  monkeypatch.setattr(runner.workdir, "is_finished", lambda _: True)
  store = Store(tmp_path / "cells")
  runner.Experiment(made, store, Store(tmp_path / "built")).run()
  assert store.read("a/seed0")["sizes"] == [15, 8]


@pytest.mark.parametrize(
  ("pair", "message"),
  [
    (("a/map", "b/mpa"), "of the arm 'b' there is only map"),
    (("a/map", "b/map", "dise"), "'a/map', which is compared, has no dise"),
  ],
)
def test_what_cannot_be_compared_is_told_of_by_its_first_cell(
  tmp_path, monkeypatch, pair, message
):
  arms = {"a": {"title": "A"}, "b": {"title": "B"}}
  made = plan.make_plan(fields(arms=arms, comparisons=(pair,), metric="dice"))
  given = {"map": [{"patient_id": "p", "dice": 0.5}]}
  monkeypatch.setattr(
    runner, "MEASURES", measures.MEASURES | {"patients": lambda _: given}
  )
  monkeypatch.setattr(runner.Experiment, "_dataset", lambda *_: tmp_path)
  store = Store(tmp_path / "cells")
  runner.Experiment(made, store, Store(tmp_path / "data")).run()
  assert any(
    message in why for why in summary.summarise(made, store)["failed"].values()
  )


def test_a_version_of_another_process_does_not_mix(tmp_path, monkeypatch):
  """It began at the same time, when there was nothing to check yet."""
  made = plan.make_plan(fields())

  def measure(trial):
    if trial.path.parent.name == "a":
      other = runner.digest(made, made.cells()[0])[::-1]
      store.finish(made.cells()[0].name, {"digest": other})
      raise ValueError("it was done by the other one meanwhile")
    raise AssertionError("it would be measured with the other's cell")

  monkeypatch.setattr(
    runner, "MEASURES", measures.MEASURES | {"patients": measure}
  )
  monkeypatch.setattr(runner.Experiment, "_dataset", lambda *_: tmp_path)
  store = Store(tmp_path / "cells")
  with pytest.raises(UserError, match="another version of the plan"):
    runner.Experiment(made, store, Store(tmp_path / "data")).run()


def test_a_page_tells_what_was_overridden(whole):
  made = plan.load_plan(str(DIMENSION), "tiny")
  made = plan.override(made, ["epochs=1"])
  result = summary.summarise(made, Store(whole / "cells"))
  assert page.command(result).endswith(" --override=epochs=1")


def test_a_dry_run_lists_cells_and_runs_none(whole):
  text = estimate.table(
    plan.load_plan(str(DIMENSION), "tiny"),
    Store(whole / "cells"),
  )
  assert text.count("done") == 4
  assert "about 0 min" in text


def test_the_readme_gets_its_table(whole, tmp_path):
  readme = tmp_path / "README.md"
  begin, end = files.table_marks("experiments")
  readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
  root = tmp_path / "results"
  root.mkdir()
  for name in ("results.json", "cost.json", "index.html"):
    (root / "dimension").mkdir(exist_ok=True)
    (root / "dimension" / name).write_text((whole / name).read_text())
  assert page.update_readme(readme, root) == 1
  text = readme.read_text()
  assert text.startswith("before\n")
  assert text.endswith("after\n")
  assert "old" not in text
  assert "(results/dimension/index.html)" in text
  assert "less 2D, mean of the slices: ROC AUC" in text


def test_the_readme_says_what_plans_can_show_and_which_were_not_run(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(
    page.configs, "names", lambda _: ["dimension", "protocol"]
  )
  text = page.asked(tmp_path, tmp_path)
  assert text.count("**not run**") == 2
  assert "| `dimension` | 12, 600 | ROC AUC 0.078 | for 0.05: 31, 1200;" in text
  assert "on one H200 (estimated)" in text
  assert "| `protocol` | 20 | nothing is compared |" in text
  (tmp_path / "clinical_dimension").mkdir()
  (tmp_path / "clinical_dimension" / "results.json").write_text("{}")
  text = page.asked(tmp_path, tmp_path)
  assert text.count("**not run**") == 1
  assert "[run](clinical_dimension/index.html)" in text


def test_the_scale_clinical_has_clinical_phantoms_and_a_robust_recipe():
  seeds, tried = set(), None
  for path in PLANS:
    made = plan.load_plan(str(path), plan.CLINICAL)
    for name, given in made.data.items():
      assert "--severity=clinical" in given, name
      assert "--severity=overt" not in given, name
    if path.stem == "recipe":
      tried = set(made.seeds)
      plain = made.arms["plain"].config.optimizer
      assert (plain.warmup_steps, plain.learning_rate) == (20, 2e-3)
      assert made.arms["group"].config.model.norm == "group"
    else:
      seeds |= set(made.seeds)
  assert len(tried) == 20
  assert not tried & seeds
  config = plan.load_plan("dimension", plan.CLINICAL).arms["3d"].config
  assert config.optimizer.warmup_fraction == 0.1
  assert config.optimizer.clip_norm == 1.0
  assert config.ema_decay == 0.98
  # At the other scales the recipe is as it was.
  small = plan.load_plan("dimension", "small").arms["3d"].config
  assert small.optimizer.warmup_steps == 20
  assert "warmup_fraction" not in small.optimizer
  assert plan.folder_name("dimension", "small") == "dimension"
  assert plan.folder_name("dimension", "clinical") == "clinical_dimension"


def old_results(folder):
  """Of a plan and its results as they were when the ECE was measured."""
  entry = {"value": 0.1, "low": 0.05, "high": 0.15, "n_patients": 63}
  entry |= {"cells": [{"fold": 0, "seed": 0, "value": 0.1}]}
  one = {"a": "3d", "b": "2d", "metric": "ece", "n_patients": 63}
  one |= {"difference": -0.2, "low": -0.3, "high": -0.1, "p_value": 0.001}
  one |= {"p_holm": 0.002, "decided": True, "method": "t", "n_cells": 1}
  auc = one | {"metric": "roc_auc", "difference": 0.2, "low": 0.1, "high": 0.3}
  lines = [
    {"line": x, "title": x.upper(), "metrics": {"roc_auc": entry, "ece": entry}}
    for x in ("3d", "2d")
  ]
  counted = entry | {"middle_low": 0.1, "middle_high": 0.9, "n_values": 7}
  lines[0]["metrics"]["dice"] = counted | {"n_undefined": 2}
  result = {
    "plan": "dimension",
    "scale": "tiny",
    "question": "Which?",
    "claim": "",
    "limits": "",
    "metric": "roc_auc",
    "data": {},
    "overrides": [],
    "disclaimer": "Phantom results.",
    "lines": lines,
    "comparisons": [one, auc],
    "answers": ["3D: lower calibration error than 2D"],
    "not_compared": [],
    "failed": {},
    "cells": {"done": 1, "failed": 0, "running": 0, "waiting": 0},
  }
  cost = {"cells": 1, "cell_seconds": 1, "peak_bytes": 1, "code": []}
  cost |= {"devices": ["cpu"], "arms": {}}
  folder.mkdir(parents=True)
  for name, value in (("results.json", result), ("cost.json", cost)):
    (folder / name).write_text(json.dumps(value))
  (folder / "index.html").write_text("old page: lower calibration error")
  return result


def test_what_an_old_rule_scored_is_marked_and_answers_nothing(tmp_path):
  folder = tmp_path / "results" / "dimension"
  result = old_results(folder)
  assert summary.outdated(result, "ece")
  assert not summary.outdated(result, "roc_auc")
  assert not summary.outdated(result | {"rules": 2}, "ece")
  readme = tmp_path / "README.md"
  readme.write_text("\n".join(files.table_marks("experiments")) + "\n")
  page.update_readme(readme, tmp_path / "results")
  row = readme.read_text()
  assert "3D less 2D: calibration error (ECE) scored by the old rule<br>" in row
  assert "-0.2" not in row
  assert "ROC AUC +0.200 [+0.100, +0.300]" in row
  html = (folder / "index.html").read_text()
  assert "lower calibration error" not in html
  assert html.count("scored by the old rule") == 3  # Answer, column, row.
  assert "higher ROC AUC than 2D" in html
  assert "2 of 9 undefined" in html
  written = json.loads((folder / "results.json").read_text())
  assert written["answers"][0].endswith("scored by the old rule, no answer")
  assert written["lines"] == result["lines"]
  assert "21.43 points, which are 3 of 14 subjects" in html


def test_the_page_of_a_plan_of_ones_own_stays(tmp_path):
  folder = tmp_path / "mine"
  result = old_results(folder)
  (folder / "results.json").write_text(json.dumps(result | {"plan": "mine"}))
  page.render_again(folder)
  assert (folder / "index.html").read_text().startswith("old page")


def test_without_results_the_readme_stays(tmp_path):
  readme = tmp_path / "README.md"
  readme.write_text("old")
  with pytest.raises(UserError, match="the README stays as it is"):
    page.update_readme(readme, tmp_path)
  assert readme.read_text() == "old"


def test_lines_are_ordered_by_value_and_undefined_ones_come_last():
  table = [
    {"line": name, "metrics": {"dice": {"value": value}}}
    for name, value in (("c", float("nan")), ("b", 0.0), ("a", 0.5))
  ]
  table.append({"line": "d", "metrics": {}})
  found = summary.best_first(table, "dice")
  assert [row["line"] for row in found] == ["a", "b", "c"]


def test_thinning_leaves_the_share_and_all_normal_patients():
  rows = [{"patient_id": f"p{i}", "label": int(i < 30)} for i in range(60)]
  kept = measures.thinned(rows, 0.25)
  assert sum(row["label"] for row in kept) == 10
  assert sum(1 - row["label"] for row in kept) == 30
  assert kept == measures.thinned(rows, 0.25)


def test_the_link_is_measured_by_lesion_and_by_vessel(tmp_path, monkeypatch):
  """Two lesions of one artery, of which a low threshold keeps both."""
  ids = {"case_id": "c", "patient_id": "p", "half": "test"}
  scan = link_rows.ScanRow(
    **ids,
    label=1,
    lesions=3,
    probability=0.5,
    log_odds=0.0,
    stenosis=0.2,
    log_plaque=0.0,
  )
  finding = {"mode": "map", "layer": "a", "position_mm": [0.0] * 3}
  found = [
    link_rows.FindingRow(
      **ids, **finding, score=score, outcome="hit", lesions=[k], mm=[1.0]
    )
    for k, score in enumerate((0.9, 0.5))
  ]
  lesions = [
    link_rows.LesionRow(
      **ids,
      lesion=k,
      segment=segment,
      stenosis=0.5,
      plaque="mixed",
      volume_mm3=9.0,
    )
    for k, segment in enumerate(("LAD", "LAD", "RCA"))
  ]

  def evaluate_link(classifier, segmenter, scans, out):
    folder = pathlib.Path(out)
    # Of a cell that was cut off, perhaps with other code.
    assert not (folder / files.Journal.NAME).exists()
    for name, rows in (
      (link_rows.SCANS, [scan]),
      (link_rows.FINDINGS, found),
      (link_rows.LESIONS, lesions),
    ):
      files.write_rows(folder, name, rows)
    reader = {"rates": [0.5, 2.0], "thresholds": [None, 0.4]}
    one = {"layer": "a", "threshold": 0.8, "reader": reader}
    return {"localisation": {"map": one}, "decision": {}}

  monkeypatch.setattr(measures.links, "evaluate_link", evaluate_link)
  (tmp_path / "link").mkdir()
  (tmp_path / "link" / files.Journal.NAME).write_text("{}\n")
  needs = {"classifier": tmp_path, "segmenter": tmp_path}
  trial = measures.Trial(tmp_path, {"scans": tmp_path}, needs, {}, "scans")
  (row,) = measures.linked(trial)["map"]
  assert row["lesions_hit"] == pytest.approx(1 / 3)
  assert row["lesions_hit_at_0.5"] == row["vessels_hit_at_0.5"] == 0
  assert row["lesions_hit_at_2"] == pytest.approx(2 / 3)
  assert row["vessels_hit"] == row["vessels_hit_at_2"] == 0.5
  assert row["false_positives_at_2"] == 0


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--plan=x.py", "--workdir=w"], "x.py: no such file"),
    (["--workdir=w"], "--plan is missing"),
    (["--plan=x.py"], "--workdir is missing"),
    (
      [f"--plan={DIMENSION}", "--scale=tiny", "--workdir=setup.py/w"],
      "cannot be made",
    ),
    (
      [f"--plan={DIMENSION}", "--workdir=w", "--override=monitor=dice"],
      "config.monitor is 'dice'",
    ),
  ],
)
def test_a_wrong_command_gets_one_line(flags, message, tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "cadjax.experiment", *flags],
    capture_output=True,
    text=True,
    timeout=120,
    cwd=ROOT,
  )
  assert done.returncode == 2
  assert message in done.stderr
  assert "Traceback" not in done.stderr
  assert not (ROOT / "w").exists()
