"""Bytes that are bounded, read to the end and checked."""

import bz2
import gzip
import os
import random
import socket
import tracemalloc
import zlib

import numpy as np
import pytest

from data_prep import streams
from data_prep.errors import UserError

SHAPE = (40, 30, 20)
DTYPE = np.dtype("<i2")
PACK = {
  "raw": bytes,
  "gzip": lambda data: gzip.compress(data, 6),
  "zlib": zlib.compress,
  "bzip2": bz2.compress,
}
PACKED = [kind for kind in PACK if kind != "raw"]


def voxels(seed=0):
  return np.random.default_rng(seed).normal(0, 40, SHAPE).astype(DTYPE)


def read(path, content, kind, shape=SHAPE, dtype=DTYPE):
  path.write_bytes(content)
  with path.open("rb") as file:
    return streams.read_array(streams.source(file, kind), shape, dtype)


@pytest.fixture
def path(tmp_path):
  return tmp_path / "voxels"


@pytest.mark.parametrize("kind", PACK)
def test_what_was_written_is_read(path, kind):
  array = voxels()
  found, notes = read(path, PACK[kind](array.tobytes(order="F")), kind)
  np.testing.assert_array_equal(found, array)
  assert found.dtype == DTYPE
  assert found.flags.f_contiguous
  assert notes == []


@pytest.mark.parametrize("kind", PACKED)
def test_no_changed_bit_of_a_compressed_stream_is_accepted(path, kind):
  """Unless the voxels are as written: some bits, as the time, mean nothing."""
  array = voxels()
  content = PACK[kind](array.tobytes(order="F"))
  rng = random.Random(0)
  refused = 0
  for _ in range(150):
    bad = bytearray(content)
    bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
    try:
      found, _ = read(path, bad, kind)
    except streams.DamagedError:
      refused += 1
    else:
      np.testing.assert_array_equal(found, array)
  assert refused > 140


@pytest.mark.parametrize("kind", PACKED)
def test_every_missing_end_is_noticed(path, kind):
  """The last bytes are the checksum; all voxels come before it."""
  content = PACK[kind](voxels().tobytes(order="F"))
  for cut in (*range(1, 12), len(content) // 2, len(content)):
    with pytest.raises(streams.DamagedError, match="before its end|can hold"):
      read(path, content[:-cut], kind)


@pytest.mark.parametrize("kind", PACK)
def test_the_size_of_the_array_must_be_that_of_the_data(path, kind):
  content = PACK[kind](voxels().tobytes(order="F"))
  for axis in range(3):
    for step, match in ((1, "fewer|asks for"), (-1, "more")):
      shape = list(SHAPE)
      shape[axis] += step
      with pytest.raises(streams.DamagedError, match=match):
        read(path, content, kind, tuple(shape))
  for dtype in (np.dtype("i4"), np.dtype("u1")):
    with pytest.raises(streams.DamagedError):
      read(path, content, kind, dtype=dtype)


@pytest.mark.parametrize("kind", PACK)
def test_a_little_padding_is_left_out_and_said(path, kind):
  array = voxels()
  content = PACK[kind](array.tobytes(order="F") + b"padding")
  found, notes = read(path, content, kind)
  np.testing.assert_array_equal(found, array)
  assert notes == ["left out 7 bytes after the voxels"]


@pytest.mark.parametrize("kind", ["gzip", "bzip2"])
def test_streams_in_a_row_are_one(path, kind):
  """As pbzip2 and block-wise gzip write them; zeros may follow."""
  array = voxels()
  data = array.tobytes(order="F")
  content = b"".join(PACK[kind](part) for part in (data[:999], data[999:]))
  found, _ = read(path, content + bytes(300_000), kind)
  np.testing.assert_array_equal(found, array)
  with pytest.raises(streams.DamagedError, match="other data follows"):
    read(path, content + b"\0\0more", kind)
  with pytest.raises(streams.DamagedError):
    read(path, content[: len(content) - 4], kind)


def peak_bytes(*args, **given):
  tracemalloc.start()
  try:
    with pytest.raises(streams.DamagedError) as error:
      read(*args, **given)
    return str(error.value), tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["raw", "gzip", "zlib"])
def test_no_memory_is_taken_for_what_the_file_cannot_hold(path, kind):
  content = PACK[kind](random.Random(0).randbytes(9000))
  message, peak = peak_bytes(path, content, kind, shape=(1400,) * 3)
  assert "asks for 5488000000 bytes" in message
  assert peak < 1e6


@pytest.mark.parametrize("kind", PACKED)
def test_a_bomb_stops_at_what_the_header_asks_for(path, kind):
  """64 MB of zeros in 64 kB, or less, for 48 kB of voxels."""
  content = PACK[kind](bytes(1 << 26))
  assert len(content) < 70_000
  message, peak = peak_bytes(path, content, kind)
  assert "more bytes than its header" in message
  assert peak < 2e7


def test_only_files_and_folders_are_opened(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # The path of a socket must be short.
  os.mkfifo("pipe")
  (tmp_path / "nowhere").symlink_to("gone")
  (tmp_path / "loop").symlink_to("loop")
  (tmp_path / "file").touch()
  with socket.socket(socket.AF_UNIX) as server:
    server.bind("socket")
    for name, match in (
      ("pipe", "pipe, socket"), ("socket", "pipe, socket"),
      ("nowhere", "leads nowhere"), ("loop", "leads nowhere"),
      ("gone", "no such file"), ("file/below", "no such file"),
      ("x" * 300, "cannot be read"), ("a\0b", "cannot be read"),
    ):  # fmt: skip
      with pytest.raises(UserError, match=match):
        streams.check_kind(tmp_path / name)
      assert not streams.is_file(tmp_path / name)
  streams.check_kind(tmp_path)
  streams.check_kind(tmp_path / "file")
  assert streams.is_file(tmp_path / "file")
