"""MONAI's Grad-CAM gives the same maps; needs `[bench]`.

Not so its Grad-CAM++, which sums A g^3 over the cells where the paper has
g^3 of one cell times the sum of A.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import enable_x64

from cadjax import models
from cadjax.explanation import cam

torch = pytest.importorskip("torch")

from monai_nets import (  # noqa: E402 (it imports torch)
  make_torch,
  monai_nets,  # noqa: F401 (a fixture)
  to_flax,
)

SPACE = {2: (70, 57), 3: (34, 40, 49)}
LAYERS = {f"stage{i}": f"layer{i}" for i in (1, 2, 3, 4)}


@pytest.fixture(scope="module")
def visualize(monai_nets):  # noqa: F811
  import warnings

  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    return pytest.importorskip("monai.visualize")


@pytest.mark.parametrize("ndim", [2, 3])
def test_maps_are_monais(monai_nets, visualize, ndim):  # noqa: F811
  """On the cells: MONAI upsamples with half-pixel centres, which moves maps."""
  net = make_torch(monai_nets, ndim, 10).eval().double()
  x = np.random.default_rng(1).random((1, *SPACE[ndim], 1))
  given = torch.tensor(np.moveaxis(x, -1, 1).copy())
  with enable_x64():
    model = models.get_model({"ndim": ndim, "depth": 10, "conv": "lax"})
    model = model.clone(dtype=jnp.float64)
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    variables = {
      name: to_flax(tensors, like[name]) for name in ("params", "batch_stats")
    }
    explain = jax.jit(
      cam.make_explain(model, methods=("gradcam",), score="logit")
    )
    _, maps = explain(variables, jnp.asarray(x), 1)
    maps = jax.device_get(maps["gradcam"])
  compared = 0
  for ours, layer in LAYERS.items():
    explainer = visualize.GradCAM(
      nn_module=net,
      target_layers=layer,
      upsampler=lambda _: torch.nn.Identity(),
    )
    # The default normaliser maps the lowest to 1 and the highest to 0.
    inverted = explainer(given, class_idx=1)
    expected = 1 - np.asarray(inverted)[0, 0]
    cells = maps[ours][0]
    assert cells.shape == expected.shape
    if not cells.max() > cells.min():
      continue
    compared += 1
    scaled = (cells - cells.min()) / (cells.max() - cells.min())
    np.testing.assert_allclose(scaled, expected, atol=1e-6, err_msg=ours)
  assert compared >= 3
