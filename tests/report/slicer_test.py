"""Files for 3D Slicer, read by readers that are not ours."""

import numpy as np
import pytest
import SimpleITK as sitk

from cadjax.data.classes import CLASS_SETS
from cadjax.report import segmented, slicer
from data_prep.volume import Grid

CLASSES = {"aorta": 1, "lumen": 2, "stable_plaque": 3, "unstable_plaque": 4}
COLORS = {name: segmented.COLORS[name][0] for name in CLASSES}
# An oblique grid of the project's axes: up, back and left.
TURN = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
AXES = TURN @ np.eye(3)[:, ::-1]


@pytest.fixture
def grid():
  return Grid((5, 6, 7), (3.0, 0.5, 0.7), (10.0, -20.0, 30.0), AXES)


@pytest.fixture
def labels(grid):
  labels = np.zeros(grid.shape, np.uint8)
  labels[1:3, 2:5, 1:6] = 1
  labels[4, 0, 6] = 3
  return labels


def test_every_class_has_a_colour_and_a_meaning():
  names = {name for one in CLASS_SETS.values() for name in one.names}
  names.remove("background")
  assert names == set(slicer.MEANINGS) == set(segmented.COLORS)


def test_codes_are_of_the_standard():
  codedict = pytest.importorskip("pydicom.sr.codedict")
  known = {
    (code.value, code.meaning.lower())
    for name in codedict.codes.SCT.dir()
    for code in [getattr(codedict.codes.SCT, name)]
  }
  missing = {("74281007", "myocardium")}  # As in data_prep.tissues.
  used = {
    (code.value, code.meaning.lower())
    for one in slicer.MEANINGS.values()
    for code in (one.category, one.kind, one.region)
    if code is not None
  }
  assert used - known <= missing


def test_labels_lie_where_they_lay(tmp_path, grid, labels):
  path = tmp_path / "labels.seg.nrrd"
  slicer.write_segmentation(path, labels, grid, CLASSES, COLORS)
  image = sitk.ReadImage(path)
  np.testing.assert_array_equal(sitk.GetArrayFromImage(image), labels)
  for index in ((0, 0, 0), (4, 5, 6), (2, 3, 1)):
    np.testing.assert_allclose(
      image.TransformIndexToPhysicalPoint(index[::-1]),
      grid.to_mm(index),
      atol=1e-4,
    )


def test_slicer_reads_names_colours_and_meanings(tmp_path, grid, labels):
  slicerio = pytest.importorskip("slicerio")
  path = tmp_path / "labels.seg.nrrd"
  slicer.write_segmentation(path, labels, grid, CLASSES, COLORS)
  found = slicerio.read_segmentation(str(path))
  assert [one["name"] for one in found["segments"]] == [
    "aorta",
    "lumen",
    "stable plaque",
    "unstable plaque",
  ]
  assert [one["labelValue"] for one in found["segments"]] == [1, 2, 3, 4]
  aorta, _, stable, _ = found["segments"]
  np.testing.assert_allclose(
    aorta["color"], [0xF0 / 255, 0x64 / 255, 0x4B / 255], atol=1e-5
  )
  assert aorta["extent"] == [1, 5, 2, 4, 1, 2]
  assert stable["extent"] == [6, 6, 0, 0, 4, 4]
  terms = stable["terminology"]
  assert terms["category"] == [
    *("SCT", "49755003", "Morphologically Abnormal Structure"),
  ]
  assert terms["type"][1] == "29483008"
  assert terms["anatomicRegion"] == ["SCT", "41801008", "Coronary artery"]


def test_the_header_has_what_slicer_asks_for(tmp_path, grid, labels):
  path = tmp_path / "labels.seg.nrrd"
  slicer.write_segmentation(path, labels, grid, CLASSES, COLORS)
  header = path.read_bytes().partition(b"\n\n")[0].decode()
  lines = header.splitlines()
  assert lines[0].startswith("NRRD000")
  assert "space: left-posterior-superior" in lines
  assert "encoding: gzip" in lines
  assert "Segment0_Name:=aorta" in lines
  assert "Segment3_LabelValue:=4" in lines
  assert "Segment1_Extent:=0 -1 0 -1 0 -1" in lines  # No lumen.


def test_a_tilted_gantry_is_not_written(grid):
  assert slicer.holds(grid)
  sheared = AXES.copy()
  sheared[:, 0] = [0.0, 0.2, np.sqrt(1 - 0.04)]
  assert not slicer.holds(Grid(grid.shape, grid.spacing, grid.origin, sheared))


def test_a_table_of_colours():
  text = slicer.color_table(CLASSES, COLORS)
  assert text.splitlines()[1:3] == [
    "0 background 0 0 0 0",
    "1 aorta 240 100 75 255",
  ]
  assert len(text.splitlines()) == 2 + len(CLASSES)
