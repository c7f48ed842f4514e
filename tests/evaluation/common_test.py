"""Where the files of an evaluation are, and what they are called."""

import pathlib
import types

import ml_collections
import pytest

from cadjax.core import files
from cadjax.evaluation import common, workdirs
from cadjax.training import workdir

FINGERPRINT = "0123456789abcdef"


@pytest.mark.parametrize(
  ("split", "external", "folder", "name"),
  [
    ("test", None, "eval", "test"),
    ("validation", None, "eval/validation", "validation"),
    ("all", None, "eval/all", "all"),
    ("test", FINGERPRINT, "eval/external_01234567", "external_test"),
    (
      "validation",
      FINGERPRINT,
      "eval/external_01234567/validation",
      "external_validation",
    ),
  ],
)
def test_files_of_a_split(split, external, folder, name):
  paths = common.paths_of("w", split, external)
  assert paths.folder == pathlib.Path("w") / folder
  assert paths.metrics == pathlib.Path("w") / folder / "metrics.json"
  assert paths.rows(paths.cases).name == f"{name}_cases.jsonl"
  assert paths.patients == f"{name}_patients"
  assert paths.lesions == f"{name}_lesions"
  # The rows of an external validation split do not replace the own ones.
  own = (split, external) == ("validation", None)
  assert (paths.cases == paths.validation) == own


@pytest.mark.parametrize("external", [False, True])
def test_a_result_says_where_it_was_written(external):
  evaluation = common.Evaluation(
    model=types.SimpleNamespace(
      path=pathlib.Path("runs/w"), task="classify", step=3
    ),
    dataset=types.SimpleNamespace(
      path="data", fingerprint=FINGERPRINT, metadata={"source": "phantom"}
    ),
    split="train",
    external=external,
  )
  result = files.strict(evaluation.describe())
  assert common.paths_of_result(result) == evaluation.paths
  assert result["cases"] == evaluation.paths.cases
  assert result["disclaimer"] == (
    "Phantom results. Research software, not a medical device."
  )


def test_another_batch_size_leaves_the_loaded_config(tmp_path):
  config = ml_collections.ConfigDict({"data": {"eval_batch_size": 8}})
  model = workdir.Trained(tmp_path, config, {}, 1, {})
  other = workdirs._with_batch_size(model, 3)
  assert other.config.data.eval_batch_size == 3
  assert model.config.data.eval_batch_size == 8
