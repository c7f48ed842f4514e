"""A loaded classifier computes what its network does."""

import json

import jax
import numpy as np
import pytest
from tiny_runs import segmenter_config, write_workdir

from cadjax.classification import classifier
from cadjax.core import files
from cadjax.training import task, workdir
from data_prep.errors import UserError

SHAPE = (8, 16, 24)


@pytest.fixture(scope="module", params=[2, 3])
def loaded(request, tmp_path_factory):
  path = tmp_path_factory.mktemp("run") / "classifier"
  return classifier.load_classifier(write_workdir(path, ndim=request.param))


def test_logits_are_those_of_the_windowed_volume(loaded):
  low, high = loaded.window_hu
  rng = np.random.default_rng(0)
  hu = rng.integers(low - 300, high + 300, (2, *SHAPE, 1)).astype(np.int16)
  found = loaded.logits(hu)
  image = np.clip((hu.astype(np.float32) - low) / (high - low), 0, 1)
  model = task.make_model(loaded.config)
  if model.ndim == 2:
    image = image.reshape(-1, *image.shape[2:])
  apply = jax.jit(lambda v, x: model.apply(v, x, train=False)[0])
  want = np.asarray(apply(loaded.variables, image)).reshape(found.shape)
  assert found.shape == (2, SHAPE[0] if model.ndim == 2 else 1, 2)
  assert np.ptp(found) > 0.01
  np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


def test_a_segmenter_is_refused(tmp_path):
  path = write_workdir(tmp_path / "run", config=segmenter_config())
  with pytest.raises(UserError, match="is a segmenter; here a classifier"):
    classifier.load_classifier(path)


def test_one_that_sees_masks_is_for_evaluation_alone(tmp_path):
  path = write_workdir(tmp_path / "run")
  config = json.loads((path / "config.json").read_text())
  config["data"]["prior"]["use"] = "channels"
  files.write_json(path / "config.json", config)
  workdir.seal(path)
  with pytest.raises(UserError, match="config.data.prior.use = 'channels'"):
    classifier.load_classifier(path)
  assert classifier.load_classifier(path, prior=True).step > 0
