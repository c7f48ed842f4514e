import dataclasses
import html.parser
import inspect
import json
import pathlib
import re

import nibabel as nib
import numpy as np
import pytest
import schema_check
from PIL import Image
from tiny_runs import warning

from cadjax.classification import scan as classification_scan
from cadjax.data import scans
from cadjax.report import classified, pages, planes
from cadjax.training import workdir
from cadjax.training.reading import Reading
from data_prep.errors import UserError
from data_prep.volume import Grid, Volume

DRAW = {name: getattr(planes, name) for name in ("planes_png", "panel_png")}


@pytest.fixture(autouse=True)
def _quick_pictures(monkeypatch):
  """Most tests are about words and files: they need no drawn picture."""
  for name in DRAW:
    monkeypatch.setattr(planes, name, lambda *_, **__: b"picture")


def volume(shape, spacing) -> Volume:
  rng = np.random.default_rng(0)
  hu = rng.integers(-1024, 1000, shape).astype(np.int16)
  grid = Grid(shape, spacing, (-20.0, 5.0, 300.0), np.eye(3)[:, ::-1])
  return Volume(hu, grid, path="somewhere/secret/scan.nii.gz")


TRAINED_ON = workdir.TrainingData(
  source="asoca",
  is_phantom=False,
  cases={"train": 30, "validation": 5, "test": 5},
  patients={"train": 30, "validation": 5, "test": 5},
  fingerprint="0123abcd",
)
ON_PHANTOMS = dataclasses.replace(TRAINED_ON, source="phantom", is_phantom=True)


def case(
  *,
  name="scan",
  concerns=(),
  trained_on=None,
  slices=None,
  model_input=None,
  scan=None,
  **changes,
) -> classification_scan.ClassifiedScan:
  """A scored scan; `changes` of its prediction."""
  scan = scan or volume((10, 20, 30), (3.0, 2.0, 1.0))
  prediction = {
    "label": "cad",
    "probability": 0.731,
    "calibrated": True,
    "uncalibrated_probability": 0.9,
    "temperature": 2.2,
    "calibration_origin": "on validation",
    "threshold": 0.35,
    "threshold_origin": "youden on 14 validation patients",
    "logits": (-1.0, 1.2),
  }
  return classification_scan.ClassifiedScan(
    reading=Reading(
      case=name,
      input_name=f"{name}.nii.gz",
      prepared=scans.Prepared(
        scan=scan,
        model_input=model_input or volume((8, 6, 4), (1.0, 3.0, 2.0)),
        heart_mm=tuple(scan.grid.center_mm.tolist()),
        heart_origin="found in the image",
        features={"hu_p50": -40.0, "undefined": float("nan")},
        concerns=tuple(concerns),
      ),
      model=workdir.ModelCard(
        workdir="classifier",
        step=7,
        model={"name": "resnet", "ndim": 3, "depth": 50},
        trained_on=trained_on or TRAINED_ON,
        grid={"kind": "heart"},
        window_hu=(-200.0, 1000.0),
        versions={"git": "abc1234"},
      ),
      software=workdir.Software("0", None, "3", {"jax": "0"}, ()),
      created="2026-01-02T03:04:05+00:00",
    ),
    prediction=classification_scan.Prediction(**(prediction | changes)),
    slices=slices,
  )


class Page(html.parser.HTMLParser):
  """Collects the text and every attribute of a page."""

  def __init__(self, source: str):
    super().__init__()
    self.words, self.attributes, self.tags = [], [], []
    self.feed(source)
    self.text = " ".join(" ".join(self.words).split())

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, name, value) for name, value in attrs]

  def handle_data(self, data):
    self.words.append(data)


def test_a_case_is_four_whole_files(tmp_path, monkeypatch):
  for name, draw in DRAW.items():
    monkeypatch.setattr(planes, name, draw)
  result = case()
  written = classified.write_classified(result, tmp_path / "made" / "case")
  folder = tmp_path / "made" / "case"
  assert {p.name for p in folder.iterdir()} == set(classified.FILES.values())
  assert [p.name for p in folder.parent.iterdir()] == ["case"]
  assert json.loads((folder / "result.json").read_text()) == written
  schema_check.validate(written)
  with Image.open(folder / "planes.png") as picture:
    assert picture.size[0] > 1000
  image = nib.load(folder / "preprocessed.nii.gz")
  # File axes i, j, k are W, H, D; NIfTI's x and y point the other way.
  data = np.asarray(image.dataobj).transpose(2, 1, 0)
  np.testing.assert_array_equal(data, result.reading.model_input.hu)
  center = image.affine @ [3, 5, 7, 1]
  expected = result.reading.model_input.grid.to_mm((7, 5, 3)) * [-1, -1, 1]
  np.testing.assert_allclose(center[:3], expected)


def test_json_is_strict_and_names_no_path():
  text = json.dumps(classified.to_json(case()), allow_nan=False)
  assert json.loads(text)["plausibility"]["features"]["undefined"] is None
  assert "secret" not in text
  assert json.loads(text)["schema"] == classified.SCHEMA


def test_the_documented_fields_are_the_written_ones():
  def listed(text):
    # Python 3.13 strips the indentation itself.
    lines = inspect.cleandoc(text).splitlines()
    lines = [line.removeprefix("  ") for line in lines]
    return [line.split()[0] for line in lines if re.match(r"\w+   ", line)]

  shared = listed(pages.envelope.__doc__)
  own = listed(classified.__doc__)
  assert len(shared) > 5
  assert len(own) > 3
  assert list(classified.to_json(case())) == shared + own


def test_json_and_page_carry_the_notice():
  assert classified.to_json(case())["notice"] == pages.NOTICE
  assert pages.NOTICE in Page(classified.render_page(case())).text


def test_no_warning_without_a_reason():
  page = classified.render_page(case())
  assert classified.to_json(case())["warnings"] == []
  assert 'class="warning"' not in page


def test_phantom_training_is_said():
  result = case(trained_on=ON_PHANTOMS)
  assert classified.to_json(result)["warnings"] == [warning("phantom")]
  assert warning("phantom") in Page(classified.render_page(result)).text


def test_concerns_are_said_before_the_number():
  concern = "no contrast in the heart: 45 HU"
  result = case(concerns=(concern,), trained_on=ON_PHANTOMS)
  text = Page(classified.render_page(result)).text
  assert text.count(concern) == 1
  assert warning("unlike") in text
  assert text.index(concern) < text.index("73.1 %")
  document = classified.to_json(result)
  assert document["plausibility"]["concerns"] == [concern]
  assert document["warnings"][0] == warning("unlike")


def test_the_page_tells_number_threshold_and_calibration():
  text = Page(classified.render_page(case())).text
  assert "73.1 %" in text
  assert "at or above the threshold of 35.0 %: called CAD" in text
  assert "youden on 14 validation patients" in text
  assert "temperature 2.200" in text
  assert "Not calibrated" not in text


def test_an_uncalibrated_number_is_called_that():
  result = case(
    calibrated=False,
    temperature=None,
    calibration_origin="never evaluated",
    label="normal",
    probability=0.2,
  )
  text = Page(classified.render_page(result)).text
  assert "Not calibrated : never evaluated" in text
  assert "below the threshold of 35.0 %: called normal" in text


def test_the_page_needs_no_network():
  page = Page(classified.render_page(case()))
  sources = [v for _, name, v in page.attributes if name in ("src", "href")]
  assert len(sources) == 6
  assert all(v.startswith("data:image/png;base64,") for v in sources)
  assert "script" not in page.tags
  assert "link" not in page.tags


def test_names_are_escaped():
  name = "<script>alert(1)</script>&"
  page = Page(classified.render_page(case(name=name, concerns=(name,))))
  assert "script" not in page.tags
  assert name in page.text


def test_slices_have_their_own_curve():
  slices = classification_scan.Slices("topk", (0.1, 0.9, 0.4), (0.0, 1.5, 3.0))
  page = Page(classified.render_page(case(slices=slices)))
  assert page.tags.count("img") == 7
  assert "the topk over 3 slices" in page.text
  assert classified.to_json(case(slices=slices))["slices"] == {
    "pooling": "topk",
    "probability": [0.1, 0.9, 0.4],
    "offset_mm": [0.0, 1.5, 3.0],
  }


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
  def fail(*_):
    raise OSError("No space left on device")

  monkeypatch.setattr(classified, "write_nifti", fail)
  with pytest.raises(UserError, match="No space left"):
    classified.write_classified(case(), tmp_path / "case")
  assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_keeps_the_old_result(tmp_path, monkeypatch):
  classified.write_classified(case(name="old"), tmp_path / "case")

  def fail(*_):
    raise OSError("No space left on device")

  monkeypatch.setattr(classified, "write_nifti", fail)
  with pytest.raises(UserError):
    classified.write_classified(
      case(name="new"), tmp_path / "case", overwrite=True
    )
  (folder,) = tmp_path.iterdir()
  assert json.loads((folder / "result.json").read_text())["case"] == "old"


def test_a_result_is_replaced_only_when_asked(tmp_path):
  folder = tmp_path / "case"
  classified.write_classified(case(name="old"), folder)
  with pytest.raises(UserError, match="--overwrite"):
    classified.write_classified(case(name="new"), folder)
  classified.write_classified(case(name="new"), folder, overwrite=True)
  assert json.loads((folder / "result.json").read_text())["case"] == "new"
  assert [p.name for p in tmp_path.iterdir()] == ["case"]


def fill(folder: pathlib.Path) -> None:
  folder.mkdir()
  (folder / "thesis.txt").touch()


def fill_beside_result(folder: pathlib.Path) -> None:
  classified.write_classified(case(), folder)
  (folder / "thesis.txt").touch()


def fill_with_other_json(folder: pathlib.Path) -> None:
  folder.mkdir()
  (folder / "result.json").write_text('{"schema": "other", "files": {}}')


@pytest.mark.parametrize(
  "make", [fill, fill_beside_result, fill_with_other_json, pathlib.Path.touch]
)
def test_a_users_own_files_are_never_replaced(tmp_path, make):
  folder = tmp_path / "case"
  make(folder)
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
  with pytest.raises(UserError):
    classified.write_classified(case(), folder, overwrite=True)
  assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_an_empty_folder_is_used(tmp_path):
  classified.write_classified(case(), tmp_path)
  assert (tmp_path / "result.json").exists()
