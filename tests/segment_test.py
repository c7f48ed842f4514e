"""From a scan file to a mask on exactly its grid."""

import json
import pathlib
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import schema_check
from PIL import Image
from tiny_runs import classify_file, messages, segment_file, warning

from cadjax.classification.classifier import load_classifier
from cadjax.data import jobs, scans
from cadjax.report import classified, segmented
from cadjax.segmentation import scan as segmentation_scan
from cadjax.segmentation import sliding
from cadjax.segmentation.segmenter import Segmenter, load_segmenter
from data_prep import geometry, phantom, volume
from data_prep.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def trained(tiny_segmenter):
  return load_segmenter(tiny_segmenter)


@pytest.fixture(scope="module")
def drawn():
  """A phantom on a small scanner grid, turned about the body's axis."""
  turn = np.deg2rad(7)
  direction = np.array(
    [
      [0, np.sin(turn), np.cos(turn)],
      [0, np.cos(turn), -np.sin(turn)],
      [1, 0, 0],
    ]
  )
  body = phantom.make_phantom(
    5, label=1, severity="overt", grid=geometry.GridSpec(shape=(8, 8, 8))
  ).volume.grid.center_mm
  shape, spacing = (40, 44, 48), (4.0, 4.5, 4.2)
  first = (np.array(shape) - 1) / 2 * spacing
  grid = volume.Grid(shape, spacing, body - direction @ first, direction)
  return phantom.make_phantom(5, label=1, severity="overt", grid=grid)


@pytest.fixture(scope="module")
def scan(drawn, tmp_path_factory):
  path = tmp_path_factory.mktemp("scans") / "scan.nii.gz"
  volume.write_nifti(path, drawn.volume.hu, drawn.volume)
  return path


def answers(monkeypatch, labels_of):
  """Makes every segmenter answer with `labels_of(hu)`, surely."""

  def say(self, hu, **_):
    labels = labels_of(hu).astype(np.uint8)
    return sliding.Segmentation(labels, np.eye(3)[labels].astype(np.float16))

  monkeypatch.setattr(Segmenter, "segment", say)


def test_the_mask_has_exactly_the_grid_and_affine_of_the_scan(
  trained, scan, tmp_path
):
  result = segment_file(trained, scan)
  written = segmented.write_segmented(result, tmp_path / "out")
  assert set(written["files"].values()) == {
    p.name for p in (tmp_path / "out").iterdir()
  }
  mask, image = nib.load(tmp_path / "out/segments.nii.gz"), nib.load(scan)
  assert mask.shape == image.shape
  np.testing.assert_array_equal(mask.affine, image.affine)
  assert mask.get_data_dtype() == np.uint8
  voxels = np.asarray(mask.dataobj)
  for row in written["classes"]:
    assert row["voxels"] == (voxels == row["value"]).sum()
    assert row["volume_ml"] == pytest.approx(
      row["voxels"] * 4 * 4.5 * 4.2 / 1e3
    )
  text = (tmp_path / "out/segments.json").read_text()
  assert json.loads(text, parse_constant=pytest.fail) == written
  schema_check.validate(written)
  assert str(tmp_path) not in text
  assert warning("phantom", "segmenter", "segmentation") in written["warnings"]
  with Image.open(tmp_path / "out/planes.png") as picture:
    assert picture.size[0] > 1000


def test_the_way_there_and_back_keeps_the_place(trained, drawn, monkeypatch):
  """The true mask, taken to the model's grid and brought back, overlaps."""
  grid = geometry.target_grid(
    geometry.GridSpec(kind="heart", shape=(64, 64, 64), box_mm=(160, 160, 160)),
    drawn.volume,
  )
  aorta = volume.Volume((drawn.mask == 1).astype(np.uint8), drawn.volume.grid)
  there = geometry.mask_to_grid(aorta, grid)
  back = segmentation_scan.labels_on_scan(
    np.eye(2, dtype=np.float16)[there], grid, drawn.volume
  )
  box = geometry.back_to_source(
    np.ones(grid.shape, np.uint8), grid, drawn.volume, "nearest"
  )
  truth = (aorta.hu > 0) & (box > 0)
  both = (back > 0) & truth
  assert 2 * both.sum() / (truth.sum() + (back > 0).sum()) > 0.9
  assert not (back[box == 0] > 0).any()


def test_the_most_probable_class_wins_between_voxels():
  """Two voxels of two classes: the border lies where their lines cross."""
  grid = volume.Grid((1, 1, 2), (1, 1, 8), (0, 0, 0), np.eye(3)[:, ::-1])
  fine = volume.Grid((1, 1, 16), (1, 1, 1), (-3.5, 0, 0), np.eye(3)[:, ::-1])
  scan = volume.Volume(np.zeros(fine.shape, np.int16), fine)
  p = np.array([[0.2, 0.8, 0.0], [0.1, 0.0, 0.9]], np.float16)
  labels = segmentation_scan.labels_on_scan(
    p.reshape(1, 1, 2, 3), grid, scan
  ).ravel()
  # Between the centres x = 0 and 8: 0.8 (1 - t) = 0.9 t at t = 0.47.
  x = -3.5 + np.arange(16)
  np.testing.assert_array_equal(labels, np.where(x < 0.8 / 1.7 * 8, 1, 2))


def test_millilitres_of_a_tilted_gantry_are_those_of_its_sheared_voxels(
  trained, drawn, monkeypatch
):
  straight = drawn.volume.grid
  tilt = np.radians(20)
  direction = straight.direction.copy()
  direction[:, 0] = [0, np.sin(tilt), np.cos(tilt)]
  grid = volume.Grid(
    straight.shape, straight.spacing, straight.origin, direction
  )
  answers(monkeypatch, lambda hu: hu > 300)
  given = scans.Scan("tilted", "tilted", volume.Volume(drawn.volume.hu, grid))
  aorta = segmentation_scan.segment_scan(trained, given).classes[0]
  voxel_ml = 4 * 4.5 * 4.2 * np.cos(tilt) / 1e3
  assert aorta.voxels > 0
  assert aorta.volume_ml == pytest.approx(aorta.voxels * voxel_ml)


def test_an_empty_segmentation_is_said_in_words(
  trained, scan, tmp_path, monkeypatch
):
  answers(monkeypatch, np.zeros_like)
  result = segment_file(trained, scan)
  assert result.summary == "Nothing was found: no aorta and no coronaries."
  assert "The segmentation is empty." in result.warnings
  segmented.write_segmented(result, tmp_path / "out")
  assert not np.asarray(
    nib.load(tmp_path / "out/segments.nii.gz").dataobj
  ).any()


def test_a_class_that_is_missing_is_named(trained, scan, monkeypatch):
  answers(monkeypatch, lambda hu: hu > 300)
  result = segment_file(trained, scan)
  assert "Not found: coronaries." in result.summary
  assert "Found: aorta " in result.summary


def test_small_components_are_left_out(trained, scan, monkeypatch):
  def dots(hu):
    labels = np.zeros(hu.shape)
    labels[4:8, 8:14, 8:16] = 1
    labels[12, 20, 28] = 2  # 10 x 6.7 x 5 mm.
    return labels

  answers(monkeypatch, dots)
  kept = segment_file(trained, scan)
  monkeypatch.setitem(trained.config.segment, "min_component_mm3", 2000.0)
  left = segment_file(trained, scan)
  assert [bool(x.voxels) for x in kept.classes] == [True, True]
  assert [bool(x.voxels) for x in left.classes] == [True, False]
  assert kept.classes[0] == left.classes[0]


def test_a_failure_leaves_nothing_half_written(
  trained, scan, tmp_path, monkeypatch
):
  def fail(*_):
    raise OSError("No space left on device")

  result = segment_file(trained, scan)
  monkeypatch.setattr(segmented, "render_planes", fail)
  with pytest.raises(UserError, match="No space left"):
    segmented.write_segmented(result, tmp_path / "out")
  assert list(tmp_path.iterdir()) == []


def test_a_result_of_another_kind_is_not_replaced(trained, scan, tmp_path):
  folder = tmp_path / "case"
  folder.mkdir()
  document = {"schema": classified.SCHEMA, "files": {"result": "result.json"}}
  (folder / "result.json").write_text(json.dumps(document))
  result = segment_file(trained, scan)
  with pytest.raises(UserError, match="holds no result"):
    segmented.write_segmented(result, folder, overwrite=True)


def test_a_model_of_nan_is_no_segmenter(trained, scan, monkeypatch):
  monkeypatch.setitem(
    trained.__dict__,
    "_sliding",
    sliding.SlidingWindow(
      lambda _, x: np.nan * x * np.ones(3), (8, 16, 24), 0.5, 2, 3
    ),
  )
  with pytest.raises(UserError, match="NaN; it is not a trained model"):
    segment_file(trained, scan)


def run(module, *flags):
  return subprocess.run(
    [sys.executable, "-m", f"cadjax.{module}", *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def test_many_scans_one_bad(tiny_segmenter, scan, tmp_path):
  done = run(
    "segment",
    f"--segmenter={tiny_segmenter}",
    f"--input={scan}",
    f"--input={tmp_path / 'absent.nii.gz'}",
    f"--out={tmp_path / 'out'}",
    "--mirror",
    "--batch_size=2",
  )
  assert done.returncode == 2, done.stderr
  (line,) = messages(done)
  assert line.startswith("error: ")
  assert "absent" in line
  assert "1 segmented, 1 failed" in done.stdout
  document = json.loads((tmp_path / "out/scan/segments.json").read_text())
  assert document["segmentation"]["mirror"] is True
  assert document["summary"] in done.stdout
  assert [p.name for p in (tmp_path / "out").iterdir()] == ["scan"]


def test_a_model_of_the_other_task_is_told_in_one_line(
  tiny_segmenter, tiny_workdir, scan, tmp_path
):
  out = f"--out={tmp_path / 'out'}"
  for module, flag in (
    ("segment", f"--segmenter={tiny_workdir}"),
    ("predict", f"--classifier={tiny_segmenter}"),
  ):
    done = run(module, flag, f"--input={scan}", out)
    assert done.returncode == 2
    (line,) = messages(done)
    assert "is needed" in line
  assert not (tmp_path / "out").exists()


def test_both_programs_share_the_way_from_scan_to_input(
  trained, tiny_workdir, scan
):
  """The classifier and the segmenter of one data set see the same voxels."""
  classifier = load_classifier(tiny_workdir)
  ours = segment_file(trained, scan).reading
  theirs = classify_file(classifier, scan).reading
  np.testing.assert_array_equal(ours.model_input.hu, theirs.model_input.hu)
  (job,) = jobs.make_jobs([str(scan)], "out")
  assert job.case == "scan"
