"""A linked scan of a phantom's true masks: no model, no training."""

import dataclasses
import functools

import numpy as np
import tiny_tree

from cadjax.classification.scan import ClassifiedScan, Prediction
from cadjax.data.scans import Prepared
from cadjax.link import join
from cadjax.link.scan import LinkedScan
from cadjax.segmentation.scan import FoundClass, SegmentedScan
from cadjax.training import workdir
from cadjax.training.reading import Reading
from data_prep import phantom
from data_prep.geometry import GridSpec

CLASSES = ("background", "aorta", "lumen", "stable_plaque", "unstable_plaque")
LAYERS = ("stage1", "stage4")


@functools.cache
def draw(seed: int, label: int, severity: str, size: int):
  """Draws a phantom on `size` voxels along each edge of 128 mm."""
  grid = GridSpec("heart", (size,) * 3, (128.0,) * 3)
  return phantom.make_phantom(seed, label=label, severity=severity, grid=grid)


def linked_scan(
  seed: int = 3,
  *,
  label: int = 1,
  severity: str = "overt",
  size: int = 64,
  probability: float = 0.87,
  threshold: float = 0.5,
  skipped: str | None = None,
  case: str = "phantom",
  **more,
) -> LinkedScan:
  """Links a map around the first lesion with the true masks.

  Args:
    seed: of the phantom.
    label: 1 for one with plaques.
    severity: see `phantom.make_phantom`.
    size: voxels along each edge.
    probability: of CAD.
    threshold: at or above which it is called CAD.
    skipped: why the vessels were not looked for; there are then none.
    case: its name.
    **more: of `LinkedScan`.
  """
  drawn = draw(seed, label, severity, size)
  volume = drawn.volume
  labels = drawn.mask if skipped is None else np.zeros_like(drawn.mask)
  structures = join.find_structures(volume, labels, CLASSES)
  heat = _heat(drawn)
  maps = dict.fromkeys(LAYERS, heat)
  linked = join.join(
    structures,
    maps,
    volume.grid,
    layer=LAYERS[0],
    probability=probability,
    threshold=threshold,
  )
  classified = ClassifiedScan(
    _reading(drawn, case, {"name": "resnet", "ndim": 3, "depth": 50}),
    Prediction(
      label="cad" if probability >= threshold else "normal",
      probability=probability,
      calibrated=True,
      uncalibrated_probability=probability,
      temperature=1.4,
      calibration_origin="on validation",
      threshold=threshold,
      threshold_origin="youden on 14 validation patients",
      logits=(0.0, 1.0),
    ),
    None,
  )
  counts = np.bincount(labels.ravel(), minlength=len(CLASSES))
  segmented = SegmentedScan(
    _reading(drawn, case, {"name": "unet", "ndim": 3, "features": [16, 32]}),
    labels,
    labels,
    tuple(
      FoundClass(number, name, int(counts[number]), structures.volumes_ml[name],
                 int(counts[number] > 0))
      for number, name in enumerate(CLASSES)
      if number
    ),
    {"classes": "aorta_lumen_plaque", "window": [64, 64, 64], "overlap": 0.5,
     "mirror": False, "min_component_mm3": 1.0},
    skipped=skipped,
  )  # fmt: skip
  return LinkedScan(
    classified, segmented, maps, linked, method="hirescam", **more
  )


def _heat(drawn) -> np.ndarray:
  """A peak at the first lesion, or at the middle of a scan without one."""
  grid = drawn.volume.grid
  at = drawn.lesions[0]["position_mm"] if drawn.lesions else grid.center_mm
  index = np.moveaxis(np.indices(drawn.volume.shape), 0, -1)
  away = np.linalg.norm(grid.to_mm(index) - np.asarray(at), axis=-1)
  return np.exp(-((away / 12) ** 2)).astype(np.float32)


def _reading(drawn, case: str, model: dict) -> Reading:
  trained_on = workdir.TrainingData(
    source="phantom",
    is_phantom=True,
    cases={"train": 600, "validation": 100},
    patients={"train": 600, "validation": 100},
    fingerprint="0123456789abcdef",
  )
  card = workdir.ModelCard(
    workdir="coronary.safetensors",
    step=4200,
    model=model,
    trained_on=trained_on,
    grid=GridSpec("heart", (64,) * 3, (128.0,) * 3).to_dict(),
    window_hu=(-200.0, 1000.0),
    versions=SOFTWARE.to_dict(),
  )
  prepared = Prepared(
    scan=drawn.volume,
    model_input=drawn.volume,
    heart_mm=tuple(float(x) for x in drawn.volume.grid.center_mm),
    heart_origin="found in the image",
    features={"spacing_mm": 2.0},
    concerns=(),
  )
  return Reading(
    case=case,
    input_name=f"{case}.nii.gz",
    prepared=prepared,
    model=card,
    software=SOFTWARE,
    created="2026-03-04T05:06:07+00:00",
  )


SOFTWARE = workdir.Software("0.2.0", None, "3.11.9", {"jax": "0.7.0"}, ("cpu",))


def with_findings(result: LinkedScan, *found, **lengths_mm) -> LinkedScan:
  """Returns it with other findings, on straight arteries of 3 mm.

  Args:
    result: of `linked_scan`.
    *found: the findings.
    **lengths_mm: of the arteries, 60 mm if not given; 0 for none.
  """
  lengths = {"LM": 10, "LAD": 60, "LCx": 60, "RCA": 60} | lengths_mm
  branches = []
  for k, (name, mm) in enumerate(lengths.items()):
    points = np.zeros((2 * mm + 1, 3))
    points[:, 2] = -np.arange(2 * mm + 1) / 2
    points[:, 0] = 40 * k
    branches += [tiny_tree.branch(name, points)] if mm else []
  linked = result.linked
  tree = dataclasses.replace(
    linked.structures.tree,
    branches=tuple(branches),
    affine=np.diag([0.5, 0.5, 0.5, 1.0]),
  )
  structures = dataclasses.replace(linked.structures, tree=tree)
  return dataclasses.replace(
    result,
    linked=dataclasses.replace(
      linked, structures=structures, findings=list(found), statements=[]
    ),
  )
