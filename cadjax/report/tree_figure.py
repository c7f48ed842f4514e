"""The coronary tree as a picture: vessels, evidence along them, findings."""

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy import ndimage
from scipy.spatial import distance

from cadjax.link.findings import Finding
from cadjax.vessels.tree import Branch, VesselTree

# Name: LPS axis to the right of the page, and the letters at its ends.
VIEWS = {"from the front": (0, "R", "L"), "from the left": (1, "A", "P")}
CMAP = "YlOrRd"
GREY = "#9aa5b1"
MARGIN_MM = 12.0
ROOM_MM = 8.0  # Between a name and a number or another name.
SHORT = {
  "diagonal or septal of LAD": "D/S",
  "marginal of LCx": "OM",
  "branch of RCA": "R",
}


def tree_figure(
  tree: VesselTree,
  heat: np.ndarray,
  findings: Sequence[Finding],
  *,
  aorta: np.ndarray | None = None,
) -> Figure:
  """Draws the vessels from two sides, coloured by the evidence around them.

  Args:
    tree: the vessels.
    heat: [D, H, W] in [0, 1] on the tree's grid, NaN where not known.
    findings: numbered from 1 in their order.
    aorta: [D, H, W] mask, drawn as a shadow.
  """
  parts = [branch.course_mm for branch in tree.branches]
  parts += [np.array([finding.position_mm]) for finding in findings]
  points = np.concatenate(parts or [np.zeros((1, 3))])
  low, high = points.min(0) - MARGIN_MM, points.max(0) + MARGIN_MM
  wide = [high[axis] - low[axis] for axis, _, _ in VIEWS.values()]
  figure = Figure(figsize=(9.5, 4.4), dpi=130, layout="constrained")
  panels = figure.subplots(1, 2, sharey=True, width_ratios=wide)
  values = [_along(branch, tree, heat) for branch in tree.branches]
  top = max([v.max(initial=0) for v in values], default=0) or 1.0
  norm = Normalize(0, top)
  for ax, (view, (axis, left, right)) in zip(
    panels, VIEWS.items(), strict=True
  ):
    if aorta is not None and aorta.any():
      _shadow(ax, tree, aorta, axis)
    for branch, along in zip(tree.branches, values, strict=True):
      _draw(ax, branch, along, axis, norm)
    _names(ax, tree.branches, findings, axis)
    _numbers(ax, findings, axis)
    if not tree.branches:
      ax.text(
        0.5, 0.5, "no vessel was found", transform=ax.transAxes, ha="center"
      )
    ax.set_title(f"{view}  ({left} left, {right} right)", fontsize=10)
    ax.set(xlim=(low[axis], high[axis]), ylim=(low[2], high[2]), xlabel="mm")
    ax.set_aspect("equal")
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
  panels[0].set_ylabel("mm, superior at the top")
  bar = figure.colorbar(
    ScalarMappable(norm, CMAP), ax=panels, shrink=0.7, pad=0.01
  )
  bar.set_label("heat map on the vessel, share of the map's maximum", size=8)
  return figure


def _along(branch: Branch, tree: VesselTree, heat: np.ndarray) -> np.ndarray:
  """Returns the map at every point of a branch's course; 0 where not known."""
  index = np.rint(tree.to_index(branch.course_mm)).astype(int)
  index = np.clip(index, 0, np.array(heat.shape) - 1)
  return np.nan_to_num(heat[tuple(index.T)])


def _draw(ax, branch: Branch, along: np.ndarray, axis: int, norm) -> None:
  flat = _own(branch, axis)
  if len(flat) < 2:
    return
  known = branch.radius_mm[np.isfinite(branch.radius_mm)]
  width = 2.2 * (np.median(known) if known.size else 1.0)
  # Grey below, so that a vessel without evidence can be seen.
  ax.plot(*flat.T, color=GREY, lw=width + 1.2, solid_capstyle="round")
  lines = LineCollection(
    np.stack([flat[:-1], flat[1:]], 1),
    array=along[1 - len(flat) :],
    cmap=CMAP,
    norm=norm,
    linewidths=width,
  )
  ax.add_collection(lines)


def _names(
  ax, branches: Sequence[Branch], findings: Sequence[Finding], axis: int
) -> None:
  """Writes the vessels' names, away from the numbers and from each other."""
  taken = [np.take(finding.position_mm, [axis, 2]) for finding in findings]
  for branch in branches:
    flat = _own(branch, axis)
    if len(flat) < 2:
      continue
    name = branch.name
    for long, short in SHORT.items():
      name = name.replace(long, short)
    # Side branches end apart from each other, the main vessels do not.
    at = len(flat) - 1 if name != branch.name else len(flat) // 2
    if taken:
      room = distance.cdist(flat, taken).min(1)
      at = at if room[at] >= ROOM_MM else room.argmax()
    taken.append(flat[at])
    ax.annotate(
      name,
      flat[at],
      xytext=(4, -6),
      textcoords="offset points",
      fontsize=7,
      color="#1b2430",
      path_effects=[withStroke(linewidth=2, foreground="white")],
    )


def _own(branch: Branch, axis: int) -> np.ndarray:
  """Returns a branch's course on the page [n, 2], from where it parts."""
  return branch.course_mm[max(branch.free - 1, 0) :][:, [axis, 2]]


def _numbers(ax, findings: Sequence[Finding], axis: int) -> None:
  for number, finding in enumerate(findings, 1):
    x, y = finding.position_mm[axis], finding.position_mm[2]
    ax.plot(x, y, "o", ms=13, mfc="white", mec="#1f5f8b", mew=1.6, zorder=5)
    ax.text(x, y, str(number), ha="center", va="center", fontsize=8, zorder=6)


def _shadow(ax, tree: VesselTree, aorta: np.ndarray, axis: int) -> None:
  """Draws the outline of a mask's projection along the line of sight."""
  # Surface voxels, coarsely: they only have to fill a silhouette.
  step = max(1, int(round(2.0 / np.linalg.norm(tree.affine[:3, 0]))))
  edge = aorta & ~ndimage.binary_erosion(aorta)
  points = tree.to_mm(np.argwhere(edge)[:: step**2])
  ax.scatter(
    points[:, axis], points[:, 2], s=6, color="#e3e7ec", lw=0, zorder=0
  )
