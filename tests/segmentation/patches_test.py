"""Patches: the right voxels, the right places, the same again."""

import collections

import numpy as np
import pytest

from cadjax.data import input_pipeline
from cadjax.segmentation import patches
from data_prep.errors import UserError

SHAPES = [(12, 14, 16), (10, 20, 9), (3, 14, 12)]
SIZE = (4, 6, 8)


def make_dataset(shapes=SHAPES):
  """Volumes whose HU tell where a voxel lies; the mask is a box."""
  records, rows = [], []
  for i, shape in enumerate(shapes):
    image = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    mask = np.zeros(shape, np.uint8)
    mask[1:3, 5:9, 2:6] = 1
    mask[2, 6, 3] = 3
    known = np.array([1, 1, 1, i % 2, 1], np.uint8)
    record = {"image": image, "mask": mask, "mask_classes": known}
    records.append(record | {"case_id": f"c{i}".encode()})
    rows.append({"stored": "train", "index": str(i), "case_id": f"c{i}"})
  rows = {"train": rows, "validation": [], "test": []}
  return input_pipeline.Dataset("there", rows, {}, {"train": records}, "")


def batches(dataset, start, stop, **options):
  options = {
    "class_set": "aorta_coronaries",
    "batch_size": 2,
    "patch_size": SIZE,
    "patches_per_volume": 4,
    "foreground_share": 0.5,
    "seed": 3,
  } | options
  return list(patches.train_batches(dataset, start=start, stop=stop, **options))


def test_a_patch_is_a_piece_of_its_volume_with_its_mask():
  dataset = make_dataset()
  places = set()
  for batch, rows in batches(dataset, 0, 60):
    assert batch["image"].shape == (2, *SIZE, 1)
    assert batch["image"].dtype == np.int16
    assert batch["mask"].dtype == np.uint8
    assert batch["valid"].tolist() == [1, 1]
    assert batch["index"].tolist() == [0, 1]
    for j, row in enumerate(rows):
      record = dataset.read(row)
      volume, mask = record["image"], record["mask"]
      np.testing.assert_array_equal(batch["known"][j], record["mask_classes"])
      # Padding of the volume that is 3 planes deep: its fourth plane.
      short = SIZE[0] - volume.shape[0]
      if short > 0:
        volume = np.pad(volume, ((0, 1), (0, 0), (0, 0)), constant_values=-1024)
        mask = np.pad(mask, ((0, 1), (0, 0), (0, 0)))
      patch = batch["image"][j, ..., 0]
      corner = np.argwhere(volume == patch[0, 0, 0])[0]
      box = tuple(slice(c, c + n) for c, n in zip(corner, SIZE, strict=True))
      np.testing.assert_array_equal(patch, volume[box])
      np.testing.assert_array_equal(batch["mask"][j], mask[box])
      places.add((row["case_id"], *corner))
  assert len(places) > 60


def test_an_epoch_takes_the_same_number_from_every_volume():
  dataset = make_dataset()
  assert patches.steps_per_epoch(dataset, 2, 4) == 6
  drawn = [
    collections.Counter(
      row["case_id"] for _, rows in batches(dataset, *epoch) for row in rows
    )
    for epoch in ((0, 6), (6, 12))
  ]
  assert drawn[0] == drawn[1] == {"c0": 4, "c1": 4, "c2": 4}
  orders = [
    [row["case_id"] for _, rows in batches(dataset, *epoch) for row in rows]
    for epoch in ((0, 6), (6, 12))
  ]
  assert orders[0] != orders[1]


def test_to_resume_is_to_skip():
  dataset = make_dataset()
  whole, rest = batches(dataset, 0, 15), batches(dataset, 7, 15)
  assert len(rest) == 8
  for (want, want_rows), (got, got_rows) in zip(whole[7:], rest, strict=True):
    assert want_rows == got_rows
    for name in want:
      np.testing.assert_array_equal(got[name], want[name])
  other = batches(dataset, 7, 15, seed=4)
  assert any(
    not np.array_equal(a["image"], b["image"])
    for (a, _), (b, _) in zip(rest, other, strict=True)
  )


def corners(labels, share, count=2000):
  rng = np.random.default_rng(0)
  return np.array(
    [
      patches.draw_corner(rng, labels, SIZE, foreground_share=share)
      for _ in range(count)
    ]
  )


def labels_of(shape=(20, 24, 28)):
  labels = np.zeros(shape, np.uint8)
  labels[4:14, 6:16, 8:18] = 1
  labels[10, 10, 15] = 2
  return labels


def test_foreground_is_in_the_middle_and_classes_count_alike():
  labels = labels_of()
  middle = corners(labels, 1.0) + np.array(SIZE) // 2
  seen = np.bincount(labels[tuple(middle.T)], minlength=3)
  assert seen[0] == 0
  # Class 2 is one voxel of a thousand, and half of the patches.
  assert abs(seen[2] - 1000) < 100


def test_the_share_is_that_of_the_patches_around_foreground():
  labels = np.zeros((40, 48, 56), np.uint8)
  labels[20, 24, 28] = 1
  middle = corners(labels, 0.3) + np.array(SIZE) // 2
  around = (middle == [20, 24, 28]).all(1)
  assert abs(around.mean() - 0.3) < 0.03


def test_without_foreground_places_are_uniform_and_reach_the_ends():
  empty = np.zeros((6, 9, 8), np.uint8)
  drawn = corners(empty, 1.0)
  assert drawn.min(0).tolist() == [0, 0, 0]
  assert drawn.max(0).tolist() == [2, 3, 0]
  counts = np.bincount(drawn[:, 1])
  assert (abs(counts - 500) < 80).all()


def test_a_patch_at_the_edge_stays_inside():
  labels = np.zeros((6, 9, 12), np.uint8)
  labels[0, 0, 0] = labels[-1, -1, -1] = 1
  drawn = corners(labels, 1.0, 100)
  assert {tuple(c) for c in drawn} == {(0, 0, 0), (2, 3, 4)}


def test_a_batch_larger_than_an_epoch():
  with pytest.raises(UserError, match="patches_per_volume"):
    patches.steps_per_epoch(make_dataset(), 13, 4)
