"""Explains a scan: heat maps of a model's layers for one class."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cadjax.classification import scan as classification_scan
from cadjax.classification.classifier import Classifier
from cadjax.data import scans
from cadjax.explanation import guided, targets
from cadjax.explanation.explainer import DEFAULT, Explainer, ExplainOptions
from cadjax.explanation.heat_maps import HeatMap
from cadjax.metrics import calibration
from cadjax.segmentation.segmenter import Segmenter
from cadjax.training.reading import Reading, begin
from data_prep.errors import UserError


@dataclasses.dataclass(frozen=True)
class Target:
  """What was explained.

  Attributes:
    number: of the class.
    name: of the class.
    origin: "given", or "predicted" by the model.
    score: a key of `cam.SCORES`.
    value: of the score: of a 2D classifier's margin that of the decision, see
      `classification.scan.decision_log_odds`, and of its logit the mean over
      the slices; of a segmenter the sum over the region.
  """

  number: int
  name: str
  origin: str
  score: str
  value: float


@dataclasses.dataclass(frozen=True)
class Region:
  """The voxels whose logits a segmenter's explanation adds up.

  Attributes:
    kind: as --region of `cadjax explain` has it.
    voxels: how many of the model's grid.
  """

  kind: str
  voxels: int


@dataclasses.dataclass(frozen=True, eq=False)
class ExplainedScan:
  """One scan with heat maps; `report.explained` writes it.

  Attributes:
    reading: the scan, the model and the software.
    maps: method by method, layer by layer.
    target: what was explained.
    region: of a segmenter; None for a classifier.
    prediction: of a classifier; None for a segmenter.
    options: of the methods, by method.
  """

  reading: Reading
  maps: Sequence[HeatMap]
  target: Target
  region: Region | None
  prediction: classification_scan.Prediction | None
  options: Mapping[str, Any]

  @property
  def warnings(self) -> list[str]:
    """What must be read with the maps, in sentences."""
    found = self.reading.warnings("model", "heat map")
    zero = [each.name for each in self.maps if not each.cells.max() > 0]
    if zero:
      found.append(
        f"There is no evidence for the target in {', '.join(zero)}: these maps"
        " are zero everywhere."
      )
    if any(each.method in guided.METHODS for each in self.maps):
      found.append(guided.WARNING)
    return found


def explain_scan(
  model: Explainer | Classifier | Segmenter,
  scan: scans.Scan,
  *,
  target: str | None = None,
  methods: Sequence[str] = DEFAULT,
  region: str = targets.PREDICTED,
  truth: str | None = None,
) -> ExplainedScan:
  """Explains one scan.

  Args:
    model: a trained model, whose layers are all explained; or an `Explainer`
      with options of its own, which compiles once for many scans.
    scan: of `scans.read_scan`.
    target: name or number of a class; of a classifier also "predicted", and
      "cad" if left out. A segmenter needs one.
    methods: of `explainer.METHODS`; those of an `Explainer` are its own.
    region: of a segmenter: where the class is "predicted", its "largest"
      component, "truth", "false_positive" or "false_negative", or
      "box:d,h,w,d,h,w", "voxel:d,h,w" (of the scan), "box_mm:..." and
      "voxel_mm:x,y,z" (LPS).
    truth: of a segmenter, a mask file with the labels of
      `classes.CLASS_NAMES`.

  Returns:
    `maps`: for each method and layer a map on the layer's own cells, float32,
    at least 0, with strides in voxels of the model's grid; `target`: what was
    explained; `prediction`: of a classifier.

  Raises:
    UserError: the scan or a mask cannot be used, or the region is empty.
    lookup.UnknownName: there is no such target or region.
  """
  explainer = model
  if not isinstance(model, Explainer):
    explainer = Explainer(model, ExplainOptions(methods=tuple(methods)))
  trained = explainer.model
  prepared = trained.prepare(scan)
  shape = prepared.model_input.shape
  with scans.memory_error_as_user_error("explaining", shape):
    if explainer.is_segmenter:
      found = _explain_segmenter(explainer, prepared, target, region, truth)
    else:
      found = _explain_classifier(explainer, prepared, target or "cad")
  return ExplainedScan(
    begin(trained, scan, prepared), options=explainer.described(shape), **found
  )


def _explain_classifier(
  explainer: Explainer, prepared: scans.Prepared, target: str
) -> dict[str, Any]:
  classifier = explainer.model
  fitted = classification_scan.read_calibration(classifier)
  hu = prepared.model_input.hu
  known, origin = targets.class_names(explainer), "given"
  scored = None
  if target == targets.PREDICTED:
    scored = classification_scan.score(classifier, hu)
    label = classification_scan.make_prediction(*scored, fitted).label
    number, origin = targets.find_target(label, known), targets.PREDICTED
  else:
    number = targets.find_target(target, known)
  logits, maps = explainer.explain(hu, number)
  if scored is None:
    # The references alone give no logits.
    scored = (
      classification_scan.score(classifier, hu)
      if logits is None
      else classification_scan.check_logits(classifier, logits)
    )
  return {
    "maps": maps,
    "target": Target(
      number=number,
      name=known[number],
      origin=origin,
      score=explainer.options.score,
      value=_value(explainer, scored[0], number, fitted.pooling),
    ),
    "region": None,
    "prediction": classification_scan.make_prediction(*scored, fitted),
  }


def _value(
  explainer: Explainer, logits: np.ndarray, number: int, pooling: str
) -> float:
  """The score of a classifier; of several slices that of the decision."""
  if len(logits) == 1 or explainer.options.score != "margin":
    return explainer.score(logits, number)
  margins = calibration.softmax_margin(logits)
  odds = float(classification_scan.decision_log_odds(margins, pooling))
  return odds if targets.CLASSES[number] == "cad" else -odds


def _explain_segmenter(
  explainer: Explainer,
  prepared: scans.Prepared,
  target: str | None,
  region: str,
  truth: str | None,
) -> dict[str, Any]:
  known = targets.class_names(explainer)
  if target is None:
    raise UserError(
      f"a segmenter needs a target; the classes are {', '.join(known)}"
    )
  number = targets.find_target(target, known)
  hu = prepared.model_input.hu
  logits = explainer.logits(hu)
  if not np.isfinite(logits).all():
    raise UserError(
      f"the segmenter {explainer.model.path} gives NaN or infinite logits; it"
      " is not a trained model"
    )
  true = None
  if truth is not None:
    class_set = targets.class_set_of(explainer.model)
    true = targets.read_truth(truth, prepared, class_set)
  mask = targets.select_region(
    region, number, logits.argmax(-1), prepared, true
  )
  value = explainer.score(logits, number, mask)
  del logits
  _, maps = explainer.explain(hu, number, mask)
  return {
    "maps": maps,
    "target": Target(
      number=number,
      name=known[number],
      origin="given",
      score=explainer.options.score,
      value=value,
    ),
    "region": Region(kind=region, voxels=int(mask.sum())),
    "prediction": None,
  }
