import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from data_prep.phantom import compare, figures, make_phantom
from data_prep.phantom.published import BY_NAME, FIGURES, Figure
from data_prep.tissues import Tissue
from data_prep.volume import Grid, Volume, write_nifti

ROOT = pathlib.Path(__file__).parents[3]
UPRIGHT = np.eye(3)[:, ::-1]
NAN = float("nan")


def run(*arguments, cwd):
  command = [sys.executable, "-m", "data_prep.phantom.compare", *arguments]
  return subprocess.run(
    command,
    capture_output=True,
    text=True,
    cwd=cwd,
    env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(cwd)},
    check=False,
  )


@pytest.mark.parametrize(
  ("real", "phantoms", "bounds", "word"),
  [
    (NAN, [10, 20, 90], (15, 40), "inside"),
    (NAN, [10, 11, 40], (15, 40), "below"),
    (NAN, [50], (15, 40), "above"),
    (NAN, [], (15, 40), ""),
    (NAN, [NAN], (15, 40), ""),
    # A scan beyond the range is real, too, give or take a tenth.
    (50.0, [54], (15, 55), "inside"),
    (50.0, [56], (15, 55), "above"),
    (10.0, [9.5], (9, 40), "inside"),
  ],
)
def test_where_the_median_lies(real, phantoms, bounds, word):
  figure = Figure("x", 15, 40, "here", tolerance=0.1)
  found = compare.judge(figure, real, phantoms)
  assert found[0] == pytest.approx(bounds)
  assert found[1] == word


def test_without_a_published_range_the_scan_tells():
  figure = Figure("x", NAN, NAN, "here", tolerance=0.2)
  assert compare.judge(figure, -100.0, [-85]) == ((-120, -80), "inside")
  assert compare.judge(figure, -100.0, [-70])[1] == "above"
  assert compare.judge(figure, NAN, [-70])[1] == ""


def test_published_ranges_are_ranges():
  assert len(BY_NAME) == len(FIGURES)
  for figure in FIGURES:
    assert figure.source
    assert not figure.low >= figure.high
    assert np.isnan(figure.low) == np.isnan(figure.high)


def test_rows_and_table():
  real = {"heart, mL": 700.0}
  phantoms = [
    {"heart, mL": 600.0, "coronary volume, mL": 3.0},
    {"heart, mL": 1000.0},
  ]
  rows = compare.to_rows(real, phantoms, {"patients: ramus, %": 25.0})
  assert [row["figure"] for row in rows] == [figure.name for figure in FIGURES]
  by_name = {row["figure"]: row for row in rows}
  heart = by_name["heart, mL"]
  assert (heart["median"], heart["verdict"], heart["inside"]) == (
    800,
    "inside",
    1,
  )
  assert by_name["coronary volume, mL"]["phantoms"] == [3.0, None]
  assert by_name["patients: ramus, %"]["phantoms"] == [25.0]
  json.dumps(rows, allow_nan=False)
  lines = compare.to_markdown(rows).splitlines()
  assert len({len(line) for line in lines}) == 1
  assert len(lines) == len(FIGURES) + 2
  (line,) = [x for x in lines if x.startswith("| heart, mL")]
  cells = [cell.strip() for cell in line.split("|")[1:-1]]
  assert cells[:4] == ["heart, mL", "700", "800 (600 to 1000)", "450 to 900"]
  assert cells[5] == "inside (1 of 2 in)"
  (line,) = [x for x in lines if x.startswith("| fat, HU")]
  assert [cell.strip() for cell in line.split("|")[2:4]] == ["-", "-"]


def numbered():
  """A scan whose HU tell the voxel: 100 d + h + w / 100, in int16's reach."""
  shape, spacing = (40, 30, 20), (2.0, 1.0, 1.5)
  d, h, _ = np.indices(shape)
  heart = np.zeros(shape, bool)
  heart[10:31, 8:23, 4:17] = True
  tissues = np.zeros(shape, np.uint8)
  tissues[26:28, 10, 10] = Tissue.LUMEN
  tissues[12:14] = Tissue.LUMEN  # Below the heart's middle: does not count.
  grid = Grid(shape, spacing, (0, 0, 0), UPRIGHT)
  volume = Volume((100 * d + h).astype(np.int16), grid)
  return figures.Chest(volume, None, heart, tissues)


def test_pictures_are_at_the_same_levels_of_the_heart():
  chest = numbered()
  slab = compare.coronary_level(chest)
  assert 10 + slab * 20 == pytest.approx(27, abs=4)
  figure = compare.draw({"scan": chest, "phantom": chest}, slab)
  axes = figure.axes
  assert len(axes) == 6 * 4
  shown = [axes[4 * row].images[0].get_array() for row in range(6)]
  # Axial at 80, 50 and 20 % of the heart, which goes from slice 10 to 30.
  assert [int(pixels[0, 0]) // 100 for pixels in shown[:3]] == [26, 20, 14]
  # Head up; through the heart's middle.
  assert shown[3][0, 0] == 100 * 39 + 15
  assert shown[4][0, 0] == 100 * 39
  assert shown[4].shape == (40, 30)
  # The maximum of 20 mm, which are ten slices.
  assert int(shown[5][0, 0]) // 100 == int(np.rint(10 + slab * 20 + 5)) - 1
  assert axes[0].get_title() == "scan, soft tissue"
  assert axes[3].get_title() == "phantom, lung"
  assert axes[0].images[0].get_clim() != axes[3].images[0].get_clim()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
  """A phantom as a scan with masks, compared with itself by the program."""
  folder = tmp_path_factory.mktemp("own")
  seed, spacing = 3, (2.5, 2.5, 2.5)
  nowhere = figures.upright_box((1e4, 0, 0), (2, 2, 2), (1, 1, 1))
  patient = make_phantom(seed, grid=nowhere).params["patient"]
  place = np.array(patient["heart_center_mm"]) + [0, 5, 15]
  grid = figures.upright_box(place, (220, 180, 190), spacing)
  chest = figures.of_phantom(make_phantom(seed, grid=grid))
  write_nifti(folder / "ct.nii.gz", chest.volume.hu, grid)
  write_nifti(folder / "aorta.nii.gz", chest.aorta, grid)
  write_nifti(folder / "heart.nii.gz", chest.heart, grid)
  result = run(
    "--scan=ct.nii.gz",
    "--aorta=aorta.nii.gz",
    "--heart=heart.nii.gz",
    f"--seed={seed}",
    "--phantoms=1",
    "--patients=2",
    "--out=out",
    cwd=folder,
  )
  assert result.returncode == 0, result.stderr
  return folder / "out", result.stdout


def test_a_phantom_is_like_itself(own):
  folder, _ = own
  record = json.loads((folder / "compare.json").read_text())
  assert (record["scan"], record["seeds"]) == ("ct.nii.gz", [3])
  rows = [row for row in record["figures"] if row["scan"] is not None]
  assert len(rows) >= 18
  for row in rows:
    assert row["verdict"] == "inside", row
  # And not because the ranges are wide: nearly the same values.
  away = {
    row["figure"]: abs(row["median"] / row["scan"] - 1)
    for row in rows
    if not row["figure"].startswith(("noise spectrum", "bone"))
  }
  assert max(away.values()) < 0.12, away


def test_coronaries_are_measured_on_the_phantom_alone(own):
  folder, _ = own
  record = json.loads((folder / "compare.json").read_text())
  rows = {row["figure"]: row for row in record["figures"]}
  for name in ("coronary volume, mL", "native: noise SD, HU"):
    assert rows[name]["scan"] is None
    assert rows[name]["median"] > 0
  assert rows["patients: right dominance, %"]["median"] in (0, 50, 100)


def test_what_is_written(own):
  folder, text = own
  assert (folder / "compare.md").read_text() == text
  assert text.startswith("| figure")
  assert (folder / "compare.png").read_bytes()[:4] == b"\x89PNG"


def test_mistakes_are_one_line(tmp_path):
  missing = run(cwd=tmp_path)
  assert missing.returncode == 2
  assert (
    missing.stderr == "error: --scan is missing: a real scan of the chest\n"
  )
  gone = run("--scan=gone.nii.gz", "--out=out", cwd=tmp_path)
  assert gone.returncode == 2
  assert "gone.nii.gz" in gone.stderr
  assert gone.stderr.count("\n") == 1
  assert not (tmp_path / "out").exists()


def test_a_real_scan(real_ct):
  chest = figures.read_chest(
    *(real_ct / f"{name}.nii.gz" for name in ("ct", "aorta", "heart"))
  )
  found = figures.measure_chest(chest)
  # As measured by others, by other means.
  assert found["heart, mL"] == pytest.approx(669, abs=1)
  assert found["aorta ascending, mm"] == pytest.approx(31, abs=1.5)
  assert found["aorta descending, mm"] == pytest.approx(31, abs=3)
  assert found["fat, HU"] == pytest.approx(-101, abs=4)
  assert found["lung, HU"] == pytest.approx(-803, abs=10)
  assert found["liver, HU"] == pytest.approx(78, abs=4)
  assert found["myocardium, HU"] == pytest.approx(126, abs=8)
  assert found["noise SD, HU"] == pytest.approx(32, abs=5)
  assert 0.05 < found["fat share of 128 mm"] < 0.17
  assert found["lung share above -400 HU"] == pytest.approx(0.044, abs=0.002)
  rows = compare.to_rows(found, [found], {})
  for row in rows:
    assert row["verdict"] in ("inside", ""), row
