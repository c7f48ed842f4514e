"""Three planes of a volume, as a radiologist lays them out.

The patient's right is on the image's left; anterior is on top of the axial
plane, superior on top of the others, anterior on the left of the sagittal.
Pixels are drawn in mm, so a heart keeps its shape on any grid.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.axes
import matplotlib.cm
import matplotlib.colors
import matplotlib.figure
import matplotlib.patches
import matplotlib.patheffects
import numpy as np

from data_prep.volume import Grid, Volume

# Usual for coronary CT: vessels, myocardium and calcium all keep contrast.
CTCA_WINDOW_HU = (-100.0, 700.0)


# plane: axis cut, axis of rows, axis of columns, rows reversed,
# letters at left, right, top and bottom.
_LAYOUT = {
  "axial": (0, 1, 2, False, "RLAP"),
  "coronal": (1, 0, 2, True, "RLSI"),
  "sagittal": (2, 0, 1, True, "APSI"),
}
PLANES = tuple(_LAYOUT)
# What is outlined, bool [D, H, W] or [rows, columns], and in which colour.
Mask = tuple[np.ndarray, str]
# Perceptually uniform; its dark end is where the overlay is transparent.
HEAT = "inferno"
# Full opacity would hide the anatomy; half of the maximum and more has this.
HEAT_OPACITY = 0.6
_OUTLINE = [matplotlib.patheffects.withStroke(linewidth=2, foreground="black")]


@dataclasses.dataclass(frozen=True)
class Panel:
  """One plane, ready to be drawn; mm run right and down from its top left.

  Attributes:
    name: "axial", "coronal" or "sagittal".
    pixels: [rows, columns] HU.
    size_mm: height and width.
    letters: what lies at the left, right, top and bottom.
    cut_mm: (x, y), where the other two planes cross it.
    slice: which slice it is, from 1, and of how many.
    box_mm: (x0, y0, x1, y1) of an outline, or None.
    masks: what is outlined, bool [rows, columns], and in which colour.
    heat: [rows, columns] in [0, 1] to be laid over it, or None.
  """

  name: str
  pixels: np.ndarray
  size_mm: tuple[float, float]
  letters: str
  cut_mm: tuple[float, float]
  slice: tuple[int, int]
  box_mm: tuple[float, float, float, float] | None = None
  masks: tuple[Mask, ...] = ()
  heat: np.ndarray | None = None


def cut(
  volume: Volume,
  plane: str,
  center_mm: Sequence[float],
  *,
  outline: Grid | None = None,
  masks: Sequence[Mask] = (),
  heat: np.ndarray | None = None,
) -> Panel:
  """Cuts one plane of a volume through a point.

  Args:
    volume: [D, H, W] HU.
    plane: one of `PLANES`.
    center_mm: LPS mm (x, y, z); the nearest slice is taken, the outermost
      one if the point lies outside.
    outline: a grid whose bounds are drawn, unless it covers the volume.
    masks: what is to be outlined, bool [D, H, W] on the volume's grid, and in
      which colour.
    heat: [D, H, W] in [0, 1], to be laid over the volume.
  """
  axis, rows, columns, reverse, letters = _LAYOUT[plane]
  shape, spacing = np.array(volume.shape), np.array(volume.spacing)
  center = np.clip(volume.grid.to_index(center_mm), 0, shape - 1)
  index = int(np.rint(center[axis]))

  def section(array: np.ndarray) -> np.ndarray:
    # One axis is gone; the others keep their order, and rows precede columns.
    pixels = array.take(index, axis=axis)
    return pixels[::-1] if reverse else pixels

  def to_mm(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, x = indices[..., rows] + 0.5, indices[..., columns] + 0.5
    y = shape[rows] - y if reverse else y
    return x * spacing[columns], y * spacing[rows]

  x, y = to_mm(center)
  return Panel(
    name=plane,
    pixels=section(volume.hu),
    size_mm=(shape[rows] * spacing[rows], shape[columns] * spacing[columns]),
    letters=letters,
    cut_mm=(float(x), float(y)),
    slice=(index + 1, int(shape[axis])),
    box_mm=_box(volume, outline, to_mm) if outline is not None else None,
    masks=tuple((section(mask), color) for mask, color in masks),
    heat=section(heat) if heat is not None else None,
  )


def _box(volume, outline, to_mm) -> tuple[float, float, float, float] | None:
  corners = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1]), -1).reshape(-1, 3)
  corners = corners * np.array(outline.shape) - 0.5
  indices = volume.grid.to_index(outline.to_mm(corners))
  # Half a voxel of tolerance: a resized field of view has the same bounds.
  inside = (indices > 0).any() and (indices < np.array(volume.shape) - 1).any()
  if not inside or _covers(indices, volume.shape):
    return None
  x, y = to_mm(indices)
  return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def _covers(indices: np.ndarray, shape: tuple[int, int, int]) -> bool:
  low, high = indices.min(0), indices.max(0)
  return bool((low <= 0).all() and (high >= np.array(shape) - 1).all())


def three_planes(
  volume: Volume,
  center_mm: Sequence[float],
  *,
  outline: Grid | None = None,
  masks: Sequence[Mask] = (),
  heat: np.ndarray | None = None,
) -> list[Panel]:
  """Cuts the axial, coronal and sagittal planes; arguments as in `cut`."""
  return [
    cut(volume, name, center_mm, outline=outline, masks=masks, heat=heat)
    for name in PLANES
  ]


def fullest(mask: np.ndarray) -> tuple[int, int, int]:
  """Returns the slice along D, H and W with the most voxels of a mask."""
  return tuple(
    int(mask.sum(tuple(a for a in range(3) if a != axis)).argmax())
    for axis in range(3)
  )


def draw(
  ax: matplotlib.axes.Axes,
  panel: Panel,
  *,
  window_hu: tuple[float, float] = CTCA_WINDOW_HU,
  text_scale: float = 1.0,
) -> None:
  """Draws a panel with its letters, a scale bar and marks of its cuts."""
  height, width = panel.size_mm
  ax.imshow(
    panel.pixels,
    cmap="gray",
    vmin=window_hu[0],
    vmax=window_hu[1],
    extent=(0, width, height, 0),
    interpolation="bilinear",
  )
  if panel.heat is not None:
    ax.imshow(
      heat_rgba(panel.heat), extent=(0, width, height, 0),
      interpolation="bilinear",
    )  # fmt: skip
  ax.set_axis_off()
  for mask, color in panel.masks:
    _draw_mask(ax, panel, mask, color)
  white = {"color": "white", "path_effects": _OUTLINE, "size": 13 * text_scale}
  places = ((0.03, 0.5), (0.97, 0.5), (0.5, 0.97), (0.5, 0.03))
  aligned = (
    ("left", "center"),
    ("right", "center"),
    ("center", "top"),
    ("center", "bottom"),
  )
  for letter, place, (ha, va) in zip(
    panel.letters, places, aligned, strict=True
  ):
    ax.text(
      *place, letter, ha=ha, va=va, transform=ax.transAxes, weight="bold",
      **white,
    )  # fmt: skip
  _scale_bar(ax, height, width, text_scale)
  _cut_marks(ax, panel)
  if panel.box_mm is not None:
    x0, y0, x1, y1 = panel.box_mm
    ax.add_patch(
      matplotlib.patches.Rectangle(
        (x0, y0), x1 - x0, y1 - y0, fill=False, ls="--", ec="#f2c14e", lw=1.2
      )
    )
  # Annotations must not widen the view: its limits are the image's edges.
  ax.set_xlim(0, width)
  ax.set_ylim(height, 0)


def _draw_mask(ax, panel: Panel, mask: np.ndarray, color: str) -> None:
  """Draws the outline half-way between the pixels of a mask and the others."""
  # One pixel of nothing around, so that what meets the edge is closed there.
  padded = np.pad(np.asarray(mask, float), 1)
  if not padded.any():
    return
  height, width = (
    size / count for size, count in zip(panel.size_mm, mask.shape, strict=True)
  )
  rows, columns = (np.arange(n) - 0.5 for n in padded.shape)
  ax.contour(
    columns * width,
    rows * height,
    padded,
    levels=[0.5],
    colors=[color],
    linewidths=1.0,
  )


def heat_rgba(heat: np.ndarray) -> np.ndarray:
  """Colours of a heat map [...] in [0, 1]: [..., 4], opaque where it is hot."""
  rgba = matplotlib.colormaps[HEAT](heat)
  rgba[..., 3] = HEAT_OPACITY * np.clip(heat / 0.5, 0, 1)
  return rgba


def _scale_bar(ax, height: float, width: float, text_scale: float) -> None:
  length = 50.0 if width > 120 else 10.0
  right, y = width * 0.96, height * 0.94
  style = {"color": "white", "path_effects": _OUTLINE}
  ax.plot([right - length, right], [y, y], lw=2.5, **style)
  ax.text(
    right - length / 2, y - height * 0.015, f"{length:.0f} mm",
    ha="center", va="bottom", size=9 * text_scale, **style,
  )  # fmt: skip


def _cut_marks(ax, panel: Panel) -> None:
  x, y = panel.cut_mm
  for low, high in ((0, 0.025), (0.975, 1)):
    ax.axvline(x, low, high, color="#6cc5f0", lw=1.5)
    ax.axhline(y, low, high, color="#6cc5f0", lw=1.5)


def panel_png(panel: Panel, *, longest_px: int = 520) -> bytes:
  """Returns one panel as a PNG; its longer side has `longest_px` pixels."""
  dpi = 100
  height, width = np.array(panel.size_mm) / max(panel.size_mm) * longest_px
  figure = matplotlib.figure.Figure(
    figsize=(width / dpi, height / dpi), dpi=dpi, facecolor="black"
  )
  draw(figure.add_axes((0, 0, 1, 1)), panel, text_scale=1.3)
  return to_png(figure)


def planes_png(
  rows: Mapping[str, Sequence[Panel]],
  title: str,
  *,
  heat_label: str | None = None,
) -> bytes:
  """Returns one PNG with a row of panels for each heading.

  Args:
    rows: heading -> axial, coronal and sagittal panel.
    title: above all.
    heat_label: if given, a colour bar for the panels' heat has it.
  """
  ink = "#f5f5f5"
  figure = matplotlib.figure.Figure(
    figsize=(13, 0.6 + 4.6 * len(rows)), dpi=110, facecolor="black",
    layout="constrained",
  )  # fmt: skip
  # Names of scans may hold a $, which begins a formula.
  figure.suptitle(title, color=ink, size=11, parse_math=False)
  grid = figure.subplots(len(rows), 3, squeeze=False)
  for axes, (heading, panels) in zip(grid, rows.items(), strict=True):
    for ax, panel in zip(axes, panels, strict=True):
      draw(ax, panel)
      number, count = panel.slice
      ax.set_title(
        f"{heading}: {panel.name}, slice {number} of {count}",
        color=ink,
        size=10,
      )
  if heat_label is not None:
    _heat_bar(figure, grid, heat_label, ink)
  return to_png(figure)


def _heat_bar(figure, axes, label: str, ink: str) -> None:
  colours = matplotlib.cm.ScalarMappable(
    matplotlib.colors.Normalize(0, 1), cmap=HEAT
  )
  bar = figure.colorbar(colours, ax=axes, aspect=40, fraction=0.03, pad=0.01)
  bar.set_label(label, color=ink)
  bar.ax.tick_params(colors=ink)
  bar.outline.set_edgecolor(ink)


def to_png(figure: matplotlib.figure.Figure) -> bytes:
  """Returns a figure as a PNG; the same picture gives the same bytes."""
  buffer = io.BytesIO()
  # No software name or date.
  figure.savefig(buffer, format="png", metadata={"Software": None})
  return buffer.getvalue()
