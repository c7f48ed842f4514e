import itertools
import math

import numpy as np
import pytest
import scipy.ndimage
import sklearn.metrics

from cadjax.metrics import intervals
from cadjax.segmentation import metrics

SPACING = (0.5, 1.25, 0.8)
SHAPE = (9, 11, 13)


def blobs(seed, level=0.55):
  """A random mask with holes, several components, some at the border."""
  rng = np.random.default_rng(seed)
  return scipy.ndimage.uniform_filter(rng.random(SHAPE), 3) > level


def box(shape, *ranges):
  mask = np.zeros(shape, bool)
  mask[tuple(slice(*each) for each in ranges)] = True
  return mask


def neighbours(mask, voxel, offsets):
  """The neighbours of a voxel inside a mask, one by one."""
  for offset in offsets:
    other = tuple(np.add(voxel, offset))
    inside = all(0 <= a < b for a, b in zip(other, mask.shape, strict=True))
    if inside and mask[other]:
      yield other


FACES = [
  x for x in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, x)) == 1
]
ALL_26 = [x for x in itertools.product((-1, 0, 1), repeat=3) if any(x)]


def surface_by_hand(mask):
  return np.array(
    [v for v in np.argwhere(mask) if len([*neighbours(mask, v, FACES)]) < 6]
  )


def components_by_hand(mask):
  left, count = set(map(tuple, np.argwhere(mask))), 0
  while left:
    count += 1
    queue = [left.pop()]
    while queue:
      for other in neighbours(mask, queue.pop(), ALL_26):
        if other in left:
          left.remove(other)
          queue.append(other)
  return count


@pytest.mark.parametrize("seed", range(4))
def test_overlap_metrics_equal_sklearn(seed):
  p, t = blobs(seed), blobs(seed + 10)
  ours = metrics.case_metrics(p, t, SPACING)
  flat = t.ravel(), p.ravel()
  assert ours["dice"] == pytest.approx(sklearn.metrics.f1_score(*flat))
  assert ours["iou"] == pytest.approx(sklearn.metrics.jaccard_score(*flat))
  assert ours["precision"] == pytest.approx(
    sklearn.metrics.precision_score(*flat)
  )
  assert ours["recall"] == pytest.approx(sklearn.metrics.recall_score(*flat))
  assert set(ours) == set(metrics.METRICS)


@pytest.mark.parametrize("seed", range(4))
def test_distances_and_betti_equal_brute_force(seed):
  p, t = blobs(seed, 0.5), blobs(seed + 10, 0.57)
  a, b = (surface_by_hand(x) * SPACING for x in (p, t))
  pairs = np.linalg.norm(a[:, None] - b[None], axis=-1)
  there, back = pairs.min(1), pairs.min(0)
  ours = metrics.case_metrics(p, t, SPACING)
  worst = max(np.percentile(there, 95), np.percentile(back, 95))
  assert ours["hd95_mm"] == pytest.approx(worst)
  assert ours["assd_mm"] == pytest.approx(
    (there.sum() + back.sum()) / (len(there) + len(back))
  )
  assert ours["betti0_error"] == abs(
    components_by_hand(p) - components_by_hand(t)
  )


def test_a_shifted_box_has_distances_in_mm_along_each_axis():
  t = box((12, 12, 12), (2, 5), (2, 5), (2, 5))
  for axis, step in enumerate(SPACING):
    ours = metrics.case_metrics(np.roll(t, 4, axis), t, SPACING)
    # The far face is 4 voxels from the other box's, the rest is nearer.
    assert ours["hd95_mm"] == pytest.approx(4 * step)
    assert ours["dice"] == 0
    assert 0 < ours["assd_mm"] < 4 * step


def test_a_surface_at_the_border_counts_and_inner_voxels_do_not():
  full = np.ones((4, 5, 6), bool)
  assert metrics.surface(full).sum() == 4 * 5 * 6 - 2 * 3 * 4
  # Where the volume ends a mask ends: not dependent on how much is around it.
  p, t = blobs(1), blobs(2)
  padded = [np.pad(x, ((3, 1), (0, 2), (5, 0))) for x in (p, t)]
  assert metrics.case_metrics(*padded, SPACING) == metrics.case_metrics(
    p, t, SPACING
  )


def test_equal_masks_are_perfect():
  t = blobs(3)
  ours = metrics.case_metrics(t, t, SPACING)
  for name in ("dice", "iou", "precision", "recall", "cldice"):
    assert ours[name] == 1, name
  for name in ("hd95_mm", "assd_mm", "volume_bias_ml", "betti0_error"):
    assert ours[name] == 0, name


def test_volumes_are_in_ml():
  p, t = box((20, 20, 20), (0, 10), (0, 10), (0, 10)), np.zeros((20,) * 3)
  t[:5, :4, :5] = 3  # Any label but 0 is inside.
  ours = metrics.case_metrics(p, t, (1.0, 2.0, 0.5))
  assert ours["volume_ml"] == pytest.approx(1.0)
  assert ours["truth_volume_ml"] == pytest.approx(0.1)
  assert ours["volume_bias_ml"] == pytest.approx(0.9)


def test_empty_masks_are_undefined_and_not_0():
  none, some = np.zeros(SHAPE, bool), blobs(0)
  distances = {"hd95_mm", "assd_mm"}

  def undefined(p, t):
    ours = metrics.case_metrics(p, t, SPACING)
    return {k for k, v in ours.items() if math.isnan(v)}, ours

  names, ours = undefined(none, none)
  assert names == distances | {"dice", "iou", "precision", "recall", "cldice"}
  assert ours["betti0_error"] == ours["volume_bias_ml"] == 0
  for p, t, lost in ((none, some, "precision"), (some, none, "recall")):
    names, ours = undefined(p, t)
    assert names == distances | {lost}
    assert ours["dice"] == ours["iou"] == ours["cldice"] == 0


def test_cldice_of_a_shortened_and_a_broken_tube():
  t = box((7, 7, 40), (2, 5), (2, 5), (2, 38))
  half = box((7, 7, 40), (2, 5), (2, 5), (2, 20))
  skeleton = metrics.cldice(t, t)
  assert skeleton == 1
  # The half's skeleton is all in the whole, half of the whole's in the half.
  sensitivity = metrics.cldice(half, t)
  expected = 2 * 0.5 / 1.5
  assert sensitivity == pytest.approx(expected, abs=0.03)
  # Thinner all along: Dice falls, the centreline stays.
  thin = box((7, 7, 40), (3, 4), (3, 4), (3, 37))
  ours = metrics.case_metrics(thin, t, SPACING)
  assert ours["cldice"] == 1
  assert ours["dice"] < 0.3


@pytest.mark.parametrize("shape", [(2, 2, 10), (4, 4, 4), (1, 1, 1), (1, 4, 9)])
def test_cldice_where_thinning_deletes_everything(shape):
  t = np.zeros((8, 8, 14), bool)
  t[tuple(slice(1, 1 + n) for n in shape)] = True
  assert metrics.cldice(t, t) == 1
  beside = np.roll(t, -7, 2)
  beside[:, :, :7] &= ~t[:, :, :7]
  assert metrics.cldice(t, beside & ~t) == 0


def lesion_case():
  """Three lesions: a rod of 12 mm beside a dot, and one far away."""
  truth = np.zeros((20, 20, 20), bool)
  truth[4:16, 10, 5] = True
  truth[17, 10, 5] = True
  truth[10, 2, 15] = True
  return truth, (1.0, 1.0, 2.0)


def test_lesions_without_a_table_are_components():
  truth, spacing = lesion_case()
  predicted = np.zeros_like(truth)
  predicted[8, 10, 5] = True  # On the rod.
  predicted[10, 2, 17] = True  # 4 mm from the far one.
  ours = metrics.lesion_detection(predicted, truth, spacing)
  assert ours == {
    "lesions": 3,
    "detected": 1,
    "recall": 1 / 3,
    "recall_best": 1,
    "false_positives": 1,
  }
  ours = metrics.lesion_detection(predicted, truth, spacing, tolerance_mm=4.0)
  assert ours["detected"] == 2
  assert ours["false_positives"] == 0
  ours = metrics.lesion_detection(predicted, truth, spacing, tolerance_mm=3.9)
  assert ours["detected"] == 1


def test_a_lesion_table_splits_and_keeps_what_has_no_voxel():
  truth, spacing = lesion_case()
  centers = np.array([[9.5, 10, 5], [17, 10, 5], [10, 2, 15], [1, 1, 1.0]])
  lengths = np.array([12, 1.0, 1.0, 1.0])
  options = {"centers": centers, "lengths_mm": lengths, "tolerance_mm": 0.0}
  predicted = np.zeros_like(truth)
  predicted[15, 10, 5] = True  # The rod's end, nearer to the dot's centre.
  ours = metrics.lesion_detection(predicted, truth, spacing, **options)
  assert (ours["lesions"], ours["detected"]) == (4, 1)
  assert ours["false_positives"] == 0
  # The end belongs to the rod: hitting the dot too makes two.
  predicted[17, 10, 5] = True
  ours = metrics.lesion_detection(predicted, truth, spacing, **options)
  assert ours["detected"] == 2
  # The lesion without a voxel is found at its centre, by no perfect mask.
  assert ours["recall_best"] == 0.75
  perfect = metrics.lesion_detection(truth, truth, spacing, **options)
  assert perfect["recall"] == perfect["recall_best"]
  predicted[1, 1, 1] = True
  ours = metrics.lesion_detection(predicted, truth, spacing, **options)
  assert ours["detected"] == 3


def test_lesions_that_touch_are_one():
  """No mask can tell them apart, so a perfect one must not lose for it."""
  truth, spacing = lesion_case()
  truth[16, 10, 5] = True  # The rod and the dot touch: one component.
  centers = np.array([[9.5, 10, 5], [17, 10, 5], [10, 2, 15]])
  options = {"centers": centers, "lengths_mm": np.array([12, 1.0, 1.0])}
  ours = metrics.lesion_detection(truth, truth, spacing, **options)
  assert (ours["lesions"], ours["recall"]) == (2, 1)
  assert ours["false_positives"] == 0
  # Spots of one lesion are one without touching.
  spots = truth.copy()
  spots[8:10, 10, 5] = False
  ours = metrics.lesion_detection(spots, spots, spacing, **options)
  assert (ours["lesions"], ours["recall"]) == (2, 1)
  assert ours["false_positives"] == 0


def test_labelling_everything_detects_nothing():
  truth, spacing = lesion_case()
  vessel = np.zeros_like(truth)
  vessel[:, 8:13, 3:8] = True
  vessel[10, :, 15] = True
  ours = metrics.lesion_detection(vessel, truth, spacing)
  assert ours["recall"] == 0
  assert ours["false_positives"] == 2
  # A component that is half on a lesion detects it, though it joins two.
  joined = np.zeros_like(truth)
  joined[4:18, 10, 5] = True
  ours = metrics.lesion_detection(joined, truth, spacing, tolerance_mm=0.0)
  assert ours["detected"] == 1
  assert ours["false_positives"] == 0


def test_a_voxel_belongs_to_the_lesion_whose_end_is_nearest():
  # Ends at 5 and 7 mm: half way between them, at 6 mm, is the border.
  centers, lengths = np.array([[0, 0, 0], [10, 0, 0.0]]), np.array([10, 6])
  truth = box((11, 3, 3), (0, 11), (0, 1), (0, 1))
  truth[6] = False  # What touches is one lesion.
  for place, both in ((5, False), (7, True)):
    predicted = np.zeros_like(truth)
    predicted[0, 0, 0] = predicted[place, 0, 0] = True
    ours = metrics.lesion_detection(
      predicted,
      truth,
      (1, 1, 1),
      centers=centers,
      lengths_mm=lengths,
      tolerance_mm=0,
    )
    assert ours["detected"] == 1 + both


def test_lesion_detection_of_nothing():
  truth, spacing = lesion_case()
  none = np.zeros_like(truth)
  ours = metrics.lesion_detection(none, truth, spacing)
  assert (ours["recall"], ours["false_positives"]) == (0, 0)
  ours = metrics.lesion_detection(truth, none, spacing)
  assert math.isnan(ours["recall"])
  assert ours["false_positives"] == 3
  table = {"centers": np.zeros((0, 3))}
  ours = metrics.lesion_detection(truth, none, spacing, **table)
  assert math.isnan(ours["recall"])
  assert ours["false_positives"] == 3


def test_lesion_centers_undo_the_affine():
  affine = np.array(
    [[0, 0, 0.8, -20], [0, 1.25, 0, 7], [0.5, 0, 0, -300], [0, 0, 0, 1.0]]
  )
  voxels = np.array([[3, 4, 5], [10.5, 0.25, 2]])
  mm = voxels @ affine[:3, :3].T + affine[:3, 3]
  lesions = [
    {"position_mm": list(x), "length_mm": n}
    for x, n in zip(mm, (7, 9), strict=True)
  ]
  centers, lengths = metrics.lesion_centers(lesions, affine)
  np.testing.assert_allclose(centers, voxels)
  assert lengths.tolist() == [7, 9]
  centers, lengths = metrics.lesion_centers([], affine)
  assert (centers.shape, lengths.shape) == ((0, 3), (0,))


def test_what_cannot_be_measured_is_refused():
  mask = np.zeros((3, 4, 5))
  with pytest.raises(ValueError, match=r"\(3, 4, 5\) and \(3, 5, 4\)"):
    metrics.case_metrics(mask, mask.swapaxes(1, 2), SPACING)
  with pytest.raises(ValueError, match="3D"):
    metrics.case_metrics(mask[0], mask[0], SPACING)
  with pytest.raises(ValueError, match="above 0"):
    metrics.case_metrics(mask, mask, (1, 0, 1))


def test_the_table_of_cases_counts_patients():
  # Patient a has two scans, b no plaque.
  rows = [
    {"patient_id": "a", "class": "plaque", "dice": 0.2},
    {"patient_id": "a", "class": "plaque", "dice": 0.4},
    {"patient_id": "b", "class": "plaque", "dice": math.nan},
    {"patient_id": "c", "class": "plaque", "dice": 0.9},
    {"patient_id": "c", "class": "aorta", "dice": 0.95},
  ]
  plaque, aorta = intervals.mean_table(rows, ["class"], ["dice", "iou"])
  assert plaque["class"] == "plaque"
  assert plaque["dice"].value == pytest.approx((0.3 + 0.9) / 2)
  assert (plaque["dice"].n, plaque["dice"].n_patients) == (2, 3)
  assert plaque["iou"].method == "undefined"
  assert aorta["dice"].method == "undetermined"


def test_volumes_are_those_of_the_voxels_of_a_sheared_grid():
  mask = np.zeros((4, 5, 6), bool)
  mask[1:3, 1:3, 1:3] = True
  edges = metrics.case_metrics(mask, mask, (2.0, 1.0, 1.0))
  sheared = metrics.case_metrics(mask, mask, (2.0, 1.0, 1.0), voxel_mm3=1.5)
  assert edges["volume_ml"] == pytest.approx(0.016)
  assert sheared["volume_ml"] == pytest.approx(0.012)
  assert sheared["truth_volume_ml"] == pytest.approx(0.012)
