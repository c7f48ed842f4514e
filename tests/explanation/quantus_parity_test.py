"""Quantus gives the same measures of a 2D network; needs `[explain-parity]`.

A slice is a volume of depth 1 here. Both sides ask one network of PyTorch, in
float32, and measure the same maps. Where Quantus departs from a paper, cadjax
follows the paper, and the test says how and compares what is left in common.
"""

import warnings

import numpy as np
import pytest

from cadjax.explanation import checks, faithfulness, imputation, stability

torch = pytest.importorskip("torch")
# Of its dependencies, with numpy's newer versions among them.
with warnings.catch_warnings():
  warnings.simplefilter("ignore")
  quantus = pytest.importorskip("quantus")

pytestmark = pytest.mark.filterwarnings("ignore")

SIZE = 12
CASES = 3
TARGET = np.ones(CASES, int)
NEAR = 1e-4  # Of float32, whose sums depend on the number of threads.
QUIET = {
  "disable_warnings": True,
  "display_progressbar": False,
  "normalise": False,
  "abs": False,
}


@pytest.fixture(scope="module")
def net():
  torch.manual_seed(0)
  made = torch.nn.Sequential(
    torch.nn.Conv2d(1, 4, 3, padding=1),
    torch.nn.Softplus(),
    torch.nn.Conv2d(4, 6, 3, stride=2, padding=1),
    torch.nn.Softplus(),
    torch.nn.Flatten(),
    torch.nn.Linear(6 * (SIZE // 2) ** 2, 3),
  )
  return made.eval()


@pytest.fixture(scope="module")
def images():
  """[n, 1, H, W]: of Quantus a batch with channels, of cadjax of depth 1."""
  return np.random.default_rng(0).normal(size=(CASES, 1, SIZE, SIZE))


def logits(net, x):
  with torch.no_grad():
    return net(torch.tensor(np.asarray(x, np.float32))).numpy()


def score(net):
  return lambda x: logits(net, x)[:, 1]


def gradient(model, inputs, targets, **_):
  """What Quantus wants of an explanation; and without a target's list."""
  x = torch.tensor(np.asarray(inputs, np.float32), requires_grad=True)
  y = torch.as_tensor(np.broadcast_to(targets, len(x)).copy())
  model(x)[torch.arange(len(x)), y].sum().backward()
  return x.grad.numpy()


def explain(net, target=1):
  return lambda x: gradient(net, x, target)


def call(metric, net, images, maps=None, **options):
  return metric(
    model=net,
    x_batch=images.copy(),
    y_batch=TARGET.copy(),
    a_batch=None if maps is None else maps.copy(),
    channel_first=True,
    softmax=False,
    **options,
  )


def test_noisy_linear_imputation(images):
  missing = np.random.default_rng(1).random((SIZE, SIZE)) < 0.5
  for image in images:
    theirs = quantus.noisy_linear_imputation(
      image, np.flatnonzero(missing), noise=0.0
    )
    # Those of depth 1 are the paper's eight neighbours, of its weights.
    ours = imputation.impute(image, missing[None], neighbours=26, noise=0)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_road(net, images):
  """Quantus has the accuracy over the data set, of most-relevant-first."""
  maps = np.abs(gradient(net, images, TARGET))
  percentages = [10, 25, 50, 75, 90]
  metric = quantus.ROAD(percentages=percentages, noise=0.0, **QUIET)
  theirs = call(metric, net, images, maps)
  ours = np.zeros((CASES, len(percentages)))

  def margin(x):
    found = logits(net, x)
    return found[:, 1] - np.delete(found, 1, 1).max(1)

  for i in range(CASES):
    ours[i] = faithfulness.road(
      margin, images[i], maps[i], shares=np.divide(percentages, 100), noise=0
    )["curve_most"]
  accuracy = (ours > 0).mean(0)
  assert theirs == pytest.approx(dict(zip(percentages, accuracy, strict=True)))
  assert 0 < accuracy.mean() < 1


def test_infidelity(net, images):
  """Quantus replaces one block after the other and keeps those before.

  The paper draws the removed square alone. The formula is the same, so both
  get the changes of Quantus here.
  """
  maps = gradient(net, images, TARGET)
  metric = quantus.Infidelity(
    perturb_patch_sizes=[4], n_perturb_samples=1, perturb_baseline=0.5, **QUIET
  )
  theirs = call(metric, net, images, maps)
  for image, heat, value in zip(images, maps, theirs, strict=True):
    changes, changed = [], image.copy()
    for top in range(0, SIZE, 4):
      for left in range(0, SIZE, 4):
        changed[:, top : top + 4, left : left + 4] = 0.5
        changes.append(image - changed)
    ours = faithfulness.infidelity(score(net), image, heat, changes=changes)
    assert ours["infidelity"] == pytest.approx(value, rel=NEAR)


def test_max_sensitivity(net, images, monkeypatch):
  """Given the same draws; Quantus takes them from numpy's global state."""
  metric = quantus.MaxSensitivity(
    nr_samples=5, lower_bound=0.3, return_nan_when_prediction_changes=False,
    **QUIET,
  )  # fmt: skip
  for image in images:
    rng = np.random.default_rng(2)
    monkeypatch.setattr(
      np.random,
      "uniform",
      lambda low, high, size, rng=rng: rng.uniform(low, high, size),
    )
    theirs = metric(
      model=net,
      x_batch=image[None],
      y_batch=TARGET[:1],
      explain_func=gradient,
      channel_first=True,
    )
    ours = stability.max_sensitivity(
      explain(net), image, radius=0.3, samples=5, seed=2
    )
    assert ours["max_sensitivity"] == pytest.approx(theirs[0], rel=NEAR)


def test_relative_input_stability(net, images, monkeypatch):
  """Without a floor, where no voxel of the map is 0; see the docstring there.

  Quantus gives NaN if any of the images has another decision, where the paper
  takes the maximum over those of the same one.
  """
  image = images[:1]
  metric = quantus.RelativeInputStability(
    nr_samples=6, return_nan_when_prediction_changes=False, **QUIET
  )
  rng = np.random.default_rng(5)
  monkeypatch.setattr(
    np.random,
    "uniform",
    lambda low, high, size: rng.uniform(-0.2, 0.2, size),
  )
  theirs = metric(
    model=net,
    x_batch=image,
    y_batch=TARGET[:1],
    explain_func=gradient,
    channel_first=True,
  )
  ours = stability.relative_input_stability(
    explain(net), image[0], radius=0.2, floor=0, samples=6, seed=5
  )
  assert ours["relative_input_stability"] == pytest.approx(theirs[0], rel=NEAR)


def test_sensitivity_n(net, images):
  """Quantus correlates something else; the removals are the same.

  The paper draws random sets of n features of one image and correlates over
  the sets. Quantus removes the features that the map ranks first, step by
  step, and correlates over the images of a batch, with the fall of all steps
  so far beside the map's sum over the last one. Both agree on what the first
  step takes from the score and from the map, which is what is compared.
  """
  maps = gradient(net, images, TARGET) * images
  step = 16
  metric = quantus.SensitivityN(
    features_in_step=step,
    n_max_percentage=step / SIZE**2,
    perturb_baseline=0.25,
    **QUIET,
  )
  (theirs,) = call(metric, net, images, maps)
  falls, sums = [], []
  for image, heat in zip(images, maps, strict=True):
    first = np.zeros(heat.size, bool)
    first[np.argsort(-heat.ravel())[:step]] = True
    fall, total = faithfulness.removals(
      score(net),
      image,
      heat,
      baseline=np.full_like(image, 0.25),
      removed=[first.reshape(heat.shape)],
    )
    falls.append(fall[0])
    sums.append(total[0])
  assert np.corrcoef(falls, sums)[0, 1] == pytest.approx(theirs, rel=NEAR)


def test_completeness(images):
  """Quantus tells whether both numbers are equal, to the last bit."""
  last = torch.nn.Linear(SIZE**2, 3, bias=False)
  linear = torch.nn.Sequential(torch.nn.Flatten(), last).eval()
  with torch.no_grad():  # Whole numbers add up exactly.
    last.weight.copy_(torch.linspace(-9, 9, 3 * SIZE**2).round().reshape(3, -1))
  x = np.round(images * 4)
  maps = gradient(linear, x, TARGET) * x
  for wrong in (0, 1):
    maps[0, 0, 0, 0] += wrong
    metric = quantus.Completeness(perturb_baseline=0.0, **QUIET)
    theirs = call(metric, linear, x, maps)
    ours = [
      faithfulness.completeness(
        score(linear), image, heat, baseline=np.zeros_like(image)
      )["completeness_error"]
      for image, heat in zip(x, maps, strict=True)
    ]
    assert [error == 0 for error in ours] == list(theirs)
    assert bool(wrong) != bool(theirs[0])


def states(net, order):
  """The models that Quantus makes, copied, as it changes one in place."""
  import copy

  wrapped = quantus.helpers.utils.get_wrapped_model(
    net, channel_first=True, softmax=False
  )
  return [
    (name, copy.deepcopy(model))
    for name, model in wrapped.get_random_layer_generator(order=order, seed=42)
  ]


def test_smooth_mprt(net, images, monkeypatch):
  """Given the same noise, and the gradient.

  Quantus draws other noise for each model, and explains by the gradient
  whatever it is told to explain by.
  """
  samples = 4
  metric = quantus.SmoothMPRT(
    nr_samples=samples,
    noise_magnitude=0.2,
    layer_order="bottom_up",
    similarity_func=quantus.similarity_func.correlation_spearman,
    **QUIET | {"abs": True},
  )
  image = images[:1]
  drawn = np.random.default_rng(6).standard_normal((samples - 1, *image.shape))
  turn = iter(range(10**6))
  monkeypatch.setattr(
    np.random, "randn", lambda *_: drawn[next(turn) % (samples - 1)]
  )
  theirs = metric(
    model=net,
    x_batch=image,
    y_batch=TARGET[:1],
    explain_func=gradient,
    channel_first=True,
  )
  ours = checks.smooth_mprt(
    lambda model, x: gradient(model, x, 1),
    image[0],
    net,
    [(name, model) for name, model in states(net, "bottom_up")],
    samples=samples,
    noise=0.2,
    seed=6,
  )
  assert set(ours) == set(theirs) - {"original"}
  assert len(ours) == 3
  for name, found in ours.items():
    assert found["spearman"] == pytest.approx(theirs[name][0], abs=1e-3)


def test_efficient_mprt(net, images):
  metric = quantus.EfficientMPRT(
    layer_order="bottom_up",
    complexity_func_kwargs={"n_bins": 100},
    skip_layers=True,
    **QUIET | {"abs": True},
  )
  theirs = metric(
    model=net,
    x_batch=images,
    y_batch=TARGET,
    explain_func=gradient,
    channel_first=True,
  )
  _, model = states(net, "bottom_up")[-1]
  for image, value in zip(images, theirs, strict=True):
    before, after = (
      np.abs(gradient(each, image[None], 1))[0] for each in (net, model)
    )
    ours = checks.efficient_mprt(before, after)
    assert ours["complexity_rise"] == pytest.approx(value, rel=NEAR)


def test_random_logit(net, images):
  """By the rank correlation: the SSIM of Quantus is of the flattened map."""
  metric = quantus.RandomLogit(
    similarity_func=quantus.similarity_func.correlation_spearman,
    num_classes=3,
    seed=42,
    **QUIET | {"abs": True},
  )
  image = images[:1]
  theirs = metric(
    model=net,
    x_batch=image,
    y_batch=TARGET[:1],
    explain_func=gradient,
    channel_first=True,
  )
  others = {}
  for seed in range(20):  # Until both have drawn the same class.
    ours = checks.random_logit(
      lambda x, k: np.abs(gradient(net, x, k))[:, 0][:, None],
      image[0],
      target=1,
      num_classes=3,
      seed=seed,
    )
    others[ours["other"]] = ours["spearman"]
  assert set(others) == {0, 2}
  np.random.seed(42)
  chosen = [0, 2][np.random.randint(0, 2, 1)[0]]
  assert others[chosen] == pytest.approx(theirs[0], rel=NEAR)
  assert others[2 - chosen] != pytest.approx(theirs[0], rel=NEAR)
