"""Validation's Dice, and what a segmenter cannot be trained on."""

import types

import numpy as np
import pytest
from tiny_runs import segmenter_config

from cadjax.core import lookup, parallel
from cadjax.segmentation import task
from data_prep.errors import UserError


def test_overlaps_are_the_parts_of_each_classs_dice():
  rng = np.random.default_rng(0)
  predicted = rng.integers(0, 4, (5, 6, 7)).astype(np.uint8)
  truth = rng.integers(0, 3, (5, 6, 7)).astype(np.uint8)  # None of class 3.
  both, sizes = task.overlap_by_class(predicted, truth, 4)
  for k in (1, 2, 3):
    p, t = predicted == k, truth == k
    assert both[k - 1] == 2 * (p & t).sum()
    assert sizes[k - 1] == p.sum() + t.sum()
  assert both[2] == 0


def dataset(**changes):
  fields = {
    "path": "somewhere",
    "rows": {"train": [{}], "validation": [{}]},
    "has_masks": True,
  }
  return types.SimpleNamespace(**(fields | changes))


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"rows": {"train": [{}], "validation": []}}, "validation split has no"),
    ({"has_masks": False}, "holds no masks, which a segmenter learns from"),
  ],
)
def test_data_that_cannot_be_learned_from(changes, message):
  devices = parallel.make_parallel("mesh", data=1)
  with pytest.raises(UserError, match=message):
    task.make_task(segmenter_config(), dataset(**changes), devices)


@pytest.mark.parametrize(
  ("part", "changes", "message"),
  [
    ("data", {"patch_size": (8, 16, 15)}, r"\(8, 16, 15\); .* multiples of 2"),
    ("segment", {"window": (8, 15, 16)}, "config.segment.window is"),
  ],
)
def test_fields_that_cannot_be_are_refused(part, changes, message):
  devices = parallel.make_parallel("mesh", data=1)
  config = segmenter_config()
  config[part].update(changes)
  with pytest.raises(lookup.ConfigError, match=message):
    task.make_task(config, dataset(), devices)
