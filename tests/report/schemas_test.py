"""The JSON Schemas: they take what is written, and nothing else."""

import copy
import json

import jsonschema
import pytest
import schema_check
import tiny_linked

from cadjax.report import calcified, classified, explained, linked, segmented

KINDS = ("case", "segments", "explain", "calcium")
WRITERS = (classified, segmented, explained, calcified)


@pytest.fixture(scope="module")
def documents():
  result = tiny_linked.linked_scan()
  return {
    "linked": linked.to_json(result, pdf=True),
    "alone": classified.to_json(result.classified),
    "segments": segmented.to_json(result.segmented),
    "skipped": linked.to_json(
      tiny_linked.linked_scan(skipped="no contrast: 40 HU")
    ),
  }


@pytest.mark.parametrize("which", ["linked", "alone", "segments", "skipped"])
def test_what_is_written_fits(documents, which):
  schema_check.validate(documents[which])


def test_with_a_segmenter_there_is_a_diagnosis_and_without_none(documents):
  assert documents["linked"]["diagnosis"]["category"] == "4A"
  assert documents["alone"]["diagnosis"] is None
  for which, other in (("linked", "alone"), ("alone", "linked")):
    document = documents[which] | {"diagnosis": documents[other]["diagnosis"]}
    with pytest.raises(jsonschema.ValidationError):
      schema_check.validate(document)
  torn = dict(documents["linked"])
  del torn["segmentation"]
  with pytest.raises(jsonschema.ValidationError):
    schema_check.validate(torn)


OBJECTS = (
  *((), ("input",), ("model_input", "grid"), ("prediction",)),
  *(("diagnosis",), ("diagnosis", "segments", 0), ("link",)),
  *(("link", "findings", 0), ("segmentation",), ("classifier",)),
  *(("segmentation", "classes", 0), ("classifier", "trained_on")),
)


def at(document, path):
  for key in path:
    document = document[key]
  return document


@pytest.mark.parametrize("path", OBJECTS, ids=str)
def test_every_key_must_be_there_of_its_type_and_alone(documents, path):
  whole = json.loads(json.dumps(documents["linked"]))
  check = schema_check.validator("case").is_valid
  assert check(whole)
  for key in at(whole, path):
    torn = copy.deepcopy(whole)
    del at(torn, path)[key]
    assert not check(torn), key
    changed = copy.deepcopy(whole)
    at(changed, path)[key] = [[["no such thing"]]]
    assert not check(changed), key
  more = copy.deepcopy(whole)
  at(more, path)["unknown"] = 1
  assert not check(more)


def test_wrong_values_are_refused(documents):
  whole = json.loads(json.dumps(documents["linked"]))
  check = schema_check.validator("case").is_valid
  for path, wrong in (
    (("schema",), "cadjax.case/1"),
    (("created",), "yesterday"),
    (("prediction", "probability"), 1.2),
    (("diagnosis", "category"), "4C"),
    (("diagnosis", "text"), "CAD-RADS 7"),
    (("diagnosis", "segment"), "LAD"),
    (("diagnosis", "segments", 0, "number"), 19),
    (("link", "findings", 0, "stenosis"), "0.5"),
    (("link", "findings", 0, "plaque"), "calcified"),
    (("files", "page"), "folder/report.html"),
  ):
    changed = copy.deepcopy(whole)
    at(changed, path[:-1])[path[-1]] = wrong
    assert not check(changed), path


@pytest.mark.parametrize(
  ("kind", "writer"), list(zip(KINDS, WRITERS, strict=True))
)
def test_there_is_one_for_each_kind_of_result(kind, writer):
  schema = schema_check.load(kind)
  assert schema["$schema"].endswith("2020-12/schema")
  assert schema["properties"]["schema"]["const"] == writer.SCHEMA
  assert schema["additionalProperties"] is False
  assert not schema_check.validator(kind).is_valid({"schema": writer.SCHEMA})


def test_a_result_of_the_schema_before_is_still_replaced(tmp_path):
  old = {"schema": "cadjax.case/1", "files": {"result": "result.json"}}
  (tmp_path / "result.json").write_text(json.dumps(old))
  classified.KIND.check_free(tmp_path, overwrite=True)
  with classified.KIND.writing(tmp_path, overwrite=True) as made:
    (made / "result.json").write_text("{}")
  assert (tmp_path / "result.json").read_text() == "{}"
