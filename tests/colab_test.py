"""The notebooks are thin, clean and run whole, in small."""

import os
import pathlib
import re

import nbclient
import nbformat
import pytest

from data_prep import export, sources

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
COLAB = (
  "https://colab.research.google.com/github/cadjax/cadjax/blob/main/colab/"
)

TINY = (
  "--config.model.depth=10 --config.model.width=4"
  " --config.optimizer.warmup_steps=1"
)
TINY_UNET = (
  "--config.data.patch_size='(8, 16, 24)' --config.segment.window='(8, 16, 24)'"
  " --config.model.features='(2, 4)' --config.optimizer.warmup_steps=1"
)


def read(name: str) -> nbformat.NotebookNode:
  return nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)


def code_cells(name: str) -> dict[str, str]:
  cells = read(name).cells
  return {cell.id: cell.source for cell in cells if cell.cell_type == "code"}


@pytest.mark.parametrize("name", NAMES)
def test_is_thin_and_without_outputs(name):
  book = read(name)
  nbformat.validate(book)
  assert (book.nbformat, book.metadata.kernelspec.name) == (4, "python3")
  code = [cell for cell in book.cells if cell.cell_type == "code"]
  assert len(code) <= 12
  assert sum(len(cell.source.splitlines()) for cell in code) <= 120
  assert not any(cell.outputs or cell.execution_count for cell in code)
  assert code[0].metadata.tags == ["parameters"]


def test_all_begin_alike():
  # Else a mended install cell stays broken in the other notebooks.
  cells = [code_cells(name) for name in NAMES]
  assert len({one["install"] for one in cells}) == 1
  first = [one["device"].partition("print(OUT)")[0] for one in cells]
  assert len(set(first)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_no_cell_changes_a_parameter(name):
  # Else the cell of the parameters, run again alone, undoes what others made.
  cells = code_cells(name)
  given = re.findall("^([A-Z_]+) = ", cells.pop("parameters"), re.MULTILINE)
  assert "FOLDER" in given
  for source in cells.values():
    assigned = re.findall(r"^\s*([A-Z_]+) = ", source, re.MULTILINE)
    assert not set(assigned) & set(given)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_finished_is_not_trained_again(name):
  # Another device has other flags, which a workdir that is there refuses.
  for source in code_cells(name).values():
    trains = re.findall(r"^.*-m cadjax\.main.*$", source, re.MULTILINE)
    asked = re.findall(
      r"^( *)if not cells\.is_trained\(.*\):\n\1  !python -m cadjax\.main",
      source,
      re.MULTILINE,
    )
    assert len(asked) == len(trains)


def test_the_readme_opens_each():
  readme = (ROOT / "colab" / "README.md").read_text()
  opened = re.findall(rf"\({re.escape(COLAB)}(\w+)\.ipynb\)", readme)
  assert sorted(opened) == NAMES
  for name in NAMES:
    assert f"({COLAB}{name}.ipynb)" in read(name).cells[0].source


def test_the_benchmark_repeats_the_readme():
  readme = (ROOT / "cadjax" / "bench" / "README.md").read_text()
  source = code_cells("benchmark")["table"]
  seconds = re.findall(r"1 / ([\d.]+)\)", source)
  rates = re.findall(r"8, (\d+)\)", source)
  assert (len(seconds), len(rates)) == (5, 3)
  for value in seconds:
    assert f"| {value} s |" in readme
  for value in rates:
    assert f"| {value} |" in readme


def execute(monkeypatch, folder, name, **parameters) -> nbformat.NotebookNode:
  """Runs a notebook in `folder`, with other values of its parameters."""
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  # Of jupyter_core, which warns without it.
  monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
  # One device, as in Colab, but compiled as cheaply as elsewhere in the tests.
  flags = os.environ["XLA_FLAGS"].split()
  monkeypatch.setenv(
    "XLA_FLAGS", " ".join(f for f in flags if "device_count" not in f)
  )
  book = read(name)
  place = [cell.id for cell in book.cells].index("parameters")
  known = set(re.findall("^[A-Z_]+", book.cells[place].source, re.MULTILINE))
  assert set(parameters) <= known
  source = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
  book.cells.insert(place + 1, nbformat.v4.new_code_cell(source))
  nbclient.NotebookClient(
    book, timeout=600, resources={"metadata": {"path": str(folder)}}
  ).execute()
  return book


def pictures(book: nbformat.NotebookNode) -> int:
  return sum(
    "image/png" in output.get("data", {})
    for cell in book.cells
    for output in cell.get("outputs", [])
  )


def test_train_and_explain(monkeypatch, tmp_path):
  book = execute(
    monkeypatch,
    tmp_path,
    "train_and_explain",
    CASES=24,
    SHAPE=(16, 24, 32),
    EPOCHS=1,
    EXPLAINED=2,
    SPACING_MM=4.0,
    MORE=TINY,
  )
  assert pictures(book) == 5


@pytest.mark.slow
def test_linked_report(monkeypatch, tmp_path):
  book = execute(
    monkeypatch,
    tmp_path,
    "linked_report",
    CASES=24,
    SHAPE=(16, 24, 32),
    EPOCHS=1,
    MASK_CASES=16,
    MASK_SHAPE=(16, 24, 32),
    MASK_EPOCHS=1,
    SPACING_MM=4.0,
    MORE=TINY,
    MASK_MORE=TINY_UNET,
  )
  assert pictures(book) == 2
  page = book.cells[-2].outputs[0]["data"]["text/html"]
  assert "&lt;!doctype html&gt;" in page


def test_benchmark(monkeypatch, tmp_path):
  book = execute(
    monkeypatch,
    tmp_path,
    "benchmark",
    WHAT="infer",
    SHAPE=(16, 24, 32),
    BATCH=1,
    REPEATS=1,
    MORE=f"{TINY} --config.model.dtype=bfloat16",
  )
  table = book.cells[-1].outputs[0]["data"]["text/markdown"]
  assert "| **cpu, here** | infer: cadjax | 16x24x32 | bfloat16 | 1 |" in table


def test_your_own_scans(monkeypatch, tmp_path):
  scans = tmp_path / "my scans"
  export.export(sources.phantom(24), scans, spacing_mm=6.0)
  # As some spreadsheets write it.
  table = scans / "manifest.csv"
  head, _, rows = table.read_text().replace(",", ";").partition("\n")
  table.write_text(f"{head.replace('image', 'Image')}\n{rows}")
  book = execute(
    monkeypatch,
    tmp_path,
    "your_own_scans",
    SCANS=str(scans),
    SHAPE=(16, 24, 32),
    MORE=f"{TINY} --config.epochs=1",
  )
  assert pictures(book) == 5


def test_a_program_that_fails_stops_the_notebook(monkeypatch, tmp_path):
  with pytest.raises(nbclient.exceptions.CellExecutionError) as raised:
    execute(
      monkeypatch,
      tmp_path,
      "benchmark",
      MORE="--config.model.no_such_field=1",
    )
  assert "CalledProcessError" in str(raised.value)
  assert "no_such_field" in str(raised.value)
