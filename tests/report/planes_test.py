import io

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.contour import QuadContourSet
from PIL import Image

from cadjax.report import planes
from data_prep.volume import Grid, Volume

SHAPE, SPACING = (10, 20, 30), (3.0, 2.0, 1.0)
AIR = -1024


def grid(shape=SHAPE, spacing=SPACING, origin=(-40.0, 7.0, 100.0)) -> Grid:
  # Canonical axes: D is z, H is y, W is x.
  return Grid(shape, spacing, origin, np.eye(3)[:, ::-1])


def marked(**where: int) -> Volume:
  """Returns a volume of air with one bright voxel at D, H, W."""
  hu = np.full(SHAPE, AIR, np.int16)
  hu[where["d"], where["h"], where["w"]] = 1000
  return Volume(hu, grid())


@pytest.mark.parametrize(
  ("plane", "expected"),
  [
    # Near the top of the patient, in front, on the patient's right: on the
    # image's left; anterior up in axial, superior up in the others.
    ("axial", (2, 4)),
    ("coronal", (1, 4)),
    ("sagittal", (1, 2)),
  ],
)
def test_a_voxel_appears_where_a_radiologist_expects_it(plane, expected):
  volume = marked(d=8, h=2, w=4)
  panel = planes.cut(volume, plane, volume.grid.to_mm((8, 2, 4)))
  assert np.argwhere(panel.pixels == 1000).tolist() == [list(expected)]


def test_letters_name_the_sides_of_each_plane():
  volume = marked(d=0, h=0, w=0)
  letters = {
    p.name: p.letters
    for p in planes.three_planes(volume, volume.grid.center_mm)
  }
  # Left, right, top, bottom of the image.
  assert letters == {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}


@pytest.mark.parametrize(
  ("plane", "size_mm", "count"),
  [
    ("axial", (40.0, 30.0), 10),
    ("coronal", (30.0, 30.0), 20),
    ("sagittal", (30.0, 40.0), 30),
  ],
)
def test_panels_are_measured_in_mm(plane, size_mm, count):
  volume = marked(d=0, h=0, w=0)
  panel = planes.cut(volume, plane, volume.grid.center_mm)
  assert panel.size_mm == pytest.approx(size_mm)
  assert panel.slice[1] == count


def test_cut_marks_point_at_the_center():
  volume = marked(d=8, h=2, w=4)
  center = volume.grid.to_mm((8, 2, 4))
  cuts = {p.name: p.cut_mm for p in planes.three_planes(volume, center)}
  # Voxel centres lie half a voxel from the edges; superior is up.
  assert cuts["axial"] == pytest.approx((4.5, 5.0))
  assert cuts["coronal"] == pytest.approx((4.5, 4.5))
  assert cuts["sagittal"] == pytest.approx((5.0, 4.5))


def test_a_center_outside_takes_the_outermost_slice():
  volume = marked(d=9, h=0, w=0)
  panel = planes.cut(volume, "axial", (0.0, 0.0, 1e4))
  assert panel.slice == (10, 10)


def test_the_outline_is_the_box_in_mm():
  volume = marked(d=0, h=0, w=0)
  # Voxels d 2..5, h 4..13, w 6..17 of the volume, at half its spacing.
  low = volume.grid.to_mm((1.5, 3.5, 5.5)) + np.array([0.25, 0.5, 0.75])
  box = grid((8, 20, 24), (1.5, 1.0, 0.5), tuple(low))
  panels = {
    p.name: p.box_mm
    for p in planes.three_planes(volume, volume.grid.center_mm, outline=box)
  }
  assert panels["axial"] == pytest.approx((6, 8, 18, 28))
  assert panels["coronal"] == pytest.approx((6, 12, 18, 24))
  assert panels["sagittal"] == pytest.approx((8, 12, 28, 24))


def test_a_resized_field_of_view_has_no_outline():
  volume = marked(d=0, h=0, w=0)
  low = volume.grid.to_mm((-0.5, -0.5, -0.5)) + np.array([3, 4, 5]) / 2
  same = grid((6, 10, 10), (5.0, 4.0, 3.0), tuple(low))
  panels = planes.three_planes(volume, volume.grid.center_mm, outline=same)
  assert [panel.box_mm for panel in panels] == [None] * 3


def read_png(png: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def test_the_picture_keeps_the_proportions_and_the_orientation():
  # The patient's right half is bright.
  hu = np.full(SHAPE, AIR, np.int16)
  hu[:, :, :15] = 700
  panel = planes.cut(Volume(hu, grid()), "axial", grid().center_mm)
  pixels = read_png(planes.panel_png(panel, longest_px=200))
  assert pixels.shape == (200, 150)
  # Away from letters, bar and marks.
  assert pixels[30:80, 15:60].min() == 255
  assert pixels[30:80, 90:135].max() == 0


def test_the_window_is_that_of_ctca():
  low, high = planes.CTCA_WINDOW_HU
  hu = np.full(SHAPE, int((low + high) / 2), np.int16)
  panel = planes.cut(Volume(hu, grid()), "axial", grid().center_mm)
  pixels = read_png(planes.panel_png(panel, longest_px=200))
  assert pixels[30:80, 90:135].mean() == pytest.approx(127.5, abs=1.5)


def test_equal_volumes_give_equal_bytes():
  volume = marked(d=8, h=2, w=4)
  rows = {"scan": planes.three_planes(volume, volume.grid.center_mm)}
  assert planes.planes_png(rows, "x") == planes.planes_png(rows, "x")


def rgb(png: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_heat_lies_on_its_voxels_and_leaves_the_rest():
  hu = np.full(SHAPE, 300, np.int16)
  heat = np.zeros(SHAPE, np.float32)
  # Inferior, posterior, left: low, low and right in the pictures.
  heat[:4, 12:, 18:] = 1
  volume = Volume(hu, grid())
  # Above the scale bar.
  for name, corner in (
    ("axial", (slice(130, 160), slice(100, 140))),
    ("coronal", (slice(130, 160), slice(140, 180))),
    ("sagittal", (slice(97, 115), slice(140, 180))),
  ):
    center = volume.grid.to_mm((2, 15, 20))
    plain = planes.panel_png(planes.cut(volume, name, center), longest_px=200)
    hot = planes.panel_png(
      planes.cut(volume, name, center, heat=heat), longest_px=200
    )
    change = np.abs(rgb(hot) - rgb(plain)).sum(-1)
    assert change[corner].min() > 50, name
    assert change[30:80, 30:60].max() == 0, name


def test_hotter_is_more_opaque_and_brighter():
  rgba = planes.heat_rgba(np.linspace(0, 1, 11))
  assert rgba[0, 3] == 0
  assert (np.diff(rgba[:, 3]) >= 0).all()
  assert rgba[-1, 3] == planes.HEAT_OPACITY
  luminance = rgba[:, :3] @ [0.2126, 0.7152, 0.0722]
  assert (np.diff(luminance) > 0).all()


def test_a_colour_bar_is_drawn_for_heat():
  volume = marked(d=8, h=2, w=4)
  heat = np.ones(SHAPE, np.float32)
  rows = {"map": planes.three_planes(volume, volume.grid.center_mm, heat=heat)}
  plain = rgb(planes.planes_png(rows, "x"))
  barred = rgb(planes.planes_png(rows, "x", heat_label="evidence"))
  top = np.round(255 * planes.heat_rgba(np.ones(1))[0, :3])

  def has_top(picture):
    return (np.abs(picture.reshape(-1, 3) - top).sum(-1) < 8).any()

  assert has_top(barred)
  assert not has_top(plain)
  assert barred.shape == plain.shape


def test_masks_are_cut_and_outlined_with_their_plane(tmp_path):
  """The outline lies where the mask's pixels are, in mm."""
  rng = np.random.default_rng(0)
  shape, spacing = (9, 12, 15), (2.0, 1.0, 3.0)
  grid = Grid(shape, spacing, (0, 0, 0), np.eye(3)[:, ::-1])
  volume = Volume(rng.integers(-50, 50, shape).astype(np.int16), grid)
  mask = np.zeros(shape, bool)
  mask[4:6, 2:5, 9:13] = True
  index = planes.fullest(mask)
  assert mask[index]
  panels = planes.three_planes(
    volume, grid.to_mm(index), masks=[(mask, "#ff0000")]
  )
  extents = {  # Rows and columns in mm, from the top left.
    "axial": ((2, 5), (27, 39)),
    "coronal": ((18 - 12, 18 - 8), (27, 39)),
    "sagittal": ((18 - 12, 18 - 8), (2, 5)),
  }
  for panel in panels:
    ((pixels, color),) = panel.masks
    assert (pixels.shape, color) == (panel.pixels.shape, "#ff0000")
    figure = matplotlib.figure.Figure()
    ax = figure.subplots()
    planes.draw(ax, panel)
    (contour,) = [c for c in ax.collections if isinstance(c, QuadContourSet)]
    points = np.concatenate([p.vertices for p in contour.get_paths()])
    (top, bottom), (left, right) = extents[panel.name]
    found = [*points.min(0), *points.max(0)]
    np.testing.assert_allclose(found, [left, top, right, bottom], atol=1e-6)
    assert ax.get_xlim() == (0, panel.size_mm[1])


def test_an_empty_mask_draws_nothing():
  volume = Volume(
    np.zeros((4, 5, 6), np.int16),
    Grid((4, 5, 6), (1, 1, 1), (0, 0, 0), np.eye(3)[:, ::-1]),
  )
  mask = np.zeros((4, 5, 6), bool)
  panel = planes.cut(volume, "axial", (0, 0, 0), masks=[(mask, "#ff0000")])
  figure = matplotlib.figure.Figure()
  ax = figure.subplots()
  planes.draw(ax, panel)
  assert not ax.collections
