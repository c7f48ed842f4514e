"""segment_losses: against plain float64 numpy, scipy and MONAI."""

import functools
import inspect
import warnings

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from scipy import ndimage, special

from cadjax.core import lookup
from cadjax.segmentation import losses as segmentation_losses
from cadjax.training import losses
from configs import unet3d

SPACE = (5, 6, 7)
ALL = np.ones((3, 4), bool)
# The last example's source annotates class 1 alone, the second all but 3.
SOME = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]], bool)


@pytest.fixture(autouse=True)
def _no_rank_promotion():
  with jax.numpy_rank_promotion("raise"):
    yield


def draw(space=SPACE, batch=3, classes=4, seed=0, size=2.0):
  """Logits that know something of the mask."""
  rng = np.random.default_rng(seed)
  mask = rng.integers(0, classes, (batch, *space))
  logits = size * rng.standard_normal((batch, *space, classes))
  logits += np.eye(classes)[mask]
  return logits.astype(np.float32), mask


@functools.cache
def pull(name):
  """`fn(logits, mask, known) -> (loss [B], gradient of its sum)`, jitted."""

  def total(logits, mask, known):
    each = segmentation_losses.SEGMENT_LOSSES[name](logits, mask, known)
    return each.sum(), each

  gradient = jax.value_and_grad(total, has_aux=True)

  @jax.jit
  def both(logits, mask, known):
    (_, each), slope = gradient(logits, mask, known)
    return each, slope

  return both


def reference(logits, mask, known):
  """Softmax and one-hot mask with the unknown in the background, float64."""
  p = special.softmax(logits.astype(np.float64), -1)
  t = np.eye(logits.shape[-1])[mask]
  for x in (p, t):
    for b, k in np.argwhere(~known):
      x[b, ..., 0] += x[b, ..., k]
      x[b, ..., k] = 0
  return p, t


def dice_by_hand(
  logits, mask, known, *, batch=False, background=False, power=1, weights=None
):
  p, t = reference(logits, mask, known)
  weights = np.ones(logits.shape[-1]) if weights is None else weights
  found = []
  for b in range(len(logits)):
    rows = slice(None) if batch else slice(b, b + 1)
    scores, shares = [], []
    for k in range(0 if background else 1, logits.shape[-1]):
      if known[b, k]:
        both = np.sum(p[rows, ..., k] * t[rows, ..., k])
        each = np.sum(p[rows, ..., k] ** power) + np.sum(t[rows, ..., k])
        scores.append(1 - (2 * both + 1e-5) / (each + 1e-5))
        shares.append(weights[k])
    found.append(np.average(scores, weights=shares))
  return found


def ce_by_hand(logits, mask, known, weights=(1, 1, 1, 1)):
  p, t = reference(logits, mask, known)
  loss = -special.xlogy(t, p) * np.array(weights)
  return loss.sum(-1).reshape(len(p), -1).mean(-1)


def test_merging_keeps_the_partition():
  logits, _ = draw(size=5.0)
  merged = segmentation_losses.merge_unknown(logits, SOME)
  assert merged.dtype == jnp.float32
  expected, _ = reference(logits, np.zeros((3, *SPACE), int), SOME)
  np.testing.assert_allclose(jax.nn.softmax(merged), expected, atol=1e-6)
  np.testing.assert_allclose(
    jax.nn.logsumexp(merged, axis=-1),
    special.logsumexp(logits.astype(np.float64), -1),
    atol=2e-6,
  )
  np.testing.assert_array_equal(merged[0], logits[0])  # All known.


def test_what_is_unknown_is_not_learned_as_absent():
  logits, mask = draw()
  known = np.array([[1, 1, 1, 0]] * 3, bool)
  mask[mask == 3] = 0

  def loss(logits):
    return segmentation_losses.dice_ce(logits, mask, known).sum()

  # What moves from class 3 to the background changes nothing.
  share = 0.3 * special.softmax(logits, -1)[..., 3]
  p = special.softmax(logits, -1)
  p[..., 3] -= share
  p[..., 0] += share
  np.testing.assert_allclose(loss(np.log(p)), loss(logits), rtol=1e-5)
  # Both are pulled alike, by their shares of the merged probability.
  gradient = jax.jit(jax.grad(loss))(logits)
  ratio = gradient[..., 3] / gradient[..., 0]
  expected = np.exp(logits[..., 3] - logits[..., 0])
  np.testing.assert_allclose(ratio, expected, rtol=1e-2)


@pytest.mark.parametrize("known", [ALL, SOME])
@pytest.mark.parametrize(
  "options",
  [
    {},
    {"batch": True},
    {"include_background": True},
    {"squared": True},
    {"weights": (9.0, 0.5, 1.0, 2.0)},
    {
      "batch": True,
      "weights": (1.0, 0.5, 1.0, 2.0),
      "include_background": True,
    },
  ],
)
def test_dice_by_hand(known, options):
  logits, mask = draw()
  renamed = {"include_background": "background", "squared": "power"}
  given = {
    renamed.get(key, key): 2 if key == "squared" else value
    for key, value in options.items()
  }
  expected = dice_by_hand(logits, mask, known, **given)
  ours = segmentation_losses.soft_dice(logits, mask, known, **options)
  np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize("known", [ALL, SOME])
def test_dice_ce_by_hand(known):
  logits, mask = draw()
  weights = (0.5, 1.0, 2.0, 3.0)
  expected = 0.7 * np.array(dice_by_hand(logits, mask, known, weights=weights))
  expected += 1.5 * ce_by_hand(logits, mask, known, weights)
  ours = segmentation_losses.dice_ce(
    logits, mask, known, dice_weight=0.7, ce_weight=1.5, weights=weights
  )
  np.testing.assert_allclose(ours, expected, rtol=1e-5)


@pytest.mark.parametrize("known", [ALL, SOME])
def test_focal_by_hand(known):
  logits, mask = draw()
  alpha = (0.2, 1.0, 2.0, 0.5)
  p, t = reference(logits, mask, known)
  loss = -special.xlogy(t, p) * (1 - p) ** 1.5 * np.array(alpha)
  expected = loss.sum(-1).reshape(3, -1).mean(-1)
  ours = segmentation_losses.focal(logits, mask, known, gamma=1.5, alpha=alpha)
  np.testing.assert_allclose(ours, expected, rtol=1e-5)
  np.testing.assert_allclose(
    segmentation_losses.focal(logits, mask, known, gamma=0.0),
    ce_by_hand(logits, mask, known),
    rtol=1e-5,
  )


@pytest.mark.parametrize("known", [ALL, SOME])
@pytest.mark.parametrize("batch", [False, True])
def test_tversky_by_hand(known, batch):
  logits, mask = draw()
  p, t = reference(logits, mask, known)
  expected = []
  for b in range(3):
    rows = slice(None) if batch else slice(b, b + 1)
    scores = []
    for k in (1, 2, 3):
      if known[b, k]:
        x, y = p[rows, ..., k], t[rows, ..., k]
        hit = (x * y).sum() + 1e-5
        wrong = 0.2 * (x * (1 - y)).sum() + 0.9 * ((1 - x) * y).sum()
        scores.append(1 - hit / (hit + wrong))
    expected.append(np.mean(scores))
  ours = segmentation_losses.tversky(
    logits, mask, known, alpha=0.2, beta=0.9, batch=batch
  )
  np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_tversky_with_halves_is_dice():
  logits, mask = draw()
  np.testing.assert_allclose(
    segmentation_losses.tversky(
      logits, mask, SOME, alpha=0.5, beta=0.5, smooth=5e-6
    ),
    segmentation_losses.soft_dice(logits, mask, SOME),
    rtol=1e-5,
  )


def erode(x):
  cross = ndimage.generate_binary_structure(x.ndim, 1)
  return ndimage.grey_erosion(x, footprint=cross, mode="nearest")


def skeleton(x, iterations):
  """By scipy, of one map."""

  def top_hat(x):
    cube = np.ones((3,) * x.ndim)
    opened = ndimage.grey_dilation(erode(x), footprint=cube, mode="nearest")
    return np.maximum(x - opened, 0)

  kept = top_hat(x)
  for _ in range(iterations):
    x = erode(x)
    removed = top_hat(x)
    kept = kept + np.maximum(removed - kept * removed, 0)
  return kept


@pytest.mark.parametrize("space", [(9, 12), (7, 8, 11)])
def test_the_soft_skeleton_is_scipys(space):
  x = np.random.default_rng(0).random((2, *space, 3))
  ours = segmentation_losses.soft_skeleton(jnp.asarray(x, jnp.float32), 2)
  for b in range(2):
    for k in range(3):
      expected = skeleton(x[b, ..., k], 2)
      np.testing.assert_allclose(ours[b, ..., k], expected, atol=1e-6)


def test_the_skeleton_of_a_tube_is_its_middle():
  tube = np.zeros((1, 20, 9, 9, 1), np.float32)
  y, x = np.mgrid[-4:5, -4:5]
  tube[0, 2:18, :, :, 0] = x**2 + y**2 <= 9
  found = np.asarray(segmentation_losses.soft_skeleton(jnp.asarray(tube), 4))[
    0, ..., 0
  ]
  assert set(np.unique(found)) == {0, 1}
  assert np.all(found[6:14, 4, 4] == 1)
  assert found[6:14].sum() == 8  # Away from the ends, the middle alone.


@pytest.mark.parametrize("known", [ALL, SOME])
@pytest.mark.parametrize("classes", [None, (1, 3)])
def test_cldice_by_hand(known, classes):
  logits, mask = draw()
  p, t = reference(logits, mask, known)
  weights = (1.0, 2.0, 0.5, 3.0)
  expected = []
  for b in range(3):
    scores, shares = [], []
    for k in classes or (1, 2, 3):
      if known[b, k]:
        x, y = p[b, ..., k], t[b, ..., k]
        sx, sy = skeleton(x, 2), skeleton(y, 2)
        precision = ((sx * y).sum() + 0.1) / (sx.sum() + 0.1)
        sensitivity = ((sy * x).sum() + 0.1) / (sy.sum() + 0.1)
        scores.append(2 / (1 / precision + 1 / sensitivity))
        shares.append(weights[k])
    expected.append(1 - np.average(scores, weights=shares))
  ours = segmentation_losses.cldice(
    logits,
    mask,
    known,
    weight=1.0,
    iterations=2,
    classes=classes,
    smooth=0.1,
    weights=weights,
  )
  np.testing.assert_allclose(ours, expected, rtol=1e-5)
  voxels = segmentation_losses.dice_ce(
    logits, mask, known, smooth=0.1, weights=weights
  )
  mixed = segmentation_losses.cldice(
    logits,
    mask,
    known,
    weight=0.3,
    iterations=2,
    classes=classes,
    smooth=0.1,
    weights=weights,
  )
  np.testing.assert_allclose(mixed, 0.7 * voxels + 0.3 * ours, rtol=1e-5)


def test_cldice_asks_for_the_whole_vessel():
  """A gap costs clDice more than the same voxels off the rim."""
  mask = np.zeros((1, 24, 9, 9), int)
  mask[:, :, 3:6, 3:6] = 1
  gap, rim = mask.copy(), mask.copy()
  gap[:, 10:12] = 0  # 18 voxels.
  rim[:, :18, 3, 3] = 0
  known = np.ones((1, 2), bool)
  cldice = jax.jit(functools.partial(segmentation_losses.cldice, weight=1.0))
  lost = {}
  for name, shown in (("gap", gap), ("rim", rim)):
    logits = 20 * np.eye(2, dtype=np.float32)[shown]
    lost[name] = [
      float(loss(logits, mask, known)[0])
      for loss in (cldice, jax.jit(segmentation_losses.soft_dice))
    ]
  np.testing.assert_allclose(lost["gap"][1], lost["rim"][1], rtol=1e-5)
  assert lost["gap"][0] > 0.03
  assert lost["rim"][0] < 0.01


def test_skeleton_recall_counts_a_branch_by_its_length():
  """A thin branch costs more than as many voxels off a thick vessel."""
  mask = np.zeros((1, 26, 15, 15), int)
  mask[:, 1:25, 2:9, 2:9] = 1  # 7 wide.
  mask[:, 1:25, 12, 12] = 1  # 1 wide.
  branch, rim = mask.copy(), mask.copy()
  branch[:, :, 12, 12] = 0
  rim[:, 1:25, 2, 2] = 0
  known = np.ones((1, 2), bool)
  loss = functools.partial(segmentation_losses.skeleton_recall, iterations=4)
  found = {}
  for name, shown in (("all", mask), ("branch", branch), ("rim", rim)):
    logits = 20 * np.eye(2, dtype=np.float32)[shown]
    voxels = segmentation_losses.dice_ce(logits, mask, known)
    found[name] = float((loss(logits, mask, known) - voxels)[0])
  # Of a tube 3 x 3 in the vessel, 25 of 24 * 9 + 24 by far.
  assert abs(found["all"]) < 1e-5
  assert found["branch"] > 0.05
  assert found["rim"] < 1e-4


def test_skeleton_recall_of_a_vessel_and_its_plaque_asks_for_the_class():
  mask = np.zeros((1, 20, 7, 7), int)
  mask[:, :, 2:5, 2:5] = 1
  mask[:, 8:12, 2:5, 2:5] = 2
  known = np.ones((1, 3), bool)
  lumen_alone = 20 * np.eye(3, dtype=np.float32)[np.minimum(mask, 1)]
  options = {"iterations": 2, "weights": (1.0, 1.0, 3.0)}
  plain = segmentation_losses.dice_ce(
    lumen_alone, mask, known, weights=options["weights"]
  )
  whole = segmentation_losses.skeleton_recall(
    lumen_alone, mask, known, **options
  )
  # All of the plaque's part is missed, none of the lumen's.
  np.testing.assert_allclose(whole - plain, [0.75], atol=1e-4)


def stored(known):
  """A mask as a source with these classes would have it."""
  mask = draw()[1]
  for b, k in np.argwhere(~known):
    mask[b][mask[b] == k] = 0
  return mask


@pytest.mark.parametrize("name", segmentation_losses.SEGMENT_LOSSES)
def test_a_voxel_of_an_unknown_class_is_background(name):
  logits, mask = draw()

  def loss(mask, known):
    return pull(name)(logits, mask, known)[0]

  np.testing.assert_array_equal(loss(mask, SOME), loss(stored(SOME), SOME))
  mask[:, 0, 0] = 7
  emptied = np.where(mask == 7, 0, mask)
  np.testing.assert_array_equal(loss(mask, ALL), loss(emptied, ALL))


@pytest.mark.parametrize("name", segmentation_losses.SEGMENT_LOSSES)
@pytest.mark.parametrize("background", [0, 1])
def test_a_case_without_classes_adds_nothing(name, background):
  logits, mask = draw()
  known = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [background, 0, 0, 0]], bool)
  loss, gradient = pull(name)(logits, mask, known)
  assert np.all(loss[:2] > 0)
  assert np.any(gradient[:2])
  assert loss[2] == 0
  np.testing.assert_array_equal(gradient[2], 0.0)


CASES = {
  "perfect": lambda mask: 50 * np.eye(4)[mask],
  "wrong": lambda mask: 50 * np.eye(4)[(mask + 1) % 4],
  "certain of the background": lambda mask: 90 * np.eye(4)[0 * mask],
  "undecided": lambda mask: np.zeros((*mask.shape, 4)),
}


@pytest.mark.parametrize("name", segmentation_losses.SEGMENT_LOSSES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("known", [ALL, SOME])
def test_values_and_gradients_are_finite(name, case, empty, known):
  mask = np.zeros((3, *SPACE), int) if empty else draw()[1]
  logits = CASES[case](mask).astype(np.float32)
  loss, gradient = pull(name)(logits, mask, known)
  assert np.all(np.isfinite(loss))
  assert np.all(np.isfinite(gradient))
  if case == "perfect" or (empty and case.startswith("certain")):
    np.testing.assert_allclose(loss, 0.0, atol=1e-5)
  elif known is ALL:
    assert np.all(loss > 0.01)


@pytest.mark.parametrize("name", segmentation_losses.SEGMENT_LOSSES)
def test_gradients_equal_finite_differences(name):
  logits, mask = draw()

  def total(logits):
    return float(pull(name)(logits, mask, SOME)[0].sum())

  # Along the gradient, so that the difference stands above float32 noise.
  gradient = pull(name)(logits, mask, SOME)[1]
  norm = float(jnp.linalg.norm(gradient.ravel()))
  step = 0.05 * gradient / norm
  difference = (total(logits + step) - total(logits - step)) / 0.1
  np.testing.assert_allclose(difference, norm, rtol=0.02)


@pytest.mark.parametrize("name", segmentation_losses.SEGMENT_LOSSES)
def test_losses_are_per_example_float32_and_jitted(name):
  loss = segmentation_losses.SEGMENT_LOSSES[name]
  kinds = [p.kind for p in inspect.signature(loss).parameters.values()]
  assert kinds[:3] == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * 3
  assert set(kinds[3:]) == {inspect.Parameter.KEYWORD_ONLY}
  logits, mask = draw()
  rough, mask = jnp.asarray(logits, jnp.bfloat16), mask.astype(np.uint8)
  jitted = jax.jit(loss)
  together = jitted(rough, mask, SOME)
  assert (together.shape, together.dtype) == ((3,), jnp.float32)
  np.testing.assert_allclose(
    loss(rough.astype(jnp.float32), mask, SOME), together, rtol=1e-5
  )
  for b in range(3):
    others = (np.arange(3) != b).reshape(3, 1, 1, 1)
    alone = jitted(
      jnp.where(others[..., None], 0, rough), np.where(others, 1, mask), SOME
    )
    np.testing.assert_allclose(alone[b], together[b], rtol=1e-6)


@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize(
  "config",
  [
    {"name": "dice", "batch": True},
    {"name": "tversky", "batch": True},
    {"name": "dice_ce", "batch": True, "squared": True},
    {"name": "dice_ce", "batch": False},
  ],
)
def test_a_loss_over_the_batch_is_that_of_all_devices(config, devices):
  """Loss and gradient of the step: of its share, summed over the devices."""
  n, k = 6, 4
  logits, mask = draw(batch=n, seed=5)
  known = np.resize(SOME, (n, k))
  scale = np.linspace(0.5, 1.5, k).astype(np.float32)

  def gradient(logits, mask, known, axis_name=None):
    loss_fn = segmentation_losses.get_segment_loss(config, axis_name)

    def total(scale):
      moved = logits * scale.reshape((1,) * (logits.ndim - 1) + (k,))
      return loss_fn(moved, mask, known).sum() / n

    found = jax.value_and_grad(total)(scale)
    return found if axis_name is None else jax.lax.psum(found, axis_name)

  want = jax.jit(gradient)(logits, mask, known)
  divided = [
    x.reshape(devices, n // devices, *x.shape[1:])
    for x in (logits, mask, known)
  ]
  got = jax.pmap(
    functools.partial(gradient, axis_name="data"),
    axis_name="data",
    devices=jax.devices()[:devices],
  )(*divided)
  for a, b in zip(want, got, strict=True):
    for each in np.asarray(b):
      np.testing.assert_allclose(each, a, rtol=2e-5, atol=1e-7)


def test_dice_over_the_batch_shares_what_one_example_lacks():
  logits, mask = draw(batch=2)
  mask[0] = 0
  known = np.ones((2, 4), bool)
  alone = segmentation_losses.soft_dice(logits, mask, known)
  shared = segmentation_losses.soft_dice(logits, mask, known, batch=True)
  assert alone[0] > 0.999  # An absent class is all or nothing.
  assert shared[0] == shared[1] < 0.9


def test_deep_supervision_strides_the_mask_and_halves_the_weights():
  mask = np.random.default_rng(0).integers(0, 4, (3, 8, 12, 16))
  logits = tuple(
    draw(space=(8 // s, 12 // s, 16 // s), seed=s)[0] for s in (1, 2, 4)
  )
  loss = jax.jit(segmentation_losses.dice_ce)
  ours = segmentation_losses.deep_supervision(loss)(logits, mask, SOME)
  each = [
    loss(x, mask[:, ::s, ::s, ::s], SOME)
    for s, x in zip((1, 2, 4), logits, strict=True)
  ]
  expected = (4 * each[0] + 2 * each[1] + each[2]) / 7
  np.testing.assert_allclose(ours, expected, rtol=1e-6)
  np.testing.assert_array_equal(
    segmentation_losses.deep_supervision(loss)(logits[0], mask, SOME), each[0]
  )


def test_get_segment_loss_reads_a_config():
  config = ml_collections.ConfigDict(
    {"name": "dice_ce", "ce_weight": 2.0, "weights": [1.0, 2.0, 3.0, 4.0]}
  )
  logits, mask = draw()
  np.testing.assert_array_equal(
    segmentation_losses.get_segment_loss(config)(logits, mask, SOME),
    segmentation_losses.dice_ce(
      logits, mask, SOME, ce_weight=2.0, weights=(1.0, 2.0, 3.0, 4.0)
    ),
  )


@pytest.mark.parametrize("name", segmentation_losses.SEGMENT_LOSSES)
def test_weights_that_are_not_set_go_with_every_loss(name):
  config = unet3d.get_config().loss
  config.name = name
  assert config.weights is None
  logits, mask = draw()
  np.testing.assert_array_equal(
    segmentation_losses.get_segment_loss(config)(logits, mask, SOME),
    segmentation_losses.SEGMENT_LOSSES[name](logits, mask, SOME),
  )
  config.weights = (1.0, 2.0, 3.0, 4.0)
  if name == "focal":
    with pytest.raises(lookup.UnknownName, match="'weights'"):
      segmentation_losses.get_segment_loss(config)
  else:
    segmentation_losses.get_segment_loss(config)


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"name": "dise"}, "unknown loss 'dise'; did you mean 'dice'"),
    ({"name": "dice", "smoth": 1}, "'smoth'; did you mean 'smooth'"),
    ({"name": "cross_entropy"}, "unknown loss.*cldice, dice, dice_ce, focal"),
  ],
)
def test_unknown_names_are_told(config, message):
  with pytest.raises(lookup.UnknownName, match=message):
    segmentation_losses.get_segment_loss(config)


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"name": "dice", "smooth": 0.0}, "smooth is 0.0; it must be > 0"),
    ({"name": "tversky", "beta": -1.0}, "beta is -1.0"),
    ({"name": "dice_ce", "weights": (1.0, 2.0)}, "2 class weights for 4"),
    ({"name": "focal", "gamma": -1.0}, "gamma is -1.0"),
    ({"name": "cldice", "weight": 2.0}, r"weight is 2.0; .* in \[0, 1\]"),
    ({"name": "cldice", "classes": (0, 4)}, r"\[0, 4\]; .* in 1 ... 3"),
    ({"name": "skeleton_recall", "weight": -1.0}, r"weight is -1.0; .* >= 0"),
    ({"name": "skeleton_recall", "classes": (4,)}, r"\[4\]; .* in 1 ... 3"),
  ],
)
def test_impossible_options_are_told(config, message):
  with pytest.raises(lookup.ConfigError, match=message):
    segmentation_losses.get_segment_loss(config)(*draw(), ALL)


def test_shapes_that_do_not_fit_are_told():
  logits, mask = draw()
  with pytest.raises(ValueError, match=r"mask \(3, 5, 6, 6\) do not fit"):
    segmentation_losses.soft_dice(logits, mask[..., :-1], ALL)
  with pytest.raises(ValueError, match=r"known \(3, 3\) does not fit"):
    segmentation_losses.soft_dice(logits, mask, ALL[:, :3])
  with pytest.raises(ValueError, match=r"mask \(3, 5, 3, 4\) do not fit"):
    segmentation_losses.deep_supervision(segmentation_losses.soft_dice)(
      (logits[:, ::2, ::2, :3],), mask, ALL
    )


# --- MONAI ------------------------------------------------------------------


@pytest.fixture(scope="module")
def monai_losses():
  pytest.importorskip("torch")
  with warnings.catch_warnings():
    # MONAI's own imports warn of deprecated names in other packages.
    warnings.simplefilter("ignore")
    return pytest.importorskip("monai.losses")


def theirs(make, logits, mask):
  """The loss per example and its gradient, of a MONAI loss per class."""
  import torch

  x = torch.tensor(np.moveaxis(logits, -1, 1).copy(), requires_grad=True)
  y = torch.tensor(mask[:, None])
  each = make(x, y)
  each.sum().backward()
  return each.detach().numpy(), np.moveaxis(x.grad.numpy(), 1, -1)


def assert_same(ours, make, logits, mask):
  expected, expected_gradient = theirs(make, logits, mask)
  loss = ours(logits)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  gradient = jax.grad(lambda x: ours(x).sum())(logits)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("space", [(9, 12), SPACE])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("squared", [False, True])
def test_dice_is_monais(monai_losses, space, background, squared):
  logits, mask = draw(space)
  options = {"include_background": background, "softmax": True}
  options |= {"to_onehot_y": True, "squared_pred": squared}
  dice = monai_losses.DiceLoss(reduction="none", **options)
  given = {"include_background": background, "squared": squared}
  assert_same(
    lambda x: segmentation_losses.soft_dice(x, mask, ALL, **given),
    lambda x, y: dice(x, y).flatten(1).mean(1),
    logits,
    mask,
  )
  whole = monai_losses.DiceLoss(batch=True, **options)
  assert_same(
    lambda x: segmentation_losses.soft_dice(x, mask, ALL, batch=True, **given)[
      :1
    ],
    lambda x, y: whole(x, y)[None],
    logits,
    mask,
  )


@pytest.mark.parametrize("space", [(9, 12), SPACE])
def test_dice_ce_is_monais(monai_losses, space):
  logits, mask = draw(space)
  loss = monai_losses.DiceCELoss(
    include_background=False,
    softmax=True,
    to_onehot_y=True,
    lambda_dice=0.6,
    lambda_ce=1.4,
  )
  options = {"dice_weight": 0.6, "ce_weight": 1.4}
  assert_same(
    lambda x: segmentation_losses.dice_ce(x, mask, ALL, **options).mean()[None],
    lambda x, y: loss(x, y)[None],
    logits,
    mask,
  )


def test_tversky_is_monais(monai_losses):
  logits, mask = draw()
  loss = monai_losses.TverskyLoss(
    include_background=False,
    softmax=True,
    to_onehot_y=True,
    alpha=0.3,
    beta=0.7,
    reduction="none",
  )
  assert_same(
    lambda x: segmentation_losses.tversky(x, mask, ALL),
    lambda x, y: loss(x, y).flatten(1).mean(1),
    logits,
    mask,
  )


@pytest.mark.parametrize("space", [(9, 12), SPACE])
def test_the_soft_skeleton_is_monais(monai_losses, space):
  import torch
  from monai.losses.cldice import soft_skel

  x = np.random.default_rng(0).random((2, *space, 3)).astype(np.float32)
  expected = soft_skel(torch.tensor(np.moveaxis(x, -1, 1).copy()), 3)
  np.testing.assert_allclose(
    segmentation_losses.soft_skeleton(jnp.asarray(x), 3),
    np.moveaxis(expected.numpy(), 1, -1),
    atol=1e-6,
  )


def test_cross_entropy_of_one_voxel_is_that_of_one_example():
  logits, mask = draw(space=(1, 1))
  np.testing.assert_allclose(
    segmentation_losses.focal(logits, mask, ALL, gamma=0.0),
    losses.cross_entropy(logits[:, 0, 0], mask[:, 0, 0]),
    rtol=1e-6,
  )
