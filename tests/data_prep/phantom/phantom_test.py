import itertools
import json

import numpy as np
import pytest
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_prep.errors import UserError
from data_prep.geometry import GridSpec, target_grid
from data_prep.phantom import SEGMENTS, coronaries, heart, make_phantom
from data_prep.phantom.plaques import cad_rads
from data_prep.phantom.population import LIMITS, draw_patient, draw_scanner
from data_prep.tissues import Tissue
from data_prep.volume import Grid, Volume

SMALL = GridSpec("heart", (40, 36, 44), (150.0, 150.0, 150.0))
TINY = GridSpec("heart", (6, 5, 7), (150.0, 150.0, 150.0))
UPRIGHT = np.eye(3)[:, ::-1]
# An average heart, upright, in the middle of the world.
AVERAGE = {
  "heart_center_mm": [0.0, 0.0, 0.0],
  "heart_turn_deg": [0.0, 0.0, 0.0],
  "heart_scale": 1.0,
  "body_scale": 1.0,
  "lv_scale": 1.0,
  "rv_scale": 1.0,
  "ra_scale": 1.0,
  "la_scale": 1.0,
  "wall_mm": 9.5,
  "aorta_radius_mm": 15.5,
  "epicardial_fat_mm": 5.0,
  "diaphragm_mm": 0.0,
}
QUIET = {
  "noise_hu": 1.0,
  "motion_mm": 0.0,
  "contrast_hu": 400.0,
  "right_heart": 0.8,
  "mixing": 0.1,
}


def chest(spacing_mm=2.0, extent_mm=(200, 180, 200)):
  """A grid around the average heart, more spine than sternum in it."""
  shape = tuple(int(e / spacing_mm) for e in extent_mm)
  first = (np.array(shape) - 1) / 2 * spacing_mm
  origin = np.array([0.0, 20.0, 10.0]) - UPRIGHT @ first
  return Grid(shape, (spacing_mm,) * 3, origin, UPRIGHT)


@pytest.fixture(scope="module")
def average():
  return make_phantom(
    5, label=0, grid=chest(), population=AVERAGE, scanner=QUIET
  )


@pytest.fixture(scope="module")
def diseased():
  """Overt disease at 0.6 mm, the heart alone."""
  spec = GridSpec("heart", (220, 225, 230), (132.0, 135.0, 138.0))
  return make_phantom(11, label=1, severity="overt", grid=spec, scanner=QUIET)


def hu_at(phantom, *point_mm, radius=1):
  index = np.rint(phantom.volume.grid.to_index(point_mm)).astype(int)
  box = tuple(slice(i - radius, i + radius + 1) for i in index)
  return float(phantom.volume.hu[box].mean())


def test_same_seed_same_phantom():
  first, second = (make_phantom(3, grid=SMALL) for _ in range(2))
  np.testing.assert_array_equal(first.volume.hu, second.volume.hu)
  np.testing.assert_array_equal(first.mask, second.mask)
  assert first.lesions == second.lesions
  other = make_phantom(4, grid=SMALL)
  assert (first.volume.hu != other.volume.hu).mean() > 0.5


def test_what_is_returned():
  phantom = make_phantom(8, label=1, grid=SMALL)
  assert phantom.volume.hu.dtype == np.int16
  assert phantom.mask.dtype == phantom.segments.dtype == np.uint8
  assert phantom.volume.shape == phantom.mask.shape == SMALL.shape
  assert phantom.volume.hu.min() >= -1024
  json.dumps([phantom.lesions, phantom.params])


def test_label_changes_nothing_but_plaques():
  normal, sick = (make_phantom(6, label=k, grid=SMALL) for k in (0, 1))
  assert normal.params == sick.params
  near = ndimage.binary_dilation(sick.mask >= 2, iterations=2)
  apart = np.abs(normal.volume.hu.astype(int) - sick.volume.hu) > 1
  assert apart.any()
  assert not (apart & ~near).any()


def test_normal_has_no_plaque(average):
  assert (average.label, average.cad_rads, average.lesions) == (0, 0, [])
  assert set(np.unique(average.mask)) == {0, 1, 2}


@pytest.mark.parametrize("severity", ["clinical", "overt"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_lesions_labels_and_masks_agree(seed, severity):
  phantom = make_phantom(seed, label=1, severity=severity, grid=SMALL)
  assert phantom.label == 1
  assert phantom.cad_rads == max(row["cad_rads"] for row in phantom.lesions)
  plaque = np.argwhere(phantom.mask >= 3)
  place = phantom.volume.grid.to_mm(plaque)
  for row in phantom.lesions:
    away = np.linalg.norm(place - row["position_mm"], axis=1)
    assert away.min() < row["length_mm"] / 2 + 6
    assert row["cad_rads"] == cad_rads(row["stenosis"])
  kinds = {row["plaque"] for row in phantom.lesions}
  assert (phantom.mask == 3).any() == bool(kinds & {"calcified", "mixed"})
  assert (phantom.mask == 4).any() == bool(kinds & {"noncalcified", "mixed"})
  assert (phantom.segments[phantom.mask >= 2] > 0).all()
  assert (phantom.mask[phantom.segments > 0] >= 2).all()


def test_stenosis_is_in_the_lumen_radius(diseased):
  for row in diseased.lesions:
    line = diseased.centerlines[row["segment"]]
    middle = int(round(row["from_origin_mm"] / 0.5))
    half = int(np.ceil(row["length_mm"] / 2 / 0.5)) + 1
    ends = np.array([middle - half, middle + half])
    healthy = np.interp(middle, ends, line[ends, 3])
    assert line[middle, 3] / healthy == pytest.approx(
      1 - row["stenosis"], abs=0.02
    )
    assert np.linalg.norm(line[middle, :3] - row["position_mm"]) < 3


def test_volumes_of_plaque_and_mask_agree(diseased):
  voxel = np.prod(diseased.volume.spacing)
  total = sum(row["volume_mm3"] for row in diseased.lesions)
  labelled = (diseased.mask >= 3).sum() * voxel
  assert labelled == pytest.approx(total, rel=0.1)


def test_plaque_hu(diseased):
  hu = diseased.volume.hu
  inside = ndimage.binary_erosion(diseased.mask == 3)
  assert 500 < np.median(hu[inside]) < 1300
  lumen = ndimage.binary_erosion(diseased.mask == 2)
  assert 280 < np.median(hu[lumen]) < 440


def test_noncalcified_plaque_has_a_dark_core():
  for seed in range(60):
    rows = make_phantom(seed, label=1, severity="overt", grid=TINY).lesions
    soft = [
      r
      for r in rows
      if r["plaque"] == "noncalcified" and r["segment"] in ("LAD", "RCA")
    ]
    if soft:
      break
  origin = np.array(soft[0]["position_mm"]) - 15
  grid = Grid((60, 60, 60), (0.5, 0.5, 0.5), origin, UPRIGHT)
  phantom = make_phantom(
    seed,
    label=1,
    severity="overt",
    grid=grid,
    scanner=QUIET,
    population={"aortic_calcium_mm3": 0.0, "annulus_calcium_mm3": 0.0},
  )
  values = phantom.volume.hu[ndimage.binary_erosion(phantom.mask == 4)]
  assert soft[0]["core_hu"] < 30 < soft[0]["hu"] <= 120
  assert 0 < np.median(values) < 200
  assert values.min() < 60


@pytest.mark.parametrize(
  ("stenosis", "category"),
  [(0.1, 1), (0.249, 1), (0.25, 2), (0.5, 3), (0.69, 3), (0.7, 4), (1.0, 5)],
)
def test_cad_rads(stenosis, category):
  assert cad_rads(stenosis) == category


def test_tissues_have_their_hu(average):
  assert 370 < hu_at(average, 20, 2, -4) < 430  # left ventricle
  assert 370 < hu_at(average, -8, 38, 15) < 430  # left atrium
  assert 250 < hu_at(average, -40, -10, 0) < 500  # right atrium
  assert 370 < hu_at(average, -17, -1, 50, radius=2) < 430  # aorta
  assert 80 < hu_at(average, -10 + 24, -12, -6 - 20, radius=0) < 420
  assert hu_at(average, -80, 60, 70, radius=6) < -600  # right lung
  assert 40 < hu_at(average, -85, 20, -60, radius=3) < 130  # liver
  assert 100 < hu_at(average, -24, 103, 12, radius=1) < 400  # marrow


def test_orientation(average):
  """Left is high W, back is high H, up is high D."""
  grid, hu = average.volume.grid, average.volume.hu
  index = lambda *p: grid.to_index(p)  # noqa: E731
  assert index(60, -20, -20)[2] > index(-40, 0, 0)[2]
  # The apex, the heart's outermost myocardium, is left, front and low.
  heart = ndimage.center_of_mass(average.segments > 0)
  aorta = np.argwhere(average.mask == 1)
  low = aorta[aorta[:, 0] < heart[0] - 15].mean(0)
  high = aorta[aorta[:, 0] > heart[0] + 15].mean(0)
  assert low[1] > heart[1] + 15  # descending aorta, behind
  assert high[0] > low[0]
  # Liver right and low; stomach and lung left of it.
  liver = average.tissues[int(index(0, 0, -65)[0])] == Tissue.LIVER
  width = hu.shape[2]
  assert liver[:, : width // 3].mean() > 2 * liver[:, -width // 3 :].mean()
  # The spine: bone at the back, near the midline.
  bone = np.argwhere(hu > 300)
  spine = bone[bone[:, 1] > index(0, 88, 0)[1]]
  assert abs(np.median(spine[:, 2]) - index(-24, 0, 0)[2]) < 15


def test_volumes_are_plausible(average):
  ml = np.prod(average.volume.spacing) / 1000
  hu = average.volume.hu
  place = np.stack(np.indices(hu.shape), -1)
  away = np.linalg.norm(average.volume.grid.to_mm(place), axis=-1)
  blood = (hu > 200) & (hu < 600) & (away < 75)
  assert 300 < blood.sum() * ml < 750
  assert 90 < (average.mask == 1).sum() * ml < 320
  coronary_ml = (average.mask == 2).sum() * ml
  assert 2 < coronary_ml < 9


def test_heart_is_of_a_plausible_size(average):
  patient = average.params["patient"]
  beat = heart.make_heart(patient)
  axis = np.arange(-100, 101, 2.5, dtype=np.float32)
  q = beat.from_patient(
    (axis[None, None], axis[None, :, None], axis[:, None, None])
  )
  parts = heart.chambers(q, patient)
  ml = lambda inside: inside.sum() * 2.5**3 / 1000  # noqa: E731
  assert 500 < ml(heart.muscle(parts) < 0) < 900
  assert 80 < ml(heart.lv_inside(q, patient) < 0) < 160
  assert 50 < ml((parts.la < 0) & (parts.lv_outside > 0)) < 120
  assert (heart.sac(q, parts, patient) < 0)[heart.muscle(parts) < 0].all()


@pytest.mark.parametrize("seed", range(4))
def test_vessels_taper_and_lie_outside_the_chambers(seed):
  phantom = make_phantom(seed, label=0, grid=SMALL, scanner=QUIET)
  lines = phantom.centerlines
  for line in lines.values():
    assert line[0, 3] > line[-1, 3]
  assert 1.8 < lines["LM"][0, 3] < 3.3
  for name in ("LAD", "RCA"):
    assert 1.4 < lines[name][0, 3] < 3.3
  assert 0.6 < lines["LAD"][-1, 3] < 1.2
  steps = np.linalg.norm(np.diff(lines["LAD"][:, :3], axis=0), axis=1)
  assert 70 < steps.sum() < 180
  # The bifurcation of the left main is one point.
  for name in ("LAD", "LCx"):
    gap = np.linalg.norm(lines[name][0, :3] - lines["LM"][-1, :3])
    assert gap < 1.5


def test_coronaries_start_at_the_aorta(average):
  aorta = average.volume.grid.to_mm(np.argwhere(average.mask == 1))
  for name in ("LM", "RCA"):
    start = average.centerlines[name][0, :3]
    assert np.linalg.norm(aorta - start, axis=1).min() < 4
  left, right = (average.centerlines[k][0] for k in ("LM", "RCA"))
  assert left[0] > right[0]  # left is left
  assert left[1] > right[1]  # the right sinus faces the sternum


def test_segment_mask_follows_centerlines(diseased):
  grid = diseased.volume.grid
  # The small branches share a number.
  for number in set(SEGMENTS.values()):
    lines = [
      line[::4, :3]
      for name, line in diseased.centerlines.items()
      if SEGMENTS[name] == number
    ]
    voxels = grid.to_mm(np.argwhere(diseased.segments == number))
    assert bool(lines) == bool(len(voxels))
    if lines:
      apart = np.linalg.norm(voxels[:, None] - np.concatenate(lines), axis=-1)
      # Plaque widens a vessel of 3 mm by half, eccentrically.
      assert np.percentile(apart.min(1), 95) < 4.5
  for line in diseased.centerlines.values():
    index = np.rint(grid.to_index(line[10:-10, :3])).astype(int)
    index = index[((index >= 0) & (index < grid.shape)).all(1)]
    if len(index):
      assert (diseased.segments[tuple(index.T)] > 0).mean() > 0.8


@pytest.mark.parametrize(
  ("dominance", "has", "lacks"),
  [
    ("right", {"R-PDA", "R-PLA"}, {"L-PDA", "L-PLA"}),
    ("left", {"L-PDA", "L-PLA"}, {"R-PDA", "R-PLA"}),
    ("co", {"R-PDA", "L-PLA"}, {"L-PDA", "R-PLA"}),
  ],
)
def test_dominance(dominance, has, lacks):
  phantom = make_phantom(
    9, label=0, grid=SMALL, population={"dominance": dominance}
  )
  assert has <= set(phantom.centerlines)
  assert not lacks & set(phantom.centerlines)


def mm_from_fork(vessel, other):
  """[N] mm along a vessel from where `other` forks off it, or both off one."""
  way = coronaries.STEP_MM * np.arange(len(vessel.points))
  if vessel.parent and vessel.parent in (other.name, other.parent):
    return way
  if other.parent == vessel.name:
    away = np.linalg.norm(vessel.points - other.points[0], axis=1)
    return np.abs(way - way[away.argmin()])
  return np.full(len(way), np.inf)


@pytest.mark.parametrize("seed", range(20))
def test_vessels_touch_at_their_fork_only(seed):
  rng = np.random.default_rng(seed)
  body = heart.make_heart(draw_patient(rng))
  dominance = ("right", "left", "co")[seed % 3]
  # Two anomalous arteries of one sinus may.
  tree, _ = coronaries.make_tree(body, rng, dominance, anomaly="")
  for one, other in itertools.combinations(tree.values(), 2):
    apart = np.linalg.norm(one.points[:, None] - other.points, axis=-1)
    fat = apart - one.radius[:, None] - other.radius
    at_fork = mm_from_fork(one, other)[:, None] <= 8
    at_fork = at_fork & (mm_from_fork(other, one) <= 8)
    assert fat[~at_fork].min() > 0, (one.name, other.name)
  lad, lcx = (tree[k].points[16] - tree[k].points[0] for k in ("LAD", "LCx"))
  cosine = lad @ lcx / np.linalg.norm(lad) / np.linalg.norm(lcx)
  assert 40 < np.degrees(np.arccos(cosine)) < 130


def test_grids_agree():
  fine = make_phantom(2, label=1, grid=chest(1.5), population=AVERAGE)
  coarse = make_phantom(2, label=1, grid=chest(3.0), population=AVERAGE)
  assert fine.centerlines.keys() == coarse.centerlines.keys()
  for value in (1, 2):
    centers, volumes = [], []
    for phantom in (fine, coarse):
      index = np.argwhere(phantom.mask == value)
      centers.append(phantom.volume.grid.to_mm(index).mean(0))
      volumes.append(len(index) * np.prod(phantom.volume.spacing))
    assert np.linalg.norm(centers[0] - centers[1]) < 2.0
    assert volumes[0] == pytest.approx(volumes[1], rel=0.08)


def test_oblique_grid_shows_the_same_anatomy():
  turn = np.radians(20)
  about_z = np.array(
    [
      [np.cos(turn), -np.sin(turn), 0],
      [np.sin(turn), np.cos(turn), 0],
      [0, 0, 1.0],
    ]
  )
  straight = chest(3.0)
  direction = about_z @ UPRIGHT
  first = direction @ ((np.array(straight.shape) - 1) / 2 * 3.0)
  oblique = Grid(
    straight.shape, (3.0,) * 3, straight.center_mm - first, direction
  )
  one, two = (
    make_phantom(2, label=0, grid=g, population=AVERAGE, scanner=QUIET)
    for g in (straight, oblique)
  )
  for point in ((20, 2, -4), (-8, 38, 15), (-80, 60, 70), (-17, -1, 50)):
    assert hu_at(one, *point) == pytest.approx(hu_at(two, *point), abs=40)


def test_paper_grid_is_the_resized_field_of_view():
  spec = GridSpec("paper", (24, 20, 28))
  scanner = {"shape": [30, 64, 64]}
  native = make_phantom(7, scanner=scanner).volume
  paper = make_phantom(7, grid=spec, scanner=scanner).volume
  assert native.shape == (30, 64, 64)
  assert paper.grid == target_grid(spec, native)


def test_heart_grid_is_near_the_heart():
  phantom = make_phantom(7, grid=SMALL)
  middle = np.array(phantom.params["patient"]["heart_center_mm"])
  assert np.linalg.norm(phantom.volume.grid.center_mm - middle) < 30


def test_noise_is_that_of_the_scanner():
  scanner = {"noise_hu": 30.0, "shape": [64, 512, 512], "length_mm": 32.0}
  spacing = (0.5, 0.4, 0.4)
  grid = Grid((24, 26, 28), spacing, (-22.0, -6.0, 48.0), UPRIGHT)
  phantom = make_phantom(
    1, label=0, grid=grid, scanner=scanner, population=AVERAGE
  )
  blood = phantom.volume.hu[ndimage.binary_erosion(phantom.mask == 1)]
  assert 20 < blood.std() < 33


def test_real_ct_has_the_same_hu(real_ct):
  """The phantom's contrasts, beside those of a real angiogram."""
  from data_prep.volume import read_mask, read_volume

  scan = read_volume(real_ct / "ct.nii.gz")
  aorta = read_mask(real_ct / "aorta.nii.gz").hu > 0
  heart = read_mask(real_ct / "heart.nii.gz").hu > 0
  phantom = make_phantom(
    5,
    label=0,
    grid=chest(1.5),
    population=AVERAGE,
    scanner={"contrast_hu": float(np.median(scan.hu[aorta]))},
  )
  ours = phantom.volume.hu[ndimage.binary_erosion(phantom.mask == 1)]
  assert abs(np.median(ours) - np.median(scan.hu[aorta])) < 25
  air = lambda hu: np.percentile(hu[(hu < -600) & (hu > -1000)], 50)  # noqa: E731
  assert abs(air(scan.hu) - air(phantom.volume.hu)) < 90
  assert 0.5 < heart.sum() * 1.5**3 / 1e6 < 0.9


def statistics_of(hu):
  """What global intensities tell of a volume: percentiles, moments, counts."""
  hu = hu.astype(np.float32)
  shares = [0.1, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100]
  counts = [np.log1p((hu > t).sum()) for t in range(-800, 1400, 100)]
  return [*np.percentile(hu, shares), hu.mean(), hu.std(), *counts]


def shortcut_auc(rows, labels, patients):
  """AUC of a regression on global statistics, no patient in two folds."""
  model = make_pipeline(
    StandardScaler(), LogisticRegression(C=0.3, max_iter=5000)
  )
  scores = cross_val_predict(
    model,
    np.array(rows),
    labels,
    groups=patients,
    cv=StratifiedGroupKFold(10, shuffle=True, random_state=0),
    method="decision_function",
  )
  return roc_auc_score(labels, scores)


def chance_error(cases):
  """Hanley and McNeil's (1982) error of an AUC of 0.5, classes even."""
  half = cases / 2
  return np.sqrt((0.25 + 2 * (half - 1) * (1 / 3 - 0.25)) / half**2)


def test_no_shortcut_between_twins():
  """The same 20 patients without and with disease: nothing else can differ."""
  grid = GridSpec("heart", (24, 22, 26), (150.0, 150.0, 150.0))
  patients = np.arange(20)
  rows = {
    name: [
      statistics_of(
        make_phantom(
          int(k), label=label, severity=severity, grid=grid
        ).volume.hu
      )
      for k in patients
    ]
    for severity in ("clinical", "overt")
    for name, label in ((severity + " normal", 0), (severity, 1))
  }
  labels = np.repeat([0, 1], len(patients))
  for severity in ("clinical", "overt"):
    both = rows[severity + " normal"] + rows[severity]
    auc = shortcut_auc(both, labels, np.tile(patients, 2))
    assert abs(auc - 0.5) < 1.96 * chance_error(len(labels))
    sick = np.array(rows[severity])
    normal = np.array(rows[severity + " normal"])
    effect = (sick - normal).mean(0) / (normal.std(0) + 1e-6)
    assert np.abs(effect).max() < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("severity", ["clinical", "overt"])
@pytest.mark.parametrize("kind", ["heart", "paper"])
def test_no_shortcut(severity, kind):
  grid = GridSpec(kind, (64, 56, 60))
  patients = np.arange(200)
  labels = patients % 2
  rows = [
    statistics_of(
      make_phantom(
        1000 + int(k), label=int(k % 2), severity=severity, grid=grid
      ).volume.hu
    )
    for k in patients
  ]
  auc = shortcut_auc(rows, labels, patients)
  assert abs(auc - 0.5) < 1.96 * chance_error(len(labels))


@pytest.mark.parametrize(
  "options",
  [
    {"label": 2},
    {"severity": "mild"},
    {"scanner": {"kvp": 120}},
    {"population": {"age": 60}},
  ],
)
def test_unknown_options_are_refused(options):
  with pytest.raises(UserError, match="must be|unknown|has no"):
    make_phantom(0, grid=SMALL, **options)


def test_dominance_is_checked():
  with pytest.raises(UserError, match="dominance"):
    make_phantom(0, grid=SMALL, population={"dominance": "up"})


def test_volume_is_a_volume():
  assert isinstance(make_phantom(0, grid=SMALL).volume, Volume)


def test_limits_hold_all_that_is_drawn():
  for seed in range(200):
    for what, draw in (("population", draw_patient), ("scanner", draw_scanner)):
      drawn = draw(np.random.default_rng(seed))
      scalars = {name for name, value in drawn.items() if np.isscalar(value)}
      assert scalars == set(LIMITS[what])
      for name, (low, high) in LIMITS[what].items():
        assert low <= drawn[name] <= high, (name, drawn[name])


@pytest.mark.slow
@pytest.mark.parametrize(
  ("what", "name", "value"),
  [
    (what, name, value)
    for what, named in LIMITS.items()
    for name, limits in named.items()
    for value in limits
  ],
)
def test_phantoms_at_the_limits_can_be_made(what, name, value):
  made = make_phantom(
    1, label=1, severity="overt", grid=SMALL, **{what: {name: value}}
  )
  assert (made.mask == 1).any()


@pytest.mark.parametrize("severity", ["clinical", "overt"])
@pytest.mark.parametrize("seed", range(200, 206))
def test_nothing_but_the_coronaries_knows_the_label(seed, severity):
  """Painted over, a patient with disease is the healthy one, voxel by voxel.

  At 7 mm, which configs/experiments/shortcut.py takes, a few voxels of 2 mm
  at the tubes' edge still differ.
  """
  grid = GridSpec("heart", shape=(64, 64, 64), box_mm=(128, 128, 128))
  options = {"severity": severity, "grid": grid}
  normal, cad = (
    make_phantom(seed, label=label, scanner={"hidden_mm": 9.0}, **options)
    for label in (0, 1)
  )
  seen = make_phantom(seed, label=1, **options)
  np.testing.assert_array_equal(normal.volume.hu, cad.volume.hu)
  # The disease was there, and it lies under the tubes alone.
  assert cad.lesions
  changed = seen.volume.hu != cad.volume.hu
  assert changed[np.isin(cad.tissues, (2, 3, 4))].mean() > 0.9
  assert 0.01 < changed.mean() < 0.25
