"""Files of weights: what goes in comes out, and damage is told."""

import json
import os
import pickletools
import struct

import numpy as np
import pytest
import safetensors.numpy

from cadjax.training import packed
from data_prep.errors import UserError

ABOUT = {
  "name": "small",
  "step": 7,
  "config": {"task": "classify", "sizes": (1, 2)},
  "dataset": {"reference": {"hu": [0.1, 0.30000000000000004]}},
  "versions": {},
  "calibration": None,
}


def variables():
  rng = np.random.default_rng(2)
  return {
    "params": {
      "stem": {"conv": {"kernel": rng.normal(size=(3, 2, 1, 4))}},
      "head": {"kernel": rng.normal(size=(4, 2)), "bias": rng.normal(size=2)},
    },
    "batch_stats": {"norm": {"var": np.array([1e-9, 3e5])}},
  }


@pytest.fixture
def file(tmp_path):
  path = tmp_path / "small.safetensors"
  path.write_bytes(packed.to_bytes(ABOUT, packed.halve(variables())))
  return path


def test_what_goes_in_comes_out_in_half_precision(file):
  found = packed.read(file)
  # As JSON has it, and to the last digit.
  assert found.description == json.loads(json.dumps(ABOUT))
  given, got = packed.flatten(variables()), packed.flatten(found.variables)
  assert list(given) == [
    "params/stem/conv/kernel",
    "params/head/kernel",
    "params/head/bias",
    "batch_stats/norm/var",
  ]
  assert set(given) == set(got)
  for place, value in got.items():
    assert value.dtype == np.float32
    # Half a unit in the last of 11 bits; vectors keep all of float32's 24.
    error = 2.0**-11 if value.ndim > 1 else 2.0**-24
    np.testing.assert_allclose(value, given[place], rtol=error)
  assert found.variables["batch_stats"]["norm"]["var"][1] == 3e5


def test_a_kernel_beyond_the_range_of_half_precision_stays_whole():
  large = {"params": {"kernel": np.array([[1.0, 1e5]])}}
  (value,) = packed.halve(large).values()
  assert value.dtype == np.float32
  assert value.max() == 1e5


def test_without_statistics_there_is_an_empty_collection():
  tree = packed.unhalve(packed.halve({"params": {"bias": np.ones(2)}}))
  assert tree["batch_stats"] == {}


def test_the_same_model_gives_the_same_bytes():
  first, second = (
    packed.to_bytes(ABOUT, packed.halve(variables())) for _ in range(2)
  )
  assert first == second
  other = packed.to_bytes(ABOUT | {"step": 8}, packed.halve(variables()))
  assert other != first


def test_the_file_is_as_the_page_says(file):
  """Read without safetensors: a length, a JSON header, the tensors."""
  content = file.read_bytes()
  (length,) = struct.unpack("<Q", content[:8])
  header = json.loads(content[8 : 8 + length])
  entry = json.loads(header["__metadata__"]["cadjax"])
  assert entry["format"] == packed.FORMAT
  assert set(entry) == {"format", "sha256", "description"}
  about = header["params/head/kernel"]
  start, stop = about["data_offsets"]
  values = np.frombuffer(content[8 + length :][start:stop], "<f2")
  assert about["dtype"] == "F16"
  expected = variables()["params"]["head"]["kernel"].astype(np.float16)
  np.testing.assert_array_equal(values.reshape(about["shape"]), expected)


def test_nothing_in_the_file_is_a_pickle(file):
  with pytest.raises(Exception, match="opcode|exhausted|pickle|STOP"):
    list(pickletools.genops(file.read_bytes()))


def test_every_flipped_bit_is_told(file):
  """Or changes nothing, as in what pads the header."""
  content, whole = file.read_bytes(), packed.read(file)
  rng = np.random.default_rng(0)
  refused = []
  # All of the start, and places everywhere.
  places = [*range(120), *rng.integers(0, len(content), 300)]
  for place in places:
    changed = bytearray(content)
    changed[place] ^= 1 << int(rng.integers(8))
    file.write_bytes(changed)
    try:
      found = packed.read(file)
    except UserError as error:
      refused.append(str(error))
      continue
    assert found.description == whole.description
    a, b = packed.flatten(found.variables), packed.flatten(whole.variables)
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
  assert len(refused) > 0.95 * len(places)
  assert all(x.startswith(str(file)) and "\n" not in x for x in refused)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_told(file, share):
  content = file.read_bytes()
  file.write_bytes(content[: int(share * len(content))])
  with pytest.raises(UserError, match="is damaged, or no file of weights"):
    packed.read(file)


def rewrite(file, change):
  """Writes a file whose entry is changed, as another program might."""
  with safetensors.safe_open(file, framework="numpy") as opened:
    entry = json.loads(opened.metadata()["cadjax"])
    stored = {place: opened.get_tensor(place) for place in opened.keys()}  # noqa: SIM118
  change(entry)
  safetensors.numpy.save_file(stored, file, {"cadjax": json.dumps(entry)})


def test_a_changed_description_is_told(file):
  rewrite(file, lambda entry: entry["description"].update(step=8))
  with pytest.raises(UserError, match="has changed since it was written"):
    packed.read(file)


def test_a_newer_format_is_told(file):
  rewrite(file, lambda entry: entry.update(format="cadjax.weights/9"))
  with pytest.raises(UserError, match="update cadjax"):
    packed.read(file)


def test_a_file_of_another_program_is_told(tmp_path):
  path = tmp_path / "other.safetensors"
  safetensors.numpy.save_file({"x": np.ones(3)}, path)
  with pytest.raises(UserError, match="was not written by cadjax weights"):
    packed.read(path)


def test_what_is_no_file_is_told(tmp_path):
  with pytest.raises(UserError, match="no such file of weights"):
    packed.read(tmp_path / "none.safetensors")
  folder = tmp_path / "folder.safetensors"
  folder.mkdir()
  with pytest.raises(UserError, match="is a folder"):
    packed.read(folder)
  pipe = tmp_path / "pipe.safetensors"
  os.mkfifo(pipe)
  with pytest.raises(UserError, match="pipe"):
    packed.read(pipe)


def test_a_name_is_a_shipped_model_unless_it_is_there(
  file, tmp_path, monkeypatch
):
  monkeypatch.setattr(packed, "FOLDER", tmp_path)
  monkeypatch.chdir(tmp_path)
  assert packed.locate("small") == file
  assert packed.is_shipped(packed.locate("small"))
  assert packed.locate("./other").name == "other"
  (tmp_path / "small").mkdir()
  assert packed.locate("small").is_dir()
  assert packed.locate(file) == file


def test_without_shipped_weights_the_flag_to_give_is_named(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(packed, "FOLDER", tmp_path)
  with pytest.raises(UserError) as told:
    packed.default("coronary")
  assert str(told.value) == (
    "no weights are shipped in this version; give --segmenter=WORKDIR"
  )
  (tmp_path / "coronary.safetensors").touch()
  assert packed.default("coronary").name == "coronary.safetensors"
  with pytest.raises(UserError, match="no classifier weights are shipped"):
    packed.default("classifier")
