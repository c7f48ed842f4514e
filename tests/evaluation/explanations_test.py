import dataclasses
import functools
import json
import math
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import scipy.special
from PIL import Image
from tiny_runs import messages

from cadjax import models, tasks
from cadjax.data import input_pipeline
from cadjax.evaluation import case_maps, explanations
from cadjax.evaluation.case_maps import Settings
from cadjax.explanation import cad_maps, cam, checks, faithfulness, location
from cadjax.metrics import intervals
from cadjax.report import tables
from cadjax.training import checkpoint, workdir
from data_prep.errors import UserError
from data_prep.tissues import CLASS_NAMES

SANITY = 2


def make_workdir(path, config, dataset, seed, **model):
  """A workdir of random parameters: here nothing is trained."""
  config = config.copy_and_resolve_references()
  with config.model.unlocked():
    config.model.update(model)
  workdir.prepare(path, config, dataset)
  init = jax.jit(
    functools.partial(models.get_model(config.model).init, train=False)
  )
  shape = dataset.shape[3 - config.model.ndim :]
  made = init(jax.random.key(seed), np.zeros((1, *shape, 1), np.float32))
  saved = checkpoint.Checkpoints(path)
  saved.save_best(1, {name: made[name] for name in ("params", "batch_stats")})
  saved.close()
  return path


@pytest.fixture(scope="module")
def dataset(tiny_config):
  return input_pipeline.open_dataset(tiny_config.data)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return tmp_path_factory.mktemp("explain")


@pytest.fixture(scope="module")
def trained(root, tiny_config, dataset):
  return make_workdir(root / "one", tiny_config, dataset, 0)


@pytest.fixture(scope="module")
def other(root, tiny_config, dataset):
  return make_workdir(root / "two", tiny_config, dataset, 1)


@pytest.fixture(scope="module")
def result(trained, other, dataset):
  with pytest.MonkeyPatch.context() as patch:
    # 7 of the 25 maps at a time.
    size = 7 * 12 * np.prod(dataset.shape)
    patch.setattr(case_maps, "MAPS_BYTES", size)
    return explanations.evaluate_maps(
      trained,
      against=str(other),
      cases=4,
      settings=Settings(sanity=SANITY, rolls=5, bootstrap=100, batch_size=16),
    )


def read_rows(trained, name):
  path = trained / "eval" / "explain" / f"{name}_cases.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_everything_is_written(trained, result):
  folder = trained / "eval" / "explain"
  assert {p.name for p in folder.iterdir()} == {
    "metrics.json",
    "table.txt",
    "lift.png",
    *(f"{x}_cases.jsonl" for x in case_maps.TABLES),
    *(f"{x}_cases.csv" for x in case_maps.TABLES),
  }
  text = (folder / "metrics.json").read_text()
  stored = json.loads(text, parse_constant=pytest.fail)
  assert stored["n_cases"] == 4
  assert "not a medical device" in stored["disclaimer"]
  layers, methods = 5, len(cam.METHODS)
  assert len(stored["location"]) == layers * methods * 3
  assert len(stored["faithfulness"]) == layers * methods
  assert len(stored["randomisation"]) == layers * methods * 6
  assert len(stored["unrelated"]) == len(stored["agreement"])
  assert stored["other"]["kind"] == "repeatability"
  with Image.open(folder / "lift.png") as image:
    assert min(image.size) > 400
  assert (folder / "table.txt").read_text() == tables.text(result)


def test_location_rows_are_the_measures_of_each_map(trained, dataset, result):
  rows = read_rows(trained, "location")
  assert {row["layer"] for row in rows} == {
    "stem",
    "stage1",
    "stage2",
    "stage3",
    "stage4",
  }
  loaded = tasks.load_model(trained)
  maker = cad_maps.CadMaps(loaded)
  case = explanations.spread(dataset.rows["test"], 4)[2]
  record = dataset.read(case)
  cells = maker.cells(record["image"])
  assert cells["gradcam"]["stage2"].shape == (2, 3, 4)
  for layer, method in (("stage2", "layercam"), ("stem", "gradcam")):
    heat = cam.to_image(
      cells[method][layer][None],
      record["image"].shape,
      (maker.strides[layer]),
    )[0]
    (expected,) = location.location_metrics(
      np.asarray(heat)[None], case_maps.read_structures(record), rolls=5
    )
    for name, values in expected.items():
      (row,) = (
        row
        for row in rows
        if (row["case_id"], row["layer"], row["method"], row["structure"])
        == (case["case_id"], layer, method, name)
      )
      for key, value in location.numbers_of(values).items():
        found = math.nan if row[key] is None else row[key]
        assert found == pytest.approx(value, rel=1e-4, nan_ok=True), key


def test_structures_come_from_mask_and_lesions(dataset):
  cad = [row for row in dataset.rows["test"] if row["label"] == "1"]
  record = dataset.read(cad[0])
  found = case_maps.read_structures(record)
  assert list(found) == ["coronaries", "plaque", "aorta"]
  names = np.array(CLASS_NAMES)[record["mask"]]
  np.testing.assert_array_equal(found["aorta"] == 0, names == "aorta")
  vessel = np.isin(names, ("lumen", "stable_plaque", "unstable_plaque"))
  np.testing.assert_array_equal(found["coronaries"] == 0, vessel)
  np.testing.assert_array_equal(
    found["plaque"] == 0, vessel & (names != "lumen")
  )
  # A lesion's centre is on its place in the patient, in voxels and mm.
  lesions = json.loads(record["lesions"])
  assert lesions
  affine = record["grid_affine"]
  for lesion in lesions:
    d, h, w = np.round(
      np.linalg.solve(affine, [*lesion["position_mm"], 1])[:3]
    ).astype(int)
    if all(0 <= i < n for i, n in zip((d, h, w), names.shape, strict=True)):
      half_voxel = np.linalg.norm(record["spacing"]) / 2
      assert found["plaque"][d, h, w] <= half_voxel + 1e-4

  known = record["mask_classes"].copy()
  known[CLASS_NAMES.index("aorta")] = 0
  assert "aorta" not in case_maps.read_structures(
    {**record, "mask_classes": known}
  )
  without = {key: x for key, x in record.items() if key != "mask"}
  assert case_maps.read_structures(without) == {}


def test_a_normal_case_has_no_plaque_to_find(trained, result):
  rows = read_rows(trained, "location")
  plaque = [row for row in rows if row["structure"] == "plaque"]
  for row in plaque:
    assert (row["lift_5mm"] is None) >= (row["label"] == 0)
  entry = next(x for x in result["location"] if x["structure"] == "plaque")
  patients = {row["patient_id"]: row["label"] for row in plaque}
  assert entry["lift_5mm"].n_patients == len(patients)
  assert entry["lift_5mm"].n <= sum(patients.values()) < len(patients)


def test_best_has_the_largest_lift(result):
  for name, row in result["best"].items():
    lifts = [
      x["lift_0mm"].value for x in result["location"] if x["structure"] == name
    ]
    assert row["lift_0mm"].value == np.nanmax(lifts)
  assert "coronaries" in result["best"]


def test_randomisation_starts_at_the_head_and_ends_at_the_input(
  trained, result
):
  rows = read_rows(trained, "randomisation")
  order = list(dict.fromkeys(row["upto"] for row in rows))
  assert order == ["head", "stage4", "stage3", "stage2", "stage1", "stem"]
  assert len({row["case_id"] for row in rows}) == SANITY
  # With another seed for all layers it is another network, as `other` is.
  maker = cad_maps.CadMaps(tasks.load_model(trained))
  fresh = maker.fresh(1)
  mixed = checks.randomise(maker.variables, fresh, order, "stem")
  assert jax.tree.all(jax.tree.map(np.array_equal, mixed, fresh))


def test_faithfulness_uses_the_log_odds(trained, dataset, result):
  maker = cad_maps.CadMaps(tasks.load_model(trained))
  rows = read_rows(trained, "faithfulness")
  case = next(
    row for row in dataset.rows["test"] if row["case_id"] == rows[0]["case_id"]
  )
  record = dataset.read(case)
  image = record["image"]
  same = np.stack([image] * 16)  # One shape, compiled once.
  logits = maker.trained.logits(same[..., None])[:, 0]
  np.testing.assert_allclose(
    maker.log_odds(same), logits[:, 1] - logits[:, 0], atol=1e-5
  )
  chance = faithfulness.random_perturbation_auc(
    maker.log_odds,
    image,
    baseline=faithfulness.blurred(image, record["spacing"]),
    block=1,
    batch_size=16,
  )
  assert rows[0]["insertion_random"] == pytest.approx(
    chance["insertion"], abs=1e-4
  )
  # A map that is 0 everywhere has no order to insert by.
  defined = [row for row in rows if row["insertion"] is not None]
  assert defined
  for row in defined:
    gain = row["insertion"] - row["insertion_random"]
    assert row["insertion_gain"] == pytest.approx(gain)
    gain = row["deletion_random"] - row["deletion"]
    assert row["deletion_gain"] == pytest.approx(gain)


def test_a_model_agrees_with_itself(trained, dataset, tmp_path):
  loaded = tasks.load_model(trained)
  result = explanations.measure(
    loaded,
    dataset,
    dataset.rows["test"][:2],
    tmp_path,
    about={},
    settings=Settings(sanity=0, region="body", bootstrap=100, rolls=1),
    other=loaded,
  )
  for row in result["agreement"]:
    value = row["spearman"].value
    assert math.isnan(value) or value == pytest.approx(1, abs=1e-5)
  assert any(row["spearman"].n for row in result["agreement"])
  assert not result["faithfulness"]
  assert not (tmp_path / "randomisation_cases.csv").exists()
  assert result["region"] == "body"


def test_a_2d_model_is_explained_on_volumes(root, tiny_config, dataset):
  flat = make_workdir(root / "flat", tiny_config, dataset, 2, ndim=2)
  maker = cad_maps.CadMaps(tasks.load_model(flat))
  assert maker.strides["stage1"] == (1, 4, 4)
  image = dataset.read(dataset.rows["test"][0])["image"]
  cells = maker.cells(image)["gradcam"]["stage1"]
  assert cells.shape == (16, 6, 8)
  heat = maker.heat(cells, "stage1", image.shape)
  assert heat.shape == image.shape
  np.testing.assert_allclose(heat[:, ::4, ::4], cells / cells.max(), rtol=1e-5)
  deep = types.SimpleNamespace(config=tiny_config)
  kind = explanations.kind_of_agreement(maker.trained, deep)
  assert kind == "reproducibility"

  slices = np.random.default_rng(0).normal(size=(3, 16, 2))
  maker.trained = types.SimpleNamespace(logits=lambda x: slices)
  # Those of the mean probability of the slices, by which it is called.
  pooled = scipy.special.expit(slices[..., 1] - slices[..., 0]).mean(1)
  np.testing.assert_allclose(
    maker.log_odds(np.stack([image] * 3)), scipy.special.logit(pooled)
  )


def test_models_of_other_layers_agree_on_the_image():
  coarse = np.random.default_rng(0).random((4, 4, 4))
  cells, fine = (
    {method: {"stem": x} for method in cam.METHODS}
    for x in (coarse, np.repeat(coarse, 2, 0))
  )
  maps = [
    types.SimpleNamespace(
      strides={"stem": strides},
      pairs=lambda: [("stem", method) for method in cam.METHODS],
      heat=lambda x, layer, shape, _, strides=strides: np.asarray(
        cam.to_image(x[None], shape, strides)
      )[0],
    )
    for strides in ((2, 2, 2), (1, 2, 2))
  ]
  rows = case_maps.agreement(*maps, (8, 8, 8), cells, fine)
  assert len(rows) == len(cam.METHODS)
  assert 0.5 < rows[0]["spearman"] < 1
  assert math.isnan(rows[0]["spearman_unrelated"])


def test_spread_takes_the_first_and_the_last():
  assert explanations.spread(range(10), 4) == [0, 3, 6, 9]
  assert explanations.spread(range(3), None) == [0, 1, 2]
  assert explanations.spread(range(3), 9) == [0, 1, 2]
  assert explanations.spread(range(3), 0) == []


def test_what_cannot_be_measured_says_so(trained, dataset, monkeypatch):
  with pytest.raises(UserError, match="--explain_region=heart"):
    Settings(region="heart")
  with pytest.raises(UserError, match="--explain_cases=0"):
    explanations.evaluate_maps(trained, cases=0)
  with pytest.raises(UserError, match="bootstrap"):
    explanations.evaluate_maps(trained, settings=Settings(bootstrap=3))
  monkeypatch.setattr(case_maps, "read_structures", lambda record: {})
  with pytest.raises(UserError, match="none of the 1 cases has a mask"):
    explanations.evaluate_maps(trained, cases=1, settings=Settings(sanity=0))


def test_the_picture_of_undefined_and_zero_lifts():
  def entry(value, low=math.nan, high=math.nan):
    return intervals.MeanInterval(value, low, high, "student", None, 2, 2)

  rows = [
    {"layer": layer, "method": method, "structure": name, "lift_0mm": lift}
    for layer, method, name, lift in (
      ("stem", "gradcam", "aorta", entry(math.nan)),
      ("stem", "hirescam", "aorta", entry(0.0)),
      ("stage1", "gradcam", "aorta", entry(8.0, 2.0, 20.0)),
      ("stage1", "gradcam", "plaque", entry(0.5, 0.1, 1.0)),
    )
  ]
  figure = tables.heat_table(rows)
  figure.canvas.draw()
  labels = {text.get_text() for text in figure.axes[0].texts}
  assert labels == {
    "undefined",
    "0.00\n[no interval]",
    "8.00\n[2.00, 20.00]",
  }


def test_a_segmenter_is_refused_before_it_is_evaluated(
  tiny_segmenter, tmp_path
):
  path = shutil.copytree(tiny_segmenter, tmp_path / "segmenter")
  done = subprocess.run(
    [sys.executable, "-m", "cadjax.evaluate", f"--workdir={path}", "--explain"],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  (line,) = messages(done)
  assert "is a segmenter; here a classifier is needed" in line
  assert not (path / "eval").exists()


def test_lesions_are_taken_away_from_phantoms(trained, dataset, tmp_path):
  result = explanations.measure(
    tasks.load_model(trained),
    dataset,
    dataset.rows["test"],
    tmp_path,
    about={},
    settings=Settings(sanity=0, twins=1, bootstrap=100, rolls=1),
  )
  found = result["counterfactual"]
  path = tmp_path / "counterfactual_effects_cases.jsonl"
  effects = [json.loads(line) for line in path.read_text().splitlines()]
  assert {row["case_id"] for row in effects} <= {
    row["case_id"] for row in dataset.rows["test"] if row["label"] == "1"
  }
  assert len({row["case_id"] for row in effects}) == 1
  mean = np.mean([row["removed"] for row in effects])
  assert found["effects"]["removed"].value == pytest.approx(mean)
  keys = {(row["layer"], row["method"]) for row in found["agreement"]}
  assert keys == {(row["layer"], row["method"]) for row in result["location"]}
  assert "the same phantoms without a lesion" in tables.text(result)
  stored = json.loads((tmp_path / "metrics.json").read_text())
  (made,) = tables.page_tables(stored)
  assert made["title"] == "The same phantoms without a lesion"
  assert made["notes"] == found["answers"]
  assert len(made["rows"]) == len(keys)


def test_patients_cannot_be_drawn_again(trained, dataset, tmp_path):
  other = dataclasses.replace(
    dataset, metadata={**dataset.metadata, "source": "manifest"}
  )
  with pytest.raises(UserError, match="explain_counterfactuals"):
    explanations.measure(
      tasks.load_model(trained),
      other,
      dataset.rows["test"],
      tmp_path,
      about={},
      settings=Settings(sanity=0, twins=1, bootstrap=100, rolls=1),
    )
