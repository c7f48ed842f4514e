"""What a classifier sees beside the volume."""

import dataclasses
import json
import random

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from tiny_runs import write_workdir

from cadjax import tasks
from cadjax.classification import adapt, classifier, priors, task
from cadjax.classification.scan import classify_scan
from cadjax.core import lookup
from cadjax.data import input_pipeline, scans
from cadjax.evaluation import common
from cadjax.evaluation.workdirs import evaluate_workdir
from cadjax.training import workdir
from configs import resnet3d
from data_prep import geometry, phantom
from data_prep.errors import UserError
from data_prep.geometry import GridSpec
from data_prep.tissues import HEART, Tissue
from data_prep.volume import Volume


def config_of(use: str, ndim: int = 3, margin=(1, 1, 1)):
  return ml_collections.ConfigDict(
    {
      "data": {"prior": {"use": use, "masks": "", "margin_voxels": margin}},
      "model": {"ndim": ndim},
    }
  )


def test_channels_are_aorta_and_coronaries_with_their_plaque():
  image = jnp.full((1, 1, 1, 5, 1), 0.5)
  mask = jnp.arange(5, dtype=jnp.uint8).reshape(1, 1, 1, 5)
  config = config_of("channels")
  seen = np.asarray(priors.make_prior(config)(image, mask))[0, 0, 0]
  assert priors.channels(config) == 3
  np.testing.assert_array_equal(seen[:, 0], np.full(5, 0.5, np.float32))
  np.testing.assert_array_equal(seen[:, 1], [0, 1, 0, 0, 0])
  np.testing.assert_array_equal(seen[:, 2], [0, 0, 1, 1, 1])


@pytest.mark.parametrize("ndim", [2, 3])
def test_region_keeps_the_margin_around_coronaries_alone(ndim):
  shape = (1, *(7,) * ndim)
  mask = np.zeros(shape, np.uint8)
  mask[0, *(3,) * ndim] = 3
  mask[0, *(0,) * ndim] = 1  # Of the aorta nothing stays.
  config = config_of("region", ndim, (0, 1, 2))
  image = jnp.full((*shape, 1), 0.5)
  seen = np.asarray(priors.make_prior(config)(image, jnp.asarray(mask)))
  inside = np.zeros((7, 7, 7))
  inside[3, 2:5, 1:6] = 0.5
  np.testing.assert_array_equal(
    seen[0, ..., 0], inside if ndim == 3 else inside[3]
  )
  assert priors.channels(config) == 1


@pytest.mark.parametrize("ndim", [2, 3])
def test_heart_keeps_chambers_and_muscle_in_records_and_scans_alike(ndim):
  rng = np.random.default_rng(0)
  hu = rng.integers(-1000, 1200, (6, 7, 8)).astype(np.int16)
  mask = np.full(hu.shape, Tissue.FAT, np.uint8)
  mask[2:4, 3, 3:5] = Tissue.MYOCARDIUM
  mask[3, 2, 4] = Tissue.LEFT_VENTRICLE
  mask[5] = Tissue.LUMEN
  config = config_of("heart", ndim, (0, 1, 2))
  config.data.window_hu = (-200.0, 1000.0)
  image = np.clip((hu[..., None].astype(np.float32) + 200) / 1200, 0, 1)
  batch = (image, mask) if ndim == 2 else (image[None], mask[None])
  seen = priors.make_prior(config)(*map(jnp.asarray, batch))
  kept = priors.keep_heart(hu, np.isin(mask, HEART), config)
  windowed = np.clip((kept.astype(np.float32) + 200) / 1200, 0, 1)
  np.testing.assert_allclose(
    np.asarray(seen).reshape(hu.shape), windowed, atol=1e-6
  )
  changed = np.argwhere(kept != hu)
  inside = np.argwhere(kept == hu)
  assert (inside.min(0) == [2, 1, 1]).all()
  assert (inside.max(0) == [3, 4, 6]).all()
  assert len(changed) + len(inside) == hu.size


def test_a_scan_without_a_heart_mask_is_refused_by_one_that_sees_the_heart(
  tmp_path,
):
  config = resnet3d.get_config().copy_and_resolve_references()
  with config.unlocked():
    config.model.update(depth=10, width=4)
    config.data.prior.use = "heart"
    config.data.prior.margin_voxels = (1, 1, 1)
  path = write_workdir(tmp_path / "run", config=config)
  loaded = classifier.load_classifier(path)
  drawn = phantom.make_phantom(3, grid=GridSpec("spacing", spacing_mm=(4,) * 3))
  scan = scans.Scan("a", "a.nii", drawn.volume)
  with pytest.raises(UserError, match=r"a\.nii: .* sees the heart alone"):
    classify_scan(loaded, scan)
  heart = np.isin(drawn.tissues, HEART).astype(np.uint8)
  masked = dataclasses.replace(
    scan, heart_mask=Volume(heart, drawn.volume.grid)
  )
  found = classify_scan(loaded, masked)
  grid = found.reading.model_input.grid
  on_grid = geometry.to_grid(drawn.volume, loaded.grid).hu
  labels = geometry.mask_to_grid(Volume(heart, drawn.volume.grid), grid)
  want = loaded.logits(
    on_grid[None, ..., None], Tissue.MYOCARDIUM * labels[None]
  )
  np.testing.assert_allclose(
    found.prediction.logits, want[0, 0], rtol=1e-4, atol=1e-4
  )
  grid = drawn.volume.grid
  origin = tuple(np.array(grid.origin) + 2000)
  away = Volume(heart, dataclasses.replace(grid, origin=origin))
  blank = dataclasses.replace(scan, heart_mask=away)
  with pytest.raises(UserError, match="heart mask lies outside"):
    classify_scan(loaded, blank)


def test_without_a_prior_there_is_none():
  assert priors.make_prior(config_of("none")) is None
  assert not priors.used(ml_collections.ConfigDict({"data": {}}))
  with pytest.raises(lookup.ConfigError, match="did you mean 'channels'"):
    priors.used(config_of("chanels"))


def test_predicted_masks_come_back(tmp_path):
  mask = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 5
  priors.write_mask(tmp_path, "one", mask)
  read = priors.make_reader(str(tmp_path), "channels")
  record = {"image": np.zeros((2, 3, 4), np.int16)}
  np.testing.assert_array_equal(read({"case_id": "one"}, record), mask)
  with pytest.raises(UserError, match=r"two\.npz: no predicted mask"):
    read({"case_id": "two"}, record)
  with pytest.raises(UserError, match="predict the masks on this data set"):
    read({"case_id": "one"}, {"image": np.zeros((3, 3, 4), np.int16)})


def test_damaged_predicted_masks_are_one_line(tmp_path):
  mask = np.random.default_rng(0).integers(0, 5, (8, 8, 8), np.uint8)
  priors.write_mask(tmp_path, "one", mask)
  read = priors.make_reader(str(tmp_path), "channels")
  record = {"image": np.zeros(mask.shape, np.int16)}
  path, rng = tmp_path / "one.npz", random.Random(0)
  content = path.read_bytes()
  for _ in range(60):
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)
    try:
      found = read({"case_id": "one"}, record)
    except UserError:
      continue
    np.testing.assert_array_equal(found, mask)
  priors.write_mask(tmp_path, "one", mask + 100)
  with pytest.raises(UserError, match="must hold the classes 0 to 38"):
    read({"case_id": "one"}, record)


def test_a_run_does_not_go_on_with_other_predicted_masks(tiny_config, tmp_path):
  config = tiny_config.copy_and_resolve_references()
  config.data.prior.use = "region"
  config.data.prior.masks = str(tmp_path / "masks")
  rows = input_pipeline.open_dataset(config.data).rows
  mask = np.full((16, 24, 32), 2, np.uint8)
  for split in ("train", "validation"):
    for row in rows[split]:
      priors.write_mask(tmp_path / "masks", row["case_id"], mask)
  dataset = task.open_dataset(config)
  assert dataset.prior_masks["test"] is None  # Not read in training.
  path = write_workdir(tmp_path / "w", config=config)
  (path / "config.json").write_text(json.dumps(config.to_dict()))
  about = workdir.describe_dataset(dataset)
  (path / "dataset.json").write_text(json.dumps(about))
  workdir.seal(path)
  workdir.prepare(path, config, task.open_dataset(config))
  assert common.open_data(workdir.load_trained(path))[0].prior is not None
  priors.write_mask(tmp_path / "masks", rows["train"][0]["case_id"], mask * 0)
  with pytest.raises(UserError, match="masks of the split train are others"):
    workdir.prepare(path, config, task.open_dataset(config))
  with pytest.raises(UserError, match="masks of the split train are not those"):
    common.open_data(workdir.load_trained(path))


def test_a_classifier_with_masks_trains_and_is_evaluated(tiny_config, tmp_path):
  config = tiny_config.copy_and_resolve_references()
  config.epochs = 1
  config.data.prior.use = "channels"
  state = tasks.train_and_evaluate(config, tmp_path / "w")
  seen = {x.shape[-2] for x in jax.tree.leaves(state.params) if x.ndim == 5}
  assert 3 in seen
  assert 1 not in seen
  result = evaluate_workdir(tmp_path / "w", bootstrap=100)
  assert result["n_patients"] == 8
  with pytest.raises(UserError, match="only cadjax.evaluate"):
    tasks.load_model(tmp_path / "w")


def test_a_classifier_of_the_heart_trains_and_needs_no_masks_of_vessels(
  tiny_config, tmp_path
):
  config = tiny_config.copy_and_resolve_references()
  config.epochs = 1
  config.data.prior.use = "heart"
  config.data.prior.margin_voxels = (1, 2, 2)
  with config.unlocked():
    config.augment = {
      "tissues": {"probability": 0.5, "shift_probability": 1.0},
      "surroundings": {"probability": 1.0},
    }
  tasks.train_and_evaluate(config, tmp_path / "w")
  result = evaluate_workdir(tmp_path / "w", bootstrap=100)
  assert result["n_patients"] == 8
  # The evaluation blanks what the mask of the record leaves out.
  loaded = tasks.load_model(tmp_path / "w")
  dataset = common.open_data(loaded)[0]
  batch = dataset.batch(dataset.rows["test"][:2], 2)
  seen = loaded.logits(batch["image"], batch["prior"])
  whole = loaded.logits(batch["image"])
  assert np.abs(seen - whole).max() > 1e-4
  # So do the maps' measures, which read records one by one.
  record = dataset.read(dataset.rows["test"][0])
  blank = loaded.seen(record)
  np.testing.assert_allclose(
    loaded.logits(blank[None, ..., None]), seen[:1], atol=1e-4
  )
  with pytest.raises(UserError, match="sees masks beside the volume"):
    adapt.adapt_norms(loaded, dataset, 2)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"use": "none"}, "config.augment.tissues reads masks"),
    ({"masks": "somewhere"}, "needs masks of every tissue"),
  ],
)
def test_augmentations_that_read_masks_ask_for_them(
  tiny_config, changes, message
):
  config = tiny_config.copy_and_resolve_references()
  config.data.prior.use = "heart"
  config.data.prior.update(changes)
  with config.unlocked():
    config.augment = {"tissues": {}}
  with pytest.raises(lookup.ConfigError, match=message):
    task.check(config)


def test_masks_that_are_not_given_are_not_ignored(tmp_path):
  config = resnet3d.get_config().copy_and_resolve_references()
  with config.unlocked():
    config.model.update(depth=10, width=4)
    config.data.prior.use = "region"
  path = write_workdir(tmp_path / "run", config=config)
  loaded = classifier.load_classifier(path, prior=True)
  with pytest.raises(ValueError, match="'region' needs its masks"):
    loaded.logits(np.zeros((1, 8, 8, 8, 1), np.int16))


@pytest.mark.parametrize(
  ("use", "known", "enough"),
  [
    ("channels", [1, 1, 1, 0, 0], True),
    ("channels", [1, 0, 1, 0, 0], False),
    ("region", [1, 0, 1, 0, 0], True),
    ("region", [1, 1, 0, 0, 0], False),
    ("heart", [1, 1, 1, 1, 1, 0, 1, 1, 1, 1], False),
    ("heart", [1, 0, 0, 0, 0, 1, 1, 1, 1, 1], True),
  ],
)
def test_a_mask_that_does_not_know_the_vessels_is_refused(use, known, enough):
  """Were only diseased hearts annotated, a mask would be the label."""
  read = priors.make_reader("", use)
  record = {"mask": np.zeros((2, 2, 2), np.uint8), "mask_classes": known}
  if enough:
    assert read({"case_id": "a"}, record) is record["mask"]
    return
  with pytest.raises(UserError, match="mask of the case a does not annotate"):
    read({"case_id": "a"}, record)


def test_data_without_masks_are_refused(tiny_config, monkeypatch):
  config = tiny_config.copy_and_resolve_references()
  config.data.prior.use = "region"
  monkeypatch.setattr(
    input_pipeline.Dataset, "has_masks", property(lambda _: False)
  )
  with pytest.raises(UserError, match="holds no masks"):
    tasks.find(config).open_dataset(config)
