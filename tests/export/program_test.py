"""The exported function beside what cadjax computes."""

import itertools

import jax
import numpy as np
import pytest
import tiny_runs
from jax import export

from cadjax.classification.classifier import load_classifier
from cadjax.classification.scan import Calibration
from cadjax.core import lookup
from cadjax.explanation import explainer, heat_maps
from cadjax.export import program
from cadjax.metrics import calibration
from cadjax.segmentation.segmenter import load_segmenter
from cadjax.training import packed, steps, task

SHAPE = (24, 16, 20)


def fitted(pooling="mean", temperature=1.7):
  return Calibration(temperature, "", 0.5, "", pooling)


def volumes(count, shape=SHAPE):
  rng = np.random.default_rng(count)
  return rng.integers(-300, 900, (count, *shape)).astype(np.int16)


@pytest.fixture(scope="module", params=[2, 3])
def classifier(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp("run") / f"of_{request.param}d"
  return load_classifier(tiny_runs.write_workdir(folder, ndim=request.param))


@pytest.mark.parametrize("pooling", calibration.POOLINGS)
@pytest.mark.parametrize("slices", [1, 7, 32])
@pytest.mark.parametrize("spread", [1.0, 12.0, 200.0])
def test_slices_are_pooled_as_in_cadjax(pooling, slices, spread):
  margins = np.random.default_rng(slices).normal(1, spread, slices)
  probs = 1 / (1 + np.exp(-margins.astype(np.float64)))
  pooled = probs[0]
  if slices > 1:
    pooled = calibration.aggregate_slices(probs, pooling)
  found = program.pooled_log_odds(margins.astype(np.float32), pooling)
  # In float64, too, 1 - p has lost digits where p is near 1.
  for temperature in (0.5, 1.0, 4.0):
    np.testing.assert_allclose(
      jax.nn.sigmoid(found / temperature),
      calibration.calibrate(pooled, temperature),
      atol=1e-5,
    )


def test_an_unknown_pooling_is_refused():
  with pytest.raises(lookup.ConfigError, match="median"):
    program.pooled_log_odds(np.zeros(3, np.float32), "median")


def test_one_program_serves_any_number_of_volumes(classifier):
  """Serialised and read again, it gives what cadjax gives."""
  layers = ("stage1", "stage4")
  weights = packed.flatten(classifier.variables)
  made = program.classify(classifier, fitted(), layers=layers)
  exported = program.to_stablehlo(made, weights, SHAPE)
  assert exported.platforms == program.PLATFORMS
  run = jax.jit(export.deserialize(bytearray(exported.serialize())).call)
  for count in (1, 3):
    hu = volumes(count)
    result = run(weights, hu)
    logits = classifier.logits(hu[..., None])
    np.testing.assert_allclose(result["logits"], logits, atol=1e-5)
    margins = calibration.softmax_margin(logits)
    pooled = calibration.aggregate_slices(1 / (1 + np.exp(-margins)))
    np.testing.assert_allclose(
      result["probability"], calibration.calibrate(pooled, 1.7), atol=1e-5
    )
  options = explainer.ExplainOptions(methods=("hirescam",), layers=layers)
  _, maps = explainer.Explainer(classifier, options).explain(hu[2], 1)
  assert [heat.layer for heat in maps] == list(layers)
  # With random weights all of a map may speak against the class.
  assert any(heat.cells.max() > 0 for heat in maps)
  for heat in maps:
    expected = heat_maps.on_model_grid(heat, SHAPE)
    np.testing.assert_allclose(
      result[f"map/{heat.layer}"][2], expected, atol=1e-5
    )


def test_maps_are_of_layers_that_there_are(classifier):
  with pytest.raises(lookup.ConfigError, match="stage9"):
    program.classify(classifier, fitted(), layers=("stage9",))
  with pytest.raises(lookup.ConfigError, match="gradcan"):
    program.classify(classifier, fitted(), layers=("stem",), method="gradcan")


@pytest.mark.parametrize("mirror", [False, True])
def test_a_segmenters_window(tmp_path, mirror):
  config = tiny_runs.segmenter_config()
  config.segment.mirror = mirror
  path = tiny_runs.write_workdir(tmp_path / "segmenter", config=config)
  segmenter = load_segmenter(path)
  window = tuple(config.data.patch_size)
  weights = packed.flatten(segmenter.variables)
  exported = program.to_stablehlo(program.segment(segmenter), weights, window)
  hu = volumes(2, window)
  found = jax.jit(exported.call)(weights, hu)["probabilities"]
  np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
  np.testing.assert_allclose(found, reference(segmenter, hu, mirror), atol=1e-5)
  for one, of_it in zip(hu, found, strict=True):
    # Half precision is what cadjax keeps.
    expected = segmenter.segment(one, probabilities=True, keep_thin=True)
    np.testing.assert_allclose(of_it, expected.probabilities, atol=1e-3)
    clear = np.sort(of_it)[..., -2:]
    clear = clear[..., 1] - clear[..., 0] > 1e-4
    np.testing.assert_array_equal(
      of_it.argmax(-1)[clear], expected.labels[clear]
    )


def reference(segmenter, hu, mirror):
  """The mean of the softmax over mirror images, in float32."""
  model = task.make_model(segmenter.config)
  image = np.asarray(steps.window(hu, segmenter.window_hu))[..., None]
  apply = jax.jit(lambda x: model.apply(segmenter.variables, x, train=False)[0])
  turns = itertools.product(*[(False, True) if mirror else (False,)] * 3)
  found = []
  for flips in turns:
    axes = [1 + axis for axis in range(3) if flips[axis]]
    probs = jax.nn.softmax(apply(np.flip(image, axes)), -1)
    found.append(np.flip(probs, axes))
  return np.mean(found, 0)
