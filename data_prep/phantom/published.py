"""What real patients measure: a range for every figure of `compare`."""

import dataclasses

_NAN = float("nan")
# Measured by the same measures, as `compare` prints them: the CT angiogram of
# TotalSegmentator's tests (wasserth/TotalSegmentator at 0e65a448) and the tree
# of BioSiMMLab/CoronaryModelPipeline at be74bd13.
_SCAN = "one CTA (TotalSegmentator)"
_TREE = "one tree (BioSiMMLab)"
# Measured once on data that are not shared.
_TREES = "19 trees of ImageCAS"
_LINE = "one expert centreline"
_ONE = "one CTA (goudurix)"
_COCA = "six scans of COCA"
# 57 % have calcium; LAD 53, RCA 37, LCx 29, LM 17 % of all 213 patients.
_SCORES = "COCA, 213 patients"
# The literature.
_DODGE = "Dodge 1992"  # Circulation 86:232; diameters of 83 angiograms.
_WOLAK = "Wolak 2008"  # JACC Cardiovasc Imaging 1:200; 33 +- 4, 24 +- 3 mm.
_FUCHS = "Fuchs 2016"  # Eur Heart J Cardiovasc Imaging 17:1009.
_KOSAR = "Kosar 2009"  # doi 10.4261/1305-3825.DIR.2550-09.1; 700 patients.
_CONFIRM = "CONFIRM 2015"  # doi 10.1093/ehjci/jeu314; 6,382 patients.
# JACC 58:2533; of 10,037 patients 51 % have no calcium, of whom 16 % have
# plaque: 49 / (49 + 0.16 * 51) of those with plaque have calcium.
_VILLINES = "Villines 2011"
_RAJ = "Raj 2021"  # 161 patients; 77 % right dominance, 20 % ramus.


@dataclasses.dataclass(frozen=True)
class Figure:
  """A line of the table.

  Attributes:
    name: what is measured, with its unit.
    low: of real patients; NaN where only a scan or tree at hand tells.
    high: likewise.
    source: where the range is from.
    tolerance: how far from the value of the scan at hand still counts as
      alike, as a share of it.
    digits: behind the point.
  """

  name: str
  low: float
  high: float
  source: str
  tolerance: float = 0.1
  digits: int = 0


# Of trees, the published 10 and 90 % quantiles; of shares of patients, 10
# points to either side of the published one, as suits 100 phantoms; of edges,
# what the scan at hand has at its voxel size. On native voxels, the published
# edge of 2.5 mm is of a measure that reads 1.3 times this one on the same
# phantoms. "Usual" is what CT angiograms have in our experience, around the
# values named.
FIGURES = (
  Figure("aorta, HU", 250, 600, f"usual; {_SCAN} 403; {_ONE} 311"),
  Figure("heart blood, HU", 200, 600, f"usual; {_SCAN} 491", 0.15),
  Figure("right ventricle, HU", 80, 700, "usual; flushed to streaming"),
  Figure("myocardium, HU", 80, 140, f"usual; {_SCAN} 131"),
  Figure("lung, HU", -900, -760, f"usual; {_SCAN} -796", 0.03),
  Figure("fat, HU", -115, -85, f"usual; {_SCAN} -101"),
  Figure("liver, HU", 50, 120, f"usual; {_SCAN} 77", 0.2),
  Figure("bone above 150 HU, 10 %", 150, 180, f"usual; {_SCAN} 164"),
  Figure("bone above 150 HU, median", 210, 330, f"usual; {_SCAN} 241", 0.2),
  Figure("bone above 150 HU, 90 %", 450, 900, f"usual; {_SCAN} 608", 0.2),
  Figure("noise SD, HU", 15, 40, f"{_SCAN} 36; by dose and body", 0.25),
  Figure("noise spectrum, peak, 1/mm", _NAN, _NAN, _SCAN, 0.5, 2),
  Figure("noise spectrum, mean, 1/mm", _NAN, _NAN, _SCAN, 0.2, 2),
  Figure("edge 10-90 %, aorta, mm", _NAN, _NAN, _SCAN, 0.25, 2),
  Figure("edge 10-90 %, heart to lung, mm", _NAN, _NAN, _SCAN, 0.25, 2),
  Figure("native: noise SD, HU", 15, 40, f"{_ONE} 19; by dose and body"),
  Figure("native: noise spectrum, peak, 1/mm", 0.13, 0.28, _COCA, 0.1, 2),
  Figure("native: noise spectrum, mean, 1/mm", 0.25, 0.42, _COCA, 0.1, 2),
  Figure("native: edge 10-90 %, aorta, mm", 1.5, 2.4, _ONE, 0.2, 2),
  Figure("fat share of 128 mm", 0.05, 0.17, "eight scans", 0.2, 3),
  Figure("lung share above -400 HU", 0.03, 0.06, f"{_SCAN} 0.045", 0.2, 3),
  Figure("heart, mL", 450, 900, f"{_FUCHS}; {_SCAN} 669"),
  Figure("aorta ascending, mm", 25, 40, f"{_WOLAK}; {_SCAN} 30", 0.05, 1),
  Figure("aorta descending, mm", 18, 40, f"{_WOLAK}; {_SCAN} 29", 0.05, 1),
  Figure("coronary volume, mL", 4.3, 7.7, _TREES, 0.1, 1),
  Figure("coronary skeleton, mm", 486, 753, _TREES),
  Figure("coronary radius, 10 %, mm", 0.95, 1.2, f"{_TREES} 1.1", 0.1, 2),
  Figure("coronary radius, median, mm", 1.35, 1.6, f"{_TREES} 1.5", 0.1, 2),
  Figure("coronary radius, 90 %, mm", 1.8, 2.3, f"{_TREES} 2.0", 0.1, 2),
  Figure("coronary end points", 7, 18, _TREES),
  Figure("coronary parts", 2, 3, f"{_TREES}: 2 in 18"),
  Figure("turning, degrees/mm", 3.3, 6.0, f"{_TREE} 3.6; {_LINE} 5.5", 0.1, 1),
  Figure("line radius, 10 %, mm", 0.6, 1.2, f"{_TREE} 0.91", 0.3, 2),
  Figure("line radius, median, mm", 0.8, 1.5, f"{_TREE} 1.16", 0.3, 2),
  Figure("line radius, 90 %, mm", 1.3, 2.4, f"{_TREE} 1.82", 0.3, 2),
  Figure("RCA radius at 0 mm", 1.4, 3.0, f"{_DODGE}; {_LINE} 2.96", 0.1, 2),
  Figure("RCA radius at 40 mm", 1.4, 3.0, f"{_TREE} 1.6; {_LINE} 2.92", 0.1, 2),
  Figure("RCA radius at 80 mm", 1.3, 2.2, f"{_TREE} 1.5; {_LINE} 2.11", 0.1, 2),
  Figure(
    "RCA radius at 120 mm", 1.0, 2.3, f"{_TREE} 1.1; {_LINE} 2.26", 0.1, 2
  ),
  Figure("patients: right dominance, %", 74, 92, f"{_KOSAR} 76; {_CONFIRM} 91"),
  Figure("patients: ramus, %", 17, 34, f"{_RAJ} 20; {_KOSAR} 31"),
  Figure("with CAD: calcium, %", 76, 96, f"{_VILLINES} 86"),
  Figure("with calcium: LAD, %", 83, 100, f"{_SCORES} 93"),
  Figure("with calcium: RCA, %", 55, 75, f"{_SCORES} 65"),
  Figure("with calcium: LCx, %", 41, 61, f"{_SCORES} 51"),
  Figure("with calcium: LM, %", 20, 40, f"{_SCORES} 30"),
)
BY_NAME = {figure.name: figure for figure in FIGURES}
