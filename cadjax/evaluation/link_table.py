"""The link's figures as text, and its FROC curves as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from cadjax.evaluation.link_rows import MODES, Found, ScanRow
from cadjax.evaluation.link_scores import READER_RATES, UNITS, by_scan
from cadjax.metrics import detection
from cadjax.metrics.intervals import Difference, Interval
from cadjax.report import curves


def froc_figure(
  scans: Sequence[ScanRow],
  found: Found,
  result: Mapping[str, Any],
) -> Figure:
  """Draws the FROC curves of the test half.

  Args:
    scans: of both halves.
    found: likewise.
    result: of `link_scores.summarise` and the disclaimer.
  """
  test = [row for row in scans if row.half == "test"]
  lines = {}
  for mode, one in result["localisation"].items():
    rows = by_scan(test, found[mode, one["layer"]])
    lines[_title(mode, one)] = detection.froc(
      rows, most=result["findings_per_scan"]
    )
  return curves.froc_figure(
    lines,
    title=f"{result['n_lesions']} lesions of {result['n_cad']} patients,"
    f" {len(test)} scans",
    footer=result["disclaimer"],
  )


def table(result: Mapping[str, Any]) -> str:
  """Returns the result as text.

  Args:
    result: the contents of link.json.
  """
  rates = result["localisation"]["combined"]["froc"]["rates"]
  lines = [
    f"{result['n_lesions']} lesions of {result['n_cad']} patients,"
    f" {result['n_scans']['test']} scans. A hit: half of a finding within"
    f" {result['tolerance_mm']:g} mm of the lesion's centreline, one to one.",
    f"At most {result['findings_per_scan']} findings a scan, which allow a"
    f" sensitivity of {result['best_sensitivity']:.3f} at best.",
    "",
    f"{'sensitivity at false positives a scan':54s}"
    + "".join(f"{rate:>7g}" for rate in rates)
    + "   mean, 95 % interval",
  ]
  for mode, one in result["localisation"].items():
    found = one["froc"]
    lines.append(
      f"{_title(mode, one):54s}"
      + "".join(f"{each['value']:7.2f}" for each in found["sensitivity"])
      + f"   {_cell(found['mean'])}"
    )
  more = result["localisation"]["map"]["combined_minus_this"]
  text = Difference.from_dict(more).text(2)
  lines += [
    f"mean sensitivity, (d) less (a): {text}",
    "",
    f"{'at the threshold for ' + format(result['operating_rate'], 'g'):54s}"
    f"{'lesions hit, by patient':30s}false positives a scan",
  ]
  lines += [
    f"{_title(mode, one):54s}{_cell(one['hit']):30s}"
    f"{_cell(one['false_positives'])}"
    for mode, one in result["localisation"].items()
  ]
  lines += ["", *_reader_lines(result), ""]
  for name, one in result["decision"].items():
    lines.append(
      f"decision by {name:13s} AUC {_cell(one['roc_auc'])}, accuracy"
      f" {_cell(one['accuracy'])}"
    )
  notes = [f"note: {note}" for note in result["notes"]]
  return "\n".join([*lines, *notes, result["disclaimer"]])


def _reader_lines(result: Mapping[str, Any]) -> list[str]:
  """The reader study as text: the list of findings and the map alone."""
  lines = []
  for unit in UNITS:
    lines.append(
      f"{'the findings against the classifier alone, ' + unit:54s}"
      + "".join(f"{f'at {rate:g}':22s}" for rate in READER_RATES).rstrip()
    )
    for mode in ("combined", "map"):
      one = result["localisation"][mode]
      cells = [_cell(each) for each in one["reader"][unit]["sensitivity"]]
      lines.append(
        f"{_title(mode, one):54s}"
        + "".join(f"{cell:22s}" for cell in cells).rstrip()
      )
    differences = [
      Difference.from_dict(each).text(2)
      for each in result["localisation"]["map"]["reader"][unit][
        "combined_minus_this"
      ]
    ]
    lines.append(
      f"{'  (d) less (a)':54s}"
      + "".join(f"{cell:22s}" for cell in differences).rstrip()
    )
  return lines


def _title(mode: str, one: Mapping[str, Any]) -> str:
  return MODES[mode] + (f", {one['layer']}" if one["layer"] else "")


def _cell(entry: Mapping[str, Any]) -> str:
  return Interval.from_dict(entry).text(2)
