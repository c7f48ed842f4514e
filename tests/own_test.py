"""The recipe of `configs/own.py`, from a folder of scans to their scores."""

import json
import pathlib

import pytest
from tiny_runs import predict_all

from cadjax import tasks
from cadjax.classification.classifier import load_classifier
from cadjax.data import jobs
from cadjax.evaluation.workdirs import evaluate_workdir
from cadjax.report import classified
from cadjax.training import workdir
from configs import demo, own
from data_prep import build, check, export, manifests, sources, splits
from data_prep.ctca.ctca_dataset_builder import CtcaConfig, config_name
from data_prep.errors import UserError
from data_prep.geometry import GridSpec

CASES = 12
GRID = GridSpec(kind="heart", shape=(16, 24, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  """Phantoms as a user keeps scans: masks beside them and no table."""
  out = tmp_path_factory.mktemp("own") / "scans"
  cases = sources.phantom(CASES, seed=3)
  export.export(cases, out, severity="overt", spacing_mm=3.0)
  (out / "manifest.csv").unlink()
  for case in cases:
    label = out / splits.label_name(case.label)
    label.mkdir(exist_ok=True)
    for path in out.glob(f"{case.case_id}*"):
      path.rename(label / path.name)
  return out


@pytest.fixture(scope="module")
def data(folder) -> pathlib.Path:
  manifests.write_new(folder)
  config = CtcaConfig(
    name=config_name("manifest", GRID),
    source="manifest",
    input=str(folder),
    grid=GRID,
    has_mask=True,
    workers=1,
  )
  out = folder.parent / "data"
  build.build(config, out)
  return out


def small(data):
  """`configs/own.py`, made small in what costs time alone."""
  config = own.get_config()
  config.data.path = str(data)
  config.model.width = 4
  config.epochs = 2
  return config


@pytest.fixture(scope="module")
def trained(data) -> pathlib.Path:
  path = data.parent / "classifier"
  tasks.train_and_evaluate(small(data), path)
  return path


def test_all_scans_are_usable(folder, data):
  cases = sources.find_cases("manifest", folder)
  reports = check.check(cases, num_workers=1)
  assert [report["usable"] for report in reports] == [True] * CASES
  assert [report["label"] for report in reports] == [0, 1] * (CASES // 2)
  assert all("lumen" in report["mask"] for report in reports)


def test_a_dozen_scans_are_trained_on_evaluated_and_scored(folder, trained):
  assert workdir.is_finished(trained)
  result = evaluate_workdir(trained, bootstrap=100)
  assert result["n_patients"] == 2
  loaded = load_classifier(trained)
  assert loaded.dataset["cases"] == {"train": 8, "validation": 2, "test": 2}
  out = trained.parent / "scored"
  # The masks lie among the scans that the wildcard matches.
  todo = jobs.make_jobs([str(folder / "cad" / "*.nii.gz")], out)
  assert len(todo) == CASES // 2
  assert predict_all(loaded, todo[:1]) == 0
  (found,) = out.rglob(classified.FILES["result"])
  assert 0 < json.loads(found.read_text())["prediction"]["probability"] < 1


def test_a_mask_is_refused_with_the_cure(folder, trained, capsys):
  mask = next(folder.rglob("*_mask.nii.gz"))
  todo = jobs.make_jobs([str(mask)], trained.parent / "refused")
  loaded = load_classifier(trained)
  assert predict_all(loaded, todo) == 1
  (error,) = (
    line
    for line in capsys.readouterr().err.splitlines()
    if line.startswith("error:")
  )
  assert f"{mask}: holds" in error
  assert "give the scan that it belongs to" in error
  assert not (trained.parent / "refused").exists()


def test_the_network_is_that_of_the_demo():
  """So that `--config.init_from=demo/classifier` takes all of its arrays."""
  assert own.get_config().model == demo.get_config().model


def test_fewer_cases_than_a_batch_name_the_field(data, tmp_path):
  config = small(data)
  config.data.batch_size = 9
  with pytest.raises(UserError, match="8 training cases do not fill a batch"):
    tasks.train_and_evaluate(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()
