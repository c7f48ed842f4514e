"""explain: maps lie where the lesion is, whatever the scan's lattice."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import nibabel as nib
import numpy as np
import pytest
import schema_check
from flax import linen as nn
from PIL import Image
from tiny_models import Fcn, draw_variables
from tiny_runs import classify_file, messages, write_workdir

from cadjax import explain, models, tasks
from cadjax.core import files, lookup
from cadjax.data import jobs as scan_jobs
from cadjax.data import scans
from cadjax.explanation import (
  channels,
  explainer,
  guided,
  heat_maps,
  targets,
)
from cadjax.explanation import scan as explanation_scan
from cadjax.explanation.explainer import Explainer, ExplainOptions
from cadjax.report import explained, planes
from cadjax.training import task, workdir
from configs import unet3d
from data_prep import volume
from data_prep.errors import UserError

DRAW = planes.planes_png


@pytest.fixture(autouse=True)
def _quick_pictures(monkeypatch):
  monkeypatch.setattr(planes, "planes_png", lambda *_, **__: b"picture")


class Bright(nn.Module):
  """A classifier whose CAD logit is the bright volume, at a stride of 2."""

  ndim: int = 3
  dtype: type = jnp.float32

  @nn.compact
  def __call__(self, x, *, train):
    size = (3,) * self.ndim
    kernel = jnp.full((*size, 1, 1), 1 / 3**self.ndim)
    letters = "NDHWC" if self.ndim == 3 else "NHWC"
    x = jax.lax.conv_general_dilated(
      x,
      kernel,
      (2,) * self.ndim,
      [(1, 1)] * self.ndim,
      dimension_numbers=(letters, letters[1:-1] + "IO", letters),
    )
    x = self.perturb("bright", nn.relu(x - 0.5))
    total = x.sum(tuple(range(1, self.ndim + 2)))
    return jnp.stack([jnp.zeros_like(total), total], -1), {"bright": x}


def as_json(prediction):
  return files.strict(dataclasses.asdict(prediction))


def prepare(trained, path):
  scan = scans.read_scan(path)
  return scans.prepare_scan(scan, trained.grid, trained.reference)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
  path = tmp_path_factory.mktemp("workdirs") / "classifier"
  write_workdir(path)
  config = json.loads((path / "config.json").read_text())
  config["model"]["conv"] = "lax"  # Compiles fastest.
  files.write_json(path / "config.json", config)
  workdir.seal(path)
  return tasks.load_model(path)


def planted(
  trained, model, monkeypatch, *, variables=None, grid=None, **config
):
  """The same workdir with another model, and maybe another grid."""
  monkeypatch.setattr(models, "get_model", lambda *_, **__: model)
  changed = trained.config.copy_and_resolve_references()
  with changed.unlocked():
    changed.model = {"name": "planted", "ndim": model.ndim, **config}
  dataset = trained.dataset | ({"grid": grid} if grid else {})
  return dataclasses.replace(
    trained, config=changed, dataset=dataset, variables=variables or {}
  )


def rotation(degrees: float) -> np.ndarray:
  a = np.deg2rad(degrees)
  about_z = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
  about_x = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
  return np.array(about_z) @ about_x


# RAS directions of the file's axes, and their spacing in mm.
LATTICES = {
  "plain": (np.eye(3), (2.0, 2.0, 2.0)),
  "flipped": (np.diag([-1.0, 1.0, -1.0]), (2.0, 2.0, 2.0)),
  "permuted": (np.eye(3)[:, [2, 0, 1]], (2.0, 2.0, 2.0)),
  "anisotropic": (np.diag([-1.0, -1.0, 1.0]), (1.5, 1.8, 3.0)),
  "oblique": (rotation(20), (2.0, 1.5, 2.5)),
}
CENTER_MM = np.array([12.0, -30.0, 140.0])  # RAS, of the field of view.
LESION_MM = CENTER_MM + [14.0, -11.0, 18.0]


def write_scan(path: pathlib.Path, lattice: str, lesion_mm=LESION_MM):
  """Writes a scan of 100 mm with a bright ball of 16 mm around a point."""
  direction, spacing = LATTICES[lattice]
  affine = np.eye(4)
  affine[:3, :3] = direction * spacing
  shape = np.rint(100 / np.abs(spacing)).astype(int)
  affine[:3, 3] = CENTER_MM - affine[:3, :3] @ ((shape - 1) / 2)
  index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
  at_mm = index @ affine[:3, :3].T + affine[:3, 3]
  hu = np.random.default_rng(0).normal(0, 30, shape)
  hu[np.linalg.norm(at_mm - lesion_mm, axis=-1) < 8] = 900
  nib.save(nib.Nifti1Image(hu.astype(np.int16), affine), path)
  return path


def centroid_mm(path: pathlib.Path) -> np.ndarray:
  """RAS mm of the middle of a map, by its own file alone."""
  image = nib.load(path)
  values = np.asarray(image.dataobj, np.float64)
  index = np.argwhere(values > 0.5)
  weights = values[values > 0.5]
  middle = (index * weights[:, None]).sum(0) / weights.sum()
  return image.affine[:3, :3] @ middle + image.affine[:3, 3]


def run(trained, path, out, *, grid="scanner", options=None, **given):
  explainer = Explainer(
    trained, options or ExplainOptions(methods=("hirescam",))
  )
  scan = scans.read_scan(path, heart_mask=given.pop("heart_mask", None))
  result = explanation_scan.explain_scan(
    explainer, scan, **({"target": "cad"} | given)
  )
  return result, explained.write_explained(result, out, grid=grid)


@pytest.mark.parametrize("grid", heat_maps.GRIDS)
@pytest.mark.parametrize("lattice", LATTICES)
def test_the_map_lies_where_the_lesion_is(
  classifier, monkeypatch, tmp_path, lattice, grid
):
  trained = planted(
    classifier,
    Bright(),
    monkeypatch,
    grid={"kind": "paper", "shape": [32, 36, 40]},
  )
  scan = write_scan(tmp_path / "scan.nii.gz", lattice)
  result, document = run(trained, scan, tmp_path / "out", grid=grid)
  file = tmp_path / "out" / "hirescam_bright.nii.gz"
  cell_mm = 2 * max(result.reading.prepared.model_input.spacing)
  assert np.linalg.norm(centroid_mm(file) - LESION_MM) < 0.3 * cell_mm
  (found,) = document["maps"]
  peak_ras = np.array(found["peak_mm"]) * [-1, -1, 1]
  assert np.abs(peak_ras - LESION_MM).max() < 8 + cell_mm
  written = nib.load(file)
  if grid == "scanner":
    read = nib.load(scan)
    assert written.shape == read.shape
    np.testing.assert_array_equal(written.affine, read.affine)
  values = np.asarray(written.dataobj)
  assert written.get_data_dtype() == np.float32
  assert 0 == values.min() < 0.5 < values.max() <= 1


def test_a_heart_grid_leaves_the_rest_of_the_scan_dark(
  classifier, monkeypatch, tmp_path
):
  grid = {"kind": "heart", "shape": [16, 16, 16], "box_mm": [50.0, 50.0, 50.0]}
  trained = planted(classifier, Bright(), monkeypatch, grid=grid)
  scan = write_scan(tmp_path / "scan.nii.gz", "oblique")
  image = nib.load(scan)
  heart = (np.asarray(image.dataobj) > 500).astype(np.uint8)
  nib.save(nib.Nifti1Image(heart, image.affine), tmp_path / "heart.nii.gz")
  run(
    trained, scan, tmp_path / "out", heart_mask=str(tmp_path / "heart.nii.gz")
  )
  file = tmp_path / "out" / "hirescam_bright.nii.gz"
  assert np.linalg.norm(centroid_mm(file) - LESION_MM) < 2
  values = np.asarray(nib.load(file).dataobj)
  assert (values == 0).mean() > 0.5


def test_cells_lie_on_their_voxels(classifier, monkeypatch, tmp_path):
  trained = planted(classifier, Bright(), monkeypatch)
  scan = write_scan(tmp_path / "scan.nii.gz", "anisotropic")
  result, _ = run(trained, scan, tmp_path / "feature", grid="feature")
  run(trained, scan, tmp_path / "model", grid="model")
  model = volume.Volume(
    np.zeros(result.reading.prepared.model_input.shape, np.uint8),
    result.reading.prepared.model_input.grid,
  )
  coarse, fine = (
    nib.load(tmp_path / name / "hirescam_bright.nii.gz")
    for name in ("feature", "model")
  )
  assert fine.shape == tuple(reversed(model.shape))
  a, b = np.asarray(coarse.dataobj), np.asarray(fine.dataobj)
  np.testing.assert_allclose(b[::2, ::2, ::2], a, atol=1e-6)
  for cell in ((0, 0, 0), (3, 2, 5)):
    at = coarse.affine @ [*cell, 1]
    same = fine.affine @ [*(2 * c for c in cell), 1]
    np.testing.assert_allclose(at, same, atol=1e-4)


def test_a_2d_model_has_maps_stacked_along_depth(
  classifier, monkeypatch, tmp_path
):
  trained = planted(classifier, Bright(ndim=2), monkeypatch)
  scan = write_scan(tmp_path / "scan.nii.gz", "flipped")
  options = ExplainOptions(methods=("layercam", "integrated_gradients"))
  result, document = run(trained, scan, tmp_path / "out", options=options)
  cam, reference = document["maps"]
  assert (cam["stride"], cam["cells"]) == ([1, 2, 2], [24, 8, 10])
  assert (reference["layer"], reference["cells"]) == ("input", [24, 16, 20])
  for name in ("layercam_bright", "integrated_gradients_input"):
    at = centroid_mm(tmp_path / "out" / f"{name}.nii.gz")
    spacing = max(result.reading.prepared.model_input.spacing)
    assert np.linalg.norm(at - LESION_MM) < spacing, name


@pytest.mark.parametrize("target", ["cad", "normal"])
def test_the_score_of_a_2d_model_is_that_of_its_decision(
  classifier, monkeypatch, tmp_path, target
):
  trained = planted(classifier, Bright(ndim=2), monkeypatch)
  trained.config.eval.pooling = "max"
  scan = write_scan(tmp_path / "scan.nii.gz", "flipped")
  options = ExplainOptions(methods=("layercam",), score="margin")
  result, _ = run(
    trained, scan, tmp_path / "out", options=options, target=target
  )
  pooled = result.prediction.uncalibrated_probability
  odds = np.log(pooled / (1 - pooled))
  sign = 1 if target == "cad" else -1
  assert result.target.value == pytest.approx(sign * odds, rel=1e-4)
  # The mean over the slices, most of which have no lesion, is another one.
  mean = np.diff(result.prediction.logits)[0]
  assert abs(odds - mean) > 0.1 * abs(odds)


@pytest.mark.parametrize("method", ["occlusion", "smoothgrad"])
def test_references_see_the_lesion(classifier, monkeypatch, tmp_path, method):
  grid = {"kind": "paper", "shape": [32, 36, 40]}
  trained = planted(classifier, Bright(), monkeypatch, grid=grid)
  scan = write_scan(tmp_path / "scan.nii.gz", "permuted")
  result, document = run(
    trained, scan, tmp_path / "out", options=ExplainOptions(methods=(method,))
  )
  file = tmp_path / "out" / f"{method}_input.nii.gz"
  cell_mm = (
    np.array(result.maps[0].strides)
    * result.reading.prepared.model_input.spacing
  )
  assert np.linalg.norm(centroid_mm(file) - LESION_MM) < max(8, *cell_mm)
  described = {
    "occlusion": {"step": [4, 5, 5], "box": [9, 11, 11]},
    "smoothgrad": {"copies": 16, "sigma": 0.1, "seed": 0},
  }
  assert document["options"] == {method: described[method]}
  # Without a map of a layer the prediction is there all the same.
  own = classify_file(trained, scan).prediction
  assert document["prediction"] == as_json(own)


def test_methods_without_parameters_see_the_lesion(
  classifier, monkeypatch, tmp_path
):
  grid = {"kind": "paper", "shape": [32, 36, 40]}
  trained = planted(classifier, Bright(), monkeypatch, grid=grid)
  scan = write_scan(tmp_path / "scan.nii.gz", "permuted")
  at_input = ("gradient_x_input", "guided_backprop")
  in_maps = ("respondcam", "saliency_tubes", *channels.METHODS)
  methods = (*at_input, *in_maps, "guided_gradcam")
  result, document = run(
    trained, scan, tmp_path / "out", options=ExplainOptions(methods=methods)
  )
  assert {heat.method for heat in result.maps} == set(methods)
  for heat in result.maps:
    assert heat.layer == ("input" if heat.method in at_input else "bright")
    assert heat.strides == ((2, 2, 2) if heat.method in in_maps else (1, 1, 1))
    cell_mm = (
      np.array(heat.strides) * result.reading.prepared.model_input.spacing
    )
    at = centroid_mm(tmp_path / "out" / f"{heat.name}.nii.gz")
    assert np.linalg.norm(at - LESION_MM) < max(8, *cell_mm), heat.name
  assert document["options"] == {
    name: {"batch": 1} for name in channels.METHODS
  }


@pytest.mark.parametrize(
  ("method", "warned"),
  [("guided_backprop", True), ("guided_gradcam", True), ("layercam", False)],
)
def test_guided_methods_come_with_their_warning(
  classifier, monkeypatch, tmp_path, method, warned
):
  trained = planted(classifier, Bright(), monkeypatch)
  scan = write_scan(tmp_path / "scan.nii.gz", "plain")
  _, document = run(
    trained, scan, tmp_path / "out", options=ExplainOptions(methods=(method,))
  )
  assert (guided.WARNING in document["warnings"]) == warned


def test_all_leaves_out_what_takes_long_and_what_fails_its_check():
  left_out = set(explainer.METHODS) - set(explainer.USUAL)
  assert left_out == {*channels.METHODS, *guided.METHODS}
  done = subprocess.run(
    [sys.executable, "-m", "cadjax.explain", "--help"],
    capture_output=True,
    text=True,
  )
  said = " ".join(done.stdout.split())
  assert "fail the sanity check of Adebayo et al. 2018" in said
  for name in explainer.METHODS:
    assert name in said, name


def test_nothing_that_speaks_for_it_is_zero_and_said(
  classifier, monkeypatch, tmp_path
):
  trained = planted(classifier, Bright(), monkeypatch)
  scan = write_scan(tmp_path / "scan.nii.gz", "plain")
  monkeypatch.setattr(planes, "planes_png", DRAW)
  _, document = run(
    trained, scan, tmp_path / "out", target="normal",
    options=ExplainOptions(methods=("gradcam",)),
  )  # fmt: skip
  values = np.asarray(nib.load(tmp_path / "out/gradcam_bright.nii.gz").dataobj)
  assert not values.any()
  assert document["maps"][0]["peak_mm"] is None
  assert any("gradcam_bright" in said for said in document["warnings"])
  with Image.open(tmp_path / "out" / "sheet_gradcam.png") as picture:
    assert picture.size[0] > 1000


def test_the_document_is_strict_and_names_all_files_and_no_path(
  classifier, monkeypatch, tmp_path
):
  trained = planted(classifier, Bright(), monkeypatch)
  scan = write_scan(tmp_path / "scan.nii.gz", "plain")
  options = ExplainOptions(methods=("gradcam", "gradcam++"))
  _, document = run(trained, scan, tmp_path / "out", options=options)
  folder = tmp_path / "out"
  assert {p.name for p in folder.iterdir()} == set(document["files"].values())
  assert "gradcampp_bright.nii.gz" in document["files"].values()
  text = (folder / "explain.json").read_text()
  assert json.loads(text) == document
  schema_check.validate(document)
  assert str(tmp_path) not in text
  assert document["target"]["origin"] == "given"
  for word in heat_maps.__doc__.split("No map")[0].splitlines():
    if word.startswith("  ") and word[2:3].isalpha():
      assert word.split()[0] in document, word


def test_predicted_is_the_label_of_predict(classifier, tmp_path):
  scan = write_scan(tmp_path / "scan.nii.gz", "plain")
  own = classify_file(classifier, scan).prediction
  result, document = run(classifier, scan, tmp_path / "out", target="predicted")
  assert document["target"]["name"] == own.label
  assert document["target"]["origin"] == "predicted"
  assert document["prediction"] == as_json(own)
  number = targets.CLASSES.index(own.label)
  assert document["target"]["value"] == pytest.approx(
    own.logits[number] - own.logits[1 - number], rel=1e-4
  )
  assert [m["layer"] for m in document["maps"]] == [
    "stem", "stage1", "stage2", "stage3", "stage4",
  ]  # fmt: skip


def test_one_function_is_compiled_for_all_scans_of_a_shape(
  classifier, monkeypatch, tmp_path
):
  traces = []

  class Counted(Bright):
    @nn.compact
    def __call__(self, x, *, train):
      traces.append(1)
      return super().__call__(x, train=train)

  trained = planted(classifier, Counted(), monkeypatch)
  explainer = Explainer(
    trained, ExplainOptions(methods=("gradcam", "layercam"))
  )
  counts = []
  for i, lattice in enumerate(LATTICES):
    scan = write_scan(tmp_path / f"{i}.nii.gz", lattice)
    explanation_scan.explain_scan(
      explainer, scans.read_scan(scan), target=("cad", "normal")[i % 2]
    )
    counts.append(len(traces))
  assert len(set(counts)) == 1


# --- Segmenters -------------------------------------------------------------


class Threshold(nn.Module):
  """A segmenter: class 1 where it is bright, at once and at a stride of 2."""

  ndim: int = 3
  dtype: type = jnp.float32

  @nn.compact
  def __call__(self, x, *, train):
    enc = self.perturb("enc1", nn.relu(x - 0.5))
    logits = jnp.concatenate([jnp.full_like(x, 0.05), enc], -1)
    return logits, {"enc1": enc}


@pytest.fixture
def segmenter(classifier, monkeypatch):
  return planted(
    classifier,
    Threshold(),
    monkeypatch,
    num_classes=2,
    grid={"kind": "paper", "shape": [25, 30, 35]},
  )


def ras_to_text(*points) -> str:
  return ",".join(f"{x:.3f}" for p in points for x in p * [-1, -1, 1])


@pytest.mark.parametrize("lattice", ["permuted", "oblique"])
def test_regions_of_a_segmenter(segmenter, tmp_path, lattice):
  path = write_scan(tmp_path / "scan.nii.gz", lattice)
  low, high = LESION_MM - 3, LESION_MM + 3
  prepared = prepare(segmenter, path)
  index = np.rint(prepared.scan.grid.to_index(LESION_MM * [-1, -1, 1]))
  voxel = ",".join(f"{i:.0f}" for i in index)
  sizes = {}
  for region in (
    "predicted",
    "largest",
    f"box_mm:{ras_to_text(low, high)}",
    f"voxel_mm:{ras_to_text(LESION_MM)}",
    f"voxel:{voxel}",
  ):
    result, document = run(
      segmenter, path, tmp_path / region[:5] / str(len(sizes)), target="1",
      region=region,
    )  # fmt: skip
    sizes[region] = document["region"]["voxels"]
    heat = result.maps[0].cells
    # Of this network nothing but the region itself can be seen.
    assert np.count_nonzero(heat) == document["region"]["voxels"]
    assert document["region"]["kind"] == region
    peak = np.array(document["maps"][0]["peak_mm"]) * [-1, -1, 1]
    assert np.linalg.norm(peak - LESION_MM) < 9
  ball = 4 / 3 * np.pi * 8**3 / np.prod(prepared.model_input.spacing)
  assert sizes["predicted"] == sizes["largest"] == pytest.approx(ball, rel=0.25)
  assert [n for k, n in sizes.items() if k.startswith("voxel")] == [1, 1]


@pytest.mark.parametrize("lattice", ["permuted", "oblique"])
def test_a_box_is_the_same_in_mm_and_in_voxels(segmenter, tmp_path, lattice):
  path = write_scan(tmp_path / "scan.nii.gz", lattice)
  prepared = prepare(segmenter, path)
  low, high = LESION_MM - 12, LESION_MM + [5, 8, 11]
  ends = prepared.scan.grid.to_index(np.stack([low, high]) * [-1, -1, 1])
  labels = np.zeros(prepared.model_input.shape, np.uint8)
  a, b = (
    targets.select_region(text, 1, labels, prepared)
    for text in (
      f"box_mm:{ras_to_text(low, high)}",
      "box:" + ",".join(f"{x:.4f}" for x in ends.ravel()),
    )
  )
  np.testing.assert_array_equal(a, b)
  grid = prepared.model_input.grid
  middle = grid.to_mm(np.argwhere(a).mean(0)) * [-1, -1, 1]
  assert np.abs(middle - (low + high) / 2).max() < max(grid.spacing)


def test_regions_by_truth(segmenter, tmp_path):
  path = write_scan(tmp_path / "scan.nii.gz", "flipped")
  image = nib.load(path)
  truth = (np.asarray(image.dataobj) > 500).astype(np.uint8)
  half = round(np.argwhere(truth).mean(0)[0] + 0.5)
  truth[half:] = 0
  nib.save(nib.Nifti1Image(truth, image.affine), tmp_path / "truth.nii.gz")
  sizes = {}
  for region in ("predicted", "truth", "false_positive"):
    _, document = run(
      segmenter, path, tmp_path / region, target="1", region=region,
      truth=str(tmp_path / "truth.nii.gz"),
    )  # fmt: skip
    sizes[region] = document["region"]["voxels"]
  assert sizes["truth"] == pytest.approx(sizes["predicted"] / 2, rel=0.3)
  assert sizes["false_positive"] == pytest.approx(
    sizes["predicted"] - sizes["truth"], rel=0.2
  )
  other = np.eye(4) * 2
  nib.save(nib.Nifti1Image(truth, other), tmp_path / "other.nii.gz")
  with pytest.raises(UserError, match="not on the grid of"):
    run(
      segmenter, path, tmp_path / "x", target="1", region="truth",
      truth=str(tmp_path / "other.nii.gz"),
    )  # fmt: skip


def test_an_empty_region_is_told(segmenter, tmp_path):
  path = write_scan(tmp_path / "scan.nii.gz", "plain", LESION_MM + 500)
  with pytest.raises(UserError, match="'predicted' of class 1 selects nothing"):
    run(segmenter, path, tmp_path / "out", target="1")
  with pytest.raises(UserError, match="'truth' needs true labels"):
    run(segmenter, path, tmp_path / "out", target="1", region="truth")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_segmenters_maps_have_the_cells_of_the_volume(
  classifier, monkeypatch, tmp_path, ndim
):
  """Its sizes are no multiples of the strides: the ends are filled up."""
  model = Fcn(ndim=ndim)
  trained = planted(
    classifier,
    model,
    monkeypatch,
    variables=draw_variables(model, ndim, seed=4),
    num_classes=3,
    grid={"kind": "paper", "shape": [21, 27, 33]},
  )
  path = write_scan(tmp_path / "scan.nii.gz", "plain")
  options = ExplainOptions(methods=("layercam",))
  result, _ = run(
    trained, path, tmp_path / "out", target="1", options=options,
    region=f"voxel_mm:{ras_to_text(LESION_MM)}",
  )  # fmt: skip
  cells = {heat.layer: heat.cells.shape for heat in result.maps}
  half = (11, 14, 17) if ndim == 3 else (21, 14, 17)
  assert cells == {
    "enc1": (21, 27, 33), "bottleneck": half, "dec1": (21, 27, 33),
  }  # fmt: skip
  for heat in result.maps:
    assert heat.cells.max() > 0
    peak = np.array(heat.peak_mm(result.reading.prepared.model_input.grid))
    away = np.abs(peak * [-1, -1, 1] - LESION_MM)
    assert away.max() < 7 * max(result.reading.prepared.model_input.spacing)


def test_a_patch_gives_what_the_whole_gives(classifier, monkeypatch, tmp_path):
  model = Fcn()
  trained = planted(
    classifier,
    model,
    monkeypatch,
    variables=draw_variables(model, 3, seed=4),
    num_classes=3,
    grid={"kind": "paper", "shape": [48, 32, 32]},
  )
  path = write_scan(tmp_path / "scan.nii.gz", "plain")
  region = f"voxel_mm:{ras_to_text(LESION_MM)}"
  whole, patched = (
    run(
      trained, path, tmp_path / str(patch), target="1", region=region,
      options=ExplainOptions(methods=("gradcam", "layercam"), patch=patch),
    )
    for patch in (None, (32, 32, 32))
  )  # fmt: skip
  assert patched[1]["target"]["value"] == pytest.approx(
    whole[1]["target"]["value"], rel=1e-2
  )
  for a, b in zip(whole[0].maps, patched[0].maps, strict=True):
    top = a.cells.max()
    assert top > 0
    np.testing.assert_allclose(a.cells, b.cells, atol=0.02 * top)
  # A large volume takes windows by itself, if it knows of which size.
  monkeypatch.setattr("cadjax.explanation.explainer.WHOLE_VOXELS", 1000)
  with pytest.raises(UserError, match="give --patch"):
    run(trained, path, tmp_path / "x", target="2", region=region)
  with trained.config.unlocked():
    trained.config.data.patch_size = (32, 32, 32)
  automatic, _ = run(
    trained, path, tmp_path / "x", target="1", region=region,
    options=ExplainOptions(methods=("layercam",)),
  )  # fmt: skip
  np.testing.assert_array_equal(
    automatic.maps[0].cells, patched[0].maps[3].cells
  )
  with pytest.raises(UserError, match="smoothgrad: takes whole volumes"):
    run(
      trained, path, tmp_path / "y", target="2", region=region,
      options=ExplainOptions(methods=("smoothgrad",)),
    )  # fmt: skip


def test_a_unet_of_a_config_is_explained_by_the_names_of_its_task(
  classifier, tmp_path
):
  config = unet3d.get_config().copy_and_resolve_references()
  with config.unlocked():
    config.model.update(features=(4, 8), conv="lax")
    config.segment.classes = "coronaries"
    config.model.deep_supervision = False
    config.data.patch_size = (32, 32, 32)
  variables = draw_variables(task.make_model(config), 3)
  grid = {"kind": "paper", "shape": [31, 33, 35]}
  trained = dataclasses.replace(
    classifier,
    config=config,
    variables=variables,
    dataset=classifier.dataset | {"grid": grid},
  )
  path = write_scan(tmp_path / "scan.nii.gz", "plain")
  image = nib.load(path)
  # A plaque is a coronary artery here; the aorta is not.
  truth = np.where(np.asarray(image.dataobj) > 500, 3, 0).astype(np.uint8)
  truth[:5] = 1
  nib.save(nib.Nifti1Image(truth, image.affine), tmp_path / "truth.nii.gz")
  given = {"region": "truth", "truth": str(tmp_path / "truth.nii.gz")}
  for patch in (None, (32, 32, 32)):
    result, document = run(
      trained, path, tmp_path / str(patch), target="coronaries",
      options=ExplainOptions(methods=("hirescam",), patch=patch), **given,
    )  # fmt: skip
    assert [m["layer"] for m in document["maps"]] == [
      "enc1",
      "bottleneck",
      "dec1",
    ]
    ball = (
      4
      / 3
      * np.pi
      * 8**3
      / np.prod(result.reading.prepared.model_input.spacing)
    )
    assert document["region"]["voxels"] == pytest.approx(ball, rel=0.25)
  explainer = Explainer(trained, ExplainOptions())
  assert targets.class_names(explainer) == [
    "background",
    "coronaries",
  ]
  with pytest.raises(lookup.UnknownName, match="known: background, coronaries"):
    run(trained, path, tmp_path / "x", target="aorta", **given)
  truth[:5] = 9
  nib.save(nib.Nifti1Image(truth, image.affine), tmp_path / "truth.nii.gz")
  with pytest.raises(UserError, match="has the label 9; known are .*1 aorta"):
    run(trained, path, tmp_path / "x", target="coronaries", **given)


# --- The program ------------------------------------------------------------


def run_program(*args: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "cadjax.explain", *args],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parents[1],
  )


def test_the_program_writes_whole_results(classifier, tmp_path):
  good = write_scan(tmp_path / "good.nii.gz", "oblique")
  bad = tmp_path / "bad.nii.gz"
  bad.write_bytes(good.read_bytes()[:500])
  given = [
    f"--workdir={classifier.path}",
    f"--input={bad}",
    f"--input={good}",
    f"--out={tmp_path / 'out'}",
    "--method=gradcam,hirescam",
    "--layers=stage4,stem",
  ]
  done = run_program(*given)
  assert done.returncode == 2, done.stderr
  (line,) = messages(done)
  assert line.startswith("error: ")
  assert str(bad) in line
  assert [p.name for p in (tmp_path / "out").iterdir()] == ["good"]
  folder = tmp_path / "out" / "good"
  document = json.loads((folder / "explain.json").read_text())
  assert {p.name for p in folder.iterdir()} == set(document["files"].values())
  read = nib.load(good)
  for each in document["maps"]:
    written = nib.load(folder / each["file"])
    assert written.shape == read.shape
    np.testing.assert_array_equal(written.affine, read.affine)
  assert "1 explained, 1 failed" in done.stdout
  assert document["notice"] in done.stdout
  # The maps of the last stage are one, up to scale.
  a, b = (
    np.asarray(nib.load(folder / f"{name}_stage4.nii.gz").dataobj)
    for name in ("gradcam", "hirescam")
  )
  np.testing.assert_allclose(a, b, atol=1e-4)

  # In place of an earlier one, when asked to; the others stay.
  before = (folder / "explain.json").stat().st_mtime_ns
  jobs = scan_jobs.make_jobs([str(good)], folder)
  explainer = Explainer(classifier, ExplainOptions(layers=("stem",)))
  assert explain_all(explainer, jobs) == 1
  assert (folder / "explain.json").stat().st_mtime_ns == before
  assert explain_all(explainer, jobs, overwrite=True) == 0
  assert {p.name for p in folder.iterdir()} == {
    "explain.json",
    *("sheet_gradcam.png", "gradcam_stem.nii.gz"),
    *("sheet_hirescam.png", "hirescam_stem.nii.gz"),
  }


def explain_all(explainer, jobs, **options):
  return scan_jobs.run_jobs(
    jobs,
    explained.KIND,
    lambda _, scan: explanation_scan.explain_scan(explainer, scan),
    explained.write_explained,
    lambda job, _: job.case,
    **options,
  )


def test_layers_are_listed_from_the_image_to_the_logits(classifier):
  listed = explain.list_layers(Explainer(classifier))
  rows = [line.split() for line in listed.splitlines()]
  assert rows[0] == ["layer", "stride", "cells"]
  assert rows[1] == ["stem", "2x2x2", "12x8x10"]
  assert rows[5] == ["stage4", "32x32x32", "1x1x1"]


def test_a_wrong_layer_answers_with_the_nearest_in_one_line(classifier):
  done = run_program(
    f"--workdir={classifier.path}", "--layers=stge4", "--input=x", "--out=y"
  )
  assert done.returncode == 2
  (line,) = messages(done)
  assert "unknown layer 'stge4'; did you mean 'stage4'" in line


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"methods": ("gradcan",)}, "mean 'gradcam'"),
    ({"score": "logits"}, "mean 'logit'"),
  ],
)
def test_wrong_names_answer_with_the_nearest(classifier, options, message):
  with pytest.raises(lookup.UnknownName, match=message):
    Explainer(classifier, ExplainOptions(**options))


def test_windows_are_for_segmenters(classifier):
  with pytest.raises(UserError, match="leave --patch out"):
    Explainer(classifier, ExplainOptions(patch=(32, 32, 32)))


def test_logits_that_are_not_finite_are_no_result(
  classifier, monkeypatch, tmp_path
):
  broken = jax.tree.map(lambda x: np.full_like(x, np.nan), classifier.variables)
  path = write_scan(tmp_path / "scan.nii.gz", "plain")
  with pytest.raises(UserError, match="NaN"):
    run(
      dataclasses.replace(classifier, variables=broken), path, tmp_path / "out",
      options=ExplainOptions(layers=("stage4",)),
    )  # fmt: skip
  assert not (tmp_path / "out").exists()
