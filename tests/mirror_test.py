"""Every module has a test of its name, or is covered by one named here.

cadjax/ROOM/MODULE.py is tested in tests/ROOM/MODULE_test.py, and data_prep
likewise in tests/data_prep/. A package's own code, its `__init__` and
`__main__`, is tested under the package's name: tests/bench/bench_test.py runs
`python -m cadjax.bench`. A package that only has a docstring needs no test.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Modules without a test of their name: the test that covers them, and how.
COVERED = {
  ("cadjax/main.py", "training/loop_test.py"): "its flags and its one call",
  ("cadjax/classification/scan.py", "predict_test.py"): "by the program",
  ("cadjax/segmentation/scan.py", "segment_test.py"): "by the program",
  ("cadjax/calcium/scan.py", "calcium_score_test.py"): "by the program",
  ("cadjax/report/calcified.py", "calcium_score_test.py"): "by the program",
  ("cadjax/explanation/scan.py", "explain_test.py"): "by the program",
  ("cadjax/report/pages.py", "report/classified_test.py"): "inside a page",
  ("cadjax/report/segmented.py", "segment_test.py"): "by the program",
  ("cadjax/report/explained.py", "explain_test.py"): "by the program",
  ("cadjax/report/linked.py", "link/scan_test.py"): "the whole report",
  ("cadjax/report/linked_pictures.py", "link/scan_test.py"): "in the report",
  (
    "cadjax/report/tables.py",
    "evaluation/explanations_test.py",
  ): "the tables of a whole evaluation",
  (
    "cadjax/evaluation/case_maps.py",
    "evaluation/explanations_test.py",
  ): "by a whole evaluation",
  ("cadjax/evaluation/classifiers.py", "evaluate_test.py"): "by the program",
  ("cadjax/evaluation/common.py", "evaluate_test.py"): "by the program",
  **{
    (f"cadjax/evaluation/{name}.py", "evaluate_link_test.py"): "by the program"
    for name in ("links", "link_rows", "link_scores", "link_table")
  },
  ("cadjax/evaluation/lesions.py", "evaluate_link_test.py"): "scans it reads",
  (
    "cadjax/evaluation/diagnoses.py",
    "evaluate_diagnosis_test.py",
  ): "by the program",
  ("cadjax/evaluation/workdirs.py", "evaluate_test.py"): "by the program",
  ("cadjax/report/write.py", "cadjax_test.py"): "every kind of result",
  ("cadjax/data/scans.py", "predict_test.py"): "scans of many kinds",
  ("cadjax/models/resnet.py", "models/models_test.py"): "the default model",
  ("cadjax/models/winograd.py", "models/conv_cpu_test.py"): (
    "beside XLA's convolution"
  ),
  ("cadjax/export/run.py", "export/bundle_test.py"): "as a user runs it",
  ("cadjax/bench/recipe_torch.py", "bench/recipe_test.py"): "by the program",
  **{
    (f"cadjax/bench/{name}.py", "bench/bench_test.py"): "rows of the program"
    for name in (
      *("about", "figures", "measure", "report", "rows", "summary"),
      *("unet_torch", "work", "work_aot", "work_host", "work_jax"),
      *("work_explanations", "work_torch", "worker"),
    )
  },
  **{
    (
      f"cadjax/experiment/{name}.py",
      "experiment/experiment_test.py",
    ): "cells of a whole experiment"
    for name in (
      *("estimate", "figure", "measures", "page", "plan", "run", "store"),
      "summary",
    )
  },
  ("data_prep/case_flags.py", "data_prep/build_test.py"): "flags of build",
  ("data_prep/cases.py", "data_prep/sources_test.py"): "what a source finds",
  (
    "data_prep/ctca/records.py",
    "data_prep/ctca/ctca_dataset_builder_test.py",
  ): "what goes in comes out",
  ("data_prep/dicom.py", "data_prep/volume_test.py"): "by read_volume",
  ("data_prep/formats.py", "data_prep/volume_test.py"): "by read_volume",
  ("data_prep/heart.py", "data_prep/geometry_test.py"): "grids on the heart",
  ("data_prep/layouts.py", "data_prep/sources_test.py"): "every layout",
  ("data_prep/matching.py", "data_prep/sources_test.py"): "every layout",
  ("data_prep/resampling.py", "data_prep/geometry_test.py"): (
    "onto a grid and back"
  ),
  (
    "data_prep/phantom/published.py",
    "data_prep/phantom/compare_test.py",
  ): "the ranges of its table",
  **{
    (
      f"data_prep/phantom/{name}.py",
      "data_prep/phantom/phantom_test.py",
    ): "parts of a whole phantom"
    for name in (
      *("calcium", "coronaries", "heart", "lumen", "plaques"),
      *("population", "shapes", "vessels", "voxels"),
    )
  },
  **{
    (
      f"data_prep/phantom/{name}.py",
      "data_prep/phantom/thorax_test.py",
    ): "parts of a whole chest"
    for name in ("abdomen", "bones", "branching", "lungs")
  },
  **{
    (
      f"data_prep/phantom/{name}.py",
      "data_prep/phantom/artifacts_test.py",
    ): "noise and metal beside streaks"
    for name in ("acquisition", "metal")
  },
}
# Tests that are of no single module.
OF_NO_MODULE = {
  "before_test.py": "what an earlier version wrote",
  "cli_test.py": "the command cadjax",
  "colab_test.py": "the notebooks",
  "commands_test.py": "the commands of the README and of make",
  "configs_test.py": "every shipped config",
  "fuzz_test.py": "every reader, on damaged files",
  "imports_test.py": "who imports whom",
  "mirror_test.py": "this file",
  "own_test.py": "the recipe for own scans",
  "two_stage_test.py": "the chest first, then the coronary arteries",
  "wheel_test.py": "an installed wheel",
  "explanation/cam_parity_test.py": "beside another implementation",
  "explanation/quantus_parity_test.py": "beside another implementation",
  "models/parity_test.py": "beside PyTorch and MONAI",
  "training/loop_segment_test.py": "the loop, of a segmenter",
  "report/schemas_test.py": "the JSON Schemas of all results",
  "weights/phantoms_test.py": "the shipped models on phantoms",
  "weights/real_scan_test.py": "the shipped models on a real scan",
}


def modules(root: pathlib.Path) -> dict[str, str]:
  """Returns the file of every module with code -> the test of its name."""
  found = {}
  for package in ("cadjax", "data_prep"):
    for path in sorted((root / package).rglob("*.py")):
      if path.name == "__init__.py" and not _has_code(path):
        continue
      parts = list(path.relative_to(root).with_suffix("").parts)
      if parts[-1] in ("__init__", "__main__"):
        parts[-1] = parts[-2]
      if package == "cadjax":
        parts = parts[1:]
      name = "/".join(parts) + "_test.py"
      found[path.relative_to(root).as_posix()] = name
  return found


def _has_code(path: pathlib.Path) -> bool:
  """Whether a package defines anything beside its docstring and constants."""
  kinds = (ast.FunctionDef, ast.ClassDef)
  return any(isinstance(x, kinds) for x in ast.parse(path.read_text()).body)


def problems(root, covered, of_no_module) -> list[str]:
  """Returns one line for everything that the mirror does not show."""
  expected = modules(root)
  tests = {
    path.relative_to(root / "tests").as_posix()
    for path in (root / "tests").rglob("*_test.py")
  }
  reasons = {module for module, _ in covered}
  found = [
    f"{module} has no tests/{test}, and no reason why"
    for module, test in expected.items()
    if test not in tests and module not in reasons
  ]
  for module, test in covered:
    if module not in expected:
      found.append(f"{module}, covered by {test}, is gone")
    if test not in tests:
      found.append(f"tests/{test}, which covers {module}, is gone")
  for test in sorted(tests - set(expected.values()) - set(of_no_module)):
    found.append(f"tests/{test} is the test of no module")
  for test in of_no_module:
    if test not in tests:
      found.append(f"tests/{test}, of no module, is gone")
  return found


def test_tests_mirror_the_modules():
  assert not problems(ROOT, COVERED, OF_NO_MODULE)


def write(root: pathlib.Path, *names: str, text: str = "") -> None:
  for name in names:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


@pytest.fixture
def small(tmp_path):
  """A tree with two modules, two packages with code of their own, and one."""
  code = '"""Doc."""\n\n\ndef f():\n  pass\n'
  write(tmp_path, "cadjax/__init__.py", text='"""Doc."""\n\nVERSION = "1"\n')
  write(tmp_path, "cadjax/room/thing.py", "cadjax/main.py")
  write(tmp_path, "cadjax/bench/__main__.py", "data_prep/volume.py")
  write(tmp_path, "data_prep/phantom/__init__.py", text=code)
  write(tmp_path, "tests/room/thing_test.py", "tests/main_test.py")
  write(tmp_path, "tests/bench/bench_test.py")
  write(tmp_path, "tests/data_prep/volume_test.py")
  write(tmp_path, "tests/data_prep/phantom/phantom_test.py")
  return tmp_path


def test_a_whole_mirror_has_no_problem(small):
  assert not problems(small, {}, {})


@pytest.mark.parametrize(
  ("module", "test"),
  [
    ("cadjax/room/thing.py", "room/thing_test.py"),
    ("cadjax/main.py", "main_test.py"),
    ("cadjax/bench/__main__.py", "bench/bench_test.py"),
    ("data_prep/phantom/__init__.py", "data_prep/phantom/phantom_test.py"),
  ],
)
def test_a_module_needs_a_test_or_a_reason(small, module, test):
  (small / "tests" / test).unlink()
  (found,) = problems(small, {}, {})
  assert found == f"{module} has no tests/{test}, and no reason why"
  covered = {(module, "data_prep/volume_test.py"): "by a whole volume"}
  assert not problems(small, covered, {})


def test_a_test_needs_a_module(small):
  write(small, "tests/room/other_test.py")
  (found,) = problems(small, {}, {})
  assert found == "tests/room/other_test.py is the test of no module"
  assert not problems(small, {}, {"room/other_test.py": "of several"})


def test_a_reason_goes_with_its_module_and_its_test(small):
  covered = {("cadjax/room/gone.py", "room/thing_test.py"): "by the thing"}
  (found,) = problems(small, covered, {})
  assert "cadjax/room/gone.py, covered by" in found
  covered = {("cadjax/room/thing.py", "room/gone_test.py"): "by the program"}
  (found,) = problems(small, covered, {})
  assert "tests/room/gone_test.py, which covers" in found
  (found,) = problems(small, {}, {"gone_test.py": "of several"})
  assert found == "tests/gone_test.py, of no module, is gone"
