"""The localisation table and the combined decision."""

import csv
import dataclasses
import json
import types

import numpy as np
import pytest

from cadjax.core import files
from cadjax.data import classes
from cadjax.evaluation import lesions as lesions_lib
from cadjax.evaluation import link_rows, link_scores, link_table, links
from cadjax.link import join
from cadjax.metrics import detection
from cadjax.report import curves
from data_prep import export, geometry, phantom, sources
from data_prep.errors import UserError

# Modes and the layers that each is scored on.
SCORED = [
  ("chance", None),
  *(
    (mode, layer)
    for layer in ("coarse", "fine")
    for mode in ("map", "vessel_map", "combined")
  ),
  ("plaque", None),
]


def row(name: str, half: str, label: int, **values) -> link_rows.ScanRow:
  known = {"lesions": label, "probability": 0.5, "stenosis": 0.2}
  known |= {"log_odds": 0.0, "log_plaque": 0.0}
  return link_rows.ScanRow(
    case_id=name, patient_id=name, half=half, label=label, **known | values
  )


def finding(scan, mode, layer, score, outcome, lesions=()):
  return link_rows.FindingRow(
    case_id=scan.case_id,
    patient_id=scan.patient_id,
    half=scan.half,
    mode=mode,
    layer=layer,
    position_mm=[0.0, 0.0, 0.0],
    score=score,
    outcome=outcome,
    lesions=list(lesions),
    mm=[1.0] * len(lesions),
  )


def lesion(scan: link_rows.ScanRow) -> link_rows.LesionRow:
  return link_rows.LesionRow(
    case_id=scan.case_id,
    patient_id=scan.patient_id,
    half=scan.half,
    lesion=0,
    segment="LAD",
    stenosis=0.6,
    plaque="calcified",
    volume_mm3=20.0,
  )


def many(rng, count: int):
  """Rows whose label the plaque predicts and the classifier does not.

  The fine map hits every other lesion, the coarse one none; the plaque has
  one false positive in each normal scan, and "combined" all hits.
  """
  scans, lesions = [], []
  found = {key: [] for key in SCORED}
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
    hit = finding(scan, "map", "fine", 0.8, detection.HIT, [0])
    wrong = finding(scan, "map", "coarse", 0.9, detection.FALSE)
    found["map", "coarse"] += [wrong, wrong]
    if label:
      lesions.append(lesion(scan))
      if i // 4 % 2:
        found["map", "fine"].append(hit)
      for layer in ("coarse", "fine"):
        found["combined", layer].append(
          dataclasses.replace(hit, mode="combined", layer=layer)
        )
    else:
      found["plaque", None].append(
        dataclasses.replace(wrong, mode="plaque", layer=None)
      )
  return scans, found, lesions


def written(*rows):
  """What link.json holds of the rows, and what `evaluate_link` adds."""
  result = link_scores.summarise(*rows)
  return files.strict(result | {"disclaimer": "Research only."})


def test_the_layer_is_chosen_on_the_other_half():
  scans, found, lesions = many(np.random.default_rng(0), 60)
  # What would mislead is in the test half, which is not looked at.
  found["map", "coarse"] = [
    dataclasses.replace(one, outcome=detection.HIT, lesions=[0], mm=[1.0])
    if one.half == "test" and one.case_id in {x.case_id for x in lesions}
    else one
    for one in found["map", "coarse"]
  ]
  result = link_scores.summarise(scans, found, lesions)
  assert result["localisation"]["map"]["layer"] == "fine"
  assert result["localisation"]["plaque"]["layer"] is None


def test_of_equally_good_layers_the_first_is_chosen():
  scans, found, _ = many(np.random.default_rng(0), 60)
  best = link_scores.best_layers(scans, {key: [] for key in found})
  assert best == dict.fromkeys(("map", "vessel_map", "combined"), "coarse") | {
    "chance": None,
    "plaque": None,
  }
  # In the order of the table.
  assert list(best) == list(link_rows.MODES)


def test_the_table_counts_the_test_half_alone():
  scans, found, lesions = many(np.random.default_rng(0), 60)
  result = link_scores.summarise(scans, found, lesions)
  table = result["localisation"]
  assert result["n_lesions"] == 15
  assert result["n_scans"] == {"fit": 30, "test": 30}
  hit = [one for one in found["map", "fine"] if one.half == "test"]
  share = len(hit) / 15
  assert table["map"]["hit"].value == pytest.approx(share)
  assert table["map"]["hits"] == len(hit)
  assert table["map"]["froc"]["mean"].value == pytest.approx(share)
  more = table["map"]["combined_minus_this"]
  assert more.difference == pytest.approx(1 - share)
  assert more.low > 0
  assert table["plaque"]["false_positives_normal"].value == 1
  assert table["plaque"]["false_positives_normal"].n == 15
  assert table["vessel_map"]["threshold"] == np.inf
  assert table["vessel_map"]["hit"].value == 0


def test_what_a_cap_costs_is_printed():
  scans, found, lesions = many(np.random.default_rng(0), 60)
  scans = [dataclasses.replace(one, lesions=3 * one.lesions) for one in scans]
  lesions = [
    dataclasses.replace(one, lesion=k) for one in lesions for k in range(3)
  ]
  result = files.strict(
    link_scores.summarise(scans, found, lesions, most=2)
    | {"disclaimer": "Research only."}
  )
  assert result["best_sensitivity"] == pytest.approx(2 / 3)
  assert "a sensitivity of 0.667 at best" in link_table.table(result)


def test_a_false_positive_above_the_threshold_is_counted():
  """The threshold is that of one false positive a scan in the fit half."""
  scans, found, lesions = many(np.random.default_rng(0), 8)
  found["plaque", None] = [
    finding(scan, "plaque", None, score, detection.FALSE)
    for scan in scans
    for score in (3.0, 2.0, 1.0)
  ]
  table = link_scores.summarise(scans, found, lesions)["localisation"]["plaque"]
  assert table["threshold"] == 3.0
  assert table["false_positives"].value == 1


def test_the_decision_uses_what_predicts():
  rows = many(np.random.default_rng(1), 200)
  found = link_scores.summarise(*rows)["decision"]
  assert found["segmentation"]["roc_auc"].value > 0.9
  assert found["classifier"]["roc_auc"].value < 0.7
  assert found["both"]["over_classifier"]["roc_auc"].low > 0
  weights = found["both"]["coefficients"]
  assert weights["log_plaque"] > 5 * abs(weights["log_odds"])
  text = link_table.table(written(*rows))
  assert "(d) all together" in text
  assert f"{'(d) all together, coarse':54s}   1.00" in text
  assert text.endswith("Research only.")


def test_a_segmenter_without_plaque_is_measured_without_that_mode():
  scans, found, lesions = many(np.random.default_rng(1), 60)
  del found["plaque", None]
  result = written(
    [dataclasses.replace(one, log_plaque=None) for one in scans],
    found,
    lesions,
  )
  assert "plaque" not in result["localisation"]
  assert set(result["decision"]["both"]["coefficients"]) == {
    "log_odds",
    "stenosis",
  }
  assert "(c) the plaque segmentation is left out" in link_table.table(result)


def test_an_artery_is_hit_once_by_findings_on_any_of_its_lesions():
  """Three lesions on two arteries, of which D1 belongs to the LAD."""
  scan, normal = row("p", "test", 1, lesions=3), row("n", "test", 0)
  lesions = [
    dataclasses.replace(lesion(scan), lesion=k, segment=segment)
    for k, segment in enumerate(("LAD", "D1", "RCA"))
  ]
  assert link_scores.vessels_of(lesions) == {
    "p": {0: "LAD", 1: "LAD", 2: "RCA"}
  }
  found = [
    finding(scan, "map", "a", 0.9, detection.HIT, [1]),
    finding(scan, "map", "a", 0.8, detection.HIT, [0]),
    finding(scan, "map", "a", 0.7, detection.FALSE),
    finding(scan, "map", "a", 0.6, detection.HIT, [2]),
    finding(normal, "map", "a", 0.5, detection.FALSE),
  ]
  one, other = link_scores.by_vessel([scan, normal], found, lesions)
  assert (one.lesions, other.lesions) == (2, 0)
  assert list(one.outcomes) == [
    detection.HIT,
    detection.DUPLICATE,
    detection.FALSE,
    detection.HIT,
  ]
  assert list(other.outcomes) == [detection.FALSE]


def test_the_reader_study_has_both_units_at_its_rates():
  """All together hits every lesion, the map every other one."""
  rows = many(np.random.default_rng(0), 60)
  result = written(*rows)
  assert result["n_vessels"] == result["n_lesions"] == 15
  for unit in link_scores.UNITS:
    table = {m: one["reader"] for m, one in result["localisation"].items()}
    assert table["map"]["rates"] == [0.5, 1.0, 2.0]
    values = [x["value"] for x in table["combined"][unit]["sensitivity"]]
    assert values == [1, 1, 1]
    share = result["localisation"]["map"]["hit"]["value"]
    for at, more in zip(
      table["map"][unit]["sensitivity"],
      table["map"][unit]["combined_minus_this"],
      strict=True,
    ):
      assert at["value"] == pytest.approx(share)
      assert at["low"] < share < at["high"]
      assert more["difference"] == pytest.approx(1 - share)
      assert more["low"] > 0
    same = table["combined"][unit]["combined_minus_this"]
    assert all(one["difference"] == 0 for one in same)
  text = link_table.table(result)
  assert "the findings against the classifier alone, vessels" in text
  assert text.count("(d) less (a)") == 3  # Of the mean, and of each unit.


def test_rates_are_held_by_thresholds_of_the_other_half():
  """One false finding in each normal scan: half a scan on average."""
  rows = many(np.random.default_rng(0), 60)
  reader = written(*rows)["localisation"]["plaque"]["reader"]
  assert reader["thresholds"][0] == pytest.approx(0.9)
  scans, found, lesions = rows
  twice = found | {("plaque", None): [*found["plaque", None]] * 2}
  reader = written(scans, twice, lesions)["localisation"]["plaque"]["reader"]
  # Twice as many do not keep to one half, and no threshold is low enough.
  assert reader["thresholds"] == [None, 0.9, 0.9]


@pytest.mark.parametrize("plaque", [1.5, None])
def test_rows_are_read_as_they_were_written(tmp_path, plaque):
  scans, found, lesions = many(np.random.default_rng(1), 8)
  scans = [dataclasses.replace(one, log_plaque=plaque) for one in scans]
  for name, rows in (
    (link_rows.SCANS, scans),
    (link_rows.FINDINGS, found["map", "fine"]),
    (link_rows.LESIONS, lesions),
  ):
    files.write_rows(tmp_path, name, rows)
    path = tmp_path / f"{name}.jsonl"
    assert files.read_rows_as(path, type(rows[0])) == rows
    with path.with_suffix(".csv").open(newline="") as f:
      assert len(list(csv.DictReader(f))) == len(rows)
  with pytest.raises(UserError, match="run it again"):
    files.read_rows_as(tmp_path / "scans.jsonl", link_rows.LesionRow)


def test_the_curves_are_a_picture(tmp_path):
  rows = many(np.random.default_rng(0), 60)
  figure = link_table.froc_figure(*rows[:2], written(*rows))
  curves.save(figure, tmp_path / "froc.png")
  texts = [text.get_text() for text in figure.legends[0].get_texts()]
  assert len(texts) == len(link_rows.MODES)
  assert texts[-1].startswith("(d) all together, coarse\nmean 1.00")
  assert (tmp_path / "froc.png").stat().st_size > 10_000


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
  case = next(c for c in lesions_lib.read_scans(scans) if c.label)
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
  rng = np.random.default_rng(0)
  scored, found, lesions = links.score_case(None, case, half="fit", rng=rng)
  assert {mode for mode, _ in found} == set(link_rows.MODES)
  rows = [one for some in found.values() for one in some]
  assert {one.half for one in (scored, *rows, *lesions)} == {"fit"}
  assert len(lesions) == scored.lesions == len(drawn.lesions)
  (peak,) = found["map", "a"]
  assert peak.outcome == detection.HIT
  assert 0 in peak.lesions
  # Of its own maximum all, and of the classifier's probability.
  assert peak.score == pytest.approx(0.8)
  hits = {
    mode: [one.outcome for one in some].count(detection.HIT)
    for (mode, _), some in found.items()
  }
  # The true mask finds all but lesions that one voxel cannot hold.
  assert hits["plaque"] >= scored.lesions - 1
  assert hits["combined"] >= hits["plaque"]
  for some in found.values():
    scores = [one.score for one in some]
    assert scores == sorted(scores, reverse=True)
  assert 1 < len(found["chance", None]) <= link_rows.MOST
  assert scored.log_odds == pytest.approx(np.log(0.7 / 0.3))
  # Plaque everywhere hits only short vessels that one lesion fills.
  everything = np.where(drawn.mask > 1, 3, drawn.mask).astype(np.uint8)
  result.linked = dataclasses.replace(
    linked,
    structures=join.find_structures(drawn.volume, everything, structures.names),
  )
  _, found, _ = links.score_case(None, case, half="fit", rng=rng)
  outcomes = [one.outcome for one in found["plaque", None]]
  assert 2 * outcomes.count(detection.HIT) <= scored.lesions
  assert detection.FALSE in outcomes
  # Without plaque among the classes.
  coarse = classes.get_class_set("aorta_coronaries")
  result.linked = dataclasses.replace(
    linked,
    structures=join.find_structures(
      drawn.volume, coarse.table[drawn.mask], coarse.names
    ),
  )
  scored, found, _ = links.score_case(None, case, half="fit", rng=rng, most=1)
  assert scored.log_plaque is None
  assert ("plaque", None) not in found
  assert all(len(some) <= 1 for some in found.values())


def test_scans_that_cannot_be_used_are_refused(scans, tmp_path):
  with pytest.raises(UserError, match="manifest"):
    lesions_lib.read_scans(str(tmp_path))
  cases = lesions_lib.read_scans(str(scans))
  path = lesions_lib.lesion_file(cases[0])
  hidden = path.rename(tmp_path / "hidden.json")
  try:
    with pytest.raises(UserError, match="lesions of every scan"):
      lesions_lib.read_scans(str(scans))
  finally:
    hidden.rename(path)
  manifest = scans / "manifest.csv"
  table = manifest.read_text()
  one, two = (cases[i].patient_id for i in (0, 1))
  manifest.write_text(table.replace(f",{two},", f",{one},"))
  with pytest.raises(UserError, match=f"patient {one} has 2 scans"):
    lesions_lib.read_scans(str(scans))
  manifest.write_text(table)
  text = path.read_text()
  assert json.loads(text)["label"] == cases[0].label
  for broken in ("{", "[]", '{"lesions": [{}]}', '{"lesions": 3}'):
    path.write_text(broken)
    with pytest.raises(UserError, match=path.name):
      lesions_lib.read_scans(str(scans))
  path.write_text(text)


def test_an_out_that_cannot_be_made_is_refused(scans, tmp_path, monkeypatch):
  monkeypatch.setattr(links, "load_pair", lambda *_, **__: None)
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="--out=.*cannot be made"):
    links.evaluate_link("c", "s", str(scans), tmp_path / "file" / "a")
  with pytest.raises(UserError, match="--most=0"):
    links.evaluate_link("c", "s", str(scans), tmp_path, most=0)


def test_the_first_stage_reads_the_scans_too(tmp_path, monkeypatch):
  asked = []

  def load_pair(*models, **options):
    asked.append((models, options))
    raise UserError("enough")

  monkeypatch.setattr(links, "load_pair", load_pair)
  with pytest.raises(UserError, match="enough"):
    links.evaluate_link("c", "s", "scans", str(tmp_path), wide="w")
  assert asked == [(("c", "s"), {"wide": "w"})]


def test_an_interrupted_run_goes_on(scans, tmp_path, monkeypatch):
  pair = types.SimpleNamespace(classifier="c", segmenter="s", wide=None)
  calibration = {"temperature": 1.0}
  monkeypatch.setattr(links, "read_calibration", lambda _: calibration)
  monkeypatch.setattr(links, "load_pair", lambda *_, **__: pair)
  monkeypatch.setattr(links.decision, "identify", lambda model: {"is": model})
  scored = []

  def score_case(pair, case, *, half, most, rng):
    del pair, most
    if len(scored) == stop:
      raise KeyboardInterrupt
    scored.append(case.case_id)
    scan = row(case.case_id, half, case.label, log_odds=rng.normal())
    found = {key: [] for key in SCORED}
    if not case.label:
      wrong = finding(scan, "map", "fine", rng.random(), detection.FALSE)
      return scan, found | {("map", "fine"): [wrong]}, []
    hits = {
      key: [finding(scan, *key, rng.random(), detection.HIT, [0])]
      for key in SCORED
    }
    return scan, hits, [lesion(scan)]

  monkeypatch.setattr(links, "score_case", score_case)
  stop = None
  whole = links.evaluate_link("c", "s", str(scans), str(tmp_path / "whole"))
  cases = list(scored)
  scored.clear()
  out, stop = tmp_path / "out", 3
  with pytest.raises(KeyboardInterrupt):
    links.evaluate_link("c", "s", str(scans), str(out))
  assert {path.name for path in out.iterdir()} == {"unfinished.jsonl"}
  stop = None
  for changed in ({"seed": 1}, {"most": 2}):
    (name,) = changed
    with pytest.raises(UserError, match=f"with other {name} "):
      links.evaluate_link("c", "s", str(scans), str(out), **changed)
  calibration["temperature"] = 2.0
  with pytest.raises(UserError, match="with other calibration "):
    links.evaluate_link("c", "s", str(scans), str(out))
  calibration["temperature"] = 1.0
  pair.wide = "w"
  with pytest.raises(UserError, match="with other models "):
    links.evaluate_link("c", "s", str(scans), str(out))
  pair.wide = None
  assert links.evaluate_link("c", "s", str(scans), str(out)) == whole
  assert scored == cases
  names = {path.name for path in out.iterdir()}
  assert names == {path.name for path in (tmp_path / "whole").iterdir()}
  for name in ("scans.jsonl", "findings.jsonl", "lesions.jsonl"):
    text = (tmp_path / "whole" / name).read_text()
    assert (out / name).read_text() == text
