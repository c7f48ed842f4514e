"""Scores the link on scans whose lesions are known.

  python -m data_prep.export --cases=80 --severity=overt --spacing_mm=1 \
    --out=scans
  python -m cadjax.evaluate_link --classifier=W1 --segmenter=W2 --scans=scans \
    --out=link

Half of the scans settles what has to be settled: the layer of the heat map
and the combined decision. The other half is evaluated: the share of lesions
that are hit within 5 mm and the findings that hit nothing, for the
classifier's map alone, its map on the segmented vessels, the plaque
segmentation, and all together; and the decision of each beside that of both.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from cadjax import (
  case_rows,
  checkpoint,
  decision,
  findings,
  intervals,
  link,
  results,
  workdir,
)
from cadjax.pair import Pair, load_pair, predict_pair
from data_prep import errors, sources
from data_prep.errors import UserError

# In the order of the table.
MODES = {
  "map": "(a) the classifier's map alone",
  "vessel_map": "(b) the map on the segmented vessels",
  "plaque": "(c) the plaque segmentation",
  "combined": "(d) all together",
}
TOLERANCE_MM = 5.0
# As many findings of each mode, so that none wins by their number.
MOST = 5
LEAST_SCANS = 8
DISCLAIMER = "Research software, not a medical device."


def evaluate_link(
  classifier: str,
  segmenter: str,
  scans: str,
  out: str,
  *,
  seed: int = 0,
) -> dict[str, Any]:
  """Evaluates a pair of workdirs; returns what link.json holds.

  Args:
    classifier: workdir.
    segmenter: workdir of a segmenter with plaque classes.
    scans: folder of `data_prep.export`: manifest.csv, scans and lesions.
    out: gets scans.jsonl, lesions.jsonl and link.json.
    seed: of the split in halves and of the bootstrap.

  Raises:
    UserError: workdirs or scans that cannot be used.
  """
  folder = pathlib.Path(out)
  pair = load_pair(classifier, segmenter)
  cases = read_scans(scans)
  halves = split(cases, seed)
  folder.mkdir(parents=True, exist_ok=True)
  rows, lesions = [], []
  for case in tqdm(cases, unit="scan", disable=None):
    row, found = score_case(pair, case)
    row["half"] = halves[case.case_id]
    rows.append(row)
    lesions += [one | {"half": row["half"]} for one in found]
  # What was computed is on disk before anything is averaged.
  case_rows.write_rows(folder, "scans", rows)
  case_rows.write_rows(folder, "lesions", lesions)
  result = summarise(rows, lesions, seed=seed) | {
    "disclaimer": DISCLAIMER,
    "classifier": str(classifier),
    "segmenter": str(segmenter),
    "models": {
      "classifier": decision.identify(pair.classifier),
      "segmenter": decision.identify(pair.segmenter),
    },
    "scans": str(scans),
    "tolerance_mm": TOLERANCE_MM,
    "findings_per_scan": MOST,
    "versions": workdir.versions(),
  }
  result = results.strict(result)
  checkpoint.write_json(folder / "link.json", result)
  return result


def read_scans(folder: str) -> list[sources.Case]:
  """Returns the cases of a folder of exported phantoms.

  Raises:
    UserError: too few, one class only, or lesions are missing.
  """
  cases = sources.find_cases("manifest", folder)
  if len(cases) < LEAST_SCANS:
    raise UserError(f"{folder}: {len(cases)} scans; {LEAST_SCANS} are needed")
  for case in cases:
    path = lesion_file(case)
    if not path.exists():
      raise UserError(
        f"{path}: no such file; the lesions of every scan must be known, as"
        " data_prep.export writes them"
      )
  if {case.label for case in cases} != {0, 1}:
    raise UserError(f"{folder}: both normal and CAD scans are needed")
  return cases


def lesion_file(case: sources.Case) -> pathlib.Path:
  """Returns where the lesions of a scan are."""
  return case.image.with_name(f"{case.case_id}_lesions.json")


def split(cases: Sequence[sources.Case], seed: int) -> dict[str, str]:
  """Tells every case to "fit" or "test", half of each class to each."""
  rng = np.random.default_rng(seed)
  halves = {}
  for label in (0, 1):
    ids = [case.case_id for case in cases if case.label == label]
    for i, name in enumerate(rng.permutation(ids)):
      halves[str(name)] = "fit" if i < len(ids) // 2 else "test"
  return halves


def score_case(
  pair: Pair, case: sources.Case
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Scores one scan.

  Returns:
    its row: the classifier's and the segmenter's numbers, and for every mode
    and layer the hits and false positives; and a row for each lesion.
  """
  truth = json.loads(lesion_file(case).read_text())
  places = [lesion["position_mm"] for lesion in truth["lesions"]]
  result = predict_pair(pair, case.image)
  linked, prediction = result.linked, result.case.prediction
  structures = linked.structures
  row = {
    "case_id": case.case_id,
    "patient_id": case.patient_id,
    "label": int(case.label),
    "lesions": len(places),
    "probability": prediction["probability"],
    **decision.features(structures, prediction),
  }
  lesion_rows = [
    {
      "case_id": case.case_id,
      "patient_id": case.patient_id,
      "lesion": number,
      **{k: lesion[k] for k in ("segment", "stenosis", "plaque", "volume_mm3")},
    }
    for number, lesion in enumerate(truth["lesions"])
  ]
  for layer, heat in linked.heats.items():
    for mode in MODES:
      found = findings.find_abnormalities(
        structures.tree,
        structures.mask(*link.CORONARIES),
        heat=heat,
        plaques=structures.plaques,
        mode=mode,
        options=findings.Options(most=MOST),
      )
      matches = findings.match_lesions(found, places, TOLERANCE_MM)
      key = f"{mode}@{layer}"
      row[f"hits:{key}"] = len(matches.hits)
      row[f"false:{key}"] = len(matches.false_positives)
      hit = {lesion for _, lesion, _ in matches.hits}
      for one in lesion_rows:
        one[f"hit:{key}"] = int(one["lesion"] in hit)
  return row, lesion_rows


DECISIONS = {
  "classifier": ("log_odds",),
  "segmentation": ("log_plaque", "stenosis"),
  "both": tuple(decision.FEATURES),
}


def decide(
  rows: Sequence[Mapping[str, Any]], *, seed: int = 0
) -> dict[str, Any]:
  """Fits a logistic decision on one half, compares them on the other.

  Returns:
    for each of `DECISIONS` what was fitted, and at its threshold AUC,
    accuracy and Brier score with intervals; the paired difference of "both"
    to each other one.
  """
  fit = [row for row in rows if row["half"] == "fit"]
  test = [row for row in rows if row["half"] == "test"]
  labels = np.array([row["label"] for row in test])
  threshold, probs, told = {}, {}, {}
  for name, columns in DECISIONS.items():
    one = decision.fit(fit, [column for column in columns if column in rows[0]])
    threshold[name] = one.threshold
    probs[name] = np.array([one.probability(row) for row in test])
    measured = intervals.with_intervals(
      labels, probs[name], one.threshold, seed=seed
    )
    told[name] = dataclasses.asdict(one) | {
      k: measured[k] for k in ("roc_auc", "accuracy", "brier")
    }
  for name in ("classifier", "segmentation"):
    difference = intervals.paired_bootstrap(
      labels,
      probs["both"],
      probs[name],
      threshold_a=threshold["both"],
      threshold_b=threshold[name],
      seed=seed,
    )
    calls = [
      (probs[k] >= threshold[k]) == (labels == 1) for k in ("both", name)
    ]
    told["both"][f"over_{name}"] = {
      **{k: difference[k] for k in ("roc_auc", "accuracy", "brier")},
      "mcnemar": intervals.mcnemar(*calls),
    }
  return told


def summarise(
  rows: Sequence[Mapping[str, Any]],
  lesions: Sequence[Mapping[str, Any]],
  *,
  seed: int = 0,
) -> dict[str, Any]:
  """Chooses the layer on one half and measures everything on the other."""
  layers = [k.split("@")[1] for k in rows[0] if k.startswith("hits:map@")]
  halves = {
    half: [row for row in rows if row["half"] == half]
    for half in ("fit", "test")
  }
  best = {
    mode: max(layers, key=lambda layer: _worth(halves["fit"], mode, layer))
    for mode in MODES
  }
  test = [one for one in lesions if one["half"] == "test"]
  table = {
    mode: {"layer": best[mode]}
    | _localisation(halves["test"], test, f"{mode}@{best[mode]}", seed)
    for mode in MODES
  }
  for mode in MODES:
    pair = [f"hit:{m}@{best[m]}" for m in ("combined", mode)]
    values = [one[pair[0]] - one[pair[1]] for one in test]
    table[mode]["combined_minus_this"] = _mean(test, values, seed)
  return {
    "n_scans": {half: len(some) for half, some in halves.items()},
    "n_lesions": len(test),
    "n_cad": sum(row["label"] for row in halves["test"]),
    "localisation": table,
    "decision": decide(rows, seed=seed),
  }


def _worth(rows, mode: str, layer: str) -> float:
  """Returns hits less false positives: what the layer is chosen by."""
  return sum(
    row[f"hits:{mode}@{layer}"] - row[f"false:{mode}@{layer}"] for row in rows
  )


def _mean(rows, values, seed: int) -> dict[str, Any]:
  return intervals.mean_interval(
    np.array(values, float),
    patients=np.array([row["patient_id"] for row in rows]),
    seed=seed,
  )


def _localisation(scans, lesions, key: str, seed: int) -> dict[str, Any]:
  normal = [row for row in scans if row["label"] == 0]
  return {
    "hit": _mean(lesions, [one[f"hit:{key}"] for one in lesions], seed),
    "hits": sum(one[f"hit:{key}"] for one in lesions),
    "false_positives": _mean(
      scans, [row[f"false:{key}"] for row in scans], seed
    ),
    "false_positives_normal": _mean(
      normal, [row[f"false:{key}"] for row in normal], seed
    ),
  }


def table(result: Mapping[str, Any]) -> str:
  """Returns the result as text."""
  lines = [
    f"{result['n_lesions']} lesions of {result['n_cad']} patients,"
    f" {result['n_scans']['test']} scans; at most {MOST} findings a scan, a"
    f" hit within {TOLERANCE_MM:g} mm",
    f"{'':40s}{'lesions hit, by patient':30s}{'false positives a scan':28s}",
  ]
  for mode, title in MODES.items():
    one = result["localisation"][mode]
    layer = "" if mode == "plaque" else f", {one['layer']}"
    lines.append(
      f"{title + layer:40s}{_cell(one['hit']):30s}"
      f"{_cell(one['false_positives']):28s}"
    )
  more = result["localisation"]["map"]["combined_minus_this"]
  lines.append(f"(d) less (a): {_cell(more)}")
  lines.append("")
  for name, one in result["decision"].items():
    lines.append(
      f"decision by {name:13s} AUC {_cell(one['roc_auc'])}, accuracy"
      f" {_cell(one['accuracy'])}"
    )
  return "\n".join([*lines, result["disclaimer"]])


def _cell(entry: Mapping[str, Any]) -> str:
  if entry["value"] is None:
    return "undefined"
  if entry["low"] is None:
    return f"{entry['value']:.2f}"
  return f"{entry['value']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def define_flags() -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  for name, text in (
    ("classifier", "Workdir of a classifier."),
    ("segmenter", "Workdir of a segmenter."),
    ("scans", "Folder of data_prep.export."),
    ("out", "Folder for the results."),
  ):
    flags.DEFINE_string(name, None, text, required=True)
  flags.DEFINE_integer("seed", 0, "Of the halves and of the bootstrap.")


def main(_: Sequence[str]) -> None:
  """Parses flags, makes one call, prints the table."""
  args = flags.FLAGS
  result = evaluate_link(
    args.classifier, args.segmenter, args.scans, args.out, seed=args.seed
  )
  print(table(result))


if __name__ == "__main__":
  define_flags()
  errors.run(main)
