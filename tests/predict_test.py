import functools
import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import nibabel as nib
import numpy as np
import pydicom
import pytest
import schema_check
import SimpleITK as sitk
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from tiny_runs import (
  STEP,
  classify_file,
  messages,
  predict_all,
  warning,
  write_workdir,
)

from cadjax import tasks
from cadjax.classification import scan as classification_scan
from cadjax.classification.classifier import Classifier
from cadjax.core import files
from cadjax.data import jobs as scan_jobs
from cadjax.report import classified, pages
from data_prep import geometry, plausibility, volume
from data_prep.errors import UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  path = tmp_path_factory.mktemp("workdirs") / "classifier"
  return tasks.load_model(write_workdir(path))


@pytest.fixture
def scan(tmp_path):
  """A small scan with a bright heart-like blob, as NIfTI."""
  rng = np.random.default_rng(5)
  hu = rng.normal(-100, 60, (12, 20, 30))
  hu[4:9, 6:14, 12:22] = 350
  lattice = volume.Grid(
    hu.shape, (9.0, 8.0, 7.0), (-100.0, -80.0, 10.0), np.eye(3)[:, ::-1]
  )
  path = tmp_path / "scan.nii.gz"
  volume.write_nifti(path, hu.astype(np.int16), lattice)
  return path


@pytest.fixture
def evaluate(trained):
  """Writes what prediction reads of an evaluation; gone after the test."""
  yield functools.partial(write_evaluation, trained.path)
  shutil.rmtree(trained.path / "eval", ignore_errors=True)


def write_evaluation(path: pathlib.Path, **changes) -> None:
  values = {
    "step": STEP,
    "temperature": 2.5,
    "temperature_origin": "least negative log likelihood on validation",
    "threshold": 0.31,
    "threshold_origin": "youden on 14 validation patients",
    "pooling": "none",
  }
  (path / "eval").mkdir(exist_ok=True)
  files.write_json(path / "eval" / "metrics.json", values | changes)


def logit(p: float) -> float:
  return float(np.log(p / (1 - p)))


def write_dicom(folder: pathlib.Path, hu: np.ndarray, affine: np.ndarray):
  """Writes [i, j, k] HU as a CT series, one file a slice, no extensions.

  Args:
    folder: to be made.
    hu: [i, j, k], i to the left, j to posterior, k to superior.
    affine: of the NIfTI file (RAS), diagonal but for the translation.
  """
  folder.mkdir()
  series, study, frame = generate_uid(), generate_uid(), generate_uid()
  for k in range(hu.shape[2]):
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = pydicom.dataset.FileDataset(
      "", {}, file_meta=meta, preamble=b"\0" * 128
    )
    ds.SOPClassUID = CTImageStorage
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
    ds.FrameOfReferenceUID = frame
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = "CT", 3, k + 1
    ds.PatientName, ds.PatientID = "Testperson^Jane", "MRN-778899"
    ds.InstitutionName, ds.StudyDate = "Mercy Clinic", "20190317"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    x, y, z = affine[:3, :3] @ [0, 0, k] + affine[:3, 3]
    ds.ImagePositionPatient = [f"{v:.6f}" for v in (-x, -y, z)]
    ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    ds.PixelSpacing = [abs(affine[1, 1]), abs(affine[0, 0])]
    ds.SliceThickness = abs(affine[2, 2])
    ds.Columns, ds.Rows = hu.shape[:2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = 1
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.PixelData = (hu[:, :, k].T + np.int16(1024)).astype("<i2").tobytes()
    # File names in no useful order.
    name = f"I{(k * 7919) % 100003:06d}"
    ds.save_as(folder / name, enforce_file_format=True)


def test_all_formats_of_the_real_ct_give_one_probability(
  trained, real_ct, tmp_path
):
  nifti = real_ct / "ct.nii.gz"
  image = nib.load(nifti)
  hu = np.asarray(image.dataobj)
  write_dicom(tmp_path / "series", hu, image.affine)
  like = sitk.ReadImage(str(nifti))
  for suffix in ("nrrd", "mha"):
    sitk.WriteImage(like, str(tmp_path / f"scan.{suffix}"))
  paths = [nifti, *(tmp_path / n for n in ("series", "scan.nrrd", "scan.mha"))]
  results = [classify_file(trained, path) for path in paths]
  first, *others = [r.prediction.probability for r in results]
  assert others == pytest.approx([first] * 3, abs=1e-4)
  # Not because the model gives one answer to everything.
  upside_down = results[0].reading.model_input.hu[::-1]
  _, (flipped,) = classification_scan.score(
    trained, np.ascontiguousarray(upside_down)
  )
  assert 0.01 < first < 0.99
  assert abs(flipped - first) > 1e-2


def test_no_header_field_of_a_dicom_series_reaches_an_output(
  trained, tmp_path, scan
):
  image = nib.load(scan)
  # The fixture's file has x to the left and y to posterior, as DICOM wants.
  write_dicom(tmp_path / "series", np.asarray(image.dataobj), image.affine)
  result = classify_file(trained, tmp_path / "series", case="case-1")
  classified.write_classified(result, tmp_path / "out")
  for path in (tmp_path / "out").iterdir():
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    for secret in (b"Testperson", b"MRN-778899", b"Mercy Clinic", b"20190317"):
      assert secret not in content, (path.name, secret)
    assert str(tmp_path).encode() not in content


def test_the_planes_of_the_real_ct_cross_in_its_heart(trained, real_ct):
  result = classify_file(trained, real_ct / "ct.nii.gz")
  heart = volume.read_mask(real_ct / "heart.nii.gz")
  index = np.rint(heart.grid.to_index(result.reading.prepared.heart_mm)).astype(
    int
  )
  assert heart.hu[tuple(index)] > 0


def test_without_an_evaluation_the_number_is_called_uncalibrated(trained, scan):
  prediction = classify_file(trained, scan).prediction
  assert not prediction.calibrated
  assert prediction.temperature is None
  assert prediction.probability == prediction.uncalibrated_probability
  assert prediction.threshold == 0.5
  for origin in ("calibration_origin", "threshold_origin"):
    assert "cadjax.evaluate has not been run" in getattr(prediction, origin)
  normal, cad = prediction.logits
  assert logit(prediction.probability) == pytest.approx(cad - normal)


def test_an_evaluation_settles_temperature_and_threshold(
  trained, evaluate, scan
):
  evaluate()
  prediction = classify_file(trained, scan).prediction
  assert prediction.calibrated
  assert logit(prediction.probability) == pytest.approx(
    logit(prediction.uncalibrated_probability) / 2.5
  )
  assert prediction.threshold == 0.31
  assert prediction.threshold_origin == "youden on 14 validation patients"
  called = prediction.probability >= 0.31
  assert prediction.label == ("cad" if called else "normal")


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_threshold_decides(trained, evaluate, scan, threshold):
  evaluate(threshold=threshold)
  label = classify_file(trained, scan).prediction.label
  assert label == ("cad" if threshold == 0.0 else "normal")


@pytest.mark.parametrize(
  ("why", "flag"),
  [
    ("there was one class only", {"temperature_fitted": False}),
    # As written before there was a flag.
    ("not fitted: validation holds one class only", {}),
  ],
)
def test_a_temperature_that_was_not_fitted_is_no_calibration(
  trained, evaluate, why, flag
):
  evaluate(temperature=1.0, temperature_origin=why, **flag)
  settled = classification_scan.read_calibration(trained)
  assert (settled.temperature, settled.origin) == (None, why)
  assert settled.threshold == 0.31


def test_an_evaluation_of_another_step_is_not_used(trained, evaluate):
  evaluate(step=STEP - 1)
  settled = classification_scan.read_calibration(trained)
  assert (settled.temperature, settled.threshold) == (None, 0.5)
  assert "of step 6, not of step 7" in settled.threshold_origin


def test_a_damaged_evaluation_is_told(trained, evaluate):
  evaluate(threshold=None)
  with pytest.raises(UserError, match="not what cadjax.evaluate writes"):
    classification_scan.read_calibration(trained)


def test_a_2d_model_pools_its_slices(tmp_path, scan):
  path = write_workdir(tmp_path / "classifier", ndim=2, source="asoca")
  trained = tasks.load_model(path)
  results = {}
  for pooling in ("mean", "max"):
    write_evaluation(path, pooling=pooling, temperature=1.0)
    results[pooling] = classify_file(trained, scan)
  for pooling, result in results.items():
    slices = result.slices
    probs = np.array(slices.probability)
    assert probs.shape == (24,)
    pooled = result.prediction.uncalibrated_probability
    assert pooled == pytest.approx(getattr(probs, pooling)())
    assert slices.pooling == pooling
    # 12 slices of 9 mm, resized to 24.
    np.testing.assert_allclose(np.diff(slices.offset_mm), 4.5)
    assert warning("phantom") not in result.warnings
  assert np.ptp(probs) > 1e-3


def test_phantom_training_is_said(trained, scan):
  result = classify_file(trained, scan)
  assert warning("phantom") in result.warnings


def test_concerns_are_of_the_scan_and_of_the_training_range(
  trained, scan, monkeypatch
):
  reference = {"feature": [0.0, 1.0]}
  monkeypatch.setitem(trained.dataset, "reference", reference)
  seen = []

  def concerns(features, reference):
    seen.append((features["shape"], reference))
    return ["twice", "far from training" if reference else "not the thorax"]

  monkeypatch.setattr(plausibility, "describe", lambda v: {"shape": v.shape[0]})
  monkeypatch.setattr(plausibility, "concerns", concerns)
  result = classify_file(trained, scan)
  # Anatomy is judged on the scan, ranges where the training cases lived.
  assert seen == [(12, None), (24, reference)]
  assert result.reading.prepared.concerns == (
    "twice",
    "not the thorax",
    "far from training",
  )
  assert warning("unlike") in result.warnings


@pytest.mark.parametrize(
  ("change", "said"),
  [
    (lambda hu: hu, None),
    (lambda hu: np.minimum(hu, 60), "no contrast: the lumen cannot be seen"),
    (lambda hu: hu + 1024, "may not be HU"),
    (lambda hu: np.maximum(hu, -100), "may not be HU"),
  ],
)
def test_an_unusual_scan_is_flagged_in_words(
  trained, real_ct, tmp_path, change, said
):
  image = nib.load(real_ct / "ct.nii.gz")
  hu = change(np.asarray(image.dataobj)).astype(np.int16)
  path = tmp_path / "scan.nii"
  nib.save(nib.Nifti1Image(hu, image.affine), path)
  result = classify_file(trained, path)
  if said is None:
    assert result.reading.prepared.concerns == ()
  else:
    assert said in " ".join(result.reading.prepared.concerns)
  assert (warning("unlike") in result.warnings) == (said is not None)


def test_a_heart_mask_moves_the_planes(trained, scan, tmp_path):
  mask = np.zeros((12, 20, 30), np.uint8)
  mask[2:5, 4:7, 20:23] = 3
  read = volume.read_volume(scan)
  volume.write_nifti(tmp_path / "mask.nii.gz", mask, read)
  result = classify_file(
    trained, scan, heart_mask=str(tmp_path / "mask.nii.gz")
  )
  expected = read.grid.to_mm((3, 5, 21))
  np.testing.assert_allclose(
    result.reading.prepared.heart_mm, expected, atol=1e-3
  )
  volume.write_nifti(tmp_path / "empty.nii.gz", 0 * mask, read)
  with pytest.raises(UserError, match="heart mask is empty"):
    classify_file(trained, scan, heart_mask=str(tmp_path / "empty.nii.gz"))


def test_a_scan_without_a_heart_is_scored_but_flagged(
  trained, scan, monkeypatch
):
  def no_heart(_):
    raise UserError("there is no body in the scan")

  monkeypatch.setattr(geometry, "find_heart", no_heart)
  result = classify_file(trained, scan)
  assert "no heart was found in the image" in result.reading.prepared.concerns
  np.testing.assert_allclose(
    result.reading.prepared.heart_mm, result.reading.scan.grid.center_mm
  )


def test_running_out_of_memory_is_one_line(trained, monkeypatch):
  def full(*_):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

  monkeypatch.setattr(Classifier, "logits", full)
  with pytest.raises(UserError, match="out of memory while scoring 4x5x6"):
    classification_scan.score(trained, np.zeros((4, 5, 6), np.int16))


def test_logits_that_are_not_finite_are_no_result(trained, monkeypatch):
  monkeypatch.setattr(
    Classifier, "logits", lambda *_: np.full((1, 1, 2), np.nan)
  )
  with pytest.raises(UserError, match="NaN"):
    classification_scan.score(trained, np.zeros((4, 5, 6), np.int16))


def test_an_unexpected_error_does_not_stop_the_others(
  trained, scan, tmp_path, monkeypatch, capsys
):
  original = volume.read_volume

  def read(path, **options):
    if path.name == "bad.nii.gz":
      raise KeyError("surprise")
    return original(path, **options)

  monkeypatch.setattr(volume, "read_volume", read)
  (tmp_path / "bad.nii.gz").touch()
  bad = str(tmp_path / "bad.nii.gz")
  jobs = scan_jobs.make_jobs([bad, str(scan)], tmp_path / "out")
  assert predict_all(trained, jobs) == 1
  told = capsys.readouterr()
  assert "KeyError" in told.err
  assert "scan: probability of CAD" in told.out
  # Alone, it is for the developer to see in full.
  with pytest.raises(KeyError):
    predict_all(trained, jobs[:1])


STRANGE = {
  "a$b^c$": "a$b^c$",
  "$x^{": "$x^{",
  "tab\ttab": "tab_tab",
  "new\nline": "new_line",
  "\x1b[31mred\x07": "_[31mred_",
  os.fsdecode(b"caf\xe9"): "caf_",
  "café": "café",
}


def test_strange_names_are_scored_and_written(trained, scan, tmp_path, capsys):
  """Of formulas, with control characters, and in no encoding."""
  (tmp_path / "in").mkdir()
  for name in STRANGE:
    shutil.copy(scan, tmp_path / "in" / f"{name}.nii.gz")
  jobs = scan_jobs.make_jobs([str(tmp_path / "in" / "*")], tmp_path / "out")
  assert predict_all(trained, jobs) == 0
  told = capsys.readouterr()
  assert told.err == ""
  assert len(told.out.splitlines()) == len(STRANGE)
  assert {p.name for p in (tmp_path / "out").iterdir()} == {*STRANGE.values()}
  for folder in (tmp_path / "out").iterdir():
    result = json.loads((folder / "result.json").read_text())
    assert result["case"] == folder.name


def test_what_is_no_scan_stops_no_other(trained, scan, tmp_path, capsys):
  bad = [
    tmp_path / name for name in ("pipe.nii.gz", "loop.mha", "x\n.nrrd", "n.mha")
  ]
  os.mkfifo(bad[0])
  bad[1].symlink_to("loop.mha")
  bad[2].mkdir()
  bad[3].write_text("NDims = -1\nElementDataFile = %s%n\n")
  given = [*map(str, bad), str(scan)]
  jobs = scan_jobs.make_jobs(given, tmp_path / "out")
  assert predict_all(trained, jobs) == len(bad)
  told = capsys.readouterr()
  assert told.out == "scan: probability of CAD\n"
  lines = told.err.splitlines()
  for line, words in zip(
    lines,
    ("a pipe", "leads nowhere", "is a folder", "ndims is -1"),
    strict=True,
  ):
    assert line.startswith("error: ")
    assert words in line


def run_predict(*args: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "cadjax.predict", *args],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parents[1],
  )


def write_bad_inputs(root: pathlib.Path, scan: pathlib.Path) -> list[str]:
  """Returns a missing, a truncated, an MR and a NaN input."""
  (root / "truncated.nii.gz").write_bytes(scan.read_bytes()[:500])
  image = nib.load(scan)
  hu = np.asarray(image.dataobj)
  write_dicom(root / "mr", hu, image.affine)
  for path in (root / "mr").iterdir():
    ds = pydicom.dcmread(path)
    ds.Modality = "MR"
    ds.save_as(path)
  hu = hu.astype(np.float32)
  hu[1, 2, 3] = np.nan
  nib.save(nib.Nifti1Image(hu, image.affine), root / "nan.nii.gz")
  names = ("missing.nii.gz", "truncated.nii.gz", "mr", "nan.nii.gz")
  return [str(root / name) for name in names]


def test_each_bad_input_fails_alone_in_one_line(trained, scan, tmp_path):
  bad = write_bad_inputs(tmp_path, scan)
  given = [*bad[:2], str(scan), *bad[2:]]
  done = run_predict(
    f"--classifier={trained.path}",
    f"--out={tmp_path / 'out'}",
    *(f"--input={path}" for path in given),
  )
  assert done.returncode == 2, done.stderr
  lines = messages(done)
  assert len(lines) == 4, done.stderr
  for line, path in zip(lines, bad, strict=True):
    assert line.startswith("error: ")
    assert path in line
  assert "MR image" in lines[2]
  assert "NaN" in lines[3]
  # The good one is whole, and nothing else is there, hidden or not.
  assert [p.name for p in (tmp_path / "out").iterdir()] == ["scan"]
  document = json.loads((tmp_path / "out/scan/result.json").read_text())
  schema_check.validate(document)
  expected = classify_file(trained, scan).prediction
  assert document["prediction"]["probability"] == pytest.approx(
    expected.probability, abs=1e-4
  )
  assert "1 scored, 4 failed" in done.stdout
  assert pages.NOTICE in done.stdout
  assert warning("phantom") in done.stdout
  assert "uncalibrated" in done.stdout


def test_a_folder_that_is_no_workdir_is_told_in_one_line(scan, tmp_path):
  done = run_predict(
    f"--classifier={tmp_path}", f"--input={scan}", f"--out={tmp_path / 'out'}"
  )
  assert done.returncode == 2
  (line,) = messages(done)
  assert line.startswith(f"error: {tmp_path} is not a workdir")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  "flag",
  [
    *("--layer=stage1", "--method=gradcam", "--decision=link.json"),
    *("--pdf=letter", "--calcium=calcium.json"),
  ],
)
def test_a_flag_of_both_models_without_a_segmenter_is_told(
  trained, scan, tmp_path, flag
):
  done = run_predict(
    f"--classifier={trained.path}",
    f"--input={scan}",
    f"--out={tmp_path / 'out'}",
    flag,
  )
  assert done.returncode == 2
  (line,) = messages(done)
  assert f"{flag.partition('=')[0]} is of both models" in line
  assert not (tmp_path / "out").exists()
