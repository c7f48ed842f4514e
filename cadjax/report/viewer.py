"""An interactive three-plane viewer that opens offline, made by nilearn."""

import re
import warnings
from collections.abc import Sequence

import matplotlib.colors
import numpy as np

from data_prep import geometry
from data_prep.volume import Grid, Volume, to_nifti

# A side of more voxels makes a page of tens of megabytes.
LONGEST = 128
# Below this share of its maximum a map is transparent.
FAINT = 0.15


def heat_viewer(
  volume: Volume,
  heat: np.ndarray,
  cut_mm: Sequence[float],
  *,
  window_hu: tuple[float, float],
) -> str:
  """Returns a page that shows a heat map over a scan.

  Args:
    volume: [D, H, W] HU.
    heat: [D, H, W] in [0, 1] on the same grid.
    cut_mm: LPS mm (x, y, z) where the planes cross at first.
    window_hu: black and white.

  Returns:
    HTML that holds its data and scripts; it asks for nothing else.
  """
  return _viewer(
    volume,
    heat.astype(np.float32),
    cut_mm,
    window_hu,
    cmap="inferno",
    vmax=1.0,
    threshold=FAINT,
    order="linear",
    colorbar=True,
  )


def mask_viewer(
  volume: Volume,
  mask: np.ndarray,
  colors: Sequence[str],
  cut_mm: Sequence[float],
  *,
  window_hu: tuple[float, float],
) -> str:
  """Returns a page that shows labels over a scan; see `heat_viewer`.

  Args:
    volume: [D, H, W] HU.
    mask: uint8 [D, H, W] on the same grid, 0 transparent.
    colors: of the labels 1, 2, ...
    cut_mm: LPS mm where the planes cross at first.
    window_hu: black and white.
  """
  # Label 0 has a colour, too, that is never seen.
  cmap = matplotlib.colors.ListedColormap(["#000000", *colors])
  return _viewer(
    volume,
    mask,
    cut_mm,
    window_hu,
    cmap=cmap,
    vmax=float(len(colors)),
    threshold=0.5,
    order="majority",
    colorbar=False,
  )


def _viewer(
  volume, overlay, cut_mm, window_hu, *, cmap, vmax, threshold, order, colorbar
) -> str:
  grid = _shown(volume.grid)
  low, high = window_hu
  hu = geometry.resample(
    volume.hu, volume.grid, grid, order="linear", fill=int(low)
  )
  gray = np.clip((hu.astype(np.float32) - low) / (high - low), 0, 1)
  gray = to_nifti(gray, grid)
  over = geometry.resample(overlay, volume.grid, grid, order=order, fill=0)
  over = to_nifti(over.astype(np.float32), grid)
  with warnings.catch_warnings():
    # nilearn's imports and defaults warn of what its next versions change.
    warnings.simplefilter("ignore")
    from nilearn import plotting

    view = plotting.view_img(
      over,
      bg_img=gray,
      # nilearn's mm run to the right and to the front.
      cut_coords=[-cut_mm[0], -cut_mm[1], cut_mm[2]],
      cmap=cmap,
      vmin=0.0,
      vmax=vmax,
      symmetric_cmap=False,
      threshold=threshold,
      resampling_interpolation="nearest",
      black_bg=True,
      dim=0,
      opacity=0.6,
      radiological=True,
      colorbar=colorbar,
      width_view=900,
    )
  # The one thing that nilearn's page would fetch.
  return re.sub(r"<link[^>]*favicon[^>]*>", "", view.html)


def _shown(grid: Grid) -> Grid:
  """Returns a grid of isotropic voxels over the same box, small enough."""
  extent = np.array(grid.extent_mm)
  spacing = max(extent.max() / LONGEST, min(grid.spacing))
  shape = np.maximum(np.rint(extent / spacing), 1).astype(int)
  first = (shape - 1) / 2 * spacing
  origin = grid.center_mm - grid.direction @ first
  return Grid(tuple(shape), (spacing,) * 3, origin, grid.direction)
