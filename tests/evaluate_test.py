import csv
import functools
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import nibabel as nib
import numpy as np
import pytest
from absl import flags
from PIL import Image
from tiny_runs import messages

from cadjax import models, tasks
from cadjax.classification.classifier import load_classifier
from cadjax.classification.scan import read_calibration
from cadjax.core import files
from cadjax.data import input_pipeline
from cadjax.evaluation import classifiers, common
from cadjax.evaluation.workdirs import evaluate_workdir
from cadjax.metrics import binary, patient_level
from cadjax.report import cohort
from cadjax.training import checkpoint, workdir
from configs import resnet3d
from data_prep import build
from data_prep.ctca.ctca_dataset_builder import CtcaConfig
from data_prep.errors import UserError
from data_prep.geometry import GridSpec

SHAPE = (6, 10, 14)
PATIENTS = 30


def make_scans(folder, seed, shift_hu=0):
  """Tiny noise scans; CAD is brighter. Every fifth patient has two scans."""
  folder.mkdir()
  rng = np.random.default_rng(seed)
  lines = ["case_id,patient_id,image,label"]
  for i in range(PATIENTS):
    label = i % 2
    for scan in range(1 + (i % 5 == 0)):
      name = f"{i:02}-{scan}.nii.gz"
      mean = shift_hu + rng.normal(0, 40) + 60 * label
      voxels = rng.normal(mean, 200, (14, 10, 6)).astype(np.int16)
      nib.Nifti1Image(voxels, np.diag([-2, -3, 4, 1])).to_filename(
        folder / name
      )
      lines.append(f"c{i:02}-{scan},p{i:02},{name},{label}")
  (folder / "manifest.csv").write_text("\n".join(lines) + "\n")


def make_data(root, name, *, shape=SHAPE, **options):
  make_scans(root / f"{name}_scans", **options)
  config = CtcaConfig(
    name="tiny",
    source="manifest",
    grid=GridSpec(kind="paper", shape=shape),
    input=str(root / f"{name}_scans"),
    fractions=(0.3, 0.3, 0.4),
    has_mask=False,
    workers=1,
  )
  build.build(config, root / name)
  return root / name


def make_workdir(path, data, *, ndim=3, seed=0, spoil=False):
  """A workdir whose model has random parameters: evaluation trains nothing."""
  config = resnet3d.get_config()
  config.data.path = str(data)
  config.data.eval_batch_size = 4
  with config.model.unlocked():
    config.model.update(ndim=ndim, depth=10, width=4)
  workdir.prepare(path, config, input_pipeline.open_dataset(config.data))
  shape = SHAPE[1:] if ndim == 2 else SHAPE
  init = functools.partial(models.get_model(config.model).init, train=False)
  shapes = jax.eval_shape(init, jax.random.key(0), np.zeros((1, *shape, 1)))
  rng = np.random.default_rng(seed)

  def draw(keys, x):
    constant = {"mean": 0, "bias": 0, "var": 1, "scale": 1}.get(keys[-1].key)
    if spoil or constant is not None:
      return np.full(x.shape, np.nan if spoil else constant, x.dtype)
    fan_in = np.prod(x.shape[:-1])
    return rng.normal(0, np.sqrt(2 / fan_in), x.shape).astype(x.dtype)

  variables = jax.tree_util.tree_map_with_path(draw, shapes)
  kept = {name: variables[name] for name in ("params", "batch_stats")}
  saved = checkpoint.Checkpoints(path)
  saved.save_best(7, kept)
  saved.close()
  return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def data(root):
  return make_data(root, "data", seed=0)


@pytest.fixture(scope="module")
def other_data(root):
  return make_data(root, "other", seed=1, shift_hu=300)


@pytest.fixture(scope="module")
def trained(root, data):
  return make_workdir(root / "w3", data)


@pytest.fixture(scope="module")
def result(trained):
  return evaluate_workdir(trained, bootstrap=100)


def read_rows(path):
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  with path.with_suffix(".csv").open(newline="") as f:
    return rows, list(csv.DictReader(f))


def test_evaluation_leaves_rows_figures_and_strict_json(trained, result):
  folder = trained / "eval"
  assert {p.name for p in folder.iterdir()} == {
    "checksums.json",
    "metrics.json",
    *(f"{x}.png" for x in ("roc", "pr", "calibration", "confusion")),
    *(f"validation_cases.{x}" for x in ("csv", "jsonl")),
    *(f"test_cases.{x}" for x in ("csv", "jsonl")),
    *(f"test_patients.{x}" for x in ("csv", "jsonl")),
  }
  text = (folder / "metrics.json").read_text()
  assert json.loads(text, parse_constant=pytest.fail) == result
  assert "not a medical device" in result["disclaimer"]
  for path in folder.glob("*.png"):
    with Image.open(path) as image:
      assert min(image.size) > 500


def test_every_case_of_the_split_counts_once(trained, data, result):
  config = resnet3d.get_config().data
  config.path = str(data)
  dataset = input_pipeline.open_dataset(config)
  for split in ("validation", "test"):
    rows, table = read_rows(trained / "eval" / f"{split}_cases.jsonl")
    ids = [row["case_id"] for row in dataset.rows[split]]
    assert [row["case_id"] for row in rows] == ids
    assert [row["case_id"] for row in table] == ids
  assert result["n_scans"] == len(ids)
  assert result["n_patients"] == len({r["patient_id"] for r in rows})
  assert result["n_scans"] > result["n_patients"]
  # More cases than a batch, and a padded last batch.
  assert len(ids) > 4
  assert len(ids) % 4


def test_rows_hold_the_logits_of_single_cases(trained, data):
  loaded = tasks.load_model(trained)
  dataset = input_pipeline.open_dataset(loaded.config.data)
  rows, table = read_rows(trained / "eval" / "test_cases.jsonl")
  assert len({row["log_odds"][0] for row in rows}) == len(rows)
  for i in (0, len(rows) - 1):
    image = dataset.read(dataset.rows["test"][i])["image"]
    logits = loaded.logits(image[None, ..., None])[0]
    odds = logits[:, 1] - logits[:, 0]
    np.testing.assert_allclose(rows[i]["log_odds"], odds, atol=1e-5)
    assert float(table[i]["probability"]) == rows[i]["probability"]


def test_metrics_follow_from_the_stored_rows(trained, result):
  validation, _ = read_rows(trained / "eval" / "validation_cases.jsonl")
  test, _ = read_rows(trained / "eval" / "test_cases.jsonl")
  again = files.strict(patient_level.evaluate_rows(validation, test, draws=100))
  for name in ("patient", "threshold", "temperature", "confusion"):
    assert again[name] == result[name], name
  patients, _ = read_rows(trained / "eval" / "test_patients.jsonl")
  labels, probs = zip(
    *((row["label"], row["probability"]) for row in patients), strict=True
  )
  direct = binary.binary_metrics(labels, probs, result["threshold"])
  for name, value in direct.items():
    found = result["patient"][name]["value"]
    assert found == pytest.approx(value, abs=1e-12), name


def test_two_dimensional_model_reports_slices_and_poolings(root, data):
  path = make_workdir(root / "w2", data, ndim=2)
  result = evaluate_workdir(path, bootstrap=100)
  rows, table = read_rows(path / "eval" / "test_cases.jsonl")
  assert all(len(row["log_odds"]) == SHAPE[0] for row in rows)
  assert "log_odds" not in table[0]
  assert set(result["poolings"]) == {"mean", "vote", "max", "topk"}
  assert result["slice_setting"]["n_slices"] == len(rows) * SHAPE[0]
  assert result["slice"]["accuracy"]["method"] == "bootstrap over patients"
  assert {"uncalibrated_vote", "uncalibrated_max"} <= set(table[0])


def test_a_changed_threshold_is_not_believed(trained, result, tmp_path):
  copy = tmp_path / "run"
  shutil.copytree(trained, copy)
  classifier = load_classifier(copy)
  threshold = read_calibration(classifier).threshold
  assert threshold == result["threshold"]
  path = copy / "eval" / "metrics.json"
  text = path.read_text()
  path.write_text(text.replace(f'"threshold": {threshold}', '"threshold": 0.9'))
  assert path.read_text() != text
  with pytest.raises(UserError, match="is damaged.*run cadjax.evaluate again"):
    read_calibration(classifier)
  # Of an older version, which wrote no checksums.
  (copy / "eval" / "checksums.json").unlink()
  assert read_calibration(classifier).threshold == 0.9


def test_comparison_with_another_workdir(root, data, trained, result):
  other = make_workdir(root / "again", data, seed=1)
  with pytest.raises(UserError, match="holds no evaluation; run python -m"):
    evaluate_workdir(trained, against=str(other))
  theirs = evaluate_workdir(other, bootstrap=100)
  metrics_json = other / "eval" / "metrics.json"
  kept = metrics_json.read_text()
  metrics_json.write_text(json.dumps(theirs | {"step": theirs["step"] + 1}))
  with pytest.raises(UserError, match="no longer the model of"):
    evaluate_workdir(trained, against=str(other))
  metrics_json.write_text(kept)
  ours = evaluate_workdir(trained, against=str(other), bootstrap=100)
  difference = ours["against"]["difference"]["accuracy"]["difference"]
  assert difference == pytest.approx(
    ours["patient"]["accuracy"]["value"]
    - theirs["patient"]["accuracy"]["value"]
  )
  assert ours["patient"] == result["patient"]
  assert "McNemar" in classifiers.table(ours)


def test_own_data_that_changed_is_refused(root, data, trained):
  moved = make_workdir(root / "moved", data)
  found = json.loads((moved / "dataset.json").read_text())
  found["fingerprint"] = "0123456789abcdef"
  (moved / "dataset.json").write_text(json.dumps(found))
  workdir.seal(moved)
  with pytest.raises(UserError, match="is not the data that .* with --data="):
    evaluate_workdir(moved)


def test_external_data_keeps_the_settings_of_the_workdir(
  trained, other_data, result
):
  found = evaluate_workdir(trained, data=str(other_data), bootstrap=100)
  assert found["data"]["external"]
  assert found["data"]["fingerprint"] != result["data"]["fingerprint"]
  for name in ("temperature", "threshold", "threshold_origin"):
    assert found[name] == result[name], name
  assert any("external validation" in note for note in found["notes"])
  folder = trained / "eval" / f"external_{found['data']['fingerprint'][:8]}"
  assert (folder / "metrics.json").exists()
  # The workdir's own evaluation stays as it is.
  own = json.loads((trained / "eval" / "metrics.json").read_text())
  assert own["data"] == result["data"]
  every = evaluate_workdir(
    trained, data=str(other_data), split="all", bootstrap=100
  )
  assert every["n_patients"] == PATIENTS


def test_patients_that_the_model_knows_are_told_of(
  root, trained, data, other_data
):
  copy = root / "knows"
  shutil.copytree(trained, copy)
  path = copy / "dataset.json"
  about = json.loads(path.read_text())
  config = resnet3d.get_config().data
  config.path = str(other_data)
  here = input_pipeline.open_dataset(config).rows["test"][0]["patient_id"]
  seen = about["patient_ids"]["train"]
  about["patient_ids"] = {"train": [here], "validation": []}
  path.write_text(json.dumps(about))
  workdir.seal(copy)
  found = evaluate_workdir(copy, data=str(other_data), bootstrap=100)
  assert any(f"such as {here}: if" in note for note in found["notes"])
  own = input_pipeline.open_dataset(tasks.load_model(trained).config.data)
  assert seen == sorted({row["patient_id"] for row in own.rows["train"]})


def test_all_patients_of_other_data_are_scored(root, trained, other_data):
  """Whatever part of its own the model was trained on."""
  copy = root / "part"
  shutil.copytree(trained, copy)
  path = copy / "config.json"
  config = json.loads(path.read_text())
  config["data"]["subset"] |= {"patients": 4}
  path.write_text(json.dumps(config))
  workdir.seal(copy)
  found = evaluate_workdir(
    copy, data=str(other_data), split="all", bootstrap=100
  )
  assert found["n_patients"] == PATIENTS
  config["data"]["prior"] |= {"use": "region", "masks": "masks"}
  path.write_text(json.dumps(config))
  workdir.seal(copy)
  with pytest.raises(UserError, match="sees the masks in masks, which were"):
    evaluate_workdir(copy, data=str(other_data), bootstrap=100)


def test_data_at_another_place_is_the_same_data(root, trained, data, result):
  found = evaluate_workdir(
    trained, data=str(next(data.rglob("cases.csv")).parent), bootstrap=100
  )
  assert not found["data"]["external"]
  assert found["patient"] == result["patient"]


def remember(copy, path):
  """Makes a workdir remember its data at another place."""
  for name, keys in (("dataset", ["path"]), ("config", ["data", "path"])):
    table = json.loads((copy / f"{name}.json").read_text())
    *above, last = keys
    functools.reduce(dict.get, above, table)[last] = str(path)
    (copy / f"{name}.json").write_text(json.dumps(table))
  workdir.seal(copy)


def test_a_workdir_remembers_an_absolute_path(root, data, monkeypatch):
  monkeypatch.chdir(root)
  path = make_workdir(root / "relative", data.relative_to(root))
  built = next(data.rglob("cases.csv")).parent
  assert json.loads((path / "dataset.json").read_text())["path"] == str(built)
  monkeypatch.chdir("/")
  dataset, external = common.open_data(tasks.load_model(path))
  assert (dataset.path, external) == (built, False)


def test_a_relative_path_of_an_older_workdir_is_found(
  root, trained, data, monkeypatch, tmp_path
):
  copy = root / "older" / "runs" / "a"
  shutil.copytree(trained, copy)
  built = next(data.rglob("cases.csv")).parent
  remember(copy, built.relative_to(root))
  monkeypatch.chdir(tmp_path)
  dataset, external = common.open_data(tasks.load_model(copy))
  assert (dataset.path, external) == (built, False)


def test_data_that_moved_are_found_where_the_flag_says(
  root, trained, data, other_data, result, tmp_path
):
  copy = tmp_path / "copy"
  shutil.copytree(trained, copy)
  remember(copy, "/nowhere/mine")
  with pytest.raises(UserError, match="/nowhere/mine .*--data=DIR") as error:
    evaluate_workdir(copy, bootstrap=100)
  assert result["data"]["fingerprint"] in str(error.value)
  shutil.copytree(data, tmp_path / "moved")
  found = evaluate_workdir(copy, data=str(tmp_path / "moved"), bootstrap=100)
  assert not found["data"]["external"]
  assert found["patient"] == result["patient"]
  remember(copy, other_data)
  with pytest.raises(UserError, match="is not the data that"):
    evaluate_workdir(copy, bootstrap=100)


def make_benchmark(root, name, *splits):
  """A MedMNIST3D file with these splits, built; no split has a sibling."""
  rng = np.random.default_rng(0)
  arrays = {}
  for split in splits:
    arrays[f"{split}_images"] = rng.integers(0, 256, (12, *SHAPE), np.uint8)
    arrays[f"{split}_labels"] = np.arange(12)[:, None] % 3 // 2
  np.savez_compressed(root / f"{name}.npz", **arrays)
  values = flags.FlagValues()
  build.define_flags(values)
  values(
    [
      *("build", "--source=medmnist", f"--input={root / name}.npz"),
      *(f"--out={root / name}", "--workers=1"),
    ]
  )
  build.build(build.config_from_flags(values), root / name)
  return root / name


def test_a_benchmark_is_evaluated_where_its_test_split_is(root):
  own = make_benchmark(root, "bench_train", "train", "val")
  path = make_workdir(root / "bench", own)
  with pytest.raises(UserError, match="the test split holds no case"):
    evaluate_workdir(path, bootstrap=100)
  seen = evaluate_workdir(path, split="validation", bootstrap=100)
  shutil.rmtree(own)  # The others' machine has the workdir and the test split.
  test = make_benchmark(root, "bench_test", "test")
  found = evaluate_workdir(path, data=str(test), bootstrap=100)
  assert found["n_patients"] == 12
  assert found["n_cad"] == 4
  assert found["data"]["external"]
  for name in ("threshold", "temperature"):
    assert found[name] == seen[name]
  assert not any("have the id" in note for note in found["notes"])
  half = found["at_half"]["accuracy"]
  rows, _ = read_rows(common.paths_of_result(found).rows(found["cases"]))
  called = [row["uncalibrated_probability"] >= 0.5 for row in rows]
  right = sum(x == row["label"] for x, row in zip(called, rows, strict=True))
  assert (half["k"], half["n"]) == (right, 12)
  assert f"(argmax): {right / 12:.3f} [" in classifiers.table(found)
  page = cohort.write(common.paths_of_result(found).folder).read_text()
  assert f"(argmax): {right / 12:.3f} [" in page


def test_external_data_on_another_grid_is_refused(root, trained):
  small = make_data(root, "small", shape=(6, 10, 12), seed=2)
  with pytest.raises(UserError, match="was trained on .* build the data on"):
    evaluate_workdir(trained, data=str(small))


def test_other_splits_have_their_own_folder_and_a_warning(trained, result):
  found = evaluate_workdir(trained, split="validation", bootstrap=100)
  assert found["threshold"] == result["threshold"]
  assert any("optimistic" in note for note in found["notes"])
  assert (trained / "eval" / "validation" / "metrics.json").exists()
  own = json.loads((trained / "eval" / "metrics.json").read_text())
  assert own["split"] == "test"


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"split": "tset"}, "--split=tset is none of test"),
    ({"threshold": "best"}, "--threshold: .* youden, f1"),
    ({"bootstrap": 5}, "use at least 100"),
    ({"batch_size": 0}, "--batch_size=0"),
  ],
)
def test_bad_settings_are_refused(trained, options, message):
  with pytest.raises(UserError, match=message):
    evaluate_workdir(trained, **options)


def test_a_model_of_nan_is_refused_and_leaves_no_metrics(root, data):
  path = make_workdir(root / "nan", data, spoil=True)
  with pytest.raises(UserError, match="logits of case .* not finite"):
    evaluate_workdir(path)
  assert not (path / "eval" / "metrics.json").exists()


def run(*flags):
  return subprocess.run(
    [sys.executable, "-m", "cadjax.evaluate", *flags],
    cwd=pathlib.Path(__file__).parents[1],
    capture_output=True,
    text=True,
  )


def test_program_prints_the_table(trained, result):
  done = run(f"--workdir={trained}", "--bootstrap=100")
  assert done.returncode == 0, done.stderr
  assert classifiers.table(result) in done.stdout
  assert "not a medical device" in done.stdout


def test_program_ends_in_one_line_without_a_workdir(tmp_path):
  done = run(f"--workdir={tmp_path / 'absent'}")
  assert done.returncode == 2
  lines = messages(done)
  assert len(lines) == 1
  assert lines[0].startswith("error: ")
  assert "absent" in lines[0]
