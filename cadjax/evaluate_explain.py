"""Measures the explanation maps of a classifier on cases with masks.

  python -m cadjax.evaluate --workdir=W --explain

Maps for the class CAD, of all layers and all methods that need one gradient.
Written to W/eval/explain: rows of cases first, then metrics.json, table.txt
and lift.png.
"""

import functools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from tqdm import tqdm

from cadjax import (
  calibration,
  cam,
  case_rows,
  checkpoint,
  explain_checks,
  explain_metrics,
  explain_table,
  input_pipeline,
  models,
  plots,
  results,
  segment_metrics,
  steps,
  workdir,
)
from cadjax.results import Row
from data_prep.cases import CLASS_NAMES
from data_prep.errors import UserError

CAD = 1
# The classes of a structure; it is known where a case annotates the first.
STRUCTURES = {
  "coronaries": ("lumen", "stable_plaque", "unstable_plaque"),
  "plaque": ("stable_plaque", "unstable_plaque"),
  "aorta": ("aorta",),
}
REGIONS = ("volume", "body")
# Air and lung are below; fat and all that is denser is above.
BODY_HU = -500
# Patients whose maps make the pairs of unrelated ones.
BASELINE_PATIENTS = 12
# What is measured, and what its rows are told apart by.
TABLES = {
  "location": ("layer", "method", "structure"),
  "faithfulness": ("layer", "method"),
  "randomisation": ("layer", "method", "upto"),
  "agreement": ("layer", "method"),
}

# method -> layer -> map on its own cells [D, H, W].
Cells = dict[str, dict[str, np.ndarray]]


@functools.lru_cache(maxsize=4)
def _compiled(model: nn.Module, window_hu: tuple[float, float]) -> Any:
  """Shared by all seeds of one architecture."""
  explain = cam.make_explain(model, methods=tuple(cam.METHODS))

  def run(variables, image):
    return explain(variables, steps.window(image, window_hu), CAD)[1]

  return jax.jit(run)


_to_image = jax.jit(cam.to_image, static_argnums=(1, 2))


class Explainer:
  """All maps of a trained classifier, compiled once for each shape."""

  def __init__(self, trained: workdir.Trained):
    self.trained = trained
    self.model = models.get_model(trained.config.model)
    self.strides = layer_strides(self.model)
    self.variables = _on_device(trained.variables)
    self._run = _compiled(self.model, tuple(trained.config.data.window_hu))

  def cells(
    self, image: np.ndarray, variables: Mapping[str, Any] | None = None
  ) -> Cells:
    """Returns the maps of int16 HU [D, H, W], each on its layer's cells.

    Args:
      image: the volume.
      variables: in place of the trained ones.
    """
    variables = self.variables if variables is None else variables
    maps = self._run(variables, image[None, ..., None])
    return {
      method: {layer: np.asarray(x)[0] for layer, x in by_layer.items()}
      for method, by_layer in maps.items()
    }

  def heat(
    self, cells: np.ndarray, layer: str, shape: tuple[int, ...]
  ) -> np.ndarray:
    """Returns one map on the image's grid [D, H, W], its largest value 1."""
    maps = _to_image(jnp.asarray(cells)[None], shape, self.strides[layer])
    return np.asarray(maps)[0]

  def log_odds(self, images: np.ndarray) -> np.ndarray:
    """Returns the log odds of CAD [n] of int16 HU [n, D, H, W].

    Of a 2D model's slices, the mean.
    """
    logits = self.trained.logits(images[..., None])
    return calibration.softmax_margin(logits).mean(-1)

  def fresh(self, seed: int) -> dict[str, Any]:
    """Returns variables as before training, drawn with another key."""
    image = jnp.zeros((1, *(32,) * self.model.ndim, 1))
    init = jax.jit(functools.partial(self.model.init, train=False))
    made = init(jax.random.key(seed), image)
    return _on_device({name: made[name] for name in self.variables})


def _on_device(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Copies trained and fresh variables alike: mixed, they compile once.

  What a checkpoint gives is bound to a device and what a model makes is not,
  and each mixture of the two would be compiled anew.
  """
  return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), dict(variables))


def layer_strides(model: nn.Module) -> dict[str, tuple[int, ...]]:
  """Returns voxels per cell along D, H, W of each layer, from input to head.

  A 2D model has one cell per slice.
  """
  strides = {
    name: (1,) * (3 - len(each)) + tuple(each)
    for name, each in cam.layer_strides(model).items()
  }
  return dict(sorted(strides.items(), key=lambda item: item[1]))


def read_structures(record: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns the distance field in mm of every structure a record annotates.

  To the plaque belong the centres of the lesion table, so that the map can
  point at a lesion too small for a voxel of the grid.

  Args:
    record: of the data set.

  Returns:
    {name: float32 [D, H, W]}, infinite where the structure is known to be
    absent; see `explain_metrics.distance_mm`.
  """
  if "mask" not in record:
    return {}
  lesions = json.loads(record["lesions"])
  centers, _ = segment_metrics.lesion_centers(lesions, record["grid_affine"])
  known = np.asarray(record["mask_classes"], bool)
  found = {}
  for name, classes in STRUCTURES.items():
    numbers = [CLASS_NAMES.index(each) for each in classes]
    if known[numbers[0]]:
      found[name] = explain_metrics.distance_mm(
        np.isin(record["mask"], numbers),
        record["spacing"],
        centers if name == "plaque" else None,
      )
  return found


def measure(
  trained: workdir.Trained,
  dataset: input_pipeline.Dataset,
  cases: Sequence[input_pipeline.Row],
  folder: pathlib.Path,
  *,
  about: Mapping[str, Any],
  sanity: int = 4,
  region: str = "volume",
  other: workdir.Trained | None = None,
  bootstrap: int = 2000,
  rolls: int = explain_metrics.ROLLS,
  batch_size: int = 4,
  seed: int = 0,
) -> dict[str, Any]:
  """Measures every map of the cases and writes what it finds to a folder.

  Args:
    trained: the classifier.
    dataset: the records.
    cases: rows of the data set.
    folder: where to write.
    about: what describes the run, for metrics.json.
    sanity: on how many of the cases weight randomisation, insertion and
      deletion run, which take many passes.
    region: "volume", or "body" to leave air and lung out of what is measured
      against structures.
    other: another classifier of the same data, whose maps may agree.
    bootstrap: number of draws.
    rolls: of the null, see `explain_metrics.rolled_null`.
    batch_size: volumes at a time for insertion and deletion.
    seed: of rolls, random orders, fresh weights and the bootstrap.

  Returns:
    the contents of metrics.json, but with NaN where undefined.

  Raises:
    UserError: no case has a mask, or the region is unknown.
  """
  if region not in REGIONS:
    raise UserError(
      f"--explain_region={region} is none of {', '.join(REGIONS)}"
    )
  rows, unrelated = _measure_cases(
    trained,
    dataset,
    cases,
    sanity={case["case_id"] for case in spread(cases, sanity)},
    region=region,
    other=other,
    rolls=rolls,
    batch_size=batch_size,
    seed=seed,
  )
  folder.mkdir(parents=True, exist_ok=True)
  for name, some in rows.items():
    if some:
      case_rows.write_rows(folder, f"{name}_cases", some)
  options = {"draws": bootstrap, "seed": seed}
  result = dict(about) | {
    "explained_class": "CAD",
    "n_cases": len(cases),
    "n_patients": len({case["patient_id"] for case in cases}),
    "region": region,
    "rolls": rolls,
    "radii_mm": list(explain_metrics.RADII_MM),
    "peak_mm": explain_metrics.PEAK_MM,
    "bootstrap": options | {"confidence": 0.95},
  }
  for name, by in TABLES.items():
    result[name] = explain_metrics.summarise(rows[name], by, **options)
  result["best"] = best(result["location"])
  result["unrelated"] = unrelated
  if other:
    result["other"] = {
      "workdir": str(other.path),
      "kind": kind_of_agreement(trained, other),
    }
  result["notes"] = _notes(cases, rows)
  case_rows.write_text(folder / "table.txt", explain_table.text(result))
  figure = explain_table.heat_table(
    result["location"],
    title=f"Mean lift of the maps for CAD, {result['n_patients']} patients",
    footer=result.get("disclaimer", ""),
  )
  plots.save(figure, folder / "lift.png")
  checkpoint.write_json(folder / "metrics.json", results.strict(result))
  return result


def spread(cases: Sequence[Any], count: int | None) -> list[Any]:
  """Returns `count` of the cases, evenly spread over their order, or all.

  Sources may list all normal cases before the diseased ones.
  """
  if count is None or count >= len(cases):
    return list(cases)
  places = np.linspace(0, len(cases) - 1, count).round().astype(int)
  return [cases[i] for i in places]


def best(table: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  """Returns for each structure the layer and method of the largest lift."""
  found: dict[str, dict[str, Any]] = {}
  for row in table:
    name, lift = row["structure"], row["lift_0mm"]
    largest = found[name]["lift_0mm"]["value"] if name in found else -math.inf
    if lift["value"] > largest:
      keys = ("layer", "method", "lift_0mm")
      found[name] = {key: row[key] for key in keys}
  return found


def kind_of_agreement(trained: workdir.Trained, other: workdir.Trained) -> str:
  """Returns "repeatability" for one architecture, else "reproducibility"."""
  a, b = (models.get_model(each.config.model) for each in (trained, other))
  return "repeatability" if a == b else "reproducibility"


def _measure_cases(
  trained: workdir.Trained,
  dataset: input_pipeline.Dataset,
  cases: Sequence[input_pipeline.Row],
  *,
  sanity: set[str],
  region: str,
  other: workdir.Trained | None,
  rolls: int,
  batch_size: int,
  seed: int,
) -> tuple[dict[str, list[Row]], list[Row]]:
  """Returns the rows of each of `TABLES`, and the likeness of unrelated maps.

  Raises:
    UserError: no case has a mask.
  """
  explainer = Explainer(trained)
  second = Explainer(other) if other else None
  fresh = explainer.fresh(seed + 1) if sanity else None
  rows: dict[str, list[Row]] = {name: [] for name in TABLES}
  kept: dict[str, Cells] = {}  # Of different patients on one grid.
  before: tuple[str, tuple[int, ...], Cells] | None = None
  shape = None
  for case in tqdm(cases, "explain", leave=False, disable=None):
    record = dataset.read(case)
    image, patient = record["image"], case["patient_id"]
    cells = explainer.cells(image)
    shape = shape or image.shape
    if image.shape == shape and len(kept) < BASELINE_PATIENTS:
      kept.setdefault(patient, cells)
    found = {"location": _locate(explainer, record, cells, region, rolls, seed)}
    if case["case_id"] in sanity:
      found["faithfulness"] = _faithful(
        explainer, record, cells, batch_size=batch_size, seed=seed
      )
      found["randomisation"] = _randomised(explainer, image, cells, fresh)
    if second:
      theirs, unrelated = second.cells(image), None
      if before and before[0] != patient and before[1] == image.shape:
        unrelated = before[2]
      found["agreement"] = _agree(
        explainer, second, image.shape, cells, theirs, unrelated
      )
      before = patient, image.shape, theirs
    known = {"case_id": case["case_id"], "patient_id": patient}
    known["label"] = int(case["label"])
    for name, some in found.items():
      rows[name] += [known | row for row in some]
  if not rows["location"]:
    raise UserError(
      f"{dataset.path}: none of the {len(cases)} cases has a mask to measure"
      " explanations against; build data with masks, such as phantoms"
    )
  pairs = [
    {"layer": layer, "method": method}
    | explain_checks.random_pairs(
      [each[method][layer] for each in kept.values()], seed=seed
    )
    for layer, method in _maps(explainer)
  ]
  return rows, pairs


def _maps(explainer: Explainer) -> list[tuple[str, str]]:
  return [(layer, name) for layer in explainer.strides for name in cam.METHODS]


def _locate(
  explainer: Explainer,
  record: Mapping[str, Any],
  cells: Cells,
  region: str,
  rolls: int,
  seed: int,
) -> list[Row]:
  image = record["image"]
  structures = read_structures(record)
  if not structures:
    return []
  where = image > BODY_HU if region == "body" else None
  rows = []
  for layer, method in _maps(explainer):
    heat = explainer.heat(cells[method][layer], layer, image.shape)
    found = explain_metrics.location_metrics(
      heat, structures, region=where, rolls=rolls, seed=seed
    )
    rows += [
      {"layer": layer, "method": method, "structure": name} | row
      for name, row in found.items()
    ]
  return rows


def _faithful(
  explainer: Explainer,
  record: Mapping[str, Any],
  cells: Cells,
  **options: Any,
) -> list[Row]:
  image, score = record["image"], explainer.log_odds
  options |= {
    "baseline": explain_checks.blurred(image, record["spacing"]),
    "block": max(1, min(image.shape) // 16),
  }
  chance = explain_checks.random_perturbation_auc(score, image, **options)
  rows = []
  for layer, method in _maps(explainer):
    heat = explainer.heat(cells[method][layer], layer, image.shape)
    found = explain_checks.perturbation_auc(score, image, heat, **options)
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


def _randomised(
  explainer: Explainer,
  image: np.ndarray,
  cells: Cells,
  fresh: Mapping[str, Any],
) -> list[Row]:
  # Compared on the layers' own cells: upsampling adds nothing but likeness.
  order = ("head", *reversed(explainer.strides))
  rows = []
  for upto in order:
    other = explainer.cells(
      image,
      explain_checks.randomise(explainer.variables, fresh, order, upto),
    )
    rows += [
      {"layer": layer, "method": method, "upto": upto}
      | explain_checks.compare(cells[method][layer], other[method][layer])
      for layer, method in _maps(explainer)
    ]
  return rows


def _agree(
  explainer: Explainer,
  second: Explainer,
  shape: tuple[int, ...],
  cells: Cells,
  theirs: Cells,
  unrelated: Cells | None,
) -> list[Row]:
  """Compares with another model's maps of this patient and of an earlier one.

  On cells where both models have the same ones, else on the image's grid.
  """
  rows = []
  for layer, method in _maps(explainer):
    if layer not in second.strides:
      continue
    a, b = cells[method][layer], theirs[method][layer]
    c = unrelated[method][layer] if unrelated else np.zeros_like(b)
    if a.shape != b.shape:
      a = explainer.heat(a, layer, shape)
      b, c = (second.heat(x, layer, shape) for x in (b, c))
    chance = explain_checks.compare(a, c)
    rows.append(
      {"layer": layer, "method": method}
      | explain_checks.compare(a, b)
      | {f"{name}_unrelated": value for name, value in chance.items()}
    )
  return rows


def _notes(
  cases: Sequence[input_pipeline.Row], rows: Mapping[str, Sequence[Row]]
) -> list[str]:
  notes = [
    "the best of many layers and methods is chosen on these same cases:"
    " optimistic",
  ]
  with_mask = {row["case_id"] for row in rows["location"]}
  if len(with_mask) < len(cases):
    notes.append(f"{len(cases) - len(with_mask)} cases have no mask")
  checked = {row["case_id"] for row in rows["faithfulness"]}
  if 0 < len(checked) < len(cases):
    notes.append(
      f"weight randomisation, insertion and deletion: {len(checked)} cases"
    )
  return notes
