"""A classifier and a segmenter that read one scan together."""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from cadjax.classification import scan as classification_scan
from cadjax.classification.classifier import Classifier, load_classifier
from cadjax.core import lookup
from cadjax.data import scans
from cadjax.explanation import cam, heat_maps
from cadjax.explanation.explainer import Explainer, Options
from cadjax.link import agreement, decision, findings, join
from cadjax.segmentation import scan as segmentation_scan
from cadjax.segmentation.segmenter import Segmenter, load_segmenter

CAD = 1


# HiResCAM locates best on phantoms. The stem does better than stage1 on average
# but far less evenly from training to training, and the layers after it do
# worse: configs/experiments/results/layers.
METHOD = "hirescam"
LAYER = "stage1"


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
  """Two trained models.

  Attributes:
    classifier: its workdir.
    segmenter: its workdir; coronary arteries are among its classes.
    method: of the heat maps, a key of `cam.METHODS`.
    layer: whose map the findings rest on; None for `LAYER`, or the last one
      where there is none of that name.
    combination: the decision of both together; None without one.
  """

  classifier: Classifier
  segmenter: Segmenter
  method: str = METHOD
  layer: str | None = None
  combination: decision.Decision | None = None

  @functools.cached_property
  def explainer(self) -> Explainer:
    """Explains all layers; compiled once for all scans."""
    return Explainer(self.classifier, Options(methods=(self.method,)))

  @property
  def chosen_layer(self) -> str:
    """The layer that the findings rest on."""
    layers = list(self.explainer.strides)
    return self.layer or (LAYER if LAYER in layers else layers[-1])


@dataclasses.dataclass(frozen=True, eq=False)
class PairResult:
  """What the two say of one scan.

  Attributes:
    case: the classifier's part.
    segments: the segmenter's part.
    maps: by layer, float32 [D, H, W] in [0, 1] on the classifier's grid.
    linked: both joined, on the segmenter's grid.
    method: of the heat maps.
    combined: see `cadjax.report.linked`; None without a fitted decision.
  """

  case: classification_scan.CaseResult
  segments: segmentation_scan.SegmentResult
  maps: dict[str, np.ndarray]
  linked: join.Linked
  method: str
  combined: dict[str, Any] | None = None

  @property
  def warnings(self) -> list[str]:
    """What must be read with the number and with the masks."""
    said = [*self.case.warnings, *self.segments.warnings]
    if fragments := agreement.unconnected(self.linked.structures.tree):
      said.append(fragments)
    return list(dict.fromkeys(said))


def load_pair(
  classifier: str | pathlib.Path,
  segmenter: str | pathlib.Path,
  *,
  method: str = METHOD,
  layer: str | None = None,
  decision_file: str | pathlib.Path | None = None,
) -> Pair:
  """Loads two workdirs.

  Args:
    classifier: its workdir.
    segmenter: its workdir.
    method: see `Pair`.
    layer: see `Pair`.
    decision_file: link.json of `cadjax.evaluate_link` on these two.

  Raises:
    UserError: a workdir is missing or of the other task, or the decision is
      of other models.
    lookup.ConfigError: an unknown method or layer.
  """
  pair = Pair(
    load_classifier(classifier),
    load_segmenter(segmenter),
    method,
    layer,
  )
  lookup.check_known([method], cam.METHODS, "--method")
  if layer is not None:
    lookup.check_known([layer], pair.explainer.strides, "--layer")
  classification_scan.read_calibration(pair.classifier)
  if decision_file is None:
    return pair
  fitted = decision.read(decision_file, pair.classifier, pair.segmenter)
  return dataclasses.replace(pair, combination=fitted)


def predict_pair(
  pair: Pair,
  path: str | pathlib.Path,
  *,
  case: str | None = None,
  series: str | None = None,
  heart_mask: str | None = None,
  options: findings.Options | None = None,
) -> PairResult:
  """Reads one scan with both models.

  Args:
    pair: of `load_pair`.
    path: a file or a folder of DICOM slices.
    case: the name in the results; by default from the path's last part.
    series: which DICOM series, by UID or number.
    heart_mask: a mask file; labels above 0 are the heart.
    options: of `findings.find_abnormalities`.

  Raises:
    UserError: the scan or the mask cannot be used.
  """
  scan = scans.read(path, case=case, series=series, heart_mask=heart_mask)
  scored = classification_scan.score_scan(pair.classifier, scan)
  segments = segmentation_scan.segment_read(pair.segmenter, scan)
  seen = scored.model_input
  with scans.memory_told("explaining", seen.shape):
    _, found = pair.explainer.explain(seen.hu, CAD)
  maps = {
    heat.layer: heat_maps.on_model_grid(heat, seen.shape) for heat in found
  }
  structures = join.find_structures(
    segments.prepared.model_input,
    segments.model_labels,
    pair.segmenter.class_names,
  )
  linked = join.join(
    structures,
    maps,
    seen.grid,
    layer=pair.chosen_layer,
    probability=scored.prediction["probability"],
    threshold=scored.prediction["threshold"],
    options=options,
  )
  combined = None
  if pair.combination is not None:
    combined = pair.combination.describe(
      decision.features(structures, scored.prediction)
    )
  return PairResult(scored, segments, maps, linked, pair.method, combined)
