"""The combination of a classifier with a segmentation: fitted, kept, read."""

import dataclasses
import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from cadjax import tasks
from cadjax.data import classes
from cadjax.link import decision, join
from data_prep import geometry, phantom
from data_prep.errors import UserError

NAMES = ("log_odds", "log_plaque")


def rows(count=80, seed=0):
  rng = np.random.default_rng(seed)
  return [
    {
      "patient_id": f"p{i // 2}",
      "label": i % 2,
      "log_odds": 3 * rng.normal() + i % 2,
      "log_plaque": 20 + rng.normal() + 2 * (i % 2),
    }
    for i in range(count)
  ]


def test_the_fit_is_sklearns_in_the_units_of_the_features():
  given = rows()
  fitted = decision.fit(given, NAMES)
  x = np.array([[row[name] for name in NAMES] for row in given])
  labels = [row["label"] for row in given]
  scaler = StandardScaler().fit(x)
  model = LogisticRegression().fit(scaler.transform(x), labels)
  np.testing.assert_allclose(
    [fitted.probability(row) for row in given],
    model.predict_proba(scaler.transform(x))[:, 1],
    rtol=1e-9,
  )
  assert fitted.n_patients == 40
  assert set(fitted.coefficients) == set(NAMES)


def test_the_threshold_parts_the_scans_of_the_fit():
  given = [row | {"log_odds": 9.0 * row["label"]} for row in rows()]
  fitted = decision.fit(given, NAMES)
  calls = [fitted.decide(row).label for row in given]
  assert calls == [("normal", "cad")[row["label"]] for row in given]
  assert "80 validation scans" in fitted.threshold_origin


def test_the_decision_of_a_scan():
  one = decision.Decision({"log_odds": 2.0, "stenosis": -1.0}, 0.5, 0.7, "", 9)
  found = one.decide({"log_odds": 0.25, "stenosis": 1.0, "log_plaque": 3.0})
  assert found.probability == 0.5
  assert found.label == "normal"
  assert found.features == {"log_odds": 0.25, "stenosis": 1.0}
  assert found.to_dict()["n_patients"] == 9


@pytest.mark.parametrize("task", ["four", "aorta_coronaries"])
def test_the_features_of_a_phantom(task):
  grid = geometry.GridSpec("heart", shape=(64,) * 3, box_mm=(128.0,) * 3)
  drawn = phantom.make_phantom(5, label=1, severity="overt", grid=grid)
  labels = classes.map_mask(drawn.mask, task)
  structures = join.find_structures(
    drawn.volume, labels, classes.get_class_set(task).names
  )
  found = decision.features(structures, 0.8)
  assert found["log_odds"] == pytest.approx(np.log(4))
  assert 0 <= found["stenosis"] <= 1
  if task == "four":
    assert found["log_plaque"] == pytest.approx(
      np.log1p((drawn.mask >= 3).sum() * 8.0)
    )
  else:
    assert "log_plaque" not in found


@pytest.fixture(scope="module")
def models(tiny_workdir, tiny_segmenter):
  return tasks.load_model(tiny_workdir), tasks.load_model(tiny_segmenter)


def write(path, models, **changes):
  fitted = decision.fit(rows(), NAMES)
  document = {
    "models": {
      "classifier": decision.identify(models[0]),
      "segmenter": decision.identify(models[1]),
    },
    "decision": {"both": dataclasses.asdict(fitted) | changes},
  }
  path.write_text(json.dumps(document))
  return fitted


def test_a_file_gives_the_fit_back(models, tmp_path):
  path = tmp_path / "link.json"
  # What was measured beside it does no harm.
  fitted = write(path, models, roc_auc={"value": 0.9})
  assert decision.read(path, *models) == fitted


def test_another_model_is_refused(models, tmp_path):
  path = tmp_path / "link.json"
  write(path, models)
  classifier, segmenter = models
  other = dataclasses.replace(
    segmenter, variables={"params": {"w": np.ones(3)}}
  )
  with pytest.raises(UserError, match="fitted with another segmenter than"):
    decision.read(path, classifier, other)
  with pytest.raises(UserError, match="fitted with another classifier than"):
    decision.read(path, other, segmenter)


@pytest.mark.parametrize(
  "changes",
  [
    {"coefficients": [1, 2]},
    {"coefficients": {"age": 1.0}},
    {"coefficients": {"log_odds": None}},
    {"intercept": float("nan")},
    {"threshold": "half"},
  ],
)
def test_a_file_of_something_else_is_told(models, tmp_path, changes):
  path = tmp_path / "link.json"
  write(path, models, **changes)
  with pytest.raises(UserError, match="not what cadjax.evaluate_link writes"):
    decision.read(path, *models)


def test_no_file_is_told(models, tmp_path):
  with pytest.raises(UserError, match="no such file"):
    decision.read(tmp_path / "absent.json", *models)
  path = tmp_path / "link.json"
  for text in ("[]", "{}", '{"models": {}, "decision": {}}'):
    path.write_text(text)
    with pytest.raises(UserError, match="not what cadjax.evaluate_link"):
      decision.read(path, *models)
