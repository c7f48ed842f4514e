"""The decision of a classifier and a segmentation together.

A logistic combination of the classifier's probability with what was
segmented. `cadjax.evaluate_link` fits it and writes link.json; `cadjax.predict
--decision=link.json` applies it, with the same two models alone.
"""

import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import scipy.special
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cadjax.core import files
from cadjax.link import findings, join
from cadjax.metrics import calibration
from cadjax.training import workdir
from data_prep.errors import UserError

FEATURES = {
  "log_odds": "classifier's log odds of CAD, uncalibrated",
  "log_plaque": "log(1 + plaque in mm³)",
  "stenosis": "largest share of a diameter lost (0 where none is measurable)",
}


def features(
  structures: join.Structures, uncalibrated_probability: float
) -> dict[str, float]:
  """Returns those of `FEATURES` that the segmenter's classes allow.

  None of them depends on a heat map, so that they are the same for every
  method and layer.

  Args:
    structures: the segmentation.
    uncalibrated_probability: of CAD, from the classifier.
  """
  p = np.clip(uncalibrated_probability, 1e-6, 1 - 1e-6)
  found = findings.find_abnormalities(
    structures.tree,
    structures.mask(*join.CORONARIES),
    plaques=structures.plaques,
  )
  values = {"log_odds": float(scipy.special.logit(p))}
  if structures.plaque_mm3 is not None:
    values["log_plaque"] = math.log1p(sum(structures.plaque_mm3.values()))
  stenoses = [f.stenosis for f in found if f.stenosis is not None]
  return values | {"stenosis": max(stenoses, default=0.0)}


@dataclasses.dataclass(frozen=True)
class Decision:
  """A fitted combination.

  Attributes:
    coefficients: by feature, per unit of it.
    intercept: of the log odds.
    threshold: at or above this probability a scan is called CAD.
    threshold_origin: how it was chosen.
    n_patients: on how many it was fitted.
  """

  coefficients: Mapping[str, float]
  intercept: float
  threshold: float
  threshold_origin: str
  n_patients: int

  def probability(self, values: Mapping[str, float]) -> float:
    """Returns the probability of CAD of a scan with these features."""
    odds = self.intercept + sum(
      weight * values[name] for name, weight in self.coefficients.items()
    )
    return float(scipy.special.expit(odds))

  def decide(self, values: Mapping[str, float]) -> "Combined":
    """Returns the decision of a scan with these features."""
    probability = self.probability(values)
    return Combined(
      label="cad" if probability >= self.threshold else "normal",
      probability=probability,
      features={name: values[name] for name in self.coefficients},
      decision=self,
    )


@dataclasses.dataclass(frozen=True)
class Combined:
  """The decision of both models about one scan.

  Attributes:
    label: "cad" at or above the threshold, else "normal".
    probability: of CAD.
    features: those that the decision used, by name.
    decision: how they were combined.
  """

  label: str
  probability: float
  features: Mapping[str, float]
  decision: Decision

  def to_dict(self) -> dict[str, Any]:
    """Returns one flat JSON object."""
    return {
      "label": self.label,
      "probability": self.probability,
      "features": dict(self.features),
      **dataclasses.asdict(self.decision),
    }


def fit(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Decision:
  """Fits a combination and its threshold.

  Args:
    rows: of scans of both classes: patient_id, label (0 or 1) and features.
    names: the features to be used.
  """
  labels = np.array([row["label"] for row in rows])
  scaled = make_pipeline(StandardScaler(), LogisticRegression())
  scaled.fit([[row[name] for name in names] for row in rows], labels)
  scaler, model = scaled[0], scaled[-1]
  # Per unit of a feature: then a file says all with one number each.
  weights = model.coef_[0] / scaler.scale_
  fitted = Decision(
    coefficients=dict(zip(names, weights.tolist(), strict=True)),
    intercept=float(model.intercept_[0] - weights @ scaler.mean_),
    threshold=0.5,
    threshold_origin="",
    n_patients=len({row["patient_id"] for row in rows}),
  )
  threshold, origin = calibration.choose_threshold(
    labels, np.array([fitted.probability(row) for row in rows]), unit="scans"
  )
  return dataclasses.replace(
    fitted,
    threshold=threshold,
    threshold_origin=f"{origin}, those of the fit",
  )


def identify(trained: workdir.Trained) -> dict[str, Any]:
  """Returns what identifies a model, wherever its workdir is."""
  digest = hashlib.sha256()
  for path, values in jax.tree.leaves_with_path(trained.variables):
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(values).tobytes())
  return {
    "workdir": trained.name,
    "step": trained.step,
    "weights": digest.hexdigest()[:16],
  }


def read(
  path: str | pathlib.Path,
  classifier: workdir.Trained,
  segmenter: workdir.Trained,
) -> Decision:
  """Reads the combination of all features from a link.json.

  Args:
    path: the file.
    classifier: of which the scans are scored.
    segmenter: of which they are segmented.

  Raises:
    UserError: the file is missing, `cadjax.evaluate_link` did not write it, or
      it was fitted with other models.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"--decision={path}: no such file")
  document = files.read_json(path)
  try:
    fitted_with = document["models"]
    one = document["decision"]["both"]
    known = {x.name for x in dataclasses.fields(Decision)}
    decision = Decision(**{name: one[name] for name in known})
    numbers = [
      decision.intercept, decision.threshold, *decision.coefficients.values()
    ]  # fmt: skip
    if not set(decision.coefficients) <= set(FEATURES):
      raise ValueError(f"the features {', '.join(decision.coefficients)}")
    if not np.isfinite(np.array(numbers, float)).all():
      raise ValueError("a number that is not finite")
    weights = {kind: fitted_with[kind]["weights"] for kind in fitted_with}
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"--decision={path}: is not what cadjax.evaluate_link writes ({error!r})"
    ) from error
  for kind, trained in (("classifier", classifier), ("segmenter", segmenter)):
    if weights.get(kind) != identify(trained)["weights"]:
      raise UserError(
        f"--decision={path}: was fitted with another {kind} than"
        f" {trained.path}; run cadjax.evaluate_link with this one"
      )
  return decision
