"""Shows where a trained model looked: one heat map for each layer.

  cadjax explain --workdir=WORKDIR --input=SCAN --out=DIR
    [--method=hirescam,layercam] [--layers=all] [--target=cad]

--input and --out as in `cadjax predict`. Of each scan it writes a NIfTI file
for each method and layer, float32 in [0, 1] with exactly the scan's shape and
affine, for each method a sheet of pictures of all layers, and explain.json (see
`report.explained`). By default the methods are hirescam, whose maps agree best
with what the lesions of phantoms do to the log odds (the experiment
`explanations`), and gradcam, which the paper has.

All layers and all of gradcam, hirescam, xrescam, layercam, gradcam++,
respondcam and saliency_tubes cost one pass forward and one back, and so does
gradient_x_input; the references occlusion, integrated_gradients and smoothgrad
cost many, scorecam and ablationcam one for every channel.

guided_backprop and guided_gradcam are for comparison: they fail the sanity
check of Adebayo et al. 2018, since their maps hardly change when the network's
weights are drawn anew. --method=all leaves them out, and scorecam and
ablationcam.

A classifier is explained for --target=cad, normal or predicted. A segmenter
is explained for a class in a region of the scan:

  --region=predicted        where the class is predicted (the default)
  --region=largest          the largest component of that
  --region=truth            where --truth=MASK has the class
  --region=false_positive, false_negative     where the two differ
  --region=box:d,h,w,d,h,w, voxel:d,h,w       voxels of the scan, [D, H, W]
  --region=box_mm:x,y,z,x,y,z, voxel_mm:x,y,z mm (LPS)
"""

import functools
from collections.abc import Sequence
from typing import Any

from absl import flags

from cadjax import tasks
from cadjax.core import lookup
from cadjax.data import jobs as scan_jobs
from cadjax.explanation import cam, explainer, guided, heat_maps, targets
from cadjax.explanation.explainer import Explainer
from cadjax.explanation.scan import ExplainedScan, explain_scan
from cadjax.report import explained, pages
from cadjax.segmentation.scan import place_heart
from cadjax.segmentation.segmenter import WIDE, load_wide
from data_prep import errors
from data_prep.errors import UserError


def _describe(job: scan_jobs.Job, result: ExplainedScan) -> str:
  """Returns what is printed of an explained scan."""
  target = result.target
  line = f"{job.case}: {target.score} of {target.name!r}"
  if result.region is not None:
    line += f" in {result.region.kind} ({result.region.voxels} voxels)"
  line += f" is {target.value:.4g}"
  if result.prediction is not None:
    line += f"; probability of CAD {result.prediction.probability:.4f}"
  lines = [line]
  lines += [f"  warning: {warning}" for warning in result.warnings]
  lines += [f"  - {concern}" for concern in result.reading.prepared.concerns]
  lines += [f"  note: {note}" for note in result.reading.model_input.notes]
  grid = result.reading.model_input.grid
  for heat in result.maps:
    peak = heat.peak_mm(grid)
    if peak is not None:
      place = ", ".join(f"{x:.1f}" for x in peak)
      lines.append(f"  {heat.name}: highest at ({place}) mm LPS")
  lines += [
    f"  {job.folder / name}"
    for key, name in explained.file_names(result).items()
    if key.startswith("sheet_")
  ]
  return "\n".join(lines)


def list_layers(explainer: Explainer) -> str:
  """Returns a table of the layers that can be explained."""
  spec = explainer.model.grid
  fixed = spec.kind != "spacing"
  cells = explainer.cells(spec.shape)
  lines = [f"{'layer':<12}{'stride':<12}{'cells' if fixed else ''}".rstrip()]
  for layer, strides in explainer.strides.items():
    sizes = "x".join(map(str, cells[layer])) if fixed else ""
    step = "x".join(map(str, strides))
    lines.append(f"{layer:<12}{step:<12}{sizes}".rstrip())
  return "\n".join(lines)


def define_flags() -> None:
  """Defines the flags; not at import, so that notebooks may import this."""
  flags.DEFINE_string(
    "workdir",
    None,
    "Workdir of a trained classifier or segmenter, a file of weights or the"
    " name of a shipped model.",
    required=True,
  )
  flags.DEFINE_string("wide", None, WIDE)
  scan_jobs.define_flags(required=False)
  flags.DEFINE_list(
    "method",
    list(explainer.DEFAULT),
    f"Of {', '.join(explainer.METHODS)}; or all:"
    f" {', '.join(explainer.USUAL)}. {guided.WARNING}",
  )
  flags.DEFINE_list("layers", ["all"], "Names of layers, or all.")
  flags.DEFINE_bool("list_layers", False, "Print the layers and stop.")
  flags.DEFINE_string(
    "target",
    None,
    "Class: of a classifier cad (the default), normal or predicted.",
  )
  flags.DEFINE_enum(
    "score",
    cam.SCORE,
    list(cam.SCORES),
    "What is explained: the log odds of the class, or its logit alone.",
  )
  flags.DEFINE_string("region", targets.PREDICTED, "Of a segmenter: see above.")
  flags.DEFINE_multi_string(
    "truth",
    [],
    "True labels, one mask for each scan: 1 aorta, 2 lumen, 3 stable and 4"
    " unstable plaque.",
  )
  flags.DEFINE_enum(
    "grid", "scanner", list(heat_maps.GRIDS), "Grid of the NIfTI files."
  )
  flags.DEFINE_enum(
    "planes",
    "peak",
    ["peak", "heart"],
    "Pictures through each map's highest point, or through the heart.",
  )
  flags.DEFINE_integer(
    "xres_window", cam.XRES_WINDOW, "Cells along an edge of XRes-CAM's blocks."
  )
  flags.DEFINE_list(
    "patch", None, "Window D,H,W of a 3D segmenter; else by the volume's size."
  )
  flags.DEFINE_list(
    "occlusion_step", None, "Voxels D,H,W from box to box; else an eighth."
  )
  flags.DEFINE_list(
    "occlusion_box", None, "Voxels D,H,W of the box; else about two steps."
  )
  flags.DEFINE_integer(
    "batch",
    1,
    "Images at a time in methods of many passes, channels in scorecam and"
    " ablationcam.",
  )
  flags.DEFINE_integer("ig_steps", 32, "Steps of integrated gradients.")
  flags.DEFINE_integer("smoothgrad_copies", 16, "Noisy copies of SmoothGrad.")
  flags.DEFINE_float(
    "smoothgrad_sigma", 0.1, "Noise of SmoothGrad, as a share of the window."
  )


def _triple(name: str, values: list[str] | None) -> tuple[int, ...] | None:
  if values is None:
    return None
  try:
    triple = tuple(int(value) for value in values)
  except ValueError:
    triple = ()
  if len(triple) != 3 or min(triple) < 1:
    raise UserError(
      f"--{name}={','.join(values)}: takes three whole numbers D,H,W"
    )
  return triple


def _options(args: Any) -> explainer.ExplainOptions:
  every = args.method == ["all"]
  for name in ("batch", "ig_steps", "smoothgrad_copies", "xres_window"):
    if args[name].value < 1:
      raise UserError(f"--{name} must be at least 1")
  return explainer.ExplainOptions(
    methods=explainer.USUAL if every else tuple(dict.fromkeys(args.method)),
    layers=None if args.layers == ["all"] else tuple(args.layers),
    score=args.score,
    xres_window=args.xres_window,
    patch=_triple("patch", args.patch),
    occlusion_step=_triple("occlusion_step", args.occlusion_step),
    occlusion_box=_triple("occlusion_box", args.occlusion_box),
    ig_steps=args.ig_steps,
    smoothgrad_copies=args.smoothgrad_copies,
    smoothgrad_sigma=args.smoothgrad_sigma,
    batch=args.batch,
  )


def _target(target: str | None, explainer: Explainer) -> str:
  """Checks --target once for all scans."""
  known = targets.class_names(explainer)
  if target is None and explainer.is_segmenter:
    raise UserError(f"--target is missing; the classes are {', '.join(known)}")
  target = target or "cad"
  if explainer.is_segmenter or target != targets.PREDICTED:
    targets.find_target(target, known)
  return target


def main(_: Sequence[str]) -> int:
  """Explains all scans; returns the exit code."""
  args = flags.FLAGS
  explainer = Explainer(tasks.load_model(args.workdir), _options(args))
  if args.list_layers:
    print(list_layers(explainer))
    return 0
  if not args.input or not args.out:
    raise UserError("--input and --out are needed")
  jobs = scan_jobs.make_jobs(
    args.input, args.out, cases=args.case, heart_masks=args.heart_mask
  )
  if args.truth and len(args.truth) != len(jobs):
    raise UserError(f"{len(args.truth)} of --truth for {len(jobs)} scans")
  truth_of = dict(zip(jobs, args.truth, strict=True)) if args.truth else {}
  target = _target(args.target, explainer)
  if explainer.is_segmenter:
    targets.parse_region(args.region)
  wide = load_wide(args.wide, [explainer.model])
  scan_jobs.announce("Explaining", jobs, pages.NOTICE)
  failed = scan_jobs.run_jobs(
    jobs,
    explained.KIND,
    lambda job, scan: explain_scan(
      explainer,
      place_heart(wide, scan),
      target=target,
      region=args.region,
      truth=truth_of.get(job),
    ),
    functools.partial(
      explained.write_explained, grid=args.grid, through=args.planes
    ),
    _describe,
    series=args.series,
    overwrite=args.overwrite,
  )
  if len(jobs) > 1:
    print(f"{len(jobs) - failed} explained, {failed} failed")
  return 2 if failed else 0


if __name__ == "__main__":
  errors.run(
    "cadjax explain",
    main,
    define_flags,
    expected=(lookup.ConfigError,),
  )
