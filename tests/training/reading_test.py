"""What every result of reading a scan holds, and the warnings it needs."""

import dataclasses
import datetime

import numpy as np
import pytest
from tiny_runs import warning, write_workdir

from cadjax.data import scans
from cadjax.training import reading, workdir
from data_prep.volume import Grid, Volume


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  path = tmp_path_factory.mktemp("run") / "classifier"
  return workdir.load_trained(write_workdir(path, source="asoca"))


def begin(trained, *, notes=(), model_notes=(), concerns=()):
  def volume(shape, notes):
    grid = Grid(shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3)[:, ::-1])
    return Volume(np.zeros(shape, np.int16), grid, notes=tuple(notes))

  prepared = scans.Prepared(
    scan=volume((4, 5, 6), notes),
    model_input=volume((2, 3, 4), model_notes),
    heart_mm=(0.0, 0.0, 0.0),
    heart_origin="given",
    features={},
    concerns=tuple(concerns),
  )
  scan = scans.Scan("name", "name.nii.gz", prepared.scan)
  return reading.begin(trained, scan, prepared)


def test_a_reading_names_its_scan_model_and_software(trained):
  one = begin(trained)
  assert (one.case, one.input_name) == ("name", "name.nii.gz")
  assert one.scan.shape == (4, 5, 6)
  assert one.model_input.shape == (2, 3, 4)
  assert one.model == workdir.describe_model(trained)
  assert one.software.to_dict()["jax"] == one.software.packages["jax"]
  created = datetime.datetime.fromisoformat(one.created)
  assert created.utcoffset() == datetime.timedelta(0)


def test_the_notes_of_the_grid_come_before_those_of_the_reader(trained):
  assert begin(trained, notes=["read"]).notes == ("read",)
  both = begin(trained, notes=["read"], model_notes=["read", "cropped"])
  assert both.notes == ("read", "cropped")


def test_each_cause_has_its_warning(trained):
  words = ("classifier", "probability")
  one = begin(trained)
  assert one.warnings(*words) == []
  assert begin(trained, concerns=["odd"]).warnings(*words) == [
    warning("unlike")
  ]
  model = dataclasses.replace(
    one.model,
    trained_on=dataclasses.replace(one.model.trained_on, is_phantom=True),
  )
  of_phantoms = dataclasses.replace(one, model=model)
  assert of_phantoms.warnings(*words) == [warning("phantom")]
  assert "segmenter" in of_phantoms.warnings("segmenter", "segmentation")[0]
