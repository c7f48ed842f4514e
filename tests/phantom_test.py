import numpy as np

from data_prep.geometry import GridSpec
from data_prep.phantom import make_phantom

SMALL = GridSpec("heart", (40, 36, 44), (150.0, 150.0, 150.0))


def test_same_seed_same_phantom():
  first, second = (make_phantom(3, grid=SMALL) for _ in range(2))
  np.testing.assert_array_equal(first.volume.hu, second.volume.hu)
  assert first.lesions == second.lesions


def test_normal_has_no_plaque():
  phantom = make_phantom(3, label=0, grid=SMALL)
  assert phantom.cad_rads == 0
  assert phantom.lesions == []
  assert set(np.unique(phantom.mask)) == {0, 1, 2}
