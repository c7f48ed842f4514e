"""The chest first, then the coronary arteries in the box around its heart.

Models have random weights; where it matters what they answer, they answer with
the truth of a phantom.
"""

import contextlib
import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest
from absl import flags
from tiny_runs import link_file, segment_file, segmenter_config, write_workdir

from cadjax import explain, predict, segment
from cadjax.classification.classifier import load_classifier
from cadjax.core import lookup
from cadjax.data import classes, scans
from cadjax.link import scan as link_scan
from cadjax.report import linked, planes, segmented, viewer
from cadjax.segmentation import chest as chest_lib
from cadjax.segmentation import scan as segmentation_scan
from cadjax.segmentation import sliding
from cadjax.segmentation.segmenter import Segmenter, load_segmenter, load_wide
from cadjax.training import packed
from cadjax.weights import pack
from configs import resnet3d
from data_prep import flag_help, geometry, phantom, volume
from data_prep.errors import UserError

CHEST = classes.get_class_set("chest").names[1:]
HEART = [k for k, name in enumerate(CHEST, 1) if name in chest_lib.HEART]
WIDE_GRID = {"kind": "spacing", "spacing_mm": [6.0, 6.0, 6.0]}
BOX_GRID = {
  "kind": "heart", "shape": [48, 48, 48], "box_mm": [128.0, 128.0, 128.0],
}  # fmt: skip
ON_CONTRAST = {"heart_hu": [250.0, 650.0]}


def config(class_set):
  made = segmenter_config()
  made.segment.classes = class_set
  made.data.patch_size = (16, 16, 16)
  made.segment.min_component_mm3 = 0.0
  return made


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  return {
    "wide": write_workdir(
      folder / "wide", config=config("chest"), grid=WIDE_GRID
    ),
    "coronary": write_workdir(
      folder / "coronary",
      config=config("four"),
      grid=BOX_GRID,
      reference=ON_CONTRAST,
    ),
    "classifier": write_workdir(
      folder / "classifier", grid=BOX_GRID | {"shape": [16, 20, 24]}
    ),
  }


@pytest.fixture(scope="module")
def pair(workdirs):
  return link_scan.load_pair(
    workdirs["classifier"], workdirs["coronary"], wide=workdirs["wide"]
  )


@pytest.fixture
def shipped(workdirs, tmp_path_factory, monkeypatch):
  """A folder of shipped models; each program finds them by default."""
  folder = tmp_path_factory.mktemp("weights")
  monkeypatch.setattr(pack, "measure_half", lambda *_: None)
  for name, path in workdirs.items():
    pack.pack(path, name, folder)
  monkeypatch.setattr(packed, "FOLDER", folder)
  return folder


@dataclasses.dataclass
class Drawn:
  """A phantom on a coarse scanner grid, with the truth about its chest."""

  volume: volume.Volume
  four: np.ndarray
  chest: np.ndarray
  path: object = None
  heart_mm: np.ndarray | None = None


def draw(path, *, contrast_hu=450.0, seed=5):
  spec = geometry.GridSpec("spacing", spacing_mm=(2.5, 2.5, 2.5))
  made = phantom.make_phantom(
    seed,
    label=1,
    severity="overt",
    grid=spec,
    scanner={"contrast_hu": contrast_hu},
  )
  grid, chest = made.volume.grid, classes.map_mask(made.tissues, "chest")
  box = np.argwhere(np.isin(chest, HEART))
  middle = grid.to_mm((box.min(0) + box.max(0)) / 2)
  volume.write_nifti(path, made.volume.hu, grid)
  return Drawn(made.volume, made.mask, chest, path, middle)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
  return draw(tmp_path_factory.mktemp("scans") / "scan.nii.gz")


@pytest.fixture(scope="module")
def without_contrast(tmp_path_factory):
  path = tmp_path_factory.mktemp("scans") / "plain.nii.gz"
  return draw(path, contrast_hu=45.0)


@pytest.fixture
def oracle(monkeypatch):
  """Makes segmenters answer with the truth of the scan that is given to it.

  By class set; what is left out answers with background.
  """
  seen, truth = {}, {}
  prepare = scans.prepare_scan

  def remember(given, *args):
    prepared = prepare(given, *args)
    seen.update(grid=prepared.model_input.grid, of=prepared.scan.grid)
    return prepared

  def say(self, hu, keep_thin=False, **_):
    truth["kept_thin"] = keep_thin
    count = len(self.class_names)
    labels = np.zeros(hu.shape, np.uint8)
    true = truth.get(self.config.segment.classes)
    if callable(true):
      true = true()
    if true is not None:
      labels = geometry.resample(
        true, seen["of"], seen["grid"], order="nearest"
      )
    return sliding.Segmentation(labels, np.eye(count)[labels].astype("float16"))

  monkeypatch.setattr(scans, "prepare_scan", remember)
  monkeypatch.setattr(Segmenter, "segment", say)
  return truth


@pytest.fixture
def quick(monkeypatch):
  """Leaves out what takes seconds to draw."""
  monkeypatch.setattr(planes, "planes_png", lambda *_, **__: b"picture")
  monkeypatch.setattr(planes, "panel_png", lambda *_, **__: b"picture")
  monkeypatch.setattr(viewer, "heat_viewer", lambda *_, **__: "<p>heat</p>")
  monkeypatch.setattr(viewer, "mask_viewer", lambda *_, **__: "<p>mask</p>")


def in_two_stages(pair, path):
  scan = scans.read_scan(path)
  return segmentation_scan.segment_scan(pair.segmenter, scan, wide=pair.wide)


def forbidden():
  pytest.fail("the coronary stage was run")


def test_both_stages_are_one_label_map_with_a_table_of_names(
  pair, drawn, oracle, tmp_path
):
  oracle.update(chest=drawn.chest, four=drawn.four)
  result = in_two_stages(pair, drawn.path)
  document = segmented.write_segmented(result, tmp_path / "out")
  names = {row["value"]: row["name"] for row in document["classes"]}
  assert tuple(names.values()) == (
    *CHEST, "lumen", "stable_plaque", "unstable_plaque"
  )  # fmt: skip
  image = nib.load(tmp_path / "out/segments.nii.gz")
  labels = np.asarray(image.dataobj)
  np.testing.assert_array_equal(image.affine, nib.load(drawn.path).affine)
  for row in document["classes"]:
    assert row["voxels"] == (labels == row["value"]).sum()
  found = {row["name"]: row["volume_ml"] for row in document["classes"]}
  true_ml = (drawn.chest == 1).sum() * 2.5**3 / 1000
  # 6 mm voxels, and the finer ones of the box.
  assert found["aorta"] == pytest.approx(true_ml, rel=0.3)
  assert found["lungs"] > 1000
  assert found["lumen"] > 0.5
  assert document["segmenter"]["workdir"] == "coronary"
  assert document["wide"]["workdir"] == "wide"
  assert document["skipped"] is None
  text = (tmp_path / "out/segments.json").read_text()
  assert json.loads(text) == document


def test_coarse_voxels_do_not_tell_soft_plaque(
  pair, drawn, oracle, monkeypatch
):
  # Of this patient's plaque all is calcified.
  four = np.where(
    (drawn.four == 2) & (np.indices(drawn.four.shape)[0] % 2), 4, drawn.four
  )
  oracle.update(chest=drawn.chest, four=four.astype(np.uint8))

  def volumes(result):
    return {one.name: one.volume_ml for one in result.classes}

  coarse = in_two_stages(pair, drawn.path)
  told = [text for text in coarse.warnings if "too coarse" in text]
  assert told == [
    "Voxels of 2.5 mm are too coarse to tell plaque without calcium from a"
    " narrow lumen: both are counted as lumen."
  ]
  kept = oracle["kept_thin"]
  monkeypatch.setattr(segmentation_scan, "SOFT_PLAQUE_MM", 2.5)
  fine = in_two_stages(pair, drawn.path)
  assert not any("too coarse" in text for text in fine.warnings)
  assert (kept, oracle["kept_thin"]) == (True, False)
  one, other = volumes(coarse), volumes(fine)
  assert one["unstable_plaque"] == 0 < other["unstable_plaque"]
  assert "unstable plaque" not in coarse.summary
  assert "unstable plaque" in fine.summary
  assert one["lumen"] > other["lumen"]
  # Calcium is bright on any grid.
  assert one["stable_plaque"] == pytest.approx(other["stable_plaque"], rel=0.1)


def test_the_box_lies_around_the_heart_of_the_first_stage(pair, drawn, oracle):
  """Not around what is found in the image, which is then not asked."""
  moved = np.roll(drawn.chest, 8, axis=2)  # 20 mm to the patient's left.
  oracle.update(chest=moved)
  prepared = in_two_stages(pair, drawn.path).reading.prepared
  assert prepared.heart_origin == "from the wide segmenter's heart"
  away = prepared.model_input.grid.center_mm - drawn.heart_mm
  np.testing.assert_allclose(away, (20, 0, 0), atol=6)
  np.testing.assert_allclose(
    prepared.heart_mm - drawn.heart_mm, (20, 0, 0), atol=12
  )


def test_a_piece_of_heart_elsewhere_is_dropped(pair, drawn, oracle):
  """A right atrium in the liver: it would be no part of this heart."""
  stray = drawn.chest.copy()
  stray[1:9, 10:18, 5:13] = HEART[3]
  oracle.update(chest=stray)
  found = segment_file(pair.wide, drawn.path)
  right = dict(zip(CHEST, found.classes, strict=True))["right_atrium"]
  assert not (found.labels[:8, 10:18, 5:13] == HEART[3]).any()
  assert right.components == 1


def test_without_a_heart_of_the_first_stage_the_image_is_asked(
  pair, drawn, oracle
):
  truth = np.where(np.isin(drawn.chest, HEART), 0, drawn.chest)
  oracle.update(chest=truth)
  result = in_two_stages(pair, drawn.path)
  alone = segment_file(pair.segmenter, drawn.path)
  ours, theirs = (x.reading.model_input.grid for x in (result, alone))
  assert ours == theirs
  (said,) = result.reading.prepared.concerns
  assert said.startswith("no heart was found (only 0 mL")
  assert result.skipped is None  # There is one in the image.


def test_a_mask_of_the_user_goes_before_the_first_stage(
  pair, drawn, oracle, tmp_path
):
  mask = np.zeros(drawn.volume.shape, np.uint8)
  mask[10:20, 30:40, 50:60] = 1
  volume.write_nifti(tmp_path / "mask.nii.gz", mask, drawn.volume.grid)
  oracle.update(chest=drawn.chest)
  scan = scans.read_scan(drawn.path, heart_mask=str(tmp_path / "mask.nii.gz"))
  result = segmentation_scan.segment_scan(pair.segmenter, scan, wide=pair.wide)
  np.testing.assert_allclose(
    result.reading.model_input.grid.center_mm,
    drawn.volume.grid.to_mm((14.5, 34.5, 54.5)),
    atol=1e-3,
  )
  assert result.classes[0].voxels  # The chest is segmented all the same.


def test_a_classifier_of_the_heart_alone_gets_that_heart(
  pair, drawn, oracle, tmp_path
):
  seen = resnet3d.get_config().copy_and_resolve_references()
  with seen.unlocked():
    seen.model.update(depth=10, width=4)
    seen.data.prior.use = "heart"
    seen.data.prior.margin_voxels = (0, 0, 0)
  path = write_workdir(
    tmp_path / "heart", config=seen, grid=BOX_GRID | {"shape": [32, 32, 32]}
  )
  classifier, scan = load_classifier(path), scans.read_scan(drawn.path)
  oracle.update(chest=drawn.chest)
  placed = segmentation_scan.place_heart(pair.wide, scan)
  kept = classifier.prepare(placed).model_input
  outside = (kept.hu == seen.data.window_hu[0]).mean()
  assert 0.4 < outside < 0.95
  oracle.update(chest=np.zeros_like(drawn.chest))
  with pytest.raises(UserError, match="neither heart nor lungs .* sees the he"):
    classifier.prepare(segmentation_scan.place_heart(pair.wide, scan))


def test_without_contrast_there_is_never_a_vessel_tree(
  pair, without_contrast, oracle, tmp_path, quick
):
  oracle.update(chest=without_contrast.chest, four=forbidden)
  result = link_file(pair, without_contrast.path)
  document = linked.write_linked(result, tmp_path / "out")
  words = "no contrast: the lumen cannot be seen ("
  assert document["segmentation"]["skipped"].startswith(words)
  (said,) = (x for x in document["plausibility"]["concerns"] if words in x)
  assert float(said.partition("(")[2].split()[0]) == pytest.approx(60, abs=30)
  assert document["link"]["vessels"]["branches"] == []
  assert document["link"]["statements"] == []
  assert "lumen, stable" not in document["segmentation"]["summary"]
  found = {x["name"]: x["voxels"] for x in document["segmentation"]["classes"]}
  assert found["aorta"] > 0
  assert found["left_ventricle"] > 0
  assert not any(found[x] for x in ("lumen", "stable_plaque"))
  page = (tmp_path / "out" / "report.html").read_text()
  assert "The coronary arteries were not looked for: no contrast" in page


def test_without_contrast_one_stage_is_not_run_either(
  pair, without_contrast, oracle
):
  oracle.update(four=forbidden)
  result = segment_file(pair.segmenter, without_contrast.path)
  words = "Nothing was segmented: no contrast: the lumen cannot be seen ("
  assert result.summary.startswith(words)
  assert result.summary in result.warnings
  assert not result.labels.any()


def test_a_segmenter_that_knows_such_scans_is_run(
  pair, without_contrast, oracle
):
  oracle.update(four=without_contrast.four)
  for reference in ({}, {"heart_hu": [40.0, 600.0]}):
    other = dataclasses.replace(
      pair.segmenter,
      dataset=pair.segmenter.dataset | {"reference": reference},
    )
    result = segment_file(other, without_contrast.path)
    assert result.skipped is None
    assert result.labels.any()


def test_the_abdomen_alone_has_no_vessel_tree(pair, drawn, oracle, tmp_path):
  """The belly of a phantom: its lowest 20 mm."""
  truth = np.where(drawn.chest[:8] == 1, np.uint8(1), np.uint8(0))
  hu = np.ascontiguousarray(drawn.volume.hu[:8])
  grid = dataclasses.replace(drawn.volume.grid, shape=hu.shape)
  path = tmp_path / "abdomen.nii.gz"
  volume.write_nifti(path, hu, grid)
  oracle.update(chest=truth, four=forbidden)
  result = in_two_stages(pair, path)
  said = " ".join(result.reading.prepared.concerns)
  assert "neither heart nor lungs were found" in said
  assert "covers only 20 mm" in said
  assert result.skipped is not None
  assert not any(x.voxels for x in result.classes if x.name == "lumen")


def real_chest(real_ct):
  """The scan, and its chest by the masks beside it and by HU."""
  scan = volume.read_volume(real_ct / "ct.nii.gz")
  names = classes.get_class_set("chest").names
  chest = np.zeros(scan.shape, np.uint8)
  chest[(scan.hu > -960) & (scan.hu < -450)] = names.index("lungs")
  for file, name in (("heart", "left_ventricle"), ("aorta", "aorta")):
    mask = volume.read_mask(real_ct / f"{file}.nii.gz").hu > 0
    chest[mask] = names.index(name)
  return scan, chest


def test_a_real_angiogram_is_as_it_should_be(pair, real_ct, oracle):
  scan, chest = real_chest(real_ct)
  oracle.update(chest=chest)
  given = scans.Scan("real", "real", scan)
  result = segmentation_scan.segment_scan(pair.segmenter, given, wide=pair.wide)
  prepared = result.reading.prepared
  assert prepared.concerns[:1] == () or "training data" in prepared.concerns[0]
  assert result.skipped is None
  heart = volume.read_mask(real_ct / "heart.nii.gz")
  box = np.argwhere(heart.hu > 0)
  middle = heart.grid.to_mm((box.min(0) + box.max(0)) / 2)
  away = prepared.model_input.grid.center_mm - middle
  assert np.linalg.norm(away) < 10


def test_below_a_real_heart_no_coronary_artery_is_looked_for(
  pair, real_ct, oracle
):
  scan, chest = real_chest(real_ct)
  grid = dataclasses.replace(scan.grid, shape=(25, *scan.shape[1:]))
  low = volume.Volume(np.ascontiguousarray(scan.hu[:25]), grid)
  oracle.update(chest=chest[:25], four=forbidden)
  given = scans.Scan("low", "low", low)
  result = segmentation_scan.segment_scan(pair.segmenter, given, wide=pair.wide)
  assert result.skipped == "no heart was found"
  said = " ".join(result.reading.prepared.concerns)
  assert "neither heart nor lungs were found" in said


def test_a_physical_phantom_has_neither_heart_nor_contrast(
  pair, qrm_phantom, oracle
):
  oracle.update(four=forbidden)
  result = in_two_stages(pair, qrm_phantom)
  assert result.skipped.startswith("no contrast: the lumen cannot be seen")
  said = " ".join(result.reading.prepared.concerns)
  assert "neither heart nor lungs were found" in said
  assert "no contrast: the lumen cannot be seen" in said


def test_wrong_units_are_said_of_both_stages(pair, drawn, oracle, tmp_path):
  path = tmp_path / "raw.nii.gz"
  volume.write_nifti(path, drawn.volume.hu + np.int16(1024), drawn.volume.grid)
  oracle.update(chest=drawn.chest, four=drawn.four)
  result = in_two_stages(pair, path)
  assert "may not be HU" in " ".join(result.reading.prepared.concerns)


def test_an_aorta_that_is_cut_off_is_said(pair, drawn, oracle):
  cut = drawn.chest.copy()
  cut[:, :, :10] = 1
  oracle.update(chest=cut, four=drawn.four)
  result = in_two_stages(pair, drawn.path)
  (said,) = (x for x in result.warnings if "too small for the whole aorta" in x)
  assert "the right" in said


def test_the_report_uses_the_aorta_that_the_second_stage_missed(
  pair, drawn, oracle
):
  coronaries = np.where(drawn.four == 1, 0, drawn.four)
  oracle.update(chest=drawn.chest, four=coronaries)
  result = link_file(pair, drawn.path)
  tree = result.linked.structures.tree
  assert result.linked.structures.volumes_ml["aorta"] > 20
  assert tree.ostia
  assert not any("no aorta in the mask" in note for note in tree.notes)
  alone = link_file(dataclasses.replace(pair, wide=None), drawn.path)
  notes = alone.linked.structures.tree.notes
  assert any("no aorta in the mask" in note for note in notes)


def test_an_aorta_of_both_stages_leaves_the_ostia_where_they_are(
  pair, drawn, oracle
):
  oracle.update(chest=drawn.chest, four=drawn.four)
  two = link_file(pair, drawn.path).linked.structures
  box = dataclasses.replace(pair, wide=None)
  scan = scans.read_scan(drawn.path)
  chest = segmentation_scan.find_chest(pair.wide, scan)
  one = link_scan.link_scan(box, chest.anatomy.place(scan)).linked.structures
  assert [b.name for b in two.tree.branches] == [
    b.name for b in one.tree.branches
  ]
  for ours, theirs in zip(two.tree.ostia, one.tree.ostia, strict=True):
    assert ours.side == theirs.side
    np.testing.assert_allclose(ours.position_mm, theirs.position_mm)


@contextlib.contextmanager
def arguments(program, *args):
  """Parses a program's flags as the program would."""
  own = flag_help.define(program.define_flags)
  try:
    flags.FLAGS(["cadjax", *map(str, args)])
    yield
  finally:
    for flag in own:
      delattr(flags.FLAGS, flag.name)


def run(program, *args):
  with arguments(program, *args):
    return program.main([])


def test_segment_with_nothing_else_runs_both_stages(
  shipped, drawn, oracle, quick, tmp_path
):
  oracle.update(chest=drawn.chest, four=drawn.four)
  asked = (f"--input={drawn.path}", f"--out={tmp_path / 'out'}")
  assert run(segment, *asked) == 0
  document = json.loads((tmp_path / "out/segments.json").read_text())
  assert document["segmenter"]["workdir"] == "coronary"
  assert document["wide"]["workdir"] == "wide"
  assert run(segment, *asked, "--wide=none", "--overwrite") == 0
  document = json.loads((tmp_path / "out/segments.json").read_text())
  assert document["wide"] is None
  assert document["model_input"]["heart_origin"].startswith("the middle")


def test_predict_with_nothing_else_links(
  shipped, drawn, oracle, quick, tmp_path, capsys
):
  oracle.update(chest=drawn.chest, four=drawn.four)
  asked = (f"--input={drawn.path}", f"--out={tmp_path / 'out'}")
  assert run(predict, *asked) == 0
  document = json.loads((tmp_path / "out/result.json").read_text())
  assert document["classifier"]["workdir"] == "classifier"
  assert document["segmentation"]["segmenter"]["workdir"] == "coronary"
  assert document["segmentation"]["wide"]["workdir"] == "wide"
  origin = document["model_input"]["heart_origin"]
  assert origin == "from the wide segmenter's heart"
  assert "report.html" in capsys.readouterr().out
  page = (tmp_path / "out/report.html").read_text()
  assert "Wide segmenter" in page


def test_a_shipped_classifier_alone_is_placed_by_the_first_stage(
  shipped, drawn, oracle, quick, tmp_path
):
  oracle.update(chest=drawn.chest)
  asked = (f"--input={drawn.path}", "--classifier=classifier")
  assert run(predict, *asked, f"--out={tmp_path / 'one'}") == 0
  document = json.loads((tmp_path / "one/result.json").read_text())
  origin = document["model_input"]["heart_origin"]
  assert origin == "from the wide segmenter's heart"
  assert "segmentation" not in document
  asked = (f"--input={drawn.path}", "--workdir=classifier")
  assert run(explain, *asked, f"--out={tmp_path / 'two'}") == 0
  document = json.loads((tmp_path / "two/explain.json").read_text())
  assert document["model_input"]["heart_origin"] == origin


def test_own_models_are_used_as_before(
  shipped, workdirs, drawn, oracle, quick, tmp_path
):
  oracle.update(chest=forbidden, four=drawn.four)
  asked = (f"--input={drawn.path}", f"--segmenter={workdirs['coronary']}")
  assert run(segment, *asked, f"--out={tmp_path / 'one'}") == 0
  document = json.loads((tmp_path / "one/segments.json").read_text())
  assert document["wide"] is None
  asked += (f"--classifier={workdirs['classifier']}",)
  assert run(predict, *asked, f"--out={tmp_path / 'two'}") == 0
  document = json.loads((tmp_path / "two/result.json").read_text())
  assert document["segmentation"]["wide"] is None
  oracle.update(chest=drawn.chest)
  wide = f"--wide={workdirs['wide']}"
  assert (
    run(segment, asked[0], asked[1], f"--out={tmp_path / 'three'}", wide) == 0
  )
  document = json.loads((tmp_path / "three/segments.json").read_text())
  assert document["wide"]["workdir"] == "wide"


def test_without_shipped_weights_the_flag_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(packed, "FOLDER", tmp_path)
  asked = ("--input=scan.nii.gz", f"--out={tmp_path / 'out'}")
  none = "no weights are shipped in this version; give --"
  with pytest.raises(UserError, match=f"{none}segmenter"):
    run(segment, *asked)
  with pytest.raises(UserError, match=f"{none}classifier"):
    run(predict, *asked)


def test_the_first_stage_is_a_segmenter_of_the_whole_chest(
  workdirs, shipped, tmp_path
):
  with pytest.raises(lookup.ConfigError, match="finds aorta, lumen"):
    load_wide(workdirs["coronary"])
  boxed = write_workdir(
    tmp_path / "boxed", config=config("chest"), grid=BOX_GRID
  )
  with pytest.raises(UserError, match="a box around the heart"):
    load_wide(boxed)
  own, coronary = load_segmenter(workdirs["coronary"]), load_segmenter()
  assert load_wide(None, [own]) is None
  assert load_wide("none", [coronary]) is None
  assert load_wide().name == "wide"
  assert load_wide(None, [own, coronary]).name == "wide"
  # It is no first stage of its own.
  assert load_wide(None, [load_segmenter("wide")]) is None
