"""Measures the explanation maps of a classifier on cases with masks.

  python -m cadjax.evaluate --workdir=W --explain

Maps for the class CAD, of all layers and all methods that need one gradient,
or of those named. Written to W/eval/explain: rows of cases first, then
metrics.json, table.txt and lift.png.
"""

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
from cadjax.evaluation.case_maps import (
  TABLES,
  CaseMaps,
  Settings,
  read_structures,
)
from cadjax.explanation import guided, location
from cadjax.explanation.cad_maps import CadMaps
from cadjax.report import curves, tables
from data_prep.errors import UserError


def evaluate_maps(
  path: str | pathlib.Path,
  *,
  split: str = "test",
  data: str | None = None,
  against: str | None = None,
  cases: int | None = None,
  folder: pathlib.Path | None = None,
  settings: Settings | None = None,
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
    folder: where to write in place of that.
    settings: how the maps are measured.

  Returns:
    what metrics.json holds, as `measure` returns it.

  Raises:
    UserError: for settings, a workdir or data that cannot be used.
  """
  settings = settings or Settings()
  common.check_settings(split, settings.bootstrap, settings.batch_size)
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
    settings=settings,
    tuned_on=spread(others, cases),
    about=about,
    other=other,
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
  settings: Settings | None = None,
  tuned_on: Sequence[input_pipeline.CaseRow] = (),
  other: Classifier | None = None,
) -> dict[str, Any]:
  """Measures every map of the cases and writes what it finds to a folder.

  Args:
    trained: the classifier.
    dataset: the records.
    cases: rows of the data set.
    folder: where to write.
    about: what describes the run, for metrics.json.
    settings: how the maps are measured.
    tuned_on: validation cases, on which CheXlocalize's threshold is chosen.
    other: another classifier of the same data, whose maps may agree.

  Returns:
    what metrics.json holds, with `MeanInterval`s, and NaN where undefined.

  Raises:
    UserError: no case has a mask, or a measure needs validation cases and
      there are none.
    lookup.UnknownName: a method is unknown.
  """
  settings = settings or Settings()
  tunes = map_measures.CHEXLOCALIZE in settings.measures
  if tunes and not tuned_on:
    raise UserError(
      f"--explain_measures={map_measures.CHEXLOCALIZE}: its threshold is chosen"
      f" on validation cases, and {dataset.path} has none beside those that"
      " are tested; leave it out"
    )
  maps = CadMaps(trained, settings.methods)  # Compiled once for all.
  found = _measure_cases(maps, dataset, cases, settings, other)
  twins = _measure_twins(maps, dataset, cases, settings.twins)
  others = _cover_cases(maps, dataset, tuned_on) if tunes else None
  result, rows = _summarise(found, others, settings)
  result["counterfactual"] = None
  if twins:
    result["counterfactual"] = counterfactuals.summarise(
      twins,
      scan.read_calibration(trained).log_odds_threshold,
      **_bootstrap(settings),
    )
  result["unrelated"] = found.unrelated()
  if other:
    result["other"] = {
      "workdir": str(other.path),
      "kind": kind_of_agreement(trained, other),
    }
  result = (
    dict(about)
    | {
      "explained_class": "CAD",
      "n_cases": len(cases),
      "n_patients": len({case["patient_id"] for case in cases}),
    }
    | result
    | {"notes": _notes(cases, rows, settings.methods)}
  )
  rows |= {f"counterfactual_{name}": some for name, some in twins.items()}
  _write(folder, result, rows)
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


def _bootstrap(settings: Settings) -> dict[str, int]:
  return {"draws": settings.bootstrap, "seed": settings.seed}


def _measure_cases(
  maps: CadMaps,
  dataset: input_pipeline.Dataset,
  cases: Sequence[input_pipeline.CaseRow],
  settings: Settings,
  other: Classifier | None,
) -> CaseMaps:
  """Measures every case.

  Raises:
    UserError: no case has a mask.
  """
  found = CaseMaps(
    maps, settings, CadMaps(other, settings.methods) if other else None
  )
  sanity = {case["case_id"] for case in spread(cases, settings.sanity)}
  for case in tqdm(cases, "explain", leave=False, disable=None):
    found.add(
      case,
      _read_seen(maps, dataset, case),
      many_passes=case["case_id"] in sanity,
    )
  if not found.rows["location"]:
    raise UserError(
      f"{dataset.path}: none of the {len(cases)} cases has a mask to measure"
      " explanations against; build data with masks, such as phantoms"
    )
  return found


def _read_seen(
  maps: CadMaps,
  dataset: input_pipeline.Dataset,
  case: input_pipeline.CaseRow,
) -> dict[str, Any]:
  """Returns a case's record, its image as the classifier sees it."""
  record = dataset.read(case)
  return {**record, "image": maps.trained.seen(record)}


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
    record = _read_seen(maps, dataset, case)
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


def _summarise(
  found: CaseMaps,
  others: Sequence[map_measures.Covers] | None,
  settings: Settings,
) -> tuple[dict[str, Any], dict[str, list[Row]]]:
  """Averages over patients.

  Args:
    found: of the cases.
    others: how maps of validation cases cover lesions, if a threshold is
      chosen on them.
    settings: by which both were measured.

  Returns:
    what metrics.json holds of the numbers, and all rows.
  """
  options, rows = _bootstrap(settings), dict(found.rows)
  se3d, rows["se3d"] = map_measures.summarise_se3d(found.covers, **options)
  chexlocalize = None
  if others is not None:
    chexlocalize, rows["chexlocalize"] = map_measures.summarise_chexlocalize(
      found.covers, others, **options
    )
  tables_of = {
    name: location.summarise(rows[name], by, **options)
    for name, by in TABLES.items()
  }
  return {
    "region": settings.region,
    "rolls": settings.rolls,
    "radii_mm": list(location.RADII_MM),
    "peak_mm": location.PEAK_MM,
    "bootstrap": options | {"confidence": 0.95},
    **tables_of,
    "measured": list(settings.measures),
    "measures": location.summarise(
      rows["measures"], TABLES["faithfulness"], **options
    ),
    "se3d": se3d,
    "chexlocalize": chexlocalize,
    "best": best(tables_of["location"]),
  }, rows


def _write(
  folder: pathlib.Path,
  result: Mapping[str, Any],
  rows: Mapping[str, Sequence[Row]],
) -> None:
  """Writes rows of cases first, then tables, picture and metrics.json."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, some in rows.items():
    if some:
      files.write_rows(
        folder, f"{name}_cases", [location.numbers_of(row) for row in some]
      )
  files.write_text(folder / "table.txt", tables.text(result))
  figure = tables.heat_table(
    result["location"],
    title=f"Mean lift of the maps for CAD, {result['n_patients']} patients",
    footer=result.get("disclaimer", ""),
  )
  curves.save(figure, folder / "lift.png")
  files.write_json(folder / "metrics.json", files.strict(result))


def _notes(
  cases: Sequence[input_pipeline.CaseRow],
  rows: Mapping[str, Sequence[Row]],
  methods: Sequence[str],
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
  if set(methods) & set(guided.METHODS):
    notes.append(guided.WARNING)
  return notes
