"""Segments scans with a trained segmenter.

  python -m cadjax.segment --segmenter=WORKDIR --input=SCAN --out=DIR

--input and --out as in cadjax.predict. Of each scan it writes

  segments.nii.gz   uint8 classes, with exactly the scan's shape and affine
  planes.png        where most of each class lies, outlined
  segments.json     schema "cadjax.segments/1" (null where not known):

  schema          "cadjax.segments/1"
  notice          what this software is not
  warnings        sentences that must be read with the masks; [] if none
  summary         what was found, in words
  case            the name of the case, from the caller or the input's name
  created         UTC, ISO 8601
  input           name (of the file or folder, without its path), shape
                  [D, H, W], spacing_mm [D, H, W], notes (what the reader
                  chose, left out or assumed)
  classes         for each: value (in the NIfTI file), name, voxels,
                  volume_ml, components (26-connected)
  segmentation    classes (the task), window, overlap, mirror,
                  min_component_mm3
  plausibility    concerns (why the scan is unlike the training data),
                  features (of the model's input)
  segmenter       workdir (its name), step, model, trained_on, grid (recipe),
                  window_hu, versions (of the training run)
  model_input     grid (shape, spacing, origin, direction: LPS mm)
  software        versions of this run
  files           the names of the files beside it

No header field of the scan is copied but for its lattice.
"""

import dataclasses
import datetime
import functools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from cadjax import components, segment_metrics
from cadjax.core import files, lookup
from cadjax.data import classes, scans
from cadjax.data import jobs as scan_jobs
from cadjax.report import pages, planes
from cadjax.training import workdir
from data_prep import errors, geometry
from data_prep.volume import Grid, Volume, write_nifti

SCHEMA = "cadjax.segments/1"
KIND = files.ResultFolder("segments.json", "cadjax.segments/")
FILES = {
  "result": "segments.json",
  "mask": "segments.nii.gz",
  "planes": "planes.png",
}
PHANTOM_WARNING = (
  "The segmenter was trained on phantoms: its masks are not evidence about"
  " patients."
)
CONCERN_WARNING = (
  "The scan is unlike the data that the segmenter was trained on: its masks"
  " are not to be relied on."
)
# Class: colour of its outline, in words too.
COLORS = {
  "aorta": ("#f0644b", "red"),
  "coronaries": ("#f2c14e", "yellow"),
  "lumen": ("#f2c14e", "yellow"),
  "stable_plaque": ("#6cc5f0", "blue"),
  "unstable_plaque": ("#c58af9", "violet"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentResult:
  """What was found in one scan.

  Attributes:
    case: its name, safe to print.
    input_name: base name of the file or folder.
    prepared: the scan and what the segmenter saw of it.
    labels: uint8 [D, H, W] on the scan's grid.
    model_labels: uint8 [D, H, W] on the segmenter's grid.
    classes: see "classes" of the schema.
    segmentation: see the schema.
    segmenter: see the schema.
    software: versions of this run.
    created: UTC, ISO 8601.
  """

  case: str
  input_name: str
  prepared: scans.Prepared
  labels: np.ndarray
  model_labels: np.ndarray
  classes: tuple[dict[str, Any], ...]
  segmentation: dict[str, Any]
  segmenter: dict[str, Any]
  software: dict[str, Any]
  created: str

  @property
  def summary(self) -> str:
    """What was found, in words."""
    missing = [x["name"] for x in self.classes if not x["voxels"]]
    if len(missing) == len(self.classes):
      return f"Nothing was found: no {' and no '.join(_words(missing))}."
    found = ", ".join(
      f"{_word(x['name'])} {x['volume_ml']:.1f} mL in {x['components']}"
      f" piece{'s' if x['components'] > 1 else ''}"
      for x in self.classes
      if x["voxels"]
    )
    said = f"Found: {found}."
    if missing:
      said += f" Not found: {', '.join(_words(missing))}."
    return said

  @property
  def warnings(self) -> list[str]:
    """What must be read with the masks."""
    said = []
    if self.prepared.concerns:
      said.append(CONCERN_WARNING)
    if self.segmenter["trained_on"]["is_phantom"]:
      said.append(PHANTOM_WARNING)
    if not any(x["voxels"] for x in self.classes):
      said.append("The segmentation is empty.")
    return said


def _word(name: str) -> str:
  return name.replace("_", " ")


def _words(names: Sequence[str]) -> list[str]:
  return [_word(name) for name in names]


def labels_on_scan(
  probabilities: np.ndarray, grid: Grid, scan: Volume
) -> np.ndarray:
  """Returns the most probable class of each voxel of a scan.

  The probabilities are interpolated, not the labels: the surface then lies
  between the voxels of a coarse grid where they say so. Takes 9 bytes per
  voxel of the scan beside the result.

  Args:
    probabilities: [D, H, W, K] on `grid`.
    grid: of the model.
    scan: on its own grid.

  Returns:
    uint8 [D, H, W] on the scan's grid; 0 where `grid` does not reach.
  """
  labels = np.zeros(scan.shape, np.uint8)
  best = None
  for number in range(probabilities.shape[-1]):
    # Outside there is background for sure.
    p = geometry.back_to_source(
      probabilities[..., number].astype(np.float32),
      grid,
      scan,
      fill=float(number == 0),
    )
    if best is None:
      best = p
      continue
    better = p > best
    labels[better] = number
    np.maximum(best, p, out=best)
  return labels


def segment_scan(
  trained: workdir.Trained,
  path: str | pathlib.Path,
  *,
  case: str | None = None,
  series: str | None = None,
  heart_mask: str | None = None,
  progress: bool = False,
) -> SegmentResult:
  """Segments one scan.

  Args:
    trained: a segmenter, from `workdir.load_trained`.
    path: a file or a folder of DICOM slices.
    case: the name in the results; by default from the path's last part.
    series: which DICOM series, by UID or number.
    heart_mask: a mask file; labels above 0 are the heart.
    progress: whether to show a bar on a terminal.

  Returns:
    what `write_segments` writes.

  Raises:
    UserError: the scan or the mask cannot be used.
  """
  given = scans.read(path, case=case, series=series, heart_mask=heart_mask)
  return segment_read(trained, given, progress=progress)


def segment_read(
  trained: workdir.Trained, given: scans.Scan, *, progress: bool = False
) -> SegmentResult:
  """Segments a scan that is read already; see `segment_scan`."""
  prepared = scans.prepare(trained, given)
  scan, model_input = prepared.scan, prepared.model_input
  options = trained.config.segment
  with scans.memory_told("segmenting", model_input.shape):
    probabilities = trained.segment(
      model_input.hu, probabilities=True, progress=progress
    ).probabilities
  with scans.memory_told("bringing the mask back to", scan.shape):
    labels = labels_on_scan(probabilities, model_input.grid, scan)
    labels, model_labels = (
      components.remove_small(some, spacing, options.min_component_mm3)
      for some, spacing in (
        (labels, scan.spacing),
        (probabilities.argmax(-1).astype(np.uint8), model_input.spacing),
      )
    )
  now = datetime.datetime.now(datetime.UTC)
  return SegmentResult(
    case=given.case,
    input_name=given.name,
    prepared=prepared,
    labels=labels,
    model_labels=model_labels,
    classes=tuple(_measure(labels, scan, options.classes)),
    segmentation={
      "classes": options.classes,
      "window": options.window or trained.config.data.patch_size,
      "overlap": options.overlap,
      "mirror": options.mirror,
      "min_component_mm3": options.min_component_mm3,
    },
    segmenter=workdir.describe_model(trained),
    software=workdir.versions(),
    created=now.isoformat(timespec="seconds"),
  )


def _measure(
  labels: np.ndarray, scan: Volume, task: str
) -> list[dict[str, Any]]:
  # Not the product of the spacings: a tilted gantry shears the grid.
  voxel_ml = abs(float(np.linalg.det(scan.affine[:3, :3]))) / 1000
  found = []
  for value, name in enumerate(classes.get_task(task).names[1:], 1):
    mask = labels == value
    voxels = int(np.count_nonzero(mask))
    found.append(
      {
        "value": value,
        "name": name,
        "voxels": voxels,
        "volume_ml": voxels * voxel_ml,
        "components": segment_metrics.betti0(mask) if voxels else 0,
      }
    )
  return found


def to_json(result: SegmentResult) -> dict[str, Any]:
  """Returns the contents of segments.json: strict JSON, NaN as None."""
  prepared = result.prepared
  return files.strict(
    {
      "schema": SCHEMA,
      "notice": pages.NOTICE,
      "warnings": result.warnings,
      "summary": result.summary,
      "case": result.case,
      "created": result.created,
      "input": {
        "name": result.input_name,
        "shape": prepared.scan.shape,
        "spacing_mm": prepared.scan.spacing,
        "notes": prepared.model_input.notes or prepared.scan.notes,
      },
      "classes": result.classes,
      "segmentation": result.segmentation,
      "plausibility": {
        "concerns": prepared.concerns,
        "features": prepared.features,
      },
      "segmenter": result.segmenter,
      "model_input": {"grid": prepared.model_input.grid.to_dict()},
      "software": result.software,
      "files": FILES,
    }
  )


def render_planes(result: SegmentResult) -> bytes:
  """Returns planes.png: for each class the planes with most of it."""
  scan = result.prepared.scan
  masks = {
    x["name"]: result.labels == x["value"]
    for x in result.classes
    if x["voxels"]
  }
  outlined = [(mask, COLORS[name][0]) for name, mask in masks.items()]
  centers = {
    _word(name): scan.grid.to_mm(planes.fullest(mask))
    for name, mask in masks.items()
  } or {"Scan": result.prepared.heart_mm}
  legend = ", ".join(f"{COLORS[name][1]}: {_word(name)}" for name in masks)
  return planes.planes_png(
    {
      heading: planes.three_planes(
        scan,
        center_mm,
        outline=result.prepared.model_input.grid,
        masks=outlined,
      )
      for heading, center_mm in centers.items()
    },
    f"{result.case}  ·  {legend or 'nothing was found'}  ·  dashed: what the"
    " segmenter saw  ·  research only",
  )


def write_segments(
  result: SegmentResult, folder: str | os.PathLike, *, overwrite: bool = False
) -> dict[str, Any]:
  """Writes all the files of a segmented scan, whole or not at all.

  Args:
    result: of `segment_scan`.
    folder: is made; refused if it holds anything already.
    overwrite: replace an earlier result there.

  Returns:
    the contents of segments.json.

  Raises:
    UserError: the folder is in the way or cannot be written.
  """
  document = to_json(result)
  with KIND.writing(folder, overwrite=overwrite) as made:
    write_nifti(made / FILES["mask"], result.labels, result.prepared.scan)
    (made / FILES["planes"]).write_bytes(render_planes(result))
    text = json.dumps(document, indent=2, allow_nan=False)
    (made / FILES["result"]).write_text(text + "\n", "utf-8")
  return document


def _tell(job: scan_jobs.Job, result: SegmentResult) -> str:
  """Returns what is printed of a segmented scan."""
  lines = [f"{job.case}: {result.summary}"]
  lines += [f"  warning: {said}" for said in result.warnings]
  lines += [f"  - {said}" for said in result.prepared.concerns]
  lines += [f"  note: {said}" for said in result.prepared.model_input.notes]
  lines.append(f"  {job.folder / FILES['mask']}")
  return "\n".join(lines)


def segment_all(
  trained: workdir.Trained,
  jobs: Sequence[scan_jobs.Job],
  *,
  series: str | None = None,
  overwrite: bool = False,
) -> int:
  """Segments scans and writes their files; see `jobs.handle_all`."""
  return scan_jobs.handle_all(
    jobs,
    KIND,
    functools.partial(segment_scan, trained, progress=True),
    write_segments,
    _tell,
    series=series,
    overwrite=overwrite,
  )


def define_flags() -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  flags.DEFINE_string(
    "segmenter", None, "Workdir of a trained segmenter.", required=True
  )
  scan_jobs.define_flags()
  flags.DEFINE_bool(
    "mirror", None, "Average over mirror images; by default as configured."
  )
  flags.DEFINE_integer(
    "batch_size", None, "Windows at a time; by default as configured."
  )


def main(_: Sequence[str]) -> int:
  """Segments all scans; returns the exit code."""
  args = flags.FLAGS
  jobs = scan_jobs.make_jobs(
    args.input, args.out, cases=args.case, heart_masks=args.heart_mask
  )
  trained = workdir.load_trained(args.segmenter, "segment")
  if args.mirror is not None:
    trained.config.segment.mirror = args.mirror
  if args.batch_size is not None:
    trained.config.data.eval_batch_size = args.batch_size
  print(
    f"{pages.NOTICE}\nSegmenting {len(jobs)}"
    f" scan{'s' if len(jobs) > 1 else ''} on {jax.devices()[0].device_kind}",
    flush=True,
  )
  failed = segment_all(
    trained, jobs, series=args.series, overwrite=args.overwrite
  )
  if len(jobs) > 1:
    print(f"{len(jobs) - failed} segmented, {failed} failed")
  return 2 if failed else 0


if __name__ == "__main__":
  define_flags()
  errors.run(main, expected=(lookup.ConfigError,))
