import dataclasses

import numpy as np
import pytest

from data_prep.errors import UserError
from data_prep.phantom import figures, make_phantom
from data_prep.tissues import Tissue
from data_prep.volume import Grid, Volume, write_nifti

UPRIGHT = np.eye(3)[:, ::-1]
SEED = 3
SPACING = (2.5, 2.5, 2.5)


@pytest.fixture(scope="module")
def chest():
  """The chest of a phantom, from the diaphragm to the arch."""
  grid = Grid((88, 72, 76), SPACING, (0, 0, 0), UPRIGHT)
  drawn = make_phantom(
    SEED, grid=figures.upright_box((0, 0, 0), (4,) * 3, SPACING)
  )
  heart = np.array(drawn.params["patient"]["heart_center_mm"])
  origin = heart + [0, 5, 15] - grid.center_mm
  like = Grid(grid.shape, SPACING, origin, UPRIGHT)
  return figures.of_phantom(make_phantom(SEED, label=0, grid=like))


@pytest.fixture(scope="module")
def by_labels(chest):
  return figures.measure_chest(chest)


def test_rules_find_what_the_labels_say(chest, by_labels):
  bare = dataclasses.replace(chest, tissues=None)
  by_rules = figures.measure_chest(bare)
  names = [name for name in by_rules if name.endswith("HU")]
  names = [name for name in names if name in by_labels]
  assert len(names) >= 6
  for name in ("aorta", "heart blood", "myocardium", "lung", "fat", "liver"):
    away = by_rules[f"{name}, HU"] - by_labels[f"{name}, HU"]
    assert abs(away) < 12, name
  for name in ("10 %", "median", "90 %"):
    key = f"bone above 150 HU, {name}"
    assert by_rules[key] == pytest.approx(by_labels[key], rel=0.2), name


def test_labels_give_the_hu_that_were_drawn(chest):
  hu = np.full(chest.volume.shape, -1000, np.int16)
  drawn = {tissue: 10 * int(tissue) + 200 for tissue in Tissue}
  for tissue, value in drawn.items():
    hu[chest.tissues == tissue] = value
  painted = dataclasses.replace(chest, volume=Volume(hu, chest.volume.grid))
  found = figures.measure_chest(painted)
  for name, tissue in {
    "aorta, HU": Tissue.AORTA,
    "right ventricle, HU": Tissue.RIGHT_VENTRICLE,
    "myocardium, HU": Tissue.MYOCARDIUM,
    "lung, HU": Tissue.LUNG,
    "liver, HU": Tissue.LIVER,
  }.items():
    assert found[name] == drawn[tissue]


def test_volume_and_fat_of_a_chest(chest, by_labels):
  millilitres = np.isin(chest.tissues, figures.HEART).sum() * 2.5**3 / 1e3
  assert by_labels["heart, mL"] == pytest.approx(millilitres)
  assert 0 < by_labels["fat share of 128 mm"] < 1


def test_what_needs_a_mask_is_left_out(chest):
  bare = figures.Chest(chest.volume)
  found = figures.measure_chest(bare)
  assert set(found) == {
    "lung, HU",
    "fat, HU",
    "liver, HU",
    "fat share of 128 mm",
    "lung share above -400 HU",
  }
  assert np.isfinite(list(found.values())).all()
  middle = chest.volume.grid.to_index(chest.center_mm)
  away = bare.volume.grid.to_index(bare.center_mm) - middle
  assert np.abs(away * SPACING).max() < 25
  low, high = bare.span
  assert low < middle[0] < high


def test_masks_are_read_with_the_scan(chest, tmp_path):
  write_nifti(tmp_path / "ct.nii.gz", chest.volume.hu, chest.volume.grid)
  write_nifti(tmp_path / "heart.nii.gz", chest.heart, chest.volume.grid)
  found = figures.read_chest(
    tmp_path / "ct.nii.gz", heart=tmp_path / "heart.nii.gz"
  )
  np.testing.assert_array_equal(found.heart, chest.heart)
  assert found.aorta is None
  empty = np.zeros(chest.heart.shape, bool)
  write_nifti(tmp_path / "empty.nii.gz", empty, chest.volume.grid)
  with pytest.raises(UserError, match="empty.nii.gz: the mask is empty"):
    figures.read_chest(tmp_path / "ct.nii.gz", tmp_path / "empty.nii.gz")
  small = Grid((4, 4, 4), SPACING, (0, 0, 0), UPRIGHT)
  write_nifti(tmp_path / "small.nii.gz", np.ones((4, 4, 4), bool), small)
  with pytest.raises(UserError, match="small.nii.gz: not on the grid"):
    figures.read_chest(tmp_path / "ct.nii.gz", tmp_path / "small.nii.gz")


def test_hearts_lie_alike(chest):
  like = figures.make_like(8, chest, label=0)
  assert like.volume.shape == chest.volume.shape
  assert like.volume.spacing == chest.volume.spacing
  assert like.params["seed"] == 8
  other = figures.of_phantom(like)
  a, b = (one.volume.grid.to_index(one.center_mm) for one in (chest, other))
  np.testing.assert_allclose(a, b, atol=0.5)


def test_native_voxels_show_the_scanners_noise(chest):
  options = {
    "label": 0,
    "scanner": {"noise_hu": 24.0, "grain_mm": 0.4, "contrast_hu": 400.0},
  }
  like = figures.make_like(SEED, chest, **options)
  found = figures.measure_native(SEED, like, **options)
  assert set(found) == {
    "native: noise SD, HU",
    "native: noise spectrum, peak, 1/mm",
    "native: noise spectrum, mean, 1/mm",
    "native: edge 10-90 %, aorta, mm",
  }
  scan = like.params["scanner"]
  # See acquisition.noise: a voxel averages a little over the kernel's grain.
  spacing = np.array([scan["length_mm"], scan["fov_mm"], scan["fov_mm"]])
  spacing = spacing / scan["shape"]
  factor = np.prod((0.4 / np.sqrt(0.4**2 + spacing**2 / 12)) ** 0.5)
  expected = 24.0 * factor
  assert found["native: noise SD, HU"] == pytest.approx(expected, rel=0.1)


def test_coronaries_of_a_phantom(chest):
  like = figures.make_like(SEED, chest, label=0)
  found = figures.measure_coronaries(SEED, like, label=0)
  lines = like.centerlines
  # A tube's volume and length, from the lines that were drawn.
  length = sum(len(line) - 1 for line in lines.values()) * 0.5
  volume = sum(np.pi * (line[:, 3] ** 2).sum() * 0.5 for line in lines.values())
  assert found["coronary volume, mL"] == pytest.approx(volume / 1e3, rel=0.15)
  assert found["coronary skeleton, mm"] == pytest.approx(length, rel=0.15)
  assert found["coronary parts"] == 2
  assert 5 <= found["coronary end points"] <= 20
  assert found["RCA radius at 0 mm"] == pytest.approx(lines["RCA"][0, 3])
  radius = np.median(np.concatenate([line[:, 3] for line in lines.values()]))
  assert found["coronary radius, median, mm"] == pytest.approx(radius, rel=0.2)
  assert found["line radius, median, mm"] == pytest.approx(radius, rel=0.05)


def test_lines_are_weighted_by_length():
  straight = np.zeros((41, 4))
  straight[:, 0], straight[:, 3] = np.arange(41), 2.0
  angle = np.linspace(0, np.pi, 400)
  bow = np.stack(
    [20 * np.cos(angle), 20 * np.sin(angle), 0 * angle, 0 * angle + 1], -1
  )
  found = figures.measure_lines([straight, bow])
  expected = 180 / (40 + 20 * np.pi)
  assert found["turning, degrees/mm"] == pytest.approx(expected, rel=0.03)
  assert found["line radius, median, mm"] == 1.0
  assert found["line radius, 90 %, mm"] == 2.0


def test_shares_of_patients(monkeypatch):
  found = figures.measure_patients(range(4), population={"dominance": "left"})
  assert found["patients: right dominance, %"] == 0
  # The label is of no account: these are shares of patients with CAD.
  sick = figures.measure_patients(range(4), label=0, severity="overt")
  assert sick["with CAD: calcium, %"] == 100
  of_arteries = [sick[f"with calcium: {x}, %"] for x in ("LAD", "RCA")]
  assert max(of_arteries) > 0

  arteries = ("LM", "LAD", "LCx", "RCA")

  def traits(seed, options):
    del options
    # Two of five have no calcium, and of the three others one in the RCA.
    row = dict.fromkeys(arteries, False)
    row |= {"right dominance": seed > 0, "ramus": False}
    return row | {"calcium": seed < 3, "LAD": seed < 3, "RCA": seed == 1}

  monkeypatch.setattr(figures, "_traits", traits)
  found = figures.measure_patients(range(5))
  assert found["patients: right dominance, %"] == 80
  assert found["with CAD: calcium, %"] == 60
  assert found["with calcium: LAD, %"] == 100
  assert found["with calcium: RCA, %"] == pytest.approx(100 / 3)
  assert "with calcium: LAD, %" not in figures.measure_patients([3, 4])
  assert figures.measure_patients([]) == {}
