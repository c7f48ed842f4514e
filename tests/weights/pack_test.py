"""Workdirs to files of weights, and what can be done with these."""

import json

import numpy as np
import pytest
from tiny_runs import STEP, segmenter_config, write_workdir

from cadjax import tasks
from cadjax.classification import scan as classification_scan
from cadjax.core import files
from cadjax.evaluation import workdirs
from cadjax.link import decision
from cadjax.training import packed, workdir
from cadjax.weights import pack
from configs import resnet3d
from data_prep import tissues
from data_prep.errors import UserError

CALIBRATION = {
  "step": STEP,
  "temperature": 2.5,
  "temperature_origin": "least negative log likelihood on validation",
  "temperature_fitted": True,
  "threshold": 0.31,
  "threshold_origin": "youden on 14 validation patients",
  "pooling": "none",
}


def interval(value):
  return {
    "value": value, "low": value - 0.1, "high": value + 0.1,
    "method": "bootstrap", "k": None, "n": 14,
  }  # fmt: skip


def evaluate(path, **changes):
  """Writes what an evaluation leaves."""
  (path / "eval").mkdir()
  figures = {
    "task": "classify",
    "split": "test",
    "n_patients": 14,
    "patient": {"roc_auc": interval(0.812), "accuracy": interval(0.7)},
  }
  files.write_json(path / "eval/metrics.json", CALIBRATION | figures | changes)


@pytest.fixture(scope="module")
def workdirs_(tmp_path_factory):
  """A classifier that was evaluated, and a segmenter that was not."""
  folder = tmp_path_factory.mktemp("run")
  classifier = write_workdir(folder / "classifier")
  evaluate(classifier)
  segmenter = write_workdir(folder / "segmenter", config=segmenter_config())
  return {"classifier": classifier, "segmenter": segmenter}


@pytest.fixture(scope="module", params=["classifier", "segmenter"])
def both(request, workdirs_, tmp_path_factory):
  """(workdir, what was written) of either kind."""
  out = tmp_path_factory.mktemp("packed") / "new"
  path = workdirs_[request.param]
  return path, pack.pack(
    path, "one", out, commands=["make weights"], about="Seen on *one* scan."
  )


def answers(model, hu):
  if model.task == "classify":
    return model.logits(hu[None, ..., None])
  return model.segment(hu, probabilities=True).probabilities


def test_a_packed_model_answers_as_its_workdir(both):
  path, written = both
  assert {x.name for x in written.weights.parent.iterdir()} == {
    "one.safetensors",
    "one.md",
  }
  model, loaded = tasks.load_model(path), tasks.load_model(written.weights)
  rng = np.random.default_rng(4)
  hu = rng.integers(-1000, 1000, (24, 16, 20)).astype(np.int16)
  one, other = (answers(x, hu).astype(np.float32) for x in (model, loaded))
  assert np.ptp(one) > 0.01
  np.testing.assert_allclose(one, other, atol=0.02)
  assert not np.array_equal(one, other)
  assert loaded.grid == model.grid
  assert loaded.reference == model.reference
  assert loaded.config.model.to_dict() == model.config.model.to_dict()
  ours, theirs = map(workdir.describe_model, (loaded, model))
  assert ours.workdir == "one"
  assert ours.versions == theirs.versions
  assert ours.trained_on == theirs.trained_on


def test_what_half_precision_changes_is_measured(both, monkeypatch):
  path, written = both
  half = written.description["half"]
  model = tasks.load_model(path)
  differences = [x for x in half.values() if isinstance(x, float)]
  assert 0 < max(differences) < 0.05
  assert half["volume"] == "phantom 0, overt, with CAD"
  exact = packed.flatten(model.variables)
  same = pack.measure_half(model, exact)
  assert max(x for x in same.values() if isinstance(x, float)) == 0


def test_the_card_says_what_the_model_is(both):
  path, written = both
  text = written.card.read_text()
  for words in (
    "# one: a ",
    "Not a medical device",
    "phantoms",
    "It has seen no patient",
    "make weights",
    "Seen on *one* scan.",
    "60 train",
    "0123456789abcdef",
    "## Half precision",
  ):
    assert words in text, words
  assert str(path.parent) not in text
  if path.name == "classifier":
    assert "| ROC AUC | 0.812 [0.712, 0.912] |" in text
    assert "14 patients (phantoms)" in text
    assert "normal or CAD" in text
  else:
    assert "had not been evaluated" in text
    assert "aorta, coronaries" in text


def test_no_path_of_the_machine_is_packed(tmp_path):
  config = segmenter_config()
  config.data.path = "/home/somebody/data/ctca"
  config.init_from = "/home/somebody/before"
  path = write_workdir(tmp_path / "run", config=config)
  there = files.read_json(path / "dataset.json")
  there |= {
    "path": "/home/somebody/data/ctca",
    "source": "asoca",
    "patient_ids": {"train": ["MRN-778899"], "validation": []},
  }
  files.write_json(path / "dataset.json", there)
  workdir.seal(path)
  about = pack.describe(tasks.load_model(path), "one", None)
  text = json.dumps(about)
  assert "somebody" not in text
  assert "MRN-778899" not in text
  assert about["dataset"]["path"] == about["config"]["data"]["path"] == "ctca"


def test_phantoms_keep_their_numbers(workdirs_):
  """Whom an evaluation on other data must not know."""
  path = workdirs_["segmenter"]
  model = tasks.load_model(path)
  model.dataset["patient_ids"] = {"train": ["phantom_1"], "validation": []}
  about = pack.describe(model, "one", None)
  assert about["dataset"]["patient_ids"]["train"] == ["phantom_1"]


def test_the_calibration_is_packed(workdirs_, tmp_path):
  path = workdirs_["classifier"]
  written = pack.pack(path, "one", tmp_path)
  ours, theirs = (
    classification_scan.read_calibration(tasks.load_model(x))
    for x in (written.weights, path)
  )
  assert ours == theirs
  assert (ours.temperature, ours.threshold) == (2.5, 0.31)


def test_without_an_evaluation_a_packed_classifier_says_so(tmp_path):
  path = write_workdir(tmp_path / "classifier")
  written = pack.pack(path, "one", tmp_path)
  found = classification_scan.read_calibration(
    tasks.load_model(written.weights)
  )
  assert found.temperature is None
  assert found.origin.endswith("on this classifier before it was packed")


def test_an_evaluation_of_another_step_is_not_packed(tmp_path):
  path = write_workdir(tmp_path / "classifier")
  evaluate(path, step=STEP - 1)
  with pytest.raises(UserError, match="not of step 7 that is the model"):
    pack.pack(path, "one", tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_files_that_are_there_are_kept(workdirs_, tmp_path):
  path = workdirs_["segmenter"]
  first = pack.pack(path, "one", tmp_path)
  content = first.weights.read_bytes()
  with pytest.raises(UserError, match="--overwrite replaces it"):
    pack.pack(path, "one", tmp_path)
  pack.pack(path, "one", tmp_path, overwrite=True)
  assert first.weights.read_bytes() == content
  with pytest.raises(UserError, match="is packed; a workdir is needed"):
    pack.pack(first.weights, "two", tmp_path)
  with pytest.raises(UserError, match="small letters"):
    pack.pack(path, "../one", tmp_path)


def test_an_evaluation_needs_the_workdir(workdirs_, tmp_path):
  written = pack.pack(workdirs_["segmenter"], "one", tmp_path)
  with pytest.raises(UserError, match="is a file of weights"):
    workdirs.evaluate_workdir(written.weights)


def test_a_decision_of_other_weights_is_told_apart(workdirs_, tmp_path):
  path = workdirs_["classifier"]
  written = pack.pack(path, "one", tmp_path)
  ours, theirs = (
    decision.identify(tasks.load_model(x)) for x in (written.weights, path)
  )
  assert ours["workdir"] == "one"
  assert ours["weights"] != theirs["weights"]


def test_a_classifier_of_the_heart_alone_is_measured_on_a_heart(tmp_path):
  config = resnet3d.get_config().copy_and_resolve_references()
  with config.unlocked():
    config.model.update(depth=10, width=4)
    config.data.prior.use = "heart"
    config.data.prior.margin_voxels = (0, 0, 0)
  path = write_workdir(tmp_path / "heart", config=config)
  model = tasks.load_model(path, prior=True)
  seen = []
  logits = type(model).logits

  def remember(self, image, prior=None):
    seen.append(prior)
    return logits(self, image, prior)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(type(model), "logits", remember)
    half = pack.measure_half(model, packed.halve(model.variables))
  assert np.isin(seen[0], tissues.HEART).mean() > 0.02
  assert 0 < half["log_odds"] < 0.2
