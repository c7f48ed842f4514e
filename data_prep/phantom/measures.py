"""What can be measured alike on a real scan and on a phantom.

Arrays are [D, H, W] in HU or bool; lengths in mm. A measure that finds
nothing to be measured returns NaN.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph
from scipy.special import ndtr
from skimage.morphology import skeletonize

from data_prep.volume import Grid

# Of fat in CT: Kvist et al., Am J Clin Nutr 1988;48:1351.
FAT_HU = (-190.0, -30.0)
LUNG_HU = (-980.0, -500.0)
# What is in a lung and brighter is a vessel, a bronchus' wall or a septum.
_IN_LUNG_HU = -400.0
_NAN = float("nan")
# 10 to 90 % of a step that a Gaussian of standard deviation 1 has blurred.
_WIDTH_PER_SIGMA = 2.5631
_NEIGHBOURS = np.argwhere(np.ones((3, 3, 3), bool))[14:] - 1


def median(values: np.ndarray) -> float:
  """Returns the median, NaN of nothing."""
  return float(np.median(values)) if np.size(values) else _NAN


def equivalent_mm(area_mm2: float) -> float:
  """Returns the diameter of the circle of that area."""
  return float(2 * np.sqrt(area_mm2 / np.pi))


def shrink(mask: np.ndarray, spacing: tuple, by_mm: float) -> np.ndarray:
  """Returns the voxels of a mask farther than `by_mm` from its surface.

  The edge of the scan counts as surface, too: what lies beyond is unknown.
  """
  out = np.zeros_like(mask, bool)
  box = _bounds(mask)
  if box is not None:
    part = np.pad(mask[box], 1)
    inner = ndimage.distance_transform_edt(part, sampling=spacing)
    # The surface is half a voxel before the first voxel outside.
    inner -= min(spacing) / 2
    out[box] = (inner > by_mm)[1:-1, 1:-1, 1:-1]
  return out


def grow(mask: np.ndarray, spacing: tuple, by_mm: float) -> np.ndarray:
  """Returns the voxels nearer than `by_mm` to a voxel of a mask."""
  out = np.zeros_like(mask, bool)
  box = _bounds(mask, np.ceil(by_mm / np.array(spacing)).astype(int) + 1)
  if box is not None:
    away = ndimage.distance_transform_edt(~mask[box], sampling=spacing)
    out[box] = away <= by_mm
  return out


def box_share(
  hu: np.ndarray,
  grid: Grid,
  center_mm: np.ndarray,
  box_mm: float,
  between_hu: tuple[float, float] = FAT_HU,
) -> float:
  """Returns the share of a cube's voxels whose HU lie between two.

  Args:
    hu: [D, H, W].
    grid: where it lies.
    center_mm: LPS mm of the cube's middle.
    box_mm: its side; what is outside of the scan does not count.
    between_hu: lowest and highest.
  """
  center = grid.to_index(center_mm)
  half = box_mm / 2 / np.array(grid.spacing)
  low = np.maximum(np.rint(center - half), 0).astype(int)
  high = np.maximum(np.rint(center + half), 0).astype(int)
  part = hu[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
  if not part.size:
    return _NAN
  return float(((part >= between_hu[0]) & (part <= between_hu[1])).mean())


# Noise.


def rois(
  mask: np.ndarray, spacing: tuple, side_mm: float
) -> list[tuple[int, int, int, int]]:
  """Returns squares that lie in a mask, one a component of each slice.

  Args:
    mask: [D, H, W] bool.
    spacing: mm along D, H, W; H and W alike.
    side_mm: of the squares, rounded to voxels.

  Returns:
    (slice, first row, first column, voxels along a side) of each.
  """
  side = max(int(round(side_mm / spacing[1])), 2)
  found = []
  for k in range(mask.shape[0]):
    labels, count = ndimage.label(mask[k])
    for number, box in enumerate(ndimage.find_objects(labels), 1):
      rows, columns = (s.stop - s.start for s in box)
      if min(rows, columns) < side:
        continue
      part = np.pad(labels[box] == number, 1)
      # The square about the voxel that is deepest inside, by city blocks'
      # larger step, is the largest one.
      inner = ndimage.distance_transform_cdt(part, "chessboard")
      at = np.unravel_index(inner.argmax(), inner.shape)
      if 2 * inner.max() - 1 >= side:
        first = [box[a].start + at[a] - 1 - side // 2 for a in (0, 1)]
        found.append((k, *map(int, first), side))
  return found


def _patches(hu, squares) -> np.ndarray:
  """Returns the squares' HU without their planes, [N, side, side]."""
  side = squares[0][3]
  at = np.linspace(-1, 1, side)
  y, x = np.meshgrid(at, at, indexing="ij")
  basis = np.stack([np.ones_like(x), x, y], -1)
  basis, _ = np.linalg.qr(basis.reshape(side * side, 3))
  cut = np.stack([hu[k, i : i + n, j : j + n] for k, i, j, n in squares])
  flat = cut.reshape(len(squares), -1).astype(float)
  flat -= flat @ basis @ basis.T
  return flat.reshape(-1, side, side)


def noise_sd(hu: np.ndarray, squares: list) -> float:
  """Returns the standard deviation of noise in HU.

  Of every square, a plane is taken away (so that a slow gradient of contrast is
  no noise); the median over squares passes over those
  with a flap or a stent.

  Args:
    hu: [D, H, W].
    squares: of `rois`.
  """
  if not squares:
    return _NAN
  rest = _patches(hu, squares)
  freedom = max(rest[0].size - 3, 1)
  return median(np.sqrt((rest**2).sum((1, 2)) / freedom))


def noise_spectrum(
  hu: np.ndarray, squares: list, mm: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the noise power spectrum in the axial plane.

  Squares without their planes, Fourier transformed, averaged and taken
  around circles (ICRU Report 87; Boedeker et al., Phys Med Biol 2007;52:4047).
  Squares much noisier than the others are left out. With its plane, a square
  loses some of what is slower than 1 over its side: the mean comes out high
  for coarse noise, alike on scan and phantom.

  Args:
    hu: [D, H, W].
    squares: of `rois`.
    mm: between voxels in the plane.

  Returns:
    (frequencies in 1/mm up to Nyquist's, power in HU2 mm2); both empty where
    there is no square.
  """
  if not squares:
    return np.zeros(0), np.zeros(0)
  rest = _patches(hu, squares)
  level = rest.std((1, 2))
  rest = rest[level <= 1.5 * np.median(level)]
  side, fine = rest.shape[1], 64
  power = np.abs(np.fft.fft2(rest, (fine, fine))) ** 2
  power = power.mean(0) * mm * mm / side**2
  frequency = np.fft.fftfreq(fine, mm)
  radius = np.hypot(frequency[:, None], frequency[None])
  step = frequency[1]
  ring = np.rint(radius / step).astype(int).ravel()
  sums = np.bincount(ring, power.ravel())
  counts = np.bincount(ring)
  last = fine // 2
  return np.arange(1, last + 1) * step, (sums / counts)[1 : last + 1]


def spectrum_frequencies(
  frequency: np.ndarray, power: np.ndarray
) -> tuple[float, float]:
  """Returns a spectrum's peak and mean frequency in 1/mm.

  The mean is over the plane of frequencies, where a ring is the longer, the
  farther out it lies; the peak is of the profile.

  Args:
    frequency: of `noise_spectrum`.
    power: likewise.
  """
  if not len(power) or power.sum() <= 0:
    return _NAN, _NAN
  smooth = ndimage.gaussian_filter1d(power, 1.5)
  peak = float(frequency[smooth.argmax()])
  return peak, float(np.average(frequency, weights=frequency * power))


# Edges.


def edge_width(
  hu: np.ndarray,
  mask: np.ndarray,
  spacing: tuple,
  *,
  least_hu: float,
  reach_mm: float = 5.0,
  near: np.ndarray | None = None,
  most: int = 3000,
) -> float:
  """Returns the 10 to 90 % width in mm of the fall at a mask's surface.

  Along the normals of the surface, from inside to outside, a blurred step is
  fitted to the HU by least squares; the median over the profiles that are one
  (more than 90 % of their variance explained, a fall of `least_hu` or more).

  Args:
    hu: [D, H, W].
    mask: [D, H, W] bool, brighter than what is outside.
    spacing: mm along D, H, W.
    least_hu: smaller falls do not count.
    reach_mm: length of a profile to either side.
    near: bool [D, H, W]; only the surface in it.
    most: so many profiles at most.
  """
  surface = mask & ~ndimage.binary_erosion(mask, border_value=1)
  if near is not None:
    surface &= near
  index = np.argwhere(surface)
  if not len(index):
    return _NAN
  if len(index) > most:
    index = index[np.linspace(0, len(index) - 1, most).astype(int)]
  box = _bounds(
    surface, np.ceil((reach_mm + 5) / np.array(spacing)).astype(int)
  )
  index = index - [part.start for part in box]
  soft = ndimage.gaussian_filter(
    mask[box].astype(np.float32), 2.0 / np.array(spacing), mode="nearest"
  )
  normal = -np.stack(
    [
      ndimage.map_coordinates(np.gradient(soft, mm, axis=a), index.T, order=1)
      for a, mm in enumerate(spacing)
    ],
    -1,
  )
  normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
  way = np.arange(-reach_mm, reach_mm + 1e-6, min(spacing) / 3)
  points = index[:, None] + way[:, None] * (normal / spacing)[:, None]
  shape = np.array(soft.shape)
  inside = ((points >= 0) & (points <= shape - 1)).all((1, 2))
  if not inside.any():
    return _NAN
  values = ndimage.map_coordinates(
    hu[box].astype(np.float32),
    points[inside].reshape(-1, 3).T,
    order=3,
    mode="nearest",
  )
  return _fit_edges(way, values.reshape(-1, len(way)), least_hu)


def _fit_edges(way, values, least_hu) -> float:
  """Returns the median 10 to 90 % width of falls along the last axis."""
  centers = np.arange(-2.5, 2.51, 0.25)
  sigmas = np.geomspace(0.25, 3.0, 150)
  steps = ndtr((centers[:, None, None] - way) / sigmas[:, None])
  steps = steps.reshape(-1, len(way))
  steps -= steps.mean(1, keepdims=True)
  size = np.linalg.norm(steps, axis=1, keepdims=True)
  rest = values - values.mean(1, keepdims=True)
  total = np.linalg.norm(rest, axis=1)
  # The best fit is the step that explains most.
  match = rest @ (steps / size).T
  best = match.argmax(1)
  found = match[np.arange(len(rest)), best]
  fall = found / size[best, 0]
  good = (found**2 > 0.9 * total**2) & (fall >= least_hu)
  sigma = sigmas[best % len(sigmas)][good]
  # At the ends of the range it is no step that was fitted.
  sigma = sigma[(sigma > sigmas[0]) & (sigma < sigmas[-1])]
  return median(sigma) * _WIDTH_PER_SIGMA


# Regions that HU alone show.


def lungs(hu: np.ndarray, spacing: tuple) -> np.ndarray:
  """Returns the lungs with the vessels in them, bool [D, H, W].

  The largest dark regions inside the body, closed over what is up to 12 mm
  wide.

  Args:
    hu: [D, H, W].
    spacing: mm along D, H, W.
  """
  dark = (hu > LUNG_HU[0]) & (hu < LUNG_HU[1])
  dark = ndimage.binary_opening(dark, iterations=2)
  # Air around the body has no noise or much darker HU, and touches the edge.
  labels, count = ndimage.label(dark)
  sizes = np.bincount(labels.ravel(), minlength=count + 1) * np.prod(spacing)
  sizes[0] = 0
  keep = (sizes > 50e3)[labels]
  if not keep.any():
    return keep
  closed = ~grow(~grow(keep, spacing, 6.0), spacing, 6.0)
  return closed | keep


def vessel_share(hu: np.ndarray, lung: np.ndarray, spacing: tuple) -> float:
  """Returns the share of lung voxels above -400 HU, 5 mm from its surface."""
  inner = shrink(lung, spacing, 5.0)
  return float((hu[inner] > _IN_LUNG_HU).mean()) if inner.any() else _NAN


def mode(values: np.ndarray, low: float, high: float) -> float:
  """Returns where a histogram between two HU peaks, smoothed over 10 HU."""
  values = values[(values >= low) & (values <= high)]
  if values.size < 50:
    return _NAN
  edges = np.arange(low, high + 2, 2)
  counts = np.histogram(values, edges)[0].astype(float)
  smooth = ndimage.gaussian_filter1d(counts, 5, mode="nearest")
  return float(edges[smooth.argmax()] + 1)


# Tubes: the aorta, the coronary arteries.


@dataclasses.dataclass(frozen=True, eq=False)
class Tree:
  """The skeleton of a mask.

  Attributes:
    length_mm: in sum, of the shortest tree through its voxels.
    radius_mm: [N] at every voxel, to the centre of the nearest voxel outside.
    ends: how many voxels have one neighbour.
    parts: how many are not connected.
  """

  length_mm: float
  radius_mm: np.ndarray
  ends: int
  parts: int


def skeleton_graph(
  mask: np.ndarray, spacing: tuple
) -> tuple[np.ndarray, sparse.csr_matrix]:
  """Returns (voxels [N, 3] of the skeleton, shortest tree [N, N] in mm)."""
  thin = skeletonize(mask)
  index = np.argwhere(thin)
  number = np.full(np.array(thin.shape) + 1, -1)
  number[tuple(index.T)] = np.arange(len(index))
  rows, columns, lengths = [], [], []
  for step in _NEIGHBOURS:
    # -1 reads the row beyond the last, which is empty.
    other = number[tuple((index + step).T)]
    first = np.flatnonzero(other >= 0)
    rows.append(first)
    columns.append(other[first])
    lengths.append(np.full(len(first), np.linalg.norm(step * spacing)))
  joined = (np.concatenate(rows), np.concatenate(columns))
  graph = sparse.coo_matrix(
    (np.concatenate(lengths), joined), shape=(len(index),) * 2
  )
  return index, csgraph.minimum_spanning_tree(graph.tocsr())


def measure_tree(mask: np.ndarray, spacing: tuple, least_mm3=20.0) -> Tree:
  """Measures the skeleton (Lee 1994) of a mask of vessels.

  Args:
    mask: [D, H, W] bool.
    spacing: mm along D, H, W.
    least_mm3: smaller components are left out.
  """
  labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
  sizes = np.bincount(labels.ravel(), minlength=count + 1) * np.prod(spacing)
  sizes[0] = -1
  mask = (sizes >= least_mm3)[labels]
  box = _bounds(mask)
  if box is None:
    return Tree(0.0, np.zeros(0), 0, 0)
  part = np.pad(mask[box], 1)
  index, tree = skeleton_graph(part, spacing)
  inner = ndimage.distance_transform_edt(part, sampling=spacing)
  degree = np.diff((tree + tree.T).tocsr().indptr)
  return Tree(
    float(tree.sum()),
    inner[tuple(index.T)],
    int((degree == 1).sum()),
    int(csgraph.connected_components(tree, directed=False)[0]),
  )


def turning(points: np.ndarray, step_mm: float = 1.0) -> float:
  """Returns how much a line turns, in degrees a mm of its length.

  The angles between the steps of a line that is resampled every `step_mm`,
  in sum, by its length: the mean curvature.

  Args:
    points: [N, 3] mm.
    step_mm: length of the steps.
  """
  line = resample(points, step_mm)
  if len(line) < 4:
    return _NAN
  way = np.diff(line, axis=0)
  way /= np.linalg.norm(way, axis=1, keepdims=True)
  cosine = np.clip((way[:-1] * way[1:]).sum(1), -1, 1)
  return float(np.degrees(np.arccos(cosine)).sum() / ((len(way) - 1) * step_mm))


def mean_turning(lines: Iterable[np.ndarray]) -> float:
  """Returns the mean of `turning` over lines [N, 3+], by their length."""
  found = [(turning(line[:, :3]), len(resample(line, 1.0))) for line in lines]
  found = np.array([pair for pair in found if np.isfinite(pair[0])])
  return (
    float(np.average(found[:, 0], weights=found[:, 1])) if len(found) else _NAN
  )


def resample(points: np.ndarray, step_mm: float) -> np.ndarray:
  """Returns points [M, K] every `step_mm` of a line [N, K], x y z first."""
  points = np.asarray(points, float)
  steps = np.linalg.norm(np.diff(points[:, :3], axis=0), axis=1)
  points = points[np.concatenate([[True], steps > 0])]
  arc = np.concatenate([[0.0], np.cumsum(steps[steps > 0])])
  at = np.arange(0, arc[-1] + 1e-9, step_mm)
  return np.column_stack([np.interp(at, arc, column) for column in points.T])


@dataclasses.dataclass(frozen=True, eq=False)
class Sections:
  """Cross-sections of a tube at right angles to its middle line.

  Attributes:
    points: [N, 3] LPS mm along the line.
    way: [N, 3] unit tangents.
    diameter_mm: [N] equivalent diameters; NaN where the edge of the scan
      cuts the section.
  """

  points: np.ndarray
  way: np.ndarray
  diameter_mm: np.ndarray


def sections(mask: np.ndarray, grid: Grid, step_mm: float = 3.0) -> Sections:
  """Cuts the tubes of a mask, such as the aorta, every few mm.

  The middle line is the longest path through the skeleton of every component
  above 5 mL, smoothed over 5 mm; 6 mm at either end, where the ends of a mask
  are cut in any direction, are left out.

  Args:
    mask: [D, H, W] bool.
    grid: where it lies.
    step_mm: between sections.
  """
  soft = ndimage.gaussian_filter(
    mask.astype(np.float32), 1.5 / np.array(grid.spacing)
  )
  labels, count = ndimage.label(soft > 0.5)
  sizes = np.bincount(labels.ravel(), minlength=count + 1)
  found = []
  for number in range(1, count + 1):
    if sizes[number] * np.prod(grid.spacing) < 5e3:
      continue
    line = _middle_line(labels == number, grid.spacing)
    line = grid.to_mm(line)
    line = ndimage.gaussian_filter1d(line, 4, axis=0, mode="nearest")
    line = resample(line, step_mm)
    margin = int(6 / step_mm)
    if len(line) > 2 * margin + 2:
      way = np.gradient(line, axis=0)
      way /= np.linalg.norm(way, axis=1, keepdims=True)
      keep = slice(margin, len(line) - margin)
      found.append((line[keep], way[keep]))
  if not found:
    return Sections(np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0))
  points, way = (np.concatenate(parts) for parts in zip(*found, strict=True))
  width = np.array(
    [_section(mask, grid, *at) for at in zip(points, way, strict=True)]
  )
  return Sections(points, way, width)


def _middle_line(mask, spacing) -> np.ndarray:
  """Returns the voxels [N, 3] of the longest path through a skeleton."""
  box = _bounds(mask)
  index, tree = skeleton_graph(np.pad(mask[box], 1), spacing)
  both = tree + tree.T
  start = 0
  for _ in range(2):  # From anywhere to one end, from there to the other.
    away, before = csgraph.dijkstra(
      both, indices=start, return_predecessors=True
    )
    away[~np.isfinite(away)] = -1
    end, start = start, int(away.argmax())
  path = [start]
  while path[-1] != end and before[path[-1]] >= 0:
    path.append(int(before[path[-1]]))
  corner = np.array([part.start for part in box]) - 1
  return index[path].astype(float) + corner


def _section(mask, grid, point, way, half_mm=40.0, step_mm=1.0) -> float:
  """Returns the equivalent diameter of a mask's section, NaN where cut."""
  across = np.cross(way, np.eye(3)[np.abs(way).argmin()])
  across /= np.linalg.norm(across)
  other = np.cross(way, across)
  at = np.arange(-half_mm, half_mm + step_mm / 2, step_mm)
  plane = point + at[:, None, None] * across + at[None, :, None] * other
  index = grid.to_index(plane)
  inside = ((index >= 0) & (index <= np.array(mask.shape) - 1)).all(-1)
  share = ndimage.map_coordinates(
    mask.astype(np.float32), index.reshape(-1, 3).T, order=1
  ).reshape(inside.shape)
  labels, _ = ndimage.label(share > 0.5)
  middle = labels[len(at) // 2, len(at) // 2]
  if not middle:
    return _NAN
  found = labels == middle
  if (ndimage.binary_dilation(found) & ~inside).any():
    return _NAN
  return equivalent_mm(found.sum() * step_mm**2)


def aorta_parts(cut: Sections) -> dict[str, np.ndarray]:
  """Returns which sections are of which part of the aorta, bool [N].

  Ascending and descending are what runs up or down, in front of and behind
  the middle; the arch is what runs level.

  Args:
    cut: sections of the aorta.
  """
  front = cut.points[:, 1]
  middle = (front.min() + front.max()) / 2 if len(front) else 0
  steep = np.abs(cut.way[:, 2]) > 0.7
  return {
    "ascending": steep & (front <= middle),
    "arch": ~steep,
    "descending": steep & (front > middle),
  }


def aorta_calibres(cut: Sections) -> dict[str, float]:
  """Returns the median diameter of every part of the aorta in mm."""
  width = cut.diameter_mm
  return {
    name: median(width[part & np.isfinite(width)])
    for name, part in aorta_parts(cut).items()
  }


def _bounds(mask, margin=0):
  """Returns slices around the True voxels, or None."""
  if not mask.any():
    return None
  margin = np.broadcast_to(margin, mask.ndim)
  box = ndimage.find_objects(mask.astype(np.uint8))[0]
  return tuple(
    slice(max(part.start - m, 0), min(part.stop + m, n))
    for part, m, n in zip(box, margin, mask.shape, strict=True)
  )
