"""What cadjax 0.1.0 wrote still loads: records, workdirs and reports.

before/run_0.1.0.tar.xz was made by commit a3b4eb1, the last one before the
move to rooms: 16 phantoms on 16x24x32 voxels, a classifier (`resnet3d`, depth
10, width 2) and a segmenter (`unet3d`, features 2 and 4) trained on them for
one epoch and evaluated, and the result.json of a linked report.
"""

import json
import pathlib
import shutil
import tarfile

import ml_collections
import pytest

from cadjax import tasks
from cadjax.core import files
from cadjax.evaluation.workdirs import evaluate_workdir
from cadjax.experiment import page, plan, run
from cadjax.report import classified
from cadjax.training import workdir
from data_prep import phantom
from data_prep.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("before")
  archive = pathlib.Path(__file__).parent / "before" / "run_0.1.0.tar.xz"
  with tarfile.open(archive) as stored:
    stored.extractall(folder, filter="data")
  return folder


def means(table):
  """The numbers of a table of intervals, which may be nested by class."""
  if "value" in table:
    return table["value"]
  return {name: means(entry) for name, entry in table.items()}


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_a_workdir_is_evaluated_as_it_was(before, kind):
  stored = files.read_json(before / kind / "eval" / "metrics.json")
  result = evaluate_workdir(before / kind, bootstrap=100)
  assert result["step"] == stored["step"]
  assert result["data"]["fingerprint"] == stored["data"]["fingerprint"]
  assert not result["data"]["external"]
  found, expected = means(result["patient"]), means(stored["patient"])
  if kind == "classifier":
    # It is no longer measured; what took its place was not measured then.
    del expected["ece"]
    found, expected = (
      {"all": {name: found[name] for name in expected}},
      {"all": expected},
    )
  assert found.keys() == expected.keys()
  for name, values in expected.items():
    # The tests compile with other passes, which round differently.
    assert found[name] == pytest.approx(values, abs=2e-3), name


def test_a_finished_training_is_resumed_where_it_ended(before, tmp_path):
  path = tmp_path / "classifier"
  shutil.copytree(before / "classifier", path)
  config = ml_collections.ConfigDict(files.read_json(path / "config.json"))
  config.data.path = str(before / "data")
  stored = files.read_json(path / "finished.json")
  state = tasks.train_and_evaluate(config, path)
  assert int(state.step) == stored["step"]
  assert files.read_json(path / "finished.json") == stored
  assert workdir.is_finished(path)


def test_a_report_is_replaced_and_not_mistaken_for_files_of_a_user(
  before, tmp_path
):
  document = json.loads((before / "case" / "result.json").read_text())
  folder = tmp_path / "case"
  folder.mkdir()
  for name in document["files"].values():
    (folder / name).write_text("")
  (folder / "result.json").write_text(json.dumps(document))
  with pytest.raises(UserError, match="--overwrite replaces it"):
    classified.KIND.check_free(folder, overwrite=False)
  classified.KIND.check_free(folder, overwrite=True)


def test_results_of_experiments_are_read(tmp_path):
  results = tmp_path / "results"
  shutil.copytree(ROOT / "configs" / "experiments" / "results", results)
  readme = tmp_path / "README.md"
  begin, end = files.table_marks("experiments")
  readme.write_text(f"{begin}\n{end}\n")
  count = page.update_readme(readme, results)
  assert count == len(list(results.glob("*/results.json")))
  assert len(readme.read_text().splitlines()) == count + 4


@pytest.mark.parametrize(
  ("name", "cell", "digest"),
  [
    ("dimension", "3d/fold0_seed0", "977d79ce"),
    ("link", "link/seed0", "65495327"),
    ("ablation", "no_pretraining/fold0_seed0", "fbeff1b7"),
  ],
)
def test_cells_of_experiments_are_those_of_the_same_plan(
  name, cell, digest, monkeypatch
):
  """Else finished experiments would be refused; digests as 0.1.0 made them.

  On phantoms of another edition it is another cell.
  """
  file = ROOT / "configs" / "experiments" / f"{name}.py"
  made = plan.load_plan(str(file), "small")
  (found,) = (one for one in made.cells() if one.name == cell)
  assert run.digest(made, found) != digest
  monkeypatch.setattr(phantom, "EDITION", 1)
  assert run.digest(made, found) == digest
