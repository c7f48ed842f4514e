"""Measures of many passes: in closed form, by what they share, and together."""

import json
import math
import subprocess
import sys
import types

import numpy as np
import pytest
from tiny_runs import messages

from cadjax.classification.classifier import load_classifier
from cadjax.core import lookup
from cadjax.data import input_pipeline
from cadjax.evaluation import explanations, map_measures
from cadjax.evaluation.case_maps import Settings
from cadjax.explanation import faithfulness, overlap
from cadjax.report import tables
from data_prep.errors import UserError

SHAPE = (16, 16, 16)
SMALL = map_measures.Effort(
  road_shares=(0.1, 0.5), boxes=16, sets=8, near=3, copies=2
)
METHODS = ("gradcam", "gradient_x_input")


class Linear:
  """A network of one weight a voxel, and a perfect and a trivial map."""

  methods = ("gradient_x_input", "over_blurred", "backwards", "flat")

  def __init__(self):
    rng = np.random.default_rng(0)
    self.weights = rng.normal(size=SHAPE) ** 3 / 1000
    self.passes = 0
    data = types.SimpleNamespace(window_hu=(0.0, 1000.0))
    self.trained = types.SimpleNamespace(
      config=types.SimpleNamespace(data=data)
    )

  def pairs(self):
    return [("input", name) for name in self.methods]

  def log_odds(self, images):
    self.passes += len(images)
    return (images * self.weights).sum((1, 2, 3)) + 1

  def cells(self, image, variables=None, *, target=1, signed=False):
    weights = self.weights
    if variables is not None:
      weights = np.random.default_rng(variables["seed"]).normal(size=SHAPE)
    right = image * weights * (1 if target == 1 else -1)
    gap = image - faithfulness.blurred(image, (1, 1, 1)).astype(float)
    maps = {
      "gradient_x_input": right,
      "over_blurred": gap * weights,
      "backwards": -right,
      "flat": np.ones(SHAPE),
    }
    if not signed:
      maps = {name: np.maximum(x, 0) for name, x in maps.items()}
    return {name: {"input": x} for name, x in maps.items()}

  def raw(self, cells, layer, shape, method):
    assert (layer, cells.shape) == ("input", shape)
    return cells


@pytest.fixture(scope="module")
def measured():
  image = np.random.default_rng(1).integers(200, 800, SHAPE).astype(np.int16)
  maps = Linear()
  case = map_measures.Case(maps, image, (1, 1, 1), {"seed": 7}, effort=SMALL)
  rows = map_measures.measure(case, map_measures.NAMES)
  return maps, {row["method"]: row for row in rows}


def test_a_perfect_map_of_a_linear_network(measured):
  _, rows = measured
  right, wrong = rows["gradient_x_input"], rows["backwards"]
  assert right["road"] > 0.1 > -0.1 > wrong["road"]
  assert right["sensitivity_n"] > 0.1 > -0.1 > wrong["sensitivity_n"]
  # Contributions over a blurred image are not those over a blank one.
  assert rows["over_blurred"]["sensitivity_n"] > 0.99
  assert rows["over_blurred"]["infidelity_scaled"] < 0.01
  assert wrong["infidelity_scaled"] > 0.5
  assert right["completeness_error"] < 1e-3
  assert math.isnan(wrong["completeness_error"])
  assert math.isfinite(right["infidelity"])
  assert math.isnan(wrong["infidelity"])
  # Its map follows the image, the network and the class.
  assert 0 < right["max_sensitivity"] < 0.5
  assert right["relative_input_stability"] > 0
  assert right["smooth_mprt_spearman"] < 0.5
  assert right["random_logit_spearman"] < 0


def test_a_flat_map_follows_nothing(measured):
  _, rows = measured
  flat = rows["flat"]
  assert flat["max_sensitivity"] == 0
  assert flat["relative_input_stability"] == 0
  assert math.isnan(flat["efficient_mprt"])


def test_maps_of_a_case_share_the_passes(measured):
  maps, _ = measured
  image = np.full(SHAPE, 500, np.int16)
  image[:8] = 300

  def passes(names):
    maps.passes = 0
    case = map_measures.Case(maps, image, (1, 1, 1), {"seed": 7}, effort=SMALL)
    for key in maps.pairs()[:names]:
      map_measures.MEASURES["infidelity"](case, key)
      map_measures.MEASURES["sensitivity_n"](case, key)
    return maps.passes

  assert passes(4) == passes(1) > SMALL.boxes


def test_measures_are_chosen_by_name():
  assert map_measures.chosen(["se3d", "road"]) == ("road", "se3d")
  assert map_measures.chosen(["all"]) == map_measures.NAMES
  assert map_measures.chosen([]) == ()
  with pytest.raises(lookup.UnknownName, match="did you mean 'infidelity'"):
    map_measures.chosen(["infidelty"])


def make_covers(name, heat, truth, key=("stem", "gradcam")):
  masks = {(*key, "plaque"): overlap.mask_ious(heat, truth)}
  return map_measures.Covers(
    ids={"case_id": name, "patient_id": name},
    masks=masks,
    boxes={(*key, "plaque"): overlap.box_ious(heat, truth)},
    tuned={key: overlap.mask_ious(heat, truth, overlap.TUNED)},
    hits={key: {s: overlap.localise(heat, truth, s) for s in overlap.TUNED}},
    human={"hit": 1.0, "iou": 0.5},
    about={"volume_mm3": 27.0, "elongation": 1.0, "confidence": float(name)},
  )


def shapes():
  truth = np.zeros((12, 12, 12), bool)
  truth[4:7, 4:7, 4:7] = True
  halo = np.zeros(truth.shape, bool)
  halo[2:9, 2:9, 2:9] = True
  return truth, halo


def test_the_best_share_for_all_cases():
  truth, halo = shapes()
  right = [make_covers(str(k), truth * 1.0, truth) for k in range(3)]
  (row,), _ = map_measures.summarise_se3d(right, draws=100, seed=0)
  assert row["max_mask"].value == row["max_box"].value == 1
  assert math.isnan(row["max_mask"].low)  # Nothing varies.
  # A map of half the height around it is cut off where the share is higher.
  around = [
    make_covers(str(k), truth + 0.5 * halo * ~truth, truth) for k in range(3)
  ]
  (row,), _ = map_measures.summarise_se3d(around, draws=100, seed=0)
  assert row["max_mask"].value == 1
  assert row["max_mask_share"] == 0.5
  # Of two cases that want other shares, the mean at the best one.
  both = [around[0], make_covers("9", truth * 0.3 + ~truth * 0.0, truth)]
  missed = make_covers("8", np.zeros(truth.shape), truth)
  (row,), cases = map_measures.summarise_se3d(
    [*both, missed], draws=100, seed=0
  )
  assert [one["mask_iou"] for one in cases] == [1, 1, 0]
  assert [one["box_found"] for one in cases] == [1, 1, 0]
  assert row["max_mask"].value == pytest.approx(2 / 3)
  assert row["max_mask"].low < row["max_mask"].value < row["max_mask"].high


def test_the_threshold_is_that_of_validation_cases():
  truth, halo = shapes()
  high = truth + 0.55 * halo * ~truth  # Is the truth above a share of 0.6.
  low = truth * 0.25 + halo * 0.0
  low[5, 5, 5] = 1  # Is the truth below 0.25 alone.
  tested = [make_covers("1", high, truth)]
  options = {"draws": 100, "seed": 0}

  def share(validation):
    found, rows = map_measures.summarise_chexlocalize(
      tested, validation, **options
    )
    assert [row["method"] for row in rows] == ["human", "gradcam"]
    assert found["table"][0]["method"] == "human"
    assert found["table"][0]["iou"].value == 0.5
    assert {row["by"] for row in found["apart"]} == set(map_measures.APART)
    return found["table"][1]

  row = share([make_covers("2", low, truth)])
  assert row["share"] == 0.2
  assert row["iou"].value == pytest.approx(27 / 7**3)
  row = share([make_covers("2", high, truth)])
  assert row["share"] == 0.6
  assert row["iou"].value == row["hit"].value == 1
  # Without a lesion there, only the readers are left.
  found, _ = map_measures.summarise_chexlocalize(tested, [], **options)
  assert [row["method"] for row in found["table"]] == ["human"]


@pytest.fixture(scope="module")
def result(tiny_workdir, tiny_config, tmp_path_factory):
  dataset = input_pipeline.open_dataset(tiny_config.data)
  folder = tmp_path_factory.mktemp("maps")
  found = explanations.measure(
    load_classifier(tiny_workdir),
    dataset,
    explanations.spread(dataset.rows["test"], 2),
    folder,
    about={},
    settings=Settings(
      methods=METHODS,
      measures=["all"],
      effort=SMALL,
      sanity=1,
      bootstrap=100,
      rolls=1,
    ),
    tuned_on=explanations.spread(dataset.rows["validation"], 2),
  )
  return folder, found


def test_all_measures_of_all_maps_of_a_classifier(result):
  folder, found = result
  maps = {(row["layer"], row["method"]) for row in found["measures"]}
  assert len(maps) == 5 + 1
  assert ("input", "gradient_x_input") in maps
  wanted = set(tables.MEASURES)
  for row in found["measures"]:
    assert wanted < set(row)
    complete = row["completeness_error"].value
    assert math.isnan(complete) == (row["method"] != "gradient_x_input")
  assert {(row["layer"], row["method"]) for row in found["location"]} == maps
  structures = {row["structure"] for row in found["se3d"]}
  assert structures == {"coronaries", "plaque"}
  readers, *others = found["chexlocalize"]["table"]
  assert readers["method"] == "human"
  assert readers["hit"].value > 0.2
  assert {(row["layer"], row["method"]) for row in others} <= maps
  assert (folder / "se3d_cases.csv").exists()
  assert (folder / "chexlocalize_cases.csv").exists()
  lines = (folder / "measures_cases.jsonl").read_text().splitlines()
  assert len(lines) == len(maps)
  json.loads((folder / "metrics.json").read_text(), parse_constant=pytest.fail)
  for title in tables.MEASURES.values():
    assert title in (folder / "table.txt").read_text()


def test_the_page_has_a_table_of_each(result):
  folder, _ = result
  stored = json.loads((folder / "metrics.json").read_text())
  made = tables.page_tables(stored)
  assert [one["title"] for one in made] == [
    "Measures, and what a good map has",
    "Masks and boxes (SE3D)",
    "CheXlocalize",
  ]
  assert made[2]["notes"] == ["Human: readers with an error of 2 mm."]
  for one in made:
    assert one["rows"]
    assert {len(row) for row in one["rows"]} == {len(one["head"])}
  # Of an older version, or where none was asked for.
  assert tables.page_tables({"location": []}) == []


def test_a_threshold_needs_validation_cases(tiny_workdir, tiny_config):
  dataset = input_pipeline.open_dataset(tiny_config.data)
  with pytest.raises(UserError, match="chosen on validation cases"):
    explanations.measure(
      load_classifier(tiny_workdir),
      dataset,
      dataset.rows["test"],
      None,
      about={},
      settings=Settings(measures=["chexlocalize"]),
    )


def test_an_unknown_measure_is_one_line(tiny_workdir):
  flags = ("--explain", "--explain_measures=rode", f"--workdir={tiny_workdir}")
  done = subprocess.run(
    [sys.executable, "-m", "cadjax.evaluate", *flags],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  (line,) = messages(done)
  assert "did you mean 'road'" in line


def test_fewer_than_no_cases_are_one_line(tiny_workdir):
  flags = ("--explain", "--explain_sanity=-1", f"--workdir={tiny_workdir}")
  done = subprocess.run(
    [sys.executable, "-m", "cadjax.evaluate", *flags],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  (line,) = messages(done)
  assert "--explain_sanity=-1" in line
