"""The localisation table and the combined decision."""

import dataclasses
import json

import numpy as np
import pytest

from cadjax import evaluate_link
from cadjax.data import classes
from cadjax.evaluation import links
from cadjax.link import join
from data_prep import export, geometry, phantom, sources
from data_prep.errors import UserError

KEYS = [
  *(
    f"{mode}@{layer}"
    for mode in ("map", "vessel_map", "combined")
    for layer in ("coarse", "fine")
  ),
  "plaque",
]


def row(name: str, half: str, label: int, **values):
  given = {f"{kind}:{key}": 0 for kind in ("hits", "false") for key in KEYS}
  odds = {"log_odds": 0.0, "log_plaque": 0.0, "stenosis": 0.0}
  ids = {"case_id": name, "patient_id": name, "half": half, "label": label}
  return given | odds | ids | values


def lesion(name: str, half: str, **hits):
  given = {f"hit:{key}": 0 for key in KEYS}
  return given | {"case_id": name, "patient_id": name, "half": half} | hits


def many(rng, count: int):
  """Rows whose label the plaque tells and the classifier does not."""
  rows, lesions = [], []
  for i in range(count):
    half, label = ("fit", "test")[i % 2], int(i % 4 > 1)
    name = f"p{i}"
    rows.append(
      row(
        name,
        half,
        label,
        log_odds=rng.normal(),
        log_plaque=3.0 * label + rng.normal(),
        stenosis=0.2,
        **{"hits:map@fine": label, "false:map@coarse": 2},
        **{"false:plaque": 1 - label},
      )
    )
    if label:
      lesions.append(
        lesion(
          name,
          half,
          **{"hit:map@fine": i // 4 % 2, "hit:combined@fine": 1},
          **{"hit:combined@coarse": 1},
        )
      )
  return rows, lesions


def test_the_layer_is_chosen_on_the_other_half():
  rows, lesions = many(np.random.default_rng(0), 60)
  for one in rows:
    if one["half"] == "test":  # What would mislead is not looked at.
      one["hits:map@coarse"] = 50
  result = links.summarise(rows, lesions)
  assert result["localisation"]["map"]["layer"] == "fine"


def test_the_table_counts_the_test_half_alone():
  rows, lesions = many(np.random.default_rng(0), 60)
  result = links.summarise(rows, lesions)
  test = [one for one in lesions if one["half"] == "test"]
  found = result["localisation"]
  assert result["n_lesions"] == len(test)
  assert result["n_scans"] == {"fit": 30, "test": 30}
  share = np.mean([one["hit:map@fine"] for one in test])
  assert found["map"]["hit"]["value"] == pytest.approx(share)
  assert found["map"]["hits"] == sum(one["hit:map@fine"] for one in test)
  more = found["map"]["combined_minus_this"]
  assert more["value"] == pytest.approx(1 - share)
  assert more["low"] > 0
  normal = [r for r in rows if r["half"] == "test" and not r["label"]]
  assert found["plaque"]["false_positives_normal"]["value"] == 1
  assert found["plaque"]["false_positives_normal"]["n"] == len(normal)


def test_the_decision_uses_what_tells():
  rows, lesions = many(np.random.default_rng(1), 200)
  told = links.summarise(rows, lesions)["decision"]
  assert told["segmentation"]["roc_auc"]["value"] > 0.9
  assert told["classifier"]["roc_auc"]["value"] < 0.7
  assert told["both"]["over_classifier"]["roc_auc"]["low"] > 0
  weights = told["both"]["coefficients"]
  assert weights["log_plaque"] > 5 * abs(weights["log_odds"])
  about = {"disclaimer": "Research only.", "findings_per_scan": 5}
  text = links.table(links.summarise(rows, lesions) | about)
  assert "(d) all together" in text
  assert text.endswith("Research only.")


def test_a_segmenter_without_plaque_is_measured_without_that_mode():
  rows, lesions = many(np.random.default_rng(1), 60)
  for one in rows:
    del one["log_plaque"], one["hits:plaque"], one["false:plaque"]
  for one in lesions:
    del one["hit:plaque"]
  result = links.summarise(rows, lesions)
  assert set(result["localisation"]) == {"map", "vessel_map", "combined"}
  assert set(result["decision"]["both"]["coefficients"]) == {
    "log_odds",
    "stenosis",
  }
  text = links.table(
    result | {"disclaimer": "Research only.", "findings_per_scan": 5}
  )
  assert "(c) the plaque segmentation is left out" in text


def test_halves_hold_half_of_each_class():
  cases = sources.phantom(20)
  halves = links.split(cases, seed=0)
  for label in (0, 1):
    found = [halves[c.case_id] for c in cases if c.label == label]
    assert found.count("fit") == found.count("test") == 5
  assert halves == links.split(cases, seed=0)
  assert halves != links.split(cases, seed=1)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
  """Coarse scans with true lesions."""
  folder = tmp_path_factory.mktemp("link") / "scans"
  cases = sources.phantom(8, seed=4)
  export.export(cases, folder, severity="overt", spacing_mm=6.0)
  return folder


def test_a_scan_is_scored_against_its_lesions(scans, monkeypatch):
  """With the true mask and a map at one lesion, all modes find something."""
  case = next(c for c in links.read_scans(scans) if c.label)
  grid = geometry.GridSpec("heart", shape=(80,) * 3, box_mm=(128.0,) * 3)
  seed = int(case.case_id.split("_")[1])
  drawn = phantom.make_phantom(seed, label=1, severity="overt", grid=grid)
  structures = join.find_structures(
    drawn.volume,
    drawn.mask,
    ("background", "aorta", "lumen", "stable_plaque", "unstable_plaque"),
  )
  index = np.moveaxis(np.indices(drawn.volume.shape), 0, -1)
  away = np.linalg.norm(
    drawn.volume.grid.to_mm(index) - drawn.lesions[0]["position_mm"], axis=-1
  )
  heat = np.clip(1 - away / 10, 0, 1).astype(np.float32)
  linked = join.join(
    structures,
    {"a": heat},
    drawn.volume.grid,
    layer="a",
    probability=0.8,
    threshold=0.5,
  )

  @dataclasses.dataclass
  class Case:
    prediction: dict

  @dataclasses.dataclass
  class Result:
    linked: join.Linked
    case: Case

  prediction = {"probability": 0.8, "uncalibrated_probability": 0.7}
  monkeypatch.setattr(
    evaluate_link,
    "predict_pair",
    lambda pair, path: Result(linked, Case(prediction)),
  )
  scored, lesions = links.score_case(None, case)
  assert scored["lesions"] == len(lesions) == len(drawn.lesions)
  assert scored["hits:map@a"] == 1
  assert scored["false:map@a"] == 0
  assert lesions[0]["hit:map@a"] == 1
  assert scored["hits:plaque"] >= min(len(lesions), 5) - 1
  assert scored["log_odds"] == pytest.approx(np.log(0.7 / 0.3))
  # Without plaque among the classes.
  coarse = classes.get_class_set("aorta_coronaries")
  linked = dataclasses.replace(
    linked,
    structures=join.find_structures(
      drawn.volume, coarse.table[drawn.mask], coarse.names
    ),
  )
  scored, _ = links.score_case(None, case, most=1)
  assert "hits:plaque" not in scored
  assert scored["hits:combined@a"] + scored["false:combined@a"] <= 1


def test_scans_that_cannot_be_used_are_told(scans, tmp_path):
  with pytest.raises(UserError, match="manifest"):
    links.read_scans(str(tmp_path))
  cases = links.read_scans(str(scans))
  path = links.lesion_file(cases[0])
  hidden = path.rename(tmp_path / "hidden.json")
  try:
    with pytest.raises(UserError, match="lesions of every scan"):
      links.read_scans(str(scans))
  finally:
    hidden.rename(path)
  manifest = scans / "manifest.csv"
  table = manifest.read_text()
  one, two = (cases[i].patient_id for i in (0, 1))
  manifest.write_text(table.replace(f",{two},", f",{one},"))
  with pytest.raises(UserError, match=f"patient {one} has 2 scans"):
    links.read_scans(str(scans))
  manifest.write_text(table)
  text = path.read_text()
  assert json.loads(text)["label"] == cases[0].label
  for broken in ("{", "[]", '{"lesions": [{}]}', '{"lesions": 3}'):
    path.write_text(broken)
    with pytest.raises(UserError, match=path.name):
      links.read_scans(str(scans))
  path.write_text(text)


def test_an_out_that_cannot_be_made_is_told(scans, tmp_path, monkeypatch):
  monkeypatch.setattr(evaluate_link, "load_pair", lambda *_: None)
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="--out=.*cannot be made"):
    links.evaluate_link("c", "s", str(scans), tmp_path / "file" / "a")
  with pytest.raises(UserError, match="--most=0"):
    links.evaluate_link("c", "s", str(scans), tmp_path, most=0)
