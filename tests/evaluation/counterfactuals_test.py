"""Phantoms with and without a lesion, and planted networks that use one."""

import dataclasses
import math
import types

import numpy as np
import pytest

from cadjax.data import input_pipeline
from cadjax.evaluation import counterfactuals
from cadjax.explanation import cam
from data_prep import phantom
from data_prep.errors import UserError
from data_prep.geometry import GridSpec

CALCIUM_HU = 500
# Overt, with several calcified lesions apart from each other.
SEED = 1
CASE = {"case_id": f"phantom_{SEED:04d}", "patient_id": "one"}


class OneRecord:
  """A data set of one phantom."""

  path = "here"

  def __init__(self):
    self.metadata = {
      "source": "phantom", "edition": phantom.EDITION, "severity": "overt",
      "scanner": {}, "population": {},
    }  # fmt: skip
    grid = GridSpec("heart", (64,) * 3, (128.0,) * 3)
    self.drawn = phantom.make_phantom(
      SEED, label=1, severity="overt", grid=grid
    )

  def read(self, case):
    assert case == CASE
    volume = self.drawn.volume
    return {"image": volume.hu, "grid_affine": volume.affine}


class Planted:
  """A network of one unit, which sees calcium in one region, and its map.

  Attributes:
    uses: bool [D, H, W], where calcium raises its log odds of CAD.
    shows: bool [D, H, W], where its map is not zero.
  """

  strides = {"unit": (1, 1, 1)}

  def __init__(self, uses, shows=None):
    self.uses, self.shows = uses, uses if shows is None else shows
    self.trained = types.SimpleNamespace(seen=lambda record: record["image"])

  def _unit(self, image):
    return np.maximum(image.astype(float) - CALCIUM_HU, 0) / 100

  def log_odds(self, images):
    return np.array([(self._unit(one) * self.uses).sum() - 1 for one in images])

  def cells(self, image):
    # What it does not use is shown all the same, with or without lesions.
    found = self._unit(image) * (self.uses & self.shows)
    found = np.where(self.shows & ~self.uses, 1.0, found)
    return {method: {"unit": found} for method in cam.METHODS}

  def raw(self, cells, layer, shape):
    assert (layer, cells.shape) == ("unit", shape)
    return cells


@pytest.fixture(scope="module")
def dataset():
  return OneRecord()


@pytest.fixture(scope="module")
def twins(dataset):
  return counterfactuals.draw_twins(
    Planted(np.zeros(1, bool)).trained, dataset, CASE
  )


@pytest.fixture(scope="module")
def calcified(twins):
  """The number of the lesion with the most calcium, away from the others."""
  return int(np.argmax([row["calcium_mm3"] for row in twins.lesions]))


def around(twins, number):
  """Bool [D, H, W], where this lesion changes the image, and no other does."""
  mine = twins.whole != twins.without[number]
  for other in range(len(twins.lesions)):
    if other != number:
      mine &= twins.whole == twins.without[other]
  return mine


def measured(planted, dataset, twins, monkeypatch):
  monkeypatch.setattr(counterfactuals, "draw_twins", lambda *_: twins)
  return counterfactuals.measure_case(planted, dataset, CASE)


def of_method(rows, method="hirescam"):
  return [row for row in rows if row["method"] == method]


def test_twins_differ_at_the_lesion_and_nowhere_else(dataset, twins):
  assert len(twins.lesions) >= 5
  np.testing.assert_array_equal(twins.whole, dataset.drawn.volume.hu)
  normal = phantom.make_phantom(
    SEED, label=0, severity="overt", grid=dataset.drawn.volume.grid
  )
  np.testing.assert_array_equal(twins.none, normal.volume.hu)
  for one, alone, near in zip(
    twins.without, twins.alone, twins.near, strict=True
  ):
    changed = one != twins.whole
    assert changed.any()
    # A plaque bulges beyond 5 mm of the centreline at its ends only.
    assert (changed & near).sum() > 0.5 * changed.sum()
    assert (alone != twins.none).any()
  # Without one and with one alone are one change in two patients.
  total = np.sum([one != twins.whole for one in twins.without], axis=0) > 0
  assert (total | (twins.none == twins.whole)).mean() > 0.999


def test_a_network_that_uses_one_lesion(dataset, twins, calcified, monkeypatch):
  planted = Planted(around(twins, calcified))
  rows = measured(planted, dataset, twins, monkeypatch)
  removed = np.array([row["removed"] for row in rows["effects"]])
  assert removed[calcified] > counterfactuals.USED
  assert np.abs(np.delete(removed, calcified)).max() < 1e-6
  added = [row["added"] for row in rows["effects"]]
  assert int(np.argmax(added)) == calcified
  lesions = of_method(rows["lesions"])
  assert lesions[calcified]["hit_used"] == 1
  assert lesions[calcified]["at"] == 1
  assert lesions[calcified]["gone"] == pytest.approx(1, abs=0.2)
  assert lesions[calcified]["gone_near"] > 0.9
  others = [row for k, row in enumerate(lesions) if k != calcified]
  assert max(row["gone"] for row in others) == 0
  # The lesion that is used is the one that the map shows.
  (scan,) = of_method(rows["scans"])
  assert scan["rank_correlation"] > 0.4
  result = counterfactuals.summarise(rows, 0.0, draws=100)
  assert result["explained"]["one"].value == 1
  assert result["explained"]["all"].value == 1


def test_a_network_that_uses_a_corner(dataset, twins, monkeypatch):
  corner = np.zeros(twins.whole.shape, bool)
  corner[:4, :4, :4] = True
  planted = Planted(corner)
  # Something is there, with and without lesions.
  planted._unit = lambda image: np.ones(image.shape)
  rows = measured(planted, dataset, twins, monkeypatch)
  assert {row["removed"] for row in rows["effects"]} == {0.0}
  lesions = of_method(rows["lesions"])
  assert {row["hit"] for row in lesions} == {0.0}
  assert {row["gone"] for row in lesions} == {0.0}
  assert all("hit_used" not in row for row in lesions)
  assert all(math.isnan(x["rank_correlation"]) for x in rows["scans"])
  # Called CAD, and no lesion explains it.
  result = counterfactuals.summarise(rows, 0.0, draws=100)
  assert result["explained"]["one"].value == 0
  assert result["explained"]["all"].value == 0
  assert result["effects"]["used"].value == 0


def test_a_map_that_shows_something_else(
  dataset, twins, calcified, monkeypatch
):
  """The network uses the lesion; its map lies in a corner: the map is wrong."""
  corner = np.zeros(twins.whole.shape, bool)
  corner[:4, :4, :4] = True
  planted = Planted(around(twins, calcified), shows=corner)
  rows = measured(planted, dataset, twins, monkeypatch)
  assert rows["effects"][calcified]["used"] == 1
  lesion = of_method(rows["lesions"])[calcified]
  assert lesion["hit_used"] == 0
  assert lesion["gone"] == 0
  assert math.isnan(lesion["gone_near"])


def test_the_agreement_of_perfect_and_trivial_maps():
  shape, rng = (8, 8, 8), np.random.default_rng(0)
  near = []
  for k in range(6):
    region = np.zeros(shape, bool)
    region[k, :, :] = True
    near.append(region)
  removed = np.array([0.1, 3.0, 0.2, 2.0, 0.0, 1.0])
  heat = np.sum([e * r for e, r in zip(removed, near, strict=True)], axis=0)
  without = [heat * ~region for region in near]
  scan, rows = counterfactuals.agreement(heat, without, near, removed)
  assert scan["rank_correlation"] == pytest.approx(1)
  assert [row["hit"] for row in rows] == [0, 1, 0, 1, 0, 0]
  assert sum(row["gone"] for row in rows) == pytest.approx(1)
  flat = np.ones(shape)
  scan, rows = counterfactuals.agreement(flat, [flat] * 6, near, removed)
  assert math.isnan(scan["rank_correlation"])
  assert {row["gone"] for row in rows} == {0.0}
  drawn = [
    counterfactuals.agreement(rng.random(shape), [flat] * 6, near, removed)[0][
      "rank_correlation"
    ]
    for _ in range(200)
  ]
  assert abs(np.mean(drawn)) < 0.1
  empty = np.zeros(shape)
  scan, rows = counterfactuals.agreement(empty, [empty] * 6, near, removed)
  assert math.isnan(rows[0]["at"])


def test_records_are_drawn_again_as_they_are(tiny_config):
  data = input_pipeline.open_dataset(tiny_config.data)
  assert counterfactuals.can_be_drawn(data)
  case = next(row for row in data.rows["train"] if row["label"] == "1")
  trained = types.SimpleNamespace(seen=lambda record: record["image"])
  found = counterfactuals.draw_twins(trained, data, case)
  np.testing.assert_array_equal(found.whole, data.read(case)["image"])
  other = dataclasses.replace(data, metadata=data.metadata | {"edition": 1})
  assert not counterfactuals.can_be_drawn(other)
  # What is no phantom of this version is refused.
  other = dataclasses.replace(
    data, metadata=data.metadata | {"severity": "clinical"}
  )
  with pytest.raises(UserError, match="build the data set again"):
    counterfactuals.draw_twins(trained, other, case)
