"""Chooses on one half of the scans and measures the link on the other.

The layer of the heat map, the threshold of the findings and the combined
decision are chosen; what counts as a hit says `metrics.detection`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from cadjax.evaluation.link_rows import (
  HALVES,
  MODES,
  MOST,
  FindingRow,
  Found,
  LesionRow,
  ScanRow,
)
from cadjax.link import decision
from cadjax.metrics import detection, intervals
from cadjax.metrics.detection import Froc, ScanFindings
from cadjax.metrics.intervals import MeanInterval
from data_prep import scct

TOLERANCE_MM = 5.0
# False positives a scan, on the half that chooses, at the threshold of the
# findings that are counted one by one.
OPERATING_RATE = 1.0
# False positives a scan of the reader study: the list of findings against the
# classifier alone. They are among `detection.RATES`.
READER_RATES = (0.5, 1.0, 2.0)
# What a finding may be on: a lesion, or an artery of a scan that has lesions.
UNITS = ("lesions", "vessels")
# What each decision is made of.
DECISIONS = {
  "classifier": ("log_odds",),
  "segmentation": ("log_plaque", "stenosis"),
  "both": tuple(decision.FEATURES),
}


def decide(scans: Sequence[ScanRow], *, seed: int = 0) -> dict[str, Any]:
  """Fits a logistic decision on one half, compares them on the other.

  Args:
    scans: of both halves.
    seed: of the bootstrap.

  Returns:
    for each of `DECISIONS` what was fitted, and at its threshold AUC,
    accuracy and Brier score with intervals; the paired difference of "both"
    to each other one.
  """
  fit = [dataclasses.asdict(row) for row in scans if row.half == "fit"]
  test = [dataclasses.asdict(row) for row in scans if row.half == "test"]
  labels = np.array([row["label"] for row in test])
  threshold, probs, result = {}, {}, {}
  for name, columns in DECISIONS.items():
    known = [column for column in columns if fit[0][column] is not None]
    one = decision.fit(fit, known)
    threshold[name] = one.threshold
    probs[name] = np.array([one.probability(row) for row in test])
    measured = intervals.with_intervals(
      labels, probs[name], one.threshold, seed=seed
    )
    result[name] = dataclasses.asdict(one) | {
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
    result["both"][f"over_{name}"] = {
      **{k: difference[k] for k in ("roc_auc", "accuracy", "brier")},
      "mcnemar": intervals.mcnemar(*calls),
    }
  return result


def summarise(
  scans: Sequence[ScanRow],
  found: Found,
  lesions: Sequence[LesionRow],
  *,
  most: int = MOST,
  seed: int = 0,
) -> dict[str, Any]:
  """Chooses on one half and measures everything on the other.

  Args:
    scans: of both halves, as `links.score_case` gives them.
    found: likewise.
    lesions: likewise.
    most: findings kept of a scan.
    seed: of the bootstrap.

  Returns:
    what link.json holds of the numbers. By mode, "localisation" has the layer;
    its FROC curve ("froc"); and at the `threshold` that has `OPERATING_RATE`
    false positives a scan on the fit half, `hit` (share of lesions),
    `false_positives` and `false_positives_normal` (a scan) of the test half.
    `combined_minus_this` is the paired difference of the mean sensitivity of
    the FROC curve. "reader" has, of each of `UNITS`, the sensitivity at
    `READER_RATES` and its paired difference to that of "combined"; and the
    thresholds that have these rates on the fit half.
  """
  fit, test = ([row for row in scans if row.half == h] for h in HALVES)
  best = best_layers(scans, found)
  chosen = {
    mode: by_scan(test, found[mode, layer]) for mode, layer in best.items()
  }
  vessels = {
    mode: by_vessel(test, found[mode, layer], lesions)
    for mode, layer in best.items()
  }
  table = {}
  for mode, layer in best.items():
    rows = found[mode, layer]
    threshold = detection.threshold_at(by_scan(fit, rows), OPERATING_RATE)
    curve = detection.froc(chosen[mode], most=most, seed=seed)
    table[mode] = {
      "layer": layer,
      "froc": _froc_entry(curve),
      "threshold": threshold,
      **_at_threshold(test, rows, lesions, threshold, seed),
      "combined_minus_this": detection.froc_difference(
        chosen["combined"], chosen[mode], seed=seed
      ),
      "reader": {
        "rates": list(READER_RATES),
        # A finding that is on no lesion is on no artery with lesions, so that
        # both have the same false positives and thresholds.
        "thresholds": [
          detection.threshold_at(by_scan(fit, rows), rate)
          for rate in READER_RATES
        ],
      }
      | {
        unit: _read(some["combined"], some[mode], seed)
        for unit, some in zip(UNITS, (chosen, vessels), strict=True)
      },
    }
  return {
    "n_scans": {"fit": len(fit), "test": len(test)},
    "n_lesions": sum(row.lesions for row in test),
    "n_vessels": sum(scan.lesions for scan in vessels["combined"]),
    "n_cad": sum(row.label for row in test),
    "tolerance_mm": TOLERANCE_MM,
    "least_share": detection.LEAST_SHARE,
    "findings_per_scan": most,
    "best_sensitivity": detection.best_sensitivity(
      [row.lesions for row in test], most
    ),
    "operating_rate": OPERATING_RATE,
    "localisation": table,
    "decision": decide(scans, seed=seed),
    "notes": [
      f"{title} is left out: the segmenter has no such class"
      for mode, title in MODES.items()
      if mode not in best
    ],
  }


def by_scan(
  scans: Sequence[ScanRow], found: Sequence[FindingRow]
) -> list[ScanFindings]:
  """Returns what was found in each scan, also where that is nothing.

  Args:
    scans: whose findings are wanted.
    found: of one mode and layer; those of other scans are left out.
  """
  rows: dict[str, list[FindingRow]] = {scan.case_id: [] for scan in scans}
  for row in found:
    if row.case_id in rows:
      rows[row.case_id].append(row)
  return [
    ScanFindings(
      patient_id=scan.patient_id,
      lesions=scan.lesions,
      scores=np.array([row.score for row in rows[scan.case_id]]),
      outcomes=[row.outcome for row in rows[scan.case_id]],
    )
    for scan in scans
  ]


def by_vessel(
  scans: Sequence[ScanRow],
  found: Sequence[FindingRow],
  lesions: Sequence[LesionRow],
) -> list[ScanFindings]:
  """Returns what was found in each scan where arteries are to be found.

  An artery with lesions counts once, and is hit by a finding on any of them.

  Args:
    scans: whose findings are wanted.
    found: of one mode and layer, of each scan in descending order of score.
    lesions: of these scans and perhaps others.
  """
  arteries = vessels_of(lesions)
  per_scan = []
  for scan in scans:
    of = arteries.get(scan.case_id, {})
    names = sorted(set(of.values()))
    rows = [row for row in found if row.case_id == scan.case_id]
    on = np.zeros((len(rows), len(names)), bool)
    for j, row in enumerate(rows):
      on[j, [names.index(of[lesion]) for lesion in row.lesions]] = True
    per_scan.append(
      ScanFindings(
        patient_id=scan.patient_id,
        lesions=len(names),
        scores=np.array([row.score for row in rows]),
        outcomes=detection.outcomes(on),
      )
    )
  return per_scan


def vessels_of(lesions: Sequence[LesionRow]) -> dict[str, dict[int, str]]:
  """Returns the artery, of `scct.ARTERIES`, of every lesion of every scan."""
  arteries: dict[str, dict[int, str]] = {}
  for row in lesions:
    segment = scct.SEGMENTS.get(row.segment)
    artery = segment.artery if segment else row.segment
    arteries.setdefault(row.case_id, {})[row.lesion] = artery
  return arteries


def _read(
  combined: Sequence[ScanFindings], this: Sequence[ScanFindings], seed: int
) -> dict[str, Any]:
  """Sensitivity at `READER_RATES`, and that of "combined" less it."""
  curve = detection.froc(this, seed=seed)
  more = detection.froc_differences(combined, this, seed=seed)
  return {
    "sensitivity": [curve.at[rate] for rate in READER_RATES],
    "combined_minus_this": [more[rate] for rate in READER_RATES],
  }


def best_layers(
  scans: Sequence[ScanRow], found: Found
) -> dict[str, str | None]:
  """Returns the layer of the largest mean FROC sensitivity, by mode.

  Args:
    scans: of both halves; the choice is made on "fit".
    found: likewise. Of equally good layers, the first one wins.
  """
  fit = [row for row in scans if row.half == "fit"]
  best: dict[str, tuple[float, str | None]] = {}
  for (mode, layer), rows in found.items():
    worth = detection.froc(by_scan(fit, rows), draws=2).mean.value
    if mode not in best or worth > best[mode][0]:
      best[mode] = worth, layer
  return {mode: best[mode][1] for mode in MODES if mode in best}


def at_threshold(
  scans: Sequence[ScanRow], found: Sequence[FindingRow], threshold: float
) -> list[detection.Matches]:
  """Matches the findings that reach a threshold, scan by scan.

  Args:
    scans: in whose order the matches are.
    found: of one mode and layer.
    threshold: of the score.
  """
  matches = []
  for scan in scans:
    rows = [
      row
      for row in found
      if row.case_id == scan.case_id and row.score >= threshold
    ]
    apart = np.full((len(rows), scan.lesions), np.inf)
    for j, row in enumerate(rows):
      apart[j, list(row.lesions)] = row.mm
    matches.append(detection.match(apart))
  return matches


def _at_threshold(
  scans: Sequence[ScanRow],
  found: Sequence[FindingRow],
  lesions: Sequence[LesionRow],
  threshold: float,
  seed: int,
) -> dict[str, Any]:
  matches = at_threshold(scans, found, threshold)
  hit = {
    (scan.case_id, lesion)
    for scan, one in zip(scans, matches, strict=True)
    for _, lesion in one.hits
  }
  there = [row for row in lesions if row.half == "test"]
  hits = [float((row.case_id, row.lesion) in hit) for row in there]
  false = [len(one.false_positives) for one in matches]
  normal = [k for k, scan in enumerate(scans) if scan.label == 0]
  return {
    "hit": _mean(there, hits, seed),
    "hits": int(sum(hits)),
    "false_positives": _mean(scans, false, seed),
    "false_positives_normal": _mean(
      [scans[k] for k in normal], [false[k] for k in normal], seed
    ),
  }


def _mean(
  rows: Sequence[ScanRow | LesionRow], values: Sequence[float], seed: int
) -> MeanInterval:
  return intervals.mean_interval(
    np.array(values, float),
    patients=np.array([row.patient_id for row in rows]),
    seed=seed,
  )


def _froc_entry(curve: Froc) -> dict[str, Any]:
  return {
    "rates": list(curve.at),
    "sensitivity": list(curve.at.values()),
    "mean": curve.mean,
  }
