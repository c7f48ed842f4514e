"""A loaded segmenter labels what its network does, window by window."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import segmenter_config, write_workdir

from cadjax.segmentation import segmenter, sliding
from cadjax.training import task
from data_prep.errors import UserError


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  path = tmp_path_factory.mktemp("run") / "segmenter"
  return segmenter.load_segmenter(
    write_workdir(path, config=segmenter_config(conv="lax"))
  )


def noise(shape):
  return np.random.default_rng(0).integers(-200, 900, shape).astype(np.int16)


def test_one_window_is_labelled_as_by_the_network(loaded):
  hu = noise(segmenter.window_of(loaded.config))
  found = loaded.segment(hu, probabilities=True)
  low, high = loaded.window_hu
  image = jnp.clip((hu[None, ..., None] - low) / (high - low), 0, 1)
  model = task.make_model(loaded.config)
  logits, _ = jax.jit(lambda v, x: model.apply(v, x, train=False))(
    loaded.variables, image
  )
  want = np.asarray(jax.nn.softmax(logits[0]))
  np.testing.assert_allclose(found.probabilities, want, atol=2e-3)
  sure = np.sort(want, -1)[..., -1] - np.sort(want, -1)[..., -2] > 1e-3
  np.testing.assert_array_equal(found.labels[sure], want.argmax(-1)[sure])
  assert len(loaded.class_names) == want.shape[-1]
  assert len(np.unique(found.labels)) > 1


@pytest.mark.parametrize("shape", [(5, 16, 16), (9, 20, 31)])
def test_volumes_of_any_size_keep_it(loaded, shape):
  found = loaded.segment(noise(shape))
  assert (found.labels.shape, found.labels.dtype) == (shape, np.uint8)
  assert found.probabilities is None


def test_a_window_of_the_config_comes_before_the_patch():
  config = segmenter_config()
  assert segmenter.window_of(config) == (8, 16, 16)
  config.segment.window = (4, 8, 8)
  assert segmenter.window_of(config) == (4, 8, 8)


def test_a_shell_of_soft_plaque_is_background(loaded, monkeypatch):
  """One voxel thick, as blood and fat mix along the wall of the lumen."""
  labels = np.zeros((9, 12, 12), np.uint8)
  labels[:, 3:9, 3:9] = 4
  labels[:, 4:8, 4:8] = 2  # The lumen, within one voxel of plaque,
  labels[2:6, 9:11, 4:8] = 4  # and plaque that is three voxels thick.
  labels[2:5, 0, 0] = 3  # Calcium may be thin.
  config = segmenter_config()
  config.segment.classes = "four"
  made = dataclasses.replace(loaded, config=config)

  def say(*_, **__):
    return sliding.Segmentation(
      labels.copy(), np.eye(5, dtype=np.float16)[labels]
    )

  monkeypatch.setattr(segmenter.Segmenter, "_sliding", say)
  hu = np.zeros(labels.shape, np.int16)
  np.testing.assert_array_equal(made.segment(hu).labels, labels)
  with config.unlocked():
    config.segment.min_soft_voxels = 2
  found = made.segment(hu)
  expected = np.where(labels == 4, 0, labels)
  expected[2:6, 8:11, 4:8] = 4
  np.testing.assert_array_equal(found.labels, expected)
  np.testing.assert_array_equal(found.probabilities.argmax(-1), expected)
  kept = made.segment(hu, keep_thin=True)
  np.testing.assert_array_equal(kept.labels, labels)


def test_a_network_that_gives_nan_is_not_a_trained_model(loaded):
  broken = jax.tree.map(lambda x: np.full_like(x, np.nan), loaded.variables)
  with pytest.raises(UserError, match="NaN.*not a trained model"):
    dataclasses.replace(loaded, variables=broken).segment(noise((8, 16, 16)))


def test_a_classifier_is_refused(tmp_path):
  with pytest.raises(UserError, match="is a classifier; here a segmenter"):
    segmenter.load_segmenter(write_workdir(tmp_path / "run"))
