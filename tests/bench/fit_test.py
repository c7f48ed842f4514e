"""fit: the largest step that a device holds, of a compiler made up here."""

import math

import pytest

from cadjax.bench import fit


def compiler(each, asked, *, devices=1, holds=math.inf):
  """1 GB for parameters and `each` for a volume of 128 voxels along an edge."""

  def compiled(size):
    asked.append(size)
    volumes = size.batch / devices
    used = 1e9 + volumes * each * math.prod(size.shape) / 128**3
    return used if used <= holds else None

  return compiled


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 13])
@pytest.mark.parametrize("holds", [math.inf, 16e9])
def test_the_largest_batch_is_found(most, holds):
  asked = []
  limit = 1e9 + (most + 0.5) * 1e9
  found = fit.search(compiler(1e9, asked, holds=holds), limit, (128, 128, 128))
  assert found.best == fit.Size(most, (128, 128, 128))
  assert len(asked) == len(set(asked)) <= 2 * math.log2(most) + 3
  text = fit.text(found, limit, (128, 128, 128))
  assert f"batch {most} of 128x128x128: {most + 1} GB" in text
  assert text.endswith(f"--config.data.batch_size={most}")


def test_a_large_batch_is_found_to_an_eighth():
  asked = []
  found = fit.search(compiler(1e9, asked), 101.5e9, (128, 128, 128))
  assert 100 * 7 / 8 <= found.best.batch <= 100
  assert len(asked) < 12


def test_devices_share_a_batch():
  found = fit.search(
    compiler(1e9, [], devices=4), 4.5e9, (128, 128, 128), devices=4
  )
  assert found.best == fit.Size(12, (128, 128, 128))


def test_a_patch_becomes_smaller_where_one_does_not_fit():
  found = fit.search(compiler(8e9, []), 3e9, (128, 128, 96), stride=16)
  assert found.best.batch == 1
  assert found.best.shape == (80, 80, 80)
  text = fit.text(found, 3e9, (128, 128, 96))
  assert text.endswith(
    "--config.data.batch_size=1 --config.data.patch_size='(80,80,80)'"
  )


@pytest.mark.parametrize("stride", [None, 32])
def test_nothing_fits_is_told(stride):
  found = fit.search(compiler(8e9, []), 0.5e9, (128, 128, 128), stride=stride)
  assert found.best is None
  assert "nothing fits into 0.5 GB; try" in fit.text(found, 0.5e9, (128,) * 3)
  smallest = list(found.tried)[-1].shape
  assert smallest == ((128,) * 3 if stride is None else (32,) * 3)


def test_the_search_ends_where_all_fits():
  found = fit.search(compiler(0, []), 2e9, (32, 32, 32), most=64)
  assert found.best.batch == 64
