"""From a scan without contrast to its calcium score, on drawn chests."""

import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
import schema_check
from PIL import Image

import cadjax
from cadjax import calcium_score
from cadjax.calcium import scan as calcium_scan
from cadjax.data import scans
from cadjax.report import calcified
from data_prep import volume
from data_prep.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
SHAPE, SPACING = (40, 100, 120), (3.0, 2.0, 2.0)
HEART = slice(None), slice(25, 75), slice(40, 80)
# In one slice 2 x 2 pixels, 16 mm2, with the weight 4; in three slices 1 x 2
# pixels, 8 mm2, with the weight 2.
LAD = slice(20, 21), slice(40, 42), slice(60, 62)
RCA = slice(24, 27), slice(45, 46), slice(50, 52)
LAD_SCORE, RCA_SCORE = 64.0, 48.0


def chest(*, lesions=True, blood_hu=40, slices=SHAPE[0]) -> np.ndarray:
  """Returns HU of a body with lungs, a heart between them and a vertebra."""
  hu = np.full((slices, *SHAPE[1:]), -1000, np.int16)
  hu[:, 5:95, 5:115] = 40
  hu[:, 20:75, 10:40] = hu[:, 20:75, 80:110] = -820
  hu[:, 75:93, 50:70] = 600
  hu[:, 78:90, 53:67] = 90
  hu[::4, 82:84, 58:60] = 180  # In the marrow.
  if blood_hu != 40:
    hu[10:30, 35:65, 48:72] = blood_hu
  if lesions:
    hu[LAD], hu[RCA] = 520, 250
  return hu


def grid(shape=SHAPE, spacing=SPACING) -> volume.Grid:
  return volume.Grid(shape, spacing, (-120.0, -90.0, 30.0), np.eye(3)[:, ::-1])


def as_scan(hu, spacing=SPACING) -> scans.Scan:
  made = volume.Volume(hu, grid(hu.shape, spacing), path="scan.nii.gz")
  return scans.Scan("scan", "scan.nii.gz", made)


def as_mask(labels) -> volume.Volume:
  return volume.Volume(labels, grid(labels.shape), path="mask.nii.gz")


@pytest.fixture(scope="module")
def vessels() -> np.ndarray:
  labels = np.zeros(SHAPE, np.uint8)
  labels[18:23, 38:44, 58:64] = 2
  labels[22:30, 42:48, 48:54] = 5
  return labels


def test_by_vessel(vessels):
  found = calcium_scan.score_calcium(
    as_scan(chest()),
    mask=as_mask(vessels),
    names=("LM", "LAD"),
    calibration=0.75,
  )
  assert found.names == {2: "LAD", 5: "label 5"}
  assert found.score.regions[2].agatston == pytest.approx(LAD_SCORE)
  assert found.score.regions[5].agatston == pytest.approx(RCA_SCORE)
  total = found.score.total
  assert total.agatston == pytest.approx(LAD_SCORE + RCA_SCORE)
  assert total.volume_mm3 == pytest.approx(48 + 72)
  assert total.mass_mg == pytest.approx(0.75 * (520 * 48 + 250 * 72) / 1000)
  assert found.summary == (
    "Agatston score 112.0 (101-400: moderate): 2 lesions, 120 mm3, 32.2 mg"
  )
  assert found.warnings == []
  assert found.box is None


def test_without_a_mask_bone_and_its_marrow_are_left_out():
  found = calcium_scan.score_calcium(as_scan(chest()))
  assert found.score.total.agatston == pytest.approx(LAD_SCORE + RCA_SCORE)
  assert found.names == {}
  (warning,) = found.warnings
  assert "the valves, the aorta" in warning
  # Vertebra and marrow, as far as they reach into the box.
  assert found.bone_ml > 50
  assert f"{found.bone_ml:.0f} mL" in warning
  assert "took the middle of the chest" in " ".join(found.notes)


def test_without_a_mask_what_is_no_coronary_artery_counts():
  hu = chest()
  hu[30, 50:52, 55:57] = 520  # A valve's.
  hu[30, 9:11, 8:10] = 520  # Far away.
  found = calcium_scan.score_calcium(as_scan(hu))
  assert found.score.total.agatston == pytest.approx(2 * LAD_SCORE + RCA_SCORE)


def test_no_calcium(tmp_path):
  found = calcium_scan.score_calcium(as_scan(chest(lesions=False)))
  assert found.summary == "Agatston score 0.0 (0: no calcium found)"
  document = calcified.write_calcified(found, tmp_path / "out")
  schema_check.validate(document)
  assert document["lesions"] == []
  assert document["total"]["agatston"] == 0
  assert document["total"]["mass_mg"] is None
  assert not volume.read_mask(tmp_path / "out" / "lesions.nii.gz").hu.any()


@pytest.mark.parametrize("masked", [False, True])
def test_contrast_is_refused(masked, vessels):
  scan = as_scan(chest(blood_hu=350))
  with pytest.raises(UserError, match="the heart has contrast") as raised:
    calcium_scan.score_calcium(scan, mask=as_mask(vessels) if masked else None)
  assert str(raised.value).startswith("scan.nii.gz: ")


def test_a_mask_of_the_heart_says_where_the_blood_is():
  heart = np.zeros(SHAPE, np.uint8)
  heart[HEART] = 1
  scan = as_scan(chest(blood_hu=350))
  with pytest.raises(UserError, match="the heart has contrast"):
    calcium_scan.score_calcium(scan, mask=as_mask(heart))
  # What is bright outside the mask is no blood.
  heart[..., :48] = 0
  hu = chest()
  hu[:, 35:65, 40:48] = 350
  with pytest.raises(UserError, match="the heart has contrast"):
    calcium_scan.score_calcium(as_scan(hu))
  found = calcium_scan.score_calcium(as_scan(hu), mask=as_mask(heart))
  assert found.score.total.agatston == pytest.approx(LAD_SCORE + RCA_SCORE)


def test_noise_is_no_contrast_but_a_concern():
  noise = np.random.default_rng(2).normal(0, 1, SHAPE)
  loud = (chest() + 80 * noise).astype(np.int16)
  found = calcium_scan.score_calcium(as_scan(loud))
  # A tenth of the heart's voxels have more than 142 HU.
  assert 60 < found.heart_hu < 110
  assert any("noise of" in concern for concern in found.concerns)
  quiet = (chest() + 15 * noise).astype(np.int16)
  found = calcium_scan.score_calcium(as_scan(quiet))
  assert not found.concerns


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda x: 0 * x, "mask.nii.gz: the mask is empty"),
    (lambda x: x[1:], "mask.nii.gz: not on the grid of scan.nii.gz"),
  ],
)
def test_a_mask_that_does_not_fit_is_refused(change, message, vessels):
  with pytest.raises(UserError, match=message):
    calcium_scan.score_calcium(as_scan(chest()), mask=as_mask(change(vessels)))


def test_thin_slices_are_averaged_to_3_mm(vessels):
  thin = (1.0, 2.0, 2.0)
  hu = np.repeat(chest(), 3, axis=0)
  mask = volume.Volume(
    np.repeat(vessels, 3, axis=0), grid(hu.shape, thin), path="mask.nii.gz"
  )
  found = calcium_scan.score_calcium(as_scan(hu, thin), mask=mask)
  assert found.slices.shape == SHAPE
  np.testing.assert_array_equal(found.slices.hu, chest())
  assert found.score.regions[2].agatston == pytest.approx(LAD_SCORE)
  assert found.notes == ("120 slices of 1 mm were averaged into 40 of 3 mm",)
  assert found.warnings == []
  # Both lattices cover the same part of the patient.
  edges = [
    one.grid.to_mm((-0.5, 0, 0))[2] for one in (found.scan, found.slices)
  ]
  assert edges[0] == pytest.approx(edges[1])


def test_thick_slices_are_warned_of(vessels):
  thick = (6.0, 2.0, 2.0)
  mask = volume.Volume(vessels, grid(SHAPE, thick), path="mask.nii.gz")
  found = calcium_scan.score_calcium(as_scan(chest(), thick), mask=mask)
  assert found.score.regions[2].agatston == pytest.approx(2 * LAD_SCORE)
  assert "6 mm are thicker than the rule's 3 mm" in found.warnings[0]


def test_the_files_say_where_the_lesions_are(tmp_path, vessels):
  found = calcium_scan.score_calcium(as_scan(chest()), mask=as_mask(vessels))
  document = cadjax.write(found, tmp_path / "out")
  written = {path.name for path in (tmp_path / "out").iterdir()}
  assert written == set(document["files"].values())
  stored = json.loads((tmp_path / "out" / "calcium.json").read_text())
  assert stored == document
  assert stored["schema"] == "cadjax.calcium/1"
  schema_check.validate(stored)
  assert "Not a medical device" in stored["notice"]
  assert stored["category"] == "101-400: moderate"
  assert [x["name"] for x in stored["regions"]] == ["label 2", "label 5"]
  assert stored["rule"]["threshold_hu"] == 130
  labels = volume.read_mask(tmp_path / "out" / "lesions.nii.gz")
  for lesion in stored["lesions"]:
    index = np.rint(labels.grid.to_index(lesion["center_mm"])).astype(int)
    assert labels.hu[tuple(index)] == lesion["number"]
    place = {2: LAD, 5: RCA}[lesion["region"]]
    assert (labels.hu[place] == lesion["number"]).all()
  with Image.open(tmp_path / "out" / "planes.png") as image:
    pixels = np.asarray(image.convert("RGB")).astype(int)
  red = (pixels[..., 0] > 200) & (pixels[..., 1:] < 140).all(-1)
  assert red.sum() > 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory, vessels) -> pathlib.Path:
  """Scans as files: two to be scored, stored unlike, one with contrast."""
  folder = tmp_path_factory.mktemp("scans")
  made = grid()
  volume.write_nifti(folder / "a.nii.gz", chest(), made)
  volume.write_nifti(folder / "mask.nii.gz", vessels, made)
  # Upside down, and right is left, in the file.
  turned = volume.Grid(
    SHAPE,
    SPACING,
    made.to_mm((SHAPE[0] - 1, 0, SHAPE[2] - 1)),
    made.direction * [-1, 1, -1],
  )
  volume.write_nifti(folder / "b.nii.gz", chest()[::-1, :, ::-1], turned)
  volume.write_nifti(folder / "c.nii.gz", chest(blood_hu=350), made)
  return folder


def run(folder, *args: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "cadjax", "calcium", *args],
    cwd=folder,
    env={"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )


def test_the_program_scores_many_and_refuses_one(folder):
  done = run(
    folder,
    *(f"--input={x}.nii.gz" for x in "acb"),
    *(["--mask=mask.nii.gz"] * 3),
    *("--names=LM,LAD", "--calibration=0.75", "--out=many"),
  )
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith("error: c.nii.gz: the heart has contrast")
  assert not (folder / "many" / "c").exists()
  assert "Not a medical device" in done.stdout
  score = (
    "Agatston score 112.0 (101-400: moderate): 2 lesions, 120 mm3, 32.2 mg\n"
    "  LAD: 64.0, lesions: 1\n  label 5: 48.0, lesions: 1\n"
  )
  assert done.stdout.count(score) == 2
  assert "2 scored, 1 failed" in done.stdout
  assert "warning" not in done.stdout
  documents = [
    json.loads((folder / "many" / x / "calcium.json").read_text()) for x in "ab"
  ]
  places = [[x["center_mm"] for x in one["lesions"]] for one in documents]
  np.testing.assert_allclose(places[0], places[1], atol=1e-3)


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ({"mask": ["m", "m"]}, "2 of --mask for 1 scans"),
    ({"names": ["LM"]}, "--names names the labels of a mask"),
    ({"calibration": 0.0}, "--calibration=0: must be above 0"),
  ],
)
def test_flags_that_do_not_go_together(given, message):
  args = {"mask": [], "names": [], "calibration": None} | given
  with pytest.raises(UserError, match=message):
    calcium_score._check(types.SimpleNamespace(**args), jobs=["one"])


def test_what_must_be_read_with_a_score_is_printed():
  job = types.SimpleNamespace(case="scan", folder=pathlib.Path("out"))
  found = calcium_scan.score_calcium(as_scan(chest()))
  first, *lines = calcium_score._describe(job, found).splitlines()
  assert first == f"scan: {found.summary}"
  assert lines[0].startswith("  warning: Without a mask this is not a coronary")
  assert lines[-1] == "  out/calcium.json"


def test_a_mistake_is_one_line(folder):
  done = run(folder, "--input=a.nii.gz", "--out=never", "--mask=a.nii.gz")
  assert done.returncode == 2
  assert done.stderr.startswith("error: a.nii.gz: is not a mask")
  assert done.stderr.count("\n") == 1
  assert not (folder / "never").exists()
