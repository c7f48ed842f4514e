"""Checks a document that a program wrote against its JSON Schema."""

import json
import pathlib

import jsonschema
import referencing

import cadjax

FOLDER = pathlib.Path(cadjax.__file__).parent / "report" / "schemas"


def load(name: str) -> dict:
  return json.loads((FOLDER / f"{name}.json").read_text())


def validator(name: str) -> jsonschema.Draft202012Validator:
  common = referencing.Resource.from_contents(load("common"))
  registry = referencing.Registry().with_resource("common.json", common)
  schema = load(name)
  jsonschema.Draft202012Validator.check_schema(schema)
  return jsonschema.Draft202012Validator(schema, registry=registry)


def validate(document: dict) -> None:
  """Raises unless it fits the schema of its kind, and that of its version."""
  # As it is in a file: without tuples.
  document = json.loads(json.dumps(document, allow_nan=False))
  name = document["schema"].removeprefix("cadjax.").partition("/")[0]
  validator(name).validate(document)
