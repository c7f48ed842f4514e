"""Phantoms beside a real scan, in figures and in pictures.

`python -m data_prep.phantom.compare --scan=SCAN --aorta=MASK --heart=MASK`
draws phantoms on the scan's voxels, their hearts where the scan has its own,
and measures both alike. The table has, for every figure, the scan, the median
and range of the phantoms, and the range of real patients. A figure is inside
if the phantoms' median lies in that range, to which the scan itself, within
the figure's tolerance, belongs.
"""

import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib.figure
import numpy as np
from absl import flags
from scipy import ndimage

from data_prep import errors, workers
from data_prep.errors import UserError
from data_prep.phantom import figures, polydata
from data_prep.phantom.figures import Chest
from data_prep.phantom.published import BY_NAME, FIGURES, Figure
from data_prep.tissues import Tissue

_NAN = float("nan")


# The table.


def judge(
  figure: Figure, real: float, phantoms: Sequence[float]
) -> tuple[tuple[float, float], str]:
  """Returns the range of a figure and where the phantoms' median lies in it.

  Args:
    figure: the figure with its published range.
    real: the scan's value, which widens the range by itself and the figure's
      tolerance; NaN if it has none.
    phantoms: their values.

  Returns:
    ((low, high), "inside", "below", "above", or "" where there is nothing to
    compare).
  """
  low, high = figure.low, figure.high
  if np.isfinite(real):
    reach = figure.tolerance * abs(real)
    low, high = np.nanmin([low, real - reach]), np.nanmax([high, real + reach])
  values = [value for value in phantoms if np.isfinite(value)]
  if not values or not np.isfinite(low):
    return (float(low), float(high)), ""
  middle = np.median(values)
  word = "below" if middle < low else "above" if middle > high else "inside"
  return (float(low), float(high)), word


def to_rows(
  real: dict[str, float],
  phantoms: Sequence[dict[str, float]],
  shares: dict[str, float],
) -> list[dict[str, Any]]:
  """Returns one JSON-able dict per figure; None stands for no value.

  Args:
    real: the scan's figures by name.
    phantoms: those of every phantom.
    shares: those of many phantoms together.
  """
  rows = []
  for figure in FIGURES:
    own = real.get(figure.name, _NAN)
    values = [found.get(figure.name, _NAN) for found in phantoms]
    if figure.name in shares:
      values = [shares[figure.name]]
    known = [value for value in values if np.isfinite(value)]
    bounds, word = judge(figure, own, values)
    rows.append(
      {
        "figure": figure.name,
        "scan": _number(own),
        "phantoms": [_number(value) for value in values],
        "median": _number(np.median(known) if known else _NAN),
        "lowest": _number(min(known, default=_NAN)),
        "highest": _number(max(known, default=_NAN)),
        "real_low": _number(bounds[0]),
        "real_high": _number(bounds[1]),
        "source": figure.source,
        "verdict": word,
        "inside": sum(bounds[0] <= value <= bounds[1] for value in known),
      }
    )
  return rows


def _number(value) -> float | None:
  return float(value) if np.isfinite(value) else None


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
  """Returns the table in Markdown, aligned so that it reads as text, too."""
  head = ["figure", "scan", "phantoms", "real range", "source", "median is"]
  lines = [head]
  for row in rows:
    digits = BY_NAME[row["figure"]].digits
    show = functools.partial(_show, digits=digits)
    phantoms = show(row["median"])
    if len(row["phantoms"]) > 1 and row["median"] is not None:
      phantoms += f" ({show(row['lowest'])} to {show(row['highest'])})"
    bounds = "-"
    if row["real_low"] is not None:
      bounds = f"{show(row['real_low'])} to {show(row['real_high'])}"
    word = row["verdict"] or "-"
    if row["verdict"]:
      known = sum(value is not None for value in row["phantoms"])
      word += f" ({row['inside']} of {known} in)"
    lines.append(
      [row["figure"], show(row["scan"]), phantoms, bounds, row["source"], word]
    )
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  lines.insert(1, ["-" * width for width in widths])
  return "\n".join(
    "| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines
  )


def _show(value: float | None, digits: int) -> str:
  return "-" if value is None else f"{value:.{digits}f}"


# The pictures.

_WINDOWS = {"soft tissue": (-300, 600), "lung": (-1350, 150)}


def draw(chests: dict[str, Chest], slab: float) -> matplotlib.figure.Figure:
  """Draws scans side by side, in two windows, at the same levels of the heart.

  Rows: axial at 80, 50 and 20 % of the heart's height, coronal and sagittal
  through its middle, and a maximum of 20 mm of axial slices.

  Args:
    chests: title -> scan.
    slab: middle of the slab, in the heart's height from below, 0 to 1.
  """
  views = ("80 %", "50 %", "20 %", "coronal", "sagittal", "maximum of 20 mm")
  columns = [(w, title) for w in _WINDOWS for title in chests]
  figure = matplotlib.figure.Figure(
    (3.4 * len(columns), 3.3 * len(views)), layout="constrained"
  )
  axes = figure.subplots(len(views), len(columns), squeeze=False)
  for column, (window, title) in enumerate(columns):
    low, high = _WINDOWS[window]
    for row, view in enumerate(views):
      pixels, aspect = _view(chests[title], view, slab)
      ax = axes[row][column]
      ax.imshow(
        pixels, "gray", vmin=low, vmax=high, aspect=aspect, interpolation="none"
      )
      ax.set(xticks=[], yticks=[])
      if row == 0:
        ax.set_title(f"{title}, {window}")
      if column == 0:
        ax.set_ylabel(view)
  return figure


def _view(chest, view, slab) -> tuple[np.ndarray, float]:
  """Returns (pixels, height of a pixel by its width)."""
  hu, spacing = chest.volume.hu, chest.volume.spacing
  low, high = chest.span
  middle = chest.volume.grid.to_index(chest.center_mm)
  at = np.clip(np.rint(middle), 0, np.array(hu.shape) - 1).astype(int)
  if view == "coronal":
    return hu[::-1, at[1]], spacing[0] / spacing[2]
  if view == "sagittal":
    return hu[::-1, :, at[2]], spacing[0] / spacing[1]
  if view.startswith("maximum"):
    level = low + slab * (high - low)
    half = 10 / spacing[0]
    first = int(np.clip(np.rint(level - half), 0, len(hu) - 1))
    last = max(int(np.rint(level + half)), first + 1)
    return hu[first:last].max(0), spacing[1] / spacing[2]
  level = low + float(view.split()[0]) / 100 * (high - low)
  level = int(np.clip(np.rint(level), 0, len(hu) - 1))
  return hu[level], spacing[1] / spacing[2]


def coronary_level(chest: Chest) -> float:
  """Returns where 20 mm of axial slices hold most of a phantom's lumen.

  Above the heart's middle, where the first parts of the arteries run level;
  in the heart's height from below, 0 to 1.
  """
  count = (chest.tissues == Tissue.LUMEN).sum((1, 2)).astype(float)
  low, high = chest.span
  inside = ndimage.uniform_filter1d(
    count, max(int(20 / chest.volume.spacing[0]), 1), mode="constant"
  )
  inside[: int((low + high) / 2)] = 0
  if not inside.any():
    return 0.75
  return float((inside.argmax() - low) / (high - low))


# The program.


def _figures(seed, chest, options) -> dict[str, float]:
  return figures.measure_phantom(seed, chest, **options)[0]


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines the flags."""
  options = {"flag_values": values}
  text = flags.DEFINE_string
  text("scan", None, "A real scan of the chest; required.", **options)
  text("aorta", None, "Mask of its aorta, on its voxels.", **options)
  text("heart", None, "Mask of its heart, on its voxels.", **options)
  text("tree", None, "A real coronary tree (.vtp, as SimVascular).", **options)
  text("out", None, "Folder for table and pictures.", **options)
  integer = flags.DEFINE_integer
  integer("phantoms", 6, "How many.", 1, **options)
  more = "Phantoms with CAD for the shares of patients; 0: none."
  integer("patients", 100, more, 0, **options)
  integer("seed", 0, "Of the first phantom.", 0, **options)
  integer("workers", 1, "Processes.", 1, **options)
  flags.DEFINE_enum(
    "severity", "clinical", ["clinical", "overt"], "Of disease.", **options
  )


def compare(
  chest: Chest,
  seeds: Sequence[int],
  *,
  lines: Sequence[np.ndarray] = (),
  patients: int = 0,
  num_workers: int = 1,
  **options: Any,
) -> tuple[list[dict[str, Any]], matplotlib.figure.Figure]:
  """Compares phantoms with a scan; returns (rows of the table, pictures).

  Args:
    chest: the scan.
    seeds: of the phantoms; the first one's pictures are drawn.
    lines: a real coronary tree, as `polydata.read_lines` returns it.
    patients: how many phantoms tell shares of patients.
    num_workers: processes.
    **options: of `make_phantom`.
  """
  work = functools.partial(_figures, chest=chest, options=options)
  phantoms = []
  for found in workers.ordered_map(work, list(seeds), workers=num_workers):
    if isinstance(found, UserError):
      raise found
    phantoms.append(found)
  real = figures.measure_chest(chest)
  if lines:
    real |= figures.measure_lines(lines)
  shares = figures.measure_patients(range(patients), num_workers, **options)
  rows = to_rows(real, phantoms, shares)
  first = figures.of_phantom(figures.make_like(seeds[0], chest, **options))
  shown = {"scan": chest, f"phantom {seeds[0]}": first}
  return rows, draw(shown, coronary_level(first))


def main(argv: Sequence[str]) -> None:
  """Compares what the flags name."""
  del argv
  args = flags.FLAGS
  if args.scan is None:
    raise UserError("--scan is missing: a real scan of the chest")
  chest = figures.read_chest(args.scan, args.aorta, args.heart)
  lines = () if args.tree is None else polydata.read_lines(args.tree)
  seeds = range(args.seed, args.seed + args.phantoms)
  rows, figure = compare(
    chest,
    seeds,
    lines=lines,
    patients=args.patients,
    num_workers=args.workers,
    severity=args.severity,
  )
  table = to_markdown(rows)
  print(table)
  if args.out is not None:
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.md").write_text(table + "\n")
    record = {"scan": args.scan, "seeds": list(seeds), "figures": rows}
    (out / "compare.json").write_text(json.dumps(record, indent=2) + "\n")
    figure.savefig(out / "compare.png", dpi=100)


if __name__ == "__main__":
  errors.run("python -m data_prep.phantom.compare", main, define_flags)
