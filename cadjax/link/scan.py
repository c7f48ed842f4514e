"""A classifier and a segmenter that read one scan together."""

import dataclasses
import functools
import pathlib

import numpy as np

from cadjax.calcium.stored import StoredScore
from cadjax.classification import scan as classification_scan
from cadjax.classification.classifier import Classifier, load_classifier
from cadjax.classification.scan import ClassifiedScan, classify_scan
from cadjax.core import lookup
from cadjax.data import scans
from cadjax.explanation import cam, heat_maps
from cadjax.explanation.explainer import Explainer, ExplainOptions
from cadjax.link import (
  agreement,
  cad_rads,
  decision,
  findings,
  grading,
  join,
)
from cadjax.segmentation.scan import (
  SegmentedScan,
  find_chest,
  segment_placed,
)
from cadjax.segmentation.segmenter import Segmenter, load_segmenter, load_wide
from cadjax.training import packed

CAD = 1
# Of the maps of one pass of the classifier in the box, those that agree best
# with what each lesion does to its log odds, see cadjax/weights/README.md.
METHOD = "hirescam"
LAYER = "stage1"
# By `cadjax diagnosis` with the models in the box, see README.md.
OVERSTATES = (
  "The segmenter that comes with cadjax overstates disease: of 50 normal"
  " phantoms it gave CAD-RADS 2 to 4A to 41, and CAD-RADS 0 to none."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
  """Two trained models.

  Attributes:
    classifier: its workdir.
    segmenter: its workdir; coronary arteries are among its classes.
    wide: the segmenter of the chest that finds the heart for both; None for
      the heart that is found in the image.
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
  wide: Segmenter | None = None

  @functools.cached_property
  def explainer(self) -> Explainer:
    """Explains all layers; compiled once for all scans."""
    return Explainer(self.classifier, ExplainOptions(methods=(self.method,)))

  @property
  def chosen_layer(self) -> str:
    """The layer that the findings rest on."""
    layers = list(self.explainer.strides)
    return self.layer or (LAYER if LAYER in layers else layers[-1])


@dataclasses.dataclass(frozen=True, eq=False)
class LinkedScan:
  """One scan that both models read; `report.linked` writes it.

  Attributes:
    classified: the classifier's part.
    segmented: the segmenter's part.
    maps: by layer, float32 [D, H, W] in [0, 1] on the classifier's grid.
    linked: both joined, on the segmenter's grid.
    method: of the heat maps.
    combined: the decision of both together; None without a fitted one.
    calcium: the score of a scan of the same patient without contrast; None
      without one.
    cautions: what is known of these models' errors, in sentences.
  """

  classified: ClassifiedScan
  segmented: SegmentedScan
  maps: dict[str, np.ndarray]
  linked: join.Linked
  method: str
  combined: decision.Combined | None = None
  calcium: StoredScore | None = None
  cautions: tuple[str, ...] = ()

  @functools.cached_property
  def grade(self) -> cad_rads.CadRads:
    """CAD-RADS 2.0 of what the segmentation shows."""
    return grading.grade_scan(
      self.linked.structures.tree,
      self.linked.findings,
      skipped=self.segmented.not_looked_for,
      plaques=self.linked.structures.plaques is not None,
      agatston=self.calcium.agatston if self.calcium else None,
    )

  @functools.cached_property
  def segments(self) -> list[cad_rads.SegmentReading]:
    """What is known of each coronary segment; [] where none was looked for."""
    if self.segmented.skipped is not None:
      return []
    return grading.read_segments(
      self.linked.structures.tree, self.linked.findings
    )

  @property
  def statements(self) -> list[str]:
    """Where classifier and segmentation disagree, in sentences."""
    prediction = self.classified.prediction
    return [
      *self.linked.statements,
      *agreement.of_grade(
        self.grade,
        probability=prediction.probability,
        threshold=prediction.threshold,
      ),
    ]

  @property
  def warnings(self) -> list[str]:
    """What must be read with the probability and the masks, in sentences."""
    found = [*self.classified.warnings, *self.segmented.warnings]
    found += self.cautions
    if fragments := agreement.unconnected(self.linked.structures.tree):
      found.append(fragments)
    return list(dict.fromkeys(found))


def load_pair(
  classifier: str | pathlib.Path | None = None,
  segmenter: str | pathlib.Path | None = None,
  *,
  wide: str | pathlib.Path | None = None,
  method: str = METHOD,
  layer: str | None = None,
  decision_file: str | pathlib.Path | None = None,
) -> Pair:
  """Loads a classifier and a segmenter that are to read scans together.

  Args:
    classifier: its workdir, a file of weights, or the name of a model that
      comes with cadjax; by default that of this name.
    segmenter: the same; by default the one named coronary.
    wide: the segmenter of the chest that finds the heart, or "none"; by
      default the one named wide if one of the others comes with cadjax, too.
    method: of the heat maps, a key of `cam.METHODS`.
    layer: whose map the findings rest on; `LAYER` if left out.
    decision_file: link.json of `cadjax link` on these two, for one probability
      of both.

  Raises:
    UserError: a model is missing or of the other task, or the decision is
      of other models.
    lookup.ConfigError: an unknown method or layer.
  """
  pair = Pair(
    load_classifier(classifier),
    load_segmenter(segmenter),
    method,
    layer,
  )
  wide = load_wide(wide, (pair.classifier, pair.segmenter))
  pair = dataclasses.replace(pair, wide=wide)
  lookup.check_known([method], cam.METHODS, "--method")
  if layer is not None:
    lookup.check_known([layer], pair.explainer.strides, "--layer")
  classification_scan.read_calibration(pair.classifier)
  if decision_file is None:
    return pair
  fitted = decision.read(decision_file, pair.classifier, pair.segmenter)
  return dataclasses.replace(pair, combination=fitted)


def link_scan(
  pair: Pair,
  scan: scans.Scan,
  *,
  options: findings.FindingOptions | None = None,
  calcium: StoredScore | None = None,
) -> LinkedScan:
  """Reads one scan with both models and joins what they find.

  Args:
    pair: of `load_pair`.
    scan: of `scans.read_scan`.
    options: of `findings.find_abnormalities`.
    calcium: of `calcium.stored.read`, of the same patient: it then says the
      plaque burden.

  Returns:
    `grade`: CAD-RADS 2.0; `classified` and `segmented`: what each model
    found; `maps`: by layer, float32 [D, H, W] in [0, 1] on the classifier's
    grid; `linked.findings`: located abnormalities with position in mm (LPS),
    vessel, plaque in mm3 and stenosis in [0, 1], the most abnormal first.

  Raises:
    UserError: the scan cannot be laid on a model's grid, or memory is short.
  """
  chest = None
  if pair.wide is not None:
    chest = find_chest(pair.wide, scan)
    scan = chest.anatomy.place(scan)
  classified = classify_scan(pair.classifier, scan)
  segmented = segment_placed(pair.segmenter, scan, chest)
  prediction, seen = classified.prediction, classified.reading.model_input
  with scans.memory_error_as_user_error("explaining", seen.shape):
    _, found = pair.explainer.explain(seen.hu, CAD)
  maps = {
    heat.layer: heat_maps.on_model_grid(heat, seen.shape) for heat in found
  }
  structures = join.find_structures(
    segmented.reading.model_input,
    segmented.model_labels,
    pair.segmenter.class_names,
  )
  linked = join.join(
    structures,
    maps,
    seen.grid,
    layer=pair.chosen_layer,
    probability=prediction.probability,
    threshold=prediction.threshold,
    options=options,
  )
  if segmented.skipped is not None:
    # The classifier does not disagree with what nobody has looked for.
    linked = dataclasses.replace(linked, statements=[])
  combined = None
  if pair.combination is not None:
    combined = pair.combination.decide(
      decision.features(structures, prediction.uncalibrated_probability)
    )
  looked = segmented.skipped is None
  shipped = packed.is_shipped(pair.segmenter.path)
  return LinkedScan(
    classified,
    segmented,
    maps,
    linked,
    pair.method,
    combined,
    calcium,
    cautions=(OVERSTATES,) if looked and shipped else (),
  )
