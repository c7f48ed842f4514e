"""Centrelines in a file that this test writes, and in a real one."""

import base64
import struct
import zlib

import numpy as np
import pytest

from data_prep.errors import UserError
from data_prep.phantom import polydata

TYPES = {"<i8": "Int64", "<f8": "Float64", "<f4": "Float32"}


def encode(array, block=64):
  """An array as VTK appends it: blocks of zlib behind a header of sizes."""
  raw = array.tobytes()
  parts = [raw[i : i + block] for i in range(0, len(raw), block)]
  packed = [zlib.compress(part) for part in parts]
  last = len(parts[-1]) if len(parts[-1]) < block else 0
  header = [len(parts), block, last, *map(len, packed)]
  first = base64.b64encode(struct.pack(f"<{len(header)}I", *header))
  return first + base64.b64encode(b"".join(packed))


def write_vtp(path, arrays, compressor="vtkZLibDataCompressor"):
  body, elements = b"", []
  for name, array in arrays.items():
    elements.append(
      f'<DataArray type="{TYPES[array.dtype.str]}" Name="{name}"'
      f' format="appended" offset="{len(body)}"/>'
    )
    body += encode(array)
  text = (
    f'<?xml version="1.0"?><VTKFile compressor="{compressor}"><PolyData>'
    f"<Piece>{''.join(elements)}</Piece></PolyData>"
    '<AppendedData encoding="base64">_'
  )
  tail = b"</AppendedData></VTKFile>"
  path.write_bytes(text.encode() + body + tail)


@pytest.fixture
def arrays():
  """A vessel of 2 cm and 2 mm radius, a fork's point, and an aorta."""
  n = 21
  at = np.linspace(0, 2, n)
  zero = np.zeros(n)
  order = np.random.default_rng(0).permutation(2 * n)
  points = np.concatenate(
    [np.stack([zero, at, zero + 5], -1), np.stack([at, zero, zero], -1)]
  )
  branch = np.concatenate([np.full(n, 4), np.full(n, 0)])
  branch[0] = -1
  area = np.pi * np.concatenate([zero + 0.2, zero + 1.3]) ** 2
  return {
    "BranchId": branch[order],
    "Path": np.concatenate([at, at])[order],
    "CenterlineSectionArea": area[order],
    "Points": points[order].astype("<f4"),
  }


def test_branches_in_mm_and_in_order(arrays, tmp_path):
  write_vtp(tmp_path / "tree.vtp", arrays)
  (line,) = polydata.read_lines(tmp_path / "tree.vtp")
  np.testing.assert_allclose(line[:, 1], np.arange(1, 21), atol=1e-5)
  np.testing.assert_allclose(line[:, 2], 50, atol=1e-5)
  np.testing.assert_allclose(line[:, 3], 2.0)


@pytest.mark.parametrize("name", ["BranchId", "Points"])
def test_a_file_without_what_is_needed(arrays, name, tmp_path):
  del arrays[name]
  write_vtp(tmp_path / "tree.vtp", arrays)
  with pytest.raises(UserError, match="tree.vtp: is no VTK PolyData"):
    polydata.read_lines(tmp_path / "tree.vtp")


def test_other_and_damaged_files(arrays, tmp_path):
  path = tmp_path / "tree.vtp"
  write_vtp(path, arrays, compressor="vtkLZ4DataCompressor")
  with pytest.raises(UserError, match="not compressed by zlib"):
    polydata.read_lines(path)
  write_vtp(path, arrays)
  content = path.read_bytes()
  for damaged in (b"", b"hello", content[:700], content[1:]):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="is no VTK PolyData"):
      polydata.read_lines(path)


def test_a_real_tree(real_ct):
  folder = real_ct.parent / "coronary_tree"
  lines = polydata.read_lines(folder / "centerlines-OG.vtp")
  assert len(lines) == 16
  widths = sorted(2 * np.median(line[:, 3]) for line in lines)
  # Medians of its main branches, as its README says: 2.3 to 4.1 mm.
  assert widths[-1] == pytest.approx(5.26, abs=0.1)
  assert 3.9 < widths[-2] < 4.2
