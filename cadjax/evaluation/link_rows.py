"""What the link found on scans whose lesions are known: a row for each thing.

Rows are written before anything is averaged; `link_scores` reads nothing else.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from cadjax.link import findings

# In the order of the table.
MODES = {
  "chance": "(0) places on the segmented vessels, drawn at random",
  "map": "(a) the classifier's map alone",
  "vessel_map": "(b) the map on the segmented vessels",
  "plaque": "(c) the plaque segmentation",
  "combined": "(d) all together",
}
MOST = findings.FindingOptions.most
HALVES = ("fit", "test")
# Names of the files of rows, without suffix.
SCANS, FINDINGS, LESIONS = "scans", "findings", "lesions"


@dataclasses.dataclass(frozen=True)
class ScanRow:
  """One scan.

  Attributes:
    case_id: of the scan.
    patient_id: of its patient.
    label: 1 for CAD, else 0.
    half: "fit" or "test".
    lesions: how many it has.
    probability: of CAD, by the classifier.
    log_odds: see `decision.FEATURES`, as are the next two.
    stenosis: share of a diameter.
    log_plaque: None if the segmenter has no class for plaque.
  """

  case_id: str
  patient_id: str
  label: int
  half: str
  lesions: int
  probability: float
  log_odds: float
  stenosis: float
  log_plaque: float | None = None


@dataclasses.dataclass(frozen=True)
class FindingRow:
  """One finding of one mode, on the map of one layer.

  Attributes:
    case_id: of the scan.
    patient_id: of its patient.
    half: "fit" or "test".
    mode: of `MODES`.
    layer: of the heat map; None for modes that use no map.
    position_mm: LPS (x, y, z).
    score: comparable between scans; higher is more abnormal. What the mode
      ranks by, times the classifier's probability where that is a heat map,
      which is scaled to its own maximum.
    outcome: of `detection.outcomes`.
    lesions: numbers of the scan's lesions that it is on.
    mm: from each of them.
  """

  case_id: str
  patient_id: str
  half: str
  mode: str
  layer: str | None
  position_mm: list[float]
  score: float
  outcome: str
  lesions: list[int]
  mm: list[float]


# The findings of all scans by mode and layer; also where there is none.
Found = Mapping[tuple[str, str | None], Sequence[FindingRow]]


@dataclasses.dataclass(frozen=True)
class LesionRow:
  """One lesion.

  Attributes:
    case_id: of the scan.
    patient_id: of its patient.
    half: "fit" or "test".
    lesion: its number in the scan, from 0.
    segment: of the coronary tree, as data_prep.export names it.
    stenosis: share of the diameter that it takes.
    plaque: its kind.
    volume_mm3: of the plaque.
  """

  case_id: str
  patient_id: str
  half: str
  lesion: int
  segment: str
  stenosis: float
  plaque: str
  volume_mm3: float
