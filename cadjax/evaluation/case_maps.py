"""What is measured of the explanation maps of one case after another.

Where the maps lie, and on some of the cases what takes many passes: insertion
and deletion, weight randomisation and the measures of `map_measures`. With a
second classifier, how far the maps of both agree.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cadjax.core.files import Row
from cadjax.data import input_pipeline
from cadjax.evaluation import map_measures
from cadjax.explanation import checks, faithfulness, location
from cadjax.explanation.cad_maps import METHODS, CadMaps, Cells
from cadjax.segmentation import metrics
from data_prep.errors import UserError
from data_prep.tissues import CLASS_NAMES

# The classes of a structure; it is known where a case annotates the first.
STRUCTURES = {
  "coronaries": ("lumen", "stable_plaque", "unstable_plaque"),
  "plaque": ("stable_plaque", "unstable_plaque"),
  "aorta": ("aorta",),
}
REGIONS = ("volume", "body")
# Air and lung are below; fat and all that is denser is above.
BODY_HU = -500
# Of the maps of a case that are measured together.
MAPS_BYTES = 2**31
# Patients whose maps make the pairs of unrelated ones.
BASELINE_PATIENTS = 12
# What is measured, and the columns that identify a row.
TABLES = {
  "location": ("layer", "method", "structure"),
  "faithfulness": ("layer", "method"),
  "randomisation": ("layer", "method", "upto"),
  "agreement": ("layer", "method"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """How the maps of a classifier are measured.

  Attributes:
    methods: of `explainer.METHODS`.
    measures: of `map_measures.NAMES`, beside those that are always taken;
      "all" stands for every one of them.
    effort: how many passes the measures take.
    sanity: on how many of the cases weight randomisation, insertion, deletion
      and the measures run, which take many passes.
    twins: of how many of the cases with CAD the phantom is drawn again without
      its lesions, see `counterfactuals`.
    region: "volume", or "body" to leave air and lung out of what is measured
      against structures.
    rolls: of the null, see `location.rolled_null`.
    bootstrap: number of draws.
    batch_size: volumes at a time for insertion and deletion;
      `config.data.eval_batch_size` of the classifier if left out.
    seed: of rolls, random orders, fresh weights and the bootstrap.

  Raises:
    UserError: the region is unknown.
    lookup.UnknownName: a measure is unknown.
  """

  methods: Sequence[str] = METHODS
  measures: Sequence[str] = ()
  effort: map_measures.Effort | None = None
  sanity: int = 4
  twins: int = 0
  region: str = "volume"
  rolls: int = location.ROLLS
  bootstrap: int = 2000
  batch_size: int | None = None
  seed: int = 0

  def __post_init__(self) -> None:
    object.__setattr__(self, "measures", map_measures.chosen(self.measures))
    if self.region not in REGIONS:
      raise UserError(
        f"--explain_region={self.region} is none of {', '.join(REGIONS)}"
      )


def read_structures(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns the distance field in mm of every structure a record annotates.

  To the plaque belong the centres of the lesion table, so that the map can
  point at a lesion too small for a voxel of the grid.

  Args:
    record: of the data set.

  Returns:
    {name: float32 [D, H, W]}, infinite where the structure is known to be
    absent; see `location.distance_mm`.
  """
  if "mask" not in record:
    return {}
  lesions = json.loads(record["lesions"])
  centers, _ = metrics.lesion_centers(lesions, record["grid_affine"])
  known = np.asarray(record["mask_classes"], bool)
  found = {}
  for name, classes in STRUCTURES.items():
    numbers = [CLASS_NAMES.index(each) for each in classes]
    if known[numbers[0]]:
      found[name] = location.distance_mm(
        np.isin(record["mask"], numbers),
        record["spacing"],
        centers if name == "plaque" else None,
      )
  return found


class CaseMaps:
  """Measures the maps of cases, and keeps what it finds.

  Args:
    maps: of the classifier.
    settings: how they are measured.
    other: a classifier of the same data, whose maps may agree.

  Attributes:
    rows: of each of `TABLES` and of "measures".
    covers: how the maps cover structures, if a measure is of that.
  """

  def __init__(
    self, maps: CadMaps, settings: Settings, other: CadMaps | None = None
  ):
    self._maps, self._settings, self._other = maps, settings, other
    self._batch_size = (
      settings.batch_size or maps.trained.config.data.eval_batch_size
    )
    # Weights of no training, for the cases with many passes.
    self._fresh = maps.fresh(settings.seed + 1) if settings.sanity else None
    self.rows: dict[str, list[Row]] = {n: [] for n in (*TABLES, "measures")}
    self.covers: list[map_measures.Covers] = []
    self._kept: dict[str, Cells] = {}  # Of different patients on one grid.
    self._shape: tuple[int, ...] | None = None  # Of that grid.
    # Patient, shape and the other classifier's maps of the case before.
    self._before: tuple[str, tuple[int, ...], Cells] | None = None

  def add(
    self,
    case: input_pipeline.CaseRow,
    record: Mapping[str, Any],
    *,
    many_passes: bool,
  ) -> None:
    """Measures a case.

    Args:
      case: its row in the data set.
      record: the same as arrays, whose image is what the classifier sees.
      many_passes: also take what needs many passes.
    """
    image, patient = record["image"], case["patient_id"]
    cells = self._maps.cells(image)
    self._keep(patient, image.shape, cells)
    structures = read_structures(record)
    ids = {"case_id": case["case_id"], "patient_id": patient}
    found = {"location": self._locate(record, structures, cells)}
    if structures and set(map_measures.COVERING) & set(self._settings.measures):
      self.covers.append(
        map_measures.cover(
          self._maps,
          cells,
          record,
          structures,
          ids=ids,
          names=self._settings.measures,
          seed=self._settings.seed,
        )
      )
    if many_passes:
      found["measures"] = self._measure(record)
      found["faithfulness"] = self._faithful(record, cells)
      found["randomisation"] = self._randomised(image, cells)
    if self._other:
      found["agreement"] = self._agree(patient, image, cells)
    known = ids | {"label": int(case["label"])}
    for name, some in found.items():
      self.rows[name] += [known | row for row in some]

  def unrelated(self) -> list[Row]:
    """Returns how alike the maps of different patients are."""
    return [
      {"layer": layer, "method": method}
      | checks.random_pairs(
        [each[method][layer] for each in self._kept.values()],
        seed=self._settings.seed,
      )
      for layer, method in self._maps.pairs()
    ]

  def _keep(self, patient: str, shape: tuple[int, ...], cells: Cells) -> None:
    self._shape = self._shape or shape
    if shape == self._shape and len(self._kept) < BASELINE_PATIENTS:
      self._kept.setdefault(patient, cells)

  def _measure(self, record: Mapping[str, Any]) -> list[Row]:
    if not map_measures.MEASURES.keys() & set(self._settings.measures):
      return []
    case = map_measures.Case(
      self._maps,
      record["image"],
      record["spacing"],
      self._fresh,
      effort=self._settings.effort,
      batch_size=self._batch_size,
      seed=self._settings.seed,
    )
    return map_measures.measure(case, self._settings.measures)

  def _locate(
    self,
    record: Mapping[str, Any],
    structures: Mapping[str, np.ndarray],
    cells: Cells,
  ) -> list[Row]:
    image = record["image"]
    if not structures:
      return []
    where = image > BODY_HU if self._settings.region == "body" else None
    keys, rows = self._maps.pairs(), []
    # A map is float32, and float64 once more among the columns of its null.
    together = max(1, MAPS_BYTES // (12 * image.size))
    for start in range(0, len(keys), together):
      some = keys[start : start + together]
      found = location.location_metrics(
        np.stack(
          [
            self._maps.heat(cells[method][layer], layer, image.shape, method)
            for layer, method in some
          ]
        ),
        structures,
        region=where,
        rolls=self._settings.rolls,
        seed=self._settings.seed,
      )
      rows += [
        {"layer": layer, "method": method, "structure": name} | row
        for (layer, method), by_structure in zip(some, found, strict=True)
        for name, row in by_structure.items()
      ]
    return rows

  def _faithful(self, record: Mapping[str, Any], cells: Cells) -> list[Row]:
    image, score = record["image"], self._maps.log_odds
    options = {
      "baseline": faithfulness.blurred(image, record["spacing"]),
      "block": max(1, min(image.shape) // 16),
      "batch_size": self._batch_size,
      "seed": self._settings.seed,
    }
    chance = faithfulness.random_perturbation_auc(score, image, **options)
    rows = []
    for layer, method in self._maps.pairs():
      heat = self._maps.heat(cells[method][layer], layer, image.shape, method)
      found = faithfulness.perturbation_auc(score, image, heat, **options)
      rows.append(
        {"layer": layer, "method": method}
        | found
        | {f"{name}_random": value for name, value in chance.items()}
        | {
          "insertion_gain": found["insertion"] - chance["insertion"],
          "deletion_gain": chance["deletion"] - found["deletion"],
        }
      )
    return rows

  def _randomised(self, image: np.ndarray, cells: Cells) -> list[Row]:
    # Compared on the layers' own cells: upsampling adds nothing but likeness.
    order = ("head", *reversed(self._maps.strides))
    rows = []
    for upto in order:
      other = self._maps.cells(
        image,
        checks.randomise(self._maps.variables, self._fresh, order, upto),
      )
      rows += [
        {"layer": layer, "method": method, "upto": upto}
        | checks.changed(cells[method][layer], other[method][layer])
        for layer, method in self._maps.pairs()
      ]
    return rows

  def _agree(self, patient: str, image: np.ndarray, cells: Cells) -> list[Row]:
    shape = image.shape
    theirs, unrelated = self._other.cells(image), None
    if self._before:
      name, same, maps = self._before
      unrelated = maps if name != patient and same == shape else None
    self._before = patient, shape, theirs
    return agreement(
      self._maps, self._other, shape, cells, theirs, unrelated=unrelated
    )


def agreement(
  maps: CadMaps,
  other: CadMaps,
  shape: tuple[int, ...],
  cells: Cells,
  theirs: Cells,
  *,
  unrelated: Cells | None = None,
) -> list[Row]:
  """Returns how alike the maps of two classifiers are, a row for each.

  On cells where both models have the same ones, else on the image's grid.

  Args:
    maps: of one classifier.
    other: of the other one.
    shape: of the image.
    cells: the first one's maps of it.
    theirs: the other one's.
    unrelated: the other one's maps of another patient's image of this shape,
      for comparison; NaN if left out.
  """
  rows = []
  for layer, method in maps.pairs():
    if layer not in theirs.get(method, {}):
      continue
    a, b = cells[method][layer], theirs[method][layer]
    c = unrelated[method][layer] if unrelated else np.zeros_like(b)
    if a.shape != b.shape:
      a = maps.heat(a, layer, shape, method)
      b, c = (other.heat(x, layer, shape, method) for x in (b, c))
    chance = checks.compare(a, c)
    rows.append(
      {"layer": layer, "method": method}
      | checks.compare(a, b)
      | {f"{name}_unrelated": value for name, value in chance.items()}
    )
  return rows
