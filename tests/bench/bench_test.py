"""The benchmark program end to end, in small; no test judges a time."""

import dataclasses
import importlib.util
import io
import json
import math
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from cadjax import models
from cadjax.bench import (
  about,
  figures,
  measure,
  report,
  rows,
  summary,
  work_explanations,
  work_jax,
  worker,
)
from cadjax.core.lookup import ConfigError, UnknownName
from cadjax.explanation import cam, explainer
from cadjax.models import flops, resnet
from cadjax.report import linked
from cadjax.segmentation import task
from configs import mlperf_unet3d, resnet2d, resnet3d, unet2d, unet3d
from data_prep.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
SHAPE = (16, 24, 32)


def bench(*flags):
  return subprocess.run(
    [
      *(sys.executable, "-m", "cadjax.bench", "--config=configs/resnet3d.py"),
      *("--config.model.depth=10", "--config.model.width=4", "--repeats=2"),
      *("--shape=16,24,32", *flags),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    # Unoptimised, so that compiling does not take the test's time.
    env=os.environ
    | {
      "PYTHONPATH": str(ROOT),
      "XLA_FLAGS": os.environ["XLA_FLAGS"]
      + " --xla_backend_optimization_level=0",
    },
  )


def make_settings(config):
  if config.task == "classify":
    config.model.depth = 10
    config.model.width = 4
  else:
    config.model.features = (4, 8)
    config.model.deep_supervision = False  # Takes four levels.
    config.data.eval_batch_size = 3
  return rows.Settings(
    config=json.loads(config.to_json_best_effort()),
    shape=SHAPE,
    batch=2,
    devices=1,
    against="none",
    data=None,
    scan_shape=(20, 40, 50),
  )


@pytest.fixture
def settings():
  return make_settings(resnet3d.get_config())


@pytest.fixture
def segmenter():
  config = unet3d.get_config()
  config.segment.window = (8, 16, 24)
  return make_settings(config)


def make_works(settings, what, folder):
  """The works of the first group's rows, by name, made in this process."""
  group, *_ = rows.plan([what], settings, rows.Inputs(folder, settings))
  return {
    row.name: worker.make(row.spec) for row in group if row.spec["what"] == what
  }


def test_the_program_writes_table_json_and_roofline(tmp_path):
  done = bench("--what=infer", f"--out={tmp_path}")
  assert done.returncode == 0, done.stderr
  assert "infer: cadjax" in done.stdout
  # PNGs begin so.
  assert (tmp_path / "roofline.png").read_bytes()[1:4] == b"PNG"
  content = json.loads((tmp_path / "bench.json").read_text())
  assert "cadjax.bench --config=configs/resnet3d.py" in content["command"]
  assert content["versions"]["jax"] == jax.__version__
  groups = content["runs"][0]["groups"]
  found = {
    (r["group"], r["name"]): r for group in groups for r in group["rows"]
  }
  infer = found["infer", "cadjax"]
  assert len(infer["seconds"]) == 2
  assert min(infer["seconds"]) > 0
  # A process that has imported jax holds more than 100 MB.
  assert infer["info"]["peak_bytes"] > 1e8
  assert infer["info"]["device"] == "1 x cpu"
  model = models.get_model({"depth": 10, "width": 4})
  counted = flops.count(model, (1, *SHAPE, 1))
  assert infer["info"]["flops"] == flops.step_flops(counted, train=False)
  assert list(found["stages", "stages"]["info"]["stages"]) == [
    *("stem", "stage1", "stage2", "stage3", "stage4")
  ]
  line = groups[0]["table"][0]
  median = np.median(infer["seconds"])
  assert line["volumes/s"] == pytest.approx(1 / median)
  assert line["GFLOP/s"] == pytest.approx(infer["info"]["flops"] / 1e9 / median)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--config=no.py"], "flag --config=no.py: no.py: no such file"),
    (["--what=trian"], "unknown --what 'trian'; did you mean 'train'? known: "),
    (
      ["--sweep=batch", "--values=1,x"],
      "--values: 'x' is not a number, as batch takes",
    ),
  ],
)
def test_a_wrong_flag_is_one_line(flags, message, tmp_path):
  done = bench(*flags, f"--out={tmp_path}/out")
  assert done.returncode == 2
  assert done.stderr.startswith(f"error: {message}")
  assert done.stderr.count("\n") == 1
  assert not (tmp_path / "out").exists()


def test_a_report_takes_two_workdirs(settings, tmp_path):
  half = dataclasses.replace(settings, models={"classifier": "there"})
  for asked in (settings, half):
    with pytest.raises(ConfigError, match=r"--classifier=DIR and --segmenter"):
      rows.plan(["report"], asked, rows.Inputs(tmp_path, asked))


def test_an_unknown_what_lists_all(settings, tmp_path):
  with pytest.raises(UnknownName) as caught:
    rows.plan(["all"], settings, rows.Inputs(tmp_path, settings))
  for name in rows.WHATS:
    assert name in str(caught.value)


@pytest.mark.parametrize("what", ["explain", "explanations", "data"])
def test_what_takes_a_classifier(segmenter, what, tmp_path):
  with pytest.raises(ConfigError, match=f"--what={what} .* a classifier, such"):
    rows.plan([what], segmenter, rows.Inputs(tmp_path, segmenter))


def test_slide_takes_a_segmenter(settings, tmp_path):
  with pytest.raises(ConfigError, match=r"a segmenter, such as configs/unet3d"):
    rows.plan(["slide"], settings, rows.Inputs(tmp_path, settings))


def row(name, environment=None, **spec):
  spec = {"framework": "cadjax", "shape": SHAPE, **spec}
  return rows.BenchRow("group", name, spec, environment or {})


def test_a_dead_worker_is_one_line_and_others_go_on():
  missing = row("missing", what="preprocess", variant="image", file="/no/file")
  broken = row("broken", what="no such thing")
  phantom = row("phantom", what="phantom")
  said = []
  results = measure.measure([missing, broken, phantom], 2, say=said.append)
  assert [bool(one.error) for one in results] == [True, True, False]
  assert results[0].error == "exit code 2: /no/file: no such file or folder"
  assert results[1].error.startswith("exit code 2: KeyError: ")
  assert "group: missing failed: exit code 2: /no/file: no such file or folder"
  assert len(results[2].seconds) == 2
  assert sum(" failed: " in line for line in said) == 2
  text = report._failures(results)
  assert text.count("\n") == 1


def test_a_killed_worker_is_said_to_be_killed():
  with measure.Worker(row("phantom", what="phantom")) as worker:
    worker.answer()
    worker._process.kill()
    with pytest.raises(measure.WorkerError, match=r"^killed by signal 9"):
      worker.go()


def test_workers_take_turns(settings, monkeypatch):
  calls = []

  class Recorder:
    def __init__(self, row):
      self.name = row.name

    def __enter__(self):
      return self

    def __exit__(self, *_):
      calls.append(f"close {self.name}")

    def answer(self):
      calls.append(f"ready {self.name}")
      return {"volumes": 1}

    def go(self):
      calls.append(self.name)
      return {"seconds": 1.0, "parts": {}}

    def finish(self):
      return {"peak_bytes": 1}

  monkeypatch.setattr(measure, "Worker", Recorder)
  measure.measure([row("a"), row("b")], 2, say=lambda _: None)
  assert calls == [
    *("ready a", "ready b", "a", "b", "a", "b", "close b", "close a")
  ]


def result(name, seconds, framework="cadjax", **info):
  made = row(name, what="infer", framework=framework, devices=1)
  info = {"volumes": 2, "peak_bytes": 10, "platform": "cpu", **info}
  return measure.Result(made, info, seconds)


def test_ratios_are_of_neighbours_and_the_better_format_counts():
  group = [
    result("cadjax", [1.0, 2.0, 4.0], flops=4e9),
    result("slow", [9.0, 9.0, 9.0], "torch"),
    result("fast", [2.0, 2.0, 2.0], "torch", peak_bytes=5),
  ]
  ours, slow, _ = summary.rows(group)
  assert ours["time ratio"] == "1.00 (0.50-2.00)"
  assert ours["memory ratio"] == 2.0
  assert ours["volumes/s"] == 1.0
  assert slow["GFLOP/s"] == pytest.approx(4 / 9)
  assert "time ratio" not in slow
  assert "1.00 (0.50-2.00)" in report.render(summary.rows(group))


def test_a_stage_is_the_difference_of_two_cuts(tmp_path):
  one = measure.Result(
    row("stages", what="stages"),
    {
      "stages": {
        name: {"flops": 10**9, "bytes": 10**7} for name in ("a", "b", "c")
      }
    },
    parts=[{"a": 1.0, "b": 3.0, "c": 2.5}],
  )
  found = summary.stages([one])
  assert [stage["gflops"] for stage in found[:2]] == [1.0, 0.5]
  assert math.isnan(found[2]["seconds"])
  roof = {"matmul_gflops": 100.0, "copy_gbs": 10.0}
  assert summary.roof_gflops(1.0, roof) == 10.0
  assert summary.roof_gflops(100.0, roof) == 100.0
  figure = figures.roofline_figure(found, roof, footer="x")
  assert len(figure.axes[0].lines) == 3  # The roof and two stages.


def test_records_are_read_in_training_and_alone(settings, tiny_data, tmp_path):
  settings = dataclasses.replace(settings, data=str(tiny_data))
  planned = rows.plan(["data"], settings, rows.Inputs(tmp_path, settings))
  (group,) = planned
  results = measure.measure(group, 1, say=lambda _: None)
  assert [one.row.name for one in results] == ["cadjax", "cadjax, as cells"]
  for found in results:
    assert found.error is None
    assert found.info["volumes"] == 64
    assert len(found.info["rss_bytes"]) == 2
    assert "2 runs of 64 volumes" in report._extras([found])


def test_a_segmenter_trains_on_patches(segmenter, tiny_data, tmp_path):
  segmenter = dataclasses.replace(
    segmenter, data=str(tiny_data), shape=(8, 16, 24)
  )
  works = make_works(segmenter, "train", tmp_path)
  assert list(works) == ["cadjax, fake batch", "cadjax, records"]
  model = models.get_model({"name": "unet", "features": (4, 8)})
  counted = flops.count(model, (2, 8, 16, 24, 1))
  for work in works.values():
    work.run()
    assert work.volumes == 2
    assert work.info["flops"] == flops.step_flops(counted, train=True)
  (work,) = make_works(segmenter, "infer", tmp_path).values()
  work.run()
  assert work.info["flops"] == flops.step_flops(counted, train=False)


def test_a_report_is_written_from_the_scanners_file(
  settings, tiny_workdir, tiny_segmenter, tmp_path, monkeypatch
):
  models = {"classifier": str(tiny_workdir), "segmenter": str(tiny_segmenter)}
  settings = dataclasses.replace(settings, models=models)
  (work,) = make_works(settings, "report", tmp_path).values()
  written = []
  monkeypatch.setattr(
    linked, "write_linked", lambda *given: written.append(given)
  )
  # Reading and writing in turns; the first of each compiles.
  seconds = iter([90.0, 80.0, 3.0, 1.0, 5.0, 2.0])
  monkeypatch.setattr(work_jax, "timed", lambda fn: (next(seconds), fn()))
  for _ in range(3):
    work.run()
  found = {result.classified.reading.case for result, _ in written}
  assert found == {"scan"}
  assert work.finish()["breakdown"] == {
    "models and link": 4.0,
    "pages and pictures": 1.5,
  }


def test_a_volume_is_segmented_in_the_configs_windows(segmenter, tmp_path):
  (work,) = make_works(segmenter, "slide", tmp_path).values()
  work.run()
  # By hand: steps of 4, 8 and 12 voxels take four windows along each axis.
  assert work.info["note"] == "64 windows of 8x16x24, 3 at a time"
  model = models.get_model({"name": "unet", "features": (4, 8)})
  counted = flops.count(model, (1, 8, 16, 24, 1))
  assert work.info["flops"] == 64 * flops.step_flops(counted, train=False)
  assert work.volumes == 1


@pytest.mark.parametrize("config", [resnet2d, resnet3d])
def test_all_layers_are_explained_beside_one_pass(config, tmp_path):
  works = make_works(make_settings(config.get_config()), "explain", tmp_path)
  every, gradcam, one = works.values()
  for work in (every, gradcam, one):
    work.run()
    assert work.volumes == 1
  assert every.info["note"] == f"5 layers by {', '.join(cam.METHODS)}"
  assert gradcam.info["note"] == "5 layers by gradcam"


def test_the_cost_table_has_every_method_and_measure(settings, tmp_path):
  groups = rows.plan(
    ["explanations"], settings, rows.Inputs(tmp_path, settings)
  )
  named = [(row.spec["what"], row.name) for (row,) in groups]
  assert named == [
    *(("method", name) for name in explainer.METHODS),
    *(("measure", name) for name in work_explanations.MEASURES),
  ]


def make_explanation(settings, tmp_path, name):
  groups = rows.plan(
    ["explanations"], settings, rows.Inputs(tmp_path, settings)
  )
  (row,) = (row for (row,) in groups if row.name == name)
  return worker.make(row.spec)


@pytest.mark.parametrize(
  "name", ["layercam", "scorecam", "guided_backprop", "smoothgrad"]
)
def test_a_method_is_measured_on_one_volume(settings, tmp_path, name):
  work = make_explanation(settings, tmp_path, name)
  assert work.run() is None
  assert work.volumes == 1
  assert (
    work.info["note"]
    == {
      "layercam": "5 layers",
      "guided_backprop": "at the input",
      "smoothgrad": "at the input; from one in 4 of its passes",
      # Of a width of 4 without bottlenecks: 4, 4, 8, 16 and 32.
      "scorecam": "stem: 4 channels, 2 at a time; all layers have 64",
    }[name]
  )
  assert work.scale == (4 if name == "smoothgrad" else 1)


def test_every_measure_of_explanations_runs_and_counts(settings, tmp_path):
  (row,), *_ = rows.plan(
    ["explanations"], settings, rows.Inputs(tmp_path, settings)
  )
  case = work_explanations.Case(row.spec)
  assert case.heat.shape == SHAPE
  for name, run in work_explanations.MEASURES.items():
    case.passes = [0, 0]
    run(case)
    alone = name.startswith(("SSIM", "energy", "SE3D", "CheXlocalize"))
    assert (sum(case.passes) == 0) == alone, name
    assert case.counted(run) == tuple(case.passes), name


def test_costs_are_one_table_in_markdown():
  made = result("ROAD", [1.0, 2.0, 3.0], note="18 passes", peak_bytes=2e9)
  made = dataclasses.replace(
    made, row=dataclasses.replace(made.row, group="measure")
  )
  failed = measure.Result(
    dataclasses.replace(made.row, name="eMPRT"), error="killed by signal 9"
  )
  table = report.costs([[made], [failed], [result("cadjax", [1.0])]])
  assert table.splitlines()[2:] == [
    "| measure: ROAD | 2 | 2 | 18 passes |",
    "| measure: eMPRT | failed | failed | killed by signal 9 |",
  ]
  assert report.costs([[result("cadjax", [1.0])]]) == ""


def test_explaining_is_told_in_passes():
  def explained(name, seconds, **spec):
    one = result(name, seconds, **spec)
    return dataclasses.replace(
      one, row=dataclasses.replace(one.row, spec=one.row.spec | spec)
    )

  group = [
    explained("maps", [3.0, 4.0, 5.0], variant="maps"),
    explained("pass", [2.0, 4.0, 4.0], variant="pass"),
    result("MONAI", [1.0, 1.0, 1.0], "torch"),
  ]
  maps, one, monai = summary.rows(group)
  assert maps["of one pass"] == "1.25 (1.00-1.50)"
  assert "of one pass" not in one | monai
  assert "1.25 (1.00-1.50)" in report.render([maps, one, monai])


def test_torch_is_asked_for_by_name(monkeypatch, tmp_path):
  if importlib.util.find_spec("torch") and importlib.util.find_spec("monai"):
    pytest.skip("PyTorch and MONAI are installed")
  done = bench("--against=torch", f"--out={tmp_path}")
  assert done.returncode == 2
  assert "pip install -e '.[bench]'" in done.stderr


def test_torch_does_the_same_work(tmp_path):
  pytest.importorskip("torch")
  if not importlib.util.find_spec("monai"):
    pytest.skip("MONAI is not installed")
  done = bench(
    *("--what=preprocess", "--against=torch", "--scan_shape=20,40,50"),
    f"--out={tmp_path}",
  )
  assert done.returncode == 0, done.stderr
  content = json.loads((tmp_path / "bench.json").read_text())
  for group in content["runs"][0]["groups"]:
    names = [one["name"] for one in group["rows"]]
    assert names == ["cadjax", "MONAI Resize", "MONAI Spacing"]
    assert "time ratio" in group["table"][0]


@pytest.fixture(scope="module")
def work_torch():
  pytest.importorskip("torch")
  if not importlib.util.find_spec("monai"):
    pytest.skip("MONAI is not installed")
  from cadjax.bench import work_torch

  return work_torch


@pytest.mark.parametrize(
  ("config", "whats"),
  [
    (resnet2d, ["explain"]),
    (resnet3d, ["train", "infer", "explain"]),
    (unet2d, ["train", "infer", "slide"]),
    (unet3d, ["train", "infer"]),
    (mlperf_unet3d, ["train"]),
  ],
)
@pytest.mark.parametrize("kind", ["contiguous", "channels_last"])
def test_torch_rows_run(work_torch, config, whats, kind, tmp_path):
  config = config.get_config()
  if config.task == "segment" and config.model.ndim == 2:
    config.segment.window = (2, 16, 24)
  settings = dataclasses.replace(
    make_settings(config), shape=(32, 32, 32), against="torch", data="not read"
  )
  for what in whats:
    (group, *_) = rows.plan([what], settings, rows.Inputs(tmp_path, settings))
    (found,) = (one for one in group if one.name.endswith(f", {kind}"))
    work = worker.make(found.spec)
    work.run()
    assert work.volumes == {"explain": 1, "slide": 1}.get(what, 2)


def test_torch_takes_as_many_windows(
  work_torch, segmenter, monkeypatch, tmp_path
):
  seen = []
  forward = work_torch.UNet.forward

  def counting(net, x):
    seen.append(x.shape)
    return forward(net, x)

  monkeypatch.setattr(work_torch.UNet, "forward", counting)
  settings = dataclasses.replace(segmenter, against="torch")
  works = make_works(settings, "slide", tmp_path)
  works["MONAI, contiguous"].run()
  assert seen[0] == (3, 1, 8, 16, 24)
  windows = sum(shape[0] for shape in seen)
  assert works["cadjax"].info["note"].startswith(f"{windows} windows")


@pytest.mark.parametrize("levels", [1, 3])
def test_a_segmenters_loss_is_torchs(work_torch, levels):
  import torch

  config = unet3d.get_config()
  rng = np.random.default_rng(0)
  sizes = [tuple(n // 2**level for n in SHAPE) for level in range(levels)]
  logits = [rng.standard_normal((2, *s, 3), np.float32) for s in sizes]
  mask = rng.integers(3, size=(2, *SHAPE))
  ours = task.make_loss(config)(
    tuple(logits) if levels > 1 else logits[0], (mask, np.ones((2, 3)))
  )
  theirs = tuple(torch.tensor(np.moveaxis(x, -1, 1).copy()) for x in logits)
  theirs = work_torch.make_loss(config.loss.to_dict())(
    theirs if levels > 1 else theirs[0], torch.tensor(mask)[:, None]
  )
  assert float(theirs) == pytest.approx(float(ours.mean()), rel=1e-5)


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("loss", {"weights": [1, 1, 1]}, "does no config.loss.weights"),
  ],
)
def test_torch_refuses_other_work(
  work_torch, segmenter, field, value, message, tmp_path
):
  config = segmenter.config | {field: segmenter.config[field] | value}
  settings = dataclasses.replace(segmenter, config=config, against="torch")
  with pytest.raises(UserError, match=message):
    make_works(settings, "infer", tmp_path)


def test_the_footer_tells_where_and_when():
  facts = about.about([result("cadjax", [1.0], device="1 x TPU v5")])
  assert "1 x TPU v5" in facts["footer"]
  assert facts["footer"].startswith(facts["date"][:10])


def test_a_step_is_compiled_for_a_tpu_that_is_not_there(tmp_path):
  pytest.importorskip("libtpu")
  done = bench(
    "--aot=tpu:v5e:2x2", "--batch=4", "--devices=4", f"--out={tmp_path}"
  )
  assert done.returncode == 0, done.stderr
  assert "the compiler's estimates" in done.stdout
  assert "all-reduce" in done.stdout


def compiled_step(cycles):
  operation = {
    "name": "fusion.1",
    "kind": "select-and-scatter",
    "shape": "bf16[8,128,64,64,64]",
    "stage": "stem",
    "source": "jit(f)/transpose(jvp(ResNet))/norm_stem/pool",
    "bytes": 1,
    "cycles": cycles // 2,
    "estimated": False,
  }
  aot = {
    "memory_bytes": 2e9,
    "hlo_flops": 3e12,
    "bytes_accessed": 819e9,
    "cycles": {"stem": cycles // 2, "other": cycles // 2},
    "bounded_cycles": cycles // 2,
    "operations": [operation],
    "collectives": {},
    "chip": {"flops": 1e12, "bandwidth": 819e9, "memory": 16e9, "clock": 1e9},
  }
  one = result("tpu:v5e:2x2", [1.0], aot=aot, flops=1e12, compile_seconds=9.0)
  spec = one.row.spec | {"what": "aot", "devices": 1}
  return dataclasses.replace(one, row=dataclasses.replace(one.row, spec=spec))


def test_the_costliest_operations_of_a_step_are_told(settings):
  text = report.text(settings, [[compiled_step(8_000_000)]])
  assert "8.0 million cycles, 4.0 of them bounds by bytes" in text
  line = next(x for x in text.splitlines() if "select-and-scatter" in x)
  assert line.split()[:3] == ["4.00", "50.0%", "stem"]
  assert "transpose(jvp(ResNet))/norm_stem/pool (a bound by bytes)" in line


def test_two_runs_are_told_apart(settings, tmp_path):
  def runs(seconds, cycles):
    groups = [[result("cadjax", seconds)], [compiled_step(cycles)]]
    return report.records({"": settings}, {"": groups})

  before, now = runs([2.0], 8_000_000), runs([1.0], 4_000_000)
  found = report.difference(now, before)
  assert "median s 2 -> 1 (0.50 times)" in found
  assert "million cycles 8 -> 4 (0.50 times)" in found
  path = tmp_path / "bench.json"
  path.write_text(json.dumps({"runs": before}))
  assert report.earlier(str(path)) == json.loads(json.dumps(before))
  assert report.earlier("torch") is None
  for wrong, message in (
    (tmp_path / "none.json", "is torch, or the bench.json of another run"),
    (tmp_path / "other.json", "is not the bench.json of a run"),
  ):
    if message.startswith("is not"):
      wrong.write_text("{}")
    with pytest.raises(UserError, match=message):
      report.earlier(str(wrong))


def test_an_unknown_chip_is_one_line(tmp_path):
  done = bench("--aot=tpu:v99:2x2", f"--out={tmp_path}")
  assert done.returncode == 2
  assert "known chips are v5e" in done.stdout


def test_a_long_measure_is_timed_in_part_and_scaled(settings, tmp_path):
  work = make_explanation(settings, tmp_path, "sensitivity-n")
  passes = int(work.info["note"].split()[0])
  taken = int(work.info["note"].split("; from ")[1].split()[0])
  assert work_explanations.PASSES <= taken < passes
  assert work.scale == passes / taken
  out = io.StringIO()
  worker.serve(
    dataclasses.replace(work, run=lambda: time.sleep(0.01)), ["go"], out
  )
  _, answer, _ = map(json.loads, out.getvalue().splitlines())
  assert answer["seconds"] >= work.scale * 0.01


def test_runs_of_a_row_are_traced(tmp_path):
  done = bench("--what=infer", "--profile=2:3", f"--out={tmp_path}")
  assert done.returncode == 0, done.stderr
  folder = tmp_path / "infer_cadjax" / "profile"
  assert any(folder.rglob("*.xplane.pb"))
  done = bench("--what=infer", "--profile=2:9", f"--out={tmp_path}")
  assert done.returncode == 2
  assert "a row has --repeats=2 runs" in done.stderr


def test_a_run_beside_the_one_that_it_overwrites(tmp_path):
  def median():
    content = json.loads((tmp_path / "bench.json").read_text())
    return content["runs"][0]["groups"][0]["table"][0]["median s"]

  out = f"--out={tmp_path}"
  assert bench("--what=phantom", out).returncode == 0
  before = median()
  done = bench("--what=phantom", out, f"--against={tmp_path / 'bench.json'}")
  assert done.returncode == 0, done.stderr
  assert f"median s {before:.4g} -> {median():.4g}" in done.stdout


def test_every_way_to_train_is_a_row(settings, tmp_path):
  (group,) = rows.plan(["ways"], settings, rows.Inputs(tmp_path, settings))
  assert all(set(way) == set(resnet.WAYS) for way in rows.WAYS.values())
  named = {row.name: row.spec["config"]["model"] for row in group[:-1]}
  for name, way in rows.WAYS.items():
    model = named.pop(name)
    assert {key: model[key] for key in way} == way
    assert model["depth"] == settings.config["model"]["depth"]
  assert not named
  worker.make(group[-2].spec).run()  # Of all ways together.


def test_ways_are_told_beside_the_plain_one():
  def timed(name, seconds):
    one = result(name, seconds)
    return dataclasses.replace(
      one, row=dataclasses.replace(one.row, group="ways")
    )

  plain, folded = summary.rows(
    [timed("plain", [2.0, 4.0]), timed("folded stem", [1.0, 3.0])]
  )
  assert "of plain" not in plain
  assert folded["of plain"] == "0.62 (0.50-0.75)"
  assert "of plain" in report.render([plain, folded])


def test_the_batch_that_fits_is_found_by_compiling(tmp_path):
  done = bench(
    "--shape=16,16,16",
    "--config.model.depth=10",
    "--config.model.width=4",
    "--fit=0.0014",
    f"--out={tmp_path}",
  )
  assert done.returncode == 0, done.stderr
  tried = [x for x in done.stdout.splitlines() if x.startswith("batch ")]
  assert len(tried) >= 2
  assert "0.0014 GB" in done.stdout
  assert not list(tmp_path.iterdir())
