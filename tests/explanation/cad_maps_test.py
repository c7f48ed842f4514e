"""All maps of a classifier, made to be measured."""

import types

import jax
import numpy as np
import pytest
import scipy.special

from cadjax.classification import scan
from cadjax.classification.classifier import load_classifier
from cadjax.core import lookup
from cadjax.explanation import cad_maps, cam, checks
from cadjax.metrics import calibration
from cadjax.training import steps


@pytest.fixture(scope="module")
def maker(tiny_workdir):
  return cad_maps.CadMaps(load_classifier(tiny_workdir))


@pytest.fixture(scope="module")
def image():
  rng = np.random.default_rng(0)
  return rng.integers(-200, 800, (16, 24, 32)).astype(np.int16)


def test_every_layer_and_method_has_a_map_on_its_cells(maker, image):
  cells = maker.cells(image)
  assert set(cells) == set(cam.METHODS)
  for by_layer in cells.values():
    assert set(by_layer) == set(maker.strides)
    for layer, values in by_layer.items():
      expected = -(-np.array(image.shape) // maker.strides[layer])
      np.testing.assert_array_equal(values.shape, expected)
  strides = list(maker.strides.values())
  assert strides == sorted(strides)
  layer, values = max(cells["layercam"].items(), key=lambda x: x[1].max())
  heat = maker.heat(values, layer, image.shape)
  assert heat.shape == image.shape
  assert heat.max() == pytest.approx(1)


def test_other_variables_make_other_maps(maker, image):
  fresh = maker.fresh(7)
  assert jax.tree.structure(fresh) == jax.tree.structure(maker.variables)
  own, other = maker.cells(image), maker.cells(image, fresh)
  assert any(
    not np.allclose(own["gradcam"][layer], other["gradcam"][layer])
    for layer in maker.strides
  )
  order = ("head", *reversed(maker.strides))
  mixed = checks.randomise(maker.variables, fresh, order, order[-1])
  again = maker.cells(image, mixed)
  for layer in maker.strides:
    np.testing.assert_allclose(
      again["gradcam"][layer], other["gradcam"][layer], atol=1e-6
    )


def test_maps_do_not_see_what_all_logits_share(maker, image):
  """It changes no probability, and training leaves it as it was drawn."""
  rng = np.random.default_rng(0)
  head = maker.variables["params"]["head"]
  common = 10 * rng.normal(size=(head["kernel"].shape[0], 1))
  moved = jax.tree.map(lambda x: x, maker.variables)
  moved["params"] = dict(moved["params"])
  moved["params"]["head"] = head | {"kernel": head["kernel"] + common}
  own, other = maker.cells(image), maker.cells(image, moved)
  for method, by_layer in own.items():
    for layer, cells in by_layer.items():
      np.testing.assert_allclose(
        other[method][layer], cells, rtol=1e-2, atol=1e-3 * cells.max() + 1e-7
      )
  explain = jax.jit(cam.make_explain(maker.model, score="logit"))
  x = steps.window(image[None, ..., None], (-100.0, 800.0))
  a, b = (
    explain(variables, x, 1)[1]["gradcam"]
    for variables in (maker.variables, moved)
  )
  assert any(
    not np.allclose(a[layer], b[layer], rtol=0.1) for layer in maker.strides
  )


@pytest.mark.parametrize("pooling", calibration.POOLINGS)
def test_log_odds_of_slices_are_those_of_the_decision(pooling):
  """One slice is sure of CAD, the others lean the other way."""
  margins = np.array([[4.0, -1.0, -1.0, -1.5], [-2.0, -1.0, -3.0, -1.0]])
  logits = np.stack([np.zeros_like(margins), margins], -1)
  maker = object.__new__(cad_maps.CadMaps)
  maker.trained = types.SimpleNamespace(logits=lambda images: logits)
  maker.pooling = pooling
  fitted = scan.Calibration(None, "", 0.5, "", pooling)
  found = maker.log_odds(np.zeros((2, 4, 3, 3), np.int16))
  for value, each in zip(found, margins, strict=True):
    own = np.stack([np.zeros_like(each), each], -1)
    made = scan.make_prediction(own, scipy.special.expit(each), fitted)
    pooled = made.uncalibrated_probability
    assert scipy.special.expit(value) == pytest.approx(pooled, abs=1e-9)
  if pooling == "max":
    np.testing.assert_allclose(found, [4.0, -1.0])


def test_log_odds_are_the_margin_of_the_logits(maker, image):
  logits = maker.trained.logits(image[None, ..., None])[0, 0]
  assert maker.log_odds(image[None])[0] == pytest.approx(
    logits[1] - logits[0], abs=1e-5
  )


def test_methods_of_many_passes_have_maps_too(tiny_workdir, image):
  trained = load_classifier(tiny_workdir)
  maker = cad_maps.CadMaps(trained, ("gradcam", "integrated_gradients"))
  assert maker.pairs() == [
    *((layer, "gradcam") for layer in maker.strides),
    ("input", "integrated_gradients"),
  ]
  signed = maker.cells(image, signed=True)["integrated_gradients"]["input"]
  plain = maker.cells(image)["integrated_gradients"]["input"]
  np.testing.assert_array_equal(plain, np.maximum(signed, 0))
  # Signed contributions add up to the log odds over those of a blank image.
  low = np.full_like(image, trained.window_hu[0])
  change = np.diff([maker.log_odds(x[None])[0] for x in (low, image)])[0]
  assert signed.sum() == pytest.approx(change, rel=0.1, abs=0.02)
  assert (signed < 0).any()
  # Those of the other class are the opposite, and so of other variables.
  other = maker.cells(image, target=0, signed=True)
  np.testing.assert_allclose(
    other["integrated_gradients"]["input"], -signed, atol=1e-5
  )
  fresh = maker.cells(image, maker.fresh(7), signed=True)
  assert not np.allclose(fresh["integrated_gradients"]["input"], signed)
  with pytest.raises(lookup.UnknownName, match="did you mean 'gradcam'"):
    cad_maps.CadMaps(trained, ("gradcem",))
