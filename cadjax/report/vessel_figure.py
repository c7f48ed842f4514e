"""A vessel on one page: straightened, stretched and cut across.

Everything is in true mm: along the centreline from the ostium, and across it.
All views but the cross-sections have one scale.
"""

import dataclasses
from collections.abc import Sequence

import matplotlib.axes
import matplotlib.figure
import matplotlib.patheffects
import numpy as np

from cadjax.link.findings import Finding
from cadjax.report import planes
from cadjax.vessels import centrelines, reformat
from cadjax.vessels.stenosis import Calibre
from cadjax.vessels.tree import Branch, VesselTree

_HALF_MM = 10.0
_SECTION_MM = 7.0
_MOST_SECTIONS = 5
_INK, _FAINT = "#f5f5f5", "#999999"
_MARK, _WALL, _LUMEN = "#6cc5f0", "#f2c14e", "#e8837a"
_OUTLINE = [matplotlib.patheffects.withStroke(linewidth=2, foreground="black")]
# Inches.
_LONGEST, _SCALES = 9.5, (0.06, 0.12)
_LEFT, _TOP, _GAP, _CURVE, _SECTION = 0.75, 0.75, 0.5, 1.4, 1.35


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
  """What is drawn along vessels.

  Attributes:
    hu: [D, H, W] of the scan.
    affine: [4, 4] of `hu`, (d, h, w, 1) to LPS mm.
    heat: [D, H, W], at least 0, or None.
    heat_affine: [4, 4] of `heat`.
    window_hu: shown from black to white.
  """

  hu: np.ndarray
  affine: np.ndarray
  heat: np.ndarray | None = None
  heat_affine: np.ndarray | None = None
  window_hu: tuple[float, float] = planes.CTCA_WINDOW_HU


def vessel_figure(
  tree: VesselTree,
  number: int,
  scene: Scene,
  findings: Sequence[Finding] = (),
  calibres: Sequence[Calibre] | None = None,
) -> matplotlib.figure.Figure:
  """Draws one branch with all that leads to it from the ostium.

  From top to bottom: the straightened view at 0 and 90 degrees, the first
  again under the heat map, the diameter of vessel and lumen, and
  cross-sections where findings are; on the right the stretched view. Findings
  on this way are marked by their rank; a dotted line is the branch's take-off
  from its parent. The heat map's colours run to its maximum in the whole
  scan.

  Args:
    tree: the vessels.
    number: of the branch.
    scene: the image and the map.
    findings: all of the scan, by rank.
    calibres: the lumen, of `stenosis.calibres`; left out if None.
  """
  branch = tree.branches[number]
  frames = reformat.make_frames(branch.course_mm)
  length = frames.way_mm[-1]
  scale = float(np.clip(_LONGEST / length, *_SCALES))
  across = reformat.stretched(frames)
  strips = [(0, False), (90, False)]
  strips += [(0, True)] if scene.heat is not None else []
  wide, high = length * scale, 2 * _HALF_MM * scale
  side = np.array([np.ptp(across.columns_mm), np.ptp(across.rows_mm)]) * scale
  sections = _SECTION + 2 * _GAP
  below = _CURVE + 2 * _GAP + sections
  height = _TOP + max(len(strips) * (high + _GAP) + below, side[1] + 2 * _GAP)
  marks = _marks(tree, number, findings)
  places = _places(marks, length)
  wide = max(wide, len(places) * (_SECTION + _GAP) - _GAP)
  width = _LEFT + wide + 2 * _GAP + side[0] + _GAP
  figure = matplotlib.figure.Figure((width, height), 110, facecolor="black")
  figure.suptitle(_title(branch), color=_INK, size=12, y=1 - 0.22 / height)

  def add(x: float, top: float, w: float, h: float) -> matplotlib.axes.Axes:
    """Adds axes; inches from the upper left corner."""
    box = (x / width, 1 - (top + h) / height, w / width, h / height)
    ax = figure.add_axes(box, facecolor="black")
    ax.tick_params(colors=_INK, labelsize=8)
    ax.spines[:].set_color("#444444")
    return ax

  top = _TOP
  for angle, overlay in strips:
    ax = add(_LEFT, top, length * scale, high)
    _strip(ax, frames, scene, angle, overlay)
    _mark_along(ax, branch, marks)
    top += high + _GAP
  ax = add(_LEFT, top, length * scale, _CURVE)
  _diameter(ax, tree, number, calibres)
  _mark_along(ax, branch, marks)
  top += _CURVE + 2 * _GAP
  for k, (label, at) in enumerate(places):
    ax = add(_LEFT + k * (_SECTION + _GAP), top, _SECTION, _SECTION)
    where = reformat.cross_section(frames, at, _SECTION_MM)
    half = where.columns_mm[-1]
    _show(ax, scene, where, (-half, half, half, -half))
    ax.set_title(label, color=_MARK if marks else _INK, size=9)
  ax = add(_LEFT + wide + 2 * _GAP, _TOP, *side)
  _stretched(ax, across, scene, marks)
  return figure


def _title(branch: Branch) -> str:
  name = f"{branch.name} (sureness of the name: {branch.sureness})"
  length = branch.course_distance_mm[-1]
  if np.isnan(length):
    return f"{name}  ·  on no ostium: mm from its wider end"
  start = branch.distance_mm[0]
  own = f", its own from {start:.0f} mm on" if branch.start else ""
  return f"{name}  ·  {length:.0f} mm from the ostium to its end{own}"


def _marks(tree, number, findings) -> list[tuple[int, float, Finding]]:
  """Returns (rank, mm along the course, finding) on a branch's way."""
  course = tree.branches[number].course_mm
  on, k = set(), number
  while k >= 0:
    on.add(tree.branches[k].name)
    k = tree.branches[k].parent
  marks = []
  for rank, finding in enumerate(findings, 1):
    away = np.linalg.norm(course - finding.position_mm, axis=1)
    # What lies on a parent beyond the take-off is not on this way.
    if finding.vessel in on and away.min() <= _HALF_MM / 2:
      at = centrelines.arc_length(course)[away.argmin()]
      marks.append((rank, float(at), finding))
  return marks


def _places(marks, length) -> list[tuple[str, float]]:
  """Returns the titles and places of the cross-sections."""
  if marks:
    return [(f"{rank}: {at:.0f} mm", at) for rank, at, _ in marks][
      :_MOST_SECTIONS
    ]
  return [(f"{s * length:.0f} mm", s * length) for s in (0.1, 0.3, 0.5, 0.7)]


def _strip(ax, frames, scene, angle, overlay) -> None:
  where = reformat.straightened(frames, angle, _HALF_MM)
  low, high = where.columns_mm[[0, -1]]
  turned = dataclasses.replace(where, points_mm=where.points_mm.swapaxes(0, 1))
  _show(ax, scene, turned, (0, where.rows_mm[-1], high, low), overlay)
  ax.set_ylabel("mm across", color=_INK, size=8)
  what = f"straightened, {angle}°" + (", heat map" if overlay else "")
  ax.set_title(what, color=_INK, size=9, loc="left")


def _show(ax, scene, where, extent, overlay=False) -> None:
  style = {"extent": extent, "aspect": "auto", "interpolation": "bilinear"}
  hu = reformat.sample(scene.hu, scene.affine, where, outside=-1024)
  low, high = scene.window_hu
  ax.imshow(hu, cmap="gray", vmin=low, vmax=high, **style)
  if overlay:
    heat = reformat.sample(scene.heat, scene.heat_affine, where, outside=0)
    top = float(np.nanmax(scene.heat)) or 1.0
    share = np.clip(np.nan_to_num(heat) / top, 0, 1)
    alpha = 0.65 * share**0.5
    ax.imshow(share, cmap="inferno", vmin=0, vmax=1, alpha=alpha, **style)


def _diameter(ax, tree, number, calibres) -> None:
  branch = tree.branches[number]
  course = branch.course_mm
  way = centrelines.arc_length(course)
  labelled = False
  k = number
  while k >= 0:
    line = tree.branches[k].points_mm
    away = np.linalg.norm(line[:, None] - course, axis=2)
    # Only what of a parent lies on this way.
    on = away.min(1) < 1.5
    at = way[away.argmin(1)][on]
    name = {} if labelled else {"label": "vessel"}
    outer = 2 * tree.branches[k].radius_mm[on]
    ax.plot(at, outer, color=_WALL, lw=1.2, **name)
    if calibres is not None:
      one = calibres[k]
      name = {} if labelled else {"label": "lumen"}
      ax.plot(at, 2 * one.radius_mm[on], color=_LUMEN, lw=1.6, **name)
      name = {} if labelled else {"label": "lumen, reference"}
      reference = 2 * one.reference_mm[on]
      ax.plot(at, reference, color=_LUMEN, lw=0.8, ls="--", **name)
    labelled = True
    k = tree.branches[k].parent
  ax.set_xlim(0, way[-1])
  ax.set_ylim(bottom=0)
  ax.set_ylabel("diameter, mm", color=_INK, size=8)
  ax.set_xlabel("mm along the centreline", color=_INK, size=8)
  ax.grid(color="#444444", lw=0.5)
  ax.legend(
    loc="upper right",
    fontsize=7,
    facecolor="black",
    labelcolor=_INK,
    edgecolor="#444444",
  )


def _mark_along(ax, branch, marks) -> None:
  if branch.start:
    at = centrelines.arc_length(branch.course_mm)[branch.start]
    ax.axvline(at, color=_FAINT, ls=":", lw=1)
  for rank, at, _ in marks:
    ax.axvline(at, color=_MARK, ls="--", lw=0.9)
    ax.annotate(
      str(rank),
      (at, 1),
      xycoords=("data", "axes fraction"),
      xytext=(0, 2),
      textcoords="offset points",
      ha="center",
      color=_MARK,
      size=9,
      weight="bold",
      path_effects=_OUTLINE,
    )


def _stretched(ax, where, scene, marks) -> None:
  left, right = where.columns_mm[[0, -1]]
  _show(ax, scene, where, (left, right, where.rows_mm[-1], 0))
  for rank, _, finding in marks:
    away = np.linalg.norm(where.points_mm - finding.position_mm, axis=2)
    row, column = np.unravel_index(away.argmin(), away.shape)
    ax.annotate(
      str(rank),
      (where.columns_mm[column], where.rows_mm[row]),
      xytext=(22, 0),
      textcoords="offset points",
      va="center",
      color=_MARK,
      weight="bold",
      path_effects=_OUTLINE,
      arrowprops={"arrowstyle": "->", "color": _MARK},
    )
  ax.set_title("stretched", color=_INK, size=9, loc="left")
  ax.set_ylabel("mm", color=_INK, size=8)
