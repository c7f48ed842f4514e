"""What an explainer takes, and the cells and scores that it gives."""

import numpy as np
import pytest
import scipy.special
from tiny_runs import segmenter_config, write_workdir

from cadjax import tasks
from cadjax.core import lookup
from cadjax.explanation.explainer import INPUT, Explainer, ExplainOptions
from cadjax.explanation.heat_maps import on_model_grid
from data_prep.errors import UserError

SHAPE = (8, 17, 24)  # No multiple of the strides.


KINDS = ("classify 3", "classify 2", "segment")


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
  path = tmp_path_factory.mktemp("run") / "model"
  if request.param == "segment":
    config = segmenter_config(conv="lax")
    return tasks.load_model(write_workdir(path, config=config))
  return tasks.load_model(write_workdir(path, ndim=int(request.param[-1])))


def noise():
  return np.random.default_rng(0).integers(-200, 900, SHAPE).astype(np.int16)


def test_every_method_and_layer_has_a_map_on_its_cells(trained):
  explainer = Explainer(trained, ExplainOptions(methods=("layercam",)))
  region = np.ones(SHAPE, bool) if explainer.is_segmenter else None
  logits, maps = explainer.explain(noise(), 1, region)
  names = [(heat.method, heat.layer) for heat in maps]
  layers = list(explainer.strides)
  assert names == [("layercam", layer) for layer in layers]
  for heat in maps:
    cells = -(-np.array(SHAPE) // heat.strides)
    np.testing.assert_array_equal(heat.cells.shape, cells)
    assert heat.cells.min() >= 0
    assert np.isfinite(heat.cells).all()
  assert max(heat.cells.max() for heat in maps) > 0
  if explainer.is_segmenter:
    assert logits is None
  else:
    want = trained.logits(noise()[None, ..., None])[0]
    np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-4)
    value = explainer.score(logits, 1)
    margin = logits[:, 1] - logits[:, 0]
    assert value == pytest.approx(margin.mean(), rel=1e-5)


@pytest.mark.parametrize("trained", ["classify 3"], indirect=True)
def test_occlusion_has_a_map_on_its_steps(trained):
  options = ExplainOptions(
    methods=("occlusion",), occlusion_step=(4, 8, 8), batch=8
  )
  logits, (heat,) = Explainer(trained, options).explain(noise(), 1)
  assert logits is None  # It sees no layer, and so none of one pass.
  assert (heat.layer, heat.strides) == (INPUT, (4, 8, 8))
  assert heat.cells.shape == (2, 3, 3)
  assert heat.cells.min() >= 0


MANY = ("scorecam", "ablationcam")
FINE = ("gradient_x_input", "guided_backprop", "guided_gradcam")


@pytest.mark.parametrize("trained", ["classify 2", "segment"], indirect=True)
def test_other_methods_explain_slices_and_segmenters(trained):
  first = next(iter(Explainer(trained, ExplainOptions()).strides))
  options = ExplainOptions(methods=(*MANY, *FINE), layers=(first,), batch=4)
  explainer = Explainer(trained, options)
  region = np.ones(SHAPE, bool) if explainer.is_segmenter else None
  logits, maps = explainer.explain(noise(), 1, region)
  assert logits is None
  found = {heat.method: heat for heat in maps}
  assert list(found) == [*MANY, *FINE]
  for method, heat in found.items():
    strides = explainer.strides[first] if method in MANY else (1, 1, 1)
    assert heat.strides == tuple(strides)
    assert heat.layer == (INPUT if method in FINE[:2] else first)
    np.testing.assert_array_equal(
      heat.cells.shape, -(-np.array(SHAPE) // heat.strides)
    )
    assert np.isfinite(heat.cells).all(), method
    assert heat.cells.min() >= 0, method
  # A point of light in guided backpropagation, where Grad-CAM lets it through.
  coarse = ExplainOptions(methods=("gradcam",), layers=(first,))
  _, (heat,) = Explainer(trained, coarse).explain(noise(), 1, region)
  np.testing.assert_allclose(
    found["guided_gradcam"].cells,
    found["guided_backprop"].cells * on_model_grid(heat, SHAPE),
    rtol=1e-3,
    atol=1e-6,
  )


@pytest.mark.parametrize("trained", ["segment"], indirect=True)
def test_a_segmenters_score_is_the_sum_over_the_region(trained):
  explainer = Explainer(trained, ExplainOptions())
  assert explainer.is_segmenter
  logits = explainer.logits(noise())
  assert logits.shape == (*SHAPE, explainer.num_classes)
  region = np.zeros(SHAPE, bool)
  region[2:4, 3, 5:] = True
  value = explainer.score(logits, 2, region)
  log_p = scipy.special.log_softmax(logits[region].astype(float), -1)
  odds = log_p[:, 2] - np.log1p(-np.exp(log_p[:, 2]))
  assert value == pytest.approx(odds.sum(), rel=1e-4)


def test_the_box_of_occlusion_follows_its_step(trained):
  explainer = Explainer(trained, ExplainOptions(methods=("occlusion",)))
  assert explainer.occlusion_step(SHAPE) == (1, 3, 3)
  assert explainer.occlusion_box(SHAPE) == (3, 7, 7)
  given = ExplainOptions(methods=("occlusion",), occlusion_step=(2, 2, 4))
  explainer = Explainer(trained, given)
  assert explainer.described(SHAPE) == {
    "occlusion": {"step": (2, 2, 4), "box": (5, 5, 9)}
  }


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"methods": ("gradcm",)}, "'gradcm'; did you mean 'gradcam'"),
    ({"layers": ("stage9",)}, "unknown layer 'stage9'"),
    ({"score": "margn"}, "unknown score 'margn'; did you mean 'margin'"),
  ],
)
def test_unknown_names_are_refused(trained, options, message):
  with pytest.raises(lookup.UnknownName, match=message):
    Explainer(trained, ExplainOptions(**options))


def test_windows_are_for_3d_segmenters(trained):
  options = ExplainOptions(methods=("layercam", "occlusion"), patch=(8, 16, 16))
  message = "windows are for 3D segmenters"
  if Explainer(trained, ExplainOptions()).is_segmenter:
    message = "occlusion: takes whole volumes"
  with pytest.raises(UserError, match=message):
    Explainer(trained, options)
