"""Grids, the way onto them and back, and where the heart is."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from data_prep.errors import UserError
from data_prep.geometry import (
  GridSpec,
  back_to_source,
  find_heart,
  mask_to_grid,
  resample,
  target_grid,
  to_grid,
)
from data_prep.volume import Grid, Volume, read_mask, read_volume, write_nifti

STRAIGHT = np.eye(3)[:, ::-1]


def turned(degrees):
  return ndimage_rotation(*np.radians(degrees)) @ STRAIGHT


def ndimage_rotation(a, b, c):
  transform = sitk.Euler3DTransform()
  transform.SetRotation(a, b, c)
  return np.array(transform.GetMatrix()).reshape(3, 3)


def make_grid(shape=(20, 40, 60), spacing=(2.0, 0.8, 0.6), degrees=(0, 0, 0)):
  return Grid(shape, spacing, (-18.0, -150.0, 40.0), turned(degrees))


def centered(hu, spacing, degrees=(0, 0, 0)):
  grid = Grid(hu.shape, spacing, (0, 0, 0), turned(degrees))
  origin = -grid.center_mm
  return Volume(hu, Grid(hu.shape, spacing, origin, grid.direction))


def points_mm(grid):
  """[..., 3] LPS mm of every voxel."""
  return grid.to_mm(np.stack(np.indices(grid.shape), -1))


def smooth_field(grid):
  """A field that linear interpolation reproduces exactly: a plane."""
  return points_mm(grid) @ np.array([2.0, -3.0, 5.0]) + 11


OBLIQUE = [(0, 0, 0), (8, -5, 12)]
SPECS = [
  GridSpec("paper", (32, 16, 24)),
  GridSpec("heart", (32, 16, 24), box_mm=(30, 25, 28)),
  GridSpec("spacing", spacing_mm=(0.9, 1.1, 0.7)),
]


@pytest.mark.parametrize("degrees", OBLIQUE)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)
def test_a_point_in_mm_maps_to_itself(spec, degrees, tmp_path):
  """Through the record's grid, its JSON, and the file of the scan."""
  source = make_grid(degrees=degrees)
  volume = Volume(np.full(source.shape, 40, np.int16), source)
  write_nifti(tmp_path / "a.nii", ramp(source.shape), volume)
  volume = read_volume(tmp_path / "a.nii")
  grid = Grid.from_dict(target_grid(spec, volume).to_dict())
  point = np.random.default_rng(0).uniform(-20, 60, (100, 3))
  there = grid.to_mm(grid.to_index(point))
  back = volume.grid.to_mm(volume.grid.to_index(there))
  np.testing.assert_allclose(back, point, atol=1e-3)


def ramp(shape):
  return (np.arange(np.prod(shape)) % 3000 - 1000).reshape(shape).astype("i2")


def test_paper_keeps_the_field_of_view():
  volume = Volume(ramp((20, 40, 60)), make_grid(degrees=(8, -5, 12)))
  grid = target_grid(GridSpec("paper"), volume)
  assert grid.shape == (256, 128, 128)
  np.testing.assert_allclose(grid.extent_mm, volume.grid.extent_mm)
  np.testing.assert_allclose(grid.center_mm, volume.grid.center_mm)
  np.testing.assert_array_equal(grid.direction, volume.direction)


def test_spacing_keeps_the_center_and_the_spacing():
  volume = Volume(ramp((20, 40, 60)), make_grid())
  spec = GridSpec("spacing", spacing_mm=(1, 0.5, 0.7))
  grid = target_grid(spec, volume)
  assert grid.spacing == (1, 0.5, 0.7)
  assert grid.shape == (40, 64, 51)
  np.testing.assert_allclose(grid.center_mm, volume.grid.center_mm)


def test_heart_box_is_centered_on_the_mask_along_the_patient(tmp_path):
  volume = Volume(ramp((20, 40, 60)), make_grid(degrees=(8, -5, 12)))
  labels = np.zeros(volume.shape, np.uint8)
  labels[4:9, 20:31, 40:47] = 3
  mask = Volume(labels, volume.grid)
  spec = GridSpec("heart", (32, 16, 24), box_mm=(64, 48, 36))
  grid = target_grid(spec, volume, heart_mask=mask)
  np.testing.assert_array_equal(grid.direction, STRAIGHT)
  assert grid.spacing == (2, 3, 1.5)
  expected = volume.grid.to_mm([6, 25, 43])
  np.testing.assert_allclose(grid.center_mm, expected)
  empty = Volume(np.zeros_like(labels), volume.grid, path="m.nii")
  with pytest.raises(UserError, match="m.nii: the heart mask is empty"):
    target_grid(spec, volume, heart_mask=empty)


def test_a_recipe_survives_json_and_refuses_nonsense():
  spec = GridSpec("heart", (32, 16, 24), box_mm=(64, 48, 36))
  assert GridSpec.from_dict(spec.to_dict()) == spec
  for options in (
    {"kind": "round"}, {"shape": (1, 2)}, {"shape": (0, 2, 3)},
    {"spacing_mm": (1, -1, 1)}, {"spacing_mm": (1, 1, 1e-3)},
    {"shape": (10**5, 10**5, 10**5)}, {"spacing_mm": (1, float("nan"), 1)},
    {"box_mm": (1, float("inf"), 1)},
  ):  # fmt: skip
    with pytest.raises(UserError, match="grid"):
      GridSpec(**options)


# Resampling.


@pytest.mark.parametrize("degrees", OBLIQUE)
@pytest.mark.parametrize("size", [0.5, 1.7])
def test_a_plane_is_resampled_exactly(degrees, size):
  """Larger or smaller voxels, rotated or not: values sit at their points."""
  source = make_grid()
  shape = np.maximum(np.rint(np.array(source.extent_mm) / size * 0.4), 2)
  target = Grid(shape.astype(int), (size,) * 3, (0, 0, 0), turned(degrees))
  shift = source.center_mm - target.center_mm
  target = Grid(target.shape, target.spacing, shift, target.direction)
  found = resample(smooth_field(source), source, target, fill=-9999)
  np.testing.assert_allclose(found, smooth_field(target), atol=2e-2)


@pytest.mark.parametrize("degrees", OBLIQUE)
def test_enlarging_equals_scipy(degrees):
  source = make_grid(shape=(10, 20, 30), spacing=(2, 0.8, 0.6))
  array = np.random.default_rng(0).normal(size=source.shape).astype("f4")
  target = make_grid((17, 13, 11), (0.7, 0.6, 0.5), degrees)
  target = Grid(
    target.shape, target.spacing, source.to_mm([2, 4, 6]), target.direction
  )
  index = source.to_index(points_mm(target)).transpose(3, 0, 1, 2)
  inside = np.all(
    [(i > 0) & (i < n - 1) for i, n in zip(index, source.shape, strict=True)],
    axis=0,
  )
  assert inside.mean() > 0.5
  expected = ndimage.map_coordinates(array, index, order=1)
  found = resample(array, source, target)
  np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)


@pytest.mark.parametrize("degrees", OBLIQUE)
def test_outside_is_filled_and_the_edge_is_not(degrees):
  source = make_grid()
  array = np.full(source.shape, 40, np.int16)
  target = make_grid((30, 60, 70), (2, 1, 1), degrees)
  for order in ("linear", "nearest"):
    found = resample(array, source, target, order=order, fill=-1024)
    index = source.to_index(points_mm(target))
    margin = np.minimum(index + 0.5, np.array(source.shape) - 0.5 - index)
    margin = margin.min(-1)
    assert (margin > 1e-3).any()
    assert (margin < -1e-3).any()
    assert (found[margin > 1e-3] == 40).all()
    assert (found[margin < -1e-3] == -1024).all()
    assert found.dtype == np.int16


def test_shrinking_by_whole_numbers_averages():
  """A third of the voxels along each axis.

  The kernel by hand: the areas of unit triangles, at 0, 1 and 2 from the
  middle, under a box of 3.
  """
  array = np.random.default_rng(0).normal(size=(12, 15, 18))
  source = Grid(array.shape, (1, 1, 1), (0, 0, 0), STRAIGHT)
  target = Grid((4, 5, 6), (3, 3, 3), (1, 1, 1), STRAIGHT)
  kernel = np.array([1, 7, 8, 7, 1]) / 24
  expected = array
  for axis in range(3):
    expected = ndimage.correlate1d(expected, kernel, axis, mode="constant")
  found = resample(array, source, target)
  inner = (slice(1, -1),) * 3
  np.testing.assert_allclose(
    found[inner], expected[1::3, 1::3, 1::3][inner], atol=1e-6
  )
  assert found.dtype == array.dtype


@pytest.mark.parametrize("degrees", OBLIQUE)
def test_a_thin_vessel_never_vanishes(degrees):
  """A 3 mm vessel of 400 HU at any place, shrunk to 4.5 mm voxels.

  Sampling without averaging would miss it at a third of the places; averaged
  over 4.5 mm, its mass per slice is the same wherever it runs.
  """
  spacing = (1.0, 0.5, 0.5)
  mass, peak = [], []
  for shift in np.linspace(0, 4.5, 7):
    d, h, w = np.indices((24, 180, 180), dtype=np.float32)
    radius = np.hypot((h - 89.5) * 0.5 - shift, (w - 89.5) * 0.5 + 0.6 * shift)
    hu = np.where(radius <= 1.5, 400, 0).astype(np.int16)
    volume = centered(hu, spacing)
    grid = Grid((5, 16, 16), (4.5,) * 3, (0, 0, 0), turned(degrees))
    grid = Grid(grid.shape, grid.spacing, -grid.center_mm, grid.direction)
    found = resample(hu, volume.grid, grid).astype(float)[2]
    mass.append(found.sum() * 4.5**2 / (hu[12].sum(dtype=int) * 0.5**2))
    peak.append(found.max())
  # Rounding of small values to whole HU costs a few per cent.
  np.testing.assert_allclose(mass, 1, rtol=0.05)
  # At worst it is shared by four voxels: a quarter of its own share.
  assert min(peak) > 0.95 * 400 * np.pi * 1.5**2 / 4.5**2 / 4


def test_threads_do_not_change_the_result():
  source = make_grid()
  array = np.random.default_rng(0).normal(size=source.shape).astype("f4")
  target = make_grid((15, 30, 20), (1.7, 1, 1.3), (8, -5, 12))
  one = resample(array, source, target, threads=1)
  two = resample(array, source, target, threads=2)
  np.testing.assert_array_equal(one, two)


def test_resampling_refuses_what_it_cannot_do():
  source = make_grid()
  with pytest.raises(ValueError, match="on a grid"):
    resample(np.zeros((3, 4, 5)), source, source)
  with pytest.raises(ValueError, match="known are linear, nearest"):
    resample(np.zeros(source.shape), source, source, order="cubic")
  with pytest.raises(ValueError, match="labels must be integers"):
    resample(
      np.zeros(source.shape), source, make_grid((5, 6, 7)), order="majority"
    )


# Masks there and back.


def anatomy(shape, spacing, degrees):
  """Labels: 1 a ball, 2 a shell on it, 3 a bent vessel tapering to 1 mm."""
  volume = centered(np.zeros(shape, np.int16), spacing, degrees)
  x, y, z = np.moveaxis(points_mm(volume.grid), -1, 0)
  radius = np.sqrt((x - 3) ** 2 + (y + 5) ** 2 + z**2)
  labels = np.zeros(shape, np.uint8)
  labels[radius < 14] = 1
  labels[(radius >= 14) & (radius < 17)] = 2
  along = np.clip((z + 34) / 68, 0, 1)
  vessel = np.hypot(x + 22 - 6 * np.sin(3 * along), y - 12)
  labels[(vessel < 3 - 2 * along) & (np.abs(z) < 34)] = 3
  return volume, Volume(labels, volume.grid)


@pytest.mark.parametrize("degrees", OBLIQUE)
@pytest.mark.parametrize(
  "spec",
  [
    GridSpec("paper", (64, 32, 32)),
    GridSpec("heart", (48, 44, 40), box_mm=(84, 84, 80)),
    GridSpec("spacing", spacing_mm=(1.0, 1.0, 1.0)),
  ],
  ids=lambda spec: spec.kind,
)
def test_masks_keep_their_volume_there_and_back(spec, degrees):
  volume, mask = anatomy((60, 110, 120), (1.3, 0.7, 0.6), degrees)
  everything = Volume((mask.hu >= 0).astype(np.uint8), mask.grid)
  grid = target_grid(spec, volume, heart_mask=everything)
  there = mask_to_grid(mask, grid)
  assert there.dtype == np.uint8
  back = back_to_source(there, grid, volume, "majority")
  assert back.shape == volume.shape
  source_ml = np.prod(mask.spacing) / 1000
  for label in (1, 2, 3):
    before = (mask.hu == label).sum() * source_ml
    middle = (there == label).sum() * np.prod(grid.spacing) / 1000
    after = (back == label).sum() * source_ml
    assert before > 0.9
    assert middle == pytest.approx(before, rel=0.03)
    assert after == pytest.approx(before, rel=0.03)
  both = ((back == 1) & (mask.hu == 1)).sum()
  assert both / (mask.hu == 1).sum() > 0.9


def test_nearest_masks_land_on_their_voxels():
  volume, mask = anatomy((60, 110, 120), (1.3, 0.7, 0.6), (0, 0, 0))
  grid = target_grid(GridSpec("spacing", spacing_mm=(1, 1, 1)), volume)
  there = mask_to_grid(mask, grid, "nearest")
  index = np.rint(volume.grid.to_index(points_mm(grid))).astype(int)
  index = np.clip(index, 0, np.array(volume.shape) - 1)
  np.testing.assert_array_equal(
    there, mask.hu[tuple(index.reshape(-1, 3).T)].reshape(there.shape)
  )


def test_labels_touch_but_never_overlap_outside_or_vanish():
  labels = np.zeros((12, 20, 30), np.uint8)
  labels[:, :10], labels[:, 10:] = 1, 2
  labels[5, 5, 5] = 7
  mask = Volume(labels, make_grid(labels.shape))
  spec = GridSpec("spacing", spacing_mm=(1, 1, 1))
  grid = target_grid(spec, mask)
  there = mask_to_grid(mask, grid)
  assert set(np.unique(there)) <= {0, 1, 2, 7}
  volume_mm3 = np.prod(mask.spacing)
  assert (there == 7).sum() == round(volume_mm3)
  assert (there > 0).mean() > 0.99


def test_the_same_grid_gives_the_same_voxels():
  volume, mask = anatomy((20, 30, 40), (1.3, 0.7, 0.6), (0, 0, 0))
  for order in ("majority", "nearest", "linear"):
    found = resample(mask.hu, mask.grid, mask.grid, order=order)
    np.testing.assert_array_equal(found, mask.hu)
    assert found is not mask.hu


def test_maps_go_back_to_the_scanner_s_voxels():
  """A Gaussian blob drawn on the target grid peaks at its point in mm."""
  volume = centered(np.zeros((30, 50, 70), "i2"), (2, 0.8, 0.6), (8, -5, 12))
  grid = target_grid(GridSpec("paper", (40, 20, 24)), volume)
  point = volume.grid.to_mm([20, 15, 50])
  blob = np.exp(-((points_mm(grid) - point) ** 2).sum(-1) / 50)
  back = back_to_source(blob.astype("f4"), grid, volume)
  assert back.dtype == np.float32
  found = volume.grid.to_mm(np.unravel_index(back.argmax(), back.shape))
  assert np.linalg.norm(found - point) < 1.5


def test_to_grid_says_air_outside_the_scan():
  volume = centered(np.full((20, 40, 60), 40, np.int16), (2, 0.8, 0.6))
  spec = GridSpec("heart", (16, 16, 16), box_mm=(80, 80, 80))
  found = to_grid(volume, spec)
  assert found.hu.dtype == np.int16
  assert found.shape == (16, 16, 16)
  assert found.hu[0, 0, 0] == -1024
  assert found.hu[8, 8, 8] == 40
  assert "middle of the body" in found.notes[0]


# The heart.


def ellipsoid(points, center, radii):
  return (((points - center) / radii) ** 2).sum(-1) < 1


def chest(spacing=(4.0, 3.0, 3.0), blood=400, right_heart=True, degrees=None):
  """A chest of ellipsoids; returns it and the middle of its heart."""
  grid = Grid((70, 90, 120), spacing, (0, 0, 0), turned(degrees or (0, 0, 0)))
  origin = np.array([10.0, -30.0, 500.0]) - grid.center_mm
  grid = Grid(grid.shape, spacing, origin, grid.direction)
  points = points_mm(grid) - [10, -30, 500]
  hu = np.full(grid.shape, -1000, np.int16)
  hu[ellipsoid(points, (0, 0, 0), (165, 115, 400))] = -90
  hu[ellipsoid(points, (0, 0, 0), (150, 100, 400))] = 45
  for side in (-1, 1):
    lung = ellipsoid(points, (side * 80, 0, 10), (58, 80, 120))
    hu[lung] = -850
  hu[points[..., 2] < -80] = np.maximum(hu[points[..., 2] < -80], 60)
  spine = np.hypot(points[..., 0], points[..., 1] - 75) < 19
  hu[spine] = 170
  hu[np.abs(np.hypot(points[..., 0], points[..., 1] - 75) - 19) < 3] = 700
  aorta = np.hypot(points[..., 0] - 25, points[..., 1] - 45) < 12
  hu[aorta & (points[..., 2] < 70)] = blood
  center = np.array([20, -25, -25])
  heart = ellipsoid(points, center, (58, 48, 60))
  hu[heart] = 100
  left = ellipsoid(points, center + [22, 8, -5], (24, 28, 40))
  right = ellipsoid(points, center + [-26, -8, -5], (24, 26, 40))
  hu[left] = blood
  hu[right] = blood + 60 if right_heart else 70
  noise = np.random.default_rng(0).normal(0, 20, grid.shape)
  hu = (hu + noise).astype(np.int16)
  return Volume(hu, grid, path="chest"), center + [10, -30, 500]


def cut(volume, center_mm, extent_mm):
  """Returns the part of a scan around a point, as a small field of view."""
  middle = volume.grid.to_index(center_mm)
  half = np.array(extent_mm) / volume.spacing / 2
  low = np.maximum(np.rint(middle - half), 0).astype(int)
  high = np.minimum(np.rint(middle + half), volume.shape).astype(int)
  hu = volume.hu[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
  grid = Grid(
    hu.shape, volume.spacing, volume.grid.to_mm(low), volume.direction
  )
  return Volume(hu, grid, path="cut")


@pytest.mark.parametrize("degrees", OBLIQUE)
@pytest.mark.parametrize("right_heart", [True, False])
@pytest.mark.parametrize("extent", [None, (130, 190, 190), (110, 170, 180)])
def test_the_heart_is_found_in_a_chest(extent, right_heart, degrees):
  volume, expected = chest(right_heart=right_heart, degrees=degrees)
  if extent:
    volume = cut(volume, expected + [5, 5, 5], extent)
  center, info = find_heart(volume)
  assert info["method"] == "contrast"
  assert not info["notes"]
  assert info["blood_hu"] == pytest.approx(400 + 30 * right_heart, abs=60)
  assert np.linalg.norm(center - expected) < 25


def test_without_contrast_the_middle_of_the_chest_is_taken():
  volume, expected = chest(blood=45, right_heart=False)
  center, info = find_heart(volume)
  assert info["method"] == "between the lungs"
  assert "no contrast" in info["notes"][0]
  assert np.linalg.norm((center - expected)[:2]) < 45
  assert np.isnan(info["blood_hu"])


def test_no_body_is_an_error():
  volume = centered(np.full((10, 20, 30), -1000, np.int16), (2, 1, 1))
  with pytest.raises(UserError, match="no body"):
    find_heart(volume)


@pytest.mark.parametrize("part", ["all", "heart", "left", "noisy"])
def test_the_heart_of_the_real_scan(real_ct, part):
  volume = read_volume(real_ct / "ct.nii.gz")
  mask = read_mask(real_ct / "heart.nii.gz")
  index = np.argwhere(mask.hu)
  expected = mask.grid.to_mm((index.min(0) + index.max(0)) / 2)
  if part == "heart":
    volume = cut(volume, expected, (120, 190, 170))
  elif part == "left":
    volume = cut(volume, expected + [15, 5, 5], (130, 190, 150))
  elif part == "noisy":
    noise = np.random.default_rng(0).normal(0, 40, volume.shape)
    volume = Volume((volume.hu + noise).astype(np.int16), volume.grid)
  center, info = find_heart(volume)
  assert info["method"] == "contrast"
  assert np.linalg.norm(center - expected) < 15
  spec = GridSpec("heart", (32, 32, 32))
  inside = mask_to_grid(mask, target_grid(spec, volume))
  ml = inside.sum() * 5**3 / 1000
  assert ml == pytest.approx(mask.hu.sum() * 1.5**3 / 1000, rel=0.01)


def test_every_format_gives_the_same_record(real_ct, tmp_path):
  volume = read_volume(real_ct / "ct.nii.gz")
  image = sitk.GetImageFromArray(volume.hu)
  image.SetSpacing(volume.spacing[::-1])
  image.SetOrigin(volume.origin)
  spec = GridSpec("heart", (32, 32, 32))
  expected = to_grid(volume, spec)
  for name in ("a.nrrd", "a.mha"):
    sitk.WriteImage(image, str(tmp_path / name))
    found = to_grid(read_volume(tmp_path / name), spec)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    assert np.abs(found.hu.astype(int) - expected.hu).max() <= 1
