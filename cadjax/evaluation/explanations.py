"""Measures the explanation maps of a classifier on cases with masks.

  python -m cadjax.evaluate --workdir=W --explain

Maps for the class CAD, of all layers and all methods that need one gradient,
or of those named. Written to W/eval/explain: rows of cases first, then
metrics.json, table.txt and lift.png.
"""

import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from cadjax import models
from cadjax.classification import priors, scan
from cadjax.classification.classifier import Classifier, load_classifier
from cadjax.core import files
from cadjax.core.files import Row
from cadjax.data import input_pipeline
from cadjax.evaluation import common, counterfactuals, map_measures
from cadjax.explanation import checks, faithfulness, guided, location
from cadjax.explanation.cad_maps import METHODS, CadMaps, Cells
from cadjax.report import curves, tables
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


def evaluate_maps(
  path: str | pathlib.Path,
  *,
  split: str = "test",
  data: str | None = None,
  against: str | None = None,
  cases: int | None = None,
  bootstrap: int = 2000,
  batch_size: int | None = None,
  folder: pathlib.Path | None = None,
  **options: Any,
) -> dict[str, Any]:
  """Measures the explanation maps of a workdir's best checkpoint.

  Written to explain/ in the folder where `evaluate_workdir` writes, or to the
  folder given.

  Args:
    path: the workdir of a classifier.
    split: as in `evaluate_workdir`.
    data: as in `evaluate_workdir`.
    against: another workdir of the same data, whose maps are compared.
    cases: measure this many, evenly spread over the split; all if left out.
    bootstrap: number of draws, at least 100.
    batch_size: `config.data.eval_batch_size` if left out.
    folder: where to write in place of that.
    **options: methods, measures, effort, sanity, twins, region, rolls and seed
      of `measure`.

  Returns:
    what metrics.json holds, as `measure` returns it.

  Raises:
    UserError: for settings, a workdir or data that cannot be used.
  """
  common.check_settings(split, bootstrap, batch_size)
  trained, other = load_to_explain(path, cases=cases, against=against)
  evaluation = common.open_evaluation(trained, split, data)
  about = evaluation.describe()
  del about["cases"]
  # A threshold is not chosen on what is tested.
  others = [
    case
    for case in evaluation.dataset.rows["validation"]
    if "validation" not in evaluation.splits
  ]
  return measure(
    trained,
    evaluation.dataset,
    spread(evaluation.cases, cases),
    folder or evaluation.paths.explain,
    tuned_on=spread(others, cases),
    about=about,
    other=other,
    bootstrap=bootstrap,
    batch_size=batch_size or trained.config.data.eval_batch_size,
    **options,
  )


def load_to_explain(
  path: str | pathlib.Path,
  *,
  cases: int | None = None,
  against: str | None = None,
) -> tuple[Classifier, Classifier | None]:
  """Loads what `evaluate_maps` measures; arguments as there.

  Returns:
    the classifier of the workdir, and the one of `against`.

  Raises:
    UserError: one is a segmenter, their grids differ, or `cases` is below 1.
  """
  if cases is not None and cases < 1:
    raise UserError(f"--explain_cases={cases} must be at least 1")
  trained = load_classifier(path)
  other = load_classifier(against) if against else None
  if other and other.dataset["grid"] != trained.dataset["grid"]:
    raise UserError(
      f"{against} has another grid than {path}: their maps cannot be compared"
    )
  if other and len({priors.use_of(x.config) for x in (trained, other)}) > 1:
    raise UserError(
      f"{against} sees another part of a volume than {path}"
      " (config.data.prior): their maps cannot be compared"
    )
  return trained, other


def measure(
  trained: Classifier,
  dataset: input_pipeline.Dataset,
  cases: Sequence[input_pipeline.CaseRow],
  folder: pathlib.Path,
  *,
  about: Mapping[str, Any],
  methods: Sequence[str] = METHODS,
  measures: Sequence[str] = (),
  tuned_on: Sequence[input_pipeline.CaseRow] = (),
  effort: map_measures.Effort | None = None,
  sanity: int = 4,
  twins: int = 0,
  region: str = "volume",
  other: Classifier | None = None,
  bootstrap: int = 2000,
  rolls: int = location.ROLLS,
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
    methods: of `explainer.METHODS`.
    measures: of `map_measures.NAMES`, beside those that are always taken.
    tuned_on: validation cases, on which CheXlocalize's threshold is chosen.
    effort: how many passes the measures take.
    sanity: on how many of the cases weight randomisation, insertion, deletion
      and the measures run, which take many passes.
    region: "volume", or "body" to leave air and lung out of what is measured
      against structures.
    twins: of how many of the cases with CAD the phantom is drawn again without
      its lesions, see `counterfactuals`.
    other: another classifier of the same data, whose maps may agree.
    bootstrap: number of draws.
    rolls: of the null, see `location.rolled_null`.
    batch_size: volumes at a time for insertion and deletion.
    seed: of rolls, random orders, fresh weights and the bootstrap.

  Returns:
    what metrics.json holds, with `MeanInterval`s, and NaN where undefined.

  Raises:
    UserError: no case has a mask, the region is unknown, or there is no
      validation case where a measure needs one.
    lookup.UnknownName: a method or a measure is unknown.
  """
  measures = map_measures.chosen(measures)
  if map_measures.CHEXLOCALIZE in measures and not tuned_on:
    raise UserError(
      f"--explain_measures={map_measures.CHEXLOCALIZE}: its threshold is chosen"
      f" on validation cases, and {dataset.path} has none beside those that"
      " are tested; leave it out"
    )
  if region not in REGIONS:
    raise UserError(
      f"--explain_region={region} is none of {', '.join(REGIONS)}"
    )
  maps = CadMaps(trained, methods)  # Compiled once for all.
  rows, unrelated, covers = _measure_cases(
    maps,
    dataset,
    cases,
    measures=measures,
    effort=effort,
    sanity={case["case_id"] for case in spread(cases, sanity)},
    region=region,
    other=other,
    rolls=rolls,
    batch_size=batch_size,
    seed=seed,
  )
  pairs = _measure_twins(maps, dataset, cases, twins)
  options = {"draws": bootstrap, "seed": seed}
  se3d, rows["se3d"] = map_measures.summarise_se3d(covers, **options)
  chexlocalize = None
  if map_measures.CHEXLOCALIZE in measures:
    others = _cover_cases(maps, dataset, tuned_on)
    chexlocalize, rows["chexlocalize"] = map_measures.summarise_chexlocalize(
      covers, others, **options
    )
  folder.mkdir(parents=True, exist_ok=True)
  twin_rows = {f"counterfactual_{k}": some for k, some in pairs.items()}
  for name, some in [*rows.items(), *twin_rows.items()]:
    if some:
      files.write_rows(
        folder, f"{name}_cases", [location.numbers_of(row) for row in some]
      )
  result = dict(about) | {
    "explained_class": "CAD",
    "n_cases": len(cases),
    "n_patients": len({case["patient_id"] for case in cases}),
    "region": region,
    "rolls": rolls,
    "radii_mm": list(location.RADII_MM),
    "peak_mm": location.PEAK_MM,
    "bootstrap": options | {"confidence": 0.95},
  }
  for name, by in TABLES.items():
    result[name] = location.summarise(rows[name], by, **options)
  result["measured"] = list(measures)
  result["measures"] = location.summarise(
    rows["measures"], TABLES["faithfulness"], **options
  )
  result |= {"se3d": se3d, "chexlocalize": chexlocalize}
  result["counterfactual"] = None
  if pairs:
    result["counterfactual"] = counterfactuals.summarise(
      pairs,
      scan.read_calibration(trained).log_odds_threshold,
      **options,
    )
  result["best"] = best(result["location"])
  result["unrelated"] = unrelated
  if other:
    result["other"] = {
      "workdir": str(other.path),
      "kind": kind_of_agreement(trained, other),
    }
  result["notes"] = _notes(cases, rows)
  if set(methods) & set(guided.METHODS):
    result["notes"].append(guided.WARNING)
  files.write_text(folder / "table.txt", tables.text(result))
  figure = tables.heat_table(
    result["location"],
    title=f"Mean lift of the maps for CAD, {result['n_patients']} patients",
    footer=result.get("disclaimer", ""),
  )
  curves.save(figure, folder / "lift.png")
  files.write_json(folder / "metrics.json", files.strict(result))
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
    largest = found[name]["lift_0mm"].value if name in found else -math.inf
    if lift.value > largest:
      keys = ("layer", "method", "lift_0mm")
      found[name] = {key: row[key] for key in keys}
  return found


def kind_of_agreement(trained: Classifier, other: Classifier) -> str:
  """Returns "repeatability" for one architecture, else "reproducibility"."""
  a, b = (models.get_model(each.config.model) for each in (trained, other))
  return "repeatability" if a == b else "reproducibility"


def _measure_cases(
  maps: CadMaps,
  dataset: input_pipeline.Dataset,
  cases: Sequence[input_pipeline.CaseRow],
  *,
  measures: Sequence[str],
  effort: map_measures.Effort | None,
  sanity: set[str],
  region: str,
  other: Classifier | None,
  rolls: int,
  batch_size: int,
  seed: int,
) -> tuple[dict[str, list[Row]], list[Row], list[map_measures.Covers]]:
  """Measures every case.

  Returns:
    the rows of each of `TABLES` and of "measures", the likeness of unrelated
    maps, and how the maps cover structures, if a measure is of that.

  Raises:
    UserError: no case has a mask.
  """
  trained = maps.trained
  second = CadMaps(other, maps.methods) if other else None
  fresh = maps.fresh(seed + 1) if sanity else None
  rows: dict[str, list[Row]] = {name: [] for name in (*TABLES, "measures")}
  covers = []
  kept: dict[str, Cells] = {}  # Of different patients on one grid.
  before: tuple[str, tuple[int, ...], Cells] | None = None
  shape = None
  for case in tqdm(cases, "explain", leave=False, disable=None):
    record = dataset.read(case)
    record = {**record, "image": trained.seen(record)}
    image, patient = record["image"], case["patient_id"]
    cells = maps.cells(image)
    shape = shape or image.shape
    if image.shape == shape and len(kept) < BASELINE_PATIENTS:
      kept.setdefault(patient, cells)
    structures = read_structures(record)
    found = {
      "location": _locate(maps, record, structures, cells, region, rolls, seed)
    }
    ids = {"case_id": case["case_id"], "patient_id": patient}
    if structures and {
      map_measures.SE3D,
      map_measures.CHEXLOCALIZE,
    }.intersection(measures):
      covers.append(
        map_measures.cover(
          maps, cells, record, structures, ids=ids, names=measures, seed=seed
        )
      )
    if case["case_id"] in sanity and map_measures.MEASURES.keys() & set(
      measures
    ):
      found["measures"] = map_measures.measure(
        map_measures.Case(
          maps,
          image,
          record["spacing"],
          fresh,
          effort=effort,
          batch_size=batch_size,
          seed=seed,
        ),
        measures,
      )
    if case["case_id"] in sanity:
      found["faithfulness"] = _faithful(
        maps, record, cells, batch_size=batch_size, seed=seed
      )
      found["randomisation"] = _randomised(maps, image, cells, fresh)
    if second:
      theirs, unrelated = second.cells(image), None
      if before and before[0] != patient and before[1] == image.shape:
        unrelated = before[2]
      found["agreement"] = _agree(
        maps, second, image.shape, cells, theirs, unrelated
      )
      before = patient, image.shape, theirs
    known = ids | {"label": int(case["label"])}
    for name, some in found.items():
      rows[name] += [known | row for row in some]
  if not rows["location"]:
    raise UserError(
      f"{dataset.path}: none of the {len(cases)} cases has a mask to measure"
      " explanations against; build data with masks, such as phantoms"
    )
  pairs = [
    {"layer": layer, "method": method}
    | checks.random_pairs(
      [each[method][layer] for each in kept.values()], seed=seed
    )
    for layer, method in maps.pairs()
  ]
  return rows, pairs, covers


def _cover_cases(
  maps: CadMaps,
  dataset: input_pipeline.Dataset,
  cases: Sequence[input_pipeline.CaseRow],
) -> list[map_measures.Covers]:
  """Returns how maps of other cases cover lesions, to choose a threshold."""
  found = []
  for case in tqdm(cases, "validation", leave=False, disable=None):
    if case["label"] != "1":
      continue
    record = dataset.read(case)
    record = {**record, "image": maps.trained.seen(record)}
    found.append(
      map_measures.cover(
        maps,
        maps.cells(record["image"]),
        record,
        read_structures(record),
        ids={"case_id": case["case_id"], "patient_id": case["patient_id"]},
        names=(map_measures.CHEXLOCALIZE,),
      )
    )
  return found


def _measure_twins(
  maps: CadMaps,
  dataset: input_pipeline.Dataset,
  cases: Sequence[input_pipeline.CaseRow],
  count: int,
) -> dict[str, list[Row]]:
  """Returns the rows of `counterfactuals`; none if no case is asked for.

  Raises:
    UserError: they are no phantoms of this edition.
  """
  some = spread([case for case in cases if case["label"] == "1"], count)
  if not some:
    return {}
  if not counterfactuals.can_be_drawn(dataset):
    raise UserError(
      f"{dataset.path}: holds no phantoms of this version, and only those can"
      " be drawn again without a lesion; leave --explain_counterfactuals out"
    )
  rows: dict[str, list[Row]] = {}
  for case in tqdm(some, "without lesions", leave=False, disable=None):
    for name, found in counterfactuals.measure_case(
      maps, dataset, case
    ).items():
      rows.setdefault(name, []).extend(found)
  return rows


def _locate(
  maps: CadMaps,
  record: Mapping[str, Any],
  structures: Mapping[str, np.ndarray],
  cells: Cells,
  region: str,
  rolls: int,
  seed: int,
) -> list[Row]:
  image = record["image"]
  if not structures:
    return []
  where = image > BODY_HU if region == "body" else None
  keys, rows = maps.pairs(), []
  # A map is float32, and float64 once more among the columns of its null.
  together = max(1, MAPS_BYTES // (12 * image.size))
  for start in range(0, len(keys), together):
    some = keys[start : start + together]
    found = location.location_metrics(
      np.stack(
        [
          maps.heat(cells[method][layer], layer, image.shape, method)
          for layer, method in some
        ]
      ),
      structures,
      region=where,
      rolls=rolls,
      seed=seed,
    )
    rows += [
      {"layer": layer, "method": method, "structure": name} | row
      for (layer, method), by_structure in zip(some, found, strict=True)
      for name, row in by_structure.items()
    ]
  return rows


def _faithful(
  maps: CadMaps,
  record: Mapping[str, Any],
  cells: Cells,
  **options: Any,
) -> list[Row]:
  image, score = record["image"], maps.log_odds
  options |= {
    "baseline": faithfulness.blurred(image, record["spacing"]),
    "block": max(1, min(image.shape) // 16),
  }
  chance = faithfulness.random_perturbation_auc(score, image, **options)
  rows = []
  for layer, method in maps.pairs():
    heat = maps.heat(cells[method][layer], layer, image.shape, method)
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


def _randomised(
  maps: CadMaps,
  image: np.ndarray,
  cells: Cells,
  fresh: Mapping[str, Any],
) -> list[Row]:
  # Compared on the layers' own cells: upsampling adds nothing but likeness.
  order = ("head", *reversed(maps.strides))
  rows = []
  for upto in order:
    other = maps.cells(
      image,
      checks.randomise(maps.variables, fresh, order, upto),
    )
    rows += [
      {"layer": layer, "method": method, "upto": upto}
      | checks.changed(cells[method][layer], other[method][layer])
      for layer, method in maps.pairs()
    ]
  return rows


def _agree(
  maps: CadMaps,
  second: CadMaps,
  shape: tuple[int, ...],
  cells: Cells,
  theirs: Cells,
  unrelated: Cells | None,
) -> list[Row]:
  """Compares with another model's maps of this patient and of an earlier one.

  On cells where both models have the same ones, else on the image's grid.
  """
  rows = []
  for layer, method in maps.pairs():
    if layer not in theirs.get(method, {}):
      continue
    a, b = cells[method][layer], theirs[method][layer]
    c = unrelated[method][layer] if unrelated else np.zeros_like(b)
    if a.shape != b.shape:
      a = maps.heat(a, layer, shape, method)
      b, c = (second.heat(x, layer, shape, method) for x in (b, c))
    chance = checks.compare(a, c)
    rows.append(
      {"layer": layer, "method": method}
      | checks.compare(a, b)
      | {f"{name}_unrelated": value for name, value in chance.items()}
    )
  return rows


def _notes(
  cases: Sequence[input_pipeline.CaseRow], rows: Mapping[str, Sequence[Row]]
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
      "weight randomisation, insertion, deletion and the measures of many"
      f" passes: {len(checked)} cases"
    )
  return notes
