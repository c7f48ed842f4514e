"""Two workdirs and a scan to a linked report."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import schema_check
import tiny_linked
from tiny_runs import link_file

from cadjax.calcium import stored
from cadjax.core import lookup
from cadjax.link import decision, grading
from cadjax.link import scan as link_scan
from cadjax.report import linked, linked_pictures, planes, viewer
from cadjax.segmentation import sliding
from cadjax.segmentation.segmenter import Segmenter
from cadjax.training import packed
from data_prep import export, sources, volume
from data_prep.errors import UserError


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
  folder = tmp_path_factory.mktemp("scans")
  case = sources.phantom(2, seed=3)[1]
  export.export_case(case, out=folder, severity="overt", spacing_mm=4.0)
  return folder / f"{case.case_id}.nii.gz"


@pytest.fixture(scope="module")
def two(tiny_workdir, tiny_segmenter):
  return link_scan.load_pair(tiny_workdir, tiny_segmenter)


@pytest.fixture
def quick(monkeypatch):
  """Leaves out what takes seconds to draw."""
  monkeypatch.setattr(planes, "planes_png", lambda *_, **__: b"picture")
  monkeypatch.setattr(planes, "panel_png", lambda *_, **__: b"picture")
  monkeypatch.setattr(viewer, "heat_viewer", lambda *_, **__: "<p>'\"&</p>")
  monkeypatch.setattr(viewer, "mask_viewer", lambda *_, **__: "<p>mask</p>")


def test_the_grade_is_of_the_tree_and_the_findings():
  result = tiny_linked.linked_scan()
  found = grading.grade_scan(
    result.linked.structures.tree, result.linked.findings
  )
  assert result.grade == found
  assert result.segments
  segmented = dataclasses.replace(result.segmented, skipped="no contrast")
  skipped = dataclasses.replace(result, segmented=segmented)
  assert skipped.grade.category == "N"
  assert skipped.grade.doubts == ("Nothing was segmented: no contrast.",)
  assert skipped.segments == []
  score = stored.StoredScore(350.0, "native", "2026-01-01", masked=True)
  graded = dataclasses.replace(skipped, calcium=score).grade
  assert graded.text == "CAD-RADS N/P3"
  assert graded.burden_by == "Agatston score 350"


def test_a_segmenter_without_plaque_cannot_exclude_any(two, scan):
  assert "Plaque was not segmented apart from the lumen." in (
    link_file(two, scan).grade.doubts
  )


def test_a_grade_against_the_call_is_a_statement(drawn_finding):
  result = tiny_linked.linked_scan()
  severe = drawn_finding(segment="pLAD", stenosis=0.8)
  linked_ = dataclasses.replace(result.linked, findings=[severe], statements=[])
  prediction = dataclasses.replace(
    result.classified.prediction, probability=0.1, threshold=0.5
  )
  for probability, expected in ((0.1, 1), (0.9, 0)):
    prediction = dataclasses.replace(prediction, probability=probability)
    classified_ = dataclasses.replace(result.classified, prediction=prediction)
    changed = dataclasses.replace(
      result, linked=linked_, classified=classified_
    )
    assert len(changed.statements) == expected


def test_every_file_has_exactly_the_grid_of_the_scan(
  two, scan, tmp_path, quick
):
  result = link_file(two, scan, case="one")
  document = linked.write_linked(result, tmp_path / "out")
  there = {path.name for path in (tmp_path / "out").iterdir()}
  assert there == set(document["files"].values())
  image = nib.load(scan)
  for key, name in document["files"].items():
    if not name.endswith(".nii.gz") or key == "preprocessed":
      continue
    written = nib.load(tmp_path / "out" / name)
    assert written.shape == image.shape
    np.testing.assert_array_equal(written.affine, image.affine)
  heat = np.asarray(nib.load(tmp_path / "out/heat_stage1.nii.gz").dataobj)
  assert 0 <= heat.min() < heat.max() <= 1
  text = (tmp_path / "out" / "result.json").read_text()
  assert json.loads(text) == document
  schema_check.validate(document)
  assert set(document["link"]["shares"]) == {
    *("stem", "stage1", "stage2", "stage3", "stage4")
  }
  assert document["link"]["layer"] == "stage1"
  assert document["case"] == "one"
  for finding in document["link"]["findings"]:
    index = result.classified.reading.scan.grid.to_index(finding["position_mm"])
    np.testing.assert_allclose(finding["scan_index"], index, atol=0.51)


def test_a_scan_is_read_once_for_both_models(two, scan, monkeypatch):
  read, paths = volume.read_volume, []

  def counted(path, **options):
    paths.append(path)
    return read(path, **options)

  monkeypatch.setattr(volume, "read_volume", counted)
  result = link_file(two, scan)
  assert paths == [scan]
  assert result.classified.reading.scan is result.segmented.reading.scan
  assert (
    result.classified.reading.case
    == result.segmented.reading.case
    == scan.name[:-7]
  )


def test_what_is_on_the_page_and_a_file_is_drawn_once(
  two, scan, tmp_path, quick, monkeypatch
):
  drawn = []
  for name in ("tree_png", "layers_png"):
    monkeypatch.setattr(
      linked_pictures, name, lambda _, name=name: drawn.append(name) or b"one"
    )
  result = link_file(two, scan)
  linked.write_linked(result, tmp_path / "out")
  assert drawn == ["tree_png", "layers_png"]
  assert (tmp_path / "out" / "tree.png").read_bytes() == b"one"
  lifts = [row["share"].lift for row in linked.evidence_table(result)]
  assert lifts == sorted(lifts, reverse=True)
  assert len(lifts) > 1


def test_a_fitted_decision_is_in_the_report(
  tiny_workdir, tiny_segmenter, two, scan, tmp_path, quick
):
  assert link_file(two, scan).combined is None
  fitted = decision.Decision(
    {"log_odds": 2.0, "stenosis": 0.5}, 0.1, 0.9, "", 7
  )
  path = tmp_path / "link.json"
  models = {
    "classifier": decision.identify(two.classifier),
    "segmenter": decision.identify(two.segmenter),
  }
  both = dataclasses.asdict(fitted)
  path.write_text(json.dumps({"models": models, "decision": {"both": both}}))
  deciding = link_scan.load_pair(
    tiny_workdir, tiny_segmenter, decision_file=path
  )
  result = link_file(deciding, scan)
  values = decision.features(
    result.linked.structures,
    result.classified.prediction.uncalibrated_probability,
  )
  document = linked.write_linked(result, tmp_path / "out")
  found = document["combined"]
  assert found["probability"] == pytest.approx(fitted.probability(values))
  assert found["n_patients"] == 7
  page = (tmp_path / "out" / "report.html").read_text()
  assert "fitted on 7 other patients" in page
  assert f"{100 * found['probability']:.1f} %" in page
  assert any("Both together" in said for said in linked.summary(result))


def test_the_page_holds_all_and_asks_for_nothing(two, scan, tmp_path, quick):
  result = link_file(two, scan)
  linked.write_linked(result, tmp_path / "out")
  page = (tmp_path / "out" / "report.html").read_text()
  assert "default-src 'none'" in page
  for address in ("http://", "https://", 'src="/', "@import"):
    assert address not in page
  assert 'srcdoc="&lt;p&gt;&#x27;&quot;&amp;&lt;/p&gt;"' in page
  assert linked.summary(result)[0] in page
  assert "Research software" in page


# Runs in the page: presses every button, and tells what is then shown, and
# whether anything is wider than a phone.
PRESS = """<script>
addEventListener("load", () => setTimeout(() => {
  const told = [];
  for (const button of document.querySelectorAll(".views button")) {
    button.click();
    told.push([...document.querySelectorAll(".views iframe")].map(
      (frame) => !frame.hidden));
  }
  const canvases = [...document.querySelectorAll(".views iframe")].map(
    (frame) => frame.contentDocument.querySelectorAll("canvas").length);
  const wide = document.documentElement.scrollWidth > innerWidth;
  document.title = JSON.stringify({told, canvases, wide});
}, 3000));
</script>"""


def test_the_viewers_work_in_a_browser(two, scan, tmp_path):
  chromium = shutil.which("chromium") or shutil.which("google-chrome")
  if chromium is None:
    pytest.skip("no Chromium here")
  result = link_file(two, scan)
  linked.write_linked(result, tmp_path / "out")
  page = (tmp_path / "out" / "report.html").read_text()
  (tmp_path / "page.html").write_text(
    page.replace("</body>", PRESS + "</body>")
  )
  done = subprocess.run(
    [
      *(chromium, "--headless", "--no-sandbox", "--disable-gpu"),
      *("--no-first-run", "--disable-background-networking"),
      *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,800"),
      *("--enable-logging=stderr", "--virtual-time-budget=10000"),
      *("--dump-dom", (tmp_path / "page.html").as_uri()),
    ],
    capture_output=True,
    text=True,
    timeout=120,
  )
  told = json.loads(re.search("<title>(.*?)</title>", done.stdout)[1])
  shown = told["told"]
  assert len(shown) >= 2
  for number, frames in enumerate(shown):
    assert frames == [i == number for i in range(len(shown))]
  assert all(count >= 1 for count in told["canvases"])
  assert not told["wide"]
  # Chromium says there what a page's scripts and its policy complain of.
  complaints = [x for x in done.stderr.splitlines() if ":CONSOLE" in x]
  assert all("willReadFrequently" in line for line in complaints), complaints
  assert "net::ERR" not in done.stderr


def test_what_is_known_of_the_shipped_segmenter_is_said(
  two, scan, tmp_path, quick, monkeypatch
):
  assert link_scan.OVERSTATES not in link_file(two, scan).warnings
  monkeypatch.setattr(packed, "is_shipped", lambda path: True)
  result = link_file(two, scan)
  linked.write_linked(result, tmp_path / "out")
  assert link_scan.OVERSTATES in (tmp_path / "out/report.html").read_text()


def test_an_empty_segmentation_is_reported(
  two, scan, tmp_path, quick, monkeypatch
):
  def nothing(self, hu, **_):
    probabilities = np.zeros((*hu.shape, 3), np.float16)
    probabilities[..., 0] = 1
    return sliding.Segmentation(np.zeros(hu.shape, np.uint8), probabilities)

  monkeypatch.setattr(Segmenter, "segment", nothing)
  result = link_file(two, scan)
  document = linked.write_linked(result, tmp_path / "out")
  assert document["link"]["findings"] == []
  page = (tmp_path / "out" / "report.html").read_text()
  assert "No coronary artery was found" in page
  assert "The segmentation is empty." in document["warnings"]
  (missing,) = linked.evidence_notes(result)
  assert missing.endswith("segmented as such: aorta.")
  assert missing in page
  found = decision.features(
    result.linked.structures,
    result.classified.prediction.uncalibrated_probability,
  )
  assert found["stenosis"] == 0


def test_models_of_other_grids_and_windows_go_together(
  two, scan, tmp_path, quick
):
  """The segmenter sees less of the heart than the classifier, and finer."""
  config = two.segmenter.config.copy_and_resolve_references()
  config.data.window_hu = (-300.0, 900.0)
  grid = two.segmenter.dataset["grid"] | {
    "shape": [20, 16, 24],
    "box_mm": [50.0, 60.0, 70.0],
  }
  segmenter = Segmenter(
    two.segmenter.path,
    config,
    two.segmenter.dataset | {"grid": grid},
    two.segmenter.step,
    two.segmenter.variables,
  )
  other = dataclasses.replace(two, segmenter=segmenter)
  result = link_file(other, scan)
  document = linked.write_linked(result, tmp_path / "out")
  assert result.linked.structures.labels.shape == (20, 16, 24)
  assert document["segmentation"]["segmenter"]["window_hu"] == [-300.0, 900.0]
  assert 0.05 < document["link"]["outside"] < 1
  notes = linked.evidence_notes(result)
  page = (tmp_path / "out" / "report.html").read_text()
  assert any("outside of what the segmenter saw" in said for said in notes)
  assert all(said in page for said in notes)


def test_a_wrong_pair_is_told(two, tiny_workdir, tiny_segmenter):
  with pytest.raises(UserError, match="is a segmenter; here a classifier"):
    link_scan.load_pair(tiny_segmenter, tiny_segmenter)
  with pytest.raises(UserError, match="is a classifier; here a segmenter"):
    link_scan.load_pair(tiny_workdir, tiny_workdir)
  with pytest.raises(lookup.ConfigError, match="stage1"):
    link_scan.load_pair(tiny_workdir, tiny_segmenter, layer="stage11")
  with pytest.raises(lookup.ConfigError, match="layercam"):
    link_scan.load_pair(tiny_workdir, tiny_segmenter, method="layerkam")


def test_a_finding_in_words(drawn_finding):
  text = linked.describe(drawn_finding(stenosis=0.42))
  assert text == (
    "stable plaque on the LAD, 31 mm from the ostium, 12 mm³, estimated 42 %"
    " of the diameter lost"
  )
  assert "no lumen seen" in linked.describe(drawn_finding(stenosis=1.0))
  filled = drawn_finding(
    stenosis_state="filled", stenosis_note="calcium fills the calibre"
  )
  assert linked.describe(filled).endswith(
    ", stenosis not measurable: calcium fills the calibre"
  )
  merged = drawn_finding(stenosis=0.0, stenosis_state="merged")
  said = linked.describe(merged)
  assert "of the diameter lost" not in said
  assert said.endswith("by a mask of plaque and lumen as one")
  bare = drawn_finding(
    vessel="", from_ostium_mm=float("nan"), plaque="", plaque_mm3=0.0
  )
  assert linked.describe(bare) == "a place of interest on no vessel"


def test_the_program_links(tiny_workdir, tiny_segmenter, scan, tmp_path):
  command = [
    *(sys.executable, "-m", "cadjax.predict"),
    *(f"--classifier={tiny_workdir}", f"--segmenter={tiny_segmenter}"),
    *(f"--input={scan}", f"--out={tmp_path / 'out'}", "--layer=stage2"),
    *("--pdf", f"--calcium={tmp_path / 'calcium.json'}"),
  ]
  score = {"schema": stored.SCHEMA, "case": "native", "created": "2026-01-02"}
  score |= {"total": {"agatston": 412.0}, "search": {"box": None}}
  (tmp_path / "calcium.json").write_text(json.dumps(score))
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert str(tmp_path / "out" / "report.html") in done.stdout
  page = (tmp_path / "out" / "report.html").read_text()
  assert "brainsprite" in page
  assert "CAD-RADS" in done.stdout
  written = json.loads((tmp_path / "out" / "result.json").read_text())
  schema_check.validate(written)
  assert written["diagnosis"]["burden"] == "P3"
  assert written["diagnosis"]["calcium"]["case"] == "native"
  assert written["diagnosis"]["text"] in page
  pdf = (tmp_path / "out" / written["files"]["pdf"]).read_bytes()
  assert pdf.startswith(b"%PDF")
  swapped = [
    *command[:3],
    *(f"--classifier={tiny_segmenter}", f"--segmenter={tiny_workdir}"),
    *command[5:],
  ]
  done = subprocess.run(swapped, capture_output=True, text=True)
  assert done.returncode == 2
  assert "Traceback" not in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
