"""Explains a scan: heat maps of a model's layers for one class."""

import dataclasses
import datetime
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cadjax.classification import scan as classification_scan
from cadjax.data import scans
from cadjax.data.scans import Prepared
from cadjax.explanation import targets
from cadjax.explanation.explainer import Explainer
from cadjax.explanation.heat_maps import HeatMap
from cadjax.training import workdir
from data_prep.errors import UserError

PHANTOM_WARNING = (
  "The model was trained on phantoms: its maps are not evidence about patients."
)
CONCERN_WARNING = (
  "The scan is unlike the data that the model was trained on: its maps are not"
  " to be relied on."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
  """All that is written of one explained scan; fields as in the schema."""

  case: str
  input_name: str
  prepared: Prepared
  maps: Sequence[HeatMap]
  target: Mapping[str, Any]
  region: Mapping[str, Any] | None
  prediction: Mapping[str, Any] | None
  model: Mapping[str, Any]
  options: Mapping[str, Any]
  software: Mapping[str, Any]
  created: str

  @property
  def warnings(self) -> list[str]:
    """What must be read with the maps."""
    said = []
    if self.prepared.concerns:
      said.append(CONCERN_WARNING)
    if self.model["trained_on"]["is_phantom"]:
      said.append(PHANTOM_WARNING)
    zero = [each.name for each in self.maps if not each.cells.max() > 0]
    if zero:
      said.append(
        f"Nothing speaks for the target in {', '.join(zero)}: these maps are"
        " zero everywhere."
      )
    return said


def explain_scan(
  trained: workdir.Trained,
  explain: Explainer,
  path: str | pathlib.Path,
  *,
  target: str,
  case: str | None = None,
  series: str | None = None,
  heart_mask: str | None = None,
  region: str = targets.PREDICTED,
  truth: str | None = None,
) -> Explanation:
  """Explains one scan.

  Args:
    trained: from `tasks.load_model`.
    explain: of the same model.
    path: a file or a folder of DICOM slices.
    target: name or number of a class; of a classifier also "predicted".
    case: the name in the results; by default from the path's last part.
    series: which DICOM series, by UID or number.
    heart_mask: a mask file; labels above 0 are the heart.
    region: of a segmenter, see above.
    truth: of a segmenter, a mask file with the labels of
      `classes.CLASS_NAMES`.

  Returns:
    what `explained.write_explanation` writes.

  Raises:
    UserError: the scan or a mask cannot be used, or the region is empty.
    lookup.UnknownName: there is no such target or region.
  """
  scan = scans.read(path, case=case, series=series, heart_mask=heart_mask)
  prepared = scans.prepare(scan, trained.grid, trained.reference)
  shape = prepared.model_input.shape
  with scans.memory_told("explaining", shape):
    if explain.is_segmenter:
      found = _explain_segmenter(
        trained, explain, prepared, target, region, truth
      )
    else:
      found = _explain_classifier(trained, explain, prepared, target)
  now = datetime.datetime.now(datetime.UTC)
  return Explanation(
    case=scan.case,
    input_name=scan.name,
    prepared=prepared,
    model=workdir.describe_model(trained),
    options=explain.described(shape),
    software=workdir.versions(),
    created=now.isoformat(timespec="seconds"),
    **found,
  )


def _explain_classifier(trained, explain, prepared, target) -> dict[str, Any]:
  settled = classification_scan.read_calibration(trained)
  hu = prepared.model_input.hu
  known, origin = targets.class_names(trained, explain), "given"
  logits = None
  if target == targets.PREDICTED:
    logits, probs = classification_scan.score(trained, hu)
    prediction = classification_scan.describe_prediction(logits, probs, settled)
    number, origin = (
      targets.find_target(prediction["label"], known),
      targets.PREDICTED,
    )
  else:
    number = targets.find_target(target, known)
  found, maps = explain.explain(hu, number)
  if logits is None:
    if found is None:  # By references alone.
      found, _ = classification_scan.score(trained, hu)
    logits, probs = classification_scan.check_logits(trained, found)
    prediction = classification_scan.describe_prediction(logits, probs, settled)
  return {
    "maps": maps,
    "target": {
      "class": number,
      "name": known[number],
      "origin": origin,
      "score": explain.options.score,
      "value": explain.score(logits, number),
    },
    "region": None,
    "prediction": prediction,
  }


def _explain_segmenter(
  trained, explain, prepared, target, region, truth
) -> dict[str, Any]:
  known = targets.class_names(trained, explain)
  number = targets.find_target(target, known)
  hu = prepared.model_input.hu
  logits = explain.logits(hu)
  if not np.isfinite(logits).all():
    raise UserError(
      f"the segmenter {trained.path} gives NaN or infinite logits; it is no"
      " trained model"
    )
  true = (
    None
    if truth is None
    else targets.read_truth(truth, prepared, targets.class_set_of(trained))
  )
  mask = targets.select_region(
    region, number, logits.argmax(-1), prepared, true
  )
  value = explain.score(logits, number, mask)
  del logits
  _, maps = explain.explain(hu, number, mask)
  return {
    "maps": maps,
    "target": {
      "class": number,
      "name": known[number],
      "origin": "given",
      "score": explain.options.score,
      "value": value,
    },
    "region": {"kind": region, "voxels": int(mask.sum())},
    "prediction": None,
  }
