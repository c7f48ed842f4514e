"""The coronary tree as a picture: vessels, evidence along them, findings."""

from collections.abc import Sequence

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy import ndimage

from cadjax.findings import Finding
from cadjax.vessels import VesselTree

# Name: LPS axis to the right of the page, and the letters at its ends.
VIEWS = {"from the front": (0, "R", "L"), "from the left": (1, "A", "P")}
CMAP = "YlOrRd"
GREY = "#9aa5b1"


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
  figure = Figure(figsize=(9, 4.6), dpi=130, layout="constrained")
  panels = figure.subplots(1, 2, sharey=True)
  lines = None
  for ax, (view, (axis, left, right)) in zip(
    panels, VIEWS.items(), strict=True
  ):
    if aorta is not None and aorta.any():
      _shadow(ax, tree, aorta, axis)
    lines = _branches(ax, tree, heat, axis) or lines
    _numbers(ax, findings, axis)
    ax.set_title(f"{view}  ({left} left, {right} right)", fontsize=10)
    ax.set_aspect("equal")
    ax.autoscale_view()
    ax.set_xlabel("mm")
    ax.tick_params(labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
  panels[0].set_ylabel("mm, superior at the top")
  if lines is not None:
    bar = figure.colorbar(lines, ax=panels, shrink=0.7, pad=0.01)
    bar.set_label("heat map on the vessel", fontsize=9)
  return figure


def _branches(ax, tree: VesselTree, heat: np.ndarray, axis: int):
  """Draws every branch; returns what a colour bar is made for."""
  lines = None
  for branch in tree.branches:
    points = branch.course_mm[max(branch.free - 1, 0) :]
    if len(points) < 2:
      continue
    flat = points[:, [axis, 2]]
    index = np.rint(tree.to_index(points)).astype(int)
    index = np.clip(index, 0, np.array(heat.shape) - 1)
    values = heat[tuple(index.T)]
    radius = np.nanmedian(branch.radius_mm)
    width = 2.2 * (radius if np.isfinite(radius) else 1.0)
    # Grey below, so that a vessel without evidence can be seen.
    ax.plot(*flat.T, color=GREY, lw=width + 1.2, solid_capstyle="round")
    lines = LineCollection(
      np.stack([flat[:-1], flat[1:]], 1),
      array=np.nan_to_num(values[1:]),
      cmap=CMAP,
      norm=Normalize(0, 1),
      linewidths=width,
    )
    ax.add_collection(lines)
    ax.text(
      *flat[len(flat) // 2], f" {branch.name}", fontsize=7, color="#1b2430"
    )
  return lines


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
