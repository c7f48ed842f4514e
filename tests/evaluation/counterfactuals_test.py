"""Phantoms with and without a lesion, and planted networks that use one."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import linen as nn

from cadjax import models
from cadjax.classification.classifier import Classifier
from cadjax.core import files
from cadjax.data import input_pipeline
from cadjax.evaluation import counterfactuals
from cadjax.explanation import cad_maps, cam
from cadjax.report import tables
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

  def pairs(self):
    return [("unit", method) for method in cam.METHODS]

  def raw(self, cells, layer, shape, method):
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
  assert all(math.isnan(row["hit_used"]) for row in lesions)
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


# --- Networks whose weights are set by hand ---------------------------------
SIZE = (64, 64, 64)
WINDOW = (-1000.0, 1000.0)


class PlantedNet(nn.Module):
  """A real network of two maps, which adds up bright voxels in one place.

  "stem" is what is brighter than a level, anywhere; "unit" is that times a
  weight for each place; the log odds are a multiple of its sum and a bias. So
  a method that weighs whole maps shows at the stem what is bright, and one
  that weighs every cell, or looks at the unit, what is used.
  """

  num_classes: int = 2
  ndim: int = 3
  conv: str = "auto"
  dtype: object = jnp.float32
  axis_name: str | None = None

  def check(self):
    pass

  @nn.compact
  def __call__(self, x, train=False):
    weight = self.param("unit_weight", nn.initializers.zeros, SIZE)
    level = self.param("stem_level", nn.initializers.zeros, ())
    scale = self.param("head_scale", nn.initializers.ones, ())
    bias = self.param("head_bias", nn.initializers.zeros, ())
    space = x.shape[1:-1]
    weight = weight[tuple(slice(n) for n in space)]
    sides = [(0, n - m) for n, m in zip(space, weight.shape, strict=True)]
    weight = jnp.pad(weight, sides)[..., None]
    stem = self.perturb("stem", nn.relu(x - level))
    unit = self.perturb("unit", stem * weight)
    odds = scale * unit.sum((1, 2, 3)) + bias
    return jnp.concatenate([-odds, odds], -1) / 2, {"stem": stem, "unit": unit}


@pytest.fixture
def plant(tmp_path, monkeypatch):
  """Makes the maps of a classifier: uses [D, H, W], a level in HU, a scale."""
  monkeypatch.setitem(models.MODELS, "planted", PlantedNet)

  def make(uses, level_hu, image):
    level = (level_hu - WINDOW[0]) / (WINDOW[1] - WINDOW[0])
    seen = (image.astype(float) - WINDOW[0]) / (WINDOW[1] - WINDOW[0])
    total = (np.maximum(seen - level, 0) * uses).sum()
    # The log odds are 3 as it is, and -3 where the place is dark.
    params = {
      "unit_weight": uses.astype(np.float32),
      "stem_level": np.float32(level),
      "head_scale": np.float32(6 / total),
      "head_bias": np.float32(-3),
    }
    config = ml_collections.ConfigDict(
      {
        "task": "classify",
        "model": {"name": "planted", "ndim": 3},
        "data": {"window_hu": WINDOW, "prior": {"use": "none"}},
        "eval": {"pooling": "mean"},
      }
    )
    variables = {"params": jax.tree.map(jnp.asarray, params)}
    return cad_maps.CadMaps(Classifier(tmp_path, config, {}, 1, variables))

  return make


def measured_net(maps, dataset, twins, monkeypatch):
  """Returns rows, summary, its rows by (layer, method), and the report."""
  monkeypatch.setattr(counterfactuals, "draw_twins", lambda *_: twins)
  rows = counterfactuals.measure_case(maps, dataset, CASE)
  result = counterfactuals.summarise(rows, 0.0, draws=100)
  by_map = {(row["layer"], row["method"]): row for row in result["agreement"]}
  return rows, result, by_map, tables._counterfactual(result)


def test_maps_and_effects_agree_on_a_network_of_one_lesion(
  dataset, twins, calcified, plant, monkeypatch, tmp_path
):
  uses = around(twins, calcified) & twins.near[calcified]
  for k, near in enumerate(twins.near):
    if k != calcified:
      uses &= ~near
  maps = plant(uses, CALCIUM_HU, twins.whole)
  rows, result, by_map, report = measured_net(maps, dataset, twins, monkeypatch)
  # The network uses that lesion and no other.
  removed = np.array([row["removed"] for row in rows["effects"]])
  assert removed[calcified] > 4
  assert np.abs(np.delete(removed, calcified)).max() < 1e-4
  assert result["explained"]["one"].value == 1
  # So do the maps of the layer where nothing else is left.
  for method in ("gradcam", "hirescam", "layercam", "respondcam"):
    row = by_map["unit", method]
    assert row["rank_correlation"].value == pytest.approx(1), method
    assert row["hit_used"].value == 1
    assert row["hit_unused"].value == 0
    assert row["gone_used"].value > 0.7
    assert row["gone_unused"].value == 0
    assert row["gone_near"].value > 0.99
    assert row["on_used"].value == 1
    assert row["shown"].value > 1
    assert row["shown_gain"].value > 1
  # Before it, weights of whole maps show all that is bright, such as bone.
  right, wrong = by_map["stem", "hirescam"], by_map["stem", "gradcam"]
  assert right["rank_correlation"].value == pytest.approx(1)
  assert wrong["rank_correlation"].value < 0.9
  assert wrong["gone_used"].value < 0.1 < right["gone_used"].value
  assert "best gradcam at unit: rank correlation" in report or (
    "best hirescam at stem: rank correlation" in report
  )
  assert "does the network use the lesions? 0." in report
  # Some lesions are used and some are not, in one table of one file.
  files.write_rows(tmp_path, "lesions", rows["lesions"])
  lines = (tmp_path / "lesions.csv").read_text().splitlines()
  assert len(lines) == 1 + len(rows["lesions"])


def test_maps_point_to_the_corner_that_a_network_uses(
  dataset, twins, plant, monkeypatch
):
  uses = np.zeros(twins.whole.shape, bool)
  uses[-12:, -12:, -12:] = True
  assert not any((uses & near).any() for near in twins.near)
  # The peaks of the noise: what a blurred corner has no more.
  level = float(np.quantile(twins.whole[uses], 0.9))
  maps = plant(uses, level, twins.whole)
  rows, result, by_map, report = measured_net(maps, dataset, twins, monkeypatch)
  # Does the network use the lesions? No, although it says CAD.
  assert rows["effects"][0]["log_odds"] == pytest.approx(3, abs=0.01)
  assert np.abs([row["removed"] for row in rows["effects"]]).max() < 1e-4
  assert result["explained"]["one"].value == 0
  assert result["explained"]["all"].value == 0
  row = by_map["unit", "gradcam"]
  assert row["network_elsewhere"].value == 1
  assert row["map_elsewhere"].value == row["on_used"].value == 0
  assert row["hit_unused"].value == 0
  # Does the map point to what the network uses? Yes: to the corner.
  heat = maps.raw(
    maps.cells(twins.whole)["gradcam"]["unit"], "unit", twins.whole.shape
  )
  assert heat[uses].sum() == pytest.approx(heat.sum())
  assert row["shown"].value > 1
  assert row["shown_gain"].value > 1
  assert "does the network use the lesions? no, none of" in report
  assert "no lesion alone is used to hold maps against" in report


def test_a_map_beside_what_a_network_uses_is_the_maps_fault(
  dataset, twins, calcified, plant, monkeypatch
):
  """The lesion is used, and the map is drawn in the corner."""
  uses = around(twins, calcified) & twins.near[calcified]
  maps = plant(uses, CALCIUM_HU, twins.whole)
  corner = np.zeros(twins.whole.shape, np.float32)
  corner[-12:, -12:, -12:] = 1
  monkeypatch.setattr(maps, "raw", lambda *_: corner)
  _, result, by_map, _ = measured_net(maps, dataset, twins, monkeypatch)
  row = by_map["unit", "gradcam"]
  assert result["effects"]["used"].value > 0
  assert row["map_elsewhere"].value == 1
  assert row["network_elsewhere"].value == 0
  assert row["hit_used"].value == 0
  assert row["gone_used"].value == 0
  assert abs(row["shown_gain"].value) < 0.1


def test_who_looks_elsewhere():
  def told(removed, together, hits):
    found = counterfactuals.verdict(np.array(removed), together, hits)
    assert sum(found.values()) == 1
    return max(found, key=found.get)

  assert told([2.0, 0.0], 2.0, [1.0, 0.0]) == "on_used"
  assert told([2.0, 0.0], 2.0, [0.0, 1.0]) == "map_elsewhere"
  assert told([0.0, 0.0], 0.0, [0.0, 0.0]) == "network_elsewhere"
  assert told([0.0, 0.0], 0.0, [0.0, 1.0]) == "on_unused"
  assert told([2.0, 0.0], 2.0, [math.nan, math.nan]) == "map_elsewhere"
  # Each can be missed, and not all of them.
  assert told([0.1, 0.1], 3.0, [0.0, 1.0]) == "on_used"
  assert told([0.1, 0.1], 3.0, [0.0, 0.0]) == "map_elsewhere"


def test_what_a_map_shows_is_worth_what_the_score_loses():
  image = np.zeros((8, 8, 8))
  image[2:4, 2:4, 2:4] = 1
  flat = np.zeros(image.shape)

  def score(images):
    return images.sum((1, 2, 3))

  found = counterfactuals.shown(score, image, image, flat)
  assert found["shown"] == 8
  assert found["shown_gain"] == 8 - found["shown_elsewhere"] >= 4
  found = counterfactuals.shown(score, image, np.ones_like(image), flat)
  assert found["shown_gain"] == 0
  found = counterfactuals.shown(score, image, flat, flat)
  assert math.isnan(found["shown"])


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
  # What no lesion does has no order that a map could be held to.
  scan, _ = counterfactuals.agreement(heat, without, near, removed / 10)
  assert math.isnan(scan["rank_correlation"])
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
