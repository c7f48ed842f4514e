"""The localisation table and the combined decision."""

import csv
import dataclasses
import json
import types

import numpy as np
import pytest

from cadjax.core import files
from cadjax.data import classes
from cadjax.evaluation import links
from cadjax.link import join
from data_prep import export, geometry, phantom, sources
from data_prep.errors import UserError

# Modes and the layers that each is scored on.
SCORED = [
  *(
    (mode, layer)
    for mode in ("map", "vessel_map", "combined")
    for layer in ("coarse", "fine")
  ),
  ("plaque", None),
]


def row(name: str, half: str, label: int, **values) -> links.ScanRow:
  known = {"lesions": label, "probability": 0.5, "stenosis": 0.2}
  known |= {"log_odds": 0.0, "log_plaque": 0.0}
  return links.ScanRow(
    case_id=name, patient_id=name, half=half, label=label, **known | values
  )


def localised(scan: links.ScanRow, **counts) -> list[links.LocalisationRow]:
  """Rows of a scan; `counts` are {MODE_LAYER: (hits, false positives)}."""
  ids = ("case_id", "patient_id", "half", "label", "lesions")
  rows = []
  for mode, layer in SCORED:
    hits, false = counts.get(f"{mode}_{layer}", (0, 0))
    rows.append(
      links.LocalisationRow(
        **{key: getattr(scan, key) for key in ids},
        mode=mode,
        layer=layer,
        hits=hits,
        false_positives=false,
      )
    )
  return rows


def lesion(scan: links.ScanRow, **hits) -> list[links.LesionRow]:
  """Rows of the one lesion of a scan; `hits` are {MODE_LAYER: 0 or 1}."""
  return [
    links.LesionRow(
      case_id=scan.case_id,
      patient_id=scan.patient_id,
      half=scan.half,
      lesion=0,
      segment="LAD",
      stenosis=0.6,
      plaque="stable",
      volume_mm3=20.0,
      mode=mode,
      layer=layer,
      hit=hits.get(f"{mode}_{layer}", 0),
    )
    for mode, layer in SCORED
  ]


def many(rng, count: int):
  """Rows whose label the plaque predicts and the classifier does not."""
  scans, localisation, lesions = [], [], []
  for i in range(count):
    half, label = ("fit", "test")[i % 2], int(i % 4 > 1)
    scan = row(
      f"p{i}",
      half,
      label,
      log_odds=rng.normal(),
      log_plaque=3.0 * label + rng.normal(),
    )
    scans.append(scan)
    localisation += localised(
      scan, map_fine=(label, 0), map_coarse=(0, 2), plaque_None=(0, 1 - label)
    )
    if label:
      lesions += lesion(
        scan, map_fine=i // 4 % 2, combined_fine=1, combined_coarse=1
      )
  return scans, localisation, lesions


def written(*rows):
  """What link.json holds of the rows, and what `evaluate_link` adds."""
  result = links.summarise(*rows)
  about = {"disclaimer": "Research only.", "findings_per_scan": 5}
  return files.strict(result | about)


def test_the_layer_is_chosen_on_the_other_half():
  scans, localisation, lesions = many(np.random.default_rng(0), 60)
  localisation = [
    # What would mislead is in the test half, which is not looked at.
    dataclasses.replace(one, hits=50)
    if (one.half, one.mode, one.layer) == ("test", "map", "coarse")
    else one
    for one in localisation
  ]
  result = links.summarise(scans, localisation, lesions)
  assert result["localisation"]["map"]["layer"] == "fine"
  assert result["localisation"]["plaque"]["layer"] is None


def test_of_equally_good_layers_the_first_is_chosen():
  scans, _, _ = many(np.random.default_rng(0), 60)
  rows = [one for scan in scans for one in localised(scan)]
  best = links.best_layers(rows)
  assert best == dict.fromkeys(("map", "vessel_map", "combined"), "coarse") | {
    "plaque": None
  }
  # In the order of the table.
  assert list(best) == list(links.MODES)


def test_a_false_positive_costs_a_layer_what_a_hit_gains_it():
  scans, _, _ = many(np.random.default_rng(0), 8)
  counts = {"map_coarse": (3, 3), "map_fine": (1, 0)}
  rows = [one for scan in scans for one in localised(scan, **counts)]
  assert links.best_layers(rows)["map"] == "fine"


def test_the_table_counts_the_test_half_alone():
  scans, localisation, lesions = many(np.random.default_rng(0), 60)
  result = links.summarise(scans, localisation, lesions)
  hits = [
    one.hit
    for one in lesions
    if (one.half, one.mode, one.layer) == ("test", "map", "fine")
  ]
  found = result["localisation"]
  assert result["n_lesions"] == len(hits) == 15
  assert result["n_scans"] == {"fit": 30, "test": 30}
  assert found["map"]["hit"].value == pytest.approx(np.mean(hits))
  assert found["map"]["hits"] == sum(hits)
  more = found["map"]["combined_minus_this"]
  assert more.value == pytest.approx(1 - np.mean(hits))
  assert more.low > 0
  normal = [one for one in scans if one.half == "test" and not one.label]
  assert found["plaque"]["false_positives_normal"].value == 1
  assert found["plaque"]["false_positives_normal"].n == len(normal)


def test_numbers_are_those_of_the_rows_with_composite_keys():
  """They were computed before rows had a mode and a layer each."""
  scans, localisation, lesions = many(np.random.default_rng(0), 60)
  found = written(scans, localisation, lesions)
  by_map, plaque = (found["localisation"][x] for x in ("map", "plaque"))
  both = found["decision"]["both"]
  for entry, expected in (
    (by_map["hit"], (0.4666666666666667, 0.2, 0.7333333333333333)),
    (by_map["combined_minus_this"], (0.5333333333333333, 4 / 15, 0.8)),
    (plaque["false_positives"], (0.5, 1 / 3, 2 / 3)),
    (both["brier"], (0.036242393585878545, 0.017712540681, 0.05835345399)),
    (both["roc_auc"], (1.0, 0.8647582056201167, 1.0)),
  ):
    values = [entry[key] for key in ("value", "low", "high")]
    assert values == pytest.approx(expected, rel=1e-9)
  assert both["coefficients"]["log_plaque"] == pytest.approx(
    1.19578677, rel=1e-6
  )
  over = both["over_classifier"]["roc_auc"]
  assert list(over) == ["difference", "low", "high"]
  assert over["difference"] == pytest.approx(0.5111111111111111)


def test_the_decision_uses_what_predicts():
  rows = many(np.random.default_rng(1), 200)
  found = links.summarise(*rows)["decision"]
  assert found["segmentation"]["roc_auc"].value > 0.9
  assert found["classifier"]["roc_auc"].value < 0.7
  assert found["both"]["over_classifier"]["roc_auc"].low > 0
  weights = found["both"]["coefficients"]
  assert weights["log_plaque"] > 5 * abs(weights["log_odds"])
  text = links.table(written(*rows))
  assert "(d) all together" in text
  assert text.endswith("Research only.")


def test_a_segmenter_without_plaque_is_measured_without_that_mode():
  scans, localisation, lesions = many(np.random.default_rng(1), 60)
  result = written(
    [dataclasses.replace(one, log_plaque=None) for one in scans],
    [one for one in localisation if one.mode != "plaque"],
    [one for one in lesions if one.mode != "plaque"],
  )
  assert set(result["localisation"]) == {"map", "vessel_map", "combined"}
  assert set(result["decision"]["both"]["coefficients"]) == {
    "log_odds",
    "stenosis",
  }
  assert "(c) the plaque segmentation is left out" in links.table(result)


@pytest.mark.parametrize("plaque", [1.5, None])
def test_rows_are_read_as_they_were_written(tmp_path, plaque):
  scans, localisation, lesions = many(np.random.default_rng(1), 8)
  scans = [dataclasses.replace(one, log_plaque=plaque) for one in scans]
  for name, rows in (
    (links.SCANS, scans),
    (links.LOCALISATION, localisation),
    (links.LESIONS, lesions),
  ):
    files.write_rows(tmp_path, name, rows)
    path = tmp_path / f"{name}.jsonl"
    assert files.read_rows_as(path, type(rows[0])) == rows
    with path.with_suffix(".csv").open(newline="") as f:
      assert len(list(csv.DictReader(f))) == len(rows)
  with pytest.raises(UserError, match="run it again"):
    files.read_rows_as(tmp_path / "scans.jsonl", links.LesionRow)


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

  prediction = types.SimpleNamespace(
    probability=0.8, uncalibrated_probability=0.7
  )
  result = types.SimpleNamespace(
    linked=linked, classified=types.SimpleNamespace(prediction=prediction)
  )
  monkeypatch.setattr(links.scans_lib, "read_scan", lambda path: path)
  monkeypatch.setattr(links, "link_scan", lambda pair, scan: result)
  scored, localisation, lesions = links.score_case(None, case, half="fit")
  by_mode = {one.mode: one for one in localisation}
  assert set(by_mode) == set(links.MODES)
  assert {one.half for one in (scored, *localisation, *lesions)} == {"fit"}
  assert len(lesions) == len(drawn.lesions) * len(links.MODES)
  assert scored.lesions == len(drawn.lesions)
  assert (by_mode["map"].layer, by_mode["plaque"].layer) == ("a", None)
  assert by_mode["map"].hits == 1
  assert by_mode["map"].false_positives == 0
  for mode, one in by_mode.items():
    assert one.hits == sum(x.hit for x in lesions if x.mode == mode)
  assert next(x for x in lesions if x.mode == "map").lesion == 0
  assert next(x for x in lesions if x.mode == "map").hit == 1
  assert by_mode["plaque"].hits >= min(scored.lesions, 5) - 1
  assert scored.log_odds == pytest.approx(np.log(0.7 / 0.3))
  # Without plaque among the classes.
  coarse = classes.get_class_set("aorta_coronaries")
  result.linked = dataclasses.replace(
    linked,
    structures=join.find_structures(
      drawn.volume, coarse.table[drawn.mask], coarse.names
    ),
  )
  scored, localisation, _ = links.score_case(None, case, half="fit", most=1)
  assert scored.log_plaque is None
  by_mode = {one.mode: one for one in localisation}
  assert "plaque" not in by_mode
  assert by_mode["combined"].hits + by_mode["combined"].false_positives <= 1


def test_scans_that_cannot_be_used_are_refused(scans, tmp_path):
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


def test_an_out_that_cannot_be_made_is_refused(scans, tmp_path, monkeypatch):
  monkeypatch.setattr(links, "load_pair", lambda *_: None)
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="--out=.*cannot be made"):
    links.evaluate_link("c", "s", str(scans), tmp_path / "file" / "a")
  with pytest.raises(UserError, match="--most=0"):
    links.evaluate_link("c", "s", str(scans), tmp_path, most=0)
