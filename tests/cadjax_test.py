"""The names that `import cadjax` offers, and what they make of a scan."""

import inspect
import json
import pydoc
import subprocess
import sys

import pytest
from tiny_runs import write_workdir

import cadjax
from data_prep import export, sources


def test_every_name_loads_and_is_documented():
  for name in cadjax.__all__:
    function = getattr(cadjax, name)
    assert function.__name__ == name
    doc = inspect.getdoc(function)
    for parameter in inspect.signature(function).parameters:
      assert f"\n  {parameter}: " in doc, f"{name} does not explain {parameter}"
    assert "Raises:" in doc
  assert set(cadjax.__all__) <= set(dir(cadjax))


def test_a_name_that_is_not_there_is_an_attribute_error():
  with pytest.raises(AttributeError, match="no attribute 'classify'"):
    _ = cadjax.classify


def test_nothing_is_loaded_before_it_is_used():
  code = "import sys, cadjax; print(cadjax.__version__, 'jax' in sys.modules)"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.split() == [cadjax.__version__, "False"]


def test_help_is_one_page_with_all_names():
  page = pydoc.render_doc(cadjax, renderer=pydoc.plaintext)
  for name in cadjax.__all__:
    assert f"    {name}(" in page


def test_a_scan_is_read_classified_explained_and_written(tmp_path):
  export.export(sources.phantom(1), tmp_path / "scans", spacing_mm=5.0)
  (path,) = (tmp_path / "scans").glob("*[0-9].nii.gz")
  classifier = cadjax.load_classifier(write_workdir(tmp_path / "run"))
  scan = cadjax.read_scan(path)
  classified = cadjax.classify_scan(classifier, scan)
  explained = cadjax.explain_scan(classifier, scan)
  # Eager and fused programs round alike to this many digits.
  assert explained.prediction.probability == pytest.approx(
    classified.prediction.probability, abs=1e-4
  )
  for result in (classified, explained):
    folder = tmp_path / type(result).__name__
    document = cadjax.write(result, folder)
    written = {path.name for path in folder.iterdir()}
    assert written == set(document["files"].values())
    name = document["files"]["result"]
    assert json.loads((folder / name).read_text()) == document


def test_what_is_not_a_result_is_refused(tmp_path):
  with pytest.raises(TypeError, match="not a result of a scan: dict"):
    cadjax.write({}, tmp_path / "out")
