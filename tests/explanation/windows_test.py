"""cam_windows: windows together give what one pass over the whole gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import Fcn, draw_variables

from cadjax.core import lookup
from cadjax.explanation import cam, windows
from cadjax.explanation.windows import METHODS, WindowExplainer
from cadjax.segmentation import sliding

WINDOW = (32, 24, 24)


@pytest.fixture(scope="module")
def model():
  return Fcn()


@pytest.fixture(scope="module")
def variables(model):
  return draw_variables(model, 3, seed=4)


def volume(shape, seed=0):
  rng = np.random.default_rng(seed)
  return rng.random(shape, np.float32)


def whole(model, variables, image, target, region, methods, window):
  explain = jax.jit(cam.make_explain(model, methods=methods, window=window))
  _, maps = explain(
    variables, image[None, ..., None], target, region[None].astype(jnp.float32)
  )
  return {m: {k: v[0] for k, v in each.items()} for m, each in maps.items()}


@pytest.mark.parametrize("shape", [(52, 40, 36), (32, 24, 24), (10, 9, 20)])
def test_windows_agree_with_one_pass(model, variables, shape):
  """A logit sees 6 voxels to each side, a quarter of the smallest edge."""
  image = volume(shape)
  region = volume(shape, seed=1) > 0.5
  explainer = WindowExplainer(model, WINDOW, methods=METHODS, window=2)
  found = explainer(variables, image, 1, region)
  # A volume that is no whole number of cells, or smaller than the window, is
  # padded with zeros. A network pads, too, but with zeros in every map.
  padded = shape == (10, 9, 20)
  ends = [(0, -n % 2) for n in shape]
  expected = whole(
    model, variables, np.pad(image, ends), 1, np.pad(region, ends), METHODS, 2
  )
  # Nor does a mean over the volume see its real cells alone.
  for method in METHODS[1:] if padded else METHODS:
    for layer, value in found[method].items():
      strides = explainer.strides[layer]
      cells = tuple(-(-n // s) for n, s in zip(shape, strides, strict=True))
      assert value.shape == cells
      other = np.asarray(expected[method][layer])
      other = other[tuple(slice(n) for n in cells)]
      top = other.max()
      assert top > 0
      if padded:
        near = tuple(slice(max(n - 8 // strides[0], 1)) for n in cells)
        value, other = value[near], other[near]
      error = np.abs(value - other).max() / top
      assert error < 0.02, (method, layer, error)


def test_no_seams(model, variables):
  """Of an image that is the same everywhere, the map is, too."""
  shape = (80, 24, 24)
  explainer = WindowExplainer(model, WINDOW, methods=METHODS, window=2)
  found = explainer(variables, np.full(shape, 0.5), 1, np.ones(shape, bool))
  for method in METHODS:
    for layer, value in found[method].items():
      # Without the borders of the volume, where the network pads.
      edge = [8 // s for s in explainer.strides[layer]]
      inner = value[tuple(slice(n, -n) for n in edge)]
      assert inner.max() > 0
      # The network itself repeats every two cells of the coarser map.
      step = 4 // explainer.strides[layer][0]
      change = np.abs(inner[step:] - inner[:-step]).max()
      assert change < 0.02 * inner.max(), (method, layer)


def test_windows_without_region_are_not_computed(model, variables, monkeypatch):
  shape = (80, 24, 24)
  region = np.zeros(shape, bool)
  region[3, 8, 8] = True
  explainer = WindowExplainer(model, WINDOW, methods=("hirescam",))
  calls = []
  local = explainer._local
  monkeypatch.setattr(
    explainer, "_local", lambda *args: calls.append(1) or local(*args)
  )
  found = explainer(variables, volume(shape), 1, region)["hirescam"]["enc1"]
  assert len(calls) < len(sliding.window_starts(80, 32, 0.5, 2))
  assert found.max() > 0
  assert np.argwhere(found > 0)[:, 0].max() <= 3 + 6


@pytest.mark.parametrize("n", [1, 16, 17, 40, 41, 100, 255])
@pytest.mark.parametrize(("size", "overlap"), [(16, 0.5), (24, 0.25), (16, 0)])
@pytest.mark.parametrize("step", [1, 4, 8])
def test_windows_cover_the_axis_on_whole_cells(n, size, overlap, step):
  starts = sliding.window_starts(n, size, overlap, step)
  assert starts[0] == 0
  assert all(start % step == 0 for start in starts)
  assert n <= starts[-1] + size < max(n, size) + step
  hops = np.diff(starts)
  assert (hops > 0).all()
  assert (hops <= max(size * (1 - overlap), step) + 1e-9).all()
  shares = windows._shares(n, starts, size)
  total = np.zeros(starts[-1] + size)
  for start, share in zip(starts, shares, strict=True):
    total[start : start + size] += share
  np.testing.assert_allclose(total[:n], 1, rtol=1e-5)
  np.testing.assert_array_equal(total[n:], 0)


def test_bad_choices_are_told(model):
  with pytest.raises(lookup.ConfigError, match=r"multiples of \(2, 2, 2\)"):
    WindowExplainer(model, (32, 24, 15))
  with pytest.raises(lookup.UnknownName, match="patch-wise.*'gradcam\\+\\+'"):
    WindowExplainer(model, WINDOW, methods=("gradcam++",))
  with pytest.raises(lookup.UnknownName, match="layer 'enc2'.*'enc1'"):
    WindowExplainer(model, WINDOW, layers=("enc2",))
